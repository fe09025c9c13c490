/**
 * Machines with what they need of their host, none of which is lost when we are killed.
 *
 * ```
 *   record ▸ claims ▸ host resources ▸ machine ▸ … ▸ its end ▸ resources released ▸ record removed
 *      └───── our death anywhere here: the next supervisor adopts the machine, or reclaims all of it ─────┘
 * ```
 *
 * What a machine needs is written down before it is acquired, and forgotten after it was released; releasing it is the same
 * whether its machine has just ended or its supervisor died a week ago.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as HeldProcesses from "../host/HeldProcesses.ts"
import type { HostError } from "../host/HostError.ts"
import type { Events } from "../host/Limits.ts"
import * as MachineDirectories from "../host/MachineDirectories.ts"
import { type Entry, Journal, type Quarantined } from "../journal/Journal.ts"
import type { JournalError } from "../journal/JournalError.ts"
import type { MachineRecord } from "../journal/MachineRecord.ts"
import * as Reclaimer from "../journal/Reclaimer.ts"
import * as Reconcile from "../journal/Reconcile.ts"
import * as ResourceKind from "../journal/ResourceKind.ts"
import type { ExitStatus } from "../lifecycle/ExitStatus.ts"
import * as Machine from "../microvm/Machine.ts"
import * as MachineEnd from "../microvm/MachineEnd.ts"
import * as MachineSpec from "../microvm/MachineSpec.ts"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import { MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import { ProcessHolder } from "../process/ProcessHolder.ts"
import { ProcessHost } from "../process/ProcessHost.ts"
import * as Shortage from "./internal/shortage.ts"

/**
 * What a machine gets of its host.
 *
 * @category models
 * @since 0.1.0
 */
export interface Given {
  readonly networks?: ReadonlyArray<MachineSpec.Network> | undefined
  readonly drives?: ReadonlyArray<MachineSpec.Drive> | undefined
  /** Control groups for the monitor. One resource at most gives them. */
  readonly cgroup?: Machine.LaunchOptions["cgroup"]
  /** The network namespace that its network cards are in, by its file. One resource at most gives it. */
  readonly netns?: string | undefined
  /** The user that the monitor runs as. One resource at most gives it. */
  readonly user?: number | undefined
}

/**
 * Something a machine needs of its host. It claims what it is going to acquire first (`entry.claim`), and does not release
 * it: that is the business of the claims' kinds. What has to go on while the machine lives, and is ours, such as a server, is the
 * scope's; `resume` sets that going again for an adopted machine. `given` is what the resources before it have given.
 *
 * @category models
 * @since 0.1.0
 */
export interface Resource<E = HostError | JournalError, R = never> {
  readonly acquire: (entry: Entry, given: ReadonlyArray<Given>) => Effect.Effect<Given, E, R | Scope.Scope>
}

/**
 * What has been acquired for a machine that is about to be launched.
 *
 * @category models
 * @since 0.1.0
 */
export interface Provision {
  readonly id: string
  readonly networks: ReadonlyArray<MachineSpec.Network>
  readonly drives: ReadonlyArray<MachineSpec.Drive>
  /** Has to be run before each launch, with the spec of it; the answer is how to launch. */
  readonly before: (
    spec: MachineSpec.MachineSpec
  ) => Effect.Effect<
    Pick<Machine.LaunchOptions, "cgroup" | "keep" | "netns" | "shortage" | "user">,
    MicroVmError.MicroVmError
  >
}

/**
 * @category options
 * @since 0.1.0
 */
