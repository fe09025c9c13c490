/** Places of runs, in real directories. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
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

describe("a record that cannot be read", () => {
  const walk = (directory: string) => NodeFs.readdirSync(directory, { recursive: true, encoding: "utf8" }).toSorted()

  /** Of another version, which may have made more than we know of; or torn. */
  const spoil = Effect.fnUntraced(function*(state: string, id: string, change: (text: string) => string) {
    yield* leaveRecord(state, id)
    const { journal } = yield* RunDirectory.pathsOf(state, id)
    const file = NodePath.join(journal, "machines", `${id}.json`)
    const text = NodeFs.readFileSync(file, "utf8").replace(`"keep":true`, `"keep":false`)
    NodeFs.writeFileSync(file, change(text))
    NodeFs.chmodSync(journal, 0o700)
    return journal
  })
  const changes = [
    ["newer", (text: string) => text.replace("{", `{"later":1,`)],
    ["torn", (text: string) => text.slice(0, 50)]
  ] as const

  it.live("is left where it is by a dry run and by another run; the next recover tells it, and each one after that", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      const here = Effect.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env: { MICROVM_STATE_DIR: state } })))
      const host = yield* RunHost
      for (const [id, change] of changes) {
        const journal = yield* spoil(state, id, change)
        const before = walk(journal)
        const [dry, ...others] = yield* host.recover(id, { dryRun: true }).pipe(here)
        assert.deepStrictEqual([dry?.action, dry?.id, others], ["Left", id, []])
        yield* Effect.scoped(
          Effect.flatMap(host.open(`other-${id}`, optionsOf({ command: ["true"] })), ({ tidy }) => tidy)
        ).pipe(here)
        assert.deepStrictEqual(walk(journal), before)
        assert.deepInclude(yield* RunDirectory.find(state, id), { id, state: "left behind" })
        for (const mode of ["adopt", "kill", "kill"] as const) {
          const [left, ...more] = yield* host.recover(id, { mode }).pipe(here)
          assert.deepStrictEqual([left?.action, left?.id, more], ["Left", id, []])
        }
        assert.deepInclude(yield* RunDirectory.find(state, id), { id, state: "left behind" })
      }
    }).pipe(Effect.scoped, live))
})

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

describe("runs that are seen to at the same time", () => {
  /** Says of the programs of the host how often they were started. */
  const countStarts = (directory: string, program: string) => {
    const log = NodePath.join(directory, `${program}.log`)
    NodeFs.writeFileSync(NodePath.join(directory, program), `#!/bin/sh\necho "$*" >> ${log}\necho "[]"\n`, {
      mode: 0o755
    })
    return Effect.sync(() => NodeFs.readFileSync(log, "utf8").split("\n").length - 1)
  }

  it.live("share the commands by which what is left is looked for", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      const here = Effect.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env: { MICROVM_STATE_DIR: state } })))
      const ids = Array.from({ length: 12 }, (_, index) => `run-${index}`)
      for (const id of ids) {
        yield* leaveRecord(state, id)
        const { journal } = yield* RunDirectory.pathsOf(state, id)
        const file = NodePath.join(journal, "machines", `${id}.json`)
        const claims = `"claims":[{"kind":"link","data":{"name":"mv-${id}","netns":false}}]`
        NodeFs.writeFileSync(file, NodeFs.readFileSync(file, "utf8").replace(`"claims":[]`, claims))
        NodeFs.chmodSync(journal, 0o700)
      }
      const programs = NodePath.join(state, "bin")
      NodeFs.mkdirSync(programs)
      const starts = countStarts(programs, "ip")
      const before = process.env["PATH"]
      yield* Effect.acquireRelease(
        Effect.sync(() => void (process.env["PATH"] = `${programs}:${before}`)),
        () => Effect.sync(() => void (process.env["PATH"] = before))
      )
      const host = yield* RunHost
      const all = yield* Effect.forEach(ids, (id) => host.recover(id, { mode: "kill" }), { concurrency: "unbounded" })
        .pipe(here)
      assert.deepStrictEqual(all.flat().map(({ action, id }) => `${id} ${action}`), ids.map((id) => `${id} Reclaimed`))
      // One is tried to be kept open, which this one cannot be.
      assert.isAtMost(yield* starts, 1 + ids.length / 3)
    }).pipe(Effect.scoped, live))
})
