/** `microvm recover` over real directories of runs that others have left. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as TestConsole from "effect/testing/TestConsole"
import * as RunDirectory from "../../src/cli/RunDirectory.ts"
import * as NodeProcessHost from "../../src/process/NodeProcessHost.ts"
import type { RecoverOptions } from "../../src/supervisor/Supervisor.ts"
import { microvm } from "./commandLine.ts"
import { infoOf, kill, leaveRecord, makeState, reportOf } from "./runs.ts"

const live = Effect.provide(Layer.mergeAll(NodeServices.layer, NodeProcessHost.layer, TestConsole.layer))

describe("recover", () => {
  it.live("removes what is left of a run that has ended, and does not go on with it", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      yield* RunDirectory.begin(state, infoOf("dev"))
      yield* leaveRecord(state, "dev")
      yield* RunDirectory.conclude(state, reportOf("dev", 7))
      yield* kill(state, "dev")
      const seen: Array<readonly [id: string, options: RecoverOptions]> = []
      const done = yield* microvm(["recover"], {
        env: { MICROVM_STATE_DIR: state },
        runHost: {
          recover: (id, options) =>
            Effect.sync(() => {
              seen.push([id, options])
              return [{ id, action: "Reclaimed", why: "its machine has ended" }]
            })
        }
      })
      assert.deepStrictEqual(seen, [["dev", { dryRun: false, mode: "kill" }]])
      assert.deepStrictEqual([done.code, done.stdout], [0, "dev: reclaimed, its machine has ended\n"])
    }).pipe(live))
})
