import { afterEach, beforeEach, describe, expect, it } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import * as NodeFs from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

let cache = ""
let script = ""
beforeEach(() => {
  cache = NodeFs.mkdtempSync(join(tmpdir(), "node-compile-cache-"))
  script = join(cache, "script.mjs")
  const tested = new URL("../../src/cli/internal/NodeCompileCache.ts", import.meta.url)
  NodeFs.writeFileSync(
    script,
    `import { getCompileCacheDir } from "node:module"
     import { keepCompiled } from ${JSON.stringify(tested)}
     keepCompiled()
     await import("./program.mjs")
     console.log(getCompileCacheDir() ?? "none")`
  )
  NodeFs.writeFileSync(join(cache, "program.mjs"), `export const never = () => "said in vain"`)
})
afterEach(() => NodeFs.rmSync(cache, { recursive: true }))

/** Where it is kept, as Node itself says: a directory of its own for each version. */
const kept = (environment: NodeJS.ProcessEnv): string => {
  const env = { PATH: process.env["PATH"], ...environment }
  const { stderr, stdout } = spawnSync(process.execPath, [script], { encoding: "utf8", env })
  expect(stderr).toBe("")
  return stdout.trim()
}

describe("what is compiled is kept", () => {
  it("in the cache's directory, for nobody else to see", () => {
    expect(kept({ MICROVM_CACHE_DIR: cache })).toContain(join(cache, "compiled"))
    expect(NodeFs.statSync(join(cache, "compiled")).mode & 0o777).toBe(0o700)
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
    expect(kept(env)).toContain(join(cache, ...below, "compiled"))
  })

  it("not where somebody else could have written it", () => {
    NodeFs.mkdirSync(join(cache, "compiled"))
    NodeFs.chmodSync(join(cache, "compiled"), 0o777)
    expect(kept({ MICROVM_CACHE_DIR: cache })).toBe("none")
    NodeFs.rmdirSync(join(cache, "compiled"))
    NodeFs.symlinkSync(tmpdir(), join(cache, "compiled"))
    expect(kept({ MICROVM_CACHE_DIR: cache })).toBe("none")
  })

  it("not where there can be no directory", () => {
    expect(kept({ MICROVM_CACHE_DIR: "/dev/null" })).toBe("none")
  })

  it("with the functions that nobody has called", () => {
    const directory = kept({ MICROVM_CACHE_DIR: cache })
    const files = NodeFs.readdirSync(directory).map((file) => NodeFs.readFileSync(join(directory, file), "latin1"))
    expect(files.filter((text) => text.includes("said in vain"))).toHaveLength(1)
  })
})
