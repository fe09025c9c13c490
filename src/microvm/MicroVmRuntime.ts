/**
 * Many machines, by their ids.
 *
 * Each machine has a queue of its own and nothing is shared between two of them, so a slow or hung machine delays no
 * other. Looking never waits. An id is taken before anything is done for it, so of two that create the same machine at
 * once exactly one does.
 *
 * ```
 *   create, restore ▸ start ▸ pause ▸ resume ▸ snapshot ▸ rename
 *                                                         one at a time for each machine, in the order of the calls
 *   stop, destroy                                         at once: they wait for nothing that may hang, but a stop
 *                                                         for a start that is under way
 *   get, list, listSnapshots                              at once
 * ```
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type { NoSuchStage } from "../lifecycle/Shutdown.ts"
import * as ShutdownOutcome from "../lifecycle/ShutdownOutcome.ts"
import type { ShutdownPolicyError } from "../lifecycle/ShutdownPolicy.ts"
import { idle } from "./internal/life.ts"
import { type Entry, giveUp, type Life, makeEntry, makeLauncher, release, stateOf } from "./internal/lives.ts"
import type * as Machine from "./Machine.ts"
import type { MachineEnd } from "./MachineEnd.ts"
import * as MachineSpec from "./MachineSpec.ts"
import * as MachineState from "./MachineState.ts"
import * as MicroVmError from "./MicroVmError.ts"
import { MicroVmProvider } from "./MicroVmProvider.ts"
import * as Snapshot from "./Snapshot.ts"
import { SnapshotStore } from "./SnapshotStore.ts"

/**
 * What is known of a machine.
 *
 * @category models
 * @since 0.1.0
 */
