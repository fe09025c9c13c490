import { describe, expect, it } from "@effect/vitest"
import { type MicroVmError, MicroVmPool } from "effect-microvm-runtime/microvm"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { type Fake, makeWorld, takeOne } from "./poolWorld.ts"
import { fork, isDone, pass, quiet, reason, stepByStep, turns } from "./support.ts"

const close = (scope: Scope.Closeable) => Scope.close(scope, Exit.void)

/** The numbers of a pool, without what never changes in most tests. */
const counts = <A, E>(pool: MicroVmPool.MicroVmPool<A, E>) =>
  Effect.map(pool.stats, ({ ending, inUse, ready, starting, waiting }) => ({ ready, inUse, starting, ending, waiting }))

const nobody = { ready: 0, inUse: 0, starting: 0, ending: 0, waiting: 0 }

/** Lets a fiber that waits on the clock come to its end. */
const finish = <A, E>(fiber: Fiber.Fiber<A, E>) =>
  Effect.gen(function*() {
    for (let turn = 0; turn < 100 && !isDone(fiber); turn++) yield* pass(100)
    expect(isDone(fiber)).toBe(true)
    return yield* Fiber.join(fiber)
  })

describe("options", () => {
  it.effect("all that is wrong with them is said at once, before anything starts", () =>
    Effect.gen(function*() {
      const world = makeWorld()
      const found = yield* reason(MicroVmPool.make({
        acquire: world.acquire,
        min: 1.5,
        max: 0,
        refill: { concurrency: 0, rate: { starts: 0, per: 0 } },
        maxAge: NaN,
        healthTimeout: -1,
        maxWaiting: NaN,
        name: "my pool"
      }))
      expect(found?._tag === "InvalidPool" ? found.faults.map(({ field }) => field) : found).toEqual(
        [
          "min",
          "max",
          "min",
          "maxWaiting",
          "name",
          "refill.concurrency",
          "refill.rate.starts",
          "refill.rate.per",
          "maxAge",
          "healthTimeout"
        ]
      )
      expect(found?.message).toContain("min is 1.5: write a whole number from 0; max is 0: write a whole number from 1")
      expect(world.startedAt()).toEqual([])
    }))

  it.effect("a pool that could never hand anything out is refused", () =>
    Effect.gen(function*() {
      const { acquire } = makeWorld()
      const found = yield* reason(MicroVmPool.make({ acquire, min: 0, max: 1, maxWaiting: 0 }))
      expect(found?.message).toBe(
        "Invalid pool: maxWaiting is 0: write 1 at least where min is 0, as none is ever ready"
      )
    }))
})

