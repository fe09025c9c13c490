import { assert, describe, it } from "@effect/vitest"
import { FirecrackerError, PageServer } from "effect-microvm-runtime/firecracker"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import {
  counted,
  type Ending,
  faultLoop,
  type FaultTask,
  type Kernel
} from "../../src/firecracker/internal/faultLoop.ts"
import * as GuestMemory from "../../src/firecracker/internal/guestMemory.ts"

const [small, huge] = [4096, 2_097_152] as const
const [EAGAIN, EEXIST, ESRCH] = [11, 17, 3] as const

describe("memBackend", () => {
  it("has two fields, and keeps the path", () => {
    assert.deepStrictEqual(PageServer.memBackend("/jäil/pages sock"), {
      backend_type: "Uffd",
      backend_path: "/jäil/pages sock"
    })
  })
})

describe("watch", () => {
  const failure = FirecrackerError.make(new FirecrackerError.PageServerFailed({ why: "no" }))
  const killedBy = (ended: PageServer.Serving["ended"]) =>
    Effect.gen(function*() {
      const killed: Array<string> = []
      const exit = yield* Effect.exit(
        PageServer.watch({ ended }, (error) => Effect.sync(() => killed.push(error.message)))
      )
      return [exit._tag, killed]
    })

  it.effect("kills only if it has failed", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* killedBy(Effect.succeed("Gone")), ["Success", []])
      assert.deepStrictEqual(yield* killedBy(Effect.succeed("Stopped")), ["Success", []])
      assert.deepStrictEqual(yield* killedBy(Effect.fail(failure)), ["Failure", [failure.message]])
    }))
})

describe("a working set", () => {
  const decode = Schema.decodeUnknownResult(Schema.fromJsonString(PageServer.WorkingSet))

  it("is read back as it was written, and nothing else is read", () => {
    const text = `{"pageSize":2097152,"pages":[3,1]}`
    assert.deepStrictEqual(decode(text), Result.succeed({ pageSize: huge, pages: [3, 1] }))
    for (
      const bad of [`{"pageSize":1,"pages":[]}`, `{"pageSize":4096,"pages":[-1]}`, `{"pageSize":4096,"pages":[0.5]}`]
    ) {
      assert.isTrue(Result.isFailure(decode(bad)), bad)
    }
  })

  const runs = (pages: ReadonlyArray<number>, size = 2000 * small, pageSize: number = small) =>
    Array.from(GuestMemory.runs({ pageSize: small, pages }, pageSize, size), (bytes) => bytes / pageSize)

  it("goes in runs: a page and those after it that are wanted too", () => {
    assert.deepStrictEqual(runs([]), [])
    assert.deepStrictEqual(runs([7, 3, 4, 9, 8]), [7, 3, 3, 2])
    assert.deepStrictEqual(runs([5, 5, 4]), [5, 1, 4, 1])
    assert.deepStrictEqual(runs([1999, 2000, 1e9]), [1999, 1])
    assert.deepStrictEqual(runs(Array.from({ length: 300 }, (_, page) => page)), [0, 128, 128, 128, 256, 44])
  })

  it("fits pages of another size", () => {
    assert.deepStrictEqual(runs([513, 0, 1, 512, 1535], 4 * huge, huge), [1, 1, 0, 1, 2, 1])
    const found = GuestMemory.runs({ pageSize: huge, pages: [1, 7] }, small, 2 * huge)
    assert.deepStrictEqual(Array.from(found, (bytes) => bytes / small), [512, 128, 640, 128, 768, 128, 896, 128])
  })

  it.prop(
    "all of it, each page once",
    [Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 60 })))],
    ([pages]) => {
      const found = runs(pages, 50 * small)
      const covered = found.flatMap((start, index) =>
        index % 2 === 0 ? Array.from({ length: found[index + 1] ?? 0 }, (_, page) => start + page) : []
      )
      assert.deepStrictEqual(
        covered.toSorted((a, b) => a - b),
        [...new Set(pages)].filter((page) => page < 50).toSorted((a, b) => a - b)
      )
    }
  )
})

