/**
 * What the jailer is going to be told, and what is put into its jail and taken out of the way again: all of it as a value.
 * No I/O.
 *
 * The jailer (docs/jailer.md of Firecracker) copies Firecracker into a directory of its own, limits it by a cgroup, makes
 * that directory its root, gives up all rights, and executes it there. Files, sockets and their removal are left to us.
 *
 * @since 0.1.0
 */
import * as Brand from "effect/Brand"
import * as Result from "effect/Result"
import * as FirecrackerError from "./FirecrackerError.ts"
import { type FirecrackerVersion, isAtLeast } from "./FirecrackerVersion.ts"

/** Absolute, and nothing in it to resolve but symbolic links. */
const isNormal = (path: string): boolean => /^(?:\/(?!\.{1,2}(?:\/|$))[^/\0\n]+)+$/.test(path)

/**
 * An absolute path as we see it.
 *
 * @category models
 * @since 0.1.0
 */
export type HostPath = Brand.Branded<string, "HostPath">

/**
 * ```ts import.meta.vitest
 * import { JailPlan } from "effect-microvm-runtime/firecracker"
 * JailPlan.HostPath.is("/srv/jailer") // => true
 * JailPlan.HostPath.is("/srv/../etc") // => false
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const HostPath: Brand.Constructor<HostPath> = Brand.make((path) =>
  isNormal(path) ? undefined : "an absolute path without \"//\", \".\" and \"..\""
)

/**
 * An absolute path as Firecracker sees it in its jail: what goes into its API.
 *
 * @category models
 * @since 0.1.0
 */
export type JailPath = Brand.Branded<string, "JailPath">

/**
 * ```ts import.meta.vitest
 * import { JailPlan } from "effect-microvm-runtime/firecracker"
 * JailPlan.JailPath("/vmlinux") // => "/vmlinux"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const JailPath: Brand.Constructor<JailPath> = Brand.make((path) =>
  isNormal(path) ? undefined : "an absolute path in the jail without \"//\", \".\" and \"..\""
)

/**
 * A file for the root of a jail, by its name there:
 *
 * - `copy`: a copy that belongs to the jail; a clone, which takes no room, where the file system can. Firecracker can write
 *   to it if it is to be `writable` (default false).
 * - `bind`: the file itself, mounted for reading only. Nothing of it is changed, so the jail's user must be allowed to read it.
 * - `empty`: an empty file that Firecracker can write to: before 1.14 it makes none for its log and metrics.
 *
 * Of a block device (a loop device, a logical volume) there is neither a copy nor a mount: the jail gets a node of its own, by
 * which Firecracker is at the device itself, whomever the device's own mode lets in. It can write to it only if that is to be `writable`.
 *
 * There are no hard links: what is shared by one would get the jail's owner wherever else it is in use.
 *
 * @category models
 * @since 0.1.0
 */
export type JailFile =
  | { readonly how: "copy"; readonly name: string; readonly from: string; readonly writable?: boolean | undefined }
  | { readonly how: "bind"; readonly name: string; readonly from: string }
  | { readonly how: "empty"; readonly name: string }

/**
 * The control groups of the host, as the jailer is going to find them.
 *
 * @category models
 * @since 0.1.0
 */
export interface CGroups {
  /** The unified hierarchy, and what can be controlled there. */
  readonly unified: { readonly mount: string; readonly controllers: ReadonlyArray<string> } | undefined
  /** Where the hierarchy (version 1) of a controller is. */
  readonly separate: ReadonlyMap<string, string>
}

/**
 * What has to be known of the host.
 *
 * @category models
 * @since 0.1.0
 */
