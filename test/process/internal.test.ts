import { describe, expect, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import { execFileSync, spawnSync } from "node:child_process"
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Printable from "../../src/lifecycle/Printable.ts"
import * as ByteTail from "../../src/process/internal/byteTail.ts"
import { commandLine } from "../../src/process/internal/commandLine.ts"
import * as Client from "../../src/process/internal/NodeHolderClient.ts"
import * as ProcStat from "../../src/process/internal/procStat.ts"
import * as OutputTail from "../../src/process/OutputTail.ts"

describe("a line of /proc/PID/stat", () => {
  const rest = "S 1 20 30 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 987654 1000 200 184467440737095516"
  for (const name of ["sh", "a b", ") S 9 9", "((()", "", "line\nbreak", ") R 1 1 1 0 0 0 0"]) {
    it(`with the name ${JSON.stringify(name)}`, () => {
      expect(ProcStat.parse(`4711 (${name}) ${rest}`)).toEqual({
        pid: 4711,
        command: name,
        state: "S",
        parent: 1,
        group: 20,
        session: 30,
        startTime: 987654
      })
    })
  }
  for (const line of ["", "4711", "4711 (sh", "4711 (sh) ", "4711 (sh) S 1 2 3", ") ("]) {
    it(`that is none: ${JSON.stringify(line)}`, () => {
      expect(ProcStat.parse(line)).toBeUndefined()
    })
  }
})

describe("what a child chooses to be shown", () => {
  it("has no power over a terminal", () => {
    expect(Printable.onOneLine("é\u{1b}]0;x\u{7}\n\u{9b}1m\u{202e}b")).toBe(
      "é\\u{1b}]0;x\\u{7}\\u{a}\\u{9b}1m\\u{202e}b"
    )
    const stderr = { text: "\u{1b}[1;31mno\tdisk\u{1b}[0m\r\n\u{1b}[2J50 %\r\u{8}", omittedBytes: 0 }
    expect(OutputTail.format({ stderr, stdout: { text: "", omittedBytes: 0 } }))
      .toBe("stderr:\nno\tdisk\n\\u{1b}[2J50 %\\u{d}\\u{8}")
  })
})

describe("a tail of bytes", () => {
  const sizes = Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 70 })))
  const limits = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 100 }))
  it.prop("holds the last bytes, from any position on", [sizes, limits, limits], ([pieces, limit, back]) => {
    const tail = ByteTail.make(limit)
    const all: Array<number> = []
    for (const size of pieces) {
      const bytes = Array.from({ length: size }, (_, index) => (all.length + index) % 251)
      all.push(...bytes)
      tail.push(Uint8Array.from(bytes))
    }
    const kept = all.slice(all.length - Math.min(limit, all.length))
    expect(tail.total()).toBe(all.length)
    expect(tail.held()).toBe(kept.length)
    expect([...tail.since(0)]).toEqual(kept)
    const position = Math.max(0, all.length - back)
    expect([...tail.since(position)]).toEqual(all.slice(Math.max(position, all.length - kept.length)))
  })
})

describe("a command line that enters cgroups", () => {
  const line = (
    cgroup: { readonly path?: string; readonly v1?: ReadonlyArray<string> } | undefined,
    args = ["a b", ""]
  ) =>
    commandLine({
      executable: "/usr/bin/printf",
      args: ["<%s>", ...args],
      env: { left: "mine", PATH: "/x" },
      cgroup,
      dieWithParent: false
    }, {
      setpriv: undefined,
      parent: process.pid
    })
  it("has no shell where there is none to enter", () => {
    expect(line(undefined)).toEqual(["/usr/bin/printf", ["<%s>", "a b", ""]])
    expect(line({ v1: [] })).toEqual(line(undefined))
  })
  it("enters all of them, and hands the arguments on as they are", () => {
    const directory = mkdtempSync(join(tmpdir(), "cgroups-"))
    try {
      // What stands for a cgroup here is a directory, in which anything can be written.
      const paths = ["path", "v1 first", "v1-second"].map((name) => join(directory, name))
      const [path = "", ...v1] = paths
      execFileSync("mkdir", paths)
      const [file, args] = line({ path, v1 }, ["a b", "", "--", "$1"])
      expect(execFileSync(file, args, { encoding: "utf8", env: {} })).toBe("<a b><><--><$1>")
      for (const one of paths) expect(readFileSync(join(one, "cgroup.procs"), "utf8")).toBe("0\n")
    } finally {
      rmSync(directory, { recursive: true })
    }
  })
  it("does not run what cannot enter one of them, and says which", () => {
    const [file, args] = line({ v1: ["/proc/self", "/nowhere/cgroup"] })
    const { status, stderr, stdout } = spawnSync(file, args, { encoding: "utf8" })
    expect({ status, stderr, stdout }).toEqual({ status: 125, stderr: "cannot enter cgroup /proc/self\n", stdout: "" })
  })
})

describe("a directory in which no holder is to start", () => {
  it("is left to the one that was there first, and holds nothing else then", () => {
    const directory = mkdtempSync(join(tmpdir(), "precluded-"))
    try {
      writeFileSync(join(directory, "holder.json"), "its own")
      expect(Client.preclude(directory)).toBe(false)
      expect(readFileSync(join(directory, "holder.json"), "utf8")).toBe("its own")
      expect(readdirSync(directory)).toEqual(["holder.json"])
    } finally {
      rmSync(directory, { recursive: true })
    }
  })
})
