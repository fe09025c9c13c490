/**
 * A container beside the service, as a resource: for what has no embedded form, on a developer's machine.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import * as Custom from "./Custom.ts"
import type { Resource } from "./Resource.ts"

/**
 * Where the container's port is reached.
 *
 * @category models
 * @since 0.1.0
 */
export interface ContainerInfo {
  readonly host: string
  readonly port: number
}

/**
 * What the API calls it.
 *
 * @category constants
 * @since 0.1.0
 */
export const type = "container"

/**
 * What is asked of the provisioner: `port` is `"6334/tcp"`, `env` has an element `"NAME=value"` for each variable.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Input = Schema.Struct({
  project_name: Schema.String,
  container_name: Schema.String.check(Schema.isPattern(/^[a-zA-Z0-9][a-zA-Z0-9_.-]+$/)),
  // A leading dash would be taken for an option.
  image: Schema.String.check(Schema.isPattern(/^[a-zA-Z0-9]\S*$/)),
  port: Schema.String.check(Schema.isPattern(/^\d{1,5}\/(tcp|udp)$/)),
  env: Schema.Array(Schema.String.check(Schema.isPattern(/^[^=\0]+=[^\0]*$/)))
})

const Port = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 65_535 }))

/**
 * What it answers. Without a `hostname` the port is one of this machine.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Output: Schema.Codec<ContainerInfo, { readonly host_port: string; readonly hostname?: string }> = Schema
  .Struct({
    host_port: Schema.FiniteFromString.pipe(Schema.decodeTo(Port)),
    hostname: Schema.optionalKey(Schema.String)
  }).pipe(
    Schema.decodeTo(
      Schema.Struct({ host: Schema.String, port: Port }),
      SchemaTransformation.transform({
        decode: ({ host_port, hostname }) => ({ host: hostname ?? "127.0.0.1", port: host_port }),
        encode: ({ host, port }) => ({ host_port: port, hostname: host })
      })
    )
  )

/**
 * A container of an image, with one of its ports published. Locally it needs docker or podman, and is gone when the service
 * ends.
 *
 * ```ts import.meta.vitest
 * import { Container } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 *
 * const qdrant = Container.make("qdrant", { image: "docker.io/qdrant/qdrant:v1.10.0", port: 6334 })
 * const url = Effect.map(qdrant.get, ({ host, port }) => `http://${host}:${port}`)
 * await Effect.runPromise(Effect.provideService(url, qdrant.key, { host: "127.0.0.1", port: 32768 })) // => "http://127.0.0.1:32768"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <const Name extends string>(name: Name, options: {
  readonly image: string
  /** Inside the container. */
  readonly port: number
  /** Default `"tcp"`. */
  readonly protocol?: "tcp" | "udp" | undefined
  /** The environment of the container. */
  readonly env?: Readonly<Record<string, string | Redacted.Redacted>> | undefined
}): Resource<Name, ContainerInfo> =>
  Custom.provisioned(name, {
    type,
    input: Input,
    output: Output,
    load: ({ projectName }) =>
      Effect.succeed({
        project_name: projectName,
        container_name: `service_${projectName}_${name}`.replace(/[^a-zA-Z0-9_.-]/g, "-"),
        image: options.image,
        port: `${options.port}/${options.protocol ?? "tcp"}`,
        env: Object.entries(options.env ?? {}).map(([key, value]) =>
          `${key}=${Redacted.isRedacted(value) ? Redacted.value(value) : value}`
        )
      })
  })