describe("refilling", () => {
  it.effect("min machines are ready, besides those in use, up to max", () =>
    Effect.gen(function*() {
      const world = makeWorld()
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 2, max: 5 })
      yield* pass(0)
      expect(yield* counts(pool)).toEqual({ ...nobody, starting: 2 })
      yield* pass(100)
      expect(yield* counts(pool)).toEqual({ ...nobody, ready: 2 })
      const users = [yield* takeOne(pool), yield* takeOne(pool)]
      yield* pass(100)
      expect(yield* counts(pool)).toEqual({ ...nobody, ready: 2, inUse: 2 })
      users.push(yield* takeOne(pool), yield* takeOne(pool))
      yield* pass(100)
      expect(yield* counts(pool)).toEqual({ ...nobody, ready: 1, inUse: 4 })
      yield* Effect.forEach(users, ({ scope }) => close(scope))
      yield* pass(100)
      expect(yield* counts(pool)).toEqual({ ...nobody, ready: 2 })
      expect(world.most()).toBe(5)
    }))

  it.effect("a start that hangs does not hold up the others", () =>
    Effect.gen(function*() {
      const world = makeWorld({ start: (id) => id === 0 ? 1e9 : 100 })
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 1, max: 4 })
      const taker = yield* fork(takeOne(pool))
      yield* pass(100)
      expect((yield* finish(taker)).machine.id).toBe(1)
      const next = yield* fork(takeOne(pool))
      yield* pass(100)
      expect((yield* finish(next)).machine.id).toBeGreaterThan(1)
    }))

  it.effect("no more start at a time, nor in a while, than was said", () =>
    Effect.gen(function*() {
      const world = makeWorld({ start: () => 400 })
      const pool = yield* MicroVmPool.make({
        acquire: world.acquire,
        min: 10,
        max: 10,
        refill: { concurrency: 2, rate: { starts: 3, per: "1 second" } }
      })
      for (let turn = 0; turn < 50; turn++) yield* pass(100)
      expect((yield* pool.stats).ready).toBe(10)
      expect(world.mostStarting()).toBe(2)
      expect(world.startedAt()).toEqual([0, 0, 400, 1000, 1000, 1400, 2000, 2000, 2400, 3000])
    }))

  it.effect("a place is free only once the machine that had it is gone", () =>
    Effect.gen(function*() {
      const world = makeWorld({ end: () => 1000 })
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 1, max: 1 })
      yield* pass(100)
      const { scope } = yield* takeOne(pool)
      const closing = yield* fork(close(scope))
      yield* pass(900)
      expect(yield* counts(pool)).toEqual({ ...nobody, ending: 1 })
      yield* pass(100)
      expect(isDone(closing)).toBe(true)
      yield* pass(0)
      expect(yield* counts(pool)).toEqual({ ...nobody, starting: 1 })
      expect(world.most()).toBe(1)
      yield* pass(100)
      yield* pool.drain.pipe(fork, Effect.flatMap(finish))
    }))

  it.effect("starts that fail are tried again, later each time, and as before once one was handed out", () =>
    Effect.gen(function*() {
      let broken = true
      const world = makeWorld({ start: () => 0, fails: () => broken })
      const pool = yield* MicroVmPool.make({
        acquire: world.acquire,
        min: 1,
        max: 2,
        retry: Schedule.exponential("1 second")
      })
      for (let turn = 0; turn < 80; turn++) yield* pass(100)
      expect(world.startedAt()).toEqual([0, 1000, 3000, 7000])
      const { lastFailure, ready } = yield* pool.stats
      expect(ready).toBe(0)
      expect(Option.map(lastFailure, Cause.squash)).toEqual(Option.some("start 3"))
      broken = false
      const taken = yield* takeOne(pool)
      expect(taken.machine.id).toBe(4)
      broken = true
      yield* pass(0)
      expect(world.startedAt().length).toBe(6)
      yield* pass(1000)
      yield* quiet
      expect(world.startedAt().slice(4)).toEqual([8000, 8000, 9000])
    }))

  it.effect("a start that fails is told to who waits for it, and logged where nobody does, once until one has worked", () => {
    const warnings: Array<string> = []
    const logger = Logger.make(({ cause, logLevel, message }) => {
      warnings.push(`${logLevel} ${String(message)}: ${String(Cause.squash(cause))}`)
    })
    return Effect.gen(function*() {
      let broken = true
      const world = makeWorld({ start: () => 100, fails: () => broken })
      const retry = Schedule.spaced("1 second")
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 1, max: 2, retry })
      for (let turn = 0; turn < 40; turn++) yield* pass(100)
      expect(world.startedAt().length).toBe(4)
      expect(warnings).toEqual(["Warn A machine of a pool could not be started: start 0"])
      const taker = yield* fork(Effect.flip(takeOne(pool)))
      yield* pass(100)
      expect(yield* finish(taker)).toMatch(/start/)
      broken = false
      const { scope } = yield* finish(yield* Effect.tap(fork(takeOne(pool)), pass(100)))
      yield* pass(100)
      broken = true
      yield* close(scope)
      yield* close((yield* takeOne(pool)).scope)
      yield* pass(100)
      expect(warnings.length).toBe(2)
    }).pipe(Effect.provide(Logger.layer([logger])))
  })

  it.effect("a schedule that is over ends the refilling until a machine was handed out", () =>
    Effect.gen(function*() {
      let broken = true
      const world = makeWorld({ start: () => 0, fails: () => broken })
      const retry = Schedule.spaced("1 second").pipe(Schedule.upTo({ times: 2 }))
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 1, max: 3, retry })
      for (let turn = 0; turn < 100; turn++) yield* pass(1000)
      expect(world.startedAt()).toEqual([0, 1000, 2000])
      broken = false
      yield* takeOne(pool)
      yield* pass(0)
      expect(yield* counts(pool)).toEqual({ ...nobody, ready: 1, inUse: 1 })
    }))
})

