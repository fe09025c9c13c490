/**
 * The one engine that ends processes, machines and services.
 *
 * Each stage is a race: the target ends, the request fails, or the grace passes. Whoever loses, the next stage takes
 * over, until the target is gone or there is no harsher stage. It is the same shape as
 * `polite.pipe(Effect.timeoutOrElse({ duration, orElse: () => harsher }))`, folded over the policy.
 *
 * ```
 *   run ──▶ ended before? ──▶ AlreadyExited
 *             │ no
 *             ▼
 *          stage 1 ──ended──▶ Graceful          deadline, failed request, or a harsher request
 *             └────────────▶ stage 2 …  ──ended──▶ Forced
 *                               └──────────────▶ Survivors | Unkillable
 * ```
 *
 * All waiting is on `Clock`, and all deadlines are monotonic: a step of the wall clock moves nothing.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import { constVoid } from "effect/Function"
import * as Option from "effect/Option"
import * as Tracer from "effect/Tracer"
import type { ExitStatus } from "./ExitStatus.ts"
import type { ShutdownOutcome, StageReport, Survivor } from "./ShutdownOutcome.ts"
import type { ShutdownPolicy, Stage } from "./ShutdownPolicy.ts"

/**
 * What is left of a target: its own status once it has one, and everything that is still alive.
 *
 * @category models
 * @since 0.1.0
 */
export interface Remains {
  readonly status: Option.Option<ExitStatus>
  readonly survivors: ReadonlyArray<Survivor>
}

/**
 * Something that can be asked to end.
 *
 * `ended` and `request` must be interruptible. "Ended" means all that the target's kill scope reaches, not only the
 * process that was started.
 *
 * @category models
 * @since 0.1.0
 */
export interface ShutdownTarget<in R, out E> {
  /** Has it ended by now? Must not wait. */
  readonly poll: Effect.Effect<Option.Option<ExitStatus>>
  /** Waits until it has ended. */
  readonly ended: Effect.Effect<ExitStatus>
  /** Asks it to end. Fails only when the request could not be made; a target that is gone is not a failure. */
  readonly request: (request: R) => Effect.Effect<unknown, E>
  /** Looks at what is there now, also where no request reaches. */
  readonly remains: Effect.Effect<Remains>
}

/**
 * How urgently somebody wants the end. Each field can only hasten a shutdown that runs already.
 *
 * @category options
 * @since 0.1.0
 */
export interface ShutdownRequest {
  /** Start with, or go at once to, the stage of this name; `"next"` is the one after the current one. */
  readonly atLeast?: string | undefined
  /** Reach the last stage within this time from now. */
  readonly within?: Duration.Input | undefined
}

/**
 * No stage has the name that a request gave.
 *
 * @category errors
 * @since 0.1.0
 */
export class NoSuchStage extends Data.TaggedError("NoSuchStage")<{
  readonly name: string
  readonly stages: ReadonlyArray<string>
}> {
  override get message(): string {
    return `No shutdown stage is called "${this.name}": use "next" or one of ${this.stages.join(", ")}`
  }
}

/**
 * What happens during a shutdown, for status lines and logs.
 *
 * @category models
 * @since 0.1.0
 */
export type ShutdownEvent = Data.TaggedEnum<{
  StageStarted: { readonly stage: string; readonly grace: Duration.Duration }
  StageEnded: { readonly report: StageReport }
  Extended: { readonly stage: string; readonly by: Duration.Duration }
}>

/**
 * A shutdown that can be run once, by any number of callers.
 *
 * @category models
 * @since 0.1.0
 */
export interface Shutdown {
  /**
   * Starts the shutdown, or joins the one that runs; all callers get the same outcome. A harsher request hastens it, a
   * softer one changes nothing. It goes on when a caller is interrupted. Fails only for a stage name that is not there.
   */
  readonly run: (request?: ShutdownRequest) => Effect.Effect<ShutdownOutcome, NoSuchStage>
  /**
   * Asks for more time in the current stage. The answer is what was granted: zero when no stage runs, and never more
   * than the stage's `maxExtension` in all, nor past the time that a caller has set by `within`.
   */
  readonly extend: (by: Duration.Input) => Effect.Effect<Duration.Duration>
  /** The name of the running stage. */
  readonly stage: Effect.Effect<Option.Option<string>>
}

/** Timers count whole milliseconds: what may never be early is up to one late, and what may be early by half of one is at most half late. */
const timely = 0.5

/** Throws for what is no duration, and NaN is none: taken for zero, it would be the harshest request of all. */
const toMillis = (input: Duration.Input): number => {
  if (Number.isNaN(input)) throw new RangeError("NaN is no duration: give a number of milliseconds")
  return Duration.toMillis(Duration.fromInputUnsafe(input))
}

