import { describe, expect, it } from "@effect/vitest"
import { ShutdownOutcome, ShutdownPolicy } from "effect-microvm-runtime/lifecycle"
import {
  Machine,
  MachineEnd,
  MachineSpec,
  MachineState,
  MemoryDriver,
  MemoryProvider,
  MicroVmError,
  MicroVmProvider
} from "effect-microvm-runtime/microvm"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import { reason } from "./support.ts"

const spec = MachineSpec.decode({ id: "m", kernel: "/boot/vmlinux", channels: ["agent"] })

/** A launched machine, its scope, and the driver. */
const launched = Effect.fnUntraced(function*(script: MemoryDriver.Script = {}, options?: Machine.LaunchOptions) {
  const driver = yield* MemoryDriver.MemoryDriver
  yield* driver.script("*", script)
  const scope = yield* Effect.acquireRelease(Scope.make(), (made) => Scope.close(made, Exit.void))
  const machine = yield* Scope.provide(Machine.launch(yield* spec, options), scope)
  const guest = yield* driver.guest("m")
  // Whatever a test leaves hanging: its scope closes without a clock that somebody moves.
  yield* Effect.addFinalizer(() => guest.kill("SIGKILL"))
  return {
    driver,
    machine,
    guest,
    /** What the backend was asked for since its launch. */
    asked: Effect.map(driver.events, (events) => events.map(({ what }) => what).slice(4)),
    close: Scope.close(scope, Exit.void)
  }
})
type Launched = Effect.Success<ReturnType<typeof launched>>

const running = Effect.fnUntraced(function*(script?: MemoryDriver.Script, options?: Machine.LaunchOptions) {
  const all = yield* launched(script, options)
  yield* all.machine.start
  return all
})

const deaf = { request: () => Effect.void }
const only = (...heard: ReadonlyArray<MicroVmProvider.MachineRequest>): MemoryDriver.Script => ({
  request: (request, guest) => heard.includes(request) ? MemoryDriver.obey(request, guest) : Effect.void
})

/** A shutdown and how long it takes. */
const timed = (machine: Machine.Machine, options?: Machine.ShutdownOptions) =>
  Effect.gen(function*() {
    const start = yield* Clock.currentTimeMillis
    const outcome = yield* machine.shutdown(options)
    const stages = outcome.stages.map(({ end, name }) => `${name} ${end}`)
    return { outcome, stages, millis: (yield* Clock.currentTimeMillis) - start }
  }).pipe(Effect.forkChild({ startImmediately: true }))

const settled = <A, E>(fiber: Fiber.Fiber<A, E>) => Effect.andThen(TestClock.adjust("1 hour"), Fiber.join(fiber))

const host = Effect.provide(MemoryProvider.layer)

describe("a launch", () => {
  it.effect("checks a specification that only claims to be one, before anything is done", () =>
    Effect.gen(function*() {
      const driver = yield* MemoryDriver.MemoryDriver
      const forged = { ...(yield* spec), vcpus: -1, memoryMib: Number.NaN, channels: ["x,chardev=foo"] }
      const error = yield* Effect.flip(Effect.scoped(Machine.launch(forged)))
      expect(error.reason).toMatchObject({ _tag: "InvalidSpec" })
      expect(error.reason._tag === "InvalidSpec" && error.reason.faults.length).toBe(3)
      expect(yield* driver.events).toEqual([])
    }).pipe(host))
})

