/**
 * A machine on Firecracker: booted, a command run in it, ended in order; its devices; and the API of a Firecracker by itself.
 *
 *     FIRECRACKER_BIN=/usr/local/bin/firecracker node examples/firecracker.ts
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import {
  FirecrackerApi,
  FirecrackerProvider,
  MachineConfig,
  NodeApiTransport
} from "effect-microvm-runtime/firecracker"
import { GuestCommand } from "effect-microvm-runtime/guest"
import { ExitStatus, ShutdownOutcome } from "effect-microvm-runtime/lifecycle"
import { Machine, MachineEnd, MachineSpec } from "effect-microvm-runtime/microvm"
import { FakeFirecracker } from "effect-microvm-runtime/testing"
import { WarmMachine } from "effect-microvm-runtime/warm"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import { layer } from "./firecrackerHere.ts"

/** By the port, as on any other backend. */
const machine = Effect.gen(function*() {
  const stdio = yield* Stdio.Stdio
  const { agent, machine: one, slots } = yield* WarmMachine.launch({ id: "example", start: "cold" })
  const command = yield* GuestCommand.run(agent, slots, { command: "echo", args: ["hello from the guest"] })
  const status = yield* GuestCommand.connect(command, {
    stdin: Stream.empty,
    stdout: stdio.stdout(),
    stderr: stdio.stderr()
  })
  yield* Console.log(`the command ${ExitStatus.format(status)}`)

  // The guest first, then its keyboard (Ctrl-Alt-Del), then the process.
  const outcome = yield* one.shutdown({
    leading: [{ name: "guest power-off", request: agent.powerOff, grace: "5 seconds" }]
  })
  yield* Console.log(`${ShutdownOutcome.format(outcome)}: ${MachineEnd.format(yield* one.ended)}`)
}).pipe(Effect.scoped)

/** What the port has no words for: memory is plugged in, on a machine of the provider. */
const devices = Effect.gen(function*() {
  const { binary } = yield* FakeFirecracker.install({ guest: "none", version: "1.16.1" })
  const apis = new Map<string, FirecrackerApi.FirecrackerApi>()
  const provider = FirecrackerProvider.layerWith({
    binary,
    kvm: "assume",
    devices: { memoryHotplug: { total_size_mib: 1024 } },
    onMachine: ({ api, spec: { id } }) => Effect.sync(() => apis.set(id, api))
  })
  yield* Effect.gen(function*() {
    // Any file will do for the fake, which never looks at it.
    const one = yield* Machine.launch(yield* MachineSpec.decode({ id: "larger", kernel: "/etc/hostname" }))
    yield* one.start
    const api = yield* Effect.fromNullishOr(apis.get(one.id))
    yield* api.patchMemoryHotplug({ requested_size_mib: 256 })
    const { plugged_size_mib: plugged } = yield* api.getMemoryHotplug()
    yield* Console.log(`a machine has ${one.spec.memoryMib} MiB, and ${plugged} MiB that were plugged in`)
  }).pipe(Effect.provide(provider))
}).pipe(Effect.scoped)

/** The client alone, on a Firecracker that somebody else has started: here, one in this process. */
const client = Effect.gen(function*() {
  const directory = yield* FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped())
  const socketPath = `${directory}/api.sock`
  yield* FakeFirecracker.serve({ socketPath, guest: "none" })

  const transport = yield* NodeApiTransport.make({ socketPath })
  const version = yield* FirecrackerApi.readVersion(transport)
  const api = FirecrackerApi.make(transport, { version, architecture: "x86_64" })
  yield* MachineConfig.apply(api, {
    machine: { vcpu_count: 2, mem_size_mib: 512 },
    // Any file will do for the fake, which never looks at it.
    bootSource: { kernel_image_path: "/proc/version", boot_args: "console=ttyS0 reboot=k panic=1" },
    balloon: { amount_mib: 0, deflate_on_oom: true }
  })
  yield* api.putAction({ action_type: "InstanceStart" })
  const { state } = yield* api.getInstance()
  yield* Console.log(`a machine that was configured by hand is ${state}`)

  // What this release does not know is refused before it is sent.
  const refusal = yield* Effect.flip(api.putMetrics({ metrics_path: "/proc/version", emit_id: true }))
  yield* Console.log(refusal.message)
}).pipe(Effect.scoped)

NodeRuntime.runMain(machine.pipe(Effect.andThen(devices), Effect.andThen(client), Effect.provide(layer)))