describe("what Firecracker tells", () => {
  const mapping = {
    base_host_virt_addr: 0x7f00_0000_0000,
    size: 2 * huge,
    offset: 0,
    page_size: small,
    page_size_kib: small
  }
  const read = (mappings: unknown, size = 4 * huge) => GuestMemory.read(JSON.stringify(mappings), size)
  const region = { base: 0x7f00_0000_0000, size: 2 * huge, offset: 0 }
  const { page_size: _, ...old } = mapping
  const { page_size_kib: __, ...bare } = old

  it.each([
    ["1.12", mapping, small],
    ["1.12, huge", { ...mapping, page_size: huge, page_size_kib: huge }, huge],
    ["1.7, in bytes whatever the name says", { ...old, page_size_kib: huge }, huge],
    ["before 1.7", bare, small],
    ["later, maybe", { ...mapping, more: true }, small]
  ])("by %s", (_name, told, pageSize) => {
    assert.deepStrictEqual(read([told]), Result.succeed({ pageSize, regions: [region] }))
  })

  it.each<readonly [told: unknown, why: RegExp]>([
    ["junk", /it did not tell of its memory: /],
    [[], /it did not tell of its memory: /],
    [Array.from({ length: 65 }, () => mapping), /it did not tell of its memory: /],
    [[{ ...mapping, base_host_virt_addr: -1 }], /it did not tell of its memory: /],
    [[{ ...mapping, size: 2 ** 60 }], /it did not tell of its memory: /],
    [[{ ...mapping, size: "1" }], /it did not tell of its memory: /],
    [[{ ...mapping, page_size: 65_536 }], /its pages have 65536 bytes/],
    [[mapping, { ...mapping, page_size: huge }], /its pages have 4096 and 2097152 bytes/],
    [[{ ...mapping, offset: 1 }], /its memory does not consist of pages of 4096 bytes/],
    [
      [{ ...mapping, page_size: huge, base_host_virt_addr: small }],
      /its memory does not consist of pages of 2097152 bytes/
    ]
  ])("or not: %#", (told, why) => {
    const result = read(told)
    assert.match(Result.isFailure(result) ? result.failure : "", why)
  })

  it("huge pages need a file of such", () => {
    const result = read([{ ...mapping, page_size: huge }], 3 * small)
    assert.deepStrictEqual(result, Result.fail("the memory file does not consist of pages of 2097152 bytes"))
  })
})

const Page = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 11 }))
const Step = Schema.Union([
  Schema.TaggedStruct("Touch", { page: Page }),
  Schema.TaggedStruct("Remove", { page: Page, count: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 4 })) }),
  Schema.TaggedStruct("Nothing", {})
])
type Step = typeof Step.Type

const [base, source, pagesOfFile] = [0x7f00_0000_0000, 0x7e00_0000_0000, 8] as const
const addressOf = (page: number): number => base + page * small

/** The first half is one region, the second another. What is beyond eight pages is not in the file. */
const taskOf = (runs: ReadonlyArray<number> = [], size = pagesOfFile * small): FaultTask => ({
  regions: [
    { base, size: 6 * small, offset: 0 },
    { base: base + 6 * small, size: 6 * small, offset: 6 * small }
  ],
  pageSize: small,
  source,
  size,
  runs: Float64Array.from(runs),
  counters: new Float64Array(counted.length),
  order: new Uint32Array(pagesOfFile),
  recorded: new Int32Array(1),
  lookFor: 0.05
})

/**
 * What the kernel does with the memory of a machine (fs/userfaultfd.c): faults are told before removals, though they may have
 * come after them; nothing is copied from the begin of a removal to its end, which comes after it was heard of.
 */
