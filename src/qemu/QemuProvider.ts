/**
 * Machines on QEMU.
 *
 * One process for each machine, spoken to by QMP over an inherited socket pair, as are the machine's byte channels: when
 * the process goes, everything of the machine goes.
 *
 * A template has its memory in a file. Its snapshot is a copy of that file and some hundred kilobytes of device state:
 * machines that are restored from it map the copy and read what they use. The snapshot of any other machine is one
 * stream that is read as a whole. A machine that has not run yet has nothing to write down: its snapshot is a copy of its
 * kernel and its initramfs, from which restored machines boot, whatever becomes of the files that it was made from.
 *
 * **Gotchas**
 *
 * - A machine that is saved a second time without a run in between runs for a moment first: QEMU wants it so.
 * - The memory of a snapshot can be read by all, as QEMU may run as another user than its maker, and before QEMU 8.2
 *   written by all: keep snapshots in a directory that is open to its owner alone, as a store does.
 * - Before QEMU 8.2 a restored machine's QEMU has that memory open for writing. It does not write to it, but a guest that
 *   has broken out of its QEMU can, and so change the machines that are restored later. `microvm snapshot verify` finds
 *   that; a look at the file's times need not, since a page that is mapped and dirty takes writes without a new one. Where
 *   that counts, boot machines, or use QEMU 8.2 or later.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import type { MachineSpec } from "../microvm/MachineSpec.ts"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import { type Capabilities, type LaunchOptions, MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import * as Snapshot from "../microvm/Snapshot.ts"
import { ProcessHolder } from "../process/ProcessHolder.ts"
import { ProcessSpawner } from "../process/ProcessSpawner.ts"
import { attach, bringUp } from "./internal/bringUp.ts"
import { tapFault } from "./internal/tapFault.ts"
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
 * Everything but the difference between two snapshots. A panic is told as such when the guest has a driver for pvpanic, or writes to its console.
 *
 * @category constants
 * @since 0.1.0
 */
export const capabilities: Capabilities = {
  pause: true,
  snapshot: true,
  diff: false,
  rename: true,
  powerButton: true,
  panicDetection: true,
  saveKeepsChannels: true,
  keep: true,
  user: true
}

const opensForWriting =
  "as QEMU before 8.2 does, though it writes nothing there: mount it read-write and make it writable to us, or use QEMU 8.2 or later"

const launchFailed = (id: string, stage: string, cause: unknown): MicroVmError.MicroVmError =>
  MicroVmError.make(new MicroVmError.LaunchFailed({ id, stage, stderrTail: "", consoleTail: "", cause }))

const checkFiles = Effect.fnUntraced(function*(
  { id }: MachineSpec,
  plan: LaunchPlan.LaunchPlan,
  { user }: QemuHost.Setup,
  host: QemuHost.QemuHost["Service"],
  from: Snapshot.Snapshot | undefined
) {
  /** Nothing is wrong with a snapshot that others may use. */
  const closed: Array<string> = []
  const found = yield* Effect.forEach(
    plan.files,
    ({ field, path, writable = false }) =>
      Effect.map(
        host.inspect(path, { writable }),
        (
          { fault, isClosed = false, remedy: help, worldReadable, worldWritable }
        ): ReadonlyArray<MicroVmError.Fault> => {
          if (fault !== undefined && isClosed && from !== undefined) {
            closed.push(`${path}: ${fault}, ${help ?? (writable ? opensForWriting : "make it readable to us")}`)
            return []
          }
          const otherwise = from === undefined ? `: ${help ?? "name a file that we may read"}` : ""
          if (fault !== undefined) return [{ field, value: path, remedy: `${fault}${otherwise}` }]
          if (user._tag === "Own" || field === "state" || (worldReadable && (worldWritable || !writable))) return []
          const needed = writable ? "readable and writable to all (chmod a+rw)" : "readable to all (chmod a+r)"
          const remedy = `QEMU runs as a user without rights: make it ${needed}, or set MICROVM_QEMU_USER=keep`
          return [{ field, value: path, remedy }]
        }
      )
  )
  const faults = found.flat()
  const disks = yield* Effect.forEach(
    plan.drives,
    ({ field, path, writable }) =>
      Effect.map(
        host.inspect(path, { writable }),
        ({ fault, remedy = "name a raw image that we may open" }) =>
          fault === undefined ? [] : [{ field, value: path, remedy: `${fault}: ${remedy}` }]
      )
  )
  if (disks.flat().length > 0) {
    return yield* MicroVmError.make(new MicroVmError.InvalidSpec({ faults: [...faults, ...disks.flat()] }))
  }
  if (faults.length === 0 && closed.length > 0) {
    return yield* launchFailed(id, "opening the snapshot", closed.join("; "))
  }
  if (faults.length === 0) return
  if (from === undefined) return yield* MicroVmError.make(new MicroVmError.InvalidSpec({ faults }))
  const why = faults.map(({ field, remedy }) => `its ${field}: ${remedy}`)
  return yield* MicroVmError.make(new MicroVmError.SnapshotUnusable({ snapshot: from.id, why }))
})

