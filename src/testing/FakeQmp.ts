/**
 * A QMP server without a QEMU behind it, over a real duplex stream. It knows the commands that this package uses, plays
 * the run state of a machine, and can be made to misbehave.
 *
 * @since 0.1.0
 */
import * as NodeSocket from "@effect/platform-node/NodeSocket"
import * as Effect from "effect/Effect"
import * as Ndjson from "effect/encoding/Ndjson"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import { duplexPair } from "node:stream"
import * as QmpSchema from "../qemu/QmpSchema.ts"

/**
 * What a script answers: a result, an error in QEMU's words, or nothing at all.
 *
 * @category models
 * @since 0.1.0
 */
export type Answer =
  | { readonly return: unknown }
  | { readonly error: { readonly class: string; readonly desc: string } }
  | "nothing"

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /**
   * The first line. Default: that of a QEMU 7.2; `"nothing"` keeps silent, and `"long ago"` does too, since somebody else has
   * had it and negotiated.
   */
  readonly greeting?: QmpSchema.Greeting | "nothing" | "long ago" | undefined
  /** Sends everything in pieces of at most this many bytes, each on a turn of the event loop of its own. */
  readonly chunkBytes?: number | undefined
  /** The machine waits to be loaded, as after `-incoming defer`. Default false. */
  readonly incoming?: boolean | undefined
  /**
   * What becomes of a machine that is sent, or loaded. Nothing is really sent. Default `"completes"`; one that stalls can
   * be cancelled.
   */
  readonly migration?: "completes" | "fails" | "stalls" | undefined
  /** Looked at before the server's own answers; `undefined` leaves a command to those. */
  readonly answer?: ((command: string) => Answer | undefined) | undefined
}

/**
 * @category models
 * @since 0.1.0
 */
export interface FakeQmp {
  /** The end for the client. */
  readonly socket: Socket.Socket
  /** The commands that came, in order. */
  readonly received: Effect.Effect<ReadonlyArray<typeof QmpSchema.ClientMessage.Type>>
  /** Run state, as `query-status` tells it. */
  readonly status: Effect.Effect<string>
  /** Sends an event. */
  readonly emit: (event: string, data?: Record<string, unknown>) => Effect.Effect<void>
  /** Sends a late answer, or one that nobody asked for. */
  readonly reply: (id: unknown, answer: Exclude<Answer, "nothing">) => Effect.Effect<void>
  /** Sends these very bytes. */
  readonly send: (bytes: string | Uint8Array) => Effect.Effect<void>
  /** Ends the server's side, as the end of a QEMU process does. */
  readonly close: Effect.Effect<void>
}

const qemu72: QmpSchema.Greeting = {
  QMP: { version: { qemu: { major: 7, minor: 2, micro: 22 }, package: "" }, capabilities: ["oob"] }
}

const genericError = (desc: string): Answer => ({ error: { class: "GenericError", desc } })

const notFound = (desc: string): Answer => ({ error: { class: "CommandNotFound", desc } })

