/**
 * Our stdin where it is a terminal: read only while we are in the terminal's foreground.
 *
 * A job in the background that reads from its terminal is stopped by the kernel (SIGTTIN, termios(3)), and a run that stands still
 * answers nobody and ends nothing. Node can neither ignore that signal nor be told when a job comes to the foreground.
 */
import * as NodeStdio from "@effect/platform-node/NodeStdio"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { type PlatformError, systemError } from "effect/PlatformError"
import type * as Pull from "effect/Pull"
import * as Schedule from "effect/Schedule"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as NodeFs from "node:fs"

/** How soon a job that was put into the foreground hears what is typed. */
const lookEvery = "200 millis"

/** proc_pid_stat(5): the group of this process, and the one in the foreground of its terminal, 0 or -1 where there is none. */
const isInBackground = Effect.sync((): boolean => {
  try {
    const stat = NodeFs.readFileSync("/proc/self/stat", "utf8")
    const [, , group, , , foreground] = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
    return Number(foreground) > 0 && foreground !== group
  } catch {
    return false
  }
})

const inForeground = Effect.repeat(isInBackground, { schedule: Schedule.spaced(lookEvery), while: (so) => so })

/** A job is stopped in the foreground and goes on in the background: `bg` of a shell. */
const putIntoBackground: Effect.Effect<void> = Effect.callback<void>((resume) => {
  const listener = (): void => resume(Effect.void)
  process.once("SIGCONT", listener)
  return Effect.sync(() => process.off("SIGCONT", listener))
}).pipe(Effect.andThen(isInBackground), Effect.repeat({ until: (so) => so }), Effect.asVoid)

/** What comes next; nothing of it is asked for between two calls. `undefined` is the end. */
const read = Effect.callback<Uint8Array | undefined, PlatformError>((resume) => {
  const { stdin } = process
  const onData = (bytes: Uint8Array): void => done(Effect.succeed(bytes))
  const onEnd = (): void => done(Effect.undefined)
  const onError = (cause: unknown): void =>
    done(Effect.fail(systemError({ module: "Stdio", method: "stdin", _tag: "Unknown", cause })))
  const release = (): void => {
    stdin.off("data", onData).off("end", onEnd).off("error", onError).pause()
  }
  const done = (next: Effect.Effect<Uint8Array | undefined, PlatformError>): void => {
    release()
    resume(next)
  }
  if (stdin.readableEnded) return onEnd()
  stdin.on("data", onData).on("end", onEnd).on("error", onError).resume()
  return Effect.sync(release)
})

const pull: Pull.Pull<readonly [Uint8Array], PlatformError> = Effect.flatMap(
  Effect.andThen(inForeground, Effect.raceFirst(Effect.map(read, (bytes) => ({ bytes })), putIntoBackground)),
  (next): Pull.Pull<readonly [Uint8Array], PlatformError> =>
    next === undefined ? pull : next.bytes === undefined ? Cause.done() : Effect.succeed([next.bytes])
)

/** @internal */
export const layer: Layer.Layer<Stdio.Stdio> = Layer.effect(
  Stdio.Stdio,
  Effect.map(Stdio.Stdio, (stdio) =>
    Stdio.make({
      ...stdio,
      stdin: Stream.unwrap(
        Effect.map(stdio.stdinIsTerminal, (so) => so ? Stream.fromPull(Effect.succeed(pull)) : stdio.stdin)
      )
    }))
).pipe(Layer.provide(NodeStdio.layer))
