import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as PubSub from "effect/PubSub"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import * as MachineEnd from "../MachineEnd.ts"
import * as MachineState from "../MachineState.ts"

/**
 * The state of one life of a machine, and what waits on it.
 */
export interface Life {
  readonly state: () => MachineState.MachineState
  /** Who operates on the machine has it. */
  readonly turn: Semaphore.Semaphore
  readonly changes: Stream.Stream<MachineState.MachineState>
  readonly enter: (to: MachineState.MachineState) => Effect.Effect<void>
  /** A shutdown begins: an end from now on is one that was asked for. */
  readonly stopping: Effect.Effect<void>
  readonly wasAsked: () => boolean
  /** The machine has ended. Only the first call counts. */
  readonly settle: (end: MachineEnd.MachineEnd) => Effect.Effect<void>
  readonly release: Effect.Effect<void>
  /** Fails once the machine is gone, so that nothing that is under way outlives it. */
  readonly gone: Effect.Effect<never, Error>
}

const lives = new WeakMap<object, Life>()

/** Makes `stateNow` and `idle` know a handle by the life it is of. */
export const ofLife = <Handle extends object>(handle: Handle, life: Life): Handle => {
  lives.set(handle, life)
  return handle
}

const lifeOf = (handle: object): Life => {
  const life = lives.get(handle)
  if (life === undefined) throw new Error("the handle of a machine is another than Machine has made")
  return life
}

/** For who looks at a thousand handles at once: an effect for each is a lot of garbage, and lets others in between. */
export const stateNow = (handle: object): MachineState.MachineState => lifeOf(handle).state()

/** Comes back when no operation is under way: one whose caller was interrupted goes on. */
export const idle = (handle: object): Effect.Effect<void> => lifeOf(handle).turn.withPermit(Effect.void)

export const makeLife = Effect.fnUntraced(function*(first: "created" | "paused" | "running"): Effect.fn.Return<Life> {
  let state: MachineState.MachineState = first
  let asked = false
  const gone = yield* Deferred.make<never, Error>()
  const states = yield* PubSub.sliding<MachineState.MachineState>({ capacity: 64, replay: 1 })
  const enter = (to: MachineState.MachineState): Effect.Effect<void> =>
    Effect.suspend(() => {
      state = to
      return Effect.asVoid(PubSub.publish(states, to))
    })
  yield* enter(state)
  return {
    state: () => state,
    turn: Semaphore.makeUnsafe(1),
    changes: Stream.takeUntil(Stream.fromPubSub(states), (to) => to === "destroyed"),
    enter,
    stopping: Effect.suspend(() => {
      asked = true
      return MachineState.isOver(state) ? Effect.void : enter("stopping")
    }),
    wasAsked: () => asked,
    settle: (end) =>
      Effect.suspend(() =>
        MachineState.isOver(state)
          ? Effect.void
          : Effect.andThen(
            enter(asked || MachineEnd.isByGuest(end) ? "stopped" : "crashed"),
            Deferred.fail(gone, new Error(MachineEnd.format(end)))
          )
      ),
    release: Effect.andThen(enter("destroyed"), Deferred.fail(gone, new Error("the machine was released"))),
    gone: Deferred.await(gone)
  }
})
