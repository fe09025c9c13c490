/**
 * What can go wrong between us and a Firecracker: one error whose `reason` says what.
 *
 * ```ts import.meta.vitest
 * import { FirecrackerError } from "effect-microvm-runtime/firecracker"
 * import * as Effect from "effect/Effect"
 * const program = FirecrackerError.fail(
 *   new FirecrackerError.ApiFault({
 *     method: "PUT",
 *     path: "/actions",
 *     status: 400,
 *     kind: "NoKernel",
 *     message: "Start microvm error: Cannot start microvm without kernel configuration."
 *   })
 * ).pipe(
 *   Effect.catchReason("FirecrackerError", "ApiFault", ({ kind }) => Effect.succeed(kind))
 * )
 * Effect.runSync(program) // => "NoKernel"
 * ```
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Formatter from "effect/Formatter"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import * as Printable from "../lifecycle/Printable.ts"

/**
 * The HTTP methods that Firecracker serves.
 *
 * @category models
 * @since 0.1.0
 */
export type Method = "GET" | "PUT" | "PATCH" | "DELETE"

/**
 * What a `fault_message` is about, as far as its text tells:
 *
 * - `NotSupportedBeforeStart`, `NotSupportedAfterStart`: the call belongs to the other side of `InstanceStart`.
 * - `UnknownRoute`: this Firecracker has no such method and path.
 * - `BadBody`: the body was not understood: an unknown field, a missing one, a wrong type.
 * - `EmptyBody`: a body was missing.
 * - `BadId`: an id has other characters than letters, digits and `_`, or path and body name different ones.
 * - `NoKernel`: a start without a boot source.
 * - `NotFresh`: a snapshot can be loaded only before anything else was configured.
 * - `RestoreFailed`: the snapshot could not be loaded. Firecracker ends after this answer.
 * - `NotPaused`: the machine runs, and has to stand still for this.
 * - `AlreadyConfigured`: what can be set once only was set before.
 * - `InUse`: an id, a MAC address, a host device or a root device is taken.
 * - `DeviceNotFound`: no such device.
 * - `NoPci`: devices can be added and removed only with `--enable-pci`.
 * - `MmdsTooLarge`: the data store is full.
 * - `MmdsNotInitialized`: the data store has to be put first.
 * - `TooLarge`: the body is over the payload limit.
 * - `KeyboardUnavailable`: Ctrl-Alt-Del cannot be typed: the guest has no keyboard driver, or does not read its keyboard.
 * - `Other`: none of these.
 *
 * @category models
 * @since 0.1.0
 */
export type FaultKind =
  | "NotSupportedBeforeStart"
  | "NotSupportedAfterStart"
  | "UnknownRoute"
  | "BadBody"
  | "EmptyBody"
  | "BadId"
  | "NoKernel"
  | "NotFresh"
  | "RestoreFailed"
  | "NotPaused"
  | "AlreadyConfigured"
  | "InUse"
  | "DeviceNotFound"
  | "NoPci"
  | "MmdsTooLarge"
  | "MmdsNotInitialized"
  | "TooLarge"
  | "KeyboardUnavailable"
  | "Other"

const why = (cause: unknown): string =>
  Printable.lines(cause instanceof Error ? cause.message : typeof cause === "string" ? cause : Formatter.format(cause))

/**
 * Firecracker said no. `message` is its own text.
 *
 * @category reasons
 * @since 0.1.0
 */
export class ApiFault extends Data.TaggedError("ApiFault")<{
  readonly method: Method
  readonly path: string
  readonly status: number
  readonly kind: FaultKind
  readonly message: string
}> {}

/**
 * The connection could not be made, or broke before the answer was whole. Whether the call was done is not known, unless
 * `phase` is `connect`.
 *
 * @category reasons
 * @since 0.1.0
 */
export class ConnectionFailed extends Data.TaggedError("ConnectionFailed")<{
  readonly method: Method
  readonly path: string
  readonly socket: string
  readonly phase: "connect" | "request" | "response"
  readonly cause: unknown
}> {
  override get message(): string {
    return `${this.method} ${this.path}: the connection to ${this.socket} failed: ${why(this.cause)}`
  }
}

/**
 * No answer within the deadline of the call. Firecracker may still do it.
 *
 * @category reasons
 * @since 0.1.0
 */
export class NoReply extends Data.TaggedError("NoReply")<{
  readonly method: Method
  readonly path: string
  readonly within: Duration.Duration
}> {
  override get message(): string {
    return `${this.method} ${this.path}: no answer within ${Duration.format(this.within)}`
  }
}

/**
 * What came is not an answer of Firecracker's: no HTTP, more than is allowed, or a body of another shape. The connection
 * is given up.
 *
 * @category reasons
 * @since 0.1.0
 */
export class ProtocolViolation extends Data.TaggedError("ProtocolViolation")<{
  readonly method: Method
  readonly path: string
  readonly detail: string
}> {
  override get message(): string {
    return `${this.method} ${this.path}: not an answer of Firecracker's: ${Printable.lines(this.detail)}`
  }
}

/**
 * One thing that is wrong with what a caller wants.
 *
 * @category models
 * @since 0.1.0
 */
export interface Fault {
  /** Where it is: `drives[1].path_on_host`. */
  readonly field: string
  readonly value: unknown
  /** What would be right. */
  readonly remedy: string
}

const show = (value: unknown): string => {
  const text = Formatter.format(value)
  return text.length > 80 ? `${text.slice(0, 79)}…` : text
}

/**
 * The call was not made, since Firecracker would refuse it: every fault at once.
 *
 * @category reasons
 * @since 0.1.0
 */
