/** Warm start: restored machines, many at once, ready ones, and what a save costs the machine that is saved. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { execFileSync, spawn } from "node:child_process"
import { once } from "node:events"
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Duplex } from "node:stream"
import { GuestAgent } from "../src/guest/index.ts"
import { Machine, MachineSpec, MicroVmPool, Snapshot, SnapshotStore } from "../src/microvm/index.ts"
import { NodeProcessHost, NodeProcessSpawner } from "../src/process/index.ts"
import { LaunchPlan, NodeQemuHost, QemuHost, QemuProvider } from "../src/qemu/index.ts"
import { GoldenMachines, NodeDiskSnapshotStore, NodeWarmMachine, WarmMachine } from "../src/warm/index.ts"
import { interleaved, median, ms, now, quantile, type Section, table, times, verdict } from "./measure.ts"

const services = NodeWarmMachine.layer.pipe(
  Layer.provideMerge(QemuProvider.layer),
  Layer.provideMerge(NodeQemuHost.layer),
  Layer.provideMerge(NodeProcessSpawner.layer),
  Layer.provideMerge(NodeProcessHost.layer),
  Layer.provide(NodeServices.layer)
)

/** The golden machine, and the command line that a machine which is restored from it has. */
const prepared = Effect.gen(function*() {
  const golden = yield* GoldenMachines.GoldenMachines
  const snapshot = yield* golden.ensure({
    image: "default",
    vcpus: 1,
    memoryMib: 256,
    channels: WarmMachine.channels()
  })
  const host = yield* QemuHost.QemuHost
  const setup = yield* Effect.fromResult(QemuHost.choose(yield* host.observe({})))
  const spec = yield* MachineSpec.decode({ ...snapshot.manifest.spec, id: "bench" })
  return { snapshot, plan: yield* Effect.fromResult(LaunchPlan.make(setup, spec, { _tag: "Restore", snapshot })) }
})

interface Bare {
  readonly pid: number
  readonly took: number
  readonly end: () => Promise<void>
}

/** By hand: the same command line, the same commands, no more than it takes. */
const bare = async (plan: LaunchPlan.LaunchPlan): Promise<Bare> => {
  const fds = [plan.fds.qmp, ...plan.fds.channels.values()]
  const stdio = Array.from(
    { length: Math.max(...fds) + 1 },
    (_, fd) => fds.includes(fd) ? "pipe" as const : "ignore" as const
  )
  const [program, ...args] = plan.argv
  const start = now()
  const qemu = spawn(program, args, { stdio, env: plan.env, detached: true })
  for (const stream of qemu.stdio) stream?.on("error", () => undefined)
  const socket = (fd: number) => {
    const stream = qemu.stdio[fd]
    if (!(stream instanceof Duplex)) throw new Error(`descriptor ${fd} is no socket`)
    return stream
  }
  const qmp = socket(plan.fds.qmp)
  let heard = ""
  const until = async (text: RegExp) => {
    while (!text.test(heard)) heard += String((await once(qmp, "data"))[0])
    heard = ""
  }
  const execute = async (command: string, answer: RegExp) => {
    qmp.write(`${command}\n`)
    await until(answer)
  }
  await until(/"QMP"/)
  await execute("{\"execute\":\"qmp_capabilities\"}", /"return"/)
  const capabilities = ["x-ignore-shared", "events"].map((capability) => ({ capability, state: true }))
  await execute(JSON.stringify({ execute: "migrate-set-capabilities", arguments: { capabilities } }), /"return"/)
  const uri = `fd:${plan.load?.fd}`
  await execute(JSON.stringify({ execute: "migrate-incoming", arguments: { uri } }), /"status": ?"completed"/)
  await execute("{\"execute\":\"cont\"}", /"return"/)
  const agent = socket(plan.fds.channels.get(GuestAgent.channelName) ?? 0)
  agent.write("{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":4711}}\n")
  let answer = ""
  while (!answer.includes("4711")) answer += String((await once(agent, "data"))[0])
  const took = now() - start
  return {
    pid: qemu.pid ?? 0,
    took,
    end: async () => {
      const exit = once(qemu, "exit")
      qemu.kill("SIGKILL")
      await exit
    }
  }
}

