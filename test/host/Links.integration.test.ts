import { afterAll, describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import { execFileSync, spawn } from "node:child_process"
import { once } from "node:events"
import { Cidr, HostCommands, KernelSettings, Links, LinkSpec, NodeHostCommands } from "../../src/host/index.ts"
import * as Plan from "../../src/host/internal/linkPlan.ts"
import * as Netns from "./netns.ts"

const address = (text: string) => Result.getOrThrow(Cidr.parseAddress(text))

const tokens: Array<string> = []

const ownerOf = (id: string) => {
  const token = Netns.newToken()
  tokens.push(token)
  return { id, token }
}

const linkOf = (owner: LinkSpec.LinkSpec["owner"], index: number): LinkSpec.LinkSpec => ({
  name: `mv3fa2-${index}`,
  owner,
  user: 65_534,
  mtu: 1_400,
  addresses: [
    { address: { family: 4, value: address("172.30.0.0").value + 2n * BigInt(index) }, prefix: 31 },
    { address: { family: 6, value: address("fd00::").value + 2n * BigInt(index) }, prefix: 127 }
  ]
})

const claimOf = ({ name, owner, topology }: LinkSpec.LinkSpec) => ({
  owner: { ...owner, bootId: "this" },
  data: { name, netns: topology?._tag === "Namespace" }
})

const reclaim = (links: ReadonlyArray<LinkSpec.LinkSpec>, dryRun = false) =>
  Effect.map(Links.kind.reclaim(links.map(claimOf), { dryRun }), (verdicts) => verdicts.map(({ _tag }) => _tag))

const make = (...links: ReadonlyArray<LinkSpec.LinkSpec>) => Links.Links.use((service) => service.make(links))

// What a test that fails has left, which is not in the namespace that goes with it.
afterAll(() => {
  for (const space of tokens.map(Plan.netnsName)) {
    if (Netns.namespaces().includes(space)) execFileSync("ip", ["netns", "del", space])
  }
})

/** Runs in a network namespace of its own, below which nothing may be left. */
const inNetns = <A, E>(
  test: (
    netns: Netns.Netns
  ) => Effect.Effect<A, E, Links.Links | HostCommands.HostCommands | KernelSettings.KernelSettings>
) =>
  Effect.gen(function*() {
    const netns = yield* Netns.scoped
    const host = NodeHostCommands.layerIn(netns.path)
    return yield* Effect.provide(test(netns), Links.layer.pipe(Layer.provideMerge(host)))
  }).pipe(Effect.scoped)

describe.skipIf(Netns.skipReason !== undefined)("Links", () => {
  it.live("a routed link is a TAP with addresses, of which all is gone when it is reclaimed", () =>
    inNetns((netns) =>
      Effect.gen(function*() {
        const owner = ownerOf("web-1")
        const link = linkOf(owner, 1)
        const settings = yield* KernelSettings.KernelSettings
        yield* settings.write(["net/ipv4/conf/default/accept_source_route"], "1")
        expect(yield* make(link)).toEqual([{ name: "mv3fa2-1", tap: "mv3fa2-1", enter: [] }])
        expect(JSON.parse(netns.ip("-j", "-d", "addr", "show", "dev", link.name))).toMatchObject([{
          mtu: 1_400,
          ifalias: `effect-microvm ${owner.token} web-1 mv3fa2-1`,
          linkinfo: { info_kind: "tun", info_data: { type: "tap", user: "nobody" } },
          addr_info: [{ local: "172.30.0.2", prefixlen: 31 }, { local: "fd00::2", prefixlen: 127, nodad: true }]
        }])
        expect(yield* settings.read("net/ipv6/conf/mv3fa2-1/accept_ra")).toMatchObject({ value: "0" })
        expect(yield* settings.read("net/ipv4/conf/mv3fa2-1/accept_source_route")).toMatchObject({ value: "0" })
        expect(yield* reclaim([link], true)).toEqual(["Released"])
        expect(netns.links()).toEqual(["mv3fa2-1"])
        expect(yield* reclaim([link])).toEqual(["Released"])
        expect(netns.links()).toEqual([])
        expect(yield* reclaim([link])).toEqual(["Absent"])
      })
    ))

  it.live("a hundred links take one process to make and two to remove", () =>
    inNetns((netns) =>
      Effect.gen(function*() {
        const links = Array.from({ length: 100 }, (_, index) => linkOf(ownerOf(`m-${index}`), index + 1))
        const commands = yield* HostCommands.HostCommands
        const calls: Array<string> = []
        const counted = HostCommands.HostCommands.of({
          run: (command) => {
            calls.push(command.args.join(" "))
            return commands.run(command)
          }
        })
        const settings = Layer.succeed(KernelSettings.KernelSettings, yield* KernelSettings.KernelSettings)
        const layer = Layer.fresh(Links.layer).pipe(
          Layer.provideMerge(Layer.succeed(HostCommands.HostCommands, counted))
        )
        yield* Effect.provide(make(...links), layer.pipe(Layer.provide(settings)))
        expect(netns.links()).toHaveLength(100)
        expect(calls).toEqual(["-batch -"])
        const verdicts = yield* Effect.provideService(reclaim(links), HostCommands.HostCommands, counted)
        expect(verdicts.every((verdict) => verdict === "Released")).toBe(true)
        expect(calls.slice(1)).toEqual(["-j link show", "-force -batch -"])
        expect(netns.links()).toEqual([])
      })
    ))

  it.live("an interface of somebody else stays, whatever it is named", () =>
    inNetns((netns) =>
      Effect.gen(function*() {
        const link = linkOf(ownerOf("web-1"), 1)
        const others = linkOf(ownerOf("web-1"), 1)
        netns.ip("tuntap", "add", "dev", link.name, "mode", "tap")
        const error = yield* Effect.flip(make(linkOf(link.owner, 2), link))
        expect(error.message).toContain("collides with an interface of this host")
        expect(error.message).toContain(`tuntap add dev ${link.name} `)
        // What was made of the other link until then is undone.
        expect(netns.links()).toEqual([link.name])
        expect(yield* reclaim([link])).toEqual(["Foreign"])
        // Not even under an alias of ours, when that is of another machine.
        netns.ip("link", "set", "dev", link.name, "alias", Plan.aliasOf(others))
        expect(yield* reclaim([link])).toEqual(["Foreign"])
        expect(netns.links()).toEqual([link.name])
        expect(yield* reclaim([others])).toEqual(["Released"])
        expect(netns.links()).toEqual([])
      })
    ))

  it.live("what somebody else is just making under a name that we want, too, stays", () =>
    inNetns((netns) =>
      Effect.gen(function*() {
        const [one, two] = [linkOf(ownerOf("web-1"), 1), linkOf(ownerOf("web-2"), 2)]
        netns.batch(Plan.outside([two]).slice(0, 1))
        expect((yield* Effect.flip(make(one, { ...two, owner: ownerOf("web-3") }))).message).toContain("collides")
        expect(netns.links()).toEqual([two.name])
        expect(yield* reclaim([two])).toEqual(["Released"])
      })
    ))

  it.live("a link of ours is found when it was renamed", () =>
    inNetns((netns) =>
      Effect.gen(function*() {
        const link = linkOf(ownerOf("web-1"), 1)
        yield* make(link)
        netns.batch([`link set dev ${link.name} down`, `link set dev ${link.name} name other0`])
        expect(yield* reclaim([link])).toEqual(["Released"])
        expect(netns.links()).toEqual([])
      })
    ))

  it.live("whoever is killed after any line leaves nothing that is not found", () =>
    inNetns((netns) =>
      Effect.gen(function*() {
        netns.ip("link", "add", "dev", "br-test", "type", "bridge")
        const topologies = [
          LinkSpec.Topology.Routed(),
          LinkSpec.Topology.Namespace(),
          LinkSpec.Topology.Port({ bridge: "br-test" })
        ]
        for (const topology of topologies) {
          const owner = ownerOf("web-1")
          const links = [linkOf(owner, 1), linkOf(owner, 2)].map(({ addresses, name }): LinkSpec.LinkSpec => ({
            name,
            owner,
            addresses: topology._tag === "Port" ? [] : addresses,
            topology
          }))
          const lines = Plan.outside(links)
          for (let cut = 0; cut <= lines.length; cut++) {
            netns.batch(lines.slice(0, cut))
            const verdicts = yield* reclaim(links)
            expect(verdicts.includes("Foreign")).toBe(false)
            expect(verdicts.includes("Released")).toBe(cut > 0)
            expect(netns.links()).toEqual(["br-test"])
            expect(Netns.namespaces()).not.toContain(Plan.netnsName(owner.token))
          }
        }
      })
    ))

  it.live("a command that fails at any call, before or after it has worked, leaves nothing", () =>
    inNetns((netns) =>
      Effect.gen(function*() {
        for (const mishap of ["fails before", "fails after"] as const) {
          for (let at = 0; at < 6; at++) {
            const owner = ownerOf("web-1")
            const links = [
              { ...linkOf(owner, 1), topology: LinkSpec.Topology.Namespace() },
              { ...linkOf(owner, 2), topology: LinkSpec.Topology.Namespace() }
            ]
            const commands = HostCommands.layerFaulty((index) => index === at ? mishap : undefined)
            const result = yield* Effect.result(make(...links)).pipe(
              Effect.provide(Layer.fresh(Links.layer).pipe(Layer.provide(commands)))
            )
            // Two calls make them.
            expect(Result.isFailure(result)).toBe(at < 2)
            yield* reclaim(links)
            expect(netns.links()).toEqual([])
            expect(Netns.namespaces()).not.toContain(Plan.netnsName(owner.token))
          }
        }
      })
    ))

  it.live("from a network namespace of its own, packets come out where those of a TAP would", () =>
    inNetns((netns) =>
      Effect.gen(function*() {
        const owner = ownerOf("web-1")
        const link = { ...linkOf(owner, 1), topology: LinkSpec.Topology.Namespace() }
        const [made] = yield* make(link)
        const space = Plan.netnsName(owner.token)
        expect(made).toEqual({
          name: link.name,
          tap: link.name,
          netns: `/run/netns/${space}`,
          enter: ["nsenter", `--net=/run/netns/${space}`, "--"]
        })
        expect(netns.links()).toEqual([link.name])
        const [file = "", ...args] = made?.enter ?? []
        const inside = spawn(file, [
          ...args,
          process.execPath,
          "-e",
          `
          const { execFileSync } = require("node:child_process")
          execFileSync("ip", ["-batch", "-"], { input: "addr add 172.30.0.3/31 dev br0\\naddr add fd00::3/127 dev br0 nodad\\n" })
          const server = require("node:net").createServer((socket) => socket.end("hello from " + socket.remoteAddress))
          server.listen({ port: 7, host: "::" }, () => console.log("listening"))
        `
        ], { stdio: ["ignore", "pipe", "inherit"] })
        yield* Effect.addFinalizer(() => Effect.sync(() => inside.kill("SIGKILL")))
        yield* Effect.promise(() => once(inside.stdout, "data"))
        const ask = (host: string) =>
          netns.exec(
            process.execPath,
            "-e",
            `require("node:net").connect(7, "${host}").on("data", (data) => process.stdout.write(data))`
          )
        expect(ask("172.30.0.3")).toBe("hello from ::ffff:172.30.0.2")
        expect(ask("fd00::3")).toBe("hello from fd00::2")
        inside.kill("SIGKILL")
        expect(yield* reclaim([link])).toEqual(["Released"])
        expect(Netns.namespaces()).not.toContain(space)
        expect(netns.links()).toEqual([])
      }).pipe(Effect.scoped)
    ))

  it.live("a port of a bridge is isolated", () =>
    inNetns((netns) =>
      Effect.gen(function*() {
        netns.ip("link", "add", "dev", "br-test", "type", "bridge")
        const link = {
          ...linkOf(ownerOf("web-1"), 1),
          addresses: [],
          topology: LinkSpec.Topology.Port({ bridge: "br-test" })
        }
        yield* make(link)
        expect(JSON.parse(netns.ip("-j", "-d", "link", "show", "dev", link.name))).toMatchObject([{
          master: "br-test",
          linkinfo: { info_slave_kind: "bridge", info_slave_data: { isolated: true } }
        }])
        expect(yield* reclaim([link])).toEqual(["Released"])
        const missing = { ...link, topology: LinkSpec.Topology.Port({ bridge: "no-such" }) }
        expect((yield* Effect.flip(make(missing))).message).toBe(
          "links[0].topology.bridge: \"no-such\" cannot be: make it first: ip link add no-such type bridge"
        )
        expect(netns.links()).toEqual(["br-test"])
      })
    ))

  it.live("a caller's TAP is looked at, and only that", () =>
    inNetns((netns) =>
      Effect.gen(function*() {
        const { check } = yield* Links.Links
        netns.batch(["tuntap add dev tap0 mode tap user 65534 multi_queue", "tuntap add dev tun0 mode tun"])
        expect(yield* check("tap0")).toEqual({
          name: "tap0",
          mtu: 1_500,
          isUp: false,
          isMultiQueue: true,
          user: "nobody"
        })
        netns.batch(["tuntap add dev tap2 mode tap user 54321 group 54321"])
        expect(yield* check("tap2")).toMatchObject({ user: "54321", group: "54321" })
        expect((yield* Effect.flip(check("tun0"))).message).toBe(
          "tap: \"tun0\" cannot be: give a TAP device: that one is something else"
        )
        expect((yield* Effect.flip(check("lo"))).message).toContain("give a TAP device")
        expect((yield* Effect.flip(check("tap1"))).message).toBe(
          "tap: \"tap1\" cannot be: make it first: ip tuntap add dev tap1 mode tap user USER"
        )
        expect(netns.links()).toEqual(["tap0", "tun0", "tap2"])
      })
    ))

  it.live("names of 15 bytes are made, and odd ones", () =>
    inNetns((netns) =>
      Effect.gen(function*() {
        const names = ["fifteen-bytes-1", "a", "_", ".a", "a.b_c-d", "0"]
        const links = names.map((name, index) => ({ ...linkOf(ownerOf(`a${"-".repeat(63)}`), index + 1), name }))
        yield* make(...links)
        expect(netns.links().toSorted()).toEqual(names.toSorted())
        const settings = yield* KernelSettings.KernelSettings
        expect(yield* settings.read("net/ipv6/conf/a.b_c-d/accept_ra")).toMatchObject({ value: "0" })
        expect(new Set(yield* reclaim(links))).toEqual(new Set(["Released"]))
        expect(netns.links()).toEqual([])
      })
    ))

  it.live("an interruption undoes", () =>
    inNetns((netns) =>
      Effect.gen(function*() {
        const links = Array.from({ length: 50 }, (_, index) => linkOf(ownerOf(`m-${index}`), index + 1))
        for (const wait of [0, 2, 4, 6, 8, 10]) {
          yield* Effect.timeoutOption(make(...links), wait)
          yield* reclaim(links)
          expect(netns.links()).toEqual([])
        }
      })
    ))
})
