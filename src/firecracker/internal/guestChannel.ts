import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"

interface Machine {
  /** Waits for its end. */
  readonly gone: Effect.Effect<void>
  /** Waits until all connections that there are now have ended without a word. */
  readonly reset: Effect.Effect<void>
}

const givenUp = new Socket.SocketError({ reason: new Socket.SocketCloseError({ code: 1006 }) })

/**
 * A channel of a machine: it connects for as long as there is a machine, and is there from the start, as a device would be:
 * its reader is acquired at once, and who reads or writes waits until the guest listens. The socket of a machine that is gone
 * looks like one whose guest does not listen yet.
 */
export const guestChannel = (socket: Socket.Socket, { gone, reset }: Machine): Socket.Socket => {
  const cause = new Error("the machine has ended")
  const ended = Effect.andThen(
    gone,
    Effect.fail(new Socket.SocketError({ reason: new Socket.SocketOpenError({ kind: "Unknown", cause }) }))
  )
  let isConnected = false
  const reader = Effect.gen(function*() {
    const scope = yield* Effect.scope
    const connection = yield* Scope.fork(scope)
    yield* Scope.addFinalizer(
      connection,
      Effect.sync(() => {
        isConnected = false
      })
    )
    const connecting = yield* Effect.raceFirst(socket.reader, ended).pipe(
      Scope.provide(connection),
      Effect.forkIn(scope, { startImmediately: true })
    )
    // Whoever waits when the reader is given up is told so, and not interrupted.
    const connected = Effect.flatMap(
      Fiber.await(connecting),
      (exit) => {
        isConnected = Exit.isSuccess(exit)
        return Exit.hasInterrupts(exit) ? Effect.fail(givenUp) : exit
      }
    )
    yield* connected.pipe(
      Effect.andThen(reset),
      Effect.andThen(Scope.close(connection, Exit.void)),
      Effect.ignore,
      Effect.forkIn(scope, { startImmediately: true })
    )
    return {
      pull: Effect.flatMap(connected, ({ pull }) => pull),
      upgrade: (options?: Socket.TlsUpgradeOptions) => Effect.flatMap(connected, ({ upgrade }) => upgrade(options))
    }
  })
  // What is written before there is a connection waits for one, and the machine may end first.
  const whileThere = (write: Effect.Effect<void, Socket.SocketError>) =>
    Effect.suspend(() => isConnected ? write : Effect.raceFirst(write, ended))
  const writer = Effect.map(socket.writer, (inner): Socket.Writer => ({
    write: (chunk) => whileThere(inner.write(chunk)),
    writeAll: (chunks) => whileThere(inner.writeAll(chunks))
  }))
  return Socket.make({ reader, writer })
}
