/**
 * Who owns what, surviving our death: a record for each machine, written before anything of it is acquired and removed after
 * all of it was released.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Result from "effect/Result"
import * as Semaphore from "effect/Semaphore"
import * as OwnedFiles from "../process/OwnedFiles.ts"
import type { ProcessHost } from "../process/ProcessHost.ts"
import * as ProcessIdentity from "../process/ProcessIdentity.ts"
import * as RecordFiles from "./internal/recordFiles.ts"
import * as RecordText from "./internal/recordText.ts"
import * as StateDirectory from "./internal/stateDirectory.ts"
import * as JournalError from "./JournalError.ts"
import type { Lease } from "./Lease.ts"
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
 * What is to become of a record, in one write.
 *
 * @category options
 * @since 0.1.0
 */
export interface Change {
  /** Before something is acquired. What is claimed already, and not forgotten by the same change, is not claimed twice. */
  readonly claim?: ReadonlyArray<Claim> | undefined
  /** After something was released. What is not claimed is passed over. */
  readonly forget?: ReadonlyArray<Claim> | undefined
  readonly phase?: Phase | undefined
  /** Beside those that there are. */
  readonly labels?: Readonly<Record<string, string>> | undefined
  readonly spec?: MachineRecord["spec"] | undefined
  /** This process is the supervisor from now on. */
  readonly adopt?: true | undefined
}

/**
 * One machine's record. Each write is on the disk when it succeeds; when it fails, the record is as it was. All but `forget` and
 * `close` fail with `RecordClosed` when it was closed.
 *
 * @category models
 * @since 0.1.0
 */
export interface Entry {
  readonly id: string
  readonly token: string
  /** The last one, when it was closed. */
  readonly record: Effect.Effect<MachineRecord>
  readonly update: (change: Change) => Effect.Effect<void, JournalError.JournalError>
  readonly claim: (...claims: ReadonlyArray<Claim>) => Effect.Effect<void, JournalError.JournalError>
  readonly forget: (...claims: ReadonlyArray<Claim>) => Effect.Effect<void, JournalError.JournalError>
  readonly adopt: Effect.Effect<void, JournalError.JournalError>
  readonly enter: (phase: Phase) => Effect.Effect<void, JournalError.JournalError>
  readonly label: (labels: Readonly<Record<string, string>>) => Effect.Effect<void, JournalError.JournalError>
  readonly respec: (spec: MachineRecord["spec"]) => Effect.Effect<void, JournalError.JournalError>
  /** Removes the record. */
  readonly close: Effect.Effect<void, JournalError.JournalError>
}

/**
 * The journal of one state directory. Holding it is the lease: no other supervisor has this directory meanwhile.
 *
 * @category services
 * @since 0.1.0
 */
export class Journal extends Context.Service<Journal, {
  readonly directory: string
  /**
   * Writes a new record. Fails with `InvalidId`, `RecordExists` and `InvalidRecord`. When it is interrupted, the record may be there
   * or not, so use it where that cannot be, as in `Effect.acquireRelease`.
   */
  readonly open: (record: NewRecord) => Effect.Effect<Entry, JournalError.JournalError>
  /** All of them, those of other supervisors, which are gone, included. In order of id. */
  readonly entries: Effect.Effect<ReadonlyArray<Entry>>
  /** What was moved aside, now or earlier, and is still there. */
  readonly quarantined: Effect.Effect<ReadonlyArray<Quarantined>, JournalError.JournalError>
}>()("effect-microvm-runtime/journal/Journal") {}

/** Where records are kept. */
interface Store {
  /** Puts one text in the place of another; none for no record. When it fails, the other is still there. */
  readonly replace: (
    id: string,
    before: string | undefined,
    after: string | undefined
  ) => Effect.Effect<void, PlatformError.PlatformError>
  readonly isFree: (id: string) => Effect.Effect<boolean>
  readonly quarantined: Effect.Effect<ReadonlyArray<Quarantined>, JournalError.JournalError>
}

const written = (record: MachineRecord): Effect.Effect<RecordText.Written, JournalError.JournalError> =>
  Result.match(RecordText.written(record), {
    onFailure: (why) => JournalError.fail(new JournalError.InvalidRecord({ id: record.id, why })),
    onSuccess: Effect.succeed
  })

/** How many writes there may be at a time. */
const WRITERS = 64

