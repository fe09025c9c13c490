import { describe, expect, it } from "@effect/vitest"
import { ShutdownPolicy } from "effect-microvm-runtime/lifecycle"
import {
  type Machine,
  MachineState,
  MemoryDriver,
  MemoryProvider,
  MicroVmError,
  MicroVmProvider,
  MicroVmRuntime,
  SnapshotStore
} from "effect-microvm-runtime/microvm"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import { fork, isDone, pass, reason, stepByStep, turns, wanted } from "./support.ts"

const host = Effect.provide(MemoryProvider.layer)
const slowly: Machine.ShutdownOptions = { leading: [{ name: "wait", request: Effect.void, grace: "1 hour" }] }
const deaf: MemoryDriver.Script = { request: () => Effect.void }

const setUp = Effect.fnUntraced(function*(script: MemoryDriver.Script = {}, options?: MicroVmRuntime.Options) {
  const driver = yield* MemoryDriver.MemoryDriver
  yield* driver.script("*", script)
  // The first sleep of a test clock that nobody has moved ends at once in a fiber that is interrupted.
  yield* pass(0)
  const scope = yield* Scope.make()
  const runtime = yield* Scope.provide(MicroVmRuntime.make(options), scope)
  // Whatever a test leaves hanging ends here, without a clock that somebody moves.
  yield* Effect.addFinalizer(() =>
    Effect.gen(function*() {
      const close = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
      for (const { id } of yield* driver.claims) {
        yield* Effect.ignore(Effect.flatMap(driver.guest(id), (guest) => guest.kill("SIGKILL")))
      }
      yield* Fiber.join(close)
    })
  )
  return {
    driver,
    runtime,
    close: Scope.close(scope, Exit.void),
    stateOf: (id: string) => Effect.map(runtime.get(id), Option.map(({ state }) => state)),
    whats: Effect.map(driver.events, (events) => events.map(({ what }) => what)),
    guest: driver.guest
  }
})
type SetUp = Effect.Success<ReturnType<typeof setUp>>

describe("operations by state", () => {
  const reach: { readonly [S in MachineState.MachineState]?: (all: SetUp) => Effect.Effect<unknown, unknown> } = {
    created: ({ runtime }) => runtime.create(wanted("m")),
    running: (all) => Effect.andThen(reach.created?.(all) ?? Effect.void, all.runtime.start("m")),
    paused: (all) => Effect.andThen(reach.running?.(all) ?? Effect.void, all.runtime.pause("m")),
    stopping: (all) =>
      Effect.andThen(
        reach.running?.(all) ?? Effect.void,
        Effect.forkDetach(all.runtime.stop("m", slowly), { startImmediately: true })
      ),
    stopped: (all) => Effect.andThen(reach.running?.(all) ?? Effect.void, all.runtime.stop("m")),
    crashed: (all) =>
      Effect.andThen(
        reach.running?.(all) ?? Effect.void,
        Effect.andThen(Effect.flatMap(all.guest("m"), (guest) => guest.crash("x")), Effect.yieldNow)
      ),
    destroyed: (all) => Effect.andThen(reach.created?.(all) ?? Effect.void, all.runtime.destroy("m"))
  }
  const hasten: Machine.ShutdownOptions = { request: { atLeast: "SIGKILL" } }
  const operations: {
    readonly [O in MachineState.Operation]: (
      runtime: MicroVmRuntime.MicroVmRuntime["Service"]
    ) => Effect.Effect<unknown, { readonly reason?: MicroVmError.Reason }>
  } = {
    start: ({ start }) => start("m"),
    pause: ({ pause }) => pause("m"),
    resume: ({ resume }) => resume("m"),
    snapshot: ({ snapshot }) => snapshot("m", "s"),
    stop: ({ stop }) => Effect.catchTag(stop("m", hasten), ["NoSuchStage", "ShutdownPolicyError"], Effect.die),
    destroy: ({ destroy }) => Effect.catchTag(destroy("m", hasten), ["NoSuchStage", "ShutdownPolicyError"], Effect.die),
    rename: ({ rename }) => rename("m", "n")
  }
  const cells = MachineState.MachineState.literals.filter((state) => state !== "creating").flatMap((state) =>
    MachineState.Operation.literals.map((operation) => ({ state, operation }))
  )

  it.effect.each(cells)("$operation in $state", ({ operation, state }) =>
    Effect.gen(function*() {
      const all = yield* setUp()
      yield* reach[state]?.(all) ?? Effect.die("unreachable")
      expect(yield* all.stateOf("m")).toEqual(Option.some(state))
      const before = yield* all.whats
      const result = yield* Effect.result(operations[operation](all.runtime))
      const to = MachineState.next(state, operation)
      expect(yield* all.stateOf(operation === "rename" && Option.isSome(to) ? "n" : "m")).toEqual(
        Option.some(Option.getOrElse(to, () => state))
      )
      const refusal = new MicroVmError.InvalidTransition({ id: "m", from: state, to: MachineState.goals[operation] })
      expect(Result.isSuccess(result) ? "done" : result.failure.reason).toEqual(Option.isSome(to) ? "done" : refusal)
      expect(Option.isSome(to) || (yield* all.whats).length === before.length).toBe(true)
    }).pipe(host))

  const queued = ["start", "pause", "resume", "snapshot", "stop", "rename"] as const
  it.effect.each(queued)(
    "%s of a machine that is being created waits, then is as in created",
    (operation) =>
      Effect.gen(function*() {
        const all = yield* setUp({ launch: (step) => step === "spawn" ? Effect.sleep("1 second") : Effect.void })
        const created = yield* fork(all.runtime.create(wanted("m")))
        expect(yield* all.stateOf("m")).toEqual(Option.some("creating"))
        const asked = yield* fork(Effect.result(operations[operation](all.runtime)))
        yield* pass("999 millis")
        expect(isDone(asked)).toBe(false)
        yield* pass("1 millis")
        yield* Fiber.join(created)
        const result = yield* Fiber.join(asked)
        expect(Result.isSuccess(result)).toBe(Option.isSome(MachineState.next("created", operation)))
      }).pipe(host)
  )

  it.effect.each(queued)("%s of a machine whose creation fails finds nothing", (operation) =>
    Effect.gen(function*() {
      const all = yield* setUp({
        launch: (step) => step === "spawn" ? Effect.andThen(Effect.sleep("1 second"), Effect.fail("x")) : Effect.void
      })
      const created = yield* fork(reason(all.runtime.create(wanted("m"))))
      const asked = yield* fork(reason(operations[operation](all.runtime)))
      yield* pass("1 second")
      expect(yield* Fiber.join(created)).toMatchObject({ _tag: "LaunchFailed", stage: "spawn", cause: "x" })
      expect(yield* Fiber.join(asked)).toEqual(new MicroVmError.MachineNotFound({ id: "m" }))
    }).pipe(host))
})

