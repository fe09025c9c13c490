/**
 * Effect's own child processes, ended by our engine.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as PlatformError from "effect/PlatformError"
import type { ChildProcessHandle } from "effect/process/ChildProcessSpawner"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import * as Shutdown from "../lifecycle/Shutdown.ts"
import * as ShutdownPolicy from "../lifecycle/ShutdownPolicy.ts"
import * as Signal from "../lifecycle/Signal.ts"
import { pollUntil } from "./internal/reach.ts"

/** The handle has the signal in the text of an error only. */
const signalIn = (error: PlatformError.PlatformError): Signal.Signal | undefined => {
  const { cause } = error.reason
  const name = cause instanceof Error ? /signal: '(\w+)'/.exec(cause.message)?.[1] : undefined
  return name === undefined ? undefined : Signal.fromString(name)
}

/**
 * Waits for the end of a handle's process, and gives it as a value: death by a signal is no error here. It is `Lost` if
 * the handle does not say how the process ended.
 *
 * @category accessors
 * @since 0.1.0
 */
export const exitStatus = (handle: ChildProcessHandle): Effect.Effect<ExitStatus.ExitStatus> => {
  const isGone = Effect.orElseSucceed(Effect.map(handle.isRunning, (isRunning) => !isRunning), () => true)
  return handle.exitCode.pipe(
    Effect.map((code) => ExitStatus.exited(code)),
    Effect.catch((error) => {
      const signal = signalIn(error)
      if (signal !== undefined) return Effect.succeed(ExitStatus.signaled(signal))
      // The handle also fails early, when the source of the child's stdin did.
      return Effect.as(pollUntil(isGone), ExitStatus.lost(error.message, "wait"))
    })
  )
}

/**
 * Makes the shutdown of a handle that Effect's `ChildProcessSpawner` gave. It reaches what the handle reaches: the process
 * group, or the process alone when it was spawned with `detached: false`; it cannot name survivors.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { EffectProcess } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * import * as ChildProcess from "effect/process/ChildProcess"
 *
 * const program = Effect.gen(function*() {
 *   const handle = yield* ChildProcess.make("sleep", ["60"])
 *   const shutdown = yield* EffectProcess.makeShutdown(handle)
 *   return (yield* shutdown.run())._tag
 * })
 * await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(NodeServices.layer))) // => "Graceful"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeShutdown = (
  handle: ChildProcessHandle,
  policy: ShutdownPolicy.ShutdownPolicy<Signal.Signal> = ShutdownPolicy.defaults,
  options: { readonly onEvent?: ((event: Shutdown.ShutdownEvent) => Effect.Effect<void>) | undefined } = {}
): Effect.Effect<Shutdown.Shutdown> => {
  const status = exitStatus(handle)
  const poll = Effect.flatMap(
    handle.isRunning,
    (isRunning) => isRunning ? Effect.succeed(Option.none()) : Effect.asSome(status)
  ).pipe(
    Effect.orElseSucceed(() => Option.none<ExitStatus.ExitStatus>())
  )
  // The handle's kill waits for the end of the process, so the second signal must not wait for the first.
  const send = (killSignal: Signal.Signal) =>
    Effect.catch(
      handle.kill({ killSignal }),
      (error) => Effect.flatMap(poll, (ended) => Option.isSome(ended) ? Effect.void : Effect.fail(error))
    )
  return Shutdown.make(
    {
      poll,
      ended: status,
      request: (signal) =>
        signal === "SIGKILL" || signal === "SIGSTOP"
          ? send(signal)
          : Effect.all([send(signal), send("SIGCONT")], { concurrency: 2, discard: true }),
      remains: Effect.map(poll, (ended) => ({ status: ended, survivors: [] }))
    },
    policy,
    options
  )
}
