import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as MicroVmError from "../MicroVmError.ts"
import * as Snapshot from "../Snapshot.ts"
import type { SnapshotStore } from "../SnapshotStore.ts"

interface Kept {
  readonly snapshot: Snapshot.Snapshot
  /** What is wrong with it. */
  readonly faults: Array<string>
  lastUsed: number
}

const isId = Schema.is(Snapshot.Sha256)

const checkKey = (nameOrId: string) => isId(nameOrId) ? Effect.void : Snapshot.checkName(nameOrId)

/**
 * Snapshots of the in-memory backend: their files are none, their directories are only names.
 */
export const makeMemoryStore = (): {
  readonly store: SnapshotStore["Service"]
  readonly corrupt: (nameOrId: string, why: string) => Effect.Effect<void, MicroVmError.MicroVmError>
} => {
  /** By id, the one used last at the end. */
  const snapshots = new Map<string, Kept>()
  /** The id that each name means. */
  const names = new Map<string, string>()
  let made = 0

  const namesOf = (id: string): ReadonlyArray<string> =>
    [...names].filter(([, meant]) => meant === id).map(([name]) => name).toSorted()

  const find = (nameOrId: string): Effect.Effect<Kept, MicroVmError.MicroVmError> =>
    Effect.andThen(
      checkKey(nameOrId),
      Effect.suspend(() => {
        const kept = snapshots.get(names.get(nameOrId) ?? nameOrId)
        return kept === undefined
          ? MicroVmError.fail(new MicroVmError.SnapshotNotFound({ snapshot: nameOrId }))
          : Effect.succeed(kept)
      })
    )

  const isFree = ({ name, replace = false }: Parameters<typeof store.add>[0]) =>
    Effect.suspend(() =>
      name === undefined || replace || !names.has(name)
        ? Effect.void
        : MicroVmError.fail(new MicroVmError.SnapshotAlreadyExists({ snapshot: name }))
    )

  const open = Effect.fnUntraced(function*(
    nameOrId: string
  ): Effect.fn.Return<Snapshot.Snapshot, MicroVmError.MicroVmError> {
    const kept = yield* find(nameOrId)
    const { snapshot } = kept
    const faults = [
      ...kept.faults,
      ...(snapshot.base === undefined ? [] : yield* faultsOfBase(snapshot.base.id))
    ]
    if (faults.length > 0) {
      return yield* MicroVmError.fail(new MicroVmError.SnapshotUnusable({ snapshot: nameOrId, why: faults }))
    }
    kept.lastUsed = (yield* DateTime.now).epochMilliseconds
    snapshots.delete(snapshot.id)
    snapshots.set(snapshot.id, kept)
    return snapshot
  })

  const faultsOfBase = (base: string): Effect.Effect<ReadonlyArray<string>, MicroVmError.MicroVmError> =>
    Effect.matchEffect(open(base), {
      onFailure: (error) => {
        const faults = Snapshot.baseFaults(base, error.reason)
        return faults === undefined ? Effect.fail(error) : Effect.succeed(faults)
      },
      onSuccess: () => Effect.succeed([])
    })

  /** Those that are only the difference to it. */
  const diffsOf = (id: string): ReadonlyArray<string> =>
    [...snapshots.values()].flatMap(({ snapshot }) => snapshot.base?.id === id ? [snapshot.id] : [])

  const store: SnapshotStore["Service"] = {
    add: Effect.fnUntraced(function*(options, write) {
      const { kind, labels, name, spec } = options
      if (name !== undefined) yield* Snapshot.checkName(name)
      yield* isFree(options)
      const id = (++made).toString(16).padStart(64, "0")
      const directory = `/memory/snapshots/${id}`
      const saved = yield* write(directory)
      const now = yield* DateTime.now
      // Somebody else may have had the same name in mind.
      yield* isFree(options)
      const { base } = saved
      const unusable = base === undefined ? [] : yield* faultsOfBase(base)
      if (unusable.length > 0) {
        return yield* MicroVmError.fail(new MicroVmError.SnapshotUnusable({ snapshot: id, why: unusable }))
      }
      const createdAt = DateTime.formatIso(now)
      const snapshot = {
        id,
        directory,
        manifest: { format: 1, kind, ...Snapshot.told(saved, labels), spec, createdAt, files: [] },
        ...(base !== undefined && { base: (yield* find(base)).snapshot })
      } as const
      snapshots.set(id, { snapshot, faults: [], lastUsed: now.epochMilliseconds })
      if (name !== undefined) names.set(name, id)
      return snapshot
    }),
    open,
    verify: open,
    list: Effect.sync(() =>
      [...snapshots.values()].toReversed().map(({ lastUsed, snapshot: { id, manifest } }) => ({
        id,
        names: namesOf(id),
        manifest,
        bytes: 0,
        lastUsed
      }))
    ),
    remove: (nameOrId) =>
      Effect.andThen(
        checkKey(nameOrId),
        Effect.suspend(() => {
          const id = names.get(nameOrId) ?? nameOrId
          const known = namesOf(id)
          if (names.has(nameOrId) && known.length > 1) return Effect.succeed(names.delete(nameOrId))
          const by = diffsOf(id)
          if (by.length > 0) return MicroVmError.fail(new MicroVmError.SnapshotInUse({ snapshot: nameOrId, by }))
          for (const name of known) names.delete(name)
          return Effect.succeed(snapshots.delete(id))
        })
      )
  }
  return {
    store,
    corrupt: (nameOrId, why) => Effect.map(find(nameOrId), ({ faults }) => void faults.push(why))
  }
}
