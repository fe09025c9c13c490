/**
 * Hashing by Node's own crypto module, which uses the instructions the processor has for it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as PlatformError from "effect/PlatformError"
import { createHash } from "node:crypto"
import { createReadStream } from "node:fs"
import { Hasher } from "./Hasher.ts"

// About a millisecond of hashing at a time.
const PIECE = 1024 * 1024

const ofFile = (path: string): Effect.Effect<string, PlatformError.PlatformError> =>
  Effect.callback((resume) => {
    const hash = createHash("sha256")
    const stream = createReadStream(path, { highWaterMark: PIECE })
    stream.on("data", (piece) => hash.update(piece))
    stream.on("end", () => resume(Effect.sync(() => hash.digest("hex"))))
    stream.on("error", (cause: NodeJS.ErrnoException) =>
      resume(
        Effect.fail(PlatformError.systemError({
          _tag: cause.code === "ENOENT" ? "NotFound" : "Unknown",
          module: "Hasher",
          method: "file",
          pathOrDescriptor: path,
          description: cause.message,
          cause
        }))
      ))
    return Effect.sync(() => stream.destroy())
  })

/**
 * ```ts import.meta.vitest
 * import { Hasher, NodeHasher } from "effect-microvm-runtime/image"
 * import * as Effect from "effect/Effect"
 * const program = Hasher.Hasher.use((hasher) => hasher.bytes(new TextEncoder().encode("abc")))
 * const digest = await Effect.runPromise(program.pipe(Effect.provide(NodeHasher.layer)))
 * digest.slice(0, 8) // => "ba7816bf"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Hasher> = Layer.succeed(Hasher, {
  bytes: (bytes) => Effect.sync(() => createHash("sha256").update(bytes).digest("hex")),
  file: ofFile
})
