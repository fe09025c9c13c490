/** What of a service is no part and stops with it: its main program, its resources, the health listener. */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as References from "effect/References"
import * as Tracer from "effect/Tracer"
import * as StopBudget from "../../lifecycle/StopBudget.ts"
import { PartControl } from "../Part.ts"
import type { ServiceError } from "../ServiceError.ts"
import { Control, noSpan, type Stopping, Tracker } from "./partsTracker.ts"
import type * as StopLadder from "./stopLadder.ts"

/** One step of the stop; `of` is whose spans tell what it is doing. */
export interface Step extends Pick<StopBudget.Part, "name" | "weight"> {
  readonly stop: Effect.Effect<unknown, ServiceError>
  readonly of?: Aside | undefined
}

/** Something whose spans are known. */
export interface Aside {
  /** Runs an effect as a piece of it. */
  readonly run: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  readonly doing: () => string
}

export interface Asides {
  readonly make: (name: string) => Aside
  /** Group after group, within the budget. What does not stop as it should is noted. */
  readonly stop: (budget: Duration.Duration, groups: ReadonlyArray<ReadonlyArray<Step>>) => Effect.Effect<void>
  /** Notes all that stops now as abandoned. */
  readonly abandon: Effect.Effect<void>
}

export const make = Effect.fnUntraced(function*(
  note: (outcome: StopLadder.Outcome) => void
): Effect.fn.Return<Asides> {
  const services = yield* Effect.context()
  const clock = yield* Clock.Clock
  const outer = Context.getOrUndefined(services, PartControl)
  const tracker = new Tracker(
    Context.get(services, Tracer.Tracer),
    Context.get(services, References.TracerTimingEnabled),
    outer
  )
  // A service in a part of another one: its main program has the time that the part has.
  const stopping: Stopping<undefined> = {
    extendStop: () => outer?.extendStop ?? (() => Effect.succeed(Duration.zero)),
    timeLeft: () => outer?.timeLeft ?? Effect.succeedNone
  }
  const now = (): bigint => clock.monotonicTimeNanosUnsafe()
  /** What stops now, by its name, and since when. */
  const going = new Map<string, { readonly step: Step; readonly since: bigint }>()
  const told = new Set<string>()

  return {
    make: (name) => {
      const control = new Control(name, undefined, stopping, tracker)
      const own = Context.make(Tracer.Tracer, tracker).pipe(Context.add(PartControl, control))
      return {
        run: (self) => Effect.updateContext(self, (context) => Context.merge(context, own)),
        doing: () => control.doing(clock.currentTimeNanosUnsafe()) ?? noSpan
      }
    },
    stop: (budget, groups) =>
      StopBudget.stopAll(
        budget,
        groups.map((steps) =>
          steps.map((step) => {
            const begun = Effect.suspend(() => {
              going.set(step.name, { step, since: now() })
              return step.stop
            })
            return { ...step, stop: step.of === undefined ? begun : step.of.run(begun) }
          })
        ),
        {
          onOutcome: (outcome) =>
            Effect.sync(() => {
              const { name } = outcome
              const doing = going.get(name)?.step.of?.doing() ?? noSpan
              going.delete(name)
              // It was abandoned before its time was up, and that is told.
              if (told.has(name)) return
              note(outcome._tag === "Abandoned" ? { ...outcome, doing } : outcome)
            })
        }
      ),
    abandon: Effect.sync(() => {
      for (const [name, { since, step }] of going) {
        told.add(name)
        note({ _tag: "Abandoned", name, took: Duration.nanos(now() - since), doing: step.of?.doing() ?? noSpan })
      }
      going.clear()
    })
  }
})
