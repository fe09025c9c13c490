import { describe, expect, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { BlockList, isIP } from "node:net"
import { Cidr } from "../../src/host/index.ts"

const cidr = (text: string) => Result.getOrThrow(Cidr.parse(text))
const address = (text: string) => Result.getOrThrow(Cidr.parseAddress(text))

// Long runs of zeros, of which some have the same length, among bits of all kinds.
const Group = Schema.Literals([0, 0, 0, 1, 0x0db8, 0xffff, 0x8000])
const AddressParts = Schema.Struct({
  family: Schema.Literals([4, 6]),
  groups: Schema.Array(Group).check(Schema.isMinLength(8), Schema.isMaxLength(8))
})

const anyAddress = Arbitrary.filter(
  Arbitrary.map(Arbitrary.schema(AddressParts), ({ family, groups }): Cidr.Address => ({
    family,
    value: groups.slice(family === 4 ? 6 : 0).reduce((value, group) => (value << 16n) | BigInt(group), 0n)
  })),
  ({ family, value }) => family === 4 || value >> 32n !== 0xffffn
)

const anyPrefix = Arbitrary.schema(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 128 })))

const anyCidr = Arbitrary.map(
  Arbitrary.all([anyAddress, anyPrefix]),
  ([one, prefix]) => Cidr.network(one, one.family === 4 ? prefix % 33 : prefix)
)

describe("Cidr.parse", () => {
  it.each([
    ["10.0.0.0/8", 4, 0x0a000000n, 8],
    ["172.30.0.42/32", 4, 0xac1e002an, 32],
    ["0.0.0.0/0", 4, 0n, 0],
    ["::/0", 6, 0n, 0],
    ["fd00:ec2::254/128", 6, 0xfd000ec2000000000000000000000254n, 128],
    ["FE80::/10", 6, 0xfe80n << 112n, 10],
    ["64:ff9b::1.2.3.4/128", 6, (0x64ff9bn << 96n) | 0x01020304n, 128]
  ])("reads %s", (text, family, first, prefix) => {
    expect(Cidr.parse(text)).toEqual(Result.succeed({ family, first, prefix }))
  })

  it.each([
    ["10.0.0.1/8", "give the network, 10.0.0.0/8, or the address, 10.0.0.1/32"],
    ["172.30.0.42/24", "give the network, 172.30.0.0/24, or the address, 172.30.0.42/32"],
    ["fd00::1/64", "give the network, fd00::/64, or the address, fd00::1/128"],
    ["10.0.0.0", "say how many bits count: 10.0.0.0/32"],
    ["fd00::1", "say how many bits count: fd00::1/128"],
    ["::ffff:10.0.0.1", "say how many bits count: 10.0.0.1/32"],
    ["10.0.0.0/33", "give a number from 0 to 32 after the slash"],
    ["fd00::/129", "give a number from 0 to 128 after the slash"],
    ["10.0.0.0/abc", "give a number from 0 to 32 after the slash"],
    ["10.0.0.0/", "give a number from 0 to 32 after the slash"],
    ["10.0.0.0/08", "give a number from 0 to 32 after the slash"],
    ["10.0.0.0/+8", "give a number from 0 to 32 after the slash"],
    ["10.0.0.0/8/8", "give a number from 0 to 32 after the slash"],
    ["10.0.0.0/255.0.0.0", "give a number from 0 to 32 after the slash"],
    ["::ffff:10.0.0.0/104", "give the IPv4 network: 10.0.0.0/8"],
    ["::ffff:a00:1/128", "give the IPv4 network: 10.0.0.1/32"],
    ["010.0.0.0/8", "leave leading zeros away: 10.0.0.0"],
    ["10.0.0.256/32", "give four numbers from 0 to 255"],
    ["fe80::1%eth0/64", "leave the zone away: fe80::1"],
    [" 10.0.0.0/8", "give an address such as 10.0.0.1 or fd00::1, and nothing else"],
    ["10.0.0.0/8\n", "give a number from 0 to 32 after the slash"],
    ["/64", "give an address such as 10.0.0.1 or fd00::1"],
    ["", "give an address such as 10.0.0.1 or fd00::1"],
    ["not-an-ip", "give an address such as 10.0.0.1 or fd00::1"],
    ["10.0.0/8", "give an address such as 10.0.0.1 or fd00::1"],
    ["0x0a000000/8", "give an address such as 10.0.0.1 or fd00::1"],
    ["1:2:3:4:5:6:7/64", "give an address such as 10.0.0.1 or fd00::1"],
    ["1:2:3:4:5:6:7:8:9/64", "give an address such as 10.0.0.1 or fd00::1"],
    ["1::2::3/64", "give an address such as 10.0.0.1 or fd00::1"],
    ["1:2:3:4::5:6:7:8/64", "give an address such as 10.0.0.1 or fd00::1"],
    [":::/64", "give an address such as 10.0.0.1 or fd00::1"],
    ["12345::/64", "give an address such as 10.0.0.1 or fd00::1"],
    ["1.2.3.4::/64", "give an address such as 10.0.0.1 or fd00::1"],
    [`${"0".repeat(100_000)}::/0`, "give an address such as 10.0.0.1 or fd00::1, and nothing else"]
  ])("refuses %s", (text, remedy) => {
    expect(Cidr.parse(text)).toEqual(Result.fail(remedy))
  })

  it.prop("reads what it writes", [anyCidr], ([one]) => {
    expect(Cidr.parse(Cidr.format(one))).toEqual(Result.succeed(one))
  })

  it.prop("writes addresses as the URL standard does (RFC 5952)", [anyAddress], ([one]) => {
    const text = Cidr.formatAddress(one)
    expect(isIP(text)).toBe(one.family)
    expect(new URL(`http://${one.family === 6 ? `[${text}]` : text}/`).hostname).toBe(
      one.family === 6 ? `[${text}]` : text
    )
    expect(Cidr.parseAddress(text)).toEqual(Result.succeed(one))
  })

  it.prop(
    "takes no text that is no address for one",
    [Schema.String.check(Schema.isPattern(/^[0-9a-f:.]{1,20}$/))],
    ([text]) => {
      if (Result.isSuccess(Cidr.parseAddress(text))) expect(isIP(text)).not.toBe(0)
    }
  )
})

