/** Why a service stops, and what that means for who started it. */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type { ServiceReason } from "../../lifecycle/ExitCode.ts"
import type { Signal } from "../../lifecycle/Signal.ts"
import type { Phase } from "../Phase.ts"
import { explain, fromReason, type ServiceError, ServiceErrorReason } from "../ServiceError.ts"
import * as StopLadder from "./stopLadder.ts"

/** Why a service stops. */
export type Why =
  | { readonly _tag: "Ended" }
  | { readonly _tag: "Signal"; readonly signal: Signal }
  | { readonly _tag: "Failed"; readonly error: ServiceError }
  | { readonly _tag: "Defect"; readonly cause: Cause.Cause<unknown> }
  | { readonly _tag: "Interrupted" }

/** A program that interrupts itself, for one by joining a fiber that was, has a defect. */
export const whyOf = (exit: Exit.Exit<Why, ServiceError>): Why => {
  if (Exit.isSuccess(exit)) return exit.value
  const error = Cause.findErrorOption(exit.cause)
  return Option.isSome(error) && !Cause.hasDies(exit.cause)
    ? { _tag: "Failed", error: error.value }
    : { _tag: "Defect", cause: exit.cause }
}

/** Of a part that died while it started; the error says which. What a task does is up to its supervision. */
const defectOf = ({ cause, reason }: ServiceError): Cause.Cause<unknown> | undefined =>
  reason._tag !== "TaskFailed" && Cause.isCause(cause) && Cause.hasDies(cause) &&
    Option.isNone(Cause.findErrorOption(cause))
    ? cause
    : undefined

/** What a phase failed with, a defect included; nothing when it was interrupted. */
export const failureOf = (phase: Phase, cause: Cause.Cause<ServiceError>): ServiceError | undefined =>
  Option.getOrElse(Cause.findErrorOption(cause), () =>
    Cause.hasDies(cause)
      ? fromReason(ServiceErrorReason.RunFailed({ part: phase, why: explain(cause) }), cause)
      : undefined)

/** What a person has to know beside the log: nothing after an orderly end. */
export const tell = (why: Why, left: ReadonlyArray<StopLadder.Leftover>): string | undefined => {
  const defect = why._tag === "Failed" ? defectOf(why.error) : undefined
  const lines = [
    ...(why._tag === "Failed" ? [explain(why.error)] : []),
    ...(defect === undefined ? [] : [Cause.pretty(defect)]),
    ...(why._tag === "Defect" ? [`Defect: ${Cause.pretty(why.cause)}`] : []),
    ...left.map(StopLadder.format)
  ]
  return lines.length === 0 ? undefined : lines.join("\n")
}

export const reasonOf = (why: Why, left: ReadonlyArray<StopLadder.Leftover>): ServiceReason => {
  if (why._tag === "Failed") return defectOf(why.error) === undefined ? why.error.exitReason : "defect"
  if (why._tag === "Defect") return "defect"
  if (left.some(({ _tag }) => _tag === "Abandoned")) return "budgetPassed"
  if (left.length > 0) return "finalizerFailed"
  return why._tag === "Ended" ? "ended" : "stopped"
}

/** Interrupts the main program, unless it ended first. What it fails with then is a failure of the stop. */
export const unwound = (main: Fiber.Fiber<Why, ServiceError>, asked: Why): Effect.Effect<void, ServiceError> =>
  asked._tag !== "Signal" && main.pollUnsafe() !== undefined
    ? Effect.void
    : Effect.flatMap(
      Effect.andThen(Effect.sync(() => main.interruptUnsafe()), Fiber.await(main)),
      (exit) =>
        Exit.isFailure(exit) && !Cause.hasInterruptsOnly(exit.cause) ? Effect.failCause(exit.cause) : Effect.void
    )
