/**
 * The watchdog as a thread beside the event loop.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { isMainThread, Worker } from "node:worker_threads"
import * as ExitCode from "../lifecycle/ExitCode.ts"
import { endWith } from "./internal/NodeLeave.ts"
import { cell, watchdogWorker, type WorkerData } from "./internal/watchdogWorker.ts"
import * as NodeTerminationLog from "./NodeTerminationLog.ts"
import { Watchdog } from "./Watchdog.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** How long the event loop may be blocked, until `allowBlocked` says otherwise. Default 30 seconds. */
  readonly blocked?: Duration.Input | undefined
  /** From a limit that has passed to the death of the process, at the latest. Default 2 seconds, at least 400 ms. */
  readonly reserve?: Duration.Input | undefined
  /** Exit code of a process that is ended. Default that of `budgetPassed`. */
  readonly code?: number | undefined
  /** Where to leave the last word. Default `/dev/termination-log`. */
  readonly terminationLog?: string | undefined
}

/**
 * How long the event loop may be blocked, when nobody says.
 *
 * @category constants
 * @since 0.1.0
 */
export const defaultBlocked: Duration.Input = "30 seconds"

const millisOf = (input: Duration.Input): number => Duration.toMillis(Duration.fromInputUnsafe(input))

/** -1 for what is longer than 24 days. */
const toCell = (input: Duration.Input): number => {
  const millis = Math.ceil(millisOf(input))
  return millis < 2 ** 31 ? Math.max(0, millis) : -1
}

/** With an inspector open, who stands still may stand at a breakpoint. */
const isDebugged = (): boolean =>
  process.features.inspector && process.getBuiltinModule("node:inspector").url() !== undefined

/**
 * The watchdog of `layer`, until the scope closes.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  options: Options = {}
): Effect.fn.Return<Watchdog["Service"], never, Scope.Scope> {
  const { code = ExitCode.service.budgetPassed, terminationLog = NodeTerminationLog.defaultPath } = options
  const reserve = Math.max(400, millisOf(options.reserve ?? "2 seconds"))
  const every = Math.min(500, reserve / 5)
  const cells = new Int32Array(new SharedArrayBuffer(4 * Object.keys(cell).length))
  Atomics.store(cells, cell.blocked, toCell(options.blocked ?? defaultBlocked))
  Atomics.store(cells, cell.stop, -1)
  const warn = Effect.runForkWith(yield* Effect.context())

  let worker: Worker | undefined
  let isOver = false
  const beat = (): void => {
    Atomics.add(cells, cell.beat, 1)
    Atomics.store(cells, cell.debugged, isDebugged() ? 1 : 0)
  }
  const fail = (why: unknown): void => {
    if (isOver) return
    isOver = true
    warn(Effect.logWarning("Nobody watches the event loop: the thread of the watchdog could not be kept", why))
  }
  const start = (): void => {
    if (worker !== undefined || isOver) return
    beat()
    const workerData: WorkerData = { cells, every, reserve, code, terminationLog, becoming: endWith(code) }
    try {
      worker = new Worker(watchdogWorker, {
        eval: true,
        name: "watchdog",
        workerData,
        // Nothing of what the program was told to load or to use is for this thread.
        env: {},
        execArgv: [],
        resourceLimits: { maxOldGenerationSizeMb: 32, maxYoungGenerationSizeMb: 4 }
      })
      worker.on("error", fail)
      worker.unref()
    } catch (cause) {
      fail(cause)
    }
  }
  const tell = (index: number, value: number): void => {
    Atomics.store(cells, index, value)
    if (index === cell.stop) Atomics.add(cells, cell.stops, 1)
    Atomics.add(cells, cell.message, 1)
    Atomics.notify(cells, cell.message)
  }

  if (!isMainThread) {
    yield* Effect.logWarning("Nobody watches the event loop: the watchdog is for the main thread of a process")
    return Watchdog.of({ allowBlocked: () => Effect.void, stopBegan: () => Effect.void, stopEnded: Effect.void })
  }

  yield* Effect.acquireRelease(
    Effect.sync(() => ({
      beating: setInterval(beat, every / 2).unref(),
      starting: setTimeout(start, 0).unref()
    })),
    ({ beating, starting }) =>
      Effect.promise(async () => {
        clearInterval(beating)
        clearTimeout(starting)
        isOver = true
        await worker?.terminate()
      })
  )
  return Watchdog.of({
    allowBlocked: (limit) => Effect.sync(() => tell(cell.blocked, toCell(limit))),
    stopBegan: (deadlineFromNow) =>
      Effect.sync(() => {
        start()
        tell(cell.stop, toCell(deadlineFromNow))
      }),
    stopEnded: Effect.sync(() => tell(cell.stop, -1))
  })
})

/**
 * A thread that ends the process when its event loop is blocked for longer than is allowed, or when a stop that has begun
 * is not over in its time. It first asks the debugger of Node where the program is and lets it exit with `code`; if that
 * has no effect, it kills the children of our process group, as one of them may be what a blocking call waits for; and then
 * it kills the process. stderr and the termination log say why and, if the program stood in JavaScript, where.
 *
 * It costs a thread of some 14 MiB that wakes every 400 ms, and a timer every 200 ms on the event loop; more often with
 * a shorter reserve. Time in which the whole process is suspended does not count; of that in which its main thread waits for a
 * processor, a quarter does.
 *
 * **Gotchas**
 *
 * - Listeners of the `exit` event are not called: one of them may be what does not end.
 * - Node adds a line about a debugger to stderr; it means this one.
 * - Who is killed has the status of SIGKILL, and as PID 1, which cannot be, that of SIGTRAP.
 * - It does nothing while a debugger may be attached (`--inspect`, SIGUSR1).
 * - A program that computes for longer than `blocked` without giving the event loop a turn is ended too: such work belongs
 *   into a worker thread.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (options: Options): Layer.Layer<Watchdog> => Layer.effect(Watchdog, make(options))

/**
 * The watchdog with its defaults.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Watchdog> = layerWith({})
