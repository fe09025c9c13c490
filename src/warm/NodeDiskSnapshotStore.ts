/**
 * The snapshots of this host.
 *
 * @since 0.1.0
 */
import type * as Config from "effect/Config"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import type * as Path from "effect/Path"
import * as NodeHasher from "../image/NodeHasher.ts"
import type { SnapshotStore } from "../microvm/SnapshotStore.ts"
import * as NodeProcessHost from "../process/NodeProcessHost.ts"
import * as DiskSnapshotStore from "./DiskSnapshotStore.ts"
import * as NodeFileSeals from "./NodeFileSeals.ts"

const host = Layer.mergeAll(NodeHasher.layer, NodeProcessHost.layer, NodeFileSeals.layer)

/**
 * `DiskSnapshotStore.layer` with Node's hashing and the real process table: snapshots in `MICROVM_CACHE_DIR`, by default
 * `effect-microvm-runtime` in `XDG_CACHE_HOME` or in `~/.cache`.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { SnapshotStore } from "effect-microvm-runtime/microvm"
 * import { NodeDiskSnapshotStore } from "effect-microvm-runtime/warm"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * const program = SnapshotStore.SnapshotStore.use((snapshots) => snapshots.list)
 * const layer = NodeDiskSnapshotStore.layerAt({ directory: "/nonexistent" }).pipe(Layer.provide(NodeServices.layer))
 * await Effect.runPromise(program.pipe(Effect.provide(layer))) // => []
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<SnapshotStore, Config.ConfigError, FileSystem.FileSystem | Path.Path> =
  DiskSnapshotStore.layer.pipe(Layer.provide(host))

/**
 * `DiskSnapshotStore.layerAt`, likewise.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerAt = (
  options: DiskSnapshotStore.StoreOptions
): Layer.Layer<SnapshotStore, never, FileSystem.FileSystem | Path.Path> =>
  DiskSnapshotStore.layerAt(options).pipe(Layer.provide(host))
