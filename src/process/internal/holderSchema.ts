import * as Schema from "effect/Schema"
import * as ProcessIdentity from "../ProcessIdentity.ts"
import * as Protocol from "./holderProtocol.ts"

const version = Schema.Literal(Protocol.version)
const position = Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))

export const Started = Schema.TaggedUnion({
  Started: {},
  Refused: { step: Schema.Literals(["claim", "start"]), code: Schema.String }
})

const claim = {
  version,
  holder: ProcessIdentity.ProcessIdentity,
  mark: Schema.String
}

export const Held = Schema.Struct({
  ...claim,
  child: ProcessIdentity.ProcessIdentity,
  cgroup: Schema.NullOr(Schema.String),
  executable: Schema.String,
  channels: Schema.Array(Schema.Int),
  note: Schema.String
})

export type Held = typeof Held.Type

/** What `holder.json` may hold, the most first: a struct passes over what it does not know. */
export const Claim = Schema.Union([
  Held,
  Schema.Struct({ ...claim, holder: Schema.NullOr(ProcessIdentity.ProcessIdentity) })
])

export type Claim = typeof Claim.Type

export const End = Schema.Struct({ code: Schema.NullOr(Schema.Int), signal: Schema.NullOr(Schema.String) })

export const Ended = Schema.Struct({ ...End.fields, version, stdout: position, stderr: position })

export type Ended = typeof Ended.Type

export const Answer = Schema.TaggedUnion({
  Refused: { why: Schema.Literals(["held", "busy", "unknown"]) },
  Hand: { hand: Schema.String, stdout: position, stderr: position },
  Output: {},
  Channel: { replayed: position }
})

export type Answer = typeof Answer.Type
