/**
 * `microvm image`: the guest images of this host.
 *
 * @since 0.1.0
 */
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Effect from "effect/Effect"
import type * as ImageError from "../image/ImageError.ts"
import * as ImageProgress from "../image/ImageProgress.ts"
import { ImageStore, type StoredImage } from "../image/ImageStore.ts"
import * as ExitCode from "../lifecycle/ExitCode.ts"
import { exitWith, jsonFlag, print, printJson, untilSignal } from "./internal/handlers.ts"
import { table } from "./internal/tables.ts"
import { formatTook, Reporter } from "./Reporter.ts"
import * as Run from "./Run.ts"

const fail = (error: ImageError.ImageError) =>
  Effect.andThen(
    Reporter.use(({ line }) => line(error.message)),
    exitWith(ExitCode.fromRun(Run.toEnd(error)))
  )

const build = Command.make(
  "build",
  {
    name: Argument.String("name").pipe(Argument.withDefault("default"), Argument.withDescription("The image's name"))
  },
  Effect.fnUntraced(function*({ name }) {
    const store = yield* ImageStore
    const reporter = yield* Reporter
    let last = ""
    const onProgress = (progress: ImageProgress.Progress): Effect.Effect<void> => {
      // Bytes are for a live line; of the rest, each step is told once.
      const text = progress._tag === "Downloading" ? "downloading packages" : ImageProgress.format(progress)
      if (text === last) return Effect.void
      last = text
      return reporter.line(text)
    }
    yield* Effect.timed(store.ensure(name, { onProgress })).pipe(
      Effect.flatMap(([took, image]) =>
        last === "" ? Effect.void : reporter.line(`image ${image.name} built in ${formatTook(took)}`)
      ),
      Effect.catch(fail),
      untilSignal
    )
  })
).pipe(Command.withDescription("Build a guest image, unless it is there already"))

const format = (images: ReadonlyArray<StoredImage>): string =>
  table(
    ["NAME", "ID", "KERNEL", "SIZE"],
    images.map(({ bytes, digest, kernelRelease, names }) => [
      names.join(","),
      digest.slice(0, 12),
      kernelRelease === "" ? "unreadable" : kernelRelease,
      `${Math.ceil(bytes / (1 << 20))} MiB`
    ])
  )

const ls = Command.make(
  "ls",
  { json: jsonFlag },
  Effect.fnUntraced(function*({ json }) {
    const { list } = yield* ImageStore
    yield* Effect.flatMap(list, (images) => json ? printJson(images) : print(format(images))).pipe(
      Effect.catch(fail),
      untilSignal
    )
  })
).pipe(
  Command.withDescription(
    "List the guest images. What has no name was replaced by another one, and is kept until it is removed"
  ),
  Command.withShortDescription("List the guest images")
)

const rm = Command.make(
  "rm",
  {
    images: Argument.String("image").pipe(
      Argument.withDescription("A name, an id, or the first 8 or more digits of an id"),
      Argument.atLeast(1)
    )
  },
  Effect.fnUntraced(function*({ images }) {
    const store = yield* ImageStore
    const reporter = yield* Reporter
    const remove = Effect.fnUntraced(function*(given: string) {
      if (yield* store.remove(given)) return true
      const found = given.length < 8 ? [] : (yield* store.list).filter(({ digest }) => digest.startsWith(given))
      if (found.length === 1 && (yield* store.remove(found[0]?.digest ?? given))) return true
      yield* reporter.line(
        found.length > 1
          ? `image ${JSON.stringify(given)} is not possible: give more of it, as ${found.length} ids begin so`
          : `there is no image ${JSON.stringify(given)}`
      )
      return false
    })
    // Each, also after one that is not there.
    yield* Effect.forEach(images, remove).pipe(
      Effect.flatMap((removed) => exitWith(removed.every((one) => one) ? 0 : 1)),
      Effect.catch(fail),
      untilSignal
    )
  })
).pipe(
  Command.withDescription(
    [
      "Remove guest images. A name is forgotten, and its image goes when no other name means it; an id is removed at once.",
      "Machines that run go on. What is needed later is built again. Exits with 1 when one is not there."
    ].join("\n  ")
  ),
  Command.withShortDescription("Remove guest images")
)

/**
 * All of them.
 *
 * @category commands
 * @since 0.1.0
 */
export const image = Command.make("image").pipe(
  Command.withDescription("Guest images"),
  Command.withSubcommands([build, ls, rm])
)
