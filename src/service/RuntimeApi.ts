/**
 * The API between a service and whoever provisions its resources, declared once. The client (`HttpProvisioner`), the server
 * (`RuntimeApiServer`), the test double (`FakeRuntimeApi` of `testing`) and the OpenAPI document come from this declaration.
 *
 * The wire format is Shuttle's: snake case, a bearer key that may be absent, errors as `{ message, status_code }`.
 *
 * @since 0.1.0
 */
import * as HttpApi from "effect/http-api/HttpApi"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiGroup from "effect/http-api/HttpApiGroup"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import * as HttpApiSchema from "effect/http-api/HttpApiSchema"
import * as HttpApiSecurity from "effect/http-api/HttpApiSecurity"
import * as OpenApi from "effect/http-api/OpenApi"
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

/**
 * The declaration as an OpenAPI 3.1 document.
 *
 * ```ts import.meta.vitest
 * import { RuntimeApi } from "effect-microvm-runtime/service"
 * const [secrets] = Object.keys(RuntimeApi.openApi().paths)
 * secrets // => "/projects/{projectId}/resources/secrets"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const openApi = (): OpenApi.OpenAPISpec => OpenApi.fromApi(api)
