import { assert, describe, it } from "@effect/vitest"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as PageMap from "../../src/firecracker/internal/pageMap.ts"

const Small = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 5 }))

describe("a list of pages", () => {
  it.prop("is read as it was written", [Schema.Array(Schema.Tuple([Small, Small]))], ([steps]) => {
    let end = 0
    const runs = steps.map(([gap, more]) => {
      const run = { first: end + gap, count: more + 1 }
      end = run.first + run.count
      return run
    })
    assert.deepStrictEqual(Result.getOrThrow(PageMap.decode(PageMap.encode(runs), end)), runs)
    if (end > 0) assert.isTrue(Result.isFailure(PageMap.decode(PageMap.encode(runs), end - 1)))
  })

  it.each([
    ["no pairs", new Uint8Array(12)],
    ["no pages", PageMap.encode([{ first: 3, count: 0 }])],
    ["one behind the end", PageMap.encode([{ first: 99, count: 2 }])],
    ["one far behind it", PageMap.encode([{ first: 2 ** 32 - 1, count: 2 ** 32 - 1 }])],
    ["one twice", PageMap.encode([{ first: 3, count: 2 }, { first: 4, count: 1 }])],
    ["a wrong order", PageMap.encode([{ first: 8, count: 1 }, { first: 4, count: 1 }])]
  ])("is refused with %s", (_, bytes) => {
    assert.isTrue(Result.isFailure(PageMap.decode(bytes, 100)))
  })
})