const runtime = ManagedRuntime.make(services)

let lastId = 0
const newId = (): string => `bench-${++lastId}`

const kill = (machine: Machine.Machine) => machine.shutdown({ request: { atLeast: "SIGKILL" } })

/** From the start of QEMU to the agent's first answer, and to a machine that has proven to be like no other. */
export const restore = async (rounds: number): Promise<Section> => {
  const { plan, snapshot } = await runtime.runPromise(prepared)
  const ours = Effect.gen(function*() {
    const start = now()
    const machine = yield* Machine.restore(newId(), snapshot)
    const socket = yield* machine.channel(GuestAgent.channelName)
    yield* machine.resume
    yield* GuestAgent.make(socket, { within: "1 minute" })
    const took = now() - start
    yield* kill(machine)
    return took
  }).pipe(Effect.scoped)
  const own = Effect.gen(function*() {
    const start = now()
    const { machine } = yield* WarmMachine.launch({ id: newId() })
    const took = now() - start
    yield* kill(machine)
    return took
  }).pipe(Effect.scoped)
  const samples = await interleaved(rounds, [
    {
      name: "bare QEMU",
      run: async () => {
        const { end, took } = await bare(plan)
        await end()
        return took
      }
    },
    { name: "this library", run: () => runtime.runPromise(ours) },
    { name: "this library, until it has proven to be its own", run: () => runtime.runPromise(own) }
  ])
  const ratio = median(samples, "this library") / median(samples, "bare QEMU")
  return {
    title: "Restore → first answer of the guest agent",
    text:
      "The same snapshot and the same command line of QEMU, started by `child_process.spawn` in the first row. The last row has the verdict on the snapshot in it, and the whole renewal.",
    tables: [table(samples)],
    verdicts: [verdict("≤ 1.2 × bare QEMU", times(ratio), ratio <= 1.2)]
  }
}

const cli = (...flags: ReadonlyArray<string>) => async (): Promise<number> => {
  const start = now()
  execFileSync(process.execPath, ["dist/cli/bin.js", "run", ...flags, "--", "true"], { stdio: "ignore" })
  return Promise.resolve(now() - start)
}

/** `microvm run -- true`, the whole process. */
export const warmRun = async (rounds: number): Promise<Section> => {
  await cli()()
  const samples = await interleaved(rounds, [
    { name: "microvm run --cold -- true", run: cli("--cold") },
    { name: "microvm run -- true", run: cli() }
  ])
  const warm = median(samples, "microvm run -- true")
  return {
    title: "A command in a machine, from fork to exit",
    text: "A process of Node, a machine, the command, the guest's power-off.",
    tables: [table(samples)],
    verdicts: [verdict("warm ≤ 350 ms", ms(warm), warm <= 350)]
  }
}

/** The proportional set size of a process and all below it, in MiB (proc_pid_smaps(5)). */
const pss = (pid: number): number => {
  const own = Number(/^Pss:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))?.[1] ?? 0) / 1024
  const children = existsSync(`/proc/${pid}/task/${pid}/children`)
    ? readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").filter((word) => word !== "")
    : []
  return children.reduce((sum, child) => sum + pss(Number(child)), own)
}

