import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import * as Schedule from "effect/Schedule"
import * as TestClock from "effect/testing/TestClock"
import * as Tracer from "effect/Tracer"
import { inspect } from "node:util"
import * as HttpProvisioner from "../../src/service/HttpProvisioner.ts"
import type { ProvisionerError } from "../../src/service/Provisioner.ts"
import { explain } from "../../src/service/ServiceError.ts"
import * as Sidecar from "../../src/service/Sidecar.ts"
import * as FakeRuntimeApi from "../../src/testing/FakeRuntimeApi.ts"

const { Fault } = FakeRuntimeApi

const quick: HttpProvisioner.Retry = { wait: "1 millis" }

/** A provisioner and the API that it talks to, over a real socket and a real clock. */
const connect = (
  api: FakeRuntimeApi.Options = {},
  options: Partial<HttpProvisioner.Options> = {},
  client: Layer.Layer<HttpClient.HttpClient> = NodeHttpClient.layerUndici
) =>
  Effect.gen(function*() {
    const fake = yield* FakeRuntimeApi.make(api)
    const provisioner = yield* HttpProvisioner.make({
      api: fake.url,
      apiKey: Option.fromUndefinedOr(api.apiKey).pipe(Option.map((key) => Redacted.make(key))),
      projectId: api.projectId ?? "proj_X",
      retry: quick,
      ...options
    }).pipe(Effect.provide(yield* Layer.build(client)))
    return { fake, provisioner }
  })

/** What is said when the secrets cannot be had. */
const failing = (
  api: FakeRuntimeApi.Options,
  options?: Partial<HttpProvisioner.Options>,
  client?: Layer.Layer<HttpClient.HttpClient>
) =>
  Effect.gen(function*() {
    const { fake, provisioner } = yield* connect(api, options, client)
    const error = yield* Effect.flip(provisioner.secrets)
    const requests = yield* fake.received
    return {
      error,
      message: error.message,
      requests,
      fake,
      place: `GET ${fake.url.origin}/projects/proj_X/resources/secrets`
    }
  })

const values = (secrets: ReadonlyMap<string, Redacted.Redacted>) =>
  Array.from(secrets, ([name, value]) => [name, Redacted.value(value)])

const times = <A>(count: number, value: A): ReadonlyArray<A> => Array.from({ length: count }, () => value)

/** Polls in real time until something holds. */
const until = <A>(look: Effect.Effect<A>, holds: (value: A) => boolean): Effect.Effect<A> =>
  Effect.filterOrFail(look, holds).pipe(
    Effect.retry(Schedule.spaced("2 millis")),
    Effect.timeout("10 seconds"),
    Effect.orDie
  )

const db = { name: "db", type: "database::shared::postgres", config: { db_name: null, local_uri: null } }

