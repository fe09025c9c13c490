import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { execFileSync, spawnSync } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fixture, startFixture } from "./support/edge.ts"

const endOf = async (mode: string, ...more: ReadonlyArray<string>) => {
  await using run = startFixture("edge.ts", [mode, ...more])
  return await run.end
}

describe("the exit code", () => {
  it.each([0, 10, 78, 143, 255])("is %i when the program says so", async (code) => {
    const end = await endOf("code", String(code))
    assert.deepStrictEqual([end.code, end.stderr], [code, ""])
  })

  it.each(["256", "-1", "1.5", "NaN"])("is that of a defect when the program says %s", async (code) => {
    const end = await endOf("code", code)
    assert.strictEqual(end.code, 70)
    assert.include(end.stderr, `ended with ${code}, which is no exit code`)
  })

  it("is 70 for a program that dies", async () => {
    const end = await endOf("dies")
    assert.strictEqual(end.code, 70)
    assert.match(end.stderr, /The program died: Error: a defect\n +at .*edge\.ts/)
  })
})

describe("an error that nobody caught", () => {
  it.each([["throws", "uncaughtException", "thrown in a callback"], [
    "rejects",
    "unhandledRejection",
    "rejected by nobody"
  ]])(
    "%s: ends the program in order, with 70",
    async (mode, origin, message) => {
      const end = await endOf(mode)
      assert.deepStrictEqual([end.code, end.signal], [70, null])
      assert.include(end.stderr, `Nobody caught this error (${origin}): Error: ${message}`)
      assert.include(end.stdout, "released")
    }
  )

  it("belongs to the program that waits for it", async () => {
    const end = await endOf("takesUncaught")
    assert.strictEqual(end.code, 99)
    assert.include(end.stdout, "stopping in order")
    assert.match(end.stderr, /^Nobody caught .*thrown in a callback[^]*\nstopping because of it\n$/)
  })

  it("again and again fills no log", async () => {
    const end = await endOf("throwsOften")
    assert.strictEqual(end.code, 70)
    assert.strictEqual(end.stderr.split("Nobody caught this error").length - 1, 16)
  })

  it("ends even a program that does not let itself be interrupted", async () => {
    const end = await endOf("uncaughtHangs")
    assert.deepStrictEqual([end.code, end.signal], [11, null], end.stderr)
    assert.include(end.stderr, "the stop took longer than")
  })
})

describe("output", () => {
  it("is written to its end before the exit", async () => {
    const { status, stdout } = spawnSync(process.execPath, [fixture("edge.ts"), "writesMuch"], {
      maxBuffer: 10_000_000
    })
    assert.strictEqual(status, 10)
    assert.match(stdout.toString().slice(-10), /x\nend\n$/)
    assert.lengthOf(stdout, "main\n".length + 3_000_000 + "\nend\n".length)
  })

  it("that nobody reads any more harms nobody", async () => {
    await using run = startFixture("edge.ts", ["chatters"])
    await run.said("ready")
    run.hangUp()
    await Effect.runPromise(Effect.sleep("300 millis"))
    run.kill("SIGTERM")
    const end = await run.end
    assert.deepStrictEqual([end.code, end.signal], [10, null])
  })
})

describe("the exit", () => {
  it("does not wait for a thread that never comes back", async () => {
    const directory = mkdtempSync(join(tmpdir(), "service-"))
    try {
      const pipe = join(directory, "pipe")
      execFileSync("mkfifo", [pipe])
      await using run = startFixture("edge.ts", ["pool", pipe], { deadlineMillis: 10_000 })
      const end = await run.end
      assert.deepStrictEqual([end.code, end.signal, end.stderr], [10, null, ""])
    } finally {
      rmSync(directory, { recursive: true })
    }
  })

  it("comes after the listeners of the program, with its code", async () => {
    const end = await endOf("listens")
    assert.deepStrictEqual([end.code, end.stderr], [10, ""])
    assert.include(end.stdout, "exit 10\n")
  })
})
