/**
 * What is going to be started for a machine: a whole command line, as a value. No I/O.
 *
 * @since 0.1.0
 */
import * as Result from "effect/Result"
import * as GuestNetwork from "../microvm/GuestNetwork.ts"
import type { MachineSpec } from "../microvm/MachineSpec.ts"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import type * as Snapshot from "../microvm/Snapshot.ts"
import * as ProcessCapabilities from "../process/ProcessCapabilities.ts"
import { noInterface } from "./internal/tapFault.ts"
import { type Architecture, formatVersion, isAtLeast, type Setup, type User, type Version } from "./QemuHost.ts"

/**
 * The command line and the descriptors that it counts on. stdin is not used, stdout is the serial console, stderr is
 * QEMU's own. Everything else travels over inherited socket pairs: there is no file in the file system to find or to
 * leave behind, and both ends go with the processes.
 *
 * @category models
 * @since 0.1.0
 */
export interface LaunchPlan {
  readonly backend: "qemu"
  /** For people: what this is, and why so. */
  readonly description: ReadonlyArray<string>
  readonly argv: readonly [program: string, ...args: ReadonlyArray<string>]
  /** The whole environment of the process. */
  readonly env: Readonly<Record<string, string>>
  /** Descriptors that must be socket pairs, by what they carry. */
  readonly fds: {
    readonly qmp: number
    readonly channels: ReadonlyMap<string, number>
  }
  /** Files that have to be there. QEMU's user opens them, `writable` ones for writing too; a `state` we open for it. */
  readonly files: ReadonlyArray<
    { readonly field: keyof typeof snapshotFiles; readonly path: string; readonly writable?: boolean }
  >
  /** The disks, which have to be there too. They are opened before any rights are given up. */
  readonly drives: ReadonlyArray<{ readonly field: string; readonly path: string; readonly writable: boolean }>
  /** What QEMU is to load once it is up. */
  readonly load?: { readonly fd: number; readonly sharedMemory: boolean }
}

/**
 * How the machine gets its memory, and what is in it:
 *
 * - `Boot`: memory of its own; a kernel is loaded into it.
 * - `Template`: the same, but in a file, given by its path, that others can map.
 * - `Restore`: what a snapshot has.
 *
 * @category models
 * @since 0.1.0
 */
export type Origin =
  | { readonly _tag: "Boot" }
  | { readonly _tag: "Template"; readonly ram: string }
  | { readonly _tag: "Restore"; readonly snapshot: Snapshot.Snapshot }

/**
 * How a snapshot holds the machine:
 *
 * - `shared-memory`: its memory as a file that many machines map, and the state of its devices.
 * - `stream`: all in one.
 * - `unstarted`: it has not run yet, so there is nothing but its spec, and copies of the files that it boots.
 *
 * @category models
 * @since 0.1.0
 */
export type Form = "shared-memory" | "stream" | "unstarted"

const isForm = (form: string): form is Form => form === "shared-memory" || form === "stream" || form === "unstarted"

/** What distinguishes the origins from each other. */
interface Content {
  /** The object that is the memory. Its id is part of a saved state. */
  readonly memory: string
  readonly args: ReadonlyArray<string>
  readonly files: LaunchPlan["files"]
  readonly says: ReadonlyArray<string>
  readonly load?: LaunchPlan["load"]
}

/**
 * The files of a snapshot. `memory` is there in the form `shared-memory` only. In `unstarted` there are `kernel` and, if
 * the machine has one, `initramfs`, and no others.
 *
 * @category constants
 * @since 0.1.0
 */
export const snapshotFiles = { state: "state", memory: "memory", kernel: "kernel", initramfs: "initramfs" } as const

interface Board {
  readonly machine: (version: Version) => string
  readonly kernelArgs: ReadonlyArray<string>
  readonly pvpanic: string
  /** Bytes of a kernel command line, the terminating NUL included (COMMAND_LINE_SIZE). */
  readonly commandLineSize: number
}

// The version of the machine is named, so that a later QEMU cannot take another one for the same. What no guest of ours
// needs is left out of the machine: less to emulate, less to attack, and a faster boot.
const boards: { readonly [A in Architecture]: Board } = {
  x86_64: {
    machine: (version) =>
      `pc-q35-${version.major}.${version.minor},hpet=off,sata=off,smbus=off,usb=off,vmport=off${
        isAtLeast(version, 7, 0) ? ",i8042=off" : ""
      }`,
    kernelArgs: ["console=ttyS0", "reboot=t"],
    pvpanic: "pvpanic",
    commandLineSize: 2048
  },
  aarch64: {
    machine: (version) => `virt-${version.major}.${version.minor},gic-version=max,usb=off`,
    kernelArgs: ["console=ttyAMA0"],
    pvpanic: "pvpanic-pci",
    commandLineSize: 2048
  }
}