describe("what goes over the wire", () => {
  it.live("secrets come sorted, redacted, with whatever name and size", () =>
    Effect.gen(function*() {
      const large = "x".repeat(1024 * 1024)
      const secrets = { b: "2", a: "", ["__proto__"]: "p", constructor: "c", "ключ 🔑\n": "ü", large }
      const { provisioner } = yield* connect({ secrets })
      const map = yield* provisioner.secrets
      assert.deepStrictEqual(values(map), [
        ["__proto__", "p"],
        ["a", ""],
        ["b", "2"],
        ["constructor", "c"],
        ["large", large],
        ["ключ 🔑\n", "ü"]
      ])
      assert.notInclude(inspect(map, { depth: 9 }), large)
      assert.notInclude(JSON.stringify([...map]), large)
    }))

  it.live("a resource is asked for as the API wants it, and the key is a bearer token", () =>
    Effect.gen(function*() {
      const { fake, provisioner } = yield* connect({
        apiKey: "k3y",
        resources: { [db.type]: [{ state: "provisioning" }, { state: "ready", output: "postgres://x" }] }
      })
      assert.strictEqual((yield* Effect.scoped(provisioner.request(db))).state, "provisioning")
      const answer = yield* Effect.scoped(provisioner.request(db))
      assert.deepInclude(answer, { type: db.type, state: "ready", output: "postgres://x" })
      const [first, second] = yield* fake.received
      assert.isDefined(first)
      assert.strictEqual(first.method, "POST")
      assert.strictEqual(first.path, "/projects/proj_X/resources")
      assert.strictEqual(first.headers["authorization"], "Bearer k3y")
      assert.strictEqual(first.headers["content-type"], "application/json")
      assert.strictEqual(
        first.body,
        `{"type":"database::shared::postgres","config":{"db_name":null,"local_uri":null}}`
      )
      assert.strictEqual(second?.body, first.body)
    }))

  it.live("without a key there is no such header", () =>
    Effect.gen(function*() {
      const { fake, provisioner } = yield* connect()
      yield* provisioner.secrets
      assert.notProperty((yield* fake.received)[0]?.headers ?? {}, "authorization")
    }))

  it.live.each(["a b/../c", "a?b#c", "%2e%2e", "näme", "..\\..", "a//b", "😀", ":projectId", "..."])(
    "the project id %s is escaped",
    (projectId) =>
      Effect.gen(function*() {
        const { fake, provisioner } = yield* connect({ projectId, secrets: { A: "1" } })
        assert.deepStrictEqual(values(yield* provisioner.secrets), [["A", "1"]])
        assert.deepStrictEqual((yield* fake.received).map(({ path }) => path), [
          `/projects/${encodeURIComponent(projectId)}/resources/secrets`
        ])
      })
  )

  it.live.each(["", "/", "/prefix", "/prefix//"])(
    "the path %s of the API is a prefix",
    (path) =>
      Effect.gen(function*() {
        const { fake } = yield* connect()
        const provisioner = yield* HttpProvisioner.make({
          api: new URL(path, fake.url),
          apiKey: Option.none(),
          projectId: "p"
        }).pipe(Effect.provide(yield* Layer.build(NodeHttpClient.layerUndici)))
        yield* Effect.exit(provisioner.secrets)
        assert.strictEqual(
          (yield* fake.received)[0]?.path,
          `${path.replace(/\/+$/, "")}/projects/p/resources/secrets`
        )
      })
  )
})

describe("options that make every request impossible", () => {
  const options = { api: new URL("http://127.0.0.1:1"), apiKey: Option.none(), projectId: "p" }

  it.live.each<[what: string, wrong: Partial<HttpProvisioner.Options>, said: RegExp]>([
    ["another protocol", { api: new URL("ftp://host/x") }, /^the API ftp:\/\/host\/x has to begin with http/],
    ["a query", { api: new URL("http://host/x?token=hidden") }, /^the API http:\/\/host\/x has a query/],
    ["a password", { api: new URL("http://u:hidden@host/x") }, /^the API http:\/\/host\/x has a user or a password/],
    ["no project id", { projectId: "" }, /project id is empty/],
    [".", { projectId: "." }, /project id "\." cannot be part of a path/],
    ["..", { projectId: ".." }, /project id "\.\." cannot be part of a path/],
    ["a lone surrogate", { projectId: "\ud800" }, /not well-formed/],
    ["an empty key", { apiKey: Option.some(Redacted.make("")) }, /API key is empty: leave it out/],
    ["a key with a line break", { apiKey: Option.some(Redacted.make("hidden\n")) }, /U\+000A at position 7/],
    ["a key with a space", { apiKey: Option.some(Redacted.make("hid den")) }, /U\+0020 at position 4/],
    ["a key that is not ASCII", { apiKey: Option.some(Redacted.make("hidden🔑")) }, /U\+1F511 at position 7/]
  ])("%s", ([, wrong, said]) =>
    Effect.gen(function*() {
      const client = HttpClient.make(() => Effect.die("nothing may be sent"))
      const provisioner = yield* HttpProvisioner.make({ ...options, ...wrong }).pipe(
        Effect.provideService(HttpClient.HttpClient, client)
      )
      for (const request of [provisioner.secrets, Effect.scoped(provisioner.request(db))]) {
        const { message } = yield* Effect.flip<unknown, { readonly message: string }, never>(request)
        assert.match(message, said)
        assert.notMatch(message, /hid/)
      }
    }))

  it("several at once, and none for what is right", () => {
    assert.lengthOf(HttpProvisioner.check({ ...options, api: new URL("ftp://u@x?y"), projectId: "" }), 4)
    assert.deepStrictEqual(HttpProvisioner.check(options), [])
    assert.deepStrictEqual(HttpProvisioner.check({ ...options, apiKey: Option.some(Redacted.make("k3y-_.~+/=")) }), [])
  })
})

