import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import { causeResponseStripped } from "effect/http/HttpServerError"
import { HttpServerRequest } from "effect/http/HttpServerRequest"
import type { HttpServerResponse } from "effect/http/HttpServerResponse"
import * as Option from "effect/Option"

/**
 * A bug in a route is told, whether requests are logged or not. What routes answer on purpose is no failure. Nor is what the
 * client asked for in vain (no such path, a body that cannot be read): anybody could fill the log with that, so it is for
 * those who look for it.
 */
export const failuresTold = <E, R>(
  app: Effect.Effect<HttpServerResponse, E, HttpServerRequest | R>
): Effect.Effect<HttpServerResponse, E, HttpServerRequest | R> =>
  Effect.tapCause(app, (cause) => {
    const [{ status }, unexpected] = causeResponseStripped(cause)
    if (Option.isNone(unexpected) || Cause.hasInterruptsOnly(unexpected.value)) return Effect.void
    const log = status >= 500 ? Effect.logError : Effect.logDebug
    return Effect.flatMap(HttpServerRequest, ({ method, url }) =>
      log(`${method} ${url.split("?")[0]} failed (${status})`, unexpected.value))
  })
