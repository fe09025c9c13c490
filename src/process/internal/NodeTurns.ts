import * as Effect from "effect/Effect"

/** What one child costs when it starts to end, or has ended, is well below a millisecond. */
const perTurn = 10

let taken = 0
const waiting: Array<() => void> = []

const next = (): void => {
  taken = 0
  waiting.splice(0, perTurn).forEach(inTurn)
}

/**
 * Runs `f` at once, unless many others have run in this turn of the event loop: then in a later one, in order. When a
 * thousand children end at the same time, timers and sockets still get their share.
 */
export const inTurn = (f: () => void): void => {
  if (taken >= perTurn) {
    waiting.push(f)
    return
  }
  const isFirst = taken++ === 0
  try {
    f()
  } finally {
    if (isFirst) setImmediate(next)
  }
}

/** Waits until it may go on. */
export const turn: Effect.Effect<void> = Effect.callback((resume) => inTurn(() => resume(Effect.void)))
