/**
 * A child process that belongs to the service: started and ready before those that depend on it, watched while it runs,
 * ended with all that it started.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as ChildProcess from "effect/process/ChildProcess"
import * as Scope from "effect/Scope"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import * as ShutdownOutcome from "../lifecycle/ShutdownOutcome.ts"
import * as OutputTail from "../process/OutputTail.ts"
import type { Process } from "../process/Process.ts"
import type { ProcessError } from "../process/ProcessError.ts"
import { ProcessSpawner } from "../process/ProcessSpawner.ts"
import * as Readiness from "../process/Readiness.ts"
import type { SpawnOptions } from "../process/SpawnOptions.ts"
import type { Fatal } from "./Fatal.ts"
import { faultsOf, supervise, type Supervision } from "./internal/taskSupervise.ts"
import * as Part from "./Part.ts"
import type { ServiceEvents } from "./Phase.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface ProcessPartOptions<Deps extends ReadonlyArray<Part.Any>, E, R>
  extends Omit<Supervision, "onEnd">, Omit<Part.PartOptions<Deps>, "faults">
{
  /**
   * An end that nobody asked for: `failure` whatever the code, `done` if the code is zero. Default `failure`.
   */
  readonly onEnd?: "done" | "failure" | undefined
  /** Repeated until it succeeds, after each start: only then is the process ready. Default: it is at once. */
  readonly ready?: ((process: Process) => Effect.Effect<unknown, E, R>) | undefined
  /** The longest time that it may take to be ready. Default 30 seconds. */
  readonly readyWithin?: Duration.Input | undefined
  /** How it is kept. `policy` says how it is asked to end: when its share of the stop is short, its stages are too. */
  readonly spawn?: SpawnOptions | undefined
}

/** An end that nobody asked for, with the last words. */
const ended = (process: Process, status: ExitStatus.ExitStatus): Effect.Effect<never, string> =>
  Effect.flatMap(process.tail, (tail) => {
    const output = OutputTail.format(tail)
    return Effect.fail(output === "" ? ExitStatus.format(status) : `${ExitStatus.format(status)}\n${output}`)
  })

/**
 * A part that runs a child process. It starts when the process is spawned and `ready`; one that dies before fails the
 * start, with its last output. Later, a death is a failure as that of a task: restarted, reported, or told.
 *
 * When it stops, the process and all that its kill scope reaches are ended by the policy, harshly in time to keep the
 * share of this part: a process is not left behind for the lack of time.
 *
 * ```ts import.meta.vitest
 * import { NodeProcessSpawner } from "effect-microvm-runtime/process"
 * import { Fatal, Parts, Phase, ProcessPart } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 * import * as ChildProcess from "effect/process/ChildProcess"
 *
 * const sleeper = ProcessPart.make("sleeper", ChildProcess.make("sleep", ["60"]))
 *
 * const program = Effect.gen(function*() {
 *   const started = yield* Parts.start([sleeper])
 *   return yield* started.stop({ budget: "5 seconds" })
 * }).pipe(
 *   Effect.provideService(Fatal.Fatal, { report: Effect.logError }),
 *   Effect.provide([Phase.ServiceEvents.layer, NodeProcessSpawner.layer])
 * )
 * const outcomes = await Effect.runPromise(program)
 * outcomes.map((outcome) => outcome._tag) // => ["Stopped"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <E = never, R = never, const Deps extends ReadonlyArray<Part.Any> = readonly []>(
  name: string,
  command: ChildProcess.Command,
  options: ProcessPartOptions<Deps, E, R> = {}
): Part.Part<
  never,
  ProcessError,
  | Exclude<
    Exclude<NoInfer<R>, Scope.Scope> | Fatal | ServiceEvents | ProcessSpawner,
    Part.PartControl | Part.Provides<Deps[number]>
  >
  | Part.Services<Deps[number]>
> => {
  const { dependsOn, failure, onEnd = "failure", ready, readyWithin = "30 seconds", startWithin } = options

  const layer = Layer.effectDiscard(Effect.gen(function*() {
    const spawner = yield* ProcessSpawner
    const control = yield* Part.PartControl

    const launch = Effect.gen(function*() {
      const process = yield* spawner.spawn(command, options.spawn)
      // Runs before the spawner's own release, which knows no deadline.
      yield* Effect.addFinalizer(() =>
        Effect.gen(function*() {
          const left = yield* control.timeLeft
          // What is left after the last request is for the kernel to clear up.
          const request = Option.isSome(left) ? { within: Duration.times(left.value, 0.75) } : {}
          const outcome = yield* Effect.orDie(process.shutdown(request))
          if (ShutdownOutcome.isComplete(outcome)) return
          return yield* Effect.die(`process ${process.pid}: ${ShutdownOutcome.format(outcome)}`)
        })
      )
      if (ready !== undefined) {
        const check = Effect.suspend(() => ready(process))
        yield* Readiness.awaitReady(process, check, { within: readyWithin })
      }
      return process
    })
    const watch = (process: Process) =>
      Effect.flatMap(
        process.exit,
        (status) => onEnd === "done" && ExitStatus.isSuccess(status) ? Effect.void : ended(process, status)
      )

    // The first one starts with the part, the later ones under supervision.
    const scope = yield* Scope.fork(yield* Effect.scope)
    const first = yield* Scope.provide(launch, scope)
    let isFirst = true
    const run = (up: Effect.Effect<void>) =>
      Effect.suspend(() => {
        if (!isFirst) return Effect.scoped(Effect.flatMap(Effect.tap(launch, () => up), watch))
        isFirst = false
        return Effect.onExit(Effect.andThen(up, watch(first)), (exit) => Scope.close(scope, exit))
      })
    yield* Effect.forkScoped(supervise(name, run, { ...options, onEnd: "done" }), { startImmediately: true })
  }))
  return Part.make(name, layer, {
    dependsOn,
    failure,
    startWithin,
    stopWithin: options.stopWithin,
    stopWeight: options.stopWeight,
    faults: [
      ...faultsOf(options),
      ...!Number.isNaN(readyWithin) && Option.isSome(Duration.fromInput(readyWithin))
        ? []
        : [`readyWithin is ${JSON.stringify(readyWithin)}: write it as 500 or "2 seconds"`]
    ]
  })
}
