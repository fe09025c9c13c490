/**
 * What a person sees while a run is under way. All of it goes to stderr, and what of it others have chosen does not steer the terminal.
 *
 * On a terminal: one live line with the current phase and its time, gone when the phase is. Elsewhere: a plain line for a
 * phase that takes longer than two seconds, so that logs of quick runs stay empty. The guest's command may share the
 * terminal; what it has written there is never overwritten.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Sink from "effect/Sink"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as Printable from "../lifecycle/Printable.ts"

const frames = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"]
const clear = "\r\u001B[2K"
/** A live line is cut at the right margin: a second row of it would not be cleared (DECAWM of VT100 terminals). */
const onOneRow = (text: string): string => `\u001B[?7l${text}\u001B[?7h`

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
 * Writes a line. It is Node's to keep once it is written, and the edge's to wait for its reader, so a reader who has
 * stopped to read does not hold us up; one who has gone is no reason to fail.
 *
 * @category combinators
 * @since 0.1.0
 */
export const say = <E>(sink: Sink.Sink<void, string, never, E>, text: string): Effect.Effect<void> =>
  Effect.ignore(Effect.timeoutOption(Stream.run(Stream.make(text), sink), "1 second"))

/**
 * @category services
 * @since 0.1.0
 */
export class Reporter extends Context.Service<Reporter, {
  /** Shows that this goes on while the effect runs. */
  readonly during: (label: string) => <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  /** A line that stays. */
  readonly line: (text: string) => Effect.Effect<void>
  /** A line about what goes on, with which nothing is wrong. */
  readonly note: (text: string) => Effect.Effect<void>
  /** Lets the command's output pass, and minds where it leaves the line that it shares with what is shown here. */
  readonly beside: (
    stream: "stdout" | "stderr"
  ) => <A, L, E, R>(sink: Sink.Sink<A, Uint8Array, L, E, R>) => Sink.Sink<A, Uint8Array, L, E, R>
}>()("effect-microvm-runtime/cli/Reporter") {
  /** Lines in memory, for tests. */
  static readonly layerMemory = (lines: Array<string>): Layer.Layer<Reporter> =>
    Layer.succeed(
      Reporter,
      Reporter.of({
        during: () => (effect) => effect,
        line: (text) => Effect.sync(() => void lines.push(text)),
        note: (text) => Effect.sync(() => void lines.push(text)),
        beside: () => (sink) => sink
      })
    )

  /** It tells only of what is wrong. */
  static readonly quiet = (reporter: Reporter["Service"]): Reporter["Service"] =>
    Reporter.of({ ...reporter, note: () => Effect.void, during: () => (effect) => effect })

  static readonly layer: Layer.Layer<Reporter, never, Stdio.Stdio> = Layer.effect(
    Reporter,
    Effect.gen(function*() {
      const stdio = yield* Stdio.Stdio
      const terminal = yield* Effect.orElseSucceed(Config.String("TERM"), () => "")
      const isLive = (yield* stdio.stderrIsTerminal) && terminal !== "dumb"
      const stdoutIsTerminal = yield* stdio.stdoutIsTerminal
      const write = (text: string): Effect.Effect<void> => say(stdio.stderr(), text)

      // Has the command left a line without its end, where ours would go?
      let unfinished = false
      const fresh = (): string => {
        const before = unfinished ? "\n" : isLive ? clear : ""
        unfinished = false
        return before
      }
      const line = (text: string): Effect.Effect<void> =>
        Effect.suspend(() => write(`${fresh()}microvm: ${Printable.lines(text)}\n`))

      const live = (label: string): Effect.Effect<never> =>
        Effect.suspend(() => {
          let shown = false
          return Effect.gen(function*() {
            const start = yield* Clock.monotonicTimeNanos
            // A quick phase does not flicker, and the last words of a command stay as they are unless it takes long.
            yield* Effect.sleep(unfinished ? "2 seconds" : "200 millis")
            for (let frame = 0;; frame++) {
              const seconds = Number((yield* Clock.monotonicTimeNanos) - start) / 1e9
              const text = `${frames[frame % frames.length]} ${Printable.onOneLine(label)} ${seconds.toFixed(1)} s`
              yield* Effect.suspend(() => write(`${fresh()}${onOneRow(text)}`))
              shown = true
              yield* Effect.sleep("100 millis")
            }
          }).pipe(Effect.ensuring(Effect.suspend(() => shown ? write(clear) : Effect.void)))
        })
      const plain = (label: string): Effect.Effect<never> =>
        Effect.andThen(Effect.delay(line(`${label} …`), "2 seconds"), Effect.never)

      return Reporter.of({
        line,
        note: line,
        during: (label) => (effect) => Effect.raceFirst(effect, isLive ? live(label) : plain(label)),
        beside: (stream) => (sink) =>
          stream === "stdout" && !(isLive && stdoutIsTerminal) ? sink : Sink.mapInput(sink, (bytes: Uint8Array) => {
            if (bytes.length > 0) unfinished = bytes.at(-1) !== 0x0a
            return bytes
          })
      })
    })
  )
}
