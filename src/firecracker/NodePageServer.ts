/**
 * The server of page faults, on Linux. It needs the package `koffi`, which is an optional peer dependency.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import * as NodeFs from "node:fs/promises"
import { availableParallelism } from "node:os"
import * as FirecrackerError from "./FirecrackerError.ts"
import { counted } from "./internal/faultLoop.ts"
import * as GuestMemory from "./internal/guestMemory.ts"
import { codeOf } from "./internal/NodeAttempt.ts"
import * as NodeLibc from "./internal/NodeLibc.ts"
import { listen, meet } from "./internal/NodePageHandshake.ts"
import * as NodePageThread from "./internal/NodePageThread.ts"
import * as SocketPath from "./internal/socketPath.ts"
import { type Options, PageServer, type Peer, type Serving, type WorkingSet } from "./PageServer.ts"

type Failure = FirecrackerError.FirecrackerError

const smallPage = 4096

/** Milliseconds: some more than it takes to wake the thread that was given a page. */
const worthLooking = 0.05

interface Memory {
  readonly descriptor: number
  readonly size: number
}

const openMemory = Effect.fnUntraced(function*(
  path: string
): Effect.fn.Return<Memory, FirecrackerError.Fault, Scope.Scope> {
  const fault = (why: string): FirecrackerError.Fault => ({
    field: "memory",
    value: path,
    remedy: `give the memory file of a snapshot; this one ${why}`
  })
  const { O_NONBLOCK, O_RDONLY } = NodeFs.constants
  const handle = yield* Effect.acquireRelease(
    Effect.tryPromise({
      // A pipe without a writer would hold it up.
      try: () => NodeFs.open(path, O_RDONLY | O_NONBLOCK),
      catch: (cause) => fault(`cannot be opened: ${codeOf(cause)}`)
    }),
    (file) => Effect.promise(() => file.close())
  )
  const stat = yield* Effect.promise(() => handle.stat())
  if (!stat.isFile()) return yield* Effect.fail(fault("is no regular file"))
  return stat.size > 0 && stat.size % smallPage === 0
    ? { descriptor: handle.fd, size: stat.size }
    : yield* Effect.fail(fault(`has ${stat.size} bytes, which are no pages`))
})

const mapped = (libc: NodeLibc.Libc, length: number, descriptor?: number) =>
  Effect.acquireRelease(
    NodeLibc.attempt("memory cannot be mapped", () => libc.map(length, descriptor)),
    (address) => Effect.sync(() => libc.unmap(address, length))
  )

const nobody = (pid: number | undefined, within: Duration.Input): string =>
  `${pid === undefined ? "nobody" : `process ${pid} has not`} connected and told of a memory within ${
    Duration.format(Duration.fromInputUnsafe(within))
  }`

