/** The first file of the executable, which every Node has to be able to load. */
import { expect, it } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import { bin } from "./executable.ts"

it("tells who starts it with an older Node what it needs, before that could fail", () => {
  // As Node 20 is: it has no Map.groupBy either.
  const older = `Object.defineProperty(process.versions, "node", { value: "20.20.2" }); delete Map.groupBy`
  const args = ["--import", `data:text/javascript,${encodeURIComponent(older)}`, bin, "run", "--", "true"]
  const { status, stderr } = spawnSync(process.execPath, args, { encoding: "utf8" })
  expect([status, stderr]).toEqual([69, "microvm: this is Node 20.20.2: start it with Node 22.19 or later\n"])
})

it("finds its directories without HOME, as services and cron jobs have none", () => {
  const { HOME: _, MICROVM_CACHE_DIR: __, MICROVM_STATE_DIR: ___, ...env } = process.env
  const { status, stderr, stdout } = spawnSync(process.execPath, [bin, "run", "--dry-run", "--", "true"], {
    encoding: "utf8",
    env
  })
  expect([status, stderr]).toEqual([0, ""])
  expect(stdout).not.toBe("")
})
