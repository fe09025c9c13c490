/**
 * The users that root can become: in a container without root's rights they are few, or none (user_namespaces(7)).
 *
 * @since 0.1.0
 */
import * as ProcessCapabilities from "./ProcessCapabilities.ts"

/**
 * Users, each with the group of its number, from the first to the last.
 *
 * @category models
 * @since 0.1.0
 */
export interface Range {
  readonly first: number
  readonly last: number
}

const parse = (map: string): ReadonlyArray<Range> =>
  map.split("\n").flatMap((line) => {
    const [, first, count] = /^\s*(\d+)\s+\d+\s+(\d+)\s*$/.exec(line) ?? []
    return first === undefined ? [] : [{ first: Number(first), last: Number(first) + Number(count) - 1 }]
  })

/** CAP_SETGID and CAP_SETUID (capabilities(7)). */
const needed = 0b1100_0000n

/**
 * The users that root of this namespace can become, by what is in `/proc/self`. Where a file is not there, as the kernel has no user
 * namespaces, it does not count.
 *
 * ```ts import.meta.vitest
 * import { UserMap } from "effect-microvm-runtime/process"
 * const map = "         0       1000          1\n         1     100000      65536\n"
 * const files = new Map([["status", "CapEff:\t00000000a80425fb\n"], ["uid_map", map], ["gid_map", map], ["setgroups", "allow\n"]])
 * UserMap.others((name) => files.get(name)) // => [{ first: 0, last: 0 }, { first: 1, last: 65536 }]
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const others = (read: (name: string) => string | undefined): ReadonlyArray<Range> => {
  const { effective } = ProcessCapabilities.parse(read("status") ?? "")
  if ((effective & needed) !== needed || read("setgroups")?.trim() === "deny") return []
  const all = "0 0 4294967295"
  const groups = parse(read("gid_map") ?? all)
  return parse(read("uid_map") ?? all).flatMap((users) =>
    groups.map(({ first, last }) => ({ first: Math.max(first, users.first), last: Math.min(last, users.last) }))
      .filter(({ first, last }) => first <= last)
  )
}

/**
 * Are all of these among them?
 *
 * ```ts import.meta.vitest
 * import { UserMap } from "effect-microvm-runtime/process"
 * UserMap.covers([{ first: 0, last: 65535 }], { first: 65534, last: 65536 }) // => false
 * ```
 *
 * @category guards
 * @since 0.1.0
 */
export const covers = (ranges: ReadonlyArray<Range>, { first, last }: Range): boolean =>
  ranges.some((range) => range.first <= first && last <= range.last)
