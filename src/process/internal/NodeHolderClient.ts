import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as NodeFs from "node:fs"
import * as NodeNet from "node:net"
import * as Protocol from "./holderProtocol.ts"
import * as HolderSchema from "./holderSchema.ts"
import { attempt, errnoName, isShortage, pathOnly, withReserve } from "./NodeErrno.ts"

/** How long a holder may take to answer. It does nothing else. */
const patience = "5 seconds"

/** `isGone`: nobody listens, in difference to one that does not make sense. */
export class Unreachable extends Data.TaggedError("Unreachable")<{ readonly isGone: boolean; readonly why: string }> {}

/** A path to the socket that is short enough whatever the directory's is (unix(7)): by way of proc(5). */
const withSocketPath = <A>(directory: string, use: (path: string) => A): A => {
  const fd = NodeFs.openSync(directory, NodeFs.constants.O_DIRECTORY | pathOnly)
  try {
    // connect(2) has found the socket when this returns.
    return use(`/proc/self/fd/${fd}/${Protocol.files.socket}`)
  } finally {
    NodeFs.closeSync(fd)
  }
}

const gone = (cause: unknown) => new Unreachable({ isGone: true, why: errnoName(cause) })

const open = (directory: string): Effect.Effect<NodeNet.Socket, Unreachable, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.try({
      try: () => withSocketPath(directory, (path) => NodeNet.createConnection({ path, allowHalfOpen: true })),
      catch: gone
    }),
    (socket) =>
      Effect.sync(() => {
        if (!socket.destroyed) socket.destroySoon()
      })
  ).pipe(
    Effect.tap((socket) =>
      Effect.callback<void, Unreachable>((resume) => {
        // Stays, for what comes late.
        socket.on("error", (cause) => resume(Effect.fail(gone(cause)))).once("connect", () => resume(Effect.void))
      })
    )
  )

/** Reads one line; what comes after it stays in the socket. */
const readLine = (socket: NodeNet.Socket): Effect.Effect<string, Unreachable> =>
  Effect.callback((resume) => {
    let head = Buffer.alloc(0)
    const stop = (): void => {
      socket.off("readable", look).off("end", leave).off("close", leave)
    }
    const leave = (): void => {
      stop()
      resume(Effect.fail(new Unreachable({ isGone: true, why: "it hung up" })))
    }
    const look = (): void => {
      const bytes: unknown = socket.read()
      if (!(bytes instanceof Uint8Array)) return
      head = Buffer.concat([head, bytes])
      const at = head.indexOf(0x0a)
      if (at < 0 && head.length <= Protocol.longestLine) return look()
      stop()
      if (at < 0) return resume(Effect.fail(new Unreachable({ isGone: false, why: "it answers without an end" })))
      const rest = head.subarray(at + 1)
      if (rest.length > 0) socket.unshift(rest)
      resume(Effect.succeed(head.toString("utf8", 0, at)))
    }
    socket.on("readable", look).once("end", leave).once("close", leave)
    return Effect.sync(stop)
  })

const decodeAnswer = Schema.decodeUnknownEffect(Schema.fromJsonString(HolderSchema.Answer))

/** A connection that has been answered, until the scope closes. */
export const ask = (
  directory: string,
  request: Protocol.Request
): Effect.Effect<
  { readonly socket: NodeNet.Socket; readonly answer: HolderSchema.Answer },
  Unreachable,
  Scope.Scope
> =>
  Effect.gen(function*() {
    const socket = yield* open(directory)
    socket.write(`${JSON.stringify(request)}\n`)
    const text = yield* readLine(socket)
    const answer = yield* Effect.mapError(
      decodeAnswer(text),
      () =>
        new Unreachable({ isGone: false, why: `it answers ${JSON.stringify(text.slice(0, 100))}: another version?` })
    )
    return { socket, answer }
  }).pipe(Effect.timeoutOrElse({
    duration: patience,
    orElse: () => Effect.fail(new Unreachable({ isGone: false, why: "it does not answer: has it been stopped?" }))
  }))

/** What a holder has written down, of a size that it can have. */
const read = (directory: string, name: string, limit: number): Buffer | undefined =>
  attempt(() => {
    const fd = NodeFs.openSync(`${directory}/${name}`, NodeFs.constants.O_RDONLY | NodeFs.constants.O_NOFOLLOW)
    try {
      const { size } = NodeFs.fstatSync(fd)
      return size > limit ? undefined : NodeFs.readFileSync(fd)
    } finally {
      NodeFs.closeSync(fd)
    }
  })

const decodeClaim = Schema.decodeUnknownOption(Schema.fromJsonString(HolderSchema.Claim))
const decodeEnded = Schema.decodeUnknownOption(Schema.fromJsonString(HolderSchema.Ended))

/** `undefined` when there is no such file, none when it makes no sense. */
export const readClaim = (directory: string): Option.Option<HolderSchema.Claim> | undefined => {
  if (attempt(() => NodeFs.lstatSync(`${directory}/${Protocol.files.held}`)) === undefined) return undefined
  return decodeClaim(read(directory, Protocol.files.held, Protocol.longestLine)?.toString("utf8"))
}

export const readEnded = (directory: string): HolderSchema.Ended | undefined =>
  Option.getOrUndefined(decodeEnded(read(directory, Protocol.files.ended, Protocol.longestLine)?.toString("utf8")))

/** A tail is as long as its maker wanted it, so the limit is only there for what is none. */
const longestTail = 2 ** 30

export const readTail = (directory: string, stream: Protocol.StreamName): Uint8Array =>
  read(directory, Protocol.files[stream], longestTail) ?? new Uint8Array(0)

export const readRest = (directory: string, fd: number): Uint8Array | undefined =>
  read(directory, Protocol.channelFile(fd), longestTail)

/** Sees to it that no holder starts here any more; `false` when one has been before us, or where descriptors are short. */
export const preclude = (directory: string): boolean => {
  const claim: Protocol.Claim = { version: Protocol.version, holder: null, mark: "" }
  const fresh = `${directory}/${Protocol.files.held}.none-${process.pid}`
  try {
    withReserve(() => NodeFs.writeFileSync(fresh, JSON.stringify(claim), { mode: 0o600 }))
    NodeFs.linkSync(fresh, `${directory}/${Protocol.files.held}`)
    return true
  } catch (cause) {
    return errnoName(cause) !== "EEXIST" && !isShortage(cause)
  } finally {
    attempt(() => NodeFs.rmSync(fresh, { force: true }))
  }
}

/** What is wrong with a directory, if anything is: only its owner, whom we trust to be us, may look into it. */
export const faultOf = (directory: string): { readonly isThere: boolean; readonly why: string } | undefined => {
  const stat = attempt(() => NodeFs.statSync(directory))
  if (stat === undefined) return { isThere: false, why: "there is no such directory" }
  if (!stat.isDirectory()) return { isThere: true, why: "it is not a directory" }
  if (stat.uid !== process.getuid?.()) {
    return { isThere: true, why: `it belongs to uid ${stat.uid}: use one of our own` }
  }
  return (stat.mode & 0o077) === 0 ? undefined : { isThere: true, why: "others may look into it: chmod 0700 it" }
}

/** Is the holder here the one that this mark was made for? */
export const isOf = (directory: string, mark: string): boolean => {
  const claim = readClaim(directory)
  return claim === undefined || Option.exists(claim, (one) => one.mark === mark)
}
