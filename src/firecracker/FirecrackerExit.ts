/**
 * What the end of a Firecracker says, and what it does not say: its exit code 0 stands for a reboot, for a power-off, for
 * a kernel that panicked, and for a guest that crashed.
 *
 * @since 0.1.0
 */
import type { ExitStatus } from "../lifecycle/ExitStatus.ts"
import { dumpsCore, type Signal } from "../lifecycle/Signal.ts"
import { MachineEnd, saysAllIsWritten } from "../microvm/MachineEnd.ts"
import type { MachineRequest } from "../microvm/MicroVmProvider.ts"
import type { Architecture } from "./FirecrackerHost.ts"

/**
 * What an end is about:
 *
 * - `GuestEnded`: the guest has reset itself or turned itself off.
 * - `GuestEndedOrCrashed`: the same, or its processor gave up: one code may stand for both.
 * - `Refused`: Firecracker, or the jailer before it, could not do what it was to do, or could not go on.
 * - `CommandLine`: it does not understand its command line.
 * - `Sandbox`: its seccomp filter refused a system call.
 * - `HostLimit`: the host has no more of something: pages for a mapping, or what a resource limit allows.
 * - `Crashed`: a bug of Firecracker's.
 * - `HungUp`: the session that it belonged to has ended.
 * - `Killed`: a signal that it does not handle killed it. The guest had no say in it.
 * - `Unknown`: nobody can say.
 *
 * @category models
 * @since 0.1.0
 */
export type ExitKind =
  | "GuestEnded"
  | "GuestEndedOrCrashed"
  | "Refused"
  | "CommandLine"
  | "Sandbox"
  | "HostLimit"
  | "Crashed"
  | "HungUp"
  | "Killed"
  | "Unknown"

/**
 * @category models
 * @since 0.1.0
 */
export interface Description {
  readonly kind: ExitKind
  /** One phrase for people. */
  readonly meaning: string
}

/** Firecracker's own exit codes (FcExitCode in its sources); those above 147 stand for signals that it handles. */
const codes: { readonly [code: number]: Description } = {
  1: {
    kind: "Refused",
    meaning: "it could not start or could not go on: what it was given, the host, a snapshot that does not load, or a "
      + "guest that crashed; its stderr and its log say which"
  },
  2: { kind: "Crashed", meaning: "a handler ran for a signal that is not its own" },
  134: { kind: "Crashed", meaning: "it panicked (SIGABRT): a bug, an invalid --id, or a file that it cannot read" },
  148: { kind: "Sandbox", meaning: "its seccomp filter refused a system call (SIGSYS)" },
  149: { kind: "HostLimit", meaning: "memory went away under it (SIGBUS): huge pages ran out, or a file was cut" },
  150: { kind: "Crashed", meaning: "it used memory that it does not have (SIGSEGV)" },
  151: { kind: "HostLimit", meaning: "a file would be larger than its limit allows (SIGXFSZ)" },
  152: { kind: "CommandLine", meaning: "its configuration was refused: --level has no such value" },
  153: { kind: "CommandLine", meaning: "its command line was refused: an unknown, repeated or missing argument" },
  154: { kind: "HostLimit", meaning: "its limit of processor time has passed (SIGXCPU)" },
  155: { kind: "Unknown", meaning: "a pipe that it wrote to was closed (SIGPIPE)" },
  156: { kind: "HungUp", meaning: "the session that it belonged to has ended (SIGHUP)" },
  157: { kind: "Crashed", meaning: "it ran an instruction that the processor does not have (SIGILL)" }
}

