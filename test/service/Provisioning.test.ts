import { assert, describe, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as TestConsole from "effect/testing/TestConsole"
import { inspect } from "node:util"
import * as Custom from "../../src/service/Custom.ts"
import { copy } from "../../src/service/internal/provisioningJson.ts"
import * as Phase from "../../src/service/Phase.ts"
import * as Provisioner from "../../src/service/Provisioner.ts"
import * as Provisioning from "../../src/service/Provisioning.ts"
import type * as Resource from "../../src/service/Resource.ts"
import * as Secrets from "../../src/service/Secrets.ts"
import { explain, type ServiceError } from "../../src/service/ServiceError.ts"

const context: Omit<Resource.LoadContext, "secrets"> = {
  environment: "local",
  projectId: "proj_X",
  projectName: "notes",
  stateDirectory: "/nowhere"
}

/** A resource with free choice of all that can go wrong. */
const resource = <const Name extends string, Output = string>(
  name: Name,
  options: {
    readonly type?: string
    readonly load?: Resource.Any["load"]
    readonly input?: Schema.Codec<unknown, unknown>
    readonly output?: Schema.Codec<Output, unknown>
    readonly kind?: Resource.Kind
  } = {}
): Resource.Resource<Name, Output | string> => {
  const key = Context.Service<Resource.Provisioned<Name, Output | string>, Output | string>(`test/${name}`)
  return {
    name,
    kind: options.kind ?? "provisioned",
    type: options.type ?? `type::${name}`,
    load: options.load ?? (() => Effect.succeed({})),
    input: options.input ?? Schema.Unknown,
    output: options.output ?? Schema.String,
    key,
    get: key
  }
}

type Answer = { readonly state: string; readonly output?: unknown }

/** Answers from a script by resource name; the last answer stays. Tells what came, and when. */
const scripted = (
  answers: Readonly<
    Record<string, ReadonlyArray<Answer> | Effect.Effect<Answer, Provisioner.ProvisionerError, Scope.Scope>>
  >,
  secrets: Readonly<Record<string, string>> = {}
) => {
  const requests: Array<Provisioner.ResourceRequest & { readonly at: number }> = []
  const events: Array<Phase.ServiceEvent> = []
  const provisioner: Provisioner.Provisioner["Service"] = {
    secrets: Effect.succeed(new Map(Object.entries(secrets).map(([name, value]) => [name, Redacted.make(value)]))),
    request: Effect.fnUntraced(function*(request) {
      requests.push({ ...request, at: yield* Clock.currentTimeMillis })
      const script = answers[request.name]
      const nth = requests.filter(({ name }) => name === request.name).length - 1
      const answer = Effect.isEffect(script) ? yield* script : script?.[nth] ?? script?.at(-1)
      return {
        type: request.type,
        state: answer?.state ?? "ready",
        output: answer?.output ?? `output of ${request.name}`
      }
    })
  }
  const run = <R extends Resource.Any>(resources: ReadonlyArray<R>, options?: Provisioning.Options) =>
    Provisioning.run(resources, context, options).pipe(
      Effect.provideService(Provisioner.Provisioner, provisioner),
      Effect.provideService(Phase.ServiceEvents, {
        publish: (event) => Effect.sync(() => void events.push(event)),
        events: Stream.empty
      })
    )
  return { run, requests, events, provisioner }
}

const ready = (output: unknown = "out"): Answer => ({ state: "ready", output })

const reasonOf = <A, R>(self: Effect.Effect<A, ServiceError, R>) =>
  Effect.map(Effect.flip(self), ({ reason }) => reason)

/** Starts it and lets virtual time pass. */
const after = <A, E, R>(duration: Parameters<typeof TestClock.adjust>[0], self: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(self, { startImmediately: true })
    yield* TestClock.adjust(duration)
    return fiber
  })

const infoLines = Effect.map(
  TestConsole.logLines,
  (lines) => lines.map(String).filter((line) => /rovisioning/.test(line))
)

