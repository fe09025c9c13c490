/** What the handlers of all commands share. */
import * as Flag from "effect/cli/Flag"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Ref from "effect/Ref"
import * as Result from "effect/Result"
import * as Stdio from "effect/Stdio"
import * as ExitCode from "../../lifecycle/ExitCode.ts"
import * as Printable from "../../lifecycle/Printable.ts"
import { orSignal } from "../HostSignals.ts"
import { say } from "../Reporter.ts"

interface Ending {
  readonly code: number
  /** May the exit wait for whoever reads our output? Not when we are being ended. */
  readonly patient: boolean
  /** Was a command run in a machine, from the start to the end? Then most of this program was executed. */
  readonly isWhole: boolean
}

/** How the edge is to exit. The last that was set counts. */
export class ExitWith extends Context.Service<ExitWith, Ref.Ref<Ending>>()("effect-microvm-runtime/cli/ExitWith") {
  static readonly layer = Layer.effect(ExitWith, Ref.make<Ending>({ code: 0, patient: true, isWhole: false }))
}

export const exitWith = (code: number, { isWhole = false, patient = true } = {}) =>
  Effect.flatMap(ExitWith, (ref) => Ref.set(ref, { code, patient, isWhole }))

/** For commands that have nothing of their own to end in order: the first signal interrupts them. */
export const untilSignal = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.flatMap(
    orSignal(self),
    (result) =>
      Result.isSuccess(result) ? Effect.void : exitWith(ExitCode.fromSignal(result.failure), { patient: false })
  )

const write = (text: string) => Effect.flatMap(Stdio.Stdio, (stdio) => say(stdio.stdout(), `${text}\n`))

/** What is told on stdout. What of it others have chosen does not steer the terminal. */
export const print = (text: string) => write(Printable.lines(text))

/** The same for programs. */
export const printJson = (value: unknown) => write(Printable.json(value))

export const jsonFlag = Flag.Boolean("json").pipe(
  Flag.withDefault(false),
  Flag.withDescription("Print the result as JSON on stdout")
)
