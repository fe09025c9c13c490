/**
 * Snapshots on disk.
 *
 * ```
 *   CACHE/snapshots/ID/manifest.json   what it is; ID is its SHA-256
 *   CACHE/snapshots/ID/seals.json      what its files looked like when they were read last
 *   CACHE/snapshots/ID/…               the files of the backend
 *   CACHE/snapshot-names/NAME.json     which snapshot NAME is
 *   CACHE/snapshots.lock, CACHE/tmp/   who is at work
 *   CACHE/snapshots/tmp/               what becomes a snapshot, or was one
 * ```
 *
 * A snapshot appears and goes by a single rename: when this process is killed, at whatever point, it is there whole or not
 * at all. What it leaves in `tmp` is removed by the next one that adds or removes. `snapshots` may be on another disk than the
 * rest.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import type * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Order from "effect/Order"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import { hasProperty } from "effect/Predicate"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { Hasher } from "../image/Hasher.ts"
import * as ImageStore from "../image/ImageStore.ts"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import * as Snapshot from "../microvm/Snapshot.ts"
import { type AddOptions, SnapshotStore, type Stored } from "../microvm/SnapshotStore.ts"
import * as OwnedFiles from "../process/OwnedFiles.ts"
import * as OwnerLock from "../process/OwnerLock.ts"
import { ProcessHost } from "../process/ProcessHost.ts"
import { FileSeals } from "./FileSeals.ts"
import * as Files from "./internal/snapshotFiles.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface StoreOptions {
  /** The cache's directory; images may be in it too. It is made when it is first needed. */
  readonly directory: string
  /** How long to wait for another process that puts a snapshot in place or removes one. By default 1 minute. */
  readonly patience?: Duration.Input | undefined
}

/** What the store needs of its host. */
type Services = FileSeals | FileSystem.FileSystem | Hasher | Path.Path | ProcessHost

/** Directories of one who changes something. */
interface Own {
  readonly beside: string
  readonly staged: string
}

/** The id of a snapshot that has no name, and that nobody has been told of. */
interface Placed {
  id: string | undefined
}

const Pointer = Schema.fromJsonString(Schema.Struct({ id: Snapshot.Sha256 }))
const isId = Schema.is(Snapshot.Sha256)
const megabytes = (bytes: number): string => `${Math.ceil(bytes / 1e6)} MB`

const elsewhere = "or name another directory in MICROVM_CACHE_DIR"

/**
 * Says why a cache cannot be used, and what to do about it.
 *
 * @internal
 */
export const whyOf = (error: OwnerLock.LockHeld | PlatformError.PlatformError): string => {
  if (error._tag === "LockHeld") return error.message
  if (OwnedFiles.isNoSpace(error)) return `no space is left: free some, ${elsewhere}`
  const { cause } = error.reason
  const why = cause instanceof Error ? cause.message : error.message
  const code = hasProperty(cause, "code") ? cause.code : undefined
  if (code === "EXDEV") {
    return `${why}: have its "tmp" and "snapshot-names" on its own file system, ${elsewhere}`
  }
  const closed = ["EACCES", "EPERM", "EROFS"].some((one) => one === code)
  return closed ? `${why}: make it writable, ${elsewhere}` : why
}

/** A machine is not to stand still for a snapshot that nobody could read again. */
const checkWords = (options: AddOptions) => {
  const faults = (["labels", "spec"] as const).flatMap((field) => {
    const { length } = new TextEncoder().encode(JSON.stringify(options[field] ?? {}))
    return length <= Files.LARGEST_WORDS ? [] : [{
      field,
      value: `${length} bytes`,
      remedy: `give ${Files.LARGEST_WORDS} bytes at most: keep large things in files, and their names here`
    }]
  })
  return faults.length === 0 ? Effect.void : MicroVmError.make(new MicroVmError.InvalidSpec({ faults }))
}

