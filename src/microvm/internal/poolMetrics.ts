import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import type * as Scope from "effect/Scope"
import { boundaries } from "./launchMetrics.ts"

/** How a pool is now, and what it has counted. */
export interface Numbers {
  readonly ready: number
  /** Handed out, or looked at on behalf of a taker. */
  readonly inUse: number
  readonly starting: number
  /** Not gone yet. */
  readonly ending: number
  /** Takers without a machine. */
  readonly waiting: number
  /** Machines so far that were ready. */
  readonly started: number
  /** Starts so far that have failed. */
  readonly failed: number
  /** Takers so far that were not let in, since `maxWaiting` others waited. */
  readonly refused: number
  /** Machines so far that had ended or were unhealthy before anybody had them. */
  readonly unfit: number
}

export interface PoolMetrics {
  /** The pool's name in what is exported: another one than it was given where a pool is there that has it. */
  readonly pool: string
  readonly started: (seconds: number) => void
  readonly taken: (seconds: number) => void
}

const unused = { update: () => {}, modify: () => {} }

const names = new WeakMap<Metric.MetricRegistry, Set<string>>()

/** Two pools of one name would be one series, which tells of one of them only. */
const reserve = (registry: Metric.MetricRegistry, name: string) => {
  const all = names.get(registry) ?? new Set()
  names.set(registry, all)
  let own = name
  for (let n = 2; all.has(own); n++) own = `${name}-${n}`
  all.add(own)
  return { own, free: () => all.delete(own) }
}

/** The series of a pool, until the scope closes. What is no time is read when somebody exports it. */
export const make = (
  name: string,
  max: number,
  numbers: () => Numbers
): Effect.Effect<PoolMetrics, never, Scope.Scope> =>
  Effect.contextWith((context) =>
    Effect.map(
      Effect.acquireRelease(
        Effect.sync(() => {
          const { free, own: pool } = reserve(Context.get(context, Metric.MetricRegistry), name)
          const gauge = (id: string, description: string, value: () => number, more = {}) =>
            Metric.registerUnsafe(
              Metric.gauge(id, { description, attributes: { pool, ...more } }),
              context,
              { ...unused, get: () => ({ value: value() }) }
            )
          const counter = (id: string, description: string, count: () => number, more = {}) =>
            Metric.registerUnsafe(
              Metric.counter(id, { description, attributes: { pool, ...more }, incremental: true }),
              context,
              { ...unused, get: () => ({ count: count(), incremental: true }) }
            )
          const machines = (state: string, value: () => number) =>
            gauge("microvm.pool.machines", "Machines of a pool, from before their start until they are gone.", value, {
              state
            })
          const starts = (outcome: string, count: () => number) =>
            counter("microvm.pool.starts", "Starts of machines that have ended, well or not.", count, { outcome })
          const registered = [
            machines("ready", () => numbers().ready),
            machines("in_use", () => numbers().inUse),
            machines("starting", () => numbers().starting),
            machines("ending", () => numbers().ending),
            gauge("microvm.pool.max", "How many machines there can be.", () => max),
            gauge("microvm.pool.waiting", "Takers without a machine.", () => numbers().waiting),
            starts("ready", () => numbers().started),
            starts("failed", () => numbers().failed),
            counter("microvm.pool.unfit", "Machines that nobody could be given.", () => numbers().unfit),
            counter("microvm.pool.refused", "Takers for whom there was no place to wait.", () => numbers().refused)
          ]
          const times = (id: string, description: string) =>
            Metric.histogram(id, { description, attributes: { pool, unit: "seconds" }, boundaries })
          const start = times("microvm.pool.start.seconds", "How long starts took that have worked.")
          const take = times("microvm.pool.take.seconds", "How long takers waited that were given a machine.")
          let isOver = false
          const told = (metric: Metric.Histogram<number>) => {
            // There is a series before the first one.
            metric.valueUnsafe(context)
            return (seconds: number): void => {
              if (!isOver) metric.updateUnsafe(seconds, context)
            }
          }
          return {
            metrics: { pool, started: told(start), taken: told(take) },
            remove: () => {
              isOver = true
              for (const one of registered) one.remove()
              Metric.removeUnsafe(start, context)
              Metric.removeUnsafe(take, context)
              free()
            }
          }
        }),
        ({ remove }) => Effect.sync(remove)
      ),
      ({ metrics }) => metrics
    )
  )
