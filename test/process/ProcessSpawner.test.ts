import { describe, expect, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import type { ShutdownRequest } from "../../src/lifecycle/Shutdown.ts"
import * as ShutdownPolicy from "../../src/lifecycle/ShutdownPolicy.ts"
import type * as KillScope from "../../src/process/KillScope.ts"
import * as Process from "../../src/process/Process.ts"
import { fromReason, ProcessErrorReason } from "../../src/process/ProcessError.ts"
import { layer as spawnerLayer, ProcessSpawner } from "../../src/process/ProcessSpawner.ts"
import type { SpawnOptions } from "../../src/process/SpawnOptions.ts"
import { SupervisorGuard } from "../../src/process/SupervisorGuard.ts"
import * as ScriptedProcess from "../../src/testing/ScriptedProcess.ts"

const command = ChildProcess.make("db", ["--data", "/srv"])

const spawn = (options?: SpawnOptions, what: ChildProcess.Command = command) =>
  Effect.flatMap(ProcessSpawner, (spawner) => spawner.spawn(what, options))

const withScript = (
  script: ScriptedProcess.Script,
  options: Omit<ScriptedProcess.Options, "script"> = {}
) =>
<A, E>(effect: Effect.Effect<A, E, ProcessSpawner | ScriptedProcess.Driver | Scope.Scope>) =>
  effect.pipe(Effect.scoped, Effect.provide(ScriptedProcess.layer({ ...options, script: () => script })))

/** Runs a shutdown, lets `time` pass, and gives the outcome. */
const shutdownWithin = (process: Process.Process, time: Duration.Input, request?: ShutdownRequest) =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(process.shutdown(request), { startImmediately: true })
    yield* TestClock.adjust(time)
    return yield* Fiber.join(fiber)
  })

const elapsed = (outcome: { readonly elapsed: Duration.Duration }): number => Duration.toMillis(outcome.elapsed)

it.effect("a guard that fails once fails one spawn, not all to come", () => {
  let asked = 0
  const host = ScriptedProcess.layerHost({ cgroups: true, script: () => ({}) })
  const guard = Layer.succeed(
    SupervisorGuard,
    SupervisorGuard.of({
      mark: "test",
      watch: () =>
        Effect.suspend(() =>
          ++asked === 1 ? Effect.fail(fromReason(ProcessErrorReason.GuardFailed({ why: "EMFILE" }))) : Effect.void
        )
    })
  )
  return Effect.gen(function*() {
    expect((yield* Effect.flip(spawn())).reason).toEqual({ _tag: "GuardFailed", why: "EMFILE" })
    expect((yield* spawn()).killScope._tag).toBe("CGroup")
    yield* spawn()
    expect(asked).toBe(2)
  }).pipe(Effect.scoped, Effect.provide(Layer.provide(spawnerLayer, Layer.merge(host, guard))))
})

