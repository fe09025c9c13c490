/**
 * What a person sees while a run is under way. All of it goes to stderr.
 *
 * On a terminal: one live line with the current phase and its time, gone when the phase is. Elsewhere: a plain line for a
 * phase that takes longer than two seconds, so that logs of quick runs stay empty.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"

const frames = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"]
const clear = "\r\u001B[2K"

/**
 * A time as short as a person needs it.
 *
 * @category conversions
 * @since 0.1.0
 */
export const formatTook = (took: Duration.Duration): string => {
  const millis = Duration.toMillis(took)
  return millis < 1000 ? `${Math.round(millis)} ms` : `${(millis / 1000).toFixed(1)} s`
}

/**
 * @category services
 * @since 0.1.0
 */
export class Reporter extends Context.Service<Reporter, {
  /** Shows that this goes on while the effect runs. */
  readonly during: (label: string) => <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  /** A line that stays. */
  readonly line: (text: string) => Effect.Effect<void>
}>()("effect-microvm-runtime/cli/Reporter") {
  /** Lines in memory, for tests. */
  static readonly layerMemory = (lines: Array<string>): Layer.Layer<Reporter> =>
    Layer.succeed(
      Reporter,
      Reporter.of({ during: () => (effect) => effect, line: (text) => Effect.sync(() => void lines.push(text)) })
    )

  static readonly layer: Layer.Layer<Reporter, never, Stdio.Stdio> = Layer.effect(
    Reporter,
    Effect.gen(function*() {
      const stdio = yield* Stdio.Stdio
      const isTerminal = yield* stdio.stderrIsTerminal
      // Nobody to read it is no reason to fail.
      const write = (text: string): Effect.Effect<void> => Effect.ignore(Stream.run(Stream.make(text), stdio.stderr()))
      const line = (text: string): Effect.Effect<void> => write(`${isTerminal ? clear : ""}microvm: ${text}\n`)

      const live = (label: string): Effect.Effect<never> =>
        Effect.gen(function*() {
          const start = yield* Clock.currentTimeMillis
          for (let frame = 0;; frame++) {
            const took = Duration.millis((yield* Clock.currentTimeMillis) - start)
            yield* write(`${clear}${frames[frame % frames.length]} ${label} ${formatTook(took)}`)
            yield* Effect.sleep("100 millis")
          }
        }).pipe(Effect.ensuring(write(clear)))
      const plain = (label: string): Effect.Effect<never> =>
        Effect.andThen(Effect.delay(line(`${label} …`), "2 seconds"), Effect.never)

      return Reporter.of({
        line,
        during: (label) => (effect) => Effect.raceFirst(effect, isTerminal ? live(label) : plain(label))
      })
    })
  )
}
