/** How a service starts, and how it does not. */
import * as Effect from "effect/Effect"
import * as ExitStatus from "../../lifecycle/ExitStatus.ts"
import * as Probe from "../LifecycleProbe.ts"
import {
  budgetOf,
  codeOf,
  delayOf,
  ends,
  fast,
  isAnswer,
  isOk,
  isStopped,
  lastWords,
  need,
  NotApplicable,
  notHeld,
  probePort,
  said,
  type Scenario,
  settle,
  show,
  signal,
  startOf,
  stops,
  up
} from "./lifecycleSteps.ts"

export const starts: Scenario = (subject, limits) => Effect.map(up(subject, limits), ({ took }) => ({ millis: took }))

/** How much longer a slow start is made. */
const slowness = 500

export const notReadyFirst: Scenario = (subject) =>
  Effect.gen(function*() {
    const path = yield* need(subject.probes?.ready, "readiness probe")
    const { live, startup } = subject.probes ?? {}
    const slow = subject.slowStart
    const service = yield* Probe.start(subject, slow === undefined ? {} : { env: slow(slowness) })
    const port = probePort(subject, service)
    const refusals = new Set<string>()
    const deaths = new Set<string>()
    let answered = false
    const deadline = Probe.now() + startOf(subject) + slowness
    while (true) {
      const ready = yield* settle(Probe.request(port, path))
      if (isOk(ready)) break
      refusals.add(said(ready))
      answered ||= isAnswer(ready)
      const alive = isAnswer(ready) && live !== undefined ? yield* settle(Probe.request(port, live)) : undefined
      if (alive !== undefined && !isOk(alive)) deaths.add(said(alive))
      if (Probe.now() > deadline || service.poll() !== undefined) {
        return yield* notHeld(`${path} never had a 2xx; ${yield* lastWords(service)}`)
      }
      yield* Effect.sleep(5)
    }
    const first = yield* settle(fast(subject, service))
    if (!isOk(first)) return yield* notHeld(`ready, but ${subject.endpoints.fast} was answered ${said(first)}`)
    const started = startup === undefined ? first : yield* settle(Probe.request(port, startup))
    if (!isOk(started)) return yield* notHeld(`ready, but ${startup} was answered ${said(started)}`)
    if (deaths.size > 0) return yield* notHeld(`live was answered ${[...deaths].join(", ")} while starting`)
    if (slow !== undefined && !answered) {
      return yield* notHeld(`nobody answered ${path} in a start of ${show(slowness)}, only ${[...refusals].join(", ")}`)
    }
    return { note: `before ready: ${refusals.size === 0 ? "not asked in time" : [...refusals].join(", ")}` }
  })

export const portTaken = (which: "service" | "probes"): Scenario => (subject, limits) =>
  Effect.gen(function*() {
    const own = which === "service" || (subject.probes !== undefined && subject.probes.on !== "service")
    if (!own) return yield* new NotApplicable({ why: "the probes have no port of their own" })
    const ports = yield* Probe.allocate(subject)
    yield* Probe.occupy(ports[which])
    const start = { what: "the start", at: Probe.now() }
    const service = yield* Probe.start(subject, { ports })
    const { millis, status } = yield* ends({ ...limits, subject, service }, start, startOf(subject))
    const expected = which === "service" ? subject.expect?.portTaken : subject.expect?.probePortTaken
    const code = codeOf(status)
    if (typeof code !== "number" || code === 0 || (expected !== undefined && expected !== code)) {
      return yield* notHeld(`${ExitStatus.format(status)}, not ${expected ?? "a code above 0"}`, millis)
    }
    if (!new RegExp(`EADDRINUSE|in use|\\b${ports[which]}\\b`, "i").test(yield* service.output)) {
      return yield* notHeld(`it does not say why; ${yield* lastWords(service)}`, millis)
    }
    return { millis, note: ExitStatus.format(status) }
  })

export const sigtermStarting: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const { took } = yield* Effect.scoped(up(subject, limits))
    let slowest = 0
    let deaf = 0
    let runs = 0
    // A little longer than it took once: no two starts take the same. For one that starts slowly the steps are wider, so
    // that the row takes two minutes at most.
    const last = took + 50
    const step = Math.max(limits.startStep, last * (last / 2 + delayOf(subject) + 100) / 120_000)
    const once = (when: string, wait: (service: Probe.Service) => Effect.Effect<void>) =>
      Effect.scoped(Effect.gen(function*() {
        runs++
        const service = yield* Probe.start(subject)
        yield* wait(service)
        if (service.poll() !== undefined) {
          return yield* notHeld(`it ended by itself within ${when} the start; ${yield* lastWords(service)}`)
        }
        const serving = Probe.listens(service.ports.service) ?? false
        const trial = { ...limits, subject, service }
        const event = yield* signal(trial, "SIGTERM", `SIGTERM, ${when} the start`)
        const { millis, status } = yield* ends(trial, event, budgetOf(subject))
        slowest = Math.max(slowest, millis)
        if (isStopped(subject, status)) return
        // No program can hear a signal before its runtime is up: until it serves, that it dies of it will do.
        if (codeOf(status) !== "SIGTERM" || serving) {
          const state = serving ? "when it served" : "before it served"
          return yield* notHeld(`${ExitStatus.format(status)} on ${event.what}, ${state}`, millis)
        }
        deaf++
      }))
    for (let delay = 0; delay <= last; delay += step) yield* once(`${show(delay)} after`, () => Effect.sleep(delay))
    // All of these may have been before it served, if each took longer than the first one.
    yield* once("right after", (service) =>
      Effect.repeat(Effect.sleep(5), {
        until: () => Probe.listens(service.ports.service) !== false || service.poll() !== undefined
      }).pipe(Effect.timeoutOption(startOf(subject)), Effect.asVoid))
    return { millis: slowest, note: `slowest of ${runs}; ${deaf} died of it before they served` }
  })

export const asInit: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const attempt = yield* Effect.result(Effect.scoped(Effect.flatMap(
      Probe.start({ ...subject, command: "true", args: [] }, { asInit: true }),
      ({ exit }) => exit
    )))
    if (attempt._tag === "Failure" || !ExitStatus.isSuccess(attempt.success.status)) {
      return yield* new NotApplicable({ why: "unshare(1) cannot make a PID namespace here" })
    }
    const trial = yield* up(subject, limits, { asInit: true })
    return yield* stops(trial, yield* signal(trial), delayOf(subject))
  })
