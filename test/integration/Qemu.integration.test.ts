import * as NodeServices from "@effect/platform-node/NodeServices"
import { afterAll, assert, layer, vi } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { spawnSync } from "node:child_process"
import { createHash } from "node:crypto"
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import * as GuestCommand from "../../src/guest/GuestCommand.ts"
import * as GuestSlots from "../../src/guest/GuestSlots.ts"
import { ImageStore } from "../../src/image/ImageStore.ts"
import * as NodeImageStore from "../../src/image/NodeImageStore.ts"
import * as ShutdownPolicy from "../../src/lifecycle/ShutdownPolicy.ts"
import * as Machine from "../../src/microvm/Machine.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import type { MachineRequest } from "../../src/microvm/MicroVmProvider.ts"
import * as Snapshot from "../../src/microvm/Snapshot.ts"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import * as NodeQemuHost from "../../src/qemu/NodeQemuHost.ts"
import * as QemuHost from "../../src/qemu/QemuHost.ts"
import * as QemuProvider from "../../src/qemu/QemuProvider.ts"
import * as MicroVmConformance from "../../src/testing/MicroVmConformance.ts"
import * as NodeDiskSnapshotStore from "../../src/warm/NodeDiskSnapshotStore.ts"

const echo = "test.echo"

const host = NodeQemuHost.layer.pipe(
  Layer.provideMerge(NodeProcessSpawner.layer),
  Layer.provideMerge(NodeServices.layer)
)
const qemu = QemuProvider.layerConfig.pipe(Layer.provideMerge(host))

/** A place of our own for what is temporary, so that what is left of it can be seen. QEMU's user has to get through. */
const temporary = mkdtempSync(join(tmpdir(), "qemu-integration-"))
chmodSync(temporary, 0o711)
vi.stubEnv("TMPDIR", temporary)
afterAll(() => rmSync(temporary, { recursive: true }))

const stores = NodeDiskSnapshotStore.layerAt({ directory: join(temporary, "store") }).pipe(
  Layer.provide(NodeServices.layer)
)

const image = await Effect.runPromise(
  ImageStore.use((images) => images.ensure()).pipe(
    Effect.provide(NodeImageStore.layer.pipe(Layer.provide(NodeServices.layer)))
  )
)

const specOf = (id: string): MachineSpec.MachineSpecOptions => ({
  id,
  kernel: image.kernel,
  initramfs: image.initramfs,
  channels: [GuestAgent.channelName, echo]
})

const launch = (
  id: string,
  options: Partial<MachineSpec.MachineSpecOptions> = {},
  how?: Machine.LaunchOptions
) => Effect.flatMap(MachineSpec.decode({ ...specOf(id), ...options }), (spec) => Machine.launch(spec, how))

const connect = Effect.fnUntraced(function*(machine: Machine.Machine) {
  return yield* GuestAgent.make(yield* machine.channel(GuestAgent.channelName), { within: "2 minutes" })
})

const boot = Effect.fnUntraced(function*(
  id: string,
  options?: Partial<MachineSpec.MachineSpecOptions>,
  how?: Machine.LaunchOptions
) {
  const machine = yield* launch(id, options, how)
  yield* machine.start
  return { machine, agent: yield* connect(machine) }
})

const sh = Effect.fnUntraced(function*(agent: GuestAgent.GuestAgent, script: string) {
  const { stdout } = yield* agent.exec({ path: "sh", args: ["-c", script] })
  return new TextDecoder().decode(stdout).trim()
})

/** Our own QEMU processes; other tests may have theirs. */
const monitors = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const children = yield* fs.readFileString(`/proc/self/task/${process.pid}/children`)
  const names = yield* Effect.forEach(
    children.split(" ").filter((pid) => pid !== ""),
    (pid) => Effect.orElseSucceed(fs.readFileString(`/proc/${pid}/comm`), () => "")
  )
  return names.filter((name) => name.startsWith("qemu"))
})

const killMonitor = (signal: "SIGTERM" | "SIGKILL") => (machine: Machine.Machine) =>
  Effect.sync(() => process.kill(pidOf(machine), signal))

