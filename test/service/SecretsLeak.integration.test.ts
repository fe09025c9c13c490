/**
 * Planted secrets, a real process that is careless with them, and all that comes out of it: stdout, stderr, termination log,
 * probes, metrics and telemetry.
 *
 * What is not held: a program that takes a secret out of its `Redacted` and puts it into a message shows it, as `quotes`
 * does on purpose; that also proves that a leak would be found.
 */
import { afterAll, beforeAll, describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { spawnSync } from "node:child_process"
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { createServer } from "node:http"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Postgres from "../../src/service/Postgres.ts"
import * as FakeRuntimeApi from "../../src/testing/FakeRuntimeApi.ts"
import { type End, eventually, fixture, start } from "./support/edge.ts"

/** All planted values have this in them, and nothing else has. */
const stem = "pl4nted"
const apiKey = `${stem}-api-key`
const header = `${stem}-header`
const password = `${stem}/pass@word`

let directory = ""
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "secrets-leak-"))
  // At its exit, Node keeps what it has compiled. To do so for all modules, several processes at once, takes a busy machine longer than a
  // service has to leave.
  const env = { ...process.env, PROGRAM: "ends", NODE_COMPILE_CACHE: join(directory, "compiled") }
  const { stdout } = spawnSync(process.execPath, [fixture("bad/leaky.ts"), "--version"], { env, encoding: "utf8" })
  expect(stdout).toContain("1.0.0")
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

const secrets = { KEY: `${stem}-secret`, "odd name": `${stem}\n"two lines"`, __proto__x: `${stem}-proto` }
const info = {
  engine: "postgres",
  role_name: "app",
  role_password: password,
  database_name: "notes",
  port: "1",
  hostname: "127.0.0.1"
}
const states = (...steps: ReadonlyArray<FakeRuntimeApi.Step>) => ({ resources: { [Postgres.types.shared]: steps } })
/** It repeats what it was told, or has told before. */
const echo = (status: number, told: unknown) =>
  FakeRuntimeApi.failure(status, `no: Bearer ${apiKey} may not have ${JSON.stringify(told)}`)
const always = (fault: FakeRuntimeApi.Fault) => Array.from({ length: 5 }, () => fault)

/** What a collector of telemetry gets, of traces, metrics and logs alike. */
const collector = Effect.acquireRelease(
  Effect.callback<
    { readonly url: string; readonly bodies: Array<string>; readonly keys: Array<unknown>; readonly close: () => void }
  >(
    (resume) => {
      const bodies: Array<string> = []
      const keys: Array<unknown> = []
      const server = createServer((request, response) => {
        keys.push(request.headers["x-key"])
        // Whole, so that no value is torn between two chunks.
        let body = ""
        request.on("data", (chunk: Buffer) => {
          body += chunk.toString("latin1")
        })
        request.on("end", () => {
          bodies.push(body)
          response.end()
        })
      })
      server.listen(0, "127.0.0.1", () => {
        const address = server.address()
        const port = typeof address === "object" && address !== null ? address.port : 0
        const close = () => {
          server.close()
          server.closeAllConnections()
        }
        resume(Effect.succeed({ url: `http://127.0.0.1:${port}`, bodies, keys, close }))
      })
    }
  ),
  ({ close }) => Effect.sync(close)
)

interface Case {
  readonly program: string
  readonly code: number
  readonly args?: ReadonlyArray<string>
  readonly env?: Readonly<Record<string, string>>
  readonly api?: Omit<FakeRuntimeApi.Options, "apiKey">
  readonly cwd?: string
  /** Somewhere in what came out, or the case has not met what it is for. */
  readonly shows?: string
}

interface Seen extends End {
  readonly termination: string
  readonly probed: ReadonlyArray<string>
  readonly telemetry: string
  readonly keys: ReadonlyArray<unknown>
}

let serial = 0

