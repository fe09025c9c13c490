/**
 * The data of `Capabilities`.
 */
import type { Method } from "../FirecrackerError.ts"
import type { RequestName } from "../FirecrackerSchema.ts"
import type { FirecrackerVersion } from "../FirecrackerVersion.ts"

/**
 * @category models
 * @since 0.1.0
 */
export type Architecture = "x86_64" | "aarch64"

/**
 * A method and a path of the API.
 *
 * @category models
 * @since 0.1.0
 */
export interface Endpoint {
  readonly method: Method
  /** With `{id}` where the id of a device stands. */
  readonly path: string
  /** What its body is, if it has one. */
  readonly body?: RequestName
  /** The field of the body that says the same id as the path. */
  readonly id?: "drive_id" | "id" | "iface_id"
  /** The first release that has it; all known ones when it is not told. */
  readonly since?: FirecrackerVersion
  /** Is it served before the machine was started, after it, or always? */
  readonly when: "before" | "after" | "always"
  /** From this release on also after the start, for a Firecracker with `--enable-pci`. */
  readonly hotplug?: FirecrackerVersion
  readonly preview?: true
}

/**
 * A field of a body, or one value of it, that not every release or architecture has.
 *
 * @category models
 * @since 0.1.0
 */
export interface Feature {
  readonly body: RequestName
  readonly field: string
  /** Only this value; any, when it is not told. */
  readonly value?: string | boolean
  readonly since?: FirecrackerVersion
  /** Releases before `since` that have it too, with the later ones of the same minor release: it was brought back to them. */
  readonly also?: ReadonlyArray<FirecrackerVersion>
  readonly architecture?: Architecture
  /** Where the field is unknown this value asks for nothing, and the field is left out. */
  readonly unless?: string | boolean
  /** The name it had before `since`. */
  readonly formerly?: string
  /** Works, with a `Deprecation` header in the answer. */
  readonly deprecated?: true
  readonly preview?: true
}

/**
 * What of Firecracker a machine may use or not:
 *
 * - `restore`: it goes on from a snapshot. `diff`: it is saved as a difference.
 * - `pages`: its memory is served page by page. `hotplug`: memory can be plugged in.
 * - `balloon`, `entropy`, `mmds`, `vsock`: it has such a device; a balloon only counts with statistics.
 * - `jail`: it is in one. `pci`: its devices are on a PCI bus. `template`: it has a CPU template.
 * - `arguments`: its kernel has Firecracker's own default arguments.
 * - `logging`: log and metrics go to files, FIFOs or pipes that others have made.
 *
 * @category models
 * @since 0.1.0
 */
export type Use =
  | "arguments"
  | "balloon"
  | "diff"
  | "entropy"
  | "hotplug"
  | "jail"
  | "logging"
  | "mmds"
  | "pages"
  | "pci"
  | "restore"
  | "template"
  | "vsock"

/**
 * Something that releases `since` to before `fixed` get wrong. `uses` is what a machine has to use, all of it, to be concerned.
 * `also` are releases before `fixed` that have the fix too, with the later ones of the same minor release.
 *
 * @category models
 * @since 0.1.0
 */
export interface KnownBad {
  readonly since?: FirecrackerVersion
  readonly fixed?: FirecrackerVersion
  readonly also?: ReadonlyArray<FirecrackerVersion>
  readonly architecture?: Architecture
  readonly uses?: ReadonlyArray<Use>
  readonly what: string
}

const v = (minor: number, patch = 0): FirecrackerVersion => ({ major: 1, minor, patch })

/**
 * Every endpoint by the name of its method in `FirecrackerApi`, those that the published API description lacks included.
 *
 * @category constants
 * @since 0.1.0
 */
