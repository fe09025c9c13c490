import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"

/** Keeps a success for good. A failure may be one of the moment (EMFILE, EAGAIN), so the next caller tries again. */
export const cachedSuccess = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<Effect.Effect<A, E, R>> =>
  Effect.cachedWithTTL(effect, (exit: Exit.Exit<A, E>) => Exit.isSuccess(exit) ? Duration.infinity : Duration.zero)
