import { describe, expect, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import { StopBudget } from "../../src/lifecycle/index.ts"

const run = <E>(total: Duration.Input, groups: ReadonlyArray<ReadonlyArray<StopBudget.Part<E>>>) =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(StopBudget.stopAll(total, groups), { startImmediately: true })
    yield* TestClock.adjust("1 hour")
    const outcomes = yield* Fiber.join(fiber)
    return outcomes.map((outcome) => [outcome._tag, outcome.name, Duration.toMillis(outcome.took)])
  })

const takes = (name: string, millis: number, options: Partial<StopBudget.Part> = {}): StopBudget.Part => ({
  name,
  stop: Effect.sleep(millis),
  ...options
})

describe("StopBudget", () => {
  it.effect("a hung part is named and costs its own share only", () =>
    Effect.gen(function*() {
      expect(yield* run("9 seconds", [[takes("a", 10)], [{ name: "hung", stop: Effect.never }], [takes("c", 20)]]))
        .toEqual([
          ["Stopped", "a", 10],
          ["Abandoned", "hung", 4495],
          ["Stopped", "c", 20]
        ])
    }))

  it.effect("the parts of a group stop at the same time", () =>
    Effect.gen(function*() {
      expect(yield* run("1 second", [[takes("a", 100), takes("b", 100)], [takes("c", 100)]])).toEqual([
        ["Stopped", "a", 100],
        ["Stopped", "b", 100],
        ["Stopped", "c", 100]
      ])
      expect(yield* Clock.currentTimeMillis).toBe(3_600_000)
    }))

  it.effect("a part that cannot be interrupted holds nobody up", () =>
    Effect.gen(function*() {
      const stubborn = { name: "stubborn", stop: Effect.uninterruptible(Effect.never) }
      expect(yield* run("2 seconds", [[stubborn], [takes("next", 1)]])).toEqual([
        ["Abandoned", "stubborn", 1000],
        ["Stopped", "next", 1]
      ])
    }))

  it.effect("tells each outcome when it is known, and of a part that is abandoned before it is interrupted", () =>
    Effect.gen(function*() {
      const told: Array<string> = []
      let isInterrupted = false
      const hung = Effect.onInterrupt(Effect.never, () =>
        Effect.sync(() => {
          isInterrupted = true
        }))
      const fiber = yield* Effect.forkChild(
        StopBudget.stopAll("1 second", [[takes("quick", 1), { name: "hung", stop: hung }]], {
          onOutcome: ({ _tag, name }) => Effect.sync(() => void told.push(`${_tag} ${name} ${isInterrupted}`))
        }),
        { startImmediately: true }
      )
      yield* TestClock.adjust("1 millis")
      expect(told).toEqual(["Stopped quick false"])
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(fiber)
      expect(told).toEqual(["Stopped quick false", "Abandoned hung false"])
      expect(isInterrupted).toBe(true)
    }))

  it.effect.each([
    { how: "dies of it", onOutcome: () => Effect.die("bug") },
    {
      how: "throws before there is an effect",
      onOutcome: () => {
        throw new Error("bug")
      }
    }
  ])("who is told and $how keeps nobody from stopping", ({ onOutcome }) =>
    Effect.gen(function*() {
      const parts = [[takes("a", 0), takes("b", 0)], [takes("c", 0)]]
      const outcomes = yield* StopBudget.stopAll("1 second", parts, { onOutcome })
      expect(outcomes.map(({ _tag, name }) => `${_tag} ${name}`)).toEqual(["Stopped a", "Stopped b", "Stopped c"])
    }))

  it.effect("failures and defects are reported, the others still run", () =>
    Effect.gen(function*() {
      const outcomes = yield* StopBudget.stopAll("1 second", [
        [{ name: "fails", stop: Effect.fail("no") }],
        [{ name: "dies", stop: Effect.die("bug") }],
        [{ name: "fine", stop: Effect.void }]
      ])
      expect(outcomes.map((outcome) => outcome._tag)).toEqual(["Failed", "Failed", "Stopped"])
    }))

  it.effect("weights and own limits", () =>
    Effect.gen(function*() {
      const hung = (name: string, options: Partial<StopBudget.Part>) => ({ name, stop: Effect.never, ...options })
      expect(yield* run("10 seconds", [[hung("a", { weight: 4 })], [hung("b", { atMost: "1 second" })]])).toEqual([
        ["Abandoned", "a", 8000],
        ["Abandoned", "b", 1000]
      ])
    }))

  it.effect.prop("never takes longer than the budget, and leaves nobody out", [
    Schema.Array(Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 5000 })))),
    Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 5000 }))
  ], ([groups, total]) =>
    Effect.gen(function*() {
      const parts = groups.map((group, index) => group.map((millis, at) => takes(`${index}.${at}`, millis)))
      const before = yield* Clock.currentTimeMillis
      let after = before
      const fiber = yield* Effect.forkChild(
        StopBudget.stopAll(total, parts).pipe(
          Effect.tap(Effect.map(Clock.currentTimeMillis, (now) => void (after = now)))
        ),
        { startImmediately: true }
      )
      yield* TestClock.adjust("1 hour")
      const outcomes = yield* Fiber.join(fiber)
      expect(outcomes.map((outcome) => outcome.name)).toEqual(parts.flat().map((part) => part.name))
      expect(after - before).toBeLessThanOrEqual(total + 1)
    }), { arbitrary: { runs: 100 } })
})
