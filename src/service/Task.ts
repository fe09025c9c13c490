/**
 * Work in the background that is watched: a failure is loud, and unless said otherwise it ends the service.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { Fatal } from "./Fatal.ts"
import { faultsOf, supervise, type Supervision } from "./internal/taskSupervise.ts"
import * as Part from "./Part.ts"
import type { ServiceEvents } from "./Phase.ts"

export type { Intensity, Supervision } from "./internal/taskSupervise.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface TaskOptions<Deps extends ReadonlyArray<Part.Any>>
  extends Supervision, Pick<Part.PartOptions<Deps>, "dependsOn" | "stopWithin" | "stopWeight">
{}

/**
 * A part that runs an effect in the background, each time in a scope of its own. To stop it is to interrupt it, and to
 * wait for what it does then.
 *
 * ```ts import.meta.vitest
 * import { Fatal, Part, Parts, Phase, Task } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 * import * as Schedule from "effect/Schedule"
 *
 * const sweeper = Task.make("sweeper", Effect.fail("disk full"), { restart: Schedule.recurs(2) })
 *
 * const reports: Array<string> = []
 * const program = Effect.gen(function*() {
 *   const started = yield* Parts.start([sweeper])
 *   while (reports.length === 0) yield* Effect.sleep("1 millis")
 *   yield* started.stop({ budget: "1 second" })
 * }).pipe(
 *   Effect.provideService(Fatal.Fatal, { report: (error) => Effect.sync(() => reports.push(error.message)) }),
 *   Effect.provide(Phase.ServiceEvents.layer)
 * )
 * await Effect.runPromise(program)
 * reports // => ["Background task failed: sweeper: disk full, and its schedule says no more"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <A, E, R, const Deps extends ReadonlyArray<Part.Any> = readonly []>(
  name: string,
  task: Effect.Effect<A, E, R>,
  options: TaskOptions<Deps> = {}
): Part.Part<
  never,
  never,
  | Exclude<Exclude<R, Scope.Scope> | Fatal | ServiceEvents, Part.PartControl | Part.Provides<Deps[number]>>
  | Part.Services<Deps[number]>
> =>
  Part.make(
    name,
    Layer.effectDiscard(
      Effect.forkScoped(supervise(name, (up) => Effect.andThen(up, Effect.scoped(task)), options), {
        startImmediately: true
      })
    ),
    {
      dependsOn: options.dependsOn,
      stopWithin: options.stopWithin,
      stopWeight: options.stopWeight,
      faults: faultsOf(options)
    }
  )
