/**
 * The host resources of machines in a network namespace of this program's own: ours, and the commands of the
 * `microvm-runtime` crate, one process each. Prints its samples as JSON. `ROUNDS`, and whether there is an iptables.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import { spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Addresses, Firewall, Links, type LinkSpec, NodeHostCommands } from "../src/host/index.ts"
import { interleaved, now } from "./measure.ts"

const [, , rounds = "10", iptables = ""] = process.argv

const directory = mkdtempSync(join(tmpdir(), "bench-links-"))
const services = Layer.mergeAll(
  Addresses.layer({ directory }),
  Links.layer,
  Firewall.layer()
).pipe(Layer.provideMerge(NodeHostCommands.layer), Layer.provideMerge(NodeServices.layer))
const runtime = ManagedRuntime.make(services)

interface Made {
  readonly spec: LinkSpec.LinkSpec
  readonly claimant: { readonly id: string; readonly token: string; readonly bootId: string }
}

type Placed = Made & { readonly allocation: Addresses.Allocation }

const allocate = (count: number) =>
  Effect.gen(function*() {
    const addresses = yield* Addresses.Addresses
    const made: Array<Placed> = []
    for (let index = 0; index < count; index++) {
      const owner = { id: `m-${index}`, token: randomBytes(8).toString("hex") }
      const allocation = yield* addresses.allocate(owner)
      const hosts = [allocation.v4, allocation.v6].map(({ host, prefix }) => ({ address: host, prefix }))
      made.push({
        allocation,
        claimant: { ...owner, bootId: "this" },
        spec: { name: allocation.tap, owner, addresses: hosts, user: 65_534 }
      })
    }
    return made
  })

const free = (made: ReadonlyArray<Made>) =>
  Addresses.kind.reclaim(made.map(({ claimant: owner }) => ({ owner, data: { directory } })), { dryRun: false })

const machines = (made: ReadonlyArray<Placed>): ReadonlyArray<Firewall.Machine> =>
  made.map(({ allocation: { mac, tap, v4, v6 }, claimant }) => ({
    id: claimant.id,
    token: claimant.token,
    link: tap,
    mac,
    v4: { guest: v4.guest, gateway: v4.host },
    v6: { guest: v6.guest, gateway: v6.host },
    rules: []
  }))

const install = (made: ReadonlyArray<Placed>) =>
  Effect.flatMap(Firewall.Firewall, (firewall) => firewall.install(machines(made)))

const makeLinks = (made: ReadonlyArray<Made>) =>
  Effect.flatMap(Links.Links, (links) => links.make(made.map(({ spec }) => spec)))

const removeLinks = (made: ReadonlyArray<Made>) =>
  Effect.flatMap(
    Links.kind.reclaim(
      made.map(({ claimant: owner, spec: { name } }) => ({ owner, data: { name, netns: false } })),
      { dryRun: false }
    ),
    (gone) => gone.every(({ _tag }) => _tag === "Released") ? Effect.void : Effect.die(gone)
  )

/** Addresses, rules and links of as many machines, for IPv4 and IPv6. */
const create = (count: number) =>
  Effect.gen(function*() {
    const made = yield* allocate(count)
    yield* Effect.all([install(made), makeLinks(made)], { concurrency: 2 })
    return made
  })

// As `MachineNetworks` and `NodeSupervisor` do it: what waits for the kernel waits together.
const destroy = (made: ReadonlyArray<Placed>) =>
  Effect.gen(function*() {
    const { uninstall } = yield* Firewall.Firewall
    yield* Effect.all([removeLinks(made), uninstall(machines(made))], { concurrency: 2 })
    yield* free(made)
  })

const fork = (line: string): Promise<boolean> => {
  const [file = "", ...args] = line.split(" ")
  return new Promise((resolve) => {
    spawn(file, args, { stdio: ["ignore", "pipe", "pipe"] }).once("error", () => resolve(false))
      .once("close", (code) => resolve(code === 0))
  })
}

