import * as Cause from "effect/Cause"
import type * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Metric from "effect/Metric"

/** From a machine that is ready to one whose guest is emulated, in seconds. */
export const boundaries: ReadonlyArray<number> = [
  0.001,
  0.0025,
  0.005,
  0.01,
  0.025,
  0.05,
  0.1,
  0.25,
  0.5,
  1,
  2.5,
  5,
  10,
  30,
  60
]

export const secondsSince = (clock: Clock.Clock, begun: bigint): number =>
  Number(clock.currentTimeNanosUnsafe() - begun) / 1e9

/** Counts and times the launches of a backend; those that are called off are neither. */
export const measured = (attributes: { readonly backend: string; readonly start: "boot" | "snapshot" }) =>
<A, E, R>(
  launch: Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  Effect.clockWith((clock) => {
    const begun = clock.currentTimeNanosUnsafe()
    return Effect.onExit(launch, (exit) =>
      Effect.contextWith((context) =>
        Effect.sync(() => {
          if (Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)) return
          const failures = Metric.counter("microvm.launch.failures", {
            description: "Launches of a machine that have failed.",
            attributes,
            incremental: true
          })
          const seconds = Metric.histogram("microvm.launch.seconds", {
            description: "How long launches took that have worked, until the machine can be started or resumed.",
            attributes: { ...attributes, unit: "seconds" },
            boundaries
          })
          // Also where it is none, so that there is a series before the first one.
          failures.updateUnsafe(Exit.isFailure(exit) ? 1 : 0, context)
          if (Exit.isSuccess(exit)) seconds.updateUnsafe(secondsSince(clock, begun), context)
        })
      ))
  })
