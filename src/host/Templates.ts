/**
 * Root file systems that the disks of machines are copies of.
 *
 * ```
 *   TEMPLATES/STACK/rootfs.ext4               never written to, mode 0444
 *   TEMPLATES/STACK/rootfs.ext4.digest.json   what it looked like when it was read last, and its SHA-256 then
 *   TEMPLATES/.tmp/                           who is at work
 * ```
 *
 * A template appears, and is replaced, by a single rename: when this process is killed, at whatever point, it is there whole,
 * as it was, or not at all.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as OwnedFiles from "../process/OwnedFiles.ts"
import { ProcessHost } from "../process/ProcessHost.ts"
import { DiskFiles } from "./DiskFiles.ts"
import * as Ext4 from "./Ext4.ts"
import { HostCommands } from "./HostCommands.ts"
import * as HostError from "./HostError.ts"
import { copy } from "./internal/diskCopy.ts"
import { invalid, isNotThere, trying } from "./internal/diskFailure.ts"
import { factsAt, namesIn, readJson, refuseOpen } from "./internal/diskText.ts"

/**
 * The name of a template. It is that of a directory, so it can be no path: letters, digits, `.`, `_` and `-`, 64 characters at
 * most, the first a letter or a digit.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Stack = Schema.String.check(Schema.isPattern(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/))

/**
 * @category models
 * @since 0.1.0
 */
export interface Template {
  readonly stack: string
  readonly path: string
  /** In bytes. */
  readonly size: number
  /** Its SHA-256, in lower-case hexadecimal. */
  readonly digest: string
  /** `FileFacts.seal` of the file that has this digest. */
  readonly seal: string
}

/**
 * @category options
 * @since 0.1.0
 */
export interface AddOptions {
  /** May it take the place of another one of that name? Clones of that one go on as they are. Default `false`. */
  readonly replace?: boolean | undefined
}

/**
 * A template as it is listed; it was not read.
 *
 * @category models
 * @since 0.1.0
 */
export interface StoredTemplate {
  readonly stack: string
  readonly path: string
  /** What it takes on the disk. */
  readonly bytes: number
  /** Did `add` make it? Others were put there by hand. */
  readonly isAdded: boolean
  /** When it was found last, or else written, in milliseconds since 1970. */
  readonly lastUsed: number
}

/**
 * - `list`: all templates, in the order of their names. A directory without a regular `rootfs.ext4` is none.
 * - `find`: a template, read to its end if it was changed since that was done last. Fails with `InvalidArgument` where everybody may
 *   write to its directory or that of all.
 * - `add`: makes a template of an image file, which stays as it is: a copy that shares its blocks where the file system can. Adding
 *   the same again changes nothing. Fails with `InvalidArgument` when the name is none, or the file no ext2, ext3 or ext4 file
 *   system in one piece; with `Conflict` when there is another template of that name; with `NoSpace`.
 * - `remove`: tells whether there was one. Clones of it go on as they are.
 *
 * @category services
 * @since 0.1.0
 */
export class Templates extends Context.Service<Templates, {
  readonly directory: string
  readonly list: Effect.Effect<ReadonlyArray<StoredTemplate>, HostError.HostError>
  readonly find: (stack: string) => Effect.Effect<Option.Option<Template>, HostError.HostError>
  readonly add: (stack: string, file: string, options?: AddOptions) => Effect.Effect<Template, HostError.HostError>
  readonly remove: (stack: string) => Effect.Effect<boolean, HostError.HostError>
}>()("effect-microvm-runtime/host/Templates") {}

/** What templates and clones need of their host. */
export type Services = DiskFiles | FileSystem.FileSystem | HostCommands | Path.Path | ProcessHost

const ROOTFS = "rootfs.ext4"

const Digest = Schema.Struct({
  seal: Schema.String,
  sha256: Schema.String.check(Schema.isPattern(/^[0-9a-f]{64}$/)),
  isAdded: Schema.Boolean
})

const isStack = Schema.is(Stack)

/**
 * What is wrong with the name of a template.
 *
 * @category guards
 * @since 0.1.0
 */
export const stackFaults = (stack: string): ReadonlyArray<HostError.Fault> => {
  const remedy = "give 1 to 64 letters, digits, \".\", \"_\" and \"-\", the first a letter or a digit"
  return isStack(stack) ? [] : [{ field: "stack", value: stack, remedy }]
}