describe("taking", () => {
  it.effect("those who wait are served in order, and each machine once", () =>
    Effect.gen(function*() {
      // Each start is quicker than the one before it.
      const world = makeWorld({ start: (id) => 1000 - id * 100 })
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 0, max: 3 })
      const served: Array<number> = []
      const machines: Array<number> = []
      const takers = yield* Effect.forEach([0, 1, 2, 3, 4, 5], (n) =>
        fork(Effect.scoped(Effect.gen(function*() {
          const { id } = yield* pool.take
          served.push(n)
          machines.push(id)
          yield* Effect.sleep(100)
        }))))
      yield* quiet
      expect(yield* counts(pool)).toEqual({ ...nobody, starting: 3, waiting: 6 })
      yield* Effect.forEach(takers, finish)
      expect(served).toEqual([0, 1, 2, 3, 4, 5])
      expect(new Set(machines).size).toBe(6)
      expect(machines[0]).toBe(2)
      expect(world.most()).toBe(3)
    }))

  it.effect("the oldest is handed out first, at once, while others start and end", () =>
    Effect.gen(function*() {
      let slow = true
      const world = makeWorld({ start: (id) => id < 3 ? 100 * (id + 1) : 1e9, end: () => slow ? 1000 : 0 })
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 3, max: 9 })
      for (let turn = 0; turn < 3; turn++) yield* pass(100)
      const before = yield* Clock.currentTimeMillis
      const first = yield* takeOne(pool)
      yield* fork(close(first.scope))
      const ids = [first.machine.id, (yield* takeOne(pool)).machine.id, (yield* takeOne(pool)).machine.id]
      expect(ids).toEqual([0, 1, 2])
      expect(yield* Clock.currentTimeMillis).toBe(before)
      slow = false
      yield* pass(1000)
    }))

  it.effect("a start that fails is told to the first who waits, when no other start is left for him", () =>
    Effect.gen(function*() {
      const world = makeWorld({ start: (id) => id === 0 ? 100 : 200, fails: (id) => id === 0 })
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 0, max: 2 })
      const takers = yield* Effect.forEach([0, 1, 2], () => fork(Effect.exit(takeOne(pool))))
      yield* pass(100)
      expect(takers.map(isDone)).toEqual([true, false, false])
      const exit = yield* finish(takers[0] ?? (yield* Effect.die("a taker")))
      expect(Exit.isFailure(exit) ? Cause.squash(exit.cause) : exit).toBe("start 0")
      yield* pass(200)
      expect(takers.map(isDone)).toEqual([true, true, true])
    }))

  it.effect("a start that fails is not told to one for whom another start is under way", () =>
    Effect.gen(function*() {
      const world = makeWorld({ start: (id) => id === 0 ? 100 : 200, fails: (id) => id === 0 })
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 1, max: 2 })
      const taker = yield* fork(takeOne(pool))
      yield* pass(100)
      expect(isDone(taker)).toBe(false)
      yield* pass(100)
      expect((yield* finish(taker)).machine.id).toBe(1)
    }))

  it.effect("one that leaves gives up the place, not a machine", () =>
    Effect.gen(function*() {
      const world = makeWorld()
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 0, max: 1 })
      const [first, second] = [yield* fork(takeOne(pool)), yield* fork(takeOne(pool))]
      yield* quiet
      yield* Fiber.interrupt(first)
      expect((yield* pool.stats).waiting).toBe(1)
      yield* pass(100)
      expect((yield* finish(second)).machine.id).toBe(0)
    }))

  it.effect("one that leaves as its machine comes leaves the machine ready", () =>
    Effect.gen(function*() {
      const gate = Deferred.makeUnsafe<void>()
      const world = makeWorld()
      const pool = yield* MicroVmPool.make({
        acquire: world.acquire.pipe(Effect.tap(() => Deferred.await(gate))),
        min: 0,
        max: 1
      })
      const taker = yield* fork(takeOne(pool))
      yield* pass(100)
      taker.interruptUnsafe()
      Deferred.doneUnsafe(gate, Exit.void)
      yield* quiet
      expect(isDone(taker)).toBe(true)
      expect(yield* counts(pool)).toEqual({ ...nobody, ready: 1 })
      expect((yield* takeOne(pool)).machine.id).toBe(0)
    }))

  it.effect("a machine that was taken into a scope that is closed is ended", () =>
    Effect.gen(function*() {
      const world = makeWorld()
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 1, max: 1 })
      yield* pass(100)
      const scope = yield* Scope.make()
      yield* close(scope)
      yield* Scope.provide(pool.take, scope)
      yield* pass(100)
      expect(world.alive()).toEqual([1])
    }))
})

