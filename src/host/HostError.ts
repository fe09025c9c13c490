/**
 * What can go wrong with the resources of a host: one error whose `reason` says what.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Printable from "../lifecycle/Printable.ts"

/**
 * One thing that is wrong with what was asked for.
 *
 * @category models
 * @since 0.1.0
 */
export interface Fault {
  readonly field: string
  readonly value: unknown
  readonly remedy: string
}

/**
 * What was asked for cannot be. All of its faults are here, and nothing was done.
 *
 * @category reasons
 * @since 0.1.0
 */
export class InvalidArgument extends Data.TaggedError("InvalidArgument")<{ readonly faults: ReadonlyArray<Fault> }> {
  override get message(): string {
    return this.faults.map(({ field, remedy, value }) => `${field}: ${JSON.stringify(value)} cannot be: ${remedy}`)
      .join("\n")
  }
}

/**
 * A program of the host failed. `line` is the one of its input that it stumbled over, if it told.
 *
 * @category reasons
 * @since 0.1.0
 */
export class CommandFailed extends Data.TaggedError("CommandFailed")<{
  readonly program: string
  readonly what: string
  readonly status: string
  readonly stderr: string
  readonly line?: string
}> {
  override get message(): string {
    const line = this.line === undefined ? "" : ` at ${Printable.json(this.line)}`
    const said = this.stderr.trim() === "" ? "" : `: ${Printable.lines(this.stderr).trim()}`
    return `${this.what}: ${this.program} ${this.status}${line}${said}`
  }
}

/**
 * A program of the host did not come to an end, and was killed.
 *
 * @category reasons
 * @since 0.1.0
 */
export class CommandHung extends Data.TaggedError("CommandHung")<{
  readonly program: string
  readonly what: string
  readonly within: Duration.Duration
}> {
  override get message(): string {
    return `${this.what}: ${this.program} did not end within ${Duration.format(this.within)}`
  }
}

/**
 * Something that is needed is not on this host, or may not be used by us.
 *
 * @category reasons
 * @since 0.1.0
 */
export class Unavailable extends Data.TaggedError("Unavailable")<{
  readonly what: string
  readonly why: string
  readonly remedy: string
}> {
  override get message(): string {
    return `${this.what} cannot be had, ${this.why}: ${this.remedy}`
  }
}

/**
 * There is no more of it.
 *
 * @category reasons
 * @since 0.1.0
 */
export class Exhausted extends Data.TaggedError("Exhausted")<{
  readonly what: string
  readonly size: number
  readonly remedy: string
}> {
  override get message(): string {
    return `all ${this.size} ${this.what} are taken: ${this.remedy}`
  }
}

/**
 * What is to be made is there already, or gets in the way of what is there, and that is not ours.
 *
 * @category reasons
 * @since 0.1.0
 */
export class Conflict extends Data.TaggedError("Conflict")<{
  readonly what: string
  readonly with: string
  readonly remedy: string
}> {
  override get message(): string {
    return `${this.what} collides with ${this.with}: ${this.remedy}`
  }
}

/**
 * A file or a socket of the host could not be used.
 *
 * @category reasons
 * @since 0.1.0
 */
export class IoFailed extends Data.TaggedError("IoFailed")<{
  readonly operation: string
  readonly path: string
  readonly cause: unknown
}> {
  override get message(): string {
    const why = this.cause instanceof Error ? this.cause.message : String(this.cause)
    return `${this.path}: ${this.operation} failed: ${Printable.lines(why)}`
  }
}

/**
 * A file system is too full for what was to be written. What had been written of it is gone again. `wanted` and `free`, in
 * bytes, are absent when it was the file system that told.
 *
 * @category reasons
 * @since 0.1.0
 */
export class NoSpace extends Data.TaggedError("NoSpace")<{
  readonly path: string
  readonly wanted?: number
  readonly free?: number
  readonly cause?: unknown
}> {
  override get message(): string {
    const told = this.wanted === undefined || this.free === undefined
      ? "no space is left"
      : `it takes ${this.wanted} bytes, and ${this.free} are free`
    return `${this.path}: ${told}: make room, or use another directory`
  }
}

/**
 * @category models
 * @since 0.1.0
 */
export type Reason =
  | InvalidArgument
  | CommandFailed
  | CommandHung
  | Unavailable
  | Exhausted
  | Conflict
  | IoFailed
  | NoSpace

/**
 * The one error of this folder. Use `Effect.catchReason` to handle one `reason`.
 *
 * @category errors
 * @since 0.1.0
 */
export class HostError extends Data.TaggedError("HostError")<{
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
export const make = (reason: Reason): HostError =>
  new HostError(reason.cause === undefined ? { reason } : { reason, cause: reason.cause })

/**
 * Fails with a reason.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fail = (reason: Reason): Effect.Effect<never, HostError> => Effect.suspend(() => make(reason))
