import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberSet from "effect/FiberSet"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Machine from "../Machine.ts"
import type { MachineEnd } from "../MachineEnd.ts"
import type { MachineId, MachineSpec } from "../MachineSpec.ts"
import type { MachineState } from "../MachineState.ts"
import * as MicroVmError from "../MicroVmError.ts"
import { MicroVmProvider } from "../MicroVmProvider.ts"
import type { SnapshotStore } from "../SnapshotStore.ts"
import { stateNow } from "./life.ts"
import { once } from "./once.ts"

export interface Life {
  readonly machine: Machine.Machine
  /** Ends the machine if need be, and gives back what it held. */
  readonly release: Effect.Effect<void>
  /** Its end is in the record, and all is released. */
  readonly reaped: Deferred.Deferred<void>
}

/** What is remembered under an id. `state` counts while there is no life. */
export interface Entry {
  id: MachineId
  spec: MachineSpec
  state: MachineState
  end: Option.Option<MachineEnd>
  /** Its snapshots: the ids in the store, by name. */
  readonly snapshots: Map<string, string>
  /** Their names, oldest first: another array when they change. */
  names: ReadonlyArray<string>
  /** The snapshot that each of its lives is restored from, by its id; none when it boots. */
  readonly from: string | undefined
  life: Life | undefined
  launching: Fiber.Fiber<unknown, unknown> | undefined
  /** How many are destroying it: meanwhile no launch begins. */
  leaving: number
  /** Settled when nothing of the last life is left. */
  reaped: Effect.Effect<void>
  readonly turn: Semaphore.Semaphore
}

export const makeEntry = (spec: MachineSpec, from?: string): Entry => ({
  id: spec.id,
  spec,
  state: "creating",
  end: Option.none(),
  snapshots: new Map(),
  names: [],
  from,
  life: undefined,
  launching: undefined,
  leaving: 0,
  reaped: Effect.void,
  turn: Semaphore.makeUnsafe(1)
})

export const stateOf = ({ life, state }: Entry): MachineState => {
  if (life === undefined) return state
  const own = stateNow(life.machine)
  // Released, yet not ended: it could not be killed.
  return own === "destroyed" ? "stopping" : own
}

/** Ends the life and waits for the record of it. Did it end? */
export const release = Effect.fnUntraced(function*(life: Life) {
  yield* life.release
  if (Option.isNone(yield* life.machine.poll)) return false
  yield* Deferred.await(life.reaped)
  return true
})

/** Ends the life that came of a launch, if one did; `then` puts back what was before it. */
export const giveUp = (entry: Entry, then: () => void): Effect.Effect<void> =>
  Effect.suspend(() =>
    Effect.map(entry.life === undefined ? Effect.succeed(true) : release(entry.life), (ended) => {
      // What could not be killed stays where it can be seen.
      if (ended) then()
    })
  )

/**
 * Brings machines up and reaps them. When the scope closes, launches are broken off, then all machines are ended at the
 * same time.
 */
export const makeLauncher = Effect.fnUntraced(function*(
  provider: MicroVmProvider["Service"],
  store: SnapshotStore["Service"],
  options: Omit<Machine.LaunchOptions, "template">
) {
  const lives = new Set<Life>()
  // Closed in the reverse order: nothing new comes up, then all ends, then nobody is left to watch.
  const reapers = yield* FiberSet.make<void>()
  yield* Effect.addFinalizer(() =>
    Effect.forEach([...lives], (life) => life.release, { concurrency: "unbounded", discard: true })
  )
  const launches = yield* FiberSet.make<Life, MicroVmError.MicroVmError>()

  /** Waits for the end of a life, puts it on record, and gives back what the machine held. */
  const reap = Effect.fnUntraced(function*(entry: Entry, life: Life) {
    const end = yield* life.machine.ended
    const state = yield* life.machine.state
    entry.end = Option.some(end)
    entry.state = state === "crashed" ? state : "stopped"
    entry.reaped = Deferred.await(life.reaped)
    entry.life = undefined
    yield* life.release
  })
  const launchOrRestore = (entry: Entry) =>
    Effect.suspend(() =>
      entry.from === undefined
        ? Machine.launch(entry.spec, options)
        : Effect.flatMap(store.open(entry.from), (snapshot) => Machine.restore(entry.id, snapshot, options))
    )
  const bringUp = (entry: Entry): Effect.Effect<Life, MicroVmError.MicroVmError> =>
    Effect.uninterruptibleMask((restore) =>
      Effect.gen(function*() {
        // In one step: who destroys it finds this fiber, or is found by it.
        yield* restore(Effect.withFiber((self) => {
          if (entry.leaving > 0) return Effect.interrupt
          entry.launching = self
          return entry.reaped
        }))
        const scope = yield* Scope.make()
        const machine = yield* restore(launchOrRestore(entry)).pipe(
          Effect.provideService(MicroVmProvider, provider),
          Scope.provide(scope),
          Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
        )
        const life: Life = {
          machine,
          release: once(Effect.andThen(Scope.close(scope, Exit.void), Effect.sync(() => lives.delete(life)))),
          reaped: yield* Deferred.make<void>()
        }
        lives.add(life)
        entry.life = life
        yield* FiberSet.run(reapers, Effect.ensuring(reap(entry, life), Deferred.succeed(life.reaped, undefined)))
        return life
      })
    ).pipe(Effect.ensuring(Effect.sync(() => {
      entry.launching = undefined
    })))
  /** Brings a life up in a fiber of the runtime, so that closing it, or destroying the machine, can break it off. */
  const launch = (entry: Entry): Effect.Effect<Life, MicroVmError.MicroVmError> =>
    Effect.uninterruptibleMask((restore) =>
      Effect.gen(function*() {
        const fiber = yield* FiberSet.run(launches, bringUp(entry))
        const exit = yield* Effect.onInterrupt(restore(Fiber.await(fiber)), () => Fiber.interrupt(fiber))
        if (Exit.isSuccess(exit)) return exit.value
        // Its interruption is not the caller's.
        const own = exit.cause.reasons.filter((reason) => !Cause.isInterruptReason(reason))
        if (own.length > 0) return yield* Effect.failCause(Cause.fromReasons(own))
        const cause = new Error("broken off: the machine was destroyed, or the runtime closed")
        return yield* MicroVmError.fail(new MicroVmError.OperationFailed({ id: entry.id, operation: "launch", cause }))
      })
    )

  return launch
})
