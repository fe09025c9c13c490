/**
 * The HTTP server of a service: it stops without failing a request, as soon as its last answer is sent.
 *
 * When its scope closes it stops accepting connections, closes those that are idle, says `Connection: close` in every
 * answer, and waits for requests that are in flight, however slowly they stream. A client that was busy a moment ago gets
 * 20 milliseconds for a request that is already on its way. Sockets that were upgraded are told to close and get a short
 * grace; so do streams that would go on for ever, as server-sent events do: they are ended in order, and their clients
 * connect again, to somebody else. What still hangs when the time is over is cut.
 *
 * In a service it says `Connection: close` from the moment at which the service drains, so that who keeps connections open
 * goes elsewhere before they are closed. Without a drain delay, connections that the system has accepted and not handed
 * over yet are reset: no server can help that alone.
 *
 * @since 0.1.0
 */
import type * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type { HttpMiddleware } from "effect/http/HttpMiddleware"
import type * as HttpServer from "effect/http/HttpServer"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import type { HttpServerResponse } from "effect/http/HttpServerResponse"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as NetAddress from "effect/net/NetAddress"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import type * as NodeHttp from "node:http"
import type { Duplex } from "node:stream"
import * as Printable from "../lifecycle/Printable.ts"
import { Fatal } from "./Fatal.ts"
import { Health } from "./Health.ts"
import * as Bind from "./internal/NodeHttpBind.ts"
import * as Connections from "./internal/NodeHttpConnections.ts"
import * as OwnMetrics from "./internal/ownMetrics.ts"
import { ListenAddress } from "./ListenAddress.ts"
import * as ServiceError from "./ServiceError.ts"

/**
 * The listener beside its `HttpServer`.
 *
 * @category services
 * @since 0.1.0
 */
export class HttpListener extends Context.Service<HttpListener, {
  /**
   * Stops as the end of the scope does. All who stop it share one stop. To interrupt the first one who does is to give up:
   * everything is cut then.
   */
  readonly stop: Effect.Effect<void>
  /**
   * Waits until nobody is accepted any more: for a handler that waits for news, or streams for as long as it can. Who is
   * answered then and asks again asks somebody else; while the service only drains, it would be us again, at once.
   */
  readonly awaitStopping: Effect.Effect<void>
}>()("effect-microvm-runtime/service/HttpListener") {}

/**
 * How an HTTP server is run.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Of the part, for messages. Default `http`. */
  readonly name?: string | undefined
  /** How long requests in flight may take when the server stops. Default 20 seconds. */
  readonly inFlightWithin?: Duration.Input | undefined
  /**
   * How long an upgraded connection, a stream that would go on for ever, or a connection with half of a request may take
   * when the server stops. Default 1 second.
   */
  readonly upgradedWithin?: Duration.Input | undefined
  /**
   * How long a connection may be idle between two requests. Longer than the idle time-out of the balancer in front,
   * otherwise requests fail now and then. Default 75 seconds.
   */
  readonly idleWithin?: Duration.Input | undefined
  /** Default: three quarters of the file descriptors that the process may have, so that probes are answered in any case. */
  readonly maxConnections?: number | undefined
  /** Further options of Node's server: the time and the size that requests may have. */
  readonly server?: NodeHttp.ServerOptions | undefined
  /**
   * Which responses are streams that would go on for ever, so that a stop ends them in order and does not wait for them. Default:
   * `GET` answered with `text/event-stream`, whose clients connect again by themselves. It is asked of streams only.
   */
  readonly isEndless?: ((request: HttpServerRequest, response: HttpServerResponse) => boolean) | undefined
  /** Options of the WebSocket server: the size of messages, compression. */
  readonly websocket?: NodeHttpServer.Options["websocket"]
}

const engine = Effect.promise(() => import("./internal/NodeHttpEngine.ts"))

/** For a request that is on its way, of a client that was busy a moment ago. */
const nextRequest = Duration.millis(20)

/** When the time is over: for handlers that were interrupted to say so (503). */
const lastWords = Duration.millis(100)

