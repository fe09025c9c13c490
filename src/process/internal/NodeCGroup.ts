import * as Effect from "effect/Effect"
import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
import * as Signal from "../../lifecycle/Signal.ts"
import { fromReason, type ProcessError, ProcessErrorReason } from "../ProcessError.ts"
import type { CGroup } from "../ProcessHost.ts"
import type { CGroups } from "../SpawnOptions.ts"
import { directoriesOf } from "./commandLine.ts"
import { kill } from "./NodeCGroupKill.ts"
import { attempt, errnoName } from "./NodeErrno.ts"

/** First part of the name of every cgroup under which children are kept. */
const prefix = "effect-microvm-"

/** Mount points stand in `/proc/self/mountinfo` with space, tab, newline and backslash as octal escapes. */
const unescapePath = (path: string): string =>
  path.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))

/** Our own cgroup (v2) as a path of the file system, or why there is none (cgroups(7), proc_pid_mountinfo(5)). */
const findOwn = (): { readonly path: string } | { readonly why: string } => {
  const own = attempt(() => NodeFs.readFileSync("/proc/self/cgroup", "utf8"))?.split("\n")
    .find((line) => line.startsWith("0::"))?.slice(3)
  const mounts = attempt(() => NodeFs.readFileSync("/proc/self/mountinfo", "utf8"))?.split("\n") ?? []
  for (const mount of mounts) {
    const [left = "", right = ""] = mount.split(" - ")
    const [root, point] = left.split(" ").slice(3, 5)
    if (own === undefined || root === undefined || point === undefined || !right.startsWith("cgroup2 ")) continue
    const below = NodePath.posix.relative(unescapePath(root), own)
    if (!below.startsWith("..")) return { path: NodePath.join(unescapePath(point), below) }
  }
  return { why: "no cgroup v2 file system is mounted" }
}

/** Where the cgroups of this process may be made, or why none can be. Makes nothing. */
export const findRoot = (name: string): { readonly path: string } | { readonly why: string } => {
  const own = findOwn()
  if ("why" in own) return own
  for (const file of [own.path, `${own.path}/cgroup.procs`]) {
    try {
      NodeFs.accessSync(file, NodeFs.constants.W_OK)
    } catch (cause) {
      return { why: `${file} is not writable (${errnoName(cause)}): have the cgroup delegated to this user` }
    }
  }
  return { path: `${own.path}/${prefix}${name}` }
}

const failed = (path: string, operation: string) => (cause: unknown): ProcessError =>
  fromReason(ProcessErrorReason.CGroupFailed({ path, operation, code: errnoName(cause) }), cause)

/** A directory is linked to by its parent, by itself, and by each directory in it: no need to read a listing for none. */
const hasDirectories = (path: string): boolean => (attempt(() => NodeFs.statSync(path).nlink) ?? 0) > 2

const directories = (path: string): ReadonlyArray<string> =>
  (attempt(() => NodeFs.readdirSync(path, { withFileTypes: true })) ?? [])
    .flatMap((entry) => entry.isDirectory() ? [`${path}/${entry.name}`] : [])

/** "utf8" has a way of its own in Node, which takes a fifth of the time. */
const read = (file: string): string | undefined => attempt(() => NodeFs.readFileSync(file, "utf8"))

/** `cgroup.procs` of the cgroups that were made here: to open it before a signal takes longer than the signal. */
const kept = new Map<string, number>()

const keep = (path: string): void => {
  try {
    kept.set(path, NodeFs.openSync(`${path}/cgroup.procs`, "r"))
  } catch {
    // There are better uses for the last descriptor: this one is opened anew each time, then.
  }
}

const letGo = (path: string): void => {
  const fd = kept.get(path)
  if (!kept.delete(path) || fd === undefined) return
  NodeFs.closeSync(fd)
}

const bytes = Buffer.alloc(4096)
const newline = 10
const zero = 48

/** Read before a signal, by code that is never warm: a plain loop takes 20 µs less than what reads better. */
const readPids = (fd: number): Array<number> => {
  const pids: Array<number> = []
  let pid = 0
  for (let at = 0, length = 0;; at += length) {
    length = NodeFs.readSync(fd, bytes, 0, bytes.length, at)
    if (length === 0) return pids
    for (let i = 0; i < length; i++) {
      const byte = bytes[i] ?? newline
      if (byte !== newline) pid = pid * 10 + byte - zero
      else {
        // Those of other pid namespaces are 0, which kill(2) takes for our own group.
        if (pid > 0) pids.push(pid)
        pid = 0
      }
    }
  }
}

const openPids = (path: string): Array<number> => {
  const fd = NodeFs.openSync(`${path}/cgroup.procs`, "r")
  try {
    return readPids(fd)
  } finally {
    NodeFs.closeSync(fd)
  }
}

