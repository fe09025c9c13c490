/**
 * All that machines which start warm take of this host, but for a backend.
 *
 * @since 0.1.0
 */
import type * as Config from "effect/Config"
import * as SecureRandom from "effect/crypto/SecureRandom"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import type * as Path from "effect/Path"
import type { Hasher } from "../image/Hasher.ts"
import type { ImageStore } from "../image/ImageStore.ts"
import * as NodeHasher from "../image/NodeHasher.ts"
import * as NodeImageStore from "../image/NodeImageStore.ts"
import type { MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import type { SnapshotStore } from "../microvm/SnapshotStore.ts"
import * as NodeProcessHost from "../process/NodeProcessHost.ts"
import type { StoreOptions } from "./DiskSnapshotStore.ts"
import * as GoldenMachines from "./GoldenMachines.ts"
import * as NodeDiskSnapshotStore from "./NodeDiskSnapshotStore.ts"

/**
 * What `WarmMachine.launch` takes, and `WarmMachine.save`, besides the backend.
 *
 * @category models
 * @since 0.1.0
 */
export type Services = GoldenMachines.GoldenMachines | Hasher | ImageStore | SecureRandom.SecureRandom | SnapshotStore

/** What has to be there: a backend, and Node's services. */
type Needs = FileSystem.FileSystem | MicroVmProvider | Path.Path

const base = Layer.mergeAll(NodeImageStore.layer, NodeHasher.layer, SecureRandom.layerWebCrypto)

/**
 * Images, snapshots and golden machines in `MICROVM_CACHE_DIR`, by default `effect-microvm-runtime` in `XDG_CACHE_HOME` or in
 * `~/.cache`: what the command `microvm` uses, too.
 *
 * ```ts
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { NodeProcessSpawner } from "effect-microvm-runtime/process"
 * import { NodeQemuHost, QemuProvider } from "effect-microvm-runtime/qemu"
 * import { NodeWarmMachine } from "effect-microvm-runtime/warm"
 * import * as Layer from "effect/Layer"
 *
 * export const machines = NodeWarmMachine.layer.pipe(
 *   Layer.provideMerge(QemuProvider.layer.pipe(Layer.provide(NodeQemuHost.layer))),
 *   Layer.provideMerge(NodeProcessSpawner.layer),
 *   Layer.provideMerge(NodeServices.layer)
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Services, Config.ConfigError, Needs> = GoldenMachines.layer.pipe(
  Layer.provideMerge(Layer.merge(base, NodeDiskSnapshotStore.layer)),
  Layer.provide(NodeProcessHost.layer)
)

/**
 * The same with snapshots and golden machines in a directory of their own, which no other process makes golden machines in;
 * images stay where they are.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { MemoryProvider } from "effect-microvm-runtime/microvm"
 * import { NodeProcessSpawner } from "effect-microvm-runtime/process"
 * import { NodeWarmMachine, WarmMachine } from "effect-microvm-runtime/warm"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const program = WarmMachine.launch({ id: "web", start: { from: "saved" } }).pipe(
 *   Effect.scoped,
 *   Effect.catchReason("MicroVmError", "SnapshotNotFound", ({ snapshot }) => Effect.succeed(`no snapshot ${snapshot}`))
 * )
 * const layer = NodeWarmMachine.layerAt({ directory: "/nonexistent" }).pipe(
 *   Layer.provideMerge(MemoryProvider.layer),
 *   Layer.provide([NodeProcessSpawner.layer, NodeServices.layer])
 * )
 * await Effect.runPromise(Effect.provide(program, layer)) // => "no snapshot saved"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerAt = (options: StoreOptions): Layer.Layer<Services, Config.ConfigError, Needs> =>
  GoldenMachines.layerWith({}).pipe(Layer.provideMerge(Layer.merge(base, NodeDiskSnapshotStore.layerAt(options))))
