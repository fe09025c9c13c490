import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as TerminationLog from "../../src/service/TerminationLog.ts"

describe("encode", () => {
  it("says what is known", () => {
    const line = TerminationLog.encode({
      reason: "budgetPassed",
      code: 11,
      message: "it took too long",
      phase: "stop",
      signal: "SIGTERM",
      elapsed: "12345 millis",
      abandoned: ["db"]
    })
    assert.deepStrictEqual(JSON.parse(line), {
      reason: "budgetPassed",
      code: 11,
      message: "it took too long",
      phase: "stop",
      signal: "SIGTERM",
      elapsedSeconds: 12.345,
      abandoned: ["db"]
    })
  })

  it.prop(
    "is one line of JSON and fits, whatever is in it",
    [Schema.String, Schema.Array(Schema.String), Schema.Literals([1, 300, 6000])],
    ([message, names, times]) => {
      const abandoned = names.map((name) => name.repeat(times))
      const line = TerminationLog.encode({
        reason: "budgetPassed",
        code: 11,
        elapsed: 1,
        message: message.repeat(times),
        abandoned
      })
      assert.isAtMost(Buffer.byteLength(line), TerminationLog.mostBytes)
      assert.strictEqual(line.indexOf("\n"), line.length - 1)
      assert.containSubset(JSON.parse(line), { reason: "budgetPassed", code: 11 })
    }
  )

  it("tells how many names it has no room for", () => {
    const abandoned = Array.from({ length: 1000 }, (_, index) => `part ${index}`)
    const line = TerminationLog.encode({ reason: "budgetPassed", code: 11, elapsed: 0, abandoned })
    assert.match(line, /"part 0","part 1",.*"… and \d+ more"/)
  })
})

it.effect("layerNone does nothing", () =>
  Effect.gen(function*() {
    const { write } = yield* TerminationLog.TerminationLog
    yield* write({ reason: "ended", code: 0, elapsed: 0 })
  }).pipe(Effect.provide(TerminationLog.layerNone)))
