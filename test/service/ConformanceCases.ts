/** What the rows of docs/conformance.md do: each starts a small service, on real processes but for two, and watches it. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpClient from "effect/http/HttpClient"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { connect, createServer, type Server } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as HttpProvisioner from "../../src/service/HttpProvisioner.ts"
import * as Postgres from "../../src/service/Postgres.ts"
import * as Service from "../../src/service/Service.ts"
import * as FakeRuntimeApi from "../../src/testing/FakeRuntimeApi.ts"
import * as FakeService from "../../src/testing/FakeService.ts"
import type { Observed } from "./ConformanceTable.ts"
import { type End, fixture, type Run, start } from "./support/edge.ts"

export type Case = Effect.Effect<ReadonlyArray<Observed>, never, Scope.Scope>

// All programs are the same modules: compiled once, they start in half of the time.
const compiled = mkdtempSync(join(tmpdir(), "conformance-"))
export const cleanUp = (): void => rmSync(compiled, { recursive: true, force: true })

/** From the start of a process to its end, retries of the API included. */
const deadlineMillis = 60_000

interface Given {
  /** Of fixtures/conformance/service.ts. Default `ends`. */
  readonly program?: string
  readonly args?: ReadonlyArray<string>
  /** On top of the variables that Shuttle sets; what is undefined is unset. */
  readonly env?: Readonly<Record<string, string | undefined>>
  readonly api?: FakeRuntimeApi.Options
  /** A command that becomes, or starts, the program. */
  readonly through?: ReadonlyArray<string>
}

interface Running extends Run {
  readonly api: FakeRuntimeApi.FakeRuntimeApi
}

const launch = Effect.fnUntraced(function*(given: Given) {
  const api = yield* FakeRuntimeApi.make(given.api)
  const variables: Readonly<Record<string, string | undefined>> = {
    SHUTTLE_PROJECT_ID: "proj_X",
    SHUTTLE_PROJECT_NAME: "my-proj",
    SHUTTLE_ENV: "local",
    SHUTTLE_RUNTIME_IP: "127.0.0.1",
    SHUTTLE_RUNTIME_PORT: "0",
    SHUTTLE_API: api.url.origin,
    ...given.env
  }
  const env: Record<string, string> = { PROGRAM: given.program ?? "ends", NODE_COMPILE_CACHE: compiled }
  for (const [name, value] of Object.entries(variables)) if (value !== undefined) env[name] = value
  const program = [process.execPath, "-C", "@effect-microvm-runtime/source", fixture("conformance/service.ts")]
  const [command = "", ...args] = [...given.through ?? [], ...program, ...given.args ?? []]
  const started = yield* Effect.acquireDisposable(Effect.sync(() => start(command, args, { env, deadlineMillis })))
  return { ...started, api }
})

const observed = ({ code, signal, stderr, stdout }: End, seen: ReadonlyArray<string> = []): Observed => ({
  exit: code === null ? String(signal) : String(code),
  stdout,
  stderr,
  seen
})

const ended = ({ end }: Run, seen: ReadonlyArray<string> = []): Effect.Effect<Observed> =>
  Effect.map(Effect.promise(() => end), (one) => observed(one, seen))

const told = ({ kill }: Run, signal: NodeJS.Signals): Effect.Effect<void> => Effect.sync(() => void kill(signal))

/** It goes on: a signal is needed to end it, and ends it in order. */
const stays = (running: Run, seen: ReadonlyArray<string> = []): Effect.Effect<Observed> =>
  Effect.map(Effect.andThen(told(running, "SIGTERM"), ended(running, seen)), (one) => ({
    ...one,
    exit: one.exit === "10" ? "stays" : one.exit
  }))

const said = (running: Run, line: string): Effect.Effect<void> => Effect.promise(() => running.said(line))

/** Asks again and again. */
const until = <A>(what: string, ask: Effect.Effect<A | undefined>): Effect.Effect<A> =>
  ask.pipe(
    Effect.filterOrFail((answer) => answer !== undefined, () => "not yet"),
    Effect.retry(Schedule.spaced("20 millis")),
    Effect.timeoutOrElse({ duration: "30 seconds", orElse: () => Effect.die(`never: ${what}`) }),
    Effect.orDie
  )

