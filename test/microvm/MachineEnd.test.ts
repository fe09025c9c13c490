import { describe, expect, it } from "@effect/vitest"
import { ExitStatus } from "effect-microvm-runtime/lifecycle"
import { MachineEnd } from "effect-microvm-runtime/microvm"

const said = "microvm-shutdown: all is written, poweroff"

describe("the last word of a guest", () => {
  it.each([
    ["alone", `${said}\n`],
    ["of a terminal", `booting\r\n${said}\r\r\n`],
    ["before the kernel's", `${said}\r\n\r\n[    9.1] sd 0:0:0:0: stops\r\nreboot: Restarting system\r\n`],
    ["by the kernel", `[   12.345678] ${said}\r\n[   12.4] reboot: Power down\r\n`],
    ["by a kernel that tells who calls", `[   12.345678][    T1] ${said}\r\n[   12.4][    T1] reboot: Power down\r\n`],
    ["with half a line of the kernel's after it", `${said}\r\n[   12.4] reb`],
    ["twice", `${said}\r\n${said}\r\n`]
  ])("%s", (_, console) => {
    expect(MachineEnd.saysAllIsWritten(console)).toBe(true)
  })

  it.each([
    ["nothing", ""],
    ["something else", "reboot: Restarting system\r\n"],
    ["a part of another line", `echo ${said}\r\n`],
    ["a line that goes on", `${said} not\r\n`],
    ["a line without an end", said],
    ["a line that was cut in front", `[truncated]…${said}\r\n`],
    ["not the last", `${said}\r\nlogin: `],
    ["much of nothing", "\r".repeat(65_536)],
    ["much of the kernel's", "[ 1.1]\n".repeat(8192)]
  ])("not %s", (_, console) => {
    expect(MachineEnd.saysAllIsWritten(console)).toBe(false)
  })
})

describe("acknowledged", () => {
  const { Failed, Killed, Panicked, PoweredOff, Reset, Stopped } = MachineEnd.MachineEnd.cases
  const tails = (consoleTail: string) => ({ status: ExitStatus.exited(0), consoleTail, stderrTail: "" })
  const all = (consoleTail: string) =>
    [
      PoweredOff.make(tails(consoleTail)),
      Reset.make(tails(consoleTail)),
      Panicked.make(tails(consoleTail)),
      Stopped.make(tails(consoleTail)),
      Killed.make(tails(consoleTail)),
      Failed.make({ ...tails(consoleTail), why: "it" })
    ].map(MachineEnd.acknowledged)

  it("is yes after that word, however the machine ended", () => {
    expect(all(`${said}\n`)).toEqual(Array.from({ length: 6 }, () => "yes"))
  })

  it("is unknown of a guest that ended by itself without it, and no where it had no time for it", () => {
    expect(all("login: ")).toEqual(["unknown", "unknown", "no", "no", "no", "no"])
  })
})
