/** The files of one snapshot: are they what its manifest says, and its manifest what its id says? */
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import { hasProperty } from "effect/Predicate"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { Hasher } from "../../image/Hasher.ts"
import * as Snapshot from "../../microvm/Snapshot.ts"
import * as OwnedFiles from "../../process/OwnedFiles.ts"
import { FileSeals } from "../FileSeals.ts"

const MANIFEST = "manifest.json"

/** What is larger is not read again. */
const LARGEST_MANIFEST = 1024 * 1024

/** What one part of a manifest takes that its maker gives, at most: there is to be room for the names of files and disks, too. */
export const LARGEST_WORDS = LARGEST_MANIFEST / 4
const SEALS = "seals.json"

const ManifestText = Schema.fromJsonString(Snapshot.Manifest)
const Seals = Schema.fromJsonString(Schema.Record(Schema.String, Schema.String))

/** What an error tells of a file; nothing when the fault is not the file's. */
const damageOf = ({ reason }: PlatformError.PlatformError): string | undefined => {
  if (reason._tag === "NotFound") return "is missing"
  const code = hasProperty(reason.cause, "code") ? reason.cause.code : undefined
  if (code === "ENOTDIR") return "is missing"
  return code === "EIO" || code === "EISDIR" ? `cannot be read (${code})` : undefined
}

const orDamage = <A, R>(
  effect: Effect.Effect<A, PlatformError.PlatformError, R>
): Effect.Effect<Result.Result<A, string>, PlatformError.PlatformError, R> =>
  Effect.matchEffect(effect, {
    onFailure: (error) => {
      const damage = damageOf(error)
      return damage === undefined ? Effect.fail(error) : Effect.succeed(Result.fail(damage))
    },
    onSuccess: (value) => Effect.succeed(Result.succeed(value))
  })

/**
 * Reads files to their ends. The digest of each and its seal belong together: what is written after the wait changes the
 * seal, and what was written before is in the digest. None for a file that was written to meanwhile.
 */
const read = Effect.fnUntraced(function*(directory: string, names: ReadonlyArray<string>) {
  const path = yield* Path.Path
  const hasher = yield* Hasher
  const seals = yield* FileSeals
  const at = (name: string) => path.join(directory, name)
  const before = yield* Effect.forEach(names, (name) => orDamage(seals.facts(at(name))))
  yield* seals.settle
  return yield* Effect.forEach(names, (name, index) =>
    Effect.gen(function*() {
      const sha256 = yield* orDamage(hasher.file(at(name)))
      const after = yield* orDamage(seals.facts(at(name)))
      return Result.gen(function*() {
        const { seal, size } = yield* after
        const known = yield* before[index] ?? Result.fail("is missing")
        if (known.seal !== seal) return yield* Result.fail("is being written to")
        return { name, size, seal, sha256: yield* sha256 }
      })
    }))
})

const writeSeals = (file: string, seals: Readonly<Record<string, string>>) =>
  OwnedFiles.writeDurably(file, new TextEncoder().encode(JSON.stringify(seals)))

/** What is wrong with a directory that a backend has filled, or its files, durable, each with its digest and seal. */
const vouch = Effect.fnUntraced(function*(directory: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const isName = Schema.is(Snapshot.SnapshotFile.fields.name)
  const entries = yield* fs.readDirectoryEntries(directory)
  const faults = entries.flatMap(({ name, type }) => {
    if (!isName(name)) return [`${JSON.stringify(name)} is no name for a file of a snapshot`]
    return type === "File" ? [] : [`${name} is no regular file`]
  })
  if (faults.length > 0) return Result.fail(faults)
  const names = entries.map(({ name }) => name).toSorted()
  yield* Effect.forEach(names, (name) => OwnedFiles.sync(path.join(directory, name)))
  const found = yield* read(directory, names)
  const bad = found.flatMap((one, index) => Result.isFailure(one) ? [`${names[index]} ${one.failure}`] : [])
  return bad.length > 0
    ? Result.fail(bad)
    : Result.succeed(found.flatMap((one) => Result.isSuccess(one) ? [one.success] : []))
})

/** Makes a snapshot of a directory that a backend has filled: its id and manifest, or all that is wrong with it. */
export const complete = Effect.fnUntraced(function*(directory: string, about: Omit<Snapshot.Manifest, "files">) {
  const path = yield* Path.Path
  const hasher = yield* Hasher
  const vouched = yield* vouch(directory)
  if (Result.isFailure(vouched)) return Result.fail(vouched.failure)
  const files = vouched.success.map(({ name, sha256, size }) => ({ name, size, sha256 }))
  const manifest: Snapshot.Manifest = { ...about, files }
  const bytes = new TextEncoder().encode(yield* Effect.orDie(Schema.encodeEffect(ManifestText)(manifest)))
  if (bytes.length > LARGEST_MANIFEST) {
    return Result.fail([`its manifest would have ${bytes.length} bytes, and ${LARGEST_MANIFEST} are the most`])
  }
  yield* OwnedFiles.writeDurably(path.join(directory, MANIFEST), bytes)
  yield* writeSeals(
    path.join(directory, SEALS),
    Object.fromEntries(vouched.success.map(({ name, seal }) => [name, seal]))
  )
  yield* OwnedFiles.sync(directory)
  return Result.succeed({ id: yield* hasher.bytes(bytes), manifest })
})