/** What does not end by itself: an upgraded connection, or one with a stream that is endless. */
interface Endless {
  readonly socket: Duplex
  /** Tells it to end; false as long as it is a request that will be answered. */
  readonly tell: () => boolean
}

/** What `EventSource` asks for. Who asks by `POST` gets one answer piece by piece as a rule, and would not ask again. */
const isEventSource = (request: HttpServerRequest, response: HttpServerResponse): boolean =>
  request.method === "GET" && /^text\/event-stream\b/i.test(response.headers["content-type"] ?? "")

const written = (socket: Duplex): number => "bytesWritten" in socket ? Number(socket.bytesWritten) : 0

/** Interrupts handlers, on its own: one that cannot be interrupted does not hold who asks. */
const interruptAll = (scope: Scope.Closeable): Effect.Effect<Fiber.Fiber<void>> =>
  Effect.forkDetach(Scope.close(scope, Exit.void), { startImmediately: true })

type App = Effect.Effect<HttpServerResponse, unknown, HttpServerRequest | Scope.Scope>

const applied =
  (middleware: HttpMiddleware): HttpMiddleware.Applied<App, unknown, HttpServerRequest | Scope.Scope> => (self) =>
    middleware(self)

/** `GET /slow, POST /upload and 3 more` */
const tellAll = (inFlight: ReadonlyArray<Connections.InFlight>): string => {
  const some = inFlight.slice(0, 5).map(({ method, path }) => `${method} ${Printable.onOneLine(path.slice(0, 100))}`)
    .join(", ")
  return inFlight.length > 5 ? `${some} and ${inFlight.length - 5} more` : some
}

const failed = (name: string, cause: unknown): ServiceError.ServiceError =>
  ServiceError.fromReason(
    ServiceError.ServiceErrorReason.RunFailed({ part: name, why: Bind.whyNot(cause) }),
    cause
  )

