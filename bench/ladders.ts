/** Shutdowns of scripted targets under virtual time. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import { TestClock } from "effect/testing"
import { ExitStatus, Shutdown, ShutdownPolicy } from "../src/lifecycle/index.ts"
import { now, quantile, type Section, verdict } from "./measure.ts"

const ladder = Effect.gen(function*() {
  const ended = yield* Deferred.make<ExitStatus.ExitStatus>()
  const shutdown = yield* Shutdown.make({
    poll: Effect.sync(() => Deferred.isDoneUnsafe(ended) ? Option.some(ExitStatus.signaled("SIGKILL")) : Option.none()),
    ended: Deferred.await(ended),
    request: (signal) => signal === "SIGKILL" ? Deferred.succeed(ended, ExitStatus.signaled(signal)) : Effect.void,
    remains: Effect.succeed({ status: Option.none(), survivors: [] })
  }, ShutdownPolicy.defaults)
  const fiber = yield* Effect.forkChild(shutdown.run(), { startImmediately: true })
  yield* TestClock.adjust("2 seconds")
  return yield* Fiber.join(fiber)
}).pipe(Effect.provide(TestClock.layer(), { local: true }))

export const ladders = async (rounds: number): Promise<Section> => {
  const rates: Array<number> = []
  for (let round = 0; round < rounds; round++) {
    const start = now()
    await Effect.runPromise(Effect.forEach(Array.from({ length: 1000 }), () => ladder, { discard: true }))
    rates.push(1000 / (now() - start) * 1000)
  }
  const rate = quantile(rates, 0.5)
  return {
    title: "Shutdowns under virtual time",
    text: "SIGTERM, two seconds of `TestClock`, SIGKILL, each with a clock of its own.",
    tables: [],
    verdicts: [verdict("≥ 2,000 a second", `${Math.round(rate)} a second`, rate >= 2000)]
  }
}