export interface MachineView {
  readonly id: MachineSpec.MachineId
  readonly state: MachineState.MachineState
  readonly spec: MachineSpec.MachineSpec
  readonly backend: string
  /** The monitor's process, while there is one. */
  readonly pid: Option.Option<number>
  /** Names of snapshots, oldest first. */
  readonly snapshots: ReadonlyArray<string>
  /** How its latest life ended, if one has. */
  readonly end: Option.Option<MachineEnd>
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options extends Omit<Machine.LaunchOptions, "template"> {
  /** How many destroyed machines are remembered, the latest ones. Default 64. */
  readonly retain?: number | undefined
}

/**
 * The name or the id of a snapshot in the store, or one of a machine that is known here.
 *
 * @category models
 * @since 0.1.0
 */
export type SnapshotKey = string | { readonly machine: string; readonly name: string }

/**
 * @category options
 * @since 0.1.0
 */
export interface SnapshotOptions {
  /** Only what is another than in this one is kept: see `Machine.SaveOptions`. Default: all of the machine. */
  readonly base?: SnapshotKey | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface RestoreOptions {
  /** The id of the new machine; it must be free. */
  readonly id: string
  readonly snapshot: SnapshotKey
  /** Is it to run, rather than to stay paused? Default true. */
  readonly resume?: boolean | undefined
}

type StopError = MicroVmError.MicroVmError | NoSuchStage | ShutdownPolicyError

/**
 * Many machines, by their ids. An unknown id is `MachineNotFound`, an operation that the state does not allow is
 * `InvalidTransition`.
 *
 * @category services
 * @since 0.1.0
 */
export class MicroVmRuntime extends Context.Service<MicroVmRuntime, {
  /**
   * Launches a machine, up to `created`. The id must be free; that of a destroyed machine is. After a failure or an
   * interruption nothing is left of it, and the id is free again.
   */
  readonly create: (
    options: MachineSpec.MachineSpecOptions
  ) => Effect.Effect<MachineView, MicroVmError.MicroVmError>
  /**
   * Sets the guest going. A machine that is `stopped` or `crashed` is launched afresh from its spec; one that was restored
   * is restored anew, from the same snapshot.
   */
  readonly start: (id: string) => Effect.Effect<void, MicroVmError.MicroVmError>
  readonly pause: (id: string) => Effect.Effect<void, MicroVmError.MicroVmError>
  readonly resume: (id: string) => Effect.Effect<void, MicroVmError.MicroVmError>
  /**
   * Keeps the machine as it is now in the store, as a `saved` snapshot with the labels `machine` and `name`. The name must
   * be new to the machine; it is listed once the snapshot is made, and means nothing to the store, which finds it by its
   * id. An interruption breaks it off, and nothing is kept.
   */
  readonly snapshot: (
    id: string,
    name: string,
    options?: SnapshotOptions
  ) => Effect.Effect<void, MicroVmError.MicroVmError>
  /**
   * Makes another machine from a snapshot: `running`, or `paused`. What is wrong with the snapshot is said before the id is
   * taken; after a failure or an interruption nothing is left of the machine, and the id is free again.
   */
  readonly restore: (options: RestoreOptions) => Effect.Effect<MachineView, MicroVmError.MicroVmError>
  /**
   * Deletes a snapshot of a machine, also of a destroyed one: its snapshots stay until then. Machines that were restored
   * from it go on, but do not start again. Fails with `SnapshotInUse` where another is the difference to it.
   */
  readonly removeSnapshot: (id: string, name: string) => Effect.Effect<void, MicroVmError.MicroVmError>
  /** Ends the machine by stages and releases what it held; it can be started again. Joins a stop that runs. */
  readonly stop: (
    id: string,
    options?: Machine.ShutdownOptions
  ) => Effect.Effect<ShutdownOutcome.ShutdownOutcome, StopError>
  /**
   * Ends the machine if it has not ended, releases all, and frees the id. A launch under way is broken off. The answer
   * is how the shutdown went, if there was one; a machine that could not be killed is `OperationFailed` and can be
   * destroyed again.
   */
  readonly destroy: (
    id: string,
    options?: Machine.ShutdownOptions
  ) => Effect.Effect<Option.Option<ShutdownOutcome.ShutdownOutcome>, StopError>
  /** Gives a machine another id; the same id changes nothing. `Unsupported` where the backend uses the id. */
  readonly rename: (from: string, to: string) => Effect.Effect<void, MicroVmError.MicroVmError>
  readonly get: (id: string) => Effect.Effect<Option.Option<MachineView>>
  /** All machines in the byte order of their ids, also those destroyed of late. */
  readonly list: Effect.Effect<ReadonlyArray<MachineView>>
  readonly listSnapshots: (id: string) => Effect.Effect<Option.Option<ReadonlyArray<string>>>
  /** The handle of the machine's present life, for its channels and its console; none when it has none. */
  readonly machine: (id: string) => Effect.Effect<Option.Option<Machine.Machine>>
}>()("effect-microvm-runtime/microvm/MicroVmRuntime") {}

/**
 * Makes a runtime over the backend at hand. When its scope closes, launches are broken off and all machines are ended
 * at the same time, each by the policy.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  options: Options = {}
): Effect.fn.Return<MicroVmRuntime["Service"], never, MicroVmProvider | SnapshotStore | Scope.Scope> {
  const { retain = 64 } = options
  const provider = yield* MicroVmProvider
  const store = yield* SnapshotStore
  const entries = new Map<MachineSpec.MachineId, Entry>()
  const views = new WeakMap<Entry, MachineView>()
  const buried: Array<Entry> = []
  const launch = yield* makeLauncher(provider, store, options)

  /** Of many machines, the span of an operation is of this one. */
  const inSpan = (id: string) => Effect.annotateCurrentSpan("machine", id)
  const find = (id: string): Effect.Effect<Entry, MicroVmError.MicroVmError> =>
    Effect.suspend(() => {
      const entry = entries.get(id)
      return entry === undefined ? MicroVmError.fail(new MicroVmError.MachineNotFound({ id })) : Effect.succeed(entry)
    })
  /** The same one again while nothing has changed: who lists a thousand machines makes no garbage of them. */
  const view = (entry: Entry): MachineView => {
    const { end, id, life, names: snapshots, spec } = entry
    const state = stateOf(entry)
    const pid = life === undefined ? Option.none<number>() : life.machine.pid
    const last = views.get(entry)
    if (
      last !== undefined && last.state === state && last.pid === pid && last.end === end &&
      last.snapshots === snapshots && last.id === id && last.spec === spec
    ) return last
    const next: MachineView = { id, state, spec, backend: provider.backend, pid, snapshots, end }
    views.set(entry, next)
    return next
  }

