/** What Prometheus' client libraries tell of every process. */
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import { observe } from "./ownMetrics.ts"

const memory = Metric.gauge("process_resident_memory_bytes", { description: "Resident memory size." })

const cpu = Metric.counter("process_cpu_seconds_total", { description: "User and system CPU time.", incremental: true })

const startTime = Metric.gauge("process_start_time_seconds", { description: "Start time since the Unix epoch." })

/** Until the scope closes. */
export const observed = Effect.suspend(() => {
  const startedAt = performance.timeOrigin / 1000
  return Effect.all([
    observe(memory, () => ({ value: process.memoryUsage.rss() })),
    observe(cpu, () => {
      const { system, user } = process.cpuUsage()
      return { count: (system + user) / 1e6, incremental: true }
    }),
    observe(startTime, () => ({ value: startedAt }))
  ], { discard: true })
})
