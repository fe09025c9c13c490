/** The examples that boot machines, run as it says in them. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { execFile, spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { freePort } from "../../src/testing/LifecycleProbe.ts"
import { processes, sleep, until } from "../cli/executable.ts"
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

describe.skipIf(noRuns !== undefined)("examples/sandbox-server.ts", () => {
  it("runs what it is sent, ends who hangs up, and leaves nothing", async () => {
    const directory = mkdtempSync(join(tmpdir(), "microvm-example-"))
    const [port, health] = await Effect.runPromise(Effect.all([freePort, freePort]))
    const args = ["--conditions=@effect-microvm-runtime/source", "examples/sandbox-server.ts"]
    const env = { ...process.env, SANDBOX_STATE: directory, PORT: String(port), SERVICE_HEALTHZ_PORT: String(health) }
    const server = spawn(process.execPath, args, { cwd: root, env, stdio: "ignore" })
    const ended = once(server, "exit")
    try {
      for (let tried = 0; tried < 600; tried++) {
        if ((await fetch(`http://127.0.0.1:${health}/readyz`).catch(() => undefined))?.ok === true) break
        await sleep(100)
      }
      const run = (body: string, signal: AbortSignal | null = null) =>
        fetch(`http://127.0.0.1:${port}/run`, { method: "POST", body, signal })
      assert.strictEqual(
        await (await run("echo hello; exit 7")).text(),
        "event: stdout\ndata: \"hello\\n\"\n\nevent: exit\ndata: \"exited with code 7\"\n\n"
      )
      const leaving = new AbortController()
      const { body } = await run("echo hello; sleep 60", leaving.signal)
      await body?.getReader().read()
      leaving.abort()
      server.kill("SIGTERM")
      assert.deepStrictEqual(await ended, [10, null])
      assert.deepStrictEqual(readdirSync(join(directory, "machines")), [])
    } finally {
      server.kill("SIGKILL")
      await ended
      rmSync(directory, { recursive: true })
    }
  })
})
