/**
 * Calls over Firecracker's unix socket, fitted to its own small HTTP server.
 *
 * That server has ten connections in all, answers one request at a time, never closes a connection by itself, and drops
 * one that is half closed. So connections are kept and there are four at most: one for what changes something and three
 * for reads. One is used again only when the last answer on it was a good one.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import { Buffer } from "node:buffer"
import type { ApiRequest, ApiTransport } from "./ApiTransport.ts"
import * as FirecrackerError from "./FirecrackerError.ts"
import * as Deadlines from "./internal/deadlines.ts"
import * as NodeApiLane from "./internal/NodeApiLane.ts"
import * as SocketPath from "./internal/socketPath.ts"
import { spanned } from "./internal/spanned.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Firecracker's `--api-sock`, as seen from here. It may be longer than the 107 bytes that a socket address holds. */
  readonly socketPath: string
  /** An answer with a larger body is refused before it is read. Default 4 MiB. */
  readonly maxBodyBytes?: number | undefined
}

const concurrentReads = 3

/** A request line of Firecracker's holds 1,024 bytes. */
const longestPath = 1000

const faultsOf = ({ body, method, path }: ApiRequest): ReadonlyArray<FirecrackerError.Fault> => {
  const faults: Array<FirecrackerError.Fault> = []
  if (!/^\/[A-Za-z0-9_/-]*$/.test(path)) {
    faults.push({
      field: "path",
      value: path,
      remedy: "use letters, digits, \"_\", \"-\" and \"/\", which it starts with"
    })
  } else if (path.length > longestPath) {
    faults.push({ field: "path", value: path, remedy: `use ${longestPath} characters at most` })
  }
  if (method === "GET" && body !== undefined) {
    faults.push({
      field: "body",
      value: `${body.length} characters`,
      remedy: "leave it out: Firecracker refuses a GET with a body"
    })
  }
  return faults
}

const refused = (faults: ReadonlyArray<FirecrackerError.Fault>) =>
  FirecrackerError.fail(new FirecrackerError.InvalidRequest({ faults }))

/** One piece, so that it goes out in one write. The length is explicit: Firecracker does not read a body in chunks. */
const encode = ({ body, method, path }: ApiRequest): string => {
  const head = `${method} ${path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n`
  return body === undefined
    ? `${head}\r\n`
    : `${head}Content-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`
}

const toReason = (
  { method, path, within }: ApiRequest,
  socket: string,
  failure: NodeApiLane.Failure
): FirecrackerError.Reason => {
  const { ConnectionFailed, NoReply, ProtocolViolation } = FirecrackerError
  return failure._tag === "Late"
    ? new NoReply({ method, path, within })
    : failure._tag === "Violation"
    ? new ProtocolViolation({ method, path, detail: failure.detail })
    : new ConnectionFailed({ method, path, socket, phase: failure.phase, cause: failure.cause })
}

/**
 * A transport to one Firecracker. Nothing is opened before the first request, so the socket need not be there yet. Closing
 * the scope closes all connections and fails what is under way.
 *
 * - `within` counts from the call: waiting for one's turn is part of it. After it, and after an interruption, the
 *   connection is closed; Firecracker may still do what it was asked.
 * - A `GET` is sent a second time, once, when a kept connection turns out to be dead before a byte of the answer came.
 *   Nothing else is ever sent twice; what could not be written to a new connection, since the other end was closed, is
 *   written to another one, three in all.
 * - An answer has a `Content-Length`, or status 204; at most 64 KiB of head; a body of at most `maxBodyBytes` in UTF-8.
 *   Anything else is a `ProtocolViolation`.
 *
 * Fails with `InvalidRequest` when the path cannot be that of a socket.
 *
 * ```ts import.meta.vitest
 * import { FirecrackerError, NodeApiTransport } from "effect-microvm-runtime/firecracker"
 * import * as Duration from "effect/Duration"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const transport = yield* NodeApiTransport.make({ socketPath: "/nowhere/firecracker.socket" })
 *   return yield* transport.request({ method: "GET", path: "/version", within: Duration.seconds(1) })
 * }).pipe(
 *   Effect.scoped,
 *   Effect.catchReason("FirecrackerError", "ConnectionFailed", ({ phase }) => Effect.succeed(phase))
 * )
 * await Effect.runPromise(program) // => "connect"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  { maxBodyBytes = 4 * 1024 * 1024, socketPath }: Options
): Effect.Effect<ApiTransport, FirecrackerError.FirecrackerError, Scope.Scope> =>
  Effect.contextWith((context: Context.Context<Scope.Scope>) => {
    const pathFaults = SocketPath.faultsOf("socketPath", socketPath)
    if (pathFaults.length > 0) return refused(pathFaults)
    const deadlines = Deadlines.make(Context.get(context, Clock.Clock))
    const laneOf = (most: number) => NodeApiLane.make({ socketPath, maxBodyBytes, most, deadlines })
    const changes = laneOf(1)
    const reads = laneOf(concurrentReads)
    const transport: ApiTransport = {
      request: (call) => {
        const faults = faultsOf(call)
        if (faults.length > 0) return refused(faults)
        const isRead = call.method === "GET"
        return (isRead ? reads : changes).exchange(encode(call), {
          within: call.within,
          isRepeatable: isRead,
          failed: (failure) => FirecrackerError.fail(toReason(call, socketPath, failure))
        })
      }
    }
    const close = Effect.sync(() => {
      changes.close()
      reads.close()
      // Nobody waits for the end of a sleep, and who comes at once goes on with it.
      setImmediate(deadlines.close)
    })
    return Effect.as(Scope.addFinalizer(Context.get(context, Scope.Scope), close), transport)
  }).pipe(spanned("NodeApiTransport.make"))
