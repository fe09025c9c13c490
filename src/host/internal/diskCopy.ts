/** Copies of image files: the fastest that the file system can. */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import { DiskFiles, type FileFacts } from "../DiskFiles.ts"
import { HostCommands } from "../HostCommands.ts"
import * as HostError from "../HostError.ts"
import { orNoSpace, trying } from "./diskFailure.ts"

/**
 * Copies what `facts` were just taken of, and tells how. Never a hard link: two machines would write to one disk. Where there is
 * no cp(1), holes are filled with zeros.
 *
 * - `sparse`: `always` looks for zeros that could be holes, which takes half as long again; `auto` takes over the holes.
 */
export const copy = Effect.fnUntraced(function*(
  from: string,
  to: string,
  { facts, sparse }: { readonly facts: FileFacts; readonly sparse: "always" | "auto" }
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const files = yield* DiskFiles
  const commands = yield* HostCommands
  const checkRoom = Effect.fnUntraced(function*(wanted: number) {
    const free = yield* files.room(path.dirname(to))
    if (free < wanted) return yield* HostError.fail(new HostError.NoSpace({ path: to, wanted, free }))
  })
  if (yield* files.reflink(from, to)) return "reflink"
  yield* checkRoom(facts.allocated)
  return yield* commands.run({
    program: "cp",
    args: ["--reflink=never", `--sparse=${sparse}`, "--", from, to],
    what: `copying ${from}`,
    within: "10 minutes"
  }).pipe(
    Effect.mapError(orNoSpace(to)),
    Effect.as("sparse-copy" as const),
    Effect.catchReason(
      "HostError",
      "Unavailable",
      () => checkRoom(facts.size).pipe(Effect.andThen(fs.copyFile(from, to)), Effect.as("copy" as const))
    )
  )
}, (effect, _, to) => trying("copying to it", to)(effect))