describe("all of it", () => {
  it.effect("gives each resource's output under its key, decoded", () =>
    Effect.gen(function*() {
      const db = resource("db", { output: Schema.Struct({ port: Schema.FiniteFromString }) })
      const store = Secrets.make("secrets")
      const own = Custom.make("own", {
        schema: Schema.Struct({ url: Schema.URLFromString }),
        load: ({ projectName, secrets }) => Effect.succeed({ url: `http://${projectName}:${secrets.size}` })
      })
      const { events, requests, run } = scripted({ db: [ready({ port: "5432" })] }, { A: "1", B: "2" })
      const outputs = yield* run([db, store, own])
      const used = Effect.gen(function*() {
        const secrets = yield* store.get
        return [yield* db.get, secrets.names, Option.map(secrets.get("B"), Redacted.value), (yield* own.get).url.host]
      })
      assert.deepStrictEqual(yield* Effect.provide(used, outputs), [
        { port: 5432 },
        ["A", "B"],
        Option.some("2"),
        "notes:2"
      ])
      assert.deepStrictEqual(requests.map(({ name, type }) => [name, type]), [["db", "type::db"]])
      assert.deepStrictEqual(events, [{ _tag: "Provisioning", resource: "db", type: "type::db", attempt: 1 }])
    }))

  it.effect("no resources are no work", () =>
    Effect.gen(function*() {
      const { requests, run } = scripted({})
      assert.strictEqual((yield* run([])).mapUnsafe.size, 0)
      assert.deepStrictEqual(requests, [])
    }))

  it.effect("says why there are no secrets, and goes no further", () =>
    Effect.gen(function*() {
      const { provisioner } = scripted({})
      const failing = Provisioning.run([resource("db", { load: () => Effect.die("must not be loaded") })], context)
        .pipe(
          Effect.provideService(Provisioner.Provisioner, {
            ...provisioner,
            secrets: new Provisioner.ProvisionerError({ message: "404 Not Found", cause: new Error("root") })
          }),
          Effect.provideService(Phase.ServiceEvents, { publish: () => Effect.void, events: Stream.empty })
        )
      const error = yield* Effect.flip(failing)
      assert.deepInclude(error.reason, { _tag: "SecretsFailed", why: "404 Not Found" })
      assert.strictEqual(explain(error), "Secrets phase failed: 404 Not Found\n  caused by: root")
    }))
})

describe("loading", () => {
  it.effect("sees the context and the secrets, in order", () =>
    Effect.gen(function*() {
      const seen: Array<unknown> = []
      const look = (name: string): Resource.Any =>
        resource(name, {
          load: ({ projectId, secrets }) => Effect.sync(() => void seen.push([name, projectId, [...secrets.keys()]]))
        })
      const { run } = scripted({}, { A: "1" })
      yield* Effect.exit(run([look("x"), look("y")]))
      assert.deepStrictEqual(seen, [["x", "proj_X", ["A"]], ["y", "proj_X", ["A"]]])
    }))

  it.effect("names the first that fails, and why, with the cause; nothing is requested", () =>
    Effect.gen(function*() {
      const { requests, run } = scripted({})
      const error = yield* Effect.flip(run([
        resource("ok"),
        resource("db", { load: () => Effect.fail(new Error("no size", { cause: new Error("SIZE is not set") })) }),
        resource("late", { load: () => Effect.die("must not be loaded") })
      ]))
      assert.deepInclude(error.reason, { _tag: "LoadFailed", resource: "db", why: "no size" })
      assert.strictEqual(explain(error), "Load phase failed: db: no size\n  caused by: SIZE is not set")
      assert.deepStrictEqual(requests, [])
    }))

  it.effect("a defect stays one", () =>
    Effect.gen(function*() {
      const { run } = scripted({})
      assert.isTrue(Exit.hasDies(yield* Effect.exit(run([resource("db", { load: () => Effect.die("bug") })]))))
    }))
})

