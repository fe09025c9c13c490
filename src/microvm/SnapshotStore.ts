/**
 * Where snapshots are kept.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { MicroVmError } from "./MicroVmError.ts"
import type * as Snapshot from "./Snapshot.ts"

/**
 * What goes into the manifest, beside what the backend tells.
 *
 * @category options
 * @since 0.1.0
 */
export interface AddOptions {
  readonly kind: Snapshot.Manifest["kind"]
  readonly spec: Snapshot.Spec
  /** A name to find it by. Default none: its id finds it. */
  readonly name?: string | undefined
  /** May the name be taken from another snapshot, which then has one less? Default false. */
  readonly replace?: boolean | undefined
  /** How many bytes it may take. Where they are not free, it fails before `write` is run. Default: not asked. */
  readonly room?: number | undefined
  /** Default none. */
  readonly labels?: Readonly<Record<string, string>> | undefined
}

/**
 * A snapshot as it is listed; its files have not been looked at.
 *
 * @category models
 * @since 0.1.0
 */
export interface Stored {
  readonly id: string
  /** In their alphabetical order; empty when only the id finds it. */
  readonly names: ReadonlyArray<string>
  /** Absent when the manifest cannot be read, or is not what the id vouches for. */
  readonly manifest?: Snapshot.Manifest
  /** What it takes on the disk. */
  readonly bytes: number
  /** When it was last opened, or else made, in milliseconds since 1970. */
  readonly lastUsed: number
}

/**
 * Snapshots, each under its id and any number of names. A name or an id is given where one is asked for; what can be
 * neither fails with `InvalidSpec`.
 *
 * - `add`: makes one. `write` gets an empty directory and fills it; it is there for others when all of it is on the
 *   disk, or not at all. A name that another has fails with `SnapshotAlreadyExists` before `write` is run, and after
 *   it, when another has got it meanwhile. So does one whose base cannot be used, with `SnapshotUnusable`. An interruption leaves nothing
 *   but a snapshot that already has its name.
 * - `open`: a snapshot that can be trusted: its manifest is what its id vouches for, and its files are what the
 *   manifest says; so is all that it is only the difference to. Fails with `SnapshotNotFound`, and with `SnapshotUnusable`, which says what is wrong.
 * - `verify`: like `open`, but takes no short cut: every byte is read.
 * - `list`: all of them, the one used last first.
 * - `remove`: forgets a name, and deletes the snapshot when no other name means it. An id deletes it at once. Machines that
 *   were restored from it go on. Tells whether there was one. Fails with `SnapshotInUse` where others are the difference to
 *   it: they would be lost with it.
 *
 * All fail with `StoreFailed` when the store itself cannot be used.
 *
 * @category services
 * @since 0.1.0
 */
export class SnapshotStore extends Context.Service<SnapshotStore, {
  readonly add: <E, R>(
    options: AddOptions,
    write: (directory: string) => Effect.Effect<Snapshot.Saved, E, R>
  ) => Effect.Effect<Snapshot.Snapshot, E | MicroVmError, R>
  readonly open: (nameOrId: string) => Effect.Effect<Snapshot.Snapshot, MicroVmError>
  readonly verify: (nameOrId: string) => Effect.Effect<Snapshot.Snapshot, MicroVmError>
  readonly list: Effect.Effect<ReadonlyArray<Stored>, MicroVmError>
  readonly remove: (nameOrId: string) => Effect.Effect<boolean, MicroVmError>
}>()("effect-microvm-runtime/microvm/SnapshotStore") {}
