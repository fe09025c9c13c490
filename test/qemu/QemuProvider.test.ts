import { assert, describe, it } from "@effect/vitest"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as Machine from "../../src/microvm/Machine.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import { MicroVmProvider, type Vmm } from "../../src/microvm/MicroVmProvider.ts"
import type { Snapshot } from "../../src/microvm/Snapshot.ts"
import * as NodeProcessHolder from "../../src/process/NodeProcessHolder.ts"
import { ProcessHolder } from "../../src/process/ProcessHolder.ts"
import { ProcessHost } from "../../src/process/ProcessHost.ts"
import { ProcessSpawner } from "../../src/process/ProcessSpawner.ts"
import * as Kept from "../../src/qemu/internal/kept.ts"
import type * as LaunchPlan from "../../src/qemu/LaunchPlan.ts"
import * as QemuHost from "../../src/qemu/QemuHost.ts"
import * as QemuProvider from "../../src/qemu/QemuProvider.ts"
import * as FakeQmp from "../../src/testing/FakeQmp.ts"
import * as ScriptedProcess from "../../src/testing/ScriptedProcess.ts"

const observations: QemuHost.Observations = {
  binary: "qemu-system-x86_64",
  version: { major: 7, minor: 2, micro: 22 },
  architecture: "x86_64",
  kvm: { _tag: "Unusable", why: "the CPU shows neither vmx nor svm", remedy: "none" },
  cpu: "Model 1",
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
  readonly inspect?: (path: string, writable: boolean) => Partial<QemuHost.FileFacts>
  readonly observed?: Partial<QemuHost.Observations>
  /** What is done with files, in order. */
  readonly files?: Array<string>
  readonly makeRam?: Effect.Effect<void, QemuHost.HostFailed>
  readonly received?: Effect.Effect<void, QemuHost.HostFailed>
  readonly copied?: Effect.Effect<void, QemuHost.HostFailed>
  readonly holder?: Layer.Layer<ProcessHolder, never, ProcessHost | ProcessSpawner>
}

/** SIGUSR1 makes the scripted QEMU exit in order; nobody else sends it. */
const reactions = { SIGTERM: { exitAfter: "5 millis" }, SIGUSR1: { exitAfter: "1 millis" } } as const

