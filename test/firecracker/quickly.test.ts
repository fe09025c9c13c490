import { describe, expect, it } from "@effect/vitest"
import { FirecrackerSchema } from "effect-microvm-runtime/firecracker"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { isSure, readerOf } from "../../src/firecracker/internal/quickly.ts"
import { bodies } from "./bodies.ts"

const names = Object.keys(FirecrackerSchema.requests).filter((name): name is FirecrackerSchema.RequestName =>
  Object.hasOwn(bodies, name)
)

const unsure = Symbol("unsure")

/** The short way: what it makes of the body, if it is sure. */
const quick = (schema: Schema.Top, body: unknown): unknown => {
  const read = readerOf(schema.ast)(body)
  return isSure(read) ? read : unsure
}

/** What the schema says: what it makes of the body, or that it is not right. */
const slowly = (name: FirecrackerSchema.RequestName, body: unknown): unknown =>
  Result.match(
    Schema.decodeUnknownResult<Schema.Decoder<unknown>>(FirecrackerSchema.requests[name], {
      onExcessProperty: "error"
    })(body),
    { onFailure: () => unsure, onSuccess: (value) => value }
  )

const quickly = (name: FirecrackerSchema.RequestName, body: unknown): unknown =>
  quick(FirecrackerSchema.requests[name], body)

describe("the short way", () => {
  // What has a record, a secret or any JSON in it goes the long way.
  it.each(names.filter((name) => !["CpuConfig", "Metrics", "MmdsData"].includes(name)))(
    "%s: is sure of what is right, and makes of it what the schema does",
    (name) => {
      const { full, least } = bodies[name]
      for (const body of [least, full]) {
        const read = quickly(name, body)
        expect(read).not.toBe(body)
        expect(JSON.stringify(read)).toBe(JSON.stringify(slowly(name, body)))
      }
    }
  )

  it.each(names)("%s: is not sure of anything that the schema refuses", (name) => {
    const { full, least, wrong } = bodies[name]
    const keys = Object.keys(full)
    const heir = { ...least }
    Reflect.setPrototypeOf(heir, { colour: "red", ...full })
    const all: ReadonlyArray<unknown> = [
      ...Object.entries(wrong).flatMap(([key, values]) =>
        [...values, null, undefined, { nested: {} }, [], Symbol("x")].flatMap((value) => [
          { ...least, [key]: value },
          { ...full, [key]: value }
        ])
      ),
      ...keys.flatMap((key) => [
        Object.fromEntries(Object.entries(full).filter(([other]) => other !== key)),
        Object.defineProperty({ ...full }, key, { enumerable: false })
      ]),
      { ...full, colour: "red" },
      { ...full, [Symbol.iterator]: 1 },
      Object.defineProperty({ ...least }, "__proto__", { value: {}, enumerable: true }),
      heir,
      [full],
      null,
      undefined,
      "text"
    ]
    for (const body of all) {
      expect([unsure, slowly(name, body)]).toContainEqual(quickly(name, body))
    }
  })

  it("knows plain parts only", () => {
    for (
      const schema of [
        Schema.NumberFromString,
        Schema.Unknown,
        Schema.Record(Schema.String, Schema.Number),
        Schema.Tuple([Schema.Number]),
        Schema.Union([Schema.Number, Schema.Finite], { mode: "oneOf" }),
        Schema.Redacted(Schema.String)
      ]
    ) {
      for (const value of ["1", 1, [1], {}]) expect(quick(schema, value)).toBe(unsure)
    }
    expect(quick(Schema.Array(Schema.Number), [1, "2"])).toBe(unsure)
    expect(quick(Schema.Array(Schema.Number), [1, 2])).toEqual([1, 2])
  })

  it("leaves to the schema what something that it does not know might read otherwise", () => {
    expect(quick(Schema.Union([Schema.NumberFromString, Schema.String]), "1")).toBe(unsure)
    const nested = Schema.Union([Schema.Struct({ a: Schema.NumberFromString }), Schema.Struct({ a: Schema.String })])
    expect(quick(nested, { a: "1" })).toBe(unsure)
    expect(quick(Schema.Union([Schema.Number, Schema.NumberFromString]), 1)).toBe(1)
    const byDefault = Schema.Struct({ a: Schema.optionalKey(Schema.NumberFromString) })
    expect(quick(byDefault, {})).toBe(unsure)
    expect(quick(Schema.Struct({ ["__proto__"]: Schema.String }), JSON.parse(`{"__proto__": "x"}`))).toBe(unsure)
  })

  it("takes what a list holds, whatever it says when it is walked", () => {
    const list = ["a"]
    Reflect.set(list, Symbol.iterator, () => ["b", "c"].values())
    expect(quick(Schema.Array(Schema.String), list)).toEqual(["a"])
    Reflect.setPrototypeOf(list, Map.prototype)
    expect(quick(Schema.Array(Schema.String), list)).toEqual(["a"])
  })
})
