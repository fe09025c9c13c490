import { describe, expect, it } from "@effect/vitest"
import * as Console from "effect/Console"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { spawn, spawnSync } from "node:child_process"
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"
import { fileURLToPath } from "node:url"
import * as NodeTelemetry from "../../src/service/NodeTelemetry.ts"
import * as ServiceConfig from "../../src/service/ServiceConfig.ts"

type Env = Readonly<Record<string, string>>

const configOf = (env: Env) => Result.getOrThrow(ServiceConfig.parse({ env, argv: [], defaults: { name: "notes" } }))

const layer = (env: Env) => NodeTelemetry.layer(configOf(env), { version: "1.2.3" })

/** The bound, and what a busy machine may take besides. */
const soon = 1000 + 2000

/** Gives the lines that an effect prints beside what it gives. */
const printed = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const lines: Array<string> = []
    return Effect.map(
      Effect.provideService(effect, Console.Console, {
        ...globalThis.console,
        log: (...args: ReadonlyArray<unknown>) => lines.push(args.map(String).join(" "))
      }),
      (value) => ({ value, lines })
    )
  })

interface Delivery {
  readonly path: string
  readonly headers: IncomingMessage["headers"]
  readonly body: Buffer
}

/** A collector on a port of its own, until the scope closes. */
const collector = (answer: (response: ServerResponse) => void = (response) => response.end("{}")) =>
  Effect.acquireRelease(
    Effect.callback<{ readonly url: string; readonly deliveries: ReadonlyArray<Delivery>; readonly close: () => void }>(
      (resume) => {
        const deliveries: Array<Delivery> = []
        const server = createServer((request, response) => {
          const chunks: Array<Buffer> = []
          request.on("data", (chunk: Buffer) => chunks.push(chunk))
          request.on("end", () => {
            deliveries.push({ path: request.url ?? "", headers: request.headers, body: Buffer.concat(chunks) })
            answer(response)
          })
        })
        server.listen(0, "127.0.0.1", () => {
          const address: AddressInfo | string | null = server.address()
          const port = typeof address === "object" && address !== null ? address.port : 0
          const close = () => {
            server.close()
            server.closeAllConnections()
          }
          resume(Effect.succeed({ url: `http://127.0.0.1:${port}`, deliveries, close }))
        })
      }
    ),
    ({ close }) => Effect.sync(close)
  )

const work = Effect.gen(function*() {
  yield* Effect.logInfo("working")
  yield* Metric.update(Metric.counter("telemetry_test_jobs"), 1)
  return "done"
}).pipe(Effect.withSpan("the-span"))

const Text = Schema.Struct({ stringValue: Schema.String })
const Resource = Schema.Struct({
  attributes: Schema.Array(Schema.Struct({ key: Schema.String, value: Schema.Union([Text, Schema.Unknown]) }))
})
const Traces = Schema.fromJsonString(Schema.Struct({
  resourceSpans: Schema.Array(Schema.Struct({
    resource: Resource,
    scopeSpans: Schema.Array(Schema.Struct({ spans: Schema.Array(Schema.Struct({ name: Schema.String })) }))
  }))
}))

