/** How a sidecar is told to stop. `Sidecar` loads it. */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import { explain } from "../ServiceError.ts"
import { sameOrigin } from "./apiExchange.ts"

export const stop = Effect.fnUntraced(function*(url: URL, within: Duration.Input) {
  const client = sameOrigin(yield* HttpClient.HttpClient)
  const request = HttpClientRequest.get(`${url.origin}${url.pathname.replace(/\/+$/, "")}/__shuttle/shutdown`)
  return yield* client.execute(request).pipe(
    // A redirect that is not followed has told nobody.
    Effect.flatMap(HttpClientResponse.filterStatusOk),
    Effect.scoped,
    Effect.timeout(within),
    Effect.as(true),
    Effect.catch((error) =>
      Effect.as(Effect.logWarning(`The sidecar could not be told to stop: ${explain(error)}`), false)
    )
  )
})
