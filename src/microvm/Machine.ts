/**
 * A handle on one machine, for one life: from its launch to the end of the scope it was launched in.
 *
 * The handle keeps the state, refuses what the state does not allow before the backend hears of it, notices an end
 * that nobody asked for, and ends the machine in order:
 *
 * ```
 *   leading stages ▸ power button ▸ SIGTERM ▸ SIGKILL
 *   (an agent's power-off)          └── the guest has no say
 * ```
 *
 * @since 0.1.0
 */
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import type * as Socket from "effect/socket/Socket"
import type * as Stream from "effect/Stream"
import type { ExitStatus } from "../lifecycle/ExitStatus.ts"
import type * as Shutdown from "../lifecycle/Shutdown.ts"
import * as ShutdownOutcome from "../lifecycle/ShutdownOutcome.ts"
import * as ShutdownPolicy from "../lifecycle/ShutdownPolicy.ts"
import { checkDisks, type Opened, opening } from "./internal/disks.ts"
import { makeEnding, type ShutdownOptions } from "./internal/ending.ts"
import * as LaunchMetrics from "./internal/launchMetrics.ts"
import { type Life, makeLife, ofLife } from "./internal/life.ts"
import { makeLineage } from "./internal/lineage.ts"
import { askFor, nameShortage } from "./internal/shortage.ts"
import type * as MachineEnd from "./MachineEnd.ts"
import * as MachineSpec from "./MachineSpec.ts"
import * as MachineState from "./MachineState.ts"
import * as MicroVmError from "./MicroVmError.ts"
import {
  type Attached,
  type Capabilities,
  type LaunchOptions as ProviderLaunchOptions,
  type MachineRequest,
  MicroVmProvider,
  type Vmm
} from "./MicroVmProvider.ts"
import * as Snapshot from "./Snapshot.ts"

export { type LeadingStage, type ShutdownOptions } from "./internal/ending.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface SaveOptions {
  /** Only what is another than in this snapshot is written; see `DifferenceUnknown`. Default: all of the machine. */
  readonly base?: Snapshot.Snapshot | undefined
}

/**
 * A launched machine.
 *
 * Operations on it run one at a time, in the order of their calls; a shutdown waits for none of them. One that has
 * begun is carried through when its caller is interrupted (but `save`), and fails with `OperationFailed` when the machine
 * ends under it. One that has worked is a success, also where a shutdown that began meanwhile has set another state.
 *
 * @category models
 * @since 0.1.0
 */
export interface Machine {
  readonly id: string
  readonly spec: MachineSpec.MachineSpec
  readonly backend: string
  readonly capabilities: Capabilities
  /** The monitor's process, if there is one. */
  readonly pid: Option.Option<number>
  readonly state: Effect.Effect<MachineState.MachineState>
  /** The state now, then each change; ends after `destroyed`. A reader more than 64 changes behind loses the oldest. */
  readonly changes: Stream.Stream<MachineState.MachineState>
  /** `created` → `running`. */
  readonly start: Effect.Effect<void, MicroVmError.MicroVmError>
  /** `running` → `paused`. */
  readonly pause: Effect.Effect<void, MicroVmError.MicroVmError>
  /** `paused` → `running`. */
  readonly resume: Effect.Effect<void, MicroVmError.MicroVmError>
  /**
   * Done when the monitor has answered: it is there, and does not hang. The guest is not asked. It waits for no other operation,
   * and for as long as it takes: use `Effect.timeout`.
   */
  readonly ping: Effect.Effect<void, MicroVmError.MicroVmError>
  /**
   * Writes the machine as it is now into an empty directory, for a `SnapshotStore`. A guest that runs stands still
   * meanwhile, and goes on after it, also after a failure or an interruption, which breaks it off. When it cannot go on,
   * that is the failure, and the machine is `paused`.
   */
  readonly save: (
    directory: string,
    options?: SaveOptions
  ) => Effect.Effect<Snapshot.Saved, MicroVmError.MicroVmError>
  /** The host's end of a byte channel that the spec names. */
  readonly channel: (name: string) => Effect.Effect<Socket.Socket, MicroVmError.MicroVmError>
  /** The serial console from now to the end. Each run is a view of its own; a slow reader loses the oldest. */
  readonly console: Stream.Stream<Uint8Array>
  /** The last 64 KiB of the serial console, also after the end; after `[truncated]…` where there was more. */
  readonly consoleTail: Effect.Effect<string>
  /** Waits for the end, whoever brings it about. */
  readonly ended: Effect.Effect<MachineEnd.MachineEnd>
  /** The end, if it has come. */
  readonly poll: Effect.Effect<Option.Option<MachineEnd.MachineEnd>>
  /**
   * Ends the machine by stages, or joins the shutdown that runs. A paused guest is resumed so that it can hear; one that
   * never ran is not asked. Goes on when a caller is interrupted. Fails only for stages that cannot be. The outcome says whether
   * the guest has acknowledged that all is written.
   */
  readonly shutdown: (
    options?: ShutdownOptions
  ) => Effect.Effect<ShutdownOutcome.ShutdownOutcome, Shutdown.NoSuchStage | ShutdownPolicy.ShutdownPolicyError>
  /** Asks for more time in the current stage; the answer is what was granted. */
  readonly extendShutdown: (by: Duration.Input) => Effect.Effect<Duration.Duration>
}

