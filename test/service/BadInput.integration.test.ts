/** What the world may do to a service, on real processes: each ends with its own code, in time, and leaves nothing. */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { createHash } from "node:crypto"
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync
} from "node:fs"
import { createServer, type Server } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Postgres from "../../src/service/Postgres.ts"
import * as FakeRuntimeApi from "../../src/testing/FakeRuntimeApi.ts"
import { type End, eventually, fixture, isRoot, type Run, start } from "./support/edge.ts"
import { asNobody, canBeNobody } from "./support/nobody.ts"
import { signalEachStep } from "./support/startup.ts"

let directory = ""
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "bad-input-"))
  chmodSync(directory, 0o711)
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

/** A working directory of its own, which says of each process below it to whom it belongs. */
const place = (): string => {
  const path = mkdtempSync(join(directory, "run-"))
  chmodSync(path, 0o711)
  mkdirSync(join(path, "tmp"), { mode: 0o1777 })
  return path
}

interface Given {
  readonly at?: string
  readonly args?: ReadonlyArray<string>
  readonly env?: Readonly<Record<string, string>>
  /** A command that becomes the program. */
  readonly through?: ReadonlyArray<string>
}

const launch = (
  program: string,
  { args = [], at = place(), env = {}, through = [] }: Given = {}
): Run => {
  const command = ["env", "-C", at, ...through, process.execPath, fixture("bad/service.ts"), ...args]
  const variables = {
    PROGRAM: program,
    TMPDIR: join(at, "tmp"),
    SERVICE_STATE_DIR: join(at, "state"),
    SERVICE_RUNTIME_PORT: "0",
    ...env
  }
  const [file = "", ...rest] = command
  return start(file, rest, { env: variables, deadlineMillis: 30_000 })
}

const run = async (program: string, given: Given = {}): Promise<End> => {
  await using running = launch(program, given)
  return await running.end
}

/** Live processes that work below a directory. */
const processesBelow = (path: string): ReadonlyArray<string> =>
  readdirSync("/proc").filter((name) => /^\d+$/.test(name)).flatMap((pid) => {
    try {
      if (/^\d+ \(.*\) Z /s.test(readFileSync(`/proc/${pid}/stat`, "latin1"))) return []
      return readlinkSync(`/proc/${pid}/cwd`).startsWith(path)
        ? [`${pid} ${readFileSync(`/proc/${pid}/cmdline`, "latin1").replaceAll("\0", " ")}`]
        : []
    } catch {
      return []
    }
  })

/** No process, and no file but those of the state directory. */
const nothingLeft = async (at: string, allowed: ReadonlyArray<string> = []): Promise<void> => {
  await eventually(() => processesBelow(at).length === 0, 3_000)
  assert.deepStrictEqual(processesBelow(at), [])
  assert.deepStrictEqual(readdirSync(join(at, "tmp")), [])
  assert.deepStrictEqual(readdirSync(at).filter((name) => name !== "tmp" && !allowed.includes(name)), [])
}

const listen = async (): Promise<Server> => {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  return server
}
const portOf = (server: Server): string => {
  const address = server.address()
  return typeof address === "object" && address !== null ? String(address.port) : ""
}
/** The ports of servers that take no more than the port. */
const takenPorts = async <A>(count: number, use: (ports: ReadonlyArray<string>) => Promise<A>): Promise<A> => {
  const servers = await Promise.all(Array.from({ length: count }, listen))
  try {
    return await use(servers.map(portOf))
  } finally {
    for (const server of servers) server.close()
  }
}
const freePort = async (): Promise<string> => takenPorts(1, async ([port = ""]) => port)

const withApi = <A>(
  options: FakeRuntimeApi.Options,
  use: (env: Readonly<Record<string, string>>, api: FakeRuntimeApi.FakeRuntimeApi) => Promise<A>
): Promise<A> =>
  Effect.runPromise(Effect.scoped(Effect.gen(function*() {
    const api = yield* FakeRuntimeApi.make(options)
    return yield* Effect.promise(() => use({ SERVICE_API: api.url.origin, SERVICE_PROJECT_ID: "proj_X" }, api))
  })))

/** How it ended, with all that it said if that is not what was expected. */
const ended = (end: End, code: number): void => {
  if (end.code === code) return
  throw new Error(`${end.code} ${end.signal}, not ${code}: ${end.stdout.slice(-2_000)} ${end.stderr.slice(-2_000)}`)
}

