/**
 * Where a run leaves what others are to know of it, while it goes on and after its end.
 *
 * ```
 *   STATE/runs/ID/options.json       what was asked for, and by which process
 *                 journal/           what its machine has of this host; there is a record as long as anything is left
 *                 output.N.log       what its command has said, see RunLog
 *                 console.N.log      what its machine's console has said
 *                 report.json        how it ended, once it has
 *                 end.json           the same as far as it is known, from the end of its command on, if its supervisor is killed
 * ```
 *
 * Nothing here is secret, and all of it is this user's alone.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Schema from "effect/Schema"
import { MachineId, MachineRecord } from "../journal/MachineRecord.ts"
import * as ExitCode from "../lifecycle/ExitCode.ts"
import { RunReport } from "../lifecycle/RunReport.ts"
import { Elapsed } from "../lifecycle/ShutdownOutcome.ts"
import * as OwnedFiles from "../process/OwnedFiles.ts"
import * as OwnerLock from "../process/OwnerLock.ts"
import type { ProcessHost } from "../process/ProcessHost.ts"
import * as ProcessIdentity from "../process/ProcessIdentity.ts"
import { isTaken, modifiedAt, put, readJson } from "./internal/runFiles.ts"

/**
 * What a run was asked for. `supervisor` is the process that it belongs to; `startedAt` is in ISO 8601, UTC; of `env` there are
 * the names only. `grace`, `timeout` and `watchdog` are in milliseconds.
 *
 * @category schemas
 * @since 0.1.0
 */
export const RunInfo = Schema.Struct({
  format: Schema.Literal(1),
  id: MachineId,
  supervisor: ProcessIdentity.ProcessIdentity,
  startedAt: Schema.String,
  detached: Schema.Boolean,
  command: Schema.Array(Schema.String),
  env: Schema.Array(Schema.String),
  backend: Schema.String,
  image: Schema.String,
  vcpus: Schema.Int,
  memoryMib: Schema.Int,
  grace: Elapsed,
  timeout: Schema.optionalKey(Elapsed),
  watchdog: Schema.optionalKey(Elapsed)
})

/**
 * @category models
 * @since 0.1.0
 */
export type RunInfo = typeof RunInfo.Type

/**
 * The places of a run.
 *
 * @category models
 * @since 0.1.0
 */
export interface Paths {
  /** Its logs are here too. */
  readonly directory: string
  readonly journal: string
  readonly options: string
  readonly end: string
  readonly report: string
}

/**
 * A run as its directory tells it.
 *
 * - `up`: its supervisor lives, and it has not ended.
 * - `over`: it has ended. Without a report its supervisor has died before it had a machine.
 * - `left behind`: its supervisor is gone, and something is left: the machine, or what it had of this host. With a report, it has
 *   ended, and that could not be removed then.
 *
 * @category models
 * @since 0.1.0
 */
export interface Run {
  readonly id: string
  readonly state: "up" | "over" | "left behind"
  readonly paths: Paths
  readonly info: RunInfo
  readonly record: MachineRecord | undefined
  readonly report: RunReport | undefined
  /** Milliseconds since 1970, when it has ended. */
  readonly endedAt: number | undefined
}

/**
 * What a run that is over exits with: 125 when nobody has seen its end, none when it is not over.
 *
 * @category accessors
 * @since 0.1.0
 */
export const exitCodeOf = ({ record, report, state }: Run): number | undefined => {
  if (report !== undefined) return report.exitCode
  if (record?.phase._tag === "Over") return record.phase.exitCode
  return state === "over" ? ExitCode.run.runtimeFailed : undefined
}

/**
 * There is no run of this id here, or none whose id begins so.
 *
 * @category reasons
 * @since 0.1.0
 */
export class NoSuchRun extends Data.TaggedError("NoSuchRun")<{
  readonly id: string
  readonly there: ReadonlyArray<string>
}> {
  override get message(): string {
    const there = this.there.length === 0 ? "there is none" : `there ${list(this.there)}`
    return `there is no machine ${JSON.stringify(this.id)}: ${there}`
  }
}

const maxTold = 10
const list = (ids: ReadonlyArray<string>): string => {
  const more = ids.length > maxTold ? ` and ${ids.length - maxTold} more` : ""
  return `${ids.length === 1 ? "is" : "are"} ${ids.slice(0, maxTold).join(", ")}${more}`
}

/**
 * Several ids begin so.
 *
 * @category reasons
 * @since 0.1.0
 */
