/**
 * Runs on this host: each in a directory of its own below the state directory, with a journal and a supervisor of its own.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import type { HostError } from "../host/HostError.ts"
import * as Limits from "../host/Limits.ts"
import * as NodeMachineNetworks from "../host/NodeMachineNetworks.ts"
import * as Users from "../host/Users.ts"
import * as Journal from "../journal/Journal.ts"
import type { JournalError } from "../journal/JournalError.ts"
import { MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import * as NodeUserMap from "../process/NodeUserMap.ts"
import type { ProcessHost } from "../process/ProcessHost.ts"
import * as NodeSupervisor from "../supervisor/NodeSupervisor.ts"
import * as Resources from "../supervisor/Resources.ts"
import * as Supervisor from "../supervisor/Supervisor.ts"
import { addressesIn, networkConfig } from "./internal/networkConfig.ts"
import { userPool } from "./internal/userPool.ts"
import * as RunDirectory from "./RunDirectory.ts"
import { type Place, RunHost } from "./RunHost.ts"
import * as RunLog from "./RunLog.ts"
import type { RunOptions } from "./RunOptions.ts"

type Needs = FileSystem.FileSystem | Path.Path | ProcessHost

/** All runs of a state directory share a pool of addresses, so that no two machines ever have the same. */
const networks = Effect.fnUntraced(function*(state: string) {
  const directory = addressesIn(state)
  return yield* Layer.build(NodeMachineNetworks.layer({ directory, ...(yield* networkConfig) }))
})

/** All runs of a state directory share the users, too. */
const users = Effect.fnUntraced(function*(state: string) {
  const path = yield* Path.Path
  const pool = yield* userPool(NodeUserMap.others())
  if (Option.isNone(pool)) return Option.none()
  const { first, last } = pool.value
  return Option.some(
    yield* Layer.build(Users.layer({ directory: path.join(state, "users"), first, count: last - first + 1 }))
  )
})

/** `MICROVM_LIMITS`. Off by default: to enter control groups takes longer than most of a machine's start. */
const limitsConfig = Config.Literals(["on", "off"], "MICROVM_LIMITS").pipe(Config.withDefault("off"))

/** By what the guest is given; a snapshot's memory is its own affair. */
const limitsOf = ({ memoryMib, start, vcpus }: RunOptions): Limits.Options => {
  const limits = Limits.forGuest({ memoryMib, vcpus })
  return typeof start === "object" ? { pids: limits.pids } : limits
}

const resources = Effect.fnUntraced(function*(state: string, options: RunOptions) {
  const { network } = options
  const { capabilities } = yield* MicroVmProvider
  const needed: Array<Supervisor.Resource> = []
  const provided = <R>({ acquire }: Supervisor.Resource<HostError | JournalError, R>, context: Context.Context<R>) =>
    needed.push({ acquire: (entry, given) => Effect.provideContext(acquire(entry, given), context) })
  const own = capabilities.user ? yield* users(state) : Option.none()
  if (Option.isSome(own)) provided(Resources.user(), own.value)
  if ((yield* limitsConfig) === "on") provided(Resources.limits(limitsOf(options)), yield* Effect.context<Needs>())
  if (network._tag !== "None") provided(Resources.network({ allow: network.allow }), yield* networks(state))
  return needed
})

/** Those of one map that are there at the same time share what a supervisor needs of this host. */
const supervise = Effect.fnUntraced(function*(journal: string, shared: Layer.MemoMap) {
  const scope = yield* Effect.scope
  const services = yield* Layer.buildWithMemoMap(NodeSupervisor.layer({ directory: journal }), shared, scope)
  return Context.get(services, Supervisor.Supervisor)
})

const recover = (journal: string, shared: Layer.MemoMap, options: Supervisor.RecoverOptions) =>
  Effect.scoped(Effect.flatMap(supervise(journal, shared), (supervisor) => supervisor.recover(options)))

