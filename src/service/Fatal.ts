/**
 * Where a part of a running service tells that the service cannot go on.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { ServiceError } from "./ServiceError.ts"

/**
 * Ends the service in order: the first report is what the exit code says, later ones are only logged. `report` returns at
 * once, before anything has stopped; whoever reports is stopped like all others.
 *
 * ```ts import.meta.vitest
 * import { Fatal, ServiceError } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 *
 * const reports: Array<string> = []
 * const recording = Fatal.Fatal.of({ report: (error) => Effect.sync(() => reports.push(error.exitReason)) })
 * const reason = ServiceError.ServiceErrorReason.HealthListenerFailed({ why: "closed by the system" })
 * const program = Fatal.Fatal.use((fatal) => fatal.report(ServiceError.fromReason(reason)))
 * await Effect.runPromise(Effect.provideService(program, Fatal.Fatal, recording))
 * reports // => ["healthFailed"]
 * ```
 *
 * @category services
 * @since 0.1.0
 */
export class Fatal extends Context.Service<Fatal, {
  /** Never waits and never fails. */
  readonly report: (error: ServiceError) => Effect.Effect<void>
}>()("effect-microvm-runtime/service/Fatal") {}
