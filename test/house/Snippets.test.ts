import { execFile, spawnSync } from "node:child_process"
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { pathToFileURL } from "node:url"
import { promisify } from "node:util"
import { afterAll, describe, expect, it } from "vitest"
import { check } from "./check.ts"
import { isRecord, readManifest } from "./manifest.ts"
import { exampleTag, runnable, type Snippet, snippets } from "./snippets.ts"
import { filesBelow, readText, root } from "./source.ts"

const pages = [
  "README.md",
  ...readdirSync(join(root, "docs")).filter((name) => name.endsWith(".md")).map((name) => `docs/${name}`)
]
const written = [...pages, ...filesBelow("src")].flatMap((path) => snippets(path, readText(path)))
const where = ({ line, path }: Snippet) => `${path}:${line}`

const typeScript = written.filter(({ tag }) => tag === exampleTag || /^ts\b/.test(tag))
const shell = written.filter(({ tag }) => tag === "sh")

// Below the project, so that its own name and its dependencies resolve as they do for a user.
const cache = join(root, ".cache")
mkdirSync(cache, { recursive: true })
const folder = mkdtempSync(join(cache, "snippets-"))
const fileOf = (snippet: Snippet) => join(folder, `${where(snippet).replaceAll(/[/:]/g, "_")}.ts`)
afterAll(() => rmSync(folder, { recursive: true, force: true }))

describe("documentation", () => {
  it("says in which language each block is", () => {
    expect(written.filter(({ path, tag }) => path.endsWith(".md") && tag === "").map(where)).toEqual([])
  })

  it("shows TypeScript that compiles", () => {
    for (const snippet of typeScript) writeFileSync(fileOf(snippet), `${snippet.code}\nexport {}\n`)
    const compilerOptions = { noUnusedLocals: false, noUnusedParameters: false }
    writeFileSync(
      join(folder, "tsconfig.json"),
      JSON.stringify({ extends: "../../tsconfig.json", compilerOptions, include: ["*.ts"] })
    )
    const { stderr, stdout } = spawnSync(
      join(root, "node_modules", ".bin", "tsc"),
      ["-p", folder, "--pretty", "false"],
      { cwd: folder, encoding: "utf8" }
    )
    // What is wrong in src itself is for `npm run types` to say.
    const faults = stdout.split(/\n(?=\S)/).filter((fault) => fault.trim() !== "" && !fault.startsWith("../../"))
    expect([...faults, stderr].join("\n")).toBe("")
  })
})

describe("documentation shows programs that run", () => {
  const checkUrl = JSON.stringify(pathToFileURL(join(import.meta.dirname, "check.ts")).href)

  it.each(typeScript.filter(({ tag }) => tag === "ts run").map((snippet) => [where(snippet), snippet] as const))(
    "%s",
    async (_, snippet) => {
      const file = fileOf(snippet).replace(/\.ts$/, ".run.ts")
      writeFileSync(
        file,
        `import { check as __check } from ${checkUrl}\n${runnable(snippet.code, { insideFunction: false })}`
      )
      const ended = promisify(execFile)(process.execPath, ["--conditions=@effect-microvm-runtime/source", file], {
        cwd: folder,
        timeout: 60_000
      })
      await expect(ended).resolves.toBeDefined()
    }
  )
})

/** `npm run x`, `npm test`, `npx microvm y`, with environment, comments and arguments around them. */
const commandsIn = (snippet: Snippet) =>
  Array.from(
    snippet.code.matchAll(/\b(npm|npx) (?:run )?([a-z][\w:-]*)(?: ([a-z][\w-]*))?/g),
    ([, runner, first = "", second]) => ({
      runner,
      first,
      second,
      at: where(snippet)
    })
  )