describe("operations by state", () => {
  const reach: { readonly [S in MachineState.MachineState]?: (all: Launched) => Effect.Effect<unknown, unknown> } = {
    created: () => Effect.void,
    running: ({ machine }) => machine.start,
    paused: ({ machine }) => Effect.andThen(machine.start, machine.pause),
    stopping: ({ machine }) =>
      Effect.andThen(
        machine.start,
        Effect.forkDetach(machine.shutdown({ leading: [{ name: "wait", request: Effect.void, grace: "1 hour" }] }), {
          startImmediately: true
        })
      ),
    stopped: ({ machine }) => Effect.andThen(machine.start, machine.shutdown()),
    crashed: ({ guest, machine }) => Effect.andThen(Effect.andThen(machine.start, guest.crash("x")), machine.ended),
    destroyed: ({ close }) => close
  }
  const operations = {
    start: (machine: Machine.Machine) => machine.start,
    pause: (machine: Machine.Machine) => machine.pause,
    resume: (machine: Machine.Machine) => machine.resume,
    snapshot: (machine: Machine.Machine) => Effect.asVoid(machine.save("/s"))
  }
  /** What the backend is asked for to do it. */
  const steps = (operation: keyof typeof operations, state: MachineState.MachineState) =>
    operation !== "snapshot" ? [operation] : state === "running" ? ["pause", "save", "resume"] : ["save"]
  const cells = MachineState.MachineState.literals.flatMap((state) =>
    (["start", "pause", "resume", "snapshot"] as const).map((operation) => ({ state, operation }))
  ).filter(({ state }) => state !== "creating")

  it.effect.each(cells)("$operation in $state", ({ operation, state }) =>
    Effect.gen(function*() {
      const all = yield* launched()
      yield* reach[state]?.(all) ?? Effect.die("unreachable")
      expect(yield* all.machine.state).toBe(state)
      const handled = new Set(["start", "pause", "resume", "snapshot", "stop"])
      const before = yield* all.asked
      const result = yield* Effect.result(operations[operation](all.machine))
      // One life only: a machine that is over does not start again by its handle.
      const to = MachineState.isOver(state) ? Option.none() : MachineState.next(state, operation)
      const asked = (yield* all.asked).slice(before.length)
      const expected = Option.match(to, {
        onNone: () => {
          const refusal = new MicroVmError.InvalidTransition({
            id: "m",
            from: state,
            to: MachineState.goals[operation],
            possible: MachineState.isOver(state) ? [] : MachineState.possible(state).filter((one) => handled.has(one))
          })
          return { result: Result.fail(MicroVmError.make(refusal)), asked: [], state }
        },
        onSome: (end) => ({ result: Result.succeed(undefined), asked: steps(operation, state), state: end })
      })
      expect({ result, asked, state: yield* all.machine.state }).toEqual(expected)
    }).pipe(host))

  it.effect.each(["start", "pause", "resume", "snapshot"] as const)(
    "%s that fails changes nothing",
    (operation) =>
      Effect.gen(function*() {
        const all = yield* launched()
        if (operation !== "start") yield* all.machine.start
        if (operation === "resume") yield* all.machine.pause
        const state = yield* all.machine.state
        const asked = operation === "snapshot" ? "save" : operation
        yield* all.driver.script("*", { [asked]: Effect.fail("no memory") })
        expect(yield* reason(operations[operation](all.machine))).toMatchObject({
          _tag: "OperationFailed",
          operation: asked,
          cause: "no memory"
        })
        expect(yield* all.machine.state).toBe(state)
        yield* all.driver.script("*", {})
        yield* operations[operation](all.machine)
      }).pipe(host)
  )

  it.effect("what the backend cannot do is refused without asking it", () =>
    Effect.gen(function*() {
      const { asked, machine } = yield* running()
      for (const operation of [machine.pause, machine.save("/s")]) {
        expect(yield* reason(operation)).toMatchObject({ _tag: "Unsupported", backend: "memory" })
      }
      expect(yield* asked).toEqual(["start"])
    }).pipe(Effect.provide(MemoryProvider.layerWith({ capabilities: { pause: false, snapshot: false } }))))
})

