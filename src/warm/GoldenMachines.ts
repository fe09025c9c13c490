/**
 * Machines that were booted once, for others to be restored from: one for each image, size and backend.
 *
 * A golden machine never runs a command of a user's. It is saved when its agent has answered, and ended. It is made when
 * it is first needed, by one of all who need it, and made again when anything that it was made from has changed.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import type * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import * as GuestAgent from "../guest/GuestAgent.ts"
import type { GuestError } from "../guest/GuestError.ts"
import * as GuestResident from "../guest/GuestResident.ts"
import * as GuestScripts from "../image/GuestScripts.ts"
import { Hasher } from "../image/Hasher.ts"
import type { ImageError } from "../image/ImageError.ts"
import { cacheDirectory, type Image, ImageStore } from "../image/ImageStore.ts"
import * as ShutdownPolicy from "../lifecycle/ShutdownPolicy.ts"
import * as Machine from "../microvm/Machine.ts"
import * as MachineSpec from "../microvm/MachineSpec.ts"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import { type MachineRequest, MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import * as Snapshot from "../microvm/Snapshot.ts"
import { SnapshotStore } from "../microvm/SnapshotStore.ts"
import * as OwnedFiles from "../process/OwnedFiles.ts"
import * as OwnerLock from "../process/OwnerLock.ts"
import { ProcessHost } from "../process/ProcessHost.ts"
import * as DiskSnapshotStore from "./DiskSnapshotStore.ts"
import type { Phase, Progress } from "./WarmProgress.ts"

/**
 * What the machines that are restored from a golden one have in common.
 *
 * @category models
 * @since 0.1.0
 */
export interface Request {
  /** The name of an image. */
  readonly image: string
  readonly vcpus: number
  readonly memoryMib: number
  readonly channels: ReadonlyArray<string>
  /** How many network cards there are. Default 0. */
  readonly cards?: number | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface EnsureOptions {
  /** How long the guest may take to boot. Default 2 minutes. */
  readonly bootWithin?: Duration.Input | undefined
  readonly onProgress?: ((progress: Progress) => Effect.Effect<void>) | undefined
  readonly phase?: Phase | undefined
}

/**
 * - `ensure`: the golden machine for this. When there is none, or when the one there is cannot be used, it is made: some
 *   seconds, during which all others who want it wait.
 * - `collect`: removes golden machines whose image is no longer the current one of its name, those of another monitor or
 *   processor that were not used for a day, and all that were not used for `unusedFor`. Gives the number of those removed.
 *   Also done after each making.
 * - `tidy`: the same, unless it was done within a day, by whatever process. It never fails. `WarmMachine.launch` does it beside
 *   each machine that it has restored.
 *
 * @category services
 * @since 0.1.0
 */
export class GoldenMachines extends Context.Service<GoldenMachines, {
  readonly ensure: (
    request: Request,
    options?: EnsureOptions
  ) => Effect.Effect<Snapshot.Snapshot, GuestError | ImageError | MicroVmError.MicroVmError>
  readonly collect: Effect.Effect<number, ImageError | MicroVmError.MicroVmError>
  readonly tidy: Effect.Effect<void>
}>()("effect-microvm-runtime/warm/GoldenMachines") {}

/**
 * Lets one process at a time make a golden machine: holds the turn of that name until the scope closes.
 *
 * @category models
 * @since 0.1.0
 */
export type Turn = (
  name: string,
  onWait: (pid: number) => Effect.Effect<void>
) => Effect.Effect<void, MicroVmError.MicroVmError, Scope.Scope>

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** How long a golden machine that nobody uses is kept. Default 14 days. */
  readonly unusedFor?: Duration.Input | undefined
  /** Default: only this process makes any. */
  readonly turn?: Turn | undefined
  /** Reads and writes when golden machines were collected last, in milliseconds since 1970. Default: only this process knows. */
  readonly collected?: {
    readonly read: Effect.Effect<number>
    readonly write: (now: number) => Effect.Effect<void, unknown>
  } | undefined
}

/** Changes when a golden machine must be another one though all that it is made from is the same. */
const edition = 1

const day = Duration.toMillis("1 day")

/** How long one is kept that was made by another monitor, or for another processor: what made it may still be in use. */
const foreignFor = day

/** Nobody knows of a time at which they were. */
const inMemory = (): NonNullable<Options["collected"]> => {
  let last = -Infinity
  return { read: Effect.sync(() => last), write: (now) => Effect.sync(() => void (last = now)) }
}