export interface LaunchOptions<A extends { readonly machine: Machine.Machine }, E, R, E2, R2> {
  readonly id: string
  /** Is the machine to outlive us? Default false. */
  readonly keep?: boolean | undefined
  /** For people. Default none. */
  readonly labels?: Readonly<Record<string, string>> | undefined
  /** What it needs, in the order in which it is acquired. Default nothing. */
  readonly resources?: ReadonlyArray<Resource<E2, R2>> | undefined
  /**
   * When is all released: once the machine has `ended`, by itself or not, which is the default; or not before the scope is
   * `closed`, for whoever still reads what the machine has said?
   */
  readonly releaseWhen?: "ended" | "closed" | undefined
  /** Launches the machine, with what was provided. */
  readonly bring: (provision: Provision) => Effect.Effect<A, E, R | Scope.Scope>
}

/**
 * A machine that this supervisor looks after.
 *
 * @category models
 * @since 0.1.0
 */
export interface Supervised {
  readonly machine: Machine.Machine
  readonly entry: Entry
  /** Was it launched by an earlier supervisor? */
  readonly adopted: boolean
  /** Waits until the machine has ended and all that it had was released, or could not be. */
  readonly released: Effect.Effect<Reconcile.Released>
}

/**
 * What becomes of the machine of a record:
 *
 * - `Adopted`: it lives, and is ours now.
 * - `Reclaimed`: what was left of it is gone. `end` says how its machine had ended, where that could be told.
 * - `Kept`: somebody else has hold of it, so nothing was done.
 * - `Left`: something of it could not be removed, or not be understood, and is still there; or its process lives and does not
 *   answer, and nobody has said that it is to be killed. What is in the journal's quarantine is, each time, by the name that it had
 *   as a record, until somebody removes it.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Recovered = Schema.Struct({
  id: Schema.String,
  action: Schema.Literals(["Adopted", "Reclaimed", "Kept", "Left"]),
  why: Schema.String,
  end: Schema.optionalKey(Schema.String),
  released: Schema.optionalKey(Reconcile.Released)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Recovered = typeof Recovered.Type

/**
 * @category options
 * @since 0.1.0
 */
export interface RecoverOptions {
  /** `adopt`, the default, gets hold of what lives and was meant to; `kill` ends that, too. */
  readonly mode?: "adopt" | "kill" | undefined
  /** Only says what would be done. Default false. */
  readonly dryRun?: boolean | undefined
}

/**
 * @category services
 * @since 0.1.0
 */
export class Supervisor extends Context.Service<Supervisor, {
  /**
   * Acquires what a machine needs and launches it. Closing the scope ends the machine and releases everything; one that is
   * `keep` goes on, and so does what it has, for the next supervisor. When the machine ends by itself, all is released at once.
   *
   * A failure on the way leaves nothing. Fails with `RecordExists` where there is a machine of this id.
   */
  readonly launch: <A extends { readonly machine: Machine.Machine }, E, R, E2 = never, R2 = never>(
    options: LaunchOptions<A, E, R, E2, R2>
  ) => Effect.Effect<
    A & { readonly supervised: Supervised },
    E | E2 | JournalError | MicroVmError.MicroVmError,
    R | R2 | Scope.Scope
  >
  /**
   * Sees to the machines of supervisors that are gone: each is adopted, reclaimed, kept or left. Those that are adopted are among
   * `machines` from then on, and are let go of when this service's layer closes.
   */
  readonly recover: (options?: RecoverOptions) => Effect.Effect<ReadonlyArray<Recovered>, JournalError>
  /** Those that were launched or adopted by this supervisor, and of which something is left. */
  readonly machines: Effect.Effect<ReadonlyArray<Supervised>>
}>()("effect-microvm-runtime/supervisor/Supervisor") {}

/**
 * Why nothing may be done about this record here and now, if so: what it speaks of cannot be seen from here, say.
 *
 * @category models
 * @since 0.1.0
 */