/** From its start to its end. */
const run = (given: Given): Effect.Effect<Observed, never, Scope.Scope> => Effect.flatMap(launch(given), ended)

const each = <A>(values: ReadonlyArray<A>, f: (value: A) => Effect.Effect<Observed, never, Scope.Scope>): Case =>
  Effect.forEach(values, f, { concurrency: 2 })

const once = (given: Given = {}): Case => each([given], run)

/** The same variable with several values. */
const variable = (name: string, values: ReadonlyArray<string | undefined>): Case =>
  each(values, (value) => run({ env: { [name]: value } }))

const when = (given: Given, watch: (running: Running) => Effect.Effect<Observed, never, Scope.Scope>): Case =>
  Effect.map(Effect.flatMap(launch(given), watch), (one) => [one])

// The API.

const database = Postgres.types.shared
const output = {
  engine: "postgres",
  role_name: "app",
  role_password: "hunter22",
  database_name: "notes",
  port: "5432",
  hostname: "db.example.org"
}
const steps = (...states: ReadonlyArray<string>): FakeRuntimeApi.Options => ({
  resources: { [database]: states.map((state) => ({ state, output })) }
})
const respond = (status: number, body: unknown): FakeRuntimeApi.Fault =>
  FakeRuntimeApi.Fault.Respond({ status, body: typeof body === "string" ? body : JSON.stringify(body) })
const secretsAnswer = (rest: object) =>
  respond(200, { type: "secrets", state: "ready", config: null, output: {}, ...rest })
/** The first answer, and those to all retries. */
const always = (fault: FakeRuntimeApi.Fault) => Array.from({ length: 5 }, () => fault)
const secretsFail = (...faults: ReadonlyArray<FakeRuntimeApi.Fault>): Case =>
  each(faults, (fault) => run({ api: { faults: always(fault) } }))
const { None } = FakeRuntimeApi.Fault

const posts = ({ api }: Running) => Effect.map(api.received, (all) => all.filter(({ method }) => method === "POST"))

/** Runs to the end, and says how often resources were asked for. */
const asks = (given: Given): Case =>
  when(given, (running) =>
    Effect.gen(function*() {
      const one = yield* ended(running)
      const asked = yield* posts(running)
      const alike = new Set(asked.map(({ body, path }) => `${path} ${body}`)).size === 1
      const gaps = asked.slice(1).map(({ at }, index) => at - (asked[index]?.at ?? at))
      return {
        ...one,
        seen: [
          `POST: ${asked.length}${alike && asked.length > 1 ? ", all the same" : ""}`,
          ...(gaps.length > 0 && gaps.every((gap) => gap > 1_900) ? ["2 s apart"] : [])
        ]
      }
    }))

// Sockets.

const listen = (host: string) =>
  Effect.acquireRelease(
    Effect.callback<Server>((resume) => {
      const server = createServer().listen(0, host, () => resume(Effect.succeed(server)))
    }),
    (server) => Effect.callback<void>((resume) => void server.close(() => resume(Effect.void)))
  )
const portOf = (server: Server): string => {
  const address = server.address()
  return typeof address === "object" && address !== null ? String(address.port) : ""
}
const takenPort = (host: string) => Effect.map(listen(host), portOf)
const freePort = Effect.scoped(takenPort("127.0.0.1"))

/** The statuses that come back for these bytes. */
const talk = (port: number, what: string, bytes: string): Effect.Effect<string> =>
  Effect.callback<string>((resume) => {
    let text = ""
    const socket = connect(port, "127.0.0.1", () => socket.end(bytes, "latin1"))
    socket.setEncoding("latin1").setTimeout(10_000, () => socket.destroy())
    socket.on("data", (chunk) => {
      text += String(chunk)
    })
    socket.on("error", () => {})
    socket.once("close", () => {
      const statuses = Array.from(text.matchAll(/^HTTP\/1\.1 (\d+)/gm), ([, status]) => status)
      resume(Effect.succeed(`${what} → ${statuses.join(" ") || "closed"}`))
    })
  })