describe("operations on one machine", () => {
  it.effect("run one at a time, in the order of their calls", () =>
    Effect.gen(function*() {
      const slow = Effect.sleep("1 second")
      const { asked, machine } = yield* launched({ start: slow, pause: slow, resume: slow, save: slow })
      const { pause, resume, start } = machine
      const calls = [start, pause, resume, machine.save("/s"), pause]
      const all = yield* Effect.forkChild(Effect.all(calls, { concurrency: "unbounded" }))
      yield* TestClock.adjust("6500 millis")
      expect(yield* asked).toEqual(["start", "pause", "resume", "pause", "save", "resume", "pause"])
      expect(yield* machine.state).toBe("running")
      yield* TestClock.adjust("500 millis")
      yield* Fiber.join(all)
      expect(yield* machine.state).toBe("paused")
    }).pipe(host))

  it.effect("are carried through when the caller leaves, and not begun when it leaves the queue", () =>
    Effect.gen(function*() {
      const { asked, machine } = yield* running({ pause: Effect.sleep("1 second") })
      const begun = yield* Effect.forkChild(machine.pause, { startImmediately: true })
      const queued = yield* Effect.forkChild(machine.resume, { startImmediately: true })
      yield* Fiber.interrupt(queued)
      yield* Fiber.interrupt(begun)
      expect(yield* machine.state).toBe("running")
      yield* TestClock.adjust("1 second")
      expect(yield* machine.state).toBe("paused")
      expect(yield* asked).toEqual(["start", "pause"])
    }).pipe(host))

  it.effect.each(["start", "pause", "resume", "snapshot"] as const)(
    "fail when the machine ends under them: %s",
    (operation) =>
      Effect.gen(function*() {
        const { driver, guest, machine } = yield* launched()
        if (operation !== "start") yield* machine.start
        if (operation === "resume") yield* machine.pause
        yield* driver.script("*", { [operation === "snapshot" ? "save" : operation]: Effect.never })
        const call = operation === "snapshot" ? Effect.asVoid(machine.save("/s")) : machine[operation]
        const hung = yield* Effect.forkChild(reason(call), { startImmediately: true })
        const queued = yield* Effect.forkChild(reason(machine.pause), { startImmediately: true })
        yield* guest.kill("SIGSEGV")
        expect(yield* Fiber.join(hung)).toMatchObject({
          _tag: "OperationFailed",
          operation,
          cause: new Error("the monitor was killed by SIGSEGV")
        })
        expect(yield* Fiber.join(queued)).toMatchObject({ _tag: "InvalidTransition", from: "crashed" })
      }).pipe(host)
  )

  it.effect("do not outlive a machine that cannot be killed", () =>
    Effect.gen(function*() {
      const { close, driver, machine } = yield* running(deaf)
      yield* driver.script("*", { ...deaf, pause: Effect.never })
      const hung = yield* Effect.forkChild(reason(machine.pause), { startImmediately: true })
      yield* settled(yield* Effect.forkChild(close, { startImmediately: true }))
      expect(yield* Fiber.join(hung)).toMatchObject({ _tag: "OperationFailed" })
    }).pipe(host))
})

