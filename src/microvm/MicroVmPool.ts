/**
 * Machines held ready, for those who cannot wait for one to start.
 *
 * Each machine is handed out once and is ended when its user is done with it: what a guest has run, nobody else gets.
 *
 * ```
 *   acquire ▸ starting ▸ ready ▸ in use ▸ ending ▸ gone
 *             └─ ended, too old, unhealthy ─┘
 * ```
 *
 * Effect's own `Pool` is for things that are given back. It counts what is lent to its minimum, starts the replacement of
 * what is invalidated before that is gone and so exceeds its maximum, waits for each batch of starts before the next one,
 * does not try a failed start again unless asked, and closes one thing after the other. So this is not built on it.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as FiberSet from "effect/FiberSet"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { secondsSince } from "./internal/launchMetrics.ts"
import { once } from "./internal/once.ts"
import { makePace } from "./internal/pace.ts"
import * as PoolMetrics from "./internal/poolMetrics.ts"
import * as MicroVmError from "./MicroVmError.ts"

/**
 * A pool of machines of type `A`, whose start fails with `E`.
 *
 * @category models
 * @since 0.1.0
 */
export interface MicroVmPool<out A, out E = never> {
  /**
   * A machine that nobody has had, until the scope closes: then it is ended. Those who wait are served in the order in
   * which they asked, each with the oldest machine that is ready.
   *
   * Fails with the error of a start when fewer machines are under way than there are takers; with `PoolFull`, at once, when as
   * many wait as may; with `PoolClosed` once the pool is drained or closed, also while it waits; with `MachinesUnfit` when three
   * machines in a row that it had to wait for were of no use.
   */
  readonly take: Effect.Effect<A, E | MicroVmError.MicroVmError, Scope.Scope>
  readonly stats: Effect.Effect<Stats<E>>
  /**
   * Hands out and starts no more, ends what is ready, and waits for what is in use. Goes on when the caller is
   * interrupted.
   */
  readonly drain: Effect.Effect<void>
}

/**
 * How a pool is. `ready`, `inUse`, `starting` and `ending` together never exceed its `max`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Stats<out E> extends PoolMetrics.Numbers {
  /** Why the last start failed that did, however many worked since. */
  readonly lastFailure: Option.Option<Cause.Cause<E>>
}

/**
 * How fast machines may be started, whether somebody waits for them or not.
 *
 * @category options
 * @since 0.1.0
 */
