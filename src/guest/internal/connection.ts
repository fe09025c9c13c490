/**
 * One connection to an agent: who speaks when, and how both ends find each other again.
 *
 * ```
 *             sync answered              request sent
 *   unknown ───────────────▶ aligned ───────────────▶ unknown
 *      ▲                        ▲                        │
 *      │                        └──── its own reply ─────┤
 *      └──── timeout, interruption, anything odd ────────┘
 * ```
 */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Socket from "effect/socket/Socket"
import * as GuestAgentSchema from "../GuestAgentSchema.ts"
import * as GuestError from "../GuestError.ts"
import * as Lines from "./lines.ts"

/** @internal */
export type Request = <A, R>(
  command: GuestAgentSchema.Command<A, R>,
  args: A,
  options: { readonly within: Duration.Duration; readonly onLate?: ((answer: R) => void) | undefined }
) => Effect.Effect<R, GuestError.GuestError>

/** @internal */
export interface Connection {
  /**
   * Runs a command. `onLate` gets the answer when it comes after the caller has gone.
   */
  readonly request: Request
  /**
   * Sends a command that has no reply when it works, once the agent has shown that it listens. Done when the stream ends
   * or when no refusal came for `quiet`.
   */
  readonly announce: <A, R>(
    command: GuestAgentSchema.Command<A, R>,
    args: A,
    options: { readonly within: Duration.Duration; readonly quiet: Duration.Duration }
  ) => Effect.Effect<void, GuestError.GuestError>
  /** Waits for the end of the stream. */
  readonly closed: Effect.Effect<GuestError.GuestError>
}

interface Pending {
  readonly id: number
  readonly execute: string
  readonly maxReplyBytes: number
  readonly reply: Deferred.Deferred<GuestAgentSchema.Reply, GuestError.GuestError>
  answer?: GuestAgentSchema.Reply
}

const maxLineBytes = 1024 * 1024
/**
 * Of what nobody asked for. Requests that were given up leave a line each, of which one can be all that a program wrote; a guest
 * that goes on writing would keep us reading, and everybody else waiting.
 */
const maxUnasked = { lines: 128, bytes: 64 * 1024 * 1024 }
const firstSyncAfter = 250
const longestSyncAfter = 30_000

const now = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1e6)
const fail = (reason: GuestError.Reason): Effect.Effect<never, GuestError.GuestError> =>
  Effect.fail(GuestError.make(reason))
const excerpt = (line: string): string => line.length > 120 ? `${line.slice(0, 120)}…` : line
const decodeReply = Schema.decodeUnknownResult(Schema.fromJsonString(GuestAgentSchema.Reply))
const encodeRequest = Schema.encodeSync(Schema.fromJsonString(GuestAgentSchema.Request))

/**
 * Connects, and greets the agent until it answers: at once, or before the first request.
 *
 * @internal
 */
export const make = Effect.fnUntraced(function*(
  socket: Socket.Socket,
  options: { readonly within: Duration.Duration; readonly maxWaiting: number; readonly later: boolean }
): Effect.fn.Return<Connection, GuestError.GuestError, Scope.Scope> {
  const { later, maxWaiting, within } = options
  let attempts = 0
  const onGreeting = (): void => {
    attempts++
  }
  // A failure leaves no reader behind, so that another attempt has the channel for itself.
  const scope = yield* Scope.fork(yield* Effect.scope)
  return yield* connect(socket, { later, maxWaiting }, onGreeting).pipe(
    Scope.provide(scope),
    Effect.timeoutOrElse({
      duration: within,
      orElse: () => fail(new GuestError.NotReady({ within, attempts }))
    }),
    Effect.onExit((exit) => Exit.isSuccess(exit) ? Effect.void : Scope.close(scope, exit))
  )
})

