/**
 * The words all other folders share: how a process ended, how a shutdown is described and how it went, exit codes,
 * budgets. No I/O.
 *
 * @since 0.1.0
 */
export * as DurationText from "./DurationText.ts"
export * as ExitCode from "./ExitCode.ts"
export * as ExitStatus from "./ExitStatus.ts"
export * as Printable from "./Printable.ts"
export * as RunReport from "./RunReport.ts"
export * as Shutdown from "./Shutdown.ts"
export * as ShutdownOutcome from "./ShutdownOutcome.ts"
export * as ShutdownPolicy from "./ShutdownPolicy.ts"
export * as Signal from "./Signal.ts"
export * as StopBudget from "./StopBudget.ts"
