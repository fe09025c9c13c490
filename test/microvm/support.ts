import type { MicroVmError } from "effect-microvm-runtime/microvm"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
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