const run = Effect.fnUntraced(function*(
  { api = {}, args = [], cwd, env = {}, program }: Case,
  output: Readonly<Record<string, string>>
): Effect.fn.Return<Seen, never, Scope.Scope> {
  const fake = yield* FakeRuntimeApi.make({ secrets, ...states({ state: "ready", output: info }), ...api, apiKey })
  const collected = yield* collector
  const terminationLog = join(directory, `termination-${serial++}`)
  writeFileSync(terminationLog, "")
  const variables = {
    PROGRAM: program,
    TERMINATION_LOG: terminationLog,
    NODE_COMPILE_CACHE: join(directory, "compiled"),
    SERVICE_STATE_DIR: join(directory, "state"),
    SERVICE_RUNTIME_PORT: "0",
    SERVICE_HEALTHZ_PORT: "0",
    SERVICE_HEALTHZ_IP: "127.0.0.1",
    OTEL_EXPORTER_OTLP_ENDPOINT: collected.url,
    OTEL_EXPORTER_OTLP_HEADERS: `x-key=${header}`,
    ...(cwd === undefined
      ? { SERVICE_API: fake.url.origin, SERVICE_PROJECT_ID: "proj_X", SERVICE_API_KEY: apiKey }
      : {}),
    ...output,
    ...env
  }
  const command = [process.execPath, fixture("bad/leaky.ts"), ...args]
  const [file = "", ...rest] = cwd === undefined ? command : ["env", "-C", cwd, ...command]
  const running = yield* Effect.acquireDisposable(Effect.sync(() => start(file, rest, { env: variables })))
  const probed: Array<string> = []
  if (program === "serves") {
    yield* Effect.promise(async () => {
      await running.said("ready")
      expect(await eventually(() => /Health listener on port \d+/.test(running.stdout()))).toBe(true)
      const [, port] = /Health listener on port (\d+)/.exec(running.stdout()) ?? []
      for (const path of ["readyz", "livez", "startupz", "metrics"]) {
        const answer = await fetch(`http://127.0.0.1:${port}/${path}`, { signal: AbortSignal.timeout(10_000) })
        probed.push(`${path} ${answer.status} ${JSON.stringify([...answer.headers])} ${await answer.text()}`)
      }
    })
    running.kill("SIGTERM")
  }
  const end = yield* Effect.promise(() => running.end)
  return {
    ...end,
    probed,
    termination: readFileSync(terminationLog, "utf8"),
    telemetry: collected.bodies.join("\n"),
    keys: collected.keys
  }
})

/** Enough of it to see what went wrong. */
const told = (seen: Seen): string => `${seen.code} ${(seen.stdout + seen.stderr).slice(-2_000)}`

/** Where a planted value is, with what is around it. */
const leaks = (seen: Seen): ReadonlyArray<string> =>
  Object.entries({ ...seen, keys: "" }).flatMap(([where, what]) => {
    const text = Array.isArray(what) ? what.join("\n") : String(what)
    return [...text.matchAll(new RegExp(`.{0,80}${stem}.{0,40}`, "g"))].map(([around]) => `${where}: ${around}`)
  })

const formats = [
  ["json", { SERVICE_LOG_FORMAT: "json", OTEL_EXPORTER_OTLP_PROTOCOL: "http/json", SERVICE_LOG_LEVEL: "Trace" }],
  ["pretty", { SERVICE_LOG_FORMAT: "pretty", OTEL_EXPORTER_OTLP_PROTOCOL: "http/protobuf", SERVICE_LOG_LEVEL: "Trace" }]
] as const

