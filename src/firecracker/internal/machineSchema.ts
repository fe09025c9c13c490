/**
 * What the machine itself, its logs and its snapshots are configured with.
 */
import * as Schema from "effect/Schema"
import { between, HostDevice, Path, ResourceId, SocketPath, Text, U32 } from "./wireParts.ts"

const { optional } = Schema

const machineFields = {
  vcpu_count: between(1, 32),
  mem_size_mib: between(1, 2 ** 32 - 1),
  smt: optional(Schema.Boolean),
  track_dirty_pages: optional(Schema.Boolean),
  huge_pages: optional(Schema.Literals(["None", "2M", "Transparent"])),
  cpu_template: optional(Schema.Literals(["C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"]))
}

const fitting = (machine: {
  readonly vcpu_count?: number | undefined
  readonly mem_size_mib?: number | undefined
  readonly smt?: boolean | undefined
  readonly huge_pages?: "None" | "2M" | "Transparent" | undefined
}) => {
  const { huge_pages = "None", mem_size_mib = 2, smt = false, vcpu_count = 1 } = machine
  return [
    ...(smt && vcpu_count !== 1 && vcpu_count % 2 !== 0
      ? [{ path: ["vcpu_count"], issue: "give 1 or an even number with smt" }]
      : []),
    ...(huge_pages !== "None" && mem_size_mib % 2 !== 0
      ? [{ path: ["mem_size_mib"], issue: `give an even number with huge_pages ${huge_pages}` }]
      : [])
  ]
}

/**
 * The CPUs and the memory: `vcpu_count` 1 to 32, 1 or even with `smt`; `mem_size_mib` in MiB, even with huge pages. Fields
 * that are left out take their defaults: no `smt`, no `track_dirty_pages`, `huge_pages` `None`. `cpu_template` is
 * deprecated: use `CpuConfig`.
 *
 * @category schemas
 * @since 0.1.0
 */
export const MachineConfiguration = Schema.Struct(machineFields).check(Schema.makeFilter(fitting))

/**
 * @category models
 * @since 0.1.0
 */
export type MachineConfiguration = typeof MachineConfiguration.Type

/**
 * A change of some fields, one at least. The others stay as they are.
 *
 * @category schemas
 * @since 0.1.0
 */
export const MachineConfigurationUpdate = Schema.Struct({
  ...machineFields,
  vcpu_count: optional(machineFields.vcpu_count),
  mem_size_mib: optional(machineFields.mem_size_mib)
}).check(
  Schema.makeFilter((update) =>
    Object.values(update).every((value) => value === undefined) ? "give one field at least" : fitting(update)
  )
)

/**
 * @category models
 * @since 0.1.0
 */
export type MachineConfigurationUpdate = typeof MachineConfigurationUpdate.Type

/**
 * The kernel: an uncompressed ELF image on x86_64 (from 1.17 on also a bzImage), an Image on aarch64. The files are opened
 * at the call. Without `boot_args` Firecracker has its own, with the serial console off. The command line is 2048 bytes at
 * most with what Firecracker adds to it.
 *
 * @category schemas
 * @since 0.1.0
 */
export const BootSource = Schema.Struct({
  kernel_image_path: Path,
  initrd_path: optional(Path),
  boot_args: optional(Schema.String.check(
    Schema.isPattern(/^[ -~]{0,2048}$/, { expected: "at most 2048 printable ASCII characters" })
  ))
})

/**
 * @category models
 * @since 0.1.0
 */
export type BootSource = typeof BootSource.Type

const Bitmap = Schema.String.check(
  Schema.isPattern(/^(0b)?[01x_]{1,200}$/, { expected: "a bitmap: 0b, then 0, 1, x and _" })
)
const Register = Schema.String.check(
  Schema.isPattern(/^(0x[0-9A-Fa-f]{1,16}|0b[01]{1,64})$/, { expected: "a number as text: 0x… or 0b…" })
)

/**
 * A custom CPU template. `kvm_capabilities` are numbers as text: `121` adds one, `!121` takes one away. `cpuid_modifiers`
 * and `msr_modifiers` are for x86_64, `reg_modifiers` and `vcpu_features` for aarch64. In a bitmap `x` leaves a bit alone.
 *
 * @category schemas
 * @since 0.1.0
 */
export const CpuConfig = Schema.Struct({
  kvm_capabilities: optional(Schema.Array(Schema.String.check(
    Schema.isPattern(/^!?[0-9]{1,10}$/, {
      expected: "the number of a capability, with \"!\" before it to take it away"
    })
  ))),
  cpuid_modifiers: optional(Schema.Array(Schema.Struct({
    leaf: Register,
    subleaf: Register,
    flags: U32,
    modifiers: Schema.Array(Schema.Struct({
      register: Schema.Literals(["eax", "ebx", "ecx", "edx"]),
      bitmap: Bitmap
    }))
  }))),
  msr_modifiers: optional(Schema.Array(Schema.Struct({ addr: Register, bitmap: Bitmap }))),
  reg_modifiers: optional(Schema.Array(Schema.Struct({ addr: Register, bitmap: Bitmap }))),
  vcpu_features: optional(Schema.Array(Schema.Struct({ index: U32, bitmap: Bitmap })))
})