const pidOf = (machine: Machine.Machine): number => Option.getOrThrow(machine.pid)

const field = (text: string, name: string) => new RegExp(`^${name}:\\s*(.*)$`, "m").exec(text)?.[1]?.trim()

layer(qemu, { excludeTestServices: true, timeout: "1 minute" })("a guest on QEMU", (it) => {
  it.effect("boots, answers, and powers off when its button is pressed", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const itsOwn = yield* Effect.scoped(Effect.gen(function*() {
        const { agent, machine } = yield* boot("boots", { hostname: "web-1" })
        const { stdout } = yield* agent.exec({ path: "hostname" })
        assert.strictEqual(new TextDecoder().decode(stdout), "web-1\n")
        const cgroups = yield* fs.readFileString(`/proc/${pidOf(machine)}/cgroup`)
        const outcome = yield* machine.shutdown()
        assert.strictEqual(outcome._tag === "Graceful" ? outcome.stage : outcome._tag, "power button")
        assert.strictEqual(outcome.acknowledged, "yes")
        assert.strictEqual((yield* machine.ended)._tag, "PoweredOff")
        return cgroups
      }))
      assert.deepStrictEqual(yield* monitors, [])
      const own = yield* fs.readFileString("/proc/self/cgroup")
      const path = /^0::(.*)$/m.exec(itsOwn)?.[1]
      if (path !== undefined && !own.includes(`0::${path}\n`)) {
        const mounts = yield* fs.readFileString("/proc/mounts")
        const mount = /^\S+ (\S+) cgroup2 /m.exec(mounts)?.[1] ?? "/sys/fs/cgroup"
        assert.isFalse(yield* fs.exists(`${mount}${path}`))
      }
    }))

  it.effect("runs without rights: no capabilities, no new ones, system calls filtered, not as root", () =>
    Effect.gen(function*() {
      const machine = yield* launch("rights")
      const status = yield* FileSystem.FileSystem.use((fs) => fs.readFileString(`/proc/${pidOf(machine)}/status`))
      assert.strictEqual(field(status, "CapEff"), "0000000000000000")
      assert.strictEqual(field(status, "NoNewPrivs"), "1")
      assert.strictEqual(field(status, "Seccomp"), "2")
      assert.notMatch(field(status, "Uid") ?? "0", /\b0\b/)
      assert.notMatch(field(status, "Gid") ?? "0", /\b0\b/)
    }))

  it.effect("stands still when paused, and goes on", () =>
    Effect.gen(function*() {
      const { agent, machine } = yield* boot("pauses")
      yield* machine.pause
      const waiting = yield* Effect.forkChild(agent.ping)
      yield* Effect.sleep("200 millis")
      assert.isUndefined(waiting.pollUnsafe())
      yield* machine.resume
      yield* Fiber.join(waiting)
    }))

  it.effect("runs a command in each of as many slots as it has channels for, at the same time", () =>
    Effect.gen(function*() {
      const { agent, machine } = yield* boot("slots", {
        channels: [GuestAgent.channelName, ...GuestSlots.channelNames(9), "one", "more"]
      })
      const slots = yield* GuestSlots.fromChannels(9, machine.channel)
      const told = yield* Effect.forEach(
        Array.from({ length: 9 }, (_, nth) => `${nth}`),
        (nth) =>
          Effect.scoped(Effect.gen(function*() {
            const cat = yield* GuestCommand.run(agent, slots, { command: "sh", args: ["-c", "cat; cat /none"] })
            yield* Stream.run(Stream.encodeText(Stream.make(nth)), cat.stdin)
            const [stdout, stderr] = yield* Effect.all(
              [cat.stdout, cat.stderr].map((output) => Stream.mkString(Stream.decodeText(output))),
              { concurrency: 2 }
            )
            return `${stdout} ${stderr}`
          })),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(
        told,
        told.map((_, nth) => `${nth} cat: can't open '/none': No such file or directory\n`)
      )
      assert.deepStrictEqual(yield* slots.usage, { free: 9, inUse: 0, retired: 0 })
    }))

  it.effect("that panics is told from one that reboots, with the kernel's words", () =>
    Effect.gen(function*() {
      const { agent, machine } = yield* boot("panics")
      yield* Effect.forkChild(agent.exec({ path: "sh", args: ["-c", "echo c >/proc/sysrq-trigger"] }))
      const end = yield* machine.ended
      assert.strictEqual(end._tag, "Panicked")
      assert.include(end.consoleTail, "Kernel panic - not syncing: sysrq triggered crash")
      assert.strictEqual(yield* machine.state, "crashed")
    }))

  it.effect("that panics before any driver is loaded, too", () =>
    Effect.gen(function*() {
      const machine = yield* launch("no-init", { kernelArgs: ["rdinit=/nonexistent"] })
      yield* machine.start
      const end = yield* machine.ended
      assert.strictEqual(end._tag, "Panicked")
      assert.include(end.consoleTail, "Kernel panic - not syncing")
    }))

  it.effect("that halts is ended by the ladder", () =>
    Effect.gen(function*() {
      const { agent, machine } = yield* boot("halts")
      yield* agent.halt
      const outcome = yield* machine.shutdown({
        policy: ShutdownPolicy.makeUnsafe<MachineRequest>([
          { name: "power button", request: "PowerButton", grace: "300 millis" },
          { name: "SIGTERM", request: "Terminate", grace: "5 seconds", force: true }
        ])
      })
      assert.strictEqual(outcome._tag, "Forced")
      assert.deepStrictEqual(outcome.stages.map(({ end }) => end), ["deadline", "ended"])
      assert.strictEqual((yield* machine.ended)._tag, "Stopped")
    }))

  it.effect("shows its console, which is kept", () =>
    Effect.gen(function*() {
      const machine = yield* launch("console", { kernelArgs: ["loglevel=7", "rdinit=/nonexistent"] })
      const watching = yield* machine.console.pipe(
        Stream.decodeText,
        Stream.mkString,
        Effect.forkChild({ startImmediately: true })
      )
      yield* machine.start
      yield* machine.ended
      const seen = yield* Fiber.join(watching)
      assert.include(seen, "Linux version")
      assert.isTrue(seen.endsWith(yield* machine.consoleTail))
    }))

  it.effect("whose monitor somebody stops is crashed, though the monitor ended in order", () =>
    Effect.gen(function*() {
      const machine = yield* launch("stopped")
      yield* machine.start
      yield* killMonitor("SIGTERM")(machine)
      assert.strictEqual((yield* machine.ended)._tag, "Stopped")
      assert.strictEqual(yield* machine.state, "crashed")
    }))
})

