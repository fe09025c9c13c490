/** Files that outlive a crash, and what their errors mean. */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import type * as PlatformError from "effect/PlatformError"
import { hasProperty } from "effect/Predicate"
import * as Schedule from "effect/Schedule"
import * as ImageError from "../ImageError.ts"

/** Writes a file and waits until it is on the disk. */
export const writeDurably = (path: string, bytes: Uint8Array) =>
  Effect.scoped(Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const file = yield* fs.open(path, { flag: "w" })
    yield* file.writeAll(bytes)
    yield* file.sync
  }))

/** Waits until what was renamed into a directory is on the disk (fsync(2): the entry is the directory's). */
export const syncDirectory = (path: string) =>
  Effect.scoped(Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    yield* (yield* fs.open(path, { flag: "r" })).sync
  }))

/**
 * Removes a directory and all below it, as far as that is possible: a program that has lost its parent may go on writing
 * into it for a while. What is left is for the next builder to remove.
 */
export const removeTree = (path: string) =>
  FileSystem.FileSystem.use((fs) => fs.remove(path, { recursive: true, force: true })).pipe(
    Effect.retry({ schedule: Schedule.spaced("100 millis"), times: 50 }),
    Effect.ignore
  )

/** A temporary directory that lasts as long as the scope. */
export const temporaryDirectory = (options: { readonly directory: string; readonly prefix: string }) =>
  Effect.acquireRelease(FileSystem.FileSystem.use((fs) => fs.makeTempDirectory(options)), removeTree)

/** The error of a file system operation below `directory`. */
export const toImageError = (error: PlatformError.PlatformError, directory: string): ImageError.ImageError => {
  const { cause } = error.reason
  return ImageError.fromReason(
    hasProperty(cause, "code") && (cause.code === "ENOSPC" || cause.code === "EDQUOT")
      ? ImageError.ImageErrorReason.NoSpace({ path: directory })
      : ImageError.ImageErrorReason.CacheUnusable({
        path: directory,
        why: cause instanceof Error ? cause.message : error.message
      }),
    error
  )
}
