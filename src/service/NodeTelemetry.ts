/**
 * Logs, traces and metrics of a service: lines on stdout, and an OpenTelemetry collector when there is one.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as References from "effect/References"
import * as ProcessMetrics from "./internal/NodeProcessMetrics.ts"
import { flushWithin, type ServiceConfig, type Telemetry } from "./ServiceConfig.ts"
import { explain } from "./ServiceError.ts"

/** A value that cannot be written as JSON, a getter that throws say, costs the line its message, not the service its life. */
const jsonLogger = Logger.withConsoleLog(Logger.make<unknown, string>((options) => {
  try {
    return Logger.formatJson.log(options)
  } catch (cause) {
    return JSON.stringify({
      message: `a log message could not be written: ${explain(cause)}`,
      level: options.logLevel.toUpperCase(),
      timestamp: options.date.toISOString()
    })
  }
}))

/** What Node may hold for a reader of stdout that stands still, in bytes; a line that has begun comes on top, and as much of errors. */
const mostUnread = 8 * 1024 * 1024

/** To a pipe Node writes in the background, and keeps what is not read: without a bound, until there is no memory left. */
const bounded = (logger: Logger.Logger<unknown, void>): Logger.Logger<unknown, void> => {
  let lost = 0
  return Logger.make((options) => {
    const unread = process.stdout.writableLength
    // Once it drops, it goes on until half is read: not a word about the loss for each line.
    if (unread > (lost === 0 ? mostUnread : mostUnread / 2)) {
      // A service that ends says why as an error, and one who is slow reads it yet.
      if (unread > 2 * mostUnread || LogLevel.isLessThan(options.logLevel, "Error")) {
        lost++
        return
      }
    } else if (lost > 0) {
      const message = [`${lost} log messages are lost: nobody read stdout`]
      lost = 0
      logger.log({ ...options, message, logLevel: "Warn", cause: Cause.empty })
    }
    logger.log(options)
  })
}

const consoleLogger = ({ colors, logFormat }: Telemetry): Logger.Logger<unknown, void> => {
  const terminal = process.stdout.isTTY
  const format = Option.getOrElse(logFormat, () => terminal ? "pretty" : "json")
  return bounded(format === "json" ? jsonLogger : Logger.consolePretty({ colors: colors && terminal, mode: "tty" }))
}

const ignore = (): void => {}

/**
 * Node ends a process that writes to a pipe that nobody reads any more, unless somebody listens for the error. It comes after
 * the write, maybe when all scopes are closed, so the listener stays.
 */
const surviveClosedOutput = Effect.sync(() => {
  for (const stream of [process.stdout, process.stderr]) {
    if (!stream.listeners("error").includes(ignore)) stream.on("error", ignore)
  }
})

/**
 * Loggers, the least level that is logged, and exporters of traces, metrics and logs if the configuration names a collector.
 *
 * **Details**
 *
 * - Lines go to stdout: `pretty` on a terminal, one JSON object a line otherwise, coloured on a terminal only, and not if
 *   `NO_COLOR` says so. Whoever closes stdout loses the lines, nothing else. Of one who stands still 8 MiB wait, and 8
 *   of errors; what comes on top is lost, and counted in the next line that is not.
 * - Memory, processor time and start of the process are among Effect's metrics, under the names that Prometheus has for them.
 * - A collector that cannot be reached neither fails the service nor holds it up. That is said once, as a warning; while it
 *   lasts, what is collected is dropped.
 * - When the scope closes, what is left is sent within `flushWithin`.
 *
 * ```ts import.meta.vitest
 * import { NodeTelemetry, ServiceConfig } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 * import * as References from "effect/References"
 * import * as Result from "effect/Result"
 *
 * const config = Result.getOrThrow(ServiceConfig.parse({
 *   env: { SERVICE_LOG_LEVEL: "debug" },
 *   argv: [],
 *   defaults: { name: "notes" }
 * }))
 * const program = Effect.provide(
 *   Effect.service(References.MinimumLogLevel),
 *   NodeTelemetry.layer(config, { version: "1.0.0" })
 * )
 * await Effect.runPromise(program) // => "Debug"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (config: ServiceConfig, { version }: { readonly version: string }): Layer.Layer<never> => {
  const { environment, telemetry } = config
  const console = Layer.mergeAll(
    Logger.layer([consoleLogger(telemetry), Logger.tracerLogger]),
    Layer.effect(References.MinimumLogLevel, Effect.as(surviveClosedOutput, telemetry.logLevel)),
    Layer.effectDiscard(ProcessMetrics.observed)
  )
  return Option.match(telemetry.otlp, {
    onNone: () => console,
    onSome: (otlp) =>
      Effect.promise(() => import("./internal/NodeTelemetryExport.ts")).pipe(
        Effect.map((exporters) => exporters.layer(otlp, { environment, version, flushWithin: flushWithin(config) })),
        Layer.unwrap,
        Layer.provideMerge(console)
      )
  })
}
