/**
 * The supervisor of this host's machines, with all kinds of resources that this package knows.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Path from "effect/Path"
import * as Schema from "effect/Schema"
import * as Addresses from "../host/Addresses.ts"
import * as DiskClones from "../host/DiskClones.ts"
import type { DiskFiles } from "../host/DiskFiles.ts"
import * as Firewall from "../host/Firewall.ts"
import type { HostCommands } from "../host/HostCommands.ts"
import type { KernelSettings } from "../host/KernelSettings.ts"
import * as Limits from "../host/Limits.ts"
import * as Links from "../host/Links.ts"
import * as MachineNetworks from "../host/MachineNetworks.ts"
import * as NodeDiskFiles from "../host/NodeDiskFiles.ts"
import * as NodeHostCommands from "../host/NodeHostCommands.ts"
import * as NodeMachineNetworks from "../host/NodeMachineNetworks.ts"
import * as Users from "../host/Users.ts"
import type { Entry, Journal } from "../journal/Journal.ts"
import type { JournalError } from "../journal/JournalError.ts"
import * as NodeJournal from "../journal/NodeJournal.ts"
import * as Reclaimer from "../journal/Reclaimer.ts"
import type * as Reconcile from "../journal/Reconcile.ts"
import type { MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import * as NodeProcessSpawner from "../process/NodeProcessSpawner.ts"
import type { ProcessHolder } from "../process/ProcessHolder.ts"
import { ProcessHost } from "../process/ProcessHost.ts"
import * as NetworkNamespaces from "./internal/NodeNetworkNamespaces.ts"
import * as Supervisor from "./Supervisor.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface Options extends Pick<Supervisor.Options, "onReleased"> {
  /** The state directory: see `Journal.Options`. */
  readonly directory: string
  /** Is given what the rules of an adopted machine can be changed by, for as long as it lives. Default: nobody changes them. */
  readonly onNetwork?: ((id: string, control: MachineNetworks.NetworkControl) => Effect.Effect<void>) | undefined
  /** Kinds of your own, whose resources are acquired after those of this package. Default none. */
  readonly kinds?: ReadonlyArray<Reclaimer.Reclaimer> | undefined
}

/** What reclaims and serves anew what machines have of the host. */
type Host = DiskFiles | FileSystem.FileSystem | HostCommands | KernelSettings | Path.Path | ProcessHost

/** All kinds of this package, in the order in which their resources are acquired. */
class StandardKinds extends Context.Service<StandardKinds, Reconcile.Kinds>()(
  "effect-microvm-runtime/supervisor/NodeSupervisor/StandardKinds"
) {}

const standard = Layer.effect(
  StandardKinds,
  Effect.gen(function*() {
    const context = yield* Effect.context<Host>()
    const provided = <R extends Host>(reclaimer: Reclaimer.Reclaimer<R>) => Supervisor.provided(reclaimer, context)
    return [
      Reclaimer.gathering(provided(Reclaimer.make(Users.kind))),
      provided(Reclaimer.make(DiskClones.kind)),
      Reclaimer.gathering(provided(Reclaimer.make(Addresses.kind))),
      // Each waits for the kernel. By then the process is gone, and with it all packets; without rules a link is closed.
      [
        Reclaimer.gathering(provided(Reclaimer.make(Firewall.rules))),
        Reclaimer.gathering(provided(Reclaimer.make(Links.kind)))
      ],
      provided(Reclaimer.make(Limits.kind))
    ]
  })
)

const decodeAddresses = Schema.decodeUnknownOption(Addresses.Data)

/** Serves the network of an adopted machine again, from the pool that its claim names. */
const resume = (context: Context.Context<Host>, onNetwork: Options["onNetwork"]) =>
  Effect.fnUntraced(function*(entry: Entry) {
    const { claims } = yield* entry.record
    const [pool] = claims.flatMap(({ data, kind }) =>
      kind === Addresses.kind.kind ? Option.toArray(decodeAddresses(data)) : []
    )
    if (pool === undefined) return
    const networks = yield* Layer.build(NodeMachineNetworks.layerNoDeps(pool)).pipe(Effect.provideContext(context))
    const control = yield* Context.get(networks, MachineNetworks.MachineNetworks).resume(entry)
    if (Option.isSome(control)) yield* onNetwork?.(entry.id, control.value) ?? Effect.void
  })

/** Links and rules of another network namespace would be taken for gone. They are when that is. */
const elsewhere = (bootId: string) =>
  Effect.sync((): Supervisor.Obstacle => {
    const here = NodeMachineNetworks.currentNamespace()
    let seen: NetworkNamespaces.Seen | undefined
    return (record, mode) => {
      const namespace = record.labels[MachineNetworks.namespaceLabel]
      if (namespace === undefined || namespace === here || record.bootId !== bootId) return undefined
      const { isWhole, names } = seen ??= NetworkNamespaces.look()
      const why = `its network is in the network namespace ${namespace}, and this is ${here}: recover it from there`
      if (names.has(namespace)) return why
      // Whoever cannot see whether it is gone has to be told.
      return isWhole || mode === "kill" ? undefined : `${why}, or, if that is gone, end it (kill)`
    }
  })

/**
 * `layer` over other parts: a journal, and programs and processes of a host that are watched, or fail, in a test.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerNoDeps = (
  { kinds = [], onNetwork, onReleased }: Omit<Options, "directory">
): Layer.Layer<Supervisor.Supervisor, never, Host | Journal | MicroVmProvider | ProcessHolder> =>
  Layer.unwrap(Effect.gen(function*() {
    const context = yield* Effect.context<Host>()
    return Supervisor.layerWith({
      kinds: [...yield* StandardKinds, ...kinds],
      resume: resume(context, onNetwork),
      obstacle: elsewhere((yield* ProcessHost).bootId),
      onReleased
    })
  })).pipe(Layer.provide(standard))

const host = Layer.mergeAll(NodeDiskFiles.layer, NodeHostCommands.layer, NodeProcessSpawner.layer)

/**
 * A supervisor over a state directory, which is its own until the layer closes: fails with `LeaseHeld` when another one has it.
 * What others have left there is seen to by `Supervisor.recover`.
 *
 * Those of several directories that are built with one map of layers share the programs of the host that are kept open, the looks at
 * its processes, and the commands that remove the links and rules of machines that are released at the same time.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  { directory, ...options }: Options
): Layer.Layer<Supervisor.Supervisor, JournalError, FileSystem.FileSystem | MicroVmProvider | Path.Path> =>
  Layer.provide(layerNoDeps(options), [NodeJournal.layer({ directory }), host])
