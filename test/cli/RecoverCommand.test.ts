/** `microvm recover` over real directories of runs that others have left. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as TestConsole from "effect/testing/TestConsole"
import * as NodeFs from "node:fs"
import * as RunDirectory from "../../src/cli/RunDirectory.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import * as MicroVmError from "../../src/microvm/MicroVmError.ts"
import { MicroVmProvider } from "../../src/microvm/MicroVmProvider.ts"
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

  it.live("says of a run that another process has seen to meanwhile that nothing is left", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      const { journal } = yield* RunDirectory.begin(state, infoOf("dev"))
      yield* leaveRecord(state, "dev")
      yield* kill(state, "dev")
      const done = yield* microvm(["recover", "--kill"], {
        env: { MICROVM_STATE_DIR: state },
        runHost: {
          recover: () => Effect.as(Effect.sync(() => NodeFs.rmSync(journal, { recursive: true })), [])
        }
      })
      assert.deepStrictEqual([done.code, done.stdout], [0, "dev: kept, another process has seen to it\n"])
    }).pipe(live))

  it.live("needs no backend to remove what is left", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      yield* RunDirectory.begin(state, { ...infoOf("dev"), backend: "qemu" })
      yield* leaveRecord(state, "dev")
      yield* kill(state, "dev")
      const why = "qemu-system-x86_64 is not found in PATH"
      const done = yield* microvm(["recover", "--kill"], {
        env: { MICROVM_STATE_DIR: state },
        observed: MicroVmError.make(
          new MicroVmError.BackendUnavailable({ backend: "qemu", why, remedy: "install QEMU" })
        ),
        runHost: {
          // As a supervisor does.
          recover: (id) =>
            Effect.gen(function*() {
              const { attach } = yield* MicroVmProvider
              const spec = yield* Effect.orDie(MachineSpec.decode({ id, kernel: "/kernel" }))
              const told = yield* Effect.match(Effect.scoped(attach(spec, { directory: "/none" })), {
                onFailure: ({ message }) => message,
                onSuccess: () => "it was got hold of"
              })
              return [{ id, action: "Reclaimed" as const, why: told }]
            })
        }
      })
      assert.deepStrictEqual([done.code, done.stderr], [0, []])
      assert.include(
        done.stdout,
        `dev: reclaimed, Machine "dev" cannot be attached to: The qemu backend cannot be used, ${why}`
      )
    }).pipe(live))

  it.live("tells what the one in the background says of a machine that it could not go on with", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      yield* RunDirectory.begin(state, infoOf("dev"))
      yield* leaveRecord(state, "dev")
      yield* kill(state, "dev")
      const done = yield* microvm(["recover"], {
        env: { MICROVM_STATE_DIR: state },
        detach: {
          resume: (id) =>
            Effect.succeed({ _tag: "Failed", exitCode: 125, recovered: { id, action: "Left", why: "it says nothing" } })
        },
        runHost: { recover: () => Effect.die("it was seen to already") }
      })
      assert.deepStrictEqual([done.code, done.stdout], [1, "dev: left, it says nothing\n"])
    }).pipe(live))

  it.live("does not say that a machine is looked after when nobody does", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      yield* RunDirectory.begin(state, infoOf("dev"))
      yield* leaveRecord(state, "dev")
      yield* kill(state, "dev")
      const host = {
        env: { MICROVM_STATE_DIR: state },
        runHost: {
          recover: (id: string) => Effect.succeed([{ id, action: "Adopted" as const, why: "its machine answers" }])
        }
      }
      const done = yield* microvm(["recover"], host)
      const why = "its machine answers, but the process that was to go on with it has ended"
      assert.deepStrictEqual([done.code, done.stdout], [1, `dev: left, ${why}\n`])
      const dry = yield* microvm(["recover", "--dry-run"], host)
      assert.deepStrictEqual(
        [dry.code, dry.stdout.split("\n").at(-2)],
        [0, "dev: would be adopted, its machine answers, and would be left as it is if its guest did not"]
      )
    }).pipe(live))

  it.live("exits with 125 when the state directory cannot be used, and with 1 for a run that is not there", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      const env = { MICROVM_STATE_DIR: state }
      assert.strictEqual((yield* microvm(["recover", "nonesuch"], { env })).code, 1)
      NodeFs.writeFileSync(state, "")
      const done = yield* microvm(["recover"], { env })
      assert.strictEqual(done.code, 125)
      assert.include(done.stderr.join("\n"), "MICROVM_STATE_DIR")
    }).pipe(live))
})