describe("shutdown of a process", () => {
  it.effect("one that handles SIGTERM ends gracefully, when it does", () =>
    Effect.gen(function*() {
      const process = yield* spawn()
      const outcome = yield* shutdownWithin(process, "1 minute")
      expect(outcome).toMatchObject({ _tag: "Graceful", stage: "SIGTERM", status: ExitStatus.exited(3) })
      expect(elapsed(outcome)).toBe(300)
    }).pipe(withScript({ on: { SIGTERM: { exitAfter: "300 millis", code: 3 } } })))

  it.effect("one that ignores SIGTERM is killed after the grace", () =>
    Effect.gen(function*() {
      const process = yield* spawn()
      const outcome = yield* shutdownWithin(process, "1 minute")
      expect(outcome).toMatchObject({ _tag: "Forced", stage: "SIGKILL", status: ExitStatus.signaled("SIGKILL") })
      expect(elapsed(outcome)).toBe(2000)
    }).pipe(withScript({ on: { SIGTERM: "ignore" } })))

  it.effect("one that has exited is left alone", () =>
    Effect.gen(function*() {
      const process = yield* spawn()
      yield* TestClock.adjust("1 second")
      const driver = yield* ScriptedProcess.Driver
      expect(yield* process.shutdown()).toMatchObject({ _tag: "AlreadyExited", status: ExitStatus.exited(7) })
      expect(yield* driver.delivered).toEqual([])
    }).pipe(withScript({ exitAfter: "1 second", code: 7 })))

  it.effect("an exit at the very deadline is in time", () =>
    Effect.gen(function*() {
      const process = yield* spawn()
      const outcome = yield* shutdownWithin(process, "1 minute")
      expect(outcome).toMatchObject({ _tag: "Graceful", status: ExitStatus.exited(0) })
    }).pipe(withScript({ on: { SIGTERM: { exitAfter: "2 seconds" } } })))

  it.effect("a stopped one is made to hear SIGTERM", () =>
    Effect.gen(function*() {
      const process = yield* spawn()
      const outcome = yield* shutdownWithin(process, "1 minute")
      expect(outcome).toMatchObject({ _tag: "Graceful", status: ExitStatus.exited(0) })
      expect(elapsed(outcome)).toBe(5)
    }).pipe(withScript({ stopped: true, on: { SIGTERM: { exitAfter: "5 millis" } } })))

  it.effect("two that stop it share one run, and a third hastens it", () =>
    Effect.gen(function*() {
      const process = yield* spawn()
      const driver = yield* ScriptedProcess.Driver
      const first = yield* Effect.forkChild(process.shutdown(), { startImmediately: true })
      yield* TestClock.adjust("500 millis")
      const second = yield* Effect.forkChild(process.shutdown(), { startImmediately: true })
      const third = yield* Effect.forkChild(process.shutdown({ atLeast: "next" }), { startImmediately: true })
      const outcomes = [yield* Fiber.join(first), yield* Fiber.join(second), yield* Fiber.join(third)]
      expect(new Set(outcomes).size).toBe(1)
      expect(outcomes[0]).toMatchObject({ _tag: "Forced", stages: [{ end: "hastened" }, { end: "ended" }] })
      expect((yield* driver.delivered).map(({ signal }) => signal)).toEqual(["SIGTERM", "SIGCONT", "SIGKILL"])
      expect(yield* process.shutdown()).toBe(outcomes[0])
    }).pipe(withScript({ on: { SIGTERM: "ignore" } })))

  it.effect("one that nothing kills ends the wait, is named, and stays with the guard", () =>
    Effect.gen(function*() {
      const driver = yield* ScriptedProcess.Driver
      const scope = yield* Scope.make()
      const process = yield* Scope.provide(spawn(), scope)
      const outcome = yield* shutdownWithin(process, "4 seconds")
      expect(outcome).toMatchObject({
        _tag: "Unkillable",
        survivors: [{ pid: process.pid, command: "scripted", why: "uninterruptible sleep (D)" }]
      })
      expect(elapsed(outcome)).toBe(4000)
      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(closing)
      expect(yield* driver.watched).toMatchObject([{ _tag: "Group", pgid: process.pid }])
    }).pipe(withScript({ unkillable: true })))

  it.effect("a refused signal goes on to the next stage at once, and its error is kept", () =>
    Effect.gen(function*() {
      const process = yield* spawn()
      const outcome = yield* shutdownWithin(process, "1 minute")
      expect(outcome).toMatchObject({
        _tag: "Forced",
        stages: [{ end: "failed", error: { reason: { _tag: "SignalFailed", code: "EPERM" } } }, { end: "ended" }]
      })
      expect(elapsed(outcome)).toBe(0)
    }).pipe(withScript({ on: { SIGTERM: "refuse" } })))

  it.effect("the command's own killSignal and forceKillAfter count, unless a policy is given", () =>
    Effect.gen(function*() {
      const own = ChildProcess.make("db", [], { killSignal: "SIGINT", forceKillAfter: "7 seconds" })
      const outcome = yield* shutdownWithin(yield* spawn({}, own), "1 minute")
      expect(outcome.stages.map(({ name }) => name)).toEqual(["SIGINT", "SIGKILL"])
      expect(elapsed(outcome)).toBe(7000)
      const policy = ShutdownPolicy.signals({ signal: "SIGHUP", grace: "1 second" })
      const other = yield* shutdownWithin(yield* spawn({ policy }, own), "1 minute")
      expect(other).toMatchObject({ _tag: "Graceful", stage: "SIGHUP" })
    }).pipe(withScript({ on: { SIGINT: "ignore" } })))

  it.effect("closing the scope ends it and leaves nothing", () =>
    Effect.gen(function*() {
      const driver = yield* ScriptedProcess.Driver
      const started = yield* Effect.forkChild(Effect.scoped(spawn({ killScope: "cgroup" })), { startImmediately: true })
      yield* TestClock.adjust("1 minute")
      yield* Fiber.join(started)
      expect(yield* driver.table).toEqual([])
      expect(yield* driver.cgroups).toEqual([])
    }).pipe(withScript({ on: { SIGTERM: "ignore" }, children: [{ setsid: true }] }, { cgroups: true })))

  it.effect("a hundred that take 50 ms each are stopped in 50 ms", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      yield* Scope.provide(Process.releasedTogether(Effect.forEach(Array.from({ length: 100 }), () => spawn())), scope)
      const driver = yield* ScriptedProcess.Driver
      expect((yield* driver.table).length).toBe(100)
      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
      yield* TestClock.adjust("49 millis")
      expect((yield* driver.table).length).toBe(100)
      yield* TestClock.adjust("1 millis")
      yield* Fiber.join(closing)
      expect(yield* driver.table).toEqual([])
    }).pipe(withScript({ on: { SIGTERM: { exitAfter: "50 millis" } } })))
})

