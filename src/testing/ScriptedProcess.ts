/**
 * A process table in memory, whose processes follow scripts on Effect's `Clock`. Code that starts, watches and ends
 * processes is tested on it under `TestClock`: a grace of two seconds takes no time, and what no test machine does on
 * command (a process that nothing kills, a pid that is used again) is one field of a script.
 *
 * It does what the kernel does with signals, stopped processes, zombies, groups, sessions and cgroups. It runs nothing.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Sink from "effect/Sink"
import type * as Socket from "effect/socket/Socket"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import type { Signal } from "../lifecycle/Signal.ts"
import * as Mark from "../process/Mark.ts"
import { fromReason, type ProcessError, ProcessErrorReason } from "../process/ProcessError.ts"
import {
  type CGroup,
  type LaunchPlan,
  type OutputSource,
  ProcessHost,
  type ProcessInfo
} from "../process/ProcessHost.ts"
import * as ProcessSpawner from "../process/ProcessSpawner.ts"
import { SupervisorGuard, type Watched } from "../process/SupervisorGuard.ts"

/**
 * What a process does when it gets a signal: `"default"` is the kernel's default action (signal(7)), `"refuse"` makes
 * kill(2) fail with EPERM.
 *
 * @category models
 * @since 0.1.0
 */
export type Reaction = "default" | "ignore" | "refuse" | {
  readonly exitAfter: Duration.Input
  /** Default 0. */
  readonly code?: number | undefined
}

/**
 * What a process does. All fields have defaults: an empty script lives until a signal ends it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Script {
  /** It exits by itself after this time. Default: never. */
  readonly exitAfter?: Duration.Input | undefined
  /** With this code. Default 0. */
  readonly code?: number | undefined
  /** Reactions other than `"default"`. SIGKILL and SIGSTOP cannot be caught or ignored, only refused. */
  readonly on?: { readonly [S in Signal]?: Reaction } | undefined
  /** What it has written. Default nothing. */
  readonly stdout?: string | undefined
  readonly stderr?: string | undefined
  /** It has been stopped (SIGSTOP) when it starts. */
  readonly stopped?: boolean | undefined
  /** In uninterruptible sleep for ever: no signal acts on it, SIGKILL neither. */
  readonly unkillable?: boolean | undefined
  /** What it forks at its start. */
  readonly children?: ReadonlyArray<Script & { readonly setsid?: boolean | undefined }> | undefined
  /** Its end of additional descriptors. */
  readonly channels?: ReadonlyMap<number, Socket.Socket> | undefined
  /** Default `"scripted"`. */
  readonly command?: string | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** The script of each command that is started; a `ProcessError` to refuse it. */
  readonly script: (plan: LaunchPlan) => Script | ProcessError
  /** Can cgroups be made? Default `false`. */
  readonly cgroups?: boolean | undefined
  /** How long dead orphans stay zombies, because init is slow. Default: not at all. */
  readonly orphansReapedAfter?: Duration.Input | undefined
}

/**
 * Looks behind the scenes.
 *
 * @category services
 * @since 0.1.0
 */
export class Driver extends Context.Service<Driver, {
  /** Every process that is there, zombies included. */
  readonly table: Effect.Effect<ReadonlyArray<ProcessInfo>>
  /** Each signal that reached a process, in order. */
  readonly delivered: Effect.Effect<ReadonlyArray<{ readonly pid: number; readonly signal: Signal }>>
  /** A process that has nothing to do with us, with a pid of choice: the way to use one again. */
  readonly intrude: (pid: number, script?: Script) => Effect.Effect<ProcessInfo>
  /** What the guard has been told of and not been told to forget. */
  readonly watched: Effect.Effect<ReadonlyArray<Watched>>
  /** The cgroups that are there. */
  readonly cgroups: Effect.Effect<ReadonlyArray<string>>
}>()("effect-microvm-runtime/testing/ScriptedProcess/Driver") {}

interface Entry {
  info: ProcessInfo
  readonly script: Script
  readonly cgroup: string | undefined
  readonly pending: Array<Signal>
  /** Told when it dies; our own children are reaped at that moment. */
  readonly onDeath: ((status: ExitStatus.ExitStatus) => void) | undefined
}