export const endpoints = {
  getInstance: { method: "GET", path: "/", when: "always" },
  getVersion: { method: "GET", path: "/version", when: "always" },
  getVmConfig: { method: "GET", path: "/vm/config", when: "always" },
  getMachineConfig: { method: "GET", path: "/machine-config", when: "always" },
  putMachineConfig: { method: "PUT", path: "/machine-config", when: "before", body: "MachineConfiguration" },
  patchMachineConfig: { method: "PATCH", path: "/machine-config", when: "before", body: "MachineConfigurationUpdate" },
  putBootSource: { method: "PUT", path: "/boot-source", when: "before", body: "BootSource" },
  putCpuConfig: { method: "PUT", path: "/cpu-config", when: "before", body: "CpuConfig" },
  putDrive: { method: "PUT", path: "/drives/{id}", when: "before", body: "Drive", id: "drive_id", hotplug: v(16) },
  patchDrive: { method: "PATCH", path: "/drives/{id}", when: "after", body: "PartialDrive", id: "drive_id" },
  deleteDrive: { method: "DELETE", path: "/drives/{id}", when: "after", since: v(16), hotplug: v(16), preview: true },
  putPmem: { method: "PUT", path: "/pmem/{id}", when: "before", body: "Pmem", id: "id", since: v(14), hotplug: v(16) },
  patchPmem: { method: "PATCH", path: "/pmem/{id}", when: "after", body: "PartialPmem", id: "id", since: v(16) },
  deletePmem: { method: "DELETE", path: "/pmem/{id}", when: "after", since: v(16), hotplug: v(16), preview: true },
  putNetworkInterface: {
    method: "PUT",
    path: "/network-interfaces/{id}",
    when: "before",
    body: "NetworkInterface",
    id: "iface_id",
    hotplug: v(16)
  },
  patchNetworkInterface: {
    method: "PATCH",
    path: "/network-interfaces/{id}",
    when: "after",
    body: "PartialNetworkInterface",
    id: "iface_id"
  },
  deleteNetworkInterface: {
    method: "DELETE",
    path: "/network-interfaces/{id}",
    when: "after",
    since: v(16),
    hotplug: v(16),
    preview: true
  },
  putVsock: { method: "PUT", path: "/vsock", when: "before", body: "Vsock" },
  putEntropy: { method: "PUT", path: "/entropy", when: "before", body: "EntropyDevice" },
  putSerial: { method: "PUT", path: "/serial", when: "before", body: "SerialDevice", since: v(14) },
  putLogger: { method: "PUT", path: "/logger", when: "before", body: "Logger" },
  putMetrics: { method: "PUT", path: "/metrics", when: "before", body: "Metrics" },
  putMmdsConfig: { method: "PUT", path: "/mmds/config", when: "before", body: "MmdsConfig" },
  putMmds: { method: "PUT", path: "/mmds", when: "always", body: "MmdsData" },
  patchMmds: { method: "PATCH", path: "/mmds", when: "always", body: "MmdsData" },
  getMmds: { method: "GET", path: "/mmds", when: "always" },
  getBalloon: { method: "GET", path: "/balloon", when: "always" },
  putBalloon: { method: "PUT", path: "/balloon", when: "before", body: "Balloon" },
  patchBalloon: { method: "PATCH", path: "/balloon", when: "after", body: "BalloonUpdate" },
  getBalloonStatistics: { method: "GET", path: "/balloon/statistics", when: "after" },
  patchBalloonStatistics: { method: "PATCH", path: "/balloon/statistics", when: "after", body: "BalloonStatsUpdate" },
  startBalloonHinting: {
    method: "PATCH",
    path: "/balloon/hinting/start",
    when: "after",
    body: "BalloonStartCmd",
    since: v(14),
    preview: true
  },
  getBalloonHinting: { method: "GET", path: "/balloon/hinting/status", when: "after", since: v(14), preview: true },
  stopBalloonHinting: { method: "PATCH", path: "/balloon/hinting/stop", when: "after", since: v(14), preview: true },
  putMemoryHotplug: {
    method: "PUT",
    path: "/hotplug/memory",
    when: "before",
    body: "MemoryHotplugConfig",
    since: v(14)
  },
  patchMemoryHotplug: {
    method: "PATCH",
    path: "/hotplug/memory",
    when: "after",
    body: "MemoryHotplugSizeUpdate",
    since: v(14)
  },
  getMemoryHotplug: { method: "GET", path: "/hotplug/memory", when: "after", since: v(14) },
  // Each action has its own time; see `InstanceActionInfo`.
  putAction: { method: "PUT", path: "/actions", when: "always", body: "InstanceActionInfo" },
  patchVm: { method: "PATCH", path: "/vm", when: "after", body: "Vm" },
  createSnapshot: { method: "PUT", path: "/snapshot/create", when: "after", body: "SnapshotCreateParams" },
  loadSnapshot: { method: "PUT", path: "/snapshot/load", when: "before", body: "SnapshotLoadParams" }
} as const satisfies Readonly<Record<string, Endpoint>>

