/**
 * Guest images on disk: built once from Debian packages, verified each time they are used.
 *
 * ```
 *   CACHE/images/DIGEST/{manifest.json, kernel, initramfs}   DIGEST is the SHA-256 of manifest.json
 *   CACHE/names/NAME.json                                    which image NAME is, and the recipe it was built by
 *   CACHE/lock, CACHE/tmp/                                   the builder at work
 * ```
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Schema from "effect/Schema"
import * as OwnedFiles from "../process/OwnedFiles.ts"
import * as OwnerLock from "../process/OwnerLock.ts"
import { ProcessHost } from "../process/ProcessHost.ts"
import { ProcessSpawner } from "../process/ProcessSpawner.ts"
import { SupervisorGuard, Watched } from "../process/SupervisorGuard.ts"
import { Hasher } from "./Hasher.ts"
import * as ImageError from "./ImageError.ts"
import * as ImageManifest from "./ImageManifest.ts"
import type { Progress } from "./ImageProgress.ts"
import * as ImageRecipe from "./ImageRecipe.ts"
import * as Builder from "./internal/builder.ts"

/**
 * An image whose files were found to be what its manifest says.
 *
 * @category models
 * @since 0.1.0
 */
export interface Image {
  readonly name: string
  /** The SHA-256 of its manifest; it vouches for every byte of the image. */
  readonly digest: string
  /** Path of the kernel: an ELF file where the package allows it, else a bzImage. */
  readonly kernel: string
  /** Path of the initial root file system, a cpio archive that is not compressed. */
  readonly initramfs: string
  /** What `uname -r` says in the guest. */
  readonly kernelRelease: string
  readonly manifest: ImageManifest.ImageManifest
}

/**
 * An image as it is listed; its files have not been looked at. `names` is empty when no name means it any longer.
 *
 * @category models
 * @since 0.1.0
 */
export interface StoredImage {
  readonly digest: string
  readonly names: ReadonlyArray<string>
  readonly kernelRelease: string
  readonly directory: string
  readonly bytes: number
}

/**
 * @category models
 * @since 0.1.0
 */
export interface EnsureOptions {
  /** Told of each step of a build, and of the bytes received about five times a second. By default, nobody. */
  readonly onProgress?: (progress: Progress) => Effect.Effect<void>
}

/**
 * @category models
 * @since 0.1.0
 */
export interface StoreOptions {
  /** Where the images are. It is made when it is first needed. */
  readonly directory: string
  /** Recipes by image name. By default `default` is `ImageRecipe.standard`. */
  readonly recipes?: Readonly<Record<string, ImageRecipe.ImageRecipe>>
  /** How long to wait for another process that builds. By default 10 minutes. */
  readonly patience?: Duration.Input
}

/**
 * - `ensure`: the image of that name, `default` by default. An image built by the recipe before is verified and taken,
 *   without apt or network. Otherwise, or when a file of it is not what it should be, it is built: some 35 MB of packages
 *   are downloaded, and of several callers one builds and the others wait.
 * - `known`: the image that `ensure` would find, by its manifest alone: its files have not been looked at. None when there
 *   is no image of that name yet, or it was built by another recipe. For whoever only has to know which one it is.
 * - `update`: asks apt for newer packages, and builds when there are any. The files of the image before stay until it
 *   is removed.
 * - `list`: every stored image, by digest.
 * - `writable`: fails with what keeps images from being built in its directory. Makes nothing.
 * - `remove`: forgets a name, and deletes the image when no other name means it. A digest is taken as a name too. Tells
 *   whether there was one.
 *
 * @category services
 * @since 0.1.0
 */
export class ImageStore extends Context.Service<ImageStore, {
  readonly ensure: (name?: string, options?: EnsureOptions) => Effect.Effect<Image, ImageError.ImageError>
  readonly known: (name?: string) => Effect.Effect<Option.Option<Image>, ImageError.ImageError>
  readonly update: (name?: string, options?: EnsureOptions) => Effect.Effect<Image, ImageError.ImageError>
  readonly list: Effect.Effect<ReadonlyArray<StoredImage>, ImageError.ImageError>
  readonly writable: Effect.Effect<void, ImageError.ImageError>
  readonly remove: (nameOrDigest: string) => Effect.Effect<boolean, ImageError.ImageError>
}>()("effect-microvm-runtime/image/ImageStore") {}

/** What the store needs of its host. */
type Services = FileSystem.FileSystem | Hasher | Path.Path | ProcessHost | ProcessSpawner | SupervisorGuard

