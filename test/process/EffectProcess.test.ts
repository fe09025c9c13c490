import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as PlatformError from "effect/PlatformError"
import * as ChildProcess from "effect/process/ChildProcess"
import * as ChildProcessSpawner from "effect/process/ChildProcessSpawner"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import * as ShutdownPolicy from "../../src/lifecycle/ShutdownPolicy.ts"
import * as EffectProcess from "../../src/process/EffectProcess.ts"

const spawn = (script: string) =>
  Effect.tap(
    ChildProcess.make("sh", ["-c", `${script}; echo ready; while :; do sleep 0.02; done`]),
    (handle) => handle.stdout.pipe(Stream.take(1), Stream.runDrain)
  )

const patient = ShutdownPolicy.signals({ grace: "10 seconds" })
const hasty = ShutdownPolicy.signals({ grace: "300 millis" })

describe("on Effect's own spawner", () => {
  const cases = [
    ["exits 0 on SIGTERM", "trap 'exit 0' TERM", { _tag: "Graceful", status: ExitStatus.exited(0) }],
    ["exits 7 on SIGTERM", "trap 'exit 7' TERM", { _tag: "Graceful", status: ExitStatus.exited(7) }],
    ["takes the default action", ":", { _tag: "Graceful", status: ExitStatus.signaled("SIGTERM") }],
    ["ignores SIGTERM", "trap '' TERM", { _tag: "Forced", status: ExitStatus.signaled("SIGKILL") }]
  ] as const
  for (const [name, script, expected] of cases) {
    it.live(name, () =>
      Effect.gen(function*() {
        const handle = yield* spawn(script)
        const shutdown = yield* EffectProcess.makeShutdown(handle, expected._tag === "Forced" ? hasty : patient)
        const outcome = yield* shutdown.run()
        expect(outcome).toMatchObject(expected)
        expect(yield* EffectProcess.exitStatus(handle)).toEqual(expected.status)
        expect(yield* shutdown.run()).toBe(outcome)
      }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)))
  }

  it.live("is stopped, and hears SIGTERM all the same", () =>
    Effect.gen(function*() {
      const handle = yield* spawn("trap 'exit 0' TERM")
      process.kill(handle.pid, "SIGSTOP")
      const shutdown = yield* EffectProcess.makeShutdown(handle, patient)
      expect(yield* shutdown.run()).toMatchObject({ _tag: "Graceful", status: ExitStatus.exited(0) })
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)))

  it.live("has exited before", () =>
    Effect.gen(function*() {
      const handle = yield* ChildProcess.make("sh", ["-c", "exit 5"])
      expect(yield* EffectProcess.exitStatus(handle)).toEqual(ExitStatus.exited(5))
      const shutdown = yield* EffectProcess.makeShutdown(handle)
      expect(yield* shutdown.run()).toMatchObject({ _tag: "AlreadyExited", status: ExitStatus.exited(5) })
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)))
})

describe("on a handle of a test", () => {
  const error = PlatformError.systemError({
    _tag: "Unknown",
    module: "ChildProcess",
    method: "exitCode",
    description: "?"
  })

  const makeHandle = (
    exitsAfter: Duration.Input,
    kill: ChildProcessSpawner.ChildProcessHandle["kill"],
    fails: boolean
  ) =>
    Effect.gen(function*() {
      const done = yield* Deferred.make<ChildProcessSpawner.ExitCode>()
      yield* Effect.forkScoped(Effect.delay(Deferred.succeed(done, ChildProcessSpawner.ExitCode(0)), exitsAfter))
      return ChildProcessSpawner.makeHandle({
        pid: ChildProcessSpawner.ProcessId(1),
        exitCode: fails ? Effect.fail(error) : Deferred.await(done),
        isRunning: Effect.map(Deferred.isDone(done), (isDone) => !isDone),
        kill,
        stdin: Sink.drain,
        stdout: Stream.empty,
        stderr: Stream.empty,
        all: Stream.empty,
        getInputFd: () => Sink.drain,
        getOutputFd: () => Stream.empty,
        unref: Effect.succeed(Effect.void)
      })
    })

  it.effect("waits on the virtual clock, and gives up on one that nothing kills", () =>
    Effect.gen(function*() {
      const handle = yield* makeHandle("1 day", () => Effect.never, false)
      const shutdown = yield* EffectProcess.makeShutdown(handle)
      const fiber = yield* Effect.forkChild(shutdown.run(), { startImmediately: true })
      yield* TestClock.adjust("1 minute")
      const outcome = yield* Fiber.join(fiber)
      expect(outcome).toMatchObject({ _tag: "Unkillable", stages: [{ end: "deadline" }, { end: "deadline" }] })
      expect(Duration.toMillis(outcome.elapsed)).toBe(4000)
    }))

  it.effect("escalates at once when the signal is refused, and keeps why", () =>
    Effect.gen(function*() {
      const handle = yield* makeHandle("1 day", () => Effect.fail(error), false)
      const shutdown = yield* EffectProcess.makeShutdown(handle)
      expect(yield* shutdown.run()).toMatchObject({ _tag: "Unkillable", stages: [{ error }, { error }] })
    }))

  it.effect("a handle that cannot say how it ended is waited for, and Lost", () =>
    Effect.gen(function*() {
      const handle = yield* makeHandle("1 second", () => Effect.never, true)
      const fiber = yield* Effect.forkChild(EffectProcess.exitStatus(handle), { startImmediately: true })
      yield* TestClock.adjust("900 millis")
      expect(fiber.pollUnsafe()).toBeUndefined()
      yield* TestClock.adjust("200 millis")
      expect(yield* Fiber.join(fiber)).toMatchObject({ _tag: "Lost", observedBy: "wait" })
    }))
})
