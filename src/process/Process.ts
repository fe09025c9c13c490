/**
 * The handle of a child process.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import type * as Sink from "effect/Sink"
import type * as Socket from "effect/socket/Socket"
import type * as Stream from "effect/Stream"
import type { ExitStatus } from "../lifecycle/ExitStatus.ts"
import type { NoSuchStage, ShutdownRequest } from "../lifecycle/Shutdown.ts"
import type { ShutdownOutcome } from "../lifecycle/ShutdownOutcome.ts"
import type { Signal } from "../lifecycle/Signal.ts"
import type { KillScope } from "./KillScope.ts"
import type { OutputTail } from "./OutputTail.ts"
import type { ProcessError } from "./ProcessError.ts"
import type { ProcessIdentity } from "./ProcessIdentity.ts"

/**
 * A process that we started. It lives as long as the scope it was spawned in: closing that scope shuts it down.
 *
 * @category models
 * @since 0.1.0
 */
export interface Process {
  readonly identity: ProcessIdentity
  readonly pid: number
  readonly killScope: KillScope
  /**
   * Waits for the end of the process itself; descendants and open pipes do not delay it. Never fails.
   *
   * `coreDumped` is `false` where the signal never dumps or core files are off for good (hard RLIMIT_CORE of 0, and core_pattern
   * neither a pipe nor a socket). It is `true` where the kernel says so, which takes Linux 6.15, the package `koffi`, that
   * we are the main thread, and that our own limit lets cores be written. Elsewhere it is absent: Node does not pass the flag
   * on, and a core for which a thread other than the first was the cause is not told of.
   *
   * **Gotchas**
   *
   * - Node reports death by a real-time signal as exit code 0.
   * - A child in a cgroup that cannot enter it any more exits with 125 and says so on stderr.
   */
  readonly exit: Effect.Effect<ExitStatus>
  readonly poll: Effect.Effect<Option.Option<ExitStatus>>
  /** Ends the child's stdin when the stream that is run into it ends. */
  readonly stdin: Sink.Sink<void, Uint8Array, never, ProcessError>
  /**
   * The reader sets the pace of the child, one reader at a time; a later one goes on where the last one stopped. A pipe
   * that nobody reads is emptied into the tail while somebody awaits `exit`, and from a shutdown on, so that the child
   * cannot block for ever; a reader that comes after that still gets what the tail holds, or fails with `OutputDropped`.
   */
  readonly stdout: Stream.Stream<Uint8Array, ProcessError>
  readonly stderr: Stream.Stream<Uint8Array, ProcessError>
  /** The last output. Once the process has ended, this waits a moment for what is still in the pipes. */
  readonly tail: Effect.Effect<OutputTail>
  /** An additional descriptor of the command as a socket: both directions, half-close kept. */
  readonly channel: (fd: number) => Effect.Effect<Socket.Socket, ProcessError>
  /** To the process itself. That it has ended is no error, and nobody else gets the signal then. */
  readonly signal: (signal: Signal) => Effect.Effect<void, ProcessError>
  /** Ends all that the kill scope reaches, by the policy of the spawn. All callers share one run. */
  readonly shutdown: (request?: ShutdownRequest) => Effect.Effect<ShutdownOutcome, NoSuchStage>
  /** Gives the running stage more time, up to its `maxExtension`; tells how much was granted. */
  readonly extendShutdown: (by: Duration.Input) => Effect.Effect<Duration.Duration>
}

/**
 * Runs an effect so that all it acquires in its scope is released at the same time, when the outer scope closes. A scope
 * of its own accord releases one after the other: 100 children that take 50 ms each to stop would take 5 s.
 *
 * ```ts import.meta.vitest
 * import { Process } from "effect-microvm-runtime/process"
 * import * as Duration from "effect/Duration"
 * import * as Effect from "effect/Effect"
 *
 * const slow = Effect.acquireRelease(Effect.void, () => Effect.sleep("20 millis"))
 * const [took] = await Effect.runPromise(
 *   Effect.timed(Effect.scoped(Process.releasedTogether(Effect.forEach(Array.from({ length: 50 }), () => slow))))
 * )
 * Duration.toMillis(took) < 500 // => true
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const releasedTogether = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R | Scope.Scope> =>
  Effect.gen(function*() {
    const scope = yield* Scope.fork(yield* Effect.scope, "parallel")
    return yield* Scope.provide(self, scope)
  })
