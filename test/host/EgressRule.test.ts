import { assert, describe, it } from "@effect/vitest"
import { Cidr, EgressRule } from "effect-microvm-runtime/host"
import * as Arbitrary from "effect/Arbitrary"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { aggregate, elements } from "../../src/host/internal/egressSets.ts"

const remedy = (text: string): string =>
  Result.match(EgressRule.parse(text), { onSuccess: () => "", onFailure: (why) => why })
const texts = (...all: ReadonlyArray<string>) => Result.getOrThrow(EgressRule.parseAll(all)).map(EgressRule.format)

describe("EgressRule", () => {
  it("reads all that the grammar has", () => {
    for (
      const [text, canonical = text] of [
        ["10.0.0.0/8:443/tcp"],
        ["10.0.0.0/8"],
        ["10.0.0.0/8/tcp"],
        ["10.1.2.3"],
        ["10.1.2.3/32", "10.1.2.3"],
        ["10.1.2.3:1-65535/udp"],
        ["10.1.2.3:53-53/udp", "10.1.2.3:53/udp"],
        ["0.0.0.0/0:80/tcp"],
        ["[fd00::/8]:443/tcp"],
        ["[FD00:0:0::1]/udp", "[fd00::1]/udp"],
        ["[fd00::1/128]", "[fd00::1]"],
        ["example.com"],
        ["API.Example.com:443/tcp", "api.example.com:443/tcp"],
        ["*.example.com:8000-8099/tcp"],
        ["localhost/tcp"],
        ["_dmarc.xn--mnchen-3ya.example"],
        [`${"a".repeat(63)}.com`],
        [`${`${"a".repeat(49)}.`.repeat(5)}com`]
      ] as const
    ) {
      assert.strictEqual(Result.getOrThrow(Result.map(EgressRule.parse(text), EgressRule.format)), canonical)
    }
  })

  it("refuses the rest, and says what to give", () => {
    for (
      const [text, words] of [
        ["", "without spaces"],
        ["10.0.0.0/8 :443/tcp", "without spaces"],
        ["10.0.0.0/8:443", "say by which protocol: 10.0.0.0/8:443/tcp or 10.0.0.0/8:443/udp"],
        ["10.0.0.1/8:443/tcp", "give the network, 10.0.0.0/8, or the address, 10.0.0.1/32"],
        ["10.0.0.0/33", "from 0 to 32"],
        ["10.0.0.256", "from 0 to 255"],
        ["010.0.0.1", "leading zeros"],
        ["1.2.3", "four numbers"],
        ["1.2.3.4.5", "four numbers"],
        ["fd00::1", "in brackets: [fd00::1]"],
        ["fd00::/8:443/tcp", "in brackets: [fd00::/8]:443/tcp"],
        ["[fd00::1/8]", "give the network, fd00::/8"],
        ["[::ffff:10.0.0.1]:443/tcp", "give the IPv4 address: 10.0.0.1"],
        ["[::ffff:10.0.0.0/104]", "give the IPv4 network: 10.0.0.0/8"],
        ["[10.0.0.1]:443/tcp", "brackets are for IPv6"],
        ["[fe80::1%eth0]", "leave the zone away"],
        ["[example.com]", "brackets are for IPv6"],
        ["10.0.0.1:0/tcp", "no port 0"],
        ["10.0.0.1:65536/tcp", "1 to 65535"],
        ["10.0.0.1:80-79/tcp", "give the lower port first: 79-80"],
        ["10.0.0.1:080/tcp", "1 to 65535"],
        ["10.0.0.1:80,443/tcp", "1 to 65535"],
        ["10.0.0.1:http/tcp", "1 to 65535"],
        ["10.0.0.1:/tcp", "1 to 65535"],
        ["10.0.0.1:1-2-3/tcp", "1 to 65535"],
        ["10.0.0.1:80/TCP", "write tcp"],
        ["10.0.0.1/icmp", "leave it away for every protocol"],
        ["10.0.0.1:80/", "none of tcp and udp"],
        ["example.com/24", "a name has no /LENGTH"],
        ["example..com", "between two dots"],
        [".example.com", "between two dots"],
        ["example.com.", "leave the last dot away: example.com"],
        ["*", "comes first: *.example.com"],
        ["*.*.com", "comes first"],
        ["a.*.com", "comes first"],
        ["-a.com", "no part of a name"],
        ["a-.com", "no part of a name"],
        ["a b.com", "without spaces"],
        ["a$b.com", "no part of a name"],
        [`${"a".repeat(64)}.com`, "63 bytes at most, not 64"],
        [`${`${"a".repeat(49)}.`.repeat(5)}comm`, "253 bytes at most, this one has 254"],
        ["x".repeat(301), "300 letters at most"],
        ["münchen.example:443/tcp", "(IDNA): xn--mnchen-3ya.example"],
        ["*.münchen.example", "(IDNA): *.xn--mnchen-3ya.example"],
        ["https://example.com", "1 to 65535"]
      ] as const
    ) {
      assert.include(remedy(text), words, text)
    }
  })

  it("says all that is wrong with a rule, and with all rules", () => {
    assert.strictEqual(
      remedy("10.0.0.1/8:0/TCP"),
      "give the network, 10.0.0.0/8, or the address, 10.0.0.1/32; there is no port 0: give 1 to 65535, or leave the port away for all; write tcp"
    )
    const error = Result.getOrThrow(Result.flip(EgressRule.parseAll(["10.0.0.0/8", "1.2.3", "*"], "network.allow")))
    assert.strictEqual(
      error.message,
      "network.allow[1]: \"1.2.3\" cannot be: give four numbers from 0 to 255 for an address\n" +
        "network.allow[2]: \"*\" cannot be: a * stands for all names below one, and comes first: *.example.com"
    )
  })

  it("says once what is said twice or within another", () => {
    assert.deepStrictEqual(texts("10.0.0.0/8", "10.0.0.0/8:1/tcp", "10.0.0.0/8", "[fd00::/8]"), [
      "10.0.0.0/8",
      "[fd00::/8]"
    ])
    // Who has everything may still mean this one: the host's own address, say.
    assert.deepStrictEqual(texts("0.0.0.0/0", "10.0.0.1:1/tcp"), ["0.0.0.0/0", "10.0.0.1:1/tcp"])
    assert.deepStrictEqual(texts("10.0.0.0/8:80/tcp", "10.1.0.0/16:80-81/tcp"), [
      "10.0.0.0/8:80/tcp",
      "10.1.0.0/16:80-81/tcp"
    ])
    assert.deepStrictEqual(texts("*.a.com", "b.a.com:1/tcp", "*.b.a.com", "a.com", "ba.com"), [
      "*.a.com",
      "a.com",
      "ba.com"
    ])
  })

  it("knows which names a rule is for", () => {
    const [rule] = Result.getOrThrow(EgressRule.parseAll(["*.a.com:443/tcp"]))
    assert.isDefined(rule)
    if (rule === undefined) return
    assert.deepStrictEqual(
      ["b.a.com", "c.b.a.com", "a.com", "ba.com", "b.a.com.evil"].map((name) => EgressRule.allowsName(rule, name)),
      [true, true, false, false, false]
    )
    assert.deepStrictEqual(EgressRule.names([rule, rule]), ["*.a.com"])
  })
})

