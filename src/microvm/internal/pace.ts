import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Pull from "effect/Pull"
import * as Schedule from "effect/Schedule"

/** How quickly something may be started: so many in so long, and not for a while after it went wrong. */
export interface Pace {
  /** How many may be started now. */
  readonly room: () => number
  readonly started: () => void
  /** Did something go wrong so lately that no more are to be started which nobody waits for? */
  readonly held: () => boolean
  /** Something went wrong: once for all that does before the time is over. */
  readonly setback: Effect.Effect<void>
  /** Something went right: the next setback is the first again. */
  readonly recovered: Effect.Effect<void>
  /** How many milliseconds it takes until more may be started than now. Infinity when time alone changes nothing. */
  readonly next: () => number
}

export const makePace = Effect.fnUntraced(function*(
  { per, retry, starts }: { readonly starts: number; readonly per: number; readonly retry: Schedule.Schedule<unknown> }
): Effect.fn.Return<Pace> {
  const clock = yield* Clock.Clock
  const now = () => clock.currentTimeMillisUnsafe()
  let recent: ReadonlyArray<number> = []
  let step = yield* Schedule.toStep(retry)
  let heldUntil = -Infinity
  const room = () => {
    const time = now()
    recent = recent.filter((at) => at + per > time)
    return starts - recent.length
  }
  const wait = Effect.suspend(() => step(now(), undefined)).pipe(
    Effect.map(([, delay]) => now() + Duration.toMillis(delay)),
    Pull.catchDone(() => Effect.succeed(Infinity))
  )
  return {
    room,
    started: () => {
      recent = Number.isFinite(starts) ? [...recent, now()] : recent
    },
    held: () => now() < heldUntil,
    setback: Effect.suspend(() => {
      if (now() < heldUntil) return Effect.void
      // The schedule may take its time to answer.
      heldUntil = Infinity
      return Effect.map(wait, (until) => {
        heldUntil = until
      })
    }),
    recovered: Effect.suspend(() =>
      heldUntil === -Infinity ? Effect.void : Effect.map(Schedule.toStep(retry), (first) => {
        step = first
        heldUntil = -Infinity
      })
    ),
    next: () => {
      const time = now()
      const full = room() > 0 ? -Infinity : (recent[0] ?? time) + per
      return Math.ceil(Math.min(...[heldUntil, full].filter((at) => at > time)) - time)
    }
  }
})