const kill: ShutdownPolicy.StageOptions<MachineRequest> = {
  name: "SIGKILL",
  request: "Kill",
  grace: "2 seconds",
  force: true
}

/**
 * Power button and 5 seconds, where the backend has one; SIGTERM to the monitor and 1 second; SIGKILL and 2 seconds.
 *
 * ```ts import.meta.vitest
 * import { Machine } from "effect-microvm-runtime/microvm"
 * const { stages } = Machine.defaultPolicy({ powerButton: true })
 * stages.map((stage) => stage.name) // => ["power button", "SIGTERM", "SIGKILL"]
 * ```
 *
 * @category constants
 * @since 0.1.0
 */
export const defaultPolicy = (
  capabilities: Pick<Capabilities, "powerButton">
): ShutdownPolicy.ShutdownPolicy<MachineRequest> => {
  const terminate = { name: "SIGTERM", request: "Terminate", grace: "1 second", force: true } as const
  return ShutdownPolicy.makeUnsafe<MachineRequest>(
    capabilities.powerButton
      ? [{ name: "power button", request: "PowerButton", grace: "5 seconds" }, terminate, kill]
      : [terminate, kill]
  )
}

/**
 * SIGKILL and 2 seconds: for a machine of which nothing is kept, as one that has run somebody's code on no disk. Its guest is not asked.
 *
 * ```ts import.meta.vitest
 * import { Machine } from "effect-microvm-runtime/microvm"
 * Machine.killPolicy.stages.map((stage) => stage.name) // => ["SIGKILL"]
 * ```
 *
 * @category constants
 * @since 0.1.0
 */
export const killPolicy: ShutdownPolicy.ShutdownPolicy<MachineRequest> = ShutdownPolicy.makeUnsafe([kill])

/**
 * @category options
 * @since 0.1.0
 */
