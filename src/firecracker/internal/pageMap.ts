/**
 * Which pages of a sparse memory file were written: pairs of the first one and their number, in ascending order, each as 32 bits,
 * little-endian. Holes say the same, until somebody copies the file without them, or makes holes of pages that are zero.
 */
import * as Result from "effect/Result"

/** The size of a page, whatever pages the machine has. */
export const pageSize = 4096

/** So many pages, from this one on. */
export interface Run {
  readonly first: number
  readonly count: number
}

const pairBytes = 8

export const encode = (runs: ReadonlyArray<Run>): Uint8Array => {
  const bytes = new Uint8Array(runs.length * pairBytes)
  const view = new DataView(bytes.buffer)
  runs.forEach(({ count, first }, index) => {
    view.setUint32(index * pairBytes, first, true)
    view.setUint32(index * pairBytes + 4, count, true)
  })
  return bytes
}

/** Of a memory of so many pages. Fails with what is wrong. */
export const decode = (bytes: Uint8Array, pages: number): Result.Result<ReadonlyArray<Run>, string> => {
  if (bytes.length % pairBytes !== 0) return Result.fail(`it has ${bytes.length} bytes, which are no pairs`)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const runs: Array<Run> = []
  let end = 0
  for (let at = 0; at < bytes.length; at += pairBytes) {
    const [first, count] = [view.getUint32(at, true), view.getUint32(at + 4, true)]
    if (count === 0 || first < end || first + count > pages) {
      return Result.fail(`it tells of ${count} pages from ${first} on, after ${end} and before ${pages}`)
    }
    runs.push({ first, count })
    end = first + count
  }
  return Result.succeed(runs)
}
