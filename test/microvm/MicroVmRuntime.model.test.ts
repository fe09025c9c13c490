import { expect, it } from "@effect/vitest"
import type { Shutdown, ShutdownPolicy } from "effect-microvm-runtime/lifecycle"
import {
  type Machine,
  MachineState,
  MemoryDriver,
  MemoryProvider,
  type MicroVmError,
  MicroVmRuntime,
  SnapshotStore
} from "effect-microvm-runtime/microvm"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { fork, isDone, pass, quiet, wanted } from "./support.ts"

type Runtime = MicroVmRuntime.MicroVmRuntime["Service"]
type Failure = MicroVmError.MicroVmError | Shutdown.NoSuchStage | ShutdownPolicy.ShutdownPolicyError

const upTo = (maximum: number) => Schema.Int.check(Schema.isBetween({ minimum: 0, maximum }))
const chance = Schema.Literals([true, false, false, false, false, false])

const Command = Schema.Struct({
  what: Schema.Literals([
    "create",
    "start",
    "pause",
    "resume",
    "snapshot",
    "stop",
    "destroy",
    "rename",
    "restore",
    "restorePaused",
    "removeSnapshot"
  ]),
  id: Schema.Literals(["a", "b", "c"]),
  to: Schema.Literals(["a", "b", "c"]),
  snapshot: Schema.Literals(["s", "s", "s", "t", "not/a/name"])
})
type Command = typeof Command.Type

const run = (runtime: Runtime, { id, snapshot, to, what }: Command): Effect.Effect<unknown, Failure> => {
  switch (what) {
    case "create":
      return runtime.create(wanted(id))
    case "snapshot":
      return runtime.snapshot(id, snapshot)
    case "rename":
      return runtime.rename(id, to)
    case "restore":
    case "restorePaused":
      return runtime.restore({ id, snapshot: { machine: to, name: snapshot }, resume: what === "restore" })
    case "removeSnapshot":
      return runtime.removeSnapshot(id, snapshot)
    default:
      return runtime[what](id)
  }
}

const summary = (failure: Failure): string => {
  if (failure._tag !== "MicroVmError") return failure._tag
  const { reason } = failure
  return reason._tag === "InvalidTransition" ? `${reason._tag} ${reason.from}→${reason.to}` : reason._tag
}

// ---------------------------------------------------------------------------------------------------------------------
// One command after the other: each answer and each view is as the model says.
// ---------------------------------------------------------------------------------------------------------------------

interface Modelled {
  readonly state: MachineState.MachineState
  /** Which of all snapshots each name means. */
  readonly snapshots: ReadonlyMap<string, number>
  /** The one that it was restored from. */
  readonly from?: number | undefined
}
interface World {
  readonly machines: ReadonlyMap<string, Modelled>
  /** The snapshots that are stored. */
  readonly stored: ReadonlySet<number>
}

