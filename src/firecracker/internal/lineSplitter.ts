/** A line without its newline. */
export interface Line {
  readonly bytes: Uint8Array
  /** False when the line was longer than the limit: `bytes` is how it begins. */
  readonly isWhole: boolean
}

/** Cuts bytes into lines. Of a line that grows without end, no more than the limit is kept. */
export interface LineSplitter {
  readonly push: (bytes: Uint8Array) => void
  /** What came after the last newline. */
  readonly rest: () => Line | undefined
}

const newline = 0x0a

export const make = (limit: number, onLine: (line: Line) => void): LineSplitter => {
  let kept = new Uint8Array(0)
  let held = 0
  let seen = 0

  const keep = (bytes: Uint8Array): void => {
    seen += bytes.length
    const wanted = Math.min(held + bytes.length, limit)
    if (wanted > kept.length) {
      const grown = new Uint8Array(Math.min(limit, Math.max(256, wanted, 2 * kept.length)))
      grown.set(kept.subarray(0, held))
      kept = grown
    }
    kept.set(bytes.subarray(0, wanted - held), held)
    held = wanted
  }

  const current = (): Line => ({ bytes: kept.slice(0, held), isWhole: seen === held })

  return {
    push: (bytes) => {
      let from = 0
      for (let end = bytes.indexOf(newline); end !== -1; end = bytes.indexOf(newline, from)) {
        if (seen === 0) {
          onLine({ bytes: bytes.slice(from, Math.min(end, from + limit)), isWhole: end - from <= limit })
        } else {
          keep(bytes.subarray(from, end))
          onLine(current())
          kept = new Uint8Array(0)
          held = 0
          seen = 0
        }
        from = end + 1
      }
      keep(bytes.subarray(from))
    },
    rest: () => seen === 0 ? undefined : current()
  }
}
