/**
 * What a user of `microvm run` wants, checked as a whole before anything is done.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as EgressRule from "../host/EgressRule.ts"
import * as DurationText from "../lifecycle/DurationText.ts"
import * as MachineSpec from "../microvm/MachineSpec.ts"
import type { Choice } from "./Backend.ts"
import { commandFaults, readEnv, workdirFaults } from "./internal/commandFlags.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface RunOptions {
  readonly backend: Choice
  /** The machine's id. Absent: made up, `run-` and twelve random letters and digits. */
  readonly name: Option.Option<string>
  readonly vcpus: number
  readonly memoryMib: number
  readonly image: string
  /** From a golden machine where there can be one, booted, or from that snapshot. */
  readonly start: "warm" | "cold" | { readonly from: string }
  readonly env: Readonly<Record<string, string>>
  /** Where the command works in the guest. Absent: `/`. */
  readonly workdir: Option.Option<string>
  /** With `nat`: what the guest may reach through the host, and nothing else. */
  readonly network: { readonly _tag: "None" } | {
    readonly _tag: "Nat"
    readonly allow: ReadonlyArray<EgressRule.EgressRule>
  }
  /** Does it go on in the background once the command has started? */
  readonly detach: boolean
  /** How long the command may take, from its start in the guest. */
  readonly timeout: Option.Option<Duration.Duration>
  /** How long the guest may take to power off before it is forced. */
  readonly grace: Duration.Duration
  /** How long the machine, or the agent in it, may be silent before it is ended. Absent: nobody watches. */
  readonly watchdog: Option.Option<Duration.Duration>
  readonly command: readonly [string, ...ReadonlyArray<string>]
}

/**
 * The command line is wrong: one sentence for each fault.
 *
 * @category errors
 * @since 0.1.0
 */
export class UsageError extends Data.TaggedError("UsageError")<{ readonly faults: ReadonlyArray<string> }> {
  override get message(): string {
    return this.faults.join("\n")
  }
}

/**
 * The flags of `microvm run` as they were typed.
 *
 * @category models
 * @since 0.1.0
 */
export interface RunFlags {
  readonly backend: Choice
  readonly name: Option.Option<string>
  /** Absent: 1. */
  readonly vcpus: Option.Option<number>
  /** Absent: 256 MiB. */
  readonly memory: Option.Option<number>
  /** Absent: `default`. */
  readonly image: Option.Option<string>
  readonly cold: boolean
  readonly from: Option.Option<string>
  readonly env: ReadonlyArray<string>
  readonly workdir: Option.Option<string>
  readonly timeout: Option.Option<string>
  readonly grace: string
  readonly watchdog: Option.Option<string>
  readonly network: "none" | "nat"
  readonly allow: ReadonlyArray<string>
  readonly detach: boolean
  readonly json: boolean
  readonly command: ReadonlyArray<string>
}

/** What the machine itself does not allow, in terms of the flags. */
const specFaults = (name: Option.Option<string>, vcpus: number, memoryMib: number): ReadonlyArray<string> => {
  // A name is a host name too. The kernel and its place are not known yet.
  const named = Option.match(name, { onNone: () => ({ id: "m" }), onSome: (id) => ({ id, hostname: id }) })
  const spec = MachineSpec.make({ ...named, vcpus, memoryMib, kernel: "/kernel" })
  const reason = Result.isFailure(spec) ? spec.failure.reason : undefined
  if (reason?._tag !== "InvalidSpec") return []
  const texts = reason.faults.map(({ field, remedy, value }) => {
    switch (field) {
      case "vcpus":
      case "memoryMib":
        return `--${field === "vcpus" ? field : "memory"} ${String(value)} is not possible: ${remedy}`
      default:
        return `--name ${JSON.stringify(value)} is not possible: ` +
          "give 1 to 64 letters, digits and \"-\", the first and the last no \"-\""
    }
  })
  return Array.from(new Set(texts))
}

/**
 * Checks the flags. All faults are reported together, each with the flag, the value and what to do.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromFlags = (flags: RunFlags): Result.Result<RunOptions, UsageError> => {
  const vcpus = Option.getOrElse(flags.vcpus, () => 1)
  const memoryMib = Option.getOrElse(flags.memory, () => 256)
  const faults = [...specFaults(flags.name, vcpus, memoryMib)]
  if (Option.isSome(flags.from)) {
    const parts: Record<string, Option.Option<unknown>> = {
      vcpus: flags.vcpus,
      memory: flags.memory,
      image: flags.image
    }
    for (const [flag, value] of Object.entries(parts)) {
      if (Option.isSome(value)) faults.push(`--${flag} is a part of the snapshot: leave it out, or leave out --from`)
    }
    if (flags.cold) faults.push("--cold and --from exclude each other: leave one of them out")
    if (flags.from.value === "") faults.push("--from is empty: name a snapshot, as microvm snapshot ls lists them")
  }
  const durationOf = (flag: string, text: string, isGood: (millis: number) => boolean, remedy: string) => {
    const duration = DurationText.parse(text)
    if (Option.isSome(duration) && isGood(Duration.toMillis(duration.value))) return duration.value
    faults.push(`--${flag} ${JSON.stringify(text)} is no duration ${remedy}`)
    return Duration.zero
  }
  const positive = (flag: string, text: string): Duration.Duration =>
    durationOf(flag, text, (millis) => millis > 0, "above zero: write 500ms, 30s, 5m or 2h")
  const { env, faults: envFaults } = readEnv(flags.env)
  faults.push(...envFaults, ...workdirFaults(flags.workdir))
  const allow = EgressRule.parseAll(flags.allow)
  if (Result.isFailure(allow)) {
    const { reason } = allow.failure
    for (const { remedy, value } of reason._tag === "InvalidArgument" ? reason.faults : []) {
      faults.push(`--allow ${JSON.stringify(value)} is not possible: ${remedy}`)
    }
  }
  if (flags.network === "none" && flags.allow.length > 0) {
    faults.push("--allow is for a guest with a network: write --network nat, too, or leave it out")
  }
  if (flags.detach && flags.json) {
    faults.push("--json is the report of a run that has ended: leave it out, and use microvm wait --json later")
  }
  const [program, ...args] = flags.command
  faults.push(...commandFaults(flags.command, "microvm run -- uname -a"))
  const timeout = Option.map(flags.timeout, (text) => positive("timeout", text))
  const grace = positive("grace", flags.grace)
  // Sooner than that, a guest on a host that is busy is not told from one that hangs.
  const watchdog = Option.map(
    flags.watchdog,
    (text) => durationOf("watchdog", text, (millis) => millis >= 1000, "of a second or more: write 30s, 5m or 2h")
  )
  if (faults.length > 0 || program === undefined) return Result.fail(new UsageError({ faults }))
  const { backend, name, workdir } = flags
  return Result.succeed({
    backend,
    name,
    vcpus,
    memoryMib,
    image: Option.getOrElse(flags.image, () => "default"),
    start: flags.cold
      ? "cold"
      : Option.match(flags.from, { onNone: () => "warm" as const, onSome: (from) => ({ from }) }),
    env,
    workdir,
    network: flags.network === "none"
      ? { _tag: "None" }
      : { _tag: "Nat", allow: Result.getOrElse(allow, () => []) },
    detach: flags.detach,
    timeout,
    grace,
    watchdog,
    command: [program, ...args]
  })
}