/** What a command answers, and the world after it. Number `next` is of no snapshot yet. */
const predict = (world: World, command: Command, fault: boolean, next: number): readonly [string, World] => {
  const { id, snapshot, to, what } = command
  const machine = world.machines.get(id)
  const set = (...entries: ReadonlyArray<readonly [string, Modelled | undefined]>): World => {
    const machines = new Map(world.machines)
    for (const [name, value] of entries) {
      if (value === undefined) machines.delete(name)
      else machines.set(name, value)
    }
    return { ...world, machines }
  }
  const isFree = (name: string) => (world.machines.get(name)?.state ?? "destroyed") === "destroyed"
  const makes = (made: Modelled): readonly [string, World] => {
    if (!isFree(id)) return ["MachineAlreadyExists", world]
    return fault ? ["LaunchFailed", set([id, undefined])] : ["ok", set([id, made])]
  }
  if (what === "create") return makes({ state: "created", snapshots: new Map() })
  if (what === "restore" || what === "restorePaused") {
    const source = world.machines.get(to)
    if (source === undefined) return ["MachineNotFound", world]
    const from = source.snapshots.get(snapshot)
    if (from === undefined) return ["SnapshotNotFound", world]
    return makes({ state: what === "restore" ? "running" : "paused", snapshots: new Map(), from })
  }
  if (what === "rename" && id === to) return ["ok", world]
  if (machine === undefined) return ["MachineNotFound", world]
  if (what === "removeSnapshot") {
    const found = machine.snapshots.get(snapshot)
    if (found === undefined) return ["SnapshotNotFound", world]
    const others = new Map([...machine.snapshots].filter(([name]) => name !== snapshot))
    const stored = new Set([...world.stored].filter((one) => one !== found))
    return ["ok", { ...set([id, { ...machine, snapshots: others }]), stored }]
  }
  const end = MachineState.next(machine.state, what)
  if (Option.isNone(end)) return [`InvalidTransition ${machine.state}→${MachineState.goals[what]}`, world]
  const after: Modelled = { ...machine, state: end.value }
  switch (what) {
    case "rename":
      return isFree(to) ? ["ok", set([id, undefined], [to, after])] : ["MachineAlreadyExists", world]
    case "snapshot": {
      if (machine.snapshots.has(snapshot)) return ["SnapshotAlreadyExists", world]
      if (snapshot === "not/a/name") return ["InvalidSpec", world]
      if (fault) return ["OperationFailed", world]
      const snapshots = new Map(machine.snapshots).set(snapshot, next)
      return ["ok", { ...set([id, { ...after, snapshots }]), stored: new Set(world.stored).add(next) }]
    }
    case "start":
      if (machine.state === "created") return fault ? ["OperationFailed", world] : ["ok", set([id, after])]
      if (machine.from !== undefined && !world.stored.has(machine.from)) return ["SnapshotNotFound", world]
      return fault ? ["LaunchFailed", world] : ["ok", set([id, after])]
    case "pause":
    case "resume":
      return fault ? ["OperationFailed", world] : ["ok", set([id, after])]
    default:
      return ["ok", set([id, after])]
  }
}

const Sequential = Schema.Struct({
  steps: Schema.Array(Schema.Struct({
    command: Command,
    fault: chance,
    /** What happens to each machine that lives before the command. */
    event: Schema.Literals([...Array.from({ length: 20 }, () => "none" as const), "crash", "powerOff"])
  })).check(Schema.isMinLength(10), Schema.isMaxLength(40))
})

/** What each run begins with: else most commands would find nothing. */
const opening = (["create", "start", "snapshot", "restore"] as const).map((what) => ({
  command: { what, id: what === "restore" ? "b" : "a", to: "a", snapshot: "s" } as const,
  fault: false,
  event: "none" as const
}))

