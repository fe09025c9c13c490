/**
 * What tells that a file was not written to since, without reading it.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as PlatformError from "effect/PlatformError"

/**
 * A file as the file system describes it; its content is not looked at.
 *
 * @category models
 * @since 0.1.0
 */
export interface FileFacts {
  /** Is it a file, and no directory, link, pipe, …? */
  readonly isFile: boolean
  /** In bytes. */
  readonly size: number
  /**
   * Its inode, length, and the nanoseconds of its last write and of its last change, as a text to compare. What is
   * written moves the time of the change (ctime), which no program can set: two equal seals of a file mean that nothing
   * was written between, if the first was taken after `settle`. Only who maps the file to write to it (mmap(2)) can keep on
   * changing pages that it has changed before.
   */
  readonly seal: string
}

/**
 * - `facts`: those of what is at the path, without following a link.
 * - `room`: how many bytes we may still write below a directory.
 * - `settle`: waits until what is written from now on gets another time than what was written before. The kernel takes the
 *   time of its last tick, so that two writes of the same 10 ms can have the same.
 *
 * @category services
 * @since 0.1.0
 */
export class FileSeals extends Context.Service<FileSeals, {
  readonly facts: (path: string) => Effect.Effect<FileFacts, PlatformError.PlatformError>
  readonly room: (directory: string) => Effect.Effect<number, PlatformError.PlatformError>
  readonly settle: Effect.Effect<void>
}>()("effect-microvm-runtime/warm/FileSeals") {}