const connect = Effect.fnUntraced(function*(
  socket: Socket.Socket,
  { later, maxWaiting }: { readonly later: boolean; readonly maxWaiting: number },
  onGreeting: () => void
): Effect.fn.Return<Connection, GuestError.GuestError, Scope.Scope> {
  const turn = yield* Semaphore.make(1)
  const closed = yield* Deferred.make<GuestError.GuestError>()
  let over: GuestError.GuestError | undefined
  let waiting = 0
  let lastId = 0

  // Is the next line that comes the reply to the next request that goes?
  let aligned = false
  let unasked = { lines: 0, bytes: 0 }
  let pending: Pending | undefined
  /** The request that was given up last. There is only one, since the next one waits until both ends are in step again. */
  let late: { readonly id: number; readonly use: (reply: GuestAgentSchema.Reply) => void } | undefined

  // Greetings without an answer yet, oldest first. They outlive the request that sent them: while a guest stands still,
  // any number of requests must not fill its channel.
  const greetings: Array<number> = []
  let greetAgainAt = 0
  let greetAgainAfter = firstSyncAfter
  let answered = Deferred.makeUnsafe<void, GuestError.GuestError>()

  const settle = (exit: Exit.Exit<GuestAgentSchema.Reply, GuestError.GuestError>): void => {
    if (pending === undefined) return
    const { reply } = pending
    // A failure here leaves the place in the stream unknown.
    if (Exit.isSuccess(exit)) {
      pending.answer = exit.value
      aligned = true
    }
    pending = undefined
    // Last: whoever waits for it may go on at once, and send the next request.
    Deferred.doneUnsafe(reply, exit)
  }

  const onOdd = (problem: string, received?: string): void => {
    if (pending === undefined) return
    const operation = pending.execute
    settle(Exit.fail(GuestError.make(
      new GuestError.Protocol({ operation, problem, ...(received === undefined ? {} : { received }) })
    )))
  }

  const onReply = (reply: GuestAgentSchema.Reply): void => {
    const greeting = "return" in reply && typeof reply.return === "number" ? greetings.indexOf(reply.return) : -1
    if (greeting !== -1) {
      greetings.splice(0, greeting + 1)
      unasked = { lines: 0, bytes: 0 }
      Deferred.doneUnsafe(answered, Exit.void)
      return
    }
    if (pending !== undefined && (reply.id === undefined || reply.id === pending.id)) {
      unasked = { lines: 0, bytes: 0 }
      return settle(Exit.succeed(reply))
    }
    if (late !== undefined && reply.id === late.id) late.use(reply)
  }

  const lines = Lines.make({
    maxBytes: () => Math.max(pending?.maxReplyBytes ?? 0, maxLineBytes),
    onTooLong: () => onOdd("a line that is too long"),
    onLine: (line) => {
      // What is left of a piece, once it was too much.
      if (over !== undefined) return
      if (++unasked.lines > maxUnasked.lines) return endAt(`more than ${maxUnasked.lines} lines`)
      const reply = decodeReply(line)
      if (Result.isFailure(reply)) onOdd("a line that is no reply", excerpt(line))
      else onReply(reply.success)
    }
  })

  const end = (cause?: unknown): void => {
    if (over !== undefined) return
    over = GuestError.make(new GuestError.Closed({ channel: "agent", ...(cause === undefined ? {} : { cause }) }))
    settle(Exit.fail(over))
    Deferred.doneUnsafe(answered, Exit.fail(over))
    Deferred.doneUnsafe(closed, Exit.succeed(over))
  }
  const endAt = (what: string): void => {
    const problem = `${what} that nobody asked for`
    end(GuestError.make(new GuestError.Protocol({ operation: "reading", problem })))
  }
  const listen = (chunks: ReadonlyArray<Uint8Array>): Effect.Effect<void, GuestError.GuestError> =>
    Effect.suspend(() => {
      for (const chunk of chunks) {
        unasked.bytes += chunk.length
        if (unasked.bytes > maxUnasked.bytes) endAt(`more than ${maxUnasked.bytes} bytes`)
        if (over !== undefined) return Effect.fail(over)
        lines.push(chunk)
      }
      return Effect.void
    })
  const toClosed = (cause: unknown): GuestError.GuestError =>
    GuestError.make(new GuestError.Closed({ channel: "agent", cause }))

  const writer = yield* socket.writer
  const pull = yield* Effect.mapError(Socket.readerBytes(socket), toClosed)
  yield* pull.pipe(
    Effect.flatMap(listen),
    Effect.forever,
    Effect.catch((error) => Effect.sync(() => end(error.reason._tag === "SocketCloseError" ? undefined : error))),
    Effect.ensuring(Effect.sync(() => end())),
    Effect.forkScoped({ startImmediately: true })
  )

  const write = (line: string | Uint8Array) => Effect.mapError(writer.write(line), toClosed)

  const greet = Effect.gen(function*() {
    const id = yield* Random.nextIntBetween(1, Number.MAX_SAFE_INTEGER)
    greetings.push(id)
    onGreeting()
    const line = encodeRequest({ execute: GuestAgentSchema.guestSyncDelimited.execute, arguments: { id } })
    const bytes = new TextEncoder().encode(` ${line}\n`)
    bytes[0] = 0xff
    yield* write(bytes)
  })

  // Done when the last greeting is answered: those before it have been then, and nothing else can be on its way.
  const sync = Effect.gen(function*() {
    while (true) {
      if (over !== undefined) return yield* over
      const time = yield* now
      aligned = false
      if (greetings.length === 0 || time >= greetAgainAt) {
        greetAgainAt = time + greetAgainAfter
        greetAgainAfter = Math.min(2 * greetAgainAfter, longestSyncAfter)
        answered = Deferred.makeUnsafe()
        yield* greet
      }
      const heard = yield* Deferred.await(answered).pipe(Effect.timeoutOption(greetAgainAt - time))
      if (Option.isNone(heard)) continue
      answered = Deferred.makeUnsafe()
      if (greetings.length > 0) {
        // It lives and works through them; more would only put off the last one.
        greetAgainAt = (yield* now) + greetAgainAfter
        continue
      }
      greetAgainAfter = firstSyncAfter
      aligned = true
      return
    }
  })

  const exchange = Effect.fnUntraced(function*<A, R>(
    command: GuestAgentSchema.Command<A, R>,
    args: A,
    onLate?: (reply: GuestAgentSchema.Reply) => void
  ) {
    if (over !== undefined) return yield* over
    if (!aligned) yield* sync
    const { execute, maxReplyBytes } = command
    const id = ++lastId
    const reply = Deferred.makeUnsafe<GuestAgentSchema.Reply, GuestError.GuestError>()
    const line = encodeRequest({ execute, arguments: Schema.encodeSync(command.arguments)(args), id })
    const mine: Pending = { id, execute, maxReplyBytes, reply }
    aligned = false
    pending = mine
    return yield* Effect.andThen(write(`${line}\n`), Deferred.await(reply)).pipe(
      Effect.onExit((exit) =>
        Effect.sync(() => {
          if (pending === mine) pending = undefined
          if (Exit.isSuccess(exit) || onLate === undefined) return
          // It may have come in the very moment in which we gave up.
          if (mine.answer === undefined) late = { id, use: onLate }
          else onLate(mine.answer)
        })
      )
    )
  })

  // The deadline counts from the call, so that it also bounds the wait for a turn.
  const inTurn = <A>(operation: string, within: Duration.Duration, effect: Effect.Effect<A, GuestError.GuestError>) =>
    Effect.suspend(() => {
      if (waiting >= maxWaiting) return fail(new GuestError.Busy({ operation, waiting }))
      waiting++
      return Semaphore.withPermit(turn, effect).pipe(
        Effect.timeoutOrElse({
          duration: within,
          orElse: () => fail(new GuestError.Timeout({ operation, within }))
        }),
        Effect.ensuring(Effect.sync(() => {
          waiting--
        }))
      )
    })

  const refusal = (command: string, error: { readonly class: string; readonly desc: string }): GuestError.GuestError =>
    GuestError.make(
      error.class === "CommandNotFound"
        ? new GuestError.CommandNotFound({ command, desc: error.desc })
        : new GuestError.AgentError({ command, ...error })
    )

  if (!later) yield* sync
  return {
    request: Effect.fnUntraced(function*(command, args, { onLate, within }) {
      const decode = Schema.decodeUnknownResult(command.returns)
      const reply = yield* inTurn(
        command.execute,
        within,
        exchange(
          command,
          args,
          onLate === undefined ? undefined : (answer) => {
            const value = "return" in answer ? decode(answer.return) : undefined
            if (value !== undefined && Result.isSuccess(value)) onLate(value.success)
          }
        )
      )
      if ("error" in reply) return yield* refusal(command.execute, reply.error)
      const value = decode(reply.return)
      if (Result.isSuccess(value)) return value.success
      const problem = "a value of another shape"
      return yield* fail(
        new GuestError.Protocol({ operation: command.execute, problem, cause: value.failure })
      )
    }),
    announce: (command, args, { quiet, within }) =>
      inTurn(
        command.execute,
        within,
        // Not only when out of step: there is no reply to wait for, so an agent that hangs must be noticed before.
        Effect.andThen(
          sync,
          exchange(command, args).pipe(
            Effect.flatMap((reply) =>
              "error" in reply ? Effect.fail(refusal(command.execute, reply.error)) : Effect.void
            ),
            Effect.catchReason("GuestError", "Closed", () => Effect.void),
            Effect.timeoutOrElse({ duration: quiet, orElse: () => Effect.void })
          )
        )
      ),
    closed: Deferred.await(closed)
  }
})
