/**
 * What a Firecracker counts about itself and its devices, added up.
 *
 * It writes one JSON object a line: when the guest starts, every 60 seconds after that, when `FlushMetrics` asks for it, and
 * at its end, but not while the machine is paused. Most of the numbers are **what came since the last line**: the last line
 * alone says next to nothing, and all of them have to be added up. The others are values that hold; `isAbsolute` knows
 * which (from `SharedStoreMetric` in Firecracker's source, the same from 1.7 to 1.17).
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"

/**
 * A line that is no JSON object: the process ended while it wrote it, or a FIFO was full. What it counted is lost.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidLine extends Data.TaggedError("InvalidLine")<{ readonly length: number }> {
  override get message(): string {
    return `invalid json line of ${this.length} characters`
  }
}

/**
 * One line.
 *
 * @category models
 * @since 0.1.0
 */
export interface Reading {
  /** When it was written, by the clock of the host. */
  readonly timestampMs: number | undefined
  /** What `--id` said, with `emit_id` (1.17). */
  readonly id: string | undefined
  /** What the configuration of the metrics said, word by word (1.17). */
  readonly properties: ReadonlyMap<string, string>
  /** All numbers by their path: `net_eth0.rx_bytes_count`, `vcpu.exit_io_in_agg.sum_us`. */
  readonly values: ReadonlyMap<string, number>
  /** All that was in it. */
  readonly document: { readonly [key: string]: unknown }
}

const decodeDocument = Schema.decodeResult(Schema.fromJsonString(Schema.Record(Schema.String, Schema.Unknown)))

/** Firecracker's names, and the ids of its devices. */
const isName = (key: string): boolean => /^\w{1,128}$/.test(key)

/** Deep enough for `group.field_agg.sum_us`, with one to spare. */
const maxDepth = 4

const flatten = (value: unknown, path: string, depth: number, into: Map<string, number>): void => {
  if (typeof value === "number") {
    if (value >= 0 && value <= Number.MAX_SAFE_INTEGER) into.set(path, value)
  } else if (depth < maxDepth && Predicate.isReadonlyObject(value)) {
    for (const [key, child] of Object.entries(value)) {
      if (isName(key)) flatten(child, path === "" ? key : `${path}.${key}`, depth + 1, into)
    }
  }
}

/**
 * Reads a line. No field has to be there, since each version has others; what is unknown is kept.
 *
 * **Gotchas**
 *
 * - A number below 0 or above 2^53 is left out: no true one is that large, but Firecracker's own difference of two
 *   counters can wrap around when a signal handler and a flush meet.
 *
 * ```ts import.meta.vitest
 * import { VmmMetrics } from "effect-microvm-runtime/firecracker"
 * import * as Result from "effect/Result"
 * const line = `{"utc_timestamp_ms":1700000000000,"net_eth0":{"rx_bytes_count":42}}`
 * Result.getOrThrow(VmmMetrics.decode(line)).values // => new Map([["net_eth0.rx_bytes_count", 42]])
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const decode = (line: string): Result.Result<Reading, InvalidLine> =>
  Result.mapBoth(decodeDocument(line), {
    onFailure: () => new InvalidLine({ length: line.length }),
    onSuccess: (document) => {
      const { id, properties, utc_timestamp_ms: timestampMs, ...groups } = document
      const values = new Map<string, number>()
      flatten(groups, "", 0, values)
      return {
        timestampMs: typeof timestampMs === "number" ? timestampMs : undefined,
        id: typeof id === "string" ? id : undefined,
        properties: new Map(
          Object.entries(Predicate.isReadonlyObject(properties) ? properties : {}).flatMap(([key, value]) =>
            typeof value === "string" ? [[key, value]] : []
          )
        ),
        values,
        document
      }
    }
  })

/** The last three are not Firecracker's (up to 1.17), but `summary` looks for them. */
const absolute = new Set([
  "api_server.process_startup_time_us",
  "api_server.process_startup_time_cpu_us",
  "seccomp.num_faults",
  "vmm.panic_count",
  "vmm.memory_used_bytes",
  "balloon.actual_bytes",
  "balloon.actual_mib"
])

/**
 * Is the number at this path a value that holds, so that the last one counts? All others are differences.
 *
 * Those that hold: all of `latencies_us` and of `signals` (but `sigpipe`), `api_server.process_startup_time_us` and
 * `…_cpu_us`, `seccomp.num_faults`, `vmm.panic_count`, the three times of a `vhost_user_` device, and `min_us` and `max_us`
 * of an `_agg`, which are since the start of the process. `sum_us` beside them is a difference.
 *
 * ```ts import.meta.vitest
 * import { VmmMetrics } from "effect-microvm-runtime/firecracker"
 * VmmMetrics.isAbsolute("latencies_us.pause_vm") // => true
 * VmmMetrics.isAbsolute("block_rootfs.read_agg.sum_us") // => false
 * ```
 *
 * @category guards
 * @since 0.1.0
 */
