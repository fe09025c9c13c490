import { describe, expect, it } from "@effect/vitest"
import { execFile } from "node:child_process"
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { release, tmpdir } from "node:os"
import { promisify } from "node:util"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import { fixture } from "./support.ts"

const run = promisify(execFile)

// Where cores go to a program, a socket or a place of their own, this would leave ours there.
const areFiles = /^[^|@/]+$/.test(readFileSync("/proc/sys/kernel/core_pattern", "latin1").trim())
const [major = 0, minor = 0] = release().split(".").map(Number)
const isKept = major > 6 || (major === 6 && minor >= 15)

const ends = async (how: "with" | "without") => {
  const directory = mkdtempSync(`${tmpdir()}/core-flag-`)
  try {
    const { stdout } = await run(
      "sh",
      ["-c", "ulimit -S -c unlimited; exec \"$@\"", "sh", process.execPath, fixture("dumping.ts"), how],
      { cwd: directory }
    )
    const told: unknown = JSON.parse(stdout)
    return { told, files: readdirSync(directory).length }
  } finally {
    rmSync(directory, { recursive: true })
  }
}

const isOff = /^Max core file size +\d+ +0 /m.test(readFileSync("/proc/self/limits", "latin1"))

if (!areFiles) {
  console.warn("skipped: a child that leaves a core, for here that is no file beside it (kernel.core_pattern)")
} else if (isOff) {
  console.warn("skipped: a child that leaves a core, for core files are off for good here (ulimit -H -c)")
} else if (!isKept) console.warn("skipped: the flag of a core file, which Linux before 6.15 does not keep")

describe.skipIf(!areFiles || isOff)("a child that leaves a core", () => {
  const others = [
    ExitStatus.signaled("SIGSEGV"),
    ExitStatus.signaled("SIGTERM", { coreDumped: false }),
    ExitStatus.exited(7)
  ]

  it.skipIf(!isKept)("is told from one that leaves none, and no descriptor stays", async () => {
    expect(await ends("with")).toEqual({
      told: {
        statuses: [ExitStatus.signaled("SIGSEGV", { coreDumped: true }), ...others],
        held: 1,
        left: 0
      },
      files: 1
    })
  })

  it("is told from none without koffi", async () => {
    expect(await ends("without")).toEqual({
      told: { statuses: [ExitStatus.signaled("SIGSEGV"), ...others], held: 0, left: 0 },
      files: 1
    })
  })
})