export interface JailHost {
  /** Firecracker itself and no symbolic link to it: its file name becomes a part of paths. */
  readonly executable: string
  /** Where jails are made: a directory, and no symbolic link. */
  readonly base: string
  readonly cgroups: CGroups
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Names the machine: 1 to 64 letters, digits and `-`. */
  readonly id: string
  /** Absolute path of the jailer. It has to be of the same release as Firecracker. */
  readonly jailer: string
  /** The user that Firecracker becomes: one of its own for each machine. See `UidPool`. */
  readonly uid: number
  readonly gid: number
  /** Processors and MiB of memory that the guest can have at most, hotplugged memory included: the limits follow from it. */
  readonly machine: { readonly vcpus: number; readonly memoryMib: number }
  /** Of the jailer. Default: the newest that is known. */
  readonly version?: FirecrackerVersion | undefined
  /** Default none. */
  readonly files?: ReadonlyArray<JailFile> | undefined
  /** More arguments for Firecracker, beside its id and the socket of its API. Default none. */
  readonly args?: ReadonlyArray<string> | undefined
  /** Absolute path of a network namespace (ip-netns(8)) that has the TAP devices. Default: ours. */
  readonly netns?: string | undefined
  /** Gives it a process table of its own, of which it is the first process. Default false. */
  readonly newPidNamespace?: boolean | undefined
  /** It belongs to nobody: a session of its own, and no stdio. Default false. */
  readonly daemonize?: boolean | undefined
  /** `"auto"`, the default, takes version 2 where that has the controllers that are needed. */
  readonly cgroupVersion?: "auto" | 1 | 2 | undefined
  /** The cgroup above those of the machines, from the root of a hierarchy on. Default: the file name of Firecracker. */
  readonly parentCgroup?: string | undefined
  /**
   * Files of the machine's cgroup and what is written into them: `{ "cpu.max": "50000 100000" }`. There are always
   * `pids.max` and `memory.max` (version 1: `memory.limit_in_bytes`); given ones take the place of those.
   */
  readonly cgroup?: Readonly<Record<string, string>> | undefined
  /** How far into a file it can write, in bytes (RLIMIT_FSIZE): beyond its largest drive and its memory. Default: no limit. */
  readonly fileSize?: number | undefined
  /** How many descriptors it can have (RLIMIT_NOFILE). Default: the jailer's, 2048. */
  readonly openFiles?: number | undefined
}

/**
 * A file of the jail, by both of its paths.
 *
 * @category models
 * @since 0.1.0
 */
export interface Place {
  readonly inside: JailPath
  readonly outside: HostPath
}

/**
 * @category models
 * @since 0.1.0
 */
export interface JailPlan {
  readonly id: string
  /** For people: what is done, one sentence each. */
  readonly description: ReadonlyArray<string>
  readonly argv: readonly [program: string, ...args: ReadonlyArray<string>]
  readonly host: JailHost
  readonly user: { readonly uid: number; readonly gid: number }
  /** `<base>/<file name of Firecracker>/<id>`: all of the jail is below it. */
  readonly directory: HostPath
  /** What Firecracker sees as `/`. */
  readonly root: HostPath
  /** The jailer writes the number of Firecracker's process there. */
  readonly pidFile: HostPath
  /** The socket of the API. */
  readonly api: Place
  readonly files: ReadonlyArray<{ readonly file: JailFile; readonly place: Place }>
  readonly netns: string | undefined
  readonly cgroup: {
    readonly version: 1 | 2
    readonly parent: string
    /** What the jailer makes, one in each hierarchy: `mount/parent/id`. */
    readonly directories: ReadonlyArray<{ readonly mount: string; readonly path: HostPath }>
  }
  /** Is Firecracker another process than the one that was started as the jailer? That one exits with 0 then. */
  readonly leavesJailer: boolean
  /** The first process of a namespace ignores what it has no handler for, and Firecracker has none for SIGTERM. */
  readonly ignoresTermination: boolean
}

/**
 * The same file as we see it.
 *
 * ```ts import.meta.vitest
 * import { JailPlan } from "effect-microvm-runtime/firecracker"
 * const root = JailPlan.HostPath("/srv/jailer/firecracker/web-1/root")
 * JailPlan.outside({ root }, JailPlan.JailPath("/vsock.sock")) // => "/srv/jailer/firecracker/web-1/root/vsock.sock"
 * ```
 *
 * @category getters
 * @since 0.1.0
 */
export const outside = ({ root }: Pick<JailPlan, "root">, path: JailPath): HostPath => HostPath(`${root}${path}`)

const isFileName = (name: string): boolean => /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/.test(name)