describe("more takers than may wait", () => {
  const full = { _tag: "PoolFull", pool: "default", max: 1, maxWaiting: 2 }

  it.effect("are refused at once, and counted, and told what to do", () =>
    Effect.gen(function*() {
      const world = makeWorld()
      const options = { name: "jobs", acquire: world.acquire, min: 1, max: 1, maxWaiting: 2 }
      const pool = yield* MicroVmPool.make(options)
      const takers = [yield* fork(takeOne(pool)), yield* fork(takeOne(pool))]
      const refused = yield* Effect.forEach([1, 2, 3], () => fork(reason(takeOne(pool))))
      yield* quiet
      expect(refused.map(isDone)).toEqual([true, true, true])
      expect((yield* finish(refused[0] ?? (yield* Effect.die("a taker"))))?.message).toBe(
        "Pool \"jobs\" has no machine ready, and as many wait for one as may (maxWaiting is 2): " +
          "try again later, or give it a max above 1"
      )
      const { refused: counted, waiting } = yield* pool.stats
      expect([waiting, counted]).toEqual([2, 3])
      yield* pass(100)
      expect(takers.map(isDone)).toEqual([true, false])
    }))

  it.effect("one that leaves, or gets its machine, frees its place", () =>
    Effect.gen(function*() {
      const world = makeWorld()
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 0, max: 1, maxWaiting: 2 })
      const [first, leaving] = [yield* fork(takeOne(pool)), yield* fork(takeOne(pool))]
      yield* quiet
      expect(yield* reason(takeOne(pool))).toMatchObject(full)
      yield* Fiber.interrupt(leaving)
      yield* fork(takeOne(pool))
      yield* quiet
      expect(yield* reason(takeOne(pool))).toMatchObject(full)
      yield* pass(100)
      expect(isDone(first)).toBe(true)
      yield* fork(takeOne(pool))
      yield* quiet
      expect((yield* pool.stats).waiting).toBe(2)
      expect(yield* reason(takeOne(pool))).toMatchObject(full)
    }))

  it.effect("what is ready is handed out however few may wait", () =>
    Effect.gen(function*() {
      const world = makeWorld()
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 1, max: 1, maxWaiting: 0 })
      expect(yield* reason(takeOne(pool))).toMatchObject({ ...full, maxWaiting: 0 })
      yield* pass(100)
      expect((yield* takeOne(pool)).machine.id).toBe(0)
      expect(yield* reason(takeOne(pool))).toMatchObject({ _tag: "PoolFull" })
    }))

  it.effect("one whose machine was unfit goes back to its place, before those who came later", () =>
    Effect.gen(function*() {
      const world = makeWorld()
      const pool = yield* MicroVmPool.make({
        acquire: world.acquire,
        min: 0,
        max: 1,
        maxWaiting: 1,
        healthy: ({ id }) => Effect.as(Effect.sleep(100), id > 0)
      })
      const first = yield* fork(takeOne(pool))
      yield* pass(100)
      const second = yield* fork(takeOne(pool))
      yield* pass(100)
      yield* quiet
      expect((yield* pool.stats).waiting).toBe(2)
      expect(yield* reason(takeOne(pool))).toMatchObject({ _tag: "PoolFull" })
      expect((yield* finish(first)).machine.id).toBe(1)
      expect(isDone(second)).toBe(false)
    }))

  it.effect("a pool that is closed says so, not that it is full", () =>
    Effect.gen(function*() {
      const world = makeWorld()
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 1, max: 1, maxWaiting: 0 })
      yield* pass(100)
      yield* pool.drain
      expect(yield* reason(takeOne(pool))).toMatchObject({ _tag: "PoolClosed" })
    }))
})

