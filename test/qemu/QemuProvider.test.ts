import { assert, describe, it } from "@effect/vitest"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as Machine from "../../src/microvm/Machine.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import { MicroVmProvider } from "../../src/microvm/MicroVmProvider.ts"
import { ProcessHost } from "../../src/process/ProcessHost.ts"
import * as QemuHost from "../../src/qemu/QemuHost.ts"
import * as QemuProvider from "../../src/qemu/QemuProvider.ts"
import * as FakeQmp from "../../src/testing/FakeQmp.ts"
import * as ScriptedProcess from "../../src/testing/ScriptedProcess.ts"

const observations: QemuHost.Observations = {
  binary: "qemu-system-x86_64",
  version: { major: 7, minor: 2, micro: 22 },
  architecture: "x86_64",
  kvm: { _tag: "Unusable", why: "the CPU shows neither vmx nor svm", remedy: "none" },
  uid: 0,
  setpriv: true,
  path: "/usr/bin:/bin"
}

const spec = Result.getOrThrow(
  MachineSpec.make({ id: "a", kernel: "/k", initramfs: "/i", channels: ["agent"] })
)

interface Script {
  readonly qmp?: FakeQmp.Options
  readonly process?: ScriptedProcess.Script
  readonly inspect?: (path: string) => Partial<QemuHost.FileFacts>
  readonly observed?: Partial<QemuHost.Observations>
}

/** SIGUSR1 makes the scripted QEMU exit in order; nobody else sends it. */
const reactions = { SIGTERM: { exitAfter: "5 millis" }, SIGUSR1: { exitAfter: "1 millis" } } as const

/** A host on which QEMU is a scripted process with a fake QMP server. */
const host = (fake: FakeQmp.FakeQmp, { inspect, observed, process }: Script) => {
  const processes = ScriptedProcess.layer({
    script: () => ({ on: reactions, channels: new Map([3, 5, 6].map((fd) => [fd, fake.socket])), ...process })
  })
  const facts = Layer.succeed(QemuHost.QemuHost, {
    observe: () => Effect.succeed({ ...observations, ...observed }),
    inspect: (path) => Effect.succeed({ path, worldReadable: true, ...inspect?.(path) })
  })
  return QemuProvider.layer.pipe(Layer.provide(facts), Layer.provideMerge(processes))
}

/** Runs the body, and then lets time pass until its scope is closed. */
const onHost = <A, E>(
  script: Script,
  body: (fake: FakeQmp.FakeQmp) => Effect.Effect<
    A,
    E,
    MicroVmProvider | ProcessHost | ScriptedProcess.Driver | Scope.Scope
  >
) =>
  Effect.gen(function*() {
    const fake = yield* FakeQmp.make(script.qmp)
    const scope = yield* Scope.make()
    const context = yield* Layer.buildWithScope(host(fake, script), scope)
    const result = yield* body(fake).pipe(Effect.provide(context), Scope.provide(scope), Effect.exit)
    const closing = yield* Effect.forkChild(Scope.close(scope, result), { startImmediately: true })
    while (closing.pollUnsafe() === undefined) {
      yield* TestClock.adjust("1 second")
      yield* TestClock.withLive(Effect.sleep("1 millis"))
    }
    return yield* result
  })

const launch = MicroVmProvider.use((provider) => provider.launch(spec))
const alive = Effect.map(ScriptedProcess.Driver.use((driver) => driver.table), (table) => table.length)
const signals = Effect.map(
  ScriptedProcess.Driver.use((driver) => driver.delivered),
  (delivered) => delivered.map(({ signal }) => signal)
)
const executed = (fake: FakeQmp.FakeQmp) =>
  Effect.map(
    fake.received,
    (received) => received.map(({ execute }) => execute).filter((one) => one !== "qmp_capabilities")
  )

