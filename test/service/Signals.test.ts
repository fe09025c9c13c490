import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HostSignals from "../../src/service/HostSignals.ts"
import * as NodeSignals from "../../src/service/NodeSignals.ts"

const listeners = () => HostSignals.handled.map((signal) => process.listenerCount(signal))

describe("signals", () => {
  it.effect("are kept until somebody takes them, each once and in order, up to 16", () =>
    Effect.gen(function*() {
      const { send, signals } = HostSignals.makeUnsafe()
      send("SIGINT")
      for (let times = 0; times < 1000; times++) send("SIGTERM")
      const taken = yield* Effect.replicateEffect(signals.next, 16)
      assert.deepStrictEqual(taken, ["SIGINT", ...Array.from({ length: 15 }, () => "SIGTERM" as const)])
      const fiber = yield* Effect.forkChild(signals.next, { startImmediately: true })
      send("SIGHUP")
      assert.strictEqual(yield* Fiber.join(fiber), "SIGHUP")
    }))

  it.effect("of this process are taken while the layer lives, SIGQUIT not", () =>
    Effect.gen(function*() {
      const before = listeners()
      const quit = process.listenerCount("SIGQUIT")
      yield* Effect.gen(function*() {
        const { next } = yield* HostSignals.ServiceSignals
        assert.deepStrictEqual(listeners(), before.map((count) => count + 1))
        assert.strictEqual(process.listenerCount("SIGQUIT"), quit)
        process.emit("SIGHUP")
        assert.strictEqual(yield* next, "SIGHUP")
      }).pipe(Effect.provide(NodeSignals.layer))
      assert.deepStrictEqual(listeners(), before)
    }))
})

describe("errors that nobody caught", () => {
  it.effect("are given to who waits; only the first one counts", () =>
    Effect.gen(function*() {
      const { fail, signals } = HostSignals.makeUnsafe()
      const fiber = yield* Effect.forkChild(signals.uncaught, { startImmediately: true })
      assert.isTrue(fail("first"))
      assert.strictEqual(yield* Fiber.join(fiber), "first")
      // It stops in order because of the first one.
      assert.isTrue(fail("second"))
      assert.strictEqual(yield* signals.uncaught, "first")
    }))

  it.effect("have nobody when who waited was interrupted", () =>
    Effect.gen(function*() {
      const { fail, signals } = HostSignals.makeUnsafe()
      const fiber = yield* Effect.forkChild(signals.uncaught, { startImmediately: true })
      yield* Fiber.interrupt(fiber)
      assert.isFalse(fail("first"))
    }))
})

it.effect("layerNone never says anything", () =>
  Effect.gen(function*() {
    const { next, uncaught } = yield* HostSignals.ServiceSignals
    const fiber = yield* Effect.forkChild(Effect.raceFirst(next, uncaught), { startImmediately: true })
    yield* Effect.yieldNow
    assert.isUndefined(fiber.pollUnsafe())
    yield* Fiber.interrupt(fiber)
  }).pipe(Effect.provide(HostSignals.layerNone)))
