import * as Effect from "effect/Effect"
import * as NodeFs from "node:fs/promises"
import * as FirecrackerError from "../FirecrackerError.ts"
import type { CGroups, JailFile, JailHost, JailPlan } from "../JailPlan.ts"
import * as MountTable from "./mountTable.ts"
import { codeOf } from "./NodeAttempt.ts"
import * as JailFiles from "./NodeJailFiles.ts"

type Fault = FirecrackerError.Fault

const readMounts = async (): Promise<ReadonlyArray<MountTable.Mount>> =>
  MountTable.parse(await NodeFs.readFile("/proc/self/mountinfo", "utf8"))

interface Check {
  readonly holds: (path: string) => Promise<boolean>
  readonly remedy: string
}

/** The first of the checks that does not hold is the fault. */
const look = async (
  field: string,
  path: string,
  [check, ...others]: ReadonlyArray<Check>
): Promise<ReadonlyArray<Fault>> => {
  if (check === undefined) return []
  try {
    if (await check.holds(path)) return await look(field, path, others)
    return [{ field, value: path, remedy: check.remedy }]
  } catch (error) {
    return [{ field, value: path, remedy: `${check.remedy} (${codeOf(error)})` }]
  }
}

const program: Check = {
  holds: async (path) => {
    await NodeFs.access(path, NodeFs.constants.X_OK)
    return (await NodeFs.stat(path)).isFile()
  },
  remedy: "give a program that can be executed"
}

const directory: Check = {
  holds: async (path) => (await NodeFs.stat(path)).isDirectory(),
  remedy: "give a directory that is there"
}

const itself: Check = {
  holds: async (path) => await NodeFs.realpath(path) === path,
  remedy: "give the path that no symbolic link is a part of"
}

/** Who may write there could put another directory in the place of one of ours. */
const guarded: Check = {
  holds: async (path) => {
    const { mode, uid } = await NodeFs.lstat(path)
    return (uid === 0 || uid === process.geteuid?.()) && ((mode & 0o022) === 0 || (mode & 0o1000) !== 0)
  },
  remedy: "give a directory of root's that nobody else may write to"
}

const there: Check = {
  holds: async (path) => {
    await NodeFs.access(path)
    return true
  },
  remedy: "make the namespace first"
}

/** Opened, as a file that is not ours may be closed to us. A device is written to itself. */
const usable = (isWritable: boolean): Check => ({
  holds: async (path) => {
    const { O_NONBLOCK, O_RDONLY, O_RDWR } = NodeFs.constants
    const device = await JailFiles.blockDevice(path)
    await using handle = await NodeFs.open(path, (device !== undefined && isWritable ? O_RDWR : O_RDONLY) | O_NONBLOCK)
    if (device === undefined) return (await handle.stat()).isFile()
    return !isWritable || !await JailFiles.isReadOnlyDevice(path)
  },
  remedy: `give a regular file that we can read, or a block device that we can ${isWritable ? "write to" : "read"}`
})

/** By its mode alone: access control lists are not looked at. A device is not mounted: the jail gets a node of its own. */
const readableBy = ({ gid, uid }: JailPlan["user"]): Check => ({
  holds: async (path) => {
    const stat = await NodeFs.stat(path)
    const bit = stat.uid === uid ? 0o400 : stat.gid === gid ? 0o040 : 0o004
    return stat.isBlockDevice() || (stat.mode & bit) !== 0
  },
  remedy: `let uid ${uid} read it, or copy it`
})

const findCGroups = async (): Promise<CGroups> => {
  const { separate, unified } = MountTable.cgroupMounts(await readMounts())
  const controllers = unified === undefined
    ? ""
    : await NodeFs.readFile(`${unified}/cgroup.controllers`, "utf8").catch(() => "")
  return {
    separate,
    unified: unified === undefined
      ? undefined
      : { mount: unified, controllers: controllers.split(/\s+/).filter((name) => name !== "") }
  }
}

export const observe = (
  { base = "/srv/jailer", executable }: { readonly executable: string; readonly base?: string | undefined }
): Effect.Effect<JailHost, FirecrackerError.FirecrackerError> =>
  Effect.gen(function*() {
    const faults = yield* Effect.promise(async () => {
      const missing = await look("base", base, [directory])
      return [
        ...await look("executable", executable, [program]),
        ...missing.length > 0 ? missing : await faultsOfBase(await NodeFs.realpath(base))
      ]
    })
    if (faults.length > 0) return yield* FirecrackerError.fail(new FirecrackerError.InvalidRequest({ faults }))
    return yield* Effect.promise(async () => ({
      executable: await NodeFs.realpath(executable),
      base: await NodeFs.realpath(base),
      cgroups: await findCGroups()
    }))
  })

/** Where jails are made. */
const faultsOfBase = async (base: string): Promise<ReadonlyArray<Fault>> => {
  const options = MountTable.holding(await readMounts(), base)?.options ?? []
  const hostile = options.filter((option) => option === "nodev" || option === "noexec")
  return look("base", base, [directory, itself, guarded, {
    holds: () => Promise.resolve(hostile.length === 0),
    remedy: `give one where devices and programs work: it is mounted with ${hostile.join(", ")}`
  }])
}

/** What a jail is to have in its root. */
export const faultsOfFile = (
  field: string,
  file: JailFile,
  user: JailPlan["user"]
): Promise<ReadonlyArray<Fault>> =>
  file.how === "empty"
    ? Promise.resolve([])
    : look(
      `${field}.from`,
      file.from,
      file.how === "copy" ? [usable(file.writable === true)] : [usable(false), readableBy(user)]
    )

/** All that keeps the jail from being made, as far as looking tells. */
export const faultsOf = async (plan: JailPlan): Promise<ReadonlyArray<Fault>> => {
  const { argv: [jailer], files, host: { base, executable }, netns, user } = plan
  const found = await Promise.all([
    look("jailer", jailer, [program]),
    look("executable", executable, [program, itself]),
    faultsOfBase(base),
    netns === undefined ? Promise.resolve([]) : look("netns", netns, [there]),
    ...files.map(({ file }, index) => faultsOfFile(`files[${index}]`, file, user))
  ])
  return found.flat()
}

/** The directory in the base that the jails are in. */
export const faultsOfGroup = (path: string): Promise<ReadonlyArray<Fault>> =>
  look("base", path, [directory, itself, guarded])
