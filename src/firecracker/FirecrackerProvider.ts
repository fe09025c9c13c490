/**
 * Machines on Firecracker.
 *
 * One process for each machine, in a directory of its own, spoken to over the socket of its API. A machine's byte channels
 * are ports of its vsock device, which programs in the guest listen on: the kernel is told which by `microvm.vsock`, and the
 * guests of the folder `image` know that.
 *
 * A snapshot is two files: the state of the devices, and the memory, which restored machines map and read as they need it.
 * A machine that has not run yet has nothing to write down: its snapshot is a copy of its kernel and its initramfs.
 *
 * **Gotchas**
 *
 * - A snapshot has nothing of what is on the drives. A restored machine opens those that `devices` gives it, which have to
 *   hold what they held when the snapshot was made: give each machine a clone, or drives that are read-only.
 * - The memory of a snapshot is a part of each machine that was restored from it, for as long as that runs: removing the
 *   file is harmless, changing it is not.
 * - A save cannot be called off once Firecracker writes: whoever leaves waits until it is through. One that
 *   does not answer for five minutes after its deadline is killed.
 * - Connections over a channel end when the machine is saved (`Vsock`); a new run of its socket connects again.
 * - A guest that powers off does not end an x86_64 machine (Firecracker's docs/api_requests/actions.md), so it is told to
 *   restart instead (`microvm.off=reboot`), and that is a power-off to us if its last word was that all is written.
 * - A machine that is kept writes its log, and its metrics if it has any, also while nobody has hold of it; whoever gets hold
 *   of it gives that room back. That somebody asked it to end by SIGTERM is known to that one only: to others it was killed. In a
 *   jail, and with its memory served page by page (`memoryBackend: "uffd"`), no machine is kept.
 * - SIGTERM ends Firecracker at once, and the guest with it: only Ctrl-Alt-Del, the power button of x86_64, asks the guest.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import * as Scope from "effect/Scope"
import type { MachineSpec } from "../microvm/MachineSpec.ts"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import { type Capabilities, type LaunchOptions, MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import * as Snapshot from "../microvm/Snapshot.ts"
import { ProcessHolder } from "../process/ProcessHolder.ts"
import { ProcessHost } from "../process/ProcessHost.ts"
import { ProcessSpawner } from "../process/ProcessSpawner.ts"
import type { Deadlines } from "./FirecrackerApi.ts"
import * as FirecrackerHost from "./FirecrackerHost.ts"
import * as FirecrackerVersion from "./FirecrackerVersion.ts"
import { attach } from "./internal/attach.ts"
import { type Beside, bringUp, type OnMachine } from "./internal/bringUp.ts"
import { kernelFault, refusedClock } from "./internal/verdicts.ts"
import type { WorkingSets } from "./internal/workingSets.ts"
import { Jail } from "./Jail.ts"
import * as LaunchPlan from "./LaunchPlan.ts"
import { MetricsFiles } from "./MetricsCollector.ts"
import { PageServer } from "./PageServer.ts"
import type { UidPool } from "./UidPool.ts"
import { Vsock } from "./Vsock.ts"

export { type Beside, type OnMachine } from "./internal/bringUp.ts"
export { type WorkingSets } from "./internal/workingSets.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface Options extends Omit<FirecrackerHost.Options, "jailer">, Omit<LaunchPlan.Options, "jail"> {
  /** Where machines have their directories. Default: see `NodeFirecrackerHost.layer`. */
  readonly stateDirectory?: string | undefined
  /** How long Firecracker may take until it answers. Default 5 seconds. */
  readonly readyWithin?: Duration.Input | undefined
  /** How long calls of its API may take. Default: see `FirecrackerApi`. */
  readonly deadlines?: Deadlines | undefined
  /** Has each machine jailed. Default: none is. */
  readonly jail?: JailOptions | undefined
  /** With `memoryBackend: "uffd"`, the pages that machines need first. Default: each page is copied when it is asked for. */
  readonly workingSets?: WorkingSets | undefined
  /**
   * What else is to be there before a machine's Firecracker starts, and until it has ended: listeners for what the guest
   * connects to, for one. For a machine that is kept it is there as long as somebody has hold of that. Default: nothing.
   *
   * ```ts
   * import { FirecrackerProvider, NodeVsock, Vsock } from "effect-microvm-runtime/firecracker"
   * import * as Effect from "effect/Effect"
   * export const layer = FirecrackerProvider.layerWith({
   *   beside: ({ owner, vsock }) =>
   *     Vsock.listen(vsock, 6000, { owner }).pipe(
   *       Effect.flatMap((server) => Effect.forkScoped(server.run(() => Effect.log("the guest has something to say")))),
   *       Effect.provide(NodeVsock.layer)
   *     )
   * })
   * ```
   */
  readonly beside?: Beside | undefined
  /**
   * What the port has no words for: each machine's API, for its balloon, its rate limiters, memory that is plugged in, MMDS; and
   * its metrics. What the machine's handle does, as starting and saving it, is left to that. Default: nothing.
   *
   * ```ts
   * import { type FirecrackerApi, FirecrackerProvider } from "effect-microvm-runtime/firecracker"
   * import * as Effect from "effect/Effect"
   * const apis = new Map<string, FirecrackerApi.FirecrackerApi>()
   * export const layer = FirecrackerProvider.layerWith({
   *   devices: { balloon: { amount_mib: 0, deflate_on_oom: true, stats_polling_interval_s: 1 } },
   *   onMachine: ({ api, spec: { id } }) =>
   *     Effect.acquireRelease(
   *       Effect.sync(() => apis.set(id, api)),
   *       () => Effect.sync(() => apis.delete(id))
   *     )
   * })
   * export const statistics = (id: string) => apis.get(id)?.getBalloonStatistics()
   * ```
   */
  readonly onMachine?: OnMachine | undefined
}