describe("the end of a machine", () => {
  it.effect.each(
    [
      ["powerOff", "PoweredOff", "stopped"],
      ["reboot", "Reset", "stopped"],
      ["panic", "Panicked", "crashed"],
      ["quit", "Stopped", "crashed"]
    ] as const
  )("by %s, that nobody asked for", ([how, tag, state]) =>
    Effect.gen(function*() {
      const { asked, guest, machine } = yield* running()
      expect(yield* machine.poll).toEqual(Option.none())
      yield* guest.print("last words")
      yield* guest[how]
      const end = yield* machine.ended
      expect(end).toMatchObject({ _tag: tag, consoleTail: "last words" })
      expect(yield* machine.poll).toEqual(Option.some(end))
      expect(yield* machine.state).toBe(state)
      expect(yield* machine.consoleTail).toBe("last words")
      const outcome = yield* machine.shutdown()
      expect(outcome).toMatchObject({ _tag: "AlreadyExited", stages: [] })
      expect(yield* machine.state).toBe(state)
      expect(yield* asked).toEqual(["start", "ended"])
    }).pipe(host))

  it.effect("a crash is seen before anybody asks, in each state", () =>
    Effect.gen(function*() {
      for (const before of ["created", "running", "paused"]) {
        const { close, guest, machine } = yield* launched()
        if (before !== "created") yield* machine.start
        if (before === "paused") yield* machine.pause
        const seen = yield* machine.changes.pipe(Stream.runCollect, Effect.forkChild({ startImmediately: true }))
        yield* guest.crash("out of memory")
        yield* Effect.yieldNow
        expect(yield* machine.state).toBe("crashed")
        expect(yield* machine.ended).toMatchObject({ _tag: "Failed", why: "out of memory" })
        yield* close
        expect(yield* Fiber.join(seen)).toEqual([before, "crashed", "destroyed"])
      }
    }).pipe(host))

  it.effect("during a shutdown is as asked, whatever it is", () =>
    Effect.gen(function*() {
      const { guest, machine } = yield* running(deaf)
      const shutdown = yield* timed(machine)
      yield* TestClock.adjust("1 second")
      yield* guest.panic
      const { outcome, stages } = yield* Fiber.join(shutdown)
      expect([outcome._tag, ...stages]).toEqual(["Graceful", "power button ended"])
      expect(yield* machine.state).toBe("stopped")
      expect(yield* machine.ended).toMatchObject({ _tag: "Panicked" })
    }).pipe(host))

  it.effect("tells by its outcome whether the guest has said that all is written", () =>
    Effect.gen(function*() {
      const said = "microvm-shutdown: all is written, poweroff\r\n"
      const acknowledged = Effect.fnUntraced(function*(console: string, script: MemoryDriver.Script) {
        const { close, guest, machine } = yield* running(script)
        yield* guest.print(console)
        const shutdown = yield* timed(machine)
        yield* TestClock.adjust("1 minute")
        const { outcome } = yield* Fiber.join(shutdown)
        yield* close
        return [outcome._tag, outcome.acknowledged]
      })
      expect(yield* acknowledged(said, { request: MemoryDriver.obey })).toEqual(["Graceful", "yes"])
      expect(yield* acknowledged("", { request: MemoryDriver.obey })).toEqual(["Graceful", "unknown"])
      expect(yield* acknowledged("", only("Kill"))).toEqual(["Forced", "no"])
      expect(yield* acknowledged(said, only("Kill"))).toEqual(["Forced", "yes"])
    }).pipe(host))

  it.effect("is told to late readers of the changes", () =>
    Effect.gen(function*() {
      const { close, machine } = yield* running()
      yield* close
      expect(yield* Stream.runCollect(machine.changes)).toEqual(["destroyed"])
      expect(yield* machine.state).toBe("destroyed")
      expect(yield* machine.ended).toMatchObject({ _tag: "PoweredOff" })
    }).pipe(host))
})

