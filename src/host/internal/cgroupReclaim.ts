import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import { type Owner, Verdict } from "../../journal/ResourceKind.ts"
import { ProcessHost } from "../../process/ProcessHost.ts"
import * as Layout from "./cgroupLayout.ts"

interface Directories {
  readonly path?: string
  readonly v1: ReadonlyArray<string>
}

export const directoriesOf = ({ path, v1 }: Directories): ReadonlyArray<string> =>
  path === undefined ? v1 : [path, ...v1]

/** What is killed is gone within milliseconds, unless the kernel is busy on its behalf. */
const patience = Duration.seconds(3)

const step = Duration.millis(10)

const isOurs = (path: string, { token }: Pick<Owner, "token">): boolean =>
  path.endsWith(`/${Layout.parentName}/${token}`)

/** Kills all that is in the cgroups of a machine, and removes them. */
export const reclaim = Effect.fnUntraced(function*(
  { data, owner }: { readonly owner: Pick<Owner, "token">; readonly data: Directories },
  dryRun: boolean
): Effect.fn.Return<Verdict, never, FileSystem.FileSystem | ProcessHost> {
  const fs = yield* FileSystem.FileSystem
  const host = yield* ProcessHost
  const foreign = directoriesOf(data).find((path) => !isOurs(path, owner))
  if (foreign !== undefined) return Verdict.Foreign({ why: `${foreign} is not named after this machine` })
  const there = yield* Effect.filter(
    directoriesOf(data),
    (path) => Effect.orElseSucceed(fs.exists(`${path}/cgroup.procs`), () => false)
  )
  if (!dryRun) {
    // Whoever was killed before he made one may have made the directory above it, which goes with this.
    for (const path of directoriesOf(data)) if (!there.includes(path)) yield* host.cgroup(path).remove
  }
  if (there.length === 0) return Verdict.Absent()
  if (dryRun) return Verdict.Released()
  const deadline = (yield* Clock.currentTimeMillis) + Duration.toMillis(patience)
  let left = there
  let why = "there are processes in it"
  for (;;) {
    for (const path of left) {
      const cgroup = host.cgroup(path)
      // Only version 2 can kill all at once.
      yield* Effect.catch(
        path === data.path ? cgroup.kill : cgroup.signal("SIGKILL"),
        (error) => Effect.sync(() => void (why = error.message))
      )
    }
    left = yield* Effect.filter(left, (path) => Effect.map(host.cgroup(path).remove, (isRemoved) => !isRemoved))
    if (left.length === 0) return Verdict.Released()
    if ((yield* Clock.currentTimeMillis) >= deadline) break
    yield* Effect.sleep(step)
  }
  const pids = yield* Effect.forEach(left, (path) => host.cgroup(path).members)
  return Verdict.Stuck({
    why: `${left.join(", ")} cannot be removed, ${why}: ${[...new Set(pids.flat())].join(", ")}`,
    remedy: `see what they wait for (cat /proc/PID/stack), and then: rmdir ${left.join(" ")}`
  })
})
