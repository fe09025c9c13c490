/** What a plan is made of. `ServicePlan` exports all of it. */
import type * as Duration from "effect/Duration"
import type * as Option from "effect/Option"
import type * as ExitCode from "../../lifecycle/ExitCode.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface Address {
  readonly ip: string
  readonly port: number
}

/**
 * @category models
 * @since 0.1.0
 */
export interface ResourceOutline {
  readonly name: string
  readonly type: string
  readonly kind: string
}

/**
 * @category models
 * @since 0.1.0
 */
export interface PartOutline {
  readonly name: string
  readonly dependsOn: ReadonlyArray<string>
  readonly stopWithin: Option.Option<Duration.Duration>
  readonly stopWeight: number
}

/**
 * What stops at the same time at the latest, and how long each is waited for when all that stops before it hangs too: what
 * takes less leaves the rest to those after it.
 *
 * @category models
 * @since 0.1.0
 */
export interface StopStep {
  readonly kind: "main" | "parts" | "resources" | "rest" | "telemetry"
  readonly of: ReadonlyArray<{ readonly name: string; readonly within: Duration.Duration }>
}

/**
 * @category models
 * @since 0.1.0
 */
export interface ServiceOutline {
  readonly name: string
  readonly version: string
  readonly prefix: string
  readonly environment: "local" | "production"
  readonly resources: ReadonlyArray<ResourceOutline>
  /** All parts, those that others depend on included. */
  readonly parts: ReadonlyArray<PartOutline>
  /** Groups, one after the other at the latest; a part starts as soon as what it depends on has started. */
  readonly startOrder: ReadonlyArray<ReadonlyArray<string>>
  /** Groups, one after the other at the latest; a part stops as soon as what depends on it has stopped. */
  readonly stopOrder: ReadonlyArray<ReadonlyArray<string>>
  /** All that stops, parts among it, in order. */
  readonly stopSteps: ReadonlyArray<StopStep>
  /** The longest that provisioning may take, and each part to start that says nothing itself. */
  readonly startWithin: Duration.Duration
  /** The longest that all of the start may take, for who waits for it from outside. */
  readonly startLimit: Duration.Duration
  /** From the signal to the exit, drain delay included. */
  readonly stopBudget: Duration.Duration
  readonly drainDelay: Duration.Duration
  /** What parts may ask for on top of the budget. */
  readonly maxExtension: Duration.Duration
  readonly exitCodes: ExitCode.ServiceTable
  readonly listen: Address
  /** Absent: probes are not answered. */
  readonly health: Option.Option<Address>
}

/**
 * A part as far as a plan is concerned. A `Part` is one.
 *
 * @category models
 * @since 0.1.0
 */
export interface PlannedPart {
  readonly name: string
  readonly dependsOn: ReadonlyArray<PlannedPart>
  readonly startWithin: Duration.Input | undefined
  readonly stopWithin: Duration.Input | undefined
  readonly stopWeight: number
}

/**
 * A service as far as a plan is concerned. A `Service` is one.
 *
 * @category models
 * @since 0.1.0
 */
export interface PlannedService {
  readonly name: string
  readonly version: string
  readonly prefix: string
  readonly resources: ReadonlyArray<ResourceOutline>
  readonly parts: ReadonlyArray<PlannedPart>
  /** Absent: it has none. */
  readonly main?: Option.Option<unknown> | undefined
  readonly startWithin: Duration.Duration
  readonly maxExtension: Duration.Duration
  readonly exitCodes: ExitCode.ServiceTable
}

/**
 * A `fault` is a contradiction, a `warning` is worth a thought.
 *
 * @category models
 * @since 0.1.0
 */
export interface Finding {
  readonly severity: "fault" | "warning"
  readonly what: string
}