/** In order; a line that begins with `?` looks, or may fail. */
const forks = async (lines: ReadonlyArray<string>): Promise<void> => {
  for (const line of lines) {
    const may = line.startsWith("? ")
    if (!(await fork(may ? line.slice(2) : line)) && !may) throw new Error(line)
  }
}

const tap = "tap-1fdcc600"
const chain = "microvm-1fdcc600d97101a6"
const nat = (action: string) => `iptables -t nat ${action} POSTROUTING -s 172.30.0.0/24 -o eth0 -j MASQUERADE`
const forward = (action: string, way: string) => `iptables ${action} FORWARD ${way} -j ACCEPT`

/** What its `ensure_host` makes once. */
const crateHost = [
  "ip link add name fcbr0 type bridge",
  "ip addr add 172.30.0.1/24 dev fcbr0",
  "ip link set dev fcbr0 up",
  nat("-A"),
  forward("-A", "-i fcbr0 -o eth0"),
  forward("-A", "-i eth0 -o fcbr0")
]

/** 6 of `ensure_host` when all is there, 5 of `attach` when the TAP is not, 5 of `install` with no rule. */
const crateCreate = [
  "ip link show dev fcbr0",
  "ip -4 addr show dev fcbr0",
  "ip link set dev fcbr0 up",
  nat("-C"),
  forward("-C", "-i fcbr0 -o eth0"),
  forward("-C", "-i eth0 -o fcbr0"),
  `? ip link show dev ${tap}`,
  `ip tuntap add dev ${tap} mode tap`,
  `ip link set dev ${tap} mtu 1500`,
  `ip link set dev ${tap} master fcbr0`,
  `ip link set dev ${tap} up`,
  `iptables -w -N ${chain}`,
  `iptables -w -F ${chain}`,
  `iptables -w -A ${chain} -j DROP`,
  `? iptables -w -C FORWARD -i ${tap} -j ${chain}`,
  `iptables -w -I FORWARD 1 -i ${tap} -j ${chain}`
]

const crateDestroy = [
  "iptables -w -L FORWARD --line-numbers -n",
  "iptables -w -D FORWARD 1",
  `iptables -w -F ${chain}`,
  `iptables -w -X ${chain}`,
  `ip link show dev ${tap}`,
  `? ip link set dev ${tap} nomaster`,
  `? ip link set dev ${tap} down`,
  `ip link delete dev ${tap}`
]

const samples: Record<string, { create: Array<number>; destroy: Array<number> }> = {}

/** A round is both, of which each is told too. */
const contestant = <A>(name: string, make: () => Promise<A>, remove: (made: A) => Promise<unknown>) => ({
  name,
  run: async () => {
    const start = now()
    const made = await make()
    const between = now()
    await remove(made)
    const end = now()
    const kept = samples[name] ??= { create: [], destroy: [] }
    kept.create.push(between - start)
    kept.destroy.push(end - between)
    return end - start
  }
})

const our = (name: string, count: number) =>
  contestant(name, () => runtime.runPromise(create(count)), (made) => runtime.runPromise(destroy(made)))

const bare = (name: string, count: number) => ({
  name,
  run: async () => {
    const placed = await runtime.runPromise(allocate(count))
    const took = await contestant(
      name,
      () => runtime.runPromise(makeLinks(placed)),
      () => runtime.runPromise(removeLinks(placed))
    ).run()
    await runtime.runPromise(free(placed))
    return took
  }
})

try {
  if (iptables !== "") await forks(crateHost)
  // Others are there already: the first machine on a host makes the table, and the last one removes it.
  const standing = await runtime.runPromise(create(1))
  const contestants = [
    our("one", 1),
    our("hundred", 100),
    bare("one link", 1),
    bare("hundred links", 100),
    ...(iptables === "" ? [] : [contestant("crate", () => forks(crateCreate), () => forks(crateDestroy))])
  ]
  await interleaved(Number(rounds), contestants)
  await runtime.runPromise(destroy(standing))
  process.stdout.write(JSON.stringify(samples))
} finally {
  await runtime.dispose()
  rmSync(directory, { recursive: true })
}