/** The largest number of a user: the one above it stands for none (chown(2)). */
const lastUser = 2 ** 32 - 2

/** Its group has the same number, and is nobody else's either. */
const asUser = (
  setup: QemuHost.Setup,
  uid: number | undefined
): Result.Result<QemuHost.Setup, MicroVmError.MicroVmError> => {
  if (uid === undefined || setup.user._tag === "Own") return Result.succeed(setup)
  if (Number.isInteger(uid) && uid >= 1 && uid <= lastUser) {
    return Result.succeed({ ...setup, user: { ...setup.user, uid, gid: uid } })
  }
  const fault = { field: "user", value: uid, remedy: `give a number from 1 to ${lastUser}` }
  return Result.fail(MicroVmError.make(new MicroVmError.InvalidSpec({ faults: [fault] })))
}

/** Where a plan that is only looked at has its memory. */
const somewhere = "a file without a name"

/** In a scope of its own, which a failure closes at once. */
const inScope = <A, E>(effect: Effect.Effect<A, E, Scope.Scope>): Effect.Effect<A, E, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const scope = yield* Scope.fork(yield* Effect.scope)
      return yield* restore(effect).pipe(
        Scope.provide(scope),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
    })
  )

const make = Effect.fnUntraced(function*(options: Options) {
  const host = yield* QemuHost.QemuHost
  const spawner = yield* ProcessSpawner
  const holder = yield* ProcessHolder
  const base = yield* Effect.fromResult(QemuHost.choose(yield* host.observe(options), options))
  const within = options.within ?? "20 seconds"
  const planOf = (setup: QemuHost.Setup, spec: MachineSpec, { from, netns, template }: LaunchOptions, ram: string) =>
    LaunchPlan.make(
      setup,
      spec,
      from !== undefined
        ? { _tag: "Restore", snapshot: from }
        : template === true
        ? { _tag: "Template", ram }
        : { _tag: "Boot" },
      { netns }
    )
  const claim = Effect.fnUntraced(function*(setup: QemuHost.Setup, spec: MachineSpec, how: LaunchOptions) {
    const ram = how.from === undefined && how.template === true
      ? yield* Effect.mapError(
        host.makeRam(spec.memoryMib * 2 ** 20),
        (cause) => launchFailed(spec.id, "making room for its memory", cause)
      )
      : undefined
    const plan = yield* Effect.fromResult(planOf(setup, spec, how, ram?.path ?? somewhere))
    return yield* bringUp({ spec, plan, how, setup, host, ram, spawner, holder, within })
  })
  return MicroVmProvider.of({
    backend: "qemu",
    capabilities: { ...capabilities, user: base.user._tag === "Unprivileged" },
    plan: (spec, how = {}) => Result.flatMap(asUser(base, how.user), (setup) => planOf(setup, spec, how, somewhere)),
    platform: (spec) => Result.succeed(LaunchPlan.platform(base, spec)),
    disks: host.disk === undefined ? undefined : Snapshot.identifyDisks(host.disk),
    attach: Effect.fn("QemuProvider.attach")((spec, { directory }) =>
      inScope(attach({ spec, directory, host, holder, within }))
    ),
    launch: Effect.fn("QemuProvider.launch")(function*(spec, how = {}) {
      const setup = yield* Effect.fromResult(asUser(base, how.user))
      yield* checkFiles(spec, yield* Effect.fromResult(planOf(setup, spec, how, somewhere)), setup, host, how.from)
      return yield* inScope(Effect.mapError(claim(setup, spec, how), (error) => tapFault(spec, setup, error) ?? error))
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
): Layer.Layer<MicroVmProvider, MicroVmError.MicroVmError, QemuHost.QemuHost | ProcessHolder | ProcessSpawner> =>
  Layer.effect(MicroVmProvider, make(options))

/**
 * The backend with all defaults: QEMU from PATH, KVM when it is usable, a user without rights when we are root.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<
  MicroVmProvider,
  MicroVmError.MicroVmError,
  QemuHost.QemuHost | ProcessHolder | ProcessSpawner
> = layerWith({})

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
  QemuHost.QemuHost | ProcessHolder | ProcessSpawner
> = Layer.unwrap(Effect.map(config, layerWith))
