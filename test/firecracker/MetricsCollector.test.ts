import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Metric from "effect/Metric"
import * as PrometheusMetrics from "effect/observability/PrometheusMetrics"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as FirecrackerError from "../../src/firecracker/FirecrackerError.ts"
import * as MetricsCollector from "../../src/firecracker/MetricsCollector.ts"

const encode = (text: string): Uint8Array => new TextEncoder().encode(text)

/** A source that gives out what is written to it, piece by piece. */
const makeSource = () => {
  const pieces: Array<Uint8Array> = []
  let isBroken = false
  let reads = 0
  return {
    write: (...texts: ReadonlyArray<string | Uint8Array>) => {
      for (const text of texts) pieces.push(typeof text === "string" ? encode(text) : text)
    },
    setBroken: (broken: boolean) => {
      isBroken = broken
    },
    reads: () => reads,
    read: Effect.suspend(() => {
      reads++
      return isBroken
        ? FirecrackerError.fail(new FirecrackerError.HostFailed({ operation: "read", path: "/x", why: "EIO" }))
        : Effect.succeed(pieces.shift() ?? new Uint8Array(0))
    })
  }
}

const line = (document: unknown): string => `${JSON.stringify(document)}\n`

const withRegistry = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => Effect.provideService(effect, Metric.MetricRegistry, new Map()))

const snapshot = Effect.map(
  Metric.snapshot,
  (all) =>
    all.map(({ attributes, id, state, type }) => ({ id, type, attributes, state })).toSorted((a, b) =>
      a.id < b.id ? -1 : 1
    )
)

