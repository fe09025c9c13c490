import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import type { Order } from "./orders.ts"
import { isWhole } from "./plan.ts"
import { missing, World } from "./world.ts"

const reason = missing()
if (reason !== undefined) console.warn(`skipped: ${reason}`)

const MIB = 2 ** 20

let world: World

beforeAll(async () => {
  if (reason === undefined) world = await World.make()
})

afterAll(() => reason === undefined ? world.end() : undefined)

const cases: ReadonlyArray<{
  readonly backend: Order["backend"]
  readonly resources: boolean
  /** In `npm test`, if it is there at all. */
  readonly rounds?: number
  readonly whole: number
}> = [
  // So many that what V8 takes for garbage that comes this fast, some 70 MiB, is there by the middle.
  { backend: "memory", resources: false, rounds: 40, whole: 3000 },
  { backend: "script", resources: true, whole: 200 },
  // Each of its monitors is a program of Node, so all of them take minutes.
  { backend: "firecracker", resources: false, rounds: 40, whole: 1000 },
  { backend: "qemu", resources: true, rounds: 4, whole: 30 }
]

describe.skipIf(reason !== undefined)("machines that come and go", () => {
  for (const { backend, resources, rounds: few, whole } of cases) {
    const rounds = isWhole ? whole : few
    if (rounds === undefined) continue
    it(
      `${rounds} times on the backend ${backend} leave open no files, hold no memory, and leave nothing of the kernel's`,
      async () => {
        const one = await world.supervisor(0)
        // What is made once for all.
        await one.do({ do: "rounds", backend, state: world.state(), rounds: 1, resources })
        const before = world.traces()
        const began = performance.now()
        const done = await one.do({ do: "rounds", backend, state: world.state(), rounds, resources })
        const took = Math.round((performance.now() - began) / rounds)
        const [first] = done.samples
        const last = done.samples.at(-1)
        if (first === undefined || last === undefined) throw new Error("there are no samples")
        const middle = done.samples[Math.ceil(done.samples.length / 2) - 1] ?? first
        const kinds = ["heap", "external", "rss"] as const
        console.log(
          `leaks: ${backend}: ${rounds} rounds of ${took} ms, ${
            last.files - first.files
          } more files; in KiB, first, middle, last: ` +
            kinds.map((kind) =>
              `${kind} ${[first, middle, last].map((sample) => Math.round(sample[kind] / 1024)).join(" ")}`
            )
              .join("; ")
        )
        assert.deepStrictEqual([...done.left, ...done.records, ...await world.leftovers(before)], [])
        assert.isAtMost(last.files, first.files)
        assert.isAtMost(last.handles, first.handles)
        // What the compiler has learned of shapes and calls is in it, too: less than this, and no more with more rounds.
        assert.isBelow(last.heap - first.heap, 2 * MIB)
        assert.isBelow(last.heap - middle.heap, MIB)
        // Buffers and native memory are not in it. They do not grow with what is learned.
        assert.isBelow(last.external - first.external, MIB / 4)
        // What is resident goes up and down by what the collector keeps for later; over many rounds no more than this.
        if (isWhole) assert.isBelow(last.rss - middle.rss, 32 * MIB)
        await one.end()
      },
      1_800_000
    )
  }
})
