/**
 * The part of a service that serves HTTP.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { ListenAddress } from "./ListenAddress.ts"
import * as NodeHttpListener from "./NodeHttpListener.ts"
import * as Part from "./Part.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface Options<Deps extends ReadonlyArray<Part.Any>>
  extends Omit<Part.PartOptions<Deps>, "failure">, Omit<NodeHttpListener.Options, "name">
{
  /** As that of other parts, but 4 by default: what requests in flight take is most of a stop as a rule. */
  readonly stopWeight?: number | undefined
  /** Where it listens. Default where the configuration of the service says. */
  readonly listen?: ListenAddress["Service"] | undefined
  /**
   * Log each request. Default false: then only failures of routes are logged (5xx; at the level Debug, those of clients). A
   * `SchemaError` or `NoSuchElementError`, which Effect answers with 400 or 404, may be either: one a minute is a warning.
   */
  readonly logRequests?: boolean | undefined
}

/**
 * Scopes of layers that were merged close in fibers of their own, which an interruption does not reach. This one closes
 * first and in the fiber of who stops the part, so that the listener knows when it is given up.
 */
const stopFirst = Layer.effectDiscard(
  Effect.flatMap(NodeHttpListener.HttpListener, ({ stop }) => Effect.addFinalizer(() => stop))
)

/**
 * Serves routes of `HttpRouter` where the configuration of the service says (`…_RUNTIME_IP`, `…_RUNTIME_PORT`), or on the
 * socket that systemd passed. How it stops is told in `NodeHttpListener`; requests in flight may use its whole share of the
 * stop budget, unless `inFlightWithin` says less.
 *
 * A port that is taken ends the service with 1 (`RunFailed`); routes that cannot be built end it with 151 (`InitFailed`).
 *
 * ```ts import.meta.vitest
 * import { NodeHttpPart } from "effect-microvm-runtime/service"
 * import * as HttpRouter from "effect/http/HttpRouter"
 * import * as HttpServerResponse from "effect/http/HttpServerResponse"
 *
 * const Routes = HttpRouter.add("GET", "/hello", HttpServerResponse.text("hello"))
 * const api = NodeHttpPart.make("api", Routes, { stopWithin: "10 seconds" })
 * api.name // => "api"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <A, E, R, const Deps extends ReadonlyArray<Part.Any> = readonly []>(
  name: string,
  routes: Layer.Layer<A, E, R>,
  options: Options<Deps> = {}
) => {
  const {
    dependsOn,
    inFlightWithin = Duration.infinity,
    listen,
    logRequests = false,
    startWithin,
    stopWeight = 4,
    stopWithin
  } = options
  const configured = NodeHttpListener.layer({ ...options, name, inFlightWithin })
  const listener: typeof configured = listen === undefined
    ? configured
    : Layer.provide(configured, Layer.succeed(ListenAddress, listen))
  const server = Layer.unwrap(Effect.map(
    Effect.promise(() => import("./internal/NodeHttpEngine.ts")),
    ({ HttpRouter, makeFailuresTold }) =>
      HttpRouter.serve(routes, {
        disableLogger: !logRequests,
        disableListenLog: true,
        ...logRequests ? {} : { middleware: makeFailuresTold() }
      })
  ))
  return Part.make(
    name,
    Layer.provide(Layer.provideMerge(stopFirst, server), listener),
    { dependsOn, startWithin, stopWeight, stopWithin, listens: listen === undefined }
  )
}
