/**
 * A machine whose guest answers, in a tenth of a second: restored from a golden one, and made itself before anybody
 * gets it.
 *
 * ```
 *   golden machine ▸ restore ▸ resume ▸ guest answers ▸ renewed, and proven so ▸ yours
 *        └── where there can be none, and with `start: "cold"`: launch ▸ boot ▸ guest answers ▸ yours
 * ```
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import type * as SecureRandom from "effect/crypto/SecureRandom"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as GuestAgent from "../guest/GuestAgent.ts"
import { GuestError } from "../guest/GuestError.ts"
import * as GuestRenewal from "../guest/GuestRenewal.ts"
import * as GuestResident from "../guest/GuestResident.ts"
import * as GuestSlots from "../guest/GuestSlots.ts"
import type { ImageError } from "../image/ImageError.ts"
import { ImageStore } from "../image/ImageStore.ts"
import * as GuestNetwork from "../microvm/GuestNetwork.ts"
import * as Machine from "../microvm/Machine.ts"
import type { MachineEnd } from "../microvm/MachineEnd.ts"
import * as MachineSpec from "../microvm/MachineSpec.ts"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import { MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import * as Snapshot from "../microvm/Snapshot.ts"
import { SnapshotStore } from "../microvm/SnapshotStore.ts"
import { checkName, GoldenMachines, hasOursOnly, hasResident } from "./GoldenMachines.ts"
import type { Phase, Progress } from "./WarmProgress.ts"

/**
 * How a machine came to be: from a snapshot, with the proof that it is like no other; or by a boot, and why so.
 *
 * @category models
 * @since 0.1.0
 */
export type Start =
  | {
    readonly _tag: "Restored"
    readonly snapshot: string
    readonly took: Duration.Duration
    readonly proof: GuestRenewal.Proof
  }
  | { readonly _tag: "Booted"; readonly why: string; readonly took: Duration.Duration }

/**
 * A machine whose guest answers.
 *
 * @category models
 * @since 0.1.0
 */
export interface WarmMachine {
  readonly machine: Machine.Machine
  readonly agent: GuestAgent.GuestAgent
  readonly slots: GuestSlots.GuestSlots
  readonly start: Start
  /** What it is made of, as the manifests of its snapshots say. */
  readonly labels: Readonly<Record<string, string>>
}

/**
 * What can go wrong on the way.
 *
 * @category errors
 * @since 0.1.0
 */
export type WarmError = MicroVmError.MicroVmError | GuestError | ImageError

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** The machine's id. It is the guest's host name too. */
  readonly id: string
  /** The guest image. Default `default`. */
  readonly image?: string | undefined
  /** Default 1. */
  readonly vcpus?: number | undefined
  /** MiB of memory. Default 256. */
  readonly memoryMib?: number | undefined
  /**
   * How many commands can run at a time, also in the machines that are restored from its snapshots: those that ran when it was
   * saved go on in there, and keep their slots. 1 to 64, as far as the backend has channels: 9 with QEMU. Default 4.
   */
  readonly slots?: number | undefined
  /**
   * - `warm`, the default: from a golden machine, which is made when there is none; booted where there can be none.
   * - `cold`: booted.
   * - `{ from }`: from the snapshot of that name or id, and from no other. Its image and its size count.
   */
  readonly start?: "warm" | "cold" | { readonly from: string } | undefined
  /** Its network cards: see `MachineSpec.Network`. Default none. */
  readonly networks?: MachineSpec.MachineSpecOptions["networks"]
  /** Its disks: see `MachineSpec.Drive`. A golden machine has none, so one with disks is booted. Default none. */
  readonly drives?: MachineSpec.MachineSpecOptions["drives"]
  /**
   * How it ends when its scope closes: see `Machine.LaunchOptions`. Default `Machine.defaultPolicy`, by which its guest powers off;
   * where nothing of the machine is kept, `Machine.killPolicy` takes a fraction of that time.
   */
  readonly policy?: Machine.LaunchOptions["policy"]
  /** How long a guest may take to boot. Default 2 minutes. */
  readonly bootWithin?: Duration.Input | undefined
  /** How long a restored guest may take to answer. Default 15 seconds. */
  readonly answerWithin?: Duration.Input | undefined
  /** Told of the way a machine takes. By default, nobody. */
  readonly onProgress?: ((progress: Progress) => Effect.Effect<void>) | undefined
  /** Runs around each phase, for whoever wants to show or measure it. */
  readonly phase?: Phase | undefined
  /**
   * Told what is going to be launched or restored, before it is, each time that it is tried; the answer is how. Golden machines
   * are not told of. By default, a machine ends with its scope.
   */
  readonly before?:
    | ((
      spec: MachineSpec.MachineSpec
    ) => Effect.Effect<
      Pick<Machine.LaunchOptions, "keep" | "cgroup" | "netns" | "shortage" | "user">,
      MicroVmError.MicroVmError
    >)
    | undefined
  /** Told of the machine as soon as there is one, for whoever may have to end it before its guest answers. */
  readonly onMachine?: ((machine: Machine.Machine) => Effect.Effect<void>) | undefined
}

