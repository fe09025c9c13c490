import { describe, expect, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import { spawn } from "node:child_process"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { inspect } from "node:util"
import { cachedSuccess } from "../../src/process/internal/cachedSuccess.ts"
import { KillScope } from "../../src/process/KillScope.ts"
import * as NodeProcessHost from "../../src/process/NodeProcessHost.ts"
import { type LaunchPlan, ProcessHost } from "../../src/process/ProcessHost.ts"
import { eventually, fixture, hasCGroups, trial } from "./support.ts"

const plan: LaunchPlan = {
  executable: "/bin/sh",
  args: ["-c", "exit 0"],
  env: {},
  cwd: "/",
  stdio: ["ignore", "ignore", "ignore"],
  detached: true,
  cgroup: undefined,
  dieWithParent: true
}

it.live("a start that fails keeps no argument in its error", () =>
  Effect.gen(function*() {
    const host = yield* ProcessHost
    const faulty: LaunchPlan = { ...plan, dieWithParent: false }
    // One fails with an event, the other is thrown.
    const absent = yield* Effect.flip(host.launch({ ...faulty, executable: "/no/such/program", args: ["hunter2"] }))
    expect(absent.reason).toMatchObject({ _tag: "SpawnFailed", code: "ENOENT" })
    expect(absent.cause).toMatchObject({ code: "ENOENT", errno: -2, syscall: "spawn /no/such/program" })
    const invalid = yield* Effect.flip(host.launch({ ...faulty, args: ["hunter2\0"] }))
    expect(invalid.reason).toMatchObject({ _tag: "SpawnFailed", code: "ERR_INVALID_ARG_VALUE" })
    expect(inspect([absent, invalid], { depth: 9, showHidden: true })).not.toContain("hunter2")
  }).pipe(Effect.provide(NodeProcessHost.layer)))

it.live("a process without any environment has no mark", () =>
  Effect.gen(function*() {
    const host = yield* ProcessHost
    const child = spawn("/bin/sleep", ["60"], { env: {}, stdio: "ignore" })
    yield* Effect.addFinalizer(() => Effect.sync(() => child.kill("SIGKILL")))
    const pid = child.pid ?? 0
    // Until its execve is over.
    expect(yield* eventually(() => readFileSync(`/proc/${pid}/comm`, "utf8") === "sleep\n")).toBe(true)
    expect(Option.getOrThrow(yield* host.inspect(pid)).mark).toBeUndefined()
    expect((yield* host.list(0)).find((info) => info.pid === pid)).toMatchObject({ mark: undefined })
  }).pipe(Effect.scoped, Effect.provide(NodeProcessHost.layer)))

it.live("of an environment no more is read than a program can be given, however long a process says that its own is", () =>
  Effect.gen(function*() {
    const host = yield* ProcessHost
    const child = spawn(process.execPath, [fixture("long-environment.ts")], { stdio: ["ignore", "pipe", "inherit"] })
    yield* Effect.addFinalizer(() => Effect.sync(() => child.kill("SIGKILL")))
    let said = ""
    child.stdout.on("data", (bytes) => {
      said += String(bytes)
    })
    expect(yield* eventually(() => said.endsWith("\n"))).toBe(true)
    if (said !== "ready\n") return console.warn("skipped: an environment of any length, which this kernel refuses")
    expect(Option.getOrThrow(yield* host.inspect(child.pid ?? 0)).mark).toBeUndefined()
  }).pipe(Effect.scoped, Effect.provide(NodeProcessHost.layer)))

it.live("who waits for an end learns of it before what clears up, whoever came first", () =>
  Effect.gen(function*() {
    const host = yield* ProcessHost
    const child = yield* host.launch({ ...plan, args: ["-c", "exec sleep 60"] })
    yield* Effect.addFinalizer(() => Effect.ignore(child.signal("SIGKILL")))
    const told: Array<string> = []
    const tells = (name: string, end: typeof child.exit) =>
      Effect.forkChild(Effect.map(end, (status) => told.push(`${name} ${status._tag}`)), { startImmediately: true })
    const fibers = [yield* tells("afterExit", child.afterExit), yield* tells("exit", child.exit)]
    const promised = Effect.runPromise(child.exit).then(() => told.push("promise"))
    yield* child.signal("SIGKILL")
    yield* Fiber.awaitAll(fibers)
    yield* Effect.promise(() => promised)
    expect(told).toEqual(["exit Signaled", "promise", "afterExit Signaled"])
    expect(yield* child.afterExit).toEqual(yield* child.exit)
  }).pipe(Effect.scoped, Effect.provide(NodeProcessHost.layer)))

it.live("a child's pid is its own until it is reaped if it is the first of a group, and else from its start on at least", () =>
  Effect.gen(function*() {
    const host = yield* ProcessHost
    const pinned = Effect.fnUntraced(function*(detached: boolean) {
      const child = yield* host.launch({ ...plan, detached, args: ["-c", "sleep 0.05"] })
      expect(child.reapedAt()).toBeUndefined()
      yield* child.afterExit
      return (child.reapedAt() ?? Number.NaN) - child.startTime
    })
    expect(yield* pinned(true)).toBeGreaterThanOrEqual(4)
    expect(yield* pinned(false)).toBe(0)
  }).pipe(Effect.provide(NodeProcessHost.layer)))

describe("what stands for more than one process or group", () => {
  it.live("is not signalled", () =>
    Effect.gen(function*() {
      const host = yield* ProcessHost
      for (const target of [-1, 0, 1, NaN, 2.5]) {
        const error = yield* Effect.flip(host.kill(target, "SIGCONT"))
        expect(error.reason).toMatchObject({ _tag: "InvalidArgument", field: "target" })
      }
    }).pipe(Effect.provide(NodeProcessHost.layer)))

  it("is no kill scope", () => {
    const isKillScope = Schema.is(KillScope)
    const group = (pgid: number) => isKillScope({ _tag: "Group", pgid, reason: "asked for" })
    expect([-7, -1, 0, 1, 2].map(group)).toEqual([false, false, false, false, true])
  })
})

it.effect("a failure is not kept, a success is", () =>
  Effect.gen(function*() {
    let runs = 0
    const cached = yield* cachedSuccess(Effect.suspend(() => ++runs < 3 ? Effect.fail("EMFILE") : Effect.succeed(runs)))
    expect(yield* Effect.flip(cached)).toBe("EMFILE")
    expect(yield* Effect.flip(cached)).toBe("EMFILE")
    expect([yield* cached, yield* cached, runs]).toEqual([3, 3, 3])
  }))

describe("a setpriv that never ends", () => {
  /** Has the host find a setpriv that hangs, and forks at that. */
  const withHangingSetpriv = <A, E, R>(use: (alive: () => ReadonlyArray<number>) => Effect.Effect<A, E, R>) =>
    Effect.acquireUseRelease(
      Effect.sync(() => {
        const directory = mkdtempSync(`${tmpdir()}/process-host-`)
        const own = trial()
        const env = Object.entries(own.env).map(([name, value]) => `${name}=${value}`).join(" ")
        writeFileSync(`${directory}/setpriv`, `#!/bin/sh\nenv ${env} sleep 4447\n:\n`, { mode: 0o755 })
        const path = process.env["PATH"] ?? ""
        process.env["PATH"] = `${directory}:${path}`
        return { alive: own.alive, directory, path }
      }),
      ({ alive }) => use(alive),
      ({ directory, path }) =>
        Effect.sync(() => {
          process.env["PATH"] = path
          rmSync(directory, { recursive: true, force: true })
        })
    )

  it.effect(
    "is given up after seconds and killed, and the program is started without it",
    () =>
      withHangingSetpriv((alive) =>
        Effect.gen(function*() {
          const host = yield* ProcessHost
          const launching = yield* Effect.forkChild(host.launch(plan), { startImmediately: true })
          expect(yield* TestClock.withLive(eventually(() => alive().length === 1))).toBe(true)
          // A busy host may take so long.
          yield* TestClock.adjust("9 seconds")
          expect(launching.pollUnsafe()).toBeUndefined()
          yield* TestClock.adjust("1 second")
          const child = yield* Fiber.join(launching)
          expect(yield* child.exit).toMatchObject({ _tag: "Exited", code: 0 })
          expect(yield* TestClock.withLive(eventually(() => alive().length === 0))).toBe(true)
        }).pipe(Effect.provide(NodeProcessHost.layer))
      ),
    180_000
  )

  it.live("holds up nobody who is interrupted", () =>
    withHangingSetpriv((alive) =>
      Effect.gen(function*() {
        const host = yield* ProcessHost
        const fiber = yield* Effect.forkChild(Effect.uninterruptible(host.launch(plan)), { startImmediately: true })
        expect(yield* eventually(() => alive().length === 1)).toBe(true)
        const [took] = yield* Effect.timed(Fiber.interrupt(fiber))
        expect(Duration.toMillis(took)).toBeLessThan(1500)
        expect(yield* eventually(() => alive().length === 0)).toBe(true)
      }).pipe(Effect.provide(NodeProcessHost.layer))
    ), 180_000)
})

/** Has the host find a setpriv that counts its calls. */
const countingSetpriv = Effect.gen(function*() {
  const { PATH = "" } = process.env
  const directory = yield* Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(`${tmpdir()}/process-host-`)),
    (made) =>
      Effect.sync(() => {
        process.env["PATH"] = PATH
        rmSync(made, { recursive: true, force: true })
      })
  )
  process.env["PATH"] = `${directory}:${PATH}`
  return {
    directory,
    install: (more: string): void => {
      writeFileSync(`${directory}/calls`, "")
      writeFileSync(
        `${directory}/setpriv`,
        `#!/bin/sh\necho >> ${directory}/calls\n${more}\nPATH='${PATH}' exec setpriv "$@"\n`,
        { mode: 0o755 }
      )
    },
    /** Since it was last asked, or installed. */
    calls: (): number => {
      const calls = readFileSync(`${directory}/calls`, "utf8").length
      writeFileSync(`${directory}/calls`, "")
      return calls
    }
  }
})

