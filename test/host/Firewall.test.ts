import { assert, describe, it } from "@effect/vitest"
import { Cidr, EgressRule, Firewall, HostCommands, HostError } from "effect-microvm-runtime/host"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"

const address = (text: string) => Result.getOrThrow(Cidr.parseAddress(text))
const rulesOf = (...texts: ReadonlyArray<string>) => Result.getOrThrow(EgressRule.parseAll(texts))

const machine: Firewall.Machine = {
  id: "web-1",
  token: "00000000000000aa",
  link: "mv-1",
  mac: "02:00:00:00:00:01",
  v4: { guest: address("172.30.0.1"), gateway: address("172.30.0.0") },
  rules: rulesOf("10.0.0.0/8:443/tcp")
}

const textOf = (one: Firewall.Machine, options?: Firewall.Options): string =>
  Result.getOrThrow(Firewall.plan([one], options))

/** The lines of one of a machine's chains, after that by which connections of another machine are none of its. */
const chainOf = (text: string, name: string): ReadonlyArray<string> => {
  const from = text.slice(text.lastIndexOf(`chain ${name}-00000000000000aa {`))
  const lines = from.slice(from.indexOf("\n"), from.indexOf("}")).trim().split("\n").map((line) => line.trim())
  assert.strictEqual(lines[0], "ct original zone != 171 goto deny")
  return lines.slice(1)
}

const faultsOf = (machines: ReadonlyArray<Firewall.Machine>, options?: Firewall.Options) =>
  Result.match(Firewall.plan(machines, options), {
    onSuccess: () => [],
    onFailure: ({ reason }) =>
      reason._tag === "InvalidArgument" ? reason.faults.map(({ field }) => field) : [reason._tag]
  })

/** What nft was told, and what it says to that. */
const scripted = (answer: (command: HostCommands.HostCommand) => Effect.Effect<string, HostError.HostError>) => {
  const told: Array<HostCommands.HostCommand> = []
  const layer = Firewall.layer({ table: "test", prefix: "mv-" }).pipe(
    Layer.provideMerge(HostCommands.layerScripted((command) => {
      told.push(command)
      return answer(command)
    }))
  )
  return { told, layer }
}

const stumbles = (stderr: string) =>
  HostError.fail(new HostError.CommandFailed({ program: "nft", what: "test", status: "exited with code 1", stderr }))

/** What the kernel has, as nft tells. */
const listing = (...machines: ReadonlyArray<Firewall.Machine>): string =>
  JSON.stringify({
    nftables: [{ metainfo: {} }, {
      map: {
        table: "test",
        name: "outside",
        elem: machines.map(({ link, token }) => [link, { goto: { target: `outside-${token}` } }])
      }
    }]
  })

const sets = (...names: ReadonlyArray<string>): string =>
  JSON.stringify({ nftables: names.map((name) => ({ set: { table: "test", name } })) })

