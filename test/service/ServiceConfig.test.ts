import { describe, expect, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as ServiceConfig from "../../src/service/ServiceConfig.ts"

type Env = Readonly<Record<string, string | undefined>>

const table = (...rows: ReadonlyArray<readonly [env: Env, ...told: ReadonlyArray<string>]>) =>
  rows.map(([env, ...told]) => ({ env, told }))

const parse = (env: Env, argv: ReadonlyArray<string> = [], defaults: Partial<ServiceConfig.Defaults> = {}) =>
  ServiceConfig.parse({ env, argv, defaults: { name: "notes", ...defaults } })

const config = (env: Env, argv?: ReadonlyArray<string>, defaults?: Partial<ServiceConfig.Defaults>) =>
  Result.getOrThrow(parse(env, argv, defaults))

const faults = (env: Env, argv?: ReadonlyArray<string>, defaults?: Partial<ServiceConfig.Defaults>) => {
  const result = parse(env, argv, defaults)
  if (Result.isSuccess(result)) return []
  const { reason } = result.failure
  return reason._tag === "ConfigInvalid" ? reason.faults : [reason._tag]
}

describe("an empty environment", () => {
  it("is a local service on embedded defaults", () => {
    expect(config({})).toEqual({
      command: { _tag: "Run" },
      arguments: [],
      environment: "local",
      projectId: "proj_LOCAL",
      projectName: "notes",
      ip: "127.0.0.1",
      port: 8000,
      healthIp: "0.0.0.0",
      healthPort: Option.none(),
      api: Option.none(),
      apiKey: Option.none(),
      sidecar: Option.none(),
      stateDirectory: ".service/notes",
      stopBudget: Duration.seconds(25),
      drainDelay: Duration.zero,
      telemetry: { logFormat: Option.none(), logLevel: "Info", colors: true, otlp: Option.none() },
      sockets: Option.none(),
      warnings: []
    })
  })

  it("takes what the service says", () => {
    const { drainDelay, stopBudget } = config({}, [], { stopBudget: "9 seconds", drainDelay: "3 seconds" })
    expect([drainDelay, stopBudget].map(Duration.toMillis)).toEqual([3000, 9000])
  })
})

describe("what is set is taken", () => {
  const all = {
    SERVICE_ENV: "production",
    SERVICE_PROJECT_ID: "proj 1/ä",
    SERVICE_PROJECT_NAME: "Notes",
    SERVICE_RUNTIME_IP: "::1",
    SERVICE_RUNTIME_PORT: "+0080",
    SERVICE_HEALTHZ_IP: "10.0.0.1",
    SERVICE_HEALTHZ_PORT: "0",
    SERVICE_API: "https://api.example/base//",
    SERVICE_API_KEY: "k3y",
    SERVICE_SIDECAR: "http://127.0.0.1:9/s",
    SERVICE_STATE_DIR: "/var/lib/notes",
    SERVICE_STOP_BUDGET: "1.5m",
    SERVICE_DRAIN_DELAY: "500ms",
    SERVICE_LOG_FORMAT: "json",
    SERVICE_LOG_LEVEL: "WARN",
    OTEL_EXPORTER_OTLP_ENDPOINT: "http://collector:4318/",
    OTEL_EXPORTER_OTLP_HEADERS: "x-key=a%20b, y = c",
    OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
    OTEL_SERVICE_NAME: "notes-eu",
    OTEL_RESOURCE_ATTRIBUTES: "region=eu,team=a%2Cb",
    NOTIFY_SOCKET: "/run/systemd/notify",
    WATCHDOG_USEC: "30000000",
    WATCHDOG_PID: "42",
    LISTEN_FDS: "2",
    LISTEN_PID: "42",
    LISTEN_FDNAMES: "http:health",
    NO_COLOR: "0"
  }

  it("each variable", () => {
    const { apiKey, telemetry: { otlp, ...telemetry }, ...rest } = config(all)
    expect(rest).toEqual({
      command: { _tag: "Run" },
      arguments: [],
      environment: "production",
      projectId: "proj 1/ä",
      projectName: "Notes",
      ip: "::1",
      port: 80,
      healthIp: "10.0.0.1",
      healthPort: Option.some(0),
      api: Option.some("https://api.example/base"),
      sidecar: Option.some("http://127.0.0.1:9/s"),
      stateDirectory: "/var/lib/notes",
      stopBudget: Duration.seconds(90),
      drainDelay: Duration.millis(500),
      sockets: Option.some({ count: 2, pid: 42, names: ["http", "health"] }),
      warnings: []
    })
    expect(Option.map(apiKey, Redacted.value)).toEqual(Option.some("k3y"))
    expect(telemetry).toEqual({ logFormat: Option.some("json"), logLevel: "Warn", colors: false })
    expect(Option.map(otlp, ({ headers, ...to }) => ({ ...to, headers: Redacted.value(headers) }))).toEqual(
      Option.some({
        endpoint: "http://collector:4318",
        headers: { "x-key": "a b", y: "c" },
        protocol: "http/json",
        serviceName: "notes-eu",
        resourceAttributes: { region: "eu", team: "a,b" }
      })
    )
  })

  it.each<readonly [env: Env, what: keyof ServiceConfig.ServiceConfig, value: unknown]>([
    [{ PORT: "9000" }, "port", 9000],
    [{ PORT: "9000", SERVICE_RUNTIME_PORT: "9001" }, "port", 9001],
    [{ PORT: "nonsense", SERVICE_RUNTIME_PORT: "9001" }, "port", 9001],
    [{ SERVICE_ENV: "production", SERVICE_API: "http://a", SERVICE_PROJECT_ID: "p" }, "ip", "0.0.0.0"],
    [{ SERVICE_API: "http://a", SERVICE_PROJECT_ID: "p" }, "environment", "local"],
    [{ STATE_DIRECTORY: "/var/lib/a:/var/lib/b" }, "stateDirectory", "/var/lib/a"],
    [{ STATE_DIRECTORY: "/var/lib/a", SERVICE_STATE_DIR: "here" }, "stateDirectory", "here"],
    [{ STATE_DIRECTORY: "" }, "stateDirectory", ".service/notes"],
    [{ SERVICE_STOP_BUDGET: "3 seconds" }, "stopBudget", Duration.seconds(3)],
    [{ SERVICE_STOP_BUDGET: "1 minute" }, "stopBudget", Duration.minutes(1)],
    [{ SERVICE_STOP_BUDGET: "24h" }, "stopBudget", Duration.days(1)],
    [{ SERVICE_DRAIN_DELAY: "0s" }, "drainDelay", Duration.zero],
    [{ LISTEN_FDS: "1" }, "sockets", Option.none()],
    [{ SERVICE_RUNTIME_IP: undefined }, "ip", "127.0.0.1"]
  ])("%j: %s", (env, what, value) => {
    expect(config(env)[what]).toEqual(value)
  })

  it.each<readonly [env: Env, what: keyof ServiceConfig.Telemetry, value: unknown]>([
    [{ NO_COLOR: "" }, "colors", true],
    [{ NO_COLOR: "1" }, "colors", false],
    [{ SERVICE_LOG_LEVEL: "debug" }, "logLevel", "Debug"],
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: "" }, "otlp", Option.none()],
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: "http://c", OTEL_SDK_DISABLED: "True" }, "otlp", Option.none()]
  ])("%j: %s", (env, what, value) => {
    expect(config(env).telemetry[what]).toEqual(value)
  })

  it("telemetry is named after the project, then the service", () => {
    const name = (env: Env) =>
      Option.map(
        config({ ...env, OTEL_EXPORTER_OTLP_ENDPOINT: "http://c" }).telemetry.otlp,
        (otlp) => [otlp.serviceName, otlp.protocol]
      )
    expect(name({})).toEqual(Option.some(["notes", "http/protobuf"]))
    expect(name({ SERVICE_PROJECT_NAME: "Notes" })).toEqual(Option.some(["Notes", "http/protobuf"]))
  })
})

