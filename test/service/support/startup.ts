/** A signal at each moment of a start-up: one process for each moment. */
import { type End, type Run } from "./edge.ts"

export interface StartupOptions {
  /** Starts the program; it may say anything, but has to say `ready`. */
  readonly start: () => Run
  /** The line of stdout that ends the start-up. */
  readonly ready: string
  readonly signal?: NodeJS.Signals
  /** Default 5 ms. */
  readonly stepMillis?: number
  /** How far past the longest of three start-ups. Default 2 steps. */
  readonly beyondSteps?: number
  /** How many processes at a time. Default 2: more would stretch each other's start-up. */
  readonly concurrency?: number
}

export interface StartupEnd extends End {
  /** When the signal was sent, in milliseconds from the start. */
  readonly at: number
  /** From the signal to the end. */
  readonly tookFromSignal: number
}

const timeToReady = async ({ ready, start }: StartupOptions): Promise<number> => {
  const began = performance.now()
  await using run = start()
  await run.said(ready)
  return performance.now() - began
}

/** How a program ends whose start-up a signal meets, for each moment of the start-up in order. */
export const signalEachStep = async (options: StartupOptions): Promise<ReadonlyArray<StartupEnd>> => {
  const { beyondSteps = 2, concurrency = 2, signal = "SIGTERM", start, stepMillis = 5 } = options
  const longest = Math.max(await timeToReady(options), await timeToReady(options), await timeToReady(options))
  const moments = Array.from({ length: Math.ceil(longest / stepMillis) + beyondSteps }, (_, step) => step * stepMillis)
  const ends: Array<StartupEnd> = []
  const work = async (): Promise<void> => {
    for (let at = moments.shift(); at !== undefined; at = moments.shift()) {
      const began = performance.now()
      await using run = start()
      // Timers may be late, but this one is never early.
      await new Promise((resolve) => setTimeout(resolve, at))
      const sent = performance.now()
      run.kill(signal)
      const end = await run.end
      ends.push({ ...end, at: sent - began, tookFromSignal: performance.now() - sent })
    }
  }
  await Promise.all(Array.from({ length: concurrency }, work))
  return ends.toSorted((one, other) => one.at - other.at)
}
