/** Runs that go on without us: a state directory of a test's own, the executable as it is built, and what both leave behind. */
import * as Schema from "effect/Schema"
import * as NodeChildProcess from "node:child_process"
import * as NodeCrypto from "node:crypto"
import { once } from "node:events"
import * as NodeFs from "node:fs"
import * as NodeOs from "node:os"
import * as NodePath from "node:path"
import { fileURLToPath } from "node:url"
import { Listed } from "../../src/cli/MachineCommands.ts"
import { RunInfo } from "../../src/cli/RunDirectory.ts"
import { Recovered } from "../../src/supervisor/Supervisor.ts"
import { descendants, type Process, processes, sleep, until } from "../cli/executable.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))

const qemu = process.env["MICROVM_QEMU_BIN"] ?? `qemu-system-${process.arch === "arm64" ? "aarch64" : "x86_64"}`

/** Why there can be no runs here. */
export const noRuns: string | undefined = NodeChildProcess.spawnSync(qemu, ["--version"]).status === 0
  ? undefined
  : `${qemu} is not found`

/** Builds the executable, and gives a copy of it that a later build does not change. It starts in a fourth of the source's time. */
export const install = (): { readonly bin: string; readonly remove: () => void } => {
  NodeChildProcess.execFileSync(process.execPath, ["scripts/setup.mjs", "dist"], { cwd: root, stdio: "pipe" })
  const copy = NodeFs.mkdtempSync(NodePath.join(root, "node_modules", ".microvm-test-"))
  NodeFs.chmodSync(copy, 0o755)
  NodeFs.cpSync(NodePath.join(root, "dist"), NodePath.join(copy, "dist"), { recursive: true })
  NodeFs.cpSync(NodePath.join(root, "package.json"), NodePath.join(copy, "package.json"))
  const bin = NodePath.join(copy, "dist", "cli", "bin.js")
  NodeChildProcess.execFileSync(process.execPath, [bin, "image", "build"], { stdio: "pipe" })
  return { bin, remove: () => NodeFs.rmSync(copy, { recursive: true }) }
}

export interface Done {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

export interface StartOptions {
  /** Given as it is, and then ended; `null` is a pipe that stays open. Default: nothing. */
  readonly stdin?: string | Buffer | null
  /** A command line that runs what comes after it. Default that of the runs. */
  readonly within?: ReadonlyArray<string>
  readonly env?: Readonly<Record<string, string>>
  /** After how long is it killed. Default two minutes: it may have to make a golden machine first. */
  readonly timeout?: number
}

/** A command of the executable that goes on. */
export interface Started {
  readonly child: NodeChildProcess.ChildProcess
  readonly pid: number
  /** All that it has said so far. */
  readonly said: () => { readonly stdout: Buffer; readonly stderr: string }
  readonly says: (text: string) => Promise<void>
  readonly end: Promise<Done>
}

export const decodeListed = Schema.decodeUnknownSync(Schema.fromJsonString(Schema.Array(Listed)))
export const decodeRecovered = Schema.decodeUnknownSync(Schema.fromJsonString(Schema.Array(Recovered)))
const decodeInfo = Schema.decodeUnknownOption(Schema.fromJsonString(RunInfo))

/** What a file of /proc says, and nothing once its process is gone. */
export const text = (path: string): string => {
  try {
    return NodeFs.readFileSync(path, "utf8")
  } catch {
    return ""
  }
}

const walk = (directory: string): ReadonlyArray<string> =>
  NodeFs.existsSync(directory)
    ? NodeFs.readdirSync(directory, { recursive: true, encoding: "utf8" }).map((file) => NodePath.join(directory, file))
    : []

let count = 0

/** A state directory with its runs. Whatever is left of them ends with it. */
export class Runs implements AsyncDisposable {
  /** What the names of its machines begin with, so that they are told from all others. */
  readonly prefix = `t${process.pid}-${++count}-`
  readonly directory: string
  readonly state: string
  readonly temporary: string
  private readonly bin: string
  private readonly within: ReadonlyArray<string>
  private readonly env: Readonly<Record<string, string>>
  private names = 0

  constructor(
    bin: string,
    options: {
      readonly within?: ReadonlyArray<string>
      readonly state?: string
      readonly env?: Readonly<Record<string, string>>
    } = {}
  ) {
    this.bin = bin
    this.env = options.env ?? {}
    this.within = options.within ?? []
    this.directory = NodeFs.mkdtempSync(NodePath.join(NodeOs.tmpdir(), "microvm-runs-"))
    NodeFs.chmodSync(this.directory, 0o755)
    this.state = options.state ?? NodePath.join(this.directory, "state")
    this.temporary = NodePath.join(this.directory, "tmp")
    NodeFs.mkdirSync(this.temporary, { mode: 0o1777 })
    NodeFs.chmodSync(this.temporary, 0o1777)
  }

  name(): string {
    return `${this.prefix}${++this.names}`
  }

  start(args: ReadonlyArray<string>, options: StartOptions = {}): Started {
    const { env = {}, stdin = "", timeout = 120_000, within = this.within } = options
    const [program = "", ...rest] = [...within, process.execPath, this.bin, ...args]
    const child = NodeChildProcess.spawn(program, rest, {
      env: { ...process.env, MICROVM_STATE_DIR: this.state, TMPDIR: this.temporary, ...this.env, ...env },
      stdio: "pipe"
    })
    const stdout: Array<Buffer> = []
    let stderr = ""
    child.stdout.on("data", (chunk: Buffer) => stdout.push(chunk))
    child.stderr.on("data", (chunk: Buffer) => {
      stderr += chunk.toString()
    })
    child.stdin.on("error", () => {})
    child.stdout.on("error", () => {})
    if (stdin !== null) child.stdin.end(stdin)
    const late = setTimeout(() => child.kill("SIGKILL"), timeout)
    const end = once(child, "close").then(([code]: ReadonlyArray<unknown>): Done => {
      clearTimeout(late)
      return { code: typeof code === "number" ? code : null, stdout: Buffer.concat(stdout).toString(), stderr }
    })
    const said = () => ({ stdout: Buffer.concat(stdout), stderr })
    return {
      child,
      pid: child.pid ?? 0,
      said,
      end,
      says: (what) =>
        until(`${what} from ${args.join(" ")}`, () => {
          if (said().stdout.includes(what) || stderr.includes(what)) return true
          if (child.exitCode !== null) throw new Error(`it ended before it said ${what}: ${stderr}`)
          return false
        })
    }
  }

