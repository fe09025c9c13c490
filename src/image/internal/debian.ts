/** Debian packages: which ones, where from, what is inside. apt checks signatures and digests; nothing is installed. */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import * as Schedule from "effect/Schedule"
import type { ProcessSpawner } from "../../process/ProcessSpawner.ts"
import * as ImageError from "../ImageError.ts"
import * as Command from "./command.ts"

export interface Package {
  readonly name: string
  readonly version: string
  readonly sha256: string
  /** In bytes, of the `.deb` file. */
  readonly size: number
  /** The name apt gives to the file. */
  readonly file: string
}

const LISTS = "/var/lib/apt/lists/partial"

/** Nothing has come for a minute. By itself apt waits half a minute for an answer, three times for each package, one after the other. */
export class Silent extends Data.TaggedError("Silent") {}

const LOOK = Duration.millis(200)
/** Looks, and not a time: a host may sleep meanwhile. */
const patience = Duration.toMillis("1 minute") / Duration.toMillis(LOOK)

export const supported = ["amd64"]

export const checkArchitecture: Effect.Effect<void, ImageError.ImageError, ProcessSpawner> = Effect.gen(
  function*() {
    const { stdout: architecture } = yield* Command.run("dpkg", ["--print-architecture"])
    if (!supported.includes(architecture)) {
      return yield* ImageError.fromReason(
        ImageError.ImageErrorReason.UnsupportedArchitecture({ architecture, supported })
      )
    }
  }
)

/** Reads the lists anew where we may; tells whether it did. */
export const updateLists: Effect.Effect<
  boolean,
  ImageError.ImageError,
  ProcessSpawner | FileSystem.FileSystem
> = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const allowed = yield* Effect.isSuccess(fs.access(LISTS, { writable: true }))
  if (!allowed) return false
  // A mirror that says nothing is waited for half a minute, for each of its lists, and each time again.
  const ended = yield* Effect.timeoutOption(
    Command.run("apt-get", ["-qq", "-o", "Acquire::Retries=1", "update"]),
    "5 minutes"
  )
  return Option.isSome(ended) && ended.value.code === 0
})

const missing = (packages: ReadonlyArray<string>, output: string) =>
  ImageError.fromReason(ImageError.ImageErrorReason.PackageMissing({ packages, output }))

const noSpace = /No space left on device|enough free space/

/** The dependencies of these packages and of all that they lead to, by package; alternatives are all named. */
const dependencies = Effect.fnUntraced(function*(packages: ReadonlyArray<string>) {
  // One run for all: without its cache file, as in container images, each run of apt reads all lists anew.
  const { code, stderr, stdout } = yield* Command.run("apt-cache", ["depends", "--recurse", "--important", ...packages])
  if (code !== 0) return yield* missing(packages, stderr)
  const found = new Map<string, Array<string>>()
  let current: Array<string> = []
  for (const line of stdout.split("\n")) {
    const [, dependency] = /^[ |]+(?:Pre)?Depends: ([a-z0-9][a-z0-9+.-]*)$/.exec(line) ?? []
    if (dependency !== undefined) current.push(dependency)
    else if (/^[a-z0-9]/.test(line)) found.set(line, current = [])
  }
  return (name: string): ReadonlyArray<string> => found.get(name) ?? []
})

/** A library's package, going by Debian's naming (Debian Policy, section 8.1); zlib has an older name. */
const isLibrary = (name: string): boolean => /^(lib[a-z0-9]|zlib1g)/.test(name)

/**
 * The packages that make an image, in apt's candidate versions and sorted by name. Libraries are followed for two steps,
 * which covers the agent's with room to spare; the builder takes of them what the agent is linked against.
 */
