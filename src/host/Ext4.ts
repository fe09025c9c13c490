/**
 * File systems of the ext family inside image files: what one is, and making it larger.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import type * as PlatformError from "effect/PlatformError"
import * as Result from "effect/Result"
import { HostCommands } from "./HostCommands.ts"
import * as HostError from "./HostError.ts"
import { invalid, orNoSpace, trying } from "./internal/diskFailure.ts"

/**
 * What is written at the start of each such file system (the kernel's Documentation/filesystems/ext4/super.rst).
 *
 * @category models
 * @since 0.1.0
 */
export interface Superblock {
  /** Length of the file system in bytes. The file may be longer. */
  readonly size: number
  /** Must e2fsck(8) look at it before it may be resized: it was not unmounted, has errors, or was mounted since it was checked? */
  readonly needsCheck: boolean
}

/**
 * Where it starts in the file, and how many bytes of it are needed.
 *
 * @category models
 * @since 0.1.0
 */
export const superblock = { offset: 1024, length: 1024 } as const

const INCOMPAT_RECOVER = 0x4
const INCOMPAT_64BIT = 0x80
const STATE_VALID = 0x1
const STATE_ERROR = 0x2

/**
 * Reads the bytes of a superblock, or says why they are none.
 *
 * ```ts import.meta.vitest
 * import { Ext4 } from "effect-microvm-runtime/host"
 * import * as Result from "effect/Result"
 * const read = Ext4.decode(new Uint8Array(1024))
 * Result.isFailure(read) && read.failure // => "it has no ext2, ext3 or ext4 file system"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const decode = (bytes: Uint8Array): Result.Result<Superblock, string> => {
  if (bytes.length < superblock.length) return Result.fail("it is too short for a file system")
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (view.getUint16(0x38, true) !== 0xef53) return Result.fail("it has no ext2, ext3 or ext4 file system")
  const incompatible = view.getUint32(0x60, true)
  const state = view.getUint16(0x3a, true)
  const exponent = view.getUint32(0x18, true)
  if (exponent > 6) return Result.fail("its file system is damaged: it has no size of blocks")
  const high = (incompatible & INCOMPAT_64BIT) === 0 ? 0 : view.getUint32(0x150, true)
  return Result.succeed({
    size: (high * 2 ** 32 + view.getUint32(0x4, true)) * 2 ** (10 + exponent),
    needsCheck: (state & STATE_VALID) === 0 || (state & STATE_ERROR) !== 0 || (incompatible & INCOMPAT_RECOVER) !== 0 ||
      view.getUint32(0x40, true) < view.getUint32(0x2c, true)
  })
}

/**
 * Reads the superblock of an image file.
 *
 * @category operations
 * @since 0.1.0
 */
export const read = (
  path: string
): Effect.Effect<Result.Result<Superblock, string>, PlatformError.PlatformError, FileSystem.FileSystem> =>
  Effect.scoped(Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const file = yield* fs.open(path, { flag: "r" })
    const bytes = new Uint8Array(superblock.length)
    let filled = 0
    while (filled < bytes.length) {
      const got = yield* file.read(bytes.subarray(filled), { position: BigInt(superblock.offset + filled) })
      if (got === 0) break
      filled += got
    }
    return decode(bytes.subarray(0, filled))
  }))

/**
 * The largest size that a file can be made here, in bytes: that of ext4's own files (16 TiB).
 *
 * @category models
 * @since 0.1.0
 */
export const LARGEST = 2 ** 44

/**
 * What is wrong with a size that an image of `from` bytes is to have. Images are never made smaller: that would lose data.
 *
 * @category guards
 * @since 0.1.0
 */
export const sizeFaults = (from: number, to: number): ReadonlyArray<HostError.Fault> => {
  const fault = (remedy: string) => [{ field: "size", value: to, remedy }]
  if (!Number.isSafeInteger(to) || to > LARGEST) return fault(`give whole bytes, ${LARGEST} at most`)
  return to < from ? fault(`images are not made smaller, and this one has ${from} bytes: give as many, or more`) : []
}

/** Of those that read or write all of a disk. */
const within = "10 minutes"

/**
 * Makes an image file, and the file system in it, this many bytes long, which holes are made of. Nothing is run when the file
 * is that long already. Fails with `InvalidArgument` when it is longer.
 *
 * e2fsck(8) runs first where resize2fs(8) would insist.
 *
 * **Gotchas**
 *
 * - When it fails, or is killed, the file is of no use any more: grow a copy, and put it in place when that succeeded.
 * - The file system must not be mounted, nor be a machine's.
 *
 * @category operations
 * @since 0.1.0
 */
export const grow = Effect.fn("Ext4.grow")(function*(path: string, size: number) {
  const fs = yield* FileSystem.FileSystem
  const { run } = yield* HostCommands
  const before = Number((yield* fs.stat(path)).size)
  const faults = sizeFaults(before, size)
  if (faults.length > 0) return yield* HostError.fail(new HostError.InvalidArgument({ faults }))
  if (size === before) return
  const found = yield* read(path)
  if (Result.isFailure(found)) return yield* invalid("image", path, `${found.failure}: take one that has`)
  yield* fs.truncate(path, size)
  if (found.success.needsCheck) {
    const check = run({ program: "e2fsck", args: ["-f", "-p", path], what: `checking ${path}`, within })
    // It tells that it has corrected something by an exit code above 0, and then has nothing to correct any more.
    yield* Effect.catchReason(check, "HostError", "CommandFailed", () => check)
  }
  yield* run({ program: "resize2fs", args: [path], what: `making the file system in ${path} larger`, within }).pipe(
    Effect.mapError(orNoSpace(path))
  )
}, (effect, path) => trying("making it larger", path)(effect))