describe("checking", () => {
  it.effect("tells all faults of all resources at once, by place and without values; nothing is requested", () =>
    Effect.gen(function*() {
      const { requests, run } = scripted({})
      const input = Schema.Struct({ size: Schema.Int, tags: Schema.Array(Schema.String) })
      const loop: Record<string, unknown> = {}
      loop["self"] = loop
      const reason = yield* reasonOf(run([
        resource("a", { input, load: () => Effect.succeed({ size: 1.5, tags: ["ok", 7] }) }),
        resource("b", { load: () => Effect.succeed({ when: new Date(0), f: () => 1, n: NaN, deep: [1n, undefined] }) }),
        resource("c", { load: () => Effect.succeed(loop) }),
        resource("d", { load: () => Effect.succeed({ pw: Redacted.make("planted") }) }),
        resource("e", { load: () => Effect.void }),
        resource("a"),
        resource("fine", { load: () => Effect.succeed({ left: undefined, list: [null] }) })
      ]))
      assert.strictEqual(reason._tag, "InputInvalid")
      if (reason._tag !== "InputInvalid") return
      assert.deepStrictEqual(reason.faults.map((fault) => fault.replace(/(\["self"\])+.*/, `["self"]…`)), [
        "a: more than one resource has this name",
        `a: Expected an integer, at ["size"]`,
        `a: Expected string, at ["tags"][1]`,
        `b: a value of Date is not JSON, at ["when"]`,
        `b: function is not JSON, at ["f"]`,
        `b: NaN is not JSON, at ["n"]`,
        `b: bigint is not JSON, at ["deep"][0]`,
        `b: undefined is not JSON, at ["deep"][1]`,
        `c: it is nested deeper than 64 levels, or in itself, at ["self"]…`,
        `d: a value of Redacted is not JSON, at ["pw"]`,
        "e: undefined is not JSON"
      ])
      assert.notMatch(inspect(reason, { depth: 9 }), /planted/)
      assert.deepStrictEqual(requests, [])
    }))

  it.effect("sends what the schema encodes", () =>
    Effect.gen(function*() {
      const input = Schema.Struct({ size: Schema.FiniteFromString, password: Schema.RedactedFromValue(Schema.String) })
      const { requests, run } = scripted({ db: [ready()] })
      yield* run([resource("db", { input, load: () => Effect.succeed({ size: 3, password: Redacted.make("pw") }) })])
      assert.deepStrictEqual(requests[0]?.config, { size: "3", password: "pw" })
    }))

  it.effect("__proto__ and its like are data: they arrive, and touch no prototype", () =>
    Effect.gen(function*() {
      const text = `{"__proto__":{"polluted":true},"constructor":{"prototype":{"polluted":true}},"toString":1}`
      const { requests, run } = scripted({ db: [ready()] })
      yield* run([
        resource("db", { load: () => Effect.succeed(JSON.parse(text)) }),
        resource("own", { kind: "custom", output: Schema.Unknown, load: () => Effect.succeed(JSON.parse(text)) })
      ])
      assert.strictEqual(JSON.stringify(requests[0]?.config), text)
      assert.strictEqual(Object.getPrototypeOf(requests[0]?.config), Object.prototype)
      assert.notProperty({}, "polluted")
    }))

  it.effect("bounds what is sent: no small value that unfolds to a large one", () =>
    Effect.gen(function*() {
      let value: unknown = "ha"
      for (let level = 0; level < 40; level++) value = [value, value]
      const { run } = scripted({})
      const reason = yield* reasonOf(run([resource("db", { load: () => Effect.succeed(value) })]))
      assert.strictEqual(reason._tag, "InputInvalid")
      assert.match(inspect(reason), /there are more than 100000 values/)
    }))

  it.effect("what looks like a request stays with its custom resource", () =>
    Effect.gen(function*() {
      const { requests, run } = scripted({}, { A: "planted" })
      const inputs = [
        { type: "mything", config: 5 },
        { type: "container", config: null, z: 1 },
        ["secrets", 1],
        { type: "secrets", config: null }
      ]
      for (const input of inputs) {
        const own = resource("own", {
          kind: "custom",
          type: "secrets",
          output: Schema.Unknown,
          load: () => Effect.succeed(input)
        })
        const outputs = yield* run([own])
        assert.deepStrictEqual(yield* Effect.provide(own.get, outputs), input)
      }
      assert.deepStrictEqual(requests, [])
    }))

  it.effect("a custom resource that cannot be decoded is told with the other faults, before anything is asked for", () =>
    Effect.gen(function*() {
      const { requests, run } = scripted({ db: [ready()] })
      const settings = Custom.make("settings", {
        schema: Schema.Struct({ every: Schema.DurationFromString, size: Schema.FiniteFromString }),
        load: () => Effect.succeed({ every: "often", size: "two" })
      })
      const reason = yield* reasonOf(run([resource("db", { load: () => Effect.succeed(undefined) }), settings]))
      assert(reason._tag === "InputInvalid")
      assert.deepStrictEqual(reason.faults.map((fault) => fault.replace(/: .*, at /, " at ")), [
        "db: undefined is not JSON",
        "settings at [\"every\"]",
        "settings at [\"size\"]"
      ])
      assert.deepStrictEqual(requests, [])
    }))

  it.effect("faults of a custom resource that are on the encoded side are told with those of its decoding, each once", () =>
    Effect.gen(function*() {
      const { run } = scripted({})
      const settings = Custom.make("settings", {
        schema: Schema.Struct({ sender: Schema.NonEmptyString, every: Schema.DurationFromString }),
        load: () => Effect.succeed({ sender: "", every: "often" })
      })
      const reason = yield* reasonOf(run([settings]))
      assert(reason._tag === "InputInvalid")
      assert.deepStrictEqual(reason.faults.map((fault) => fault.replace(/: .*, at /, " at ")), [
        "settings at [\"sender\"]",
        "settings at [\"every\"]"
      ])
    }))

  it.prop("JSON is what comes out of JSON.parse", [Schema.Json], ([value]) => {
    const { faults, json } = copy(value)
    assert.deepStrictEqual(faults, [])
    assert.strictEqual(JSON.stringify(json), JSON.stringify(value))
  })

  it.prop(
    "one bad leaf anywhere is one fault, at its place",
    [
      Arbitrary.array(
        Arbitrary.schema(Schema.Union([Schema.String, Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 3 }))])),
        { maxLength: 20 }
      ),
      Arbitrary.schema(Schema.Literals(["undefined", "NaN", "date"]))
    ],
    ([path, kind]) => {
      const bad = { undefined: [undefined], NaN: NaN, date: new Date(0) }[kind]
      const value = path.reduceRight<unknown>(
        (inner, key) =>
          typeof key === "number"
            ? [...Array.from({ length: key }, () => 1), inner]
            : Object.fromEntries([["fine", "x"], [key, inner]]),
        bad
      )
      const { faults } = copy(value)
      assert.deepStrictEqual(faults.map((fault) => fault.path), [kind === "undefined" ? [...path, 0] : path])
    }
  )
})