describe("shutdown", () => {
  it.effect.each(
    [
      ["all", MemoryDriver.obey, "Graceful", ["power button ended"], 0],
      ["all but the power button", only("Terminate", "Kill").request, "Forced", [
        "power button deadline",
        "SIGTERM ended"
      ], 5000],
      ["SIGKILL", only("Kill").request, "Forced", [
        "power button deadline",
        "SIGTERM deadline",
        "SIGKILL ended"
      ], 6000],
      ["nothing", deaf.request, "Unkillable", [
        "power button deadline",
        "SIGTERM deadline",
        "SIGKILL deadline"
      ], 8000]
    ] as const
  )("of a machine that hears %s", ([, request, tag, expected, after]) =>
    Effect.gen(function*() {
      const { machine } = yield* running({ request })
      const { millis, outcome, stages } = yield* settled(yield* timed(machine))
      expect([outcome._tag, stages, millis]).toEqual([tag, expected, after])
      expect(yield* machine.state).toBe(tag === "Unkillable" ? "stopping" : "stopped")
    }).pipe(host))

  it.effect("has no power button where the backend has none", () =>
    Effect.gen(function*() {
      const { machine } = yield* running()
      const { stages } = yield* Fiber.join(yield* timed(machine))
      expect(stages).toEqual(["SIGTERM ended"])
    }).pipe(Effect.provide(MemoryProvider.layerWith({ capabilities: { powerButton: false } }))))

  it.effect("a leading stage that works is all there is", () =>
    Effect.gen(function*() {
      const { asked, guest, machine } = yield* running()
      const request = guest.background(Effect.delay(guest.powerOff, "3 seconds"))
      const { millis, outcome, stages } = yield* settled(
        yield* timed(machine, { leading: [{ name: "agent", request, grace: "4 seconds" }] })
      )
      expect([outcome._tag, stages, millis]).toEqual(["Graceful", ["agent ended"], 3000])
      expect(yield* asked).toEqual(["start", "ended"])
    }).pipe(host))

  it.effect("a leading stage that fails is followed at once, and its error kept", () =>
    Effect.gen(function*() {
      const { machine } = yield* running()
      const { millis, outcome, stages } = yield* settled(
        yield* timed(machine, { leading: [{ name: "agent", request: Effect.fail("no agent"), grace: "4 seconds" }] })
      )
      expect([stages, millis]).toEqual([["agent failed", "power button ended"], 0])
      expect(ShutdownOutcome.errors(outcome)).toEqual(["no agent"])
    }).pipe(host))

  it.effect("a leading stage that hangs is broken off at its deadline", () =>
    Effect.gen(function*() {
      const { machine } = yield* running()
      let interrupted = false
      const request = Effect.onInterrupt(Effect.never, () =>
        Effect.sync(() => {
          interrupted = true
        }))
      const { millis, stages } = yield* settled(
        yield* timed(machine, { leading: [{ name: "agent", request, grace: "4 seconds" }] })
      )
      expect([stages, millis, interrupted]).toEqual([["agent deadline", "power button ended"], 4000, true])
    }).pipe(host))

  it.effect("the first call brings the stages, later ones hasten", () =>
    Effect.gen(function*() {
      const { machine } = yield* running(deaf)
      const policy = ShutdownPolicy.makeUnsafe<MicroVmProvider.MachineRequest>([
        { name: "first", request: "PowerButton", grace: "10 seconds" },
        { name: "second", request: "PowerButton", grace: "10 seconds" },
        { name: "third", request: "Terminate", grace: "10 seconds", force: true }
      ])
      const one = yield* timed(machine, { policy })
      const two = yield* timed(machine)
      yield* TestClock.adjust("1 second")
      const three = yield* timed(machine, { request: { atLeast: "next" } })
      yield* TestClock.adjust("1 second")
      const four = yield* timed(machine, { request: { within: "3 seconds" } })
      expect(yield* Effect.flip(machine.shutdown({ request: { atLeast: "SIGKILL" } }))).toMatchObject({
        _tag: "NoSuchStage",
        stages: ["first", "second", "third"]
      })
      const results = [yield* settled(one), yield* settled(two), yield* settled(three), yield* settled(four)]
      expect(results.map(({ millis }) => millis)).toEqual([15_000, 15_000, 14_000, 13_000])
      expect(new Set(results.map(({ outcome }) => outcome)).size).toBe(1)
      expect(results[0]?.stages).toEqual(["first hastened", "second hastened", "third deadline"])
    }).pipe(host))

  it.effect("stages that cannot be leave the machine as it is, and bind no later call", () =>
    Effect.gen(function*() {
      const { asked, machine } = yield* running()
      const leading = [{ name: "SIGTERM", request: Effect.void, grace: "Infinity" as const }]
      expect(yield* Effect.flip(machine.shutdown({ leading }))).toMatchObject({
        _tag: "ShutdownPolicyError",
        faults: { length: 2 }
      })
      const other = [{ name: "other", request: Effect.void, grace: "1 second" as const }]
      expect(yield* Effect.flip(machine.shutdown({ leading: other, request: { atLeast: "sigterm" } }))).toMatchObject({
        _tag: "NoSuchStage"
      })
      expect(yield* machine.state).toBe("running")
      expect(yield* asked).toEqual(["start"])
      const { stages } = yield* Fiber.join(yield* timed(machine))
      expect(stages).toEqual(["power button ended"])
    }).pipe(host))

  it.effect("wakes a paused guest so that it can hear", () =>
    Effect.gen(function*() {
      const { asked, machine } = yield* running()
      yield* machine.pause
      const { millis, stages } = yield* settled(yield* timed(machine))
      expect([stages, millis]).toEqual([["power button ended"], 0])
      expect(yield* asked).toEqual(["start", "pause", "resume", "PowerButton", "ended"])
    }).pipe(host))

  it.effect("goes on to SIGTERM at once when a paused guest cannot be woken", () =>
    Effect.gen(function*() {
      const { asked, machine } = yield* running({ resume: Effect.fail("stuck") })
      yield* machine.pause
      const leading = [{ name: "agent", request: Effect.die("not called"), grace: "1 hour" as const }]
      const { millis, stages } = yield* settled(yield* timed(machine, { leading }))
      expect([stages, millis]).toEqual([["agent failed", "power button failed", "SIGTERM ended"], 0])
      expect(yield* asked).toEqual(["start", "pause", "resume", "resume", "Terminate", "ended"])
    }).pipe(host))

  it.effect("that meets an operation under way takes over, and wakes what that has paused", () =>
    Effect.gen(function*() {
      const { asked, machine } = yield* running({ pause: Effect.sleep("3 seconds") })
      const pause = yield* Effect.forkChild(machine.pause, { startImmediately: true })
      const queued = yield* Effect.forkChild(reason(machine.resume), { startImmediately: true })
      const shutdown = yield* timed(machine)
      expect(yield* machine.state).toBe("stopping")
      const { millis, stages } = yield* settled(shutdown)
      expect([stages, millis]).toEqual([["power button ended"], 3000])
      yield* Fiber.join(pause)
      expect(yield* Fiber.join(queued)).toMatchObject({ _tag: "InvalidTransition", from: "stopping" })
      expect(yield* asked).toEqual(["start", "pause", "resume", "PowerButton", "ended"])
    }).pipe(host))

  it.effect("does not wait for an operation that hangs", () =>
    Effect.gen(function*() {
      const { machine } = yield* running({ pause: Effect.never })
      const pause = yield* Effect.forkChild(reason(machine.pause), { startImmediately: true })
      const { millis, stages } = yield* settled(yield* timed(machine))
      expect([stages, millis]).toEqual([["power button deadline", "SIGTERM ended"], 5000])
      expect(yield* Fiber.join(pause)).toMatchObject({ _tag: "OperationFailed", operation: "pause" })
    }).pipe(host))

  const never: Machine.ShutdownOptions = { leading: [{ name: "agent", request: Effect.never, grace: "1 hour" }] }
  it.effect.each<readonly [string, Machine.ShutdownOptions, ReadonlyArray<string>]>([
    ["by the policy", {}, ["SIGTERM ended"]],
    ["with a leading stage", never, ["SIGTERM ended"]],
    ["from a stage for the guest on", { ...never, request: { atLeast: "agent" } }, ["SIGTERM ended"]],
    ["from the next stage on", { ...never, request: { atLeast: "next" } }, ["SIGTERM ended"]],
    ["from SIGKILL on", { ...never, request: { atLeast: "SIGKILL" } }, ["SIGKILL ended"]]
  ])("does not ask a guest that never ran: %s", ([, options, expected]) =>
    Effect.gen(function*() {
      const { machine } = yield* launched()
      expect((yield* Fiber.join(yield* timed(machine, options))).stages).toEqual(expected)
      expect(yield* machine.state).toBe("stopped")
    }).pipe(host))

  it.effect("uses the last stage where all are for the guest and it never ran", () =>
    Effect.gen(function*() {
      const { machine } = yield* launched()
      const policy = ShutdownPolicy.makeUnsafe<MicroVmProvider.MachineRequest>([
        { name: "press", request: "PowerButton", grace: "1 second" },
        { name: "press again", request: "PowerButton", grace: "1 second" }
      ])
      expect((yield* settled(yield* timed(machine, { policy }))).stages).toEqual(["press again ended"])
    }).pipe(host))

  it.effect("gives more time when asked to, up to the stage's cap", () =>
    Effect.gen(function*() {
      const policy = ShutdownPolicy.makeUnsafe<MicroVmProvider.MachineRequest>([
        { name: "press", request: "PowerButton", grace: "1 second", maxExtension: "2 seconds" },
        { name: "kill", request: "Kill", grace: "1 second", force: true }
      ])
      const { machine } = yield* running(only("Kill"), { policy })
      expect(yield* machine.extendShutdown("1 second")).toEqual(Duration.zero)
      const shutdown = yield* timed(machine)
      expect(yield* machine.extendShutdown("1 minute")).toEqual(Duration.seconds(2))
      const { millis, stages } = yield* settled(shutdown)
      expect([stages, millis]).toEqual([["press deadline", "kill ended"], 3000])
    }).pipe(host))

  it.effect("goes on when a caller leaves", () =>
    Effect.gen(function*() {
      const { machine } = yield* running(only("Kill"))
      const shutdown = yield* timed(machine)
      yield* Fiber.interrupt(shutdown)
      yield* TestClock.adjust("6 seconds")
      expect(yield* machine.state).toBe("stopped")
    }).pipe(host))

  it.effect("names what it leaves behind", () =>
    Effect.gen(function*() {
      const survivors = [{ pid: 7, command: "helper", why: "outside the kill scope" }]
      const { machine } = yield* running({ survivors })
      const { outcome } = yield* Fiber.join(yield* timed(machine))
      expect(outcome).toMatchObject({ _tag: "Survivors", survivors })
    }).pipe(host))

  it.effect("tells of its stages", () =>
    Effect.gen(function*() {
      const { machine } = yield* running(only("Terminate"))
      const events: Array<string> = []
      const onEvent: Machine.ShutdownOptions["onEvent"] = (event) =>
        Effect.flatMap(machine.state, (state) => Effect.sync(() => void events.push(`${event._tag} in ${state}`)))
      yield* settled(yield* timed(machine, { onEvent }))
      expect(events).toEqual([
        "StageStarted in stopping",
        "StageEnded in stopping",
        "StageStarted in stopping",
        "StageEnded in stopped"
      ])
    }).pipe(host))

  it.effect("is no crash although who is told of its stages throws", () =>
    Effect.gen(function*() {
      const { machine } = yield* running(only("Kill"))
      const onEvent = () => {
        throw new Error("bug")
      }
      const { outcome } = yield* settled(yield* timed(machine, { onEvent }))
      expect([outcome._tag, yield* machine.state]).toEqual(["Forced", "stopped"])
    }).pipe(host))
})