describe("an operation whose caller was interrupted", () => {
  const slow: MemoryDriver.Script = { start: Effect.sleep("1 second"), pause: Effect.sleep("1 second") }

  it.effect.each(["start", "pause"] as const)(
    "is done before what is asked for after it: %s",
    (begun) =>
      Effect.gen(function*() {
        const { driver, runtime, stateOf } = yield* setUp()
        yield* runtime.create(wanted("m"))
        if (begun === "pause") yield* runtime.start("m")
        yield* driver.script("*", slow)
        yield* Fiber.interrupt(yield* fork(runtime[begun]("m")))
        const undone = yield* fork(begun === "start" ? Effect.asVoid(runtime.stop("m")) : runtime.resume("m"))
        yield* pass("1 second")
        yield* Fiber.join(undone)
        expect(yield* stateOf("m")).toEqual(Option.some(begun === "start" ? "stopped" : "running"))
      }).pipe(host)
  )

  it.effect("holds up neither stop nor destroy when it hangs", () =>
    Effect.gen(function*() {
      for (const end of ["stop", "destroy"] as const) {
        const { driver, runtime } = yield* setUp()
        yield* runtime.create(wanted(end))
        yield* runtime.start(end)
        yield* driver.script("*", { pause: Effect.never })
        yield* Fiber.interrupt(yield* fork(runtime.pause(end)))
        const queued = yield* fork(reason(runtime.resume(end)))
        const ended = yield* fork(end === "stop" ? Effect.asSome(runtime.stop(end)) : runtime.destroy(end))
        yield* pass("5 seconds")
        yield* Fiber.join(ended)
        expect(yield* Fiber.join(queued)).toMatchObject({ _tag: "InvalidTransition", to: "running" })
      }
    }).pipe(host))
})

describe("create", () => {
  it.effect("of one id by many at once: one launch, the others are told", () =>
    Effect.gen(function*() {
      const { driver, runtime, whats } = yield* setUp({ launch: () => Effect.sleep("1 second") })
      const creates = Array.from({ length: 10 }, () => Effect.result(runtime.create(wanted("m"))))
      const all = yield* fork(Effect.all(creates, { concurrency: "unbounded" }))
      yield* pass("3 seconds")
      const results = yield* Fiber.join(all)
      expect(results.filter(Result.isSuccess).length).toBe(1)
      expect(results.filter(Result.isFailure).map(({ failure }) => failure.reason)).toEqual(
        Array.from({ length: 9 }, () => new MicroVmError.MachineAlreadyExists({ id: "m" }))
      )
      expect((yield* whats).filter((what) => what === "claim").length).toBe(1)
      expect((yield* driver.claims).length).toBe(1)
    }).pipe(host))

  it.effect.each(["claim", "spawn", "connect"] as const)(
    "that is interrupted at %s leaves nothing",
    (slow) =>
      Effect.gen(function*() {
        const { driver, runtime } = yield* setUp({
          launch: (step) => step === slow ? Effect.never : Effect.void,
          release: Effect.sleep("1 second")
        })
        const created = yield* fork(runtime.create(wanted("m")))
        expect((yield* reason(runtime.create(wanted("m"))))?._tag).toBe("MachineAlreadyExists")
        const interrupt = yield* fork(Fiber.interrupt(created))
        // The id is taken until all is released.
        if (slow !== "claim") expect((yield* reason(runtime.create(wanted("m"))))?._tag).toBe("MachineAlreadyExists")
        yield* pass("1 second")
        yield* Fiber.join(interrupt)
        expect(yield* runtime.list).toEqual([])
        expect(yield* driver.claims).toEqual([])
        yield* driver.script("*", {})
        yield* runtime.create(wanted("m"))
      }).pipe(host)
  )

  it.effect("that is overtaken by a destroy is broken off", () =>
    Effect.gen(function*() {
      const { driver, runtime } = yield* setUp({ launch: (step) => step === "spawn" ? Effect.never : Effect.void })
      const created = yield* fork(reason(runtime.create(wanted("m"))))
      expect(yield* runtime.destroy("m")).toEqual(Option.none())
      expect(yield* Fiber.join(created)).toMatchObject({ _tag: "OperationFailed", operation: "launch" })
      expect(yield* runtime.list).toEqual([])
      expect(yield* driver.claims).toEqual([])
    }).pipe(host))

  it.effect("is broken off wherever in it a destroy comes", () =>
    Effect.forEach(Array.from({ length: 30 }, (_, after) => after), (after) =>
      Effect.gen(function*() {
        const { driver, runtime } = yield* setUp({ launch: (step) => step === "spawn" ? Effect.never : Effect.void })
        const created = yield* fork(Effect.exit(runtime.create(wanted("m"))))
        yield* turns(after)
        const destroyed = yield* fork(Effect.result(runtime.destroy("m")))
        yield* turns(500)
        expect([after, isDone(destroyed)]).toEqual([after, true])
        // The first ones come before it.
        const found = Result.isSuccess(yield* Fiber.join(destroyed))
        expect([after, found]).toEqual([after, found || after < 5])
        const left = found ? 0 : 1
        expect([after, isDone(created)]).toEqual([after, found])
        expect([after, (yield* driver.claims).length, (yield* runtime.list).length]).toEqual([after, left, left])
      }).pipe(Effect.scoped, Effect.provide(MemoryProvider.layer, { local: true })), { discard: true }).pipe(
        stepByStep
      ))

  it.effect("says all that is wrong before it takes the id", () =>
    Effect.gen(function*() {
      const { runtime, whats } = yield* setUp()
      const found = yield* reason(runtime.create({ ...wanted("m"), vcpus: 0, memoryMib: 1 }))
      expect(found).toMatchObject({ _tag: "InvalidSpec", faults: { length: 2 } })
      expect(yield* runtime.list).toEqual([])
      expect(yield* whats).toEqual([])
    }).pipe(host))

  it.effect("takes the id of a machine that was destroyed, with nothing of the old one", () =>
    Effect.gen(function*() {
      const { runtime } = yield* setUp()
      yield* runtime.create(wanted("m"))
      yield* runtime.snapshot("m", "s")
      yield* runtime.destroy("m")
      expect(yield* runtime.create({ ...wanted("m"), vcpus: 2 })).toMatchObject({
        state: "created",
        snapshots: [],
        end: Option.none(),
        spec: { vcpus: 2 }
      })
      expect((yield* runtime.list).length).toBe(1)
    }).pipe(host))
})

