/** What a machine has been configured with, and what each piece of it is refused for. */
import * as Fs from "node:fs"
import type { Architecture, Body, RateLimiter, TokenBucket } from "./fakeFirecrackerBodies.ts"
import { ioError, type World } from "./fakeFirecrackerWorld.ts"
import type { Json } from "./fakeSerde.ts"

/** A request that is refused, as the API tells it. */
export class Fault extends Error {
  readonly status: number
  /** What the log says of a request that is not understood. */
  readonly debug: string

  constructor(message: string, status = 400, debug = `Generic(BadRequest, ${JSON.stringify(message)})`) {
    super(message)
    this.status = status
    this.debug = debug
  }
}

export type Drive = Body<"drive"> & { readonly path_on_host: string }
export type Network = Body<"network">
export type Pmem = Body<"pmem">

export interface Resources {
  machine: Body<"machineConfig">
  boot: Body<"bootSource"> | undefined
  drives: ReadonlyArray<Drive>
  networks: ReadonlyArray<Network>
  pmem: ReadonlyArray<Pmem>
  vsock: { readonly guest_cid: number; readonly uds_path: string } | undefined
  balloon: Body<"balloon"> | undefined
  entropy: Body<"entropy"> | undefined
  hotplug: Body<"memoryHotplug"> | undefined
  serial: string | undefined
  mmds: { config: Body<"mmdsConfig"> | undefined; data: Json | undefined }
}

export const empty = (): Resources => ({
  machine: {
    vcpu_count: 1,
    mem_size_mib: 128,
    smt: false,
    cpu_template: undefined,
    track_dirty_pages: false,
    huge_pages: "None"
  },
  boot: undefined,
  drives: [],
  networks: [],
  pmem: [],
  vsock: undefined,
  balloon: undefined,
  entropy: undefined,
  hotplug: undefined,
  serial: undefined,
  mmds: { config: undefined, data: undefined }
})

/** What has gone wrong, if something has: a refusal, or the words for an error of the system. */
export const attempt = (run: () => void): Fault | string | undefined => {
  try {
    run()
    return undefined
  } catch (error) {
    return error instanceof Fault ? error : ioError(error).text
  }
}

const opened = (path: string, flags: number): void => Fs.closeSync(Fs.openSync(path, flags))

/** What is no kernel. Only its first bytes are looked at. */
export const checkKernel = (world: World, path: string, minor: number): void => {
  const bad = (why: string) =>
    new Fault(
      `${
        minor >= 11 ? "System configuration error: " : ""
      }Cannot load kernel due to invalid memory configuration or invalid kernel image: Kernel Loader: failed to load ${why}`
    )
  const file = world.resolve(path)
  const bytes = Fs.statSync(file).isFile() ? Fs.readFileSync(file).subarray(0, 64) : Buffer.alloc(0)
  if (bytes.length < 64) throw bad("ELF kernel image: Kernel Loader: Unable to read elf header")
  if (bytes.subarray(0, 4).equals(Buffer.from("\x7fELF", "latin1"))) return
  throw bad(
    minor >= 17
      ? "bzImage kernel image: Kernel Loader: Invalid bzImage"
      : "ELF kernel image: Kernel Loader: Invalid Elf magic number"
  )
}

export const checkInitrd = (world: World, path: string | undefined, minor: number): void => {
  if (path === undefined) return
  const file = Fs.statSync(world.resolve(path))
  const why = file.isDirectory()
    ? "image: Is a directory (os error 21)"
    : file.size === 0
    ? "memory configuration."
    : undefined
  if (why === undefined) return
  throw new Fault(
    minor < 11
      ? "Cannot load initrd due to an invalid memory configuration."
      : `Error with initrd initialization: Cannot load initrd due to an invalid ${why}.`
  )
}

const kernelCommandLine = (text: string): void => {
  const bad = (why: string) => new Fault(`Boot source error: The kernel command line is invalid: ${why}`)
  if (Buffer.byteLength(text) >= 2048) throw bad("Invalid cmdline capacity provided.")
}

