import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as NodeFsSync from "node:fs"
import * as NodeFs from "node:fs/promises"
import * as NodePath from "node:path"
import * as NodeFileDigest from "../../process/NodeFileDigest.ts"

const Kept = Schema.fromJsonString(
  Schema.Struct({ program: Schema.String, answer: Schema.String, sha256: Schema.String })
)

const maxBytes = 4096

/** Which file it is, and in which state; absent for one that may start any other, such as a script. */
const stateOf = async (place: string): Promise<string | undefined> => {
  await using handle = await NodeFs.open(place, "r")
  const { buffer } = await handle.read(Buffer.alloc(4), 0, 4, 0)
  const { ctimeNs, dev, ino, mtimeNs, size } = await handle.stat({ bigint: true })
  const isProgram = buffer.toString("latin1") === "\x7fELF"
  return isProgram ? [NodePath.resolve(place), dev, ino, size, mtimeNs, ctimeNs].join(" ") : undefined
}

interface Found {
  readonly place: string
  readonly state: string | undefined
}

/** Where the one is that is meant, and its state; absent when there is none. */
const identify = async (program: string, path: string): Promise<Found | undefined> => {
  const places = program.includes("/")
    ? [program]
    : path.split(":").map((directory) => NodePath.join(directory, program))
  const found = places.find((place) => NodeFsSync.existsSync(place))
  if (found === undefined) return undefined
  return { place: found, state: await stateOf(found).catch(() => undefined) }
}

const read = async (file: string): Promise<Option.Option<typeof Kept.Type>> => {
  try {
    const stat = await NodeFs.stat(file)
    // A pipe would be waited for.
    if (!stat.isFile() || stat.size > maxBytes) return Option.none()
    return Schema.decodeOption(Kept)(await NodeFs.readFile(file, "utf8"))
  } catch {
    return Option.none()
  }
}

/** Best effort: without it, the program is asked again. */
const write = async (file: string, kept: typeof Kept.Type): Promise<void> => {
  const own = `${file}.${process.pid}`
  try {
    const directory = NodePath.dirname(file)
    // Several programs are asked at a time, and the first to answer makes it.
    if (!NodeFsSync.existsSync(directory)) await NodeFs.mkdir(directory, { mode: 0o700 }).catch(() => undefined)
    // Through no link that somebody else has put there.
    await NodeFs.writeFile(own, Schema.encodeSync(Kept)(kept), { flag: "wx", mode: 0o600 })
    await NodeFs.rename(own, file)
  } catch {
    await NodeFs.rm(own, { force: true }).catch(() => undefined)
  }
}

interface Question<E, R> {
  /** As it is started. */
  readonly program: string
  /** Where it is looked for. */
  readonly path: string
  /** What it said last does not count. */
  readonly afresh: boolean
  /** Gives what it says, and whether that is worth to be kept. */
  readonly ask: Effect.Effect<readonly [answer: string, keep: boolean], E, R>
}

/** What a program says, and the digest of its file, if that can be read. */
export interface Answer {
  readonly answer: string
  readonly sha256?: string
}

/**
 * Asks a program, and keeps in `directory` what it said and what it is for as long as it is the same file. Without a directory,
 * it is asked and read each time.
 *
 * @internal
 */
export const answerOf = <E, R>(
  directory: string | undefined,
  { afresh, ask, path, program }: Question<E, R>
): Effect.Effect<Answer, E, R> =>
  Effect.gen(function*() {
    const look = Effect.promise(() => identify(program, path))
    /** To be asked takes a program as long as to read it takes us. */
    const askAndRead = Effect.fnUntraced(function*(looking: Effect.Effect<Found | undefined>) {
      const digest = Effect.flatMap(
        looking,
        (found) =>
          found === undefined
            ? Effect.undefined
            : Effect.orElseSucceed(NodeFileDigest.sha256(found.place), () => undefined)
      )
      const [[answer, keep], sha256] = yield* Effect.all([ask, digest], { concurrency: "unbounded" })
      return { keep, told: { answer, ...(sha256 !== undefined && { sha256 }) } }
    })
    if (directory === undefined) return (yield* askAndRead(look)).told
    const found = yield* look
    if (found?.state === undefined) return (yield* askAndRead(Effect.succeed(found))).told
    const file = NodePath.join(directory, `${NodePath.basename(program)}.json`)
    const kept = afresh ? Option.none() : yield* Effect.promise(() => read(file))
    if (Option.isSome(kept) && kept.value.program === found.state) return kept.value
    const { keep, told } = yield* askAndRead(Effect.succeed(found))
    const { state } = found
    const { sha256 } = told
    if (keep && sha256 !== undefined) {
      yield* Effect.promise(() => write(file, { program: state, answer: told.answer, sha256 }))
    }
    return told
  })
