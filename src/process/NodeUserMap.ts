/**
 * The users that we can become, as Node sees them.
 *
 * @since 0.1.0
 */
import { readFileSync } from "node:fs"
import { attempt } from "./internal/NodeErrno.ts"
import * as UserMap from "./UserMap.ts"

/**
 * Those that this process can become: see `UserMap.others`.
 *
 * ```ts import.meta.vitest
 * import { NodeUserMap } from "effect-microvm-runtime/process"
 * NodeUserMap.others().every(({ first, last }) => first <= last) // => true
 * ```
 *
 * @category operations
 * @since 0.1.0
 */
export const others = (): ReadonlyArray<UserMap.Range> =>
  UserMap.others((name) => attempt(() => readFileSync(`/proc/self/${name}`, "utf8")))