const start = Effect.fnUntraced(function*(
  loadLibc: Effect.Effect<NodeLibc.Libc, Failure>,
  options: Options
): Effect.fn.Return<Serving, Failure, Scope.Scope> {
  const { memory, pid, prefetch, record = false, socket, within = "30 seconds" } = options
  const scope = yield* Effect.scope
  const { libc, size, source } = yield* Effect.scoped(Effect.gen(function*() {
    const file = yield* Effect.result(openMemory(memory))
    const faults = [...SocketPath.faultsOf("socket", socket), ...(Result.isFailure(file) ? [file.failure] : [])]
    if (Result.isFailure(file) || faults.length > 0) {
      return yield* FirecrackerError.fail(new FirecrackerError.InvalidRequest({ faults }))
    }
    const loaded = yield* loadLibc
    const { descriptor, size: length } = file.success
    // It stays mapped when it is closed.
    return { libc: loaded, size: length, source: yield* Scope.provide(mapped(loaded, length, descriptor), scope) }
  }))
  const thread = yield* NodePageThread.make(libc)
  const listening = yield* Scope.fork(scope)
  const listener = yield* Scope.provide(listen(libc, options), listening)

  const ready = yield* Deferred.make<Peer, Failure>()
  const ended = yield* Deferred.make<"Gone" | "Stopped", Failure>()
  // Shared with the thread, which writes to them.
  const counters = new Float64Array(new SharedArrayBuffer(8 * counted.length))
  const recorded = new Int32Array(new SharedArrayBuffer(4))
  let order = new Uint32Array(new SharedArrayBuffer(0))
  let pageSize: WorkingSet["pageSize"] = smallPage

  const serve = Effect.gen(function*() {
    const { faults, message, peer } = yield* meet(libc, thread, listener, pid).pipe(
      Effect.timeoutOrElse({ duration: within, orElse: () => Effect.fail(NodeLibc.failure(nobody(pid, within))) }),
      Effect.ensuring(Scope.close(listening, Exit.void))
    )
    const told = GuestMemory.read(message, size)
    if (Result.isFailure(told)) return yield* NodeLibc.failure(told.failure)
    const { regions } = told.success
    pageSize = told.success.pageSize
    const gone = yield* NodeLibc.opened("its process cannot be watched", () => libc.pidfd(peer.pid))
    const zeros = pageSize === smallPage ? 0 : yield* mapped(libc, pageSize)
    if (record) order = new Uint32Array(new SharedArrayBuffer(4 * size / pageSize))
    const runs = prefetch === undefined ? new Float64Array(0) : GuestMemory.runs(prefetch, pageSize, size)
    // On one processor, who looks keeps those from running who would ask.
    const lookFor = availableParallelism() > 1 ? worthLooking : 0
    return yield* thread.serve(
      { faults, gone, zeros },
      { regions, pageSize, source, size, runs, counters, recorded, order, lookFor },
      () => Deferred.doneUnsafe(ready, Effect.succeed(peer))
    )
  })
  yield* Effect.scoped(serve).pipe(
    Effect.onExit((exit) => {
      const isStopped = Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)
      const unready = Exit.isFailure(exit) && !isStopped
        ? Exit.failCause(exit.cause)
        : Exit.fail(NodeLibc.failure("it was stopped"))
      return Effect.andThen(
        Deferred.done(ended, isStopped ? Exit.succeed("Stopped") : exit),
        Deferred.done(ready, unready)
      )
    }),
    Effect.exit,
    Effect.forkScoped({ startImmediately: true })
  )

  return {
    ready: Deferred.await(ready),
    ended: Deferred.await(ended),
    stats: Effect.sync(() => {
      const [faults = 0, copied = 0, zeroed = 0, prefetched = 0, removed = 0] = counters
      return { faults, copied, zeroed, prefetched, removed }
    }),
    workingSet: Effect.sync(() => ({ pageSize, pages: Array.from(order.subarray(0, Atomics.load(recorded, 0))) }))
  }
})

/**
 * Each server has a thread of its own, which takes some 15 MiB, and ends with it. The event loop is needed only until
 * Firecracker has connected: pages are served while it is blocked, too.
 *
 * That the machine is gone is told by a pidfd of its process (pidfd_open(2), Linux 5.3), since Firecracker before 1.12 hangs
 * up after its message.
 *
 * ```ts import.meta.vitest
 * import { NodePageServer, PageServer } from "effect-microvm-runtime/firecracker"
 * import * as Effect from "effect/Effect"
 * const program = PageServer.PageServer.use((server) => server.start({ socket: "/run/vm-1/pages.sock", memory: "/nowhere" }))
 * const failing = program.pipe(Effect.scoped, Effect.flip, Effect.provide(NodePageServer.layer))
 * const { reason } = await Effect.runPromise(failing)
 * reason._tag // => "InvalidRequest"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<PageServer> = Layer.effect(
  PageServer,
  Effect.map(Effect.cached(NodeLibc.load), (libc) => ({
    usable: Effect.asVoid(libc),
    start: Effect.fn("PageServer.start")((options: Options) => start(libc, options))
  }))
)