layer(qemu, { excludeTestServices: true, timeout: "1 minute" })("a launch on QEMU", (it) => {
  it.effect("of a kernel that is none fails with QEMU's words, and leaves nothing", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const kernel = yield* fs.makeTempFileScoped()
      yield* fs.writeFileString(kernel, "no kernel\n")
      yield* fs.chmod(kernel, 0o644)
      const error = yield* Effect.flip(launch("no-kernel", { kernel }))
      assert.strictEqual(error._tag === "MicroVmError" ? error.reason._tag : error._tag, "LaunchFailed")
      assert.match(error.message, /exited with code 1\nstderr: .*kernel/)
      assert.deepStrictEqual(yield* monitors, [])
    }))

  it.effect("of files that cannot be read names them, and what to do", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const secret = yield* fs.makeTempFileScoped()
      yield* fs.chmod(secret, 0o600)
      const error = yield* Effect.flip(launch("no-file", { kernel: `${secret}-absent`, initramfs: secret }))
      assert.include(error.message, "ENOENT")
      // Ours alone is not readable to the user that QEMU gets.
      if (process.geteuid?.() === 0) assert.include(error.message, "chmod a+r")
    }))

  it.effect("that is interrupted anywhere leaves nothing", () =>
    Effect.gen(function*() {
      for (const millis of [0, 2, 4, 8, 16, 32, 64, 128]) {
        const launching = yield* Effect.forkChild(Effect.scoped(Effect.andThen(launch("hasty"), Effect.never)), {
          startImmediately: true
        })
        yield* Effect.sleep(millis)
        yield* Fiber.interrupt(launching)
        assert.deepStrictEqual(yield* monitors, [], `after ${millis} ms`)
      }
    }))

  it.effect("keeps no descriptor of ours open", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const count = Effect.map(fs.readDirectory("/proc/self/fd"), ({ length }) => length)
      const once = Effect.scoped(launch("once"))
      yield* once
      const before = yield* count
      for (let i = 0; i < 4; i++) yield* once
      // Node closes some a little later.
      yield* Effect.retry(
        Effect.flatMap(count, (after) => after <= before ? Effect.void : Effect.fail(`${after} > ${before}`)),
        Schedule.spaced("50 millis").pipe(Schedule.upTo({ duration: "5 seconds" }))
      )
    }))
})