describe.concurrent("variables", () => {
  const malformed = {
    SERVICE_ENV: "prod",
    SERVICE_PROJECT_ID: "..",
    SERVICE_RUNTIME_IP: "localhost",
    SERVICE_RUNTIME_PORT: "70000",
    SERVICE_HEALTHZ_IP: "999.1.1.1",
    SERVICE_HEALTHZ_PORT: "-1",
    SERVICE_API: "ftp://api",
    SERVICE_API_KEY: "a\nb",
    SERVICE_SIDECAR: "sidecar",
    SERVICE_STOP_BUDGET: "0s",
    SERVICE_DRAIN_DELAY: "soon",
    SERVICE_LOG_FORMAT: "xml",
    SERVICE_LOG_LEVEL: "loud",
    OTEL_EXPORTER_OTLP_ENDPOINT: "collector",
    OTEL_EXPORTER_OTLP_HEADERS: "no header",
    OTEL_EXPORTER_OTLP_PROTOCOL: "grpc",
    LISTEN_FDS: "-3"
  }
  const ours = Object.keys(malformed).filter((name) => name.startsWith("SERVICE_"))
  const empty = Object.fromEntries([...ours, "SERVICE_PROJECT_NAME", "SERVICE_STATE_DIR"].map((name) => [name, ""]))

  const faultsOf = (end: End): ReadonlyArray<string> => {
    ended(end, 78)
    const [first, ...faults] = end.stderr.trimEnd().split("\n")
    assert.strictEqual(first, "ERROR: Configuration invalid:")
    assert.strictEqual(end.stdout, "")
    return faults
  }

  it.each([["malformed", malformed], ["empty", empty]] as const)("all %s: one report, 78", async (_, env) => {
    const at = place()
    const faults = faultsOf(await run("serves", { at, env }))
    for (const name of Object.keys(env)) {
      assert.lengthOf(
        faults.filter((fault) => new RegExp(`^  - ${name}[ =]`).test(fault)),
        1,
        `${name}: ${faults.join("\n")}`
      )
    }
    assert.lengthOf(faults, Object.keys(env).length)
    await nothingLeft(at)
  })

  it("several of one variable, beside others that cannot be read: 78", async () => {
    const env = {
      SERVICE_RUNTIME_PORT: "abc",
      SERVICE_API: "http://u:p@h/?q",
      SERVICE_PROJECT_ID: "..",
      SERVICE_API_KEY: "a b"
    }
    const faults = faultsOf(await run("serves", { env }))
    const told = ["SERVICE_API=", "SERVICE_API=", "SERVICE_PROJECT_ID=", "SERVICE_RUNTIME_PORT=", "SERVICE_API_KEY has"]
    assert.deepStrictEqual(faults.map((fault) => told.find((one) => fault.startsWith(`  - ${one}`))), told)
    assert.notInclude(faults.join(), "u:p")
    assert.notInclude(faults.join(), "a b")
  })

  it("one port for the service and its probes: 78, before anything has started", async () => {
    const faults = faultsOf(
      await run("serves", { env: { SERVICE_RUNTIME_PORT: "18999", SERVICE_HEALTHZ_PORT: "18999" } })
    )
    assert.deepStrictEqual(faults, [
      "  - port 18999 is to be listened on twice: change SERVICE_HEALTHZ_PORT or SERVICE_RUNTIME_PORT"
    ])
  })

  it("missing where they are needed: 78", async () => {
    const faults = faultsOf(await run("serves", { env: { SERVICE_ENV: "production" } }))
    assert.deepStrictEqual(faults.map((fault) => fault.slice(0, fault.indexOf(" is not set"))), [
      "  - SERVICE_API",
      "  - SERVICE_PROJECT_ID"
    ])
  })

  it("a drain delay that leaves nothing of the budget, which the service itself says in part: 78", async () => {
    const [fault = ""] = faultsOf(await run("drains", { env: { SERVICE_STOP_BUDGET: "9s" } }))
    assert.include(fault, "SERVICE_DRAIN_DELAY")
    assert.include(fault, "SERVICE_STOP_BUDGET")
  })
})