export interface Refill {
  /** At most so many at a time. Default 4. */
  readonly concurrency?: number | undefined
  /** At most so many starts in any `per`. Default: as many as there is room for. */
  readonly rate?: { readonly starts: number; readonly per: Duration.Input } | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options<A, E, R> {
  /** For people, and the attribute `pool` of its metrics: letters, digits, `.`, `_` and `-`, 64 characters at most. Default `default`. */
  readonly name?: string | undefined
  /**
   * Brings up one machine, ready for use, in a scope that is its own. Give it a deadline: one that hangs takes the place of
   * another.
   */
  readonly acquire: Effect.Effect<A, E, R>
  /** So many are held ready, as far as `max` allows. Takers that leave may leave more behind. */
  readonly min: number
  /** So many exist at most: those that start, are ready, in use or not quite gone. */
  readonly max: number
  /**
   * So many takers wait at most: who comes on top is refused at once (`PoolFull`). With 0, only what is ready is handed out. Choose
   * it by how long somebody waits at all: with 8 machines of 10 seconds each, the hundredth does so for 2 minutes. Default 10,000,
   * which is some 50 MB: no batch of jobs meets it, and a flood of requests does not take all memory.
   *
   * One whose machine turned out to be unfit goes back to its place, also where that is one more.
   */
  readonly maxWaiting?: number | undefined
  readonly refill?: Refill | undefined
  /**
   * A machine that was ready for so long is replaced: its clock, its entropy and its image grow old. It happens in the
   * last quarter of that time, so that not all go at once. Default: never.
   */
  readonly maxAge?: Duration.Input | undefined
  /**
   * Asked before a machine is handed out. `false`, a failure or no answer within `healthTimeout` means that it is ended
   * and another one taken. Default: not asked.
   */
  readonly healthy?: ((machine: A) => Effect.Effect<boolean | void, unknown>) | undefined
  /** Default 1 second. */
  readonly healthTimeout?: Duration.Input | undefined
  /** Comes back when a machine has ended by itself. One that is ready is replaced then. Default: not noticed. */
  readonly ended?: ((machine: A) => Effect.Effect<unknown, unknown>) | undefined
  /**
   * How long the pool waits before it goes on refilling, each time a machine failed to start or was unfit. It begins anew
   * when a machine is handed out; when it is over, the pool refills no more until then. Who takes does not wait for it.
   * Default: from 200 milliseconds to 30 seconds, twice as long each time, jittered.
   */
  readonly retry?: Schedule.Schedule<unknown> | undefined
}

/** The place of a machine in the pool, from before its start until it is gone. */
interface Slot {
  phase: "starting" | "ready" | "inUse" | "ending"
  /** How the use ended, for the machine's own finalizers. */
  exit: Exit.Exit<unknown, unknown>
  readonly close: Effect.Effect<void>
  /** Starts the machine, and watches it until it is handed out. */
  keeper: Fiber.Fiber<void> | undefined
}

/** A machine that nobody has had. */
interface Candidate<A> {
  readonly slot: Slot
  readonly machine: A
  readonly readyAt: number
  spent: "ended" | "aged" | undefined
}

interface Waiter<A, E> {
  readonly turn: number
  readonly answer: Deferred.Deferred<Candidate<A>, E | MicroVmError.MicroVmError>
  given: Candidate<A> | undefined
}

/** How many unfit machines that it had to wait for a taker is given. */
const patience = 3

/**
 * From 200 milliseconds to 30 seconds, twice as long each time, jittered.
 *
 * @category constants
 * @since 0.1.0
 */
export const defaultRetry: Schedule.Schedule<unknown> = Schedule.jittered(
  Schedule.min([Schedule.exponential("200 millis"), Schedule.spaced("30 seconds")])
)

/**
 * A pool that lives as long as the scope. It comes back at once and fills up in the background. The first start that fails with
 * nobody waiting for it is logged as a warning, and so is the next such one once a start has worked.
 *
 * What `stats` tells is among Effect's metrics, too, with the attribute `pool`, until the scope closes: `microvm.pool.machines` (by
 * `state`), `microvm.pool.max`, `microvm.pool.waiting`, `microvm.pool.starts` (by `outcome`), `microvm.pool.unfit` and
 * `microvm.pool.refused`, and the histograms `microvm.pool.start.seconds` and `microvm.pool.take.seconds`. A pool whose name another
 * one has is called `NAME-2` there.
 *
 * Closing the scope interrupts the starts that are under way and ends all machines at the same time, also those in use.
 * Fails with `InvalidPool` before anything is started.
 *
 * ```ts import.meta.vitest
 * import { Machine, MachineSpec, MemoryProvider, MicroVmPool } from "effect-microvm-runtime/microvm"
 * import * as Effect from "effect/Effect"
 * let made = 0
 * const acquire = Effect.gen(function*() {
 *   const spec = yield* MachineSpec.decode({ id: `worker-${++made}`, kernel: "/boot/vmlinux" })
 *   const machine = yield* Machine.launch(spec)
 *   yield* machine.start
 *   return machine
 * })
 * const program = Effect.scoped(Effect.gen(function*() {
 *   const pool = yield* MicroVmPool.make({ acquire, min: 2, max: 8, ended: (machine) => machine.ended })
 *   const used = yield* Effect.scoped(Effect.map(pool.take, (machine) => machine.id))
 *   const next = yield* Effect.scoped(Effect.map(pool.take, (machine) => machine.id))
 *   return [used, next]
 * }))
 * await Effect.runPromise(program.pipe(Effect.provide(MemoryProvider.layer))) // => ["worker-1", "worker-2"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make: <A, E, R>(
  options: Options<A, E, R>
) => Effect.Effect<
  MicroVmPool<A, E>,
  MicroVmError.MicroVmError,
  Exclude<R, Scope.Scope> | Scope.Scope
> = Effect.fn("MicroVmPool.make")(function*<A, E, R>(options: Options<A, E, R>) {
  const { concurrency, healthTimeout, max, maxAge, maxWaiting, min, name, per, starts } = yield* Effect.fromResult(
    checked(options)
  )
  const services = yield* Effect.context<Exclude<R, Scope.Scope>>()
  const clock = yield* Clock.Clock
  const pace = yield* makePace({ starts, per, retry: options.retry ?? defaultRetry })
  const slots = new Set<Slot>()
  const ready: Array<Candidate<A>> = []
  const waiting: Array<Waiter<A, E>> = []
  /** Is opened by each change that may let the pool start something. */
  const changed = Latch.makeUnsafe(true)
  const empty = Deferred.makeUnsafe<void>()
  let turns = 0
  let started = 0
  let failed = 0
  let unfit = 0
  let refused = 0
  let lastFailure: Option.Option<Cause.Cause<E>> = Option.none()
  /** Was a failure logged, and has every start failed since? */
  let logged = false
  let closing = false
  const closed = MicroVmError.fail(new MicroVmError.PoolClosed())
  const numbers = (): PoolMetrics.Numbers => ({
    ready: ready.length,
    inUse: inPhase("inUse"),
    starting: inPhase("starting"),
    ending: inPhase("ending"),
    waiting: waiting.length,
    started,
    failed,
    unfit,
    refused
  })
  const metrics = yield* PoolMetrics.make(name, max, numbers)
  const inPhase = (phase: Slot["phase"]) => Array.from(slots).filter((slot) => slot.phase === phase).length
  const settle = () => {
    changed.openUnsafe()
    if (closing && slots.size === 0) Deferred.doneUnsafe(empty, Exit.void)
  }

