/**
 * The secrets of a service, as a resource.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import * as Custom from "./Custom.ts"
import type { Resource, SecretMap } from "./Resource.ts"

/**
 * A secret that the service needs is not there. Names are no secret, so it lists those that are.
 *
 * @category errors
 * @since 0.1.0
 */
export class MissingSecret extends Data.TaggedError("MissingSecret")<{
  readonly name: string
  readonly available: ReadonlyArray<string>
}> {
  override get message(): string {
    const there = this.available.length === 0 ? "there are none" : `there are ${this.available.join(", ")}`
    return `secret "${this.name}" is not set (${there}): add it, locally to Secrets.toml`
  }
}

/**
 * Secrets by name. Names are case-sensitive. Values stay `Redacted`, and are never put into the environment.
 *
 * @category models
 * @since 0.1.0
 */
export interface SecretStore {
  /** In ascending order. */
  readonly names: ReadonlyArray<string>
  readonly get: (name: string) => Option.Option<Redacted.Redacted>
  /** For what the service cannot do without. */
  readonly require: (name: string) => Effect.Effect<Redacted.Redacted, MissingSecret>
}

/**
 * A store of these secrets. In `load` of a resource, it gives `context.secrets` the same accessors.
 *
 * ```ts import.meta.vitest
 * import { Secrets } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 * import * as Redacted from "effect/Redacted"
 *
 * const store = Secrets.fromMap(new Map([["API_KEY", Redacted.make("k3y")]]))
 * store.names // => ["API_KEY"]
 * const error = await Effect.runPromise(Effect.flip(store.require("api_key")))
 * error.message // => "secret \"api_key\" is not set (there are API_KEY): add it, locally to Secrets.toml"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromMap = (secrets: SecretMap): SecretStore => {
  const names = Array.from(secrets.keys()).toSorted()
  const get = (name: string) => Option.fromUndefinedOr(secrets.get(name))
  return {
    names,
    get,
    require: (name) =>
      Effect.mapError(Effect.fromOption(get(name)), () => new MissingSecret({ name, available: names }))
  }
}

const Store = Schema.declare((u: unknown): u is SecretStore =>
  typeof u === "object" && u !== null && "names" in u && "require" in u
)

const output = Schema.ReadonlyMap(Schema.String, Schema.Redacted(Schema.String)).pipe(
  Schema.decodeTo(
    Store,
    SchemaTransformation.transform({
      decode: fromMap,
      encode: (store): SecretMap =>
        new Map(
          store.names.flatMap((name) =>
            Option.match(store.get(name), { onNone: () => [], onSome: (value) => [[name, value] as const] })
          )
        )
    })
  )
)

/**
 * The secrets as a resource: they were fetched before any resource was loaded, so nothing is requested for it.
 *
 * ```ts import.meta.vitest
 * import { Secrets } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 * import * as Redacted from "effect/Redacted"
 *
 * const secrets = Secrets.make("secrets")
 * const program = Effect.flatMap(secrets.get, (store) => store.require("API_KEY"))
 * const store = Secrets.fromMap(new Map([["API_KEY", Redacted.make("k3y")]]))
 * String(await Effect.runPromise(Effect.provideService(program, secrets.key, store))) // => "<redacted>"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <const Name extends string>(name: Name): Resource<Name, SecretStore> => ({
  ...Custom.provisioned(name, { type: "secrets", input: Schema.Null, output, load: () => Effect.succeed(null) }),
  kind: "secrets"
})