/**
 * How machines are jailed.
 *
 * @category options
 * @since 0.1.0
 */
export interface JailOptions extends Omit<LaunchPlan.Jailing, "host" | "uid" | "gid"> {
  /** Whom Firecracker becomes: one user for all machines, or, better, one of a pool for each. */
  readonly user: { readonly uid: number; readonly gid: number } | UidPool
  /** The jailer: a path, or a name that is found in PATH. Default `jailer`. */
  readonly jailer?: string | undefined
  /** Where jails are made, which has to be there. Default `/srv/jailer`. */
  readonly base?: string | undefined
}

/**
 * What the backend is made of. `NodeFirecracker.layer` has all that is not of the folder `process`.
 *
 * @category models
 * @since 0.1.0
 */
export type Requirements =
  | FirecrackerHost.FirecrackerHost
  | Jail
  | MetricsFiles
  | PageServer
  | ProcessHolder
  | ProcessHost
  | ProcessSpawner
  | Vsock

/**
 * What a machine of this architecture can. There is no device that tells of a kernel's panic. It mostly shows on the console,
 * and then the machine's end says so; else it looks like a power-off.
 *
 * ```ts import.meta.vitest
 * import { FirecrackerProvider } from "effect-microvm-runtime/firecracker"
 * FirecrackerProvider.capabilities("aarch64").powerButton // => false
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const capabilities = (
  architecture: FirecrackerHost.Architecture,
  options: Pick<Options, "diffs" | "jail"> = {}
): Capabilities => ({
  pause: true,
  snapshot: true,
  diff: options.diffs === true,
  // A jail and its cgroup are named after the machine.
  rename: options.jail === undefined,
  powerButton: architecture === "x86_64",
  panicDetection: false,
  saveKeepsChannels: false,
  // Nobody but who has made a jail knows how to take it away.
  keep: options.jail === undefined,
  // In a jail it has one from the pool.
  user: false
})

/** Looks at all that Firecracker is going to open. */
const checkFiles = Effect.fnUntraced(function*(
  plan: LaunchPlan.LaunchPlan,
  setup: FirecrackerHost.Setup,
  host: FirecrackerHost.FirecrackerHost["Service"],
  from: Snapshot.Snapshot | undefined
) {
  const { base, layers = [] } = plan.merged ?? {}
  const read = [...base === undefined ? [] : [base], ...layers.flatMap(({ memory, pages }) => [memory, pages])]
  const entries = [
    ...plan.entries,
    ...plan.served === undefined ? [] : [plan.served],
    ...read.map((path) => ({ field: path, path, writable: false }))
  ]
  const found = yield* Effect.forEach(
    entries,
    ({ field, path: value, writable }) =>
      Effect.map(host.inspect(value, { writable }), ({ fault, kernel }): ReadonlyArray<MicroVmError.Fault> => {
        if (fault !== undefined) return [{ field, value, remedy: fault }]
        const remedy = field === "kernel" ? kernelFault(setup, kernel) : undefined
        return remedy === undefined ? [] : [{ field, value, remedy }]
      })
  )
  const faults = found.flat()
  const isOfSnapshot = ({ field }: MicroVmError.Fault) => from !== undefined && !/^(devices|drives)\b/.test(field)
  const own = faults.filter((fault) => !isOfSnapshot(fault))
  if (own.length > 0) return yield* MicroVmError.make(new MicroVmError.InvalidSpec({ faults: own }))
  if (from === undefined || faults.length === 0) return
  const why = faults.map(({ field, remedy }) => `its ${field}: ${remedy}`)
  return yield* MicroVmError.make(new MicroVmError.SnapshotUnusable({ snapshot: from.id, why }))
})

