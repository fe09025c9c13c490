/** From the start of QEMU to the agent's first answer: this library against the same command line, started by hand. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { Duplex } from "node:stream"
import { GuestAgent } from "../src/guest/index.ts"
import { ImageStore, NodeImageStore } from "../src/image/index.ts"
import { Machine, MachineSpec } from "../src/microvm/index.ts"
import { NodeProcessSpawner } from "../src/process/index.ts"
import { LaunchPlan, NodeQemuHost, QemuHost, QemuProvider } from "../src/qemu/index.ts"
import { interleaved, now, quantile, type Section, table, times, verdict } from "./measure.ts"

const services = Layer.mergeAll(NodeImageStore.layer, QemuProvider.layer).pipe(
  Layer.provideMerge(NodeQemuHost.layer),
  Layer.provide(NodeProcessSpawner.layer),
  Layer.provide(NodeServices.layer)
)

const sync = "{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":4711}}\n"

const bare = async (plan: LaunchPlan.LaunchPlan): Promise<number> => {
  const fds = [plan.fds.qmp, ...plan.fds.channels.values()]
  const stdio = Array.from(
    { length: Math.max(...fds) + 1 },
    (_, fd) => fds.includes(fd) ? "pipe" as const : "ignore" as const
  )
  const [program, ...args] = plan.argv.filter((word) => word !== "-S")
  const start = now()
  const qemu = spawn(program ?? "", args, { stdio, env: plan.env, detached: true })
  for (const stream of qemu.stdio) stream?.on("error", () => undefined)
  const agent = qemu.stdio[plan.fds.channels.get(GuestAgent.channelName) ?? 0]
  if (!(agent instanceof Duplex)) throw new Error("the agent's channel is no socket")
  agent.write(sync)
  let answer = ""
  while (!answer.includes("4711")) answer += String((await once(agent, "data"))[0])
  const took = now() - start
  const exit = once(qemu, "exit")
  qemu.kill("SIGKILL")
  await exit
  return took
}

export const boot = async (rounds: number): Promise<Section> => {
  const runtime = ManagedRuntime.make(services)
  const prepared = Effect.gen(function*() {
    const image = yield* (yield* ImageStore.ImageStore).ensure()
    const spec = yield* Effect.fromResult(MachineSpec.make({
      id: "bench",
      kernel: image.kernel,
      initramfs: image.initramfs,
      channels: [GuestAgent.channelName]
    }))
    const host = yield* QemuHost.QemuHost
    const setup = yield* Effect.fromResult(QemuHost.choose(yield* host.observe({})))
    return { spec, plan: yield* Effect.fromResult(LaunchPlan.make(setup, spec)) }
  })
  const { plan, spec } = await runtime.runPromise(prepared)
  const ours = Effect.gen(function*() {
    const start = now()
    const machine = yield* Machine.launch(spec)
    const socket = yield* machine.channel(GuestAgent.channelName)
    yield* machine.start
    yield* GuestAgent.make(socket, { within: "2 minutes" })
    const took = now() - start
    yield* machine.shutdown({ request: { atLeast: "SIGKILL" } })
    return took
  }).pipe(Effect.scoped)
  const samples = await interleaved(rounds, [
    { name: "bare QEMU", run: () => bare(plan) },
    { name: "this library", run: () => runtime.runPromise(ours) }
  ])
  await runtime.dispose()
  const ratio = quantile(samples.get("this library") ?? [], 0.5) / quantile(samples.get("bare QEMU") ?? [], 0.5)
  return {
    title: "Boot → first answer of the guest agent",
    text: "The same guest and the same command line of QEMU, started by `child_process.spawn` in the first row.",
    tables: [table(samples)],
    verdicts: [verdict("≤ 1.1 × bare QEMU", times(ratio), ratio <= 1.1)]
  }
}
