import { describe, expect, it } from "@effect/vitest"
import { ShutdownPolicy } from "effect-microvm-runtime/lifecycle"
import {
  type Machine,
  MachineState,
  MemoryDriver,
  MemoryProvider,
  MicroVmError,
  MicroVmProvider,
  MicroVmRuntime
} from "effect-microvm-runtime/microvm"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import { fork, isDone, pass, reason, wanted } from "./support.ts"

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
})

describe("snapshots", () => {
  it.effect("keep their name while they are made, also when the caller has left", () =>
    Effect.gen(function*() {
      const { runtime } = yield* setUp({ snapshot: Effect.sleep("1 second") })
      yield* runtime.create(wanted("m"))
      yield* runtime.start("m")
      const left = yield* fork(runtime.snapshot("m", "s"))
      yield* Fiber.interrupt(left)
      expect((yield* reason(runtime.snapshot("m", "s")))?._tag).toBe("SnapshotAlreadyExists")
      yield* pass("1 second")
      expect(yield* runtime.listSnapshots("m")).toEqual(Option.some(["s"]))
    }).pipe(host))

  it.effect("are listed when made, also if the caller has left, and stay through lives", () =>
    Effect.gen(function*() {
      const { driver, runtime } = yield* setUp({ snapshot: Effect.sleep("1 second") })
      yield* runtime.create(wanted("m"))
      yield* runtime.start("m")
      const left = yield* fork(runtime.snapshot("m", "one"))
      yield* Fiber.interrupt(left)
      expect(yield* runtime.listSnapshots("m")).toEqual(Option.some([]))
      yield* pass("1 second")
      yield* driver.script("*", {})
      yield* runtime.snapshot("m", "two")
      yield* driver.script("*", { snapshot: Effect.fail("no room") })
      expect(yield* reason(runtime.snapshot("m", "three"))).toMatchObject({ _tag: "OperationFailed" })
      yield* runtime.stop("m")
      yield* runtime.start("m")
      expect(yield* runtime.listSnapshots("m")).toEqual(Option.some(["one", "two"]))
      expect((yield* reason(runtime.snapshot("m", "one")))?._tag).toBe("SnapshotAlreadyExists")
    }).pipe(host))

  it.effect("of one name, asked for twice at once: one is made", () =>
    Effect.gen(function*() {
      const { runtime, whats } = yield* setUp({ snapshot: Effect.sleep("1 second") })
      yield* runtime.create(wanted("m"))
      yield* runtime.start("m")
      const first = yield* fork(runtime.snapshot("m", "s"))
      const second = yield* fork(reason(runtime.snapshot("m", "s")))
      yield* pass("1 second")
      yield* Fiber.join(first)
      expect((yield* Fiber.join(second))?._tag).toBe("SnapshotAlreadyExists")
      expect((yield* whats).filter((what) => what === "snapshot").length).toBe(1)
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
