import type { MicroVmPool } from "effect-microvm-runtime/microvm"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"

/** A machine that is nothing but a number and an end. */
export interface Fake {
  readonly id: number
  readonly crashed: Deferred.Deferred<void>
}

export interface Script {
  /** How long each start takes. */
  readonly start?: (id: number) => number
  /** How long each end takes. */
  readonly end?: (id: number) => number
  /** Which starts fail, once they have taken their time. */
  readonly fails?: (id: number) => boolean
}

/** Starts fakes as a script says, and counts them: from before the start to after the end. */
export const makeWorld = ({ end = () => 0, fails = () => false, start = () => 100 }: Script = {}) => {
  const alive = new Map<number, Fake>()
  const startedAt: Array<number> = []
  let most = 0
  let starting = 0
  let mostStarting = 0
  const acquire = Effect.gen(function*() {
    const fake: Fake = { id: startedAt.length, crashed: Deferred.makeUnsafe() }
    startedAt.push(yield* Clock.currentTimeMillis)
    alive.set(fake.id, fake)
    most = Math.max(most, alive.size)
    starting++
    mostStarting = Math.max(mostStarting, starting)
    yield* Effect.addFinalizer(() =>
      Effect.sleep(end(fake.id)).pipe(Effect.andThen(Effect.sync(() => alive.delete(fake.id))))
    )
    yield* Effect.ensuring(Effect.sleep(start(fake.id)), Effect.sync(() => starting--))
    if (fails(fake.id)) return yield* Effect.fail(`start ${fake.id}`)
    return fake
  })
  return {
    acquire,
    ended: (fake: Fake) => Deferred.await(fake.crashed),
    crash: (id: number) =>
      Effect.suspend(() => {
        const fake = alive.get(id)
        return fake === undefined ? Effect.void : Deferred.succeed(fake.crashed, undefined)
      }),
    alive: () => Array.from(alive.keys()),
    most: () => most,
    mostStarting: () => mostStarting,
    startedAt: (): ReadonlyArray<number> => startedAt
  }
}

/** Takes a machine into a scope of its own. */
export const takeOne = Effect.fnUntraced(function*<A, E>(pool: MicroVmPool.MicroVmPool<A, E>) {
  const scope = yield* Scope.make()
  return { scope, machine: yield* Scope.provide(pool.take, scope) }
})
