/**
 * Resources of one's own: made by the service itself, or of a type that only its provisioner knows.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { Kind, LoadContext, Provisioned, Resource } from "./Resource.ts"

const resource = <Name extends string, Output>(
  name: Name,
  kind: Kind,
  rest: Pick<Resource<Name, Output>, "type" | "load" | "input" | "output">
): Resource<Name, Output> => {
  const key = Context.Service<Provisioned<Name, Output>, Output>(
    `effect-microvm-runtime/service/Resource/${rest.type}/${name}`
  )
  return { name, kind, ...rest, key, get: key }
}

/**
 * A resource that the service makes of what it knows: environment, project, secrets. Whatever it looks like, it is never
 * sent anywhere. `load` answers the encoded side of `schema`, which is JSON; the service sees the decoded one.
 *
 * ```ts import.meta.vitest
 * import { Custom } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 * import * as Schema from "effect/Schema"
 *
 * const bucket = Custom.make("bucket", {
 *   schema: Schema.Struct({ url: Schema.URLFromString }),
 *   load: ({ projectName }) => Effect.succeed({ url: `https://${projectName}.example.org` })
 * })
 * const host = Effect.map(bucket.get, ({ url }) => url.host)
 * const url = new URL("https://notes.example.org")
 * await Effect.runPromise(Effect.provideService(host, bucket.key, { url })) // => "notes.example.org"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <const Name extends string, Output, Input, E>(
  name: Name,
  options: {
    readonly schema: Schema.Codec<Output, Input>
    /** Its failure ends the load phase (111). */
    readonly load: (context: LoadContext) => Effect.Effect<NoInfer<Input>, E>
  }
): Resource<Name, Output> =>
  resource(name, "custom", {
    type: "custom",
    load: options.load,
    input: Schema.toEncoded(options.schema),
    output: options.schema
  })

/**
 * A resource that the provisioner makes, for types that this package has no module for.
 *
 * ```ts import.meta.vitest
 * import { Custom } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 * import * as Schema from "effect/Schema"
 *
 * const queue = Custom.provisioned("jobs", {
 *   type: "queue::shared",
 *   input: Schema.Struct({ depth: Schema.Int }),
 *   output: Schema.Struct({ url: Schema.String }),
 *   load: () => Effect.succeed({ depth: 100 })
 * })
 * queue.kind // => "provisioned"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const provisioned = <const Name extends string, Output, Input, E>(
  name: Name,
  options: {
    /** As the API of the provisioner calls it. */
    readonly type: string
    /** Of the request. It is JSON on both sides: what `load` answers is checked, and sent as it is. */
    readonly input: Schema.Codec<Input, Input>
    /** Of the answer. */
    readonly output: Schema.Codec<Output, unknown>
    /** Its failure ends the load phase (111). */
    readonly load: (context: LoadContext) => Effect.Effect<NoInfer<Input>, E>
  }
): Resource<Name, Output> => resource(name, "provisioned", options)
