import * as Effect from "effect/Effect"
import * as Tracer from "effect/Tracer"

/**
 * A span, where somebody sees it: to make one costs more than the rest of a call, and without a tracer it is thrown away. No
 * stack is taken for it: the place that would be named is always the same.
 */
export const suspendSpanned = <A, E, R>(name: string, call: () => Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.withFiber((fiber) =>
    fiber.getRef(Tracer.Tracer) === Tracer.nativeTracer
      ? call()
      : Effect.withSpan(name, undefined, { captureStackTrace: false })(Effect.suspend(call))
  )

/** The same for an effect that is there already. */
export const spanned = (name: string) => <A, E, R>(call: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  suspendSpanned(name, () => call)
