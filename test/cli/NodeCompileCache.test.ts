import { afterEach, beforeEach, describe, expect, it } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import * as NodeFs from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

let cache = ""
let script = ""
let program = ""
/** Has two functions: one that all starts call, and one that only a whole run does. */
const text = `(function (require, url, tell) {
  const all = () => "said by all " + require("node:path").basename(url)
  const some = () => "said by some"
  const once = "said but once"
  tell((exit) => {
    console.log(all())
    const isBusy = process.argv[3] === "busy"
    for (let count = 0, room = []; isBusy && count < 1e6; count++) room = [room.length, count]
    const isWhole = process.argv[2] === "whole"
    if (isWhole) console.log(some())
    exit(7, isWhole)
  })
})`
beforeEach(() => {
  cache = NodeFs.mkdtempSync(join(tmpdir(), "node-compile-cache-"))
  script = join(cache, "script.mjs")
  program = join(cache, "program.js")
  const tested = new URL("../../src/cli/internal/NodeCompileCache.ts", import.meta.url)
  NodeFs.writeFileSync(
    script,
    `import { load } from ${JSON.stringify(tested)}
     load(${JSON.stringify(program)})((code) => process.exit(code))`
  )
  NodeFs.writeFileSync(program, text)
})
afterEach(() => NodeFs.rmSync(cache, { recursive: true }))

const start = (environment: NodeJS.ProcessEnv, ...args: ReadonlyArray<string>): string => {
  const env = { PATH: process.env["PATH"], ...environment }
  // Collects all each time, not the youngest only. Of what `gc` of --expose-gc collects, nothing grows old.
  const flags = args.includes("busy") ? ["--gc-global"] : []
  const { status, stderr, stdout } = spawnSync(process.execPath, [...flags, script, ...args], { encoding: "utf8", env })
  expect({ status, stderr }).toEqual({ status: 7, stderr: "" })
  return stdout.trim()
}

/** The files that are kept below a directory. */
const kept = (directory: string): ReadonlyArray<string> =>
  NodeFs.readdirSync(join(directory, "compiled")).map((name) => join(directory, "compiled", name))

/** The one file that is kept. */
const only = (): string => {
  const [file = "", ...others] = kept(cache)
  expect(others).toEqual([])
  return file
}