describe("a collector", () => {
  it.live("gets spans, logs and metrics when the scope closes, before any interval has passed", () =>
    Effect.gen(function*() {
      const { deliveries, url } = yield* collector()
      const env = {
        OTEL_EXPORTER_OTLP_ENDPOINT: `${url}/base/`,
        OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
        OTEL_EXPORTER_OTLP_HEADERS: "x-key=k3y",
        OTEL_RESOURCE_ATTRIBUTES: "region=eu"
      }
      const { lines, value } = yield* printed(Effect.provide(work, layer(env)))
      expect(value).toBe("done")
      expect(deliveries.map(({ path }) => path).toSorted()).toEqual([
        "/base/v1/logs",
        "/base/v1/metrics",
        "/base/v1/traces"
      ])
      expect(deliveries.map(({ headers }) => headers["x-key"])).toEqual(["k3y", "k3y", "k3y"])
      const body = (path: string) => String(deliveries.find((delivery) => delivery.path.endsWith(path))?.body)
      const [spans] = Schema.decodeSync(Traces)(body("traces")).resourceSpans
      expect(spans?.scopeSpans.flatMap((scope) => scope.spans.map(({ name }) => name))).toEqual(["the-span"])
      expect(Object.fromEntries(spans?.resource.attributes.map(({ key, value: to }) => [key, to]) ?? [])).toMatchObject(
        {
          "service.name": { stringValue: "notes" },
          "service.version": { stringValue: "1.2.3" },
          "deployment.environment.name": { stringValue: "local" },
          region: { stringValue: "eu" }
        }
      )
      expect(body("logs")).toContain("working")
      expect(body("metrics")).toContain("telemetry_test_jobs")
      // Only what was logged, nothing of the exporters.
      expect(lines.length).toBe(1)
    }).pipe(Effect.scoped))

  it.live("gets protobuf unless it wants JSON, and the name that OTEL_SERVICE_NAME gives", () =>
    Effect.gen(function*() {
      const { deliveries, url } = yield* collector()
      yield* printed(
        Effect.provide(work, layer({ OTEL_EXPORTER_OTLP_ENDPOINT: url, OTEL_SERVICE_NAME: "notes-eu" }))
      )
      expect(deliveries.map(({ headers }) => headers["content-type"])).toEqual(
        Array.from({ length: 3 }, () => "application/x-protobuf")
      )
      const traces = deliveries.find(({ path }) => path === "/v1/traces")?.body.toString("latin1")
      expect(traces).toContain("the-span")
      expect(traces).toContain("notes-eu")
    }).pipe(Effect.scoped))

  it("gets what is left for a tenth of the stop budget, one second at most", () => {
    const within = (env: Env) => Duration.toMillis(ServiceConfig.flushWithin(configOf(env)))
    const endpoint = { OTEL_EXPORTER_OTLP_ENDPOINT: "http://c" }
    expect(within(endpoint)).toBe(1000)
    expect(within({ ...endpoint, SERVICE_STOP_BUDGET: "3s" })).toBe(300)
    expect(within({})).toBe(0)
  })

  it.live("that answers without end is not read to the end", () =>
    Effect.gen(function*() {
      const cut: Array<true> = []
      const { deliveries, url } = yield* collector((response) => {
        response.on("close", () => cut.push(true))
        const pour = () => {
          while (!response.destroyed && response.write(Buffer.alloc(65_536))) { /* as much as it takes */ }
        }
        response.on("drain", pour)
        pour()
      })
      const { lines } = yield* printed(Effect.provide(work, layer({ OTEL_EXPORTER_OTLP_ENDPOINT: url })))
      expect(deliveries.length).toBe(3)
      expect(lines.filter((line) => line.includes("Telemetry"))).toEqual([])
      yield* Effect.suspend(() => cut.length === 3 ? Effect.void : Effect.fail("not yet")).pipe(
        Effect.retry({ schedule: Schedule.spaced("20 millis"), times: 250 })
      )
    }).pipe(Effect.scoped))

  const troubles: ReadonlyArray<readonly [what: string, answer: (response: ServerResponse) => void, why: string]> = [
    ["that never answers", () => {}, "it did not answer in time"],
    ["that fails", (response) => response.writeHead(500).end("no"), "it answers with 500"],
    ["that does not want it", (response) => response.writeHead(401).end(), "it answers with 401"],
    ["that hangs up", (response) => response.destroy(), "Transport error"]
  ]
  it.live.each(troubles)(
    "%s costs one warning, and no more than the bound",
    ([, answer, why]) =>
      Effect.gen(function*() {
        const { url } = yield* collector(answer)
        const program = printed(Effect.provide(work, layer({ OTEL_EXPORTER_OTLP_ENDPOINT: url })))
        const [took, { lines, value }] = yield* Effect.timed(program)
        expect(value).toBe("done")
        expect(Duration.toMillis(took)).toBeLessThan(soon)
        const told = lines.filter((line) => line.includes("Telemetry"))
        expect(told.length).toBe(1)
        expect(told[0]).toContain(`Telemetry does not arrive at ${url}: ${why}`)
      }).pipe(Effect.scoped)
  )

  it.live("that is not there costs no more", () =>
    Effect.gen(function*() {
      const url = yield* Effect.scoped(Effect.map(collector(), (closed) => closed.url))
      const program = printed(Effect.provide(work, layer({ OTEL_EXPORTER_OTLP_ENDPOINT: url })))
      const [took, { lines, value }] = yield* Effect.timed(program)
      expect(value).toBe("done")
      expect(Duration.toMillis(took)).toBeLessThan(soon)
      expect(lines.filter((line) => line.includes("Telemetry")).join()).toContain("ECONNREFUSED")
    }))

  it.live("that sends us elsewhere is not followed: the headers are for it alone", () =>
    Effect.gen(function*() {
      const other = yield* collector()
      const { deliveries, url } = yield* collector((response) =>
        response.writeHead(307, { location: `${other.url}/v1/traces` }).end()
      )
      const env = { OTEL_EXPORTER_OTLP_ENDPOINT: url, OTEL_EXPORTER_OTLP_HEADERS: "x-key=k3y" }
      const { lines } = yield* printed(Effect.provide(work, layer(env)))
      expect(deliveries.length).toBe(3)
      expect(other.deliveries).toEqual([])
      expect(lines.join("\n")).toContain("it answers with 307")
    }).pipe(Effect.scoped))

  it.live("what the environment of the process says is not read behind the configuration's back", () =>
    Effect.gen(function*() {
      const { deliveries, url } = yield* collector()
      process.env["OTEL_RESOURCE_ATTRIBUTES"] = "broken=%"
      yield* printed(Effect.provide(work, layer({ OTEL_EXPORTER_OTLP_ENDPOINT: url }))).pipe(
        Effect.ensuring(Effect.sync(() => delete process.env["OTEL_RESOURCE_ATTRIBUTES"]))
      )
      expect(deliveries.length).toBe(3)
    }).pipe(Effect.scoped))
})

