import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"

/**
 * Runs `self` at the first call, for all callers. It goes on when a caller is interrupted.
 */
export const once = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
  const result = Deferred.makeUnsafe<A, E>()
  let begun = false
  return Effect.uninterruptibleMask((restore) => {
    if (begun) return restore(Deferred.await(result))
    begun = true
    return self.pipe(
      Effect.exit,
      Effect.map((exit) => Deferred.doneUnsafe(result, exit)),
      Effect.forkDetach({ startImmediately: true, uninterruptible: false }),
      Effect.andThen(restore(Deferred.await(result)))
    )
  })
}