/** The error of a file system operation below `directory`. */
const toImageError = (error: PlatformError.PlatformError, directory: string): ImageError.ImageError => {
  const { cause } = error.reason
  const why = cause instanceof Error ? cause.message : error.message
  return ImageError.fromReason(
    OwnedFiles.isNoSpace(error)
      ? ImageError.ImageErrorReason.NoSpace({ path: directory })
      : ImageError.ImageErrorReason.CacheUnusable({ path: directory, why }),
    error
  )
}

const Pointer = Schema.fromJsonString(Schema.Struct({ recipe: ImageManifest.Sha256, digest: ImageManifest.Sha256 }))

const make = Effect.fnUntraced(function*(options: StoreOptions) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const hasher = yield* Hasher
  // Not all of the context: what is done here belongs to the spans and the scopes of whoever asks for it.
  const services = Context.pick(
    FileSystem.FileSystem,
    Hasher,
    Path.Path,
    ProcessHost,
    ProcessSpawner,
    SupervisorGuard
  )(yield* Effect.context<Services>())
  const guard = yield* SupervisorGuard
  const recipes = new Map(Object.entries(options.recipes ?? { default: ImageRecipe.standard }))
  const patience = Duration.fromInputUnsafe(options.patience ?? "10 minutes")
  const images = path.join(options.directory, "images")
  const names = path.join(options.directory, "names")
  const temporary = path.join(options.directory, "tmp")

  /** All other file system trouble is that of the cache's directory. */
  const inCache = <A, R>(
    effect: Effect.Effect<A, ImageError.ImageError | OwnerLock.LockHeld | PlatformError.PlatformError, R>
  ) =>
    Effect.mapError(effect, (error) => {
      if (error._tag === "ImageError") {
        // What apt or dpkg were filling is gone by now.
        return error.reason._tag === "NoSpace"
          ? ImageError.fromReason(ImageError.ImageErrorReason.NoSpace({ path: options.directory }), error.cause)
          : error
      }
      if (error._tag === "PlatformError") return toImageError(error, options.directory)
      return ImageError.fromReason(ImageError.ImageErrorReason.Busy({ pid: error.pid, path: error.path }), error)
    })

  const recipeOf = Effect.fnUntraced(function*(name: string) {
    const recipe = recipes.get(name)
    if (recipe === undefined) {
      return yield* ImageError.fromReason(
        ImageError.ImageErrorReason.UnknownImage({ name, known: Array.from(recipes.keys()) })
      )
    }
    return { name, recipe, key: yield* hasher.bytes(yield* Effect.fromResult(Builder.fingerprint(recipe))) }
  })
  type Named = Effect.Success<ReturnType<typeof recipeOf>>

  /** Of a regular file; nothing else is hashed: a pipe is waited for, and a device may have no end. */
  const sizeOf = (file: string) =>
    Effect.map(fs.stat(file), ({ size, type }) => type === "File" ? Option.some(size) : Option.none())

  const pointerOf = (name: string) =>
    OwnedFiles.readSmall(path.join(names, `${name}.json`)).pipe(
      Effect.flatMap((bytes) => Schema.decodeUnknownEffect(Pointer)(new TextDecoder().decode(bytes))),
      Effect.option
    )

  const manifestOf = Effect.fnUntraced(function*(digest: string) {
    const file = path.join(images, digest, "manifest.json")
    const corrupt = (why: string) => ImageError.fromReason(ImageError.ImageErrorReason.Corrupt({ path: file, why }))
    const bytes = yield* Effect.mapError(OwnedFiles.readSmall(file), () => corrupt("cannot be read"))
    if ((yield* hasher.bytes(bytes)) !== digest) return yield* corrupt("has changed")
    return yield* Schema.decodeUnknownEffect(ImageManifest.ImageManifestText)(new TextDecoder().decode(bytes)).pipe(
      Effect.mapError(() => corrupt("is of another version"))
    )
  })

  const toImage = (name: string, digest: string, manifest: ImageManifest.ImageManifest): Image => ({
    name,
    digest,
    kernel: path.join(images, digest, manifest.files.kernel.name),
    initramfs: path.join(images, digest, manifest.files.initramfs.name),
    kernelRelease: manifest.kernelRelease,
    manifest
  })

  const verified = Effect.fnUntraced(function*(name: string, digest: string) {
    const manifest = yield* manifestOf(digest)
    const image = toImage(name, digest, manifest)
    const check = Effect.fnUntraced(function*(at: string, file: { readonly sha256: string; readonly size: number }) {
      const corrupt = (why: string) => ImageError.fromReason(ImageError.ImageErrorReason.Corrupt({ path: at, why }))
      const size = yield* Effect.mapError(sizeOf(at), () => corrupt("cannot be read"))
      if (Option.isNone(size)) return yield* corrupt("is no regular file")
      if (size.value !== BigInt(file.size)) return yield* corrupt("has another length")
      const found = yield* Effect.mapError(hasher.file(at), () => corrupt("cannot be read"))
      if (found !== file.sha256) return yield* corrupt("has changed")
    })
    yield* check(image.kernel, manifest.files.kernel)
    yield* check(image.initramfs, manifest.files.initramfs)
    return image
  })

  /** The image a name means, if it was built by this recipe: none there, or what is wrong with it, or itself. */
  const current = Effect.fnUntraced(function*({ key, name }: Named) {
    const pointer = yield* pointerOf(name)
    return Option.isNone(pointer) || pointer.value.recipe !== key
      ? Option.none()
      : Option.some(yield* verified(name, pointer.value.digest))
  })

  /** Builds and puts in place. Under the lock; `own` is a temporary directory. */
  const build = Effect.fnUntraced(function*(
    { key, name, recipe }: Named,
    own: string,
    present: Option.Option<Image>,
    onProgress: (progress: Progress) => Effect.Effect<void>
  ) {
    const unless = Option.map(present, ({ manifest }) => manifest.packages)
    const built = yield* Builder.build({ recipe, key, own, unless, onProgress })
    if (Option.isNone(built)) return yield* Effect.orDie(Effect.fromOption(present))
    const { digest, directory, manifest } = built.value
    // What is there under this name was found corrupt, or is the same.
    yield* Effect.ignore(fs.rename(path.join(images, digest), path.join(own, "replaced")))
    yield* OwnedFiles.sync(directory)
    yield* fs.rename(directory, path.join(images, digest))
    yield* OwnedFiles.sync(images)
    const pointer = path.join(own, "pointer")
    yield* OwnedFiles.writeDurably(pointer, new TextEncoder().encode(JSON.stringify({ recipe: key, digest })))
    yield* fs.rename(pointer, path.join(names, `${name}.json`))
    yield* OwnedFiles.sync(names)
    return toImage(name, digest, manifest)
  })

  /** Runs with a temporary directory of ours, under the lock. */
  const exclusively = <A, E, R>(
    use: (own: string) => Effect.Effect<A, E, R>,
    onWait: (pid: number) => Effect.Effect<void> = () => Effect.void
  ) =>
    Effect.scoped(Effect.gen(function*() {
      yield* Effect.forEach([options.directory, images, names, temporary], OwnedFiles.ensureDirectory)
      // First of all: what a builder that was killed has left may be what the disk is full of.
      yield* OwnedFiles.sweep(temporary)
      const own = yield* OwnedFiles.temporaryDirectory(temporary)
      // Should we be killed. The next builder sees to it, too.
      yield* Effect.ignore(guard.watch(Watched.Directory({ path: path.resolve(own) })))
      yield* OwnerLock.acquire({ file: path.join(options.directory, "lock"), own, patience, onWait })
      return yield* use(own)
    }))

  const list = Effect.gen(function*() {
    const entries = yield* fs.readDirectory(names).pipe(Effect.orElseSucceed((): Array<string> => []))
    const pointers = yield* Effect.forEach(entries.filter((file) => file.endsWith(".json")), (file) => {
      const name = path.basename(file, ".json")
      return Effect.map(pointerOf(name), Option.map(({ digest }) => ({ name, digest })))
    })
    const known = pointers.flatMap((pointer) => Option.isSome(pointer) ? [pointer.value] : [])
    const stored = yield* fs.readDirectory(images).pipe(Effect.orElseSucceed((): Array<string> => []))
    return yield* Effect.forEach(
      stored.toSorted(),
      (digest) =>
        Effect.map(Effect.option(manifestOf(digest)), (manifest): StoredImage => ({
          digest,
          names: known.filter((one) => one.digest === digest).map(({ name }) => name).toSorted(),
          kernelRelease: Option.match(manifest, { onNone: () => "", onSome: ({ kernelRelease }) => kernelRelease }),
          directory: path.join(images, digest),
          bytes: Option.match(manifest, {
            onNone: () => 0,
            onSome: ({ files: { initramfs, kernel } }) => kernel.size + initramfs.size
          })
        }))
    )
  })

  const quiet = () => Effect.void

  return ImageStore.of({
    ensure: Effect.fn("ImageStore.ensure")(
      function*(name = "default", { onProgress: say = quiet } = {}) {
        const named = yield* recipeOf(name)
        const found = yield* Effect.result(current(named))
        if (found._tag === "Success" && Option.isSome(found.success)) return found.success.value
        if (found._tag === "Failure") yield* say({ _tag: "Rebuilding", why: found.failure.message })
        return yield* exclusively(
          (own) =>
            Effect.flatMap(
              // Another may have built it while we waited.
              Effect.orElseSucceed(current(named), () => Option.none<Image>()),
              Option.match({ onNone: () => build(named, own, Option.none(), say), onSome: Effect.succeed })
            ),
          (pid) => say({ _tag: "Waiting", pid })
        )
      },
      inCache,
      Effect.provideContext(services)
    ),

    known: Effect.fn("ImageStore.known")(
      function*(name = "default") {
        const { key } = yield* recipeOf(name)
        const pointer = yield* pointerOf(name)
        if (Option.isNone(pointer) || pointer.value.recipe !== key) return Option.none()
        const { digest } = pointer.value
        return Option.map(yield* Effect.option(manifestOf(digest)), (manifest) => toImage(name, digest, manifest))
      },
      inCache,
      Effect.provideContext(services)
    ),

    update: Effect.fn("ImageStore.update")(
      function*(name = "default", { onProgress: say = quiet } = {}) {
        const named = yield* recipeOf(name)
        return yield* exclusively(
          (own) =>
            Effect.flatMap(
              Effect.orElseSucceed(current(named), () => Option.none<Image>()),
              (present) => build(named, own, present, say)
            ),
          (pid) => say({ _tag: "Waiting", pid })
        )
      },
      inCache,
      Effect.provideContext(services)
    ),

    list: list.pipe(inCache, Effect.withSpan("ImageStore.list"), Effect.provideContext(services)),

    writable: Effect.gen(function*() {
      // Directories are made when they are needed, so what counts is the nearest one that is there.
      let nearest = path.resolve(options.directory)
      while (!(yield* fs.exists(nearest)) && path.dirname(nearest) !== nearest) nearest = path.dirname(nearest)
      if ((yield* fs.stat(nearest)).type !== "Directory") {
        return yield* ImageError.fromReason(
          ImageError.ImageErrorReason.CacheUnusable({ path: options.directory, why: `${nearest} is no directory` })
        )
      }
      yield* fs.access(nearest, { writable: true })
    }).pipe(inCache, Effect.withSpan("ImageStore.writable")),

    remove: Effect.fn("ImageStore.remove")(
      function*(nameOrDigest: string) {
        return yield* exclusively((own) =>
          Effect.gen(function*() {
            const before = yield* list
            const image = before.find((one) => one.digest === nameOrDigest || one.names.includes(nameOrDigest))
            if (image === undefined) return false
            const forgotten = image.digest === nameOrDigest ? image.names : [nameOrDigest]
            yield* Effect.forEach(forgotten, (name) => fs.remove(path.join(names, `${name}.json`)))
            // Renamed first: an image is there whole, or not at all.
            if (forgotten.length === image.names.length) {
              yield* fs.rename(image.directory, path.join(own, "removed"))
            }
            return true
          })
        )
      },
      inCache,
      Effect.provideContext(services)
    )
  })
})

