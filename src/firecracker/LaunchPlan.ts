/**
 * What is going to be started for a machine, and what it is going to be told: all of it as a value. No I/O.
 *
 * Every machine has a directory of its own, in which its Firecracker runs. Firecracker is told nothing but names in it, and
 * what has to be there is put there under that name. So a snapshot, which holds the paths of drives and sockets, is
 * restored in another directory without a change, and no path of a socket is too long.
 *
 * @since 0.1.0
 */
import * as Result from "effect/Result"
import * as Struct from "effect/Struct"
import * as GuestNetwork from "../microvm/GuestNetwork.ts"
import type { MachineSpec } from "../microvm/MachineSpec.ts"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import type * as Snapshot from "../microvm/Snapshot.ts"
import * as ProcessCapabilities from "../process/ProcessCapabilities.ts"
import * as BootArgs from "./BootArgs.ts"
import * as Capabilities from "./Capabilities.ts"
import type { Setup } from "./FirecrackerHost.ts"
import type * as FirecrackerSchema from "./FirecrackerSchema.ts"
import * as FirecrackerVersion from "./FirecrackerVersion.ts"
import { describeDevices, inventory, usesOf } from "./internal/deviceWords.ts"
import { faultsOf, unsupported } from "./internal/planFaults.ts"
import { countOf, type Devices, devicesOf, entriesOf, type Entry, renamed, rootOf } from "./internal/plannedDevices.ts"
import { formFaults, type Merged, mergedOf, snapshotFiles } from "./internal/snapshotForm.ts"
import * as JailPlan from "./JailPlan.ts"
import * as MachineConfig from "./MachineConfig.ts"
import { memBackend } from "./PageServer.ts"

export { type Devices, type Entry } from "./internal/plannedDevices.ts"
export { type Form, type Merged, snapshotFiles } from "./internal/snapshotForm.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /**
   * What machines have beside what their specs say. Where something leads to, such as the path of a drive, may depend on the
   * id; what there is may not: a snapshot is restored under another id. Default: nothing.
   */
  readonly devices?: Devices | ((spec: MachineSpec) => Devices) | undefined
  /** Arguments for the kernel of every machine, before those of its spec. Default none. */
  readonly kernelArgs?: ReadonlyArray<string> | undefined
  /** Devices on a PCI bus instead of MMIO (`--enable-pci`, 1.13 and later). Default false. */
  readonly pci?: boolean | undefined
  /** How much Firecracker logs. Default `"Info"`, from which the end of a machine is told best. */
  readonly logLevel?: "Error" | "Warning" | "Info" | "Debug" | "Trace" | undefined
  /**
   * How a restored machine gets its memory: `"file"`, the default, maps the snapshot's, and `"uffd"` has us serve it page by
   * page, as huge pages need it.
   */
  readonly memoryBackend?: "file" | "uffd" | undefined
  /** Is it noted which pages machines write, so that they can be saved as differences? Default false. */
  readonly diffs?: boolean | undefined
  /**
   * Is a restored guest's kvm-clock to be set to the time of now? Default: where Firecracker can, on x86_64 from Linux 5.16 on.
   * A guest that uses another clock source is as late as its snapshot is old.
   */
  readonly adjustClock?: boolean | undefined
  /** Does Firecracker tell its metrics? Default false. */
  readonly metrics?: boolean | undefined
  /** Default: Firecracker runs as we do, with what its own filter of system calls leaves it. */
  readonly jail?: Jailing | undefined
  /** Path of the network namespace in which the TAP devices are (`/run/netns/NAME`), also in place of the jail's. Default: ours. */
  readonly netns?: string | undefined
}

/**
 * How machines are jailed. In a jail, what a machine writes to its drives is written to copies, which end with it.
 *
 * @category options
 * @since 0.1.0
 */
export interface Jailing extends Omit<JailPlan.Options, "id" | "jailer" | "machine" | "version" | "files" | "args"> {
  readonly host: JailPlan.JailHost
}

/**
 * How a machine comes to be: it boots a kernel, or goes on from a snapshot. `memory` is the file that was made of the memory of
 * one that is only a difference, and of all that it stands on.
 *
 * @category models
 * @since 0.1.0
 */
export type Origin =
  | { readonly _tag: "Boot" }
  | { readonly _tag: "Restore"; readonly snapshot: Snapshot.Snapshot; readonly memory?: string }

/**
 * What is made in the directory of a machine, beside the files that it is given.
 *
 * @category constants
 * @since 0.1.0
 */
