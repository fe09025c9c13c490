import { afterEach, assert, beforeEach, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import { execFileSync } from "node:child_process"
import * as NodeFs from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as LogLine from "../../src/firecracker/LogLine.ts"
import * as MetricsCollector from "../../src/firecracker/MetricsCollector.ts"
import * as NodeApiTransport from "../../src/firecracker/NodeApiTransport.ts"
import * as NodeVmmMetrics from "../../src/firecracker/NodeVmmMetrics.ts"
import * as FakeFirecracker from "../../src/testing/FakeFirecracker.ts"

let directory: string
beforeEach(() => {
  directory = NodeFs.mkdtempSync(join(tmpdir(), "metrics-"))
})
afterEach(() => NodeFs.rmSync(directory, { recursive: true, force: true }))

const { O_CREAT, O_NONBLOCK, O_RDWR } = NodeFs.constants

/** Opens and writes as Firecracker does: not appending, not truncating, never waiting, in pieces of 1 KiB. */
const openAsFirecracker = (path: string) => {
  const fd = NodeFs.openSync(path, O_RDWR | O_CREAT | O_NONBLOCK)
  return {
    write: (text: string) => {
      const bytes = Buffer.from(text)
      for (let at = 0; at < bytes.length; at += 1024) NodeFs.writeSync(fd, bytes.subarray(at, at + 1024))
    },
    close: () => NodeFs.closeSync(fd)
  }
}

const line = (value: number, padding = 0): string =>
  `{"utc_timestamp_ms":1,"vcpu":{"x":${value}},"padding":"${"p".repeat(padding)}"}\n`

const run = <A, E>(effect: Effect.Effect<A, E, MetricsCollector.MetricsFiles>) =>
  Effect.provide(effect, NodeVmmMetrics.layer).pipe(Effect.provideService(Metric.MetricRegistry, new Map()))

const collect = Effect.fnUntraced(function*(path: string, how: "create" | "open") {
  const files = yield* MetricsCollector.MetricsFiles
  return yield* MetricsCollector.make(yield* files[how](path), { machine: "a", every: "1 hour" })
})

describe("a file", () => {
  it.live("is made for its owner alone, read while it is written, and removed", () =>
    run(Effect.gen(function*() {
      const path = join(directory, "metrics")
      yield* Effect.scoped(Effect.gen(function*() {
        const metrics = yield* collect(path, "create")
        assert.strictEqual(NodeFs.statSync(path).mode & 0o777, 0o600)
        assert.strictEqual((yield* metrics.refresh).lines, 0)
        const firecracker = openAsFirecracker(path)
        firecracker.write(line(1))
        firecracker.write(line(2).slice(0, 30))
        assert.strictEqual((yield* metrics.refresh).values.get("vcpu.x"), 1)
        firecracker.write(line(2).slice(30))
        firecracker.write(line(4, 50_000))
        firecracker.close()
        const totals = yield* metrics.refresh
        assert.deepStrictEqual([totals.lines, totals.torn, totals.values.get("vcpu.x")], [3, 0, 7])
      }))
      assert.isFalse(NodeFs.existsSync(path))
    })))

  it.live("gives back what was read, and goes on after the hole", () =>
    run(Effect.scoped(Effect.gen(function*() {
      const path = join(directory, "metrics")
      const metrics = yield* collect(path, "create")
      const firecracker = openAsFirecracker(path)
      for (let count = 1; count <= 200; count++) {
        firecracker.write(line(1, 20_000))
        const totals = yield* metrics.refresh
        assert.deepStrictEqual([totals.values.get("vcpu.x"), totals.torn], [count, 0])
      }
      firecracker.close()
      const { blocks, size } = NodeFs.statSync(path)
      assert.isAbove(size, 3_500_000)
      assert.isBelow(blocks * 512, 2_000_000)
    }))))

  it.live("is not made where something is, and nothing else than files and FIFOs is opened", () =>
    run(Effect.gen(function*() {
      const { create, open } = yield* MetricsCollector.MetricsFiles
      const path = join(directory, "metrics")
      NodeFs.writeFileSync(path, "old")
      NodeFs.symlinkSync(path, join(directory, "link"))
      const message = <A>(effect: Effect.Effect<A, Error>) => Effect.map(Effect.flip(effect), (error) => error.message)
      const failing = (name: string) => message(Effect.scoped(open(join(directory, name))))
      assert.strictEqual(yield* message(Effect.scoped(create(path))), `create ${path}: EEXIST`)
      assert.strictEqual(NodeFs.readFileSync(path, "utf8"), "old")
      assert.include(yield* failing("none"), "ENOENT")
      assert.include(yield* failing("link"), "ELOOP")
      assert.include(yield* failing("."), "EISDIR")
      assert.include(yield* message(Effect.scoped(open("/dev/zero"))), "neither a file nor a FIFO")
    })))
})

describe("a FIFO", () => {
  const makeFifo = (): string => {
    const path = join(directory, "fifo")
    execFileSync("mkfifo", [path])
    return path
  }

  it.live("opens without a writer, and lives through many of them", () =>
    run(Effect.scoped(Effect.gen(function*() {
      const path = makeFifo()
      const metrics = yield* Effect.timeout(collect(path, "open"), "2 seconds")
      assert.strictEqual((yield* metrics.refresh).lines, 0)
      for (const value of [1, 2, 4]) {
        const firecracker = openAsFirecracker(path)
        firecracker.write(line(value))
        assert.strictEqual((yield* metrics.refresh).values.get("vcpu.x"), 2 * value - 1)
        firecracker.close()
        assert.strictEqual((yield* metrics.refresh).lines, Math.log2(2 * value))
      }
    }))))

  it.live("a full one loses lines, which is told, and goes on", () =>
    run(Effect.scoped(Effect.gen(function*() {
      const path = makeFifo()
      const metrics = yield* collect(path, "open")
      const firecracker = openAsFirecracker(path)
      assert.throws(() => {
        for (;;) firecracker.write(line(1, 9_000))
      }, /EAGAIN/)
      const before = yield* metrics.refresh
      assert.strictEqual(before.lines, 7)
      // What was written of the torn line has no newline.
      firecracker.write(line(1))
      const totals = yield* metrics.refresh
      assert.deepStrictEqual([totals.lines, totals.torn, totals.values.get("vcpu.x")], [8, 1, 8])
      firecracker.close()
    }))))
})

describe("a Firecracker (the fake)", () => {
  it.live.each(["1.10.1", "1.16.1"])(
    "%s writes metrics and a log in the form that is read",
    (version) =>
      run(Effect.scoped(Effect.gen(function*() {
        const inside = (name: string) => join(directory, name)
        for (const name of ["log", "kernel", "disk"]) NodeFs.writeFileSync(inside(name), "")
        const metrics = yield* collect(inside("metrics"), "create")
        const socketPath = inside("api.sock")
        yield* FakeFirecracker.serve({ socketPath, version, guest: "none" })
        const { request } = yield* NodeApiTransport.make({ socketPath })
        const send = Effect.fnUntraced(function*(method: "PUT" | "PATCH", path: string, body: unknown) {
          const within = Duration.seconds(5)
          const answer = yield* request({ method, path, body: JSON.stringify(body), within })
          assert.strictEqual(answer.status, 204, answer.body)
        })
        yield* send("PUT", "/logger", { log_path: inside("log"), level: "Info", show_level: true })
        yield* send("PUT", "/metrics", { metrics_path: inside("metrics") })
        yield* send("PUT", "/boot-source", { kernel_image_path: inside("kernel"), boot_args: "secret=1234" })
        const drive = { drive_id: "rootfs", path_on_host: inside("disk"), is_root_device: true, is_read_only: false }
        yield* send("PUT", "/drives/rootfs", drive)
        yield* send("PUT", "/actions", { action_type: "InstanceStart" })
        yield* send("PATCH", "/vm", { state: "Paused" })
        yield* send("PUT", "/snapshot/create", { snapshot_path: inside("state"), mem_file_path: inside("memory") })
        yield* send("PATCH", "/vm", { state: "Resumed" })
        const took = "latencies_us.full_create_snapshot"
        let told: number | undefined
        for (const flushes of [1, 2, 3]) {
          yield* send("PUT", "/actions", { action_type: "FlushMetrics" })
          const totals = yield* metrics.refresh
          assert.deepStrictEqual([totals.lines, totals.torn], [1 + flushes, 0])
          assert.isTrue(totals.values.has("block_rootfs.read_bytes"))
          // It holds, so it is told each time.
          told ??= totals.values.get(took)
          assert.isAbove(told ?? 0, 0)
          assert.strictEqual(totals.values.get(took), told)
        }

        const log = NodeFs.readFileSync(inside("log"), "utf8")
        const lines = log.trimEnd().split("\n").map(LogLine.parse)
        assert.notInclude(lines, undefined)
        const anchors = lines.map((one) => LogLine.anchor(one?.message ?? "")).filter((one) => one !== undefined)
        assert.deepInclude(anchors, LogLine.Anchor.Request({ method: "PUT", path: "/drives/rootfs" }))
        assert.include(log, "secret=1234")
        assert.notInclude(LogLine.withoutBodies(log), "secret=1234")
      })))
  )
})