describe("machines that are not fit", () => {
  it.effect("one that ends while it is ready is replaced", () =>
    Effect.gen(function*() {
      const world = makeWorld()
      const retry = Schedule.spaced("1 second")
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 2, max: 2, ended: world.ended, retry })
      yield* pass(100)
      yield* world.crash(0)
      yield* quiet
      expect(yield* counts(pool)).toEqual({ ...nobody, ready: 1 })
      expect((yield* pool.stats).unfit).toBe(1)
      yield* pass(1000)
      yield* pass(100)
      expect((yield* pool.stats).ready).toBe(2)
      expect(world.alive()).toEqual([1, 2])
    }))

  it.effect("those that end as soon as they are ready are not started all the time", () =>
    Effect.gen(function*() {
      const world = makeWorld({ start: () => 0 })
      const pool = yield* MicroVmPool.make({
        acquire: world.acquire,
        min: 4,
        max: 4,
        ended: () => Effect.void,
        // One that takes its time to say when.
        retry: Schedule.addDelay(Schedule.exponential("1 second"), () => Effect.as(quiet, 0))
      })
      for (let turn = 0; turn < 100; turn++) yield* pass(100)
      expect(world.startedAt()).toEqual([0, 1000, 3000, 7000])
      expect((yield* pool.stats).ready).toBe(0)
    }))

  it.effect("one that is in use is nobody's business but its user's", () =>
    Effect.gen(function*() {
      const world = makeWorld()
      let watched = 0
      const ended = (fake: Fake) =>
        Effect.andThen(Effect.sync(() => watched++), Effect.ensuring(world.ended(fake), Effect.sync(() => watched--)))
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 1, max: 1, ended })
      yield* pass(100)
      yield* quiet
      expect(watched).toBe(1)
      const { machine } = yield* takeOne(pool)
      yield* quiet
      expect(watched).toBe(0)
      yield* world.crash(machine.id)
      yield* quiet
      expect(yield* counts(pool)).toEqual({ ...nobody, inUse: 1 })
    }))

  it.effect("none gets older than maxAge, and not all are replaced at once", () =>
    Effect.gen(function*() {
      const world = makeWorld({ start: () => 10 })
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 4, max: 8, maxAge: "10 seconds" })
      yield* pass(10)
      let least = 4
      for (let turn = 0; turn < 1050; turn++) {
        yield* TestClockStep
        least = Math.min(least, (yield* pool.stats).ready)
      }
      expect(world.alive().filter((id) => id < 4)).toEqual([])
      expect((yield* pool.stats).ready).toBe(4)
      expect((yield* pool.stats).unfit).toBe(0)
      expect(least).toBeGreaterThan(0)
      expect(world.startedAt().length).toBeGreaterThanOrEqual(8)
    }))

  it.effect("one that grew old while the host slept, and no timer went off, is not handed out", () =>
    Effect.gen(function*() {
      const clock = yield* Clock.Clock
      let slept = 0
      const world = makeWorld()
      const awake = {
        currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + slept,
        currentTimeMillis: Effect.map(clock.currentTimeMillis, (now) => now + slept),
        currentTimeNanosUnsafe: () => clock.currentTimeNanosUnsafe(),
        currentTimeNanos: clock.currentTimeNanos,
        sleep: clock.sleep.bind(clock)
      }
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 1, max: 1, maxAge: "1 hour" }).pipe(
        Effect.provideService(Clock.Clock, awake)
      )
      yield* pass(100)
      slept = 3_600_000
      const taker = yield* fork(takeOne(pool))
      yield* quiet
      expect(world.alive()).toEqual([1])
      expect((yield* finish(taker)).machine.id).toBe(1)
    }))

  it.effect("one that ends while it is checked is not handed out", () =>
    Effect.gen(function*() {
      const world = makeWorld()
      const pool = yield* MicroVmPool.make({
        acquire: world.acquire,
        min: 2,
        max: 2,
        ended: world.ended,
        healthy: () => Effect.sleep(100)
      })
      yield* pass(100)
      const taker = yield* fork(takeOne(pool))
      yield* quiet
      yield* world.crash(0)
      expect((yield* finish(taker)).machine.id).toBe(1)
    }))

  it.effect("one that the check refuses, or does not answer for, is ended, and another one taken", () =>
    Effect.gen(function*() {
      const world = makeWorld()
      const answers = [Effect.succeed(false), Effect.fail("no agent"), Effect.never, Effect.die("bug"), Effect.void]
      const pool = yield* MicroVmPool.make<Fake, string, Scope.Scope>({
        acquire: world.acquire,
        min: 5,
        max: 5,
        refill: { concurrency: 5 },
        healthy: ({ id }) => answers[id] ?? Effect.succeed(true),
        healthTimeout: "1 second"
      })
      yield* pass(100)
      const taker = yield* fork(takeOne(pool))
      yield* quiet
      expect(isDone(taker)).toBe(false)
      yield* pass(1000)
      expect((yield* finish(taker)).machine.id).toBe(4)
      expect((yield* pool.stats).unfit).toBe(4)
      expect(world.alive()).not.toContain(3)
    }))

  it.effect("one that is checked does not hold up the next taker", () =>
    Effect.gen(function*() {
      const world = makeWorld()
      const pool = yield* MicroVmPool.make({
        acquire: world.acquire,
        min: 2,
        max: 2,
        healthy: ({ id }) => id === 0 ? Effect.never : Effect.void,
        healthTimeout: "1 hour"
      })
      yield* pass(100)
      const slow = yield* fork(takeOne(pool))
      expect((yield* takeOne(pool)).machine.id).toBe(1)
      // It was looked at only, so who comes next may have it.
      yield* Fiber.interrupt(slow)
      expect(yield* counts(pool)).toEqual({ ...nobody, ready: 1, inUse: 1 })
    }))

  it.effect("who was given an unfit one is before those who asked later", () =>
    Effect.gen(function*() {
      const world = makeWorld()
      const pool = yield* MicroVmPool.make({
        acquire: world.acquire,
        min: 0,
        max: 1,
        healthy: ({ id }) => Effect.delay(Effect.succeed(id !== 0), 10)
      })
      const served: Array<string> = []
      const take = (name: string) =>
        fork(Effect.scoped(Effect.tap(pool.take, () => Effect.sync(() => served.push(name)))))
      const first = yield* take("first")
      const second = yield* take("second")
      yield* finish(first)
      yield* finish(second)
      expect(served).toEqual(["first", "second"])
    }))

  it.effect("when each one started for it is unfit, a taker is told so", () =>
    Effect.gen(function*() {
      const world = makeWorld()
      const pool = yield* MicroVmPool.make({
        acquire: world.acquire,
        min: 0,
        max: 2,
        healthy: () => Effect.succeed(false)
      })
      const taker = yield* fork(reason(Effect.scoped(pool.take)))
      expect(yield* finish(taker)).toMatchObject({ _tag: "MachinesUnfit", tried: 3 })
      expect(world.startedAt().length).toBe(3)
    }))
})

