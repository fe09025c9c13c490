/** The life of the parts of one service: started once, stopped once, whatever comes in between. */
import * as Cause from "effect/Cause"
import type * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import { share } from "../../lifecycle/StopBudget.ts"
import * as Part from "../Part.ts"
import type { ServiceEvent } from "../Phase.ts"
import { explain, fromReason, ServiceError, ServiceErrorReason } from "../ServiceError.ts"
import { toTheMilli } from "./durationText.ts"
import type { Node } from "./partsGraph.ts"
import type { PartOutcome, PartState, PartStatus, StartOptions, StopOptions } from "./partsModel.ts"
import { Control, noSpan, type Stopping, Tracker } from "./partsTracker.ts"
import * as Walk from "./partsWalk.ts"

type OnEvent = ((event: ServiceEvent) => Effect.Effect<void>) | undefined

/** A stop that runs, in milliseconds of the monotonic clock. */
interface Stop {
  end: number
  readonly hardEnd: number
  readonly walk: Walk.Walk
  readonly onEvent: OnEvent
}

const toMillis = (input: Duration.Input): number => Duration.toMillis(Duration.fromInputUnsafe(input))

/**
 * The types of `Part.make` and `Parts.start` have proven that nothing is missing: what a part needs is provided by those
 * that it depends on, or by whoever starts it. A list of parts of different types cannot carry the proof, so this is the
 * one place where it is claimed.
 */
const proven = (context: Context.Context<never>): Context.Context<unknown> =>
  Context.makeUnsafe<unknown>(context.mapUnsafe)

/** What every layer is, and Effect's own ways to build one call: its types keep it back. */
interface Buildable {
  readonly build: (
    memoMap: Layer.MemoMap,
    scope: Scope.Scope
  ) => Effect.Effect<Context.Context<never>, unknown, unknown>
}

const isBuildable = (layer: object): layer is Buildable => "build" in layer && typeof layer.build === "function"

/**
 * `Layer.buildWithMemoMap` puts the map into the context that a layer is built in, and into the one that it gives. Here all
 * parts have it already, and for one that is quick that would be a fifth of its start.
 */
const buildOf = (
  layer: Part.Any["layer"],
  memoMap: Layer.MemoMap,
  scope: Scope.Scope
): Effect.Effect<Context.Context<never>, unknown, unknown> =>
  isBuildable(layer) ? layer.build(memoMap, scope) : Layer.buildWithMemoMap(layer, memoMap, scope)

const startError = ({ failure, name }: Part.Any, why: string, cause?: unknown): ServiceError =>
  fromReason(
    failure === "init"
      ? ServiceErrorReason.InitFailed({ part: name, why })
      : ServiceErrorReason.RunFailed({ part: name, why }),
    cause
  )

/** Ends a start. That it is interrupted is no failure; what else went wrong with it, or while it was unwound, is. */
const unbuild = (builder: Fiber.Fiber<unknown, unknown>): Effect.Effect<void> =>
  Effect.uninterruptible(Effect.suspend(() => {
    builder.interruptUnsafe()
    return Effect.flatMap(Fiber.await(builder), (exit) =>
      Exit.isSuccess(exit) || Cause.hasInterruptsOnly(exit.cause)
        ? Effect.void
        : Effect.die(Cause.squash(exit.cause)))
  }))

const endOf = ({ builder, scope }: Node): Effect.Effect<void> => {
  const close = Scope.close(scope, Exit.void)
  return builder === undefined ? close : Effect.andThen(unbuild(builder), close)
}

/** By the numbers of the nodes: what of the weights is on the heaviest way through all that can only stop after them. */
const weightsAfter = (nodes: ReadonlyArray<Node>): ReadonlyArray<number> => {
  const weights: Array<number> = []
  for (const { index, needs } of nodes) {
    let most = 0
    for (const need of needs) most = Math.max(most, need.part.stopWeight + (weights[need.index] ?? 0))
    weights[index] = most
  }
  return weights
}