const machine = (script: ReadonlyArray<Step>) => {
  const steps = [...script]
  const messages = new DataView(new ArrayBuffer(3 * 32))
  const memory = new Map<number, number | "zeros">()
  const removed = new Set<number>()
  const waiting = new Set<number>()
  let faults: Array<number> = []
  let untold: Array<Step & { readonly _tag: "Remove" }> = []
  let leaving: ReadonlyArray<Step & { readonly _tag: "Remove" }> = []
  let turns = 0
  let reads = 0

  const goOn = (): void => {
    // One that was heard of at least a turn ago.
    for (const { count, page } of leaving) {
      for (let one = page; one < page + count; one++) {
        memory.delete(one)
        removed.add(one)
      }
    }
    leaving = []
    const step = steps.shift()
    if (step?._tag === "Touch" && !memory.has(step.page)) {
      faults.push(step.page)
      waiting.add(step.page)
    }
    if (step?._tag === "Remove") untold.push(step)
  }
  const fill = (to: number, length: number, content: (page: number) => number | "zeros"): number => {
    if (untold.length + leaving.length > 0) return -EAGAIN
    const first = (to - base) / small
    let count = 0
    while (count < length / small && !memory.has(first + count)) {
      memory.set(first + count, content(count))
      waiting.delete(first + count)
      count += 1
    }
    return count === 0 ? -EEXIST : count * small
  }
  const kernel: Kernel = {
    messages,
    wait: () => {
      if (++turns > 1000) throw new Error("it does not come to an end")
      const isOver = steps.length === 0
      goOn()
      if (faults.length + untold.length > 0) return 1
      return isOver && waiting.size === 0 ? 2 : 0
    },
    read: () => {
      reads += 1
      // It goes on while it is looked for.
      if (faults.length + untold.length === 0) goOn()
      const told = [
        ...faults.map((page) => [0x12, 0, addressOf(page)] as const),
        ...untold.map(({ count, page }) => [0x15, addressOf(page), addressOf(page + count)] as const)
      ].slice(0, 3)
      for (const [index, [event, first, second]] of told.entries()) {
        messages.setUint8(32 * index, event)
        messages.setBigUint64(32 * index + 8, BigInt(first), true)
        messages.setBigUint64(32 * index + 16, BigInt(second), true)
      }
      const count = Math.max(0, told.length - faults.length)
      leaving = [...leaving, ...untold.slice(0, count)]
      untold = untold.slice(count)
      faults = faults.slice(told.length)
      return told.length === 0 ? -EAGAIN : 32 * told.length
    },
    copy: (to, from, length) => fill(to, length, (page) => (from - source) / small + page),
    zero: (to, length) => fill(to, length, () => "zeros"),
    now: () => reads / 100
  }
  return { kernel, memory, removed }
}

describe("faults", () => {
  it.prop(
    "all pages are what they should be, in whatever order faults, removals and prefetches come",
    [Schema.Array(Step), Schema.Array(Page)],
    ([steps, prefetched]) => {
      const { kernel, memory, removed } = machine(steps)
      const task = taskOf(
        prefetched.flatMap((page) => page < pagesOfFile ? [page * small, Math.min(3, pagesOfFile - page) * small] : [])
      )
      assert.deepStrictEqual(faultLoop(kernel, task), { _tag: "Stopped" })
      for (const [page, content] of memory) {
        assert.strictEqual(content, page >= pagesOfFile || removed.has(page) ? "zeros" : page)
      }
      const order = task.order.subarray(0, task.recorded[0])
      assert.strictEqual(new Set(order).size, order.length)
    }
  )

  const touch = (page: number): Step => ({ _tag: "Touch", page })

  it("are counted, and remembered in their order", () => {
    const { kernel } = machine([
      touch(7),
      touch(2),
      { _tag: "Remove", page: 3, count: 1 },
      { _tag: "Nothing" },
      touch(3),
      { _tag: "Remove", page: 7, count: 1 },
      { _tag: "Nothing" },
      touch(9)
    ])
    const task = taskOf([0, 2 * small])
    assert.deepStrictEqual(faultLoop(kernel, task), { _tag: "Stopped" })
    assert.deepStrictEqual(Array.from(task.order.subarray(0, task.recorded[0])), [7, 2])
    const stats = Object.fromEntries(counted.map((name, index) => [name, task.counters[index]]))
    assert.deepStrictEqual(stats, { faults: 4, copied: 2, zeroed: 2, prefetched: 2, removed: 2 })
  })

  const ends = (steps: ReadonlyArray<Step>, changes: Partial<Kernel>): Ending =>
    faultLoop({ ...machine(steps).kernel, ...changes }, taskOf())
  const message = (event: number, flags: number, address: number): Partial<Kernel> => {
    const messages = new DataView(new ArrayBuffer(32))
    messages.setUint8(0, event)
    messages.setUint8(8, flags)
    messages.setBigUint64(16, BigInt(address), true)
    return { messages, wait: () => 1, read: () => 32 }
  }

  it("of a machine that is gone are none", () => {
    assert.deepStrictEqual(ends([], { wait: () => 4 }), { _tag: "Gone" })
    assert.deepStrictEqual(ends([touch(1)], { copy: () => -ESRCH }), { _tag: "Gone" })
  })

  it.each<readonly [string, ReadonlyArray<Step>, Partial<Kernel>, Ending]>([
    ["nowhere", [], message(0x12, 0, base - 1), {
      _tag: "Failed",
      what: "a fault at 0x7efffffff000, where no memory was told of"
    }],
    ["of another kind", [], message(0x12, 4, base), {
      _tag: "Failed",
      what: "a message of kind 18, of which none were asked for"
    }],
    ["no fault", [], message(0x16, 0, base), {
      _tag: "Failed",
      what: "a message of kind 22, of which none were asked for"
    }],
    ["a file that was cut", [touch(1)], { copy: () => -14 }, {
      _tag: "Failed",
      what: "the page at offset 4096 could not be given",
      errno: 14
    }],
    ["no memory", [touch(9)], { zero: () => -12 }, {
      _tag: "Failed",
      what: "the page at offset 36864 could not be given",
      errno: 12
    }],
    ["no messages", [touch(1)], { read: () => -22 }, {
      _tag: "Failed",
      what: "its messages could not be read",
      errno: 22
    }],
    ["nothing to wait for", [], { wait: () => -22 }, {
      _tag: "Failed",
      what: "its messages could not be waited for",
      errno: 22
    }]
  ])("that cannot be served end it: %s", (_, steps, changes, ending) => {
    assert.deepStrictEqual(ends(steps, changes), ending)
  })
})