export const names = {
  api: "api.sock",
  vsock: "vsock.sock",
  pages: "pages.sock",
  log: "firecracker.log",
  metrics: "firecracker.metrics"
} as const

/**
 * @category models
 * @since 0.1.0
 */
export interface LaunchPlan {
  readonly backend: "firecracker"
  /** For people: what this is, and why so. */
  readonly description: ReadonlyArray<string>
  /** What of that is known to go wrong with this release, and to concern such a machine. */
  readonly warnings: ReadonlyArray<string>
  /** Firecracker runs in the directory of the machine, whichever program brings it there. */
  readonly argv: readonly [program: string, ...args: ReadonlyArray<string>]
  /** What is put into that directory. */
  readonly entries: ReadonlyArray<Entry>
  /** The memory, if that is served page by page. */
  readonly served: Entry | undefined
  /** What the memory has to be put together of first, if it is not there as it is needed. */
  readonly merged: Merged | undefined
  /** Is it known which pages the machine writes? */
  readonly tracks: boolean
  /** The vsock port of each channel. */
  readonly channels: ReadonlyMap<string, number>
  /** The machine. One that goes on from a snapshot is told only of what that does not have: metrics and serial console. */
  readonly config: MachineConfig.MachineConfig
  /** What it goes on from. */
  readonly load: FirecrackerSchema.SnapshotLoadParams | undefined
  /** What follows from the kernel's arguments. */
  readonly facts: BootArgs.Facts
  readonly jail: JailPlan.JailPlan | undefined
}

/**
 * The port of the first channel; those below are for privileged programs of a guest (vsock(7)).
 *
 * @category constants
 * @since 0.1.0
 */
export const firstPort = 1024

/** It never leaves the guest, so all may have the same; 0 to 2 are taken (vsock(7)). */
const guestCid = 3

const targetOf = ({ architecture, version }: Setup, { pci = false }: Options): Capabilities.Target => ({
  architecture,
  version,
  pci
})

const bootArgs = (setup: Setup, spec: MachineSpec, options: Options, devices: Devices) => {
  const { architecture } = setup
  return BootArgs.make({
    architecture,
    hostname: spec.hostname,
    devices: { pci: options.pci, count: countOf(devices, spec.channels), root: rootOf(devices) },
    args: [
      // A power-off would leave Firecracker running, with a guest that stands still.
      ...(architecture === "x86_64" ? ["microvm.off=reboot"] : []),
      ...(spec.channels.length === 0 ? [] : [`microvm.vsock=${firstPort},${spec.channels.join(",")}`]),
      ...GuestNetwork.kernelArgs(spec.networks),
      ...options.kernelArgs ?? [],
      ...spec.kernelArgs
    ]
  })
}

const hasPci: FirecrackerVersion.FirecrackerVersion = { major: 1, minor: 13, patch: 0 }
const overridesNetwork: FirecrackerVersion.FirecrackerVersion = { major: 1, minor: 12, patch: 0 }

/** KVM knows the time of a snapshot since Linux 5.16 (KVM_CLOCK_REALTIME in Documentation/virt/kvm/api.rst). */
const hasRealtime = (setup: Setup, options: Options): boolean => {
  const [, major = "0", minor = "0"] = /^(\d+)\.(\d+)/.exec(setup.kernel) ?? []
  const isNew = Number(major) > 5 || (Number(major) === 5 && Number(minor) >= 16)
  const load = { method: "PUT", path: "/snapshot/load", body: { clock_realtime: true } } as const
  return isNew && Result.isSuccess(Capabilities.check(targetOf(setup, options), load))
}

const savesWhole: FirecrackerVersion.FirecrackerVersion = { major: 1, minor: 15, patch: 0 }

/**
 * Before 1.15, a difference is wrong where memory has more than one stretch (PR 5705 of Firecracker): the first of x86_64 ends
 * at 3 GiB (arch/x86_64/layout.rs), and what can be plugged in is one of its own.
 */
const canTrack = ({ architecture, version }: Setup, { memoryMib }: Snapshot.Inventory, devices: Devices): boolean =>
  FirecrackerVersion.isAtLeast(version, savesWhole) ||
  (devices.memoryHotplug === undefined && (architecture !== "x86_64" || memoryMib <= 3072))

