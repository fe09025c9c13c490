/** Ending processes: how soon a dead child is noticed, how late an escalation comes, whole trees, many at once. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Scope from "effect/Scope"
import { execa } from "execa"
import { execFileSync, spawn } from "node:child_process"
import { once } from "node:events"
import { constants, mkdtempSync, openSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { readFile } from "node:fs/promises"
import { Socket } from "node:net"
import { tmpdir } from "node:os"
import { monitorEventLoopDelay } from "node:perf_hooks"
import { setTimeout as sleep } from "node:timers/promises"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import { Process, ProcessSpawner } from "../src/process/index.ts"
import { type Child, type Contender, escalating, obedient, ours, runtime, type Span, timed } from "./contestants.ts"
import {
  type Contestant,
  interleaved,
  median,
  ms,
  now,
  quantile,
  type Samples,
  type Section,
  table,
  times,
  verdict
} from "./measure.ts"

/**
 * Waits until the process is the program that it is going to be, and sleeps, and then a while more. One that is still being loaded dies
 * sooner, and we kill sooner if we have just been at work: who takes less time to start would seem to take less time to kill.
 */
const settled = async (pid: number, program: string): Promise<void> => {
  for (let tries = 0; tries < 2000; tries++) {
    const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "")
    if (stat.includes(` (${program}) S `)) return sleep(5)
    await sleep(1)
  }
  throw new Error(`process ${pid} did not become ${program}`)
}

const p99 = (samples: Samples, name: string): number => quantile(samples.get(name) ?? [], 0.99)

const stopSleep = (contender: Contender, whole: boolean) => async (): Promise<number> => {
  const child = await contender.start("sleep", ["1000"], 2000)
  if (contender.name.includes("tini")) await sleep(10)
  else await settled(child.pid, "sleep")
  const start = now()
  const { from, until } = await child.stop()
  await child.close()
  return whole ? now() - start : until - from
}

export const killLatency = async (rounds: number): Promise<Section> => {
  const samples = await interleaved(
    rounds,
    obedient.map((contender) => ({ name: contender.name, run: stopSleep(contender, false) }))
  )
  const whole = await interleaved(
    Math.ceil(rounds / 3),
    obedient.filter(({ name }) => !name.includes("tini")).map((contender) => ({
      name: contender.name,
      run: stopSleep(contender, true)
    }))
  )
  const raw = median(samples, "raw Node")
  return {
    title: "Kill → reaped",
    text: "SIGTERM to a child that sleeps and dies of it, until its end is known.",
    tables: [
      table(samples),
      "The same until its scope is closed. This library looks for survivors then, which the others do not: in all of /proc for a process or a group, in the cgroup for a cgroup.",
      table(whole)
    ],
    verdicts: ["process", "group", "cgroup"].flatMap((scope) => {
      const name = `this library, ${scope}`
      return [
        verdict(
          `${scope}: p50 ≤ 1.5 × raw Node`,
          times(median(samples, name) / raw),
          median(samples, name) <= 1.5 * raw
        ),
        verdict(`${scope}: p99 ≤ 2 ms`, ms(p99(samples, name)), p99(samples, name) <= 2)
      ]
    })
  }
}

setFlagsFromString("--expose-gc")
const collectGarbage = (): void => {
  runInNewContext("gc()")
}

/** An ignored signal stays ignored across exec(2). */
const stubborn = ["-c", "trap '' TERM; exec sleep 1000"]

/** Children of these run at the same time, and are ended one after the other: how late each of them was reaped. */
const escalated = async (contenders: ReadonlyArray<Contender>, grace: number, apart: number) => {
  const children: Array<Child> = []
  for (const contender of contenders) {
    const child = await contender.start("sh", stubborn, grace)
    await settled(child.pid, "sleep")
    children.push(child)
  }
  // Nobody can tell whose garbage it is: when V8 collects that of all contestants, four threads take the cores for some milliseconds.
  collectGarbage()
  return Promise.all(children.map(async (child, n) => {
    await sleep(n * apart)
    const { from, until } = await child.stop()
    await child.close()
    return until - from - grace
  }))
}