/** What was to end with a run that was killed, or could not be removed at its end. Machines that are kept wait for whoever asks for them. */
const reclaimDead = Effect.fnUntraced(function*(state: string, shared: Layer.MemoMap, except: string) {
  const dead = (yield* RunDirectory.leftBehind(state, except)).filter(({ record, report }) =>
    record !== undefined && (!record.keep || report !== undefined)
  )
  const reclaim = Effect.fnUntraced(function*({ paths }: RunDirectory.Run) {
    const { others } = yield* Journal.peek({ directory: paths.journal })
    // Whoever opens the journal moves it aside, and that is to be told: `microvm recover` does.
    if (others.length === 0) yield* recover(paths.journal, shared, { mode: "kill" })
  })
  yield* Effect.forEach(dead, (run) => Effect.ignore(reclaim(run)), { concurrency: 4, discard: true })
})

const open = Effect.fnUntraced(function*(
  id: string,
  options: RunOptions & { readonly resume?: boolean | undefined },
  shared: Layer.MemoMap
) {
  const context = yield* Effect.context<Needs | MicroVmProvider>()
  const { backend } = Context.get(context, MicroVmProvider)
  const state = yield* RunDirectory.stateDirectory
  const paths = options.resume === true
    ? (yield* RunDirectory.find(state, id, { whole: true })).paths
    : yield* RunDirectory.begin(state, {
      id,
      detached: options.detach,
      command: options.command,
      env: Object.keys(options.env),
      backend,
      image: options.image,
      vcpus: options.vcpus,
      memoryMib: options.memoryMib,
      grace: options.grace,
      ...(Option.isSome(options.timeout) ? { timeout: options.timeout.value } : {}),
      ...(Option.isSome(options.watchdog) ? { watchdog: options.watchdog.value } : {})
    })
  const supervisor = yield* supervise(paths.journal, shared)
  // Not before its journal is ours: of several that want to go on with it, one does.
  if (options.resume === true) yield* RunDirectory.adopt(state, id)
  const log = (name: "console" | "output") => RunLog.open({ directory: paths.directory, name })
  const logs = Effect.gen(function*() {
    const output = yield* log("output")
    const console = yield* log("console")
    return { output: output.sink, console: console.sink, catchUp: console.catchUp }
  })
  const place: Place = {
    supervisor,
    resources: yield* resources(state, options),
    ...(options.detach ? { logs: yield* logs } : {}),
    conclude: (...args) => Effect.ignore(Effect.provideContext(RunDirectory.conclude(state, ...args), context)),
    // Once, though another machine may follow the first. Neither waits for the other to go well. Both look at one run after the other,
    // as what the guest says meanwhile is to be heard at once, and its processor is ours.
    tidy: yield* Effect.cached(
      Effect.provideContext(
        Effect.andThen(
          Effect.ignore(RunDirectory.prune(state, { except: id })),
          Effect.ignore(reclaimDead(state, shared, id))
        ),
        context
      )
    )
  }
  return place
})

/**
 * Needs the right to make links and rules only for runs that have a network.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<RunHost, never, Needs> = Layer.effect(
  RunHost,
  Effect.gen(function*() {
    const context = yield* Effect.context<Needs>()
    const shared = yield* Layer.makeMemoMap
    return RunHost.of({
      open: Effect.fn("RunHost.open")((id, options) => Effect.provideContext(open(id, options, shared), context)),
      recover: Effect.fn("RunHost.recover")((id, options) =>
        Effect.gen(function*() {
          const { journal } = yield* RunDirectory.pathsOf(yield* RunDirectory.stateDirectory, id)
          const { others } = options.dryRun === true ? yield* Journal.peek({ directory: journal }) : { others: [] }
          // A journal that is opened moves it aside.
          return others.length > 0
            ? others.map(({ path, why }): Supervisor.Recovered => ({
              id,
              action: "Left",
              why: `what is written of its machine cannot be read, ${why}: see ${path}`
            }))
            : yield* recover(journal, shared, options)
        }).pipe(Effect.provideContext(context))
      )
    })
  })
)
