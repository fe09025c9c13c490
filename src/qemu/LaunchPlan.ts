/**
 * What is going to be started for a machine: a whole command line, as a value. No I/O.
 *
 * @since 0.1.0
 */
import * as Result from "effect/Result"
import type { MachineSpec } from "../microvm/MachineSpec.ts"
import * as MicroVmError from "../microvm/MicroVmError.ts"
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
  /** Files that are opened as us and read by QEMU's user. */
  readonly files: ReadonlyArray<{ readonly field: "kernel" | "initramfs"; readonly path: string }>
}

interface Board {
  readonly machine: (version: Version) => string
  readonly kernelArgs: ReadonlyArray<string>
  readonly pvpanic: string
  /** Bytes of a kernel command line, the terminating NUL included (COMMAND_LINE_SIZE). */
  readonly commandLineSize: number
}

// What no guest of ours needs is left out of the machine: less to emulate, less to attack, and a faster boot.
const boards: { readonly [A in Architecture]: Board } = {
  x86_64: {
    machine: (version) =>
      `q35,hpet=off,sata=off,smbus=off,usb=off,vmport=off${isAtLeast(version, 7, 0) ? ",i8042=off" : ""}`,
    kernelArgs: ["console=ttyS0", "reboot=t"],
    pvpanic: "pvpanic",
    commandLineSize: 2048
  },
  aarch64: {
    machine: () => "virt,gic-version=max,usb=off",
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
    ...spec.kernelArgs
  ].join(" ")

const kernelFd = 3
const initramfsFd = 4
const firstSocketFd = 5
/** A virtio-serial device has 31 ports; the first is kept for a console. */
const maxChannels = 30

/**
 * Opens the files while we may, and then gives up all rights. The open descriptors make the directories on the way to
 * the files irrelevant; the files themselves must be readable to all. pdeathsig is set here, as a change of user
 * clears an earlier one (prctl(2)).
 */
const asUser = (user: Extract<User, { readonly _tag: "Unprivileged" }>, spec: MachineSpec) =>
  [
    "/bin/sh",
    "-c",
    spec.initramfs === undefined
      ? `exec ${kernelFd}<"$1" && shift 2 && exec "$@"`
      : `exec ${kernelFd}<"$1" ${initramfsFd}<"$2" && shift 2 && exec "$@"`,
    "sh",
    spec.kernel,
    spec.initramfs ?? "",
    "setpriv",
    "--pdeathsig=KILL",
    `--reuid=${user.uid}`,
    `--regid=${user.gid}`,
    user.groups.length === 0 ? "--clear-groups" : `--groups=${user.groups.join(",")}`,
    "--no-new-privs"
  ] as const

const describeUser = (user: User): string =>
  user._tag === "Own"
    ? `runs as ourselves (${user.why})`
    : `runs as uid ${user.uid}, gid ${user.gid}${user.groups.length === 0 ? "" : `, groups ${user.groups.join(", ")}`}`

/**
 * Plans a machine. Fails with `InvalidSpec` for what this backend cannot carry.
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
 *   user: { _tag: "Own", why: "uid 1000" },
 *   path: "/usr/bin:/bin"
 * }, spec))
 * plan.argv.slice(-2) // => ["-kernel", "/boot/vmlinuz"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (setup: Setup, spec: MachineSpec): Result.Result<LaunchPlan, MicroVmError.MicroVmError> => {
  const { accelerator, architecture, because, binary, user, version } = setup
  const board = boards[architecture]
  const drops = user._tag === "Unprivileged"
  const append = kernelArgs(board, spec)
  const qmp = drops ? firstSocketFd : kernelFd
  const channels = new Map(spec.channels.map((name, index) => [name, qmp + 1 + index]))

  const faults: Array<MicroVmError.Fault> = []
  if (new TextEncoder().encode(append).length >= board.commandLineSize) {
    const remedy = `the kernel's command line has room for ${board.commandLineSize - 1} bytes, with what is added here`
    faults.push({ field: "kernelArgs", value: spec.kernelArgs, remedy: `${remedy}: give fewer or shorter arguments` })
  }
  if (channels.size > maxChannels) {
    faults.push({ field: "channels", value: spec.channels, remedy: `give ${maxChannels} at most` })
  }
  if (faults.length > 0) return Result.fail(MicroVmError.make(new MicroVmError.InvalidSpec({ faults })))

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
    board.machine(version),
    "-accel",
    accelerator,
    "-cpu",
    accelerator === "kvm" ? "host" : "max",
    "-smp",
    String(spec.vcpus),
    "-m",
    String(spec.memoryMib),
    "-chardev",
    `socket,id=qmp,fd=${qmp}`,
    "-mon",
    "chardev=qmp,mode=control",
    "-serial",
    "stdio",
    "-device",
    board.pvpanic,
    ...(channels.size === 0 ? [] : ["-device", `virtio-serial-pci,max_ports=${channels.size + 1}`]),
    ...[...channels].flatMap(([name, fd], index) => [
      "-chardev",
      `socket,id=channel${index},fd=${fd}`,
      "-device",
      `virtserialport,chardev=channel${index},id=port${index},name=${name}`
    ]),
    "-append",
    append,
    ...(spec.initramfs === undefined ? [] : ["-initrd", drops ? `/proc/self/fd/${initramfsFd}` : spec.initramfs]),
    "-kernel",
    drops ? `/proc/self/fd/${kernelFd}` : spec.kernel
  ]
  return Result.succeed({
    backend: "qemu",
    description: [
      `QEMU ${formatVersion(version)}, ${accelerator.toUpperCase()}: ${because}`,
      describeUser(user),
      `${spec.vcpus} vCPU, ${spec.memoryMib} MiB, kernel ${spec.kernel}${
        spec.initramfs === undefined ? "" : `, initramfs ${spec.initramfs}`
      }`
    ],
    argv: drops ? [...asUser(user, spec), binary, ...args] : [binary, ...args],
    env: { PATH: setup.path, LC_ALL: "C" },
    fds: { qmp, channels },
    files: [
      { field: "kernel", path: spec.kernel },
      ...(spec.initramfs === undefined ? [] : [{ field: "initramfs" as const, path: spec.initramfs }])
    ]
  })
}
