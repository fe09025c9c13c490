/**
 * Versions of Firecracker.
 *
 * @since 0.1.0
 */

/**
 * @category models
 * @since 0.1.0
 */
export interface FirecrackerVersion {
  readonly major: number
  readonly minor: number
  readonly patch: number
}

/**
 * The first and the last minor release whose API is known here. A later one is taken for the last.
 *
 * @category constants
 * @since 0.1.0
 */
export const known = { oldest: { major: 1, minor: 7, patch: 0 }, newest: { major: 1, minor: 17, patch: 0 } } as const

/**
 * Reads a version: `1.16.1`, `v1.17.0-dev`, or the first line of `firecracker --version`.
 *
 * ```ts import.meta.vitest
 * import { FirecrackerVersion } from "effect-microvm-runtime/firecracker"
 * FirecrackerVersion.parse("Firecracker v1.16.1") // => { major: 1, minor: 16, patch: 1 }
 * FirecrackerVersion.parse("Jailer v1.17.0-dev") // => { major: 1, minor: 17, patch: 0 }
 * FirecrackerVersion.parse("QEMU emulator version 7.2.22") // => undefined
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const parse = (text: string): FirecrackerVersion | undefined => {
  const [, major, minor, patch] =
    /^(?:(?:Firecracker|Jailer) )?v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})(?![\w.])/.exec(text) ?? []
  return patch === undefined ? undefined : { major: Number(major), minor: Number(minor), patch: Number(patch) }
}

/**
 * @category conversions
 * @since 0.1.0
 */
export const format = ({ major, minor, patch }: FirecrackerVersion): string => `${major}.${minor}.${patch}`

/**
 * Is this version `major.minor.patch` or a later one?
 *
 * ```ts import.meta.vitest
 * import { FirecrackerVersion } from "effect-microvm-runtime/firecracker"
 * FirecrackerVersion.isAtLeast({ major: 1, minor: 16, patch: 1 }, { major: 1, minor: 14, patch: 0 }) // => true
 * ```
 *
 * @category guards
 * @since 0.1.0
 */
export const isAtLeast = (self: FirecrackerVersion, that: FirecrackerVersion): boolean =>
  self.major !== that.major
    ? self.major > that.major
    : self.minor !== that.minor
    ? self.minor > that.minor
    : self.patch >= that.patch
