/**
 * The disks of machines: a copy of a template for each.
 *
 * ```
 *   CLONES/ID/rootfs.ext4              the machine's own, mode 0600
 *   CLONES/ID/rootfs.ext4.sha256       of the template, when it was copied
 *   CLONES/ID/rootfs.ext4.size         in bytes, when it was made larger than the template
 *   CLONES/ID/rootfs.ext4.owner.json   whose it is
 *   CLONES/.tmp/                       who is at work
 * ```
 *
 * A clone appears and goes by a single rename: when this process is killed, at whatever point, it is there whole or not at all.
 * What is left in `.tmp` is removed by the next one that makes or reclaims a clone.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import * as Schema from "effect/Schema"
import { MachineId } from "../journal/MachineRecord.ts"
import { type Owner, type ResourceKind, Verdict } from "../journal/ResourceKind.ts"
import * as OwnedFiles from "../process/OwnedFiles.ts"
import { ProcessHost } from "../process/ProcessHost.ts"
import * as ProcessIdentity from "../process/ProcessIdentity.ts"
import { DiskFiles } from "./DiskFiles.ts"
import * as Ext4 from "./Ext4.ts"
import { HostCommands } from "./HostCommands.ts"
import * as HostError from "./HostError.ts"
import { copy } from "./internal/diskCopy.ts"
import { trying } from "./internal/diskFailure.ts"
import { factsAt, namesIn, readJson, refuseOpen } from "./internal/diskText.ts"
import { type Services, stackFaults, type Template, Templates } from "./Templates.ts"

/**
 * How a clone was made:
 *
 * - `reflink`: it shares the blocks of the template until one of them is written to. Takes neither time nor room.
 * - `sparse-copy`: a copy with the holes of the template.
 * - `copy`: a copy without holes, for want of cp(1).
 *
 * @category schemas
 * @since 0.1.0
 */
export const How = Schema.Literals(["reflink", "sparse-copy", "copy"])

/**
 * @category models
 * @since 0.1.0
 */
export type How = typeof How.Type

/**
 * What is written into the directory of a clone, and by what it is known again: a name alone says nothing.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Marker = Schema.Struct({
  format: Schema.Literal(1),
  id: MachineId,
  token: Schema.String,
  /** The boot in which it was made. */
  bootId: Schema.String,
  /** Who made it. */
  supervisor: ProcessIdentity.ProcessIdentity,
  stack: Schema.String,
  /** SHA-256 of the template. */
  digest: Schema.String,
  /** In bytes. */
  size: Schema.Int,
  how: How
})

/**
 * @category models
 * @since 0.1.0
 */
export type Marker = typeof Marker.Type

/**
 * The disk of a machine.
 *
 * @category models
 * @since 0.1.0
 */
export interface Clone extends Pick<Marker, "id" | "stack" | "digest" | "size" | "how"> {
  /** Of the image file. */
  readonly path: string
}

/**
 * @category options
 * @since 0.1.0
 */
export interface CloneOptions {
  /** Whose it is to be: an id and a token, as in the journal. */
  readonly owner: Pick<Owner, "id" | "token">
  /** Which template. */
  readonly stack: string
  /** In bytes, at least those of the template, which is the default. The file system in it is made as large. */
  readonly size?: number | undefined
}

/**
 * The data of a claim: the directory of the clone.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Disk = Schema.Struct({ directory: Schema.String })

/**
 * @category models
 * @since 0.1.0
 */
export type Disk = typeof Disk.Type

/**
 * A clone as it is found.
 *
 * @category models
 * @since 0.1.0
 */
export interface StoredClone {
  readonly directory: string
  readonly name: string
  /** What its image takes on the disk; blocks that it shares count too. */
  readonly bytes: number
  /** When it was made, in milliseconds since 1970. */
  readonly madeAt: number
  /** None when it is nothing of ours. */
  readonly marker: Option.Option<Marker>
}