/**
 * A guest that has just booted has not written to more of its memory than this, in MiB, however much it has; so a golden machine takes no
 * more room on the disk.
 *
 * @category constants
 * @since 0.1.0
 */
export const usualMib = 256

/** Says how many network cards there are. Where it is absent, there are none. */
const cardsLabel = "cards"

/** Says that there is a resident that waits, and whether it waits among programs of ours only. */
const residentLabel = "resident"

/** Without one, the agent is asked for all. */
const waitsThere = (socket: Socket.Socket) =>
  Effect.map(Effect.timeoutOption(GuestResident.waits(socket), "10 seconds"), Option.isSome)

/**
 * Has a snapshot a resident that waits, and that nobody has asked anything? In a snapshot of one's own it may have been asked.
 *
 * @internal
 */
export const hasResident = ({ kind, labels }: Snapshot.Manifest): boolean =>
  kind === "golden" && labels[residentLabel] !== undefined

/**
 * Does the resident of a snapshot wait among programs of ours only?
 *
 * @internal
 */
export const hasOursOnly = ({ labels }: Snapshot.Manifest): boolean => labels[residentLabel] === "alone"

/** As an image of another recipe may start more. */
const startsOursOnly = (agent: GuestAgent.GuestAgent) =>
  agent.readFile("/etc/inittab").pipe(
    Stream.decodeText,
    Stream.mkString,
    Effect.map((text) => text === GuestScripts.inittab),
    Effect.catchReason("GuestError", "AgentError", () => Effect.succeed(false))
  )

/** They lead nowhere: which MAC a machine has, and where its packets go, is told when it is restored. */
const unlinkedCards = (count: number): ReadonlyArray<MachineSpec.Network> =>
  Array.from({ length: count }, (_, index) => ({ mac: `02:00:00:00:00:${index.toString(16).padStart(2, "0")}` }))

/** The prefix of their names in the store. */
const prefix = "golden-"

/**
 * Checks a name for a snapshot of one's own: golden machines have names of their kind to themselves.
 *
 * ```ts import.meta.vitest
 * import { GoldenMachines } from "effect-microvm-runtime/warm"
 * import * as Effect from "effect/Effect"
 * const reason = GoldenMachines.checkName("golden-1").pipe(Effect.flip, Effect.map((error) => error.reason._tag))
 * Effect.runSync(reason) // => "InvalidSpec"
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const checkName = (name: string): Effect.Effect<void, MicroVmError.MicroVmError> => {
  if (!name.startsWith(prefix)) return Snapshot.checkName(name)
  const remedy = "give another name: golden machines have such names"
  return MicroVmError.fail(new MicroVmError.InvalidSpec({ faults: [{ field: "snapshot", value: name, remedy }] }))
}

/** The one there is, or why there is none that can be used; absent when there simply is none. */
interface Found {
  readonly snapshot: Snapshot.Snapshot | undefined
  readonly why: string | undefined
}
const nothing: Found = { snapshot: undefined, why: undefined }

/** Nothing in it is worth a word of farewell. */
const killed = ShutdownPolicy.makeUnsafe<MachineRequest>([
  { name: "SIGKILL", request: "Kill", grace: "2 seconds", force: true }
])

