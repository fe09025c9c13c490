import * as NodeServices from "@effect/platform-node/NodeServices"
import { afterAll, assert, describe, it } from "@effect/vitest"
import { FirecrackerHost, NodeFirecrackerHost, NodePageServer, PageServer } from "effect-microvm-runtime/firecracker"
import { NodeProcessSpawner } from "effect-microvm-runtime/process"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { build } from "esbuild"
import { spawnSync } from "node:child_process"
import * as Fs from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as WorkingSets from "../../src/firecracker/internal/workingSets.ts"
import * as UffdClient from "./uffdClient.ts"

const client = UffdClient.make()
const isThere = typeof client !== "string"
if (!isThere) console.warn(`skipped: memory that is served page by page, for ${client}`)
const isRoot = process.geteuid?.() === 0
if (!isRoot) console.warn("skipped: a socket that belongs to another user, for only root can give it away")
const directory = isThere ? client.directory : ""
afterAll(() => isThere && client.remove())

const mib = 2 ** 20
const [small, huge] = [4096, 2_097_152] as const
const [socket, memory] = [join(directory, "pages.sock"), join(directory, "memory")]

/** Every page is another one. */
const writeMemory = (path: string, bytes: number): void => {
  const content = Buffer.alloc(bytes)
  for (let at = 0; at < bytes; at += 8) content.writeDoubleLE(at + 0.5, at)
  Fs.writeFileSync(path, content)
}
if (isThere) writeMemory(memory, 8 * mib)
const pages = 8 * mib / small

const start = (options: Partial<PageServer.Options> = {}) =>
  PageServer.PageServer.use((server) => server.start({ socket, memory, within: "10 seconds", ...options })).pipe(
    Effect.provide(NodePageServer.layer)
  )

const run = (words: ReadonlyArray<string>, at = socket, file = memory, cwd?: string) =>
  isThere ? UffdClient.run(client, at, file, words, cwd) : Effect.die(client)

/** Fails when it does not hold within 10 seconds. */
const until = <A>(look: Effect.Effect<A>, holds: (value: A) => boolean) =>
  look.pipe(
    Effect.repeat({ until: holds, schedule: Schedule.spaced("5 millis") }),
    Effect.timeout("1 minute")
  )

const said = (running: UffdClient.Running, text: string) =>
  until(Effect.sync(running.output), (output) => output.includes(text))

const finished = (running: UffdClient.Running) =>
  Effect.map(Effect.timeout(Effect.promise(() => running.exit), "20 seconds"), (exit) => ({
    exit,
    output: running.output().trim().split("\n")
  }))

const why = <A, E extends Error, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(effect), (error) => error.message)