export const setBoot = (of: Resources, world: World, body: Body<"bootSource">): void => {
  const open = (path: string, what: string) => {
    try {
      opened(world.resolve(path), Fs.constants.O_RDONLY)
    } catch (error) {
      throw new Fault(`Boot source error: ${what} ${ioError(error).text}`)
    }
  }
  open(body.kernel_image_path, "The kernel file cannot be opened:")
  if (body.initrd_path !== undefined) {
    open(body.initrd_path, "The initrd file cannot be opened due to invalid path or invalid permissions.")
  }
  kernelCommandLine(body.boot_args ?? "")
  of.boot = body
}

export const setMachine = (
  of: Resources,
  architecture: Architecture,
  update: Body<"machineConfigUpdate"> | Body<"machineConfig">
): void => {
  const next: Body<"machineConfig"> = {
    vcpu_count: update.vcpu_count ?? of.machine.vcpu_count,
    mem_size_mib: update.mem_size_mib ?? of.machine.mem_size_mib,
    smt: update.smt ?? of.machine.smt,
    cpu_template: update.cpu_template === "None" ? undefined : update.cpu_template ?? of.machine.cpu_template,
    track_dirty_pages: update.track_dirty_pages ?? of.machine.track_dirty_pages,
    huge_pages: update.huge_pages ?? of.machine.huge_pages
  }
  const bad = (why: string) => new Fault(`Machine config error: ${why}`)
  if (architecture === "aarch64" && next.smt) {
    throw bad("Enabling simultaneous multithreading is not supported on aarch64.")
  }
  const odd = next.smt && next.vcpu_count > 1 && next.vcpu_count % 2 === 1
  if (next.vcpu_count === 0 || next.vcpu_count > 32 || odd) {
    throw bad(
      "The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled."
    )
  }
  if (next.mem_size_mib === 0 || (next.huge_pages !== "None" && next.mem_size_mib % 2 === 1)) {
    throw bad("The memory size (MiB) is either 0, or not a multiple of the configured page size.")
  }
  if (of.balloon !== undefined && next.mem_size_mib < of.balloon.amount_mib) {
    throw bad("The memory size (MiB) is smaller than the previously set balloon device target size.")
  }
  of.machine = next
}

export const openDrive = (world: World, path: string, readOnly: boolean): void => {
  try {
    opened(world.resolve(path), readOnly ? Fs.constants.O_RDONLY : Fs.constants.O_RDWR)
  } catch (error) {
    const { debug, text } = ioError(error)
    throw new Fault(
      `Virtio backend error: Error manipulating the backing file: ${text} ${path}`,
      400,
      `VirtioBackend(BackingFile(${debug}, ${JSON.stringify(path)}))`
    )
  }
}

/** Up to 1.7 this names the errors of a device as programmers see them. */
const createDrive = (world: World, body: Body<"drive">, minor: number): Drive => {
  const bad = (why: string) => new Fault(`Drive config error: Unable to create the virtio block device: ${why}`)
  const { path_on_host, socket } = body
  if (path_on_host === undefined || socket !== undefined) {
    const only = [path_on_host, body.is_read_only, body.rate_limiter, body.io_engine].every((one) => one === undefined)
    if (only && socket !== undefined) {
      const code = Fs.existsSync(world.resolve(socket)) ? "ECONNREFUSED" : "ENOENT"
      const { debug, text } = ioError(Object.assign(new Error(code), { code }))
      throw bad(
        minor < 8
          ? `VhostUserBackend(VhostUser(Connect(${debug})))`
          : `Vhost user backend error: Vhost-user error: Failed to connect to UDS Unix stream: ${text}`
      )
    }
    throw bad(minor < 8 ? "InvalidBlockConfig" : "Invalid block config.")
  }
  try {
    openDrive(world, path_on_host, body.is_read_only ?? false)
  } catch (error) {
    throw error instanceof Fault ? bad(minor < 8 ? error.debug : error.message) : error
  }
  return { ...body, path_on_host, is_read_only: body.is_read_only ?? false, io_engine: body.io_engine ?? "Sync" }
}

