import * as NodeServices from "@effect/platform-node/NodeServices"
import { afterAll, assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { execFileSync, spawn } from "node:child_process"
import { once } from "node:events"
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync
} from "node:fs"
import { createConnection } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as FirecrackerProvider from "../../src/firecracker/FirecrackerProvider.ts"
import * as NodeFirecracker from "../../src/firecracker/NodeFirecracker.ts"
import * as NodeVsock from "../../src/firecracker/NodeVsock.ts"
import * as Vsock from "../../src/firecracker/Vsock.ts"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import * as Machine from "../../src/microvm/Machine.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import { ProcessHolder } from "../../src/process/ProcessHolder.ts"
import * as FakeFirecracker from "../../src/testing/FakeFirecracker.ts"
import { haltingKernel } from "../testing/haltingKernel.ts"

const work = realpathSync(mkdtempSync(join(tmpdir(), "firecracker-keep-")))
afterAll(() => rmSync(work, { recursive: true }))
const kernel = join(work, "vmlinux")
writeFileSync(kernel, haltingKernel())

const host = NodeFirecracker.layer.pipe(
  Layer.provideMerge(NodeProcessSpawner.layer),
  Layer.provideMerge(NodeServices.layer)
)

const channel = GuestAgent.channelName
const optionsOf = (id: string): MachineSpec.MachineSpecOptions => ({ id, kernel, channels: [channel] })

interface Place {
  readonly id: string
  readonly directory: string
  readonly fake: FakeFirecracker.Installed
  readonly options: FirecrackerProvider.Options
}

/** A place for a machine on a fake of its own, and nothing of that machine left at the end. */
const place = (
  id: string,
  fake: FakeFirecracker.Options = {},
  options: FirecrackerProvider.Options = {},
  // No address of a socket has room for this.
  name = `${id}-${"x".repeat(100)}`
) =>
  Effect.acquireRelease(
    Effect.map(FakeFirecracker.install({ bootMillis: 0, console: ["up and running"], ...fake }), (installed): Place => {
      const directory = join(work, name)
      mkdirSync(directory, { mode: 0o700 })
      return { id, directory, fake: installed, options: { binary: installed.binary, kvm: "assume", ...options } }
    }),
    ({ directory }) =>
      Effect.gen(function*() {
        const fate = yield* ProcessHolder.use((holder) => holder.destroy({ directory }))
        assert.include(["Absent", "Destroyed"], fate._tag)
        assert.deepStrictEqual(inhabitants(directory), [])
      })
  )

const on = <A, E, R>({ options }: Place, effect: Effect.Effect<A, E, R>) =>
  Effect.flatMap(Layer.build(FirecrackerProvider.layerWith(options)), (context) => Effect.provide(effect, context))

const launch = (at: Place, how: Machine.LaunchOptions = {}) =>
  on(
    at,
    Effect.flatMap(
      MachineSpec.decode(optionsOf(at.id)),
      (spec) => Machine.launch(spec, { ...how, keep: { directory: at.directory } })
    )
  )

const attach = (at: Place) =>
  on(
    at,
    Effect.flatMap(
      MachineSpec.decode(optionsOf(at.id)),
      (spec) => Machine.attach(spec, { keep: { directory: at.directory } })
    )
  )

const withAgent = <A, E>(machine: Machine.Machine, use: (agent: GuestAgent.GuestAgent) => Effect.Effect<A, E>) =>
  Effect.scoped(
    machine.channel(channel).pipe(
      Effect.flatMap((socket) => GuestAgent.make(socket, { within: "10 seconds" })),
      Effect.flatMap(use)
    )
  )

const word = "/tmp/word"
const remember = (machine: Machine.Machine, text: string) =>
  withAgent(machine, (agent) => Stream.run(Stream.encodeText(Stream.succeed(text)), agent.writeFile(word)))
const recall = (machine: Machine.Machine) =>
  withAgent(machine, (agent) => Stream.mkString(Stream.decodeText(agent.readFile(word))))

/** One that only waits to be reaped is gone. */
const isThere = (pid: number): boolean => {
  try {
    return !/^\d+ \(.*\) [ZX] /s.test(readFileSync(`/proc/${pid}/stat`, "latin1"))
  } catch {
    return false
  }
}

const isIn = (pid: string, directory: string): boolean => {
  try {
    return readlinkSync(`/proc/${pid}/cwd`).startsWith(directory) && isThere(Number(pid))
  } catch {
    return false
  }
}

