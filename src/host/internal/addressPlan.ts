/** Which addresses a place in a pool stands for. All of it is arithmetic. */
import * as Arr from "effect/Array"
import type * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Cidr from "../Cidr.ts"
import type { Fault } from "../HostError.ts"

export interface Pool {
  /** Four hexadecimal digits. */
  readonly id: string
  readonly ipv4: Cidr.Cidr
  readonly ipv6: Cidr.Cidr
}

const network = (text: string): Cidr.Cidr => Result.getOrThrow(Cidr.parse(text))

/** The one of the crate first. Docker takes 172.17.0.0/16 to 172.31.0.0/16 in that order, VPNs prefer the ends of 10.0.0.0/8. */
export const CANDIDATES = Arr.map(["172.30.0.0/16", "10.172.0.0/16", "198.18.0.0/16"] as const, network)

const unusable4 = ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"].map(network)
const usable6 = ["fc00::/7", "2000::/3"].map(network)

/** Pairs of addresses, but for the first, which holds the all-zero host, an anycast address in IPv6 (RFC 4291, 2.6.1). */
export const sizeOf = ({ ipv4, ipv6 }: Pick<Pool, "ipv4" | "ipv6">): number => {
  const pairs = [ipv4, ipv6].map((cidr) => Cidr.size(cidr) / 2n - 1n)
  return Number(pairs.reduce((least, one) => one < least ? one : least))
}

export const check4 = (text: string): Result.Result<Cidr.Cidr, Fault> => {
  const fault = (remedy: string) => Result.fail({ field: "ipv4", value: text, remedy })
  const cidr = Cidr.parse(text)
  if (Result.isFailure(cidr)) return fault(cidr.failure)
  const { family, prefix } = cidr.success
  if (family !== 4) return fault("give a network of IPv4")
  if (prefix < 8 || prefix > 30) return fault("give a network of length 8 to 30: a machine takes two addresses")
  if (unusable4.some((one) => Cidr.overlaps(one, cidr.success))) {
    return fault("give a network of unicast addresses that are routed, such as 172.30.0.0/16")
  }
  return Result.succeed(cidr.success)
}

export const check6 = (text: string): Result.Result<Cidr.Cidr, Fault> => {
  const fault = (remedy: string) => Result.fail({ field: "ipv6", value: text, remedy })
  const cidr = Cidr.parse(text)
  if (Result.isFailure(cidr)) return fault(cidr.failure)
  const { family, prefix } = cidr.success
  if (family !== 6) return fault("give a network of IPv6")
  if (prefix < 32 || prefix > 126) return fault("give a network of length 32 to 126: a machine takes two addresses")
  if (!usable6.some((one) => Cidr.contains(one, cidr.success))) {
    return fault("give a network of unicast addresses that are routed, such as fd12:3456:789a::/64")
  }
  return Result.succeed(cidr.success)
}

/** A network of site-local addresses (RFC 4193) from 40 random bits. */
export const uniqueLocal = (random: bigint): Cidr.Cidr => ({
  family: 6,
  first: (0xfdn << 120n) | (BigInt.asUintN(40, random) << 80n),
  prefix: 64
})

export const prefixOf = (id: string): string => `mv${id}-`

const pair = ({ family, first }: Cidr.Cidr, index: number) => {
  const host = first + 2n * BigInt(index)
  return { host: { family, value: host }, guest: { family, value: host + 1n } }
}

/** A locally administered unicast address: the pool's id and the index in it. */
const macOf = (id: string, index: number): string => {
  const hex = `02${id}${index.toString(16).padStart(6, "0")}`
  return Arr.makeBy(6, (at) => hex.slice(2 * at, 2 * at + 2)).join(":")
}

export const allocation = ({ id, ipv4, ipv6 }: Pool, index: number) => ({
  index,
  tap: `${prefixOf(id)}${index}`,
  mac: macOf(id, index),
  v4: { ...pair(ipv4, index), prefix: 31 },
  v6: { ...pair(ipv6, index), prefix: 127 }
})

/** A network of the usual size that nobody has. */
export const free = (occupied: ReadonlyArray<Occupied>): Option.Option<Cidr.Cidr> =>
  Arr.findFirst(
    [...CANDIDATES, ...Arr.makeBy(256, (nth) => network(`10.${(173 + nth) % 256}.0.0/16`)), network("192.168.0.0/16")],
    (one) => collision(one, occupied, undefined) === undefined
  )

/** The text of a pool, as it is kept. */
export const write = ({ id, ipv4, ipv6 }: Pool): string => [id, Cidr.format(ipv4), Cidr.format(ipv6)].join(" ")

export const read = (text: string): Pool | undefined => {
  const [id = "", four = "", six = "", ...rest] = text.split(" ")
  const ipv4 = check4(four)
  const ipv6 = check6(six)
  if (!/^[0-9a-f]{4}$/.test(id) || Result.isFailure(ipv4) || Result.isFailure(ipv6) || rest.length > 0) return undefined
  return { id, ipv4: ipv4.success, ipv6: ipv6.success }
}

/** Which route or address of the host gets in the way of a network, if any. */
export interface Occupied {
  readonly dev: string
  readonly where: Cidr.Cidr
  readonly what: string
}

export const collision = (
  cidr: Cidr.Cidr,
  occupied: ReadonlyArray<Occupied>,
  ownPrefix: string | undefined
): Occupied | undefined =>
  occupied.find(({ dev, where }) =>
    where.prefix > 0 && Cidr.overlaps(where, cidr) && !(ownPrefix !== undefined && dev.startsWith(ownPrefix))
  )