const Line = Schema.fromJsonString(Schema.Struct({
  message: Schema.Unknown,
  level: Schema.String,
  timestamp: Schema.String
}))

describe("lines", () => {
  const json = { SERVICE_LOG_FORMAT: "json" }

  it.effect("from the least level on", () =>
    Effect.gen(function*() {
      const all = Effect.all([Effect.logTrace("t"), Effect.logDebug("d"), Effect.logInfo("i"), Effect.logError("e")])
      const messages = (level: string) =>
        Effect.map(
          printed(Effect.provide(all, layer({ ...json, SERVICE_LOG_LEVEL: level }))),
          ({ lines }) => lines.map((line) => Schema.decodeSync(Line)(line).message)
        )
      expect(yield* messages("trace")).toEqual(["t", "d", "i", "e"])
      expect(yield* messages("Info")).toEqual(["i", "e"])
      expect(yield* messages("ERROR")).toEqual(["e"])
      expect(yield* messages("None")).toEqual([])
    }))

  const circular: Record<string, unknown> = {}
  circular["self"] = circular
  const hostile: ReadonlyArray<readonly [what: string, message: unknown]> = [
    ["a line break", "a\nb\u2028c"],
    ["a circle", circular],
    ["a bigint", { n: 10n ** 30n }],
    ["a symbol", Symbol("s")],
    ["a function", () => 1],
    ["a hole in a pair of surrogates", "\ud800"],
    ["an error", new Error("boom", { cause: new Error("inner") })],
    ["a getter that throws", {
      get secret() {
        throw new Error("no")
      }
    }],
    ["a toJSON that throws", {
      toJSON() {
        throw new Error("no")
      }
    }],
    [
      "a proxy that throws",
      new Proxy({}, {
        ownKeys() {
          throw new Error("no")
        }
      })
    ]
  ]
  it.effect.each(hostile)("%s is one line of JSON", ([, message]) =>
    Effect.gen(function*() {
      const { lines } = yield* printed(Effect.provide(Effect.logInfo(message), layer(json)))
      expect(lines.length).toBe(1)
      expect(lines[0]).not.toContain("\n")
      expect(Schema.decodeSync(Line)(lines[0] ?? "").level).toBe("INFO")
    }))

  it.effect.prop(
    "whatever is logged is one line of JSON",
    [Schema.Unknown, Schema.String],
    ([message, key]) =>
      Effect.gen(function*() {
        const logged = Effect.annotateLogs(Effect.logWarning(message), key, message)
        const { lines } = yield* printed(Effect.provide(logged, layer(json)))
        expect(lines.map((line) => Schema.decodeSync(Line)(line).level)).toEqual(["WARN"])
      })
  )
})