/**
 * A name for a file in a jail: the last part of its path if it can be one, else `otherwise`.
 *
 * ```ts import.meta.vitest
 * import { JailPlan } from "effect-microvm-runtime/firecracker"
 * JailPlan.fileName("/v/workspace.ext4", "drive-0.img") // => "workspace.ext4"
 * JailPlan.fileName("/v/..", "drive-3.img") // => "drive-3.img"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const fileName = (path: string, otherwise: string): string => {
  const name = path.slice(path.lastIndexOf("/") + 1)
  return isFileName(name) ? name : otherwise
}

const executableName = ({ executable }: JailHost): string => executable.slice(executable.lastIndexOf("/") + 1)

const placeIn = (root: HostPath, name: string): Place => {
  const inside = JailPath(`/${name}`)
  return { inside, outside: outside({ root }, inside) }
}

const apiSocket = "api.sock"

/** What is the jailer's in the root of a jail. It makes the devices itself, and fails where one is already. */
const reserved = (executable: string): ReadonlySet<string> =>
  new Set(["dev", "run", "sys", "old_root", apiSocket, executable, `${executable}.pid`])

const nameRemedy = "give a name of letters, digits, \".\", \"_\" and \"-\" that the jailer does not use itself"

/** Whether it is a device is known only when the jail is made. */
const describe = ({ from, how }: Exclude<JailFile, { readonly how: "empty" }>): string => {
  const what = how === "copy" ? "a copy of" : "a read-only mount of"
  return from.startsWith("/dev/") ? `a node of ${from}, or if that is a file ${what} it` : `${what} ${from}`
}

const isFree = (name: string, executable: string): boolean => isFileName(name) && !reserved(executable).has(name)

/**
 * Where a file of this name is in the root of a jail. Fails with `InvalidRequest` when it cannot be one of ours.
 *
 * @category getters
 * @since 0.1.0
 */
export const place = (
  { host, root }: Pick<JailPlan, "host" | "root">,
  name: string
): Result.Result<Place, FirecrackerError.FirecrackerError> => {
  if (!isFree(name, executableName(host))) {
    const faults = [{ field: "name", value: name, remedy: nameRemedy }]
    return Result.fail(FirecrackerError.make(new FirecrackerError.InvalidRequest({ faults })))
  }
  return Result.succeed(placeIn(root, name))
}

/** The jailer gives the first four itself, and a second time is an error. The last would leave a jail without its bars. */
const refusedArgs: { readonly [arg: string]: string } = {
  "--id": "leave it out: the jailer gives it",
  "--start-time-us": "leave it out: the jailer gives it",
  "--start-time-cpu-us": "leave it out: the jailer gives it",
  "--parent-cpu-time-us": "leave it out: the jailer gives it",
  "--api-sock": `leave it out: it is /${apiSocket}`,
  "--no-api": "leave it out: the machine is driven by its API",
  "--no-seccomp": "leave it out: a filter of system calls is a part of the jail"
}

/** Before this release, the name of Firecracker's file had to say that it is one. */
const takesAnyName: FirecrackerVersion = { major: 1, minor: 13, patch: 0 }

/** 4294967295 stands for no user (chown(2)). */
const isUnprivileged = (id: number): boolean => Number.isInteger(id) && id > 0 && id < 4_294_967_295

/**
 * Firecracker has a thread for each processor, and two more. The kernel counts its own for asynchronous I/O too.
 * Memory is the guest's, page tables and the kernel's notes about each page of it, and what Firecracker itself needs.
 */
const defaultLimits = ({ memoryMib, vcpus }: Options["machine"], version: 1 | 2): Readonly<Record<string, string>> => ({
  "pids.max": String(vcpus + 32),
  [version === 2 ? "memory.max" : "memory.limit_in_bytes"]: String(
    (memoryMib + Math.ceil(memoryMib / 64) + 128) * 2 ** 20
  )
})

const controllerOf = (file: string): string => file.slice(0, file.indexOf("."))

/** What is chosen of the control groups, and what is missing for it. */
const chooseCGroups = ({ unified, separate }: CGroups, options: Options) => {
  const settingsOf = (version: 1 | 2) =>
    Object.entries({ ...defaultLimits(options.machine, version), ...options.cgroup })
  const missing = (version: 1 | 2): ReadonlyArray<string> =>
    [...new Set(settingsOf(version).map(([file]) => controllerOf(file)))].filter((controller) =>
      version === 2 ? unified?.controllers.includes(controller) !== true : !separate.has(controller)
    )
  const { cgroupVersion: wanted = "auto" } = options
  const version = wanted !== "auto" ? wanted : missing(2).length > 0 && missing(1).length === 0 ? 1 : 2
  const settings = settingsOf(version)
  const mounts = version === 2
    ? unified === undefined ? [] : [unified.mount]
    : settings.flatMap(([file]) => separate.get(controllerOf(file)) ?? [])
  return { version, settings, mounts: [...new Set(mounts)], missing: missing(version) }
}