export class AmbiguousId extends Data.TaggedError("AmbiguousId")<{
  readonly id: string
  readonly matches: ReadonlyArray<string>
}> {
  override get message(): string {
    return `more than one id begins with ${JSON.stringify(this.id)}: there ${list(this.matches)}; give more of it`
  }
}

/**
 * It goes on, so there cannot be another of its id, and it cannot be removed.
 *
 * @category reasons
 * @since 0.1.0
 */
export class StillUp extends Data.TaggedError("StillUp")<{ readonly id: string }> {
  override get message(): string {
    return `machine ${this.id} is up: end it first, with microvm stop ${this.id}, or name another`
  }
}

/**
 * Its supervisor has died, and nobody looks after what is left of it.
 *
 * @category reasons
 * @since 0.1.0
 */
export class LeftBehind extends Data.TaggedError("LeftBehind")<{ readonly id: string }> {
  override get message(): string {
    return `machine ${this.id} was left behind by its supervisor: go on with it, or clean up, by microvm recover`
  }
}

/**
 * It has ended.
 *
 * @category reasons
 * @since 0.1.0
 */
export class IsOver extends Data.TaggedError("IsOver")<{ readonly id: string; readonly exitCode: number }> {
  override get message(): string {
    return `machine ${this.id} has ended, with exit code ${this.exitCode}: see microvm logs ${this.id}`
  }
}

/**
 * The state directory cannot be used.
 *
 * @category reasons
 * @since 0.1.0
 */
export class StateUnusable extends Data.TaggedError("StateUnusable")<{
  readonly directory: string
  readonly why: string
  readonly cause?: unknown
}> {
  override get message(): string {
    return `the state directory ${this.directory} cannot be used, ${this.why}: set MICROVM_STATE_DIR to one that can`
  }
}

/**
 * The one error of this module. Its `reason` says what is wrong.
 *
 * @category errors
 * @since 0.1.0
 */
export class RunDirectoryError extends Data.TaggedError("RunDirectoryError")<{
  readonly reason: NoSuchRun | AmbiguousId | StillUp | LeftBehind | IsOver | StateUnusable
}> {
  override get message(): string {
    return this.reason.message
  }
}

/**
 * Wraps a reason.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fail = (reason: RunDirectoryError["reason"]): Effect.Effect<never, RunDirectoryError> =>
  Effect.fail(new RunDirectoryError({ reason }))

type Services = FileSystem.FileSystem | Path.Path | ProcessHost
type Failure = RunDirectoryError | PlatformError.PlatformError | OwnerLock.LockHeld

const lockWithin = Duration.seconds(10)

const why = (error: PlatformError.PlatformError | OwnerLock.LockHeld): string => {
  if (error._tag === "LockHeld") return error.message
  const { cause } = error.reason
  return cause instanceof Error ? cause.message : error.message
}

/** All that goes wrong with the files themselves. */
const usable = (directory: string) =>
<A, R>(
  effect: Effect.Effect<A, Failure, R>
): Effect.Effect<A, RunDirectoryError, R> =>
  Effect.mapError(effect, (error) =>
    error._tag === "RunDirectoryError"
      ? error
      : new RunDirectoryError({ reason: new StateUnusable({ directory, why: why(error), cause: error }) }))

/**
 * The directory of what runs: `MICROVM_STATE_DIR`, by default `/var/lib/effect-microvm` for root, else `effect-microvm` in
 * `XDG_STATE_HOME` or in `~/.local/state`. It need not be there yet.
 *
 * @category accessors
 * @since 0.1.0
 */
export const stateDirectory: Effect.Effect<string, Config.ConfigError, Path.Path> = Effect.gen(function*() {
  const path = yield* Path.Path
  const own = yield* Config.option(Config.String("MICROVM_STATE_DIR"))
  if (Option.isSome(own)) return path.resolve(own.value)
  if (process.geteuid?.() === 0) return "/var/lib/effect-microvm"
  const base = yield* Config.option(Config.String("XDG_STATE_HOME"))
  // XDG Base Directory Specification: a relative path is invalid and to be ignored.
  return Option.isSome(base) && path.isAbsolute(base.value)
    ? path.join(base.value, "effect-microvm")
    : path.join(yield* Config.String("HOME"), ".local", "state", "effect-microvm")
})

const runsOf = (state: string) => Effect.map(Path.Path, (path) => path.join(state, "runs"))

/**
 * Where all of a run is. Nothing is made.
 *
 * @category accessors
 * @since 0.1.0
 */
export const pathsOf = (state: string, id: string): Effect.Effect<Paths, never, Path.Path> =>
  Effect.map(Path.Path, (path) => {
    const directory = path.join(state, "runs", id)
    const at = (name: string) => path.join(directory, name)
    return {
      directory,
      journal: at("journal"),
      options: at("options.json"),
      end: at("end.json"),
      report: at("report.json")
    }
  })