/** Nothing is renamed from one file system to another, so there are two. */
const workplaces = (directory: string) =>
  Effect.map(Path.Path, (path) => ({
    temporary: path.join(directory, "tmp"),
    staging: path.join(directory, "snapshots", "tmp")
  }))

/**
 * Removes what processes that were killed have left in a cache, and tells where directories of one's own are to be. First of
 * all: it may be what the disk is full of.
 *
 * @internal
 */
export const clearUp = Effect.fnUntraced(function*(directory: string) {
  const { staging, temporary } = yield* workplaces(directory)
  yield* Effect.forEach([staging, temporary], (one) => Effect.ignore(OwnedFiles.sweep(one)), { discard: true })
  return temporary
})

const make = Effect.fnUntraced(function*(store: StoreOptions) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  // Not all of the context: what is done here belongs to the spans and the scopes of whoever asks for it.
  const services = Context.pick(FileSeals, FileSystem.FileSystem, Hasher, Path.Path, ProcessHost)(
    yield* Effect.context<Services>()
  )
  const patience = Duration.fromInputUnsafe(store.patience ?? "1 minute")
  const snapshots = path.join(store.directory, "snapshots")
  const names = path.join(store.directory, "snapshot-names")
  const { staging, temporary } = yield* workplaces(store.directory)
  const directoryOf = (id: string) => path.join(snapshots, id)
  const pointerOf = (name: string) => path.join(names, `${name}.json`)

  /** All other trouble is that of the store. */
  const inStore = <A, R>(
    effect: Effect.Effect<A, MicroVmError.MicroVmError | OwnerLock.LockHeld | PlatformError.PlatformError, R>
  ): Effect.Effect<A, MicroVmError.MicroVmError, Exclude<R, Services>> =>
    effect.pipe(
      Effect.mapError((cause) =>
        cause._tag === "MicroVmError"
          ? cause
          : MicroVmError.make(
            new MicroVmError.StoreFailed({ path: store.directory, why: whyOf(cause), cause })
          )
      ),
      Effect.provideContext(services)
    )

  const entries = (directory: string) =>
    Effect.catchIf(
      fs.readDirectory(directory),
      (error) => error.reason._tag === "NotFound",
      () => Effect.succeed<Array<string>>([])
    )

  /** The id that a name's file has. One that we cannot have written means nothing. */
  const readPointer = (name: string) =>
    OwnedFiles.readSmall(pointerOf(name)).pipe(
      Effect.map((bytes) => Schema.decodeOption(Pointer)(new TextDecoder().decode(bytes))),
      Effect.map(Option.map(({ id }) => id)),
      Effect.catchIf((error) => error.reason._tag === "NotFound", () => Effect.succeed(Option.none<string>()))
    )

  /** The id of a snapshot that is there. */
  const resolve = Effect.fnUntraced(function*(nameOrId: string) {
    if (!isId(nameOrId)) yield* Snapshot.checkName(nameOrId)
    const id = isId(nameOrId) ? Option.some(nameOrId) : yield* readPointer(nameOrId)
    return Option.isSome(id) && (yield* fs.exists(directoryOf(id.value))) ? id : Option.none()
  })

  const pointers = Effect.gen(function*() {
    const known = (yield* entries(names)).filter((file) => file.endsWith(".json")).map((file) => file.slice(0, -5))
    const read = yield* Effect.forEach(
      known.toSorted(),
      (name) => Effect.map(readPointer(name), Option.map((id) => ({ name, id })))
    )
    return Arr.getSomes(read)
  })

  const free = Effect.fnUntraced(function*({ name, replace = false }: AddOptions) {
    if (name === undefined) return true
    yield* Snapshot.checkName(name)
    const isFree = Option.isNone(yield* resolve(name))
    if (isFree || replace) return isFree
    return yield* MicroVmError.make(new MicroVmError.SnapshotAlreadyExists({ snapshot: name }))
  })

  /** Directories of ours, as long as the scope: beside the names and the lock, and beside the snapshots. */
  const ownDirectories = Effect.gen(function*() {
    yield* Effect.forEach([store.directory, snapshots, names, temporary, staging], OwnedFiles.ensureDirectory)
    // The memory of a machine may be open to the user that the monitor runs as, and is nobody else's business.
    yield* fs.chmod(snapshots, 0o700)
    yield* clearUp(store.directory)
    const own: Own = {
      beside: yield* OwnedFiles.temporaryDirectory(temporary),
      staged: yield* OwnedFiles.temporaryDirectory(staging)
    }
    return own
  })

  const enoughRoom = Effect.fnUntraced(function*(wanted: number) {
    const room = yield* FileSeals.use((seals) => seals.room(staging))
    if (room >= wanted) return
    const why = `it may take ${megabytes(wanted)}, and ${megabytes(room)} are free: make room, ${elsewhere}`
    return yield* MicroVmError.make(new MicroVmError.StoreFailed({ path: store.directory, why }))
  })

  /** Runs under the lock. Once begun, it is carried through. */
  const exclusively = <A, E, R>({ beside }: Own, use: Effect.Effect<A, E, R>) =>
    Effect.scoped(Effect.gen(function*() {
      yield* OwnerLock.acquire({ file: path.join(store.directory, "snapshots.lock"), own: beside, patience })
      return yield* Effect.uninterruptible(use)
    }))

  /** Puts a snapshot and its name in place, or neither. */
  const publish = Effect.fnUntraced(function*(
    options: AddOptions,
    own: Own,
    made: string,
    id: string,
    base: string | undefined,
    placed: Placed
  ) {
    const isFree = yield* free(options)
    // It was there when it was looked at, and nobody can remove it now.
    if (base !== undefined && !(yield* fs.exists(directoryOf(base)))) {
      const why = Snapshot.baseFaults(base, new MicroVmError.SnapshotNotFound({ snapshot: base })) ?? []
      return yield* MicroVmError.make(new MicroVmError.SnapshotUnusable({ snapshot: id, why }))
    }
    const target = directoryOf(id)
    const isThere = yield* fs.exists(target)
    // The same one was made before. It may be in use, so it makes way only if it is no longer what it was.
    const isSound = isThere && Result.isSuccess(yield* Files.check(target, id, { thorough: true, temporary: staging }))
    if (isThere && !isSound) yield* fs.rename(target, path.join(own.staged, "replaced"))
    const [place, displace] = isSound
      ? [Effect.void, Effect.void]
      : [Effect.andThen(fs.rename(made, target), OwnedFiles.sync(snapshots)), fs.rename(target, made)]
    if (options.name === undefined) {
      yield* Effect.tapError(place, () => Effect.ignore(displace))
      if (!isThere) placed.id = id
      return
    }
    const at = pointerOf(options.name)
    const pointer = path.join(own.beside, "pointer")
    yield* OwnedFiles.writeDurably(pointer, new TextEncoder().encode(JSON.stringify({ id })))
    const name = Effect.andThen(fs.rename(pointer, at), OwnedFiles.sync(names))
    if (isFree) {
      // A name that leads nowhere is no name, so it comes first: the snapshot appears with it, or not at all.
      const undo = Effect.andThen(Effect.ignore(displace), fs.remove(at))
      return yield* Effect.tapError(Effect.andThen(name, place), () => Effect.ignore(undo))
    }
    // But a name that another one has stays with it until there is something else to lead to.
    const before = path.join(own.beside, "before")
    yield* fs.link(at, before)
    const undo = Effect.andThen(fs.rename(before, at), displace)
    yield* Effect.tapError(Effect.andThen(place, name), () => Effect.ignore(undo))
  })

  const finish = Effect.fnUntraced(function*(
    options: AddOptions,
    own: Own,
    made: string,
    saved: Snapshot.Saved,
    placed: Placed
  ) {
    const now = yield* Clock.currentTimeMillis
    const completed = yield* Files.complete(made, {
      format: 1,
      kind: options.kind,
      ...Snapshot.told(saved, options.labels),
      spec: options.spec,
      createdAt: new Date(now).toISOString()
    })
    if (Result.isFailure(completed)) {
      const why = `${completed.failure.join("; ")}: this backend cannot be saved`
      return yield* MicroVmError.make(new MicroVmError.StoreFailed({ path: made, why }))
    }
    const { id, manifest } = completed.success
    const base = yield* baseOf(id, manifest, false)
    yield* Files.use(made, now)
    yield* exclusively(own, publish(options, own, made, id, manifest.base, placed))
    return { id, directory: directoryOf(id), manifest, ...base }
  })

  type Found<A> = Effect.Effect<A, MicroVmError.MicroVmError | PlatformError.PlatformError, Services>

  /** What a snapshot is the difference to, which has to be right for it to be so. */
  const baseOf = Effect.fnUntraced(function*(
    snapshot: string,
    { base }: Snapshot.Manifest,
    thorough: boolean
  ): Effect.fn.Return<Pick<Snapshot.Snapshot, "base">, Effect.Error<Found<void>>, Services> {
    if (base === undefined) return {}
    const found = yield* Effect.result(find(base, thorough))
    if (Result.isSuccess(found)) return { base: found.success }
    const why = found.failure._tag === "MicroVmError" ? Snapshot.baseFaults(base, found.failure.reason) : undefined
    if (why === undefined) return yield* found.failure
    return yield* MicroVmError.make(new MicroVmError.SnapshotUnusable({ snapshot, why }))
  })

  /** A snapshot that can be trusted. */
  const find: (nameOrId: string, thorough: boolean) => Found<Snapshot.Snapshot> = Effect.fnUntraced(
    function*(nameOrId, thorough) {
      const id = yield* resolve(nameOrId)
      if (Option.isNone(id)) {
        return yield* MicroVmError.make(new MicroVmError.SnapshotNotFound({ snapshot: nameOrId }))
      }
      const directory = directoryOf(id.value)
      const found = yield* Files.check(directory, id.value, { thorough, temporary: staging })
      if (Result.isFailure(found)) {
        // It was removed while it was looked at, or the name means another one since.
        if (!(yield* fs.exists(directory))) return yield* find(nameOrId, thorough)
        return yield* MicroVmError.make(
          new MicroVmError.SnapshotUnusable({ snapshot: nameOrId, why: found.failure })
        )
      }
      // Whoever looks after snapshots does not use them.
      if (!thorough) yield* Effect.ignore(Files.use(directory, yield* Clock.currentTimeMillis))
      return { id: id.value, directory, manifest: found.success, ...(yield* baseOf(nameOrId, found.success, thorough)) }
    }
  )

  /** None when it is removed meanwhile. */
  const describe = Effect.fnUntraced(
    function*(id: string, known: ReadonlyArray<string>) {
      const directory = directoryOf(id)
      const lastUsed = yield* Files.lastUsed(directory)
      const manifest = yield* Files.manifestOf(directory, id)
      const bytes = yield* Files.bytesOnDisk(directory)
      const stored: Stored = { id, names: known, bytes, lastUsed }
      return Option.some(Result.isSuccess(manifest) ? { ...stored, manifest: manifest.success } : stored)
    },
    Effect.catchIf((error) => error.reason._tag === "NotFound", () => Effect.succeed(Option.none<Stored>()))
  )

  const list = Effect.gen(function*() {
    const named = yield* pointers
    const found = yield* Effect.forEach(
      (yield* entries(snapshots)).filter(isId),
      (id) => describe(id, named.filter((one) => one.id === id).map(({ name }) => name))
    )
    return Arr.getSomes(found).toSorted((a, b) => b.lastUsed - a.lastUsed || Order.String(a.id, b.id))
  })

  /** Those that are only the difference to it. */
  const diffsOf = Effect.fnUntraced(function*(id: string) {
    const others = (yield* entries(snapshots)).filter((one) => isId(one) && one !== id)
    const found = yield* Effect.forEach(others, (one) => Files.manifestOf(directoryOf(one), one))
    return others.filter((_, index) => {
      const manifest = found[index]
      return manifest !== undefined && Result.isSuccess(manifest) && manifest.success.base === id
    })
  })

  const forget = Effect.fnUntraced(function*(own: Own, nameOrId: string) {
    const id = yield* resolve(nameOrId)
    if (Option.isNone(id)) return false
    const known = (yield* pointers).filter((one) => one.id === id.value).map(({ name }) => name)
    const forgotten = nameOrId === id.value ? known : [nameOrId]
    // Renamed first: names that lead nowhere are none.
    if (forgotten.length === known.length) {
      const by = yield* diffsOf(id.value)
      if (by.length > 0) return yield* MicroVmError.make(new MicroVmError.SnapshotInUse({ snapshot: nameOrId, by }))
      yield* fs.rename(directoryOf(id.value), path.join(own.staged, "removed"))
      yield* OwnedFiles.sync(snapshots)
    }
    yield* Effect.forEach(forgotten, (name) => fs.remove(pointerOf(name), { force: true }))
    yield* OwnedFiles.sync(names)
    return true
  })

  const remove = Effect.fn("DiskSnapshotStore.remove")(
    function*(nameOrId: string) {
      if (Option.isNone(yield* resolve(nameOrId))) return false
      return yield* Effect.scoped(
        Effect.flatMap(ownDirectories, (own) => exclusively(own, forget(own, nameOrId)))
      )
    },
    inStore
  )

  return SnapshotStore.of({
    add: <E, R>(options: AddOptions, write: (directory: string) => Effect.Effect<Snapshot.Saved, E, R>) =>
      Effect.suspend(() => {
        const placed: Placed = { id: undefined }
        const adding = Effect.scopedWith((scope) =>
          Effect.gen(function*() {
            yield* checkWords(options)
            yield* inStore(free(options))
            const own = yield* inStore(Scope.provide(ownDirectories, scope))
            const made = path.join(own.staged, "snapshot")
            yield* inStore(fs.makeDirectory(made, { mode: 0o700 }))
            yield* inStore(enoughRoom(options.room ?? 0))
            // The errors and needs of `write` are its caller's.
            const saved = yield* write(made)
            return yield* inStore(finish(options, own, made, saved, placed))
          })
        )
        // Without a name, nobody would ever find it.
        return Effect.onInterrupt(
          adding,
          () => placed.id === undefined ? Effect.void : Effect.ignore(remove(placed.id))
        )
      }).pipe(Effect.withSpan("DiskSnapshotStore.add")),

    open: Effect.fn("DiskSnapshotStore.open")((nameOrId: string) => find(nameOrId, false), inStore),

    verify: Effect.fn("DiskSnapshotStore.verify")((nameOrId: string) => find(nameOrId, true), inStore),

    list: list.pipe(inStore, Effect.withSpan("DiskSnapshotStore.list")),

    remove
  })
})

/**
 * Snapshots in a cache directory of one's choice.
 *
 * - `open` reads the manifest, and looks at the files without reading them: what was written to since they were read last
 *   gives itself away by the times that the file system keeps. Only such a file is read again, as after the directory was
 *   copied, and a digest decides. What of it is not in the manifest is not looked at.
 * - The directory of the snapshots is open to its owner alone (mode 0700).
 *
 * **Gotchas**
 *
 * - chmod(1), link(2) and the like on a file of a snapshot make the next `open` read it to its end, once.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerAt = (options: StoreOptions): Layer.Layer<SnapshotStore, never, Services> =>
  Layer.effect(SnapshotStore, make(options))

/**
 * Snapshots in `ImageStore.cacheDirectory`, beside the images.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<SnapshotStore, Config.ConfigError, Services> = Layer.unwrap(
  Effect.map(ImageStore.cacheDirectory, (directory) => layerAt({ directory }))
)
