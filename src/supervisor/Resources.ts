/**
 * What machines mostly need of their host, as resources of a `Supervisor`.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as DiskClones from "../host/DiskClones.ts"
import * as HostError from "../host/HostError.ts"
import * as Limits from "../host/Limits.ts"
import { Links } from "../host/Links.ts"
import * as MachineNetworks from "../host/MachineNetworks.ts"
import { Users } from "../host/Users.ts"
import type { JournalError } from "../journal/JournalError.ts"
import * as ResourceKind from "../journal/ResourceKind.ts"
import type * as MachineSpec from "../microvm/MachineSpec.ts"
import { ProcessHost } from "../process/ProcessHost.ts"
import type { Resource } from "./Supervisor.ts"

/**
 * Several resources, in the order in which they are acquired, each with its own needs and errors.
 *
 * ```ts import.meta.vitest
 * import { MachineNetworks } from "effect-microvm-runtime/host"
 * import { Resources } from "effect-microvm-runtime/supervisor"
 * const resources = Resources.all(
 *   Resources.limits({ memoryMib: 448 }),
 *   Resources.disk({ name: "root", stack: "debian-12" }),
 *   Resources.network({ allow: [] })
 * )
 * resources.length // => 3
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const all = <E1, R1, E2 = never, R2 = never, E3 = never, R3 = never, E4 = never, R4 = never>(
  first: Resource<E1, R1>,
  second?: Resource<E2, R2>,
  third?: Resource<E3, R3>,
  fourth?: Resource<E4, R4>,
  ...others: ReadonlyArray<Resource<E4, R4>>
): ReadonlyArray<Resource<E1 | E2 | E3 | E4, R1 | R2 | R3 | R4>> =>
  [first, second, third, fourth, ...others].filter((one) => one !== undefined)

/**
 * A user for the monitor that no other machine has: one that was broken out of can then do nothing to the others. Only for
 * backends with the capability `user`; with another one, the launch fails with `Unsupported`. A `network` that comes after it
 * is this user's.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { Users } from "effect-microvm-runtime/host"
 * import { Machine, MachineSpec, MemoryProvider } from "effect-microvm-runtime/microvm"
 * import { NodeProcessHost } from "effect-microvm-runtime/process"
 * import { NodeSupervisor, Resources, Supervisor } from "effect-microvm-runtime/supervisor"
 * import * as Effect from "effect/Effect"
 * import * as FileSystem from "effect/FileSystem"
 * import * as Layer from "effect/Layer"
 * const program = Effect.gen(function*() {
 *   const directory = yield* FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped())
 *   const layer = Layer.merge(
 *     Layer.provideMerge(NodeSupervisor.layer({ directory: `${directory}/journal` }), MemoryProvider.layer),
 *     Users.layer({ directory: `${directory}/users`, first: 300_000, count: 1 })
 *   )
 *   return yield* Supervisor.Supervisor.use(({ launch }) =>
 *     launch({
 *       id: "web-1",
 *       resources: [Resources.user()],
 *       bring: ({ before, id }) =>
 *         Effect.gen(function*() {
 *           const spec = yield* MachineSpec.decode({ id, kernel: "/boot/vmlinux" })
 *           const how = yield* before(spec)
 *           return { machine: yield* Machine.launch(spec, how), user: how.user }
 *         })
 *     })
 *   ).pipe(Effect.map(({ user }) => user), Effect.scoped, Effect.provide(layer))
 * })
 * const host = Layer.merge(NodeProcessHost.layer, NodeServices.layer)
 * await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(host))) // => 300000
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const user = (): Resource<HostError.HostError | JournalError, Users> => ({
  acquire: Effect.fnUntraced(function*(entry) {
    const users = yield* Users
    yield* entry.claim(users.claim)
    return { user: yield* users.take(entry) }
  })
})

/**
 * A network card, by which the machine reaches what is allowed and nothing else.
 *
 * @category constructors
 * @since 0.1.0
 */
export const network = (
  options: MachineNetworks.Options & {
    /** Is given what the rules can be changed by while the machine lives. Default: nobody changes them. */
    readonly onControl?: ((control: MachineNetworks.NetworkControl) => Effect.Effect<void>) | undefined
  }
): Resource<HostError.HostError | JournalError, MachineNetworks.MachineNetworks> => ({
  acquire: Effect.fnUntraced(function*(entry, given) {
    const owner = options.user ?? given.find((one) => one.user !== undefined)?.user
    const { control, netns, network: card } = yield* MachineNetworks.MachineNetworks.use(({ attach }) =>
      attach(entry, { ...options, user: owner })
    )
    yield* options.onControl?.(control) ?? Effect.void
    return { networks: [card], netns }
  })
})

