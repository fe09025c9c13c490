/**
 * The runtime API over any provisioner: what a machine without a platform gives to the services on it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import type * as Etag from "effect/http/Etag"
import type * as HttpPlatform from "effect/http/HttpPlatform"
import type * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import type * as Path from "effect/Path"
import type { Options } from "./internal/apiServer.ts"
import type { Provisioner } from "./Provisioner.ts"

export type { Options } from "./internal/apiServer.ts"

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
> =>
  Layer.unwrap(Effect.map(
    Effect.promise(() => import("./internal/apiServer.ts")),
    (server) => server.layer(options)
  ))
