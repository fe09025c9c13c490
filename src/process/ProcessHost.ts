/**
 * What this folder needs of the operating system, and nothing more. The real one is `NodeProcessHost`; tests use a
 * scripted one, so that all that waits runs under virtual time.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type * as Sink from "effect/Sink"
import type * as Socket from "effect/socket/Socket"
import type { ExitStatus } from "../lifecycle/ExitStatus.ts"
import type { Signal } from "../lifecycle/Signal.ts"
import type { ProcessError, ProcessErrorReason } from "./ProcessError.ts"
import type { CGroups } from "./SpawnOptions.ts"

/**
 * A line of the process table (proc_pid_stat(5)).
 *
 * @category models
 * @since 0.1.0
 */
export interface ProcessInfo {
  readonly pid: number
  readonly parent: number
  readonly group: number
  readonly session: number
  /** Clock ticks since boot. */
  readonly startTime: number
  /** `R`, `S`, `D`, `Z`, `T`, … */
  readonly state: string
  /** At most 15 bytes of its name. */
  readonly command: string
  /** The value of `Mark.variable` in its environment, where that could be read. */
  readonly mark: string | undefined
}

/**
 * A process of this state is gone for all purposes but wait(2).
 *
 * @category guards
 * @since 0.1.0
 */
export const isAlive = (info: Pick<ProcessInfo, "state">): boolean => info.state !== "Z" && info.state !== "X"

/**
 * The bytes of a pipe. Waiting can be interrupted without loss, because taking does not wait.
 *
 * @category models
 * @since 0.1.0
 */
export interface OutputSource {
  /** What is there now: bytes, the end, or nothing yet. */
  readonly take: () => Uint8Array | "end" | undefined
  /** Waits until `take` has something. */
  readonly ready: Effect.Effect<void, ProcessError>
}

/**
 * What is to be started. Nothing in it is shown to anybody: arguments and environment may hold secrets.
 *
 * @category models
 * @since 0.1.0
 */
export interface LaunchPlan {
  /** Absolute. */
  readonly executable: string
  readonly args: ReadonlyArray<string>
  readonly env: Readonly<Record<string, string>>
  readonly cwd: string | undefined
  /** Index is the descriptor in the child. */
  readonly stdio: ReadonlyArray<"pipe" | "inherit" | "ignore">
  /** A session and process group of its own. */
  readonly detached: boolean
  /** The child starts inside these. */
  readonly cgroup: CGroups | undefined
  /** The kernel is to kill it when we die, where it can. */
  readonly dieWithParent: boolean
}

/**
 * A child of ours.
 *
 * @category models
 * @since 0.1.0
 */
export interface Child {
  readonly pid: number
  readonly startTime: number
  /**
   * Up to this tick its pid was its own for certain; `undefined` until it is reaped. The tick at which it was reaped for the first of a
   * process group that is not in a cgroup, which alone needs it; else, that at which it was started.
   */
  readonly reapedAt: () => number | undefined
  readonly poll: Effect.Effect<Option.Option<ExitStatus>>
  readonly exit: Effect.Effect<ExitStatus>
  /** The same, told in a later turn of the event loop than `exit`: what clears up then delays nobody who waits for that. */
  readonly afterExit: Effect.Effect<ExitStatus>
  /** To this process only, and to nobody once it is reaped. */
  readonly signal: (signal: Signal) => Effect.Effect<void, ProcessError>
  /** A pipe that the child reads from. With `end`, it is closed when the stream that is run into it ends. */
  readonly input: (fd: number, end: boolean) => Sink.Sink<void, Uint8Array, never, ProcessError> | undefined
  /** A pipe that the child writes to. */
  readonly output: (fd: number) => OutputSource | undefined
  /** Any piped descriptor from 3 on, both ways. */
  readonly channel: (fd: number) => Effect.Effect<Socket.Socket> | undefined
  /** Closes our ends of all pipes. */
  readonly release: Effect.Effect<void>
}

/**
 * A control group (v2) made by us.
 *
 * @category models
 * @since 0.1.0
 */
export interface CGroup {
  readonly path: string
  /** Live processes in it and below it. */
  readonly members: Effect.Effect<ReadonlyArray<number>>
  /** Is there a live process in it or below it? A cgroup that is gone has none. */
  readonly populated: Effect.Effect<boolean>
  /** Starts to watch; the effect it gives waits until `populated` may have changed since it was last run. */
  readonly watch: Effect.Effect<Effect.Effect<void>, never, Scope.Scope>
  /**
   * Sends `signal` to each member, and `then` right after it, and tells who got the first. Fails when there were members and none
   * could get it. It looks once and sends without a pause, so that no pid changes hands between.
   */
  readonly signal: (signal: Signal, then?: Signal) => Effect.Effect<ReadonlyArray<number>, ProcessError>
  /** SIGKILL to all in it at once, those that fork meanwhile included. */
  readonly kill: Effect.Effect<void, ProcessError>
  /** Removes it and all below it; `false` while something lives in it. */
  readonly remove: Effect.Effect<boolean>
}

/**
 * Can we make cgroups here?
 *
 * @category models
 * @since 0.1.0
 */
export type CGroupSupport =
  | { readonly _tag: "Usable"; readonly root: string }
  | { readonly _tag: "Unusable"; readonly why: string }

/**
 * @category services
 * @since 0.1.0
 */
export class ProcessHost extends Context.Service<ProcessHost, {
  readonly bootId: string
  /** Our own pid. */
  readonly self: number
  /** Now, in the unit of `ProcessInfo.startTime`. */
  readonly ticks: Effect.Effect<number>
  /** The environment that children inherit. */
  readonly env: Effect.Effect<Readonly<Record<string, string>>>
  readonly inspect: (pid: number) => Effect.Effect<Option.Option<ProcessInfo>>
  /** Every process that can be seen, with the marks of those that started at this tick or later. */
  readonly list: (since: number) => Effect.Effect<ReadonlyArray<ProcessInfo>>
  /** Those that started at this tick or later, with their marks: of a thousand others, none is read twice. */
  readonly started: (since: number) => Effect.Effect<ReadonlyArray<ProcessInfo>>
  /** Has the process group any member, dead ones that nobody has waited for included? */
  readonly groupExists: (pgid: number) => Effect.Effect<boolean>
  /**
   * kill(2): a negative target is a process group. `false` when there is no such process or group. Fails with
   * `InvalidArgument` for -1, 0 and 1, which stand for every process, our own group and init.
   */
  readonly kill: (target: number, signal: Signal) => Effect.Effect<boolean, ProcessError>
  /** Waits its turn, so that many children that are ended at once do not hold up all else. */
  readonly turn: Effect.Effect<void>
  /** Finds what execve(2) would run, and all that is wrong with it and with the working directory. */
  readonly locate: (request: {
    readonly command: string
    readonly path: string | undefined
    readonly cwd: string | undefined
  }) => Effect.Effect<{ readonly executable: string; readonly faults: ReadonlyArray<ProcessErrorReason> }>
  readonly launch: (plan: LaunchPlan) => Effect.Effect<Child, ProcessError>
  /** All cgroups that this host makes are below this path; none where there can be none. Nothing is made by asking. */
  readonly cgroupRoot: Option.Option<string>
  /** Tries it below `cgroupRoot`, once for all unless the attempt itself failed. */
  readonly cgroupSupport: Effect.Effect<CGroupSupport>
  /** A cgroup by its path; nothing is made. */
  readonly cgroup: (path: string) => CGroup
  readonly makeCGroup: (path: string) => Effect.Effect<CGroup, ProcessError>
}>()("effect-microvm-runtime/process/ProcessHost") {}