describe("each fault names the variable, its value and what to do", () => {
  it.each(table(
    [{ SERVICE_ENV: "deployment" }, "SERVICE_ENV=\"deployment\" is not known: write local or production"],
    [{ SERVICE_ENV: "Local" }, "SERVICE_ENV=\"Local\" is not known: write local or production"],
    [{ SERVICE_ENV: "" }, "SERVICE_ENV is set but empty: give it a value, or unset it"],
    [
      { SERVICE_RUNTIME_IP: "localhost" },
      "SERVICE_RUNTIME_IP=\"localhost\" is no IP address: write one as in 127.0.0.1, 0.0.0.0 or ::1, not a host name"
    ],
    [
      { SERVICE_RUNTIME_IP: "127.0.0.01" },
      "SERVICE_RUNTIME_IP=\"127.0.0.01\" is no IP address: write one as in 127.0.0.1, 0.0.0.0 or ::1, not a host name"
    ],
    [{ SERVICE_RUNTIME_PORT: "65536" }, "SERVICE_RUNTIME_PORT=\"65536\" is no port: write a number from 0 to 65535"],
    [{ SERVICE_RUNTIME_PORT: "-1" }, "SERVICE_RUNTIME_PORT=\"-1\" is no port: write a number from 0 to 65535"],
    [{ SERVICE_RUNTIME_PORT: " 80" }, "SERVICE_RUNTIME_PORT=\" 80\" is no port: write a number from 0 to 65535"],
    [{ SERVICE_RUNTIME_PORT: "٨٠" }, "SERVICE_RUNTIME_PORT=\"٨٠\" is no port: write a number from 0 to 65535"],
    [{ SERVICE_RUNTIME_PORT: "" }, "SERVICE_RUNTIME_PORT is set but empty: give it a value, or unset it"],
    [
      { SERVICE_RUNTIME_PORT: "tcp://10.0.0.1:80" },
      "SERVICE_RUNTIME_PORT=\"tcp://10.0.0.1:80\" is no port: rename the Kubernetes Service that sets it, or set " +
      "enableServiceLinks: false"
    ],
    [{ PORT: "" }, "PORT is set but empty: give it a value, or unset it"],
    [{ SERVICE_HEALTHZ_PORT: "abc" }, "SERVICE_HEALTHZ_PORT=\"abc\" is no port: write a number from 0 to 65535"],
    [
      { SERVICE_PROJECT_ID: ".." },
      "SERVICE_PROJECT_ID=\"..\" is a relative path, not an id: write the id of the project"
    ],
    [
      { SERVICE_API: "localhost", SERVICE_PROJECT_ID: "p" },
      "SERVICE_API=\"localhost\" is no URL: write one as in https://host:port"
    ],
    [
      { SERVICE_API: "ftp://a", SERVICE_PROJECT_ID: "p" },
      "SERVICE_API=\"ftp://a\" is no HTTP URL: write http:// or https://"
    ],
    [
      { SERVICE_API: "https://joe:hunter2@a", SERVICE_PROJECT_ID: "p" },
      "SERVICE_API=\"…@a\" holds credentials: remove them, SERVICE_API_KEY is the place for a key"
    ],
    [
      { SERVICE_API: "https://a/?token=hunter2", SERVICE_PROJECT_ID: "p" },
      "SERVICE_API=\"https://a/?…\" has a query or a fragment: remove it"
    ],
    [
      { SERVICE_API: "https://joe:hunter2@a/?q", SERVICE_PROJECT_ID: "p" },
      "SERVICE_API=\"…@a/?…\" holds credentials: remove them, SERVICE_API_KEY is the place for a key",
      "SERVICE_API=\"…@a/?…\" has a query or a fragment: remove it"
    ],
    [{ SERVICE_API: "", SERVICE_PROJECT_ID: "p" }, "SERVICE_API is set but empty: give it a value, or unset it"],
    [
      { SERVICE_API: "http://a" },
      "SERVICE_PROJECT_ID is not set, and SERVICE_API needs it: give the id of the project"
    ],
    [
      { SERVICE_ENV: "production" },
      "SERVICE_API is not set, and SERVICE_ENV=production needs it: give the URL of the API",
      "SERVICE_PROJECT_ID is not set, and SERVICE_ENV=production needs it: give the id of the project"
    ],
    [
      { SERVICE_API_KEY: "abc\n" },
      "SERVICE_API_KEY has U+000A at position 4, which a header cannot hold: check it for line breaks and spaces"
    ],
    [
      { SERVICE_API_KEY: "ä" },
      "SERVICE_API_KEY has U+00E4 at position 1, which a header cannot hold: check it for line breaks and spaces"
    ],
    [
      { SERVICE_API_KEY: "a b" },
      "SERVICE_API_KEY has U+0020 at position 2, which a header cannot hold: check it for line breaks and spaces"
    ],
    [
      { SERVICE_RUNTIME_PORT: "9000", SERVICE_HEALTHZ_PORT: "9000" },
      "port 9000 is to be listened on twice: change SERVICE_HEALTHZ_PORT or SERVICE_RUNTIME_PORT"
    ],
    [{ SERVICE_API_KEY: "" }, "SERVICE_API_KEY is set but empty: give it a value, or unset it"],
    [{ SERVICE_SIDECAR: "true" }, "SERVICE_SIDECAR=\"true\" is no URL: write one as in https://host:port"],
    [{ SERVICE_STOP_BUDGET: "25" }, "SERVICE_STOP_BUDGET=\"25\" is no duration: write 500ms, 25s or 2m"],
    [{ SERVICE_STOP_BUDGET: "-1s" }, "SERVICE_STOP_BUDGET=\"-1s\" is no duration: write 500ms, 25s or 2m"],
    [{ SERVICE_STOP_BUDGET: "0s" }, "SERVICE_STOP_BUDGET=\"0s\" is too short: write a duration above zero"],
    [{ SERVICE_STOP_BUDGET: "25h" }, "SERVICE_STOP_BUDGET=\"25h\" is too long: write at most 24h"],
    [{ SERVICE_DRAIN_DELAY: "Infinity" }, "SERVICE_DRAIN_DELAY=\"Infinity\" is no duration: write 500ms, 25s or 2m"],
    [{ SERVICE_LOG_FORMAT: "xml" }, "SERVICE_LOG_FORMAT=\"xml\" is not known: write pretty or json"],
    [
      { SERVICE_LOG_LEVEL: "loud" },
      "SERVICE_LOG_LEVEL=\"loud\" is no log level: write one of All, Fatal, Error, Warn, Info, Debug, Trace, None"
    ],
    [
      { OTEL_EXPORTER_OTLP_ENDPOINT: "collector:4318" },
      "OTEL_EXPORTER_OTLP_ENDPOINT=\"collector:4318\" is no HTTP URL: write http:// or https://"
    ],
    [
      { OTEL_EXPORTER_OTLP_PROTOCOL: "grpc" },
      "OTEL_EXPORTER_OTLP_PROTOCOL=\"grpc\" is not known: write http/protobuf or http/json"
    ],
    [{ OTEL_EXPORTER_OTLP_HEADERS: "hunter2" }, "OTEL_EXPORTER_OTLP_HEADERS is no list: write key=value,key=value"],
    [
      { OTEL_EXPORTER_OTLP_HEADERS: "k=100%" },
      "OTEL_EXPORTER_OTLP_HEADERS has a \"%\" that starts no percent-encoding: write %25 for it"
    ],
    [
      { OTEL_EXPORTER_OTLP_HEADERS: "k=a%0Ab" },
      "OTEL_EXPORTER_OTLP_HEADERS has a name or value that HTTP does not allow in a header: use visible ASCII characters"
    ],
    [
      { OTEL_RESOURCE_ATTRIBUTES: "a=%" },
      "OTEL_RESOURCE_ATTRIBUTES=\"a=%\" has a \"%\" that starts no percent-encoding: write %25 for it"
    ],
    [
      { SERVICE_DRAIN_DELAY: "5s", SERVICE_STOP_BUDGET: "5s" },
      "the drain delay of 5s leaves nothing of the stop budget of 5s: shorten SERVICE_DRAIN_DELAY, or raise " +
      "SERVICE_STOP_BUDGET"
    ],
    [
      { LISTEN_FDS: "x" },
      "LISTEN_FDS=\"x\" is no number of sockets above zero: unset it, whoever starts the service sets it"
    ]
  ))("$env", ({ env, told }) => {
    expect(faults(env)).toEqual(told)
  })

  it("all of them at once", () => {
    const wrong = {
      SERVICE_ENV: "prod",
      SERVICE_RUNTIME_IP: "",
      SERVICE_RUNTIME_PORT: "web",
      SERVICE_HEALTHZ_PORT: "x",
      SERVICE_API: "nowhere",
      SERVICE_API_KEY: "a\nb",
      SERVICE_STOP_BUDGET: "soon",
      SERVICE_LOG_LEVEL: "loud",
      OTEL_EXPORTER_OTLP_ENDPOINT: "x",
      LISTEN_FDS: "x"
    }
    const found = faults(wrong, ["--plan=xml", "--port", "80"])
    expect(Object.keys(wrong).filter((name) => !found.some((fault) => fault.startsWith(name)))).toEqual([])
    expect(found.slice(0, 2)).toEqual([
      "--plan=\"xml\" is not known: write text or json or systemd or kubernetes",
      "--port is not an argument of the service: set SERVICE_RUNTIME_PORT, or write it after --"
    ])
    // And that the API needs a project id.
    expect(found.length).toBe(Object.keys(wrong).length + 3)
  })

  it("a long value is cut", () => {
    const [fault = ""] = faults({ SERVICE_RUNTIME_PORT: "9".repeat(100_000) })
    expect(fault.length).toBeLessThan(200)
  })

  it("the port of the probes is nobody else's, where somebody is known to listen", () => {
    const twice = ["port 8000 is to be listened on twice: change SERVICE_HEALTHZ_PORT or SERVICE_RUNTIME_PORT"]
    const probes = { SERVICE_HEALTHZ_PORT: "8000" }
    const http = { listens: true, dependsOn: [] }
    const parts = [{ dependsOn: [http] }]
    expect(faults(probes, [], { parts })).toEqual(twice)
    expect(faults({ ...probes, SERVICE_RUNTIME_PORT: "8000" })).toEqual(twice)
    expect(faults({ ...probes, SERVICE_RUNTIME_IP: "::" }, [], { parts })).toEqual(twice)
    // A worker, an address of its own, one that is free, a socket that is passed.
    expect(faults({ ...probes, PORT: "8000" })).toEqual([])
    expect(faults({ ...probes, SERVICE_HEALTHZ_IP: "10.0.0.1" }, [], { parts })).toEqual([])
    expect(faults({ ...probes, SERVICE_RUNTIME_IP: "::1" }, [], { parts })).toEqual([])
    expect(faults({ SERVICE_HEALTHZ_PORT: "0", SERVICE_RUNTIME_PORT: "0" }, [], { parts })).toEqual([])
    expect(faults({ ...probes, LISTEN_FDS: "1", LISTEN_PID: "1" }, [], { parts })).toEqual([])
    // What it is to be is not known.
    expect(faults({ ...probes, PORT: "web" }, [], { parts })).toEqual([
      "PORT=\"web\" is no port: write a number from 0 to 65535"
    ])
  })

  it("production without an API, if nothing comes from one", () => {
    expect(faults({ SERVICE_ENV: "production" }, [], { resources: [{ kind: "custom" }] })).toEqual([])
    expect(faults({ SERVICE_ENV: "production" }, [], { resources: [] })).toEqual([])
    expect(faults({ SERVICE_ENV: "production" }, [], { resources: [{ kind: "secrets" }] }).length).toBe(2)
  })
})

