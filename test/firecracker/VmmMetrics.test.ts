import { assert, describe, it } from "@effect/vitest"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as VmmMetrics from "../../src/firecracker/VmmMetrics.ts"

const totalsOf = (...lines: ReadonlyArray<unknown>): VmmMetrics.Totals =>
  VmmMetrics.addLines(
    VmmMetrics.empty,
    lines.map((line) => typeof line === "string" ? line : JSON.stringify(line))
  )

const numbers = (totals: VmmMetrics.Totals) => Object.fromEntries(totals.values)

describe("a line", () => {
  it("has a time, numbers by their path, and all the rest", () => {
    const document = {
      utc_timestamp_ms: 1_700_000_000_000,
      id: "vm-1",
      properties: { team: "a", 1: "b" },
      api_server: { process_startup_time_us: 12 },
      vcpu: { exit_io_in: 3, exit_io_in_agg: { min_us: 1, max_us: 9, sum_us: 12 } },
      vhost_user_block_root: { init_time_us: 5 },
      to_come: { some_text: "x", flag: true, list: [1, 2], deep: { deeper: { deepest: { no: 1 } } } }
    }
    const reading = Result.getOrThrow(VmmMetrics.decode(JSON.stringify(document)))
    assert.strictEqual(reading.timestampMs, 1_700_000_000_000)
    assert.strictEqual(reading.id, "vm-1")
    assert.deepStrictEqual(Object.fromEntries(reading.properties), { team: "a", 1: "b" })
    assert.deepStrictEqual(Object.fromEntries(reading.values), {
      "api_server.process_startup_time_us": 12,
      "vcpu.exit_io_in": 3,
      "vcpu.exit_io_in_agg.min_us": 1,
      "vcpu.exit_io_in_agg.max_us": 9,
      "vcpu.exit_io_in_agg.sum_us": 12,
      "vhost_user_block_root.init_time_us": 5
    })
    assert.deepStrictEqual(reading.document, document)
  })

  it("may have nothing in it", () => {
    const reading = Result.getOrThrow(VmmMetrics.decode("{}"))
    assert.deepStrictEqual([reading.timestampMs, reading.id, reading.properties.size, reading.values.size], [
      undefined,
      undefined,
      0,
      0
    ])
  })

  it.each(["not json", "", "null", "[]", "1", "\"{}\"", "{\"utc_timestamp_ms\":1"])("is none: %j", (line) => {
    const error = Result.getOrThrow(Result.flip(VmmMetrics.decode(line)))
    assert.include(error.message, "invalid json line")
  })

  it("numbers that no counter can have, and names that are none, are left out", () => {
    const line =
      `{"utc_timestamp_ms":"x","id":1,"properties":[],"vmm":{"a":-1,"b":18446744073709551615,"c":1e999,"d":null,` +
      `"__proto__":{"polluted":1},"e f":1,"":2,"${"g".repeat(200)}":3,"h":9007199254740991}}`
    const reading = Result.getOrThrow(VmmMetrics.decode(line))
    assert.deepStrictEqual(Object.fromEntries(reading.values), {
      "vmm.__proto__.polluted": 1,
      "vmm.h": Number.MAX_SAFE_INTEGER
    })
    assert.notProperty({}, "polluted")
  })
})