describe("start", () => {
  it.effect("of a machine that ended launches it afresh, once the old one is released", () =>
    Effect.gen(function*() {
      const { driver, guest, runtime, stateOf } = yield* setUp({ release: Effect.sleep("1 second") })
      yield* runtime.create(wanted("m"))
      yield* runtime.start("m")
      yield* Effect.flatMap(guest("m"), ({ crash }) => crash("x"))
      yield* Effect.yieldNow
      expect(yield* stateOf("m")).toEqual(Option.some("crashed"))
      const started = yield* fork(runtime.start("m"))
      expect(yield* stateOf("m")).toEqual(Option.some("creating"))
      yield* pass("999 millis")
      expect((yield* driver.events).at(-1)).toMatchObject({ life: 1, what: "ended" })
      yield* pass("1 millis")
      yield* Fiber.join(started)
      expect((yield* driver.events).slice(-6).map(({ life, what }) => `${life} ${what}`)).toEqual([
        "1 released",
        "2 claim",
        "2 spawn",
        "2 connect",
        "2 launched",
        "2 start"
      ])
      expect(yield* runtime.get("m")).toMatchObject(
        Option.some({ state: "running", end: { value: { _tag: "Failed" } } })
      )
      yield* driver.script("*", {})
    }).pipe(host))

  it.effect.each(["claim", "spawn", "connect", "start"] as const)(
    "of a machine that ended, which fails at %s, leaves it as it was",
    (broken) =>
      Effect.gen(function*() {
        const { driver, guest, runtime } = yield* setUp()
        yield* runtime.create(wanted("m"))
        yield* runtime.start("m")
        yield* Effect.flatMap(guest("m"), ({ kill }) => kill("SIGSEGV"))
        yield* Effect.yieldNow
        const before = yield* runtime.get("m")
        expect(before).toMatchObject(Option.some({ state: "crashed" }))
        yield* driver.script("*", {
          launch: (step) => step === broken ? Effect.fail("no room") : Effect.void,
          start: broken === "start" ? Effect.fail("no room") : Effect.void
        })
        expect(yield* reason(runtime.start("m"))).toMatchObject({ cause: "no room" })
        expect(yield* runtime.get("m")).toEqual(before)
        expect(yield* driver.claims).toEqual([])
        yield* driver.script("*", {})
        yield* runtime.start("m")
      }).pipe(host)
  )

  it.effect.each(["spawn", "start"] as const)(
    "of a machine that ended, interrupted at %s, leaves it as it was",
    (slow) =>
      Effect.gen(function*() {
        const { driver, runtime } = yield* setUp()
        yield* runtime.create(wanted("m"))
        yield* runtime.start("m")
        yield* runtime.stop("m")
        const before = yield* runtime.get("m")
        yield* driver.script("*", {
          launch: (step) => step === slow ? Effect.never : Effect.void,
          start: slow === "start" ? Effect.never : Effect.void
        })
        const started = yield* fork(runtime.start("m"))
        yield* Fiber.interrupt(started)
        expect(yield* runtime.get("m")).toEqual(before)
        expect(yield* driver.claims).toEqual([])
      }).pipe(host)
  )
})

