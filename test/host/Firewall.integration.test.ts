import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { Cidr, EgressRule, Firewall, type HostCommands, NodeHostCommands } from "effect-microvm-runtime/host"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { setTimeout as sleep } from "node:timers/promises"
import { datagram, echoRequest, macBytes, marker, packet, toBytes, u16 } from "./packets.ts"
import { farSide, guest, hostSide, make, missing, type World } from "./packetWorld.ts"

const why = missing()
if (why !== undefined) console.warn(`Firewall.integration.test.ts does not run: ${why}`)

// What of the internet is allowed, what is not, and what is reached by a wide rule only; the last is a whole target.
const far = {
  4: { allowed: "10.1.2.3", other: "11.1.2.3", metadata: "169.254.169.254", whole: "10.9.9.9", named: "203.0.113.7" },
  6: {
    allowed: "fd10::3",
    other: "2001:db8:1::3",
    metadata: "fd00:ec2::254",
    whole: "fd19::9",
    named: "2001:db8:2::7"
  }
} as const

const ports = [80, 81, 82, 443, 5353]

const rulesOf = (...texts: ReadonlyArray<string>) => Result.getOrThrow(EgressRule.parseAll(texts))

const address = (text: string) => Result.getOrThrow(Cidr.parseAddress(text))

const token = (i: number): string => (0xabc0_0000_0000_0000n + BigInt(i)).toString(16)

const allowList = [
  "10.1.0.0/16:443/tcp",
  "10.1.0.0/16:5353/udp",
  "0.0.0.0/0:80/tcp",
  "10.9.9.9",
  "[fd10::/16]:443/tcp",
  "[fd10::/16]:5353/udp",
  "[::/0]:80/tcp",
  "[::/0]:82/udp",
  "[fd19::9]",
  "api.example.com:443/tcp"
]

const machine = (i: number, ...rules: ReadonlyArray<string>): Firewall.Machine => {
  const { gateway4, gateway6, link, mac, v4, v6 } = guest(i)
  return {
    id: `machine-${i}`,
    token: token(i),
    link,
    mac,
    v4: { guest: address(v4), gateway: address(gateway4) },
    v6: { guest: address(v6), gateway: address(gateway6) },
    rules: rulesOf(...rules),
    offers: [{ protocol: "udp", port: 5353 }, { protocol: "tcp", port: 5353 }]
  }
}

const named = (i: number): ReadonlyArray<string> => [guest(i).v4, `[${guest(i).v6}]`]

/** Whoever means the host, another machine or metadata. */
const insider = machine(
  2,
  `${hostSide.v4}:80/tcp`,
  `[${hostSide.v6}]:80/tcp`,
  ...named(1).map((one) => `${one}:80/tcp`),
  `${far[4].metadata}:80/tcp`,
  `[${far[6].metadata}]:80/tcp`
)
const machines = [machine(1, ...allowList), insider]
const [first = insider] = machines

const options: Firewall.Options = {
  table: "packets",
  prefix: "mvt-",
  pool: [Result.getOrThrow(Cidr.parse("172.30.0.0/16")), Result.getOrThrow(Cidr.parse("fd30::/64"))]
}

interface Row {
  readonly what: string
  /** Gives `open…` or what else became of it. `hope` is how long to wait. */
  readonly probe: (world: World, hope: number) => Promise<unknown>
  readonly open: boolean
}

/** Is a frame of guest 1 seen by the internet? */
const passes = async (world: World, hope: number, frame: (mac: string) => { hex: string; mark: Uint8Array }) => {
  const toMac = world.run(world.host, "cat", `/sys/class/net/${guest(1).link}/address`).trim()
  const { hex, mark } = frame(toMac)
  await world.agents.internet.ask({ op: "watch", device: "net0" })
  await world.agents.guests[0]?.ask({ op: "frame", device: "eth0", hex })
  const seen = await world.agents.internet.ask({ op: "seen", hex: Buffer.from(mark).toString("hex"), within: hope })
  return seen === true ? "open" : "silent"
}

const one = (world: World) => world.agents.guests[0] ?? world.agents.host
const two = (world: World) => world.agents.guests[1] ?? world.agents.host
const three = (world: World) => world.agents.guests[2] ?? world.agents.host

