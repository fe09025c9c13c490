/**
 * Jails through Node: files by `node:fs`, device nodes by mknod(1), mounts by mount(8) and umount(8), processes and cgroups by
 * `ProcessHost`.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Predicate from "effect/Predicate"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { Buffer } from "node:buffer"
import * as NodeFs from "node:fs/promises"
import { dirname } from "node:path"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import * as OwnedFiles from "../process/OwnedFiles.ts"
import * as OwnerLock from "../process/OwnerLock.ts"
import { isAlive, ProcessHost } from "../process/ProcessHost.ts"
import * as ProcessIdentity from "../process/ProcessIdentity.ts"
import { ProcessSpawner } from "../process/ProcessSpawner.ts"
import * as FirecrackerError from "./FirecrackerError.ts"
import * as MountTable from "./internal/mountTable.ts"
import { attempt, attemptAbortable, hostFailed } from "./internal/NodeAttempt.ts"
import * as JailChecks from "./internal/NodeJailChecks.ts"
import * as JailFiles from "./internal/NodeJailFiles.ts"
import { removeTree } from "./internal/NodeJailTree.ts"
import * as Parents from "./internal/NodeParents.ts"
import { sibling } from "./internal/siblingJail.ts"
import { Jail, type Left, type PreparedJail } from "./Jail.ts"
import * as JailPlan from "./JailPlan.ts"

type Failure = FirecrackerError.FirecrackerError

/** Soon at first. */
const polling = Schedule.min([Schedule.exponential("2 millis"), Schedule.spaced("100 millis")])
/** The end of a process that was killed, and what the kernel has to do after it. */
const patience = "5 seconds"

const mountTable = Effect.promise(async () => MountTable.parse(await NodeFs.readFile("/proc/self/mountinfo", "utf8")))

const fromPlatform = (operation: string, path: string) => (cause: PlatformError.PlatformError) =>
  hostFailed(operation, path, cause.message, cause)

const staging = ({ directory }: JailPlan.JailPlan): string => `${directory}/new`

const check = (look: () => Promise<ReadonlyArray<FirecrackerError.Fault>>): Effect.Effect<void, Failure> =>
  Effect.flatMap(
    Effect.promise(look),
    (faults) =>
      faults.length === 0 ? Effect.void : FirecrackerError.fail(new FirecrackerError.InvalidRequest({ faults }))
  )

/** The number in the pid file. Who is in the jail can put anything there, and in its place. */
const readPid = async ({ pidFile }: JailPlan.JailPlan): Promise<number | undefined> => {
  const { O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = NodeFs.constants
  try {
    await using handle = await NodeFs.open(pidFile, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(16), 0, 16, 0)
    const text = buffer.toString("latin1", 0, bytesRead)
    return /^[1-9]\d{0,9}$/.test(text) ? Number(text) : undefined
  } catch {
    return undefined
  }
}

/** The id is among the first arguments. A process can say that its arguments are as long as it likes (PR_SET_MM_MAP of prctl(2)). */
const longestArguments = 2 ** 17

const readArguments = async (pid: number): Promise<ReadonlyArray<string>> => {
  try {
    await using handle = await NodeFs.open(`/proc/${pid}/cmdline`)
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(longestArguments), 0, longestArguments, 0)
    return buffer.toString("utf8", 0, bytesRead).split("\0")
  } catch {
    return []
  }
}

/**
 * Is the process one of this jail? It says so in its arguments, as the jailer did before it; and its root is the jail's, or the
 * directory it works in.
 */
const isInmate = async (pid: number, { id, root }: JailPlan.JailPlan): Promise<boolean> => {
  const args = await readArguments(pid)
  return args.some((arg, index) => arg === "--id" && args[index + 1] === id)
    && (await JailFiles.areSame(`/proc/${pid}/root/.`, root) || await JailFiles.areSame(`/proc/${pid}/cwd/.`, root))
}

