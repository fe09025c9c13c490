import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import type { MachineSpec } from "../../microvm/MachineSpec.ts"
import * as MicroVmError from "../../microvm/MicroVmError.ts"
import type { LaunchOptions, Vmm } from "../../microvm/MicroVmProvider.ts"
import type { Platform } from "../../microvm/Snapshot.ts"
import * as OutputTail from "../../process/OutputTail.ts"
import type { ApiTransport } from "../ApiTransport.ts"
import * as FirecrackerApi from "../FirecrackerApi.ts"
import * as FirecrackerError from "../FirecrackerError.ts"
import * as FirecrackerExit from "../FirecrackerExit.ts"
import type { Setup } from "../FirecrackerHost.ts"
import type * as FirecrackerSchema from "../FirecrackerSchema.ts"
import * as FirecrackerVersion from "../FirecrackerVersion.ts"
import { type LaunchPlan, names } from "../LaunchPlan.ts"
import * as MachineConfig from "../MachineConfig.ts"
import * as MetricsCollector from "../MetricsCollector.ts"
import * as PageServer from "../PageServer.ts"
import type { Vsock } from "../Vsock.ts"
import * as Kept from "./kept.ts"
import { faultsOf } from "./planFaults.ts"
import { tend, type Tended } from "./tending.ts"
import { makeVmm, settling } from "./vmm.ts"
import * as WorkingSets from "./workingSets.ts"
import { type Arrange, enter, type How, type Services as PlaceServices, type Workplace } from "./workplace.ts"

/** Mostly it is there within 10 ms. */
const untilReady = Schedule.min([Schedule.exponential("2 millis"), Schedule.spaced("100 millis")])

export interface Services extends PlaceServices {
  readonly vsock: Vsock["Service"]
  readonly metricsFiles: MetricsCollector.MetricsFiles["Service"]
  readonly pageServer: PageServer.PageServer["Service"]
}

/**
 * Acquires for a machine what its scope then releases, and for one that is kept, each time that somebody has got hold of it. `vsock` is the path of the machine's vsock as we see it, for `Vsock`;
 * there is one when its spec names a channel. `owner` is whom Firecracker runs as, if not as we do.
 *
 * @category options
 * @since 0.1.0
 */
export type Beside = (place: {
  readonly spec: MachineSpec
  readonly vsock: string
  readonly owner: { readonly uid: number; readonly gid: number } | undefined
}) => Effect.Effect<unknown, FirecrackerError.FirecrackerError, Scope.Scope>

/**
 * What the port has no words for: told of each machine that is up, before it starts or goes on, and each time that somebody has
 * got hold of one that is kept. `api` is the one that the machine's handle uses, so their calls do not get in each other's way.
 * `metrics` is there when the machine tells any. What is acquired is released after the machine has ended, or, of one that is kept,
 * before it is let go of. Whoever recovers gets hold of all that are kept, so it is told of them also when a recovery only looks. It
 * is waited for, but not longer than the machine lives.
 *
 * @category options
 * @since 0.1.0
 */
export type OnMachine = (machine: {
  readonly spec: MachineSpec
  readonly api: FirecrackerApi.FirecrackerApi
  readonly metrics: MetricsCollector.MetricsCollector | undefined
}) => Effect.Effect<unknown, FirecrackerError.FirecrackerError, Scope.Scope>

export interface Bringing {
  readonly spec: MachineSpec
  readonly plan: LaunchPlan
  readonly how: How & Pick<LaunchOptions, "from">
  readonly setup: Setup
  /** What a snapshot of this machine counts on. */
  readonly platform: Platform
  /** Where directories of machines are made. */
  readonly stateDirectory: string | undefined
  readonly deadlines: FirecrackerApi.Deadlines
  /** How long Firecracker may take until it answers. */
  readonly readyWithin: Duration.Duration
  readonly beside: Beside | undefined
  readonly onMachine: OnMachine | undefined
  readonly workingSets: WorkingSets.WorkingSets | undefined
}

type Failure = FirecrackerError.FirecrackerError

/** Waits until Firecracker answers, and sees whether it is the one that was planned for. */
const awaitReady = Effect.fnUntraced(function*(
  transport: ApiTransport,
  { version: planned }: Setup,
  within: Duration.Duration
): Effect.fn.Return<void, Failure> {
  let last: Failure | undefined
  const version = yield* FirecrackerApi.readVersion(transport, { within }).pipe(
    Effect.tapError((error) =>
      Effect.sync(() => {
        last = error
      })
    ),
    Effect.retry({ schedule: untilReady, while: ({ reason }) => reason._tag === "ConnectionFailed" }),
    Effect.timeoutOrElse({
      duration: within,
      orElse: () =>
        FirecrackerError.fail(new FirecrackerError.NotReady({ within, stderrTail: "", logTail: "", cause: last }))
    })
  )
  // A fix of the same version was installed meanwhile: what is planned for the one is right for the other.
  if (version.major === planned.major && version.minor === planned.minor) return
  const [is, said] = [FirecrackerVersion.format(version), FirecrackerVersion.format(planned)]
  return yield* FirecrackerError.fail(
    new FirecrackerError.ProtocolViolation({
      method: "GET",
      path: "/version",
      detail: `it is ${is}, but \`--version\` said ${said}: start this program again if Firecracker was upgraded`
    })
  )
})

