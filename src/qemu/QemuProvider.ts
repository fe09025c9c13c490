/**
 * Machines on QEMU.
 *
 * One process for each machine, spoken to by QMP over an inherited socket pair, as are the machine's byte channels: when
 * the process goes, everything of the machine goes.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as ChildProcess from "effect/process/ChildProcess"
import * as PubSub from "effect/PubSub"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type * as Take from "effect/Take"
import type { ExitStatus } from "../lifecycle/ExitStatus.ts"
import * as ShutdownPolicy from "../lifecycle/ShutdownPolicy.ts"
import type { MachineEnd } from "../microvm/MachineEnd.ts"
import type { MachineSpec } from "../microvm/MachineSpec.ts"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import { type Capabilities, MicroVmProvider, type Vmm } from "../microvm/MicroVmProvider.ts"
import { ProcessSpawner } from "../process/ProcessSpawner.ts"
import { toEnd } from "./internal/ending.ts"
import * as LaunchPlan from "./LaunchPlan.ts"
import * as Qmp from "./Qmp.ts"
import type { QmpError } from "./QmpError.ts"
import * as QmpSchema from "./QmpSchema.ts"
import * as QemuHost from "./QemuHost.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface Options extends QemuHost.Options {
  /** How long QEMU may take to come up, and to answer each command. Default 20 seconds. */
  readonly within?: Duration.Input | undefined
}

/**
 * Everything but snapshots. A panic is told as such when the guest has a driver for pvpanic, or writes to its console.
 *
 * @category constants
 * @since 0.1.0
 */
export const capabilities: Capabilities = {
  pause: true,
  snapshot: false,
  rename: true,
  powerButton: true,
  panicDetection: true
}

/** QEMU ends within milliseconds of SIGTERM unless it hangs. */
const policy = ShutdownPolicy.signals({ grace: "1 second" })

/** How long what belongs together may come apart: the end of a process, of its sockets, of its pipes. */
const settling = "1 second"