describe("an API that says no", () => {
  it.live.each<[what: string, fault: FakeRuntimeApi.Fault, first: string, rest: string]>([
    [
      "in its own words",
      FakeRuntimeApi.failure(404, "project not found"),
      "404 Not Found",
      "\nMessage: project not found"
    ],
    [
      "with another status inside",
      Fault.Respond({ status: 404, body: `{"message":"m","status_code":503}` }),
      "503 Service Unavailable (HTTP status 404)",
      "\nMessage: m"
    ],
    [
      "with a status that nobody knows",
      Fault.Respond({ status: 400, body: `{"message":"m","status_code":999}` }),
      "999 <unknown status code> (HTTP status 400)",
      "\nMessage: m"
    ],
    [
      "with a status that is none",
      Fault.Respond({ status: 400, body: `{"message":"m","status_code":42}` }),
      "Unknown (HTTP status 400)",
      "\nMessage: m"
    ],
    [
      "in other words",
      Fault.Respond({ status: 403, body: "oops\nline2" }),
      "403 Forbidden",
      "\nMessage: the error response cannot be parsed:\noops\nline2"
    ],
    [
      "in bytes",
      Fault.Respond({ status: 403, body: Uint8Array.of(0xff, 0xfe, 0x00) }),
      "403 Forbidden",
      "\nMessage: the error response cannot be parsed:\n[3 bytes]"
    ]
  ])("%s", ([, fault, first, rest]) =>
    Effect.gen(function*() {
      const { message, place, requests } = yield* failing({ faults: [fault] })
      assert.strictEqual(message, `${first} (${place})${rest}`)
      assert.lengthOf(requests, 1)
    }))

  it.live("what it says is bounded, and steers no terminal", () =>
    Effect.gen(function*() {
      const { message } = yield* failing({
        faults: [Fault.Respond({ status: 400, body: `\u001b[2J\u0007${"x".repeat(100_000)}` })]
      })
      assert.isBelow(message.length, 2_100)
      assert.notMatch(message, /(?!\n)\p{Cc}/u)
    }))

  it.live("what it repeats of the key and the secrets is not shown", () =>
    Effect.gen(function*() {
      const { fake, provisioner } = yield* connect({
        apiKey: "planted-key",
        secrets: { A: "planted-a", B: `planted"b` }
      })
      yield* provisioner.secrets
      yield* fake.next(FakeRuntimeApi.failure(400, `you sent planted-key, planted-a, planted"b and planted-a-longer`))
      const error = yield* Effect.flip(Effect.scoped(provisioner.request(db)))
      assert.match(error.message, /you sent <redacted>, <redacted>, <redacted> and <redacted>-longer$/)
      yield* fake.next(Fault.Respond({ status: 400, body: JSON.stringify(`planted"b`) }))
      assert.notMatch(inspect(yield* Effect.flip(Effect.scoped(provisioner.request(db))), { depth: 9 }), /planted/)
    }))
})

