import { execFile } from "node:child_process"
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync
} from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { promisify } from "node:util"
import { afterAll, beforeAll, describe, expect, it } from "vitest"
import { isRecord, readManifest } from "./manifest.ts"
import { root } from "./source.ts"
import { subpaths } from "./surface.ts"

const name = "effect-microvm-runtime"
const modules = (project: string) => join(project, "node_modules")

/** Runs a program to its end; a failure shows what it printed. */
const run = (cwd: string, program: string, ...args: ReadonlyArray<string>) =>
  promisify(execFile)(program, args, { cwd, maxBuffer: 16 * 1024 * 1024 }).catch((error: unknown) => {
    const { stderr, stdout } = Object.assign({ stdout: "", stderr: "" }, error)
    throw new Error(`${[program, ...args].join(" ")} failed:\n${stdout}${stderr}`, { cause: error })
  })

// Outside of this project, so that nothing is found above it.
const project = mkdtempSync(join(tmpdir(), `${name}-pack-`))
const installed = join(modules(project), name)
afterAll(() => rmSync(project, { recursive: true, force: true }))

const cases = subpaths().map((subpath) => [subpath] as const)

beforeAll(async () => {
  await run(root, "npm", "pack", "--pack-destination", project)
  const tarball = readdirSync(project).find((file) => file.endsWith(".tgz")) ?? ""
  writeFileSync(join(project, "package.json"), JSON.stringify({ name: "empty", private: true, type: "module" }))
  // The tarball alone comes from npm; peers and what they need are those of this project, so that no network is needed.
  await run(
    project,
    "npm",
    "install",
    "--offline",
    "--no-audit",
    "--no-fund",
    "--legacy-peer-deps",
    join(project, tarball)
  )
  for (const peer of ["effect", "@effect", "@types"]) {
    symlinkSync(join(modules(root), peer), join(modules(project), peer))
  }
}, 120_000)

