/**
 * Addresses and networks of IPv4 and IPv6, written in one way only.
 *
 * What could be read in two ways is refused with the text to give instead: host bits that are set, leading zeros (octal to
 * some), zone ids, and IPv6 in which IPv4 is wrapped (`::ffff:10.0.0.1`, RFC 4291, 2.5.5.2), which would pass by rules for IPv4.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaIssue from "effect/SchemaIssue"
import * as SchemaTransformation from "effect/SchemaTransformation"

/**
 * @category models
 * @since 0.1.0
 */
export type Family = 4 | 6

/**
 * One address: `value` is its 32 or 128 bits.
 *
 * @category models
 * @since 0.1.0
 */
export interface Address {
  readonly family: Family
  readonly value: bigint
}

/**
 * All addresses whose first `prefix` bits are those of `first`. The other bits of `first` are zero.
 *
 * @category models
 * @since 0.1.0
 */
export interface Cidr {
  readonly family: Family
  readonly first: bigint
  readonly prefix: number
}

/** The longest text of an address, `0000:0000:0000:0000:0000:ffff:255.255.255.255`, and then some. */
const longest = 64

const shapes = "an address such as 10.0.0.1 or fd00::1"

const bitsOf = (family: Family): number => family === 4 ? 32 : 128

/** As many bits of host as there are, all set. */
const hostBits = (family: Family, prefix: number): bigint => (1n << BigInt(bitsOf(family) - prefix)) - 1n

const join = (parts: ReadonlyArray<number>, bits: number): bigint =>
  parts.reduce((value, part) => (value << BigInt(bits)) | BigInt(part), 0n)

const quad = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/

const parse4 = (text: string): Result.Result<bigint, string> => {
  const parts = quad.exec(text)?.slice(1)
  if (parts === undefined) return Result.fail(`give ${shapes}`)
  const plain = parts.map(Number)
  if (plain.some((part) => part > 255)) return Result.fail("give four numbers from 0 to 255")
  const canonical = plain.join(".")
  return canonical === text ? Result.succeed(join(plain, 8)) : Result.fail(`leave leading zeros away: ${canonical}`)
}

/** The sixteen-bit groups of one side of `::`. The last of all may be a dotted quad. */
const groups = (text: string): Array<number> | undefined => {
  if (text === "") return []
  const found: Array<number> = []
  for (const part of text.split(":")) {
    if (!/^[0-9a-f]{1,4}$/i.test(part)) return undefined
    found.push(parseInt(part, 16))
  }
  return found
}

const parse6 = (text: string): Result.Result<bigint, string> => {
  const wrong = Result.fail(`give ${shapes}`)
  if (text.includes("%")) return Result.fail(`leave the zone away: ${text.slice(0, text.indexOf("%"))}`)
  let hex = text
  const dotted = text.slice(text.lastIndexOf(":") + 1)
  if (dotted.includes(".")) {
    const low = parse4(dotted)
    if (Result.isFailure(low)) return low
    hex = `${text.slice(0, -dotted.length)}${(low.success >> 16n).toString(16)}:${(low.success & 0xffffn).toString(16)}`
  }
  const sides = hex.split("::")
  const left = groups(sides[0] ?? "")
  const right = groups(sides[1] ?? "")
  if (left === undefined || right === undefined || sides.length > 2) return wrong
  const missing = 8 - left.length - right.length
  if (sides.length === 2 ? missing < 1 : missing !== 0) return wrong
  return Result.succeed(join([...left, ...Array.from({ length: missing }, () => 0), ...right], 16))
}

const isMapped = (value: bigint): boolean => value >> 32n === 0xffffn

const unmapped = (value: bigint): string => formatAddress({ family: 4, value: value & 0xffffffffn })

/** An address, in which IPv4 may be wrapped still. */
const read = (text: string): Result.Result<Address, string> => {
  if (text.length > longest || /\s/.test(text)) return Result.fail(`give ${shapes}, and nothing else`)
  const family = text.includes(":") ? 6 : 4
  return Result.map(family === 6 ? parse6(text) : parse4(text), (value) => ({ family, value }))
}

