import { describe, expect, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Ref from "effect/Ref"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import * as Tracer from "effect/Tracer"
import * as Part from "../../src/service/Part.ts"
import * as Parts from "../../src/service/Parts.ts"
import type { ServiceEvent } from "../../src/service/Phase.ts"
import { fromReason, ServiceError, ServiceErrorReason } from "../../src/service/ServiceError.ts"

class Shared extends Context.Service<Shared, number>()("test/Shared") {}

/** What happened, with the time since the journal began. */
const makeJournal = Effect.gen(function*() {
  const began = yield* Clock.currentTimeMillis
  const lines: Array<string> = []
  const note = (text: string): Effect.Effect<void> =>
    Effect.map(Clock.currentTimeMillis, (now) => {
      lines.push(`${now - began} ${text}`)
    })
  const onEvent = (event: ServiceEvent): Effect.Effect<void> =>
    note(
      "part" in event
        ? `${event._tag} ${event.part}${"doing" in event ? `: ${event.doing}` : ""}`
        : event._tag
    )
  return { lines, note, onEvent, take: Effect.sync(() => lines.splice(0)) }
})

type Journal = Effect.Success<typeof makeJournal>

/** A layer that takes its time to start and to stop. */
const slow = (journal: Journal, name: string, start: number, stop: Effect.Effect<unknown>) =>
  Layer.effectDiscard(Effect.gen(function*() {
    yield* journal.note(`+${name}`)
    yield* Effect.acquireRelease(Effect.sleep(start), () =>
      Effect.gen(function*() {
        yield* journal.note(`-${name}`)
        yield* stop
        yield* journal.note(`.${name}`)
      }), { interruptible: true })
  }))

const startOf = <const P extends ReadonlyArray<Part.Any>>(parts: P, options?: Parts.StartOptions) =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(Parts.start(parts, options), { startImmediately: true })
    yield* TestClock.adjust("1 hour")
    return yield* Fiber.join(fiber)
  })

const stopOf = (control: Parts.Control, options: Parts.StopOptions) =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(control.stop(options), { startImmediately: true })
    yield* TestClock.adjust("1 hour")
    return (yield* Fiber.join(fiber)).map((outcome) => [outcome._tag, outcome.name, Duration.toMillis(outcome.took)])
  })

