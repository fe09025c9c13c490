import { assert, describe, it } from "@effect/vitest"
import { isRoot, startAsInit, startFixture } from "./support/edge.ts"
import { signalEachStep } from "./support/startup.ts"

describe("a signal", () => {
  it.each(["SIGTERM", "SIGINT", "SIGHUP"] as const)("%s asks for an end in order", async (signal) => {
    await using run = startFixture("edge.ts", ["serve"])
    await run.said("ready")
    run.kill(signal)
    const end = await run.end
    assert.deepStrictEqual([end.code, end.signal], [10, null], end.stderr)
    assert.deepStrictEqual(end.stdout.trim().split("\n"), [
      "main",
      "acquired",
      "ready",
      `stopping ${signal}`,
      "released"
    ])
  })

  it("SIGQUIT still kills", async () => {
    await using run = startFixture("edge.ts", ["serve"])
    await run.said("ready")
    run.kill("SIGQUIT")
    assert.strictEqual((await run.end).signal, "SIGQUIT")
  })

  it("after the first one is the program's business too", async () => {
    await using run = startFixture("edge.ts", ["twoSignals"])
    await run.said("ready")
    run.kill("SIGTERM")
    await run.said("first SIGTERM")
    run.kill("SIGINT")
    assert.strictEqual((await run.end).code, 130)
  })

  it("that comes at any moment of the start-up ends it at once, or in order", async () => {
    // Two at a time start more slowly than the one that was measured; some signals have to come after that as well.
    const ends = await signalEachStep({
      start: () => startFixture("edge.ts", ["serve"]),
      begins: "main",
      ready: "ready",
      beyondSteps: 12
    })
    for (const end of ends) {
      const lines = end.stdout.split("\n")
      // Before the program itself has begun there is nothing to end in order. Between its first word and `main` it has not
      // taken the signals yet.
      if (end.signal === "SIGTERM") assert.notInclude(lines, "acquired", JSON.stringify(end))
      else assert.deepStrictEqual([end.code, end.signal], [10, null], JSON.stringify(end))
      const count = (line: string): number => lines.filter((one) => one === line).length
      assert.strictEqual(count("released"), count("acquired"), JSON.stringify(end))
      assert.strictEqual(end.stderr, "")
    }
    // Both kinds of end were seen: early, and in order.
    assert.isTrue(ends.some(({ signal }) => signal === "SIGTERM"))
    assert.isTrue(ends.some(({ code }) => code === 10))
  })
})

describe.skipIf(!isRoot)("as PID 1 of a namespace", () => {
  it.each(["SIGTERM", "SIGINT", "SIGHUP"] as const)("%s asks for an end in order", async (signal) => {
    await using run = startAsInit("edge.ts", ["signalsItself", signal])
    const end = await run.end
    assert.deepStrictEqual([end.code, end.signal], [10, null], end.stderr)
    assert.include(end.stdout, "pid 1\n")
    assert.include(end.stdout, `stopping ${signal}\nreleased\n`)
  })
})
