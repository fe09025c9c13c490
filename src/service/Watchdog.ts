/**
 * A clock outside the event loop that ends a process which cannot end itself.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

/**
 * It watches two things: that the event loop turns, and that a stop that has begun ends.
 *
 * @category services
 * @since 0.1.0
 */
export class Watchdog extends Context.Service<Watchdog, {
  /** From now on the event loop may be blocked this long at a time: the stop budget, once it is known. */
  readonly allowBlocked: (limit: Duration.Input) => Effect.Effect<void>
  /** The stop has to end within this time from now. May be said again, to give more or less. */
  readonly stopBegan: (deadlineFromNow: Duration.Input) => Effect.Effect<void>
  /** It has ended; the process may go on. */
  readonly stopEnded: Effect.Effect<void>
}>()("effect-microvm-runtime/service/Watchdog") {}

/**
 * Nobody watches.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerNone: Layer.Layer<Watchdog> = Layer.succeed(
  Watchdog,
  Watchdog.of({ allowBlocked: () => Effect.void, stopBegan: () => Effect.void, stopEnded: Effect.void })
)