export const overshoot = async (rounds: number): Promise<Section> => {
  const graces = [200, 210, 225, 249]
  // The last of them is asked to end before the grace of the first is over, and each is dead before that of the next is.
  const [together, apart] = [8, 23]
  const tables: Array<string> = []
  const verdicts = []
  for (const grace of graces) {
    const samples = new Map<string, Array<number>>(escalating.map(({ name }) => [name, []]))
    // V8 compiles what is new in threads that take the cores from us, so everybody is warmed up before the first.
    for (let round = grace === graces[0] ? -6 : 0; round < rounds; round++) {
      // They take turns child by child: a moment in which others have the cores hits a few of each, not all that one has in a round.
      const first = (round + 6) % escalating.length
      const turned = [...escalating.slice(first), ...escalating.slice(0, first)]
      const turns = [turned, turned, turned, turned].flat()
      for (let from = 0; from < turns.length; from += together) {
        const contenders = turns.slice(from, from + together)
        const late = await escalated(contenders, grace, apart)
        if (round >= 0) contenders.forEach(({ name }, n) => samples.get(name)?.push(...late.slice(n, n + 1)))
      }
    }
    tables.push(`Grace ${grace} ms:\n\n${table(samples, "ms late")}`)
    for (const scope of ["process", "group", "cgroup"]) {
      const late = p99(samples, `this library, ${scope}`)
      verdicts.push(verdict(`${scope}, grace ${grace} ms: p99 ≤ 3 ms late`, ms(late), late <= 3))
    }
  }
  return {
    title: "Escalation: how late after the grace",
    text:
      `A child that ignores SIGTERM, until it is reaped after SIGKILL, less the grace. ${together} children run at the same time, those of all contestants in turn, and are ended ${apart} ms apart. Garbage is collected before, that of all contestants.`,
    tables,
    verdicts
  }
}

/** Processes whose command line holds the mark and that are no zombies, which have none. */
const alive = (mark: string): ReadonlyArray<number> =>
  readdirSync("/proc").filter((entry) => {
    if (!/^\d+$/.test(entry) || Number(entry) === process.pid) return false
    try {
      return readFileSync(`/proc/${entry}/cmdline`, "utf8").includes(mark)
    } catch {
      return false
    }
  }).map(Number)

/** A pipe with a name, and when the last process that has it open is gone: the kernel tells, nobody has to look. */
const makePipe = () => {
  const directory = mkdtempSync(`${tmpdir()}/tree-`)
  const path = `${directory}/pipe`
  execFileSync("mkfifo", [path])
  const socket = new Socket({ fd: openSync(path, constants.O_RDONLY | constants.O_NONBLOCK) })
  const ended = once(socket, "end").then(now)
  socket.resume()
  return {
    path,
    ended,
    close: () => {
      socket.destroy()
      rmSync(directory, { recursive: true })
    }
  }
}

interface Tree {
  readonly pid: number
  /** Ends it, until that has been told. */
  readonly end: () => Promise<Span>
  /** Done when nothing is left to be cleared up. */
  readonly close: () => Promise<unknown>
}

const killpg = (script: string): Promise<Tree> => {
  const child = spawn("sh", ["-c", script], { stdio: "ignore", detached: true })
  const pid = child.pid ?? 0
  return Promise.resolve({
    pid,
    end: () =>
      timed(() => {
        const exit = once(child, "exit")
        process.kill(-pid, "SIGKILL")
        return exit
      }),
    close: () => Promise.resolve()
  })
}

const inCGroup = async (script: string): Promise<Tree> => {
  const { close, pid, stop } = await ours("cgroup").start("sh", ["-c", script], 0)
  return { pid, end: stop, close }
}

export const treeKill = async (rounds: ReadonlyArray<readonly [size: number, rounds: number]>): Promise<Section> => {
  const tables: Array<string> = []
  const verdicts = []
  for (const [size, count] of rounds) {
    let serial = 0
    const survivors = new Map<string, number>()
    const closed: Array<number> = []
    /** Those that nothing reaches do not hold the pipe. */
    const contestant = (
      name: string,
      start: (script: string) => Promise<Tree>,
      other: (mark: string) => string
    ): Contestant<number> => ({
      name,
      run: async () => {
        const mark = String(1_000_000 + process.pid * 100 + serial++)
        const pipe = makePipe()
        const tree = await start(
          `exec 3>${pipe.path}; i=0; while [ $i -lt ${size / 2} ]; do sleep ${mark} & ${
            other(mark)
          } & i=$((i+1)); done; wait`
        )
        for (let tries = 0; alive(`sleep\0${mark}`).length < size; tries++) {
          if (tries === 1000) throw new Error(`the tree ${mark} did not grow to ${size} processes`)
          await sleep(5)
        }
        // The last ones are still being loaded.
        await sleep(20)
        const { from, until } = await tree.end()
        const dead = Math.max(until, await pipe.ended) - from
        await tree.close()
        if (start === inCGroup) closed.push(now() - from)
        pipe.close()
        const left = alive(mark)
        survivors.set(name, (survivors.get(name) ?? 0) + left.length)
        for (const pid of left) {
          try {
            process.kill(pid, "SIGKILL")
          } catch { /* gone */ }
        }
        return dead
      }
    })
    const own = "this library, cgroup"
    const samples = await interleaved(count, [
      contestant("killpg, all in the group", killpg, (mark) => `sleep ${mark}`),
      contestant("killpg, half of them", killpg, (mark) => `setsid sleep ${mark} 3>&-`),
      contestant(own, inCGroup, (mark) => `setsid sleep ${mark}`)
    ])
    const name = `${own}, until its scope is closed`
    // Without those of the warm-up.
    tables.push(`${size} processes:\n\n${table(new Map([...samples, [name, closed.slice(-count)]]))}`)
    const ratio = median(samples, own) / median(samples, "killpg, all in the group")
    verdicts.push(
      verdict(
        `${size}: no survivor`,
        `${survivors.get(own)} (killpg left ${survivors.get("killpg, half of them")})`,
        survivors.get(own) === 0
      ),
      verdict(`${size}: ≤ 1.2 × killpg of as many`, times(ratio), ratio <= 1.2)
    )
  }
  return {
    title: "A whole tree, half of it with setsid",
    text:
      "SIGKILL to a tree until the end of its first process is told and all that can be reached have closed a pipe that they inherited, which nobody has to look for. What has left the group is not reached by killpg and counted as survivors; so that as many die, there is a tree that stays in its group, too.",
    tables,
    verdicts
  }
}

