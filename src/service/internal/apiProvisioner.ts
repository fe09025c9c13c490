/** The client side of the runtime API. `HttpProvisioner` loads it. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as HttpApiClient from "effect/http-api/HttpApiClient"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import type * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Ref from "effect/Ref"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import type * as Scope from "effect/Scope"
import { Provisioner, ProvisionerError } from "../Provisioner.ts"
import type { ResourceAnswer, ResourceRequest } from "../Provisioner.ts"
import type { SecretMap } from "../Resource.ts"
import * as Declaration from "./apiDeclaration.ts"
import { exchange, type Failure, sameOrigin } from "./apiExchange.ts"
import { ResourceResponse } from "./apiShapes.ts"
import { conceal, printable } from "./apiText.ts"

/** Besides the object that is declared, Shuttle's runtime takes its four values as an array. */
const Answer = Schema.Union([
  ResourceResponse,
  Schema.Tuple([Schema.String, Schema.String, Schema.Unknown, Schema.Unknown]).pipe(
    Schema.decodeTo(
      Schema.toType(ResourceResponse),
      SchemaTransformation.transform({
        decode: ([type, state, config, output]: readonly [string, string, unknown, unknown]) => ({
          type,
          state,
          config,
          output
        }),
        encode: ({ config, output, state, type }) => [type, state, config, output] as const
      })
    )
  )
])

const Secrets = Schema.Record(Schema.String, Schema.String)

/** The first words of a request that did not work, its place, and the rest. */
const compose = (failure: Failure, request: string, attempts: number): string =>
  `${failure.head} (${request}${attempts > 1 ? `, ${attempts} attempts` : ""})${
    failure.tail === undefined ? "" : `\n${failure.tail}`
  }`

/** A person reads no more of an error. */
const longestMessage = 2_000

/** Options with all defaults. */
export interface Settings {
  /** Of the API, without a slash at its end. */
  readonly base: string
  readonly apiKey: Option.Option<Redacted.Redacted>
  readonly projectId: string
  readonly timeout: Duration.Duration
  readonly attemptTimeout: Duration.Duration
  readonly maxBytes: number
  readonly retry: { readonly times: number; readonly wait: Duration.Duration; readonly longest: Duration.Duration }
  /** With any, nothing is sent. */
  readonly faults: ReadonlyArray<string>
}

