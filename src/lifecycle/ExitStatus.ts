/**
 * How a process ended, as a value. An end that was asked for is never an error.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import * as Signal from "./Signal.ts"

/**
 * Who saw the end:
 *
 * - `wait`: the kernel told us as the parent (wait(2)); the only witness of an exit code on the host.
 * - `identity`: the process was not our child; its identity (boot, pid, start time) is gone.
 * - `agent`: the agent inside a guest told us about a process of the guest.
 * - `self`: the part of our own process that has ended told so.
 *
 * @category models
 * @since 0.1.0
 */
export const ObservedBy = Schema.Literals(["wait", "identity", "agent", "self"])

/**
 * @category models
 * @since 0.1.0
 */
export type ObservedBy = typeof ObservedBy.Type

/**
 * How a process ended:
 *
 * - `Exited`: it called exit(2) with `code`, 0 to 255.
 * - `Signaled`: `signal` killed it. `coreDumped` is absent where the witness cannot tell.
 * - `Lost`: it is gone, and nobody can say how; `why` tells what is missing.
 *
 * @category models
 * @since 0.1.0
 */
export const ExitStatus = Schema.TaggedUnion({
  Exited: { code: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 255 })), observedBy: ObservedBy },
  Signaled: { signal: Signal.Signal, coreDumped: Schema.optionalKey(Schema.Boolean), observedBy: ObservedBy },
  Lost: { why: Schema.String, observedBy: ObservedBy }
})

/**
 * @category models
 * @since 0.1.0
 */
export type ExitStatus = typeof ExitStatus.Type

/**
 * The process exited with `code`.
 *
 * ```ts import.meta.vitest
 * import { ExitStatus } from "effect-microvm-runtime/lifecycle"
 * ExitStatus.format(ExitStatus.exited(7)) // => "exited with code 7"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const exited = (code: number, observedBy: ObservedBy = "wait"): ExitStatus => ({
  _tag: "Exited",
  code,
  observedBy
})

/**
 * The process was killed by `signal`.
 *
 * ```ts import.meta.vitest
 * import { ExitStatus } from "effect-microvm-runtime/lifecycle"
 * ExitStatus.toCode(ExitStatus.signaled("SIGKILL")) // => 137
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const signaled = (
  signal: Signal.Signal,
  options: { readonly observedBy?: ObservedBy; readonly coreDumped?: boolean } = {}
): ExitStatus => ({
  _tag: "Signaled",
  signal,
  observedBy: options.observedBy ?? "wait",
  ...(options.coreDumped === undefined ? {} : { coreDumped: options.coreDumped })
})

/**
 * The process is gone and its status with it.
 *
 * ```ts import.meta.vitest
 * import { ExitStatus } from "effect-microvm-runtime/lifecycle"
 * ExitStatus.toCode(ExitStatus.lost("not our child", "identity")) // => 125
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const lost = (why: string, observedBy: ObservedBy): ExitStatus => ({ _tag: "Lost", why, observedBy })

/**
 * Did it exit with code 0?
 *
 * @category guards
 * @since 0.1.0
 */
export const isSuccess = (self: ExitStatus): boolean => self._tag === "Exited" && self.code === 0

/**
 * The code a shell would show: the exit code, 128 + n for signal n (bash(1), "EXIT STATUS"), and 125 for `Lost`, as for
 * any other failure of the one who should have watched. An exit code that there is not, outside 0 to 255, is 125 too: the
 * kernel would cut it down, 256 to a success.
 *
 * @category conversions
 * @since 0.1.0
 */
export const toCode = (self: ExitStatus): number => {
  switch (self._tag) {
    case "Exited":
      return Number.isInteger(self.code) && self.code >= 0 && self.code <= 255 ? self.code : 125
    case "Signaled":
      return 128 + Signal.toNumber(self.signal)
    case "Lost":
      return 125
  }
}

/**
 * One phrase for people.
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = (self: ExitStatus): string => {
  switch (self._tag) {
    case "Exited":
      return `exited with code ${self.code}`
    case "Signaled":
      return `killed by ${self.signal}${self.coreDumped === true ? " (core dumped)" : ""}`
    case "Lost":
      return `gone, status lost: ${self.why}`
  }
}
