/** What the scenarios of the suite for backends are made of. */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Formatter from "effect/Formatter"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import type * as Machine from "../../microvm/Machine.ts"
import type * as MachineSpec from "../../microvm/MachineSpec.ts"
import type { MachineState } from "../../microvm/MachineState.ts"
import * as MicroVmError from "../../microvm/MicroVmError.ts"
import { type Capabilities, MicroVmProvider } from "../../microvm/MicroVmProvider.ts"
import * as MicroVmRuntime from "../../microvm/MicroVmRuntime.ts"
import * as Snapshot from "../../microvm/Snapshot.ts"
import { SnapshotStore, type Stored } from "../../microvm/SnapshotStore.ts"

/**
 * What the suite needs to know of a backend, and what can be brought about from outside.
 *
 * @category models
 * @since 0.1.0
 */
export interface Rig<out R = never> {
  /** What the provider says of itself; the suite checks that it does. */
  readonly capabilities: Capabilities
  /** A machine that boots, with this id. */
  readonly spec: (id: string) => MachineSpec.MachineSpecOptions
  /** Put before each id: scenarios of two rigs may share a host. Default none. */
  readonly prefix?: string | undefined
  /** How the suite stops machines that have nothing to lose. Default: by the policy. */
  readonly stop?: Machine.ShutdownOptions | undefined
  /** Waits until a started guest can do what the following ask for. Default: it can at once. */
  readonly booted?: ((machine: Machine.Machine) => Effect.Effect<void, unknown, R>) | undefined
  /** Has the guest power itself off. */
  readonly powerOff?: ((machine: Machine.Machine) => Effect.Effect<void, unknown, R>) | undefined
  /** Has the guest reboot. */
  readonly reboot?: ((machine: Machine.Machine) => Effect.Effect<void, unknown, R>) | undefined
  /** Has the guest's kernel panic. */
  readonly panic?: ((machine: Machine.Machine) => Effect.Effect<void, unknown, R>) | undefined
  /** Kills the monitor behind our back, by SIGKILL. */
  readonly kill?: ((machine: Machine.Machine) => Effect.Effect<void, unknown, R>) | undefined
  /** Waits until a guest that was restored, and had booted before, can do what is asked for. Default: `booted`. */
  readonly restored?: ((machine: Machine.Machine) => Effect.Effect<void, unknown, R>) | undefined
  /** Has the guest keep a word in its memory, not on a disk. */
  readonly remember?: ((machine: Machine.Machine, word: string) => Effect.Effect<void, unknown, R>) | undefined
  /** The word that the guest keeps. Needed with `remember`. */
  readonly recall?: ((machine: Machine.Machine) => Effect.Effect<string, unknown, R>) | undefined
  /** Damages a snapshot that is stored. */
  readonly corrupt?: ((snapshot: Snapshot.Snapshot) => Effect.Effect<void, unknown, R>) | undefined
  /** An empty directory for a machine that is kept, which goes with the scope. Needed with `keep`. */
  readonly directory?: Effect.Effect<string, unknown, R | Scope.Scope> | undefined
  /** A channel of `spec` on which the guest sends back each byte it gets. */
  readonly echo?: string | undefined
  /** What is still claimed on the host, in words; looked at after each scenario. */
  readonly left?: Effect.Effect<ReadonlyArray<string>, unknown, R> | undefined
}

/** What a backend answers may be anything, a socket as well. */
const show = (value: unknown): string => {
  const text = Formatter.format(value)
  return text.length > 1000 ? `${text.slice(0, 999)}…` : text
}

/**
 * A backend does not do what every backend has to.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotConforming extends Data.TaggedError("NotConforming")<{
  readonly what: string
  readonly expected: unknown
  readonly actual: unknown
}> {
  override get message(): string {
    return `${this.what}: expected ${show(this.expected)}, got ${show(this.actual)}`
  }
}

/**
 * One scenario.
 *
 * @category models
 * @since 0.1.0
 */
export interface Scenario<out R = never> {
  readonly name: string
  /** Why it cannot be run with this rig. */
  readonly skip?: string
  readonly run: Effect.Effect<void, unknown, MicroVmProvider | SnapshotStore | R>
}

export const expect = (what: string, actual: unknown, expected: unknown): Effect.Effect<void, NotConforming> =>
  Equal.equals(actual, expected) ? Effect.void : Effect.fail(new NotConforming({ what, expected, actual }))

/** A reason, reduced to what is compared. */
const summary = (reason: MicroVmError.Reason): string => {
  if (reason._tag === "InvalidTransition") return `${reason._tag} ${reason.from}→${reason.to}`
  if (reason._tag === "InvalidSpec") {
    return `${reason._tag} ${reason.faults.map((fault) => fault.field).toSorted().join(", ")}`
  }
  if (reason._tag === "ChannelUnavailable") return `${reason._tag} ${reason.known.join(", ")}`
  return reason._tag === "AttachFailed" && reason.isHeld ? `${reason._tag} held` : reason._tag
}

