import type * as Effect from "effect/Effect"
import * as HttpBody from "effect/http/HttpBody"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Stream from "effect/Stream"

/** The same response, but its stream ends in order when `end` does. */
export const endsWith = (
  response: HttpServerResponse.HttpServerResponse,
  body: HttpBody.Stream,
  end: Effect.Effect<void>
): HttpServerResponse.HttpServerResponse =>
  HttpServerResponse.setBody(
    response,
    HttpBody.stream(Stream.interruptWhen(body.stream, end), response.headers["content-type"] ?? body.contentType)
  )
