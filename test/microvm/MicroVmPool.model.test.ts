import { expect, it } from "@effect/vitest"
import { type MicroVmError, MicroVmPool } from "effect-microvm-runtime/microvm"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { type Fake, makeWorld } from "./poolWorld.ts"
import { fork, isDone, pass, quiet } from "./support.ts"

const within = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))

const Step = Schema.Struct({
  what: Schema.Literals(["take", "take", "take", "giveBack", "giveBack", "leave", "crash", "wait", "wait"]),
  /** Which taker, machine or time. */
  which: within(0, 20)
})

const Run = Schema.Struct({
  min: within(0, 3),
  spare: within(0, 3),
  maxWaiting: within(0, 4),
  concurrency: within(1, 3),
  starts: within(1, 4),
  checked: Schema.Boolean,
  ages: Schema.Boolean,
  /** What becomes of each start, in turn. */
  fates: Schema.NonEmptyArray(Schema.Struct({
    start: within(0, 300),
    end: within(0, 300),
    what: Schema.Literals(["well", "well", "well", "fails", "sick", "mute"])
  })).check(Schema.isMaxLength(8)),
  steps: Schema.Array(Step).check(Schema.isMaxLength(40)),
  end: Schema.Literals(["close", "drain"])
})

type Told = MicroVmError.MicroVmError | string

interface Taker {
  readonly turn: number
  readonly scope: Scope.Closeable
  readonly fiber: Fiber.Fiber<Fake, Told>
}

const rate = 1000

it.effect.prop(
  "whatever takers, machines and starts do: at most max, each machine once, in order, and nothing is left",
  { input: Run },
  ({ input }) =>
    Effect.gen(function*() {
      const max = Math.max(1, input.min + input.spare)
      const maxWaiting = input.min === 0 ? 1 + input.maxWaiting : input.maxWaiting
      const fate = (id: number) => input.fates[id % input.fates.length] ?? input.fates[0]
      let calm = false
      const world = makeWorld({
        start: (id) => fate(id).start,
        end: (id) => fate(id).end,
        fails: (id) => !calm && fate(id).what === "fails"
      })
      const home = yield* Scope.make()
      const pool = yield* Scope.provide(
        MicroVmPool.make({
          acquire: world.acquire,
          min: input.min,
          max,
          maxWaiting,
          refill: { concurrency: input.concurrency, rate: { starts: input.starts, per: rate } },
          maxAge: input.ages ? 10_000 : undefined,
          ended: world.ended,
          healthy: input.checked
            ? ({ id }) => {
              if (calm) return Effect.void
              const { what } = fate(id)
              return what === "mute" ? Effect.never : Effect.succeed(what !== "sick")
            }
            : undefined,
          healthTimeout: 50,
          retry: Schedule.spaced(100)
        }),
        home
      )
      let turns = 0
      const takers: Array<Taker> = []
      const users: Array<Taker> = []
      const had = new Set<number>()
      const lastServed: Array<number> = []
      let refused = 0

      const serve = Effect.gen(function*() {
        yield* quiet
        for (const taker of takers.filter(({ fiber }) => isDone(fiber))) {
          takers.splice(takers.indexOf(taker), 1)
          const exit = yield* Fiber.await(taker.fiber)
          if (Exit.isFailure(exit)) continue
          expect(had.has(exit.value.id), "a machine is handed out once").toBe(false)
          had.add(exit.value.id)
          lastServed.push(taker.turn)
          users.push(taker)
        }
      })
      const look = Effect.gen(function*() {
        yield* serve
        expect(world.most()).toBeLessThanOrEqual(max)
        expect(world.mostStarting()).toBeLessThanOrEqual(input.concurrency)
        const { ending, inUse, ready, refused: counted, starting, waiting } = yield* pool.stats
        expect(counted).toBe(refused)
        // Those that had an unfit one are let in again.
        expect(waiting).toBeLessThanOrEqual(input.checked ? maxWaiting + max : maxWaiting)
        expect(ready + inUse + starting + ending).toBe(world.alive().length)
        expect(inUse).toBeGreaterThanOrEqual(users.length)
        if (!input.checked) {
          expect(inUse).toBe(users.length)
          // A check takes its time, so one who asked earlier may be served later; nothing else lets anybody pass.
          expect(lastServed).toEqual(lastServed.toSorted((a, b) => a - b))
          if (ready > 0) expect(takers).toEqual([])
        }
      })
      const pick = <T>(from: Array<T>, which: number): T | undefined => from.splice(which % from.length, 1)[0]
      const giveBack = ({ scope }: Taker) => Effect.forkChild(Scope.close(scope, Exit.void))

      for (const { what, which } of input.steps) {
        switch (what) {
          case "take": {
            const scope = yield* Scope.make()
            const { ready, waiting } = yield* pool.stats
            const taker = { turn: turns++, scope, fiber: yield* fork(Scope.provide(pool.take, scope)) }
            if (ready > 0 || waiting < maxWaiting) {
              takers.push(taker)
            } else {
              refused++
              const exit = taker.fiber.pollUnsafe()
              expect(exit !== undefined && Exit.isFailure(exit) ? Cause.squash(exit.cause) : exit).toMatchObject({
                reason: { _tag: "PoolFull", max, maxWaiting }
              })
            }
            break
          }
          case "giveBack": {
            const user = pick(users, which)
            if (user !== undefined) yield* giveBack(user)
            break
          }
          case "leave": {
            const taker = pick(takers, which)
            if (taker !== undefined) {
              yield* Fiber.interrupt(taker.fiber)
              yield* giveBack(taker)
            }
            break
          }
          case "crash": {
            const alive = world.alive()
            const id = alive[which % alive.length]
            if (id !== undefined) yield* world.crash(id)
            break
          }
          default:
            yield* pass(which * 20)
        }
        yield* look
      }

      // In calm weather everybody is served, and min machines are ready again.
      calm = true
      for (let turn = 0; turn < 200 && takers.length > 0; turn++) {
        for (const user of users.splice(0)) yield* giveBack(user)
        yield* pass(100)
        yield* look
      }
      expect(takers).toEqual([])
      for (const user of users.splice(1)) yield* giveBack(user)
      let least = false
      for (let turn = 0; turn < 100 && !least; turn++) {
        yield* pass(100)
        least = (yield* pool.stats).ready >= Math.min(input.min, max - users.length)
      }
      expect(least, "min machines are ready again").toBe(true)

      const perWindow = world.startedAt().map((from, i, all) => all.slice(i).filter((at) => at < from + rate).length)
      expect(Math.max(0, ...perWindow)).toBeLessThanOrEqual(input.starts)

      const late = yield* fork(Effect.scoped(Effect.forEach(Array.from({ length: max + 1 }), () => pool.take)))
      yield* quiet
      const over = yield* fork(input.end === "close" ? Scope.close(home, Exit.void) : pool.drain)
      yield* quiet
      for (const user of users.splice(0)) yield* giveBack(user)
      // One who has taken several gives them back one after the other.
      for (let turn = 0; turn < 30 && !isDone(over); turn++) yield* pass(100)
      expect(isDone(over)).toBe(true)
      expect(isDone(late)).toBe(true)
      expect(world.alive()).toEqual([])
      const started = world.startedAt().length
      yield* pass(60_000)
      expect(world.startedAt().length).toBe(started)
      yield* Scope.close(home, Exit.void)
    })
)
