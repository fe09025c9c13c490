import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import * as NodeNet from "node:net"
import { ProvisionerError } from "../Provisioner.ts"
import { codeOf } from "./NodeLocalState.ts"
import * as Protocol from "./NodePgliteProtocol.ts"

/** What we need of PGlite. */
export interface Session {
  readonly execProtocolRawStream: (
    message: Uint8Array,
    options: { readonly onRawData: (data: Uint8Array) => void }
  ) => Promise<void>
}

const mostConnections = 100

/** What a client may send, in bytes, and how long it may take, before it has shown the password. */
const mostBeforePassword = 10_000
const passwordWithin = "1 minute"

/** How much a client may have sent before the message that makes the server act on it. */
const mostBatched = 64 * 1024 * 1024

class SessionLost {
  readonly _tag = "SessionLost"
  readonly cause: unknown
  constructor(cause: unknown) {
    this.cause = cause
  }
}

/**
 * Serves one session to several clients: whoever is in a transaction, or in the middle of a request, has it for himself, and
 * the others wait. Each has prepared statements of his own; all else of a session (settings, temporary tables, advisory
 * locks) they share.
 */
export const serve = Effect.fnUntraced(function*(
  session: Session,
  options: { readonly port: number; readonly password: Redacted.Redacted }
): Effect.fn.Return<{ readonly port: number; readonly lost: Effect.Effect<unknown> }, ProvisionerError, Scope.Scope> {
  const turn = yield* Semaphore.make(1)
  const lost = yield* Deferred.make<unknown>()
  const password = Redacted.value(options.password)
  let connections = 0

  const ask = (request: Buffer, answer: (data: Buffer) => void) =>
    Effect.uninterruptible(Effect.tryPromise({
      // What it gives is memory of its own, which it uses again.
      try: () => session.execProtocolRawStream(request, { onRawData: (data) => answer(Buffer.from(data)) }),
      catch: (cause) => new SessionLost(cause)
    })).pipe(Effect.tapError(({ cause }) => Deferred.succeed(lost, cause)))

  const drained = (socket: NodeNet.Socket) =>
    Effect.callback<void>((resume) => {
      if (!socket.writableNeedDrain || socket.destroyed) {
        resume(Effect.void)
        return
      }
      const done = () => resume(Effect.void)
      socket.once("drain", done).once("close", done)
      return Effect.sync(() => socket.off("drain", done).off("close", done))
    })

  const converse = Effect.fnUntraced(function*(socket: NodeNet.Socket) {
    const prefix = `${(connections++).toString(36)}.`
    const statements = new Set<string>()
    const reader = Protocol.makeReader()
    const send = (data: Buffer) => socket.writable && socket.write(data)
    let startup: Buffer | undefined
    let isReady = false
    let batch: Array<Buffer> = []
    let batched = 0
    let isOurTurn = false

    const begin = Effect.suspend(() =>
      isOurTurn ? Effect.void : Effect.tap(turn.take(1), () => {
        isOurTurn = true
        return Effect.void
      })
    )
    const pass = Effect.suspend(() => {
      isOurTurn = false
      return turn.release(1)
    })
    const run = Effect.fnUntraced(function*(request: Buffer) {
      yield* begin
      let tail: Buffer = Buffer.alloc(0)
      yield* ask(request, (data) => {
        send(data)
        tail = data.length >= 6 ? data : Buffer.concat([tail, data]).subarray(-6)
      })
      if (Protocol.isIdle(tail)) yield* pass
      yield* drained(socket)
    })

    /** `false` ends the connection. */
    const receive = Effect.fnUntraced(function*(message: Protocol.Message) {
      if (!isReady && startup === undefined) {
        const code = Protocol.startupCode(message)
        if (code === "encryption") return send(Protocol.noEncryption)
        if (code !== "start") return false
        startup = message.bytes
        reader.started()
        return send(Protocol.askPassword)
      }
      if (!isReady && startup !== undefined) {
        if (!Protocol.isPassword(message, password)) {
          send(Protocol.fatal("28P01", "password authentication failed"))
          return false
        }
        isReady = true
        yield* run(startup)
        return true
      }
      if (message.type === "X") return false
      batch.push(Protocol.rename(message, prefix, statements))
      batched += message.bytes.length
      if (batched > mostBatched) {
        send(Protocol.fatal("54000", `more than ${mostBatched} bytes without a Sync`))
        return false
      }
      if (!Protocol.isFlushed(message)) return true
      const request = Buffer.concat(batch)
      batch = []
      batched = 0
      yield* run(request)
      return true
    })

    /** Leaves the session to the others as if this client had never been there. */
    const leave = Effect.gen(function*() {
      if (!isReady || (!isOurTurn && statements.size === 0)) return
      yield* begin
      const closing = Array.from(statements, Protocol.closeStatement)
      yield* ask(Buffer.concat([Protocol.sync, Protocol.query("ROLLBACK")]), () => {}).pipe(
        Effect.andThen(ask(Buffer.concat([...closing, Protocol.sync]), () => {})),
        // Also when the session is lost: the others must learn of it.
        Effect.ensuring(pass)
      )
    })

    // As PostgreSQL's own authentication_timeout: without it, a hundred silent clients keep all others out.
    yield* Effect.forkChild(Effect.delay(Effect.sync(() => isReady || socket.destroy()), passwordWithin))
    yield* Stream.fromAsyncIterable<Buffer, unknown>(socket, (cause) => cause).pipe(
      Stream.runForEach(Effect.fnUntraced(function*(chunk) {
        reader.push(chunk)
        const next = () => reader.next(isReady ? undefined : mostBeforePassword)
        for (let message = next(); message !== "incomplete"; message = next()) {
          if (message === "malformed" || !(yield* receive(message))) return yield* Effect.fail("end" as const)
        }
      })),
      // A client that breaks off ends its connection, nothing else.
      Effect.ignore,
      Effect.ensuring(Effect.ignore(leave)),
      Effect.ensuring(Effect.sync(() => socket.end(() => socket.destroy())))
    )
  })

  const fork = yield* FiberSet.makeRuntime()
  const sockets = new Set<NodeNet.Socket>()
  const server = NodeNet.createServer({ noDelay: true }, (socket) => {
    sockets.add(socket)
    socket.on("error", () => {}).once("close", () => sockets.delete(socket))
    fork(converse(socket))
  })
  server.maxConnections = mostConnections
  yield* Effect.acquireRelease(
    Effect.callback<void, ProvisionerError>((resume) => {
      server.once("error", (cause) =>
        resume(Effect.fail(
          new ProvisionerError({ message: `PGlite: cannot listen on port ${options.port}: ${codeOf(cause)}`, cause })
        )))
      server.listen({ port: options.port, host: "127.0.0.1", exclusive: true }, () => resume(Effect.void))
    }),
    () =>
      Effect.callback<void>((resume) => {
        server.close(() => resume(Effect.void))
        sockets.forEach((socket) => socket.destroy())
      })
  )
  // It serves our own process: it is no reason to go on.
  server.unref()
  return { port: options.port, lost: Deferred.await(lost) }
})
