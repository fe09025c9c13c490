import { describe, expect, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as Custom from "../../src/service/Custom.ts"
import { Fatal } from "../../src/service/Fatal.ts"
import { Health } from "../../src/service/Health.ts"
import * as Part from "../../src/service/Part.ts"
import { ServiceEvents } from "../../src/service/Phase.ts"
import * as Postgres from "../../src/service/Postgres.ts"
import { ProvisionerError } from "../../src/service/Provisioner.ts"
import type * as Resource from "../../src/service/Resource.ts"
import * as Secrets from "../../src/service/Secrets.ts"
import * as Service from "../../src/service/Service.ts"
import * as ServiceConfig from "../../src/service/ServiceConfig.ts"
import { fromReason, ServiceErrorReason } from "../../src/service/ServiceError.ts"
import * as ServicePlan from "../../src/service/ServicePlan.ts"
import * as FakeService from "../../src/testing/FakeService.ts"

const base = { name: "notes", version: "1.0.0" }

/** A part that writes down when it starts and stops. */
const traced = (
  name: string,
  log: Array<string>,
  options: {
    readonly dependsOn?: ReadonlyArray<Part.Part<never>>
    readonly stop?: Effect.Effect<void>
    readonly start?: Effect.Effect<void>
  } = {}
) =>
  Part.make(
    name,
    Layer.effectDiscard(Effect.acquireRelease(
      Effect.tap(options.start ?? Effect.void, () => Effect.sync(() => log.push(`+${name}`))),
      () => Effect.andThen(options.stop ?? Effect.void, Effect.sync(() => log.push(`-${name}`)))
    )),
    { dependsOn: options.dependsOn ?? [] }
  )

/** Runs a service in its own fiber and lets it get as far as it can without time. */
const begin = Effect.fnUntraced(function*<R, Res extends Resource.Any>(
  service: Service.Service<R, Res>,
  options: FakeService.Options = {}
) {
  const fake = FakeService.make(options)
  const context = yield* Layer.build(fake.layer)
  const fiber = yield* Effect.forkChild(Effect.provideContext(Service.run(service), context), {
    startImmediately: true
  })
  yield* TestClock.adjust(0)
  const events = Context.get(context, ServiceEvents).events
  const seen: Array<string> = []
  yield* events.pipe(
    Stream.runForEach((event) =>
      Effect.sync(() => {
        seen.push("phase" in event ? `${event._tag} ${event.phase}` : event._tag)
      })
    ),
    Effect.forkChild({ startImmediately: true })
  )
  return { fake, fiber, seen, report: Fiber.join(fiber) }
})

describe("a service in a fake process", () => {
  it.effect("has the secrets, the outputs and the variables that it was given, and names what it was not", () =>
    Effect.gen(function*() {
      const secrets = Secrets.make("secrets")
      const database = Postgres.make("database")
      const seen: Array<unknown> = []
      const main = Effect.gen(function*() {
        seen.push((yield* secrets.get).names, (yield* database.get).host, yield* Config.String("GREETING"))
      })
      const service = Service.make({ ...base, resources: [secrets, database], main })
      const options = { secrets: { B: "b", A: "a" }, env: { GREETING: "hello", SERVICE_ENV: "local" } }
      const { report } = yield* begin(service, {
        ...options,
        outputs: { database: "postgres://a@db.example.org/notes" }
      })
      expect((yield* report).code).toBe(0)
      expect(seen).toEqual([["A", "B"], "db.example.org", "hello"])
      const missing = yield* begin(service, options)
      expect((yield* missing.report).code).toBe(131)
      expect(missing.fake.stderr[0]).toContain("database: nobody said what to answer")
    }))
})

describe("the ways to end", () => {
  it.effect("ends by itself: 0", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const { fake, report } = yield* begin(
        Service.make({ ...base, parts: [traced("a", log)], main: Effect.sleep("3 seconds") })
      )
      yield* TestClock.adjust("3 seconds")
      const { code, end, phase } = yield* report
      expect({ code, end, phase }).toEqual({ code: 0, end: { _tag: "Reason", reason: "ended" }, phase: "run" })
      expect(log).toEqual(["+a", "-a"])
      expect(fake.stderr).toEqual([])
      expect(fake.terminations).toMatchObject([{ reason: "ended", code: 0, phase: "run" }])
    }))

  it.effect("fails while it runs: 1, with the whole chain of causes", () =>
    Effect.gen(function*() {
      const { fake, report } = yield* begin(
        Service.make({ ...base, main: Effect.fail(new Error("outer", { cause: new Error("root cause") })) })
      )
      expect((yield* report).code).toBe(1)
      expect(fake.stderr).toEqual([
        "ERROR: Service failed while running: main: outer\n  caused by: root cause"
      ])
    }))

  it.effect("a signal ends it in order: 10", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const sql = traced("sql", log)
      const { fake, report, seen } = yield* begin(
        Service.make({ ...base, parts: [traced("api", log, { dependsOn: [sql] })] })
      )
      expect(fake.notifications).toEqual([{ ready: true, status: "Ready" }])
      yield* fake.send("SIGTERM")
      const { code, signal } = yield* report
      expect([code, Option.getOrThrow(signal)]).toEqual([10, "SIGTERM"])
      expect(log).toEqual(["+sql", "+api", "-api", "-sql"])
      yield* TestClock.adjust(0)
      expect(seen).toEqual([
        "PhaseStarted configure",
        "PhaseEnded configure",
        "PhaseStarted secrets",
        "PhaseEnded secrets",
        "PhaseStarted load",
        "PhaseEnded load",
        "PhaseStarted check",
        "PhaseEnded check",
        "PhaseStarted provision",
        "PhaseEnded provision",
        "PhaseStarted init",
        "PartStarted",
        "PartStarted",
        "PhaseEnded init",
        "PhaseStarted run",
        "Ready",
        "SignalReceived",
        "PhaseStarted stop",
        "Draining",
        "PhaseEnded run",
        "PartStopped",
        "PartStopped",
        "PhaseEnded stop"
      ])
    }))

  it.effect("a fatal report ends it in order, with the code of the report", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const task = Part.make(
        "task",
        Layer.effectDiscard(Effect.gen(function*() {
          const fatal = yield* Fatal
          const reason = ServiceErrorReason.HealthListenerFailed({ why: "EBADF" })
          yield* Effect.forkScoped(Effect.delay(fatal.report(fromReason(reason)), "1 second"))
        }))
      )
      const { report } = yield* begin(Service.make({ ...base, parts: [traced("a", log), task] }))
      yield* TestClock.adjust("1 second")
      const { code, error } = yield* report
      expect(code).toBe(202)
      expect(Option.getOrThrow(error).message).toContain("EBADF")
      expect(log).toEqual(["+a", "-a"])
    }))

  it.effect("a defect, and an exception that nobody caught: 70", () =>
    Effect.gen(function*() {
      const died = yield* begin(Service.make({ ...base, main: Effect.die(new Error("boom")) }))
      expect((yield* died.report).code).toBe(70)
      expect(died.fake.stderr.join()).toContain("boom")
      const crashed = yield* begin(Service.make(base))
      yield* crashed.fake.crash(new Error("unhandled"))
      expect((yield* crashed.report).code).toBe(70)
      expect(crashed.fake.stderr.join()).toContain("unhandled")
    }))

  it.effect("interrupting the effect stops the service in order", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const { fiber } = yield* begin(Service.make({ ...base, parts: [traced("a", log)] }))
      yield* Fiber.interrupt(fiber)
      expect(log).toEqual(["+a", "-a"])
      const exit = yield* Fiber.await(fiber)
      expect(Exit.isFailure(exit)).toBe(true)
    }))
})

