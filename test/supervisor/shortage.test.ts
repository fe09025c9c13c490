import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as PlatformError from "effect/PlatformError"
import type { Events } from "../../src/host/Limits.ts"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import { count, find } from "../../src/supervisor/internal/shortage.ts"

const none: Events = { oomKills: 0, memoryMib: 448, pidsRefused: 0, pids: 512 }
const killed = ExitStatus.signaled("SIGKILL")

describe("what a monitor has ended of", () => {
  for (
    const [what, status, now, since, expected] of [
      ["an out-of-memory kill", killed, { ...none, oomKills: 1 }, none, { _tag: "Memory", limitMib: 448 }],
      ["one without a limit of its own", killed, { ...none, oomKills: 1, memoryMib: undefined }, none, {
        _tag: "Memory"
      }],
      ["one that nobody saw the end of", ExitStatus.lost("gone", "identity"), { ...none, oomKills: 2 }, undefined, {
        _tag: "Memory",
        limitMib: 448
      }],
      ["one before it", killed, { ...none, oomKills: 1 }, { ...none, oomKills: 1 }, undefined],
      ["a kill by somebody else", killed, none, none, undefined],
      [
        "a kill by somebody else, of one that was refused a thread",
        killed,
        { ...none, pidsRefused: 3 },
        none,
        undefined
      ],
      [
        "another signal, after a process of it was killed",
        ExitStatus.signaled("SIGTERM"),
        { ...none, oomKills: 1 },
        none,
        undefined
      ],
      ["a refused thread", ExitStatus.signaled("SIGABRT"), { ...none, pidsRefused: 1 }, none, {
        _tag: "Tasks",
        limit: 512
      }],
      ["a refused thread, and an exit", ExitStatus.exited(1), { ...none, pidsRefused: 1 }, none, {
        _tag: "Tasks",
        limit: 512
      }],
      ["no cgroup", killed, undefined, undefined, undefined]
    ] as const
  ) {
    it(what, () => assert.deepStrictEqual(Option.getOrUndefined(find(status, now, since)), expected))
  }
})

describe("what is counted", () => {
  const at = (files: Readonly<Record<string, string>>) =>
    FileSystem.layerNoop({
      readFileString: (path) => {
        const text = files[path]
        return text === undefined
          ? Effect.fail(PlatformError.systemError({ _tag: "NotFound", module: "FileSystem", method: "readFileString" }))
          : Effect.succeed(text)
      }
    })
  const claims = [{ kind: "tap", data: 1 }, { kind: "cgroup", data: { path: "/v2/m", v1: ["/memory/m", "/pids/m"] } }]

  it.effect("by version 2", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* count(claims), { oomKills: 2, memoryMib: 448, pidsRefused: 1, pids: undefined })
    }).pipe(Effect.provide(at({
      "/v2/m/memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 1\n",
      "/v2/m/memory.max": `${448 * 2 ** 20}\n`,
      "/v2/m/pids.events": "max 1\n",
      "/v2/m/pids.max": "max\n"
    }))))

  it.effect("by version 1, in which no limit is a number, too", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* count(claims), { oomKills: 1, memoryMib: undefined, pidsRefused: 0, pids: 20 })
    }).pipe(Effect.provide(at({
      "/memory/m/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
      "/memory/m/memory.limit_in_bytes": "9223372036854771712\n",
      "/pids/m/pids.events": "max 0\n",
      "/pids/m/pids.max": "20\n"
    }))))

  it.effect("nothing, where there are no cgroups", () =>
    Effect.gen(function*() {
      assert.isUndefined(yield* count([{ kind: "tap", data: 1 }]))
    }).pipe(Effect.provide(at({}))))
})