/** It stands for one of a pool, where no machine is launched (user_namespaces(7): the overflow user). */
const anyUser = { uid: 65_534, gid: 65_534 }

const jailing = Effect.fnUntraced(function*(
  { base, user, ...jail }: JailOptions,
  { binary }: FirecrackerHost.Setup
) {
  const observed = yield* Effect.mapError(
    Jail.use(({ observe }) => observe({ executable: binary, base })),
    ({ message }) =>
      MicroVmError.make(
        new MicroVmError.BackendUnavailable({
          backend: "firecracker",
          why: message,
          remedy: "make a place for jails and let MICROVM_JAILER_CHROOT_BASE name it"
        })
      )
  )
  const planFor = (one: typeof anyUser): LaunchPlan.Jailing => ({ ...jail, ...one, host: observed })
  const take = "take" in user ? user.take : Effect.succeed(user)
  return { sample: planFor("take" in user ? anyUser : user), take: Effect.map(take, planFor) }
})

/** Refuses what would be sure to end other than it was meant. */
const possible = (
  plan: LaunchPlan.LaunchPlan,
  { cgroup, keep }: LaunchOptions
): Result.Result<LaunchPlan.LaunchPlan, MicroVmError.MicroVmError> => {
  const refuse = (operation: string, remedy: string) =>
    Result.fail(MicroVmError.make(new MicroVmError.Unsupported({ operation, backend: "firecracker", remedy })))
  if (keep !== undefined && plan.jail !== undefined) {
    return refuse("machines that are kept in jails", "leave out the jail, or let the machine end with us")
  }
  if (keep !== undefined && plan.served !== undefined) {
    const remedy = "set MICROVM_MEM_BACKEND=file: the guest would stand still without us, at its next page"
    return refuse("machines that are kept and have their memory served", remedy)
  }
  if (cgroup !== undefined && plan.jail !== undefined) {
    const remedy = "a jail has a control group of its own: give the limits to the jail (`cgroup`), or leave it out"
    return refuse("a control group for a machine in a jail", remedy)
  }
  return Result.succeed(plan)
}

/** In a scope of its own, which a failure closes at once. */
const allOrNothing = <A, E>(effect: Effect.Effect<A, E, Scope.Scope>): Effect.Effect<A, E, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const scope = yield* Scope.fork(yield* Effect.scope)
      return yield* restore(effect).pipe(
        Scope.provide(scope),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
    })
  )