const restore = Effect.fnUntraced(function*(
  api: FirecrackerApi.FirecrackerApi,
  { metrics, mmds, serial }: MachineConfig.MachineConfig,
  load: FirecrackerSchema.SnapshotLoadParams
): Effect.fn.Return<void, Failure> {
  if (metrics !== undefined) yield* api.putMetrics(metrics)
  if (serial !== undefined) yield* api.putSerial(serial)
  yield* api.loadSnapshot(load)
  // A snapshot has the service, and not what it tells.
  if (mmds?.data !== undefined) yield* api.putMmds(mmds.data)
})

/** Starts Firecracker and tells it what the machine is. What is acquired is the scope's, also after a failure. */
export const bringUp = Effect.fnUntraced(function*(
  bringing: Bringing,
  services: Services
): Effect.fn.Return<Vmm, MicroVmError.MicroVmError, Scope.Scope> {
  const { beside, how: { from, keep }, how, plan, platform, setup, spec, stateDirectory, workingSets } = bringing
  const { id } = spec
  const { holder, host, metricsFiles, pageServer } = services
  const scope = yield* Effect.scope

  // Closed after the process is gone: what it says on its way out is still heard.
  const ears = yield* Scope.fork(scope)
  let tended: Tended | undefined
  let serving: Served | undefined
  let metrics: MetricsCollector.MetricsCollector | undefined
  const arrange: Arrange = Effect.fnUntraced(function*({ directory, owner }) {
    if (keep === undefined) {
      // Its log goes with its directory.
      yield* Effect.addFinalizer(() =>
        tended === undefined ? Effect.void : Effect.timeoutOption(tended.ended, settling)
      )
    }
    if (plan.config.metrics !== undefined) {
      const file = `${directory}/${names.metrics}`
      const source = yield* keep === undefined ? metricsFiles.create(file, { owner }) : metricsFiles.open(file)
      metrics = yield* MetricsCollector.make(source, { machine: id })
    }
    if (plan.served !== undefined) {
      const { path: memory } = plan.served
      const { keep: keepSet, wanted } = yield* WorkingSets.of(workingSets, from?.id, host)
      const started = yield* pageServer.start({ socket: `${directory}/${names.pages}`, memory, owner, ...wanted })
      serving = { ...started, keepSet: keepSet(started) }
    }
    if (beside !== undefined) yield* beside({ spec, vsock: `${directory}/${names.vsock}`, owner })
  })
  return yield* Effect.uninterruptibleMask((unmask) =>
    Effect.gen(function*() {
      const place = yield* unmask(enter(plan, stateDirectory, how, services, arrange)).pipe(
        Effect.mapError((error) =>
          error._tag === "FirecrackerError" && error.reason._tag === "InvalidRequest"
            ? MicroVmError.make(new MicroVmError.InvalidSpec({ faults: faultsOf("jail")(error) }))
            : launchFailed(id, "starting Firecracker", error)
        )
      )
      const lasting = Kept.lastingOf(spec, plan, setup, platform)
      const listening = yield* tend(lasting, place, host, ears)
      tended = listening
      const instructing = { ...bringing, place, lasting, tended: listening, serving, metrics, ears }
      return yield* unmask(instruct(instructing, services)).pipe(
        // The scope lets go of one that is kept, and does not end it.
        Effect.onError(() => keep === undefined ? Effect.void : holder.destroy(keep))
      )
    })
  )
})

const launchFailed = (id: string, stage: string, cause: unknown) =>
  MicroVmError.make(new MicroVmError.LaunchFailed({ id, stage, stderrTail: "", consoleTail: "", cause }))

/** A server that is there, and what it is to be remembered of it once the machine is up. */
interface Served extends PageServer.Serving {
  readonly keepSet: Effect.Effect<void, never, Scope.Scope>
}

interface Instructing extends Bringing {
  readonly place: Workplace
  readonly lasting: Kept.Lasting
  readonly tended: Tended
  readonly serving: Served | undefined
  readonly metrics: MetricsCollector.MetricsCollector | undefined
  readonly ears: Scope.Scope
}

/** What a guest has written to the jail's copy of a file is gone with the jail: no snapshot of it could ever go on. */
const refusalToSave = Effect.fnUntraced(function*({ entries, jail }: LaunchPlan, host: Services["host"]) {
  if (jail === undefined) return
  const written = entries.filter(({ writable }) => writable)
  const copied = yield* Effect.filter(
    written,
    ({ path }) => Effect.map(host.inspect(path), ({ device }) => device !== true)
  )
  if (copied.length === 0) return
  return Effect.fail(MicroVmError.make(
    new MicroVmError.Unsupported({
      operation: `saving a machine that writes to a copy in its jail (${copied.map(({ field }) => field).join(", ")})`,
      backend: "firecracker",
      remedy: "the copy goes with the jail, and what its guest has written: give a block device"
    })
  ))
})

