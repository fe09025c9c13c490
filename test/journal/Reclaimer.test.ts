import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import * as Reclaimer from "../../src/journal/Reclaimer.ts"
import { Verdict } from "../../src/journal/ResourceKind.ts"

const owner = { id: "web-1", token: "0123456789abcdef", bootId: "b" }

/** Tells what it is asked for, and does each call as it is told to. */
const recorder = (how: (call: number) => Effect.Effect<void> = () => Effect.void) => {
  const calls: Array<string> = []
  const ended: Array<string> = []
  const reclaimer = Reclaimer.gathering({
    kind: "port",
    reclaim: (claims, { dryRun }) =>
      Effect.suspend(() => {
        const name = `${dryRun ? "dry " : ""}${claims.map(({ data }) => JSON.stringify(data)).join()}`
        return how(calls.push(name) - 1).pipe(
          Effect.onExit(({ _tag }) => Effect.sync(() => void ended.push(`${name}: ${_tag}`))),
          Effect.as(claims.map(({ data }) => ({ what: JSON.stringify(data), verdict: Verdict.Absent() })))
        )
      })
  })
  const ask = (data: ReadonlyArray<number>, dryRun = false) =>
    Effect.map(
      reclaimer.reclaim(data.map((one) => ({ owner, data: one })), { dryRun }),
      (all) => all.map(({ what }) => what)
    )
  return { calls, ended, ask }
}

const settle = Effect.andThen(Effect.yieldNow, TestClock.adjust(0))

describe("gathering", () => {
  it.effect("those who ask at the same time, or while a call is under way, are one call, each with its own answers", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const { ask, calls } = recorder((call) => call === 0 ? Deferred.await(gate) : Effect.void)
      const first = yield* Effect.forkChild(Effect.all([ask([1, 2]), ask([3])], { concurrency: "unbounded" }))
      yield* settle
      const second = yield* Effect.forkChild(Effect.all([ask([4]), ask([]), ask([5, 6])], { concurrency: "unbounded" }))
      yield* settle
      assert.deepStrictEqual(calls, ["1,2,3"])
      yield* Deferred.succeed(gate, undefined)
      assert.deepStrictEqual(yield* Fiber.join(first), [["1", "2"], ["3"]])
      assert.deepStrictEqual(yield* Fiber.join(second), [["4"], [], ["5", "6"]])
      assert.deepStrictEqual(calls, ["1,2,3", "4,5,6"])
      assert.deepStrictEqual(yield* ask([7]), ["7"])
    }))

  it.effect("what only looks is not mixed with what removes", () =>
    Effect.gen(function*() {
      const { ask, calls } = recorder()
      yield* Effect.all([ask([1]), ask([2], true), ask([3])], { concurrency: "unbounded" })
      assert.deepStrictEqual(calls.toSorted(), ["1,3", "dry 2"])
    }))

  it.effect("one that does not come to an end holds up the others for a second", () =>
    Effect.gen(function*() {
      const { ask, calls } = recorder((call) => call === 0 ? Effect.never : Effect.void)
      const hung = yield* Effect.forkChild(ask([1]))
      yield* settle
      const others = yield* Effect.forkChild(Effect.all([ask([2]), ask([3])], { concurrency: "unbounded" }))
      yield* settle
      yield* TestClock.adjust("999 millis")
      assert.deepStrictEqual(calls, ["1"])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(yield* Fiber.join(others), [["2"], ["3"]])
      assert.deepStrictEqual(calls, ["1", "2,3"])
      yield* Fiber.interrupt(hung)
    }))

  it.effect("one that is interrupted waits for the call, and ends it when it was the last", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const { ask, ended } = recorder((call) => call === 0 ? Deferred.await(gate) : Effect.never)
      const [one, other] = [yield* Effect.forkChild(ask([1])), yield* Effect.forkChild(ask([2]))]
      yield* settle
      const leaving = yield* Effect.forkChild(Fiber.interrupt(one))
      yield* settle
      assert.isUndefined(leaving.pollUnsafe())
      yield* Deferred.succeed(gate, undefined)
      assert.deepStrictEqual(yield* Fiber.join(other), ["2"])
      yield* Fiber.join(leaving)
      const last = yield* Effect.forkChild(ask([3]))
      yield* settle
      yield* Fiber.interrupt(last)
      assert.deepStrictEqual(ended, ["1,2: Success", "3: Failure"])
    }))

  it.effect("one that is interrupted before its call takes nobody with it who comes then", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const { ask, calls } = recorder((call) => call === 0 ? Deferred.await(gate) : Effect.void)
      const first = yield* Effect.forkChild(ask([1]))
      yield* settle
      const early = yield* Effect.forkChild(ask([2]))
      yield* settle
      yield* Fiber.interrupt(early)
      const late = yield* Effect.forkChild(ask([3]))
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(first)
      assert.deepStrictEqual(yield* Fiber.join(late), ["3"])
      assert.deepStrictEqual(calls, ["1", "3"])
    }))
})
