/**
 * A process that somebody else started, and that we look after from now on.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import * as Shutdown from "../lifecycle/Shutdown.ts"
import type { ShutdownOutcome } from "../lifecycle/ShutdownOutcome.ts"
import * as ShutdownPolicy from "../lifecycle/ShutdownPolicy.ts"
import type { Signal } from "../lifecycle/Signal.ts"
import { pollUntil } from "./internal/reach.ts"
import * as Target from "./internal/target.ts"
import type { KillScope } from "./KillScope.ts"
import type { ProcessError } from "./ProcessError.ts"
import { isAlive, ProcessHost } from "./ProcessHost.ts"
import type { ProcessIdentity } from "./ProcessIdentity.ts"

/**
 * Less than a `Process`: it can be awaited and ended, but only a parent learns the exit code and has the pipes.
 *
 * @category models
 * @since 0.1.0
 */
export interface AdoptedProcess {
  readonly identity: ProcessIdentity
  readonly pid: number
  readonly killScope: KillScope
  /** Always `Lost`, observed by `identity`. */
  readonly exit: Effect.Effect<ExitStatus.ExitStatus>
  readonly poll: Effect.Effect<Option.Option<ExitStatus.ExitStatus>>
  /** To the process itself, if it still is the one of this identity. That it has ended is no error. */
  readonly signal: (signal: Signal) => Effect.Effect<void, ProcessError>
  readonly shutdown: (
    request?: Shutdown.ShutdownRequest
  ) => Effect.Effect<ShutdownOutcome, Shutdown.NoSuchStage>
  readonly extendShutdown: (by: Duration.Input) => Effect.Effect<Duration.Duration>
}

/**
 * @category options
 * @since 0.1.0
 */
export interface AdoptOptions {
  /** What it was started in, as its `Process` told. Default: the process alone. */
  readonly killScope?: KillScope | undefined
  /** Default `ShutdownPolicy.defaults`. */
  readonly policy?: ShutdownPolicy.ShutdownPolicy<Signal> | undefined
  readonly onShutdown?: ((event: Shutdown.ShutdownEvent) => Effect.Effect<void>) | undefined
}

/**
 * Adopts a process by its identity. One that is gone, whose pid has a new owner, or that ran before the last boot, is
 * adopted too: it has ended, and nothing is ever sent to the new owner.
 *
 * The kernel has no event for the end of somebody else's child, so this looks again and again: soon at first, at most
 * every half second later.
 *
 * **Gotchas**
 *
 * - Between the last look and a signal there are some microseconds in which the pid could in theory change hands; a cgroup
 *   as kill scope has no such gap for SIGKILL.
 * - It is not ended by any scope: call `shutdown`.
 *
 * ```ts import.meta.vitest
 * import { AdoptedProcess, NodeProcessHost } from "effect-microvm-runtime/process"
 * import { ExitStatus } from "effect-microvm-runtime/lifecycle"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const process = yield* AdoptedProcess.adopt({ bootId: "an earlier boot", pid: 1, startTime: 1 })
 *   return ExitStatus.format(yield* process.exit)
 * })
 * await Effect.runPromise(Effect.provide(program, NodeProcessHost.layer)) // => "gone, status lost: not our child"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const adopt = Effect.fn("AdoptedProcess.adopt")(function*(
  identity: ProcessIdentity,
  options: AdoptOptions = {}
): Effect.fn.Return<AdoptedProcess, never, ProcessHost> {
  const host = yield* ProcessHost
  const { pid } = identity
  const killScope: KillScope = options.killScope ?? { _tag: "Process", reason: "adopted" }
  const lost = ExitStatus.lost("not our child", "identity")
  let hasEnded = host.bootId !== identity.bootId
  // It held its pid at least until then.
  let lastSeen = 0

  const look = Effect.gen(function*() {
    if (hasEnded) return undefined
    const now = yield* host.ticks
    const info = Option.getOrUndefined(yield* host.inspect(pid))
    if (info !== undefined && info.startTime === identity.startTime && isAlive(info)) {
      lastSeen = now
      return info
    }
    hasEnded = true
    return undefined
  })
  const poll = Effect.map(look, (info) => info === undefined ? Option.some(lost) : Option.none())

  const changed = killScope._tag === "CGroup" ? host.cgroup(killScope.path).watch : Effect.succeed(Effect.never)
  const exit = Effect.scoped(
    Effect.flatMap(changed, (event) => pollUntil(Effect.map(poll, Option.isSome), { event, longest: 500 }))
  ).pipe(Effect.as(lost))

  const signal = (name: Signal): Effect.Effect<void, ProcessError> =>
    Effect.flatMap(look, (info) => info === undefined ? Effect.void : Effect.asVoid(host.kill(pid, name)))

  const mark = (yield* look)?.mark
  const shutdown = yield* Shutdown.make(
    Target.make(
      host,
      { pid, startTime: identity.startTime, poll, exit, signal, pinnedUntil: () => hasEnded ? lastSeen : undefined },
      killScope,
      mark
    ),
    options.policy ?? ShutdownPolicy.defaults,
    { onEvent: options.onShutdown }
  )
  return {
    identity,
    pid,
    killScope,
    exit,
    poll,
    signal,
    shutdown: shutdown.run,
    extendShutdown: shutdown.extend
  }
})
