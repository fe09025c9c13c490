/** Keeps something running: again after a failure, as its schedule says, until that is too often. */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Pull from "effect/Pull"
import * as Schedule from "effect/Schedule"
import { Fatal } from "../Fatal.ts"
import { ServiceEvents } from "../Phase.ts"
import { explain, fromReason, ServiceErrorReason } from "../ServiceError.ts"
import { toTheMilli } from "./durationText.ts"
import { taskRestarts } from "./ownMetrics.ts"

/**
 * How often something may be started again: one restart more than `restarts` within any time of `within` is a failure that
 * stays.
 *
 * @category options
 * @since 0.1.0
 */
export interface Intensity {
  readonly restarts: number
  readonly within: Duration.Input
}

/**
 * What happens when background work ends.
 *
 * @category options
 * @since 0.1.0
 */
export interface Supervision {
  /**
   * When to start again after a failure; defects count. It gets the cause, and begins anew once the work has gone well for
   * as long as `intensity.within`. Default: never.
   */
  readonly restart?: Schedule.Schedule<unknown, Cause.Cause<unknown>> | undefined
  /** Whatever the schedule says, not more often than this. Default 10 times within a minute. */
  readonly intensity?: Intensity | undefined
  /** After a failure that stays: `stop` ends the service with `TaskFailed` (1), `log` only tells. Default `stop`. */
  readonly onFailure?: "stop" | "log" | undefined
  /** An end without a failure: `done` is fine, `failure` counts as one. Default `done`. */
  readonly onEnd?: "done" | "failure" | undefined
}

/** A loop of failures without delay ends within moments; one each 7 seconds may go on for ever. */
const defaultIntensity: Intensity = { restarts: 10, within: "1 minute" }

export const faultsOf = ({ intensity }: Supervision): ReadonlyArray<string> => {
  if (intensity === undefined) return []
  const { restarts, within } = intensity
  const duration = Number.isNaN(within) ? Option.none() : Duration.fromInput(within)
  return [
    ...Number.isInteger(restarts) && restarts >= 0
      ? []
      : [`intensity.restarts is ${restarts}: give it an integer of zero or more`],
    ...Option.isSome(duration) && Duration.isGreaterThan(duration.value, Duration.zero)
      ? []
      : [
        `intensity.within is ${
          typeof within === "number" ? within : JSON.stringify(within)
        }: give it a time above zero, such as "1 minute"`
      ]
  ]
}

const millis = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1e6)

export const supervise = Effect.fnUntraced(function*<E, R>(
  name: string,
  /** `up` says that it works: what it took to start is no good work. */
  run: (up: Effect.Effect<void>) => Effect.Effect<unknown, E, R>,
  options: Supervision
): Effect.fn.Return<void, never, R | Fatal | ServiceEvents> {
  const { intensity = defaultIntensity, onEnd = "done", onFailure = "stop", restart } = options
  const fatal = yield* Fatal
  const events = yield* ServiceEvents
  const within = Duration.toMillis(Duration.fromInputUnsafe(intensity.within))
  const began = yield* millis
  const makeStep = restart === undefined ? undefined : Schedule.toStep(restart)
  let step = makeStep === undefined ? undefined : yield* makeStep
  let attempt = 0
  let recent: ReadonlyArray<number> = []

  // How long to wait before the next run, or why there is none.
  const next = Effect.fnUntraced(function*(cause: Cause.Cause<unknown>, now: number) {
    if (step === undefined) return ""
    recent = recent.filter((time) => time > now - within)
    if (recent.length >= intensity.restarts) {
      const span = Duration.format(Duration.millis(within))
      return `, and it was started again ${intensity.restarts} times within ${span} before: that is too often`
    }
    return yield* step(yield* Clock.currentTimeMillis, cause).pipe(
      Effect.map(([, delay]) => delay),
      Pull.catchDone(() => Effect.succeed(", and its schedule says no more"))
    )
  })

  const giveUp = (cause: Cause.Cause<unknown>, why: string): Effect.Effect<void> => {
    const error = fromReason(ServiceErrorReason.TaskFailed({ task: name, why }), cause)
    if (onFailure === "stop") return fatal.report(error)
    return Effect.gen(function*() {
      yield* Effect.logError(explain(error))
      const took = Duration.millis((yield* millis) - began)
      yield* events.publish({ _tag: "PartFailed", part: name, took, why })
    })
  }

  while (true) {
    let upSince = Infinity
    const exit = yield* Effect.exit(run(Effect.map(millis, (time) => {
      upSince = time
    })))
    if (Exit.isSuccess(exit) && onEnd === "done") return yield* Effect.logInfo(`Background task ended: ${name}`)
    const cause = Exit.isSuccess(exit) ? Cause.fail("it ended, but has to go on") : exit.cause
    const why = explain(cause)
    const now = yield* millis
    if (makeStep !== undefined && now - upSince >= within) {
      // It has run well for long: what was before counts no more.
      step = yield* makeStep
      attempt = 0
    }
    const delay = yield* next(cause, now)
    // After what happened, before the output that may follow.
    if (!Duration.isDuration(delay)) return yield* giveUp(cause, why.replace(/(?=\n|$)/, () => delay))
    attempt++
    yield* Effect.logWarning(`Background task failed, again in ${toTheMilli(delay)}: ${name}: ${why}`)
    yield* Effect.sleep(delay)
    recent = [...recent, yield* millis]
    yield* events.publish({ _tag: "TaskRestarted", task: name, attempt, why })
    yield* Metric.update(taskRestarts(name), 1)
  }
})