const isGroupPath = (path: string): boolean =>
  /^(?!--)(?!\.{1,2}(?:\/|$))[^/\0\n]+(?:\/(?!\.{1,2}(?:\/|$))[^/\0\n]+)*$/.test(path)

const faultsOf = (
  host: JailHost,
  options: Options,
  name: string,
  chosen: ReturnType<typeof chooseCGroups>
): ReadonlyArray<FirecrackerError.Fault> => {
  const { cgroup = {}, fileSize, gid, id, jailer, machine, netns, openFiles, parentCgroup, uid, version } = options
  const faults: Array<FirecrackerError.Fault> = []
  const check = (isRight: boolean, field: string, value: unknown, remedy: string): void => {
    if (!isRight) faults.push({ field, value, remedy })
  }
  const path = "give an absolute path without \"//\", \".\" and \"..\""
  check(/^[A-Za-z0-9-]{1,64}$/.test(id), "id", id, "give 1 to 64 letters, digits and \"-\"")
  check(isNormal(jailer), "jailer", jailer, path)
  check(isNormal(host.executable), "executable", host.executable, path)
  check(
    (version === undefined || isAtLeast(version, takesAnyName) || name.includes("firecracker")) && isFileName(name),
    "executable",
    host.executable,
    "give a file whose name has letters, digits, \".\", \"_\" and \"-\" only, and before 1.13 the word firecracker"
  )
  check(isNormal(host.base), "base", host.base, path)
  check(isUnprivileged(uid), "uid", uid, "give the number of a user without rights, 1 to 4294967294")
  check(isUnprivileged(gid), "gid", gid, "give the number of a group without rights, 1 to 4294967294")
  check(
    Number.isSafeInteger(machine.vcpus) && machine.vcpus > 0,
    "machine.vcpus",
    machine.vcpus,
    "give the number of its processors"
  )
  check(
    Number.isSafeInteger(machine.memoryMib) && machine.memoryMib > 0 && machine.memoryMib <= 2 ** 32,
    "machine.memoryMib",
    machine.memoryMib,
    "give a number of MiB"
  )
  if (netns !== undefined) check(isNormal(netns), "netns", netns, path)
  for (const [field, value] of [["fileSize", fileSize], ["openFiles", openFiles]] as const) {
    if (value !== undefined) check(Number.isSafeInteger(value) && value > 0, field, value, "give a whole number")
  }
  if (parentCgroup !== undefined) {
    check(
      isGroupPath(parentCgroup),
      "parentCgroup",
      parentCgroup,
      "give a path from the root of a hierarchy on: no \"..\""
    )
  }
  for (const [file, value] of Object.entries(cgroup)) {
    const isRight = /^[a-z][a-z0-9_]*(?:\.[A-Za-z0-9_]+)+$/.test(file) && /^[^=\0\n]+$/.test(value)
    check(isRight, "cgroup", `${file}=${value}`, "give a file, controller.property, and a value that has no \"=\"")
  }
  check(
    chosen.missing.length === 0,
    "cgroup",
    chosen.missing.join(", "),
    `have these controllers available in a hierarchy of version ${chosen.version}, so that the machine has limits`
  )
  const seen = new Set<string>()
  for (const [index, file] of (options.files ?? []).entries()) {
    const field = `files[${index}]`
    check(isFree(file.name, name), `${field}.name`, file.name, nameRemedy)
    check(!seen.has(file.name), `${field}.name`, file.name, "give each file a name of its own")
    seen.add(file.name)
    if (file.how !== "empty") check(isNormal(file.from), `${field}.from`, file.from, path)
  }
  for (const arg of options.args ?? []) {
    const remedy = refusedArgs[arg]
    if (remedy !== undefined) check(false, "args", arg, remedy)
  }
  return faults
}

