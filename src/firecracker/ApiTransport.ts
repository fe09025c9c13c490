/**
 * How requests reach the API of a Firecracker, and answers come back: HTTP and nothing of what it means.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type { FirecrackerError, Method } from "./FirecrackerError.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface ApiRequest {
  readonly method: Method
  /** Starts with `/`. Refused with `InvalidRequest` when it has other characters than a path of the API. */
  readonly path: string
  /** JSON, as text. */
  readonly body?: string | undefined
  /** From the call to the last byte of the answer. */
  readonly within: Duration.Duration
}

/**
 * An answer with any status.
 *
 * @category models
 * @since 0.1.0
 */
export interface ApiResponse {
  readonly status: number
  /** Empty when there is none. */
  readonly body: string
  /** Was the call marked as deprecated? */
  readonly deprecated: boolean
}

/**
 * Makes calls. At most one that changes something (all but `GET`) is under way at a time, in the order of the calls;
 * reads go beside it, on connections of their own, a few at most. An interrupted call gives its connection up.
 *
 * @category models
 * @since 0.1.0
 */
export interface ApiTransport {
  /** Fails with `ConnectionFailed`, `NoReply`, `ProtocolViolation` or `InvalidRequest`; a status is no failure. */
  readonly request: (request: ApiRequest) => Effect.Effect<ApiResponse, FirecrackerError>
}
