import { type ChildProcess, spawn } from "node:child_process"
import {
  chmodSync,
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
import { delimiter, join } from "node:path"
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest"
import { readManifest } from "./manifest.ts"
import { root } from "./source.ts"

// A clone of a small project, on a machine whose npm, apt-get and sudo are scripts that write down how they were called.
let clone: string
let programs: string
const children = new Set<ChildProcess>()

beforeEach(() => {
  clone = mkdtempSync(join(tmpdir(), "effect-microvm-runtime-setup-"))
  programs = join(clone, "programs")
  mkdirSync(programs)
  mkdirSync(join(clone, "scripts"))
  mkdirSync(join(clone, "src"))
  cpSync(join(root, "scripts", "setup.mjs"), join(clone, "scripts", "setup.mjs"))
  for (const file of ["package.json", "tsconfig.json", "tsconfig.build.json"]) writeFileSync(join(clone, file), "{}")
  lock("1.0.0")
  program("npm", npm)
  program("qemu-system-x86_64", "")
  // The project's own build, in small.
  writeFileSync(
    join(clone, "scripts", "build.mjs"),
    `import * as fs from "node:fs"\nfs.mkdirSync("dist", { recursive: true })\nfs.writeFileSync("dist/.stamp", process.argv[2])\n` +
      `fs.appendFileSync("calls", "build\\n")\n`
  )
})

afterEach(() => {
  for (const child of children) child.kill("SIGKILL")
  children.clear()
  rmSync(clone, { recursive: true, force: true })
})

const program = (name: string, script: string) => {
  writeFileSync(join(programs, name), `#!/bin/bash\necho "${name} $*" >> "${clone}/calls"\n${script}\n`)
  chmodSync(join(programs, name), 0o755)
}

const lock = (version: string) => {
  const packages = { "": {}, "node_modules/a": { version, integrity: `sha512-${version}` } }
  const other = { "node_modules/other-platform": { version, optional: true } }
  writeFileSync(join(clone, "package-lock.json"), JSON.stringify({ packages: { ...packages, ...other } }))
  writeFileSync(join(clone, "installed.json"), JSON.stringify({ packages }))
}

/** Lays down what the lock file says, as slowly as the file `slow` says, and the record of it last. */
const npm = `
[ "$1" = ci ] || exit 64
rm -rf node_modules
mkdir -p node_modules/a node_modules/.bin
sleep "$(cat slow 2> /dev/null || echo 0)"
echo '{}' > node_modules/a/package.json
ln -s "${process.execPath}" node_modules/.bin/node
cp installed.json node_modules/.package-lock.json
echo "npm ended" >> calls`

const calls = () =>
  existsSync(join(clone, "calls"))
    ? readFileSync(join(clone, "calls"), "utf8").split("\n").filter((call) => call !== "")
    : []

interface Machine {
  readonly path: string
  readonly user: "root" | "somebody"
}

const start = ({ path, user }: Machine, ...steps: ReadonlyArray<string>) => {
  const { npm_execpath: _, ...environment } = process.env
  const child = spawn(process.execPath, [join(clone, "scripts", "setup.mjs"), ...steps], {
    env: {
      ...environment,
      PATH: [join(clone, "node_modules", ".bin"), path].join(delimiter),
      NODE_OPTIONS: `--import=data:text/javascript,process.getuid=()=>${user === "root" ? 0 : 1000}`
    },
    stdio: ["ignore", "pipe", "pipe"]
  })
  children.add(child)
  let said = ""
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    said += text
  })
  const ended = new Promise<{ readonly code: number | null; readonly signal: string | null; readonly said: string }>((
    resolve
  ) => child.on("close", (code, signal) => resolve({ code, signal, said })))
  return { child, ended }
}

const machine = (): Machine => ({ path: [programs, "/usr/bin", "/bin"].join(delimiter), user: "root" })

const setup = (...steps: ReadonlyArray<string>) => start(machine(), ...steps).ended