describe("secrets", () => {
  it.live("are in no log line, span or error, whatever goes wrong", () => {
    const told: Array<unknown> = []
    const logger = Logger.make((entry) => told.push(entry.message, entry.cause))
    return Effect.gen(function*() {
      const spans: Array<Tracer.NativeSpan> = []
      const tracer = Tracer.make({
        span: (options) => {
          const span = new Tracer.NativeSpan(options)
          spans.push(span)
          return span
        }
      })
      const resource = { ...db, config: { password: "planted-secret" } }
      const wrong = [
        Fault.None(),
        Fault.Reset(),
        Fault.Truncate({ after: 70 }),
        FakeRuntimeApi.failure(503, "planted-secret and planted-key"),
        FakeRuntimeApi.failure(400, "planted-secret and planted-key"),
        Fault.Respond({ status: 400, body: `{"planted-secret` }),
        Fault.Respond({ status: 200, body: `{"planted-secret` }),
        Fault.Respond({ status: 200, body: `{"output":"planted-secret"}` }),
        FakeRuntimeApi.redirect(302, "http://other/?key=planted-key")
      ]
      for (const fault of wrong) {
        for (const which of ["secrets", "request"] as const) {
          const { provisioner } = yield* connect({
            apiKey: "planted-key",
            secrets: { A: "planted-secret" },
            faults: [Fault.None(), ...times(5, fault)]
          })
          const ask: Effect.Effect<unknown, ProvisionerError> = which === "secrets"
            ? provisioner.secrets
            : Effect.scoped(provisioner.request(resource))
          const exit = yield* Effect.exit(Effect.andThen(provisioner.secrets, ask)).pipe(Effect.withTracer(tracer))
          assert.strictEqual(Exit.isSuccess(exit), fault._tag === "None", fault._tag)
          // What a request is answered with is for its caller.
          if (Exit.isFailure(exit)) told.push(exit, explain(exit.cause))
        }
      }
      // A span that went well holds what it gave, but no exporter sends that.
      for (const { attributes, events, name, status } of spans) {
        told.push(name, attributes, events)
        if (status._tag === "Ended" && Exit.isFailure(status.exit)) told.push(status.exit)
      }
      assert.isAbove(told.length, 100)
      const text = told.map((one) => inspect(one, { depth: 12 })).join("\n")
      assert.notMatch(text, /planted/)
      assert.match(text, /<redacted>/)
      assert.match(text, /trying again/)
      assert.match(text, /url\.full/)
    }).pipe(Effect.provide(Logger.layer([logger])), Effect.provideService(References.MinimumLogLevel, "Trace"))
  })
})

describe("an API that talks nonsense", () => {
  it.live.each<[what: string, body: string | Uint8Array, said: RegExp]>([
    ["not JSON", "planted", /^the answer \(status 200, 7 bytes\) is not JSON/],
    ["nothing", "", /^the answer \(status 200, 0 bytes\) is not JSON/],
    ["not UTF-8", Uint8Array.of(0xff, 0xfe), /^the answer \(status 200, 2 bytes\) is not UTF-8/],
    ["a missing key", `{"type":"secrets","state":"ready","config":"planted"}`, /not what the API promises[^]*"output"/],
    ["a state that is a number", `{"type":"secrets","state":5,"config":null,"output":{}}`, /"state"/],
    ["null", "null", /not what the API promises/],
    ["a short array", `["planted"]`, /not what the API promises/],
    ["no map", `{"type":"","state":"","config":null,"output":null}`, /^the map of secrets is not what/],
    ["a list", `{"type":"","state":"","config":null,"output":["planted"]}`, /^the map of secrets is not what/],
    [
      "secrets that are not strings",
      `{"type":"","state":"","config":null,"output":{"A":1,"B":"planted","C":null}}`,
      /^the map of secrets is not what[^]*\["A"\][^]*\["C"\]/
    ]
  ])("%s", ([, body, said]) =>
    Effect.gen(function*() {
      const { error, message, requests } = yield* failing({ faults: [Fault.Respond({ status: 200, body })] })
      assert.match(message, said)
      assert.notMatch(inspect(error, { depth: 9 }), /planted/)
      assert.lengthOf(requests, 1, "an answer, however wrong, is not asked for again")
    }))

  it.live.each([
    `{"type":"qqq","state":"failed","config":null,"output":{"A":"1"},"extra":[1]}`,
    `["secrets","ready",null,{"A":"1"}]`
  ])("%s is understood", (body) =>
    Effect.gen(function*() {
      const { provisioner } = yield* connect({ faults: [Fault.Respond({ status: 200, body })] })
      assert.deepStrictEqual(values(yield* provisioner.secrets), [["A", "1"]])
    }))
})