const make = Effect.fnUntraced(function*({ jail: jailOptions, ...options }: Options) {
  const services = {
    host: yield* FirecrackerHost.FirecrackerHost,
    spawner: yield* ProcessSpawner,
    holder: yield* ProcessHolder,
    processes: yield* ProcessHost,
    jails: yield* Jail,
    vsock: yield* Vsock,
    metricsFiles: yield* MetricsFiles,
    pageServer: yield* PageServer
  }
  const { host } = services
  const wanted = jailOptions === undefined ? options : { ...options, jailer: jailOptions.jailer ?? "jailer" }
  const setup = yield* Effect.fromResult(FirecrackerHost.choose(yield* host.observe(wanted), options))
  const jails = jailOptions === undefined ? undefined : yield* jailing(jailOptions, setup)
  const { beside, deadlines = {}, onMachine, stateDirectory, workingSets } = options
  const readyWithin = Duration.fromInputUnsafe(options.readyWithin ?? "5 seconds")
  const sample: LaunchPlan.Options = { ...options, jail: jails?.sample }
  const planOf = (spec: MachineSpec, how: LaunchOptions, planning: LaunchPlan.Options, memory?: string) => {
    const { from, netns } = how
    const origin: LaunchPlan.Origin = from === undefined
      ? { _tag: "Boot" }
      : { _tag: "Restore", snapshot: from, ...(memory !== undefined && { memory }) }
    return Result.flatMap(LaunchPlan.make(setup, spec, origin, { ...planning, netns }), (plan) => possible(plan, how))
  }
  const platformOf = (spec: Snapshot.Inventory) => LaunchPlan.platform(setup, spec, options)

  /** A memory file of the machine's own: Firecracker, or the server of its pages, has it open when it is up. */
  const withMemory = <A, E, R>(
    { id }: MachineSpec,
    { merged }: LaunchPlan.LaunchPlan,
    use: (memory: string | undefined) => Effect.Effect<A, E, R>
  ) =>
    merged === undefined ?
      use(undefined) :
      Effect.scopedWith((own) =>
        host.makeDirectory({ parent: stateDirectory, links: new Map(), files: [] }).pipe(
          Scope.provide(own),
          Effect.map((directory) => `${directory}/${LaunchPlan.snapshotFiles.memory}`),
          Effect.tap((memory) => host.mergeMemory(merged.base, merged.layers, memory)),
          Effect.mapError((cause) =>
            MicroVmError.make(
              new MicroVmError.LaunchFailed({
                id,
                stage: "putting its memory together",
                stderrTail: "",
                consoleTail: "",
                cause
              })
            )
          ),
          Effect.flatMap(use)
        )
      )

  const claim = Effect.fnUntraced(function*(
    spec: MachineSpec,
    how: LaunchOptions,
    adjustClock: boolean | undefined,
    memory: string | undefined
  ) {
    const jail = jails === undefined ? undefined : yield* Effect.mapError(jails.take, (cause) =>
      MicroVmError.make(
        new MicroVmError.LaunchFailed({
          id: spec.id,
          stage: "finding a user for it",
          stderrTail: "",
          consoleTail: "",
          cause
        })
      ))
    const plan = yield* Effect.fromResult(planOf(spec, how, { ...options, adjustClock, jail }, memory))
    const platform = platformOf(spec)
    return yield* bringUp(
      { spec, plan, how, setup, stateDirectory, deadlines, readyWithin, platform, beside, onMachine, workingSets },
      services
    )
  })
  const warned = new Set<string>()
  /** Once is enough, for all machines. */
  const warn = ({ warnings }: LaunchPlan.LaunchPlan) =>
    Effect.forEach(warnings, (what) =>
      Effect.suspend(() => {
        if (warned.has(what)) return Effect.void
        warned.add(what)
        return Effect.logWarning(`Firecracker ${FirecrackerVersion.format(setup.version)}: ${what}`)
      }), { discard: true })
  return MicroVmProvider.of({
    backend: "firecracker",
    capabilities: capabilities(setup.architecture, { jail: jailOptions, diffs: options.diffs }),
    plan: (spec, how = {}) => planOf(spec, how, sample),
    platform: (spec) => Result.succeed(platformOf(spec)),
    disks: host.disk === undefined ? undefined : Snapshot.identifyDisks(host.disk),
    attach: Effect.fn("FirecrackerProvider.attach")((spec, { directory }) =>
      allOrNothing(attach({ spec, directory, deadlines, beside, onMachine }, services))
    ),
    launch: Effect.fn("FirecrackerProvider.launch")(function*(spec, how = {}) {
      const plan = yield* Effect.fromResult(planOf(spec, how, sample))
      yield* checkFiles(plan, setup, host, how.from)
      yield* warn(plan)
      const { adjustClock } = options
      return yield* withMemory(spec, plan, (memory) =>
        // A host whose clocks are not in step saves no time that could be gone on from, and that ends Firecracker.
        Effect.catchIf(
          allOrNothing(claim(spec, how, adjustClock, memory)),
          (error) => adjustClock === undefined && refusedClock(error),
          (error) =>
            // Where one was held, no other can be.
            (how.keep === undefined ? Effect.void : Effect.mapError(host.empty(how.keep.directory), () => error)).pipe(
              Effect.andThen(allOrNothing(claim(spec, how, false, memory)))
            )
        ))
    })
  })
})

