/**
 * One process at a time. The lock is a file that names its owner, so that a lock whose owner was killed is no obstacle.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as OwnedFiles from "./OwnedFiles.ts"
import type { ProcessHost } from "./ProcessHost.ts"
import * as ProcessIdentity from "./ProcessIdentity.ts"

const POLL = Duration.millis(100)

const Owner = Schema.fromJsonString(ProcessIdentity.ProcessIdentity)

/**
 * Process `pid` has had the lock for too long.
 *
 * @category errors
 * @since 0.1.0
 */
export class LockHeld extends Data.TaggedError("LockHeld")<{ readonly path: string; readonly pid: number }> {
  override get message(): string {
    return `process ${this.pid} has the lock ${this.path}: wait for it, or end it`
  }
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** The lock's path. */
  readonly file: string
  /** A directory of the caller alone, on the same file system. `OwnedFiles.temporaryDirectory` makes one. */
  readonly own: string
  /** How long another process may take. */
  readonly patience: Duration.Input
  /** Told each time that another process has it. By default, nobody. */
  readonly onWait?: ((pid: number) => Effect.Effect<void>) | undefined
}

/**
 * Takes the lock, and holds it until the scope closes. One that another process has is looked at ten times a second.
 *
 * A lock whose owner is gone, or that names nobody, is taken over. The right to do so is a lock itself, beside the other:
 * of several that find the owner dead, none can take away what another has just taken.
 *
 * **Gotchas**
 *
 * - Fibers of one process keep each other out too, and taking it twice is waiting for oneself.
 * - An owner in another pid namespace, as in another container, looks dead from here: it is not for what they share.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { NodeProcessHost, OwnerLock } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * import * as FileSystem from "effect/FileSystem"
 * const program = Effect.gen(function*() {
 *   const fs = yield* FileSystem.FileSystem
 *   const own = yield* fs.makeTempDirectoryScoped()
 *   const take = OwnerLock.acquire({ file: `${own}/lock`, own, patience: 0 })
 *   yield* take
 *   const error = yield* Effect.flip(take)
 *   return error._tag
 * })
 * await Effect.runPromise(
 *   program.pipe(Effect.scoped, Effect.provide([NodeServices.layer, NodeProcessHost.layer]))
 * ) // => "LockHeld"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const acquire: (options: Options) => Effect.Effect<
  void,
  LockHeld | PlatformError.PlatformError,
  FileSystem.FileSystem | Path.Path | ProcessHost | Scope.Scope
> = Effect.fn("OwnerLock.acquire")(function*(options) {
  const { file, onWait = () => Effect.void, own, patience } = options
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const claim = path.join(own, `${path.basename(file)}.claim`)
  yield* fs.writeFileString(claim, JSON.stringify(yield* ProcessIdentity.self))
  // A link makes the file appear with its content, or not at all.
  const take = fs.link(claim, file).pipe(
    Effect.as(true),
    Effect.catchIf((error) => error.reason._tag === "AlreadyExists", () => Effect.succeed(false)),
    Effect.tap((taken) => taken ? Effect.addFinalizer(() => OwnedFiles.removeTree(file)) : Effect.void),
    Effect.uninterruptible
  )
  const textOf = Effect.map(OwnedFiles.readSmall(file), (bytes) => new TextDecoder().decode(bytes))
  /** None when it was released since. */
  const read = textOf.pipe(
    Effect.asSome,
    Effect.catchIf((error) => error.reason._tag === "NotFound", () => Effect.succeedNone)
  )
  const right = `${file}.takeover`
  /** Only who has the right to removes a dead owner's lock, so it is still that one when it is removed. */
  const remove = (dead: string) =>
    Effect.scoped(Effect.gen(function*() {
      yield* acquire({ ...options, file: right })
      if (Option.contains(yield* read, dead)) yield* fs.remove(file)
    }))
  const deadline = (yield* Clock.currentTimeMillis) + Duration.toMillis(patience)
  let vanished = 0
  while (!(yield* take)) {
    // Released again and again, it may be; in the way and not to be read, it is no lock, but a link that leads nowhere.
    const text = vanished < 100 ? yield* read : Option.some(yield* textOf)
    if (Option.isNone(text)) {
      vanished++
      continue
    }
    vanished = 0
    const owner = Schema.decodeOption(Owner)(text.value)
    if (Option.isNone(owner) || !(yield* ProcessIdentity.isAlive(owner.value))) {
      yield* remove(text.value)
    } else if ((yield* Clock.currentTimeMillis) >= deadline) {
      return yield* new LockHeld({ path: file, pid: owner.value.pid })
    } else {
      yield* onWait(owner.value.pid)
      yield* Effect.sleep(POLL)
    }
  }
  // It is the lock itself now, by another name: nobody is to write to it.
  yield* fs.remove(claim)
  // Who was killed with the right, and had removed the dead owner's lock, has left it to nobody.
  const taker = yield* Effect.option(OwnedFiles.readSmall(right))
  if (Option.isNone(taker)) return
  const owner = Schema.decodeOption(Owner)(new TextDecoder().decode(taker.value))
  if (Option.isSome(owner) && (yield* ProcessIdentity.isAlive(owner.value))) return
  yield* Effect.ignore(Effect.scoped(acquire({ ...options, file: right, patience: 0 })))
})