export type Obstacle = (record: MachineRecord, mode: "adopt" | "kill") => string | undefined

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /**
   * The kinds of all that machines may have of the host, in the order in which they are acquired: what was acquired last is
   * released first, and those in a list of their own at the same time. Those of machines' directories and processes are known.
   */
  readonly kinds?: Reconcile.Kinds | undefined
  /** What an adopted machine needs of us while it lives. Default nothing. */
  readonly resume?: ((entry: Entry) => Effect.Effect<void, HostError | JournalError, Scope.Scope>) | undefined
  /** Asked anew by each `recover`. Default: all can be done. */
  readonly obstacle?: Effect.Effect<Obstacle> | undefined
  /** Told of what was released, and of what could not be. By default, the latter goes to the log as a warning. */
  readonly onReleased?: ((released: Reconcile.Released) => Effect.Effect<void>) | undefined
}

const decodeSpec = Schema.decodeUnknownResult(MachineSpec.MachineSpec)
const encodeSpec = Schema.encodeSync(MachineSpec.MachineSpec)

const decodeHeld = Schema.decodeUnknownOption(HeldProcesses.kind.data)

/** People hear of what is left; what went well is nobody's news. */
const warn = (released: Reconcile.Released): Effect.Effect<void> =>
  released.left === 0 && released.trouble === undefined
    ? Effect.void
    : Effect.logWarning(Reconcile.format([released]))

/** What reclaimers of this folder's own kinds need. */
type Needs = FileSystem.FileSystem | Path.Path | ProcessHolder

/**
 * A kind with all that it needs, for `Options.kinds`.
 *
 * @category combinators
 * @since 0.1.0
 */
export const provided = <R>(reclaimer: Reclaimer.Reclaimer<R>, context: Context.Context<R>): Reclaimer.Reclaimer => ({
  kind: reclaimer.kind,
  reclaim: (claims, options) => Effect.provideContext(reclaimer.reclaim(claims, options), context)
})

const withReleased = (recovered: Recovered, released: Reconcile.Released): Recovered => ({
  ...recovered,
  released,
  ...(released.left === 0 ? {} : { action: "Left" })
})

/** The label of a kept machine whose launch was complete. */
const upLabel = "up"

const heldBy = ({ claims }: MachineRecord) =>
  claims.flatMap(({ data, kind }) => kind === HeldProcesses.kind.kind ? Option.toArray(decodeHeld(data)) : [])

/** The parts of an adoption that only a record can give. */
const toAdopt = (record: MachineRecord) => {
  const { keep, phase, spec } = record
  const held = heldBy(record).at(-1)
  const decoded = decodeSpec(spec)
  if (!keep || phase._tag === "Over" || held === undefined || Result.isFailure(decoded)) return undefined
  return { spec: decoded.success, directory: held.directory }
}

