/**
 * What can go wrong with images.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Printable from "../lifecycle/Printable.ts"

/**
 * What it takes to build an image, in bytes: its packages, what is in them, and the image, a quarter of it, which stays.
 *
 * @category constants
 * @since 0.1.0
 */
export const roomToBuild = 250_000_000

/**
 * Every reason, by tag.
 *
 * Before anything was made:
 * - `UnknownImage`: there is no recipe of that name.
 * - `InvalidArchive`: the entries cannot make an archive; `faults` are all that is wrong with them.
 * - `UnsupportedArchitecture`: there are guests for some architectures only.
 * - `AptUnavailable`: `command` is not there, so this is no Debian.
 * - `CacheUnusable`: the directory of the images cannot be read or written.
 *
 * While building:
 * - `PackageMissing`: apt knows no such package; most often its lists are absent or old.
 * - `DownloadFailed`: apt could not fetch the packages; `output` is the end of what it said.
 * - `UnpackFailed`: `dpkg-deb` refused a package that apt had verified.
 * - `UnexpectedContent`: a package does not hold what an image needs of it.
 * - `NoSpace`: the file system of the cache is full.
 * - `Busy`: another process, `pid`, has been building for too long.
 *
 * Of a stored image:
 * - `Corrupt`: a file is missing or is not what its manifest says. `ensure` builds such an image again.
 *
 * @category models
 * @since 0.1.0
 */
export type ImageErrorReason = Data.TaggedEnum<{
  UnknownImage: { readonly name: string; readonly known: ReadonlyArray<string> }
  InvalidArchive: { readonly faults: ReadonlyArray<string> }
  UnsupportedArchitecture: { readonly architecture: string; readonly supported: ReadonlyArray<string> }
  AptUnavailable: { readonly command: string }
  CacheUnusable: { readonly path: string; readonly why: string }
  PackageMissing: { readonly packages: ReadonlyArray<string>; readonly output: string }
  DownloadFailed: { readonly command: string; readonly output: string }
  UnpackFailed: { readonly file: string; readonly output: string }
  UnexpectedContent: { readonly file: string; readonly why: string }
  NoSpace: { readonly path: string }
  Busy: { readonly pid: number; readonly path: string }
  Corrupt: { readonly path: string; readonly why: string }
}>

/**
 * Constructors and matchers of the reasons.
 *
 * @category constructors
 * @since 0.1.0
 */
export const ImageErrorReason = Data.taggedEnum<ImageErrorReason>()

const withOutput = (text: string, output: string): string => output === "" ? text : `${text}\n${output}`

const describe: (reason: ImageErrorReason) => string = ImageErrorReason.$match({
  UnknownImage: ({ known, name }) => `there is no image ${JSON.stringify(name)}: the images are ${known.join(", ")}`,
  InvalidArchive: ({ faults }) => `these entries cannot make an archive:\n${faults.join("\n")}`,
  UnsupportedArchitecture: ({ architecture, supported }) =>
    `there is no guest for ${architecture}: images can be built on ${supported.join(", ")}`,
  AptUnavailable: ({ command }) =>
    `${command} was not found, and images are made of Debian packages: build the image on a Debian machine and copy its cache directory (MICROVM_CACHE_DIR) here`,
  CacheUnusable: ({ path, why }) =>
    `${path}: ${why}: ${
      /^E[MN]FILE\b/.test(why)
        ? "raise the limit of open files (ulimit -n), or do less at once"
        : "make it writable, or name another directory in MICROVM_CACHE_DIR"
    }`,
  PackageMissing: ({ output, packages }) =>
    withOutput(`apt knows no package ${packages.join(", ")}: run "sudo apt-get update", and try again`, output),
  DownloadFailed: ({ command, output }) =>
    withOutput(`${command} failed: check the network, run "sudo apt-get update", and try again`, output),
  UnpackFailed: ({ file, output }) => withOutput(`${file} could not be unpacked`, output),
  UnexpectedContent: ({ file, why }) => `${file}: ${why}: this version of the package cannot make an image`,
  NoSpace: ({ path }) =>
    `${path}: no space left: free some ${roomToBuild / 1e6} MB, or name another directory in MICROVM_CACHE_DIR`,
  Busy: ({ path, pid }) => `process ${pid} is still building an image: wait for it, or end it (its claim is ${path})`,
  Corrupt: ({ path, why }) => `${path} ${why}: the image has to be built again`
})

/**
 * The one error of this folder: branch on `reason`, for example with `Effect.catchReason("ImageError", "Busy", …)`.
 *
 * ```ts import.meta.vitest
 * import { ImageError } from "effect-microvm-runtime/image"
 * const error = ImageError.fromReason(ImageError.ImageErrorReason.UnknownImage({ name: "big", known: ["default"] }))
 * error.message // => "there is no image \"big\": the images are default"
 * ```
 *
 * @category errors
 * @since 0.1.0
 */
export class ImageError extends Data.TaggedError("ImageError")<{
  readonly reason: ImageErrorReason
  readonly cause?: unknown
}> {
  override get message(): string {
    return Printable.lines(describe(this.reason))
  }
}

/**
 * Makes an error of a reason and what caused it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromReason = (reason: ImageErrorReason, cause?: unknown): ImageError =>
  new ImageError(cause === undefined ? { reason } : { reason, cause })
