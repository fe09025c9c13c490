/**
 * What is written down of a machine while anything of it may exist.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { ProcessIdentity } from "../process/ProcessIdentity.ts"

/**
 * Names a machine, as `microvm` has it: letters, digits and `-`, 64 characters at most, the first no `-`. It is a part of
 * file names.
 *
 * @category schemas
 * @since 0.1.0
 */
export const MachineId = Schema.String.check(Schema.isPattern(/^[A-Za-z0-9][A-Za-z0-9-]{0,63}$/))

/**
 * Something that was about to be acquired, and may be there. `kind` says whose business it is, `data` is whatever that kind
 * needs to find it again and to know it for ours: the names in it, never a secret.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Claim = Schema.Struct({
  kind: Schema.String.check(Schema.isPattern(/^[a-z][a-z0-9-]{0,31}$/)),
  data: Schema.Json
})

/**
 * @category models
 * @since 0.1.0
 */
export type Claim = typeof Claim.Type

/**
 * - `Up`: it is being brought up, runs, or is being ended.
 * - `Over`: its monitor has ended, and `text` says how, for people; `exitCode` is for whoever waits for it. Claims that are
 *   left could not be released.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Phase = Schema.TaggedUnion({
  Up: {},
  Over: { exitCode: Schema.Int, text: Schema.String, at: Schema.String }
})

/**
 * @category models
 * @since 0.1.0
 */
export type Phase = typeof Phase.Type

/**
 * - `format`: the version of this description. Another one is not read, nor is a record with a key that is not described
 *   here: writing it again would lose what the key says, and it may speak of something that is to be released.
 * - `token`: eight random bytes in hexadecimal. All that is made for the machine has it in its name, where it can be seen, so
 *   that nothing of somebody else is ever taken for ours.
 * - `bootId`: the boot that it was made in. After another one, nothing of it is left but files.
 * - `supervisor`: the process that made it, or that has adopted it last.
 * - `keep`: is it meant to outlive its supervisor?
 * - `claims`: in the order in which they were made. `Reconcile.plan` says in which they are released.
 * - `spec`, `labels`: what adopting it takes, and what people want to see.
 * - `createdAt`: in ISO 8601, UTC.
 *
 * @category schemas
 * @since 0.1.0
 */
export const MachineRecord = Schema.Struct({
  format: Schema.Literal(1),
  id: MachineId,
  token: Schema.String.check(Schema.isPattern(/^[0-9a-f]{16}$/)),
  bootId: Schema.String,
  supervisor: ProcessIdentity,
  createdAt: Schema.String,
  keep: Schema.Boolean,
  phase: Phase,
  claims: Schema.Array(Claim),
  spec: Schema.Json,
  labels: Schema.Record(Schema.String, Schema.String).pipe(Schema.withDecodingDefaultKey(Effect.succeed({})))
})

/**
 * @category models
 * @since 0.1.0
 */
export type MachineRecord = typeof MachineRecord.Type