describe("phases", () => {
  const failing = (why: string) => Effect.fail(new ProvisionerError({ message: why }))
  const wish = (load: Effect.Effect<number, unknown>) =>
    Custom.make("wish", { schema: Schema.Number, load: () => load })

  it.effect("all faults of the configuration and of the service at once: 78", () =>
    Effect.gen(function*() {
      const { fake, report } = yield* begin(
        Service.make({ name: "two words", version: "1", stopBudget: "Infinity" }),
        { env: { SERVICE_RUNTIME_PORT: "70000", SERVICE_ENV: "prod" } }
      )
      const { code, phase } = yield* report
      expect([code, phase]).toEqual([78, "configure"])
      for (const word of ["two words", "stopBudget", "SERVICE_RUNTIME_PORT", "70000", "SERVICE_ENV"]) {
        expect(fake.stderr.join()).toContain(word)
      }
    }))

  it.effect("two resources of one name, and probes where a part listens, are told before anything runs: 78", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const http = Part.make("http", Layer.empty, { listens: true })
      const { fake, report } = yield* begin(
        Service.make({
          ...base,
          resources: [wish(Effect.succeed(1)), wish(Effect.succeed(2))],
          parts: [traced("a", log), Part.make("api", Layer.empty, { dependsOn: [http] })]
        }),
        { env: { SERVICE_HEALTHZ_PORT: "8000" } }
      )
      const { code, phase } = yield* report
      expect([code, phase]).toEqual([78, "configure"])
      expect(fake.stderr).toEqual([
        "ERROR: Configuration invalid:\n  - two resources are called \"wish\": rename one\n  - port 8000 is to be " +
        "listened on twice: change SERVICE_HEALTHZ_PORT or SERVICE_RUNTIME_PORT"
      ])
      expect(log).toEqual([])
    }))

  it.effect("secrets 101, load 111, input 121, initialisation 151", () =>
    Effect.gen(function*() {
      const secrets = yield* begin(Service.make(base), { provisioner: { secrets: failing("the API is away") } })
      expect((yield* secrets.report).code).toBe(101)
      expect(secrets.fake.stderr).toEqual(["ERROR: Secrets phase failed: the API is away"])
      const load = yield* begin(Service.make({ ...base, resources: [wish(Effect.fail(new Error("no such key")))] }))
      expect((yield* load.report).code).toBe(111)
      const check = yield* begin(Service.make({ ...base, resources: [wish(Effect.succeed(Number.NaN))] }))
      expect((yield* check.report).code).toBe(121)
      const init = yield* begin(
        Service.make({ ...base, parts: [Part.make("sql", Layer.effectDiscard(Effect.fail(new Error("no route"))))] })
      )
      expect((yield* init.report).code).toBe(151)
      expect(init.fake.stderr.join()).toContain("no route")
    }))

  it.effect("the sidecar is dismissed when there is one, once provisioning is over", () =>
    Effect.gen(function*() {
      const env = { SERVICE_SIDECAR: "http://127.0.0.1:9" }
      const { fake, report } = yield* begin(Service.make({ ...base, main: Effect.void }), { env })
      expect((yield* report).code).toBe(0)
      expect(fake.sidecarCalls()).toBe(1)
      const without = yield* begin(Service.make({ ...base, main: Effect.void }))
      yield* without.report
      expect(without.fake.sidecarCalls()).toBe(0)
    }))

  it.effect("a part gets the output of a resource", () =>
    Effect.gen(function*() {
      const seven = wish(Effect.succeed(7))
      let got = 0
      const part = Part.make(
        "reader",
        Layer.effectDiscard(Effect.map(seven.get, (value) => {
          got = value
        }))
      )
      const { fake, report } = yield* begin(Service.make({ ...base, resources: [seven], parts: [part] }))
      yield* fake.send("SIGINT")
      expect((yield* report).code).toBe(10)
      expect(got).toBe(7)
    }))

  it.effect("a signal in any phase unwinds what was started, in order: 10", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const first = traced("first", log)
      const slow = Part.make("slow", Layer.effectDiscard(Effect.never), { dependsOn: [first] })
      for (
        const [phase, service, options] of [
          ["secrets", Service.make(base), { provisioner: { secrets: Effect.never } }],
          ["load", Service.make({ ...base, resources: [wish(Effect.never)] }), {}],
          ["init", Service.make({ ...base, parts: [slow] }), {}]
        ] as const
      ) {
        const { fake, report } = yield* begin(service, options)
        yield* fake.send("SIGTERM")
        yield* TestClock.adjust(0)
        const done = yield* report
        expect([done.code, done.phase]).toEqual([10, phase])
      }
      expect(log).toEqual(["+first", "-first"])
    }))

  it.effect("--version, --help and --plan print and run nothing", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const service = Service.make({ ...base, parts: [traced("api", log)] })
      for (const [argument, expected] of [["--version", "notes 1.0.0"], ["--help", "SERVICE_ENV"], ["--plan", "api"]]) {
        const { fake, report } = yield* begin(service, { argv: [argument ?? ""] })
        expect((yield* report).code).toBe(0)
        expect(fake.stdout.join("\n")).toContain(expected)
      }
      expect(log).toEqual([])
    }))
})

