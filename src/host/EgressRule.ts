/**
 * What a machine may reach, as it is written on a command line: `10.0.0.0/8:443/tcp`.
 *
 * `TARGET[:PORT[-PORT]][/PROTOCOL]`, where a target is an IPv4 address or network, an IPv6 one in brackets, a DNS name, or
 * `*.name` for all names below one. Without a port it is every port of that protocol, without a protocol everything that is
 * sent there. What could be read in two ways is refused with the text to give instead.
 *
 * @since 0.1.0
 */
import * as Result from "effect/Result"
import * as Cidr from "./Cidr.ts"
import * as HostError from "./HostError.ts"

/**
 * A network, or a name in lower case: `example.com`, or `*.example.com` for all that is below it, but not itself.
 *
 * @category models
 * @since 0.1.0
 */
export type Target =
  | { readonly _tag: "Network"; readonly cidr: Cidr.Cidr }
  | { readonly _tag: "Name"; readonly name: string }

/**
 * @category models
 * @since 0.1.0
 */
export type Protocol = "tcp" | "udp"

/**
 * From the first to the last, both counted.
 *
 * @category models
 * @since 0.1.0
 */
export interface Ports {
  readonly first: number
  readonly last: number
}

/**
 * Something that may be reached. Without `protocol`: by whatever protocol; without `ports`: all ports of the protocol.
 *
 * @category models
 * @since 0.1.0
 */
export interface EgressRule {
  readonly target: Target
  readonly protocol?: Protocol
  readonly ports?: Ports
}

const example = "10.0.0.0/8:443/tcp, [fd00::/8]:443/tcp or api.example.com:443/tcp"

/** 253 letters and dots, as a text (RFC 1035, 2.3.4: 255 octets on the wire); a rule has some more. */
const longestName = 253
const longest = 300

const quote = (text: string): string => JSON.stringify(text.length > 64 ? `${text.slice(0, 64)}…` : text)

/** How IDNA writes it, if it is a name at all. */
const inAscii = (name: string): string | undefined => {
  const url = `http://${name}/`
  return URL.canParse(url) ? new URL(url).hostname : undefined
}

const nameFault = (name: string): string | undefined => {
  if (/[^!-~]/.test(name)) {
    const bare = name.replace(/^\*\./, "")
    const ascii = inAscii(bare)
    return ascii === undefined || ascii.includes("%")
      ? "give a name of letters, digits and hyphens"
      : `give it as DNS has it (IDNA): ${bare === name ? "" : "*."}${ascii}`
  }
  const labels = (name.startsWith("*.") ? name.slice(2) : name).split(".")
  if (labels.at(-1) === "" && labels.length > 1) return `leave the last dot away: ${name.slice(0, -1)}`
  if (labels.includes("")) return "there is nothing between two dots: leave one away"
  if (name.includes("*") && (!name.startsWith("*.") || name.lastIndexOf("*") > 0)) {
    return "a * stands for all names below one, and comes first: *.example.com"
  }
  if (name.length > longestName) return `a name has ${longestName} bytes at most, this one has ${name.length}`
  const long = labels.find((label) => label.length > 63)
  if (long !== undefined) return `between two dots are 63 bytes at most, not ${long.length}`
  const odd = labels.find((label) => !/^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?$/i.test(label))
  if (odd !== undefined) return `${quote(odd)} is no part of a name: give letters, digits and hyphens within`
  // The last label of a name is never a number (RFC 1123, 2.1), and what looks like an address is to be one.
  return /^\d+$/.test(labels.at(-1) ?? "") ? "give four numbers from 0 to 255 for an address" : undefined
}

const networkOf = (address: string, prefix: string | undefined): Result.Result<Target, string> =>
  Result.map(
    prefix === undefined
      ? Result.map(
        Cidr.parseAddress(address),
        (one) => Cidr.network(one, one.family === 4 ? 32 : 128)
      )
      : Cidr.parse(`${address}/${prefix}`),
    (cidr) => ({ _tag: "Network", cidr })
  )

const targetOf = (text: string, prefix: string | undefined, bracketed: boolean): Result.Result<Target, string> => {
  if (bracketed) {
    return text.includes(":") ? networkOf(text, prefix) : Result.fail("brackets are for IPv6: leave them away")
  }
  if (/^\d+\.\d+\.\d+\.\d+$/.test(text)) return networkOf(text, prefix)
  const fault = prefix === undefined ? nameFault(text) : "a name has no /LENGTH: leave it away"
  return fault === undefined ? Result.succeed({ _tag: "Name", name: text.toLowerCase() }) : Result.fail(fault)
}