describe("a backend that tells of the end late", () => {
  const late = Layer.effect(
    MicroVmProvider.MicroVmProvider,
    Effect.map(MicroVmProvider.MicroVmProvider, (real) => ({
      ...real,
      launch: (spec) =>
        Effect.map(
          real.launch(spec),
          (vmm) => ({ ...vmm, ended: Effect.tap(vmm.ended, () => Effect.sleep("1 hour")) })
        )
    }))
  ).pipe(Layer.provideMerge(MemoryProvider.layer))

  it.effect("leaves no record of a start that failed", () =>
    Effect.gen(function*() {
      const { driver, runtime } = yield* setUp()
      yield* runtime.create(wanted("m"))
      yield* runtime.start("m")
      const stopped = yield* fork(runtime.stop("m"))
      yield* pass("1 hour")
      yield* Fiber.join(stopped)
      const before = yield* runtime.get("m")
      yield* driver.script("*", { start: Effect.fail("no room"), request: (_, guest) => guest.crash("x") })
      const started = yield* fork(reason(runtime.start("m")))
      yield* pass("1 hour")
      yield* pass("1 hour")
      expect(yield* Fiber.join(started)).toMatchObject({ cause: "no room" })
      expect(yield* runtime.get("m")).toEqual(before)
    }).pipe(Effect.provide(late)))
})

describe("stop and destroy", () => {
  it.effect("wait for no operation that hangs", () =>
    Effect.gen(function*() {
      for (const end of ["stop", "destroy"] as const) {
        const { driver, runtime } = yield* setUp()
        yield* runtime.create(wanted(end))
        yield* runtime.start(end)
        yield* driver.script("*", { pause: Effect.never })
        const hung = yield* fork(reason(runtime.pause(end)))
        const queued = yield* fork(reason(runtime.snapshot(end, "s")))
        const ended = yield* fork(end === "stop" ? Effect.asSome(runtime.stop(end)) : runtime.destroy(end))
        yield* pass("5 seconds")
        yield* Fiber.join(ended)
        expect(yield* Fiber.join(hung)).toMatchObject({ _tag: "OperationFailed", operation: "pause" })
        expect(yield* Fiber.join(queued)).toMatchObject({ _tag: "InvalidTransition", to: "snapshot" })
      }
    }).pipe(host))

  it.effect("stop waits for a start under way", () =>
    Effect.gen(function*() {
      const { runtime, whats } = yield* setUp({ start: Effect.sleep("1 second") })
      yield* runtime.create(wanted("m"))
      const started = yield* fork(runtime.start("m"))
      const stopped = yield* fork(runtime.stop("m"))
      yield* pass("1 second")
      yield* Fiber.join(started)
      expect(yield* Fiber.join(stopped)).toMatchObject({ _tag: "Graceful", stage: "power button" })
      expect((yield* whats).slice(4)).toEqual(["start", "PowerButton", "ended", "released"])
    }).pipe(host))

  it.effect("of one machine by many share one shutdown; a harsher request hastens all", () =>
    Effect.gen(function*() {
      const { driver, runtime } = yield* setUp()
      yield* runtime.create(wanted("m"))
      yield* runtime.start("m")
      const first = yield* fork(runtime.stop("m", slowly))
      const second = yield* fork(runtime.destroy("m"))
      yield* pass("1 second")
      expect([isDone(first), isDone(second)]).toEqual([false, false])
      const third = yield* runtime.destroy("m", { request: { atLeast: "SIGTERM" } })
      expect(third).toEqual(Option.some(yield* Fiber.join(first)))
      expect(yield* Fiber.join(second)).toEqual(third)
      expect((yield* runtime.list).map(({ state }) => state)).toEqual(["destroyed"])
      expect((yield* driver.events).filter(({ what }) => what === "released").length).toBe(1)
    }).pipe(host))

  it.effect("return when all is released", () =>
    Effect.gen(function*() {
      const { driver, runtime, stateOf } = yield* setUp({ release: Effect.sleep("1 second") })
      yield* runtime.create(wanted("m"))
      yield* runtime.start("m")
      const stopped = yield* fork(runtime.stop("m"))
      yield* pass("999 millis")
      expect(yield* stateOf("m")).toEqual(Option.some("stopped"))
      expect(isDone(stopped)).toBe(false)
      yield* pass("1 millis")
      yield* Fiber.join(stopped)
      expect(yield* driver.claims).toEqual([])
    }).pipe(host))

  it.effect("a stage that is not there changes nothing", () =>
    Effect.gen(function*() {
      const { runtime, stateOf } = yield* setUp()
      yield* runtime.create(wanted("m"))
      yield* runtime.start("m")
      const request = { atLeast: "no such" }
      expect(yield* Effect.flip(runtime.stop("m", { request }))).toMatchObject({ _tag: "NoSuchStage" })
      expect(yield* Effect.flip(runtime.destroy("m", { request }))).toMatchObject({ _tag: "NoSuchStage" })
      expect(yield* stateOf("m")).toEqual(Option.some("running"))
    }).pipe(host))

  it.effect("what cannot be killed keeps its id, and can be destroyed when it has ended at last", () =>
    Effect.gen(function*() {
      const { driver, guest, runtime, stateOf } = yield* setUp(deaf)
      yield* runtime.create(wanted("m"))
      yield* runtime.start("m")
      const stop = yield* fork(runtime.stop("m"))
      yield* pass("8 seconds")
      expect(yield* Fiber.join(stop)).toMatchObject({ _tag: "Unkillable", survivors: { length: 1 } })
      expect(yield* stateOf("m")).toEqual(Option.some("stopping"))
      for (let attempt = 0; attempt < 2; attempt++) {
        expect(yield* reason(runtime.destroy("m"))).toMatchObject({ _tag: "OperationFailed", operation: "destroy" })
        expect(yield* stateOf("m")).toEqual(Option.some("stopping"))
      }
      expect((yield* reason(runtime.create(wanted("m"))))?._tag).toBe("MachineAlreadyExists")
      expect((yield* reason(runtime.start("m")))?._tag).toBe("InvalidTransition")
      yield* Effect.flatMap(guest("m"), ({ kill }) => kill("SIGKILL"))
      yield* Effect.yieldNow
      expect(yield* stateOf("m")).toEqual(Option.some("stopped"))
      yield* runtime.destroy("m")
      expect(yield* stateOf("m")).toEqual(Option.some("destroyed"))
      expect(yield* driver.claims).toEqual([])
    }).pipe(host))

  it.effect("a list makes nothing anew but what has changed", () =>
    Effect.gen(function*() {
      const { runtime } = yield* setUp()
      for (const id of ["a", "b"]) yield* runtime.create(wanted(id))
      const [a, b] = yield* runtime.list
      expect(yield* runtime.list).toEqual([a, b])
      yield* runtime.start("b")
      const [again, started] = yield* runtime.list
      expect(again).toBe(a)
      expect(started).toEqual({ ...b, state: "running" })
      yield* runtime.snapshot("a", "s")
      yield* runtime.removeSnapshot("a", "s")
      yield* runtime.snapshot("a", "t")
      expect((yield* runtime.list).map(({ snapshots }) => snapshots)).toEqual([["t"], []])
      expect(a?.snapshots).toEqual([])
    }).pipe(host))

  it.effect("only the latest destroyed machines are remembered", () =>
    Effect.gen(function*() {
      const { runtime } = yield* setUp({}, { retain: 2 })
      for (const id of ["d", "c", "b", "a"]) {
        yield* runtime.create(wanted(id))
        yield* runtime.destroy(id)
      }
      expect((yield* runtime.list).map(({ id }) => id)).toEqual(["a", "b"])
      yield* runtime.create(wanted("b"))
      yield* runtime.create(wanted("e"))
      for (const id of ["e", "a2"]) {
        if (id === "a2") yield* runtime.create(wanted(id))
        yield* runtime.destroy(id)
      }
      // "b" lives again: what is forgotten is the older record of that name.
      expect((yield* runtime.list).map(({ id, state }) => `${id} ${state}`)).toEqual([
        "a2 destroyed",
        "b created",
        "e destroyed"
      ])
    }).pipe(host))
})