const stateOf = (pid: number | undefined): string =>
  /^State:\s+(\w)/m.exec(Fs.readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? ""

const descriptors = () => Fs.readdirSync("/proc/self/fd").length
const threads = () => Fs.readdirSync("/proc/self/task").length

describe.skipIf(!isThere)("the pages that machines of a snapshot need first", () => {
  const host = NodeFirecrackerHost.layer.pipe(Layer.provide([NodeProcessSpawner.layer, NodeServices.layer]))

  it.live("are found out with the first, and are there before the second asks for them", () =>
    Effect.gen(function*() {
      const sets = join(directory, "sets")
      Fs.mkdirSync(sets)
      const machine = Effect.gen(function*() {
        const known = yield* WorkingSets.of(
          { directory: sets, recordFor: "1 hour" },
          "of-a-snapshot",
          yield* FirecrackerHost.FirecrackerHost
        )
        const serving = yield* start(known.wanted)
        const running = yield* run(["touch=seq:1", "hold", "touch=seq:64"])
        yield* serving.ready
        yield* known.keep(serving)
        yield* said(running, "holds")
        const first = "prefetch" in known.wanted
          ? yield* until(serving.stats, ({ prefetched }) => prefetched >= 63)
          : yield* serving.stats
        yield* running.release
        assert.strictEqual((yield* finished(running)).exit, 0)
        yield* serving.ended
        return { first, last: yield* serving.stats }
      }).pipe(Effect.scoped)
      const one = yield* machine
      assert.deepStrictEqual([one.last.prefetched, one.last.copied], [0, 64])
      assert.deepStrictEqual(Fs.readdirSync(sets), ["of-a-snapshot.json"])
      const two = yield* machine
      assert.strictEqual(two.last.faults, two.first.faults)
      assert.isAtMost(two.last.faults, 1)
      assert.strictEqual(two.last.prefetched + two.last.copied, 64)
    }).pipe(Effect.provide(host)))
})

describe.skipIf(!isThere)("memory is served page by page", () => {
  it.live("as it is in the file, until the machine is gone", () =>
    Effect.gen(function*() {
      const { ended, ready, stats } = yield* start({ record: true })
      assert.strictEqual(Fs.statSync(socket).mode & 0o777, 0o600)
      const running = yield* run(["touch=random", "hold"])
      const { pid } = yield* ready
      assert.strictEqual(pid, running.child.pid)
      assert.isFalse(Fs.existsSync(socket))
      yield* said(running, "holds")
      assert.match(running.output(), new RegExp(`touched ${pages} bad 0 `))
      yield* running.release
      assert.strictEqual((yield* finished(running)).exit, 0)
      assert.strictEqual(yield* Effect.timeout(ended, "2 seconds"), "Gone")
      assert.deepStrictEqual(yield* stats, { faults: pages, copied: pages, zeroed: 0, prefetched: 0, removed: 0 })
    }))

  it.live.each<readonly [what: string, words: ReadonlyArray<string>]>([
    ["by one before 1.12, which hangs up", ["message=old"]],
    ["by one before 1.7, without a size of pages", ["message=bare"]],
    ["in two regions", ["split"]]
  ])("told %s", ([, words]) =>
    Effect.gen(function*() {
      const { ended } = yield* start()
      const { exit } = yield* finished(yield* run([...words, "touch=random"]))
      assert.strictEqual(exit, 0)
      assert.strictEqual(yield* ended, "Gone")
    }))

  it.live("with zeros beyond the end of the file", () =>
    Effect.gen(function*() {
      const { ended, stats } = yield* start()
      const { exit } = yield* finished(yield* run(["extra=2", "touch=back"]))
      assert.strictEqual(exit, 0)
      assert.strictEqual(yield* ended, "Gone")
      assert.include(yield* stats, { copied: pages, zeroed: 2 * mib / small })
    }))

  it.live("with zeros where it was given back, before it was ever used and after", () =>
    Effect.gen(function*() {
      const { ended, stats } = yield* start()
      const words = ["remove=100:50", "touch=seq", "remove=140:300", "remove=0:2048"]
      const { exit, output } = yield* finished(yield* run(words))
      assert.deepStrictEqual([exit, output.length], [0, 4])
      assert.strictEqual(yield* ended, "Gone")
      assert.include(yield* stats, { removed: 50 + 300 + 2048, copied: pages - 50 })
    }))

  it.live("while it is given back by one thread and used by another", () =>
    Effect.gen(function*() {
      const { ended } = yield* start({
        prefetch: { pageSize: small, pages: Array.from({ length: pages }, (_, i) => i) }
      })
      const { exit, output } = yield* finished(yield* run(["race=1000:64", "touch=random"]))
      assert.deepStrictEqual([exit, output[0]], [0, "raced 64 bad 0"])
      assert.strictEqual(yield* ended, "Gone")
    }))

  it.live("to many threads at once", () =>
    Effect.gen(function*() {
      const { ended, stats, workingSet } = yield* start({ record: true })
      const { exit } = yield* finished(yield* run(["threads=seq:8"]))
      assert.strictEqual(exit, 0)
      assert.strictEqual(yield* ended, "Gone")
      assert.strictEqual(new Set((yield* workingSet).pages).size, pages)
      assert.strictEqual((yield* stats).copied, pages)
    }))

  it.live("to many machines at once, also while the event loop is blocked", () =>
    Effect.gen(function*() {
      const all = yield* Effect.forEach(
        Array.from({ length: 12 }, (_, index) => join(directory, `${index}.sock`)),
        (at) => Effect.map(start({ socket: at }), (serving) => ({ at, serving }))
      )
      const running = yield* Effect.forEach(all, ({ at }) => run(["hold", "touch=random"], at))
      yield* Effect.forEach(all, ({ serving }) => serving.ready)
      yield* Effect.forEach(running, ({ release }) => release)
      // Who has ended is a zombie until the event loop turns.
      const isOver = () => running.every(({ child }) => child.exitCode !== null || stateOf(child.pid) === "Z")
      const deadline = Date.now() + 60_000
      while (!isOver() && Date.now() < deadline) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5)
      assert.isTrue(isOver())
      for (const one of running) assert.strictEqual((yield* finished(one)).exit, 0)
      assert.deepStrictEqual(yield* Effect.forEach(all, ({ serving }) => serving.ended), all.map(() => "Gone" as const))
    }))

  const hugePages = Number(/^HugePages_Free:\s+(\d+)/m.exec(Fs.readFileSync("/proc/meminfo", "utf8"))?.[1] ?? 0)
  const hasHugePages = hugePages >= 5
  if (!hasHugePages) console.warn("skipped: huge pages, for fewer than 5 are free: sysctl vm.nr_hugepages=5")

  it.live.skipIf(!hasHugePages)("in huge pages", () =>
    Effect.gen(function*() {
      const { ended, stats, workingSet } = yield* start({ record: true })
      const running = yield* run(["huge", "extra=2", "touch=back", "remove=1:1", "touch=seq"])
      assert.strictEqual((yield* finished(running)).exit, 0)
      assert.strictEqual(yield* ended, "Gone")
      assert.deepStrictEqual(yield* stats, { faults: 6, copied: 4, zeroed: 2, prefetched: 0, removed: 1 })
      assert.deepStrictEqual(yield* workingSet, { pageSize: huge, pages: [3, 2, 1, 0] })
    }))
})