describe("the scope of a machine", () => {
  it.effect("ends it by the policy of the launch, then releases", () =>
    Effect.gen(function*() {
      const policy = ShutdownPolicy.makeUnsafe<MicroVmProvider.MachineRequest>([
        { name: "press", request: "PowerButton", grace: "9 seconds" },
        { name: "kill", request: "Kill", grace: "1 second", force: true }
      ])
      const { asked, close, driver, machine } = yield* running(only("Kill"), { policy })
      const closed = yield* Effect.forkChild(close, { startImmediately: true })
      yield* TestClock.adjust("8999 millis")
      expect(yield* machine.state).toBe("stopping")
      yield* TestClock.adjust("1 millis")
      yield* Fiber.join(closed)
      expect(yield* machine.state).toBe("destroyed")
      expect(yield* asked).toEqual(["start", "PowerButton", "Kill", "ended", "released"])
      expect(yield* driver.claims).toEqual([])
    }).pipe(host))

  it.effect("joins a shutdown that runs; a finalizer after the launch can bring stages of its own", () =>
    Effect.gen(function*() {
      const driver = yield* MemoryDriver.MemoryDriver
      const closed = yield* Effect.gen(function*() {
        const machine = yield* Machine.launch(yield* spec)
        const guest = yield* driver.guest("m")
        const leading = [{ name: "agent", request: guest.powerOff, grace: "1 second" as const }]
        yield* Effect.addFinalizer(() => Effect.orDie(machine.shutdown({ leading })))
        yield* machine.start
      }).pipe(Effect.scoped, Effect.forkChild)
      yield* settled(closed)
      expect((yield* driver.events).map(({ what }) => what).slice(4)).toEqual(["start", "ended", "released"])
    }).pipe(host))

  it.effect("is left after a bounded time, whatever the machine does", () =>
    Effect.gen(function*() {
      const { close, driver, machine } = yield* running(deaf)
      const start = yield* Clock.currentTimeMillis
      const closed = yield* Effect.forkChild(Effect.andThen(close, Clock.currentTimeMillis), { startImmediately: true })
      expect((yield* settled(closed)) - start).toBe(8000)
      expect(yield* machine.poll).toEqual(Option.none())
      expect(yield* driver.claims).toEqual([])
    }).pipe(host))
})