/** Many clones of one snapshot at the same time. */
export const clones = async (rounds: number, count: number): Promise<Section> => {
  const { plan, snapshot } = await runtime.runPromise(prepared)
  const memory = new Map<string, Array<number>>()
  const remember = (name: string, pids: ReadonlyArray<number>) => {
    const each = pids.reduce((sum, pid) => sum + pss(pid), 0) / pids.length
    memory.set(name, [...memory.get(name) ?? [], each])
  }
  const samples = await interleaved(rounds, [
    {
      name: "bare QEMU",
      run: async () => {
        const start = now()
        const machines = await Promise.all(Array.from({ length: count }, () => bare(plan)))
        const took = now() - start
        remember("bare QEMU", machines.map(({ pid }) => pid))
        await Promise.all(machines.map(({ end }) => end()))
        return took
      }
    },
    {
      name: "this library",
      run: () =>
        runtime.runPromise(Effect.scoped(Effect.gen(function*() {
          const start = now()
          const machines = yield* Effect.forEach(
            Array.from({ length: count }, newId),
            Effect.fnUntraced(function*(id) {
              const machine = yield* Machine.restore(id, snapshot)
              const socket = yield* machine.channel(GuestAgent.channelName)
              yield* machine.resume
              yield* GuestAgent.make(socket, { within: "1 minute" })
              return machine
            }),
            { concurrency: "unbounded" }
          )
          const took = now() - start
          remember("this library", machines.flatMap(({ pid }) => Option.isSome(pid) ? [pid.value] : []))
          yield* Effect.forEach(machines, kill, { concurrency: "unbounded", discard: true })
          return took
        })))
    }
  ])
  const ratio = median(samples, "this library") / median(samples, "bare QEMU")
  return {
    title: `${count} clones at once`,
    text: "Until the agents of all of them have answered. Memory is the proportional set size of a clone's QEMU.",
    tables: [table(samples), table(memory, "MiB")],
    verdicts: [verdict("≤ 1.2 × bare QEMU", times(ratio), ratio <= 1.2)]
  }
}

/** How long it takes to get a machine that is ready. */
export const handOut = async (rounds: number): Promise<Section> => {
  const took: Array<number> = []
  await runtime.runPromise(Effect.scoped(Effect.gen(function*() {
    const pool = yield* MicroVmPool.make({
      acquire: Effect.suspend(() => WarmMachine.launch({ id: newId() })),
      min: 3,
      max: 4
    })
    for (let round = 0; round < rounds; round++) {
      while ((yield* pool.stats).ready === 0) yield* Effect.sleep("10 millis")
      const scope = yield* Scope.make()
      const start = now()
      yield* Scope.provide(pool.take, scope)
      took.push(now() - start)
      yield* Scope.close(scope, Exit.void)
    }
  })))
  const p50 = quantile(took, 0.5)
  return {
    title: "A machine from a pool",
    text: "While at least one is ready. Each is handed out once, destroyed after its use, and replaced.",
    tables: [table(new Map([["hand-out", took]]))],
    verdicts: [verdict("p50 ≤ 5 ms", ms(p50), p50 <= 5)]
  }
}

/** The longest time in which a machine that is saved does not answer. */
export const savePause = async (rounds: number): Promise<Section> => {
  const directory = mkdtempSync(join(tmpdir(), "bench-snapshots-"))
  const gaps: Array<number> = []
  const quiet: Array<number> = []
  const store = NodeDiskSnapshotStore.layerAt({ directory }).pipe(Layer.provide(NodeServices.layer))
  await runtime.runPromise(Effect.scoped(Effect.gen(function*() {
    const { agent, machine } = yield* WarmMachine.launch({ id: newId() })
    const { add, remove } = yield* Effect.provide(SnapshotStore.SnapshotStore, store)
    const longestGap = <A, E, R>(during: Effect.Effect<A, E, R>) =>
      Effect.gen(function*() {
        let longest = 0
        let last = now()
        const ping = Effect.forever(Effect.tap(agent.ping, () =>
          Effect.sync(() => {
            longest = Math.max(longest, now() - last)
            last = now()
          })))
        const result = yield* Effect.raceFirst(during, ping)
        return { longest: Math.max(longest, now() - last), result }
      })
    for (let round = 0; round < rounds; round++) {
      quiet.push((yield* longestGap(Effect.sleep("500 millis"))).longest)
      const save = add({ kind: "saved", spec: Snapshot.specOf(machine.spec) }, machine.save)
      const { longest, result } = yield* longestGap(Effect.tap(save, () => Effect.sleep("50 millis")))
      gaps.push(longest)
      yield* remove(result.id)
    }
    yield* kill(machine)
  })))
  rmSync(directory, { recursive: true })
  return {
    title: "A running machine is saved",
    text:
      "The longest time between two answers of its agent, which is asked again and again: for half a second without a save, and during a save.",
    tables: [table(new Map([["no save", quiet], ["save", gaps]]))],
    verdicts: []
  }
}

export const disposeWarm = (): Promise<void> => runtime.dispose()