it.effect.prop(
  "one command after the other answers as the model does",
  { input: Sequential },
  ({ input }) =>
    Effect.gen(function*() {
      const driver = yield* MemoryDriver.MemoryDriver
      const runtime = yield* MicroVmRuntime.make()
      const store = yield* SnapshotStore.SnapshotStore
      const guests = new Map<Machine.Machine, MemoryDriver.MemoryGuest>()
      let world: World = { machines: new Map(), stored: new Set() }
      for (const [next, { command, event, fault }] of [...opening, ...input.steps].entries()) {
        if (event !== "none") {
          yield* driver.script("*", {})
          for (const [id, modelled] of world.machines) {
            const machine = Option.getOrUndefined(yield* runtime.machine(id))
            const guest = machine === undefined ? undefined : guests.get(machine)
            if (guest === undefined) continue
            yield* event === "crash" ? guest.crash("x") : guest.powerOff
            expect(["created", "running", "paused"]).toContain(modelled.state)
            const state = event === "crash" ? "crashed" : "stopped"
            world = { machines: new Map(world.machines).set(id, { ...modelled, state }), stored: world.stored }
          }
          yield* quiet
        }
        const broken = fault ? Effect.fail("fault") : Effect.void
        yield* driver.script("*", {
          launch: (step) => step === "spawn" ? broken : Effect.void,
          start: broken,
          pause: broken,
          resume: broken,
          save: broken
        })
        const [answer, after] = predict(world, command, fault, next)
        const result = yield* Effect.result(run(runtime, command))
        expect([command, Result.isSuccess(result) ? "ok" : summary(result.failure)]).toEqual([command, answer])
        world = after
        const views = (yield* runtime.list).map(({ id, snapshots, state }) => [id, { state, snapshots }])
        const expected = [...world.machines].map(([id, { snapshots, state }]) =>
          [id, { state, snapshots: [...snapshots.keys()] }] as const
        )
        expect(views).toEqual(expected.toSorted(([a], [b]) => a < b ? -1 : 1))
        expect((yield* store.list).length).toBe(world.stored.size)
        for (const id of world.machines.keys()) {
          const machine = Option.getOrUndefined(yield* runtime.machine(id))
          if (machine !== undefined && !guests.has(machine)) guests.set(machine, yield* driver.guest(machine.id))
        }
      }
    }).pipe(Effect.scoped, Effect.provide(MemoryProvider.layer, { local: true })),
  { arbitrary: { runs: 300 } }
)

// ---------------------------------------------------------------------------------------------------------------------
// Many at once, with faults: whatever the interleaving, the promises hold.
// ---------------------------------------------------------------------------------------------------------------------

const Fault = Schema.Struct({
  kind: Schema.Literals(["none", "none", "none", "none", "slow", "fails", "hangs", "dies"]),
  tens: upTo(30)
})
type Fault = typeof Fault.Type

const Concurrent = Schema.Struct({
  rename: Schema.Boolean,
  calls: Schema.Array(Schema.Struct({
    command: Command,
    at: upTo(60),
    /** Over 30: never. */
    interruptedAfter: upTo(90)
  })).check(Schema.isMinLength(1), Schema.isMaxLength(30)),
  ends: Schema.Array(Schema.Struct({
    id: Schema.Literals(["a", "b", "c"]),
    at: upTo(60),
    how: Schema.Literals(["reboot", "powerOff", "panic", "quit"])
  })).check(Schema.isMaxLength(5)),
  /** Taken in turn by what the backend is asked for. */
  faults: Schema.Array(Fault).check(Schema.isMinLength(1), Schema.isMaxLength(12)),
  /** How machines take requests to end, in turn. */
  requests: Schema.Array(Fault).check(Schema.isMinLength(1), Schema.isMaxLength(6)),
  closeAt: upTo(100)
})

const inject = ({ kind, tens }: Fault): Effect.Effect<void, string> => {
  switch (kind) {
    case "none":
      return Effect.void
    case "slow":
      return Effect.sleep(tens * 10)
    case "fails":
      return Effect.andThen(Effect.sleep(tens * 10), Effect.fail("fault"))
    case "hangs":
      return Effect.never
    case "dies":
      return Effect.die("defect of a backend")
  }
}

const cycle = <A>(items: ReadonlyArray<A>): () => ReadonlyArray<A> => {
  let next = 0
  return () => items.slice(next++ % items.length).slice(0, 1)
}

