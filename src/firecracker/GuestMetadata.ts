/**
 * A client of the guest-metadata protocol: gives a guest its environment and its secrets, over vsock.
 *
 * A daemon in the guest listens on port 5555. Requests and answers are lines of JSON, one answer to each request:
 *
 * ```
 *   {"op":"set_env","id":"1","env":{"K":"V"}}                     {"id":"1","ok":true}
 *   {"op":"set_secret","id":"2","name":"n","value_b64":"…"}       {"id":"2","ok":false,"error":"…"}
 *   {"op":"ping","id":"3"}
 * ```
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Base64 from "effect/encoding/Base64"
import * as Ndjson from "effect/encoding/Ndjson"
import * as Exit from "effect/Exit"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import * as FirecrackerError from "./FirecrackerError.ts"
import * as Vsock from "./Vsock.ts"

type Failure = FirecrackerError.FirecrackerError

/**
 * Requests are made one after the other, on one connection. One that is given up, by its deadline or by an interruption,
 * ends the connection, so that its answer is never taken for another's; the next request makes a new one. So does one that
 * finds the kept connection ended, as all are when a snapshot is made.
 *
 * All fail with `InvalidRequest` before anything is sent, with `VsockUnavailable` when the daemon does not come up, and
 * with `GuestMetadataFailed` when it says no, does not answer in time, or says something else than the protocol has.
 *
 * @category models
 * @since 0.1.0
 */
export interface GuestMetadata {
  /**
   * Gives the guest these variables. A name is of letters, digits and `_` and does not start with a digit; a value has no
   * line end and no zero byte. The reference daemon writes its file anew from each request: what is not in it is gone, and
   * a variable with an empty value is left out.
   */
  readonly setEnv: (
    env: Readonly<Record<string, string | Redacted.Redacted>>
  ) => Effect.Effect<void, Failure>
  /** Gives the guest a secret. A name is of letters, digits, `_` and `-`. */
  readonly setSecret: (
    name: string,
    value: Redacted.Redacted | Redacted.Redacted<Uint8Array>
  ) => Effect.Effect<void, Failure>
  /** Waits until the daemon answers. */
  readonly ping: Effect.Effect<void, Failure>
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Default 5555. */
  readonly port?: number | undefined
  /** How long the daemon may take until it listens. Default 10 seconds. */
  readonly connectWithin?: Duration.Input | undefined
  /** From when a request has its turn, and a connection, to its answer. Default 5 seconds. */
  readonly requestWithin?: Duration.Input | undefined
}

const Port = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 0xfffffffe }))
const Milliseconds = Schema.Int.check(Schema.isGreaterThan(0))

const milliseconds = (name: string) =>
  Config.schema(Milliseconds, name).pipe(Config.map(Duration.millis), Config.withDefault(undefined))

/**
 * The options from configuration: `MICROVM_GUEST_METADATA_PORT`, `MICROVM_GUEST_METADATA_CONNECT_TIMEOUT_MS` and
 * `MICROVM_GUEST_METADATA_REQUEST_TIMEOUT_MS`. A value that is no number above 0 is an error.
 *
 * ```ts import.meta.vitest
 * import { GuestMetadata } from "effect-microvm-runtime/firecracker"
 * import * as ConfigProvider from "effect/ConfigProvider"
 * import * as Effect from "effect/Effect"
 * const provider = ConfigProvider.fromUnknown({ MICROVM_GUEST_METADATA_PORT: "7777" })
 * Effect.runSync(GuestMetadata.config.parse(provider)).port // => 7777
 * ```
 *
 * @category configuration
 * @since 0.1.0
 */
export const config: Config.Config<Options> = Config.all({
  port: Config.schema(Port, "MICROVM_GUEST_METADATA_PORT").pipe(Config.withDefault(undefined)),
  connectWithin: milliseconds("MICROVM_GUEST_METADATA_CONNECT_TIMEOUT_MS"),
  requestWithin: milliseconds("MICROVM_GUEST_METADATA_REQUEST_TIMEOUT_MS")
})

