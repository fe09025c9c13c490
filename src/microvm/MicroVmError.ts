/**
 * What can go wrong with a machine: one error whose `reason` says what.
 *
 * ```ts import.meta.vitest
 * import { MicroVmError } from "effect-microvm-runtime/microvm"
 * import * as Effect from "effect/Effect"
 * const program = MicroVmError.fail(new MicroVmError.MachineNotFound({ id: "web-1" })).pipe(
 *   Effect.catchReason("MicroVmError", "MachineNotFound", ({ id }) => Effect.succeed(`no ${id}`))
 * )
 * Effect.runSync(program) // => "no web-1"
 * ```
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Formatter from "effect/Formatter"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import * as Printable from "../lifecycle/Printable.ts"
import * as MachineEnd from "./MachineEnd.ts"
import * as MachineState from "./MachineState.ts"

/**
 * Another machine has this id.
 *
 * @category reasons
 * @since 0.1.0
 */
export class MachineAlreadyExists extends Data.TaggedError("MachineAlreadyExists")<{ readonly id: string }> {
  override get message(): string {
    return `A machine with the id "${this.id}" already exists: choose another id, or destroy that one first`
  }
}

/**
 * No machine has this id.
 *
 * @category reasons
 * @since 0.1.0
 */
export class MachineNotFound extends Data.TaggedError("MachineNotFound")<{ readonly id: string }> {
  override get message(): string {
    return `No machine has the id "${this.id}"`
  }
}

/**
 * The machine is in a state in which this cannot be done. `to` says what was asked for, in the words of
 * `MachineState.goals`.
 *
 * @category reasons
 * @since 0.1.0
 */
export class InvalidTransition extends Data.TaggedError("InvalidTransition")<{
  readonly id: string
  readonly from: MachineState.MachineState
  readonly to: typeof MachineState.goals[MachineState.Operation]
  /** What could be done there instead. Default: what the state allows, which is more than one handle can do. */
  readonly possible?: ReadonlyArray<MachineState.Operation>
}> {
  override get message(): string {
    const possible = (this.possible ?? MachineState.possible(this.from)).filter((operation) =>
      MachineState.goals[operation] !== this.to
    )
    const another = this.possible !== undefined && MachineState.isOver(this.from) ? ": launch another machine" : ""
    const remedy = possible.length === 0 ? `nothing${another}` : possible.join(", ")
    return `Machine "${this.id}" is ${this.from} and cannot become ${this.to}; possible there: ${remedy}`
  }
}

/**
 * Another snapshot has this name.
 *
 * @category reasons
 * @since 0.1.0
 */
export class SnapshotAlreadyExists extends Data.TaggedError("SnapshotAlreadyExists")<{ readonly snapshot: string }> {
  override get message(): string {
    return `A snapshot "${this.snapshot}" already exists: choose another name, or remove that one first`
  }
}

/**
 * There is no such snapshot.
 *
 * @category reasons
 * @since 0.1.0
 */
export class SnapshotNotFound extends Data.TaggedError("SnapshotNotFound")<{ readonly snapshot: string }> {
  override get message(): string {
    return `There is no snapshot "${this.snapshot}"`
  }
}

/**
 * The snapshot must not be loaded: it is not what it was when it was made, or it was made for another host. Every reason
 * is told, and what to do, which is by default to make it anew.
 *
 * @category reasons
 * @since 0.1.0
 */
export class SnapshotUnusable extends Data.TaggedError("SnapshotUnusable")<{
  readonly snapshot: string
  readonly why: ReadonlyArray<string>
  readonly remedy?: string
}> {
  override get message(): string {
    const { remedy = "Remove it and make it anew" } = this
    return `Snapshot "${this.snapshot}" cannot be used: ${Printable.lines(this.why.join("; "))}. ${remedy}`
  }
}

/**
 * The snapshot stays, as others are only the difference to it. `by` are their ids.
 *
 * @category reasons
 * @since 0.1.0
 */
export class SnapshotInUse extends Data.TaggedError("SnapshotInUse")<{
  readonly snapshot: string
  readonly by: ReadonlyArray<string>
}> {
  override get message(): string {
    const ids = this.by.map((id) => id.slice(0, 12)).join(", ")
    return `Snapshot "${this.snapshot}" is what others are the difference to: remove ${ids} first`
  }
}

/**
 * It is not known what of the machine is another than in the snapshot. It is known of the last one that was made of it or, until
 * there is one, of the one that it was restored from. A snapshot that was made and then not kept counts as the last one.
 *
 * @category reasons
 * @since 0.1.0
 */