/**
 * The backend over any host and spawner. Looks at the host once, and fails with `BackendUnavailable` when no machine can
 * be run here.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { FirecrackerProvider, NodeFirecracker } from "effect-microvm-runtime/firecracker"
 * import { MicroVmProvider } from "effect-microvm-runtime/microvm"
 * import { NodeProcessSpawner } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const layer = FirecrackerProvider.layerWith({ binary: "/nonexistent/firecracker" }).pipe(
 *   Layer.provide(NodeFirecracker.layer),
 *   Layer.provide([NodeProcessSpawner.layer, NodeServices.layer])
 * )
 * const program = MicroVmProvider.MicroVmProvider.use((provider) => Effect.succeed(provider.backend)).pipe(
 *   Effect.provide(layer),
 *   Effect.catchReason("MicroVmError", "BackendUnavailable", ({ why }) => Effect.succeed(why))
 * )
 * await Effect.runPromise(program) // => "/nonexistent/firecracker: no such file"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (
  options: Options
): Layer.Layer<
  MicroVmProvider,
  MicroVmError.MicroVmError,
  Requirements
> => Layer.effect(MicroVmProvider, make(options))

/**
 * The backend with all defaults: Firecracker from PATH, not jailed.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<
  MicroVmProvider,
  MicroVmError.MicroVmError,
  Requirements
> = layerWith({})

const Milliseconds = Schema.Int.check(Schema.isGreaterThan(0))

const milliseconds = (name: string) =>
  Config.schema(Milliseconds, name).pipe(Config.map(Duration.millis), Config.withDefault(undefined))

const MemoryBackend = Schema.String.pipe(
  Schema.decode(SchemaTransformation.trim()),
  Schema.decode(SchemaTransformation.toLowerCase()),
  Schema.decodeTo(Schema.Literals(["file", "uffd"]))
)

const Id = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 4_294_967_294 }))

const jailConfig = Config.all({
  uid: Config.schema(Id, "MICROVM_JAILER_UID"),
  gid: Config.schema(Id, "MICROVM_JAILER_GID"),
  base: Config.String("MICROVM_JAILER_CHROOT_BASE").pipe(Config.withDefault(undefined)),
  parentCgroup: Config.String("MICROVM_JAILER_CGROUP_PARENT").pipe(Config.withDefault(undefined)),
  cgroupVersion: Config.schema(Schema.Literals([1, 2]), "MICROVM_JAILER_CGROUP_VERSION").pipe(
    Config.withDefault("auto")
  )
}).pipe(Config.map(({ gid, uid, ...jail }): JailOptions => ({ ...jail, user: { uid, gid } })))

/**
 * The options from configuration. A value that cannot be is an error that names the variable. All have defaults, but that a
 * jail needs a user.
 *
 * - `MICROVM_FIRECRACKER_BIN`: the program.
 * - `MICROVM_FIRECRACKER_KVM`: `check` or `assume`.
 * - `MICROVM_FIRECRACKER_BOOT_ARGS`: arguments for the kernel of every machine, after those that are always there.
 * - `MICROVM_FIRECRACKER_STATE_DIR`: where machines have their directories.
 * - `MICROVM_FIRECRACKER_API_TIMEOUT_MS`: how long a call of the API may take, but those of snapshots.
 * - `MICROVM_FIRECRACKER_SOCKET_READY_TIMEOUT_MS`: how long Firecracker may take until it answers.
 * - `MICROVM_MEM_BACKEND`: `file` or `uffd`, in any case.
 * - `MICROVM_MEM_WORKING_SETS`: a directory to write down in which pages machines need first, with `uffd`.
 * - `MICROVM_JAILER_BIN`: the jailer. Machines are jailed when it is set.
 * - `MICROVM_JAILER_UID`, `MICROVM_JAILER_GID`: whom Firecracker becomes in a jail; the same user for all machines.
 * - `MICROVM_JAILER_CHROOT_BASE`, `MICROVM_JAILER_CGROUP_PARENT`, `MICROVM_JAILER_CGROUP_VERSION` (`1` or `2`): see `JailPlan`.
 *
 * ```ts import.meta.vitest
 * import { FirecrackerProvider } from "effect-microvm-runtime/firecracker"
 * import * as ConfigProvider from "effect/ConfigProvider"
 * import * as Effect from "effect/Effect"
 * const provider = ConfigProvider.fromUnknown({ MICROVM_MEM_BACKEND: " UFFD " })
 * const options = Effect.runSync(FirecrackerProvider.config.parse(provider))
 * options.memoryBackend // => "uffd"
 * ```
 *
 * @category configuration
 * @since 0.1.0
 */
