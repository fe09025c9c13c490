/**
 * What a build of an image is doing, for whoever shows it.
 *
 * @since 0.1.0
 */

/**
 * Steps of a build, in their order:
 *
 * - `Rebuilding`: there is an image, but its files are not what they should be; `why` says which.
 * - `Waiting`: process `pid` is building; told ten times a second.
 * - `Resolving`: apt is asked which packages to take.
 * - `UpdatingLists`: apt's package lists are absent or too old, and are fetched anew.
 * - `Downloading`: told five times a second.
 * - `Unpacking`: `done` of `total` packages are unpacked, and `package` is next.
 * - `Assembling`: the kernel and the file system are being written.
 *
 * @category models
 * @since 0.1.0
 */
export type Progress =
  | { readonly _tag: "Rebuilding"; readonly why: string }
  | { readonly _tag: "Waiting"; readonly pid: number }
  | { readonly _tag: "Resolving" }
  | { readonly _tag: "UpdatingLists" }
  | { readonly _tag: "Downloading"; readonly receivedBytes: number; readonly totalBytes: number }
  | { readonly _tag: "Unpacking"; readonly package: string; readonly done: number; readonly total: number }
  | { readonly _tag: "Assembling" }

/**
 * A step in a few words.
 *
 * ```ts import.meta.vitest
 * import { ImageProgress } from "effect-microvm-runtime/image"
 * ImageProgress.format({ _tag: "Downloading", receivedBytes: 12_300_000, totalBytes: 32_600_000 }) // => "downloading packages: 12.3 of 32.6 MB"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = (progress: Progress): string => {
  switch (progress._tag) {
    case "Rebuilding":
      return `building again: ${progress.why}`
    case "Waiting":
      return `waiting for process ${progress.pid}, which is building the image`
    case "Resolving":
      return "asking apt for packages"
    case "UpdatingLists":
      return "updating apt's package lists"
    case "Downloading":
      return `downloading packages: ${megabytes(progress.receivedBytes)} of ${megabytes(progress.totalBytes)} MB`
    case "Unpacking":
      return `unpacking ${progress.package} (${progress.done + 1} of ${progress.total})`
    case "Assembling":
      return "writing the kernel and the file system"
  }
}

const megabytes = (bytes: number): string => (bytes / 1e6).toFixed(1)
