/**
 * A client of the QEMU Machine Protocol over any byte channel.
 *
 * ```
 *   server ── greeting ──▶ client ── qmp_capabilities ──▶ commands and replies, matched by id; events in between
 * ```
 *
 * Nothing the server does makes it grow without bound, wait without end or lose the reason of the machine's end: lines
 * have a longest length, commands a deadline, subscribers a window, and the events that matter are kept as state.
 *
 * @since 0.1.0
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Ndjson from "effect/encoding/Ndjson"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as PubSub from "effect/PubSub"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import type * as Take from "effect/Take"
import { CommandRejected, Disconnected, NoReply, ProtocolViolation, QmpError, type QmpErrorReason } from "./QmpError.ts"
import * as QmpSchema from "./QmpSchema.ts"

/**
 * A connection that is past the negotiation.
 *
 * @category models
 * @since 0.1.0
 */
export interface Qmp {
  readonly greeting: QmpSchema.Greeting
  /**
   * Runs a command. Commands may overlap; each gets its own reply, in whatever order they come. `within` replaces the
   * client's deadline.
   */
  readonly execute: <A>(
    command: QmpSchema.Command<A>,
    options?: { readonly within?: Duration.Input | undefined }
  ) => Effect.Effect<A, QmpError>
  /**
   * The events from now on; ends with the connection. A subscriber that does not keep up loses the oldest ones, so take
   * what must not be missed from `last`.
   */
  readonly events: Stream.Stream<QmpSchema.Event>
  /** The last event of a kept name. Also there when the connection has ended. */
  readonly last: (event: string) => Effect.Effect<Option.Option<QmpSchema.Event>>
  /** Waits for the end of the connection, and says why. */
  readonly disconnected: Effect.Effect<QmpError>
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** The longest wait for the greeting, and for the reply of a command. Default 10 seconds. */
  readonly within?: Duration.Input | undefined
  /** A longer line ends the connection. Default 1 MiB. */
  readonly maxLineBytes?: number | undefined
  /** How many events a subscriber may be behind. Default 64. */
  readonly window?: number | undefined
  /** Names of the events whose last one is kept. Default `SHUTDOWN` and `GUEST_PANICKED`. */
  readonly keep?: ReadonlyArray<string> | undefined
}

const fail = (reason: QmpErrorReason): Effect.Effect<never, QmpError> => Effect.fail(new QmpError({ reason }))

const fromSocketError = (error: Socket.SocketError): QmpError => {
  const { reason } = error
  return new QmpError({
    reason: reason._tag === "SocketCloseError" && reason.code === 1000
      ? new Disconnected({ why: "closed by QEMU" })
      : new Disconnected({ why: reason.message, cause: error })
  })
}

const fromNdjsonError = (error: Ndjson.NdjsonError, maxLineBytes: number): QmpError =>
  new QmpError({
    reason: new ProtocolViolation({
      detail: error.reason === "LineTooLarge"
        ? `a line longer than ${maxLineBytes} bytes`
        : error.reason === "InvalidUtf8"
        ? "a line that is not UTF-8"
        : "a line that is not JSON",
      cause: error
    })
  })

const decodeGreeting = Schema.decodeUnknownEffect(QmpSchema.Greeting)
const decodeMessage = Schema.decodeUnknownEffect(QmpSchema.ServerMessage)

