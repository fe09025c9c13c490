import { assert, describe, it } from "@effect/vitest"
import { FirecrackerExit } from "effect-microvm-runtime/firecracker"
import { ExitStatus, Signal } from "effect-microvm-runtime/lifecycle"
import type { MicroVmProvider } from "effect-microvm-runtime/microvm"

const x86 = { architecture: "x86_64" } as const
const arm = { architecture: "aarch64" } as const

describe("the table", () => {
  it.each<readonly [ExitStatus.ExitStatus, FirecrackerExit.Binary, FirecrackerExit.ExitKind]>([
    [ExitStatus.exited(0), x86, "GuestEndedOrCrashed"],
    [ExitStatus.exited(0), arm, "GuestEnded"],
    [ExitStatus.exited(1), x86, "Refused"],
    [ExitStatus.exited(2), x86, "Crashed"],
    [ExitStatus.exited(134), x86, "Crashed"],
    [ExitStatus.signaled("SIGABRT"), x86, "Crashed"],
    [ExitStatus.exited(148), x86, "Sandbox"],
    [ExitStatus.signaled("SIGSYS"), x86, "Sandbox"],
    [ExitStatus.exited(149), x86, "HostLimit"],
    [ExitStatus.exited(150), x86, "Crashed"],
    [ExitStatus.exited(151), x86, "HostLimit"],
    [ExitStatus.exited(152), x86, "CommandLine"],
    [ExitStatus.exited(153), x86, "CommandLine"],
    [ExitStatus.exited(154), x86, "HostLimit"],
    [ExitStatus.exited(155), x86, "Unknown"],
    [ExitStatus.exited(156), x86, "HungUp"],
    [ExitStatus.exited(157), x86, "Crashed"],
    [ExitStatus.exited(42), x86, "Unknown"],
    [ExitStatus.signaled("SIGKILL"), x86, "Killed"],
    [ExitStatus.signaled("SIGTERM"), x86, "Killed"],
    [ExitStatus.signaled("SIGQUIT"), x86, "Crashed"],
    [ExitStatus.lost("not our child", "identity"), x86, "Unknown"]
  ])("%o", (status, binary, kind) => {
    assert.strictEqual(FirecrackerExit.describe(status, binary).kind, kind)
  })

  it("has a phrase for every status", () => {
    const statuses = [
      ...Array.from({ length: 256 }, (_, code) => ExitStatus.exited(code)),
      ...Signal.names.map((signal) => ExitStatus.signaled(signal))
    ]
    for (const status of statuses) assert.match(FirecrackerExit.describe(status, x86).meaning, /\w/)
  })
})

const end = (
  status: ExitStatus.ExitStatus,
  evidence: Partial<FirecrackerExit.Evidence> = {},
  binary: FirecrackerExit.Binary = x86
) =>
  FirecrackerExit.toEnd({
    ...binary,
    status,
    asked: undefined,
    consoleTail: "",
    stderrTail: "",
    logTail: "",
    restartIsOff: false,
    ...evidence
  })

const zero = ExitStatus.exited(0)
const panic = "[  0.52] Kernel panic - not syncing: Attempted to kill init!\n[  0.53] reboot: Restarting system\n"

describe("an exit with code 0", () => {
  it("is a panic when the console shows one", () => {
    assert.strictEqual(end(zero, { consoleTail: panic })._tag, "Panicked")
    assert.strictEqual(end(zero, { consoleTail: panic, asked: "PowerButton" })._tag, "Panicked")
  })

  it("is what the guest said last", () => {
    assert.strictEqual(end(zero, { consoleTail: "reboot: Restarting system\n" }, arm)._tag, "Reset")
    assert.strictEqual(end(zero, { consoleTail: "reboot: Power down\n" })._tag, "PoweredOff")
    assert.strictEqual(end(zero, { consoleTail: "reboot: System halted\n" }, arm)._tag, "PoweredOff")
  })

  it("of a silent guest is a reset on x86_64, which has nothing else, and a power-off on aarch64", () => {
    assert.strictEqual(end(zero)._tag, "Reset")
    assert.strictEqual(end(zero, {}, arm)._tag, "PoweredOff")
  })

  it("is a power-off where a restart stands for one, once the guest has said that all is written", () => {
    const consoleTail = "[ 9.0] reboot: Restarting system\r\n"
    const said = (how: string) => `microvm-shutdown: all is written, ${how}\r\n`
    const tag = (text: string, asked?: MicroVmProvider.MachineRequest) =>
      end(zero, { consoleTail: text, restartIsOff: true, asked })._tag
    assert.strictEqual(tag(said("poweroff") + consoleTail), "PoweredOff")
    assert.strictEqual(tag(said("halt") + consoleTail), "PoweredOff")
    // What Ctrl-Alt-Del is to a guest.
    assert.strictEqual(tag(said("reboot") + consoleTail), "PoweredOff")
    // `reboot -f`, and guests that say nothing.
    assert.strictEqual(tag(consoleTail), "Reset")
    assert.strictEqual(tag(consoleTail, "PowerButton"), "Reset")
    assert.strictEqual(tag(""), "Reset")
    assert.strictEqual(tag(`${said("poweroff")}after all\r\n${consoleTail}`), "Reset")
    assert.strictEqual(end(zero, { consoleTail, asked: "PowerButton" })._tag, "PoweredOff")
  })
})