export class DifferenceUnknown extends Data.TaggedError("DifferenceUnknown")<{
  readonly id: string
  readonly snapshot: string
  readonly why: string
}> {
  override get message(): string {
    return `Machine "${this.id}" cannot be saved as the difference to snapshot "${this.snapshot}", ${this.why}: save it whole`
  }
}

/**
 * Snapshots cannot be kept or looked up there.
 *
 * @category reasons
 * @since 0.1.0
 */
export class StoreFailed extends Data.TaggedError("StoreFailed")<{
  readonly path: string
  readonly why: string
  readonly cause?: unknown
}> {
  override get message(): string {
    return `Snapshots cannot be kept in ${this.path}: ${Printable.lines(this.why)}`
  }
}

/**
 * The backend cannot do this at all.
 *
 * @category reasons
 * @since 0.1.0
 */
export class Unsupported extends Data.TaggedError("Unsupported")<{
  readonly operation: string
  readonly backend: string
  readonly remedy: string
}> {
  override get message(): string {
    return `The ${this.backend} backend does not support ${this.operation}: ${this.remedy}`
  }
}

/**
 * One thing that is wrong with what a caller wants.
 *
 * @category models
 * @since 0.1.0
 */
export interface Fault {
  /** Where it is: `memoryMib`, `channels[1]`. */
  readonly field: string
  readonly value: unknown
  /** What would be right. */
  readonly remedy: string
}

const why = (cause: unknown): string =>
  Printable.lines(cause instanceof Error ? cause.message : typeof cause === "string" ? cause : show(cause))

const cut = (text: string): string => text.length > 80 ? `${text.slice(0, 79)}…` : text

const show = (value: unknown): string => cut(Formatter.format(value))

/** So many faults are in a message; what somebody has sent may have a hundred thousand. */
const mostTold = 32

const tell = (faults: ReadonlyArray<Fault>): string => {
  const told = faults.slice(0, mostTold)
    .map(({ field, remedy, value }) => `${cut(field)} is ${show(value)}: ${remedy}`)
    .join("; ")
  return faults.length > mostTold ? `${told}; and ${faults.length - mostTold} more` : told
}

/**
 * What the caller wants is not possible: every fault, not only the first.
 *
 * @category reasons
 * @since 0.1.0
 */
export class InvalidSpec extends Data.TaggedError("InvalidSpec")<{ readonly faults: ReadonlyArray<Fault> }> {
  override get message(): string {
    return `Not possible: ${tell(this.faults)}`
  }
}

/**
 * A pool was asked for that cannot be; every fault at once.
 *
 * @category reasons
 * @since 0.1.0
 */
export class InvalidPool extends Data.TaggedError("InvalidPool")<{ readonly faults: ReadonlyArray<Fault> }> {
  override get message(): string {
    return `Invalid pool: ${tell(this.faults)}`
  }
}

/**
 * The pool hands out no more: it was drained, or its scope was closed.
 *
 * @category reasons
 * @since 0.1.0
 */
export class PoolClosed extends Data.TaggedError("PoolClosed") {
  override get message(): string {
    return "The pool of machines is closed: take from it before it is drained and while its scope is open"
  }
}

/**
 * As many wait for a machine of the pool as may: nobody else is let in until one of them has a machine, or leaves. A server answers
 * with 503 and `Retry-After`.
 *
 * @category reasons
 * @since 0.1.0
 */
export class PoolFull extends Data.TaggedError("PoolFull")<{
  readonly pool: string
  readonly max: number
  readonly maxWaiting: number
}> {
  override get message(): string {
    return `Pool "${this.pool}" has no machine ready, and as many wait for one as may (maxWaiting is ${this.maxWaiting}): ` +
      `try again later, or give it a max above ${this.max}`
  }
}

/**
 * Machines that a pool had started for a taker were not fit for use, one after the other.
 *
 * @category reasons
 * @since 0.1.0
 */
export class MachinesUnfit extends Data.TaggedError("MachinesUnfit")<{ readonly tried: number }> {
  override get message(): string {
    return `${this.tried} machines in a row had ended or were unhealthy as soon as they were ready: ` +
      "look at their consoles, and at the pool's check"
  }
}

/**
 * The backend cannot run here.
 *
 * @category reasons
 * @since 0.1.0
 */
export class BackendUnavailable extends Data.TaggedError("BackendUnavailable")<{
  readonly backend: string
  readonly why: string
  readonly remedy: string
}> {
  override get message(): string {
    return `The ${this.backend} backend cannot be used, ${Printable.lines(this.why)}: ${this.remedy}`
  }
}

