import * as Effect from "effect/Effect"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Stream from "effect/Stream"
import { readdirSync, readFileSync } from "node:fs"
import * as NodeProcessHost from "../../src/process/NodeProcessHost.ts"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import type { Process } from "../../src/process/Process.ts"
import { type CGroupSupport, ProcessHost } from "../../src/process/ProcessHost.ts"
import { ProcessSpawner } from "../../src/process/ProcessSpawner.ts"
import type { SpawnOptions } from "../../src/process/SpawnOptions.ts"

const attempt = <A>(f: () => A, otherwise: A): A => {
  try {
    return f()
  } catch {
    return otherwise
  }
}

export const fixture = (name: string): string => new URL(`./fixtures/${name}`, import.meta.url).pathname

const trialVariable = "PROCESS_TEST_TRIAL"
let trials = 0

/** Tells the processes of one test from all others, by a variable of the environment that they inherit. */
export interface Trial {
  readonly env: Readonly<Record<string, string>>
  /** Those of them that are alive, by pid. */
  readonly alive: () => ReadonlyArray<number>
}

export const trial = (): Trial => {
  const value = `${process.pid}-${++trials}-${Math.random().toString(36).slice(2)}`
  const entry = `${trialVariable}=${value}`
  return {
    env: { [trialVariable]: value },
    alive: () =>
      attempt(() => readdirSync("/proc"), []).filter((name) => /^\d+$/.test(name)).map(Number).filter((pid) =>
        attempt(() => readFileSync(`/proc/${pid}/environ`, "latin1"), "").split("\0").includes(entry) &&
        !/^\d+ \(.*\) Z /s.test(attempt(() => readFileSync(`/proc/${pid}/stat`, "latin1"), ""))
      )
  }
}

/** Looks every 5 ms until it holds; `false` after the deadline. */
export const eventually = (holds: () => boolean, withinMillis = 30_000): Effect.Effect<boolean> =>
  Effect.suspend(() => {
    if (holds()) return Effect.succeed(true)
    if (withinMillis <= 0) return Effect.succeed(false)
    return Effect.andThen(Effect.sleep("5 millis"), eventually(holds, withinMillis - 5))
  })

/** Ends what a test has left alive on purpose; `false` if that did not work. */
export const clearUp = (own: Trial): Effect.Effect<boolean> =>
  eventually(() => {
    own.alive().forEach((pid) => attempt(() => process.kill(pid, "SIGKILL"), false))
    return own.alive().length === 0
  })

/** Starts a fixture and waits for the line `ready`, if it is one that says it. */
export const start = Effect.fnUntraced(function*(
  name: string,
  args: ReadonlyArray<string>,
  options: SpawnOptions & { readonly trial: Trial; readonly ready?: boolean }
) {
  const spawner = yield* ProcessSpawner
  const process = yield* spawner.spawn(
    ChildProcess.make("sh", [fixture(name), ...args], { env: options.trial.env, extendEnv: true }),
    options
  )
  if (options.ready !== false) yield* ready(process)
  return process
})

export const ready = (process: Process) =>
  process.stdout.pipe(Stream.decodeText, Stream.takeUntil((text) => text.includes("ready")), Stream.runDrain)

/** Can this machine make cgroups? Tests that need them are skipped where it cannot, and say so here. */
export const cgroupSupport: CGroupSupport = await Effect.runPromise(
  Effect.flatMap(ProcessHost, (host) => host.cgroupSupport).pipe(Effect.provide(NodeProcessHost.layer))
)
export const hasCGroups = cgroupSupport._tag === "Usable"
if (cgroupSupport._tag === "Unusable") console.warn(`skipped: tests with cgroups, for ${cgroupSupport.why}`)

export const isRoot = process.getuid?.() === 0
if (!isRoot) console.warn("skipped: tests that change the user, for only root can")

export const layer = NodeProcessSpawner.layer
