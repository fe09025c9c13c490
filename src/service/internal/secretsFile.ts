import * as Toml from "effect/encoding/Toml"
import * as Result from "effect/Result"

/** Names and values of a file of secrets, or one sentence for each fault. No sentence holds a value. */
export type Parsed = Result.Result<ReadonlyMap<string, string>, ReadonlyArray<string>>

const kindOf = (value: unknown): string =>
  Array.isArray(value)
    ? "an array"
    : value instanceof Date
    ? "a date"
    : typeof value === "object"
    ? "a table"
    : `a ${typeof value}`

/** More of them say nothing new: it is some other file. */
const mostFaults = 20

/**
 * What the parser says without what it quotes from the file: `Invalid value 'hunter2' at line 1, column 12`. The error itself
 * holds the whole text, so it is not passed on.
 */
const withoutQuotes = (message: string): string => {
  const at = / at (line \d+, column \d+)$/.exec(message)?.[1] ?? "somewhere"
  const what = /^[\w ]+/.exec(message)?.[0].replace(/ at line.*$/, "").trim() ?? "not TOML"
  return `${at}: ${what}: write each secret as NAME = "value"`
}

export const parseToml = (text: string): Parsed => {
  const parsed = Toml.parse(text)
  if (Result.isFailure(parsed)) return Result.fail([withoutQuotes(parsed.failure.message)])
  const entries = new Map<string, string>()
  const faults: Array<string> = []
  for (const [name, value] of Object.entries(parsed.success)) {
    if (typeof value === "string") entries.set(name, value)
    else faults.push(`${JSON.stringify(name)} is ${kindOf(value)}, not a string: put its value in quotes, on one level`)
  }
  return faults.length > 0 ? Result.fail(faults.slice(0, mostFaults)) : Result.succeed(entries)
}

const nothing = /[ \t]*(?:#[^\n]*)?(?:\n|$)/y
const name = /[ \t]*(?:export[ \t]+)?([^\s=#"'`]+)[ \t]*=[ \t]*/y
/** Loops are unrolled, for a value may be a megabyte long. */
const quoted = /"([^"\\]*(?:\\[^][^"\\]*)*)"|'([^']*)'|`([^`]*)`/y
const line = /[^\n]*(?:\n|$)/y

const escapes: Readonly<Record<string, string>> = { n: "\n", r: "\r", t: "\t" }

/**
 * `NAME=value` lines, as shells and dotenv read them: values may be in quotes, and then go over several lines; in double
 * quotes `\n`, `\r`, `\t`, `\"` and `\\` are escapes; without quotes a value ends at the end of the line or where a `#` comes
 * after a blank. The last of several lines of one name counts. Nothing is expanded.
 */
export const parseEnv = (source: string): Parsed => {
  const text = source.replace(/^\uFEFF/, "").replace(/\r\n?/g, "\n")
  const entries = new Map<string, string>()
  const faults: Array<string> = []
  let index = 0
  // Lines up to the last fault; counted once, however many faults there are.
  let counted = 0
  let number = 1
  const take = (pattern: RegExp): RegExpExecArray | null => {
    pattern.lastIndex = index
    const match = pattern.exec(text)
    if (match !== null) index += match[0].length
    return match
  }
  while (index < text.length && faults.length < mostFaults) {
    const start = index
    const fault = (what: string): void => {
      for (; counted < start; counted++) {
        if (text.charCodeAt(counted) === 10) number++
      }
      faults.push(`line ${number}: ${what}`)
      take(line)
    }
    if (take(nothing) !== null) continue
    const key = take(name)?.[1]
    if (key === undefined) {
      fault("is no assignment: write NAME=value")
      continue
    }
    const match = take(quoted)
    if (match !== null) {
      const [, double, single, back] = match
      const value = double?.replace(/\\([nrt"\\])/g, (_, char: string) => escapes[char] ?? char) ?? single ?? back ?? ""
      if (take(nothing) === null) {
        fault(`something follows the closing quote of ${key}: put all of the value in the quotes`)
      } else entries.set(key, value)
    } else if (/["'`]/.test(text[index] ?? "")) {
      fault(`the quote after ${key}= is never closed: close it, or put the value in other quotes`)
    } else {
      entries.set(key, (take(line)?.[0] ?? "").replace(/(?:^|[ \t])#.*/, "").trim())
    }
  }
  return faults.length > 0 ? Result.fail(faults) : Result.succeed(entries)
}
