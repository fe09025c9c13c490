import * as Effect from "effect/Effect"
import type { MachineSpec } from "../MachineSpec.ts"
import type { MicroVmError } from "../MicroVmError.ts"
import type { MicroVmProvider } from "../MicroVmProvider.ts"
import * as Snapshot from "../Snapshot.ts"

type Disks = Pick<MicroVmProvider["Service"], "disks">

/** Why a machine with these disks cannot go on where a snapshot was made. */
export const diskFaults = (
  { disks }: Disks,
  { drives }: Pick<MachineSpec, "drives">,
  manifest: Snapshot.Manifest
): Effect.Effect<ReadonlyArray<string>, MicroVmError> =>
  disks === undefined || drives.length === 0 || manifest.disks === undefined
    ? Effect.succeed([])
    : Effect.map(disks(drives, manifest.disks), (here) => Snapshot.diskFaults(manifest.disks ?? [], here))

/** Looks at the disks of a machine, while its guest stands still, and adds what was seen to what was written of it. */
export const withDisks = <E, R>(
  { disks }: Disks,
  { drives }: Pick<MachineSpec, "drives">,
  save: Effect.Effect<Snapshot.Saved, E, R>
): Effect.Effect<Snapshot.Saved, E | MicroVmError, R> =>
  disks === undefined || drives.length === 0
    ? save
    : Effect.flatMap(save, (saved) => Effect.map(disks(drives), (seen) => ({ ...saved, disks: seen })))

/** What is read of disks is read while the guest runs, as nobody writes to those. */
export const readDisks = (
  { disks }: Disks,
  { drives }: Pick<MachineSpec, "drives">
): Effect.Effect<void, MicroVmError> => {
  const readOnly = drives.filter((drive) => drive.readOnly)
  return disks === undefined || readOnly.length === 0 ? Effect.void : Effect.asVoid(disks(readOnly))
}
