/**
 * Waits until a process is of use, and no longer than it lives.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import type { Process } from "./Process.ts"
import { fromReason, ProcessError, ProcessErrorReason } from "./ProcessError.ts"

/**
 * When to look again: after 5 ms, then ever later, up to every 200 ms.
 *
 * @category constants
 * @since 0.1.0
 */
export const defaultSchedule: Schedule.Schedule<unknown> = Schedule.min([
  Schedule.exponential("5 millis", 1.5),
  Schedule.spaced("200 millis")
])

/**
 * Repeats a check until it succeeds. If the process ends first, this fails at once with `DiedBeforeReady`, which holds the
 * status and the last output; after `within` it fails with `NotReady`, whose `cause` is the error of the last check. The
 * process, a `HeldProcess` too, is left as it is.
 *
 * ```ts import.meta.vitest
 * import { NodeProcessSpawner, ProcessSpawner, Readiness } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * import * as ChildProcess from "effect/process/ChildProcess"
 *
 * const program = Effect.gen(function*() {
 *   const spawner = yield* ProcessSpawner.ProcessSpawner
 *   const process = yield* spawner.spawn(ChildProcess.make("sh", ["-c", "echo no disk >&2; exit 3"]))
 *   return yield* Readiness.awaitReady(process, Effect.fail("not yet"), { within: "5 seconds" })
 * }).pipe(Effect.scoped, Effect.provide(NodeProcessSpawner.layer))
 * const error = await Effect.runPromise(Effect.flip(program))
 * error.message // => "exited with code 3 before it was ready\nstderr:\nno disk"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const awaitReady = Effect.fn("Readiness.awaitReady")(function*<A, E, R>(
  process: Pick<Process, "exit" | "tail">,
  check: Effect.Effect<A, E, R>,
  options: {
    readonly within: Duration.Input
    /** Default `defaultSchedule`. */
    readonly schedule?: Schedule.Schedule<unknown, E> | undefined
  }
): Effect.fn.Return<A, ProcessError, R> {
  const within = Duration.fromInputUnsafe(options.within)
  let last: unknown
  const ready = check.pipe(
    Effect.tapError((error) =>
      Effect.sync(() => {
        last = error
      })
    ),
    Effect.retry(options.schedule ?? defaultSchedule),
    // A schedule that has an end gives up before the deadline.
    Effect.option,
    Effect.timeoutOption(within),
    Effect.map(Option.flatten)
  )
  const died = Effect.flatMap(
    process.exit,
    (status) =>
      Effect.flatMap(
        process.tail,
        (tail) => Effect.fail(fromReason(ProcessErrorReason.DiedBeforeReady({ status, tail })))
      )
  )
  const result = yield* Effect.raceFirst(died, ready)
  if (Option.isSome(result)) return result.value
  const reason = ProcessErrorReason.NotReady({ within, tail: yield* process.tail })
  return yield* new ProcessError({ reason, cause: last })
})

/** How much of the output is kept to match a pattern against. */
const window = 8_192

/**
 * A check for `awaitReady`: reads `stdout` or `stderr` until a pattern matches, and gives the match. A match may span what
 * came in pieces, up to 8 KiB. What was read up to then is in the tail; the stream goes on after it.
 * Where another one reads the stream, too, as for a log file, share it: `outputMatches({ ...process, stdout }, …)` with a
 * `Stream.share` of `process.stdout`.
 *
 * @category checks
 * @since 0.1.0
 */
export const outputMatches = (
  process: Pick<Process, "stdout" | "stderr">,
  stream: "stdout" | "stderr",
  pattern: RegExp
): Effect.Effect<RegExpExecArray, ProcessError> =>
  Effect.suspend(() => {
    // The flags g and y would make matching depend on the match before.
    const stateless = new RegExp(pattern.source, pattern.flags.replace(/[gy]/g, ""))
    let text = ""
    return process[stream].pipe(
      Stream.decodeText,
      Stream.map((piece) => {
        text = (text + piece).slice(-window - piece.length)
        return stateless.exec(text)
      }),
      Stream.filter((match) => match !== null),
      Stream.runHead,
      Effect.flatMap(Option.match({
        onSome: Effect.succeed,
        onNone: () =>
          Effect.fail(fromReason(ProcessErrorReason.StreamFailed({ stream, code: `ended without ${pattern}` })))
      }))
    )
  })
