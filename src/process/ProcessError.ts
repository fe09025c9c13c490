/**
 * What can go wrong with processes. How a process ended is never an error; that it could not be started, asked or
 * watched is.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import * as Printable from "../lifecycle/Printable.ts"
import type { Signal } from "../lifecycle/Signal.ts"
import * as OutputTail from "./OutputTail.ts"

/**
 * Every reason, by tag.
 *
 * Before anything was made:
 * - `InvalidArgument`: `field` of the command or options cannot be used; `why` says what to do. Values are not shown, as
 *   they may be secret.
 * - `NotFound`: no file of that name; `searched` are the directories of the child's PATH, none when a path was given.
 * - `NotExecutable`: the file is there, but execve(2) would refuse it.
 * - `BadWorkingDirectory`
 * - `ScopeUnavailable`: the kill scope that was asked for cannot be had on this host.
 *
 * Later:
 * - `SpawnFailed`: the kernel refused a new process (`code` is the errno name).
 * - `SignalFailed`: the kernel refused a signal, most often with EPERM.
 * - `OutputDropped`: a stream was read too late; `bytes` of it went past the kept tail unread.
 * - `OutputInUse`: somebody reads the stream already.
 * - `StreamFailed`: reading or writing a pipe failed.
 * - `NoSuchDescriptor`: the command has no additional descriptor of that number.
 * - `CGroupFailed`, `GuardFailed`: the host side of keeping the promise failed.
 * - `DiedBeforeReady`: it ended while somebody waited until it was ready.
 * - `NotReady`: it took longer than `within`; the error's `cause` is that of the last check.
 *
 * Of processes that are held:
 * - `NotHeld`: none is held in this directory.
 * - `HandTaken`: somebody else has hold of it.
 * - `HolderFailed`: its holder cannot be started, found or understood.
 *
 * @category models
 * @since 0.1.0
 */
export type ProcessErrorReason = Data.TaggedEnum<{
  InvalidArgument: { readonly field: string; readonly why: string }
  NotFound: { readonly command: string; readonly searched: ReadonlyArray<string> }
  NotExecutable: { readonly path: string; readonly why: string }
  BadWorkingDirectory: { readonly path: string; readonly why: string }
  ScopeUnavailable: { readonly killScope: string; readonly why: string }
  SpawnFailed: { readonly command: string; readonly code: string }
  SignalFailed: { readonly signal: Signal; readonly target: string; readonly code: string }
  OutputDropped: { readonly stream: string; readonly bytes: number }
  OutputInUse: { readonly stream: string }
  StreamFailed: { readonly stream: string; readonly code: string }
  NoSuchDescriptor: { readonly fd: number; readonly available: ReadonlyArray<number> }
  CGroupFailed: { readonly path: string; readonly operation: string; readonly code: string }
  GuardFailed: { readonly why: string }
  DiedBeforeReady: { readonly status: ExitStatus.ExitStatus; readonly tail: OutputTail.OutputTail }
  NotReady: { readonly within: Duration.Duration; readonly tail: OutputTail.OutputTail }
  NotHeld: { readonly directory: string; readonly why: string }
  HandTaken: { readonly directory: string }
  HolderFailed: { readonly directory: string; readonly why: string }
}>

/**
 * Constructors and matchers of the reasons.
 *
 * @category constructors
 * @since 0.1.0
 */
export const ProcessErrorReason = Data.taggedEnum<ProcessErrorReason>()

const withTail = (text: string, tail: OutputTail.OutputTail): string => {
  const output = OutputTail.format(tail)
  return output === "" ? `${text}, without any output` : `${text}\n${output}`
}

/** A PATH may be very long, as npx and direnv put their own before it; what every host has is at its end. */
const shownPath = 160
const formatPath = (searched: ReadonlyArray<string>): string => {
  const path = searched.join(":")
  if (path.length <= shownPath) return path
  const [, ...whole] = path.slice(-shownPath).split(":")
  return ["…", ...whole].join(":")
}

