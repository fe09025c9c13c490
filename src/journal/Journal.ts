/**
 * Who owns what, surviving our death: a record for each machine, written before anything of it is acquired and removed after
 * all of it was released.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { JournalError } from "./JournalError.ts"
import type { Claim, MachineRecord, Phase } from "./MachineRecord.ts"

/**
 * A file that is no record that this version can read. It was moved aside, and nothing it may speak of was touched.
 *
 * @category models
 * @since 0.1.0
 */
export interface Quarantined {
  /** Where it is now. */
  readonly path: string
  readonly why: string
}

/**
 * What a new record says.
 *
 * @category options
 * @since 0.1.0
 */
export interface NewRecord {
  readonly id: string
  readonly keep: boolean
  readonly spec: MachineRecord["spec"]
  readonly labels?: Readonly<Record<string, string>> | undefined
  /** Those that are known at once: fewer writes. */
  readonly claims?: ReadonlyArray<Claim> | undefined
}

/**
 * One machine's record. Each write is on the disk when it succeeds; when it fails, the record is as it was.
 *
 * @category models
 * @since 0.1.0
 */
export interface Entry {
  readonly id: string
  readonly token: string
  readonly record: Effect.Effect<MachineRecord>
  /** Before something is acquired. */
  readonly claim: (...claims: ReadonlyArray<Claim>) => Effect.Effect<void, JournalError>
  /** After something was released. What is not claimed is passed over. */
  readonly forget: (...claims: ReadonlyArray<Claim>) => Effect.Effect<void, JournalError>
  /** This process is the supervisor from now on. */
  readonly adopt: Effect.Effect<void, JournalError>
  readonly enter: (phase: Phase) => Effect.Effect<void, JournalError>
  readonly label: (labels: Readonly<Record<string, string>>) => Effect.Effect<void, JournalError>
  /** Removes the record. */
  readonly close: Effect.Effect<void, JournalError>
}

/**
 * The journal of one state directory. Holding it is the lease: no other supervisor has this directory meanwhile.
 *
 * @category services
 * @since 0.1.0
 */
export class Journal extends Context.Service<Journal, {
  readonly directory: string
  /** Writes a new record. Fails with `RecordExists` and `InvalidId`. */
  readonly open: (record: NewRecord) => Effect.Effect<Entry, JournalError>
  /** All of them, those of other supervisors, which are gone, included. In order of id. */
  readonly entries: Effect.Effect<ReadonlyArray<Entry>>
  /** What was moved aside, now or earlier, and is still there. */
  readonly quarantined: Effect.Effect<ReadonlyArray<Quarantined>, JournalError>
}>()("effect-microvm-runtime/journal/Journal") {}
