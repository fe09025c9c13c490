/** Where control groups of ours can be, and which of their controllers work there (cgroups(7)). */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import { unescape } from "./mountInfo.ts"

export const controllers = ["memory", "cpu", "pids", "io"] as const

export type Controller = (typeof controllers)[number]

/** Where a controller is: in our cgroups (v2), or in a hierarchy of its own (v1); or why it is of no use. */
export type Place =
  | { readonly by: "v2" }
  | { readonly by: "v1"; readonly base: string }
  | { readonly by: "none"; readonly why: string; readonly remedy: string }

/** Below `base` our cgroups (v2) are made. `enable` are the controllers that have to be switched on there first. */
type Unified =
  | { readonly base: string; readonly enable: ReadonlyArray<Controller> }
  | { readonly why: string; readonly remedy: string }

export interface Layout {
  readonly unified: Unified
  readonly places: Readonly<Record<Controller, Place>>
}

/** Last part but one of the path of each cgroup of a machine, in each hierarchy. Goes with the last machine. */
export const parentName = "effect-microvm-machines"

const delegate =
  "run it as a systemd unit with Delegate=yes and DelegateSubgroup=supervisor, or name a cgroup that is delegated to you"

interface Mount {
  readonly isUnified: boolean
  readonly root: string
  readonly point: string
  /** Of a hierarchy (v1). */
  readonly controllers: ReadonlyArray<string>
}

const parseMounts = (text: string): ReadonlyArray<Mount> =>
  text.split("\n").flatMap((line) => {
    const [left = "", right = ""] = line.split(" - ")
    const [root, point] = left.split(" ").slice(3, 5)
    const [type, , options = ""] = right.split(" ")
    return root === undefined || point === undefined || (type !== "cgroup" && type !== "cgroup2")
      ? []
      : [{
        isUnified: type === "cgroup2",
        root: unescape(root),
        point: unescape(point),
        controllers: options.split(",")
      }]
  })

/** `:` to the unified hierarchy is the empty name. */
const parseOwn = (
  text: string
): ReadonlyArray<{ readonly controllers: ReadonlyArray<string>; readonly path: string }> =>
  text.split("\n").flatMap((line) => {
    const found = /^\d+:([^:]*):(\/.*)$/.exec(line)
    return found === null ? [] : [{ controllers: (found[1] ?? "").split(","), path: found[2] ?? "/" }]
  })

/** A cgroup's path as one of the file system; none when it is not below what is mounted. */
const located = ({ point, root }: Mount, path: string): string | undefined => {
  if (root === "/") return path === "/" ? point : `${point}${path}`
  if (path === root) return point
  return path.startsWith(`${root}/`) ? `${point}${path.slice(root.length)}` : undefined
}

const words = (text: string | undefined): ReadonlyArray<string> =>
  text?.split(/\s+/).filter((word) => word !== "") ?? []

/** Looks round, and changes nothing. */
export const detect = Effect.fnUntraced(function*(delegated: string | undefined) {
  const fs = yield* FileSystem.FileSystem
  const read = (path: string) => Effect.orElseSucceed(fs.readFileString(path), () => undefined)
  const isWritable = (path: string) => Effect.isSuccess(fs.access(path, { writable: true }))
  const mounts = parseMounts((yield* read("/proc/self/mountinfo")) ?? "")
  const own = parseOwn((yield* read("/proc/self/cgroup")) ?? "")

  const ownOf = (mount: Mount, controller: string): string | undefined => {
    const path = own.find((one) => one.controllers.includes(controller))?.path
    return path === undefined ? undefined : located(mount, path)
  }

  /** The cgroup that we may make others in: ours, or the one above it where a unit keeps its own processes apart. */
  const findBase = Effect.fnUntraced(function*(mount: Mount) {
    const mine = ownOf(mount, "")
    if (mine === undefined || mine === mount.point) return mine
    const above = mine.slice(0, mine.lastIndexOf("/"))
    const isApart = /\.(service|scope)$/.test(above) && words(yield* read(`${above}/cgroup.procs`)).length === 0 &&
      (yield* isWritable(`${above}/cgroup.procs`))
    return isApart ? above : mine
  })

  const unified = yield* Effect.gen(function*() {
    const mount = mounts.find((one) => one.isUnified)
    if (mount === undefined) {
      return { why: "no cgroup v2 file system is mounted", remedy: "mount -t cgroup2 none /sys/fs/cgroup/unified" }
    }
    const base = delegated ?? (yield* findBase(mount))
    if (base === undefined) return { why: `our cgroup is not below ${mount.point}`, remedy: delegate }
    for (const path of [base, `${base}/cgroup.procs`]) {
      if (!(yield* isWritable(path))) return { why: `${path} is not writable`, remedy: delegate }
    }
    return { base }
  })

  const has: Array<string> = []
  const on: Array<string> = []
  /** Why no further controller can be switched on. */
  let closed: string | undefined
  if ("base" in unified) {
    const { base } = unified
    has.push(...words(yield* read(`${base}/cgroup.controllers`)))
    on.push(...words(yield* read(`${base}/cgroup.subtree_control`)))
    // The root of all has no such file, and is the only one that may have processes and controllers for those below it.
    const isRoot = (yield* read(`${base}/cgroup.events`)) === undefined
    if (!isRoot && words(yield* read(`${base}/cgroup.procs`)).length > 0) {
      closed = `there are processes in ${base}, so nothing can be switched on below it`
    } else if (!(yield* isWritable(`${base}/cgroup.subtree_control`))) {
      closed = `${base}/cgroup.subtree_control is not writable`
    }
  }

  const enable: Array<Controller> = []
  const place = Effect.fnUntraced(function*(controller: Controller): Effect.fn.Return<Place> {
    if (has.includes(controller)) {
      if (on.includes(controller)) return { by: "v2" }
      if (closed !== undefined) return { by: "none", why: closed, remedy: delegate }
      enable.push(controller)
      return { by: "v2" }
    }
    const name = controller === "io" ? "blkio" : controller
    const mount = mounts.find((one) => !one.isUnified && one.controllers.includes(name))
    if (mount === undefined) {
      const why = "why" in unified
        ? unified.why
        : `the cgroup ${unified.base} does not have the controller ${controller}`
      return { by: "none", why, remedy: delegate }
    }
    const base = ownOf(mount, name)
    if (base === undefined) {
      return { by: "none", why: `our cgroup of ${name} is not below ${mount.point}`, remedy: delegate }
    }
    return (yield* isWritable(base))
      ? { by: "v1", base }
      : { by: "none", why: `${base} is not writable`, remedy: `become root, or chown ${base} to this user` }
  })
  const places = yield* Effect.all({
    memory: place("memory"),
    cpu: place("cpu"),
    pids: place("pids"),
    io: place("io")
  })
  const layout: Layout = { unified: "base" in unified ? { ...unified, enable } : unified, places }
  return layout
})
