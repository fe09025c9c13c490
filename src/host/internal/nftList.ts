/** What `nft -j` tells of the table (libnftables-json(5)), as far as it is asked for here. */
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Cidr from "../Cidr.ts"
import { type Source, tokenOf } from "./nftText.ts"

const Elements = Schema.Struct({
  table: Schema.String,
  name: Schema.String,
  elem: Schema.optionalKey(Schema.Array(Schema.Unknown))
})

const Listing = Schema.Struct({
  nftables: Schema.Array(Schema.Struct({
    set: Schema.optionalKey(Elements),
    map: Schema.optionalKey(Elements)
  }))
})

type Listing = typeof Listing.Type

export const decode = Schema.decodeUnknownEffect(Schema.fromJsonString(Listing))

const jump = Schema.decodeUnknownOption(
  Schema.Tuple([Schema.String, Schema.Struct({ goto: Schema.Struct({ target: Schema.String }) })])
)
const counted = Schema.decodeUnknownOption(Schema.Struct({
  elem: Schema.Struct({
    val: Schema.Union([Schema.String, Schema.Struct({ concat: Schema.Array(Schema.String) })]),
    counter: Schema.Struct({ packets: Schema.Finite, bytes: Schema.Finite })
  })
}))

/** Link and token of each machine, from the map by which its packets find its rules. */
export const machines = ({ nftables }: Listing): ReadonlyArray<{ readonly link: string; readonly token: string }> =>
  nftables.flatMap(({ map }) => map?.name === "outside" ? map.elem ?? [] : []).flatMap((element) =>
    Option.match(jump(element), {
      onNone: () => [],
      onSome: ([link, { goto }]) => {
        const token = tokenOf(goto.target)
        return token === undefined ? [] : [{ link, token }]
      }
    })
  )

/** Those sets of a table that one machine has for itself, by its token. */
export const ownSets = (table: string, { nftables }: Listing): ReadonlyMap<string | undefined, ReadonlyArray<string>> =>
  Map.groupBy(nftables.flatMap(({ set }) => set?.table === table ? [set.name] : []), tokenOf)

/** Is it a table of the release before (`Text.Source`)? */
export const isOlder = (sets: ReadonlyMap<string | undefined, ReadonlyArray<string>>): boolean =>
  sets.get(undefined)?.includes("sources4") === true

export interface Count {
  readonly packets: number
  readonly bytes: number
}

/** The elements of a set or a map that counts. */
const countsOf = ({ nftables }: Listing): ReadonlyArray<Count & { readonly key: ReadonlyArray<string> }> =>
  nftables.flatMap(({ map, set }) => set?.elem ?? map?.elem ?? []).flatMap((element) =>
    Option.match(counted(Array.isArray(element) ? element[0] : element), {
      onNone: () => [],
      onSome: ({ elem: { counter, val } }) => [{ ...counter, key: typeof val === "string" ? [val] : val.concat }]
    })
  )

/** By link, of a set or a map that counts: of links, or of something that begins with one. */
export const counts = (listing: Listing): ReadonlyMap<string, Count> =>
  new Map(countsOf(listing).map(({ bytes, key, packets }) => [key[0] ?? "", { bytes, packets }]))

/** Of one family, in a table of the release before, of whose machines `outside` tells. */
export const sources = (family: Cidr.Family, listing: Listing, outside: Listing): ReadonlyArray<Source> => {
  const tokens = new Map(machines(outside).map(({ link, token }) => [link, token]))
  return countsOf(listing).flatMap(({ key, ...count }) => {
    const token = tokens.get(key[0] ?? "")
    return token === undefined ? [] : [{ ...count, key, family, token }]
  })
}
