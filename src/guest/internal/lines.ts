/** @internal */
export interface LineDecoder {
  readonly push: (chunk: Uint8Array) => void
}

const NEWLINE = 0x0a
/** Never part of UTF-8, so both ends use it as "forget what came before". */
const RESET = 0xff

/**
 * Cuts a stream into lines. A line longer than `maxBytes()` is told once and skipped up to its end; what is kept of an
 * unfinished line never exceeds that bound.
 *
 * @internal
 */
export const make = (options: {
  readonly maxBytes: () => number
  readonly onLine: (line: string) => void
  readonly onTooLong: () => void
}): LineDecoder => {
  const decoder = new TextDecoder()
  const empty = new Uint8Array(0)
  let kept = empty
  let length = 0
  let skipping = false

  const clear = (): void => {
    kept = empty
    length = 0
    skipping = false
  }

  const append = (bytes: Uint8Array): void => {
    if (skipping || bytes.length === 0) return
    const total = length + bytes.length
    if (total > options.maxBytes()) {
      clear()
      skipping = true
      options.onTooLong()
      return
    }
    if (total > kept.length) {
      const grown = new Uint8Array(Math.max(total, 2 * kept.length, 256))
      grown.set(kept.subarray(0, length))
      kept = grown
    }
    kept.set(bytes, length)
    length = total
  }

  return {
    push: (chunk) => {
      let start = 0
      while (start < chunk.length) {
        const newline = chunk.indexOf(NEWLINE, start)
        const end = newline === -1 ? chunk.length : newline
        const part = chunk.subarray(start, end)
        const reset = part.lastIndexOf(RESET)
        if (reset !== -1) clear()
        append(part.subarray(reset + 1))
        if (newline === -1) return
        const line = length === 0 ? undefined : decoder.decode(kept.subarray(0, length))
        clear()
        if (line !== undefined) options.onLine(line)
        start = newline + 1
      }
    }
  }
}
