/** The first file of the executable, which every Node has to be able to load. */
import { expect, it } from "@effect/vitest"
import { spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { closeSync, existsSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { bin } from "./executable.ts"

it("tells who starts it with an older Node what it needs, before that could fail", () => {
  // As Node 20 is: it has no Map.groupBy either.
  const older = `Object.defineProperty(process.versions, "node", { value: "20.20.2" }); delete Map.groupBy`
  const args = ["--import", `data:text/javascript,${encodeURIComponent(older)}`, bin, "run", "--", "true"]
  const { status, stderr } = spawnSync(process.execPath, args, { encoding: "utf8" })
  expect([status, stderr]).toEqual([69, "microvm: this is Node 20.20.2: start it with Node 22.19 or later\n"])
})

it.each([["without HOME", {}], ["with an empty HOME", { HOME: "" }], ["with a relative HOME", { HOME: "here" }]])(
  "finds its directories %s, as services and cron jobs may have none",
  (_, home) => {
    const { HOME: __, MICROVM_CACHE_DIR: ___, MICROVM_STATE_DIR: ____, ...env } = process.env
    const { status, stderr, stdout } = spawnSync(process.execPath, [bin, "run", "--dry-run", "--", "true"], {
      encoding: "utf8",
      env: { ...env, ...home }
    })
    expect([status, stderr]).toEqual([0, ""])
    expect(stdout).not.toBe("")
  }
)

it.each(["--version", "--help", "run --help", "--completions bash", "ps --json", "run --dry-run -- true"])(
  "tells that what it was asked for is lost: %s",
  (args) => {
    const full = openSync("/dev/full", "w")
    const { status, stderr } = spawnSync(process.execPath, [bin, ...args.split(" ")], {
      encoding: "utf8",
      stdio: ["ignore", full, "pipe"]
    })
    closeSync(full)
    expect(status).toBe(125)
    expect(stderr).toMatch(/^microvm: stdout could not be written: .*ENOSPC.*\n$/)
  }
)

it.each(["--version", "ps --json"])("says nothing when whoever reads it wants no more: %s", async (args) => {
  const child = spawn(process.execPath, [bin, ...args.split(" ")], { stdio: ["ignore", "pipe", "pipe"] })
  child.stdout.destroy()
  let stderr = ""
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text
  })
  expect([await once(child, "close"), stderr]).toEqual([[0, null], ""])
})

it("does not pass on what Node has made of an argument that is not UTF-8", () => {
  // Node could not pass such an argument either.
  const script = `exec "$0" "$1" run --dry-run -- echo "$(printf '\\377')"`
  const { status, stderr } = spawnSync("sh", ["-c", script, process.execPath, bin], { encoding: "utf8" })
  expect([status, stderr]).toEqual([64, "microvm: argument 5 is not UTF-8: write it in UTF-8, or pass it on stdin\n"])
  const meant = spawnSync(process.execPath, [bin, "run", "--dry-run", "--", "echo", "\uFFFD"], { encoding: "utf8" })
  expect([meant.status, meant.stderr]).toEqual([0, ""])
})

it("opens no debugger when it is sent SIGUSR1", async () => {
  const directory = mkdtempSync(join(tmpdir(), "microvm-bin-"))
  const qemu = join(directory, "qemu")
  const asked = join(directory, "asked")
  writeFileSync(qemu, `#!/bin/sh\necho > ${asked}\nexec sleep 60\n`, { mode: 0o755 })
  const child = spawn(process.execPath, [bin, "run", "--backend", "qemu", "--", "true"], {
    env: { ...process.env, MICROVM_QEMU_BIN: qemu },
    stdio: ["ignore", "ignore", "pipe"]
  })
  let stderr = ""
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text
  })
  const ended = once(child, "close")
  await expect.poll(() => existsSync(asked), { timeout: 20_000 }).toBe(true)
  child.kill("SIGUSR1")
  // It has been seen to when the next signal is.
  child.kill("SIGTERM")
  expect(await ended).toEqual([143, null])
  expect(stderr).toBe("microvm: ended by SIGTERM\n")
  rmSync(directory, { recursive: true })
})
