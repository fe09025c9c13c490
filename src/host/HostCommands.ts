/**
 * The few programs of the host that need its rights, as a service: the real one runs them, a scripted one is for tests.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as HostError from "./HostError.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface HostCommand {
  readonly program: "ip" | "nft" | "cp" | "resize2fs" | "e2fsck"
  readonly args: ReadonlyArray<string>
  /** What it reads on its stdin. Default nothing. */
  readonly input?: string | undefined
  /** For people: `"making the links of machine web-1"`. */
  readonly what: string
  /** How long it may take, after which it is killed. Default 10 seconds. */
  readonly within?: Duration.Input | undefined
  /**
   * The links that it removes, when that is all that it does. Where it can be seen that they are gone, nobody waits for what the
   * kernel does after that: whoever runs the program does so when it is closed.
   */
  readonly removes?: ReadonlyArray<string> | undefined
}

/**
 * Runs a program in an environment that is always the same (`LC_ALL=C`), and gives its stdout, of which 64 MiB at most are
 * taken. Whether that is a process of its own is not said: each call is done, whole, as if it were. Fails with
 * `CommandFailed`, `CommandHung`, and `Unavailable` when there is no such program. An interruption kills it and waits until it
 * is gone: what it has done by then is done.
 *
 * @category services
 * @since 0.1.0
 */
export class HostCommands extends Context.Service<HostCommands, {
  readonly run: (command: HostCommand) => Effect.Effect<string, HostError.HostError>
}>()("effect-microvm-runtime/host/HostCommands") {}

/**
 * Commands that do nothing but answer, for tests.
 *
 * ```ts import.meta.vitest
 * import { HostCommands } from "effect-microvm-runtime/host"
 * import * as Effect from "effect/Effect"
 * const commands = HostCommands.layerScripted((command) => Effect.succeed(`${command.program} has run`))
 * const program = HostCommands.HostCommands.use((commands) => commands.run({ program: "ip", args: [], what: "a test" }))
 * await Effect.runPromise(program.pipe(Effect.provide(commands))) // => "ip has run"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerScripted = (
  answer: (command: HostCommand) => Effect.Effect<string, HostError.HostError>
): Layer.Layer<HostCommands> => Layer.succeed(HostCommands, { run: answer })

/**
 * What goes wrong with a command: it fails or hangs, before or after it has done what it is for. One that hangs is killed when
 * its time is over, so it ends as `CommandHung`.
 *
 * @category models
 * @since 0.1.0
 */
export type Mishap = "fails before" | "fails after" | "hangs before" | "hangs after"

const suffer = (command: HostCommand, mishap: Mishap): Effect.Effect<never, HostError.HostError> => {
  const { program, what } = command
  const within = Duration.fromInputUnsafe(command.within ?? "10 seconds")
  return mishap.startsWith("fails")
    ? HostError.fail(new HostError.CommandFailed({ program, what, status: "exited with code 1", stderr: mishap }))
    : Effect.andThen(Effect.sleep(within), HostError.fail(new HostError.CommandHung({ program, what, within })))
}

/**
 * Puts a mishap in the way of the commands of another layer, for tests: `at` is asked for each, which is counted from 0 on.
 *
 * ```ts import.meta.vitest
 * import { HostCommands } from "effect-microvm-runtime/host"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * const works = HostCommands.layerScripted(() => Effect.succeed(""))
 * const commands = HostCommands.layerFaulty((index) => index === 0 ? "fails before" : undefined)
 * const program = HostCommands.HostCommands.use((commands) => commands.run({ program: "ip", args: [], what: "a test" }))
 * const error = await Effect.runPromise(program.pipe(Effect.flip, Effect.provide(commands.pipe(Layer.provide(works)))))
 * error.message // => "a test: ip exited with code 1: fails before"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerFaulty = (
  at: (index: number, command: HostCommand) => Mishap | undefined
): Layer.Layer<HostCommands, never, HostCommands> =>
  Layer.effect(
    HostCommands,
    Effect.map(HostCommands, ({ run }) => {
      let index = 0
      return {
        run: (command) =>
          Effect.suspend(() => {
            const mishap = at(index++, command)
            if (mishap === undefined) return run(command)
            const does = mishap.endsWith("after") ? Effect.asVoid(run(command)) : Effect.void
            return Effect.andThen(does, suffer(command, mishap))
          })
      }
    })
  )