describe("the end", () => {
  it.effect("draining refuses takers, ends what is idle or starts, and waits for what is in use", () =>
    Effect.gen(function*() {
      const world = makeWorld({ start: (id) => id < 2 ? 100 : 1e9 })
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 2, max: 4 })
      yield* pass(100)
      const { machine, scope } = yield* takeOne(pool)
      yield* quiet
      expect(yield* counts(pool)).toEqual({ ...nobody, ready: 1, inUse: 1, starting: 1 })
      const draining = yield* fork(pool.drain)
      yield* quiet
      expect(isDone(draining)).toBe(false)
      expect(world.alive()).toEqual([machine.id])
      expect(yield* reason(Effect.scoped(pool.take))).toMatchObject({ _tag: "PoolClosed" })
      yield* close(scope)
      yield* finish(draining)
      expect(world.alive()).toEqual([])
      expect(yield* counts(pool)).toEqual(nobody)
      yield* pool.drain
    }))

  it.effect("draining leaves no start behind, wherever in it a drain comes", () =>
    Effect.gen(function*() {
      for (let after = 0; after < 30; after++) {
        const pool = yield* MicroVmPool.make({ acquire: Effect.never, min: 0, max: 2 })
        yield* turns(50)
        const taken = yield* fork(Effect.exit(Effect.scoped(pool.take)))
        yield* turns(after)
        const drained = yield* fork(pool.drain)
        yield* turns(500)
        expect([after, isDone(taken), isDone(drained)]).toEqual([after, true, true])
        expect([after, (yield* pool.stats).starting]).toEqual([after, 0])
      }
    }).pipe(stepByStep))

  it.effect("draining goes on when nobody waits for it any more", () =>
    Effect.gen(function*() {
      const world = makeWorld({ end: () => 1000 })
      const pool = yield* MicroVmPool.make({ acquire: world.acquire, min: 2, max: 2 })
      yield* pass(100)
      const draining = yield* fork(pool.drain)
      yield* quiet
      yield* Fiber.interrupt(draining)
      yield* pass(1000)
      expect(world.alive()).toEqual([])
    }))

  it.effect("closing the scope ends all at the same time, and tells those who wait", () =>
    Effect.gen(function*() {
      const world = makeWorld({ start: (id) => id < 3 ? 100 : 1e9, end: () => 1000 })
      const scope = yield* Scope.make()
      const pool = yield* Scope.provide(MicroVmPool.make({ acquire: world.acquire, min: 3, max: 5 }), scope)
      yield* pass(100)
      const used = yield* takeOne(pool)
      const late = yield* Effect.forEach([0, 1, 2], () => fork(takeOne(pool)))
      yield* quiet
      expect(yield* counts(pool)).toEqual({ ...nobody, inUse: 3, starting: 2, waiting: 1 })
      const before = yield* Clock.currentTimeMillis
      const closing = yield* fork(close(scope))
      const waiting = late[2] ?? (yield* Effect.die("a taker"))
      expect(yield* reason(Fiber.join(waiting))).toMatchObject({ _tag: "PoolClosed" })
      yield* pass(1000)
      expect(isDone(closing)).toBe(true)
      expect(yield* Clock.currentTimeMillis).toBe(before + 1000)
      expect(world.alive()).toEqual([])
      yield* close(used.scope)
      expect(yield* counts(pool)).toEqual(nobody)
    }))

  it.effect("a scope that closes waits for a machine that its user is giving back", () =>
    Effect.gen(function*() {
      const world = makeWorld({ end: () => 1000 })
      const scope = yield* Scope.make()
      const pool = yield* Scope.provide(MicroVmPool.make({ acquire: world.acquire, min: 1, max: 1 }), scope)
      yield* pass(100)
      const used = yield* takeOne(pool)
      yield* fork(close(used.scope))
      yield* pass(500)
      const closing = yield* fork(close(scope))
      yield* quiet
      expect(isDone(closing)).toBe(false)
      yield* pass(500)
      expect(isDone(closing)).toBe(true)
      expect(world.alive()).toEqual([])
    }))
})

/** Ten milliseconds, in which a few fibers have a turn. */
const TestClockStep = pass(10)

/** What a taker may be told, as types: the error of a start and the pool's own. */
export const typed = (pool: MicroVmPool.MicroVmPool<Fake, string>): Effect.Effect<
  Fake,
  string | MicroVmError.MicroVmError,
  Scope.Scope
> => pool.take