describe.concurrent("ports that are taken", () => {
  const wanted = (port: string, healthPort: string) => ({
    SERVICE_RUNTIME_IP: "127.0.0.1",
    SERVICE_RUNTIME_PORT: port,
    SERVICE_HEALTHZ_IP: "127.0.0.1",
    SERVICE_HEALTHZ_PORT: healthPort
  })

  it("of the service: 1, in order", () =>
    takenPorts(1, async ([port = ""]) => {
      const at = place()
      const end = await run("serves", { at, env: wanted(port, "0") })
      ended(end, 1)
      assert.match(end.stderr, /^ERROR: Service failed while running: api: the port is taken/m)
      assert.include(end.stderr, `127.0.0.1:${port}`)
      assert.deepStrictEqual(end.stdout.match(/^(acquired|released)$/gm)?.map(String), ["acquired", "released"])
      await nothingLeft(at)
    }))

  it("of the probes: 201, before anything starts; so are all", () =>
    takenPorts(2, async ([port = "", other = ""]) => {
      for (const env of [wanted("0", port), wanted(other, port)]) {
        const end = await run("serves", { env })
        ended(end, 201)
        assert.match(end.stderr, new RegExp(`^ERROR: Health listener could not bind to 127.0.0.1:${port}: `, "m"))
        assert.notInclude(end.stdout, "acquired")
      }
    }))
})

describe("SIGTERM at each 5 ms of the start-up, at each 25 ms while modules are loaded", () => {
  it("ends in order, or by the signal before the program has begun, and leaves nothing", async () => {
    const at = place()
    writeFileSync(join(at, "Secrets.toml"), "KEY = \"value\"\n", { mode: 0o600 })
    const env = { SERVICE_HEALTHZ_PORT: "0", SERVICE_HEALTHZ_IP: "127.0.0.1", SAYS_MAIN: "1" }
    const ends = await signalEachStep({
      start: () => launch("serves", { at, env }),
      begins: "main",
      ready: "ready"
    })
    const unexpected = ends.filter(({ code, signal, stderr, stdout }) => {
      const lines = stdout.split("\n")
      const count = (line: string) => lines.filter((one) => one === line).length
      const inOrder = code === 10 && count("acquired") === count("released") && stderr === ""
      // Before `main` nothing takes signals, and nothing has been started.
      return !inOrder && !(signal === "SIGTERM" && /^(main\n)?$/.test(stdout))
    })
    assert.deepStrictEqual(unexpected, [])
    assert.isTrue(ends.some(({ signal }) => signal === "SIGTERM"))
    assert.isTrue(ends.some(({ code, stdout }) => code === 10 && stdout.includes("acquired")))
    await nothingLeft(at, ["Secrets.toml", "state"])
  })

  it("and while the database is made and started: 10", async () => {
    // From the first moment, when nothing of it is there, over the making of its files, to its start.
    await Promise.all([0, 300, 800].map(async (millis) => {
      const at = place()
      await using running = launch("database", { at })
      assert.isTrue(await eventually(() => running.stdout().includes("Provisioning db")))
      await new Promise((resolve) => setTimeout(resolve, millis))
      running.kill("SIGTERM")
      ended(await running.end, 10)
      await nothingLeft(at, ["state"])
      const files = readdirSync(at, { recursive: true }).map(String)
      assert.deepStrictEqual(files.filter((name) => /claim-|postmaster\.pid$/.test(name)), [])
    }))
  })

  it("a part that hangs does not take the time in which the database stops: 11", async () => {
    const at = place()
    await using running = launch("hangsBesideDatabase", { at })
    await running.said("ready")
    running.kill("SIGTERM")
    const end = await running.end
    ended(end, 11)
    assert.match(end.stderr, /^ERROR: hangs did not stop within \d+ ms/)
    // The only one: the database has stopped.
    assert.strictEqual(end.stderr.split("did not stop within").length, 2)
    await nothingLeft(at, ["state"])
    assert.isFalse(readdirSync(at, { recursive: true }).map(String).some((name) => name.endsWith("postmaster.pid")))
  })
})