const tcp = (to: string, port: number, who = one): Row["probe"] => (world, within) =>
  who(world).ask({ op: "tcp", to, port, within })
const udp = (to: string, port: number, who = one): Row["probe"] => (world, within) =>
  who(world).ask({ op: "udp", to, port, within })

const rowsOf = (family: 4 | 6): ReadonlyArray<Row> => {
  const { allowed, metadata, other, whole } = far[family]
  const self = guest(1)[`v${family}`]
  const gateway = guest(1)[`gateway${family}`]
  const neighbour = guest(2)[`v${family}`]
  const lonely = guest(3)[`v${family}`]
  const mine = hostSide[`v${family}`]
  const { mac } = guest(1)
  const ping = (to: string): Row["probe"] => (world, hope) =>
    passes(world, hope, (toMac) => {
      const mark = marker()
      return {
        mark,
        hex: packet({
          from: self,
          to,
          mac,
          toMac,
          protocol: family === 4 ? 1 : 58,
          payload: echoRequest(family === 6, self, to, mark)
        })
      }
    })
  const odd = (to: string, from = self, source = mac): Row["probe"] => (world, hope) =>
    passes(world, hope, (toMac) => {
      const mark = marker()
      // 253 is for experiments (RFC 3692).
      return { mark, hex: packet({ from, to, mac: source, toMac, protocol: 253, payload: mark }) }
    })
  return [
    { what: "TCP to an allowed network and port", probe: tcp(allowed, 443), open: true },
    { what: "TCP to another port there", probe: tcp(allowed, 81), open: false },
    { what: "TCP to the port that UDP has", probe: tcp(allowed, 5353), open: false },
    { what: "UDP to an allowed network and port", probe: udp(allowed, 5353), open: true },
    { what: "UDP to another port there", probe: udp(allowed, 81), open: false },
    { what: "UDP to the port that TCP has", probe: udp(allowed, 443), open: false },
    { what: "TCP to that port elsewhere", probe: tcp(other, 443), open: false },
    { what: "TCP anywhere, by a wide rule", probe: tcp(other, 80), open: true },
    { what: "UDP by a rule that is wide in IPv6 only", probe: udp(other, 82), open: family === 6 },
    { what: "TCP to a whole target", probe: tcp(whole, 81), open: true },
    { what: "UDP to a whole target", probe: udp(whole, 81), open: true },
    { what: "a ping to a whole target", probe: ping(whole), open: true },
    { what: "a ping to an allowed network with a port", probe: ping(allowed), open: false },
    { what: "a protocol of its own to a whole target", probe: odd(whole), open: true },
    { what: "a protocol of its own to an allowed network", probe: odd(allowed), open: false },
    { what: "another machine's source address", probe: odd(whole, neighbour), open: false },
    { what: "a source address of the internet", probe: odd(whole, other), open: false },
    { what: "another source MAC", probe: odd(whole, self, "02:00:00:00:77:77"), open: false },
    { what: "metadata, within a wide rule", probe: tcp(metadata, 80), open: false },
    { what: "metadata, by a rule for it", probe: tcp(metadata, 80, two), open: true },
    { what: "metadata, by another port than the rule's", probe: tcp(metadata, 81, two), open: false },
    { what: "the host's address, within a wide rule", probe: tcp(mine, 80), open: false },
    { what: "the host's address, by a rule for it", probe: tcp(mine, 80, two), open: true },
    { what: "the host's address, by another port", probe: tcp(mine, 81, two), open: false },
    { what: "the gateway, within a wide rule", probe: tcp(gateway, 80), open: false },
    { what: "what the host offers on the gateway, TCP", probe: tcp(gateway, 5353), open: true },
    { what: "what the host offers on the gateway, UDP", probe: udp(gateway, 5353), open: true },
    {
      what: "what the host offers, on the gateway of another",
      probe: udp(guest(2)[`gateway${family}`], 5353),
      open: false
    },
    { what: "another machine, within a wide rule", probe: tcp(neighbour, 80), open: false },
    { what: "another machine, by a rule for it", probe: tcp(self, 80, two), open: true },
    { what: "another machine, by another port", probe: tcp(self, 81, two), open: false },
    { what: "a connection from outside", probe: tcp(self, 80, ({ agents }) => agents.internet), open: false },
    { what: "a datagram from outside", probe: udp(self, 5353, ({ agents }) => agents.internet), open: false },
    { what: "a connection from the host", probe: tcp(self, 80, ({ agents }) => agents.host), open: false },
    { what: "a datagram from the host", probe: udp(self, 5353, ({ agents }) => agents.host), open: false },
    { what: "out of a link that is nobody's", probe: tcp(whole, 80, three), open: false },
    { what: "to the host from a link that is nobody's", probe: udp(mine, 5353, three), open: false },
    { what: "into a link that is nobody's", probe: tcp(lonely, 80, ({ agents }) => agents.internet), open: false },
    {
      what: "a datagram in fragments",
      probe: (world, within) => one(world).ask({ op: "udp", to: allowed, port: 5353, within, bytes: 4000 }),
      open: true
    },
    {
      what: "a datagram in fragments to another port",
      probe: (world, within) => one(world).ask({ op: "udp", to: allowed, port: 81, within, bytes: 4000 }),
      open: false
    },
    ...(family === 6
      ? [{
        what: "IPv4 wrapped in IPv6",
        probe: (world: World, hope: number) =>
          passes(world, hope, (toMac) => {
            const mark = marker()
            // Cidr has no such address, on purpose.
            const stand = { from: self, to: "::1.1.1.1", mac, toMac, protocol: 17 }
            const wrapped = Uint8Array.from([...new Uint8Array(10), 255, 255, ...toBytes("10.9.9.9")])
            const hex = packet({ ...stand, payload: datagram(toBytes(self), wrapped, 82, mark) })
            return {
              mark,
              hex: hex.replace(Buffer.from(toBytes(stand.to)).toString("hex"), Buffer.from(wrapped).toString("hex"))
            }
          }),
        open: false
      }]
      : [])
  ]
}

