import { Buffer } from "node:buffer"
import type { BigIntStats } from "node:fs"
import * as NodeFs from "node:fs/promises"
import { codeOf } from "./NodeAttempt.ts"

const { COPYFILE_EXCL, COPYFILE_FICLONE_FORCE, O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = NodeFs.constants

const piece = 2 ** 20
const zeros = Buffer.alloc(piece)

const writeAll = async (to: NodeFs.FileHandle, bytes: Uint8Array, at: number): Promise<void> => {
  const { bytesWritten } = await to.write(bytes, 0, bytes.length, at)
  if (bytesWritten < bytes.length) await writeAll(to, bytes.subarray(bytesWritten), at + bytesWritten)
}

interface Bounds {
  readonly maxBytes: number
  readonly signal: AbortSignal
}

const checkSize = (bytes: number | bigint, most: number): void => {
  if (bytes > most) throw new Error(`it has more than the ${most} bytes that it can have`)
}

/**
 * Makes a new file, whole or not at all, with holes where it is zero, which file systems without clones would fill when they
 * copy.
 */
const copyBytes = async (from: NodeFs.FileHandle, to: string, { maxBytes, signal }: Bounds): Promise<void> => {
  await using target = await NodeFs.open(to, "wx", 0o600)
  try {
    let at = 0
    const pieces: AsyncIterable<Buffer> = from.createReadStream({ start: 0, highWaterMark: piece, autoClose: false })
    for await (const bytes of pieces) {
      signal.throwIfAborted()
      if (!zeros.subarray(0, bytes.length).equals(bytes)) await writeAll(target, bytes, at)
      at += bytes.length
      // Whoever is in a jail may still write to what came out of it.
      checkSize(at, maxBytes)
    }
    await target.truncate(at)
  } catch (error) {
    await NodeFs.rm(to, { force: true })
    throw error
  }
}

/** Makes a new file that is a clone where the file system can do that, else a copy. */
export const copy = async (from: string, to: string, signal: AbortSignal): Promise<void> => {
  try {
    await NodeFs.copyFile(from, to, COPYFILE_EXCL | COPYFILE_FICLONE_FORCE)
  } catch (error) {
    if (codeOf(error) === "ENOENT" || codeOf(error) === "EEXIST") throw error
    await using source = await NodeFs.open(from, O_RDONLY)
    await copyBytes(source, to, { maxBytes: Infinity, signal })
  }
}

/** The numbers of a block device (makedev(3)), if the file is one. */
export const blockDevice = async (
  path: string
): Promise<{ readonly major: bigint; readonly minor: bigint } | undefined> => {
  const stat = await NodeFs.stat(path, { bigint: true })
  if (!stat.isBlockDevice()) return undefined
  const { rdev } = stat
  return { major: (rdev >> 8n & 0xfffn) | (rdev >> 32n & ~0xfffn), minor: (rdev & 0xffn) | (rdev >> 12n & ~0xffn) }
}

/** Can this block device not be written to? The kernel opens it for that all the same. */
export const isReadOnlyDevice = async (path: string): Promise<boolean> => {
  const device = await blockDevice(path)
  return device !== undefined
    && await NodeFs.readFile(`/sys/dev/block/${device.major}:${device.minor}/ro`, "utf8") !== "0\n"
}

const isSame = (a: BigIntStats, b: BigIntStats): boolean => a.ino === b.ino && a.dev === b.dev

/** Do both paths lead to the same file? */
export const areSame = async (a: string, b: string): Promise<boolean> => {
  try {
    const [first, second] = await Promise.all([a, b].map((path) => NodeFs.stat(path, { bigint: true })))
    return first !== undefined && second !== undefined && isSame(first, second)
  } catch {
    return false
  }
}

/**
 * Moves a file out of a jail, whose inmates are not to be trusted: one that is a link, or has a second name, or becomes
 * another one meanwhile, is refused. It is ours then. `via` is a name on the same file system where no inmate can be: what
 * was put in the place of the file comes no further.
 */
export const moveOut = async (from: string, via: string, to: string, bounds: Bounds): Promise<void> => {
  await using handle = await NodeFs.open(from, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
  const before = await handle.stat({ bigint: true })
  if (!before.isFile() || before.nlink !== 1n) throw new Error("it is not a file of its own")
  checkSize(before.size, bounds.maxBytes)
  await handle.chown(process.geteuid?.() ?? 0, process.getegid?.() ?? 0)
  await handle.chmod(0o600)
  await NodeFs.rename(from, via)
  const moved = await NodeFs.lstat(via, { bigint: true })
  if (!isSame(before, moved) || moved.nlink !== 1n) throw new Error("it was replaced meanwhile")
  try {
    await NodeFs.rename(via, to)
  } catch (error) {
    try {
      if (codeOf(error) !== "EXDEV") throw error
      await NodeFs.rm(to, { force: true })
      await copyBytes(handle, to, bounds)
    } catch (failure) {
      // For another try, if it still can be.
      await NodeFs.rename(via, from).catch(() => undefined)
      throw failure
    }
    await NodeFs.unlink(via)
  }
}
