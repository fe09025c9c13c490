import { describe, expect, it } from "@effect/vitest"
import { Cpio, GuestScripts } from "effect-microvm-runtime/image"
import * as Result from "effect/Result"
import { spawnSync } from "node:child_process"

const scripts = GuestScripts.entries.filter((entry) => entry._tag === "File" && entry.path.startsWith("sbin/"))

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
    expect(programs).toHaveLength(4)
    for (const program of programs) expect(GuestScripts.entries.map(({ path }) => path)).toContain(program)
  })
})