describe("what nft is told", () => {
  it("has no rule but those that were asked for", () => {
    assert.deepStrictEqual(chainOf(textOf({ ...machine, rules: [] }), "outside"), ["goto deny"])
    assert.deepStrictEqual(chainOf(textOf({ ...machine, rules: [] }), "near"), ["goto deny"])
    assert.deepStrictEqual(
      chainOf(textOf({ ...machine, rules: rulesOf("10.0.0.0/8/udp", "[fd00::/8]", "1.2.3.4") }), "outside"),
      [
        "meta l4proto udp ct reply ip saddr 10.0.0.0/8 ct reply proto-src 0-65535 accept",
        "ct reply ip saddr 1.2.3.4/32 accept",
        "goto deny"
      ]
    )
  })

  it("gives each machine connections of its own, in one of all zones but that of everybody", () => {
    const zone = (token: string) =>
      /add element inet effect-microvm sources4 \{ .* : (\d+) \}/.exec(textOf({ ...machine, token }))
    assert.strictEqual(zone("00000000000000aa")?.[1], "171")
    assert.strictEqual(zone("0000000000000000")?.[1], "1")
    // 2 ** 64 - 1 is 65,535 times something.
    assert.strictEqual(zone("fffffffffffffffe")?.[1], "65535")
    assert.strictEqual(zone("ffffffffffffffff")?.[1], "1")
  })

  it("keeps the host, machines and metadata out of wide rules, and lets narrow ones through", () => {
    const pool = [Result.getOrThrow(Cidr.parse("172.30.0.0/16"))]
    const wide = textOf({ ...machine, rules: rulesOf("0.0.0.0/0:80/tcp", "169.254.169.254:80/tcp", "10.0.0.0/8") }, {
      pool
    })
    assert.strictEqual(
      chainOf(wide, "outside")[0],
      "ct reply ip saddr . meta nfproto @closed4 goto near-00000000000000aa"
    )
    assert.match(wide, /add element inet effect-microvm closed4 \{[^}]* 172\.30\.0\.0\/16 \. ipv4/)
    assert.deepStrictEqual(chainOf(wide, "near"), [
      "meta l4proto tcp ct reply ip saddr 169.254.169.254/32 ct reply proto-src 80 accept",
      "goto deny"
    ])
    // What is not wide is not looked up there.
    assert.notInclude(chainOf(textOf(machine, { pool }), "outside").join(), "closed")
    const within = textOf({ ...machine, rules: rulesOf("172.30.4.0/24:80/tcp") }, { pool })
    assert.include(chainOf(within, "near")[0], "172.30.4.0/24")
  })

  it("offers what is served by the gateway, and nothing else of it", () => {
    const text = textOf({
      ...machine,
      v6: { guest: address("fd30::1"), gateway: address("fd30::") },
      offers: [{ protocol: "udp", port: 53 }]
    })
    assert.deepStrictEqual(chainOf(text, "near"), [
      "meta l4proto udp ct reply ip saddr 172.30.0.0 ct reply proto-src 53 accept",
      "meta l4proto udp ct reply ip6 saddr fd30:: ct reply proto-src 53 accept",
      "goto deny"
    ])
  })

  it("puts many networks into one set", () => {
    const many = Array.from({ length: 5 }, (_, index) => `10.${index * 2}.0.0/16:443/tcp`)
    const text = textOf({ ...machine, rules: rulesOf(...many) })
    const [rule = "", last] = chainOf(text, "outside")
    assert.match(
      rule,
      /^meta l4proto tcp ct reply ip saddr \. ct reply proto-src @outside-tcp4-[0-9a-f]{16}-00000000000000aa accept$/
    )
    assert.strictEqual(last, "goto deny")
    assert.match(text, /10\.0\.0\.0\/16 \. 443,\s+10\.2\.0\.0\/16 \. 443/)
  })

  it("has a table for each prefix, so that one pool does not undo what another says", () => {
    assert.include(textOf(machine), "table inet effect-microvm {")
    assert.include(textOf(machine, { prefix: "mv1a2b-" }), "table inet effect-microvm-mv1a2b {")
    assert.include(textOf(machine, { prefix: "mv-", table: "mine" }), "table arp mine {")
  })

  it("refuses what cannot be, all of it at once", () => {
    assert.deepStrictEqual(
      faultsOf([
        { ...machine, token: "AA", link: "a-link-of-16-byt", mac: "03:00:00:00:00:01" },
        {
          id: "web-2",
          token: "00000000000000ab",
          link: `x" }`,
          mac: "02:00:00:00:00:1",
          rules: [],
          offers: [{ protocol: "tcp", port: 0 }]
        }
      ], { table: "a b", prefix: "*" }),
      [
        "table",
        "prefix",
        "web-1.token",
        "web-1.link",
        "web-1.mac",
        "web-2.link",
        "web-2.mac",
        "web-2.v4",
        "web-2.offers"
      ]
    )
    assert.deepStrictEqual(faultsOf([machine, { ...machine, id: "web-2" }]), ["token", "link"])
    const named = (name: string): Firewall.Machine => ({ ...machine, rules: [{ target: { _tag: "Name", name } }] })
    assert.deepStrictEqual(faultsOf([named(`a.com"; } flush ruleset`)]), ["web-1.rules[0]"])
    assert.deepStrictEqual(faultsOf([named("*.a.com")]), [])
    const swapped = { guest: address("fd30::1"), gateway: address("172.30.0.0") }
    assert.deepStrictEqual(
      faultsOf([{ ...machine, v4: swapped, v6: { guest: swapped.guest, gateway: swapped.guest } }]),
      [
        "web-1.v4.guest",
        "web-1.v6.guest"
      ]
    )
    assert.deepStrictEqual(faultsOf([{ ...machine, link: "fifteen-bytes-0" }]), [])
  })
})