// From 1.15 on, it is 1 only where the vCPU's thread comes first.
describe.each([0, 1])("an exit with code %i", (code) => {
  const status = ExitStatus.exited(code)
  const log = (message: string) => ({
    logTail: `2026-01-01T00:00:00 [vm:fc_vcpu 0] ${message}\n2026-01-01T00:00:00 [vm:main] Vmm is stopping.\n`
  })

  it.each(["Received KVM_EXIT_SHUTDOWN signal", "Unexpected exit reason on vcpu run: Shutdown"])(
    "is a crash when the log says \"%s\", unless the guest restarted so, or panicked",
    (message) => {
      assert.include(end(status, { ...log(message), stderrTail: "Error: RunWithApi(…)\n" }), {
        _tag: "Failed",
        why: "the guest crashed: its processor gave up (a triple fault)"
      })
      assert.strictEqual(end(status, { ...log(message), consoleTail: "reboot: Restarting system" })._tag, "Reset")
      assert.strictEqual(end(status, { ...log(message), consoleTail: panic })._tag, "Panicked")
    }
  )

  it.each([
    ["Received KVM_EXIT_INTERNAL_ERROR signal", /KVM could not go on with the guest/],
    ["Received ENOSYS error because KVM failed to emulate an instruction.", /KVM could not go on with the guest/],
    ["Received KVM_EXIT_FAIL_ENTRY signal: 7 on cpu 0", /processor: KVM_EXIT_FAIL_ENTRY signal: 7 on cpu 0$/],
    ["Unexpected exit reason on vcpu run: Hlt", /processor: Hlt$/],
    ["Failure during vcpu run: Bad address (os error 14)", /processor: Bad address \(os error 14\)$/]
  ])("is a failure of KVM's when the log says \"%s\"", (message, why) => {
    const failed = end(status, { ...log(message), consoleTail: "reboot: Restarting system" })
    assert.match(failed._tag === "Failed" ? failed.why : failed._tag, why)
  })
})

describe("another end", () => {
  it("by SIGTERM is a stop if that was asked for: there is no handler", () => {
    assert.strictEqual(end(ExitStatus.signaled("SIGTERM"), { asked: "Terminate" })._tag, "Stopped")
    assert.strictEqual(end(ExitStatus.signaled("SIGTERM"))._tag, "Killed")
    assert.strictEqual(end(ExitStatus.signaled("SIGKILL"), { asked: "Kill" })._tag, "Killed")
  })

  it("is a failure, with the last of stderr or else with what the code means", () => {
    assert.include(end(ExitStatus.exited(1), { stderrTail: "x\nError: RunWithApi\n\n" }), {
      _tag: "Failed",
      why: "Error: RunWithApi"
    })
    assert.include(end(ExitStatus.exited(148)), {
      _tag: "Failed",
      why: "its seccomp filter refused a system call (SIGSYS)"
    })
    assert.include(end(ExitStatus.signaled("SIGSEGV"), { asked: "Kill" }), { _tag: "Failed" })
  })

  const lost = ExitStatus.lost("not our child", "identity")
  it("that nobody waited for is told by the log", () => {
    const log = (line: string) => ({ logTail: `2026-01-01 [vm:main] Firecracker exiting ${line}\n` })
    assert.strictEqual(end(lost, log("successfully. exit_code=0"))._tag, "Reset")
    assert.strictEqual(end(lost, { ...log("successfully. exit_code=0"), consoleTail: panic })._tag, "Panicked")
    assert.include(end(lost, log("with error. exit_code=148")), {
      _tag: "Failed",
      why: "its seccomp filter refused a system call (SIGSYS)"
    })
  })

  it.each<readonly [MicroVmProvider.MachineRequest | undefined, string]>([
    ["Kill", "Killed"],
    ["Terminate", "Stopped"],
    ["PowerButton", "Failed"],
    [undefined, "Failed"]
  ])("that left no trace is what was asked for: %s is %s", (asked, tag) => {
    assert.strictEqual(end(lost, { asked })._tag, tag)
  })

  it("keeps the evidence", () => {
    assert.deepInclude(end(zero, { consoleTail: "a", stderrTail: "b" }), {
      consoleTail: "a",
      stderrTail: "b",
      status: zero
    })
  })
})
