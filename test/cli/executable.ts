/**
 * The executable as a process of its own, and what it leaves on the host.
 */
import * as NodeChildProcess from "node:child_process"
import * as NodeCrypto from "node:crypto"
import { once } from "node:events"
import * as NodeFs from "node:fs"
import * as NodeOs from "node:os"
import * as NodePath from "node:path"
import { fileURLToPath } from "node:url"

/** The file that is run. */
export const bin = fileURLToPath(new URL("../../src/cli/bin.ts", import.meta.url))

/** Runs another command of the executable to its end. */
export const microvm = (...args: ReadonlyArray<string>) => microvmIn(undefined, ...args)

/** The same, with this cache directory. */
export const microvmIn = (
  cache: string | undefined,
  ...args: ReadonlyArray<string>
): { readonly status: number | null; readonly stdout: string; readonly stderr: string } =>
  NodeChildProcess.spawnSync(process.execPath, [bin, ...args], { encoding: "utf8", env: environment(cache) })

const environment = (cache: string | undefined): NodeJS.ProcessEnv =>
  cache === undefined ? process.env : { ...process.env, MICROVM_CACHE_DIR: cache }

/** A cache directory that has the images which there are, and nothing else. */
export const makeCache = (): string => {
  const { HOME = NodeOs.homedir(), MICROVM_CACHE_DIR, XDG_CACHE_HOME = NodePath.join(HOME, ".cache") } = process.env
  const source = MICROVM_CACHE_DIR ?? NodePath.join(XDG_CACHE_HOME, "effect-microvm-runtime")
  const cache = NodeFs.mkdtempSync(NodePath.join(NodeOs.tmpdir(), "microvm-cache-test-"))
  for (const folder of ["images", "names"]) {
    const [from, to] = [NodePath.join(source, folder), NodePath.join(cache, folder)]
    // Links where both are on one file system.
    if (NodeChildProcess.spawnSync("cp", ["-al", from, to]).status !== 0) NodeFs.cpSync(from, to, { recursive: true })
  }
  return cache
}

export const sleep = (millis: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, millis))

/** Looks again and again until it is so. */
export const until = async (what: string, isSo: () => boolean, within = 60_000): Promise<void> => {
  for (const deadline = Date.now() + within; !isSo(); await sleep(20)) {
    if (Date.now() > deadline) throw new Error(`${what}: not within ${within} ms`)
  }
}

export interface Ended {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

export interface Options {
  /** Given as it is, and then ended; `null` is a pipe that stays open. Default: nothing. */
  readonly stdin?: string | NodeJS.ReadableStream | null
  /** A descriptor that it gets as its stdout. Default: a pipe. */
  readonly stdout?: number
  /** Which of its output is read. Default: both. */
  readonly read?: ReadonlyArray<"stdout" | "stderr">
  /** Its cache directory. Default: the one of the user. */
  readonly cache?: string
  /** Variables beside our own. */
  readonly env?: Readonly<Record<string, string>>
  /** A command line that runs what comes after it. */
  readonly within?: ReadonlyArray<string>
  /** Runs it on a terminal of its own; all that it shows is its stdout then. Default `false`. */
  readonly terminal?: boolean
}

/** The most that is kept of an output. */
const keptBytes = 64 * 1024
const shellWord = (word: string): string => `'${word.replaceAll("'", "'\\''")}'`

let count = 0

/** `microvm run` with a machine of its own name and a directory of its own for temporary files. */
export class Executable implements AsyncDisposable {
  /** None is the beginning of another's. */
  readonly machine = `cli-${process.pid}-${++count}-run`
  readonly temporary = NodeFs.mkdtempSync(NodePath.join(NodeOs.tmpdir(), "microvm-cli-test-"))
  readonly child: NodeChildProcess.ChildProcess
  readonly ended: Promise<Ended>
  stdout = ""
  stderr = ""
  stdoutBytes = 0
  private readonly closed: Promise<unknown>
  private readonly hash = NodeCrypto.createHash("sha256")
  private hasEnded = false

  constructor(
    args: ReadonlyArray<string>,
    { cache, env = {}, read = ["stdout", "stderr"], stdin = "", stdout, terminal = false, within = [] }: Options = {}
  ) {
    const words = [...within, process.execPath, bin, "run", "--name", this.machine, ...args]
    const [program = "", ...rest] = terminal
      ? ["script", "--quiet", "--return", "--flush", "--command", `exec ${words.map(shellWord).join(" ")}`, "/dev/null"]
      : words
    const child = NodeChildProcess.spawn(program, rest, {
      cwd: this.temporary,
      env: { ...environment(cache), ...env, TERM: "xterm", TMPDIR: this.temporary },
      stdio: ["pipe", stdout ?? "pipe", "pipe"]
    })
    this.child = child
    this.closed = once(child, "close")
    this.ended = once(child, "exit").then(([code, signal]: ReadonlyArray<unknown>) => {
      this.hasEnded = true
      return {
        code: typeof code === "number" ? code : null,
        signal: signals.find((one) => one === signal) ?? null
      }
    })
    child.stdin?.on("error", () => {})
    if (typeof stdin === "string") child.stdin?.end(stdin)
    else if (child.stdin !== null) stdin?.pipe(child.stdin)
    if (read.includes("stdout")) {
      child.stdout?.on("data", (chunk: Uint8Array) => {
        this.stdoutBytes += chunk.length
        this.hash.update(chunk)
        if (this.stdout.length < keptBytes) this.stdout += Buffer.from(chunk).toString()
      })
    }
    if (read.includes("stderr")) {
      child.stderr?.on("data", (chunk: Uint8Array) => {
        if (this.stderr.length < keptBytes) this.stderr += Buffer.from(chunk).toString()
      })
    }
  }

