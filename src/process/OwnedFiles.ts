/**
 * Files that outlive a crash, and temporary directories that do not outlive their owner for long.
 *
 * What is to be whole or absent is written into a temporary directory, and put in place by a rename. A process that is
 * killed leaves its directory; the name says whose it was, so that whoever works there next can remove it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import { hasProperty } from "effect/Predicate"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { ProcessHost } from "./ProcessHost.ts"
import * as ProcessIdentity from "./ProcessIdentity.ts"

/**
 * Writes a file and waits until it is on the disk. Its entry in the directory is another matter: see `sync`.
 *
 * @category operations
 * @since 0.1.0
 */
export const writeDurably = (
  path: string,
  bytes: Uint8Array
): Effect.Effect<void, PlatformError.PlatformError, FileSystem.FileSystem> =>
  Effect.scoped(Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const file = yield* fs.open(path, { flag: "w" })
    yield* file.writeAll(bytes)
    yield* file.sync
  }))

/**
 * Waits until what a file holds is on the disk, whoever wrote it; for a directory, what was renamed into it (fsync(2): the
 * entry is the directory's).
 *
 * @category operations
 * @since 0.1.0
 */
export const sync = (path: string): Effect.Effect<void, PlatformError.PlatformError, FileSystem.FileSystem> =>
  Effect.scoped(Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    yield* (yield* fs.open(path, { flag: "r" })).sync
  }))

/** What we have written is far below this; what is above it was not written by us, and is not taken into memory. */
const largestSmall = 1024n * 1024n

/**
 * A file of ours that is small. Nothing else is read, and is as empty: a pipe would be waited for, a device may have no end, and of more
 * than 1 MiB we have written none.
 *
 * ```ts import.meta.vitest
 * import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
 * import { OwnedFiles } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * const { length } = await Effect.runPromise(Effect.provide(OwnedFiles.readSmall("/dev/zero"), NodeFileSystem.layer))
 * length // => 0
 * ```
 *
 * @category operations
 * @since 0.1.0
 */
export const readSmall = (
  path: string
): Effect.Effect<Uint8Array, PlatformError.PlatformError, FileSystem.FileSystem> =>
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const { size, type } = yield* fs.stat(path)
    return type === "File" && size <= largestSmall ? yield* fs.readFile(path) : new Uint8Array()
  })

/**
 * Makes a directory, and those above it, unless it is there; not for everybody to write to, whatever the umask is. Node's own
 * way calls a file system that is read-only one where nothing is (ENOENT), and does not come to an end below `/proc`.
 *
 * @category operations
 * @since 0.1.0
 */
export const ensureDirectory = (
  path: string
): Effect.Effect<void, PlatformError.PlatformError, FileSystem.FileSystem> =>
  FileSystem.FileSystem.use((fs) => {
    const make = Effect.catchIf(
      fs.makeDirectory(path, { mode: 0o775 }),
      (error) => error.reason._tag === "AlreadyExists",
      () => Effect.void
    )
    const parent = path.replace(/\/+[^/]+\/*$/, "")
    return Effect.catchIf(make, (error) => error.reason._tag === "NotFound", () =>
      Effect.flatMap(
        parent === "" || parent === path ? Effect.succeed(true) : fs.exists(parent),
        // Another process may have made it just now. If not, nothing can be made in it, and the second try says so, too.
        (isThere) => Effect.andThen(isThere ? Effect.void : ensureDirectory(parent), make)
      ))
  })

/**
 * Removes a directory and all below it, as far as that is possible: a program that has lost its parent may go on writing
 * into it for a while, so it is tried for 5 seconds. What is left is for the next `sweep`.
 *
 * @category operations
 * @since 0.1.0
 */
export const removeTree = (path: string): Effect.Effect<void, never, FileSystem.FileSystem> =>
  FileSystem.FileSystem.use((fs) => fs.remove(path, { recursive: true, force: true })).pipe(
    Effect.retry({ schedule: Schedule.spaced("100 millis"), times: 50 }),
    Effect.ignore
  )

/** Boot ids have no dots. */
const ownerName = (owner: ProcessIdentity.ProcessIdentity): string => `${owner.bootId}.${owner.pid}.${owner.startTime}.`

const ownerOfName = (name: string): ProcessIdentity.ProcessIdentity | undefined => {
  const [, bootId, pid, startTime] = /^([^.]+)\.(\d+)\.(\d+)\./.exec(name) ?? []
  return bootId === undefined
    ? undefined
    : ProcessIdentity.make({ bootId, pid: Number(pid), startTime: Number(startTime) })
}

/**
 * Makes an empty directory in `parent` that is removed when the scope closes. Only this user can look into it (mode 0700),
 * and its name says which process it belongs to.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { NodeProcessHost, OwnedFiles } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * import * as FileSystem from "effect/FileSystem"
 * const program = Effect.gen(function*() {
 *   const fs = yield* FileSystem.FileSystem
 *   const parent = yield* fs.makeTempDirectoryScoped()
 *   const during = yield* Effect.scoped(Effect.andThen(OwnedFiles.temporaryDirectory(parent), fs.readDirectory(parent)))
 *   const after = yield* fs.readDirectory(parent)
 *   return [during.length, after.length]
 * })
 * await Effect.runPromise(
 *   program.pipe(Effect.scoped, Effect.provide([NodeServices.layer, NodeProcessHost.layer]))
 * ) // => [1, 0]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const temporaryDirectory = (
  parent: string
): Effect.Effect<string, PlatformError.PlatformError, FileSystem.FileSystem | ProcessHost | Scope.Scope> =>
  Effect.flatMap(ProcessIdentity.self, (self) =>
    Effect.acquireRelease(
      FileSystem.FileSystem.use((fs) => fs.makeTempDirectory({ directory: parent, prefix: ownerName(self) })),
      removeTree
    ))

/**
 * Removes the temporary directories in `parent` whose process is gone, and nothing else that may be there.
 *
 * @category operations
 * @since 0.1.0
 */
export const sweep: (
  parent: string
) => Effect.Effect<void, PlatformError.PlatformError, FileSystem.FileSystem | Path.Path | ProcessHost> = Effect
  .fnUntraced(function*(parent) {
    const fs = yield* FileSystem.FileSystem
    const path = yield* Path.Path
    for (const name of yield* fs.readDirectory(parent)) {
      const owner = ownerOfName(name)
      if (owner !== undefined && !(yield* ProcessIdentity.isAlive(owner))) yield* removeTree(path.join(parent, name))
    }
  })

/**
 * Is it that the disk, or this user's share of it, is full?
 *
 * @category guards
 * @since 0.1.0
 */
export const isNoSpace = ({ reason: { cause } }: PlatformError.PlatformError): boolean =>
  hasProperty(cause, "code") && (cause.code === "ENOSPC" || cause.code === "EDQUOT")