/**
 * `panic=-1 reboot=t` turn a panic into a reset at once, which ends QEMU (`-no-reboot`); `cryptomgr.notests` saves a
 * third of a second under TCG. The host name is told to the kernel (6.0 and later), and to the init of our own images.
 */
const kernelArgs = (board: Board, spec: MachineSpec): string =>
  [
    ...board.kernelArgs,
    "panic=-1",
    "quiet",
    "cryptomgr.notests",
    ...(spec.hostname === undefined ? [] : [`hostname=${spec.hostname}`, `microvm.hostname=${spec.hostname}`]),
    ...GuestNetwork.kernelArgs(spec.networks),
    ...spec.kernelArgs
  ].join(" ")

const firstFd = 3
/** A shell need know no descriptor above 9 by its number (Redirection in XCU of POSIX), and dash(1) knows none. */
const maxOpened = 7
/**
 * A port more, and the guest never learns the names of the last ones, or that somebody is there. The control queue has room for 32
 * messages, and QEMU drops what comes on top (hw/char/virtio-serial-bus.c): one for each port, then two more for each in its
 * turn, of which a buffer is free again for each port that the guest is done with.
 */
const portsOfDevice = 15
const maxChannels = 2 * portsOfDevice

interface Opened {
  readonly path: string
  readonly access: "<" | "<>"
}

// A mount namespace of QEMU's own, in which anybody may open the device: it gives no right that is not checked once more,
// as a TAP device is for its owner (tun_not_capable() in drivers/net/tun.c).
const openTun = "mount -t tmpfs -o mode=755,size=4k tun /dev/net && mknod -m 666 /dev/net/tun c 10 200"

interface Wrapping {
  readonly opened: ReadonlyArray<Opened>
  readonly taps: ReadonlyArray<string>
  readonly netns: string | undefined
  readonly setup: Setup
}

/**
 * Opens the files while we may, and then gives up all rights. The open descriptors make the directories on the way to
 * the files irrelevant. pdeathsig is set here, as a change of user clears an earlier one (prctl(2)). The directory with the
 * settings of an interface is that of the network namespace of whoever looks (proc_sys(5)), unlike `/sys/class/net`.
 */
const wrapper = ({ netns, opened, setup: { tunIsClosed = false, user }, taps }: Wrapping): ReadonlyArray<string> => {
  const ownTun = taps.length > 0 && tunIsClosed && user._tag === "Unprivileged"
  const script = [
    ...(taps.length === 0 ? [] : [
      `for tap in ${taps.join(" ")}; do [ -d "/proc/sys/net/ipv4/conf/$tap" ] || ` +
      `{ echo "${noInterface}$tap" >&2; exit 1; }; done`
    ]),
    ...(ownTun ? [openTun] : []),
    ...(opened.length === 0 ? [] : [
      `exec ${opened.map(({ access }, index) => `${firstFd + index}${access}"$${index + 1}"`).join(" ")}`,
      `shift ${opened.length}`
    ]),
    "exec \"$@\""
  ]
  return [
    ...(netns === undefined ? [] : ["nsenter", `--net=${netns}`, "--"]),
    ...(script.length === 1 ? [] : [
      ...(ownTun ? ["unshare", "--mount", "--"] : []),
      "/bin/sh",
      "-c",
      script.join(" && "),
      "sh",
      ...opened.map(({ path }) => path)
    ]),
    ...(user._tag === "Own" ? user.dropsCapabilities === true ? ProcessCapabilities.without : [] : [
      "setpriv",
      "--pdeathsig=KILL",
      `--reuid=${user.uid}`,
      `--regid=${user.gid}`,
      user.groups.length === 0 ? "--clear-groups" : `--groups=${user.groups.join(",")}`,
      "--no-new-privs"
    ])
  ]
}

/** At the host's ends of cards. vhost-net would be another device to open, and code of the host's kernel to attack. */
const netdevs = ({ networks }: MachineSpec): ReadonlyArray<string> =>
  networks.flatMap(({ tap }, index) => [
    "-netdev",
    tap === undefined
      ? `hubport,id=net${index},hubid=${index}`
      : `tap,id=net${index},ifname=${tap},script=no,downscript=no,vhost=off`
  ])