describe("the totals", () => {
  it("add up what is a difference, and keep what holds", () => {
    const line = (value: number) => ({
      api_server: { process_startup_time_us: value, process_startup_time_cpu_us: value, sync_response_fails: value },
      latencies_us: { pause_vm: value, anything: value },
      seccomp: { num_faults: value },
      signals: { sigbus: value, sigpipe: value },
      vmm: { panic_count: value, device_events: value },
      block_rootfs: { read_bytes: value, read_agg: { min_us: value, max_us: value, sum_us: value } },
      net_eth0: { rx_bytes_count: value },
      vhost_user_block_data: { activate_fails: value, init_time_us: value, activate_time_us: value },
      to_come: { field: value }
    })
    assert.deepStrictEqual(numbers(totalsOf(line(5), line(2))), {
      "api_server.process_startup_time_us": 2,
      "api_server.process_startup_time_cpu_us": 2,
      "api_server.sync_response_fails": 7,
      "latencies_us.pause_vm": 2,
      "latencies_us.anything": 2,
      "seccomp.num_faults": 2,
      "signals.sigbus": 2,
      "signals.sigpipe": 7,
      "vmm.panic_count": 2,
      "vmm.device_events": 7,
      "block_rootfs.read_bytes": 7,
      "block_rootfs.read_agg.min_us": 2,
      "block_rootfs.read_agg.max_us": 2,
      "block_rootfs.read_agg.sum_us": 7,
      "net_eth0.rx_bytes_count": 7,
      "vhost_user_block_data.activate_fails": 7,
      "vhost_user_block_data.init_time_us": 2,
      "vhost_user_block_data.activate_time_us": 2,
      "to_come.field": 7
    })
  })

  it("keep what a line does not have, such as a device that was removed", () => {
    assert.deepStrictEqual(numbers(totalsOf({ net_a: { x: 1 } }, { net_b: { x: 2 } }, { net_a: { x: 3 } })), {
      "net_a.x": 4,
      "net_b.x": 2
    })
  })

  it("have the last line; before the first there is none", () => {
    assert.isTrue(Option.isNone(VmmMetrics.empty.last))
    const totals = totalsOf({ utc_timestamp_ms: 1 }, { utc_timestamp_ms: 2 })
    assert.strictEqual(totals.lines, 2)
    assert.strictEqual(Option.getOrThrow(totals.last).timestampMs, 2)
  })

  const whole = `{"utc_timestamp_ms":1,"vcpu":{"exit_io_in":2},"net_eth0":{"rx_bytes_count":3}}`
  it("count a torn line, and find the one that follows in it", () => {
    const totals = totalsOf(whole, whole.slice(0, 40), "", `${whole.slice(0, 40)}${whole}`, `\0\0\0${whole}`, whole)
    assert.strictEqual(totals.torn, 4)
    assert.strictEqual(totals.lines, 4)
    assert.deepStrictEqual(numbers(totals), { "vcpu.exit_io_in": 8, "net_eth0.rx_bytes_count": 12 })
  })

  it("do not grow without end", () => {
    const line = (from: number) => ({
      group: Object.fromEntries(Array.from({ length: 3000 }, (_, index) => [`field${from + index}`, 1]))
    })
    const totals = totalsOf(line(0), line(2000), line(4000))
    assert.strictEqual(totals.values.size, 4096)
    assert.strictEqual(totals.values.get("group.field2500"), 2)
  })

  const Counts = Schema.Record(
    Schema.Literals(["vcpu", "net_eth0", "block_a", "new"]),
    Schema.Record(Schema.Literals(["a", "b"]), Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 1e6 })))
  )
  it.prop("of any lines are their sums, whatever torn lines come between", [
    Schema.Array(Counts),
    Schema.Array(Schema.String)
  ], ([counts, garbage]) => {
    const expected = new Map<string, number>()
    for (const groups of counts) {
      for (const [group, fields] of Object.entries(groups)) {
        for (const [field, value] of Object.entries(fields)) {
          expected.set(`${group}.${field}`, (expected.get(`${group}.${field}`) ?? 0) + value)
        }
      }
    }
    const lines = counts.flatMap((groups, index) => [`no${garbage[index] ?? ""}`, JSON.stringify(groups)])
    const totals = totalsOf(...lines)
    assert.deepStrictEqual(numbers(totals), Object.fromEntries(expected))
    assert.deepStrictEqual([totals.lines, totals.torn], [counts.length, counts.length])
  })

  it.prop("can be made of anything", [Schema.Json, Schema.String], ([json, text]) => {
    const totals = totalsOf(JSON.stringify(json), text, JSON.stringify({ [text]: json }), `${text}${whole}`)
    assert.strictEqual(totals.values.get("vcpu.exit_io_in"), 2)
    for (const value of totals.values.values()) assert.isAtLeast(value, 0)
  })
})

describe("the summary", () => {
  it("of a full line", () => {
    const agg = (us: number) => ({ min_us: 1, max_us: us, sum_us: us })
    const totals = totalsOf({
      vcpu: {
        exit_io_in_agg: agg(100),
        exit_io_out_agg: agg(200),
        exit_mmio_read_agg: agg(300),
        exit_mmio_write_agg: agg(400)
      },
      vmm: { memory_used_bytes: 268_435_456 },
      net: { rx_bytes_count: 1024, tx_bytes_count: 2048, rx_packets_count: 10, tx_packets_count: 20 },
      block: { read_bytes: 4096, write_bytes: 8192 }
    })
    assert.deepStrictEqual(VmmMetrics.summary(totals), {
      vcpuUsageUs: 1000,
      memoryUsedBytes: 268_435_456,
      networkRxBytes: 1024,
      networkTxBytes: 2048,
      networkRxPackets: 10,
      networkTxPackets: 20,
      blockReadBytes: 4096,
      blockWriteBytes: 8192
    })
  })
  it("of nothing is zeros, of a part has that part", () => {
    assert.deepStrictEqual(new Set(Object.values(VmmMetrics.summary(totalsOf({})))), new Set([0]))
    const part = VmmMetrics.summary(totalsOf({ net: { rx_bytes_count: 1 } }, { net: { rx_bytes_count: 2 } }))
    assert.deepStrictEqual([part.networkRxBytes, part.networkTxBytes], [3, 0])
  })
  it("takes bytes before mebibytes", () => {
    const memory = (balloon: unknown) => VmmMetrics.summary(totalsOf({ balloon }, { balloon })).memoryUsedBytes
    assert.strictEqual(memory({ actual_bytes: 12_345, actual_mib: 999 }), 12_345)
    assert.strictEqual(memory({ actual_mib: 2 }), 2_097_152)
  })
})
