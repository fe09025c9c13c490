/** Places of runs, in real directories. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as NodeFs from "node:fs"
import * as NodeRunHost from "../../src/cli/NodeRunHost.ts"
import * as RunDirectory from "../../src/cli/RunDirectory.ts"
import { RunHost } from "../../src/cli/RunHost.ts"
import * as NodeJournal from "../../src/journal/NodeJournal.ts"
import * as MemoryProvider from "../../src/microvm/MemoryProvider.ts"
import * as NodeProcessHost from "../../src/process/NodeProcessHost.ts"
import * as ProcessIdentity from "../../src/process/ProcessIdentity.ts"
import { infoOf, kill, leaveRecord, makeState } from "./runs.ts"
import { optionsOf } from "./world.ts"

const live = Effect.provide(
  Layer.merge(NodeRunHost.layer, MemoryProvider.layer).pipe(
    Layer.provideMerge(Layer.merge(NodeServices.layer, NodeProcessHost.layer))
  )
)

describe("a place that another process has left", () => {
  it.live("is one's who has its journal; others change nothing", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      const here = Effect.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env: { MICROVM_STATE_DIR: state } })))
      const { journal, options } = yield* RunDirectory.begin(state, infoOf("dev"))
      yield* leaveRecord(state, "dev")
      yield* kill(state, "dev")
      const before = NodeFs.readFileSync(options, "utf8")
      const open = Effect.scoped(
        RunHost.use((host) => host.open("dev", { ...optionsOf({ command: ["true"] }), resume: true }))
      ).pipe(here)
      const refused = yield* Effect.flip(Effect.scoped(Effect.andThen(
        Layer.build(NodeJournal.layer({ directory: journal })),
        open
      )))
      assert.strictEqual(refused._tag === "JournalError" && refused.reason._tag, "LeaseHeld")
      assert.strictEqual(NodeFs.readFileSync(options, "utf8"), before)
      yield* open
      assert.deepStrictEqual((yield* RunDirectory.find(state, "dev")).info.supervisor, yield* ProcessIdentity.self)
    }).pipe(Effect.scoped, live))
})
