/** How to test a program with machines: guests in memory, a supervisor without a host, virtual time. */
import { expect, it } from "@effect/vitest"
import { Journal } from "effect-microvm-runtime/journal"
import { MemoryDriver } from "effect-microvm-runtime/microvm"
import { NodeProcessHost, ProcessHolder } from "effect-microvm-runtime/process"
import { Supervisor } from "effect-microvm-runtime/supervisor"
import { type FakeGuestProgram, FakeWarmMachine } from "effect-microvm-runtime/testing"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { Sandboxes } from "../../examples/sandboxes.ts"

/** A script of these is `exit CODE` or `hang`. */
const sh: FakeGuestProgram.Program = Effect.fnUntraced(function*({ args: [, script = ""], write }) {
  yield* write("stdout", `${script}\n`)
  return script === "hang" ? yield* Effect.never : Number(script.split(" ")[1])
})

const supervisor = Supervisor.layerWith({}).pipe(
  Layer.provide([Journal.layerMemory(), Layer.mock(ProcessHolder.ProcessHolder)({})]),
  Layer.provide(NodeProcessHost.layer)
)
const live = Sandboxes.layer.pipe(
  Layer.provide(supervisor),
  // A host without control groups: its machines have no limits.
  Layer.provide([FileSystem.layerNoop({}), Path.layer]),
  Layer.provide(NodeProcessHost.layer),
  Layer.provideMerge(FakeWarmMachine.layerWith({ programs: { sh } }))
)

/** Lets virtual time pass until it is done. */
const settle = Effect.fnUntraced(function*<A, E, R>(effect: Effect.Effect<A, E, R>) {
  const fiber = yield* Effect.forkChild(effect, { startImmediately: true })
  for (let turn = 0; turn < 100 && fiber.pollUnsafe() === undefined; turn++) yield* TestClock.adjust("500 millis")
  return yield* Fiber.join(fiber)
})

const killed = Effect.map(
  MemoryDriver.MemoryDriver.use(({ events }) => events),
  (events) => events.filter(({ id, what }) => id.startsWith("sandbox-") && what === "Kill").map(({ id }) => id)
)

it.effect("each script has a machine of its own, which is gone with it", () =>
  Effect.gen(function*() {
    const { run } = yield* Sandboxes
    for (const code of [0, 7]) {
      expect(yield* settle(Stream.runCollect(run(`exit ${code}`)))).toEqual([
        { event: "stdout", data: `exit ${code}\n` },
        { event: "exit", data: `exited with code ${code}` }
      ])
    }
    expect(new Set(yield* killed).size).toBe(2)
  }).pipe(Effect.provide(live)))

it.effect("who takes too long is told so", () =>
  Effect.gen(function*() {
    const { run } = yield* Sandboxes
    expect((yield* settle(Effect.flip(Stream.runDrain(run("hang"))))).message).toBe("it took longer than 10s")
    expect((yield* killed).length).toBe(1)
  }).pipe(Effect.provide(live)))

it.effect("who hangs up ends it", () =>
  Effect.gen(function*() {
    const { run } = yield* Sandboxes
    expect(yield* settle(Stream.runCollect(Stream.take(run("hang"), 1)))).toEqual([{ event: "stdout", data: "hang\n" }])
    expect((yield* killed).length).toBe(1)
  }).pipe(Effect.provide(live)))