export const addDrive = (of: Resources, world: World, body: Body<"drive">, minor: number, running: boolean): void => {
  const index = of.drives.findIndex((drive) => drive.drive_id === body.drive_id)
  const rooted = of.drives[0]?.is_root_device === true
  if (running && index >= 0) throw new Fault("Device ID in use")
  if (body.is_root_device && !running && of.pmem.some((one) => one.root_device)) {
    throw new Fault(
      "Drive config error: Attempt to add block as a root device while the root device defined as a pmem device"
    )
  }
  if (body.is_root_device && (running || (rooted && index !== 0))) {
    throw new Fault("Drive config error: A root block device already exists!")
  }
  const drive = createDrive(world, body, minor)
  const others = of.drives.filter((one) => one.drive_id !== body.drive_id)
  of.drives = drive.is_root_device
    ? [drive, ...others]
    : index < 0
    ? [...others, drive]
    : of.drives.with(index, drive)
}

export const addNetwork = (of: Resources, body: Network, running: boolean): void => {
  if (running && of.networks.some((one) => one.iface_id === body.iface_id)) throw new Fault("Device ID in use")
  const twin = of.networks.some((one) => one.guest_mac === body.guest_mac && one.iface_id !== body.iface_id)
  if (body.guest_mac !== undefined && twin) {
    throw new Fault(`Network config error: The MAC address is already in use: ${body.guest_mac}`)
  }
  const badTap = body.host_dev_name.length > 15 || body.host_dev_name.includes("\0")
  if (badTap) {
    of.networks = of.networks.filter((one) => one.iface_id !== body.iface_id)
    throw new Fault(
      "Network config error: Could not create the network device: Open tap device failed: Invalid interface name"
    )
  }
  if (body.mtu !== undefined && body.mtu < 68) {
    of.networks = of.networks.filter((one) => one.iface_id !== body.iface_id)
    throw new Fault(
      `Network config error: Could not create the network device: MTU ${body.mtu} is out of range [68, 65535]`
    )
  }
  of.networks = [...of.networks.filter((one) => one.iface_id !== body.iface_id), body]
  // The new one knows nothing of MMDS.
  const named = of.mmds.config?.network_interfaces
  if (of.mmds.config !== undefined && named?.includes(body.iface_id) === true && !running) {
    const rest = named.filter((id) => id !== body.iface_id)
    of.mmds.config = rest.length === 0 ? undefined : { ...of.mmds.config, network_interfaces: rest }
  }
}

/** What starting, or plugging in, a pmem device fails with. */
export const openPmem = (world: World, body: Pmem): void => {
  try {
    const path = world.resolve(body.path_on_host)
    opened(path, body.read_only ? Fs.constants.O_RDONLY : Fs.constants.O_RDWR)
    if (Fs.statSync(path).size === 0) throw new Fault("Error backing file size is 0")
  } catch (error) {
    throw error instanceof Fault ? error : new Fault(`Error accessing backing file: ${ioError(error).text}`)
  }
}

const pmemPrefix = (minor: number): string => minor >= 16 ? "Pmem config error: " : "Pmem device error: "

export const addPmem = (of: Resources, world: World, body: Pmem, minor: number, running: boolean): void => {
  const prefix = pmemPrefix(minor)
  const same = of.pmem.find((one) => one.id === body.id)
  if (running && same !== undefined) throw new Fault("Device ID in use")
  if (body.root_device && (running || of.drives[0]?.is_root_device === true)) {
    throw new Fault(
      `${prefix}Attempt to add pmem as a root device while the root device defined as a block device`
    )
  }
  if (body.root_device && same?.root_device !== true && of.pmem.some((one) => one.root_device)) {
    throw new Fault(`${prefix}A root pmem device already exist`)
  }
  if (running || minor < 16) {
    try {
      openPmem(world, body)
    } catch (error) {
      throw error instanceof Fault
        ? new Fault(`${prefix}Unable to create the virtio-pmem device: ${error.message}`)
        : error
    }
  }
  of.pmem = same === undefined ? [...of.pmem, body] : of.pmem.map((one) => one.id === body.id ? body : one)
}

