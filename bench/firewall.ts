/** The firewall: what packets pay for the rules of a thousand machines, and how long the rules take to come and go. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { execFileSync } from "node:child_process"
import { Cidr, EgressRule, Firewall, NodeHostCommands } from "../src/host/index.ts"
import { guest, make, missing, type World } from "../test/host/packetWorld.ts"
import { interleaved, median, ms, now, type Section, table, times, verdict } from "./measure.ts"

const allowList = [
  "10.0.0.0/8:443/tcp",
  "10.0.0.0/8:53/udp",
  "192.0.2.0/24:80/tcp",
  "198.51.100.7",
  "[2001:db8::/32]:443/tcp"
]
const rules = Result.getOrThrow(EgressRule.parseAll(allowList))
const address = (text: string) => Result.getOrThrow(Cidr.parseAddress(text))

/** Where the packets of the benchmark go, which the second of these allows. */
const sink = "10.1.2.3"

const machine = (i: number): Firewall.Machine => {
  const { gateway4, gateway6, link, mac, v4, v6 } = guest(i)
  return {
    id: `machine-${i}`,
    token: (0xabc0_0000_0000_0000n + BigInt(i)).toString(16),
    link,
    mac,
    v4: { guest: address(v4), gateway: address(gateway4) },
    v6: { guest: address(v6), gateway: address(gateway6) },
    rules
  }
}

const numbers = (from: number, count: number) => Array.from({ length: count }, (_, index) => from + index)

const firewallOf = (world: World, scope: Scope.Scope) => {
  const layer = Firewall.layer({ table: "bench", prefix: "mvt-" }).pipe(
    Layer.provide(NodeHostCommands.layerIn(`/run/netns/${world.host}`))
  )
  return Effect.runPromise(Effect.map(Layer.buildWithScope(layer, scope), Context.get(Firewall.Firewall)))
}

/** What the crate has: a chain per machine, and a jump to it before those of the others. */
const crate = (count: number): string => {
  const chain = (i: number) => `m-${i}`
  return [
    "*filter",
    ...numbers(1, count).map((i) => `:${chain(i)} - [0:0]`),
    // The last one that comes is the first.
    ...numbers(1, count).toReversed().map((i) => `-A FORWARD -i ${guest(i).link} -j ${chain(i)}`),
    ...numbers(1, count).flatMap((i) => [
      `-A ${chain(i)} -d 10.0.0.0/8 -p tcp --dport 443 -j ACCEPT`,
      `-A ${chain(i)} -d 10.0.0.0/8 -p udp --dport 53 -j ACCEPT`,
      `-A ${chain(i)} -d 192.0.2.0/24 -p tcp --dport 80 -j ACCEPT`,
      `-A ${chain(i)} -d 198.51.100.7 -j ACCEPT`,
      `-A ${chain(i)} -j DROP`
    ]),
    "COMMIT",
    ""
  ].join("\n")
}

const restore = (world: World, text: string): string | undefined => {
  try {
    execFileSync("ip", ["netns", "exec", world.host, "iptables-restore", "--noflush"], { input: text, stdio: "pipe" })
    return undefined
  } catch (error) {
    return String(error)
  }
}

/**
 * What arrives at the far side of a world, in packets for each second of processor time: the whole way is gone in the sender's
 * own time, also when others want the processor too.
 */
const rate = async (world: World): Promise<number> => {
  const received = () => Number(world.run(world.internet, "cat", "/sys/class/net/net0/statistics/rx_packets"))
  const before = received()
  const spent = Number(await world.agents.guests[0]?.ask({ op: "flood", to: sink, port: 53, within: 200 }))
  return (received() - before) / spent
}

const Drained = Schema.Struct({ bytes: Schema.Finite, spent: Schema.Finite })

/** What one connection carries to the far side of a world, in gigabytes for each second of processor time, both ends' own included. */
const streamRate = async (world: World): Promise<number> => {
  const { guests, internet } = world.agents
  await internet.ask({ op: "drained" })
  const sent = Number(await guests[0]?.ask({ op: "stream", to: sink, port: 443, within: 200 }))
  const { bytes, spent } = Schema.decodeUnknownSync(Drained)(await internet.ask({ op: "drained" }))
  return bytes / 1e9 / (sent + spent)
}

