import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as NodeFs from "node:fs"
import * as NodeOs from "node:os"
import * as Mark from "../Mark.ts"
import { isAlive, type ProcessInfo } from "../ProcessHost.ts"
import { attempt } from "./NodeErrno.ts"
import * as ProcStat from "./procStat.ts"

/** "utf8" has a way of its own in Node, which takes a fifth of the time. */
const readStat = (pid: number): string | undefined => attempt(() => NodeFs.readFileSync(`/proc/${pid}/stat`, "utf8"))

/**
 * What execve(2) takes, arguments included, where nobody has raised the limit of the stack. A process can say that its environment is
 * wherever it likes, and as long as it likes: PR_SET_MM_MAP of prctl(2) asks for no capability.
 */
const longestEnvironment = 2 ** 21

const usual = Buffer.alloc(2 ** 15)

const readEnvironment = (pid: number): string | undefined =>
  attempt(() => {
    const fd = NodeFs.openSync(`/proc/${pid}/environ`, "r")
    try {
      const length = NodeFs.readSync(fd, usual, 0, usual.length, 0)
      if (length < usual.length) return usual.toString("latin1", 0, length)
      const all = Buffer.alloc(longestEnvironment)
      return all.toString("latin1", 0, NodeFs.readSync(fd, all, 0, all.length, 0))
    } finally {
      NodeFs.closeSync(fd)
    }
  })

const entry = `${Mark.variable}=`

/** The mark of a process; `"unknown"` in the middle of its execve(2), when it has no environment for a moment. */
const readMark = (pid: number): string | undefined => {
  const environ = readEnvironment(pid)
  if (environ === "") return unknown
  if (environ === undefined) return undefined
  // Not split: a hostile one is two million empty entries.
  const at = `\0${environ}`.indexOf(`\0${entry}`)
  if (at < 0) return undefined
  const end = environ.indexOf("\0", at)
  return environ.slice(at + entry.length, end < 0 ? undefined : end)
}

/** No mark looks like this. */
const unknown = "unknown"

/** One without any environment has no mark either. */
const settled = (info: ProcessInfo): ProcessInfo => info.mark === unknown ? { ...info, mark: undefined } : info

/** What the kernel says of a process now, its mark included. */
export const inspect = (pid: number): ProcessInfo | undefined => {
  const info = read(pid)
  return info && settled(info)
}

const read = (pid: number, since = 0): ProcessInfo | undefined => {
  const stat = readStat(pid)
  const info = stat === undefined ? undefined : ProcStat.parse(stat)
  return info && { ...info, mark: info.startTime < since || !isAlive(info) ? undefined : readMark(pid) }
}

/** Start and inode of processes that were too old for somebody. A pid that passes to another process has another inode in /proc. */
const old = new Map<number, { readonly startTime: number; readonly inode: number }>()

const inodeOf = (pid: number): number | undefined => attempt(() => NodeFs.statSync(`/proc/${pid}`).ino)

/** Like `read`, for those that started at that tick or later: to see that an old one is still the same takes a fifth of the time. */
const readYoung = (pid: number, since: number): ProcessInfo | undefined => {
  const inode = inodeOf(pid)
  const seen = old.get(pid)
  if (inode === undefined || (seen !== undefined && seen.inode === inode && seen.startTime < since)) return undefined
  const info = read(pid, since)
  if (info === undefined || info.startTime >= since) return info
  old.set(pid, { startTime: info.startTime, inode })
  return undefined
}

/**
 * The time since boot in the hundredths that `/proc/PID/stat` counts in (USER_HZ is 100 on Linux). libuv reads
 * `/proc/uptime`, which has two decimals; doing so ourselves takes five times as long.
 */
export const ticks = (): number => Math.round(NodeOs.uptime() * 100)

/** Milliseconds of file reads; then others have their turn. */
const slice = 3

/** Milliseconds. An execve(2) that is under way is over by then, as a rule. */
const execTime = 2

/**
 * The whole table, or what started lately (`isYoung`). All who ask while a look is under way share the next one, and each look
 * lets the event loop go on after a few milliseconds, so a hundred children that end together cost two looks, not a hundred.
 */
export const makeList = (): (since: number, isYoung: boolean) => Effect.Effect<ReadonlyArray<ProcessInfo>> => {
  let next: Deferred.Deferred<ReadonlyArray<ProcessInfo>> | undefined
  let earliest = Infinity
  let areYoung = true
  let isLooking = false

  const look = (): void => {
    const waiting = next
    const since = earliest
    const readOne = areYoung ? readYoung : read
    earliest = Infinity
    areYoung = true
    isLooking = waiting !== undefined
    if (waiting === undefined) return
    next = undefined
    const pids = (attempt(() => NodeFs.readdirSync("/proc")) ?? []).filter((name) => /^\d+$/.test(name)).map(Number)
    const here = new Set(pids)
    for (const pid of old.keys()) {
      if (!here.has(pid)) old.delete(pid)
    }
    const found: Array<ProcessInfo> = []
    const finish = (infos: ReadonlyArray<ProcessInfo>): void => {
      Deferred.doneUnsafe(waiting, Exit.succeed(infos))
      look()
    }
    const go = (from: number): void => {
      const until = performance.now() + slice
      let at = from
      do {
        const pid = pids[at++]
        const info = pid === undefined ? undefined : readOne(pid, since)
        if (info !== undefined) found.push(info)
      } while (at < pids.length && performance.now() < until)
      if (at < pids.length) setImmediate(go, at)
      else if (!found.some((info) => info.mark === unknown)) finish(found)
      else {
        const again = (info: ProcessInfo): ReadonlyArray<ProcessInfo> => {
          const seen = info.mark === unknown ? read(info.pid) : info
          return seen === undefined ? [] : [settled(seen)]
        }
        setTimeout(() => finish(found.flatMap(again)), execTime)
      }
    }
    go(0)
  }

  return (since, isYoung) =>
    Effect.suspend(() => {
      next ??= Deferred.makeUnsafe()
      earliest = Math.min(earliest, since)
      areYoung &&= isYoung
      if (!isLooking) {
        isLooking = true
        setImmediate(look)
      }
      return Deferred.await(next)
    })
}
