/** Random services on a clock that is turned: parts, a main program and signals, against a small model of the whole. */
import { expect, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as ExitCode from "../../src/lifecycle/ExitCode.ts"
import * as Custom from "../../src/service/Custom.ts"
import { Fatal } from "../../src/service/Fatal.ts"
import * as Part from "../../src/service/Part.ts"
import { type ServiceEvent, ServiceEvents } from "../../src/service/Phase.ts"
import * as Service from "../../src/service/Service.ts"
import { fromReason, ServiceErrorReason } from "../../src/service/ServiceError.ts"
import * as FakeService from "../../src/testing/FakeService.ts"

const tens = (most: number) => Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: most }))

/** Times are in tens of milliseconds, so that many things happen at the same moment. */
const Script = Schema.Struct({
  /** Which of the earlier ones it depends on, as bits. */
  needs: tens(0xff),
  start: Schema.Literals(["works", "works", "works", "works", "works", "works", "works", "fails", "dies", "hangs"]),
  startTime: tens(30),
  stop: Schema.Literals(["works", "works", "works", "works", "dies", "hangs"]),
  stopTime: tens(40),
  /** Of more time to stop. */
  asksFor: Schema.Literals([0, 0, 0, 20, 1000]),
  /** How long after its start it reports that it cannot go on; never when that is below zero. */
  reports: Schema.Literals([-1, -1, -1, -1, 0, 15])
})
type Script = typeof Script.Type

const Main = Schema.Struct({
  end: Schema.Literals(["never", "never", "never", "ends", "fails", "dies"]),
  at: tens(100),
  /** What it does when it is interrupted. */
  stop: Schema.Literals(["works", "works", "dies", "hangs"]),
  stopTime: tens(20)
})

const Scenario = Schema.Struct({
  scripts: Schema.Array(Script).check(Schema.isMaxLength(7)),
  main: Schema.UndefinedOr(Main),
  signals: Schema.Array(Schema.Struct({
    at: tens(150),
    signal: Schema.Literals(["SIGTERM", "SIGINT", "SIGHUP"])
  })).check(Schema.isMaxLength(3)),
  /** When an exception is caught by nobody; never when that is below zero. */
  crash: Schema.Literals([-1, -1, -1, -1, 0, 60]),
  /** What the release of a resource does. */
  resource: Schema.Literals(["works", "works", "dies", "hangs"]),
  budget: Schema.Literals([20, 300, 2500]),
  drain: Schema.Literals([0, 0, 10, 100]),
  extension: Schema.Literals([0, 50])
})
type Scenario = typeof Scenario.Type

const millis = (time: number): number => time * 10

const needsOf = (scripts: ReadonlyArray<Script>, index: number): ReadonlyArray<number> =>
  scripts.flatMap((_, other) => other < index && ((scripts[index]?.needs ?? 0) >> other) % 2 === 1 ? [other] : [])

// The model.

/** What may be the reason for the end, and when: those of the earliest moment. */
interface Trigger {
  readonly at: number
  readonly reason: ExitCode.ServiceReason
  /** A part that could not start: the others are unwound before the end begins. */
  readonly isStart?: boolean
}

/** Pure: from the script alone. */
const triggersOf = ({ crash, main, scripts, signals }: Scenario): ReadonlyArray<Trigger> => {
  const started: Array<number> = []
  const all: Array<Trigger> = []
  for (const [index, script] of scripts.entries()) {
    const began = Math.max(0, ...needsOf(scripts, index).map((need) => started[need] ?? Infinity))
    const at = began + script.startTime
    started.push(script.start === "works" ? at : Infinity)
    // That it failed is known when what it had is released.
    const failed = script.stop === "hangs" ? Infinity : at + script.stopTime
    // Effect takes a failure together with a defect for a defect.
    if (script.start === "fails") {
      all.push({ at: failed, reason: script.stop === "dies" ? "defect" : "initialisation", isStart: true })
    }
    if (script.start === "dies") all.push({ at: failed, reason: "defect", isStart: true })
    if (script.start === "works" && script.reports >= 0) {
      all.push({ at: at + script.reports, reason: "failed" })
    }
  }
  const ready = Math.max(0, ...started)
  if (main?.end === "ends") all.push({ at: ready + main.at, reason: "ended" })
  if (main?.end === "fails") all.push({ at: ready + main.at, reason: "failed" })
  if (main?.end === "dies") all.push({ at: ready + main.at, reason: "defect" })
  for (const { at } of signals) all.push({ at, reason: "stopped" })
  if (crash >= 0) all.push({ at: crash, reason: "defect" })
  const earliest = Math.min(...all.map(({ at }) => at))
  return Number.isFinite(earliest) ? all.filter(({ at }) => at === earliest) : []
}

