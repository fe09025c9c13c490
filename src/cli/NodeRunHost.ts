/**
 * Runs on this host: each in a directory of its own below the state directory, with a journal and a supervisor of its own.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import * as Scope from "effect/Scope"
import * as Addresses from "../host/Addresses.ts"
import * as DnsRelay from "../host/DnsRelay.ts"
import * as Firewall from "../host/Firewall.ts"
import type { HostCommands } from "../host/HostCommands.ts"
import type { KernelSettings } from "../host/KernelSettings.ts"
import * as Links from "../host/Links.ts"
import * as MachineNetworks from "../host/MachineNetworks.ts"
import * as NodeDnsTransport from "../host/NodeDnsTransport.ts"
import * as NodeHostCommands from "../host/NodeHostCommands.ts"
import * as Routes from "../host/Routes.ts"
import * as NodeJournal from "../journal/NodeJournal.ts"
import * as Reclaimer from "../journal/Reclaimer.ts"
import { MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import type { ProcessHolder } from "../process/ProcessHolder.ts"
import type { ProcessHost } from "../process/ProcessHost.ts"
import * as Resources from "../supervisor/Resources.ts"
import * as Supervisor from "../supervisor/Supervisor.ts"
import * as RunDirectory from "./RunDirectory.ts"
import { type Place, RunHost } from "./RunHost.ts"
import * as RunLog from "./RunLog.ts"
import type { RunOptions } from "./RunOptions.ts"

type Needs = FileSystem.FileSystem | HostCommands | KernelSettings | Path.Path | ProcessHolder | ProcessHost

/** `MICROVM_NETWORK_FORWARDING`, `MICROVM_NETWORK_IPV4` and `MICROVM_NETWORK_IPV6`. */
const networkConfig = Config.all({
  forwarding: Config.Literals(["check", "enable"], "MICROVM_NETWORK_FORWARDING").pipe(Config.withDefault("check")),
  ipv4: Config.String("MICROVM_NETWORK_IPV4").pipe(Config.withDefault(undefined)),
  ipv6: Config.String("MICROVM_NETWORK_IPV6").pipe(Config.withDefault(undefined))
})

/** All runs of a state directory share a pool of addresses, so that no two machines ever have the same. */
const networks = (state: string) =>
  Layer.unwrap(Effect.gen(function*() {
    const path = yield* Path.Path
    const { forwarding, ...pools } = yield* networkConfig
    const addresses = Addresses.layer({ directory: path.join(state, "addresses"), ...pools })
    const firewall = Layer.unwrap(
      Addresses.Addresses.use(({ pool }) =>
        Effect.succeed(Firewall.layer({ prefix: `mv${pool.id}-`, pool: [pool.ipv4, pool.ipv6] }))
      )
    )
    const relay = DnsRelay.layer().pipe(Layer.provide([NodeDnsTransport.layer, SecureRandom.layerWebCrypto]))
    return MachineNetworks.layer({ forwarding }).pipe(
      Layer.provide([firewall, Links.layer, Routes.layer, relay]),
      Layer.provide(addresses)
    )
  }))

const kinds = (context: Context.Context<Needs>): ReadonlyArray<Reclaimer.Reclaimer> => [
  Supervisor.provided(Reclaimer.make(Addresses.kind), context),
  Supervisor.provided(Reclaimer.make(Firewall.rules), context),
  Supervisor.provided(Reclaimer.make(Links.kind), context)
]

/** The supervisor of the one machine of a journal. Its network is built when the machine needs it. */
const supervise = Effect.fnUntraced(function*(state: string, directory: string, context: Context.Context<Needs>) {
  const scope = yield* Effect.scope
  const networking = yield* Effect.cached(
    Layer.build(networks(state)).pipe(
      Scope.provide(scope),
      Effect.map(Context.get(MachineNetworks.MachineNetworks)),
      Effect.provideContext(context)
    )
  )
  const services = yield* Layer.build(
    Supervisor.layerWith({
      kinds: kinds(context),
      resume: (entry) =>
        Effect.gen(function*() {
          const { claims } = yield* entry.record
          if (!claims.some(({ kind }) => kind === Addresses.kind.kind)) return
          yield* (yield* networking).resume(entry)
        }).pipe(Effect.catchTag("ConfigError", Effect.die))
    }).pipe(Layer.provide(NodeJournal.layer({ directory })))
  )
  return { networking, supervisor: Context.get(services, Supervisor.Supervisor) }
})

/** What a run of this id has, until the scope closes; with `resume` it goes on with what another one has left. */
const open = Effect.fnUntraced(function*(id: string, options: RunOptions & { readonly resume?: boolean | undefined }) {
  const context = yield* Effect.context<Needs>()
  const { backend } = yield* MicroVmProvider
  const state = yield* RunDirectory.stateDirectory
  const paths = options.resume === true
    ? (yield* RunDirectory.adopt(state, id)).paths
    : yield* RunDirectory.begin(state, {
      id,
      detached: options.detach,
      command: options.command,
      env: Object.keys(options.env),
      backend,
      image: options.image,
      vcpus: options.vcpus,
      memoryMib: options.memoryMib
    })
  // Beside the run, as nobody waits for it.
  yield* Effect.forkScoped(Effect.ignore(RunDirectory.prune(state)))
  const { networking, supervisor } = yield* supervise(state, paths.journal, context)
  const { network } = options
  const logs = options.detach
    ? {
      output: (yield* RunLog.open({ directory: paths.directory, name: "output" })).sink,
      console: (yield* RunLog.open({ directory: paths.directory, name: "console" })).sink
    }
    : undefined
  const place: Place = {
    supervisor,
    resources: network._tag === "None"
      ? []
      : [Resources.network(yield* networking, { allow: network.allow })],
    ...(logs === undefined ? {} : { logs }),
    conclude: (report) => Effect.ignore(Effect.provideContext(RunDirectory.conclude(state, report), context))
  }
  return place
})

/**
 * Needs the right to make links and rules only for runs that have a network.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<
  RunHost,
  never,
  FileSystem.FileSystem | Path.Path | ProcessHolder | ProcessHost
> = Layer.effect(
  RunHost,
  Effect.gen(function*() {
    const context = yield* Effect.context<Needs>()
    return RunHost.of({
      open: Effect.fn("RunHost.open")((id, options) => Effect.provideContext(open(id, options), context)),
      recover: Effect.fn("RunHost.recover")((id, options) =>
        Effect.scoped(Effect.gen(function*() {
          const state = yield* RunDirectory.stateDirectory
          const { journal } = yield* RunDirectory.pathsOf(state, id)
          const { supervisor } = yield* supervise(state, journal, context)
          return yield* supervisor.recover(options)
        })).pipe(Effect.provideContext(context))
      )
    })
  })
).pipe(Layer.provide(NodeHostCommands.layer))
