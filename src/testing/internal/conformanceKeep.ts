/** The scenarios about machines that outlive those who launched them. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as Machine from "../../microvm/Machine.ts"
import * as MachineSpec from "../../microvm/MachineSpec.ts"
import { expect, refused, type Rig, type Suite } from "./conformance.ts"

const atOnce: Machine.ShutdownOptions = { request: { atLeast: "SIGKILL" } }

/** A machine of this id in a directory of its own, and nothing of it left at the end. */
const keeping = Effect.fnUntraced(function*<R>(rig: Rig<R>, id: string) {
  const directory = yield* rig.directory ?? Effect.die("the rig has no directories")
  const keep = { directory }
  const specOf = (name: string) => MachineSpec.decode({ ...rig.spec(name), id: name })
  const attach = (name = id) => Effect.flatMap(specOf(name), (spec) => Machine.attach(spec, { keep }))
  yield* Effect.addFinalizer(() =>
    attach().pipe(Effect.flatMap((machine) => machine.shutdown(atOnce)), Effect.scoped, Effect.ignore)
  )
  return { attach, launch: Effect.flatMap(specOf(id), (spec) => Machine.launch(spec, { keep })) }
})

/** Has hold of a machine until it is told to let go. */
const held = Effect.fnUntraced(function*<E, R>(get: Effect.Effect<Machine.Machine, E, R | Scope.Scope>) {
  const scope = yield* Scope.fork(yield* Effect.scope)
  return { machine: yield* Scope.provide(get, scope), letGo: Scope.close(scope, Exit.void) }
})

export const keepScenarios = <R>({ rig, scenario }: Suite<R>): void => {
  scenario(
    "a kept machine goes on without us, and one at a time has hold of it",
    ["keep", "directory"],
    ({ id }) =>
      Effect.gen(function*() {
        const { attach, launch } = yield* keeping(rig, id("a"))
        const first = yield* held(launch)
        yield* first.machine.start
        yield* refused("attach", Effect.scoped(attach()), "AttachFailed held")
        yield* first.letGo
        yield* expect("state at the end of our scope", yield* first.machine.state, "destroyed")
        const second = yield* held(attach())
        yield* expect("state", yield* second.machine.state, "running")
        yield* expect("pid", Option.getOrNull(second.machine.pid), Option.getOrNull(first.machine.pid))
        yield* refused("attach", Effect.scoped(attach()), "AttachFailed held")
        if (rig.capabilities.pause) yield* second.machine.pause
        yield* second.letGo
        const third = yield* held(attach())
        yield* expect("state", yield* third.machine.state, rig.capabilities.pause ? "paused" : "running")
        yield* third.machine.shutdown(atOnce)
        yield* expect("end", (yield* third.machine.ended)._tag, "Killed")
      })
  )

  scenario(
    "a kept machine that has not run is found so, and starts",
    ["keep", "directory"],
    ({ id }) =>
      Effect.gen(function*() {
        const { attach, launch } = yield* keeping(rig, id("a"))
        yield* Effect.scoped(launch)
        const machine = yield* attach()
        yield* expect("state", yield* machine.state, "created")
        yield* machine.start
        yield* expect("state", yield* machine.state, "running")
      })
  )

  scenario(
    "the end of a kept machine is told to those who come after it",
    ["keep", "directory"],
    ({ id }) =>
      Effect.gen(function*() {
        const { attach, launch } = yield* keeping(rig, id("a"))
        const first = yield* held(launch)
        yield* first.machine.start
        yield* first.machine.shutdown(atOnce)
        const end = yield* first.machine.ended
        yield* first.letGo
        for (let times = 0; times < 2; times++) {
          const later = yield* held(attach())
          yield* expect("end", (yield* later.machine.ended)._tag, end._tag)
          yield* expect("status", (yield* later.machine.ended).status, end.status)
          yield* expect("shutdown", (yield* later.machine.shutdown())._tag, "AlreadyExited")
          yield* later.letGo
        }
      })
  )

  scenario("what is not kept cannot be attached to", ["keep", "directory"], ({ id }) =>
    Effect.gen(function*() {
      const { attach, launch } = yield* keeping(rig, id("a"))
      yield* refused("attach", Effect.scoped(attach()), "AttachFailed")
      yield* Effect.scoped(launch)
      yield* refused("attach", Effect.scoped(attach(id("b"))), "AttachFailed")
      yield* expect("state", yield* (yield* attach()).state, "created")
    }))
}
