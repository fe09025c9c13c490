/**
 * The last word of a service, for whoever looks at it after its death.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { ServiceReason } from "../lifecycle/ExitCode.ts"
import type { Signal } from "../lifecycle/Signal.ts"
import type { Phase } from "./Phase.ts"

/**
 * How a service ended.
 *
 * @category models
 * @since 0.1.0
 */
export interface TerminationRecord {
  /** Row of the exit code table, or `secondSignal`. */
  readonly reason: ServiceReason | "secondSignal"
  readonly code: number
  /** For people. */
  readonly message?: string
  /** Where it was when the end began. */
  readonly phase?: Phase
  /** What asked for the end. */
  readonly signal?: Signal
  /** Since the start. */
  readonly elapsed: Duration.Input
  /** Parts that did not stop in time. */
  readonly abandoned?: ReadonlyArray<string>
}

/**
 * What Kubernetes reads of it, in bytes.
 *
 * @category constants
 * @since 0.1.0
 */
export const mostBytes = 4096

const byteLength = (text: string): number => new TextEncoder().encode(text).length

const cut = (text: string, length: number): string =>
  text.length <= length ? text : `${text.slice(0, length).replace(/[\uD800-\uDBFF]$/, "")}…`

/**
 * One line of JSON of at most `mostBytes`: a long message is cut, of a long list its beginning is kept.
 *
 * ```ts import.meta.vitest
 * import { TerminationLog } from "effect-microvm-runtime/service"
 * const result = TerminationLog.encode({ reason: "stopped", code: 10, signal: "SIGTERM", phase: "run", elapsed: "1500 millis" })
 * result // => '{"reason":"stopped","phase":"run","signal":"SIGTERM","code":10,"elapsedSeconds":1.5}\n'
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const encode = (record: TerminationRecord): string => {
  const { abandoned = [], code, message, phase, reason, signal } = record
  const elapsedSeconds = Math.round(Duration.toMillis(Duration.fromInputUnsafe(record.elapsed))) / 1000
  // Each attempt halves what may be long; the last one has neither message nor list, and fits.
  for (let length = 2048;; length = Math.floor(length / 2)) {
    const shown = abandoned.slice(0, Math.ceil(length / 16)).map((name) => cut(name, length))
    const more = abandoned.length - shown.length
    const line = `${
      JSON.stringify({
        reason,
        phase,
        signal,
        code,
        elapsedSeconds,
        abandoned: abandoned.length === 0 ? undefined : more > 0 ? [...shown, `… and ${more} more`] : shown,
        message: message === undefined ? undefined : cut(message, length)
      })
    }\n`
    if (length === 0 || byteLength(line) <= mostBytes) return line
  }
}

/**
 * @category services
 * @since 0.1.0
 */
export class TerminationLog extends Context.Service<TerminationLog, {
  /** Replaces what was written before. Never fails and hardly waits. */
  readonly write: (record: TerminationRecord) => Effect.Effect<void>
}>()("effect-microvm-runtime/service/TerminationLog") {}

/**
 * Nobody is going to look.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerNone: Layer.Layer<TerminationLog> = Layer.succeed(
  TerminationLog,
  TerminationLog.of({ write: () => Effect.void })
)
