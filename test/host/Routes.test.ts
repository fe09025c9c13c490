import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import { Cidr, HostCommands, HostError, KernelSettings, Routes } from "../../src/host/index.ts"

interface Host {
  readonly route4?: unknown
  readonly route6?: unknown
  readonly mtu?: number
  /** What is listed of a family. */
  readonly listed?: Readonly<Record<string, ReadonlyArray<unknown>>>
  readonly mtus?: Readonly<Record<string, number>>
  readonly settings: Readonly<Record<string, string>>
}

const unreachable = HostError.fail(
  new HostError.CommandFailed({
    program: "ip",
    what: "a look-up",
    status: "exited with code 2",
    stderr: "RTNETLINK answers: Network is unreachable\n"
  })
)

const on = (host: Host) => {
  const values = new Map(Object.entries(host.settings))
  const commands = HostCommands.layerScripted(({ args }) => {
    if (args.includes("link")) {
      return Effect.succeed(
        JSON.stringify([{ ifname: args.at(-1), mtu: host.mtus?.[args.at(-1) ?? ""] ?? host.mtu ?? 1_500 }])
      )
    }
    if (args.includes("show")) return Effect.succeed(JSON.stringify(host.listed?.[args[1] ?? ""] ?? []))
    const route = args.includes("1.1.1.1") ? host.route4 : host.route6
    return route === undefined ? unreachable : Effect.succeed(JSON.stringify([route]))
  })
  const layer = Layer.fresh(Routes.layer).pipe(Layer.provide([commands, KernelSettings.layerMemory(values)]))
  return {
    values,
    facts: Effect.provide(Routes.Routes.use((routes) => routes.facts()), layer),
    towards: (...networks: ReadonlyArray<string>) =>
      Effect.provide(
        Routes.Routes.use((routes) => routes.facts(networks.map((one) => Result.getOrThrow(Cidr.parse(one))))),
        layer
      ),
    prepare: (options: Routes.Options) => Effect.provide(Routes.Routes.use((routes) => routes.prepare(options)), layer)
  }
}

const off = { "net/ipv4/ip_forward": "0", "net/ipv6/conf/all/forwarding": "0", "net/ipv6/conf/eth0.5/accept_ra": "1" }
const route4 = { dst: "1.1.1.1", gateway: "192.0.2.1", dev: "eth0.5", prefsrc: "192.0.2.2" }
const route6 = { dst: "2606:4700:4700::1111", gateway: "fe80::1", dev: "eth0.5", metrics: [{ mtu: 1_280 }] }

