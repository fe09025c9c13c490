/**
 * Whoever makes resources: a remote API, or this machine.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { SecretMap } from "./Resource.ts"

/**
 * What is asked of a provisioner.
 *
 * @category models
 * @since 0.1.0
 */
export interface ResourceRequest {
  /** Of the resource in the service, for messages. */
  readonly name: string
  readonly type: string
  /** JSON. */
  readonly config: unknown
}

/**
 * What it answers. `ready` has the output; `authorizing` and `provisioning` mean: ask again; all other states are bad.
 *
 * @category models
 * @since 0.1.0
 */
export interface ResourceAnswer {
  readonly type: string
  readonly state: string
  readonly output: unknown
}

/**
 * A request failed. `message` says what was asked of whom and what came back; it never holds a secret.
 *
 * @category errors
 * @since 0.1.0
 */
export class ProvisionerError extends Data.TaggedError("ProvisionerError")<{
  readonly message: string
  readonly cause?: unknown
}> {}

/**
 * @category services
 * @since 0.1.0
 */
export class Provisioner extends Context.Service<Provisioner, {
  readonly secrets: Effect.Effect<SecretMap, ProvisionerError>
  /**
   * Asks for a resource; the same request asks for its state. What a local provisioner starts lives until the scope
   * closes.
   */
  readonly request: (request: ResourceRequest) => Effect.Effect<ResourceAnswer, ProvisionerError, Scope.Scope>
}>()("effect-microvm-runtime/service/Provisioner") {}