export const setBalloon = (of: Resources, body: Body<"balloon">): void => {
  if (body.amount_mib > of.machine.mem_size_mib) {
    throw new Fault("Balloon config error: Amount of pages requested is too large.")
  }
  of.balloon = body
}

export const setHotplug = (of: Resources, body: Body<"memoryHotplug">): void => {
  const { block_size_mib: block, slot_size_mib: slot, total_size_mib: total } = body
  const why = block < 2
    ? "Block size must not be lower than 2 MiB"
    : !Number.isInteger(Math.log2(block))
    ? "Block size must be a power of 2"
    : slot < 128
    ? "Slot size must not be lower than 128 MiB"
    : slot % block !== 0
    ? `Slot size must be a multiple of block size (${block} MiB)`
    : total < slot
    ? `Total size must not be lower than slot size (${slot} MiB)`
    : total % slot !== 0
    ? `Total size must be a multiple of slot size (${slot} MiB)`
    : undefined
  if (why !== undefined) throw new Fault(`Memory hotplug config error: ${why}`)
  of.hotplug = body
}

export const setMmdsConfig = (of: Resources, body: Body<"mmdsConfig">): void => {
  const bad = (why: string) => new Fault(`MMMDS config error: ${why}`)
  const [first, second, third] = (body.ipv4_address ?? "169.254.169.254").split(".").map(Number)
  if (first !== 169 || second !== 254 || third === 0 || third === 255) {
    throw bad("The MMDS IPv4 address is not link local.")
  }
  if (body.network_interfaces.length === 0) {
    throw bad("The list of network interface IDs that allow forwarding MMDS requests is empty.")
  }
  if (!body.network_interfaces.every((id) => of.networks.some((one) => one.iface_id === id))) {
    throw bad(
      "The list of network interface IDs provided contains at least one ID that does not correspond to any existing network interface."
    )
  }
  const ids = of.networks.map((one) => one.iface_id).filter((id) => body.network_interfaces.includes(id))
  of.mmds.config = { ...body, network_interfaces: ids }
}

const merge = (target: Json | undefined, patch: Json): Json => {
  if (typeof patch !== "object" || patch === null || Array.isArray(patch)) return patch
  const base = typeof target === "object" && target !== null && !Array.isArray(target) ? Object.entries(target) : []
  const merged = new Map<string, Json>(base)
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) merged.delete(key)
    else merged.set(key, merge(merged.get(key), value))
  }
  return Object.fromEntries([...merged].toSorted(([left], [right]) => left < right ? -1 : 1))
}

const setMmds = (of: Resources, data: Json, limit: number): void => {
  if (Buffer.byteLength(JSON.stringify(data)) > limit) {
    throw new Fault("MMDS limit exceeded error: The MMDS patch request doesn't fit.", 413)
  }
  of.mmds.data = data
}

const notInitialized = () => new Fault("MMDS error: The MMDS data store is not initialized.")

/** `strict`: there is a store only for a machine with an interface that leads to it. */
export const mmds = (of: Resources, strict: boolean, limit: number) => {
  const reachable = () => {
    if (strict && of.mmds.config === undefined) throw notInitialized()
  }
  return {
    get: (): string => {
      reachable()
      return of.mmds.data === undefined || of.mmds.data === null ? "{}" : JSON.stringify(of.mmds.data)
    },
    put: (data: Json): void => {
      reachable()
      setMmds(of, data, limit)
    },
    patch: (data: Json): void => {
      reachable()
      if (of.mmds.data === undefined) throw notInitialized()
      setMmds(of, merge(of.mmds.data, data), limit)
    }
  }
}

const bucket = (of: TokenBucket | undefined): Json =>
  of === undefined || of.size === 0 || of.refill_time === 0
    ? null
    : {
      size: of.size,
      one_time_burst: of.one_time_burst === 0 ? null : of.one_time_burst ?? null,
      refill_time: of.refill_time
    }

