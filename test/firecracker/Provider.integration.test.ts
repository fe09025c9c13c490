import * as NodeServices from "@effect/platform-node/NodeServices"
import { afterAll, assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { spawnSync } from "node:child_process"
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { FirecrackerHost } from "../../src/firecracker/FirecrackerHost.ts"
import * as FirecrackerProvider from "../../src/firecracker/FirecrackerProvider.ts"
import * as NodeFirecracker from "../../src/firecracker/NodeFirecracker.ts"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import * as ShutdownPolicy from "../../src/lifecycle/ShutdownPolicy.ts"
import * as Machine from "../../src/microvm/Machine.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import type { MachineRequest } from "../../src/microvm/MicroVmProvider.ts"
import * as Snapshot from "../../src/microvm/Snapshot.ts"
import { SnapshotStore } from "../../src/microvm/SnapshotStore.ts"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import * as FakeFirecracker from "../../src/testing/FakeFirecracker.ts"
import * as FakeJailer from "../../src/testing/FakeJailer.ts"
import * as MicroVmConformance from "../../src/testing/MicroVmConformance.ts"
import * as NodeDiskSnapshotStore from "../../src/warm/NodeDiskSnapshotStore.ts"
import { crashingKernel, haltingKernel, writingKernel } from "../testing/haltingKernel.ts"

/** A place of our own, so that what is left can be seen. The user of a jail has to get through. */
const work = realpathSync(mkdtempSync(join(tmpdir(), "firecracker-provider-")))
chmodSync(work, 0o711)
afterAll(() => rmSync(work, { recursive: true }))
const stateDirectory = join(work, "state")
const jails = join(work, "jails")
mkdirSync(jails)
const kept = join(work, "kept")
mkdirSync(kept)
const kernel = join(work, "vmlinux")
writeFileSync(kernel, haltingKernel())

const host = NodeFirecracker.layer.pipe(
  Layer.provideMerge(NodeProcessSpawner.layer),
  Layer.provideMerge(NodeServices.layer)
)
const stores = NodeDiskSnapshotStore.layerAt({ directory: join(work, "store") }).pipe(Layer.provide(NodeServices.layer))

const { FIRECRACKER_BIN, JAILER_BIN } = process.env
const isRoot = process.geteuid?.() === 0
const user = { uid: 54_321, gid: 54_321 }

interface How extends Pick<FirecrackerProvider.Options, "diffs" | "jail" | "memoryBackend"> {
  readonly guest: NonNullable<FakeFirecracker.Options["guest"]>
  /** Real programs. */
  readonly real?: { readonly binary: string; readonly jailer: string | undefined }
}

const backend = ({ diffs, guest, jail, memoryBackend, real }: How) =>
  Layer.unwrap(Effect.gen(function*() {
    const binary = real?.binary ?? (yield* FakeFirecracker.install({ guest })).binary
    const jailed = jail && { ...jail, jailer: real?.jailer ?? (yield* FakeJailer.install()).binary }
    return FirecrackerProvider.layerWith({ binary, kvm: "assume", stateDirectory, jail: jailed, memoryBackend, diffs })
  })).pipe(Layer.provideMerge(host))

const pidOf = (machine: Machine.Machine): number => Option.getOrThrow(machine.pid)

const isOurs = (pid: string): boolean => {
  try {
    return readlinkSync(`/proc/${pid}/cwd`).startsWith(work)
  } catch {
    return false
  }
}

/** Directories of machines, jails and their mounts, and Firecrackers that run there. */
const traces = (): ReadonlyArray<string> => [
  ...(existsSync(stateDirectory) ? readdirSync(stateDirectory) : []),
  ...readdirSync(kept),
  ...readdirSync(jails, { encoding: "utf8", recursive: true }).filter((name) => name.includes("/")),
  ...readFileSync("/proc/self/mountinfo", "utf8").split("\n").filter((line) => line.includes(work)),
  ...readdirSync("/proc").filter((name) => /^\d+$/.test(name) && isOurs(name))
]

const connect = (machine: Machine.Machine) =>
  Effect.flatMap(
    machine.channel(GuestAgent.channelName),
    (channel) => GuestAgent.make(channel, { within: "10 seconds" })
  )
const withAgent = <A, E>(use: (agent: GuestAgent.GuestAgent) => Effect.Effect<A, E>) => (machine: Machine.Machine) =>
  Effect.scoped(Effect.flatMap(connect(machine), use))

const word = "/tmp/word"
const agentRig = {
  booted: withAgent(() => Effect.void),
  remember: (machine: Machine.Machine, text: string) =>
    withAgent((agent) => Stream.run(Stream.encodeText(Stream.succeed(text)), agent.writeFile(word)))(machine),
  recall: withAgent((agent) => Stream.mkString(Stream.decodeText(agent.readFile(word)))),
  powerOff: withAgent((agent) => agent.powerOff)
}

const conformance = (title: string, prefix: string, how: How, chosen: RegExp = /./) =>
  layer(Layer.merge(backend(how), stores), { excludeTestServices: true, timeout: "1 minute" })(title, (it) => {
    const capabilities = FirecrackerProvider.capabilities(process.arch === "x64" ? "x86_64" : "aarch64", how)
    const scenarios = MicroVmConformance.scenarios<Scope.Scope>({
      capabilities,
      prefix,
      spec: (id) => ({ id, kernel, memoryMib: 96, channels: [GuestAgent.channelName] }),
      stop: { request: { atLeast: how.jail?.newPidNamespace === true ? "SIGKILL" : "SIGTERM" } },
      corrupt: ({ directory }) =>
        Effect.sync(() => {
          const state = join(directory, "state")
          const bytes = readFileSync(state)
          bytes[10] = (bytes[10] ?? 0) ^ 1
          writeFileSync(state, bytes)
        }),
      // Nobody is told how a process ended that is not our child.
      ...(how.jail?.newPidNamespace !== true && {
        kill: (machine: Machine.Machine) => Effect.sync(() => process.kill(pidOf(machine), "SIGKILL"))
      }),
      left: Effect.sync(traces),
      directory: Effect.acquireRelease(
        Effect.sync(() => mkdtempSync(join(kept, "machine-"))),
        (directory) => Effect.sync(() => rmSync(directory, { recursive: true }))
      ),
      ...(how.real !== undefined ? {} : how.guest === "agent" ? agentRig : { echo: GuestAgent.channelName })
    })
    for (const { name, run, skip } of scenarios.filter((one) => chosen.test(one.name))) {
      if (skip !== undefined) console.warn(`skipped: ${title}: ${name}: ${skip}`)
      if (skip === undefined) it.effect(name, () => run)
      else it.effect.skip(`${name} (${skip})`, () => Effect.void)
    }
  })

conformance("on the fake", "fc-", { guest: "agent", diffs: true })
conformance("on the fake, with a guest that echoes", "fce-", { guest: "echo" }, /carries bytes/)

/** One that can be made to misbehave, in a directory that no socket address has room for. */
const launched = Effect.fnUntraced(function*(
  { faults, ...fake }: FakeFirecracker.Options,
  options: FirecrackerProvider.Options = {}
) {
  const { binary } = yield* FakeFirecracker.install({ guest: "none", ...fake, faults })
  const context = yield* Layer.build(
    FirecrackerProvider.layerWith({ binary, kvm: "assume", stateDirectory: join(work, "s".repeat(100)), ...options })
  )
  const spec = yield* MachineSpec.decode({ id: "a", kernel, channels: ["one"] })
  return yield* Effect.provide(Machine.launch(spec), context)
})

layer(host, { excludeTestServices: true, timeout: "20 seconds" })("a Firecracker", (it) => {
  it.effect("that takes its time is waited for", () =>
    Effect.gen(function*() {
      const machine = yield* launched({
        faults: [{ _tag: "BindLate", millis: 150 }, { _tag: "Split", bytes: 7 }, { _tag: "Slow", millis: 20 }],
        guest: "echo"
      })
      yield* machine.start
      const reader = yield* Effect.flatMap(machine.channel("one"), (socket) =>
        Effect.andThen(
          Effect.flatMap(socket.writer, ({ write }) => Effect.forkScoped(write("hello"))),
          socket.reader
        ))
      assert.strictEqual(
        new TextDecoder().decode(Buffer.concat([...yield* reader.pull].map((chunk) => Buffer.from(chunk)))),
        "hello"
      )
      const outcome = yield* machine.shutdown({ request: { atLeast: "SIGTERM" } })
      assert.strictEqual(outcome._tag, "Forced")
    }))

  it.effect("that never comes up is given up", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(launched({ faults: [{ _tag: "NeverBind" }] }, { readyWithin: "1 second" }))
      assert.match(error.message, /did not answer within 1s.*ENOENT/s)
    }))

  it.effect("that dies under a call is told as what its exit says", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(launched({
        faults: [{ _tag: "Die", path: "/boot-source", moment: "Half", code: 148 }]
      }))
      assert.match(error.message, /seccomp filter refused a system call.*exited with code 148/s)
      const machine = yield* launched({
        faults: [{ _tag: "Die", path: "/actions", moment: "Before", code: 150 }]
      })
      assert.match((yield* Effect.flip(machine.start)).message, /"a": start failed: /)
      const end = yield* machine.ended
      assert.match(end._tag === "Failed" ? end.why : end._tag, /SIGSEGV/)
      assert.strictEqual(yield* machine.state, "crashed")
    }))

  it.effect("that answers nonsense is not believed", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(launched({
        faults: [{ _tag: "Raw", path: "/machine-config", answer: "HTTP/1.1 204 \r\nContent-Length: -1\r\n\r\n" }]
      }))
      assert.match(error.message, /configuring failed: PUT \/machine-config: not an answer of Firecracker's/)
    }))

  it.effect("that hangs holds up its own machine only, and is ended", () =>
    Effect.gen(function*() {
      const machine = yield* launched(
        { faults: [{ _tag: "Hang", path: "/vm" }, { _tag: "IgnoreTerm" }] },
        { deadlines: { change: "300 millis" } }
      )
      yield* machine.start
      assert.match((yield* Effect.flip(machine.pause)).message, /PATCH \/vm: no answer within 300ms/)
      const outcome = yield* machine.shutdown({
        policy: ShutdownPolicy.makeUnsafe<MachineRequest>([
          { name: "power button", request: "PowerButton", grace: "400 millis" },
          { name: "SIGTERM", request: "Terminate", grace: "200 millis", force: true },
          { name: "SIGKILL", request: "Kill", grace: "5 seconds", force: true }
        ])
      })
      assert.deepStrictEqual(outcome.stages.map(({ end }) => end), ["failed", "deadline", "ended"])
      assert.strictEqual((yield* machine.ended)._tag, "Killed")
    }))

  it.effect("whose guest hears Ctrl-Alt-Del ends in order", () =>
    Effect.gen(function*() {
      const machine = yield* launched({ bootMillis: 0, guest: "agent" })
      yield* machine.start
      const outcome = yield* machine.shutdown()
      assert.strictEqual(outcome._tag === "Graceful" ? outcome.stage : outcome._tag, "power button")
      assert.strictEqual(outcome.acknowledged, "yes")
      assert.strictEqual((yield* machine.ended)._tag, "PoweredOff")
    }))

  it.effect("whose guest restarts without a word has not said that all is written", () =>
    Effect.gen(function*() {
      const machine = yield* launched({ bootMillis: 0, guest: "echo" })
      yield* machine.start
      const outcome = yield* machine.shutdown()
      assert.deepInclude(outcome, { _tag: "Graceful", acknowledged: "unknown" })
      assert.strictEqual((yield* machine.ended)._tag, "Reset")
    }))

  it.effect("whose guest's kernel panics says so on its console, which is kept", () =>
    Effect.gen(function*() {
      const machine = yield* launched({ bootMillis: 0, console: ["Kernel panic - not syncing: no init found"] })
      const watching = yield* machine.console.pipe(
        Stream.decodeText,
        Stream.mkString,
        Effect.forkScoped({ startImmediately: true })
      )
      yield* machine.start
      yield* machine.consoleTail.pipe(
        Effect.repeat({ until: (text) => text.includes("panic"), schedule: Schedule.spaced("10 millis") }),
        Effect.timeout("5 seconds")
      )
      yield* machine.shutdown()
      const end = yield* machine.ended
      assert.strictEqual(end._tag, "Panicked")
      assert.include(end.consoleTail, "no init found")
      assert.include(yield* Fiber.join(watching), "no init found")
    }))
})