describe("kill scopes", () => {
  it.effect("group: members that outlive the leader are part of it", () =>
    Effect.gen(function*() {
      const process = yield* spawn()
      const outcome = yield* shutdownWithin(process, "1 minute")
      expect(outcome).toMatchObject({ _tag: "Forced", stage: "SIGKILL", status: ExitStatus.signaled("SIGTERM") })
      expect(yield* (yield* ScriptedProcess.Driver).table).toEqual([])
    }).pipe(withScript({ children: [{ on: { SIGTERM: "ignore" } }] })))

  it.effect("group: a leader that is gone before does not hide its members", () =>
    Effect.gen(function*() {
      const process = yield* spawn()
      yield* TestClock.adjust("1 second")
      expect(yield* process.exit).toEqual(ExitStatus.exited(0))
      const outcome = yield* shutdownWithin(process, "1 minute")
      expect(outcome).toMatchObject({ _tag: "Graceful", status: ExitStatus.exited(0) })
      expect(yield* (yield* ScriptedProcess.Driver).table).toEqual([])
    }).pipe(withScript({ exitAfter: "1 second", children: [{}] })))

  it.effect("group: dead members that nobody reaps do not hold it up", () =>
    Effect.gen(function*() {
      const process = yield* spawn()
      const outcome = yield* shutdownWithin(process, "1 second")
      expect(outcome._tag).toBe("Graceful")
      expect((yield* (yield* ScriptedProcess.Driver).table).map(({ state }) => state)).toEqual(["Z"])
    }).pipe(withScript({ children: [{}] }, { orphansReapedAfter: "1 hour" })))

  it.effect("group: who left it by setsid is named, not killed", () =>
    Effect.gen(function*() {
      const process = yield* spawn({ killScope: "group" })
      const outcome = yield* shutdownWithin(process, "1 minute")
      expect(outcome).toMatchObject({
        _tag: "Survivors",
        status: ExitStatus.signaled("SIGTERM"),
        survivors: [{ command: "escapee\\u{1b}c", why: "outside the process group" }]
      })
      expect((yield* (yield* ScriptedProcess.Driver).table).map((info) => info.command)).toEqual(["escapee\u{1b}c"])
    }).pipe(withScript({ children: [{ setsid: true, command: "escapee\u{1b}c" }] })))

  it.effect("group: is never signalled once its number is another's", () =>
    Effect.gen(function*() {
      const driver = yield* ScriptedProcess.Driver
      const process = yield* spawn({ killScope: "group" })
      yield* TestClock.adjust("1 second")
      yield* TestClock.adjust("1 second")
      const intruder = yield* driver.intrude(process.pid, { children: [{}] })
      yield* process.signal("SIGTERM")
      expect(yield* process.shutdown()).toMatchObject({ _tag: "AlreadyExited", status: ExitStatus.exited(0) })
      expect(yield* driver.delivered).toEqual([])
      expect((yield* driver.table).map(({ group }) => group)).toEqual([intruder.pid, intruder.pid])
    }).pipe(withScript({ exitAfter: "1 second" })))

  it.effect("process: its descendants are named", () =>
    Effect.gen(function*() {
      const process = yield* spawn({ killScope: "process" })
      const outcome = yield* shutdownWithin(process, "1 minute")
      expect(outcome).toMatchObject({
        _tag: "Survivors",
        survivors: [{ command: "worker", why: "a descendant; the kill scope was the process alone" }]
      })
    }).pipe(withScript({ children: [{ command: "worker" }] })))

  it.effect("cgroup: setsid does not lead out of it, and it is removed", () =>
    Effect.gen(function*() {
      const driver = yield* ScriptedProcess.Driver
      const outcome = yield* Effect.scoped(Effect.gen(function*() {
        const process = yield* spawn({ killScope: "cgroup" })
        expect(yield* driver.cgroups).toHaveLength(1)
        return yield* shutdownWithin(process, "1 minute")
      }))
      expect(outcome).toMatchObject({ _tag: "Forced", status: ExitStatus.signaled("SIGTERM") })
      expect(yield* driver.table).toEqual([])
      expect(yield* driver.cgroups).toEqual([])
    }).pipe(withScript({ children: [{ setsid: true, on: { SIGTERM: "ignore" } }] }, { cgroups: true })))

  it.effect("cgroup: what is killed is given a millisecond to die before anybody looks, what is asked to end is not", () =>
    Effect.gen(function*() {
      const killed = yield* spawn({ killScope: "cgroup", policy: ShutdownPolicy.signals({ signal: "SIGKILL" }) })
      const kill = yield* shutdownWithin(killed, "1 minute")
      expect(kill).toMatchObject({ _tag: "Forced", status: ExitStatus.signaled("SIGKILL") })
      expect(elapsed(kill)).toBe(1)
      const asked = yield* shutdownWithin(yield* spawn({ killScope: "cgroup" }), "1 minute")
      expect(asked).toMatchObject({ _tag: "Graceful" })
      expect(elapsed(asked)).toBe(0)
    }).pipe(withScript({ children: [{ setsid: true }] }, { cgroups: true })))

  it.effect("cgroup: a stage that is shorter than that millisecond still sees that all is dead", () =>
    Effect.gen(function*() {
      const policy = ShutdownPolicy.signals({ signal: "SIGKILL", grace: "0 millis" })
      const outcome = yield* shutdownWithin(yield* spawn({ killScope: "cgroup", policy }), "1 minute")
      expect(outcome).toMatchObject({ _tag: "Forced" })
    }).pipe(withScript({}, { cgroups: true })))

  it.effect("cgroup: two spawners on one host give no two children the same one, nor the same mark", () =>
    Effect.gen(function*() {
      // As they are when each part of a program provides its own.
      const spawnBy = (killScope: KillScope.Choice) => Effect.provide(spawn({ killScope }), spawnerLayer)
      const first = yield* spawnBy("cgroup")
      const second = yield* spawnBy("cgroup")
      const third = yield* spawnBy("process")
      const fourth = yield* spawnBy("process")
      yield* shutdownWithin(second, "1 minute")
      expect(yield* first.poll).toEqual(Option.none())
      expect(yield* shutdownWithin(third, "1 minute")).toMatchObject({ _tag: "Graceful" })
      expect(yield* fourth.poll).toEqual(Option.none())
    }).pipe(Effect.scoped, Effect.provide(ScriptedProcess.layerHost({ script: () => ({}), cgroups: true }))))

  it.effect("auto takes a cgroup where it can, and says why where it cannot", () =>
    Effect.gen(function*() {
      expect((yield* spawn()).killScope).toMatchObject({ _tag: "CGroup", reason: "auto" })
    }).pipe(
      withScript({}, { cgroups: true }),
      Effect.andThen(
        Effect.gen(function*() {
          expect((yield* spawn()).killScope).toMatchObject({ _tag: "Group", reason: "auto: none are scripted" })
          const attached = ChildProcess.make("db", [], { detached: false })
          expect((yield* spawn({}, attached)).killScope).toMatchObject({ _tag: "Process" })
          const error = yield* Effect.flip(spawn({ killScope: "cgroup" }))
          expect(error.reason).toMatchObject({ _tag: "ScopeUnavailable", why: "none are scripted" })
          expect((yield* Effect.flip(spawn({ killScope: "group" }, attached))).reason).toMatchObject({
            _tag: "InvalidArgument",
            field: "killScope"
          })
        }).pipe(withScript({}))
      )
    ))

  it.effect("the guard knows of a child that is to die with us, and only of that", () =>
    Effect.gen(function*() {
      const driver = yield* ScriptedProcess.Driver
      yield* spawn({ killScope: "group", dieWithParent: false })
      expect(yield* driver.watched).toEqual([])
      const process = yield* spawn({ killScope: "group" })
      expect(yield* driver.watched).toEqual([
        { _tag: "Group", pgid: process.pid, startTime: process.identity.startTime }
      ])
    }).pipe(withScript({})))
})

