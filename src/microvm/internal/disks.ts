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

/** Looks at the disks of a machine, while its guest stands still, and adds what was seen to what was written of it. */
export const withDisks = <E, R>(
  { disks }: Disks,
  { drives }: Pick<MachineSpec, "drives">,
  save: Effect.Effect<Snapshot.Saved, E, R>
): Effect.Effect<Snapshot.Saved, E | MicroVmError.MicroVmError, R> =>
  disks === undefined || drives.length === 0
    ? save
    : Effect.flatMap(save, (saved) => Effect.map(disks(drives), (seen) => ({ ...saved, disks: seen })))

/** What is read of disks is read while the guest runs, as nobody writes to those. */
export const readDisks = (
  { disks }: Disks,
  { drives }: Pick<MachineSpec, "drives">
): Effect.Effect<void, MicroVmError.MicroVmError> => {
  const readOnly = drives.filter((drive) => drive.readOnly)
  return disks === undefined || readOnly.length === 0 ? Effect.void : Effect.asVoid(disks(readOnly))
}
