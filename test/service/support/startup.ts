/** A signal at each moment of a start-up: one process for each moment. */
import { type End, type Run } from "./edge.ts"

export interface StartupOptions {
  /** Starts the program; it may say anything, but has to say `ready`. */
  readonly start: () => Run
  /** The line of stdout with which the program begins, once its modules are loaded. From then on the steps are short. */
  readonly begins: string
  /** The line of stdout that ends the start-up. */
  readonly ready: string
  readonly signal?: NodeJS.Signals
  /** From one moment to the next while modules are loaded. Default 25 ms. */
  readonly loadingStepMillis?: number
  /** From one moment to the next after that. Default 5 ms. */
  readonly stepMillis?: number
  /** How far past the longest of three start-ups. Default 4 steps. */
  readonly beyondSteps?: number
  /** How many processes at a time. Default 2: more would stretch each other's start-up. */
  readonly concurrency?: number
}

export interface StartupEnd extends End {
  /** What it waited for, and for how many milliseconds after that, until the signal was sent. */
  readonly at: string
  /** From the signal to the end. */
  readonly tookFromSignal: number
}

interface Moment {
  readonly after: string | undefined
  readonly millis: number
}

const timesOf = async ({ begins, ready, start }: StartupOptions) => {
  const began = performance.now()
  await using run = start()
  await run.said(begins)
  const loaded = performance.now()
  await run.said(ready)
  return { loading: loaded - began, rest: performance.now() - loaded }
}

const steps = (after: string | undefined, until: number, step: number, beyond = 0): ReadonlyArray<Moment> =>
  Array.from({ length: Math.ceil(until / step) + beyond }, (_, index) => ({ after, millis: index * step }))

/** How a program ends whose start-up a signal meets, for each moment of the start-up. */
export const signalEachStep = async (options: StartupOptions): Promise<ReadonlyArray<StartupEnd>> => {
  const { begins, beyondSteps = 4, concurrency = 2, signal = "SIGTERM", start } = options
  const { loadingStepMillis = 25, stepMillis = 5 } = options
  const times = [await timesOf(options), await timesOf(options), await timesOf(options)]
  const loading = Math.max(...times.map((one) => one.loading))
  const rest = Math.max(...times.map((one) => one.rest))
  const moments = [
    ...steps(undefined, loading, loadingStepMillis),
    ...steps(begins, rest, stepMillis, beyondSteps)
  ]
  const ends: Array<StartupEnd> = []
  const work = async (): Promise<void> => {
    for (let moment = moments.shift(); moment !== undefined; moment = moments.shift()) {
      const { after, millis } = moment
      await using run = start()
      if (after !== undefined) await run.said(after)
      // Timers may be late, but this one is never early.
      await new Promise((resolve) => setTimeout(resolve, millis))
      const sent = performance.now()
      run.kill(signal)
      const end = await run.end
      ends.push({ ...end, at: `${after ?? "start"} + ${millis} ms`, tookFromSignal: performance.now() - sent })
    }
  }
  await Promise.all(Array.from({ length: concurrency }, work))
  return ends
}
