/** Records on disk: each is the old one or the new one, whenever we are killed. */
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import * as OwnedFiles from "../../process/OwnedFiles.ts"
import * as RecordText from "./recordText.ts"

const encode = (text: string): Uint8Array => new TextEncoder().encode(text)

const messageOf = (error: PlatformError.PlatformError): string => {
  const { cause } = error.reason
  return cause instanceof Error ? cause.message : error.message
}

/** A file in the place of a record: where it is, and why it is none. */
export interface NoRecord {
  readonly name: string
  readonly path: string
  readonly why: string
}

/** What a file of this name holds. None when it is removed meanwhile. */
const read = Effect.fnUntraced(
  function*(directory: string, name: string) {
    const fs = yield* FileSystem.FileSystem
    const path = yield* Path.Path
    const at = path.join(directory, name)
    const { size, type } = yield* fs.lstat(at)
    if (type !== "File") return Option.some(Result.fail(`it is no regular file but a ${type}`))
    if (size > RecordText.LARGEST) {
      return Option.some(Result.fail(`it has ${size} bytes, and a record has ${RecordText.LARGEST} at most`))
    }
    return Option.some(RecordText.fromBytes(name, yield* fs.readFile(at)))
  },
  Effect.catchIf((error) => error.reason._tag === "NotFound", () => Effect.succeedNone),
  Effect.catch((error) => Effect.succeedSome(Result.fail(`it cannot be read: ${messageOf(error)}`)))
)

/** All that is in the place of records, in order of name. */
export const readAll = Effect.fnUntraced(function*(directory: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const records: Array<RecordText.Written> = []
  const others: Array<NoRecord> = []
  const names = (yield* fs.readDirectory(directory)).toSorted()
  const found = yield* Effect.forEach(names, (name) => read(directory, name), { concurrency: 16 })
  for (const [name, result] of Arr.zip(names, found)) {
    if (Option.isNone(result)) continue
    if (Result.isSuccess(result.value)) records.push(result.value.success)
    else others.push({ name, path: path.join(directory, name), why: result.value.failure })
  }
  return { records, others }
})

const hex = (digits: number): Effect.Effect<string> =>
  Effect.map(
    Effect.replicateEffect(Random.nextIntBetween(0, 15), digits),
    (all) => all.map((digit) => digit.toString(16)).join("")
  )

/** Eight random bytes in hexadecimal. */
export const token: Effect.Effect<string> = hex(16)

const NOTE = ".why"

/** Moves what is no record aside, with a note. What cannot be moved is told of where it is. */
export const setAside = Effect.fnUntraced(function*(quarantine: string, one: NoRecord) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  // Names can be as long as the file system allows, which leaves no room for more.
  const to = path.join(quarantine, `${one.name.slice(0, 50)}.${yield* hex(8)}`)
  return yield* OwnedFiles.writeDurably(`${to}${NOTE}`, encode(`${one.why}\n`)).pipe(
    Effect.andThen(fs.rename(one.path, to)),
    Effect.andThen(OwnedFiles.sync(quarantine)),
    Effect.as(Option.none<{ readonly path: string; readonly why: string }>()),
    Effect.catch((error) =>
      Effect.as(
        Effect.ignore(fs.remove(`${to}${NOTE}`)),
        Option.some({ path: one.path, why: `${one.why}; it could not be moved to ${quarantine}: ${messageOf(error)}` })
      )
    )
  )
})

/** What was moved aside, and is there still. */
export const aside = Effect.fnUntraced(function*(quarantine: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const names = (yield* fs.readDirectory(quarantine)).toSorted()
  return yield* Effect.forEach(
    names.filter((name) => !(name.endsWith(NOTE) && names.includes(name.slice(0, -NOTE.length)))),
    (name) => {
      const at = path.join(quarantine, name)
      return Effect.map(
        Effect.orElseSucceed(fs.readFileString(`${at}${NOTE}`), () => "its note is gone"),
        (note) => ({ path: at, why: note.trim() })
      )
    }
  )
})

/**
 * Puts a text in the place of another: no text means no file. When that fails, what was there is put back, as far as that is
 * possible.
 */
export const replace = Effect.fnUntraced(function*(
  { machines, temporary }: { readonly machines: string; readonly temporary: string },
  id: string,
  before: string | undefined,
  after: string | undefined
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const at = path.join(machines, `${id}.json`)
  const draft = path.join(temporary, `${id}.json`)
  const put = (text: string | undefined) =>
    text === undefined
      ? fs.remove(at, { force: true })
      : OwnedFiles.writeDurably(draft, encode(text)).pipe(
        Effect.andThen(fs.rename(draft, at)),
        // On a full disk, what there is of it is in the way.
        Effect.tapError(() => Effect.ignore(fs.remove(draft, { force: true })))
      )
  yield* put(after)
  yield* Effect.tapError(OwnedFiles.sync(machines), () => Effect.ignore(put(before)))
})