  // What becomes of a machine. --------------------------------------------------------------------------------------

  /** From now on it is ending, whoever waits for that. */
  const end = (slot: Slot, exit: Exit.Exit<unknown, unknown> = Exit.void): Effect.Effect<void> => {
    if (slot.phase !== "ending") {
      slot.phase = "ending"
      slot.exit = exit
    }
    return slot.close
  }
  const discard = Effect.fnUntraced(function*({ slot, spent }: Candidate<A>) {
    slot.keeper?.interruptUnsafe()
    const gone = Effect.forkDetach(Effect.suspend(() => end(slot)), { startImmediately: true })
    if (spent === "aged" || closing) return yield* Effect.asVoid(gone)
    unfit++
    // The place becomes free only now that it is known when it may be filled.
    yield* Effect.ensuring(pace.setback, gone)
  })
  const offer = (candidate: Candidate<A>, add: "push" | "unshift"): void => {
    const waiter = waiting.shift()
    candidate.slot.phase = waiter === undefined ? "ready" : "inUse"
    if (waiter === undefined) {
      ready[add](candidate)
    } else {
      waiter.given = candidate
      Deferred.doneUnsafe(waiter.answer, Exit.succeed(candidate))
    }
    settle()
  }
  /** A taker has left without the machine that was meant for it. */
  const putBack = (candidate: Candidate<A>): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (closing || candidate.spent !== undefined) return discard(candidate)
      offer(candidate, "unshift")
      return Effect.void
    })

  // Refilling. ------------------------------------------------------------------------------------------------------

  const bringUp = (scope: Scope.Scope) =>
    // What surrounds the pool has a scope too, so the machine's own goes inside.
    options.acquire.pipe(Scope.provide(scope), Effect.provideContext(services))
  const aged = maxAge === Infinity
    ? Effect.never
    : Effect.flatMap(Random.nextBetween(0.75 * maxAge, maxAge), (millis) => Effect.sleep(millis))
  const watch = (machine: A): Effect.Effect<"ended" | "aged"> =>
    Effect.raceFirst(
      Effect.as(Effect.exit(Effect.suspend(() => options.ended?.(machine) ?? Effect.never)), "ended" as const),
      Effect.as(aged, "aged" as const)
    )
  const keep = (slot: Slot, scope: Scope.Scope) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.gen(function*() {
        const begun = clock.currentTimeNanosUnsafe()
        // A drain may have come in between: it knows of those only that run already.
        const exit = yield* Effect.exit(restore(Effect.suspend(() => closing ? Effect.interrupt : bringUp(scope))))
        if (Exit.isFailure(exit)) {
          const gone = end(slot, exit)
          if (closing) return yield* gone
          failed++
          lastFailure = Option.some(exit.cause)
          const waiter = waiting.length > inPhase("starting") ? waiting.shift() : undefined
          const wasLogged = logged
          logged ||= waiter === undefined
          if (waiter !== undefined) Deferred.doneUnsafe(waiter.answer, Exit.failCause(exit.cause))
          else if (!wasLogged) yield* Effect.logWarning("A machine of a pool could not be started", exit.cause)
          return yield* Effect.ensuring(pace.setback, gone)
        }
        logged = false
        if (closing) return yield* end(slot)
        started++
        metrics.started(secondsSince(clock, begun))
        const machine = exit.value
        const candidate: Candidate<A> = { slot, machine, readyAt: clock.currentTimeMillisUnsafe(), spent: undefined }
        offer(candidate, "push")
        candidate.spent = yield* restore(watch(machine))
        if (slot.phase !== "ready") return
        ready.splice(ready.indexOf(candidate), 1)
        yield* discard(candidate)
      })
    )
  const keepers = yield* FiberSet.make<void>()
  const start = Effect.suspend(() => {
    if (closing) return Effect.void
    const scope = Scope.makeUnsafe()
    const close = Effect.suspend(() => Scope.close(scope, slot.exit)).pipe(
      Effect.ignoreCause({ log: "Warn", message: "A machine of a pool did not end as it should" }),
      Effect.andThen(Effect.sync(() => {
        slots.delete(slot)
        settle()
      }))
    )
    const slot: Slot = { phase: "starting", exit: Exit.void, close: once(close), keeper: undefined }
    slots.add(slot)
    pace.started()
    return Effect.map(FiberSet.run(keepers, keep(slot, scope)), (keeper) => {
      slot.keeper = keeper
    })
  }).pipe(Effect.uninterruptible)
  /** Takers are never made to wait for better times; what is only held ready is. */
  const wanted = (): number => {
    if (closing) return 0
    const starting = inPhase("starting")
    const missing = waiting.length + (pace.held() ? 0 : min - ready.length) - starting
    return Math.min(missing, max - slots.size, concurrency - starting, pace.room())
  }
  const refill = Effect.gen(function*() {
    changed.closeUnsafe()
    while (wanted() > 0) yield* start
    const next = pace.next()
    yield* (next === Infinity ? changed.await : Effect.timeoutOption(changed.await, next))
  })

  // Handing out. ----------------------------------------------------------------------------------------------------

  type Restore = <B, F, S>(effect: Effect.Effect<B, F, S>) => Effect.Effect<B, F, S>
  const leave = (waiter: Waiter<A, E>): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (waiter.given !== undefined) return putBack(waiter.given)
      const place = waiting.indexOf(waiter)
      if (place >= 0) waiting.splice(place, 1)
      return Effect.void
    })
  const next = (
    turn: number,
    isNew: boolean,
    restore: Restore
  ): Effect.Effect<Candidate<A>, E | MicroVmError.MicroVmError> =>
    Effect.suspend(() => {
      if (closing) return closed
      const first = ready.shift()
      if (first !== undefined) {
        first.slot.phase = "inUse"
        settle()
        return Effect.succeed(first)
      }
      if (isNew && waiting.length >= maxWaiting) {
        refused++
        return MicroVmError.fail(new MicroVmError.PoolFull({ pool: metrics.pool, max, maxWaiting }))
      }
      // One that was given an unfit machine has asked before those who wait; all others come last.
      const before = waiting.findLastIndex((other) => other.turn < turn)
      const waiter: Waiter<A, E> = { turn, answer: Deferred.makeUnsafe(), given: undefined }
      waiting.splice(before + 1, 0, waiter)
      settle()
      return Effect.onInterrupt(restore(Deferred.await(waiter.answer)), () => leave(waiter))
    })
  const isFit = Effect.fnUntraced(function*(candidate: Candidate<A>, restore: Restore) {
    // Timers stand still while the host sleeps; machines grow old all the same.
    if (clock.currentTimeMillisUnsafe() - candidate.readyAt >= maxAge) candidate.spent ??= "aged"
    if (candidate.spent !== undefined) return false
    const { healthy } = options
    if (healthy === undefined) return true
    const answer = yield* Effect.exit(Effect.suspend(() => healthy(candidate.machine))).pipe(
      Effect.timeoutOption(healthTimeout),
      restore,
      Effect.onInterrupt(() => putBack(candidate))
    )
    return candidate.spent === undefined && Option.isSome(answer) && Exit.isSuccess(answer.value) &&
      answer.value.value !== false
  })
  const take = Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const scope = yield* Effect.scope
      const turn = turns++
      const begun = clock.currentTimeNanosUnsafe()
      let isNew = true
      for (let tried = 0; tried < patience;) {
        const waits = ready.length === 0
        const candidate = yield* next(turn, isNew, restore)
        isNew = false
        const { machine, slot } = candidate
        const fit = yield* isFit(candidate, restore)
        if (fit && !closing) {
          slot.keeper?.interruptUnsafe()
          yield* Scope.addFinalizerExit(scope, (exit) => end(slot, exit))
          yield* pace.recovered
          metrics.taken(secondsSince(clock, begun))
          settle()
          return machine
        }
        yield* discard(candidate)
        if (waits && candidate.spent !== "aged") tried++
      }
      return yield* MicroVmError.fail(new MicroVmError.MachinesUnfit({ tried: patience }))
    })
  ).pipe(Effect.withSpan("MicroVmPool.take"))

  // The end. --------------------------------------------------------------------------------------------------------

  /** Ends what nobody uses, or all; what starts is ended by its keeper. */
  const stop = (whom: "idle" | "all") =>
    Effect.suspend(() => {
      closing = true
      for (const { answer } of waiting.splice(0)) Deferred.doneUnsafe(answer, closed)
      ready.length = 0
      settle()
      const slotsToEnd = Array.from(slots).filter(({ phase }) =>
        phase !== "starting" && (whom === "all" || phase !== "inUse")
      )
      return Effect.all([FiberSet.clear(keepers), ...slotsToEnd.map((slot) => end(slot))], {
        concurrency: "unbounded",
        discard: true
      })
    })
  yield* Effect.addFinalizer(() => stop("all"))
  yield* Effect.forkScoped(Effect.forever(refill), { startImmediately: true })
  return {
    take,
    stats: Effect.sync(() => ({ ...numbers(), lastFailure })),
    drain: Effect.andThen(once(stop("idle")), Deferred.await(empty)).pipe(Effect.withSpan("MicroVmPool.drain"))
  }
}, Effect.uninterruptible)