/**
 * Brings a machine up until its guest answers. Closing the scope ends it.
 *
 * With `{ from }` it fails with `SnapshotNotFound` and `SnapshotUnusable`, and with `NotRenewed` when the machine could not
 * be made itself: then it was destroyed. A golden machine that is to blame for that is removed.
 *
 * Without a real machine, as in a test:
 *
 * ```ts import.meta.vitest
 * import { FakeWarmMachine } from "effect-microvm-runtime/testing"
 * import { WarmMachine } from "effect-microvm-runtime/warm"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.scoped(Effect.map(WarmMachine.launch({ id: "web-1" }), ({ start }) => start._tag))
 * await Effect.runPromise(Effect.provide(program, FakeWarmMachine.layer)) // => "Restored"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const launch: (options: Options) => Effect.Effect<
  WarmMachine,
  WarmError,
  GoldenMachines | ImageStore | MicroVmProvider | Scope.Scope | SecureRandom.SecureRandom | SnapshotStore
> = Effect.fn("WarmMachine.launch")(function*(options: Options) {
  const {
    bootWithin = "2 minutes",
    drives = [],
    image = "default",
    networks = [],
    onProgress = () => Effect.void,
    policy,
    slots = defaultSlots,
    start = "warm"
  } = options
  yield* check(options)
  const phase: Phase = options.phase ?? (() => (effect) => effect)
  const before = options.before ?? (() => Effect.succeed({}))
  yield* Effect.annotateCurrentSpan("machine", options.id)
  const { capabilities, backend } = yield* MicroVmProvider
  const golden = yield* GoldenMachines
  const store = yield* SnapshotStore
  const boot = (why: string) =>
    attempt(
      options,
      Effect.gen(function*() {
        const images = yield* ImageStore
        const { digest, initramfs, kernel, kernelRelease, name } = yield* phase("image", "preparing the guest image")(
          images.ensure(image, { onProgress })
        )
        const spec = yield* MachineSpec.decode({
          id: options.id,
          hostname: options.id,
          vcpus: options.vcpus ?? 1,
          memoryMib: options.memoryMib ?? 256,
          kernel,
          initramfs,
          channels: channels(slots),
          networks,
          drives
        })
        const how = yield* before(spec)
        const machine = yield* phase("launch", "starting the machine")(
          Machine.launch(spec, { ...how, policy })
        )
        return {
          machine,
          go: machine.start,
          label: ["boot", "booting the guest"] as const,
          within: bootWithin,
          slots: GuestSlots.inChannels(spec.channels),
          resident: undefined,
          labels: { image: name, digest, kernelRelease },
          from: { why }
        }
      })
    )

  const restore = Effect.fnUntraced(function*(snapshot: Snapshot.Snapshot) {
    const { labels, spec } = snapshot.manifest
    const free = freeSlots(snapshot.manifest)
    if (free.length === 0) {
      const all = GuestSlots.inChannels(spec.channels).length
      const why = [all === 0 ? "it has no slots for commands" : `each of its ${all} slots has a command that goes on`]
      return yield* MicroVmError.fail(new MicroVmError.SnapshotUnusable({ snapshot: snapshot.id, why }))
    }
    return yield* attempt(
      options,
      Effect.gen(function*() {
        const how = yield* before(yield* MachineSpec.decode({ ...spec, id: options.id, networks, drives }))
        const machine = yield* phase("restore", "restoring the machine")(
          Machine.restore(options.id, snapshot, { ...how, policy, networks, drives })
        )
        return {
          machine,
          go: machine.resume,
          label: ["renew", "giving the machine its own clock and names"] as const,
          within: options.answerWithin ?? "15 seconds",
          slots: free,
          resident: hasResident(snapshot.manifest)
            ? { alone: hasOursOnly(snapshot.manifest), command: !("keep" in how) || how.keep === undefined }
            : undefined,
          labels,
          from: { snapshot: snapshot.id }
        }
      })
    )
  })

  if (typeof start === "object") return yield* restore(yield* store.open(start.from))
  if (start === "cold") return yield* boot("as asked for")
  if (!capabilities.snapshot) return yield* boot(`the ${backend} backend has no snapshots`)

  if (drives.length > 0) return yield* boot("no golden machine has disks")

  const warm = Effect.flatMap(
    golden.ensure(
      {
        image,
        vcpus: options.vcpus ?? 1,
        memoryMib: options.memoryMib ?? 256,
        channels: channels(slots),
        cards: networks.length
      },
      { bootWithin, onProgress, phase }
    ),
    (snapshot) =>
      Effect.tapError(
        restore(snapshot),
        (error) => condemns(error) ? Effect.ignore(store.remove(snapshot.id)) : Effect.void
      )
  )
  return yield* warm.pipe(
    // Nobody waits for it, and who ends meanwhile leaves it to the next one.
    Effect.tap(Effect.forkDetach(golden.tidy)),
    // What was there is gone now, so this makes another one.
    Effect.catchIf(
      (error) => error._tag === "MicroVmError" && error.reason._tag === "SnapshotUnusable",
      (error) => Effect.andThen(onProgress({ _tag: "Remaking", why: error.message }), warm)
    ),
    Effect.catchIf(
      (error) => !failsBootToo(error),
      (error) => Effect.andThen(onProgress({ _tag: "BootingCold", why: error.message }), boot(error.message))
    )
  )
})

/**
 * The agent and the slots of a machine that is up already, as one that another process has left and that was attached to. Fails
 * with `Timeout` when its guest does not answer, and then the machine is as it was.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromMachine: (
  machine: Machine.Machine,
  options?: Pick<Options, "answerWithin"> & { readonly labels?: Readonly<Record<string, string>> | undefined }
) => Effect.Effect<
  Omit<WarmMachine, "start">,
  MicroVmError.MicroVmError | GuestError,
  Scope.Scope
> = Effect.fn("WarmMachine.fromMachine")(function*(machine, options = {}) {
  const { channel, id, spec } = machine
  yield* Effect.annotateCurrentSpan("machine", id)
  const slots = yield* GuestSlots.fromChannels(GuestSlots.inChannels(spec.channels), channel)
  const agent = yield* GuestAgent.make(yield* channel(GuestAgent.channelName), {
    within: options.answerWithin ?? "15 seconds"
  })
  return { machine, agent, slots, labels: options.labels ?? {} }
})

const mostSlots = 64

/** All that is wrong with the options, before a golden machine is made for nothing. */
const check = (
  { answerWithin, bootWithin, drives = [], id, networks = [], slots = defaultSlots }: Options
): Effect.Effect<void, MicroVmError.MicroVmError> =>
  MachineSpec.decode({ id, hostname: id, kernel: "/kernel", networks, drives }).pipe(
    Effect.as<ReadonlyArray<MicroVmError.Fault>>([]),
    Effect.catchReason("MicroVmError", "InvalidSpec", ({ faults }) => Effect.succeed(faults)),
    Effect.flatMap((ofSpec) => {
      const faults = [...ofSpec]
      if (!Number.isSafeInteger(slots) || slots < 1 || slots > mostSlots) {
        faults.push({ field: "slots", value: slots, remedy: `give a whole number from 1 to ${mostSlots}` })
      }
      for (const [field, value] of Object.entries({ bootWithin, answerWithin })) {
        if (value === undefined) continue
        const millis = Number.isNaN(value) ? undefined : Option.getOrUndefined(Duration.fromInput(value))
        if (millis === undefined || !Duration.isGreaterThan(millis, Duration.zero)) {
          faults.push({ field, value, remedy: "give a time above zero, as 500 or \"2 seconds\"" })
        }
      }
      return faults.length === 0 ? Effect.void : MicroVmError.fail(new MicroVmError.InvalidSpec({ faults }))
    })
  )

