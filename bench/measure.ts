/**
 * How the benchmarks measure: contestants of one round run one after the other, in an order that turns with each round,
 * so that a noisy minute of the machine hits them all. What counts are ratios within one run.
 */
import { performance } from "node:perf_hooks"

export interface Contestant<A> {
  readonly name: string
  readonly run: () => Promise<A>
}

/** The samples of each contestant, in milliseconds unless the benchmark says otherwise. */
export type Samples = ReadonlyMap<string, ReadonlyArray<number>>

export const now = (): number => performance.now()

export const interleaved = async (
  rounds: number,
  contestants: ReadonlyArray<Contestant<number | ReadonlyArray<number>>>,
  warmUp = 2
): Promise<Samples> => {
  const samples = new Map<string, Array<number>>(contestants.map(({ name }) => [name, []]))
  for (let round = -warmUp; round < rounds; round++) {
    for (let turn = 0; turn < contestants.length; turn++) {
      const contestant = contestants[(turn + round + warmUp) % contestants.length]
      if (contestant === undefined) continue
      const sample = await contestant.run()
      // The first rounds warm everybody up.
      if (round >= 0) samples.get(contestant.name)?.push(...[sample].flat())
    }
  }
  return samples
}

export const quantile = (samples: ReadonlyArray<number>, q: number): number => {
  const sorted = samples.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(q * sorted.length) - 1))] ?? Number.NaN
}

export const median = (samples: Samples, name: string): number => quantile(samples.get(name) ?? [], 0.5)

const show = (value: number): string =>
  value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : value.toFixed(0)

/** A Markdown table with the median, the 99th percentile and the ratio of medians to the first contestant. */
export const table = (samples: Samples, unit = "ms"): string => {
  const [first] = samples.values()
  const base = quantile(first ?? [], 0.5)
  const rows = [...samples].map(([name, values]) => {
    const middle = quantile(values, 0.5)
    return `| ${name} | ${show(middle)} | ${show(quantile(values, 0.99))} | ${
      (middle / base).toFixed(2)
    } | ${values.length} |`
  })
  return [`| | p50 ${unit} | p99 ${unit} | p50 ÷ first | n |`, "| --- | --- | --- | --- | --- |", ...rows].join("\n")
}

/** A goal and whether this run met it. Goals are judged by people: no test fails on a slow machine. */
export interface Verdict {
  readonly goal: string
  readonly measured: string
  readonly met: boolean
}

export const verdict = (goal: string, measured: string, met: boolean): Verdict => ({ goal, measured, met })

export interface Section {
  readonly title: string
  readonly text: string
  readonly tables: ReadonlyArray<string>
  readonly verdicts: ReadonlyArray<Verdict>
}

export const render = (section: Section): string =>
  [
    `## ${section.title}`,
    section.text,
    ...section.tables,
    section.verdicts.map(({ goal, measured, met }) => `- ${met ? "met" : "**not met**"}: ${goal}: ${measured}`).join(
      "\n"
    )
  ].filter((part) => part !== "").join("\n\n")

export const ms = (value: number): string => `${show(value)} ms`
export const times = (value: number): string => `${value.toFixed(2)} ×`