export interface LaunchOptions {
  /**
   * Is the machine to be saved once, for others to be restored from that often? Saving it takes longer, restoring is
   * quicker. Default false.
   */
  readonly template?: boolean | undefined
  /**
   * The machine is to outlive us: closing the scope lets go of it, and ends nothing, and so does our death; `attach` gets hold
   * of it again. `directory` is an empty one that is the machine's alone; remove it once the machine has ended. Default: it
   * ends with its scope.
   */
  readonly keep?: { readonly directory: string } | undefined
  /** Control groups that the caller has made: see `MicroVmProvider.LaunchOptions`. Default: the backend's own choice. */
  readonly cgroup?: ProviderLaunchOptions["cgroup"]
  /**
   * Asked once a monitor was killed or has failed, before anybody is told: was there something that its host did not give it more
   * of? Keep it short. Default: nobody is asked.
   */
  readonly shortage?: ((status: ExitStatus) => Effect.Effect<Option.Option<MachineEnd.Shortage>>) | undefined
  /** Path of the network namespace in which the TAP devices of the machine are. Default: ours. */
  readonly netns?: string | undefined
  /** The user that the monitor runs as: see `MicroVmProvider.LaunchOptions`. Default: the backend's own choice. */
  readonly user?: number | undefined
  /** How the machine ends when its scope closes, and when `shutdown` is given no other. Default `defaultPolicy`. */
  readonly policy?: ShutdownPolicy.ShutdownPolicy<MachineRequest> | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface RestoreOptions extends Omit<LaunchOptions, "template"> {
  /** The machine's network cards: as many as the one had that was saved. Default none. */
  readonly networks?: MachineSpec.MachineSpecOptions["networks"]
  /** Its disks, which hold what those held when the machine was saved. Default none. */
  readonly drives?: MachineSpec.MachineSpecOptions["drives"]
}

/** What a handle can do: it has no other name, and one life. */
const possible = (from: MachineState.MachineState): ReadonlyArray<MachineState.Operation> =>
  MachineState.isOver(from)
    ? []
    : MachineState.possible(from).filter((operation) => operation !== "rename" && operation !== "destroy")

/** Of many machines, a span is of this one. */
const named = ({ id }: Pick<MachineSpec.MachineSpec, "id">) => Effect.annotateCurrentSpan("machine", id)

/** What is the backend's alone. */
const placing = ({ cgroup, keep, netns, user }: LaunchOptions) => ({ cgroup, keep, netns, user })

/**
 * Brings a machine up with the backend at hand, up to `created`: its guest has not run yet.
 *
 * Closing the scope ends the machine by the policy and releases all that it held; so does a failure or an interruption
 * on the way. To have the guest's agent asked at that time too, add a finalizer of your own after the launch that calls
 * `shutdown` with leading stages: it runs first, and the machine's own joins it.
 *
 * How long it took is told by the metric `microvm.launch.seconds`, and failures are counted in `microvm.launch.failures`, both by `backend` and
 * `start` (`boot`, or `snapshot` for `restore`).
 *
 * ```ts import.meta.vitest
 * import { Machine, MachineSpec, MemoryProvider } from "effect-microvm-runtime/microvm"
 * import * as Effect from "effect/Effect"
 * const program = Effect.scoped(Effect.gen(function*() {
 *   const spec = yield* MachineSpec.decode({ id: "web-1", kernel: "/boot/vmlinux" })
 *   const machine = yield* Machine.launch(spec)
 *   yield* machine.start
 *   return (yield* machine.shutdown())._tag
 * }))
 * await Effect.runPromise(program.pipe(Effect.provide(MemoryProvider.layer))) // => "Graceful"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const launch: (
  spec: MachineSpec.MachineSpec,
  options?: LaunchOptions
) => Effect.Effect<Machine, MicroVmError.MicroVmError, MicroVmProvider | Scope.Scope> = Effect.fn("Machine.launch")(
  (wanted: MachineSpec.MachineSpec, options: LaunchOptions = {}) =>
    // A type is a promise; what reaches a command line is checked.
    Effect.flatMap(MachineSpec.decode(wanted), (spec) =>
      Effect.andThen(
        named(spec),
        bringUp(spec, { ...placing(options), template: options.template }, options)
      ))
)

/**
 * Brings up a machine that goes on where a snapshot was made, up to `paused`: resume it when you want it to run. It has an
 * id of its own; all else is as in the snapshot, down to what the guest has in its memory. So nothing that must be unique
 * is, and its clock is late, until it was told otherwise: see the folder `warm`.
 *
 * Fails with `SnapshotUnusable` before anything is done when the snapshot was made for another backend or host.
 *
 * ```ts import.meta.vitest
 * import { Machine, MachineSpec, MemoryProvider, Snapshot, SnapshotStore } from "effect-microvm-runtime/microvm"
 * import * as Effect from "effect/Effect"
 * const program = Effect.scoped(Effect.gen(function*() {
 *   const store = yield* SnapshotStore.SnapshotStore
 *   const machine = yield* Machine.launch(yield* MachineSpec.decode({ id: "web-1", kernel: "/boot/vmlinux" }))
 *   yield* machine.start
 *   const snapshot = yield* store.add({ kind: "saved", spec: Snapshot.specOf(machine.spec) }, machine.save)
 *   const clone = yield* Machine.restore("web-2", snapshot)
 *   return yield* clone.state
 * }))
 * await Effect.runPromise(program.pipe(Effect.provide(MemoryProvider.layer))) // => "paused"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const restore: (
  id: MachineSpec.MachineId,
  snapshot: Snapshot.Snapshot,
  options?: RestoreOptions
) => Effect.Effect<Machine, MicroVmError.MicroVmError, MicroVmProvider | Scope.Scope> = Effect.fn("Machine.restore")(
  function*(id: MachineSpec.MachineId, snapshot: Snapshot.Snapshot, options: RestoreOptions = {}) {
    const provider = yield* MicroVmProvider
    const { backend, capabilities } = provider
    if (!capabilities.snapshot) {
      const remedy = "choose another backend, or boot the machine"
      return yield* MicroVmError.fail(new MicroVmError.Unsupported({ operation: "restore", backend, remedy }))
    }
    const { platform, spec } = snapshot.manifest
    const { drives = [], networks = [] } = options
    const wanted = yield* MachineSpec.decode({ ...spec, id, networks, drives })
    yield* named(wanted)
    const here = yield* Effect.fromResult(provider.platform(wanted))
    const why = [...Snapshot.faults(snapshot), ...Snapshot.differences(platform, here)]
    if (why.length > 0) {
      return yield* MicroVmError.fail(new MicroVmError.SnapshotUnusable({ snapshot: snapshot.id, why }))
    }
    yield* checkDisks(provider, wanted, snapshot)
    return yield* bringUp(wanted, { ...placing(options), from: snapshot }, options)
  }
)

/**
 * Gets hold of a machine that was launched with `keep`, by this process or by one that is gone: `spec` and `directory` are those
 * of its launch. One that has ended since tells its end. Fails with `AttachFailed` when there is none, or when somebody else has
 * hold of it.
 *
 * ```ts import.meta.vitest
 * import { Machine, MachineSpec, MemoryProvider } from "effect-microvm-runtime/microvm"
 * import * as Effect from "effect/Effect"
 * const program = Effect.gen(function*() {
 *   const spec = yield* MachineSpec.decode({ id: "web-1", kernel: "/boot/vmlinux" })
 *   const keep = { directory: "/var/lib/machines/web-1" }
 *   yield* Effect.scoped(Effect.flatMap(Machine.launch(spec, { keep }), (machine) => machine.start))
 *   return yield* Effect.scoped(Effect.flatMap(Machine.attach(spec, { keep }), (machine) => machine.state))
 * })
 * await Effect.runPromise(program.pipe(Effect.provide(MemoryProvider.layer))) // => "running"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const attach: (
  spec: MachineSpec.MachineSpec,
  options: Pick<LaunchOptions, "policy" | "shortage"> & { readonly keep: { readonly directory: string } }
) => Effect.Effect<Machine, MicroVmError.MicroVmError, MicroVmProvider | Scope.Scope> = Effect.fn("Machine.attach")(
  function*(wanted, options) {
    const provider = yield* MicroVmProvider
    const { keep: { directory } } = options
    const spec = yield* MachineSpec.decode(wanted)
    yield* named(spec)
    const get = provider.attach(spec, { directory })
    return yield* asMachine(spec, provider, get, options)
  }
)

const bringUp = Effect.fnUntraced(
  function*(spec: MachineSpec.MachineSpec, how: ProviderLaunchOptions, options: LaunchOptions) {
    const provider = yield* MicroVmProvider
    const { backend, capabilities } = provider
    if (how.user !== undefined && !capabilities.user) {
      const remedy = "choose another backend, or let the machine run as the user that the backend chooses"
      return yield* MicroVmError.fail(new MicroVmError.Unsupported({ operation: "a user of its own", backend, remedy }))
    }
    yield* Effect.fromResult(provider.plan(spec, how))
    const state = how.from === undefined ? "created" : "paused"
    const get = provider.launch(spec, how).pipe(
      LaunchMetrics.measured({ backend, start: how.from === undefined ? "boot" : "snapshot" }),
      Effect.map((vmm) => ({ vmm, state } as const))
    )
    return yield* asMachine(spec, provider, Effect.catch(get, nameShortage(options)), options, how.from)
  }
)

/** One that is kept goes on when its scope closes. */
const asMachine = (
  spec: MachineSpec.MachineSpec,
  provider: MicroVmProvider["Service"],
  get: Effect.Effect<Attached, MicroVmError.MicroVmError, Scope.Scope>,
  options: LaunchOptions,
  from?: Snapshot.Snapshot
) =>
  Effect.uninterruptibleMask((unmask) =>
    Effect.gen(function*() {
      const disks = yield* unmask(opening(provider, spec))
      const scope = yield* Scope.fork(yield* Effect.scope)
      let released: Effect.Effect<void> = Effect.void
      // Added first, so that it is destroyed when all that it had is released.
      yield* Scope.addFinalizer(scope, Effect.suspend(() => released))
      const { vmm, state } = yield* unmask(get).pipe(
        Scope.provide(scope),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
      const life = yield* makeLife(state)
      released = life.release
      const machine = yield* fromVmm(spec, provider, vmm, life, options, disks, from)
      yield* Effect.forkIn(machine.ended, scope, { startImmediately: true })
      if (options.keep === undefined) yield* Scope.addFinalizer(scope, endUnattended(machine))
      return machine
    })
  )

/** Nobody is there to be told what is left, so it goes to the log. */
const endUnattended = (machine: Machine): Effect.Effect<void> =>
  machine.shutdown().pipe(
    Effect.orDie,
    Effect.flatMap((outcome) =>
      ShutdownOutcome.isComplete(outcome)
        ? Effect.void
        : Effect.logWarning(`machine "${machine.id}": ${ShutdownOutcome.format(outcome)}`)
    )
  )

const fromVmm = Effect.fnUntraced(function*(
  spec: MachineSpec.MachineSpec,
  provider: MicroVmProvider["Service"],
  vmm: Vmm,
  life: Life,
  launched: LaunchOptions,
  disks: Opened,
  restored: Snapshot.Snapshot | undefined
): Effect.fn.Return<Machine> {
  const { id } = spec
  const { backend, capabilities } = provider
  // Of several who ask at once, the first to have an answer counts: all are told the same.
  let known: MachineEnd.MachineEnd | undefined
  const settle = (end: MachineEnd.MachineEnd) =>
    Effect.gen(function*() {
      if (known === undefined) {
        const isOfInterest = end._tag === "Killed" || end._tag === "Failed"
        const told = isOfInterest ? { ...end, ...(yield* askFor(launched, end.status)) } : end
        known ??= told
      }
      yield* life.settle(known)
      return known
    })
  const ended = Effect.flatMap(vmm.ended, settle)
  const poll = Effect.flatMap(vmm.poll, (end) => Effect.transposeOption(Option.map(end, settle)))
  // What the guest does, whatever the state says: "stopping" hides whether it can hear.
  const first = life.state()
  let guest: "asleep" | "awake" | "paused" = first === "paused" ? first : first === "running" ? "awake" : "asleep"
  const { turn } = life

  /** Fails where the state or the backend does not allow it; else the answer is the state after it. */
  const allow = (operation: MachineState.Operation, supported: boolean) =>
    Effect.suspend(() => {
      const from = life.state()
      const to = MachineState.next(from, operation)
      // A handle has one life: what starts a machine anew is another launch.
      if (Option.isNone(to) || MachineState.isOver(from)) {
        const goal = MachineState.goals[operation]
        return MicroVmError.fail(new MicroVmError.InvalidTransition({ id, from, to: goal, possible: possible(from) }))
      }
      if (!supported) {
        const remedy = "choose another backend, or do without"
        return MicroVmError.fail(new MicroVmError.Unsupported({ operation, backend, remedy }))
      }
      return Effect.succeed(to.value)
    })
  /** Fails when the machine ends under it. */
  const whileThere = <A>(
    operation: MachineState.Operation | "ping",
    action: Effect.Effect<A, MicroVmError.MicroVmError>
  ) =>
    Effect.raceFirst(
      action,
      Effect.mapError(
        life.gone,
        (cause) => MicroVmError.make(new MicroVmError.OperationFailed({ id, operation, cause }))
      )
    )
  /** A shutdown may have begun meanwhile, or the machine have ended: that state stands. */
  const move = (from: MachineState.MachineState, to: MachineState.MachineState) =>
    Effect.suspend(() => life.state() === from ? life.enter(to) : Effect.void)

  const operate = (
    operation: "start" | "pause" | "resume",
    supported: boolean,
    action: Effect.Effect<void, MicroVmError.MicroVmError>
  ): Effect.Effect<void, MicroVmError.MicroVmError> => {
    const attempt = Effect.gen(function*() {
      const from = life.state()
      const to = yield* allow(operation, supported)
      yield* whileThere(operation, action)
      guest = to === "paused" ? "paused" : "awake"
      yield* move(from, to)
    })
    // A caller may leave, but what has begun must not stop half-way, so it has a fiber of its own.
    return Effect.uninterruptibleMask((unmask) =>
      turn.withPermit(Effect.uninterruptible(attempt)).pipe(
        Effect.forkDetach({ startImmediately: true, uninterruptible: false }),
        Effect.flatMap((fiber) =>
          unmask(Fiber.join(fiber)).pipe(Effect.onInterrupt(() => Effect.sync(() => fiber.interruptUnsafe())))
        ),
        Effect.withSpan(`Machine.${operation}`, { attributes: { machine: id } })
      )
    )
  }

  // One that fails may still come about, when the monitor goes on again; what is asked for after it comes after it.
  const standStill = Effect.tapError(vmm.pause, () => Effect.ignore(vmm.resume))

  const calledOff = yield* Deferred.make<never, MicroVmError.MicroVmError>()
  /** A guest that is to end has no time to be saved, and hears nothing while it is. */
  const callOffSave = Effect.suspend(() => {
    const cause = new Error("a shutdown has begun")
    return Deferred.fail(
      calledOff,
      MicroVmError.make(new MicroVmError.OperationFailed({ id, operation: "snapshot", cause }))
    )
  })
  const canDiffer = capabilities.diff
    ? vmm.refusesDiff ?? Effect.void
    : MicroVmError.fail(
      new MicroVmError.Unsupported({ operation: "a difference", backend, remedy: "save the machine whole" })
    )
  const lineage = makeLineage(id, restored?.manifest.moment)
  const save = Effect.fn("Machine.save", { attributes: { machine: id } })((
    directory: string,
    { base }: SaveOptions = {}
  ) =>
    turn.withPermit(Effect.uninterruptibleMask((unmask) =>
      Effect.gen(function*() {
        yield* allow("snapshot", capabilities.snapshot)
        if (base !== undefined) yield* canDiffer
        yield* lineage.check(base)
        const bounded = <A>(effect: Effect.Effect<A, MicroVmError.MicroVmError>) =>
          unmask(whileThere("snapshot", Effect.raceFirst(effect, Deferred.await(calledOff))))
        const saving = lineage.track(vmm.save(directory, base))
        // A guest that never ran has not seen its disks.
        if (guest === "asleep") return yield* bounded(saving)
        yield* bounded(disks.check)
        const write = bounded(disks.with(saving))
        if (guest === "paused") return yield* write
        yield* whileThere("snapshot", standStill)
        guest = "paused"
        const saved = yield* Effect.exit(write)
        yield* Effect.onError(whileThere("snapshot", vmm.resume), () => move("running", "paused"))
        guest = "awake"
        return yield* saved
      })
    ))
  )

  const wake = turn.withPermit(Effect.gen(function*() {
    if (guest !== "paused") return
    yield* vmm.resume
    guest = "awake"
  }))
  const { extend, shutdown } = makeEnding({
    id,
    vmm,
    life,
    ended,
    poll,
    policy: launched.policy ?? defaultPolicy(capabilities),
    isAsleep: () => guest === "asleep",
    wake,
    onBegin: callOffSave
  })

  return ofLife({
    id,
    spec,
    backend,
    capabilities,
    pid: vmm.pid,
    state: Effect.sync(life.state),
    changes: life.changes,
    start: operate("start", true, vmm.start),
    pause: operate("pause", capabilities.pause, standStill),
    resume: operate("resume", capabilities.pause, vmm.resume),
    ping: whileThere("ping", vmm.ping),
    save,
    channel: vmm.channel,
    console: vmm.console,
    consoleTail: vmm.consoleTail,
    ended,
    poll,
    shutdown,
    extendShutdown: extend
  }, life)
})