describe("warnings", () => {
  it.each(table(
    [{ SERVICE_HEALTH_PORT: "1" }, "SERVICE_HEALTH_PORT is not known: did you mean SERVICE_HEALTHZ_PORT?"],
    [{ SERVICE_STOP_BUGDET: "1" }, "SERVICE_STOP_BUGDET is not known: did you mean SERVICE_STOP_BUDGET?"],
    [{ SERVICE_BETA: "true", SERVICE_HOST: "x", SERVICES_ENV: "y", [`SERVICE_${"X".repeat(1e5)}`]: "z" }],
    [{ SERVICE_API_KEY: "k3y" }, "SERVICE_API_KEY is set but SERVICE_API is not: the key is not used"],
    [
      { SERVICE_ENV: "production", SERVICE_API: "http://api.example", SERVICE_API_KEY: "k3y", SERVICE_PROJECT_ID: "p" },
      "SERVICE_API is not encrypted: whoever is on the way can read SERVICE_API_KEY"
    ],
    [{ SERVICE_ENV: "production", SERVICE_API: "http://127.0.0.1:1", SERVICE_API_KEY: "k", SERVICE_PROJECT_ID: "p" }]
  ))("$env", ({ env, told }) => {
    expect(config(env).warnings).toEqual(told)
  })
})