describe("provisioning", () => {
  it.effect("asks again after 2 s, 2 s, then ever later, at most every 10 s, with the same request", () =>
    Effect.gen(function*() {
      const wait = (state: string) => ({ state })
      const { events, requests, run } = scripted({
        db: [wait("authorizing"), ...Array.from({ length: 8 }, () => wait("provisioning")), ready()]
      })
      const fiber = yield* after("10 minutes", run([resource("db", { load: () => Effect.succeed({ a: [1] }) })]))
      assert.isTrue(Exit.isSuccess(yield* Fiber.await(fiber)))
      const waits = requests.slice(1).map(({ at }, index) => at - (requests[index]?.at ?? 0))
      assert.deepStrictEqual(waits.slice(0, 4), [2_000, 2_000, 3_000, 4_500])
      assert.deepStrictEqual(waits.slice(-3), [10_000, 10_000, 10_000])
      assert.strictEqual(new Set(requests.map(({ config }) => JSON.stringify(config))).size, 1)
      assert.deepStrictEqual(
        events.map((event) => event._tag === "Provisioning" ? [event.attempt, event.state] : []).slice(0, 3),
        [[1, undefined], [2, "authorizing"], [3, "provisioning"]]
      )
      assert.lengthOf(events, requests.length)
    }))

  it.effect("tells once what it starts, and every 15 s what it waits for", () =>
    Effect.gen(function*() {
      const { run } = scripted({ db: [{ state: "provisioning" }], slow: Effect.never })
      const fiber = yield* after("46 seconds", run([resource("db"), resource("slow")]))
      const lines = yield* infoLines
      yield* Fiber.interrupt(fiber)
      const about = (name: string) => lines.filter((line) => line.includes(`type::${name}`))
      assert.lengthOf(about("db"), 4)
      assert.match(about("db")[0] ?? "", /Provisioning db \(type::db\)/)
      assert.match(
        about("db")[1] ?? "",
        /Still provisioning db \(type::db\) after 15s: "provisioning" after \d requests/
      )
      assert.match(about("slow")[3] ?? "", /Still provisioning slow \(type::slow\) after 45s: no answer yet/)
    }))

  it.effect("gives up at the start timeout, naming the resource and how far it was", () =>
    Effect.gen(function*() {
      for (
        const [script, how] of [
          [[{ state: "authorizing" }], /^not ready within 10m: "authorizing" after \d+ requests$/],
          [Effect.never, /^not ready within 10m: no answer yet$/]
        ] as const
      ) {
        const { run } = scripted({ db: script })
        const fiber = yield* after("10 minutes", reasonOf(run([resource("db")])))
        const reason = yield* Fiber.join(fiber)
        assert.deepInclude(reason, { _tag: "ProvisionFailed", resource: "db" })
        if (reason._tag === "ProvisionFailed") assert.match(reason.why, how)
      }
    }))

  it.effect("has independent resources made at the same time", () =>
    Effect.gen(function*() {
      const minute = Effect.as(Effect.sleep("1 minute"), ready())
      const names = Array.from({ length: 20 }, (_, index) => `r${index}`)
      const { requests, run } = scripted(Object.fromEntries(names.map((name) => [name, minute])))
      const fiber = yield* after("1 minute", run(names.map((name) => resource(name))))
      assert.isTrue(Exit.isSuccess(yield* Fiber.await(fiber)))
      assert.deepStrictEqual(new Set(requests.map(({ at }) => at)), new Set([0]))
    }))

  it.effect.each<[what: string, state: string]>([
    ["failed", "failed"],
    ["deleting", "deleting"],
    ["deleted", "deleted"],
    ["unknown", "weird"],
    ["in another case", "Ready"],
    ["empty", ""],
    ["long and wild", "\u001b[2J\nlong".padEnd(10_000, "x")]
  ])(
    "a state that is %s is final, and told",
    ([, state]) =>
      Effect.gen(function*() {
        const { requests, run } = scripted({ db: [{ state: "provisioning" }, { state }] })
        const reason = yield* Fiber.join(yield* after("2 seconds", reasonOf(run([resource("db")]))))
        assert.deepInclude(reason, { _tag: "BadResourceState", resource: "db", type: "type::db" })
        if (reason._tag !== "BadResourceState") return
        assert.isBelow(reason.state.length, 100)
        assert.notMatch(reason.state, /\p{Cc}/u)
        if (state.length < 64) assert.strictEqual(reason.state, state)
        assert.lengthOf(requests, 2)
      })
  )

  it.effect("a request that fails ends the phase; the others are given up", () =>
    Effect.gen(function*() {
      const interrupted = yield* Deferred.make<void>()
      const { run } = scripted({
        slow: Effect.onInterrupt(Effect.never, () => Deferred.succeed(interrupted, undefined)),
        db: Effect.delay(
          new Provisioner.ProvisionerError({ message: "403 Forbidden\nMessage: denied", cause: new Error("root") }),
          "1 second"
        )
      })
      const error = yield* Fiber.join(yield* after("1 second", Effect.flip(run([resource("slow"), resource("db")]))))
      assert.deepInclude(error.reason, {
        _tag: "ProvisionFailed",
        resource: "db",
        why: "403 Forbidden\nMessage: denied"
      })
      assert.match(explain(error), /denied\n {2}caused by: root$/)
      yield* Deferred.await(interrupted)
    }))

  it.effect("what a provisioner holds for a resource ends with the scope, not with the phase", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const { run } = scripted({
        db: Effect.acquireRelease(
          Effect.sync(() => (log.push("up"), ready())),
          () => Effect.sync(() => void log.push("down"))
        )
      })
      const scope = yield* Scope.make()
      yield* run([resource("db")]).pipe(Scope.provide(scope))
      assert.deepStrictEqual(log, ["up"])
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(log, ["up", "down"])
    }))

  it.effect("can be interrupted at any time", () =>
    Effect.gen(function*() {
      const { run } = scripted({ db: [{ state: "provisioning" }], slow: Effect.never })
      const fiber = yield* after("61 seconds", run([resource("db"), resource("slow")]))
      yield* Fiber.interrupt(fiber)
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
    }))

  const Script = Schema.Array(Schema.Literals(["authorizing", "provisioning"])).check(Schema.isMaxLength(12))
  const End = Schema.Literals(["ready", "failed", "deleted", "Ready"])

  it.effect.prop(
    "each resource is asked for once per answer, and the first bad state decides",
    { resources: Schema.Array(Schema.Struct({ wait: Script, end: End })).check(Schema.isMaxLength(6)) },
    ({ resources }) =>
      Effect.gen(function*() {
        const start = yield* Clock.currentTimeMillis
        const all = resources.map(({ end, wait }, index) => ({ name: `r${index}`, states: [...wait, end] }))
        const { requests, run } = scripted(
          Object.fromEntries(all.map(({ name, states }) => [name, states.map((state) => ({ state, output: name }))]))
        )
        const parts = all.map(({ name }) => resource(name))
        const exit = yield* Fiber.await(yield* after("9 minutes", run(parts)))
        const bad = all.filter(({ states }) => states.at(-1) !== "ready")
        assert.strictEqual(Exit.isSuccess(exit), bad.length === 0)
        const asked = (name: string) => requests.filter((request) => request.name === name)
        if (Exit.isSuccess(exit)) {
          for (const { name, states } of all) assert.lengthOf(asked(name), states.length)
          for (const part of parts) assert.strictEqual(Context.getUnsafe(exit.value, part.key), part.name)
          return
        }
        // Whoever has the fewest answers before its bad one is first to say so.
        const fewest = Math.min(...bad.map(({ states }) => states.length))
        const error = yield* Effect.flip(exit)
        assert.strictEqual(error.reason._tag, "BadResourceState")
        assert.include(
          bad.filter(({ states }) => states.length === fewest).map(({ name }) => name),
          error.reason._tag === "BadResourceState" ? error.reason.resource : ""
        )
        for (const { name } of all) {
          assert.isAtMost(asked(name).length, fewest)
          assert.isTrue(asked(name).every(({ at }) => at >= start))
        }
      }),
    { arbitrary: { runs: 60 } }
  )
})