/**
 * - `disk`: what is to be claimed before a clone of this machine is made.
 * - `clone`: makes it. If the machine has it already, and it is of the same template and size, it is that one. Fails with
 *   `InvalidArgument` for an id, a template or a size that cannot be, before anything was made; with `Conflict` when something
 *   else is there, or the machine's clone is of a template that was replaced since; with `NoSpace`; and with what the programs
 *   that make a file system larger fail with. Nothing is left of one that failed.
 * - `list`: all that is there, nothing of ours included.
 *
 * Clones are removed by reclaiming their claims: see `kind`.
 *
 * @category services
 * @since 0.1.0
 */
export class DiskClones extends Context.Service<DiskClones, {
  readonly directory: string
  readonly disk: (id: string) => Disk
  readonly clone: (options: CloneOptions) => Effect.Effect<Clone, HostError.HostError>
  readonly list: Effect.Effect<ReadonlyArray<StoredClone>, HostError.HostError>
}>()("effect-microvm-runtime/host/DiskClones") {}

const ROOTFS = "rootfs.ext4"
const TEMPORARY = ".tmp"

const isMachineId = Schema.is(MachineId)

const conflict = (what: string, other: string, remedy: string) =>
  HostError.fail(new HostError.Conflict({ what, with: other, remedy }))

const markerOf = (directory: string) =>
  Effect.flatMap(Path.Path, (path) => readJson(path.join(directory, `${ROOTFS}.owner.json`), Marker))

const ownDirectory = Effect.fnUntraced(function*(clones: string) {
  const path = yield* Path.Path
  const temporary = path.join(clones, TEMPORARY)
  yield* Effect.forEach([clones, temporary], OwnedFiles.ensureDirectory)
  yield* OwnedFiles.sweep(temporary)
  return yield* OwnedFiles.temporaryDirectory(temporary)
})