const tails = (self: { readonly stderrTail: string; readonly consoleTail: string }): string =>
  [["stderr", self.stderrTail], ["console", self.consoleTail]].map(([name, text = ""]) =>
    text.trim() === "" ? "" : `\n${name}: ${Printable.lines(text).trimEnd()}`
  ).join("")

/**
 * The machine could not be brought up. `stage` is the step that failed, in the backend's words; `status` is there when
 * the monitor's process had ended, and `shortage` when its host says that this is what it ended of.
 *
 * @category reasons
 * @since 0.1.0
 */
export class LaunchFailed extends Data.TaggedError("LaunchFailed")<{
  readonly id: string
  readonly stage: string
  readonly status?: ExitStatus.ExitStatus
  readonly stderrTail: string
  readonly consoleTail: string
  readonly shortage?: MachineEnd.Shortage
  readonly cause?: unknown
}> {
  override get message(): string {
    const shortage = this.shortage === undefined ? "" : `, ${MachineEnd.formatShortage(this.shortage)}`
    const status = this.status === undefined ? "" : `; the monitor ${ExitStatus.format(this.status)}${shortage}`
    const cause = this.cause === undefined ? "" : `: ${why(this.cause)}`
    return `Machine "${this.id}" could not be launched, ${this.stage} failed${cause}${status}${tails(this)}`
  }
}

/**
 * The machine has ended under what was done with it, as a command in its guest. `end` says how, and so whose fault it is: a guest that
 * powers off or panics does so by itself, a monitor does not fail by itself. See `WarmMachine.whileAlive`.
 *
 * @category reasons
 * @since 0.1.0
 */
export class MachineEnded extends Data.TaggedError("MachineEnded")<{
  readonly id: string
  readonly end: MachineEnd.MachineEnd
  readonly cause?: unknown
}> {
  override get message(): string {
    const said = MachineEnd.isByGuest(this.end) ? "" : tails(this.end)
    return `Machine "${this.id}" has ended: ${MachineEnd.format(this.end)}${said}`
  }
}

/**
 * An operation that is allowed did not work.
 *
 * @category reasons
 * @since 0.1.0
 */
export class OperationFailed extends Data.TaggedError("OperationFailed")<{
  readonly id: string
  readonly operation: string
  readonly cause: unknown
}> {
  override get message(): string {
    return `Machine "${this.id}": ${this.operation} failed: ${why(this.cause)}`
  }
}

/**
 * The machine has no channel of this name.
 *
 * @category reasons
 * @since 0.1.0
 */
export class ChannelUnavailable extends Data.TaggedError("ChannelUnavailable")<{
  readonly id: string
  readonly channel: string
  readonly known: ReadonlyArray<string>
}> {
  override get message(): string {
    const known = this.known.length === 0 ? "it has none" : `it has ${this.known.join(", ")}`
    return `Machine "${this.id}" has no channel "${this.channel}": ${known}; name it in the spec's channels`
  }
}

/**
 * There is no kept machine that could be attached to. `isHeld` is true when it is there, and somebody else has hold of it.
 *
 * @category reasons
 * @since 0.1.0
 */
export class AttachFailed extends Data.TaggedError("AttachFailed")<{
  readonly id: string
  readonly isHeld: boolean
  readonly why: string
  readonly cause?: unknown
}> {
  override get message(): string {
    return `Machine "${this.id}" cannot be attached to: ${Printable.lines(this.why)}`
  }
}

/**
 * @category models
 * @since 0.1.0
 */
export type Reason =
  | MachineAlreadyExists
  | MachineNotFound
  | InvalidTransition
  | SnapshotAlreadyExists
  | SnapshotNotFound
  | SnapshotUnusable
  | SnapshotInUse
  | DifferenceUnknown
  | StoreFailed
  | Unsupported
  | InvalidSpec
  | InvalidPool
  | PoolClosed
  | PoolFull
  | MachinesUnfit
  | BackendUnavailable
  | LaunchFailed
  | MachineEnded
  | AttachFailed
  | OperationFailed
  | ChannelUnavailable

/**
 * The one error of this folder. Use `Effect.catchReason` to handle one `reason`.
 *
 * @category errors
 * @since 0.1.0
 */
export class MicroVmError extends Data.TaggedError("MicroVmError")<{
  readonly reason: Reason
  readonly cause?: unknown
}> {
  override get message(): string {
    return this.reason.message
  }
}

/**
 * Wraps a reason; its cause becomes the cause of the error.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (reason: Reason): MicroVmError =>
  new MicroVmError(reason.cause === undefined ? { reason } : { reason, cause: reason.cause })

/**
 * Fails with a reason.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fail = (reason: Reason): Effect.Effect<never, MicroVmError> => Effect.suspend(() => make(reason))