describe("machines do not wait for each other", () => {
  it.effect("one in a slow stop, one in a hung launch, one in a hung pause: a fourth lives a whole life", () =>
    Effect.gen(function*() {
      const { driver, runtime } = yield* setUp()
      for (const id of ["slow", "hung"]) {
        yield* runtime.create(wanted(id))
        yield* runtime.start(id)
      }
      yield* fork(runtime.stop("slow", slowly))
      yield* driver.script("hung", { pause: Effect.never })
      yield* fork(runtime.pause("hung"))
      yield* driver.script("late", { launch: () => Effect.never })
      yield* fork(runtime.create(wanted("late")))

      const start = yield* Clock.currentTimeMillis
      yield* runtime.create(wanted("m"))
      yield* runtime.start("m")
      yield* runtime.pause("m")
      yield* runtime.resume("m")
      yield* runtime.snapshot("m", "s")
      yield* runtime.stop("m")
      yield* runtime.destroy("m")
      expect((yield* runtime.list).map(({ id, state }) => `${id} ${state}`)).toEqual([
        "hung running",
        "late creating",
        "m destroyed",
        "slow stopping"
      ])
      expect((yield* Clock.currentTimeMillis) - start).toBe(0)
      yield* fork(runtime.destroy("late"))
      yield* driver.script("*", {})
    }).pipe(host))

  it.effect("stopping many takes as long as stopping one", () =>
    Effect.gen(function*() {
      const { close, driver, runtime } = yield* setUp({
        request: (request, guest) => guest.background(Effect.delay(MemoryDriver.obey(request, guest), "800 millis"))
      })
      const ids = Array.from({ length: 100 }, (_, index) => `m${index}`)
      for (const id of ids) {
        yield* runtime.create(wanted(id))
        yield* runtime.start(id)
      }
      const closed = yield* fork(close)
      yield* pass("800 millis")
      yield* Fiber.join(closed)
      expect(yield* driver.claims).toEqual([])
    }).pipe(host))
})