const loadOf = (
  setup: Setup,
  options: Options,
  tracks: boolean,
  { networkInterfaces = [] }: Devices
): FirecrackerSchema.SnapshotLoadParams => ({
  snapshot_path: snapshotFiles.state,
  mem_backend: options.memoryBackend === "uffd"
    ? memBackend(names.pages)
    : { backend_type: "File", backend_path: snapshotFiles.memory },
  resume_vm: false,
  ...(tracks && { track_dirty_pages: true }),
  ...((options.adjustClock ?? hasRealtime(setup, options)) && { clock_realtime: true }),
  // An older one finds the device only under the name that it had.
  ...(networkInterfaces.length > 0 && FirecrackerVersion.isAtLeast(setup.version, overridesNetwork) && {
    network_overrides: networkInterfaces.map(Struct.pick(["iface_id", "host_dev_name"]))
  })
})

const bootEntries = ({ initramfs, kernel }: Pick<MachineSpec, "initramfs" | "kernel">): ReadonlyArray<Entry> => [
  { field: "kernel", name: snapshotFiles.kernel, path: kernel, writable: false },
  ...(initramfs === undefined
    ? []
    : [{ field: "initramfs", name: snapshotFiles.initramfs, path: initramfs, writable: false }])
]

const configOf = (spec: MachineSpec, devices: Devices, options: Options, text: string): MachineConfig.MachineConfig => {
  const { machine, ...others } = devices
  return {
    ...others,
    machine: { ...machine, vcpu_count: spec.vcpus, mem_size_mib: spec.memoryMib },
    bootSource: {
      kernel_image_path: snapshotFiles.kernel,
      ...(spec.initramfs !== undefined && { initrd_path: snapshotFiles.initramfs }),
      boot_args: text
    },
    ...renamed(devices),
    ...(spec.channels.length > 0 && { vsock: { guest_cid: guestCid, uds_path: names.vsock } }),
    ...(options.metrics === true && { metrics: { metrics_path: names.metrics } })
  }
}

/** A file that others share is seen in the jail as it is; what Firecracker writes to, and what is small, is copied. */
const jailFile = ({ name, path, writable }: Entry): JailPlan.JailFile =>
  writable || name === snapshotFiles.state
    ? { how: "copy", name, from: path, writable }
    : { how: "bind", name, from: path }

const jailOf = (
  setup: Setup,
  spec: MachineSpec,
  { host, ...jail }: Jailing,
  devices: Devices,
  entries: ReadonlyArray<Entry>,
  args: ReadonlyArray<string>
) =>
  JailPlan.make(host, {
    ...jail,
    id: spec.id,
    jailer: setup.jailer ?? "",
    version: setup.version,
    machine: { vcpus: spec.vcpus, memoryMib: spec.memoryMib + (devices.memoryHotplug?.total_size_mib ?? 0) },
    files: [...entries.map(jailFile), { how: "empty", name: names.log }],
    args
  })

/** What this backend adds to what the parts of the configuration check by themselves. */
const ownFaults = (
  spec: MachineSpec,
  devices: Devices,
  entries: ReadonlyArray<Entry>,
  origin: Origin,
  { jail, memoryBackend = "file" }: Options
): ReadonlyArray<MicroVmError.Fault> => [
  ...(jail?.daemonize === true
    ? [{
      field: "jail.daemonize",
      value: true,
      remedy: "leave it out: a daemon has no stdio, so neither the console nor a panic of the guest would be seen"
    }]
    : []),
  ...spec.networks.flatMap(({ tap }, index) =>
    tap === undefined
      ? [{ field: `networks[${index}].tap`, value: tap, remedy: "give a TAP device: no card leads nowhere here" }]
      : []
  ),
  ...(devices.serial?.serial_out_path === undefined ? [] : [{
    field: "devices.serial.serial_out_path",
    value: devices.serial.serial_out_path,
    remedy: "leave it out: the console of a machine is its own"
  }]),
  ...(origin._tag === "Restore" && devices.machine?.huge_pages === "2M" && memoryBackend === "file"
    ? [{
      field: "devices.machine.huge_pages",
      value: "2M",
      remedy: "a file can't be mapped into huge pages: set MICROVM_MEM_BACKEND=uffd"
    }]
    : []),
  ...entries.flatMap(({ field, path }) =>
    path.startsWith("/") ? [] : [{ field, value: path, remedy: "give an absolute path" }]
  )
]

