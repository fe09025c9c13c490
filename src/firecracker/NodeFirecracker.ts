/**
 * All that the backend needs of this host.
 *
 * @since 0.1.0
 */
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import type * as Path from "effect/Path"
import type { ProcessHost } from "../process/ProcessHost.ts"
import type { ProcessSpawner } from "../process/ProcessSpawner.ts"
import type { SupervisorGuard } from "../process/SupervisorGuard.ts"
import type { FirecrackerHost } from "./FirecrackerHost.ts"
import type { Jail } from "./Jail.ts"
import type { MetricsFiles } from "./MetricsCollector.ts"
import * as NodeFirecrackerHost from "./NodeFirecrackerHost.ts"
import * as NodeJail from "./NodeJail.ts"
import * as NodePageServer from "./NodePageServer.ts"
import * as NodeVmmMetrics from "./NodeVmmMetrics.ts"
import * as NodeVsock from "./NodeVsock.ts"
import type { PageServer } from "./PageServer.ts"
import type { Vsock } from "./Vsock.ts"

/**
 * What `FirecrackerProvider` asks for, beside the spawner.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { FirecrackerHost, NodeFirecracker } from "effect-microvm-runtime/firecracker"
 * import { NodeProcessSpawner } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const layer = NodeFirecracker.layer.pipe(Layer.provide([NodeProcessSpawner.layer, NodeServices.layer]))
 * const program = FirecrackerHost.FirecrackerHost.use((host) => host.inspect("/proc/version"))
 * await Effect.runPromise(Effect.provide(program, layer)) // => { path: "/proc/version" }
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<
  FirecrackerHost | Jail | MetricsFiles | PageServer | Vsock,
  never,
  ProcessSpawner | ProcessHost | SupervisorGuard | FileSystem.FileSystem | Path.Path
> = Layer.mergeAll(
  NodeFirecrackerHost.layer,
  NodeJail.layer,
  NodePageServer.layer,
  NodeVmmMetrics.layer,
  NodeVsock.layer
)
