/** The handlers of the runtime API over a provisioner. `RuntimeApiServer` loads them. */
import * as ByteSize from "effect/ByteSize"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import * as HttpIncomingMessage from "effect/http/HttpIncomingMessage"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { Provisioner, type ProvisionerError } from "../Provisioner.ts"
import * as Declaration from "./apiDeclaration.ts"

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

export const layer = (options: Options) => {
  const { apiKey = Option.none(), projectId } = options

  const isServed = (asked: string) =>
    asked === projectId
      ? Effect.void
      : Effect.fail({ message: `there is no project "${asked}" here`, status_code: 404 as const })

  const resources = HttpApiBuilder.group(
    Declaration.api,
    "resources",
    Effect.fnUntraced(function*(handlers) {
      const provisioner = yield* Provisioner
      const scope = yield* Effect.scope
      const held = new Map<string, Scope.Closeable>()
      // The same request asks again how far it is: what an earlier one holds is let go when the later one has it.
      const provision = (type: string, config: unknown) =>
        Effect.uninterruptibleMask((restore) =>
          Effect.gen(function*() {
            const own = yield* Scope.fork(scope)
            const answer = yield* restore(provisioner.request({ name: type, type, config })).pipe(
              Scope.provide(own),
              Effect.onError((cause) => Scope.close(own, Exit.failCause(cause)))
            )
            const key = JSON.stringify([type, config])
            const before = held.get(key)
            held.set(key, own)
            if (before !== undefined) yield* Scope.close(before, Exit.void)
            return answer
          })
        )
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
            Effect.andThen(Effect.mapError(provision(type, config), failed)),
            Effect.map((answer) => ({ type: answer.type, state: answer.state, config, output: answer.output ?? null }))
          ))
    })
  )

  const authorization = Layer.succeed(Declaration.Authorization, {
    bearer: (handled, { credential }) =>
      Option.isNone(apiKey) || Redacted.value(apiKey.value) === Redacted.value(credential)
        ? handled
        : Effect.fail({ message: "the key is missing or wrong", status_code: 401 as const })
  })

  const requestFaults = HttpApiMiddleware.layerSchemaErrorTransform(
    Declaration.RequestFaults,
    ({ cause, kind }) => Effect.fail({ message: `${kind}: ${cause.message}`, status_code: 400 as const })
  )

  const notFound = HttpRouter.add(
    "*",
    "/*",
    HttpServerResponse.jsonUnsafe({ message: "there is nothing at this path", status_code: 404 }, { status: 404 })
  )

  return HttpApiBuilder.layer(Declaration.api, { openapiPath: "/openapi.json" }).pipe(
    Layer.merge(notFound),
    Layer.provide(resources),
    Layer.provide([authorization, requestFaults, Layer.succeed(HttpIncomingMessage.MaxBodySize, maxBodySize)])
  )
}
