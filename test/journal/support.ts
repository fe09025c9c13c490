import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { Journal, type JournalError, NodeLease } from "effect-microvm-runtime/journal"
import { NodeProcessHost } from "effect-microvm-runtime/process"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as PlatformError from "effect/PlatformError"
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

export type JournalService = Journal.Journal["Service"]

export const systemError = (code: string) =>
  PlatformError.systemError({
    _tag: "Unknown",
    module: "FileSystem",
    method: "test",
    cause: Object.assign(new Error(`${code}: as the test wants it`), { code })
  })

type Hook = (step: string) => Effect.Effect<void, PlatformError.PlatformError>

/** Each thing that is done to the file system comes through the hook first, a file is written in two halves. */
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
        lstat: step("lstat", fs.lstat),
        makeDirectory: step("makeDirectory", fs.makeDirectory),
        open: step("open", (path, options) =>
          Effect.map(fs.open(path, options), (file): FileSystem.File => ({
            [FileSystem.FileTypeId]: FileSystem.FileTypeId,
            stat: file.stat,
            seek: (offset, from) => file.seek(offset, from),
            read: (buffer, at) => file.read(buffer, at),
            readAlloc: (size, at) => file.readAlloc(size, at),
            truncate: (length) => file.truncate(length),
            write: (buffer) => file.write(buffer),
            sync: step(`sync ${path}`, () => file.sync)(),
            writeAll: (buffer: Uint8Array) =>
              hook(`write ${path}`).pipe(
                Effect.andThen(file.writeAll(buffer.subarray(0, buffer.length >> 1))),
                Effect.andThen(hook(`write on ${path}`)),
                Effect.andThen(file.writeAll(buffer.subarray(buffer.length >> 1)))
              )
          }))),
        readDirectory: step("readDirectory", fs.readDirectory),
        readFile: step("readFile", fs.readFile),
        readFileString: step("readFileString", fs.readFileString),
        remove: step("remove", fs.remove),
        rename: step("rename", fs.rename),
        stat: step("stat", fs.stat),
        writeFileString: step("writeFileString", fs.writeFileString)
      }
    })
  ).pipe(Layer.provide(NodeFileSystem.layer))

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

/** In memory, where there is such a place: these tests write much. */
const parent = existsSync("/dev/shm") ? "/dev/shm" : tmpdir()

/** A state directory that is not there yet, in a directory that goes with the test. */
export const withDirectory = <A, E>(
  use: (directory: string) => Effect.Effect<A, E>,
  within = parent
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
