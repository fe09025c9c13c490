/**
 * Processes that outlive us: a small program, the holder, owns the process, its output and its descriptors, and whoever
 * comes later gets hold of it again.
 *
 * ```
 *   we ──spawn──▶ holder ──▶ process          we are killed, and others come:
 *    └──hand, output, channels──┘               attach ──▶ the same holder, or what it has written down
 * ```
 *
 * A holder has a directory that is its user's alone (mode 0700): that is what keeps others from its socket. When the process
 * ends, the holder writes down how, with the last of its output, and ends too. When the holder is killed, the kernel kills
 * the process (PR_SET_PDEATHSIG in prctl(2), by setpriv(1) where that is there).
 *
 * Whoever removes the directory ends the process, once nobody has hold of it: nobody could ever get hold of it again.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as ChildProcess from "effect/process/ChildProcess"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type { ShutdownEvent } from "../lifecycle/Shutdown.ts"
import type { ShutdownPolicy } from "../lifecycle/ShutdownPolicy.ts"
import type { Signal } from "../lifecycle/Signal.ts"
import type { Process } from "./Process.ts"
import type { ProcessError } from "./ProcessError.ts"
import type { CGroups } from "./SpawnOptions.ts"

/**
 * A process that is held. Closing the scope lets go of it, and ends nothing: call `shutdown` for that. Who has
 * let go of it may still do so, and await `exit`, which is then looked for at most every half second.
 *
 * What is other than with a `Process` of ours:
 *
 * - `exit` is the real status also for those who have attached, and `Lost` when the holder was killed, or could not write it down.
 * - `stdout` and `stderr` start where it was got hold of, with its start for the one who has spawned it. There may be any
 *   number of readers. None holds the process up: one that is behind by more than the tail loses the oldest bytes.
 * - `channel` may be taken one at a time. When its user goes, it stays open towards the process, and what the process writes
 *   waits for the next user: up to 256 KiB, then the process has to wait. What the kernel has taken for a user that went is
 *   gone with it, and half-closing it does nothing.
 * - `shutdown` also waits, for a second at most, until the holder has written down how it ended and, for a moment, until it is
 *   gone: only who does not read what is still there for him can keep it longer.
 * - There is no `stdin`.
 *
 * @category models
 * @since 0.1.0
 */
export interface HeldProcess extends Omit<Process, "stdin"> {
  /** What was given at its spawn for those who attach. */
  readonly note: string
}

/**
 * @category options
 * @since 0.1.0
 */
export interface AttachOptions {
  /** The absolute path of the directory that the process is held in. */
  readonly directory: string
  /** How `shutdown` asks it to end. Default `ShutdownPolicy.defaults`. */
  readonly policy?: ShutdownPolicy<Signal> | undefined
  /** Told of each event of a shutdown, in order; keep it short. */
  readonly onShutdown?: ((event: ShutdownEvent) => Effect.Effect<void>) | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface HoldOptions extends AttachOptions {
  /** What it starts in; its holder does not. Default none. */
  readonly cgroup?: CGroups | undefined
  /** How much of the end of stdout and of stderr is kept, in bytes. Default 64 KiB each. */
  readonly tailBytes?: number | undefined
  /** What others have to know to go on with it, in 16,384 characters at most; no secret. Default empty. */
  readonly note?: string | undefined
  /** Descriptors of which the last 16 KiB are handed to each user once more, so that none misses a notice. Default none. */
  readonly replay?: ReadonlyArray<number> | undefined
}

/**
 * Some output, and how many bytes came before it. The position jumps where bytes were dropped.
 *
 * @category models
 * @since 0.1.0
 */
export interface Piece {
  readonly position: number
  readonly bytes: Uint8Array
}

/**
 * @category options
 * @since 0.1.0
 */
export interface FollowOptions {
  readonly directory: string
  readonly stream: "stdout" | "stderr"
  /** Start at this position. Default: at the oldest byte that is there. */
  readonly from?: number | undefined
  /** Wait for more until the process ends. Default `true`. */
  readonly wait?: boolean | undefined
}

/**
 * What became of a process that was to be destroyed:
 *
 * - `Absent`: nothing was alive.
 * - `Destroyed`: it or its holder was alive, and is gone; in a dry run, would be.
 * - `Foreign`: the directory is not ours.
 * - `Stuck`: it cannot be ended.
 *
 * @category models
 * @since 0.1.0
 */
export type Destruction =
  | { readonly _tag: "Absent" | "Destroyed" }
  | { readonly _tag: "Foreign" | "Stuck"; readonly why: string }

/**
 * @category services
 * @since 0.1.0
 */
export class ProcessHolder extends Context.Service<ProcessHolder, {
  /**
   * Starts a command under a holder of its own, and takes hold of it. `directory` must be empty, ours, and of mode 0700. After
   * a failure or an interruption nothing is left but files in it.
   *
   * The command's stdin is empty: leave it out or `"ignore"` it. Its output is kept or ignored, and of additional descriptors
   * each is a channel.
   */
  readonly spawn: (
    command: ChildProcess.StandardCommand,
    options: HoldOptions
  ) => Effect.Effect<HeldProcess, ProcessError, Scope.Scope>
  /**
   * Takes hold of a process again. One that has ended can be taken hold of too, for its status, the last of its output, and
   * what nobody has read from its channels. Fails with `NotHeld` where there is none, with `HandTaken` when another has hold
   * of it; one that has just died has not.
   */
  readonly attach: (options: AttachOptions) => Effect.Effect<HeldProcess, ProcessError, Scope.Scope>
  /** The output of a process, also while another has hold of it, and after its end. */
  readonly follow: (options: FollowOptions) => Stream.Stream<Piece, ProcessError>
  /**
   * Kills the process and all that its kill scope reaches, whoever has hold of it, and sees its holder end, within some
   * seconds. From then on none can be started in this directory any more. May be called again and again.
   */
  readonly destroy: (
    options: { readonly directory: string; readonly dryRun?: boolean | undefined }
  ) => Effect.Effect<Destruction>
}>()("effect-microvm-runtime/process/ProcessHolder") {}
