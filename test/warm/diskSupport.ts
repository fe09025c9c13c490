import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { Hasher, NodeHasher } from "effect-microvm-runtime/image"
import type { Snapshot } from "effect-microvm-runtime/microvm"
import { NodeProcessHost } from "effect-microvm-runtime/process"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as PlatformError from "effect/PlatformError"
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { type AddOptions, SnapshotStore } from "../../src/microvm/SnapshotStore.ts"
import * as DiskSnapshotStore from "../../src/warm/DiskSnapshotStore.ts"
import { FileSeals } from "../../src/warm/FileSeals.ts"
import * as NodeFileSeals from "../../src/warm/NodeFileSeals.ts"

export const spec: Snapshot.Spec = { vcpus: 1, memoryMib: 256, kernel: "/kernel", kernelArgs: [], channels: ["agent"] }

export const saved: Snapshot.Saved = { form: "stream", platform: { backend: "test" }, madeBy: "a test" }

export const contents = { memory: "m".repeat(10_000), state: "the state" }

/** Writes these files, as a backend would. */
export const writing = (files: Readonly<Record<string, string>> = contents) => (directory: string) =>
  Effect.sync(() => {
    for (const [name, content] of Object.entries(files)) writeFileSync(join(directory, name), content)
    return saved
  })

export const golden = (options: Partial<AddOptions> = {}): AddOptions => ({ kind: "golden", spec, ...options })

export const systemError = (code: string) =>
  PlatformError.systemError({
    _tag: "Unknown",
    module: "FileSystem",
    method: "test",
    cause: Object.assign(new Error(`${code}: as the test wants it`), { code })
  })

type Hook = (step: string) => Effect.Effect<void, PlatformError.PlatformError>

/** Each thing that is done to the file system comes through the hook first. */
export const stepping = (hook: Hook): Layer.Layer<FileSystem.FileSystem> =>
  Layer.effect(
    FileSystem.FileSystem,
    Effect.map(FileSystem.FileSystem, (fs): FileSystem.FileSystem => {
      const step = <Args extends ReadonlyArray<unknown>, A, R>(
        name: string,
        run: (...args: Args) => Effect.Effect<A, PlatformError.PlatformError, R>
      ) =>
      (...args: Args) => Effect.andThen(hook(`${name} ${args.map(String).join(" ")}`), run(...args))
      return {
        ...fs,
        chmod: step("chmod", fs.chmod),
        exists: step("exists", fs.exists),
        link: step("link", fs.link),
        makeDirectory: step("makeDirectory", fs.makeDirectory),
        makeTempDirectory: step("makeTempDirectory", fs.makeTempDirectory),
        open: step("open", (path, options) =>
          Effect.map(fs.open(path, options), (file): FileSystem.File => ({
            [FileSystem.FileTypeId]: FileSystem.FileTypeId,
            stat: file.stat,
            seek: (offset, from) => file.seek(offset, from),
            read: (buffer, at) => file.read(buffer, at),
            readAlloc: (size, at) => file.readAlloc(size, at),
            truncate: (length) => file.truncate(length),
            write: (buffer) => file.write(buffer),
            sync: step("sync", () => file.sync)(),
            writeAll: step("writeAll", (buffer: Uint8Array) => file.writeAll(buffer))
          }))),
        readDirectory: step("readDirectory", fs.readDirectory),
        readDirectoryEntries: step("readDirectoryEntries", fs.readDirectoryEntries),
        readFile: step("readFile", fs.readFile),
        readFileString: step("readFileString", fs.readFileString),
        remove: step("remove", fs.remove),
        rename: step("rename", fs.rename),
        stat: step("stat", fs.stat),
        utimes: step("utimes", fs.utimes),
        writeFileString: step("writeFileString", fs.writeFileString)
      }
    })
  ).pipe(Layer.provide(NodeFileSystem.layer))

export interface World {
  readonly files?: Layer.Layer<FileSystem.FileSystem> | undefined
  /** Told of each file that was read to its end. */
  readonly onHash?: ((path: string) => void) | undefined
  /** Told of each file that was looked at, and of each wait for the clock. */
  readonly onSeal?: ((what: string) => void) | undefined
}

export const storeAt = (
  directory: string,
  { files = NodeFileSystem.layer, onHash = () => {}, onSeal = () => {} }: World = {}
) => {
  const hasher = Layer.effect(
    Hasher.Hasher,
    Effect.map(Hasher.Hasher, (real) => ({
      ...real,
      file: (path: string) => Effect.tap(real.file(path), () => Effect.sync(() => onHash(path)))
    }))
  ).pipe(Layer.provide(NodeHasher.layer))
  const seals = Layer.effect(
    FileSeals,
    Effect.map(FileSeals, (real) => ({
      ...real,
      facts: (path: string) => Effect.tap(real.facts(path), () => Effect.sync(() => onSeal(path))),
      settle: Effect.tap(real.settle, () => Effect.sync(() => onSeal("settle")))
    }))
  ).pipe(Layer.provide(NodeFileSeals.layer))
  return DiskSnapshotStore.layerAt({ directory, patience: "30 seconds" }).pipe(
    Layer.provide([files, hasher, NodePath.layer, NodeProcessHost.layer, seals])
  )
}

type Store = SnapshotStore["Service"]

export const using = <A, E>(
  directory: string,
  use: (store: Store) => Effect.Effect<A, E>,
  world?: World
): Effect.Effect<A, E> => SnapshotStore.use(use).pipe(Effect.provide(storeAt(directory, world)))

/** A cache directory that is not there yet, in a directory that goes with the test. */
export const withCache = <A, E>(use: (cache: string) => Effect.Effect<A, E>): Effect.Effect<A, E> =>
  Effect.acquireUseRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "snapshot-store-"))),
    (directory) => use(join(directory, "cache")),
    (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
  )

const entries = (directory: string) => {
  mkdirSync(directory, { recursive: true })
  return readdirSync(directory)
}

/** What is there beside snapshots and names: nothing should be. */
export const leftovers = (cache: string): ReadonlyArray<string> => [
  ...entries(cache).filter((name) => !["snapshots", "snapshot-names", "tmp"].includes(name)),
  ...entries(join(cache, "tmp")),
  ...entries(join(cache, "snapshots", "tmp"))
]
