/**
 * Notices a machine that hangs, and says so or ends it.
 *
 * A monitor that hangs is one that does not answer `Machine.ping`; a guest that hangs is one whose agent does not answer. What
 * nobody looks at hangs unseen: there is no event for it.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import * as HostError from "../host/HostError.ts"
import type * as Machine from "../microvm/Machine.ts"

/**
 * Something that answers soon while it does not hang.
 *
 * @category models
 * @since 0.1.0
 */
export interface Check<E = unknown> {
  /** For people: `"agent"`. */
  readonly name: string
  readonly check: Effect.Effect<unknown, E>
}

/**
 * What does not answer.
 *
 * @category models
 * @since 0.1.0
 */
export interface Hang {
  readonly id: string
  /** The name of the check. */
  readonly what: string
  /** How long it has not answered. */
  readonly silentFor: Duration.Duration
  /** What it last said, if anything. */
  readonly why?: string
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Beside the monitor itself, as `monitor`. Default none. */
  readonly checks?: ReadonlyArray<Check> | undefined
  /** How often each is made. Default 5 seconds. */
  readonly every?: Duration.Input | undefined
  /** How long an answer may take. Default 5 seconds. */
  readonly within?: Duration.Input | undefined
  /** How many in a row have to fail, 1 or more. Default 3: with the other defaults, a hang is noticed after half a minute at most. */
  readonly failures?: number | undefined
  /** While this is so, nobody is asked, as with a machine that is paused. Default never. */
  readonly unless?: Effect.Effect<boolean> | undefined
  /** Told of each hang, once until it answers again. Default: a warning in the log. */
  readonly onHang?: ((hang: Hang) => Effect.Effect<void>) | undefined
  /** `report`, the default, only tells. `end` ends the machine: one that hangs hears nothing, so by SIGKILL. */
  readonly policy?: "report" | "end" | undefined
}

/**
 * A hang for people: `"its agent has not answered for 30s: no answer"`.
 *
 * ```ts import.meta.vitest
 * import { Watchdog } from "effect-microvm-runtime/supervisor"
 * import * as Duration from "effect/Duration"
 * Watchdog.format({ id: "web-1", what: "monitor", silentFor: Duration.seconds(30) }) // => "its monitor has not answered for 30s"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = ({ silentFor, what, why }: Hang): string =>
  `its ${what} has not answered for ${Duration.format(silentFor)}${why === undefined ? "" : `: ${why}`}`

const millis = Effect.map(Clock.monotonicTimeNanos, (nanos) => Math.round(Number(nanos) / 1e6))

/** What cannot be, all at once: to fail at once, or to ask without a pause, would end each machine. */
const faultsOf = (
  options: { readonly every: Duration.Duration; readonly within: Duration.Duration; readonly failures: number }
) => [
  ...(Number.isInteger(options.failures) && options.failures >= 1
    ? []
    : [{ field: "failures", value: options.failures, remedy: "give a whole number, 1 or more" }]),
  ...(["every", "within"] as const).filter((field) => !Duration.isPositive(options[field])).map((field) => ({
    field,
    value: Duration.format(options[field]),
    remedy: "give a duration above zero"
  }))
]

/**
 * Watches a machine until it has ended, or was let go of: one that is `keep` goes on after its scope. It does not end before. A machine
 * that is paused, or not started, is not asked: its guest cannot answer, and its monitor has been told so by us.
 *
 * Fails with `InvalidArgument` for options that cannot be, before it asks anything.
 *
 * **Gotchas**
 *
 * - A guest stands still while its machine is saved, and a monitor may hear nothing then: say so by `unless`, where that may take
 *   long.
 *
 * ```ts import.meta.vitest
 * import { Machine, MachineSpec, MemoryDriver, MemoryProvider } from "effect-microvm-runtime/microvm"
 * import { Watchdog } from "effect-microvm-runtime/supervisor"
 * import * as Effect from "effect/Effect"
 * const program = Effect.scoped(Effect.gen(function*() {
 *   const driver = yield* MemoryDriver.MemoryDriver
 *   yield* driver.script("*", { ping: Effect.never })
 *   const machine = yield* Machine.launch(yield* MachineSpec.decode({ id: "web-1", kernel: "/boot/vmlinux" }))
 *   yield* machine.start
 *   const policy = { every: "1 millis", within: "1 millis", policy: "end", onHang: () => Effect.void } as const
 *   yield* Watchdog.watch(machine, policy)
 *   return (yield* machine.ended)._tag
 * }))
 * await Effect.runPromise(program.pipe(Effect.provide(MemoryProvider.layer))) // => "Killed"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const watch: (
  machine: Machine.Machine,
  options?: Options
) => Effect.Effect<void, HostError.HostError> = Effect.fn("Watchdog.watch")(
  function*(machine: Machine.Machine, options: Options = {}) {
    const { id } = machine
    const { failures = 3, policy = "report", unless = Effect.succeed(false) } = options
    const every = Duration.fromInputUnsafe(options.every ?? "5 seconds")
    const within = Duration.fromInputUnsafe(options.within ?? "5 seconds")
    const faults = faultsOf({ every, within, failures })
    if (faults.length > 0) return yield* HostError.fail(new HostError.InvalidArgument({ faults }))
    const onHang = options.onHang ?? ((hang: Hang) => Effect.logWarning(`machine ${id}: ${format(hang)}`))

    /** A watchdog that ends because somebody who is told of a hang has thrown would see no other one. */
    const tell = (hang: Hang) =>
      Effect.catchCause(
        Effect.suspend(() => onHang(hang)),
        (cause) => Effect.logError(`machine ${id}: whoever is told of a hang has failed`, cause)
      )

    const watchOne = Effect.fnUntraced(function*({ check, name }: Check) {
      let asked: Fiber.Fiber<unknown, unknown> | undefined
      // What hangs may hang in its interruption, too: that is not waited for, and not asked a second time meanwhile.
      const ask = Effect.gen(function*() {
        // How that ended is no answer.
        if (asked !== undefined) yield* Fiber.await(asked)
        asked = yield* Effect.forkDetach(check, { startImmediately: true })
        return yield* Fiber.await(asked)
      }).pipe(Effect.timeoutOption(within), Effect.ensuring(Effect.sync(() => asked?.interruptUnsafe())))

      let failed = 0
      let since = yield* millis
      while (true) {
        yield* Effect.sleep(every)
        if ((yield* machine.state) !== "running" || (yield* unless)) {
          failed = 0
          since = yield* millis
          continue
        }
        const answer = yield* ask
        const now = yield* millis
        if (Option.isSome(answer) && Exit.isSuccess(answer.value)) {
          failed = 0
          since = now
          continue
        }
        failed++
        if (failed !== failures) continue
        const error = Option.isSome(answer) && Exit.isFailure(answer.value)
          ? Cause.squash(answer.value.cause)
          : undefined
        const why = error instanceof Error ? { why: error.message } : {}
        yield* tell({ id, what: name, silentFor: Duration.millis(now - since), ...why })
        if (policy === "end") yield* Effect.ignore(machine.shutdown({ request: { atLeast: "SIGKILL" } }))
      }
    })

    const checks: ReadonlyArray<Check> = [{ name: "monitor", check: machine.ping }, ...options.checks ?? []]
    yield* Effect.raceAllFirst([
      Effect.forEach(checks, watchOne, { concurrency: "unbounded", discard: true }),
      machine.ended,
      // The end of one that goes on without us is not told to us.
      Stream.runDrain(machine.changes)
    ])
  }
)