describe("Parts.start", () => {
  it.effect("in order of dependence, independent ones at the same time", () =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const a = Part.make("a", slow(journal, "a", 10, Effect.void))
      const b = Part.make("b", slow(journal, "b", 30, Effect.void))
      const c = Part.make("c", slow(journal, "c", 5, Effect.void), { dependsOn: [a] })
      const d = Part.make("d", slow(journal, "d", 5, Effect.void), { dependsOn: [c, b] })
      yield* startOf([d], { onEvent: journal.onEvent })
      expect(journal.lines).toEqual([
        "0 +b",
        "0 +a",
        "10 PartStarted a",
        "10 +c",
        "15 PartStarted c",
        "30 PartStarted b",
        "30 +d",
        "35 PartStarted d"
      ])
    }))

  it.effect("a dependency of several is built once and seen by each of them", () =>
    Effect.gen(function*() {
      const built = yield* Ref.make(0)
      const seen: Array<number> = []
      const use = Layer.effectDiscard(Effect.map(Shared, (value) => seen.push(value)))
      const shared = Part.make("shared", Layer.effect(Shared, Ref.updateAndGet(built, (n) => n + 1)))
      const one = Part.make("one", use, { dependsOn: [shared] })
      const two = Part.make("two", Layer.fresh(use), { dependsOn: [shared] })
      const started = yield* Parts.start([one, two, shared, one])
      expect(seen).toEqual([1, 1])
      expect(Context.get(started.context, Shared)).toBe(1)
      expect(yield* started.stop({ budget: "1 second" })).toHaveLength(3)
    }))

  it.effect("a layer inside several parts is built once and released with the last of them", () =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const shared = Layer.effect(
        Shared,
        Effect.acquireRelease(Effect.as(journal.note("+shared"), 1), () => journal.note("-shared"))
      )
      const one = Part.make("one", slow(journal, "one", 0, Effect.void).pipe(Layer.provideMerge(shared)))
      const two = Part.make("two", slow(journal, "two", 0, Effect.sleep(20)).pipe(Layer.provideMerge(shared)))
      const started = yield* startOf([one, two])
      yield* journal.take
      yield* stopOf(started, { budget: "1 second" })
      expect((yield* journal.take).map((line) => line.split(" ")[1])).toEqual([
        "-one",
        ".one",
        "-two",
        ".two",
        "-shared"
      ])
    }))

  it.effect("a failure rolls back in reverse, is named, and keeps its chain of causes", () =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const a = Part.make("a", slow(journal, "a", 1, Effect.sleep(3)))
      const b = Part.make("b", slow(journal, "b", 1, Effect.sleep(2)), { dependsOn: [a] })
      const slower = Part.make("slower", slow(journal, "slower", 1000, Effect.void), { dependsOn: [a] })
      const cause = new Error("no route", { cause: new Error("ENETUNREACH") })
      const bad = Part.make("bad", Layer.effectDiscard(Effect.fail(cause)), { dependsOn: [b] })
      const never = Part.make("never", slow(journal, "never", 1, Effect.void), { dependsOn: [bad] })
      const error = yield* Effect.flip(startOf([never, slower], { onEvent: journal.onEvent }))
      expect(error).toBeInstanceOf(ServiceError)
      expect(error.reason).toEqual({
        _tag: "InitFailed",
        part: "bad",
        why: "no route\n  caused by: ENETUNREACH"
      })
      expect(error.exitReason).toBe("initialisation")
      const names = journal.lines.map((line) => line.replace(/^\d+ /, ""))
      expect(names.filter((name) => name.includes("never"))).toEqual([])
      expect(names).toContain("PartFailed bad")
      // `slower` was interrupted while it started, so it never had anything to release.
      expect(names.filter((name) => /^[-.]/.test(name))).toEqual(["-b", ".b", "-a", ".a"])
    }))

  it.effect.each(
    [
      ["by itself", (resource: Layer.Layer<never>, bad: Layer.Layer<never, string>) => Layer.provide(bad, resource)],
      ["with what it gives", (resource, bad) => Layer.provideMerge(bad, resource)],
      ["beside another", (resource, bad) => Layer.mergeAll(resource, bad)],
      ["fresh", (resource, bad) => Layer.fresh(Layer.provide(bad, resource))],
      ["of an effect", (resource, bad) => Layer.unwrap(Effect.succeed(Layer.provide(bad, resource)))],
      ["of another", (resource, bad) => Layer.flatMap(resource, () => bad)],
      ["instead of another", (resource, bad) => Layer.catchCause(bad, () => Layer.provide(bad, resource))],
      ["with a span", (resource, bad) => Layer.withSpan(Layer.provide(bad, resource), "span")]
    ] satisfies ReadonlyArray<
      readonly [string, (resource: Layer.Layer<never>, bad: Layer.Layer<never, string>) => Layer.Layer<never, string>]
    >
  )("a layer that fails has released what it had before that is told: %s", ([, make]) =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const bad = Layer.effectDiscard(
        Effect.andThen(Effect.addFinalizer(() => journal.note("-bad")), Effect.fail("no"))
      )
      const part = Part.make("part", make(slow(journal, "resource", 0, Effect.sleep(5)), bad))
      yield* Effect.flip(startOf([part], { onEvent: journal.onEvent }))
      const lines = journal.lines.map((line) => line.split(" ").slice(1).join(" "))
      expect(lines).toContain("-bad")
      expect(lines.slice(-3)).toContain(".resource")
      expect(lines.at(-1)).toBe("PartFailed part")
    }))

  it.effect("layers are shared among all parts, whatever map of them one part provides", () =>
    Effect.gen(function*() {
      const built = yield* Ref.make(0)
      const shared = Layer.effect(Shared, Ref.updateAndGet(built, (n) => n + 1))
      const map = Part.make("map", Layer.succeed(Layer.CurrentMemoMap, Layer.makeMemoMapUnsafe()))
      const inside = Layer.effectDiscard(Effect.provide(Shared, shared))
      const one = Part.make("one", shared)
      const two = Part.make("two", inside, { dependsOn: [map, one] })
      const started = yield* Parts.start([two])
      yield* Effect.provide(Effect.provide(Shared, shared), started.context)
      expect(yield* Ref.get(built)).toBe(1)
      yield* started.stop({ budget: "1 second" })
    }))

  it.effect("a failure of what serves is called so, and an error of a service stays what it is", () =>
    Effect.gen(function*() {
      const taken = Part.make("api", Layer.effectDiscard(Effect.fail("EADDRINUSE")), { failure: "run" })
      expect((yield* Effect.flip(Parts.start([taken]))).reason).toEqual({
        _tag: "RunFailed",
        part: "api",
        why: "EADDRINUSE"
      })
      const own = fromReason(ServiceErrorReason.HealthBindFailed({ address: ":1", why: "EACCES" }))
      expect(yield* Effect.flip(Parts.start([Part.make("own", Layer.effectDiscard(Effect.fail(own)))]))).toBe(own)
      const bug = yield* Effect.flip(Parts.start([Part.make("bug", Layer.effectDiscard(Effect.die("oops")))]))
      expect(bug.message).toBe("Initialisation phase failed: bug: oops")
      expect(Cause.isCause(bug.cause) && Cause.hasDies(bug.cause)).toBe(true)
      const thrown = Part.make(
        "thrown",
        Layer.suspend((): Layer.Layer<never> => {
          throw new Error("at once")
        })
      )
      expect((yield* Effect.flip(Parts.start([thrown]))).message).toBe("Initialisation phase failed: thrown: at once")
    }))

  it.effect("a part that takes too long is named with what it was doing", () =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const stuck = Layer.effectDiscard(
        Effect.never.pipe(Effect.withSpan("Pool.connect"), Effect.withSpan("Pool.make"))
      )
      const a = Part.make("a", slow(journal, "a", 0, Effect.void))
      const pool = Part.make("pool", stuck, { dependsOn: [a], startWithin: "2 seconds" })
      const error = yield* Effect.flip(startOf([pool], { onEvent: journal.onEvent }))
      expect(error.message).toBe(
        "Initialisation phase failed: pool: it has not started within 2s; it was doing: Pool.connect, for 2s"
      )
      expect(journal.lines.slice(1)).toEqual([
        "0 PartStarted a",
        "2000 PartFailed pool",
        "2000 PartStopped pool",
        "2000 -a",
        "2000 .a",
        "2000 PartStopped a"
      ])
    }))

  it.effect("a start that cannot be interrupted does not hold up the rollback for longer than its share", () =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const a = Part.make("a", slow(journal, "a", 0, Effect.void))
      const stuck = Part.make("stuck", Layer.effectDiscard(Effect.uninterruptible(Effect.never)), { dependsOn: [a] })
      const bad = Part.make("bad", Layer.effectDiscard(Effect.fail("no")), { dependsOn: [a] })
      const options = { onEvent: journal.onEvent, rollbackBudget: "4 seconds" } as const
      yield* Effect.flip(startOf([stuck, bad], options))
      expect(journal.lines.slice(2)).toEqual([
        "0 PartFailed bad",
        "2000 PartAbandoned stuck: nothing that a span tells",
        "2000 -a",
        "2000 .a",
        "2000 PartStopped a"
      ])
    }))

  it.effect("an interrupted start unwinds what has started, in order, and only then ends", () =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const a = Part.make("a", slow(journal, "a", 5, Effect.sleep(7)))
      const b = Part.make("b", slow(journal, "b", 5, Effect.sleep(7)), { dependsOn: [a] })
      const c = Part.make("c", slow(journal, "c", 5, Effect.void), { dependsOn: [b] })
      const fiber = yield* Effect.forkChild(Parts.start([c]), { startImmediately: true })
      yield* TestClock.adjust(12)
      fiber.interruptUnsafe()
      yield* TestClock.adjust("1 hour")
      expect(fiber.pollUnsafe()).toSatisfy((exit: Exit.Exit<unknown>) =>
        Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)
      )
      expect(journal.lines).toEqual(["0 +a", "5 +b", "10 +c", "12 -b", "19 .b", "19 -a", "26 .a"])
    }))

  it.effect("all faults are told before anything starts", () =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const circle: Array<Part.Part<never>> = []
      const round = Part.make("round", Layer.empty, { dependsOn: circle })
      circle.push(round)
      const error = yield* Effect.flip(Parts.start([
        Part.make("api", slow(journal, "api", 0, Effect.void)),
        Part.make("api", Layer.empty, { stopWeight: -1 }),
        Part.make(" ", Layer.empty),
        Part.make("slow", Layer.empty, { startWithin: Number.NaN, stopWithin: -5 }),
        Part.make("odd", Layer.empty, { faults: ["port is 99999: give it one below 65536"] }),
        round
      ]))
      expect(journal.lines).toEqual([])
      expect(error.reason).toEqual({
        _tag: "ConfigInvalid",
        faults: [
          "part \"api\": stopWeight is -1: give it a number above zero",
          "two parts are called \"api\": rename one",
          "a part has the name \" \": give it one that can be read",
          "part \"slow\": startWithin is NaN: write it as 500 or \"2 seconds\"",
          "part \"slow\": stopWithin is -5ms: give it a time of zero or more",
          "part \"odd\": port is 99999: give it one below 65536",
          "the parts round depend on each other in a circle: take one dependency away"
        ]
      })
    }))

  it.effect("what starts is a child of the start, what runs later is not", () =>
    Effect.gen(function*() {
      const spans: Array<string> = []
      const tracer = Tracer.make({
        span: (options) => {
          const parent = Option.map(options.parent, (span) => span._tag === "Span" ? span.name : "external")
          spans.push(`${Option.getOrElse(parent, () => "-")} > ${options.name}`)
          return new Tracer.NativeSpan(options)
        }
      })
      const go = yield* Deferred.make<void>()
      const done = yield* Deferred.make<void>()
      const later = Deferred.await(go).pipe(
        Effect.andThen(Effect.withSpan(Effect.void, "request")),
        Effect.andThen(Deferred.succeed(done, undefined))
      )
      const layer = Layer.effectDiscard(Effect.gen(function*() {
        yield* Effect.withSpan(Effect.void, "connect")
        yield* Effect.withSpan(Effect.void, "alone", { root: true })
        yield* Effect.forkScoped(later)
        yield* Effect.addFinalizer(() => Effect.withSpan(Effect.void, "disconnect"))
      }))
      yield* Effect.gen(function*() {
        const started = yield* Effect.withSpan(Parts.start([Part.make("sql", layer)]), "init")
        yield* Deferred.succeed(go, undefined)
        yield* Deferred.await(done)
        yield* Effect.withSpan(started.stop({ budget: "1 second" }), "stop")
      }).pipe(Effect.withTracer(tracer))
      expect(spans).toEqual([
        "- > init",
        "init > Part.start",
        "Part.start > connect",
        "- > alone",
        "- > request",
        "- > stop",
        "stop > Part.stop",
        "Part.stop > disconnect"
      ])
    }))
})