describe("the stop", () => {
  const told = (left: Service.ServiceReport["left"]) =>
    left.map((one) =>
      `${one.part}: ${one._tag === "Failed" ? one.why : one.doing.replace(/, for .*/, ", for a while")}`
    )

  it.effect("not ready first, then the drain delay, then the parts", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const states = Effect.gen(function*() {
        const health = yield* Health
        yield* Effect.addFinalizer(() => Effect.map(health.state, (state) => log.push(`stopping while ${state}`)))
      })
      const { fake, report, seen } = yield* begin(
        Service.make({ ...base, parts: [Part.make("api", Layer.effectDiscard(states))], drainDelay: "5 seconds" })
      )
      yield* fake.send("SIGTERM")
      yield* TestClock.adjust("4999 millis")
      expect(seen.at(-1)).toBe("Draining")
      expect(log).toEqual([])
      yield* TestClock.adjust("1 millis")
      expect((yield* report).code).toBe(10)
      expect(log).toEqual(["stopping while draining"])
    }))

  it.effect("a hung part is named with what it was doing and abandoned, the others stop: 11", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const hung = traced("hung", log, { stop: Effect.withSpan(Effect.never, "Pool.drain") })
      const { fake, report } = yield* begin(
        Service.make({ ...base, parts: [hung, traced("a", log), traced("b", log)], stopBudget: "10 seconds" })
      )
      yield* fake.send("SIGTERM")
      yield* TestClock.adjust("10 seconds")
      const { code, left, elapsed } = yield* report
      expect(code).toBe(11)
      expect(Duration.toMillis(elapsed)).toBeLessThanOrEqual(10_000)
      expect(left).toMatchObject([{ _tag: "Abandoned", part: "hung" }])
      expect(log.toSorted()).toEqual(["+a", "+b", "+hung", "-a", "-b"])
      expect(fake.stderr.join()).toContain("Pool.drain")
      expect(fake.terminations).toMatchObject([{ code: 11, abandoned: ["hung"] }])
    }))

  it.effect("a failing finalizer is reported, the others run: 12", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const bad = traced("bad", log, { stop: Effect.die(new Error("disk full")) })
      const logged: Array<string> = []
      const logger = Logger.make(({ cause }) => void logged.push(Cause.pretty(cause)))
      const { fake, report } = yield* begin(Service.make({ ...base, parts: [bad, traced("a", log)] })).pipe(
        Effect.provide(Logger.layer([logger]))
      )
      yield* fake.send("SIGTERM")
      expect((yield* report).code).toBe(12)
      expect(fake.stderr.join()).toContain("disk full")
      expect(log).toContain("-a")
      // Where it has its defect is for the log.
      expect(logged.at(-1)).toContain("ServiceRun.test.ts")
    }))

  it.effect("a second signal means the next stage now: 128 + n when it cuts the stop short", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const hung = traced("hung", log, { stop: Effect.never })
      const { fake, report } = yield* begin(
        Service.make({ ...base, parts: [hung, traced("a", log)], drainDelay: "5 seconds" })
      )
      yield* fake.send("SIGINT")
      yield* TestClock.adjust("1 second")
      expect(log).not.toContain("-a")
      yield* fake.send("SIGINT")
      yield* TestClock.adjust(0)
      expect(log).toContain("-a")
      yield* fake.send("SIGINT")
      yield* TestClock.adjust(0)
      const { code, left } = yield* report
      expect(code).toBe(130)
      expect(left).toMatchObject([{ _tag: "Abandoned", part: "hung" }])
    }))

  it.effect("a second signal leaves no resource behind, nor a part whose turn had not come", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const database = Custom.provisioned("database", {
        type: "database",
        input: Schema.Null,
        output: Schema.String,
        load: () => Effect.succeed(null)
      })
      const request = () =>
        Effect.as(
          Effect.acquireRelease(Effect.void, () => Effect.sync(() => log.push("-database"))),
          { type: "database", state: "ready", output: "here" }
        )
      const sql = traced("sql", log)
      const hung = traced("hung", log, { dependsOn: [sql], stop: Effect.never })
      const { fake, report } = yield* begin(
        Service.make({ ...base, resources: [database], parts: [hung] }),
        { provisioner: { request } }
      )
      yield* fake.send("SIGTERM")
      yield* TestClock.adjust("1 second")
      yield* fake.send("SIGTERM")
      yield* TestClock.adjust(0)
      expect((yield* report).code).toBe(143)
      expect(log).toEqual(["+sql", "+hung", "-sql", "-database"])
      const said = fake.stderr.join("\n")
      expect(said).toContain("sql was told to stop before its turn, and not waited for")
      expect(said).toContain("hung did not stop within 1000 ms and was abandoned")
    }))

  /** Resources, each with what its release does. */
  const held = (releases: Readonly<Record<string, Effect.Effect<void>>>) => ({
    resources: Object.keys(releases).map((name) =>
      Custom.provisioned(name, {
        type: "container",
        input: Schema.Null,
        output: Schema.Null,
        load: () => Effect.succeed(null)
      })
    ),
    request: ({ name }: { readonly name: string }) =>
      Effect.as(
        Effect.acquireRelease(Effect.void, () => releases[name] ?? Effect.void),
        { type: "container", state: "ready", output: null }
      )
  })

  it.effect("a hung resource is named with what it was doing and abandoned, the others are released: 11", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const { request, resources } = held({
        alpha: Effect.sync(() => log.push("-alpha")),
        beta: Effect.withSpan(Effect.never, "docker stop beta"),
        gamma: Effect.die(new Error("no such container"))
      })
      const { fake, report } = yield* begin(
        Service.make({ ...base, resources, stopBudget: "10 seconds" }),
        { provisioner: { request } }
      )
      yield* fake.send("SIGTERM")
      yield* TestClock.adjust(0)
      expect(log).toEqual(["-alpha"])
      yield* TestClock.adjust("10 seconds")
      const { code, elapsed, left } = yield* report
      expect(code).toBe(11)
      expect(Duration.toMillis(elapsed)).toBeLessThanOrEqual(10_000)
      expect(told(left)).toEqual(["gamma: no such container", "beta: docker stop beta, for a while"])
      expect(fake.terminations).toMatchObject([{ code: 11, abandoned: ["beta"] }])
    }))

  it.effect("takes for each step what the plan says of it, when everything hangs", () =>
    Effect.gen(function*() {
      const stop = { stop: Effect.never }
      const { request, resources } = held({ alpha: Effect.never, beta: Effect.never })
      const sql = traced("sql", [], stop)
      const queue = Part.make("queue", Layer.effectDiscard(Effect.addFinalizer(() => Effect.never)), {
        dependsOn: [sql],
        stopWithin: "1 second"
      })
      const heavy = Part.make("heavy", Layer.effectDiscard(Effect.addFinalizer(() => Effect.never)), {
        dependsOn: [queue],
        stopWeight: 3
      })
      const service = Service.make({
        ...base,
        resources,
        parts: [traced("api", [], { ...stop, dependsOn: [sql] }), heavy],
        drainDelay: "3 seconds",
        main: Effect.andThen(
          Effect.addFinalizer(() => Effect.never),
          Effect.uninterruptible(Effect.never)
        )
      })
      const { fake, report } = yield* begin(service, { provisioner: { request } })
      yield* fake.send("SIGTERM")
      yield* TestClock.adjust("25 seconds")
      const { left } = yield* report
      const took = new Map(left.map((one) => [one.part, one._tag === "Failed" ? NaN : Duration.toMillis(one.after)]))
      const config = Result.getOrThrow(ServiceConfig.parse({ env: {}, argv: [], defaults: service }))
      const planned = ServicePlan.make(service, config).stopSteps.flatMap(({ of }) => of)
        .filter(({ name }) => name !== "provisioner")
      expect(planned.map(({ name }) => name)).toEqual(
        ["main", "api", "heavy", "queue", "sql", "finalizers of main", "alpha", "beta"]
      )
      const late = planned.filter(({ name, within }) =>
        !(Math.abs((took.get(name) ?? NaN) - Duration.toMillis(within)) < 2)
      )
      expect(late).toEqual([])
    }))

  it.effect("a second signal names the resource that hangs, with what it was doing, and no other", () =>
    Effect.gen(function*() {
      const { request, resources } = held({
        alpha: Effect.void,
        beta: Effect.withSpan(Effect.never, "docker stop beta"),
        gamma: Effect.die(new Error("no such container"))
      })
      const { fake, report } = yield* begin(Service.make({ ...base, resources }), { provisioner: { request } })
      yield* fake.send("SIGTERM")
      yield* TestClock.adjust("1 second")
      yield* fake.send("SIGTERM")
      yield* TestClock.adjust(0)
      const { code, left } = yield* report
      expect(code).toBe(143)
      expect(told(left)).toEqual(["gamma: no such container", "beta: docker stop beta, for a while"])
    }))

  it.effect("resources outlive what the main program holds, which is named too when it hangs", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const { request, resources } = held({ alpha: Effect.sync(() => log.push("-alpha")) })
      const write = Effect.sync(() => log.push("-main"))
      const main = Effect.andThen(
        Effect.acquireRelease(Effect.void, () => Effect.andThen(write, Effect.withSpan(Effect.never, "Cache.flush"))),
        Effect.never
      )
      const { fake, report } = yield* begin(Service.make({ ...base, resources, main }), { provisioner: { request } })
      yield* fake.send("SIGTERM")
      yield* TestClock.adjust(0)
      expect(log).toEqual(["-main"])
      yield* TestClock.adjust("25 seconds")
      const { code, left } = yield* report
      expect(code).toBe(11)
      expect(log).toEqual(["-main", "-alpha"])
      expect(told(left)).toEqual(["finalizers of main: Cache.flush, for a while"])
    }))

  it.effect("nor when it is the main program that hangs", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const { fake, report } = yield* begin(
        Service.make({ ...base, main: Effect.uninterruptible(Effect.never), parts: [traced("a", log)] })
      )
      yield* fake.send("SIGTERM")
      yield* TestClock.adjust("1 second")
      yield* fake.send("SIGTERM")
      yield* TestClock.adjust(0)
      const { code, left } = yield* report
      expect(code).toBe(143)
      expect(left).toMatchObject([{ part: "main", doing: "nothing that a span tells" }])
      expect(log).toEqual(["+a", "-a"])
    }))

  it.effect("what the main program fails with while it is stopped is told: 12", () =>
    Effect.gen(function*() {
      const main = Effect.onInterrupt(Effect.never, () => Effect.die(new Error("half written")))
      const { fake, report } = yield* begin(Service.make({ ...base, main }))
      yield* fake.send("SIGTERM")
      expect((yield* report).code).toBe(12)
      expect(fake.stderr.join()).toContain("half written")
    }))

  it.effect("an error that nobody caught during the stop makes it a defect: 70, and the stop goes on", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const { fake, report } = yield* begin(
        Service.make({ ...base, parts: [traced("slow", log, { stop: Effect.sleep("2 seconds") })] })
      )
      yield* fake.send("SIGTERM")
      yield* TestClock.adjust("1 second")
      yield* fake.crash(new Error("late"))
      yield* TestClock.adjust("1 second")
      expect((yield* report).code).toBe(70)
      expect(log).toEqual(["+slow", "-slow"])
      expect(fake.stderr.join()).toContain("late")
    }))

  it.effect("telemetry that does not close holds nobody up", () =>
    Effect.gen(function*() {
      const telemetry = Layer.effectDiscard(Effect.addFinalizer(() => Effect.never))
      const { report } = yield* begin(Service.make({ ...base, main: Effect.void }), { telemetry })
      yield* TestClock.adjust("1 second")
      expect((yield* report).code).toBe(0)
    }))

  it.effect("a part that fails to start and hangs in its release does not hang the service", () =>
    Effect.gen(function*() {
      const part = Part.make(
        "stuck",
        Layer.effectDiscard(Effect.andThen(Effect.addFinalizer(() => Effect.never), Effect.fail("no route")))
      )
      const { fake, report } = yield* begin(
        Service.make({ ...base, parts: [part], stopBudget: "10 seconds", startWithin: "1 minute" })
      )
      yield* TestClock.adjust("2 minutes")
      expect((yield* report).code).toBe(151)
      expect(fake.stderr.join()).toContain("stuck: it has not started within 1m")
    }))

  it.effect("a main program that interrupts itself has a defect: 70", () =>
    Effect.gen(function*() {
      const { report } = yield* begin(Service.make({ ...base, main: Effect.interrupt }))
      expect((yield* report).code).toBe(70)
    }))

  it.effect("a main program that cannot be interrupted is named with what it is doing, and the parts still stop", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const main = Effect.uninterruptible(Effect.withSpan(Effect.never, "Import.flush"))
      const { fake, report } = yield* begin(Service.make({ ...base, main, parts: [traced("a", log)] }))
      yield* fake.send("SIGTERM")
      yield* TestClock.adjust("25 seconds")
      const { code, left } = yield* report
      expect(code).toBe(11)
      expect(told(left)).toEqual(["main: Import.flush, for a while"])
      expect(log).toContain("-a")
    }))

  it.effect("a part may ask for more time, which the service manager is told", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const part = Part.make(
        "queue",
        Layer.effectDiscard(Effect.gen(function*() {
          const control = yield* Part.PartControl
          yield* Effect.addFinalizer(() => Effect.andThen(control.extendStop("20 seconds"), Deferred.await(gate)))
        }))
      )
      const { fake, report } = yield* begin(
        Service.make({ ...base, parts: [part], stopBudget: "10 seconds", maxExtension: "1 minute" })
      )
      yield* fake.send("SIGTERM")
      yield* TestClock.adjust("15 seconds")
      yield* Deferred.succeed(gate, undefined)
      yield* TestClock.adjust(0)
      expect((yield* report).code).toBe(10)
      expect(fake.notifications.some((one) => one.extendTimeout !== undefined)).toBe(true)
    }))
})
