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
  /** How long the next fault is looked for before it is slept for, in milliseconds. */
  readonly lookFor: number
}

export type Ending =
  | { readonly _tag: "Stopped" }
  | { readonly _tag: "Gone" }
  | { readonly _tag: "Failed"; readonly what: string; readonly errno?: number }

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
  /** In milliseconds. */
  readonly now: () => number
}

/**
 * Serves the page faults of one machine until it is gone, we are told to stop, or something is wrong.
 *
 * Its text is all that the thread has in which it runs: nothing else of this module can be used in it.
 */
export function faultLoop(kernel: Kernel, task: FaultTask): Ending {
  const { counters, lookFor, order, pageSize, recorded, regions, runs, size, source } = task
  const { messages } = kernel
  const [ESRCH, EAGAIN, EEXIST] = [3, 11, 17] as const
  const [pageFault, remove, messageSize] = [0x12, 0x15, 32] as const
  const [isAbsent, isThere, isRemoved] = [0, 1, 2] as const
  const [faults, copied, zeroed, prefetched, removed] = [0, 1, 2, 3, 4] as const
  /** A byte for each page of the file. What is beyond its end is zero anyway, so there is a bound to what has to be remembered. */
  const states = new Uint8Array(size / pageSize)
  /** Pages that could not be served yet. */
  const waiting = new Set<number>()
  let [nextRun, doneOfRun] = [0, 0]
  /** How often the next fault is looked for before it is seen whether the machine is gone, or we are told to stop. */
  const mostLooks = 16
  let looks = 0
  /** How many of the next faults are not looked for, and how many of them after that. */
  const mostAsleep = 255
  let [asleep, nextAsleep] = [0, 0]
  let isHeldUp = false
  let ending: Ending | undefined

  const count = (index: number, more: number): void => {
    counters[index] = (counters[index] ?? 0) + more
  }

  const fail = (what: string, errno?: number): void => {
    ending = errno === ESRCH
      ? { _tag: "Gone" }
      : errno === undefined
      ? { _tag: "Failed", what }
      : { _tag: "Failed", what, errno }
  }

  /** Is that all, or has it to be tried again? */
  const isSettled = (result: number, offset: number): boolean => {
    if (result > 0 || result === -EEXIST) return true
    // From the begin of a removal until it is heard of and done.
    isHeldUp = result === -EAGAIN
    if (!isHeldUp) fail(`the page at offset ${offset} could not be given`, -result)
    return !isHeldUp
  }

  const addressAt = (at: number): number => messages.getUint32(at, true) + messages.getUint32(at + 4, true) * 2 ** 32

  const forget = (start: number, end: number): void => {
    for (const { base, offset, size: length } of regions) {
      const from = Math.max(start, base) - base + offset
      const to = Math.min(end, base + length) - base + offset
      if (from >= to) continue
      states.fill(isRemoved, from / pageSize, to / pageSize)
      count(removed, (to - from) / pageSize)
    }
  }

  const serve = (page: number): boolean => {
    const region = regions.find((one) => page >= one.base && page < one.base + one.size)
    if (region === undefined) {
      fail(`a fault at 0x${page.toString(16)}, where no memory was told of`)
      return true
    }
    const offset = page - region.base + region.offset
    const index = offset / pageSize
    if ((states[index] ?? isRemoved) === isRemoved) {
      const result = kernel.zero(page, pageSize)
      if (result > 0) count(zeroed, 1)
      return isSettled(result, offset)
    }
    const result = kernel.copy(page, source + offset, pageSize)
    if (result > 0) {
      count(copied, 1)
      states[index] = isThere
      const position = order.length === 0 ? 0 : Atomics.load(recorded, 0)
      if (position < order.length) {
        order[position] = index
        Atomics.store(recorded, 0, position + 1)
      }
    }
    return isSettled(result, offset)
  }

  /** Hears of all removals first: a page may be waited for just because it was removed. */
  const hear = (bytes: number): void => {
    for (let at = 0; at < bytes; at += messageSize) {
      if (messages.getUint8(at) === remove) forget(addressAt(at + 8), addressAt(at + 16))
    }
    for (let at = 0; at < bytes; at += messageSize) {
      const event = messages.getUint8(at)
      if (event === remove) continue
      // The other kinds of faults have flags.
      if (event !== pageFault || (messages.getUint8(at + 8) & 6) !== 0) {
        return fail(`a message of kind ${event}, of which none were asked for`)
      }
      count(faults, 1)
      const address = addressAt(at + 16)
      // Quicker than a remainder of numbers that large.
      const page = Math.floor(address / pageSize) * pageSize
      if (isHeldUp || !serve(page)) waiting.add(page)
      if (ending !== undefined) return
    }
  }

  const retry = (): void => {
    for (const page of waiting) {
      if (ending !== undefined || !serve(page)) return
      waiting.delete(page)
    }
  }

  const prefetch = (): void => {
    const [start = 0, length = 0] = runs.subarray(nextRun, nextRun + 2)
    const isAbsentAt = (offset: number): boolean => states[offset / pageSize] === isAbsent
    while (doneOfRun < length && !isAbsentAt(start + doneOfRun)) doneOfRun += pageSize
    const offset = start + doneOfRun
    const region = regions.find((one) => offset >= one.offset && offset < one.offset + one.size)
    if (doneOfRun >= length || region === undefined) {
      nextRun += 2
      doneOfRun = 0
      return
    }
    const most = Math.min(length - doneOfRun, region.offset + region.size - offset)
    let wanted = pageSize
    while (wanted < most && isAbsentAt(offset + wanted)) wanted += pageSize
    const result = kernel.copy(region.base + offset - region.offset, source + offset, wanted)
    if (result > 0) {
      count(prefetched, result / pageSize)
      states.fill(isThere, offset / pageSize, (offset + result) / pageSize)
    }
    // One that is there all the same is left as it is.
    if (isSettled(result, offset)) doneOfRun += result > 0 ? result : pageSize
  }

  /**
   * Who was given a page often asks for the next one at once, and for it, and for us, to be woken takes longer than all else that
   * is done for a page. A look that was in vain has wasted the processor: the more of them there were, the more faults are slept
   * for before there is another.
   */
  const look = (): number => {
    let bytes = kernel.read()
    if (bytes !== -EAGAIN || lookFor === 0) return bytes
    if (asleep > 0) {
      asleep -= 1
      return bytes
    }
    const start = kernel.now()
    let took = 0
    while (bytes === -EAGAIN && took < lookFor) {
      bytes = kernel.read()
      took = kernel.now() - start
    }
    // Late is in vain, too: then others have run on our processor.
    nextAsleep = took < lookFor ? nextAsleep >> 1 : Math.min(2 * nextAsleep + 1, mostAsleep)
    asleep = nextAsleep
    return bytes
  }

  let hasServed = false
  for (;;) {
    let bytes: number = hasServed ? look() : -EAGAIN
    looks += 1
    if (bytes === -EAGAIN || looks === mostLooks) {
      looks = 0
      const events = kernel.wait(isHeldUp ? 1 : bytes !== -EAGAIN || nextRun < runs.length ? 0 : -1)
      if (events < 0) return { _tag: "Failed", what: "its messages could not be waited for", errno: -events }
      if ((events & 2) !== 0) return { _tag: "Stopped" }
      if ((events & 4) !== 0) return { _tag: "Gone" }
      if (bytes === -EAGAIN && (events & 1) !== 0) bytes = kernel.read()
    }
    isHeldUp = false
    if (bytes < 0 && bytes !== -EAGAIN) fail("its messages could not be read", -bytes)
    hear(bytes)
    if (ending === undefined && !isHeldUp) retry()
    if (ending === undefined && !isHeldUp && nextRun < runs.length) prefetch()
    if (ending !== undefined) return ending
    hasServed = bytes > 0 && !isHeldUp && nextRun >= runs.length
  }
}
