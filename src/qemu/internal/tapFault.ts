import type { MachineSpec } from "../../microvm/MachineSpec.ts"
import * as MicroVmError from "../../microvm/MicroVmError.ts"
import type { Setup } from "../QemuHost.ts"

/** What the wrapper's shell says, in front of a name: QEMU as root would make the device without a word. */
export const noInterface = "microvm: there is no interface "

const remediesOf = ({ user }: Setup): { readonly [why: string]: string } => ({
  "Operation not permitted": "it belongs to another user than QEMU's: make it for that one " +
    `(ip tuntap add NAME mode tap user ${user._tag === "Own" ? "USER" : user.uid})`,
  "Permission denied": "QEMU's user may not open /dev/net/tun: chmod a+rw /dev/net/tun",
  "Device or resource busy": "another process has it: give each machine a TAP device of its own",
  "Invalid argument": "it is no TAP device, or one with several queues: make it by ip tuntap add NAME mode tap"
})

/**
 * What the wrapper and QEMU say on stderr of a TAP device that cannot be used (tap_open() in net/tap-linux.c), as a fault of
 * the spec.
 */
export const tapFault = (
  { networks }: MachineSpec,
  setup: Setup,
  { reason }: MicroVmError.MicroVmError
): MicroVmError.MicroVmError | undefined => {
  if (reason._tag !== "LaunchFailed") return undefined
  const [, busy, why = ""] = /could not configure \/dev\/net\/tun \(([^)]+)\): (.+)/.exec(reason.stderrTail) ?? []
  const [, missing] = new RegExp(`^${noInterface}(\\S+)`, "m").exec(reason.stderrTail) ?? []
  const tap = missing ?? busy
  const index = networks.findIndex((network) => network.tap === tap)
  if (index < 0) return undefined
  const remedy = missing !== undefined
    ? `there is no such interface: make it first (ip tuntap add ${missing} mode tap), and bring it up`
    : `${why}: ${remediesOf(setup)[why.trim()] ?? "name a TAP device that QEMU can use"}`
  const fault = { field: `networks[${index}].tap`, value: tap, remedy }
  return MicroVmError.make(new MicroVmError.InvalidSpec({ faults: [fault] }))
}