const makeLaunch = (
  host: QemuHost.QemuHost["Service"],
  spawner: ProcessSpawner["Service"],
  setup: QemuHost.Setup,
  within: Duration.Input
) => {
  const checkFiles = Effect.fnUntraced(function*(plan: LaunchPlan.LaunchPlan) {
    const faults = yield* Effect.forEach(plan.files, ({ field, path }) =>
      Effect.map(host.inspect(path), ({ fault, worldReadable }): ReadonlyArray<MicroVmError.Fault> => {
        if (fault !== undefined) return [{ field, value: path, remedy: `${fault}: name a file that we may read` }]
        if (setup.user._tag === "Own" || worldReadable) return []
        const remedy = "QEMU runs as a user without rights: make it readable to all (chmod a+r)"
        return [{ field, value: path, remedy: `${remedy}, or set MICROVM_QEMU_USER=keep` }]
      }))
    if (faults.some((found) => found.length > 0)) {
      return yield* MicroVmError.make(new MicroVmError.InvalidSpec({ faults: faults.flat() }))
    }
  })

  const bringUp = Effect.fnUntraced(function*(
    spec: MachineSpec,
    plan: LaunchPlan.LaunchPlan
  ): Effect.fn.Return<Vmm, MicroVmError.MicroVmError, Scope.Scope> {
    const { id } = spec
    const { channels, qmp: qmpFd } = plan.fds
    const [program, ...args] = plan.argv
    const scope = yield* Effect.scope
    // Closed after the process is gone: what it says on its way out is still heard.
    const ears = yield* Scope.fork(scope)
    let asked = false

    const launchFailed = (fields: {
      readonly stage: string
      readonly status?: ExitStatus
      readonly stderrTail?: string
      readonly consoleTail?: string
      readonly cause?: unknown
    }) => MicroVmError.make(new MicroVmError.LaunchFailed({ id, stderrTail: "", consoleTail: "", ...fields }))

    const child = yield* spawner.spawn(
      ChildProcess.make(program, args, {
        env: plan.env,
        stdin: "ignore",
        additionalFds: Object.fromEntries(
          [qmpFd, ...channels.values()].map((fd) => [ChildProcess.fdName(fd), { type: "duplex" as const }])
        )
      }),
      { policy }
    ).pipe(Effect.mapError((cause) => launchFailed({ stage: "starting QEMU", cause })))
    yield* Scope.addFinalizer(scope, Effect.sync(() => asked = true))

    const console = yield* PubSub.sliding<Take.Take<Uint8Array>>(256)
    yield* child.stdout.pipe(
      Stream.runForEach((bytes) => PubSub.publish(console, [bytes])),
      Effect.ignore,
      Effect.ensuring(PubSub.end(console, Exit.void)),
      Effect.forkIn(ears, { startImmediately: true })
    )

    const explain = Effect.fnUntraced(function*(error?: QmpError) {
      const status = yield* Effect.timeoutOption(child.exit, settling)
      const { stderr, stdout } = yield* child.tail
      return yield* launchFailed({
        stage: "bringing QEMU up",
        stderrTail: stderr.text,
        consoleTail: stdout.text,
        ...(Option.isSome(status) ? { status: status.value } : {}),
        // That the connection ended with the process says nothing more.
        ...(error === undefined || (Option.isSome(status) && error.reason._tag === "Disconnected") ? {} : { cause: error })
      })
    })
    const connect = Effect.gen(function*() {
      const socket = yield* Effect.orDie(child.channel(qmpFd))
      return yield* Effect.catch(Scope.provide(Qmp.make(socket, { within }), ears), explain)
    })
    const qmp = yield* Effect.raceFirst(connect, Effect.andThen(child.exit, explain()))

    // Detached, so that whoever waits for the end learns of it also when it comes by the scope's close.
    const end = yield* Deferred.make<MachineEnd>()
    yield* Effect.gen(function*() {
      const status = yield* child.exit
      yield* Effect.timeoutOption(qmp.disconnected, settling)
      const { stderr, stdout } = yield* child.tail
      const shutdown = yield* qmp.last("SHUTDOWN")
      const panic = yield* qmp.last("GUEST_PANICKED")
      const reason = Option.isSome(shutdown) && QmpSchema.isShutdown(shutdown.value) ? shutdown.value.data.reason : undefined
      const evidence = { status, reason, panicked: Option.isSome(panic), asked }
      yield* Deferred.succeed(end, toEnd({ ...evidence, stderrTail: stderr.text, consoleTail: stdout.text }))
    }).pipe(Effect.forkDetach({ startImmediately: true }))

    const failed = (operation: string) => (cause: unknown) =>
      MicroVmError.make(new MicroVmError.OperationFailed({ id, operation, cause }))
    const execute = (operation: string, command: QmpSchema.Command<unknown>) =>
      Effect.asVoid(Effect.mapError(qmp.execute(command), failed(operation)))

    const requests: { readonly [R in Parameters<Vmm["request"]>[0]]: Effect.Effect<void, MicroVmError.MicroVmError> } = {
      PowerButton: Effect.catch(execute("power button", QmpSchema.systemPowerdown), (error) =>
        // A machine that is about to be gone has no power button any more.
        Effect.flatMap(Effect.timeoutOption(child.exit, settling), Option.match({
          onNone: () => Effect.fail(error),
          onSome: () => Effect.void
        }))),
      Terminate: Effect.suspend(() => {
        asked = true
        return Effect.mapError(child.signal("SIGTERM"), failed("SIGTERM"))
      }),
      Kill: Effect.suspend(() => {
        asked = true
        return Effect.asVoid(Effect.orDie(child.shutdown({ atLeast: "SIGKILL" })))
      })
    }

    return {
      start: execute("start", QmpSchema.cont),
      pause: execute("pause", QmpSchema.stop),
      resume: execute("resume", QmpSchema.cont),
      snapshot: () =>
        Effect.fail(MicroVmError.make(
          new MicroVmError.Unsupported({ operation: "snapshot", backend: "qemu", remedy: "do without" })
        )),
      ended: Deferred.await(end),
      poll: Effect.flatMap(Deferred.poll(end), Effect.transposeOption),
      request: (request) => requests[request],
      remains: Effect.gen(function*() {
        const status = yield* child.poll
        if (Option.isNone(status)) {
          return { status, survivors: [{ pid: child.pid, command: setup.binary, why: "did not end" }] }
        }
        const outcome = yield* Effect.orDie(child.shutdown())
        return { status, survivors: outcome._tag === "Survivors" ? outcome.survivors : [] }
      }),
      channel: (name) => {
        const fd = channels.get(name)
        return fd === undefined
          ? Effect.fail(MicroVmError.make(
            new MicroVmError.ChannelUnavailable({ id, channel: name, known: spec.channels })
          ))
          : Effect.mapError(child.channel(fd), failed(`channel ${name}`))
      },
      console: Stream.fromPubSubTake(console),
      consoleTail: Effect.map(child.tail, ({ stdout }) => stdout.text),
      pid: Option.some(child.pid)
    }
  })

  return Effect.fn("QemuProvider.launch")(function*(spec: MachineSpec) {
    const plan = yield* Effect.fromResult(LaunchPlan.make(setup, spec))
    yield* checkFiles(plan)
    return yield* Effect.uninterruptibleMask((restore) =>
      Effect.gen(function*() {
        const scope = yield* Scope.fork(yield* Effect.scope)
        return yield* restore(bringUp(spec, plan)).pipe(
          Scope.provide(scope),
          Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
        )
      })
    )
  })
}

