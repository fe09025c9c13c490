/**
 * Everything that a machine is configured with before it starts, as one value, and the calls that say it to a Firecracker.
 *
 * ```
 *   logger ▸ metrics ▸ serial ▸ machine-config ▸ boot-source ▸ root drive ▸ interfaces ▸ other drives ▸ vsock
 *   ▸ cpu-config ▸ pmem ▸ entropy ▸ balloon ▸ hotplug/memory ▸ mmds/config ▸ mmds
 * ```
 *
 * The order matters: a log tells of the calls after it, the balloon is held against the memory, the metadata service names
 * interfaces, the last of cpu-config and CPU template wins, and the guest numbers disks and interfaces as they come.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Capabilities from "./Capabilities.ts"
import type { FirecrackerApi } from "./FirecrackerApi.ts"
import * as FirecrackerError from "./FirecrackerError.ts"
import * as FirecrackerSchema from "./FirecrackerSchema.ts"
import * as FirecrackerVersion from "./FirecrackerVersion.ts"
import { checked } from "./internal/checked.ts"
import { gated } from "./internal/gates.ts"
import { bodyText } from "./internal/prepare.ts"
import { spanned } from "./internal/spanned.ts"

const { Array, optional } = Schema

/**
 * Each part is the body of its call. At most one of the drives and pmem devices is the root device.
 *
 * @category schemas
 * @since 0.1.0
 */
export const MachineConfig = Schema.Struct({
  machine: FirecrackerSchema.MachineConfiguration,
  bootSource: FirecrackerSchema.BootSource,
  drives: optional(Array(FirecrackerSchema.Drive)),
  networkInterfaces: optional(Array(FirecrackerSchema.NetworkInterface)),
  vsock: optional(FirecrackerSchema.Vsock),
  cpuConfig: optional(FirecrackerSchema.CpuConfig),
  pmem: optional(Array(FirecrackerSchema.Pmem)),
  entropy: optional(FirecrackerSchema.EntropyDevice),
  balloon: optional(FirecrackerSchema.Balloon),
  memoryHotplug: optional(FirecrackerSchema.MemoryHotplugConfig),
  mmds: optional(Schema.Struct({
    config: FirecrackerSchema.MmdsConfig,
    data: optional(FirecrackerSchema.MmdsData)
  })),
  logger: optional(FirecrackerSchema.Logger),
  metrics: optional(FirecrackerSchema.Metrics),
  serial: optional(FirecrackerSchema.SerialDevice)
})

/**
 * @category models
 * @since 0.1.0
 */
export type MachineConfig = typeof MachineConfig.Type

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /**
   * What is left out where it is not known: fields (`huge_pages`, `MachineConfiguration.huge_pages`) and whole calls
   * (`PUT /serial`). Default none: what is not known is an error.
   */
  readonly optional?: ReadonlyArray<string> | undefined
}

type Fault = FirecrackerError.Fault

/** Those that have the key of an earlier one. */
const repeated = (field: (index: number) => string, values: ReadonlyArray<string | undefined>): ReadonlyArray<Fault> =>
  values.flatMap((value, index) =>
    value === undefined || values.indexOf(value) === index
      ? []
      : [{ field: field(index), value, remedy: `give another than ${field(values.indexOf(value))}` }]
  )

const across = (config: MachineConfig, target: Capabilities.Target): ReadonlyArray<Fault> => {
  const { balloon, drives = [], machine, memoryHotplug, mmds, networkInterfaces = [], pmem = [], vsock } = config
  const roots = [
    ...drives.flatMap((drive, index) => drive.is_root_device ? [`drives[${index}].is_root_device`] : []),
    ...pmem.flatMap((device, index) => device.root_device === true ? [`pmem[${index}].root_device`] : [])
  ]
  const single = [vsock, balloon, config.entropy, memoryHotplug].filter((device) => device !== undefined)
  const devices = drives.length + pmem.length + networkInterfaces.length + single.length
  const most = Capabilities.maxDevices(target)
  const known = networkInterfaces.map(({ iface_id: id }) => id)
  const faults: Array<Fault> = [
    ...repeated((index) => `drives[${index}].drive_id`, drives.map(({ drive_id: id }) => id)),
    ...repeated((index) => `pmem[${index}].id`, pmem.map(({ id }) => id)),
    ...repeated((index) => `networkInterfaces[${index}].iface_id`, known),
    ...repeated(
      (index) => `networkInterfaces[${index}].host_dev_name`,
      networkInterfaces.map((one) => one.host_dev_name)
    ),
    ...repeated(
      (index) => `networkInterfaces[${index}].guest_mac`,
      networkInterfaces.map(({ guest_mac: mac }) => mac?.toLowerCase())
    ),
    ...roots.slice(1).map((field) => ({ field, value: true, remedy: `give one root device, which ${roots[0]} is` })),
    ...(mmds?.config.network_interfaces ?? []).flatMap((id, index) =>
      known.includes(id) ? [] : [{
        field: `mmds.config.network_interfaces[${index}]`,
        value: id,
        remedy: "give the iface_id of one of networkInterfaces"
      }]
    )
  ]
  if (balloon !== undefined && balloon.amount_mib > machine.mem_size_mib) {
    const remedy = `give at most machine.mem_size_mib, ${machine.mem_size_mib}`
    faults.push({ field: "balloon.amount_mib", value: balloon.amount_mib, remedy })
  }
  const withoutHugePages = (field: string, value: unknown, minor: number): void => {
    if (value === undefined || machine.huge_pages !== "2M") return
    if (FirecrackerVersion.isAtLeast(target.version, { major: 1, minor, patch: 0 })) return
    faults.push({ field, value, remedy: `leave it out: before 1.${minor} there is none with huge_pages 2M` })
  }
  withoutHugePages("bootSource.initrd_path", config.bootSource.initrd_path, 11)
  withoutHugePages("balloon", balloon, 14)
  if (devices > most) {
    faults.push({ field: "devices", value: devices, remedy: `give at most ${most} devices` })
  }
  return faults
}