/** What a boot would fail with too. */
const failsBootToo = ({ _tag, reason }: WarmError): boolean =>
  _tag === "ImageError" || reason._tag === "InvalidSpec" || reason._tag === "BackendUnavailable"

/** Is the snapshot to blame? Others use it too, so it is not removed for what the host, or its load, has done. */
const condemns = ({ reason }: WarmError): boolean => {
  switch (reason._tag) {
    case "SnapshotUnusable":
      return true
    case "LaunchFailed":
      // The monitor has ended by itself: it was not killed.
      return reason.status?._tag === "Exited"
    case "NotRenewed":
      return !reason.isTransient
    default:
      return false
  }
}

/** Says which slots are free in a machine, as numbers with blanks between. Where it is absent, all are. */
const freeSlotsLabel = "free-slots"

const freeSlots = ({ labels, spec }: Snapshot.Manifest): ReadonlyArray<number> => {
  const told = labels[freeSlotsLabel]?.split(" ")
  return GuestSlots.inChannels(spec.channels).filter((slot) => told?.includes(String(slot)) ?? true)
}

/** Until it is known that a machine has ended whose channels are closed. */
const endToldWithin = "2 seconds"

/** For what has come and is still to be read, once the machine has ended. */
const lastReading = "1 second"

/**
 * Does something with a machine's guest, and tells how the machine has ended when that is why it cannot be done: with
 * `MachineEnded`, where the guest's channels only tell that they are closed (`GuestError`, `Closed`), if they tell anything. So what is
 * the fault of a job can be told from what is not, and only the latter be tried again.
 *
 * What has come of its output is read to its end, for a second at most.
 *
 * ```ts import.meta.vitest
 * import { MachineEnd } from "effect-microvm-runtime/microvm"
 * import { FakeWarmMachine } from "effect-microvm-runtime/testing"
 * import { WarmMachine } from "effect-microvm-runtime/warm"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const warm = yield* WarmMachine.launch({ id: "job-1" })
 *   yield* Effect.forkScoped(warm.machine.shutdown())
 *   return yield* WarmMachine.whileAlive(warm, Effect.never)
 * }).pipe(
 *   Effect.scoped,
 *   Effect.catchReason("MicroVmError", "MachineEnded", ({ end }) => Effect.succeed(MachineEnd.format(end)))
 * )
 * await Effect.runPromise(Effect.provide(program, FakeWarmMachine.layer)) // => "the guest powered off"
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const whileAlive = <A, E, R>(
  { machine }: Pick<WarmMachine, "machine">,
  use: Effect.Effect<A, E, R>
): Effect.Effect<A, E | MicroVmError.MicroVmError, R> => {
  const { ended, id } = machine
  const fail = (end: MachineEnd, cause?: unknown) =>
    MicroVmError.fail(new MicroVmError.MachineEnded({ id, end, cause }))
  const explain = (error: E): Effect.Effect<never, E | MicroVmError.MicroVmError> =>
    error instanceof GuestError && error.reason._tag === "Closed"
      ? Effect.flatMap(
        Effect.timeoutOption(ended, endToldWithin),
        (end): Effect.Effect<never, E | MicroVmError.MicroVmError> =>
          Option.isSome(end) ? fail(end.value, error) : Effect.fail(error)
      )
      : Effect.fail(error)
  return Effect.raceFirst(
    Effect.catch(use, explain),
    Effect.flatMap(ended, (end) => Effect.delay(fail(end), lastReading))
  )
}

/**
 * Saves a machine under a name in the store at hand, and lets it go on. What runs in it runs on in each machine that is
 * restored from the snapshot, too, and what it writes there goes nowhere: its slot is taken for good.
 *
 * Fails with `SnapshotAlreadyExists` when there is one of this name, with `InvalidSpec` when nothing may have it, and with
 * `Unsupported` where a machine that is saved loses its channels (Firecracker), before anything is done.
 *
 * @category combinators
 * @since 0.1.0
 */