const between = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))

/** Small networks of one corner, so that they meet. */
const cidr = Arbitrary.map(
  Arbitrary.schema(Schema.Struct({ last: between(0, 31), prefix: between(27, 32) })),
  ({ last, prefix }) => Cidr.network({ family: 4, value: 0x0a000000n + BigInt(last) }, prefix)
)

const how = Arbitrary.schema(Schema.Struct({
  protocol: Schema.optionalKey(Schema.Literals(["tcp", "udp"])),
  first: Schema.optionalKey(between(1, 8)),
  more: between(0, 4)
}))

const rule = Arbitrary.map(
  Arbitrary.all([cidr, how]),
  ([network, { first, more, protocol }]): EgressRule.EgressRule => ({
    target: { _tag: "Network", cidr: network },
    ...(protocol !== undefined && { protocol }),
    ...(protocol !== undefined && first !== undefined && { ports: { first, last: first + more } })
  })
)

const anyRules = Arbitrary.map(
  Arbitrary.all([rule, rule, rule, rule, rule, rule, rule, rule]),
  (all) => all.slice(0, Number((all[0].target._tag === "Network" ? all[0].target.cidr.first : 0n) % 9n))
)

const anyCidrs = Arbitrary.all(Array.from({ length: 24 }, () => cidr))

