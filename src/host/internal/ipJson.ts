/** What `ip -j` says, checked. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { HostCommands } from "../HostCommands.ts"
import * as HostError from "../HostError.ts"

/** Some versions say nothing where there is nothing. */
const textOf = (output: string): string => output.trim() === "" ? "[]" : output

/** Runs `ip -j ARGS` and reads the list that it gives. */
export const list = <A, I>(item: Schema.Codec<A, I>, args: ReadonlyArray<string>, what: string) => {
  const decode = Schema.decodeUnknownEffect(Schema.fromJsonString(Schema.Array(item)))
  return HostCommands.use(({ run }) => run({ program: "ip", args: ["-j", ...args], what })).pipe(
    Effect.flatMap((output) =>
      Effect.mapError(decode(textOf(output)), (error) =>
        HostError.make(
          new HostError.CommandFailed({
            program: "ip",
            what,
            status: "gave what cannot be read",
            stderr: error.message.slice(0, 1_000)
          })
        ))
    )
  )
}

/** A user or a group without a name is a number. */
const Owner = Schema.Union([Schema.String, Schema.Int])

export const Link = Schema.Struct({
  ifname: Schema.String,
  ifalias: Schema.optionalKey(Schema.String),
  group: Schema.optionalKey(Schema.String),
  mtu: Schema.optionalKey(Schema.Int),
  master: Schema.optionalKey(Schema.String),
  flags: Schema.optionalKey(Schema.Array(Schema.String)),
  linkinfo: Schema.optionalKey(Schema.Struct({
    info_kind: Schema.optionalKey(Schema.String),
    info_data: Schema.optionalKey(Schema.Struct({
      type: Schema.optionalKey(Schema.String),
      multi_queue: Schema.optionalKey(Schema.Boolean),
      pi: Schema.optionalKey(Schema.Boolean),
      vnet_hdr: Schema.optionalKey(Schema.Boolean),
      user: Schema.optionalKey(Owner),
      group: Schema.optionalKey(Owner)
    }))
  }))
})

export type Link = typeof Link.Type

export const Route = Schema.Struct({
  dst: Schema.optionalKey(Schema.String),
  dev: Schema.optionalKey(Schema.String),
  gateway: Schema.optionalKey(Schema.String),
  prefsrc: Schema.optionalKey(Schema.String),
  protocol: Schema.optionalKey(Schema.String),
  type: Schema.optionalKey(Schema.String)
})

export const Netns = Schema.Struct({ name: Schema.String })

export const Addresses = Schema.Struct({
  ifname: Schema.optionalKey(Schema.String),
  addr_info: Schema.optionalKey(Schema.Array(Schema.Struct({
    local: Schema.optionalKey(Schema.String),
    prefixlen: Schema.optionalKey(Schema.Int)
  })))
})