/**
 * Reads an address, or says what to give instead.
 *
 * ```ts import.meta.vitest
 * import { Cidr } from "effect-microvm-runtime/host"
 * import * as Result from "effect/Result"
 * Result.map(Cidr.parseAddress("FD00:0::1"), Cidr.formatAddress) // => Result.succeed("fd00::1")
 * Cidr.parseAddress("::ffff:10.0.0.1") // => Result.fail("give the IPv4 address: 10.0.0.1")
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const parseAddress = (text: string): Result.Result<Address, string> =>
  Result.flatMap(read(text), (address) =>
    address.family === 6 && isMapped(address.value)
      ? Result.fail(`give the IPv4 address: ${unmapped(address.value)}`)
      : Result.succeed(address))

/**
 * Reads a network, or says what to give instead.
 *
 * ```ts import.meta.vitest
 * import { Cidr } from "effect-microvm-runtime/host"
 * import * as Result from "effect/Result"
 * Cidr.parse("10.0.0.0/8") // => Result.succeed({ family: 4, first: 0x0a000000n, prefix: 8 })
 * Cidr.parse("10.0.0.1/8") // => Result.fail("give the network, 10.0.0.0/8, or the address, 10.0.0.1/32")
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const parse = (text: string): Result.Result<Cidr, string> => {
  const slash = text.indexOf("/")
  const address = read(slash < 0 ? text : text.slice(0, slash))
  if (Result.isFailure(address)) return Result.fail(address.failure)
  const { family, value } = address.success
  const bits = bitsOf(family)
  const length = slash < 0 ? "" : text.slice(slash + 1)
  const mapped = family === 6 && isMapped(value)
  if (slash < 0) {
    return Result.fail(
      `say how many bits count: ${mapped ? `${unmapped(value)}/32` : `${formatAddress(address.success)}/${bits}`}`
    )
  }
  if (!/^(0|[1-9]\d{0,2})$/.test(length) || Number(length) > bits) {
    return Result.fail(`give a number from 0 to ${bits} after the slash`)
  }
  const prefix = Number(length)
  const cidr = network(address.success, prefix)
  if (mapped && prefix >= 96) {
    return Result.fail(
      `give the IPv4 network: ${format(network({ family: 4, value: value & 0xffffffffn }, prefix - 96))}`
    )
  }
  return cidr.first === value
    ? Result.succeed(cidr)
    : Result.fail(`give the network, ${format(cidr)}, or the address, ${formatAddress(address.success)}/${bits}`)
}

/**
 * The network of that length that an address is in.
 *
 * @category constructors
 * @since 0.1.0
 */
export const network = (address: Address, prefix: number): Cidr => ({
  family: address.family,
  first: address.value & ~hostBits(address.family, prefix),
  prefix
})

/**
 * The text of an address: that of RFC 5952 for IPv6.
 *
 * @category accessors
 * @since 0.1.0
 */
export const formatAddress = ({ family, value }: Address): string => {
  const width = family === 4 ? 8n : 16n
  const count = family === 4 ? 4 : 8
  const parts = Array.from(
    { length: count },
    (_, index) => (value >> (width * BigInt(count - 1 - index))) & ((1n << width) - 1n)
  )
  if (family === 4) return parts.join(".")
  const hex = parts.map((part) => part.toString(16))
  // The longest run of zeros, the first of equals, never one alone (RFC 5952, 4.2).
  let start = 0
  let length = 1
  for (let from = 0; from < count; from++) {
    let to = from
    while (to < count && parts[to] === 0n) to++
    if (to - from > length) {
      start = from
      length = to - from
    }
  }
  return length < 2 ? hex.join(":") : `${hex.slice(0, start).join(":")}::${hex.slice(start + length).join(":")}`
}

/**
 * The text of a network, which `parse` reads.
 *
 * @category accessors
 * @since 0.1.0
 */
export const format = (cidr: Cidr): string =>
  `${formatAddress({ family: cidr.family, value: cidr.first })}/${cidr.prefix}`

/**
 * How many addresses there are, the first and the last counted.
 *
 * @category accessors
 * @since 0.1.0
 */
export const size = (cidr: Cidr): bigint => hostBits(cidr.family, cidr.prefix) + 1n

/**
 * @category accessors
 * @since 0.1.0
 */
export const last = (cidr: Cidr): Address => ({
  family: cidr.family,
  value: cidr.first | hostBits(cidr.family, cidr.prefix)
})

/**
 * The address at an index from 0 on; none beyond the last.
 *
 * ```ts import.meta.vitest
 * import { Cidr } from "effect-microvm-runtime/host"
 * import * as Option from "effect/Option"
 * import * as Result from "effect/Result"
 * const cidr = Result.getOrThrow(Cidr.parse("172.30.0.0/24"))
 * Option.map(Cidr.nth(cidr, 255), Cidr.formatAddress) // => Option.some("172.30.0.255")
 * Cidr.nth(cidr, 256) // => Option.none()
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const nth = (cidr: Cidr, index: number | bigint): Option.Option<Address> =>
  index < 0 || index >= size(cidr)
    ? Option.none()
    : Option.some({ family: cidr.family, value: cidr.first + BigInt(index) })

/**
 * Is the address, or all of the network, in that one?
 *
 * @category predicates
 * @since 0.1.0
 */
export const contains = (cidr: Cidr, what: Address | Cidr): boolean =>
  cidr.family === what.family &&
  ("value" in what
    ? (what.value & ~hostBits(cidr.family, cidr.prefix)) === cidr.first
    : what.prefix >= cidr.prefix && (what.first & ~hostBits(cidr.family, cidr.prefix)) === cidr.first)

/**
 * Have they an address in common?
 *
 * @category predicates
 * @since 0.1.0
 */
export const overlaps = (one: Cidr, other: Cidr): boolean => contains(one, other) || contains(other, one)

/**
 * A network as its text, in JSON and configuration.
 *
 * @category schemas
 * @since 0.1.0
 */
export const FromString: Schema.Codec<Cidr, string> = Schema.String.pipe(Schema.decodeTo(
  Schema.Struct({ family: Schema.Literals([4, 6]), first: Schema.BigInt, prefix: Schema.Int }),
  SchemaTransformation.transformEffect({
    decode: (text, options) =>
      Result.match(parse(text), {
        onSuccess: Effect.succeed,
        onFailure: (remedy) => Effect.fail(new SchemaIssue.InvalidValue({ message: remedy }, undefined, options))
      }),
    encode: (cidr) => Effect.succeed(format(cidr))
  })
))