describe("stdout", () => {
  const source = (path: string) => JSON.stringify(fileURLToPath(new URL(`../../src/service/${path}`, import.meta.url)))
  const script = `
    const { layer } = await import(${source("NodeTelemetry.ts")})
    const { parse } = await import(${source("ServiceConfig.ts")})
    const Effect = await import("effect/Effect")
    const { success } = parse({ env: process.env, argv: [], defaults: { name: "notes" } })
    const log = Effect.forEach(Array.from({ length: Number(process.env.LINES ?? 1) }), () =>
      Effect.andThen(Effect.logInfo("hello"), Effect.sleep("1 millis")))
    await Effect.runPromise(Effect.provide(log, layer(success, { version: "1" })))
    process.stderr.write("alive")
  `
  const args = ["--input-type=module", "--eval", script]
  const cwd = fileURLToPath(new URL("../..", import.meta.url))
  const { NO_COLOR: _, FORCE_COLOR: __, ...inherited } = process.env

  const run = (env: Env) =>
    spawnSync(process.execPath, args, { cwd, env: { ...inherited, ...env }, encoding: "utf8", timeout: 20_000 })

  it("that is no terminal gets JSON", () => {
    const { stderr, stdout } = run({})
    expect(stderr).toBe("alive")
    expect(Schema.decodeSync(Line)(stdout.trim()).message).toBe("hello")
  })

  it("that is no terminal gets no colours", () => {
    const { stdout } = run({ SERVICE_LOG_FORMAT: "pretty" })
    expect(stdout).toMatch(/^\[[\d:.]+\] INFO \(#\d+\): hello\n$/)
  })

  const terminal = (env: Env) => {
    const word = (text: string) => `'${text.replaceAll("'", "'\\''")}'`
    const command = [process.execPath, ...args].map(word).join(" ")
    return spawnSync("script", ["-qec", command, "/dev/null"], {
      cwd,
      env: { ...inherited, ...env, SHELL: "/bin/sh", TERM: "xterm" },
      encoding: "utf8",
      timeout: 20_000
    }).stdout
  }
  const here = spawnSync("script", ["--version"], { timeout: 10_000 }).status === 0
  if (!here) console.log("script(1) is not here: nothing can be told about a terminal")

  it.runIf(here)(
    "that is a terminal gets it pretty, in colour unless NO_COLOR says no, or JSON if that is chosen",
    () => {
      expect(terminal({})).toMatch(/^\p{Cc}\[.*INFO.*hello/u)
      expect(terminal({ NO_COLOR: "1" })).toMatch(/^\[[\d:.]+\] INFO \(#\d+\): hello\r?\n/)
      expect(terminal({ SERVICE_LOG_FORMAT: "json" })).toMatch(/^\{"message":"hello"/)
    }
  )

  it.live("whose reader stands still costs a bounded memory, and the lines that are lost are counted", () =>
    Effect.gen(function*() {
      const prelude = `
        const read = Effect.whileLoop({
          while: () => process.stdout.writableLength > 0,
          body: () => Effect.sleep("5 millis"),
          step: () => {}
        })
        const flood = Effect.forEach(Array.from({ length: 400 }), () => Effect.logInfo("x".repeat(100_000))).pipe(
          Effect.andThen(Effect.logError("why it ends")),
          Effect.andThen(Effect.sync(() => process.stderr.write("flooded "))),
          Effect.andThen(read)
        )
      `
      const flood = script
        .replace("Effect.provide(log,", "Effect.provide(Effect.andThen(flood, log),")
        .replace("await Effect.runPromise", `${prelude}$&`)
      const child = spawn(process.execPath, ["--input-type=module", "--eval", flood], {
        cwd,
        env: { ...inherited },
        timeout: 20_000
      })
      let stderr = ""
      const chunks: Array<Buffer> = []
      child.stderr.on("data", (chunk: Buffer) => {
        stderr += chunk.toString()
        // From now on somebody reads.
        if (chunks.length === 0) child.stdout.on("data", (read: Buffer) => chunks.push(read))
      })
      yield* Effect.callback<void>((resume) => {
        child.on("close", () => resume(Effect.void))
      })
      expect(stderr).toBe("flooded alive")
      const lines = Buffer.concat(chunks).toString().trim().split("\n")
      expect(lines.length).toBeLessThan(100)
      expect(lines.at(-3)).toContain("why it ends")
      expect(lines.at(-2)).toMatch(/"3\d\d log messages are lost: nobody read stdout"/)
      expect(lines.at(-1)).toContain("\"hello\"")
    }))

  it.live("that is closed loses lines and nothing else", () =>
    Effect.gen(function*() {
      const child = spawn(process.execPath, args, { cwd, env: { ...inherited, LINES: "300" }, timeout: 20_000 })
      let stderr = ""
      child.stderr.on("data", (chunk: Buffer) => {
        stderr += chunk.toString()
      })
      child.stdout.once("data", () => child.stdout.destroy())
      const end = yield* Effect.callback<string>((resume) => {
        child.on("close", (code, signal) => resume(Effect.succeed(`${code} ${signal}`)))
      })
      expect(stderr).toBe("alive")
      expect(end).toBe("0 null")
    }))
})