export const isAbsolute = (path: string): boolean =>
  absolute.has(path) ||
  path.startsWith("latencies_us.") ||
  (path.startsWith("signals.") && path !== "signals.sigpipe") ||
  /_agg\.(?:min|max)_us$/.test(path) ||
  /^vhost_user_\w+\.(?:init|activate|config_change)_time_us$/.test(path)

/**
 * All lines of one process so far.
 *
 * @category models
 * @since 0.1.0
 */
export interface Totals {
  /** How many lines were read. */
  readonly lines: number
  /** How many were torn: what those counted is missing here. */
  readonly torn: number
  /**
   * By path, as in `Reading`. As numbers they are exact up to 2^53, which is 9 petabytes or 285 years in microseconds;
   * beyond, they are rounded.
   *
   * The groups `net`, `block` and `pmem` are Firecracker's own sums over the devices of that kind. There, `min_us` and
   * `max_us` are always 0.
   */
  readonly values: ReadonlyMap<string, number>
  /** The last line. */
  readonly last: Option.Option<Reading>
}

/**
 * Nothing read.
 *
 * @category constants
 * @since 0.1.0
 */
export const empty: Totals = { lines: 0, torn: 0, values: new Map(), last: Option.none() }

/** 92 devices, as many as Firecracker takes, have less than 3000. What is more is not Firecracker's and is not kept. */
const maxValues = 4096

/** Each line begins so. */
const beginning = "{\"utc_timestamp_ms\":"

/**
 * Adds lines as they were read, which may be torn.
 *
 * When a FIFO is full, Firecracker can give up in the middle of a line, and the next one follows without a newline between
 * them: that one is found.
 *
 * ```ts import.meta.vitest
 * import { VmmMetrics } from "effect-microvm-runtime/firecracker"
 * const whole = `{"utc_timestamp_ms":1700000000000,"vcpu":{"exit_io_in":2}}`
 * const totals = VmmMetrics.addLines(VmmMetrics.empty, [whole, whole, whole.slice(0, 50) + whole])
 * totals.values.get("vcpu.exit_io_in") // => 6
 * totals.torn // => 1
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const addLines = (self: Totals, lines: Iterable<string>): Totals => {
  const values = new Map(self.values)
  let { last, lines: count, torn } = self
  for (const line of lines) {
    let reading = decode(line)
    if (Result.isFailure(reading)) {
      torn++
      const at = line.lastIndexOf(beginning)
      if (at > 0) reading = decode(line.slice(at))
    }
    if (Result.isFailure(reading)) continue
    count++
    last = Option.some(reading.success)
    for (const [path, value] of reading.success.values) {
      const before = values.get(path)
      if (before === undefined && values.size >= maxValues) continue
      values.set(path, before === undefined || isAbsolute(path) ? value : before + value)
    }
  }
  return { lines: count, torn, values, last }
}

/**
 * The few numbers that most want. What Firecracker has not told is 0.
 *
 * @category models
 * @since 0.1.0
 */
export interface Summary {
  /**
   * For how long the guest's processors waited for an access to a device to be served, all together. How long they ran is
   * known to the host alone.
   */
  readonly vcpuUsageUs: number
  /** Firecracker (up to 1.17) does not tell it: 0. */
  readonly memoryUsedBytes: number
  readonly networkRxBytes: number
  readonly networkTxBytes: number
  readonly networkRxPackets: number
  readonly networkTxPackets: number
  readonly blockReadBytes: number
  readonly blockWriteBytes: number
}

/**
 * The few numbers of all.
 *
 * ```ts import.meta.vitest
 * import { VmmMetrics } from "effect-microvm-runtime/firecracker"
 * const line = `{"net":{"rx_bytes_count":1024,"rx_packets_count":10}}`
 * const totals = VmmMetrics.addLines(VmmMetrics.empty, [line, line])
 * VmmMetrics.summary(totals).networkRxBytes // => 2048
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const summary = ({ values }: Totals): Summary => {
  const at = (path: string): number => values.get(path) ?? 0
  const exits = ["io_in", "io_out", "mmio_read", "mmio_write"].map((kind) => at(`vcpu.exit_${kind}_agg.sum_us`))
  return {
    vcpuUsageUs: exits.reduce((sum, us) => sum + us, 0),
    memoryUsedBytes: at("vmm.memory_used_bytes") || at("balloon.actual_bytes") || at("balloon.actual_mib") * 1024 ** 2,
    networkRxBytes: at("net.rx_bytes_count"),
    networkTxBytes: at("net.tx_bytes_count"),
    networkRxPackets: at("net.rx_packets_count"),
    networkTxPackets: at("net.tx_packets_count"),
    blockReadBytes: at("block.read_bytes"),
    blockWriteBytes: at("block.write_bytes")
  }
}