/** QEMU exits: its process first, and then the sockets that it held. */
const exit = Effect.fnUntraced(function*(fake: FakeQmp.FakeQmp) {
  for (const { pid } of yield* ScriptedProcess.Driver.use((driver) => driver.table)) {
    yield* ProcessHost.use((processes) => processes.kill(pid, "SIGUSR1"))
  }
  yield* TestClock.adjust("1 millis")
  yield* fake.close
})

const messageOf = <A, E extends Error, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(effect), (error) => error.message)

describe("launch", () => {
  it.effect("gives a machine whose guest has not run", () =>
    onHost({}, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* launch
        assert.strictEqual(yield* fake.status, "prelaunch")
        assert.isTrue(Option.isNone(yield* vmm.poll))
        assert.isTrue(Option.isSome(vmm.pid))
      })))

  it.effect("names every file that cannot be read, before it starts anything", () =>
    onHost({
      inspect: (path) => path === "/k" ? { fault: "it cannot be opened: ENOENT" } : { worldReadable: false }
    }, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(launch)
        assert.deepStrictEqual(
          error.reason._tag === "InvalidSpec" ? error.reason.faults.map(({ field }) => field) : [],
          ["kernel", "initramfs"]
        )
        assert.include(error.message, "chmod a+r")
        assert.strictEqual(yield* alive, 0)
      })))

  it.effect("as ourselves needs no file to be readable to all", () =>
    onHost({ observed: { uid: 1000 }, inspect: () => ({ worldReadable: false }) }, () => launch))

  it.effect("tells what QEMU said when it dies first", () =>
    onHost({
      qmp: { greeting: "nothing" },
      process: { exitAfter: "10 millis", code: 1, stderr: "qemu: could not load kernel '/k'\n" }
    }, (fake) =>
      Effect.gen(function*() {
        const failing = yield* Effect.forkChild(Effect.flip(launch), { startImmediately: true })
        yield* TestClock.adjust("10 millis")
        yield* fake.close
        yield* TestClock.adjust("1 second")
        const error = yield* Fiber.join(failing)
        assert.deepInclude(error.reason, { _tag: "LaunchFailed", stderrTail: "qemu: could not load kernel '/k'\n" })
        assert.include(error.message, "exited with code 1")
      })))

  it.effect("does not wait for ever for a QEMU that is silent, and leaves nothing of it", () =>
    onHost({ qmp: { greeting: "nothing" } }, () =>
      Effect.gen(function*() {
        const failing = yield* Effect.forkChild(messageOf(launch), { startImmediately: true })
        yield* TestClock.adjust("20 seconds")
        yield* TestClock.adjust("2 seconds")
        assert.include(yield* Fiber.join(failing), "QEMU did not answer greeting within 20s")
        assert.strictEqual(yield* alive, 0)
      })))

  it.effect("leaves nothing when it is interrupted", () =>
    onHost({ qmp: { greeting: "nothing" } }, () =>
      Effect.gen(function*() {
        const launching = yield* Effect.forkChild(launch, { startImmediately: true })
        assert.strictEqual(yield* alive, 1)
        const interrupted = yield* Effect.forkChild(Fiber.interrupt(launching), { startImmediately: true })
        yield* TestClock.adjust("1 second")
        yield* Fiber.join(interrupted)
        assert.strictEqual(yield* alive, 0)
      })))
})

