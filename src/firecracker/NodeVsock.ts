/**
 * The unix sockets behind `Vsock`, on Node.
 *
 * @since 0.1.0
 */
import * as NodeSocket from "@effect/platform-node/NodeSocket"
import * as NodeSocketServer from "@effect/platform-node/NodeSocketServer"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { hasProperty } from "effect/Predicate"
import type * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"
import * as NodeFs from "node:fs"
import * as Net from "node:net"
import * as NodeSocketPath from "./internal/NodeSocketPath.ts"
import { ListenFailed, type SocketFile, Vsock } from "./Vsock.ts"

/** What was written goes out first, unless nobody takes it: then the connection is not waited for. */
const linger = 2000

const close = (socket: Net.Socket): void => {
  if (socket.destroyed) return
  socket.destroySoon()
  // Not the timeout of the socket: a guest that goes on sending would begin that anew.
  const timer = setTimeout(() => socket.destroy(), linger)
  socket.once("close", () => clearTimeout(timer))
}

const codeOf = (cause: unknown): unknown => hasProperty(cause, "code") ? cause.code : undefined

const whyOf = (cause: unknown): string => cause instanceof Error ? cause.message : String(cause)

const connectTo = (path: string): Effect.Effect<Net.Socket, Socket.SocketError, Scope.Scope> =>
  Effect.suspend(() => {
    let socket: Net.Socket | undefined
    const connected = Effect.callback<Net.Socket, Socket.SocketError>((resume) => {
      const failed = (cause: unknown) =>
        resume(Effect.fail(new Socket.SocketError({ reason: new Socket.SocketOpenError({ kind: "Unknown", cause }) })))
      try {
        const alias = NodeSocketPath.open(path)
        // What the guest has sent is still to be read when it has ended, and the other way round.
        const made = Net.createConnection({ path: alias.path, allowHalfOpen: true })
        socket = made
        made.once("close", alias.close)
        // Stays for what comes late.
        made.on("error", failed)
        made.once("connect", () => {
          alias.close()
          resume(Effect.succeed(made))
        })
      } catch (cause) {
        failed(cause)
      }
    })
    return Effect.andThen(Effect.addFinalizer(() => Effect.sync(() => socket && close(socket))), connected)
  })

/** Is there a socket that nobody listens on any more? */
const isLeftOver = (path: string): Effect.Effect<boolean> =>
  Effect.suspend(() =>
    NodeFs.lstatSync(path, { throwIfNoEntry: false })?.isSocket() === true
      ? connectTo(path).pipe(
        Effect.scoped,
        Effect.as(false),
        Effect.catch(({ reason }) => Effect.succeed("cause" in reason && codeOf(reason.cause) === "ECONNREFUSED"))
      )
      : Effect.succeed(false)
  )

/**
 * Whoever owns the directory, a user in a jail say, may put something else in the place of the file meanwhile; so it is
 * opened as what it is and changed by that.
 */
const restrict = (path: string, { mode, owner }: SocketFile): void => {
  const fd = NodeFs.openSync(path, NodeSocketPath.pathOnly | NodeFs.constants.O_NOFOLLOW)
  try {
    if (!NodeFs.fstatSync(fd).isSocket()) throw new Error(`${path} is not the socket that was made`)
    NodeFs.chmodSync(`/proc/self/fd/${fd}`, mode)
    if (owner !== undefined) NodeFs.chownSync(`/proc/self/fd/${fd}`, owner.uid, owner.gid)
  } finally {
    NodeFs.closeSync(fd)
  }
}

const listenAt: Vsock["Service"]["listenAt"] = Effect.fnUntraced(function*(path, file) {
  const attempt = <A>(run: () => A) =>
    Effect.try({ try: run, catch: (cause) => new ListenFailed({ why: whyOf(cause), cause }) })
  // The file is removed under the same name when the server closes, so the alias stays until then.
  const alias = yield* Effect.acquireRelease(
    attempt(() => NodeSocketPath.open(path)),
    (opened) => Effect.sync(opened.close)
  )
  if (yield* isLeftOver(alias.path)) yield* attempt(() => NodeFs.rmSync(alias.path))
  const server = yield* NodeSocketServer.make({ path: alias.path, allowHalfOpen: true }).pipe(
    Effect.mapError(({ reason: { cause } }) => new ListenFailed({ why: whyOf(cause), cause }))
  )
  yield* attempt(() => restrict(alias.path, file))
  // A server waits for its connections to end, and one that nobody reads from does not.
  const connections = new Set<Net.Socket>()
  yield* Effect.addFinalizer(() => Effect.sync(() => connections.forEach((connection) => connection.destroy())))
  const owned = <A, E, R>(connection: Net.Socket, handling: Effect.Effect<A, E, R>) =>
    Effect.suspend(() => {
      connections.add(connection)
      connection.once("close", () => connections.delete(connection))
      return Effect.ensuring(handling, Effect.sync(() => close(connection)))
    })
  return {
    ...server,
    // It ends with its handler, also when that has not read from it.
    run: (handler) =>
      server.run((accepted) =>
        Effect.flatMap(
          Effect.serviceOption(NodeSocket.NetSocket),
          (connection) => Option.isSome(connection) ? owned(connection.value, handler(accepted)) : handler(accepted)
        )
      )
  }
})

/**
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Vsock> = Layer.succeed(Vsock, {
  socketAt: (path) => NodeSocket.fromDuplex(connectTo(path)),
  listenAt
})