describe("a collector", () => {
  it.effect("looks each second, and when it is told to", () =>
    withRegistry(Effect.gen(function*() {
      const source = makeSource()
      const metrics = yield* MetricsCollector.make(source, { machine: "a" })
      source.write(line({ vcpu: { x: 1 } }))
      yield* TestClock.adjust("999 millis")
      assert.strictEqual((yield* metrics.totals).lines, 1)
      source.write(line({ vcpu: { x: 2 } }))
      yield* TestClock.adjust("500 millis")
      assert.strictEqual((yield* metrics.totals).values.get("vcpu.x"), 3)
      source.write(line({ vcpu: { x: 4 } }))
      assert.strictEqual((yield* metrics.refresh).values.get("vcpu.x"), 7)
      assert.strictEqual((yield* metrics.totals).values.get("vcpu.x"), 7)
    })))

  it.effect("reads a last time when the scope closes", () =>
    withRegistry(Effect.gen(function*() {
      const source = makeSource()
      const scope = yield* Scope.make()
      const metrics = yield* Scope.provide(MetricsCollector.make(source, { machine: "a" }), scope)
      const seen = yield* Effect.forkChild(Stream.runCollect(metrics.changes), { startImmediately: true })
      source.write(line({ vcpu: { x: 1 } }))
      yield* metrics.refresh
      source.write(line({ vcpu: { x: 2 } }))
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual((yield* metrics.totals).values.get("vcpu.x"), 3)
      const values = (yield* Fiber.join(seen)).map((totals) => totals.values.get("vcpu.x"))
      assert.deepStrictEqual(values, [1, 3])
      const reads = source.reads()
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(source.reads(), reads)
      // Nobody is left waiting for changes.
      yield* Stream.runDrain(metrics.changes)
    })))

  it.effect("a line that has no end then is torn, unless all of it is there", () =>
    withRegistry(Effect.gen(function*() {
      const close = Effect.fnUntraced(function*(rest: string) {
        const source = makeSource()
        const metrics = yield* Effect.scoped(
          MetricsCollector.make(source, { machine: "a" }).pipe(
            Effect.tap(() => Effect.sync(() => source.write(line({ vcpu: { x: 1 } }), rest)))
          )
        )
        const { lines, torn } = yield* metrics.totals
        return { lines, torn }
      })
      assert.deepStrictEqual(yield* close(""), { lines: 1, torn: 0 })
      assert.deepStrictEqual(yield* close("{\"vcpu\":{\"x\""), { lines: 1, torn: 1 })
      assert.deepStrictEqual(yield* close("{\"vcpu\":{\"x\":1}}"), { lines: 2, torn: 0 })
    })))

  it.effect("shows the present totals first, and the last ones to whoever is slow", () =>
    withRegistry(Effect.gen(function*() {
      const source = makeSource()
      const metrics = yield* MetricsCollector.make(source, { machine: "a" })
      const add = Effect.suspend(() => {
        source.write(line({ vcpu: { x: 1 } }))
        return metrics.refresh
      })
      yield* add
      const seen: Array<number | undefined> = []
      yield* metrics.changes.pipe(
        Stream.runForEach((totals) => {
          seen.push(totals.values.get("vcpu.x"))
          return Effect.sleep("100 millis")
        }),
        Effect.forkScoped({ startImmediately: true })
      )
      yield* TestClock.adjust("1 millis")
      for (let count = 0; count < 100; count++) yield* add
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(seen[0], 1)
      assert.strictEqual(seen.at(-1), 101)
      assert.isAtMost(seen.length, 20)
    })))

  it.effect("lines may come in any pieces; one that is too long counts as torn", () =>
    withRegistry(Effect.gen(function*() {
      const source = makeSource()
      const metrics = yield* MetricsCollector.make(source, { machine: "a", maxLineBytes: 100 })
      source.write(
        "{\"vcpu\":",
        "{\"x\":",
        "1}}",
        "\n",
        `{"vcpu":{"x":1},"y":"${"z".repeat(100)}`,
        "zz\"}\n{\"vcpu\":{\"x\":4}}"
      )
      const totals = yield* metrics.refresh
      assert.deepStrictEqual([totals.lines, totals.torn, totals.values.get("vcpu.x")], [1, 1, 1])
      source.write("\n")
      assert.strictEqual((yield* metrics.refresh).values.get("vcpu.x"), 5)
    })))

  it.effect("what has come together for long is read at once, also in the end", () =>
    withRegistry(Effect.gen(function*() {
      const source = makeSource()
      const scope = yield* Scope.make()
      const metrics = yield* Scope.provide(MetricsCollector.make(source, { machine: "a" }), scope)
      const many = Array.from({ length: 500 }, () => line({ vcpu: { x: 1 } }))
      source.write(...many)
      assert.strictEqual((yield* metrics.refresh).lines, 500)
      source.write(...many)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual((yield* metrics.totals).lines, 1000)
    })))

  it.effect("more lines than Firecracker writes are not looked at, and count as torn", () =>
    withRegistry(Effect.gen(function*() {
      const source = makeSource()
      const metrics = yield* MetricsCollector.make(source, { machine: "a" })
      source.write(...Array.from({ length: 60 }, () => line({ vcpu: { x: 1 } }).repeat(1000)))
      const { lines, torn, values } = yield* metrics.refresh
      assert.deepStrictEqual([lines, torn, values.get("vcpu.x")], [512, 59_488, 512])
    })))

  it.effect("a source that never ends does not hold it up", () =>
    withRegistry(Effect.gen(function*() {
      let reads = 0
      const zeros = new Uint8Array(16_384)
      const read = Effect.sync(() => {
        reads++
        return zeros
      })
      const metrics = yield* MetricsCollector.make({ read }, { machine: "a" })
      yield* TestClock.adjust("1 second")
      assert.isAtMost(reads, 128)
      yield* metrics.refresh
      assert.isAtMost(reads, 128 + 4096)
    })))

  it.effect("a source that fails is told, the numbers stay, and it can be tried again", () =>
    withRegistry(Effect.gen(function*() {
      const source = makeSource()
      const metrics = yield* MetricsCollector.make(source, { machine: "a" })
      source.write(line({ vcpu: { x: 1 } }))
      yield* metrics.refresh
      source.setBroken(true)
      const seen = yield* Effect.forkChild(Stream.runCollect(metrics.changes), { startImmediately: true })
      const error = yield* Effect.flip(metrics.refresh)
      assert.strictEqual(error.message, "read /x: EIO")
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual((yield* Fiber.join(seen)).length, 1)
      source.setBroken(false)
      source.write(line({ vcpu: { x: 2 } }))
      assert.strictEqual((yield* metrics.refresh).values.get("vcpu.x"), 3)
    })))

  it.live("an interrupted refresh loses nothing", () =>
    withRegistry(Effect.scoped(Effect.gen(function*() {
      const source = makeSource()
      const reading = yield* Deferred.make<void>()
      const slow = {
        read: Effect.tap(source.read, (bytes) =>
          bytes.length === 0
            ? Effect.void
            : Effect.andThen(Deferred.succeed(reading, undefined), Effect.sleep("5 millis")))
      }
      const metrics = yield* MetricsCollector.make(slow, { machine: "a", every: "1 hour" })
      // The first look of its own.
      while (source.reads() === 0) {
        yield* Effect.yieldNow
      }
      source.write(line({ vcpu: { x: 1 } }), line({ vcpu: { x: 2 } }))
      const fiber = yield* Effect.forkChild(metrics.refresh)
      yield* Deferred.await(reading)
      yield* Fiber.interrupt(fiber)
      assert.strictEqual((yield* metrics.refresh).values.get("vcpu.x"), 3)
      assert.strictEqual((yield* snapshot)[0]?.id, "firecracker.vcpu.x")
    }))))

  it.effect("wrong options are refused, all at once, before anything is read", () =>
    Effect.gen(function*() {
      const source = makeSource()
      const options = { machine: "a", every: 0, maxLineBytes: -1, maxSeries: 0.5 }
      const { reason } = yield* Effect.flip(MetricsCollector.make(source, options))
      const fields = reason._tag === "InvalidRequest" ? reason.faults.map(({ field }) => field) : []
      assert.deepStrictEqual(fields, ["every", "maxLineBytes", "maxSeries"])
      assert.strictEqual(source.reads(), 0)
    }))

  it.effect.prop("whatever bytes come, in whatever pieces, the lines among them are counted", [
    Schema.Array(Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 255 })))),
    Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 40 }))
  ], ([garbage, step]) =>
    withRegistry(Effect.scoped(Effect.gen(function*() {
      const source = makeSource()
      const metrics = yield* MetricsCollector.make(source, { machine: "a" })
      const good = encode(`\n${line({ utc_timestamp_ms: 1, vcpu: { good: 1 } })}`)
      const all = Uint8Array.from(garbage.flatMap((bytes) => [...bytes, ...good]))
      for (let at = 0; at < all.length; at += step) source.write(all.subarray(at, at + step))
      let totals = yield* metrics.refresh
      for (let turn = 0; turn * 64 * step < all.length; turn++) totals = yield* metrics.refresh
      assert.strictEqual(totals.values.get("vcpu.good") ?? 0, garbage.length)
    }))))
})

