/**
 * Requests to runs over sockets of this host.
 *
 * Each run listens on a name in Linux' abstract namespace (unix(7)), which is gone with the run whatever happens to it. Such
 * names have no permissions: anybody may connect, and may have taken the name before. So both sides prove that they know a
 * key that only this user can read, before anything is asked or told:
 *
 * ```
 *   visitor ▸ nonce            run ▸ nonce, HMAC of both nonces            visitor ▸ request, HMAC of it and both nonces
 * ```
 *
 * The name is a part of each HMAC, so that a stranger cannot pass on what a run says to him as a word of his own. A visitor
 * who does not get through within a second is cut off. There is room for 64 requests, and for 8 more who have not said who
 * they are.
 *
 * From then on both sides speak in frames (`internal/frames.ts`). The kernel gives the bytes of a connection to its two ends
 * only, so they need no proof of their own.
 *
 * Abstract names are those of a network namespace: a run in another one is not found.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as NodeCrypto from "node:crypto"
import * as NodeNet from "node:net"
import { MachineId } from "../microvm/MachineSpec.ts"
import { Sha256 } from "../microvm/Snapshot.ts"
import * as OwnedFiles from "../process/OwnedFiles.ts"
import { ProcessHost } from "../process/ProcessHost.ts"
import * as Control from "./Control.ts"
import * as ControlRequest from "./ControlRequest.ts"
import { makePeer, maxLine, type Peer } from "./internal/peer.ts"
import { refused } from "./internal/refused.ts"
import * as Session from "./internal/session.ts"
import { Broken } from "./internal/session.ts"
import * as RunDirectory from "./RunDirectory.ts"

const version = 1
const keyBytes = 32
/** Requests under way at a run. */
const maxVisitors = 64
/** Those who have not said yet who they are. */
const maxStrangers = 8
const introduceWithin = Duration.seconds(1)
/** What is around a request in its line. */
const roomForProof = 256

const Hello = Schema.fromJsonString(Schema.Struct({ version: Schema.Literal(version), nonce: Sha256 }))
const Challenge = Schema.fromJsonString(Schema.Struct({ nonce: Sha256, proof: Sha256 }))
/** The request is a text of its own, as its proof is that of the very bytes. */
const Ask = Schema.fromJsonString(Schema.Struct({ request: Schema.String, proof: Sha256 }))
const Request = Schema.fromJsonString(ControlRequest.Request)

/** The other side does not know the key. */
class Unproven extends Data.TaggedError("Unproven")<{}> {}

const makeNonce = Effect.sync(() => NodeCrypto.randomBytes(32).toString("hex"))

const prove = (key: Uint8Array, ...what: ReadonlyArray<string>): string =>
  NodeCrypto.createHmac("sha256", key).update(JSON.stringify(what)).digest("hex")

const checkProof = (proof: string, expected: string): Effect.Effect<void, Unproven> =>
  NodeCrypto.timingSafeEqual(Buffer.from(proof), Buffer.from(expected)) ? Effect.void : Effect.fail(new Unproven())

/** Where the runs of one user and one state directory are found, and the key that they share. */
interface House {
  readonly key: Uint8Array
  /** What the names of its machines begin with, without the NUL of abstract names. */
  readonly prefix: string
}

const unavailable = (why: string) => Control.fail(new Control.Unavailable({ why }))

