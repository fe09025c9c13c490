/** How a service ends. */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as ExitStatus from "../../lifecycle/ExitStatus.ts"
import type { Signal } from "../../lifecycle/Signal.ts"
import * as Probe from "../LifecycleProbe.ts"
import {
  begun,
  budgetOf,
  codeOf,
  delayOf,
  ends,
  fast,
  headStart,
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
  startOf,
  stoppedBy,
  stops,
  type Trial,
  up
} from "./lifecycleSteps.ts"

export const idle = (name: Signal): Scenario => (subject, limits) =>
  Effect.gen(function*() {
    // Whose orderly end is the default action of SIGTERM has that of other signals as well.
    const { expect } = subject
    const trial = yield* up(
      expect?.stopped === "SIGTERM" ? { ...subject, expect: { ...expect, stopped: name } } : subject,
      limits
    )
    return yield* stops(trial, yield* signal(trial, name), delayOf(subject))
  })

export const keepAliveIdle: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const trial = yield* up(subject, limits)
    const agent = yield* Probe.keepAlive(1)
    yield* fast(subject, trial.service, { agent })
    return yield* stops(trial, yield* signal(trial), delayOf(subject))
  })

export const silentConnection: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const trial = yield* up(subject, limits)
    yield* Probe.connect(trial.service.ports.service)
    yield* Effect.sleep(headStart)
    return yield* stops(trial, yield* signal(trial), delayOf(subject))
  })

export const halfRequest: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const trial = yield* up(subject, limits)
    yield* Probe.connect(
      trial.service.ports.service,
      `GET ${subject.endpoints.fast} HTTP/1.1\r\nHost: ${Probe.host}\r\n`
    )
    yield* Effect.sleep(headStart)
    const { millis } = yield* ends(trial, yield* signal(trial), budgetOf(subject))
    return { millis }
  })

export const hung: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const path = yield* need(subject.endpoints.hang, "hanging endpoint")
    const trial = yield* up(subject, limits)
    yield* begun(trial, path)
    const { millis, status } = yield* ends(trial, yield* signal(trial), budgetOf(subject))
    const expected = subject.expect?.forced
    if (expected !== undefined && codeOf(status) !== expected) {
      return yield* notHeld(`${ExitStatus.format(status)}, not ${expected}`, millis)
    }
    return { millis, note: ExitStatus.format(status) }
  })

export const hungNeighbour: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const hang = yield* need(subject.endpoints.hang, "hanging endpoint")
    const slow = yield* need(subject.endpoints.slow, "slow endpoint")
    const trial = yield* up(subject, limits)
    yield* begun(trial, hang)
    const asking = yield* begun(trial, slow(slowOf(subject)))
    const event = yield* signal(trial)
    const answer = yield* Fiber.join(asking)
    if (!isOk(answer)) return yield* notHeld(`the other request was answered ${said(answer)}`)
    const { millis } = yield* ends(trial, event, budgetOf(subject))
    return { millis }
  })

export const secondSignal: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const path = yield* need(subject.endpoints.hang, "hanging endpoint")
    const pause = delayOf(subject) + 150
    if (budgetOf(subject) < pause + 2 * limits.tolerance) {
      return yield* new NotApplicable({ why: `a budget of ${show(budgetOf(subject))} is too short to tell` })
    }
    const trial = yield* up(subject, limits)
    yield* begun(trial, path)
    const first = yield* signal(trial)
    yield* Effect.sleep(pause)
    const early = trial.service.poll()
    if (early !== undefined) {
      return yield* new NotApplicable({ why: `it ended ${show(early.at - first.at)} after the first one` })
    }
    const { millis, status } = yield* ends(trial, yield* signal(trial, "SIGTERM", "the second SIGTERM"), 0)
    return { millis, note: ExitStatus.format(status) }
  })

export const blocked: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const path = yield* need(subject.endpoints.block, "blocking endpoint")
    const trial = yield* up(subject, limits)
    yield* begun(trial, path)
    const { millis, status } = yield* ends(trial, yield* signal(trial), 2 * budgetOf(subject))
    const code = codeOf(status)
    if (code === stoppedBy(subject)) {
      return yield* notHeld(`${ExitStatus.format(status)}, as if all were well`, millis)
    }
    return { millis, note: ExitStatus.format(status) }
  })

export const backgroundFailure: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const path = yield* need(subject.endpoints.fail, "failing endpoint")
    const trial = yield* up(subject, limits)
    const failure = { what: "the failure", at: Probe.now() }
    yield* Effect.forkScoped(settle(Probe.request(trial.service.ports.service, path, { within: "1 hour" })))
    const { millis, status } = yield* ends(trial, failure, budgetOf(subject))
    const expected = subject.expect?.failed
    const code = codeOf(status)
    if (code === 0 || code === stoppedBy(subject) || (expected !== undefined && code !== expected)) {
      return yield* notHeld(`${ExitStatus.format(status)}, not ${expected ?? "a code that tells"}`, millis)
    }
    return { millis, note: ExitStatus.format(status) }
  })

export const stdoutClosed: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const trial = yield* up(subject, limits)
    yield* trial.service.closeStdout
    for (let count = 1; count <= 10; count++) {
      const answer = yield* settle(fast(subject, trial.service))
      if (!isOk(answer)) return yield* notHeld(`request ${count} was answered ${said(answer)}`)
    }
    return yield* stops(trial, yield* signal(trial), delayOf(subject))
  })

export const nothingLeft: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const trial = yield* up(subject, limits)
    const { service } = trial
    const had = service.alive().length
    const { millis } = yield* ends(trial, yield* signal(trial), budgetOf(subject))
    const left = service.alive()
    if (left.length > 0) return yield* notHeld(`${left.length} of ${had} processes are left`, millis)
    for (const port of new Set([service.ports.service, probePort(subject, service)])) {
      const free = yield* settle(Effect.scoped(Probe.occupy(port)))
      if (typeof free !== "number") return yield* notHeld(`port ${port} cannot be bound: ${free.code}`, millis)
    }
    return { millis, note: `of ${had} ${had === 1 ? "process" : "processes"}` }
  })

export const exitCodes: Scenario = (subject, limits) =>
  Effect.gen(function*() {
    const { hang } = subject.endpoints
    const stopped = (before: (trial: Trial) => ReturnType<Scenario<unknown>>) =>
      Effect.scoped(Effect.gen(function*() {
        const trial = yield* up(subject, limits)
        yield* before(trial)
        return codeOf((yield* ends(trial, yield* signal(trial), budgetOf(subject))).status)
      }))
    const portTaken = Effect.scoped(Effect.gen(function*() {
      const ports = yield* Probe.allocate(subject)
      yield* Probe.occupy(ports.service)
      const start = { what: "the start", at: Probe.now() }
      const service = yield* Probe.start(subject, { ports })
      return codeOf((yield* ends({ ...limits, subject, service }, start, startOf(subject))).status)
    }))
    const codes = new Map([["stopped", yield* stopped(() => Effect.succeed({}))]])
    if (hang !== undefined) codes.set("forced", yield* stopped((trial) => begun(trial, hang)))
    codes.set("port taken", yield* portTaken)
    const all = [...codes].map(([what, code]) => `${what} ${code ?? "lost"}`).join(", ")
    if (new Set(codes.values()).size < codes.size) return yield* notHeld(`they do not differ: ${all}`)
    if (codes.get("port taken") === 0 || codes.get("forced") === 0) return yield* notHeld(`a failure is 0: ${all}`)
    return { note: all }
  })
