/** Which network namespaces there are, by all that keeps one: threads, open files and mounts (namespaces(7), ip-netns(8)). */
import * as NodeFs from "node:fs"
import * as NodePath from "node:path"

export interface Seen {
  /** As `net:[4026531840]`. */
  readonly names: ReadonlySet<string>
  /** Is one that is not among them gone? Not, where processes of others are hidden from us, or cannot be looked at. */
  readonly isWhole: boolean
}

/** PROC_PID_INIT_INO: from any other namespace of processes, only its own are seen. */
const initialPids = "pid:[4026531836]"

const codeOf = (error: unknown): unknown => error instanceof Error && "code" in error ? error.code : undefined

export const look = (proc = "/proc"): Seen => {
  const names = new Set<string>()
  const mounts = new Set<string>()
  let isWhole = true
  const attempt = <A>(act: () => A, otherwise: A): A => {
    try {
      return act()
    } catch (error) {
      // It has ended meanwhile.
      if (codeOf(error) !== "ENOENT" && codeOf(error) !== "ESRCH") isWhole = false
      return otherwise
    }
  }
  const link = (...words: ReadonlyArray<string>) =>
    attempt(() => NodeFs.readlinkSync(NodePath.join(proc, ...words)), "")
  const list = (...words: ReadonlyArray<string>) =>
    attempt((): ReadonlyArray<string> => NodeFs.readdirSync(NodePath.join(proc, ...words)), [])
  const keep = (name: string) => name.startsWith("net:[") ? names.add(name) : names

  if (link("self", "ns", "pid") !== initialPids) isWhole = false
  const lookAt = (pid: string): void => {
    for (const thread of list(pid, "task")) keep(link(pid, "task", thread, "ns", "net"))
    for (const fd of list(pid, "fd")) keep(link(pid, "fd", fd))
    const own = link(pid, "ns", "mnt")
    if (own === "" || mounts.has(own)) return
    mounts.add(own)
    const text = attempt(() => NodeFs.readFileSync(NodePath.join(proc, pid, "mountinfo"), "utf8"), "")
    for (const line of text.split("\n")) keep(line.split(" ")[3] ?? "")
  }
  const known = new Set<string>()
  const others = () => list().filter((name) => /^\d+$/.test(name) && !known.has(name))
  // One that has ended before it was looked at may have left a child that was not there yet.
  for (let pids = others(); pids.length > 0; pids = others()) {
    for (const pid of pids) {
      known.add(pid)
      lookAt(pid)
    }
  }
  // Where others are hidden (`hidepid` of proc(5)), they are not even listed.
  return { names, isWhole: isWhole && known.has("1") }
}
