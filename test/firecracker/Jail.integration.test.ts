import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Jail, JailPlan, NodeJail } from "effect-microvm-runtime/firecracker"
import { ExitStatus } from "effect-microvm-runtime/lifecycle"
import { AdoptedProcess, NodeProcessHost, NodeProcessSpawner, ProcessSpawner } from "effect-microvm-runtime/process"
import { FakeFirecracker, FakeJailer } from "effect-microvm-runtime/testing"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Fs from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { steps } from "../../src/testing/internal/fakeJailerSettings.ts"

const services = NodeJail.layer.pipe(
  Layer.provideMerge(NodeProcessSpawner.layer),
  Layer.provideMerge(NodeProcessHost.layer),
  Layer.provideMerge(NodeServices.layer)
)

// The jailer gives files away, makes device nodes and cgroups.
const isRoot = process.geteuid?.() === 0
if (!isRoot) console.warn("Jail.integration.test.ts does not run: it needs root")

const directory = Effect.acquireRelease(
  Effect.sync(() => {
    const path = Fs.realpathSync(Fs.mkdtempSync(join(tmpdir(), "jails-")))
    // The fake goes by paths of the host, and as the user of the jail.
    Fs.chmodSync(path, 0o755)
    return path
  }),
  (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true, force: true }))
)

/** Programs of a release take the place of the fakes if these variables name them. */
const install = Effect.gen(function*() {
  const { FIRECRACKER_BIN, JAILER_BIN } = process.env
  if (FIRECRACKER_BIN !== undefined && JAILER_BIN !== undefined) {
    return { firecracker: FIRECRACKER_BIN, jailer: JAILER_BIN }
  }
  return { firecracker: (yield* FakeFirecracker.install()).binary, jailer: (yield* FakeJailer.install()).binary }
})

const parent = `test-jailer-${process.pid}`

/** A plan for fakes that are installed, on the cgroups of this host. */
const planned = (options: Partial<JailPlan.Options>, jailer: string, executable: string) =>
  Effect.gen(function*() {
    const base = yield* directory
    const kernel = join(yield* directory, "vmlinux")
    Fs.writeFileSync(kernel, "kernel")
    const host = yield* Jail.Jail.use((jail) => jail.observe({ executable, base }))
    return Result.getOrThrow(JailPlan.make(host, {
      id: "web-1",
      jailer,
      uid: 54_321,
      gid: 54_321,
      machine: { vcpus: 1, memoryMib: 128 },
      parentCgroup: parent,
      files: [{ how: "bind", name: "vmlinux", from: kernel }, { how: "empty", name: "log" }],
      args: ["--log-path", "/log"],
      ...options
    }))
  })

const run = (plan: JailPlan.JailPlan) =>
  ProcessSpawner.ProcessSpawner.use((spawner) =>
    spawner.spawn(ChildProcess.make(plan.argv[0], plan.argv.slice(1), { stdin: "ignore" }), { killScope: "process" })
  )

const processesIn = (base: string): ReadonlyArray<string> =>
  Fs.readdirSync("/proc").filter((name) => {
    try {
      return /^\d+$/.test(name) && Fs.readlinkSync(`/proc/${name}/cwd`).startsWith(base)
    } catch {
      return false
    }
  })

const expectNothing = (plan: JailPlan.JailPlan): void => {
  assert.deepStrictEqual(Fs.readdirSync(plan.host.base), [])
  assert.notInclude(Fs.readFileSync("/proc/self/mountinfo", "utf8"), plan.host.base)
  for (const { mount } of plan.cgroup.directories) assert.isFalse(Fs.existsSync(join(mount, parent)), mount)
  assert.deepStrictEqual(processesIn(plan.host.base), [])
}

const modes: ReadonlyArray<readonly [name: string, options: Partial<JailPlan.Options>]> = [
  ["in place of the jailer", {}],
  ["in a process table of its own", { newPidNamespace: true }],
  ["as a daemon", { daemonize: true }],
  ["as a daemon in a process table of its own", { newPidNamespace: true, daemonize: true }]
]

describe.runIf(isRoot)("with a jailer", () => {
  it.live.each(modes)("Firecracker %s is found, and is gone with its jail", ([, options]) =>
    Effect.gen(function*() {
      const { firecracker, jailer } = yield* install
      const plan = yield* planned(options, jailer, firecracker)
      const { exit } = yield* Effect.scoped(Effect.gen(function*() {
        const { find } = yield* Jail.Jail.use((jail) => jail.prepare(plan))
        const child = yield* run(plan)
        if (plan.leavesJailer) assert.isTrue(ExitStatus.isSuccess(yield* child.exit))
        const identity = yield* find()
        if (!plan.leavesJailer) assert.strictEqual(identity.pid, child.pid)
        const adopted = yield* AdoptedProcess.adopt(identity)
        assert.strictEqual((yield* adopted.poll)._tag, "None")
        for (const { path } of plan.cgroup.directories) {
          assert.include(Fs.readFileSync(join(path, "cgroup.procs"), "utf8").split("\n"), String(identity.pid))
        }
        assert.strictEqual(Fs.readFileSync(join(plan.root, "vmlinux"), "utf8"), "kernel")
        yield* Effect.sync(() => Fs.existsSync(plan.api.outside)).pipe(
          Effect.repeat({ until: (isThere) => isThere, schedule: Schedule.spaced("5 millis") }),
          Effect.timeout("10 seconds")
        )
        return adopted
      }))
      expectNothing(plan)
      yield* Effect.timeout(exit, "5 seconds")
    }).pipe(Effect.scoped, Effect.provide(services)))

  const faults = steps.filter((step) => step !== "daemonize").flatMap((step): ReadonlyArray<FakeJailer.Fault> => [
    { step },
    { step, signal: "SIGKILL" }
  ])

  it.live("that fails at any step, nothing is left", () =>
    Effect.gen(function*() {
      const firecracker = yield* FakeFirecracker.install()
      const jailer = yield* FakeJailer.install()
      const plan = yield* planned({}, jailer.binary, firecracker.binary)
      for (const fault of faults) {
        yield* jailer.update({ faults: [fault] })
        const status = yield* Effect.scoped(Effect.gen(function*() {
          yield* Jail.Jail.use((jail) => jail.prepare(plan))
          return yield* (yield* run(plan)).exit
        }))
        assert.strictEqual(
          ExitStatus.format(status),
          fault.signal === undefined ? "exited with code 1" : "killed by SIGKILL",
          fault.step
        )
        expectNothing(plan)
      }
    }).pipe(Effect.scoped, Effect.provide(services)))

  it.live("that is left before it is through, as by an interruption, nothing is left", () =>
    Effect.gen(function*() {
      const firecracker = yield* FakeFirecracker.install()
      const jailer = yield* FakeJailer.install()
      const plan = yield* planned({ daemonize: true }, jailer.binary, firecracker.binary)
      yield* Effect.scoped(Effect.gen(function*() {
        yield* Jail.Jail.use((jail) => jail.prepare(plan))
        // What it leaves behind writes its pid file in a moment.
        yield* (yield* run(plan)).exit
        assert.isFalse(Fs.existsSync(plan.pidFile))
      }))
      expectNothing(plan)
    }).pipe(Effect.scoped, Effect.provide(services)))
})
