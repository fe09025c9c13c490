import { describe, expect, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import * as Tracer from "effect/Tracer"
import { ExitStatus, Shutdown, ShutdownOutcome, ShutdownPolicy, type Signal } from "../../src/lifecycle/index.ts"
import { otherSleep } from "../otherSleep.ts"

/** A process that reacts to signals as told, and remembers them. */
const scripted = Effect.fnUntraced(function*(
  reactions: { readonly [name in Signal.Signal]?: Effect.Effect<ExitStatus.ExitStatus> }
) {
  const ended = yield* Deferred.make<ExitStatus.ExitStatus>()
  const sent: Array<Signal.Signal> = []
  const poll = Effect.suspend(() =>
    Deferred.isDoneUnsafe(ended)
      ? Effect.asSome(Deferred.await(ended))
      : Effect.succeed(Option.none<ExitStatus.ExitStatus>())
  )
  const target: Shutdown.ShutdownTarget<Signal.Signal, never> = {
    poll,
    ended: Deferred.await(ended),
    request: (signal) =>
      Effect.gen(function*() {
        sent.push(signal)
        const reaction = reactions[signal]
        if (reaction !== undefined) {
          yield* Effect.forkDetach(Effect.flatMap(reaction, (status) => Deferred.succeed(ended, status)))
        }
      }),
    remains: Effect.map(poll, (option) => ({
      status: option,
      survivors: Option.isSome(option) ? [] : [{ pid: 7, command: "stuck", why: "uninterruptible sleep (D)" }]
    }))
  }
  return { target, sent, ended }
})

const killed = Effect.succeed(ExitStatus.signaled("SIGKILL"))
const leaves = (millis: number) => Effect.delay(Effect.succeed(ExitStatus.exited(0)), millis)
const stages = (outcome: ShutdownOutcome.ShutdownOutcome) => outcome.stages.map((stage) => `${stage.name} ${stage.end}`)

describe("Shutdown", () => {
  it.effect("defaults: SIGTERM, two seconds, SIGKILL", () =>
    Effect.gen(function*() {
      const { sent, target } = yield* scripted({ SIGKILL: killed })
      const shutdown = yield* Shutdown.make(target, ShutdownPolicy.defaults)
      const fiber = yield* Effect.forkChild(shutdown.run(), { startImmediately: true })
      yield* TestClock.adjust("1999 millis")
      expect(sent).toEqual(["SIGTERM"])
      expect(yield* shutdown.stage).toEqual(Option.some("SIGTERM"))
      yield* TestClock.adjust("1 millis")
      expect(sent).toEqual(["SIGTERM", "SIGKILL"])
      const outcome = yield* Fiber.join(fiber)
      expect(outcome).toMatchObject({ _tag: "Forced", stage: "SIGKILL", status: { signal: "SIGKILL" } })
      expect(Duration.toMillis(outcome.elapsed)).toBe(2000)
      expect(stages(outcome)).toEqual(["SIGTERM deadline", "SIGKILL ended"])
      expect(yield* shutdown.stage).toEqual(Option.none())
      expect(ShutdownOutcome.format(outcome)).toBe("forced by SIGKILL after 2s: killed by SIGKILL")
    }))

  it.effect("an end before the shutdown is AlreadyExited, and nothing is sent", () =>
    Effect.gen(function*() {
      const { ended, sent, target } = yield* scripted({})
      yield* Deferred.succeed(ended, ExitStatus.exited(9))
      const shutdown = yield* Shutdown.make(target, ShutdownPolicy.defaults)
      expect(yield* shutdown.run()).toMatchObject({ _tag: "AlreadyExited", status: { code: 9 } })
      expect(sent).toEqual([])
    }))

  it.effect("the wait after SIGKILL is bounded", () =>
    Effect.gen(function*() {
      const { target } = yield* scripted({})
      const shutdown = yield* Shutdown.make(target, ShutdownPolicy.signals({ reap: "3 seconds" }))
      const fiber = yield* Effect.forkChild(shutdown.run(), { startImmediately: true })
      yield* TestClock.adjust("5 seconds")
      const outcome = yield* Fiber.join(fiber)
      expect(outcome).toMatchObject({ _tag: "Unkillable", survivors: [{ pid: 7 }] })
      expect(ShutdownOutcome.isComplete(outcome)).toBe(false)
      expect(ShutdownOutcome.format(outcome)).toBe("still there after 5s: stuck[7] (uninterruptible sleep (D))")
    }))

  it.effect("what is no process has no survivors: why it is still there is what its requests have failed with", () =>
    Effect.gen(function*() {
      const remote = (error: Effect.Effect<void, Error>) =>
        Effect.flatMap(
          Shutdown.make({
            poll: Effect.succeedNone,
            ended: Effect.never,
            request: () => error,
            remains: Effect.succeed({ status: Option.none(), survivors: [] })
          }, ShutdownPolicy.makeUnsafe([{ name: "delete", request: "delete", grace: "1 second", force: true }])),
          (shutdown) => Effect.forkChild(shutdown.run(), { startImmediately: true })
        )
      const refused = yield* remote(Effect.fail(new Error("403 Forbidden")))
      const silent = yield* remote(Effect.void)
      yield* TestClock.adjust("1 second")
      expect(ShutdownOutcome.format(yield* Fiber.join(refused))).toBe("still there after 0: delete: 403 Forbidden")
      expect(ShutdownOutcome.format(yield* Fiber.join(silent))).toBe("still there after 1s")
    }))

  it.effect("interrupting one waiter does not stop the shutdown", () =>
    Effect.gen(function*() {
      const { sent, target } = yield* scripted({ SIGKILL: killed })
      const shutdown = yield* Shutdown.make(target, ShutdownPolicy.defaults)
      const first = yield* Effect.forkChild(shutdown.run(), { startImmediately: true })
      const second = yield* Effect.forkChild(shutdown.run(), { startImmediately: true })
      yield* TestClock.adjust("1 second")
      yield* Fiber.interrupt(first)
      yield* TestClock.adjust("1 second")
      expect((yield* Fiber.join(second))._tag).toBe("Forced")
      expect(sent).toEqual(["SIGTERM", "SIGKILL"])
    }))

  it.effect("even when the only waiter is interrupted", () =>
    Effect.gen(function*() {
      const { sent, target } = yield* scripted({ SIGKILL: killed })
      const shutdown = yield* Shutdown.make(target, ShutdownPolicy.defaults)
      const only = yield* Effect.forkChild(shutdown.run(), { startImmediately: true })
      yield* Fiber.interrupt(only)
      yield* TestClock.adjust("2 seconds")
      expect(sent).toEqual(["SIGTERM", "SIGKILL"])
    }))

  it.effect.prop(
    "keeps a deadline to half a millisecond where timers count whole ones",
    [Schema.Int.check(Schema.isBetween({ minimum: 1000, maximum: 5000 }))],
    ([micros]) =>
      Effect.gen(function*() {
        const clock = yield* Clock.Clock
        const now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1000
        let late = NaN
        const { target } = yield* scripted({
          SIGKILL: Effect.suspend(() => {
            late = now() - micros
            return killed
          })
        })
        const wholeMillis = otherSleep(
          clock,
          (duration) => clock.sleep(Duration.millis(Math.max(1, Math.trunc(Duration.toMillis(duration)))))
        )
        const policy = ShutdownPolicy.signals({ grace: Duration.micros(BigInt(micros)) })
        const shutdown = yield* Effect.provideService(Shutdown.make(target, policy), Clock.Clock, wholeMillis)
        const fiber = yield* Effect.forkChild(shutdown.run(), { startImmediately: true })
        for (let step = 0; step < 70; step++) yield* TestClock.adjust(Duration.micros(100n))
        yield* Fiber.join(fiber)
        expect(Math.abs(late)).toBeLessThanOrEqual(500)
      })
  )

  it.effect("a second request goes to the next stage at once", () =>
    Effect.gen(function*() {
      const { sent, target } = yield* scripted({ SIGKILL: killed })
      const shutdown = yield* Shutdown.make(target, ShutdownPolicy.signals({ grace: "1 hour" }))
      const fiber = yield* Effect.forkChild(shutdown.run({ atLeast: "next" }), { startImmediately: true })
      yield* TestClock.adjust("5 millis")
      expect(sent).toEqual(["SIGTERM"])
      expect(yield* shutdown.run({ atLeast: "next" })).toBe(yield* Fiber.join(fiber))
      expect(sent).toEqual(["SIGTERM", "SIGKILL"])
    }))

  it.effect("an unknown stage is a typed error, and starts nothing", () =>
    Effect.gen(function*() {
      const { sent, target } = yield* scripted({})
      const shutdown = yield* Shutdown.make(target, ShutdownPolicy.defaults)
      const error = yield* Effect.flip(shutdown.run({ atLeast: "SIGNOPE" }))
      expect(error.message).toBe("No shutdown stage is called \"SIGNOPE\": use \"next\" or one of SIGTERM, SIGKILL")
      expect(sent).toEqual([])
    }))

  it.effect("a stage may ask for more time, up to its cap", () =>
    Effect.gen(function*() {
      const { sent, target } = yield* scripted({ SIGKILL: killed })
      const shutdown = yield* Shutdown.make(target, ShutdownPolicy.signals({ grace: 1000, maxExtension: 500 }))
      expect(yield* shutdown.extend("1 second")).toEqual(Duration.zero)
      const fiber = yield* Effect.forkChild(shutdown.run(), { startImmediately: true })
      yield* TestClock.adjust(900)
      expect(Duration.toMillis(yield* shutdown.extend(300))).toBe(200)
      expect(Duration.toMillis(yield* shutdown.extend(100))).toBe(0)
      expect(Duration.toMillis(yield* shutdown.extend("1 hour"))).toBe(300)
      expect(Duration.toMillis(yield* shutdown.extend("1 hour"))).toBe(0)
      yield* TestClock.adjust(599)
      expect(sent).toEqual(["SIGTERM"])
      yield* TestClock.adjust(1)
      expect(Duration.toMillis((yield* Fiber.join(fiber)).elapsed)).toBe(1500)
    }))

  it.effect("no extension goes past the time that a caller has set", () =>
    Effect.gen(function*() {
      const { target } = yield* scripted({ SIGKILL: killed })
      const shutdown = yield* Shutdown.make(target, ShutdownPolicy.signals({ grace: 1000, maxExtension: 5000 }))
      const fiber = yield* Effect.forkChild(shutdown.run({ within: 1200 }), { startImmediately: true })
      yield* TestClock.adjust(10)
      expect(Duration.toMillis(yield* shutdown.extend("4 seconds"))).toBe(200)
      yield* TestClock.adjust("10 seconds")
      expect(Duration.toMillis((yield* Fiber.join(fiber)).elapsed)).toBe(1200)
    }))

  it.effect("a request that fails escalates at once, and its error is kept", () =>
    Effect.gen(function*() {
      const { target } = yield* scripted({ SIGKILL: killed })
      const denied = new Error("EPERM")
      const shutdown = yield* Shutdown.make(
        { ...target, request: (signal) => signal === "SIGTERM" ? Effect.fail(denied) : target.request(signal) },
        ShutdownPolicy.defaults
      )
      const outcome = yield* shutdown.run()
      expect(stages(outcome)).toEqual(["SIGTERM failed", "SIGKILL ended"])
      expect(ShutdownOutcome.errors(outcome)).toEqual([denied])
      expect(Duration.toMillis(outcome.elapsed)).toBe(0)
    }))

  it.effect("a request that throws before there is an effect is a failed one", () =>
    Effect.gen(function*() {
      const { target } = yield* scripted({ SIGKILL: killed })
      const bug = new Error("bug")
      const request = (signal: Signal.Signal) => {
        if (signal === "SIGTERM") throw bug
        return target.request(signal)
      }
      const shutdown = yield* Shutdown.make({ ...target, request }, ShutdownPolicy.defaults)
      const outcome = yield* shutdown.run()
      expect(stages(outcome)).toEqual(["SIGTERM failed", "SIGKILL ended"])
      expect(ShutdownOutcome.errors(outcome)).toEqual([bug])
    }))

  it.effect("a failed request to a target that has just ended is no failure", () =>
    Effect.gen(function*() {
      const { ended, target } = yield* scripted({})
      const shutdown = yield* Shutdown.make({
        ...target,
        request: () => Effect.andThen(Deferred.succeed(ended, ExitStatus.exited(0)), Effect.fail("ESRCH"))
      }, ShutdownPolicy.defaults)
      expect(yield* shutdown.run()).toMatchObject({ _tag: "Graceful", stage: "SIGTERM" })
    }))

  it.effect("a defect of the target reaches every caller instead of hanging them", () =>
    Effect.gen(function*() {
      const { target } = yield* scripted({})
      const shutdown = yield* Shutdown.make({ ...target, remains: Effect.die("bug") }, ShutdownPolicy.defaults)
      const fiber = yield* Effect.forkChild(Effect.exit(shutdown.run()), { startImmediately: true })
      yield* TestClock.adjust("1 hour")
      const exit = yield* Fiber.join(fiber)
      expect(Exit.isFailure(exit) && Cause.hasDies(exit.cause)).toBe(true)
      expect(Exit.isFailure(yield* Effect.exit(shutdown.run()))).toBe(true)
    }))

  it.effect("NaN is no time to hasten to", () =>
    Effect.gen(function*() {
      const { sent, target } = yield* scripted({})
      const shutdown = yield* Shutdown.make(target, ShutdownPolicy.defaults)
      expect(Exit.isFailure(yield* Effect.exit(shutdown.run({ within: Number.NaN })))).toBe(true)
      expect(sent).toEqual([])
    }))

  it.effect("whoever traces sees a span of it", () =>
    Effect.gen(function*() {
      const spans: Array<string> = []
      const tracer = Tracer.make({
        span: (options) => {
          spans.push(options.name)
          return new Tracer.NativeSpan(options)
        }
      })
      const { target } = yield* scripted({ SIGTERM: Effect.succeed(ExitStatus.exited(0)) })
      const shutdown = yield* Shutdown.make(target, ShutdownPolicy.defaults)
      yield* Effect.withTracer(shutdown.run(), tracer)
      expect(spans).toEqual(["Shutdown.run"])
    }))

  it.effect.each([
    { how: "fails", onEvent: () => Effect.die("bug") },
    {
      how: "throws",
      onEvent: () => {
        throw new Error("bug")
      }
    }
  ])("an observer that $how changes nothing", ({ onEvent }) =>
    Effect.gen(function*() {
      const { target } = yield* scripted({ SIGTERM: leaves(30) })
      const shutdown = yield* Shutdown.make(target, ShutdownPolicy.defaults, { onEvent })
      const fiber = yield* Effect.forkChild(shutdown.run(), { startImmediately: true })
      yield* TestClock.adjust("1 second")
      expect(yield* Fiber.join(fiber)).toMatchObject({ _tag: "Graceful", status: { code: 0 } })
    }))
})

describe("ShutdownPolicy", () => {
  it("lists every fault", () => {
    const result = ShutdownPolicy.make([
      { name: "a", request: 1, grace: "Infinity" },
      { name: "a", request: 2, grace: -5, force: true },
      { name: "", request: 3, grace: 1, maxExtension: "Infinity" }
    ])
    expect(Result.isFailure(result) && result.failure.faults).toEqual([
      "stage \"a\": grace is Infinity: give it an end, or the shutdown has none",
      "two stages are called \"a\": rename one",
      "stage \"a\": grace is -5ms: give it a time of zero or more",
      "a stage has an empty name: give it one",
      "stage \"\": maxExtension is Infinity: give it an end, or the shutdown has none",
      "stage \"\" asks after \"a\" has already forced: put it first"
    ])
  })

  it("takes no NaN for zero", () => {
    const result = ShutdownPolicy.make([{ name: "a", request: 1, grace: Number.NaN }])
    expect(Result.isFailure(result) && result.failure.faults).toEqual([
      "stage \"a\": grace is NaN: write it as 500 or \"2 seconds\""
    ])
  })

  it("knows its longest run", () => {
    expect(Duration.toMillis(ShutdownPolicy.longest(ShutdownPolicy.signals({ maxExtension: "1 second" })))).toBe(5000)
    expect(ShutdownPolicy.signals({ signal: "SIGKILL" }).stages.length).toBe(1)
  })
})