/** A host on which QEMU is a scripted process with a fake QMP server. */
const host = (
  fake: FakeQmp.FakeQmp,
  {
    copied = Effect.void,
    files = [],
    holder = NodeProcessHolder.layer,
    inspect,
    makeRam = Effect.void,
    observed,
    process,
    received = Effect.void
  }: Script
) => {
  const note = (what: string) => Effect.sync(() => void files.push(what))
  const processes = ScriptedProcess.layer({
    script: () => ({ on: reactions, channels: new Map([3, 4, 5, 6, 7].map((fd) => [fd, fake.socket])), ...process })
  })
  const facts = Layer.succeed(QemuHost.QemuHost, {
    observe: () => Effect.succeed({ ...observations, ...observed }),
    inspect: (path, { writable = false } = {}) =>
      Effect.succeed({ path, worldReadable: true, worldWritable: true, ...inspect?.(path, writable) }),
    copy: (from, to) => Effect.andThen(copied, note(`${from} to ${to}`)),
    makeRam: (bytes) =>
      Effect.andThen(
        makeRam,
        Effect.acquireRelease(note(`memory of ${bytes / 2 ** 20} MiB`), () => note("memory freed"))
      ).pipe(Effect.as({
        path: "/proc/2/fd/20",
        copyTo: (file: string, mode: number) => note(`memory to ${file}, ${mode.toString(8)}`)
      })),
    receive: (file, { _tag }) =>
      Effect.acquireRelease(note(`listen for ${_tag}, to ${file}`), () => note("socket closed")).pipe(
        Effect.as({ path: "/socket", received })
      )
  })
  return QemuProvider.layer.pipe(Layer.provide([facts, holder]), Layer.provideMerge(processes))
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

const snapshot = (form: LaunchPlan.Form): Snapshot => {
  const { id: _, ...rest } = spec
  return {
    id: "f".repeat(64),
    directory: "/s",
    manifest: {
      format: 1,
      kind: "saved",
      form,
      platform: {},
      madeBy: "QEMU 7.2.22",
      spec: rest,
      labels: {},
      createdAt: "2026-01-01T00:00:00Z",
      files: []
    }
  }
}
const template = MicroVmProvider.use((provider) => provider.launch(spec, { template: true }))
const restore = (form: LaunchPlan.Form = "shared-memory") =>
  MicroVmProvider.use((provider) => provider.launch(spec, { from: snapshot(form) }))

/** A machine that runs, stopped for a moment. */
const standing = Effect.fnUntraced(function*(vmm: Vmm) {
  yield* vmm.start
  yield* vmm.pause
  return vmm
})

/** Lets time pass in small steps until the effect is through. */
const through = Effect.fnUntraced(function*<A, E, R>(effect: Effect.Effect<A, E, R>) {
  const fiber = yield* Effect.forkChild(effect, { startImmediately: true })
  while (fiber.pollUnsafe() === undefined) {
    yield* TestClock.adjust("20 millis")
    yield* TestClock.withLive(Effect.sleep("1 millis"))
  }
  return yield* Fiber.join(fiber)
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

  it.effect("runs as the user that was asked for, which only root can give it", () => {
    const user = 2_000_000_007
    return Effect.gen(function*() {
      yield* onHost({}, () =>
        Effect.gen(function*() {
          const { plan } = yield* MicroVmProvider
          const { argv, description } = yield* Effect.fromResult(plan(spec, { user }))
          assert.includeMembers([...argv], [`--reuid=${user}`, `--regid=${user}`, "--clear-groups"])
          assert.include(description, `runs as uid ${user}, gid ${user}`)
          yield* Machine.launch(spec, { user })
          for (const wrong of [0, -1, 1.5, 2 ** 32 - 1]) {
            const { reason } = yield* Effect.flip(Machine.launch(spec, { user: wrong }))
            assert.deepStrictEqual(reason._tag === "InvalidSpec" ? reason.faults.map(({ field }) => field) : [], [
              "user"
            ])
          }
        }))
      yield* onHost({ observed: { uid: 1000 } }, () =>
        Effect.gen(function*() {
          assert.strictEqual((yield* Effect.flip(Machine.launch(spec, { user }))).reason._tag, "Unsupported")
        }))
    })
  })

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

describe("a QEMU of another version than it was taken for", () => {
  const told = "QEMU says it is 7.2.22, but `--version` said 7.1.0: start this program again if QEMU was upgraded"
  for (const [stage, launched] of [["bringing QEMU up", launch], ["restoring", restore()]] as const) {
    it.effect(`fails at ${stage}, and leaves nothing`, () =>
      onHost(
        { observed: { version: { major: 7, minor: 1, micro: 0 } }, qmp: { incoming: true } },
        (fake) =>
          Effect.gen(function*() {
            const error = yield* through(Effect.flip(launched))
            assert.deepInclude(error.reason, { _tag: "LaunchFailed", stage })
            assert.include(error.message, told)
            assert.deepStrictEqual(yield* executed(fake), [])
            assert.strictEqual(yield* alive, 0)
          })
      ))
  }
})

describe("saving", () => {
  it.effect("a machine sends all of it in one stream", () => {
    const files: Array<string> = []
    return onHost({ files }, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* Effect.flatMap(launch, standing)
        const { form, madeBy, platform } = yield* through(vmm.save("/d"))
        assert.deepStrictEqual([form, madeBy, platform["version"]], ["stream", "QEMU 7.2.22", "7.2"])
        assert.deepStrictEqual(files, ["listen for Unprivileged, to /d/state", "socket closed"])
        assert.deepStrictEqual(
          (yield* fake.received).slice(3).map(({ arguments: args, execute }) => [execute, args]),
          [
            ["query-status", undefined],
            ["migrate-set-capabilities", { capabilities: [{ capability: "x-ignore-shared", state: false }] }],
            ["migrate-set-parameters", { "max-bandwidth": 2 ** 40 }],
            ["migrate", { uri: "unix:/socket" }],
            ["query-migrate", undefined]
          ]
        )
        yield* vmm.resume
        assert.strictEqual(yield* fake.status, "running")
      }))
  })

  it.effect("a template leaves the memory out of the stream, and copies it when QEMU is done", () => {
    const files: Array<string> = []
    return onHost({ files }, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* Effect.flatMap(template, standing)
        assert.strictEqual((yield* through(vmm.save("/d"))).form, "shared-memory")
        assert.deepStrictEqual(files, [
          "memory of 256 MiB",
          "listen for Unprivileged, to /d/state",
          "socket closed",
          // QEMU 7.2 opens it for writing, as another user.
          "memory to /d/memory, 666"
        ])
        const capabilities = (yield* fake.received).find(({ execute }) => execute === "migrate-set-capabilities")
        assert.deepStrictEqual(capabilities?.arguments, {
          capabilities: [{ capability: "x-ignore-shared", state: true }]
        })
      }))
  })

  it.effect("twice without a run in between has the guest run for a moment: QEMU wants it so", () =>
    onHost({}, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* Effect.flatMap(launch, standing)
        yield* through(vmm.save("/d"))
        assert.strictEqual(yield* fake.status, "postmigrate")
        yield* through(vmm.save("/e"))
        assert.deepStrictEqual(
          (yield* executed(fake)).filter((one) => ["cont", "stop", "migrate"].includes(one)),
          ["cont", "stop", "migrate", "cont", "stop", "migrate"]
        )
      })))

  for (
    const [user, version, mode] of [["auto", 7, "666"], ["keep", 7, "666"], ["auto", 9, "644"], [
      "keep",
      9,
      "644"
    ]] as const
  ) {
    it.effect(`a template of QEMU ${version} for user ${user} can be restored by any other`, () => {
      const files: Array<string> = []
      const greeting = {
        QMP: { version: { qemu: { major: version, minor: 2, micro: 0 }, package: "" }, capabilities: [] }
      }
      const observed = { version: greeting.QMP.version.qemu, setpriv: user === "auto" }
      return onHost({ files, observed, qmp: { greeting } }, () =>
        Effect.gen(function*() {
          const vmm = yield* Effect.flatMap(template, standing)
          yield* through(vmm.save("/d"))
          assert.strictEqual(files.at(-1), `memory to /d/memory, ${mode}`)
        }))
    })
  }

  it.effect("a machine that has not run yet keeps what it boots, and asks nothing of QEMU", () => {
    const files: Array<string> = []
    return onHost({ files }, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* launch
        assert.strictEqual((yield* vmm.save("/d")).form, "unstarted")
        assert.deepStrictEqual(files, ["/k to /d/kernel", "/i to /d/initramfs"])
        assert.deepStrictEqual(yield* executed(fake), ["query-status"])
      }))
  })

  it.effect("a machine that has not run since it was restored keeps the files of that snapshot", () => {
    const files: Array<string> = []
    return onHost({ files }, () =>
      Effect.gen(function*() {
        const vmm = yield* restore("unstarted")
        yield* vmm.save("/d")
        assert.deepStrictEqual(files, ["/s/kernel to /d/kernel", "/s/initramfs to /d/initramfs"])
      }))
  })

  it.effect("a machine that has not run yet fails when its kernel cannot be copied, and can be started", () => {
    const gone = new QemuHost.HostFailed({ path: "/d/kernel", why: "no copy of /k can be made: ENOENT" })
    return onHost({ copied: Effect.fail(gone) }, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* launch
        assert.include(
          yield* messageOf(vmm.save("/d")),
          "snapshot failed: /d/kernel: no copy of /k can be made: ENOENT"
        )
        yield* vmm.start
        assert.strictEqual(yield* fake.status, "running")
      }))
  })

  it.effect("that fails says so in QEMU's words, copies nothing, and the machine goes on", () => {
    const files: Array<string> = []
    return onHost({ qmp: { migration: "fails" }, files }, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* Effect.flatMap(template, standing)
        assert.strictEqual(
          yield* through(messageOf(vmm.save("/d"))),
          "Machine \"a\": snapshot failed: QEMU could not write the machine's state: Unable to write to socket: Broken pipe"
        )
        assert.strictEqual(files.at(-1), "socket closed")
        yield* vmm.resume
        assert.strictEqual(yield* fake.status, "running")
      }))
  })

  it.effect("that the disk has no room for names the disk, and stops QEMU", () => {
    const full = new QemuHost.HostFailed({ path: "/d/state", why: "ENOSPC" })
    return onHost({ qmp: { migration: "stalls" }, received: Effect.fail(full) }, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* Effect.flatMap(launch, standing)
        const error = yield* through(Effect.flip(vmm.save("/d")))
        assert.deepInclude(error.reason, { _tag: "OperationFailed", id: "a", operation: "snapshot", cause: full })
        assert.include(yield* executed(fake), "migrate_cancel")
      }))
  })

  it.effect("that is interrupted is cancelled before the socket goes", () => {
    const files: Array<string> = []
    return onHost({ qmp: { migration: "stalls" }, received: Effect.never, files }, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* Effect.flatMap(launch, standing)
        const saving = yield* Effect.forkChild(vmm.save("/d"), { startImmediately: true })
        while (!(yield* executed(fake)).includes("query-migrate")) {
          yield* TestClock.withLive(Effect.sleep("1 millis"))
        }
        assert.notInclude(files, "socket closed")
        yield* through(Fiber.interrupt(saving))
        assert.deepStrictEqual((yield* executed(fake)).slice(-2), ["migrate_cancel", "query-migrate"])
        assert.strictEqual(files.at(-1), "socket closed")
        yield* vmm.resume
      }))
  })

  it.effect("does not take for ever", () =>
    onHost({ qmp: { migration: "stalls" }, received: Effect.never }, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* Effect.flatMap(launch, standing)
        const saving = yield* Effect.forkChild(messageOf(vmm.save("/d")), { startImmediately: true })
        while (!(yield* executed(fake)).includes("query-migrate")) {
          yield* TestClock.withLive(Effect.sleep("1 millis"))
        }
        yield* TestClock.adjust("5 minutes")
        assert.include(yield* through(Fiber.join(saving)), "it took longer than 5m")
        assert.include(yield* executed(fake), "migrate_cancel")
      })))

  it.effect("fails when QEMU goes away under it", () =>
    onHost({ qmp: { migration: "stalls" } }, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* Effect.flatMap(launch, standing)
        const saving = yield* Effect.forkChild(messageOf(vmm.save("/d")), { startImmediately: true })
        while (!(yield* executed(fake)).includes("query-migrate")) {
          yield* TestClock.withLive(Effect.sleep("1 millis"))
        }
        yield* fake.close
        assert.include(yield* through(Fiber.join(saving)), "QMP connection ended")
      })))
})

