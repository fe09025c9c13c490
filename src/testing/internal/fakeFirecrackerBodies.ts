/** What each release of Firecracker reads from a request's body: its structs, field by field in their order. */
import {
  bool,
  type Field,
  json,
  list,
  option,
  parsed,
  parsedWithin,
  path,
  record,
  Refused,
  type Shape,
  string,
  type Struct,
  struct,
  u16,
  u32,
  u64,
  u8,
  usize,
  variant,
  withDefault
} from "./fakeSerde.ts"

/** The architectures there are builds for. */
export type Architecture = "x86_64" | "aarch64"

const mac = parsed((value) => {
  if (!/^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$/.test(value)) throw new Refused("The provided MAC address is invalid.")
  return value.toLowerCase()
})

const ipv4 = parsedWithin("IPv4 address", (value) => {
  const parts = value.split(".")
  if (parts.length !== 4 || !parts.every((part) => /^(0|[1-9]\d{0,2})$/.test(part) && Number(part) < 256)) {
    throw new Refused("invalid IPv4 address syntax")
  }
  return value
})

/** What a logger may be set to, and how often it is written so. */
export type Level = "Off" | "Error" | "Warn" | "Info" | "Debug" | "Trace"
const levels = new Map<string, Level>([
  ["off", "Off"],
  ["trace", "Trace"],
  ["debug", "Debug"],
  ["info", "Info"],
  ["warn", "Warn"],
  ["warning", "Warn"],
  ["error", "Error"]
])
export const levelOf = (value: string): Level | undefined => levels.get(value.toLowerCase())
const level = parsed((value) => {
  const known = levelOf(value)
  if (known === undefined) throw new Refused("Invalid LevelFilter")
  return known
})

const kvmCapability = parsed((value) => {
  const digits = value.startsWith("!") ? value.slice(1) : value
  if (!/^\+?\d+$/.test(digits) || Number(digits) >= 2 ** 32) {
    const why = digits === ""
      ? "cannot parse integer from empty string"
      : /^\+?\d+$/.test(digits)
      ? "number too large to fit in target type"
      : "invalid digit found in string"
    throw new Refused(`Failed to parse string [${value}] as a kvm capability - can not convert to numeric: ${why}`)
  }
  return value
})

const bitmap = (bits: number): Shape<string> =>
  parsed((value) => {
    let read = 0
    for (const character of (value.startsWith("0b") ? value.slice(2) : value).split("").toReversed()) {
      if (character === "_") continue
      if (read++ === bits) {
        throw new Refused(`Failed to parse string [${value}] as a bitmap - string is too long`)
      }
      if (!"01x".includes(character)) {
        throw new Refused(
          `Failed to parse string [${value}] as a bitmap - unknown character: ${character.charCodeAt(0)}`
        )
      }
    }
    return value
  })

const prefixed = (bits: number): Shape<string> =>
  parsed((value) => {
    if (!/^0[bx]/.test(value)) {
      throw new Refused(
        `No supported number system prefix found in value [${value}]. Make sure to prefix the number with '0x' for hexadecimal numbers or '0b' for binary numbers.`
      )
    }
    const why = value.length === 2
      ? "Empty"
      : !(value.startsWith("0b") ? /^0b[01]+$/ : /^0x[0-9a-fA-F]+$/).test(value)
      ? "InvalidDigit"
      : BigInt(value) >= 2n ** BigInt(bits)
      ? "PosOverflow"
      : undefined
    if (why !== undefined) {
      throw new Refused(
        `Failed to parse string [${value}] as a number for CPU template - ParseIntError { kind: ${why} }`
      )
    }
    return value
  })

const register = parsed((value) => {
  if (!["eax", "ebx", "ecx", "edx"].includes(value)) {
    throw new Refused("Invalid CPUID register. Must be one of [eax, ebx, ecx, edx]")
  }
  return value
})

const defaulted = <A>(of: Shape<A>): Shape<A | undefined> => withDefault(option(of), undefined)

const tokenBucket = struct(
  "TokenBucketConfig",
  { size: u64, one_time_burst: option(u64), refill_time: u64 },
  "open"
)
const rateLimiter = struct("RateLimiterConfig", { bandwidth: option(tokenBucket), ops: option(tokenBucket) })