/** What resources may take that a second signal has cut off. */
const lastChance = 2 * 400

/** What is left behind makes an orderly end a disorderly one, and a failure none the worse. */
const codeOf = (
  reason: ExitCode.ServiceReason,
  left: Service.ServiceReport["left"],
  cutBy: Scenario["signals"][number]["signal"] | undefined
): number => {
  if (left.length > 0 && cutBy !== undefined) return ExitCode.fromSignal(cutBy)
  if ((reason !== "stopped" && reason !== "ended") || left.length === 0) return ExitCode.service[reason]
  return left.some(({ _tag }) => _tag === "Abandoned") ? 11 : 12
}

// The real one.

interface Seen {
  began?: number
  started?: number
  releaseBegan?: number
  releaseEnded?: number
  releases: number
}

const play = Effect.fnUntraced(function*(scenario: Scenario) {
  const now = Clock.currentTimeMillis
  const base = yield* now
  const since = Effect.map(now, (time) => time - base)
  const seen = new Map<string, Seen>()
  const granted: Array<number> = []
  const released: Array<string> = []
  const parts: Array<Part.Part<never, string, Fatal>> = []
  for (const [index, script] of scenario.scripts.entries()) {
    const entry: Seen = { releases: 0 }
    const name = `p${index}`
    const layer = Layer.effectDiscard(Effect.gen(function*() {
      const control = yield* Part.PartControl
      entry.began = yield* since
      yield* Effect.addFinalizer(() =>
        Effect.gen(function*() {
          entry.releases++
          entry.releaseBegan = yield* since
          if (script.asksFor > 0) {
            granted.push(Duration.toMillis(yield* control.extendStop(millis(script.asksFor))))
          }
          if (script.stop === "hangs") return yield* Effect.never
          yield* Effect.sleep(millis(script.stopTime))
          entry.releaseEnded = yield* since
          return script.stop === "dies" ? yield* Effect.die("finalizer") : undefined
        })
      )
      yield* Effect.sleep(millis(script.startTime))
      if (script.start === "hangs") return yield* Effect.never
      if (script.start === "fails") return yield* Effect.fail("no")
      if (script.start === "dies") return yield* Effect.die("bug")
      entry.started = yield* since
      if (script.reports < 0) return
      const fatal = yield* Fatal
      const error = fromReason(ServiceErrorReason.TaskFailed({ task: name, why: "it ended" }))
      yield* Effect.forkScoped(Effect.delay(fatal.report(error), millis(script.reports)))
    }))
    seen.set(name, entry)
    const dependsOn = needsOf(scenario.scripts, index).flatMap((need) => parts[need] ?? [])
    parts.push(Part.make(name, layer, { dependsOn }))
  }
  const mainOf = ({ at, end, stop, stopTime }: typeof Main.Type) =>
    Effect.sleep(millis(at)).pipe(
      Effect.andThen(
        end === "never"
          ? Effect.never
          : end === "ends"
          ? Effect.void
          : end === "fails"
          ? Effect.fail("main")
          : Effect.die("main")
      ),
      Effect.onInterrupt(() =>
        stop === "hangs"
          ? Effect.never
          : Effect.andThen(Effect.sleep(millis(stopTime)), stop === "dies" ? Effect.die("main") : Effect.void)
      )
    )
  const resource = Custom.provisioned("resource", {
    type: "t",
    input: Schema.Null,
    output: Schema.Null,
    load: () => Effect.succeed(null)
  })
  const provisioned = Effect.acquireRelease(
    Effect.succeed({ type: "t", state: "ready", output: null }),
    () => {
      released.push("resource")
      return scenario.resource === "works" ? Effect.void : scenario.resource === "dies" ? Effect.die("r") : Effect.never
    }
  )
  const service = Service.make({
    name: "model",
    version: "1",
    resources: [resource],
    parts,
    ...(scenario.main === undefined ? {} : { main: mainOf(scenario.main) }),
    stopBudget: millis(scenario.budget),
    drainDelay: millis(scenario.drain),
    maxExtension: millis(scenario.extension)
  })
  const fake = FakeService.make({ provisioner: { request: () => provisioned } })
  const context = yield* Layer.build(fake.layer)
  const events: Array<readonly [at: number, event: ServiceEvent]> = []
  yield* Context.get(context, ServiceEvents).events.pipe(
    Stream.runForEach((event) => Effect.map(since, (at) => void events.push([at, event]))),
    Effect.forkChild({ startImmediately: true })
  )
  const later = (time: number, self: Effect.Effect<void>) =>
    Effect.forkChild(Effect.delay(self, millis(time)), { startImmediately: true })
  for (const { at, signal } of scenario.signals) yield* later(at, fake.send(signal))
  if (scenario.crash >= 0) yield* later(scenario.crash, fake.crash("nobody caught it"))
  const running = yield* Effect.forkChild(
    Service.run(service).pipe(Effect.flatMap((report) => Effect.map(since, (at) => ({ report, at })))).pipe(
      Effect.provideContext(context)
    ),
    { startImmediately: true }
  )
  // Longer than anything here takes, and shorter than a part may take to start.
  yield* TestClock.adjust("5 minutes")
  const exit = running.pollUnsafe()
  running.interruptUnsafe()
  yield* TestClock.adjust("10 minutes")
  return { events, exit, fake, granted, released, seen }
})