describe("arguments", () => {
  it.each<readonly [argv: ReadonlyArray<string>, command: ServiceConfig.Command, rest: ReadonlyArray<string>]>([
    [[], { _tag: "Run" }, []],
    [["--version"], { _tag: "Version" }, []],
    [["--port", "1", "--version"], { _tag: "Version" }, ["1"]],
    [["--help", "--plan"], { _tag: "Help" }, []],
    [["--version", "--help"], { _tag: "Version" }, []],
    [["--version=1"], { _tag: "Run" }, ["--version=1"]],
    [["--port=80"], { _tag: "Run" }, ["--port=80"]],
    [["--plan"], { _tag: "Plan", format: "text" }, []],
    [["--plan=text"], { _tag: "Plan", format: "text" }, []],
    [["--plan=json"], { _tag: "Plan", format: "json" }, []],
    [["--plan=systemd"], { _tag: "Plan", format: "systemd" }, []],
    [["--plan=kubernetes", "x"], { _tag: "Plan", format: "kubernetes" }, ["x"]],
    [["a", "-v", "--", "--version", "--", "--port"], { _tag: "Run" }, ["a", "-v", "--version", "--", "--port"]]
  ])("%j", (argv, command, rest) => {
    const read = config({}, argv)
    expect(read.command).toEqual(command)
    expect(read.arguments).toEqual(rest)
  })

  it("--version and --help need no valid environment, --plan does", () => {
    const env = { SERVICE_RUNTIME_PORT: "web" }
    expect(config(env, ["--version"]).command._tag).toBe("Version")
    expect(config(env, ["--help"]).command._tag).toBe("Help")
    expect(faults(env, ["--plan"]).length).toBe(1)
  })
})