/**
 * Makes the shutdown of a target by a policy. Nothing happens before `run`.
 *
 * ```ts import.meta.vitest
 * import { ExitStatus, Shutdown, ShutdownPolicy } from "effect-microvm-runtime/lifecycle"
 * import * as Deferred from "effect/Deferred"
 * import * as Effect from "effect/Effect"
 * import * as Option from "effect/Option"
 *
 * const program = Effect.gen(function*() {
 *   const end = yield* Deferred.make<ExitStatus.ExitStatus>()
 *   const shutdown = yield* Shutdown.make({
 *     poll: Effect.succeed(Option.none()),
 *     ended: Deferred.await(end),
 *     request: (signal) => Deferred.succeed(end, ExitStatus.signaled(signal)),
 *     remains: Effect.succeed({ status: Option.none(), survivors: [] })
 *   }, ShutdownPolicy.defaults)
 *   return (yield* shutdown.run())._tag
 * })
 * await Effect.runPromise(program) // => "Graceful"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <R, E>(
  target: ShutdownTarget<R, E>,
  policy: ShutdownPolicy<R>,
  options: {
    /** Told of every event, in order; its failures are ignored, its waits are not: keep it short. */
    readonly onEvent?: ((event: ShutdownEvent) => Effect.Effect<void>) | undefined
  } = {}
): Effect.Effect<Shutdown> =>
  Clock.clockWith((clock) =>
    Effect.sync(() => {
      const { stages } = policy
      const last = stages.length - 1
      const graces = stages.map(({ grace }) => Duration.toMillis(grace))
      const extensions = stages.map(({ maxExtension }) => Duration.toMillis(maxExtension))
      const now = (): number => Number(clock.monotonicTimeNanosUnsafe()) / 1e6

      const outcome = Deferred.makeUnsafe<ShutdownOutcome>()
      const reports: Array<StageReport> = []
      let startedAt: number | undefined
      let status: ExitStatus | undefined
      // What callers want: both only ever get harsher.
      let floor = 0
      let lastStageBy = Infinity
      // The running stage: its index, when it is over, and the farthest that this can be moved.
      let current = -1
      let deadline = 0
      let cap = 0
      /** Has the running stage look whether it is over. */
      let rouse = constVoid

      // Requests, the watcher and the timer are fibers of their own, so that none can hold up the next stage.
      let fork = Effect.runFork
      let watcher: Fiber.Fiber<ExitStatus> | undefined

      /** Goes on with what an effect gives, in the same breath where it need not wait. */
      const after = <A>(effect: Effect.Effect<A>, next: (value: A) => void): void => {
        fork(effect).addObserver((exit) => {
          if (Exit.isSuccess(exit)) next(exit.value)
          else Deferred.doneUnsafe(outcome, Exit.failCause(exit.cause))
        })
      }
      const { onEvent } = options
      const told = onEvent && ((event: ShutdownEvent) => Effect.ignoreCause(Effect.suspend(() => onEvent(event))))
      const tell = (event: ShutdownEvent, next: () => void): void =>
        told === undefined ? next() : after(told(event), next)
      const poll = (next: (hasEnded: boolean) => void): void =>
        after(target.poll, (polled) => {
          if (Option.isSome(polled)) status = polled.value
          next(status !== undefined)
        })

      /** Asks for one stage, waits for how it ends, and goes on to the next one if need be. */
      const attempt = (index: number): void => {
        const stage = stages[index]
        if (stage === undefined) return conclude(undefined)
        const began = now()
        current = index
        deadline = began + (graces[index] ?? 0)
        cap = deadline + (extensions[index] ?? 0)
        let failure: { readonly error: unknown } | undefined
        let asking: Fiber.Fiber<unknown, E> | undefined
        let timer: Fiber.Fiber<void> | undefined
        const until = (): number => index === last ? deadline : Math.min(deadline, lastStageBy)

        const finish = (end: StageReport["end"]): void => {
          const report: StageReport = {
            name: stage.name,
            after: Duration.millis(began - (startedAt ?? began)),
            took: Duration.millis(now() - began),
            end,
            ...(failure === undefined ? {} : { error: failure.error })
          }
          asking?.interruptUnsafe()
          reports.push(report)
          tell({ _tag: "StageEnded", report }, () => {
            if (end === "ended") conclude(stage)
            else attempt(Math.max(index + 1, floor))
          })
        }
        const deadlinePassed = (hasEnded: boolean): void => {
          if (hasEnded) return finish("ended")
          // More time was granted while the target was asked.
          if (until() - now() > timely) return look()
          if (until() === deadline) return finish("deadline")
          floor = last
          finish("hastened")
        }
        const look = (): void => {
          timer?.interruptUnsafe()
          rouse = constVoid
          const left = until() - now()
          if (status !== undefined) finish("ended")
          else if (failure !== undefined) poll((hasEnded) => finish(hasEnded ? "ended" : "failed"))
          else if (floor > index) finish("hastened")
          // An end at the very deadline is in time: the target is asked, whichever timer came first.
          else if (left <= timely) poll(deadlinePassed)
          else {
            rouse = look
            // The deadline may move meanwhile, and timers cut fractions off: one that is early means another round.
            timer = fork(clock.sleep(Duration.millis(Math.max(1, Math.floor(left)))))
            timer.addObserver((exit) => {
              if (Exit.isSuccess(exit)) rouse()
            })
          }
        }

        tell({ _tag: "StageStarted", stage: stage.name, grace: stage.grace }, () => {
          asking = fork(Effect.suspend(() => target.request(stage.request)))
          asking.addObserver((exit) => {
            if (Exit.isSuccess(exit)) return
            failure = { error: Cause.squash(exit.cause) }
            rouse()
          })
          // After the first request: nothing that can wait comes before it.
          if (watcher === undefined) {
            watcher = fork(target.ended)
            watcher.addObserver((exit) => {
              if (Exit.isFailure(exit)) return
              status = exit.value
              rouse()
            })
          }
          look()
        })
      }

      const conclude = (stage: Stage<R> | undefined): void => {
        watcher?.interruptUnsafe()
        current = -1
        after(target.remains, ({ status: found, survivors }) => {
          const ended = status ?? Option.getOrUndefined(found)
          const common = { stages: reports, elapsed: Duration.millis(now() - (startedAt ?? 0)) }
          const judge = (): ShutdownOutcome => {
            if (ended === undefined) return { _tag: "Unkillable", ...common, survivors }
            if (survivors.length > 0) return { _tag: "Survivors", ...common, status: ended, survivors }
            if (reports.length === 0) return { _tag: "AlreadyExited", ...common, status: ended }
            const name = (stage ?? stages[last] ?? stages[0]).name
            return { _tag: stage?.force === false ? "Graceful" : "Forced", ...common, status: ended, stage: name }
          }
          Deferred.doneUnsafe(outcome, Exit.succeed(judge()))
        })
      }

      const start = ({ context }: Fiber.Fiber<unknown, unknown>): void => {
        fork = Effect.runForkWith(context)
        poll((hasEnded) => hasEnded ? conclude(undefined) : attempt(floor))
      }
      /** Nobody sees a span of the native tracer, and to make one, or to look the tracer up, takes as long as to send the signal. */
      const startTraced = (caller: Fiber.Fiber<unknown, unknown>): void => {
        const { tracer } = caller.cache
        if (tracer === undefined || tracer === Tracer.nativeTracer) return start(caller)
        const run = Effect.withFiber((fiber) => {
          start(fiber)
          return Deferred.await(outcome)
        })
        Effect.runForkWith(caller.context)(Effect.withSpan(run, "Shutdown.run", { captureStackTrace: false }))
      }

      const run = (request: ShutdownRequest = {}): Effect.Effect<ShutdownOutcome, NoSuchStage> =>
        Effect.withFiber((caller) => {
          const { atLeast, within } = request
          if (atLeast !== undefined) {
            const index = atLeast === "next"
              ? Math.min(current + 1, last)
              : stages.findIndex((stage) => stage.name === atLeast)
            if (index < 0) {
              return Effect.fail(new NoSuchStage({ name: atLeast, stages: stages.map((stage) => stage.name) }))
            }
            floor = Math.max(floor, index)
          }
          if (within !== undefined) lastStageBy = Math.min(lastStageBy, now() + toMillis(within))
          if (startedAt === undefined) {
            startedAt = now()
            // Started in the same breath: a caller that is interrupted now must not leave a shutdown that never runs.
            startTraced(caller)
          } else rouse()
          return Deferred.await(outcome)
        })

      const extend = (by: Duration.Input): Effect.Effect<Duration.Duration> =>
        Effect.suspend(() => {
          const stage = current === -1 ? undefined : stages[current]
          if (stage === undefined) return Effect.succeed(Duration.zero)
          const limit = current === last ? cap : Math.min(cap, lastStageBy)
          const extended = Math.min(Math.max(deadline, now() + toMillis(by)), limit)
          const granted = Duration.millis(Math.max(0, extended - deadline))
          deadline = Math.max(deadline, extended)
          rouse()
          return Effect.as(told?.({ _tag: "Extended", stage: stage.name, by: granted }) ?? Effect.void, granted)
        })

      return { run, extend, stage: Effect.sync(() => Option.fromUndefinedOr(stages[current]?.name)) }
    })
  )
