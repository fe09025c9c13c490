import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { inspect } from "node:util"
import * as Secrets from "../../src/service/Secrets.ts"

const map = new Map([
  ["A", Redacted.make("planted-a", { label: "A" })],
  ["__proto__", Redacted.make("planted-p")],
  ["", Redacted.make("planted-e")]
])
const resource = Secrets.make("secrets")

describe("Secrets", () => {
  it.effect("the resource gives the secrets that were fetched, and asks for nothing", () =>
    Effect.gen(function*() {
      expect(resource).toMatchObject({ name: "secrets", kind: "secrets", type: "secrets" })
      const store = yield* Schema.decodeEffect(resource.output)(map)
      expect(store.names).toEqual(["", "A", "__proto__"])
      for (const [name, value] of map) {
        expect(Redacted.value(yield* store.require(name))).toBe(Redacted.value(value))
      }
    }))

  it.effect("a missing secret is named, with those that there are", () =>
    Effect.gen(function*() {
      const store = Secrets.fromMap(map)
      expect(Option.isNone(store.get("a"))).toBe(true)
      expect(Option.isNone(store.get("toString"))).toBe(true)
      const error = yield* Effect.flip(store.require("a"))
      expect(error).toMatchObject({ _tag: "MissingSecret", name: "a" })
      expect(error.message).toContain("\"a\" is not set (there are , A, __proto__)")
      const none = yield* Effect.flip(Secrets.fromMap(new Map()).require("a"))
      expect(none.message).toContain("there are none")
    }))

  it.effect("what is not a map of redacted values is refused, without showing it", () =>
    Effect.gen(function*() {
      for (const wrong of [null, { A: "planted" }, new Map([["A", "planted"]]), new Map([["A", Redacted.make(5)]])]) {
        const error = yield* Effect.flip(Schema.decodeEffect(resource.output)(wrong))
        expect(error.message).not.toContain("planted")
      }
    }))

  it("no way to print a store shows a value", () => {
    const store = Secrets.fromMap(map)
    const printed = [JSON.stringify(store), inspect(store, { depth: 9 }), JSON.stringify([...map])]
      .join()
    expect(printed).not.toContain("planted")
  })
})
