/**
 * Answers whoever asks how the service is: `/startupz`, `/readyz`, `/livez`, and `/metrics` for Prometheus.
 *
 * The answer is 200 or 503, with a `HealthReport` as JSON. Any method will do, and every other path is answered as
 * `/readyz`: which question was answered is in the report. Nothing that comes in on this port can end the service or take
 * its file descriptors: there is a limit to the connections, and the one that has been idle for the longest time makes
 * room for the next one, so a probe is answered whatever else is open.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { Fatal } from "./Fatal.ts"
import { Health, HealthReport, type Probe } from "./Health.ts"
import * as Bind from "./internal/NodeHttpBind.ts"
import * as Connections from "./internal/NodeHttpConnections.ts"
import * as ServiceError from "./ServiceError.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Default all addresses, IPv6 and IPv4. */
  readonly host?: string | undefined
  /** The port 0 is one that is free: the listener tells which. */
  readonly port: number
  /** Default 256, but never more than an eighth of the file descriptors that the process may have. */
  readonly maxConnections?: number | undefined
  /** How long a client may take to send the head of a request. Default 5 seconds. */
  readonly headersWithin?: Duration.Input | undefined
  /** How long a connection may be idle between two requests. Default 75 seconds: more than the period of most who ask. */
  readonly idleWithin?: Duration.Input | undefined
}

/**
 * The listener. It is there for tests and messages: nobody has to use it.
 *
 * @category services
 * @since 0.1.0
 */
export class HealthListener extends Context.Service<HealthListener, {
  readonly port: number
}>()("effect-microvm-runtime/service/HealthListener") {}

/** A client that takes longer to read an answer, or to send what nobody reads, is not one of ours. */
const stalledFor = Duration.seconds(30)

/** How long the last answers may take when the listener stops. */
const lastAnswers = Duration.seconds(1)

const metrics = Effect.flatMap(
  Effect.promise(() => import("effect/observability/PrometheusMetrics")),
  (PrometheusMetrics) => PrometheusMetrics.format()
)

const encode = Schema.encodeSync(Schema.fromJsonString(HealthReport))

const probeOf: Readonly<Record<string, Probe>> = { "/startupz": "startup", "/readyz": "ready", "/livez": "live" }

/** Of a request target in any of its forms. */
const pathOf = (target = "/"): string => target.replace(/^https?:\/\/[^/]*/i, "").replace(/\/*([?#].*)?$/s, "")

interface Answer {
  readonly status: number
  readonly type: string
  readonly body: string
}

/**
 * Answers until the scope closes: then it stops accepting, and what is being answered is answered.
 *
 * It fails with `HealthBindFailed` when it cannot listen. When it cannot accept connections any more later on, it tells
 * `Fatal` so (`HealthListenerFailed`); a lack of file descriptors and clients that send garbage are no reason for that.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fn("NodeHealthListener.make")(function*(options: Options): Effect.fn.Return<
  HealthListener["Service"],
  ServiceError.ServiceError,
  Fatal | Health | Scope.Scope
> {
  const { headersWithin = "5 seconds", host, idleWithin = "75 seconds", maxConnections = 256, port } = options
  const health = yield* Health
  const fatal = yield* Fatal
  const run = Effect.runForkWith(yield* Effect.context())
  const most = Math.max(1, Math.min(maxConnections, Math.floor(Connections.maxDescriptors() / 8)))
  const millis = (input: Duration.Input) => Duration.toMillis(Duration.fromInputUnsafe(input))

  const NodeHttp = yield* Effect.promise(() => import("node:http"))
  const server = NodeHttp.createServer({
    requireHostHeader: false,
    headersTimeout: millis(headersWithin),
    requestTimeout: millis(headersWithin) + millis(stalledFor),
    connectionsCheckingInterval: Math.min(1_000, millis(headersWithin)),
    keepAliveTimeout: millis(idleWithin)
  })
  server.timeout = millis(stalledFor)
  // Requests that one connection sends at once each have a fiber.
  server.maxRequestsPerSocket = 1000
  const connections = Connections.track(server)
  server.on("connection", () => {
    if (connections.size() > most) connections.evict()
  })

  const answer = (path: string): Effect.Effect<Answer> =>
    path === "/metrics"
      ? Effect.map(metrics, (body) => ({
        status: 200,
        type: "text/plain; version=0.0.4; charset=utf-8",
        body
      }))
      : Effect.map(health.report(probeOf[path] ?? "ready"), (report) => ({
        status: report.ok ? 200 : 503,
        type: "application/json",
        body: `${encode(report)}\n`
      }))

  server.on("request", (request, response) => {
    run(
      Effect.catchCause(answer(pathOf(request.url)), (cause) =>
        Effect.as(
          Effect.logError("Health listener: no answer", cause),
          { status: 500, type: "text/plain", body: "the service could not tell\n" }
        )).pipe(
          Effect.map(({ body, status, type }) => {
            response.writeHead(status, {
              "content-type": type,
              "content-length": Buffer.byteLength(body),
              "cache-control": "no-store"
            })
            response.end(body)
          })
        )
    )
  })

  const address = host === undefined ? `port ${port}` : `${host}:${port}`
  yield* Effect.acquireRelease(
    Effect.mapError(
      Bind.listen(server, { ...host === undefined ? {} : { host }, port }),
      (cause) =>
        ServiceError.fromReason(
          ServiceError.ServiceErrorReason.HealthBindFailed({ address, why: Bind.whyNot(cause) }),
          cause
        )
    ),
    () =>
      Effect.gen(function*() {
        // Who probes loses nothing by asking again: it is the service that has to end.
        yield* connections.refuse
        yield* connections.closeIdle(Duration.zero)
        const ended = yield* Effect.timeoutOption(connections.ended, lastAnswers)
        if (Option.isNone(ended)) connections.destroy()
      }),
    { interruptible: true }
  )
  yield* Bind.watchAccept(
    server,
    "Health listener",
    (cause) =>
      fatal.report(
        ServiceError.fromReason(ServiceError.ServiceErrorReason.HealthListenerFailed({ why: cause.message }), cause)
      )
  )

  const bound = server.address()
  const listening = bound === null || typeof bound === "string" ? port : bound.port
  yield* Effect.logDebug(`Health listener on port ${listening}`)
  return { port: listening }
})

/**
 * The listener as a layer.
 *
 * ```ts import.meta.vitest
 * import { Fatal, Health, NodeHealthListener } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const ask = Effect.gen(function*() {
 *   const { port } = yield* NodeHealthListener.HealthListener
 *   const answer = yield* Effect.promise(() => fetch(`http://127.0.0.1:${port}/readyz`))
 *   return [answer.status, yield* Effect.promise(() => answer.json())]
 * })
 * const listener = NodeHealthListener.layer({ host: "127.0.0.1", port: 0 }).pipe(
 *   Layer.provide([Health.layer, Layer.succeed(Fatal.Fatal, { report: Effect.die })])
 * )
 * const result = await Effect.runPromise(Effect.provide(ask, listener))
 * result // => [503, { ok: false, probe: "ready", state: "starting", checks: [] }]
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options
): Layer.Layer<HealthListener, ServiceError.ServiceError, Fatal | Health> => Layer.effect(HealthListener, make(options))
