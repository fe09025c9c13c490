/**
 * Why a machine's life ended, told by what the monitor saw and not by its exit code, which often says nothing.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"

const common = {
  /** How the monitor's process ended. */
  status: ExitStatus.ExitStatus,
  /** The last of the serial console: where a guest kernel says why it gave up. */
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
 * @category models
 * @since 0.1.0
 */
export const MachineEnd = Schema.TaggedUnion({
  PoweredOff: common,
  Reset: common,
  Panicked: common,
  Stopped: common,
  Killed: common,
  Failed: { ...common, why: Schema.String }
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
      return `the monitor was ${ExitStatus.format(self.status)}`
    case "Failed":
      return `the monitor ${ExitStatus.format(self.status)}: ${self.why}`
  }
}