describe("what is exported", () => {
  it.effect("are the values above 0, by machine and device, without the sums over devices", () =>
    withRegistry(Effect.gen(function*() {
      const source = makeSource()
      const metrics = yield* MetricsCollector.make(source, { machine: "a" })
      const document = {
        utc_timestamp_ms: 1,
        net: { rx_bytes_count: 5 },
        net_eth0: { rx_bytes_count: 5, rx_fails: 0 },
        vhost_user_block_data: { init_time_us: 7 },
        latencies_us: { pause_vm: 9 }
      }
      source.write(line(document), "torn\n", line(document))
      yield* metrics.refresh
      const count = (value: number) => ({ count: value, incremental: true })
      assert.deepStrictEqual(yield* snapshot, [
        {
          id: "firecracker.latencies_us.pause_vm",
          type: "Gauge",
          attributes: { machine: "a", unit: "microseconds" },
          state: { value: 9 }
        },
        { id: "firecracker.metrics.torn_lines", type: "Counter", attributes: { machine: "a" }, state: count(1) },
        {
          id: "firecracker.net.rx_bytes_count",
          type: "Counter",
          attributes: { machine: "a", device: "eth0", unit: "bytes" },
          state: count(10)
        },
        {
          id: "firecracker.vhost_user_block.init_time_us",
          type: "Gauge",
          attributes: { machine: "a", device: "data", unit: "microseconds" },
          state: { value: 7 }
        }
      ])
    })))

  it.effect("goes out to Prometheus, and is gone with the machine that it is of", () =>
    withRegistry(Effect.gen(function*() {
      const start = Effect.fnUntraced(function*(machine: string, bytes: number) {
        const scope = yield* Scope.make()
        const source = makeSource()
        const metrics = yield* Scope.provide(MetricsCollector.make(source, { machine }), scope)
        source.write(line({ block_rootfs: { read_bytes: bytes } }))
        yield* metrics.refresh
        return {
          stop: Scope.close(scope, Exit.void),
          late: Effect.suspend(() => {
            source.write(line({ vcpu: { x: 1 } }))
            return metrics.refresh
          })
        }
      })
      const machineA = yield* start("a", 1)
      const machineB = yield* start("b", 2)
      const text = (...series: ReadonlyArray<string>) =>
        ["# TYPE firecracker_block_read_bytes counter", ...series, ""].join("\n")
      const a = "firecracker_block_read_bytes{machine=\"a\",device=\"rootfs\"} 1"
      const b = "firecracker_block_read_bytes{machine=\"b\",device=\"rootfs\"} 2"
      assert.strictEqual(yield* PrometheusMetrics.format(), text(a, b))
      yield* machineA.stop
      assert.strictEqual(yield* PrometheusMetrics.format(), text(b))
      yield* machineB.stop
      yield* machineB.late
      assert.strictEqual(yield* PrometheusMetrics.format(), "")
      assert.strictEqual(Context.get(yield* Effect.context(), Metric.MetricRegistry).size, 0)
    })))

  it.effect("is bounded", () =>
    withRegistry(Effect.gen(function*() {
      const source = makeSource()
      const metrics = yield* MetricsCollector.make(source, { machine: "a", maxSeries: 3 })
      source.write(line({ group: { a: 1, b: 1, c: 1, d: 1, e: 1 } }))
      assert.strictEqual((yield* metrics.refresh).values.size, 5)
      assert.strictEqual((yield* snapshot).length, 3)
    })))
})
