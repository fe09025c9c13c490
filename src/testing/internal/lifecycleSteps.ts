/** What scenarios are made of: a service that is up, requests that are under way, an end that comes in time. */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as ExitStatus from "../../lifecycle/ExitStatus.ts"
import type { Signal } from "../../lifecycle/Signal.ts"
import * as Probe from "../LifecycleProbe.ts"

/** A promise is broken; `millis` is what was measured all the same. */
export class NotHeld extends Data.TaggedError("NotHeld")<{
  readonly why: string
  readonly millis?: number | undefined
}> {}

/** A subject does not have what the promise is about, or says that it does not make it. */
export class NotApplicable extends Data.TaggedError("NotApplicable")<{ readonly why: string }> {}

export interface Held {
  readonly millis?: number | undefined
  readonly note?: string | undefined
}

export interface Limits {
  /** How much later than promised still counts as kept: for a noisy machine. */
  readonly tolerance: number
  /** Between two signals during start-up. */
  readonly startStep: number
}

export type Scenario<A = Held> = (
  subject: Probe.Subject,
  limits: Limits
) => Effect.Effect<A, NotHeld | NotApplicable | Probe.NoAnswer | Probe.NotStarted, Scope.Scope>

/** One start of a subject. */
export interface Trial extends Limits {
  readonly subject: Probe.Subject
  readonly service: Probe.Service
}

/** Something happened at that time, from which others are counted. */
export interface Event {
  readonly what: string
  readonly at: number
}

export const notHeld = (why: string, millis?: number) => Effect.fail(new NotHeld({ why, millis }))
export const need = <A>(value: A | undefined, what: string): Effect.Effect<A, NotApplicable> =>
  value === undefined ? Effect.fail(new NotApplicable({ why: `no ${what}` })) : Effect.succeed(value)

export const show = (millis: number): string => `${Math.round(millis)} ms`
const millisOf = (duration: Duration.Input | undefined, otherwise = 0): number =>
  duration === undefined ? otherwise : Duration.toMillis(duration)
export const budgetOf = (subject: Probe.Subject): number => millisOf(subject.budget)
export const delayOf = (subject: Probe.Subject): number => millisOf(subject.drainDelay)
export const startOf = (subject: Probe.Subject): number => millisOf(subject.startWithin, 10_000)

/** From sending a request until it is surely being worked on. */
export const headStart = 150

/** How long the slow request of a scenario takes. Half of what a drained service still has at most. */
export const slowOf = (subject: Probe.Subject): number =>
  Math.round(headStart + Math.min(600, (budgetOf(subject) - delayOf(subject)) / 2) + delayOf(subject))

export const probePort = (subject: Probe.Subject, { ports }: Probe.Service): number =>
  subject.probes?.on === "service" ? ports.service : ports.probes

export const lastWords = (service: Probe.Service): Effect.Effect<string> =>
  Effect.map(service.output, (output) => {
    const words = output.trim().replaceAll(/\s+/g, " ")
    return words === "" ? "it printed nothing" : `it printed: ${words.length > 200 ? `…${words.slice(-200)}` : words}`
  })

export const fast = (subject: Probe.Subject, service: Probe.Service, options?: Parameters<typeof Probe.request>[2]) =>
  Probe.request(service.ports.service, subject.endpoints.fast, options)

export const isAnswer = (answer: Probe.Answer | Probe.NoAnswer | undefined): answer is Probe.Answer =>
  answer !== undefined && !("_tag" in answer)
export const isOk = (answer: Probe.Answer | Probe.NoAnswer): boolean => isAnswer(answer) && Probe.isOk(answer)
export const said = (answer: Probe.Answer | Probe.NoAnswer): string =>
  isAnswer(answer) ? String(answer.status) : answer.code

export const settle = <A>(effect: Effect.Effect<A, Probe.NoAnswer>): Effect.Effect<A | Probe.NoAnswer> =>
  Effect.catch(effect, (error) => Effect.succeed(error))

/** Started, serving, and ready as far as it says so; `took` until it first served. */
export const up = Effect.fnUntraced(function*(
  subject: Probe.Subject,
  limits: Limits,
  options?: Parameters<typeof Probe.start>[1]
) {
  const since = Probe.now()
  const service = yield* Probe.start(subject, options)
  const within = startOf(subject)
  const ended = Effect.flatMap(service.exit, ({ status }) =>
    Effect.flatMap(
      lastWords(service),
      (words) => notHeld(`it did not start: ${ExitStatus.format(status)}; ${words}`)
    ))
  const first = yield* Effect.raceFirst(Probe.until(fast(subject, service), isOk, within), ended)
  if (first === undefined) {
    return yield* notHeld(
      `${subject.endpoints.fast} had no 2xx within ${show(within)}; ${yield* lastWords(service)}`
    )
  }
  const took = Probe.now() - since
  const path = subject.probes?.ready
  if (path !== undefined) {
    const ready = Probe.until(Probe.request(probePort(subject, service), path), isOk, within)
    if ((yield* Effect.raceFirst(ready, ended)) === undefined) {
      return yield* notHeld(`${path} had no 2xx within ${show(within)}`)
    }
  }
  return { ...limits, subject, service, took }
})

export const codeOf = (status: ExitStatus.ExitStatus): number | Signal | undefined =>
  status._tag === "Exited" ? status.code : status._tag === "Signaled" ? status.signal : undefined

export const stoppedBy = (subject: Probe.Subject): number | Signal => subject.expect?.stopped ?? 0

export const isStopped = (subject: Probe.Subject, status: ExitStatus.ExitStatus): boolean =>
  codeOf(status) === stoppedBy(subject)

/** The end of the process, which has to come within `limit` of the event. */
export const ends = Effect.fnUntraced(function*(trial: Trial, { at, what }: Event, limit: number) {
  const { service, subject, tolerance } = trial
  // Longer than held, to tell late from never.
  const patience = Math.max(limit, budgetOf(subject)) + tolerance + 1000 - (Probe.now() - at)
  const ended = yield* Effect.timeoutOption(service.exit, Math.max(0, patience))
  if (Option.isNone(ended)) return yield* notHeld(`still running ${show(Probe.now() - at)} after ${what}`)
  const millis = ended.value.at - at
  if (millis > limit + tolerance) {
    return yield* notHeld(`ended ${show(millis)} after ${what}, not within ${show(limit)}`, millis)
  }
  return { status: ended.value.status, millis }
})

/** The same, and in order. */
export const stops = Effect.fnUntraced(function*(trial: Trial, event: Event, limit: number) {
  const { millis, status } = yield* ends(trial, event, limit)
  if (isStopped(trial.subject, status)) return { millis }
  return yield* notHeld(
    `${ExitStatus.format(status)}, not ${stoppedBy(trial.subject)}, ${show(millis)} after ${event.what}`,
    millis
  )
})

export const signal = ({ service }: Trial, name: Signal = "SIGTERM", what: string = name): Effect.Effect<Event> =>
  Effect.suspend(() => {
    const at = Probe.now()
    return Effect.as(service.signal(name), { what, at })
  })

/** A request that is being worked on when this goes on. */
export const begun = Effect.fnUntraced(function*(
  { service }: Trial,
  path: string,
  options: Parameters<typeof Probe.request>[2] = { within: "1 hour" }
) {
  const asking = settle(Probe.request(service.ports.service, path, options))
  const fiber = yield* Effect.forkScoped(asking, { startImmediately: true })
  yield* Effect.sleep(headStart)
  return fiber
})
