import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { HostSignals, orSignal } from "../../src/cli/HostSignals.ts"
import { handled } from "../../src/service/HostSignals.ts"
import { makeSignals } from "./world.ts"

const listeners = () => handled.map((signal) => process.listenerCount(signal))

describe("the signals of this process", () => {
  it.effect("are kept until somebody takes them, each once and in order", () =>
    Effect.gen(function*() {
      const { next } = yield* HostSignals
      for (const signal of ["SIGINT", "SIGTERM", "SIGHUP", "SIGINT"] as const) process.emit(signal)
      const taken = [yield* next, yield* next, yield* next, yield* next]
      assert.deepStrictEqual(taken, ["SIGINT", "SIGTERM", "SIGHUP", "SIGINT"])
    }).pipe(Effect.provide(HostSignals.layer)))

  it.effect("do no harm in great numbers", () =>
    Effect.gen(function*() {
      const { next } = yield* HostSignals
      for (let times = 0; times < 1000; times++) process.emit("SIGINT")
      process.emit("SIGTERM")
      assert.strictEqual(yield* next, "SIGINT")
    }).pipe(Effect.provide(HostSignals.layer)))

  it.effect("are left alone after the layer", () =>
    Effect.gen(function*() {
      const before = listeners()
      const within = yield* Effect.sync(listeners).pipe(Effect.provide(HostSignals.layer))
      assert.deepStrictEqual(within, before.map((count) => count + 1))
      assert.deepStrictEqual(listeners(), before)
    }))
})

describe("orSignal", () => {
  it.effect("gives the end that comes first", () =>
    Effect.gen(function*() {
      const signals = yield* makeSignals
      let interrupted = 0
      const endless = Effect.onInterrupt(Effect.never, () => Effect.sync(() => interrupted++))
      const program = Effect.gen(function*() {
        const own = yield* orSignal(Effect.succeed(1))
        yield* signals.send("SIGHUP")
        return [own, yield* orSignal(endless)]
      })
      const ends = yield* Effect.provide(program, signals.layer)
      assert.deepStrictEqual(ends, [Result.succeed(1), Result.fail("SIGHUP" as const)])
      assert.strictEqual(interrupted, 1)
      assert.strictEqual(yield* signals.waiting, 0)
    }))

  it.effect("passes a failure on", () =>
    Effect.gen(function*() {
      const signals = yield* makeSignals
      const failure = yield* Effect.flip(Effect.provide(orSignal(Effect.fail("no")), signals.layer))
      assert.strictEqual(failure, "no")
    }))
})
