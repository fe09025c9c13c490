/**
 * The edge: where a service becomes a process, and its end an exit code.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Runtime from "effect/Runtime"
import * as Scope from "effect/Scope"
import * as ExitCode from "../lifecycle/ExitCode.ts"
import * as HostSignals from "./HostSignals.ts"
import { leaveNow } from "./internal/NodeLeave.ts"
import * as NodeNotifier from "./NodeNotifier.ts"
import * as NodeSignals from "./NodeSignals.ts"
import * as NodeTerminationLog from "./NodeTerminationLog.ts"
import * as NodeWatchdog from "./NodeWatchdog.ts"
import type { Notifier } from "./Notifier.ts"
import type { TerminationLog } from "./TerminationLog.ts"
import { Watchdog } from "./Watchdog.ts"

/**
 * What the edge gives to what it runs.
 *
 * @category models
 * @since 0.1.0
 */
export type Edge = HostSignals.ServiceSignals | Notifier | TerminationLog | Watchdog

/** What a reader has not taken by then is lost. */
const flushTime: Duration.Input = "1 second"

/** From the last word of the program to its end, listeners of the `exit` event included. */
const leaveTime: Duration.Input = "2 seconds"

/** A program that fails over and over is not to fill a disk with it. */
const mostComplaints = 16

const flushed = (stream: NodeJS.WriteStream): Effect.Effect<void> =>
  Effect.callback<void>((resume) => {
    stream.write("", () => resume(Effect.void))
  })

/** Anything can be thrown: nothing, or what throws when it is looked at. */
const textOf = (error: unknown): string => {
  try {
    return error instanceof Error ? error.stack ?? String(error) : String(error)
  } catch {
    return "an error that cannot be shown"
  }
}

const isCode = (code: number): boolean => Number.isInteger(code) && code >= 0 && code <= 255

const complain = (line: string): void => {
  process.stderr.write(`${line}\n`)
}

/**
 * Runs a program as this process, and exits with its code: for ever the last thing that a file does.
 *
 * - Signals are taken before it returns, and wait for `ServiceSignals.next`; by themselves they end nothing.
 * - An error that nobody caught is printed. It is given to whoever waits for `ServiceSignals.uncaught`; if nobody does, the
 *   program is interrupted, and the code is 70. So is that of a program that dies, or whose code is not in 0 to 255.
 * - stdout and stderr may be closed by their readers; what they have not taken is waited for, up to a second.
 * - `Watchdog` sees to it that all of this ends. `process.exit` waits for the threads of Node, even for one that looks a host
 *   name up without an answer; when one of them is busy, the process leaves without them, with the same code.
 *
 * **Gotchas**
 *
 * - Once for each process.
 * - Unhandled rejections are errors in this sense unless `--unhandled-rejections` says otherwise.
 *
 * @category running
 * @since 0.1.0
 */
export const main = (
  run: Effect.Effect<{ readonly code: number }, never, Edge>,
  options: NodeWatchdog.Options & {
    /** Exit code of a program with a defect. Default 70. */
    readonly defect?: number | undefined
  } = {}
): void => {
  const { defect = ExitCode.service.defect } = options
  const { fail, signals } = NodeSignals.install()
  const startedAt = performance.now()
  const terminationLog = options.terminationLog ?? NodeTerminationLog.defaultPath
  let interrupt = (): void => {}
  let complaints = 0
  let isUncaught = false

  // Without a listener, a write to a pipe whose reader has gone away ends the process with a stack trace.
  for (const stream of [process.stdout, process.stderr]) stream.on("error", () => {})
  process.on("uncaughtException", (error: unknown, origin) => {
    complaints++
    if (complaints <= mostComplaints) complain(`Nobody caught this error (${origin}): ${textOf(error)}`)
    // Whoever waits for it goes on at once, and may stop all there is before this returns.
    if (fail(error) || isUncaught) return
    isUncaught = true
    Effect.runSync(watchdog.stopBegan(options.blocked ?? NodeWatchdog.defaultBlocked))
    interrupt()
  })

  // Its scope is never closed: it watches until the process is gone.
  const watchdog = Effect.runSync(Scope.provide(NodeWatchdog.make(options), Scope.makeUnsafe()))

  const codeOf = (exit: Exit.Exit<{ readonly code: number }>): number => {
    let why: string | undefined
    if (isUncaught) why = "An error that nobody caught"
    else if (Exit.isFailure(exit)) why = `The program died: ${Cause.pretty(exit.cause)}`
    else if (!isCode(exit.value.code)) why = `The program ended with ${exit.value.code}, which is no exit code`
    else return exit.value.code
    if (!isUncaught) complain(why)
    const code = defect
    const elapsed = performance.now() - startedAt
    NodeTerminationLog.writeUnsafe(terminationLog, { reason: "defect", code, elapsed, message: why })
    return code
  }

  const edge = Layer.mergeAll(
    Layer.succeed(HostSignals.ServiceSignals, signals),
    Layer.succeed(Watchdog, watchdog),
    NodeTerminationLog.layerAt(terminationLog),
    NodeNotifier.layer
  )
  let code = defect
  const program = Effect.onExit(Effect.provide(run, edge), (exit) =>
    Effect.gen(function*() {
      yield* watchdog.stopBegan(leaveTime)
      code = codeOf(exit)
      yield* Effect.timeoutOption(Effect.andThen(flushed(process.stdout), flushed(process.stderr)), flushTime)
    }))
  const runMain = Runtime.makeRunMain(({ fiber }) => {
    interrupt = () => fiber.interruptUnsafe(fiber.id)
    fiber.addObserver(() => {
      // After all other listeners, as what it does may be the end.
      process.on("exit", leaveNow)
      process.exit(code)
    })
  })
  runMain(program, { disableErrorReporting: true })
}
