/** What real packets of a guest come to as metrics. */
import { assert, describe, it } from "@effect/vitest"
import { Cidr, EgressRule, Firewall, NetworkMetrics, NodeHostCommands } from "effect-microvm-runtime/host"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import { farSide, guest, make, missing } from "./packetWorld.ts"

const why = missing()
if (why !== undefined) console.warn(`skipped: NetworkMetrics.integration.test.ts: ${why}`)

const address = (text: string) => Result.getOrThrow(Cidr.parseAddress(text))

const { gateway4, link, mac, v4 } = guest(1)

const machine: Firewall.Machine = {
  id: "web-1",
  token: "00000000000000aa",
  link,
  mac,
  v4: { guest: address(v4), gateway: address(gateway4) },
  rules: Result.getOrThrow(EgressRule.parseAll([`${farSide.v4}:80/tcp`]))
}

const world = Effect.acquireRelease(
  Effect.promise(() => make(1, [], "metrics")),
  ({ end }) => Effect.promise(end)
)

const packets = Effect.map(
  Metric.snapshot,
  (all) =>
    Object.fromEntries(
      all.flatMap(({ attributes, id, state }) =>
        id === "microvm.network.packets" && attributes?.["machine"] === machine.id && "count" in state
          ? [[`${attributes["verdict"]} ${attributes["direction"]}`, Number(state.count)]]
          : []
      )
    )
)

const reports = `table inet reports { chain output { type filter hook output priority -1; policy accept
  oifname "${link}" icmpv6 type mld2-listener-report counter
}; }`

describe("metrics of a real firewall", () => {
  it.live.skipIf(why !== undefined)("tell what a guest has sent and got, and what not", () =>
    Effect.gen(function*() {
      const { agents, host, run } = yield* world
      const [agent = agents.host] = agents.guests
      const send = (port: number) => Effect.promise(() => agent.ask({ op: "tcp", to: farSide.v4, port, within: 3_000 }))
      const program = Effect.gen(function*() {
        const firewall = yield* Firewall.Firewall
        const metrics = yield* NetworkMetrics.NetworkMetrics
        yield* firewall.install([machine])
        yield* metrics.watch({ machine: machine.id, token: machine.token, firewall })
        yield* send(80)
        yield* send(81)
        // The host's kernel tells of its multicast groups on every link, by itself and when it likes.
        yield* Effect.sync(() => run(host, "nft", reports))
        yield* Effect.sync(() => run(host, "ip", "address", "add", "fd30:1::1/128", "dev", link))
        yield* Effect.sync(() => run(host, "nft", "list", "table", "inet", "reports")).pipe(
          Effect.filterOrFail((told) => /counter packets [1-9]/.test(told)),
          Effect.retry({ schedule: Schedule.spaced("20 millis"), times: 500 })
        )
        const found = yield* packets.pipe(
          Effect.filterOrFail((all) => (all["denied out"] ?? 0) > 0 && (all["allowed in"] ?? 0) > 0),
          Effect.retry({ schedule: Schedule.spaced("20 millis"), times: 250 })
        )
        // The answers to what was allowed; nothing came by itself.
        assert.isAbove(found["allowed out"] ?? 0, 0)
        assert.strictEqual(found["denied in"], 0)
        // To install it again, as whoever adopts the machine does, forgets nothing.
        const allowed = Effect.map(firewall.counters, (all) => all.get(machine.token)?.allowedOut.packets ?? 0)
        const before = yield* allowed
        yield* firewall.install([machine])
        assert.isAtLeast(yield* allowed, before)
        yield* firewall.uninstall([machine])
      })
      yield* Effect.scoped(program).pipe(
        Effect.provide(
          Layer.fresh(Layer.merge(Firewall.layer({ table: "metrics" }), NetworkMetrics.layer({ every: "50 millis" })))
            .pipe(
              Layer.provide(NodeHostCommands.layerIn(`/run/netns/${host}`))
            )
        )
      )
      assert.deepStrictEqual(yield* packets, {})
    }).pipe(Effect.scoped))
})