const make = Effect.fnUntraced(function*(clones: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const files = yield* DiskFiles
  const templates = yield* Templates
  // Not all of the context: what is done here belongs to the spans and the scopes of whoever asks for it.
  const services = Context.pick(DiskFiles, FileSystem.FileSystem, HostCommands, Path.Path, ProcessHost)(
    yield* Effect.context<Services>()
  )
  const directoryOf = (id: string) => path.join(clones, id)
  const toClone = ({ digest, how, id, size, stack }: Marker): Clone => ({
    id,
    stack,
    digest,
    size,
    how,
    path: path.join(directoryOf(id), ROOTFS)
  })

  /** The template, if all that was asked for can be; else all that is wrong with it. */
  const check = Effect.fnUntraced(function*({ owner: { id }, size, stack }: CloneOptions) {
    const badStack = stackFaults(stack)
    const template = badStack.length > 0 ? Option.none<Template>() : yield* templates.find(stack)
    const missing = badStack.length > 0 || Option.isSome(template) ? badStack : [{
      field: "stack",
      value: stack,
      remedy: `there is no such template in ${templates.directory}: choose from ${
        (yield* templates.list).map((one) => one.stack).join(", ") || "none"
      }, or add it`
    }]
    const faults = [
      ...(isMachineId(id) ? [] : [{
        field: "id",
        value: id,
        remedy: "give 1 to 64 letters, digits and \"-\", the first no \"-\""
      }]),
      ...missing,
      ...(size === undefined
        ? []
        : Ext4.sizeFaults(Option.match(template, { onNone: () => 0, onSome: (one) => one.size }), size))
    ]
    return Option.isSome(template) && faults.length === 0
      ? template.value
      : yield* HostError.fail(new HostError.InvalidArgument({ faults }))
  })

  /** The clone that is there, if it is what is wanted. */
  const present = Effect.fnUntraced(function*({ id, token }: CloneOptions["owner"], template: Template, size: number) {
    const directory = directoryOf(id)
    if (Option.isNone(yield* factsAt(directory))) return Option.none<Clone>()
    const what = `the disk of machine ${id}`
    const marker = yield* markerOf(directory)
    if (Option.isNone(marker)) return yield* conflict(what, directory, "it is nothing of ours: move it away")
    const { bootId } = yield* ProcessHost
    const found = marker.value
    const remedy = "recover that machine first, or choose another id"
    if (found.token !== token || found.id !== id) return yield* conflict(what, "that of another machine", remedy)
    if (found.bootId !== bootId) return yield* conflict(what, "one that was made before this host was started", remedy)
    if (found.stack !== template.stack || found.digest !== template.digest) {
      return yield* conflict(what, `a copy of template ${found.stack} as it was then`, remedy)
    }
    if (found.size !== size) {
      return yield* conflict(what, `one of ${found.size} bytes`, "it stays as large as it was made")
    }
    return Option.some(toClone(found))
  })

  const build = Effect.fnUntraced(
    function*({ id, token }: CloneOptions["owner"], template: Template, size: number) {
      const { bootId } = yield* ProcessHost
      const supervisor = yield* ProcessIdentity.self
      const directory = path.join(yield* ownDirectory(clones), "clone")
      const image = path.join(directory, ROOTFS)
      yield* fs.makeDirectory(directory, { mode: 0o700 })
      const how = yield* copy(template.path, image, { facts: yield* files.facts(template.path), sparse: "auto" })
      if ((yield* files.facts(template.path)).seal !== template.seal) {
        return yield* conflict(`copying template ${template.stack}`, "somebody who replaced it", "try again")
      }
      yield* fs.chmod(image, 0o600)
      yield* Ext4.grow(image, size)
      const marker: Marker = {
        format: 1,
        id,
        token,
        bootId,
        supervisor,
        stack: template.stack,
        digest: template.digest,
        size,
        how
      }
      yield* fs.writeFileString(path.join(directory, `${ROOTFS}.sha256`), template.digest)
      if (size !== template.size) yield* fs.writeFileString(path.join(directory, `${ROOTFS}.size`), String(size))
      const text = yield* Effect.orDie(Schema.encodeEffect(Schema.fromJsonString(Marker))(marker))
      // By this alone it is known for ours, also after a power failure.
      yield* OwnedFiles.writeDurably(path.join(directory, `${ROOTFS}.owner.json`), new TextEncoder().encode(text))
      yield* fs.rename(directory, directoryOf(id))
      return toClone(marker)
    },
    Effect.scoped
  )

  const clone = Effect.fnUntraced(function*(options: CloneOptions) {
    const template = yield* check(options)
    const size = options.size ?? template.size
    const found = yield* present(options.owner, template, size)
    return Option.isSome(found) ? found.value : yield* build(options.owner, template, size)
  })

  const stored = Effect.fnUntraced(function*(name: string) {
    const directory = directoryOf(name)
    const itself = yield* factsAt(directory)
    if (Option.isNone(itself)) return []
    const marker = itself.value.type === "directory" ? yield* markerOf(directory) : Option.none<Marker>()
    const image = Option.getOrElse(yield* factsAt(path.join(directory, ROOTFS)), () => itself.value)
    const written = Option.getOrElse(yield* factsAt(path.join(directory, `${ROOTFS}.owner.json`)), () => itself.value)
    return [{ directory, name, bytes: image.allocated, madeAt: written.modifiedAt, marker }]
  })

  return DiskClones.of({
    directory: clones,
    disk: (id) => ({ directory: directoryOf(id) }),
    clone: Effect.fn("DiskClones.clone")(
      (options: CloneOptions) => Effect.andThen(refuseOpen(clones), clone(options)),
      (effect, { owner: { id } }) => trying("making the disk", directoryOf(id))(effect),
      Effect.provideContext(services)
    ),
    list: Effect.gen(function*() {
      const names = (yield* namesIn(clones)).filter((name) => name !== TEMPORARY)
      return (yield* Effect.forEach(names, stored)).flat()
    }).pipe(
      trying("listing its disks", clones),
      Effect.provideContext(services),
      Effect.withSpan("DiskClones.list")
    )
  })
})

