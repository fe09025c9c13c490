/**
 * The life of a service: from its configuration to its exit code, and everything that was started ended in between.
 *
 * ```text
 * configure ▸ health ▸ secrets ▸ load ▸ check ▸ provision ▸ sidecar ▸ init ▸ run ──▶ stop ▸ exit code
 *      └── a fault, a signal or a fatal report in any of them ────────────────────────────┘
 * ```
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
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import * as ExitCode from "../lifecycle/ExitCode.ts"
import type { Shutdown } from "../lifecycle/Shutdown.ts"
import type { Signal } from "../lifecycle/Signal.ts"
import * as StopBudget from "../lifecycle/StopBudget.ts"
import { Fatal } from "./Fatal.ts"
import * as Health from "./Health.ts"
import { ServiceSignals } from "./HostSignals.ts"
import * as Asides from "./internal/asides.ts"
import * as OwnMetrics from "./internal/ownMetrics.ts"
import { noSpan } from "./internal/partsTracker.ts"
import * as End from "./internal/serviceEnd.ts"
import * as StopLadder from "./internal/stopLadder.ts"
import * as StopShares from "./internal/stopShares.ts"
import { ListenAddress } from "./ListenAddress.ts"
import { Notifier } from "./Notifier.ts"
import type * as Parts from "./Parts.ts"
import { type Phase, ServiceEvents } from "./Phase.ts"
import { Provisioner } from "./Provisioner.ts"
import * as Provisioning from "./Provisioning.ts"
import type * as Resource from "./Resource.ts"
import * as ServiceConfig from "./ServiceConfig.ts"
import * as Definition from "./ServiceDefinition.ts"
import { explain, fromReason, type ServiceError, ServiceErrorReason } from "./ServiceError.ts"
import * as ServicePlan from "./ServicePlan.ts"
import { ServicePlatform } from "./ServicePlatform.ts"
import { TerminationLog } from "./TerminationLog.ts"
import { Watchdog } from "./Watchdog.ts"

/**
 * How a service ran, for whoever composes or tests it.
 *
 * @category models
 * @since 0.1.0
 */
export interface ServiceReport {
  readonly name: string
  readonly version: string
  readonly code: number
  readonly end: ExitCode.ServiceEnd
  /** The phase in which it began to end. */
  readonly phase: Phase
  /** What ended it, unless it was a signal or its own will. */
  readonly error: Option.Option<ServiceError>
  readonly signal: Option.Option<Signal>
  /** What did not stop as it should. */
  readonly left: ReadonlyArray<StopLadder.Leftover>
  readonly elapsed: Duration.Duration
}

/**
 * What a service needs from whoever runs it, beside what every service is given and what its resources give it.
 *
 * @category models
 * @since 0.1.0
 */
export type Needs<R, Res extends Resource.Any> = Exclude<Exclude<R, Provisioning.Provides<Res>>, Definition.Given>

/** The flush is within the stop budget; this is for exporters that do not keep to it. */
const telemetryCloses = Duration.seconds(1)

/** For the parts, and then for the resources, that a second signal cuts off before their stop has begun. */
const lastChance = Duration.millis(400)

/** The main program is a part like all others, but has no layer. */
const mainPart = "main"

const faultsOf = <A>(result: Result.Result<A, ServiceError>): ReadonlyArray<string> =>
  Result.isFailure(result) && result.failure.reason._tag === "ConfigInvalid" ? result.failure.reason.faults : []

