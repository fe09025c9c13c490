/**
 * Starts our own program again: for a run in the background, as a process in a session of its own that lasts as long as its machine, and for
 * what is left of a run when we are killed.
 *
 * It is told by its environment what it is, and tells over an inherited pipe when its command has started, or why it has not.
 * Until then its stderr is ours, so that people see what it says. From then on nothing ties the two together.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { hasProperty } from "effect/Predicate"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as NodeChildProcess from "node:child_process"
import * as NodeFs from "node:fs"
import * as ExitCode from "../lifecycle/ExitCode.ts"
import { SupervisorGuard, Watched } from "../process/SupervisorGuard.ts"
import * as Supervisor from "../supervisor/Supervisor.ts"

/**
 * What a run in the background says of its start. `exitCode` is that of a run that came to nothing; `recovered` says what became of
 * a machine that was left behind, where nobody goes on with it.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Started = Schema.TaggedUnion({
  Ready: {},
  Failed: { exitCode: Schema.Int, recovered: Schema.optionalKey(Supervisor.Recovered) }
})

/**
 * @category models
 * @since 0.1.0
 */
export type Started = typeof Started.Type

const StartedLine = Schema.fromJsonString(Started)

/** Says which descriptor is the pipe. */
const variable = "EFFECT_MICROVM_DETACHED"
const pipeFd = 3

/**
 * - `isBackground`: is this process the one in the background?
 * - `start`: starts our own command line again there, for a run of this id, and waits until it has said how its start went.
 *   Interrupting it ends what it started.
 * - `resume`: the same for a run of this id that was left behind. Interrupting it ends nothing: a machine that lives is not to end for
 *   want of somebody who waits.
 * - `tell`: says how our own start went. Only the first time counts, and only where `isBackground`.
 * - `bequeath`: from then on, until the scope closes, `recover` is run for a run of this id when we are killed by SIGKILL. Where that cannot
 *   be had, what is left waits for the next run.
 *
 * @category services
 * @since 0.1.0
 */
export class Detach extends Context.Service<Detach, {
  readonly isBackground: boolean
  readonly start: (id: string) => Effect.Effect<Started>
  readonly resume: (id: string) => Effect.Effect<Started>
  readonly tell: (started: Started) => Effect.Effect<void>
  readonly bequeath: (id: string) => Effect.Effect<void, never, Scope.Scope>
}>()("effect-microvm-runtime/cli/Detach") {
  /** A process in the foreground that cannot start another, for tests. */
  static readonly layerNone: Layer.Layer<Detach> = Layer.succeed(
    Detach,
    Detach.of({
      isBackground: false,
      start: () => Effect.succeed({ _tag: "Failed", exitCode: ExitCode.run.runtimeFailed }),
      resume: () => Effect.succeed({ _tag: "Failed", exitCode: ExitCode.run.runtimeFailed }),
      tell: () => Effect.void,
      bequeath: () => Effect.void
    })
  )
}

/** The arguments of `run` with this name, unless they have one. */
const named = (args: ReadonlyArray<string>, id: string): ReadonlyArray<string> => {
  const own = args.slice(0, args.includes("--") ? args.indexOf("--") : args.length)
  return own.some((word) => word === "--name" || word.startsWith("--name=")) ? args : ["--name", id, ...args]
}

/**
 * Everybody may read a command line (proc(5)), and this one stays for long: without what may be secret. Short flags may stand
 * together (`-qe`).
 */
const title = (args: ReadonlyArray<string>): string =>
  args.map((word, at) =>
    /^(--env|-\w*e)=/.test(word) || /^(--env|-\w*e)$/.test(args[at - 1] ?? "")
      ? word.replace(/=.*$/s, "=…")
      : word
  ).join(" ")

/** Our own program once more. */
const ourselves = (args: ReadonlyArray<string>): ReadonlyArray<string> => {
  const [script = ""] = process.argv.slice(1)
  return [...process.execArgv, script, ...args]
}

