/** A stretch of a machine's memory, in bytes. */
export interface Region {
  /** Where it begins in Firecracker's address space. */
  readonly base: number
  readonly size: number
  /** Where it begins in the memory file. */
  readonly offset: number
}

/** What is counted, in this order. */
export const counted = ["faults", "copied", "zeroed", "prefetched", "removed"] as const

export interface FaultTask {
  readonly regions: ReadonlyArray<Region>
  readonly pageSize: number
  /** Where the memory file is mapped in our address space. */
  readonly source: number
  /** How long the file is, in bytes. */
  readonly size: number
  /** What to copy before it is asked for: pairs of offset and length, in bytes of the file. */
  readonly runs: Float64Array
  /** Shared: a number for each of `counted`. */
  readonly counters: Float64Array
  /** Shared: the pages of the file that were asked for, in order and each once. Empty if nobody wants to know. */
  readonly order: Uint32Array
  /** Shared: how many of them there are. */
  readonly recorded: Int32Array
}

export type Ending =
  | { readonly _tag: "Stopped" }
  | { readonly _tag: "Gone" }
  | { readonly _tag: "Failed"; readonly what: string; readonly errno: number }

/** System calls. What fails answers with its errno, negated. */
export interface Kernel {
  /** Where `read` leaves messages of 32 bytes (`struct uffd_msg` of linux/userfaultfd.h). */
  readonly messages: DataView
  /** Waits so many milliseconds, or for ever with -1. Answers with bits: 1 there are messages, 2 stop, 4 the machine is gone. */
  readonly wait: (millis: number) => number
  /** Answers with the number of bytes. */
  readonly read: () => number
  /** Copies pages and wakes who waits for them. Answers with the number of bytes, which may be less than were asked for. */
  readonly copy: (to: number, from: number, length: number) => number
  readonly zero: (to: number, length: number) => number
}

/**
 * Serves the page faults of one machine until it is gone, we are told to stop, or something is wrong.
 *
 * Its text is all that the thread has in which it runs: nothing else of this module can be used in it.
 */
export function faultLoop(kernel: Kernel, task: FaultTask): Ending {
  const { order, pageSize, recorded, regions, runs, size, source } = task
  const [ESRCH, EIO, EAGAIN, EEXIST] = [3, 5, 11, 17] as const
  const [pageFault, remove] = [0x12, 0x15] as const
  const [isRemoved, isRecorded] = [1, 2] as const
  const stats = { faults: 0, copied: 0, zeroed: 0, prefetched: 0, removed: 0 }
  /** A byte for each page of the file. What is beyond its end is zero anyway, so there is a bound to what has to be remembered. */
  const states = new Uint8Array(size / pageSize)
  const waiting = new Set<number>()
  let [nextRun, doneOfRun] = [0, 0]
  let isHeldUp = false
  let ending: Ending | undefined

  const fail = (what: string, errno: number): void => {
    ending = errno === ESRCH ? { _tag: "Gone" } : { _tag: "Failed", what, errno }
  }

  /** Is that all, or has it to be tried again? */
  const isSettled = (result: number, what: string): boolean => {
    // Copies have to wait until a removal is heard of and done.
    isHeldUp = result === -EAGAIN
    if (result < 0 && !isHeldUp && result !== -EEXIST) fail(what, -result)
    return !isHeldUp
  }

  const addressAt = (at: number): number =>
    kernel.messages.getUint32(at, true) + kernel.messages.getUint32(at + 4, true) * 2 ** 32

  const hear = (at: number): void => {
    const event = kernel.messages.getUint8(at)
    if (event === remove) {
      const [start, end] = [addressAt(at + 8), addressAt(at + 16)]
      for (const { base, offset, size: length } of regions) {
        const from = Math.max(start, base) - base + offset
        const to = Math.min(end, base + length) - base + offset
        if (from >= to) continue
        states.fill(isRemoved, from / pageSize, to / pageSize)
        stats.removed += (to - from) / pageSize
      }
      return
    }
    // The other kinds of faults have flags.
    if (event !== pageFault || (kernel.messages.getUint8(at + 8) & 6) !== 0) {
      return fail(`a message of kind ${event}, of which none were asked for`, EIO)
    }
    const address = addressAt(at + 16)
    waiting.add(address - address % pageSize)
    stats.faults += 1
  }

  const serve = (page: number): boolean => {
    const region = regions.find(({ base, size: length }) => page >= base && page < base + length)
    if (region === undefined) {
      fail(`a fault at 0x${page.toString(16)}, where no memory was told of`, EIO)
      return true
    }
    const offset = page - region.base + region.offset
    const index = offset / pageSize
    const state = states[index] ?? isRemoved
    if (state === isRemoved) {
      const zeroed = kernel.zero(page, pageSize)
      if (zeroed > 0) stats.zeroed += 1
      return isSettled(zeroed, `the page at offset ${offset} could not be zeroed`)
    }
    const copied = kernel.copy(page, source + offset, pageSize)
    if (copied > 0) {
      stats.copied += 1
      if (state !== isRecorded && order.length > 0) {
        const count = Atomics.load(recorded, 0)
        states[index] = isRecorded
        order[count] = index
        Atomics.store(recorded, 0, count + 1)
      }
    }
    return isSettled(copied, `the page at offset ${offset} could not be copied`)
  }

  const prefetch = (): void => {
    const offset = (runs[nextRun] ?? 0) + doneOfRun
    const left = (runs[nextRun + 1] ?? 0) - doneOfRun
    const region = regions.find((one) => offset >= one.offset && offset < one.offset + one.size)
    if (left <= 0 || region === undefined) {
      nextRun += 2
      doneOfRun = 0
      return
    }
    const most = Math.min(left, region.offset + region.size - offset)
    let length = 0
    while (length < most && states[(offset + length) / pageSize] !== isRemoved) length += pageSize
    const copied = length === 0 ? -EEXIST : kernel.copy(region.base + offset - region.offset, source + offset, length)
    // Those that are there end a copy before them.
    if (isSettled(copied, `the pages at offset ${offset} could not be copied`)) {
      doneOfRun += copied > 0 ? copied : pageSize
    }
    if (copied > 0) stats.prefetched += copied / pageSize
  }

  for (;;) {
    task.counters.set(Object.values(stats))
    if (ending !== undefined) return ending
    const events = kernel.wait(isHeldUp ? 1 : nextRun < runs.length ? 0 : -1)
    if (events < 0) return { _tag: "Failed", what: "its messages could not be waited for", errno: -events }
    if ((events & 2) !== 0) return { _tag: "Stopped" }
    if ((events & 4) !== 0) return { _tag: "Gone" }
    isHeldUp = false
    if ((events & 1) !== 0) {
      const bytes = kernel.read()
      if (bytes < 0 && bytes !== -EAGAIN) fail("its messages could not be read", -bytes)
      for (let at = 0; at < bytes; at += 32) hear(at)
    }
    // After all removals that are known: a page may be waited for just because it was removed.
    for (const page of waiting) {
      if (ending !== undefined || !serve(page)) break
      waiting.delete(page)
    }
    if (ending === undefined && !isHeldUp && nextRun < runs.length) prefetch()
  }
}
