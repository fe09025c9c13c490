/**
 * Follows what a Firecracker writes about itself, adds it up (`VmmMetrics`), and exports it as Effect metrics.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as PubSub from "effect/PubSub"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import type * as Take from "effect/Take"
import * as FirecrackerError from "./FirecrackerError.ts"
import * as LineSplitter from "./internal/lineSplitter.ts"
import * as MetricSeries from "./internal/metricSeries.ts"
import * as VmmMetrics from "./VmmMetrics.ts"

/**
 * Where the lines come from.
 *
 * @category models
 * @since 0.1.0
 */
export interface Source {
  /** What was written since the last call; no bytes when that is nothing, or nobody writes. Never waits. */
  readonly read: Effect.Effect<Uint8Array, FirecrackerError.FirecrackerError>
}

/**
 * The files that Firecrackers write to. A regular file is the way to go, unless somebody else has made a FIFO:
 *
 * - A FIFO holds 64 KiB. When nobody has read it for long, Firecracker drops lines and tears others, and what is in it when
 *   the last process closes it is gone. A file keeps all, also what is written when we are not there.
 * - Node cannot make a FIFO; it takes a run of mkfifo(1), some 2.5 ms. A file takes 0.1 ms.
 * - A file grows, by some 5 KiB a minute. What was read of it is given back after each MiB: the file is truncated, and since
 *   Firecracker goes on where it was (it does not append), a hole remains that takes no room on the disk. A line that is
 *   written between our look at the file and its truncation is lost, and mostly counted as torn.
 *
 * **Gotchas**
 *
 * - For a limit of the file size (`fsize` of the jailer) the hole counts: Firecracker ends with 151 when it comes there. With
 *   such a limit take a FIFO.
 *
 * @category services
 * @since 0.1.0
 */
export class MetricsFiles extends Context.Service<MetricsFiles, {
  /**
   * Makes an empty file that only its owner can use, and that is removed when the scope closes. Fails with `HostFailed`
   * when something is there already: Firecracker would write over it from its beginning.
   */
  readonly create: (
    path: string,
    options?: {
      /** Default: us. In a jail it is Firecracker's user. */
      readonly owner?: { readonly uid: number; readonly gid: number } | undefined
    }
  ) => Effect.Effect<Source, FirecrackerError.FirecrackerError, Scope.Scope>
  /**
   * Opens a file or a FIFO that is there, from its beginning. Does not wait for a writer, and the end of one is not the end:
   * another may follow.
   */
  readonly open: (path: string) => Effect.Effect<Source, FirecrackerError.FirecrackerError, Scope.Scope>
}>()("effect-microvm-runtime/firecracker/MetricsFiles") {}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** The attribute `machine` of all that is exported. */
  readonly machine: string
  /** How often it is looked for new lines. Default 1 second. */
  readonly every?: Duration.Input | undefined
  /** A line that is longer counts as torn. Default 1 MiB; Firecracker's have 5 KiB, and up to 1 KiB for each device. */
  readonly maxLineBytes?: number | undefined
  /** How many series are exported at most. Default 1000. */
  readonly maxSeries?: number | undefined
}

/**
 * @category models
 * @since 0.1.0
 */
export interface MetricsCollector {
  /** So far, also after the end. */
  readonly totals: Effect.Effect<VmmMetrics.Totals>
  /** Looks for new lines now: after `FlushMetrics` was answered, and after the end of the process, its line is there. */
  readonly refresh: Effect.Effect<VmmMetrics.Totals, FirecrackerError.FirecrackerError>
  /**
   * The totals as they are, if anything was read yet, then each time that they have changed, until the scope closes or the
   * source fails. Whoever is slow misses some, but never the last.
   */
  readonly changes: Stream.Stream<VmmMetrics.Totals>
}

/** How many of `changes` somebody may be behind before the oldest are left out. */
const behind = 16

const newline = new TextEncoder().encode("\n")

/** How often a source is read in one go: one that always has something must not take all our time. */
const maxReads = 64
/**
 * How many lines are taken of that. It is room for twice as many as there can be of Firecracker's; one that somebody has taken
 * over must not keep us busy with others.
 */
const maxLines = 512
/** How often that is done when all is asked for, which of a file is 64 MiB then. */
const maxTurns = 64

interface Checked {
  readonly machine: string
  readonly every: Duration.Duration
  readonly maxLineBytes: number
  readonly maxSeries: number
}

