/** What is told of parts, and how they are started and stopped. `Parts` exports all of it. */
import type * as Cause from "effect/Cause"
import type * as Data from "effect/Data"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type { ServiceEvent } from "../Phase.ts"

/**
 * How a part stopped. `Failed`: a finalizer failed, and the others ran all the same. `Abandoned`: its time was up; `doing`
 * is the innermost span that was open in it, and for how long, or what it waited for.
 *
 * @category models
 * @since 0.1.0
 */
export type PartOutcome = Data.TaggedEnum<{
  Stopped: { readonly name: string; readonly took: Duration.Duration }
  Failed: { readonly name: string; readonly took: Duration.Duration; readonly cause: Cause.Cause<never> }
  Abandoned: { readonly name: string; readonly took: Duration.Duration; readonly doing: string }
}>

/**
 * @category models
 * @since 0.1.0
 */
export type PartState = "waiting" | "starting" | "running" | "failed" | "stopping" | "stopped" | "abandoned"

/**
 * Where a part is, for how long, and while it starts or stops, what it is doing.
 *
 * @category models
 * @since 0.1.0
 */
export interface PartStatus {
  readonly name: string
  readonly state: PartState
  readonly since: Duration.Duration
  readonly doing?: string
}

/**
 * @category options
 * @since 0.1.0
 */
export interface StartOptions {
  /** The longest time that a part may take to start which says nothing itself. Default: no limit. */
  readonly startWithin?: Duration.Input | undefined
  /** The longest time that parts which have started get to stop when another one fails to. Default 10 seconds. */
  readonly rollbackBudget?: Duration.Input | undefined
  /** Told of `PartStarted`, and of the rest when it comes to a rollback, in order; keep it short. */
  readonly onEvent?: ((event: ServiceEvent) => Effect.Effect<void>) | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface StopOptions {
  /** The longest time that the whole stop may take, as long as no part asks for more. */
  readonly budget: Duration.Input
  /** The longest time that it may take with what parts have asked for. Default: the budget. */
  readonly hardCap?: Duration.Input | undefined
  /** Told of `PartStopped`, `PartFailed`, `PartAbandoned` and `BudgetExtended`, in order; keep it short. */
  readonly onEvent?: ((event: ServiceEvent) => Effect.Effect<void>) | undefined
}
