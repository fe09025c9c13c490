/**
 * What Firecracker writes into its log: `<local time> [<id>:<thread>[:<level>][:<file>:<line>]] <message>`.
 *
 * A line whose form is another is no error: a message can have several lines (a panic for one), and without a `log_path`
 * the log shares stdout with the console of the guest.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import type { FirecrackerVersion } from "./FirecrackerVersion.ts"
import { parse as parseVersion } from "./FirecrackerVersion.ts"

/**
 * @category models
 * @since 0.1.0
 */
export type Level = "ERROR" | "WARN" | "INFO" | "DEBUG" | "TRACE"

/**
 * One line.
 *
 * @category models
 * @since 0.1.0
 */
export interface LogLine {
  /** `2026-08-21T10:00:00.123456789`, to the nanosecond. Its time zone is that of the process and is not told. */
  readonly time: string
  /** What `--id` said, else `anonymous-instance`. */
  readonly id: string
  /** `main`, `fc_api`, `fc_vcpu 0`. */
  readonly thread: string
  /** With `show_level` only. */
  readonly level: Level | undefined
  /** With `show_log_origin` only: `src/vmm/src/lib.rs:693`. */
  readonly origin: string | undefined
  readonly message: string
}

const form =
  /^(\d{4,}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}) \[([^:\]]*):([^:\]]*)(?::(ERROR|WARN|INFO|DEBUG|TRACE))?(?::([^\]]*:(?:\d+|\?)))?\] (.*)$/

const levels: ReadonlyArray<Level> = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"]

/**
 * Reads a line without its newline; `undefined` when it is none of Firecracker's.
 *
 * ```ts import.meta.vitest
 * import { LogLine } from "effect-microvm-runtime/firecracker"
 * LogLine.parse("2026-08-21T10:00:00.000000001 [vm-1:fc_api:INFO] API server started.")?.message // => "API server started."
 * LogLine.parse("[    0.000000] Linux version 6.1.141") // => undefined
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const parse = (line: string): LogLine | undefined => {
  const [, time, id, thread, level, origin, message] = form.exec(line) ?? []
  return time === undefined || id === undefined || thread === undefined || message === undefined
    ? undefined
    : { time, id, thread, level: levels.find((one) => one === level), origin, message }
}

/**
 * Messages that mark a step in the life of a Firecracker:
 *
 * - `Running`: the first one. Absent when it was built without a version.
 * - `Listening`, `ApiServerStarted`: requests are accepted; requests are answered.
 * - `Request`: one was received. Its body is left out: see `withoutBodies`.
 * - `StartedFromFile`: with `--config-file`, the guest runs.
 * - `GuestBooted`: with `--boot-timer`, the guest said that it is up. The times count from when its start was asked for.
 * - `ActionTook`: `load snapshot`, `pause vm`, `resume vm`, `create full snapshot`, `create diff snapshot`.
 * - `Suppressed`: messages of one origin that came too often were left out (1.16 and later).
 * - `Intercepted`: a signal ends it; `BadSyscall`: the seccomp filter does.
 * - `Stopping`, `Exiting`: the end, with the exit code.
 *
 * @category models
 * @since 0.1.0
 */
export type Anchor = Data.TaggedEnum<{
  Running: { readonly version: FirecrackerVersion | undefined }
  Listening: { readonly socket: string }
  ApiServerStarted: {}
  Request: { readonly method: string; readonly path: string }
  StartedFromFile: {}
  GuestBooted: { readonly wallUs: number; readonly cpuUs: number }
  ActionTook: { readonly action: string; readonly us: number }
  Suppressed: { readonly messages: number }
  Intercepted: { readonly signal: number; readonly code: number }
  BadSyscall: { readonly syscall: number }
  Stopping: {}
  Exiting: { readonly code: number }
}>

