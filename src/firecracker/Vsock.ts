/**
 * Byte streams between the host and a guest, over Firecracker's vsock device.
 *
 * The device is a unix socket on the host. To reach a port of the guest, one connects to it and names the port; when the
 * guest reaches out to port `p` of the host, Firecracker connects to a second socket, whose path is that of the first and
 * `_p`. No identity goes with it: who may use a path is all there is, so every machine has its own. For the same reason
 * machines may all have the same CID: it never leaves the guest, so any number from 3 on will do, and none is made up here
 * from a name.
 *
 * Firecracker does not carry half-closed connections (`vsock/csm/connection.rs`). When the host says that it has no more to
 * send, the guest is told that nothing is received any more either, and what it had to say is lost; so releasing the writer
 * of a socket of this module ends nothing, and closing the scope of its reader ends the connection. That the guest has no
 * more to send is only told to the host when the guest closes. A protocol on top has to mark its ends itself.
 *
 * A guest's connections end when a snapshot of it is made. Its listeners stay.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import { hasProperty } from "effect/Predicate"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"
import type * as SocketServer from "effect/socket/SocketServer"
import * as FirecrackerError from "./FirecrackerError.ts"
import * as SocketPath from "./internal/socketPath.ts"
import * as VsockHandshake from "./internal/vsockHandshake.ts"

/**
 * What a socket that is listened on is to be like.
 *
 * @category models
 * @since 0.1.0
 */
export interface SocketFile {
  readonly mode: number
  readonly owner: { readonly uid: number; readonly gid: number } | undefined
}

/**
 * The unix sockets of this host. `NodeVsock.layer` has the real ones.
 *
 * @category services
 * @since 0.1.0
 */
export class Vsock extends Context.Service<Vsock, {
  /**
   * Each acquisition of the socket's reader connects to the path. Fails with a `SocketOpenError` whose `cause` has the
   * `code` of the system error.
   */
  readonly socketAt: (path: string) => Effect.Effect<Socket.Socket>
  /** Listens until the scope closes, then hangs up on all and removes the file. Fails with why that is not possible. */
  readonly listenAt: (
    path: string,
    file: SocketFile
  ) => Effect.Effect<SocketServer.SocketServer["Service"], ListenFailed, Scope.Scope>
}>()("effect-microvm-runtime/firecracker/Vsock") {}

/**
 * @category errors
 * @since 0.1.0
 */
export class ListenFailed extends Data.TaggedError("ListenFailed")<{
  readonly why: string
  readonly cause?: unknown
}> {
  override get message(): string {
    return this.why
  }
}

/**
 * @category options
 * @since 0.1.0
 */
