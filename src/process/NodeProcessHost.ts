/**
 * The operating system through Node: `child_process`, `/proc` and cgroups (v2) of Linux.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as NodeFs from "node:fs"
import { isMainThread } from "node:worker_threads"
import * as Signal from "../lifecycle/Signal.ts"
import { cachedSuccess } from "./internal/cachedSuccess.ts"
import * as CGroup from "./internal/NodeCGroup.ts"
import { attempt, errnoName, keepReserve } from "./internal/NodeErrno.ts"
import * as Launch from "./internal/NodeLaunch.ts"
import * as Locate from "./internal/NodeLocate.ts"
import * as ProcTable from "./internal/NodeProcTable.ts"
import * as Tried from "./internal/NodeTried.ts"
import { turn } from "./internal/NodeTurns.ts"
import * as Probe from "./internal/probe.ts"
import { fromReason, ProcessError, ProcessErrorReason } from "./ProcessError.ts"
import { type LaunchPlan, ProcessHost } from "./ProcessHost.ts"

/** What runs longer than this is taken not to work, once for all, and is killed. On a busy host, a program that does nothing takes seconds. */
const probeTime = "10 seconds"

const inherited = (): Record<string, string> => {
  const env: Record<string, string> = {}
  for (const [name, value] of Object.entries(process.env)) {
    if (value !== undefined) env[name] = value
  }
  return env
}

/** Can our children write core files? A pipe or a socket takes them whatever the limit is (core(5)). */
const findCores = (): Launch.Options["cores"] => {
  const limits = attempt(() => NodeFs.readFileSync("/proc/self/limits", "latin1")) ?? ""
  const pattern = attempt(() => NodeFs.readFileSync("/proc/sys/kernel/core_pattern", "latin1")) ?? "|"
  if (/^[|@]/.test(pattern) || !/^Max core file size +0 /m.test(limits)) return "likely"
  return /^Max core file size +0 +0 /m.test(limits) ? "never" : "if raised"
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /**
   * A directory, made if need be in one that is there, in which it is kept that setpriv(1) works, until the machine is started anew and
   * for as long as it is the same file: to try it takes 7 ms. By default nothing is kept.
   */
  readonly tried?: string | undefined
}

