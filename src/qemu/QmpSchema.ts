/**
 * The part of the QEMU Machine Protocol that is used here. Names are those of the wire, unchanged; fields that are not
 * listed are ignored, and events that are not listed stay as they came.
 *
 * Source: "QEMU QMP Reference Manual" and docs/interop/qmp-spec of QEMU.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * @category schemas
 * @since 0.1.0
 */
export const Version = Schema.Struct({ major: Schema.Int, minor: Schema.Int, micro: Schema.Int })

/**
 * @category models
 * @since 0.1.0
 */
export type Version = typeof Version.Type

/**
 * The first line of a server.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Greeting = Schema.Struct({
  QMP: Schema.Struct({
    version: Schema.Struct({
      qemu: Version,
      package: Schema.String
    }),
    capabilities: Schema.Array(Schema.String)
  })
})

/**
 * @category models
 * @since 0.1.0
 */
export type Greeting = typeof Greeting.Type

/**
 * Something that happened, told by the server unasked.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Event = Schema.Struct({
  event: Schema.String,
  data: Schema.optionalKey(Schema.Record(Schema.String, Schema.Unknown)),
  timestamp: Schema.Struct({ seconds: Schema.Int, microseconds: Schema.Int })
})

/**
 * @category models
 * @since 0.1.0
 */
export type Event = typeof Event.Type

/**
 * A command was done. A server repeats the `id` of the command.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Return = Schema.Struct({ return: Schema.Unknown, id: Schema.optionalKey(Schema.Unknown) })

/**
 * A command was not done. `id` is missing when the server could not even read the command.
 *
 * @category schemas
 * @since 0.1.0
 */
export const ErrorReply = Schema.Struct({
  error: Schema.Struct({ class: Schema.String, desc: Schema.String }),
  id: Schema.optionalKey(Schema.Unknown)
})

/**
 * The answer to a command.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Reply = Schema.Union([ErrorReply, Return])

/**
 * @category models
 * @since 0.1.0
 */
export type Reply = typeof Reply.Type

/**
 * Any line of a server after its greeting.
 *
 * @category schemas
 * @since 0.1.0
 */
export const ServerMessage = Schema.Union([Event, Reply])

/**
 * @category models
 * @since 0.1.0
 */
export type ServerMessage = typeof ServerMessage.Type

/**
 * A line of a client.
 *
 * @category schemas
 * @since 0.1.0
 */
export const ClientMessage = Schema.Struct({
  execute: Schema.String,
  arguments: Schema.optionalKey(Schema.Record(Schema.String, Schema.Unknown)),
  id: Schema.optionalKey(Schema.Unknown)
})

/**
 * The machine is about to end, or is stopped with `-no-shutdown`. `reason` is what QEMU's exit code does not tell:
 * `guest-shutdown`, `guest-reset`, `guest-panic`, `host-signal`, `host-qmp-quit`, …
 *
 * @category schemas
 * @since 0.1.0
 */
export const Shutdown = Schema.Struct({
  event: Schema.Literal("SHUTDOWN"),
  data: Schema.Struct({ guest: Schema.Boolean, reason: Schema.String })
})

/**
 * Is this event a `SHUTDOWN`?
 *
 * @category guards
 * @since 0.1.0
 */
export const isShutdown = Schema.is(Shutdown)

/**
 * A command with the shape of its answer.
 *
 * @category models
 * @since 0.1.0
 */
export interface Command<out A> {
  readonly execute: string
  readonly arguments?: Readonly<Record<string, unknown>>
  readonly returns: Schema.Decoder<A>
}

const command = <A>(
  execute: string,
  returns: Schema.Decoder<A>,
  args?: Readonly<Record<string, unknown>>
): Command<A> => args === undefined ? { execute, returns } : { execute, returns, arguments: args }

const Nothing = Schema.Struct({})

/**
 * Ends the negotiation that the greeting starts. The client does this by itself.
 *
 * @category commands
 * @since 0.1.0
 */
export const qmpCapabilities = command("qmp_capabilities", Nothing)

/**
 * Lets the CPUs of the guest run: from the start (`-S`), or after `stop`. Event `RESUME`.
 *
 * @category commands
 * @since 0.1.0
 */
export const cont = command("cont", Nothing)

/**
 * Stops the CPUs of the guest. Event `STOP`.
 *
 * @category commands
 * @since 0.1.0
 */
export const stop = command("stop", Nothing)

/**
 * Presses the power button. Event `POWERDOWN`, also when no guest listens.
 *
 * @category commands
 * @since 0.1.0
 */
export const systemPowerdown = command("system_powerdown", Nothing)

/**
 * What the machine does now. `status` is `prelaunch` before the first `cont`; for the others see `RunState`.
 *
 * @category commands
 * @since 0.1.0
 */
export const queryStatus = command("query-status", Schema.Struct({ status: Schema.String, running: Schema.Boolean }))

/**
 * The version that the greeting tells.
 *
 * @category commands
 * @since 0.1.0
 */
export const queryVersion = command("query-version", Schema.Struct({ qemu: Version }))

/**
 * Is guest memory that is a shared file left out of the stream? Both sides have to say the same.
 *
 * @category commands
 * @since 0.1.0
 */
export const ignoreSharedMemory = (state: boolean): Command<unknown> =>
  command("migrate-set-capabilities", Nothing, { capabilities: [{ capability: "x-ignore-shared", state }] })

/**
 * Takes off the brake of 128 MiB/s that is meant for networks.
 *
 * @category commands
 * @since 0.1.0
 */
export const unlimitBandwidth = command("migrate-set-parameters", Nothing, { "max-bandwidth": 2 ** 40 })

/**
 * Begins to send the machine, and answers at once; `queryMigrate` tells how it goes on.
 *
 * @category commands
 * @since 0.1.0
 */
export const migrate = (uri: string): Command<unknown> => command("migrate", Nothing, { uri })

/**
 * Gives up sending; the machine can go on. No error when nothing is sent.
 *
 * @category commands
 * @since 0.1.0
 */
export const migrateCancel = command("migrate_cancel", Nothing)

/**
 * Begins to load a machine, for a QEMU that was started with `-incoming defer`. A QEMU that cannot load it exits.
 *
 * @category commands
 * @since 0.1.0
 */
export const migrateIncoming = (uri: string): Command<unknown> => command("migrate-incoming", Nothing, { uri })

/**
 * How the sending goes: `completed`, `failed` and `cancelled` are its ends. There is no status before the first one.
 *
 * @category commands
 * @since 0.1.0
 */
export const queryMigrate = command(
  "query-migrate",
  Schema.Struct({ status: Schema.optionalKey(Schema.String), "error-desc": Schema.optionalKey(Schema.String) })
)