const port = /^(0|[1-9]\d{0,4})$/

const portsOf = (text: string): Result.Result<Ports, string> => {
  const [from = "", to = from, ...more] = text.split("-")
  if (more.length > 0 || !port.test(from) || !port.test(to) || Number(from) > 65535 || Number(to) > 65535) {
    return Result.fail(`${quote(text)} is no port: give 1 to 65535, or two with a hyphen between, such as 8000-8099`)
  }
  const [first, last] = [Number(from), Number(to)]
  if (first === 0 || last === 0) {
    return Result.fail("there is no port 0: give 1 to 65535, or leave the port away for all")
  }
  return first > last ? Result.fail(`give the lower port first: ${to}-${from}`) : Result.succeed({ first, last })
}

const protocolOf = (text: string | undefined): Result.Result<Protocol | undefined, string> => {
  if (text === undefined || text === "tcp" || text === "udp") return Result.succeed(text)
  const lower = text.toLowerCase()
  return Result.fail(
    lower === "tcp" || lower === "udp"
      ? `write ${lower}`
      : `${quote(text)} is none of tcp and udp: leave it away for every protocol`
  )
}

/** Target, length of the prefix, ports, protocol. An IPv6 target is in brackets, with its length. */
const bracketed = /^\[([^\]/]*)(?:\/([^\]]*))?\](?::([^/]*))?(?:\/(.*))?$/
const bareIpv6 = /^([0-9a-f.]*:[0-9a-f.]*:[0-9a-f:.]*)(\/\d+)?(.*)$/i
const plain = /^([^:/[\]]+)(?:\/(\d+))?(?::([^/]*))?(?:\/(.*))?$/

/**
 * Reads a rule, or says all that is wrong with it and what to give instead.
 *
 * ```ts import.meta.vitest
 * import { EgressRule } from "effect-microvm-runtime/host"
 * import * as Result from "effect/Result"
 * Result.map(EgressRule.parse("[FD00:0::/8]:8000-8099/tcp"), EgressRule.format) // => Result.succeed("[fd00::/8]:8000-8099/tcp")
 * EgressRule.parse("10.0.0.1:443") // => Result.fail("say by which protocol: 10.0.0.1:443/tcp or 10.0.0.1:443/udp")
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const parse = (text: string): Result.Result<EgressRule, string> => {
  if (text.length > longest) return Result.fail(`a rule has ${longest} letters at most`)
  if (/\s/.test(text) || text === "") return Result.fail(`give a rule without spaces: ${example}`)
  const inBrackets = bracketed.exec(text)
  const bare = inBrackets === null ? bareIpv6.exec(text) : null
  if (bare !== null) {
    const [, address = "", prefix = "", rest = ""] = bare
    // Of what is written without brackets, the last number may be an address' or a port.
    const asPort = prefix === "" && rest.startsWith("/") ? /^(.*[^:]):(\d{1,5})$/.exec(address) : null
    const other = asPort === null ? "" : `, or [${asPort[1]}]:${asPort[2]}${rest} if that is a port`
    return Result.fail(`give IPv6 in brackets: [${address}${prefix}]${rest}${other}`)
  }
  const [, name, prefix, portText, protocolText] = inBrackets ?? plain.exec(text) ?? []
  if (name === undefined) return Result.fail(`give TARGET[:PORT[-PORT]][/PROTOCOL]: ${example}`)
  const target = targetOf(name, prefix, inBrackets !== null)
  const ports = portText === undefined ? undefined : portsOf(portText)
  const protocol = protocolOf(protocolText)
  const faults = [
    ...(Result.isFailure(target) ? [target.failure] : []),
    ...(ports !== undefined && Result.isFailure(ports) ? [ports.failure] : []),
    ...(Result.isFailure(protocol) ? [protocol.failure] : [])
  ]
  if (portText !== undefined && protocolText === undefined) {
    faults.push(`say by which protocol: ${text}/tcp or ${text}/udp`)
  }
  if (Result.isFailure(target) || faults.length > 0) return Result.fail(faults.join("; "))
  return Result.succeed({
    target: target.success,
    ...(Result.isSuccess(protocol) && protocol.success !== undefined && { protocol: protocol.success }),
    ...(ports !== undefined && Result.isSuccess(ports) && { ports: ports.success })
  })
}

const formatTarget = (target: Target): string => {
  if (target._tag === "Name") return target.name
  const { cidr } = target
  const single = cidr.prefix === (cidr.family === 4 ? 32 : 128)
  const text = single ? Cidr.formatAddress({ family: cidr.family, value: cidr.first }) : Cidr.format(cidr)
  return cidr.family === 4 ? text : `[${text}]`
}

/**
 * The text of a rule, which `parse` reads: the only one.
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = ({ ports, protocol, target }: EgressRule): string => {
  const range = ports === undefined
    ? ""
    : `:${ports.first}${ports.last === ports.first ? "" : `-${ports.last}`}`
  return `${formatTarget(target)}${range}${protocol === undefined ? "" : `/${protocol}`}`
}

/** Has `one` all ports and protocols of `other`? */
const carries = (one: EgressRule, other: EgressRule): boolean => {
  if (one.protocol === undefined) return true
  if (one.protocol !== other.protocol) return false
  if (one.ports === undefined) return true
  return other.ports !== undefined && one.ports.first <= other.ports.first && one.ports.last >= other.ports.last
}

