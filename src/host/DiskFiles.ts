/**
 * What disks need of the file system, and Effect's `FileSystem` does not tell. The real one is `NodeDiskFiles`.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as PlatformError from "effect/PlatformError"

/**
 * What is at a path, as the file system describes it; its content is not looked at.
 *
 * @category models
 * @since 0.1.0
 */
export interface FileFacts {
  readonly type: "file" | "directory" | "other"
  /** In bytes. */
  readonly size: number
  /** Bytes that it takes on the disk: less than its size where it has holes. */
  readonly allocated: number
  /** How many names it has. */
  readonly links: number
  /** When it was written to last, in milliseconds since 1970. */
  readonly modifiedAt: number
  /**
   * Device, inode, length, and the nanoseconds of the last write and of the last change of it, as a text to compare. What is
   * written moves the last of them, which no program can set (inode(7), ctime).
   */
  readonly seal: string
  /** Was it changed so long ago that another write would get another time? The kernel's ticks are up to 10 ms long. */
  readonly isSettled: boolean
}

/**
 * - `facts`: those of what is at the path, without following a link.
 * - `room`: how many bytes we may still write below a directory.
 * - `reflink`: makes a copy that shares its blocks until one of both is written to (ioctl_ficlone(2)). `false`, and nothing is
 *   there, where the file system cannot, or both are not on the same one.
 * - `sha256`: in lower-case hexadecimal. It is computed on a thread of its own, one file at a time.
 *
 * @category services
 * @since 0.1.0
 */
export class DiskFiles extends Context.Service<DiskFiles, {
  readonly facts: (path: string) => Effect.Effect<FileFacts, PlatformError.PlatformError>
  readonly room: (directory: string) => Effect.Effect<number, PlatformError.PlatformError>
  readonly reflink: (from: string, to: string) => Effect.Effect<boolean, PlatformError.PlatformError>
  readonly sha256: (path: string) => Effect.Effect<string, PlatformError.PlatformError>
}>()("effect-microvm-runtime/host/DiskFiles") {}
