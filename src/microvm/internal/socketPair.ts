import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"

type Bytes = Queue.Queue<Uint8Array, Socket.SocketError>

const closed = (code: number) => new Socket.SocketError({ reason: new Socket.SocketCloseError({ code }) })

/** What was written before is still read; then reading fails, and so does writing. */
const finish = (queue: Bytes, code = 1000): boolean => Queue.failCauseUnsafe(queue, Cause.fail(closed(code)))

/** Like `finish`, but nobody will read what is left: writers that wait for room must not wait for ever. */
const drop = (queue: Bytes, code = 1000): void => {
  finish(queue, code)
  Queue.shutdownUnsafe(queue)
}

const end = (incoming: Bytes, outgoing: Bytes): Socket.Socket => {
  const encoder = new TextEncoder()
  const open = Latch.makeUnsafe(false)
  const reader: Socket.Socket["reader"] = Effect.gen(function*() {
    yield* Scope.addFinalizer(
      yield* Effect.scope,
      Effect.sync(() => {
        open.closeUnsafe()
        drop(incoming)
        finish(outgoing)
      })
    )
    open.openUnsafe()
    return { pull: Queue.takeAll(incoming), upgrade: Socket.SocketUpgradeError.unsupported }
  })
  const write = (chunk: Uint8Array | string | Socket.CloseEvent): Effect.Effect<void, Socket.SocketError> =>
    open.whenOpen(Effect.suspend(() => {
      if (Socket.isCloseEvent(chunk)) {
        drop(incoming, chunk.code)
        return Effect.as(Effect.sync(() => finish(outgoing, chunk.code)), undefined)
      }
      const bytes = typeof chunk === "string" ? encoder.encode(chunk) : chunk
      return Effect.flatMap(Queue.offer(outgoing, bytes), (accepted) =>
        accepted
          ? Effect.void
          : Effect.fail(
            new Socket.SocketError({
              reason: new Socket.SocketWriteError({ cause: new Error("the other end is closed") })
            })
          ))
    }))
  return Socket.make({
    reader,
    writer: Effect.acquireRelease(
      Effect.succeed<Socket.Writer>({
        write,
        writeAll: (chunks) => Effect.forEach(chunks, write, { discard: true })
      }),
      () => Effect.sync(() => finish(outgoing))
    )
  })
}

/**
 * Two sockets, each the other's far end. In each direction at most `capacity` chunks wait for the reader; after that
 * the writer waits.
 */
export const makeSocketPair = (capacity: number): Effect.Effect<{
  readonly host: Socket.Socket
  readonly guest: Socket.Socket
  /** Both directions end, as when the machine does: what was written is still read. */
  readonly close: () => void
}> =>
  Effect.gen(function*() {
    const toGuest: Bytes = yield* Queue.bounded<Uint8Array, Socket.SocketError>(capacity)
    const toHost: Bytes = yield* Queue.bounded<Uint8Array, Socket.SocketError>(capacity)
    return {
      host: end(toHost, toGuest),
      guest: end(toGuest, toHost),
      close: () => {
        drop(toGuest)
        finish(toHost)
      }
    }
  })
