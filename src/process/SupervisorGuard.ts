/**
 * What must vanish even if we are killed by SIGKILL.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { ProcessError } from "./ProcessError.ts"

/**
 * Something to clear away:
 *
 * - `CGroup`: everything in it is killed, then it is removed with all below it.
 * - `Group`: a process group is killed, while its leader is the one that started at `startTime` (or, after the leader,
 *   while a member carries our mark).
 * - `File`: is unlinked. `Directory`: is removed with all in it; symbolic links are not followed.
 * - `Program`: is run, in a directory and with an environment of its own, for what takes more than to kill and to remove. Nobody hears
 *   what it says, and the guard stays until it has ended. Its words stand in a command line for a moment, for all to read.
 *
 * Processes go first, paths after them, and programs last, one after the other.
 *
 * @category models
 * @since 0.1.0
 */
export type Watched = Data.TaggedEnum<{
  CGroup: { readonly path: string }
  Group: { readonly pgid: number; readonly startTime: number }
  File: { readonly path: string }
  Directory: { readonly path: string }
  Program: {
    /** An absolute path, or a name that is looked for in the PATH of `env`. */
    readonly command: string
    readonly args: ReadonlyArray<string>
    /** An absolute path. */
    readonly cwd: string
    readonly env: Readonly<Record<string, string>>
  }
}>

/**
 * @category constructors
 * @since 0.1.0
 */
export const Watched = Data.taggedEnum<Watched>()

/**
 * A second process that outlives us by a moment, and clears away what it was told of.
 *
 * @category services
 * @since 0.1.0
 */
export class SupervisorGuard extends Context.Service<SupervisorGuard, {
  /** Starts every `Mark` of a child that is to die with us: the guard looks for it at the end. */
  readonly mark: string
  /** When this succeeds, the guard knows; tell it before you make the thing. It forgets it when the scope closes. */
  readonly watch: (what: Watched) => Effect.Effect<void, ProcessError, Scope.Scope>
}>()("effect-microvm-runtime/process/SupervisorGuard") {}

/**
 * No guard: after SIGKILL of us, what was started runs on. For tests, and for hosts where something above us does the
 * same duty.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerNone: Layer.Layer<SupervisorGuard> = Layer.succeed(
  SupervisorGuard,
  SupervisorGuard.of({ mark: "unguarded", watch: () => Effect.void })
)