/**
 * Listens until the scope closes. Until something is served, requests are answered with 503.
 *
 * It fails with `RunFailed` when the port is taken, or cannot be used for another reason; when it cannot accept
 * connections any more later on, it tells `Fatal` so.
 *
 * **Gotchas**
 *
 * - A request that waits for long holds the stop for as long as it may take: let it end with `HttpListener.awaitStopping`.
 * - Handlers that cannot be interrupted go on after they were cut, without a connection. Under a bare `HttpServer.serve`
 *   without middleware every handler is like that; `HttpRouter.serve` is not.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fn("NodeHttpListener.make")(function*(options: Options = {}): Effect.fn.Return<
  Context.Context<HttpListener | HttpServer.HttpServer>,
  ServiceError.ServiceError,
  Fatal | ListenAddress | Scope.Scope
> {
  const {
    idleWithin = "75 seconds",
    inFlightWithin = "20 seconds",
    isEndless = isEventSource,
    name = "http",
    upgradedWithin = "1 second"
  } = options
  const where = yield* ListenAddress
  const fatal = yield* Fatal
  const { endsWith, HttpServer, HttpServerRequest, NodeHttp, NodeHttpServer, NodeHttpServerRequest, NodeWS } =
    yield* engine

  const server = NodeHttp.createServer({
    keepAliveTimeout: Duration.toMillis(Duration.fromInputUnsafe(idleWithin)),
    ...options.server
  })
  const connections = Connections.track(server)
  const context = yield* Effect.context()
  yield* OwnMetrics.observe(OwnMetrics.inFlight(name), () => ({ value: connections.inFlight().length }))
  // By method and code: to make one for each request would take longer than to count it.
  const counters = new Map<string, ReturnType<typeof OwnMetrics.requests>>()
  server.on("request", ({ method = "" }, response) =>
    response.once("close", () => {
      const code = response.writableFinished ? `${response.statusCode}` : "aborted"
      let counter = counters.get(method + code)
      if (counter === undefined) {
        counter = OwnMetrics.requests({ server: name, method, code })
        counters.set(method + code, counter)
      }
      counter.updateUnsafe(1, context)
    }))
  // Not of the scope that is closed: handlers go on while the server stops.
  const requests = Scope.makeUnsafe("parallel")
  const endless = new Set<Endless>()
  const refuses = Latch.makeUnsafe()
  let stopping = false

  const closeEndless = Effect.gen(function*() {
    const told = new Set<Endless>()
    while (endless.size > 0) {
      for (const one of endless) {
        if (told.has(one)) one.socket.destroy()
        else if (one.tell()) told.add(one)
      }
      yield* Effect.timeoutOption(connections.ended, upgradedWithin)
    }
  })

  const wait = Effect.gen(function*() {
    yield* Effect.timeoutOption(connections.ended, upgradedWithin)
    connections.closeUnfinished()
    yield* connections.ended
    // All answers are sent; what handlers do after that, they do while what they use is still there.
    yield* Fiber.join(yield* interruptAll(requests))
  })

  const drain = Effect.gen(function*() {
    yield* connections.refuse
    refuses.openUnsafe()
    yield* Effect.forkChild(closeEndless)
    yield* connections.closeIdle(nextRequest)
    const left = connections.inFlight()
    yield* left.length === 0 ? wait : Effect.withSpan(wait, `waiting for ${tellAll(left)}`)
  })

  const cut = Effect.suspend(() => {
    const left = connections.inFlight()
    const close = Effect.gen(function*() {
      if (left.length > 0) yield* Effect.logWarning(`${name}: requests cut while stopping: ${tellAll(left)}`)
      yield* interruptAll(requests)
      yield* Effect.timeoutOption(connections.ended, lastWords)
      connections.destroy()
    })
    return left.length === 0 ? close : Effect.withSpan(close, `cutting ${tellAll(left)}`)
  })

  const stopped = Latch.makeUnsafe()
  const stop = Effect.uninterruptible(Effect.gen(function*() {
    if (stopping) return yield* stopped.await
    stopping = true
    const bounded = Effect.timeoutOption(drain, inFlightWithin)
    // Who gives the stop up interrupts it; but who stops because of an interruption has only begun.
    const begun = yield* Effect.exit(Effect.interruptible(Effect.void))
    const exit = yield* Effect.exit(Exit.isSuccess(begun) ? Effect.interruptible(bounded) : bounded)
    if (Exit.isFailure(exit) || Option.isNone(exit.value)) yield* cut
    stopped.openUnsafe()
  }))

  const notYet = (_: NodeHttp.IncomingMessage, response: NodeHttp.ServerResponse) => {
    response.writeHead(503, { connection: "close", "retry-after": "1" }).end()
  }
  server.on("request", notYet)
  const most = options.maxConnections ?? Math.floor(Connections.maxDescriptors() * 0.75)
  if (Number.isFinite(most)) server.maxConnections = Math.max(1, most)

  yield* Effect.acquireRelease(
    Effect.mapError(Bind.listen(server, where), (cause) => failed(name, cause)),
    () => stop,
    { interruptible: true }
  )
  yield* Bind.watchAccept(server, name, (cause) => fatal.report(failed(name, cause)))

  const health = yield* Effect.serviceOption(Health)
  if (Option.isSome(health)) {
    yield* Effect.forkScoped(Effect.andThen(health.value.awaitDraining, Effect.sync(connections.lastAnswers)))
  }

  const bound = server.address()
  if (bound === null) return yield* failed(name, "the socket has no address")
  const address = typeof bound === "string"
    ? NetAddress.unixPathAddress(bound)
    : yield* Effect.mapError(
      Effect.fromResult(NetAddress.inetAddressFromIpString(bound.address, bound.port)),
      (cause) => failed(name, cause)
    )

  const told = typeof bound === "string"
    ? bound
    : `http://${bound.family === "IPv6" ? `[${bound.address}]` : bound.address}:${bound.port}`
  yield* Effect.logInfo(`${name} listens on ${told}`)

  const webSockets = Effect.succeed(
    new NodeWS.WebSocketServer({ ...options.websocket, noServer: true, clientTracking: false })
  )

  const withEnd = (response: HttpServerResponse): Effect.Effect<HttpServerResponse, never, HttpServerRequest> => {
    const { body } = response
    if (body._tag !== "Stream") return Effect.succeed(response)
    return Effect.map(HttpServerRequest, (request) => {
      if (!isEndless(request, response)) return response
      const answer = NodeHttpServerRequest.toServerResponse(request)
      // `refuses` has told its stream.
      const one: Endless = { socket: answer.req.socket, tell: () => true }
      // A handler that cannot be interrupted may answer a client that has gone, of whom nothing more is heard.
      if (!answer.closed) {
        endless.add(one)
        answer.once("close", () => endless.delete(one))
      }
      return endsWith(response, body, refuses.await)
    })
  }

  const httpServer = HttpServer.make({
    address,
    serve: Effect.fnUntraced(function*(routes: App, middleware?: HttpMiddleware) {
      const httpApp = Effect.flatMap(routes, withEnd)
      const handled = { scope: requests, middleware: middleware && applied(middleware) }
      const handler = yield* NodeHttpServer.makeHandler(httpApp, handled)
      // By what `HttpServerRequest` calls its source: what runs the handler.
      const fibers = new WeakMap<object, Fiber.Fiber<unknown, unknown>>()
      const upgraded = Effect.withFiber<HttpServerResponse, unknown, HttpServerRequest | Scope.Scope>((fiber) =>
        Effect.flatMap(HttpServerRequest, ({ source }) => {
          fibers.set(source, fiber)
          return httpApp
        })
      )
      const upgrade = yield* NodeHttpServer.makeUpgradeHandler(webSockets, upgraded, handled)

      const onUpgrade = (request: NodeHttp.IncomingMessage, socket: Duplex, head: Buffer) => {
        if (stopping) {
          socket.end("HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
          return
        }
        const before = written(socket)
        connections.upgraded(socket)
        const one: Endless = {
          socket,
          tell: () => {
            const isDone = written(socket) > before
            if (isDone) fibers.get(request)?.interruptUnsafe()
            return isDone
          }
        }
        endless.add(one)
        socket.once("close", () => endless.delete(one))
        upgrade(request, socket, head)
      }

      yield* Effect.acquireRelease(
        Effect.sync(() => {
          server.off("request", notYet)
          server.on("request", handler)
          server.on("upgrade", onUpgrade)
        }),
        () => stop
      )
    })
  })
  return Context.add(
    Context.make(HttpListener, { stop, awaitStopping: refuses.await }),
    HttpServer.HttpServer,
    httpServer
  )
})

/**
 * The listener as a layer, with all that `HttpRouter` and file responses need besides.
 *
 * ```ts import.meta.vitest
 * import { Fatal, ListenAddress, NodeHttpListener } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 * import * as HttpRouter from "effect/http/HttpRouter"
 * import * as HttpServerResponse from "effect/http/HttpServerResponse"
 * import * as Layer from "effect/Layer"
 *
 * const Routes = HttpRouter.add("GET", "/hello", HttpServerResponse.text("hello"))
 * const Server = HttpRouter.serve(Routes, { disableListenLog: true }).pipe(
 *   Layer.provide(NodeHttpListener.layer()),
 *   Layer.provide(Layer.succeed(ListenAddress.ListenAddress, { host: "127.0.0.1", port: 0 })),
 *   Layer.provide(Layer.succeed(Fatal.Fatal, { report: Effect.die }))
 * )
 * await Effect.runPromise(Effect.scoped(Effect.as(Layer.build(Server), "served and stopped"))) // => "served and stopped"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options?: Options): Layer.Layer<
  HttpListener | HttpServer.HttpServer | Layer.Success<typeof NodeHttpServer.layerHttpServices>,
  ServiceError.ServiceError,
  Fatal | ListenAddress
> =>
  Layer.merge(
    Layer.effectContext(make(options)),
    Layer.unwrap(Effect.map(engine, ({ NodeHttpServer }) => NodeHttpServer.layerHttpServices))
  )
