import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"

export interface Deadlines {
  /** Calls `expire` when so much time has passed, unless what is answered is called before. */
  readonly add: (within: Duration.Duration, expire: () => void) => () => void
}

interface Pending {
  readonly at: number
  readonly expire: () => void
}

const nanosPerMilli = 1_000_000

/**
 * Many deadlines that are hardly ever reached, for one fiber that sleeps until the first of them: a race, with two fibers,
 * would cost more than the call that it is for. When the scope closes nothing expires any more.
 */
export const make = Effect.fnUntraced(function*(): Effect.fn.Return<Deadlines, never, Scope.Scope> {
  const context = yield* Effect.context()
  const clock = Context.get(context, Clock.Clock)
  const fork = Effect.runForkWith(context)
  const pending = new Set<Pending>()
  let sleeper: { readonly until: number; readonly fiber: Fiber.Fiber<void> } | undefined

  const now = (): number => Number(clock.monotonicTimeNanosUnsafe()) / nanosPerMilli

  const sleepUntil = (until: number): void => {
    // Who was woken for nothing sleeps again, so one that sleeps for a call which has been answered can be left alone.
    if (sleeper !== undefined && sleeper.until <= until) return
    sleeper?.fiber.interruptUnsafe()
    const fiber = fork(Effect.map(clock.sleep(Duration.millis(Math.ceil(until - now()))), wake))
    // A clock may let none of the time pass that is left; then all is done by now.
    if (fiber.pollUnsafe() === undefined) sleeper = { until, fiber }
  }

  const wake = (): void => {
    sleeper = undefined
    const time = now()
    for (const one of pending) if (one.at <= time && pending.delete(one)) one.expire()
    let first = Number.POSITIVE_INFINITY
    for (const { at } of pending) first = Math.min(first, at)
    if (pending.size > 0) sleepUntil(first)
  }

  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      pending.clear()
      sleeper?.fiber.interruptUnsafe()
    })
  )
  return {
    add: (within, expire) => {
      const one: Pending = { at: now() + Duration.toMillis(within), expire }
      pending.add(one)
      sleepUntil(one.at)
      return () => pending.delete(one)
    }
  }
})
