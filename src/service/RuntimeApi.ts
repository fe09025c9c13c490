/**
 * The API between a service and whoever provisions its resources, declared once. The client (`HttpProvisioner`), the server
 * (`RuntimeApiServer`), the test double (`FakeRuntimeApi` of `testing`) and the OpenAPI document come from this declaration.
 *
 * The wire format is Shuttle's: snake case, a bearer key that may be absent, errors as `{ message, status_code }`.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Declaration from "./internal/apiDeclaration.ts"

export type { Authorization, RequestFaults } from "./internal/apiDeclaration.ts"
export { ErrorBody, ProvisionRequest, ResourceResponse } from "./internal/apiShapes.ts"

/**
 * The declaration: the `api`, its middlewares `Authorization` and `RequestFaults`, and `openApi`, which writes it down as an
 * OpenAPI 3.1 document. It is loaded when it is asked for, since most services get along without an HTTP API.
 *
 * ```ts import.meta.vitest
 * import { RuntimeApi } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 * const { openApi } = await Effect.runPromise(RuntimeApi.declaration)
 * const [secrets] = Object.keys(openApi().paths)
 * secrets // => "/projects/{projectId}/resources/secrets"
 * ```
 *
 * @category api
 * @since 0.1.0
 */
export const declaration: Effect.Effect<typeof Declaration> = Effect.promise(() =>
  import("./internal/apiDeclaration.ts")
)
