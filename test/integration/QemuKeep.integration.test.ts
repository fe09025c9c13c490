import * as NodeServices from "@effect/platform-node/NodeServices"
import { afterAll, assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmdirSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import { ImageStore } from "../../src/image/ImageStore.ts"
import * as NodeImageStore from "../../src/image/NodeImageStore.ts"
import * as Machine from "../../src/microvm/Machine.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import { ProcessHolder } from "../../src/process/ProcessHolder.ts"
import { ProcessHost } from "../../src/process/ProcessHost.ts"
import * as NodeQemuHost from "../../src/qemu/NodeQemuHost.ts"
import * as QemuProvider from "../../src/qemu/QemuProvider.ts"

const qemu = QemuProvider.layerConfig.pipe(
  Layer.provide(NodeQemuHost.layer),
  Layer.provideMerge(NodeProcessSpawner.layer),
  Layer.provideMerge(NodeServices.layer)
)

const temporary = mkdtempSync(join(tmpdir(), "qemu-keep-"))
afterAll(() => rmSync(temporary, { recursive: true }))

const image = await Effect.runPromise(
  ImageStore.use((images) => images.ensure()).pipe(
    Effect.provide(NodeImageStore.layer.pipe(Layer.provide(NodeServices.layer)))
  )
)

const optionsOf = (id: string): MachineSpec.MachineSpecOptions => ({
  id,
  kernel: image.kernel,
  initramfs: image.initramfs,
  channels: [GuestAgent.channelName]
})

/** A place for a machine, and nothing of that machine left at the end. */
const place = (id: string) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const directory = join(temporary, id)
      mkdirSync(directory, { mode: 0o700 })
      return { id, directory, keep: { directory } }
    }),
    ({ directory }) =>
      Effect.gen(function*() {
        const fate = yield* ProcessHolder.use((holder) => holder.destroy({ directory }))
        assert.include(["Absent", "Destroyed"], fate._tag)
      })
  )

type Place = Effect.Success<ReturnType<typeof place>>

const launch = ({ id, keep }: Place, how: Machine.LaunchOptions = {}) =>
  Effect.flatMap(MachineSpec.decode(optionsOf(id)), (spec) => Machine.launch(spec, { ...how, keep }))

const attach = ({ id, keep }: Place) =>
  Effect.flatMap(MachineSpec.decode(optionsOf(id)), (spec) => Machine.attach(spec, { keep }))

const connect = (machine: Machine.Machine) =>
  Effect.flatMap(machine.channel(GuestAgent.channelName), (socket) => GuestAgent.make(socket, { within: "2 minutes" }))

const run = Effect.fnUntraced(function*(machine: Machine.Machine, script: string) {
  const agent = yield* connect(machine)
  const { stdout } = yield* agent.exec({ path: "sh", args: ["-c", script] })
  return new TextDecoder().decode(stdout).trim()
})

/** One that only waits to be reaped is gone. */
const isThere = (pid: number): boolean => {
  try {
    return !/^\d+ \(.*\) [ZX] /s.test(readFileSync(`/proc/${pid}/stat`, "latin1"))
  } catch {
    return false
  }
}

const until = (what: string, holds: () => boolean): Effect.Effect<void> =>
  Effect.suspend(() => holds() ? Effect.void : Effect.andThen(Effect.sleep("20 millis"), until(what, holds))).pipe(
    Effect.timeoutOrElse({ duration: "1 minute", orElse: () => Effect.die(new Error(`never: ${what}`)) })
  )

/** A supervisor in a process of its own. */
const supervisor = ({ directory, id }: Place) => {
  const fixture = new URL("../qemu/fixtures/keeping.ts", import.meta.url).pathname
  const child = spawn(process.execPath, [fixture, directory, JSON.stringify(optionsOf(id))], {
    stdio: ["ignore", "pipe", "inherit"]
  })
  let said = ""
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    said += text
  })
  return {
    says: (word: string) => until(word, () => said.includes(word)),
    kill: Effect.promise(async () => {
      const gone = once(child, "exit")
      child.kill("SIGKILL")
      await gone
    })
  }
}