/** Is anything of its machine left, whether or not its record can be read? */
const remains = Effect.fnUntraced(function*({ journal }: Paths) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const lists = yield* Effect.forEach(
    ["machines", "held", "quarantine"],
    (folder) => Effect.orElseSucceed(fs.readDirectory(path.join(journal, folder)), () => [])
  )
  return lists.flat().length > 0
})

const decodeSize = Schema.decodeUnknownOption(Schema.Struct({ vcpus: Schema.Int, memoryMib: Schema.Int }))

/** Of a run of which nothing can be read, but something is left. */
const infoOfNothing = (id: string, at: number): RunInfo => ({
  format: 1,
  id,
  supervisor: { bootId: "", pid: 1, startTime: 0 },
  startedAt: new Date(at).toISOString(),
  detached: true,
  command: [""],
  env: [],
  backend: "auto",
  image: "",
  vcpus: 0,
  memoryMib: 0,
  grace: Duration.seconds(5)
})

/** What a machine's record tells of its run, when what was written of that is lost: a power failure may leave only the record. */
const infoOfRecord = ({ createdAt, id, keep, labels, spec, supervisor }: MachineRecord): RunInfo => ({
  format: 1,
  id,
  supervisor,
  startedAt: createdAt,
  detached: keep,
  command: [labels["command"] ?? ""],
  env: [],
  backend: labels["backend"] ?? "auto",
  image: labels["image"] ?? "",
  ...Option.getOrElse(decodeSize(spec), () => ({ vcpus: 0, memoryMib: 0 })),
  grace: Duration.seconds(5)
})

/** None when there is nothing, or nothing that can be read and nothing is left of its machine. */
const inspect: (
  state: string,
  id: string
) => Effect.Effect<Run | undefined, never, Services> = Effect.fnUntraced(function*(state: string, id: string) {
  const path = yield* Path.Path
  const paths = yield* pathsOf(state, id)
  const recordFile = path.join(paths.journal, "machines", `${id}.json`)
  const before = yield* readJson(MachineRecord, recordFile)
  const told = (yield* readJson(RunInfo, paths.options)) ?? (before === undefined ? undefined : infoOfRecord(before))
  if (told === undefined && !(yield* remains(paths))) return undefined
  const info = told ?? infoOfNothing(id, (yield* modifiedAt(paths.directory)) ?? 0)
  const isAlive = (yield* ProcessIdentity.isAlive(info.supervisor)) ||
    (before !== undefined && (yield* ProcessIdentity.isAlive(before.supervisor)))
  // Read now: what a supervisor leaves, it has left before it is gone.
  const record = isAlive ? before : yield* readJson(MachineRecord, recordFile)
  // Who was killed while its machine stopped has not come to the report.
  const report = (yield* readJson(RunReport, paths.report)) ??
    (isAlive ? undefined : yield* readJson(RunReport, paths.end))
  const endedAt = (yield* modifiedAt(paths.report)) ??
    (yield* modifiedAt(report === undefined ? paths.options : paths.end))
  const common = { id, paths, info, record, report }
  if (isAlive) {
    return report === undefined ? { ...common, state: "up", endedAt: undefined } : { ...common, state: "over", endedAt }
  }
  return record !== undefined || (yield* remains(paths))
    ? { ...common, state: "left behind", endedAt: report === undefined ? undefined : endedAt }
    : { ...common, state: "over", endedAt }
})

/** The ids of directories that are there. */
const ids = Effect.fnUntraced(function*(state: string, except?: string) {
  const fs = yield* FileSystem.FileSystem
  const names = yield* Effect.catchIf(
    fs.readDirectory(yield* runsOf(state)),
    (error) => error.reason._tag === "NotFound",
    () => Effect.succeed([])
  )
  return names.filter((name) => name !== except).filter(Schema.is(MachineId)).toSorted()
})

/**
 * All runs that are kept, in the order of their starts.
 *
 * @category operations
 * @since 0.1.0
 */
export const all = Effect.fn("RunDirectory.all")(function*(
  state: string
): Effect.fn.Return<ReadonlyArray<Run>, RunDirectoryError, Services> {
  const found = yield* Effect.forEach(yield* usable(state)(ids(state)), (id) => inspect(state, id), { concurrency: 16 })
  return found
    .filter((run) => run !== undefined)
    .toSorted((one, other) => Date.parse(one.info.startedAt) - Date.parse(other.info.startedAt))
})