/** The processes that work in a directory. */
const inhabitants = (directory: string): ReadonlyArray<string> =>
  readdirSync("/proc").filter((name) => /^\d+$/.test(name) && isIn(name, directory))

const until = (what: string, holds: () => boolean): Effect.Effect<void> =>
  Effect.suspend(() => holds() ? Effect.void : Effect.andThen(Effect.sleep("20 millis"), until(what, holds))).pipe(
    Effect.timeoutOrElse({ duration: "30 seconds", orElse: () => Effect.die(new Error(`never: ${what}`)) })
  )

/** A supervisor in a process of its own. */
const supervisor = ({ directory, id, options: { binary = "" } }: Place, saveTo: ReadonlyArray<string> = []) => {
  const fixture = new URL("fixtures/keeping.ts", import.meta.url).pathname
  const args = [fixture, directory, binary, JSON.stringify(optionsOf(id)), ...saveTo]
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] })
  let said = ""
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    said += text
  })
  return {
    says: (text: string) => until(`it says ${text}`, () => said.includes(text)),
    kill: Effect.promise(async () => {
      const gone = once(child, "exit")
      child.kill("SIGKILL")
      await gone
    })
  }
}

const asked = ({ fake }: Place, path: string) =>
  Effect.map(fake.requests, (requests) => requests.filter((request) => request.path === path).length)

const untilAsked = (at: Place, path: string): Effect.Effect<void> =>
  Effect.flatMap(
    asked(at, path),
    (times) => times > 0 ? Effect.void : Effect.andThen(Effect.sleep("20 millis"), untilAsked(at, path))
  )

/** By a path that is short enough. */
const openSocket = ({ directory }: Place, name = "api.sock") => {
  const alias = mkdtempSync(join(work, "a-"))
  symlinkSync(join(directory, "machine"), join(alias, "m"))
  return createConnection({ path: join(alias, "m", name) })
}

const holderOf = ({ directory }: Place): number =>
  Number(/"holder":\{[^}]*"pid":(\d+)/.exec(readFileSync(join(directory, "holder.json"), "utf8"))?.[1])

const real = process.env["FIRECRACKER_BIN"]
if (real === undefined) console.warn("SKIPPED a real Firecracker: FIRECRACKER_BIN names none")

layer(host, { excludeTestServices: true, timeout: "1 minute" })("a real Firecracker that is kept", (it) => {
  it.effect.skipIf(real === undefined)(
    "outlives the kill of its supervisor, is saved, and ends",
    () =>
      Effect.gen(function*() {
        const at = yield* place("real", {}, { binary: real, metrics: true })
        const first = supervisor(at)
        yield* first.says("started")
        yield* first.kill
        const pid = yield* Effect.scoped(Effect.gen(function*() {
          const machine = yield* attach(at)
          assert.strictEqual(yield* machine.state, "running")
          yield* machine.pause
          return Option.getOrThrow(machine.pid)
        }))
        const directory = mkdtempSync(join(work, "real-"))
        yield* Effect.scoped(Effect.gen(function*() {
          const machine = yield* attach(at)
          assert.strictEqual(yield* machine.state, "paused")
          assert.strictEqual(Option.getOrThrow(machine.pid), pid)
          yield* machine.save(directory)
          yield* machine.resume
          yield* machine.ping
        }))
        assert.deepStrictEqual(readdirSync(directory).toSorted(), ["memory", "state"])
        process.kill(pid, "SIGKILL")
        yield* until("it ends", () => existsSync(join(at.directory, "exit.json")))
        const end = yield* (yield* attach(at)).ended
        assert.strictEqual(end._tag, "Killed")
        assert.deepInclude(end.status, { _tag: "Signaled", signal: "SIGKILL" })
      })
  )
})

