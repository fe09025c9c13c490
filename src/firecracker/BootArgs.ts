/**
 * The arguments of a guest's kernel, and what follows from them for a machine: can it end, be asked to, and be heard?
 *
 * @since 0.1.0
 */
import * as Result from "effect/Result"
import * as FirecrackerError from "./FirecrackerError.ts"
import type { Architecture } from "./FirecrackerHost.ts"

/**
 * A device that the guest's root file system is on. Firecracker itself tells the kernel so.
 *
 * @category models
 * @since 0.1.0
 */
export type Root =
  | { readonly _tag: "Drive"; readonly partuuid?: string | undefined; readonly readOnly: boolean }
  | { readonly _tag: "Pmem"; readonly index: number; readonly readOnly: boolean }

/**
 * What Firecracker is going to add arguments for.
 *
 * @category options
 * @since 0.1.0
 */
export interface Devices {
  /** Is it started with `--enable-pci`? Then devices are found on the bus. Default false. */
  readonly pci?: boolean | undefined
  /**
   * How many devices there are: each drive, network interface and pmem, and one each for vsock, balloon, entropy and memory
   * hotplug. Default 0.
   */
  readonly count?: number | undefined
  /** Default: none of them is. */
  readonly root?: Root | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  readonly architecture: Architecture
  readonly devices?: Devices | undefined
  /** Does the kernel write on the serial console? It boots faster if not. Default true. */
  readonly console?: boolean | undefined
  /** Also what is no warning? Default false. */
  readonly verbose?: boolean | undefined
  /** Seconds from a kernel's panic to its restart; negative for at once. Default 1. */
  readonly panic?: number | undefined
  /** Told to the kernel (6.0 and later), and to the init of our own images. Default: none. */
  readonly hostname?: string | undefined
  /** Where the root file system is when no device of Firecracker's is its root: `/dev/vdb1`. Default: the kernel's choice. */
  readonly root?: string | undefined
  /**
   * More arguments, one each, after ours: for a kernel the last one counts. `panic=…` and `hostname=…` take the place of ours.
   * After a `--`, they are for the guest's init. Default none.
   */
  readonly args?: ReadonlyArray<string> | undefined
}

/**
 * What follows from a kernel's arguments.
 *
 * @category models
 * @since 0.1.0
 */
export interface Facts {
  /** Does the kernel write on the serial console? */
  readonly console: boolean
  /** Why Ctrl-Alt-Del cannot work. Empty when it can, if the guest has the drivers and an init that listens. */
  readonly noCtrlAltDel: ReadonlyArray<string>
  /** Does the guest restart where it means to power off (`microvm.off=reboot`)? */
  readonly restartIsOff: boolean
  /** What is allowed and probably not meant. */
  readonly warnings: ReadonlyArray<string>
}

/**
 * @category models
 * @since 0.1.0
 */
export interface BootArgs extends Facts {
  /** For `boot_args`. */
  readonly text: string
  /** At most so many bytes of Firecracker's own come to it. */
  readonly reserved: number
}

/**
 * Bytes of a command line that Firecracker hands over, its own additions and the closing NUL included.
 *
 * @category constants
 * @since 0.1.0
 */
export const capacity = 2048

