/**
 * Durations as people type them into command lines and variables.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"

const units: Readonly<Record<string, Duration.Unit>> = {
  ms: "millis",
  s: "seconds",
  m: "minutes",
  h: "hours",
  d: "days"
}

/**
 * Reads `500ms`, `3s`, `1.5m`, `2h`, `1d`, or in words, `3 seconds`.
 *
 * ```ts import.meta.vitest
 * import { DurationText } from "effect-microvm-runtime/lifecycle"
 * import * as Option from "effect/Option"
 * Option.isSome(DurationText.parse("1.5m")) // => true
 * Option.isSome(DurationText.parse("soon")) // => false
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const parse = (text: string): Option.Option<Duration.Duration> => {
  const match = /^(\d{1,9}(?:\.\d{1,3})?) ?(?:(ms|[smhd])|(milli|second|minute|hour|day)s?)$/.exec(text.trim())
  const [, amount, short, long] = match ?? []
  const unit = short === undefined
    ? long === undefined ? undefined : units[long === "milli" ? "ms" : long.charAt(0)]
    : units[short]
  if (amount === undefined || unit === undefined) return Option.none()
  return Option.some(Duration.fromInputUnsafe(`${Number(amount)} ${unit}`))
}