/**
 * Connects: waits for the greeting and ends the negotiation. Closing the scope closes the connection, and fails whatever
 * still waits for a reply.
 *
 * ```ts import.meta.vitest
 * import { Qmp, QmpSchema } from "effect-microvm-runtime/qemu"
 * import { FakeQmp } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const server = yield* FakeQmp.make()
 *   const qmp = yield* Qmp.make(server.socket)
 *   yield* qmp.execute(QmpSchema.cont)
 *   return (yield* qmp.execute(QmpSchema.queryStatus)).status
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => "running"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fn("Qmp.make")(function*(
  socket: Socket.Socket,
  options: Options = {}
): Effect.fn.Return<Qmp, QmpError, Scope.Scope> {
  const { keep = ["SHUTDOWN", "GUEST_PANICKED"], maxLineBytes = 1 << 20, window = 64 } = options
  const patience = Duration.fromInputUnsafe(options.within ?? "10 seconds")

  const kept = new Map<string, QmpSchema.Event>()
  const events = yield* PubSub.sliding<Take.Take<QmpSchema.Event>>(window)
  const greeted = yield* Deferred.make<QmpSchema.Greeting, QmpError>()
  const pending = new Map<number, Deferred.Deferred<QmpSchema.Reply, QmpError>>()
  const disconnected = yield* Deferred.make<QmpError>()
  let over: QmpError | undefined
  let lastId = 0

  const end = (error: QmpError): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (over !== undefined) return Effect.void
      over = error
      const failed = Exit.fail(error)
      Deferred.doneUnsafe(greeted, failed)
      for (const reply of pending.values()) Deferred.doneUnsafe(reply, failed)
      pending.clear()
      Deferred.doneUnsafe(disconnected, Exit.succeed(error))
      return Effect.asVoid(PubSub.end(events, Exit.void))
    })

  const onMessage = (message: QmpSchema.ServerMessage): Effect.Effect<void> => {
    if ("event" in message) {
      if (keep.includes(message.event)) kept.set(message.event, message)
      return Effect.asVoid(PubSub.publish(events, [message]))
    }
    // A reply that nobody waits for belongs to a command that was given up.
    const reply = typeof message.id === "number" ? pending.get(message.id) : undefined
    return reply === undefined ? Effect.void : Effect.asVoid(Deferred.succeed(reply, message))
  }

  const onLine = (line: unknown): Effect.Effect<void, QmpError> => {
    const known = Deferred.isDoneUnsafe(greeted)
      ? Effect.flatMap(decodeMessage(line), onMessage)
      : Effect.map(decodeGreeting(line), (greeting) => Deferred.doneUnsafe(greeted, Exit.succeed(greeting)))
    return Effect.catchTag(
      known,
      "SchemaError",
      (cause) => fail(new ProtocolViolation({ detail: "a line that is neither greeting, event nor reply", cause }))
    )
  }

  const pull = yield* Effect.mapError(Socket.readerBytes(socket), fromSocketError)
  const writer = yield* socket.writer
  yield* Stream.fromPull(Effect.succeed(Effect.mapError(pull, fromSocketError))).pipe(
    Stream.pipeThroughChannel(Ndjson.decode<QmpError>({ maxLineBytes, ignoreEmptyLines: true })),
    Stream.mapError((error) => error._tag === "NdjsonError" ? fromNdjsonError(error, maxLineBytes) : error),
    Stream.runForEach(onLine),
    Effect.catch(end),
    Effect.ensuring(end(new QmpError({ reason: new Disconnected({ why: "closed by us" }) }))),
    Effect.forkScoped({ startImmediately: true })
  )

  const bounded = (command: string, within: Duration.Duration) =>
    Effect.timeoutOrElse({ duration: within, orElse: () => fail(new NoReply({ command, within })) })

  const execute: Qmp["execute"] = Effect.fn("Qmp.execute")(function*(command, { within } = {}) {
    if (over !== undefined) return yield* over
    const id = ++lastId
    const reply = Deferred.makeUnsafe<QmpSchema.Reply, QmpError>()
    pending.set(id, reply)
    const deadline = within === undefined ? patience : Duration.fromInputUnsafe(within)
    const answer = yield* writer.write(
      `${JSON.stringify({ execute: command.execute, arguments: command.arguments, id })}\n`
    ).pipe(
      Effect.mapError(fromSocketError),
      Effect.andThen(Deferred.await(reply)),
      bounded(command.execute, deadline),
      Effect.ensuring(Effect.sync(() => pending.delete(id)))
    )
    if ("error" in answer) return yield* fail(new CommandRejected({ command: command.execute, ...answer.error }))
    return yield* Effect.catchTag(
      Schema.decodeUnknownEffect(command.returns)(answer.return),
      "SchemaError",
      (cause) => fail(new ProtocolViolation({ detail: `a reply to ${command.execute} of another shape`, cause }))
    )
  })

  const greeting = yield* Deferred.await(greeted).pipe(bounded("greeting", patience))
  yield* execute(QmpSchema.qmpCapabilities)
  return {
    greeting,
    execute,
    events: Stream.fromPubSubTake(events),
    last: (event) => Effect.sync(() => Option.fromUndefinedOr(kept.get(event))),
    disconnected: Deferred.await(disconnected)
  }
})
