/** What goes over the wire of the runtime API. `RuntimeApi` exports all of it. */
import * as Schema from "effect/Schema"

/**
 * Asks for a resource, or for the state of one that was asked for before.
 *
 * @category schemas
 * @since 0.1.0
 */
export const ProvisionRequest = Schema.Struct({
  type: Schema.String,
  /** Any JSON; what it means depends on the type. */
  config: Schema.Unknown
}).annotate({ identifier: "ProvisionRequest" })

/**
 * A resource as the API sees it. All four keys are there; `config` and `output` are any JSON, `null` as well.
 *
 * `state` is one of `authorizing`, `provisioning`, `ready`, `failed`, `deleting`, `deleted`. It is declared as a string, so a
 * state that is not known yet is told instead of being a broken answer.
 *
 * @category schemas
 * @since 0.1.0
 */
export const ResourceResponse = Schema.Struct({
  type: Schema.String,
  state: Schema.String,
  config: Schema.Unknown,
  output: Schema.Unknown
}).annotate({ identifier: "ResourceResponse" })

/**
 * What every error says. `status_code` mostly repeats the status of the response, but need not.
 *
 * @category schemas
 * @since 0.1.0
 */
export const ErrorBody = Schema.Struct({
  message: Schema.String,
  status_code: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 65_535 }))
}).annotate({ identifier: "ErrorBody" })