describe("a launch", () => {
  const steps = ["claim", "spawn", "connect"] as const

  it.effect.each(steps)("that fails at %s leaves nothing and says why", (broken) =>
    Effect.gen(function*() {
      const driver = yield* MemoryDriver.MemoryDriver
      yield* driver.script("*", { launch: (step) => step === broken ? Effect.fail("no room") : Effect.void })
      const error = yield* Effect.flip(Effect.scoped(Effect.flatMap(spec, (wanted) => Machine.launch(wanted))))
      expect(error).toMatchObject({ reason: { _tag: "LaunchFailed", stage: broken }, cause: "no room" })
      expect(error.message).toContain(`${broken} failed: no room`)
      expect(yield* driver.claims).toEqual([])
    }).pipe(host))

  it.effect.each(steps)(
    "that is interrupted at %s leaves nothing, before its scope closes",
    (slow) =>
      Effect.gen(function*() {
        const driver = yield* MemoryDriver.MemoryDriver
        yield* driver.script("*", { launch: (step) => step === slow ? Effect.never : Effect.void })
        const scope = yield* Scope.make()
        const wanted = yield* spec
        const launch = yield* Effect.forkChild(Scope.provide(Machine.launch(wanted), scope), { startImmediately: true })
        yield* Fiber.interrupt(launch)
        expect(yield* driver.claims).toEqual([])
        const calls = (yield* driver.events).map(({ what }) => what)
        expect(calls.filter((what) => what === "released").length).toBe(slow === "claim" ? 0 : 1)
        const exit = yield* Fiber.await(launch)
        expect(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)).toBe(true)
        yield* Scope.close(scope, Exit.void)
        expect((yield* driver.events).length).toBe(calls.length)
      }).pipe(host)
  )

  it.effect("is not begun when its plan cannot be", () =>
    Effect.gen(function*() {
      const real = yield* MicroVmProvider.MicroVmProvider
      const driver = yield* MemoryDriver.MemoryDriver
      const faults = [{ field: "channels", value: 99, remedy: "give 30 at most" }]
      const plan = () => Result.fail(MicroVmError.make(new MicroVmError.InvalidSpec({ faults })))
      const launch = Effect.flatMap(spec, (wanted) => Machine.launch(wanted)).pipe(
        Effect.scoped,
        Effect.provideService(MicroVmProvider.MicroVmProvider, { ...real, plan })
      )
      expect((yield* Effect.flip(launch)).reason).toMatchObject({ _tag: "InvalidSpec", faults })
      expect(yield* driver.events).toEqual([])
    }).pipe(host))
})

