import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { HostCommands, HostError, KernelSettings, Routes } from "../../src/host/index.ts"

interface Host {
  readonly route4?: unknown
  readonly route6?: unknown
  readonly mtu?: number
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
    if (args.includes("link")) return Effect.succeed(JSON.stringify([{ ifname: args.at(-1), mtu: host.mtu ?? 1_500 }]))
    const route = args.includes("1.1.1.1") ? host.route4 : host.route6
    return route === undefined ? unreachable : Effect.succeed(JSON.stringify([route]))
  })
  const layer = Layer.fresh(Routes.layer).pipe(Layer.provide([commands, KernelSettings.layerMemory(values)]))
  return {
    values,
    facts: Effect.provide(Routes.Routes.use((routes) => routes.facts), layer),
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

  it.effect("an answer that cannot be read is told", () =>
    Effect.gen(function*() {
      const { message } = yield* Effect.flip(on({ route4: "nonsense", settings: off }).facts)
      expect(message).toContain("to look for the way out by IPv4: ip gave what cannot be read")
    }))
})
