/** How a Firecracker comes to hand over its memory. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as NodeFs from "node:fs"
import type * as FirecrackerError from "../FirecrackerError.ts"
import type { Options, Peer } from "../PageServer.ts"
import { attempt, close, failure, type Libc, opened } from "./NodeLibc.ts"
import type { PageThread } from "./NodePageThread.ts"
import * as NodeSocketPath from "./NodeSocketPath.ts"

type Failure = FirecrackerError.FirecrackerError

/** Listens until the scope closes; then the file of the socket is gone, too. */
export const listen = Effect.fnUntraced(function*(
  libc: Libc,
  { owner, socket }: Options
): Effect.fn.Return<number, Failure, Scope.Scope> {
  const what = `cannot bind ${socket}`
  const { path } = yield* Effect.acquireRelease(
    attempt(what, () => NodeSocketPath.open(socket)),
    (alias) => Effect.sync(alias.close)
  )
  yield* attempt(what, () => {
    if (NodeFs.lstatSync(path, { throwIfNoEntry: false })?.isSocket() === true) NodeFs.unlinkSync(path)
  })
  const listener = yield* opened(what, () => libc.bind(path))
  yield* Effect.addFinalizer(() => Effect.ignore(attempt(what, () => NodeFs.unlinkSync(path))))
  yield* attempt(what, () => {
    // Whoever has the directory, a user in a jail say, could have put a link there.
    if (owner !== undefined) NodeFs.lchownSync(path, owner.uid, owner.gid)
    libc.listen(listener)
  })
  return listener
})

export interface Introduction {
  readonly peer: Peer
  readonly message: string
  readonly faults: number
}

/** More than any message of Firecracker's has. It is sent as a whole, and nothing comes after it. */
const mostOfMessage = 65_536

/** Waits for the process, or for any, and for what it has to tell. Descriptors are open until the scope closes. */
export const meet = Effect.fnUntraced(function*(
  libc: Libc,
  thread: PageThread,
  listener: number,
  pid: number | undefined
): Effect.fn.Return<Introduction, Failure, Scope.Scope> {
  /** Undefined when it is nobody that is waited for. */
  const accept = Effect.acquireRelease(
    attempt("no connection can be made", () => {
      const connection = libc.accept(listener)
      if (connection === undefined) return undefined
      const peer = libc.peerOf(connection)
      if (pid === undefined || peer.pid === pid) return { connection, peer }
      NodeFs.closeSync(connection)
      return undefined
    }),
    (accepted) => close(accepted?.connection)
  )
  const receive = (connection: number) =>
    Effect.acquireRelease(
      attempt("its message cannot be received", () => libc.receive(connection, mostOfMessage)),
      (received) => close(received?.descriptor)
    )

  let met = yield* Effect.andThen(thread.untilReadable(listener), accept)
  while (met === undefined) met = yield* Effect.andThen(thread.untilReadable(listener), accept)
  const { connection, peer } = met
  yield* thread.untilReadable(connection)
  const received = yield* receive(connection)
  const faults = received?.descriptor
  if (received === undefined || faults === undefined) return yield* failure("no descriptor came with its message")
  yield* attempt("it sent another descriptor than a userfaultfd", () => {
    const what = NodeFs.readlinkSync(`/proc/self/fd/${faults}`)
    if (what !== "anon_inode:[userfaultfd]") throw new Error(what)
    libc.makeNonBlocking(faults)
  })
  return { peer, message: Buffer.from(received.bytes).toString(), faults }
})