/** One argument: double quotes keep its blanks together, and are no part of it (next_arg() in lib/cmdline.c). */
const argument = /(?:"[^"]*"|[^\s"])+/g
/** Others make Firecracker refuse all of them. */
const isArgument = (arg: string): boolean => /^(?:"[ !#-~]*"|[!#-~])+$/.test(arg)

/** What is for the kernel. */
const forKernel = (args: ReadonlyArray<string>): ReadonlyArray<string> => {
  const end = args.indexOf("--")
  return end < 0 ? args : args.slice(0, end)
}

const valuesOf = (args: ReadonlyArray<string>, name: string): ReadonlyArray<string> =>
  args.flatMap((arg) => arg.startsWith(`${name}=`) ? [arg.slice(name.length + 1).replaceAll("\"", "")] : [])

const isOn = (args: ReadonlyArray<string>, name: string): boolean =>
  args.some((arg) => arg === name || arg === `${name}=1` || arg === `${name}=y`)

/** The way to restart: of all `reboot=mode,type,…` the last type (reboot_setup() in kernel/reboot.c). */
const rebootType = (args: ReadonlyArray<string>): string | undefined =>
  valuesOf(args, "reboot").flatMap((value) => value.split(",").map((word) => word.replace(/^panic_/, "").charAt(0)))
    .findLast((letter) => /^[abekpt]$/.test(letter))

/**
 * Looks at the arguments of a kernel, whoever made them.
 *
 * - A guest restarts by the keyboard controller (`reboot=k`) on x86_64, or Firecracker does not see it as an end.
 * - Ctrl-Alt-Del is typed on that controller's keyboard. There is none on aarch64, nor with `i8042.nokbd`, and with
 *   `i8042.nopnp` a kernel that uses ACPI does not find it (Firecracker 1.8 and later).
 * - `8250.nr_uarts=0` takes the serial port away, also from `console=ttyS0`.
 *
 * ```ts import.meta.vitest
 * import { BootArgs } from "effect-microvm-runtime/firecracker"
 * const facts = BootArgs.facts("console=ttyS0 reboot=k panic=1 i8042.nokbd", "x86_64")
 * facts.console // => true
 * facts.noCtrlAltDel // => ["i8042.nokbd: the guest has no keyboard"]
 * ```
 *
 * @category getters
 * @since 0.1.0
 */
export const facts = (text: string, architecture: Architecture): Facts => {
  const args = forKernel(text.match(argument) ?? [])
  const noUart = valuesOf(args, "8250.nr_uarts").at(-1) === "0"
  const console = valuesOf(args, "console").some((value) => /^ttyS0(,|$)/.test(value)) && !noUart
  const restartsByKeyboard = architecture !== "x86_64" || rebootType(args) === "k"
  const noCtrlAltDel = architecture !== "x86_64" ? [`${architecture} has no keyboard`] : [
    ...(restartsByKeyboard ? [] : ["no reboot=k: the guest would restart in another way, which may not end it"]),
    ...(isOn(args, "i8042.nokbd") ? ["i8042.nokbd: the guest has no keyboard"] : []),
    ...(isOn(args, "i8042.nopnp") ? ["i8042.nopnp: a kernel with ACPI does not find its keyboard"] : [])
  ]
  const panic = Number(valuesOf(args, "panic").at(-1) ?? 0)
  return {
    console,
    noCtrlAltDel,
    restartIsOff: args.includes("microvm.off=reboot"),
    warnings: [
      ...(restartsByKeyboard ? [] : ["without reboot=k, a restart of the guest may hang, or look like a crash"]),
      ...(panic === 0 ? ["without panic=1, a kernel that panics stands still, and the machine does not end"] : []),
      ...(console ? [] : ["without console=ttyS0, why a kernel gives up is not seen"])
    ]
  }
}

const rootArgs = (root: Root): ReadonlyArray<string> => [
  root._tag === "Pmem"
    ? `root=/dev/pmem${root.index}`
    : root.partuuid === undefined
    ? "root=/dev/vda"
    : `root=PARTUUID=${root.partuuid}`,
  root.readOnly ? "ro" : "rw"
]

/**
 * What Firecracker appends, at its longest. It adds arguments at the end of the kernel's, before those of the init.
 */
const additions = (architecture: Architecture, { count = 0, pci = false, root }: Devices): ReadonlyArray<string> => [
  ...(pci ? [] : ["pci=off"]),
  ...(root === undefined ? [] : rootArgs(root)),
  ...(architecture === "x86_64"
    // 4 KiB each, below 4 GiB, on an interrupt of two digits.
    ? pci ? [] : Array.from({ length: count }, () => "virtio_mmio.device=4K@0xffffffff:99")
    : ["earlycon=uart,mmio,0xffffffff"])
]

const faultsOf = (options: Options, given: ReadonlyArray<string>): ReadonlyArray<FirecrackerError.Fault> => {
  const { architecture, devices = {}, hostname, panic, root } = options
  const faults: Array<FirecrackerError.Fault> = []
  const refuse = (field: string, value: unknown, remedy: string): void => {
    faults.push({ field, value, remedy })
  }
  const contradicts = (name: string, wanted: string | undefined): void => {
    for (const value of valuesOf(given, name)) {
      if (wanted !== undefined && value !== wanted) {
        refuse("args", `${name}=${value}`, `leave it out, or ${name} (${wanted})`)
      }
    }
  }
  for (const arg of options.args ?? []) {
    if (!isArgument(arg)) refuse("args", arg, "give one argument of printable ASCII, with any blanks in double quotes")
  }
  if (panic !== undefined && !Number.isInteger(panic)) refuse("panic", panic, "give a whole number of seconds")
  if (hostname !== undefined && !/^[A-Za-z0-9.-]{1,64}$/.test(hostname)) {
    refuse("hostname", hostname, "give at most 64 letters, digits, \"-\" and \".\"")
  }
  if (root !== undefined && !/^[!#-~]+$/.test(root)) refuse("root", root, "give the path of a device in the guest")
  if (
    devices.count !== undefined && !(Number.isSafeInteger(devices.count) && devices.count >= 0 && devices.count < 256)
  ) {
    refuse("devices.count", devices.count, "give the number of devices")
  }
  contradicts("panic", panic === undefined ? undefined : String(panic))
  contradicts("hostname", hostname)
  contradicts("root", root)
  if (devices.root !== undefined) {
    const [ours, access] = rootArgs(devices.root)
    const others = [...(root === undefined ? [] : [`root=${root}`]), ...given.filter((arg) => arg.startsWith("root="))]
    for (const other of others.filter((arg) => arg !== ours)) {
      refuse("root", other, `leave it out: Firecracker adds ${ours} after it, for its root device`)
    }
    for (const other of given.filter((arg) => (arg === "ro" || arg === "rw") && arg !== access)) {
      refuse("args", other, `leave it out: Firecracker adds ${access} after it, for its root device`)
    }
  }
  if (devices.pci === true && given.includes("pci=off")) {
    refuse("args", "pci=off", "leave it out: with --enable-pci all devices are on that bus")
  }
  for (const arg of given.filter((one) => one.startsWith("virtio_mmio.device="))) {
    refuse("args", arg, "leave it out: Firecracker tells the kernel where its devices are")
  }
  if (options.console === false) {
    for (const value of valuesOf(given, "console").filter((one) => one.startsWith("ttyS"))) {
      refuse("args", `console=${value}`, "leave it out, or console (false)")
    }
  } else if (given.includes("8250.nr_uarts=0")) {
    refuse(
      "args",
      "8250.nr_uarts=0",
      "leave it out and give console (false): there is no console without a serial port"
    )
  }
  const way = rebootType(given)
  if (architecture === "x86_64" && way !== undefined && way !== "k") {
    refuse(
      "args",
      given.find((arg) => arg.startsWith("reboot=")),
      "leave it out: only reboot=k ends a machine for certain"
    )
  }
  return faults
}

/**
 * Makes the arguments of a kernel. Fails with `InvalidRequest`, all faults at once: what contradicts another part of the
 * options, and what would be more than 2047 bytes with all that Firecracker adds.
 *
 * ```ts import.meta.vitest
 * import { BootArgs } from "effect-microvm-runtime/firecracker"
 * import * as Result from "effect/Result"
 * const { text } = Result.getOrThrow(BootArgs.make({ architecture: "aarch64", args: ["init=/bin/sh"] }))
 * text // => "console=ttyS0 panic=1 quiet swiotlb=noforce init=/bin/sh"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: Options): Result.Result<BootArgs, FirecrackerError.FirecrackerError> => {
  const { architecture, args = [], console = true, devices = {}, hostname, root, verbose = false } = options
  const given = forKernel(args)
  const faults = [...faultsOf(options, given)]
  const isGiven = (name: string): boolean => valuesOf(given, name).length > 0
  const text = [
    console ? "console=ttyS0" : "8250.nr_uarts=0",
    // The mouse, and looking for more than there is, cost a boot some ten milliseconds.
    ...(architecture === "x86_64" ? ["reboot=k", "i8042.noaux", "i8042.nomux", "i8042.dumbkbd"] : []),
    ...(isGiven("panic") ? [] : [`panic=${options.panic ?? 1}`]),
    ...(verbose ? [] : ["quiet"]),
    "swiotlb=noforce",
    ...(root === undefined || isGiven("root") ? [] : [`root=${root}`]),
    ...(hostname === undefined || isGiven("hostname") ? [] : [`hostname=${hostname}`, `microvm.hostname=${hostname}`]),
    ...args
  ].join(" ")
  const reserved = faults.length > 0
    ? 0
    : additions(architecture, devices).reduce((sum, addition) => sum + addition.length + 1, 0)
  const room = capacity - 1 - reserved
  if (text.length > room) {
    const remedy = `give fewer or shorter arguments: there is room for ${room} bytes, ours included, beside those that `
      + "Firecracker adds for its devices"
    faults.push({ field: "args", value: `${text.length} bytes`, remedy })
  }
  return faults.length > 0
    ? Result.fail(FirecrackerError.make(new FirecrackerError.InvalidRequest({ faults })))
    : Result.succeed({ text, reserved, ...facts(text, architecture) })
}