describe("the packed package", () => {
  it("asks for the exact peers it was built with, and for nothing else but what is optional", () => {
    const { dependencies, peerDependencies, peerDependenciesMeta } = readManifest(installed)
    const versionOf = (peer: string) => readManifest(join(modules(root), peer)).version
    expect({ dependencies, peerDependencies, peerDependenciesMeta }).toEqual({
      dependencies: undefined,
      peerDependencies: {
        "@effect/platform-node": versionOf("@effect/platform-node"),
        "@electric-sql/pglite": ">=0.5 <0.6",
        effect: versionOf("effect"),
        koffi: ">=3.3 <4"
      },
      peerDependenciesMeta: { "@electric-sql/pglite": { optional: true }, koffi: { optional: true } }
    })
  })

  it("has its licence and its documents, and nothing that is ours alone", () => {
    expect(readdirSync(installed).toSorted()).toEqual([
      "CHANGELOG.md",
      "LICENSE",
      "README.md",
      "dist",
      "docs",
      "examples",
      "package.json",
      "src"
    ])
  })

  it("has all that its documents lead to, but for tests and workflows", () => {
    const documents = ["README.md", ...readdirSync(join(installed, "docs")).map((file) => join("docs", file))]
    const lost = documents.flatMap((document) =>
      Array.from(readFileSync(join(installed, document), "utf8").matchAll(/\]\((?![a-z]+:|#)([^)#\s]+)/g))
        .map(([, to = ""]) => join(dirname(document), to))
        .filter((to) => !/^(test|[.]github)\//.test(to) && !existsSync(join(installed, to)))
    )
    expect(lost).toEqual([])
  })

  it.each(cases)("imports %s", async (subpath) => {
    const file = join(project, `import-${subpath}.mjs`)
    writeFileSync(file, `import * as all from "${name}/${subpath}"\nconsole.log(JSON.stringify(Object.keys(all)))\n`)
    const { stdout } = await run(project, process.execPath, file)
    expect(JSON.parse(stdout)).not.toEqual([])
  })

  it("has maps that lead to its sources", () => {
    const dist = join(installed, "dist")
    const lost = readdirSync(dist, { recursive: true, encoding: "utf8" }).flatMap((file) => {
      // The command has the sources of its peers in it too.
      if (!file.endsWith(".map") || (/^cli.*[.]js[.]map$/.test(file) && file !== join("cli", "index.js.map"))) return []
      const map: unknown = JSON.parse(readFileSync(join(dist, file), "utf8"))
      const sources: ReadonlyArray<unknown> = isRecord(map) && Array.isArray(map["sources"]) ? map["sources"] : [map]
      return sources.map(String).filter((source) => !existsSync(join(dist, dirname(file), source)))
    })
    expect(lost).toEqual([])
  })

  it("keeps what is internal to itself", async () => {
    const file = join(project, "internal.mjs")
    writeFileSync(file, `await import("${name}/process/internal/x")`)
    await expect(run(project, process.execPath, file)).rejects.toThrow("ERR_PACKAGE_PATH_NOT_EXPORTED")
  })

  it.each(["esm", "cjs"])(
    "can be bundled (%s), but for what takes a program of its own, and that is told",
    async (format) => {
      const program = `
      import * as NodeServices from "@effect/platform-node/NodeServices"
      import { NodeProcessHolder, NodeProcessHost, NodeProcessSpawner, ProcessHolder, ProcessSpawner } from "${name}/process"
      import { Service } from "${name}/service"
      import * as Effect from "effect/Effect"
      import * as ChildProcess from "effect/process/ChildProcess"
      import * as Layer from "effect/Layer"
      const command = ChildProcess.make("true", { stdin: "ignore" })
      const main = Effect.gen(function*() {
        const child = yield* ProcessSpawner.ProcessSpawner.use(({ spawn }) => spawn(command))
        console.log(typeof Service.make, (yield* child.exit)._tag)
        const hold = ProcessHolder.ProcessHolder.use(({ spawn }) => spawn(command, { directory: process.argv[2] }))
        console.log((yield* Effect.flip(hold)).message)
      })
      const layer = Layer.mergeAll(
        NodeProcessSpawner.layer,
        NodeProcessHolder.layer.pipe(Layer.provide(NodeProcessHost.layer))
      )
      Effect.runPromise(main.pipe(Effect.scoped, Effect.provide(layer), Effect.provide(NodeServices.layer)))
    `
      writeFileSync(join(project, "bundled.ts"), program)
      const out = join(project, format === "esm" ? "bundled.mjs" : "bundled.cjs")
      const esbuild = join(modules(root), ".bin", "esbuild")
      const flags = ["--bundle", "--platform=node", "--log-level=error", `--format=${format}`, `--outfile=${out}`]
      await run(project, esbuild, join(project, "bundled.ts"), ...flags)
      const held = mkdtempSync(join(project, "held-"))
      const { stdout } = await run(project, process.execPath, out, held)
      expect(stdout.split("\n").slice(0, 2)).toEqual([
        "function Exited",
        `${held}: the holder of the process there: its program is not here, as in a bundle: leave ${name} out of it (external)`
      ])
    }
  )

  it("brings types that hold by themselves", async () => {
    const imports = subpaths().map((subpath, index) => `import * as folder${index} from "${name}/${subpath}"`)
    const program = [
      ...imports,
      `import * as Effect from "effect/Effect"`,
      `import { ExitStatus } from "${name}/lifecycle"`,
      `export const code: number = ExitStatus.toCode(ExitStatus.exited(7))`,
      `// @ts-expect-error: types are there, and are no \`any\``,
      `export const wrong: string = ExitStatus.toCode(ExitStatus.exited(7))`,
      `export const program: Effect.Effect<number> = Effect.succeed(code)`,
      `export const all = [${imports.map((_, index) => `folder${index}`).join(", ")}]`
    ]
    writeFileSync(join(project, "program.ts"), program.join("\n"))
    const compilerOptions = {
      target: "ES2024",
      // Effect's own declarations name types of the DOM and of Node.
      lib: ["ES2024", "ESNext.Disposable", "DOM", "DOM.Iterable"],
      types: ["node"],
      module: "NodeNext",
      strict: true,
      exactOptionalPropertyTypes: true,
      skipLibCheck: false,
      noEmit: true
    }
    writeFileSync(join(project, "tsconfig.json"), JSON.stringify({ compilerOptions, files: ["program.ts"] }))
    await expect(run(project, join(modules(root), ".bin", "tsc"), "-p", project)).resolves.toBeDefined()
  })

  it("brings the command microvm, which starts without the peers", async () => {
    const alone = join(project, "alone")
    mkdirSync(alone)
    cpSync(join(installed, "dist", "cli"), alone, { recursive: true })
    cpSync(join(installed, "package.json"), join(alone, "package.json"))
    const { stdout } = await run(alone, join(alone, "bin.js"), "--version")
    expect(stdout).toContain(readManifest(installed).version)
    // The version alone is told without the program.
    const help = await run(alone, join(alone, "bin.js"), "--help")
    expect(help.stdout).toContain("microvm <subcommand>")
    const linked = await run(project, join(modules(project), ".bin", "microvm"), "--version")
    expect(linked.stdout).toBe(stdout)
  })
})

// `engines` promise it, and all else here runs on a newer one.
const oldest = `${readManifest(root).engines?.["node"]?.replace(/^>=/, "")}.0`
const oldestNode = join(project, "oldest", "node_modules", `node-linux-${process.arch}`, "bin", "node")

/** Why the oldest Node is not to be had here, if it is not. */
const lacking = await (async () => {
  mkdirSync(join(project, "oldest"))
  writeFileSync(join(project, "oldest", "package.json"), JSON.stringify({ private: true }))
  const wanted = `node-linux-${process.arch}@${oldest}`
  try {
    await promisify(execFile)(
      "npm",
      ["install", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=0", wanted],
      { cwd: join(project, "oldest"), timeout: 60_000 }
    )
    return undefined
  } catch (error) {
    const { message, stderr } = Object.assign({ message: "", stderr: "" }, error)
    const first = stderr.split("\n").find((line) => line.startsWith("npm error"))
    return `npm cannot install ${wanted}: ${first ?? message}`
  }
})()
if (lacking !== undefined) console.warn(`skipped: the packed package on the oldest Node, for ${lacking}`)

describe.skipIf(lacking !== undefined)(`the packed package on Node ${oldest}`, () => {
  const start = (...args: ReadonlyArray<string>) => run(project, oldestNode, ...args)

  it("is on that Node", async () => {
    expect((await start("--version")).stdout).toBe(`v${oldest}\n`)
  })

  it("imports every subpath", async () => {
    const file = join(project, "imports.mjs")
    writeFileSync(file, subpaths().map((subpath) => `await import("${name}/${subpath}")`).join("\n"))
    expect(await start(file)).toEqual({ stdout: "", stderr: "" })
  })

  it("brings the command microvm", async () => {
    const command = join(installed, "dist", "cli", "bin.js")
    expect((await start(command, "--version")).stdout).toBe(`microvm v${readManifest(installed).version}\n`)
    expect((await start(command, "run", "--help")).stdout).toContain("microvm run [flags]")
    // It exits with 69 where no machine can run.
    const diagnosis = await start(command, "doctor", "--json").then(
      ({ stdout }) => stdout,
      (error: unknown) => error instanceof Error && isRecord(error.cause) ? String(error.cause["stdout"]) : ""
    )
    expect(JSON.parse(diagnosis)).toHaveProperty("usable")
  })

  it("ends a process with its scope", async () => {
    writeFileSync(
      join(project, "process.ts"),
      `import { ShutdownPolicy } from "${name}/lifecycle"
import { NodeProcessSpawner, ProcessSpawner } from "${name}/process"
import * as Effect from "effect/Effect"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Stream from "effect/Stream"

const program = Effect.gen(function*() {
  const { spawn } = yield* ProcessSpawner.ProcessSpawner
  const child = yield* Effect.scoped(Effect.gen(function*() {
    const command = ChildProcess.make("sh", ["-c", "trap '' TERM; echo ready; sleep 60"])
    const child = yield* spawn(command, { policy: ShutdownPolicy.signals({ grace: "50 millis" }) })
    yield* Stream.runDrain(Stream.take(child.stdout, 1))
    return child
  }))
  const status = yield* child.exit
  console.log(status._tag, "signal" in status ? status.signal : "")
})
await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(NodeProcessSpawner.layer)))
`
    )
    expect((await start("process.ts")).stdout).toBe("Signaled SIGKILL\n")
  })

  it("ends a service in order", async () => {
    writeFileSync(
      join(project, "service.ts"),
      `import { Service, Task } from "${name}/service"
import * as Effect from "effect/Effect"

const task = Task.make("task", Effect.andThen(Effect.sync(() => process.kill(process.pid, "SIGTERM")), Effect.never))
Service.main(Service.make({ name: "old", version: "1.0.0", parts: [task] }))
`
    )
    await expect(start("service.ts")).rejects.toMatchObject({ cause: { code: 10 } })
  })
})
