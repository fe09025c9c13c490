import { describe, expect, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import { Cidr, HostCommands, HostError, KernelSettings, Links, LinkSpec } from "../../src/host/index.ts"
import * as Plan from "../../src/host/internal/linkPlan.ts"
import * as FakeIp from "./fakeIp.ts"

const tokenOf = (index: number): string => (0xabc_0000_0000_0000n * 16n + BigInt(index) * (1n << 32n)).toString(16)

const linkOf = (index: number, topology: LinkSpec.Topology = LinkSpec.Topology.Routed()): LinkSpec.LinkSpec => ({
  name: `mv3fa2-${index}`,
  owner: { id: `web-${index}`, token: tokenOf(index) },
  topology
})

const claimOf = ({ name, owner, topology }: LinkSpec.LinkSpec) => ({
  owner: { ...owner, bootId: "this" },
  data: { name, netns: topology?._tag === "Namespace" }
})

const settings = KernelSettings.layerMemory(new Map())

/** The service and the kind, over a host in memory in whose way mishaps are put. */
const over = (
  host: FakeIp.FakeHost,
  at: (index: number, command: HostCommands.HostCommand) => HostCommands.Mishap | undefined = () => undefined
) => {
  let calls = 0
  const commands = HostCommands.layerFaulty((_, command) => at(calls++, command)).pipe(
    Layer.provide(HostCommands.layerScripted(FakeIp.run(host)))
  )
  const layer = Layer.fresh(Layer.provideMerge(Links.layer, Layer.merge(commands, settings)))
  return {
    make: (links: ReadonlyArray<LinkSpec.LinkSpec>) =>
      Effect.provide(Links.Links.use((service) => service.make(links)), layer),
    makeEach: (all: ReadonlyArray<ReadonlyArray<LinkSpec.LinkSpec>>) =>
      Effect.provide(
        Links.Links.use((service) =>
          Effect.forEach(all, (links) => Effect.exit(service.make(links)), { concurrency: "unbounded" })
        ),
        layer
      ),
    reclaim: (links: ReadonlyArray<LinkSpec.LinkSpec>) =>
      Effect.provide(Links.kind.reclaim(links.map(claimOf), { dryRun: false }), layer)
  }
}

const alone = { alias: "somebody else's", group: "default", kind: "tap" } as const

const networks = Arbitrary.schema(Schema.Struct({
  count: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 5 })),
  spaced: Schema.Boolean,
  /** Names that are taken by others. */
  others: Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 7 }))),
  othersAlias: Schema.Literals(["", "effect-microvm", "effect-microvm 0000000000000000 x mv3fa2-1"]),
  stopAt: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 60 }))
}))

