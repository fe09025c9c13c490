/**
 * A supervisor is killed, and the next one goes on: with the machine, its console, and in the end the exit code of a command in it.
 *
 *     node_modules/.bin/node examples/crash-and-recover.ts
 *
 * Boots a machine with QEMU (or restores one), and leaves nothing.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { ExitStatus } from "effect-microvm-runtime/lifecycle"
import { NodeProcessSpawner } from "effect-microvm-runtime/process"
import { NodeQemuHost, QemuProvider } from "effect-microvm-runtime/qemu"
import { NodeSupervisor, Supervisor } from "effect-microvm-runtime/supervisor"
import { NodeWarmMachine, WarmMachine } from "effect-microvm-runtime/warm"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as ChildProcess from "effect/process/ChildProcess"
import * as ChildProcessSpawner from "effect/process/ChildProcessSpawner"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"

const machines = NodeWarmMachine.layer.pipe(
  Layer.provideMerge(QemuProvider.layer.pipe(Layer.provide(NodeQemuHost.layer)))
)

/** The first one launches a machine that is to outlive it, and does not come to an end by itself. */
const first = Effect.scoped(Effect.gen(function*() {
  const supervisor = yield* Supervisor.Supervisor
  const { agent, machine, supervised } = yield* supervisor.launch({
    id: "tenant-1",
    keep: true,
    bring: ({ before }) => WarmMachine.launch({ id: "tenant-1", before })
  })
  yield* agent.exec({ path: "sh", args: ["-c", "echo a line from before the crash >/dev/console"] })
  const pid = yield* agent.spawn({ path: "sh", args: ["-c", "sleep 3; echo done >/dev/console; exit 42"] })
  // Whoever comes after us has no other way to know it.
  yield* supervised.entry.label({ command: String(pid) })
  yield* Console.log(`supervisor ${process.pid} has machine ${machine.id}, with a command in it`)
  return yield* Effect.never
}))

/** The next one finds what the journal says, and gets hold of the machine. */
const second = Effect.scoped(Effect.gen(function*() {
  const supervisor = yield* Supervisor.Supervisor
  for (const { action, id, why } of yield* supervisor.recover()) yield* Console.log(`${id}: ${action}, ${why}`)
  for (const { entry, machine, released } of yield* supervisor.machines) {
    const { agent } = yield* WarmMachine.fromMachine(machine)
    const { labels } = yield* entry.record
    const { status: code } = yield* agent.poll(Number(labels["command"])).pipe(
      Effect.repeat({ until: Option.isSome, schedule: Schedule.spaced("100 millis") }),
      Effect.flatMap(Effect.fromOption)
    )
    yield* Console.log(`its command ${ExitStatus.format(code)}`)
    const console = (yield* machine.consoleTail).trimEnd().split("\n").slice(-2)
    yield* Console.log(`its console: ${console.map((line) => line.trim()).join(", ")}`)
    yield* machine.shutdown({ leading: [{ name: "guest power-off", request: agent.powerOff, grace: "5 seconds" }] })
    const { _tag, status } = yield* machine.ended
    const { left } = yield* released
    yield* Console.log(`its end: ${_tag}, its monitor ${ExitStatus.format(status)}, ${left} resources left`)
  }
}))

const program = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const [role, given] = process.argv.slice(2)
  const directory = given ?? `${yield* fs.makeTempDirectoryScoped()}/state`
  const supervised = Effect.provide(
    NodeSupervisor.layer({ directory }).pipe(Layer.provideMerge(machines), Layer.provideMerge(NodeProcessSpawner.layer))
  )
  if (role === "first") return yield* supervised(first)

  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const child = yield* spawner.spawn(
    ChildProcess.make(process.execPath, [...process.execArgv, process.argv[1] ?? "", "first", directory], {
      stderr: "inherit"
    })
  )
  yield* child.stdout.pipe(Stream.decodeText, Stream.splitLines, Stream.take(1), Stream.runForEach(Console.log))
  yield* Console.log("kill -9")
  yield* child.kill({ killSignal: "SIGKILL" })
  yield* supervised(second)
}).pipe(Effect.scoped, Effect.provide(NodeServices.layer))

NodeRuntime.runMain(program)
