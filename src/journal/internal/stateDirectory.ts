/**
 * The files of a journal.
 *
 * ```
 *   DIR/lease              locked by the supervisor that has the directory
 *   DIR/lease.json         who that is, and since when, for people
 *   DIR/machines/ID.json   a record
 *   DIR/quarantine/        what was no record, each with a note
 *   DIR/tmp/               what is being written
 * ```
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import { hasProperty } from "effect/Predicate"
import * as Schema from "effect/Schema"
import * as OwnedFiles from "../../process/OwnedFiles.ts"
import * as ProcessIdentity from "../../process/ProcessIdentity.ts"
import * as JournalError from "../JournalError.ts"
import { Lease } from "../Lease.ts"

const Holder = Schema.fromJsonString(
  Schema.Struct({ holder: ProcessIdentity.ProcessIdentity, since: Schema.String })
)

/** Who has a directory. */
export type Holder = typeof Holder.Type

const remedies: Readonly<Record<string, string>> = {
  ENOTDIR: "name a directory",
  EACCES: "run as the user that owns it, or use another directory",
  EPERM: "run as the user that owns it, or use another directory",
  EROFS: "use a directory on a file system that can be written to",
  // sqlite.org/rescode.html: SQLITE_READONLY and SQLITE_NOTADB.
  8: "use a directory on a file system that can be written to",
  26: "remove its file \"lease\", which somebody else has made",
  ENOSPC: "free some space there, or use another directory",
  EDQUOT: "free some space there, or use another directory"
}

/** Trouble with a directory as a whole. */
export const unusable = (directory: string, error: unknown): JournalError.JournalError => {
  const inner = hasProperty(error, "reason") && hasProperty(error.reason, "cause") ? error.reason.cause : error
  const cause = inner instanceof Error ? inner : error
  const code = hasProperty(cause, "errcode") ? cause.errcode : hasProperty(cause, "code") ? cause.code : ""
  return JournalError.make(
    new JournalError.DirectoryUnusable({
      directory,
      why: cause instanceof Error ? cause.message : String(cause),
      remedy: remedies[String(code)] ?? "use a directory on a local disk, or on tmpfs",
      cause
    })
  )
}

/** What a directory has in it, as its paths. */
export const paths = Effect.fnUntraced(function*(directory: string) {
  const path = yield* Path.Path
  const at = (name: string) => path.join(directory, name)
  return {
    lease: at("lease"),
    holder: at("lease.json"),
    machines: at("machines"),
    quarantine: at("quarantine"),
    temporary: at("tmp")
  }
})

/** Makes the directory if there is none, for us alone, and refuses one in which others could do what they like. */
const prepare = Effect.fnUntraced(function*(directory: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const { user } = yield* Lease
  const refuse = (why: string, remedy: string) =>
    JournalError.fail(new JournalError.DirectoryUnusable({ directory, why, remedy }))
  if (directory === "" || directory.includes("\0")) return yield* refuse("for that is no path", "name a directory")
  const absolute = path.resolve(directory)
  const make = (at: string) =>
    fs.makeDirectory(at, { mode: 0o700 }).pipe(
      Effect.as(true),
      Effect.catchIf((error) => error.reason._tag === "AlreadyExists", () => Effect.succeed(false))
    )
  const { machines, quarantine, temporary } = yield* paths(absolute)
  return yield* Effect.gen(function*() {
    yield* OwnedFiles.ensureDirectory(path.dirname(absolute))
    const isNew = yield* make(absolute)
    const { mode, type, uid } = yield* fs.stat(absolute)
    if (type !== "Directory") return yield* refuse("for it is none", "name a directory")
    if (Option.isSome(uid) && uid.value !== user) {
      return yield* refuse(
        `for it belongs to user ${uid.value}, and this process runs as user ${user}`,
        "run as its owner, or use another directory"
      )
    }
    if ((mode & 0o022) !== 0) {
      return yield* refuse(
        `for others can write to it (mode ${(mode & 0o777).toString(8)})`,
        `see what is in it, then "chmod 700 ${absolute}"`
      )
    }
    yield* Effect.forEach([machines, quarantine, temporary], make)
    yield* OwnedFiles.sync(absolute)
    // Not every directory that we may make something in can be opened.
    if (isNew) yield* Effect.ignore(OwnedFiles.sync(path.dirname(absolute)))
    return absolute
  }).pipe(Effect.mapError((error) => error._tag === "JournalError" ? error : unusable(absolute, error)))
})

/** Who wrote that it has the lease, if it still runs. */
export const holderOf = Effect.fnUntraced(
  function*(directory: string) {
    const fs = yield* FileSystem.FileSystem
    const file = (yield* paths(directory)).holder
    const { size } = yield* fs.stat(file)
    if (size > 4096n) return undefined
    const found = Schema.decodeOption(Holder)(yield* fs.readFileString(file))
    return Option.isSome(found) && (yield* ProcessIdentity.isAlive(found.value.holder)) ? found.value : undefined
  },
  Effect.orElseSucceed(() => undefined)
)

/** Takes the lease of a directory, which is made if there is none, until the scope closes. */
export const take = Effect.fnUntraced(function*(wanted: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const lease = yield* Lease
  const directory = yield* prepare(wanted)
  const at = yield* paths(directory)
  if (!(yield* Effect.mapError(lease.lock(at.lease), ({ cause }) => unusable(directory, cause)))) {
    return yield* JournalError.fail(new JournalError.LeaseHeld({ directory, ...(yield* holderOf(directory)) }))
  }
  // Nobody else writes here, so what is there was being written when our predecessor was killed.
  yield* fs.readDirectory(at.temporary).pipe(
    Effect.flatMap(Effect.forEach((name) => fs.remove(path.join(at.temporary, name), { recursive: true }))),
    Effect.mapError((error) => unusable(directory, error))
  )
  const holder = yield* ProcessIdentity.self
  const since = new Date(yield* Clock.currentTimeMillis).toISOString()
  const note = path.join(at.temporary, "lease.json")
  // Only told to people. On a full disk there may be no room for it, and the more to be reclaimed.
  yield* Effect.acquireRelease(
    Effect.ignore(
      Effect.andThen(
        fs.writeFileString(note, `${JSON.stringify({ holder, since })}\n`),
        fs.rename(note, at.holder)
      ).pipe(Effect.tapError(() => fs.remove(note, { force: true })))
    ),
    () => Effect.ignore(fs.remove(at.holder))
  )
  return { ...at, directory }
})
