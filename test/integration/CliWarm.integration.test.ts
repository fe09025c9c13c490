/**
 * The executable with machines that are restored, each test in a cache directory of its own.
 */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Schema from "effect/Schema"
import * as NodeChildProcess from "node:child_process"
import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
import * as Snapshots from "../../src/cli/Snapshots.ts"
import { RunReport } from "../../src/lifecycle/RunReport.ts"
import {
  descendants,
  Executable,
  makeCache,
  microvm,
  microvmIn,
  type Options,
  sleep,
  until
} from "../cli/executable.ts"

const qemu = process.env["MICROVM_QEMU_BIN"] ?? `qemu-system-${process.arch === "arm64" ? "aarch64" : "x86_64"}`
const hasQemu = NodeChildProcess.spawnSync(qemu, ["--version"]).status === 0
if (!hasQemu) console.warn(`SKIPPED tests of warm runs: not found: ${qemu}`)
const namespaces = NodeChildProcess.spawnSync("unshare", ["--mount", "true"]).status === 0
if (!namespaces) console.warn("SKIPPED tests of caches that cannot be written: no mount namespaces (run as root)")

const caches: Array<string> = []
const newCache = (): string => {
  const cache = makeCache()
  caches.push(cache)
  return cache
}

const decodeReport = Schema.decodeUnknownSync(Schema.fromJsonString(RunReport))
const decodeList = Schema.decodeUnknownSync(Schema.fromJsonString(Schema.Array(Snapshots.Listed)))
const listIn = (cache: string) => decodeList(microvmIn(cache, "snapshot", "ls", "--json").stdout)
const walk = (directory: string) => NodeFs.readdirSync(directory, { recursive: true })
const longer = 300_000

/** Runs to the end, after which nothing may be left. */
const run = async (args: ReadonlyArray<string>, options: Options) => {
  await using running = new Executable(args, options)
  const { code } = await running.end()
  await until(`nothing left of ${args.join(" ")}`, () => running.traces().length === 0)
  return { code, stdout: running.stdout, stderr: running.stderr }
}

/** The id of the golden machine there, which is made when there is none. */
const goldenIn = async (cache: string): Promise<string> => {
  const find = () => listIn(cache).find(({ kind }) => kind === "golden")?.id
  if (find() === undefined) await run(["--", "true"], { cache })
  return find() ?? "none"
}

const phasesOf = ({ phases }: RunReport): ReadonlyArray<string> => phases.map(({ name }) => name)
const millisOf = ({ phases }: RunReport): number => phases.reduce((sum, { took }) => sum + Duration.toMillis(took), 0)

