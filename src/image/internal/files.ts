/** Files that outlive a crash, and what their errors mean. */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import type * as PlatformError from "effect/PlatformError"
import { hasProperty } from "effect/Predicate"
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

/** The error of a file system operation below `directory`. */
export const toImageError = (error: PlatformError.PlatformError, directory: string): ImageError.ImageError => {
  const { cause } = error.reason
  return ImageError.fromReason(
    hasProperty(cause, "code") && (cause.code === "ENOSPC" || cause.code === "EDQUOT")
      ? ImageError.ImageErrorReason.NoSpace({ path: directory })
      : ImageError.ImageErrorReason.CacheUnusable({ path: directory, why: error.message }),
    error
  )
}