const make = Effect.fnUntraced(function*({ tried }: Options) {
  keepReserve()
  const bootId = NodeFs.readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim()
  const startedAt = ProcTable.ticks()
  const options: Launch.Options = { setpriv: undefined, cores: findCores() }

  const run = (plan: LaunchPlan, setpriv?: string) =>
    Effect.acquireUseRelease(
      Launch.launch(plan, { ...options, setpriv }),
      (child) => Effect.timeoutOption(child.exit, probeTime),
      (child) =>
        Effect.gen(function*() {
          if (Option.isSome(yield* child.poll)) return
          attempt(() => process.kill(-child.pid, "SIGKILL"))
          yield* Effect.timeoutOption(child.exit, probeTime)
        })
    ).pipe(Effect.map(Option.exists((status) => status._tag === "Exited" && status.code === 0)))

  /** The kernel binds the signal of a parent's death to the thread that forked: a child of a worker would die with the worker. */
  const findSetpriv = (): string | undefined => {
    const { executable, faults } = Locate.locate({ command: "setpriv", path: inherited()["PATH"], cwd: "/" })
    return isMainThread && faults.length === 0 ? executable : undefined
  }
  let setprivWorks: boolean | undefined

  /** setpriv(1) of util-linux, where it is there and knows --pdeathsig. */
  const setpriv = yield* cachedSuccess(
    Effect.gen(function*() {
      const executable = findSetpriv()
      if (executable === undefined) return undefined
      if (tried !== undefined && Tried.isKnown(tried, executable, bootId)) return executable
      setprivWorks ??= yield* run(Probe.setpriv(executable))
      if (!setprivWorks) return undefined
      if (tried !== undefined) Tried.keep(tried, executable, bootId)
      return executable
    })
  )

  const root = CGroup.findRoot(`${process.pid}-${startedAt}-${Math.random().toString(36).slice(2, 8)}`)
  const cgroupSupport = yield* cachedSuccess(
    Effect.gen(function*() {
      if ("why" in root) return { _tag: "Unusable", why: root.why } as const
      const path = `${root.path}/probe`
      const cgroup = yield* CGroup.make(path)
      const plan: LaunchPlan = { ...Probe.make("/bin/sh", ["-c", "exit 0"]), cgroup: { path } }
      const enters = Effect.gen(function*() {
        // One process tries both: each holds the event loop up while it is forked, and the first child is waited for.
        const executable = setprivWorks === false ? undefined : findSetpriv()
        if (executable === undefined) return yield* run(plan)
        const both = yield* run({ ...plan, dieWithParent: true }, executable)
        const works = both || (yield* run(plan))
        // Where nobody can enter, that says nothing of setpriv.
        if (works) setprivWorks = both
        return works
      })
      const works = yield* Effect.ensuring(enters, cgroup.remove)
      return works
        ? { _tag: "Usable", root: root.path } as const
        : { _tag: "Unusable", why: `a process cannot enter a cgroup below ${root.path}` } as const
    })
  )

  const list = ProcTable.makeList()

  return ProcessHost.of({
    bootId,
    self: process.pid,
    ticks: Effect.sync(ProcTable.ticks),
    env: Effect.sync(inherited),
    inspect: (pid) => Effect.sync(() => Option.fromUndefinedOr(ProcTable.inspect(pid))),
    list: (since) => list(since, false),
    started: (since) => Effect.map(list(since, true), (all) => all.filter(({ startTime }) => startTime >= since)),
    groupExists: (pgid) =>
      Effect.sync(() => {
        try {
          return process.kill(-pgid, 0)
        } catch (cause) {
          return errnoName(cause) !== "ESRCH"
        }
      }),
    kill: (target, signal) => {
      if (!Number.isSafeInteger(target) || Math.abs(target) < 2) {
        const why = `${target} stands for more than a process or a group of ours: give a pid from 2 on, or minus a pgid`
        return Effect.fail(fromReason(ProcessErrorReason.InvalidArgument({ field: "target", why })))
      }
      return Effect.try({
        try: () => process.kill(target, Signal.toNumber(signal)),
        catch: (cause) => ({ cause, code: errnoName(cause) })
      }).pipe(Effect.catch(({ cause, code }) =>
        code === "ESRCH" ? Effect.succeed(false) : Effect.fail(fromReason(
          ProcessErrorReason.SignalFailed({
            signal,
            target: target < 0 ? `process group ${-target}` : `process ${target}`,
            code
          }),
          cause
        ))
      ))
    },
    turn,
    locate: (request) => Effect.sync(() => Locate.locate(request)),
    launch: (plan) =>
      Effect.suspend(() => {
        const [reason, ...others] = (plan.cgroup === undefined ? [] : CGroup.faultsOf(plan.cgroup))
          .map((why) => ProcessErrorReason.InvalidArgument({ field: "cgroup", why }))
        if (reason !== undefined) return Effect.fail(new ProcessError({ reason, others }))
        // Nothing is started yet, so a caller that cannot be interrupted any more still can be while it waits for that.
        return Effect.interruptible(Effect.orElseSucceed(setpriv, () => undefined)).pipe(
          Effect.flatMap((found) => Launch.launch(plan, { ...options, setpriv: found }))
        )
      }),
    cgroupRoot: "path" in root ? Option.some(root.path) : Option.none(),
    cgroupSupport: Effect.catch(
      cgroupSupport,
      (error) => Effect.succeed({ _tag: "Unusable", why: error.message } as const)
    ),
    cgroup: CGroup.at,
    makeCGroup: CGroup.make
  })
})

/**
 * Like `layer`, with options.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (options: Options): Layer.Layer<ProcessHost> => Layer.effect(ProcessHost, make(options))

/**
 * The host that we run on. Looks round once, and changes nothing until the first spawn.
 *
 * Needs Linux with `/proc`; cgroups and setpriv(1) are used where they are there.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<ProcessHost> = layerWith({})
