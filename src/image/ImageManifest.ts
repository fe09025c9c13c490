/**
 * What is in a stored image. An image is named after the SHA-256 of its manifest, and the manifest holds the SHA-256 of each
 * file: so the name vouches for every byte.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * A SHA-256 digest, in lower-case hexadecimal.
 *
 * @category models
 * @since 0.1.0
 */
export const Sha256 = Schema.String.check(Schema.isPattern(/^[0-9a-f]{64}$/))

const StoredFile = Schema.Struct({
  /** Relative to the image's directory. */
  name: Schema.String.check(Schema.isPattern(/^[A-Za-z0-9][A-Za-z0-9._-]*$/)),
  /** In bytes. */
  size: Schema.Int,
  sha256: Sha256
})

/**
 * - `recipe`: the digest of the recipe it was built by, our own scripts included.
 * - `packages`: the exact packages; `sha256` is that of the `.deb` file.
 *
 * @category models
 * @since 0.1.0
 */
export const ImageManifest = Schema.Struct({
  recipe: Sha256,
  kernelRelease: Schema.String,
  packages: Schema.Array(Schema.Struct({ name: Schema.String, version: Schema.String, sha256: Sha256 })),
  files: Schema.Struct({ kernel: StoredFile, initramfs: StoredFile })
})

/**
 * @category models
 * @since 0.1.0
 */
export type ImageManifest = typeof ImageManifest.Type

/**
 * The manifest as the text of its file.
 *
 * @category schemas
 * @since 0.1.0
 */
export const ImageManifestText = Schema.fromJsonString(ImageManifest)
