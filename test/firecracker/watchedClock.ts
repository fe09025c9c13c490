/** A clock that knows how many sleep by it. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { otherSleep } from "../otherSleep.ts"

export const watchedClock = Effect.map(Clock.Clock, (real) => {
  let asleep = 0
  const clock = otherSleep(real, (duration) =>
    Effect.suspend(() => {
      asleep++
      return Effect.ensuring(real.sleep(duration), Effect.sync(() => asleep--))
    }))
  return { clock, asleep: () => asleep }
})
