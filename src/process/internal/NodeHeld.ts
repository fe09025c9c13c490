import { fromDuplex } from "@effect/platform-node/NodeSocket"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Pull from "effect/Pull"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import type * as NodeNet from "node:net"
import { Duplex } from "node:stream"
import * as ExitStatus from "../../lifecycle/ExitStatus.ts"
import * as Shutdown from "../../lifecycle/Shutdown.ts"
import * as ShutdownPolicy from "../../lifecycle/ShutdownPolicy.ts"
import type { KillScope } from "../KillScope.ts"
import type { StreamTail } from "../OutputTail.ts"
import { fromReason, type ProcessError, ProcessErrorReason } from "../ProcessError.ts"
import type { AttachOptions, FollowOptions, HeldProcess, Piece } from "../ProcessHolder.ts"
import { ProcessHost } from "../ProcessHost.ts"
import * as ProcessIdentity from "../ProcessIdentity.ts"
import * as Protocol from "./holderProtocol.ts"
import * as HolderSchema from "./holderSchema.ts"
import * as Client from "./NodeHolderClient.ts"
import { toSource, toStatus } from "./NodeLaunch.ts"
import { pollUntil } from "./reach.ts"
import * as Target from "./target.ts"

/** Does it still run? */
export const lives = (
  host: ProcessHost["Service"],
  identity: ProcessIdentity.ProcessIdentity
): Effect.Effect<boolean> => Effect.provideService(ProcessIdentity.isAlive(identity), ProcessHost, host)

const failed = (directory: string) => ({ why }: Client.Unreachable): ProcessError =>
  fromReason(ProcessErrorReason.HolderFailed({ directory, why }))

/** As it was written down at the end, if it has come; a holder that is gone before its time leaves none. */
const written = ({ directory, from = 0, stream }: FollowOptions): ReadonlyArray<Piece> => {
  const ended = Client.readEnded(directory)
  if (ended === undefined) return []
  const tail = Client.readTail(directory, stream)
  const start = ended[stream] - tail.length
  const position = Math.max(start, from)
  const bytes = tail.subarray(position - start)
  return bytes.length === 0 ? [] : [{ position, bytes }]
}

/** Frames of a longer piece are not made. */
const longestPiece = 2 ** 30

const frames = (socket: NodeNet.Socket, { directory, stream }: FollowOptions): Stream.Stream<Piece, ProcessError> => {
  const source = toSource(stream, socket)
  // Joined once all of a piece is there: a piece may be as long as the tail.
  let chunks: Array<Uint8Array> = []
  let size = 0
  let wanted = Protocol.frameHeader
  let hasEnded = false
  const join = (): Buffer => {
    const [only] = chunks
    // It copies a single one too, and so would each frame all that comes after it.
    const bytes = chunks.length === 1 && Buffer.isBuffer(only) ? only : Buffer.concat(chunks)
    chunks = [bytes]
    return bytes
  }
  const fail = (why: string) => Effect.fail(fromReason(ProcessErrorReason.HolderFailed({ directory, why })))
  const pull: Pull.Pull<readonly [Piece, ...ReadonlyArray<Piece>], ProcessError> = Effect.suspend(() => {
    if (!hasEnded && size >= wanted) {
      const bytes = join()
      const length = bytes.readUInt32BE(8)
      if (length > longestPiece) return fail("it sends pieces that are none")
      hasEnded = length === 0
      wanted = Protocol.frameHeader + length
      if (!hasEnded && size >= wanted) {
        const piece = {
          position: Number(bytes.readBigUInt64BE(0)),
          bytes: bytes.subarray(Protocol.frameHeader, wanted)
        }
        chunks = [bytes.subarray(wanted)]
        size -= wanted
        wanted = Protocol.frameHeader
        return Effect.succeed([piece])
      }
    }
    if (hasEnded) return Cause.done()
    const taken = source.take()
    if (taken === undefined) return Effect.andThen(source.ready, pull)
    if (taken === "end") return fail("it is gone")
    chunks.push(taken)
    size += taken.length
    return pull
  })
  return Stream.fromPull(Effect.succeed(pull))
}

export const follow = (options: FollowOptions): Stream.Stream<Piece, ProcessError> => {
  const { directory, from = 0, stream, wait = true } = options
  const request: Protocol.Request = { version: Protocol.version, op: "output", stream, from, follow: wait }
  return Stream.unwrap(
    Effect.suspend(() =>
      Client.readEnded(directory) !== undefined
        ? Effect.succeed(Stream.fromIterable(written(options)))
        : Effect.map(Client.ask(directory, request), ({ socket }) => frames(socket, options))
    ).pipe(Effect.catch((error) =>
      // It may have ended since we looked.
      error.isGone && Client.readEnded(directory) !== undefined
        ? Effect.succeed(Stream.fromIterable(written(options)))
        : Effect.fail(failed(directory)(error))
    ))
  )
}