describe("spawn", () => {
  const secret = Redacted.make("hunter\0two")
  const cases: ReadonlyArray<readonly [string, ChildProcess.Command, ReadonlyArray<string>]> = [
    ["an empty command", ChildProcess.make("", []), ["command"]],
    ["NUL in the command", ChildProcess.make("a\0b", []), ["command"]],
    ["NUL in an argument and a bad cwd", ChildProcess.make("a", ["x", secret], { cwd: "" }), ["args[1]", "cwd"]],
    ["NUL in the environment", ChildProcess.make("a", [], { env: { A: secret } }), ["env[\"A\"]"]],
    ["a bad name of a variable", ChildProcess.make("a", [], { env: { "A=B": "x", "": "y" } }), [
      "env[\"A=B\"]",
      "env[\"\"]"
    ]],
    ["a shell with arguments", ChildProcess.make("a", ["b"], { shell: true }), ["args"]],
    ["a bad descriptor", ChildProcess.make("a", [], { additionalFds: { fd2: { type: "input" } } }), [
      "additionalFds.fd2"
    ]],
    ["a signal that Linux has not", ChildProcess.make("a", [], { killSignal: "SIGINFO" }), ["killSignal"]],
    ["a grace without end", ChildProcess.make("a", [], { forceKillAfter: "Infinity" }), ["forceKillAfter"]],
    ["a secret that would show", ChildProcess.make("a", [], { env: { "a.b": Redacted.make("x") } }), ["env[\"a.b\"]"]]
  ]
  for (const [name, bad, fields] of cases) {
    it.effect(`refuses ${name}`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(spawn({}, bad))
        const reasons = [error.reason, ...(error.others ?? [])]
        expect(reasons.map((reason) => reason._tag === "InvalidArgument" ? reason.field : reason._tag)).toEqual(fields)
        expect(error.message).not.toContain("hunter")
        expect(yield* (yield* ScriptedProcess.Driver).table).toEqual([])
      }).pipe(withScript({})))
  }

  it.effect("refuses a tail of a broken size", () =>
    Effect.gen(function*() {
      expect((yield* Effect.flip(spawn({ tailBytes: 1.5 }))).reason).toMatchObject({ field: "tailBytes" })
    }).pipe(withScript({})))

  it.effect("leaves nothing of what the kernel refuses", () =>
    Effect.gen(function*() {
      const spawner = yield* ProcessSpawner
      const driver = yield* ScriptedProcess.Driver
      const error = yield* Effect.flip(spawner.spawn(command))
      expect(error.reason).toEqual({ _tag: "SpawnFailed", command: "db", code: "EAGAIN" })
      expect(yield* driver.cgroups).toEqual([])
    }).pipe(
      Effect.scoped,
      Effect.provide(ScriptedProcess.layer({
        cgroups: true,
        script: () => fromReason(ProcessErrorReason.SpawnFailed({ command: "db", code: "EAGAIN" }))
      }))
    ))

  it.effect("runs a pipeline: every part is a process, the handle is that of the last", () =>
    Effect.gen(function*() {
      const driver = yield* ScriptedProcess.Driver
      const pipeline = ChildProcess.make("left", []).pipe(ChildProcess.pipeTo(ChildProcess.make("right", [])))
      const process = yield* spawn({}, pipeline)
      expect((yield* driver.table).map((info) => info.command)).toEqual(["left", "right"])
      expect((yield* driver.table).at(-1)?.pid).toBe(process.pid)
      const bad = ChildProcess.make("left", []).pipe(
        ChildProcess.pipeTo(ChildProcess.make("right", []), { from: "fd3" })
      )
      expect((yield* Effect.flip(spawn({}, bad))).reason).toMatchObject({ field: "pipeTo.from" })
      expect((yield* driver.table).length).toBe(2)
    }).pipe(
      Effect.scoped,
      Effect.provide(ScriptedProcess.layer({ script: ({ executable }) => ({ command: executable }) }))
    ))

  it.effect("fails to name a descriptor that the command has not", () =>
    Effect.gen(function*() {
      const process = yield* spawn()
      expect((yield* Effect.flip(process.channel(3))).reason).toEqual({
        _tag: "NoSuchDescriptor",
        fd: 3,
        available: []
      })
    }).pipe(withScript({})))
})

