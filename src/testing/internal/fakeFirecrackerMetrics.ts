/** Firecracker's metrics: lines of JSON with what was counted since the last. */
import { openSink } from "./fakeFirecrackerLog.ts"
import { type World, writeSome } from "./fakeFirecrackerWorld.ts"

const latency = (name: string) => [`${name}.min_us`, `${name}.max_us`, `${name}.sum_us`]
const block = [
  ..."activate_fails cfg_fails no_avail_buffer event_fails execute_fails invalid_reqs_count flush_count queue_event_count"
    .split(" "),
  ..."rate_limiter_event_count update_count update_fails read_bytes write_bytes read_count write_count".split(" "),
  ...latency("read_agg"),
  ...latency("write_agg"),
  ..."rate_limiter_throttled_events io_engine_throttled_events remaining_reqs_count".split(" ")
]
const net = [
  ..."activate_fails cfg_fails no_rx_avail_buffer no_tx_avail_buffer event_fails rx_queue_event_count".split(" "),
  ..."rx_event_rate_limiter_count rx_rate_limiter_throttled rx_tap_event_count rx_bytes_count rx_packets_count".split(
    " "
  ),
  ..."rx_fails rx_count tap_read_fails tap_write_fails".split(" "),
  ...latency("tap_write_agg"),
  ..."tx_bytes_count tx_malformed_frames tx_fails tx_count tx_packets_count tx_queue_event_count".split(" "),
  ..."tx_rate_limiter_event_count tx_rate_limiter_throttled tx_spoofed_mac_count tx_remaining_reqs_count".split(" ")
]
const pmem = (minor: number) => [
  ..."activate_fails cfg_fails event_fails queue_event_count".split(" "),
  ...minor >= 16 ? ["rate_limiter_throttled_events", "rate_limiter_event_count"] : []
]

/** The groups of a line, in order, and what they count. */
const groups = (minor: number): Readonly<Record<string, ReadonlyArray<string>>> => {
  const both = (...names: ReadonlyArray<string>) => names.flatMap((name) => [`${name}_count`, `${name}_fails`])
  const since = (first: number, ...names: ReadonlyArray<string>) => minor >= first ? names : []
  return {
    api_server: [
      "process_startup_time_us",
      "process_startup_time_cpu_us",
      ...minor < 14 ? ["sync_response_fails"] : []
    ],
    balloon: [
      ..."activate_fails inflate_count stats_updates_count stats_update_fails deflate_count event_fails".split(" "),
      ...since(14, "free_page_report_count", "free_page_report_freed", "free_page_report_fails"),
      ...since(14, "free_page_hint_count", "free_page_hint_freed", "free_page_hint_fails")
    ],
    block,
    deprecated_api: ["deprecated_http_api_calls", ...minor < 14 ? ["deprecated_cmd_line_api_calls"] : []],
    get_api_requests: [
      ..."instance_info_count machine_cfg_count mmds_count vmm_version_count".split(" "),
      ...since(14, "hotplug_memory_count")
    ],
    i8042: ["error_count", "missed_read_count", "missed_write_count", "read_count", "reset_count", "write_count"],
    uart: [
      ..."error_count flush_count missed_read_count missed_write_count read_count write_count".split(" "),
      ...since(16, "rate_limiter_dropped_bytes")
    ],
    latencies_us: ["", "vmm_"].flatMap((prefix) =>
      "full_create_snapshot diff_create_snapshot load_snapshot pause_vm resume_vm".split(" ").map((name) =>
        `${prefix}${name}`
      )
    ),
    logger: [
      ..."missed_metrics_count metrics_fails missed_log_count".split(" "),
      ...minor < 14 ? ["log_fails"] : [],
      ...since(16, "rate_limited_log_count")
    ],
    mmds: [
      ..."rx_accepted rx_accepted_err rx_accepted_unusual rx_bad_eth".split(" "),
      ...since(13, "rx_invalid_token", "rx_no_token"),
      ..."rx_count tx_bytes tx_count tx_errors tx_frames connections_created connections_destroyed".split(" ")
    ],
    net,
    patch_api_requests: [
      ...both("drive", "network", "machine_cfg", "mmds"),
      ...since(14, ...both("hotplug_memory")),
      ...since(16, ...both("pmem"))
    ],
    put_api_requests: [
      ...both("actions", "boot_source", "drive", "logger", "machine_cfg", "cpu_cfg", "metrics", "network", "mmds"),
      ...both("vsock"),
      ...since(14, ...both("pmem", "serial", "hotplug_memory"))
    ],
    seccomp: ["num_faults"],
    vcpu: [
      ..."exit_io_in exit_io_out exit_mmio_read exit_mmio_write failures".split(" "),
      ...since(10, "kvmclock_ctrl_fails"),
      ..."exit_io_in_agg exit_io_out_agg exit_mmio_read_agg exit_mmio_write_agg".split(" ").flatMap(latency)
    ],
    vmm: ["panic_count", ...minor < 14 ? ["device_events"] : []],
    signals: ["sigbus", "sigsegv", "sigxfsz", "sigxcpu", "sigpipe", "sighup", "sigill"],
    vsock: [
      ..."activate_fails cfg_fails rx_queue_event_fails tx_queue_event_fails ev_queue_event_fails".split(" "),
      ..."muxer_event_fails conn_event_fails rx_queue_event_count tx_queue_event_count rx_bytes_count".split(" "),
      ..."tx_bytes_count rx_packets_count tx_packets_count conns_added conns_killed conns_removed".split(" "),
      ..."killq_resync tx_flush_fails tx_write_fails rx_read_fails".split(" ")
    ],
    entropy: [
      ..."activate_fails entropy_event_fails entropy_event_count entropy_bytes host_rng_fails".split(" "),
      ..."entropy_rate_limiter_throttled rate_limiter_event_count".split(" ")
    ],
    ...minor >= 14
      ? {
        pmem: pmem(minor),
        interrupts: ["triggers", "config_updates"],
        memory_hotplug: [
          ..."activate_fails queue_event_fails queue_event_count".split(" "),
          ...["plug", "unplug"].flatMap((name) =>
            latency(`${name}_agg`).concat(`${name}_count`, `${name}_bytes`, `${name}_fails`)
          ),
          "unplug_discard_fails",
          ...["unplug_all", "state"].flatMap((name) => latency(`${name}_agg`).concat(both(name)))
        ]
      }
      : {}
  }
}

