/** One HTTP exchange with the runtime API that cannot go on for ever, grow without bound or end up with someone else. */
import * as Clock from "effect/Clock"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Headers from "effect/http/Headers"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientError from "effect/http/HttpClientError"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import type * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { ErrorBody } from "./apiShapes.ts"
import { statusLine } from "./apiStatus.ts"
import { rootMessage } from "./apiText.ts"

/** Why an exchange gave nothing that can be used. */
export interface Failure {
  /** What happened, in one line. It goes before the request that it happened to. */
  readonly head: string
  /** More lines. */
  readonly tail?: string
  /** The same request may go better in a moment. */
  readonly transient: boolean
  /** As the server wishes. */
  readonly retryAfter?: Duration.Duration
  readonly cause?: unknown
}

const maxRedirects = 5

/** Statuses that keep the method and the body; the others turn a `POST` into a `GET`. */
const follows = (method: string, status: number): boolean =>
  status === 307 || status === 308 || (method === "GET" && (status === 301 || status === 302 || status === 303))

/** Where an answer sends the request to, when that is the same server. */
const sameServer = (response: HttpClientResponse.HttpClientResponse, request: HttpClientRequest.HttpClientRequest) => {
  const location = response.headers["location"]
  if (location === undefined || !follows(request.method, response.status)) return undefined
  const to = URL.canParse(location, request.url) ? new URL(location, request.url) : undefined
  return to?.origin === new URL(request.url).origin ? to : undefined
}

/**
 * A client that follows redirects within one origin only, and whose requests end with the scope: a key must not go to whom
 * it was not meant for. `fetch` would follow all of them by itself.
 */
export const sameOrigin = (client: HttpClient.HttpClient): HttpClient.HttpClient.With<
  HttpClientError.HttpClientError,
  Scope.Scope
> => {
  const scoped = HttpClient.withScope(client)
  const follow = (
    response: HttpClientResponse.HttpClientResponse,
    request: HttpClientRequest.HttpClientRequest,
    left: number
  ): Effect.Effect<HttpClientResponse.HttpClientResponse, HttpClientError.HttpClientError, Scope.Scope> => {
    const to = sameServer(response, request)
    if (to === undefined || left === 0) return Effect.succeed(response)
    const next = HttpClientRequest.setUrl(request, to.href)
    return Effect.flatMap(scoped.execute(next), (answer) => follow(answer, next, left - 1))
  }
  return scoped.pipe(
    HttpClient.transform((answered, request) =>
      Effect.flatMap(answered, (response) => follow(response, request, maxRedirects)).pipe(
        Effect.provideService(FetchHttpClient.RequestInit, { redirect: "manual" })
      )
    )
  )
}

const tooLarge = (maxBytes: number): Failure => ({
  head: `the answer is larger than ${maxBytes} bytes`,
  transient: false
})

const broken = (error: HttpClientError.HttpClientError): Failure => ({
  head: `the connection broke off in the middle of the answer${because(error.reason.cause)}`,
  transient: true,
  cause: error.reason.cause
})

const because = (cause: unknown): string => {
  const said = rootMessage(cause)
  return said === undefined ? "" : `: ${said}`
}

/** Of a request that got no answer. Of one that could not be encoded nothing is kept: it has the input in it. */
const unanswered = (error: unknown): Failure =>
  HttpClientError.isHttpClientError(error)
    ? {
      head: `no answer${because(error.reason.cause)}`,
      transient: error.reason._tag === "TransportError",
      cause: error.reason.cause
    }
    : { head: "the request cannot be encoded", transient: false }

/** Reads a body to its end, but never more than `maxBytes` of it. */
const readBody = Effect.fnUntraced(function*(
  response: HttpClientResponse.HttpClientResponse,
  maxBytes: number
): Effect.fn.Return<Uint8Array, Failure> {
  if (Number(response.headers["content-length"]) > maxBytes) return yield* Effect.fail(tooLarge(maxBytes))
  const chunks: Array<Uint8Array> = []
  let size = 0
  yield* response.stream.pipe(
    // How fetch says that there is no body.
    Stream.catch((error) => error.reason._tag === "EmptyBodyError" ? Stream.empty : Stream.fail(broken(error))),
    Stream.runForEach((chunk) => {
      size += chunk.length
      chunks.push(chunk)
      return size > maxBytes ? Effect.fail(tooLarge(maxBytes)) : Effect.void
    })
  )
  const body = new Uint8Array(size)
  chunks.reduce((at, chunk) => {
    body.set(chunk, at)
    return at + chunk.length
  }, 0)
  return body
})

/** `undefined` when it is not UTF-8. */
const textOf = (body: Uint8Array): string | undefined => {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(body)
  } catch {
    return undefined
  }
}

/** The parser's own words are not kept: they repeat the text, which may hold secrets. */
const jsonOf = (body: Uint8Array): Result.Result<unknown, string> => {
  const text = textOf(body)
  return text === undefined
    ? Result.fail("not UTF-8")
    : Result.try({ try: (): unknown => JSON.parse(text), catch: () => "not JSON" })
}

const decodeErrorBody = Schema.decodeUnknownResult(ErrorBody)

/** What an error says of itself: its own status, which may differ from that of the response, and a message. */
const describeError = (status: number, body: Uint8Array): Pick<Failure, "head" | "tail"> =>
  Result.match(
    Result.flatMap(jsonOf(body), (json) => Result.mapError(decodeErrorBody(json), ({ message }) => message)),
    {
      onFailure: () => ({
        head: statusLine(status),
        tail: `Message: the error response cannot be parsed:\n${textOf(body) ?? `[${body.length} bytes]`}`
      }),
      onSuccess: ({ message, status_code }) => ({
        head: status_code === status ? statusLine(status) : `${statusLine(status_code)} (HTTP status ${status})`,
        tail: `Message: ${message}`
      })
    }
  )

const isTransient = (status: number): boolean => status === 429 || status >= 500

const retryAfter = Effect.fnUntraced(function*(
  response: HttpClientResponse.HttpClientResponse
): Effect.fn.Return<Pick<Failure, "retryAfter">> {
  const header = response.headers["retry-after"]
  const parsed = header === undefined ? undefined : Headers.parseRetryAfter(header)
  if (parsed === undefined || Result.isFailure(parsed)) return {}
  return { retryAfter: Headers.retryAfterDelay(parsed.success, yield* Clock.currentTimeMillis) }
})

/**
 * Sends, reads, and leaves nothing open. What the answer says is JSON, not yet more.
 */
export const exchange = (
  send: Effect.Effect<HttpClientResponse.HttpClientResponse, unknown, Scope.Scope>,
  maxBytes: number
): Effect.Effect<unknown, Failure> =>
  Effect.gen(function*() {
    const response = yield* Effect.mapError(send, unanswered)
    const { status } = response
    if (status >= 300 && status < 400) {
      return yield* Effect.fail<Failure>({
        head: `${status}: sent on to ${response.headers["location"] ?? "nowhere"}, and not followed there`,
        tail: "Redirects are followed within one server only; the URL of the API has to be the final one",
        transient: false
      })
    }
    const body = yield* readBody(response, maxBytes)
    if (status >= 400) {
      return yield* Effect.fail<Failure>({
        ...describeError(status, body),
        ...yield* retryAfter(response),
        transient: isTransient(status)
      })
    }
    return yield* Effect.fromResult(Result.mapError(jsonOf(body), (what): Failure => ({
      head: `the answer (status ${status}, ${body.length} bytes) is ${what}`,
      transient: false
    })))
  }).pipe(Effect.scoped)
