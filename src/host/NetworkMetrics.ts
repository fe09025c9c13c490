/**
 * What the firewall and the relay for names count of each machine, as Effect metrics, so that whatever exports those
 * (Prometheus, OTLP) has them.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import type * as DnsRelay from "./DnsRelay.ts"
import type * as Firewall from "./Firewall.ts"
import * as HostError from "./HostError.ts"

/**
 * A machine, and where its numbers come from.
 *
 * @category models
 * @since 0.1.0
 */
export interface Watched {
  /** Its id: the attribute `machine` of all that is exported. */
  readonly machine: string
  /** By which the firewall knows it. */
  readonly token: string
  readonly firewall: Pick<Firewall.Firewall["Service"], "counters" | "table">
  /** Of `DnsRelay.Served`. Default: there are none. */
  readonly names?: Effect.Effect<DnsRelay.Counters> | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** How often the counters are read. Default 10 seconds. */
  readonly every?: Duration.Input | undefined
}

/**
 * @category services
 * @since 0.1.0
 */
export class NetworkMetrics extends Context.Service<NetworkMetrics, {
  /** Exports the numbers of a machine, from when they are next read until the scope closes: then its series are taken out. */
  readonly watch: (machine: Watched) => Effect.Effect<void, never, Scope.Scope>
}>()("effect-microvm-runtime/host/NetworkMetrics") {}

interface Value {
  readonly name: string
  readonly attributes: Readonly<Record<string, string>>
  readonly value: number
}

const traffic = [
  ["allowedOut", { direction: "out", verdict: "allowed" }],
  ["allowedIn", { direction: "in", verdict: "allowed" }],
  ["deniedOut", { direction: "out", verdict: "denied" }],
  ["deniedIn", { direction: "in", verdict: "denied" }]
] as const

/** Their sum is what was received: what is dropped is one of the last two. */
const outcomes = [
  ["answered", "answered"],
  ["empty", "empty"],
  ["refused", "refused"],
  ["failed", "failed"],
  ["malformed", "malformed"],
  ["tooMany", "too_many"]
] as const

const ofTraffic = (counters: Firewall.Counters): ReadonlyArray<Value> =>
  traffic.flatMap(([field, attributes]) => [
    { name: "microvm.network.packets", attributes, value: counters[field].packets },
    // In a word that the exporter for OTLP has a unit for.
    { name: "microvm.network.bytes", attributes: { ...attributes, unit: "bytes" }, value: counters[field].bytes }
  ])

const ofNames = (counters: DnsRelay.Counters): ReadonlyArray<Value> => [
  ...outcomes.map(([field, outcome]) => ({
    name: "microvm.names.questions",
    attributes: { outcome },
    value: counters[field]
  })),
  { name: "microvm.names.withheld", attributes: {}, value: counters.withheld }
]

/** The series of a machine in the registry of the context. */
const makeSeries = (machine: string, context: Context.Context<never>) => {
  const values = new Map<string, number>()
  const registered: Array<Metric.Registration> = []
  return {
    update: (all: ReadonlyArray<Value>): void => {
      for (const { attributes, name, value } of all) {
        const key = [name, ...Object.values(attributes)].join(" ")
        const before = values.get(key)
        // What is allowed is a difference of sums that are not read at one moment: it may seem to have become less.
        values.set(key, Math.max(before ?? 0, value))
        if (before !== undefined) continue
        registered.push(
          Metric.registerUnsafe(
            Metric.counter(name, { attributes: { machine, ...attributes }, incremental: true }),
            context,
            {
              get: () => ({ count: values.get(key) ?? 0, incremental: true }),
              update: () => {},
              modify: () => {}
            }
          )
        )
      }
    },
    remove: (): void => {
      for (const one of registered) one.remove()
    }
  }
}

const interval = (every: Duration.Input): Result.Result<Duration.Duration, HostError.HostError> => {
  const found = Number.isNaN(every) ? Option.none() : Duration.fromInput(every)
  return Option.isSome(found) && Duration.toMillis(found.value) > 0
    ? Result.succeed(found.value)
    : Result.fail(HostError.make(
      new HostError.InvalidArgument({
        faults: [{ field: "every", value: every, remedy: "write a time above zero, as 500 or \"2 seconds\"" }]
      })
    ))
}