const launched = Effect.gen(function*() {
  const child = yield* (yield* ProcessHost).launch(plan)
  expect(yield* child.exit).toMatchObject({ _tag: "Exited", code: 0 })
})

it.live("a setpriv that was seen to work is tried again only when it is another file, or since another boot", () =>
  Effect.gen(function*() {
    const { calls: counted, directory, install } = yield* countingSetpriv
    const cache = `${directory}/tried`
    const calls = (options: NodeProcessHost.Options) =>
      Effect.map(Effect.provide(launched, NodeProcessHost.layerWith(options)), counted)
    const tried = { tried: cache }

    install("")
    expect([yield* calls({}), yield* calls({})]).toEqual([2, 2])
    expect([yield* calls(tried), yield* calls(tried)]).toEqual([2, 1])
    install("# another")
    expect([yield* calls(tried), yield* calls(tried)]).toEqual([2, 1])

    const kept = `${cache}/setpriv.tried`
    const text = readFileSync(kept, "utf8")
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim()
    writeFileSync(kept, text.replace(boot, "another"))
    expect([yield* calls(tried), readFileSync(kept, "utf8")]).toEqual([2, text])

    // What does not work is tried each time.
    install("exit 1")
    expect([yield* calls(tried), yield* calls(tried)]).toEqual([1, 1])
  }).pipe(Effect.scoped))

if (hasCGroups) {
  it.live("a setpriv is tried by the process that tries the cgroup, and by no other; the cgroup is usable without it", () =>
    Effect.gen(function*() {
      const { calls, install } = yield* countingSetpriv
      const looks = Effect.gen(function*() {
        const { cgroupSupport } = yield* ProcessHost
        expect(yield* cgroupSupport).toMatchObject({ _tag: "Usable" })
        const first = calls()
        yield* launched
        return [first, calls()]
      })
      const look = Effect.suspend(() => Effect.provide(looks, NodeProcessHost.layerWith({})))
      install("")
      expect(yield* look).toEqual([1, 1])
      install("exit 1")
      expect(yield* look).toEqual([1, 0])
    }).pipe(Effect.scoped))
} else console.warn("skipped: what the trial of a cgroup tells of setpriv, for here no cgroup is ours to make")