const make = Effect.gen(function*() {
  const host = yield* ProcessHost
  const spawner = yield* ProcessSpawner
  // All of the context would have the layer's scope in it too.
  const files = Context.pick(FileSystem.FileSystem, Path.Path, ProcessHost)(
    yield* Effect.context<FileSystem.FileSystem | Path.Path | ProcessHost>()
  )
  const parents = Parents.make()
  const swept = new Set<string>()

  const run = (program: string, ...args: ReadonlyArray<string>): Effect.Effect<void, Failure> =>
    Effect.scoped(Effect.gen(function*() {
      const command = ChildProcess.make(program, args, { stdin: "ignore" })
      const child = yield* spawner.spawn(command, { killScope: "process" })
      const status = yield* child.exit
      if (ExitStatus.isSuccess(status)) return
      const { stderr } = yield* child.tail
      return yield* hostFailed(program, args.at(-1) ?? "", stderr.text.trim() || ExitStatus.format(status))
    })).pipe(
      Effect.catchTag("ProcessError", (error) => Effect.fail(hostFailed("run", program, error.message, error))),
      Effect.timeoutOrElse({
        duration: patience,
        orElse: () => Effect.fail(hostFailed(program, args.at(-1) ?? "", "it does not end"))
      })
    )

  /** Of the machine's cgroups. */
  const cgroups = ({ cgroup: { directories } }: JailPlan.JailPlan) => directories.map(({ path }) => host.cgroup(path))
  const members = (plan: JailPlan.JailPlan): Effect.Effect<ReadonlyArray<number>> =>
    Effect.map(Effect.forEach(cgroups(plan), (cgroup) => cgroup.members), (pids) => pids.flat())

  const alive = (pid: number) => Effect.map(host.inspect(pid), Option.filter(isAlive))

  /** The process of the pid file, if that is one of the jail that runs. What was looked at was that one only if it is still there. */
  const inmate = (plan: JailPlan.JailPlan) =>
    Effect.gen(function*() {
      const pid = yield* Effect.promise(() => readPid(plan))
      if (pid === undefined) return undefined
      const before = yield* alive(pid)
      if (Option.isNone(before) || !(yield* Effect.promise(() => isInmate(pid, plan)))) return undefined
      const after = yield* alive(pid)
      return Option.exists(after, ({ startTime }) => startTime === before.value.startTime) ? pid : undefined
    })

  const running = (plan: JailPlan.JailPlan): Effect.Effect<ReadonlyArray<number>> =>
    Effect.zipWith(
      members(plan),
      inmate(plan),
      (pids, pid) => pid === undefined || pids.includes(pid) ? pids : [...pids, pid]
    )

  const kill = (plan: JailPlan.JailPlan) =>
    Effect.gen(function*() {
      const pids = yield* running(plan)
      if (pids.length === 0) return true
      yield* Effect.forEach(cgroups(plan), (cgroup) => Effect.ignore(cgroup.kill))
      // It may have been moved out of them, or not be in them yet. The pids of the others may be somebody else's by now.
      const pid = yield* inmate(plan)
      if (pid !== undefined) yield* Effect.ignore(host.kill(pid, "SIGKILL"))
      return false
    })

  const until = (condition: Effect.Effect<boolean>): Effect.Effect<boolean> =>
    condition.pipe(
      Effect.repeat({ until: (holds) => holds, schedule: polling }),
      Effect.as(true),
      Effect.timeoutOrElse({ duration: patience, orElse: () => Effect.succeed(false) })
    )

  /** Files that are mounted in the root are ours; whatever else is mounted there is somebody else's. */
  const unmount = (plan: JailPlan.JailPlan) =>
    Effect.gen(function*() {
      for (const { point } of MountTable.below(yield* mountTable, plan.directory)) {
        const isFile = yield* Effect.promise(async () =>
          (await NodeFs.lstat(point).catch(() => undefined))?.isFile() === true
        )
        if (!isFile || dirname(point) !== plan.root) continue
        yield* run("umount", point).pipe(
          Effect.retry({ schedule: Schedule.spaced("100 millis"), times: 5 }),
          Effect.ignore
        )
      }
    })

  const removeFiles = (plan: JailPlan.JailPlan): Effect.Effect<ReadonlyArray<Left>> =>
    Effect.gen(function*() {
      yield* unmount(plan)
      const points = new Set(MountTable.below(yield* mountTable, plan.directory).map(({ point }) => point))
      return yield* Effect.promise(() => removeTree(plan.directory, points))
    })

  const removeCGroups = (plan: JailPlan.JailPlan): Effect.Effect<ReadonlyArray<Left>> =>
    Effect.map(
      Effect.forEach(cgroups(plan), ({ path, remove }) =>
        Effect.map(until(remove), (isGone): ReadonlyArray<Left> =>
          isGone ? [] : [{ path, why: "it is still in use" }])),
      (left) =>
        left.flat()
    )

  const release = (plan: JailPlan.JailPlan): Effect.Effect<ReadonlyArray<Left>> =>
    Effect.gen(function*() {
      const isQuiet = yield* until(kill(plan))
      const left = isQuiet ? yield* removeFiles(plan) : [{
        path: plan.directory,
        why: `processes that were killed do not end: ${(yield* running(plan)).join(", ")}`
      }]
      return [...left, ...yield* removeCGroups(plan)]
    })

  /** What an earlier machine of this id has left, after it has ended. */
  const removeRemains = (plan: JailPlan.JailPlan): Effect.Effect<boolean, Failure> =>
    Effect.gen(function*() {
      const refuse = (why: string) => Effect.fail(hostFailed("make a jail in", plan.directory, why))
      const places = [plan.directory, ...plan.cgroup.directories.map(({ path }) => path)]
      const found = yield* Effect.promise(() =>
        Promise.all(places.map((path) => NodeFs.lstat(path).catch(() => undefined)))
      )
      if (found.every((stat) => stat === undefined)) return false
      const pids = yield* running(plan)
      if (pids.length > 0) return yield* refuse(`a machine of this id runs, end it first: process ${pids.join(", ")}`)
      const left = [...yield* removeFiles(plan), ...yield* removeCGroups(plan)]
      if (left.length === 0) return true
      const what = left.map(({ path, why }) => `${path}: ${why}`).join("; ")
      return yield* refuse(`the remains of an earlier machine of this id cannot be removed: ${what}`)
    })

  const lock = (group: string, id: string): Effect.Effect<void, Failure, Scope.Scope> =>
    Effect.gen(function*() {
      const scope = yield* Effect.scope
      const file = `${group}/${id}.lock`
      // The directory is needed only to get it.
      yield* Effect.scoped(Effect.flatMap(
        OwnedFiles.temporaryDirectory(group),
        (own) => Scope.provide(OwnerLock.acquire({ file, own, patience: 0 }), scope)
      ))
    }).pipe(
      Effect.catchTags({
        LockHeld: (error) => Effect.fail(hostFailed("make a jail in", `${group}/${id}`, error.message, error)),
        PlatformError: (error) => Effect.fail(fromPlatform("lock", `${group}/${id}`)(error))
      }),
      Effect.provide(files)
    )

  const sweeping = Semaphore.makeUnsafe(1)
  /**
   * What programs that were killed have left in this base, once, before the first jail is made there. A jail that nobody of us
   * has locked is none of our business.
   */
  const sweep = (plan: JailPlan.JailPlan): Effect.Effect<void, Failure> =>
    sweeping.withPermits(1)(Effect.gen(function*() {
      const group = dirname(plan.directory)
      if (swept.has(group)) return
      yield* Effect.mapError(Effect.provide(OwnedFiles.sweep(group), files), fromPlatform("sweep", group))
      const names = yield* Effect.promise(() => NodeFs.readdir(group).catch(() => []))
      const ids = names.flatMap((name) => /^([A-Za-z0-9-]{1,64})\.lock$/.exec(name)?.[1] ?? [])
      yield* Effect.forEach(
        ids.filter((id) => id !== plan.id),
        (id) => Effect.ignore(Effect.scoped(Effect.andThen(lock(group, id), removeRemains(sibling(plan, id))))),
        { concurrency: 4, discard: true }
      )
      swept.add(group)
    }))

  let staged = 0
  /** A name where nobody but us can be, on the file system of the jail. */
  const stage = (plan: JailPlan.JailPlan, name: string): string => `${staging(plan)}/${++staged}-${name}`

  /** Made in the staging directory, and put in place when it is all right. */
  const putOwn = (
    plan: JailPlan.JailPlan,
    to: string,
    { mode, name, uid, write }: {
      readonly name: string
      readonly mode: number
      readonly uid: number
      readonly write: (at: string) => Effect.Effect<void, Failure>
    }
  ): Effect.Effect<void, Failure> => {
    const made = stage(plan, name)
    return Effect.gen(function*() {
      yield* write(made)
      yield* attempt("give away", made, async () => {
        await NodeFs.chmod(made, mode)
        await NodeFs.chown(made, uid, plan.user.gid)
      })
      // Unlike a rename, this replaces nothing. The other name goes at once.
      yield* attempt("make", to, () => NodeFs.link(made, to))
    }).pipe(Effect.ensuring(Effect.promise(() => NodeFs.rm(made, { force: true }))))
  }

  const bind = (from: string, to: string): Effect.Effect<void, Failure> =>
    Effect.gen(function*() {
      yield* attempt("make", to, () => NodeFs.writeFile(to, "", { flag: "wx", mode: 0o400 }))
      yield* run("mount", "--bind", from, to)
      // The first mount has the options of the file system, whatever is asked for (mount(8), "Bind mount operation").
      yield* run("mount", "-o", "remount,bind,ro,nosuid,nodev,noexec", to)
      const top = (yield* mountTable).findLast(({ point }) => point === to)
      if (top?.options.includes("ro") !== true) return yield* hostFailed("mount", to, "it is not read-only")
    })

  const put = (plan: JailPlan.JailPlan, file: JailPlan.JailFile, to: string): Effect.Effect<void, Failure> => {
    const own = (write: (at: string) => Effect.Effect<void, Failure>, mode: number, uid: number = plan.user.uid) =>
      putOwn(plan, to, { name: file.name, mode, uid, write })
    if (file.how === "empty") {
      return own((at) => attempt("make", at, () => NodeFs.writeFile(at, "", { flag: "wx", mode: 0o600 })), 0o600)
    }
    const { from } = file
    const isWritable = file.how === "copy" && file.writable === true
    return Effect.flatMap(attempt("look at", from, () => JailFiles.blockDevice(from)), (device) => {
      if (device !== undefined) {
        const node = (at: string) => run("mknod", "-m", "600", at, "b", String(device.major), String(device.minor))
        // Its owner could give himself the right to write.
        return isWritable ? own(node, 0o600) : own(node, 0o440, 0)
      }
      if (file.how === "bind") return bind(from, to)
      const copy = (at: string) => attemptAbortable(`copy ${from} to`, at, (signal) => JailFiles.copy(from, at, signal))
      return own(copy, isWritable ? 0o600 : 0o400)
    })
  }

  const fill = (plan: JailPlan.JailPlan): Effect.Effect<void, Failure> =>
    Effect.gen(function*() {
      const directories = [[plan.directory, 0o755], [staging(plan), 0o700], [plan.root, 0o700]] as const
      for (const [path, mode] of directories) yield* attempt("make", path, () => NodeFs.mkdir(path, { mode }))
      for (const { file, place: { outside } } of plan.files) {
        yield* put(plan, file, outside)
      }
    })

  const find = (plan: JailPlan.JailPlan): PreparedJail["find"] => (within = "10 seconds") => {
    const refuse = (why: string) => Effect.fail(hostFailed("find the process of", plan.pidFile, why))
    let seen = "no process is named there"
    const look = Effect.gen(function*() {
      const pid = yield* Effect.promise(() => readPid(plan))
      if (pid === undefined) return undefined
      const info = yield* alive(pid)
      if (Option.isNone(info)) return yield* refuse(`process ${pid} has ended already`)
      // It may not have become Firecracker yet.
      seen = `process ${pid} is none of this jail`
      if (!(yield* Effect.promise(() => isInmate(pid, plan)))) return undefined
      const identity = ProcessIdentity.make({ bootId: host.bootId, pid, startTime: info.value.startTime })
      // What was looked at was that process only if it is still there.
      const isThere = yield* Effect.provideService(ProcessIdentity.isAlive(identity), ProcessHost, host)
      return isThere ? identity : yield* refuse(`process ${pid} has ended already`)
    })
    return look.pipe(
      Effect.repeat({ until: Predicate.isNotUndefined, schedule: polling }),
      // The schedule has no end.
      Effect.filterOrElse(Predicate.isNotUndefined, () => refuse(seen)),
      Effect.timeoutOrElse({
        duration: within,
        orElse: () =>
          Effect.suspend(() => refuse(`${seen}, within ${Duration.format(Duration.fromInputUnsafe(within))}`))
      })
    )
  }

  return Jail.of({
    observe: Effect.fn("Jail.observe")(JailChecks.observe),

    prepare: Effect.fn("Jail.prepare")(function*(plan) {
      yield* check(() => JailChecks.faultsOf(plan))
      const group = dirname(plan.directory)
      yield* parents.keep([
        group,
        ...plan.cgroup.directories.flatMap(({ mount, path }) => Parents.between(mount, path))
      ])
      yield* attempt("make", group, () => NodeFs.mkdir(group, { recursive: true }))
      yield* check(() => JailChecks.faultsOfGroup(group))
      yield* sweep(plan)
      yield* lock(group, plan.id)
      const hadRemains = yield* removeRemains(plan)

      const turn = yield* Semaphore.make(1)
      let isReleased = false
      const releaseOnce: PreparedJail["release"] = turn.withPermits(1)(
        Effect.suspend(() =>
          isReleased ? Effect.succeed([]) : Effect.tap(release(plan), (left) =>
            Effect.sync(() => {
              isReleased = left.length === 0
            }))
        )
      )
      yield* Effect.addFinalizer(() =>
        Effect.flatMap(
          releaseOnce,
          Effect.forEach(({ path, why }) => Effect.logWarning(`the jail of ${plan.id} leaves ${path}: ${why}`), {
            discard: true
          })
        )
      )
      yield* fill(plan)

      const [cgroup] = plan.cgroup.directories
      return {
        plan,
        hadRemains,
        killScope: plan.cgroup.version === 2 && cgroup !== undefined
          ? { _tag: "CGroup", path: cgroup.path, reason: "the jail's" }
          : { _tag: "Process", reason: "the jail's cgroups are of version 1" },
        find: find(plan),
        add: Effect.fn("PreparedJail.add")(function*(file) {
          const place = yield* Effect.fromResult(JailPlan.place(plan, file.name))
          yield* check(() => JailChecks.faultsOfFile("file", file, plan.user))
          yield* put(plan, file, place.outside)
          return place
        }),
        collect: Effect.fn("PreparedJail.collect")(function*(path, to, { maxBytes = Infinity } = {}) {
          const { outside } = yield* Effect.fromResult(JailPlan.place(plan, path.slice(1)))
          yield* attemptAbortable(
            `move ${path} out of the jail to`,
            to,
            (signal) => JailFiles.moveOut(outside, stage(plan, path.slice(1)), to, { maxBytes, signal })
          )
        }),
        release: releaseOnce
      }
    })
  })
})

/**
 * Jails of this host. It has to be root's, as the jailer has to be, but for jails whose user is our own.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { Jail, NodeJail } from "effect-microvm-runtime/firecracker"
 * import { NodeProcessHost, NodeProcessSpawner } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const layer = NodeJail.layer.pipe(
 *   Layer.provide([NodeProcessSpawner.layer, NodeProcessHost.layer, NodeServices.layer])
 * )
 * const program = Jail.Jail.use((jail) => jail.observe({ executable: "/no/such/firecracker", base: "/proc/self" })).pipe(
 *   Effect.as([]),
 *   Effect.catchReason("FirecrackerError", "InvalidRequest", ({ faults }) => Effect.succeed(faults.map((one) => one.field)))
 * )
 * await Effect.runPromise(Effect.provide(program, layer)) // => ["executable"]
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<
  Jail,
  never,
  ProcessSpawner | ProcessHost | FileSystem.FileSystem | Path.Path
> = Layer.effect(Jail, make)
