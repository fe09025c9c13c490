/** A clock that knows how many sleep by it. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"

export const watchedClock = Effect.map(Clock.Clock, (real) => {
  let asleep = 0
  const clock: Clock.Clock = {
    currentTimeMillisUnsafe: () => real.currentTimeMillisUnsafe(),
    currentTimeMillis: real.currentTimeMillis,
    currentTimeNanosUnsafe: () => real.currentTimeNanosUnsafe(),
    currentTimeNanos: real.currentTimeNanos,
    monotonicTimeNanosUnsafe: () => real.monotonicTimeNanosUnsafe(),
    monotonicTimeNanos: real.monotonicTimeNanos,
    sleep: (duration) =>
      Effect.suspend(() => {
        asleep++
        return Effect.ensuring(real.sleep(duration), Effect.sync(() => asleep--))
      })
  }
  return { clock, asleep: () => asleep }
})
