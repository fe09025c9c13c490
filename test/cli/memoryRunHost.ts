/** A place for runs in memory: nothing is written down, and nothing of a host is had. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import type * as Scope from "effect/Scope"
import { RunHost } from "../../src/cli/RunHost.ts"
import * as Journal from "../../src/journal/Journal.ts"
import type { JournalError } from "../../src/journal/JournalError.ts"
import type { RunReport } from "../../src/lifecycle/RunReport.ts"
import { MicroVmProvider } from "../../src/microvm/MicroVmProvider.ts"
import * as NodeProcessHost from "../../src/process/NodeProcessHost.ts"
import { ProcessHolder } from "../../src/process/ProcessHolder.ts"
import * as Supervisor from "../../src/supervisor/Supervisor.ts"

const holder = Layer.mock(ProcessHolder)({ destroy: () => Effect.succeed({ _tag: "Absent" }) })

/** Any directory can be made, and nothing is in it: a real one would be waited for by the clock on the wall. */
const noFiles = Layer.merge(
  Path.layer,
  FileSystem.layerNoop({ exists: () => Effect.succeed(true), makeDirectory: () => Effect.void })
)

/** What outlives runs: the journal of their machines, and their reports. */
export interface Kept {
  readonly journal: Layer.Layer<Journal.Journal>
  readonly reports: Array<RunReport>
  /** Those of runs whose machine still stopped. */
  readonly early: Array<RunReport>
}

export const makeKept: Effect.Effect<Kept, JournalError, Scope.Scope> = Effect.map(
  Layer.build(Layer.provide(Journal.layerMemory(), NodeProcessHost.layer)),
  (context) => ({ journal: Layer.succeedContext(context), reports: [], early: [] })
)

export const layerWith = (
  given: Partial<RunHost["Service"]> = {},
  tidy: Effect.Effect<void> = Effect.void,
  kept?: Kept
): Layer.Layer<RunHost> =>
  Layer.succeed(RunHost, {
    recover: () => Effect.succeed([]),
    open: Effect.fnUntraced(function*() {
      const provider = yield* MicroVmProvider
      const services = yield* Layer.build(
        Supervisor.layerWith({}).pipe(
          Layer.provide(kept?.journal ?? Journal.layerMemory()),
          Layer.provide([holder, NodeProcessHost.layer, kept === undefined ? NodeServices.layer : noFiles]),
          Layer.provide(Layer.succeed(MicroVmProvider, provider)),
          Layer.fresh
        )
      )
      return {
        supervisor: Context.get(services, Supervisor.Supervisor),
        resources: [],
        conclude: (report: RunReport, { stops = false } = {}) =>
          Effect.sync(() => void (stops ? kept?.early : kept?.reports)?.push(report)),
        tidy: yield* Effect.cached(tidy)
      }
    }),
    ...given
  })

export const layer: Layer.Layer<RunHost> = layerWith()