  /** The id of a snapshot by its name. */
  const named = (entry: Entry, name: string): Effect.Effect<string, MicroVmError.MicroVmError> =>
    Effect.suspend(() => {
      const found = entry.snapshots.get(name)
      return found === undefined
        ? MicroVmError.fail(new MicroVmError.SnapshotNotFound({ snapshot: name }))
        : Effect.succeed(found)
    })

  const open = (key: SnapshotKey): Effect.Effect<Snapshot.Snapshot, MicroVmError.MicroVmError> =>
    typeof key === "string"
      ? store.open(key)
      : find(key.machine).pipe(
        Effect.flatMap((entry) => named(entry, key.name)),
        Effect.flatMap(store.open)
      )

  const refuse = (entry: Entry, operation: MachineState.Operation) =>
    Effect.suspend(() => {
      const to = MachineState.goals[operation]
      return MicroVmError.fail(new MicroVmError.InvalidTransition({ id: entry.id, from: stateOf(entry), to }))
    })
  const allow = (entry: Entry, operation: MachineState.Operation) =>
    Effect.suspend(() =>
      Option.isSome(MachineState.next(stateOf(entry), operation)) ? Effect.void : refuse(entry, operation)
    )
  /** Runs when all earlier operations on the machine are done, if the state then allows it. */
  const inTurn = <A, E>(
    id: string,
    operation: MachineState.Operation,
    run: (entry: Entry) => Effect.Effect<A, E>
  ): Effect.Effect<A, E | MicroVmError.MicroVmError> =>
    Effect.flatMap(Effect.andThen(inSpan(id), find(id)), (entry) =>
      entry.turn.withPermit(Effect.gen(function*() {
        // Its launch has failed meanwhile.
        if (entry.state === "creating" && entries.get(entry.id) !== entry) yield* find(id)
        // What an interrupted caller has begun decides what the state allows.
        if (entry.life !== undefined) yield* idle(entry.life.machine)
        yield* allow(entry, operation)
        return yield* run(entry)
      })))
  const withLife = <A, E>(
    entry: Entry,
    operation: MachineState.Operation,
    use: (machine: Machine.Machine, life: Life) => Effect.Effect<A, E>
  ): Effect.Effect<A, E | MicroVmError.MicroVmError> =>
    Effect.suspend((): Effect.Effect<A, E | MicroVmError.MicroVmError> =>
      entry.life === undefined ? refuse(entry, operation) : use(entry.life.machine, entry.life)
    )

  /** Takes the id of an entry and brings it up, so far as `then` says. */
  const admit = (
    entry: Entry,
    then: (machine: Machine.Machine) => Effect.Effect<void, MicroVmError.MicroVmError>
  ): Effect.Effect<MachineView, MicroVmError.MicroVmError> =>
    Effect.uninterruptibleMask((unmask) =>
      Effect.suspend(() => {
        const { id } = entry
        const taken = entries.get(id)
        if (taken !== undefined && taken.state !== "destroyed") {
          return MicroVmError.fail(new MicroVmError.MachineAlreadyExists({ id }))
        }
        entries.set(id, entry)
        return entry.turn.withPermit(Effect.onError(
          unmask(Effect.flatMap(launch(entry), ({ machine }) => then(machine))),
          () => giveUp(entry, () => entries.delete(id))
        )).pipe(Effect.map(() => view(entry)))
      })
    )

  const create = Effect.fn("MicroVmRuntime.create")(function*(wanted: MachineSpec.MachineSpecOptions) {
    const spec = yield* MachineSpec.decode(wanted)
    yield* inSpan(spec.id)
    yield* Effect.fromResult(provider.plan(spec))
    return yield* admit(makeEntry(spec), () => Effect.void)
  })

