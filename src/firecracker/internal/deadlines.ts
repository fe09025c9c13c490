import type * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"

export interface Deadlines {
  /** When so much time will have passed. */
  readonly after: (within: Duration.Duration) => number
  /** Calls `expire` at a time of `after`, or now if that is over, unless what is given back is called before. */
  readonly add: (at: number, expire: () => void) => () => void
  /** Nothing expires any more. */
  readonly close: () => void
}

interface Pending {
  readonly at: number
  readonly owner: symbol
  readonly expire: () => void
}

const nanosPerMilli = 1_000_000

/** All that go by one clock. */
const makeAll = (clock: Clock.Clock) => {
  const pending = new Set<Pending>()
  let sleeper: { readonly until: number; readonly fiber: Fiber.Fiber<void> } | undefined

  const now = (): number => Number(clock.monotonicTimeNanosUnsafe()) / nanosPerMilli

  const sleepUntil = (until: number): void => {
    // Who was woken for nothing sleeps again, so one that sleeps for a call which has been answered can be left alone.
    if (sleeper !== undefined && sleeper.until <= until) return
    sleeper?.fiber.interruptUnsafe()
    const fiber = Effect.runFork(Effect.map(clock.sleep(Duration.millis(Math.max(0, Math.ceil(until - now())))), wake))
    // A clock may let none of the time pass that is left; then all is done by now.
    if (fiber.pollUnsafe() === undefined) sleeper = { until, fiber }
  }

  const wake = (): void => {
    sleeper = undefined
    const time = now()
    try {
      for (const one of pending) if (one.at <= time && pending.delete(one)) one.expire()
    } finally {
      // Also when whoever is told of his end throws: the others are other machines'.
      let first = Number.POSITIVE_INFINITY
      for (const { at } of pending) first = Math.min(first, at)
      if (pending.size > 0) sleepUntil(first)
    }
  }

  const owners = new Set<symbol>()
  return {
    join: (owner: symbol): void => void owners.add(owner),
    after: (within: Duration.Duration): number => now() + Duration.toMillis(within),
    add: (owner: symbol, at: number, expire: () => void) => {
      const one: Pending = { at, owner, expire }
      pending.add(one)
      sleepUntil(at)
      return () => pending.delete(one)
    },
    leave: (owner: symbol): void => {
      for (const one of pending) if (one.owner === owner) pending.delete(one)
      owners.delete(owner)
      if (owners.size > 0) return
      sleeper?.fiber.interruptUnsafe()
      sleeper = undefined
    }
  }
}

const byClock = new WeakMap<Clock.Clock, ReturnType<typeof makeAll>>()

/**
 * Many deadlines that are hardly ever reached, for one fiber that sleeps until the first of them: a race, with two fibers,
 * would cost more than the call that it is for. The fiber is one for all machines, and ends with the last of them.
 */
export const make = (clock: Clock.Clock): Deadlines => {
  const all = byClock.get(clock) ?? makeAll(clock)
  byClock.set(clock, all)
  const owner = Symbol()
  all.join(owner)
  return {
    after: all.after,
    add: (at, expire) => all.add(owner, at, expire),
    close: () => all.leave(owner)
  }
}
