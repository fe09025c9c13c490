/** What clients and balancers see of a service that has been told to stop. */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Probe from "../LifecycleProbe.ts"
import {
  begun,
  budgetOf,
  delayOf,
  fast,
  headStart,
  isAnswer,
  isOk,
  need,
  NotApplicable,
  notHeld,
  probePort,
  said,
  type Scenario,
  settle,
  show,
  signal,
  slowOf,
  stops,
  type Trial,
  up
} from "./lifecycleSteps.ts"

/** Of the time that something lasts: what is looked at, so that its end is not. */
const most = 0.8

export const inFlight = (connections: "closed" | "kept"): Scenario => (subject, limits) =>
  Effect.gen(function*() {
    const path = yield* need(subject.endpoints.slow, "slow endpoint")
    const trial = yield* up(subject, limits)
    const takes = slowOf(subject)
    const agent = connections === "kept" ? yield* Probe.keepAlive(1) : undefined
    const asking = yield* begun(trial, path(takes), { agent, within: takes + budgetOf(subject) + 5000 })
    const event = yield* signal(trial)
    const answer = yield* Fiber.join(asking)
    const lasted = Probe.now() - event.at
    if (!isOk(answer)) return yield* notHeld(`the request was answered ${said(answer)} ${show(lasted)} after SIGTERM`)
    const { millis } = yield* stops(trial, event, Math.max(lasted, delayOf(subject)))
    return { millis, note: `the request was answered ${show(lasted)} after SIGTERM` }
  })

export const webSocket: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const path = yield* need(subject.endpoints.websocket, "WebSocket endpoint")
    const trial = yield* up(subject, limits)
    const { closed } = yield* Probe.openWebSocket(trial.service.ports.service, path)
    const { millis } = yield* stops(trial, yield* signal(trial), budgetOf(subject))
    const code = yield* closed
    if (code === 1006) return yield* notHeld("it was cut without a close frame", millis)
    return { millis, note: `closed with ${code}` }
  })

export const drainServes: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const delay = delayOf(subject)
    if (delay === 0) return yield* new NotApplicable({ why: "no drain delay" })
    const trial = yield* up(subject, limits)
    const event = yield* signal(trial)
    let count = 0
    while (Probe.now() < event.at + delay * most) {
      const answer = yield* settle(fast(subject, trial.service))
      if (!isOk(answer)) {
        return yield* notHeld(
          `a new request was answered ${said(answer)} ${show(Probe.now() - event.at)} after SIGTERM`
        )
      }
      count++
      yield* Effect.sleep(5)
    }
    const { millis } = yield* stops(trial, event, delay)
    return { millis, note: `${count} requests` }
  })

/** Asks a service to stop that has something to do yet, and tells until when its probes are to be looked at. */
const draining = Effect.fnUntraced(function*(trial: Trial) {
  const delay = delayOf(trial.subject)
  if (delay > 0) {
    const { at } = yield* signal(trial)
    return { at, end: at + delay * most }
  }
  const path = yield* need(trial.subject.endpoints.slow, "drain delay and no slow endpoint")
  const takes = slowOf(trial.subject)
  yield* begun(trial, path(takes))
  const { at } = yield* signal(trial)
  return { at, end: at + (takes - headStart) * most }
})

export const drainProbes: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const { live, ready } = subject.probes ?? {}
    const path = yield* need(ready, "readiness probe")
    const trial = yield* up(subject, limits)
    const port = probePort(subject, trial.service)
    const { at, end } = yield* draining(trial)
    let notReady: number | undefined
    let last = "nothing"
    while (Probe.now() < end) {
      const answer = yield* settle(Probe.request(port, path))
      if (!isOk(answer)) notReady ??= Probe.now() - at
      else if (notReady !== undefined) return yield* notHeld("ready again while draining", notReady)
      if (isAnswer(answer)) last = said(answer)
      const alive = live === undefined || Probe.now() >= end ? undefined : yield* settle(Probe.request(port, live))
      if (alive !== undefined && !isOk(alive)) return yield* notHeld(`live was answered ${said(alive)} while draining`)
      yield* Effect.sleep(5)
    }
    if (notReady === undefined) return yield* notHeld(`ready was still answered ${last} at the end of the drain`)
    if (notReady > (end - at) / 2) return yield* notHeld(`not ready only ${show(notReady)} after SIGTERM`, notReady)
    return { millis: notReady, note: `ready is answered ${last}` }
  })

export const drainedRefuses: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const path = yield* need(subject.endpoints.slow, "slow endpoint")
    const trial = yield* up(subject, limits)
    const takes = slowOf(subject)
    const asking = yield* begun(trial, path(takes))
    const event = yield* signal(trial)
    // In the middle between the end of the drain delay and the end of the request.
    yield* Effect.sleep((delayOf(subject) + takes - headStart) / 2)
    const when = `${show(Probe.now() - event.at)} after SIGTERM`
    const late = yield* settle(fast(subject, trial.service))
    if (trial.service.poll() !== undefined) return yield* notHeld("it ended before the request that it had")
    if (isOk(late)) return yield* notHeld(`a new connection was served ${when}`)
    if (!isOk(yield* Fiber.join(asking))) return yield* notHeld("the request in flight was cut")
    yield* stops(trial, event, takes)
    return { note: `a new connection gets ${said(late)} ${when}` }
  })

export const balancer: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const path = yield* need(subject.probes?.ready, "readiness probe")
    const delay = delayOf(subject)
    if (delay === 0) return yield* new NotApplicable({ why: "no drain delay" })
    const trial = yield* up(subject, limits)
    const agent = yield* Probe.keepAlive(4)
    let sending = true
    let count = 0
    const failures: Array<string> = []
    const client = Effect.whileLoop({
      while: () => sending,
      body: () => Effect.tap(settle(fast(subject, trial.service, { agent })), () => Effect.sleep(5)),
      step: (answer) => {
        count++
        if (!isOk(answer)) failures.push(said(answer))
      }
    })
    const clients = yield* Effect.forkScoped(Effect.all([client, client, client, client], { concurrency: "unbounded" }))
    const refused = yield* Effect.forkScoped(
      Probe.until(Probe.request(probePort(subject, trial.service), path), (answer) => !isOk(answer), "1 minute")
    )
    yield* Effect.sleep(300)
    const event = yield* signal(trial)
    yield* Effect.timeoutOption(Fiber.join(refused), budgetOf(subject))
    sending = false
    yield* Fiber.join(clients)
    const { millis } = yield* stops(trial, event, delay)
    if (failures.length > 0) {
      return yield* notHeld(
        `${failures.length} of ${count} requests failed: ${[...new Set(failures)].join(", ")}`,
        millis
      )
    }
    return { millis, note: `${count} requests` }
  })
