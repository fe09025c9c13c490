import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import { causeResponseStripped } from "effect/http/HttpServerError"
import { HttpServerRequest } from "effect/http/HttpServerRequest"
import type { HttpServerResponse } from "effect/http/HttpServerResponse"
import * as Option from "effect/Option"

/** A bug in a route is told, whether requests are logged or not. What routes answer on purpose is no failure. */
export const failuresTold = <E, R>(
  app: Effect.Effect<HttpServerResponse, E, HttpServerRequest | R>
): Effect.Effect<HttpServerResponse, E, HttpServerRequest | R> =>
  Effect.tapCause(app, (cause) => {
    const [{ status }, unexpected] = causeResponseStripped(cause)
    if (Option.isNone(unexpected) || Cause.hasInterruptsOnly(unexpected.value)) return Effect.void
    return Effect.flatMap(HttpServerRequest, ({ method, url }) =>
      Effect.logError(`${method} ${url.split("?")[0]} failed (${status})`, unexpected.value))
  })