describe("a template", () => {
  it.effect("has its memory as long as it lives", () => {
    const files: Array<string> = []
    return Effect.andThen(
      onHost({ files }, () => Effect.andThen(template, Effect.sync(() => assert.notInclude(files, "memory freed")))),
      Effect.sync(() => assert.strictEqual(files.at(-1), "memory freed"))
    )
  })

  it.effect("that there is no room for is not started", () => {
    const noRoom = new QemuHost.HostFailed({ path: "/dev/shm", why: "no room for 320 MiB" })
    return onHost({ makeRam: Effect.fail(noRoom) }, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(template)
        assert.deepInclude(error.reason, { _tag: "LaunchFailed", cause: noRoom })
        assert.strictEqual(yield* alive, 0)
      }))
  })
})

describe("restoring", () => {
  for (const form of ["shared-memory", "stream"] as const) {
    it.effect(`from ${form} hands over a machine that stands still`, () =>
      onHost({ qmp: { incoming: true } }, (fake) =>
        Effect.gen(function*() {
          const vmm = yield* through(restore(form))
          assert.strictEqual(yield* fake.status, "paused")
          assert.deepStrictEqual(
            (yield* fake.received).slice(1, 3).map(({ arguments: args }) => args),
            [
              { capabilities: [{ capability: "x-ignore-shared", state: form === "shared-memory" }] },
              { uri: "fd:3" }
            ]
          )
          yield* vmm.resume
          assert.strictEqual(yield* fake.status, "running")
        })))
  }

  const refusal = Effect.gen(function*() {
    const { reason } = yield* Effect.flip(restore())
    assert.strictEqual(yield* alive, 0)
    return reason._tag === "SnapshotUnusable" ? reason.why : reason._tag
  })
  const remedy = (needed: string) =>
    `its memory: QEMU runs as a user without rights: make it ${needed}, or set MICROVM_QEMU_USER=keep`

  it.effect("names each file that cannot be opened", () =>
    onHost({ inspect: () => ({ fault: "it cannot be opened: ENOENT" }) }, () =>
      Effect.gen(function*() {
        assert.deepStrictEqual(yield* refusal, [
          "its state: it cannot be opened: ENOENT",
          "its memory: it cannot be opened: ENOENT"
        ])
      })))

  it.effect("finds no fault with what only may not be opened so, and tells how it could be", () =>
    onHost({
      inspect: (_, writable) => writable ? { fault: "it cannot be opened for writing: EROFS", isClosed: true } : {}
    }, () =>
      Effect.gen(function*() {
        const { message, reason } = yield* Effect.flip(restore())
        assert.strictEqual(reason._tag, "LaunchFailed")
        assert.match(
          message,
          /opening the snapshot failed: \/s\/memory: .*EROFS, as QEMU before 8.2 .*mount it read-write .*or use QEMU 8.2/
        )
        assert.strictEqual(yield* alive, 0)
      })))

  it.effect("finds no fault with what cannot be opened because too much is open", () =>
    onHost(
      { inspect: () => ({ fault: "it cannot be opened: EMFILE", isClosed: true, remedy: "raise the limit" }) },
      () =>
        Effect.gen(function*() {
          const { message, reason } = yield* Effect.flip(restore())
          assert.strictEqual(reason._tag, "LaunchFailed")
          assert.include(message, "/s/state: it cannot be opened: EMFILE, raise the limit; /s/memory: ")
        })
    ))

  it.effect("counts on a memory that QEMU's user may open, also for writing before 8.2, and on a state that only we may", () => {
    const asked: Array<string> = []
    const inspect = (worldReadable: boolean) => (path: string, writable: boolean) => {
      asked.push(`${path} ${writable}`)
      return path === "/s/state"
        ? { worldReadable: false, worldWritable: false }
        : { worldReadable, worldWritable: false }
    }
    const qmp = { incoming: true }
    const later = { ...observations.version, major: 9 }
    const greeting = { QMP: { version: { qemu: later, package: "" }, capabilities: [] } }
    return Effect.gen(function*() {
      assert.deepStrictEqual(yield* onHost({ inspect: inspect(true) }, () => refusal), [
        remedy("readable and writable to all (chmod a+rw)")
      ])
      assert.deepStrictEqual(asked, ["/s/state false", "/s/memory true"])
      asked.length = 0
      assert.deepStrictEqual(yield* onHost({ inspect: inspect(false), observed: { version: later } }, () => refusal), [
        remedy("readable to all (chmod a+r)")
      ])
      assert.deepStrictEqual(asked, ["/s/state false", "/s/memory false"])
      yield* onHost(
        { inspect: inspect(true), observed: { version: later }, qmp: { ...qmp, greeting } },
        () => through(restore())
      )
      yield* onHost({ inspect: inspect(false), observed: { uid: 1000 }, qmp }, () => through(restore()))
    })
  })

  it.effect("from a machine that had not run yet boots it, from files that are looked at", () =>
    onHost({ inspect: (path) => path === "/s/kernel" ? { worldReadable: false } : {} }, () =>
      Effect.gen(function*() {
        const { message, reason } = yield* Effect.flip(restore("unstarted"))
        assert.strictEqual(reason._tag, "SnapshotUnusable")
        assert.include(message, "its kernel: QEMU runs as a user without rights")
        const plan = yield* MicroVmProvider.use((provider) =>
          Effect.fromResult(provider.plan(spec, { from: snapshot("unstarted") }))
        )
        assert.include(plan.argv, "-kernel")
        assert.notInclude(plan.argv, "-incoming")
      })))

  it.effect("what QEMU refuses is told in its words", () =>
    onHost({
      qmp: { incoming: true, migration: "stalls" },
      process: { exitAfter: "10 millis", code: 1, stderr: "qemu: load of migration failed: Invalid argument\n" }
    }, (fake) =>
      Effect.gen(function*() {
        const failing = yield* Effect.forkChild(Effect.flip(restore()), { startImmediately: true })
        yield* TestClock.adjust("10 millis")
        yield* fake.close
        yield* TestClock.adjust("1 second")
        const error = yield* through(Fiber.join(failing))
        assert.deepInclude(error.reason, { _tag: "LaunchFailed", stage: "restoring" })
        assert.include(error.message, "load of migration failed: Invalid argument")
        assert.strictEqual(yield* alive, 0)
      })))

  it.effect("does not wait for ever, and leaves nothing", () =>
    onHost({ qmp: { incoming: true, migration: "stalls" } }, (fake) =>
      Effect.gen(function*() {
        const failing = yield* Effect.forkChild(messageOf(restore()), { startImmediately: true })
        while (!(yield* executed(fake)).includes("query-status")) yield* TestClock.withLive(Effect.sleep("1 millis"))
        yield* TestClock.adjust("20 seconds")
        assert.include(
          yield* through(Fiber.join(failing)),
          "could not load the machine's state: it took longer than 20s"
        )
        assert.strictEqual(yield* alive, 0)
      })))

  it.effect("a machine that would run by itself is no success", () =>
    onHost({
      qmp: {
        incoming: true,
        answer: (command) => command === "query-status" ? { return: { status: "running", running: true } } : undefined
      }
    }, () =>
      Effect.gen(function*() {
        assert.include(yield* through(messageOf(restore())), "it is \"running\", not paused")
      })))

  it.effect("of a form that is not known fails with the plan", () =>
    onHost({}, () =>
      Effect.gen(function*() {
        const { platform, plan } = yield* MicroVmProvider
        const from = snapshot("stream")
        const strange = { ...from, manifest: { ...from.manifest, form: "zip" } }
        assert.isTrue(Result.isFailure(plan(spec, { from: strange })))
        const { argv } = Result.getOrThrow(plan(spec, { from }))
        assert.include(argv, "-incoming")
        assert.strictEqual(Result.getOrThrow(platform(spec))["cpu"], "max")
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

  it.effect("shows where the console was cut", () =>
    onHost({ process: { stdout: `${"x".repeat(100_000)}\nthe end\n` } }, (fake) =>
      Effect.gen(function*() {
        const vmm = yield* launch
        assert.match(yield* vmm.consoleTail, /^\[truncated\]…x+\nthe end\n$/)
        yield* exit(fake)
        assert.match((yield* vmm.ended).consoleTail, /^\[truncated\]…x+\nthe end\n$/)
      })))

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

describe("a machine that is attached to", () => {
  /** A QEMU that another has started. */
  const held = Layer.effect(
    ProcessHolder,
    Effect.gen(function*() {
      const spawner = yield* ProcessSpawner
      const setup = Result.getOrThrow(QemuHost.choose(observations, {}))
      const note = Kept.write("a", { fds: { qmp: 3, channels: new Map() }, files: [] }, setup)
      return ProcessHolder.of({
        spawn: () => Effect.die("nothing is spawned"),
        destroy: () => Effect.die("nothing is destroyed"),
        follow: () => Stream.empty,
        attach: () => Effect.map(spawner.spawn(ChildProcess.make("qemu", []), {}), (child) => ({ ...child, note }))
      })
    })
  )
  const attach = MicroVmProvider.use((provider) => provider.attach(spec, { directory: "/m" }))

  it.effect("while another dies that saves it goes on when that is broken off, not before", () => {
    // QEMU says of one that it is about to send, or was sending a moment ago, that it is "finish-migrate".
    let sending = "active"
    return onHost({
      holder: held,
      qmp: {
        greeting: "long ago",
        answer: (command) => {
          switch (command) {
            case "migrate_cancel":
              sending = "cancelling"
              return { return: {} }
            case "query-migrate": {
              const now = sending
              if (sending === "cancelling") sending = "cancelled"
              return { return: { status: now } }
            }
            case "query-status":
              return { return: { status: "finish-migrate", running: false } }
            case "cont":
              return sending === "cancelled"
                ? { return: {} }
                : { error: { class: "GenericError", desc: "Migration is not finalized yet" } }
            default:
              return undefined
          }
        }
      }
    }, () =>
      Effect.gen(function*() {
        const { state, vmm } = yield* through(attach)
        assert.strictEqual(state, "paused")
        yield* vmm.resume
      }))
  })
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
