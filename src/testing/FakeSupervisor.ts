/**
 * A supervisor whose journal is in memory, and whose host has nothing: for tests of programs that launch machines by one.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import * as Limits from "../host/Limits.ts"
import * as Journal from "../journal/Journal.ts"
import * as Reclaimer from "../journal/Reclaimer.ts"
import type { MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import * as NodeProcessHost from "../process/NodeProcessHost.ts"
import * as ProcessHolder from "../process/ProcessHolder.ts"
import type { ProcessHost } from "../process/ProcessHost.ts"
import * as Supervisor from "../supervisor/Supervisor.ts"

/**
 * In place of `NodeSupervisor.layer` and Node's services. `Resources.limits` finds no control groups, so nothing is limited and
 * nothing is made; nothing is there to `recover`, and no machine outlives the test.
 *
 * ```ts import.meta.vitest
 * import { Limits } from "effect-microvm-runtime/host"
 * import { Resources, Supervisor } from "effect-microvm-runtime/supervisor"
 * import { FakeSupervisor, FakeWarmMachine } from "effect-microvm-runtime/testing"
 * import { WarmMachine } from "effect-microvm-runtime/warm"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const program = Effect.gen(function*() {
 *   const supervisor = yield* Supervisor.Supervisor
 *   const { machine } = yield* supervisor.launch({
 *     id: "web-1",
 *     resources: [Resources.limits(Limits.forGuest({ memoryMib: 256, vcpus: 1 }))],
 *     bring: ({ before, id }) => WarmMachine.launch({ id, before })
 *   })
 *   return yield* machine.state
 * }).pipe(Effect.scoped)
 * const layer = Layer.provideMerge(FakeSupervisor.layer, FakeWarmMachine.layer)
 * await Effect.runPromise(Effect.provide(program, layer)) // => "running"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<
  Supervisor.Supervisor | FileSystem.FileSystem | Path.Path | ProcessHost,
  never,
  MicroVmProvider
> = Layer.unwrap(
  Effect.map(
    Effect.context<FileSystem.FileSystem | ProcessHost>(),
    (context) => Supervisor.layerWith({ kinds: [Supervisor.provided(Reclaimer.make(Limits.kind), context)] })
  )
).pipe(
  Layer.provide([Layer.orDie(Journal.layerMemory()), Layer.mock(ProcessHolder.ProcessHolder)({})]),
  Layer.provideMerge(Layer.mergeAll(FileSystem.layerNoop({}), Path.layer, NodeProcessHost.layer))
)