const holderOf = ({ directory }: Place): number =>
  Number(/"holder":\{[^}]*"pid":(\d+)/.exec(readFileSync(join(directory, "holder.json"), "utf8"))?.[1])

layer(qemu, { excludeTestServices: true, timeout: "1 minute" })("a machine that is kept", (it) => {
  it.effect("outlives the kill of its supervisor, with its console, its agent and its end", () =>
    Effect.gen(function*() {
      const at = yield* place("outlives")
      const first = supervisor(at)
      yield* first.says("started")
      const taken = yield* Effect.flip(attach(at))
      assert.isTrue(taken.reason._tag === "AttachFailed" && taken.reason.isHeld)
      yield* first.kill

      const pid = yield* Effect.scoped(Effect.gen(function*() {
        const machine = yield* attach(at)
        assert.strictEqual(yield* machine.state, "running")
        assert.strictEqual(
          yield* run(machine, "echo from inside; echo word | tee /tmp/word /dev/console >/dev/null"),
          "from inside"
        )
        assert.include(yield* machine.consoleTail, "word")
        yield* machine.pause
        return Option.getOrThrow(machine.pid)
      }))
      assert.isTrue(isThere(pid))

      // Somebody leaves in the middle of a command.
      yield* Effect.scoped(Effect.gen(function*() {
        const held = yield* ProcessHolder.use((holder) => holder.attach({ directory: at.directory }))
        const socket = yield* held.channel(Number(/"qmp":(\d+)/.exec(held.note)?.[1]))
        yield* socket.reader
        yield* (yield* socket.writer).write(`{"execute": "query-status", "id": "stale"}{"execute": "system_res`)
      }))

      const machine = yield* attach(at)
      assert.strictEqual(yield* machine.state, "paused")
      yield* machine.resume
      assert.strictEqual(yield* run(machine, "cat /tmp/word"), "word")
      const outcome = yield* machine.shutdown()
      assert.strictEqual(outcome._tag === "Graceful" ? outcome.stage : outcome._tag, "power button")
      const end = yield* machine.ended
      assert.strictEqual(end._tag, "PoweredOff")
      assert.deepStrictEqual(end.status, { _tag: "Exited", code: 0, observedBy: "wait" })
      yield* until("the holder ends", () => !isThere(holderOf(at)))

      // And later, by whoever comes.
      const late = yield* attach(at)
      const told = yield* late.ended
      assert.strictEqual(told._tag, "PoweredOff")
      assert.strictEqual(told.consoleTail, end.consoleTail)
      assert.strictEqual((yield* late.shutdown())._tag, "AlreadyExited")
    }))

  it.effect("tells how it ended while nobody was there", () =>
    Effect.gen(function*() {
      const at = yield* place("alone")
      yield* Effect.scoped(Effect.gen(function*() {
        const machine = yield* launch(at)
        yield* machine.start
        const agent = yield* connect(machine)
        yield* agent.exec({ path: "sh", args: ["-c", "(sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &"] })
      }))
      yield* until("it ends", () => existsSync(join(at.directory, "exit.json")))
      const machine = yield* attach(at)
      assert.strictEqual((yield* machine.ended)._tag, "Panicked")
      assert.include(yield* machine.consoleTail, "Kernel panic")
      assert.deepStrictEqual(yield* Stream.runCollect(machine.console), [])
    }))

  it.effect("that has not run yet is attached to as such, and starts", () =>
    Effect.gen(function*() {
      const at = yield* place("unstarted")
      yield* Effect.scoped(launch(at))
      const machine = yield* attach(at)
      assert.strictEqual(yield* machine.state, "created")
      const console = yield* Effect.forkChild(Stream.runHead(machine.console), { startImmediately: true })
      yield* machine.start
      yield* run(machine, "echo word >/dev/console")
      assert.isTrue(Option.isSome(yield* Fiber.join(console)))
      yield* machine.shutdown({ request: { atLeast: "SIGKILL" } })
      assert.strictEqual((yield* machine.ended)._tag, "Killed")
    }))

  it.effect("is lost with its holder, and so told", () =>
    Effect.gen(function*() {
      const at = yield* place("lost")
      const machine = yield* launch(at)
      yield* machine.start
      process.kill(holderOf(at), "SIGKILL")
      const end = yield* machine.ended
      assert.strictEqual(end._tag === "Failed" ? end.why : end._tag, "its holder was killed")
      assert.isFalse(isThere(Option.getOrThrow(machine.pid)))
      assert.strictEqual((yield* (yield* attach(at)).ended)._tag, "Failed")
    }))

  it.effect("leaves nothing when it does not come up, or its launch is interrupted", () =>
    Effect.gen(function*() {
      const at = yield* place("broken")
      const kernel = join(temporary, "no-kernel")
      writeFileSync(kernel, "none", { mode: 0o644 })
      chmodSync(temporary, 0o711)
      const spec = yield* MachineSpec.decode({ ...optionsOf(at.id), kernel })
      const failed = yield* Effect.flip(Machine.launch(spec, { keep: at.keep }))
      assert.strictEqual(failed.reason._tag, "LaunchFailed")
      assert.match(failed.message, /no-kernel|kernel image|kernel/)
      assert.strictEqual((yield* ProcessHolder.use((holder) => holder.destroy(at)))._tag, "Absent")
      for (const millis of [0, 20, 60, 120, 240]) {
        const hasty = yield* place(`hasty-${millis}`)
        yield* Effect.timeoutOption(Effect.scoped(Effect.andThen(launch(hasty), Effect.never)), millis)
        const held = join(hasty.directory, "holder.json")
        // One that was up is kept; of one that was not there is nothing.
        const fate = yield* ProcessHolder.use((holder) => holder.destroy({ directory: hasty.directory, dryRun: true }))
        if (fate._tag === "Destroyed") assert.strictEqual(yield* (yield* attach(hasty)).state, "created")
        else if (existsSync(held)) assert.isFalse(isThere(Number(/"pid":(\d+)/.exec(readFileSync(held, "utf8"))?.[1])))
      }
    }))

  it.effect("is attached to only as what it is", () =>
    Effect.gen(function*() {
      const at = yield* place("itself")
      const none = yield* Effect.flip(attach(at))
      assert.match(none.message, /Machine "itself" cannot be attached to: .*holds no process/)
      yield* Effect.scoped(launch(at))
      const other = yield* Effect.flip(attach({ ...at, id: "another" }))
      assert.match(other.message, /is "itself"/)
      assert.strictEqual(yield* (yield* attach(at)).state, "created")
    }))

  it.effect("runs in the cgroup that it is given, kept or not", () =>
    Effect.gen(function*() {
      const support = yield* ProcessHost.use((host) => host.cgroupSupport)
      if (support._tag === "Unusable") {
        yield* Effect.logWarning(`skipped: machines in a cgroup, for ${support.why}`)
        return
      }
      for (const kept of [true, false]) {
        const cgroup = `${support.root}/machine-${kept}`
        mkdirSync(cgroup, { recursive: true })
        const at = yield* place(`cgroup-${kept}`)
        const scope = yield* Scope.make()
        const spec = yield* MachineSpec.decode(optionsOf(at.id))
        const machine = yield* Scope.provide(
          Machine.launch(spec, { cgroup: { path: cgroup }, ...(kept ? { keep: at.keep } : {}) }),
          scope
        )
        const pid = Option.getOrThrow(machine.pid)
        assert.include(readFileSync(`${cgroup}/cgroup.procs`, "utf8").split("\n"), String(pid))
        yield* machine.shutdown({ request: { atLeast: "SIGKILL" } })
        yield* Scope.close(scope, Exit.void)
        assert.isFalse(isThere(pid))
        // It is not ours to remove, and can be.
        rmdirSync(cgroup)
      }
      rmdirSync(support.root)
    }))
})