const firewallRate = async (rounds: number): Promise<Section> => {
  const worlds: Array<World> = []
  const scope = Scope.makeUnsafe()
  const add = async (name: string) => {
    const world = await make(1, [sink], name)
    worlds.push(world)
    await world.agents.internet.ask({ op: "sink", address: sink, port: 53 })
    await world.agents.internet.ask({ op: "drain", address: sink, port: 443 })
    return world
  }
  try {
    const bare = await add("bare")
    const natted = await add("nat")
    const ours = await add("ours")
    const alone = await add("one")
    const theirs = await add("crate")
    // As any host has that gives guests a way out.
    natted.run(
      natted.host,
      "nft",
      "add table ip nat; add chain ip nat post { type nat hook postrouting priority srcnat; }; " +
        "add rule ip nat post ip saddr 172.30.0.0/16 oifname up0 masquerade"
    )
    const firewall = await firewallOf(ours, scope)
    await Effect.runPromise(firewall.install(numbers(1, 1000).map(machine)))
    await Effect.runPromise((await firewallOf(alone, scope)).install([machine(1)]))
    const why = restore(theirs, crate(1000))
    if (why !== undefined) console.error(`bench: without the crate's chains: ${why}`)
    const contestants = [
      ["no rules", bare],
      ["masquerading only", natted],
      ["this library, 1 machine", alone],
      ["this library, 1,000 machines", ours],
      ...(why === undefined ? [["the crate's chains for 1,000, the last machine", theirs] as const] : [])
    ] as const
    const measure = (by: (world: World) => Promise<number>) =>
      interleaved(rounds, contestants.map(([name, world]) => ({ name, run: () => by(world) })))
    const samples = await measure(rate)
    const streams = await measure(streamRate)
    const ratio = (name: string) => median(samples, "this library, 1,000 machines") / median(samples, name)
    return {
      title: "Firewall: packets",
      text:
        `UDP from one guest through the host to the outside, ${allowList.length} rules for each machine, in packets for each ` +
        "second of processor time. Masquerading alone has connections looked up too. And one TCP connection with segmentation " +
        "offload, as guests have: what passes the rules is 64 KiB, not 1,500 bytes.",
      tables: [
        table(samples, "packets/s of processor"),
        `A stream:\n\n${table(streams, "GB/s of processor")}`
      ],
      verdicts: [
        verdict("1,000 machines' rules ≥ 0.95 × no rules", times(ratio("no rules")), ratio("no rules") >= 0.95),
        verdict(
          "1,000 machines' rules ≥ 0.95 × one machine's",
          times(ratio("this library, 1 machine")),
          ratio("this library, 1 machine") >= 0.95
        )
      ]
    }
  } finally {
    await Effect.runPromise(Scope.close(scope, Exit.void))
    for (const world of worlds) await world.end()
  }
}

const firewallChanges = async (rounds: number): Promise<Section> => {
  const world = await make(1, [sink], "changes")
  const scope = Scope.makeUnsafe()
  try {
    const firewall = await firewallOf(world, scope)
    const timed = async <E>(effect: Effect.Effect<unknown, E>): Promise<number> => {
      const start = now()
      await Effect.runPromise(effect)
      return now() - start
    }
    const cycle = (count: number) => {
      const machines = numbers(1, count).map(machine)
      return { made: () => timed(firewall.install(machines)), gone: () => timed(firewall.uninstall(machines)) }
    }
    const samples = new Map<string, Array<number>>()
    const note = async (name: string, run: () => Promise<number>) => {
      const sample = await run()
      samples.set(name, [...samples.get(name) ?? [], sample])
    }
    for (let round = 0; round < rounds; round++) {
      for (const count of [1, 100, 1000]) {
        const { gone, made } = cycle(count)
        await note(`${count} installed`, made)
        if (count === 1000) {
          const [one, less] = [machine(2000), { ...machine(2000), rules: rules.slice(1) }]
          await note("one more", () => timed(firewall.install([one])))
          await note("other rules for one", () => timed(firewall.replace(one, less)))
          await note("counters read", () => timed(firewall.counters))
          await note("one less", () => timed(firewall.uninstall([less])))
        }
        await note(`${count} removed`, gone)
      }
    }
    return {
      title: "Firewall: changes",
      text: "Rules for machines, in one transaction each; what is done to one more machine is done beside 1,000.",
      tables: [table(samples)],
      verdicts: [
        verdict(
          "1,000 machines removed at once ≤ 1 s",
          ms(median(samples, "1000 removed")),
          median(samples, "1000 removed") <= 1000
        )
      ]
    }
  } finally {
    await Effect.runPromise(Scope.close(scope, Exit.void))
    await world.end()
  }
}

const skipped = (title: string, why: string): Section => ({ title, text: `Not run: ${why}.`, tables: [], verdicts: [] })

const unless = (title: string, run: () => Promise<Section>): Promise<Section> => {
  const why = missing()
  return why === undefined ? run() : Promise.resolve(skipped(title, why))
}

export const packets = (rounds: number): Promise<Section> => unless("Firewall: packets", () => firewallRate(rounds))
export const ruleChanges = (rounds: number): Promise<Section> =>
  unless("Firewall: changes", () => firewallChanges(rounds))