const ask = (port: number, path: string, method = "GET"): Effect.Effect<string> =>
  talk(port, `${method} ${path}`, `${method} ${path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`)

const probed = { SHUTTLE_HEALTHZ_PORT: "0", SHUTTLE_HEALTHZ_IP: "127.0.0.1", SHUTTLE_LOG_LEVEL: "Debug" }

const probePort = ({ stdout }: Run): Effect.Effect<number> =>
  until(
    "a health listener",
    Effect.sync(() => {
      const [, port] = /Health listener on port (\d+)/.exec(stdout()) ?? []
      return port === undefined ? undefined : Number(port)
    })
  )

const probe = (running: Run): Effect.Effect<ReadonlyArray<string>> =>
  Effect.flatMap(probePort(running), (port) => Effect.all([ask(port, "/readyz"), ask(port, "/livez")]))

/** A service of the runtime in this process, on a clock that is turned, over an API that never answers. */
const never = (hangs: "secrets" | "request"): Case =>
  Effect.gen(function*() {
    const silent = yield* HttpProvisioner.make({
      api: new URL("http://127.0.0.1:1"),
      apiKey: Option.none(),
      projectId: "proj_X"
    }).pipe(Effect.provideService(HttpClient.HttpClient, HttpClient.make(() => Effect.never)))
    const fake = FakeService.make({
      provisioner: hangs === "secrets" ? { secrets: silent.secrets } : { request: silent.request }
    })
    const service = Service.make({ name: "my-app", version: "1.2.3", resources: [Postgres.make("db")] })
    const fiber = yield* Effect.forkChild(Effect.provide(Service.run(service), fake.layer), { startImmediately: true })
    yield* TestClock.adjust("59 seconds")
    const isEarly = fake.stderr.length > 0
    yield* TestClock.adjust("1 second")
    const report = yield* Fiber.join(fiber)
    return [{
      exit: String(report.code),
      stdout: fake.stdout.join("\n"),
      stderr: fake.stderr.join("\n"),
      seen: isEarly ? [] : [`after ${Duration.format(report.elapsed)}`]
    }]
  }).pipe(Effect.provide([TestClock.layer(), Logger.layer([])]))

const limited = (limit: string) => ["sh", "-c", `ulimit ${limit}; exec "$@"`, "sh"]

