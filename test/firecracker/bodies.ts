import type { ApiTransport, Capabilities, FirecrackerSchema } from "effect-microvm-runtime/firecracker"
import * as Effect from "effect/Effect"

/** One body of each kind: `least` is all that is needed, `full` has every field, `wrong` what each field must not be. */
export interface Body {
  readonly least: Readonly<Record<string, unknown>>
  readonly full: Readonly<Record<string, unknown>>
  readonly wrong: Readonly<Record<string, ReadonlyArray<unknown>>>
}

/** What could end a request line, a path segment or a token, and texts that look like an id. */
export const hostileIds = [
  "",
  "a/b",
  "../x",
  "a b",
  "a\r\nDELETE /x HTTP/1.1\r\n\r\n",
  "a\n",
  "a\0",
  "a%2f",
  "a-b",
  "a?b",
  "é",
  "٣",
  "x".repeat(256)
]

const paths = ["", "a\0b", "x".repeat(4096), "\ud800", 7]
const sockets = ["", "a\0b", "x".repeat(108), "é".repeat(54), 7]
const limits = [{ ops: { size: 1 } }, { ops: { size: -1, refill_time: 1 } }, {
  bandwidth: { size: 1, refill_time: 0.5 }
}, { iops: {} }]
const bucket = { size: 1, refill_time: 2, one_time_burst: 3 }
const buckets = [{ size: 1 }, { size: 1, refill_time: 2, burst: 3 }, { size: 2 ** 53, refill_time: 1 }]
const limiter = { bandwidth: bucket, ops: { size: 0, refill_time: 0 } }
const modifiers = [{ register: "eax", bitmap: "0bxx01_1x" }]

const drive = { drive_id: "d", is_root_device: false, path_on_host: "d.img" }
const machineWrong = {
  vcpu_count: [0, 33, 1.5, "2"],
  mem_size_mib: [0, -1, 2 ** 32, "128"],
  smt: [1, "true"],
  track_dirty_pages: [0],
  huge_pages: ["2m", "4M", true],
  cpu_template: ["T3", "t2"]
}

