import type * as MachineConfig from "../MachineConfig.ts"
import type { Use } from "./capabilityTable.ts"

/** What there is in a machine, whichever way it is told. */
type Things =
  & Pick<
    MachineConfig.MachineConfig,
    "balloon" | "drives" | "entropy" | "memoryHotplug" | "mmds" | "networkInterfaces" | "pmem"
  >
  & { readonly machine?: Pick<MachineConfig.MachineConfig["machine"], "huge_pages" | "smt"> | undefined }

/** For people: what there is, and where it leads. */
export const describeDevices = (
  { balloon, drives = [], entropy, memoryHotplug, networkInterfaces = [], pmem = [] }: Things
): ReadonlyArray<string> => [
  ...drives.map(({ drive_id: id, is_read_only: readOnly, is_root_device: root, path_on_host: path, socket }) =>
    `drive ${id}${root ? ", the root device" : ""}${readOnly === true ? ", read-only" : ""}: ${path ?? socket ?? ""}`
  ),
  ...pmem.map(({ id, path_on_host: path }) => `pmem ${id}: ${path}`),
  ...networkInterfaces.map(({ host_dev_name: tap, iface_id: id }) => `network interface ${id} on ${tap}`),
  ...(balloon === undefined ? [] : [`a balloon of ${balloon.amount_mib} MiB`]),
  ...(entropy === undefined ? [] : ["a source of entropy"]),
  ...(memoryHotplug === undefined ? [] : [`up to ${memoryHotplug.total_size_mib} MiB of memory to plug in`])
]

/** What a guest finds, but for where the host's ends of it lead, and what can be changed while it runs. */
export const inventory = (
  spec: { readonly vcpus: number; readonly memoryMib: number; readonly channels: ReadonlyArray<string> },
  things: Things,
  pci: boolean
): string => {
  const { balloon, drives = [], entropy, machine = {}, memoryHotplug, mmds, networkInterfaces = [], pmem = [] } = things
  const flags = (...words: ReadonlyArray<string | false>) => words.filter((word) => word !== false).join(":")
  return [
    flags(
      `${spec.vcpus} vCPU`,
      machine.smt === true && "smt",
      machine.huge_pages !== undefined && machine.huge_pages !== "None" && `huge pages ${machine.huge_pages}`
    ),
    `${spec.memoryMib} MiB`,
    ...(pci ? ["PCI"] : []),
    ...(spec.channels.length > 0 ? ["vsock"] : []),
    ...drives.map(({ drive_id: id, is_read_only: readOnly, is_root_device: root, socket }) =>
      flags(`drive ${id}`, root && "root", readOnly === true && "read-only", socket !== undefined && "vhost-user")
    ),
    ...pmem.map(({ id, read_only: readOnly }) => flags(`pmem ${id}`, readOnly === true && "read-only")),
    ...networkInterfaces.map(({ iface_id: id }) => `interface ${id}`),
    ...(balloon === undefined ? [] : ["balloon"]),
    ...(entropy === undefined ? [] : ["entropy"]),
    ...(memoryHotplug === undefined ? [] : [`hotplug ${memoryHotplug.total_size_mib} MiB`]),
    ...(mmds === undefined ? [] : [`metadata ${mmds.config.version ?? "V1"}`])
  ].join(", ")
}

/** What of Firecracker its devices and its processors use. */
export const usesOf = (
  { balloon, cpuConfig, entropy, machine: { cpu_template: template = "None" }, memoryHotplug, mmds, vsock }:
    MachineConfig.MachineConfig
): ReadonlyArray<Use> => [
  ...(balloon?.stats_polling_interval_s ?? 0) > 0 ? ["balloon"] as const : [],
  ...entropy === undefined ? [] : ["entropy"] as const,
  ...memoryHotplug === undefined ? [] : ["hotplug"] as const,
  ...mmds === undefined ? [] : ["mmds"] as const,
  ...cpuConfig === undefined && template === "None" ? [] : ["template"] as const,
  ...vsock === undefined ? [] : ["vsock"] as const
]
