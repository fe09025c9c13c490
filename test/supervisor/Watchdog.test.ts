import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import * as Machine from "../../src/microvm/Machine.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import { MemoryDriver, type Script } from "../../src/microvm/MemoryDriver.ts"
import * as MemoryProvider from "../../src/microvm/MemoryProvider.ts"
import * as Watchdog from "../../src/supervisor/Watchdog.ts"

const launch = Effect.fnUntraced(function*(script: Script) {
  const driver = yield* MemoryDriver
  yield* driver.script("*", script)
  return yield* Machine.launch(yield* MachineSpec.decode({ id: "a", kernel: "/kernel" }))
})

const told = () => {
  const hangs: Array<Watchdog.Hang> = []
  const onHang = (hang: Watchdog.Hang) => Effect.sync(() => void hangs.push(hang))
  return { hangs, onHang }
}

describe("a machine is watched", () => {
  it.effect("and nothing is told of one that answers", () =>
    Effect.gen(function*() {
      const machine = yield* launch({})
      const { hangs, onHang } = told()
      yield* machine.start
      yield* Effect.forkChild(Watchdog.watch(machine, { onHang }), { startImmediately: true })
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(hangs, [])
    }).pipe(Effect.scoped, Effect.provide(MemoryProvider.layer)))

  it.effect("a monitor that hangs is told of, once", () =>
    Effect.gen(function*() {
      let hung = false
      const machine = yield* launch({ ping: Effect.suspend(() => hung ? Effect.never : Effect.void) })
      const { hangs, onHang } = told()
      yield* machine.start
      yield* Effect.forkChild(Watchdog.watch(machine, { onHang }), { startImmediately: true })
      yield* TestClock.adjust("10 seconds")
      hung = true
      yield* TestClock.adjust("29 seconds")
      assert.deepStrictEqual(hangs, [])
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(hangs, [{ id: "a", what: "monitor", silentFor: Duration.seconds(30) }])
      yield* TestClock.adjust("10 minutes")
      assert.lengthOf(hangs, 1)
      assert.strictEqual(yield* machine.state, "running")
      // It answers again, and hangs again.
      hung = false
      yield* TestClock.adjust("1 minute")
      hung = true
      yield* TestClock.adjust("1 minute")
      assert.lengthOf(hangs, 2)
    }).pipe(Effect.scoped, Effect.provide(MemoryProvider.layer)))

  it.effect("one that hangs is ended where that is the policy, and then nobody watches", () =>
    Effect.gen(function*() {
      const machine = yield* launch({
        request: (request, guest) => request === "Kill" ? guest.kill("SIGKILL") : Effect.never
      })
      const { hangs, onHang } = told()
      yield* machine.start
      const agent = { name: "agent", check: Effect.fail(new Error("no answer")) }
      const fiber = yield* Effect.forkChild(
        Watchdog.watch(machine, { checks: [agent], onHang, policy: "end" }),
        { startImmediately: true }
      )
      yield* TestClock.adjust("15 seconds")
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(hangs, [{ id: "a", what: "agent", silentFor: Duration.seconds(15), why: "no answer" }])
      assert.strictEqual((yield* machine.ended)._tag, "Killed")
    }).pipe(Effect.scoped, Effect.provide(MemoryProvider.layer)))

  it.effect("one whose check cannot be interrupted, or throws, is told of and ended, too", () =>
    Effect.gen(function*() {
      for (const check of [Effect.uninterruptible(Effect.never), Effect.die(new Error("a bug"))]) {
        let asked = 0
        const counted = Effect.andThen(Effect.sync(() => asked++), check)
        const machine = yield* launch({})
        const { hangs, onHang } = told()
        yield* machine.start
        const fiber = yield* Effect.forkChild(
          Watchdog.watch(machine, { checks: [{ name: "agent", check: counted }], onHang, policy: "end" }),
          { startImmediately: true }
        )
        yield* TestClock.adjust("30 seconds")
        yield* Fiber.join(fiber)
        assert.deepStrictEqual(hangs.map(({ what, why }) => [what, why]), [[
          "agent",
          asked === 1 ? undefined : "a bug"
        ]])
        assert.strictEqual((yield* machine.ended)._tag, "Killed")
      }
    }).pipe(Effect.scoped, Effect.provide(MemoryProvider.layer)))

  it.effect("one that answers again is not ended for a check that takes long to be given up", () =>
    Effect.gen(function*() {
      let hung = true
      const check = Effect.suspend(() => hung ? Effect.never : Effect.void).pipe(
        Effect.onInterrupt(() => Effect.sleep("7 seconds"))
      )
      const machine = yield* launch({})
      const { hangs, onHang } = told()
      yield* machine.start
      yield* Effect.forkChild(
        Watchdog.watch(machine, { checks: [{ name: "agent", check }], failures: 2, onHang, policy: "end" }),
        { startImmediately: true }
      )
      // Asked after 5 seconds, given up after 10, and that is over after 17, while it waits for its second answer.
      yield* TestClock.adjust("12 seconds")
      hung = false
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual([hangs, yield* machine.state], [[], "running"])
    }).pipe(Effect.scoped, Effect.provide(MemoryProvider.layer)))

  it.effect("one that hangs is ended although who is told of it throws", () =>
    Effect.gen(function*() {
      const machine = yield* launch({ ping: Effect.never })
      yield* machine.start
      yield* Effect.forkChild(
        Watchdog.watch(machine, { policy: "end", onHang: () => Effect.die("a bug") }),
        { startImmediately: true }
      )
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(Option.getOrUndefined(yield* machine.poll)?._tag, "Killed")
    }).pipe(Effect.scoped, Effect.provide(MemoryProvider.layer)))

  it.effect("one that is paused is not asked", () =>
    Effect.gen(function*() {
      const machine = yield* launch({ ping: Effect.never })
      const { hangs, onHang } = told()
      yield* machine.start
      yield* machine.pause
      yield* Effect.forkChild(Watchdog.watch(machine, { onHang }), { startImmediately: true })
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(hangs, [])
      yield* machine.resume
      yield* TestClock.adjust("1 minute")
      assert.lengthOf(hangs, 1)
    }).pipe(Effect.scoped, Effect.provide(MemoryProvider.layer)))

  it.effect("and not asked while it is said not to be", () =>
    Effect.gen(function*() {
      const machine = yield* launch({ ping: Effect.never })
      const { hangs, onHang } = told()
      yield* machine.start
      let isSaved = true
      yield* Effect.forkChild(Watchdog.watch(machine, { onHang, unless: Effect.sync(() => isSaved) }), {
        startImmediately: true
      })
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(hangs, [])
      isSaved = false
      yield* TestClock.adjust("1 minute")
      assert.lengthOf(hangs, 1)
    }).pipe(Effect.scoped, Effect.provide(MemoryProvider.layer)))

  it.effect("until it is let go of, when it is one that goes on", () =>
    Effect.gen(function*() {
      const spec = yield* MachineSpec.decode({ id: "a", kernel: "/kernel" })
      const keep = { directory: "/kept/a" }
      const { hangs, onHang } = told()
      const scope = yield* Scope.make()
      const machine = yield* Scope.provide(Machine.launch(spec, { keep }), scope)
      yield* machine.start
      const fiber = yield* Effect.forkChild(Watchdog.watch(machine, { onHang, policy: "end" }), {
        startImmediately: true
      })
      yield* TestClock.adjust("1 minute")
      assert.isUndefined(fiber.pollUnsafe())
      yield* Scope.close(scope, Exit.void)
      yield* Fiber.join(fiber)
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(hangs, [])
      const again = yield* Machine.attach(spec, { keep })
      assert.strictEqual(yield* again.state, "running")
    }).pipe(Effect.scoped, Effect.provide(MemoryProvider.layer)))

  it.effect("by options that can be, or not at all", () =>
    Effect.gen(function*() {
      const machine = yield* launch({ ping: Effect.never })
      yield* machine.start
      const faultsOf = (options: Watchdog.Options) =>
        Effect.map(
          Effect.flip(Watchdog.watch(machine, { policy: "end", ...options })),
          ({ reason }) => reason._tag === "InvalidArgument" ? reason.faults.map(({ field }) => field) : [reason._tag]
        )
      for (const failures of [0, -1, 1.5, Number.NaN]) {
        assert.deepStrictEqual(yield* faultsOf({ failures }), ["failures"], String(failures))
      }
      assert.deepStrictEqual(yield* faultsOf({ failures: 0, every: 0, within: "-1 seconds" }), [
        "failures",
        "every",
        "within"
      ])
      assert.strictEqual(yield* machine.state, "running")
      yield* Effect.forkChild(Watchdog.watch(machine, { failures: 1, policy: "end", onHang: () => Effect.void }), {
        startImmediately: true
      })
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual((yield* machine.ended)._tag, "Killed")
    }).pipe(Effect.scoped, Effect.provide(MemoryProvider.layer)))
})
