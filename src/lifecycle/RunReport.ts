/**
 * What `microvm run` tells at its end, as one value. Its JSON form is what `--json` prints.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import { ExitStatus } from "./ExitStatus.ts"
import { Elapsed, ShutdownOutcome } from "./ShutdownOutcome.ts"
import { Signal } from "./Signal.ts"

/**
 * Why a run ended, the first of:
 *
 * - `Completed`: the command ended; also with 126 and 127, which the guest gives for a command that cannot be executed.
 * - `Interrupted`: a signal to `run` itself; SIGPIPE stands for a reader of stdout or stderr that went away.
 * - `TimedOut`: `--timeout` passed.
 * - `MachineEnded`: the machine ended before the command did.
 * - `Failed`: the runtime could not do its part.
 * - `NoBackend`: nothing on this host can run a machine.
 * - `Usage`: the command line is wrong.
 *
 * @category models
 * @since 0.1.0
 */
export const RunEnd = Schema.TaggedUnion({
  Completed: { status: ExitStatus },
  Interrupted: { signal: Signal },
  TimedOut: { after: Elapsed },
  MachineEnded: { why: Schema.String, consoleTail: Schema.String },
  Failed: { message: Schema.String },
  NoBackend: { message: Schema.String },
  Usage: { message: Schema.String }
})

/**
 * @category models
 * @since 0.1.0
 */
export type RunEnd = typeof RunEnd.Type

/**
 * How long one part of a run took.
 *
 * @category models
 * @since 0.1.0
 */
export const Phase = Schema.Struct({ name: Schema.String, took: Elapsed })

/**
 * @category models
 * @since 0.1.0
 */
export type Phase = typeof Phase.Type

/**
 * How the machine of a run came up: from a snapshot, or by a boot and why so; and how long that took until its guest
 * answered.
 *
 * @category models
 * @since 0.1.0
 */
export const MachineStart = Schema.TaggedUnion({
  Restored: { snapshot: Schema.String, took: Elapsed },
  Booted: { why: Schema.String, took: Elapsed }
})

/**
 * @category models
 * @since 0.1.0
 */
export type MachineStart = typeof MachineStart.Type

/**
 * The report of one run.
 *
 * @category models
 * @since 0.1.0
 */
export const RunReport = Schema.Struct({
  id: Schema.String,
  backend: Schema.String,
  /** What the backend is and why it was taken: `"qemu 7.2, TCG: the CPU shows neither vmx nor svm"`. */
  backendDetail: Schema.String,
  command: Schema.Array(Schema.String),
  end: RunEnd,
  exitCode: Schema.Int,
  phases: Schema.Array(Phase),
  /** Absent when no guest answered. */
  start: Schema.optionalKey(MachineStart),
  /** Absent when no machine was launched. */
  shutdown: Schema.optionalKey(ShutdownOutcome)
})

/**
 * @category models
 * @since 0.1.0
 */
export type RunReport = typeof RunReport.Type