const make = Effect.fnUntraced(function*(options: Options = {}): Effect.fn.Return<
  GoldenMachines["Service"],
  never,
  Hasher | ImageStore | MicroVmProvider | SnapshotStore
> {
  const provider = yield* MicroVmProvider
  const images = yield* ImageStore
  const hasher = yield* Hasher
  const store = yield* SnapshotStore
  /** Where a channel is lost when a machine is saved, what waits at its far end has to begin anew. */
  const residents = provider.capabilities.saveKeepsChannels
  const unusedFor = Duration.toMillis(Duration.fromInputUnsafe(options.unusedFor ?? "14 days"))
  const turns = new Map<string, Semaphore.Semaphore>()

  const plan = Effect.fnUntraced(function*(request: Request, image: Image) {
    const { hostname: _, id: __, ...spec } = yield* MachineSpec.decode({
      id: "golden",
      vcpus: request.vcpus,
      memoryMib: request.memoryMib,
      channels: residents ? [...request.channels, GuestResident.channelName] : request.channels,
      networks: unlinkedCards(request.cards ?? 0),
      kernelArgs: residents ? [GuestResident.kernelArg] : [],
      kernel: image.kernel,
      initramfs: image.initramfs
    })
    const planned = provider.plan({ ...spec, id: "golden" }, { template: true })
    if (spec.networks.length > 0 && Result.isFailure(planned)) {
      // What is wrong with the rest of it, a boot is told of, too.
      return yield* MicroVmError.fail(
        new MicroVmError.Unsupported({
          operation: "a golden machine with network cards",
          backend: provider.backend,
          remedy: "boot the machine"
        })
      )
    }
    const platform = yield* Effect.fromResult(provider.platform(spec))
    const parts = [
      edition,
      image.digest,
      spec.vcpus,
      spec.memoryMib,
      spec.channels,
      ...(spec.networks.length > 0 ? [spec.networks.length] : []),
      Object.entries(platform).toSorted(([a], [b]) => a < b ? -1 : 1)
    ]
    const digest = yield* hasher.bytes(new TextEncoder().encode(JSON.stringify(parts)))
    return { spec, name: `${prefix}${digest.slice(0, 32)}` }
  })

  const collect = Effect.gen(function*() {
    const now = yield* Clock.currentTimeMillis
    const stored = yield* store.list
    let removed = 0
    const collectOne = Effect.fnUntraced(function*({ id, lastUsed, manifest }: typeof stored[number]) {
      if (manifest?.kind !== "golden") return
      const { digest, image = "" } = manifest.labels
      // An image that others have, and that has no recipe here, is none of ours to judge.
      const current = yield* Effect.catchReason(
        images.known(image),
        "ImageError",
        "UnknownImage",
        () => Effect.succeedNone
      )
      const superseded = Option.isSome(current) && current.value.digest !== digest
      const networks = unlinkedCards(Number(manifest.labels[cardsLabel] ?? 0))
      const here = provider.platform({ ...manifest.spec, networks })
      // Another program of the same release would load it, and is never asked to: golden machines go by the program, too.
      const foreign = Result.isFailure(here)
        || Snapshot.differences(manifest.platform, here.success).length > 0
        || manifest.platform["program"] !== here.success["program"]
      const unused = now - lastUsed
      if (superseded || unused > unusedFor || (foreign && unused > foreignFor)) {
        // What others are the difference to stays as long as they do.
        if (yield* Effect.catchReason(store.remove(id), "MicroVmError", "SnapshotInUse", () => Effect.succeed(false))) {
          removed++
        }
      }
    })
    // Whoever is about to end gets at least to what was not used for longest. One that cannot go does not keep the others.
    for (const one of stored.toReversed()) {
      yield* Effect.catch(
        collectOne(one),
        (error) => Effect.logWarning(`a golden machine is not collected: ${error.message}`)
      )
    }
    return removed
  }).pipe(Effect.withSpan("GoldenMachines.collect"))

  const collected = options.collected ?? inMemory()
  const tidy = Effect.gen(function*() {
    const now = yield* Clock.currentTimeMillis
    // A clock that was set back is no reason to wait for longer.
    if (Math.abs(now - (yield* collected.read)) < day) return
    // First: of several, one does it; and none where nothing can be written.
    yield* collected.write(now)
    yield* collect
  }).pipe(Effect.ignore)

  const build = (
    request: Request,
    bootWithin: Duration.Input,
    onProgress: (progress: Progress) => Effect.Effect<void>
  ) =>
    Effect.gen(function*() {
      // Only here are its files looked at: a machine that is restored has them in its memory.
      const image = yield* images.ensure(request.image, { onProgress })
      const { name, spec } = yield* plan(request, image)
      const labels = {
        image: image.name,
        digest: image.digest,
        kernelRelease: image.kernelRelease,
        ...(spec.networks.length > 0 && { [cardsLabel]: String(spec.networks.length) })
      }
      const room = Math.min(spec.memoryMib, usualMib) << 20
      const kept = Snapshot.specOf({ ...spec, id: name })
      return yield* store.add({ kind: "golden", name, replace: true, spec: kept, labels, room }, (directory) =>
        Effect.scoped(Effect.gen(function*() {
          const machine = yield* Machine.launch({ ...spec, id: name }, { template: true, policy: killed })
          const socket = yield* machine.channel(GuestAgent.channelName)
          yield* machine.start
          const agent = yield* GuestAgent.make(socket, { within: bootWithin })
          const waits = residents && (yield* Effect.flatMap(machine.channel(GuestResident.channelName), waitsThere))
          const alone = waits && (yield* startsOursOnly(agent))
          const saved = yield* machine.save(directory)
          return waits ? { ...saved, labels: { [residentLabel]: alone ? "alone" : "waits" } } : saved
        })))
    }).pipe(
      Effect.provideService(MicroVmProvider, provider),
      Effect.tap(Effect.ignore(collect))
    )

  const ensure: GoldenMachines["Service"]["ensure"] = Effect.fn("GoldenMachines.ensure")(
    function*(request, { bootWithin = "2 minutes", onProgress = () => Effect.void, phase } = {}) {
      const known = yield* images.known(request.image)
      const image = Option.isSome(known) ? known.value : yield* images.ensure(request.image, { onProgress })
      const { name } = yield* plan(request, image)
      const look: Effect.Effect<Found, MicroVmError.MicroVmError> = Effect.matchEffect(store.open(name), {
        onSuccess: (snapshot) =>
          Effect.succeed(
            snapshot.manifest.kind === "golden"
              ? { snapshot, why: undefined }
              : { ...nothing, why: "it is of a machine that somebody has used" }
          ),
        onFailure: (error) => {
          if (error.reason._tag === "SnapshotNotFound") return Effect.succeed(nothing)
          return error.reason._tag === "SnapshotUnusable"
            ? Effect.succeed({ ...nothing, why: error.message })
            : Effect.fail(error)
        }
      })
      const found = yield* look
      if (found.snapshot !== undefined) return found.snapshot

      const turn = turns.get(name) ?? Semaphore.makeUnsafe(1)
      turns.set(name, turn)
      const making = Effect.scoped(Effect.gen(function*() {
        if (options.turn !== undefined) yield* options.turn(name, (pid) => onProgress({ _tag: "WaitingForMaker", pid }))
        // Another may have made it while we waited.
        const again = yield* look
        if (again.snapshot !== undefined) return again.snapshot
        if (again.why === undefined) yield* onProgress({ _tag: "Making" })
        else {
          yield* onProgress({ _tag: "Remaking", why: again.why })
          yield* Effect.ignore(store.remove(name))
        }
        return yield* build(request, bootWithin, onProgress)
      })).pipe((effect) => turn.withPermit(effect))
      return yield* (phase?.("golden", "making a golden machine")(making) ?? making)
    }
  )

  return GoldenMachines.of({ ensure, collect, tidy })
})