/**
 * Plans a jail. Fails with `InvalidRequest`, all faults at once.
 *
 * A limit is always set: without one, the jailer (with cgroups of version 2) would make no cgroup at all.
 *
 * **Gotchas**
 *
 * - With `newPidNamespace` or `daemonize` the jailer is gone before Firecracker is up, and its exit code 0 says nothing: what
 *   is looked after is the process that the pid file names.
 * - With `newPidNamespace`, SIGTERM is ignored (pid_namespaces(7)); SIGKILL is not.
 * - The cgroup is named by `parentCgroup` and `id` alone: two machines of one `id` in two bases would share it, and the end of
 *   one would be that of the other. Give each base a `parentCgroup` of its own, or each machine another `id`.
 * - The jailer 1.16.0 refuses a `netns` that is reached by a symbolic link (`/var/run/netns`).
 *
 * ```ts import.meta.vitest
 * import { JailPlan } from "effect-microvm-runtime/firecracker"
 * import * as Result from "effect/Result"
 * const plan = Result.getOrThrow(JailPlan.make({
 *   executable: "/usr/bin/firecracker",
 *   base: "/srv/jailer",
 *   cgroups: { unified: { mount: "/sys/fs/cgroup", controllers: ["memory", "pids"] }, separate: new Map() }
 * }, {
 *   id: "web-1",
 *   jailer: "/usr/bin/jailer",
 *   uid: 100001,
 *   gid: 100001,
 *   machine: { vcpus: 2, memoryMib: 256 },
 *   files: [{ how: "bind", name: "vmlinux", from: "/images/vmlinux" }]
 * }))
 * plan.files[0]?.place.outside // => "/srv/jailer/firecracker/web-1/root/vmlinux"
 * plan.argv.slice(-3) // => ["--", "--api-sock", "/api.sock"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (host: JailHost, options: Options): Result.Result<JailPlan, FirecrackerError.FirecrackerError> => {
  const { args = [], daemonize = false, files = [], gid, id, newPidNamespace = false, uid } = options
  const name = executableName(host)
  const chosen = chooseCGroups(host.cgroups, options)
  const faults = faultsOf(host, options, name, chosen)
  if (faults.length > 0) {
    return Result.fail(FirecrackerError.make(new FirecrackerError.InvalidRequest({ faults })))
  }
  const { mounts, settings, version } = chosen
  const { parentCgroup: parent = name } = options
  const directory = HostPath(`${host.base}/${name}/${id}`)
  const root = HostPath(`${directory}/root`)
  const api = placeIn(root, apiSocket)
  const limits = [["fsize", options.fileSize], ["no-file", options.openFiles]] as const
  return Result.succeed({
    id,
    description: [
      `jailed in ${root} as uid ${uid}, gid ${gid}`,
      ...files.map((file) =>
        file.how === "empty"
          ? `/${file.name} is a new file there`
          : `/${file.name} there is ${describe(file)}`
      ),
      `limited by cgroup ${parent}/${id}, version ${version}: ${
        settings.map(([file, value]) => `${file} ${value}`).join(", ")
      }`,
      ...(options.netns === undefined ? [] : [`in network namespace ${options.netns}`]),
      ...(newPidNamespace ? ["in a process table of its own: SIGTERM is ignored there"] : []),
      ...(daemonize ? ["without a parent, and without stdio"] : [])
    ],
    argv: [
      options.jailer,
      "--id",
      id,
      "--exec-file",
      host.executable,
      "--uid",
      String(uid),
      "--gid",
      String(gid),
      "--chroot-base-dir",
      host.base,
      "--cgroup-version",
      String(version),
      "--parent-cgroup",
      parent,
      ...settings.flatMap(([file, value]) => ["--cgroup", `${file}=${value}`]),
      ...limits.flatMap(([limit, value]) => value === undefined ? [] : ["--resource-limit", `${limit}=${value}`]),
      ...(options.netns === undefined ? [] : ["--netns", options.netns]),
      ...(newPidNamespace ? ["--new-pid-ns"] : []),
      ...(daemonize ? ["--daemonize"] : []),
      "--",
      "--api-sock",
      api.inside,
      ...args
    ],
    host,
    user: { uid, gid },
    directory,
    root,
    pidFile: placeIn(root, `${name}.pid`).outside,
    api,
    files: files.map((file) => ({ file, place: placeIn(root, file.name) })),
    netns: options.netns,
    cgroup: {
      version,
      parent,
      directories: mounts.map((mount) => ({ mount, path: HostPath(`${mount}/${parent}/${id}`) }))
    },
    leavesJailer: newPidNamespace || daemonize,
    ignoresTermination: newPidNamespace
  })
}
