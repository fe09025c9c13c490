/** The parts together, on a host of the test's own: what is found there, and what was made comes and goes. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { Addresses, type HostCommands, KernelSettings, Links, NodeHostCommands, Routes } from "../../src/host/index.ts"
import * as Netns from "./netns.ts"

const inNetns = <A, E>(
  test: (netns: Netns.Netns) => Effect.Effect<
    A,
    E,
    HostCommands.HostCommands | KernelSettings.KernelSettings | Links.Links | Routes.Routes | NodeServices.NodeServices
  >
) =>
  Effect.gen(function*() {
    const netns = yield* Netns.scoped
    const services = Layer.fresh(Layer.merge(Links.layer, Routes.layer)).pipe(
      Layer.provideMerge(NodeHostCommands.layerIn(netns.path)),
      Layer.provideMerge(NodeServices.layer)
    )
    return yield* Effect.provide(test(netns), services)
  }).pipe(Effect.scoped)

/** A way out that leads nowhere, with an MTU that is not the usual one. */
const uplink = [
  "link add dev up0 type veth peer name far0",
  "link set dev far0 up",
  "link set dev up0 mtu 1420 up",
  "addr add 192.0.2.2/24 dev up0",
  "addr add 2001:db8::2/64 dev up0 nodad",
  "route add default via 192.0.2.1 dev up0",
  "-6 route add default via 2001:db8::1 dev up0"
].map((line) => line.split(" "))

describe.skipIf(Netns.skipReason !== undefined)("the network of a host", () => {
  it.live("its way out is found, and forwarding is checked, and switched on when told", () =>
    inNetns((netns) =>
      Effect.gen(function*() {
        const routes = yield* Routes.Routes
        const settings = yield* KernelSettings.KernelSettings
        expect((yield* Effect.flip(routes.prepare({ forwarding: "check" }))).message).toContain("no route to 1.1.1.1")
        for (const line of uplink) netns.ip(...line)
        yield* settings.write(["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"], "0")
        const own = yield* Effect.sync(() => netns.exec("cat", "/proc/sys/net/ipv4/ip_forward"))
        expect(own.trim()).toBe("0")
        yield* settings.write(["net/ipv6/conf/up0/accept_ra"], "1")
        const refused = yield* Effect.flip(routes.prepare({ forwarding: "check" }))
        expect(refused.message).toContain(
          "sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.up0.accept_ra=2 net.ipv6.conf.all.forwarding=1"
        )
        const { ipv4, ipv6, mtu } = yield* routes.prepare({ forwarding: "enable" })
        expect([ipv4.forwarding, ipv6.forwarding, mtu]).toEqual([true, true, 1_420])
        expect([ipv4.egress, ipv6.egress].map(Option.map(({ dev }) => dev))).toEqual([
          Option.some("up0"),
          Option.some("up0")
        ])
        expect(yield* settings.read("net/ipv6/conf/up0/accept_ra")).toEqual(Option.some("2"))
        expect(netns.exec("cat", "/proc/sys/net/ipv6/conf/all/forwarding").trim()).toBe("1")
        expect(yield* settings.read("net/ipv6/conf/no-such/accept_ra")).toEqual(Option.none())
        yield* settings.write(["net/ipv6/conf/no-such/accept_ra", "net/ipv6/conf/up0/accept_ra"], "0")
        expect(yield* settings.read("net/ipv6/conf/up0/accept_ra")).toEqual(Option.some("0"))
      })
    ))

  it.live("a pool gives way to what the host has, and its own links do not count", () =>
    inNetns((netns) =>
      Effect.gen(function*() {
        const directory = yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped()
        for (const line of uplink) netns.ip(...line)
        netns.ip("addr", "add", "172.30.77.1/24", "dev", "up0")
        const open = (options: Partial<Addresses.Options> = {}) =>
          Effect.provide(Addresses.Addresses, Layer.fresh(Addresses.layer({ directory, ...options })))
        expect((yield* Effect.flip(open({ ipv4: "172.30.0.0/16" }))).message).toContain("172.30.77.")
        const { allocate, pool } = yield* open()
        expect(pool.ipv4.first >> 16n).toBe(0x0aacn)
        const owner = { id: "web-1", token: Netns.newToken() }
        const { tap, v4, v6 } = yield* allocate(owner)
        const spec = {
          name: tap,
          owner,
          addresses: [v4, v6].map(({ host, prefix }) => ({ address: host, prefix }))
        }
        yield* (yield* Links.Links).make([spec])
        expect((yield* open()).pool).toEqual(pool)
        const claimant = { ...owner, bootId: "this" }
        expect(yield* Links.kind.reclaim([{ owner: claimant, data: { name: tap, netns: false } }], { dryRun: false }))
          .toEqual([{ _tag: "Released" }])
        expect(netns.links().toSorted()).toEqual(["far0", "up0"])
        netns.ip("route", "add", "blackhole", "10.172.0.0/24")
        expect((yield* Effect.flip(open())).reason._tag).toBe("Conflict")
      }).pipe(Effect.scoped)
    ))
})
