/**
 * Ways out of a process whose other threads may not want to go.
 */
import * as NodeFs from "node:fs"

/** A program that ends with the code at once; without a shell, Node itself. */
export const endWith = (code: number): { readonly file: string; readonly args: ReadonlyArray<string> } =>
  NodeFs.existsSync("/bin/sh")
    ? { file: "/bin/sh", args: ["sh", "-c", `exit ${code}`] }
    : { file: process.execPath, args: [process.execPath, "-e", `process.exitCode = ${code}`] }

/** futex(2), epoll_wait(2), epoll_pwait(2), by processor: where a thread waits that has nothing to do. */
const idle: Readonly<Record<string, ReadonlySet<string>>> = {
  x64: new Set(["202", "232", "281"]),
  arm64: new Set(["98", "22"])
}

const busyThreads = (): ReadonlyArray<string> => {
  const calls = idle[process.arch]
  if (calls === undefined) return []
  try {
    return NodeFs.readdirSync("/proc/self/task").filter((thread) => {
      if (Number(thread) === process.pid) return false
      const [call = ""] = NodeFs.readFileSync(`/proc/self/task/${thread}/syscall`, "latin1").trim().split(" ")
      return !calls.has(call)
    })
  } catch {
    return []
  }
}

/**
 * Is another thread busy, and stays so? `process.exit` waits for all of them: for a host name that no server resolves, for
 * a read of a pipe that nobody writes to, as long as it takes.
 */
const isHeldUp = (): boolean => {
  const pause = new Int32Array(new SharedArrayBuffer(4))
  let held = busyThreads()
  for (let look = 0; look < 5 && held.length > 0; look++) {
    Atomics.wait(pause, 0, 0, 4)
    const busy = new Set(busyThreads())
    held = held.filter((thread) => busy.has(thread))
  }
  return held.length > 0
}

/** For the `exit` event: sees to it that the exit that has begun comes to its end, with its code. */
export const leaveNow = (code: number): void => {
  if (!("execve" in process) || !isHeldUp()) return
  const { args, file } = endWith(code)
  try {
    // The same process, its threads gone: nothing is left to wait for.
    process.execve?.(file, args, { ...process.env, NODE_OPTIONS: "" })
  } catch {
    // Not permitted here: the exit takes as long as it takes.
  }
}
