/**
 * The runtime API over any provisioner: what a machine without a platform gives to the services on it.
 *
 * @since 0.1.0
 */
import * as ByteSize from "effect/ByteSize"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import type * as Etag from "effect/http/Etag"
import * as HttpIncomingMessage from "effect/http/HttpIncomingMessage"
import type * as HttpPlatform from "effect/http/HttpPlatform"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Path from "effect/Path"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { Provisioner, type ProvisionerError } from "./Provisioner.ts"
import * as RuntimeApi from "./RuntimeApi.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** The one project that is served; others are not found. */
  readonly projectId: string
  /** What clients have to show. Default: nothing, so bind to loopback only. */
  readonly apiKey?: Option.Option<Redacted.Redacted> | undefined
}

const failed = ({ message }: ProvisionerError) => ({ message, status_code: 500 as const })

/** No request for a resource is larger. */
const maxBodySize = ByteSize.mebibytes(8)

/**
 * Adds the routes of the API, and its OpenAPI document at `/openapi.json`, to a router. What the provisioner starts lives
 * until the layer's scope closes, not as long as the request that asked for it.
 *
 * A request without the key gives 401, another project or path 404, a body of another shape 400, a provisioner that fails
 * 500; all with the body `{ message, status_code }`.
 *
 * ```ts import.meta.vitest
 * import { Provisioner, RuntimeApiServer } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 * import * as HttpRouter from "effect/http/HttpRouter"
 * import * as HttpServer from "effect/http/HttpServer"
 * import * as Layer from "effect/Layer"
 *
 * const Nothing = Layer.succeed(Provisioner.Provisioner, {
 *   secrets: Effect.succeed(new Map()),
 *   request: ({ type }) => Effect.succeed({ type, state: "ready", output: null })
 * })
 * const { dispose, handler } = HttpRouter.toWebHandler(
 *   RuntimeApiServer.layer({ projectId: "p1" }).pipe(Layer.provide([Nothing, HttpServer.layerServices])),
 *   { disableLogger: true }
 * )
 * const response = await handler(new Request("http://localhost/projects/p1/resources/secrets"))
 * const text = await response.text()
 * text // => '{"type":"secrets","state":"ready","config":null,"output":{}}'
 * await dispose()
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<
  never,
  never,
  | Provisioner
  | HttpRouter.HttpRouter
  | Etag.Generator
  | FileSystem.FileSystem
  | HttpPlatform.HttpPlatform
  | Path.Path
> => {
  const { apiKey = Option.none(), projectId } = options

  const isServed = (asked: string) =>
    asked === projectId
      ? Effect.void
      : Effect.fail({ message: `there is no project "${asked}" here`, status_code: 404 as const })

  const resources = HttpApiBuilder.group(
    RuntimeApi.api,
    "resources",
    Effect.fnUntraced(function*(handlers) {
      const provisioner = yield* Provisioner
      const scope = yield* Effect.scope
      return handlers
        .handle("secrets", ({ params }) =>
          isServed(params.projectId).pipe(
            Effect.andThen(Effect.mapError(provisioner.secrets, failed)),
            Effect.map((secrets) => ({
              type: "secrets",
              state: "ready",
              config: null,
              output: Object.fromEntries(Array.from(secrets, ([name, value]) => [name, Redacted.value(value)]))
            }))
          ))
        .handle("provision", ({ params, payload: { config, type } }) =>
          isServed(params.projectId).pipe(
            Effect.andThen(Effect.mapError(provisioner.request({ name: type, type, config }), failed)),
            Scope.provide(scope),
            Effect.map((answer) => ({ type: answer.type, state: answer.state, config, output: answer.output ?? null }))
          ))
    })
  )

  const authorization = Layer.succeed(RuntimeApi.Authorization, {
    bearer: (handled, { credential }) =>
      Option.isNone(apiKey) || Redacted.value(apiKey.value) === Redacted.value(credential)
        ? handled
        : Effect.fail({ message: "the key is missing or wrong", status_code: 401 as const })
  })

  const requestFaults = HttpApiMiddleware.layerSchemaErrorTransform(
    RuntimeApi.RequestFaults,
    ({ cause, kind }) => Effect.fail({ message: `${kind}: ${cause.message}`, status_code: 400 as const })
  )

  const notFound = HttpRouter.add(
    "*",
    "/*",
    HttpServerResponse.jsonUnsafe({ message: "there is nothing at this path", status_code: 404 }, { status: 404 })
  )

  return HttpApiBuilder.layer(RuntimeApi.api, { openapiPath: "/openapi.json" }).pipe(
    Layer.merge(notFound),
    Layer.provide(resources),
    Layer.provide([authorization, requestFaults, Layer.succeed(HttpIncomingMessage.MaxBodySize, maxBodySize)])
  )
}