const checkStack = (stack: string) => {
  const faults = stackFaults(stack)
  return faults.length === 0 ? Effect.void : HostError.fail(new HostError.InvalidArgument({ faults }))
}

const make = Effect.fnUntraced(function*(directory: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const files = yield* DiskFiles
  // Not all of the context: what is done here belongs to the spans and the scopes of whoever asks for it.
  const services = Context.pick(DiskFiles, FileSystem.FileSystem, HostCommands, Path.Path, ProcessHost)(
    yield* Effect.context<Services>()
  )
  const temporary = path.join(directory, ".tmp")
  const imageOf = (stack: string) => path.join(directory, stack, ROOTFS)
  const digestOf = (stack: string) => path.join(directory, stack, `${ROOTFS}.digest.json`)

  /** What is there now, if it is a template. */
  const factsOf = (stack: string) => Effect.map(factsAt(imageOf(stack)), Option.filter(({ type }) => type === "file"))

  const ownDirectory = Effect.gen(function*() {
    yield* Effect.forEach([directory, temporary], OwnedFiles.ensureDirectory)
    yield* OwnedFiles.sweep(temporary)
    return yield* OwnedFiles.temporaryDirectory(temporary)
  })

  const remember = Effect.fnUntraced(function*(stack: string, own: string, known: typeof Digest.Type) {
    const file = path.join(own, "digest")
    yield* fs.writeFileString(file, JSON.stringify(known))
    yield* fs.rename(file, digestOf(stack))
  })

  const refuseOpenPlaces = (stack: string) =>
    Effect.forEach([directory, path.join(directory, stack)], refuseOpen, { discard: true })

  const find = Effect.fnUntraced(function*(stack: string) {
    yield* refuseOpenPlaces(stack)
    const facts = yield* factsOf(stack)
    if (Option.isNone(facts)) return Option.none<Template>()
    const { isSettled, seal, size } = facts.value
    const template = (digest: string): Template => ({ stack, path: imageOf(stack), size, digest, seal })
    const known = Option.getOrUndefined(yield* readJson(digestOf(stack), Digest))
    if (known !== undefined && known.seal === seal) {
      const now = new Date(yield* Clock.currentTimeMillis)
      // Whoever may not write there takes care of nothing there.
      yield* Effect.ignore(fs.utimes(digestOf(stack), now, now))
      return Option.some(template(known.sha256))
    }
    const sha256 = yield* files.sha256(imageOf(stack))
    const after = yield* factsOf(stack)
    if (Option.isNone(after) || after.value.seal !== seal) {
      return yield* HostError.fail(
        new HostError.Conflict({
          what: `reading template ${stack}`,
          with: "somebody who writes to it",
          remedy: "add what is to change under another name, and try again"
        })
      )
    }
    // A digest that cannot be written down is found out again.
    if (isSettled) {
      const isAdded = known?.isAdded === true && known.sha256 === sha256
      yield* Effect.ignore(
        Effect.scoped(Effect.flatMap(ownDirectory, (own) => remember(stack, own, { seal, sha256, isAdded })))
      )
    }
    return Option.some(template(sha256))
  })

  const add = Effect.fnUntraced(function*(stack: string, file: string, { replace = false }: AddOptions) {
    yield* checkStack(stack)
    yield* refuseOpenPlaces(stack)
    const source = yield* Effect.catchIf(
      fs.realPath(file),
      isNotThere,
      () => invalid("file", file, "there is no such file")
    )
    const facts = yield* files.facts(source)
    if (facts.type !== "file") return yield* invalid("file", file, "it is no regular file")
    const found = yield* Ext4.read(source)
    if (Result.isFailure(found)) return yield* invalid("file", file, `${found.failure}: take one that has`)
    if (found.success.size > facts.size) {
      const remedy = `its file system has ${found.success.size} bytes, and it ends before: copy it here again`
      return yield* invalid("file", file, remedy)
    }
    const own = yield* ownDirectory
    const made = path.join(own, ROOTFS)
    yield* copy(source, made, { facts, sparse: "always" })
    yield* fs.chmod(made, 0o444)
    yield* OwnedFiles.sync(made)
    const sha256 = yield* files.sha256(made)
    const present = yield* find(stack)
    if (Option.isSome(present) && present.value.digest === sha256) return present.value
    if (Option.isSome(present) && !replace) {
      return yield* HostError.fail(
        new HostError.Conflict({
          what: `template ${stack}`,
          with: "another one of that name",
          remedy: "choose another name, or replace it"
        })
      )
    }
    yield* OwnedFiles.ensureDirectory(path.join(directory, stack))
    yield* fs.rename(made, imageOf(stack))
    yield* OwnedFiles.sync(path.join(directory, stack))
    yield* OwnedFiles.sync(directory)
    // The rename was a change too.
    const { seal, size } = yield* files.facts(imageOf(stack))
    yield* remember(stack, own, { seal, sha256, isAdded: true })
    return { stack, path: imageOf(stack), size, digest: sha256, seal }
  })

  const list = Effect.gen(function*() {
    const stored = yield* Effect.forEach(
      (yield* namesIn(directory)).filter(isStack),
      (stack) =>
        Effect.gen(function*() {
          const facts = yield* factsOf(stack)
          if (Option.isNone(facts)) return []
          const known = yield* readJson(digestOf(stack), Digest)
          const used = yield* factsAt(digestOf(stack))
          const { allocated: bytes, modifiedAt, seal } = facts.value
          return [{
            stack,
            path: imageOf(stack),
            bytes,
            isAdded: Option.isSome(known) && known.value.isAdded && known.value.seal === seal,
            lastUsed: Math.max(modifiedAt, Option.match(used, { onNone: () => 0, onSome: (file) => file.modifiedAt }))
          }]
        })
    )
    return stored.flat()
  })

  /** What else is in its directory is not ours, and stays. */
  const remove = Effect.fnUntraced(function*(stack: string) {
    if (Option.isNone(yield* factsOf(stack))) return false
    const own = yield* ownDirectory
    yield* fs.rename(imageOf(stack), path.join(own, ROOTFS))
    yield* fs.remove(digestOf(stack), { force: true })
    yield* OwnedFiles.sync(path.join(directory, stack))
    if ((yield* namesIn(path.join(directory, stack))).length === 0) {
      yield* fs.rename(path.join(directory, stack), path.join(own, "removed"))
    }
    return true
  })

  return Templates.of({
    directory,
    list: list.pipe(
      trying("listing its templates", directory),
      Effect.provideContext(services),
      Effect.withSpan("Templates.list")
    ),
    find: Effect.fn("Templates.find")(
      (stack: string) => Effect.andThen(checkStack(stack), find(stack)),
      (effect, stack) => trying("finding the template", imageOf(stack))(effect),
      Effect.provideContext(services)
    ),
    add: Effect.fn("Templates.add")(
      (stack: string, file: string, options: AddOptions = {}) => Effect.scoped(add(stack, file, options)),
      (effect, stack) => trying("adding the template", imageOf(stack))(effect),
      Effect.provideContext(services)
    ),
    remove: Effect.fn("Templates.remove")(
      (stack: string) => Effect.scoped(Effect.andThen(checkStack(stack), remove(stack))),
      (effect, stack) => trying("removing the template", imageOf(stack))(effect),
      Effect.provideContext(services)
    )
  })
})

/**
 * Templates in a directory of one's choice. It is made when the first one is added.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { NodeDiskFiles, NodeHostCommands, Templates } from "effect-microvm-runtime/host"
 * import { NodeProcessHost } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * const host = Layer.mergeAll(NodeDiskFiles.layer, NodeHostCommands.layer, NodeProcessHost.layer, NodeServices.layer)
 * const program = Templates.Templates.use((templates) => templates.find("debian-12"))
 * const layer = Templates.layerAt("/nonexistent").pipe(Layer.provide(host))
 * const found = await Effect.runPromise(program.pipe(Effect.provide(layer)))
 * found._tag // => "None"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerAt = (directory: string): Layer.Layer<Templates, never, Services> =>
  Layer.effect(Templates, Effect.flatMap(Path.Path, (path) => make(path.resolve(directory))))

/**
 * Templates in `MICROVM_ROOTFS_TEMPLATE_DIR`, by default `/var/lib/microvm/rootfs-templates`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Templates, Config.ConfigError, Services> = Layer.unwrap(
  Effect.map(
    Config.String("MICROVM_ROOTFS_TEMPLATE_DIR").pipe(Config.withDefault("/var/lib/microvm/rootfs-templates")),
    layerAt
  )
)