const lazy = [
  "-e",
  "$SIG{TERM} = sub { select undef, undef, undef, 0.05; exit 0 }; $| = 1; print \"ready\\n\"; sleep 1 while 1"
]

export const massStop = async (rounds: number): Promise<Section> => {
  const count = 100
  let loopDelay = 0
  const delays: Array<number> = []
  const watched = async (stop: () => Promise<unknown>): Promise<number> => {
    const histogram = monitorEventLoopDelay({ resolution: 1 })
    histogram.enable()
    const start = now()
    await stop()
    const took = now() - start
    histogram.disable()
    loopDelay = histogram.max / 1e6
    return took
  }
  const effectful = <R>(
    spawnAll: Effect.Effect<unknown, unknown, R | Scope.Scope>,
    run: (effect: Effect.Effect<unknown, unknown, R>) => Promise<unknown>
  ) =>
  async () => {
    const scope = await runtime.runPromise(Scope.make())
    await run(Scope.provide(spawnAll, scope))
    await sleep(300)
    return watched(() => runtime.runPromise(Scope.close(scope, Exit.void)))
  }
  const oursStop = effectful(
    Process.releasedTogether(
      Effect.forEach(
        Array.from({ length: count }),
        () =>
          Effect.flatMap(
            ProcessSpawner.ProcessSpawner,
            (spawner) =>
              spawner.spawn(ChildProcess.make("perl", lazy, { stdin: "ignore", stdout: "ignore", stderr: "ignore" }))
          ),
        { concurrency: 8 }
      )
    ),
    (effect) => runtime.runPromise(effect)
  )
  const samples = await interleaved(rounds, [
    {
      name: "raw Node",
      run: async () => {
        const children = Array.from({ length: count }, () => spawn("perl", lazy, { stdio: "ignore" }))
        await Promise.all(children.map((child) => once(child, "spawn")))
        await sleep(300)
        return watched(() =>
          Promise.all(children.map((child) => {
            const exit = once(child, "exit")
            child.kill()
            return exit
          }))
        )
      }
    },
    {
      name: "execa",
      run: async () => {
        const children = Array.from({ length: count }, () => execa("perl", lazy, { stdio: "ignore", reject: false }))
        await sleep(300)
        return watched(() =>
          Promise.all(children.map((child) => {
            child.kill()
            return child
          }))
        )
      }
    },
    {
      name: "Effect's spawner, one scope",
      run: effectful(
        Effect.forEach(
          Array.from({ length: count }),
          () => ChildProcess.make("perl", lazy, { stdin: "ignore", stdout: "ignore", stderr: "ignore" }),
          { concurrency: 8 }
        ),
        (effect) => runtime.runPromise(effect)
      )
    },
    {
      name: "this library",
      run: async () => {
        const took = await oursStop()
        delays.push(loopDelay)
        return took
      }
    }
  ])
  const ratio = median(samples, "this library") / median(samples, "raw Node")
  const delay = quantile(delays, 0.5)
  return {
    title: "Stopping 100 children that take 50 ms each",
    text: "All at the same time, until the last one is reaped.",
    tables: [table(samples)],
    verdicts: [
      verdict("≤ 1.3 × raw Node", times(ratio), ratio <= 1.3),
      verdict("event loop delay < 20 ms (median of the longest in each round)", ms(delay), delay < 20)
    ]
  }
}