const rows = ([4, 6] as const).flatMap((family) =>
  rowsOf(family).map(({ open, probe, what }) => ({ open, probe, what: `IPv${family}: ${what}` }))
)

/** Those rows that are not as expected, and what they are. */
const astray = async (world: World, expected: (row: Row) => boolean, only: ReadonlyArray<Row> = rows) => {
  const wrong: Array<string> = []
  for (const row of only) {
    const open = expected(row)
    const said = String(await row.probe(world, open ? 4000 : 250))
    if (said.startsWith("open") !== open) wrong.push(`${row.what}: ${said}, not ${open ? "open" : "closed"}`)
  }
  return wrong
}

describe.skipIf(why !== undefined)("the firewall, with packets", () => {
  let world: World
  const services = Layer.suspend(() =>
    Firewall.layer(options).pipe(Layer.provideMerge(NodeHostCommands.layerIn(`/run/netns/${world.host}`)))
  )
  const run = <A, E>(effect: Effect.Effect<A, E, Firewall.Firewall | HostCommands.HostCommands>): Promise<A> =>
    Effect.runPromise(Effect.provide(effect, services))
  const firewall = <A, E>(use: (firewall: Firewall.Firewall["Service"]) => Effect.Effect<A, E>): Promise<A> =>
    run(Firewall.Firewall.use(use))
  const tables = (): ReadonlyArray<string> =>
    world.run(world.host, "nft", "list", "tables").trim().split("\n").toSorted()
  const own = ["table arp packets", "table inet packets"]
  const foreign = ["table inet foreign"]

  beforeAll(async () => {
    if (why !== undefined) return
    world = await make(3, [...Object.values(far[4]), ...Object.values(far[6])])
    const guests = [1, 2, 3].map(guest)
    await Promise.all([
      world.agents.internet.ask({
        op: "serve",
        addresses: [...Object.values(far[4]), ...Object.values(far[6]), farSide.v4],
        ports
      }),
      world.agents.host.ask({
        op: "serve",
        addresses: [hostSide.v4, hostSide.v6, ...guests.flatMap(({ gateway4, gateway6 }) => [gateway4, gateway6])],
        ports
      }),
      ...world.agents.guests.map((agent, index) =>
        agent.ask({ op: "serve", addresses: [guest(index + 1).v4, guest(index + 1).v6], ports })
      )
    ])
    world.run(world.host, "nft", "add table inet foreign; add chain inet foreign outside { }")
  })
  afterAll(async () => {
    await world?.end()
  })

  it("every row is open without it, so each can fail", async () => {
    assert.deepStrictEqual(await astray(world, () => true), [])
  }, 120_000)

  it("holds every row with one machine, and one that means what is closed", async () => {
    await firewall(({ install }) => install(machines))
    assert.deepStrictEqual(await astray(world, ({ open }) => open), [])
  }, 120_000)

  it("shows the host's address outside", async () => {
    for (const family of [4, 6] as const) {
      const seen = await one(world).ask({ op: "tcp", to: far[family].allowed, port: 443, within: 4000 })
      assert.strictEqual(seen, `open to ${hostSide[`v${family}`]}`)
    }
  })

  it("lets a guest ask by ARP for its gateway only, and speak for itself only", async () => {
    const device = world.run(world.host, "cat", `/sys/class/net/${guest(1).link}/address`).trim()
    const answered = async (sender: string, wanted: string, hope: number): Promise<boolean> => {
      const { mac } = guest(1)
      const request = [...u16(1), ...u16(0x0800), 6, 4, ...u16(1), ...macBytes(mac), ...toBytes(sender)]
      const frame = [...macBytes("ff:ff:ff:ff:ff:ff"), ...macBytes(mac), ...u16(0x0806), ...request]
      const answer = [...u16(2), ...macBytes(device), ...toBytes(wanted), ...macBytes(mac)]
      await one(world).ask({ op: "watch", device: "eth0" })
      const hex = Buffer.from([...frame, ...new Uint8Array(6), ...toBytes(wanted)]).toString("hex")
      await one(world).ask({ op: "frame", device: "eth0", hex })
      return await one(world).ask({ op: "seen", hex: Buffer.from(answer).toString("hex"), within: hope }) === true
    }
    assert.isTrue(await answered(guest(1).v4, guest(1).gateway4, 4000))
    assert.isFalse(await answered(guest(1).v4, hostSide.v4, 250))
    assert.isFalse(await answered("172.30.9.9", guest(1).gateway4, 250))
    assert.notInclude(world.run(world.host, "ip", "neigh"), "172.30.9.9")
  })

  it("takes the open connections of a rule along when that goes, and leaves the others", async () => {
    const gone = first.rules.filter((rule) => !/443|5353/.test(EgressRule.format(rule)))
    const rest = { ...first, rules: gone }
    for (const family of [4, 6] as const) {
      const to = far[family].allowed
      await one(world).ask({ op: "open", kind: "tcp", to, port: 443, name: `cut-tcp${family}` })
      await one(world).ask({ op: "open", kind: "udp", to, port: 5353, name: `cut-udp${family}` })
      await one(world).ask({ op: "open", kind: "tcp", to, port: 80, name: `stays${family}` })
    }
    const echoes = (hope: number, ...names: ReadonlyArray<string>) =>
      Promise.all(
        ([4, 6] as const).flatMap((family) =>
          names.map((name) => one(world).ask({ op: "echo", name: `${name}${family}`, within: hope }))
        )
      )
    assert.deepStrictEqual(
      new Set(await echoes(4000, "cut-tcp", "cut-udp", "stays")),
      new Set(["echoed"])
    )
    await firewall(({ replace }) => replace(first, rest))
    // What the far side has to say does not arrive either.
    await world.agents.internet.ask({ op: "push", text: "pushed" })
    assert.deepStrictEqual(await echoes(4000, "stays"), ["echoed", "echoed"])
    for (const name of ["cut-udp4", "cut-udp6", "cut-tcp4", "cut-tcp6"]) {
      assert.notInclude(String(await one(world).ask({ op: "heard", name })), "pushed", name)
    }
    const cut = await echoes(250, "cut-tcp", "cut-udp")
    assert.notInclude(cut, "echoed")
    assert.deepStrictEqual([cut[0], cut[2]], ["reset", "reset"])
    await firewall(({ replace }) => replace(rest, first))
    assert.deepStrictEqual(
      await astray(world, ({ open }) => open, rows.filter(({ what }) => what.includes("allowed network and port"))),
      []
    )
  }, 180_000)

  it("changes rules without a gap for what stays", async () => {
    await one(world).ask({ op: "open", kind: "udp", to: far[4].allowed, port: 5353, name: "busy" })
    const other = { ...first, rules: [...first.rules, ...rulesOf("198.51.100.0/24:22/tcp", "other.example.com")] }
    let sent = 0
    const lost: Array<unknown> = []
    const changes = (async () => {
      for (let round = 0; round < 15; round++) {
        await firewall(({ replace }) => replace(first, other))
        await firewall(({ replace }) => replace(other, first))
      }
      return "changed"
    })()
    while (await Promise.race([changes, Promise.resolve("changing")]) === "changing") {
      const said = await one(world).ask({ op: "echo", name: "busy", within: 1000 })
      if (said !== "echoed") lost.push(said)
      sent++
    }
    assert.deepStrictEqual(lost, [])
    assert.isAbove(sent, 100)
    assert.notInclude(world.run(world.host, "nft", "list", "table", "inet", "packets"), "other.example.com")
  }, 180_000)

  it("opens the addresses of a name until they are stale, and lets open connections go on", async () => {
    const open = (seconds: number, ...addresses: ReadonlyArray<string>) =>
      firewall(({ learn }) =>
        learn(first, { rules: ["api.example.com"], addresses: addresses.map(address), keep: `${seconds} seconds` })
      )
    for (const family of [4, 6] as const) {
      const to = far[family].named
      const probe = (hope: number) => one(world).ask({ op: "tcp", to, port: 443, within: hope })
      const metadata = far[family].metadata
      assert.strictEqual(await probe(4000), "ECONNREFUSED")
      await open(60, to, metadata)
      // The later answer counts, not the longer one.
      await open(5, to, metadata)
      assert.match(String(await one(world).ask({ op: "open", kind: "tcp", to, port: 443, name: "named" })), /^open/)
      assert.strictEqual(await one(world).ask({ op: "tcp", to: metadata, port: 443, within: 4000 }), "ECONNREFUSED")
      assert.strictEqual(await one(world).ask({ op: "tcp", to, port: 81, within: 4000 }), "ECONNREFUSED")
      const end = Date.now() + 60_000
      while (Date.now() < end && await probe(2000) !== "ECONNREFUSED") await sleep(50)
      assert.strictEqual(await probe(4000), "ECONNREFUSED")
      assert.strictEqual(await one(world).ask({ op: "echo", name: "named", within: 4000 }), "echoed")
      const nameless = { ...first, rules: first.rules.filter(({ target }) => target._tag !== "Name") }
      await firewall(({ replace }) => replace(first, nameless))
      assert.strictEqual(await one(world).ask({ op: "echo", name: "named", within: 4000 }), "reset")
      await firewall(({ replace }) => replace(nameless, first))
    }
  }, 180_000)

  it("counts what is allowed and denied, both ways", async () => {
    const before = await firewall(({ counters }) => counters)
    await one(world).ask({ op: "udp", to: far[4].allowed, port: 5353, within: 4000 })
    await one(world).ask({ op: "udp", to: far[4].other, port: 5353, within: 100 })
    await world.agents.internet.ask({ op: "udp", to: guest(1).v4, port: 5353, within: 100 })
    const after = await firewall(({ counters }) => counters)
    const more = (which: keyof Firewall.Counters): number =>
      (after.get(first.token)?.[which].packets ?? 0) - (before.get(first.token)?.[which].packets ?? 0)
    assert.deepStrictEqual(
      [more("allowedOut"), more("allowedIn"), more("deniedOut"), more("deniedIn")],
      [1, 1, 1, 1]
    )
    assert.strictEqual(after.size, 2)
  })

  it("refuses a link that another machine has, and changes nothing", async () => {
    const intruder = { ...machine(1, "0.0.0.0/0"), token: token(9) }
    const error = await firewall(({ install }) => Effect.flip(install([machine(4), intruder])))
    assert.strictEqual(error.reason._tag, "Conflict")
    assert.deepStrictEqual((await firewall(({ list }) => list)).map(({ link }) => link).toSorted(), [
      guest(1).link,
      guest(2).link
    ])
    assert.deepStrictEqual(await astray(world, ({ open }) => open, rows.slice(0, 8)), [])
  })

  it("holds every row with a thousand machines", async () => {
    const many = Array.from({ length: 998 }, (_, index) => machine(index + 4, ...allowList))
    await firewall(({ install }) => install(many))
    assert.lengthOf(await firewall(({ list }) => list), 1000)
    assert.deepStrictEqual(await astray(world, ({ open }) => open), [])
    const decode = Schema.decodeUnknownSync(Firewall.rules.data)
    const claim = await firewall((service) => Effect.succeed(service.claim))
    const claims = many.map((each) => ({
      owner: { id: each.id, token: each.token, bootId: "this" },
      data: decode(claim(each).data)
    }))
    const dry = await run(Firewall.rules.reclaim(claims, { dryRun: true }))
    assert.deepStrictEqual(new Set(dry.map(({ _tag }) => _tag)), new Set(["Released"]))
    assert.lengthOf(await firewall(({ list }) => list), 1000)
    const verdicts = await run(Firewall.rules.reclaim(claims, { dryRun: false }))
    assert.deepStrictEqual(new Set(verdicts.map(({ _tag }) => _tag)), new Set(["Released"]))
    const again = await run(Firewall.rules.reclaim(claims, { dryRun: false }))
    assert.deepStrictEqual(new Set(again.map(({ _tag }) => _tag)), new Set(["Absent"]))
    const left = world.run(world.host, "nft", "list", "table", "inet", "packets")
    assert.deepStrictEqual(
      many.filter((each) => left.includes(each.token) || left.includes(`"${each.link}"`)),
      []
    )
    assert.deepStrictEqual(await astray(world, ({ open }) => open, rows.slice(0, 8)), [])
  }, 180_000)

  it("holds with ten thousand rules on one machine", async () => {
    const crowd = Array.from(
      { length: 10_000 },
      (_, index) => `198.${18 + (index >> 13)}.${(index >> 5) & 255}.${(index & 31) * 8}/29:${1000 + index}/tcp`
    )
    const full = { ...first, rules: [...first.rules, ...rulesOf(...crowd)] }
    await firewall(({ replace }) => replace(first, full))
    assert.deepStrictEqual(await astray(world, ({ open }) => open, rows.slice(0, 16)), [])
    await firewall(({ replace }) => replace(full, first))
    assert.deepStrictEqual(await astray(world, ({ open }) => open, rows.slice(0, 8)), [])
  }, 120_000)

  it("lets many come and go at once", async () => {
    const comers = Array.from({ length: 12 }, (_, index) => machine(index + 10, ...allowList))
    await run(Effect.forEach(
      comers,
      (comer) =>
        Firewall.Firewall.use(({ install, uninstall }) =>
          Effect.andThen(install([comer]), uninstall([comer])).pipe(Effect.repeat({ times: 3 }))
        ),
      { concurrency: 6, discard: true }
    ))
    assert.lengthOf(await firewall(({ list }) => list), 2)
  }, 180_000)

  it("goes with the last machine, and leaves what is not its own", async () => {
    assert.deepStrictEqual(tables(), [...own, ...foreign].toSorted())
    await firewall(({ uninstall }) => uninstall([first]))
    assert.deepStrictEqual(tables(), [...own, ...foreign].toSorted())
    await firewall(({ uninstall }) => uninstall(machines))
    assert.deepStrictEqual(tables(), foreign)
    await firewall(({ uninstall }) => uninstall(machines))
    assert.deepStrictEqual([...(await firewall(({ counters }) => counters))], [])
    assert.deepStrictEqual(await firewall(({ list }) => list), [])
    const comers = [machine(1, ...allowList), machine(2, ...allowList)]
    // A table that goes with one while the other comes.
    await run(Effect.forEach(
      comers,
      (comer) =>
        Firewall.Firewall.use(({ install, uninstall }) =>
          Effect.andThen(install([comer]), uninstall([comer])).pipe(Effect.repeat({ times: 10 }))
        ),
      { concurrency: 2, discard: true }
    ))
    assert.deepStrictEqual(tables(), foreign)
  }, 180_000)
})