/**
 * Images in a directory of one's choice.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerAt = (
  options: StoreOptions
): Layer.Layer<
  ImageStore,
  never,
  Services
> => Layer.effect(ImageStore, make(options))

/**
 * The directory of all that can be made again: `MICROVM_CACHE_DIR`, by default `effect-microvm-runtime` in
 * `XDG_CACHE_HOME` or in `~/.cache`. It need not be there yet.
 *
 * @category accessors
 * @since 0.1.0
 */
export const cacheDirectory: Effect.Effect<string, Config.ConfigError, Path.Path> = Effect.gen(function*() {
  const path = yield* Path.Path
  const own = yield* Config.option(Config.String("MICROVM_CACHE_DIR"))
  if (Option.isSome(own)) return path.resolve(own.value)
  const base = yield* Config.option(Config.String("XDG_CACHE_HOME"))
  // XDG Base Directory Specification: a relative path is invalid and to be ignored.
  return Option.isSome(base) && path.isAbsolute(base.value)
    ? path.join(base.value, "effect-microvm-runtime")
    : path.join(yield* Config.String("HOME"), ".cache", "effect-microvm-runtime")
})

/**
 * Images in `MICROVM_CACHE_DIR`, by default `effect-microvm-runtime` in `XDG_CACHE_HOME` or in `~/.cache`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<
  ImageStore,
  Config.ConfigError,
  Services
> = Layer.unwrap(Effect.map(cacheDirectory, (directory) => layerAt({ directory })))