const jail = { user, base: jails, parentCgroup: `test-provider-${process.pid}` }
const essentials = /row 1:|row 12|row 60|interrupted|by powerOff|go on with its memory|a difference holds/
if (isRoot) {
  conformance("in a jail of the fake jailer", "fcj-", { guest: "agent", jail, diffs: true }, essentials)
} else console.warn("not root: nothing is jailed here")

if (FIRECRACKER_BIN === undefined) {
  console.warn("FIRECRACKER_BIN is not set: no real Firecracker is looked at here")
} else {
  const real = { binary: FIRECRACKER_BIN, jailer: JAILER_BIN }
  conformance("on a real one", "fcr-", { guest: "none", real, diffs: true })
  layer(Layer.merge(backend({ guest: "none", real, diffs: true }), stores), {
    excludeTestServices: true,
    timeout: "2 minutes"
  })(
    "with kernels of our own, a real one",
    (it) => {
      it.effect("writes a difference that makes with its base what all of the memory is", () =>
        Effect.gen(function*() {
          const store = yield* SnapshotStore
          const writing = join(work, "writing")
          writeFileSync(writing, writingKernel())
          const machine = yield* Machine.launch(
            yield* MachineSpec.decode({ id: "writer", kernel: writing, memoryMib: 96 })
          )
          const add = (base?: Snapshot.Snapshot) =>
            store.add(
              { kind: "saved", spec: Snapshot.specOf(machine.spec) },
              (directory) => machine.save(directory, { base })
            )
          const memoryOf = ({ directory }: Snapshot.Snapshot) => readFileSync(join(directory, "memory"))
          yield* machine.start
          yield* Effect.sleep("50 millis")
          let last = yield* add()
          for (let round = 0; round < 2; round++) {
            yield* Effect.sleep("20 millis")
            yield* machine.pause
            const diff = yield* add(last)
            const whole = yield* add()
            yield* machine.resume
            assert.isBelow(statSync(join(diff.directory, "memory")).blocks * 512, 16 * 2 ** 20)
            assert.isFalse(memoryOf(last).equals(memoryOf(whole)))
            const merged = join(work, `merged-${round}`)
            const layers = Snapshot.layers(diff).slice(1).map(({ directory }) => ({
              memory: join(directory, "memory"),
              pages: join(directory, "pages")
            }))
            yield* FirecrackerHost.use((made) =>
              made.mergeMemory(join(Snapshot.layers(diff)[0]?.directory ?? "", "memory"), layers, merged)
            )
            assert.isTrue(readFileSync(merged).equals(memoryOf(whole)))
            // What was written since the whole one is not what was written since the difference.
            assert.strictEqual((yield* Effect.flip(add(diff))).reason._tag, "DifferenceUnknown")
            last = whole
          }
          const diff = yield* add(last)
          const clone = yield* Machine.restore("clone", diff)
          yield* clone.resume
          yield* Effect.sleep("20 millis")
          assert.strictEqual(yield* clone.state, "running")
          yield* clone.pause
          const again = yield* store.add(
            { kind: "saved", spec: Snapshot.specOf(clone.spec) },
            (directory) => clone.save(directory, { base: diff })
          )
          assert.strictEqual(Snapshot.layers(again).length, 3)
          yield* Machine.restore("clone-2", again)
        }))

      it.effect("has a guest that crashes told from one that restarts, whatever the exit code", () =>
        Effect.gen(function*() {
          const crashing = join(work, "crashing")
          writeFileSync(crashing, crashingKernel())
          const codes = yield* Effect.forEach(
            Array.from({ length: 8 }, (_, index) => index),
            (index) =>
              Effect.scoped(Effect.gen(function*() {
                const machine = yield* Machine.launch(
                  yield* MachineSpec.decode({ id: `crash-${index}`, kernel: crashing, memoryMib: 96 })
                )
                yield* Effect.ignore(machine.start)
                const end = yield* machine.ended
                assert.match(end._tag === "Failed" ? end.why : end._tag, /triple fault/)
                return ExitStatus.toCode(end.status)
              }))
          )
          assert.includeMembers([0, 1], codes)
        }))
    }
  )
  // On kernels before 6.6 it could.
  const servesPages = !spawnSync(FIRECRACKER_BIN, ["--version"], { encoding: "utf8" }).stdout.includes(" v1.7.")
  const served = { guest: "none", real, memoryBackend: "uffd" } as const
  if (servesPages) conformance("on a real one whose memory is served", "fcru-", served, /row 60/)
  else console.warn("skipped: memory that is served: Firecracker 1.7 does not know the ioctls of newer kernels")
  if (JAILER_BIN === undefined || !isRoot) console.warn("JAILER_BIN is not set, or we are not root: no real jail here")
  else {
    conformance("in a real jail", "fcrj-", { guest: "none", real, jail, diffs: true })
    conformance("in a real jail with a process table of its own", "fcrn-", {
      guest: "none",
      real,
      jail: { ...jail, newPidNamespace: true },
      ...(servesPages && { memoryBackend: "uffd" })
    }, essentials)
  }
}