describe("Parts.stop", () => {
  const chain = Effect.gen(function*() {
    const journal = yield* makeJournal
    const a = Part.make("a", slow(journal, "a", 0, Effect.sleep(10)))
    const b = Part.make("b", slow(journal, "b", 0, Effect.sleep(100)), { dependsOn: [a] })
    const c = Part.make("c", slow(journal, "c", 0, Effect.sleep(10)))
    const d = Part.make("d", slow(journal, "d", 0, Effect.sleep(10)), { dependsOn: [c] })
    return { journal, parts: [b, d] }
  })

  it.effect("each as soon as all that depend on it have stopped", () =>
    Effect.gen(function*() {
      const { parts } = yield* chain
      expect(yield* stopOf(yield* startOf(parts), { budget: "10 seconds" })).toEqual([
        ["Stopped", "d", 10],
        ["Stopped", "c", 10],
        ["Stopped", "b", 100],
        ["Stopped", "a", 10]
      ])
    }))

  it.effect("a hung part takes its own share, is named with what it was doing, and the others still stop", () =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const draining = Effect.never.pipe(Effect.withSpan("Pool.drain"))
      const a = Part.make("a", slow(journal, "a", 0, Effect.void))
      const hung = Part.make("hung", slow(journal, "hung", 0, draining), { dependsOn: [a], stopWeight: 3 })
      const c = Part.make("c", slow(journal, "c", 0, Effect.void), { dependsOn: [hung] })
      const started = yield* startOf([c])
      yield* journal.take
      const base = yield* Clock.currentTimeMillis
      expect(yield* stopOf(started, { budget: "4 seconds", onEvent: journal.onEvent })).toEqual([
        ["Stopped", "c", 0],
        ["Abandoned", "hung", 3000],
        ["Stopped", "a", 0]
      ])
      expect((yield* journal.take).map((line) => line.replace(/^\d+/, (at) => `${Number(at) - base}`))).toEqual([
        "0 -c",
        "0 .c",
        "0 PartStopped c",
        "0 -hung",
        "3000 PartAbandoned hung: Pool.drain, for 3s",
        "3000 -a",
        "3000 .a",
        "3000 PartStopped a"
      ])
      expect((yield* started.status).map(({ name, state }) => `${name} ${state}`)).toEqual([
        "a stopped",
        "hung abandoned",
        "c stopped"
      ])
    }))

  it.effect("goes on though who is told of it throws", () =>
    Effect.gen(function*() {
      const released: Array<string> = []
      const part = (name: string, dependsOn: ReadonlyArray<Part.Part<never>>) =>
        Part.make(name, Layer.effectDiscard(Effect.addFinalizer(() => Effect.sync(() => released.push(name)))), {
          dependsOn
        })
      const a = part("a", [])
      const onEvent = (): Effect.Effect<void> => {
        throw new Error("a bug")
      }
      const parts = yield* Parts.make([part("b", [a])])
      yield* parts.start({ onEvent })
      const outcomes = yield* parts.stop({ budget: "1 second", onEvent })
      expect(outcomes.map(({ _tag }) => _tag)).toEqual(["Stopped", "Stopped"])
      expect(released).toEqual(["b", "a"])
    }))

  it.effect("what was open before the stop is named too", () =>
    Effect.gen(function*() {
      const layer = Layer.effectDiscard(Effect.gen(function*() {
        const request = Effect.uninterruptible(Effect.never).pipe(Effect.withSpan("GET /slow"))
        yield* Effect.forkScoped(request, { startImmediately: true })
      }))
      const started = yield* startOf([Part.make("api", layer)])
      const fiber = yield* Effect.forkChild(started.stop({ budget: "1 second" }), { startImmediately: true })
      expect((yield* started.status)[0]).toMatchObject({ state: "stopping", doing: "GET /slow, for 1h" })
      yield* TestClock.adjust("1 second")
      expect((yield* Fiber.join(fiber))[0]).toMatchObject({ _tag: "Abandoned", doing: "GET /slow, for 1h 1s" })
    }))

  it.effect("what is done in parts within a part is what the part does, and each is told by itself", () =>
    Effect.gen(function*() {
      const hangs = (name: string) =>
        Layer.effectDiscard(
          Effect.addFinalizer(() => Effect.never.pipe(Effect.interruptible, Effect.withSpan(name), Effect.exit))
        )
      const inner = Effect.acquireRelease(
        Parts.start([Part.make("a", hangs("A.drain")), Part.make("b", Layer.empty)]).pipe(Effect.orDie),
        (started) => Effect.map(Effect.all([started.stop({ budget: "10 seconds" }), started.status]), () => undefined)
      )
      const tenant = Part.make("tenant", Layer.effectDiscard(inner))
      const other = Part.make("other", hangs("Other.drain"))
      const started = yield* startOf([tenant, other])
      const outcomes = yield* Effect.forkChild(started.stop({ budget: "1 second" }), { startImmediately: true })
      yield* TestClock.adjust("1 second")
      expect((yield* Fiber.join(outcomes)).map((outcome) => "doing" in outcome && [outcome.name, outcome.doing]))
        .toEqual([
          ["tenant", "A.drain, for 1s"],
          ["other", "Other.drain, for 1s"]
        ])
    }))

  it.effect("a tracer that one part provides does not hide what the parts that need it do", () =>
    Effect.gen(function*() {
      const tracer = Tracer.make({ span: (options) => Tracer.nativeTracer.span(options) })
      const telemetry = Part.make("telemetry", Layer.succeed(Tracer.Tracer, tracer))
      const hangs = Effect.addFinalizer(() =>
        Effect.never.pipe(Effect.interruptible, Effect.withSpan("Db.drain"), Effect.exit)
      )
      const db = Part.make("db", Layer.effectDiscard(hangs), { dependsOn: [telemetry] })
      const started = yield* startOf([db])
      const outcomes = yield* Effect.forkChild(started.stop({ budget: "1 second" }), { startImmediately: true })
      yield* TestClock.adjust("1 second")
      expect((yield* Fiber.join(outcomes))[0]).toMatchObject({ _tag: "Abandoned", name: "db" })
      expect((yield* Fiber.join(outcomes))[0]).toHaveProperty("doing", expect.stringMatching(/^Db\.drain, for /))
    }))

  it.effect("a finalizer that fails is reported, and the others run", () =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const a = Part.make("a", slow(journal, "a", 0, Effect.void))
      const bad = Part.make("bad", slow(journal, "bad", 0, Effect.die(new Error("disk full"))), { dependsOn: [a] })
      const started = yield* startOf([bad])
      const outcomes = yield* started.stop({ budget: "1 second", onEvent: journal.onEvent })
      expect(outcomes.map(({ _tag, name }) => `${_tag} ${name}`)).toEqual(["Failed bad", "Stopped a"])
      const [failed] = outcomes
      expect(failed?._tag === "Failed" && Cause.pretty(failed.cause)).toContain("disk full")
    }))

  it.effect("more time: granted up to the hard cap, at the cost of nobody", () =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const grants: Array<number> = []
      const asking = (by: number, then: Effect.Effect<void>) =>
        Layer.effectDiscard(Effect.gen(function*() {
          const control = yield* Part.PartControl
          expect(Duration.toMillis(yield* control.extendStop("1 minute"))).toBe(0)
          expect(Option.isNone(yield* control.timeLeft)).toBe(true)
          yield* Effect.addFinalizer(() =>
            Effect.gen(function*() {
              const before = yield* control.timeLeft
              const granted = yield* control.extendStop(by)
              grants.push(Duration.toMillis(granted))
              expect(yield* control.timeLeft).toEqual(Option.map(before, Duration.sum(granted)))
              yield* then
            })
          )
        }))
      const start = (by: number, then: Effect.Effect<void>, stopWithin?: number) => {
        const a = Part.make("a", slow(journal, "a", 0, Effect.never))
        return startOf([Part.make("asks", asking(by, then), { dependsOn: [a], stopWithin })])
      }
      // It has 5 of the 10 seconds, and the one after it 5.
      const needs7 = yield* start(7000, Effect.sleep(7000))
      yield* journal.take
      const options = { budget: "10 seconds", hardCap: "1 minute", onEvent: journal.onEvent } as const
      expect(yield* stopOf(needs7, options)).toEqual([["Stopped", "asks", 7000], ["Abandoned", "a", 5000]])
      expect(journal.lines[0]).toMatch(/ BudgetExtended asks$/)
      const endless = yield* start(3_600_000, Effect.never)
      expect(yield* stopOf(endless, { ...options, hardCap: "12 seconds" })).toEqual([
        ["Abandoned", "asks", 7000],
        ["Abandoned", "a", 5000]
      ])
      const uncapped = yield* start(3_600_000, Effect.never)
      expect(yield* stopOf(uncapped, { budget: "10 seconds" })).toEqual([
        ["Abandoned", "asks", 5000],
        ["Abandoned", "a", 5000]
      ])
      const limited = yield* start(3_600_000, Effect.never, 2000)
      expect(yield* stopOf(limited, options)).toEqual([["Abandoned", "asks", 2000], ["Abandoned", "a", 8000]])
      expect(grants).toEqual([2000, 2000, 0, 0])
    }))

  it.effect("abandon: gives up at once and names what is left", () =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const a = Part.make("a", slow(journal, "a", 0, Effect.void))
      const b = Part.make("b", slow(journal, "b", 0, Effect.never), { dependsOn: [a] })
      const c = Part.make("c", slow(journal, "c", 0, Effect.sleep(5)))
      const started = yield* startOf([b, c])
      yield* started.abandon
      const fiber = yield* Effect.forkChild(started.stop({ budget: "1 hour" }), { startImmediately: true })
      yield* TestClock.adjust(1000)
      yield* started.abandon
      expect(yield* Fiber.join(fiber)).toEqual([
        { _tag: "Stopped", name: "c", took: Duration.millis(5) },
        { _tag: "Abandoned", name: "b", took: Duration.millis(1000), doing: "nothing that a span tells" },
        { _tag: "Abandoned", name: "a", took: Duration.zero, doing: "has not begun to stop: waits for b" }
      ])
    }))

  it.effect("an abandoned part is interrupted: what can be, is cut short, and the rest of it is released", () =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const layer = Layer.effectDiscard(Effect.gen(function*() {
        yield* Effect.addFinalizer(() => journal.note("rest"))
        yield* Effect.addFinalizer(() => Effect.exit(Effect.interruptible(Effect.never)))
      }))
      const started = yield* startOf([Part.make("a", layer)])
      yield* journal.take
      expect(yield* stopOf(started, { budget: "1 second" })).toEqual([["Abandoned", "a", 1000]])
      expect(journal.lines).toEqual(["3601000 rest"])
    }))

  it.effect("a start that cannot be interrupted ends with the stop, and what it got is released when it is done", () =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const latch = yield* Deferred.make<void>()
      const stuck = Layer.effectDiscard(
        Effect.acquireRelease(Deferred.await(latch), () => journal.note("released"))
      )
      const parts = yield* Parts.make([Part.make("stuck", stuck)])
      const starting = yield* Effect.forkChild(parts.start(), { startImmediately: true })
      expect(yield* stopOf(parts, { budget: "1 second" })).toEqual([["Abandoned", "stuck", 1000]])
      expect(starting.pollUnsafe()).not.toBe(undefined)
      yield* Deferred.succeed(latch, undefined)
      yield* TestClock.adjust(1)
      expect(journal.lines.map((line) => line.replace(/^\d+ /, ""))).toEqual(["released"])
    }))

  it.effect("all callers share one stop, and it goes on without them", () =>
    Effect.gen(function*() {
      const { journal, parts } = yield* chain
      const started = yield* startOf(parts)
      yield* journal.take
      const first = yield* Effect.forkChild(started.stop({ budget: "10 seconds" }), { startImmediately: true })
      yield* TestClock.adjust(5)
      yield* Fiber.interrupt(first)
      const again = yield* stopOf(started, { budget: "1 milli" })
      expect(again).toHaveLength(4)
      expect(yield* stopOf(started, { budget: "1 milli" })).toEqual(again)
      expect(journal.lines.filter((line) => line.includes("-"))).toHaveLength(4)
    }))

  it.effect("while the parts start, it ends the start first", () =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const a = Part.make("a", slow(journal, "a", 5, Effect.sleep(7)))
      const b = Part.make("b", slow(journal, "b", 50, Effect.void), { dependsOn: [a] })
      const c = Part.make("c", slow(journal, "c", 5, Effect.void), { dependsOn: [b] })
      const parts = yield* Parts.make([c])
      const starting = yield* Effect.forkChild(parts.start(), { startImmediately: true })
      yield* TestClock.adjust(10)
      const told = (yield* parts.status).map((one) => `${one.name} ${one.state} ${Duration.format(one.since)}`)
      expect(told).toEqual(["a running 5ms", "b starting 5ms", "c waiting 10ms"])
      expect(yield* stopOf(parts, { budget: "1 second" })).toEqual([["Stopped", "b", 0], ["Stopped", "a", 7]])
      const exit = yield* Fiber.await(starting)
      expect(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)).toBe(true)
      expect(journal.lines).toEqual(["0 +a", "5 +b", "10 -a", "17 .a"])
    }))

  it.effect("a part that asks for it while it is being built, and has not waited for anything, is interrupted", () =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const control = Deferred.makeUnsafe<Parts.Control>()
      const a = Part.make("a", slow(journal, "a", 5, Effect.void))
      const b = Part.make(
        "b",
        Layer.effectDiscard(Effect.gen(function*() {
          const { stop } = yield* Deferred.await(control)
          yield* Effect.acquireRelease(journal.note("+b"), () => journal.note("-b"))
          yield* Effect.forkDetach(stop({ budget: "1 second" }), { startImmediately: true })
          yield* journal.note("built")
        })),
        { dependsOn: [a] }
      )
      const parts = yield* Parts.make([b])
      yield* Deferred.succeed(control, parts)
      const starting = yield* Effect.forkChild(parts.start(), { startImmediately: true })
      yield* TestClock.adjust("1 hour")
      const exit = yield* Fiber.await(starting)
      expect(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)).toBe(true)
      expect(yield* stopOf(parts, { budget: "1 second" })).toEqual([["Stopped", "b", 0], ["Stopped", "a", 0]])
      expect(journal.lines).toEqual(["0 +a", "5 +b", "5 -b", "5 -a", "5 .a"])
    }))

  it.effect("before the start there is nothing to stop, and after it no start", () =>
    Effect.gen(function*() {
      const parts = yield* Parts.make([Part.make("a", Layer.empty)])
      expect(yield* parts.stop({ budget: "1 second" })).toEqual([])
      expect(Exit.isFailure(yield* Effect.exit(parts.start()))).toBe(true)
    }))

  it.effect("with no time at all, what needs none still stops", () =>
    Effect.gen(function*() {
      const journal = yield* makeJournal
      const a = Part.make("a", slow(journal, "a", 0, Effect.void))
      const b = Part.make("b", slow(journal, "b", 0, Effect.sleep(1)), { dependsOn: [a] })
      expect(yield* stopOf(yield* startOf([b]), { budget: 0 })).toEqual([["Abandoned", "b", 0], ["Stopped", "a", 0]])
    }))
})

