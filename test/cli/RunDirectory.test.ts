/** Directories of runs on a real file system. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import type * as PlatformError from "effect/PlatformError"
import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
import * as RunDirectory from "../../src/cli/RunDirectory.ts"
import * as NodeProcessHost from "../../src/process/NodeProcessHost.ts"
import * as ProcessIdentity from "../../src/process/ProcessIdentity.ts"
import { age, infoOf, kill, leaveRecord, makeState, reportOf } from "./runs.ts"

const layer = Layer.merge(NodeServices.layer, NodeProcessHost.layer)
const mode = (path: string) => NodeFs.statSync(path).mode & 0o777
const refusal = <A, R>(effect: Effect.Effect<A, RunDirectory.RunDirectoryError, R>) =>
  Effect.map(Effect.flip(effect), ({ message, reason }): ReadonlyArray<string> => [reason._tag, message])

describe("a run", () => {
  it.live("is up, and then over with its report; nobody else may look", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      const paths = yield* RunDirectory.begin(state, infoOf("dev"))
      const run = yield* RunDirectory.find(state, "dev")
      assert.deepStrictEqual([run.state, run.report, RunDirectory.exitCodeOf(run)], ["up", undefined, undefined])
      assert.deepStrictEqual(run.info.supervisor, yield* ProcessIdentity.self)
      for (const path of [state, NodePath.join(state, "runs"), paths.directory]) assert.strictEqual(mode(path), 0o700)
      yield* RunDirectory.conclude(state, reportOf("dev", 7))
      const over = yield* RunDirectory.find(state, "dev")
      assert.deepStrictEqual([over.state, RunDirectory.exitCodeOf(over), over.report], ["over", 7, reportOf("dev", 7)])
      // One that is over makes room for the next.
      yield* RunDirectory.begin(state, infoOf("dev"))
      assert.strictEqual((yield* RunDirectory.find(state, "dev")).state, "up")
    }).pipe(Effect.provide(layer)))

  it.live("whose supervisor has died is left behind as long as there is a record, and adopted by whoever goes on", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      yield* RunDirectory.begin(state, infoOf("dev"))
      yield* leaveRecord(state, "dev")
      yield* kill(state, "dev")
      assert.strictEqual((yield* RunDirectory.find(state, "dev")).state, "left behind")
      assert.deepStrictEqual((yield* RunDirectory.leftBehind(state)).map(({ id }) => id), ["dev"])
      assert.deepStrictEqual(yield* RunDirectory.leftBehind(state, "dev"), [])
      assert.deepStrictEqual(
        yield* refusal(RunDirectory.begin(state, infoOf("dev"))),
        ["LeftBehind", "machine dev was left behind by its supervisor: go on with it, or clean up, by microvm recover"]
      )
      assert.strictEqual((yield* refusal(RunDirectory.remove(state, "dev")))[0], "LeftBehind")
      assert.deepStrictEqual(yield* RunDirectory.prune(state, { keep: 0, within: 0 }), [])
      yield* RunDirectory.adopt(state, "dev")
      assert.strictEqual((yield* RunDirectory.find(state, "dev")).state, "up")
      assert.deepStrictEqual(yield* RunDirectory.leftBehind(state), [])
    }).pipe(Effect.provide(layer)))

  it.live("whose supervisor has died before it had anything is over, and nobody knows how", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      yield* RunDirectory.begin(state, infoOf("dev"))
      yield* kill(state, "dev")
      const run = yield* RunDirectory.find(state, "dev")
      assert.deepStrictEqual([run.state, RunDirectory.exitCodeOf(run)], ["over", 125])
      yield* RunDirectory.remove(state, "dev")
      assert.deepStrictEqual(yield* RunDirectory.all(state), [])
    }).pipe(Effect.provide(layer)))

  it.live("that has ended, and could not be removed whole, is left behind with its exit code", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      yield* RunDirectory.begin(state, infoOf("dev"))
      yield* leaveRecord(state, "dev")
      yield* RunDirectory.conclude(state, reportOf("dev", 7))
      const ending = yield* RunDirectory.find(state, "dev")
      assert.deepStrictEqual([ending.state, RunDirectory.exitCodeOf(ending)], ["over", 7])
      yield* kill(state, "dev")
      const left = yield* RunDirectory.find(state, "dev")
      assert.deepStrictEqual([left.state, RunDirectory.exitCodeOf(left)], ["left behind", 7])
      assert.isDefined(left.endedAt)
    }).pipe(Effect.provide(layer)))

  it.live("whose supervisor has died while its machine stopped has ended as its command has", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      yield* RunDirectory.begin(state, infoOf("dev"))
      yield* leaveRecord(state, "dev")
      yield* RunDirectory.conclude(state, reportOf("dev", 7), { stops: true })
      const stopping = yield* RunDirectory.find(state, "dev")
      assert.deepStrictEqual([stopping.state, RunDirectory.exitCodeOf(stopping)], ["up", undefined])
      yield* kill(state, "dev")
      const left = yield* RunDirectory.find(state, "dev")
      assert.deepStrictEqual([left.state, RunDirectory.exitCodeOf(left)], ["left behind", 7])
      NodeFs.rmSync(left.paths.journal, { recursive: true })
      const over = yield* RunDirectory.find(state, "dev")
      assert.deepStrictEqual([over.state, RunDirectory.exitCodeOf(over)], ["over", 7])
      assert.deepStrictEqual(yield* RunDirectory.prune(state), [])
      yield* RunDirectory.conclude(state, reportOf("dev", 137))
      assert.strictEqual(RunDirectory.exitCodeOf(yield* RunDirectory.find(state, "dev")), 137)
    }).pipe(Effect.provide(layer)))

  it.live("that was adopted by way of its record is up, too", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      yield* RunDirectory.begin(state, infoOf("dev"))
      yield* kill(state, "dev")
      yield* leaveRecord(state, "dev", yield* ProcessIdentity.self)
      assert.strictEqual((yield* RunDirectory.find(state, "dev")).state, "up")
    }).pipe(Effect.provide(layer)))

  it.live("that is up is neither made again nor removed", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      yield* RunDirectory.begin(state, infoOf("dev"))
      const told = ["StillUp", "machine dev is up: end it first, with microvm stop dev, or name another"]
      assert.deepStrictEqual(yield* refusal(RunDirectory.begin(state, infoOf("dev"))), told)
      assert.deepStrictEqual(yield* refusal(RunDirectory.remove(state, "dev")), told)
    }).pipe(Effect.provide(layer)))

  it.live("of several that want the same id is one's only", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      for (const before of ["none", "over"]) {
        const all = yield* Effect.forEach(
          Array.from({ length: 12 }),
          () => Effect.exit(RunDirectory.begin(state, infoOf("dev"))),
          { concurrency: "unbounded" }
        )
        assert.strictEqual(all.filter(({ _tag }) => _tag === "Success").length, 1, before)
        yield* RunDirectory.conclude(state, reportOf("dev", 0))
      }
    }).pipe(Effect.provide(layer)), 30_000)

  it.live("is found by the first letters of its id, if no other begins so", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      assert.deepStrictEqual(yield* refusal(RunDirectory.find(state, "dev")), [
        "NoSuchRun",
        "there is no machine \"dev\": there is none"
      ])
      for (const id of ["dev", "dev-1", "dev-2", "web"]) yield* RunDirectory.begin(state, infoOf(id))
      assert.strictEqual((yield* RunDirectory.find(state, "w")).id, "web")
      assert.strictEqual((yield* RunDirectory.find(state, "dev")).id, "dev")
      assert.deepStrictEqual(yield* refusal(RunDirectory.find(state, "dev-")), [
        "AmbiguousId",
        "more than one id begins with \"dev-\": there are dev-1, dev-2; give more of it"
      ])
      // The whole id is no beginning of another.
      assert.strictEqual((yield* RunDirectory.find(state, "dev", { whole: true })).id, "dev")
      for (const id of ["", "w", "dev-"]) {
        assert.deepStrictEqual((yield* refusal(RunDirectory.find(state, id, { whole: true })))[0], "NoSuchRun")
      }
      for (const id of ["", "x", "../dev", "webs"]) {
        assert.deepStrictEqual((yield* refusal(RunDirectory.find(state, id)))[0], "NoSuchRun")
      }
    }).pipe(Effect.provide(layer)))

  it.live("of which only the record of its machine is left can be seen to", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      const { options } = yield* RunDirectory.begin(state, infoOf("dev"))
      yield* leaveRecord(state, "dev")
      // A file that was not on the disk yet when the power failed.
      NodeFs.writeFileSync(options, "")
      const [run] = yield* RunDirectory.all(state)
      assert.deepInclude(run, { id: "dev", state: "left behind" })
      assert.deepInclude(run?.info, { detached: true, backend: "memory", startedAt: "2026-01-01T00:00:00.000Z" })
      yield* RunDirectory.adopt(state, "dev")
      assert.strictEqual((yield* RunDirectory.find(state, "dev")).state, "up")
    }).pipe(Effect.provide(layer)))

  it.live("of whose machine a record was moved aside is left behind, and is neither removed nor made again", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      for (const lost of [false, true]) {
        const { journal, options, report } = yield* RunDirectory.begin(state, infoOf(`dev-${lost}`))
        const quarantine = NodePath.join(journal, "quarantine")
        NodeFs.mkdirSync(quarantine, { recursive: true })
        NodeFs.writeFileSync(NodePath.join(quarantine, "dev.json.01234567"), "{")
        if (lost) NodeFs.rmSync(options)
        else yield* Effect.andThen(RunDirectory.conclude(state, reportOf("dev-false", 7)), kill(state, "dev-false"))
        if (!lost) age(report, 25 * 3600)
      }
      const all = yield* RunDirectory.all(state)
      assert.deepStrictEqual(
        all.map((run) => [run.id, run.state]).toSorted(([a = ""], [b = ""]) => a < b ? -1 : 1),
        [["dev-false", "left behind"], ["dev-true", "left behind"]]
      )
      assert.deepStrictEqual(yield* RunDirectory.prune(state, { keep: 0, within: 0 }), [])
      for (const { id } of all) {
        assert.strictEqual((yield* refusal(RunDirectory.remove(state, id)))[0], "LeftBehind")
        assert.strictEqual((yield* refusal(RunDirectory.begin(state, infoOf(id))))[0], "LeftBehind")
      }
    }).pipe(Effect.provide(layer)))

  it.live("whose files are not to be read is passed over, and makes room", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      const { options } = yield* RunDirectory.begin(state, infoOf("dev"))
      NodeFs.writeFileSync(options, "{")
      assert.deepStrictEqual(yield* RunDirectory.all(state), [])
      yield* RunDirectory.begin(state, infoOf("dev"))
      assert.strictEqual((yield* RunDirectory.find(state, "dev")).state, "up")
    }).pipe(Effect.provide(layer)))

  it.live("is there whole or not at all, whenever the one that makes it is killed, and the next one cleans up", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      const runs = NodePath.join(state, "runs")
      const tmp = NodePath.join(state, "tmp")
      // What has been seen of the run, before each step of the one that makes it.
      const seen: Array<ReadonlyArray<string>> = []
      const watched = Layer.effect(
        FileSystem.FileSystem,
        Effect.map(FileSystem.FileSystem, (fs) => {
          const before = <A>(effect: Effect.Effect<A, PlatformError.PlatformError>) =>
            Effect.andThen(
              Effect.sync(() => {
                const there = NodeFs.existsSync(runs) ? NodeFs.readdirSync(runs, { recursive: true }) : []
                seen.push(there.map(String).toSorted())
              }),
              effect
            )
          return FileSystem.FileSystem.of({
            ...fs,
            makeDirectory: (...args) => before(fs.makeDirectory(...args)),
            writeFileString: (...args) => before(fs.writeFileString(...args)),
            rename: (...args) => before(fs.rename(...args)),
            remove: (...args) => before(fs.remove(...args))
          })
        })
      )
      const begin = RunDirectory.begin(state, infoOf("dev")).pipe(Effect.provide(watched))
      yield* begin
      yield* kill(state, "dev")
      yield* begin
      const whole = ["dev", "dev/options.json"]
      for (const there of seen) assert.include([[], whole].map(String), String(there))
      assert.isAbove(seen.length, 8)
      // One who was killed meanwhile: no process of this boot has begun at its very start.
      const { bootId } = yield* ProcessIdentity.self
      const dead = NodePath.join(tmp, `${bootId}.${process.pid}.1.abcdef`)
      NodeFs.mkdirSync(NodePath.join(dead, "run"), { recursive: true })
      NodeFs.writeFileSync(NodePath.join(dead, "run", "options.json"), "{")
      yield* RunDirectory.begin(state, infoOf("web"))
      assert.deepStrictEqual(NodeFs.readdirSync(tmp), [])
    }).pipe(Effect.provide(layer)))
})

describe("runs that are over", () => {
  it.live("are kept, the newest ones and those of a day, and no others", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      const hour = 3600
      for (const [id, seconds] of [["a", 0], ["b", hour], ["c", 2 * hour], ["old", 25 * hour]] as const) {
        const { report } = yield* RunDirectory.begin(state, infoOf(id))
        yield* RunDirectory.conclude(state, reportOf(id, 0))
        age(report, seconds)
      }
      yield* RunDirectory.begin(state, infoOf("up"))
      assert.deepStrictEqual(yield* RunDirectory.prune(state, { except: "old" }), [])
      assert.deepStrictEqual(yield* RunDirectory.prune(state), ["old"])
      assert.deepStrictEqual(yield* RunDirectory.prune(state, { keep: 1 }), ["b", "c"])
      assert.deepStrictEqual((yield* RunDirectory.all(state)).map(({ id }) => id), ["a", "up"])
      assert.deepStrictEqual(yield* RunDirectory.prune(state), [])
      assert.deepStrictEqual(NodeFs.readdirSync(NodePath.join(state, "tmp")), [])
      assert.isFalse(NodeFs.existsSync(NodePath.join(state, "runs.lock")))
    }).pipe(Effect.provide(layer)), 30_000)
})

describe("the state directory", () => {
  const at = (env: Record<string, string>) =>
    RunDirectory.stateDirectory.pipe(
      Effect.provide([ConfigProvider.layer(ConfigProvider.fromEnv({ env })), layer])
    )
  it.effect("is the one that was named, or the user's", () =>
    Effect.gen(function*() {
      const isRoot = process.geteuid?.() === 0
      assert.strictEqual(yield* at({ MICROVM_STATE_DIR: "/x/y", HOME: "/home/me" }), "/x/y")
      const own = "/var/lib/effect-microvm"
      assert.strictEqual(yield* at({ HOME: "/home/me" }), isRoot ? own : "/home/me/.local/state/effect-microvm")
      assert.strictEqual(yield* at({ HOME: "/home/me", XDG_STATE_HOME: "/s" }), isRoot ? own : "/s/effect-microvm")
    }))

  it.live("that cannot be one says so, with what to do", () =>
    Effect.gen(function*() {
      const state = yield* makeState
      const file = NodePath.join(state, "file")
      NodeFs.mkdirSync(state, { recursive: true })
      NodeFs.writeFileSync(file, "")
      const [tag, message = ""] = yield* refusal(RunDirectory.begin(file, infoOf("dev")))
      assert.strictEqual(tag, "StateUnusable")
      assert.match(message, /file cannot be used, .*: set MICROVM_STATE_DIR to one that can$/)
    }).pipe(Effect.provide(layer)))
})