const ofMachine = (body: "MachineConfiguration" | "MachineConfigurationUpdate"): ReadonlyArray<Feature> => [
  { body, field: "huge_pages", value: "2M", since: v(7) },
  { body, field: "huge_pages", value: "Transparent", since: v(17) },
  { body, field: "smt", value: true, architecture: "x86_64" },
  { body, field: "cpu_template", value: "C3", architecture: "x86_64", deprecated: true },
  { body, field: "cpu_template", value: "T2", architecture: "x86_64", deprecated: true },
  { body, field: "cpu_template", value: "T2S", architecture: "x86_64", deprecated: true },
  { body, field: "cpu_template", value: "T2CL", architecture: "x86_64", deprecated: true },
  { body, field: "cpu_template", value: "T2A", architecture: "x86_64", deprecated: true },
  { body, field: "cpu_template", value: "V1N1", architecture: "aarch64", deprecated: true },
  { body, field: "cpu_template", value: "None", deprecated: true }
]

/**
 * Every field and value that is not everywhere, deprecated or a preview.
 *
 * @category constants
 * @since 0.1.0
 */
export const features: ReadonlyArray<Feature> = [
  ...ofMachine("MachineConfiguration"),
  ...ofMachine("MachineConfigurationUpdate"),
  { body: "CpuConfig", field: "cpuid_modifiers", architecture: "x86_64" },
  { body: "CpuConfig", field: "msr_modifiers", architecture: "x86_64" },
  { body: "CpuConfig", field: "reg_modifiers", architecture: "aarch64" },
  { body: "CpuConfig", field: "vcpu_features", architecture: "aarch64" },
  { body: "Drive", field: "socket", preview: true },
  { body: "Drive", field: "io_engine", value: "Async", preview: true },
  { body: "Pmem", field: "rate_limiter", since: v(16) },
  { body: "NetworkInterface", field: "mtu", since: v(16) },
  { body: "Vsock", field: "vsock_id", deprecated: true },
  { body: "SerialDevice", field: "rate_limiter", since: v(16) },
  { body: "Balloon", field: "free_page_hinting", since: v(14), unless: false, preview: true },
  { body: "Balloon", field: "free_page_reporting", since: v(14), unless: false },
  { body: "MmdsConfig", field: "version", value: "V1", deprecated: true },
  { body: "MmdsConfig", field: "imds_compat", since: v(13), unless: false },
  { body: "Metrics", field: "emit_id", since: v(17), unless: false },
  { body: "Metrics", field: "properties", since: v(17) },
  { body: "InstanceActionInfo", field: "action_type", value: "SendCtrlAltDel", architecture: "x86_64" },
  { body: "SnapshotCreateParams", field: "snapshot_type", value: "Diff", preview: true },
  { body: "SnapshotLoadParams", field: "mem_file_path", deprecated: true },
  { body: "SnapshotLoadParams", field: "enable_diff_snapshots", deprecated: true },
  {
    body: "SnapshotLoadParams",
    field: "track_dirty_pages",
    since: v(13),
    formerly: "enable_diff_snapshots"
  },
  { body: "SnapshotLoadParams", field: "network_overrides", since: v(12) },
  { body: "SnapshotLoadParams", field: "vsock_override", since: v(16) },
  { body: "SnapshotLoadParams", field: "clock_realtime", since: v(16), also: [v(14, 4), v(15, 1)], unless: false },
  { body: "SnapshotLoadParams", field: "clock_realtime", value: true, architecture: "x86_64" },
  { body: "SnapshotLoadParams", field: "huge_pages", since: v(17), unless: "Snapshot" }
]

/**
 * What to know about a release. Numbers are those of Firecracker's pull requests, or of a CVE.
 *
 * @category constants
 * @since 0.1.0
 */