const makeHouse = (directory: string) =>
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const path = yield* Path.Path
    const file = path.join(directory, "control-key")
    const uid = process.geteuid?.() ?? 0
    const read = Effect.scoped(Effect.gen(function*() {
      const opened = yield* fs.open(file, { flag: "r" })
      const { mode, uid: owner } = yield* opened.stat
      const key = yield* opened.readAlloc(keyBytes + 1)
      if (!Option.contains(owner, uid) || (mode & 0o077) !== 0) {
        return yield* unavailable(`${file} is not this user's alone: remove it`)
      }
      if (Option.isNone(key) || key.value.length !== keyBytes) {
        return yield* unavailable(`${file} is no key: remove it`)
      }
      return key.value
    }))
    const make = Effect.scoped(Effect.gen(function*() {
      const temporary = path.join(directory, "tmp")
      yield* RunDirectory.ensurePrivate(directory)
      yield* OwnedFiles.ensureDirectory(temporary)
      const own = path.join(yield* OwnedFiles.temporaryDirectory(temporary), "control-key")
      yield* fs.writeFile(own, NodeCrypto.randomBytes(keyBytes), { flag: "wx", mode: 0o600 })
      yield* OwnedFiles.sync(own)
      // A link makes the file appear with its content; when another was quicker, his key is the key.
      yield* Effect.catchIf(fs.link(own, file), isReason("AlreadyExists"), () => Effect.void)
    }))
    const key = yield* Effect.catchIf(read, isReason("NotFound"), () => Effect.andThen(make, read))
    const home = NodeCrypto.createHash("sha256").update(yield* fs.realPath(directory)).digest("hex").slice(0, 12)
    return { key, prefix: `effect-microvm/${uid}/${home}/` } satisfies House
  }).pipe(
    Effect.catchTag("PlatformError", (error) => unavailable(`there can be no key in ${directory}: ${whyOf(error)}`))
  )

const isReason =
  (tag: PlatformError.SystemErrorTag) => (error: Control.ControlError | PlatformError.PlatformError): boolean =>
    error._tag === "PlatformError" && error.reason._tag === tag

const whyOf = ({ message, reason: { cause } }: PlatformError.PlatformError): string =>
  cause instanceof Error ? cause.message : message

const codeOf = (error: unknown): string =>
  typeof error === "object" && error !== null && "code" in error ? String(error.code) : String(error)

/** The machines whose runs listen. Others may have taken such names, too, but nobody has asked them yet. */
const listMachines = (prefix: string) =>
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const table = yield* fs.readFileString("/proc/net/unix")
    return table.split("\n").flatMap((line) => {
      // Num RefCount Protocol Flags Type St Inode Path; the flag is __SO_ACCEPTCON, that of a socket that listens.
      const [, , , flags = "0", , , , name = ""] = line.split(/\s+/)
      if ((Number.parseInt(flags, 16) & 0x10000) === 0 || !name.startsWith(`@${prefix}`)) return []
      const id = name.slice(prefix.length + 1)
      return Schema.is(MachineId)(id) ? [id] : []
    }).toSorted()
  }).pipe(Effect.orElseSucceed((): ReadonlyArray<string> => []))

/** Who connects, and what he wants. */
const introduce = ({ key }: House, address: string, peer: Peer) =>
  Effect.gen(function*() {
    const { nonce: theirs } = yield* peer.read(Hello)
    const ours = yield* makeNonce
    yield* peer.write(Challenge, { nonce: ours, proof: prove(key, "run", address, theirs, ours) })
    const { proof, request } = yield* peer.read(Ask)
    yield* checkProof(proof, prove(key, "visitor", address, theirs, ours, request))
    return yield* Effect.mapError(Schema.decodeEffect(Request)(request), () => new Broken())
  }).pipe(Effect.timeoutOrElse({ duration: introduceWithin, orElse: () => Effect.fail(new Broken()) }))

const listen = Effect.fnUntraced(function*(house: House, id: string, handle: ControlRequest.Handler) {
  const address = house.prefix + id
  const fork = yield* FiberSet.makeRuntime<never, void, never>()
  let visitors = 0
  const visitor: ControlRequest.Handler = (request, streams) =>
    Effect.suspend(() =>
      visitors > maxVisitors
        ? Effect.succeed(refused("Busy", `${maxVisitors} requests are under way at machine ${id}: try again later`))
        : handle(request, streams)
    )
  const receive = (socket: NodeNet.Socket) =>
    Effect.scoped(Effect.gen(function*() {
      const peer = yield* makePeer(socket)
      const request = yield* introduce(house, address, peer)
      yield* Effect.acquireUseRelease(
        Effect.sync(() => visitors++),
        () => Session.serve(peer, request, visitor),
        () => Effect.sync(() => visitors--)
      )
    })).pipe(Effect.ignore)
  yield* Effect.acquireRelease(
    Effect.callback<NodeNet.Server, Control.ControlError>((resume) => {
      const server = NodeNet.createServer((socket) => {
        socket.on("error", () => {})
        fork(receive(socket))
      })
      server.maxConnections = maxVisitors + maxStrangers
      server.on("error", (error) => {
        const taken = codeOf(error) === "EADDRINUSE"
        resume(unavailable(taken ? `another run has a machine ${id}, or has taken its name` : codeOf(error)))
      })
      server.listen(`\0${address}`, () => resume(Effect.succeed(server)))
    }),
    (server) => Effect.sync(() => server.close())
  )
})