describe("an API that misbehaves", () => {
  it.live("refuses: tried again, then told", () =>
    Effect.gen(function*() {
      const { fake, provisioner } = yield* connect({}, { retry: { ...quick, times: 2 } })
      yield* fake.refuse
      const error = yield* Effect.flip(provisioner.secrets)
      assert.match(
        error.message,
        /^no answer: connect ECONNREFUSED 127\.0\.0\.1:\d+ \(GET http:.*secrets, 3 attempts\)$/
      )
      assert.match(explain(error), /ECONNREFUSED/)
    }))

  it.live("hangs once: cut, and tried again", () =>
    Effect.gen(function*() {
      const { fake, provisioner } = yield* connect(
        { faults: [Fault.Hang(), Fault.Trickle({ every: "1 second" })], secrets: { A: "1" } },
        { attemptTimeout: "150 millis", retry: quick }
      )
      assert.deepStrictEqual(values(yield* provisioner.secrets), [["A", "1"]])
      assert.lengthOf(yield* fake.received, 3)
    }))

  it.effect("hangs for ever: tried five times within the minute, and no later", () =>
    Effect.gen(function*() {
      let requests = 0
      const client = HttpClient.make(() => {
        requests++
        return Effect.never
      })
      const provisioner = yield* HttpProvisioner.make({
        api: new URL("http://127.0.0.1:1"),
        apiKey: Option.none(),
        projectId: "proj_X"
      }).pipe(Effect.provideService(HttpClient.HttpClient, client))
      const fiber = yield* Effect.forkChild(Effect.flip(provisioner.secrets), { startImmediately: true })
      yield* TestClock.adjust("1 minute")
      const { message } = yield* Fiber.join(fiber)
      assert.match(
        message,
        /^no good answer within 1m \(.*, 3 attempts\)\nThe last one was: no complete answer within 24s/
      )
      assert.strictEqual(requests, 3)
    }))

  it.live("hangs: given up at the deadline, which is one for all attempts", () =>
    Effect.gen(function*() {
      const { fake, message, place, requests } = yield* failing(
        { faults: [FakeRuntimeApi.failure(503, "not now"), Fault.Hang(), Fault.Hang()] },
        { timeout: "150 millis" }
      )
      assert.strictEqual(
        message,
        `no good answer within 150ms (${place}, 2 attempts)\n` +
          `The last one was: 503 Service Unavailable (${place})\nMessage: not now`
      )
      assert.lengthOf(requests, 2)
      yield* until(fake.connections, (open) => open === 0)
    }))

  it.live("is slow but in time", () =>
    Effect.gen(function*() {
      const { fake, provisioner } = yield* connect({ faults: [Fault.Slow({ by: "100 millis" })], secrets: { A: "1" } })
      assert.strictEqual((yield* provisioner.secrets).size, 1)
      assert.lengthOf(yield* fake.received, 1)
    }))

  it.live("sends byte by byte, in time", () =>
    Effect.gen(function*() {
      const { provisioner } = yield* connect({ faults: [Fault.Trickle({ every: "0 millis" })], secrets: { A: "🔑" } })
      assert.deepStrictEqual(values(yield* provisioner.secrets), [["A", "🔑"]])
    }))

  it.live("sends byte by byte for ever: the deadline holds for the body as well", () =>
    Effect.gen(function*() {
      const { fake, message } = yield* failing(
        { faults: [Fault.Trickle({ every: "40 millis" })], secrets: { A: "x".repeat(1_000) } },
        { timeout: "200 millis" }
      )
      assert.match(message, /^no good answer within 200ms/)
      yield* until(fake.connections, (open) => open === 0)
    }))

  it.live("breaks off in the middle: tried again", () =>
    Effect.gen(function*() {
      const { fake, provisioner } = yield* connect({ faults: [Fault.Truncate({ after: 10 })], secrets: { A: "1" } })
      assert.deepStrictEqual(values(yield* provisioner.secrets), [["A", "1"]])
      assert.lengthOf(yield* fake.received, 2)
    }))

  it.live("always breaks off in the middle: told", () =>
    Effect.gen(function*() {
      const { message } = yield* failing({ faults: times(5, Fault.Truncate({ after: 10 })) })
      assert.match(message, /^the connection broke off in the middle of the answer.* \(GET .*, 5 attempts\)$/)
    }))

  it.live("cuts the connection: tried again", () =>
    Effect.gen(function*() {
      const { fake, provisioner } = yield* connect({ faults: [Fault.Reset(), Fault.Reset()] })
      yield* provisioner.secrets
      assert.lengthOf(yield* fake.received, 3)
    }))

  it.live.each<[what: string, fault: FakeRuntimeApi.Fault]>([
    ["without telling its length", Fault.Huge({ bytes: 1024 * 1024 * 1024 })],
    ["telling its length", Fault.Respond({ status: 200, body: " ".repeat(100_000) })],
    ["as an error", Fault.Respond({ status: 500, body: " ".repeat(100_000) })]
  ])("floods, %s: not read", ([, fault]) =>
    Effect.gen(function*() {
      const { fake, message, requests } = yield* failing({ faults: [fault] }, { maxBytes: 50_000 })
      assert.match(message, /^the answer is larger than 50000 bytes/)
      assert.lengthOf(requests, 1)
      yield* until(fake.connections, (open) => open === 0)
    }))

  it.live("leaves nothing open when it is no longer waited for", () =>
    Effect.gen(function*() {
      const { fake, provisioner } = yield* connect({ faults: [Fault.Hang()] })
      const asking = yield* Effect.forkChild(provisioner.secrets, { startImmediately: true })
      yield* until(fake.received, (requests) => requests.length === 1)
      yield* Fiber.interrupt(asking)
      yield* until(fake.connections, (open) => open === 0)
    }))
})

