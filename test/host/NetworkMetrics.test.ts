import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Metric from "effect/Metric"
import * as PrometheusMetrics from "effect/observability/PrometheusMetrics"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { type DnsRelay, type Firewall, HostError, NetworkMetrics } from "../../src/host/index.ts"

const none = { packets: 0, bytes: 0 }

const counted = (packets: number): Firewall.Counters => ({
  allowedOut: { packets, bytes: 100 * packets },
  allowedIn: none,
  deniedOut: { packets: 2 * packets, bytes: 50 * packets },
  deniedIn: none
})

const asked: DnsRelay.Counters = {
  received: 21,
  answered: 1,
  empty: 2,
  refused: 3,
  failed: 4,
  dropped: 11,
  malformed: 5,
  tooMany: 6,
  withheld: 7
}

/** A firewall whose counters are said, and who counts how often they are read. */
const makeFirewall = (table = "effect-microvm") => {
  const all = new Map<string, Firewall.Counters>()
  let reads = 0
  let isBroken = false
  return {
    table,
    all,
    reads: () => reads,
    setBroken: (broken: boolean) => void (isBroken = broken),
    counters: Effect.suspend(() => {
      reads++
      return isBroken
        ? HostError.fail(new HostError.Unavailable({ what: "the firewall", why: "no rights", remedy: "be root" }))
        : Effect.succeed(new Map(all))
    })
  }
}

const watch = (machine: NetworkMetrics.Watched) =>
  NetworkMetrics.NetworkMetrics.use((metrics) => metrics.watch(machine))

/** With a registry of its own. */
const within = (options: NetworkMetrics.Options = {}) =>
<A, E>(
  effect: Effect.Effect<A, E, NetworkMetrics.NetworkMetrics | Scope.Scope>
) =>
  effect.pipe(
    Effect.scoped,
    Effect.provide(Layer.fresh(NetworkMetrics.layer(options))),
    (program) => Effect.suspend(() => Effect.provideService(program, Metric.MetricRegistry, new Map()))
  )

const exported = Effect.map(Metric.snapshot, (all) =>
  Object.fromEntries(all.map(({ attributes, id, state }) => {
    assert.deepInclude(state, { incremental: true })
    const { machine, direction = "", verdict = "", outcome = "" } = attributes ?? {}
    return [
      [id.replace("microvm.", ""), machine, verdict + outcome, direction].filter((part) => part !== "").join(" "),
      "count" in state ? state.count : undefined
    ]
  })))

const silent = {
  "network.packets a allowed in": 0,
  "network.bytes a allowed in": 0,
  "network.packets a denied in": 0,
  "network.bytes a denied in": 0
}

describe("NetworkMetrics", () => {
  it.effect("exports what is counted of each machine, read every ten seconds for all of a table at once", () =>
    within()(Effect.gen(function*() {
      const firewall = makeFirewall()
      const other = makeFirewall("effect-microvm-mv1")
      yield* watch({ machine: "a", token: "aa", firewall })
      yield* watch({ machine: "b", token: "bb", firewall })
      yield* watch({ machine: "c", token: "cc", firewall: other, names: Effect.succeed(asked) })
      firewall.all.set("aa", counted(1)).set("bb", counted(0)).set("stranger", counted(9))
      yield* TestClock.adjust("9999 millis")
      assert.deepStrictEqual([firewall.reads(), other.reads()], [0, 0])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual([firewall.reads(), other.reads()], [1, 1])
      const all = yield* exported
      assert.strictEqual(Object.keys(all).length, 8 + 8 + 7)
      assert.deepInclude(all, {
        ...silent,
        "network.packets a allowed out": 1,
        "network.bytes a allowed out": 100,
        "network.packets a denied out": 2,
        "network.bytes a denied out": 50,
        "network.packets b denied out": 0,
        "names.questions c answered": 1,
        "names.questions c empty": 2,
        "names.questions c refused": 3,
        "names.questions c failed": 4,
        "names.questions c malformed": 5,
        "names.questions c too_many": 6,
        "names.withheld c": 7
      })
      firewall.all.set("aa", counted(5))
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual((yield* exported)["network.packets a allowed out"], 5)
    })))

  it.effect("is read by Prometheus", () =>
    within()(Effect.gen(function*() {
      const firewall = makeFirewall()
      firewall.all.set("aa", counted(3))
      yield* watch({ machine: "a", token: "aa", firewall, names: Effect.succeed(asked) })
      yield* TestClock.adjust("10 seconds")
      const text = yield* PrometheusMetrics.format()
      assert.match(text, /^microvm_network_packets\{machine="a",direction="out",verdict="denied"\} 6$/m)
      assert.match(text, /^microvm_names_questions\{machine="a",outcome="too_many"\} 6$/m)
    })))

  it.effect("takes out the series of a machine that is gone, also when it is being read, and reads for nobody", () =>
    within()(Effect.gen(function*() {
      const firewall = makeFirewall()
      firewall.all.set("aa", counted(1)).set("bb", counted(1))
      const [a, b] = [yield* Scope.make(), yield* Scope.make()]
      yield* Scope.provide(watch({ machine: "a", token: "aa", firewall }), a)
      yield* TestClock.adjust("10 seconds")
      const reading = yield* Deferred.make<void>()
      yield* Scope.provide(
        watch({ machine: "b", token: "bb", firewall, names: Effect.as(Deferred.await(reading), asked) }),
        b
      )
      yield* TestClock.adjust("10 seconds")
      yield* Scope.close(b, Exit.void)
      yield* Deferred.succeed(reading, undefined)
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(Object.keys(yield* exported).length, 8)
      yield* Scope.close(a, Exit.void)
      assert.deepStrictEqual(yield* exported, {})
      const reads = firewall.reads()
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(firewall.reads(), reads)
    })))

  it.effect("keeps the numbers while they cannot be read or are gone, and says so once", () => {
    const warnings: Array<unknown> = []
    const logger = Logger.make(({ message }) => void warnings.push(message))
    return within({ every: "1 second" })(Effect.gen(function*() {
      const firewall = makeFirewall()
      firewall.all.set("aa", counted(4))
      yield* watch({ machine: "a", token: "aa", firewall })
      const after = (change: () => void) =>
        Effect.sync(change).pipe(
          Effect.andThen(TestClock.adjust("2 seconds")),
          Effect.andThen(exported),
          Effect.map((all) => [all["network.packets a allowed out"], warnings.length])
        )
      assert.deepStrictEqual(yield* after(() => {}), [4, 0])
      assert.deepStrictEqual(yield* after(() => firewall.setBroken(true)), [4, 1])
      assert.deepStrictEqual(yield* after(() => firewall.setBroken(false)), [4, 1])
      assert.deepStrictEqual(yield* after(() => firewall.setBroken(true)), [4, 2])
      assert.include(String(warnings[0]), "table effect-microvm")
      // A counter that becomes less would be taken for one that has begun anew.
      assert.deepStrictEqual(
        yield* after(() => {
          firewall.setBroken(false)
          firewall.all.set("aa", counted(3))
        }),
        [4, 2]
      )
      assert.deepStrictEqual(yield* after(() => firewall.all.clear()), [4, 2])
    })).pipe(Effect.provide(Logger.layer([logger])))
  })

  it.effect.each([0, -1, Number.NaN, "soon"])("refuses to read every %s", (every) =>
    Effect.gen(function*() {
      // @ts-expect-error Not a time.
      const { reason } = yield* Effect.flip(within({ every })(Effect.void))
      assert.deepInclude(reason, { _tag: "InvalidArgument" })
    }))
})