export interface Life {
  readonly start: (
    services: Context.Context<never>,
    options: StartOptions
  ) => Effect.Effect<Context.Context<unknown>, ServiceError>
  readonly stop: (options: StopOptions) => Effect.Effect<ReadonlyArray<PartOutcome>>
  readonly abandon: Effect.Effect<void>
  readonly status: Effect.Effect<ReadonlyArray<PartStatus>>
}

/** Most parts provide nothing. */
const contextsOf = (nodes: ReadonlyArray<Node>): ReadonlyArray<Context.Context<never>> => {
  const contexts: Array<Context.Context<never>> = []
  for (const { context } of nodes) if (context.mapUnsafe.size > 0) contexts.push(context)
  return contexts
}

const tell = (onEvent: OnEvent, event: ServiceEvent): Effect.Effect<void> =>
  onEvent === undefined ? Effect.void : Effect.ignoreCause(Effect.suspend(() => onEvent(event)))

export const make = (nodes: ReadonlyArray<Node>, clock: Clock.Clock): Life => {
  const now = (): number => Walk.monotonic(clock)
  const made = now()
  for (const node of nodes) node.since = made
  /** The answer is how long it was in the state before. */
  const enter = (node: Node, state: PartState, time: number): number => {
    const took = time - node.since
    node.state = state
    node.since = time
    return took
  }
  const doing = (node: Node): string => node.control?.doing(clock.currentTimeNanosUnsafe()) ?? noSpan

  // The start that has begun, and the stop that has.
  let starting: Walk.Walk | undefined
  let tracker: Tracker | undefined
  let stopped: Deferred.Deferred<ReadonlyArray<PartOutcome>> | undefined
  let stopping: Stop | undefined
  let abandoned = false

  const stops: Stopping<Node> = {
    extendStop: (node) => (by) =>
      Effect.suspend(() => {
        const stop = stopping
        if (stop === undefined || node.state !== "stopping") return Effect.succeed(Duration.zero)
        const farthest = Math.min(node.cap, stop.hardEnd - node.reserve)
        const deadline = Math.max(node.deadline, Math.min(now() + toMillis(by), farthest))
        const granted = Duration.millis(deadline - node.deadline)
        if (Duration.isZero(granted)) return Effect.succeed(granted)
        node.deadline = deadline
        stop.end = Math.max(stop.end, deadline + node.reserve)
        stop.walk.rouse()
        return Effect.as(tell(stop.onEvent, { _tag: "BudgetExtended", part: node.part.name, by: granted }), granted)
      }),
    timeLeft: (node) =>
      Effect.sync(() =>
        node.state === "stopping" ? Option.some(Duration.millis(Math.max(0, node.deadline - now()))) : Option.none()
      )
  }

  /** What builds a part, in a fiber of its own. */
  const builderWith = (services: Context.Context<never>, memoMap: Layer.MemoMap) => {
    const tracer = Context.get(services, Tracer.Tracer)
    const isTimed = Context.get(services, References.TracerTimingEnabled)
    const all = tracker = new Tracker(tracer, isTimed, Context.getOrUndefined(services, Part.PartControl))
    const ours = Context.make(Tracer.Tracer, all).pipe(Context.add(Layer.CurrentMemoMap, memoMap))
    const base = proven(Context.merge(Context.omit(Tracer.ParentSpan)(services), ours))
    const run = Effect.runForkWith(services)
    return (node: Node): Fiber.Fiber<Context.Context<never>, unknown> => {
      const { needs, part: { layer, name }, scope } = node
      const control = node.control = new Control(name, node, stops, all)
      const provided = contextsOf(needs)
      // Shared by all that are given nothing: what a fiber looks up in a context is kept with it.
      const own = provided.length === 0
        ? base
        // A tracer that one of them provides must not hide from us what the part does, nor a map what layers share.
        : Context.mergeAll(base, ...provided, ours)
      const context = Context.add(own, Part.PartControl, control)
      const built = Effect.withFiber<Context.Context<never>, unknown, unknown>((fiber) => {
        node.builder = fiber
        // One that fails has released by itself what it had.
        return buildOf(layer, memoMap, scope)
      })
      // A span that nobody is told of would be most of what it takes to start a part that is quick.
      if (tracer === Tracer.nativeTracer) return Effect.runForkWith(context)(built)
      return run(Effect.useSpan("Part.start", { attributes: { part: name } }, (span) => {
        control.parent = span
        const grown = Effect.sync(() => {
          control.parent = undefined
        })
        return Effect.ensuring(Effect.updateContext(built, () => context), grown)
      }))
    }
  }

  const start = (services: Context.Context<never>, options: StartOptions) =>
    Effect.uninterruptibleMask((restore): Effect.Effect<Context.Context<unknown>, ServiceError> => {
      if (starting !== undefined || stopped !== undefined) return Effect.die("parts are started once")
      const { onEvent, rollbackBudget = "10 seconds", startWithin: longest } = options
      const memoMap = Layer.CurrentMemoMap.forkOrCreate(services)
      const build = builderWith(services, memoMap)
      let failure: ServiceError | undefined
      const failed = (node: Node, error: ServiceError, took: Duration.Duration): Effect.Effect<void> => {
        failure ??= error
        return tell(onEvent, { _tag: "PartFailed", part: node.part.name, took, why: explain(error) })
      }
      starting = Walk.make<Node, Context.Context<never>, unknown>({
        nodes,
        after: ({ needs }) => needs,
        before: ({ neededBy }) => neededBy,
        now,
        visit: (node, time) => {
          enter(node, "starting", time)
          const { startWithin = longest } = node.part
          if (startWithin !== undefined) node.deadline = node.since + toMillis(startWithin)
          return build(node)
        },
        deadline: (node) => node.deadline,
        ended: (node, exit, time) => {
          // A stop that has begun in the meantime sees to it.
          if (node.state !== "starting") return undefined
          node.builder = undefined
          if (Exit.isSuccess(exit)) {
            node.context = exit.value
            const took = enter(node, "running", time)
            return onEvent === undefined
              ? undefined
              : tell(onEvent, { _tag: "PartStarted", part: node.part.name, took: Duration.millis(took) })
          }
          const error = Cause.squash(exit.cause)
          return failed(
            node,
            error instanceof ServiceError ? error : startError(node.part, explain(error), exit.cause),
            Duration.millis(enter(node, "failed", time))
          )
        },
        overdue: (node, _, time) => {
          const took = Duration.millis(time - node.since)
          const why = `it has not started within ${toTheMilli(took)}; it was doing: ${doing(node)}`
          return failed(node, startError(node.part, why), took)
        },
        halted: () => failure !== undefined || stopped !== undefined
      })
      return Effect.flatMap(Effect.exit(restore(starting.run)), (exit) => {
        if (Exit.isSuccess(exit) && failure === undefined && stopped === undefined) {
          const all = Context.mergeAll(...contextsOf(nodes), Context.make(Layer.CurrentMemoMap, memoMap))
          return Effect.succeed(proven(all))
        }
        return stop({ budget: rollbackBudget, onEvent }).pipe(
          Effect.andThen(exit),
          Effect.andThen(Effect.suspend(() => failure ?? Effect.interrupt))
        )
      })
    })

  const stopAll = (services: Context.Context<never>, options: StopOptions) => {
    const { onEvent } = options
    const tracer = Context.get(services, Tracer.Tracer)
    const tracked = tracker === undefined ? services : Context.add(services, Tracer.Tracer, tracker)
    const run = Effect.runForkWith(services)
    const began = now()
    const budget = toMillis(options.budget)
    const walked = nodes.filter((node) => node.state === "starting" || node.state === "running")
    const weights = weightsAfter(walked)
    const outcomes: Array<PartOutcome> = []
    const abandon = (node: Node, took: Duration.Duration, at: string): Effect.Effect<void> => {
      const { name } = node.part
      enter(node, "abandoned", now())
      outcomes.push({ _tag: "Abandoned", name, took, doing: at })
      return tell(onEvent, { _tag: "PartAbandoned", part: name, took, doing: at })
    }
    const walk = Walk.make<Node, void, never>({
      nodes: walked,
      after: ({ neededBy }) => neededBy,
      before: ({ needs }) => needs,
      now,
      visit: (node, time) => {
        const { control, part: { name, stopWeight, stopWithin } } = node
        const left = (stopping?.end ?? time) - time
        const rest = weights[node.index] ?? 0
        const granted = toMillis(share(left, rest === 0 ? [stopWeight] : [stopWeight, rest]))
        node.cap = time + (stopWithin === undefined ? Infinity : toMillis(stopWithin))
        node.deadline = Math.min(time + granted, node.cap)
        node.reserve = granted === Infinity ? 0 : Math.max(0, left - granted)
        enter(node, "stopping", time)
        const end = endOf(node)
        const context = control === undefined ? tracked : Context.add(tracked, Part.PartControl, control)
        if (tracer === Tracer.nativeTracer) return Effect.runForkWith(context)(end)
        return run(
          Effect.useSpan(
            "Part.stop",
            { attributes: { part: name } },
            (span) => Effect.updateContext(end, () => Context.add(context, Tracer.ParentSpan, span))
          )
        )
      },
      deadline: (node) => node.deadline,
      ended: (node, exit, time) => {
        const took = Duration.millis(enter(node, "stopped", time))
        const { name } = node.part
        if (Exit.isSuccess(exit)) {
          outcomes.push({ _tag: "Stopped", name, took })
          return onEvent === undefined ? undefined : tell(onEvent, { _tag: "PartStopped", part: name, took })
        }
        outcomes.push({ _tag: "Failed", name, took, cause: exit.cause })
        return tell(onEvent, { _tag: "PartFailed", part: name, took, why: explain(exit.cause) })
      },
      overdue: (node, fiber, time) => {
        // Before: what can be interrupted has ended afterwards.
        const at = doing(node)
        fiber.interruptUnsafe()
        return abandon(node, Duration.millis(time - node.since), at)
      },
      halted: () => abandoned
    })
    const hardEnd = began + Math.max(budget, toMillis(options.hardCap ?? budget))
    stopping = { end: began + budget, hardEnd, walk, onEvent }
    // Only when it was abandoned. From the front of the stop: whom a part waits for is still what it was.
    const giveUp = (node: Node): Effect.Effect<void> => {
      if (node.state === "stopping") return abandon(node, Duration.millis(now() - node.since), doing(node))
      if (node.state === "stopped" || node.state === "abandoned") return Effect.void
      const others = new Set(node.neededBy.filter(({ state }) => state === "abandoned").map(({ part }) => part.name))
      // Its stop begins all the same, but nobody waits for it any more.
      return Effect.andThen(
        Effect.forkDetach(endOf(node), { startImmediately: true }),
        abandon(node, Duration.zero, `has not begun to stop: waits for ${[...others].join(", ")}`)
      )
    }
    return walk.run.pipe(
      Effect.andThen(Effect.forEach(walked.toReversed(), giveUp, { discard: true })),
      Effect.map(() => {
        stopping = undefined
        return outcomes
      })
    )
  }

  const stop = (options: StopOptions): Effect.Effect<ReadonlyArray<PartOutcome>> =>
    Effect.uninterruptibleMask((restore) => {
      if (stopped !== undefined) return restore(Deferred.await(stopped))
      const outcomes = Deferred.makeUnsafe<ReadonlyArray<PartOutcome>>()
      stopped = outcomes
      starting?.rouse()
      return Effect.contextWith((services: Context.Context<never>) => stopAll(services, options)).pipe(
        Effect.exit,
        Effect.map((exit) => Deferred.doneUnsafe(outcomes, exit)),
        Effect.forkDetach({ startImmediately: true }),
        Effect.andThen(restore(Deferred.await(outcomes)))
      )
    })

  return {
    start,
    stop,
    abandon: Effect.sync(() => {
      if (stopping === undefined) return
      abandoned = true
      stopping.walk.rouse()
    }),
    status: Effect.sync(() =>
      nodes.map((node): PartStatus => {
        const { part: { name }, state } = node
        const since = Duration.millis(Math.max(0, now() - node.since))
        return state === "starting" || state === "stopping"
          ? { name, state, since, doing: doing(node) }
          : { name, state, since }
      })
    )
  }
}
