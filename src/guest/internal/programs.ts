import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as ExitStatus from "../../lifecycle/ExitStatus.ts"
import * as Signal from "../../lifecycle/Signal.ts"
import * as GuestError from "../GuestError.ts"

/** @internal */
export type Env = Readonly<Record<string, string | Redacted.Redacted>>

const maxInputBytes = 16 * 1024 * 1024

/** @internal */
export const reveal = (value: string | Redacted.Redacted): string =>
  Redacted.isRedacted(value) ? Redacted.value(value) : value

/** What cannot be told to the guest: a NUL ends a text there, and half a character has no UTF-8. */
const unfit = (value: string): "NUL" | "half of a surrogate pair" | undefined =>
  value.includes("\0") ? "NUL" : value.isWellFormed() ? undefined : "half of a surrogate pair"

const faultOf = (field: string, value: string): ReadonlyArray<string> => {
  const what = unfit(value)
  return what === undefined ? [] : [`${field} is ${JSON.stringify(value)}: leave out the ${what}`]
}

/**
 * Refuses what no program can be given.
 *
 * @internal
 */
export const check = (program: {
  /** What must be there, by field. */
  readonly names: Readonly<Record<string, string>>
  readonly args: ReadonlyArray<string>
  readonly env?: Env | undefined
  readonly input?: Uint8Array | undefined
}): Effect.Effect<void, GuestError.GuestError> => {
  const { args, env = {}, input, names } = program
  const faults = [
    ...Object.entries(names).flatMap(([field, name]) =>
      name === "" ? [`${field} is empty: give it a name`] : faultOf(field, name)
    ),
    ...args.flatMap((arg, index) => faultOf(`args[${index}]`, arg)),
    ...Object.keys(env).flatMap((name) =>
      /^[^=\0]+$/.test(name) && name.isWellFormed()
        ? []
        : [`env has the name ${JSON.stringify(name)}: use one without = and NUL`]
    ),
    // The value itself is not told, as it may be a secret.
    ...Object.entries(env).flatMap(([name, value]) => {
      const what = unfit(reveal(value))
      return what === undefined ? [] : [`env ${name} has a value with a ${what}: leave it out`]
    }),
    ...(input !== undefined && input.length > maxInputBytes
      ? [`input has ${input.length} bytes: give at most ${maxInputBytes}`]
      : [])
  ]
  return faults.length === 0 ? Effect.void : Effect.fail(GuestError.make(new GuestError.InvalidArgument({ faults })))
}

/**
 * What the guest tells of an end.
 *
 * @internal
 */
export const statusOf = (
  status: { readonly exitcode?: number; readonly signal?: number }
): ExitStatus.ExitStatus => {
  const { exitcode } = status
  // A guest is not trusted: as an exit code of ours, its 256 would read as a success.
  if (exitcode !== undefined) {
    return exitcode >= 0 && exitcode <= 255
      ? ExitStatus.exited(exitcode, "agent")
      : ExitStatus.lost(`the agent told exit code ${exitcode}, which there is not`, "agent")
  }
  if (status.signal === undefined) return ExitStatus.lost("the agent told neither an exit code nor a signal", "agent")
  const signal = Signal.fromNumber(status.signal)
  return signal === undefined
    ? ExitStatus.lost(`killed by signal ${status.signal}, which has no name`, "agent")
    : ExitStatus.signaled(signal, { observedBy: "agent" })
}