describe("set-up", () => {
  it("does all that is missing, then nothing", async () => {
    expect(await setup()).toMatchObject({ code: 0 })
    expect(calls().map((call) => call.split(" ")[0])).toEqual(["npm", "npm", "build"])
    expect(readdirSync(join(clone, "node_modules")).toSorted()).toEqual([".bin", ".package-lock.json", "a"])
    rmSync(join(clone, "calls"))
    const second = await setup()
    expect({ ...second, calls: calls() }).toEqual({
      code: 0,
      signal: null,
      said: "setup: guest image: skipped, there is no src/cli/bin.ts to build it with\n",
      calls: []
    })
  })

  it.each<readonly [what: string, change: () => void, done: ReadonlyArray<string>]>([
    ["the lock file changed", () => lock("1.0.1"), ["npm", "npm", "build"]],
    ["a package is gone", () => rmSync(join(clone, "node_modules", "a"), { recursive: true }), ["npm", "npm"]],
    ["npm was interrupted", () => rmSync(join(clone, "node_modules", ".package-lock.json")), ["npm", "npm"]],
    ["the project's node is gone", () => rmSync(join(clone, "node_modules", ".bin", "node")), ["npm", "npm"]],
    ["a source changed", () => writeFileSync(join(clone, "src", "A.ts"), "1"), ["build"]],
    ["dist is gone", () => rmSync(join(clone, "dist"), { recursive: true }), ["build"]]
  ])("does again what is not so any more: %s", async (_, change, done) => {
    await setup()
    rmSync(join(clone, "calls"))
    change()
    expect(await setup()).toMatchObject({ code: 0 })
    expect(calls().map((call) => call.split(" ")[0])).toEqual(done)
    rmSync(join(clone, "calls"))
    await setup()
    expect(calls()).toEqual([])
  })

  it("does only the steps that are named", async () => {
    expect(await setup("npm")).toMatchObject({ code: 0 })
    expect(calls().map((call) => call.split(" ")[0])).toEqual(["npm", "npm"])
    expect(await setup("nmp")).toMatchObject({
      code: 64,
      said: "setup: no such step: nmp; there are npm, dist, debian, image\n"
    })
  })

  it("shows what a failed step printed, and ends with its failure", async () => {
    program("npm", "echo to-stdout; echo to-stderr >&2; exit 3")
    const { code, said } = await setup()
    expect(code).toBe(1)
    for (const part of ["to-stdout", "to-stderr", "npm packages", "exit code 3"]) expect(said).toContain(part)
    program("npm", npm)
    expect(await setup()).toMatchObject({ code: 0 })
  })

  it("says what goes on when it takes longer than two seconds", async () => {
    writeFileSync(join(clone, "slow"), "4.5")
    const { said } = await setup("npm")
    expect(said.match(/^setup: npm packages \(npm ci\) … \d\.\d s$/gm)?.length).toBeGreaterThanOrEqual(2)
  })
})

describe("the scripts of package.json", () => {
  const scripts = Object.entries(readManifest(root).scripts ?? {})

  it("begin with the set-up", () => {
    const without = scripts.filter(([, script]) => !script.startsWith("node scripts/setup.mjs")).map(([name]) => name)
    expect(without).toEqual(["lock"])
  })

  it("call the project's node by its path: a shell may remember the one it found before there was another", () => {
    const bare = /&& node (?!scripts\/)/
    expect(scripts.filter(([, script]) => bare.test(script)).map(([name]) => name)).toEqual([])
  })
})

describe("set-ups of one clone at the same time", () => {
  it("work one after the other", async () => {
    writeFileSync(join(clone, "slow"), "1")
    const all = await Promise.all([setup(), setup(), setup()])
    expect(all.map(({ code }) => code)).toEqual([0, 0, 0])
    expect(calls().map((call) => call.split(" ")[0])).toEqual(["npm", "npm", "build"])
  })

  it("go on when the first is killed, without disturbing the npm it has left behind", async () => {
    writeFileSync(join(clone, "slow"), "3")
    const first = start(machine())
    await vi.waitUntil(() => existsSync(join(clone, "node_modules", "a")), { timeout: 20_000 })
    first.child.kill("SIGKILL")
    expect(await first.ended).toMatchObject({ signal: "SIGKILL" })
    const second = await setup()
    expect(second).toMatchObject({ code: 0 })
    expect(second.said).toContain("waiting for another set-up of this clone")
    expect(calls().map((call) => call.split(" ")[0])).toEqual(["npm", "npm", "build"])
  })

  it("go on when a signal ends the first, which takes its npm with it", async () => {
    program("npm", `exec sleep 60`)
    const first = start(machine())
    await vi.waitUntil(() => calls().length > 0, { timeout: 20_000 })
    first.child.kill("SIGTERM")
    expect(await first.ended).toMatchObject({ code: 143 })
    program("npm", npm)
    expect(await setup()).toMatchObject({ code: 0 })
  })
})