/** fork(2) and execve(2), in words, with what to do. */
const refusals: Readonly<Record<string, string>> = {
  EAGAIN: "no more processes may be started: end some, or raise the limit of the user (ulimit -u), " +
    "of the cgroup (pids.max) or of the kernel (kernel.pid_max, kernel.threads-max)",
  ENOMEM:
    "memory is short: free some, raise the limit of the cgroup (memory.max), or let the kernel promise more (vm.overcommit_memory)",
  EMFILE: "this process has as many files open as it may: close some, or raise its limit (ulimit -n)",
  ENFILE:
    "all processes together have as many files open as they may: close some, or raise the limit (sysctl fs.file-max)",
  ETXTBSY: "somebody has the file open to write: start it when it is closed, or put it in place by a rename",
  E2BIG:
    "its arguments and variables are too long, 128 KiB each or all together (a quarter of ulimit -s): pass them in a file or on stdin"
}
const whyNot = (code: string): string => {
  const why = refusals[code]
  return why === undefined ? code : `${why} (${code})`
}

const describe: (reason: ProcessErrorReason) => string = ProcessErrorReason.$match({
  InvalidArgument: ({ field, why }) => `${field}: ${why}`,
  NotFound: ({ command, searched }) =>
    searched.length === 0
      ? `${command}: no such file`
      : `${command}: not found in ${formatPath(searched)}: install it, or give its path`,
  NotExecutable: ({ path, why }) => `${path}: cannot be executed: ${why}`,
  BadWorkingDirectory: ({ path, why }) => `cwd ${path}: ${why}`,
  ScopeUnavailable: ({ killScope, why }) =>
    `kill scope "${killScope}" cannot be had: ${why}: use "auto" to take what can`,
  SpawnFailed: ({ code, command }) => `${command}: could not be started: ${whyNot(code)}`,
  SignalFailed: ({ code, signal, target }) => `${signal} could not be sent to ${target}: ${code}`,
  OutputDropped: ({ bytes, stream }) =>
    `${stream}: ${bytes} bytes were dropped before it was read: read it from the start, or keep a longer tail`,
  OutputInUse: ({ stream }) => `${stream}: is being read already: a stream has one reader at a time`,
  StreamFailed: ({ code, stream }) => `${stream}: ${code}`,
  NoSuchDescriptor: ({ available, fd }) =>
    `descriptor ${fd} is no additional descriptor of the command: ${
      available.length === 0 ? "it has none" : `it has ${available.join(", ")}`
    }`,
  CGroupFailed: ({ code, operation, path }) => `cgroup ${path}: ${operation} failed: ${code}`,
  GuardFailed: ({ why }) => `the guard that cleans up after our death: ${why}`,
  DiedBeforeReady: ({ status, tail }) => withTail(`${ExitStatus.format(status)} before it was ready`, tail),
  NotReady: ({ tail, within }) => withTail(`not ready within ${Duration.format(within)}`, tail),
  NotHeld: ({ directory, why }) => `${directory}: no process is held there: ${why}`,
  HandTaken: ({ directory }) => `${directory}: another has hold of the process there: wait until it lets go, or end it`,
  HolderFailed: ({ directory, why }) => `${directory}: the holder of the process there: ${why}`
})

/**
 * The one error of this folder: branch on `reason`, for example with `Effect.catchReason("ProcessError", "NotFound", …)`.
 *
 * ```ts import.meta.vitest
 * import { ProcessError } from "effect-microvm-runtime/process"
 * const error = new ProcessError.ProcessError({
 *   reason: ProcessError.ProcessErrorReason.BadWorkingDirectory({ path: "/nowhere", why: "no such directory" })
 * })
 * error.message // => "cwd /nowhere: no such directory"
 * ```
 *
 * @category errors
 * @since 0.1.0
 */
export class ProcessError extends Data.TaggedError("ProcessError")<{
  readonly reason: ProcessErrorReason
  /** Further reasons, when several things are wrong with a command at once. */
  readonly others?: ReadonlyArray<ProcessErrorReason>
  readonly cause?: unknown
}> {
  override get message(): string {
    return Printable.lines([this.reason, ...(this.others ?? [])].map(describe).join("; "))
  }
}

/**
 * Makes an error of a reason and what caused it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromReason = (reason: ProcessErrorReason, cause?: unknown): ProcessError =>
  new ProcessError(cause === undefined ? { reason } : { reason, cause })