export const bodies: { readonly [N in FirecrackerSchema.RequestName]: Body } = {
  Balloon: {
    least: { amount_mib: 0, deflate_on_oom: false },
    full: {
      amount_mib: 1,
      deflate_on_oom: true,
      stats_polling_interval_s: 1,
      free_page_hinting: true,
      free_page_reporting: true
    },
    wrong: {
      amount_mib: [-1, 2 ** 32, 0.5],
      deflate_on_oom: ["no"],
      stats_polling_interval_s: [-1, 65_536],
      free_page_hinting: [0],
      free_page_reporting: [0]
    }
  },
  BalloonStartCmd: { least: {}, full: { acknowledge_on_stop: false }, wrong: { acknowledge_on_stop: [1] } },
  BalloonStatsUpdate: {
    least: { stats_polling_interval_s: 1 },
    full: { stats_polling_interval_s: 1 },
    wrong: { stats_polling_interval_s: [-1, 65_536, "1"] }
  },
  BalloonUpdate: { least: { amount_mib: 1 }, full: { amount_mib: 1 }, wrong: { amount_mib: [-1, 2 ** 32] } },
  BootSource: {
    least: { kernel_image_path: "vmlinux" },
    full: { kernel_image_path: "/a/b", initrd_path: "i", boot_args: "console=ttyS0" },
    wrong: { kernel_image_path: paths, initrd_path: paths, boot_args: ["a\nb", "ü", "x".repeat(2049), ["a"]] }
  },
  CpuConfig: {
    least: {},
    full: {
      kvm_capabilities: ["121", "!56"],
      cpuid_modifiers: [{ leaf: "0x1", subleaf: "0b0", flags: 0, modifiers }],
      msr_modifiers: [{ addr: "0x10a", bitmap: "0b1" }],
      reg_modifiers: [{ addr: "0x603000000013c020", bitmap: "0b1" }],
      vcpu_features: [{ index: 0, bitmap: "0b1" }]
    },
    wrong: {
      kvm_capabilities: [[121], ["x"], ["!!1"]],
      cpuid_modifiers: [
        [{ leaf: "1", subleaf: "0x0", flags: 0, modifiers }],
        [{ leaf: "0x1", subleaf: "0x0", flags: -1, modifiers }],
        [{ leaf: "0x1", subleaf: "0x0", flags: 0, modifiers: [{ register: "rax", bitmap: "0b1" }] }]
      ],
      msr_modifiers: [[{ addr: "0x1", bitmap: "0b2" }], [{ addr: "zz", bitmap: "0b1" }]],
      reg_modifiers: [[{ addr: "0x1" }]],
      vcpu_features: [[{ index: "0", bitmap: "0b1" }]]
    }
  },
  Drive: {
    least: drive,
    full: {
      ...drive,
      partuuid: "1a2b-01",
      cache_type: "Writeback",
      is_read_only: true,
      rate_limiter: limiter,
      io_engine: "Async"
    },
    wrong: {
      drive_id: [...hostileIds, 7],
      is_root_device: [1, "true"],
      partuuid: ["", "a b"],
      cache_type: ["unsafe"],
      is_read_only: [1],
      path_on_host: paths,
      rate_limiter: limits,
      io_engine: ["async"],
      socket: sockets
    }
  },
  EntropyDevice: { least: {}, full: { rate_limiter: limiter }, wrong: { rate_limiter: limits } },
  InstanceActionInfo: {
    least: { action_type: "InstanceStart" },
    full: { action_type: "SendCtrlAltDel" },
    wrong: { action_type: ["InstanceHalt", "instancestart", 1] }
  },
  Logger: {
    least: {},
    full: { log_path: "log", level: "Debug", show_level: true, show_log_origin: true, module: "api_server" },
    wrong: { log_path: paths, level: ["info", "Fatal"], show_level: [1], show_log_origin: [1], module: [1, "\udfff"] }
  },
  MachineConfiguration: {
    least: { vcpu_count: 1, mem_size_mib: 128 },
    full: {
      vcpu_count: 32,
      mem_size_mib: 2,
      smt: true,
      track_dirty_pages: true,
      huge_pages: "2M",
      cpu_template: "T2"
    },
    wrong: machineWrong
  },
  MachineConfigurationUpdate: {
    least: { mem_size_mib: 1 },
    full: {
      vcpu_count: 1,
      mem_size_mib: 2,
      smt: true,
      track_dirty_pages: true,
      huge_pages: "None",
      cpu_template: "None"
    },
    wrong: machineWrong
  },
  MemoryHotplugConfig: {
    least: { total_size_mib: 128 },
    full: { total_size_mib: 1024, slot_size_mib: 256, block_size_mib: 4 },
    wrong: {
      total_size_mib: [0, 100, 2 ** 32],
      slot_size_mib: [64, 129, 2 ** 32],
      block_size_mib: [1, 3, 6, 2 ** 32]
    }
  },
  MemoryHotplugSizeUpdate: {
    least: { requested_size_mib: 0 },
    full: { requested_size_mib: 2 ** 32 - 1 },
    wrong: { requested_size_mib: [-1, 2 ** 32, "1"] }
  },
  Metrics: {
    least: { metrics_path: "m" },
    full: { metrics_path: "m", emit_id: true, properties: { a: "b" } },
    wrong: { metrics_path: paths, emit_id: [1], properties: [{ a: 1 }, ["a"]] }
  },
  MmdsConfig: {
    least: { network_interfaces: ["n0"] },
    full: { network_interfaces: ["n0", "n1"], version: "V2", ipv4_address: "169.254.1.0", imds_compat: true },
    wrong: {
      network_interfaces: [[], ["a/b"], "n0"],
      version: ["v2", 2],
      ipv4_address: [
        "169.254.0.1",
        "169.254.255.1",
        "169.254.169.256",
        "10.0.0.1",
        "169.254.169.254\n",
        "169.254.01.1"
      ],
      imds_compat: [1]
    }
  },
  MmdsData: { least: {}, full: { a: [1, null, { b: "c" }] }, wrong: {} },
  NetworkInterface: {
    least: { iface_id: "n0", host_dev_name: "tap0" },
    full: {
      iface_id: "n0",
      host_dev_name: "eth0.5",
      guest_mac: "02:aB:00:00:00:01",
      mtu: 68,
      rx_rate_limiter: limiter,
      tx_rate_limiter: limiter
    },
    wrong: {
      iface_id: [...hostileIds, 7],
      host_dev_name: ["", "a/b", "tap 0", "tap:0", ".", "..", "x".repeat(16), "tap\n"],
      guest_mac: ["02:00:00:00:00", "02-00-00-00-00-01", "0g:00:00:00:00:01"],
      mtu: [67, 65_536, 1500.5],
      rx_rate_limiter: limits,
      tx_rate_limiter: limits
    }
  },
  PartialDrive: {
    least: { drive_id: "d" },
    full: { drive_id: "d", path_on_host: "p", rate_limiter: limiter },
    wrong: { drive_id: hostileIds, path_on_host: paths, rate_limiter: limits }
  },
  PartialNetworkInterface: {
    least: { iface_id: "n" },
    full: { iface_id: "n", rx_rate_limiter: limiter, tx_rate_limiter: limiter },
    wrong: { iface_id: hostileIds, rx_rate_limiter: limits, tx_rate_limiter: limits }
  },
  PartialPmem: {
    least: { id: "p" },
    full: { id: "p", rate_limiter: limiter },
    wrong: { id: hostileIds, rate_limiter: limits }
  },
  Pmem: {
    least: { id: "p", path_on_host: "f" },
    full: { id: "p", path_on_host: "f", root_device: false, read_only: true, rate_limiter: limiter },
    wrong: { id: hostileIds, path_on_host: paths, root_device: [1], read_only: [1], rate_limiter: limits }
  },
  SerialDevice: {
    least: {},
    full: { serial_out_path: "s", rate_limiter: bucket },
    wrong: { serial_out_path: paths, rate_limiter: buckets }
  },
  SnapshotCreateParams: {
    least: { snapshot_path: "s", mem_file_path: "m" },
    full: { snapshot_path: "s", mem_file_path: "m", snapshot_type: "Diff" },
    wrong: { snapshot_path: paths, mem_file_path: paths, snapshot_type: ["full"] }
  },
  SnapshotLoadParams: {
    least: { snapshot_path: "s", mem_backend: { backend_type: "File", backend_path: "m" } },
    full: {
      snapshot_path: "s",
      mem_backend: { backend_type: "Uffd", backend_path: "u.sock" },
      enable_diff_snapshots: true,
      track_dirty_pages: true,
      resume_vm: true,
      network_overrides: [{ iface_id: "n0", host_dev_name: "tap1" }],
      vsock_override: { uds_path: "v.sock" },
      clock_realtime: true,
      huge_pages: "2M"
    },
    wrong: {
      snapshot_path: paths,
      mem_backend: [{ backend_type: "file", backend_path: "m" }, { backend_type: "File" }],
      mem_file_path: paths,
      enable_diff_snapshots: [1],
      track_dirty_pages: [1],
      resume_vm: [1],
      network_overrides: [[{ iface_id: "n/0", host_dev_name: "t" }], [{ iface_id: "n" }], {}],
      vsock_override: [{ uds_path: "x".repeat(108) }, {}],
      clock_realtime: [1],
      huge_pages: ["4M"]
    }
  },
  Vm: { least: { state: "Paused" }, full: { state: "Resumed" }, wrong: { state: ["Running", "paused"] } },
  Vsock: {
    least: { guest_cid: 3, uds_path: "v.sock" },
    full: { guest_cid: 2 ** 32 - 2, uds_path: "x".repeat(107), vsock_id: "v" },
    wrong: { guest_cid: [2, 2 ** 32 - 1, 3.5, "3"], uds_path: sockets, vsock_id: ["a/b"] }
  }
}

/** Keeps what was sent, and answers what it is told to. */
export const scripted = (
  answer: (request: ApiTransport.ApiRequest) => { readonly status: number; readonly body?: string } = () => ({
    status: 204
  })
) => {
  const sent: Array<ApiTransport.ApiRequest> = []
  const transport: ApiTransport.ApiTransport = {
    request: (request) =>
      Effect.sync(() => {
        sent.push(request)
        return { body: "", deprecated: false, ...answer(request) }
      })
  }
  return { sent, transport }
}

/** A Firecracker of this minor release. */
export const target = (minor: number, architecture: Capabilities.Architecture = "x86_64"): Capabilities.Target => ({
  version: { major: 1, minor, patch: 0 },
  architecture
})
