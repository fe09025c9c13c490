/**
 * A target that does what a script says, for tests of the engine, and a model that says what the engine should answer.
 * The model knows nothing of fibers: it is arithmetic on instants.
 */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { ExitStatus, type ShutdownOutcome, ShutdownPolicy, type Signal } from "../../src/lifecycle/index.ts"
import type { ShutdownTarget } from "../../src/lifecycle/Shutdown.ts"

/** What a stage's request does: end the target after a delay, nothing, fail, or hang for ever. */
export type Reaction =
  | { readonly _tag: "Ends"; readonly after: number }
  | { readonly _tag: "Ignores" }
  | { readonly _tag: "Fails" }
  | { readonly _tag: "Hangs" }

export interface Script {
  /** Ends by itself at this instant, whatever is asked. */
  readonly naturalEnd: number
  /** One for each stage of the policy. */
  readonly reactions: ReadonlyArray<Reaction>
  /** A child that no request reaches. */
  readonly escapee: boolean
  /** The leader has a status although its scope is not empty. */
  readonly leaderGone: boolean
}

export interface Call {
  readonly at: number
  readonly atLeast?: string | undefined
  readonly within?: number | undefined
  readonly interruptedAfter?: number | undefined
}

export const graces = [200, 100, 50] as const

export const policy = ShutdownPolicy.makeUnsafe<Signal.Signal>([
  { name: "INT", request: "SIGINT", grace: graces[0] },
  { name: "TERM", request: "SIGTERM", grace: graces[1] },
  { name: "KILL", request: "SIGKILL", grace: graces[2], force: true }
])

const escapee = { pid: 99, command: "escapee", why: "outside the scope" }
const leader = { pid: 1, command: "leader", why: "still running" }

/** Written so that the instant alone decides what `poll` says: whoever asks at the end's own instant sees the end. */
export const makeTarget = (script: Script): Effect.Effect<ShutdownTarget<Signal.Signal, Error>> =>
  Effect.gen(function*() {
    const ended = yield* Deferred.make<ExitStatus.ExitStatus>()
    let endsAt = script.naturalEnd
    const now = Clock.currentTimeMillis
    const status = ExitStatus.exited(3)
    const endAfter = (delay: number) =>
      Effect.gen(function*() {
        endsAt = Math.min(endsAt, (yield* now) + delay)
        yield* Effect.forkDetach(Effect.delay(Deferred.succeed(ended, status), delay))
      })
    if (Number.isFinite(script.naturalEnd)) yield* endAfter(script.naturalEnd)
    const hasEnded = Effect.map(now, (at) => at >= endsAt)
    return {
      poll: Effect.map(hasEnded, (is) => is ? Option.some(status) : Option.none()),
      ended: Deferred.await(ended),
      request: (signal) => {
        const index = policy.stages.findIndex((stage) => stage.request === signal)
        const reaction = script.reactions[index]
        switch (reaction?._tag) {
          case "Ends":
            return endAfter(reaction.after)
          case "Fails":
            return Effect.fail(new Error(`cannot send ${signal}`))
          case "Hangs":
            return Effect.uninterruptible(Effect.never)
          default:
            return Effect.void
        }
      },
      remains: Effect.map(hasEnded, (is) => ({
        status: is || script.leaderGone ? Option.some(status) : Option.none(),
        survivors: [...(is ? [] : [leader]), ...(script.escapee ? [escapee] : [])]
      }))
    }
  })

export interface Prediction {
  readonly tag: ShutdownOutcome.ShutdownOutcome["_tag"]
  readonly stage: string | undefined
  readonly elapsed: number
  readonly stages: ReadonlyArray<readonly [name: string, after: number, took: number, end: string]>
}

export const predict = (script: Script, calls: ReadonlyArray<Call>): Prediction => {
  const byTime = calls.toSorted((a, b) => a.at - b.at)
  const start = byTime[0]?.at ?? 0
  const last = policy.stages.length - 1
  const stages: Array<readonly [string, number, number, string]> = []
  const name = (index: number): string => policy.stages[index]?.name ?? ""
  const finish = (stage: number | undefined, at: number, ended: boolean): Prediction => {
    const common = { elapsed: at - start, stages }
    if (!ended && !script.leaderGone) return { ...common, tag: "Unkillable", stage: undefined }
    if (!ended || script.escapee) return { ...common, tag: "Survivors", stage: undefined }
    if (stage === undefined) return { ...common, tag: "AlreadyExited", stage: undefined }
    return { ...common, tag: stage === last ? "Forced" : "Graceful", stage: name(stage) }
  }
  if (script.naturalEnd <= start) return finish(undefined, start, true)

  let endsAt = script.naturalEnd
  let floor = 0
  let lastStageBy = Infinity
  let next = 0
  const apply = (call: Call, current: number): void => {
    if (call.atLeast === "next") floor = Math.max(floor, Math.min(current + 1, last))
    else if (call.atLeast !== undefined) {
      floor = Math.max(floor, policy.stages.findIndex((stage) => stage.name === call.atLeast))
    }
    if (call.within !== undefined) lastStageBy = Math.min(lastStageBy, call.at + call.within)
  }
  const first = byTime[next++]
  if (first !== undefined) apply(first, -1)

  let at = start
  for (let index = 0; index <= last; index++) {
    if (index < floor) continue
    const began = at
    const reaction = script.reactions[index]
    if (reaction?._tag === "Ends") endsAt = Math.min(endsAt, began + reaction.after)
    const fails = reaction?._tag === "Fails"
    let end: string | undefined
    while (end === undefined) {
      if (endsAt <= at) end = "ended"
      else if (fails) end = "failed"
      else if (floor > index) end = "hastened"
      else {
        const deadline = began + (graces[index] ?? 0)
        const until = index === last ? deadline : Math.min(deadline, lastStageBy)
        const call = byTime[next]
        const instant = Math.min(endsAt, until, call?.at ?? Infinity)
        at = Math.max(at, instant)
        if (endsAt <= at) end = "ended"
        else if (until <= at) {
          end = until === deadline ? "deadline" : "hastened"
          if (end === "hastened") floor = last
        } else if (call !== undefined) {
          next++
          apply(call, index)
        }
      }
    }
    stages.push([name(index), began - start, at - began, end])
    if (end === "ended") return finish(index, at, true)
  }
  return finish(undefined, at, false)
}
