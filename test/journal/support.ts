import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { Journal, type JournalError, NodeLease } from "effect-microvm-runtime/journal"
import { NodeProcessHost } from "effect-microvm-runtime/process"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import { mkdtempSync, readdirSync, rmSync } from "node:fs"
import { join } from "node:path"
import { scratch } from "../files.ts"

export type JournalService = Journal.Journal["Service"]

export const journalAt = (
  directory: string,
  files: Layer.Layer<FileSystem.FileSystem> = NodeFileSystem.layer
): Layer.Layer<Journal.Journal, JournalError.JournalError> =>
  Journal.layer({ directory }).pipe(
    Layer.provide([files, NodeLease.layer, NodePath.layer, NodeProcessHost.layer])
  )

/** Opens the journal for as long as `use` takes. */
export const using = <A, E>(
  directory: string,
  use: (journal: JournalService) => Effect.Effect<A, E>,
  files?: Layer.Layer<FileSystem.FileSystem>
): Effect.Effect<A, E | JournalError.JournalError> =>
  Journal.Journal.use(use).pipe(Effect.provide(journalAt(directory, files), { local: true }))

/** A state directory that is not there yet, in a directory that goes with the test. */
export const withDirectory = <A, E>(
  use: (directory: string) => Effect.Effect<A, E>,
  within = scratch
): Effect.Effect<A, E> =>
  Effect.acquireUseRelease(
    Effect.sync(() => mkdtempSync(join(within, "journal-"))),
    (directory) => use(join(directory, "state")),
    (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
  )

/** What is in a state directory beside records and quarantine. */
export const leftovers = (directory: string): ReadonlyArray<string> => [
  ...readdirSync(directory).filter((name) => !["lease", "machines", "quarantine", "tmp"].includes(name)),
  ...readdirSync(join(directory, "tmp"))
]

export const tap = (name: string) => ({ kind: "tap", data: { name } })

export const machine = (id: string, more: Partial<Journal.NewRecord> = {}): Journal.NewRecord => ({
  id,
  keep: false,
  spec: { vcpus: 1 },
  ...more
})

export const reason = <A>(effect: Effect.Effect<A, JournalError.JournalError>) =>
  Effect.map(Effect.orDie(Effect.flip(effect)), (error) => error.reason)

/** A journal in memory. */
export const inMemory = (options?: Journal.MemoryOptions): Layer.Layer<Journal.Journal, JournalError.JournalError> =>
  Journal.layerMemory(options).pipe(Layer.provide(NodeProcessHost.layer))