  const restore = Effect.fn("MicroVmRuntime.restore")(
    function*({ id, resume = true, snapshot }: RestoreOptions) {
      yield* MachineSpec.checkId(id)
      yield* inSpan(id)
      const { id: from, manifest } = yield* open(snapshot)
      const spec = yield* MachineSpec.decode({ ...manifest.spec, id })
      return yield* admit(makeEntry(spec, from), (machine) => resume ? machine.resume : Effect.void)
    }
  )

  const start = Effect.fn("MicroVmRuntime.start")((id: string) =>
    inTurn(id, "start", (entry) => {
      if (entry.life !== undefined) return entry.life.machine.start
      return Effect.uninterruptibleMask((unmask) => {
        const { end, state } = entry
        entry.state = "creating"
        return Effect.onError(
          unmask(
            Effect.flatMap(launch(entry), ({ machine }) => entry.from === undefined ? machine.start : machine.resume)
          ),
          () => giveUp(entry, () => Object.assign(entry, { end, state }))
        )
      })
    })
  )

  const snapshot = Effect.fn("MicroVmRuntime.snapshot")((id: string, name: string, { base }: SnapshotOptions = {}) =>
    inTurn(
      id,
      "snapshot",
      (entry) =>
        withLife(entry, "snapshot", (machine) =>
          Effect.uninterruptibleMask((unmask) =>
            Effect.gen(function*() {
              yield* Snapshot.checkName(name)
              if (entry.snapshots.has(name)) {
                return yield* MicroVmError.fail(new MicroVmError.SnapshotAlreadyExists({ snapshot: name }))
              }
              const { backend, capabilities } = provider
              if (!capabilities.snapshot) {
                const remedy = "choose another backend, or do without"
                return yield* MicroVmError.fail(
                  new MicroVmError.Unsupported({ operation: "snapshot", backend, remedy })
                )
              }
              const labels = { machine: entry.id, name }
              const spec = Snapshot.specOf(entry.spec)
              const since = base === undefined ? undefined : yield* unmask(open(base))
              const made = yield* unmask(
                store.add({ kind: "saved", spec, labels }, (directory) => machine.save(directory, { base: since }))
              )
              entry.snapshots.set(name, made.id)
              entry.names = [...entry.snapshots.keys()]
            })
          ))
    )
  )

  const removeSnapshot = Effect.fn("MicroVmRuntime.removeSnapshot")(function*(id: string, name: string) {
    yield* inSpan(id)
    const entry = yield* find(id)
    yield* store.remove(yield* named(entry, name))
    entry.snapshots.delete(name)
    entry.names = [...entry.snapshots.keys()]
  }, Effect.uninterruptible)

  const end = (entry: Entry, how: Machine.ShutdownOptions): Effect.Effect<ShutdownOutcome.ShutdownOutcome, StopError> =>
    withLife(entry, "stop", (machine, life) =>
      Effect.gen(function*() {
        const outcome = yield* machine.shutdown(how)
        if (Option.isSome(yield* machine.poll)) yield* Deferred.await(life.reaped)
        return outcome
      }))
  const stop = Effect.fn("MicroVmRuntime.stop")(function*(id: string, how: Machine.ShutdownOptions = {}) {
    yield* inSpan(id)
    const entry = yield* find(id)
    return yield* Option.isSome(MachineState.next(stateOf(entry), "stop"))
      ? end(entry, how)
      : inTurn(id, "stop", (same) => end(same, how))
  })