/**
 * Starts a server. It ends with the scope.
 *
 * ```ts import.meta.vitest
 * import { Qmp } from "effect-microvm-runtime/qemu"
 * import { FakeQmp } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const server = yield* FakeQmp.make({ chunkBytes: 3 })
 *   return (yield* Qmp.make(server.socket)).version.major
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => 7
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fn("FakeQmp.make")(function*(
  options: Options = {}
): Effect.fn.Return<FakeQmp, never, Scope.Scope> {
  const { chunkBytes = Infinity, greeting = qemu72, incoming = false, migration = "completes" } = options
  const received: Array<typeof QmpSchema.ClientMessage.Type> = []
  let status = incoming ? "inmigrate" : "prelaunch"
  let sending: { readonly status: string; readonly "error-desc"?: string } | undefined
  let negotiated = greeting === "long ago"

  const [near, far] = duplexPair()
  for (const stream of [near, far]) stream.on("error", () => {})
  yield* Effect.addFinalizer(() => Effect.sync(() => [near, far].forEach((stream) => stream.destroy())))

  const oneAtATime = yield* Semaphore.make(1)
  const turn = Effect.callback<void>((resume) => {
    setImmediate(() => resume(Effect.void))
  })
  const send = (data: string | Uint8Array): Effect.Effect<void> => {
    const bytes = Buffer.from(data)
    const size = Math.max(1, Math.min(chunkBytes, bytes.length))
    const pieces = Array.from(
      { length: Math.ceil(bytes.length / size) },
      (_, index) => bytes.subarray(index * size, (index + 1) * size)
    )
    const write = (piece: Uint8Array, index: number): Effect.Effect<void> =>
      Effect.andThen(index === 0 ? Effect.void : turn, Effect.sync(() => far.write(piece)))
    return oneAtATime.withPermit(Effect.forEach(pieces, write, { discard: true }))
  }
  const sendJson = (value: unknown): Effect.Effect<void> => send(`${JSON.stringify(value)}\r\n`)
  const emit = (event: string, data?: Record<string, unknown>): Effect.Effect<void> =>
    sendJson({ event, ...(data === undefined ? {} : { data }), timestamp: { seconds: 0, microseconds: 0 } })

  const run = (command: string): readonly [Answer, event?: string] => {
    if (command === "qmp_capabilities") {
      if (negotiated) return [notFound("Capabilities negotiation is already complete, command ignored")]
      negotiated = true
      return [{ return: {} }]
    }
    if (!negotiated) return [notFound("Expecting capabilities negotiation with 'qmp_capabilities'")]
    switch (command) {
      case "query-version":
        return [{ return: { qemu: qemu72.QMP.version.qemu, package: "" } }]
      case "query-status":
        return [{ return: { status, running: status === "running" } }]
      case "cont":
        status = "running"
        return [{ return: {} }, "RESUME"]
      case "stop":
        status = "paused"
        return [{ return: {} }, "STOP"]
      case "system_powerdown":
        return [{ return: {} }, "POWERDOWN"]
      case "migrate-set-capabilities":
      case "migrate-set-parameters":
        return [{ return: {} }]
      case "migrate":
        if (status === "postmigrate") {
          return [genericError("Can't migrate the vm that was paused due to previous migration")]
        }
        sending = { status: "active" }
        return [{ return: {} }]
      case "query-migrate":
        if (sending?.status === "active" && migration === "completes") {
          sending = { status: "completed" }
          status = "postmigrate"
        } else if (sending?.status === "active" && migration === "fails") {
          sending = { status: "failed", "error-desc": "Unable to write to socket: Broken pipe" }
        }
        return [{ return: sending ?? {} }]
      case "migrate_cancel":
        if (sending?.status === "active") sending = { status: "cancelled" }
        return [{ return: {} }]
      case "migrate-incoming":
        if (migration === "completes") status = "paused"
        return [{ return: {} }]
      default:
        return [notFound(`The command ${command} has not been found`)]
    }
  }

  const decode = Schema.decodeUnknownEffect(QmpSchema.ClientMessage)
  const onLine = Effect.fnUntraced(function*(line: unknown) {
    const message = yield* decode(line)
    received.push(message)
    const scripted = options.answer?.(message.execute)
    const [answer, event] = scripted === undefined ? run(message.execute) : [scripted]
    if (event !== undefined) yield* emit(event)
    if (answer !== "nothing") yield* sendJson({ ...answer, id: message.id })
  })

  const server = yield* NodeSocket.fromDuplex(Effect.succeed(far))
  const pull = yield* Effect.orDie(Socket.readerBytes(server))
  yield* Stream.fromPull(Effect.succeed(pull)).pipe(
    // A byte that is in no JSON: what came before it is forgotten, with an answer that has no id.
    Stream.mapEffect((bytes) => {
      const at = bytes.lastIndexOf(0xff)
      return at < 0 ? Effect.succeed(bytes) : Effect.as(
        sendJson(genericError("JSON parse error")),
        bytes.subarray(at + 1)
      )
    }),
    Stream.pipeThroughChannel(Ndjson.decode<Socket.SocketError>({ ignoreEmptyLines: true })),
    Stream.runForEach(onLine),
    Effect.ignore,
    Effect.forkScoped({ startImmediately: true })
  )
  if (typeof greeting !== "string") yield* sendJson(greeting)

  return {
    socket: yield* NodeSocket.fromDuplex(
      Effect.acquireRelease(Effect.succeed(near), (stream) => Effect.sync(() => stream.destroy()))
    ),
    received: Effect.sync(() => [...received]),
    status: Effect.sync(() => status),
    emit,
    reply: (id, answer) => sendJson({ ...answer, id }),
    send,
    close: oneAtATime.withPermit(Effect.sync(() => {
      far.end()
    }))
  }
})
