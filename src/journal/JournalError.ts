/**
 * What can go wrong with the journal: one error whose `reason` says what.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as ProcessIdentity from "../process/ProcessIdentity.ts"

/**
 * Another supervisor has the state directory. `holder` is absent when it could not be told who.
 *
 * @category reasons
 * @since 0.1.0
 */
export class LeaseHeld extends Data.TaggedError("LeaseHeld")<{
  readonly directory: string
  readonly holder?: ProcessIdentity.ProcessIdentity
  /** ISO 8601, UTC. */
  readonly since?: string
}> {
  override get message(): string {
    const who = this.holder === undefined ? "another process" : `process ${ProcessIdentity.format(this.holder)}`
    const since = this.since === undefined ? "" : ` since ${this.since}`
    return `${who} has had the state directory ${this.directory}${since}: end it, or use another directory`
  }
}

/**
 * There is a record of this machine already.
 *
 * @category reasons
 * @since 0.1.0
 */
export class RecordExists extends Data.TaggedError("RecordExists")<{ readonly id: string }> {
  override get message(): string {
    return `there is a record of a machine ${this.id} already: choose another id, end that one and wait until it is ` +
      "released, or recover it if its supervisor is gone"
  }
}

/**
 * An id that no record can have.
 *
 * @category reasons
 * @since 0.1.0
 */
export class InvalidId extends Data.TaggedError("InvalidId")<{ readonly id: string }> {
  override get message(): string {
    return `id: ${JSON.stringify(this.id)} is none: give 1 to 64 letters, digits and "-", the first no "-"`
  }
}

/**
 * The state directory cannot be used: it is not ours alone, not writable, or not a directory.
 *
 * @category reasons
 * @since 0.1.0
 */
export class DirectoryUnusable extends Data.TaggedError("DirectoryUnusable")<{
  readonly directory: string
  readonly why: string
  readonly remedy: string
  readonly cause?: unknown
}> {
  override get message(): string {
    return `the state directory ${this.directory} cannot be used, ${this.why}: ${this.remedy}`
  }
}

/**
 * A record could not be written or removed. What was there before is there still.
 *
 * @category reasons
 * @since 0.1.0
 */
export class WriteFailed extends Data.TaggedError("WriteFailed")<{
  readonly id: string
  readonly isNoSpace: boolean
  readonly cause: unknown
}> {
  override get message(): string {
    const why = this.cause instanceof Error ? this.cause.message : String(this.cause)
    return `the record of machine ${this.id} could not be written: ${
      this.isNoSpace ? `the disk is full (${why})` : why
    }`
  }
}

/**
 * What was to be written down cannot be a record. Nothing was written.
 *
 * @category reasons
 * @since 0.1.0
 */
export class InvalidRecord extends Data.TaggedError("InvalidRecord")<{ readonly id: string; readonly why: string }> {
  override get message(): string {
    return `the record of machine ${this.id} cannot be: ${this.why}`
  }
}

/**
 * The record was removed, or the journal was let go, so that somebody else may have the directory by now. Nothing was written.
 *
 * @category reasons
 * @since 0.1.0
 */
export class RecordClosed extends Data.TaggedError("RecordClosed")<{ readonly id: string }> {
  override get message(): string {
    return `the record of machine ${this.id} is closed: open the journal, and a record of it, again`
  }
}

/**
 * @category models
 * @since 0.1.0
 */
export type Reason =
  | LeaseHeld
  | RecordExists
  | InvalidId
  | DirectoryUnusable
  | WriteFailed
  | InvalidRecord
  | RecordClosed

/**
 * The one error of this folder. Use `Effect.catchReason` to handle one `reason`.
 *
 * @category errors
 * @since 0.1.0
 */
export class JournalError extends Data.TaggedError("JournalError")<{
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
export const make = (reason: Reason): JournalError =>
  new JournalError(reason.cause === undefined ? { reason } : { reason, cause: reason.cause })

/**
 * Fails with a reason.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fail = (reason: Reason): Effect.Effect<never, JournalError> => Effect.suspend(() => make(reason))
