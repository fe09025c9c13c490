/** Small files and directories of templates and clones: they may not be there, and anybody may have written them. */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import type * as PlatformError from "effect/PlatformError"
import * as Schema from "effect/Schema"
import { DiskFiles, type FileFacts } from "../DiskFiles.ts"
import { invalid, isNotThere } from "./diskFailure.ts"

/** What is longer than this was not written by us, and is not taken into memory. */
const LARGEST = 64 * 1024

/** What is at a path, without following a link; none where nothing is. */
export const factsAt = (
  path: string
): Effect.Effect<Option.Option<FileFacts>, PlatformError.PlatformError, DiskFiles> =>
  DiskFiles.use((files) => files.facts(path)).pipe(
    Effect.asSome,
    Effect.catchIf(isNotThere, () => Effect.succeed(Option.none<FileFacts>()))
  )

/** Who may write to a directory can put another disk in the place of one, whosever that is. */
export const refuseOpen = (directory: string) =>
  FileSystem.FileSystem.use((fs) => fs.stat(directory)).pipe(
    Effect.flatMap(({ mode }) =>
      (mode & 0o002) === 0
        ? Effect.void
        : invalid("directory", directory, `everybody may write to it: chmod o-w ${directory}`)
    ),
    Effect.catchIf(isNotThere, () => Effect.void)
  )

/** What we wrote there; none when it is not there, or is nothing of ours. */
export const readJson = <A>(path: string, schema: Schema.Codec<A, Schema.Json>) =>
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const facts = yield* factsAt(path)
    if (Option.isNone(facts) || facts.value.type !== "file" || facts.value.size > LARGEST) return Option.none<A>()
    const text = yield* fs.readFileString(path)
    return Schema.decodeOption(Schema.fromJsonString(schema))(text)
  })

/** The names in a directory; none when there is no such directory. */
export const namesIn = (
  directory: string
): Effect.Effect<ReadonlyArray<string>, PlatformError.PlatformError, FileSystem.FileSystem> =>
  FileSystem.FileSystem.use((fs) => fs.readDirectory(directory)).pipe(
    Effect.map((names) => names.toSorted()),
    Effect.catchIf(isNotThere, () => Effect.succeed<Array<string>>([]))
  )