export interface ConnectOptions {
  /** How long a guest may take until it listens. Default 10 seconds. */
  readonly within?: Duration.Input | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface ListenOptions {
  /** Connections beyond these are closed as they come. Default 64; a guest can have 1,023 in all. */
  readonly maxConnections?: number | undefined
  /** Of the socket's file. Default `0o600`. */
  readonly mode?: number | undefined
  /** Who owns the file: the user that Firecracker runs as, if that is not ours. It needs to be able to write to it. */
  readonly owner?: { readonly uid: number; readonly gid: number } | undefined
}

type Faults = ReadonlyArray<FirecrackerError.Fault>

const lastPort = 0xfffffffe

const portFaults = (port: number): Faults =>
  Number.isInteger(port) && port >= 0 && port <= lastPort
    ? []
    : [{ field: "port", value: port, remedy: `use a whole number from 0 to ${lastPort}` }]

const check = (faults: Faults): Effect.Effect<void, FirecrackerError.FirecrackerError> =>
  faults.length === 0 ? Effect.void : FirecrackerError.fail(new FirecrackerError.InvalidRequest({ faults }))

class DialFailed extends Data.TaggedError("DialFailed")<{
  readonly why: string
  readonly isRetryable: boolean
  readonly cause?: unknown
}> {}

/** Nobody has bound the socket yet, or more connect than Firecracker has accepted. */
const comesLater = new Set<unknown>(["ENOENT", "ECONNREFUSED", "EAGAIN"])

const openFailed = (error: Socket.SocketError): DialFailed => {
  const cause = "cause" in error.reason ? error.reason.cause : undefined
  const code = hasProperty(cause, "code") ? cause.code : undefined
  return new DialFailed({
    why: cause instanceof Error ? cause.message : error.message,
    isRetryable: comesLater.has(code),
    cause: error
  })
}

interface Connection {
  readonly reader: Socket.Reader
  readonly writer: Socket.Writer
}

/** One attempt. The connection ends with the scope. */
const dialOnce = Effect.fnUntraced(function*(
  raw: Socket.Socket,
  port: number
): Effect.fn.Return<Connection, DialFailed, Scope.Scope> {
  const pull = yield* Effect.mapError(Socket.readerBytes(raw), openFailed)
  const writer = yield* raw.writer
  const handshake = VsockHandshake.make()
  const refused = (reply: string, cause?: unknown) =>
    new DialFailed({ why: `Firecracker answered ${JSON.stringify(reply)}`, isRetryable: false, cause })
  // It hangs up without a word when nobody listens in the guest, or nobody does so yet.
  const lost = (cause: Socket.SocketError) =>
    handshake.partial() === ""
      ? new DialFailed({ why: "nobody listens on it in the guest", isRetryable: true, cause })
      : refused(handshake.partial(), cause)

  yield* Effect.mapError(writer.write(VsockHandshake.request(port)), lost)
  let rest: Array<Uint8Array> | undefined
  while (rest === undefined) {
    const chunks = yield* Effect.mapError(pull, lost)
    for (const [i, chunk] of chunks.entries()) {
      const step = handshake.push(chunk)
      if (step._tag === "Refused") return yield* refused(step.reply)
      if (step._tag === "Connected") {
        rest = [step.rest, ...chunks.slice(i + 1)].filter(({ length }) => length > 0)
        break
      }
    }
  }
  let held = rest
  return {
    reader: {
      pull: Effect.suspend(() => {
        const [first, ...others] = held
        if (first === undefined) return pull
        held = []
        return Effect.succeed([first, ...others])
      }),
      upgrade: Socket.SocketUpgradeError.unsupported
    },
    writer
  }
})

const backoff = Schedule.min([Schedule.exponential("2 millis"), Schedule.spaced("50 millis")])

/** Until the guest listens. */
const dial = Effect.fnUntraced(function*(
  path: string,
  port: number,
  { within = "10 seconds" }: ConnectOptions
): Effect.fn.Return<Connection, FirecrackerError.FirecrackerError, Scope.Scope | Vsock> {
  const raw = yield* Vsock.use(({ socketAt }) => socketAt(path))
  const outer = yield* Effect.scope
  let last: DialFailed | undefined
  const unavailable = (why: string, cause: unknown) =>
    FirecrackerError.make(new FirecrackerError.VsockUnavailable({ path, port, why, cause }))
  const attempt = Effect.flatMap(Scope.fork(outer), (scope) =>
    dialOnce(raw, port).pipe(
      Scope.provide(scope),
      Effect.onExit((exit) => Exit.isSuccess(exit) ? Effect.void : Scope.close(scope, exit))
    ))
  return yield* attempt.pipe(
    Effect.tapError((failure) =>
      Effect.sync(() => {
        last = failure
      })
    ),
    Effect.retry({ schedule: backoff, while: ({ isRetryable }) => isRetryable }),
    Effect.mapError(({ cause, why }) => unavailable(why, cause)),
    Effect.timeoutOrElse({
      duration: within,
      orElse: () => {
        const told = last === undefined ? "" : `: ${last.why}`
        return Effect.fail(
          unavailable(`no connection within ${Duration.format(Duration.fromInputUnsafe(within))}${told}`, last?.cause)
        )
      }
    })
  )
})

/** A socket that is connected, once; its connection ends with `scope`. */
const established = Effect.fnUntraced(function*({ reader, writer }: Connection, scope: Scope.Closeable) {
  let state: "new" | "read" | "over" = "new"
  yield* Scope.addFinalizer(
    scope,
    Effect.sync(() => {
      state = "over"
    })
  )
  const over = new Socket.SocketError({ reason: new Socket.SocketCloseError({ code: 1006 }) })
  const take = Effect.suspend(() => {
    if (state !== "new") return Effect.fail(over)
    state = "read"
    return Effect.succeed(reader)
  })
  const unlessOver = (write: Effect.Effect<void, Socket.SocketError>) =>
    Effect.suspend(() => state === "over" ? Effect.fail(over) : write)
  return Socket.make({
    reader: Effect.acquireRelease(take, (_, exit) => Scope.close(scope, exit)),
    writer: Effect.succeed({
      write: (chunk) => unlessOver(writer.write(chunk)),
      writeAll: (chunks) => unlessOver(writer.writeAll(chunks))
    })
  })
})

/** A socket that connects whenever its reader is acquired. */
const reconnecting = (acquire: Effect.Effect<Connection, Socket.SocketError, Scope.Scope>): Socket.Socket => {
  let current: Socket.Writer | undefined
  const isOpen = Latch.makeUnsafe(false)
  const whenOpen = (
    write: (writer: Socket.Writer) => Effect.Effect<void, Socket.SocketError>
  ): Effect.Effect<void, Socket.SocketError> =>
    Effect.suspend(() => current === undefined ? Effect.andThen(isOpen.await, whenOpen(write)) : write(current))
  return Socket.make({
    reader: Effect.gen(function*() {
      const { reader, writer } = yield* acquire
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          current = writer
          isOpen.openUnsafe()
        }),
        () =>
          Effect.sync(() => {
            current = undefined
            isOpen.closeUnsafe()
          })
      )
      return reader
    }),
    writer: Effect.succeed({
      write: (chunk) => whenOpen((writer) => writer.write(chunk)),
      writeAll: (chunks) => whenOpen((writer) => writer.writeAll(chunks))
    })
  })
}

