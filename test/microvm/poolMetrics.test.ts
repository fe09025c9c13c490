/** What pools and launches tell Prometheus. */
import { describe, expect, it } from "@effect/vitest"
import { Machine, MachineSpec, MemoryDriver, MemoryProvider, MicroVmPool } from "effect-microvm-runtime/microvm"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Metric from "effect/Metric"
import * as PrometheusMetrics from "effect/observability/PrometheusMetrics"
import * as Scope from "effect/Scope"
import { makeWorld, takeOne } from "./poolWorld.ts"
import { fork, isDone, pass, quiet, reason, wanted } from "./support.ts"

/** With a registry of its own. */
const alone = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => Effect.provideService(effect, Metric.MetricRegistry, new Map()))

/** What Prometheus is told, without what it says of that, and without the buckets. */
const exported = Effect.map(
  PrometheusMetrics.format(),
  (text) => text.split("\n").filter((line) => line !== "" && !line.startsWith("#") && !line.includes("_bucket"))
)

const of = (lines: ReadonlyArray<string>, part: string) => lines.filter((line) => line.includes(part))

describe("a pool", () => {
  it.effect("tells how many machines it has, and how starts and takers fared, until it is closed", () =>
    alone(Effect.gen(function*() {
      const world = makeWorld({ start: () => 200, fails: (id) => id === 1 })
      const home = yield* Scope.make()
      const pool = yield* MicroVmPool.make({
        name: "jobs",
        acquire: world.acquire,
        min: 2,
        max: 3,
        maxWaiting: 1
      }).pipe(Scope.provide(home))
      yield* quiet
      expect(yield* exported).toEqual([
        "microvm_pool_machines{pool=\"jobs\",state=\"ready\"} 0",
        "microvm_pool_machines{pool=\"jobs\",state=\"in_use\"} 0",
        "microvm_pool_machines{pool=\"jobs\",state=\"starting\"} 2",
        "microvm_pool_machines{pool=\"jobs\",state=\"ending\"} 0",
        "microvm_pool_max{pool=\"jobs\"} 3",
        "microvm_pool_waiting{pool=\"jobs\"} 0",
        "microvm_pool_starts{pool=\"jobs\",outcome=\"ready\"} 0",
        "microvm_pool_starts{pool=\"jobs\",outcome=\"failed\"} 0",
        "microvm_pool_unfit{pool=\"jobs\"} 0",
        "microvm_pool_refused{pool=\"jobs\"} 0",
        ...["start", "take"].flatMap((what) => [
          `microvm_pool_${what}_seconds_sum{pool="jobs"} 0`,
          `microvm_pool_${what}_seconds_count{pool="jobs"} 0`
        ])
      ])
      const taker = yield* fork(takeOne(pool))
      yield* quiet
      expect(yield* reason(takeOne(pool))).toMatchObject({ _tag: "PoolFull", pool: "jobs" })
      expect(of(yield* exported, "waiting")).toEqual(["microvm_pool_waiting{pool=\"jobs\"} 1"])
      yield* pass(200)
      yield* quiet
      const lines = yield* exported
      expect(of(lines, "in_use")).toEqual(["microvm_pool_machines{pool=\"jobs\",state=\"in_use\"} 1"])
      expect(of(lines, "starts")).toEqual([
        "microvm_pool_starts{pool=\"jobs\",outcome=\"ready\"} 2",
        "microvm_pool_starts{pool=\"jobs\",outcome=\"failed\"} 1"
      ])
      expect(of(lines, "refused")).toEqual(["microvm_pool_refused{pool=\"jobs\"} 1"])
      expect(of(lines, "seconds")).toEqual([
        "microvm_pool_start_seconds_sum{pool=\"jobs\"} 0.4",
        "microvm_pool_start_seconds_count{pool=\"jobs\"} 2",
        "microvm_pool_take_seconds_sum{pool=\"jobs\"} 0.2",
        "microvm_pool_take_seconds_count{pool=\"jobs\"} 1"
      ])
      expect((yield* PrometheusMetrics.format()).split("\n")).toContain(
        "microvm_pool_take_seconds_bucket{pool=\"jobs\",le=\"0.25\"} 1"
      )
      expect(isDone(taker)).toBe(true)
      yield* Scope.close(home, Exit.void)
      expect(yield* exported).toEqual([])
    })))

  it.effect("has a name of its own also where another one was given it, and none that is gone keeps one", () =>
    alone(Effect.gen(function*() {
      const { acquire } = makeWorld()
      const make = MicroVmPool.make({ acquire, min: 0, max: 1 })
      const pools = Effect.map(exported, (lines) => of(lines, "pool_max"))
      const first = yield* Scope.make()
      yield* Scope.provide(make, first)
      yield* make
      expect(yield* pools).toEqual(["microvm_pool_max{pool=\"default\"} 1", "microvm_pool_max{pool=\"default-2\"} 1"])
      yield* Scope.close(first, Exit.void)
      expect(yield* pools).toEqual(["microvm_pool_max{pool=\"default-2\"} 1"])
      yield* make
      expect((yield* pools).toSorted()).toEqual([
        "microvm_pool_max{pool=\"default\"} 1",
        "microvm_pool_max{pool=\"default-2\"} 1"
      ])
    })))
})

describe("a launch", () => {
  it.effect("is counted and timed by backend; one that is called off is neither", () =>
    alone(Effect.gen(function*() {
      const { script } = yield* MemoryDriver.MemoryDriver
      yield* script("good", { launch: () => Effect.sleep(100) })
      yield* script("bad", { launch: () => Effect.fail("no memory") })
      yield* script("stuck", { launch: () => Effect.never })
      const launch = (id: string) =>
        MachineSpec.decode(wanted(id)).pipe(Effect.flatMap((spec) => Machine.launch(spec)), Effect.scoped, fork)
      expect(yield* exported).toEqual([])
      const stuck = yield* launch("stuck")
      yield* quiet
      yield* Fiber.interrupt(stuck)
      expect(yield* exported).toEqual([])
      yield* launch("good")
      const bad = yield* launch("bad")
      for (let turn = 0; turn < 10; turn++) yield* pass(100)
      expect(yield* reason(Fiber.join(bad))).toMatchObject({ _tag: "LaunchFailed" })
      const labels = "{backend=\"memory\",start=\"boot\"}"
      expect((yield* exported).toSorted()).toEqual([
        `microvm_launch_failures${labels} 1`,
        `microvm_launch_seconds_count${labels} 1`,
        `microvm_launch_seconds_sum${labels} 0.3`
      ])
    })).pipe(Effect.provide(MemoryProvider.layer)))
})