export const config: Config.Config<Options> = Config.all({
  binary: Config.String("MICROVM_FIRECRACKER_BIN").pipe(Config.withDefault(undefined)),
  kvm: Config.Literals(["check", "assume"], "MICROVM_FIRECRACKER_KVM").pipe(Config.withDefault("check")),
  kernelArgs: Config.String("MICROVM_FIRECRACKER_BOOT_ARGS").pipe(
    Config.map((text) => text.split(/\s+/).filter((arg) => arg !== "")),
    Config.withDefault([])
  ),
  stateDirectory: Config.String("MICROVM_FIRECRACKER_STATE_DIR").pipe(Config.withDefault(undefined)),
  deadlines: milliseconds("MICROVM_FIRECRACKER_API_TIMEOUT_MS").pipe(
    Config.map((within): Deadlines => ({ read: within, change: within }))
  ),
  readyWithin: milliseconds("MICROVM_FIRECRACKER_SOCKET_READY_TIMEOUT_MS"),
  memoryBackend: Config.schema(MemoryBackend, "MICROVM_MEM_BACKEND").pipe(Config.withDefault("file")),
  workingSets: Config.String("MICROVM_MEM_WORKING_SETS").pipe(
    Config.withDefault(undefined),
    Config.map((directory): WorkingSets | undefined => directory === undefined ? undefined : { directory })
  ),
  jail: Config.String("MICROVM_JAILER_BIN").pipe(
    Config.withDefault(undefined),
    Config.flatMap((jailer): Config.Config<JailOptions | undefined> =>
      jailer === undefined ? Config.succeed(undefined) : Config.map(jailConfig, (jail) => ({ ...jail, jailer }))
    )
  )
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
  Requirements
> = Layer.unwrap(Effect.map(config, layerWith))