describe.skipIf(!isThere)("a working set", () => {
  it.live("is recorded in the order of its use, and prefetched for the next machine", () =>
    Effect.gen(function*() {
      const first = yield* start({ record: true })
      assert.deepStrictEqual(yield* first.workingSet, { pageSize: small, pages: [] })
      yield* finished(yield* run(["touch=back:300", "touch=back:200"]))
      yield* first.ended
      const workingSet = yield* first.workingSet
      assert.deepStrictEqual(workingSet, {
        pageSize: small,
        pages: Array.from({ length: 300 }, (_, i) => pages - 1 - i)
      })

      const second = yield* start({ prefetch: workingSet, record: true })
      const running = yield* run(["hold", "touch=back:320"])
      yield* until(second.stats, ({ prefetched }) => prefetched === 300)
      yield* running.release
      assert.strictEqual((yield* finished(running)).exit, 0)
      assert.strictEqual(yield* second.ended, "Gone")
      assert.deepStrictEqual(yield* second.stats, { faults: 20, copied: 20, zeroed: 0, prefetched: 300, removed: 0 })
      assert.strictEqual((yield* second.workingSet).pages.length, 20)
    }))

  it.live("may be wanted while it is used, and of another machine", () =>
    Effect.gen(function*() {
      const all = Array.from({ length: 3 * pages }, (_, index) => index)
      const { ended, stats } = yield* start({ prefetch: { pageSize: small, pages: all } })
      assert.strictEqual((yield* finished(yield* run(["split", "touch=random"]))).exit, 0)
      assert.strictEqual(yield* ended, "Gone")
      const { copied, prefetched } = yield* stats
      assert.isAtMost(copied + prefetched, pages)
    }))
})

