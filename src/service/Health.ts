/**
 * Whether a service has started, is ready for requests, and is alive: three questions with three answers.
 *
 * | state      | started            | ready            | alive           |
 * | ---------- | ------------------ | ---------------- | --------------- |
 * | `starting` | no                 | no               | yes             |
 * | `ready`    | its checks decide  | its checks decide | its checks decide |
 * | `draining` | as before          | no               | yes             |
 * | `stopped`  | no                 | no               | no              |
 *
 * Checks are asked in the state `ready` only: before, what they look at may not be there yet, and while the service
 * drains it is being taken down, which is no reason to kill the service.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as ServiceError from "./ServiceError.ts"

/**
 * The questions.
 *
 * @category constants
 * @since 0.1.0
 */
export const probes = ["startup", "ready", "live"] as const

/**
 * @category models
 * @since 0.1.0
 */
export type Probe = typeof probes[number]

/**
 * The states, in order. A service never goes back.
 *
 * @category constants
 * @since 0.1.0
 */
export const states = ["starting", "ready", "draining", "stopped"] as const

/**
 * @category models
 * @since 0.1.0
 */
export type State = typeof states[number]

/**
 * Something that has to be well for the answer to be yes.
 *
 * **Gotchas**
 *
 * - The message of what it fails with is in the answer, for everybody who can reach the health port.
 * - A live check that fails has the process killed. Look at nothing there that a new process would find as it is now: no
 *   database, no other service.
 *
 * @category models
 * @since 0.1.0
 */
export interface Check<out R = never> {
  readonly name: string
  /** Well when it succeeds. */
  readonly check: Effect.Effect<void, unknown, R>
  /** It has failed when it takes longer. Default 1 second. */
  readonly within?: Duration.Input | undefined
  /** Which answers depend on it. Default `["ready"]`. A startup check is not asked any more once all of them were well. */
  readonly probes?: ReadonlyArray<Probe> | undefined
}

/**
 * How one check went. `why` is there when it failed: at most 256 characters on one line.
 *
 * @category schemas
 * @since 0.1.0
 */
export const CheckReport = Schema.Struct({
  name: Schema.String,
  ok: Schema.Boolean,
  /** Milliseconds in JSON. */
  took: Schema.DurationFromMillis,
  why: Schema.optionalKey(Schema.String)
})

/**
 * @category models
 * @since 0.1.0
 */
export type CheckReport = typeof CheckReport.Type

/**
 * An answer, as the health listener sends it. Encoded it is JSON.
 *
 * ```ts import.meta.vitest
 * import { Health } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const health = yield* Health.Health
 *   const before = yield* health.report("ready")
 *   yield* health.advance("ready")
 *   const after = yield* health.report("ready")
 *   return [before.ok, after.ok]
 * })
 * await Effect.runPromise(Effect.provide(program, Health.layer)) // => [false, true]
 * ```
 *
 * @category schemas
 * @since 0.1.0
 */
export const HealthReport = Schema.Struct({
  ok: Schema.Boolean,
  probe: Schema.Literals(probes),
  state: Schema.Literals(states),
  checks: Schema.Array(CheckReport)
})

/**
 * @category models
 * @since 0.1.0
 */
export type HealthReport = typeof HealthReport.Type

/**
 * What a service says of itself.
 *
 * @category services
 * @since 0.1.0
 */
export class Health extends Context.Service<Health, {
  readonly state: Effect.Effect<State>
  /** Goes to a later state. An earlier one changes nothing. */
  readonly advance: (to: State) => Effect.Effect<void>
  /** Waits until no new work is wanted: for what ends a stream that would go on for ever. */
  readonly awaitDraining: Effect.Effect<void>
  /** Adds a check until the scope closes. */
  readonly add: <R>(check: Check<R>) => Effect.Effect<void, never, R | Scope.Scope>
  /**
   * Asks all checks of a probe at the same time. An answer of a check holds for a second and whoever asks meanwhile waits
   * for the same one, so a check runs at most once a second and never twice at a time, however many ask.
   */
  readonly report: (probe: Probe) => Effect.Effect<HealthReport>
}>()("effect-microvm-runtime/service/Health") {}

/** How long an answer of a check holds. */
const freshFor = Duration.seconds(1)

const longestWhy = 256

const whyOf = (cause: Cause.Cause<unknown>): string =>
  ServiceError.explain(Cause.squash(cause)).replaceAll(/\s*\n\s*/g, ", ").slice(0, longestWhy)

interface Watched {
  readonly probes: ReadonlyArray<Probe>
  readonly ask: Effect.Effect<CheckReport>
}

const seconds = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1e9)

