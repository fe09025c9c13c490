import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { execFileSync } from "node:child_process"
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as NodeWatchdog from "../../src/service/NodeWatchdog.ts"
import * as Watchdog from "../../src/service/Watchdog.ts"
import { eventually, fixture, isRoot, start, startAsInit, startFixture } from "./support/edge.ts"

/** What the fixture allows, in milliseconds, and the reserve after it; the machine may be busy with other things. */
const budget = 1000
const reserve = 2000
const slack = 20_000

describe("a blocked event loop", () => {
  it.each([
    ["loop", "blocksTheLoop"],
    ["microtasks", "again"],
    ["wait", "wait"],
    ["pattern", "pattern"],
    ["exec", "exec"]
  ])("%s: is named and ended, with the code of a passed budget", async (kind, place) => {
    await using run = startFixture("edge.ts", ["blocked", kind])
    await run.said("ready")
    const began = performance.now()
    const end = await run.end
    const took = performance.now() - began
    assert.deepStrictEqual([end.code, end.signal], [11, null], end.stderr)
    // By its own clock: it was blocked before we had read that it was ready.
    const [, blocked] = /the event loop has been blocked for ([\d.]+) s/.exec(end.stderr) ?? []
    assert.isAtLeast(Number(blocked), budget / 1000, end.stderr)
    assert.match(end.stderr, new RegExp(`at ${place} \\(file:.*/fixtures/edge\\.ts:\\d+:\\d+\\)`))
    assert.isBelow(took, budget + reserve + slack)
  })

  it("leaves the reason and the place in the termination log", async () => {
    const directory = mkdtempSync(join(tmpdir(), "watchdog-"))
    try {
      const path = join(directory, "log")
      writeFileSync(path, "")
      await using run = startFixture("edge.ts", ["blocked", "loop"], { env: { TERMINATION_LOG: path } })
      await run.end
      const record: unknown = JSON.parse(readFileSync(path, "utf8"))
      assert.containSubset(record, { reason: "budgetPassed", code: 11 })
      assert.match(readFileSync(path, "utf8"), /the event loop has been blocked for .* at \w+ \(file:.*edge\.ts/)
    } finally {
      rmSync(directory, { recursive: true })
    }
  })

  it("is ended although nobody reads what is said about it", async () => {
    await using run = startFixture("edge.ts", ["fillsStderr"], { unread: true })
    await run.said("ready")
    const end = await run.end
    assert.isTrue(end.code === 11 || end.signal === "SIGKILL", JSON.stringify(end))
  })

  it("is ended although another thread never comes back", async () => {
    const directory = mkdtempSync(join(tmpdir(), "watchdog-"))
    try {
      const pipe = join(directory, "pipe")
      execFileSync("mkfifo", [pipe])
      await using run = startFixture("edge.ts", ["blockedPool", pipe])
      const end = await run.end
      assert.deepStrictEqual([end.code, end.signal], [11, null], end.stderr)
    } finally {
      rmSync(directory, { recursive: true })
    }
  })

  it("may be somebody's breakpoint while an inspector is open", async () => {
    await using run = start(process.execPath, ["--inspect=127.0.0.1:0", fixture("edge.ts"), "blocked", "loop"])
    await run.said("ready")
    const isOver = await Promise.race([
      run.end.then(() => true),
      Effect.runPromise(Effect.as(Effect.sleep(3 * budget), false))
    ])
    assert.isFalse(isOver)
  })

  it("is not what a suspended process has", async () => {
    await using run = startFixture("edge.ts", ["serve"])
    await run.said("ready")
    run.kill("SIGSTOP")
    await Effect.runPromise(Effect.sleep(budget * 2.5))
    run.kill("SIGCONT")
    await Effect.runPromise(Effect.sleep(budget / 2))
    run.kill("SIGTERM")
    const end = await run.end
    assert.deepStrictEqual([end.code, end.signal], [10, null], end.stderr)
  })

  it.skipIf(!isRoot)("as PID 1, which nobody inside can kill", async () => {
    for (const kind of ["loop", "exec"]) {
      await using run = startAsInit("edge.ts", ["blocked", kind])
      const end = await run.end
      assert.deepStrictEqual([end.code, end.signal], [11, null], end.stderr)
      assert.match(end.stderr, /edge\.ts:\d+/)
    }
  })

  it.skipIf(!isRoot)("as PID 1, in a call that nothing interrupts", async () => {
    const directory = mkdtempSync(join(tmpdir(), "watchdog-"))
    try {
      const pipe = join(directory, "pipe")
      execFileSync("mkfifo", [pipe])
      await using run = startAsInit("edge.ts", ["blockedRead", pipe])
      const end = await run.end
      assert.match(end.stderr, /the event loop has been blocked for/)
      assert.notStrictEqual(end.code, 0)
    } finally {
      rmSync(directory, { recursive: true })
    }
  })

  it("in a call that nothing interrupts is killed", async () => {
    const directory = mkdtempSync(join(tmpdir(), "watchdog-"))
    try {
      const pipe = join(directory, "pipe")
      execFileSync("mkfifo", [pipe])
      await using run = startFixture("edge.ts", ["blockedRead", pipe])
      const end = await run.end
      assert.strictEqual(end.signal, "SIGKILL")
      assert.match(end.stderr, /the event loop has been blocked for/)
    } finally {
      rmSync(directory, { recursive: true })
    }
  })
})

describe("a stop", () => {
  it.each(["loop", "exec"])("that blocks the event loop (%s) ends", async (kind) => {
    await using run = startFixture("edge.ts", ["stopBlocked", kind], { env: { BLOCKED: "60000" } })
    await run.said("ready")
    const began = performance.now()
    run.kill("SIGTERM")
    const end = await run.end
    assert.deepStrictEqual([end.code, end.signal], [11, null], end.stderr)
    assert.match(end.stderr, /the stop took longer than the 0\.6 s it had/)
    assert.match(end.stderr, /edge\.ts:\d+/)
    assert.isBelow(performance.now() - began, 600 + reserve + slack)
  })

  it("that hangs with a free event loop ends", async () => {
    await using run = startFixture("edge.ts", ["stopHangs"])
    await run.said("ready")
    const began = performance.now()
    run.kill("SIGTERM")
    const end = await run.end
    assert.deepStrictEqual([end.code, end.signal], [11, null], end.stderr)
    assert.notMatch(end.stderr, /was here/)
    assert.isAbove(performance.now() - began, 600)
    assert.isBelow(performance.now() - began, 600 + reserve + slack)
  })

  it.each(["stopInTime", "stopExtended"])("%s: goes on in peace", async (mode) => {
    await using run = startFixture("edge.ts", [mode])
    const end = await run.end
    assert.deepStrictEqual([end.code, end.signal, end.stderr], [10, null, ""])
  })

  it("is not what a process has that gets no processor", async () => {
    await using run = startFixture("edge.ts", ["starved"], { env: { BLOCKED: "60000" } })
    const end = await run.end
    assert.deepStrictEqual([end.code, end.signal, end.stderr], [10, null, ""])
  })

  it("is held up by no listener of the exit", async () => {
    await using run = startFixture("edge.ts", ["exitListener"])
    const end = await run.end
    assert.deepStrictEqual([end.code, end.signal], [11, null], end.stderr)
  })
})

describe("the thread", () => {
  const threads = (): ReadonlyArray<string> =>
    readdirSync("/proc/self/task").filter((thread) =>
      readFileSync(`/proc/self/task/${thread}/comm`, "latin1").startsWith("watchdog")
    )

  it.live("keeps nothing alive and goes with its layer", () =>
    Effect.gen(function*() {
      const end = yield* Effect.gen(function*() {
        const { allowBlocked, stopBegan, stopEnded } = yield* Watchdog.Watchdog
        yield* allowBlocked("1 minute")
        yield* stopBegan("1 minute")
        yield* stopEnded
        yield* Effect.promise(() => eventually(() => threads().length === 1))
        return "ended"
      }).pipe(Effect.provide(NodeWatchdog.layer))
      assert.strictEqual(end, "ended")
      assert.lengthOf(threads(), 0)
    }))
})