/** The journal over a store: what both kinds have in common. */
const over = Effect.fnUntraced(function*(
  directory: string,
  store: Store,
  records: ReadonlyArray<RecordText.Written>
) {
  const self = yield* ProcessIdentity.self
  const entries = new Map<string, Entry>()
  const opening = new Set<string>()
  const writers = Semaphore.makeUnsafe(WRITERS)
  let isHeld = true
  yield* Effect.addFinalizer(() => {
    isHeld = false
    // Writes that have begun come to their end while the directory is ours.
    return writers.withPermits(WRITERS)(Effect.void)
  })

  /** Not to be interrupted once begun, so that memory and disk agree. */
  const put = <A>(
    id: string,
    before: string | undefined,
    after: string | undefined,
    then: () => A
  ): Effect.Effect<A, JournalError.JournalError> =>
    Effect.suspend(() =>
      isHeld
        ? Effect.mapBoth(store.replace(id, before, after), {
          onFailure: (cause) =>
            JournalError.make(
              new JournalError.WriteFailed({ id, isNoSpace: OwnedFiles.isNoSpace(cause), cause })
            ),
          onSuccess: then
        })
        : JournalError.fail(new JournalError.RecordClosed({ id }))
    ).pipe(Effect.uninterruptible, writers.withPermits(1))

  const makeEntry = (initial: RecordText.Written): Entry => {
    const { id, token } = initial.record
    const turns = Semaphore.makeUnsafe(1)
    let now = initial
    let isOpen = true
    const whileOpen = (
      change: Effect.Effect<void, JournalError.JournalError>,
      otherwise: Effect.Effect<void, JournalError.JournalError>
    ) => turns.withPermits(1)(Effect.suspend(() => isOpen ? change : otherwise))
    const closed = JournalError.fail(new JournalError.RecordClosed({ id }))

    const change = Effect.fnUntraced(function*({ adopt, claim = [], forget = [], labels, phase, spec }: Change) {
      const { record } = now
      const kept = Arr.difference(record.claims, forget)
      const next = yield* written({
        ...record,
        supervisor: adopt === true ? self : record.supervisor,
        phase: phase ?? record.phase,
        spec: spec === undefined ? record.spec : spec,
        labels: { ...record.labels, ...labels },
        claims: [...kept, ...Arr.dedupe(Arr.difference(claim, kept))]
      })
      if (next.text === now.text) return
      yield* put(id, now.text, next.text, () => {
        now = next
      })
    })
    const update = Effect.fn("Journal.update")((wanted: Change) => whileOpen(change(wanted), closed))
    return {
      id,
      token,
      record: Effect.sync(() => now.record),
      update,
      claim: (...claim) => update({ claim }),
      forget: (...forget) => whileOpen(change({ forget }), Effect.void),
      adopt: update({ adopt: true }),
      enter: (phase) => update({ phase }),
      label: (labels) => update({ labels }),
      respec: (spec) => update({ spec }),
      close: whileOpen(
        Effect.suspend(() =>
          put(id, now.text, undefined, () => {
            isOpen = false
            entries.delete(id)
          })
        ),
        Effect.void
      ).pipe(Effect.withSpan("Journal.close"))
    }
  }

  for (const one of records) entries.set(one.record.id, makeEntry(one))

  const { bootId } = self
  return Journal.of({
    directory,
    quarantined: store.quarantined,
    entries: Effect.sync(() => Array.from(entries.values()).toSorted((one, other) => one.id < other.id ? -1 : 1)),
    open: Effect.fn("Journal.open")(function*({ claims = [], id, keep, labels = {}, spec }: NewRecord) {
      if (!RecordText.isId(id)) return yield* JournalError.fail(new JournalError.InvalidId({ id }))
      const first = yield* written({
        format: 1,
        id,
        token: yield* RecordFiles.token,
        bootId,
        supervisor: self,
        createdAt: new Date(yield* Clock.currentTimeMillis).toISOString(),
        keep,
        phase: { _tag: "Up" },
        claims: Arr.dedupe(claims),
        spec,
        labels
      })
      const exists = JournalError.fail(new JournalError.RecordExists({ id }))
      return yield* Effect.acquireUseRelease(
        Effect.suspend(() => entries.has(id) || opening.has(id) ? exists : Effect.sync(() => opening.add(id))),
        Effect.fnUntraced(function*() {
          if (!(yield* store.isFree(id))) return yield* exists
          return yield* put(id, undefined, first.text, () => {
            const entry = makeEntry(first)
            entries.set(id, entry)
            return entry
          })
        }),
        () => Effect.sync(() => opening.delete(id))
      )
    })
  })
})

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** The state directory: on a local file system, which may be tmpfs. It is made if there is none, open to this user alone. */
  readonly directory: string
}