/** Not counted but set: the same in each line until it is set again. */
const isStored = (group: string, name: string): boolean =>
  ["latencies_us", "seccomp", "vmm", "api_server"].includes(group) ||
  (group === "signals" && name !== "sigpipe") || /_agg\.(min|max)_us$/.test(name)

export interface Metrics {
  readonly add: (group: string, name: string, by?: number) => void
  readonly set: (group: string, name: string, value: number) => void
  /** A device that has a group of its own, such as `block_rootfs`. */
  readonly device: (kind: "block" | "net" | "pmem", id: string) => void
  /** `false` when that was done before. */
  readonly init: (
    path: string,
    options?: { readonly id?: string | undefined; readonly properties?: ReadonlyMap<string, string> | undefined }
  ) => boolean
  /** Writes a line of what has come since the last. */
  readonly flush: () => void
  /** Writes a line now, and then every minute until `stop`. */
  readonly start: () => void
  readonly stop: () => void
}

export const makeMetrics = (world: World, minor: number): Metrics => {
  let shapes: ReadonlyArray<readonly [name: string, fields: ReadonlyArray<string>]> = Object.entries(groups(minor))
  const counted = new Map<string, number>()
  let sink: number | undefined
  let extra: Readonly<Record<string, unknown>> = {}
  const add = (group: string, name: string, by = 1) => {
    const key = `${group}.${name}`
    counted.set(key, (counted.get(key) ?? 0) + by)
  }
  const take = (group: string, name: string): number => {
    const key = `${group}.${name}`
    const value = counted.get(key) ?? 0
    if (!isStored(group, name)) counted.delete(key)
    return value
  }
  const line = (): string => {
    const all = shapes.map(([group, names]) => {
      const values = new Map<string, unknown>()
      const nested = new Map<string, Map<string, number>>()
      for (const name of names) {
        const [outer = "", inner] = name.split(".")
        const value = take(group, name)
        if (inner === undefined) values.set(outer, value)
        else {
          const within = nested.get(outer) ?? new Map<string, number>()
          nested.set(outer, within.set(inner, value))
          values.set(outer, undefined)
        }
      }
      for (const [outer, within] of nested) values.set(outer, Object.fromEntries(within))
      return [group, Object.fromEntries(values)] as const
    })
    return `${JSON.stringify({ utc_timestamp_ms: Date.now(), ...extra, ...Object.fromEntries(all) })}\n`
  }
  const flush = () => {
    if (sink !== undefined && !writeSome(sink, line())) add("logger", "missed_metrics_count")
  }
  let everyMinute: NodeJS.Timeout | undefined
  return {
    add,
    set: (group, name, value) => {
      counted.set(`${group}.${name}`, value)
    },
    device: (kind, id) => {
      const key = `${kind}_${id}`
      // Before the one that has the sum of all.
      if (!shapes.some(([name]) => name === key)) {
        shapes = shapes.flatMap((group) => group[0] === kind ? [[key, group[1]] as const, group] : [group])
      }
    },
    init: (path, options) => {
      const opened = openSink(world, path, minor)
      if (sink !== undefined) return false
      sink = opened
      extra = {
        ...(options?.id === undefined ? {} : { id: options.id }),
        ...(options?.properties === undefined ? {} : {
          properties: Object.fromEntries([...options.properties].toSorted(([left], [right]) => left < right ? -1 : 1))
        })
      }
      return true
    },
    flush,
    start: () => {
      flush()
      everyMinute = setInterval(flush, 60_000).unref()
    },
    stop: () => clearInterval(everyMinute)
  }
}
