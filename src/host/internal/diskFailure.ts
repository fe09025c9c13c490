/** What the file system says of disks, in the words of this folder. */
import * as Effect from "effect/Effect"
import type * as PlatformError from "effect/PlatformError"
import { hasProperty } from "effect/Predicate"
import * as OwnedFiles from "../../process/OwnedFiles.ts"
import * as HostError from "../HostError.ts"

/** There is nothing at this path, nor can there be. */
export const isNotThere = (error: { readonly _tag: string }): boolean =>
  hasProperty(error, "reason") && hasProperty(error.reason, "_tag") &&
  (error.reason._tag === "NotFound" ||
    (hasProperty(error.reason, "cause") && hasProperty(error.reason.cause, "code") &&
      error.reason.cause.code === "ENOTDIR"))

/** Trouble of the file system with `path`. */
export const failed = (operation: string, path: string) => (error: PlatformError.PlatformError): HostError.HostError =>
  HostError.make(
    OwnedFiles.isNoSpace(error)
      ? new HostError.NoSpace({ path, cause: error })
      : new HostError.IoFailed({ operation, path, cause: error.reason.cause ?? error })
  )

/** All other trouble of the file system is that of `path`. */
export const trying = (operation: string, path: string) =>
<A, R>(
  effect: Effect.Effect<A, HostError.HostError | PlatformError.PlatformError, R>
): Effect.Effect<A, HostError.HostError, R> =>
  Effect.mapError(effect, (error) => error._tag === "HostError" ? error : failed(operation, path)(error))

/** For a program that writes to `path`: it tells of a full disk in the words of strerror(3). */
export const orNoSpace = (path: string) => (error: HostError.HostError): HostError.HostError =>
  error.reason._tag === "CommandFailed" && /No space left on device|Disk quota exceeded/.test(error.reason.stderr)
    ? HostError.make(new HostError.NoSpace({ path, cause: error }))
    : error

/** One thing that is wrong with what was asked for. */
export const invalid = (field: string, value: unknown, remedy: string): Effect.Effect<never, HostError.HostError> =>
  HostError.fail(new HostError.InvalidArgument({ faults: [{ field, value, remedy }] }))
