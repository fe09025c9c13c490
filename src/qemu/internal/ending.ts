import type { ExitStatus } from "../../lifecycle/ExitStatus.ts"
import { dumpsCore } from "../../lifecycle/Signal.ts"
import { MachineEnd } from "../../microvm/MachineEnd.ts"

/** What is known when QEMU's process is gone. */
export interface Evidence {
  readonly status: ExitStatus
  /** `reason` of the SHUTDOWN event, when there was one. */
  readonly reason: string | undefined
  /** Was there a GUEST_PANICKED event? */
  readonly panicked: boolean
  /** Had we asked QEMU to end? */
  readonly asked: boolean
  readonly consoleTail: string
  readonly stderrTail: string
}

/** What the kernel prints before it gives up (panic() in kernel/panic.c). */
const panicNotice = /Kernel panic - not syncing/

const lastLine = (text: string): string | undefined => text.trimEnd().split("\n").at(-1) || undefined

/**
 * Why the machine ended. What the guest did comes first: QEMU tells it while it is on its way out, whatever happens to
 * its process after that. A kernel that panics before its panic driver is loaded only shows as a reset, and on the
 * console.
 */
export const toEnd = ({ asked, consoleTail, panicked, reason, status, stderrTail }: Evidence): MachineEnd => {
  const common = { status, consoleTail, stderrTail }
  if (panicked || reason === "guest-panic" || (reason === "guest-reset" && panicNotice.test(consoleTail))) {
    return MachineEnd.cases.Panicked.make(common)
  }
  if (reason === "guest-shutdown") return MachineEnd.cases.PoweredOff.make(common)
  if (reason === "guest-reset") return MachineEnd.cases.Reset.make(common)
  if (status._tag === "Signaled") {
    if (!dumpsCore.has(status.signal)) return MachineEnd.cases.Killed.make(common)
    const why = status.signal === "SIGSYS" ? "its sandbox refused a system call" : lastLine(stderrTail) ?? "it crashed"
    return MachineEnd.cases.Failed.make({ ...common, why })
  }
  if (asked || (reason !== "host-error" && reason?.startsWith("host-") === true)) {
    return MachineEnd.cases.Stopped.make(common)
  }
  if (status._tag === "Lost") return MachineEnd.cases.Failed.make({ ...common, why: status.why })
  return MachineEnd.cases.Failed.make({ ...common, why: lastLine(stderrTail) ?? reason ?? "it gave no reason" })
}
