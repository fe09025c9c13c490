/**
 * What every backend has to do alike, as scenarios that a test file runs.
 *
 * A scenario asks a guest for nothing that a real one cannot do, and waits for events, never for time: it runs on the
 * in-memory backend under a test clock and on a real one under the real clock. What it takes to bring about an event
 * in the guest differs, so a `Rig` says how; what a rig cannot do, and what a backend says it cannot, is skipped, with
 * the reason.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import * as ShutdownOutcome from "../lifecycle/ShutdownOutcome.ts"
import * as Machine from "../microvm/Machine.ts"
import type { MachineEnd } from "../microvm/MachineEnd.ts"
import * as MachineSpec from "../microvm/MachineSpec.ts"
import type { MachineState } from "../microvm/MachineState.ts"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import { type Capabilities, MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import * as MicroVmRuntime from "../microvm/MicroVmRuntime.ts"

/**
 * What the suite needs to know of a backend, and what can be brought about from outside.
 *
 * @category models
 * @since 0.1.0
 */
export interface Rig<out R = never> {
  /** What the provider says of itself; the suite checks that it does. */
  readonly capabilities: Capabilities
  /** A machine that boots, with this id. */
  readonly spec: (id: string) => MachineSpec.MachineSpecOptions
  /** Put before each id: scenarios of two rigs may share a host. Default none. */
  readonly prefix?: string | undefined
  /** How the suite stops machines that have nothing to lose. Default: by the policy. */
  readonly stop?: Machine.ShutdownOptions | undefined
  /** Waits until a started guest can do what the following ask for. Default: it can at once. */
  readonly booted?: ((machine: Machine.Machine) => Effect.Effect<void, unknown, R>) | undefined
  /** Has the guest power itself off. */
  readonly powerOff?: ((machine: Machine.Machine) => Effect.Effect<void, unknown, R>) | undefined
  /** Has the guest reboot. */
  readonly reboot?: ((machine: Machine.Machine) => Effect.Effect<void, unknown, R>) | undefined
  /** Has the guest's kernel panic. */
  readonly panic?: ((machine: Machine.Machine) => Effect.Effect<void, unknown, R>) | undefined
  /** Kills the monitor behind our back, by SIGKILL. */
  readonly kill?: ((machine: Machine.Machine) => Effect.Effect<void, unknown, R>) | undefined
  /** A channel of `spec` on which the guest sends back each byte it gets. */
  readonly echo?: string | undefined
  /** What is still claimed on the host, in words; looked at after each scenario. */
  readonly left?: Effect.Effect<ReadonlyArray<string>, unknown, R> | undefined
}

/**
 * A backend does not do what every backend has to.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotConforming extends Data.TaggedError("NotConforming")<{
  readonly what: string
  readonly expected: unknown
  readonly actual: unknown
}> {
  override get message(): string {
    return `${this.what}: expected ${JSON.stringify(this.expected)}, got ${JSON.stringify(this.actual)}`
  }
}

/**
 * One scenario.
 *
 * @category models
 * @since 0.1.0
 */
export interface Scenario<out R = never> {
  readonly name: string
  /** Why it cannot be run with this rig. */
  readonly skip?: string
  readonly run: Effect.Effect<void, unknown, MicroVmProvider | R>
}

const expect = (what: string, actual: unknown, expected: unknown): Effect.Effect<void, NotConforming> =>
  Equal.equals(actual, expected) ? Effect.void : Effect.fail(new NotConforming({ what, expected, actual }))

/** A reason, reduced to what is compared. */
const summary = (reason: MicroVmError.Reason): string => {
  if (reason._tag === "InvalidTransition") return `${reason._tag} ${reason.from}→${reason.to}`
  if (reason._tag === "InvalidSpec") {
    return `${reason._tag} ${reason.faults.map((fault) => fault.field).toSorted().join(", ")}`
  }
  if (reason._tag === "ChannelUnavailable") return `${reason._tag} ${reason.known.join(", ")}`
  return reason._tag
}

