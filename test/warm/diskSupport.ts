import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { Hasher, NodeHasher } from "effect-microvm-runtime/image"
import type { Snapshot } from "effect-microvm-runtime/microvm"
import { NodeProcessHost } from "effect-microvm-runtime/process"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { type AddOptions, SnapshotStore } from "../../src/microvm/SnapshotStore.ts"
import * as DiskSnapshotStore from "../../src/warm/DiskSnapshotStore.ts"
import { FileSeals } from "../../src/warm/FileSeals.ts"
import * as NodeFileSeals from "../../src/warm/NodeFileSeals.ts"
import { scratch } from "../files.ts"

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

export interface World {
  readonly files?: Layer.Layer<FileSystem.FileSystem> | undefined
  /** Told of each file that was read to its end. */
  readonly onHash?: ((path: string) => void) | undefined
  /** Told of each file that was looked at, and of each wait for the clock. */
  readonly onSeal?: ((what: string) => void) | undefined
}

const storeAt = (
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
export const withCache = <A, E>(
  use: (cache: string) => Effect.Effect<A, E>,
  within = scratch
): Effect.Effect<A, E> =>
  Effect.acquireUseRelease(
    Effect.sync(() => mkdtempSync(join(within, "snapshot-store-"))),
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