/**
 * The backend over any host and spawner. Looks at the host once, and fails with `BackendUnavailable` when no machine can
 * be run here.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (
  options: Options
): Layer.Layer<MicroVmProvider, MicroVmError.MicroVmError, QemuHost.QemuHost | ProcessSpawner> =>
  Layer.effect(
    MicroVmProvider,
    Effect.gen(function*() {
      const host = yield* QemuHost.QemuHost
      const spawner = yield* ProcessSpawner
      const setup = yield* Effect.fromResult(QemuHost.choose(yield* host.observe(options), options))
      return MicroVmProvider.of({
        backend: "qemu",
        capabilities,
        plan: (spec) => LaunchPlan.make(setup, spec),
        launch: makeLaunch(host, spawner, setup, options.within ?? "20 seconds")
      })
    })
  )

/**
 * The backend with all defaults: QEMU from PATH, KVM when it is usable, a user without rights when we are root.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<MicroVmProvider, MicroVmError.MicroVmError, QemuHost.QemuHost | ProcessSpawner> =
  layerWith({})

/**
 * The options from configuration: `MICROVM_QEMU_BIN`, `MICROVM_QEMU_ACCELERATOR` (`auto`, `kvm`, `tcg`) and
 * `MICROVM_QEMU_USER` (`auto`, `keep`).
 *
 * @category configuration
 * @since 0.1.0
 */
export const config: Config.Config<Options> = Config.all({
  binary: Config.String("MICROVM_QEMU_BIN").pipe(Config.withDefault(undefined)),
  accelerator: Config.Literals(["auto", "kvm", "tcg"], "MICROVM_QEMU_ACCELERATOR").pipe(Config.withDefault("auto")),
  user: Config.Literals(["auto", "keep"], "MICROVM_QEMU_USER").pipe(Config.withDefault("auto"))
})

/**
 * The backend with the options of `config`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig: Layer.Layer<
  MicroVmProvider,
  MicroVmError.MicroVmError | Config.ConfigError,
  QemuHost.QemuHost | ProcessSpawner
> = Layer.unwrap(Effect.map(config, layerWith))
