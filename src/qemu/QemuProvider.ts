/**
 * Machines on QEMU.
 *
 * One process for each machine, spoken to by QMP over an inherited socket pair, as are the machine's byte channels: when
 * the process goes, everything of the machine goes.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import { type Capabilities, MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import { ProcessSpawner } from "../process/ProcessSpawner.ts"
import { bringUp } from "./internal/bringUp.ts"
import * as LaunchPlan from "./LaunchPlan.ts"
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

const checkFiles = Effect.fnUntraced(function*(
  plan: LaunchPlan.LaunchPlan,
  { user }: QemuHost.Setup,
  host: QemuHost.QemuHost["Service"]
) {
  const found = yield* Effect.forEach(
    plan.files,
    ({ field, path }) =>
      Effect.map(host.inspect(path), ({ fault, worldReadable }): ReadonlyArray<MicroVmError.Fault> => {
        if (fault !== undefined) return [{ field, value: path, remedy: `${fault}: name a file that we may read` }]
        if (user._tag === "Own" || worldReadable) return []
        const remedy = "QEMU runs as a user without rights: make it readable to all (chmod a+r)"
        return [{ field, value: path, remedy: `${remedy}, or set MICROVM_QEMU_USER=keep` }]
      })
  )
  const faults = found.flat()
  if (faults.length > 0) return yield* MicroVmError.make(new MicroVmError.InvalidSpec({ faults }))
})

const make = Effect.fnUntraced(function*(options: Options) {
  const host = yield* QemuHost.QemuHost
  const spawner = yield* ProcessSpawner
  const setup = yield* Effect.fromResult(QemuHost.choose(yield* host.observe(options), options))
  const within = options.within ?? "20 seconds"
  return MicroVmProvider.of({
    backend: "qemu",
    capabilities,
    plan: (spec) => LaunchPlan.make(setup, spec),
    launch: Effect.fn("QemuProvider.launch")(function*(spec) {
      const plan = yield* Effect.fromResult(LaunchPlan.make(setup, spec))
      yield* checkFiles(plan, setup, host)
      return yield* Effect.uninterruptibleMask((restore) =>
        Effect.gen(function*() {
          const scope = yield* Scope.fork(yield* Effect.scope)
          return yield* restore(bringUp({ spec, plan, spawner, within })).pipe(
            Scope.provide(scope),
            Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
          )
        })
      )
    })
  })
})

/**
 * The backend over any host and spawner. Looks at the host once, and fails with `BackendUnavailable` when no machine can
 * be run here.
 *
 * ```ts import.meta.vitest
 * import { MicroVmProvider } from "effect-microvm-runtime/microvm"
 * import { NodeProcessSpawner } from "effect-microvm-runtime/process"
 * import { NodeQemuHost, QemuProvider } from "effect-microvm-runtime/qemu"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const layer = QemuProvider.layerWith({ binary: "/nonexistent/qemu" }).pipe(
 *   Layer.provide(NodeQemuHost.layer),
 *   Layer.provide(NodeProcessSpawner.layer)
 * )
 * const program = MicroVmProvider.MicroVmProvider.use((provider) => Effect.succeed(provider.backend)).pipe(
 *   Effect.provide(layer),
 *   Effect.catchReason("MicroVmError", "BackendUnavailable", ({ why }) => Effect.succeed(why))
 * )
 * await Effect.runPromise(program) // => "/nonexistent/qemu: no such file"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (
  options: Options
): Layer.Layer<MicroVmProvider, MicroVmError.MicroVmError, QemuHost.QemuHost | ProcessSpawner> =>
  Layer.effect(MicroVmProvider, make(options))

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
 * ```ts import.meta.vitest
 * import { QemuProvider } from "effect-microvm-runtime/qemu"
 * import * as ConfigProvider from "effect/ConfigProvider"
 * import * as Effect from "effect/Effect"
 * const provider = ConfigProvider.fromUnknown({ MICROVM_QEMU_ACCELERATOR: "tcg" })
 * const options = Effect.runSync(QemuProvider.config.parse(provider))
 * options.accelerator // => "tcg"
 * ```
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