/** From the health listener to the report. Its span is within the telemetry of the service. */
const live = Effect.fn("Service.run")(function*<R, Res extends Resource.Any>(
  service: Definition.Service<R, Res>,
  config: ServiceConfig.ServiceConfig,
  parts: Parts.Parts<never, R>,
  elapsed: Effect.Effect<Duration.Duration>
) {
  const { name, version } = service
  const platform = yield* ServicePlatform
  const signals = yield* ServiceSignals
  const notifier = yield* Notifier
  const watchdog = yield* Watchdog
  const events = yield* ServiceEvents
  const health = yield* Health.make
  // What outlives the parts: what the main program holds, and the checks; then resources; then who makes and answers for them.
  const scope = yield* Scope.make()
  const resources = new Map<string, { readonly aside: Asides.Aside; readonly scope: Scope.Closeable }>()
  const makerScope = yield* Scope.make()
  const healthScope = yield* Scope.make()
  /** What did not stop as it should, in the order in which that was found out. */
  const left: Array<StopLadder.Leftover> = []
  /** Where finalizers that have a defect have it. */
  const defects: Array<Cause.Cause<unknown>> = []
  const note = (outcome: StopLadder.Outcome): void => {
    if (outcome._tag === "Stopped") return
    left.push(StopLadder.leftover(outcome))
    if (outcome._tag === "Failed" && Cause.hasDies(outcome.cause)) defects.push(outcome.cause)
  }
  const asides = yield* Asides.make(note)
  const main = asides.make(mainPart)
  const fatal = Deferred.makeUnsafe<ServiceError>()
  let phase: Phase = "configure"
  let isStopping = false

  const inPhase = <A, R2>(
    entered: Phase,
    self: Effect.Effect<A, ServiceError, R2>
  ): Effect.Effect<A, ServiceError, R2> =>
    Effect.gen(function*() {
      phase = entered
      yield* events.publish({ _tag: "PhaseStarted", phase: entered })
      const from = yield* elapsed
      return yield* Effect.onExit(self, (exit) =>
        Effect.gen(function*() {
          const took = Duration.subtract(yield* elapsed, from)
          yield* Metric.update(OwnMetrics.phaseDuration(entered), Duration.toSeconds(took))
          const error = Exit.isFailure(exit) ? End.failureOf(entered, exit.cause) : undefined
          yield* events.publish(
            error === undefined
              ? { _tag: "PhaseEnded", phase: entered, took }
              : { _tag: "PhaseFailed", phase: entered, took, error }
          )
        }))
    }).pipe(Effect.withSpan(`Service.${entered}`))

  const given = Context.make(Fatal, {
    report: (error) =>
      Effect.suspend(() => {
        if (!isStopping && Deferred.doneUnsafe(fatal, Exit.succeed(error))) return Effect.void
        return Effect.logError(`Reported while the service stops: ${explain(error)}`)
      })
  }).pipe(
    Context.add(Health.Health, health),
    Context.add(ServiceEvents, events),
    Context.add(Definition.CurrentService, { name, version, config }),
    Context.add(Scope.Scope, scope)
  )

  /** Each resource is held by a scope of its own, so that one that hangs in its release does not hold the others. */
  const apart = (provisioner: Provisioner["Service"]): Provisioner["Service"] => ({
    ...provisioner,
    request: (resource) =>
      Effect.suspend(() => {
        let own = resources.get(resource.name)
        if (own === undefined) {
          own = { aside: asides.make(resource.name), scope: Scope.makeUnsafe() }
          resources.set(resource.name, own)
        }
        return own.aside.run(Scope.provide(provisioner.request(resource), own.scope))
      })
  })

  const provision = Effect.gen(function*() {
    const { provisioner, secrets } = yield* inPhase(
      "secrets",
      Effect.gen(function*() {
        const made = apart(yield* Scope.provide(platform.provisioner(config, { name }), makerScope))
        return { provisioner: made, secrets: yield* Effect.provideService(Provisioning.secrets, Provisioner, made) }
      })
    )
    const { environment, projectId, projectName, stateDirectory } = config
    const loaded = yield* inPhase(
      "load",
      Provisioning.loadAll(service.resources, { environment, projectId, projectName, stateDirectory, secrets })
    )
    const checked = yield* inPhase("check", Provisioning.checkAll(loaded))
    return yield* inPhase(
      "provision",
      Provisioning.provisionAll(checked, secrets, { startTimeout: service.startWithin }).pipe(
        Effect.provideService(Provisioner, provisioner)
      )
    )
  })

  const isIn = (state: Health.State) => () => ({ value: Effect.runSync(health.state) === state ? 1 : 0 })
  // As long as somebody may ask.
  yield* Scope.provide(
    Effect.all([
      OwnMetrics.observe(OwnMetrics.info({ name, version, environment: config.environment }), () => ({ value: 1 })),
      OwnMetrics.observe(OwnMetrics.ready, isIn("ready")),
      OwnMetrics.observe(OwnMetrics.draining, isIn("draining"))
    ]),
    healthScope
  )

  const phases = Effect.gen(function*() {
    yield* Effect.forEach(config.warnings, (warning) => Effect.logWarning(warning))
    if (Option.isSome(config.healthPort)) {
      yield* inPhase("health", Scope.provide(platform.health(config), healthScope))
    }
    const provisioned = yield* main.run(provision)
    if (Option.isSome(config.sidecar)) yield* inPhase("sidecar", platform.dismissSidecar(config))
    const outputs = yield* inPhase(
      "init",
      Effect.gen(function*() {
        const decoded = yield* Provisioning.decodeAll(provisioned)
        yield* Effect.provideContext(
          Effect.andThen(
            service.addChecks,
            parts.start({
              onEvent: events.publish,
              startWithin: service.startWithin,
              rollbackBudget: Duration.subtract(config.stopBudget, ServiceConfig.flushWithin(config))
            })
          ),
          decoded
        )
        return decoded
      })
    )
    return yield* inPhase(
      "run",
      Effect.gen(function*() {
        yield* health.advance("ready")
        yield* notifier.notify({ ready: true, status: "Ready" })
        yield* events.publish({ _tag: "Ready" })
        yield* Effect.logInfo(`${name} ${version} is ready`)
        if (Option.isNone(service.main)) return yield* Effect.never
        yield* main.run(Effect.provideContext(service.main.value, outputs)).pipe(
          Effect.mapError((error) =>
            fromReason(ServiceErrorReason.RunFailed({ part: mainPart, why: explain(error) }), error)
          )
        )
        return { _tag: "Ended" } as const
      })
    )
  })
  const life: Effect.Effect<End.Why, ServiceError, Needs<R, Res>> = platform.listen(config).pipe(
    Scope.provide(makerScope),
    Effect.flatMap((address) => Effect.provideContext(phases, Context.add(given, ListenAddress, address)))
  )

  /** What stops when the parts have stopped, group after group. */
  const afterParts = (): ReadonlyArray<ReadonlyArray<Asides.Step>> => {
    const close = (
      held: string,
      closed: Scope.Closeable,
      weight: number,
      of?: Asides.Aside
    ): Asides.Step => ({
      name: held,
      stop: Scope.close(closed, Exit.void),
      of,
      weight
    })
    return [
      [close(`finalizers of ${mainPart}`, scope, StopShares.weights.held, main)],
      Array.from(resources, ([resource, own]) => close(resource, own.scope, StopShares.weights.resource, own.aside)),
      [
        close("health listener", healthScope, StopShares.weights.rest),
        close("provisioner", makerScope, StopShares.weights.rest)
      ]
    ]
  }

  const stop = Effect.fnUntraced(function*(asked: End.Why, living: Fiber.Fiber<End.Why, ServiceError>) {
    const endedIn = phase
    isStopping = true
    if (asked._tag === "Signal") {
      yield* events.publish({ _tag: "SignalReceived", signal: asked.signal, serial: 1 })
      yield* Effect.logWarning(`Received ${asked.signal} in phase ${endedIn}. Stopping ${name}`)
    } else if (asked._tag === "Ended") yield* Effect.logWarning(`${name} ended by itself. Stopping what it is made of`)
    yield* notifier.notify({ stopping: true, status: "Stopping" })
    yield* watchdog.stopBegan(config.stopBudget)
    const began = yield* Clock.monotonicTimeNanos
    const isDraining = asked._tag === "Signal" && endedIn === "run" && Duration.toMillis(config.drainDelay) > 0
    let budget = Duration.subtract(config.stopBudget, ServiceConfig.flushWithin(config))
    const farthest = Duration.sum(budget, service.maxExtension)
    const budgetLeft = Effect.map(
      Clock.monotonicTimeNanos,
      (now) => Duration.max(Duration.zero, Duration.subtract(budget, Duration.nanos(now - began)))
    )

    let partsStop = false
    const begin = Effect.gen(function*() {
      yield* health.advance("draining")
      yield* events.publish({ _tag: "Draining", delay: isDraining ? config.drainDelay : Duration.zero })
    })
    const stopAll: Effect.Effect<void> = Effect.gen(function*() {
      if (!isDraining) yield* begin
      // While the parts still start, the start is ended by their own stop.
      if (endedIn === "run") {
        const ending = { name: mainPart, stop: End.unwound(living, asked), of: main }
        yield* asides.stop(StopShares.forMain(yield* budgetLeft), [[ending]])
      }
      const forParts = StopShares.forParts(yield* budgetLeft, resources.size > 0)
      partsStop = true
      const outcomes = yield* parts.stop({
        budget: forParts,
        hardCap: Duration.sum(forParts, service.maxExtension),
        onEvent: (event) =>
          Effect.gen(function*() {
            yield* events.publish(event)
            if (event._tag !== "BudgetExtended") return
            budget = Duration.min(Duration.sum(budget, event.by), farthest)
            const more = yield* budgetLeft
            yield* shutdown.extend(more)
            yield* notifier.notify({ extendTimeout: more })
            yield* watchdog.stopBegan(more)
          })
      })
      outcomes.forEach(note)
      if (endedIn !== "run") {
        const ending = { name: endedIn, stop: Fiber.interrupt(living), of: main }
        yield* asides.stop(StopShares.forPhase(yield* budgetLeft), [[ending]])
      }
      yield* asides.stop(yield* budgetLeft, afterParts())
    })

    const shutdown: Shutdown = yield* StopLadder.make({
      drain: isDraining ? Option.some({ delay: config.drainDelay, begin }) : Option.none(),
      stop: stopAll,
      // Of which a second signal may leave all to the parts.
      budget,
      maxExtension: service.maxExtension,
      abandon: Effect.gen(function*() {
        yield* asides.abandon
        // What has not begun to stop still gets the chance: a database server is not left behind.
        const chance = Effect.map(budgetLeft, (rest) => Duration.min(lastChance, rest))
        if (partsStop) {
          // Before: afterwards nobody knows any more what they were doing, and since when.
          const status = yield* parts.status
          yield* parts.abandon
          for (const part of status) {
            if (left.some((one) => one.part === part.name)) continue
            if (part.state === "running") {
              note({ _tag: "Abandoned", name: part.name, took: Duration.zero, doing: StopLadder.notYet })
            } else if (part.state === "abandoned" || part.state === "stopping") {
              note({ _tag: "Abandoned", name: part.name, took: part.since, doing: part.doing ?? noSpan })
            }
          }
        } else {
          const outcomes = yield* parts.stop({ budget: yield* chance, onEvent: events.publish })
          outcomes.forEach(note)
        }
        yield* asides.stop(yield* chance, afterParts())
      })
    })
    let crash: { readonly error: unknown } | undefined
    const crashed = yield* Effect.forkDetach(
      Effect.map(signals.uncaught, (error) => {
        crash ??= { error }
      }),
      { startImmediately: true }
    )
    let cutBy: Signal | undefined
    const again = yield* Effect.forkDetach(
      Effect.gen(function*() {
        for (let serial = asked._tag === "Signal" ? 2 : 1;; serial++) {
          const signal = yield* signals.next
          yield* events.publish({ _tag: "SignalReceived", signal, serial })
          if (serial < 2) continue
          yield* Effect.logWarning(`Received ${signal} again. Going on to the next step of the stop`)
          const stage = yield* shutdown.stage
          if (Option.contains(stage, "stop")) cutBy = signal
          yield* Effect.forkDetach(Effect.ignore(shutdown.run({ atLeast: "next" })), { startImmediately: true })
        }
      }),
      { startImmediately: true }
    )
    const within = Duration.sum(farthest, StopLadder.slack)
    yield* Effect.orDie(inPhase("stop", Effect.orDie(shutdown.run({ within }))))
    again.interruptUnsafe()
    crashed.interruptUnsafe()
    yield* health.advance("stopped")
    yield* watchdog.stopEnded
    // A start that had failed was still being unwound when something else came: it ends because of the failure.
    const own = endedIn === "init" ? living.pollUnsafe() : undefined
    const first = own === undefined ? asked : End.whyOf(own)
    const known = first._tag === "Failed" && asked._tag !== "Interrupted" ? first : asked
    const isInOrder = known._tag === "Signal" || known._tag === "Ended"
    const why: End.Why = crash !== undefined && isInOrder ? { _tag: "Defect", cause: Cause.die(crash.error) } : known
    if (asked._tag === "Failed" && first._tag === "Failed" && asked.error !== first.error) {
      yield* Effect.logError(`Reported while the service stops: ${explain(asked.error)}`)
    }
    const reason = End.reasonOf(why, left)
    const end: ExitCode.ServiceEnd = cutBy === undefined || left.length === 0
      ? { _tag: "Reason", reason }
      : { _tag: "SecondSignal", signal: cutBy }
    const code = ExitCode.fromService(end, service.exitCodes)
    const error = why._tag === "Failed" ? Option.some(why.error) : Option.none()
    const message = End.tell(why, left)
    if (message !== undefined) yield* platform.complain(`ERROR: ${message}`)
    const took = yield* elapsed
    const log = yield* TerminationLog
    yield* log.write({
      reason: end._tag === "Reason" ? end.reason : "secondSignal",
      code,
      phase: endedIn,
      elapsed: took,
      abandoned: left.filter(({ _tag }) => _tag === "Abandoned").map(({ part }) => part),
      ...(message === undefined ? {} : { message }),
      ...(asked._tag === "Signal" ? { signal: asked.signal } : {})
    })
    const millis = Number((yield* Clock.monotonicTimeNanos) - began) / 1e6
    const said = `${name} has stopped after ${Math.round(millis)} ms: ${
      end._tag === "Reason" ? end.reason : `second ${end.signal}`
    } (${code})`
    // Who reads the log alone has to learn of it too.
    yield* message === undefined
      ? Effect.logInfo(said)
      : Effect.annotateLogs(Effect.logError(`${said}\n${message}`, ...defects), { code, phase: endedIn })
    const report: ServiceReport = {
      name,
      version,
      code,
      end,
      phase: endedIn,
      error,
      signal: asked._tag === "Signal" ? Option.some(asked.signal) : Option.none(),
      left,
      elapsed: took
    }
    return why._tag === "Interrupted" ? yield* Effect.interrupt : report
  })

  return yield* Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      yield* watchdog.allowBlocked(config.stopBudget)
      const living = yield* Effect.forkDetach(life, { startImmediately: true, uninterruptible: false })
      let isInterrupted = false
      const first = Effect.raceAllFirst<Effect.Effect<Exit.Exit<End.Why, ServiceError>>>([
        Fiber.await(living),
        Effect.map(signals.next, (signal) => Exit.succeed({ _tag: "Signal", signal })),
        Effect.map(Deferred.await(fatal), Exit.fail),
        Effect.map(signals.uncaught, Exit.die)
      ])
      const exit = yield* Effect.exit(Effect.onInterrupt(restore(first), () =>
        Effect.sync(() => {
          isInterrupted = true
        })))
      const why = isInterrupted
        ? { _tag: "Interrupted" } as const
        : End.whyOf(Exit.isSuccess(exit) ? exit.value : Exit.failCause(exit.cause))
      return yield* stop(why, living)
    })
  )
})

