/** The examples that boot machines, run as it says in them. */
import { assert, describe, it } from "@effect/vitest"
import { execFile } from "node:child_process"
import { mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { processes, until } from "../cli/executable.ts"
import { noRuns } from "./background.ts"

if (noRuns !== undefined) console.warn(`skipped: examples: ${noRuns}`)

const root = fileURLToPath(new URL("../..", import.meta.url))

describe.skipIf(noRuns !== undefined)("examples/crash-and-recover.ts", () => {
  it("shows what lives through the end of a supervisor", async () => {
    const directory = mkdtempSync(join(tmpdir(), "microvm-example-"))
    try {
      const args = ["--conditions=@effect-microvm-runtime/source", "examples/crash-and-recover.ts"]
      const { stderr, stdout } = await promisify(execFile)(process.execPath, args, {
        cwd: root,
        env: { ...process.env, TMPDIR: directory },
        timeout: 120_000
      })
      assert.deepStrictEqual(stdout.trimEnd().replace(/\d+/, "PID").split("\n"), [
        "supervisor PID has machine tenant-1, with a command in it",
        "kill -9",
        "tenant-1: Adopted, its machine answers",
        "its command exited with code 42",
        "its console: a line from before the crash, done",
        "its end: PoweredOff, its monitor exited with code 0, 0 resources left"
      ], stderr)
      await until(
        "the end of all that was started",
        () => processes().every(({ directory: where, line }) => !`${where} ${line}`.includes(directory)),
        10_000
      )
      assert.deepStrictEqual(readdirSync(directory), [])
    } finally {
      rmSync(directory, { recursive: true })
    }
  })
})
