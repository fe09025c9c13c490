import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import { MemoryDriver, MemoryProvider, SnapshotStore } from "effect-microvm-runtime/microvm"
import { NodeDiskSnapshotStore } from "effect-microvm-runtime/warm"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import { TestClock } from "effect/testing"
import { storePromises } from "./storePromises.ts"
import { reason } from "./support.ts"

const write = () => Effect.succeed({ form: "copy", platform: { backend: "memory" }, madeBy: "a test" })
const options = {
  kind: "saved",
  spec: { vcpus: 1, memoryMib: 96, kernel: "/boot/vmlinux", kernelArgs: [], channels: [] }
} as const

describe("the in-memory store", () => {
  storePromises({ layer: MemoryProvider.layer, write })

  it.effect("lists first what was used last", () =>
    Effect.gen(function*() {
      const store = yield* SnapshotStore.SnapshotStore
      for (const name of ["a", "b", "c"]) {
        yield* store.add({ ...options, name }, write)
        yield* TestClock.adjust("1 second")
      }
      yield* store.open("a")
      yield* TestClock.adjust("1 second")
      yield* store.verify("b")
      const all = yield* store.list
      expect(all.map(({ lastUsed, names }) => `${names.join()} ${lastUsed}`)).toEqual(["b 4000", "a 3000", "c 2000"])
    }).pipe(Effect.provide(MemoryProvider.layer)))

  it.effect("finds a snapshot unusable that was corrupted, with all that is wrong", () =>
    Effect.gen(function*() {
      const store = yield* SnapshotStore.SnapshotStore
      const driver = yield* MemoryDriver.MemoryDriver
      expect((yield* reason(driver.corrupt("s", "x")))?._tag).toBe("SnapshotNotFound")
      const { id } = yield* store.add({ ...options, name: "s" }, write)
      yield* driver.corrupt("s", "its memory was changed")
      yield* driver.corrupt(id, "a file is missing")
      for (const look of [store.open, store.verify]) {
        expect(yield* reason(look("s"))).toMatchObject({
          _tag: "SnapshotUnusable",
          snapshot: "s",
          why: ["its memory was changed", "a file is missing"]
        })
      }
      expect((yield* store.list).map(({ names }) => names)).toEqual([["s"]])
      expect(yield* store.remove("s")).toBe(true)
    }).pipe(Effect.provide(MemoryProvider.layer)))
})

describe("the store on the disk", () => {
  let written = 0
  const layer = Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    return NodeDiskSnapshotStore.layerAt({ directory: yield* fs.makeTempDirectoryScoped() })
  }).pipe(Layer.unwrap, Layer.provide(NodeServices.layer))

  storePromises({
    layer,
    write: (directory) =>
      FileSystem.FileSystem.use((fs) => fs.writeFileString(`${directory}/state`, `state ${++written}`)).pipe(
        Effect.andThen(write),
        Effect.orDie,
        Effect.provide(NodeServices.layer)
      )
  })
})
