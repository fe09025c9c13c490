import * as Effect from "effect/Effect"
import type { MachineSpec } from "../MachineSpec.ts"
import * as MicroVmError from "../MicroVmError.ts"
import type { MicroVmProvider } from "../MicroVmProvider.ts"
import * as Snapshot from "../Snapshot.ts"

type Disks = Pick<MicroVmProvider["Service"], "disks">

/** Fails where a machine with these disks cannot go on where a snapshot was made: it is the disks that are not right. */
export const checkDisks = Effect.fnUntraced(function*(
  { disks }: Disks,
  { drives }: Pick<MachineSpec, "drives">,
  { id, manifest: { disks: saved } }: Snapshot.Snapshot
): Effect.fn.Return<void, MicroVmError.MicroVmError> {
  if (disks === undefined || drives.length === 0 || saved === undefined) return
  const why = Snapshot.diskFaults(saved, yield* disks(drives, saved))
  if (why.length === 0) return
  const remedy = "Give it the disks of that moment"
  return yield* MicroVmError.fail(new MicroVmError.SnapshotUnusable({ snapshot: id, why, remedy }))
})

/** What a machine does for its disks when it is saved. */
export interface Opened {
  /** While the guest runs. Fails where the machine has another file than the one that is there now. */
  readonly check: Effect.Effect<void, MicroVmError.MicroVmError>
  /** While the guest stands still: adds what is seen of them to what is written of the machine. */
  readonly with: <E, R>(
    save: Effect.Effect<Snapshot.Saved, E, R>
  ) => Effect.Effect<Snapshot.Saved, E | MicroVmError.MicroVmError, R>
}

/**
 * Looks at which files the disks are, before a monitor opens them: what is put in the place of one later is not what its guest
 * writes to.
 */
export const opening = Effect.fnUntraced(function*(
  { disks }: Disks,
  { drives, id }: Pick<MachineSpec, "drives" | "id">
): Effect.fn.Return<Opened> {
  if (disks === undefined || drives.length === 0) return { check: Effect.void, with: (save) => save }
  // Of what is written to, nothing is read.
  const look = disks(drives.map(({ name, path }) => ({ name, path, readOnly: false })))
  // A disk that is not there is the backend's to tell of.
  const opened = yield* Effect.orElseSucceed(look, (): ReadonlyArray<Snapshot.Disk> => [])
  const compare = (seen: ReadonlyArray<Snapshot.Disk>): Effect.Effect<void, MicroVmError.MicroVmError> => {
    const replaced = seen.filter(({ file, name }) => {
      const was = opened.find((one) => one.name === name)
      return was !== undefined && was.file !== file
    })
    if (replaced.length === 0) return Effect.void
    const names = replaced.map(({ name }) => name).join(", ")
    const cause = new Error(`another file was put in the place of its disk ${names} since it was launched`)
    return MicroVmError.fail(new MicroVmError.OperationFailed({ id, operation: "snapshot", cause }))
  }
  const readOnly = drives.filter((drive) => drive.readOnly)
  // What is read of disks is read while the guest runs, as nobody writes to those.
  const read = readOnly.length === 0 ? Effect.void : Effect.asVoid(disks(readOnly))
  return {
    check: Effect.andThen(Effect.flatMap(look, compare), read),
    with: (save) =>
      Effect.flatMap(
        save,
        (saved) => Effect.flatMap(disks(drives), (seen) => Effect.as(compare(seen), { ...saved, disks: seen }))
      )
  }
})
