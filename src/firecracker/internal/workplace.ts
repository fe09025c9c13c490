/**
 * Where a Firecracker is at work, and the process that it is: jailed or not, what follows needs to know no more.
 */
import * as Effect from "effect/Effect"
import * as ChildProcess from "effect/process/ChildProcess"
import type * as Scope from "effect/Scope"
import * as ExitStatus from "../../lifecycle/ExitStatus.ts"
import * as ShutdownPolicy from "../../lifecycle/ShutdownPolicy.ts"
import type { LaunchOptions } from "../../microvm/MicroVmProvider.ts"
import * as AdoptedProcess from "../../process/AdoptedProcess.ts"
import type { Process } from "../../process/Process.ts"
import type { ProcessError } from "../../process/ProcessError.ts"
import type { ProcessHolder } from "../../process/ProcessHolder.ts"
import { ProcessHost } from "../../process/ProcessHost.ts"
import type { ProcessSpawner } from "../../process/ProcessSpawner.ts"
import * as FirecrackerError from "../FirecrackerError.ts"
import type { FirecrackerHost } from "../FirecrackerHost.ts"
import type { Jail, PreparedJail } from "../Jail.ts"
import * as JailPlan from "../JailPlan.ts"
import { type LaunchPlan, names, snapshotFiles } from "../LaunchPlan.ts"
import * as Kept from "./kept.ts"

type Failure = FirecrackerError.FirecrackerError

/** The files of a snapshot, as Firecracker is told them. */
type Create = (state: string, memory: string) => Effect.Effect<void, Failure>

/** Firecracker's process, whoever owns it. */
export type Monitor = Pick<Process, "pid" | "exit" | "poll" | "signal" | "shutdown" | "tail" | "stdout">

export interface Workplace {
  readonly monitor: Monitor
  /** The directory that it works in, by the path that we have for it. */
  readonly directory: string
  /** Who owns its files, if not we. */
  readonly owner: { readonly uid: number; readonly gid: number } | undefined
  /** The first process of a namespace ignores it (pid_namespaces(7)). */
  readonly ignoresTermination: boolean
  /**
   * Has Firecracker write the files of a snapshot, which are in the directory `to` in the end, all or none: with a list of its
   * pages, if it is a difference.
   */
  readonly write: (to: string, isDiff: boolean, create: Create) => Effect.Effect<void, Failure>
}

export interface Services {
  readonly host: FirecrackerHost["Service"]
  readonly spawner: ProcessSpawner["Service"]
  readonly holder: ProcessHolder["Service"]
  readonly processes: ProcessHost["Service"]
  readonly jails: Jail["Service"]
}

/** What else is to be there before Firecracker starts, and is there until it has ended. */
export type Arrange = (place: Pick<Workplace, "directory" | "owner">) => Effect.Effect<void, Failure, Scope.Scope>

/** How a machine is to be run that is not in a jail. */
export type How = Pick<LaunchOptions, "cgroup" | "keep">

/** Firecracker has no handler for SIGTERM, and ends by it at once. */
export const policy = ShutdownPolicy.signals({ grace: "1 second" })
const killPolicy = ShutdownPolicy.signals({ signal: "SIGKILL" })

const commandOf = ({ argv: [program, ...args] }: LaunchPlan, cwd?: string) =>
  // Nothing of our environment is for it.
  ChildProcess.make(program, args, { env: {}, stdin: "ignore", ...(cwd !== undefined && { cwd }) })

// It starts nothing, so its group is all there is of it. To enter a cgroup takes some 15 ms.
const spawning = { policy, killScope: "group" } as const

const filesIn = (directory: string) =>
  [
    `${directory}/${snapshotFiles.state}`,
    `${directory}/${snapshotFiles.memory}`,
    `${directory}/${snapshotFiles.pages}`
  ] as const

/** Where one is at work that is in no jail. */
export const unjailed = (monitor: Monitor, directory: string, host: FirecrackerHost["Service"]): Workplace => ({
  monitor,
  directory,
  owner: undefined,
  ignoresTermination: false,
  write: (to, isDiff, create) => {
    const [state, memory, pages] = filesIn(to)
    return create(state, memory).pipe(
      Effect.andThen(isDiff ? host.listPages(memory, pages) : Effect.void),
      Effect.andThen(host.makeReadable(memory)),
      Effect.tapError(() => Effect.ignore(host.remove([state, memory, pages])))
    )
  }
})