describe("Links", () => {
  it.effect.prop(
    "whenever we are killed, what is ours is found again, and what is not stays",
    [networks],
    ([{ count, others, othersAlias, spaced, stopAt }]) =>
      Effect.gen(function*() {
        const host = FakeIp.make()
        for (const index of others) {
          host.links.set(`mv3fa2-${index}`, {
            ...(othersAlias === "" ? {} : { alias: othersAlias }),
            group: "default",
            kind: "tap"
          })
        }
        const before = [...host.links.keys()].toSorted()
        const links = Array.from({ length: count }, (_, index) =>
          linkOf(index + 1, spaced ? LinkSpec.Topology.Namespace() : LinkSpec.Topology.Routed()))
        host.stopAt = stopAt
        const made = yield* Effect.result(over(host).make(links))
        const conflicts = links.filter(({ name }) =>
          before.includes(name)
        )
        if (Result.isSuccess(made)) expect(conflicts).toEqual([])
        // The next supervisor.
        host.stopAt = Infinity
        const verdicts = yield* over(host).reclaim(links)
        expect([...host.links.keys()].toSorted()).toEqual(before)
        expect(host.netns.size).toBe(0)
        expect(verdicts.map(({ _tag }) => _tag)).not.toContain("Stuck")
        expect(new Set((yield* over(host).reclaim(links)).map(({ _tag }) => _tag))).not.toContain("Released")
      })
  )

  it.effect("a command that fails or hangs at any call is told, and leaves nothing for the next one", () =>
    Effect.gen(function*() {
      for (const mishap of ["fails before", "fails after", "hangs before", "hangs after"] as const) {
        for (let at = 0; at < 8; at++) {
          const host = FakeIp.make()
          const links = [linkOf(1, LinkSpec.Topology.Namespace()), linkOf(2)]
          const { make, reclaim } = over(host, (index) => index === at ? mishap : undefined)
          const fiber = yield* Effect.forkChild(
            Effect.flatMap(
              Effect.result(make(links)),
              (made) => Effect.map(reclaim(links), (verdicts) => ({ made, verdicts }))
            )
          )
          for (let second = 0; second < 100 && fiber.pollUnsafe() === undefined; second++) {
            yield* TestClock.adjust("1 second")
          }
          const { made, verdicts } = yield* Fiber.join(fiber)
          // Two calls make them.
          expect(Result.isFailure(made)).toBe(at < 2)
          if (Result.isFailure(made)) {
            expect(made.failure.reason._tag).toBe(mishap.startsWith("fails") ? "CommandFailed" : "CommandHung")
          }
          // What could not even be looked at is Stuck, and its claim stays.
          if (verdicts.some(({ _tag }) => _tag === "Stuck")) {
            expect(at).toBeGreaterThanOrEqual(2)
            yield* over(host).reclaim(links)
          }
          expect([...host.links.keys(), ...host.netns]).toEqual([])
        }
      }
    }))

  it.effect("a removal that fails says what is left, and how to remove it", () =>
    Effect.gen(function*() {
      const host = FakeIp.make()
      const links = [linkOf(1), linkOf(2)]
      const { make, reclaim } = over(host, (_, { args }) => args.includes("-force") ? "fails before" : undefined)
      yield* make(links)
      expect(yield* reclaim([linkOf(3), ...links])).toEqual([
        { _tag: "Absent" },
        ...links.map(({ name }) => ({
          _tag: "Stuck",
          why: "to remove 2 links: ip exited with code 1: fails before",
          remedy: `ip link del dev ${name}`
        }))
      ])
    }))

  it.effect("an interface under our name is Foreign, unless its alias is that of its owner", () =>
    Effect.gen(function*() {
      const host = FakeIp.make()
      host.links.set("mv3fa2-1", { ...alone })
      const { make, reclaim } = over(host)
      const refused = yield* Effect.flip(make([linkOf(2), linkOf(1)]))
      expect(refused.reason._tag).toBe("Conflict")
      expect([...host.links.keys()]).toEqual(["mv3fa2-1"])
      expect(yield* reclaim([linkOf(1)])).toEqual([
        { _tag: "Foreign", why: "mv3fa2-1 is not ours: its alias is \"somebody else's\"" }
      ])
    }))

  it.effect("what somebody else is just making under a name that we want, too, stays", () =>
    Effect.gen(function*() {
      const host = FakeIp.make()
      host.links.set("mv3fa2-2", { group: "default", kind: "tap", marked: true })
      const { make } = over(host)
      const refused = yield* Effect.flip(make([linkOf(1), linkOf(2), linkOf(3)]))
      expect(refused.reason._tag).toBe("Conflict")
      expect([...host.links.keys()]).toEqual(["mv3fa2-2"])
    }))

  it.effect("calls at the same time are one command, and one that fails does so alone", () =>
    Effect.gen(function*() {
      const host = FakeIp.make()
      const batches: Array<string> = []
      const commands = HostCommands.layerScripted((command) => {
        if (command.args.join(" ") === "-batch -") batches.push(command.input ?? "")
        return FakeIp.run(host)(command)
      })
      const layer = Layer.provideMerge(Links.layer, Layer.merge(commands, settings))
      yield* Effect.gen(function*() {
        const { make } = yield* Links.Links
        const all = [1, 2, 3].map((index) => make([linkOf(index)]))
        yield* Effect.all(all, { concurrency: "unbounded" })
        expect(batches).toHaveLength(1)
        host.links.set("mv3fa2-5", { ...alone })
        const results = yield* Effect.forEach([4, 5, 6, 6], (index) => Effect.result(make([linkOf(index)])), {
          concurrency: "unbounded"
        })
        const tags = results.map((one) => Result.isFailure(one) ? one.failure.reason._tag : "made")
        expect(tags).toEqual(["made", "Conflict", "made", "Conflict"])
        expect([...host.links.keys()].toSorted()).toEqual([1, 2, 3, 4, 5, 6].map((index) => `mv3fa2-${index}`))
      }).pipe(Effect.provide(layer))
    }))

  it.effect("calls at the same time that are tried alone do not wait for each other", () =>
    Effect.gen(function*() {
      const host = FakeIp.make()
      const hangs = (_: number, { args }: HostCommands.HostCommand) =>
        args.join(" ") === "-batch -" ? "hangs before" as const : undefined
      const { makeEach } = over(host, hangs)
      const fiber = yield* Effect.forkChild(makeEach([1, 2, 3, 4].map((index) => [linkOf(index)])))
      for (let second = 0; second < 25; second++) yield* TestClock.adjust("1 second")
      expect(fiber.pollUnsafe()).toBeDefined()
    }))

  it.effect("of calls at the same time, one that is interrupted is undone, and the others are not", () =>
    Effect.gen(function*() {
      const host = FakeIp.make()
      const commands = HostCommands.layerScripted((command) =>
        command.args.join(" ") === "-batch -"
          ? Effect.andThen(Effect.sleep("1 second"), FakeIp.run(host)(command))
          : FakeIp.run(host)(command)
      )
      const layer = Layer.provideMerge(Links.layer, Layer.merge(commands, settings))
      yield* Effect.gen(function*() {
        const { make } = yield* Links.Links
        const [one, two, three] = yield* Effect.forEach([1, 2, 3], (index) => Effect.forkChild(make([linkOf(index)])))
        yield* TestClock.adjust("500 millis")
        // Who asks now is the next command.
        const four = yield* Effect.forkChild(make([linkOf(4)]))
        const leaving = yield* Effect.forkChild(
          Effect.all([one, four].flatMap((fiber) => fiber ?? []).map(Fiber.interrupt))
        )
        yield* TestClock.adjust("10 seconds")
        yield* Fiber.join(leaving)
        for (const fiber of [two, three]) if (fiber !== undefined) yield* Fiber.join(fiber)
        expect([...host.links.keys()]).toEqual(["mv3fa2-2", "mv3fa2-3"])
      }).pipe(Effect.provide(layer))
    }))

  it.effect("the links of one removal are put into a group that nobody else uses", () =>
    Effect.gen(function*() {
      const host = FakeIp.make()
      const { make, reclaim } = over(host)
      host.links.set("eth0", { ...alone })
      yield* make([linkOf(1), linkOf(2)])
      yield* reclaim([linkOf(1), linkOf(2)])
      expect(host.lines.at(-1)).toMatch(/^link del group \d{5,10}$/)
      expect([...host.links.keys()]).toEqual(["eth0"])
    }))

  it.effect("nothing is run for nothing", () =>
    Effect.gen(function*() {
      const { make, reclaim } = over(FakeIp.make(), () => "fails before")
      expect(yield* make([])).toEqual([])
      expect(yield* reclaim([])).toEqual([])
    }))

  it.effect("all that is wrong with the links is told at once, and nothing is done", () =>
    Effect.gen(function*() {
      const host = FakeIp.make()
      const { make } = over(host, () => "fails before")
      const wide: LinkSpec.LinkSpec = {
        name: "sixteen-bytes-16",
        owner: { id: "a/b", token: "short" },
        mtu: 1_000,
        user: -1,
        group: 1.5,
        addresses: [
          { address: { family: 6, value: 1n }, prefix: 129 },
          { address: { family: 4, value: 1n }, prefix: 0 }
        ]
      }
      const { reason } = yield* Effect.flip(make([
        wide,
        linkOf(1),
        linkOf(1),
        {
          ...linkOf(2),
          addresses: [{ address: { family: 4, value: 1n }, prefix: 31 }],
          topology: LinkSpec.Topology.Port({ bridge: "a b" })
        }
      ]))
      expect(reason).toBeInstanceOf(HostError.InvalidArgument)
      if (reason._tag !== "InvalidArgument") return
      expect(reason.faults.map(({ field }) => field)).toEqual([
        "links[0].name",
        "links[0].owner.id",
        "links[0].owner.token",
        "links[0].mtu",
        "links[0].user",
        "links[0].group",
        "links[0].addresses[0].prefix",
        "links[0].addresses[1].prefix",
        "links[2].name",
        "links[3].topology.bridge",
        "links[3].addresses"
      ])
      expect(host.lines).toEqual([])
    }))

  it.each(["", "-a", "a b", "a/b", "a:b", "tap;rm", "tap|x", "a%d", ".", "..", "all", "default", "a\n", "ä", "a\"b"])(
    "refuses an interface of the name %j",
    (name) => {
      expect(Plan.check([{ ...linkOf(1), name }])).toMatchObject([{ field: "links[0].name", value: name }])
    }
  )

  it("takes names of up to 15 bytes, with dots in them", () => {
    expect(["fifteen-bytes-1", "a", "eth0.5", "_x"].flatMap((name) => Plan.check([{ ...linkOf(1), name }]))).toEqual([])
  })

  it("the lines of a routed link", () => {
    const addresses = [{ address: Result.getOrThrow(Cidr.parseAddress("fd00::2")), prefix: 127 }]
    expect(Plan.outside([{ ...linkOf(1), user: 65_534, group: 5, addresses }])).toEqual([
      "tuntap add dev mv3fa2-1 mode tap user 65534 group 5 pi vnet_hdr",
      "link set dev mv3fa2-1 alias \"effect-microvm abc0000100000000 web-1 mv3fa2-1\" mtu 1500 addrgenmode none up",
      "addr add fd00::2/127 dev mv3fa2-1 nodad"
    ])
  })
})
