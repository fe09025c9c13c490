/** The runtime API as an HTTP API: apart from its shapes, because the modules for that are many. `RuntimeApi` loads it. */
import * as HttpApi from "effect/http-api/HttpApi"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiGroup from "effect/http-api/HttpApiGroup"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import * as HttpApiSchema from "effect/http-api/HttpApiSchema"
import * as HttpApiSecurity from "effect/http-api/HttpApiSecurity"
import * as OpenApi from "effect/http-api/OpenApi"
import * as Schema from "effect/Schema"
import { ProvisionRequest, ResourceResponse } from "./apiShapes.ts"

const errorAt = <const Status extends number>(status: Status) =>
  Schema.Struct({ message: Schema.String, status_code: Schema.Literal(status) }).pipe(HttpApiSchema.status(status))

/**
 * The key as `Authorization: Bearer …`. A server may do without; a client sends the key that it has.
 *
 * @category services
 * @since 0.1.0
 */
export class Authorization extends HttpApiMiddleware.Service<Authorization>()(
  "effect-microvm-runtime/service/RuntimeApi/Authorization",
  { security: { bearer: HttpApiSecurity.bearer }, error: errorAt(401), requiredForClient: true }
) {}

/**
 * Says what is wrong with a request that does not fit the declaration.
 *
 * @category services
 * @since 0.1.0
 */
export class RequestFaults extends HttpApiMiddleware.Service<RequestFaults>()(
  "effect-microvm-runtime/service/RuntimeApi/RequestFaults",
  { error: errorAt(400) }
) {}

const project = { params: Schema.Struct({ projectId: Schema.NonEmptyString }) }

const failures = [errorAt(404), errorAt(500)] as const

/**
 * The declaration.
 *
 * - `resources.secrets`: `GET /projects/{projectId}/resources/secrets`. `output` is an object of names to strings, whatever
 *   `state` says.
 * - `resources.provision`: `POST /projects/{projectId}/resources`. The same request again asks how far it is.
 *
 * @category api
 * @since 0.1.0
 */
export const api = HttpApi.make("RuntimeApi")
  .add(
    HttpApiGroup.make("resources").add(
      HttpApiEndpoint.get("secrets", "/projects/:projectId/resources/secrets", {
        ...project,
        success: ResourceResponse,
        error: failures
      }).annotate(OpenApi.Summary, "The secrets of a project"),
      HttpApiEndpoint.post("provision", "/projects/:projectId/resources", {
        ...project,
        payload: ProvisionRequest,
        success: ResourceResponse,
        error: failures
      }).annotate(OpenApi.Summary, "Asks for a resource, or for its state")
    ).middleware(Authorization).middleware(RequestFaults)
  )
  .annotate(OpenApi.Title, "Runtime API")
  .annotate(OpenApi.Version, "0.1.0")

/** The declaration as an OpenAPI 3.1 document. */
export const openApi = (): OpenApi.OpenAPISpec => OpenApi.fromApi(api)
