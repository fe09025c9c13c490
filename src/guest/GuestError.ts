/**
 * What can go wrong between us and a guest: one error whose `reason` says what.
 *
 * ```ts import.meta.vitest
 * import { GuestError } from "effect-microvm-runtime/guest"
 * import * as Effect from "effect/Effect"
 * const program = Effect.fail(GuestError.make(new GuestError.NoFreeSlot({ inUse: 1, retired: 0 }))).pipe(
 *   Effect.catchReason("GuestError", "NoFreeSlot", ({ inUse }) => Effect.succeed(`${inUse} in use`))
 * )
 * Effect.runSync(program) // => "1 in use"
 * ```
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Socket from "effect/socket/Socket"
import * as Printable from "../lifecycle/Printable.ts"

/**
 * The agent did not answer in time. It may still do what it was asked; the next request first finds its place in the
 * stream again.
 *
 * @category reasons
 * @since 0.1.0
 */
export class Timeout extends Data.TaggedError("Timeout")<{
  readonly operation: string
  readonly within: Duration.Duration
}> {
  override get message(): string {
    return `The guest agent did not answer ${this.operation} within ${Duration.format(this.within)}`
  }
}

/**
 * The agent was never heard of: the guest is still booting, has no agent, or is paused.
 *
 * @category reasons
 * @since 0.1.0
 */
export class NotReady extends Data.TaggedError("NotReady")<{
  readonly within: Duration.Duration
  /** How many times it was greeted. */
  readonly attempts: number
}> {
  override get message(): string {
    const times = this.attempts === 1 ? "once" : `${this.attempts} times`
    return `No guest agent answered within ${Duration.format(this.within)} (greeted ${times}): ` +
      "give the guest more time to boot, or see its console"
  }
}

/**
 * A byte channel ended, as it does when the machine ends.
 *
 * @category reasons
 * @since 0.1.0
 */
export class Closed extends Data.TaggedError("Closed")<{
  /** `"agent"`, or the name of a port. */
  readonly channel: string
  readonly cause?: unknown
}> {
  override get message(): string {
    const { cause } = this
    const socket = Socket.isSocketError(cause) ? cause.reason : undefined
    // A socket's own words are a number, or that a write failed; the system's are below them.
    const below: unknown = socket === undefined ? cause : "cause" in socket ? socket.cause : undefined
    const why = below instanceof Error ? ` (${Printable.onOneLine(below.message)})` : ""
    const hint = socket !== undefined || cause === undefined ? ", as when its machine has ended" : ""
    return `The channel "${this.channel}" to the guest is closed${why}${hint}`
  }
}

/**
 * Too many requests wait for their turn already.
 *
 * @category reasons
 * @since 0.1.0
 */
export class Busy extends Data.TaggedError("Busy")<{
  readonly operation: string
  readonly waiting: number
}> {
  override get message(): string {
    return `${this.operation} was not sent, ${this.waiting} requests already wait for the guest agent: try again later`
  }
}

/**
 * What came is not what the protocol says. The next request first finds its place in the stream again.
 *
 * @category reasons
 * @since 0.1.0
 */
export class Protocol extends Data.TaggedError("Protocol")<{
  readonly operation: string
  readonly problem: string
  /** The start of what came. */
  readonly received?: string
  readonly cause?: unknown
}> {
  override get message(): string {
    const received = this.received === undefined ? "" : `: ${Printable.json(this.received)}`
    return `The guest agent answered ${this.operation} with ${Printable.onOneLine(this.problem)}${received}`
  }
}

/**
 * The agent said no. `class` and `desc` are its words.
 *
 * @category reasons
 * @since 0.1.0
 */
export class AgentError extends Data.TaggedError("AgentError")<{
  readonly command: string
  readonly class: string
  readonly desc: string
}> {
  override get message(): string {
    return `The guest agent refused ${this.command}: ${Printable.lines(`${this.desc} (${this.class})`)}`
  }
}

/**
 * The agent does not have this command of its protocol, or has it switched off, as in a frozen state. It is not about a
 * program that is missing in the guest.
 *
 * @category reasons
 * @since 0.1.0
 */
export class CommandNotFound extends Data.TaggedError("CommandNotFound")<{
  readonly command: string
  readonly desc: string
}> {
  override get message(): string {
    return `The guest agent does not offer ${this.command}: ${Printable.lines(this.desc)}`
  }
}

/**
 * The agent knows no such process. It forgets a process once its end was told.
 *
 * @category reasons
 * @since 0.1.0
 */
export class UnknownProcess extends Data.TaggedError("UnknownProcess")<{ readonly pid: number }> {
  override get message(): string {
    return `The guest agent knows no process ${this.pid}: its end was told before, or whoever started it there is gone`
  }
}

/**
 * The program that connects a command to its ports could not do so. `code` is 125, or 126 when the working directory was
 * the fault; `text` is what it said.
 *
 * @category reasons
 * @since 0.1.0
 */
export class NotStarted extends Data.TaggedError("NotStarted")<{
  readonly code: number
  readonly text: string
}> {
  override get message(): string {
    return `The command was not started in the guest: ${Printable.lines(this.text)}`
  }
}

/**
 * All port triples run a command, or are retired since what ran there did not end cleanly.
 *
 * @category reasons
 * @since 0.1.0
 */
export class NoFreeSlot extends Data.TaggedError("NoFreeSlot")<{
  readonly inUse: number
  readonly retired: number
}> {
  override get message(): string {
    return `No slot is free for another command, ${this.inUse} in use and ${this.retired} retired: ` +
      "wait for a command to end, or give the machine more slots"
  }
}

/**
 * What the caller wants is not possible: one sentence for each fault, with the field, the value and the remedy.
 *
 * @category reasons
 * @since 0.1.0
 */
export class InvalidArgument extends Data.TaggedError("InvalidArgument")<{ readonly faults: ReadonlyArray<string> }> {
  override get message(): string {
    return `Invalid guest command: ${this.faults.join("; ")}`
  }
}

/**
 * A machine that was restored from a snapshot is not proven to be like no other: one sentence for each thing that is not
 * its own, or was not seen to be.
 *
 * @category reasons
 * @since 0.1.0
 */
export class NotRenewed extends Data.TaggedError("NotRenewed")<{
  readonly unproven: ReadonlyArray<string>
  /** Was it a matter of time, so that another machine of the same snapshot may well be renewed? */
  readonly isTransient: boolean
}> {
  override get message(): string {
    return `The restored guest was not made its own, so destroy the machine: ${
      Printable.lines(this.unproven.join("; "))
    }`
  }
}

/**
 * @category models
 * @since 0.1.0
 */
export type Reason =
  | Timeout
  | NotReady
  | Closed
  | Busy
  | Protocol
  | AgentError
  | CommandNotFound
  | UnknownProcess
  | NotStarted
  | NoFreeSlot
  | InvalidArgument
  | NotRenewed

/**
 * The one error of this folder. Use `Effect.catchReason` to handle one `reason`.
 *
 * @category errors
 * @since 0.1.0
 */
export class GuestError extends Data.TaggedError("GuestError")<{
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
export const make = (reason: Reason): GuestError =>
  new GuestError(reason.cause === undefined ? { reason } : { reason, cause: reason.cause })
