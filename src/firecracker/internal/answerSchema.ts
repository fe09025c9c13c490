/**
 * What Firecracker answers with. Versions differ, so unknown keys are no fault, enumerations are texts, and what is not
 * always there is optional; what is unset may also come as `null`.
 */
import * as Schema from "effect/Schema"

const { Boolean, Number, String } = Schema
const maybe = <S extends Schema.Constraint>(schema: S) => Schema.optionalKey(Schema.NullOr(schema))

/**
 * `GET /`. `state` is `Not started`, `Running` or `Paused`; a machine that has ended has no API.
 *
 * @category schemas
 * @since 0.1.0
 */
export const InstanceInfo = Schema.Struct({ app_name: String, id: String, state: String, vmm_version: String })

/**
 * @category models
 * @since 0.1.0
 */
export type InstanceInfo = typeof InstanceInfo.Type

/**
 * `GET /version`.
 *
 * @category schemas
 * @since 0.1.0
 */
export const VersionInfo = Schema.Struct({ firecracker_version: String })

/**
 * @category models
 * @since 0.1.0
 */
export type VersionInfo = typeof VersionInfo.Type

/**
 * `GET /machine-config`.
 *
 * @category schemas
 * @since 0.1.0
 */
export const MachineConfigurationInfo = Schema.Struct({
  vcpu_count: Number,
  mem_size_mib: Number,
  smt: maybe(Boolean),
  track_dirty_pages: maybe(Boolean),
  huge_pages: maybe(String),
  cpu_template: maybe(String)
})

/**
 * @category models
 * @since 0.1.0
 */
export type MachineConfigurationInfo = typeof MachineConfigurationInfo.Type

/**
 * `GET /balloon`.
 *
 * @category schemas
 * @since 0.1.0
 */
export const BalloonInfo = Schema.Struct({
  amount_mib: Number,
  deflate_on_oom: Boolean,
  stats_polling_interval_s: maybe(Number),
  free_page_hinting: maybe(Boolean),
  free_page_reporting: maybe(Boolean)
})

/**
 * @category models
 * @since 0.1.0
 */
export type BalloonInfo = typeof BalloonInfo.Type

/**
 * `GET /balloon/statistics`: pages of 4 KiB, MiB, and what the guest tells (bytes and counts), each as of its last report.
 *
 * @category schemas
 * @since 0.1.0
 */
export const BalloonStats = Schema.Struct({
  target_pages: Number,
  actual_pages: Number,
  target_mib: Number,
  actual_mib: Number,
  swap_in: maybe(Number),
  swap_out: maybe(Number),
  major_faults: maybe(Number),
  minor_faults: maybe(Number),
  free_memory: maybe(Number),
  total_memory: maybe(Number),
  available_memory: maybe(Number),
  disk_caches: maybe(Number),
  hugetlb_allocations: maybe(Number),
  hugetlb_failures: maybe(Number),
  oom_kill: maybe(Number),
  alloc_stall: maybe(Number),
  async_scan: maybe(Number),
  direct_scan: maybe(Number),
  async_reclaim: maybe(Number),
  direct_reclaim: maybe(Number)
})

/**
 * @category models
 * @since 0.1.0
 */
export type BalloonStats = typeof BalloonStats.Type

/**
 * `GET /balloon/hinting/status`: the last command of the host, and the last one that the guest has taken up.
 *
 * @category schemas
 * @since 0.1.0
 */
export const BalloonHintingStatus = Schema.Struct({ host_cmd: Number, guest_cmd: maybe(Number) })

/**
 * @category models
 * @since 0.1.0
 */
export type BalloonHintingStatus = typeof BalloonHintingStatus.Type

/**
 * `GET /hotplug/memory`. The guest takes its time: `plugged_size_mib` comes near to `requested_size_mib`.
 *
 * @category schemas
 * @since 0.1.0
 */
export const MemoryHotplugStatus = Schema.Struct({
  total_size_mib: Number,
  slot_size_mib: Number,
  block_size_mib: Number,
  plugged_size_mib: Number,
  requested_size_mib: Number
})

/**
 * @category models
 * @since 0.1.0
 */
export type MemoryHotplugStatus = typeof MemoryHotplugStatus.Type

const open = <F extends Schema.Struct.Fields>(fields: F) =>
  Schema.StructWithRest(Schema.Struct(fields), [Schema.Record(String, Schema.Unknown)])

/**
 * `GET /vm/config`, with whatever else is in it. Serial console, log and metrics are not told, and after a snapshot was
 * loaded `boot-source`, `smt` and `cpu_template` are empty.
 *
 * @category schemas
 * @since 0.1.0
 */
export const FullVmConfiguration = open({
  "machine-config": maybe(MachineConfigurationInfo),
  "boot-source": maybe(
    open({ kernel_image_path: maybe(String), initrd_path: maybe(String), boot_args: maybe(String) })
  ),
  drives: maybe(Schema.Array(open({
    drive_id: String,
    is_root_device: Boolean,
    is_read_only: maybe(Boolean),
    path_on_host: maybe(String),
    socket: maybe(String)
  }))),
  "network-interfaces": maybe(Schema.Array(open({
    iface_id: String,
    host_dev_name: String,
    guest_mac: maybe(String)
  }))),
  vsock: maybe(open({ guest_cid: Number, uds_path: String })),
  balloon: maybe(BalloonInfo)
})

/**
 * @category models
 * @since 0.1.0
 */
export type FullVmConfiguration = typeof FullVmConfiguration.Type
