/** What `nft -j` tells of the table (libnftables-json(5)), as far as it is asked for here. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { type Counter, counters, type Found, type Member, tokenOf } from "./nftText.ts"

const Elements = Schema.Struct({ name: Schema.String, elem: Schema.optionalKey(Schema.Array(Schema.Unknown)) })

const Listing = Schema.Struct({
  nftables: Schema.Array(Schema.Struct({
    set: Schema.optionalKey(Elements),
    map: Schema.optionalKey(Elements)
  }))
})

type Listing = typeof Listing.Type

const decodeOne = Schema.decodeUnknownEffect(Schema.fromJsonString(Listing))

/** Each command of a list has a document of its own. */
export const decode = (text: string): Effect.Effect<Listing, Schema.SchemaError> =>
  Effect.map(
    Effect.forEach(text.split("\n").filter((line) => line !== ""), (line) => decodeOne(line)),
    (all) => ({ nftables: all.flatMap(({ nftables }) => nftables) })
  )

const concatenated = Schema.decodeUnknownOption(
  Schema.Struct({ concat: Schema.Array(Schema.Union([Schema.String, Schema.Number])) })
)
const jump = Schema.decodeUnknownOption(
  Schema.Tuple([Schema.String, Schema.Struct({ goto: Schema.Struct({ target: Schema.String }) })])
)
const counted = Schema.decodeUnknownOption(Schema.Struct({
  elem: Schema.Struct({
    val: Schema.String,
    counter: Schema.Struct({ packets: Schema.Number, bytes: Schema.Number })
  })
}))

const jumps = ({ nftables }: Listing, name: string) =>
  nftables.flatMap(({ map }) => map?.name === name ? map.elem ?? [] : []).flatMap((element) =>
    Option.match(jump(element), {
      onNone: () => [],
      onSome: ([link, { goto }]) => {
        const token = tokenOf(goto.target)
        return token === undefined ? [] : [{ link, token, chain: goto.target }]
      }
    })
  )

/** Link and token of each machine, from the map by which its packets find its rules. */
export const machines = (listing: Listing): ReadonlyArray<{ readonly link: string; readonly token: string }> =>
  jumps(listing, "outside").map(({ link, token }) => ({ link, token }))

/** The sets and maps that `find` looks at. What ARP has follows from them. */
export const shared = [
  ...["outside", "near"].map((name) => ({ what: "map", name }) as const),
  ...["sources", "gateways", "offered", "masqueraded"].flatMap((name) =>
    [4, 6].map((family) => ({ what: "set", name: `${name}${family}` }) as const)
  )
]

/** Of those machines that are wanted, all that is in the table. `names` tells which sets there are. */
export const find = (listing: Listing, names: Listing, wanted: ReadonlySet<string>): ReadonlyArray<Found> => {
  const found = jumps(listing, "outside").filter(({ token }) => wanted.has(token))
  const near = new Map(jumps(listing, "near").map(({ chain, token }) => [token, chain]))
  const byLink = new Map(found.map(({ link, token }): [string, Array<Member>] => {
    const key = `"${link}"`
    return [link, [
      ...[...counters, "covered", "outside", ...(near.has(token) ? ["near"] : [])].map((set) =>
        ({ family: "inet", set, key }) as const
      ),
      { family: "arp", set: "covered", key }
    ]]
  }))
  const elements = new Map(
    listing.nftables.flatMap(({ set }) => set === undefined ? [] : [[set.name, set.elem ?? []] as const])
  )
  const masqueraded = new Set([4, 6].flatMap((family) => elements.get(`masqueraded${family}`) ?? []))
  for (const [name, all] of elements) {
    for (const element of all) {
      const [link = "", ...rest] = Option.match(concatenated(element), {
        onNone: () => [],
        onSome: (one) => one.concat
      })
      const members = byLink.get(String(link))
      if (members === undefined) continue
      const key = [`"${link}"`, ...rest].join(" . ")
      members.push({ family: "inet", set: name, key })
      if (name === "sources4") members.push({ family: "arp", set: "senders", key })
      if (name === "gateways4") members.push({ family: "arp", set: "gateways", key })
      const address = rest.at(-1)
      if (name.startsWith("sources") && masqueraded.has(address)) {
        members.push({ family: "inet", set: `masqueraded${name.slice(-1)}`, key: String(address) })
      }
    }
  }
  const sets = Map.groupBy(
    names.nftables.flatMap(({ set }) => set === undefined ? [] : [set.name]),
    tokenOf
  )
  return found.map(({ chain, link, token }) => {
    const other = near.get(token)
    return {
      token,
      link,
      chains: other === undefined ? [chain] : [chain, other],
      members: byLink.get(link) ?? [],
      sets: sets.get(token) ?? []
    }
  })
}

export interface Count {
  readonly packets: number
  readonly bytes: number
}

/** By link, for each of the sets that count. */
export const counts = (listing: Listing): ReadonlyMap<Counter, ReadonlyMap<string, Count>> =>
  new Map(counters.map((which) => {
    const all = listing.nftables.flatMap(({ set }) => set?.name === which ? set.elem ?? [] : [])
    return [
      which,
      new Map(all.flatMap((element) =>
        Option.match(counted(element), {
          onNone: () => [],
          onSome: ({ elem }) => [[elem.val, elem.counter] as const]
        })
      ))
    ]
  }))
