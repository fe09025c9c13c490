/** What `nft -j` tells of the table (libnftables-json(5)), as far as it is asked for here. */
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { tokenOf } from "./nftText.ts"

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

export interface Count {
  readonly packets: number
  readonly bytes: number
}

/** By link, of a set or a map that counts: of links, or of something that begins with one. */
export const counts = ({ nftables }: Listing): ReadonlyMap<string, Count> =>
  new Map(
    nftables.flatMap(({ map, set }) => set?.elem ?? map?.elem ?? []).flatMap((element) =>
      Option.match(counted(Array.isArray(element) ? element[0] : element), {
        onNone: () => [],
        onSome: (
          { elem: { counter, val } }
        ) => [[typeof val === "string" ? val : val.concat[0] ?? "", counter] as const]
      })
    )
  )
