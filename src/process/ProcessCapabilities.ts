/**
 * The capabilities of a process (capabilities(7)): what of root's rights it has without being root, and what of them the programs
 * that it starts get.
 *
 * @since 0.1.0
 */

/**
 * A bit for each capability.
 *
 * - `effective`: what is checked now.
 * - `ambient`: what every program that is started keeps, unless that is seen to (`without`). Always a part of what is effective for
 *   who is not root.
 *
 * @category models
 * @since 0.1.0
 */
export interface ProcessCapabilities {
  readonly effective: bigint
  readonly ambient: bigint
}

const field = (status: string, name: string): bigint =>
  BigInt(`0x${new RegExp(`^${name}:\\s*([0-9a-f]+)$`, "m").exec(status)?.[1] ?? "0"}`)

/**
 * Reads `/proc/PID/status` (proc_pid_status(5)). What is not in it is none.
 *
 * ```ts import.meta.vitest
 * import { ProcessCapabilities } from "effect-microvm-runtime/process"
 * ProcessCapabilities.parse("CapEff:\t0000000000001400\nCapAmb:\t0000000000001000\n") // => { effective: 5120n, ambient: 4096n }
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const parse = (status: string): ProcessCapabilities => ({
  effective: field(status, "CapEff"),
  ambient: field(status, "CapAmb")
})

/**
 * What a command line begins with whose program is to have no capabilities, however it is started by who is not root. It takes
 * setpriv(1) of util-linux, and no right. The bounding set stays as it is, which gives nothing to who may get no new rights.
 *
 * @category constants
 * @since 0.1.0
 */
export const without: ReadonlyArray<string> = ["setpriv", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]
