import { describe, expect, it } from "@effect/vitest"
import {
  Addresses,
  Cidr,
  DnsRelay,
  EgressRule,
  Firewall,
  HostError,
  Links,
  type LinkSpec,
  MachineNetworks,
  NetworkMetrics,
  Routes
} from "effect-microvm-runtime/host"
import { Journal } from "effect-microvm-runtime/journal"
import { NodeProcessHost } from "effect-microvm-runtime/process"
import { Resources } from "effect-microvm-runtime/supervisor"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as TestClock from "effect/testing/TestClock"

const pair = (host: string, guest: string, prefix: number): Addresses.Pair => ({
  host: Result.getOrThrow(Cidr.parseAddress(host)),
  guest: Result.getOrThrow(Cidr.parseAddress(guest)),
  prefix
})

const allocation: Addresses.Allocation = {
  index: 1,
  tap: "mv1a2b-1",
  mac: "02:1a:2b:00:00:01",
  v4: pair("172.30.0.2", "172.30.0.3", 31),
  v6: pair("fd00::2", "fd00::3", 127)
}

const network = (text: string) => Result.getOrThrow(Cidr.parse(text))

const rulesOf = (...texts: ReadonlyArray<string>) => Result.getOrThrow(EgressRule.parseAll(texts))

/** What is asked of the parts, in order. A change to rules with `failing` fails. */
const world = () => {
  const told: Array<string> = []
  /** Who may open the TAP. */
  const openers: Array<LinkSpec.LinkSpec["user"]> = []
  const served: Array<Pick<DnsRelay.ServeOptions, "addresses" | "clients">> = []
  const allowed = ({ rules }: Firewall.Machine) => rules.map(EgressRule.format).join()
  const parts = Layer.mergeAll(
    Layer.mock(Addresses.Addresses, {
      pool: { directory: "/pool", id: "1a2b", ipv4: network("172.30.0.0/16"), ipv6: network("fd00::/64"), size: 9 },
      claim: { kind: "addresses", data: { directory: "/pool" } },
      allocate: () => Effect.succeed(allocation),
      allocations: Effect.sync(() => [{ owner, allocation }])
    }),
    Layer.mock(Firewall.Firewall, {
      table: "effect-microvm-mv1a2b",
      claim: () => ({ kind: "rules", data: {} }),
      mayLearn: () => true,
      install: (machines) => Effect.sync(() => void told.push(`install ${machines.map(allowed).join()}`)),
      replace: (before, after) =>
        Effect.suspend(() => {
          told.push(`replace ${allowed(before)} by ${allowed(after)}`)
          return allowed(after) === "192.0.2.66"
            ? HostError.fail(new HostError.Unavailable({ what: "the firewall", why: "a test", remedy: "none" }))
            : Effect.sleep("1 second")
        })
    }),
    Layer.mock(Links.Links, {
      make: (specs) => {
        openers.push(...specs.map(({ user }) => user))
        return Effect.succeed([{ name: "mv1a2b-1", tap: "mv1a2b-1", enter: [] }])
      }
    }),
    Layer.mock(DnsRelay.DnsRelay, {
      serve: ({ addresses, clients }) =>
        Effect.sync(() => {
          served.push({ addresses, clients })
          return { replace: () => Effect.void, counters: Effect.never }
        })
    }),
    Layer.mock(Routes.Routes, {
      facts: () => Effect.succeed({ ipv4: way, ipv6: way, mtu: 1500 }),
      prepare: ({ seen }) => seen === undefined ? Effect.die("what was seen is looked for again") : Effect.succeed(seen)
    })
  )
  const owner = { id: "web-1", token: "" }
  const layer = Layer.merge(
    MachineNetworks.layer().pipe(Layer.provide(parts)),
    Journal.layerMemory().pipe(Layer.provide(NodeProcessHost.layer))
  )
  const open = Effect.gen(function*() {
    const entry = yield* Journal.Journal.use((journal) => journal.open({ id: "web-1", keep: true, spec: {} }))
    owner.token = entry.token
    return entry
  })
  return { told, served, openers, layer, open }
}

