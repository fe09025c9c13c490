import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Vmlinux from "../../src/image/internal/vmlinux.ts"
import { elfFile } from "./elfFile.ts"

const BLOCK = 8 * 1024 * 1024

/** A length above 14 goes on in bytes of 255 and a last one below. */
const lengthBytes = (length: number): ReadonlyArray<number> =>
  length < 15 ? [] : [...Array.from({ length: Math.floor((length - 15) / 255) }, () => 255), (length - 15) % 255]

const FAR = 1000

/** One LZ4 block: repetitions of the byte before, or of what lies 1000 bytes back, become matches, all else literals. */
const packBlock = (bytes: Uint8Array): Uint8Array => {
  const parts: Array<Uint8Array> = []
  let literal = 0
  const end = bytes.length - 12
  for (let at = 1; at < end;) {
    const runs = [1, FAR].filter((distance) => distance <= at).map((distance) => {
      let length = 0
      while (at + length < end && bytes[at + length] === bytes[at + length - distance]) length++
      return { distance, length }
    })
    const { distance, length } = runs.reduce((best, run) => run.length > best.length ? run : best)
    if (length < 8) {
      at++
      continue
    }
    const literals = bytes.subarray(literal, at)
    const match = length - 4
    parts.push(
      Uint8Array.from([(Math.min(literals.length, 15) << 4) | Math.min(match, 15), ...lengthBytes(literals.length)]),
      literals,
      Uint8Array.from([distance & 255, distance >> 8, ...lengthBytes(match)])
    )
    literal = at = at + length
  }
  const rest = bytes.subarray(literal)
  parts.push(Uint8Array.from([Math.min(rest.length, 15) << 4, ...lengthBytes(rest.length)]), rest)
  return Buffer.concat(parts)
}

const bzImage = (
  vmlinux: Uint8Array,
  options: { readonly magic?: number; readonly protocol?: number } = {}
): Uint8Array => {
  const blocks = Array.from({ length: Math.ceil(vmlinux.length / BLOCK) }, (_, index) => {
    const block = packBlock(vmlinux.subarray(index * BLOCK, (index + 1) * BLOCK))
    const size = Buffer.alloc(4)
    size.writeUInt32LE(block.length)
    return Buffer.concat([size, block])
  })
  const magic = Buffer.alloc(4)
  magic.writeUInt32LE(options.magic ?? 0x184c2102)
  const size = Buffer.alloc(4)
  size.writeUInt32LE(vmlinux.length)
  const payload = Buffer.concat([magic, ...blocks, size])
  const setup = Buffer.alloc(5 * 512 + 64)
  setup[0x1f1] = 4
  setup.write("HdrS", 0x202)
  setup.writeUInt16LE(options.protocol ?? 0x20f, 0x206)
  setup.writeUInt32LE(64, 0x248)
  setup.writeUInt32LE(payload.length, 0x24c)
  return Buffer.concat([setup, payload])
}

describe("vmlinux", () => {
  // Larger than one block, with literals and matches across every length encoding.
  const kernel = elfFile({ pvh: true, size: BLOCK + 100_000 })
  for (let at = 4096, run = 0; at < kernel.length; run = (run * 7 + 13) % 701) {
    kernel.fill(at & 0xff, at, at + run)
    at += run + 1
  }
  // Something that repeats from afar, beyond and within the distance.
  kernel.set(Uint8Array.from({ length: FAR }, (_, index) => index * 31), 200_000)
  kernel.copyWithin(200_000 + FAR, 200_000, 200_000 + FAR - 100)
  kernel.copyWithin(200_000 + 2 * FAR, 200_000, 200_000 + FAR)

  it.effect("takes the kernel out of its image", () =>
    Effect.gen(function*() {
      const extracted = yield* Vmlinux.extract(bzImage(kernel))
      expect(extracted === undefined ? undefined : Buffer.compare(extracted, kernel)).toBe(0)
    }))

  const others: Readonly<Record<string, Uint8Array>> = {
    "packed in another way": bzImage(kernel, { magic: 0xfd2fb528 }),
    "of an old boot protocol": bzImage(kernel, { protocol: 0x207 }),
    "that cannot be started as it is": bzImage(elfFile({ size: 4096 })),
    "cut short": bzImage(kernel).subarray(0, 50_000),
    "of no kernel at all": new TextEncoder().encode("no kernel"),
    empty: new Uint8Array(0)
  }
  for (const [which, image] of Object.entries(others)) {
    it.effect(`leaves an image alone: ${which}`, () =>
      Effect.gen(function*() {
        expect(yield* Vmlinux.extract(image)).toBeUndefined()
      }))
  }

  it.effect("never gives a wrong kernel for a damaged one", () =>
    Effect.gen(function*() {
      const image = bzImage(elfFile({ pvh: true, size: 3000 }))
      for (let at = 5 * 512 + 64; at < image.length; at++) {
        const damaged = Uint8Array.from(image)
        damaged[at] = (damaged[at] ?? 0) ^ 0xff
        // The format has no checksum: what matters is that it ends, and that the size is right.
        const extracted = yield* Vmlinux.extract(damaged)
        expect([undefined, 3000]).toContain(extracted?.length)
      }
    }))
})