layer(qemu, { excludeTestServices: true, timeout: "1 minute" })("a snapshot on QEMU", (it) => {
  let made = 0
  /** Saves a machine as a store would, but lets its files be tampered with. */
  const save = Effect.fnUntraced(function*(machine: Machine.Machine) {
    const directory = join(temporary, `snapshot-${++made}`)
    mkdirSync(directory, { mode: 0o700 })
    const saved = yield* machine.save(directory)
    const files = readdirSync(directory).toSorted()
    const snapshot: Snapshot.Snapshot = {
      id: createHash("sha256").update(directory).digest("hex"),
      directory,
      manifest: {
        ...saved,
        format: 1,
        kind: "saved",
        spec: Snapshot.specOf(machine.spec),
        labels: {},
        createdAt: "",
        files: []
      }
    }
    return { snapshot, files }
  })
  const restore = Effect.fnUntraced(function*(id: string, snapshot: Snapshot.Snapshot) {
    const machine = yield* Machine.restore(id, snapshot)
    assert.strictEqual(yield* machine.state, "paused")
    yield* machine.resume
    return { machine, agent: yield* connect(machine) }
  })
  const digest = ({ directory }: Snapshot.Snapshot, file: string) =>
    createHash("sha256").update(readFileSync(join(directory, file))).digest("hex")
  /** What a save or a launch could leave: sockets, and memory that is still open. */
  const leftovers = () => [
    ...readdirSync(temporary).filter((name) => name.startsWith("microvm-")),
    ...readdirSync("/proc/self/fd").flatMap((fd) => {
      try {
        const target = readlinkSync(`/proc/self/fd/${fd}`)
        return /^\/dev\/shm\/.*\(deleted\)$/.test(target) ? [target] : []
      } catch {
        return []
      }
    })
  ]

  it.effect("of a template is shared by its clones, which cannot change it", () =>
    Effect.gen(function*() {
      const snapshot = yield* Effect.scoped(Effect.gen(function*() {
        const { agent, machine } = yield* boot("golden", {}, { template: true })
        yield* sh(agent, "echo golden >/tmp/word")
        const saved = yield* save(machine)
        assert.deepStrictEqual(saved.files, ["memory", "state"])
        assert.strictEqual(statSync(join(saved.snapshot.directory, "memory")).size, 256 * 2 ** 20)
        // It goes on, and the snapshot does not.
        yield* sh(agent, "echo later >/tmp/word")
        yield* machine.shutdown({ request: { atLeast: "SIGTERM" } })
        return saved.snapshot
      }))
      assert.deepStrictEqual(leftovers(), [])
      assert.deepStrictEqual(yield* monitors, [])
      const before = digest(snapshot, "memory")
      const { directory, manifest: { madeBy, platform } } = snapshot
      assert.match(madeBy, /^QEMU \d+\.\d+\.\d+$/)
      assert.include(platform["machine"], "-")
      yield* Effect.scoped(Effect.gen(function*() {
        const clones = yield* Effect.forEach(["one", "two", "three"], (id) => restore(id, snapshot), {
          concurrency: "unbounded"
        })
        yield* Effect.forEach(clones, ({ agent, machine }) => sh(agent, `echo ${machine.id} >>/tmp/word; sync`))
        assert.deepStrictEqual(
          yield* Effect.forEach(clones, ({ agent }) => sh(agent, "tr '\\n' ' ' </tmp/word")),
          ["golden one", "golden two", "golden three"]
        )
        yield* Effect.forEach(clones, ({ machine }) => machine.shutdown({ request: { atLeast: "SIGTERM" } }))
      }))
      assert.strictEqual(digest(snapshot, "memory"), before)
      assert.deepStrictEqual(readdirSync(directory).toSorted(), ["memory", "state"])
      assert.deepStrictEqual(yield* monitors, [])
    }))

  it.effect("of a machine that runs is one stream; the machine goes on, and so do clones of clones", () =>
    Effect.gen(function*() {
      const { agent, machine } = yield* boot("runs")
      yield* sh(agent, "echo first >/tmp/word")
      const first = yield* save(machine)
      assert.deepStrictEqual(first.files, ["state"])
      assert.strictEqual(yield* sh(agent, "cat /tmp/word"), "first")
      const clone = yield* restore("runs-1", first.snapshot)
      assert.strictEqual(yield* sh(clone.agent, "cat /tmp/word; echo second >/tmp/word"), "first")
      yield* clone.machine.pause
      // Twice: the second does not find the machine as the first did.
      yield* save(clone.machine)
      const second = yield* save(clone.machine)
      yield* clone.machine.resume
      assert.strictEqual(yield* sh(clone.agent, "cat /tmp/word"), "second")
      const paused = yield* Machine.restore("runs-2", second.snapshot)
      // One that has not run since it was restored.
      const third = yield* save(paused)
      const last = yield* restore("runs-3", third.snapshot)
      assert.strictEqual(yield* sh(last.agent, "cat /tmp/word"), "second")
      assert.strictEqual(yield* sh(agent, "cat /tmp/word"), "first")
    }))

  it.effect("that cannot be written says where, and the machine goes on", () =>
    Effect.gen(function*() {
      const { agent, machine } = yield* boot("no-room")
      const nowhere = yield* Effect.flip(machine.save(join(temporary, "no-such-directory")))
      assert.match(nowhere.message, /snapshot failed: .*no-such-directory.*ENOENT/)
      yield* agent.ping
      assert.deepStrictEqual(leftovers(), [])
    }))

  it.effect("that the disk has no room for says so, and the machine goes on", (test) =>
    Effect.gen(function*() {
      const disk = join(temporary, "disk")
      mkdirSync(disk)
      const mounted = spawnSync("mount", ["-t", "tmpfs", "-o", "size=4m", "tmpfs", disk])
      if (mounted.status !== 0) {
        const why = `no disk can be made small here: ${mounted.error?.message ?? mounted.stderr.toString().trim()}`
        console.warn(`skipped: ${why}`)
        return test.skip(why)
      }
      yield* Effect.addFinalizer(() => Effect.sync(() => spawnSync("umount", ["-l", disk])))
      const { agent, machine } = yield* boot("disk-full")
      const golden = yield* boot("disk-full-template", {}, { template: true })
      for (const [name, one] of [["stream", machine], ["memory", golden.machine]] as const) {
        const directory = join(disk, name)
        mkdirSync(directory)
        const full = yield* Effect.flip(one.save(directory))
        assert.match(full.message, /snapshot failed: .*ENOSPC/)
        rmSync(directory, { recursive: true })
      }
      yield* agent.ping
      yield* golden.agent.ping
      // And it can still be saved elsewhere.
      yield* save(machine)
      yield* agent.ping
      assert.deepStrictEqual(readdirSync(temporary).filter((name) => name.startsWith("microvm-")), [])
    }))

  it.effect("that is interrupted anywhere leaves the machine as it was", () =>
    Effect.gen(function*() {
      const { agent, machine } = yield* boot("hasty-save")
      for (const millis of [0, 2, 4, 8, 16, 32, 64, 128]) {
        const saving = yield* Effect.forkChild(save(machine), { startImmediately: true })
        yield* Effect.sleep(millis)
        yield* Fiber.interrupt(saving)
        assert.strictEqual(yield* machine.state, "running", `after ${millis} ms`)
        yield* agent.ping
        assert.deepStrictEqual(leftovers(), [], `after ${millis} ms`)
      }
      const { snapshot } = yield* save(machine)
      yield* restore("hasty-clone", snapshot)
    }))

  it.effect("that is damaged is refused in QEMU's words, or in ours, and leaves nothing", () =>
    Effect.gen(function*() {
      const snapshot = yield* Effect.scoped(Effect.gen(function*() {
        const { machine } = yield* boot("damaged", {}, { template: true })
        return (yield* save(machine)).snapshot
      }))
      const [state, memory] = [join(snapshot.directory, "state"), join(snapshot.directory, "memory")]
      const refusal = Effect.map(
        Effect.flip(Effect.scoped(Machine.restore("refused", snapshot))),
        ({ message, reason }) => `${reason._tag}: ${message}`
      )
      truncateSync(memory, 2 ** 20)
      assert.match(yield* refusal, /^LaunchFailed: .*exited with code 1\nstderr: .*(ram0|size)/s)
      truncateSync(memory, 256 * 2 ** 20)
      for (const size of [150_000, 100, 0]) {
        truncateSync(state, size)
        assert.match(yield* refusal, /^LaunchFailed: .*restoring failed.*exited with code 1\nstderr: /s, `${size}`)
      }
      rmSync(state)
      assert.match(yield* refusal, /^SnapshotUnusable: .*its state: it cannot be opened: ENOENT/)
      assert.deepStrictEqual(yield* monitors, [])
    }))

  it.effect("of a machine that never ran is what it boots, whatever becomes of its kernel", () =>
    Effect.gen(function*() {
      const own = { kernel: join(temporary, "vmlinuz"), initramfs: join(temporary, "initrd") }
      copyFileSync(image.kernel, own.kernel)
      copyFileSync(image.initramfs, own.initramfs)
      const { files, snapshot } = yield* Effect.flatMap(launch("unstarted", own), save)
      assert.deepStrictEqual(files, ["initramfs", "kernel"])
      assert.strictEqual(
        digest(snapshot, "kernel"),
        createHash("sha256").update(readFileSync(image.kernel)).digest("hex")
      )
      rmSync(own.kernel)
      writeFileSync(own.initramfs, "another one")
      const paused = yield* Machine.restore("unstarted-1", snapshot)
      const again = yield* save(paused)
      assert.deepStrictEqual(again.files, ["initramfs", "kernel"])
      rmSync(snapshot.directory, { recursive: true })
      const { agent } = yield* restore("unstarted-2", again.snapshot)
      yield* agent.ping
    }))

  it.effect("does not depend on the user that made it, and says what is not open to QEMU's", () =>
    Effect.gen(function*() {
      const { snapshot } = yield* Effect.scoped(Effect.gen(function*() {
        const { agent, machine } = yield* boot("kept", {}, { template: true })
        yield* sh(agent, "echo kept >/tmp/word")
        return yield* save(machine)
      })).pipe(Effect.provide(QemuProvider.layerWith({ user: "keep" })))
      const memory = join(snapshot.directory, "memory")
      const { version } = yield* QemuHost.QemuHost.use(({ observe }) => observe({}))
      const mode = () => statSync(memory).mode & 0o777
      assert.strictEqual(mode(), QemuHost.isAtLeast(version, 8, 2) ? 0o644 : 0o666)
      assert.strictEqual(statSync(join(snapshot.directory, "state")).mode & 0o777, 0o600)
      const changed = statSync(memory, { bigint: true }).ctimeNs
      const { agent } = yield* restore("others", snapshot)
      assert.strictEqual(yield* sh(agent, "cat /tmp/word"), "kept")
      // A store takes a file whose time of change is another for one that has to be read again.
      assert.strictEqual(statSync(memory, { bigint: true }).ctimeNs, changed)
      if (process.geteuid?.() !== 0) return
      chmodSync(memory, 0o600)
      const refused = yield* Effect.flip(Effect.scoped(Machine.restore("refused", snapshot)))
      assert.match(refused.message, /its memory: QEMU runs as a user without rights: make it readable/)
      assert.strictEqual(mode(), 0o600)
    }))

  it.effect("is restored or not: an interruption leaves nothing", () =>
    Effect.gen(function*() {
      const { machine } = yield* boot("hasty-restore", {}, { template: true })
      const { snapshot } = yield* save(machine)
      for (const millis of [0, 4, 8, 16, 32, 64]) {
        const restoring = yield* Effect.forkChild(
          Effect.scoped(Effect.andThen(Machine.restore("hasty", snapshot), Effect.never)),
          { startImmediately: true }
        )
        yield* Effect.sleep(millis)
        yield* Fiber.interrupt(restoring)
        assert.deepStrictEqual((yield* monitors).length, 1, `after ${millis} ms`)
      }
    }))
})

