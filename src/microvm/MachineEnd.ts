/**
 * Why a machine's life ended, told by what the monitor saw and not by its exit code, which often says nothing.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import * as Printable from "../lifecycle/Printable.ts"
import type { Acknowledged } from "../lifecycle/ShutdownOutcome.ts"

/**
 * What a machine was not given more of by its host:
 *
 * - `Memory`: the kernel killed the monitor for want of memory. `limitMib` is what the machine could have, if that was limited.
 * - `Tasks`: the monitor was refused a process or a thread. `limit` is how many it could have.
 *
 * @category models
 * @since 0.1.0
 */
export const Shortage = Schema.TaggedUnion({
  Memory: { limitMib: Schema.optionalKey(Schema.Number) },
  Tasks: { limit: Schema.optionalKey(Schema.Number) }
})

/**
 * @category models
 * @since 0.1.0
 */
export type Shortage = typeof Shortage.Type

const common = {
  /** How the monitor's process ended. */
  status: ExitStatus.ExitStatus,
  /** The last of the serial console: where a guest kernel says why it gave up. Begins with `[truncated]…` where there was more. */
  consoleTail: Schema.String,
  /** The last of the monitor's own stderr. */
  stderrTail: Schema.String
}

/**
 * Why a machine's life ended:
 *
 * - `PoweredOff`: the guest turned itself off.
 * - `Reset`: the guest asked for a reboot; a machine has one life, so it ended instead. A kernel that panics without a
 *   panic device in the machine looks the same.
 * - `Panicked`: the guest's kernel panicked and said so.
 * - `Stopped`: the monitor ended at the host's request, without asking the guest.
 * - `Killed`: a signal killed the monitor; `status` says which.
 * - `Failed`: the monitor ended by itself, in a way that it should not.
 *
 * `shortage` is there when it is what the last two came of, as far as its host was asked for that: see `LaunchOptions.shortage`.
 *
 * @category models
 * @since 0.1.0
 */
export const MachineEnd = Schema.TaggedUnion({
  PoweredOff: common,
  Reset: common,
  Panicked: common,
  Stopped: common,
  Killed: { ...common, shortage: Schema.optionalKey(Shortage) },
  Failed: { ...common, why: Schema.String, shortage: Schema.optionalKey(Shortage) }
})

/**
 * @category models
 * @since 0.1.0
 */
export type MachineEnd = typeof MachineEnd.Type

/**
 * Did the guest end its own life in order, by a power-off or a reboot?
 *
 * @category guards
 * @since 0.1.0
 */
export const isByGuest = (self: MachineEnd): boolean => self._tag === "PoweredOff" || self._tag === "Reset"

/** What guests of the folder `image` say (`GuestScripts.shutdown`), by themselves or by their kernel. */
const allIsWritten = /^(?:\[ *\d+\.\d+\](?:\[ *\w+\])? )?microvm-shutdown: all is written, (?:poweroff|halt|reboot)\r*$/
/** What a kernel says after that, while it puts its devices away. */
const ofKernel = /^(?:\[ *\d+\.\d+\]|reboot: |\r*$)/

/**
 * Is the guest's last word on the console that all is written? Only the kernel's own lines may follow it, and half a line is none.
 *
 * ```ts import.meta.vitest
 * import { MachineEnd } from "effect-microvm-runtime/microvm"
 * const said = "microvm-shutdown: all is written, poweroff\r\n"
 * MachineEnd.saysAllIsWritten(`${said}[    1.2] reboot: Restarting system\r\n`) // => true
 * MachineEnd.saysAllIsWritten(`${said}still here\r\n`) // => false
 * ```
 *
 * @category guards
 * @since 0.1.0
 */
export const saysAllIsWritten = (consoleTail: string): boolean => {
  const lines = consoleTail.split("\n")
  // What no newline ends may have been cut.
  const cut = lines.pop() ?? ""
  const last = lines.findLast((line) => allIsWritten.test(line) || !ofKernel.test(line))
  return ofKernel.test(cut) && allIsWritten.test(last ?? "")
}

/**
 * Did the guest say that all is written, before this end?
 *
 * **Gotchas**
 *
 * - It is the guest's word: one that is hostile can say it of what is its own.
 *
 * ```ts import.meta.vitest
 * import { ExitStatus } from "effect-microvm-runtime/lifecycle"
 * import { MachineEnd } from "effect-microvm-runtime/microvm"
 * const { Killed, PoweredOff } = MachineEnd.MachineEnd.cases
 * const tails = { status: ExitStatus.signaled("SIGKILL"), consoleTail: "", stderrTail: "" }
 * MachineEnd.acknowledged(Killed.make(tails)) // => "no"
 * MachineEnd.acknowledged(PoweredOff.make(tails)) // => "unknown"
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const acknowledged = (self: MachineEnd): Acknowledged =>
  saysAllIsWritten(self.consoleTail) ? "yes" : isByGuest(self) ? "unknown" : "no"

/**
 * One phrase for people.
 *
 * ```ts import.meta.vitest
 * import { MachineEnd } from "effect-microvm-runtime/microvm"
 * MachineEnd.formatShortage({ _tag: "Memory", limitMib: 448 }) // => "out of memory (limit 448 MiB)"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const formatShortage = (self: Shortage): string => {
  const [what, limit] = self._tag === "Memory"
    ? ["memory", self.limitMib === undefined ? undefined : `${self.limitMib} MiB`]
    : ["processes and threads", self.limit]
  return `out of ${what}${limit === undefined ? "" : ` (limit ${limit})`}`
}

const shortageOf = ({ shortage }: { readonly shortage?: Shortage }): string =>
  shortage === undefined ? "" : `, ${formatShortage(shortage)}`

/**
 * One phrase for people, without the tails.
 *
 * ```ts import.meta.vitest
 * import { ExitStatus } from "effect-microvm-runtime/lifecycle"
 * import { MachineEnd } from "effect-microvm-runtime/microvm"
 * const end = MachineEnd.MachineEnd.cases.Killed.make({
 *   status: ExitStatus.signaled("SIGKILL"),
 *   consoleTail: "",
 *   stderrTail: ""
 * })
 * MachineEnd.format(end) // => "the monitor was killed by SIGKILL"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = (self: MachineEnd): string => {
  switch (self._tag) {
    case "PoweredOff":
      return "the guest powered off"
    case "Reset":
      return "the guest asked for a reboot"
    case "Panicked":
      return "the guest's kernel panicked"
    case "Stopped":
      return "the monitor was stopped by the host"
    case "Killed":
      return self.shortage === undefined
        ? `the monitor was ${ExitStatus.format(self.status)}`
        : `the monitor was killed by the kernel: ${formatShortage(self.shortage)}`
    case "Failed":
      return `the monitor ${ExitStatus.format(self.status)}: ${Printable.onOneLine(self.why)}${shortageOf(self)}`
  }
}
