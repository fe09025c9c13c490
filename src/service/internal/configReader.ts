/** Reads variables one by one and keeps all that is wrong with them. */
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import { type Parse, withoutSecrets } from "./configValues.ts"

export type Env = Readonly<Record<string, string | undefined>>

/** More of a value helps nobody. */
const longest = 80

export interface Reader {
  readonly faults: ReadonlyArray<string>
  readonly fault: (text: string) => void
  /** The text as it is, empty too. */
  readonly raw: (name: string) => string | undefined
  /** Set but empty is a fault. */
  readonly read: <A>(name: string, parse: Parse<A>) => Option.Option<A>
  /** Set but empty is as good as unset, as the specification of the variable says. */
  readonly readForeign: <A>(name: string, parse: Parse<A>) => Option.Option<A>
}

/**
 * @param secret names of the variables whose values are never shown, not even where another variable holds them.
 */
export const make = (env: Env, secret: ReadonlyArray<string>): Reader => {
  const faults: Array<string> = []
  const raw = (name: string): string | undefined => Object.hasOwn(env, name) ? env[name] : undefined
  // The whole, and what stands behind the = in a list of pairs.
  const secrets = secret
    .flatMap((
      name
    ) => [raw(name) ?? "", ...(raw(name) ?? "").split(",").map((pair) => pair.slice(pair.indexOf("=") + 1))])
    .map((text) => text.trim())
    .filter((text) => text !== "")

  const show = (name: string, text: string): string => {
    if (secret.includes(name) || secrets.some((value) => text.includes(value))) return ""
    const plain = withoutSecrets(text)
    return `=${JSON.stringify(plain.length > longest ? `${plain.slice(0, longest)}…` : plain)}`
  }

  const readSet = <A>(name: string, text: string, parse: Parse<A>): Option.Option<A> => {
    const result = parse(text)
    if (Result.isSuccess(result)) return Option.some(result.success)
    for (const fault of [result.failure].flat()) faults.push(`${name}${show(name, text)} ${fault}`)
    return Option.none()
  }

  return {
    faults,
    fault: (text) => faults.push(text),
    raw,
    read: (name, parse) => {
      const text = raw(name)
      if (text === undefined) return Option.none()
      if (text !== "") return readSet(name, text, parse)
      faults.push(`${name} is set but empty: give it a value, or unset it`)
      return Option.none()
    },
    readForeign: (name, parse) => {
      const text = raw(name)
      return text === undefined || text === "" ? Option.none() : readSet(name, text, parse)
    }
  }
}