/** Asks a check, or gives the answer that it gave just now, or that it is giving. */
const watch = Effect.fnUntraced(function*<R>({ check, name, probes: asks = ["ready"], within = "1 second" }: Check<R>) {
  const context = yield* Effect.context<R>()
  const limit = Duration.fromInputUnsafe(within)
  const tooLate = `no answer within ${Duration.format(limit)}`
  let running: Fiber.Fiber<void, unknown> | undefined
  let answering: Deferred.Deferred<CheckReport> | undefined
  let last: { readonly report: CheckReport; readonly until: number } | undefined

  const settle = Effect.fnUntraced(function*(ended: Option.Option<Exit.Exit<void, unknown>>, began: number) {
    const now = yield* seconds
    const why = Option.match(ended, {
      onNone: () => tooLate,
      onSome: (exit) => Exit.isFailure(exit) ? whyOf(exit.cause) : undefined
    })
    const took = Duration.seconds(now - began)
    const report: CheckReport = why === undefined ? { name, ok: true, took } : { name, ok: false, took, why }
    if (report.ok !== (last?.report.ok ?? true)) {
      yield* report.ok
        ? Effect.logInfo(`Health check ${name} is well again`)
        : Effect.logWarning(`Health check ${name} failed: ${why}`)
    }
    last = { report, until: now + Duration.toSeconds(freshFor) }
    return report
  })

  const begin = Effect.fnUntraced(function*(answer: Deferred.Deferred<CheckReport>) {
    const began = yield* seconds
    const fiber = yield* Effect.forkDetach(Effect.provideContext(check, context), { startImmediately: true })
    running = fiber
    fiber.addObserver(() => {
      running = undefined
    })
    const exit = yield* Effect.timeoutOption(Fiber.await(fiber), limit)
    // Not awaited: a check that cannot be interrupted would keep everybody waiting who asks.
    if (Option.isNone(exit)) fiber.interruptUnsafe()
    answering = undefined
    yield* Deferred.succeed(answer, yield* settle(exit, began))
  })

  const ask: Effect.Effect<CheckReport> = Effect.gen(function*() {
    if (answering !== undefined) return yield* Deferred.await(answering)
    if (last !== undefined && (yield* seconds) < last.until) return last.report
    // One that does not end is not started a second time.
    if (running !== undefined && last !== undefined) return last.report
    const answer = Deferred.makeUnsafe<CheckReport>()
    answering = answer
    // On its own, so that the answer comes for the others when the one who asked first has gone.
    yield* Effect.forkDetach(begin(answer), { startImmediately: true })
    return yield* Deferred.await(answer)
  })

  yield* Effect.addFinalizer(() => Effect.sync(() => running?.interruptUnsafe()))
  return { probes: asks, ask } satisfies Watched
})

/**
 * A health in the state `starting`, without checks.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make: Effect.Effect<Health["Service"]> = Effect.sync(() => {
  const watched = new Set<Watched>()
  const draining = Latch.makeUnsafe()
  let state: State = "starting"
  /** All startup checks were well once, or nobody asked while the service was ready. */
  let started = false

  const answer = (probe: Probe, checks: ReadonlyArray<CheckReport>): HealthReport => {
    const well = checks.every((check) => check.ok)
    if (probe === "startup" && state === "ready" && well) started = true
    const ok = state !== "stopped" && well &&
      { startup: started, ready: state === "ready", live: true }[probe]
    return { ok, probe, state, checks }
  }

  const report = Effect.fnUntraced(function*(probe: Probe) {
    if (state !== "ready" || (probe === "startup" && started)) return answer(probe, [])
    const asked = [...watched].filter((one) => one.probes.includes(probe))
    const checks = yield* Effect.forEach(asked, (one) => one.ask, { concurrency: "unbounded" })
    // The state may be another one by now.
    return answer(probe, checks)
  })

  return Health.of({
    state: Effect.sync(() => state),
    advance: (to) =>
      Effect.sync(() => {
        if (states.indexOf(to) <= states.indexOf(state)) return
        if (state === "ready") started = true
        state = to
        if (to === "draining" || to === "stopped") draining.openUnsafe()
      }),
    awaitDraining: draining.await,
    add: Effect.fnUntraced(function*(check) {
      const one = yield* watch(check)
      yield* Effect.acquireRelease(
        Effect.sync(() => watched.add(one)),
        () => Effect.sync(() => watched.delete(one))
      )
    }),
    report
  })
})

/**
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Health> = Layer.effect(Health, make)

/**
 * Adds a check to the health of the service until the scope closes: for a part that knows best whether it is well.
 *
 * ```ts import.meta.vitest
 * import { Health } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const health = yield* Health.Health
 *   yield* Health.add({ name: "queue", check: Effect.fail("4000 messages wait") })
 *   yield* health.advance("ready")
 *   const { checks, ok } = yield* health.report("ready")
 *   return [ok, checks[0]?.why]
 * })
 * await Effect.runPromise(Effect.provide(Effect.scoped(program), Health.layer)) // => [false, "4000 messages wait"]
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const add = <R>(check: Check<R>): Effect.Effect<void, never, Health | R | Scope.Scope> =>
  Health.use((health) => health.add(check))

/**
 * The same as a layer.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerCheck = <R>(check: Check<R>): Layer.Layer<never, never, Health | Exclude<R, Scope.Scope>> =>
  Layer.effectDiscard(add(check))
