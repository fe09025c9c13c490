/** `microvm` from its command line to its exit code, on a host of which every part can be replaced. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as ConfigProvider from "effect/ConfigProvider"
import type * as Context from "effect/Context"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Ref from "effect/Ref"
import type * as Scope from "effect/Scope"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as TestConsole from "effect/testing/TestConsole"
import * as Commands from "../../src/cli/Commands.ts"
import { Control } from "../../src/cli/Control.ts"
import { Detach } from "../../src/cli/NodeDetach.ts"
import { Reporter } from "../../src/cli/Reporter.ts"
import type { RunHost } from "../../src/cli/RunHost.ts"
import type { Observations } from "../../src/firecracker/FirecrackerHost.ts"
import { ImageStore } from "../../src/image/ImageStore.ts"
import * as NodeHasher from "../../src/image/NodeHasher.ts"
import type { Signal } from "../../src/lifecycle/Signal.ts"
import * as MicroVmError from "../../src/microvm/MicroVmError.ts"
import { SnapshotStore } from "../../src/microvm/SnapshotStore.ts"
import * as NodeProcessHolder from "../../src/process/NodeProcessHolder.ts"
import type { ProcessHost } from "../../src/process/ProcessHost.ts"
import * as QemuHost from "../../src/qemu/QemuHost.ts"
import * as ScriptedProcess from "../../src/testing/ScriptedProcess.ts"
import { layerHostFacts } from "../host/hostFacts.ts"
import * as MemoryRunHost from "./memoryRunHost.ts"
import { fileSeals, firecracker, image, imageStore, makeSignals, qemuHost, Written } from "./world.ts"

export interface Host {
  readonly env?: Record<string, string>
  readonly observed?: MicroVmError.MicroVmError
  /** What is found of a Firecracker. By default there is none. */
  readonly firecracker?: Partial<Observations>
  readonly images?: ImageStore["Service"]
  /** What the host lacks. By default it has all that machines can need. */
  readonly facts?: Parameters<typeof layerHostFacts>[0]
  readonly snapshots?: SnapshotStore["Service"]
  /** What the places of runs do otherwise than those in memory. */
  readonly runHost?: Partial<RunHost["Service"]>
  /** What processes in the background say. By default none comes to anything. */
  readonly detach?: Partial<Detach["Service"]>
  /** Other runs. By default there are none. */
  readonly control?: Control["Service"]
  /** The process that is started in place of QEMU. By default any program ends well at once. */
  readonly qemu?: Qemu
  readonly stdin?: string
  /** Has been sent to us before. */
  readonly signal?: Signal
}

export interface Qemu {
  readonly process: ScriptedProcess.Script
  /** It can exit only where it runs. */
  readonly onHost: (
    host: Context.Context<ProcessHost | ScriptedProcess.Driver>
  ) => Effect.Effect<void, never, Scope.Scope>
}

export const noSnapshots: SnapshotStore["Service"] = {
  add: () => Effect.die(new Error("a snapshot is made")),
  open: (snapshot) => MicroVmError.fail(new MicroVmError.SnapshotNotFound({ snapshot })),
  verify: (snapshot) => MicroVmError.fail(new MicroVmError.SnapshotNotFound({ snapshot })),
  list: Effect.succeed([]),
  remove: () => Effect.succeed(false)
}

/** `microvm` with these arguments. What goes to the console goes to stdout and stderr too. */
export const microvm = Effect.fnUntraced(function*(args: ReadonlyArray<string>, host: Host = {}) {
  const stdout = new Written()
  const lines: Array<string> = []
  const started: Array<string> = []
  const signals = yield* makeSignals
  if (host.signal !== undefined) yield* signals.send(host.signal)
  const { observed } = host
  const exit = yield* Commands.main("1.2.3")(args).pipe(
    Effect.andThen(Effect.flatMap(Commands.ExitWith, Ref.get)),
    Effect.provide(
      Layer.mergeAll(
        Commands.ExitWith.layer,
        signals.layer,
        Reporter.layerMemory(lines),
        Layer.succeed(ImageStore, host.images ?? imageStore(Effect.succeed(image))),
        Layer.succeed(QemuHost.QemuHost, qemuHost(observed === undefined ? undefined : Effect.fail(observed))),
        firecracker(host.firecracker),
        layerHostFacts(host.facts),
        fileSeals(2 ** 40),
        Layer.succeed(SnapshotStore, host.snapshots ?? noSnapshots),
        host.control === undefined ? Control.layerMemory : Layer.succeed(Control, host.control),
        Layer.effect(Detach, Effect.map(Detach, (none) => ({ ...none, ...host.detach }))).pipe(
          Layer.provide(Detach.layerNone)
        ),
        MemoryRunHost.layerWith(host.runHost),
        NodeHasher.layer,
        SecureRandom.layerWebCrypto,
        NodeProcessHolder.layer.pipe(Layer.provideMerge(
          ScriptedProcess.layer({
            cgroups: true,
            script: ({ executable }) => {
              started.push(executable)
              return host.qemu?.process ?? { exitAfter: 0 }
            }
          }).pipe(Layer.tap((context) => host.qemu?.onHost(context) ?? Effect.void))
        )),
        ConfigProvider.layer(ConfigProvider.fromEnv({ env: { HOME: "/nonexistent", ...host.env } })),
        Stdio.layerTest({ stdout: stdout.sink, stdin: Stream.encodeText(Stream.make(host.stdin ?? "")) })
      ).pipe(Layer.provideMerge(NodeServices.layer))
    )
  )
  const console = yield* TestConsole.logLines
  return {
    ...exit,
    stdout: stdout.text + console.map((line) => `${String(line)}\n`).join(""),
    stderr: lines,
    errors: yield* TestConsole.errorLines,
    started
  }
})
