/** Files of tests: where writing them is cheap, and with each step to be watched, to fail, or to be the last. */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as PlatformError from "effect/PlatformError"
import { existsSync } from "node:fs"
import { tmpdir } from "node:os"

/** Where directories of tests go that write, and sync, much: in memory, where there is such a place. */
export const scratch = existsSync("/dev/shm") ? "/dev/shm" : tmpdir()

export const systemError = (code: string) =>
  PlatformError.systemError({
    _tag: "Unknown",
    module: "FileSystem",
    method: "test",
    cause: Object.assign(new Error(`${code}: as the test wants it`), { code })
  })

export type Hook = (step: string) => Effect.Effect<void, PlatformError.PlatformError>

/** Each thing that is done to the file system comes through the hook first; a file is written in two halves. */
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
        copyFile: step("copyFile", fs.copyFile),
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
            sync: Effect.andThen(hook(`sync ${path}`), file.sync),
            writeAll: (buffer: Uint8Array) =>
              hook(`write ${path}`).pipe(
                Effect.andThen(file.writeAll(buffer.subarray(0, buffer.length >> 1))),
                Effect.andThen(hook(`write on ${path}`)),
                Effect.andThen(file.writeAll(buffer.subarray(buffer.length >> 1)))
              )
          }))),
        readDirectory: step("readDirectory", fs.readDirectory),
        readDirectoryEntries: step("readDirectoryEntries", fs.readDirectoryEntries),
        readFile: step("readFile", fs.readFile),
        readFileString: step("readFileString", fs.readFileString),
        remove: step("remove", fs.remove),
        rename: step("rename", fs.rename),
        stat: step("stat", fs.stat),
        truncate: step("truncate", fs.truncate),
        utimes: step("utimes", fs.utimes),
        writeFileString: step("writeFileString", fs.writeFileString)
      }
    })
  ).pipe(Layer.provide(NodeFileSystem.layer))