interface Step extends Capabilities.Call {
  readonly endpoint: Capabilities.Endpoint
  /** Where in the config its body is. */
  readonly from: string
}

const all = (config: MachineConfig): ReadonlyArray<Step> => {
  const steps: Array<Step> = []
  const put = (name: keyof typeof Capabilities.endpoints, from: string, body: unknown, id = ""): void => {
    if (body === undefined) return
    const endpoint = Capabilities.endpoints[name]
    steps.push({ endpoint, method: endpoint.method, path: endpoint.path.replace("{id}", id), body, from })
  }
  const drivesThat = (root: boolean): void =>
    config.drives?.forEach((drive, index) => {
      if (drive.is_root_device === root) put("putDrive", `drives[${index}]`, drive, drive.drive_id)
    })
  put("putLogger", "logger", config.logger)
  put("putMetrics", "metrics", config.metrics)
  put("putSerial", "serial", config.serial)
  // Both are told when they are false, too: who reads the calls need not know what the default is.
  put("putMachineConfig", "machine", { smt: false, track_dirty_pages: false, ...config.machine })
  put("putBootSource", "bootSource", config.bootSource)
  drivesThat(true)
  config.networkInterfaces?.forEach((one, index) =>
    put("putNetworkInterface", `networkInterfaces[${index}]`, one, one.iface_id)
  )
  drivesThat(false)
  put("putVsock", "vsock", config.vsock)
  put("putCpuConfig", "cpuConfig", config.cpuConfig)
  config.pmem?.forEach((one, index) => put("putPmem", `pmem[${index}]`, one, one.id))
  put("putEntropy", "entropy", config.entropy)
  put("putBalloon", "balloon", config.balloon)
  put("putMemoryHotplug", "memoryHotplug", config.memoryHotplug)
  put("putMmdsConfig", "mmds.config", config.mmds?.config)
  put("putMmds", "mmds.data", config.mmds?.data)
  return steps
}

const checkedConfig = checked(MachineConfig, "config")