describe("Routes", () => {
  it.effect("the way out is that of a route, and as narrow as its narrowest part", () =>
    Effect.gen(function*() {
      const { ipv4, ipv6, mtu } = yield* on({ route4, route6, mtu: 1_400, settings: off }).facts
      expect(ipv4).toEqual({
        forwarding: false,
        egress: Option.some({
          dev: "eth0.5",
          mtu: 1_400,
          gateway: { family: 4, value: 0xc0000201n },
          source: { family: 4, value: 0xc0000202n }
        })
      })
      expect(Option.map(ipv6.egress, (egress) => egress.mtu)).toEqual(Option.some(1_280))
      expect(mtu).toBe(1_280)
    }))

  it.effect("a host that does not forward is refused with what to type", () =>
    Effect.gen(function*() {
      const { prepare, values } = on({ route4, route6, settings: off })
      const { message } = yield* Effect.flip(prepare({ forwarding: "check" }))
      expect(message).toBe(
        "forwarding of IPv4 and IPv6 cannot be had, it is switched off on this host: sysctl -w net.ipv4.ip_forward=1 " +
          "net.ipv6.conf.eth0/5.accept_ra=2 net.ipv6.conf.all.forwarding=1"
      )
      expect(Object.fromEntries(values)).toEqual(off)
    }))

  it.effect("told to, it switches forwarding on, and router advertisements stay welcome where they were", () =>
    Effect.gen(function*() {
      const { prepare, values } = on({ route4, route6, settings: off })
      const { ipv4, ipv6 } = yield* prepare({ forwarding: "enable" })
      expect([ipv4.forwarding, ipv6.forwarding]).toEqual([true, true])
      expect(Object.fromEntries(values)).toEqual({
        "net/ipv4/ip_forward": "1",
        "net/ipv6/conf/all/forwarding": "1",
        "net/ipv6/conf/eth0.5/accept_ra": "2"
      })
      yield* prepare({ forwarding: "check" })
    }))

  it.effect("what was seen a moment ago is not looked for again", () =>
    Effect.gen(function*() {
      const seen = yield* on({ route4, settings: { ...off, "net/ipv4/ip_forward": "1" } }).facts
      const { prepare } = on({ settings: off })
      expect(yield* prepare({ forwarding: "check", seen })).toBe(seen)
    }))

  it.effect("advertisements that were not welcome are not now", () =>
    Effect.gen(function*() {
      const { prepare, values } = on({ route6, settings: { ...off, "net/ipv6/conf/eth0.5/accept_ra": "0" } })
      yield* prepare({ forwarding: "enable" })
      expect(values.get("net/ipv6/conf/eth0.5/accept_ra")).toBe("0")
      // There is no way out by IPv4, so nothing is changed about it.
      expect(values.get("net/ipv4/ip_forward")).toBe("0")
    }))

  it.effect("a family that the kernel does not know has no way out", () =>
    Effect.gen(function*() {
      const { facts, prepare } = on({ route4, route6, settings: { "net/ipv4/ip_forward": "1" } })
      expect((yield* facts).ipv6).toEqual({ egress: Option.none(), forwarding: false })
      yield* prepare({ forwarding: "check" })
      expect((yield* Effect.flip(prepare({ forwarding: "check", families: [4, 6] }))).message).toContain(
        "a way out by IPv6 cannot be had"
      )
    }))

  it.effect("no route at all is refused, and a route to itself is none", () =>
    Effect.gen(function*() {
      const { facts, prepare } = on({ route4: { dst: "1.1.1.1", dev: "lo" }, settings: off })
      expect((yield* Effect.flip(prepare({ forwarding: "enable" }))).message).toBe(
        "a way out by IPv4 cannot be had, this host has no route to 1.1.1.1: ip -4 route add default via GATEWAY dev INTERFACE"
      )
      expect((yield* facts).mtu).toBe(1_500)
    }))

  it.effect("without a default route, the ways out are those to where machines are to get, and all of these count", () =>
    Effect.gen(function*() {
      const listed = {
        "-4": [
          { dst: "10.0.0.0/8", gateway: "192.0.2.1", dev: "eth0" },
          { dst: "10.9.0.0/16", gateway: "192.0.2.9", dev: "vpn0", metrics: [{ mtu: 1_420 }] },
          { type: "blackhole", dst: "10.66.0.0/16" },
          { dst: "172.30.0.2/31", dev: "mv1a2b-1" },
          { type: "local", dst: "192.0.2.2", dev: "eth0" },
          { dst: "198.51.100.7", dev: "wg0" }
        ],
        "-6": [{ dst: "fe80::/64", dev: "eth0" }]
      }
      const { towards } = on({ listed, mtus: { eth0: 1_480, wg0: 1_300 }, settings: off })
      const found = Effect.fnUntraced(function*(...networks: ReadonlyArray<string>) {
        const { ipv4: { egress }, mtu } = yield* towards(...networks)
        return [Option.getOrUndefined(egress)?.dev, mtu]
      })
      expect(yield* found("10.0.0.0/8")).toEqual(["eth0", 1_480])
      // The closest counts, and the narrowest; a part is as good as nothing else.
      expect(yield* found("10.0.0.0/8", "10.9.9.0/24")).toEqual(["eth0", 1_420])
      expect(yield* found("198.51.100.0/24")).toEqual(["wg0", 1_300])
      // What is ours leads nowhere else, and what is nowhere neither.
      for (const network of ["172.30.0.0/16", "192.0.2.2/32", "203.0.113.0/24", "fd00::/8", "::/0"]) {
        expect(yield* found(network)).toEqual([undefined, 1_500])
      }
      expect(Option.isNone((yield* towards("::/0")).ipv6.egress)).toBe(true)
    }))

  it.effect("by IPv6, only a route to a whole network is a way out: a bridge of the host's own is none", () =>
    Effect.gen(function*() {
      const listed = {
        "-6": [{ dst: "fd00::/80", dev: "docker0" }, { dst: "fd7a:115c:a1e0::/48", dev: "tailscale0" }, {
          dst: "fd12::/16",
          dev: "wg0"
        }]
      }
      const host = on({ route4, listed, mtus: { tailscale0: 1_280, wg0: 1_420 }, settings: off })
      const found = Effect.fnUntraced(function*(...networks: ReadonlyArray<string>) {
        const { ipv6: { egress }, mtu } = yield* host.towards(...networks)
        return [Option.getOrUndefined(egress)?.dev, mtu]
      })
      expect(yield* found("fd00::/8", "::/0")).toEqual([undefined, 1_500])
      expect(yield* found("fd12:3400::/32")).toEqual(["wg0", 1_420])
      const towards = [Result.getOrThrow(Cidr.parse("fd00::/8"))]
      yield* host.prepare({ forwarding: "enable", towards })
      expect(host.values.get("net/ipv6/conf/all/forwarding")).toBe("0")
    }))

  it.effect("nothing is listed where there is a default route", () =>
    Effect.gen(function*() {
      const { towards } = on({ route4, listed: { "-4": [{ dst: "10.0.0.0/8", dev: "vpn0" }] }, settings: off })
      expect(Option.map((yield* towards("10.0.0.0/8")).ipv4.egress, ({ dev }) => dev)).toEqual(Option.some("eth0.5"))
    }))

  it.effect("a way to none of them is refused, by their names", () =>
    Effect.gen(function*() {
      const { prepare } = on({ settings: off })
      const towards = [Result.getOrThrow(Cidr.parse("10.0.0.0/8")), Result.getOrThrow(Cidr.parse("fd00::/8"))]
      expect((yield* Effect.flip(prepare({ forwarding: "enable", towards }))).message).toContain(
        "this host has no route to 1.1.1.1 or 10.0.0.0/8: ip -4 route add default via GATEWAY dev INTERFACE"
      )
    }))

  it.effect("an answer that cannot be read is told", () =>
    Effect.gen(function*() {
      const { message } = yield* Effect.flip(on({ route4: "nonsense", settings: off }).facts)
      expect(message).toContain("to look for the way out by IPv4: ip gave what cannot be read")
    }))
})
