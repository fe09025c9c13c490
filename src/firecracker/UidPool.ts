/**
 * A user for each machine, so that one that breaks out of its guest can do nothing to the others.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as OwnedFiles from "../process/OwnedFiles.ts"
import * as OwnerLock from "../process/OwnerLock.ts"
import { ProcessHost } from "../process/ProcessHost.ts"
import * as FirecrackerError from "./FirecrackerError.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface UidPool {
  /**
   * A user that nobody else has until the scope closes, and that no process runs as; its group has the same number. Fails with
   * `HostFailed` when all are in use.
   */
  readonly take: Effect.Effect<
    { readonly uid: number; readonly gid: number },
    FirecrackerError.FirecrackerError,
    Scope.Scope
  >
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** The first number, from 1 on. Take a range that no user or container of the host has (subuid(5)). */
  readonly first: number
  /** How many there are. */
  readonly count: number
  /**
   * Where programs that share the range tell each other what they have, a file each. It is made if need be, for this user
   * alone; one that is there stays as open as it is. Default: none shares it.
   */
  readonly directory?: string | undefined
}

const lastUid = 4_294_967_294

/**
 * The users that processes run as (proc_pid_status(5)): real, effective, saved, and for files. A program that is killed holds
 * no user any more, but its machines may live on.
 */
const active = FileSystem.FileSystem.use((fs) =>
  Effect.gen(function*() {
    const pids = (yield* fs.readDirectory("/proc")).filter((name) => /^\d+$/.test(name))
    const statuses = yield* Effect.forEach(
      pids,
      // It may have ended meanwhile.
      (pid) => Effect.orElseSucceed(fs.readFileString(`/proc/${pid}/status`), () => ""),
      { concurrency: 16 }
    )
    return new Set(statuses.flatMap((status) => /^Uid:\t(.*)$/m.exec(status)?.[1]?.split("\t").map(Number) ?? []))
  })
)

/**
 * Makes a pool. What was given back is given out again as late as can be. Fails with `InvalidRequest` for a range that is
 * none, and with `HostFailed` when the directory cannot be used.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { UidPool } from "effect-microvm-runtime/firecracker"
 * import { NodeProcessHost } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* UidPool.make({ first: 200_000, count: 1 })
 *   const { uid } = yield* pool.take
 *   const error = yield* Effect.flip(pool.take)
 *   return [uid, error.reason._tag]
 * })
 * await Effect.runPromise(
 *   program.pipe(Effect.scoped, Effect.provide([NodeServices.layer, NodeProcessHost.layer]))
 * ) // => [200000, "HostFailed"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make: (options: Options) => Effect.Effect<
  UidPool,
  FirecrackerError.FirecrackerError,
  FileSystem.FileSystem | Path.Path | ProcessHost | Scope.Scope
> = Effect.fn("UidPool.make")(function*({ count, directory, first }) {
  const faults = [
    ...(Number.isSafeInteger(first) && first >= 1 && first <= lastUid ? [] : [
      { field: "first", value: first, remedy: `give a number from 1 to ${lastUid}` }
    ]),
    ...(Number.isSafeInteger(count) && count >= 1 && first + count - 1 <= lastUid ? [] : [
      { field: "count", value: count, remedy: `give a number from 1 on; the last user is ${lastUid}` }
    ])
  ]
  if (faults.length > 0) return yield* FirecrackerError.fail(new FirecrackerError.InvalidRequest({ faults }))

  // All of the context would have the pool's scope in it too.
  const services = Context.pick(FileSystem.FileSystem, Path.Path, ProcessHost)(
    yield* Effect.context<FileSystem.FileSystem | Path.Path | ProcessHost>()
  )
  const failed = (operation: string, path: string, why: string, cause?: unknown) =>
    FirecrackerError.make(new FirecrackerError.HostFailed({ operation, path, why, cause }))
  const fromPlatform = (path: string) => (cause: PlatformError.PlatformError) =>
    failed("use", path, cause.message, cause)
  const own = directory === undefined ? undefined : yield* Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    if (!(yield* fs.exists(directory))) {
      yield* OwnedFiles.ensureDirectory(directory)
      yield* fs.chmod(directory, 0o700)
    }
    yield* OwnedFiles.sweep(directory)
    return yield* OwnedFiles.temporaryDirectory(directory)
  }).pipe(Effect.mapError(fromPlatform(directory)))

  const taken = new Set<number>()
  let next = first

  const look = Effect.mapError(Effect.provide(active, services), fromPlatform("/proc"))
  let running = yield* look

  const reserve = (uid: number): Effect.Effect<void, never, Scope.Scope> =>
    Effect.asVoid(Effect.acquireRelease(
      Effect.sync(() => taken.add(uid)),
      () => Effect.sync(() => taken.delete(uid))
    ))

  /** Has no other program it? */
  const claim = (uid: number): Effect.Effect<boolean, FirecrackerError.FirecrackerError, Scope.Scope> => {
    if (directory === undefined || own === undefined) return Effect.succeed(true)
    const file = `${directory}/${uid}.lock`
    return OwnerLock.acquire({ file, own, patience: 0 }).pipe(
      Effect.as(true),
      Effect.catchTags({
        LockHeld: () => Effect.succeed(false),
        PlatformError: (error) => Effect.fail(fromPlatform(file)(error))
      }),
      Effect.provide(services)
    )
  }

  const take: UidPool["take"] = Effect.gen(function*() {
    // Reading of all processes takes milliseconds. What another program has left could be any user; what we have left could be
    // one of an earlier round only.
    if (directory !== undefined) running = yield* look
    // Who was running when a round began may have ended since, and has another chance in the next.
    for (let tried = 0; tried < 2 * count && taken.size < count; tried++) {
      const uid = next
      next = uid + 1 < first + count ? uid + 1 : first
      const isFree = !taken.has(uid) && !running.has(uid)
      if (next === first) running = yield* look
      if (!isFree) continue
      const turn = yield* Scope.fork(yield* Effect.scope)
      const isOurs = yield* Scope.provide(Effect.andThen(reserve(uid), claim(uid)), turn)
      if (isOurs) return { uid, gid: uid }
      yield* Scope.close(turn, Exit.void)
    }
    return yield* failed(
      "take one of",
      `uids ${first} to ${first + count - 1}`,
      "all are in use: end a machine, or give a larger range"
    )
  })
  return { take: (yield* Semaphore.make(1)).withPermit(take) }
})
