/**
 * Resources from a runtime API over HTTP.
 *
 * What the API does wrong (refuses, hangs, trickles, breaks off, floods, answers nonsense, sends elsewhere) becomes a
 * `ProvisionerError` in bounded time and space. Transport errors, 429 and 5xx are tried again, with jitter; other 4xx never.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as HttpApiClient from "effect/http-api/HttpApiClient"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import type * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Ref from "effect/Ref"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import type * as Scope from "effect/Scope"
import { exchange, type Failure, sameOrigin } from "./internal/apiExchange.ts"
import { conceal, printable } from "./internal/apiText.ts"
import { Provisioner, ProvisionerError } from "./Provisioner.ts"
import type { ResourceAnswer, ResourceRequest } from "./Provisioner.ts"
import type { SecretMap } from "./Resource.ts"
import * as RuntimeApi from "./RuntimeApi.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Where the API is: `http:` or `https:`. A path is kept as a prefix; there is no query, fragment or user. */
  readonly api: URL
  /** Sent as `Authorization: Bearer …`. */
  readonly apiKey: Option.Option<Redacted.Redacted>
  /** Escaped on the wire, so any text but the empty one, `.` and `..` will do. */
  readonly projectId: string
  /** Bounds a request with all its attempts and the waits between them. Default: 1 minute. */
  readonly timeout?: Duration.Input | undefined
  /** Bounds what is read of one answer, in bytes. Default: 8 MiB. */
  readonly maxBytes?: number | undefined
  readonly retry?: Retry | undefined
}

/**
 * How often and when a request that failed is tried again. The wait doubles each time and is spread by half of itself to
 * either side; `Retry-After` makes it longer, `longest` bounds both.
 *
 * @category options
 * @since 0.1.0
 */
export interface Retry {
  /** After the first attempt. Default: 4. */
  readonly times?: number | undefined
  /** The first wait. Default: 250 milliseconds. */
  readonly wait?: Duration.Input | undefined
  /** No wait is longer. Default: 30 seconds. */
  readonly longest?: Duration.Input | undefined
}

/** A header holds visible text (RFC 9110), a bearer token has no spaces (RFC 6750). */
const keyFaults = (key: string): ReadonlyArray<string> => {
  if (key === "") return ["the API key is empty: leave it out when the API needs none"]
  const at = key.search(/[^\x21-\x7e]/)
  if (at === -1) return []
  const name = `U+${key.codePointAt(at)?.toString(16).toUpperCase().padStart(4, "0")}`
  return [
    `the API key has ${name} at position ${at + 1}, which a header cannot hold: check it for line breaks and spaces`
  ]
}

/**
 * What about the options makes every request impossible, one sentence each. A provisioner with faults sends nothing and
 * fails each request with them. The key is not shown.
 *
 * ```ts import.meta.vitest
 * import { HttpProvisioner } from "effect-microvm-runtime/service"
 * import * as Option from "effect/Option"
 * const faults = HttpProvisioner.check({ api: new URL("ftp://host/"), apiKey: Option.none(), projectId: "" })
 * faults // => ["the API ftp://host/ has to begin with http:// or https://", "the project id is empty"]
 * ```
 *
 * @category guards
 * @since 0.1.0
 */
export const check = (
  { api, apiKey, projectId }: Pick<Options, "api" | "apiKey" | "projectId">
): ReadonlyArray<string> => [
  ...(/^https?:$/.test(api.protocol) ? [] : [`the API ${shown(api)} has to begin with http:// or https://`]),
  ...(api.search === "" && api.hash === "" ? [] : [`the API ${shown(api)} has a query or a fragment: leave it out`]),
  ...(api.username === "" && api.password === "" ? [] : [
    `the API ${shown(api)} has a user or a password: leave them out, and use the API key`
  ]),
  ...(projectId === "" ? ["the project id is empty"] : []),
  ...(projectId === "." || projectId === ".."
    ? [`the project id "${projectId}" cannot be part of a path: "." and ".." name folders`]
    : []),
  ...(projectId.isWellFormed() ? [] : ["the project id is not well-formed Unicode"]),
  ...Option.match(apiKey, { onNone: () => [], onSome: (key) => keyFaults(Redacted.value(key)) })
]

/** Without what may be secret. */
const shown = ({ host, pathname, protocol }: URL): string => `${protocol}//${host}${pathname}`

/** Besides the object that is declared, Shuttle's runtime takes its four values as an array. */
const Answer = Schema.Union([
  RuntimeApi.ResourceResponse,
  Schema.Tuple([Schema.String, Schema.String, Schema.Unknown, Schema.Unknown]).pipe(
    Schema.decodeTo(
      Schema.toType(RuntimeApi.ResourceResponse),
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

/**
 * A provisioner over an API. See `layer`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fn("HttpProvisioner.make")(function*(
  options: Options
): Effect.fn.Return<Provisioner["Service"], never, HttpClient.HttpClient> {
  const { api, apiKey, maxBytes = 8 * 1024 * 1024, projectId, retry = {} } = options
  const timeout = Duration.fromInputUnsafe(options.timeout ?? "1 minute")
  const times = retry.times ?? 4
  const wait = Duration.fromInputUnsafe(retry.wait ?? "250 millis")
  const longest = Duration.fromInputUnsafe(retry.longest ?? "30 seconds")
  const faults = check(options)
  const base = shown(api).replace(/\/+$/, "")

  /** What the API may repeat but nobody may see. */
  const secret = yield* Ref.make(Option.toArray(apiKey))

  const authorization = HttpApiMiddleware.layerClient(
    RuntimeApi.Authorization,
    ({ next, request }) =>
      next(Option.match(apiKey, {
        onNone: () => request,
        onSome: (key) => HttpClientRequest.bearerToken(request, key)
      }))
  )
  const client = yield* HttpApiClient.makeWith(RuntimeApi.api, {
    httpClient: sameOrigin(yield* HttpClient.HttpClient),
    baseUrl: base
  }).pipe(Effect.provide(authorization))

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
  ): Effect.Effect<A, ProvisionerError> => {
    const place = `${method} ${base}/projects/${encodeURIComponent(projectId.toWellFormed())}/${path}`
    let attempts = 0
    let last: Failure | undefined

    const attempt: Effect.Effect<A, Failure> = Effect.suspend(() => {
      attempts++
      return exchange(send, maxBytes)
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
  }

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
      Effect.tap((secrets) => Ref.update(secret, (known) => [...known, ...secrets.values()])),
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

/**
 * A provisioner over the API at `api`. It sends nothing before it is asked.
 *
 * ```ts import.meta.vitest
 * import { HttpProvisioner, Provisioner } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 * import * as HttpClient from "effect/http/HttpClient"
 * import * as HttpClientResponse from "effect/http/HttpClientResponse"
 * import * as Option from "effect/Option"
 *
 * const body = { type: "secrets", state: "ready", config: null, output: { API_KEY: "k3y" } }
 * const client = HttpClient.make((request) =>
 *   Effect.succeed(HttpClientResponse.fromWeb(request, new Response(JSON.stringify(body))))
 * )
 * const options = { api: new URL("http://localhost"), apiKey: Option.none(), projectId: "p1" }
 * const program = Effect.map(Provisioner.Provisioner.use(({ secrets }) => secrets), (secrets) => [...secrets.keys()])
 * await Effect.runPromise(program.pipe(
 *   Effect.provide(HttpProvisioner.layer(options)),
 *   Effect.provideService(HttpClient.HttpClient, client)
 * )) // => ["API_KEY"]
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<Provisioner, never, HttpClient.HttpClient> =>
  Layer.effect(Provisioner, make(options))