describe.skipIf(!isThere)("what is wrong is told", () => {
  it.live("a fault in memory that was not told of, and the machine is killed", () =>
    Effect.gen(function*() {
      const serving = yield* start()
      const running = yield* run(["untold", "touch=seq"])
      const message = yield* why(
        Effect.timeout(PageServer.watch(serving, () => Effect.sync(() => running.child.kill("SIGKILL"))), "5 seconds")
      )
      assert.match(
        message,
        /^The server of page faults failed: a fault at 0x[0-9a-f]+, where no memory was told of$/
      )
      assert.strictEqual((yield* finished(running)).exit, "SIGKILL")
    }))

  it.live("a file that was cut meanwhile", () =>
    Effect.gen(function*() {
      const file = join(directory, "cut")
      writeMemory(file, mib)
      const serving = yield* start({ memory: file })
      yield* run(["hold", "touch=seq"], socket).pipe(Effect.tap((running) =>
        Effect.gen(function*() {
          yield* serving.ready
          Fs.truncateSync(file, 0)
          yield* running.release
        })
      ))
      assert.match(
        yield* why(Effect.timeout(serving.ended, "5 seconds")),
        /the page at offset 0 could not be given: EFAULT/
      )
    }))

  it.live.each<readonly [words: ReadonlyArray<string>, message: RegExp]>([
    [["message=junk"], /it did not tell of its memory: /],
    [["send=nothing"], /no descriptor came with its message/],
    [["send=file"], /it sent another descriptor than a userfaultfd: \/dev\/zero/],
    [["send=two"], /more descriptors came than one/]
  ])("a Firecracker that is none: %s", ([words, message]) =>
    Effect.gen(function*() {
      const before = descriptors()
      yield* Effect.scoped(Effect.gen(function*() {
        const { ended, ready } = yield* start()
        yield* run([...words, "hold"])
        assert.match(yield* why(Effect.timeout(ready, "5 seconds")), message)
        assert.match(yield* why(ended), message)
      }))
      yield* until(Effect.sync(descriptors), (now) => now <= before)
    }))

  it.live("nobody, or one that says nothing", () =>
    Effect.gen(function*() {
      for (const words of [[], ["silent", "hold"]]) {
        const { ended, ready } = yield* start({ within: "200 millis" })
        if (words.length > 0) yield* run(words)
        assert.match(yield* why(ready), /nobody connected and told of a memory within 200ms/)
        assert.isFalse(Fs.existsSync(socket))
        assert.match(yield* why(ended), /nobody connected/)
      }
    }))

  it.live("all that is wrong with options, at once", () =>
    Effect.gen(function*() {
      const odd = join(directory, "odd")
      Fs.writeFileSync(odd, "odd")
      const message = (options: Partial<PageServer.Options>) => why(start(options))
      assert.strictEqual(
        yield* message({ socket: "", memory: odd }),
        `Not possible: socket is "": give the path of a unix socket; memory is ${
          JSON.stringify(odd)
        }: give the memory file of a snapshot; this one has 3 bytes, which are no pages`
      )
      assert.match(yield* message({ memory: "/nowhere" }), /this one cannot be opened: ENOENT/)
      assert.match(yield* message({ memory: directory }), /this one is no regular file/)
      assert.match(yield* message({ socket: "/nowhere/pages.sock" }), /cannot bind \/nowhere\/pages.sock: bind: ENOENT/)
      assert.match(yield* message({ socket: memory }), /cannot bind .*: bind: EADDRINUSE/)
      assert.isTrue(Fs.existsSync(memory))
    }))
})

