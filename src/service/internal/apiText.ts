/** What others send, made fit to be shown: no secret, no control character, not longer than a person reads. */
import * as Redacted from "effect/Redacted"
import * as Printable from "../../lifecycle/Printable.ts"

const mark = "<redacted>"

/** Shorter ones occur in any text by chance. */
const shortest = 4

/**
 * Replaces every value in a text, as it is and as a JSON string has it. Longer ones come first: one may be part of another.
 */
export const conceal = (text: string, secrets: ReadonlyArray<Redacted.Redacted>): string =>
  secrets
    .map(Redacted.value)
    .flatMap((value) => value.length < shortest ? [] : [value, JSON.stringify(value).slice(1, -1)])
    .toSorted((left, right) => right.length - left.length)
    .reduce((concealed, value) => concealed.replaceAll(value, mark), text)

/** Bounds a text and replaces what would steer a terminal. Line breaks stay. */
export const printable = (text: string, longest: number): string => {
  const shown = Printable.lines(text.slice(0, longest).toWellFormed())
  return text.length > longest ? `${shown}… (${text.length} characters)` : shown
}

/** The last thing that a chain of causes says: `fetch failed` hides `connect ECONNREFUSED 127.0.0.1:80`. */
export const rootMessage = (error: unknown): string | undefined => {
  let said: string | undefined
  let cause = error
  for (let depth = 0; depth < 8 && cause instanceof Error; depth++) {
    const code = "code" in cause && typeof cause.code === "string" ? cause.code : undefined
    said = cause.message === "" ? code ?? said : cause.message
    cause = cause.cause
  }
  return said
}
