import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"

const closed = (code: number) => new Socket.SocketError({ reason: new Socket.SocketCloseError({ code }) })
const notWritten = (why: string) =>
  new Socket.SocketError({ reason: new Socket.SocketWriteError({ cause: new Error(why) }) })

/** One direction. Takes any write, and then makes the writer wait until no more than `capacity` bytes are left. */
interface Pipe {
  readonly write: (bytes: Uint8Array) => Effect.Effect<void, Socket.SocketError>
  readonly pull: Effect.Effect<Arr.NonEmptyReadonlyArray<Uint8Array>, Socket.SocketError>
  readonly end: () => void
  /** A pull that waits fails. */
  readonly leave: () => void
  readonly held: () => number
}

const makePipe = (capacity: number): Pipe => {
  let chunks: Array<Uint8Array> = []
  let bytes = 0
  let ended = false
  let reader: ((effect: Effect.Effect<Arr.NonEmptyReadonlyArray<Uint8Array>, Socket.SocketError>) => void) | undefined
  let writers: Array<() => void> = []

  const wakeWriters = (): void => {
    const all = writers
    writers = []
    for (const wake of all) wake()
  }
  const wakeReader = (): void => {
    const resume = reader
    const all = chunks
    if (resume === undefined) return
    if (Arr.isArrayNonEmpty(all)) {
      reader = undefined
      chunks = []
      bytes = 0
      resume(Effect.succeed(all))
      // Last, since a writer may go on at once.
      wakeWriters()
    } else if (ended) {
      reader = undefined
      resume(Effect.fail(closed(1000)))
    }
  }
  const room: Effect.Effect<void, Socket.SocketError> = Effect.suspend(() => {
    if (ended) return Effect.fail(notWritten("the other end is closed"))
    if (bytes <= capacity) return Effect.void
    return Effect.andThen(
      Effect.callback<void>((resume) => {
        const wake = (): void => resume(Effect.void)
        writers.push(wake)
        return Effect.sync(() => {
          writers = writers.filter((one) => one !== wake)
        })
      }),
      room
    )
  })

  return {
    write: (chunk) =>
      Effect.suspend(() => {
        if (!ended && chunk.length > 0) {
          chunks.push(chunk.slice())
          bytes += chunk.length
          wakeReader()
        }
        return room
      }),
    pull: Effect.callback((resume) => {
      reader = resume
      wakeReader()
      return Effect.sync(() => {
        if (reader === resume) reader = undefined
      })
    }),
    end: () => {
      ended = true
      wakeReader()
      wakeWriters()
    },
    leave: () => {
      reader?.(Effect.fail(closed(1006)))
      reader = undefined
    },
    held: () => bytes
  }
}

const makeEnd = (incoming: Pipe, outgoing: Pipe): Socket.Socket => {
  const encoder = new TextEncoder()
  const write = (chunk: Uint8Array | string | Socket.CloseEvent): Effect.Effect<void, Socket.SocketError> =>
    Effect.suspend(() => {
      if (!Socket.isCloseEvent(chunk)) return outgoing.write(typeof chunk === "string" ? encoder.encode(chunk) : chunk)
      outgoing.end()
      return Effect.void
    })
  return Socket.make({
    reader: Effect.gen(function*() {
      yield* Scope.addFinalizer(yield* Effect.scope, Effect.sync(incoming.leave))
      return { pull: incoming.pull, upgrade: Socket.SocketUpgradeError.unsupported }
    }),
    writer: Effect.succeed({
      write,
      writeAll: (chunks: Arr.NonEmptyReadonlyArray<Uint8Array | string>) =>
        Effect.forEach(chunks, write, { discard: true })
    })
  })
}

/**
 * A channel between a host and a guest, as a port of a machine is: it lives on when either end's scope closes, so that
 * each can come back, and ends by `close` only. All of it happens on fibers, so a virtual clock has it in hand.
 *
 * @internal
 */
export const makeChannel = (capacity: number): {
  readonly host: Socket.Socket
  readonly guest: Socket.Socket
  readonly close: () => void
  /** Bytes under way to the host. */
  readonly held: () => number
} => {
  const toGuest = makePipe(capacity)
  const toHost = makePipe(capacity)
  return {
    host: makeEnd(toHost, toGuest),
    guest: makeEnd(toGuest, toHost),
    close: () => {
      toGuest.end()
      toHost.end()
    },
    held: toHost.held
  }
}