const refused = Effect.fnUntraced(function*<A, E, R>(what: string, effect: Effect.Effect<A, E, R>, expected: string) {
  const result = yield* Effect.result(effect)
  if (Result.isSuccess(result)) {
    return yield* new NotConforming({ what, expected, actual: result.success })
  }
  const { failure } = result
  if (!(failure instanceof MicroVmError.MicroVmError)) return yield* Effect.fail(failure)
  yield* expect(what, summary(failure.reason), expected)
})

type Need = keyof Capabilities | "powerOff" | "reboot" | "panic" | "kill" | "echo"

interface Stage {
  readonly runtime: MicroVmRuntime.MicroVmRuntime["Service"]
  readonly provider: MicroVmProvider["Service"]
  /** The id of machine `a`, `b`, … of this scenario. */
  readonly id: (name: string) => string
  readonly create: (name: string) => Effect.Effect<MicroVmRuntime.MachineView, MicroVmError.MicroVmError>
  readonly stateOf: (name: string) => Effect.Effect<MachineState | "absent">
  readonly machine: (name: string) => Effect.Effect<Machine.Machine, unknown>
  /** Creates and starts. */
  readonly running: (name: string) => Effect.Effect<Machine.Machine, unknown>
}

/**
 * All scenarios, for one rig.
 *
 * ```ts import.meta.vitest
 * import { MemoryProvider } from "effect-microvm-runtime/microvm"
 * import { MicroVmConformance } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 * const scenarios = MicroVmConformance.scenarios({
 *   capabilities: { pause: true, snapshot: true, rename: true, powerButton: true, panicDetection: true },
 *   spec: (id) => ({ id, kernel: "/boot/vmlinux" })
 * })
 * for (const { run, skip } of scenarios.slice(0, 2)) {
 *   if (skip === undefined) await Effect.runPromise(Effect.provide(run, MemoryProvider.layer))
 * }
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const scenarios = <R = never>(rig: Rig<R>): ReadonlyArray<Scenario<R>> => {
  const all: Array<Scenario<R>> = []
  const scenario = (
    name: string,
    needs: ReadonlyArray<Need>,
    body: (stage: Stage) => Effect.Effect<void, unknown, Scope.Scope | MicroVmProvider | R>
  ): void => {
    const prefix = `${rig.prefix ?? ""}c${all.length + 1}`
    const missing = needs.filter((need) =>
      need in rig.capabilities ? !Reflect.get(rig.capabilities, need) : !(need in rig)
    )
    all.push({
      name,
      ...(missing.length === 0 ? {} : { skip: `the backend or its rig has no ${missing.join(", ")}` }),
      run: Effect.gen(function*() {
        const provider = yield* MicroVmProvider
        yield* Effect.scoped(Effect.gen(function*() {
          const runtime = yield* MicroVmRuntime.make()
          const id = (machine: string) => `${prefix}-${machine}`
          const create = (machine: string) => runtime.create(rig.spec(id(machine)))
          const machine = (which: string) => Effect.flatMap(runtime.machine(id(which)), Effect.fromOption)
          const stage: Stage = {
            runtime,
            provider,
            id,
            create,
            machine,
            stateOf: (which) =>
              Effect.map(
                runtime.get(id(which)),
                Option.match({ onNone: () => "absent", onSome: ({ state }) => state })
              ),
            running: (which) => Effect.andThen(Effect.andThen(create(which), runtime.start(id(which))), machine(which))
          }
          yield* body(stage)
        }))
        if (rig.left !== undefined) yield* expect("what is left", yield* rig.left, [])
      })
    })
  }
  const { stop } = rig
  const booted = rig.booted ?? (() => Effect.void)

  scenario(
    "the backend says what it can",
    [],
    ({ provider }) => expect("capabilities", provider.capabilities, rig.capabilities)
  )

  scenario("a plan is pure and says something", [], ({ id, provider }) =>
    Effect.gen(function*() {
      const spec = yield* MachineSpec.decode(rig.spec(id("a")))
      const plan = yield* Effect.fromResult(provider.plan(spec))
      yield* expect("a second plan", yield* Effect.fromResult(provider.plan(spec)), plan)
      yield* expect("backend", plan.backend, provider.backend)
      yield* expect("is described", plan.description.length > 0, true)
    }))

  scenario(
    "row 1: create, start, snapshot, stop, destroy",
    ["snapshot"],
    ({ create, id, runtime, stateOf }) =>
      Effect.gen(function*() {
        yield* create("a")
        yield* runtime.start(id("a"))
        yield* runtime.snapshot(id("a"), "snap-1")
        yield* runtime.stop(id("a"), stop)
        yield* runtime.destroy(id("a"))
        yield* expect("state", yield* stateOf("a"), "destroyed")
        yield* expect("snapshots", yield* runtime.listSnapshots(id("a")), Option.some(["snap-1"]))
      })
  )

  scenario(
    "row 2: an id in use is refused, that of a destroyed machine is free",
    [],
    ({ create, id, runtime, stateOf }) =>
      Effect.gen(function*() {
        yield* create("a")
        yield* refused("create in created", create("a"), "MachineAlreadyExists")
        yield* runtime.start(id("a"))
        yield* refused("create in running", create("a"), "MachineAlreadyExists")
        yield* runtime.stop(id("a"), stop)
        yield* refused("create in stopped", create("a"), "MachineAlreadyExists")
        yield* expect("state", yield* stateOf("a"), "stopped")
        yield* runtime.destroy(id("a"))
        yield* create("a")
        yield* expect("state", yield* stateOf("a"), "created")
      })
  )

  scenario("rows 3 and 11: an unknown id", [], ({ id, runtime }) =>
    Effect.gen(function*() {
      const a = id("a")
      yield* refused("start", runtime.start(a), "MachineNotFound")
      yield* refused("pause", runtime.pause(a), "MachineNotFound")
      yield* refused("resume", runtime.resume(a), "MachineNotFound")
      yield* refused("stop", runtime.stop(a), "MachineNotFound")
      yield* refused("snapshot", runtime.snapshot(a, "s"), "MachineNotFound")
      yield* refused("destroy", runtime.destroy(a), "MachineNotFound")
      yield* expect("get", yield* runtime.get(a), Option.none())
      yield* expect("list snapshots", yield* runtime.listSnapshots(a), Option.none())
      yield* expect("machine", yield* runtime.machine(a), Option.none())
    }))

  scenario("rows 4 and 5: what a state refuses", [], ({ create, id, runtime, stateOf }) =>
    Effect.gen(function*() {
      const a = id("a")
      yield* create("a")
      yield* refused("stop", runtime.stop(a), "InvalidTransition created→stopped")
      yield* refused("pause", runtime.pause(a), "InvalidTransition created→paused")
      yield* refused("resume", runtime.resume(a), "InvalidTransition created→running")
      yield* runtime.start(a)
      yield* refused("start", runtime.start(a), "InvalidTransition running→running")
      yield* refused("resume", runtime.resume(a), "InvalidTransition running→running")
      yield* expect("state", yield* stateOf("a"), "running")
      yield* runtime.stop(a, stop)
      yield* refused("stop", runtime.stop(a), "InvalidTransition stopped→stopped")
      yield* refused("pause", runtime.pause(a), "InvalidTransition stopped→paused")
      yield* refused("snapshot", runtime.snapshot(a, "s"), "InvalidTransition stopped→snapshot")
    }))

  scenario("row 6: a stopped machine starts again", [], ({ id, running, runtime, stateOf }) =>
    Effect.gen(function*() {
      yield* running("a")
      yield* runtime.stop(id("a"), stop)
      yield* expect("state", yield* stateOf("a"), "stopped")
      yield* runtime.start(id("a"))
      yield* expect("state", yield* stateOf("a"), "running")
    }))

  scenario("row 6: a paused machine goes on", ["pause"], ({ id, running, runtime, stateOf }) =>
    Effect.gen(function*() {
      yield* running("a")
      yield* runtime.pause(id("a"))
      yield* expect("state", yield* stateOf("a"), "paused")
      yield* refused("pause", runtime.pause(id("a")), "InvalidTransition paused→paused")
      yield* refused("start", runtime.start(id("a")), "InvalidTransition paused→running")
      yield* runtime.resume(id("a"))
      yield* expect("state", yield* stateOf("a"), "running")
    }))

  scenario(
    "rows 7 and 8: nothing is done to a destroyed machine",
    [],
    ({ create, id, runtime }) =>
      Effect.gen(function*() {
        const a = id("a")
        yield* create("a")
        yield* runtime.destroy(a)
        yield* refused("destroy", runtime.destroy(a), "InvalidTransition destroyed→destroyed")
        yield* refused("snapshot", runtime.snapshot(a, "s"), "InvalidTransition destroyed→snapshot")
        yield* refused("start", runtime.start(a), "InvalidTransition destroyed→running")
        yield* refused("stop", runtime.stop(a), "InvalidTransition destroyed→stopped")
      })
  )

  scenario(
    "row 9: the name of a snapshot is used once",
    ["snapshot"],
    ({ id, running, runtime }) =>
      Effect.gen(function*() {
        const a = id("a")
        yield* running("a")
        yield* runtime.snapshot(a, "s")
        yield* refused("again", runtime.snapshot(a, "s"), "SnapshotAlreadyExists")
        for (const name of ["", "../s", "a/b", "a..b", "a b"]) {
          yield* refused(`snapshot ${JSON.stringify(name)}`, runtime.snapshot(a, name), "InvalidSpec snapshot")
        }
        yield* expect("snapshots", yield* runtime.listSnapshots(a), Option.some(["s"]))
      })
  )

  scenario("row 10: machines are listed by id", [], ({ create, id, runtime }) =>
    Effect.gen(function*() {
      for (const name of ["b", "a", "c"]) yield* create(name)
      const ids = (yield* runtime.list).map((view) => view.id)
      yield* expect("list", ids, [id("a"), id("b"), id("c")])
    }))

  if (!rig.capabilities.rename) {
    scenario(
      "row 12: rename is not supported",
      [],
      ({ create, id, runtime }) =>
        Effect.andThen(create("a"), refused("rename", runtime.rename(id("a"), id("b")), "Unsupported"))
    )
  }
  if (!rig.capabilities.snapshot) {
    scenario(
      "snapshot is not supported",
      [],
      ({ id, running, runtime }) =>
        Effect.andThen(running("a"), refused("snapshot", runtime.snapshot(id("a"), "s"), "Unsupported"))
    )
  }
  if (!rig.capabilities.pause) {
    scenario(
      "pause is not supported",
      [],
      ({ id, running, runtime }) =>
        Effect.andThen(running("a"), refused("pause", runtime.pause(id("a")), "Unsupported"))
    )
  }

  scenario("row 13: the spec is kept as it was given", [], ({ create, id }) =>
    Effect.gen(function*() {
      const view = yield* create("a")
      yield* expect("spec", view.spec, yield* MachineSpec.decode(rig.spec(id("a"))))
      yield* expect("view", [view.id, view.state, view.end, view.snapshots], [id("a"), "created", Option.none(), []])
    }))

  scenario("rows 64 and 65: rename", ["rename"], ({ create, id, running, runtime, stateOf }) =>
    Effect.gen(function*() {
      const a = id("a")
      yield* refused("unknown", runtime.rename(a, id("b")), "MachineNotFound")
      yield* running("a")
      yield* create("c")
      yield* refused("taken", runtime.rename(a, id("c")), "MachineAlreadyExists")
      yield* refused("not an id", runtime.rename(a, "../a"), "InvalidSpec id")
      yield* runtime.rename(a, a)
      yield* runtime.rename(a, id("b"))
      yield* expect("old id", yield* stateOf("a"), "absent")
      yield* expect("new id", yield* stateOf("b"), "running")
      yield* create("a")
      yield* runtime.stop(id("b"), stop)
      yield* runtime.start(id("b"))
      yield* expect("started again", yield* stateOf("b"), "running")
      yield* runtime.destroy(id("c"))
      yield* refused("destroyed", runtime.rename(id("c"), id("d")), "InvalidTransition destroyed→renamed")
    }))

  scenario(
    "row 175: of two that create the same machine at once, one does",
    [],
    ({ create, runtime }) =>
      Effect.gen(function*() {
        const results = yield* Effect.forEach(["a", "a", "a"], (name) => Effect.result(create(name)), {
          concurrency: "unbounded"
        })
        yield* expect("winners", results.filter(Result.isSuccess).length, 1)
        for (const result of results) {
          if (Result.isFailure(result)) yield* expect("loser", result.failure.reason._tag, "MachineAlreadyExists")
        }
        yield* expect("machines", (yield* runtime.list).length, 1)
      })
  )

  scenario(
    "row 176: a machine that stops slowly delays no other",
    [],
    ({ create, id, running, runtime, stateOf }) =>
      Effect.gen(function*() {
        yield* running("a")
        const a = yield* Effect.forkScoped(runtime.stop(id("a"), slowly), { startImmediately: true })
        yield* expect("a", yield* stateOf("a"), "stopping")
        yield* create("b")
        yield* runtime.start(id("b"))
        yield* runtime.stop(id("b"), stop)
        yield* expect("b", yield* stateOf("b"), "stopped")
        yield* expect("a, still", yield* stateOf("a"), "stopping")
        yield* runtime.stop(id("a"), atOnce)
        yield* expect("a, hastened", ShutdownOutcome.isComplete(yield* Fiber.join(a)), true)
      })
  )

  scenario(
    "row 177: a monitor that is killed behind our back is noticed",
    ["kill"],
    ({ id, running, runtime, stateOf }) =>
      Effect.gen(function*() {
        const machine = yield* running("a")
        yield* booted(machine)
        yield* rig.kill?.(machine) ?? Effect.void
        yield* expect("end", (yield* machine.ended)._tag, "Killed")
        yield* expect("state", yield* stateOf("a"), "crashed")
        yield* runtime.start(id("a"))
        yield* expect("state", yield* stateOf("a"), "running")
      })
  )

  const endsItself = (
    name: "powerOff" | "reboot" | "panic",
    tag: MachineEnd["_tag"],
    state: MachineState,
    needs: ReadonlyArray<Need>
  ): void =>
    scenario(
      `a guest that ends by ${name} is ${state}`,
      [name, ...needs],
      ({ id, running, runtime, stateOf }) =>
        Effect.gen(function*() {
          const machine = yield* running("a")
          yield* booted(machine)
          yield* rig[name]?.(machine) ?? Effect.void
          const end = yield* machine.ended
          yield* expect("end", end._tag, tag)
          yield* expect("state", yield* stateOf("a"), state)
          const view = yield* runtime.get(id("a"))
          yield* expect("recorded end", Option.flatMap(view, (seen) => seen.end), Option.some(end))
        })
    )
  endsItself("powerOff", "PoweredOff", "stopped", [])
  endsItself("reboot", "Reset", "stopped", [])
  endsItself("panic", "Panicked", "crashed", ["panicDetection"])

  scenario("all that wait for one stop get the same outcome", [], ({ id, running, runtime }) =>
    Effect.gen(function*() {
      yield* running("a")
      const first = yield* Effect.forkScoped(runtime.stop(id("a"), slowly), { startImmediately: true })
      const hasty = yield* runtime.stop(id("a"), atOnce)
      yield* expect("outcome", yield* Fiber.join(first), hasty)
      yield* expect("stages", hasty.stages.map(({ end, name }) => `${name} ${end}`).slice(0, 1), ["wait hastened"])
      yield* expect("complete", ShutdownOutcome.isComplete(hasty), true)
    }))

  scenario("a paused machine stops", ["pause"], ({ id, running, runtime, stateOf }) =>
    Effect.gen(function*() {
      yield* running("a")
      yield* runtime.pause(id("a"))
      yield* expect("complete", ShutdownOutcome.isComplete(yield* runtime.stop(id("a"), stop)), true)
      yield* expect("state", yield* stateOf("a"), "stopped")
    }))

  scenario(
    "a machine that never ran is destroyed without asking its guest",
    [],
    ({ create, id, runtime }) =>
      Effect.gen(function*() {
        yield* create("a")
        const outcome = yield* runtime.destroy(id("a"), {
          leading: [{ name: "ask", request: Effect.never, grace: "1 hour" }]
        })
        yield* expect(
          "outcome",
          Option.map(outcome, (shut) => [shut._tag, shut.stages.length]),
          Option.some(["Forced", 1])
        )
      })
  )

  scenario(
    "a launch that is interrupted leaves nothing",
    [],
    ({ create, id, runtime, stateOf }) =>
      Effect.gen(function*() {
        const fiber = yield* Effect.forkScoped(create("a"), { startImmediately: true })
        yield* Fiber.interrupt(fiber)
        const state = yield* stateOf("a")
        // It may have been up already: then it is whole.
        yield* expect("state", state === "absent" || state === "created", true)
        if (state === "created") yield* runtime.destroy(id("a"))
        yield* create("a")
      })
  )

  scenario("a machine ends with the scope of the runtime", [], ({ id }) =>
    Effect.gen(function*() {
      const machine = yield* Effect.scoped(Effect.gen(function*() {
        const runtime = yield* MicroVmRuntime.make()
        yield* runtime.create(rig.spec(id("a")))
        yield* runtime.start(id("a"))
        return yield* Effect.flatMap(runtime.machine(id("a")), Effect.fromOption)
      }))
      yield* expect("ended", Option.isSome(yield* machine.poll), true)
      yield* expect("state", yield* machine.state, "destroyed")
    }))

  scenario("state changes are a stream that ends", [], ({ id }) =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const spec = yield* MachineSpec.decode(rig.spec(id("a")))
      const machine = yield* Scope.provide(Machine.launch(spec), scope)
      const seen = yield* Effect.forkScoped(Stream.runCollect(machine.changes), { startImmediately: true })
      yield* machine.start
      yield* machine.shutdown(stop)
      yield* Scope.close(scope, Exit.void)
      yield* expect("changes", yield* Fiber.join(seen), ["created", "running", "stopping", "stopped", "destroyed"])
    }))

  scenario(
    "what is wrong with a spec is said before anything is done, all of it",
    [],
    ({ id, runtime, stateOf }) =>
      Effect.gen(function*() {
        const wrong = { ...rig.spec(id("a")), vcpus: 0, memoryMib: 1.5, kernel: "vmlinux", channels: ["a", "a"] }
        yield* refused("create", runtime.create(wrong), "InvalidSpec channels, kernel, memoryMib, vcpus")
        yield* expect("state", yield* stateOf("a"), "absent")
      })
  )

  scenario("a channel that the spec does not name is refused", [], ({ id, running }) =>
    Effect.gen(function*() {
      const machine = yield* running("a")
      const known = (rig.spec(id("a")).channels ?? []).join(", ")
      yield* refused("channel", machine.channel("no-such-channel"), `ChannelUnavailable ${known}`)
    }))

  scenario("a channel carries bytes both ways", ["echo"], ({ running }) =>
    Effect.gen(function*() {
      const machine = yield* running("a")
      yield* booted(machine)
      const socket = yield* machine.channel(rig.echo ?? "")
      const pull = yield* Socket.readerBytes(socket)
      const writer = yield* socket.writer
      const sent = new TextEncoder().encode("to the guest and back, \u00e9\u4e16\n")
      yield* writer.write(sent)
      const got: Array<number> = []
      while (got.length < sent.length) for (const chunk of yield* pull) got.push(...chunk)
      yield* expect("bytes", got, [...sent])
    }))

  return all
}

/** Stops by a stage that nobody answers: it takes an hour unless somebody hastens it. */
const slowly: Machine.ShutdownOptions = { leading: [{ name: "wait", request: Effect.void, grace: "1 hour" }] }
const atOnce: Machine.ShutdownOptions = { request: { atLeast: "SIGTERM" } }
