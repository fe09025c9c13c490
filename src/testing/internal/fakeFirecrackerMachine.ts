/** The machine of a fake Firecracker: it starts, pauses, is saved and loaded, and ends. */
import * as Fs from "node:fs"
import * as Net from "node:net"
import type { Architecture, Body, Level } from "./fakeFirecrackerBodies.ts"
import { channelsOf, type End, type Guest, type MakeGuest } from "./fakeFirecrackerGuest.ts"
import { type Log, openSink } from "./fakeFirecrackerLog.ts"
import * as Memory from "./fakeFirecrackerMemory.ts"
import type { Metrics } from "./fakeFirecrackerMetrics.ts"
import * as Resources from "./fakeFirecrackerResources.ts"
import { Fault } from "./fakeFirecrackerResources.ts"
import * as Snapshot from "./fakeFirecrackerSnapshot.ts"
import * as Vsock from "./fakeFirecrackerVsock.ts"
import { ioError, type World, writeSome } from "./fakeFirecrackerWorld.ts"
import { type Json, json, option, parse, string, struct, u32, variant } from "./fakeSerde.ts"

export interface Options {
  readonly world: World
  readonly version: string
  readonly minor: number
  readonly patch: number
  readonly snapshotFormat: string
  readonly architecture: Architecture
  readonly pci: boolean
  readonly log: Log
  readonly metrics: Metrics
  readonly stdout: (text: string) => void
  readonly guest: () => Promise<MakeGuest>
  /** Without them nothing in the machine answers to its devices, as in one that has not got so far. */
  readonly drivers: boolean
  /** How long after the start the guest is there. */
  readonly bootMillis: number
  readonly checkKernel: boolean
  readonly ignoresCtrlAltDel: boolean
  readonly console: ReadonlyArray<string>
  /** The machine has ended by itself. */
  readonly onEnd: (code: number) => void
  /** Told the socket of a page server that a restored machine waits for. */
  readonly onPageServer: (socket: Net.Socket, memoryBytes: number) => void
}

export type State = "Not started" | "Running" | "Paused"

const savedState = struct("State", {
  config: json,
  guest: json,
  vsock: option(struct("Vsock", { guest_cid: u32, uds_path: string })),
  huge_pages: variant(["None", "Transparent", "2M"])
})

export type Machine = ReturnType<typeof make>

