/**
 * How a child process is kept.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { ShutdownEvent } from "../lifecycle/Shutdown.ts"
import type { ShutdownPolicy } from "../lifecycle/ShutdownPolicy.ts"
import type { Signal } from "../lifecycle/Signal.ts"
import type { Choice } from "./KillScope.ts"

/**
 * Existing cgroups, by their paths in the file system. Whoever starts in them is in all of them before it runs its first
 * instruction, and so is all that it starts; none is removed. One that cannot be entered is the end of it, with exit code 125.
 *
 * @category models
 * @since 0.1.0
 */
export interface CGroups {
  /** Of version 2: it is the kill scope, too. Default: none, and the process group is. */
  readonly path?: string | undefined
  /** Of version 1, one for each hierarchy that has a controller (cgroups(7)). Nothing can be killed by them. Default none. */
  readonly v1?: ReadonlyArray<string> | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface SpawnOptions {
  /** What dies with the process. Default `"auto"`: a cgroup where the host lets us make one, else the process group. */
  readonly killScope?: Choice | undefined
  /** What it starts in, instead of what `killScope` says. Default none. */
  readonly cgroup?: CGroups | undefined
  /**
   * How it is asked to end. Default: the command's own `killSignal` and `forceKillAfter` if it has any, else
   * `ShutdownPolicy.defaults` (SIGTERM, 2 seconds, SIGKILL).
   */
  readonly policy?: ShutdownPolicy<Signal> | undefined
  /** How much of the end of stdout and of stderr is kept, in bytes. Default 64 KiB each. */
  readonly tailBytes?: number | undefined
  /** If we are killed, even by SIGKILL, the child is killed too. Default `true`. */
  readonly dieWithParent?: boolean | undefined
  /** Told of each event of a shutdown, in order; keep it short. */
  readonly onShutdown?: ((event: ShutdownEvent) => Effect.Effect<void>) | undefined
}
