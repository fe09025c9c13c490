import { describe, expect, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import * as Result from "effect/Result"
import { createServer } from "node:http"
import { format, inspect } from "node:util"
import * as ExitCode from "../../src/lifecycle/ExitCode.ts"
import * as NodeTelemetry from "../../src/service/NodeTelemetry.ts"
import * as ServiceConfig from "../../src/service/ServiceConfig.ts"
import { explain, fromReason, ServiceErrorReason } from "../../src/service/ServiceError.ts"
import * as ServicePlan from "../../src/service/ServicePlan.ts"

const apiKey = "p1anted-api-key"
const header = "p1anted-header"

const environment = (otherwise: Readonly<Record<string, string>> = {}) => ({
  SERVICE_ENV: "production",
  SERVICE_API: "https://api.example",
  SERVICE_PROJECT_ID: "p",
  SERVICE_API_KEY: apiKey,
  OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:1",
  OTEL_EXPORTER_OTLP_HEADERS: `x-key=${header}`,
  OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
  SERVICE_LOG_LEVEL: "All",
  ...otherwise
})

const parse = (otherwise?: Readonly<Record<string, string>>) =>
  ServiceConfig.parse({ env: environment(otherwise), argv: [], defaults: { name: "notes" } })

const config = Result.getOrThrow(parse())

const leaks = (...texts: ReadonlyArray<string>) =>
  [apiKey, header].filter((secret) => texts.some((text) => text.includes(secret)))

it("the secrets are there, or nothing below tells anything", () => {
  expect(Option.map(config.apiKey, Redacted.value)).toEqual(Option.some(apiKey))
  expect(Option.map(config.telemetry.otlp, (otlp) => Redacted.value(otlp.headers))).toEqual(
    Option.some({ "x-key": header })
  )
})

/** Says all that a careless program could say of the configuration, at every level and in every way. */
const careless = Effect.gen(function*() {
  const error = new Error("failed", { cause: fromReason(ServiceErrorReason.SecretsFailed({ why: "401" }), config) })
  for (const level of LogLevel.values) {
    if (level === "All" || level === "None") continue
    yield* Effect.logWithLevel(level)("the configuration is", config, config.apiKey, String(config.apiKey))
    yield* Effect.logWithLevel(level)("it failed", Cause.die(error), error)
  }
  yield* Effect.annotateCurrentSpan({ config, key: config.apiKey })
  return yield* Effect.die(error)
}).pipe(
  Effect.annotateLogs({ config, key: config.apiKey }),
  Effect.withSpan("careless", { attributes: { config, otlp: config.telemetry.otlp } }),
  Effect.exit
)

/** What goes to the console of the process. */
const printed = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const lines: Array<string> = []
    const log = (...args: ReadonlyArray<unknown>) => lines.push(format(...args))
    const console = { ...globalThis.console, log, error: log, group: log, info: log, warn: log }
    return Effect.map(Effect.provideService(effect, Console.Console, console), () => lines.join("\n"))
  })

describe("no log line has a secret", () => {
  const loggers: ReadonlyArray<readonly [name: string, layer: Layer.Layer<never>]> = [
    [
      "JSON",
      NodeTelemetry.layer({ ...config, telemetry: { ...config.telemetry, otlp: Option.none() } }, { version: "1" })
    ],
    [
      "pretty",
      NodeTelemetry.layer(
        { ...config, telemetry: { ...config.telemetry, otlp: Option.none(), logFormat: Option.some("pretty") } },
        { version: "1" }
      )
    ],
    ["the default logger", Logger.layer([Logger.defaultLogger])],
    ["logfmt", Logger.layer([Logger.consoleLogFmt])],
    ["structured", Logger.layer([Logger.consoleStructured])]
  ]
  it.effect.each(loggers)("%s", ([, layer]) =>
    Effect.gen(function*() {
      const all = Layer.merge(layer, Layer.succeed(References.MinimumLogLevel, "All"))
      const lines = yield* printed(Effect.provide(careless, all))
      expect(lines).toContain("the configuration is")
      expect(lines).toContain("https://api.example")
      expect(leaks(lines)).toEqual([])
    }))
})

describe("telemetry has no secret", () => {
  it.live("neither spans nor logs that a collector gets; the header is in the request, where it belongs", () =>
    Effect.gen(function*() {
      const bodies: Array<string> = []
      const keys: Array<unknown> = []
      const server = createServer((request, response) => {
        keys.push(request.headers["x-key"])
        request.on("data", (chunk: Buffer) => bodies.push(chunk.toString()))
        request.on("end", () => response.end())
      })
      const url = yield* Effect.callback<string>((resume) => {
        server.listen(0, "127.0.0.1", () => {
          const address = server.address()
          resume(Effect.succeed(`http://127.0.0.1:${typeof address === "object" ? address?.port : ""}`))
        })
      })
      yield* Effect.addFinalizer(() => Effect.sync(() => server.close()))
      const exporting = Result.getOrThrow(parse({ OTEL_EXPORTER_OTLP_ENDPOINT: url }))
      const lines = yield* printed(Effect.provide(careless, NodeTelemetry.layer(exporting, { version: "1" })))
      expect(keys).toEqual([header, header, header])
      expect(bodies.join()).toContain("careless")
      expect(bodies.join()).toContain("the configuration is")
      expect(leaks(bodies.join())).toEqual([])
      expect(leaks(lines)).toEqual([])
    }).pipe(Effect.scoped))

  it.live("nor what is said of a collector that is not there", () =>
    Effect.gen(function*() {
      const lines = yield* printed(
        Effect.provide(Effect.logInfo("something to send"), NodeTelemetry.layer(config, { version: "1" }))
      )
      expect(lines).toContain("Telemetry does not arrive")
      expect(leaks(lines)).toEqual([])
    }))
})

describe("nothing that is printed in the end has a secret", () => {
  it("the configuration, in any way", () => {
    expect(leaks(
      inspect(config, { depth: null, showHidden: true }),
      JSON.stringify(config),
      JSON.stringify(Object.entries(config)),
      format("%o %j %s", config, config, config.apiKey),
      String(config.apiKey)
    )).toEqual([])
  })

  it("errors and their causes", () => {
    const error = fromReason(
      ServiceErrorReason.SecretsFailed({ why: "401" }),
      new Error("request failed", { cause: config })
    )
    expect(leaks(
      explain(error),
      explain(Cause.die(config)),
      inspect(error, { depth: null }),
      JSON.stringify(error),
      Cause.pretty(Cause.fail(error)),
      String(error.stack)
    )).toEqual([])
  })

  it("faults, where secrets themselves are faulty", () => {
    const failed = parse({ SERVICE_API_KEY: `${apiKey}\n`, OTEL_EXPORTER_OTLP_HEADERS: `x=${header}\u0001` })
    if (Result.isSuccess(failed)) throw new Error("it has faults")
    expect(failed.failure.message).toContain("SERVICE_API_KEY")
    expect(failed.failure.message).toContain("OTEL_EXPORTER_OTLP_HEADERS")
    expect(leaks(failed.failure.message)).toEqual([])
  })

  it("the plan", () => {
    const plan = ServicePlan.make({
      name: "notes",
      version: "1.0.0",
      prefix: "SERVICE",
      resources: [],
      parts: [],
      startWithin: config.stopBudget,
      maxExtension: config.drainDelay,
      exitCodes: ExitCode.service
    }, config)
    expect(leaks(...ServiceConfig.planFormats.map((as) => ServicePlan.render(plan, as)))).toEqual([])
  })
})
