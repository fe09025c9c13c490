/**
 * Which exit code says what. Two tables, one for services and one for `microvm run`, and total functions into 0 to 255.
 * They are applied at the edge only; everything else passes the reasons on as values.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import * as ExitStatus from "./ExitStatus.ts"
import type { RunEnd } from "./RunReport.ts"
import type { ShutdownOutcome } from "./ShutdownOutcome.ts"
import * as Signal from "./Signal.ts"

/**
 * Exit codes of a service, by reason. A program may use a table of its own.
 *
 * | reason | code | |
 * | --- | --- | --- |
 * | `ended` | 0 | the service ended by itself |
 * | `failed` | 1 | it failed while running, or could not bind |
 * | `stopped` | 10 | ended in order after a signal |
 * | `budgetPassed` | 11 | the stop budget passed, something was abandoned |
 * | `finalizerFailed` | 12 | a finalizer failed while stopping |
 * | `defect` | 70 | a defect (EX_SOFTWARE of sysexits.h) |
 * | `configInvalid` | 78 | configuration invalid (EX_CONFIG) |
 * | `secrets` | 101 | secrets could not be had |
 * | `loading` | 111 | loading failed |
 * | `resourceInput` | 121 | a resource's input is not valid |
 * | `provisionRequest` | 131 | a provisioning request failed |
 * | `resourceState` | 132 | a resource is in a bad state |
 * | `initialisation` | 151 | initialisation failed |
 * | `healthBind` | 201 | the health listener could not bind |
 * | `healthFailed` | 202 | the health listener failed |
 *
 * @category constants
 * @since 0.1.0
 */
export const service = {
  ended: 0,
  failed: 1,
  stopped: 10,
  budgetPassed: 11,
  finalizerFailed: 12,
  defect: 70,
  configInvalid: 78,
  secrets: 101,
  loading: 111,
  resourceInput: 121,
  provisionRequest: 131,
  resourceState: 132,
  initialisation: 151,
  healthBind: 201,
  healthFailed: 202
} as const

/**
 * @category models
 * @since 0.1.0
 */
export type ServiceReason = keyof typeof service

/**
 * A code for each reason of a service.
 *
 * @category models
 * @since 0.1.0
 */
export type ServiceTable = { readonly [Reason in ServiceReason]: number }

/**
 * Own codes of `microvm run`: those that `timeout`, `docker run` and shells have made customary, and two of sysexits.h.
 *
 * @category constants
 * @since 0.1.0
 */
export const run = {
  /** Bad command line (EX_USAGE). */
  usage: 64,
  /** No backend can run here (EX_UNAVAILABLE). */
  noBackend: 69,
  /** `--timeout` passed (timeout(1)). */
  timedOut: 124,
  /** The runtime failed, or the machine ended before the command. */
  runtimeFailed: 125,
  /** The command could not be executed. */
  notExecutable: 126,
  /** The command was not found. */
  notFound: 127
} as const

/**
 * How a service ended: for a reason of the table, or because a second signal cut its stop short.
 *
 * @category models
 * @since 0.1.0
 */
export const ServiceEnd = Schema.TaggedUnion({
  Reason: {
    reason: Schema.Literals([
      "ended",
      "failed",
      "stopped",
      "budgetPassed",
      "finalizerFailed",
      "defect",
      "configInvalid",
      "secrets",
      "loading",
      "resourceInput",
      "provisionRequest",
      "resourceState",
      "initialisation",
      "healthBind",
      "healthFailed"
    ])
  },
  SecondSignal: { signal: Signal.Signal }
})

/**
 * @category models
 * @since 0.1.0
 */
export type ServiceEnd = typeof ServiceEnd.Type

/**
 * 128 + n, as shells show the end by signal n.
 *
 * ```ts import.meta.vitest
 * import { ExitCode } from "effect-microvm-runtime/lifecycle"
 * ExitCode.fromSignal("SIGTERM") // => 143
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const fromSignal = (signal: Signal.Signal): number => 128 + Signal.toNumber(signal)

/**
 * The exit code of a service.
 *
 * ```ts import.meta.vitest
 * import { ExitCode } from "effect-microvm-runtime/lifecycle"
 * ExitCode.fromService({ _tag: "Reason", reason: "configInvalid" }) // => 78
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const fromService = (end: ServiceEnd, table: ServiceTable = service): number =>
  end._tag === "SecondSignal" ? fromSignal(end.signal) : table[end.reason]

/**
 * The exit code of a run. A machine that could not be ended wins over the command's own code: something was left behind,
 * and nobody may take that for a success.
 *
 * ```ts import.meta.vitest
 * import { ExitCode, ExitStatus } from "effect-microvm-runtime/lifecycle"
 * ExitCode.fromRun({ _tag: "Completed", status: ExitStatus.exited(7, "agent") }) // => 7
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const fromRun = (end: RunEnd, shutdown?: ShutdownOutcome): number => {
  if (shutdown?._tag === "Survivors" || shutdown?._tag === "Unkillable") return run.runtimeFailed
  switch (end._tag) {
    case "Completed":
      return ExitStatus.toCode(end.status)
    case "Interrupted":
      return fromSignal(end.signal)
    case "TimedOut":
      return run.timedOut
    case "MachineEnded":
    case "Failed":
      return run.runtimeFailed
    case "NoBackend":
      return run.noBackend
    case "Usage":
      return run.usage
  }
}

/**
 * What is wrong with a table: codes outside 0 to 255, and codes taken twice.
 *
 * ```ts import.meta.vitest
 * import { ExitCode } from "effect-microvm-runtime/lifecycle"
 * ExitCode.faults({ ...ExitCode.service, failed: 10 }) // => ["stopped: code 10 is already that of failed: choose another"]
 * ```
 *
 * @category guards
 * @since 0.1.0
 */
export const faults = (table: ServiceTable): ReadonlyArray<string> => {
  const taken = new Map<number, string>()
  return Object.entries(table).flatMap(([reason, code]) => {
    if (!Number.isInteger(code) || code < 0 || code > 255) {
      return [`${reason}: code ${code} is not in 0 to 255: choose another`]
    }
    const other = taken.get(code)
    taken.set(code, reason)
    return other === undefined ? [] : [`${reason}: code ${code} is already that of ${other}: choose another`]
  })
}