describe("what is compiled is kept", () => {
  it("in the cache's directory, for nobody else to see", () => {
    expect(start({ MICROVM_CACHE_DIR: cache })).toBe("said by all program.js")
    expect(NodeFs.statSync(join(cache, "compiled")).mode & 0o777).toBe(0o700)
    expect(NodeFs.statSync(only()).mode & 0o777).toBe(0o600)
  })

  it.each([
    ["XDG_CACHE_HOME", { XDG_CACHE_HOME: "CACHE", HOME: "/nonexistent" }, ["effect-microvm-runtime"]],
    ["HOME", { XDG_CACHE_HOME: "relative", HOME: "CACHE" }, [".cache", "effect-microvm-runtime"]],
    ["HOME, where a variable is empty", { MICROVM_CACHE_DIR: "", HOME: "CACHE" }, [".cache", "effect-microvm-runtime"]]
  ])("below %s", (_, environment, below) => {
    const env = Object.fromEntries(
      Object.entries(environment).map(([name, value]) => [name, value.replace("CACHE", cache)])
    )
    NodeFs.mkdirSync(join(cache, ...below), { recursive: true })
    start(env)
    expect(kept(join(cache, ...below))).toHaveLength(1)
  })

  it("not where somebody else could have written it", () => {
    NodeFs.mkdirSync(join(cache, "compiled"))
    NodeFs.chmodSync(join(cache, "compiled"), 0o777)
    start({ MICROVM_CACHE_DIR: cache })
    expect(kept(cache)).toEqual([])
    NodeFs.rmdirSync(join(cache, "compiled"))
    NodeFs.mkdirSync(join(cache, "theirs"), { mode: 0o700 })
    NodeFs.symlinkSync(join(cache, "theirs"), join(cache, "compiled"))
    start({ MICROVM_CACHE_DIR: cache })
    expect(kept(cache)).toEqual([])
  })

  it("not where there can be no directory", () => {
    expect(start({ MICROVM_CACHE_DIR: "/dev/null" })).toBe("said by all program.js")
  })

  it("once, and again after the first whole run", () => {
    const state = (...args: ReadonlyArray<string>): string => {
      start({ MICROVM_CACHE_DIR: cache }, ...args)
      const { ino, mtimeNs } = NodeFs.statSync(only(), { bigint: true })
      return `${ino} ${mtimeNs}`
    }
    const first = state()
    expect(state()).toBe(first)
    expect(NodeFs.readFileSync(only(), "latin1")).not.toContain("said by some")
    const whole = state("whole")
    expect(whole).not.toBe(first)
    expect([state("whole"), state()]).toEqual([whole, whole])
    // With the functions that were called.
    expect(NodeFs.readFileSync(only(), "latin1")).toContain("said by some")
  })

  it("with what was called but once, however often V8 has collected since", () => {
    const inode = (): number => {
      start({ MICROVM_CACHE_DIR: cache }, "whole", "busy")
      return NodeFs.statSync(only()).ino
    }
    const first = inode()
    expect(NodeFs.readFileSync(only(), "latin1")).toContain("said but once")
    // And the next start takes it.
    expect(inode()).toBe(first)
  })

  it.each([
    ["another program", "done", () => {
      // As on an image whose files have fixed times.
      const { atime, mtime } = NodeFs.statSync(program)
      NodeFs.writeFileSync(program, text.replaceAll("said", "done"))
      NodeFs.utimesSync(program, atime, mtime)
    }],
    ["what is damaged", "said", () => {
      const bytes = NodeFs.readFileSync(only())
      bytes.fill(0xff, bytes.length - 64)
      NodeFs.writeFileSync(only(), bytes)
    }],
    ["what is torn", "said", () => NodeFs.truncateSync(only(), 300)]
  ])("but nothing is taken from %s", (_, says, change) => {
    start({ MICROVM_CACHE_DIR: cache })
    change()
    const before = kept(cache).map((file) => NodeFs.readFileSync(file, "latin1"))
    expect(start({ MICROVM_CACHE_DIR: cache })).toBe(`${says} by all program.js`)
    expect(before).not.toEqual(kept(cache).map((file) => NodeFs.readFileSync(file, "latin1")))
  })

  it("for as long as it may be of use, and touches nothing of others", () => {
    const below = join(cache, "compiled")
    NodeFs.mkdirSync(below, { mode: 0o700 })
    const names = ["microvm-v23.0.0-x64", "microvm-v25.0.0-x64", "somebody's"]
    for (const name of names) NodeFs.writeFileSync(join(below, name), "")
    for (const name of ["microvm-v23.0.0-x64", "somebody's"]) NodeFs.utimesSync(join(below, name), 0, 0)
    start({ MICROVM_CACHE_DIR: cache })
    const left = NodeFs.readdirSync(below)
    expect(left).toHaveLength(3)
    expect(left).toEqual(expect.arrayContaining(["microvm-v25.0.0-x64", "somebody's"]))
  })

  it("in the directory that was looked at, whatever is in its place by then", () => {
    const below = join(cache, "compiled")
    const away = join(cache, "away")
    const theirs = join(cache, "theirs")
    NodeFs.mkdirSync(theirs, { mode: 0o700 })
    NodeFs.writeFileSync(join(theirs, "microvm-v23.0.0-x64"), "")
    NodeFs.utimesSync(join(theirs, "microvm-v23.0.0-x64"), 0, 0)
    const swap = `require("node:fs").renameSync(${JSON.stringify(below)}, ${JSON.stringify(away)})
      require("node:fs").symlinkSync(${JSON.stringify(theirs)}, ${JSON.stringify(below)})`
    NodeFs.writeFileSync(program, text.replace("console.log(all())", `console.log(all()); ${swap}`))
    start({ MICROVM_CACHE_DIR: cache })
    expect(NodeFs.readdirSync(theirs)).toEqual(["microvm-v23.0.0-x64"])
    expect(NodeFs.readdirSync(away)).toHaveLength(1)
  })

  it("unless it cannot be made, and the exit code is the program's all the same", () => {
    const broken = `require("node:vm").Script.prototype.createCachedData = () => { throw new Error("no") }`
    NodeFs.writeFileSync(program, text.replace("console.log(all())", `console.log(all()); ${broken}`))
    expect(start({ MICROVM_CACHE_DIR: cache })).toBe("said by all program.js")
    expect(kept(cache)).toEqual([])
  })
})

describe("a program that is loaded", () => {
  const withStacks = (begin: string, later: string) =>
    text.replace("const all", `${begin}\n  const all`).replace("console.log(all())", later)

  it("finds names in a stack trace while it begins, and lines, too, when it has begun", () => {
    const probe = "const stack = { probe: function named() { return new Error().stack } }.probe()"
    const tell =
      "console.log(JSON.stringify([stack.split(\"\\n\")[0], /program\\.js:\\d+:\\d+/.test(new Error().stack)]))"
    NodeFs.writeFileSync(program, withStacks(probe, tell))
    expect(JSON.parse(start({ MICROVM_CACHE_DIR: cache }))).toEqual(["named [as probe]", true])
  })

  it("leaves it to who was there before how a stack trace looks", () => {
    NodeFs.writeFileSync(script, `Error.prepareStackTrace = () => "theirs"\n${NodeFs.readFileSync(script, "utf8")}`)
    NodeFs.writeFileSync(program, withStacks("", "console.log(new Error().stack)"))
    expect(start({ MICROVM_CACHE_DIR: cache })).toBe("theirs")
  })
})
