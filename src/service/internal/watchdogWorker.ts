/**
 * The program of the watchdog's thread. It is text, so that it is there wherever this module is: in the sources, in the
 * built package, in a bundle.
 *
 * Its clock counts its own turns: when the whole process has been stopped or starved, both threads have, and nobody is
 * blamed. On a machine that has too much to do, a thread that sleeps gets its turn all the same, and one that works does not:
 * of the time for which the main thread waited for a processor, a quarter counts, so that there is an end. While all is well
 * the thread sleeps on the shared cells and has no event loop to turn.
 */

/** Index into the shared cells. Times are in milliseconds. */
export const cell = {
  /** Changes with each message to the thread. */
  message: 0,
  /** Changes with each turn of the event loop. */
  beat: 1,
  /** How long the event loop may be blocked; -1 for ever. */
  blocked: 2,
  /** How long the stop may still take when `stops` changes; -1 when nothing is stopping. */
  stop: 3,
  /** Changes with each change of `stop`. */
  stops: 4,
  /** 1 while a debugger may be the one who holds the event loop up. */
  debugged: 5
} as const

/** What the thread is given, beside the cells. */
export interface WorkerData {
  readonly cells: Int32Array
  readonly every: number
  /** From the limit to the death of the process. */
  readonly reserve: number
  readonly code: number
  readonly terminationLog: string
  /** How to become a program that ends with the code at once, whatever holds the threads of this one up. */
  readonly becoming: { readonly file: string; readonly args: ReadonlyArray<string> }
}