const tailOf = (directory: string, stream: Protocol.StreamName): Effect.Effect<StreamTail> =>
  Stream.runCollect(follow({ directory, stream, wait: false })).pipe(
    Effect.orElseSucceed((): ReadonlyArray<Piece> => []),
    Effect.map((pieces) => ({
      text: new TextDecoder().decode(Buffer.concat(pieces.map(({ bytes }) => bytes))),
      omittedBytes: pieces[0]?.position ?? 0
    }))
  )

/** Until a holder whose process has ended has written that down. */
const lastWriting = "1 second"

/** Until it is gone then. Whoever does not read what it still has for him, and not we, can hold it up longer. */
const leaving = "500 millis"

/** What a process that has ended has left unread. */
const leftOver = (bytes: Uint8Array): Duplex =>
  new Duplex({
    read() {
      this.push(bytes)
      this.push(null)
    },
    write: (_chunk, _encoding, done) => done(new Error("the process has ended"))
  })

const notOpened = (cause: unknown) =>
  new Socket.SocketError({ reason: new Socket.SocketOpenError({ kind: "Unknown", cause }) })

const openChannel = (
  directory: string,
  fd: number,
  hand: string | undefined
): Effect.Effect<Duplex, Socket.SocketError, Scope.Scope> => {
  const rest = Effect.suspend(() => {
    const bytes = Client.readRest(directory, fd)
    return bytes === undefined
      ? Effect.fail(notOpened(new Error("its holder is gone")))
      : Effect.acquireRelease(Effect.sync(() => leftOver(bytes)), (duplex) => Effect.sync(() => void duplex.destroy()))
  })
  if (hand === undefined) return rest
  return Client.ask(directory, { version: Protocol.version, op: "channel", fd, hand }).pipe(
    Effect.flatMap(({ answer, socket }): Effect.Effect<Duplex, Client.Unreachable> =>
      answer._tag === "Channel"
        ? Effect.succeed(socket)
        : Effect.fail(new Client.Unreachable({ isGone: false, why: "the channel is in use, or the hand is lost" }))
    ),
    Effect.catch((error) => error.isGone ? rest : Effect.fail(notOpened(error)))
  )
}

const decodeEnd = Schema.decodeUnknownOption(Schema.fromJsonString(HolderSchema.End))

const statusOf = ({ code, signal }: Protocol.End): ExitStatus.ExitStatus => toStatus(code, signal, false)

/** Waits for what the holder says of the end on the hand's connection; none when it hangs up without a word. */
const heard = (socket: NodeNet.Socket): Effect.Effect<ExitStatus.ExitStatus | undefined> =>
  Effect.callback((resume) => {
    let text = ""
    const listen = (bytes: Buffer): void => {
      text += bytes.toString("utf8")
      const end = text.includes("\n") ? Option.getOrUndefined(decodeEnd(text.slice(0, text.indexOf("\n")))) : undefined
      if (end !== undefined) resume(Effect.succeed(statusOf(end)))
      else if (text.length > Protocol.longestLine) socket.destroy()
    }
    socket.on("data", listen).once("end", () => socket.destroy()).once("close", () => resume(Effect.undefined))
    if (socket.destroyed) resume(Effect.undefined)
    socket.resume()
    return Effect.sync(() => socket.off("data", listen))
  })

/** The one who has hold of it, and how much output there was when that began. */
export interface Hand {
  readonly name: string
  readonly socket: NodeNet.Socket
  readonly stdout: number
  readonly stderr: number
}