describe("the next fault is looked for", () => {
  const [call, wake] = [0.001, 0.02] as const

  /** A thread that asks for pages, so many milliseconds after the one before was given, and then is gone. */
  const asking = (gaps: ReadonlyArray<number>, lookFor = 0.05) => {
    const messages = new DataView(new ArrayBuffer(32))
    messages.setUint8(0, 0x12)
    messages.setBigUint64(16, BigInt(base), true)
    let [time, at, asked] = [0, 0, 0]
    const seen = { slept: 0, looked: 0, reads: 0, took: 0 }
    let [inRow, longestRow] = [0, 0]
    const kernel: Kernel = {
      messages,
      now: () => time,
      wait: (millis) => {
        longestRow = Math.max(longestRow, inRow)
        inRow = 0
        if (asked === gaps.length) return 4
        if (millis < 0 && at > time) {
          seen.slept += 1
          time = at + wake
        }
        return at <= time ? 1 : 0
      },
      read: () => {
        seen.reads += 1
        time += call
        if (at > time || asked === gaps.length) {
          seen.looked += call
          return -EAGAIN
        }
        inRow += 1
        at = Infinity
        return 32
      },
      copy: (_to, _from, length) => {
        asked += 1
        time += call
        at = time + (gaps[asked - 1] ?? 0)
        return length
      },
      zero: () => -EAGAIN
    }
    assert.deepStrictEqual(faultLoop(kernel, { ...taskOf(), lookFor }), { _tag: "Gone" })
    assert.isBelow(longestRow, 20)
    return { ...seen, took: time }
  }
  const many = (gap: number, count = 4000) => Array.from({ length: count }, () => gap)

  it("where it comes soon, without sleep", () => {
    assert.isAtMost(asking(many(0.03)).slept, 1)
    assert.isAtMost(asking(many(0)).slept, 1)
  })

  it("ever less often where it does not", () => {
    const { looked, slept, took } = asking(many(0.1))
    assert.isAtLeast(slept, 3900)
    assert.isBelow(looked - slept * call, 30 * 0.06)
    assert.isBelow(took, asking(many(0.1), 0).took * 1.02)
  })

  it("again when it comes soon again", () => {
    const { slept } = asking([...many(1), ...many(0.03)])
    assert.isBelow(slept, 4000 + 600)
  })

  it("as long as most looks are worth it", () => {
    const mixed = Array.from({ length: 4000 }, (_, index) => index % 4 === 0 ? 1 : 0.03)
    assert.isAtMost(asking(mixed).slept, 2 * 1000)
  })

  it("never on one processor, but for what is there", () => {
    const { reads, slept } = asking(many(0.03), 0)
    assert.isAtLeast(slept, 3990)
    assert.isAtMost(reads, 2 * 4000 + 2)
  })
})
