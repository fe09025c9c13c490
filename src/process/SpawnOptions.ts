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
 * @category options
 * @since 0.1.0
 */
export interface SpawnOptions {
  /** What dies with the process. Default `"auto"`: a cgroup where the host lets us make one, else the process group. */
  readonly killScope?: Choice | undefined
  /**
   * An existing cgroup (v2), by its path, that it starts in and that is its kill scope. It is not removed. Default: none, and
   * `killScope` decides.
   */
  readonly cgroup?: string | undefined
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