/** A longer answer ends the connection. */
const maxLineBytes = 64 * 1024

const Answer = Schema.Struct({
  id: Schema.String,
  ok: Schema.Boolean,
  error: Schema.optional(Schema.NullOr(Schema.String))
})

const decodeAnswer = Schema.decodeUnknownEffect(Answer)

type Request =
  | { readonly op: "set_env"; readonly env: Readonly<Record<string, string>> }
  | { readonly op: "set_secret"; readonly name: string; readonly value_b64: string }
  | { readonly op: "ping" }

interface Connection {
  readonly scope: Scope.Closeable
  readonly pull: Effect.Effect<ReadonlyArray<unknown>, unknown>
}

const ended = "the connection ended before the answer"

const failed = (operation: string, why: string): Failure =>
  FirecrackerError.make(new FirecrackerError.GuestMetadataFailed({ operation, why }))

const invalid = (faults: ReadonlyArray<FirecrackerError.Fault>) =>
  FirecrackerError.fail(new FirecrackerError.InvalidRequest({ faults }))

/** What the daemon says of a failure, without what it was to keep to itself. */
const withoutSecrets = (text: string, secrets: ReadonlyArray<string>): string => {
  const hidden = secrets.flatMap((secret) => [secret, JSON.stringify(secret).slice(1, -1), Base64.encode(secret)])
    .filter((secret) => secret !== "")
    .toSorted((a, b) => b.length - a.length)
    .reduce((shown, secret) => shown.replaceAll(secret, "<redacted>"), text)
  return hidden.length > 200 ? `${hidden.slice(0, 199)}…` : hidden
}

const envFaults = (env: Readonly<Record<string, string>>): ReadonlyArray<FirecrackerError.Fault> =>
  Object.entries(env).flatMap(([name, value]) => {
    const faults: Array<FirecrackerError.Fault> = []
    if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) {
      faults.push({ field: "env", value: name, remedy: "name it with letters, digits and \"_\", and no digit first" })
    }
    if (/[\n\0]/.test(value)) {
      faults.push({ field: `env.${name}`, value: "<redacted>", remedy: "use a value without line end and zero byte" })
    }
    return faults
  })