describe.each([
  ["undici", NodeHttpClient.layerUndici],
  ["node:http", NodeHttpClient.layerNodeHttp],
  ["fetch", FetchHttpClient.layer]
])("over %s", (_, client) => {
  it.live("no content is no answer", () =>
    Effect.gen(function*() {
      const { message, requests } = yield* failing({ faults: [Fault.Respond({ status: 204 })] }, {}, client)
      assert.match(message, /^the answer \(status 204, 0 bytes\) is not JSON/)
      assert.lengthOf(requests, 1)
    }))

  it.live("what breaks off is tried again, what floods or hangs is cut", () =>
    Effect.gen(function*() {
      const { fake, provisioner } = yield* connect(
        { faults: [Fault.Reset(), Fault.Truncate({ after: 10 })] },
        { maxBytes: 10_000, timeout: "1 second" },
        client
      )
      yield* provisioner.secrets
      assert.lengthOf(yield* fake.received, 3)
      yield* fake.next(Fault.Huge({ bytes: 1024 * 1024 * 1024 }), Fault.Hang())
      assert.match((yield* Effect.flip(provisioner.secrets)).message, /^the answer is larger than 10000 bytes/)
      assert.match((yield* Effect.flip(provisioner.secrets)).message, /^no good answer within 1s/)
      yield* until(fake.connections, (open) => open === 0)
    }))

  it.live("redirects to another server are told, and the key stays", () =>
    Effect.gen(function*() {
      const other = yield* FakeRuntimeApi.make()
      for (const status of [301, 302, 303, 307, 308] as const) {
        const { message, requests } = yield* failing(
          { apiKey: "k3y", faults: [FakeRuntimeApi.redirect(status, `${other.url.origin}/elsewhere`)] },
          {},
          client
        )
        assert.match(message, new RegExp(`^${status}: sent on to ${other.url.origin}/elsewhere, and not followed`))
        assert.match(message, /the URL of the API has to be the final one/)
        assert.lengthOf(requests, 1)
      }
      assert.lengthOf(yield* other.received, 0)
    }))

  it.live("redirects within the server are followed, with the method and the body", () =>
    Effect.gen(function*() {
      const { fake, provisioner } = yield* connect(
        {
          apiKey: "k3y",
          faults: [FakeRuntimeApi.redirect(308, "?again=1&x=%20"), FakeRuntimeApi.redirect(307, "./resources")]
        },
        {},
        client
      )
      assert.strictEqual((yield* Effect.scoped(provisioner.request(db))).state, "ready")
      const requests = yield* fake.received
      assert.deepStrictEqual(requests.map(({ path }) => path), [
        "/projects/proj_X/resources",
        "/projects/proj_X/resources?again=1&x=%20",
        "/projects/proj_X/resources"
      ])
      assert.deepStrictEqual(
        new Set(requests.map(({ body, headers, method }) => JSON.stringify([method, body, headers["authorization"]])))
          .size,
        1
      )
    }))

  it.live("redirects that would turn a POST into a GET, lead nowhere or round in circles are told", () =>
    Effect.gen(function*() {
      const post = yield* connect({ faults: [FakeRuntimeApi.redirect(302, "/")] }, {}, client)
      assert.match((yield* Effect.flip(Effect.scoped(post.provisioner.request(db)))).message, /^302: sent on to \//)
      assert.match(
        (yield* failing({ faults: [Fault.Respond({ status: 302 })] }, {}, client)).message,
        /^302: sent on to nowhere/
      )
      const { message, requests } = yield* failing(
        { faults: times(50, FakeRuntimeApi.redirect(302, "secrets")) },
        {},
        client
      )
      assert.match(message, /^302: sent on to secrets/)
      assert.lengthOf(requests, 6)
    }))
})

describe("trying again", () => {
  it.live.each([429, 500, 502, 503, 504])("after a %i, until it works", (status) =>
    Effect.gen(function*() {
      const { fake, provisioner } = yield* connect({ faults: times(3, FakeRuntimeApi.failure(status, "not now")) })
      yield* Effect.scoped(provisioner.request(db))
      assert.lengthOf(yield* fake.received, 4)
    }))

  it.live("after a 500, so often and no more", () =>
    Effect.gen(function*() {
      const { message, place, requests } = yield* failing({ faults: times(50, FakeRuntimeApi.failure(500, "boom")) })
      assert.strictEqual(message, `500 Internal Server Error (${place}, 5 attempts)\nMessage: boom`)
      assert.lengthOf(requests, 5)
    }))

  it.live.each([400, 401, 403, 404, 408, 409, 422])("never after a %i", (status) =>
    Effect.gen(function*() {
      assert.lengthOf((yield* failing({ faults: [FakeRuntimeApi.failure(status, "no")] })).requests, 1)
    }))

  /** Answers at once; all the time that passes is the test's own. */
  const virtual = (
    statuses: ReadonlyArray<readonly [status: number, retryAfter?: string]>,
    retry: HttpProvisioner.Retry
  ) =>
    Effect.gen(function*() {
      const left = [...statuses]
      const at: Array<number> = []
      const client = HttpClient.make((request) =>
        Effect.map(TestClock.testClockWith((clock) => Effect.sync(() => clock.currentTimeMillisUnsafe())), (now) => {
          at.push(now)
          const [status, retryAfter] = left.shift() ?? [200]
          return HttpClientResponse.fromWeb(
            request,
            new Response(
              JSON.stringify({ type: "", state: "", config: null, output: {}, message: "m", status_code: status }),
              { status, headers: retryAfter === undefined ? {} : { "retry-after": retryAfter } }
            )
          )
        })
      )
      const provisioner = yield* HttpProvisioner.make({
        api: new URL("http://api"),
        apiKey: Option.none(),
        projectId: "p",
        retry
      }).pipe(Effect.provideService(HttpClient.HttpClient, client))
      const asking = yield* Effect.forkChild(Effect.exit(provisioner.secrets), { startImmediately: true })
      yield* TestClock.adjust("10 minutes")
      const exit = yield* Fiber.join(asking)
      return { exit, waits: at.slice(1).map((time, index) => time - (at[index] ?? 0)) }
    })

  it.effect("waits longer each time, never quite the same", () =>
    Effect.gen(function*() {
      for (let round = 0; round < 20; round++) {
        const { exit, waits } = yield* virtual(times(4, [503] as const), {})
        assert.strictEqual(exit._tag, "Success")
        assert.lengthOf(waits, 4)
        for (const [index, wait] of waits.entries()) {
          assert.isAtLeast(wait, 124 * 2 ** index)
          assert.isAtMost(wait, 376 * 2 ** index)
        }
      }
      const seen = yield* Effect.forEach(times(10, 0), () => virtual([[503]], {}))
      assert.isAbove(new Set(seen.map(({ waits }) => waits[0])).size, 1)
    }))

  it.effect("keeps to Retry-After, in seconds or as a date, up to the longest wait", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual((yield* virtual([[429, "7"]], {})).waits, [7_000])
      assert.deepStrictEqual((yield* virtual([[503, "100000"]], {})).waits, [30_000])
      assert.deepStrictEqual((yield* virtual([[503, "9".repeat(400)]], { longest: "2 seconds" })).waits, [2_000])
      yield* TestClock.setTime(Date.UTC(2030, 0, 1))
      assert.deepStrictEqual((yield* virtual([[503, "Tue, 01 Jan 2030 00:00:09 GMT"]], {})).waits, [9_000])
      for (const ignored of ["soon", "-1", "1.5", "Tue, 01 Jan 2019 00:00:09 GMT"]) {
        const [wait = 0] = (yield* virtual([[503, ignored]], {})).waits
        assert.isBelow(wait, 400, ignored)
      }
    }))

  it.effect("ends at the deadline of one minute, whatever Retry-After wishes", () =>
    Effect.gen(function*() {
      const { exit, waits } = yield* virtual(times(50, [429, "1000"] as const), { times: 50 })
      assert.strictEqual(exit._tag, "Failure")
      assert.deepStrictEqual(waits, [30_000])
    }))
})

