import type { MicroVmError } from "effect-microvm-runtime/microvm"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Scheduler from "effect/Scheduler"
import { TestClock } from "effect/testing"

/** What a call needs to be made of; the kernel is never read. */
export const wanted = (id: string) => ({ id, kernel: "/boot/vmlinux" })

export const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

export const isDone = <A, E>(fiber: Fiber.Fiber<A, E>): boolean => fiber.pollUnsafe() !== undefined

/** The reason for which an effect fails; `undefined` when it fails by another error. */
export const reason = <A, E, R>(
  effect: Effect.Effect<A, E | MicroVmError.MicroVmError, R>
): Effect.Effect<MicroVmError.Reason | undefined, A, R> =>
  Effect.map(
    Effect.flip(effect),
    (error) => typeof error === "object" && error !== null && "reason" in error ? error.reason : undefined
  )

/** Lets all that can run now run: what a chain of fibers does next may take many turns. */
export const quiet: Effect.Effect<void> = Effect.repeat(Effect.yieldNow, { times: 100 }).pipe(Effect.asVoid)

/** Lets virtual time pass once all who mean to sleep do. */
export const pass = (time: Duration.Input): Effect.Effect<void> => Effect.andThen(quiet, TestClock.adjust(time))

/**
 * Lets others run after each single operation, as happens anywhere to who has run for long: what is between two of them comes
 * to light.
 */
class StepByStep extends Scheduler.MixedScheduler {
  override shouldYield(fiber: Fiber.Fiber<unknown, unknown>): boolean {
    // Of a turn, the first two only get it going again.
    return fiber.currentOpCount >= 3
  }
}
export const stepByStep = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.provideService(effect, Scheduler.Scheduler, new StepByStep())

/** Comes back once others have had so many turns, whatever the scheduler. */
export const turns = (count: number): Effect.Effect<void> =>
  Effect.yieldNow.pipe(
    Effect.repeat({ times: count }),
    Effect.provideService(Scheduler.PreventSchedulerYield, true),
    Effect.asVoid
  )
