/**
 * Directories that are a machine's alone, as a kind of claim.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Schema from "effect/Schema"
import { type Owner, type ResourceKind, Verdict } from "../journal/ResourceKind.ts"
import * as OwnedFiles from "../process/OwnedFiles.ts"
import * as HostError from "./HostError.ts"
import { unescape } from "./internal/mountInfo.ts"
import { isNamedAfter } from "./internal/ownName.ts"

/**
 * The data of a claim of the kind `machine-directory`. The name of the directory holds the owner's token.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Data = Schema.Struct({ path: Schema.String })

/**
 * @category models
 * @since 0.1.0
 */
export type Data = typeof Data.Type

const failed = (operation: string, path: string) => (cause: PlatformError.PlatformError) =>
  HostError.make(new HostError.IoFailed({ operation, path, cause }))

/**
 * Makes a directory that only this user can look into (mode 0700), and those above it. Claim it first. Fails with
 * `InvalidArgument` when the owner's token is not in its name, and with `IoFailed` when it cannot be made, or is there already.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { MachineDirectories } from "effect-microvm-runtime/host"
 * import * as Effect from "effect/Effect"
 * import * as FileSystem from "effect/FileSystem"
 * const owner = { id: "web-1", token: "0123456789abcdef", bootId: "b" }
 * const program = Effect.gen(function*() {
 *   const fs = yield* FileSystem.FileSystem
 *   const path = `${yield* fs.makeTempDirectoryScoped()}/held/web-1-${owner.token}`
 *   yield* MachineDirectories.make(path, owner)
 *   const [verdict] = yield* MachineDirectories.kind.reclaim([{ owner, data: { path } }], { dryRun: false })
 *   return verdict?._tag
 * })
 * await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(NodeServices.layer))) // => "Released"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fn("MachineDirectories.make")(function*(
  path: string,
  owner: Pick<Owner, "token">
): Effect.fn.Return<void, HostError.HostError, FileSystem.FileSystem | Path.Path> {
  if (!isNamedAfter(owner, path)) {
    const remedy = "give an absolute path that ends in a name with the machine's token in it"
    return yield* HostError.fail(new HostError.InvalidArgument({ faults: [{ field: "path", value: path, remedy }] }))
  }
  const fs = yield* FileSystem.FileSystem
  const { dirname } = yield* Path.Path
  yield* Effect.mapError(OwnedFiles.ensureDirectory(dirname(path)), failed("making the directory above", path))
  yield* Effect.mapError(fs.makeDirectory(path, { mode: 0o700 }), failed("making the directory", path))
})

const isNotFound = ({ reason }: PlatformError.PlatformError): boolean => reason._tag === "NotFound"

/** What is mounted, or nothing where that cannot be told. */
const readMounts = FileSystem.FileSystem.use((fs) => fs.readFileString("/proc/self/mountinfo")).pipe(
  Effect.map((text) => text.split("\n").map((line) => unescape(line.split(" ")[4] ?? ""))),
  Effect.orElseSucceed((): ReadonlyArray<string> => [])
)

const reclaimOne = Effect.fnUntraced(function*(
  { data: { path }, owner }: { readonly owner: Owner; readonly data: Data },
  mounts: ReadonlyArray<string>,
  dryRun: boolean
): Effect.fn.Return<Verdict, PlatformError.PlatformError, FileSystem.FileSystem | Path.Path> {
  if (!isNamedAfter(owner, path)) {
    return Verdict.Foreign({ why: `the name of ${path} is not one that ${owner.id} gives` })
  }
  const fs = yield* FileSystem.FileSystem
  const { basename, dirname, join } = yield* Path.Path
  const above = yield* Effect.option(fs.realPath(dirname(path)))
  if (Option.isNone(above)) return Verdict.Absent()
  const real = join(above.value, basename(path))
  if (Option.isSome(yield* Effect.option(fs.readLink(real)))) {
    return Verdict.Foreign({ why: `${path} is a symbolic link` })
  }
  const found = yield* Effect.catchIf(Effect.asSome(fs.stat(real)), isNotFound, () => Effect.succeedNone)
  if (Option.isNone(found)) return Verdict.Absent()
  if (found.value.type !== "Directory") return Verdict.Foreign({ why: `${path} is not a directory` })
  const mount = mounts.find((point) => point === real || point.startsWith(`${real}/`))
  if (mount !== undefined) {
    return Verdict.Stuck({ why: `something is mounted at ${mount}`, remedy: `umount ${mount}` })
  }
  // Links in it are removed, and not followed (rm(2) of Node).
  if (!dryRun) yield* fs.remove(real, { recursive: true, force: true })
  return Verdict.Released()
})

/**
 * Claims of the kind `machine-directory`: removes the directory and all that is in it. Links are not followed, and a directory
 * that something is mounted in is left as it is. One without the owner's token in its name is not ours.
 *
 * @category kinds
 * @since 0.1.0
 */
export const kind: ResourceKind<Data, FileSystem.FileSystem | Path.Path> = {
  kind: "machine-directory",
  data: Data,
  describe: ({ path }) => `directory ${path}`,
  reclaim: Effect.fnUntraced(function*(claims, { dryRun }) {
    const mounts = yield* readMounts
    return yield* Effect.forEach(
      claims,
      (claim) =>
        Effect.catch(
          reclaimOne(claim, mounts, dryRun),
          ({ message }) => Effect.succeed(Verdict.Stuck({ why: message, remedy: `remove ${claim.data.path} by hand` }))
        ),
      {
        concurrency: 16
      }
    )
  })
}
