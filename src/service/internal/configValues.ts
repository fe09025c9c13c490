/**
 * How the text of a variable becomes a value. A failure, or each of several, completes the sentence `NAME="text" …` and says
 * what to write.
 */
import * as Duration from "effect/Duration"
import * as LogLevel from "effect/LogLevel"
import * as NetAddress from "effect/net/NetAddress"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as DurationText from "../../lifecycle/DurationText.ts"

export type Parse<A, E = string | ReadonlyArray<string>> = (text: string) => Result.Result<A, E>

export const anyText: Parse<string> = Result.succeed

export const oneOf =
  <const Words extends ReadonlyArray<string>>(...words: Words): Parse<Words[number], string> => (text) => {
    const found: Words[number] | undefined = words.find((word) => word === text)
    return found === undefined ? Result.fail(`is not known: write ${words.join(" or ")}`) : Result.succeed(found)
  }

/** Kubernetes sets `<NAME>_PORT=tcp://…` for each of its Services. */
const remedyOfPort = (text: string): string =>
  text.startsWith("tcp://")
    ? "rename the Kubernetes Service that sets it, or set enableServiceLinks: false"
    : "write a number from 0 to 65535"

export const port: Parse<number> = (text) =>
  /^\+?\d+$/.test(text) && Number(text) <= 65_535
    ? Result.succeed(Number(text))
    : Result.fail(`is no port: ${remedyOfPort(text)}`)

export const ip: Parse<string> = (text) =>
  Result.isSuccess(NetAddress.ipFromString(text))
    ? Result.succeed(text)
    : Result.fail("is no IP address: write one as in 127.0.0.1, 0.0.0.0 or ::1, not a host name")

interface Address {
  readonly ip: string
  readonly port: number
}

/** `::` has the addresses of both families, `0.0.0.0` those of one. */
const covers = (one: string, other: string): boolean =>
  one === other || /^[0:]+$/.test(one) || one === "0.0.0.0" && !other.includes(":")

/** Not both can be listened on. */
export const overlap = (one: Address, other: Address): boolean =>
  one.port === other.port && one.port !== 0 && (covers(one.ip, other.ip) || covers(other.ip, one.ip))

export const projectId: Parse<string> = (text) =>
  /^\.{1,2}$/.test(text)
    ? Result.fail("is a relative path, not an id: write the id of the project")
    : Result.succeed(text)

/** Timers of a day are short enough for every clock. */
const longest = Duration.days(1)

export const duration = ({ zero }: { readonly zero: boolean }): Parse<Duration.Duration> => (text) => {
  const parsed = DurationText.parse(text)
  if (Option.isNone(parsed)) return Result.fail("is no duration: write 500ms, 25s or 2m")
  const { value } = parsed
  if (Duration.isZero(value) && !zero) return Result.fail("is too short: write a duration above zero")
  return Duration.isGreaterThan(value, longest)
    ? Result.fail("is too long: write at most 24h")
    : Result.succeed(value)
}

const levels = new Map(LogLevel.values.map((level) => [level.toLowerCase(), level]))

export const logLevel: Parse<LogLevel.LogLevel> = (text) => {
  const level = levels.get(text.toLowerCase())
  return level === undefined
    ? Result.fail(`is no log level: write one of ${LogLevel.values.join(", ")}`)
    : Result.succeed(level)
}

/** Without what could be a secret: what stands before an `@`, and the query of a URL. */
export const withoutSecrets = (text: string): string => {
  const host = text.replace(/^.+@/s, "…@")
  return text.includes("://") ? host.replace(/[?#].*$/s, "?…") : host
}

/** An address to which paths are added, without a slash at its end. */
export const httpUrl = (credentials: string): Parse<string> => (text) => {
  if (!URL.canParse(text)) return Result.fail("is no URL: write one as in https://host:port")
  const url = new URL(text)
  if (url.protocol !== "http:" && url.protocol !== "https:") {
    return Result.fail("is no HTTP URL: write http:// or https://")
  }
  const faults: Array<string> = []
  if (url.username !== "" || url.password !== "") faults.push(`holds credentials: remove them, ${credentials}`)
  if (/[?#]/.test(text)) faults.push("has a query or a fragment: remove it")
  return faults.length > 0 ? Result.fail(faults) : Result.succeed(url.href.replace(/\/+$/, ""))
}

/** Goes over a network in the clear. */
export const isPlainRemote = (url: string): boolean =>
  url.startsWith("http://") && !/^http:\/\/(localhost|127\.[\d.]+|\[::1\])(?=[:/]|$)/.test(url)

/** What HTTP allows in the value of a header (RFC 9110, 5.5), without the bytes that have no meaning there. */
const isHeaderValue = (text: string): boolean => /^[\t\x20-\x7e]*$/.test(text) && text.trim() === text

/** A header holds visible text (RFC 9110), a bearer token has no spaces (RFC 6750). */
export const bearerFault = (token: string): string | undefined => {
  const at = token.search(/[^\x21-\x7e]/)
  if (at === -1) return undefined
  const name = `U+${token.codePointAt(at)?.toString(16).toUpperCase().padStart(4, "0")}`
  return `has ${name} at position ${at + 1}, which a header cannot hold: check it for line breaks and spaces`
}

export const apiKey: Parse<Redacted.Redacted> = (text) => {
  const fault = bearerFault(text)
  return fault === undefined ? Result.succeed(Redacted.make(text, { label: "api key" })) : Result.fail(fault)
}

/** `key=value,key=value`, percent-encoded: the W3C baggage form that OpenTelemetry uses for its variables. */
export const pairs: Parse<Readonly<Record<string, string>>> = (text) => {
  const entries: Array<readonly [string, string]> = []
  for (const item of text.split(",")) {
    const at = item.indexOf("=")
    const key = item.slice(0, Math.max(at, 0)).trim()
    if (item.trim() === "") continue
    if (key === "") return Result.fail("is no list: write key=value,key=value")
    try {
      entries.push([decodeURIComponent(key), decodeURIComponent(item.slice(at + 1).trim())])
    } catch {
      return Result.fail("has a \"%\" that starts no percent-encoding: write %25 for it")
    }
  }
  return Result.succeed(Object.fromEntries(entries))
}

export const headers: Parse<Redacted.Redacted<Readonly<Record<string, string>>>> = (text) =>
  Result.flatMap(
    pairs(text),
    (all) =>
      Object.entries(all).every(([name, value]) => /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(name) && isHeaderValue(value))
        ? Result.succeed(Redacted.make(all, { label: "headers" }))
        : Result.fail("has a name or value that HTTP does not allow in a header: use visible ASCII characters")
  )

export const noHeaders: Redacted.Redacted<Readonly<Record<string, string>>> = Redacted.make({}, { label: "headers" })

export const count = (what: string): Parse<number> => (text) =>
  /^\d{1,15}$/.test(text) && Number(text) > 0
    ? Result.succeed(Number(text))
    : Result.fail(`is no ${what}: unset it, whoever starts the service sets it`)