/**
 * Plans a machine. Fails with `InvalidSpec` for what cannot be (all faults at once; what is about `Options.devices` has a
 * field that starts with `devices`), with `Unsupported` for what this version of Firecracker does not know, and with
 * `SnapshotUnusable` for a snapshot that has another form than those that are known.
 *
 * ```ts import.meta.vitest
 * import { LaunchPlan } from "effect-microvm-runtime/firecracker"
 * import { MachineSpec } from "effect-microvm-runtime/microvm"
 * import * as Result from "effect/Result"
 * const spec = Result.getOrThrow(MachineSpec.make({ id: "web-1", kernel: "/boot/vmlinux", channels: ["agent"] }))
 * const plan = Result.getOrThrow(LaunchPlan.make({
 *   binary: "/usr/bin/firecracker",
 *   version: { major: 1, minor: 16, patch: 1 },
 *   snapshotFormat: "10.0.0",
 *   architecture: "x86_64",
 *   cpu: "Model 1",
 *   kernel: "6.1.0",
 *   uid: 1000,
 *   because: "KVM is usable"
 * }, spec))
 * plan.argv.slice(0, 3) // => ["/usr/bin/firecracker", "--api-sock", "api.sock"]
 * plan.channels.get("agent") // => 1024
 * plan.config.vsock // => { guest_cid: 3, uds_path: "vsock.sock" }
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  setup: Setup,
  spec: MachineSpec,
  origin: Origin = { _tag: "Boot" },
  options: Options = {}
): Result.Result<LaunchPlan, MicroVmError.MicroVmError> => {
  const why = origin._tag === "Restore" ? formFaults(origin.snapshot) : []
  if (origin._tag === "Restore" && why.length > 0) {
    return Result.fail(MicroVmError.make(new MicroVmError.SnapshotUnusable({ snapshot: origin.snapshot.id, why })))
  }
  const target = targetOf(setup, options)
  if (target.pci === true && !FirecrackerVersion.isAtLeast(setup.version, hasPci)) {
    const remedy = `${FirecrackerVersion.format(setup.version)} has none: take 1.13 or later, or leave out \`pci\``
    return Result.fail(
      MicroVmError.make(new MicroVmError.Unsupported({ operation: "a PCI bus", backend: "firecracker", remedy }))
    )
  }
  const given = devicesOf(options.devices, spec, setup)
  const tracks = (options.diffs === true || given.machine?.track_dirty_pages === true) && canTrack(setup, spec, given)
  const devices = tracks ? { ...given, machine: { ...given.machine, track_dirty_pages: true } } : given
  const args = bootArgs(setup, spec, options, devices)
  const config = configOf(spec, devices, options, Result.isSuccess(args) ? args.success.text : "")
  const steps = MachineConfig.steps(config, target)
  const channels = new Map(spec.channels.map((name, index) => [name, firstPort + index]))
  const { logLevel = "Info", memoryBackend = "file", pci = false } = options
  const from = origin._tag === "Restore" ? origin.snapshot : undefined
  const loads = from !== undefined && from.manifest.form !== "unstarted"
  const merged = from === undefined ? undefined : mergedOf(from)
  const at = (field: keyof typeof snapshotFiles): Entry => ({
    field,
    name: snapshotFiles[field],
    path: field === "memory" && origin._tag === "Restore" && origin.memory !== undefined
      ? origin.memory
      : `${from?.directory}/${snapshotFiles[field]}`,
    writable: false
  })
  const entries = [
    ...(loads
      ? [at("state"), ...(memoryBackend === "file" ? [at("memory")] : [])]
      : from === undefined
      ? bootEntries(spec)
      : [at("kernel"), ...(spec.initramfs === undefined ? [] : [at("initramfs")])]),
    ...entriesOf(devices, spec.drives.length)
  ]
  const flags = ["--log-path", names.log, "--level", logLevel, ...(pci ? ["--enable-pci"] : [])]
  const jail = options.jail === undefined
    ? Result.succeed(undefined)
    : Result.mapError(
      jailOf(setup, spec, { ...options.jail, netns: options.netns ?? options.jail.netns }, devices, entries, flags),
      faultsOf("jail")
    )
  const faults = [
    ...(Result.isFailure(args) ? faultsOf("devices")(args.failure) : []),
    ...ownFaults(spec, devices, entriesOf(devices, spec.drives.length), origin, options),
    ...(Result.isFailure(steps) ? faultsOf("devices")(steps.failure) : []),
    ...(Result.isFailure(jail) ? jail.failure : [])
  ]
  if (Result.isFailure(args) || Result.isFailure(jail) || faults.length > 0) {
    return Result.fail(MicroVmError.make(new MicroVmError.InvalidSpec({ faults })))
  }
  if (Result.isFailure(steps)) return Result.fail(unsupported(steps.failure))
  const served = loads && memoryBackend === "uffd"
  const warnings = [
    ...Capabilities.warnings(target, [
      ...loads ? ["restore"] as const : [],
      ...served ? ["pages"] as const : [],
      ...jail.success === undefined ? [] : ["jail"] as const,
      ...pci ? ["pci"] as const : [],
      ...usesOf(config)
    ]),
    ...(devices.balloon?.free_page_hinting === true
      ? ["free page hinting is a preview: memory of the guest may be lost when a run is stopped"]
      : [])
  ]
  return Result.succeed({
    backend: "firecracker",
    description: [
      `Firecracker ${FirecrackerVersion.format(setup.version)}: ${setup.because}`,
      ...(jail.success?.description ?? [`runs as uid ${setup.uid}, in a directory of its own`]),
      `${spec.vcpus} vCPU, ${spec.memoryMib} MiB`,
      ...(from === undefined
        ? [`kernel ${spec.kernel}${spec.initramfs === undefined ? "" : `, initramfs ${spec.initramfs}`}`]
        : [`goes on from snapshot ${from.id}, ${from.manifest.form}`]),
      ...(merged === undefined ? [] : [`memory put together of ${1 + merged.layers.length} snapshots`]),
      ...(loads ? [`memory ${memoryBackend === "file" ? "mapped from its file" : "served page by page"}`] : []),
      ...(tracks ? ["can be saved as the difference to another snapshot"] : []),
      ...describeDevices(devices),
      ...Array.from(channels, ([name, port]) => `channel ${name} is port ${port} of vsock`),
      ...(loads ? [] : args.success.warnings),
      ...warnings
    ],
    warnings,
    argv: jail.success?.argv ?? unjailed(setup, options, ["--api-sock", names.api, ...flags]),
    entries,
    served: served ? at("memory") : undefined,
    merged,
    tracks,
    channels,
    config,
    load: loads ? loadOf(setup, options, tracks, devices) : undefined,
    facts: args.success,
    jail: jail.success
  })
}

const unjailed = (
  { binary, passesCapabilities = false }: Setup,
  { netns }: Options,
  args: ReadonlyArray<string>
): LaunchPlan["argv"] => {
  const [first = binary, ...rest] = [
    ...(netns === undefined ? [] : ["nsenter", `--net=${netns}`, "--"]),
    ...(passesCapabilities ? ProcessCapabilities.without : []),
    binary,
    ...args
  ]
  return [first, ...rest]
}

/** The id under which it is looked which devices there are. They must not depend on it. */
const anyId = "any"

