/** What somebody sends who means harm, or knows better: packet by packet, on the links of a host of the test's own. */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { Cidr, EgressRule, Firewall, NodeHostCommands } from "effect-microvm-runtime/host"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import { datagram, marker, packet, sum, toBytes, u16 } from "./packets.ts"
import { type Agent, farSide, guest, hostSide, make, missing, type World } from "./packetWorld.ts"

const why = missing()
if (why !== undefined) console.warn(`HostileNetwork.integration.test.ts does not run: ${why}`)

const far = { 4: "10.1.2.3", 6: "fd10::3" } as const
const other = { 4: "10.7.7.7", 6: "fd17::7" } as const
const families = [4, 6] as const

const address = (text: string) => Result.getOrThrow(Cidr.parseAddress(text))

const openTo = ["10.1.0.0/16:5353/udp", "[fd10::/16]:5353/udp", "0.0.0.0/0:80/udp", "[::/0]:80/udp"]

const machine = (i: number, ...rules: ReadonlyArray<string>): Firewall.Machine => {
  const { gateway4, gateway6, link, mac, v4, v6 } = guest(i)
  return {
    id: `machine-${i}`,
    token: (0xabc0_0000_0000_0000n + BigInt(i)).toString(16),
    link,
    mac,
    v4: { guest: address(v4), gateway: address(gateway4) },
    v6: { guest: address(v6), gateway: address(gateway6) },
    rules: Result.getOrThrow(EgressRule.parseAll(rules)),
    offers: [{ protocol: "udp", port: 53 }]
  }
}

const icmpError = (from: string, to: string, inner: Uint8Array): { protocol: number; payload: Uint8Array } => {
  const six = to.includes(":")
  // Too big: the next link takes 1280 bytes (RFC 792 with RFC 1191, RFC 4443).
  const body = Uint8Array.from([...(six ? [2, 0] : [3, 4]), 0, 0, 0, 0, ...u16(1280), ...inner])
  const protocol = six ? 58 : 1
  const pseudo = six ? [...toBytes(from), ...toBytes(to), 0, 0, ...u16(body.length), 0, 0, 0, protocol] : []
  body.set(u16(sum(Uint8Array.from([...pseudo, ...body]))), 2)
  return { protocol, payload: body }
}

/** Without the frame around it. */
const inside = (hex: string): Uint8Array => Buffer.from(hex, "hex").subarray(14)

