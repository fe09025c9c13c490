import { expect, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import { Shutdown, type ShutdownOutcome } from "../../src/lifecycle/index.ts"
import {
  type Call,
  makeTarget,
  policy,
  predict,
  type Prediction,
  type Reaction,
  type Script
} from "./ScriptedTarget.ts"

const tens = (from: number, to: number) => Schema.Int.check(Schema.isBetween({ minimum: from, maximum: to }))

const ReactionInput = Schema.Union([
  Schema.Struct({ kind: Schema.Literals(["ends"]), tenths: tens(0, 25) }),
  Schema.Struct({ kind: Schema.Literals(["atDeadline", "ignores", "ignores", "fails", "hangs"]) })
])

const Input = Schema.Struct({
  reactions: Schema.Tuple([ReactionInput, ReactionInput, ReactionInput]),
  /** Over 60: never. */
  naturalEnd: tens(0, 120),
  escapee: Schema.Literals([true, false, false, false]),
  leaderGone: Schema.Boolean,
  calls: Schema.Array(Schema.Struct({
    at: tens(0, 30),
    atLeast: Schema.Literals(["none", "none", "INT", "TERM", "KILL", "next"]),
    within: tens(0, 60),
    interrupted: tens(0, 60)
  })).check(Schema.isMinLength(1), Schema.isMaxLength(5))
})

const grace = [200, 100, 50]

const toScript = (input: typeof Input.Type): Script => ({
  naturalEnd: input.naturalEnd > 60 ? Infinity : input.naturalEnd * 10,
  escapee: input.escapee,
  leaderGone: input.leaderGone,
  reactions: input.reactions.map((reaction, index): Reaction => {
    switch (reaction.kind) {
      case "ends":
        return { _tag: "Ends", after: reaction.tenths * 10 }
      case "atDeadline":
        return { _tag: "Ends", after: grace[index] ?? 0 }
      case "ignores":
        return { _tag: "Ignores" }
      case "fails":
        return { _tag: "Fails" }
      case "hangs":
        return { _tag: "Hangs" }
    }
  })
})

/** Calls come between the tens at which the script acts, each at an instant of its own, so that no two causes tie. */
const toCalls = (input: typeof Input.Type): ReadonlyArray<Call> =>
  input.calls.map((call, index) => ({
    at: call.at * 10 + 1 + index,
    ...(call.atLeast === "none" ? {} : { atLeast: call.atLeast }),
    ...(call.within > 40 ? {} : { within: call.within * 10 }),
    // The first caller in time stays, so that somebody sees the outcome.
    ...(call.interrupted > 30 ? {} : { interruptedAfter: call.interrupted * 10 + 7 })
  }))

const summary = (outcome: ShutdownOutcome.ShutdownOutcome): Prediction => ({
  tag: outcome._tag,
  stage: outcome._tag === "Graceful" || outcome._tag === "Forced" ? outcome.stage : undefined,
  elapsed: Duration.toMillis(outcome.elapsed),
  stages: outcome.stages.map((
    stage
  ) => [stage.name, Duration.toMillis(stage.after), Duration.toMillis(stage.took), stage.end])
})

const execute = Effect.fnUntraced(function*(script: Script, calls: ReadonlyArray<Call>) {
  const trace: Array<string> = []
  const shutdown = yield* Shutdown.make(yield* makeTarget(script), policy, {
    onEvent: (event) => Effect.sync(() => void trace.push(JSON.stringify(event)))
  })
  const callers = yield* Effect.forEach(
    calls,
    (call) =>
      shutdown.run({ atLeast: call.atLeast, within: call.within }).pipe(
        Effect.delay(call.at),
        (effect) =>
          call.interruptedAfter === undefined
            ? Effect.asSome(effect)
            : Effect.timeoutOption(effect, call.at + call.interruptedAfter),
        Effect.forkChild({ startImmediately: true })
      )
  )
  yield* TestClock.adjust("10 seconds")
  const answers = yield* Effect.forEach(callers, Fiber.join)
  // A witness that joins late sees what everybody saw.
  const outcome = yield* shutdown.run()
  return { outcome, answers, trace }
})

it.effect.prop(
  "every run ends as the model says, and all callers see the same",
  [Input],
  ([input]) =>
    Effect.gen(function*() {
      const script = toScript(input)
      const calls = toCalls(input)
      const { answers, outcome } = yield* execute(script, calls)
      expect(summary(outcome)).toEqual(predict(script, calls))
      for (const answer of answers) {
        if (answer._tag === "Some") expect(answer.value).toBe(outcome)
      }
    }).pipe(Effect.provide(TestClock.layer())),
  { arbitrary: { runs: 2000 } }
)

it.effect.prop("the same script gives the same trace", [Input], ([input]) =>
  Effect.gen(function*() {
    const run = Effect.provide(execute(toScript(input), toCalls(input)), TestClock.layer(), { local: true })
    const first = yield* run
    const second = yield* run
    expect(second.trace).toEqual(first.trace)
  }), { arbitrary: { runs: 300 } })
