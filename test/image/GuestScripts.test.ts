import { describe, expect, it } from "@effect/vitest"
import { GuestRenewal, GuestStdio } from "effect-microvm-runtime/guest"
import { Cpio, GuestPrograms, GuestScripts } from "effect-microvm-runtime/image"
import * as Result from "effect/Result"
import { spawnSync } from "node:child_process"

const machineCode = new Set<unknown>(Object.values(GuestPrograms))
const scripts = GuestScripts.entries.filter((entry) =>
  entry._tag === "File" && entry.path.startsWith("sbin/") && !machineCode.has(entry.content)
)

describe("GuestScripts", () => {
  it("make an archive", () => {
    expect(Result.isSuccess(Cpio.encode(GuestScripts.entries))).toBe(true)
  })

  it.each(scripts.map((entry) => [entry.path, entry] as const))("%s is a script a shell can read", (_, entry) => {
    if (entry._tag !== "File") throw new Error("no file")
    const text = new TextDecoder().decode(entry.content)
    expect(text.startsWith("#!/bin/busybox sh\n")).toBe(true)
    expect(entry.permissions).toBe(0o755)
    const { status, stderr } = spawnSync("sh", ["-n"], { input: text, encoding: "utf8" })
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" })
  })

  it("init starts programs that are there", () => {
    const programs = Array.from(GuestScripts.inittab.matchAll(/^::\w+:(\S+)/gm), ([, program = ""]) => program.slice(1))
    expect(programs).toHaveLength(5)
    for (const program of programs) expect(GuestScripts.entries.map(({ path }) => path)).toContain(program)
  })

  it("name files that are there", () => {
    const texts = GuestScripts.entries.flatMap((entry) =>
      entry._tag === "File" ? [new TextDecoder().decode(entry.content)] : []
    )
    const named = new Set(texts.flatMap((text) => text.match(/\/sbin\/microvm-[a-z.-]*[a-z]/g) ?? []))
    expect(named.size).toBeGreaterThan(6)
    const paths = GuestScripts.entries.map(({ path }) => `/${path}`)
    for (const path of [...named, GuestRenewal.program, GuestRenewal.hooksProgram, GuestStdio.program]) {
      expect(paths).toContain(path)
    }
  })

  it("have a machine id that is one", () => {
    const lines = GuestScripts.setup.split("\n")
    const at = lines.indexOf("read -r id </proc/sys/kernel/random/uuid")
    const script = lines.slice(at, at + 2).concat("echo $id").join("\n")
    const { stdout } = spawnSync("sh", ["-c", script], { encoding: "utf8" })
    expect(stdout).toMatch(/^[0-9a-f]{32}\n$/)
  })
})