/**
 * Clones in a directory of one's choice, of the templates of `Templates`. It is made when the first one is. Clones share blocks
 * with templates only on the same file system.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { DiskClones, NodeDiskFiles, NodeHostCommands, Templates } from "effect-microvm-runtime/host"
 * import { NodeProcessHost } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * const host = Layer.mergeAll(NodeDiskFiles.layer, NodeHostCommands.layer, NodeProcessHost.layer, NodeServices.layer)
 * const program = DiskClones.DiskClones.use((clones) =>
 *   clones.clone({ owner: { id: "web-1", token: "0123456789abcdef" }, stack: "debian-12", size: 2 ** 30 })
 * )
 * const layer = DiskClones.layerAt("/nonexistent/clones").pipe(
 *   Layer.provide(Templates.layerAt("/nonexistent/templates")),
 *   Layer.provide(host)
 * )
 * const error = await Effect.runPromise(program.pipe(Effect.flip, Effect.provide(layer)))
 * error.reason._tag // => "InvalidArgument"
 * ```
 *
 * **Gotchas**
 *
 * - A clone is not waited for until it is on the disk: after a power failure, it may be torn. One that was made in an earlier boot
 *   is not taken for a new machine's.
 * - The image can be opened by this user alone. A monitor that has other rights is to be handed it open, or its owner changed:
 *   no other file shares its inode.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerAt = (directory: string): Layer.Layer<DiskClones, never, Services | Templates> =>
  Layer.effect(DiskClones, Effect.flatMap(Path.Path, (path) => make(path.resolve(directory))))

/**
 * Clones in `MICROVM_ROOTFS_CLONES_DIR`, by default `/var/lib/microvm/rootfs`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<DiskClones, Config.ConfigError, Services | Templates> = Layer.unwrap(
  Effect.map(
    Config.String("MICROVM_ROOTFS_CLONES_DIR").pipe(Config.withDefault("/var/lib/microvm/rootfs")),
    layerAt
  )
)

type Removing = DiskFiles | FileSystem.FileSystem | Path.Path | ProcessHost

/** What there is to remove, if it is this machine's. Nothing is followed, and only what says that it is ours is it. */
const judge = Effect.fnUntraced(function*({ id, token }: Owner, directory: string) {
  const path = yield* Path.Path
  const foreign = (why: string) => Option.some<Verdict>(Verdict.Foreign({ why }))
  if (!isMachineId(id) || path.resolve(directory) !== directory || path.basename(directory) !== id) {
    return foreign(`${directory} is no place for the disk of machine ${id}`)
  }
  const facts = yield* factsAt(directory)
  if (Option.isNone(facts)) return Option.some<Verdict>(Verdict.Absent())
  if (facts.value.type !== "directory") return foreign(`${directory} is no directory`)
  const marker = yield* markerOf(directory)
  if (Option.isNone(marker)) return foreign(`nothing in ${directory} says whose it is`)
  return marker.value.id === id && marker.value.token === token
    ? Option.none<Verdict>()
    : foreign(`${directory} is that of another machine`)
})

const reclaimOne = Effect.fnUntraced(
  function*(owner: Owner, { directory }: Disk, dryRun: boolean) {
    const fs = yield* FileSystem.FileSystem
    const path = yield* Path.Path
    const verdict = yield* judge(owner, directory)
    if (Option.isSome(verdict) || dryRun) return Option.getOrElse(verdict, () => Verdict.Released())
    const own = yield* ownDirectory(path.dirname(directory))
    const removed = path.join(own, "removed")
    yield* fs.rename(directory, removed)
    yield* fs.remove(removed, { recursive: true })
    return Verdict.Released()
  },
  Effect.scoped,
  (effect, _, { directory }) =>
    Effect.catch(
      trying("removing the disk", directory)(effect),
      ({ message }) =>
        Effect.succeed(Verdict.Stuck({ why: message, remedy: `remove ${directory} by hand, and recover again` }))
    )
)

/**
 * Claims on clones. The directory is removed, with all that is in it, if the marker in it says that it is this machine's; links in
 * it are not followed. What a killed process had begun to make is removed with it.
 *
 * @category models
 * @since 0.1.0
 */
export const kind: ResourceKind<Disk, Removing> = {
  kind: "disk",
  data: Disk,
  describe: ({ directory }) => `disk ${directory}`,
  reclaim: Effect.fn("DiskClones.reclaim")(function*(claims, { dryRun }) {
    const path = yield* Path.Path
    if (!dryRun) {
      const roots = new Set(claims.map(({ data }) => path.dirname(data.directory)))
      yield* Effect.forEach(roots, (root) => Effect.ignore(OwnedFiles.sweep(path.join(root, TEMPORARY))))
    }
    return yield* Effect.forEach(claims, ({ data, owner }) => reclaimOne(owner, data, dryRun), { concurrency: 8 })
  })
}