/** The codes above are what a handled signal becomes; these come through where the handler was not there yet, or failed. */
const handled: { readonly [S in Signal]?: number } = {
  SIGABRT: 134,
  SIGSYS: 148,
  SIGBUS: 149,
  SIGSEGV: 150,
  SIGXFSZ: 151,
  SIGXCPU: 154,
  SIGPIPE: 155,
  SIGHUP: 156,
  SIGILL: 157
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Binary {
  readonly architecture: Architecture
}

const success = ({ architecture }: Binary): Description =>
  architecture === "x86_64"
    ? {
      kind: "GuestEndedOrCrashed",
      meaning: "the guest ended, or it crashed: its exit code does not tell, its log does"
    }
    : { kind: "GuestEnded", meaning: "the guest ended" }

/**
 * What a status says by Firecracker's own table.
 *
 * **Gotchas**
 *
 * - An x86 guest that crashed (a triple fault) gives exit code 0, as one does that has restarted. From 1.15 on it is 1, or 0 all the
 *   same, whichever of Firecracker's threads comes first. Only the log tells: see `toEnd`.
 * - A kernel that panics with `panic=1 reboot=k` is exit code 0 in every release; only its console tells.
 * - The codes of the jailer are no others: 1 when it could not make the jail.
 *
 * ```ts import.meta.vitest
 * import { FirecrackerExit } from "effect-microvm-runtime/firecracker"
 * import { ExitStatus } from "effect-microvm-runtime/lifecycle"
 * const binary = { architecture: "x86_64" } as const
 * FirecrackerExit.describe(ExitStatus.exited(148), binary).kind // => "Sandbox"
 * FirecrackerExit.describe(ExitStatus.exited(0), binary).kind // => "GuestEndedOrCrashed"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const describe = (status: ExitStatus, binary: Binary): Description => {
  switch (status._tag) {
    case "Exited":
      return status.code === 0
        ? success(binary)
        : codes[status.code] ?? { kind: "Unknown", meaning: `code ${status.code} is not in Firecracker's table` }
    case "Signaled": {
      const code = handled[status.signal]
      const known = code === undefined ? undefined : codes[code]
      if (known !== undefined) return known
      return dumpsCore.has(status.signal)
        ? { kind: "Crashed", meaning: `${status.signal} ended it` }
        : { kind: "Killed", meaning: `${status.signal} killed it, and the guest with it` }
    }
    case "Lost":
      return { kind: "Unknown", meaning: `how it ended is not known: ${status.why}` }
  }
}

/**
 * What is known when Firecracker's process is gone.
 *
 * @category models
 * @since 0.1.0
 */
export interface Evidence extends Binary {
  readonly status: ExitStatus
  /** The last that was asked of the machine, if anything was. */
  readonly asked: MachineRequest | undefined
  readonly consoleTail: string
  readonly stderrTail: string
  /** The last of its log: where nobody could wait for it, its own last word; and whether the guest crashed. */
  readonly logTail: string
  /**
   * Does the guest restart where it means to power off? On x86_64 it has to: a power-off leaves Firecracker running. Then it
   * says so when all is written.
   */
  readonly restartIsOff: boolean
}

/** What the kernel prints before it gives up (panic() in kernel/panic.c). */
const panicNotice = /Kernel panic - not syncing/
/** What it prints before it ends by itself, whatever its log level (kernel/reboot.c). */
const lastWord = /reboot: (Power down|System halted|Restarting system)/g
/** The last line of Firecracker's log. */
const exitNotice = /Firecracker exiting (?:successfully|with error)\. exit_code=(\d{1,3})\b/

interface Crash {
  readonly why: string
  /** It can be a way to restart, too (`reboot=t` of the kernel, and its last resort). */
  readonly mayBeRestart: boolean
}

/**
 * What it logs of a guest's processor that cannot go on (vstate/vcpu.rs). The vCPU's thread says that it is over before it says
 * how, so the exit code is 1 or 0.
 */
const crashNotices: ReadonlyArray<readonly [notice: RegExp, toCrash: (detail: string) => Crash]> = [
  // Before 1.15, and from then on.
  [/Received KVM_EXIT_SHUTDOWN signal|Unexpected exit reason on vcpu run: Shutdown\b/, () => ({
    why: "the guest crashed: its processor gave up (a triple fault)",
    mayBeRestart: true
  })],
  [/Received KVM_EXIT_INTERNAL_ERROR signal|Received ENOSYS error because KVM failed/, () => ({
    why:
      "KVM could not go on with the guest: it did what this host's KVM cannot do for it, as an instruction that is not emulated",
    mayBeRestart: false
  })],
  [
    /(?:Received (KVM_EXIT_FAIL_ENTRY signal: .{1,100})|(?:Unexpected exit reason on|Failure during) vcpu run: (.{1,100}))/,
    (
      detail
    ) => ({ why: `KVM could not run the guest's processor: ${detail}`, mayBeRestart: false })
  ]
]

const crashOf = (logTail: string): Crash | undefined => {
  for (const [notice, toCrash] of crashNotices) {
    const found = notice.exec(logTail)
    if (found !== null) return toCrash(found[1] ?? found[2] ?? "")
  }
  return undefined
}

const lastLine = (text: string): string | undefined => text.trimEnd().split("\n").at(-1)?.trim() || undefined

/** A process that is not our child leaves no status, but says itself what it is about to exit with. */
const exitCode = ({ logTail, status }: Evidence): number | undefined => {
  if (status._tag === "Exited") return status.code
  const code = status._tag === "Lost" ? exitNotice.exec(logTail)?.[1] : undefined
  return code === undefined ? undefined : Number(code)
}

/** The last that a kernel said that ended in order. */
const lastWordOf = (consoleTail: string): string | undefined => [...consoleTail.matchAll(lastWord)].at(-1)?.[1]

/** How a guest that has ended by itself did it. */
const byGuest = ({ architecture, asked, consoleTail, restartIsOff }: Evidence) => {
  if (restartIsOff) return saysAllIsWritten(consoleTail) ? MachineEnd.cases.PoweredOff : MachineEnd.cases.Reset
  const said = lastWordOf(consoleTail)
  if (said !== undefined && said !== "Restarting system") return MachineEnd.cases.PoweredOff
  if (asked === "PowerButton") return MachineEnd.cases.PoweredOff
  // An x86 machine has one way to end, its reset. Others have two, and the usual one needs no word.
  return said !== undefined || architecture === "x86_64" ? MachineEnd.cases.Reset : MachineEnd.cases.PoweredOff
}

/**
 * Why a machine's life ended. What the guest did comes before what the host asked for: it may have been faster.
 *
 * A process under `--new-pid-ns` or `--daemonize` is nobody's child: its status is `Lost`. Then its log says its exit
 * code, or that it was killed has to be believed of who asked for that, or nothing is known.
 *
 * ```ts import.meta.vitest
 * import { FirecrackerExit } from "effect-microvm-runtime/firecracker"
 * import { ExitStatus } from "effect-microvm-runtime/lifecycle"
 * const end = FirecrackerExit.toEnd({
 *   architecture: "x86_64",
 *   status: ExitStatus.exited(0),
 *   asked: undefined,
 *   consoleTail: "[ 1.5] Kernel panic - not syncing: VFS: Unable to mount root fs",
 *   stderrTail: "",
 *   logTail: "",
 *   restartIsOff: false
 * })
 * end._tag // => "Panicked"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const toEnd = (evidence: Evidence): MachineEnd => {
  const { asked, consoleTail, logTail, status, stderrTail } = evidence
  const common = { status, consoleTail, stderrTail }
  const code = exitCode(evidence)
  const isPanic = panicNotice.test(consoleTail)
  const crash = crashOf(logTail)
  if (code === 0 || (code === 1 && crash !== undefined)) {
    if (isPanic) return MachineEnd.cases.Panicked.make(common)
    return crash === undefined || (crash.mayBeRestart && lastWordOf(consoleTail) !== undefined)
      ? byGuest(evidence).make(common)
      : MachineEnd.cases.Failed.make({ ...common, why: crash.why })
  }
  if (code === undefined && status._tag === "Lost") {
    if (asked === "Kill") return MachineEnd.cases.Killed.make(common)
    if (asked === "Terminate") return MachineEnd.cases.Stopped.make(common)
    if (isPanic) return MachineEnd.cases.Panicked.make(common)
  }
  // There is no handler for SIGTERM: the signal is the whole way to end it from the host.
  if (status._tag === "Signaled" && status.signal === "SIGTERM" && asked === "Terminate") {
    return MachineEnd.cases.Stopped.make(common)
  }
  const { kind, meaning } = describe(
    code === undefined ? status : { _tag: "Exited", code, observedBy: status.observedBy },
    evidence
  )
  return kind === "Killed"
    ? MachineEnd.cases.Killed.make(common)
    : MachineEnd.cases.Failed.make({ ...common, why: lastLine(stderrTail) ?? meaning })
}
