/** Real processes for the tests of the edge: started, watched, and gone when the test is over, whatever happened. */
import { spawn } from "node:child_process"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"

export const fixture = (name: string): string => join(dirname(fileURLToPath(import.meta.url)), "..", "fixtures", name)

export interface End {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  /** Since the start, in milliseconds. */
  readonly took: number
  readonly stdout: string
  readonly stderr: string
}

export interface Run extends AsyncDisposable {
  readonly pid: number
  readonly stdout: () => string
  readonly stderr: () => string
  readonly kill: (signal: NodeJS.Signals) => boolean
  /** Waits for a line of stdout; fails when the process ends without it. */
  readonly said: (line: string) => Promise<void>
  readonly end: Promise<End>
  /** The reader of stdout and of stderr goes away. */
  readonly hangUp: () => void
}

export interface StartOptions {
  readonly env?: Readonly<Record<string, string>>
  /** The process is killed then, and that is a failure of the test. Default 30 seconds. */
  readonly deadlineMillis?: number
  /** Nobody reads its stderr: a pipe that fills up. */
  readonly unread?: boolean
}

/** Starts a command of its own session, so that all of it can be ended. */
export const start = (
  command: string,
  args: ReadonlyArray<string>,
  { deadlineMillis = 30_000, env = {}, unread = false }: StartOptions = {}
): Run => {
  const began = performance.now()
  const child = spawn(command, args, {
    detached: true,
    stdio: ["ignore", "pipe", "pipe"],
    env: {
      PATH: process.env["PATH"] ?? "/usr/bin:/bin",
      NODE_COMPILE_CACHE: process.env["NODE_COMPILE_CACHE"] ?? "",
      ...env
    }
  })
  const { pid } = child
  if (pid === undefined) throw new Error(`${command} did not start`)
  let stdout = ""
  let stderr = ""
  const listeners = new Set<() => void>()
  child.stdout.on("data", (chunk: Buffer) => {
    stdout += chunk.toString()
    for (const listener of listeners) listener()
  })
  if (!unread) {
    child.stderr.on("data", (chunk: Buffer) => {
      stderr += chunk.toString()
    })
  }
  const killAll = (): void => {
    try {
      process.kill(-pid, "SIGKILL")
    } catch {
      // Nobody is left.
    }
  }
  let isLate = false
  const deadline = setTimeout(() => {
    isLate = true
    killAll()
  }, deadlineMillis)
  const end = new Promise<End>((resolve, reject) => {
    child.once("error", reject)
    child.once("exit", (code, signal) => {
      const took = performance.now() - began
      clearTimeout(deadline)
      killAll()
      // The output of the last moment is still on its way.
      const settle = (): void => {
        for (const listener of listeners) listener()
        if (isLate) reject(new Error(`still there after ${deadlineMillis} ms\n${stdout}\n${stderr}`))
        else resolve({ code, signal, took, stdout, stderr })
      }
      if (unread) settle()
      else child.once("close", settle)
    })
  })
  end.catch(() => {})
  return {
    pid,
    stdout: () => stdout,
    stderr: () => stderr,
    kill: (signal) => child.kill(signal),
    said: (line) =>
      new Promise<void>((resolve, reject) => {
        const look = (): void => {
          if (stdout.split("\n").includes(line)) {
            listeners.delete(look)
            resolve()
          }
        }
        listeners.add(look)
        look()
        end.then(
          () => reject(new Error(`ended without saying ${line}\n${stdout}\n${stderr}`)),
          (error: unknown) => reject(error instanceof Error ? error : new Error(String(error)))
        )
      }),
    end,
    hangUp: () => {
      child.stdout.destroy()
      child.stderr.destroy()
    },
    async [Symbol.asyncDispose]() {
      killAll()
      await end.catch(() => {})
    }
  }
}

/** Starts a TypeScript file of the fixtures. */
export const startFixture = (name: string, args: ReadonlyArray<string> = [], options?: StartOptions): Run =>
  start(process.execPath, [fixture(name), ...args], options)

/** The same as PID 1 of a PID namespace; needs root. */
export const startAsInit = (name: string, args: ReadonlyArray<string> = [], options?: StartOptions): Run =>
  start(
    "unshare",
    ["--pid", "--fork", "--kill-child", "--mount-proc", process.execPath, fixture(name), ...args],
    options
  )

/** Only root may make namespaces without further ado. */
export const isRoot = process.getuid?.() === 0
if (!isRoot) {
  console.warn("Skipped: what runs as PID 1 of a namespace, as another user, or with mounts, because that needs root")
}

/** Looks every 10 ms until it holds; `false` after the deadline. */
export const eventually = async (holds: () => boolean, withinMillis = 10_000): Promise<boolean> => {
  const deadline = performance.now() + withinMillis
  while (!holds()) {
    if (performance.now() > deadline) return false
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
  return true
}