export const refused = Effect.fnUntraced(
  function*<A, E, R>(what: string, effect: Effect.Effect<A, E, R>, expected: string) {
    const result = yield* Effect.result(effect)
    if (Result.isSuccess(result)) {
      return yield* new NotConforming({ what, expected, actual: result.success })
    }
    const { failure } = result
    if (!(failure instanceof MicroVmError.MicroVmError)) return yield* Effect.fail(failure)
    yield* expect(what, summary(failure.reason), expected)
  }
)

export type Need =
  | keyof Capabilities
  | "powerOff"
  | "reboot"
  | "panic"
  | "kill"
  | "echo"
  | "remember"
  | "recall"
  | "corrupt"
  | "directory"

export interface Stage {
  readonly runtime: MicroVmRuntime.MicroVmRuntime["Service"]
  readonly provider: MicroVmProvider["Service"]
  readonly store: SnapshotStore["Service"]
  /** The id of machine `a`, `b`, … of this scenario. */
  readonly id: (name: string) => string
  readonly create: (name: string) => Effect.Effect<MicroVmRuntime.MachineView, MicroVmError.MicroVmError>
  readonly stateOf: (name: string) => Effect.Effect<MachineState | "absent">
  readonly machine: (name: string) => Effect.Effect<Machine.Machine, unknown>
  /** The snapshots of machines of this scenario that are in the store. */
  readonly kept: Effect.Effect<ReadonlyArray<Stored>, MicroVmError.MicroVmError>
  /** Creates and starts. */
  readonly running: (name: string) => Effect.Effect<Machine.Machine, unknown>
}

/** Scenarios for one rig; each that is told is put at the end. */
export interface Suite<R> {
  readonly rig: Rig<R>
  readonly all: ReadonlyArray<Scenario<R>>
  readonly scenario: (
    name: string,
    needs: ReadonlyArray<Need>,
    body: (stage: Stage) => Effect.Effect<void, unknown, Scope.Scope | MicroVmProvider | SnapshotStore | R>
  ) => void
}

/** What a machine that is kept has is released by nobody who could be waited for: it may take some turns. */
const settled = <E, R>(left: Effect.Effect<ReadonlyArray<string>, E, R>) =>
  Effect.repeat(Effect.tap(left, Effect.yieldNow), { until: (names) => names.length === 0, times: 100 })

export const makeSuite = <R>(rig: Rig<R>): Suite<R> => {
  const all: Array<Scenario<R>> = []
  const scenario: Suite<R>["scenario"] = (name, needs, body) => {
    const prefix = `${rig.prefix ?? ""}c${all.length + 1}`
    const missing = needs.filter((need) =>
      need in rig.capabilities ? !Reflect.get(rig.capabilities, need) : !(need in rig)
    )
    all.push({
      name,
      ...(missing.length === 0 ? {} : { skip: `the backend or its rig has no ${missing.join(", ")}` }),
      run: Effect.gen(function*() {
        const provider = yield* MicroVmProvider
        const store = yield* SnapshotStore
        const id = (machine: string) => `${prefix}-${machine}`
        const kept = Effect.map(
          store.list,
          (stored) => stored.filter(({ manifest }) => manifest?.labels["machine"]?.startsWith(id("")))
        )
        yield* Effect.scoped(Effect.gen(function*() {
          // The store may be one that others use too.
          yield* Effect.addFinalizer(() =>
            kept.pipe(
              Effect.tap(Effect.forEach((one) => Effect.ignore(store.remove(one.id)), { discard: true })),
              // What others are the difference to goes after them.
              Effect.repeat({ until: (seen) => seen.length === 0, times: Snapshot.mostBases + 1 }),
              Effect.ignore
            )
          )
          const runtime = yield* MicroVmRuntime.make()
          // A guest that has not booted does not hear its power button.
          yield* Effect.addFinalizer(() =>
            Effect.flatMap(
              runtime.list,
              Effect.forEach((one) => Effect.ignore(runtime.destroy(one.id, rig.stop)), {
                concurrency: "unbounded",
                discard: true
              })
            )
          )
          const create = (machine: string) => runtime.create(rig.spec(id(machine)))
          const machine = (which: string) => Effect.flatMap(runtime.machine(id(which)), Effect.fromOption)
          const stage: Stage = {
            runtime,
            provider,
            store,
            kept,
            id,
            create,
            machine,
            stateOf: (which) =>
              Effect.map(
                runtime.get(id(which)),
                Option.match({ onNone: () => "absent", onSome: ({ state }) => state })
              ),
            running: (which) => Effect.andThen(Effect.andThen(create(which), runtime.start(id(which))), machine(which))
          }
          yield* body(stage)
        }))
        if (rig.left !== undefined) yield* expect("what is left", yield* settled(rig.left), [])
      })
    })
  }
  return { rig, all, scenario }
}

/** Stops by a stage that nobody answers: it takes an hour unless somebody hastens it. */
export const slowly: Machine.ShutdownOptions = { leading: [{ name: "wait", request: Effect.void, grace: "1 hour" }] }
export const atOnce: Machine.ShutdownOptions = { request: { atLeast: "SIGTERM" } }