describe.skipIf(why !== undefined)("a hostile network", () => {
  let world: World
  const pool = ["172.30.0.0/16", "fd30::/64"].map((text) => Result.getOrThrow(Cidr.parse(text)))
  const firewall = <A, E>(use: (service: Firewall.Firewall["Service"]) => Effect.Effect<A, E>) =>
    Firewall.Firewall.use(use).pipe(
      Effect.provide(
        Firewall.layer({ table: "packets", prefix: "mvt-", pool }).pipe(
          Layer.provideMerge(NodeHostCommands.layerIn(`/run/netns/${world.host}`))
        )
      ),
      Effect.runPromise
    )
  const macOf = (link: string): string => world.run(world.host, "cat", `/sys/class/net/${link}/address`).trim()
  const agent = (i: number): Agent => world.agents.guests[i - 1] ?? world.agents.host

  beforeAll(async () => {
    if (why !== undefined) return
    world = await make(2, [...Object.values(far), ...Object.values(other)], "hostile")
    await world.agents.internet.ask({ op: "serve", addresses: Object.values(far), ports: [5353] })
    await world.agents.host.ask({ op: "serve", addresses: [1, 2].map((i) => guest(i).gateway4), ports: [53] })
    await firewall(({ install }) => install([machine(1, ...openTo), machine(2)]))
  })
  afterAll(async () => {
    await world?.end()
  })

  /** Is a frame that somebody sends seen by another? */
  const arrives = async (
    from: { readonly agent: Agent; readonly device: string },
    to: { readonly agent: Agent; readonly device: string },
    hex: string,
    mark: Uint8Array,
    hope: number
  ): Promise<boolean> => {
    await to.agent.ask({ op: "watch", device: to.device })
    await from.agent.ask({ op: "frame", device: from.device, hex })
    return await to.agent.ask({ op: "seen", hex: Buffer.from(mark).toString("hex"), within: hope }) === true
  }
  const one = () => ({ agent: agent(1), device: "eth0" })
  const two = () => ({ agent: agent(2), device: "eth0" })
  const internet = () => ({ agent: world.agents.internet, device: "net0" })

  /** A datagram of guest 1 that opens a flow, and what a router sees of it behind the host. */
  const flow = async (family: 4 | 6, mark: Uint8Array) => {
    const [self, to] = [guest(1)[`v${family}`], far[family]]
    const udp = (from: string) => ({
      from,
      to,
      protocol: 17,
      payload: datagram(toBytes(from), toBytes(to), 5353, mark)
    })
    const toMac = macOf(guest(1).link)
    const hex = packet({ ...udp(self), mac: guest(1).mac, toMac })
    assert.isTrue(await arrives(one(), internet(), hex, mark, 4000))
    const masked = packet({ ...udp(hostSide[`v${family}`]), mac: hostSide.mac, toMac: farSide.mac })
    return { own: inside(hex), masked: inside(masked) }
  }

  it("a machine hears of its flow from a router on the way, and of nothing that is not its flow", async () => {
    for (const family of families) {
      const mark = marker()
      const { masked } = await flow(family, mark)
      const [from, to] = [farSide[`v${family}`], hostSide[`v${family}`]]
      const told = (inner: Uint8Array) =>
        packet({ from, to, mac: farSide.mac, toMac: hostSide.mac, ...icmpError(from, to, inner) })
      assert.isTrue(await arrives(internet(), one(), told(masked), mark, 4000), `IPv${family}`)
      const stray = marker()
      const self = guest(1)[`v${family}`]
      const foreign = inside(packet({
        from: self,
        to: other[family],
        mac: guest(1).mac,
        toMac: hostSide.mac,
        protocol: 17,
        payload: datagram(toBytes(self), toBytes(other[family]), 5353, stray)
      }))
      const direct = packet({
        from,
        to: self,
        mac: farSide.mac,
        toMac: hostSide.mac,
        ...icmpError(from, self, foreign)
      })
      assert.isFalse(await arrives(internet(), one(), direct, stray, 250), `IPv${family}`)
    }
  }, 180_000)

  it("a machine cannot speak to others by errors about somebody's flow", async () => {
    for (const family of families) {
      const mark = marker()
      const { own } = await flow(family, mark)
      const self = guest(1)[`v${family}`]
      // To whom the flow does not lead.
      const astray = packet({
        from: self,
        to: other[family],
        mac: guest(1).mac,
        toMac: macOf(guest(1).link),
        ...icmpError(self, other[family], own)
      })
      assert.isFalse(await arrives(one(), internet(), astray, mark, 250), `IPv${family}, elsewhere`)
      // From another machine that has guessed the flow.
      const neighbour = guest(2)[`v${family}`]
      const across = packet({
        from: neighbour,
        to: self,
        mac: guest(2).mac,
        toMac: macOf(guest(2).link),
        ...icmpError(neighbour, self, own)
      })
      assert.isFalse(await arrives(two(), one(), across, mark, 250), `IPv${family}, across`)
    }
  }, 180_000)

  it("flows of a machine that is gone are not those of the next one with its addresses", async () => {
    for (const family of families) {
      const before = machine(1, ...openTo)
      const after = { ...before, token: "00000000000000aa" }
      const [to, self] = [far[family], hostSide[`v${family}`]]
      /** What is said by those outside who were spoken to: of UDP, nobody needs to be asked again. */
      const answers = async (hope: number) => {
        const mark = marker()
        const payload = datagram(toBytes(to), toBytes(self), 4000, mark, 5353)
        const hex = packet({ from: to, to: self, mac: farSide.mac, toMac: hostSide.mac, protocol: 17, payload })
        return arrives(internet(), one(), hex, mark, hope)
      }
      await flow(family, marker())
      assert.isTrue(await answers(4000), `IPv${family}, of its own`)
      await firewall(({ uninstall }) => uninstall([before]))
      await firewall(({ install }) => install([after]))
      assert.isFalse(await answers(250), `IPv${family}, of the one before`)
      // The same flow of its own is answered elsewhere, as the port outside is taken.
      await agent(1).ask({ op: "watch", device: "eth0" })
      assert.match(String(await agent(1).ask({ op: "udp", to, port: 5353, within: 4000 })), /^open/, `IPv${family}`)
      assert.isFalse(await answers(250), `IPv${family}, still of the one before`)
      await firewall(({ uninstall }) => uninstall([after]))
      await firewall(({ install }) => install([before]))
    }
  }, 180_000)

  it("a machine has no more flows than its share, and leaves room for others", async () => {
    const flood = (to: string) =>
      world.run(
        world.guests[0] ?? "",
        process.execPath,
        "-e",
        `const socket = require("node:dgram").createSocket("udp4")
         const send = (i) => i === 6000 ? socket.close() : socket.send("x", ...to(i), () => send(i + 1))
         const to = (i) => ${to}
         send(0)`
      )
    const count = () => Number(world.run(world.host, "cat", "/proc/sys/net/netfilter/nf_conntrack_count").trim())
    // As long as a machine takes to boot: the kernel looks once a second for what counts nothing, and removes that.
    await firewall(({ uninstall }) => uninstall([machine(1, ...openTo)]))
    await firewall(({ install }) => install([machine(1, ...openTo)]))
    await new Promise((resolve) => setTimeout(resolve, 2500))
    const before = count()
    flood("[5353, \"10.1.\" + (i >> 8) + \".\" + (i & 255)]")
    assert.isAbove(count() - before, 4000)
    assert.isBelow(count() - before, 4200)
    // Nor does it get another one to the host.
    assert.strictEqual(
      await agent(1).ask({ op: "udp", to: guest(1).gateway4, port: 53, within: 250 }),
      "silent"
    )
    assert.match(String(await agent(2).ask({ op: "udp", to: guest(2).gateway4, port: 53, within: 4000 })), /^open/)
  }, 180_000)
})