const limiter = (of: RateLimiter | undefined): Json => {
  const bandwidth = bucket(of?.bandwidth)
  const ops = bucket(of?.ops)
  return bandwidth === null && ops === null ? null : { bandwidth, ops }
}

/** What is left of a limiter after an update: a bucket that is not named stays. */
export const updated = (of: RateLimiter | undefined, update: RateLimiter | undefined): RateLimiter | undefined =>
  update === undefined ? of : { bandwidth: update.bandwidth ?? of?.bandwidth, ops: update.ops ?? of?.ops }

const optional = <A extends Json>(value: A | undefined): A | null => value ?? null

export const machineJson = (of: Body<"machineConfig">): Json => ({
  vcpu_count: of.vcpu_count,
  mem_size_mib: of.mem_size_mib,
  smt: of.smt,
  ...(of.cpu_template === undefined ? {} : { cpu_template: of.cpu_template }),
  track_dirty_pages: of.track_dirty_pages,
  huge_pages: of.huge_pages
})

export const balloonJson = (of: Body<"balloon">, minor: number): Json => ({
  amount_mib: of.amount_mib,
  deflate_on_oom: of.deflate_on_oom,
  stats_polling_interval_s: of.stats_polling_interval_s,
  ...(minor >= 14 ? { free_page_hinting: of.free_page_hinting, free_page_reporting: of.free_page_reporting } : {})
})

/** The whole configuration, as `GET /vm/config` has it. */
export const configJson = (of: Resources, minor: number): Json => ({
  balloon: of.balloon === undefined ? null : balloonJson(of.balloon, minor),
  drives: of.drives.map((drive) => ({
    drive_id: drive.drive_id,
    partuuid: optional(drive.partuuid),
    is_root_device: drive.is_root_device,
    cache_type: drive.cache_type,
    is_read_only: optional(drive.is_read_only),
    path_on_host: drive.path_on_host,
    rate_limiter: limiter(drive.rate_limiter),
    io_engine: optional(drive.io_engine),
    socket: null
  })),
  "boot-source": {
    kernel_image_path: of.boot?.kernel_image_path ?? "",
    initrd_path: optional(of.boot?.initrd_path),
    boot_args: optional(of.boot?.boot_args)
  },
  "cpu-config": null,
  logger: null,
  "machine-config": machineJson(of.machine),
  metrics: null,
  "mmds-config": of.mmds.config === undefined ? null : {
    version: of.mmds.config.version,
    network_interfaces: of.mmds.config.network_interfaces,
    ipv4_address: of.mmds.config.ipv4_address ?? "169.254.169.254",
    ...(minor >= 13 ? { imds_compat: of.mmds.config.imds_compat } : {})
  },
  "network-interfaces": of.networks.map((one) => ({
    iface_id: one.iface_id,
    host_dev_name: one.host_dev_name,
    guest_mac: optional(one.guest_mac),
    ...(minor >= 16 ? { mtu: optional(one.mtu) } : {}),
    rx_rate_limiter: limiter(one.rx_rate_limiter),
    tx_rate_limiter: limiter(one.tx_rate_limiter)
  })),
  vsock: of.vsock === undefined ? null : { ...of.vsock },
  entropy: of.entropy === undefined ? null : { rate_limiter: limiter(of.entropy.rate_limiter) },
  ...(minor >= 14
    ? {
      pmem: of.pmem.map((one) => ({
        id: one.id,
        path_on_host: one.path_on_host,
        root_device: one.root_device,
        read_only: one.read_only,
        ...(minor >= 16 ? { rate_limiter: limiter(one.rate_limiter) } : {})
      })),
      "memory-hotplug": of.hotplug === undefined ? null : {
        total_size_mib: of.hotplug.total_size_mib,
        block_size_mib: of.hotplug.block_size_mib,
        slot_size_mib: of.hotplug.slot_size_mib
      }
    }
    : {})
})