  const bury = (entry: Entry): void => {
    if (entries.get(entry.id) !== entry) return
    entry.state = "destroyed"
    buried.push(entry)
    if (buried.length <= retain) return
    const oldest = buried.shift()
    if (oldest !== undefined && entries.get(oldest.id) === oldest) entries.delete(oldest.id)
  }
  const bringDown = Effect.fnUntraced(function*(entry: Entry, how: Machine.ShutdownOptions) {
    let outcome = Option.none<ShutdownOutcome.ShutdownOutcome>()
    // Again when somebody has started it meanwhile.
    for (;;) {
      if (entry.launching !== undefined) yield* Fiber.interrupt(entry.launching)
      const { life } = entry
      if (life !== undefined) {
        const shut = yield* life.machine.shutdown(how)
        outcome = Option.some(shut)
        if (!(yield* release(life))) {
          const cause = new Error(ShutdownOutcome.format(shut))
          return yield* MicroVmError.fail(
            new MicroVmError.OperationFailed({ id: entry.id, operation: "destroy", cause })
          )
        }
        // One that could not be killed when the runtime was closed has nobody who sees it end later.
        if (entry.life === life) {
          entry.end = yield* life.machine.poll
          entry.life = undefined
        }
      }
      const done = yield* entry.turn.withPermit(Effect.sync(() => {
        if (entry.life !== undefined) return false
        if (entry.state !== "destroyed") bury(entry)
        return true
      }))
      if (done) return outcome
    }
  })
  const destroy = Effect.fn("MicroVmRuntime.destroy")(function*(id: string, how: Machine.ShutdownOptions = {}) {
    yield* inSpan(id)
    const entry = yield* find(id)
    yield* allow(entry, "destroy")
    return yield* Effect.acquireUseRelease(
      Effect.sync(() => entry.leaving++),
      () => bringDown(entry, how),
      () => Effect.sync(() => entry.leaving--)
    )
  })

  const rename = Effect.fn("MicroVmRuntime.rename")(function*(from: string, to: string) {
    if (!provider.capabilities.rename) {
      const { backend } = provider
      const remedy = "destroy the machine and create it under the other id"
      return yield* MicroVmError.fail(new MicroVmError.Unsupported({ operation: "rename", backend, remedy }))
    }
    yield* MachineSpec.checkId(to)
    if (from === to) return
    yield* inTurn(from, "rename", (entry) => {
      const taken = entries.get(to)
      if (taken !== undefined && taken.state !== "destroyed") {
        return MicroVmError.fail(new MicroVmError.MachineAlreadyExists({ id: to }))
      }
      entries.delete(entry.id)
      entry.id = to
      entry.spec = { ...entry.spec, id: to }
      entries.set(to, entry)
      return Effect.void
    })
  })

  return {
    create,
    start,
    pause: Effect.fn("MicroVmRuntime.pause")((id: string) =>
      inTurn(id, "pause", (entry) => withLife(entry, "pause", ({ pause }) => pause))
    ),
    resume: Effect.fn("MicroVmRuntime.resume")((id: string) =>
      inTurn(id, "resume", (entry) => withLife(entry, "resume", ({ resume }) => resume))
    ),
    snapshot,
    restore,
    removeSnapshot,
    stop,
    destroy,
    rename,
    get: (id) => Effect.sync(() => Option.map(Option.fromUndefinedOr(entries.get(id)), view)),
    // Ids are ASCII, so the order of UTF-16 code units is that of the bytes.
    list: Effect.sync(() => [...entries.values()].toSorted((a, b) => a.id < b.id ? -1 : 1).map(view)),
    listSnapshots: (id) => Effect.sync(() => Option.map(Option.fromUndefinedOr(entries.get(id)), ({ names }) => names)),
    machine: (id) => Effect.sync(() => Option.fromUndefinedOr(entries.get(id)?.life?.machine))
  }
})

/**
 * A runtime over the backend at hand.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (options: Options): Layer.Layer<MicroVmRuntime, never, MicroVmProvider | SnapshotStore> =>
  Layer.effect(MicroVmRuntime, make(options))

/**
 * A runtime over the backend at hand, with the defaults.
 *
 * ```ts import.meta.vitest
 * import { MemoryProvider, MicroVmRuntime } from "effect-microvm-runtime/microvm"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * const program = Effect.gen(function*() {
 *   const runtime = yield* MicroVmRuntime.MicroVmRuntime
 *   yield* runtime.create({ id: "web-1", kernel: "/boot/vmlinux" })
 *   yield* runtime.start("web-1")
 *   yield* runtime.stop("web-1")
 *   const [machine] = yield* runtime.list
 *   return machine?.state
 * })
 * const layer = MicroVmRuntime.layer.pipe(Layer.provide(MemoryProvider.layer))
 * await Effect.runPromise(program.pipe(Effect.provide(layer))) // => "stopped"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<MicroVmRuntime, never, MicroVmProvider | SnapshotStore> = layerWith({})