/**
 * The calls that configure this Firecracker, in their order. Fails before anything is sent: with `InvalidRequest` for the
 * form of each part, or, when that is right, for what does not fit together; with `UnsupportedByVersion` for all that this
 * version does not know. Secrets in `mmds.data` stay `Redacted`.
 *
 * ```ts import.meta.vitest
 * import { MachineConfig } from "effect-microvm-runtime/firecracker"
 * import * as Result from "effect/Result"
 * const config = {
 *   machine: { vcpu_count: 1, mem_size_mib: 128 },
 *   bootSource: { kernel_image_path: "vmlinux" },
 *   drives: [{ drive_id: "rootfs", path_on_host: "rootfs.ext4", is_root_device: true }]
 * }
 * const target = { version: { major: 1, minor: 16, patch: 1 }, architecture: "x86_64" } as const
 * const paths = Result.getOrThrow(MachineConfig.steps(config, target)).map(({ path }) => path)
 * paths // => ["/machine-config", "/boot-source", "/drives/rootfs"]
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const steps = (
  config: MachineConfig,
  target: Capabilities.Target,
  options: Options = {}
): Result.Result<ReadonlyArray<Capabilities.Call>, FirecrackerError.FirecrackerError> => {
  const invalid = (faults: ReadonlyArray<Fault>) =>
    Result.fail(FirecrackerError.make(new FirecrackerError.InvalidRequest({ faults })))
  const form = checkedConfig(config)
  if (Result.isFailure(form)) return invalid(form.failure)
  const faults = [...across(form.success, target)]
  const calls: Array<Capabilities.Call> = []
  const lacking = new Map<string, FirecrackerError.UnsupportedByVersion["features"][number]>()
  for (const { body, endpoint, from, method, path } of all(form.success)) {
    const sent = gated(target, endpoint, body, options)
    if (Result.isFailure(sent)) {
      const left = sent.failure.features.filter(({ feature }) => options.optional?.includes(feature) !== true)
      for (const feature of left) lacking.set(feature.feature, feature)
      continue
    }
    const text = bodyText(target, sent.success)
    if (Result.isFailure(text)) {
      for (const fault of text.failure.faults) faults.push({ ...fault, field: from })
    }
    calls.push({ method, path, body: sent.success })
  }
  if (faults.length > 0) return invalid(faults)
  if (lacking.size === 0) return Result.succeed(calls)
  const version = FirecrackerVersion.format(target.version)
  return Result.fail(
    FirecrackerError.make(new FirecrackerError.UnsupportedByVersion({ version, features: [...lacking.values()] }))
  )
}

/**
 * Configures a Firecracker that was not started: all of `steps`, one after the other. Nothing is sent when one of them is
 * not possible. A call that fails leaves those before it done; what was said can be said again until the start.
 *
 * ```ts import.meta.vitest
 * import { FirecrackerApi, MachineConfig } from "effect-microvm-runtime/firecracker"
 * import * as Effect from "effect/Effect"
 * const sent: Array<string> = []
 * const transport = {
 *   request: ({ method, path }: { readonly method: string; readonly path: string }) =>
 *     Effect.sync(() => {
 *       sent.push(`${method} ${path}`)
 *       return { status: 204, body: "", deprecated: false }
 *     })
 * }
 * const api = FirecrackerApi.make(transport, { version: { major: 1, minor: 16, patch: 1 }, architecture: "x86_64" })
 * const config = { machine: { vcpu_count: 1, mem_size_mib: 128 }, bootSource: { kernel_image_path: "vmlinux" } }
 * await Effect.runPromise(MachineConfig.apply(api, config))
 * sent // => ["PUT /machine-config", "PUT /boot-source"]
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const apply = Effect.fnUntraced(function*(
  api: FirecrackerApi,
  config: MachineConfig,
  options: Options = {}
): Effect.fn.Return<void, FirecrackerError.FirecrackerError> {
  const calls = yield* Effect.fromResult(steps(config, api.target, options))
  for (const { body, method, path } of calls) yield* api.request(method, path, body)
}, spanned("MachineConfig.apply"))

/**
 * What a path in a config is used for. All but the outputs and sockets are files that are there before.
 *
 * @category models
 * @since 0.1.0
 */
export type PathUse =
  | "kernel"
  | "initrd"
  | "drive"
  | "read-only drive"
  | "drive socket"
  | "pmem"
  | "read-only pmem"
  | "vsock"
  | "log"
  | "metrics"
  | "serial"

/**
 * The same config with other paths: a Firecracker in a jail, or in a directory of its own, knows a file by another name
 * than we do.
 *
 * ```ts import.meta.vitest
 * import { MachineConfig } from "effect-microvm-runtime/firecracker"
 * const config = {
 *   machine: { vcpu_count: 1, mem_size_mib: 128 },
 *   bootSource: { kernel_image_path: "/images/vmlinux" }
 * }
 * const jailed = MachineConfig.mapPaths(config, (path, use) => `/${use}`)
 * jailed.bootSource // => { kernel_image_path: "/kernel" }
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const mapPaths = (config: MachineConfig, to: (path: string, use: PathUse) => string): MachineConfig => {
  const { bootSource, logger, metrics, serial, vsock } = config
  const moved = <K extends string, P extends { readonly [_ in K]?: string | undefined }>(
    part: P,
    key: K,
    use: PathUse
  ): P => {
    const path = part[key]
    return path === undefined ? part : { ...part, [key]: to(path, use) }
  }
  return {
    ...config,
    bootSource: moved(moved(bootSource, "kernel_image_path", "kernel"), "initrd_path", "initrd"),
    drives: config.drives?.map((drive) => {
      const use = drive.is_read_only === true ? "read-only drive" : "drive"
      return moved(moved(drive, "path_on_host", use), "socket", "drive socket")
    }),
    pmem: config.pmem?.map((one) => moved(one, "path_on_host", one.read_only === true ? "read-only pmem" : "pmem")),
    vsock: vsock && moved(vsock, "uds_path", "vsock"),
    logger: logger && moved(logger, "log_path", "log"),
    metrics: metrics && moved(metrics, "metrics_path", "metrics"),
    serial: serial && moved(serial, "serial_out_path", "serial")
  }
}
