/** The stop of a service as stages of the one shutdown engine: drain, stop, abandon. */
import type * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as ExitStatus from "../../lifecycle/ExitStatus.ts"
import * as Shutdown from "../../lifecycle/Shutdown.ts"
import type { ShutdownPolicy, Stage } from "../../lifecycle/ShutdownPolicy.ts"
import type * as Parts from "../Parts.ts"
import { explain } from "../ServiceError.ts"

/** What did not stop as it should. */
export type Leftover =
  | { readonly _tag: "Abandoned"; readonly part: string; readonly doing: string; readonly after: Duration.Duration }
  | { readonly _tag: "Failed"; readonly part: string; readonly why: string }

/** How something stopped: a part, or what is none. */
export type Outcome =
  | Parts.PartOutcome
  | { readonly _tag: "Failed"; readonly name: string; readonly cause: Cause.Cause<unknown> }

export const leftover = (outcome: Exclude<Outcome, { readonly _tag: "Stopped" }>): Leftover =>
  outcome._tag === "Abandoned"
    ? { _tag: "Abandoned", part: outcome.name, doing: outcome.doing, after: outcome.took }
    : { _tag: "Failed", part: outcome.name, why: whyOf(outcome.cause) }

/** Each of several finalizers that failed. */
const whyOf = (cause: Cause.Cause<unknown>): string =>
  cause.reasons
    .filter((reason) => reason._tag !== "Interrupt")
    .map((reason) => explain(reason._tag === "Fail" ? reason.error : reason.defect))
    .join("; ")

/** What a part was doing that waited for others to stop. */
export const notYet = "its turn had not come"

export const format = (left: Leftover): string => {
  if (left._tag === "Failed") return `${left.part} failed while it stopped: ${left.why}`
  if (left.doing === notYet) return `${left.part} was told to stop before its turn, and not waited for`
  return `${left.part} did not stop within ${
    Math.round(Duration.toMillis(left.after))
  } ms and was abandoned (${left.doing})`
}

export interface Options {
  /** Says that no new work is wanted. Requests are served for `delay` more. */
  readonly drain: Option.Option<{ readonly delay: Duration.Duration; readonly begin: Effect.Effect<void> }>
  /** Stops everything, within `budget` as a rule. Interrupted when that is cut short. */
  readonly stop: Effect.Effect<void>
  readonly budget: Duration.Duration
  readonly maxExtension: Duration.Duration
  /** Gives up on whatever has not stopped. */
  readonly abandon: Effect.Effect<void>
}

type Request = "drain" | "stop" | "abandon"

/** `stop` keeps the budget itself; the engine only steps in when it does not. */
export const slack = Duration.millis(200)

const stage = (
  request: Request,
  grace: Duration.Duration,
  options: { readonly force?: boolean; readonly maxExtension?: Duration.Duration } = {}
): Stage<Request> => ({
  name: request,
  request,
  grace,
  force: options.force ?? false,
  maxExtension: options.maxExtension ?? Duration.zero
})

export const make = (options: Options): Effect.Effect<Shutdown.Shutdown> => {
  const stopped = Deferred.makeUnsafe<ExitStatus.ExitStatus>()
  let status = Option.none<ExitStatus.ExitStatus>()
  const finish = Effect.sync(() => {
    status = Option.some(ExitStatus.exited(0, "self"))
    Deferred.doneUnsafe(stopped, Exit.succeed(ExitStatus.exited(0, "self")))
  })
  const last: readonly [Stage<Request>, Stage<Request>] = [
    stage("stop", Duration.sum(options.budget, slack), { maxExtension: options.maxExtension }),
    stage("abandon", Duration.seconds(1), { force: true })
  ]
  const policy: ShutdownPolicy<Request> = {
    stages: Option.match(options.drain, {
      onNone: () => last,
      onSome: ({ delay }) => [stage("drain", delay), ...last]
    })
  }
  return Shutdown.make(
    {
      poll: Effect.sync(() => status),
      ended: Deferred.await(stopped),
      request: (request: Request) =>
        request === "drain"
          ? Option.match(options.drain, { onNone: () => Effect.void, onSome: ({ begin }) => begin })
          : Effect.andThen(request === "stop" ? options.stop : options.abandon, finish),
      remains: Effect.sync(() => ({ status, survivors: [] }))
    },
    policy
  )
}
