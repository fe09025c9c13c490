/**
 * Starts the parts of a service in order of dependence and stops them in reverse, under one budget.
 *
 * Independent parts start and stop at the same time. A part stops as soon as all that depend on it have stopped, so the
 * whole takes as long as the slowest chain. Its share of the time is what its weight gives it of what is left, against the
 * heaviest chain of those that can only stop after it; time that one part does not need goes to those after it. A part
 * that hangs takes its own share only: it is named, with what it was doing, and the others still stop.
 *
 * ```
 *   waiting ──▶ starting ──▶ running ──▶ stopping ──▶ stopped
 *                  │  └────────────────────▲ │
 *                  ▼     a stop while it      └──────▶ abandoned
 *               failed        starts
 * ```
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Graph from "./internal/partsGraph.ts"
import * as Life from "./internal/partsLife.ts"
import type { PartOutcome, PartStatus, StartOptions, StopOptions } from "./internal/partsModel.ts"
import type * as Part from "./Part.ts"
import { fromReason, type ServiceError, ServiceErrorReason } from "./ServiceError.ts"

export type { PartOutcome, PartState, PartStatus, StartOptions, StopOptions } from "./internal/partsModel.ts"

/**
 * What can be done with parts at any time, from before their start until after their end.
 *
 * @category models
 * @since 0.1.0
 */
export interface Control {
  /**
   * Stops what has started, in order. While the parts start, it ends the start first, which is then interrupted. Nothing
   * is released twice: all callers share one stop, that of a rollback included, and the options of the first one count.
   * It goes on when a caller is interrupted.
   */
  readonly stop: (options: StopOptions) => Effect.Effect<ReadonlyArray<PartOutcome>>
  /** A stop that runs gives up at once: all that has not stopped is named. Nothing happens when none runs. */
  readonly abandon: Effect.Effect<void>
  /** All parts, each after those that it depends on. */
  readonly status: Effect.Effect<ReadonlyArray<PartStatus>>
}

/**
 * Parts that can be started once.
 *
 * @category models
 * @since 0.1.0
 */
export interface Parts<in Provides, out R> extends Control {
  /**
   * Starts all parts and gives what they provide. When one fails, or the start is interrupted, what has started is stopped
   * in order, under the rollback budget; only then does this end.
   */
  readonly start: (options?: StartOptions) => Effect.Effect<Context.Context<Provides>, ServiceError, R>
}

/**
 * Parts that run.
 *
 * @category models
 * @since 0.1.0
 */
export interface Started<in Provides> extends Control {
  readonly context: Context.Context<Provides>
}

/**
 * What is wrong with parts: one sentence for each fault, with the part, the value and the remedy.
 *
 * ```ts import.meta.vitest
 * import { Part, Parts } from "effect-microvm-runtime/service"
 * import * as Layer from "effect/Layer"
 * const result = Parts.faults([Part.make("api", Layer.empty), Part.make("api", Layer.empty)])
 * result // => ['two parts are called "api": rename one']
 * ```
 *
 * @category guards
 * @since 0.1.0
 */
export const faults = (parts: ReadonlyArray<Part.Any>): ReadonlyArray<string> => Graph.make(parts).faults

/**
 * Checks parts and makes them ready to start: use it where a stop may come while they start. Fails with `ConfigInvalid`,
 * which has all faults.
 *
 * ```ts import.meta.vitest
 * import { Part, Parts } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const program = Effect.gen(function*() {
 *   const parts = yield* Parts.make([Part.make("cache", Layer.empty)])
 *   yield* parts.start()
 *   const outcomes = yield* parts.stop({ budget: "1 second" })
 *   return outcomes.map((outcome) => outcome._tag)
 * })
 * await Effect.runPromise(program) // => ["Stopped"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <const P extends ReadonlyArray<Part.Any>>(
  parts: P
): Effect.Effect<Parts<Part.Provides<P[number]>, Part.Services<P[number]>>, ServiceError> =>
  Clock.clockWith((clock) => {
    const graph = Graph.make(parts)
    if (graph.faults.length > 0) {
      return Effect.fail(fromReason(ServiceErrorReason.ConfigInvalid({ faults: graph.faults })))
    }
    const life = Life.make(graph.order, clock)
    return Effect.succeed({
      start: (options = {}) =>
        Effect.flatMap(Effect.context<Part.Services<P[number]>>(), (services) => life.start(services, options)),
      stop: life.stop,
      abandon: life.abandon,
      status: life.status
    })
  })

/**
 * Checks parts and starts them.
 *
 * ```ts import.meta.vitest
 * import { Part, Parts } from "effect-microvm-runtime/service"
 * import * as Context from "effect/Context"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * class Port extends Context.Service<Port, number>()("example/Port") {}
 *
 * const program = Effect.gen(function*() {
 *   const started = yield* Parts.start([Part.make("listener", Layer.succeed(Port, 8000))])
 *   yield* started.stop({ budget: "1 second" })
 *   return Context.get(started.context, Port)
 * })
 * await Effect.runPromise(program) // => 8000
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const start = <const P extends ReadonlyArray<Part.Any>>(
  parts: P,
  options?: StartOptions
): Effect.Effect<Started<Part.Provides<P[number]>>, ServiceError, Part.Services<P[number]>> =>
  Effect.flatMap(
    make(parts),
    ({ start: begin, ...control }) => Effect.map(begin(options), (context) => ({ ...control, context }))
  )
