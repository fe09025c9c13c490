/**
 * Digests of files that are larger than one wants in memory.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as PlatformError from "effect/PlatformError"
import * as NodeCrypto from "node:crypto"
import * as NodeFs from "node:fs"

/** About a millisecond of hashing at a time. */
const piece = 1 << 20

/**
 * The SHA-256 of a file, in lower-case hexadecimal. It is computed on this thread, in pieces, by the instructions that the processor has
 * for it.
 *
 * ```ts import.meta.vitest
 * import { NodeFileDigest } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * const digest = await Effect.runPromise(NodeFileDigest.sha256("/dev/null"))
 * digest.slice(0, 8) // => "e3b0c442"
 * ```
 *
 * @category operations
 * @since 0.1.0
 */
export const sha256 = (path: string): Effect.Effect<string, PlatformError.PlatformError> =>
  Effect.callback((resume) => {
    const hash = NodeCrypto.createHash("sha256")
    const stream = NodeFs.createReadStream(path, { highWaterMark: piece })
    stream.on("data", (bytes) => hash.update(bytes))
    stream.on("end", () => resume(Effect.sync(() => hash.digest("hex"))))
    stream.on("error", (cause: NodeJS.ErrnoException) =>
      resume(
        Effect.fail(PlatformError.systemError({
          _tag: cause.code === "ENOENT" ? "NotFound" : "Unknown",
          module: "NodeFileDigest",
          method: "sha256",
          pathOrDescriptor: path,
          description: cause.message,
          cause
        }))
      ))
    return Effect.sync(() => stream.destroy())
  })
