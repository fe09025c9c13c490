import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"
import * as Deadlines from "../../src/firecracker/internal/deadlines.ts"
import { watchedClock } from "./watchedClock.ts"

const setUp = Effect.gen(function*() {
  const expired: Array<string> = []
  const deadlines = Deadlines.make(yield* Clock.Clock)
  yield* Effect.addFinalizer(() => Effect.sync(deadlines.close))
  const add = (name: string, within: Duration.Input, then?: () => void) =>
    deadlines.add(deadlines.after(Duration.fromInputUnsafe(within)), () => {
      expired.push(name)
      then?.()
    })
  return { add, close: deadlines.close, deadlines, expired }
})

describe("deadlines", () => {
  it.effect("are each reached at their time, whichever came first", () =>
    Effect.gen(function*() {
      const { add, expired } = yield* setUp
      add("late", "5 minutes")
      add("soon", "5 seconds")
      yield* TestClock.adjust("2 seconds")
      add("next", "5 seconds")
      yield* TestClock.adjust("2999 millis")
      assert.deepStrictEqual(expired, [])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(expired, ["soon"])
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(expired, ["soon", "next"])
      yield* TestClock.adjust("5 minutes")
      assert.deepStrictEqual(expired, ["soon", "next", "late"])
    }))

  it.effect("that were met are forgotten, and nobody else's is moved by them", () =>
    Effect.gen(function*() {
      const { add, expired } = yield* setUp
      const met = add("met", "1 second")
      met()
      met()
      add("first", "3 seconds")
      yield* TestClock.adjust("2 seconds")
      const second = add("second", "1 second")
      second()
      add("third", "2 seconds")
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(expired, ["first"])
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(expired, ["first", "third"])
    }))

  it.effect("of others are kept when one that is reached throws", () =>
    Effect.gen(function*() {
      const { add, expired } = yield* setUp
      add("throws", "1 second", () => {
        throw new Error("on purpose")
      })
      add("as early", "1 second")
      add("later", "2 seconds")
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(expired, ["throws", "as early"])
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(expired, ["throws", "as early", "later"])
    }))

  it.effect("can be set and met by one that is reached", () =>
    Effect.gen(function*() {
      const { add, expired } = yield* setUp
      let other = () => {}
      add("first", "1 second", () => {
        other()
        add("after it", "1 second")
      })
      other = add("at the same time", "1 second")
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(expired, ["first"])
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(expired, ["first", "after it"])
    }))

  it.effect("that are over when they are set are reached at once", () =>
    Effect.gen(function*() {
      const { add, deadlines, expired } = yield* setUp
      const at = deadlines.after(Duration.seconds(1))
      yield* TestClock.adjust("2 seconds")
      deadlines.add(at, () => expired.push("over"))
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(expired, ["over"])
      add("next", "1 second")
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(expired, ["over", "next"])
    }))

  it.effect("without an end, and of no time at all", () =>
    Effect.gen(function*() {
      const { add, expired } = yield* setUp
      add("never", Duration.infinity)
      add("at once", Duration.zero)
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(expired, ["at once"])
      yield* TestClock.adjust("365 days")
      assert.deepStrictEqual(expired, ["at once"])
      add("after it", "1 second")
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(expired, ["at once", "after it"])
    }))

  it.effect("are not reached once they are closed, and those of others are", () =>
    Effect.gen(function*() {
      const one = yield* setUp
      const other = yield* setUp
      one.add("any", "1 second")
      other.add("first", "2 seconds")
      other.add("second", "4 seconds")
      one.close()
      one.close()
      yield* TestClock.adjust("3 seconds")
      assert.deepStrictEqual([one.expired, other.expired], [[], ["first"]])
      other.close()
      const next = yield* setUp
      next.add("next", "2 seconds")
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual([one.expired, other.expired, next.expired], [[], ["first"], ["next"]])
    }))

  it.effect("of many are slept for once, and of nobody not at all", () =>
    Effect.gen(function*() {
      const { asleep, clock } = yield* watchedClock
      const all = [1, 2, 3].map(() => Deadlines.make(clock))
      for (const each of all) each.add(each.after(Duration.seconds(1)), () => {})
      assert.strictEqual(asleep(), 1)
      for (const each of all) {
        assert.strictEqual(asleep(), 1)
        each.close()
      }
      assert.strictEqual(asleep(), 0)
    }))
})