/** What one part of a random service does. Durations are odd or even, so that nothing ends at the very deadline. */
const Script = Schema.Struct({
  /** Which of the earlier ones it depends on, as bits. */
  needs: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 0xffff })),
  start: Schema.Literals(["works", "works", "works", "works", "fails", "dies", "hangs"]),
  startTime: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 200 })),
  stop: Schema.Literals(["works", "works", "works", "dies", "hangs"]),
  stopTime: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 400 })),
  stopWeight: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 5 })),
  stopWithin: Schema.UndefinedOr(Schema.Literals([100, 700])),
  asksFor: Schema.Literals([0, 0, 150, 5000])
})

const Scenario = Schema.Struct({
  scripts: Schema.Array(Script).check(Schema.isMaxLength(9)),
  budget: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 3000 })),
  cap: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 5000 })),
  /** After how long a part is no longer waited for to start. */
  startWithin: Schema.UndefinedOr(Schema.Literals([5000])),
  /** When the start is interrupted, or a stop asked for in the midst of it. */
  cut: Schema.Literals(["no", "no", "interrupt", "stop"]),
  cutAt: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 600 })),
  abandonAfter: Schema.UndefinedOr(Schema.Literals([50, 333]))
})

/** All that can be seen of a scenario. */
const play = Effect.fnUntraced(function*(scenario: typeof Scenario.Type) {
  const { abandonAfter, budget, cap, cut, cutAt, scripts, startWithin } = scenario
  const now = Clock.currentTimeMillis
  interface Seen {
    readonly name: string
    readonly needs: ReadonlyArray<string>
    readonly script: typeof Script.Type
    began?: number
    started?: number
    failed?: number
    releaseBegan?: number
    releaseEnded?: number
    releases: number
  }
  const seen = new Map<string, Seen>()
  const all: Array<Part.Part<never, string>> = []
  const events: Array<readonly [number, ServiceEvent]> = []
  const granted: Array<number> = []
  for (const [index, script] of scripts.entries()) {
    const dependsOn = all.filter((_, bit) => (script.needs >> bit) % 2 === 1)
    const entry: Seen = { name: `p${index}`, needs: dependsOn.map(({ name }) => name), script, releases: 0 }
    seen.set(entry.name, entry)
    const layer = Layer.effectDiscard(Effect.gen(function*() {
      const control = yield* Part.PartControl
      entry.began = yield* now
      yield* Effect.addFinalizer(() =>
        Effect.gen(function*() {
          entry.releases++
          entry.releaseBegan = yield* now
          if (script.asksFor > 0) granted.push(Duration.toMillis(yield* control.extendStop(script.asksFor)))
          if (script.stop === "hangs") return yield* Effect.never
          yield* Effect.sleep(script.stopTime + 0.5)
          entry.releaseEnded = yield* now
          return script.stop === "dies" ? yield* Effect.die("finalizer") : undefined
        })
      )
      yield* Effect.sleep(script.startTime)
      if (script.start === "hangs") return yield* Effect.never
      entry[script.start === "works" ? "started" : "failed"] = yield* now
      if (script.start === "works") return
      return script.start === "fails" ? yield* Effect.fail("no") : yield* Effect.die("bug")
    }))
    const { stopWeight, stopWithin } = script
    all.push(Part.make(entry.name, layer, { dependsOn, startWithin, stopWeight, stopWithin }))
  }
  const onEvent = (event: ServiceEvent): Effect.Effect<void> =>
    Effect.map(now, (time) => {
      events.push([time, event])
    })
  const options = { budget, hardCap: budget + cap, onEvent }
  const parts = yield* Parts.make(all)
  const base = yield* now
  let stopBegan = base
  let stopEnded = base
  let outcomes: ReadonlyArray<Parts.PartOutcome> = []
  const stop = Effect.gen(function*() {
    stopBegan = yield* now
    outcomes = yield* parts.stop(options)
    stopEnded = yield* now
  })
  const abandonLater = abandonAfter === undefined
    ? Effect.void
    : Effect.andThen(Effect.sleep(abandonAfter), parts.abandon)
  const starting = yield* Effect.forkChild(parts.start({ onEvent, rollbackBudget: budget }), { startImmediately: true })
  yield* TestClock.adjust(cutAt)
  const wasStarting = starting.pollUnsafe() === undefined
  if (cut === "interrupt") starting.interruptUnsafe()
  if (cut !== "stop") yield* TestClock.adjust("1 hour")
  const beforeStop = starting.pollUnsafe()
  const stopping = yield* Effect.forkChild(stop, { startImmediately: true })
  const abandoning = yield* Effect.forkChild(abandonLater, { startImmediately: true })
  yield* TestClock.adjust("1 hour")
  yield* Fiber.join(stopping)
  yield* Fiber.join(abandoning)
  const exit = starting.pollUnsafe()
  yield* Fiber.interrupt(starting)
  return { base, beforeStop, events, exit, granted, outcomes, seen, stopBegan, stopEnded, wasStarting }
})

