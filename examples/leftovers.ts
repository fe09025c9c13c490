/** Counts what a program like ours could leave on a host. */
import * as Effect from "effect/Effect"
import { readdirSync, readFileSync, readlinkSync } from "node:fs"
import { homedir, tmpdir } from "node:os"
import { join } from "node:path"

const entries = (directory: string): ReadonlyArray<string> => {
  try {
    return readdirSync(directory)
  } catch {
    return []
  }
}

/** Our descendants that are not dead, zombies that wait for a parent included. */
const processes = (): number => {
  const parents = new Map<number, number>()
  for (const pid of entries("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1)?.split(" ") ?? []
      parents.set(Number(pid), Number(fields[1]))
    } catch { /* it has ended meanwhile */ }
  }
  const isOurs = (pid: number): boolean => {
    const parent = parents.get(pid)
    return parent !== undefined && (parent === process.pid || isOurs(parent))
  }
  return [...parents.keys()].filter(isOurs).length
}

const sockets = (): number =>
  entries("/proc/self/fd").filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).startsWith("socket:")
    } catch {
      return false
    }
  }).length

const cgroups = (): number => {
  const mount = readFileSync("/proc/mounts", "utf8").split("\n").find((line) => line.split(" ")[2] === "cgroup2")
  const own = /^0::(.*)$/m.exec(readFileSync("/proc/self/cgroup", "utf8"))?.[1]
  return mount === undefined || own === undefined
    ? 0
    : entries(join(mount.split(" ")[1] ?? "", own)).filter((name) => name.startsWith(`effect-microvm-${process.pid}-`))
      .length
}

const files = (): number => {
  const cache = process.env["MICROVM_CACHE_DIR"] ??
    join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "effect-microvm-runtime")
  return entries(join(cache, "tmp")).length + entries(tmpdir()).filter((name) => name.includes("microvm")).length
}

export const leftovers: Effect.Effect<Readonly<Record<string, number>>> = Effect.sync(() => ({
  processes: processes(),
  sockets: sockets(),
  cgroups: cgroups(),
  files: files()
}))