const way: Routes.Way = { egress: Option.none(), forwarding: true }

describe("the network of a machine", () => {
  it.effect("only the machine is served", () => {
    const { layer, open, served } = world()
    return Effect.gen(function*() {
      yield* (yield* MachineNetworks.MachineNetworks).attach(yield* open, { allow: rulesOf("api.example.com") })
      expect(served).toEqual([{ addresses: ["172.30.0.2", "fd00::2"], clients: ["172.30.0.3", "fd00::3"] }])
    }).pipe(Effect.scoped, Effect.provide(layer))
  })

  it.effect("is opened by the user that the machine was given", () => {
    const { layer, open, openers } = world()
    return Effect.gen(function*() {
      const entry = yield* open
      const { acquire } = Resources.network({ allow: [] })
      yield* acquire(entry, [])
      yield* acquire(entry, [{ netns: "/run/netns/other" }, { user: 2_000_000_007 }])
      expect(openers).toEqual([65_534, 2_000_000_007])
    }).pipe(Effect.scoped, Effect.provide(layer))
  })

  it.effect("an adopted one has the rules that were written last, whatever the host has of them", () => {
    const { layer, open, told } = world()
    return Effect.gen(function*() {
      const networks = yield* MachineNetworks.MachineNetworks
      const entry = yield* open
      const { control } = yield* networks.attach(entry, { allow: rulesOf("192.0.2.1") })
      const changed = yield* Effect.forkChild(control.allow(rulesOf("192.0.2.2")))
      yield* TestClock.adjust("1 second")
      yield* Effect.yieldNow
      expect(changed.pollUnsafe()?._tag).toBe("Success")
      expect(Option.isSome(yield* networks.resume(entry))).toBe(true)
      expect(told).toEqual(["install 192.0.2.1", "replace 192.0.2.1 by 192.0.2.2", "install 192.0.2.2"])
    }).pipe(Effect.scoped, Effect.provide(layer))
  })

  it.effect("a change that fails is not written, and two changes are made one after the other", () => {
    const { layer, open, told } = world()
    return Effect.gen(function*() {
      const networks = yield* MachineNetworks.MachineNetworks
      const entry = yield* open
      const { control } = yield* networks.attach(entry, { allow: rulesOf("192.0.2.1") })
      expect((yield* Effect.flip(control.allow(rulesOf("192.0.2.66"))))._tag).toBe("HostError")
      expect((yield* entry.record).labels["network-allow"]).toBe("[\"192.0.2.1\"]")
      yield* Effect.forkChild(control.allow(rulesOf("192.0.2.2")))
      yield* Effect.forkChild(control.allow(rulesOf("192.0.2.3")))
      yield* TestClock.adjust("2 seconds")
      expect(told.slice(2)).toEqual(["replace 192.0.2.1 by 192.0.2.2", "replace 192.0.2.2 by 192.0.2.3"])
      expect((yield* entry.record).labels["network-allow"]).toBe("[\"192.0.2.3\"]")
    }).pipe(Effect.scoped, Effect.provide(layer))
  })

  it.effect("is watched where there are metrics, from its attachment or its adoption on", () => {
    const { layer, open } = world()
    const watched: Array<string> = []
    const metrics = Layer.mock(NetworkMetrics.NetworkMetrics, {
      watch: ({ firewall, machine, token }) =>
        Effect.sync(() => void watched.push(`${machine} ${token} in ${firewall.table}`))
    })
    return Effect.gen(function*() {
      const networks = yield* MachineNetworks.MachineNetworks
      const entry = yield* open
      yield* networks.attach(entry, { allow: [] })
      yield* networks.resume(entry)
      const expected = `web-1 ${entry.token} in effect-microvm-mv1a2b`
      expect(watched).toEqual([expected, expected])
    }).pipe(Effect.scoped, Effect.provide([layer, metrics]))
  })
})