export const make = Effect.fnUntraced(function*(
  settings: Settings
): Effect.fn.Return<Provisioner["Service"], never, HttpClient.HttpClient> {
  const { apiKey, attemptTimeout, base, faults, maxBytes, projectId, retry: { longest, times, wait }, timeout } =
    settings

  /** What the API may repeat but nobody may see. */
  const secret = yield* Ref.make(Option.toArray(apiKey))

  const authorization = HttpApiMiddleware.layerClient(
    Declaration.Authorization,
    ({ next, request }) =>
      next(Option.match(apiKey, {
        onNone: () => request,
        onSome: (key) => HttpClientRequest.bearerToken(request, key)
      }))
  )
  const client = yield* HttpApiClient.makeWith(Declaration.api, {
    httpClient: sameOrigin(yield* HttpClient.HttpClient),
    baseUrl: base
  }).pipe(Effect.provide(authorization))

  const hung = (within: Duration.Duration): Failure => ({
    head: `no complete answer within ${Duration.format(within)}`,
    transient: true
  })

  const pause = Effect.fnUntraced(function*(attempts: number, retryAfter: Duration.Duration = Duration.zero) {
    const spread = 0.5 + (yield* Random.next)
    const backOff = Duration.times(wait, 2 ** (attempts - 1) * spread)
    yield* Effect.sleep(Duration.min(Duration.max(backOff, retryAfter), longest))
  })

  const request = <A>(
    method: string,
    path: string,
    send: Effect.Effect<HttpClientResponse.HttpClientResponse, unknown, Scope.Scope>,
    decode: (json: unknown) => Result.Result<A, Failure>
  ): Effect.Effect<A, ProvisionerError> =>
    Effect.suspend(() => {
      const place = `${method} ${base}/projects/${encodeURIComponent(projectId.toWellFormed())}/${path}`
      let attempts = 0
      let last: Failure | undefined

      const attempt: Effect.Effect<A, Failure> = Effect.suspend(() => {
        // An API that is slow, and not lost, is to come to its answer, too.
        const within = Duration.times(attemptTimeout, 2 ** attempts++)
        return Effect.timeoutOrElse(exchange(send, maxBytes), {
          duration: within,
          orElse: () => Effect.fail(hung(within))
        })
      }).pipe(
        Effect.flatMap((json) => Effect.fromResult(decode(json))),
        Effect.catch((failure) => {
          last = failure
          return failure.transient && attempts <= times
            ? Effect.logDebug(`${failure.head} (${place}), trying again`).pipe(
              Effect.andThen(pause(attempts, failure.retryAfter)),
              Effect.andThen(attempt)
            )
            : Effect.fail(failure)
        })
      )
      const late = Effect.suspend(() =>
        Effect.fail<Failure>({
          head: `no good answer within ${Duration.format(timeout)}`,
          ...(last === undefined ? {} : { tail: `The last one was: ${compose(last, place, 1)}`, cause: last.cause }),
          transient: false
        })
      )
      return attempt.pipe(
        Effect.timeoutOrElse({ duration: timeout, orElse: () => late }),
        Effect.catch(Effect.fnUntraced(function*(failure) {
          const message = printable(conceal(compose(failure, place, attempts), yield* Ref.get(secret)), longestMessage)
          return yield* new ProvisionerError(
            failure.cause === undefined ? { message } : { message, cause: failure.cause }
          )
        }))
      )
    })

  const withoutFaults = <A>(self: Effect.Effect<A, ProvisionerError>): Effect.Effect<A, ProvisionerError> =>
    faults.length === 0 ? self : new ProvisionerError({ message: faults.join("; ") })

  const decodeAnswer = (json: unknown) => Result.mapError(decodeUnknownAnswer(json), misshapen("the answer"))

  return Provisioner.of({
    secrets: withoutFaults(
      request(
        "GET",
        "resources/secrets",
        client.resources.secrets({ params: { projectId }, responseMode: "response-only" }),
        (json) => Result.flatMap(decodeAnswer(json), ({ output }) => secretMap(output))
      )
    ).pipe(
      Effect.tap((secrets) => Ref.set(secret, [...Option.toArray(apiKey), ...secrets.values()])),
      Effect.withSpan("HttpProvisioner.secrets")
    ),
    request: (resource: ResourceRequest) =>
      withoutFaults(
        request(
          "POST",
          "resources",
          client.resources.provision({
            params: { projectId },
            payload: { type: resource.type, config: resource.config },
            responseMode: "response-only"
          }),
          (json): Result.Result<ResourceAnswer, Failure> => decodeAnswer(json)
        )
      ).pipe(
        Effect.withSpan("HttpProvisioner.request", { attributes: { resource: resource.name, type: resource.type } })
      )
  })
})

const decodeUnknownAnswer = Schema.decodeUnknownResult(Answer)

const decodeUnknownSecrets = Schema.decodeUnknownResult(Secrets, { errors: "all" })

/** What a schema says names places, never values. */
const misshapen = (what: string) => ({ message }: Schema.SchemaError): Failure => ({
  head: `${what} is not what the API promises`,
  tail: message,
  transient: false
})

const secretMap = (output: unknown): Result.Result<SecretMap, Failure> =>
  decodeUnknownSecrets(output).pipe(
    Result.map((secrets) =>
      new Map(
        Object.entries(secrets)
          .toSorted(([left], [right]) => left < right ? -1 : 1)
          .map(([name, value]) => [name, Redacted.make(value, { label: name })])
      )
    ),
    Result.mapError(misshapen("the map of secrets"))
  )
