import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { GuestAgent } from "../../guest/GuestAgent.ts"
import type * as Machine from "../../microvm/Machine.ts"
import * as Watchdog from "../../supervisor/Watchdog.ts"

/** In a row, that do not come. */
const answers = 3

/**
 * Watches the machine of a run and the agent in it, for as long as it runs. `onHang` is told once neither has answered for `silence` at
 * the most; who saves the machine says so by `whileSaving`, as its guest stands still then.
 */
export const watchMachine = () => {
  let saving = 0
  return {
    whileSaving: <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
      Effect.acquireUseRelease(
        Effect.sync(() => void saving++),
        () => effect,
        () => Effect.sync(() => void saving--)
      ),
    watch: (
      { agent, machine }: { readonly agent: Pick<GuestAgent, "ping">; readonly machine: Machine.Machine },
      silence: Duration.Duration,
      onHang: (why: string) => Effect.Effect<void>
    ): Effect.Effect<void> => {
      // Each takes a pause and then an answer's time.
      const part = Duration.times(silence, 1 / (2 * answers))
      // A refusal takes as long as a silence, or the machine would have half of the time.
      const refusal = Duration.subtract(part, Duration.millis(1))
      const ping = Effect.catch(agent.ping, (error) => Effect.delay(Effect.fail(error), refusal))
      return Effect.orDie(Watchdog.watch(machine, {
        checks: [{ name: "agent", check: ping }],
        every: part,
        within: part,
        failures: answers,
        unless: Effect.sync(() => saving > 0),
        onHang: (hang) => onHang(Watchdog.format(hang))
      }))
    }
  }
}
