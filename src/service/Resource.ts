/**
 * What a service needs from the place where it runs, as typed values.
 *
 * A resource has a type, an input that says what is wanted, and an output that says how to reach it. The provisioner gets
 * inputs and gives outputs; the service sees outputs only.
 *
 * @since 0.1.0
 */
import type * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import type * as Schema from "effect/Schema"

/**
 * The secrets of a service, by name in ascending order.
 *
 * @category models
 * @since 0.1.0
 */
export type SecretMap = ReadonlyMap<string, Redacted.Redacted>

/**
 * What a resource may use to say what it wants.
 *
 * @category models
 * @since 0.1.0
 */
export interface LoadContext {
  readonly environment: "local" | "production"
  readonly projectId: string
  readonly projectName: string
  readonly secrets: SecretMap
  /** A directory of the service's own that outlives it. */
  readonly stateDirectory: string
}

/**
 * In the environment of an effect: it uses the output of the resource of that name and kind of output, so it can only run in a
 * service that has the resource.
 *
 * @category models
 * @since 0.1.0
 */
export interface Provisioned<out Name extends string, out Output = unknown> {
  readonly _: readonly [Name, Output]
}

/**
 * How a resource comes into being: the provisioner makes what is `provisioned`; what is `custom` turns its input into its
 * output and never leaves the process; `secrets` are the map that the secrets phase got. The kind is stated, so no input
 * can be mistaken for a request.
 *
 * @category models
 * @since 0.1.0
 */
export type Kind = "provisioned" | "custom" | "secrets"

/**
 * One thing that a service needs.
 *
 * @category models
 * @since 0.1.0
 */
export interface Resource<Name extends string, out Output> {
  /** Unique within the service. */
  readonly name: Name
  readonly kind: Kind
  /** As the API of the provisioner calls it. */
  readonly type: string
  /** Says what is wanted. An error here ends the load phase (111). */
  readonly load: (context: LoadContext) => Effect.Effect<unknown, unknown>
  /** Of the input, checked before anything is requested (121). Its encoded side is JSON. */
  readonly input: Schema.Codec<unknown, unknown>
  /** Of what the provisioner answers, or of the input itself when `custom` (151). */
  readonly output: Schema.Codec<Output, unknown>
  /** The key under which the running service finds the output. */
  readonly key: Context.Key<Provisioned<Name, Output>, Output>
  /** The output, inside the service. */
  readonly get: Effect.Effect<Output, never, Provisioned<Name, Output>>
}

/**
 * Any resource.
 *
 * @category models
 * @since 0.1.0
 */
export type Any = Resource<string, unknown>