/** Does a `*.name` stand for this name? `*.a.com` stands for `*.b.a.com` too. */
const isBelow = (name: string, pattern: string): boolean => pattern.startsWith("*.") && name.endsWith(pattern.slice(1))

/** The targets that stand for all of this one, itself first. */
const above = (target: Target): ReadonlyArray<string> => {
  // A network within another one may be what opens something that the wider one does not: see `Firewall`.
  if (target._tag === "Network") return [formatTarget(target)]
  const labels = target.name.replace(/^\*\./, "").split(".")
  return [target.name, ...labels.slice(1).map((_, index) => `*.${labels.slice(index + 1).join(".")}`)]
}

/**
 * The same without rules that others have in them, in the order given. Networks within others stay: a rule for a network can open
 * what a wider one does not.
 *
 * ```ts import.meta.vitest
 * import { EgressRule } from "effect-microvm-runtime/host"
 * import * as Result from "effect/Result"
 * const rules = EgressRule.parseAll(["api.a.com:443/tcp", "10.0.0.0/8:443/tcp", "10.0.0.0/8/tcp", "*.a.com"])
 * Result.map(rules, (all) => all.map(EgressRule.format)) // => Result.succeed(["10.0.0.0/8/tcp", "*.a.com"])
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const merge = (rules: ReadonlyArray<EgressRule>): ReadonlyArray<EgressRule> => {
  const unique = [...new Map(rules.map((rule) => [format(rule), rule])).values()]
  const byTarget = Map.groupBy(unique, ({ target }) => formatTarget(target))
  return unique.filter((rule) => {
    for (const wider of above(rule.target)) {
      if (byTarget.get(wider)?.some((other) => other !== rule && carries(other, rule))) return false
    }
    return true
  })
}

/**
 * Reads rules, those that are said twice or are within others once. Fails with `InvalidArgument` and all that is wrong; the
 * field of each is its place, such as `allow[2]`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const parseAll = (
  texts: ReadonlyArray<string>,
  field = "allow"
): Result.Result<ReadonlyArray<EgressRule>, HostError.HostError> => {
  const faults: Array<HostError.Fault> = []
  const rules: Array<EgressRule> = []
  for (const [index, text] of texts.entries()) {
    const rule = parse(text)
    if (Result.isSuccess(rule)) rules.push(rule.success)
    else faults.push({ field: `${field}[${index}]`, value: text, remedy: rule.failure })
  }
  return faults.length > 0
    ? Result.fail(HostError.make(new HostError.InvalidArgument({ faults })))
    : Result.succeed(merge(rules))
}

/**
 * The names that are to be resolved for them, each once.
 *
 * @category accessors
 * @since 0.1.0
 */
export const names = (rules: ReadonlyArray<EgressRule>): ReadonlyArray<string> => [
  ...new Set(rules.flatMap(({ target }) => target._tag === "Name" ? [target.name] : []))
]

/**
 * Does the rule allow this name?
 *
 * @category predicates
 * @since 0.1.0
 */
export const allowsName = ({ target }: EgressRule, name: string): boolean =>
  target._tag === "Name" && (target.name === name || isBelow(name, target.name))