describe("a machine that its host gave too little", () => {
  const shortage = { _tag: "Memory", limitMib: 448 } as const
  it.effect("tells so at its end, the same to all, and asks only of one that was killed or has failed", () =>
    Effect.gen(function*() {
      let asked = 0
      const options: Machine.LaunchOptions = {
        // Of two who ask at once, one is answered later, and otherwise.
        shortage: () =>
          Effect.delay(Effect.sync(() => Option.some({ ...shortage, limitMib: 448 + asked++ })), "10 millis")
      }
      const { guest, machine } = yield* launched({}, options)
      const early = yield* Effect.forkChild(machine.ended, { startImmediately: true })
      yield* guest.kill("SIGKILL")
      yield* TestClock.adjust("20 millis")
      const end = yield* Fiber.join(early)
      expect(end).toMatchObject({ _tag: "Killed", shortage })
      expect(MachineEnd.format(end)).toBe("the monitor was killed by the kernel: out of memory (limit 448 MiB)")
      expect(yield* machine.ended).toBe(end)
      expect(yield* machine.poll).toEqual(Option.some(end))
      expect(yield* machine.state).toBe("crashed")
    }).pipe(Effect.scoped, Effect.provide(MemoryProvider.layer)))

  it.effect("is not asked for when the guest has ended its life", () =>
    Effect.gen(function*() {
      const { machine } = yield* launched({}, { shortage: () => Effect.die("not to be asked") })
      yield* machine.start
      yield* machine.shutdown()
      expect(yield* machine.ended).toMatchObject({ _tag: "PoweredOff" })
    }).pipe(Effect.scoped, Effect.provide(MemoryProvider.layer)))
})
