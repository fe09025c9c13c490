/**
 * Which disk it is, and what is on it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as PlatformError from "effect/PlatformError"
import * as NodeFs from "node:fs/promises"
import { DiskFiles } from "./DiskFiles.ts"
import * as NodeDiskFiles from "./NodeDiskFiles.ts"

/**
 * A disk image, or a block device, of which nothing is known but its size. The times are in nanoseconds.
 *
 * @category models
 * @since 0.1.0
 */
export interface DiskIdentity {
  /** In bytes. */
  readonly size: number
  /** Device, inode, and when it was made: the inode of a file that is gone is given to the next one at once. */
  readonly file?: string
  /** When it was written to last. */
  readonly modified?: string
  /** When it was written to last, or its inode was changed: the kernel's time, which no program can set. */
  readonly changed?: string
  /** The SHA-256 of one that is only read. */
  readonly sha256?: string
}

const sector = 512

/** The size of a block device, as the kernel has it. */
const deviceSize = async (device: bigint): Promise<number> => {
  const major = (device >> 8n) & 0xfffn
  const minor = (device & 0xffn) | ((device >> 12n) & 0xfff00n)
  return Number(await NodeFs.readFile(`/sys/dev/block/${major}:${minor}/size`, "utf8")) * sector
}

/** What is told without reading it. */
const look = async (path: string): Promise<DiskIdentity> => {
  const stat = await NodeFs.stat(path, { bigint: true })
  if (stat.isBlockDevice()) return { size: await deviceSize(stat.rdev) }
  return {
    size: Number(stat.size),
    file: `${stat.dev} ${stat.ino} ${stat.birthtimeNs}`,
    modified: String(stat.mtimeNs),
    changed: String(stat.ctimeNs)
  }
}

const keyOf = ({ changed, file, modified, size }: DiskIdentity): string | undefined =>
  file === undefined ? undefined : [file, size, modified, changed].join(" ")

/** The digests of files that were read by this process, and were not changed since as far as their times tell. */
const digests = new Map<string, string>()

const mostDigests = 1000

/**
 * Looks at a disk. One that is only read is read to its end, unless this process has done so before, or it is the very file of
 * which `known` tells the digest.
 *
 * @category operations
 * @since 0.1.0
 */
export const identify: (
  path: string,
  options: { readonly readOnly: boolean; readonly known?: DiskIdentity | undefined }
) => Effect.Effect<DiskIdentity, PlatformError.PlatformError> = Effect.fn("NodeDiskIdentity.identify")(
  function*(path, { known, readOnly }) {
    const looking = Effect.tryPromise({
      try: () => look(path),
      catch: (cause) =>
        PlatformError.systemError({
          _tag: "Unknown",
          module: "NodeDiskIdentity",
          method: "identify",
          pathOrDescriptor: path,
          cause
        })
    })
    const seen = yield* looking
    const key = keyOf(seen)
    if (!readOnly || key === undefined) return seen
    const remembered = known !== undefined && keyOf(known) === key ? known.sha256 : digests.get(key)
    if (remembered !== undefined) return { ...seen, sha256: remembered }
    const sha256 = yield* DiskFiles.use((files) => files.sha256(path))
    // What was written to while it was read has no digest to remember.
    if (keyOf(yield* looking) === key) {
      if (digests.size >= mostDigests) digests.clear()
      digests.set(key, sha256)
    }
    return { ...seen, sha256 }
  },
  Effect.provide(NodeDiskFiles.layer)
)
