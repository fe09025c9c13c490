/**
 * A part of a service: a layer with a name, an order and a share of the time to stop.
 *
 * A part starts when all that it depends on has started, and stops when all that depends on it has stopped. What it
 * depends on is taken from its requirements, so the compiler tells what is missing.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import type * as Option from "effect/Option"
import type * as Types from "effect/Types"

/**
 * What the layer of a part may ask of whoever runs it.
 *
 * @category services
 * @since 0.1.0
 */
export class PartControl extends Context.Service<PartControl, {
  /** Of the part. */
  readonly name: string
  /**
   * Asks for this much time, from now on, to stop. The answer is by how much the deadline of the part has moved: zero when
   * the part does not stop now or has the time anyway, and never past its own `stopWithin` or the hard cap of the whole
   * stop. Parts that stop later lose nothing by it.
   */
  readonly extendStop: (by: Duration.Input) => Effect.Effect<Duration.Duration>
  /** How long the part is waited for from now on; none while it does not stop. */
  readonly timeLeft: Effect.Effect<Option.Option<Duration.Duration>>
}>()("effect-microvm-runtime/service/PartControl") {}

const TypeId = "~effect-microvm-runtime/service/Part"

/**
 * `A` are the services that it gives to those that depend on it, `E` is how its layer can fail, and `R` is what it
 * and all that it depends on need besides.
 *
 * @category models
 * @since 0.1.0
 */
export interface Part<in A, out E = never, out R = never> {
  readonly [TypeId]: { readonly _R: Types.Covariant<R> }
  /** Unique within the service. */
  readonly name: string
  /** What is left of its requirements is in `R`; the rest comes from `dependsOn`. */
  readonly layer: Layer.Layer<A, E, unknown>
  readonly dependsOn: ReadonlyArray<Any>
  readonly startWithin: Duration.Input | undefined
  readonly stopWithin: Duration.Input | undefined
  readonly stopWeight: number
  readonly failure: "init" | "run"
  readonly listens: boolean
  /** What is wrong with it, one sentence each: it is told before anything starts. */
  readonly faults: ReadonlyArray<string>
}

/**
 * Any part.
 *
 * @category models
 * @since 0.1.0
 */
export type Any = Part<never, unknown, unknown>

/**
 * The services that a part provides.
 *
 * @category type extractors
 * @since 0.1.0
 */
export type Provides<P> = P extends Part<infer A, infer _E, infer _R> ? A : never

/**
 * How the layer of a part can fail.
 *
 * @category type extractors
 * @since 0.1.0
 */
export type Error<P> = P extends Part<infer _A, infer E, infer _R> ? E : never

/**
 * What a part and all that it depends on need from the service.
 *
 * @category type extractors
 * @since 0.1.0
 */
export type Services<P> = P extends Part<infer _A, infer _E, infer R> ? R : never

/**
 * How a part is run.
 *
 * @category options
 * @since 0.1.0
 */
export interface PartOptions<Deps extends ReadonlyArray<Any>> {
  /** Started before it and stopped after it. What they provide, its layer may use. */
  readonly dependsOn?: Deps | undefined
  /** The longest time its layer may take to build, and to release what it has when that fails. Default: no limit. */
  readonly startWithin?: Duration.Input | undefined
  /** The longest time it may take to stop, whatever its share of the budget. Default: its share. */
  readonly stopWithin?: Duration.Input | undefined
  /** How much of the stop budget it may claim, compared with the others. Default 1. */
  readonly stopWeight?: number | undefined
  /**
   * What a failure to start is called: `init`, the initialisation failed (151), or `run`, the service failed while it
   * began to serve (1). Default `init`.
   */
  readonly failure?: "init" | "run" | undefined
  /** It listens where the configuration of the service says, so probes cannot be answered there. Default false. */
  readonly listens?: boolean | undefined
  /**
   * For constructors of special parts: what is wrong with their own options, one sentence each, with field, value and
   * remedy. `Parts` adds the name of the part and tells it together with all other faults.
   */
  readonly faults?: ReadonlyArray<string> | undefined
}

const variance = { _R: (_: never) => _ }

const none: readonly [] = []

/**
 * Names a layer and says what it depends on. Nothing is built before the service starts; a part that several others depend
 * on is built once.
 *
 * ```ts import.meta.vitest
 * import { Part } from "effect-microvm-runtime/service"
 * import * as Context from "effect/Context"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * class Greeting extends Context.Service<Greeting, string>()("example/Greeting") {}
 * const greeting = Part.make("greeting", Layer.succeed(Greeting, "hello"))
 * const printer = Part.make("printer", Layer.effectDiscard(Effect.flatMap(Greeting, Effect.log)), {
 *   dependsOn: [greeting],
 *   stopWithin: "2 seconds"
 * })
 * printer.dependsOn.map((part) => part.name) // => ["greeting"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <A, E, R, const Deps extends ReadonlyArray<Any> = readonly []>(
  name: string,
  layer: Layer.Layer<A, E, R>,
  options: PartOptions<Deps> = {}
): Part<A, E, Exclude<R, PartControl | Provides<Deps[number]>> | Services<Deps[number]>> => ({
  [TypeId]: variance,
  name,
  layer,
  dependsOn: options.dependsOn ?? none,
  startWithin: options.startWithin,
  stopWithin: options.stopWithin,
  stopWeight: options.stopWeight ?? 1,
  failure: options.failure ?? "init",
  listens: options.listens ?? false,
  faults: options.faults ?? none
})
