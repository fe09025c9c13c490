/** Which runs there are. The same seed gives the same ones. */

export const seed = Number(process.env["CHAOS_SEED"] ?? 1)

/** All runs, which takes minutes, or a few of each sort? */
export const isWhole = process.env["CHAOS"] === "full"

/** Mulberry32: numbers from 0 to below 1. */
export const makeRandom = (from: number): () => number => {
  let state = from >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

export const upTo = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

/** All of them in whole runs, else so many, spread evenly from a place that the seed gives. */
export const some = <A>(all: ReadonlyArray<A>, count: number): ReadonlyArray<A> => {
  if (isWhole || all.length <= count) return all
  const first = Math.floor(makeRandom(seed)() * all.length)
  const chosen = new Set(upTo(count).map((index) => (first + Math.floor((index * all.length) / count)) % all.length))
  return all.filter((_, index) => chosen.has(index))
}
