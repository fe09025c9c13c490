import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as OwnedFiles from "../../src/process/OwnedFiles.ts"

describe("ensureDirectory", () => {
  it.effect("is not put off by whoever makes the one above at the same time", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const root = yield* fs.makeTempDirectoryScoped()
      const tried: Array<string> = []
      // Another process is quicker than our second look.
      const makeDirectory: FileSystem.FileSystem["makeDirectory"] = (path, options) =>
        Effect.suspend(() => {
          tried.push(path.slice(root.length))
          return Effect.tapError(
            fs.makeDirectory(path, options),
            () => Effect.ignore(fs.makeDirectory(`${root}/a`))
          )
        })
      yield* Effect.provideService(
        OwnedFiles.ensureDirectory(`${root}/a/b`),
        FileSystem.FileSystem,
        { ...fs, makeDirectory }
      )
      assert.isTrue(yield* fs.exists(`${root}/a/b`))
      assert.deepStrictEqual(tried, ["/a/b", "/a/b"])
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)))

  it.effect("says so where nothing can be made, and comes to an end", () =>
    Effect.gen(function*() {
      const { reason } = yield* Effect.flip(OwnedFiles.ensureDirectory("/proc/none/of/this"))
      assert.strictEqual(reason._tag, "NotFound")
      yield* OwnedFiles.ensureDirectory("/")
    }).pipe(Effect.provide(NodeServices.layer)))
})
