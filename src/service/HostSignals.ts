/**
 * What comes to a service from outside of it, as values: signals, and errors that nobody caught.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import type { Signal } from "../lifecycle/Signal.ts"

/**
 * The signals that ask a service to end. SIGQUIT keeps its default action, so that a stuck service can still be made to
 * dump core.
 *
 * @category constants
 * @since 0.1.0
 */
export const handled = ["SIGTERM", "SIGINT", "SIGHUP"] as const satisfies ReadonlyArray<Signal>

/**
 * @category services
 * @since 0.1.0
 */
export class ServiceSignals extends Context.Service<ServiceSignals, {
  /** Waits for the next signal. Each is given to one taker only, and kept until there is one: up to 16 of them. */
  readonly next: Effect.Effect<Signal>
  /**
   * Waits for the first error that nobody caught: an exception out of a callback, a rejected promise without a handler.
   * Whoever waits has to end the service in order; while nobody does, the edge does it by interruption.
   */
  readonly uncaught: Effect.Effect<unknown>
}>()("effect-microvm-runtime/service/ServiceSignals") {}

/**
 * Both ends: what the service sees, and what the host, or a test, says.
 *
 * @category models
 * @since 0.1.0
 */
export interface Controlled {
  readonly signals: ServiceSignals["Service"]
  /** Never waits. A signal more than 16 unread ones says nothing that those do not. */
  readonly send: (signal: Signal) => void
  /** Whether the program sees to it: somebody waits for it, or has got an earlier one. */
  readonly fail: (error: unknown) => boolean
}

/**
 * Signals that come from nowhere but `send` and `fail`.
 *
 * ```ts import.meta.vitest
 * import { HostSignals } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 *
 * const { send, signals } = HostSignals.makeUnsafe()
 * send("SIGTERM")
 * await Effect.runPromise(signals.next) // => "SIGTERM"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeUnsafe = (): Controlled => {
  const queue = Effect.runSync(Queue.dropping<Signal>(16))
  const first = Deferred.makeUnsafe<unknown>()
  let waiting = 0
  let isTaken = false
  return {
    signals: ServiceSignals.of({
      next: Queue.take(queue),
      uncaught: Effect.suspend(() => {
        waiting++
        return Effect.ensuring(Deferred.await(first), Effect.sync(() => waiting--))
      })
    }),
    send: (signal) => {
      Queue.offerUnsafe(queue, signal)
    },
    fail: (error) => {
      isTaken ||= waiting > 0
      Deferred.doneUnsafe(first, Effect.succeed(error))
      return isTaken
    }
  }
}

/**
 * Nothing ever comes.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerNone: Layer.Layer<ServiceSignals> = Layer.succeed(
  ServiceSignals,
  ServiceSignals.of({ next: Effect.never, uncaught: Effect.never })
)