  microvm(...args: ReadonlyArray<string>): Promise<Done> {
    return this.start(args).end
  }

  /** A machine in the background, whose command runs. */
  async up(args: ReadonlyArray<string>): Promise<string> {
    const id = this.name()
    const { code, stderr, stdout } = await this.microvm("run", "--detach", "--name", id, ...args)
    if (code !== 0 || stdout !== `${id}\n`) throw new Error(`run --detach: ${code} ${JSON.stringify(stdout)} ${stderr}`)
    return id
  }

  async sh(script: string): Promise<string> {
    return this.up(["--", "sh", "-c", script])
  }

  async listed(...flags: ReadonlyArray<string>): Promise<ReadonlyArray<Listed>> {
    return decodeListed((await this.microvm("ps", "--json", ...flags)).stdout)
  }

  async look(id: string): Promise<Listed | undefined> {
    return (await this.listed("--all")).find((one) => one.id === id)
  }

  async recover(...flags: ReadonlyArray<string>): Promise<Done & { readonly recovered: ReadonlyArray<Recovered> }> {
    const done = await this.microvm("recover", "--json", ...flags)
    if (!done.stdout.startsWith("[")) throw new Error(`recover: ${done.code} ${done.stdout} ${done.stderr}`)
    return { ...done, recovered: decodeRecovered(done.stdout) }
  }

  file(id: string, ...names: ReadonlyArray<string>): string {
    return NodePath.join(this.state, "runs", id, ...names)
  }

  info(id: string): RunInfo | undefined {
    const decoded = decodeInfo(text(this.file(id, "options.json")))
    return decoded._tag === "Some" ? decoded.value : undefined
  }

  supervisor(id: string): number {
    const pid = this.info(id)?.supervisor.pid
    if (pid === undefined) throw new Error(`nothing is known of ${id}`)
    return pid
  }

  /** The program that holds the machine of a run. */
  holder(id: string): number {
    const inside = `${this.file(id)}/`
    const found = processes().find(({ directory, line }) => directory.startsWith(inside) && line.includes("older"))
    if (found === undefined) throw new Error(`nobody holds ${id}`)
    return found.pid
  }

  /** Whose they are is known by what they were started with and where they are, and by who started them. */
  processes(): ReadonlyArray<Process> {
    const mark = `TMPDIR=${this.temporary}\0`
    const own = processes().filter(({ directory, line, pid }) =>
      pid !== process.pid &&
      (line.includes(this.prefix) || line.includes(this.directory) || directory.startsWith(this.directory) ||
        text(`/proc/${pid}/environ`).includes(mark))
    )
    const all = own.concat(own.flatMap(({ pid }) => descendants(pid)))
    return [...new Map(all.map((one) => [one.pid, one])).values()]
  }

  /** All that there is beside what is kept of runs that are over, with the half of a file of who was killed while it wrote. */
  traces(): ReadonlyArray<string> {
    const kept =
      /^(control-key|tmp|users|users\/(next|slots)|runs|runs\/[^/]+(\/((options|end|report)\.json(\.new)?|(output|console)\.\d+\.log|journal(\/(lease|held|machines|tmp(\/[^/]+)?|quarantine))?))?)$/
    return [
      ...this.processes().map(({ command, pid }) => `${command}[${pid}]`),
      ...text("/proc/net/unix").split("\n").filter((line) => line.includes(this.prefix)),
      ...walk(this.temporary),
      ...walk(this.state).filter((file) => {
        const inside = NodePath.relative(this.state, file)
        return !kept.test(inside) && !inside.startsWith("addresses")
      })
    ]
  }

  async nothingLeft(within = 60_000): Promise<void> {
    let left = this.traces()
    for (const deadline = Date.now() + within; left.length > 0; left = this.traces()) {
      if (Date.now() > deadline) throw new Error(`left: ${left.join(", ")}`)
      await sleep(50)
    }
  }

  /** Of all that is in the state directory but for who looked at it: where it is, what it is, and when it was written. */
  digest(): string {
    const hash = NodeCrypto.createHash("sha256")
    for (const file of walk(this.state).filter((one) => !one.endsWith("/lease.json")).toSorted()) {
      const { mode, mtimeMs } = NodeFs.lstatSync(file)
      const isFile = NodeFs.lstatSync(file).isFile()
      hash.update(`${file} ${mode} ${isFile ? `${mtimeMs} ${text(file)}` : ""}\n`)
    }
    return hash.digest("hex")
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.processes().length > 0) {
      for (const { id } of await this.listed().catch(() => [])) await this.microvm("stop", "--force", id)
      await this.start(["recover", "--kill"]).end
      for (const { pid } of this.processes()) {
        try {
          process.kill(pid, "SIGKILL")
        } catch {
          // It has ended by itself.
        }
      }
      await until("the end of what was started", () => this.processes().length === 0)
    }
    NodeFs.rmSync(this.directory, { recursive: true, force: true })
  }
}