describe("the scope of the runtime", () => {
  it.effect("breaks launches off, ends machines by the policy, and leaves nothing", () =>
    Effect.gen(function*() {
      const policy = ShutdownPolicy.makeUnsafe<MicroVmProvider.MachineRequest>([
        { name: "press", request: "PowerButton", grace: "3 seconds" },
        { name: "kill", request: "Kill", grace: "1 second", force: true }
      ])
      const { close, driver, runtime } = yield* setUp({}, { policy })
      yield* driver.script("deaf", {
        request: (request, guest) => request === "Kill" ? guest.kill("SIGKILL") : Effect.void
      })
      yield* driver.script("late", { launch: (step) => step === "connect" ? Effect.never : Effect.void })
      for (const id of ["deaf", "good", "gone"]) {
        yield* runtime.create(wanted(id))
        yield* runtime.start(id)
      }
      yield* runtime.stop("gone")
      yield* runtime.create(wanted("asleep"))
      const late = yield* fork(reason(runtime.create(wanted("late"))))
      yield* driver.script("gone", { launch: (step) => step === "spawn" ? Effect.never : Effect.void })
      const again = yield* fork(reason(runtime.start("gone")))
      const closed = yield* fork(close)
      yield* pass("2999 millis")
      expect(yield* driver.claims).toEqual([{ life: 1, id: "deaf" }])
      expect(yield* Fiber.join(late)).toMatchObject({ _tag: "OperationFailed", operation: "launch" })
      expect(yield* Fiber.join(again)).toMatchObject({ _tag: "OperationFailed", operation: "launch" })
      yield* pass("1 millis")
      yield* Fiber.join(closed)
      expect(yield* driver.claims).toEqual([])
      // Nothing comes up after that.
      expect(yield* reason(runtime.create(wanted("more")))).toMatchObject({ _tag: "OperationFailed" })
      expect(yield* driver.claims).toEqual([])
    }).pipe(host))

  it.effect("waits for a release that runs already", () =>
    Effect.gen(function*() {
      const { close, driver, guest, runtime } = yield* setUp({ release: Effect.sleep("3 seconds") })
      yield* runtime.create(wanted("m"))
      yield* Effect.flatMap(guest("m"), ({ powerOff }) => powerOff)
      yield* pass("1 second")
      const closed = yield* fork(close)
      yield* pass("1999 millis")
      expect(isDone(closed)).toBe(false)
      yield* pass("1 millis")
      yield* Fiber.join(closed)
      expect(yield* driver.claims).toEqual([])
    }).pipe(host))

  it.effect("is left in a bounded time when nothing can be killed", () =>
    Effect.gen(function*() {
      const { close, driver, runtime } = yield* setUp(deaf)
      for (const id of ["a", "b", "c"]) {
        yield* runtime.create(wanted(id))
        yield* runtime.start(id)
      }
      const stop = yield* fork(runtime.stop("a", slowly))
      const closed = yield* fork(close)
      yield* pass("1 hour")
      yield* pass("8 seconds")
      yield* Fiber.join(closed)
      expect(yield* Fiber.join(stop)).toMatchObject({ _tag: "Unkillable" })
      expect(yield* driver.claims).toEqual([])
    }).pipe(host))

  it.effect("forgets what could not be killed then, and has ended since", () =>
    Effect.gen(function*() {
      const { close, guest, runtime, stateOf } = yield* setUp(deaf)
      yield* runtime.create(wanted("m"))
      yield* runtime.start("m")
      const closed = yield* fork(close)
      yield* pass("1 hour")
      yield* Fiber.join(closed)
      expect(yield* stateOf("m")).toEqual(Option.some("stopping"))
      yield* Effect.flatMap(guest("m"), (one) => one.kill("SIGKILL"))
      const destroyed = yield* fork(runtime.destroy("m"))
      yield* pass(0)
      expect(isDone(destroyed)).toBe(true)
      expect(yield* stateOf("m")).toEqual(Option.some("destroyed"))
    }).pipe(host))
})

/** A runtime with a machine `m` that runs and has the snapshot `s`. */
const saved = Effect.fnUntraced(function*(script?: MemoryDriver.Script) {
  const store = yield* SnapshotStore.SnapshotStore
  const all = yield* setUp(script)
  yield* all.runtime.create(wanted("m"))
  yield* all.runtime.start("m")
  yield* all.runtime.snapshot("m", "s")
  return { ...all, store, of: { machine: "m", name: "s" } }
})

describe("snapshots", () => {
  it.effect("are broken off when the caller leaves: nothing is kept, the name is free, the guest goes on", () =>
    Effect.gen(function*() {
      const store = yield* SnapshotStore.SnapshotStore
      const { driver, runtime, stateOf, whats } = yield* setUp({ save: Effect.sleep("1 second") })
      yield* runtime.create(wanted("m"))
      yield* runtime.start("m")
      const left = yield* fork(runtime.snapshot("m", "s"))
      yield* Fiber.interrupt(left)
      expect((yield* whats).slice(4)).toEqual(["start", "pause", "save", "resume"])
      expect(yield* stateOf("m")).toEqual(Option.some("running"))
      yield* pass("1 second")
      expect(yield* runtime.listSnapshots("m")).toEqual(Option.some([]))
      expect(yield* store.list).toEqual([])
      yield* driver.script("*", {})
      yield* runtime.snapshot("m", "s")
    }).pipe(host))

  it.effect("are listed when made and stay through lives", () =>
    Effect.gen(function*() {
      const { driver, runtime, store } = yield* saved()
      yield* driver.script("*", { save: Effect.fail("no room") })
      expect(yield* reason(runtime.snapshot("m", "t"))).toMatchObject({ _tag: "OperationFailed", operation: "save" })
      yield* runtime.stop("m")
      yield* runtime.start("m")
      yield* driver.script("*", {})
      yield* runtime.snapshot("m", "u")
      expect(yield* runtime.listSnapshots("m")).toEqual(Option.some(["s", "u"]))
      expect((yield* reason(runtime.snapshot("m", "s")))?._tag).toBe("SnapshotAlreadyExists")
      expect((yield* store.list).map(({ manifest, names }) => [names, manifest?.kind, manifest?.labels])).toEqual([
        [[], "saved", { machine: "m", name: "u" }],
        [[], "saved", { machine: "m", name: "s" }]
      ])
    }).pipe(host))

  it.effect("of one name, asked for twice at once: one is made", () =>
    Effect.gen(function*() {
      const { runtime, whats } = yield* setUp({ save: Effect.sleep("1 second") })
      yield* runtime.create(wanted("m"))
      yield* runtime.start("m")
      const first = yield* fork(runtime.snapshot("m", "s"))
      const second = yield* fork(reason(runtime.snapshot("m", "s")))
      yield* pass("1 second")
      yield* Fiber.join(first)
      expect((yield* Fiber.join(second))?._tag).toBe("SnapshotAlreadyExists")
      expect((yield* whats).filter((what) => what === "save").length).toBe(1)
    }).pipe(host))

  it.effect("of two machines may have one name, and outlive their machines until they are removed", () =>
    Effect.gen(function*() {
      const { runtime, store } = yield* saved()
      yield* runtime.create(wanted("n"))
      yield* runtime.snapshot("n", "s")
      yield* runtime.destroy("m")
      yield* runtime.destroy("n")
      expect((yield* store.list).length).toBe(2)
      expect(yield* runtime.listSnapshots("m")).toEqual(Option.some(["s"]))
      yield* runtime.removeSnapshot("m", "s")
      expect(yield* runtime.listSnapshots("m")).toEqual(Option.some([]))
      expect((yield* store.list).map(({ manifest }) => manifest?.labels["machine"])).toEqual(["n"])
      expect(yield* reason(runtime.removeSnapshot("m", "s"))).toMatchObject({ _tag: "SnapshotNotFound", snapshot: "s" })
      expect((yield* reason(runtime.removeSnapshot("x", "s")))?._tag).toBe("MachineNotFound")
    }).pipe(host))

  it.effect("are not begun where the backend has none", () =>
    Effect.gen(function*() {
      const { runtime, whats } = yield* setUp()
      yield* runtime.create(wanted("m"))
      const real = yield* SnapshotStore.SnapshotStore
      expect((yield* reason(runtime.snapshot("m", "s")))?._tag).toBe("Unsupported")
      expect(yield* real.list).toEqual([])
      expect((yield* whats).includes("save")).toBe(false)
    }).pipe(Effect.provide(MemoryProvider.layerWith({ capabilities: { snapshot: false } }))))

  it.effect("of a machine that is destroyed meanwhile are not kept", () =>
    Effect.gen(function*() {
      const store = yield* SnapshotStore.SnapshotStore
      const { runtime } = yield* setUp({ save: Effect.never })
      yield* runtime.create(wanted("m"))
      yield* runtime.start("m")
      const made = yield* fork(reason(runtime.snapshot("m", "s")))
      const destroyed = yield* fork(runtime.destroy("m"))
      yield* pass("5 seconds")
      yield* Fiber.join(destroyed)
      expect(yield* Fiber.join(made)).toMatchObject({ _tag: "OperationFailed", operation: "snapshot" })
      expect(yield* store.list).toEqual([])
    }).pipe(host))
})