export const watchdogWorker = `
"use strict"
const { workerData } = require("node:worker_threads")
const fs = require("node:fs")
const { becoming, cells, code, every, reserve, terminationLog } = workerData
const now = () => performance.now()
const started = now()
const seconds = (millis) => (Math.round(millis / 100) / 10) + " s"

const read = (index) => {
  const millis = Atomics.load(cells, index)
  return millis < 0 ? Infinity : millis
}

// For how long the main thread has been ready to run and did not, in milliseconds; the kernel may not tell.
const unserved = () => {
  try {
    const [, nanos] = fs.readFileSync("/proc/self/task/" + process.pid + "/schedstat", "latin1").split(" ")
    return Number(nanos) / 1e6 || 0
  } catch {
    return 0
  }
}

function watch() {
  const late = reserve / 8
  let beat, stops, stop, allowed, silent = 0, last = now(), lastUnserved = unserved()
  for (;;) {
    const seen = Atomics.load(cells, ${cell.message})
    const blocked = read(${cell.blocked})
    const serial = Atomics.load(cells, ${cell.stops})
    if (serial !== stops) {
      stops = serial
      stop = allowed = read(${cell.stop})
    }
    const turn = Atomics.load(cells, ${cell.beat})
    if (turn !== beat) {
      beat = turn
      silent = 0
    }
    const isDebugged = Atomics.load(cells, ${cell.debugged}) !== 0
    if (!isDebugged) {
      if (stop + late <= 0) return {
          phase: "stop",
          why: "the stop took longer than the " + seconds(allowed) + " it had",
          isBlocked: silent > every * 0.75
        }
      if (silent >= blocked) return { why: "the event loop has been blocked for " + seconds(silent), isBlocked: true }
    }
    // A limit that has passed at a breakpoint is no reason to wake for nothing.
    const next = isDebugged ? every : Math.max(1, Math.min(every, stop + late, blocked - silent))
    Atomics.wait(cells, ${cell.message}, seen, next)
    const gap = Math.min(now() - last, 2 * every)
    last = now()
    const waited = unserved() - lastUnserved
    lastUnserved += waited
    const counted = Math.max(gap / 4, gap - Math.max(0, waited))
    silent += counted
    stop -= counted
  }
}

// Not writeSync: a reader that does not read must not hold us up too. Not append: the log has one record.
const say = (text, then) => fs.write(2, text + "\\n", then ?? (() => {}))
const record = (phase, message) => {
  try {
    if (!fs.statSync(terminationLog).isFile()) return
    const elapsedSeconds = Math.round(now() - started) / 1000
    fs.writeFileSync(terminationLog, JSON.stringify({
      reason: "budgetPassed", phase, code, elapsedSeconds, message: message.slice(0, 1000)
    }) + "\\n")
  } catch {}
}

// The children that may be what the event loop waits for, and theirs: of those, the ones that would get our Ctrl-C too.
const descendants = () => {
  const stat = (pid) => fs.readFileSync("/proc/" + pid + "/stat", "latin1")
  const group = (text) => text.slice(text.lastIndexOf(")") + 2).split(" ")[2]
  const found = []
  const visit = (pid, own) => {
    try {
      for (const task of fs.readdirSync("/proc/" + pid + "/task")) {
        for (const child of fs.readFileSync("/proc/" + pid + "/task/" + task + "/children", "latin1").split(" ")) {
          const text = child === "" ? "" : stat(child)
          if (text === "" || group(text) !== own) continue
          found.push({ pid: Number(child), name: text.slice(text.indexOf("(") + 1, text.lastIndexOf(")")) })
          visit(child, own)
        }
      }
    } catch {}
  }
  try {
    visit(process.pid, group(stat(process.pid)))
  } catch {}
  return found
}

function end({ isBlocked, phase, why }) {
  record(phase, why)
  // Not by way of the listeners of "exit": one of them may be what does not end.
  const leave = "try { process.execve(" + JSON.stringify(becoming.file) + ", " + JSON.stringify(becoming.args) +
    ", { ...process.env, NODE_OPTIONS: '' }) } finally { process.reallyExit(" + code + ") }"
  const step = reserve / 8
  let exit = () => {}
  say("Watchdog: " + why + ": the process is ended", () => isBlocked || exit())
  try {
    const scripts = new Map()
    let isPaused = false
    const session = new (require("node:inspector").Session)()
    session.connectToMainThread()
    session.on("Debugger.scriptParsed", ({ params }) => scripts.set(params.scriptId, params.url))
    session.on("Debugger.paused", ({ params }) => {
      isPaused = true
      const frames = params.callFrames.map(({ functionName, location: { columnNumber = 0, lineNumber, scriptId } }) =>
        "  at " + (functionName || "<anonymous>") + " (" + (scripts.get(scriptId) || "<unknown>") + ":" + (lineNumber + 1) + ":" + (columnNumber + 1) + ")")
      const own = frames.filter((frame) => !frame.includes("(node:"))
      const shown = (own.length > 0 ? own : frames).slice(0, 10)
      record(phase, why + " " + shown[0].trim())
      say("Watchdog: the event loop was here\\n" + shown.join("\\n"), exit)
    })
    exit = () => session.post("Runtime.evaluate", { expression: leave })
    if (isBlocked) {
      session.post("Debugger.enable")
      // Who has heard it and does not stop has no program to stop in: the event loop has come free.
      session.post("Debugger.pause", () => setTimeout(() => isPaused || exit(), step))
    }
  } catch {}
  setTimeout(() => {
    const held = descendants()
    if (held.length > 0) {
      const names = held.map(({ name, pid }) => name + " (" + pid + ")").join(", ")
      say("Watchdog: the event loop may wait for these processes, which are killed: " + names)
      record(phase, why + ", maybe by " + names)
    }
    for (const { pid } of held) try { process.kill(pid, "SIGKILL") } catch {}
  }, 2 * step)
  setTimeout(() => process.kill(process.pid, "SIGKILL"), 6 * step)
  // Init of a namespace cannot be killed from within it; a trap of the processor ends it nevertheless.
  setTimeout(() => {
    require("node:v8").setFlagsFromString("--allow-natives-syntax")
    new Function("%SystemBreak()")()
  }, 6.5 * step)
}

end(watch())
`