const endings: ReadonlyArray<readonly [what: string, one: Case]> = [
  ["ends by itself", { program: "ends", code: 0, shows: "this is known" }],
  ["a signal, after probes of a check that tells its configuration", {
    program: "serves",
    code: 10,
    shows: "readyz 503"
  }],
  ["faults in the configuration, those of secrets among them", {
    program: "ends",
    code: 78,
    env: {
      SERVICE_API_KEY: `${apiKey}\u0007`,
      OTEL_EXPORTER_OTLP_HEADERS: `x=${header}\u0001`,
      SERVICE_API: `http://user:${stem}@127.0.0.1:1`,
      SERVICE_RUNTIME_PORT: "web"
    },
    shows: "SERVICE_API_KEY"
  }],
  ["no secrets: the API repeats the key", {
    program: "ends",
    code: 101,
    api: { faults: always(echo(403, "it")) },
    shows: "Secrets phase failed"
  }],
  ["secrets of a wrong shape", {
    program: "ends",
    code: 101,
    api: {
      faults: [FakeRuntimeApi.Fault.Respond({
        status: 200,
        body: JSON.stringify({ type: "secrets", state: "ready", config: null, output: { A: secrets, B: [stem] } })
      })]
    },
    shows: "Secrets phase failed"
  }],
  ["loading", { program: "loadFails", code: 111, shows: "no wish with" }],
  ["inputs that are not valid", { program: "inputInvalid", code: 121, shows: "box: Expected" }],
  ["provisioning is refused, with all that was told", {
    program: "ends",
    code: 131,
    api: { faults: [FakeRuntimeApi.Fault.None(), ...always(echo(400, secrets))] },
    shows: "Provisioning phase failed"
  }],
  ["a bad state that tells", {
    program: "ends",
    code: 132,
    api: states({ state: "failed", output: info }),
    shows: "in state"
  }],
  ["an output with a bad port", {
    program: "ends",
    code: 151,
    api: states({ state: "ready", output: { ...info, port: stem } }),
    shows: "the output of db cannot be used"
  }],
  ["an output that is no connection string", {
    program: "ends",
    code: 151,
    api: states({ state: "ready", output: `mysql://app:${stem}@db/notes` }),
    shows: "the output of db cannot be used"
  }],
  ["an output of a wrong shape", {
    program: "ends",
    code: 151,
    api: states({ state: "ready", output: { ...info, engine: stem, role_password: [password], more: stem } }),
    shows: "the output of db cannot be used"
  }],
  ["an output of its own that is unfit", {
    program: "outputUnfit",
    code: 121,
    shows: "Resource input not valid:"
  }],
  ["a part fails and quotes its configuration", { program: "initFails", code: 151, shows: "cannot work with" }],
  ["a part dies with it", { program: "initDies", code: 70, shows: "cannot work with" }],
  ["a database client that cannot connect", { program: "noConnection", code: 151, shows: "ECONNREFUSED" }],
  ["the main program fails", { program: "mainFails", code: 1, shows: "cannot work with" }],
  ["the main program dies with all it knows", { program: "mainDies", code: 70, shows: "Defect" }],
  ["a task fails", { program: "taskFails", code: 1, shows: "Background task failed" }],
  ["a finalizer dies", { program: "stopDies", code: 12, shows: "failed while it stopped" }],
  ["a part hangs", { program: "stopHangs", code: 11, shows: "Pool.drain" }],
  ["an exception that nobody catches", { program: "throws", code: 70, shows: "Nobody caught this error" }],
  ["a rejection that nobody handles", { program: "rejects", code: 70, shows: "Nobody caught this error" }],
  ["a blocked loop, told by the watchdog", { program: "blocks", code: 11, shows: "blocksTheLoop" }]
]

