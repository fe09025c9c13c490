import { assert, describe, it } from "@effect/vitest"
import { Ext4 } from "effect-microvm-runtime/host"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { statSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { image, inDirectory, layer, type World } from "./diskSupport.ts"

const SIZE = 65_536

const block = (set: (view: DataView) => void = () => {}) => {
  const bytes = image(SIZE).slice(1024, 2048)
  set(new DataView(bytes.buffer))
  return bytes
}

describe("a superblock", () => {
  const read: ReadonlyArray<readonly [what: string, set: (view: DataView) => void, Ext4.Superblock]> = [
    ["as it was made", () => {}, { size: SIZE, needsCheck: false }],
    ["of 4 KiB blocks", (view) => view.setUint32(0x18, 2, true), { size: 4 * SIZE, needsCheck: false }],
    [
      "of more than 2^32 blocks",
      (view) => {
        view.setUint32(0x60, 0x80, true)
        view.setUint32(0x150, 1, true)
      },
      { size: SIZE + 2 ** 42, needsCheck: false }
    ],
    // Without the feature, these bytes mean something else.
    ["with bytes there that mean nothing", (view) => view.setUint32(0x150, 1, true), { size: SIZE, needsCheck: false }],
    ["not unmounted", (view) => view.setUint16(0x3a, 0, true), { size: SIZE, needsCheck: true }],
    ["with errors", (view) => view.setUint16(0x3a, 3, true), { size: SIZE, needsCheck: true }],
    ["with a journal to replay", (view) => view.setUint32(0x60, 4, true), { size: SIZE, needsCheck: true }],
    [
      "mounted after it was checked",
      (view) => {
        view.setUint32(0x2c, 2, true)
        view.setUint32(0x40, 1, true)
      },
      { size: SIZE, needsCheck: true }
    ]
  ]
  it.each(read)("%s", (_, set, expected) => {
    assert.deepStrictEqual(Ext4.decode(block(set)), Result.succeed(expected))
  })

  it("is none without its magic number, cut off, or with blocks of no size", () => {
    assert.isTrue(Result.isFailure(Ext4.decode(block((view) => view.setUint16(0x38, 0xef54, true)))))
    assert.isTrue(Result.isFailure(Ext4.decode(block().slice(1))))
    assert.isTrue(Result.isFailure(Ext4.decode(block((view) => view.setUint32(0x18, 7, true)))))
  })

  it.prop("is a size, or none, whatever the bytes", [Schema.Uint8Array], ([bytes]) => {
    const whole = block()
    whole.set(bytes.subarray(0, 0x38))
    const found = Ext4.decode(whole)
    assert.isTrue(Result.isFailure(found) || found.success.size >= 0)
  })
})

describe("growing", () => {
  const grow = (directory: string, size: number, world: World = {}) => {
    const path = join(directory, "base.img")
    return Effect.provide(Ext4.grow(path, size), layer(directory, world)).pipe(Effect.map(() => statSync(path).size))
  }
  const nothing: World = { program: ({ program }) => Effect.die(new Error(program)) }

  it.live("runs nothing for the same size", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        assert.strictEqual(yield* grow(directory, SIZE, nothing), SIZE)
      })
    ))

  it.live.each([SIZE - 1, 0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 44 + 1])(
    "to %d is refused",
    (size) =>
      inDirectory((directory) =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(grow(directory, size, nothing))
          assert.strictEqual(error.reason._tag, "InvalidArgument")
          assert.include(error.message, "size: ")
          assert.strictEqual(statSync(join(directory, "base.img")).size, SIZE)
        })
      )
  )

  it.live("is refused for what has no file system, and leaves it as it is", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        writeFileSync(join(directory, "base.img"), new Uint8Array(SIZE))
        const error = yield* Effect.flip(grow(directory, 2 * SIZE, nothing))
        assert.include(error.message, "no ext2, ext3 or ext4")
        assert.strictEqual(statSync(join(directory, "base.img")).size, SIZE)
      })
    ))

  it.live("makes the file longer before the file system", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const grown = yield* grow(directory, 2 * SIZE, {
          program: ({ args, program }) =>
            Effect.sync(() => {
              assert.strictEqual(program, "resize2fs")
              assert.strictEqual(statSync(args[0] ?? "").size, 2 * SIZE)
              return ""
            })
        })
        assert.strictEqual(grown, 2 * SIZE)
      })
    ))
})