describe.concurrent("stdout", () => {
  const answers = async (port: string): Promise<boolean> => {
    for (const deadline = performance.now() + 15_000; performance.now() < deadline;) {
      try {
        return (await fetch(`http://127.0.0.1:${port}`, { signal: AbortSignal.timeout(5_000) })).ok
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 50))
      }
    }
    return false
  }

  it.each([
    ["closed at the start", ">&-"],
    ["and stderr closed at the start", ">&- 2>&-"],
    ["and all else closed at the start", "<&- >&- 2>&-"],
    ["on a full disk", ">/dev/full"]
  ])("%s: the service serves, and ends in order", async (_, how) => {
    const at = place()
    const port = await freePort()
    const env = { SERVICE_RUNTIME_PORT: port, SERVICE_RUNTIME_IP: "127.0.0.1" }
    await using running = launch("serves", { at, env, through: ["sh", "-c", `exec "$@" ${how}`, "sh"] })
    assert.isTrue(await answers(port))
    running.kill("SIGTERM")
    ended(await running.end, 10)
    await nothingLeft(at, ["state"])
  })

  it("closed while it runs and speaks: it goes on, and ends in order", async () => {
    await using running = launch("chatters")
    await running.said("acquired")
    running.hangUp()
    const isGone = await Promise.race([
      running.end.then(() => true),
      new Promise<boolean>((resolve) => setTimeout(() => resolve(false), 500))
    ])
    assert.isFalse(isGone)
    running.kill("SIGTERM")
    ended(await running.end, 10)
  })
})

describe.concurrent("the state directory", () => {
  const why = (end: End): string => /^ERROR: (.*)$/m.exec(end.stderr)?.[1] ?? end.stderr

  it.skipIf(!isRoot)("read-only: 131, and what to do", async () => {
    const at = place()
    mkdirSync(join(at, "state"))
    const script = "mount --bind \"$0\" \"$0\" && mount -o remount,ro,bind \"$0\" && exec \"$@\""
    const end = await run("database", { at, through: ["unshare", "-m", "sh", "-c", script, join(at, "state")] })
    ended(end, 131)
    assert.match(why(end), /^Provisioning phase failed: db: .*state.*read-only file system: give a state directory/)
    assert.notInclude(end.stdout, "acquired")
    assert.deepStrictEqual(readdirSync(join(at, "state")), [])
    await nothingLeft(at, ["state"])
  })

  it.skipIf(!canBeNobody)("of somebody else: 131, and what to do", async () => {
    const at = place()
    mkdirSync(join(at, "state"), { mode: 0o755 })
    const through = asNobody
    // Neither may it write what is compiled.
    const end = await run("database", { at, through, env: { NODE_COMPILE_CACHE: "" } })
    ended(end, 131)
    assert.match(why(end), /^Provisioning phase failed: db: .*state.*permission denied: give a state directory/)
    await nothingLeft(at, ["state"])
  })

  it("a file: 131; nobody minds where nothing is kept", async () => {
    const at = place()
    writeFileSync(join(at, "state"), "")
    const end = await run("database", { at })
    ended(end, 131)
    assert.match(why(end), /^Provisioning phase failed: db: .*state/)
    ended(await run("secrets", { at }), 0)
  })

  it("of two instances the second learns who holds it: 131; the first one goes on", async () => {
    const at = place()
    await using first = launch("database", { at })
    await first.said("ready")
    const second = await run("database", { at, env: { SERVICE_PROJECT_NAME: "another" } })
    ended(second, 131)
    // `env` has become the program.
    assert.include(why(second), `is in use by bad (pid ${first.pid}): stop it, or give this service another state`)
    first.kill("SIGTERM")
    ended(await first.end, 10)
    ended(await run("database", { at, env: { SERVICE_STOP_BUDGET: "0" } }), 78)
    await nothingLeft(at, ["state"])
  })
})

