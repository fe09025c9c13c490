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
import * as Random from "effect/Random"
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
  readonly version: QmpSchema.Version
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
const isGreeting = Schema.is(QmpSchema.Greeting)
const decodeMessage = Schema.decodeUnknownEffect(QmpSchema.ServerMessage)

interface Connection extends Omit<Qmp, "version"> {
  readonly greeting: Effect.Effect<QmpSchema.Greeting, QmpError>
  readonly write: (bytes: Uint8Array) => Effect.Effect<void, QmpError>
}

const newline = 0x0a

const isJson = (bytes: Uint8Array): boolean => {
  try {
    return JSON.parse(new TextDecoder().decode(bytes)) !== undefined
  } catch {
    return false
  }
}

/** Without a first line that is only the end of one, or a greeting. */
const fromWholeLine = (
  stream: Stream.Stream<Uint8Array, QmpError>,
  maxLineBytes: number
): Stream.Stream<Uint8Array, QmpError> => {
  let head: Uint8Array | undefined = new Uint8Array(0)
  return Stream.mapEffect(stream, (bytes) =>
    Effect.suspend(() => {
      if (head === undefined) return Effect.succeed(bytes)
      const all: Uint8Array = new Uint8Array(head.length + bytes.length)
      all.set(head)
      all.set(bytes, head.length)
      const end = all.indexOf(newline)
      if (end < 0) {
        head = all
        return all.length > maxLineBytes
          ? fail(new ProtocolViolation({ detail: `a line longer than ${maxLineBytes} bytes` }))
          : Effect.succeed(new Uint8Array(0))
      }
      head = undefined
      return Effect.succeed(isJson(all.subarray(0, end)) ? all : all.subarray(end + 1))
    }))
}

/** A connection at which nothing has been said yet. With `greets`, its first line is a greeting. */
const connect = Effect.fnUntraced(function*(
  socket: Socket.Socket,
  { greets, options }: { readonly greets: boolean; readonly options: Options }
): Effect.fn.Return<Connection, QmpError, Scope.Scope> {
  const { keep = ["SHUTDOWN", "GUEST_PANICKED"], maxLineBytes = 1 << 20, window = 64 } = options
  const patience = Duration.fromInputUnsafe(options.within ?? "10 seconds")

  const kept = new Map<string, QmpSchema.Event>()
  const events = yield* PubSub.sliding<Take.Take<QmpSchema.Event>>(window)
  const greeted = yield* Deferred.make<QmpSchema.Greeting, QmpError>()
  const pending = new Map<number, Deferred.Deferred<QmpSchema.Reply, QmpError>>()
  const disconnected = yield* Deferred.make<QmpError>()
  let over: QmpError | undefined
  // Unguessable where answers to others may still be on their way.
  let lastId = greets ? 0 : yield* Random.nextIntBetween(2 ** 32, 2 ** 48)

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
    // Who does not wait for a greeting may come across one that was for somebody else.
    if (!greets && isGreeting(line)) return Effect.void
    const known = !greets || Deferred.isDoneUnsafe(greeted)
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
  const incoming = Stream.fromPull(Effect.succeed(Effect.mapError(pull, fromSocketError)))
  yield* (greets ? incoming : fromWholeLine(incoming, maxLineBytes)).pipe(
    Stream.pipeThroughChannel(Ndjson.decode<QmpError>({ maxLineBytes, ignoreEmptyLines: true })),
    Stream.mapError((error) => error._tag === "NdjsonError" ? fromNdjsonError(error, maxLineBytes) : error),
    Stream.runForEach(onLine),
    Effect.catch(end),
    Effect.ensuring(end(new QmpError({ reason: new Disconnected({ why: "closed by us" }) }))),
    Effect.forkScoped({ startImmediately: true })
  )

  const bounded = (command: string, within: Duration.Duration) =>
    Effect.timeoutOrElse({ duration: within, orElse: () => fail(new NoReply({ command, within })) })

  const execute: Connection["execute"] = Effect.fn("Qmp.execute")(function*(command, { within } = {}) {
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

  return {
    greeting: Deferred.await(greeted).pipe(bounded("greeting", patience)),
    write: (bytes) => Effect.mapError(writer.write(bytes), fromSocketError),
    execute,
    events: Stream.fromPubSubTake(events),
    last: (event) => Effect.sync(() => Option.fromUndefinedOr(kept.get(event))),
    disconnected: Deferred.await(disconnected)
  }
})

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
  const connection = yield* connect(socket, { greets: true, options })
  const { QMP } = yield* connection.greeting
  yield* connection.execute(QmpSchema.qmpCapabilities)
  return { ...connection, version: QMP.version.qemu }
})

/**
 * Goes on where somebody else has stopped, maybe in the middle of a command: of what the server has sent meanwhile, half
 * a line and the answers to others are passed over, and events are taken.
 *
 * ```ts import.meta.vitest
 * import { Qmp } from "effect-microvm-runtime/qemu"
 * import { FakeQmp } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const server = yield* FakeQmp.make({ greeting: "long ago" })
 *   yield* server.send(`rn": {}, "id": 7}\n`)
 *   yield* server.emit("GUEST_PANICKED")
 *   const qmp = yield* Qmp.resume(server.socket)
 *   return (yield* qmp.last("GUEST_PANICKED"))._tag
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => "Some"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const resume = Effect.fn("Qmp.resume")(function*(
  socket: Socket.Socket,
  options: Options = {}
): Effect.fn.Return<Qmp, QmpError, Scope.Scope> {
  const connection = yield* connect(socket, { greets: false, options })
  // 0xFF is in no JSON, and the server's reader starts anew after it (json-lexer.c).
  yield* connection.write(Uint8Array.of(0xff, newline))
  yield* Effect.catchReason(
    Effect.asVoid(connection.execute(QmpSchema.qmpCapabilities)),
    "QmpError",
    "CommandRejected",
    // It has been negotiated, unless the other one did not even come to that.
    (reason, error) => reason.class === "CommandNotFound" ? Effect.void : Effect.fail(error)
  )
  const { qemu } = yield* connection.execute(QmpSchema.queryVersion)
  return { ...connection, version: qemu }
})

/**
 * What a server has said that is not there any more: its last events, once `disconnected` is done.
 *
 * @category constructors
 * @since 0.1.0
 */
export const overhear = (
  socket: Socket.Socket,
  options: Options = {}
): Effect.Effect<Omit<Qmp, "version">, QmpError, Scope.Scope> => connect(socket, { greets: false, options })