describe("restore", () => {
  it.effect("makes a machine that runs, from the memory of the other, by any name of the snapshot", () =>
    Effect.gen(function*() {
      const program = (guest: MemoryDriver.MemoryGuest) => guest.print(`${guest.memory.get("word") ?? "booted"} `)
      const { guest, runtime, store } = yield* saved({ program })
      yield* Effect.map(guest("m"), ({ memory }) => memory.set("word", "saved"))
      yield* runtime.snapshot("m", "t")
      yield* Effect.map(guest("m"), ({ memory }) => memory.set("word", "later"))
      const [stored] = yield* store.list
      yield* runtime.restore({ id: "a", snapshot: { machine: "m", name: "t" } })
      yield* runtime.restore({ id: "b", snapshot: stored?.id ?? "none" })
      for (const id of ["a", "b"]) {
        const machine = yield* Effect.flatMap(runtime.machine(id), Effect.fromOption)
        expect([yield* machine.state, yield* machine.consoleTail]).toEqual(["running", "saved "])
      }
      expect(yield* runtime.get("a")).toMatchObject(Option.some({ id: "a", spec: { id: "a" }, snapshots: [] }))
    }).pipe(host))

  it.effect("takes what is not said of the spec from the snapshot, but the host name", () =>
    Effect.gen(function*() {
      const { runtime } = yield* setUp()
      yield* runtime.create({ ...wanted("m"), vcpus: 3, hostname: "web", channels: ["a"] })
      yield* runtime.snapshot("m", "s")
      const view = yield* runtime.restore({ id: "n", snapshot: { machine: "m", name: "s" }, resume: false })
      expect(view.state).toBe("paused")
      expect(view.spec).toEqual({
        ...wanted("n"),
        vcpus: 3,
        memoryMib: 256,
        kernelArgs: [],
        channels: ["a"],
        networks: [],
        drives: []
      })
    }).pipe(host))

  it.effect("says what is wrong before anything is done", () =>
    Effect.gen(function*() {
      const { driver, of, runtime, store, whats } = yield* saved()
      const before = yield* whats
      const tag = (id: string, snapshot: MicroVmRuntime.RestoreOptions["snapshot"]) =>
        Effect.map(reason(runtime.restore({ id, snapshot })), (found) => found?._tag)
      expect(yield* tag("n", "no-such")).toBe("SnapshotNotFound")
      expect(yield* tag("n", { machine: "m", name: "t" })).toBe("SnapshotNotFound")
      expect(yield* tag("n", { machine: "x", name: "s" })).toBe("MachineNotFound")
      expect(yield* tag("../n", of)).toBe("InvalidSpec")
      expect(yield* tag("m", of)).toBe("MachineAlreadyExists")
      yield* driver.platform({ cpu: "another" })
      expect(yield* reason(runtime.restore({ id: "n", snapshot: of }))).toMatchObject({
        _tag: "SnapshotUnusable",
        why: ["its cpu is not told, here it is another"]
      })
      const [stored] = yield* store.list
      yield* driver.corrupt(stored?.id ?? "none", "its memory was changed")
      expect(yield* reason(runtime.restore({ id: "n", snapshot: of }))).toMatchObject({
        _tag: "SnapshotUnusable",
        why: ["its memory was changed"]
      })
      expect(yield* whats).toEqual(before)
      expect((yield* runtime.list).map(({ id }) => id)).toEqual(["m"])
    }).pipe(host))

  it.effect("of one id by many at once: one launch, the others are told", () =>
    Effect.gen(function*() {
      const { driver, of, runtime } = yield* saved()
      yield* driver.script("*", { launch: () => Effect.sleep("1 second") })
      const restores = Array.from({ length: 5 }, () => Effect.result(runtime.restore({ id: "n", snapshot: of })))
      const all = yield* fork(Effect.all(restores, { concurrency: "unbounded" }))
      yield* pass("4 seconds")
      const results = yield* Fiber.join(all)
      expect(results.filter(Result.isSuccess).length).toBe(1)
      expect(results.filter(Result.isFailure).map(({ failure }) => failure.reason)).toEqual(
        Array.from({ length: 4 }, () => new MicroVmError.MachineAlreadyExists({ id: "n" }))
      )
    }).pipe(host))

  it.effect.each(["claim", "spawn", "connect", "restore", "resume"] as const)(
    "that fails or is interrupted at %s leaves nothing",
    (step) =>
      Effect.gen(function*() {
        const { driver, of, runtime } = yield* saved()
        const at = (then: Effect.Effect<void, string>): MemoryDriver.Script => ({
          launch: (reached) => reached === step ? then : Effect.void,
          resume: step === "resume" ? then : Effect.void
        })
        yield* driver.script("n", at(Effect.fail("no room")))
        expect(yield* reason(runtime.restore({ id: "n", snapshot: of }))).toMatchObject({ cause: "no room" })
        expect((yield* driver.claims).map(({ id }) => id)).toEqual(["m"])
        yield* driver.script("n", at(Effect.never))
        const left = yield* fork(runtime.restore({ id: "n", snapshot: of }))
        expect(isDone(left)).toBe(false)
        const interrupted = yield* fork(Fiber.interrupt(left))
        // A guest that hangs in its resume is ended by the policy.
        yield* pass("5 seconds")
        yield* Fiber.join(interrupted)
        expect((yield* runtime.list).map(({ id }) => id)).toEqual(["m"])
        expect((yield* driver.claims).map(({ id }) => id)).toEqual(["m"])
        yield* driver.script("n", {})
        yield* runtime.restore({ id: "n", snapshot: of })
      }).pipe(host)
  )

  it.effect("is broken off by a destroy, and by the end of the runtime", () =>
    Effect.gen(function*() {
      for (const end of ["destroy", "close"] as const) {
        const { close, driver, of, runtime } = yield* saved()
        yield* driver.script("n", { launch: (step) => step === "restore" ? Effect.never : Effect.void })
        const restored = yield* fork(reason(runtime.restore({ id: "n", snapshot: of })))
        yield* end === "destroy" ? runtime.destroy("n") : close
        expect(yield* Fiber.join(restored)).toMatchObject({ _tag: "OperationFailed", operation: "launch" })
        expect((yield* driver.claims).map(({ id }) => id)).toEqual(end === "destroy" ? ["m"] : [])
        yield* close
      }
    }).pipe(host))

  it.effect("and a start later: from the same snapshot again, as long as it is there", () =>
    Effect.gen(function*() {
      const program = (guest: MemoryDriver.MemoryGuest) =>
        Effect.andThen(
          guest.print(`${guest.memory.get("word") ?? "fresh"} `),
          Effect.sync(() => void guest.memory.set("word", "used"))
        )
      const { of, runtime, stateOf, whats } = yield* saved()
      const driver = yield* MemoryDriver.MemoryDriver
      yield* driver.script("n", { program })
      yield* runtime.restore({ id: "n", snapshot: of })
      yield* runtime.stop("n")
      yield* runtime.start("n")
      const machine = yield* Effect.flatMap(runtime.machine("n"), Effect.fromOption)
      expect(yield* machine.consoleTail).toBe("fresh ")
      expect((yield* whats).slice(-6)).toEqual(["claim", "spawn", "connect", "restore", "launched", "resume"])
      yield* runtime.rename("n", "o")
      yield* runtime.stop("o")
      yield* runtime.start("o")
      yield* runtime.stop("o")
      yield* runtime.removeSnapshot("m", "s")
      expect((yield* reason(runtime.start("o")))?._tag).toBe("SnapshotNotFound")
      expect(yield* stateOf("o")).toEqual(Option.some("stopped"))
    }).pipe(host))
})

