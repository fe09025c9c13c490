/**
 * A shutdown as data: stages, from the politest to the one that nothing survives.
 *
 * @since 0.1.0
 */
import type * as Arr from "effect/Array"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import type { Signal } from "./Signal.ts"

/**
 * One step of a shutdown: a request, and how long it may take to work. `R` is what the target understands: a signal for a
 * process, a power-off request for a machine.
 *
 * @category models
 * @since 0.1.0
 */
export interface Stage<out R> {
  /** What reports and error messages call it. Unique within a policy. */
  readonly name: string
  readonly request: R
  /**
   * Time from the request to the next stage, kept to half a millisecond on an idle machine. In the last stage: the longest wait before the
   * shutdown gives up.
   */
  readonly grace: Duration.Duration
  /** `true` when the target has no say: an end by this stage is reported as `Forced`. */
  readonly force: boolean
  /** How much more time than `grace` the target may ask for, in all. Default zero. */
  readonly maxExtension: Duration.Duration
}

/**
 * Stages in the order in which they are tried.
 *
 * @category models
 * @since 0.1.0
 */
export interface ShutdownPolicy<out R> {
  readonly stages: Arr.NonEmptyReadonlyArray<Stage<R>>
}

/**
 * What is wrong with a policy: one sentence for each fault, with the stage, the value and the remedy.
 *
 * @category errors
 * @since 0.1.0
 */
export class ShutdownPolicyError extends Data.TaggedError("ShutdownPolicyError")<{
  readonly faults: ReadonlyArray<string>
}> {
  override get message(): string {
    return `Invalid shutdown policy: ${this.faults.join("; ")}`
  }
}

/**
 * How a stage is written down.
 *
 * @category options
 * @since 0.1.0
 */
export interface StageOptions<out R> {
  readonly name: string
  readonly request: R
  readonly grace: Duration.Input
  /** Default `false`. */
  readonly force?: boolean | undefined
  /** Default zero. */
  readonly maxExtension?: Duration.Input | undefined
}

const boundFault = (duration: Duration.Duration): string | undefined =>
  !Duration.isFinite(duration)
    ? "give it an end, or the shutdown has none"
    : Duration.isNegative(duration)
    ? "give it a time of zero or more"
    : undefined

/**
 * Checks stages and makes a policy of them. Every fault is reported, not only the first.
 *
 * ```ts import.meta.vitest
 * import { ShutdownPolicy } from "effect-microvm-runtime/lifecycle"
 * import * as Result from "effect/Result"
 * const policy = ShutdownPolicy.make([
 *   { name: "polite", request: "SIGINT", grace: "5 seconds" },
 *   { name: "kill", request: "SIGKILL", grace: "Infinity", force: true }
 * ])
 * Result.isFailure(policy) // => true
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <const R>(
  stages: Arr.NonEmptyReadonlyArray<StageOptions<R>>
): Result.Result<ShutdownPolicy<R>, ShutdownPolicyError> => {
  const faults: Array<string> = []
  const names = new Set<string>()
  let forced: string | undefined
  const read = (name: string, field: string, input: Duration.Input): Duration.Duration => {
    const duration = Number.isNaN(input) ? Option.none() : Duration.fromInput(input)
    const fault = Option.isNone(duration) ? "write it as 500 or \"2 seconds\"" : boundFault(duration.value)
    if (fault !== undefined) {
      const value = Option.match(duration, {
        onNone: () => Number.isNaN(input) ? "NaN" : JSON.stringify(input),
        onSome: Duration.format
      })
      faults.push(`stage "${name}": ${field} is ${value}: ${fault}`)
    }
    return Option.getOrElse(duration, () => Duration.zero)
  }
  const toStage = (options: StageOptions<R>): Stage<R> => {
    const { name, request, force = false } = options
    if (name === "") faults.push("a stage has an empty name: give it one")
    if (names.has(name)) faults.push(`two stages are called "${name}": rename one`)
    names.add(name)
    const grace = read(name, "grace", options.grace)
    const maxExtension = read(name, "maxExtension", options.maxExtension ?? 0)
    if (force) forced = name
    else if (forced !== undefined) {
      faults.push(`stage "${name}" asks after "${forced}" has already forced: put it first`)
    }
    return { name, request, grace, force, maxExtension }
  }
  const [first, ...rest] = stages
  const checked: Arr.NonEmptyReadonlyArray<Stage<R>> = [toStage(first), ...rest.map(toStage)]
  return faults.length > 0 ? Result.fail(new ShutdownPolicyError({ faults })) : Result.succeed({ stages: checked })
}

/**
 * Like `make`, for policies written in source: throws `ShutdownPolicyError`.
 *
 * ```ts import.meta.vitest
 * import { ShutdownPolicy } from "effect-microvm-runtime/lifecycle"
 * ShutdownPolicy.makeUnsafe([{ name: "kill", request: "SIGKILL", grace: "1 second", force: true }]).stages.length // => 1
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeUnsafe = <const R>(stages: Arr.NonEmptyReadonlyArray<StageOptions<R>>): ShutdownPolicy<R> =>
  Result.getOrThrow(make(stages))

/**
 * A request, a grace, then SIGKILL.
 *
 * ```ts import.meta.vitest
 * import { ShutdownPolicy } from "effect-microvm-runtime/lifecycle"
 * const stages = ShutdownPolicy.signals({ signal: "SIGINT", grace: "10 seconds" }).stages.map((stage) => stage.name)
 * stages // => ["SIGINT", "SIGKILL"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const signals = (options: {
  /** The first request. Default SIGTERM. */
  readonly signal?: Signal | undefined
  /** Time between the request and SIGKILL. Default 2 seconds. */
  readonly grace?: Duration.Input | undefined
  /** The longest wait after SIGKILL. Default 2 seconds. */
  readonly reap?: Duration.Input | undefined
  /** How much more time the process may ask for. Default zero. */
  readonly maxExtension?: Duration.Input | undefined
} = {}): ShutdownPolicy<Signal> => {
  const signal = options.signal ?? "SIGTERM"
  const kill = { name: "SIGKILL", request: "SIGKILL", grace: options.reap ?? "2 seconds", force: true } as const
  return makeUnsafe<Signal>(
    signal === "SIGKILL"
      ? [kill]
      : [
        { name: signal, request: signal, grace: options.grace ?? "2 seconds", maxExtension: options.maxExtension },
        kill
      ]
  )
}

/**
 * SIGTERM, 2 seconds, SIGKILL, and 2 seconds for the kernel to clear up.
 *
 * @category constants
 * @since 0.1.0
 */
export const defaults: ShutdownPolicy<Signal> = signals()

/**
 * The longest time that a shutdown by this policy can take.
 *
 * @category accessors
 * @since 0.1.0
 */
export const longest = <R>(self: ShutdownPolicy<R>): Duration.Duration =>
  self.stages.reduce(
    (sum, stage) => Duration.sum(sum, Duration.sum(stage.grace, stage.maxExtension)),
    Duration.zero
  )
