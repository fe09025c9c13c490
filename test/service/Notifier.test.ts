import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Notifier from "../../src/service/Notifier.ts"

describe("encode", () => {
  it("gives each variable its line", () => {
    const lines = Notifier.encode({
      ready: true,
      stopping: true,
      status: "a",
      extendTimeout: "1500 millis",
      mainPid: 7,
      watchdog: true
    })
    const expected = ["READY=1", "STOPPING=1", "STATUS=a", "EXTEND_TIMEOUT_USEC=1500000", "MAINPID=7", "WATCHDOG=1"]
    assert.deepStrictEqual(lines, expected)
    assert.deepStrictEqual(Notifier.encode({}), [])
  })

  it("leaves out what says nothing", () => {
    const odd = { extendTimeout: Infinity, mainPid: -1 }
    assert.deepStrictEqual(Notifier.encode(odd), [])
    assert.deepStrictEqual(Notifier.encode({ extendTimeout: 0, mainPid: 1.5 }), [])
  })

  it.prop("no status smuggles a variable in, or is too long", [Schema.String], ([text]) => {
    const lines = Notifier.encode({ status: `${text}\nREADY=1\r\nMAINPID=1${"\u{1F600}".repeat(600)}` })
    assert.lengthOf(lines, 1)
    assert.notMatch(lines.join(""), /[\n\r]/)
    assert.isBelow(Buffer.byteLength(lines.join("\n")), 4096)
  })
})

it.effect("layerNone does nothing", () =>
  Effect.gen(function*() {
    const { notify } = yield* Notifier.Notifier
    yield* notify({ ready: true })
  }).pipe(Effect.provide(Notifier.layerNone)))