layer(host, { excludeTestServices: true, timeout: "1 minute" })("a Firecracker that is kept", (it) => {
  it.effect("outlives the kill of its supervisor, with its console, its agent and its end", () =>
    Effect.gen(function*() {
      const at = yield* place("outlives")
      const first = supervisor(at)
      yield* first.says("started")
      const taken = yield* Effect.flip(attach(at))
      assert.isTrue(taken.reason._tag === "AttachFailed" && taken.reason.isHeld, taken.message)
      yield* first.kill

      const pid = yield* Effect.scoped(Effect.gen(function*() {
        const machine = yield* attach(at)
        assert.strictEqual(yield* machine.state, "running")
        yield* remember(machine, "word")
        assert.include(yield* machine.consoleTail, "up and running")
        yield* machine.pause
        return Option.getOrThrow(machine.pid)
      }))
      assert.isTrue(isThere(pid))

      const machine = yield* attach(at)
      assert.strictEqual(yield* machine.state, "paused")
      assert.strictEqual(Option.getOrThrow(machine.pid), pid)
      yield* machine.resume
      assert.strictEqual(yield* recall(machine), "word")
      const outcome = yield* machine.shutdown()
      assert.strictEqual(outcome._tag === "Graceful" ? outcome.stage : outcome._tag, "power button")
      const end = yield* machine.ended
      assert.strictEqual(end._tag, "PoweredOff")
      assert.deepStrictEqual(end.status, { _tag: "Exited", code: 0, observedBy: "wait" })
      yield* until("the holder ends", () => !isThere(holderOf(at)))

      const late = yield* attach(at)
      const told = yield* late.ended
      assert.strictEqual(told._tag, "PoweredOff")
      assert.strictEqual(told.consoleTail, end.consoleTail)
      assert.strictEqual((yield* late.shutdown())._tag, "AlreadyExited")
      assert.match((yield* Effect.flip(late.pause)).message, /cannot become paused/)
    }))

  it.effect("tells how it ended while nobody was there", () =>
    Effect.gen(function*() {
      const at = yield* place("alone", { console: ["Kernel panic - not syncing: no init found"] })
      const pid = yield* Effect.scoped(Effect.gen(function*() {
        const machine = yield* launch(at)
        const said = yield* machine.console.pipe(Stream.runHead, Effect.forkChild({ startImmediately: true }))
        yield* machine.start
        yield* Fiber.join(said)
        return Option.getOrThrow(machine.pid)
      }))
      // Nobody holds it, and somebody else presses its keys.
      yield* Effect.callback<void>((resume) => {
        const socket = openSocket(at)
        const body = JSON.stringify({ action_type: "SendCtrlAltDel" })
        socket.on("error", () => resume(Effect.void)).on("data", () => resume(Effect.void)).write(
          `PUT /actions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`
        )
      })
      yield* until("it ends", () => !isThere(pid) && existsSync(join(at.directory, "exit.json")))
      const machine = yield* attach(at)
      assert.strictEqual((yield* machine.ended)._tag, "Panicked")
      assert.include(yield* machine.consoleTail, "no init found")
      assert.deepStrictEqual(yield* Stream.runCollect(machine.console), [])
    }))

  it.effect("is lost with its holder, and so told", () =>
    Effect.gen(function*() {
      const at = yield* place("lost")
      const machine = yield* launch(at)
      yield* machine.start
      process.kill(holderOf(at), "SIGKILL")
      const end = yield* machine.ended
      assert.match(end._tag === "Failed" ? end.why : end._tag, /its holder was killed/)
      assert.isFalse(isThere(Option.getOrThrow(machine.pid)))
      assert.strictEqual((yield* (yield* attach(at)).ended)._tag, "Failed")
    }))

  it.effect("is not taken for whole when its supervisor was killed half-way", () =>
    Effect.gen(function*() {
      const at = yield* place("half", { faults: [{ _tag: "Slow", path: "/vsock", millis: 60_000 }] })
      const first = supervisor(at)
      yield* untilAsked(at, "/boot-source")
      yield* first.kill
      const error = yield* Effect.flip(attach(at))
      assert.match(error.message, /"half" cannot be attached to: .* its launch was broken off: end it/)
    }))

  it.effect("that was being saved when its supervisor was killed is waited for", () =>
    Effect.gen(function*() {
      const at = yield* place(
        "saving",
        { faults: [{ _tag: "Slow", path: "/snapshot/create", millis: 1500 }] },
        { deadlines: { read: "200 millis" } }
      )
      const to = mkdtempSync(join(work, "saved-"))
      const first = supervisor(at, [to])
      yield* first.says("saving")
      yield* untilAsked(at, "/snapshot/create")
      yield* first.kill
      const machine = yield* attach(at)
      assert.strictEqual(yield* machine.state, "paused")
      yield* machine.resume
      yield* remember(machine, "word")
    }))

  it.effect("that dies as it is asked what it is has ended", () =>
    Effect.gen(function*() {
      const at = yield* place("hangs", { faults: [{ _tag: "Die", path: "/", moment: "Before", code: 148 }] })
      yield* Effect.scoped(launch(at))
      const machine = yield* attach(at)
      const end = yield* machine.ended
      assert.match(end._tag === "Failed" ? end.why : end._tag, /seccomp filter refused/)
    }))

  it.effect("leaves nothing when it does not come up, or its launch is interrupted", () =>
    Effect.gen(function*() {
      const at = yield* place("broken", { faults: [{ _tag: "Die", path: "/boot-source", moment: "Half", code: 148 }] })
      const error = yield* Effect.flip(launch(at))
      assert.match(error.message, /configuring failed: its seccomp filter refused a system call/)
      assert.strictEqual((yield* ProcessHolder.use((holder) => holder.destroy(at)))._tag, "Absent")
      for (const millis of [0, 50, 100, 200, 400]) {
        const hasty = yield* place(`hasty-${millis}`)
        yield* Effect.timeoutOption(Effect.scoped(Effect.andThen(launch(hasty), Effect.never)), millis)
        // One that was up is kept; of one that was not there is nothing.
        const { directory } = hasty
        const fate = yield* ProcessHolder.use((holder) => holder.destroy({ directory, dryRun: true }))
        if (fate._tag === "Destroyed") assert.strictEqual(yield* (yield* attach(hasty)).state, "created")
        else assert.deepStrictEqual(inhabitants(directory), [])
      }
    }))

  it.effect("has its directory for itself", () =>
    Effect.gen(function*() {
      const at = yield* place("itself")
      const none = yield* Effect.flip(attach(at))
      assert.match(none.message, /Machine "itself" cannot be attached to: .*holds no process/)
      yield* Effect.scoped(launch(at))
      const second = yield* Effect.flip(Effect.scoped(launch(at)))
      assert.match(second.message, /there is, or was, a machine in it: give an empty one/)
      const other = yield* Effect.flip(attach({ ...at, id: "another" }))
      assert.match(other.message, /is "itself"/)
      // None of that has ended it.
      assert.strictEqual(yield* (yield* attach(at)).state, "created")
      const nowhere = yield* Effect.flip(launch({ ...at, directory: join(work, "nowhere") }))
      assert.match(nowhere.message, /ENOENT/)
    }))

  it.effect("is restored, saved, and restored again where the host's clock cannot be gone on from", () =>
    Effect.gen(function*() {
      const at = yield* place("first")
      const directory = mkdtempSync(join(work, "saved-"))
      const saved = yield* Effect.scoped(Effect.gen(function*() {
        yield* Effect.scoped(launch(at))
        const machine = yield* attach(at)
        yield* machine.start
        yield* remember(machine, "word")
        yield* machine.pause
        return yield* machine.save(directory)
      }))
      assert.deepStrictEqual(readdirSync(directory).toSorted(), ["memory", "state"])
      const spec = yield* MachineSpec.decode(optionsOf("first"))
      const { drives: _, hostname: __, id: ___, networks: ____, ...rest } = spec
      const snapshot = {
        id: "f".repeat(64),
        directory,
        manifest: {
          format: 1,
          kind: "saved",
          ...saved,
          spec: rest,
          labels: {},
          createdAt: "2026-01-01T00:00:00Z",
          files: []
        }
      } as const
      const refusal = "Load snapshot error: Failed to restore from snapshot: clock_realtime is not supported"
      const body = JSON.stringify({ fault_message: refusal })
      const raw = `HTTP/1.1 400 \r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`
      // The first load that this fake sees is refused.
      const second = yield* place("second", {}, {})
      yield* second.fake.update({ faults: [{ _tag: "Raw", path: "/snapshot/load", answer: raw }] })
      const retry = yield* Effect.forkChild(
        Effect.scoped(on(second, Machine.restore("second", snapshot, { keep: { directory: second.directory } })))
      )
      yield* untilAsked(second, "/snapshot/load")
      yield* second.fake.update({ faults: [] })
      yield* Fiber.join(retry)
      assert.strictEqual(yield* asked(second, "/snapshot/load"), 2)
      const machine = yield* attach(second)
      assert.strictEqual(yield* machine.state, "paused")
      yield* machine.resume
      assert.strictEqual(yield* recall(machine), "word")
    }))

  it.effect("goes on with its metrics, and with what is beside it", () =>
    Effect.gen(function*() {
      const heard: Array<string> = []
      const beside: FirecrackerProvider.Beside = ({ owner, vsock }) =>
        Vsock.listen(vsock, 6000, { owner }).pipe(
          Effect.flatMap((server) => Effect.forkScoped(server.run(() => Effect.sync(() => void heard.push("called"))))),
          Effect.provide(NodeVsock.layer)
        )
      const at = yield* place("beside", {}, { metrics: true, beside })
      const metrics = join(at.directory, "machine", "firecracker.metrics")
      yield* Effect.scoped(Effect.flatMap(launch(at), (machine) => machine.start))
      assert.isTrue(existsSync(metrics))
      const listening = join(at.directory, "machine", "vsock.sock_6000")
      assert.isFalse(existsSync(listening))
      yield* attach(at)
      yield* Effect.callback<void>((resume) => {
        const socket = openSocket(at, "vsock.sock_6000").on("close", () => resume(Effect.void))
        socket.on("error", (cause) => resume(Effect.die(cause))).resume()
      })
      yield* until("it is heard", () => heard.length > 0)
      assert.isTrue(existsSync(metrics))
    }))

  it.effect("hands its API and its metrics to each who gets hold of it", () =>
    Effect.gen(function*() {
      const given: Array<Parameters<FirecrackerProvider.OnMachine>[0]> = []
      const onMachine: FirecrackerProvider.OnMachine = (one) =>
        Effect.acquireRelease(Effect.sync(() => given.push(one)), () => Effect.sync(() => given.pop()))
      const devices = { memoryHotplug: { total_size_mib: 1024 } }
      const at = yield* place("devices", {}, { metrics: true, devices, onMachine })
      yield* Effect.scoped(Effect.gen(function*() {
        yield* (yield* launch(at)).start
        const { api, spec } = given[0] ?? assert.fail("nothing is handed out")
        assert.strictEqual(spec.id, "devices")
        yield* api.patchMemoryHotplug({ requested_size_mib: 256 })
      }))
      assert.lengthOf(given, 0)
      const machine = yield* attach(at)
      const { api, metrics } = given[0] ?? assert.fail("nothing is handed out")
      assert.deepInclude(yield* api.getMemoryHotplug(), { requested_size_mib: 256, plugged_size_mib: 256 })
      yield* api.putAction({ action_type: "FlushMetrics" })
      const totals = yield* metrics?.refresh ?? assert.fail("no metrics are handed out")
      assert.isAbove(totals.values.size, 0)
      yield* machine.pause
    }))

  const isRoot = process.geteuid?.() === 0
  if (!isRoot) console.warn("SKIPPED network namespaces and control groups: it takes root to make them")
  it.effect.skipIf(!isRoot)("runs in the network namespace that it is given", () =>
    Effect.gen(function*() {
      const name = `keep-${process.pid}`
      yield* Effect.acquireRelease(
        Effect.sync(() => execFileSync("ip", ["netns", "add", name])),
        () => Effect.sync(() => execFileSync("ip", ["netns", "delete", name]))
      )
      const at = yield* place("netns")
      const netns = `/run/netns/${name}`
      const machine = yield* launch(at, { netns })
      const pid = Option.getOrThrow(machine.pid)
      assert.strictEqual(readlinkSync(`/proc/${pid}/ns/net`), `net:[${statSync(netns).ino}]`)
      yield* machine.start
      yield* remember(machine, "word")
    }))

  const [, cgroups] = /^\S+ (\S+) cgroup2 /m.exec(readFileSync("/proc/mounts", "utf8")) ?? []
  if (cgroups === undefined) console.warn("SKIPPED control groups: there are none of version 2")
  it.effect.skipIf(!isRoot || cgroups === undefined)(
    "starts in the control group that it is given, kept or not",
    () =>
      Effect.gen(function*() {
        const cgroup = `${cgroups}/firecracker-keep-${process.pid}`
        yield* Effect.acquireRelease(
          Effect.sync(() => mkdirSync(cgroup)),
          () => Effect.sync(() => rmdirSync(cgroup))
        )
        const members = () => readFileSync(`${cgroup}/cgroup.procs`, "utf8").split("\n").filter((line) => line !== "")
        const at = yield* place("cgroup")
        const spec = yield* MachineSpec.decode(optionsOf(at.id))
        for (const keep of [undefined, { directory: at.directory }]) {
          yield* Effect.scoped(Effect.gen(function*() {
            const machine = yield* on(at, Machine.launch(spec, { cgroup: { path: cgroup }, keep }))
            assert.deepStrictEqual(members(), [String(Option.getOrThrow(machine.pid))])
            yield* machine.shutdown({ request: { atLeast: "SIGKILL" } })
            assert.deepStrictEqual(members(), [])
          }))
        }
        const missing = yield* Effect.flip(
          Effect.scoped(on(at, Machine.launch(spec, { cgroup: { path: `${cgroup}/none` } })))
        )
        assert.strictEqual(missing.reason._tag, "LaunchFailed")
        assert.include(missing.message, `${cgroup}/none`)
      })
  )
})