/**
 * Runs a service until it ends by itself, fails, or is told to end by a signal; then stops it, and gives the report.
 * Never fails: what goes wrong is in the report, on stderr, and in its exit code. Interrupting it stops the service in
 * order too.
 *
 * @category main
 * @since 0.1.0
 */
export const run = Effect.fnUntraced(
  function*<R, Res extends Resource.Any>(service: Definition.Service<R, Res>): Effect.fn.Return<
    ServiceReport,
    never,
    | Needs<R, Res>
    | Notifier
    | ServiceEvents
    | ServicePlatform
    | ServiceSignals
    | TerminationLog
    | Watchdog
  > {
    const platform = yield* ServicePlatform
    const began = yield* Clock.monotonicTimeNanos
    const { name, version } = service
    const elapsed = Effect.map(Clock.monotonicTimeNanos, (now) => Duration.nanos(now - began))
    const ended = Effect.fnUntraced(function*(error: Option.Option<ServiceError>) {
      const end: ExitCode.ServiceEnd = {
        _tag: "Reason",
        reason: Option.match(error, { onNone: () => "ended", onSome: ({ exitReason }) => exitReason })
      }
      const report: ServiceReport = {
        name,
        version,
        code: ExitCode.fromService(end, service.exitCodes),
        end,
        phase: "configure",
        error,
        signal: Option.none(),
        left: [],
        elapsed: yield* elapsed
      }
      if (Option.isSome(error)) {
        const log = yield* TerminationLog
        const { code, elapsed: took, phase } = report
        yield* log.write({ reason: error.value.exitReason, code, phase, elapsed: took, message: explain(error.value) })
      }
      return report
    })

    const events = yield* ServiceEvents
    yield* events.publish({ _tag: "PhaseStarted", phase: "configure" })
    const assembled = yield* Effect.result(service.assemble)
    const parsed = ServiceConfig.parse({ env: platform.env, argv: platform.argv, defaults: service })
    if (Result.isSuccess(parsed) && parsed.success.command._tag === "Version") {
      yield* platform.print(`${name} ${version}`)
      return yield* ended(Option.none())
    }
    const faults = [...Definition.faults(service), ...faultsOf(assembled), ...faultsOf(parsed)]
    if (Result.isFailure(assembled) || Result.isFailure(parsed) || faults.length > 0) {
      const error = fromReason(ServiceErrorReason.ConfigInvalid({ faults }))
      yield* platform.complain(`ERROR: ${explain(error)}`)
      yield* events.publish({ _tag: "PhaseFailed", phase: "configure", took: yield* elapsed, error })
      return yield* ended(Option.some(error))
    }
    yield* events.publish({ _tag: "PhaseEnded", phase: "configure", took: yield* elapsed })
    const config = parsed.success
    switch (config.command._tag) {
      case "Help":
        yield* platform.print(ServiceConfig.help(service))
        return yield* ended(Option.none())
      case "Plan":
        yield* platform.print(ServicePlan.render(ServicePlan.make(service, config), config.command.format))
        return yield* ended(Option.none())
      case "Version":
      case "Run":
    }

    return yield* Effect.acquireUseRelease(
      Scope.make(),
      (telemetry) =>
        Effect.flatMap(
          Layer.buildWithScope(platform.telemetry(config, service), telemetry),
          (context) => Effect.provideContext(live(service, config, assembled.success, elapsed), context)
        ),
      // Never waited for longer: nobody's logs are worth a service that does not end.
      (telemetry) =>
        StopBudget.stopAll(telemetryCloses, [[{ name: "telemetry", stop: Scope.close(telemetry, Exit.void) }]])
    )
  }
)
