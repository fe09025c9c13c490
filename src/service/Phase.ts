/**
 * The phases of a service and what is told of them.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Data from "effect/Data"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as PubSub from "effect/PubSub"
import * as Stream from "effect/Stream"
import type { Signal } from "../lifecycle/Signal.ts"
import type { ServiceError } from "./ServiceError.ts"

/**
 * The phases, in order.
 *
 * @category constants
 * @since 0.1.0
 */
export const phases = [
  "configure",
  "health",
  "secrets",
  "load",
  "check",
  "provision",
  "sidecar",
  "init",
  "run",
  "stop"
] as const

/**
 * @category models
 * @since 0.1.0
 */
export type Phase = typeof phases[number]

/**
 * What happens in the life of a service, in the order in which it happens.
 *
 * - `PhaseStarted`, `PhaseEnded`, `PhaseFailed`: each phase that is entered has one start and one end.
 * - `Provisioning`: a resource is asked for, again with each `attempt`; `state` is what the provisioner answered last.
 * - `PartStarted`, `PartStopped`, `PartFailed`, `PartAbandoned`: parts of the service (`Part`); `doing` is what a part that
 *   was abandoned was doing.
 * - `TaskRestarted`: a background task failed and is started again.
 * - `Ready`: everything is up; `Draining`: no new requests are wanted.
 * - `SignalReceived`: `serial` is 1 for the first one.
 * - `BudgetExtended`: a part asked for more time.
 *
 * @category models
 * @since 0.1.0
 */
export type ServiceEvent = Data.TaggedEnum<{
  PhaseStarted: { readonly phase: Phase }
  PhaseEnded: { readonly phase: Phase; readonly took: Duration.Duration }
  PhaseFailed: { readonly phase: Phase; readonly took: Duration.Duration; readonly error: ServiceError }
  Provisioning: { readonly resource: string; readonly type: string; readonly attempt: number; readonly state?: string }
  PartStarted: { readonly part: string; readonly took: Duration.Duration }
  PartStopped: { readonly part: string; readonly took: Duration.Duration }
  PartFailed: { readonly part: string; readonly took: Duration.Duration; readonly why: string }
  PartAbandoned: { readonly part: string; readonly took: Duration.Duration; readonly doing: string }
  TaskRestarted: { readonly task: string; readonly attempt: number; readonly why: string }
  Ready: {}
  Draining: { readonly delay: Duration.Duration }
  SignalReceived: { readonly signal: Signal; readonly serial: number }
  BudgetExtended: { readonly part: string; readonly by: Duration.Duration }
}>

/** A service with a hundred parts starts and stops with fewer. */
const history = 256

/**
 * Where events go. Whoever subscribes late gets the ones from before too, up to the last 256.
 *
 * @category services
 * @since 0.1.0
 */
export class ServiceEvents extends Context.Service<ServiceEvents, {
  /** Never waits and never fails. */
  readonly publish: (event: ServiceEvent) => Effect.Effect<void>
  readonly events: Stream.Stream<ServiceEvent>
}>()("effect-microvm-runtime/service/ServiceEvents") {
  /** One history for everybody who uses the layer. */
  static readonly layer = Layer.effect(
    ServiceEvents,
    Effect.gen(function*() {
      const hub = yield* Effect.acquireRelease(
        PubSub.sliding<ServiceEvent>({ capacity: history, replay: history }),
        PubSub.shutdown
      )
      return ServiceEvents.of({
        publish: (event) => Effect.asVoid(PubSub.publish(hub, event)),
        events: Stream.fromPubSub(hub)
      })
    })
  )
}
