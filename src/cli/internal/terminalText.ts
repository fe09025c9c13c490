/** What a command or a guest has written, for a terminal that it is not to steer. */
import * as Stream from "effect/Stream"
import * as Printable from "../../lifecycle/Printable.ts"

const escape = "\u001B"
const colour = /(\p{Cc}\[[\d;:]*m)/u
/** No colour is as long as that. */
const longest = 64
/** May be the beginning of a colour, or of a line's end. */
const unfinished = new RegExp(`(?:\\r+|${escape}(?:\\[[\\d;:]*)?)$`)

export const reset = `${escape}[0m`

/** Colours stay, as what makes lines of a progress bar does. */
const shown = (text: string): string =>
  text.split(colour).map((part, index) =>
    index % 2 === 1 && part.startsWith(escape) ? part : Printable.lines(part.replace(/\r+\n?/g, "\n"))
  ).join("")

/**
 * Text with its colours, and with each other control character as an escape; what overwrites a line is on a line of its own. Ends with
 * the terminal's own colours.
 */
export const toTerminal = <E, R>(bytes: Stream.Stream<Uint8Array, E, R>): Stream.Stream<Uint8Array, E, R> =>
  Stream.suspend(() => {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true })
    let kept = ""
    const next = (text: string): string => {
      const all = kept + text
      const [end = ""] = unfinished.exec(all.slice(-longest)) ?? []
      kept = end
      return shown(all.slice(0, all.length - end.length))
    }
    const last = Stream.suspend(() => Stream.make(shown(kept + decoder.decode()) + reset))
    return Stream.encodeText(
      Stream.concat(Stream.map(bytes, (some) => next(decoder.decode(some, { stream: true }))), last)
    )
  })