describe("output", () => {
  const text = (stream: Process.Process["stdout"]) => stream.pipe(Stream.decodeText, Stream.mkString)

  it.effect("is in the tail, with what came before it counted", () =>
    Effect.gen(function*() {
      const process = yield* spawn({ tailBytes: 4 })
      yield* TestClock.adjust("1 second")
      yield* process.exit
      expect(yield* process.tail).toEqual({
        stdout: { text: "6789", omittedBytes: 6 },
        stderr: { text: "ab", omittedBytes: 0 }
      })
      expect((yield* Effect.flip(text(process.stdout))).reason).toEqual({
        _tag: "OutputDropped",
        stream: "stdout",
        bytes: 6
      })
      expect(yield* text(process.stdout)).toBe("6789")
      expect(yield* text(process.stderr)).toBe("ab")
      expect(yield* text(process.stderr)).toBe("")
    }).pipe(withScript({ stdout: "0123456789", stderr: "ab", exitAfter: "1 second" })))

  it.effect("has one reader at a time", () =>
    Effect.gen(function*() {
      const process = yield* spawn()
      const reader = yield* Effect.forkChild(text(process.stdout), { startImmediately: true })
      expect((yield* Effect.flip(text(process.stdout))).reason).toEqual({ _tag: "OutputInUse", stream: "stdout" })
      yield* TestClock.adjust("1 second")
      expect(yield* Fiber.join(reader)).toBe("hello")
    }).pipe(withScript({ stdout: "hello", exitAfter: "1 second" })))

  it.effect("that is not piped is empty", () =>
    Effect.gen(function*() {
      const process = yield* spawn({}, ChildProcess.make("db", [], { stdout: "ignore", stdin: "ignore" }))
      expect(yield* text(process.stdout)).toBe("")
      const error = yield* Effect.flip(Stream.run(Stream.make(new Uint8Array(1)), process.stdin))
      expect(error.reason).toMatchObject({ _tag: "StreamFailed", stream: "stdin" })
    }).pipe(withScript({ stdout: "hello" })))
})
