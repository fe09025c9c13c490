import * as NodePath from "@effect/platform-node/NodePath"
import { expect, it } from "@effect/vitest"
import { ImageError, ImageStore, NodeHasher } from "effect-microvm-runtime/image"
import { MemoryProvider } from "effect-microvm-runtime/microvm"
import { NodeProcessHost } from "effect-microvm-runtime/process"
import { GoldenMachines, type WarmProgress } from "effect-microvm-runtime/warm"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import { existsSync, mkdirSync } from "node:fs"
import { join } from "node:path"
import { image } from "../cli/world.ts"
import { stepping, systemError } from "../files.ts"
import { leftovers, withCache } from "./diskSupport.ts"

/** Whoever is told this had its turn. */
const wanting = ImageError.fromReason(ImageError.ImageErrorReason.NoSpace({ path: "/as/the/test/wants/it" }))

/** Wants a golden machine of that cache: why there is none. */
const want = (
  cache: string,
  world: {
    readonly files: Layer.Layer<FileSystem.FileSystem>
    readonly onProgress?: GoldenMachines.EnsureOptions["onProgress"]
  }
) => {
  const images = Layer.mock(ImageStore.ImageStore, {
    known: () => Effect.succeedSome(image),
    ensure: () => Effect.fail(wanting)
  })
  const { layer: hasher } = NodeHasher
  const golden = GoldenMachines.layer.pipe(
    Layer.provide([MemoryProvider.layer, hasher, NodePath.layer, NodeProcessHost.layer, world.files, images]),
    Layer.provide(ConfigProvider.layer(ConfigProvider.fromUnknown({ MICROVM_CACHE_DIR: cache })))
  )
  return GoldenMachines.GoldenMachines.use(({ ensure }) =>
    Effect.flip(ensure({ image: "default", vcpus: 1, memoryMib: 128, channels: [] }, { onProgress: world.onProgress }))
  ).pipe(Effect.provide(golden))
}

it.live.each(["tmp", "snapshots/tmp"])(
  "room is made on a disk that is full of what a dead maker left in %s",
  (where) =>
    withCache(Effect.fnUntraced(function*(cache) {
      const dead = join(cache, where, "another-boot.99.1.abc")
      mkdirSync(dead, { recursive: true })
      const files = stepping((step) =>
        /^(makeTemp|write)/.test(step) && existsSync(dead) ? Effect.fail(systemError("ENOSPC")) : Effect.void
      )
      const steps: Array<WarmProgress.Progress> = []
      const onProgress = (step: WarmProgress.Progress) => Effect.sync(() => void steps.push(step))
      expect(yield* want(cache, { files, onProgress })).toBe(wanting)
      expect(steps).toEqual([{ _tag: "Making" }])
      expect(leftovers(cache)).toEqual([])
    }))
)

it.live("a turn that cannot be had on a full disk is told with the remedy", () =>
  withCache(Effect.fnUntraced(function*(cache) {
    const files = stepping((step) => step.startsWith("makeTemp") ? Effect.fail(systemError("ENOSPC")) : Effect.void)
    const { message } = yield* want(cache, { files })
    expect(message).toMatch(/no space is left.*MICROVM_CACHE_DIR/)
  })))
