/**
 * One builder at a time in a directory. The lock is a file that names its owner; a lock whose owner is gone is taken over.
 * Two processes that take over the same lock within the same moment may both go on: images are put in place by a single
 * rename, so that costs work and never an image.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import * as Schema from "effect/Schema"
import * as ProcessHost from "../../process/ProcessHost.ts"
import * as ProcessIdentity from "../../process/ProcessIdentity.ts"
import * as ImageError from "../ImageError.ts"

const POLL = Duration.millis(100)

const Owner = Schema.fromJsonString(ProcessIdentity.ProcessIdentity)

export const self = Effect.gen(function*() {
  const host = yield* ProcessHost.ProcessHost
  const info = yield* host.inspect(host.self)
  return ProcessIdentity.make({
    bootId: host.bootId,
    pid: host.self,
    startTime: Option.match(info, { onNone: () => 0, onSome: ({ startTime }) => startTime })
  })
})

/** Does that process still run? One of another boot does not. */
export const isAlive = Effect.fnUntraced(function*(owner: ProcessIdentity.ProcessIdentity) {
  const host = yield* ProcessHost.ProcessHost
  if (owner.bootId !== host.bootId) return false
  const info = yield* host.inspect(owner.pid)
  return Option.isSome(info) && info.value.startTime === owner.startTime && ProcessHost.isAlive(info.value)
})

/** The owner as part of a file's name, and back. Boot ids have no dots. */
export const ownerName = (owner: ProcessIdentity.ProcessIdentity): string =>
  `${owner.bootId}.${owner.pid}.${owner.startTime}.`

export const ownerOfName = (name: string): ProcessIdentity.ProcessIdentity | undefined => {
  const [, bootId, pid, startTime] = /^([^.]+)\.(\d+)\.(\d+)\./.exec(name) ?? []
  return bootId === undefined
    ? undefined
    : ProcessIdentity.make({ bootId, pid: Number(pid), startTime: Number(startTime) })
}

export interface Options {
  readonly file: string
  /** A directory of ours alone, on the same file system. */
  readonly own: string
  /** How long another builder may take. */
  readonly patience: Duration.Duration
  readonly onWait: (pid: number) => Effect.Effect<void>
}

/** Holds the lock until the scope closes. */
export const acquire = Effect.fnUntraced(function*(options: Options) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const claim = path.join(options.own, "claim")
  const dead = path.join(options.own, "dead")
  yield* fs.writeFileString(claim, JSON.stringify(yield* self))
  // A link makes the file appear with its content, or not at all.
  const take = fs.link(claim, options.file).pipe(
    Effect.as(true),
    Effect.catchIf((error) => error.reason._tag === "AlreadyExists", () => Effect.succeed(false)),
    Effect.tap((taken) => taken ? Effect.addFinalizer(() => Effect.ignore(fs.remove(options.file))) : Effect.void),
    Effect.uninterruptible
  )
  const deadline = (yield* Clock.currentTimeMillis) + Duration.toMillis(options.patience)
  while (!(yield* take)) {
    const text = yield* Effect.option(fs.readFileString(options.file))
    // Released since.
    if (Option.isNone(text)) continue
    const owner = Schema.decodeUnknownOption(Owner)(text.value)
    if (Option.isNone(owner) || !(yield* isAlive(owner.value))) {
      // Moved to a name of ours first: of all who find the owner dead, one does the removing.
      yield* Effect.ignore(Effect.andThen(fs.rename(options.file, dead), fs.remove(dead)))
    } else if ((yield* Clock.currentTimeMillis) >= deadline) {
      return yield* ImageError.fromReason(
        ImageError.ImageErrorReason.Busy({ pid: owner.value.pid, path: options.file })
      )
    } else {
      yield* options.onWait(owner.value.pid)
      yield* Effect.sleep(POLL)
    }
  }
})