describe.concurrent("secrets", () => {
  const names = [
    "",
    " ",
    "a b",
    "A=B",
    "__proto__",
    "constructor",
    "toString",
    "ключ",
    "😀",
    "a\nb",
    "\u0000",
    "x".repeat(10_000)
  ]
  const sizes: ReadonlyArray<readonly [string, string]> = [["large", "é".repeat(1024 * 1024)], ["empty", ""]]
  const values = Object.fromEntries([
    ...names.map((name): readonly [string, string] => [name, `value of ${name.slice(0, 20)}\n`]),
    ...sizes
  ])

  const expected = (all: Readonly<Record<string, string>>) =>
    Object.entries(all).map(([name, value]) => [name, value.length, createHash("sha256").update(value).digest("hex")])
  const Rows = Schema.fromJsonString(Schema.Array(Schema.Array(Schema.Unknown)))
  const sorted = (rows: ReadonlyArray<ReadonlyArray<unknown>>) => rows.map((row) => JSON.stringify(row)).toSorted()
  const printed = ({ stdout }: End): ReadonlyArray<ReadonlyArray<unknown>> =>
    Schema.decodeUnknownSync(Rows)(stdout.split("\n").find((line) => line.startsWith("[[")))

  it("with odd names and 1 MB values come from an API", () =>
    withApi({ secrets: values }, async (env) => {
      const end = await run("secrets", { env })
      ended(end, 0)
      assert.deepStrictEqual(sorted(printed(end)), sorted(expected(values)))
    }))

  it("and from a file", async () => {
    const at = place()
    const quoted = (text: string): string => JSON.stringify(text).replaceAll("\u007f", "\\u007f")
    const lines = Object.entries(values).map(([name, value]) => `${quoted(name)} = ${quoted(value)}\n`)
    writeFileSync(join(at, "Secrets.toml"), lines.join(""), { mode: 0o600 })
    const end = await run("secrets", { at })
    ended(end, 0)
    assert.deepStrictEqual(sorted(printed(end)), sorted(expected(values)))
  })

  it("more of them than anybody has: 101", () =>
    withApi({ secrets: { A: "x".repeat(9 * 1024 * 1024) } }, async (env) => {
      const end = await run("secrets", { env })
      ended(end, 101)
      assert.isBelow(end.stderr.length, 4_096)
    }))
})

describe.concurrent("resources", () => {
  it("inputs with __proto__ are data: they arrive, and change nothing", () =>
    withApi({}, async (env, api) => {
      const end = await run("proto", { env })
      ended(end, 0)
      const nasty =
        "{\"__proto__\":{\"polluted\":1},\"constructor\":{\"prototype\":{\"polluted\":2}},\"a\":[{\"__proto__\":null}]}"
      const lines = end.stdout.split("\n")
      for (const line of [`own ${nasty}`, `sent ${nasty}`, "polluted false"]) assert.include(lines, line)
      const bodies = (await Effect.runPromise(api.received)).map(({ body }) => body)
      assert.isTrue(bodies.some((body) => body.includes(nasty)), bodies.join("\n"))
    }))

  const { Hang, None } = FakeRuntimeApi.Fault
  it.each<[what: string, options: FakeRuntimeApi.Options, said: RegExp]>([
    [
      "is never ready",
      { resources: { [Postgres.types.shared]: [{ state: "provisioning" }] } },
      /db: not ready within 1s: "provisioning" after 1 requests/
    ],
    ["is never answered", { faults: [None(), Hang()] }, /db: not ready within 1s: no answer yet/]
  ])("one that %s: 131 after the start timeout", (_, options, said) =>
    withApi(options, async (env) => {
      const at = place()
      const end = await run("waits", { at, env })
      ended(end, 131)
      assert.match(end.stderr, said)
      assert.notInclude(end.stdout, "acquired")
      await nothingLeft(at)
    }))

  it("and a signal meanwhile: 10", () =>
    withApi({ faults: [None(), Hang()] }, async (env, api) => {
      await using running = launch("database", { env })
      const isAsked = () => Effect.runSync(api.received).some(({ method }) => method === "POST")
      assert.isTrue(await eventually(isAsked))
      running.kill("SIGTERM")
      ended(await running.end, 10)
    }))
})

describe.concurrent("what throws at once", () => {
  it.each([
    ["the main program", "mainThrows", 70, /^ERROR: Defect: Error: thrown at once/m],
    ["a layer", "layerThrows", 70, /^ERROR: Initialisation phase failed: thrown: thrown at once/m],
    ["a resource", "loadThrows", 70, /^ERROR: Defect: Error: thrown at once/m],
    ["the rest of the module", "moduleThrows", 70, /Nobody caught this error.*thrown at once/]
  ])("%s: its code, in order, and where", async (_, program, code, said) => {
    const at = place()
    const end = await run(program, { at })
    ended(end, code)
    assert.match(end.stderr, said)
    assert.include(end.stderr, "bad/service.ts")
    const count = (line: string) => end.stdout.split("\n").filter((one) => one === line).length
    assert.strictEqual(count("acquired"), count("released"))
    await nothingLeft(at)
  })

  it("what comes before the service is Node's own affair: 1", async () => {
    const end = await run("throwsBefore")
    ended(end, 1)
    assert.include(end.stderr, "thrown at once")
  })
})