describe("a random service", () => {
  it.effect.prop(
    "keeps order and budget, and names what hangs",
    { scenario: Scenario },
    ({ scenario }) =>
      Effect.gen(function*() {
        const told = yield* play(scenario)
        const { events, granted, outcomes, seen } = told
        const has = (name: string): NonNullable<ReturnType<typeof seen.get>> => {
          const entry = seen.get(name)
          if (entry === undefined) throw new Error(`no part ${name}`)
          return entry
        }
        const givenUp = new Map(
          events.flatMap(([time, event]) => event._tag === "PartAbandoned" ? [[event.part, time] as const] : [])
        )
        const begun = [...seen.values()].filter(({ began }) => began !== undefined)

        // Order of start: at once when the last dependency has started, and never before.
        for (const entry of begun) {
          const ready = entry.needs.map((need) => has(need).started)
          expect(ready).not.toContain(undefined)
          expect(entry.began).toBe(Math.max(told.base, ...ready.map(Number)))
        }
        // Order of stop: nothing is released while something that depends on it has not stopped or been given up.
        for (const entry of begun) {
          if (entry.releaseBegan === undefined || entry.failed !== undefined) continue
          for (const other of begun) {
            if (!other.needs.includes(entry.name)) continue
            const end = Math.min(other.releaseEnded ?? Infinity, givenUp.get(other.name) ?? Infinity)
            expect(end).toBeLessThanOrEqual(entry.releaseBegan)
          }
        }
        // Everything that began is released once, but for what was never reached.
        for (const entry of begun) {
          const outcome = outcomes.find(({ name }) => name === entry.name)
          const wasReached = outcome?._tag !== "Abandoned" || Duration.toMillis(outcome.took) > 0 || entry.releases > 0
          expect(entry.releases).toBe(wasReached ? 1 : 0)
          if (!wasReached) expect(scenario.abandonAfter !== undefined || scenario.budget < 3000).toBe(true)
        }
        // Each part that was up, or coming up, has one outcome.
        const names = outcomes.map(({ name }) => name)
        expect(names.length).toBe(new Set(names).size)
        for (const entry of begun) if (entry.failed === undefined) expect(names).toContain(entry.name)
        for (const name of names) expect(has(name).began).not.toBe(undefined)
        // And it is the right one.
        for (const outcome of outcomes) {
          const { failed, releaseBegan, releaseEnded, script } = has(outcome.name)
          if (script.stop === "hangs") expect(outcome._tag).toBe("Abandoned")
          if (outcome._tag === "Abandoned") {
            if (releaseEnded !== undefined) {
              expect(releaseEnded).toBeGreaterThanOrEqual(givenUp.get(outcome.name) ?? Infinity)
            }
            continue
          }
          expect(outcome._tag).toBe(script.stop === "dies" || failed !== undefined ? "Failed" : "Stopped")
          expect(releaseEnded).not.toBe(undefined)
          if (releaseBegan !== undefined && script.stopWithin !== undefined) {
            expect(Duration.toMillis(outcome.took)).toBeLessThanOrEqual(script.stopWithin + 0.01)
          }
        }
        // The budget.
        const asked = granted.reduce((sum, by) => sum + by, 0)
        const isRollback = told.beforeStop !== undefined && Exit.isFailure(told.beforeStop)
        const limit = isRollback ? scenario.budget : Math.min(scenario.budget + scenario.cap, scenario.budget + asked)
        if (!isRollback) expect(told.stopEnded - told.stopBegan).toBeLessThanOrEqual(limit + 0.01 * seen.size)
        // Without time to share out, nothing but what hangs is given up.
        const longest = scenario.scripts.reduce((sum, { stopTime }) => sum + stopTime + 1, 0)
        const weights = scenario.scripts.reduce((sum, { stopWeight }) => sum + stopWeight, 0)
        if (scenario.abandonAfter === undefined && longest * weights < scenario.budget) {
          for (const { _tag, name } of outcomes) {
            const { script } = has(name)
            if (_tag === "Abandoned" && script.stopWithin === undefined) expect(script.stop).toBe("hangs")
          }
        }
        // How the start ended. One that fails is unwound first, and that may hang as well.
        const hangsAtStart = ({ failed, script }: (typeof begun)[number]) =>
          script.start === "hangs" || failed !== undefined && script.stop === "hangs"
        const failures = begun.filter(({ failed }) => failed !== undefined).map(({ name }) => name)
        if (told.exit !== undefined && Exit.isFailure(told.exit)) {
          const error = Cause.findErrorOption(told.exit.cause)
          if (Option.isSome(error)) {
            const { reason } = error.value
            expect(reason._tag).toBe("InitFailed")
            if (scenario.startWithin === undefined && reason._tag === "InitFailed") {
              expect(failures).toContain(reason.part)
            }
          } else expect(scenario.cut !== "no" || begun.some(hangsAtStart)).toBe(true)
        } else if (told.exit !== undefined) {
          expect(begun.map(({ started }) => started)).not.toContain(undefined)
          expect(begun.length).toBe(seen.size)
        }
      }),
    { arbitrary: { runs: 1000 } }
  )
})