it.live("each request has attempts of its own", () =>
  Effect.gen(function*() {
    const { fake, provisioner } = yield* connect({ faults: times(10, FakeRuntimeApi.failure(500, "boom")) }, {
      retry: { times: 4, wait: "1 millis" }
    })
    for (const _ of [1, 2]) {
      assert.match((yield* Effect.flip(provisioner.secrets)).message, /, 5 attempts\)/)
    }
    assert.lengthOf(yield* fake.received, 10)
  }))

describe("the sidecar", () => {
  const stop = (url: URL, within?: number) =>
    Sidecar.stop(url, within === undefined ? {} : { within }).pipe(Effect.provide(NodeHttpClient.layerUndici))

  it.live.each(["", "/", "/base/"])("is told to stop, at the path %s", (base) =>
    Effect.gen(function*() {
      const fake = yield* FakeRuntimeApi.make({ faults: [Fault.Respond({ status: 200 })] })
      assert.isTrue(yield* stop(new URL(base, fake.url)))
      assert.deepStrictEqual((yield* fake.received).map(({ method, path }) => [method, path]), [
        ["GET", `${base.replace(/\/$/, "")}/__shuttle/shutdown`]
      ])
    }))

  it.live("may be gone, hang or say no: that is all the same", () =>
    Effect.gen(function*() {
      const fake = yield* FakeRuntimeApi.make({ faults: [Fault.Respond({ status: 500 }), Fault.Reset(), Fault.Hang()] })
      assert.isFalse(yield* stop(fake.url))
      assert.isFalse(yield* stop(fake.url))
      assert.isFalse(yield* stop(fake.url, 50))
      // Not followed, so nobody was told.
      yield* fake.next(FakeRuntimeApi.redirect(302, "http://127.0.0.1:1/"))
      assert.isFalse(yield* stop(fake.url))
      yield* fake.refuse
      assert.isFalse(yield* stop(fake.url))
      assert.lengthOf(yield* fake.received, 4)
    }))

  it.effect("is given two seconds", () =>
    Effect.gen(function*() {
      const silent = HttpClient.make(() => Effect.never)
      const stopping = yield* Sidecar.stop(new URL("http://sidecar")).pipe(
        Effect.provideService(HttpClient.HttpClient, silent),
        Effect.forkChild({ startImmediately: true })
      )
      yield* TestClock.adjust("1999 millis")
      assert.isUndefined(stopping.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      assert.isFalse(yield* Fiber.join(stopping))
    }))
})