const played = (scenario: Scenario) =>
  Effect.provide(Effect.scoped(play(scenario)), [TestClock.layer(), Logger.layer([])], { local: true })

const namesOf = (left: Service.ServiceReport["left"]): ReadonlyArray<string> => left.map(({ part }) => part)

it.effect.prop(
  "a random service ends in time, in order, and with the code that says why",
  { scenario: Scenario },
  ({ scenario }) =>
    Effect.gen(function*() {
      const { events, exit, fake, granted, released, seen } = yield* played(scenario)
      const begun = [...seen].filter(([, { began }]) => began !== undefined)
      const { drain, main, scripts } = scenario
      if (drain >= scenario.budget) {
        expect(fake.terminations).toMatchObject([{ code: 78, phase: "configure" }])
        expect(begun).toEqual([])
        return
      }
      const triggers = triggersOf(scenario)
      if (triggers.length === 0) {
        // Nothing ends it, so it goes on.
        expect(exit).toBe(undefined)
        return
      }
      if (exit === undefined || exit._tag === "Failure") throw new Error(`no report: ${JSON.stringify(exit)}`)
      const { at: endedAt, report: { code, left, phase, signal } } = exit.value
      const why = millis(triggers[0]?.at ?? NaN)
      const stopBegan = events.find(([, event]) => event._tag === "PhaseStarted" && event.phase === "stop")?.[0] ?? NaN
      const budget = millis(scenario.budget)
      const isStartFailed = triggers.some(({ isStart }) => isStart)

      // In time: a start that has failed is unwound in one budget, everything is stopped in another one.
      expect(stopBegan).toBeGreaterThanOrEqual(why)
      expect(stopBegan - why).toBeLessThanOrEqual(isStartFailed ? budget + 1 : 0)
      const extended = granted.some((by) => by > 0) ? millis(scenario.extension) : 0
      expect(endedAt - stopBegan).toBeLessThanOrEqual(budget + extended + 1)

      // The first signal ends the service or is one while it stops already; each one more hastens the stop.
      const hastening = scenario.signals.map((one) => ({ ...one, at: millis(one.at) }))
        .toSorted((one, other) => one.at - other.at).slice(1)
      const isDraining = Option.isSome(signal) && phase === "run" && drain > 0
      let next = isDraining ? stopBegan + millis(drain) : stopBegan
      for (const { at } of hastening) {
        // Of two things at the same moment either may be the first.
        if (at === stopBegan || at === next) break
        if (at < next) next = at
        else {
          expect(at).toBeGreaterThanOrEqual(endedAt - lastChance)
          break
        }
      }

      // The code.
      const cuts = hastening.filter(({ at }) => at <= endedAt && at >= endedAt - lastChance && left.length > 0)
      // An error that nobody caught while it stops makes an orderly end a defect.
      const crash = millis(scenario.crash)
      const isCrashed = crash >= stopBegan && crash <= endedAt
      const inOrder = triggers.some(({ reason }) => reason === "stopped" || reason === "ended")
      const reasons = triggers.map(({ reason }) => reason).filter((reason) =>
        !(crash > stopBegan && crash < endedAt) || (reason !== "stopped" && reason !== "ended")
      )
      const signals = [undefined, ...cuts.map((cut) => cut.signal)]
      const codes = [...reasons, ...isCrashed && inOrder ? ["defect" as const] : []].flatMap((reason) =>
        signals.map((cutBy) => codeOf(reason, left, cutBy))
      )
      expect(codes).toContain(code)
      expect(fake.terminations).toMatchObject([{ code, phase }])
      const orderly = (code === 10 || code === 0) && left.length === 0
      expect(fake.stderr.length).toBe(orderly ? 0 : 1)

      // Readiness.
      const told = fake.notifications.flatMap((one) =>
        one.ready === true ? ["ready"] : one.stopping === true ? ["stopping"] : []
      )
      const tags = events.map(([, { _tag }]) => _tag).filter((tag) => tag === "Ready" || tag === "Draining")
      const isReady = phase === "run"
      expect(told).toEqual(isReady ? ["ready", "stopping"] : ["stopping"])
      expect(tags).toEqual(isReady ? ["Ready", "Draining"] : ["Draining"])

      expect(namesOf(left)).toEqual([...new Set(namesOf(left))])

      // Each part that was started is stopped, once, when all that depend on it have stopped or were given up.
      const givenUp = new Map(
        events.flatMap(([at, event]) => event._tag === "PartAbandoned" ? [[event.part, at] as const] : [])
      )
      const isCut = cuts.length > 0
      for (const [index, { stop }] of scripts.entries()) {
        const name = `p${index}`
        const part = seen.get(name)
        if (part?.began === undefined) continue
        expect(part.releases).toBeLessThanOrEqual(1)
        const outcomes = left.filter((one) => one.part === name)
        expect(outcomes.length).toBeLessThanOrEqual(1)
        if (part.releases === 0) {
          // Nobody has come to it before all was cut short, and it is named.
          expect(isCut || scenario.budget < 2500).toBe(true)
          expect(outcomes).toHaveLength(1)
          continue
        }
        if (part.started === undefined) continue
        for (const [other, { began, releaseEnded = Infinity }] of begun) {
          if (began === undefined || !needsOf(scripts, Number(other.slice(1))).includes(index)) continue
          expect(Math.min(releaseEnded, givenUp.get(other) ?? Infinity)).toBeLessThanOrEqual(part.releaseBegan ?? NaN)
        }
        if (stop === "hangs") expect(outcomes).toMatchObject([{ _tag: "Abandoned" }])
        if (isCut || scenario.budget < 2500) continue
        if (stop === "works") expect(outcomes).toEqual([])
        if (stop === "dies") expect(outcomes).toMatchObject([{ _tag: "Failed" }])
      }
      // What is no part: the main program before them, resources after them.
      expect(released).toEqual(isCut && released.length === 0 ? [] : ["resource"])
      const ofResource = left.filter((one) => one.part === "resource")
      if (scenario.resource === "works" || released.length === 0) expect(ofResource).toEqual([])
      else {
        const _tag = scenario.resource === "hangs" || isCut && ofResource[0]?._tag === "Abandoned"
          ? "Abandoned"
          : "Failed"
        expect(ofResource).toMatchObject([{ _tag }])
      }
      // Or fail, which is told then.
      if (namesOf(left).includes("main") && scenario.budget === 2500 && !isCut && main?.stop === "works") {
        expect(["fails", "dies"]).toContain(main.end)
      }
      // It may still end by itself while requests are drained.
      if (phase === "run" && main?.end === "never" && main.stop === "hangs") {
        expect(namesOf(left)).toContain("main")
      }
    }),
  { arbitrary: { runs: 1500 } }
)

it.effect.prop(
  "the same script gives the same trace",
  { scenario: Scenario },
  ({ scenario }) =>
    Effect.gen(function*() {
      const first = yield* played(scenario)
      const second = yield* played(scenario)
      const visible = ({ events, exit, fake, granted, seen }: typeof first) =>
        JSON.stringify([events, exit, fake.notifications, fake.stderr, fake.terminations, granted, [...seen]])
      expect(visible(second)).toEqual(visible(first))
    }),
  { arbitrary: { runs: 300 } }
)
