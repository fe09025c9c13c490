/** The last `limit` bytes of what was written, in a ring that grows as it is needed. */
export interface ByteTail {
  /** Bytes written so far. */
  readonly total: () => number
  /** How many of them are still here. */
  readonly held: () => number
  readonly push: (bytes: Uint8Array) => void
  /** What is here, from this position of the whole on. */
  readonly since: (position: number) => Uint8Array
}

export const make = (limit: number): ByteTail => {
  let ring = new Uint8Array(0)
  let total = 0
  const held = (): number => Math.min(total, limit)

  const grow = (needed: number): void => {
    if (needed <= ring.length || ring.length === limit) return
    // Nothing has been overwritten before the ring has its full size, so the bytes are in order from 0.
    const larger = new Uint8Array(Math.min(limit, Math.max(1024, 2 ** Math.ceil(Math.log2(needed)))))
    larger.set(ring.subarray(0, total))
    ring = larger
  }

  const push = (bytes: Uint8Array): void => {
    if (limit > 0 && bytes.length > 0) {
      grow(total + bytes.length)
      const kept = bytes.subarray(Math.max(0, bytes.length - limit))
      const start = (total + bytes.length - kept.length) % ring.length
      const first = Math.min(kept.length, ring.length - start)
      ring.set(kept.subarray(0, first), start)
      ring.set(kept.subarray(first), 0)
    }
    total += bytes.length
  }

  const since = (position: number): Uint8Array => {
    const from = Math.max(position, total - held())
    const out = new Uint8Array(Math.max(0, total - from))
    if (out.length === 0) return out
    const start = from % ring.length
    const first = Math.min(out.length, ring.length - start)
    out.set(ring.subarray(start, start + first), 0)
    out.set(ring.subarray(0, out.length - first), first)
    return out
  }

  return { total: () => total, held, push, since }
}
