import { describe, expect, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as Lines from "../../src/guest/internal/lines.ts"

const decode = (chunks: Iterable<Uint8Array>, maxBytes: number): ReadonlyArray<string | undefined> => {
  const seen: Array<string | undefined> = []
  const lines = Lines.make({
    maxBytes: () => maxBytes,
    onLine: (line) => seen.push(line),
    onTooLong: () => seen.push(undefined)
  })
  for (const chunk of chunks) lines.push(chunk)
  return seen
}

/** Letters, ends of lines and resets. */
const Bytes = Schema.Array(Schema.Literals([0x61, 0x62, 0x0a, 0xff]))

describe("lines", () => {
  it.prop(
    "are the same however they are cut, as long as none is too long",
    { bytes: Bytes, size: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 9 })) },
    ({ bytes, size }) => {
      const all = new Uint8Array(bytes)
      const chunks = Array.from(
        { length: Math.ceil(all.length / size) },
        (_, i) => all.subarray(i * size, (i + 1) * size)
      )
      const model = Buffer.from(all).toString("latin1").split("\n").slice(0, -1)
        .map((line) => line.slice(line.lastIndexOf("\xff") + 1))
        .filter((line) => line !== "")
      expect(decode(chunks, 1000)).toEqual(model)
    },
    { arbitrary: { runs: 1000 } }
  )

  it("are told once when too long, at once, and skipped up to their end", () => {
    const bytes = (text: string) => new TextEncoder().encode(text)
    expect(decode([bytes("aaaa"), bytes("aa")], 5)).toEqual([undefined])
    expect(decode([bytes("aaaa"), bytes("aaaa"), bytes("aaaa\nb\n"), bytes("ccccc\n")], 5)).toEqual([
      undefined,
      "b",
      "ccccc"
    ])
    expect(decode([bytes("aaaaaaaa"), new Uint8Array([0x61, 0xff, 0x62, 0x0a])], 5)).toEqual([undefined, "b"])
  })
})