export const save: (
  self: Omit<WarmMachine, "start">,
  name: string
) => Effect.Effect<Snapshot.Snapshot, MicroVmError.MicroVmError, SnapshotStore> = Effect.fn("WarmMachine.save")(
  function*({ labels, machine, slots }: Omit<WarmMachine, "start">, name: string) {
    yield* Effect.annotateCurrentSpan("machine", machine.id)
    const store = yield* SnapshotStore
    yield* checkName(name)
    if (!machine.capabilities.saveKeepsChannels) {
      return yield* MicroVmError.fail(
        new MicroVmError.Unsupported({
          operation: "saving a machine that goes on",
          backend: machine.backend,
          remedy:
            "its connections to the guest would end, and with them the commands that run: take QEMU for a machine " +
            "that is to go on (microvm run --backend qemu), or save one by Machine.save and end it"
        })
      )
    }
    const write = Effect.fnUntraced(function*(directory: string) {
      const before = yield* slots.free
      if (before.length === 0) {
        const cause = new Error(
          "each of its slots has a command, which goes on in the snapshot: nothing could be run there"
        )
        return yield* MicroVmError.fail(
          new MicroVmError.OperationFailed({ id: machine.id, operation: "snapshot", cause })
        )
      }
      const saved = yield* machine.save(directory)
      // A command may have begun or ended before the guest stood still.
      const after = yield* slots.free
      const free = before.filter((slot) => after.includes(slot))
      return { ...saved, labels: { [freeSlotsLabel]: free.join(" ") } }
    })
    return yield* store.add({ kind: "saved", name, spec: Snapshot.specOf(machine.spec), labels }, write)
  }
)