/** Which limits were said to lack, by host. */
const lacking = new WeakMap<ProcessHost["Service"], Set<string>>()

/** Is there a limit that cannot be had, and has nobody said so yet? What it was to be is another one for each machine. */
const isNews = (applied: ReadonlyArray<Limits.Applied>) =>
  Effect.map(ProcessHost, (host) => {
    const names = applied.flatMap((one) => "unavailable" in one ? [one.limit] : []).join(" ")
    const told = lacking.get(host) ?? new Set()
    if (names === "" || told.has(names)) return false
    lacking.set(host, told.add(names))
    return true
  })

/**
 * Limits on what the machine may use of the host, by control groups of its own. They bind for as long as it lives, whoever
 * looks after it; that it has ended of one is told by its end (`MachineEnd.Shortage`).
 *
 * Which of them are kept here, and which are not, is written into the record as the label `limits`; for the latter there is a
 * warning in the log, too, with the first machine that lacks these (a layer of the `ProcessHost` is a host). Fails as
 * `Limits.plan` does, before anything is made: with `InvalidArgument` for limits that cannot be, and with `Unavailable` for
 * `required` ones that cannot be had here.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { MemoryProvider } from "effect-microvm-runtime/microvm"
 * import { NodeProcessHost } from "effect-microvm-runtime/process"
 * import { NodeSupervisor, Resources, Supervisor } from "effect-microvm-runtime/supervisor"
 * import * as Effect from "effect/Effect"
 * import * as FileSystem from "effect/FileSystem"
 * import * as Layer from "effect/Layer"
 * const program = Effect.gen(function*() {
 *   const directory = yield* FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped())
 *   const layer = Layer.provide(NodeSupervisor.layer({ directory }), MemoryProvider.layer)
 *   const resources = [Resources.limits({ memoryMib: 448, cpus: 0, pids: 512 })]
 *   return yield* Supervisor.Supervisor.use(({ launch }) =>
 *     launch({ id: "web-1", resources, bring: () => Effect.never })
 *   ).pipe(Effect.flip, Effect.provide(layer))
 * })
 * const host = Layer.merge(NodeProcessHost.layer, NodeServices.layer)
 * const error = await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(host)))
 * error.message // => "cpus: 0 cannot be: give a number from 0.01 to 10000"
 * ```
 *
 * **Gotchas**
 *
 * - A monitor needs memory beside that of its guest: see `Limits.forGuest`.
 * - To enter a control group of version 2 takes some 15 ms, and so does a machine's start longer.
 *
 * @category constructors
 * @since 0.1.0
 */
export const limits = (
  options: Limits.Options
): Resource<HostError.HostError | JournalError, FileSystem.FileSystem | ProcessHost> => ({
  acquire: Effect.fnUntraced(function*(entry) {
    const plan = yield* Limits.plan(entry, options)
    const planned = Limits.format(plan.applied)
    yield* entry.update({ claim: [ResourceKind.claim(Limits.kind, plan.data)], labels: { limits: planned } })
    const { applied, data } = yield* Limits.make(plan)
    const text = Limits.format(applied)
    if (text !== planned) yield* entry.label({ limits: text })
    if (yield* isNews(applied)) {
      yield* Effect.logWarning(`machine "${entry.id}" and those like it run without all of their limits: ${text}`)
    }
    return { cgroup: data }
  })
})

/**
 * @category options
 * @since 0.1.0
 */
export interface DiskOptions extends Pick<DiskClones.CloneOptions, "size" | "stack"> {
  /** What the guest can tell it by: see `MachineSpec.Drive`. */
  readonly name: string
  /** Default false. */
  readonly readOnly?: boolean | undefined
}

