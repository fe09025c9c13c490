/**
 * `npm run demo`: boots a machine, runs two commands in it, powers the guest off, and shows that nothing is left.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { GuestAgent, GuestCommand, GuestSlots } from "effect-microvm-runtime/guest"
import { ImageStore, NodeImageStore } from "effect-microvm-runtime/image"
import { ExitStatus, ShutdownOutcome } from "effect-microvm-runtime/lifecycle"
import { Machine, MachineSpec } from "effect-microvm-runtime/microvm"
import { NodeProcessSpawner } from "effect-microvm-runtime/process"
import { NodeQemuHost, QemuProvider } from "effect-microvm-runtime/qemu"
import * as Console from "effect/Console"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import { leftovers } from "./leftovers.ts"

const timed = <A, E, R>(what: string, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.flatMap(
    Effect.timed(effect),
    ([took, value]) =>
      Effect.as(
        Console.log(`  ${what.padEnd(28)} ${String(Math.round(Duration.toMillis(took))).padStart(6)} ms`),
        value
      )
  )

const script = `
echo "I am pid $$ of $(hostname), up for $(cut -d' ' -f1 /proc/uptime) s."
echo "$(grep -c processor /proc/cpuinfo) processor, $(( $(grep MemTotal /proc/meminfo | tr -dc 0-9) / 1024 )) MiB of memory."
echo "This line goes to stderr." >&2
exit 7
`

const demo = Effect.gen(function*() {
  const stdio = yield* Stdio.Stdio
  const image = yield* timed("guest image", (yield* ImageStore.ImageStore).ensure())
  const spec = yield* Effect.fromResult(MachineSpec.make({
    id: "demo",
    kernel: image.kernel,
    initramfs: image.initramfs,
    hostname: "demo",
    channels: [GuestAgent.channelName, ...GuestSlots.channelNames(1)]
  }))
  const machine = yield* timed("machine launched", Machine.launch(spec))
  const slots = yield* GuestSlots.fromChannels(1, machine.channel)
  const socket = yield* machine.channel(GuestAgent.channelName)
  yield* machine.start
  const agent = yield* timed("guest booted, agent answers", GuestAgent.make(socket, { within: "2 minutes" }))

  const run = (command: string, args: ReadonlyArray<string>) =>
    Effect.scoped(Effect.gen(function*() {
      const started = yield* GuestCommand.run(agent, slots, { command, args })
      return yield* GuestCommand.connect(started, {
        stdin: Stream.empty,
        stdout: stdio.stdout(),
        stderr: stdio.stderr()
      })
    }))

  yield* Console.log("\n$ uname -a")
  yield* timed("uname ended", run("uname", ["-a"]))
  yield* Console.log("\n$ sh script.sh")
  const status = yield* timed("script ended", run("sh", ["-c", script]))
  yield* Console.log(`  the script ${ExitStatus.format(status)}\n`)

  const outcome = yield* timed(
    "guest powered off",
    machine.shutdown({ leading: [{ name: "guest power-off", request: agent.powerOff, grace: "5 seconds" }] })
  )
  yield* Console.log(`  the machine ${ShutdownOutcome.format(outcome)}`)
  for (const { end, name, took } of outcome.stages) {
    yield* Console.log(`  stage "${name}": ${end} after ${Math.round(Duration.toMillis(took))} ms`)
  }
  return { asExpected: ExitStatus.toCode(status) === 7 && outcome._tag === "Graceful" }
}).pipe(
  Effect.scoped,
  Effect.provide(
    Layer.merge(
      NodeImageStore.layer,
      QemuProvider.layer.pipe(Layer.provide(NodeQemuHost.layer))
    ).pipe(Layer.provide(NodeProcessSpawner.layer), Layer.provideMerge(NodeServices.layer))
  )
)

const program = Effect.gen(function*() {
  const before = yield* leftovers
  const [took, { asExpected }] = yield* Effect.timed(demo)
  const after = yield* leftovers
  yield* Console.log(
    `\nWhat is left of it, before and after (${(Duration.toMillis(took) / 1000).toFixed(1)} s in all):`
  )
  let clean = true
  for (const [kind, count] of Object.entries(before)) {
    const now = after[kind] ?? 0
    clean &&= now <= count
    yield* Console.log(`  ${kind.padEnd(12)} ${count} → ${now}`)
  }
  yield* Console.log(clean && asExpected ? "Nothing is left behind." : "Something went wrong.")
  return clean && asExpected ? 0 : 1
})

process.exitCode = await Effect.runPromise(program)
