/** Ending processes: how soon a dead child is noticed, how late an escalation comes, whole trees, many at once. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Scope from "effect/Scope"
import { execa } from "execa"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { readdir, readFile } from "node:fs/promises"
import { monitorEventLoopDelay } from "node:perf_hooks"
import { setTimeout as sleep } from "node:timers/promises"
import { Process, ProcessSpawner } from "../src/process/index.ts"
import { type Contender, escalating, obedient, ours, runtime } from "./contestants.ts"
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
  const reaped = await child.stop()
  await child.close()
  return whole ? now() - start : reaped
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

export const overshoot = async (rounds: number): Promise<Section> => {
  const graces = [200, 210, 225, 249]
  const tables: Array<string> = []
  const verdicts = []
  for (const grace of graces) {
    // An ignored signal stays ignored across exec(2).
    const args = ["-c", "trap '' TERM; exec sleep 1000"]
    const samples = await interleaved(
      rounds,
      escalating.map((contender): Contestant<number> => ({
        name: contender.name,
        run: async () => {
          const child = await contender.start("sh", args, grace)
          await settled(child.pid, "sleep")
          const late = await child.stop() - grace
          await child.close()
          return late
        }
      }))
    )
    tables.push(`Grace ${grace} ms:\n\n${table(samples, "ms late")}`)
    for (const scope of ["process", "group", "cgroup"]) {
      const late = p99(samples, `this library, ${scope}`)
      verdicts.push(verdict(`${scope}, grace ${grace} ms: p99 ≤ 3 ms late`, ms(late), late <= 3))
    }
  }
  return {
    title: "Escalation: how late after the grace",
    text: "A child that ignores SIGTERM, until it is reaped after SIGKILL, less the grace.",
    tables,
    verdicts
  }
}

/** Processes whose command line holds the mark and that are no zombies. */
const alive = async (mark: string): Promise<ReadonlyArray<number>> => {
  const found: Array<number> = []
  for (const entry of await readdir("/proc")) {
    if (!/^\d+$/.test(entry)) continue
    const cmdline = await readFile(`/proc/${entry}/cmdline`, "utf8").catch(() => "")
    if (cmdline.includes(mark) && Number(entry) !== process.pid) found.push(Number(entry))
  }
  return found
}

const statOf = async (pid: number): Promise<ReadonlyArray<string>> =>
  (await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "")).split(") ").at(-1)?.split(" ") ?? []

const isAlive = async (pid: number): Promise<boolean> => {
  const [state = "Z"] = await statOf(pid)
  return state !== "" && state !== "Z" && state !== "X"
}

const inGroup = async (pids: ReadonlyArray<number>, pgid: number): Promise<ReadonlyArray<number>> => {
  const members: Array<number> = []
  for (const pid of pids) if ((await statOf(pid))[2] === String(pgid)) members.push(pid)
  return members
}

export const treeKill = async (rounds: number): Promise<Section> => {
  const tables: Array<string> = []
  const verdicts = []
  for (const size of [10, 100, 500]) {
    let serial = 0
    const survivors = { "killpg of raw Node": 0, "this library, cgroup": 0 }
    // Half of them in sessions of their own, where no signal to the group finds them.
    const tree = (mark: string): string =>
      `i=0; while [ $i -lt ${size / 2} ]; do sleep ${mark} & setsid sleep ${mark} & i=$((i+1)); done; wait`
    const grown = async (mark: string): Promise<void> => {
      for (let tries = 0; tries < 1000; tries++) {
        if ((await alive(`sleep\0${mark}`)).length >= size) return
        await sleep(5)
      }
      throw new Error(`the tree ${mark} did not grow to ${size} processes`)
    }
    const clear = async (mark: string): Promise<number> => {
      const left = await alive(mark)
      for (const pid of left) {
        try {
          process.kill(pid, "SIGKILL")
        } catch { /* gone */ }
      }
      return left.length
    }
    const mark = (): string => String(1_000_000 + process.pid * 100 + serial++)
    const samples = await interleaved(rounds, [
      {
        name: "killpg of raw Node",
        run: async () => {
          const own = mark()
          const child = spawn("sh", ["-c", tree(own)], { stdio: "ignore", detached: true })
          await grown(own)
          const exit = once(child, "exit")
          const members = await inGroup(await alive(own), child.pid ?? 0)
          const start = now()
          process.kill(-(child.pid ?? 0), "SIGKILL")
          await exit
          // Zombies wait for init to reap them; what is dead is dead.
          for (const pid of members) while (await isAlive(pid)) await sleep(1)
          const took = now() - start
          await sleep(5)
          survivors["killpg of raw Node"] += await clear(own)
          return took
        }
      },
      {
        name: "this library, cgroup",
        run: async () => {
          const own = mark()
          const child = await ours("cgroup").start("sh", ["-c", tree(own)], 0)
          await grown(own)
          const start = now()
          await child.stop()
          await child.close()
          const took = now() - start
          survivors["this library, cgroup"] += await clear(own)
          return took
        }
      }
    ])
    tables.push(`${size} processes:\n\n${table(samples)}`)
    const ratio = median(samples, "this library, cgroup") / median(samples, "killpg of raw Node")
    verdicts.push(
      verdict(
        `${size}: no survivor`,
        `${survivors["this library, cgroup"]} (killpg left ${survivors["killpg of raw Node"]})`,
        survivors["this library, cgroup"] === 0
      ),
      verdict(`${size}: ≤ 1.2 × killpg`, times(ratio), ratio <= 1.2)
    )
  }
  return {
    title: "A whole tree, half of it with setsid",
    text:
      "SIGKILL to a tree until all that it can reach is dead: for killpg the group, with what has left it counted as survivors.",
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