/**
 * Those that were left behind. Of those with nothing left, and of the run `except`, nothing is read.
 *
 * @category operations
 * @since 0.1.0
 */
export const leftBehind = Effect.fn("RunDirectory.leftBehind")(function*(
  state: string,
  except?: string
): Effect.fn.Return<ReadonlyArray<Run>, RunDirectoryError, Services> {
  const look = Effect.fnUntraced(function*(id: string) {
    return (yield* remains(yield* pathsOf(state, id))) ? yield* inspect(state, id) : undefined
  })
  const found = yield* Effect.forEach(yield* usable(state)(ids(state, except)), look)
  return found.flatMap((run) => run?.state === "left behind" ? [run] : [])
})

/**
 * The run of this id, or the one whose id begins so, unless it is given as a `whole`: once a run was found, another one is not to
 * be taken for it when it is removed. Fails with `NoSuchRun` and `AmbiguousId`.
 *
 * @category operations
 * @since 0.1.0
 */
export const find = Effect.fn("RunDirectory.find")(function*(
  state: string,
  given: string,
  { whole = false }: { readonly whole?: boolean | undefined } = {}
): Effect.fn.Return<Run, RunDirectoryError, Services> {
  const there = yield* usable(state)(ids(state))
  const matches = given === "" || whole ? [] : there.filter((id) => id.startsWith(given))
  const [first, ...others] = there.includes(given) ? [given] : matches
  if (others.length > 0) return yield* fail(new AmbiguousId({ id: given, matches }))
  const run = first === undefined ? undefined : yield* inspect(state, first)
  return run ?? (yield* fail(new NoSuchRun({ id: given, there })))
})

/**
 * Makes a directory that is this user's alone (mode 0700), unless it is there; those above it are made as any.
 *
 * @category operations
 * @since 0.1.0
 */
export const ensurePrivate = Effect.fnUntraced(function*(directory: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  if (yield* fs.exists(directory)) return
  yield* OwnedFiles.ensureDirectory(path.dirname(directory))
  yield* Effect.catchIf(
    fs.makeDirectory(directory, { mode: 0o700 }),
    (error) => error.reason._tag === "AlreadyExists",
    () => Effect.void
  )
})

/** A directory of ours alone for what is made and for what goes; those of the dead are removed. */
const workplace = Effect.fnUntraced(function*(state: string) {
  const temporary = (yield* Path.Path).join(state, "tmp")
  yield* ensurePrivate(state)
  yield* ensurePrivate(temporary)
  yield* OwnedFiles.sweep(temporary)
  return yield* OwnedFiles.temporaryDirectory(temporary)
})

/** One who removes at a time, so that nobody removes what another has just made in its place. */
const lock = Effect.fnUntraced(function*(state: string, own: string) {
  const file = (yield* Path.Path).join(state, "runs.lock")
  yield* OwnerLock.acquire({ file, own, patience: lockWithin })
})

const encodeInfo = (info: RunInfo) => Effect.orDie(Schema.encodeEffect(Schema.fromJsonString(RunInfo))(info))

/** What keeps a run from being removed. */
const obstacle = Effect.fnUntraced(function*(state: string, id: string) {
  const run = yield* inspect(state, id)
  if (run?.state === "up") return new StillUp({ id })
  return (yield* remains(yield* pathsOf(state, id))) ? new LeftBehind({ id }) : undefined
})

/** Whoever removes has the lock. A run goes in one step: what is seen of one is whole, or it would be taken for another's. */
const removeOver = Effect.fnUntraced(function*(state: string, id: string, own: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const inTheWay = yield* obstacle(state, id)
  if (inTheWay !== undefined) return yield* fail(inTheWay)
  const aside = yield* fs.makeTempDirectory({ directory: own })
  yield* Effect.catchIf(
    fs.rename((yield* pathsOf(state, id)).directory, path.join(aside, "run")),
    (error) => error.reason._tag === "NotFound",
    () => Effect.void
  )
})

/**
 * Makes the directory of a run of this process. One of the same id that is over is removed. Fails with `StillUp` and `LeftBehind`.
 *
 * @category operations
 * @since 0.1.0
 */