const cards = ({ networks }: MachineSpec): ReadonlyArray<string> =>
  networks.flatMap(({ mac, mtu }, index) => [
    "-device",
    // No ROM: nothing boots from it.
    `virtio-net-pci,netdev=net${index},id=card${index},mac=${mac},romfile=${
      mtu === undefined ? "" : `,host_mtu=${mtu}`
    }`
  ])

/**
 * At the host's ends of disks. QEMU takes the open file as it is, so its user needs no right to it, and locks it: a second
 * machine that writes to it is refused. What the guest has flushed is on the host's disk; what it discards is given back.
 */
const blockdevs = ({ drives }: MachineSpec, fd: (index: number) => number): ReadonlyArray<string> =>
  drives.flatMap(({ readOnly }, index) => [
    "-add-fd",
    `fd=${fd(index)},set=${index}`,
    "-blockdev",
    `driver=raw,node-name=disk${index},read-only=${readOnly ? "on" : "off"},discard=unmap,file.driver=file,` +
    `file.filename=/dev/fdset/${index},file.discard=unmap,file.locking=on`
  ])

const disks = ({ drives }: MachineSpec): ReadonlyArray<string> =>
  drives.flatMap(({ name }, index) => ["-device", `virtio-blk-pci,drive=disk${index},serial=${name}`])

/** What a guest finds, but for the board; where the host's ends of it lead does not matter. */
const devices = (board: Board, { channels, memoryMib, vcpus }: Snapshot.Spec): ReadonlyArray<string> => [
  "-smp",
  String(vcpus),
  "-m",
  String(memoryMib),
  "-serial",
  "stdio",
  "-device",
  board.pvpanic,
  ...Array.from({ length: Math.ceil(channels.length / portsOfDevice) }, (_, device) => {
    const ports = Math.min(portsOfDevice, channels.length - device * portsOfDevice)
    // The first of a device is kept for a console.
    return ["-device", `virtio-serial-pci,id=serial${device},max_ports=${ports + 1}`]
  }).flat(),
  ...channels.flatMap((name, index) => {
    const bus = `serial${Math.floor(index / portsOfDevice)}.0`
    return ["-device", `virtserialport,bus=${bus},chardev=channel${index},id=port${index},name=${name}`]
  })
]

/**
 * What a snapshot of such a machine counts on. QEMU itself notices few of the differences, and the guest all of them.
 *
 * ```ts import.meta.vitest
 * import { MachineSpec } from "effect-microvm-runtime/microvm"
 * import { LaunchPlan } from "effect-microvm-runtime/qemu"
 * import * as Result from "effect/Result"
 * const spec = Result.getOrThrow(MachineSpec.make({ id: "web-1", kernel: "/boot/vmlinuz", memoryMib: 128 }))
 * const platform = LaunchPlan.platform({
 *   binary: "qemu-system-x86_64",
 *   version: { major: 7, minor: 2, micro: 22 },
 *   architecture: "x86_64",
 *   accelerator: "tcg",
 *   because: "asked for",
 *   cpu: "Model 1",
 *   user: { _tag: "Own", why: "uid 1000" },
 *   path: "/usr/bin:/bin"
 * }, spec)
 * platform.version // => "7.2"
 * platform.cpu // => "max"
 * platform.devices // => "1 vCPU, 128 MiB, console, pvpanic"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const platform = ({ accelerator, architecture, cpu, digest, version }: Setup, spec: Snapshot.Inventory) => ({
  backend: "qemu",
  version: `${version.major}.${version.minor}`,
  ...(digest !== undefined && { program: digest.slice(0, 16) }),
  architecture,
  accelerator,
  machine: boards[architecture].machine(version),
  cpu: accelerator === "kvm" ? `host ${cpu}` : "max",
  // Each that `devices`, `cards` and `disks` give a machine, in their order.
  devices: [
    `${spec.vcpus} vCPU`,
    `${spec.memoryMib} MiB`,
    "console",
    boards[architecture].pvpanic,
    ...spec.channels.flatMap((name, index) => [
      ...(index > 0 && index % portsOfDevice === 0 ? ["serial device"] : []),
      `channel ${name}`
    ]),
    ...(spec.networks ?? []).map(() => "network card"),
    ...(spec.drives ?? []).map(({ name, readOnly }) => `disk ${name}${readOnly ? ":read-only" : ""}`)
  ].join(", ")
})

/**
 * A file of memory that nobody may change can be opened for reading only since QEMU 8.2; before that, QEMU opens it for
 * writing, and yet does not write to it.
 *
 * @category guards
 * @since 0.1.0
 */
