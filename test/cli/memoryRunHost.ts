/** A place for runs in memory: nothing is written down, and nothing of a host is had. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { RunHost } from "../../src/cli/RunHost.ts"
import * as Journal from "../../src/journal/Journal.ts"
import { MicroVmProvider } from "../../src/microvm/MicroVmProvider.ts"
import * as NodeProcessHost from "../../src/process/NodeProcessHost.ts"
import { ProcessHolder } from "../../src/process/ProcessHolder.ts"
import * as Supervisor from "../../src/supervisor/Supervisor.ts"

const holder = Layer.mock(ProcessHolder)({ destroy: () => Effect.succeed({ _tag: "Absent" }) })

export const layerWith = (
  given: Partial<RunHost["Service"]> = {},
  tidy: Effect.Effect<void> = Effect.void
): Layer.Layer<RunHost> =>
  Layer.succeed(RunHost, {
    recover: () => Effect.succeed([]),
    open: Effect.fnUntraced(function*() {
      const provider = yield* MicroVmProvider
      const services = yield* Layer.build(
        Supervisor.layerWith({}).pipe(
          Layer.provide(Journal.layerMemory()),
          Layer.provide([holder, NodeProcessHost.layer, NodeServices.layer]),
          Layer.provide(Layer.succeed(MicroVmProvider, provider)),
          Layer.fresh
        )
      )
      return {
        supervisor: Context.get(services, Supervisor.Supervisor),
        resources: [],
        conclude: () => Effect.void,
        tidy
      }
    }),
    ...given
  })

export const layer: Layer.Layer<RunHost> = layerWith()