const make = Effect.fnUntraced(
  function*(
    {
      kinds: others = [],
      obstacle = Effect.succeed(() => undefined),
      onReleased = warn,
      resume = () => Effect.void
    }: Options
  ) {
    const journal = yield* Journal
    const provider = yield* MicroVmProvider
    const { bootId } = yield* ProcessHost
    const path = yield* Path.Path
    const own = yield* Effect.scope
    const context = yield* Effect.context<Needs>()
    const kinds = [
      provided(Reclaimer.make(MachineDirectories.kind), context),
      ...others,
      provided(Reclaimer.make(HeldProcesses.kind), context)
    ]
    const ours = new Map<string, Supervised>()
    /**
     * Those whose records are not to be taken for a dead supervisor's: of machines that come up, are there, or are released. How many,
     * since another one may come up under an id whose record is gone, while the last of it is done.
     */
    const busy = new Map<string, number>()
    const enter = (id: string): void => void busy.set(id, (busy.get(id) ?? 0) + 1)
    const leave = (id: string): void => {
      const left = (busy.get(id) ?? 0) - 1
      if (left > 0) busy.set(id, left)
      else busy.delete(id)
    }
    const forget = (entry: Entry): void => {
      if (ours.get(entry.id)?.entry === entry) ours.delete(entry.id)
      leave(entry.id)
    }

    /** A fault of whoever is told must not keep others waiting for what was released. */
    const tell = (released: Reconcile.Released) =>
      Effect.catchCause(
        Effect.suspend(() => onReleased(released)),
        (cause) => Effect.logError(`machine "${released.id}": whoever is told of its release has failed`, cause)
      )

    const release = (entry: Entry) =>
      Reconcile.release(entry, kinds).pipe(
        Effect.ensuring(Effect.sync(() => forget(entry))),
        // Its id may be another machine's from now on, of whoever is told.
        Effect.tap(tell),
        Effect.withSpan("Supervisor.release", { attributes: { machine: entry.id } })
      )

    /**
     * Looks after a machine until its end, or until `scope` closes. `inner` has what goes with the machine, and is closed before
     * its resources are released.
     */
    const lookAfter = Effect.fnUntraced(function*(
      machine: Machine.Machine,
      entry: Entry,
      how: {
        readonly adopted: boolean
        readonly keep: boolean
        readonly releaseWhen: "ended" | "closed"
        readonly inner: Scope.Closeable
        readonly scope: Scope.Scope
      }
    ) {
      const over = yield* Deferred.make<Reconcile.Released>()
      const finish = yield* Effect.cached(
        Effect.uninterruptible(
          Effect.andThen(Scope.close(how.inner, Exit.void), release(entry)).pipe(
            Effect.tap((released) => Deferred.succeed(over, released))
          )
        )
      )
      const supervised: Supervised = { machine, entry, adopted: how.adopted, released: Deferred.await(over) }
      ours.set(entry.id, supervised)
      const watcher = yield* (how.releaseWhen === "ended" ? Effect.andThen(machine.ended, finish) : Effect.void).pipe(
        Effect.interruptible,
        Effect.forkDetach({ startImmediately: true })
      )
      yield* Scope.addFinalizer(
        how.scope,
        Effect.gen(function*() {
          const lives = Option.isNone(yield* machine.poll)
          if (!lives || !how.keep) {
            yield* finish
            return
          }
          // It goes on, and so does all that it has, until somebody asks for it.
          yield* Fiber.interrupt(watcher)
          yield* Scope.close(how.inner, Exit.void)
          // Unless it has ended just now, and was released.
          if (ours.get(entry.id) === supervised) forget(entry)
        }).pipe(Effect.ignore, Effect.uninterruptible)
      )
      return supervised
    })

    /** By what was counted since: others may have ended in the same cgroups before this one. */
    const lacking = ({ claims }: MachineRecord, since?: Events) => (status: ExitStatus) =>
      Shortage.count(claims).pipe(
        Effect.map((now) => Shortage.find(status, now, since)),
        Effect.provideContext(context)
      )
    const shortage = Effect.fnUntraced(function*(entry: Entry) {
      const record = yield* entry.record
      return lacking(record, yield* Effect.provideContext(Shortage.count(record.claims), context))
    })

    const provide = Effect.fnUntraced(function*<E, R>(
      entry: Entry,
      keep: boolean,
      resources: ReadonlyArray<Resource<E, R>>
    ) {
      const given: Array<Given> = []
      for (const { acquire } of resources) given.push(yield* acquire(entry, given))
      const cgroup = given.find((one) => one.cgroup !== undefined)?.cgroup
      const netns = given.find((one) => one.netns !== undefined)?.netns
      const user = given.find((one) => one.user !== undefined)?.user
      let attempts = 0
      const before: Provision["before"] = (spec) =>
        Effect.gen(function*() {
          const how = { cgroup, netns, user, shortage: yield* shortage(entry) }
          if (!keep) {
            yield* entry.respec(encodeSpec(spec))
            return how
          }
          const directory = path.join(journal.directory, "held", `${entry.id}-${entry.token}-${++attempts}`)
          yield* entry.update({
            spec: encodeSpec(spec),
            claim: [
              ResourceKind.claim(MachineDirectories.kind, { path: directory }),
              ResourceKind.claim(HeldProcesses.kind, { directory })
            ]
          })
          yield* MachineDirectories.make(directory, entry)
          return { ...how, keep: { directory } }
        }).pipe(
          Effect.provideContext(context),
          Effect.mapError((cause) =>
            MicroVmError.make(
              new MicroVmError.LaunchFailed({
                id: spec.id,
                stage: "writing it down",
                stderrTail: "",
                consoleTail: "",
                cause
              })
            )
          )
        )
      return {
        id: entry.id,
        networks: given.flatMap(({ networks = [] }) => networks),
        drives: given.flatMap(({ drives = [] }) => drives),
        before
      } satisfies Provision
    })

    const launch: Supervisor["Service"]["launch"] = Effect.fn("Supervisor.launch")(function*(options) {
      const { bring, id, keep = false, labels, releaseWhen = "ended", resources = [] } = options
      yield* Effect.annotateCurrentSpan("machine", id)
      const scope = yield* Effect.scope
      return yield* Effect.uninterruptibleMask((restore) =>
        Effect.gen(function*() {
          enter(id)
          const entry = yield* Effect.onError(
            journal.open({ id, keep, labels, spec: null }),
            () => Effect.sync(() => leave(id))
          )
          const inner = yield* Scope.make()
          const brought = yield* restore(
            Effect.flatMap(provide(entry, keep, resources), bring).pipe(
              Effect.tap(keep ? entry.label({ [upLabel]: "yes" }) : Effect.void)
            )
          ).pipe(
            Scope.provide(inner),
            // Whatever there is of it by now, a kept machine too.
            Effect.onError((cause) =>
              Effect.andThen(Scope.close(inner, Exit.failCause(cause)), Effect.ignore(release(entry)))
            )
          )
          const supervised = yield* lookAfter(brought.machine, entry, {
            adopted: false,
            keep,
            releaseWhen,
            inner,
            scope
          })
          return { ...brought, supervised }
        })
      )
    })

    /** Gets hold of the machine of a record, if it is one that can be. */
    const attach = Effect.fnUntraced(function*(entry: Entry, scope: Scope.Scope) {
      const record = yield* entry.record
      if (record.bootId !== bootId) return { _tag: "Gone", why: "the host was started again since" } as const
      const wanted = toAdopt(record)
      if (wanted === undefined) {
        return { _tag: "Gone", why: record.keep ? "it was not up yet" : "it was to end with its supervisor" } as const
      }
      const { directory, spec } = wanted
      return yield* Machine.attach(spec, { keep: { directory }, shortage: lacking(record) }).pipe(
        Effect.map((machine) => ({ _tag: "There", machine }) as const),
        Effect.catch((error) =>
          Effect.succeed(
            error.reason._tag === "AttachFailed" && error.reason.isHeld
              ? { _tag: "Held", why: error.message } as const
              : { _tag: "Gone", why: error.message } as const
          )
        ),
        Effect.provideService(MicroVmProvider, provider),
        Scope.provide(scope)
      )
    })

    /** Does a machine that was up run, though it cannot be attached to? A launch that was broken off is nobody's machine yet. */
    const livesOn = Effect.fnUntraced(function*(entry: Entry) {
      const record = yield* entry.record
      if (record.bootId !== bootId || record.phase._tag === "Over" || record.labels[upLabel] === undefined) return false
      const { destroy } = yield* ProcessHolder
      const fates = yield* Effect.forEach(
        heldBy(record),
        ({ directory }) => destroy({ directory, dryRun: true })
      )
      return fates.some(({ _tag }) => _tag === "Destroyed")
    }, Effect.provideContext(context))

    const adopt = (entry: Entry, machine: Machine.Machine, inner: Scope.Closeable) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.gen(function*() {
          enter(entry.id)
          yield* restore(Effect.andThen(entry.adopt, Scope.provide(resume(entry), inner))).pipe(
            Effect.onError(() => Effect.sync(() => leave(entry.id)))
          )
          yield* lookAfter(machine, entry, { adopted: true, keep: true, releaseWhen: "ended", inner, scope: own })
        })
      )

    /** What is to be done with one of them; an adoption is done here. */
    const recoverOne = Effect.fnUntraced(function*(
      entry: Entry,
      { dryRun = false, mode = "adopt" }: RecoverOptions,
      hinders: Obstacle
    ) {
      const { id } = entry
      const inner = yield* Scope.make()
      return yield* Effect.gen(function*() {
        const hindered = hinders(yield* entry.record, mode)
        if (hindered !== undefined) return { id, action: "Left", why: hindered } as const
        const found = yield* attach(entry, inner)
        if (found._tag === "Gone" && mode === "adopt" && (yield* livesOn(entry))) {
          const why =
            `its process lives, but nobody can go on with it, ${found.why}; it is ended if that is asked for (kill)`
          return { id, action: "Left", why } as const
        }
        if (found._tag !== "There") {
          return { id, why: found.why, action: found._tag === "Held" ? "Kept" : "Reclaimed" } as const
        }
        const end = Option.map(yield* found.machine.poll, MachineEnd.format)
        if (Option.isSome(end)) {
          return { id, action: "Reclaimed", why: "its machine has ended", end: end.value } as const
        }
        if (mode === "kill") {
          // A process that is held is ended with all others, when what is left of them is released: at once, and nobody has to wait
          // for what each of them says of its end.
          if (!dryRun && !(yield* livesOn(entry))) {
            yield* Effect.ignore(found.machine.shutdown({ request: { atLeast: "SIGKILL" } }))
          }
          return { id, action: "Reclaimed", why: "it was to be ended" } as const
        }
        if (!dryRun) yield* adopt(entry, found.machine, inner)
        return { id, action: "Adopted", why: "its machine answers" } as const
      }).pipe(
        Effect.catch((error) => Effect.succeed({ id, action: "Left", why: error.message } as const)),
        // Whatever we got hold of and do not look after is let go of, also when this is called off.
        Effect.onExit((exit) => ours.has(id) ? Effect.void : Scope.close(inner, exit))
      )
    })

    /** Nothing is done about what such a file may speak of, so it is never to be passed over. */
    const illegible = ({ path: file, why }: Quarantined): Recovered => ({
      id: path.basename(file).replace(/(\.json)?(\.[0-9a-f]{8})?$/, ""),
      action: "Left",
      why: `what is written of its machine cannot be read, ${why}: see to what that speaks of, then remove ${file}`
    })

    const recoverAll = Effect.fnUntraced(function*(options: RecoverOptions) {
      const quarantined = yield* journal.quarantined
      const entries = (yield* journal.entries).filter(({ id }) => !busy.has(id))
      const hinders = yield* obstacle
      const found = yield* Effect.forEach(entries, (entry) => recoverOne(entry, options, hinders), { concurrency: 16 })
      const gone = entries.filter((_, index) => found[index]?.action === "Reclaimed")
      const released = yield* Reconcile.reclaim(gone, kinds, { dryRun: options.dryRun ?? false })
      const all = found.map((one): Recovered => {
        const what = released.find(({ id }) => id === one.id)
        return what === undefined ? one : withReleased(one, what)
      })
      return [...all, ...quarantined.map(illegible)]
    })

    const turn = yield* Semaphore.make(1)
    const recover: Supervisor["Service"]["recover"] = Effect.fn("Supervisor.recover")((options = {}) =>
      Semaphore.withPermit(turn, recoverAll(options))
    )

    return Supervisor.of({ launch, recover, machines: Effect.sync(() => [...ours.values()]) })
  }
)

/**
 * A supervisor over the journal and the backend at hand. It does nothing about what others have left before `recover`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (
  options: Options
): Layer.Layer<Supervisor, never, Journal | MicroVmProvider | Needs | ProcessHost> =>
  Layer.effect(Supervisor, make(options))
