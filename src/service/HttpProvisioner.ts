/**
 * Resources from a runtime API over HTTP.
 *
 * What the API does wrong (refuses, hangs, trickles, breaks off, floods, answers nonsense, sends elsewhere) becomes a
 * `ProvisionerError` in bounded time and space. Transport errors, hanging, 429 and 5xx are tried again, with jitter; other 4xx never.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { bearerFault } from "./internal/configValues.ts"
import { Provisioner } from "./Provisioner.ts"

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
  /** Bounds the first attempt, its whole answer included; each that follows has twice as long. Default: 12 seconds. */
  readonly attemptTimeout?: Duration.Input | undefined
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

const keyFaults = (key: string): ReadonlyArray<string> => {
  if (key === "") return ["the API key is empty: leave it out when the API needs none"]
  const fault = bearerFault(key)
  return fault === undefined ? [] : [`the API key ${fault}`]
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
  const client = yield* Effect.promise(() => import("./internal/apiProvisioner.ts"))
  return yield* client.make({
    base: shown(api).replace(/\/+$/, ""),
    apiKey,
    projectId,
    timeout: Duration.fromInputUnsafe(options.timeout ?? "1 minute"),
    attemptTimeout: Duration.fromInputUnsafe(options.attemptTimeout ?? "12 seconds"),
    maxBytes,
    retry: {
      times: retry.times ?? 4,
      wait: Duration.fromInputUnsafe(retry.wait ?? "250 millis"),
      longest: Duration.fromInputUnsafe(retry.longest ?? "30 seconds")
    },
    faults: check(options)
  })
})

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
