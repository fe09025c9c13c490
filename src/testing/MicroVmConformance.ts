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
import * as Effect from "effect/Effect"
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
import * as MicroVmRuntime from "../microvm/MicroVmRuntime.ts"
import {
  atOnce,
  expect,
  makeSuite,
  type Need,
  refused,
  type Rig,
  type Scenario,
  slowly
} from "./internal/conformance.ts"
import { diffScenarios } from "./internal/conformanceDiffs.ts"
import { keepScenarios } from "./internal/conformanceKeep.ts"
import { snapshotScenarios } from "./internal/conformanceSnapshots.ts"

export { NotConforming, type Rig, type Scenario } from "./internal/conformance.ts"

/**
 * All scenarios, for one rig.
 *
 * ```ts import.meta.vitest
 * import { MemoryProvider } from "effect-microvm-runtime/microvm"
 * import { MicroVmConformance } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 * const scenarios = MicroVmConformance.scenarios({
 *   capabilities: {
 *     pause: true,
 *     snapshot: true,
 *     diff: true,
 *     rename: true,
 *     powerButton: true,
 *     panicDetection: true,
 *     saveKeepsChannels: true,
 *     keep: true,
 *     user: true
 *   },
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
  const suite = makeSuite(rig)
  const { scenario } = suite
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
      // How the monitor ended is known to who has started it.
      yield* expect("is lost", hasty._tag !== "Unkillable" && hasty.status._tag === "Lost", false)
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
        for (const turns of [0, 1, 4, 16, 64, 256, 1024]) {
          const fiber = yield* Effect.forkScoped(create("a"), { startImmediately: true })
          yield* Effect.repeat(Effect.yieldNow, { times: turns })
          yield* Fiber.interrupt(fiber)
          const state = yield* stateOf("a")
          // It may have been up already: then it is whole.
          yield* expect(`state after ${turns} turns`, state === "absent" || state === "created", true)
          if (state === "created") yield* runtime.destroy(id("a"))
        }
        yield* create("a")
      })
  )

  scenario(
    "what is left of a launch ends with its scope, where nobody has asked it to",
    [],
    ({ id, provider }) =>
      Effect.gen(function*() {
        const spec = yield* MachineSpec.decode(rig.spec(id("a")))
        const vmm = yield* Effect.scoped(provider.launch(spec))
        yield* expect("has ended", Option.isSome(yield* vmm.poll), true)
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

  /** Opens the channel that the guest echoes; the answer is what comes back of a text, or `None` when the channel has ended. */
  const echoes = Effect.fnUntraced(function*(machine: Machine.Machine) {
    yield* booted(machine)
    const socket = yield* machine.channel(rig.echo ?? "")
    const pull = yield* Socket.readerBytes(socket)
    const writer = yield* socket.writer
    return Effect.fnUntraced(function*(text: string) {
      const sent = new TextEncoder().encode(text)
      const got: Array<number> = []
      yield* writer.write(sent)
      while (got.length < sent.length) for (const chunk of yield* pull) got.push(...chunk)
      return new TextDecoder().decode(Uint8Array.from(got))
    }, Effect.option)
  })

  scenario("a channel carries bytes both ways", ["echo"], ({ running }) =>
    Effect.gen(function*() {
      const send = yield* echoes(yield* running("a"))
      const text = "to the guest and back, \u00e9\u4e16\n"
      yield* expect("bytes", yield* send(text), Option.some(text))
    }))

  scenario("a channel ends with its machine", ["echo"], ({ id, running, runtime }) =>
    Effect.gen(function*() {
      const send = yield* echoes(yield* running("a"))
      yield* expect("before", yield* send("here"), Option.some("here"))
      yield* runtime.stop(id("a"), stop)
      yield* expect("after", yield* send("gone"), Option.none())
    }))

  scenario(
    "a save keeps channels open if the backend says so",
    ["snapshot", "echo"],
    ({ id, running, runtime }) =>
      Effect.gen(function*() {
        const send = yield* echoes(yield* running("a"))
        yield* expect("before", yield* send("here"), Option.some("here"))
        yield* runtime.snapshot(id("a"), "s")
        const { saveKeepsChannels } = rig.capabilities
        yield* expect("after", yield* send("still"), saveKeepsChannels ? Option.some("still") : Option.none())
      })
  )

  snapshotScenarios(suite)
  diffScenarios(suite)
  keepScenarios(suite)
  return suite.all
}