describe("rename", () => {
  it.effect("waits its turn, and those behind it follow the machine", () =>
    Effect.gen(function*() {
      const { runtime, stateOf } = yield* setUp({ pause: Effect.sleep("1 second") })
      yield* runtime.create(wanted("m"))
      yield* runtime.start("m")
      const pause = yield* fork(runtime.pause("m"))
      const rename = yield* fork(runtime.rename("m", "n"))
      const resume = yield* fork(runtime.resume("m"))
      yield* pass("1 second")
      yield* Effect.all([Fiber.join(pause), Fiber.join(rename), Fiber.join(resume)])
      expect(yield* stateOf("m")).toEqual(Option.none())
      expect(yield* stateOf("n")).toEqual(Option.some("running"))
      yield* runtime.stop("n")
      yield* runtime.start("n")
      expect(yield* runtime.get("n")).toMatchObject(Option.some({ id: "n", spec: { id: "n" } }))
    }).pipe(host))

  it.effect("of two machines to one id at once: one gets it", () =>
    Effect.gen(function*() {
      const { runtime } = yield* setUp()
      yield* runtime.create(wanted("a"))
      yield* runtime.create(wanted("b"))
      const results = yield* Effect.all([
        Effect.result(runtime.rename("a", "c")),
        Effect.result(runtime.rename("b", "c"))
      ], {
        concurrency: "unbounded"
      })
      expect(results.map(Result.isSuccess)).toEqual([true, false])
      expect((yield* runtime.list).map(({ id }) => id)).toEqual(["b", "c"])
    }).pipe(host))
})