/** Those in it and not below it. */
const direct = (path: string): Array<number> => {
  const fd = kept.get(path)
  return attempt(() => fd === undefined ? openPids(path) : readPids(fd)) ?? []
}

const below = (path: string): ReadonlyArray<number> => hasDirectories(path) ? directories(path).flatMap(members) : []

const members = (path: string): ReadonlyArray<number> => [...direct(path), ...below(path)]

/**
 * What is wrong with cgroups that a child is to start in, if anything is. Nothing stops a shell from writing a pid into a file of any
 * directory, and the child would be in no cgroup at all.
 */
export const faultsOf = (cgroups: CGroups): ReadonlyArray<string> =>
  directoriesOf(cgroups).flatMap((path) =>
    !NodePath.isAbsolute(path) || !NodeFs.existsSync(`${path}/cgroup.procs`)
      ? [`${JSON.stringify(path)} is no cgroup: make it first`]
      : path === cgroups.path && members(path).includes(process.pid)
      ? [`${JSON.stringify(path)} has us in it, and all in it is killed with the process: give another`]
      : path === cgroups.path && !NodeFs.existsSync(`${path}/cgroup.events`)
      ? [`${JSON.stringify(path)} is the root, or of version 1: give another as path`]
      : []
  )

/** A cgroup can be removed when nothing lives in it and nothing is below it. */
const remove = (path: string): boolean => {
  letGo(path)
  if (hasDirectories(path)) directories(path).forEach(remove)
  try {
    NodeFs.rmdirSync(path)
    return true
  } catch (cause) {
    return errnoName(cause) === "ENOENT"
  }
}

const watch = (path: string) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => {
        let hasChanged = false
        let wake = (): void => {}
        let watcher: NodeFs.FSWatcher | undefined
        try {
          watcher = NodeFs.watch(`${path}/cgroup.events`, () => {
            hasChanged = true
            wake()
          })
        } catch {
          // A host out of watches, or we of descriptors: it is looked at by the clock.
        }
        // The kernel ends the watch when the cgroup is removed.
        watcher?.on("error", () => {})
        const changed = Effect.callback<void>((resume) => {
          wake = () => {
            if (!hasChanged) return
            hasChanged = false
            resume(Effect.void)
          }
          wake()
          return Effect.sync(() => {
            wake = () => {}
          })
        })
        return { changed, watcher }
      }),
      ({ watcher }) => Effect.sync(() => watcher?.close())
    ),
    ({ changed }) => changed
  )

/** The cgroup of this path, whether it is there or not. */
export const at = (path: string): CGroup => ({
  path,
  members: Effect.sync(() => members(path)),
  // What is there and cannot be read is not said to be empty.
  populated: Effect.sync(() => read(`${path}/cgroup.events`)?.includes("populated 1") ?? NodeFs.existsSync(path)),
  watch: watch(path),
  signal: (signal, then) =>
    Effect.suspend(() => {
      const reached: Array<number> = []
      let refusal: ProcessError | undefined
      const send = (pid: number): void => {
        try {
          process.kill(pid, Signal.toNumber(signal))
          reached.push(pid)
          if (then !== undefined) process.kill(pid, Signal.toNumber(then))
        } catch (cause) {
          const code = errnoName(cause)
          if (code === "ESRCH") return
          const target = `the members of ${path}`
          refusal ??= fromReason(ProcessErrorReason.SignalFailed({ signal, target, code }), cause)
        }
      }
      direct(path).forEach(send)
      // Afterwards: most have none, and who waits for the end waits for the look, too.
      below(path).forEach(send)
      return reached.length === 0 && refusal !== undefined ? Effect.fail(refusal) : Effect.succeed(reached)
    }),
  kill: Effect.try({ try: () => kill(path), catch: failed(path, "kill") }),
  remove: Effect.sync(() => {
    const isRemoved = remove(path)
    const parent = NodePath.dirname(path)
    // The last child to go takes the common parent away.
    if (isRemoved && NodePath.basename(parent).startsWith(prefix) && !hasDirectories(parent)) {
      attempt(() => NodeFs.rmdirSync(parent))
    }
    return isRemoved
  })
})

export const make = (path: string): Effect.Effect<CGroup, ProcessError> =>
  Effect.try({
    try: () => {
      NodeFs.mkdirSync(path, { recursive: true })
      NodeFs.accessSync(`${path}/cgroup.kill`, NodeFs.constants.W_OK)
      keep(path)
      return at(path)
    },
    catch: failed(path, "create")
  }).pipe(Effect.tapError(() => Effect.sync(() => remove(path))))