describe("Cidr", () => {
  it.each([
    ["172.30.0.0/24", 255, "172.30.0.255"],
    ["172.30.0.0/24", 256, undefined],
    ["172.30.0.0/24", -1, undefined],
    ["10.0.0.1/32", 0, "10.0.0.1"],
    ["10.0.0.1/32", 1, undefined],
    ["fd00::/64", 0x1_0000, "fd00::1:0"]
  ])("nth of %s at %i is %s", (text, index, expected) => {
    expect(Option.map(Cidr.nth(cidr(text), index), Cidr.formatAddress)).toEqual(Option.fromUndefinedOr(expected))
  })

  it.each([["0.0.0.0/0", 2n ** 32n], ["10.0.0.1/32", 1n], ["fd00::/64", 2n ** 64n], ["::/0", 2n ** 128n]])(
    "size of %s is %i",
    (text, size) => {
      expect(Cidr.size(cidr(text))).toBe(size)
      expect(Cidr.last(cidr(text)).value - cidr(text).first + 1n).toBe(size)
    }
  )

  it.each([
    ["10.0.0.0/8", "10.255.0.0/16", true],
    ["10.0.0.0/8", "11.0.0.0/16", false],
    ["0.0.0.0/0", "::/0", false],
    ["::/0", "fd00::/8", true]
  ])("overlaps: %s and %s: %s", (one, other, expected) => {
    expect(Cidr.overlaps(cidr(one), cidr(other))).toBe(expected)
    expect(Cidr.overlaps(cidr(other), cidr(one))).toBe(expected)
  })

  it.prop("contains what Node's block lists do", [anyCidr, anyAddress], ([one, other]) => {
    // One that is near, so that both answers are frequent.
    const near: Cidr.Address = { family: one.family, value: one.first ^ (other.value & ((1n << 20n) - 1n)) }
    const list = new BlockList()
    list.addSubnet(Cidr.formatAddress({ family: one.family, value: one.first }), one.prefix, `ipv${one.family}`)
    expect(Cidr.contains(one, near)).toBe(list.check(Cidr.formatAddress(near), `ipv${one.family}`))
    expect(Cidr.contains(one, Cidr.network(near, near.family === 4 ? 32 : 128))).toBe(Cidr.contains(one, near))
  })

  it("is a plain string in JSON", () => {
    const codec = Schema.fromJsonString(Cidr.FromString)
    expect(Schema.decodeSync(codec)("\"10.0.0.0/8\"")).toEqual(cidr("10.0.0.0/8"))
    expect(Schema.encodeSync(codec)(cidr("fd00::/8"))).toBe("\"fd00::/8\"")
    expect(() => Schema.decodeSync(codec)("\"10.0.0.1/8\"")).toThrow("give the network, 10.0.0.0/8")
  })

  it("an address is in its networks", () => {
    expect(Cidr.contains(cidr("fd00::/8"), address("fd00::1"))).toBe(true)
    expect(Cidr.contains(cidr("10.0.0.0/8"), address("::a00:1"))).toBe(false)
  })
})