describe.concurrent("no planted secret comes out, at the level that tells most", () => {
  for (const [what, one] of endings) {
    it.live(`${what}: ${one.code}`, () =>
      Effect.gen(function*() {
        for (const [, output] of formats) {
          const seen = yield* Effect.scoped(run(one, output))
          if (seen.code !== one.code) throw new Error(told(seen))
          expect(leaks(seen)).toEqual([])
          const all = seen.stdout + seen.stderr + seen.probed.join("\n")
          if (!all.includes(one.shows ?? "")) throw new Error(`it does not show ${one.shows}: ${told(seen)}`)
          expect(JSON.parse(seen.termination)).toMatchObject({ code: one.code })
        }
      }), 180_000)
  }

  it.live("telemetry really arrives, with the header in its place", () =>
    Effect.gen(function*() {
      for (const [, output] of formats) {
        // What is left at the end has a second, which a busy machine may need for other things. Then it is said.
        const seen = yield* Effect.scoped(run({ program: "ends", code: 0 }, output)).pipe(
          Effect.repeat({
            until: ({ stderr, stdout }) => !(stdout + stderr).includes("Telemetry does not arrive"),
            times: 4
          })
        )
        const words = ["tellAll", "this is known", "Service.init"]
        const absent = words.filter((word) => !seen.telemetry.includes(word))
        if (absent.length > 0) throw new Error(`${absent.join(", ")} did not arrive: ${told(seen)}`)
        expect(new Set(seen.keys)).toEqual(new Set([header]))
        expect(leaks(seen)).toEqual([])
      }
    }), 180_000)
})

describe.concurrent("at every other level", () => {
  for (const level of ["All", "Debug", "Info", "Warn", "Error", "Fatal", "None"]) {
    it.live(level, () =>
      Effect.gen(function*() {
        const [[, output]] = formats
        const seen = yield* Effect.scoped(
          run({ program: "initFails", code: 151 }, { ...output, SERVICE_LOG_LEVEL: level })
        )
        expect(seen.code).toBe(151)
        expect(leaks(seen)).toEqual([])
      }), 180_000)
  }
})

describe.concurrent("what is only printed", () => {
  for (const argument of ["--plan", "--plan=json", "--plan=systemd", "--plan=kubernetes", "--help", "--version"]) {
    it.live(argument, () =>
      Effect.gen(function*() {
        const seen = yield* Effect.scoped(run({ program: "ends", code: 0, args: [argument] }, {}))
        expect([seen.code, seen.stderr]).toEqual([0, ""])
        expect(seen.stdout).toContain(argument === "--help" ? "SERVICE_API_KEY" : "leaky")
        expect(leaks(seen)).toEqual([])
      }), 180_000)
  }
})

describe.concurrent("files of secrets", () => {
  const files: ReadonlyArray<readonly [what: string, code: number, name: string, text: string]> = [
    ["are read", 0, "Secrets.toml", `KEY = "${stem}-toml"\n"odd name" = "${stem}"\n`],
    ["with a value that is no string", 101, "Secrets.toml", `KEY = "${stem}"\nN = 1\n[table]\nA = "${stem}"\n`],
    ["that are no TOML", 101, "Secrets.toml", `KEY = ${stem}\n`],
    ["that are never closed", 101, "Secrets.dev.toml", `KEY = "${stem}\n`],
    ["that are no .env", 101, ".env", `A="${stem}\n${stem}\nB='${stem}' ${stem}\n`]
  ]
  for (const [what, code, name, text] of files) {
    it.live(`${name} ${what}: ${code}`, () =>
      Effect.gen(function*() {
        const cwd = mkdtempSync(join(directory, "cwd-"))
        writeFileSync(join(cwd, name), text)
        // Readable for all: that is warned of.
        chmodSync(join(cwd, name), 0o644)
        for (const [, output] of formats) {
          const seen = yield* Effect.scoped(run({ program: "local", code, cwd }, output))
          if (seen.code !== code || !(seen.stdout + seen.stderr).includes(name)) throw new Error(told(seen))
          expect(leaks(seen)).toEqual([])
        }
      }), 180_000)
  }
})

describe("on purpose", () => {
  it.live(
    "a program that shows a secret itself is not stopped from it, and is found out",
    () =>
      Effect.gen(function*() {
        const [[, output]] = formats
        const seen = yield* Effect.scoped(run({ program: "quotes", code: 1 }, output))
        expect(seen.code).toBe(1)
        const where = leaks(seen).map((leak) => leak.slice(0, leak.indexOf(":")))
        expect(where).toEqual(expect.arrayContaining(["stderr", "termination"]))
      }),
    180_000
  )
})
