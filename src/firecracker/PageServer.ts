/**
 * Serves the memory of restored machines page by page, over userfaultfd(2). So a machine runs before its memory is read, and
 * one with huge pages can be restored at all.
 *
 * ```
 *   start ▸ PUT /snapshot/load with memBackend(socket) ▸ ready ▸ … ▸ ended
 * ```
 *
 * Firecracker connects, tells where its memory is, and hands over its userfaultfd (snapshotting/
 * handling-page-faults-on-snapshot-resume.md in its docs). From then on each page that is touched for the first time is
 * copied from the memory file. A page that the balloon took away, or memory hot-unplug, comes back as zeros.
 *
 * **A machine whose pages nobody serves stands still for ever at its next fault**, and so may the API calls that touch its
 * memory. See that it is killed then: `watch`.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type * as FirecrackerError from "./FirecrackerError.ts"
import type { SnapshotLoadParams } from "./FirecrackerSchema.ts"

/**
 * The pages that a machine asked for, in the order of its first use of them: its working set. `pages` are their positions in
 * the memory file, in units of `pageSize` bytes. It is good for every machine that is restored from that snapshot.
 *
 * ```ts import.meta.vitest
 * import { PageServer } from "effect-microvm-runtime/firecracker"
 * import * as Schema from "effect/Schema"
 * const Text = Schema.fromJsonString(PageServer.WorkingSet)
 * Schema.encodeSync(Text)({ pageSize: 4096, pages: [7, 0, 1] }) // => "{\"pageSize\":4096,\"pages\":[7,0,1]}"
 * ```
 *
 * @category schemas
 * @since 0.1.0
 */
export const WorkingSet = Schema.Struct({
  pageSize: Schema.Literals([4096, 2_097_152]),
  pages: Schema.Array(Schema.Int.check(Schema.isGreaterThanOrEqualTo(0)))
})

/**
 * @category models
 * @since 0.1.0
 */
export type WorkingSet = typeof WorkingSet.Type

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /**
   * Where to listen, as seen from this host: in its root directory for a Firecracker in a jail. What was left behind there
   * by another server is removed. The file is for its owner alone, and gone as soon as Firecracker has connected.
   */
  readonly socket: string
  /**
   * The memory file of the snapshot. It must stay as it is while it is served, and is never written to. What a machine has
   * beyond its end is zero; that a file was cut short before is not noticed.
   */
  readonly memory: string
  /** Who is to own the socket: the user that Firecracker runs as, if that is not ours. */
  readonly owner?: { readonly uid: number; readonly gid: number } | undefined
  /** The process that may connect, as its number is here; others are hung up on. Default: any that may open the socket. */
  readonly pid?: number | undefined
  /** From the start until Firecracker has told of its memory. Default 30 seconds. */
  readonly within?: Duration.Input | undefined
  /** Is copied as soon as possible, without being asked for; faults come first. Default nothing. */
  readonly prefetch?: WorkingSet | undefined
  /** Are the pages that are asked for to be remembered? Takes 4 bytes for each. Default false. */
  readonly record?: boolean | undefined
}

/**
 * Who has connected, by SO_PEERCRED (unix(7)).
 *
 * @category models
 * @since 0.1.0
 */
export interface Peer {
  readonly pid: number
  readonly uid: number
  readonly gid: number
}

/**
 * How much was done: `faults` that were heard of, and pages. Two threads that touch the same page are two faults.
 *
 * @category models
 * @since 0.1.0
 */
export interface Stats {
  readonly faults: number
  /** From the file, because of a fault. */
  readonly copied: number
  /** Because of a fault, beyond the file's end or where it was removed. */
  readonly zeroed: number
  /** From the file, before there was a fault. */
  readonly prefetched: number
  /** Given back by the machine. */
  readonly removed: number
}

/**
 * The server of one machine.
 *
 * @category models
 * @since 0.1.0
 */
export interface Serving {
  /** Waits until Firecracker has connected and its memory is served. */
  readonly ready: Effect.Effect<Peer, FirecrackerError.FirecrackerError>
  /**
   * Waits until it does not serve any more: the machine is `Gone`, or it was `Stopped` by the close of its scope. Fails with
   * `PageServerFailed` if that is not what was wanted.
   */
  readonly ended: Effect.Effect<"Gone" | "Stopped", FirecrackerError.FirecrackerError>
  /** As of now. */
  readonly stats: Effect.Effect<Stats>
  /** What was recorded until now. Pages that were prefetched are not asked for, so they are not in it. */
  readonly workingSet: Effect.Effect<WorkingSet>
}

/**
 * - `usable`: fails with `PageServerFailed` when there can be no server here.
 * - `start`: listens and returns; the server ends with the scope. Fails with `InvalidRequest`, and as `usable` does.
 *
 * `NodePageServer.layer` has the real one.
 *
 * @category services
 * @since 0.1.0
 */
export class PageServer extends Context.Service<PageServer, {
  readonly usable: Effect.Effect<void, FirecrackerError.FirecrackerError>
  readonly start: (options: Options) => Effect.Effect<Serving, FirecrackerError.FirecrackerError, Scope.Scope>
}>()("effect-microvm-runtime/firecracker/PageServer") {}

/**
 * The `mem_backend` of `PUT /snapshot/load` for a server at this path, which is as Firecracker sees it: in a jail from its
 * root directory.
 *
 * ```ts import.meta.vitest
 * import { PageServer } from "effect-microvm-runtime/firecracker"
 * PageServer.memBackend("/pages.sock") // => { backend_type: "Uffd", backend_path: "/pages.sock" }
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const memBackend = (path: string) =>
  ({ backend_type: "Uffd", backend_path: path }) as const satisfies SnapshotLoadParams["mem_backend"]

/**
 * Waits for the end of a server; if it has failed, kills the machine, which would stand still otherwise, and fails with
 * the same error.
 *
 * ```ts import.meta.vitest
 * import { FirecrackerError, PageServer } from "effect-microvm-runtime/firecracker"
 * import * as Effect from "effect/Effect"
 * const died = FirecrackerError.fail(new FirecrackerError.PageServerFailed({ why: "no memory" }))
 * const program = PageServer.watch({ ended: died }, () => Effect.log("SIGKILL"))
 * Effect.runSync(Effect.flip(program)).message // => "The server of page faults failed: no memory"
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const watch = <R>(
  serving: Pick<Serving, "ended">,
  kill: (error: FirecrackerError.FirecrackerError) => Effect.Effect<unknown, never, R>
): Effect.Effect<void, FirecrackerError.FirecrackerError, R> =>
  Effect.asVoid(Effect.tapError(serving.ended, (error) => Effect.uninterruptible(kill(error))))