/** The manifest that the id vouches for, or what is wrong with it. */
export const manifestOf = Effect.fnUntraced(function*(directory: string, id: string) {
  const path = yield* Path.Path
  const hasher = yield* Hasher
  const bytes = yield* orDamage(OwnedFiles.readSmall(path.join(directory, MANIFEST)))
  if (Result.isFailure(bytes)) return Result.fail(`its manifest ${bytes.failure}`)
  if ((yield* hasher.bytes(bytes.success)) !== id) return Result.fail("its manifest has changed")
  return Result.mapError(
    Schema.decodeResult(ManifestText)(new TextDecoder().decode(bytes.success)),
    () => "its manifest is of another version"
  )
})

/** What it takes on the disk: holes take nothing. */
export const bytesOnDisk = Effect.fnUntraced(function*(directory: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const infos = yield* Effect.forEach(
    yield* Effect.orElseSucceed(fs.readDirectory(directory), (): Array<string> => []),
    (name) => Effect.option(fs.lstat(path.join(directory, name)))
  )
  // stat(2) counts in 512 bytes, whatever the file system's own unit.
  return Number(Arr.getSomes(infos).reduce((sum, { blocks }) => sum + Option.getOrElse(blocks, () => 0n), 0n) * 512n)
})

/** When it was used last, in milliseconds since 1970. */
export const lastUsed = Effect.fnUntraced(function*(directory: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const { mtime } = yield* Effect.catch(fs.stat(path.join(directory, MANIFEST)), () => fs.stat(directory))
  return Option.match(mtime, { onNone: () => 0, onSome: (date) => date.getTime() })
})

/** Notes that it is used now. The time is that of the manifest, which has no seal: its bytes are looked at each time. */
export const use = Effect.fnUntraced(function*(directory: string, now: number) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  yield* fs.utimes(path.join(directory, MANIFEST), new Date(now), new Date(now))
})

const compare = (file: typeof Snapshot.SnapshotFile.Type, { isFile, size }: { isFile: boolean; size: number }) => {
  if (!isFile) return "is no regular file"
  if (size === file.size) return undefined
  return `is ${size < file.size ? "shorter" : "longer"} than it was, ${size} bytes instead of ${file.size}`
}

/**
 * The manifest of a snapshot that can be trusted, or all that is wrong with it. A file whose seal is the one that was taken
 * when it was read last is not read again, unless `thorough`. `temporary` is where new seals are written to before they are
 * put in place; when they cannot be, the next one has to read again.
 */
export const check = Effect.fnUntraced(function*(
  directory: string,
  id: string,
  options: { readonly thorough: boolean; readonly temporary: string }
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const seals = yield* FileSeals
  const manifest = yield* manifestOf(directory, id)
  if (Result.isFailure(manifest)) return Result.fail([manifest.failure])
  const { files } = manifest.success
  const place = path.join(directory, SEALS)
  const text = options.thorough ? Option.none() : yield* Effect.option(OwnedFiles.readSmall(place))
  const known = Option.getOrElse(
    Option.flatMap(text, (bytes) => Schema.decodeOption(Seals)(new TextDecoder().decode(bytes))),
    (): Readonly<Record<string, string>> => ({})
  )
  const looked = yield* Effect.forEach(files, (file) =>
    Effect.map(
      orDamage(seals.facts(path.join(directory, file.name))),
      Result.match({
        onFailure: (damage) => ({ file, damage, sealed: false }),
        onSuccess: (facts) => ({ file, damage: compare(file, facts), sealed: known[file.name] === facts.seal })
      })
    ))
  const unread = looked.flatMap(({ damage, file, sealed }) => damage === undefined && !sealed ? [file] : [])
  const faults = looked.flatMap(({ damage, file }) => damage === undefined ? [] : [`${file.name} ${damage}`])
  if (unread.length === 0) return faults.length === 0 ? Result.succeed(manifest.success) : Result.fail(faults)

  const names = unread.map(({ name }) => name)
  // What a seal vouches for has to be on the disk before the seal is.
  yield* Effect.forEach(names, (name) => Effect.ignore(OwnedFiles.sync(path.join(directory, name))))
  const found = yield* read(directory, names)
  const fresh: Record<string, string> = {}
  found.forEach((one, index) => {
    const file = unread[index]
    if (file === undefined) return
    if (Result.isFailure(one)) faults.push(`${file.name} ${one.failure}`)
    else if (one.success.sha256 !== file.sha256) faults.push(`${file.name} has changed`)
    else fresh[file.name] = one.success.seal
  })
  if (faults.length > 0) {
    // What was read is known to be bad now, whatever its times say.
    yield* Effect.ignore(fs.remove(place, { force: true }))
    return Result.fail(faults)
  }
  yield* Effect.ignore(Effect.scoped(Effect.gen(function*() {
    yield* OwnedFiles.ensureDirectory(options.temporary)
    const own = path.join(yield* OwnedFiles.temporaryDirectory(options.temporary), SEALS)
    yield* writeSeals(own, { ...known, ...fresh })
    yield* fs.rename(own, place)
  })))
  return Result.succeed(manifest.success)
})
