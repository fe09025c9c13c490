/**
 * What can go wrong between us and a QMP server.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Printable from "../lifecycle/Printable.ts"

/**
 * The server said no. `class` and `desc` are its words.
 *
 * @category errors
 * @since 0.1.0
 */
export class CommandRejected extends Data.TaggedError("CommandRejected")<{
  readonly command: string
  readonly class: string
  readonly desc: string
}> {
  override get message(): string {
    return `QEMU rejected ${this.command}: ${Printable.lines(`${this.desc} (${this.class})`)}`
  }
}

/**
 * No answer in time. The command may still be done later; its answer is then ignored.
 *
 * @category errors
 * @since 0.1.0
 */
export class NoReply extends Data.TaggedError("NoReply")<{
  /** `"greeting"` when the server has not even said hello. */
  readonly command: string
  readonly within: Duration.Duration
}> {
  override get message(): string {
    return `QEMU did not answer ${this.command} within ${Duration.format(this.within)}`
  }
}

/**
 * The connection ended, by either side.
 *
 * @category errors
 * @since 0.1.0
 */
export class Disconnected extends Data.TaggedError("Disconnected")<{
  readonly why: string
  readonly cause?: unknown
}> {
  override get message(): string {
    return `QMP connection ended: ${Printable.lines(this.why)}`
  }
}

/**
 * What came is not QMP. The connection is given up: nothing that follows can be trusted to start at the start of a line.
 *
 * @category errors
 * @since 0.1.0
 */
export class ProtocolViolation extends Data.TaggedError("ProtocolViolation")<{
  readonly detail: string
  readonly cause?: unknown
}> {
  override get message(): string {
    return `not QMP: ${Printable.lines(this.detail)}`
  }
}

/**
 * The machine was not sent, or not loaded. Of a machine that was to be sent nothing is lost.
 *
 * @category errors
 * @since 0.1.0
 */
export class MigrationFailed extends Data.TaggedError("MigrationFailed")<{
  readonly direction: "out" | "in"
  /** In QEMU's words, when it has any. */
  readonly why: string
}> {
  override get message(): string {
    return `QEMU could not ${this.direction === "out" ? "write" : "load"} the machine's state: ${
      Printable.lines(this.why)
    }`
  }
}

/**
 * @category errors
 * @since 0.1.0
 */
export type QmpErrorReason = CommandRejected | NoReply | Disconnected | ProtocolViolation | MigrationFailed

/**
 * The one error of this folder; `reason` says which.
 *
 * @category errors
 * @since 0.1.0
 */
export class QmpError extends Data.TaggedError("QmpError")<{ readonly reason: QmpErrorReason }> {
  override get message(): string {
    return this.reason.message
  }
}