describe.skipIf(!isThere)("the socket", () => {
  it.live("takes the place of one that was left behind; when it is given up, all is gone", () =>
    Effect.gen(function*() {
      yield* Effect.scoped(start())
      const before = [descriptors(), threads()]
      const leave = `require("net").createServer().listen(process.argv[1], () => process.kill(process.pid, "SIGKILL"))`
      spawnSync(process.execPath, ["-e", leave, socket])
      assert.isTrue(Fs.existsSync(socket))
      const { ended, ready } = yield* Effect.scoped(start())
      assert.isFalse(Fs.existsSync(socket))
      assert.strictEqual(yield* ended, "Stopped")
      assert.match(yield* why(ready), /it was stopped/)
      const counts = Effect.sync(() => [descriptors(), threads()])
      yield* until(counts, (now) => now.every((count, index) => count <= (before[index] ?? 0)))
    }))

  it.live("is given up when a machine makes its server wait for it", () =>
    Effect.gen(function*() {
      const { ended } = yield* start()
      yield* run(["touch=seq:4", "blocking", "touch=back:64", "hold"])
      assert.match(yield* why(Effect.timeout(ended, "5 seconds")), /its messages could not be waited for: EINVAL/)
    }), 180_000)

  it.live("is given up while a machine is served, which stands still from then on", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { ended } = yield* Scope.provide(start(), scope)
      const running = yield* run(["touch=seq:10", "hold", "touch=seq"])
      yield* said(running, "holds")
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(yield* ended, "Stopped")
      yield* running.release
      yield* until(Effect.sync(() => stateOf(running.child.pid)), (state) => state === "S")
      running.child.kill("SIGTERM")
      assert.strictEqual((yield* finished(running)).exit, "SIGTERM")
    }))

  it.live("may be farther away than a socket address holds", () =>
    Effect.gen(function*() {
      const far = join(directory, "d".repeat(100), "e".repeat(100))
      Fs.mkdirSync(far, { recursive: true })
      const { ended } = yield* start({ socket: join(far, "s") })
      assert.strictEqual((yield* finished(yield* run(["touch=seq"], "s", memory, far))).exit, 0)
      assert.strictEqual(yield* ended, "Gone")
      assert.deepStrictEqual(Fs.readdirSync(far), [])
    }))

  it.live("is for one process alone, if that is known", () =>
    Effect.gen(function*() {
      if (!isThere) return
      const words = ["-c", `read line; exec "$0" "$@"`, client.program, "client", socket, memory, "touch=seq"]
      const right = yield* UffdClient.scoped("sh", words)
      const { ended, ready } = yield* start({ pid: right.child.pid })
      const stranger = yield* run(["hold", "touch=seq"])
      yield* Effect.sleep("50 millis")
      right.child.stdin?.write("\n")
      assert.strictEqual((yield* ready).pid, right.child.pid)
      assert.strictEqual((yield* finished(right)).exit, 0)
      assert.strictEqual(yield* ended, "Gone")
      assert.isFalse(stranger.output().includes("touched"))
    }))

  it.live.skipIf(!isRoot)("belongs to whom it is for", () =>
    Effect.gen(function*() {
      yield* start({ owner: { uid: 65_534, gid: 65_533 } })
      const { gid, mode, uid } = Fs.statSync(socket)
      assert.deepStrictEqual([uid, gid, mode & 0o777], [65_534, 65_533, 0o600])
    }))
})

describe.skipIf(!isThere)("a program with a page server", () => {
  const source = fileURLToPath(new URL("./fixtures/pageServerProcess.ts", import.meta.url))
  const program = (path: string, ...words: ReadonlyArray<string>) =>
    UffdClient.scoped(process.execPath, [
      "--conditions",
      "@effect-microvm-runtime/source",
      path,
      socket,
      memory,
      ...words
    ])

  it.live("can exit while it waits, and while it serves", () =>
    Effect.gen(function*() {
      const waits = yield* program(source, "exit")
      assert.deepStrictEqual(yield* finished(waits), { exit: 3, output: ["listens"] })
      const serves = yield* program(source, "ready", "exit")
      yield* said(serves, "listens")
      yield* run(["hold"])
      assert.deepStrictEqual(yield* finished(serves), { exit: 3, output: ["listens", "ready"] })
    }))

  it.live.each([{ minify: true }, { keepNames: true }])("can be one file, %o", (how) =>
    Effect.gen(function*() {
      const folder = yield* Effect.acquireRelease(
        // Where koffi is found.
        Effect.sync(() => Fs.mkdtempSync(fileURLToPath(new URL("../../.cache/bundle-", import.meta.url)))),
        (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true }))
      )
      const outfile = join(folder, "program.mjs")
      yield* Effect.promise(() =>
        build({
          entryPoints: [source],
          outfile,
          bundle: true,
          platform: "node",
          format: "esm",
          conditions: ["@effect-microvm-runtime/source"],
          ...how
        })
      )
      const bundled = yield* program(outfile, "ended")
      yield* said(bundled, "listens")
      assert.strictEqual((yield* finished(yield* run(["touch=random"]))).exit, 0)
      assert.deepStrictEqual(yield* finished(bundled), { exit: 0, output: ["listens", "Gone"] })
    }))

  it.live("says what it lacks", () =>
    Effect.gen(function*() {
      const lacks = yield* program(source, "without-koffi")
      const message = "The server of page faults failed: the package koffi is not installed: npm install koffi"
      assert.deepStrictEqual(yield* finished(lacks), { exit: 1, output: [message] })
    }))
})
