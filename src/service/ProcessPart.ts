/**
 * A child process that belongs to the service: started and ready before those that depend on it, watched while it runs,
 * ended with all that it started.
 *
 * @since 0.1.0
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
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
import { fromReason, type ServiceError, ServiceErrorReason } from "./ServiceError.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface ProcessPartOptions<Deps extends ReadonlyArray<Part.Any>, E, R, R2 = never>
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
  /**
   * Given, before the process starts, what replaces it: that ends it in order, starts another one, and is done when that one is
   * ready. It is no failure, so neither `restart` nor `intensity` counts it. After a failure it waits, as the schedule says;
   * it fails when there will be no other process. To interrupt it is not to wait any longer: the process is replaced all the same.
   */
  readonly register?: ((replace: Effect.Effect<void, ServiceError>) => Effect.Effect<unknown, never, R2>) | undefined
  /** How it is kept. `policy` says how it is asked to end: when its share of the stop is short, its stages are too. */
  readonly spawn?: SpawnOptions | undefined
}

/** Who waits for the next process. */
const makeSuccessors = (name: string) => {
  const wanted = Latch.makeUnsafe()
  let waiting: Array<Deferred.Deferred<void, ServiceError>> = []
  let isOver = false
  const noMore = Effect.suspend(() =>
    Effect.fail(fromReason(ServiceErrorReason.TaskFailed({ task: name, why: "its process is not started any more" })))
  )
  return {
    /** Ends with the start of a process that has begun after it. */
    ask: Effect.suspend(() => {
      if (isOver) return noMore
      const done = Deferred.makeUnsafe<void, ServiceError>()
      waiting.push(done)
      wanted.openUnsafe()
      return Effect.onInterrupt(Deferred.await(done), () =>
        Effect.sync(() => {
          waiting = waiting.filter((other) => other !== done)
        }))
    }),
    wanted: wanted.await,
    /** Starts a process, and tells those who had asked by then. When it fails, they wait for the next one. */
    answer: <A, E, R>(launch: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
      Effect.suspend(() => {
        const asked = waiting
        waiting = []
        wanted.closeUnsafe()
        return Effect.onExit(launch, (exit) =>
          Effect.sync(() => {
            if (Exit.isFailure(exit)) waiting = [...asked, ...waiting]
            else for (const done of asked) Deferred.doneUnsafe(done, Exit.void)
          }))
      }),
    over: Effect.suspend(() => {
      isOver = true
      return Effect.forEach(waiting, (done) => Deferred.completeWith(done, noMore), { discard: true })
    })
  }
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
export const make = <E = never, R = never, const Deps extends ReadonlyArray<Part.Any> = readonly [], R2 = never>(
  name: string,
  command: ChildProcess.Command,
  options: ProcessPartOptions<Deps, E, R, R2> = {}
): Part.Part<
  never,
  ProcessError,
  | Exclude<
    Exclude<NoInfer<R | R2>, Scope.Scope> | Fatal | ServiceEvents | ProcessSpawner,
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

    const successors = makeSuccessors(name)
    yield* Effect.addFinalizer(() => successors.over)
    if (options.register !== undefined) yield* options.register(successors.ask)
    // The first one starts with the part, the later ones under supervision.
    const scope = yield* Scope.fork(yield* Effect.scope)
    const first = yield* Scope.provide(successors.answer(launch), scope)
    let isFirst = true
    /** Whether another one is wanted. */
    const life = (up: Effect.Effect<void>) =>
      Effect.suspend(() => {
        const last = (process: Process) =>
          Effect.andThen(up, Effect.raceFirst(Effect.as(watch(process), false), Effect.as(successors.wanted, true)))
        if (!isFirst) return Effect.scoped(Effect.flatMap(successors.answer(launch), last))
        isFirst = false
        return Effect.onExit(last(first), (exit) => Scope.close(scope, exit))
      })
    const run = Effect.fnUntraced(function*(up: Effect.Effect<void>) {
      while (yield* life(up)) yield* Effect.logInfo(`${name} is replaced, as somebody has asked for`)
    })
    yield* supervise(name, run, { ...options, onEnd: "done" }).pipe(
      Effect.ensuring(successors.over),
      Effect.forkScoped({ startImmediately: true })
    )
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