describe("another prefix", () => {
  it("SHUTTLE gives the names of Shuttle", () => {
    const env = {
      SHUTTLE: "",
      SHUTTLE_PROJECT_ID: "proj_X",
      SHUTTLE_PROJECT_NAME: "my-proj",
      SHUTTLE_ENV: "local",
      SHUTTLE_RUNTIME_IP: "127.0.0.1",
      SHUTTLE_RUNTIME_PORT: "8000",
      SHUTTLE_HEALTHZ_PORT: "8001",
      SHUTTLE_API: "http://127.0.0.1:9",
      SHUTTLE_API_KEY: "k3y",
      SHUTTLE_BETA: "true",
      SERVICE_RUNTIME_PORT: "ignored"
    }
    const read = config(env, [], { prefix: "SHUTTLE" })
    expect(read.projectId).toBe("proj_X")
    expect(read.port).toBe(8000)
    expect(read.healthPort).toEqual(Option.some(8001))
    expect(read.sidecar).toEqual(Option.some("http://127.0.0.1:9"))
    expect(read.warnings).toEqual([])
    expect(faults({ ...env, SHUTTLE_RUNTIME_PORT: "x" }, [], { prefix: "SHUTTLE" })).toEqual([
      "SHUTTLE_RUNTIME_PORT=\"x\" is no port: write a number from 0 to 65535"
    ])
  })

  it("without SHUTTLE there is no sidecar, nor without an API", () => {
    expect(config({}, [], { prefix: "SHUTTLE" }).sidecar).toEqual(Option.none())
    expect(config({ SHUTTLE: "1" }, [], { prefix: "SHUTTLE" }).sidecar).toEqual(Option.none())
  })

  it("help has its names", () => {
    const text = ServiceConfig.help({ name: "notes", prefix: "APP" })
    expect(text).toContain("APP_RUNTIME_PORT")
    expect(text).not.toContain("SERVICE_")
  })
})