/**
 * Connects to a port of the guest, and waits until it listens there. `path` is the `uds_path` of the device, as seen from
 * this host; it need not be there yet, and may be longer than a socket address holds.
 *
 * The socket is connected already. Its reader can be acquired once; when the reader's scope or this one closes, the
 * connection ends. Interrupt it when the machine ends meanwhile: the socket's file stays behind, so that cannot be seen
 * from here.
 *
 * Fails with `InvalidRequest`, and with `VsockUnavailable` when the port did not answer `within` the time, or at once when
 * something else than a connection was answered.
 *
 * ```ts import.meta.vitest
 * import { FirecrackerError, NodeVsock, Vsock } from "effect-microvm-runtime/firecracker"
 * import * as Effect from "effect/Effect"
 *
 * const program = Vsock.connect("/nowhere/vsock.sock", 5000, { within: "20 millis" }).pipe(
 *   Effect.scoped,
 *   Effect.catchReason("FirecrackerError", "VsockUnavailable", ({ message }) => Effect.succeed(message)),
 *   Effect.provide(NodeVsock.layer)
 * )
 * await Effect.runPromise(program) // => "vsock port 5000 at /nowhere/vsock.sock: no connection within 20ms: connect ENOENT /nowhere/vsock.sock"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const connect = Effect.fn("Vsock.connect")(function*(
  path: string,
  port: number,
  options: ConnectOptions = {}
): Effect.fn.Return<Socket.Socket, FirecrackerError.FirecrackerError, Scope.Scope | Vsock> {
  yield* check([...SocketPath.faultsOf("path", path), ...portFaults(port)])
  const scope = yield* Scope.fork(yield* Effect.scope)
  return yield* dial(path, port, options).pipe(
    Effect.flatMap((connection) => established(connection, scope)),
    Scope.provide(scope),
    Effect.onExit((exit) => Exit.isSuccess(exit) ? Effect.void : Scope.close(scope, exit))
  )
})

/**
 * A socket that connects to a port of the guest each time its reader is acquired, in the way of `connect`; what is written
 * meanwhile waits. That the guest cannot be reached is a `SocketOpenError` whose `cause` is a `FirecrackerError`.
 *
 * Fails with `InvalidRequest`.
 *
 * ```ts import.meta.vitest
 * import { NodeVsock, Vsock } from "effect-microvm-runtime/firecracker"
 * import * as Effect from "effect/Effect"
 * import * as Socket from "effect/socket/Socket"
 *
 * const program = Effect.map(Vsock.socket("/run/vm/vsock.sock", 5000), Socket.isSocket)
 * await Effect.runPromise(Effect.provide(program, NodeVsock.layer)) // => true
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const socket = Effect.fn("Vsock.socket")(function*(
  path: string,
  port: number,
  options: ConnectOptions = {}
): Effect.fn.Return<Socket.Socket, FirecrackerError.FirecrackerError, Vsock> {
  yield* check([...SocketPath.faultsOf("path", path), ...portFaults(port)])
  const sockets = yield* Vsock
  return reconnecting(
    dial(path, port, options).pipe(
      Effect.provideService(Vsock, sockets),
      Effect.mapError((cause) =>
        new Socket.SocketError({ reason: new Socket.SocketOpenError({ kind: "Unknown", cause }) })
      )
    )
  )
})

/**
 * Listens for what the guest connects to on a port of the host (CID 2), until the scope closes. `path` is the `uds_path` of
 * the device: the socket is made beside it, so the directory has to be there. Connections that come before `run` wait.
 *
 * The guest's connect fails while nobody listens, so listen before the machine starts. A socket that was left by a process
 * that is gone is replaced; one that somebody listens on is not.
 *
 * Fails with `InvalidRequest` and `VsockUnavailable`.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { NodeVsock, Vsock } from "effect-microvm-runtime/firecracker"
 * import * as Effect from "effect/Effect"
 * import * as FileSystem from "effect/FileSystem"
 *
 * const program = Effect.gen(function*() {
 *   const fs = yield* FileSystem.FileSystem
 *   const directory = yield* fs.makeTempDirectoryScoped()
 *   yield* Vsock.listen(`${directory}/vsock.sock`, 5000)
 *   return yield* fs.readDirectory(directory)
 * })
 * await Effect.runPromise(
 *   program.pipe(Effect.scoped, Effect.provide([NodeServices.layer, NodeVsock.layer]))
 * ) // => ["vsock.sock_5000"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const listen = Effect.fn("Vsock.listen")(function*(
  path: string,
  port: number,
  { maxConnections = 64, mode = 0o600, owner }: ListenOptions = {}
): Effect.fn.Return<
  SocketServer.SocketServer["Service"],
  FirecrackerError.FirecrackerError,
  Scope.Scope | Vsock
> {
  const file = `${path}_${port}`
  yield* check([
    ...SocketPath.faultsOf("path", path === "" ? path : file),
    ...portFaults(port),
    ...(Number.isInteger(maxConnections) && maxConnections > 0
      ? []
      : [{ field: "maxConnections", value: maxConnections, remedy: "use a whole number from 1 on" }])
  ])
  const server = yield* Vsock.use(({ listenAt }) => listenAt(file, { mode, owner })).pipe(
    Effect.mapError(({ cause, why }) =>
      FirecrackerError.make(new FirecrackerError.VsockUnavailable({ path: file, port, why, cause }))
    )
  )
  let open = 0
  const admit = <A, E, R>(accepted: Socket.Socket, handler: (accepted: Socket.Socket) => Effect.Effect<A, E, R>) =>
    Effect.acquireUseRelease(
      Effect.sync(() => ++open),
      (count) => count > maxConnections ? Effect.void : Effect.asVoid(handler(accepted)),
      () => Effect.sync(() => --open)
    )
  return { ...server, run: (handler) => server.run((accepted) => admit(accepted, handler)) }
})
