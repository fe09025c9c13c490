import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import * as Deadlines from "../../src/firecracker/internal/deadlines.ts"

const setUp = Effect.gen(function*() {
  const expired: Array<string> = []
  const deadlines = yield* Deadlines.make()
  const add = (name: string, within: Duration.Input, then?: () => void) =>
    deadlines.add(Duration.fromInputUnsafe(within), () => {
      expired.push(name)
      then?.()
    })
  return { add, expired }
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

  it.effect("are not reached once the scope is closed", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { add, expired } = yield* Scope.provide(setUp, scope)
      add("any", "1 second")
      yield* Scope.close(scope, Exit.void)
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(expired, [])
    }))
})
