/** The life of the parts of one service: started once, stopped once, whatever comes in between. */
import * as Cause from "effect/Cause"
import type * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { identity } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import { share } from "../../lifecycle/StopBudget.ts"
import * as Part from "../Part.ts"
import type { ServiceEvent } from "../Phase.ts"
import { explain, fromReason, ServiceError, ServiceErrorReason } from "../ServiceError.ts"
import type { PartOutcome, PartState, PartStatus, StartOptions, StopOptions } from "./partsModel.ts"
import { Tracker } from "./partsTracker.ts"
import * as Walk from "./partsWalk.ts"

type OnEvent = ((event: ServiceEvent) => Effect.Effect<void>) | undefined

interface Node {
  readonly part: Part.Any
  readonly needs: ReadonlyArray<Node>
  readonly neededBy: Array<Node>
  readonly scope: Scope.Closeable
  state: PartState
  /** When it came into its state. */
  since: number
  /** What it provides, once it is there. */
  context: Context.Context<never>
  tracker: Tracker | undefined
  /** Builds its layer. */
  builder: Fiber.Fiber<unknown, unknown> | undefined
  /** When it is no longer waited for. */
  deadline: number
  /** While it stops: how far the deadline may move, and the time that those after it need. */
  cap: number
  reserve: number
}

/** A stop that runs, in milliseconds of the monotonic clock. */
interface Stop {
  end: number
  readonly hardEnd: number
  readonly walk: Walk.Walk
  readonly onEvent: OnEvent
}

const toMillis = (input: Duration.Input): number => Duration.toMillis(Duration.fromInputUnsafe(input))

const link = (order: ReadonlyArray<Part.Any>): ReadonlyArray<Node> => {
  const nodes = new Map<Part.Any, Node>()
  for (const part of order) {
    // Those that it depends on come before it.
    const needs = part.dependsOn.flatMap((dependency) => nodes.get(dependency) ?? [])
    const node: Node = {
      part,
      needs,
      neededBy: [],
      scope: Scope.makeUnsafe(),
      state: "waiting",
      since: 0,
      context: Context.empty(),
      tracker: undefined,
      builder: undefined,
      deadline: Infinity,
      cap: Infinity,
      reserve: 0
    }
    for (const need of needs) need.neededBy.push(node)
    nodes.set(part, node)
  }
  return [...nodes.values()]
}

/**
 * The types of `Part.make` and `Parts.start` have proven that nothing is missing: what a part needs is provided by those
 * that it depends on, or by whoever starts it. A list of parts of different types cannot carry the proof, so this is the
 * one place where it is claimed.
 */
const proven = (context: Context.Context<never>): Context.Context<unknown> =>
  Context.makeUnsafe<unknown>(context.mapUnsafe)

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

