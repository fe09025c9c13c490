/** The files of a run: each is whole, or is none. */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import { hasProperty } from "effect/Predicate"
import * as Schema from "effect/Schema"
import * as OwnedFiles from "../../process/OwnedFiles.ts"

/** None when it is not there, or says something else. */
export const readJson = <A>(schema: Schema.Codec<A, unknown>, file: string) =>
  FileSystem.FileSystem.use((fs) => fs.readFileString(file)).pipe(
    Effect.flatMap(Schema.decodeEffect(Schema.fromJsonString(schema))),
    Effect.option,
    Effect.map(Option.getOrUndefined)
  )

/** In milliseconds since 1970. */
export const modifiedAt = (file: string) =>
  FileSystem.FileSystem.use((fs) => fs.stat(file)).pipe(
    Effect.map(({ mtime }) => Option.getOrUndefined(mtime)?.getTime()),
    Effect.orElseSucceed(() => undefined)
  )

/** Puts a file in the place of another; `durable` says whether it is on the disk when this is done. */
export const put = Effect.fnUntraced(function*(file: string, text: string, durable: boolean) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const own = `${file}.new`
  const bytes = new TextEncoder().encode(text)
  yield* durable ? OwnedFiles.writeDurably(own, bytes) : fs.writeFile(own, bytes)
  yield* fs.rename(own, file)
  if (durable) yield* OwnedFiles.sync(path.dirname(file))
})

/** rename(2) puts a directory where there is none, or an empty one. */
export const isTaken = ({ reason: { cause } }: PlatformError.PlatformError): boolean =>
  hasProperty(cause, "code") && (cause.code === "ENOTEMPTY" || cause.code === "EEXIST" || cause.code === "ENOTDIR")
