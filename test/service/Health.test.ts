import { describe, expect, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import * as Health from "../../src/service/Health.ts"

const oks = (health: Health.Health["Service"]) =>
  Effect.map(
    Effect.forEach(Health.probes, health.report),
    (reports) => reports.map((report) => report.ok)
  )

describe("states", () => {
  it.effect("each question has its own answer in each state", () =>
    Effect.gen(function*() {
      const health = yield* Health.make
      expect(yield* oks(health)).toEqual([false, false, true])
      yield* health.advance("ready")
      expect(yield* oks(health)).toEqual([true, true, true])
      yield* health.advance("draining")
      expect(yield* oks(health)).toEqual([true, false, true])
      yield* health.advance("stopped")
      expect(yield* oks(health)).toEqual([false, false, false])
    }))

  it.effect("a service that drains before it was ready has never started, and is alive", () =>
    Effect.gen(function*() {
      const health = yield* Health.make
      yield* health.advance("draining")
      expect(yield* oks(health)).toEqual([false, false, true])
    }))

  it.effect.prop(
    "whatever is asked for, the state never goes back",
    [Arbitrary.schema(Schema.Array(Schema.Literals(Health.states)))],
    ([asked]) =>
      Effect.gen(function*() {
        const health = yield* Health.make
        let farthest = 0
        for (const to of asked) {
          yield* health.advance(to)
          farthest = Math.max(farthest, Health.states.indexOf(to))
          expect(yield* health.state).toBe(Health.states[farthest])
        }
      })
  )

  it.effect("awaitDraining ends when the service drains, also for who comes later", () =>
    Effect.gen(function*() {
      const health = yield* Health.make
      const waiting = yield* Effect.forkChild(health.awaitDraining, { startImmediately: true })
      yield* health.advance("ready")
      expect(waiting.pollUnsafe()).toBeUndefined()
      yield* health.advance("draining")
      yield* Fiber.join(waiting)
      yield* health.awaitDraining
    }))
})

describe("checks", () => {
  const ready = Effect.tap(Health.make, (health) => health.advance("ready"))

  it.effect("a check that fails makes the probes that it belongs to fail, and says why", () =>
    Effect.gen(function*() {
      const health = yield* ready
      yield* health.add({ name: "db", check: Effect.fail(new Error("no route")) })
      yield* health.add({ name: "queue", check: Effect.void })
      const report = yield* health.report("ready")
      expect(report.ok).toBe(false)
      expect(report.checks.map(({ name, ok, why }) => [name, ok, why])).toEqual([
        ["db", false, "no route"],
        ["queue", true, undefined]
      ])
      expect((yield* health.report("live")).ok).toBe(true)
    }))

  it.effect("defects and endless messages are answers like others", () =>
    Effect.gen(function*() {
      const health = yield* ready
      yield* health.add({ name: "a", check: Effect.die(new TypeError("x is not a function")) })
      yield* health.add({ name: "b", check: Effect.fail(`long\n${"x".repeat(10_000)}`) })
      const [a, b] = (yield* health.report("ready")).checks
      expect(a?.why).toBe("x is not a function")
      expect(b?.why).toHaveLength(256)
      expect(b?.why).not.toContain("\n")
    }))

  it.effect("are not asked before the service is ready, nor while it drains", () =>
    Effect.gen(function*() {
      const health = yield* Health.make
      let asked = 0
      yield* health.add({ name: "x", check: Effect.sync(() => void asked++), probes: Health.probes })
      yield* oks(health)
      yield* health.advance("draining")
      yield* oks(health)
      expect(asked).toBe(0)
    }))

  it.effect("a startup check is not asked any more once it was well", () =>
    Effect.gen(function*() {
      const health = yield* ready
      let well = false
      yield* health.add({
        name: "warm",
        check: Effect.suspend(() => well ? Effect.void : Effect.fail("cold")),
        probes: ["startup"]
      })
      expect((yield* health.report("startup")).ok).toBe(false)
      well = true
      yield* TestClock.adjust("1 second")
      expect((yield* health.report("startup")).ok).toBe(true)
      well = false
      yield* TestClock.adjust("1 second")
      expect((yield* health.report("startup")).ok).toBe(true)
    }))

  it.effect("leave with the scope that they came with", () =>
    Effect.gen(function*() {
      const health = yield* ready
      const scope = yield* Scope.make()
      yield* Scope.provide(health.add({ name: "part", check: Effect.fail("no") }), scope)
      expect((yield* health.report("ready")).ok).toBe(false)
      yield* Scope.close(scope, Exit.void)
      expect((yield* health.report("ready")).ok).toBe(true)
    }))

  it.effect("1000 probes at once are one check, and its answer holds for a second", () =>
    Effect.gen(function*() {
      const health = yield* ready
      let asked = 0
      yield* health.add({
        name: "db",
        check: Effect.andThen(Effect.sync(() => void asked++), Effect.sleep("300 millis"))
      })
      const probing = yield* Effect.forkChild(
        Effect.forEach(Array.from({ length: 1000 }), () => health.report("ready"), { concurrency: "unbounded" }),
        { startImmediately: true }
      )
      yield* TestClock.adjust("300 millis")
      expect((yield* Fiber.join(probing)).every((report) => report.ok)).toBe(true)
      expect(asked).toBe(1)
      yield* TestClock.adjust("999 millis")
      yield* health.report("ready")
      expect(asked).toBe(1)
      yield* TestClock.adjust("1 millis")
      const again = yield* Effect.forkChild(health.report("ready"), { startImmediately: true })
      expect(asked).toBe(2)
      yield* TestClock.adjust("300 millis")
      const [check] = (yield* Fiber.join(again)).checks
      expect(Duration.toMillis(check?.took ?? Duration.zero)).toBe(300)
    }))

  it.effect("run at the same time, each within its own time", () =>
    Effect.gen(function*() {
      const health = yield* ready
      let interrupted = 0
      const hang = Effect.onInterrupt(Effect.never, () => Effect.sync(() => void interrupted++))
      yield* health.add({ name: "default", check: hang })
      yield* health.add({ name: "short", check: hang, within: "200 millis" })
      yield* health.add({ name: "slow", check: Effect.sleep("900 millis") })
      const probing = yield* Effect.forkChild(health.report("ready"), { startImmediately: true })
      yield* TestClock.adjust("999 millis")
      expect(probing.pollUnsafe()).toBeUndefined()
      yield* TestClock.adjust("1 millis")
      expect((yield* Fiber.join(probing)).checks.map(({ ok, why }) => [ok, why])).toEqual([
        [false, "no answer within 1s"],
        [false, "no answer within 200ms"],
        [true, undefined]
      ])
      expect(interrupted).toBe(2)
    }))

  it.effect("one that cannot be interrupted neither holds the probe nor is started again", () =>
    Effect.gen(function*() {
      const health = yield* ready
      let asked = 0
      yield* health.add({
        name: "stuck",
        check: Effect.uninterruptible(Effect.suspend(() => ++asked === 1 ? Effect.sleep("1 hour") : Effect.void))
      })
      for (let probe = 0; probe < 5; probe++) {
        const probing = yield* Effect.forkChild(health.report("ready"), { startImmediately: true })
        yield* TestClock.adjust("1 second")
        expect((yield* Fiber.join(probing)).ok).toBe(false)
        yield* TestClock.adjust("1 second")
      }
      expect(asked).toBe(1)
      yield* TestClock.adjust("1 hour")
      expect((yield* health.report("ready")).ok).toBe(true)
      expect(asked).toBe(2)
    }))

  it.effect("who asks and goes away takes the answer from nobody", () =>
    Effect.gen(function*() {
      const health = yield* ready
      yield* health.add({ name: "db", check: Effect.sleep("500 millis") })
      const first = yield* Effect.forkChild(health.report("ready"), { startImmediately: true })
      const second = yield* Effect.forkChild(health.report("ready"), { startImmediately: true })
      yield* Fiber.interrupt(first)
      yield* TestClock.adjust("500 millis")
      expect((yield* Fiber.join(second)).ok).toBe(true)
    }))

  it.effect("a service that drains while it is asked is not ready", () =>
    Effect.gen(function*() {
      const health = yield* ready
      yield* health.add({ name: "db", check: Effect.sleep("500 millis") })
      const probing = yield* Effect.forkChild(health.report("ready"), { startImmediately: true })
      yield* health.advance("draining")
      yield* TestClock.adjust("500 millis")
      expect(yield* Fiber.join(probing)).toMatchObject({ ok: false, state: "draining" })
    }))
})

it.effect("a report goes through JSON and back", () =>
  Effect.gen(function*() {
    const health = yield* Health.make
    yield* health.add({ name: "db", check: Effect.fail("no") })
    yield* health.advance("ready")
    const report = yield* health.report("ready")
    const json = Schema.fromJsonString(Health.HealthReport)
    const text = yield* Schema.encodeEffect(json)(report)
    expect(JSON.parse(text)).toEqual({
      ok: false,
      probe: "ready",
      state: "ready",
      checks: [{ name: "db", ok: false, took: 0, why: "no" }]
    })
    expect(yield* Schema.decodeEffect(json)(text)).toEqual(report)
  }))
