/**
 * The spawner on this host.
 *
 * @since 0.1.0
 */
import * as Layer from "effect/Layer"
import * as NodeProcessHolder from "./NodeProcessHolder.ts"
import * as NodeProcessHost from "./NodeProcessHost.ts"
import * as NodeSupervisorGuard from "./NodeSupervisorGuard.ts"
import type { ProcessHolder } from "./ProcessHolder.ts"
import type { ProcessHost } from "./ProcessHost.ts"
import * as ProcessSpawner from "./ProcessSpawner.ts"
import type { SpawnOptions } from "./SpawnOptions.ts"
import type { SupervisorGuard } from "./SupervisorGuard.ts"

const services = Layer.merge(
  Layer.provideMerge(NodeProcessHolder.layer, NodeProcessHost.layer),
  NodeSupervisorGuard.layer
)

/**
 * What the layers of this module give.
 *
 * @category models
 * @since 0.1.0
 */
export type Services = ProcessSpawner.ProcessSpawner | ProcessHolder | ProcessHost | SupervisorGuard

/**
 * The spawner with the real host and a guard. The host and the guard come with it, for those that watch files of their own
 * or adopt processes, and holders, for processes that are to outlive us.
 *
 * ```ts import.meta.vitest
 * import { NodeProcessSpawner, ProcessSpawner } from "effect-microvm-runtime/process"
 * import { ExitStatus } from "effect-microvm-runtime/lifecycle"
 * import * as Effect from "effect/Effect"
 * import * as ChildProcess from "effect/process/ChildProcess"
 *
 * const program = Effect.gen(function*() {
 *   const spawner = yield* ProcessSpawner.ProcessSpawner
 *   const process = yield* spawner.spawn(ChildProcess.make("sh", ["-c", "exit 7"]))
 *   return ExitStatus.format(yield* process.exit)
 * })
 * await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(NodeProcessSpawner.layer))) // => "exited with code 7"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Services> = ProcessSpawner.layer.pipe(Layer.provideMerge(services))

/**
 * Like `layer`, with other defaults for `SpawnOptions`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (
  defaults: SpawnOptions
): Layer.Layer<Services> => ProcessSpawner.layerWith(defaults).pipe(Layer.provideMerge(services))