describe("decoding", () => {
  it.effect("names all that does not fit, by place and without values", () =>
    Effect.gen(function*() {
      const { run } = scripted({
        a: [ready({ port: 5432, password: "planted" })],
        b: [ready(null)],
        ok: [ready("fine")]
      })
      const output = Schema.Struct({ port: Schema.String, password: Schema.Int })
      const error = yield* Effect.flip(run([resource("a", { output }), resource("b", { output }), resource("ok")]))
      assert.deepInclude(error.reason, { _tag: "InitFailed", part: "a, b" })
      assert.match(
        error.message,
        /the output of a cannot be used: .*, at \["port"\]; .*, at \["password"\]; the output of b/
      )
      assert.notMatch(inspect(error, { depth: 9 }), /planted/)
    }))
})

describe("types", () => {
  it("the context holds the outputs of the resources, and no others", () => {
    const { run } = scripted({})
    const db = resource("db")
    const cache = resource("cache")
    const both = Effect.flatMap(run([db, cache]), (outputs) => Effect.provide(Effect.all([db.get, cache.get]), outputs))
    const typed: Effect.Effect<ReadonlyArray<string>, ServiceError, Scope.Scope> = both
    const lacking = Effect.flatMap(run([db]), (outputs) => Effect.provide(cache.get, outputs))
    const needs: Effect.Effect<string, ServiceError, Scope.Scope | Resource.Provisioned<"cache">> = lacking
    assert.isTrue(Effect.isEffect(typed) && Effect.isEffect(needs))
  })
})
