/** A stand-in for Firecracker's memory, which is made here of the C program in fixtures. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

export interface UffdClient {
  readonly program: string
  /** Its directory, for what else is needed. */
  readonly directory: string
  readonly remove: () => void
}

/** Or why there is none. */
export const make = (): UffdClient | string => {
  const directory = mkdtempSync(join(tmpdir(), "pages-"))
  const remove = () => rmSync(directory, { recursive: true, force: true })
  const source = fileURLToPath(new URL("./fixtures/uffdClient.c", import.meta.url))
  const program = join(directory, "uffdClient")
  const compiled = spawnSync("cc", ["-O2", "-pthread", "-o", program, source], { encoding: "utf8" })
  if (compiled.error !== undefined) {
    remove()
    return `there is no C compiler: ${compiled.error.message}`
  }
  if (compiled.status !== 0) throw new Error(compiled.stderr)
  const empty = join(directory, "empty")
  writeFileSync(empty, new Uint8Array(4096))
  const { stderr } = spawnSync(program, ["client", "/nowhere", empty, "touch=seq"], { encoding: "utf8" })
  if (stderr.startsWith("userfaultfd")) {
    remove()
    return `this kernel has no userfaultfd for us: ${stderr.trim()}`
  }
  return { program, directory, remove }
}

export interface Running {
  readonly child: ChildProcess
  /** What it has said until now. */
  readonly output: () => string
  /** Its exit code, or the signal that has ended it. */
  readonly exit: Promise<number | string>
  /** Lets it go on after `hold`. */
  readonly release: Effect.Effect<void>
}

export const start = (program: string, args: ReadonlyArray<string>, cwd?: string): Running => {
  const child = spawn(program, args, { stdio: ["pipe", "pipe", "pipe"], cwd })
  let output = ""
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      output += text
    })
  }
  child.stdin.on("error", () => {})
  const exit = once(child, "close").then(() => child.signalCode ?? child.exitCode ?? -1)
  return {
    child,
    output: () => output,
    exit,
    release: Effect.promise(() => new Promise<void>((resolve) => child.stdin.end(resolve)))
  }
}

/** Killed when the scope closes. */
export const scoped = (
  program: string,
  args: ReadonlyArray<string>,
  cwd?: string
): Effect.Effect<Running, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => start(program, args, cwd)),
    ({ child, exit }) =>
      Effect.promise(() => {
        child.kill("SIGKILL")
        return exit
      })
  )

export const run = (
  { program }: UffdClient,
  socket: string,
  memory: string,
  words: ReadonlyArray<string>,
  cwd?: string
): Effect.Effect<Running, never, Scope.Scope> => scoped(program, ["client", socket, memory, ...words], cwd)
