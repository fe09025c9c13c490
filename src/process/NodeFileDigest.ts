/**
 * What tells one program from another of the same name and version.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as NodeCrypto from "node:crypto"
import * as NodeFs from "node:fs"

const piece = 1 << 20

/**
 * The SHA-256 of a file, in lower-case hexadecimal; absent when it cannot be read.
 *
 * ```ts import.meta.vitest
 * import { NodeFileDigest } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * await Effect.runPromise(NodeFileDigest.sha256("/nonexistent")) // => undefined
 * ```
 *
 * @category operations
 * @since 0.1.0
 */
export const sha256 = (path: string): Effect.Effect<string | undefined> =>
  Effect.promise(async () => {
    const hash = NodeCrypto.createHash("sha256")
    const pieces: AsyncIterable<Buffer> = NodeFs.createReadStream(path, { highWaterMark: piece })
    try {
      for await (const bytes of pieces) hash.update(bytes)
    } catch {
      return undefined
    }
    return hash.digest("hex")
  })
