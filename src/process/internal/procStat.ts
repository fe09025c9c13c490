import type { ProcessInfo } from "../ProcessHost.ts"

/**
 * Reads a line of `/proc/PID/stat` (proc_pid_stat(5)). The name stands in parentheses and may hold anything, parentheses
 * and newlines included, so the fields are counted from the last one that closes.
 */
export const parse = (line: string): Omit<ProcessInfo, "mark"> | undefined => {
  const open = line.indexOf("(")
  const close = line.lastIndexOf(")")
  if (open < 0 || close < open) return undefined
  const [state, parent, group, session, ...rest] = line.slice(close + 2).split(" ")
  const startTime = Number(rest[15])
  if (state === undefined || !Number.isSafeInteger(startTime)) return undefined
  return {
    pid: Number(line.slice(0, open)),
    command: line.slice(open + 1, close),
    state,
    parent: Number(parent),
    group: Number(group),
    session: Number(session),
    startTime
  }
}
