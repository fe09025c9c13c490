/**
 * Programs for the guest of `FakeGuestAgent`.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"

/**
 * A program that runs.
 *
 * @category models
 * @since 0.1.0
 */
export interface Invocation {
  readonly command: string
  readonly args: ReadonlyArray<string>
  readonly env: Readonly<Record<string, string>>
  readonly cwd: string
  /** Read only as far as the program reads it. */
  readonly stdin: Stream.Stream<Uint8Array>
  /** Waits as long as the reader at the far end is slow. */
  readonly write: (stream: "stdout" | "stderr", data: string | Uint8Array) => Effect.Effect<void>
  /** Runs beside, and holds the output open when the program has ended. */
  readonly leaveBehind: (effect: Effect.Effect<void>) => Effect.Effect<void>
}

/**
 * Gives its exit code. A signal interrupts it.
 *
 * @category models
 * @since 0.1.0
 */
export type Program = (invocation: Invocation) => Effect.Effect<number>

/**
 * The programs that every such guest has: `true`, `false`, `exit CODE`, `echo WORD…`, `env`, `pwd`, `cat` and
 * `sleep SECONDS`.
 *
 * @category constants
 * @since 0.1.0
 */
export const builtins: Readonly<Record<string, Program>> = {
  true: () => Effect.succeed(0),
  false: () => Effect.succeed(1),
  exit: ({ args }) => Effect.succeed(Number(args[0] ?? 0)),
  echo: ({ args, write }) => Effect.as(write("stdout", `${args.join(" ")}\n`), 0),
  env: ({ env, write }) =>
    Effect.as(write("stdout", Object.entries(env).map(([name, value]) => `${name}=${value}\n`).join("")), 0),
  pwd: ({ cwd, write }) => Effect.as(write("stdout", `${cwd}\n`), 0),
  cat: ({ stdin, write }) => Effect.as(Stream.runForEach(stdin, (bytes) => write("stdout", bytes)), 0),
  sleep: ({ args }) => Effect.as(Effect.sleep(Duration.seconds(Number(args[0] ?? 0))), 0)
}
