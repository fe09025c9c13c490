import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import { isAbsolute, type Totals } from "../VmmMetrics.ts"

/** Groups with one object for each device, named `<kind>_<id>`. */
const deviceKinds = ["vhost_user_block", "block", "net", "pmem"]

/** Where a value is exported; nowhere, when it is Firecracker's own sum over the devices of a kind. */
const seriesOf = (path: string): { readonly name: string; readonly device: string | undefined } | undefined => {
  const [group = ""] = path.split(".", 1)
  if (deviceKinds.includes(group)) return undefined
  const kind = deviceKinds.find((one) => group.startsWith(`${one}_`))
  return kind === undefined
    ? { name: `firecracker.${path}`, device: undefined }
    : { name: `firecracker.${kind}${path.slice(group.length)}`, device: group.slice(kind.length + 1) }
}

/** In words that the exporter for OTLP has a unit for; the one for Prometheus does not show this attribute. */
const unitOf = (path: string): { readonly unit?: string } => {
  if (path.endsWith("_us") || path.startsWith("latencies_us.")) return { unit: "microseconds" }
  if (path.endsWith("_ms")) return { unit: "milliseconds" }
  return /_bytes(?:_count)?$/.test(path) ? { unit: "bytes" } : {}
}

/** The value is looked up when somebody exports, so that a series costs nothing once it is there. */
const unused = { update: () => {}, modify: () => {} }

const tornLines = "metrics.torn_lines"

/** The totals of one machine as series of the registry that was there when this was made. */
export const make = Effect.fnUntraced(function*({ machine, maxSeries, totals }: {
  readonly machine: string
  readonly maxSeries: number
  readonly totals: () => Totals
}) {
  const context = yield* Effect.context()
  const registered = new Map<string, Metric.Registration>()
  let isFull = false
  let isRemoved = false

  const register = (path: string, value: () => number): void => {
    const series = seriesOf(path)
    if (series === undefined || registered.has(path)) return
    if (registered.size >= maxSeries) {
      isFull = true
      return
    }
    const { device, name } = series
    const attributes = { machine, ...device === undefined ? {} : { device }, ...unitOf(path) }
    // Exporters cannot take one name as both a counter and a gauge: which of them depends on nothing but the name.
    const registration = isAbsolute(path)
      ? Metric.registerUnsafe(Metric.gauge(name, { attributes }), context, {
        ...unused,
        get: () => ({ value: value() })
      })
      : Metric.registerUnsafe(Metric.counter(name, { attributes, incremental: true }), context, {
        ...unused,
        get: () => ({ count: value(), incremental: true })
      })
    registered.set(path, registration)
  }

  return {
    /** Adds a series for each value that is above 0 for the first time. */
    update: Effect.suspend(() => {
      if (isRemoved) return Effect.void
      const wasFull = isFull
      const { torn, values } = totals()
      if (torn > 0) register(tornLines, () => totals().torn)
      for (const [path, value] of values) {
        if (value > 0) register(path, () => totals().values.get(path) ?? 0)
      }
      return isFull && !wasFull
        ? Effect.logWarning(`${machine} has more than ${maxSeries} metrics: the others are not exported`)
        : Effect.void
    }),
    /** Takes all out, for good. */
    remove: Effect.sync(() => {
      isRemoved = true
      for (const one of registered.values()) one.remove()
      registered.clear()
    })
  }
})
