/** What devices a machine has, and the names that Firecracker is told of their files. */
import type { MachineSpec } from "../../microvm/MachineSpec.ts"
import type * as BootArgs from "../BootArgs.ts"
import type { Setup } from "../FirecrackerHost.ts"
import type * as FirecrackerSchema from "../FirecrackerSchema.ts"
import * as FirecrackerVersion from "../FirecrackerVersion.ts"
import type * as MachineConfig from "../MachineConfig.ts"

/**
 * What a machine has beside what its spec says, in the words of Firecracker's API. `path_on_host` is a path of this host, and
 * `host_dev_name` a TAP device that is there already.
 *
 * @category options
 * @since 0.1.0
 */
export interface Devices
  extends Omit<MachineConfig.MachineConfig, "machine" | "bootSource" | "vsock" | "logger" | "metrics">
{
  readonly machine?: Omit<FirecrackerSchema.MachineConfiguration, "vcpu_count" | "mem_size_mib"> | undefined
}

/**
 * A file of the host that Firecracker opens under another name.
 *
 * @category models
 * @since 0.1.0
 */
export interface Entry {
  /** Where it comes from: `kernel`, `initramfs`, `state`, `memory`, `drives[0].path`, `devices.drives[0].path_on_host`. */
  readonly field: string
  readonly name: string
  readonly path: string
  readonly writable: boolean
}

const tellsMtu: FirecrackerVersion.FirecrackerVersion = { major: 1, minor: 16, patch: 0 }

/** After those of the options, as the guest numbers them as they come. */
export const devicesOf = (
  given: Devices | ((spec: MachineSpec) => Devices) = {},
  spec: MachineSpec,
  { version }: Setup
): Devices => {
  const own = typeof given === "function" ? given(spec) : given
  if (spec.networks.length === 0 && spec.drives.length === 0) return own
  return {
    ...own,
    networkInterfaces: [
      ...own.networkInterfaces ?? [],
      // One that leads nowhere is refused by `ownFaults`.
      ...spec.networks.flatMap(({ mac, mtu, tap }, index) =>
        tap === undefined ? [] : [{
          iface_id: `net${index}`,
          host_dev_name: tap,
          guest_mac: mac,
          // An image of ours is told of it by its kernel's arguments, too.
          ...(mtu !== undefined && FirecrackerVersion.isAtLeast(version, tellsMtu) && { mtu })
        }]
      )
    ],
    drives: [
      ...own.drives ?? [],
      ...spec.drives.map(({ name, path, readOnly }) => ({
        drive_id: name,
        path_on_host: path,
        is_root_device: false,
        is_read_only: readOnly
      }))
    ]
  }
}

export const rootOf = ({ drives = [], pmem = [] }: Devices): BootArgs.Root | undefined => {
  const drive = drives.find((one) => one.is_root_device)
  if (drive !== undefined) {
    return { _tag: "Drive", partuuid: drive.partuuid, readOnly: drive.is_read_only === true }
  }
  const index = pmem.findIndex((one) => one.root_device === true)
  return index < 0 ? undefined : { _tag: "Pmem", index, readOnly: pmem[index]?.read_only === true }
}

export const countOf = (
  { balloon, drives = [], entropy, memoryHotplug, networkInterfaces = [], pmem = [] }: Devices,
  channels: ReadonlyArray<string>
): number =>
  drives.length + pmem.length + networkInterfaces.length + (channels.length > 0 ? 1 : 0)
  + [balloon, entropy, memoryHotplug].filter((device) => device !== undefined).length

const driveName = ({ drive_id: id }: FirecrackerSchema.Drive): string => `drive-${id}`
const pmemName = ({ id }: FirecrackerSchema.Pmem): string => `pmem-${id}`

/** The last `count` drives are those of the spec. */
export const entriesOf = ({ drives = [], pmem = [] }: Devices, count: number): ReadonlyArray<Entry> => [
  ...drives.flatMap((drive, index) =>
    drive.path_on_host === undefined ? [] : [{
      field: index < drives.length - count
        ? `devices.drives[${index}].path_on_host`
        : `drives[${index - drives.length + count}].path`,
      name: driveName(drive),
      path: drive.path_on_host,
      writable: drive.is_read_only !== true
    }]
  ),
  ...pmem.map((one, index) => ({
    field: `devices.pmem[${index}].path_on_host`,
    name: pmemName(one),
    path: one.path_on_host,
    writable: one.read_only !== true
  }))
]

/** The devices under the names of their files in the machine's directory. */
export const renamed = ({ drives, pmem }: Devices): Pick<Devices, "drives" | "pmem"> => ({
  ...(drives !== undefined && {
    drives: drives.map((drive) =>
      drive.path_on_host === undefined ? drive : { ...drive, path_on_host: driveName(drive) }
    )
  }),
  ...(pmem !== undefined && { pmem: pmem.map((one) => ({ ...one, path_on_host: pmemName(one) })) })
})