/**
 * A disk of the machine's own, one at most: a clone of a template, which is gone with the machine. Fails as `DiskClones.clone`
 * does. The guest has to mount it.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { DiskClones, NodeDiskFiles, NodeHostCommands, Templates } from "effect-microvm-runtime/host"
 * import { MemoryProvider } from "effect-microvm-runtime/microvm"
 * import { NodeProcessHost } from "effect-microvm-runtime/process"
 * import { NodeSupervisor, Resources, Supervisor } from "effect-microvm-runtime/supervisor"
 * import * as Effect from "effect/Effect"
 * import * as FileSystem from "effect/FileSystem"
 * import * as Layer from "effect/Layer"
 * const program = Effect.gen(function*() {
 *   const directory = yield* FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped())
 *   const layer = Layer.provide(NodeSupervisor.layer({ directory }), MemoryProvider.layer)
 *   const resources = [Resources.disk({ name: "data", stack: "debian-12", size: 2 ** 30 })]
 *   return yield* Supervisor.Supervisor.use(({ launch }) =>
 *     launch({ id: "web-1", resources, bring: () => Effect.never })
 *   ).pipe(Effect.flip, Effect.provide(layer))
 * })
 * const host = DiskClones.layerAt("/nonexistent/clones").pipe(
 *   Layer.provide(Templates.layerAt("/nonexistent/templates")),
 *   Layer.provideMerge([NodeDiskFiles.layer, NodeHostCommands.layer]),
 *   Layer.provideMerge([NodeProcessHost.layer, NodeServices.layer])
 * )
 * const error = await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(host)))
 * error.reason._tag // => "InvalidArgument"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const disk = (
  { name, readOnly = false, size, stack }: DiskOptions
): Resource<HostError.HostError | JournalError, DiskClones.DiskClones> => ({
  acquire: Effect.fnUntraced(function*(entry) {
    const clones = yield* DiskClones.DiskClones
    yield* entry.claim(ResourceKind.claim(DiskClones.kind, clones.disk(entry.id)))
    const { path } = yield* clones.clone({ owner: entry, stack, size })
    return { drives: [{ name, path, readOnly }] }
  })
})

/**
 * @category options
 * @since 0.1.0
 */
export interface TapOptions extends MachineSpec.Network {
  readonly tap: string
  /** Default: that of the TAP. */
  readonly mtu?: number
  /** The file of the network namespace that the TAP is in, when it is not ours. `Links` has to be of that one then. */
  readonly netns?: string | undefined
}

/**
 * A network card on a TAP that the caller made, and removes: nothing is claimed, and nothing is done to it. That takes no
 * privileges, where the TAP belongs to the user that the monitor runs as: `ip tuntap add dev NAME mode tap user USER`, once,
 * by root.
 *
 * Fails with `InvalidArgument` when there is no such TAP, when it is down, or when it has several queues, which monitors do not
 * open. Whether they may open it is told by the launch.
 *
 * **Gotchas**
 *
 * - Nothing keeps the machine from reaching what the TAP leads to: the addresses, the routes and the firewall are the caller's.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { HostCommands, KernelSettings, Links } from "effect-microvm-runtime/host"
 * import { MemoryProvider } from "effect-microvm-runtime/microvm"
 * import { NodeSupervisor, Resources, Supervisor } from "effect-microvm-runtime/supervisor"
 * import * as Effect from "effect/Effect"
 * import * as FileSystem from "effect/FileSystem"
 * import * as Layer from "effect/Layer"
 * const program = Effect.gen(function*() {
 *   const directory = yield* FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped())
 *   const layer = Layer.provide(NodeSupervisor.layer({ directory }), MemoryProvider.layer)
 *   const resources = [Resources.tap({ tap: "mine", mac: "02:00:00:00:00:01", address: "10.0.0.1/31" })]
 *   return yield* Supervisor.Supervisor.use(({ launch }) =>
 *     launch({ id: "web-1", resources, bring: () => Effect.never })
 *   ).pipe(Effect.flip, Effect.provide(layer))
 * })
 * // A host without any link.
 * const host = Layer.merge(HostCommands.layerScripted(() => Effect.succeed("[]")), KernelSettings.layerMemory(new Map()))
 * const error = await Effect.runPromise(program.pipe(
 *   Effect.scoped,
 *   Effect.provide(Links.layer.pipe(Layer.provide(host), Layer.merge(NodeServices.layer)))
 * ))
 * error.message // => 'tap: "mine" cannot be: make it first: ip tuntap add dev mine mode tap user USER'
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const tap = ({ netns, ...card }: TapOptions): Resource<HostError.HostError, Links> => ({
  acquire: Effect.fnUntraced(function*() {
    const { isMultiQueue, isUp, mtu } = yield* Links.use(({ check }) => check(card.tap))
    const remedies = [
      ...(isUp ? [] : [`bring it up: ip link set dev ${card.tap} up`]),
      ...(isMultiQueue ? ["make it anew, without multi_queue"] : [])
    ]
    if (remedies.length > 0) {
      return yield* HostError.fail(
        new HostError.InvalidArgument({ faults: remedies.map((remedy) => ({ field: "tap", value: card.tap, remedy })) })
      )
    }
    return { networks: [{ mtu, ...card }], netns }
  })
})