/**
 * A client of the daemon in the guest whose vsock device has this `uds_path`. Nothing is opened before the first request.
 * Closing the scope closes the connection.
 *
 * Fails with `InvalidRequest` when path or port cannot be.
 *
 * ```ts import.meta.vitest
 * import { FirecrackerError, GuestMetadata, NodeVsock } from "effect-microvm-runtime/firecracker"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const guest = yield* GuestMetadata.make("/run/vm/vsock.sock")
 *   yield* guest.setEnv({ "not-a-name": "a", "2nd": "b" })
 * }).pipe(
 *   Effect.scoped,
 *   Effect.catchReason("FirecrackerError", "InvalidRequest", ({ faults }) =>
 *     Effect.succeed(faults.map(({ value }) => value))),
 *   Effect.provide(NodeVsock.layer)
 * )
 * await Effect.runPromise(program) // => ["not-a-name", "2nd"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fn("GuestMetadata.make")(function*(
  path: string,
  options: Options = {}
): Effect.fn.Return<GuestMetadata, Failure, Scope.Scope | Vsock.Vsock> {
  const { connectWithin, port = 5555 } = options
  const within = Duration.fromInputUnsafe(options.requestWithin ?? "5 seconds")
  const socket = yield* Vsock.socket(path, port, { within: connectWithin })
  const writer = yield* socket.writer
  const outer = yield* Effect.scope
  const turn = yield* Semaphore.make(1)
  let live: Connection | undefined
  let lastId = 0

  const connect = Effect.fnUntraced(function*(operation: string) {
    const scope = yield* Scope.fork(outer)
    const notReached = ({ message, reason }: Socket.SocketError) =>
      reason._tag === "SocketOpenError" && reason.cause instanceof FirecrackerError.FirecrackerError
        ? reason.cause
        : failed(operation, message)
    return yield* Effect.mapError(Socket.readerBytes(socket), notReached).pipe(
      Effect.flatMap((pull) =>
        Stream.toPull(
          Stream.pipeThroughChannel(
            Stream.fromPull(Effect.succeed(pull)),
            Ndjson.decode<Socket.SocketError>({ maxLineBytes })
          )
        )
      ),
      Scope.provide(scope),
      Effect.onExit((exit) => Exit.isSuccess(exit) ? Effect.void : Scope.close(scope, exit)),
      Effect.map((pull) => ({ scope, pull }))
    )
  })

  const hangUp = Effect.suspend(() => {
    const connection = live
    live = undefined
    return connection === undefined ? Effect.void : Scope.close(connection.scope, Exit.void)
  })

  const exchange = Effect.fnUntraced(function*({ pull }: Connection, id: string, request: Request) {
    const { op } = request
    const lost = (cause: unknown) =>
      failed(
        op,
        Ndjson.isNdjsonError(cause)
          ? cause.reason === "LineTooLarge" ? `an answer over ${maxLineBytes} bytes` : "an answer that is not JSON"
          : ended
      )
    yield* Effect.mapError(writer.write(`${JSON.stringify({ ...request, id })}\n`), lost)
    const [line, ...others] = yield* Effect.mapError(pull, lost)
    const answer = yield* Effect.mapError(decodeAnswer(line), () => failed(op, "an answer of another shape"))
    // A request that could not be read has none.
    if (answer.id !== id && (answer.id !== "" || answer.ok)) return yield* failed(op, "the answer to another request")
    if (others.length > 0) return yield* failed(op, "more than one answer")
    return answer
  })

  const send = Effect.fnUntraced(function*(request: Request, secrets: ReadonlyArray<string>) {
    const { op } = request
    const once = Effect.gen(function*() {
      live ??= yield* connect(op)
      return yield* exchange(live, String(++lastId), request).pipe(
        Effect.timeoutOrElse({
          duration: within,
          orElse: () => Effect.fail(failed(op, `no answer within ${Duration.format(within)}`))
        })
      )
    }).pipe(Effect.onExit((exit) => Exit.isSuccess(exit) ? Effect.void : hangUp))
    // A kept connection may have ended long ago. To do a request twice is to do it once.
    const isStale = ({ reason }: Failure) => reason._tag === "GuestMetadataFailed" && reason.why === ended
    const answer = yield* turn.withPermit(
      Effect.suspend(() => live === undefined ? once : Effect.catchIf(once, isStale, () => once))
    )
    if (!answer.ok) {
      return yield* failed(op, withoutSecrets(answer.error ?? "the daemon does not say why", secrets))
    }
  })

  return {
    setEnv: Effect.fn("GuestMetadata.setEnv")(function*(env) {
      const values = Object.values(env).flatMap((value) => Redacted.isRedacted(value) ? [Redacted.value(value)] : [])
      const plain = Object.fromEntries(
        Object.entries(env).map(([name, value]) => [name, Redacted.isRedacted(value) ? Redacted.value(value) : value])
      )
      const faults = envFaults(plain)
      if (faults.length > 0) return yield* invalid(faults)
      yield* send({ op: "set_env", env: plain }, values)
    }),
    setSecret: Effect.fn("GuestMetadata.setSecret")(function*(name, value) {
      if (!/^[A-Za-z0-9_-]+$/.test(name)) {
        return yield* invalid([{ field: "name", value: name, remedy: "use letters, digits, \"_\" and \"-\"" }])
      }
      const secret = Redacted.value<string | Uint8Array>(value)
      const encoded = Base64.encode(secret)
      yield* send({ op: "set_secret", name, value_b64: encoded }, [
        encoded,
        typeof secret === "string" ? secret : new TextDecoder().decode(secret)
      ])
    }),
    ping: send({ op: "ping" }, []).pipe(Effect.withSpan("GuestMetadata.ping"))
  }
})
