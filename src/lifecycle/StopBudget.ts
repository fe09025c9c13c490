/**
 * One time budget for a whole stop, shared out over the parts that have to stop.
 *
 * Groups stop one after the other, the parts of a group at the same time. A group may use the share that its weight gives
 * it of what is left when its turn comes, so time that one group does not need goes to those after it, and a part that
 * hangs takes its own share only: it is named, abandoned, and the others still stop.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import type * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"

/**
 * Something that has to stop.
 *
 * @category models
 * @since 0.1.0
 */
export interface Part<out E = never, out R = never> {
  readonly name: string
  readonly stop: Effect.Effect<unknown, E, R>
  /**
   * How much of the budget it may claim, compared with the others. Default 1, also for what is no number above zero. The
   * weight of a group is its largest.
   */
  readonly weight?: number | undefined
  /** Never more than this, whatever its share. Default: its share. */
  readonly atMost?: Duration.Input | undefined
}

/**
 * How a part stopped: it did, it failed, or its time was up and it was left running.
 *
 * @category models
 * @since 0.1.0
 */
export type PartOutcome<E = never> = Data.TaggedEnum<{
  Stopped: { readonly name: string; readonly took: Duration.Duration }
  Failed: { readonly name: string; readonly took: Duration.Duration; readonly cause: Cause.Cause<E> }
  Abandoned: { readonly name: string; readonly took: Duration.Duration }
}>

const weightOf = (parts: ReadonlyArray<Part<unknown, unknown>>): number =>
  parts.reduce((most, { weight = 1 }) => Math.max(most, Number.isFinite(weight) && weight > 0 ? weight : 1), 0)

/**
 * The share of a group, in a stop that has `left` and groups of the given weights still to go, the group's own first.
 *
 * ```ts import.meta.vitest
 * import { StopBudget } from "effect-microvm-runtime/lifecycle"
 * import * as Duration from "effect/Duration"
 * Duration.toMillis(StopBudget.share("9 seconds", [2, 1])) // => 6000
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const share = (left: Duration.Input, weights: ReadonlyArray<number>): Duration.Duration => {
  const total = weights.reduce((sum, weight) => sum + weight, 0)
  const [own = 0] = weights
  const millis = Math.max(0, Duration.toMillis(Duration.fromInputUnsafe(left)))
  return Duration.millis(total <= 0 ? 0 : weights.length === 1 ? millis : millis * own / total)
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options<in E = never> {
  /**
   * Told of each outcome as soon as it is known; its defects are ignored, its waits are not: keep it short. A part that is
   * abandoned is interrupted afterwards, so what it is doing can still be seen.
   */
  readonly onOutcome?: ((outcome: PartOutcome<E>) => Effect.Effect<void>) | undefined
}

/**
 * Stops all parts within `total`. Never fails and is never late: what does not stop in its share is interrupted, not
 * waited for, and reported as `Abandoned`.
 *
 * ```ts import.meta.vitest
 * import { StopBudget } from "effect-microvm-runtime/lifecycle"
 * import * as Effect from "effect/Effect"
 *
 * const program = StopBudget.stopAll("50 millis", [
 *   [{ name: "listener", stop: Effect.never }],
 *   [{ name: "database", stop: Effect.void }]
 * ])
 * const outcomes = await Effect.runPromise(program)
 * outcomes.map((outcome) => outcome._tag) // => ["Abandoned", "Stopped"]
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const stopAll = Effect.fn("StopBudget.stopAll")(function*<E, R>(
  total: Duration.Input,
  groups: ReadonlyArray<ReadonlyArray<Part<E, R>>>,
  options: Options<E> = {}
): Effect.fn.Return<ReadonlyArray<PartOutcome<E>>, never, R> {
  const millis = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1e6)
  const end = (yield* millis) + Duration.toMillis(Duration.fromInputUnsafe(total))
  const weights = groups.map(weightOf)

  const stop = Effect.fnUntraced(function*(part: Part<E, R>, granted: Duration.Duration) {
    const { atMost, name } = part
    const began = yield* millis
    const limit = atMost === undefined ? granted : Duration.min(granted, Duration.fromInputUnsafe(atMost))
    // Detached, so that a part that hangs in its own cleanup is not waited for either.
    const fiber = yield* Effect.forkDetach(part.stop, { startImmediately: true, uninterruptible: false })
    const exit = yield* Effect.timeoutOption(Fiber.await(fiber), limit)
    const took = Duration.millis((yield* millis) - began)
    const outcome: PartOutcome<E> = Option.isNone(exit)
      ? { _tag: "Abandoned", name, took }
      : Exit.isSuccess(exit.value)
      ? { _tag: "Stopped", name, took }
      : { _tag: "Failed", name, took, cause: exit.value.cause }
    yield* Effect.ignoreCause(Effect.suspend(() => options.onOutcome?.(outcome) ?? Effect.void))
    if (Option.isNone(exit)) fiber.interruptUnsafe()
    return outcome
  })

  const outcomes: Array<PartOutcome<E>> = []
  for (const [index, parts] of groups.entries()) {
    const granted = share(end - (yield* millis), weights.slice(index))
    outcomes.push(...(yield* Effect.forEach(parts, (part) => stop(part, granted), { concurrency: "unbounded" })))
  }
  return outcomes
}, Effect.uninterruptible)