describe("Debian packages", () => {
  const qemu = "setup: Debian packages: qemu-system-x86 (runs the guests where Firecracker cannot)\n"
  const install = "apt-get install --yes --no-install-recommends -o DPkg::Lock::Timeout=300 qemu-system-x86"

  // A machine that has only what these tests give it: nothing of the real one is on PATH but the tools of the scripts.
  beforeEach(() => {
    rmSync(join(programs, "qemu-system-x86_64"))
    for (const command of ["mount", "pgrep", "python3"]) program(command, "")
    for (const tool of ["cp", "env", "touch", "true"]) symlinkSync(`/usr/bin/${tool}`, join(programs, tool))
  })
  const lays = `[ "$DEBIAN_FRONTEND" = noninteractive ] && cp -P programs/env programs/qemu-system-x86_64`

  const debian = (user: Machine["user"]) => start({ path: programs, user }, "debian").ended

  it("are installed by root without further ado", async () => {
    program("apt-get", lays)
    const { code, said } = await debian("root")
    expect(code).toBe(0)
    expect(said).toContain(qemu)
    expect(calls()).toEqual([install])
    expect(await debian("root")).toMatchObject({ code: 0, said: "" })
  })

  it("are tried again with new lists, when the first try fails", async () => {
    program("dpkg", "")
    program("apt-get", `case $1 in update) touch updated;; install) [ -e updated ] || exit 100; ${lays};; esac`)
    expect(await debian("root")).toMatchObject({ code: 0 })
    expect(calls()).toEqual([install, "dpkg --configure -a", "apt-get update", install])
  })

  it("show what apt-get said when they can't be had", async () => {
    program("dpkg", "")
    program("apt-get", `[ "$1" = update ] || { echo "E: no such package"; exit 100; }`)
    const { code, said } = await debian("root")
    expect(code).toBe(1)
    expect(said).toContain("E: no such package")
  })

  it("are installed through sudo by others", async () => {
    program("apt-get", lays)
    program("sudo", `shift; exec "$@"`)
    expect(await debian("somebody")).toMatchObject({ code: 0 })
    expect(calls()).toEqual([
      "sudo -n true",
      `sudo -n env DEBIAN_FRONTEND=noninteractive ${install}`,
      install
    ])
  })

  it.each([["there is no sudo", undefined], ["sudo asks for a password", "exit 1"]])(
    "are named, with what to type, where %s",
    async (_, sudo) => {
      program("apt-get", lays)
      if (sudo !== undefined) program("sudo", sudo)
      const { code, said } = await debian("somebody")
      expect({ code, calls: calls() }).toEqual({ code: 69, calls: sudo === undefined ? [] : ["sudo -n true"] })
      expect(said).toContain("let an administrator type: apt-get install qemu-system-x86:\n")
      expect(said).toContain("  qemu-system-x86: runs the guests where Firecracker cannot (qemu-system-x86_64)\n")
    }
  )

  it("are asked for when the command is there, which says what else this machine lacks", async () => {
    for (const tool of ["cat", "ln", "mkdir", "rm", "sleep"]) symlinkSync(`/usr/bin/${tool}`, join(programs, tool))
    const { code, said } = await start({ path: programs, user: "somebody" }).ended
    expect({ code, isBuilt: existsSync(join(clone, "dist", ".stamp")) }).toEqual({ code: 69, isBuilt: true })
    expect(said).toContain("there is no apt-get here")
  })

  it("that machines do without do not stop who may not install them", async () => {
    symlinkSync("/usr/bin/env", join(programs, "qemu-system-x86_64"))
    rmSync(join(programs, "mount"))
    const { code, said } = await debian("somebody")
    expect(code).toBe(0)
    expect(said).toContain("machines run without these:\n  mount: ")
    expect(said).not.toContain("done")
  })

  it("are named, with the reason, where there is no apt-get", async () => {
    const { code, said } = await debian("root")
    expect({ code, calls: calls() }).toEqual({ code: 69, calls: [] })
    expect(said).toContain("there is no apt-get here")
    expect(said).toContain("  qemu-system-x86: runs the guests where Firecracker cannot (qemu-system-x86_64)\n")
  })
})
