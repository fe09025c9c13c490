/**
 * `npm run demo`: boots a machine, runs two commands in it, saves it, powers it off; restores it; makes a golden machine, restores
 * ten others from it at once, each of which is like no other; and shows what each way took, and that nothing is left.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { GuestCommand } from "effect-microvm-runtime/guest"
import { ImageStore } from "effect-microvm-runtime/image"
import { ExitStatus, ShutdownOutcome } from "effect-microvm-runtime/lifecycle"
import { NodeProcessSpawner } from "effect-microvm-runtime/process"
import { NodeQemuHost, QemuProvider } from "effect-microvm-runtime/qemu"
import { GoldenMachines, NodeWarmMachine, WarmMachine } from "effect-microvm-runtime/warm"
import * as Console from "effect/Console"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import { leftovers } from "./leftovers.ts"

const millis = (took: Duration.Duration): string => `${String(Math.round(Duration.toMillis(took))).padStart(6)} ms`

const row = (what: string, took: Duration.Duration) => Console.log(`  ${what.padEnd(34)} ${millis(took)}`)

const timed = <A, E, R>(what: string, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.map(measured(what, effect), ([, value]) => value)

const measured = <A, E, R>(what: string, effect: Effect.Effect<A, E, R>) =>
  Effect.tap(Effect.timed(effect), ([took]) => row(what, took))

const script = `
echo "I am pid $$ of $(hostname), up for $(cut -d' ' -f1 /proc/uptime) s."
echo "$(grep -c processor /proc/cpuinfo) processor, $(( $(grep MemTotal /proc/meminfo | tr -dc 0-9) / 1024 )) MiB of memory."
echo "This line goes to stderr." >&2
exit 7
`

const cold = Effect.gen(function*() {
  const stdio = yield* Stdio.Stdio
  yield* timed("guest image", (yield* ImageStore.ImageStore).ensure())
  const booted = yield* timed("machine booted", WarmMachine.launch({ id: "demo", start: "cold" }))
  const { agent, machine, slots } = booted

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
  const [save] = yield* measured("machine saved", WarmMachine.save(booted, "demo"))

  const outcome = yield* timed(
    "guest powered off",
    machine.shutdown({ leading: [{ name: "guest power-off", request: agent.powerOff, grace: "5 seconds" }] })
  )
  yield* Console.log(`  the machine ${ShutdownOutcome.format(outcome)}`)
  for (const { end, name, took } of outcome.stages) {
    yield* Console.log(`  stage "${name}": ${end} after ${Math.round(Duration.toMillis(took))} ms`)
  }
  return {
    isAsExpected: ExitStatus.toCode(status) === 7 && outcome._tag === "Graceful",
    boot: booted.start.took,
    save
  }
}).pipe(Effect.scoped)

const restored = Effect.map(
  Effect.scoped(timed("machine restored", WarmMachine.launch({ id: "demo-again", start: { from: "demo" } }))),
  ({ start }) => start.took
)

const warm = Effect.gen(function*() {
  const golden = yield* GoldenMachines.GoldenMachines
  const { channels, memoryMib, vcpus } = { channels: WarmMachine.channels(), memoryMib: 256, vcpus: 1 }
  yield* Console.log("")
  const [made] = yield* measured("golden machine made", golden.ensure({ image: "default", vcpus, memoryMib, channels }))
  const machines = yield* timed(
    "ten machines restored at once",
    Effect.forEach(
      Array.from({ length: 10 }, (_, index) => `clone-${index}`),
      (id) => WarmMachine.launch({ id }),
      { concurrency: "unbounded" }
    )
  )
  for (const { machine, start } of machines) {
    yield* Console.log(
      start._tag === "Restored"
        ? `  ${machine.id}  ${millis(start.took)}  boot id ${start.proof.bootId}, clock ${
          start.proof.clockOff.toFixed(1)
        } ms off`
        : `  ${machine.id} was booted: ${start.why}`
    )
  }
  const bootIds = new Set(machines.map(({ start }) => start._tag === "Restored" ? start.proof.bootId : ""))
  yield* timed(
    "ten machines ended",
    Effect.forEach(machines, ({ machine }) => machine.shutdown({ request: { atLeast: "SIGTERM" } }), {
      concurrency: "unbounded",
      discard: true
    })
  )
  // One at a time, as the others were.
  const { start } = yield* timed("one machine restored", WarmMachine.launch({ id: "clone-alone" }))
  const isAsExpected = bootIds.size === machines.length && start._tag === "Restored"
  return { isAsExpected, made, restore: start.took }
}).pipe(Effect.scoped)

/** Snapshots in a directory of the demo's own, so that a golden machine is made each time. */
const machines = Layer.unwrap(
  Effect.map(
    FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped({ prefix: "microvm-demo-" })),
    (directory) => NodeWarmMachine.layerAt({ directory })
  )
)

const services = machines.pipe(
  Layer.provideMerge(QemuProvider.layer.pipe(Layer.provide(NodeQemuHost.layer))),
  Layer.provide(NodeProcessSpawner.layer),
  Layer.provideMerge(NodeServices.layer)
)

const demo = Effect.gen(function*() {
  const { boot, isAsExpected, save } = yield* cold
  const again = yield* restored
  const { isAsExpected: asExpected, made, restore } = yield* warm
  yield* Console.log("\nUntil a guest answers, and what it takes to get there:")
  yield* row("booted", boot)
  yield* row("saved while it runs", save)
  yield* row("restored from that", again)
  yield* row("golden machine booted and saved", made)
  yield* row("restored from that", restore)
  return isAsExpected && asExpected
}).pipe(Effect.provide(services))

const program = Effect.gen(function*() {
  const before = yield* leftovers
  const [took, asExpected] = yield* Effect.timed(demo)
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

// A signal ends it in order, too.
NodeRuntime.runMain(Effect.tap(program, (code) =>
  Effect.sync(() => {
    process.exitCode = code
  })))