interface BroughtUp {
  readonly machine: Machine.Machine
  readonly go: Effect.Effect<void, MicroVmError.MicroVmError>
  readonly label: readonly [name: string, text: string]
  readonly within: Duration.Input
  readonly slots: ReadonlyArray<number>
  readonly resident: {
    /** Nothing else is in the guest that is not ours. */
    readonly alone: boolean
    /** Starts the first command, unless another process may have to go on with that. */
    readonly command: boolean
  } | undefined
  readonly labels: Readonly<Record<string, string>>
  readonly from: { readonly snapshot: string } | { readonly why: string }
}

/**
 * As many slots as `microvm run` gives its machines, so that programs and the command line share their golden machines.
 *
 * @category constants
 * @since 0.1.0
 */
export const defaultSlots = 4

/**
 * The channels of a machine in which `slots` commands can run at a time, for a golden machine of that kind.
 *
 * ```ts import.meta.vitest
 * import { WarmMachine } from "effect-microvm-runtime/warm"
 * WarmMachine.channels(1).length // => 4
 * ```
 *
 * @category constants
 * @since 0.1.0
 */
export const channels = (slots: number = defaultSlots): ReadonlyArray<string> => [
  GuestAgent.channelName,
  ...GuestSlots.channelNames(slots)
]

/** A guest that cannot be trusted has nothing to put in order. */
const end = Effect.fnUntraced(function*(machine: Machine.Machine, cause: Cause.Cause<WarmError>) {
  const error = Option.getOrUndefined(Cause.findErrorOption(cause))
  // A machine that ends takes its channels along, and is to be known as one that ended by itself.
  if (error?.reason._tag === "Closed") yield* Effect.timeoutOption(machine.ended, endToldWithin)
  yield* Effect.ignore(machine.shutdown({ request: { atLeast: "SIGKILL" } }))
})

/** Brings a machine up in a scope of its own, which is closed when it does not get as far as to answer. */
const attempt = <R>(options: Options, bringUp: Effect.Effect<BroughtUp, WarmError, R>) =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const scope = yield* Scope.fork(yield* Effect.scope)
      const begun = yield* Clock.monotonicTimeNanos
      let machine: Machine.Machine | undefined
      return yield* Effect.gen(function*() {
        const up = yield* bringUp
        machine = up.machine
        yield* options.onMachine?.(machine) ?? Effect.void
        const { channel } = machine
        const slots = yield* GuestSlots.fromChannels(up.slots, channel)
        const socket = yield* channel(GuestAgent.channelName)
        const phase: Phase = options.phase ?? (() => (effect) => effect)
        const port = up.resident !== undefined ? yield* channel(GuestResident.channelName) : undefined
        const answers = Effect.gen(function*() {
          yield* up.go
          // Where a resident answers, the agent is not woken before somebody needs it.
          const agent = yield* GuestAgent.make(socket, { within: up.within, later: port !== undefined })
          if ("why" in up.from) return { agent, how: { _tag: "Booted", ...up.from } as const }
          const identity = yield* GuestRenewal.makeIdentity(options.id, up.machine.spec.networks.map(GuestNetwork.card))
          const resident = port === undefined ? undefined : yield* GuestResident.make(port, { within: up.within })
          const proof = yield* GuestRenewal.renew(agent, identity, { resident })
          const relieved = resident === undefined || up.resident === undefined
            ? agent
            : yield* GuestResident.relieve(agent, resident, {
              command: up.resident.command,
              alone: up.resident.alone && proof.restarted.length === 0
            })
          return { agent: relieved, how: { _tag: "Restored", ...up.from, proof } as const }
        })
        const { agent, how } = yield* phase(...up.label)(answers)
        const took = Duration.nanos((yield* Clock.monotonicTimeNanos) - begun)
        return { machine, agent, slots, start: { ...how, took }, labels: up.labels } satisfies WarmMachine
      }).pipe(
        restore,
        Scope.provide(scope),
        Effect.onError((cause) =>
          Effect.suspend(() => machine === undefined ? Effect.void : end(machine, cause)).pipe(
            Effect.andThen(Scope.close(scope, Exit.failCause(cause)))
          )
        )
      )
    })
  )
