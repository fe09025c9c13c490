/** Bytes of the seed, which are counted as full entropy: twice what the kernel's generator needs. */
export const seedBytes = 64

const timexBytes = 208
const ADJ_SETOFFSET = 0x0100
const ADJ_NANO = 0x2000
const perSecond = 1_000_000_000n

/**
 * What `/sbin/microvm-refresh` reads: a `struct timex` for adjtimex(2), then a `struct rand_pool_info` for random(4), as
 * they are in memory on x86-64.
 *
 * @internal
 */
export const make = (correctionNanos: bigint, seed: Uint8Array): Uint8Array => {
  const block = new Uint8Array(timexBytes + 8 + seedBytes)
  const view = new DataView(block.buffer)
  // The nanoseconds are never negative, also of a correction that is.
  const nanos = ((correctionNanos % perSecond) + perSecond) % perSecond
  view.setUint32(0, ADJ_SETOFFSET | ADJ_NANO, true)
  view.setBigInt64(72, (correctionNanos - nanos) / perSecond, true)
  view.setBigInt64(80, nanos, true)
  view.setInt32(timexBytes, 8 * seedBytes, true)
  view.setInt32(timexBytes + 4, seedBytes, true)
  block.set(seed, timexBytes + 8)
  return block
}