/** The bodies that release 1.`minor`.`patch` reads. */
export const make = (minor: number, patch: number, architecture: Architecture) => {
  const since = <A>(first: number, shape: Shape<A>): Field<A> => ({ shape, known: minor >= first })
  const limiter = option(rateLimiter)
  const hotplugSize = minor >= 17 ? u32 : usize
  const hugePages = variant(minor >= 17 ? ["None", "Transparent", "2M"] as const : ["None", "2M"] as const)
  const loadHugePages = variant(["Snapshot", "None", "Transparent", "2M"])
  const cpuTemplate = variant(
    architecture === "x86_64" ? ["C3", "T2", "T2S", "None", "T2CL", "T2A"] as const : ["V1N1", "None"] as const
  )

  const machineConfig = struct("MachineConfig", {
    vcpu_count: u8,
    mem_size_mib: usize,
    smt: withDefault(bool, false),
    cpu_template: defaulted(cpuTemplate),
    track_dirty_pages: withDefault(bool, false),
    huge_pages: withDefault(hugePages, "None")
  })
  const bootSource = struct("BootSourceConfig", {
    kernel_image_path: string,
    initrd_path: option(string),
    boot_args: option(string)
  })
  const drive = struct("BlockDeviceConfig", {
    drive_id: string,
    partuuid: option(string),
    is_root_device: bool,
    cache_type: withDefault(variant(["Unsafe", "Writeback"]), "Unsafe"),
    is_read_only: option(bool),
    path_on_host: option(string),
    rate_limiter: limiter,
    io_engine: option(variant(["Async", "Sync"])),
    socket: option(string)
  })
  const pmem = struct("PmemConfig", {
    id: string,
    path_on_host: string,
    root_device: withDefault(bool, false),
    read_only: withDefault(bool, false),
    rate_limiter: since(16, limiter)
  })
  const network = struct("NetworkInterfaceConfig", {
    iface_id: string,
    host_dev_name: string,
    guest_mac: option(mac),
    mtu: since(16, option(u16)),
    rx_rate_limiter: limiter,
    tx_rate_limiter: limiter
  })
  const vsock = struct("VsockDeviceConfig", { vsock_id: defaulted(string), guest_cid: u32, uds_path: string })
  const balloon = struct("BalloonDeviceConfig", {
    amount_mib: u32,
    deflate_on_oom: bool,
    stats_polling_interval_s: withDefault(u16, 0),
    free_page_hinting: since(14, withDefault(bool, false)),
    free_page_reporting: since(14, withDefault(bool, false))
  })
  const entropy = struct("EntropyDeviceConfig", { rate_limiter: limiter })
  const memoryHotplug = struct("MemoryHotplugConfig", {
    total_size_mib: hotplugSize,
    block_size_mib: withDefault(hotplugSize, 2),
    slot_size_mib: withDefault(hotplugSize, 128)
  })
  const mmdsConfig = struct("MmdsConfig", {
    version: withDefault(variant(["V1", "V2"]), "V1"),
    network_interfaces: list(string),
    ipv4_address: option(ipv4),
    imds_compat: since(13, withDefault(bool, false))
  })
  const logger = struct("LoggerConfig", {
    log_path: option(path),
    level: option(level),
    show_level: option(bool),
    show_log_origin: option(bool),
    module: option(string)
  })
  const metrics = struct("MetricsConfig", {
    metrics_path: path,
    emit_id: since(17, withDefault(bool, false)),
    properties: since(17, defaulted(record(string)))
  }, "open")
  const cpuConfig = struct(
    "CustomCpuTemplate",
    architecture === "x86_64"
      ? {
        kvm_capabilities: withDefault(list(kvmCapability), []),
        cpuid_modifiers: withDefault(
          list(struct("CpuidLeafModifier", {
            leaf: prefixed(32),
            subleaf: prefixed(32),
            flags: u32,
            modifiers: list(struct("CpuidRegisterModifier", { register, bitmap: bitmap(32) }, "open"))
          }, "open")),
          []
        ),
        msr_modifiers: withDefault(
          list(struct("RegisterModifier", { addr: prefixed(32), bitmap: bitmap(64) }, "open")),
          []
        )
      }
      : {
        kvm_capabilities: withDefault(list(kvmCapability), []),
        reg_modifiers: withDefault(
          list(struct("RegisterModifier", { addr: prefixed(64), bitmap: bitmap(128) }, "open")),
          []
        ),
        vcpu_features: withDefault(list(struct("VcpuFeatures", { index: u32, bitmap: bitmap(32) }, "open")), [])
      }
  )

  return {
    actions: struct("ActionBody", { action_type: variant(["FlushMetrics", "InstanceStart", "SendCtrlAltDel"]) }),
    balloon,
    balloonUpdate: struct("BalloonUpdateConfig", { amount_mib: u32 }),
    balloonStatsUpdate: struct("BalloonUpdateStatsConfig", { stats_polling_interval_s: u16 }),
    hintingStart: struct("StartHintingCmd", { acknowledge_on_stop: withDefault(bool, true) }, "open"),
    bootSource,
    cpuConfig,
    drive,
    driveUpdate: struct("BlockDeviceUpdateConfig", {
      drive_id: string,
      path_on_host: option(string),
      rate_limiter: limiter
    }),
    entropy,
    json,
    logger,
    machineConfig,
    machineConfigUpdate: struct("MachineConfigUpdate", {
      vcpu_count: defaulted(u8),
      mem_size_mib: minor < 11 ? option(usize) : defaulted(usize),
      smt: defaulted(bool),
      cpu_template: defaulted(cpuTemplate),
      track_dirty_pages: minor < 11 ? option(bool) : defaulted(bool),
      huge_pages: defaulted(hugePages)
    }),
    memoryHotplug,
    memoryHotplugUpdate: struct("MemoryHotplugSizeUpdate", { requested_size_mib: hotplugSize }),
    metrics,
    mmdsConfig,
    network,
    networkUpdate: struct("NetworkInterfaceUpdateConfig", {
      iface_id: string,
      rx_rate_limiter: limiter,
      tx_rate_limiter: limiter
    }),
    pmem,
    pmemUpdate: struct("PmemDeviceUpdateConfig", { id: string, rate_limiter: limiter }),
    serial: struct("SerialConfig", { serial_out_path: option(path), rate_limiter: since(16, option(tokenBucket)) }),
    snapshotCreate: struct("CreateSnapshotParams", {
      snapshot_type: withDefault(variant(["Diff", "Full"]), "Full"),
      snapshot_path: path,
      mem_file_path: path
    }),
    snapshotLoad: struct("LoadSnapshotConfig", {
      snapshot_path: path,
      mem_file_path: option(path),
      mem_backend: option(struct("MemBackendConfig", {
        backend_path: path,
        backend_type: variant(["File", "Uffd"])
      })),
      enable_diff_snapshots: withDefault(bool, false),
      track_dirty_pages: since(13, withDefault(bool, false)),
      resume_vm: withDefault(bool, false),
      network_overrides: since(
        12,
        withDefault(list(struct("NetworkOverride", { iface_id: string, host_dev_name: string }, "open")), [])
      ),
      vsock_override: since(16, option(struct("VsockOverride", { uds_path: string }, "open"))),
      // The two releases before it have got it later.
      clock_realtime: {
        shape: withDefault(bool, false),
        known: minor >= 16 || (minor === 15 && patch >= 1) || (minor === 14 && patch >= 4)
      },
      huge_pages: since(17, withDefault(loadHugePages, "Snapshot"))
    }),
    vm: struct("Vm", { state: variant(["Paused", "Resumed"]) }),
    vsock,
    /** The whole of a machine, as `--config-file` has it. */
    config: struct("VmmConfig", {
      balloon: option(balloon),
      drives: list(drive),
      "boot-source": bootSource,
      "cpu-config": option(json),
      logger: option(logger),
      "machine-config": option(machineConfig),
      metrics: option(metrics),
      "mmds-config": option(mmdsConfig),
      "network-interfaces": withDefault(list(network), []),
      vsock: option(vsock),
      entropy: option(entropy),
      pmem: since(14, withDefault(list(pmem), [])),
      "memory-hotplug": since(14, option(memoryHotplug))
    }, "open")
  }
}

export type Bodies = ReturnType<typeof make>
export type Body<K extends keyof Bodies> = Bodies[K] extends Shape<infer A> ? A : never
export type RateLimiter = Struct<{
  readonly bandwidth: Shape<TokenBucket | undefined>
  readonly ops: Shape<TokenBucket | undefined>
}>
export interface TokenBucket {
  readonly size: number
  readonly one_time_burst: number | undefined
  readonly refill_time: number
}
