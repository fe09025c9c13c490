/** The end of all in a cgroup. Without Effect: the program of the holder needs it, too. */
import * as NodeFs from "node:fs"
import { attempt, errnoName, withReserve } from "./NodeErrno.ts"

/** The processes in a cgroup and below it. Those of other pid namespaces are 0, which kill(2) takes for our own group. */
const members = (path: string): ReadonlyArray<number> => [
  ...(attempt(() => NodeFs.readFileSync(`${path}/cgroup.procs`, "latin1")) ?? "").split("\n").map(Number).filter((
    pid
  ) => pid > 0),
  ...(attempt(() => NodeFs.readdirSync(path, { withFileTypes: true })) ?? []).flatMap((entry) =>
    entry.isDirectory() ? members(`${path}/${entry.name}`) : []
  )
]

/** Each finds who was born during the one before, which is a millisecond at most. */
const mostLooks = 100

/** Who was sent SIGKILL forks no more, so that there is an end to those who were born meanwhile. */
const killEach = (path: string): void => {
  const seen = new Set<number>()
  let refusal: Error | undefined
  for (let looks = 0; looks < mostLooks; looks++) {
    const found = members(path).filter((pid) => !seen.has(pid))
    if (found.length === 0) break
    for (const pid of found) {
      seen.add(pid)
      try {
        process.kill(pid, "SIGKILL")
      } catch (cause) {
        if (errnoName(cause) !== "ESRCH") refusal ??= cause instanceof Error ? cause : new Error(String(cause))
      }
    }
  }
  if (refusal !== undefined) throw refusal
}

/** SIGKILL to all in a cgroup and below it: one by one where the kernel has no `cgroup.kill`, as before Linux 5.14. */
export const kill = (path: string): void => {
  try {
    withReserve(() => NodeFs.writeFileSync(`${path}/cgroup.kill`, "1", { flag: "r+" }))
  } catch (cause) {
    if (errnoName(cause) !== "ENOENT") throw cause
    killEach(path)
  }
}