const allows = (rules: ReadonlyArray<EgressRule.EgressRule>, value: bigint, protocol: string, port: number): boolean =>
  rules.some((one) =>
    one.target._tag === "Network" && Cidr.contains(one.target.cidr, { family: 4, value }) &&
    (one.protocol === undefined || one.protocol === protocol) &&
    (one.ports === undefined || (one.ports.first <= port && port <= one.ports.last))
  )

const isSame = (one: EgressRule.Target, other: EgressRule.Target): boolean =>
  one._tag === "Network" && other._tag === "Network" && Cidr.format(one.cidr) === Cidr.format(other.cidr)

const covers = (one: EgressRule.EgressRule, other: EgressRule.EgressRule): boolean =>
  [...everything()].every(([value, protocol, port]) =>
    !allows([other], value, protocol, port) || allows([one], value, protocol, port)
  )

const everything = function*() {
  for (let last = 0n; last < 32n; last++) {
    for (const protocol of ["tcp", "udp", "other"] as const) {
      for (let port = 1; port < 14; port++) yield [0x0a000000n + last, protocol, port] as const
    }
  }
}

describe("the elements of sets", () => {
  it.prop("what is written is read again", [rule], ([one]) => {
    assert.deepStrictEqual(Result.getOrThrow(EgressRule.parse(EgressRule.format(one))), one)
  })

  it.prop("merged rules allow the same, and none is within another of its target", [anyRules], ([all]) => {
    const merged = EgressRule.merge(all)
    for (const [value, protocol, port] of everything()) {
      assert.strictEqual(allows(merged, value, protocol, port), allows(all, value, protocol, port))
    }
    for (const one of merged) {
      assert.isFalse(merged.some((other) => one !== other && isSame(one.target, other.target) && covers(other, one)))
    }
  })

  it.prop("allow what the rules do, and have nothing in common", [anyRules], ([all]) => {
    const sets = Result.getOrThrow(elements(all, 4))
    for (const [value, protocol, port] of everything()) {
      const at = { family: 4, value } as const
      const inAny = sets.any.filter((one) => Cidr.contains(one.cidr, at)).length
      const inOwn = protocol === "other" ?
        0 :
        sets[protocol].filter((one) =>
          Cidr.contains(one.cidr, at) && one.ports !== undefined && one.ports.first <= port && port <= one.ports.last
        ).length
      assert.isAtMost(inAny, 1)
      assert.isAtMost(inOwn, 1)
      assert.strictEqual(inAny + inOwn > 0, allows(all, value, protocol, port))
    }
  })

  it.prop("are as few networks as can be", [anyCidrs], ([cidrs]) => {
    const found = aggregate(cidrs)
    for (const [index, one] of found.entries()) {
      for (const other of found.slice(index + 1)) {
        assert.isFalse(Cidr.overlaps(one, other))
        const whole = Cidr.network({ family: 4, value: one.first }, one.prefix - 1)
        assert.isFalse(one.prefix === other.prefix && Cidr.contains(whole, other))
      }
    }
    assert.deepStrictEqual(aggregate([]), [])
  })

  it("give up in time when there are too many", () => {
    const ranges = Array.from({ length: 12_000 }, (_, index): EgressRule.EgressRule => ({
      target: { _tag: "Network", cidr: { family: 4, first: BigInt(index) << 8n, prefix: 24 } },
      protocol: "tcp",
      ports: { first: 1 + index, last: 40_000 + index }
    }))
    assert.isTrue(Result.isFailure(elements(ranges, 4)))
  })
})