export const resolve = Effect.fnUntraced(function*(
  recipe: { readonly kernelPackage: string; readonly agentPackage: string; readonly shellPackage: string },
  directory: string
) {
  const dependenciesOf = yield* dependencies([recipe.kernelPackage, recipe.agentPackage, recipe.shellPackage])
  const kernel = dependenciesOf(recipe.kernelPackage).find((name) => name.startsWith("linux-image-"))
  if (kernel === undefined) return yield* missing([recipe.kernelPackage], "it depends on no kernel")
  const direct = dependenciesOf(recipe.agentPackage).filter(isLibrary)
  const indirect = direct.flatMap(dependenciesOf).filter(isLibrary)
  const names = Array.from(new Set([kernel, recipe.agentPackage, recipe.shellPackage, ...direct, ...indirect]))
    .toSorted()
  const { code, stderr, stdout } = yield* Command.run("apt-get", ["-qq", "download", "--print-uris", ...names], {
    cwd: directory
  })
  if (code !== 0) return yield* missing(names, stderr)
  // 'URI' NAME_VERSION_ARCHITECTURE.deb SIZE SHA256:DIGEST
  const packages = Array.from(
    stdout.matchAll(/^'[^']+' (([^_\s]+)_([^_\s]+)_[^_\s]+\.deb) (\d+) SHA256:([0-9a-f]{64})$/gm),
    ([, file = "", name = "", version = "", size = "", sha256 = ""]): Package => ({
      name,
      version: decodeURIComponent(version),
      sha256,
      size: Number(size),
      file
    })
  ).toSorted((a, b) => a.name < b.name ? -1 : 1)
  const absent = names.filter((name) => !packages.some((one) => one.name === name))
  return absent.length === 0 ? { kernel, packages } : yield* missing(absent, stdout.slice(0, 1024))
})

/** Fetches the packages into a directory and says every now and then how many bytes have come. Fails with `Silent` when none do. */
export const download = Effect.fnUntraced(function*(
  packages: ReadonlyArray<Package>,
  directory: string,
  received: (bytes: number) => Effect.Effect<void>
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const total = packages.reduce((sum, { size }) => sum + size, 0)
  const sizeOf = (file: string) =>
    fs.stat(path.join(directory, file)).pipe(Effect.map(({ size }) => Number(size)), Effect.orElseSucceed(() => 0))
  let before = -1
  let looks = 0
  const look = Effect.gen(function*() {
    const bytes = (yield* Effect.forEach(packages, ({ file }) => sizeOf(file))).reduce((sum, size) => sum + size, 0)
    // A file that is fetched again begins anew.
    looks = bytes === before ? looks + 1 : 0
    before = bytes
    if (looks >= patience) return yield* new Silent()
    yield* received(bytes)
  })
  const watch = Effect.andThen(Effect.repeat(look, Schedule.spaced(LOOK)), Effect.never)
  // Files of a temporary directory of ours are out of the reach of apt's own unprivileged user.
  const args = ["-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2", "download"]
  const { code, stderr } = yield* Effect.raceFirst(
    Command.run("apt-get", [...args, ...packages.map(({ name, version }) => `${name}=${version}`)], { cwd: directory }),
    watch
  )
  if (noSpace.test(stderr)) {
    return yield* ImageError.fromReason(ImageError.ImageErrorReason.NoSpace({ path: directory }))
  }
  if (code !== 0) {
    return yield* ImageError.fromReason(
      ImageError.ImageErrorReason.DownloadFailed({ command: "apt-get download", output: stderr })
    )
  }
  yield* received(total)
})

/** Unpacks the files of a package below a directory. */
export const unpack = Effect.fnUntraced(function*(file: string, directory: string) {
  const { code, stderr } = yield* Command.run("dpkg-deb", ["-x", file, directory])
  if (noSpace.test(stderr)) {
    return yield* ImageError.fromReason(ImageError.ImageErrorReason.NoSpace({ path: directory }))
  }
  if (code !== 0) {
    return yield* ImageError.fromReason(ImageError.ImageErrorReason.UnpackFailed({ file, output: stderr }))
  }
})
