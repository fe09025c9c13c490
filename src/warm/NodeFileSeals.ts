/**
 * Seals by lstat(2) in nanoseconds, which Effect's file system does not tell.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as PlatformError from "effect/PlatformError"
import { hasProperty } from "effect/Predicate"
import * as NodeFs from "node:fs"
import { FileSeals } from "./FileSeals.ts"

// Two ticks of the slowest kernel (CONFIG_HZ=100).
const SETTLED = 20

const tagOf = (code: unknown) =>
  code === "ENOENT" ? "NotFound" : code === "EACCES" || code === "EPERM" ? "PermissionDenied" : "Unknown"

const failed = (method: string, pathOrDescriptor: string, cause: unknown) => {
  const code = hasProperty(cause, "code") ? cause.code : undefined
  return PlatformError.systemError({ _tag: tagOf(code), module: "FileSeals", method, pathOrDescriptor, cause })
}

/**
 * The files of this host. `settle` waits for the kernel's clock, so it takes 20 ms under `TestClock` too.
 *
 * ```ts import.meta.vitest
 * import { FileSeals, NodeFileSeals } from "effect-microvm-runtime/warm"
 * import * as Effect from "effect/Effect"
 * const program = FileSeals.FileSeals.use((seals) => seals.facts("/proc"))
 * const { isFile } = await Effect.runPromise(program.pipe(Effect.provide(NodeFileSeals.layer)))
 * isFile // => false
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<FileSeals> = Layer.succeed(FileSeals, {
  room: (path) =>
    Effect.tryPromise({
      try: async () => {
        const { bavail, bsize } = await NodeFs.promises.statfs(path)
        return bavail * bsize
      },
      catch: (cause) => failed("room", path, cause)
    }),
  facts: (path) =>
    Effect.callback((resume) =>
      NodeFs.lstat(path, { bigint: true }, (cause, stats) =>
        resume(
          cause === null
            ? Effect.succeed({
              isFile: stats.isFile(),
              size: Number(stats.size),
              seal: [stats.ino, stats.size, stats.mtimeNs, stats.ctimeNs].join(" ")
            })
            : Effect.fail(failed("facts", path, cause))
        ))
    ),
  settle: Effect.callback((resume) => {
    const timer = setTimeout(() => resume(Effect.void), SETTLED)
    return Effect.sync(() => clearTimeout(timer))
  })
})
