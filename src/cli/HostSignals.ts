/**
 * Signals sent to `microvm` itself, as values.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import type { Signal } from "../lifecycle/Signal.ts"
import * as NodeSignals from "../service/NodeSignals.ts"

/**
 * Signals as they come. Each is given to one taker only, and kept until there is one.
 *
 * @category services
 * @since 0.1.0
 */
export class HostSignals extends Context.Service<HostSignals, {
  /** Waits for the next signal. */
  readonly next: Effect.Effect<Signal>
}>()("effect-microvm-runtime/cli/HostSignals") {
  /** The signals of this process. While the layer lives they do nothing else. */
  static readonly layer = Layer.effect(
    HostSignals,
    Effect.map(
      Effect.acquireRelease(Effect.sync(NodeSignals.install), ({ remove }) => Effect.sync(remove)),
      ({ signals }) => HostSignals.of({ next: signals.next })
    )
  )
}

/**
 * Runs an effect until it ends, or until a signal ends it: then the result is the signal.
 *
 * @category combinators
 * @since 0.1.0
 */
export const orSignal = <A, E, R>(
  self: Effect.Effect<A, E, R>
): Effect.Effect<Result.Result<A, Signal>, E, R | HostSignals> =>
  Effect.flatMap(
    HostSignals,
    ({ next }) => Effect.raceFirst(Effect.map(self, Result.succeed), Effect.map(next, Result.fail))
  )