/**
 * Golden machines in whatever store there is.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (
  options: Options
): Layer.Layer<GoldenMachines, never, Hasher | ImageStore | MicroVmProvider | SnapshotStore> =>
  Layer.effect(GoldenMachines, make(options))

/** Processes take turns by a lock in the cache's directory. */
const turnIn = Effect.fnUntraced(function*(directory: string) {
  const path = yield* Path.Path
  // Not the scope that happens to be there: a turn ends with its maker's.
  const services = Context.pick(FileSystem.FileSystem, Path.Path, ProcessHost)(
    yield* Effect.context<FileSystem.FileSystem | Path.Path | ProcessHost>()
  )
  const failed = (cause: OwnerLock.LockHeld | PlatformError.PlatformError) =>
    MicroVmError.make(
      new MicroVmError.StoreFailed({ path: directory, why: DiskSnapshotStore.whyOf(cause), cause })
    )
  const turn: Turn = (name, onWait) =>
    Effect.gen(function*() {
      const temporary = yield* DiskSnapshotStore.clearUp(directory)
      yield* OwnedFiles.ensureDirectory(temporary)
      const own = yield* OwnedFiles.temporaryDirectory(temporary)
      yield* OwnerLock.acquire({ file: path.join(directory, `${name}.lock`), own, patience: "1 minute", onWait })
    }).pipe(Effect.mapError(failed), Effect.provideContext(services))
  return turn
})

/** Of a file that is not there, or says something else, nothing is known. */
const collectedIn = Effect.fnUntraced(function*(directory: string) {
  const fs = yield* FileSystem.FileSystem
  const file = (yield* Path.Path).join(directory, "golden-collected")
  return {
    read: Effect.match(fs.readFileString(file), { onFailure: () => NaN, onSuccess: Number }),
    write: (now: number) => fs.writeFileString(file, String(now))
  }
})

/**
 * Golden machines in the cache's directory: of all processes that use it, one makes one.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<
  GoldenMachines,
  Config.ConfigError,
  FileSystem.FileSystem | Hasher | ImageStore | MicroVmProvider | Path.Path | ProcessHost | SnapshotStore
> = Layer.effect(
  GoldenMachines,
  Effect.gen(function*() {
    const directory = yield* cacheDirectory
    return yield* make({ turn: yield* turnIn(directory), collected: yield* collectedIn(directory) })
  })
)
