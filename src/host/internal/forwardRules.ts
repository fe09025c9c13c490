/** What `nft -j` tells of the chains by which packets are forwarded, as far as it matters to machines. */
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"

/** Machines' links begin so. */
export const LINKS = "mv"

const Chain = Schema.Struct({
  family: Schema.String,
  table: Schema.String,
  name: Schema.String,
  hook: Schema.optionalKey(Schema.String),
  policy: Schema.optionalKey(Schema.String)
})

/** A statement has one key, which says what it is. */
const Statement = Schema.Record(Schema.String, Schema.Unknown)
type Statement = typeof Statement.Type

const Rule = Schema.Struct({ chain: Schema.String, expr: Schema.optionalKey(Schema.Array(Statement)) })

const Listing = Schema.fromJsonString(Schema.Struct({
  nftables: Schema.Array(Schema.Struct({
    chain: Schema.optionalKey(Chain),
    rule: Schema.optionalKey(Rule)
  }))
}))

export type Listing = typeof Listing.Type

export const decode = Schema.decodeEffect(Listing)

const routed = new Set(["ip", "ip6", "inet"])

/** Base chains of others than us that see what is routed. */
export const forwarding = ({ nftables }: Listing): ReadonlyArray<typeof Chain.Type> =>
  nftables.flatMap(({ chain }) =>
    chain?.hook === "forward" && routed.has(chain.family) && !chain.table.startsWith("effect-microvm") ? [chain] : []
  )

const Target = Schema.Struct({ target: Schema.String })
const asJump = Schema.decodeUnknownOption(Schema.Union([
  Schema.Struct({ jump: Target }),
  Schema.Struct({ goto: Target })
]))
/** What only iptables understands: nft knows its name. */
const asExtension = Schema.decodeUnknownOption(Schema.Struct({ xt: Schema.Struct({ name: Schema.String }) }))
const extension = (statement: Statement | undefined): string | undefined =>
  Option.getOrUndefined(Option.map(asExtension(statement), ({ xt }) => xt.name))

const asLink = Schema.decodeUnknownOption(Schema.Struct({
  match: Schema.Struct({
    op: Schema.Literal("=="),
    left: Schema.Struct({ meta: Schema.Struct({ key: Schema.Literals(["iifname", "oifname"]) }) }),
    right: Schema.String
  })
}))
const asState = Schema.decodeUnknownOption(Schema.Struct({
  match: Schema.Struct({
    op: Schema.Literals(["==", "in"]),
    left: Schema.Struct({ ct: Schema.Struct({ key: Schema.Literal("state") }) }),
    right: Schema.Unknown
  })
}))

const isNeutral = (statement: Statement): boolean =>
  "counter" in statement || "log" in statement || extension(statement) === "comment"

const isDrop = (statement: Statement): boolean =>
  "drop" in statement || "reject" in statement || ["DROP", "REJECT"].includes(extension(statement) ?? "")

/** Which way packets pass by the rule that accepts what is so. */
const waysOf = (condition: Statement): ReadonlyArray<"in" | "out"> => {
  const link = asLink(condition)
  if (Option.isSome(link)) {
    const { left: { meta: { key } }, right } = link.value.match
    return right.endsWith("*") && LINKS.startsWith(right.slice(0, -1)) ? [key === "iifname" ? "in" : "out"] : []
  }
  const isEstablished = extension(condition) === "conntrack" || extension(condition) === "state" ||
    Option.exists(asState(condition), ({ match }) => JSON.stringify(match.right).includes("\"established\""))
  // Nobody opens connections to machines: what goes out by their links are answers.
  return isEstablished ? ["out"] : []
}

/**
 * Are packets of machines dropped by a base chain: by its policy, or by a rule that is for all packets? Not when those to and from
 * their links, or at least answers to those, are accepted before; what a rule does under other conditions is not known here.
 */
export const drops = ({ nftables }: Listing, { name, policy }: typeof Chain.Type): boolean => {
  const rules = Map.groupBy(nftables.flatMap(({ rule }) => rule ?? []), ({ chain }) => chain)
  const passes = new Set<"in" | "out">()
  const seen = new Set<string>()

  /** What becomes of a packet that no condition is for; nothing when it comes out at the end. */
  const walk = (chain: string): "accepted" | "dropped" | undefined => {
    // A second time tells nothing new.
    if (seen.has(chain)) return undefined
    seen.add(chain)
    for (const { expr = [] } of rules.get(chain) ?? []) {
      const statements = expr.filter((one) => !isNeutral(one))
      const [first, second] = statements
      if (first === undefined) continue
      if (statements.length === 2 && second !== undefined && "accept" in second) {
        for (const way of waysOf(first)) passes.add(way)
      }
      if (passes.size === 2) return "accepted"
      if (statements.length > 1) continue
      if ("accept" in first) return "accepted"
      if (isDrop(first)) return "dropped"
      if ("return" in first) return undefined
      const jump = asJump(first)
      if (Option.isNone(jump)) continue
      const became = walk("goto" in jump.value ? jump.value.goto.target : jump.value.jump.target)
      if (became !== undefined || "goto" in jump.value) return became
    }
    return undefined
  }

  return (walk(name) ?? (policy === "drop" ? "dropped" : "accepted")) === "dropped"
}

/** The same of `iptables -S FORWARD`: without a look into other chains. */
export const legacyDrops = (listing: string): boolean => {
  const lines = listing.split("\n").map((line) => line.trim())
  const accepts = (way: string): boolean =>
    lines.some((line) => {
      const found = new RegExp(`^-A FORWARD ${way} (\\S+)\\+ -j ACCEPT$`).exec(line)?.[1]
      return found !== undefined && LINKS.startsWith(found)
    })
  const answers = lines.some((line) =>
    /^-A FORWARD -m (conntrack --ctstate|state --state) \S*ESTABLISHED\S* -j ACCEPT$/.test(line)
  )
  const isShut = lines.includes("-P FORWARD DROP") || lines.some((line) => /^-A FORWARD -j (DROP|REJECT)\b/.test(line))
  return isShut && !(accepts("-i") && (accepts("-o") || answers))
}