describe.skipIf(!hasQemu)("microvm run, warm", () => {
  /** Has a golden machine. */
  let warm = ""
  beforeAll(async () => {
    const built = microvm("image", "build")
    assert.strictEqual(built.status, 0, built.stderr)
    warm = newCache()
  }, 900_000)
  afterAll(() => {
    for (const cache of caches) NodeFs.rmSync(cache, { recursive: true, force: true })
  })

  it("makes a golden machine once, and is told as restored the second time, when it is quicker", async () => {
    const first = await run(["--json", "--", "uname", "-a"], { cache: warm })
    assert.strictEqual(first.code, 0, first.stderr)
    assert.match(first.stderr, /^microvm: making a golden machine, .*\n(.*\n)*microvm: restored in \d/m)
    const second = await run(["--json", "--", "uname", "-a"], { cache: warm })
    assert.strictEqual(second.code, 0)
    assert.notMatch(second.stderr, /golden/)
    assert.match(second.stderr, /^microvm: restored in \d/m)
    const [before, after] = [decodeReport(first.stdout), decodeReport(second.stdout)]
    assert.deepStrictEqual(phasesOf(before), ["golden", "restore", "renew", "command", "stop"])
    assert.deepStrictEqual(phasesOf(after), ["restore", "renew", "command", "stop"])
    assert.strictEqual(after.start?._tag, "Restored")
    assert.isBelow(millisOf(after), millisOf(before))
    assert.deepStrictEqual(listIn(warm).map(({ kind }) => kind), ["golden"])
  }, longer)

  it("gives each machine its own names", async () => {
    const read = "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id"
    const told = await Promise.all(
      ["a", "b"].map(() => run(["--", "sh", "-c", read], { cache: warm }).then(({ stdout }) => stdout.split("\n")))
    )
    const [one = [], two = []] = told
    assert.lengthOf(one, 4)
    for (const index of [0, 1, 2]) assert.notStrictEqual(one[index], two[index])
  }, longer)

  it("makes it anew when a byte of it has changed", async () => {
    const file = NodePath.join(warm, "snapshots", await goldenIn(warm), "memory")
    const handle = NodeFs.openSync(file, "r+")
    NodeFs.writeSync(handle, "x", 100 * 1024 * 1024)
    NodeFs.closeSync(handle)
    const { code, stderr } = await run(["--", "true"], { cache: warm })
    assert.strictEqual(code, 0, stderr)
    assert.match(stderr, /^microvm: making another golden machine: .*memory/m)
    assert.strictEqual(microvmIn(warm, "snapshot", "verify").status, 0)
    assert.lengthOf(listIn(warm), 1)
  }, longer)

  it("is made once by two that need it at the same time", async () => {
    const cache = newCache()
    const ends = await Promise.all([1, 2].map(() => run(["--", "true"], { cache })))
    assert.deepStrictEqual(ends.map(({ code }) => code), [0, 0], ends.map(({ stderr }) => stderr).join("\n"))
    const makers = ends.filter(({ stderr }) => /making a golden machine, from which/.test(stderr))
    assert.lengthOf(makers, 1)
    assert.lengthOf(listIn(cache), 1)
  }, longer)

  it("works ten times at once, while it is made anew", async () => {
    assert.strictEqual(microvmIn(warm, "snapshot", "rm", await goldenIn(warm)).status, 0)
    const ends = await Promise.all(
      Array.from({ length: 10 }, () => run(["--", "cat", "/proc/sys/kernel/random/boot_id"], { cache: warm }))
    )
    assert.deepStrictEqual(ends.map(({ code }) => code), Array.from({ length: 10 }, () => 0), ends[0]?.stderr)
    assert.strictEqual(new Set(ends.map(({ stdout }) => stdout)).size, 10)
    assert.lengthOf(ends.filter(({ stderr }) => /restored in/.test(stderr)), 10)
    assert.lengthOf(listIn(warm), 1)
  }, longer)

  it("leaves nothing when it is killed at any moment, and the next run works", async () => {
    const cache = newCache()
    const began = Date.now()
    await run(["--", "true"], { cache })
    const span = Date.now() - began
    // One in each part of it.
    const moments = Array.from({ length: 6 }, (_, part) => Math.floor((part + Math.random()) * span / 6))
    const gone: Array<number> = []
    for (const moment of moments) {
      const [golden] = listIn(cache)
      if (golden !== undefined) microvmIn(cache, "snapshot", "rm", golden.id)
      await using running = new Executable(["--", "sleep", "1000"], { cache })
      await sleep(moment)
      // Stopped first, so that what it has started is known.
      running.kill("SIGSTOP")
      await sleep(5)
      const born = descendants(running.pid)
      running.kill("SIGKILL")
      const killed = performance.now()
      // Whoever clears up is the last to go.
      const others = born.filter(({ line }) => !line.includes("microvm-guard"))
      const what = `killed after ${moment} ms, of ${moments.join(", ")}`
      await until(`${what}: nothing left but the guard`, () => running.traces(others).length === 0)
      gone.push(performance.now() - killed)
      await until(`${what}: nothing left`, () => running.traces(born).length === 0)
      assert.deepStrictEqual(running.records(), [], what)
    }
    console.log(`SIGKILL after so many ms: ${moments.join(", ")}`)
    // Within a second, but for those that other work on this host has held up.
    assert.isAtMost(gone.toSorted((a, b) => a - b)[Math.floor(gone.length / 2)] ?? 0, 1000, gone.join(", "))
    assert.strictEqual((await run(["--", "true"], { cache })).code, 0)
    assert.strictEqual(microvmIn(cache, "snapshot", "verify").status, 0)
    // What the dead have left in the cache goes with the next change.
    assert.strictEqual(microvmIn(cache, "snapshot", "rm", listIn(cache)[0]?.id ?? "").status, 0)
    assert.deepStrictEqual(NodeFs.readdirSync(NodePath.join(cache, "tmp")), [])
    assert.deepStrictEqual(walk(NodePath.join(cache, "snapshots")), ["tmp"])
  }, longer)

  it("ends at once at a signal while a golden machine is made", async () => {
    const cache = newCache()
    await using running = new Executable(["--json", "--", "true"], { cache })
    await running.says("making a golden machine")
    await sleep(500)
    running.kill("SIGTERM")
    assert.strictEqual((await running.end()).code, 143)
    assert.deepStrictEqual(decodeReport(running.stdout).end, { _tag: "Interrupted", signal: "SIGTERM" })
    await until("nothing left", () => running.traces().length === 0)
    assert.deepStrictEqual(listIn(cache), [])
    assert.deepStrictEqual(NodeFs.readdirSync(NodePath.join(cache, "tmp")), [])
    assert.deepStrictEqual(walk(NodePath.join(cache, "snapshots")), ["tmp"])
  }, longer)

  it("can be saved from another terminal, goes on, and others are restored from that", async () => {
    await using running = new Executable(["--", "sh", "-c", "echo kept >/tmp/file; echo up; read line; echo $line"], {
      cache: warm,
      stdin: null
    })
    await running.says("up")
    const saved = microvmIn(warm, "snapshot", "save", running.machine, "ready")
    assert.strictEqual(saved.status, 0, saved.stderr)
    assert.match(saved.stderr, /^microvm: saved as ready in .*; the machine stood still for \d/m)
    assert.strictEqual(microvmIn(warm, "snapshot", "save", running.machine, "ready").status, 1)

    // A clone while the first one runs, of which each goes its own way.
    const clone = await run(["--from", "ready", "--", "sh", "-c", "cat /tmp/file; hostname"], { cache: warm })
    assert.strictEqual(clone.code, 0, clone.stderr)
    assert.match(clone.stdout, /^kept\ncli-/)
    assert.notInclude(clone.stdout, running.machine)

    running.child.stdin?.end("goes on\n")
    assert.strictEqual((await running.end()).code, 0)
    assert.strictEqual(running.stdout, "up\ngoes on\n")
    assert.strictEqual(microvmIn(warm, "snapshot", "rm", "ready").status, 0)
    const none = await run(["--from", "ready", "--", "true"], { cache: warm })
    assert.strictEqual(none.code, 64)
    assert.match(none.stderr, /^microvm: There is no snapshot "ready"$/m)
  }, longer)

  it("refuses a snapshot of which a byte has changed", async () => {
    await using running = new Executable(["--", "sh", "-c", "echo up; exec sleep 1000"], { cache: warm })
    await running.says("up")
    assert.strictEqual(microvmIn(warm, "snapshot", "save", running.machine, "spoilt").status, 0)
    running.kill("SIGTERM")
    await running.end()
    const spoilt = listIn(warm).find(({ names }) => names.includes("spoilt"))
    const file = NodePath.join(warm, "snapshots", spoilt?.id ?? "", "state")
    const handle = NodeFs.openSync(file, "r+")
    NodeFs.writeSync(handle, "x", 5000)
    NodeFs.closeSync(handle)
    const refused = await run(["--from", "spoilt", "--", "true"], { cache: warm })
    assert.strictEqual(refused.code, 125)
    assert.match(refused.stderr, /state has changed/)
    const verified = microvmIn(warm, "snapshot", "verify", "spoilt")
    assert.deepStrictEqual([verified.status, verified.stdout], [1, "FAIL  spoilt\n"])
    assert.strictEqual(microvmIn(warm, "snapshot", "rm", "spoilt").status, 0)
  }, longer)

  const inNamespace = (script: string) => ["unshare", "--mount", "sh", "-ec", `${script}; exec "$@"`, "sh"]

  it.skipIf(!namespaces)("boots, and says why, when its cache is read-only", async () => {
    const cache = newCache()
    const within = inNamespace(`mount --bind ${cache} ${cache}; mount -o remount,bind,ro ${cache}`)
    const { code, stderr, stdout } = await run(["--", "echo", "hello"], { cache, within })
    assert.deepStrictEqual({ code, stdout }, { code: 0, stdout: "hello\n" }, stderr)
    assert.match(stderr, /^microvm: booting: .*(read-only|EROFS)/m, stderr)
    assert.notMatch(stderr, /restored/)
  }, longer)

  it.skipIf(!namespaces)("does not blame a sound golden machine in a cache that is read-only, each time", async () => {
    const golden = await goldenIn(warm)
    const within = inNamespace(`mount --bind ${warm} ${warm}; mount -o remount,bind,ro ${warm}`)
    for (const time of ["first", "second"]) {
      const { code, stderr, stdout } = await run(["--", "echo", "hello"], { cache: warm, within })
      assert.deepStrictEqual({ code, stdout }, { code: 0, stdout: "hello\n" }, `${time}: ${stderr}`)
      assert.notMatch(stderr, /golden machine|Remove it/, time)
      // QEMU opens the memory of a machine for reading only since 8.2.
      const why = new RegExp(`booting: .*${warm}/snapshots/${golden}/memory: .*EROFS.*read-write.*QEMU 8.2`)
      if (/booting/.test(stderr)) assert.match(stderr, why, time)
      else assert.match(stderr, /restored in/, time)
    }
    assert.deepStrictEqual(listIn(warm).map(({ id }) => id), [golden])
    assert.match((await run(["--", "true"], { cache: warm })).stderr, /^microvm: restored in/m)
  }, longer)

  it.skipIf(!namespaces)("boots, and says why, when its cache is full", async () => {
    const cache = newCache()
    const copy = `${cache}-copy`
    NodeFs.renameSync(cache, copy)
    caches.push(copy)
    NodeFs.mkdirSync(cache)
    // 8 MiB are not enough for the memory of a machine.
    const fill = `size=$(($(du -sk ${copy} | cut -f 1) + 8192))k`
    const within = inNamespace(`${fill}; mount -t tmpfs -o size=$size full ${cache}; cp -a ${copy}/. ${cache}`)
    const { code, stderr, stdout } = await run(["--", "echo", "hello"], { cache, within })
    assert.deepStrictEqual({ code, stdout }, { code: 0, stdout: "hello\n" }, stderr)
    assert.match(stderr, /^microvm: booting: .*MB are free: make room/m, stderr)
  }, longer)
})