describe("operations", () => {
  it.effect("are QMP commands", () =>
    onHost({}, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* launch
        yield* vmm.start
        yield* vmm.pause
        yield* vmm.resume
        yield* vmm.request("PowerButton")
        assert.deepStrictEqual(yield* executed(fake), ["cont", "stop", "cont", "system_powerdown"])
        assert.strictEqual(yield* fake.status, "running")
      })))

  it.effect("fail with QEMU's words", () =>
    onHost(
      { qmp: { answer: (command) => command === "cont" ? { error: { class: "E", desc: "no RAM" } } : undefined } },
      () =>
        Effect.gen(function*() {
          const vmm = yield* launch
          assert.strictEqual(yield* messageOf(vmm.start), "Machine \"a\": start failed: QEMU rejected cont: no RAM (E)")
        })
    ))

  it.effect("that are not there say so", () =>
    onHost({}, () =>
      Effect.gen(function*() {
        const vmm = yield* launch
        assert.strictEqual((yield* Effect.flip(vmm.snapshot("s"))).reason._tag, "Unsupported")
        assert.include(yield* messageOf(vmm.channel("nope")), "it has agent")
        yield* vmm.channel("agent")
      })))

  it.effect("ask nothing of a machine that is gone, and do not fail for it", () =>
    onHost({}, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* launch
        yield* exit(fake)
        yield* vmm.ended
        yield* vmm.request("PowerButton")
        yield* vmm.request("Terminate")
        yield* vmm.request("Kill")
        assert.deepStrictEqual(yield* signals, ["SIGUSR1"])
      })))

  it.effect("fail, for the next stage to come, when QMP is gone but QEMU is not", () =>
    onHost({}, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* launch
        yield* fake.close
        const failing = yield* Effect.forkChild(messageOf(vmm.request("PowerButton")), { startImmediately: true })
        yield* TestClock.adjust("1 second")
        assert.include(yield* Fiber.join(failing), "power button failed")
      })))
})

describe("the end", () => {
  const panicOnConsole = "[    0.5] Kernel panic - not syncing: No working init found.\r\n"
  const shutdown = (guest: boolean, reason: string) => ["SHUTDOWN", { guest, reason }] as const
  for (
    const [what, tag, events, console] of [
      ["power-off", "PoweredOff", [shutdown(true, "guest-shutdown")], ""],
      ["reboot", "Reset", [shutdown(true, "guest-reset")], ""],
      ["panic with a driver", "Panicked", [["GUEST_PANICKED", { action: "pause" }], shutdown(true, "guest-panic")], ""],
      ["panic without one", "Panicked", [shutdown(true, "guest-reset")], panicOnConsole],
      ["power-off after a panic that was survived", "PoweredOff", [shutdown(true, "guest-shutdown")], panicOnConsole],
      ["quit by another client", "Stopped", [shutdown(false, "host-qmp-quit")], ""],
      ["fault of the host", "Failed", [shutdown(false, "host-error")], ""],
      ["reason of a later version", "Failed", [shutdown(true, "guest-sublimation")], ""],
      ["silence", "Failed", [], ""]
    ] as const
  ) {
    it.effect(`by ${what} is ${tag}`, () =>
      onHost({ process: { stdout: console } }, (fake) =>
        Effect.gen(function*() {
          const vmm = yield* launch
          for (const [event, data] of events) yield* fake.emit(event, data)
          yield* exit(fake)
          const end = yield* vmm.ended
          assert.deepInclude(end, { _tag: tag, consoleTail: console })
          assert.deepStrictEqual(yield* vmm.poll, Option.some(end))
        })))
  }

  it.effect("by SIGKILL from outside comes at once", () =>
    onHost({}, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* launch
        yield* ProcessHost.use((processes) => processes.kill(Option.getOrThrow(vmm.pid), "SIGKILL"))
        yield* fake.close
        const end = yield* vmm.ended
        assert.strictEqual(end._tag, "Killed")
      })))

  it.effect("by a signal of a crash is a failure, with QEMU's last words", () =>
    onHost({ process: { stderr: "Assertion `false' failed.\n" } }, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* launch
        yield* ProcessHost.use((processes) => processes.kill(Option.getOrThrow(vmm.pid), "SIGABRT"))
        yield* fake.close
        const end = yield* vmm.ended
        assert.strictEqual(end._tag === "Failed" ? end.why : end._tag, "Assertion `false' failed.")
      })))

  it.effect("by our SIGTERM is Stopped, even when QMP never said so", () =>
    onHost({}, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* launch
        yield* vmm.request("Terminate")
        yield* TestClock.adjust("5 millis")
        yield* fake.close
        assert.strictEqual((yield* vmm.ended)._tag, "Stopped")
        assert.deepStrictEqual((yield* vmm.remains).survivors, [])
      })))

  it.effect("is told without QMP, when its socket stays open", () =>
    onHost({}, () =>
      Effect.gen(function*() {
        const vmm = yield* launch
        yield* ProcessHost.use((processes) => processes.kill(Option.getOrThrow(vmm.pid), "SIGKILL"))
        yield* TestClock.adjust("1 second")
        assert.strictEqual((yield* vmm.ended)._tag, "Killed")
      })))

  it.effect("by the close of the scope is told to those who still wait", () =>
    onHost({}, () =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const vmm = yield* Scope.provide(launch, scope)
        const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
        yield* TestClock.adjust("1 second")
        yield* Fiber.join(closing)
        yield* TestClock.adjust("1 second")
        assert.strictEqual((yield* vmm.ended)._tag, "Stopped")
        assert.strictEqual(yield* alive, 0)
      })))

  it.effect("does not come to a QEMU that nothing kills; what is left is named", () =>
    onHost({ process: { unkillable: true } }, () =>
      Effect.gen(function*() {
        const vmm = yield* launch
        const killing = yield* Effect.forkChild(vmm.request("Kill"), { startImmediately: true })
        yield* TestClock.adjust("3 seconds")
        yield* Fiber.join(killing)
        assert.isTrue(Option.isNone(yield* vmm.poll))
        const { status, survivors } = yield* vmm.remains
        assert.isTrue(Option.isNone(status))
        assert.deepStrictEqual(survivors.map(({ pid }) => pid), [Option.getOrThrow(vmm.pid)])
      })))

  it.effect("follows the machine's ladder: a guest that is deaf is ended by SIGTERM", () =>
    onHost({}, (fake) =>
      Effect.gen(function*() {
        const machine = yield* Machine.launch(spec)
        yield* machine.start
        const stopping = yield* Effect.forkChild(machine.shutdown(), { startImmediately: true })
        yield* TestClock.adjust("5 seconds")
        yield* TestClock.adjust("5 millis")
        yield* fake.close
        yield* TestClock.adjust("1 second")
        const outcome = yield* Fiber.join(stopping)
        assert.strictEqual(outcome._tag === "Forced" ? outcome.stage : outcome._tag, "SIGTERM")
        assert.deepStrictEqual(yield* executed(fake), ["cont", "system_powerdown"])
        assert.strictEqual((yield* machine.ended)._tag, "Stopped")
      })))
})

