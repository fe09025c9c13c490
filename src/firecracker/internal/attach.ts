import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import type { MachineSpec } from "../../microvm/MachineSpec.ts"
import * as MicroVmError from "../../microvm/MicroVmError.ts"
import type { Attached } from "../../microvm/MicroVmProvider.ts"
import * as FirecrackerApi from "../FirecrackerApi.ts"
import type { FirecrackerError } from "../FirecrackerError.ts"
import { names } from "../LaunchPlan.ts"
import * as MetricsCollector from "../MetricsCollector.ts"
import type { Beside, OnMachine, Services } from "./bringUp.ts"
import * as Kept from "./kept.ts"
import { tend } from "./tending.ts"
import { makeVmm, settling } from "./vmm.ts"
import { policy, unjailed } from "./workplace.ts"

/** One whose last supervisor died while it was saved writes all of that before it answers. */
const patience = "30 seconds"

/** What `GET /` calls the states. */
const states: { readonly [state: string]: Attached["state"] } = {
  "Not started": "created",
  Running: "running",
  Paused: "paused"
}

/** Gets hold of a Firecracker that is kept. */
export const attach = Effect.fnUntraced(function*(
  { beside, deadlines, directory, onMachine, spec }: {
    readonly spec: MachineSpec
    readonly directory: string
    readonly deadlines: FirecrackerApi.Deadlines
    readonly beside: Beside | undefined
    readonly onMachine: OnMachine | undefined
  },
  { holder, host, metricsFiles, vsock }: Services
): Effect.fn.Return<Attached, MicroVmError.MicroVmError, Scope.Scope> {
  const { id } = spec
  const scope = yield* Effect.scope
  const ears = yield* Scope.fork(scope)
  const failed = (why: string, cause?: unknown, isHeld = false) =>
    MicroVmError.make(new MicroVmError.AttachFailed({ id, isHeld, why, ...(cause === undefined ? {} : { cause }) }))
  const withCause = (cause: FirecrackerError) => failed(cause.message, cause)

  const monitor = yield* Effect.mapError(
    holder.attach({ directory, policy }),
    (error) => failed(error.message, error, error.reason._tag === "HandTaken")
  )
  const place = unjailed(monitor, Kept.directoryIn(directory), host)
  const kept = Kept.read(yield* Effect.mapError(host.read(`${place.directory}/${Kept.fileName}`), withCause))
  if (kept === undefined) {
    const why =
      `what is kept in ${directory} is no machine of Firecracker's of this version, or its launch was broken off`
    return yield* failed(`${why}: end it`)
  }
  if (kept.id !== id) return yield* failed(`the one in ${directory} is "${kept.id}"`)

  const transport = yield* Effect.mapError(
    Scope.provide(host.connect(`${place.directory}/${names.api}`), ears),
    withCause
  )
  const api = FirecrackerApi.make(transport, { ...kept.target, deadlines })
  const tended = yield* tend(kept, place, host, ears)
  const attached = (state: Attached["state"]): Attached => ({
    state,
    vmm: makeVmm({ spec, lasting: kept, hasStarted: state !== "created", place, api, host, vsock, tended })
  })
  /** Of one that has ended, what it has left is all that there is; whoever polls it first is to hear of the end. */
  const over = attached("running")
  const ended = Effect.as(over.vmm.ended, over)
  if (Option.isSome(yield* monitor.poll)) return yield* ended

  const answer = yield* api.getInstance().pipe(
    Effect.retry({ while: ({ reason }) => reason._tag === "NoReply" }),
    Effect.mapError(withCause),
    Effect.timeoutOrElse({
      duration: patience,
      orElse: () => Effect.fail(failed(`its Firecracker gave no answer within ${patience}`))
    }),
    Effect.result
  )
  /** What fails may do so because it is about to end. */
  const orEnded = (error: MicroVmError.MicroVmError) =>
    Effect.flatMap(
      Effect.timeoutOption(monitor.exit, settling),
      (status) => Option.isSome(status) ? ended : Effect.fail(error)
    )
  if (answer._tag === "Failure") return yield* orEnded(answer.failure)
  const state = states[answer.success.state]
  if (state === undefined) return yield* failed(`its Firecracker says that it is "${answer.success.state}"`)
  const { directory: own } = place
  const metrics = yield* Effect.gen(function*() {
    let collector: MetricsCollector.MetricsCollector | undefined
    if (kept.metrics) {
      const source = yield* Scope.provide(metricsFiles.open(`${own}/${names.metrics}`), ears)
      collector = yield* Scope.provide(MetricsCollector.make(source, { machine: id }), ears)
    }
    if (beside !== undefined) yield* beside({ spec, vsock: `${own}/${names.vsock}`, owner: undefined })
    return collector
  }).pipe(Effect.mapError(withCause))
  if (onMachine === undefined) return attached(state)
  // What waits for something of the machine ends with it, and its fault concerns this machine alone.
  const hook = "what `onMachine` does"
  const told = Effect.suspend(() => onMachine({ spec, api, metrics })).pipe(
    Effect.mapError((error) => failed(`${hook}: ${error.message}`, error)),
    Effect.catchDefect((defect) => Effect.fail(failed(`${hook} threw: ${String(defect)}`, defect))),
    Effect.as(attached(state))
  )
  const left = monitor.exit.pipe(Effect.andThen(Effect.sleep(settling)), Effect.andThen(ended))
  return yield* Effect.catch(Effect.raceFirst(told, left), orEnded)
})