describe("shell blocks name commands that exist", () => {
  const manifest = readManifest(root)
  const commands = shell.flatMap(commandsIn)

  it("finds them", () => {
    const code =
      "npm run demo # shows it\nA=1 npm test -- x\nnpx microvm run -- sh -c 'exit 7'\nnpx microvm --version\nnpm install x"
    expect(
      commandsIn({ path: "p", line: 1, tag: "sh", code }).map(({ first, runner, second }) => [runner, first, second])
    ).toEqual([
      ["npm", "demo", undefined],
      ["npm", "test", undefined],
      ["npx", "microvm", "run"],
      ["npx", "microvm", undefined],
      ["npm", "install", "x"]
    ])
  })

  it("npm scripts", () => {
    const own = new Set(["install", "ci", "pack"])
    const missing = commands.filter(({ first, runner }) =>
      runner === "npm" && !own.has(first) && !(first in (manifest.scripts ?? {}))
    )
    expect(missing).toEqual([])
  })

  it("programs of the package", () => {
    expect(
      commands.filter(({ first, runner }) => runner === "npx" && !(isRecord(manifest.bin) && first in manifest.bin))
    ).toEqual([])
  })

  it("commands of microvm", () => {
    const command = join(root, "dist", "cli", "bin.js")
    const subcommands = new Set(
      commands.flatMap(({ first, second }) => first === "microvm" && second !== undefined ? [second] : [])
    )
    const help = (args: ReadonlyArray<string>) =>
      spawnSync(process.execPath, [command, ...args, "--help"], { encoding: "utf8" })
    const listed = help([]).stdout.split(/\W+/)
    expect([...subcommands].filter((name) => !listed.includes(name) || help([name]).status !== 0)).toEqual([])
  })
})

describe("runnable", () => {
  const isExample = (u: unknown): u is (check_: typeof check) => Promise<void> => typeof u === "function"
  const run = async (code: string) => {
    const text = `export default async (__check) => {\n${runnable(code, { insideFunction: true })}\n}`
    const loaded: unknown = await import(
      `data:text/javascript,${encodeURIComponent(text)}`
    )
    if (!isRecord(loaded) || !isExample(loaded["default"])) throw new Error("the module has its default export")
    await loaded["default"](check)
  }

  it.each([
    ["an expression", `1 + 1 // => 2`],
    ["a constant", `const a = [1]\nconst b = a.concat(2) // => [1, 2]\nb.length // => 2`],
    ["an object", `({ a: 1 }) // => { a: 1 }`],
    ["over several lines", `[1, 2]\n  .map((x) => x + 1) // => [2, 3]`],
    ["a promise", `await Promise.resolve("x") // => "x"`],
    [
      "with imports",
      [
        `import * as Path from "node:path"`,
        `import {`,
        `  join as j,`,
        `  type ParsedPath`,
        `} from "node:path"`,
        `import os from "node:os"`,
        `import type { X } from "x"`,
        `[j("a", "b"), os.EOL] // => [Path.join("a", "b"), "\\n"]`
      ].join("\n")
    ]
  ])("checks %s", async (_, code) => {
    await run(code)
    await expect(run(code.replace(/\/\/ => [^\n]*$/, "// => 0"))).rejects.toThrow(
      "Expected values to be strictly deep-equal"
    )
  })

  it("rejects an expectation that it could not check", () => {
    expect(() => runnable("if (a) {\n  b() // => 1\n}", { insideFunction: true })).toThrow("nothing would check it")
    expect(() => runnable("// => 1", { insideFunction: true })).toThrow("nothing would check it")
  })
})

describe("snippets", () => {
  it("finds the fences of markdown and of JSDoc", () => {
    const markdown = "Text\n\n```ts run\nconst a = 1\n```\n\n```sh\n$ x\n```\n"
    expect(snippets("a.md", markdown)).toEqual([
      { path: "a.md", line: 4, tag: "ts run", code: "const a = 1" },
      { path: "a.md", line: 8, tag: "sh", code: "$ x" }
    ])
    const jsDoc =
      "/**\n * Text\n *\n * ```ts import.meta.vitest\n * if (a) {\n *   b()\n * }\n *\n * c\n * ```\n */\nconst d = `\n\\`\\`\\``"
    expect(snippets("a.ts", jsDoc)).toEqual([
      { path: "a.ts", line: 5, tag: exampleTag, code: "if (a) {\n  b()\n}\n\nc" }
    ])
  })

  it("rejects a fence that is left open", () => {
    expect(() => snippets("a.md", "```ts\n")).toThrow("a.md:1: a fence is not closed")
  })
})