export class InvalidRequest extends Data.TaggedError("InvalidRequest")<{ readonly faults: ReadonlyArray<Fault> }> {
  override get message(): string {
    return `Not possible: ${
      this.faults.map(({ field, remedy, value }) => `${field} is ${show(value)}: ${remedy}`).join("; ")
    }`
  }
}

/**
 * The Firecracker at hand does not know these: a body with one unknown field would be refused as a whole.
 *
 * @category reasons
 * @since 0.1.0
 */
export class UnsupportedByVersion extends Data.TaggedError("UnsupportedByVersion")<{
  /** The version at hand, `1.10.1`. */
  readonly version: string
  /** `feature` in wire words: `PUT /serial`, `MachineConfiguration.huge_pages = 2M`. */
  readonly features: ReadonlyArray<{ readonly feature: string; readonly since?: string; readonly until?: string }>
}> {
  override get message(): string {
    const features = this.features.map(({ feature, since, until }) =>
      since !== undefined
        ? `${feature} needs ${since} or later`
        : until !== undefined
        ? `${feature} was last in ${until}`
        : feature
    )
    return `Firecracker ${this.version} cannot: ${features.join("; ")}`
  }
}

/**
 * The process did not come up, or ended under a call. `meaning` is what its exit says by Firecracker's own table.
 *
 * @category reasons
 * @since 0.1.0
 */
export class ProcessEnded extends Data.TaggedError("ProcessEnded")<{
  /** What was being done: `start`, `PUT /boot-source`. */
  readonly stage: string
  readonly status: ExitStatus.ExitStatus
  readonly meaning: string
  readonly stderrTail: string
  readonly logTail: string
}> {
  override get message(): string {
    const tails = [["stderr", this.stderrTail], ["log", this.logTail]] as const
    const shown = tails.flatMap(([name, text]) =>
      text.trim() === "" ? [] : [`${name}:\n${Printable.lines(text).trimEnd()}`]
    )
    return [
      `Firecracker ended at ${this.stage}: ${ExitStatus.format(this.status)} (${this.meaning})`,
      ...shown
    ].join("\n")
  }
}

/**
 * It was not ready in time, though it lives.
 *
 * @category reasons
 * @since 0.1.0
 */
export class NotReady extends Data.TaggedError("NotReady")<{
  readonly within: Duration.Duration
  readonly stderrTail: string
  readonly logTail: string
  readonly cause?: unknown
}> {
  override get message(): string {
    const last = this.cause === undefined ? "" : `: ${why(this.cause)}`
    return `Firecracker did not answer within ${Duration.format(this.within)}${last}`
  }
}

/**
 * The host could not do what was asked of it: make a directory, copy a file into a jail, remove one.
 *
 * @category reasons
 * @since 0.1.0
 */
export class HostFailed extends Data.TaggedError("HostFailed")<{
  readonly operation: string
  readonly path: string
  readonly why: string
  readonly cause?: unknown
}> {
  override get message(): string {
    return `${this.operation} ${this.path}: ${Printable.lines(this.why)}`
  }
}

/**
 * No connection to a port of the guest.
 *
 * @category reasons
 * @since 0.1.0
 */
export class VsockUnavailable extends Data.TaggedError("VsockUnavailable")<{
  /** The socket on the host. */
  readonly path: string
  readonly port: number
  readonly why: string
  readonly cause?: unknown
}> {
  override get message(): string {
    return `vsock port ${this.port} at ${this.path}: ${Printable.lines(this.why)}`
  }
}

/**
 * The other end of the guest-metadata protocol said no, or something else than the protocol has.
 *
 * @category reasons
 * @since 0.1.0
 */
export class GuestMetadataFailed extends Data.TaggedError("GuestMetadataFailed")<{
  readonly operation: string
  readonly why: string
}> {
  override get message(): string {
    return `${this.operation}: ${Printable.lines(this.why)}`
  }
}

/**
 * A snapshot that must not, or cannot, be loaded. Every reason is told.
 *
 * @category reasons
 * @since 0.1.0
 */
export class SnapshotUnusable extends Data.TaggedError("SnapshotUnusable")<{
  readonly directory: string
  readonly why: ReadonlyArray<string>
}> {
  override get message(): string {
    return `The snapshot in ${this.directory} cannot be loaded: ${Printable.lines(this.why.join("; "))}`
  }
}

/**
 * The server of page faults could not be started, or has ended. A machine whose pages nobody serves stands still for ever
 * at its next fault, so it is to be killed.
 *
 * @category reasons
 * @since 0.1.0
 */
export class PageServerFailed extends Data.TaggedError("PageServerFailed")<{
  readonly why: string
  readonly cause?: unknown
}> {
  override get message(): string {
    return `The server of page faults failed: ${Printable.lines(this.why)}`
  }
}

/**
 * @category reasons
 * @since 0.1.0
 */
export type Reason =
  | ApiFault
  | ConnectionFailed
  | NoReply
  | ProtocolViolation
  | InvalidRequest
  | UnsupportedByVersion
  | ProcessEnded
  | NotReady
  | HostFailed
  | VsockUnavailable
  | GuestMetadataFailed
  | SnapshotUnusable
  | PageServerFailed

/**
 * The one error of this folder; `reason` says which. Where the port is implemented it is the `cause` of a `MicroVmError`.
 *
 * @category errors
 * @since 0.1.0
 */
export class FirecrackerError extends Data.TaggedError("FirecrackerError")<{
  readonly reason: Reason
  readonly cause?: unknown
}> {
  override get message(): string {
    return this.reason.message
  }
}

/**
 * @category constructors
 * @since 0.1.0
 */
export const make = (reason: Reason): FirecrackerError => new FirecrackerError({ reason, cause: reason })

/**
 * @category constructors
 * @since 0.1.0
 */
export const fail = (reason: Reason): Effect.Effect<never, FirecrackerError> => Effect.fail(make(reason))
