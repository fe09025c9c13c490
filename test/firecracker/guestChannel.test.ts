import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"
import { guestChannel } from "../../src/firecracker/internal/guestChannel.ts"

const closed = new Socket.SocketError({ reason: new Socket.SocketCloseError({ code: 1000 }) })

/** A port that is listened on from some moment on; its connections say nothing. */
const port = Effect.gen(function*() {
  const listening = yield* Deferred.make<void>()
  let connections = 0
  const socket = Socket.make({
    reader: Effect.gen(function*() {
      yield* Deferred.await(listening)
      const over = yield* Deferred.make<never, Socket.SocketError>()
      connections++
      yield* Effect.addFinalizer(() => Deferred.fail(over, closed))
      return { pull: Deferred.await(over), upgrade: Socket.SocketUpgradeError.unsupported }
    }),
    writer: Effect.succeed({ write: () => Effect.void, writeAll: () => Effect.void })
  })
  return { socket, listening, connections: () => connections }
})

const reason = (pull: Effect.Effect<unknown, Socket.SocketError>) =>
  Effect.forkChild(Effect.map(Effect.flip(pull), (error) => error.reason), { startImmediately: true })

describe("a channel", () => {
  it.effect("ends with the connections of a guest that was saved, and connects again", () =>
    Effect.gen(function*() {
      const { connections, listening, socket } = yield* port
      const saved = yield* Deferred.make<void>()
      const channel = guestChannel(socket, { gone: Effect.never, reset: Deferred.await(saved) })
      const { pull } = yield* channel.reader
      const waiting = yield* reason(pull)
      assert.isUndefined(waiting.pollUnsafe())
      yield* Deferred.succeed(listening, undefined)
      yield* Effect.yieldNow
      yield* Deferred.succeed(saved, undefined)
      assert.strictEqual((yield* Fiber.join(waiting))._tag, "SocketCloseError")

      const again = guestChannel(socket, { gone: Effect.never, reset: Effect.never })
      yield* again.reader
      yield* Effect.yieldNow
      assert.strictEqual(connections(), 2)
    }).pipe(Effect.scoped))

  it.effect("goes on waiting for a guest that does not listen yet, whatever is saved meanwhile", () =>
    Effect.gen(function*() {
      const { connections, listening, socket } = yield* port
      let saves = 0
      // The first is over before there is a connection.
      const reset = Effect.suspend(() => ++saves > 1 ? Effect.void : Effect.never)
      const { pull } = yield* guestChannel(socket, { gone: Effect.never, reset }).reader
      const waiting = yield* reason(pull)
      assert.strictEqual(saves, 0)
      yield* Deferred.succeed(listening, undefined)
      yield* Effect.yieldNow
      assert.strictEqual(connections(), 1)
      assert.isUndefined(waiting.pollUnsafe())
    }).pipe(Effect.scoped))

  it.effect("tells whoever reads that the reader was given up, or that the machine has ended", () =>
    Effect.gen(function*() {
      const { socket } = yield* port
      const gone = yield* Deferred.make<void>()
      const channel = guestChannel(socket, { gone: Deferred.await(gone), reset: Effect.never })
      const scope = yield* Scope.make()
      const given = yield* Effect.flatMap(Scope.provide(channel.reader, scope), ({ pull }) => reason(pull))
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual((yield* Fiber.join(given))._tag, "SocketCloseError")

      const ending = yield* Effect.flatMap(channel.reader, ({ pull }) => reason(pull))
      yield* Deferred.succeed(gone, undefined)
      assert.strictEqual((yield* Fiber.join(ending))._tag, "SocketOpenError")
    }).pipe(Effect.scoped))

  it.effect("does not keep a writer waiting for the guest of a machine that is gone", () =>
    Effect.gen(function*() {
      const gone = yield* Deferred.make<void>()
      const waits = Socket.make({
        reader: Effect.never,
        writer: Effect.succeed({ write: () => Effect.never, writeAll: () => Effect.never })
      })
      const channel = guestChannel(waits, { gone: Deferred.await(gone), reset: Effect.never })
      yield* channel.reader
      const { write } = yield* channel.writer
      const writing = yield* reason(write("sync"))
      assert.isUndefined(writing.pollUnsafe())
      yield* Deferred.succeed(gone, undefined)
      assert.strictEqual((yield* Fiber.join(writing))._tag, "SocketOpenError")
    }).pipe(Effect.scoped))

  it.effect("does not keep one waiting that was connected before", () =>
    Effect.gen(function*() {
      const gone = yield* Deferred.make<void>()
      let connections = 0
      const once = Socket.make({
        reader: Effect.suspend(() =>
          connections++ === 0
            ? Effect.succeed({ pull: Effect.never, upgrade: Socket.SocketUpgradeError.unsupported })
            : Effect.never
        ),
        writer: Effect.succeed({ write: () => Effect.never, writeAll: () => Effect.never })
      })
      const channel = guestChannel(once, { gone: Deferred.await(gone), reset: Effect.never })
      yield* Effect.scoped(Effect.andThen(channel.reader, Effect.yieldNow))
      yield* channel.reader
      const { write } = yield* channel.writer
      const writing = yield* reason(write("sync"))
      yield* Deferred.succeed(gone, undefined)
      assert.strictEqual((yield* Fiber.join(writing))._tag, "SocketOpenError")
    }).pipe(Effect.scoped))
})