const spawn = (
  args: ReadonlyArray<string>,
  onInterrupt: (child: NodeChildProcess.ChildProcess) => void
): Effect.Effect<Started> =>
  Effect.callback<Started>((resume) => {
    const child = NodeChildProcess.spawn(process.execPath, ourselves(args), {
      // Relative paths are meant from where we are. It leaves that place when it has started.
      detached: true,
      env: { ...process.env, [variable]: String(pipeFd) },
      stdio: ["ignore", "ignore", "inherit", "pipe"]
    })
    let said = ""
    let told: Started | undefined
    const pipe = child.stdio[pipeFd]
    const failed = (exitCode: number) => resume(Effect.succeed(told ?? { _tag: "Failed", exitCode }))
    child.on("error", () => failed(ExitCode.run.runtimeFailed))
    child.on("exit", (code) => failed(code === null || code === 0 ? ExitCode.run.runtimeFailed : code))
    pipe?.on("error", () => {})
    pipe?.on("data", (bytes: Buffer) => {
      said += bytes.toString()
      const line = Schema.decodeOption(StartedLine)(said.split("\n")[0] ?? "")
      if (!said.includes("\n") || Option.isNone(line)) return
      told = line.value
      // One that failed is waited for: it still has what it was to go on with.
      if (told._tag === "Failed") return
      child.unref()
      resume(Effect.succeed(told))
    })
    return Effect.sync(() => onInterrupt(child))
  })

const attempt = (act: () => void): void => {
  try {
    act()
  } catch {
    // Nobody is there to be told.
  }
}

const isAction = (value: unknown): value is () => void => typeof value === "function"

/** libuv has opened a terminal once more, and Node has no other way to close that: `destroy` does nothing for stderr. */
const closeTerminal = (): void => {
  const { stderr } = process
  if (!stderr.isTTY || !hasProperty(stderr, "_handle")) return
  const { _handle: handle } = stderr
  if (!hasProperty(handle, "close") || !isAction(handle.close)) return
  handle.close()
  // To write to a closed one throws, and not only to whoever listens for errors.
  const lost = (_: unknown, __: unknown, done: () => void): void => done()
  Object.assign(stderr, { _write: lost, _writev: null })
}

/** What says where our things are, on this host and for this user: everybody may read it for a moment. */
const isSetting = (name: string): boolean => /^(MICROVM_\w+|XDG_\w+|HOME|PATH|TMPDIR)$/.test(name)

const recoverer = (id: string): Watched => {
  const env: Record<string, string> = {}
  for (const [name, value] of Object.entries(process.env)) {
    if (value !== undefined && isSetting(name)) env[name] = value
  }
  return Watched.Program({
    command: process.execPath,
    args: ourselves(["recover", "--kill", id]),
    cwd: process.cwd(),
    env
  })
}

/**
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Detach, never, SupervisorGuard> = Layer.effect(
  Detach,
  Effect.gen(function*() {
    const guard = yield* SupervisorGuard
    const isBackground = process.env[variable] === String(pipeFd)
    // What is started from here on is no run in the background by itself.
    delete process.env[variable]
    if (isBackground) process.title = `microvm ${title(process.argv.slice(2))}`
    let told = false
    return Detach.of({
      isBackground,
      start: (id) => {
        const args = process.argv.slice(2)
        const at = args.indexOf("run") + 1
        // It ends its machine in order.
        return spawn([...args.slice(0, at), ...named(args.slice(at), id)], (child) => void child.kill("SIGTERM"))
      },
      resume: (id) => spawn(["resume", id], () => {}),
      tell: (started) =>
        Effect.sync(() => {
          if (told || !isBackground) return
          told = true
          // Whoever started us may have gone, which is no reason to stop, nor to keep what was his.
          attempt(() => NodeFs.writeSync(pipeFd, `${JSON.stringify(started)}\n`))
          attempt(() => NodeFs.closeSync(pipeFd))
          attempt(closeTerminal)
          // Whoever reads what we were started with is not to wait for our end: the lowest free descriptor is taken.
          attempt(() => NodeFs.closeSync(2))
          attempt(() => NodeFs.openSync("/dev/null", "w"))
          attempt(() => process.chdir("/"))
        }),
      bequeath: (id) => Effect.ignoreCause(Effect.suspend(() => guard.watch(recoverer(id))))
    })
  })
)