describe("names", () => {
  it("lead inside only where a rule for a network does", () => {
    const { layer } = scripted(() => Effect.succeed(""))
    const ask = (rules: ReadonlyArray<string>, text: string): boolean =>
      Effect.runSync(
        Firewall.Firewall.use(({ mayLearn }) =>
          Effect.succeed(mayLearn({ ...machine, rules: rulesOf(...rules) }, address(text)))
        ).pipe(Effect.provide(layer))
      )
    assert.isTrue(ask([], "203.0.113.7"))
    assert.isTrue(ask([], "64:ff9b::cb00:7107"))
    for (
      const inside of [
        "10.0.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "fe80::1",
        "fd00:ec2::254",
        "::1",
        "198.18.0.1",
        "240.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b::c0a8:1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "fec0::1"
      ]
    ) {
      assert.isFalse(ask(["0.0.0.0/0", "[::/0]"], inside), inside)
    }
    assert.isTrue(ask(["10.0.0.0/16"], "10.0.0.1"))
    assert.isFalse(ask(["10.1.0.0/16"], "10.0.0.1"))
  })

  it.effect("opens only addresses that may be, for names that are in the rules, in whole seconds", () => {
    const { layer, told } = scripted(() => Effect.succeed(""))
    const named = { ...machine, rules: rulesOf("api.example.com:443/tcp") }
    return Effect.gen(function*() {
      const { learn } = yield* Firewall.Firewall
      const addresses = ["203.0.113.7", "10.0.0.1", "2001:db8::1"].map(address)
      yield* learn(named, { rules: ["api.example.com", "other.com"], addresses, keep: "1500 millis" })
      yield* learn(named, { rules: ["other.com"], addresses, keep: "1 minute" })
      yield* learn(named, { rules: ["api.example.com"], addresses: [address("10.0.0.1")], keep: "1 minute" })
      assert.lengthOf(told, 1)
      assert.match(
        told[0]?.input ?? "",
        /^add .* \{ 203\.0\.113\.7 \}\ndelete .*\nadd .* \{ 203\.0\.113\.7 timeout 2s \}\n$/
      )
    }).pipe(Effect.provide(layer))
  })
})

