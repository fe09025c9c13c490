import { afterEach, assert, beforeEach, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { execFileSync } from "node:child_process"
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as NodeTerminationLog from "../../src/service/NodeTerminationLog.ts"
import { TerminationLog, type TerminationRecord } from "../../src/service/TerminationLog.ts"
import { startFixture } from "./support/edge.ts"

let directory = ""
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "termination-"))
})
afterEach(() => rmSync(directory, { recursive: true }))

const record: TerminationRecord = { reason: "stopped", code: 10, elapsed: "1 second" }

const write = (path: string): Promise<void> =>
  Effect.runPromise(
    Effect.flatMap(TerminationLog, (log) => log.write(record)).pipe(Effect.provide(NodeTerminationLog.layerAt(path)))
  )

it("replaces what an earlier word said", async () => {
  const path = join(directory, "log")
  writeFileSync(path, "x".repeat(5000))
  await write(path)
  assert.strictEqual(readFileSync(path, "utf8"), `{"reason":"stopped","code":10,"elapsedSeconds":1}\n`)
})

it("makes nothing that is not there", async () => {
  const path = join(directory, "log")
  await write(path)
  assert.isFalse(existsSync(path))
})

it("is not held up by a pipe, nor hurt by a directory", async () => {
  const pipe = join(directory, "pipe")
  execFileSync("mkfifo", [pipe])
  for (const path of [pipe, directory]) assert.isUndefined(await write(path))
})

it("has the last word of a service, and that it had a defect", async () => {
  const path = join(directory, "log")
  writeFileSync(path, "")
  await using run = startFixture("edge.ts", ["serve"], { env: { TERMINATION_LOG: path } })
  await run.said("ready")
  run.kill("SIGINT")
  await run.end
  assert.containSubset(JSON.parse(readFileSync(path, "utf8")), {
    reason: "stopped",
    code: 10,
    signal: "SIGINT",
    phase: "run"
  })
  await using dead = startFixture("edge.ts", ["dies"], { env: { TERMINATION_LOG: path } })
  await dead.end
  assert.match(readFileSync(path, "utf8"), /^{"reason":"defect","code":70,.*a defect/)
})