/**
 * @category models
 * @since 0.1.0
 */
export type CpuConfig = typeof CpuConfig.Type

/**
 * Where the log goes to (default: stdout, between the guest's own output), and how much of it. Each call sets `level` to
 * `Info` when it is left out, and leaves the other fields as they were. A file is not emptied first.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Logger = Schema.Struct({
  log_path: optional(Path),
  level: optional(Schema.Literals(["Off", "Trace", "Debug", "Info", "Warning", "Error"])),
  show_level: optional(Schema.Boolean),
  show_log_origin: optional(Schema.Boolean),
  module: optional(Text)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Logger = typeof Logger.Type

/**
 * Where the metrics go to: a file or a FIFO. It can be said once.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Metrics = Schema.Struct({
  metrics_path: Path,
  emit_id: optional(Schema.Boolean),
  properties: optional(Schema.Record(Text, Text))
})

/**
 * @category models
 * @since 0.1.0
 */
export type Metrics = typeof Metrics.Type

/**
 * `InstanceStart` once, before the start; `FlushMetrics` and `SendCtrlAltDel` (x86_64 only) after it.
 *
 * @category schemas
 * @since 0.1.0
 */
export const InstanceActionInfo = Schema.Struct({
  action_type: Schema.Literals(["InstanceStart", "FlushMetrics", "SendCtrlAltDel"])
})

/**
 * @category models
 * @since 0.1.0
 */
export type InstanceActionInfo = typeof InstanceActionInfo.Type

/**
 * @category schemas
 * @since 0.1.0
 */
export const Vm = Schema.Struct({ state: Schema.Literals(["Paused", "Resumed"]) })

/**
 * @category models
 * @since 0.1.0
 */
export type Vm = typeof Vm.Type

/**
 * Writes a paused machine down. A `Diff` (preview) holds the pages that were written since the last one; the default is
 * `Full`.
 *
 * @category schemas
 * @since 0.1.0
 */
export const SnapshotCreateParams = Schema.Struct({
  snapshot_path: Path,
  mem_file_path: Path,
  snapshot_type: optional(Schema.Literals(["Full", "Diff"]))
})

/**
 * @category models
 * @since 0.1.0
 */
export type SnapshotCreateParams = typeof SnapshotCreateParams.Type

const MemoryBackend = Schema.Struct({ backend_type: Schema.Literals(["File", "Uffd"]), backend_path: Path })

/**
 * Loads a snapshot into a Firecracker that nothing else was configured in. The machine is left paused unless `resume_vm`.
 * Exactly one of `mem_backend` and `mem_file_path` (deprecated) is given. `huge_pages` `2M` needs the backend `Uffd`.
 * `enable_diff_snapshots` is the older name of `track_dirty_pages`. A load that fails ends Firecracker.
 *
 * @category schemas
 * @since 0.1.0
 */
export const SnapshotLoadParams = Schema.Struct({
  snapshot_path: Path,
  mem_backend: optional(MemoryBackend),
  mem_file_path: optional(Path),
  enable_diff_snapshots: optional(Schema.Boolean),
  track_dirty_pages: optional(Schema.Boolean),
  resume_vm: optional(Schema.Boolean),
  network_overrides: optional(Schema.Array(Schema.Struct({ iface_id: ResourceId, host_dev_name: HostDevice }))),
  vsock_override: optional(Schema.Struct({ uds_path: SocketPath })),
  clock_realtime: optional(Schema.Boolean),
  huge_pages: optional(Schema.Literals(["Snapshot", "None", "Transparent", "2M"]))
}).check(Schema.makeFilter((load) => {
  const { mem_backend: backend, mem_file_path: file } = load
  return [
    ...((backend === undefined) === (file === undefined)
      ? [{ path: ["mem_backend"], issue: "give either mem_backend or mem_file_path" }]
      : []),
    ...(load.huge_pages === "2M" && backend?.backend_type !== "Uffd"
      ? [{ path: ["huge_pages"], issue: "give 2M only with a mem_backend of type Uffd" }]
      : []),
    ...(backend?.backend_type === "Uffd" && !Schema.is(SocketPath)(backend.backend_path)
      ? [{ path: ["mem_backend", "backend_path"], issue: "give the path of a socket, at most 107 bytes" }]
      : [])
  ]
}))

/**
 * @category models
 * @since 0.1.0
 */
export type SnapshotLoadParams = typeof SnapshotLoadParams.Type