/**
 * What a snapshot of such a machine counts on. Firecracker itself checks its own format, and nothing else
 * (docs/snapshotting/versioning.md): the guest would find out.
 *
 * ```ts import.meta.vitest
 * import { LaunchPlan } from "effect-microvm-runtime/firecracker"
 * import { MachineSpec } from "effect-microvm-runtime/microvm"
 * import * as Result from "effect/Result"
 * const spec = Result.getOrThrow(MachineSpec.make({ id: "web-1", kernel: "/boot/vmlinux", memoryMib: 128 }))
 * const platform = LaunchPlan.platform({
 *   binary: "/usr/bin/firecracker",
 *   version: { major: 1, minor: 16, patch: 1 },
 *   snapshotFormat: "10.0.0",
 *   architecture: "x86_64",
 *   cpu: "Model 1",
 *   kernel: "6.1.0",
 *   uid: 1000,
 *   because: "KVM is usable"
 * }, spec)
 * platform.version // => "1.16"
 * platform.devices // => "1 vCPU, 128 MiB"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const platform = (setup: Setup, spec: Snapshot.Inventory, options: Options = {}) => {
  const { drives = [], networks = [] } = spec
  const devices = devicesOf(options.devices, { ...spec, id: anyId, networks, drives }, setup)
  return {
    backend: "firecracker",
    version: `${setup.version.major}.${setup.version.minor}`,
    ...(setup.digest !== undefined && { program: setup.digest.slice(0, 16) }),
    snapshotFormat: setup.snapshotFormat,
    architecture: setup.architecture,
    cpu: setup.cpu,
    cpuTemplate: devices.cpuConfig === undefined
      ? devices.machine?.cpu_template ?? "None"
      : JSON.stringify(devices.cpuConfig),
    kernel: setup.kernel,
    devices: inventory(spec, devices, options.pci === true)
  }
}
