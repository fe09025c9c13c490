/**
 * Locks by fcntl(2), which Node offers through the SQLite that it has built in.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { hasProperty } from "effect/Predicate"
import type * as Sqlite from "node:sqlite"
import { Lease, LockFailed } from "./Lease.ts"

/** sqlite.org/rescode.html: SQLITE_BUSY. */
const BUSY = 5

/** Node 22 calls it experimental on stderr, once. What is used of it here is the same in all versions since. */
const load = (): typeof Sqlite => {
  const emitWarning = Object.getOwnPropertyDescriptor(process, "emitWarning")
  if (emitWarning === undefined) return process.getBuiltinModule("node:sqlite")
  Object.defineProperty(process, "emitWarning", { ...emitWarning, value: () => {} })
  try {
    return process.getBuiltinModule("node:sqlite")
  } finally {
    Object.defineProperty(process, "emitWarning", emitWarning)
  }
}

/**
 * An empty database, in which nothing is ever written: the transaction stays in memory, and never ends. It has to be one that
 * writes, because SQLite shares a database that it can only read, whatever is asked for.
 */
const statements = [
  "PRAGMA journal_mode = MEMORY",
  "PRAGMA locking_mode = EXCLUSIVE",
  "BEGIN EXCLUSIVE",
  "PRAGMA user_version = 1"
].join("; ")

const open = (file: string): Sqlite.DatabaseSync | undefined => {
  const database = new (load().DatabaseSync)(file, { timeout: 0 })
  try {
    database.exec(statements)
    return database
  } catch (error) {
    database.close()
    if (hasProperty(error, "errcode") && error.errcode === BUSY) return undefined
    throw error
  }
}

/**
 * The locks of the kernel. They go by the file, not by its path: bind mounts and mount namespaces make no difference. A child
 * does not inherit them.
 *
 * **Gotchas**
 *
 * - By fcntl(2), a process that closes any descriptor of a file loses its locks on it: nobody in this process may open the
 *   lock's file otherwise, not even to read it.
 * - On a network file system they are as good as its locks are.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { Lease, NodeLease } from "effect-microvm-runtime/journal"
 * import * as Effect from "effect/Effect"
 * import * as FileSystem from "effect/FileSystem"
 * const program = Effect.gen(function*() {
 *   const directory = yield* FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped())
 *   const take = Lease.Lease.use((lease) => lease.lock(`${directory}/lease`))
 *   const both = yield* Effect.scoped(Effect.all([take, take]))
 *   return [...both, yield* take]
 * })
 * await Effect.runPromise(
 *   program.pipe(Effect.scoped, Effect.provide([NodeServices.layer, NodeLease.layer]))
 * ) // => [true, false, true]
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Lease> = Layer.sync(Lease, () => ({
  user: process.geteuid?.() ?? 0,
  lock: (file) =>
    Effect.acquireRelease(
      Effect.try({ try: () => open(file), catch: (cause) => new LockFailed({ file, cause }) }),
      (database) => Effect.sync(() => database?.close())
    ).pipe(Effect.map((database) => database !== undefined))
}))
