/**
 * How a shutdown went.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Schema from "effect/Schema"
import * as ExitStatus from "./ExitStatus.ts"

/**
 * A time that has passed, in JSON a number of milliseconds.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Elapsed = Schema.DurationFromMillis.check(
  Schema.makeFilter((duration) => {
    const millis = Duration.toMillis(duration)
    return millis >= 0 && millis <= Number.MAX_SAFE_INTEGER
  }, { expected: "a finite duration" })
)

/**
 * Something that outlived a shutdown.
 *
 * @category models
 * @since 0.1.0
 */
export const Survivor = Schema.Struct({
  pid: Schema.Int,
  /** The command name the kernel knows (proc_pid_comm(5)), its control characters as escapes, or what else is known of it. */
  command: Schema.String,
  /** Why it is still there: `"outside the process group"`, `"uninterruptible sleep (D)"`. */
  why: Schema.String
})

/**
 * @category models
 * @since 0.1.0
 */
export type Survivor = typeof Survivor.Type

/**
 * How a stage ended:
 *
 * - `ended`: the target was gone.
 * - `deadline`: the grace, and what it was extended by, had passed.
 * - `failed`: the request itself failed; the next stage came at once.
 * - `hastened`: somebody asked for a harsher stage.
 *
 * A stage that was jumped over is not reported.
 *
 * @category models
 * @since 0.1.0
 */
export const StageEnd = Schema.Literals(["ended", "deadline", "failed", "hastened"])

/**
 * @category models
 * @since 0.1.0
 */
export type StageEnd = typeof StageEnd.Type

/**
 * What one stage did.
 *
 * @category models
 * @since 0.1.0
 */
export const StageReport = Schema.Struct({
  name: Schema.String,
  /** From the start of the shutdown to the stage's request. */
  after: Elapsed,
  /** From the request to the stage's end. */
  took: Elapsed,
  end: StageEnd,
  /** Why the request failed, when it did. */
  error: Schema.optionalKey(Schema.Defect())
})

/**
 * @category models
 * @since 0.1.0
 */
export type StageReport = typeof StageReport.Type

/**
 * Did the guest of a machine say, as its last word, that all it had to write is written?
 *
 * - `yes`: it did, whatever ended the machine after that.
 * - `no`: it did not, and it was not the guest that ended the machine. What it had not written yet is lost.
 * - `unknown`: it ended by itself, and said nothing of the kind, as guests do that are not made to; or it is still there.
 *
 * @category models
 * @since 0.1.0
 */
export const Acknowledged = Schema.Literals(["yes", "no", "unknown"])

/**
 * @category models
 * @since 0.1.0
 */
export type Acknowledged = typeof Acknowledged.Type

const common = {
  /** The stages that ran, in order. */
  stages: Schema.Array(StageReport),
  elapsed: Elapsed,
  /** Absent when what was shut down is no machine. */
  acknowledged: Schema.optionalKey(Acknowledged)
}

/**
 * How a shutdown went:
 *
 * - `AlreadyExited`: nothing was asked; the target had ended before.
 * - `Graceful`: it ended after a request that it could refuse; `stage` names it.
 * - `Forced`: it ended after a request that it could not refuse.
 * - `Survivors`: the target itself ended, but others that it started are still there.
 * - `Unkillable`: the last wait passed and the target is still there.
 *
 * @category models
 * @since 0.1.0
 */
export const ShutdownOutcome = Schema.TaggedUnion({
  AlreadyExited: { ...common, status: ExitStatus.ExitStatus },
  Graceful: { ...common, status: ExitStatus.ExitStatus, stage: Schema.String },
  Forced: { ...common, status: ExitStatus.ExitStatus, stage: Schema.String },
  Survivors: { ...common, status: ExitStatus.ExitStatus, survivors: Schema.Array(Survivor) },
  Unkillable: { ...common, survivors: Schema.Array(Survivor) }
})

/**
 * @category models
 * @since 0.1.0
 */
export type ShutdownOutcome = typeof ShutdownOutcome.Type

/**
 * Is nothing left of the target?
 *
 * @category guards
 * @since 0.1.0
 */
export const isComplete = (self: ShutdownOutcome): boolean => self._tag !== "Survivors" && self._tag !== "Unkillable"

/**
 * The errors of the stages whose request failed, in order.
 *
 * @category accessors
 * @since 0.1.0
 */
export const errors = (self: ShutdownOutcome): ReadonlyArray<unknown> =>
  self.stages.flatMap((stage) => stage.error === undefined ? [] : [stage.error])

const formatSurvivor = ({ command, pid, why }: Survivor): string => `${command}[${pid}] (${why})`

const messageOf = (error: unknown): string => error instanceof Error ? error.message : String(error)

/**
 * One sentence for people.
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = (self: ShutdownOutcome): string => {
  const elapsed = Duration.format(Duration.millis(Math.round(Duration.toMillis(self.elapsed))))
  switch (self._tag) {
    case "AlreadyExited":
      return `had already ${ExitStatus.format(self.status)}`
    case "Graceful":
      return `ended by ${self.stage} within ${elapsed}: ${ExitStatus.format(self.status)}`
    case "Forced":
      return `forced by ${self.stage} after ${elapsed}: ${ExitStatus.format(self.status)}`
    case "Survivors":
      return `${ExitStatus.format(self.status)}, but left behind: ${self.survivors.map(formatSurvivor).join(", ")}`
    case "Unkillable": {
      const failed = self.stages.flatMap(({ error, name }) =>
        error === undefined ? [] : [`${name}: ${messageOf(error)}`]
      )
      const why = [...self.survivors.map(formatSurvivor), ...failed].join(", ")
      return `still there after ${elapsed}${why && `: ${why}`}`
    }
  }
}
