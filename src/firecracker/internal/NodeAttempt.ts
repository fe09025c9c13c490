import * as Effect from "effect/Effect"
import * as FirecrackerError from "../FirecrackerError.ts"

/** The name of a system error (`"ENOENT"`), or what else is said of it. */
export const codeOf = (error: unknown): string =>
  typeof error === "object" && error !== null && "code" in error ? String(error.code) : String(error)

export const hostFailed = (
  operation: string,
  path: string,
  why: string,
  cause?: unknown
): FirecrackerError.FirecrackerError =>
  FirecrackerError.make(new FirecrackerError.HostFailed({ operation, path, why, cause }))

/** What the system refuses is a failure that names the operation and the path. An interruption waits until it is done. */
export const attempt = <A>(
  operation: string,
  path: string,
  run: () => Promise<A>
): Effect.Effect<A, FirecrackerError.FirecrackerError> =>
  Effect.uninterruptible(
    Effect.tryPromise({ try: run, catch: (cause) => hostFailed(operation, path, codeOf(cause), cause) })
  )

/** The same for what can be given up half-way: an interruption waits until it has heard the signal. */
export const attemptAbortable = <A>(
  operation: string,
  path: string,
  run: (signal: AbortSignal) => Promise<A>
): Effect.Effect<A, FirecrackerError.FirecrackerError> =>
  Effect.callback((resume) => {
    const controller = new AbortController()
    const done = run(controller.signal).then(
      (value) => resume(Effect.succeed(value)),
      (cause: unknown) => resume(Effect.fail(hostFailed(operation, path, codeOf(cause), cause)))
    )
    return Effect.promise(() => {
      controller.abort()
      return done
    })
  })