const concurrently = Effect.fnUntraced(function*(input: typeof Concurrent.Type) {
  const driver = yield* MemoryDriver.MemoryDriver
  const store = yield* SnapshotStore.SnapshotStore
  const faults = cycle(input.faults)
  const requests = cycle(input.requests)
  // The first sleep of a test clock that nobody has moved ends at once in a fiber that is interrupted.
  yield* pass(0)
  const scope = yield* Scope.make()
  const runtime = yield* Scope.provide(MicroVmRuntime.make(), scope)
  for (const { command } of opening.slice(0, 3)) yield* run(runtime, command)
  let overlaps = 0
  for (const id of ["a", "b", "c"]) {
    let active = 0
    // One operation of a machine at a time. After a rename two lives may have been launched under one id.
    const alone = Effect.suspend(() => {
      if (active > 0 && !input.rename) overlaps++
      active++
      return Effect.forEach(faults(), inject, { discard: true })
    }).pipe(Effect.ensuring(Effect.sync(() => {
      active--
    })))
    yield* driver.script(id, {
      launch: (step) => step === "connect" ? alone : Effect.void,
      start: alone,
      pause: alone,
      resume: alone,
      save: alone,
      request: (request, guest) =>
        Effect.forEach(requests(), (fault) =>
          fault.kind === "slow"
            ? guest.background(Effect.delay(MemoryDriver.obey(request, guest), fault.tens * 100))
            : Effect.andThen(inject(fault), MemoryDriver.obey(request, guest)), { discard: true }),
      release: Effect.sleep(70)
    })
  }
  const callers = yield* Effect.forEach(input.calls, ({ at, command, interruptedAfter }) =>
    Effect.gen(function*() {
      const caller = yield* fork(Effect.delay(run(runtime, command), at * 10))
      const leaves = interruptedAfter <= 30
      if (leaves) yield* fork(Effect.delay(Fiber.interrupt(caller), (at + interruptedAfter) * 10 + 5))
      return { caller, leaves, command }
    }))
  yield* Effect.forEach(
    input.ends,
    ({ at, how, id }) =>
      fork(Effect.delay(Effect.ignore(Effect.flatMap(driver.guest(id), (guest) => guest[how])), at * 10 + 3))
  )
  const closed = yield* fork(Effect.delay(Scope.close(scope, Exit.void), input.closeAt * 10 + 1))

  for (let step = 0; step < 20; step++) {
    yield* pass("50 millis")
    expect(isDone(yield* fork(Effect.all([runtime.list, runtime.get("a"), runtime.listSnapshots("b")])))).toBe(true)
    const ids = (yield* runtime.list).map(({ id }) => id)
    expect(ids).toEqual([...new Set(ids)].toSorted())
  }
  yield* pass("5 minutes")
  yield* quiet

  expect(isDone(closed)).toBe(true)
  expect(overlaps).toBe(0)
  expect(yield* driver.claims).toEqual([])
  const events = yield* driver.events
  for (const life of new Set(events.map((event) => event.life))) {
    const whats = events.filter((event) => event.life === life).map(({ what }) => what)
    // No launch met a claim that another one still held.
    expect(whats).toContain("spawn")
    const count = (what: string) => whats.filter((other) => other === what).length
    expect([life, count("released"), count("ended") <= 1]).toEqual([life, 1, true])
    // Nothing is asked of it later; what could not be killed may still end.
    expect(whats.slice(whats.indexOf("released") + 1).filter((what) => what !== "ended")).toEqual([])
  }
  const listed = (yield* runtime.list).flatMap(({ snapshots }) => snapshots)
  expect((yield* store.list).length).toBeGreaterThanOrEqual(listed.length)
  const alive = (yield* runtime.list).filter(({ state }) => !MachineState.isOver(state) && state !== "stopping")
  expect(alive).toEqual([])
  const mayDie = input.faults.some(({ kind }) => kind === "dies")
  for (const { caller, command, leaves } of callers) {
    const exit = caller.pollUnsafe()
    expect([command, exit === undefined]).toEqual([command, false])
    if (exit === undefined || Exit.isSuccess(exit)) continue
    for (const found of exit.cause.reasons) {
      const fine = Cause.isFailReason(found) || (Cause.isInterruptReason(found) ? leaves : mayDie)
      expect([command, found, fine]).toEqual([command, found, true])
    }
  }
})

it.effect.prop(
  "many commands at once, with faults, keep every promise",
  { input: Concurrent },
  ({ input }) =>
    Effect.provide(concurrently(input), MemoryProvider.layerWith({ capabilities: { rename: input.rename } }), {
      local: true
    }),
  { arbitrary: { runs: 300 } }
)
