/**
 * The sidecar: a process beside the service that helps while it starts, and is told when it is no longer needed.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as HttpClient from "effect/http/HttpClient"

/**
 * Tells the sidecar at `url` to stop: `GET {url}/__shuttle/shutdown`. Best effort: whether it was told is the answer, a
 * failure is a line in the log and never stops a service. Takes at most `within`, 2 seconds by default.
 *
 * ```ts import.meta.vitest
 * import { Sidecar } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 * import * as HttpClient from "effect/http/HttpClient"
 *
 * // Nobody answers.
 * const silent = HttpClient.make(() => Effect.never)
 * const stop = Sidecar.stop(new URL("http://127.0.0.1:9"), { within: "10 millis" })
 * await Effect.runPromise(Effect.provideService(stop, HttpClient.HttpClient, silent)) // => false
 * ```
 *
 * @category operations
 * @since 0.1.0
 */
export const stop = Effect.fn("Sidecar.stop")(function*(
  url: URL,
  options: { readonly within?: Duration.Input | undefined } = {}
): Effect.fn.Return<boolean, never, HttpClient.HttpClient> {
  const sidecar = yield* Effect.promise(() => import("./internal/apiSidecar.ts"))
  return yield* sidecar.stop(url, options.within ?? "2 seconds")
})
