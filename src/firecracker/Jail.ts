/**
 * Makes jails and takes them away, with all that the jailer leaves: it removes nothing itself.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { KillScope } from "../process/KillScope.ts"
import type { ProcessIdentity } from "../process/ProcessIdentity.ts"
import type { FirecrackerError } from "./FirecrackerError.ts"
import type { JailFile, JailHost, JailPath, JailPlan, Place } from "./JailPlan.ts"

/**
 * What could not be taken away, and why.
 *
 * @category models
 * @since 0.1.0
 */
export interface Left {
  readonly path: string
  readonly why: string
}

/**
 * A jail that the jailer can be started for.
 *
 * @category models
 * @since 0.1.0
 */
export interface PreparedJail {
  readonly plan: JailPlan
  /** Was there one of this id whose machine had ended, and that nobody had removed? It is gone. */
  readonly hadRemains: boolean
  /** What dies with Firecracker: on a host with cgroups of version 2, all that is in the machine's cgroup. */
  readonly killScope: KillScope
  /**
   * Waits until Firecracker is the process that the pid file names. That has to be a process of this jail: Firecracker itself
   * could write another number there. Fails with `HostFailed` after `within` (default 10 seconds), and when it has ended.
   */
  readonly find: (within?: Duration.Input) => Effect.Effect<ProcessIdentity, FirecrackerError>
  /** Puts a copy, the node of a block device, or an empty file into a jail where Firecracker is at work. */
  readonly add: (file: Exclude<JailFile, { readonly how: "bind" }>) => Effect.Effect<Place, FirecrackerError>
  /**
   * Moves a file that Firecracker has made in the jail's root out of it; it is ours then. One of more than `maxBytes` is refused
   * (default: any is taken): it may say to be larger than could ever be read.
   */
  readonly collect: (
    file: JailPath,
    to: string,
    options?: { readonly maxBytes?: number | undefined }
  ) => Effect.Effect<void, FirecrackerError>
  /**
   * Takes the jail away, with whatever still runs in it, and tells what is left. The end of the scope does the same, and
   * logs what is left; done before, it has nothing to do then.
   */
  readonly release: Effect.Effect<ReadonlyArray<Left>>
}

/**
 * - `observe`: looks at what a plan has to know of the host. Paths may lead over symbolic links. Fails with `InvalidRequest`.
 * - `prepare`: makes the jail and puts its files into it, for as long as the scope lasts. Fails with `InvalidRequest` for
 *   files that are missing or cannot be read by the jail's user, all at once and before anything is made; with `HostFailed`
 *   when a machine of this id runs or is being made; and when a step fails. Then, and when it is interrupted, nothing is
 *   left of it.
 *
 * Two programs can use the same base: a jail belongs to the one that has its lock, `<id>.lock` beside it.
 *
 * @category services
 * @since 0.1.0
 */
export class Jail extends Context.Service<Jail, {
  readonly observe: (options: {
    /** Path of Firecracker. */
    readonly executable: string
    /** Default `/srv/jailer`, the jailer's own. */
    readonly base?: string | undefined
  }) => Effect.Effect<JailHost, FirecrackerError>
  readonly prepare: (plan: JailPlan) => Effect.Effect<PreparedJail, FirecrackerError, Scope.Scope>
}>()("effect-microvm-runtime/firecracker/Jail") {}