describe("the console", () => {
  it.effect("is kept, and shown to those who look", () =>
    onHost({ process: { stdout: "Linux version 6.1\r\n" } }, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* launch
        const watching = yield* Effect.forkChild(Stream.runCount(vmm.console), { startImmediately: true })
        assert.strictEqual(yield* vmm.consoleTail, "Linux version 6.1\r\n")
        yield* exit(fake)
        yield* vmm.ended
        // It ends with the machine.
        yield* Fiber.join(watching)
        assert.strictEqual(yield* vmm.consoleTail, "Linux version 6.1\r\n")
      })))
})

describe("the configuration", () => {
  const parse = (env: Record<string, string>) => QemuProvider.config.parse(ConfigProvider.fromEnv({ env }))

  it.effect("has a default for everything", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* parse({}), { binary: undefined, accelerator: "auto", user: "auto" })
      assert.deepStrictEqual(
        yield* parse({ MICROVM_QEMU_BIN: "/q", MICROVM_QEMU_ACCELERATOR: "tcg", MICROVM_QEMU_USER: "keep" }),
        { binary: "/q", accelerator: "tcg", user: "keep" }
      )
    }))

  it.effect("refuses what is not known", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(parse({ MICROVM_QEMU_ACCELERATOR: "hvf" }))
      assert.instanceOf(error, Config.ConfigError)
    }))
})
