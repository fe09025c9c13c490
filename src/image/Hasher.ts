/**
 * SHA-256 of files larger than one wants in memory. The real one is `NodeHasher`.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as PlatformError from "effect/PlatformError"

/**
 * Digests in lower-case hexadecimal. `file` reads in pieces, so that neither memory nor the thread is taken for long.
 *
 * @category services
 * @since 0.1.0
 */
export class Hasher extends Context.Service<Hasher, {
  readonly bytes: (bytes: Uint8Array) => Effect.Effect<string>
  readonly file: (path: string) => Effect.Effect<string, PlatformError.PlatformError>
}>()("effect-microvm-runtime/image/Hasher") {}