describe("the firewall", () => {
  it.effect("fills the sets before there are rules that look at them, when rules are replaced", () => {
    const { layer, told } = scripted(() => Effect.succeed(""))
    const many = rulesOf(...Array.from({ length: 5 }, (_, index) => `10.${index * 2}.0.0/16:443/tcp`))
    return Effect.gen(function*() {
      const { replace } = yield* Firewall.Firewall
      yield* replace(machine, { ...machine, rules: many })
      const [fill = "", enact = ""] = told.map(({ input }) => input)
      assert.lengthOf(told, 2)
      assert.notInclude(fill, "chain")
      assert.match(fill, /^add set inet test outside-tcp4-/)
      assert.notMatch(enact, /(flush|add) (set|element) inet test outside-tcp4/)
      yield* replace({ ...machine, rules: many }, machine)
      assert.match(told[3]?.input ?? "", /delete set inet test outside-tcp4-/)
      const error = yield* Effect.flip(replace(machine, { ...machine, link: "mv-2" }))
      assert.include(error.message, "web-1.link: \"mv-2\" cannot be: leave it mv-1")
    }).pipe(Effect.provide(layer))
  })

  it.effect("removes those of its own that the table leads to, and the table with the last", () => {
    const other = { ...machine, token: "00000000000000bb", link: "mv-2" }
    let left: ReadonlyArray<Firewall.Machine> = [machine, other]
    const { layer, told } = scripted(({ args, input = "" }) => {
      if (args[0] === "-j") {
        return Effect.succeed(
          args.includes("-t")
            ? sets("covered", `learned4-x-${machine.token}`, `used4-x-${other.token}`)
            : listing(...left)
        )
      }
      left = left.filter(({ token }) => !input.includes(`delete chain inet test outside-${token}`))
      return Effect.succeed("")
    })
    return Effect.gen(function*() {
      const { claim } = yield* Firewall.Firewall
      const claims = yield* Effect.forEach(
        [machine, { ...machine, token: "00000000000000cc" }],
        (one) =>
          Effect.map(Schema.decodeUnknownEffect(Firewall.rules.data)(claim(one).data), (data) => ({
            owner: { id: one.id, token: one.token, bootId: "this" },
            data
          }))
      )
      const dry = yield* Firewall.rules.reclaim(claims, { dryRun: true })
      assert.deepStrictEqual(dry.map(({ _tag }) => _tag), ["Released", "Absent"])
      assert.lengthOf(told, 1)
      const first = yield* Firewall.rules.reclaim(claims, { dryRun: false })
      assert.deepStrictEqual(first.map(({ _tag }) => _tag), ["Released", "Absent"])
      const removal = told.find(({ input = "" }) => input.includes("delete chain"))?.input ?? ""
      assert.include(removal, `delete set inet test learned4-x-${machine.token}\n`)
      assert.include(removal, "delete element inet test sources4 { \"mv-1\" . 02:00:00:00:00:01 . 172.30.0.1 : 171 }")
      assert.notInclude(removal, other.token)
      assert.notInclude(removal, "mv-2")
      assert.notInclude(told.map(({ input = "" }) => input).join(), "delete table")
      const { uninstall } = yield* Firewall.Firewall
      told.splice(0)
      yield* uninstall([other])
      const [last = "", ...more] = told.flatMap(({ input = [] }) => input)
      assert.deepStrictEqual(more, [])
      assert.include(last, `flush chain inet test outside-${other.token}\n`)
      assert.include(last, "delete table inet test")
    }).pipe(Effect.provide(layer))
  })

  it.effect("leaves the table to who has come when the last machine was to go with it", () => {
    const other = { ...machine, token: "00000000000000bb", link: "mv-2" }
    let left: ReadonlyArray<Firewall.Machine> = [machine]
    const { layer, told } = scripted(({ args, input = "" }) => {
      if (args.includes("-t")) return Effect.succeed(sets())
      if (args[0] === "-j") return Effect.succeed(listing(...left))
      if (input.includes("delete table")) {
        left = [machine, other]
        return stumbles("Error: Could not process rule: Device or resource busy")
      }
      left = left.filter(({ token }) => !input.includes(`delete chain inet test outside-${token}`))
      return Effect.succeed("")
    })
    return Effect.gen(function*() {
      yield* Firewall.Firewall.use(({ uninstall }) => uninstall([machine]))
      assert.deepStrictEqual(left, [other])
      assert.lengthOf(told.filter(({ input = "" }) => input.includes("delete table")), 1)
    }).pipe(Effect.provide(layer))
  })

  it.effect("leaves the claims where they are when nft fails or hangs", () =>
    Effect.gen(function*() {
      const claims = [{
        owner: { id: "web-1", token: machine.token, bootId: "this" },
        data: { table: "test", link: "mv-1", mac: machine.mac, masquerade: true }
      }]
      for (const mishap of ["fails before", "hangs before"] as const) {
        const works = HostCommands.layerScripted(({ args }) =>
          Effect.succeed(args.includes("-t") ? sets() : args[0] === "-j" ? listing(machine) : "")
        )
        // The listing works, the removal never does.
        const faulty = HostCommands.layerFaulty((_, { args }) => args[0] === "-f" ? mishap : undefined).pipe(
          Layer.provide(works)
        )
        const fiber = yield* Effect.forkChild(
          Firewall.rules.reclaim(claims, { dryRun: false }).pipe(Effect.provide(faulty))
        )
        yield* TestClock.adjust("10 minutes")
        const [verdict] = yield* Fiber.join(fiber)
        assert.strictEqual(verdict?._tag, "Stuck")
      }
    }))

  it.effect("says what stands in the way", () =>
    Effect.gen(function*() {
      for (
        const [stderr, tag] of [
          ["Error: Could not process rule: File exists", "Conflict"],
          ["netlink: Error: cache initialization failed: Operation not permitted", "Unavailable"],
          ["/dev/stdin:40:5-49: Error: Could not process rule: Operation not supported", "Unavailable"],
          ["/dev/stdin:1:1-3: Error: syntax error", "CommandFailed"]
        ] as const
      ) {
        const { layer } = scripted(() => stumbles(stderr))
        const error = yield* Effect.flip(
          Firewall.Firewall.use(({ install }) => install([machine])).pipe(Effect.provide(layer))
        )
        assert.strictEqual(error.reason._tag, tag)
      }
      const nothing = scripted(() => stumbles("Error: No such file or directory"))
      assert.deepStrictEqual(
        yield* Firewall.Firewall.use(({ list }) => list).pipe(Effect.provide(nothing.layer)),
        []
      )
      const odd = scripted(() => Effect.succeed("no JSON"))
      const error = yield* Effect.flip(Firewall.Firewall.use(({ list }) => list).pipe(Effect.provide(odd.layer)))
      assert.include(error.message, "told what we do not understand")
      const wrong = yield* Effect.flip(
        Firewall.Firewall.use(() => Effect.void).pipe(
          Effect.provide(
            Firewall.layer({ table: "A B" }).pipe(Layer.provide(HostCommands.layerScripted(() => Effect.succeed(""))))
          )
        )
      )
      assert.strictEqual(wrong.reason._tag, "InvalidArgument")
    }))
})
