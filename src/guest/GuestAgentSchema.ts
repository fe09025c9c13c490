/**
 * The part of QEMU's guest agent protocol (QGA) that is used here. Names are those of the wire, unchanged.
 *
 * Source: "QEMU Guest Agent Protocol Reference" and qga/ of QEMU.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * Most bytes that the agent keeps of each stream of a command (`GUEST_EXEC_MAX_OUTPUT` in qga/commands.c).
 *
 * @category constants
 * @since 0.1.0
 */
export const maxCapturedBytes = 16 * 1024 * 1024

const maxReplyBytes = 1024 * 1024

/**
 * A command of the protocol: what it takes and what it gives.
 *
 * @category models
 * @since 0.1.0
 */
export interface Command<in out A, out R> {
  readonly execute: string
  readonly arguments: Schema.Codec<A, unknown>
  readonly returns: Schema.Codec<R, unknown>
  /** A longer reply is skipped, so that an agent cannot fill our memory. */
  readonly maxReplyBytes: number
}

const command = <A, R>(
  execute: string,
  options: {
    readonly arguments: Schema.Codec<A, unknown>
    readonly returns: Schema.Codec<R, unknown>
    readonly maxReplyBytes?: number
  }
): Command<A, R> => ({ execute, maxReplyBytes, ...options })

const Nothing = Schema.Struct({})

/**
 * What we send. `id` comes back with the reply.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Request = Schema.Struct({
  execute: Schema.String,
  arguments: Schema.optionalKey(Schema.Unknown),
  id: Schema.optionalKey(Schema.Unknown)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Request = typeof Request.Type

/**
 * A command was done.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Return = Schema.Struct({ return: Schema.Unknown, id: Schema.optionalKey(Schema.Unknown) })

/**
 * A command was not done. `id` is missing when the agent could not even read the command.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Failure = Schema.Struct({
  error: Schema.Struct({ class: Schema.String, desc: Schema.String }),
  id: Schema.optionalKey(Schema.Unknown)
})

/**
 * A line of the agent.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Reply = Schema.Union([Return, Failure])

/**
 * @category models
 * @since 0.1.0
 */
export type Reply = typeof Reply.Type

/**
 * Asks for `id` back, with one byte 0xFF before the reply. Sent after a byte 0xFF, which makes the agent drop what it has of
 * a request; the agent then also complains about that byte, before it answers.
 *
 * @category commands
 * @since 0.1.0
 */
export const guestSyncDelimited = command("guest-sync-delimited", {
  arguments: Schema.Struct({ id: Schema.Int }),
  returns: Schema.Int
})

/**
 * @category commands
 * @since 0.1.0
 */
export const guestPing = command("guest-ping", { arguments: Nothing, returns: Nothing })

/**
 * @category commands
 * @since 0.1.0
 */
export const guestInfo = command("guest-info", {
  arguments: Nothing,
  returns: Schema.Struct({
    version: Schema.String,
    supported_commands: Schema.Array(Schema.Struct({ name: Schema.String, enabled: Schema.Boolean }))
  })
})

/**
 * Starts a program, without a shell. `env` replaces the whole environment.
 *
 * @category commands
 * @since 0.1.0
 */
export const guestExec = command("guest-exec", {
  arguments: Schema.Struct({
    path: Schema.String,
    arg: Schema.optionalKey(Schema.Array(Schema.String)),
    env: Schema.optionalKey(Schema.Array(Schema.String)),
    "input-data": Schema.optionalKey(Schema.String),
    "capture-output": Schema.optionalKey(Schema.Boolean)
  }),
  returns: Schema.Struct({ pid: Schema.Int })
})

/**
 * How a process of `guest-exec` is doing. The agent tells an end once and then forgets the process.
 *
 * @category commands
 * @since 0.1.0
 */
export const guestExecStatus = command("guest-exec-status", {
  arguments: Schema.Struct({ pid: Schema.Int }),
  returns: Schema.Struct({
    exited: Schema.Boolean,
    exitcode: Schema.optionalKey(Schema.Int),
    signal: Schema.optionalKey(Schema.Int),
    "out-data": Schema.optionalKey(Schema.String),
    "err-data": Schema.optionalKey(Schema.String),
    "out-truncated": Schema.optionalKey(Schema.Boolean),
    "err-truncated": Schema.optionalKey(Schema.Boolean)
  }),
  // Both streams in base64, and the rest.
  maxReplyBytes: 2 * Math.ceil(maxCapturedBytes / 3) * 4 + 64 * 1024
})

/**
 * `mode` is that of fopen(3).
 *
 * @category commands
 * @since 0.1.0
 */
export const guestFileOpen = command("guest-file-open", {
  arguments: Schema.Struct({ path: Schema.String, mode: Schema.String }),
  returns: Schema.Int
})

/**
 * @category commands
 * @since 0.1.0
 */
export const guestFileClose = command("guest-file-close", {
  arguments: Schema.Struct({ handle: Schema.Int }),
  returns: Nothing
})

/**
 * @category commands
 * @since 0.1.0
 */
export const guestFileRead = command("guest-file-read", {
  arguments: Schema.Struct({ handle: Schema.Int, count: Schema.Int }),
  returns: Schema.Struct({ count: Schema.Int, "buf-b64": Schema.String, eof: Schema.Boolean })
})

/**
 * May write less than it was given.
 *
 * @category commands
 * @since 0.1.0
 */
export const guestFileWrite = command("guest-file-write", {
  arguments: Schema.Struct({ handle: Schema.Int, "buf-b64": Schema.String }),
  returns: Schema.Struct({ count: Schema.Int, eof: Schema.Boolean })
})

/**
 * The guest's time, in nanoseconds since 1970. A number of JavaScript holds it to a quarter of a microsecond.
 *
 * @category commands
 * @since 0.1.0
 */
export const guestGetTime = command("guest-get-time", { arguments: Nothing, returns: Schema.Finite })

/**
 * `time` is in nanoseconds since 1970.
 *
 * @category commands
 * @since 0.1.0
 */
export const guestSetTime = command("guest-set-time", {
  arguments: Schema.Struct({ time: Schema.Number }),
  returns: Nothing
})

/**
 * Has no reply when it works.
 *
 * @category commands
 * @since 0.1.0
 */
export const guestShutdown = command("guest-shutdown", {
  arguments: Schema.Struct({ mode: Schema.Literals(["powerdown", "halt", "reboot"]) }),
  returns: Nothing
})