export const begin = Effect.fn("RunDirectory.begin")(function*(
  state: string,
  info: Omit<RunInfo, "format" | "startedAt" | "supervisor">
): Effect.fn.Return<Paths, RunDirectoryError, Services> {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const paths = yield* pathsOf(state, info.id)
  const make = Effect.gen(function*() {
    const own = yield* workplace(state)
    yield* ensurePrivate(path.dirname(paths.directory))
    const whole = path.join(own, "run")
    yield* fs.makeDirectory(whole, { mode: 0o700 })
    const startedAt = new Date(yield* Clock.currentTimeMillis).toISOString()
    const text = yield* encodeInfo({ ...info, format: 1, supervisor: yield* ProcessIdentity.self, startedAt })
    yield* fs.writeFileString(path.join(whole, path.basename(paths.options)), text)
    // Nobody waits for those who remove; who was quicker is in the way.
    const place: Effect.Effect<void, Failure, Services> = Effect.catchIf(
      fs.rename(whole, paths.directory),
      isTaken,
      () => Effect.andThen(Effect.scoped(Effect.andThen(lock(state, own), removeOver(state, info.id, own))), place)
    )
    yield* place
    return paths
  })
  return yield* usable(state)(Effect.scoped(make))
})

/**
 * This process goes on with a run that was left behind. Fails with `NoSuchRun`.
 *
 * @category operations
 * @since 0.1.0
 */
export const adopt = Effect.fn("RunDirectory.adopt")(function*(
  state: string,
  id: string
): Effect.fn.Return<Run, RunDirectoryError, Services> {
  const run = yield* inspect(state, id)
  if (run === undefined) return yield* fail(new NoSuchRun({ id, there: yield* usable(state)(ids(state)) }))
  const info = { ...run.info, supervisor: yield* ProcessIdentity.self }
  yield* usable(state)(put(run.paths.options, yield* encodeInfo(info), false))
  return { ...run, info }
})

/**
 * Leaves the report of a run, which is over with that. It is on the disk when this is done. While the machine of one that has ended
 * still `stops`, the report is for whoever comes after a supervisor that does not live to see that.
 *
 * @category operations
 * @since 0.1.0
 */
export const conclude = Effect.fn("RunDirectory.conclude")(function*(
  state: string,
  report: RunReport,
  { stops = false }: { readonly stops?: boolean } = {}
): Effect.fn.Return<void, RunDirectoryError, Services> {
  const paths = yield* pathsOf(state, report.id)
  const text = yield* Effect.orDie(Schema.encodeEffect(Schema.fromJsonString(RunReport))(report))
  yield* usable(state)(put(stops ? paths.end : paths.report, text, !stops))
})

/**
 * Removes a run that is over, with its logs. Fails with `StillUp` and `LeftBehind`.
 *
 * @category operations
 * @since 0.1.0
 */
export const remove = Effect.fn("RunDirectory.remove")(function*(
  state: string,
  id: string
): Effect.fn.Return<void, RunDirectoryError, Services> {
  const gone = Effect.gen(function*() {
    const own = yield* workplace(state)
    yield* lock(state, own)
    yield* removeOver(state, id, own)
  })
  yield* usable(state)(Effect.scoped(gone))
})

/**
 * Removes the runs that are over but for the newest, by default 64 and those of 24 hours, and what runs that came to nothing
 * have left. Gives the ids. The run `except` is not looked at.
 *
 * @category operations
 * @since 0.1.0
 */
export const prune = Effect.fn("RunDirectory.prune")(function*(
  state: string,
  options: { readonly keep?: number; readonly within?: Duration.Input; readonly except?: string } = {}
): Effect.fn.Return<ReadonlyArray<string>, RunDirectoryError, Services> {
  const { except, keep = 64, within = "24 hours" } = options
  const oldest = (yield* Clock.currentTimeMillis) - Duration.toMillis(Duration.fromInputUnsafe(within))
  const look = Effect.fnUntraced(function*(id: string) {
    // Most have a report, and nothing else of them counts until they are to go.
    const reportedAt = yield* modifiedAt((yield* pathsOf(state, id)).report)
    if (reportedAt !== undefined) return [{ id, endedAt: reportedAt }]
    const run = yield* inspect(state, id)
    const isOver = run === undefined || (run.state === "over" && run.record === undefined)
    return isOver ? [{ id, endedAt: run?.endedAt ?? 0 }] : []
  })
  const old = (yield* Effect.forEach(yield* usable(state)(ids(state, except)), look)).flat()
    .toSorted((one, other) => other.endedAt - one.endedAt)
    .filter(({ endedAt }, index) => index >= keep || endedAt < oldest)
  if (old.length === 0) return []
  const gone = Effect.gen(function*() {
    const own = yield* workplace(state)
    yield* lock(state, own)
    const removed = yield* Effect.filter(old, ({ id }) => Effect.isSuccess(removeOver(state, id, own)))
    return removed.map(({ id }) => id)
  })
  return yield* usable(state)(Effect.scoped(gone))
})
