import { describe, expect, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as ChildProcess from "effect/process/ChildProcess"
import * as TestClock from "effect/testing/TestClock"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import * as AdoptedProcess from "../../src/process/AdoptedProcess.ts"
import type { Choice } from "../../src/process/KillScope.ts"
import { ProcessSpawner } from "../../src/process/ProcessSpawner.ts"
import * as ScriptedProcess from "../../src/testing/ScriptedProcess.ts"
import { hasCGroups, layer, start, trial } from "./support.ts"

const lost = ExitStatus.lost("not our child", "identity")

const spawn = (killScope: Choice) =>
  Effect.flatMap(ProcessSpawner, (spawner) => spawner.spawn(ChildProcess.make("db"), { killScope }))

const withScript = (script: ScriptedProcess.Script, cgroups = false) => <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  effect.pipe(Effect.scoped, Effect.provide(ScriptedProcess.layer({ cgroups, script: () => script })))

describe("on a scripted host", () => {
  it.effect("waits for the end, and never knows how it ended", () =>
    Effect.gen(function*() {
      const process = yield* spawn("process")
      const adopted = yield* AdoptedProcess.adopt(process.identity)
      expect(yield* adopted.poll).toMatchObject({ _tag: "None" })
      const exit = yield* Effect.forkChild(adopted.exit)
      yield* TestClock.adjust("9 seconds")
      expect(exit.pollUnsafe()).toBeUndefined()
      yield* TestClock.adjust("2 seconds")
      expect(yield* Fiber.join(exit)).toEqual(lost)
    }).pipe(withScript({ exitAfter: "10 seconds", code: 3 })))

  it.effect("ends what is in the kill scope", () =>
    Effect.gen(function*() {
      const driver = yield* ScriptedProcess.Driver
      const process = yield* spawn("cgroup")
      const adopted = yield* AdoptedProcess.adopt(process.identity, { killScope: process.killScope })
      const fiber = yield* Effect.forkChild(adopted.shutdown(), { startImmediately: true })
      yield* TestClock.adjust("1 minute")
      const outcome = yield* Fiber.join(fiber)
      expect(outcome).toMatchObject({ _tag: "Forced", status: lost })
      expect(Duration.toMillis(outcome.elapsed)).toBe(2001)
      expect(yield* driver.table).toEqual([])
    }).pipe(withScript({ on: { SIGTERM: "ignore" }, children: [{ setsid: true }] }, true)))

  it.effect("names who has left the group", () =>
    Effect.gen(function*() {
      const process = yield* spawn("group")
      const adopted = yield* AdoptedProcess.adopt(process.identity, { killScope: process.killScope })
      const fiber = yield* Effect.forkChild(adopted.shutdown(), { startImmediately: true })
      yield* TestClock.adjust("1 second")
      expect(yield* Fiber.join(fiber)).toMatchObject({
        _tag: "Survivors",
        survivors: [{ command: "escapee", why: "outside the process group" }]
      })
    }).pipe(withScript({ children: [{ setsid: true, command: "escapee" }] })))

  it.effect("sends nothing to another that has the pid now, nor to its group", () =>
    Effect.gen(function*() {
      const driver = yield* ScriptedProcess.Driver
      const process = yield* spawn("group")
      const adopted = yield* AdoptedProcess.adopt(process.identity, { killScope: process.killScope })
      yield* TestClock.adjust("1 second")
      yield* driver.intrude(process.pid, { children: [{}] })
      yield* adopted.signal("SIGKILL")
      expect(yield* adopted.shutdown()).toMatchObject({ _tag: "AlreadyExited", status: lost })
      expect(yield* driver.delivered).toEqual([])
    }).pipe(withScript({ exitAfter: "100 millis" })))

  for (const lived of [100, 0]) {
    it.effect(`sends nothing to a group that has the number from the tick on in which it ended, ${lived} ms old`, () =>
      Effect.gen(function*() {
        const driver = yield* ScriptedProcess.Driver
        const process = yield* spawn("group")
        yield* TestClock.adjust(lived)
        expect(yield* process.poll).toMatchObject({ _tag: "Some" })
        yield* driver.intrude(process.pid, { children: [{}] })
        expect(yield* process.shutdown()).toMatchObject({ _tag: "AlreadyExited" })
        expect(yield* driver.delivered).toEqual([])
      }).pipe(withScript({ exitAfter: lived })))
  }

  it.effect("signals nobody for a group that stands for more", () =>
    Effect.gen(function*() {
      const driver = yield* ScriptedProcess.Driver
      const process = yield* spawn("process")
      for (const pgid of [-process.pid, 0, 1, NaN]) {
        const adopted = yield* AdoptedProcess.adopt(process.identity, {
          killScope: { _tag: "Group", pgid, reason: "decoded" }
        })
        const fiber = yield* Effect.forkChild(adopted.shutdown(), { startImmediately: true })
        yield* TestClock.adjust("1 minute")
        expect(yield* Fiber.join(fiber)).toMatchObject({
          _tag: "Unkillable",
          stages: [{ end: "failed" }, { end: "failed" }]
        })
      }
      expect(yield* driver.delivered).toEqual([])
    }).pipe(withScript({})))

  it.effect("takes a process of an earlier boot for gone", () =>
    Effect.gen(function*() {
      const driver = yield* ScriptedProcess.Driver
      const process = yield* spawn("process")
      const adopted = yield* AdoptedProcess.adopt({ ...process.identity, bootId: "earlier" })
      expect(yield* adopted.exit).toEqual(lost)
      yield* adopted.signal("SIGKILL")
      expect(yield* adopted.shutdown()).toMatchObject({ _tag: "AlreadyExited" })
      expect(yield* driver.delivered).toEqual([])
    }).pipe(withScript({})))
})

describe("on this host", () => {
  for (const killScope of hasCGroups ? ["cgroup", "group", "process"] as const : ["group", "process"] as const) {
    it.live(`ends a process that another started (${killScope})`, () =>
      Effect.gen(function*() {
        const process = yield* start("exit-on-term.sh", ["0"], { killScope, trial: trial() })
        const adopted = yield* AdoptedProcess.adopt(process.identity, { killScope: process.killScope })
        const [exit, outcome] = yield* Effect.all([adopted.exit, adopted.shutdown()], { concurrency: 2 })
        expect(exit).toEqual(lost)
        expect(outcome).toMatchObject({ status: lost })
        expect(yield* process.exit).toEqual(ExitStatus.exited(0))
      }).pipe(Effect.scoped, Effect.provide(layer)))
  }
})
