/**
 * The image store on this host.
 *
 * @since 0.1.0
 */
import type * as Config from "effect/Config"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import type * as Path from "effect/Path"
import * as NodeProcessHost from "../process/NodeProcessHost.ts"
import * as NodeSupervisorGuard from "../process/NodeSupervisorGuard.ts"
import * as ProcessSpawner from "../process/ProcessSpawner.ts"
import * as ImageStore from "./ImageStore.ts"
import * as NodeHasher from "./NodeHasher.ts"

/** A spawner of its own: layers are shared, and whoever asks for another host or guard is to have it. */
const host = ProcessSpawner.layerWith({}).pipe(
  Layer.provideMerge([NodeHasher.layer, NodeProcessHost.layer, NodeSupervisorGuard.layer])
)

/**
 * `ImageStore.layer` with Node's hashing, the real process table, and programs that die with us: images in `MICROVM_CACHE_DIR`, by default
 * `effect-microvm-runtime` in `XDG_CACHE_HOME` or in `~/.cache`.
 *
 * ```ts import.meta.vitest
 * import { ImageStore, NodeImageStore } from "effect-microvm-runtime/image"
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * const program = ImageStore.ImageStore.use((images) => images.list)
 * const layer = NodeImageStore.layerAt({ directory: "/nonexistent" }).pipe(Layer.provide(NodeServices.layer))
 * await Effect.runPromise(program.pipe(Effect.provide(layer))) // => []
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<
  ImageStore.ImageStore,
  Config.ConfigError,
  FileSystem.FileSystem | Path.Path
> = ImageStore.layer.pipe(Layer.provide(host))

/**
 * `ImageStore.layerAt`, likewise.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerAt = (
  options: ImageStore.StoreOptions
): Layer.Layer<ImageStore.ImageStore, never, FileSystem.FileSystem | Path.Path> =>
  ImageStore.layerAt(options).pipe(Layer.provide(host))