const connect = (address: string): Effect.Effect<NodeNet.Socket, Broken, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<NodeNet.Socket, Broken>((resume) => {
      const socket = NodeNet.connect(`\0${address}`)
      socket.on("error", () => resume(Effect.fail(new Broken())))
      socket.on("connect", () => resume(Effect.succeed(socket)))
    }),
    (socket) => Effect.sync(() => socket.destroy())
  )

const ask = Effect.fnUntraced(function*<Q extends ControlRequest.Request, E, R>(
  house: House,
  id: string,
  request: Q,
  streams?: ControlRequest.Streams<E, R>
) {
  const address = house.prefix + id
  const { key } = house
  const machines = yield* listMachines(house.prefix)
  if (!machines.includes(id)) return yield* Control.fail(new Control.NoSuchMachine({ id, there: machines }))
  const faults = Control.faults(id)
  const text = yield* Effect.orDie(Schema.encodeEffect(Request)(request))
  const size = Buffer.byteLength(JSON.stringify(text))
  if (size > maxLine - roomForProof) {
    const why = `the command, its arguments and its environment take ${size} bytes as JSON: ` +
      `make them shorter than ${maxLine - roomForProof}, or pass them on stdin`
    return yield* Control.fail(new Control.Refused({ id, reason: "Invalid", why }))
  }

  /** The run may have no room for us just now. */
  const open = Effect.gen(function*() {
    const peer = yield* makePeer(yield* connect(address))
    const ours = yield* makeNonce
    yield* peer.write(Hello, { version, nonce: ours })
    const { nonce: theirs, proof } = yield* peer.read(Challenge)
    yield* checkProof(proof, prove(key, "run", address, ours, theirs))
    yield* peer.write(Ask, { request: text, proof: prove(key, "visitor", address, ours, theirs, text) })
    return peer
  }).pipe(
    Effect.retry({ while: (error) => error._tag === "Broken", schedule: Schedule.spaced("100 millis"), times: 20 }),
    Effect.timeoutOrElse({ duration: Session.answerWithin, orElse: () => Effect.fail(faults.silent) }),
    Effect.catchTags({
      Broken: () => Effect.fail(faults.silent),
      Unproven: () => Control.fail(new Control.Stranger({ id }))
    })
  )
  return yield* Control.toAnswer(id, request, yield* Session.visit(yield* open, faults, streams))
}, Effect.scoped)

/**
 * The runs of this user that leave what is to be known of them in this directory.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerAt = (
  directory: string
): Layer.Layer<Control.Control, never, FileSystem.FileSystem | Path.Path | ProcessHost> =>
  Layer.effect(
    Control.Control,
    Effect.gen(function*() {
      // Not all of the context: what is done here belongs to the spans and the scopes of whoever asks for it.
      const services = Context.pick(FileSystem.FileSystem, Path.Path, ProcessHost)(
        yield* Effect.context<FileSystem.FileSystem | Path.Path | ProcessHost>()
      )
      const house = Effect.provideContext(makeHouse(directory), services)
      return Control.Control.of({
        listen: Effect.fn("Control.listen")(function*(id, handle) {
          yield* listen(yield* house, id, handle)
        }),
        ask: Effect.fn("Control.ask")(function*(id, request) {
          return yield* Effect.provideContext(ask(yield* house, id, request), services)
        }),
        exec: Effect.fn("Control.exec")(function*(id, request, streams) {
          const { status } = yield* Effect.provideContext(ask(yield* house, id, request, streams), services)
          return status
        })
      })
    })
  )

/**
 * `layerAt` the state directory, as `MICROVM_STATE_DIR` and its like say.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = Layer.unwrap(Effect.map(RunDirectory.stateDirectory, layerAt))