/**
 * Makes an anchor, or tells one from the others.
 *
 * ```ts import.meta.vitest
 * import { LogLine } from "effect-microvm-runtime/firecracker"
 * const line = LogLine.parse("2026-08-21T10:00:09.000000001 [vm-1:main] Firecracker exiting with error. exit_code=148")
 * const anchor = LogLine.anchor(line?.message ?? "")
 * anchor !== undefined && LogLine.Anchor.$is("Exiting")(anchor) ? anchor.code : undefined // => 148
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const Anchor = Data.taggedEnum<Anchor>()

type Read = (first: string, second: string) => Anchor

const anchors: ReadonlyArray<readonly [RegExp, Read]> = [
  [/^Running Firecracker (\S*)/, (version) => Anchor.Running({ version: parseVersion(version) })],
  [/^Listening on API socket \("(.*)"\)\.$/, (socket) => Anchor.Listening({ socket })],
  [/^API server started\.$/, () => Anchor.ApiServerStarted()],
  [
    /^The API server received a (\w+) request on "([^"]*)"/,
    (method, path) => Anchor.Request({ method: method.toUpperCase(), path })
  ],
  [/^Successfully started microvm that was configured from one single json$/, () => Anchor.StartedFromFile()],
  [
    /^Guest-boot-time = +(\d+) us \d+ ms, +(\d+) CPU us \d+ CPU ms$/,
    (wall, cpu) => Anchor.GuestBooted({ wallUs: Number(wall), cpuUs: Number(cpu) })
  ],
  [/^'([^']+)' VMM action took (\d+) us\.$/, (action, us) => Anchor.ActionTook({ action, us: Number(us) })],
  [
    /^(\d+) messages were suppressed due to rate limiting$/,
    (messages) => Anchor.Suppressed({ messages: Number(messages) })
  ],
  [
    /^Shutting down VM after intercepting signal (\d+), code (-?\d+)\.$/,
    (signal, code) => Anchor.Intercepted({ signal: Number(signal), code: Number(code) })
  ],
  [
    /^Shutting down VM after intercepting a bad syscall \((\d+)\)\.$/,
    (syscall) => Anchor.BadSyscall({ syscall: Number(syscall) })
  ],
  [/^Vmm is stopping\.$/, () => Anchor.Stopping()],
  [
    /^Firecracker exiting (?:successfully|with error)\. exit_code=(\d+)$/,
    (code) => Anchor.Exiting({ code: Number(code) })
  ]
]

/**
 * What a message says, if it is one of those that mark a step.
 *
 * ```ts import.meta.vitest
 * import { LogLine } from "effect-microvm-runtime/firecracker"
 * LogLine.anchor("Guest-boot-time =  43210 us 43 ms,  20001 CPU us 20 CPU ms") // => { _tag: "GuestBooted", wallUs: 43210, cpuUs: 20001 }
 * LogLine.anchor("Artificially kick devices") // => undefined
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const anchor = (message: string): Anchor | undefined => {
  for (const [pattern, read] of anchors) {
    const match = pattern.exec(message)
    if (match !== null) return read(match[1] ?? "", match[2] ?? "")
  }
  return undefined
}

/**
 * The text without the bodies of requests. Firecracker logs those of all requests but the ones to `/mmds`, whatever secret
 * they hold, at the level that is the default: what is shown to others, an error for one, must not have them.
 *
 * **Gotchas**
 *
 * - The text must begin at the beginning of a line: what is left of one that was cut off in front is not seen for a body.
 *
 * ```ts import.meta.vitest
 * import { LogLine } from "effect-microvm-runtime/firecracker"
 * const log = "The API server received a Put request on \"/boot-source\" with body \"{\\\"boot_args\\\": \\\"key=1234\\\"}\"."
 * LogLine.withoutBodies(log) // => "The API server received a Put request on \"/boot-source\" with body …"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const withoutBodies = (text: string): string =>
  text.replace(/(The API server received a \w+ request on "[^"\n]*" with body )".*/g, "$1…")
