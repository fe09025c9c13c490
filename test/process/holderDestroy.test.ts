import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { TestClock } from "effect/testing"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as NodeProcessHolder from "../../src/process/NodeProcessHolder.ts"
import * as NodeProcessHost from "../../src/process/NodeProcessHost.ts"
import { ProcessHolder } from "../../src/process/ProcessHolder.ts"
import { ProcessHost, type ProcessInfo } from "../../src/process/ProcessHost.ts"

const holderPid = 4_100_001
const childPid = 4_100_002

/** A look at all processes found it before its end, and its pid has passed to somebody else's since. */
const reusedPid = 4_100_003

const infoOf = (pid: number): ProcessInfo => ({
  pid,
  startTime: 1,
  state: "R",
  parent: 1,
  group: pid,
  session: pid,
  command: "sh",
  mark: undefined
})

/** A process and its holder, of which each is gone so long after its SIGKILL, and the holder as long after its child's end. */
const destroyed = (dying: `${number} seconds`, leaving: `${number} seconds`, lastFound = 0) =>
  Effect.gen(function*() {
    const real = yield* ProcessHost
    const directory = yield* Effect.acquireRelease(
      Effect.sync(() => mkdtempSync(join(tmpdir(), "destroyed-"))),
      (made) => Effect.sync(() => rmSync(made, { recursive: true }))
    )
    const identity = (pid: number) => ({ bootId: real.bootId, pid, startTime: 1 })
    writeFileSync(
      join(directory, "holder.json"),
      JSON.stringify({
        version: 1,
        holder: identity(holderPid),
        mark: "held-test.1",
        child: identity(childPid),
        cgroup: null,
        executable: "/bin/sh",
        channels: [],
        note: ""
      })
    )
    const there = new Set([holderPid, childPid, reusedPid])
    let looks = 0
    const killed: Array<number> = []
    const host = ProcessHost.of({
      ...real,
      inspect: (pid) => Effect.sync(() => there.has(pid) ? Option.some(infoOf(pid)) : Option.none()),
      started: () =>
        Effect.sync(() => looks++ < lastFound ? [{ ...infoOf(reusedPid), startTime: 0, mark: "held-test.1" }] : []),
      kill: (target) =>
        Effect.gen(function*() {
          const pid = Math.abs(target)
          if (killed.includes(pid)) return true
          killed.push(pid)
          yield* Effect.forkDetach(Effect.gen(function*() {
            yield* Effect.sleep(dying)
            there.delete(pid)
            yield* Effect.sleep(leaving)
            there.delete(holderPid)
          }))
          return true
        })
    })
    const layer = Layer.provide(NodeProcessHolder.layer, Layer.succeed(ProcessHost, host))
    const fiber = yield* ProcessHolder.use((holder) => holder.destroy({ directory })).pipe(
      Effect.provide(layer),
      Effect.forkChild({ startImmediately: true })
    )
    yield* TestClock.adjust("1 minute")
    return { fate: yield* Fiber.join(fiber), killed }
  }).pipe(Effect.scoped, Effect.provide(NodeProcessHost.layer))

describe("a process that is held, when it is destroyed", () => {
  it.effect("may take seconds to die, as many do together on a busy host", () =>
    Effect.gen(function*() {
      expect(yield* destroyed("8 seconds", "1 seconds")).toEqual({ fate: { _tag: "Destroyed" }, killed: [childPid] })
    }))

  it.effect("has a holder that is killed when it does not end by itself, and may take seconds for that, too", () =>
    Effect.gen(function*() {
      expect(yield* destroyed("8 seconds", "30 seconds")).toEqual({
        fate: { _tag: "Destroyed" },
        killed: [childPid, holderPid]
      })
    }))

  it.effect("ends nobody who has the pid of one that ended while all were looked at", () =>
    Effect.gen(function*() {
      expect(yield* destroyed("1 seconds", "1 seconds", 2)).toEqual({ fate: { _tag: "Destroyed" }, killed: [childPid] })
    }))

  it.effect("is stuck if it is still there after that", () =>
    Effect.gen(function*() {
      const { fate } = yield* destroyed("40 seconds", "1 seconds")
      const why = "it was killed, and did not end within 10 seconds: does it wait for a device (D)?"
      expect(fate).toEqual({ _tag: "Stuck", why })
    }))
})