export const make = (options: Options) => {
  const { architecture, log, metrics, minor, world } = options
  const of = Resources.empty()
  let state: State = "Not started"
  /** Set by whatever belongs to a machine that boots, also where it has failed. */
  let configured = false
  let vsock: Vsock.Vsock | undefined
  let guest: Guest | undefined
  let booted = false
  let keys = 0
  let ended = false
  let hotplugged = 0
  let serial: number | undefined
  /** What memory was when it was written down last; at the start of a machine, nothing. */
  let clean: Memory.Pages = new Map()
  const timers = new Set<NodeJS.Timeout>()
  const pageServers = new Set<Net.Socket>()

  const say = (level: Level, message: string) => log.write(level, message)
  const later = (millis: number, run: () => void) => {
    const timer = setTimeout(() => {
      timers.delete(timer)
      run()
    }, millis)
    timers.add(timer.unref())
  }

  const print = (text: string) => {
    metrics.add("uart", "write_count", Buffer.byteLength(text))
    if (serial !== undefined) writeSome(serial, text)
    else if (of.serial === undefined) options.stdout(text)
  }

  const memoryBytes = (): number => of.machine.mem_size_mib * 2 ** 20
  const bootArgs = (): string => of.boot?.boot_args ?? "reboot=k panic=1 nomodule 8250.nr_uarts=0"
  const has = (argument: string): boolean => bootArgs().split(/\s+/).includes(argument)
  const onConsole = (): boolean => /(?:^|\s)console=ttyS0/.test(bootArgs())

  const stopGuest = async (): Promise<void> => {
    metrics.stop()
    for (const timer of timers) clearTimeout(timer)
    await guest?.stop()
    vsock?.close("leave")
    for (const socket of pageServers) socket.destroy()
  }

  const end = (code: number): void => {
    if (ended) return
    ended = true
    say("Info", "Vmm is stopping.")
    void (async () => {
      await stopGuest()
      metrics.flush()
      options.onEnd(code)
    })()
  }

  /** What the hardware makes of what the guest does with itself. */
  const onGuestEnd = (mode: End): void => {
    const x86 = architecture === "x86_64"
    if (mode === "halt") return
    if (guest?.tellsWritten === true && has("microvm.off=reboot") && onConsole()) {
      print(`microvm-shutdown: all is written, ${mode === "powerdown" ? "poweroff" : "reboot"}\r\n`)
    }
    if (mode === "powerdown" && x86 && !has("microvm.off=reboot")) {
      // There is nothing on this machine that could switch it off.
      if (onConsole()) print("[    9.000000] reboot: Power down\r\n")
      guest?.pause()
      return
    }
    if (onConsole()) print("[    9.000000] reboot: Restarting system\r\n")
    if (!x86 || has("reboot=k")) {
      metrics.add("i8042", "reset_count")
      return end(0)
    }
    // A guest goes on until its processor triple-faults. The real one exits with 0 now and then from 1.15 on, too.
    const isKnown = minor < 15
    if (isKnown) log.write("Info", "Received KVM_EXIT_SHUTDOWN signal", "fc_vcpu 0")
    else log.write("Error", "Unexpected exit reason on vcpu run: Shutdown", "fc_vcpu 0")
    end(isKnown ? 0 : 1)
  }

  const listen: Vsock.Listen = (port, connection) => booted && guest !== undefined && guest.listen(port, connection)

  const bindVsock = async (body: { readonly guest_cid: number; readonly uds_path: string }): Promise<void> => {
    vsock = await Vsock.make({
      cid: body.guest_cid,
      path: body.uds_path,
      world,
      listen,
      onCount: (name) => metrics.add("vsock", name)
    })
    of.vsock = { guest_cid: body.guest_cid, uds_path: body.uds_path }
  }

  const vsockFault = (error: unknown): string => {
    const { debug, text } = ioError(error)
    return minor < 8 ? `UnixBind(${debug})` : `Error binding to the host-side Unix socket: ${text}`
  }

  const setVsock = async (body: Body<"vsock">): Promise<void> => {
    const prefix = "Vsock config error: Cannot create backend for vsock device:"
    try {
      const former = of.vsock
      of.vsock = undefined
      if (former !== undefined) {
        try {
          Fs.unlinkSync(world.resolve(former.uds_path))
        } finally {
          vsock?.close("remove")
        }
      }
      await bindVsock(body)
    } catch (error) {
      throw new Fault(`${prefix} ${vsockFault(error)}`)
    }
  }

  /** The guest comes up, or back. */
  const wake = async (saved: Json | undefined): Promise<void> => {
    const { channels, firstPort } = channelsOf(bootArgs())
    guest = (await options.guest())({ channels, firstPort, saved, onEnd: (mode) => onGuestEnd(mode) })
    for (const one of of.drives) metrics.device("block", one.drive_id)
    for (const one of of.networks) metrics.device("net", one.iface_id)
    for (const one of of.pmem) metrics.device("pmem", one.id)
  }

  const openSerial = (): void => {
    if (of.serial === undefined) return
    try {
      serial = openSink(world, of.serial, minor)
    } catch (error) {
      throw new Fault(`Failed to create device manager: Error with EventFd: ${ioError(error).text}`)
    }
  }

  const devices = (): number =>
    of.drives.length + of.networks.length + of.pmem.length +
    [of.vsock, of.balloon, of.entropy, of.hotplug].filter((one) => one !== undefined).length

  /** How much is added to the command line, about. */
  const added = (): number => {
    const root = of.drives[0]?.is_root_device === true ? " root=/dev/vda rw".length : 0
    const mmio = architecture === "x86_64" && minor < 8 ? 36 * devices() : 0
    return root + (options.pci ? 0 : mmio + (minor >= 13 ? " pci=off".length : 0))
  }

  const start = async (): Promise<void> => {
    const bad = (why: string) => new Fault(`Start microvm error: ${why}`)
    if (of.boot === undefined) throw bad("Cannot start microvm without kernel configuration.")
    try {
      if (options.checkKernel) Resources.checkKernel(world, of.boot.kernel_image_path, minor)
      if (memoryBytes() > 2 ** 46) {
        throw new Fault("Invalid Memory Configuration: Cannot create mmap region: Cannot allocate memory (os error 12)")
      }
      Resources.checkInitrd(world, of.boot.initrd_path, minor)
      if (bootArgs().length + added() > 2047) {
        throw new Fault("Invalid kernel command line: Inserting string would make command line too long.")
      }
      openSerial()
      const most = architecture === "aarch64" ? 92 : minor >= 15 ? 17 : 18
      if (!options.pci && devices() > most) {
        throw new Fault(
          `${
            minor >= 13
              ? "Could not attach device: MMIO transport error"
              : "Cannot initialize a MMIO Device or add a device to the MMIO Bus or cmdline"
          }: Failed to allocate requested resource: The requested resource is not available.`
        )
      }
      for (const one of of.pmem) {
        try {
          Resources.openPmem(world, one)
        } catch (error) {
          throw error instanceof Fault ? new Fault(`Cannot create pmem device: ${error.message}`) : error
        }
      }
    } catch (error) {
      throw error instanceof Fault ? bad(error.message) : error
    }
    await wake(undefined)
    state = "Running"
    metrics.start()
    if (onConsole()) {
      print("[    0.000000] Linux version 6.1.0 (fake@firecracker)\r\n")
      print(`[    0.000000] Command line: ${bootArgs()} pci=off\r\n`)
    }
    const up = () => {
      booted = true
      if (state === "Paused") guest?.pause()
      for (const line of onConsole() ? options.console : []) print(`${line}\r\n`)
    }
    if (options.bootMillis === 0) up()
    else later(options.bootMillis, up)
    if (options.drivers) vsock?.activate()
  }

  const pause = (): void => {
    state = "Paused"
    vsock?.freeze()
    guest?.pause()
  }

  const pressCtrlAltDel = (): void => {
    if (keys === 0 || state !== "Running" || !options.drivers || options.ignoresCtrlAltDel) return
    keys = 0
    onGuestEnd("reboot")
  }

  const resume = (): void => {
    state = "Running"
    if (options.drivers) vsock?.activate()
    guest?.resume()
    later(5, pressCtrlAltDel)
  }

  const ctrlAltDel = (): void => {
    const bad = (why: string) => new Fault(`Internal VMM error: I8042 error: ${why}`)
    if (options.drivers && has("i8042.nokbd")) throw bad("Keyboard interrupt disabled by guest driver.")
    if (keys === 4) throw bad("i8042 internal buffer full.")
    keys++
    later(5, pressCtrlAltDel)
  }

  const saved = () => ({
    config: Resources.configJson(of, minor),
    guest: guest?.save() ?? null,
    vsock: of.vsock === undefined ? null : { ...of.vsock },
    huge_pages: of.machine.huge_pages
  })

  const create = (body: Body<"snapshotCreate">): void => {
    const bad = (why: string) => new Fault(`Create snapshot error: ${why}`)
    if (body.snapshot_type === "Diff" && !of.machine.track_dirty_pages && minor < 13) {
      throw new Fault(
        "The requested operation is not supported: Diff snapshots are not allowed on uVMs with dirty page tracking disabled."
      )
    }
    if (state === "Running") {
      throw bad("Cannot save the microVM state: Operation not allowed: save/restore unavailable while running")
    }
    const save = (what: string, write: () => void) => {
      try {
        write()
      } catch (error) {
        throw error instanceof Snapshot.BadSnapshot ? bad(error.message.replace("%s", what)) : error
      }
    }
    const now = saved()
    const content = Snapshot.encode({ minor, format: options.snapshotFormat, architecture }, now)
    save("snapshot", () => Snapshot.saveState(world.resolve(body.snapshot_path), content))
    const memory = Memory.of(now.guest)
    // Without a log of what is written, all that is in memory at all is taken for it (mincore(2), since 1.13).
    const isWhole = body.snapshot_type === "Full"
    const pages = isWhole || !of.machine.track_dirty_pages ? memory : Memory.changed(clean, memory)
    save("memory", () => Snapshot.saveMemory(world.resolve(body.mem_file_path), memoryBytes(), pages, isWhole))
    clean = memory
    vsock?.reset()
  }

  const connectPageServer = (path: string): Promise<void> =>
    new Promise((resolve, reject) => {
      const socket = Net.connect(world.socketPath(path))
      socket.once("error", reject)
      socket.once("connect", () => {
        socket.removeListener("error", reject)
        socket.on("error", () => {})
        // Kept, and never closed: its end is how the other side learns of ours.
        pageServers.add(socket)
        options.onPageServer(socket, memoryBytes())
        resolve()
      })
    })

  const readState = (path: string) => {
    try {
      return parse(
        savedState,
        Buffer.from(JSON.stringify(Snapshot.load(world.resolve(path), {
          minor,
          format: options.snapshotFormat,
          architecture
        })))
      )
    } catch (error) {
      throw error instanceof Snapshot.BadSnapshot
        ? new Fault(`Failed to load snapshot state from file: ${error.message}`)
        : error instanceof Error && "code" in error
        ? new Fault(`Failed to open snapshot file: ${ioError(error).text}`)
        : error
    }
  }

  /** What the guest remembers, as far as this process can know of it. */
  const mapMemory = async (body: Body<"snapshotLoad">, told: Json): Promise<Json> => {
    const backend = body.mem_backend ?? { backend_type: "File", backend_path: body.mem_file_path ?? "" }
    if (backend.backend_type === "Uffd") {
      try {
        await connectPageServer(backend.backend_path)
      } catch (error) {
        throw new Fault(
          `Error creating guest memory from uffd: Failed to connect to UDS Unix stream: ${ioError(error).text}`
        )
      }
      // Pages come by faults, of which there are none here.
      return told
    }
    const bad = (why: string) => new Fault(`Error creating guest memory from file: ${why}`)
    if (of.machine.huge_pages === "2M") {
      throw bad("Cannot restore hugetlbfs backed snapshot by mapping the memory file. Please use uffd.")
    }
    try {
      const file = world.resolve(backend.backend_path)
      Fs.closeSync(Fs.openSync(file, Fs.constants.O_RDONLY))
      if (Fs.statSync(file).size < memoryBytes()) {
        throw bad(
          `Failed to restore guest memory: ${
            minor >= 13
              ? "Total sum of memory regions exceeds largest possible file offset"
              : "Cannot create mmap region: The specified file offset and length is greater then file length"
          }`
        )
      }
      return Memory.read(file) ?? null
    } catch (error) {
      throw error instanceof Fault ? error : bad(`Failed to load guest memory: ${ioError(error).text}`)
    }
  }

  /** Takes over what was saved, under the names that it is given here. */
  const restore = async (body: Body<"snapshotLoad">, config: Restored): Promise<void> => {
    const from = readState(body.snapshot_path)
    const file = (why: string) => new Fault(`Failed to get snapshot state from file: ${why}`)
    Object.assign(of, config.read(from.config))
    for (const { host_dev_name, iface_id } of body.network_overrides) {
      if (!of.networks.some((one) => one.iface_id === iface_id)) throw file("Unknown Network Device.")
      of.networks = of.networks.map((one) => one.iface_id === iface_id ? { ...one, host_dev_name } : one)
    }
    if (body.vsock_override !== undefined && from.vsock === undefined) throw file("Unknown Vsock Device.")
    of.machine = {
      ...of.machine,
      track_dirty_pages: body.track_dirty_pages || body.enable_diff_snapshots,
      huge_pages: body.huge_pages === "Snapshot" ? from.huge_pages : body.huge_pages
    }
    const device = (why: string) =>
      new Fault(
        `Failed to build microVM from snapshot: ${
          minor >= 13
            ? "Failed to restore devices: Error restoring MMIO devices"
            : "Failed to restore MMIO device: Cannot restore devices"
        }: ${why}`
      )
    let remembered: Json
    try {
      remembered = await mapMemory(body, from.guest)
    } catch (error) {
      throw error instanceof Fault ? new Fault(`Failed to load guest memory: ${error.message}`) : error
    }
    for (const drive of of.drives) {
      try {
        Resources.openDrive(world, drive.path_on_host, drive.is_read_only ?? false)
      } catch (error) {
        throw error instanceof Fault ? device(`Block: ${error.message}`) : error
      }
    }
    if (from.vsock !== undefined) {
      const uds_path = body.vsock_override?.uds_path ?? from.vsock.uds_path
      try {
        await bindVsock({ guest_cid: from.vsock.guest_cid, uds_path })
      } catch (error) {
        throw device(`VsockUnixBackend: ${vsockFault(error)}`)
      }
    }
    openSerial()
    await wake(remembered)
    clean = Memory.of(remembered)
    booted = true
  }

  const load = async (body: Body<"snapshotLoad">, config: Restored): Promise<void> => {
    if (configured) {
      const why = "Loading a microVM snapshot not allowed after configuring boot-specific resources."
      say("Info", why)
      throw new Fault(`Load snapshot error: ${why}`)
    }
    try {
      await restore(body, config)
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      // Too much of it is there to go on.
      throw new FatalFault(
        `Load snapshot error: Failed to restore from snapshot: ${
          /^(Unknown|Failed to (open|load) snapshot)/.test(error.message)
            ? `Failed to get snapshot state from file: ${error.message}`
            : error.message
        }`
      )
    }
    metrics.start()
    pause()
    if (body.resume_vm) resume()
  }

  return {
    of,
    state: (): State => state,
    configure: (): void => {
      configured = true
    },
    setVsock,
    start,
    pause,
    resume,
    create,
    load,
    ctrlAltDel,
    hotplugged: () => hotplugged,
    plug: (mib: number): void => {
      hotplugged = mib
    },
    /** Everything that it holds is let go; files of sockets stay. */
    stop: stopGuest
  }
}

/** How the configuration in a snapshot is read again. */
export interface Restored {
  readonly read: (config: Json) => Partial<Resources.Resources>
}

/** A failure after which the process ends. */
export class FatalFault extends Fault {}
