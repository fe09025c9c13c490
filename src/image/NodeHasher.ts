/**
 * Hashing by Node's own crypto module, which uses the instructions the processor has for it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { createHash } from "node:crypto"
import * as NodeFileDigest from "../process/NodeFileDigest.ts"
import { Hasher } from "./Hasher.ts"

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
  file: NodeFileDigest.sha256
})
