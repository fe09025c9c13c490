import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as ChildProcess from "effect/process/ChildProcess"
import { ProcessHost } from "../../src/process/ProcessHost.ts"
import { ProcessSpawner } from "../../src/process/ProcessSpawner.ts"
import * as ScriptedProcess from "../../src/testing/ScriptedProcess.ts"

const scripted = ScriptedProcess.layer({ script: () => ({}), cgroups: true })

it.effect("a cgroup of the caller's is the kill scope, and stays when the process is gone", () =>
  Effect.gen(function*() {
    const { spawn } = yield* ProcessSpawner
    const host = yield* ProcessHost
    yield* host.makeCGroup("/machines/web-1")
    const killScope = yield* Effect.scoped(
      Effect.map(
        spawn(ChildProcess.make("sleep"), {
          cgroup: { path: "/machines/web-1", v1: ["/v1/web-1"] },
          killScope: "group"
        }),
        (process) => process.killScope
      )
    )
    assert.deepStrictEqual(killScope, { _tag: "CGroup", path: "/machines/web-1", reason: "asked for" })
    assert.deepStrictEqual(yield* ScriptedProcess.Driver.use((driver) => driver.cgroups), ["/machines/web-1"])
    assert.deepStrictEqual(yield* ScriptedProcess.Driver.use((driver) => driver.table), [])
    const refused = yield* Effect.flip(
      spawn(ChildProcess.make("sleep"), { cgroup: { path: "machines/web-1", v1: ["memory"] } })
    )
    assert.strictEqual(refused.message, `cgroup: is "machines/web-1", "memory": give its path in the file system`)
  }).pipe(Effect.scoped, Effect.provide(scripted)))
