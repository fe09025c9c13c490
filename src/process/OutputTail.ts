/**
 * The last output of a process, kept for error messages.
 *
 * @since 0.1.0
 */
import * as Printable from "../lifecycle/Printable.ts"

/**
 * The end of one stream.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamTail {
  /** The last bytes, as UTF-8; what is not valid UTF-8 (or was cut in two) shows as U+FFFD. */
  readonly text: string
  /** How many bytes came before `text` and are not in it. */
  readonly omittedBytes: number
}

/**
 * The ends of both streams. A stream that was not piped has an empty text.
 *
 * @category models
 * @since 0.1.0
 */
export interface OutputTail {
  readonly stdout: StreamTail
  readonly stderr: StreamTail
}

/**
 * What stands in front of a text of which the beginning is missing.
 *
 * @category constants
 * @since 0.1.0
 */
export const truncated = "[truncated]…"

/**
 * What is kept of a stream, as text. Where that is not all, it begins with `truncated`, so that nobody takes the rest of a line
 * for a line.
 *
 * ```ts import.meta.vitest
 * import { OutputTail } from "effect-microvm-runtime/process"
 * OutputTail.marked({ text: "nel panic\n", omittedBytes: 3 }) // => "[truncated]…nel panic\n"
 * OutputTail.marked({ text: "Kernel panic\n", omittedBytes: 0 }) // => "Kernel panic\n"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const marked = ({ omittedBytes, text }: StreamTail): string => omittedBytes > 0 ? `${truncated}${text}` : text

const formatStream = (name: string, { omittedBytes, text }: StreamTail): ReadonlyArray<string> => {
  const trimmed = Printable.lines(text).trimEnd()
  if (trimmed === "") return []
  return [omittedBytes > 0 ? `${name} (after ${omittedBytes} more bytes):` : `${name}:`, trimmed]
}

/**
 * Both tails as text, stderr first; empty when there was no output. Colours are left out, and other control characters stand as
 * escapes: the text goes into messages and logs, where a child is not to steer the terminal.
 *
 * ```ts import.meta.vitest
 * import { OutputTail } from "effect-microvm-runtime/process"
 * OutputTail.format({ stdout: { text: "", omittedBytes: 0 }, stderr: { text: "no such disk\n", omittedBytes: 0 } }) // => "stderr:\nno such disk"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = (self: OutputTail): string =>
  [...formatStream("stderr", self.stderr), ...formatStream("stdout", self.stdout)].join("\n")