/** What of the weights is on the heaviest way from a part through all that can only stop after it. */
const weightsAfter = (nodes: ReadonlyArray<Node>): ReadonlyMap<Node, number> => {
  const weights = new Map<Node, number>()
  for (const node of nodes) {
    weights.set(node, Math.max(0, ...node.needs.map((need) => need.part.stopWeight + (weights.get(need) ?? 0))))
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

export const make = (order: ReadonlyArray<Part.Any>, clock: Clock.Clock): Life => {
  const nodes = link(order)
  const now = (): number => Walk.monotonic(clock)
  /** The answer is how long it was in the state before. */
  const enter = (node: Node, state: PartState, time: number): number => {
    const took = time - node.since
    node.state = state
    node.since = time
    return took
  }
  const doing = (node: Node): string =>
    node.tracker?.doing(clock.currentTimeNanosUnsafe()) ?? "nothing that a span tells"
  const tell = (onEvent: OnEvent, event: ServiceEvent): Effect.Effect<void> =>
    onEvent === undefined ? Effect.void : Effect.ignoreCause(onEvent(event))

  // The start that has begun, and the stop that has.
  let starting: Walk.Walk | undefined
  let stopped: Deferred.Deferred<ReadonlyArray<PartOutcome>> | undefined
  let stopping: Stop | undefined
  let abandoned = false

  const extendStop = (node: Node) => (by: Duration.Input): Effect.Effect<Duration.Duration> =>
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
    })

  const control = (node: Node): Context.Service.Shape<typeof Part.PartControl> => ({
    name: node.part.name,
    extendStop: extendStop(node),
    timeLeft: Effect.sync(() =>
      node.state === "stopping" ? Option.some(Duration.millis(Math.max(0, node.deadline - now()))) : Option.none()
    )
  })

  /** What builds a part, in a fiber of its own. */
  const builderWith = (services: Context.Context<never>) => {
    const memoMap = Layer.CurrentMemoMap.forkOrCreate(services)
    const given = proven(Context.omit(Tracer.ParentSpan)(services))
    const tracer = Context.get(services, Tracer.Tracer)
    const isTimed = Context.get(services, References.TracerTimingEnabled)
    const outer = Option.getOrUndefined(Context.getOption(services, Tracer.ParentSpan))
    const run = Effect.runForkWith(services)
    return (node: Node): Fiber.Fiber<Context.Context<never>, unknown> => {
      const { layer, name } = node.part
      const tracker = node.tracker = new Tracker(tracer, isTimed, outer)
      const own = node.needs.length === 0
        ? given
        : Context.mergeAll(given, ...node.needs.map((need) => need.context))
      const context = Context.add(Context.add(own, Tracer.Tracer, tracker), Part.PartControl, control(node))
      const built = Effect.withFiber<Context.Context<never>, unknown, unknown>((fiber) => {
        node.builder = fiber
        return Effect.onExit(Layer.buildWithMemoMap(layer, memoMap, node.scope), (exit) => {
          tracker.parent = undefined
          return Exit.isSuccess(exit) ? Effect.void : Scope.close(node.scope, exit)
        })
      })
      // A span that nobody is told of would be most of what it takes to start a part that is quick.
      if (tracer === Tracer.nativeTracer) return Effect.runForkWith(context)(built)
      return run(Effect.useSpan("Part.start", { attributes: { part: name } }, (span) => {
        tracker.parent = span
        return Effect.updateContext(built, () => context)
      }))
    }
  }

  const start = (services: Context.Context<never>, options: StartOptions) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.gen(function*() {
        if (starting !== undefined || stopped !== undefined) return yield* Effect.die("parts are started once")
        const { onEvent, rollbackBudget = "10 seconds", startWithin: longest } = options
        const build = builderWith(services)
        let failure: ServiceError | undefined
        const failed = (node: Node, error: ServiceError, took: Duration.Duration): Effect.Effect<void> => {
          failure ??= error
          return tell(onEvent, { _tag: "PartFailed", part: node.part.name, took, why: explain(error) })
        }
        starting = Walk.make<Node, Context.Context<never>, unknown>({
          nodes,
          after: (node) => node.needs,
          visit: (node, time) => {
            enter(node, "starting", time)
            const { startWithin = longest } = node.part
            if (startWithin !== undefined) node.deadline = node.since + toMillis(startWithin)
            return build(node)
          },
          deadline: (node) => node.deadline,
          ended: (node, exit, time) => {
            // A stop that has begun in the meantime sees to it.
            if (node.state !== "starting") return Effect.void
            node.builder = undefined
            if (Exit.isSuccess(exit)) {
              node.context = exit.value
              const took = Duration.millis(enter(node, "running", time))
              return tell(onEvent, { _tag: "PartStarted", part: node.part.name, took })
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
            const why = `it has not started within ${Duration.format(took)}; it was doing: ${doing(node)}`
            return failed(node, startError(node.part, why), took)
          },
          halted: () => failure !== undefined || stopped !== undefined
        })
        const exit = yield* Effect.exit(restore(starting.run))
        const isComplete = Exit.isSuccess(exit) && failure === undefined && stopped === undefined
        if (isComplete) return proven(Context.mergeAll(...nodes.map((node) => node.context)))
        yield* stop({ budget: rollbackBudget, onEvent })
        yield* exit
        return yield* failure ?? Effect.interrupt
      })
    )

  const stopAll = Effect.fnUntraced(function*(options: StopOptions) {
    const { onEvent } = options
    const run = Effect.runForkWith(yield* Effect.context())
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
      after: (node) => node.neededBy,
      visit: (node, time) => {
        const { name, stopWeight, stopWithin } = node.part
        const { builder, tracker } = node
        const left = (stopping?.end ?? time) - time
        const rest = weights.get(node) ?? 0
        const granted = toMillis(share(left, rest === 0 ? [stopWeight] : [stopWeight, rest]))
        node.cap = time + (stopWithin === undefined ? Infinity : toMillis(stopWithin))
        node.deadline = Math.min(time + granted, node.cap)
        node.reserve = granted === Infinity ? 0 : Math.max(0, left - granted)
        enter(node, "stopping", time)
        const close = Scope.close(node.scope, Exit.void)
        const end = builder === undefined ? close : Effect.andThen(unbuild(builder), close)
        return run(end.pipe(
          tracker === undefined ? identity : Effect.withTracer(tracker),
          Effect.withSpan("Part.stop", { attributes: { part: name } }, { captureStackTrace: false })
        ))
      },
      deadline: (node) => node.deadline,
      ended: (node, exit, time) => {
        const took = Duration.millis(enter(node, "stopped", time))
        const { name } = node.part
        if (Exit.isSuccess(exit)) {
          outcomes.push({ _tag: "Stopped", name, took })
          return tell(onEvent, { _tag: "PartStopped", part: name, took })
        }
        outcomes.push({ _tag: "Failed", name, took, cause: exit.cause })
        return tell(onEvent, { _tag: "PartFailed", part: name, took, why: explain(exit.cause) })
      },
      overdue: (node, fiber, time) => {
        fiber.interruptUnsafe()
        return abandon(node, Duration.millis(time - node.since), doing(node))
      },
      halted: () => abandoned
    })
    const hardEnd = began + Math.max(budget, toMillis(options.hardCap ?? budget))
    stopping = { end: began + budget, hardEnd, walk, onEvent }
    yield* walk.run
    // Only when it was abandoned. From the front of the stop: whom a part waits for is still what it was.
    for (const node of walked.toReversed()) {
      if (node.state === "stopping") yield* abandon(node, Duration.millis(now() - node.since), doing(node))
      else if (node.state === "running") {
        const others = new Set(node.neededBy.filter(({ state }) => state === "abandoned").map(({ part }) => part.name))
        // Its stop begins all the same, but nobody waits for it any more.
        yield* Effect.forkDetach(Scope.close(node.scope, Exit.void), { startImmediately: true })
        yield* abandon(node, Duration.zero, `has not begun to stop: waits for ${[...others].join(", ")}`)
      }
    }
    stopping = undefined
    return outcomes
  })

  const stop = (options: StopOptions): Effect.Effect<ReadonlyArray<PartOutcome>> =>
    Effect.uninterruptibleMask((restore) => {
      if (stopped !== undefined) return restore(Deferred.await(stopped))
      const outcomes = Deferred.makeUnsafe<ReadonlyArray<PartOutcome>>()
      stopped = outcomes
      starting?.rouse()
      return stopAll(options).pipe(
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
