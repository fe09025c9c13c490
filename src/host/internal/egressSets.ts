/** Rules for networks, as the elements of sets that have no two elements in common: nft takes no others. */
import * as Result from "effect/Result"
import * as Cidr from "../Cidr.ts"
import type { EgressRule, Protocol } from "../EgressRule.ts"

/** What may be reached on a network: all, or these ports. */
export interface Element {
  readonly cidr: Cidr.Cidr
  readonly ports?: { readonly first: number; readonly last: number }
}

/** By which protocol; `any` is everything. */
export type Elements = Readonly<Record<Protocol | "any", ReadonlyArray<Element>>>

/** As many as one machine may have, of a protocol: about what the kernel takes in a second. */
export const most = 50_000

/** Looks at a rule while its elements are found: ranges of ports that overlap each other by the thousand end here. */
const mostLooks = 2_000_000

const tooMany = Result.fail(undefined)

/** The same addresses in as few networks as can be, none of which overlap, from the lowest on. All of one family. */
export const aggregate = (cidrs: ReadonlyArray<Cidr.Cidr>): ReadonlyArray<Cidr.Cidr> => {
  const sorted = cidrs.toSorted((a, b) => a.first === b.first ? a.prefix - b.prefix : a.first < b.first ? -1 : 1)
  const found: Array<Cidr.Cidr> = []
  for (const cidr of sorted) {
    const before = found.at(-1)
    if (before !== undefined && Cidr.contains(before, cidr)) continue
    found.push(cidr)
    // Two halves are one whole, which may be a half again.
    for (;;) {
      const [low, high] = found.slice(-2)
      if (low === undefined || high === undefined || low.prefix !== high.prefix || low.prefix === 0) break
      const whole = { ...low, prefix: low.prefix - 1 }
      if (Cidr.network({ family: low.family, value: low.first }, whole.prefix).first !== low.first) break
      if (!Cidr.contains(whole, high)) break
      found.splice(-2, 2, whole)
    }
  }
  return found
}

const same = (one: ReadonlyArray<Cidr.Cidr>, other: ReadonlyArray<Cidr.Cidr>): boolean =>
  one.length === other.length &&
  one.every((cidr, index) => cidr.first === other[index]?.first && cidr.prefix === other[index].prefix)

interface Stretch {
  readonly first: number
  last: number
  readonly cidrs: ReadonlyArray<Cidr.Cidr>
}

/** From port to port, the networks that are open there. Fails when it gets too many. */
const byPort = (elements: ReadonlyArray<Required<Element>>): Result.Result<ReadonlyArray<Element>, void> => {
  const starts = Map.groupBy(elements, ({ ports }) => ports.first)
  const ends = Map.groupBy(elements, ({ ports }) => ports.last + 1)
  const edges = [...new Set([...starts.keys(), ...ends.keys()])].toSorted((a, b) => a - b)
  const open = new Set<Required<Element>>()
  const stretches: Array<Stretch> = []
  let count = 0
  let looks = 0
  for (const [index, edge] of edges.entries()) {
    ends.get(edge)?.forEach((element) => open.delete(element))
    starts.get(edge)?.forEach((element) => open.add(element))
    if (open.size === 0) continue
    looks += open.size
    if (looks > mostLooks) return tooMany
    const cidrs = aggregate([...open].map(({ cidr }) => cidr))
    const last = (edges[index + 1] ?? 65536) - 1
    const before = stretches.at(-1)
    if (before !== undefined && before.last === edge - 1 && same(before.cidrs, cidrs)) {
      before.last = last
      continue
    }
    stretches.push({ first: edge, last, cidrs })
    count += cidrs.length
    if (count > most) return tooMany
  }
  return Result.succeed(
    stretches.flatMap(({ cidrs, first, last }) => cidrs.map((cidr) => ({ cidr, ports: { first, last } })))
  )
}

/** Fails when it takes more than `most` elements, or too long to find them. */
export const elements = (
  rules: ReadonlyArray<EgressRule>,
  family: Cidr.Family
): Result.Result<Elements, void> => {
  const open = rules.flatMap(({ ports = { first: 0, last: 65535 }, protocol, target }) =>
    target._tag === "Network" && target.cidr.family === family
      ? [{ cidr: target.cidr, ports, protocol }]
      : []
  )
  const any = aggregate(open.filter(({ protocol }) => protocol === undefined).map(({ cidr }) => cidr))
  if (any.length > most) return tooMany
  return Result.map(
    Result.all([
      byPort(open.filter(({ protocol }) => protocol === "tcp")),
      byPort(open.filter(({ protocol }) => protocol === "udp"))
    ]),
    ([tcp, udp]) => ({ any: any.map((cidr) => ({ cidr })), tcp, udp })
  )
}