  /** The SHA-256 of its whole stdout. */
  digest(): string {
    return this.hash.digest("hex")
  }

  get pid(): number {
    return this.child.pid ?? 0
  }

  kill(signal: NodeJS.Signals): void {
    this.child.kill(signal)
  }

  /** Is its QEMU there? */
  hasMachine(): boolean {
    return descendants(this.pid).some(({ command }) => command.startsWith("qemu"))
  }

  /** Waits until the command has said this. */
  async says(text: string): Promise<void> {
    await until(
      `${text} from the command`,
      () => {
        if (this.hasEnded) throw new Error(`it ended before it said ${text}: ${this.stderr}`)
        return this.stdout.includes(text) || this.stderr.includes(text)
      },
      120_000
    )
  }

  /** Waits for its end and for the end of its output. */
  async end(): Promise<Ended> {
    const ended = await this.ended
    // What nobody has read by now is let go.
    this.child.stdout?.resume()
    this.child.stderr?.resume()
    await this.closed
    return ended
  }

  /** What is written of its machine, until all that it had of this host is gone. */
  records(): ReadonlyArray<string> {
    const { MICROVM_STATE_DIR = "" } = process.env
    const machines = NodePath.join(MICROVM_STATE_DIR, "runs", this.machine, "journal", "machines")
    return list(machines).map((file) => NodePath.join(machines, file))
  }

  /** What there is of it: processes, cgroups, sockets and files. `born` are processes that it had started. */
  traces(born: ReadonlyArray<Process> = []): ReadonlyArray<string> {
    const now = processes()
    return [
      ...now.filter((one) => one.pid !== this.pid && this.isOurs(one)).map(show),
      ...born.filter((one) => now.some(({ pid, start }) => pid === one.pid && start === one.start)).map(show),
      ...cgroupsOf(this.pid),
      ...readText("/proc/net/unix").split("\n").filter((line) => line.includes(this.machine)),
      ...NodeFs.readdirSync(this.temporary).map((file) => NodePath.join(this.temporary, file)),
      ...["/tmp", "/run", "/dev/shm"].flatMap((directory) =>
        list(directory).filter((file) => file.includes(this.machine)).map((file) => NodePath.join(directory, file))
      )
    ]
  }

  /** What it starts is where it is itself. The guard is the last to go, and has its own time for that. */
  private isOurs({ directory, line }: Process): boolean {
    return line.includes(this.machine) || directory === this.temporary && !line.includes("microvm-guard")
  }

  /** Ends it when a test has failed before its end. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.hasEnded) {
      this.kill("SIGKILL")
      await this.ended
    }
    NodeFs.rmSync(this.temporary, { recursive: true, force: true })
  }
}

const signals = ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGABRT", "SIGSEGV"] as const

export interface Process {
  readonly pid: number
  readonly parent: number
  readonly start: string
  readonly command: string
  /** Its arguments, NUL between them. */
  readonly line: string
  /** Where it is. */
  readonly directory: string
}

const show = ({ command, pid }: Process): string => `${command}[${pid}]`

const readText = (path: string): string => {
  try {
    return NodeFs.readFileSync(path, "utf8")
  } catch {
    return ""
  }
}

const linkOf = (path: string): string => {
  try {
    return NodeFs.readlinkSync(path)
  } catch {
    return ""
  }
}

const list = (path: string): ReadonlyArray<string> => {
  try {
    return NodeFs.readdirSync(path)
  } catch {
    return []
  }
}

/** Everything that runs (proc_pid_stat(5)); what is dead already and only not reaped by init does not. */
export const processes = (): ReadonlyArray<Process> =>
  list("/proc").filter((name) => /^\d+$/.test(name)).flatMap((name) => {
    const [, command, rest] = /^\d+ \((.*)\) (.*)$/s.exec(readText(`/proc/${name}/stat`)) ?? []
    if (command === undefined || rest === undefined) return []
    const fields = rest.split(" ")
    const [state, parent] = fields
    const line = readText(`/proc/${name}/cmdline`)
    if (state === "Z") return []
    const directory = linkOf(`/proc/${name}/cwd`)
    return [{ pid: Number(name), parent: Number(parent), start: fields[19] ?? "", command, line, directory }]
  })

export const descendants = (pid: number): ReadonlyArray<Process> => {
  const all = processes()
  const found = all.filter((one) => one.parent === pid)
  // It grows while it is gone through.
  for (const { pid: parent } of found) found.push(...all.filter((one) => one.parent === parent))
  return found
}

/** The cgroups that this process has made, wherever version 2 is mounted. */
const cgroupsOf = (pid: number): ReadonlyArray<string> => {
  const mount = /^\S+ (\S+) cgroup2 /m.exec(readText("/proc/mounts"))?.[1]
  if (mount === undefined) return []
  const own = /^0::(.*)$/m.exec(readText("/proc/self/cgroup"))?.[1] ?? "/"
  const directory = NodePath.join(mount, own)
  return list(directory).filter((name) => name.startsWith(`effect-microvm-${pid}-`)).map((name) =>
    NodePath.join(directory, name)
  )
}

/** Resident memory in MiB (proc_pid_status(5)). */
export const residentMiB = (pid: number): number =>
  Number(/^VmRSS:\s+(\d+) kB$/m.exec(readText(`/proc/${pid}/status`))?.[1] ?? 0) / 1024

/** Nobody is left then who clears up after it. A guard would be replaced, so it is stopped first. */
export const killWithGuard = (pid: number): void => {
  process.kill(pid, "SIGSTOP")
  for (const guard of descendants(pid).filter(({ line }) => line.includes("microvm-guard"))) {
    process.kill(guard.pid, "SIGKILL")
  }
  process.kill(pid, "SIGKILL")
}
