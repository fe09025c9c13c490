import { describe, expect, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as GuestStdio from "../../src/guest/GuestStdio.ts"

const nonce = "0123456789abcdef0123456789abcdef"
const mark = GuestStdio.trailer(nonce)
const byte = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 255 }))

/** Bytes of a stream: any, and pieces of the trailer, whole ones among them. */
const Pieces = Schema.Array(Schema.Union([
  byte,
  Schema.Struct({ from: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 33 })), length: byte })
]))
/** Sizes of the chunks, used over and over. */
const Sizes = Schema.NonEmptyArray(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 80 })))

const bytesOf = (pieces: typeof Pieces.Type): Uint8Array =>
  new Uint8Array(
    pieces.flatMap((piece) =>
      typeof piece === "number" ? [piece] : Array.from(mark.subarray(piece.from, piece.from + piece.length % 36))
    )
  )
const join = (...parts: ReadonlyArray<Uint8Array>): Uint8Array => new Uint8Array(Buffer.concat(parts))
const cut = (bytes: Uint8Array, sizes: typeof Sizes.Type): ReadonlyArray<Uint8Array> => {
  const chunks: Array<Uint8Array> = []
  for (let at = 0, i = 0; at < bytes.length; i++) {
    const size = sizes[i % sizes.length] ?? 1
    chunks.push(bytes.subarray(at, at + size))
    at += size
  }
  return chunks
}

describe("the start of stdout", () => {
  const opening = GuestStdio.ready(nonce)
  it.prop(
    "is found wherever it is cut, whatever an earlier command has left before it",
    { before: Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 45 }))), sizes: Sizes },
    ({ before, sizes }) => {
      // Pieces of the mark, none of them whole, and another command's.
      const other = GuestStdio.ready("f".repeat(32))
      const left = join(...before.map((length) => length > 38 ? other : opening.subarray(0, Math.min(length, 38))))
      const rest = new TextEncoder().encode(`READY ${nonce}\nmore`)
      const push = GuestStdio.makeReadyDecoder(nonce)
      const out: Array<Uint8Array> = []
      let isReady = false
      for (const chunk of cut(join(left, opening, rest), sizes)) {
        const more: Uint8Array | undefined = isReady ? chunk : push(chunk)
        isReady = more !== undefined
        if (more !== undefined) out.push(more)
      }
      expect(join(...out)).toEqual(rest)
    },
    { arbitrary: { runs: 1000 } }
  )

  it("is waited for in bounded memory", () => {
    const push = GuestStdio.makeReadyDecoder(nonce)
    for (let i = 0; i < 50; i++) expect(push(new Uint8Array(65536).fill(0x52))).toBeUndefined()
    expect(push(opening)).toEqual(new Uint8Array(0))
  })
})

describe("the end of an output stream", () => {
  it.prop(
    "is found wherever it is cut, and nothing else is taken for it",
    { pieces: Pieces, sizes: Sizes, after: Schema.Array(byte) },
    ({ after, pieces, sizes }) => {
      const all = join(bytesOf(pieces), mark, new Uint8Array(after))
      const at = Buffer.from(all).indexOf(mark)
      const decoder = GuestStdio.makeTrailerDecoder(nonce)
      const out = cut(all, sizes).flatMap(decoder.push)
      expect(join(...out)).toEqual(all.subarray(0, at))
      expect(decoder.ended()).toBe(true)
      expect(decoder.excess()).toBe(all.length - at - mark.length)
    },
    { arbitrary: { runs: 2000 } }
  )

  it.prop(
    "holds back only what may begin it",
    { pieces: Pieces, sizes: Sizes },
    ({ pieces, sizes }) => {
      const bytes = bytesOf(pieces)
      const all = bytes.subarray(0, Buffer.from(join(bytes, mark)).indexOf(mark))
      const decoder = GuestStdio.makeTrailerDecoder(nonce)
      let taken = 0
      let given = 0
      for (const chunk of cut(all, sizes)) {
        taken += chunk.length
        for (const part of decoder.push(chunk)) given += part.length
        const held = decoder.held()
        expect(given + held.length).toBe(taken)
        expect(held).toEqual(mark.subarray(0, held.length))
        expect(held.length).toBeLessThan(mark.length)
      }
      expect(decoder.ended()).toBe(false)
    },
    { arbitrary: { runs: 1000 } }
  )

  it("costs little on the data that are hardest for it", () => {
    const almost = join(mark.subarray(0, 33), new Uint8Array([0]))
    for (const [what, pattern] of [["zeros", new Uint8Array(34)], ["near misses", almost]] as const) {
      const chunk = new Uint8Array(65536)
      for (let at = 0; at < chunk.length; at++) chunk[at] = pattern[at % pattern.length] ?? 0
      const decoder = GuestStdio.makeTrailerDecoder(nonce)
      const start = performance.now()
      let given = 0
      for (let i = 0; i < 1600; i++) for (const part of decoder.push(chunk)) given += part.length
      const seconds = (performance.now() - start) / 1000
      expect(given + decoder.held().length).toBe(1600 * 65536)
      expect(decoder.ended()).toBe(false)
      process.stdout.write(`trailer, 100 MB of ${what}: ${Math.round(100 / seconds)} MB/s\n`)
    }
  })
})

describe("input", () => {
  const Chunks = Schema.Array(Schema.Array(byte))

  it.prop(
    "is what was put in, wherever it is cut and whatever was left before it",
    { stale: Pieces, chunks: Chunks, sizes: Sizes, after: Schema.Array(byte) },
    ({ after, chunks, sizes, stale }) => {
      const input = chunks.map((chunk) => new Uint8Array(chunk))
      const wire = join(
        bytesOf(stale),
        GuestStdio.begin(nonce),
        ...input.flatMap((chunk) => GuestStdio.frames(chunk).flat()),
        GuestStdio.endOfInput
      )
      const decoder = GuestStdio.makeFrameDecoder(nonce)
      const pieces = cut(join(wire, new Uint8Array(after)), sizes)
      let excess = 0
      const out = pieces.flatMap((piece) => {
        const ended = decoder.ended()
        const parts = decoder.push(piece)
        excess += ended ? piece.length : decoder.excess().length
        return parts
      })
      expect(join(...out)).toEqual(join(...input))
      expect(decoder.ended()).toBe(true)
      expect(excess).toBe(after.length)
    },
    { arbitrary: { runs: 1000 } }
  )

  it("goes in frames that the guest accepts", () => {
    const chunk = new Uint8Array(2 * GuestStdio.maxFrameBytes + 1)
    const frames = GuestStdio.frames(chunk)
    expect(frames.map(([length]) => new TextDecoder().decode(length))).toEqual(["262144\n", "262144\n", "1\n"])
    expect(frames.every(([, bytes]) => bytes.buffer === chunk.buffer)).toBe(true)
    expect(GuestStdio.frames(new Uint8Array(0))).toEqual([])
  })

  it.each(["", "0", "x", "-1", "1000000", "999999", "00000000000000000000000000000000000000005"])(
    "ends at a length of %j",
    (length) => {
      const decoder = GuestStdio.makeFrameDecoder(nonce)
      decoder.push(GuestStdio.begin(nonce))
      expect(decoder.push(new TextEncoder().encode(`${length}\nabc`))).toEqual([])
      expect(decoder.ended()).toBe(true)
    }
  )
})