/** Tells a Firecracker that was just started what the machine is. */
const instruct = Effect.fnUntraced(function*(
  instructing: Instructing,
  { host, vsock }: Services
): Effect.fn.Return<Vmm, MicroVmError.MicroVmError, Scope.Scope> {
  const { deadlines, ears, how: { keep }, lasting, metrics, onMachine, place, plan } = instructing
  const { readyWithin, serving, setup, spec, tended } = instructing
  const { id } = spec
  const { directory, monitor } = place
  const scope = yield* Effect.scope

  /** Fails with what Firecracker itself has to say, and how it ended, if it has. */
  const explain = Effect.fnUntraced(function*(
    stage: string,
    cause?: Failure
  ): Effect.fn.Return<never, MicroVmError.MicroVmError> {
    const isLost = cause === undefined || cause.reason._tag === "ConnectionFailed"
    const isFatal = cause?.reason._tag === "ApiFault" && cause.reason.kind === "RestoreFailed"
    const status = isLost || isFatal ? yield* Effect.timeoutOption(monitor.exit, settling) : yield* monitor.poll
    const { stderr, stdout } = yield* monitor.tail
    // That the connection ended with the process says nothing more.
    const meaning = Option.map(status, (ended) => FirecrackerExit.describe(ended, setup).meaning)
    return yield* MicroVmError.make(
      new MicroVmError.LaunchFailed({
        id,
        stage,
        stderrTail: `${OutputTail.marked(stderr)}${yield* tended.logTail}`,
        consoleTail: OutputTail.marked(stdout),
        ...(Option.isSome(status) ? { status: status.value } : {}),
        cause: isLost ? Option.getOrElse(meaning, () => cause) : cause
      })
    )
  })

  const transport = yield* Effect.mapError(
    Scope.provide(host.connect(`${directory}/${names.api}`), ears),
    (error) => launchFailed(id, "connecting", error)
  )
  const api = FirecrackerApi.make(transport, { ...lasting.target, deadlines })
  const load = Effect.fnUntraced(function*(params: FirecrackerSchema.SnapshotLoadParams) {
    const loading = restore(api, plan.config, params)
    if (serving === undefined) return yield* loading
    const { ended, ready } = serving
    // Firecracker has no deadline for a server that does not serve.
    yield* Effect.raceFirst(Effect.andThen(loading, ready), Effect.andThen(ended, Effect.never))
    yield* PageServer.watch(
      serving,
      Effect.fnUntraced(function*(error) {
        // It may be the end of the machine that the server has stumbled over.
        if (Option.isSome(yield* monitor.poll)) return
        yield* Effect.logError(`machine "${id}" is killed: ${error.message}`)
        yield* tended.condemn(error)
      })
    ).pipe(Effect.ignore, Effect.forkIn(scope, { startImmediately: true }))
  })
  const begin = "bringing Firecracker up"
  yield* Effect.raceFirst(
    Effect.catch(awaitReady(transport, setup, readyWithin), (error) => explain(begin, error)),
    Effect.andThen(monitor.exit, explain(begin))
  )
  const [last, step] = plan.load === undefined
    ? ["configuring", MachineConfig.apply(api, plan.config)] as const
    : ["restoring", load(plan.load)] as const
  // Its last answer comes before its end, and says more. What waits for something else than an answer ends with it.
  const left = monitor.exit.pipe(Effect.andThen(Effect.sleep(settling)), Effect.andThen(Effect.fail(undefined)))
  yield* Effect.catch(Effect.raceFirst(step, left), (error) => explain(last, error))

  if (keep !== undefined) {
    yield* Effect.mapError(
      host.write(`${directory}/${Kept.fileName}`, Kept.write(lasting)),
      (error) => launchFailed(id, "writing down what it is", error)
    )
  }
  if (onMachine !== undefined) {
    const told = onMachine({ spec, api, metrics })
    yield* Effect.catch(Effect.raceFirst(told, left), (error) => explain("what `onMachine` does", error))
  }
  const refusesSave = yield* refusalToSave(plan, host)
  const hasStarted = plan.load !== undefined
  const vmm = makeVmm({ spec, lasting, hasStarted, place, api, host, vsock, tended, refusesSave })
  if (serving === undefined) return vmm
  // What is touched while it is loaded is not what its guest needs.
  let isKept = false
  const keepSet = Effect.suspend(() => {
    if (isKept) return Effect.void
    isKept = true
    return Scope.provide(serving.keepSet, scope)
  })
  return { ...vmm, resume: Effect.tap(vmm.resume, () => keepSet) }
})