const checked = (
  { every = "1 second", machine, maxLineBytes = 1 << 20, maxSeries = 1000 }: Options
): Result.Result<Checked, FirecrackerError.FirecrackerError> => {
  const faults: Array<FirecrackerError.Fault> = []
  const interval = Option.getOrElse(
    Number.isNaN(every) ? Option.none() : Duration.fromInput(every),
    () => Duration.zero
  )
  if (Duration.toMillis(interval) <= 0) {
    faults.push({ field: "every", value: every, remedy: "write a time above zero, as 500 or \"2 seconds\"" })
  }
  for (const [field, value] of Object.entries({ maxLineBytes, maxSeries })) {
    if (!Number.isSafeInteger(value) || value < 0) {
      faults.push({ field, value, remedy: "write a whole number from 0" })
    }
  }
  return faults.length > 0
    ? Result.fail(FirecrackerError.make(new FirecrackerError.InvalidRequest({ faults })))
    : Result.succeed({ machine, every: interval, maxLineBytes, maxSeries })
}

/**
 * Adds up what comes from a source until the scope closes, when it is read a last time, and exports it meanwhile as Effect
 * metrics, so that whatever exports those (Prometheus, OTLP) has them.
 *
 * **Details**
 *
 * - A series is named after group and field, `firecracker.net.rx_bytes_count` (Prometheus gets `_` for each dot), with the
 *   attributes `machine` and, for a device, `device`. What is added up is a counter, a value that holds is a gauge.
 * - It is there from the first value above 0 on: most of the 250 or more fields stay 0 for ever. Firecracker's own sums over
 *   the devices of a kind are left out: a sum over a metric would count all twice.
 * - `firecracker.metrics.torn_lines` tells how many lines are missing.
 * - When the scope closes, its series are taken out of the registry (`Metric.MetricRegistry`), so that they are exported no
 *   more; what whoever received them does with their last values is not for us to say.
 * - When the source fails, that is logged as a warning, and the numbers stay as they are. `refresh` tries again.
 * - Wrong options fail with `InvalidRequest`.
 *
 * ```ts import.meta.vitest
 * import { MetricsCollector } from "effect-microvm-runtime/firecracker"
 * import * as Effect from "effect/Effect"
 *
 * const pieces = [`{"net_eth0":{"rx_bytes_count":5}}\n{"net_eth0":{"rx_b`, `ytes_count":6}}\n`]
 * const source = { read: Effect.sync(() => new TextEncoder().encode(pieces.shift())) }
 * const program = Effect.gen(function*() {
 *   const metrics = yield* MetricsCollector.make(source, { machine: "vm-1" })
 *   return (yield* metrics.refresh).values.get("net_eth0.rx_bytes_count")
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => 11
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fn("MetricsCollector.make")(function*(
  source: Source,
  options: Options
): Effect.fn.Return<MetricsCollector, FirecrackerError.FirecrackerError, Scope.Scope> {
  const { every, machine, maxLineBytes, maxSeries } = yield* Effect.fromResult(checked(options))
  const watchers = yield* PubSub.sliding<Take.Take<VmmMetrics.Totals>>({ capacity: behind, replay: 1 })
  const decoder = new TextDecoder()
  let totals = VmmMetrics.empty
  let unread: Array<string> = []
  let torn = 0
  const splitter = LineSplitter.make(maxLineBytes, ({ bytes, isWhole }) => {
    if (isWhole && unread.length < maxLines) unread.push(decoder.decode(bytes))
    else torn++
  })
  const series = yield* MetricSeries.make({ machine, maxSeries, totals: () => totals })

  const tell = Effect.suspend(() => {
    if (unread.length + torn === 0) return Effect.void
    totals = VmmMetrics.addLines({ ...totals, torn: totals.torn + torn }, unread)
    unread = []
    torn = 0
    return Effect.andThen(series.update, PubSub.publish(watchers, [totals]))
  })
  const take = Effect.gen(function*() {
    for (let reads = 0; reads < maxReads; reads++) {
      const bytes = yield* source.read
      if (bytes.length === 0) return false
      splitter.push(bytes)
    }
    return true
  })
  // What was read is gone from the source: an interruption waits until it is told. Nothing here waits for anybody.
  const turn = (yield* Semaphore.make(1)).withPermit(Effect.uninterruptible(Effect.ensuring(take, tell)))
  const refresh = turn.pipe(
    Effect.repeat({ while: (isMore) => isMore, times: maxTurns - 1 }),
    Effect.andThen(Effect.sync(() => totals))
  )

  const end = PubSub.end(watchers, Exit.void)
  const finish = Effect.gen(function*() {
    yield* Effect.ignore(refresh)
    // Nothing follows: what has no newline yet is a line that was torn.
    if (splitter.rest() !== undefined) splitter.push(newline)
    yield* tell
    yield* series.remove
    yield* end
  })
  yield* Effect.addFinalizer(() => finish)
  yield* turn.pipe(
    Effect.repeat(Schedule.spaced(every)),
    Effect.tapError((cause) =>
      Effect.andThen(Effect.logWarning(`The metrics of ${machine} can no longer be read`, cause), end)
    ),
    Effect.ignore,
    Effect.forkScoped
  )
  return { totals: Effect.sync(() => totals), refresh, changes: Stream.fromPubSubTake(watchers) }
})