describe("whatever is set", () => {
  const names = [
    ...Array.from(ServiceConfig.help({ name: "x" }).matchAll(/^ {2}([A-Z_]+)/gm), ([, name = ""]) => name),
    "PORT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_RESOURCE_ATTRIBUTES",
    "STATE_DIRECTORY",
    "LISTEN_FDS",
    "LISTEN_PID",
    "__proto__",
    "constructor"
  ]
  const value = Schema.Union([
    Schema.String,
    Schema.Literals([
      "",
      "production",
      "local",
      "8000",
      "http://a",
      "https://u:p@h/?q#f",
      "//@",
      "%",
      "k=%",
      "1s",
      "::1",
      "=",
      ",",
      "--",
      "http://[",
      "\0"
    ])
  ])
  const environment = Arbitrary.map(
    Arbitrary.schema(Schema.Array(Schema.Tuple([Schema.Literals(names), value]))),
    (pairs): Env => Object.fromEntries(pairs)
  )

  it.prop(
    "it never throws, and what it takes is within bounds",
    [environment, Schema.Array(value)],
    ([env, argv]) => {
      const result = parse(env, argv)
      if (Result.isFailure(result)) {
        expect(result.failure.exitReason).toBe("configInvalid")
        expect(result.failure.message.length).toBeGreaterThan(0)
        return
      }
      const { drainDelay, port, stopBudget } = result.success
      expect(port >= 0 && port <= 65_535).toBe(true)
      expect(Duration.isPositive(stopBudget)).toBe(true)
      expect(Duration.isNegative(drainDelay)).toBe(false)
    },
    { arbitrary: { runs: 500 } }
  )

  it.prop(
    "no fault and no warning has a secret, wherever else it stands too",
    [environment, Schema.Literals(names), Schema.Literals(["", "\n", "ä", " "])],
    ([env, elsewhere, end]) => {
      const key = "p1anted-s3cret"
      const secrets = {
        ...env,
        [elsewhere]: `x${key}${end.trim()}y`,
        SERVICE_API_KEY: `${key}${end}`,
        OTEL_EXPORTER_OTLP_HEADERS: `x-key=${key}${end}%`
      }
      const result = parse(secrets)
      const told = Result.isFailure(result)
        ? `${result.failure.message} ${JSON.stringify(result.failure)} ${String(result.failure.stack)}`
        : JSON.stringify(result.success.warnings)
      expect(told).not.toContain(key)
    },
    { arbitrary: { runs: 500 } }
  )
})
