import * as Effect from "effect/Effect"
import * as MicroVmError from "../MicroVmError.ts"
import * as Snapshot from "../Snapshot.ts"

/**
 * Since when it is known what a machine writes: since the moment that it goes on from, then since the last one at which it
 * was saved. A save that was not kept counts as well: from it on, the difference to what was there before is lost.
 */
export const makeLineage = (id: string, restored: string | undefined) => {
  let moment = restored
  return {
    check: (base: Snapshot.Snapshot | undefined): Effect.Effect<void, MicroVmError.MicroVmError> =>
      Effect.suspend(() => {
        if (base === undefined) return Effect.void
        const why = moment === undefined
          ? "since when it is known what it has written is not known"
          : base.manifest.moment !== moment
          ? "it was saved since then, or is another machine's"
          : Snapshot.layers(base).length > Snapshot.mostBases
          ? `which stands on ${Snapshot.mostBases} others already`
          : undefined
        return why === undefined
          ? Effect.void
          : MicroVmError.fail(new MicroVmError.DifferenceUnknown({ id, snapshot: base.id, why }))
      }),
    track: <E, R>(save: Effect.Effect<Snapshot.Saved, E, R>): Effect.Effect<Snapshot.Saved, E, R> =>
      Effect.suspend(() => {
        moment = undefined
        return Effect.tap(save, (saved) =>
          Effect.sync(() => {
            moment = saved.moment
          }))
      })
  }
}
