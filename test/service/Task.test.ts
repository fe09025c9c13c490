import { describe, expect, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import { Fatal } from "../../src/service/Fatal.ts"
import * as Part from "../../src/service/Part.ts"
import * as Parts from "../../src/service/Parts.ts"
import { type ServiceEvent, ServiceEvents } from "../../src/service/Phase.ts"
import type { ServiceError } from "../../src/service/ServiceError.ts"
import * as Task from "../../src/service/Task.ts"

/** Runs a task for a while and tells all that was told of it. */
const watch = <E>(
  task: Effect.Effect<unknown, E>,
  options: Task.Supervision,
  duration: Duration.Input = "1 hour"
) =>
  Effect.gen(function*() {
    const reports: Array<readonly [number, ServiceError]> = []
    const logs: Array<string> = []
    const runs: Array<number> = []
    const began = yield* Clock.currentTimeMillis
    const at = Effect.map(Clock.currentTimeMillis, (now) => now - began)
    const report = (error: ServiceError): Effect.Effect<void> =>
      Effect.map(at, (time) => {
        reports.push([time, error])
      })
    const counted = Effect.andThen(Effect.map(at, (time) => runs.push(time)), task)
    const logger = Logger.make(({ logLevel, message }) => {
      logs.push(`${logLevel} ${Array.isArray(message) ? message.join(" ") : String(message)}`)
    })
    return yield* Effect.gen(function*() {
      const started = yield* Parts.start([Task.make("job", counted, options)])
      yield* TestClock.adjust(duration)
      const stopping = yield* Effect.forkChild(started.stop({ budget: "10 seconds" }), { startImmediately: true })
      yield* TestClock.adjust("10 seconds")
      const outcomes = yield* Fiber.join(stopping)
      const { events } = yield* ServiceEvents
      const told = yield* Stream.runCollect(Stream.interruptWhen(events, Effect.yieldNow))
      return {
        events: told.filter((event: ServiceEvent) => event._tag === "TaskRestarted" || event._tag === "PartFailed"),
        logs,
        outcomes: outcomes.map(({ _tag }) => _tag),
        reports: reports.map(([time, { exitReason, message }]) => [time, exitReason, message]),
        runs
      }
    }).pipe(
      Effect.provideService(Fatal, { report }),
      Effect.provide([ServiceEvents.layer, Logger.layer([logger])])
    )
  })

const failsAfter = (duration: Duration.Input) => Effect.andThen(Effect.sleep(duration), Effect.fail("no luck"))

describe("Task", () => {
  it.effect("a failure ends the service", () =>
    Effect.gen(function*() {
      const { outcomes, reports, runs } = yield* watch(failsAfter(10), {})
      expect(reports).toEqual([[10, "failed", "Background task failed: job: no luck"]])
      expect(runs).toEqual([0])
      expect(outcomes).toEqual(["Stopped"])
    }))

  it.effect("so does what cannot even be shown", () =>
    Effect.gen(function*() {
      const { reports } = yield* watch(Effect.fail(Object.create(null)), {})
      expect(reports).toEqual([[0, "failed", "Background task failed: job: an error that cannot be shown"]])
    }))

  it.effect("so does a defect, and an interruption from within", () =>
    Effect.gen(function*() {
      const cause = new Error("bug", { cause: new Error("root") })
      expect((yield* watch(Effect.die(cause), {})).reports).toEqual([
        [0, "failed", "Background task failed: job: bug\n  caused by: root"]
      ])
      expect((yield* watch(Effect.interrupt, {})).reports).toHaveLength(1)
    }))

  it.effect("unless said otherwise: then it is only told", () =>
    Effect.gen(function*() {
      const { events, logs, reports } = yield* watch(failsAfter(10), { onFailure: "log" })
      expect(reports).toEqual([])
      expect(logs).toContain("Error Background task failed: job: no luck")
      expect(events).toMatchObject([{ _tag: "PartFailed", part: "job", took: Duration.millis(10), why: "no luck" }])
    }))

  it.effect("an end is fine, or a failure", () =>
    Effect.gen(function*() {
      const fine = yield* watch(Effect.sleep(5), { restart: Schedule.forever })
      expect([fine.reports, fine.runs]).toEqual([[], [0]])
      expect((yield* watch(Effect.sleep(5), { onEnd: "failure" })).reports).toEqual([
        [5, "failed", "Background task failed: job: it ended, but has to go on"]
      ])
    }))

  it.effect("one that finishes what it has taken, and what still waits, as the manual shows it", () =>
    Effect.gen(function*() {
      const queue = yield* Queue.bounded<number>(10)
      const done: Array<number> = []
      const work = (job: number) => Effect.andThen(Effect.sleep("1 second"), Effect.sync(() => done.push(job)))
      const worker = Task.make(
        "worker",
        Queue.take(queue).pipe(
          Effect.interruptible,
          Effect.flatMap(work),
          Effect.uninterruptible,
          Effect.forever,
          Effect.onInterrupt(() => Effect.flatMap(Queue.clear(queue), Effect.forEach(work, { discard: true })))
        )
      )
      const started = yield* Effect.provide(Parts.start([worker]), [
        ServiceEvents.layer,
        Layer.succeed(Fatal, { report: Effect.die })
      ])
      yield* Queue.offerAll(queue, [1, 2, 3, 4])
      yield* TestClock.adjust("1500 millis")
      const stopping = yield* Effect.forkChild(started.stop({ budget: "10 seconds" }), { startImmediately: true })
      yield* TestClock.adjust("10 seconds")
      expect((yield* Fiber.join(stopping)).map(({ _tag, took }) => [_tag, Duration.toMillis(took)])).toEqual(
        [["Stopped", 2500]]
      )
      expect(done).toEqual([1, 2, 3, 4])
    }))

  it.effect("a delay that was drawn by lot is told without its nanoseconds", () =>
    Effect.gen(function*() {
      const restart = Schedule.max([Schedule.spaced(Duration.nanos(1_234_567_890n)), Schedule.recurs(1)])
      const { logs } = yield* watch(Effect.fail("no luck"), { restart })
      expect(logs[0]).toBe("Warn Background task failed, again in 1s 235ms: job: no luck")
    }))

  it.effect("starts again as its schedule says", () =>
    Effect.gen(function*() {
      const restart = Schedule.max([Schedule.exponential("1 second"), Schedule.recurs(3)])
      const { events, logs, reports, runs } = yield* watch(failsAfter(100), { restart })
      expect(runs).toEqual([0, 1100, 3200, 7300])
      expect(reports).toEqual([
        [7400, "failed", "Background task failed: job: no luck, and its schedule says no more"]
      ])
      expect(events).toEqual([1, 2, 3].map((attempt) => ({
        _tag: "TaskRestarted",
        task: "job",
        attempt,
        why: "no luck"
      })))
      expect(logs.filter((line) => line.startsWith("Warn"))).toEqual(
        ["1s", "2s", "4s"].map((delay) => `Warn Background task failed, again in ${delay}: job: no luck`)
      )
    }))

  it.effect("but not too often", () =>
    Effect.gen(function*() {
      const intensity = { restarts: 2, within: "1 second" } as const
      const loop = yield* watch(failsAfter(1), { restart: Schedule.forever, intensity })
      expect(loop.runs).toEqual([0, 1, 2])
      expect(loop.reports).toEqual([[
        3,
        "failed",
        "Background task failed: job: no luck, and it was started again 2 times within 1s before: that is too often"
      ]])
      // Before the output that a cause may end with.
      const told = yield* watch(Effect.fail("exited with code 3\nstdout:\n$& boom"), {
        restart: Schedule.forever,
        intensity: { restarts: 0, within: "1 second" }
      })
      expect(told.reports[0]?.[2]).toMatch(
        /^.*: exited with code 3, and it was started .*: that is too often\nstdout:\n\$& boom$/
      )
      // Two restarts within any second are not too often.
      const slow = yield* watch(failsAfter(500), { restart: Schedule.forever, intensity }, "1 minute")
      expect(slow.reports).toEqual([])
      expect(slow.runs.length).toBeGreaterThan(100)
      const never = yield* watch(failsAfter(1), { restart: Schedule.forever, intensity: { ...intensity, restarts: 0 } })
      expect(never.runs).toEqual([0])
      const byDefault = yield* watch(failsAfter(1), { restart: Schedule.forever })
      expect(byDefault.runs).toHaveLength(11)
      const spaced = yield* watch(failsAfter(1), { restart: Schedule.spaced("7 seconds") })
      expect(spaced.reports).toEqual([])
    }))

  it.effect("the schedule begins anew after a good time", () =>
    Effect.gen(function*() {
      let run = 0
      const task = Effect.suspend(() => failsAfter(++run === 3 ? "2 minutes" : 0))
      const { events, runs } = yield* watch(task, { restart: Schedule.exponential("1 second") }, "130 seconds")
      expect(runs.slice(0, 5)).toEqual([0, 1000, 3000, 124_000, 126_000])
      expect(events.map((event) => event._tag === "TaskRestarted" ? event.attempt : 0).slice(0, 4)).toEqual([
        1,
        2,
        1,
        2
      ])
    }))

  it.effect("the schedule sees the cause", () =>
    Effect.gen(function*() {
      const restart = Schedule.forever.pipe(
        Schedule.setInputType<Cause.Cause<unknown>>(),
        Schedule.while(({ input }) => Effect.succeed(Cause.squash(input) === "again"))
      )
      let run = 0
      const task = Effect.suspend(() => Effect.fail(++run < 3 ? "again" : "enough"))
      expect((yield* watch(task, { restart })).runs).toHaveLength(3)
    }))

  it.effect("stopping interrupts it and waits for what it does then; each run has its own scope", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      let run = 0
      const task = Effect.gen(function*() {
        const n = ++run
        yield* Effect.addFinalizer(() => Effect.andThen(Effect.sleep(5), Effect.sync(() => log.push(`closed ${n}`))))
        return n === 1 ? yield* Effect.fail("once") : yield* Effect.never
      })
      const { outcomes } = yield* watch(Effect.scoped(task), { restart: Schedule.forever })
      expect(log).toEqual(["closed 1", "closed 2"])
      expect(outcomes).toEqual(["Stopped"])
    }))

  it.effect("a stop during the wait for the next run ends it", () =>
    Effect.gen(function*() {
      const { outcomes, runs } = yield* watch(Effect.fail("no"), { restart: Schedule.spaced("1 hour") }, 10)
      expect([outcomes, runs]).toEqual([["Stopped"], [0]])
    }))

  it.effect("uses what it depends on, and its own control", () =>
    Effect.gen(function*() {
      class Word extends Context.Service<Word, string>()("test/Word") {}
      const word = Part.make("word", Layer.succeed(Word, "hello"))
      const said: Array<string> = []
      const task = Effect.gen(function*() {
        said.push(`${(yield* Part.PartControl).name}: ${yield* Word}`)
      })
      const started = yield* Parts.start([Task.make("speaker", task, { dependsOn: [word] })])
      expect(said).toEqual(["speaker: hello"])
      yield* started.stop({ budget: "1 second" })
    }).pipe(Effect.provideService(Fatal, { report: () => Effect.void }), Effect.provide(ServiceEvents.layer)))

  it("an intensity that makes no sense is a fault", () => {
    const intensity = { restarts: 1.5, within: 0 }
    expect(Parts.faults([Task.make("job", Effect.void, { intensity })])).toEqual([
      "part \"job\": intensity.restarts is 1.5: give it an integer of zero or more",
      "part \"job\": intensity.within is 0: give it a time above zero, such as \"1 minute\""
    ])
  })
})