export const opensMemoryReadOnly = (version: Version): boolean => isAtLeast(version, 8, 2)

const describeUser = (user: User): string =>
  user._tag === "Own"
    ? `runs as ourselves (${user.why})${user.dropsCapabilities === true ? ", without our capabilities" : ""}`
    : `runs as uid ${user.uid}, gid ${user.gid}${user.groups.length === 0 ? "" : `, groups ${user.groups.join(", ")}`}`

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Path of the network namespace in which the TAP devices are (`/run/netns/NAME`). QEMU runs in it. Default: ours. */
  readonly netns?: string | undefined
}

/**
 * Plans a machine. Fails with `InvalidSpec` for what this backend cannot carry, and with `SnapshotUnusable` for a
 * snapshot that has another form than those that are known.
 *
 * ```ts import.meta.vitest
 * import { MachineSpec } from "effect-microvm-runtime/microvm"
 * import { LaunchPlan } from "effect-microvm-runtime/qemu"
 * import * as Result from "effect/Result"
 * const spec = Result.getOrThrow(MachineSpec.make({ id: "web-1", kernel: "/boot/vmlinuz", memoryMib: 128 }))
 * const plan = Result.getOrThrow(LaunchPlan.make({
 *   binary: "qemu-system-x86_64",
 *   version: { major: 7, minor: 2, micro: 22 },
 *   architecture: "x86_64",
 *   accelerator: "tcg",
 *   because: "asked for",
 *   cpu: "Model 1",
 *   user: { _tag: "Own", why: "uid 1000" },
 *   path: "/usr/bin:/bin"
 * }, spec))
 * plan.argv.slice(-2) // => ["-kernel", "/boot/vmlinuz"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  setup: Setup,
  spec: MachineSpec,
  origin: Origin = { _tag: "Boot" },
  { netns }: Options = {}
): Result.Result<LaunchPlan, MicroVmError.MicroVmError> => {
  const { accelerator, architecture, because, binary, user, version } = setup
  const board = boards[architecture]
  const append = kernelArgs(board, spec)

  if (origin._tag === "Restore" && !isForm(origin.snapshot.manifest.form)) {
    const { id: snapshot, manifest: { form } } = origin.snapshot
    return Result.fail(
      MicroVmError.make(new MicroVmError.SnapshotUnusable({ snapshot, why: [`its form ${form} is not known here`] }))
    )
  }
  const faults: Array<MicroVmError.Fault> = []
  if (new TextEncoder().encode(append).length >= board.commandLineSize) {
    const remedy = `the kernel's command line has room for ${board.commandLineSize - 1} bytes, with what is added here`
    faults.push({ field: "kernelArgs", value: spec.kernelArgs, remedy: `${remedy}: give fewer or shorter arguments` })
  }
  if (spec.channels.length > maxChannels) {
    faults.push({ field: "channels", value: spec.channels, remedy: `give ${maxChannels} at most` })
  }
  if (faults.length > 0) return Result.fail(MicroVmError.make(new MicroVmError.InvalidSpec({ faults })))

  const opened: Array<Opened> = []
  const inherit = (path: string, access: Opened["access"]): number => firstFd + opened.push({ path, access }) - 1
  const reopened = (fd: number): string => `/proc/self/fd/${fd}`
  const readable = (path: string): string => user._tag === "Own" ? path : reopened(inherit(path, "<"))
  const size = `size=${spec.memoryMib}M`
  const ownMemory = `memory-backend-ram,id=ram0,${size}`
  const boot = ({ initramfs, kernel }: Pick<MachineSpec, "initramfs" | "kernel">): Content => {
    const image = readable(kernel)
    return {
      memory: ownMemory,
      args: [
        "-append",
        append,
        ...(initramfs === undefined ? [] : ["-initrd", readable(initramfs)]),
        "-kernel",
        image
      ],
      files: [
        { field: "kernel", path: kernel },
        ...(initramfs === undefined ? [] : [{ field: "initramfs" as const, path: initramfs }])
      ],
      says: [`kernel ${kernel}${initramfs === undefined ? "" : `, initramfs ${initramfs}`}`]
    }
  }
  const template = (ram: string): Content => {
    const content = boot(spec)
    const path = reopened(inherit(ram, "<>"))
    return {
      ...content,
      memory: `memory-backend-file,id=ram0,${size},share=on,mem-path=${path}`,
      says: [...content.says, "memory in a file without a name, for its snapshots to be mapped"]
    }
  }
  const restore = ({ directory, id, manifest }: Snapshot.Snapshot): Content => {
    const at = (field: keyof typeof snapshotFiles): string => `${directory}/${snapshotFiles[field]}`
    const says = [`goes on from snapshot ${id}, ${manifest.form}`]
    if (manifest.form === "unstarted") {
      const initramfs = spec.initramfs === undefined ? {} : { initramfs: at("initramfs") }
      return { ...boot({ kernel: at("kernel"), ...initramfs }), says }
    }
    const state = at("state")
    const sharedMemory = manifest.form === "shared-memory"
    const content = {
      memory: ownMemory,
      args: ["-incoming", "defer"],
      files: [{ field: "state" as const, path: state }],
      says,
      load: { fd: inherit(state, "<"), sharedMemory }
    }
    if (!sharedMemory) return content
    const memory = at("memory")
    const readOnly = opensMemoryReadOnly(version)
    const path = reopened(inherit(memory, readOnly ? "<" : "<>"))
    return {
      ...content,
      memory: `memory-backend-file,id=ram0,${size},share=off${readOnly ? ",readonly=on,rom=off" : ""},mem-path=${path}`,
      files: [...content.files, { field: "memory", path: memory, writable: !readOnly }]
    }
  }
  const disk = spec.drives.map(({ path, readOnly }) => inherit(path, readOnly ? "<" : "<>"))
  const content = origin._tag === "Boot"
    ? boot(spec)
    : origin._tag === "Template"
    ? template(origin.ram)
    : restore(origin.snapshot)
  if (opened.length > maxOpened) {
    const most = spec.drives.length - (opened.length - maxOpened)
    const remedy = `give ${most} at most: a shell opens the files for QEMU, and no more than ${maxOpened}`
    return Result.fail(
      MicroVmError.make(
        new MicroVmError.InvalidSpec({ faults: [{ field: "drives", value: spec.drives.length, remedy }] })
      )
    )
  }

  const qmp = firstFd + opened.length
  const channels = new Map(spec.channels.map((name, index) => [name, qmp + 1 + index]))
  const args = [
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-no-reboot",
    "-S",
    "-sandbox",
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    "-machine",
    `${board.machine(version)},memory-backend=ram0`,
    "-object",
    content.memory,
    "-accel",
    accelerator,
    "-cpu",
    accelerator === "kvm" ? "host" : "max",
    "-chardev",
    `socket,id=qmp,fd=${qmp}`,
    "-mon",
    "chardev=qmp,mode=control",
    ...[...channels.values()].flatMap((fd, index) => ["-chardev", `socket,id=channel${index},fd=${fd}`]),
    ...netdevs(spec),
    ...blockdevs(spec, (index) => disk[index] ?? NaN),
    ...devices(board, spec),
    ...cards(spec),
    ...disks(spec),
    ...content.args
  ]
  return Result.succeed({
    backend: "qemu",
    description: [
      `QEMU ${formatVersion(version)}, ${accelerator.toUpperCase()}: ${because}`,
      describeUser(user),
      `${spec.vcpus} vCPU, ${spec.memoryMib} MiB`,
      ...content.says,
      ...spec.networks.map(({ mac, tap }) =>
        tap === undefined
          ? `network card ${mac}, which leads nowhere`
          : `network card ${mac} at ${tap}${netns === undefined ? "" : ` of ${netns}`}`
      ),
      ...spec.drives.map(({ name, path, readOnly }) => `disk ${name}${readOnly ? ", read-only" : ""}: ${path}`)
    ],
    argv: prefixed(
      wrapper({ netns, opened, setup, taps: spec.networks.flatMap(({ tap = [] }) => tap) }),
      binary,
      args
    ),
    env: { PATH: setup.path, LC_ALL: "C" },
    fds: { qmp, channels },
    files: content.files,
    drives: spec.drives.map(({ path, readOnly }, index) => ({
      field: `drives[${index}].path`,
      path,
      writable: !readOnly
    })),
    ...(content.load === undefined ? {} : { load: content.load })
  })
}

const prefixed = (
  [first, ...rest]: ReadonlyArray<string>,
  binary: string,
  args: ReadonlyArray<string>
): LaunchPlan["argv"] => first === undefined ? [binary, ...args] : [first, ...rest, binary, ...args]
