/** Logs on a real file system, while they are written and rotated. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as PlatformError from "effect/PlatformError"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as NodeFs from "node:fs"
import * as RunLog from "../../src/cli/RunLog.ts"

const place = Effect.map(
  FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped({ prefix: "microvm-log-test-" })),
  (directory): RunLog.Place => ({ directory, name: "output" })
)
const encode = (text: string) => new TextEncoder().encode(text)
const text = (at: RunLog.Place, options?: RunLog.ReadOptions) =>
  Stream.mkString(Stream.decodeText(RunLog.read(at, options)))
const sizes = ({ directory }: RunLog.Place) =>
  NodeFs.readdirSync(directory).map((name) => NodeFs.statSync(`${directory}/${name}`).size)

const Chunks = Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 120 }))).check(
  Schema.isMaxLength(20)
)

describe("a log", () => {
  it.effect.prop(
    "loses nothing but the oldest, is bounded, and tells how much is gone",
    [Chunks, Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 200 })), Schema.Boolean],
    ([lengths, maxBytes, reopen]) =>
      Effect.gen(function*() {
        const at = yield* place
        let all = ""
        const kept = yield* RunLog.open(at, { maxBytes })
        for (const length of lengths) {
          const some = Array.from({ length }, (_, i) => String.fromCharCode(97 + (all.length + i) % 26)).join("")
          all += some
          if (reopen) {
            yield* Effect.scoped(Effect.flatMap(RunLog.open(at, { maxBytes }), ({ write }) => write(encode(some))))
          } else yield* kept.write(encode(some))
        }
        let dropped = 0
        const read = yield* text(at, { onDropped: (bytes) => Effect.sync(() => void (dropped += bytes)) })
        assert.strictEqual(read, all.slice(dropped))
        // Two files at most, the newer of which may have just begun.
        assert.isAtLeast(read.length, Math.min(all.length, maxBytes))
        assert.isAtMost(Math.max(0, ...sizes(at)), maxBytes)
        assert.isAtMost(sizes(at).length, 2)
      }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
    { arbitrary: { runs: 60 } }
  )

  it.effect.prop(
    "gives its last lines",
    [
      Schema.Array(Schema.Literals(["a", "bc", "\n", "\n\n", "d\n"])).check(Schema.isMaxLength(30)),
      Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 8 })),
      Schema.Int.check(Schema.isBetween({ minimum: 30, maximum: 80 }))
    ],
    ([parts, lines, maxBytes]) =>
      Effect.gen(function*() {
        const at = yield* place
        const all = parts.join("")
        const log = yield* RunLog.open(at, { maxBytes })
        yield* log.write(encode(all))
        const every = all.match(/[^\n]*\n|[^\n]+$/g) ?? []
        assert.strictEqual(yield* text(at, { lines }), lines === 0 ? "" : every.slice(-lines).join(""))
      }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
    { arbitrary: { runs: 60 } }
  )

  it.effect.prop(
    "catches up with a text that goes on where it ends, and adds nothing twice",
    [
      Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 400 })),
      Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 400 })),
      // A file is longer than such a text.
      Schema.Int.check(Schema.isBetween({ minimum: 1200, maximum: 2000 }))
    ],
    ([first, second, maxBytes]) =>
      Effect.gen(function*() {
        const at = yield* place
        const all = Array.from({ length: 80 }, (_, nth) => `tick ${nth} ✓\n`).join("")
        const [from, written] = [Math.min(first, second), Math.max(first, second)]
        const log = yield* RunLog.open(at, { maxBytes })
        yield* log.write(encode(all.slice(0, written)))
        // Its first character may have lost its beginning.
        yield* log.catchUp(`\uFFFD${all.slice(from)}`)
        yield* log.catchUp(all.slice(from))
        let dropped = 0
        const read = yield* text(at, { onDropped: (bytes) => Effect.sync(() => void (dropped += bytes)) })
        const whole = Buffer.from(encode(all))
        assert.strictEqual(read, whole.subarray(dropped).toString())
      }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
    { arbitrary: { runs: 60 } }
  )

  it.effect("is told of a gap only where there is one", () =>
    Effect.gen(function*() {
      const at = yield* place
      const log = yield* RunLog.open(at)
      yield* log.write(encode("one\ntwo\n"))
      yield* log.catchUp("[truncated]…\uFFFDwo\nthree\n")
      assert.strictEqual(yield* text(at), "one\ntwo\nthree\n")
      yield* log.catchUp("[truncated]…ine\nten\n")
      assert.strictEqual(yield* text(at), "one\ntwo\nthree\n[truncated]…ine\nten\n")
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)))

  it.effect("finds the beginning of a long line", () =>
    Effect.gen(function*() {
      const at = yield* place
      const log = yield* RunLog.open(at)
      const long = "x".repeat(300_000)
      yield* log.write(encode(`first\n${long}\nlast`))
      assert.strictEqual(yield* text(at, { lines: 2 }), `${long}\nlast`)
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)))

  it.effect("gives what is there, and comes to an end also while it grows faster than it is read", () =>
    Effect.gen(function*() {
      const at = yield* place
      const log = yield* RunLog.open(at, { maxBytes: 1000 })
      yield* log.write(encode("x".repeat(700)))
      let dropped = 0
      const read = yield* RunLog.read(at, { onDropped: (bytes) => Effect.sync(() => void (dropped += bytes)) }).pipe(
        Stream.tap(() => log.write(encode("y".repeat(2500)))),
        Stream.take(10),
        Stream.decodeText,
        Stream.mkString
      )
      assert.deepStrictEqual([read, dropped], ["x".repeat(700), 0])
      yield* log.write(encode("last"))
      assert.strictEqual(yield* text(at, { lines: 0 }), "")
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)))

  it.effect("that is not there is empty, and so is one of which there is nothing yet", () =>
    Effect.gen(function*() {
      const at = yield* place
      assert.strictEqual(yield* text({ ...at, directory: `${at.directory}/none` }), "")
      yield* RunLog.open(at)
      assert.strictEqual(yield* text(at, { lines: 3 }), "")
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)))

  it.live(
    "is followed while it is written and rotated, and no byte is missed that was not told",
    () =>
      Effect.gen(function*() {
        const at = yield* place
        const over = yield* Deferred.make<void>()
        let dropped = 0
        const following = yield* Effect.forkChild(
          text(at, {
            until: Deferred.isDone(over),
            onDropped: (bytes) => Effect.sync(() => void (dropped += bytes))
          }),
          { startImmediately: true }
        )
        let all = ""
        const log = yield* RunLog.open(at, { maxBytes: 1000 })
        for (let i = 0; i < 300; i++) {
          const line = `line ${i}\n`
          all += line
          yield* log.write(encode(line))
          if (i % 20 === 0) yield* Effect.sleep("50 millis")
        }
        yield* Deferred.succeed(over, undefined)
        const read = yield* Effect.timeout(Fiber.join(following), "10 seconds")
        assert.strictEqual(read.length + dropped, all.length)
        assert.isTrue(all.endsWith(read.slice(-500)))
        assert.isTrue(dropped > 0 || read === all)
      }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
    180_000
  )

  it.live("is followed to its last byte by one who is faster", () =>
    Effect.gen(function*() {
      const at = yield* place
      const over = yield* Deferred.make<void>()
      const following = yield* Effect.forkChild(text(at, { until: Deferred.isDone(over) }), { startImmediately: true })
      const log = yield* RunLog.open(at, { maxBytes: 10 })
      for (const word of ["one ", "two ", "three ", "four"]) {
        yield* Effect.sleep("500 millis")
        yield* log.write(encode(word))
      }
      yield* Deferred.succeed(over, undefined)
      assert.strictEqual(yield* Effect.timeout(Fiber.join(following), "10 seconds"), "one two three four")
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)), 30_000)

  it.effect("on a full disk goes on, and says what is missing where it is missing", () =>
    Effect.gen(function*() {
      const at = yield* place
      let isFull = false
      const full = PlatformError.systemError({
        module: "FileSystem",
        method: "write",
        _tag: "Unknown",
        cause: Object.assign(new Error("ENOSPC: no space left on device"), { code: "ENOSPC" })
      })
      const real = yield* FileSystem.FileSystem
      const fs = FileSystem.make({
        ...real,
        open: (path, options) =>
          Effect.map(real.open(path, options), (file) => ({
            ...file,
            get stat() {
              return file.stat
            },
            writeAll: (bytes: Uint8Array) =>
              isFull ? Effect.andThen(file.writeAll(bytes.subarray(0, 2)), Effect.fail(full)) : file.writeAll(bytes)
          }))
      })
      const log = yield* Effect.provideService(RunLog.open(at), FileSystem.FileSystem, fs)
      yield* log.write(encode("before "))
      isFull = true
      yield* log.write(encode("lost"))
      yield* log.write(encode("lost too"))
      isFull = false
      yield* log.write(encode("after"))
      const read = yield* text(at)
      assert.match(read, /^before lo(\n\[?)*/)
      assert.match(read, /\n\[microvm: \d+ bytes could not be written here\]\nafter$/)
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)))
})