export const knownBad: ReadonlyArray<KnownBad> = [
  {
    fixed: v(8),
    uses: ["pages"],
    what: "before 1.8 memory cannot be served page by page where the kernel is Linux 6.6 or later"
  },
  {
    fixed: v(10),
    uses: ["restore", "vsock"],
    what: "before 1.10 connections over vsock may hang after a snapshot was loaded (4796)"
  },
  {
    fixed: v(11),
    uses: ["jail"],
    what: "before 1.11 Firecracker in a process table of its own may be ended by SIGHUP unless it is a daemon (5045)"
  },
  {
    since: v(8),
    fixed: v(12),
    architecture: "x86_64",
    uses: ["arguments"],
    what:
      "before 1.12 the default kernel arguments have i8042.nopnp, with which Ctrl-Alt-Del does not reach an ACPI kernel"
  },
  {
    fixed: v(12),
    uses: ["pages"],
    what: "before 1.12 Firecracker closes the socket of a page server after its first message"
  },
  {
    fixed: v(14),
    uses: ["logging"],
    what: "before 1.14 the files and FIFOs of log and metrics have to be there before they are named"
  },
  {
    fixed: v(14),
    uses: ["restore"],
    what: "before 1.14 a guest may report soft lock-ups after a snapshot was loaded"
  },
  {
    fixed: v(14),
    uses: ["vsock"],
    what: "before 1.14 data over vsock may be doubled where the guest's kernel is Linux 6.17 or later (5485)"
  },
  {
    fixed: v(14, 1),
    also: [v(13, 2)],
    uses: ["jail"],
    what:
      "before 1.13.2 and 1.14.1 the jailer writes through a link that somebody else put into its jail (CVE-2026-1386)"
  },
  {
    fixed: v(15),
    also: [v(14, 3)],
    uses: ["mmds"],
    what: "before 1.14.3 and 1.15 a guest can make Firecracker hang by what it sends to the metadata service (5739)"
  },
  {
    fixed: v(15),
    uses: ["restore", "vsock"],
    what:
      "before 1.15 a new connection over vsock may hang after a snapshot was loaded, as its port was used before (5688)"
  },
  {
    since: v(13),
    fixed: v(16),
    also: [v(14, 4), v(15, 1)],
    uses: ["pci"],
    what: "before 1.14.4, 1.15.1 and 1.16 a guest can write to Firecracker's memory over the PCI bus (CVE-2026-5747)"
  },
  {
    fixed: v(16),
    also: [v(14, 4), v(15, 1)],
    uses: ["entropy"],
    what: "before 1.14.4, 1.15.1 and 1.16 a guest can have Firecracker take any amount of memory for entropy (5762)"
  },
  {
    fixed: v(16),
    also: [v(14, 4), v(15, 1)],
    uses: ["balloon"],
    what: "before 1.14.4, 1.15.1 and 1.16 a guest can keep Firecracker busy by the statistics of its balloon (5794)"
  },
  {
    since: v(13),
    fixed: v(16),
    uses: ["pci", "restore", "vsock"],
    what: "before 1.16 connections over vsock may break that are made right after a snapshot was loaded (5882)"
  },
  {
    fixed: v(15),
    uses: ["diff"],
    what: "before 1.15 diff snapshots of more than 3 GiB of memory (x86_64) or with memory hotplug are corrupt (5705)"
  },
  {
    fixed: v(15),
    uses: ["logging"],
    what: "before 1.15 a FIFO for log or metrics needs a reader before it is named"
  },
  {
    since: v(14),
    fixed: v(16),
    also: [v(14, 4), v(15, 1)],
    uses: ["hotplug"],
    what: "before 1.14.4, 1.15.1 and 1.16 plugging memory in parts may leave the host's view of it stale (5793)"
  },
  {
    fixed: v(16),
    what: "before 1.16 a guest can have Firecracker log as much and as fast as it likes (5799)"
  },
  {
    fixed: v(16),
    uses: ["restore"],
    what: "before 1.16 the serial console may stand still after a snapshot was loaded (5764)"
  },
  {
    fixed: v(16),
    also: [v(14, 4), v(15, 1)],
    uses: ["restore"],
    what: "before 1.14.4, 1.15.1 and 1.16 clocks may jump after a snapshot was loaded (5809)"
  },
  {
    since: v(16),
    fixed: v(16, 1),
    uses: ["restore", "vsock"],
    what: "in 1.16.0 connections of the guest over vsock may time out after a snapshot was loaded (5958)"
  },
  {
    since: v(16),
    fixed: v(16, 1),
    uses: ["jail"],
    what: "in 1.16.0 the jailer refuses symbolic links to cgroups and network namespaces (5959)"
  },
  {
    since: v(16),
    fixed: v(17),
    uses: ["vsock"],
    what: "in 1.16 new connections to the guest over vsock may hang after it was paused and resumed (6100)"
  },
  {
    since: v(14),
    fixed: v(17),
    uses: ["hotplug"],
    what: "before 1.17 sizes of memory hotplug over 32 bits wrap around (6076)"
  },
  {
    fixed: v(17),
    architecture: "x86_64",
    uses: ["template"],
    what:
      "before 1.17 CPU templates hide features of the processor where the host's kernel is Linux 6.13 or later (6120)"
  },
  {
    fixed: v(17),
    uses: ["logging"],
    what: "before 1.17 Firecracker may hang when nobody reads the pipe it logs to any more (6086)"
  }
]