interface Checked {
  readonly name: string
  readonly min: number
  readonly max: number
  readonly maxWaiting: number
  readonly concurrency: number
  readonly starts: number
  readonly per: number
  readonly maxAge: number
  readonly healthTimeout: number
}

/** The options with all defaults, times in milliseconds. */
const checked = <A, E, R>(
  { healthTimeout, max, maxAge, maxWaiting = 10_000, min, name = "default", refill }: Options<A, E, R>
): Result.Result<Checked, MicroVmError.MicroVmError> => {
  const faults: Array<MicroVmError.Fault> = []
  const count = (field: string, value: number, least: number): number => {
    if (!Number.isSafeInteger(value) || value < least) {
      faults.push({ field, value, remedy: `write a whole number from ${least}` })
    }
    return value
  }
  const time = (field: string, input: Duration.Input): number => {
    const millis = Option.map(Number.isNaN(input) ? Option.none() : Duration.fromInput(input), Duration.toMillis)
    if (Option.isSome(millis) && millis.value > 0) return millis.value
    faults.push({ field, value: input, remedy: "write a time above zero, as 500 or \"2 seconds\"" })
    return 0
  }
  count("min", min, 0)
  count("max", max, 1)
  if (min > max) faults.push({ field: "min", value: min, remedy: `write no more than max, which is ${max}` })
  count("maxWaiting", maxWaiting, 0)
  if (min === 0 && maxWaiting === 0) {
    faults.push({
      field: "maxWaiting",
      value: maxWaiting,
      remedy: "write 1 at least where min is 0, as none is ever ready"
    })
  }
  if (!/^[A-Za-z0-9._-]{1,64}$/.test(name)) {
    faults.push({ field: "name", value: name, remedy: "write 1 to 64 letters, digits, dots, underscores and dashes" })
  }
  const all: Checked = {
    name,
    min,
    max,
    maxWaiting,
    concurrency: count("refill.concurrency", refill?.concurrency ?? 4, 1),
    starts: refill?.rate === undefined ? Infinity : count("refill.rate.starts", refill.rate.starts, 1),
    per: refill?.rate === undefined ? 0 : time("refill.rate.per", refill.rate.per),
    maxAge: maxAge === undefined ? Infinity : time("maxAge", maxAge),
    healthTimeout: time("healthTimeout", healthTimeout ?? "1 second")
  }
  return faults.length > 0
    ? Result.fail(MicroVmError.make(new MicroVmError.InvalidPool({ faults })))
    : Result.succeed(all)
}
