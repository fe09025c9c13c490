import { describe, expect, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { explain } from "../../src/service/ServiceError.ts"

describe("explain", () => {
  it("tells all causes once, those of what is no Error too", () => {
    const error = new Error("no connection", { cause: { message: "port closed", cause: new Error("ECONNREFUSED") } })
    expect(explain(error)).toBe("no connection\n  caused by: port closed\n  caused by: ECONNREFUSED")
  })

  it.each<readonly [string, unknown]>([
    ["without a prototype", Object.create(null)],
    [
      "whose message throws",
      {
        get message() {
          throw new Error("not for you")
        }
      }
    ]
  ])("shows what cannot be shown: %s", (_, value) => {
    expect(explain(value)).toBe("an error that cannot be shown")
  })

  it("shows an object without a message, but nothing that is redacted, and not all of what is long", () => {
    const error = { _tag: "NoRoom", left: 3, key: Redacted.make("k3y") }
    expect(explain(Cause.fail(error))).toBe("{\"_tag\":\"NoRoom\",\"left\":3,\"key\":\"<redacted>\"}")
    expect(explain({ text: "x".repeat(10_000) }).length).toBeLessThan(1000)
  })

  it("says once what Config has found", () => {
    const error = Effect.runSync(Effect.flip(Config.Int("PORT").parse(ConfigProvider.fromUnknown({ PORT: "web" }))))
    expect(explain(error)).toMatch(/^Expected [^\n]*\n {2}at \["PORT"\]$/)
  })

  it("does not follow a circle", () => {
    const error = new Error("again")
    error.cause = new Error("and again", { cause: error })
    expect(explain(error).split("\n").length).toBeLessThan(20)
  })
})