const init = 1
const self = 2
const stops: ReadonlySet<Signal> = new Set<Signal>(["SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU"])
const harmless: ReadonlySet<Signal> = new Set<Signal>(["SIGCHLD", "SIGURG", "SIGWINCH"])

const make = Effect.fnUntraced(function*(options: Options) {
  const scope = yield* Effect.scope
  const entries = new Map<number, Entry>()
  const delivered: Array<{ readonly pid: number; readonly signal: Signal }> = []
  const watched: Array<Watched> = []
  const cgroups = new Set<string>()
  const onChange = new Set<() => void>()
  const root = "/scripted/cgroups"
  let lastPid = 100
  const ticks = Effect.map(Effect.clockWith((clock) => clock.currentTimeMillis), (millis) => Math.floor(millis / 10))

  const later = (after: Duration.Input, run: Effect.Effect<void>) =>
    Effect.asVoid(Effect.forkIn(Effect.delay(run, after), scope, { startImmediately: true }))

  const die = (pid: number, status: ExitStatus.ExitStatus): Effect.Effect<void> =>
    Effect.suspend(() => {
      const entry = entries.get(pid)
      if (entry === undefined || entry.info.state === "Z") return Effect.void
      for (const other of entries.values()) {
        if (other.info.parent === pid) other.info = { ...other.info, parent: init }
      }
      const isOurs = entry.onDeath !== undefined
      const delay = isOurs ? undefined : options.orphansReapedAfter
      if (delay === undefined) entries.delete(pid)
      else entry.info = { ...entry.info, state: "Z" }
      entry.onDeath?.(status)
      onChange.forEach((tell) => tell())
      return delay === undefined ? Effect.void : later(delay, Effect.sync(() => entries.delete(pid)))
    })

  const act = (entry: Entry, signal: Signal): Effect.Effect<void> =>
    Effect.suspend(() => {
      const { pid, state } = entry.info
      if (state === "Z" || entry.script.unkillable === true) return Effect.void
      delivered.push({ pid, signal })
      if (signal === "SIGKILL") return die(pid, ExitStatus.signaled(signal))
      if (signal === "SIGCONT" && state === "T") {
        entry.info = { ...entry.info, state: "S" }
        return Effect.forEach(entry.pending.splice(0), (one) => act(entry, one), { discard: true })
      }
      if (state === "T") {
        entry.pending.push(signal)
        delivered.pop()
        return Effect.void
      }
      const reaction = signal === "SIGSTOP" ? "default" : entry.script.on?.[signal] ?? "default"
      if (reaction === "ignore") return Effect.void
      if (typeof reaction === "object") {
        return later(reaction.exitAfter, die(pid, ExitStatus.exited(reaction.code ?? 0)))
      }
      if (stops.has(signal)) entry.info = { ...entry.info, state: "T" }
      return stops.has(signal) || harmless.has(signal) || signal === "SIGCONT"
        ? Effect.void
        : die(pid, ExitStatus.signaled(signal))
    })

  const send = (targets: ReadonlyArray<Entry>, signal: Signal): Effect.Effect<boolean, ProcessError> =>
    Effect.suspend(() => {
      const willing = targets.filter((entry) => entry.script.on?.[signal] !== "refuse")
      if (willing.length === 0 && targets.length > 0) {
        const target = `process ${targets.map((entry) => entry.info.pid).join(", ")}`
        return Effect.fail(fromReason(ProcessErrorReason.SignalFailed({ signal, target, code: "EPERM" })))
      }
      return Effect.as(Effect.forEach(willing, (entry) => act(entry, signal), { discard: true }), targets.length > 0)
    })

  const freePid = (): number => {
    do lastPid++
    while (entries.has(lastPid))
    return lastPid
  }

  const born = Effect.fnUntraced(function*(
    script: Script,
    like: Pick<ProcessInfo, "parent" | "mark"> & { readonly group?: number; readonly session?: number },
    rest: Pick<Entry, "cgroup" | "onDeath"> & { readonly pid?: number }
  ): Effect.fn.Return<Entry> {
    const pid = rest.pid ?? freePid()
    const entry: Entry = {
      script,
      cgroup: rest.cgroup,
      onDeath: rest.onDeath,
      pending: [],
      info: {
        pid,
        parent: like.parent,
        group: like.group ?? pid,
        session: like.session ?? pid,
        startTime: yield* ticks,
        state: script.unkillable === true ? "D" : script.stopped === true ? "T" : "S",
        command: script.command ?? "scripted",
        mark: like.mark
      }
    }
    entries.set(pid, entry)
    const { group, session } = entry.info
    for (const child of script.children ?? []) {
      const own = child.setsid === true ? {} : { group, session }
      yield* born(child, { parent: pid, mark: like.mark, ...own }, { cgroup: rest.cgroup, onDeath: undefined })
    }
    if (script.exitAfter !== undefined) yield* later(script.exitAfter, die(pid, ExitStatus.exited(script.code ?? 0)))
    return entry
  })

  const members = (path: string): ReadonlyArray<Entry> =>
    Array.from(entries.values()).filter((entry) =>
      entry.info.state !== "Z" && (entry.cgroup === path || entry.cgroup?.startsWith(`${path}/`) === true)
    )

  const cgroup = (path: string): CGroup => ({
    path,
    members: Effect.sync(() => members(path).map((entry) => entry.info.pid)),
    populated: Effect.sync(() => members(path).length > 0),
    watch: Effect.sync(() => {
      let hasChanged = false
      let wake = (): void => {}
      onChange.add(() => {
        hasChanged = true
        wake()
      })
      return Effect.callback<void>((resume) => {
        wake = () => {
          if (!hasChanged) return
          hasChanged = false
          resume(Effect.void)
        }
        wake()
      })
    }),
    signal: (signal, then) =>
      Effect.suspend(() => {
        const found = members(path)
        return Effect.as(
          Effect.andThen(send(found, signal), then === undefined ? Effect.void : send(found, then)),
          found.filter((entry) => entry.script.on?.[signal] !== "refuse").map((entry) => entry.info.pid)
        )
      }),
    kill: Effect.suspend(() => Effect.forEach(members(path), (entry) => act(entry, "SIGKILL"), { discard: true })),
    remove: Effect.sync(() => {
      if (members(path).length > 0) return false
      cgroups.delete(path)
      return true
    })
  })

  const source = (text: string | undefined, ended: Effect.Effect<unknown>, hasEnded: () => boolean): OutputSource => {
    let rest = text === undefined || text === "" ? undefined : new TextEncoder().encode(text)
    return {
      take: () => {
        const taken = rest ?? (hasEnded() ? "end" : undefined)
        rest = undefined
        return taken
      },
      ready: Effect.suspend(() => rest === undefined ? Effect.asVoid(ended) : Effect.void)
    }
  }

  const host = ProcessHost.of({
    bootId: "scripted",
    self,
    ticks,
    env: Effect.succeed({ PATH: "/usr/bin:/bin" }),
    inspect: (pid) => Effect.sync(() => Option.fromUndefinedOr(entries.get(pid)?.info)),
    list: () => Effect.sync(() => Array.from(entries.values(), (entry) => entry.info)),
    started: (since) => Effect.map(host.list(since), (all) => all.filter(({ startTime }) => startTime >= since)),
    groupExists: (pgid) => Effect.sync(() => Array.from(entries.values()).some((entry) => entry.info.group === pgid)),
    kill: (target, signal) =>
      Effect.suspend(() =>
        send(
          Array.from(entries.values()).filter(({ info }) => target < 0 ? info.group === -target : info.pid === target),
          signal
        )
      ),
    turn: Effect.void,
    locate: ({ command }) => Effect.succeed({ executable: command, faults: [] }),
    launch: (plan) =>
      Effect.gen(function*() {
        const script = options.script(plan)
        if ("_tag" in script) return yield* script
        const exit = Deferred.makeUnsafe<ExitStatus.ExitStatus>()
        const afterExit = Deferred.makeUnsafe<ExitStatus.ExitStatus>()
        let status: ExitStatus.ExitStatus | undefined
        let reapedAt: number | undefined
        const clock = yield* Effect.clockWith(Effect.succeed)
        const own = plan.detached ? {} : { group: self, session: self }
        const { info } = yield* born(script, { parent: self, mark: plan.env[Mark.variable], ...own }, {
          cgroup: plan.cgroup?.path,
          onDeath: (seen) => {
            status = seen
            reapedAt = Math.floor(clock.currentTimeMillisUnsafe() / 10)
            Deferred.doneUnsafe(exit, Exit.succeed(seen))
            Deferred.doneUnsafe(afterExit, Exit.succeed(seen))
          }
        })
        const { pid, startTime } = info
        const output = (text: string | undefined) => source(text, Deferred.await(exit), () => status !== undefined)
        const sources = [undefined, output(script.stdout), output(script.stderr)]
        return {
          pid,
          startTime,
          reapedAt: () => reapedAt,
          poll: Effect.sync(() => Option.fromUndefinedOr(status)),
          exit: Deferred.await(exit),
          afterExit: Deferred.await(afterExit),
          signal: (signal) =>
            Effect.suspend(() => status === undefined ? Effect.asVoid(host.kill(pid, signal)) : Effect.void),
          input: (fd) => plan.stdio[fd] === "pipe" ? Sink.drain : undefined,
          output: (fd) => plan.stdio[fd] === "pipe" ? sources[fd] : undefined,
          channel: (fd) => {
            const socket = script.channels?.get(fd)
            return socket && Effect.succeed(socket)
          },
          release: Effect.void
        }
      }),
    cgroupRoot: options.cgroups === true ? Option.some(root) : Option.none(),
    cgroupSupport: Effect.succeed(
      options.cgroups === true ? { _tag: "Usable", root } : { _tag: "Unusable", why: "none are scripted" }
    ),
    cgroup,
    makeCGroup: (path) =>
      Effect.sync(() => {
        cgroups.add(path)
        return cgroup(path)
      })
  })

  const guard = SupervisorGuard.of({
    mark: "scripted",
    watch: (what) =>
      Effect.acquireRelease(
        Effect.sync(() => watched.push(what)),
        () => Effect.sync(() => watched.splice(watched.indexOf(what), 1))
      )
  })

  const driver = Driver.of({
    table: host.list(0),
    delivered: Effect.sync(() => [...delivered]),
    intrude: (pid, script = {}) =>
      Effect.map(
        born(script, { parent: init, mark: undefined }, { pid, cgroup: undefined, onDeath: undefined }),
        ({ info }) => info
      ),
    watched: Effect.sync(() => [...watched]),
    cgroups: Effect.sync(() => Array.from(cgroups))
  })

  return Context.make(ProcessHost, host).pipe(Context.add(SupervisorGuard, guard), Context.add(Driver, driver))
})

/**
 * The scripted host and a guard that only keeps a list, with a driver for the test.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerHost = (options: Options): Layer.Layer<ProcessHost | SupervisorGuard | Driver> =>
  Layer.effectContext(make(options))

/**
 * The real spawner on the scripted host.
 *
 * ```ts import.meta.vitest
 * import { ProcessSpawner } from "effect-microvm-runtime/process"
 * import { ScriptedProcess } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 * import * as ChildProcess from "effect/process/ChildProcess"
 *
 * const program = Effect.gen(function*() {
 *   const spawner = yield* ProcessSpawner.ProcessSpawner
 *   const process = yield* spawner.spawn(ChildProcess.make("db"))
 *   return (yield* process.shutdown())._tag
 * })
 * const layer = ScriptedProcess.layer({ script: () => ({ on: { SIGTERM: { exitAfter: "1 millis" } } }) })
 * await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(layer))) // => "Graceful"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options
): Layer.Layer<ProcessSpawner.ProcessSpawner | ProcessHost | SupervisorGuard | Driver> =>
  ProcessSpawner.layer.pipe(Layer.provideMerge(layerHost(options)))
