import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { causeResponseStripped } from "effect/http/HttpServerError"
import { HttpServerRequest } from "effect/http/HttpServerRequest"
import type { HttpServerResponse } from "effect/http/HttpServerResponse"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"

/** How often is told what a client and a route can both be the cause of. */
const between = 60_000_000_000n

/** Effect answers these with 400 and 404, be it the client's body or a row of our own database. */
const isAnybodys = (cause: Cause.Cause<unknown>): boolean =>
  cause.reasons.some((reason) =>
    reason._tag === "Fail" && (Schema.isSchemaError(reason.error) || Cause.isNoSuchElementError(reason.error))
  )

/**
 * A bug in a route is told, whether requests are logged or not. What routes answer on purpose is no failure. Nor is what the
 * client asked for in vain (no such path, a body that cannot be read): anybody could fill the log with that, so it is for
 * those who look for it. What may be either is told once a minute.
 */
export const makeFailuresTold = () => {
  let quietUntil: bigint | undefined
  const levelOf = (status: number, cause: Cause.Cause<unknown>, now: bigint) => {
    if (status >= 500) return "Error"
    if (!isAnybodys(cause) || (quietUntil !== undefined && now < quietUntil)) return "Debug"
    quietUntil = now + between
    return "Warn"
  }
  return <E, R>(
    app: Effect.Effect<HttpServerResponse, E, HttpServerRequest | R>
  ): Effect.Effect<HttpServerResponse, E, HttpServerRequest | R> =>
    Effect.tapCause(app, (cause) => {
      const [{ status }, unexpected] = causeResponseStripped(cause)
      if (Option.isNone(unexpected) || Cause.hasInterruptsOnly(unexpected.value)) return Effect.void
      return Effect.gen(function*() {
        const { method, url } = yield* HttpServerRequest
        const level = levelOf(status, unexpected.value, yield* Clock.monotonicTimeNanos)
        yield* Effect.logWithLevel(level)(`${method} ${url.split("?")[0]} failed (${status})`, unexpected.value)
      })
    })
}