const inDirectory = Effect.fnUntraced(function*(
  plan: LaunchPlan,
  stateDirectory: string | undefined,
  { cgroup, keep }: How,
  { holder, host, spawner }: Services,
  arrange: Arrange
): Effect.fn.Return<Workplace, Failure | ProcessError, Scope.Scope> {
  const contents = {
    links: new Map(plan.entries.map(({ name, path }) => [name, path])),
    // Before 1.14, Firecracker makes none.
    files: [names.log]
  }
  if (keep === undefined) {
    const directory = yield* host.makeDirectory({ ...contents, parent: stateDirectory })
    yield* arrange({ directory, owner: undefined })
    const monitor = yield* spawner.spawn(commandOf(plan, directory), { ...spawning, cgroup })
    return unjailed(monitor, directory, host)
  }
  const directory = Kept.directoryIn(keep.directory)
  const { metrics } = plan.config
  yield* host.keepDirectory(
    directory,
    metrics === undefined ? contents : {
      ...contents,
      files: [...contents.files, names.metrics]
    }
  )
  yield* arrange({ directory, owner: undefined })
  const monitor = yield* holder.spawn(commandOf(plan, directory), { directory: keep.directory, cgroup, policy })
  return unjailed(monitor, directory, host)
})

/** The jailer leaves behind a process that is not ours. Its pipes are still those of the jailer. */
const adopt = Effect.fnUntraced(function*(jailer: Process, jail: PreparedJail, processes: ProcessHost["Service"]) {
  const fails = Effect.gen(function*() {
    const status = yield* jailer.exit
    // That says nothing yet.
    if (ExitStatus.isSuccess(status)) return yield* Effect.never
    const { stderr } = yield* jailer.tail
    const why = [`the jailer ${ExitStatus.format(status)}`, ...stderr.text.trim().split("\n")].join("\n")
    return yield* FirecrackerError.fail(
      new FirecrackerError.HostFailed({ operation: "jail Firecracker in", path: jail.plan.root, why })
    )
  })
  const identity = yield* Effect.raceFirst(jail.find(), fails)
  const adopted = yield* Effect.acquireRelease(
    AdoptedProcess.adopt(identity, {
      killScope: jail.killScope,
      policy: jail.plan.ignoresTermination ? killPolicy : policy
    }),
    (firecracker) => Effect.ignore(firecracker.shutdown())
  ).pipe(Effect.provideService(ProcessHost, processes))
  return { ...adopted, tail: jailer.tail, stdout: jailer.stdout }
})

const inJail = Effect.fnUntraced(function*(
  plan: LaunchPlan,
  jailPlan: JailPlan.JailPlan,
  { host, jails, processes, spawner }: Services,
  arrange: Arrange
): Effect.fn.Return<Workplace, Failure | ProcessError, Scope.Scope> {
  const jail = yield* jails.prepare(jailPlan)
  const { ignoresTermination, leavesJailer, root: directory, user: owner } = jailPlan
  const { machine, memoryHotplug } = plan.config
  // Its memory is the largest that a save writes; what else there is to a machine has a few MiB.
  const maxBytes = (machine.mem_size_mib + (memoryHotplug?.total_size_mib ?? 0) + 64) * 2 ** 20
  yield* arrange({ directory, owner })
  const jailer = yield* spawner.spawn(commandOf(plan), spawning)
  return {
    monitor: leavesJailer ? yield* adopt(jailer, jail, processes) : jailer,
    directory,
    owner,
    ignoresTermination,
    write: (to, isDiff, create) => {
      const [state, memory] = [`saved-${snapshotFiles.state}`, `saved-${snapshotFiles.memory}`] as const
      const files = filesIn(to)
      return create(state, memory).pipe(
        // Before it is moved out: a copy has no holes.
        Effect.andThen(isDiff ? host.listPages(`${directory}/${memory}`, files[2]) : Effect.void),
        Effect.andThen(jail.collect(JailPlan.JailPath(`/${state}`), files[0], { maxBytes })),
        Effect.andThen(jail.collect(JailPlan.JailPath(`/${memory}`), files[1], { maxBytes })),
        Effect.andThen(host.makeReadable(files[1])),
        Effect.tapError(() => Effect.ignore(host.remove([`${directory}/${state}`, `${directory}/${memory}`, ...files])))
      )
    }
  }
})

/** Makes the place, and starts Firecracker there. */
export const enter = (
  plan: LaunchPlan,
  stateDirectory: string | undefined,
  how: How,
  services: Services,
  arrange: Arrange
): Effect.Effect<Workplace, Failure | ProcessError, Scope.Scope> =>
  plan.jail === undefined
    ? inDirectory(plan, stateDirectory, how, services, arrange)
    : inJail(plan, plan.jail, services, arrange)