/**
 * Reads all counters from time to time, those of all machines in a table of the firewall at once, and none when there is no
 * machine to watch. `MachineNetworks` has each machine watched where this is provided.
 *
 * **Details**
 *
 * - `microvm.network.packets` and `microvm.network.bytes`, with the attributes `machine`, `direction` (`out` is from the machine)
 *   and `verdict` (`allowed`, `denied`). They count since the machine has its rules, whoever supervised it then.
 * - `microvm.names.questions`, with `machine` and `outcome`: `answered`, `empty`, `refused`, `failed`, `malformed` and `too_many`;
 *   the last two get no answer. `microvm.names.withheld` counts addresses that were left out of answers. Both count from 0 when
 *   a machine is adopted.
 * - All are counters, and never become less.
 * - When the firewall cannot be read, that is logged as a warning, once until it can be again, and the numbers stay as they are.
 * - Fails with `InvalidArgument` for `every`.
 *
 * ```ts import.meta.vitest
 * import { NetworkMetrics } from "effect-microvm-runtime/host"
 * import * as Effect from "effect/Effect"
 * import * as Metric from "effect/Metric"
 *
 * const out = { packets: 3, bytes: 180 }
 * const none = { packets: 0, bytes: 0 }
 * const counters = Effect.succeed(
 *   new Map([["00f1e2d3c4b5a697", { allowedOut: out, allowedIn: none, deniedOut: none, deniedIn: none }]])
 * )
 * const program = Effect.gen(function*() {
 *   const metrics = yield* NetworkMetrics.NetworkMetrics
 *   yield* metrics.watch({ machine: "web-1", token: "00f1e2d3c4b5a697", firewall: { table: "effect-microvm", counters } })
 *   yield* Effect.sleep("50 millis")
 *   return (yield* Metric.snapshot).filter(({ id }) => id === "microvm.network.bytes").map(({ state }) => state)
 * })
 * const [bytes] = await Effect.runPromise(
 *   program.pipe(Effect.scoped, Effect.provide(NetworkMetrics.layer({ every: "10 millis" })))
 * )
 * bytes // => { count: 180, incremental: true }
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options = {}): Layer.Layer<NetworkMetrics, HostError.HostError> =>
  Layer.effect(
    NetworkMetrics,
    Effect.gen(function*() {
      const every = yield* Effect.fromResult(interval(options.every ?? "10 seconds"))
      const context = yield* Effect.context()
      const watched = new Map<Watched, ReturnType<typeof makeSeries>>()
      const unreadable = new Set<string>()

      /** By token; nothing when the table cannot be read. */
      const countersOf = ({ counters, table }: Watched["firewall"]) =>
        Effect.matchEffect(counters, {
          onFailure: (error) => {
            const isKnown = unreadable.has(table)
            unreadable.add(table)
            return Effect.as(
              isKnown ? Effect.void : Effect.logWarning(`The counters of table ${table} cannot be read`, error),
              new Map<string, Firewall.Counters>()
            )
          },
          onSuccess: (found) =>
            Effect.sync(() => {
              unreadable.delete(table)
              return found
            })
        })

      const read = Effect.gen(function*() {
        for (const group of Map.groupBy(watched.keys(), ({ firewall }) => firewall.table).values()) {
          const [first] = group
          if (first === undefined) continue
          const found = yield* countersOf(first.firewall)
          for (const machine of group) {
            const counted = found.get(machine.token)
            const values = [
              ...(counted === undefined ? [] : ofTraffic(counted)),
              ...(machine.names === undefined ? [] : ofNames(yield* machine.names))
            ]
            // It may have gone meanwhile.
            watched.get(machine)?.update(values)
          }
        }
      })
      yield* read.pipe(Effect.delay(every), Effect.forever, Effect.forkScoped)

      return NetworkMetrics.of({
        watch: (machine) =>
          Effect.acquireRelease(
            Effect.sync(() => {
              const one = { ...machine }
              watched.set(one, makeSeries(one.machine, context))
              return one
            }),
            (one) =>
              Effect.sync(() => {
                watched.get(one)?.remove()
                watched.delete(one)
              })
          )
      })
    })
  )