export const cases: ReadonlyMap<number, Case> = new Map<number, Case>([
  // Arguments and variables.
  [
    1,
    once({
      args: ["--version"],
      env: {
        SHUTTLE_PROJECT_ID: undefined,
        SHUTTLE_ENV: undefined,
        SHUTTLE_RUNTIME_PORT: undefined,
        SHUTTLE_API: undefined
      }
    })
  ],
  [2, once({ args: ["--port", "1", "--version"] })],
  [
    3,
    once({
      args: ["--version=1"],
      env: {
        SHUTTLE_PROJECT_ID: undefined,
        SHUTTLE_PROJECT_NAME: undefined,
        SHUTTLE_ENV: undefined,
        SHUTTLE_RUNTIME_IP: undefined,
        SHUTTLE_RUNTIME_PORT: undefined,
        SHUTTLE_API: undefined
      }
    })
  ],
  [4, once({ args: ["--port", "80"] })],
  [5, once({ args: ["--port=80"] })],
  [6, variable("SHUTTLE_ENV", [undefined])],
  [7, once({ args: ["--port", "80"], env: { SHUTTLE_ENV: undefined } })],
  [8, variable("SHUTTLE_PROJECT_ID", [undefined])],
  [9, variable("SHUTTLE_PROJECT_NAME", [undefined])],
  [
    10,
    each(
      ["SHUTTLE_RUNTIME_IP", "SHUTTLE_RUNTIME_PORT", "SHUTTLE_API"],
      (name) => run({ env: { [name]: undefined } })
    )
  ],
  [11, variable("SHUTTLE_ENV", ["deployment", "", "Local"])],
  [12, variable("SHUTTLE_ENV", ["production"])],
  [13, variable("SHUTTLE_RUNTIME_IP", ["localhost", "", "127.0.0.01"])],
  [14, variable("SHUTTLE_RUNTIME_PORT", ["65536", "-1", "", " 80"])],
  [15, once({ env: { SHUTTLE_RUNTIME_IP: "::1", SHUTTLE_RUNTIME_PORT: "+0080" } })],
  [16, variable("SHUTTLE_HEALTHZ_PORT", ["", "abc", "70000"])],
  [17, variable("HTTP_PROXY", ["", "::::"])],
  // Secrets.
  [18, variable("SHUTTLE_API", ["http://127.0.0.1:1"])],
  [19, variable("SHUTTLE_API", ["127.0.0.1:8000", ""])],
  [20, secretsFail(FakeRuntimeApi.failure(404, "project not found"))],
  [21, secretsFail(respond(404, { message: "try later", status_code: 503 }))],
  [
    22,
    secretsFail(respond(404, { message: "odd", status_code: 999 }), respond(404, { message: "odd", status_code: 42 }))
  ],
  [23, secretsFail(respond(500, "oops\nline2"))],
  [
    24,
    secretsFail(
      respond(200, "hello"),
      respond(200, { type: "secrets", state: "ready", config: null }),
      respond(204, "")
    )
  ],
  [25, each([null, { A: 1 }, []], (map) => run({ api: { faults: [secretsAnswer({ output: map })] } }))],
  [
    26,
    each(
      [
        secretsAnswer({ state: "failed" }),
        secretsAnswer({ type: "qqq" }),
        secretsAnswer({ more: 1 }),
        respond(200, ["secrets", "ready", null, {}])
      ],
      (fault) => run({ api: { faults: [fault] } })
    )
  ],
  [27, never("secrets")],
  [
    28,
    when({ env: { SHUTTLE_API_KEY: "k3y" }, api: { apiKey: "k3y" } }, (running) =>
      Effect.gen(function*() {
        const one = yield* ended(running)
        const all = yield* running.api.received
        return { ...one, seen: all.map(({ headers }) => `authorization: ${String(headers["authorization"])}`) }
      }))
  ],
  // Loading and checking.
  [29, once({ program: "loadFails" })],
  [30, once({ program: "loadNeedsSecret", api: { secrets: { A: "1", B: "2" } } })],
  [31, once({ program: "loadDies" })],
  [32, once({ program: "badInputs" })],
  // Provisioning.
  [33, once()],
  [34, asks({ program: "database", api: steps("ready") })],
  [35, asks({ program: "database", api: steps("authorizing", "provisioning", "ready") })],
  [36, each(["failed", "deleting", "deleted"], (state) => run({ program: "database", api: steps(state) }))],
  [37, each(["weird", "Ready"], (state) => run({ program: "database", api: steps(state) }))],
  [38, asks({ program: "database", api: { faults: [None(), FakeRuntimeApi.failure(403, "denied")] } })],
  [
    39,
    asks({ program: "database", api: { ...steps("ready"), faults: [None(), FakeRuntimeApi.failure(500, "boom")] } })
  ],
  [
    40,
    asks({
      program: "database",
      api: { ...steps("provisioning", "ready"), faults: [None(), None(), FakeRuntimeApi.failure(502, "boom")] }
    })
  ],
  [41, never("request")],
  [42, asks({ program: "customs", env: { INPUTS: `[{"type":"mything","config":5}]` } })],
  [
    43,
    asks({ program: "customs", env: { INPUTS: `[["secrets",1]]` }, api: { secrets: { A: "hunter22" } } })
  ],
  [44, asks({ program: "customs", env: { INPUTS: `[{"type":"secrets"},[1,2,3],{"type":5,"config":1}]` } })],
  // Initialisation.
  [45, once({ program: "database", api: { resources: { [database]: [{ state: "ready", output: { port: 1 } }] } } })],
  [46, once({ program: "initFails" })],
  [47, once({ program: "userFails" })],
  [48, once({ program: "initFailsOfDatabase" })],
  [49, once({ program: "initDies" })],
  // Running, and signals.
  [50, once({ program: "mainFails" })],
  [
    51,
    Effect.flatMap(takenPort("127.0.0.1"), (port) => once({ program: "serves", env: { SHUTTLE_RUNTIME_PORT: port } }))
  ],
  [52, once({ program: "mainDies" })],
  ...(["SIGTERM", "SIGINT"] as const).map((signal, index): [number, Case] => [
    53 + index,
    when(
      { program: "serves" },
      (running) => Effect.andThen(said(running, "runs"), Effect.andThen(told(running, signal), ended(running)))
    )
  ]),
  [55, once({ program: "mainSignalsItself" })],
  [
    56,
    each(
      [
        { program: "initHangs" },
        { api: { faults: [FakeRuntimeApi.Fault.Hang()] } },
        { program: "database", api: steps("provisioning") }
      ],
      (given: Given) =>
        Effect.gen(function*() {
          const running = yield* launch(given)
          const isThere = given.program === "initHangs"
            ? Effect.sync(() => running.stdout().includes("starting"))
            : Effect.map(running.api.received, (all) => all.length >= (given.program === undefined ? 1 : 2))
          yield* until("the phase", Effect.map(isThere, (yes) => yes || undefined))
          yield* told(running, "SIGTERM")
          return yield* ended(running)
        })
    )
  ],
  [
    57,
    when(
      { program: "initHangs", through: ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"] },
      (running) =>
        Effect.gen(function*() {
          yield* said(running, "starting")
          const [init = ""] = readFileSync(`/proc/${running.pid}/task/${running.pid}/children`, "utf8").split(" ")
          process.kill(Number(init), "SIGTERM")
          return yield* ended(running)
        })
    )
  ],
  [
    58,
    each(["SIGHUP", "SIGQUIT", "SIGUSR1"] as const, (signal) =>
      Effect.gen(function*() {
        const running = yield* launch({ program: "runs", through: limited("-c 0") })
        yield* said(running, "runs")
        yield* told(running, signal)
        if (signal !== "SIGUSR1") return yield* ended(running)
        // Either it listens, or another process has that port already.
        const debugged = Effect.sync(() => /Debugger listening|Starting inspector/.test(running.stderr()) || undefined)
        yield* until("a debugger", debugged)
        return yield* stays(running)
      }))
  ],
  [
    59,
    when({ program: "serves" }, (running) =>
      Effect.gen(function*() {
        yield* said(running, "runs")
        const [, url = ""] = /^serves at (.*)$/m.exec(running.stdout()) ?? []
        const answer = yield* Effect.forkChild(
          Effect.promise(async () => {
            const response = await fetch(`${url}/slow`)
            return `client: ${response.status} ${await response.text()}`
          }),
          { startImmediately: true }
        )
        yield* said(running, "in flight")
        yield* told(running, "SIGTERM")
        return yield* ended(running, [yield* Fiber.join(answer)])
      }))
  ],
  [
    60,
    when({ program: "stopTakesLong" }, (running) =>
      Effect.gen(function*() {
        yield* said(running, "runs")
        yield* told(running, "SIGTERM")
        yield* said(running, "releasing slow")
        yield* told(running, "SIGTERM")
        return yield* ended(running)
      }))
  ],
  [
    61,
    when(
      { program: "stopDies" },
      (running) => Effect.andThen(said(running, "runs"), Effect.andThen(told(running, "SIGTERM"), ended(running)))
    )
  ],
  [
    62,
    when(
      { program: "mainBlocks", env: { SHUTTLE_STOP_BUDGET: "1s" } },
      (running) => Effect.andThen(said(running, "blocks"), Effect.andThen(told(running, "SIGTERM"), ended(running)))
    )
  ],
  [63, once({ program: "taskDies" })],
  // Health.
  [
    64,
    when({ program: "runs", env: probed }, (running) =>
      Effect.gen(function*() {
        yield* said(running, "runs")
        const port = yield* probePort(running)
        const seen = yield* Effect.all([
          ask(port, "/"),
          ask(port, "/any", "POST"),
          ask(port, "/", "HEAD"),
          talk(port, "HTTP/1.0", "GET / HTTP/1.0\r\n\r\n"),
          talk(port, "pipelined", "GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nconnection: close\r\n\r\n")
        ])
        return yield* stays(running, seen)
      }))
  ],
  [
    65,
    when({ program: "runs", env: probed }, (running) =>
      Effect.gen(function*() {
        yield* said(running, "runs")
        const port = yield* probePort(running)
        const seen = yield* Effect.all([
          talk(port, "garbage", "\x00\x01\xff garbage\r\n\r\n"),
          talk(port, "HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
          talk(port, "half", "GET / HT"),
          ask(port, "/livez")
        ])
        return yield* stays(running, seen)
      }))
  ],
  [
    66,
    each(["before", "after"] as const, (moment) =>
      Effect.gen(function*() {
        const running = yield* launch(
          moment === "before"
            ? { env: probed, api: { faults: [FakeRuntimeApi.Fault.Hang()] } }
            : { program: "stopWaits", env: probed }
        )
        if (moment === "before") {
          const seen = yield* probe(running)
          yield* told(running, "SIGTERM")
          return yield* ended(running, seen)
        }
        yield* said(running, "runs")
        yield* told(running, "SIGTERM")
        yield* said(running, "releasing slow")
        const seen = yield* probe(running)
        yield* told(running, "SIGUSR2")
        return yield* ended(running, seen)
      }))
  ],
  [67, Effect.flatMap(takenPort("0.0.0.0"), (port) => once({ env: { SHUTTLE_HEALTHZ_PORT: port } }))],
  [
    68,
    when({ program: "runs", env: probed, through: limited("-n 64") }, (running) =>
      Effect.gen(function*() {
        yield* said(running, "runs")
        const port = yield* probePort(running)
        yield* Effect.acquireRelease(
          Effect.sync(() => Array.from({ length: 200 }, () => connect(port, "127.0.0.1").on("error", () => {}))),
          (sockets) => Effect.sync(() => sockets.forEach((socket) => socket.destroy()))
        )
        return yield* stays(running, [yield* ask(port, "/livez")])
      }))
  ],
  [
    69,
    Effect.flatMap(freePort, (port) =>
      once({
        program: "serves",
        env: { SHUTTLE_RUNTIME_PORT: port, SHUTTLE_HEALTHZ_PORT: port, SHUTTLE_HEALTHZ_IP: "127.0.0.1" }
      }))
  ],
  [
    70,
    when({ env: { SHUTTLE: "" } }, (running) =>
      Effect.gen(function*() {
        const one = yield* ended(running)
        return { ...one, seen: (yield* running.api.received).map(({ method, path }) => `api: ${method} ${path}`) }
      }))
  ],
  // Logs.
  [71, variable("RUST_LOG", [""])],
  [72, once({ program: "mainFails", env: { RUST_LOG: "error", SHUTTLE_LOG_LEVEL: "Error" } })],
  [73, variable("RUST_LOG", ["foo=bar=baz,,=="])],
  [
    74,
    each([undefined, "pretty"], (format) =>
      Effect.map(run({ env: { SHUTTLE_LOG_FORMAT: format } }), (one) => ({
        ...one,
        seen: one.stdout.includes("\x1b[") ? ["colours"] : ["no colours"]
      })))
  ],
  [75, when({}, (running) => Effect.andThen(Effect.sync(running.hangUp), ended(running)))],
  [76, once({ program: "mainFails", env: { SHUTTLE_LOG_LEVEL: "None" } })],
  [77, once({ through: ["sh", "-c", `exec "$@" "$(printf '\\377')"`, "sh"] })],
  [78, once({ program: "secrets", api: { secrets: { PW: "hunter22", B: "b4bushka", A: "abracadabra" } } })]
])