export const make = Effect.fnUntraced(function*(
  host: ProcessHost["Service"],
  held: HolderSchema.Held,
  hand: Hand | undefined,
  options: AttachOptions & { readonly fromStart: boolean }
): Effect.fn.Return<HeldProcess, never, Scope.Scope> {
  const { directory } = options
  const { child: identity, mark } = held
  const { pid } = identity
  const killScope: KillScope = held.cgroup === null
    ? { _tag: "Group", pgid: pid, reason: "held" }
    : { _tag: "CGroup", path: held.cgroup, reason: "asked for" }

  const told = Deferred.makeUnsafe<ExitStatus.ExitStatus>()
  // It had its pid at least until then.
  let lastSeen = 0
  const look = Effect.gen(function*() {
    const now = yield* host.ticks
    const isThere = yield* lives(host, identity)
    if (isThere) lastSeen = now
    return isThere
  })
  const readEnd = Effect.sync(() => Client.readEnded(directory))
  const isHolderGone = Effect.map(lives(host, held.holder), (isThere) => !isThere)
  /** Where nobody tells us: what was written down, for which a holder has a moment once its process is gone. */
  const found = Effect.gen(function*() {
    const before = yield* readEnd
    if (before !== undefined) return statusOf(before)
    yield* pollUntil(Effect.map(look, (isThere) => !isThere), { longest: 500 })
    const isWritten = Effect.map(readEnd, (ended) => ended !== undefined)
    yield* Effect.timeoutOption(pollUntil(Effect.zipWith(isHolderGone, isWritten, (a, b) => a || b)), lastWriting)
    const after = yield* readEnd
    if (after !== undefined) return statusOf(after)
    if (identity.bootId !== host.bootId) return ExitStatus.lost("the host was started anew since", "identity")
    const why = (yield* isHolderGone)
      ? "its holder was killed"
      : `its holder has not written it down within ${lastWriting}`
    return ExitStatus.lost(why, "identity")
  })
  const settle = Effect.gen(function*() {
    return (hand === undefined ? undefined : yield* heard(hand.socket)) ?? (yield* found)
  })
  const letGo = Deferred.makeUnsafe<void>()
  yield* Effect.addFinalizer(() => Deferred.succeed(letGo, undefined))
  yield* Effect.flatMap(settle, (status) => Deferred.succeed(told, status)).pipe(
    Effect.forkScoped({ startImmediately: true })
  )
  // Who has let go of it is not told any more, and may still wait for it, or end it: an outer scope's finalizer does.
  const foundOut = Effect.tap(found, (status) => Deferred.succeed(told, status))
  const exit = Effect.raceFirst(Deferred.await(told), Effect.andThen(Deferred.await(letGo), foundOut))
  const poll = Effect.gen(function*() {
    const status = yield* Effect.flatMap(Deferred.poll(told), Effect.transposeOption)
    if (Option.isSome(status) || !Deferred.isDoneUnsafe(letGo) || (yield* look)) return status
    return Option.some(yield* foundOut)
  })

  const signal: HeldProcess["signal"] = (name) =>
    Effect.flatMap(look, (isThere) => isThere ? Effect.asVoid(host.kill(pid, name)) : Effect.void)
  const shutdown = yield* Shutdown.make(
    Target.make(
      host,
      {
        pid,
        startTime: identity.startTime,
        poll,
        exit,
        signal,
        pinnedUntil: () => Deferred.isDoneUnsafe(told) ? lastSeen : undefined
      },
      killScope,
      mark
    ),
    options.policy ?? ShutdownPolicy.defaults,
    { onEvent: options.onShutdown }
  )

  let hasLeft = false
  /** With all that it has still to write down. One that cannot, on a full disk, is not waited for. */
  const holderGone = Effect.raceFirst(
    pollUntil(isHolderGone),
    Effect.andThen(pollUntil(Effect.map(readEnd, (ended) => ended !== undefined)), Effect.sleep(leaving))
  ).pipe(
    Effect.timeoutOption(lastWriting),
    Effect.andThen(Effect.sync(() => {
      hasLeft = true
    }))
  )
  const end: HeldProcess["shutdown"] = (request) =>
    Effect.tap(shutdown.run(request), () => hasLeft || !Deferred.isDoneUnsafe(told) ? Effect.void : holderGone)

  const output = (stream: Protocol.StreamName) => {
    const from = options.fromStart || hand === undefined ? 0 : hand[stream]
    return Stream.map(follow({ directory, stream, from }), ({ bytes }) => bytes)
  }
  return {
    identity,
    pid,
    killScope,
    note: held.note,
    exit,
    poll,
    stdout: output("stdout"),
    stderr: output("stderr"),
    tail: Effect.all({ stdout: tailOf(directory, "stdout"), stderr: tailOf(directory, "stderr") }, { concurrency: 2 }),
    channel: (fd) =>
      held.channels.includes(fd)
        ? fromDuplex(openChannel(directory, fd, hand?.name))
        : Effect.fail(fromReason(ProcessErrorReason.NoSuchDescriptor({ fd, available: held.channels }))),
    signal,
    shutdown: end,
    extendShutdown: shutdown.extend
  }
})