/**
 * The journal of a directory. It is ours until the layer's scope closes.
 *
 * Fails with `LeaseHeld` when it is another supervisor's, and with `DirectoryUnusable` when it is not ours alone or cannot be
 * written to. What is among the records and is none, whatever the reason, is moved aside: see `quarantined`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options
): Layer.Layer<Journal, JournalError.JournalError, FileSystem.FileSystem | Lease | Path.Path | ProcessHost> =>
  Layer.effect(
    Journal,
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const path = yield* Path.Path
      const services = Context.pick(FileSystem.FileSystem, Path.Path)(
        yield* Effect.context<FileSystem.FileSystem | Path.Path>()
      )
      const at = yield* StateDirectory.take(options.directory)
      const orUnusable = Effect.mapError((error: PlatformError.PlatformError) =>
        StateDirectory.unusable(at.directory, error)
      )
      const { others, records } = yield* orUnusable(RecordFiles.readAll(at.machines))
      const moved = yield* Effect.forEach(others, (one) => RecordFiles.setAside(at.quarantine, one))
      const store: Store = {
        replace: (id, before, after) => Effect.provideContext(RecordFiles.replace(at, id, before, after), services),
        // What could not be moved aside is in the way.
        isFree: (id) => Effect.map(Effect.option(fs.lstat(path.join(at.machines, `${id}.json`))), Option.isNone),
        quarantined: Effect.map(
          orUnusable(Effect.provideContext(RecordFiles.aside(at.quarantine), services)),
          (aside) => [...aside, ...Arr.getSomes(moved)]
        )
      }
      return yield* over(at.directory, store, records)
    })
  )

/**
 * @category options
 * @since 0.1.0
 */
export interface MemoryOptions {
  /** What the journal says its directory is. Default `/nonexistent`. */
  readonly directory?: string | undefined
  /** What it begins with, as if other supervisors had left it. Default none. */
  readonly records?: ReadonlyArray<MachineRecord> | undefined
}

/**
 * A journal that forgets everything with its scope. It keeps to the same rules, and writes no files.
 *
 * ```ts import.meta.vitest
 * import { Journal } from "effect-microvm-runtime/journal"
 * import { NodeProcessHost } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * const program = Effect.gen(function*() {
 *   const journal = yield* Journal.Journal
 *   const entry = yield* journal.open({ id: "web-1", keep: false, spec: {} })
 *   yield* entry.claim({ kind: "tap", data: { name: "mv-1" } })
 *   const { claims } = yield* entry.record
 *   yield* entry.close
 *   return [claims.length, (yield* journal.entries).length]
 * })
 * const layer = Journal.layerMemory().pipe(Layer.provide(NodeProcessHost.layer))
 * await Effect.runPromise(Effect.provide(program, layer)) // => [1, 0]
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMemory = (
  options: MemoryOptions = {}
): Layer.Layer<Journal, JournalError.JournalError, ProcessHost> =>
  Layer.effect(
    Journal,
    Effect.flatMap(Effect.forEach(options.records ?? [], written), (all) =>
      over(
        options.directory ?? "/nonexistent",
        { replace: () => Effect.void, isFree: () => Effect.succeed(true), quarantined: Effect.succeed([]) },
        all
      ))
  )

/**
 * What a journal says, to somebody who does not have its lease.
 *
 * @category models
 * @since 0.1.0
 */
export interface Peek {
  /** The supervisor that has it, if it is alive and that could be told. */
  readonly holder: ProcessIdentity.ProcessIdentity | undefined
  /** Since when, in ISO 8601, UTC. */
  readonly since: string | undefined
  /** In order of id. */
  readonly records: ReadonlyArray<MachineRecord>
  /** What is among the records, and is none. It stays where it is. */
  readonly others: ReadonlyArray<Quarantined>
}

/**
 * Reads the records of a directory, whoever has it, and changes nothing. Each is whole; they need not be of one moment.
 *
 * Fails with `DirectoryUnusable` when there is no journal, or it cannot be read.
 *
 * @category operations
 * @since 0.1.0
 */
export const peek = Effect.fn("Journal.peek")(function*(
  { directory }: Options
): Effect.fn.Return<Peek, JournalError.JournalError, FileSystem.FileSystem | Path.Path | ProcessHost> {
  const { machines } = yield* StateDirectory.paths(directory)
  const { others, records } = yield* Effect.mapError(
    RecordFiles.readAll(machines),
    (error) => StateDirectory.unusable(directory, error)
  )
  const held = yield* StateDirectory.holderOf(directory)
  return {
    holder: held?.holder,
    since: held?.since,
    records: records.map(({ record }) => record),
    others: others.map(({ path, why }) => ({ path, why }))
  }
})
