/**
 * What others choose (guests, children, peers), made fit to be told: in messages, logs and tables it is not to steer the terminal of
 * whoever reads it, nor to look like a line that somebody else has said.
 *
 * What a command writes is its own, and streams as it is. This is for where it is quoted.
 *
 * @since 0.1.0
 */

/** What would steer a terminal, or turn the text after it round. All of it is in the basic plane. */
const steering = /[\p{Cc}\p{Bidi_Control}\u2028\u2029]/gu

const escape = (char: string): string => `\\u{${char.codePointAt(0)?.toString(16)}}`

/**
 * On one line, with control characters as escapes.
 *
 * ```ts import.meta.vitest
 * import { Printable } from "effect-microvm-runtime/lifecycle"
 * Printable.onOneLine("sh\u001B[2J\n") // => "sh\\u{1b}[2J\\u{a}"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const onOneLine = (text: string): string => text.replace(steering, escape)

/**
 * The same for several lines: line breaks and tabs stay, and the colours that many a program writes to a pipe, too, are left out. What
 * was made so stays as it is when it is made so again.
 *
 * ```ts import.meta.vitest
 * import { Printable } from "effect-microvm-runtime/lifecycle"
 * Printable.lines("\u001B[31mno disk\u001B[0m\r\n50 %\r") // => "no disk\n50 %\\u{d}"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const lines = (text: string): string =>
  text.replace(/(\p{Cc})\[[\d;:]*m/gu, (found, first) => first === "\u001B" ? "" : found)
    // A terminal in between adds a carriage return, and the guest's driver another. All at once: there may be a million.
    .replace(/\r+\n?/g, (found) => found.endsWith("\n") ? "\n" : found)
    .replace(steering, (char) => char === "\n" || char === "\t" ? char : escape(char))

/**
 * A value as indented JSON, in which what JSON itself leaves as it is (DEL, C1 controls, bidirectional controls) is escaped, too. A parser
 * reads the same value.
 *
 * ```ts import.meta.vitest
 * import { Printable } from "effect-microvm-runtime/lifecycle"
 * Printable.json(["\u009B2J"]) // => "[\n  \"\\u009b2J\"\n]"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const json = (value: unknown): string =>
  JSON.stringify(value, null, 2).replace(
    steering,
    (char) => char === "\n" ? char : `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`
  )
