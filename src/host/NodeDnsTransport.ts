/**
 * The sockets under `DnsRelay`, on Node.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import { hasProperty } from "effect/Predicate"
import type * as Scope from "effect/Scope"
import * as NodeDgram from "node:dgram"
import * as NodeFs from "node:fs/promises"
import * as NodeNet from "node:net"
import { DnsTransport, type Endpoint, ExchangeFailed, type ListenOptions } from "./DnsTransport.ts"
import * as HostError from "./HostError.ts"
import * as Frames from "./internal/dnsFrames.ts"
import { serversOf } from "./internal/NodeResolvConf.ts"

const configuration = "/etc/resolv.conf"

const codeOf = (cause: unknown): unknown => hasProperty(cause, "code") ? cause.code : undefined

const isMissing = ({ reason }: HostError.HostError): boolean =>
  reason._tag === "IoFailed" && codeOf(reason.cause) === "ENOENT"

const servers = Effect.tryPromise({
  try: () => NodeFs.readFile(configuration, "utf8"),
  catch: (cause) =>
    HostError.make(new HostError.IoFailed({ operation: "reading the name servers", path: configuration, cause }))
}).pipe(
  Effect.catchIf(isMissing, () => Effect.succeed("")),
  Effect.map(serversOf)
)

const datagramSocket = ({ address }: Endpoint): NodeDgram.Socket =>
  NodeDgram.createSocket({ type: NodeNet.isIPv6(address) ? "udp6" : "udp4" })

/** Without the ways of a Buffer, whose slices are no copies. */
const bytesOf = (buffer: Uint8Array): Uint8Array => new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength)

type Exchange = (
  server: Endpoint,
  message: Uint8Array,
  isAnswer: (reply: Uint8Array) => boolean
) => Effect.Effect<Uint8Array, ExchangeFailed>

/** A socket of its own for each question: the kernel gives each a port that nobody can know beforehand. */
const byUdp: Exchange = (server, message, isAnswer) =>
  Effect.acquireUseRelease(
    Effect.sync(() => datagramSocket(server)),
    (socket) =>
      Effect.callback((resume) => {
        const fail = (cause: unknown) => resume(Effect.fail(new ExchangeFailed({ server, cause })))
        socket.on("error", fail)
        socket.on("message", (reply) => {
          if (isAnswer(bytesOf(reply))) resume(Effect.succeed(bytesOf(reply)))
        })
        // Once it is connected, the kernel passes nothing on that comes from anybody else.
        socket.once("connect", () => {
          socket.send(message, (cause) => {
            if (cause !== null) fail(cause)
          })
        })
        socket.connect(server.port, server.address)
      }),
    (socket) => Effect.sync(() => socket.close())
  )

const byTcp: Exchange = (server, message, isAnswer) =>
  Effect.acquireUseRelease(
    Effect.sync(() => NodeNet.createConnection({ host: server.address, port: server.port })),
    (socket) =>
      Effect.callback((resume) => {
        const fail = (cause: unknown) => resume(Effect.fail(new ExchangeFailed({ server, cause })))
        const frames = Frames.make(65535)
        socket.on("error", fail)
        socket.on("close", () => fail("it hung up"))
        socket.on("data", (chunk) => {
          const reply = frames.push(chunk)?.find(isAnswer)
          if (reply !== undefined) resume(Effect.succeed(reply))
        })
        socket.write(Frames.frame(message))
      }),
    (socket) => Effect.sync(() => socket.destroy())
  )

/** Waits until it listens there, or fails. Later errors are those of a single message, and end nothing. */
const bound = (
  at: Endpoint,
  socket: NodeDgram.Socket | NodeNet.Server,
  bind: () => void
): Effect.Effect<void, HostError.HostError> =>
  Effect.callback((resume) => {
    socket.on("error", (cause) => {
      const path = `${at.address} port ${at.port}`
      resume(HostError.fail(
        codeOf(cause) === "EADDRINUSE"
          ? new HostError.Conflict({
            what: `listening for questions on ${path}`,
            with: "a program that does so already, on that address or on all",
            remedy: `find it by "ss -lntup sport = :${at.port}", and have it listen on addresses of its own`
          })
          : new HostError.IoFailed({ operation: "listening for questions", path, cause })
      ))
    })
    socket.once("listening", () => resume(Effect.void))
    bind()
  })

/** Answers that cannot be sent wait in the socket, up to so many bytes. Further ones are lost, as datagrams are. */
const maxWaiting = 256 * 1024

const listenUdp = Effect.fnUntraced(function*(
  at: Endpoint,
  { clients, handle }: ListenOptions
): Effect.fn.Return<void, HostError.HostError, Scope.Scope> {
  const socket = yield* Effect.acquireRelease(
    Effect.sync(() => datagramSocket(at)),
    (made) => Effect.sync(() => made.close())
  )
  // Ends before the socket does: nobody sends by one that is closed.
  const run = yield* FiberSet.makeRuntime()
  yield* bound(at, socket, () => socket.bind({ address: at.address, port: at.port, exclusive: true }))
  socket.on("message", (message, from) => {
    if (clients?.includes(from.address) === false) return
    run(Effect.map(handle(bytesOf(message)), (reply) => {
      // The callback keeps an error of this one from being one of the socket.
      if (reply !== undefined && socket.getSendQueueSize() < maxWaiting) {
        socket.send(reply, from.port, from.address, () => {})
      }
    }))
  })
})

/** One message after the other. */
const converse = Effect.fnUntraced(function*(socket: NodeNet.Socket, { handle, maxMessage }: ListenOptions) {
  const frames = Frames.make(maxMessage)
  const chunks: AsyncIterator<Uint8Array> = socket.iterator({ destroyOnReturn: false })
  for (;;) {
    const next = yield* Effect.tryPromise(() => chunks.next())
    const messages = next.done === true ? undefined : frames.push(next.value)
    if (messages === undefined) return
    for (const message of messages) {
      const reply = yield* handle(message)
      if (reply === undefined) return
      yield* Effect.callback<void>((resume) => {
        // An error closes it, which the next read tells.
        socket.write(Frames.frame(reply), () => resume(Effect.void))
      })
    }
  }
})

const listenTcp = Effect.fnUntraced(function*(
  at: Endpoint,
  options: ListenOptions
): Effect.fn.Return<void, HostError.HostError, Scope.Scope> {
  const server = yield* Effect.acquireRelease(
    Effect.sync(() => NodeNet.createServer({ allowHalfOpen: true, noDelay: true })),
    (made) => Effect.sync(() => made.close())
  )
  const run = yield* FiberSet.makeRuntime()
  server.maxConnections = options.maxConnections
  server.on("connection", (socket) => {
    if (options.clients?.includes(socket.remoteAddress ?? "") === false) {
      socket.destroy()
      return
    }
    socket.on("error", () => {})
    socket.setTimeout(Duration.toMillis(options.idle), () => socket.destroy())
    run(Effect.onExit(Effect.ignore(converse(socket, options)), (exit) =>
      // What was written goes out first, unless we end.
      Effect.sync(() => Exit.isSuccess(exit) ? socket.destroySoon() : socket.destroy())))
  })
  yield* bound(at, server, () => server.listen({ host: at.address, port: at.port, exclusive: true }))
})

/**
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<DnsTransport> = Layer.succeed(DnsTransport, {
  servers,
  exchange: (protocol, ...request) => protocol === "udp" ? byUdp(...request) : byTcp(...request),
  listen: (protocol, at, options) => protocol === "udp" ? listenUdp(at, options) : listenTcp(at, options)
})