layer(host, { excludeTestServices: true })("a host", (it) => {
  const refusal = (options: QemuHost.Options) =>
    QemuHost.QemuHost.use(({ observe }) => observe(options)).pipe(
      Effect.flip,
      Effect.map(({ reason }) => reason._tag === "BackendUnavailable" ? `${reason.why}: ${reason.remedy}` : reason._tag)
    )

  it.effect("is seen as it is", () =>
    Effect.gen(function*() {
      const seen = yield* QemuHost.QemuHost.use(({ observe }) => observe({}))
      assert.isTrue(QemuHost.isAtLeast(seen.version, 1, 0))
      assert.strictEqual(seen.uid, process.geteuid?.())
    }))

  it.effect("without QEMU says what to install", () =>
    Effect.gen(function*() {
      assert.match(yield* refusal({ binary: "qemu-system-nonesuch" }), /not found in .*install it .*MICROVM_QEMU_BIN/s)
      assert.match(yield* refusal({ binary: "/etc/passwd" }), /cannot be executed/)
    }))

  it.effect("with something else under that name says what that is", () =>
    Effect.gen(function*() {
      assert.match(yield* refusal({ binary: "env" }), /^env --version says "env /)
      assert.match(yield* refusal({ binary: "false" }), /^false --version says/)
    }))
})

layer(Layer.merge(qemu, stores), { excludeTestServices: true, timeout: "1 minute" })("conformance", (it) => {
  const agents = new Map<number, GuestAgent.GuestAgent>()
  const inGuest = (script: string) => (machine: Machine.Machine) =>
    Effect.suspend(() => {
      const agent = agents.get(pidOf(machine))
      return agent === undefined ? Effect.die("not booted") : agent.spawn({ path: "sh", args: ["-c", script] })
    }).pipe(Effect.ignore)

  const told = (script: string) => (machine: Machine.Machine) =>
    Effect.flatMap(Effect.fromNullishOr(agents.get(pidOf(machine))), (agent) => sh(agent, script))

  const scenarios = MicroVmConformance.scenarios<FileSystem.FileSystem | Scope.Scope>({
    capabilities: QemuProvider.capabilities,
    prefix: "qemu-",
    spec: specOf,
    stop: { request: { atLeast: "SIGTERM" } },
    booted: Effect.fnUntraced(function*(machine) {
      agents.set(pidOf(machine), yield* connect(machine))
      yield* inGuest(`microvm-port ${echo} 10 && exec cat 0<>/dev/virtio-ports/${echo} 1>&0`)(machine)
    }),
    restored: Effect.fnUntraced(function*(machine) {
      agents.set(pidOf(machine), yield* connect(machine))
    }),
    remember: (machine, word) => told(`echo ${word} >/tmp/word`)(machine),
    recall: told("cat /tmp/word"),
    directory: FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped({ directory: temporary })),
    corrupt: ({ directory }) =>
      Effect.sync(() => {
        const state = join(directory, "state")
        const bytes = readFileSync(state)
        bytes[1_000] = (bytes[1_000] ?? 0) ^ 1
        writeFileSync(state, bytes)
      }),
    powerOff: inGuest("poweroff -f"),
    reboot: inGuest("reboot -f"),
    panic: inGuest("echo c >/proc/sysrq-trigger"),
    kill: killMonitor("SIGKILL"),
    echo,
    left: monitors
  })
  for (const { name, run, skip } of scenarios) {
    if (skip !== undefined) console.warn(`skipped: ${name}: ${skip}`)
    if (skip === undefined) it.effect(name, () => run)
    else it.effect.skip(`${name} (${skip})`, () => Effect.void)
  }
})
