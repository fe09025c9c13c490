import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as HttpApiClient from "effect/http-api/HttpApiClient"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { Provisioner, ProvisionerError } from "../../src/service/Provisioner.ts"
import * as RuntimeApi from "../../src/service/RuntimeApi.ts"
import * as RuntimeApiServer from "../../src/service/RuntimeApiServer.ts"

const { Authorization, api, openApi } = await Effect.runPromise(RuntimeApi.declaration)

/** A server on a real socket, over a provisioner that tells what it holds. */
const serve = (options: Partial<RuntimeApiServer.Options> = {}, provisioner: Partial<Provisioner["Service"]> = {}) => {
  const held = new Set<string>()
  const layer = HttpRouter.serve(RuntimeApiServer.layer({ projectId: "proj_X", ...options }), {
    disableLogger: true,
    disableListenLog: true
  }).pipe(
    Layer.provide(Layer.succeed(Provisioner, {
      secrets: Effect.succeed(new Map([["A", Redacted.make("1")], ["__proto__", Redacted.make("2")]])),
      request: ({ config, type }) =>
        Effect.acquireRelease(
          Effect.sync(() => {
            held.add(type)
            return { type, state: "ready", output: { of: config } }
          }),
          () => Effect.sync(() => held.delete(type))
        ),
      ...provisioner
    })),
    Layer.provideMerge(NodeHttpServer.layerTest)
  )
  return { layer, held }
}

const withKey = (key: string) =>
  HttpApiMiddleware.layerClient(
    Authorization,
    ({ next, request }) => next(key === "" ? request : HttpClientRequest.bearerToken(request, key))
  )

const resourcesOf = (key = "") =>
  HttpApiClient.make(api).pipe(Effect.provide(withKey(key)), Effect.map(({ resources }) => resources))

const post = (path: string, body: string) =>
  HttpClient.HttpClient.use((client) =>
    client.execute(HttpClientRequest.post(path).pipe(HttpClientRequest.bodyText(body, "application/json")))
  )

describe("the declaration", () => {
  it("is an OpenAPI document with the wire's shapes, statuses and security", () => {
    const { components, openapi, paths } = openApi()
    assert.strictEqual(openapi, "3.1.0")
    assert.deepStrictEqual(Object.keys(components.securitySchemes), ["bearer"])
    assert.includeMembers(Object.keys(components.schemas), ["ProvisionRequest", "ResourceResponse"])
    const operations = [
      paths["/projects/{projectId}/resources/secrets"]?.get,
      paths["/projects/{projectId}/resources"]?.post
    ]
    for (const operation of operations) {
      assert.deepStrictEqual(Object.keys(operation?.responses ?? {}), ["200", "400", "401", "404", "500"])
      assert.deepStrictEqual(operation?.security, [{ bearer: [] }])
    }
  })

  it("needs all four keys of a resource, and takes more of them", () => {
    const decode = Schema.decodeUnknownResult(RuntimeApi.ResourceResponse)
    const whole = { type: "t", state: "s", config: null, output: null }
    assert.isTrue(Result.isSuccess(decode({ ...whole, extra: 1 })))
    for (const key of Object.keys(whole)) {
      assert.isTrue(
        Result.isFailure(decode(Object.fromEntries(Object.entries(whole).filter(([name]) => name !== key))))
      )
    }
  })
})

describe("the server", () => {
  it.live("answers the client of its own declaration", () => {
    const { layer } = serve()
    return Effect.gen(function*() {
      const resources = yield* resourcesOf()
      const params = { projectId: "proj_X" }
      const secrets = yield* resources.secrets({ params })
      assert.strictEqual(
        JSON.stringify(secrets),
        `{"type":"secrets","state":"ready","config":null,"output":{"A":"1","__proto__":"2"}}`
      )
      assert.deepStrictEqual(yield* resources.provision({ params, payload: { type: "t", config: [1] } }), {
        type: "t",
        state: "ready",
        config: [1],
        output: { of: [1] }
      })
    }).pipe(Effect.provide(layer))
  })

  it.live("holds what it started for as long as it lives", () => {
    const { held, layer } = serve()
    return Effect.gen(function*() {
      yield* Effect.gen(function*() {
        const resources = yield* resourcesOf()
        yield* resources.provision({ params: { projectId: "proj_X" }, payload: { type: "t", config: null } })
        assert.deepStrictEqual([...held], ["t"])
      }).pipe(Effect.provide(layer))
      assert.deepStrictEqual([...held], [])
    })
  })

  it.live("wants the key, if it has one", () => {
    const { layer } = serve({ apiKey: Option.some(Redacted.make("k3y")) })
    return Effect.gen(function*() {
      for (const wrong of ["", "k3", "k3yy"]) {
        const resources = yield* resourcesOf(wrong)
        assert.deepStrictEqual(yield* Effect.flip(resources.secrets({ params: { projectId: "proj_X" } })), {
          message: "the key is missing or wrong",
          status_code: 401
        })
      }
      yield* (yield* resourcesOf("k3y")).secrets({ params: { projectId: "proj_X" } })
    }).pipe(Effect.provide(layer))
  })

  it.live("knows one project", () => {
    const { layer } = serve()
    return Effect.gen(function*() {
      const error = yield* Effect.flip((yield* resourcesOf()).secrets({ params: { projectId: "a/b" } }))
      assert.deepStrictEqual(error, { message: `there is no project "a/b" here`, status_code: 404 })
    }).pipe(Effect.provide(layer))
  })

  it.live("says what a provisioner said", () => {
    const { layer } = serve({}, {
      secrets: new ProvisionerError({ message: "no such file" })
    })
    return Effect.gen(function*() {
      const error = yield* Effect.flip((yield* resourcesOf()).secrets({ params: { projectId: "proj_X" } }))
      assert.deepStrictEqual(error, { message: "no such file", status_code: 500 })
    }).pipe(Effect.provide(layer))
  })

  it.live.each<[what: string, body: string, said: RegExp]>([
    ["no JSON", "{", /^Payload: Expected a valid JSON body/],
    ["another shape", `{"type":5,"config":"planted"}`, /"type"/],
    ["a missing key", `{"type":"t"}`, /"config"/],
    ["nothing", "", /^Payload: /]
  ])("refuses a request that is %s", ([, body, said]) => {
    const { held, layer } = serve()
    return Effect.gen(function*() {
      const response = yield* post("/projects/proj_X/resources", body)
      const error: unknown = yield* response.json
      assert.strictEqual(response.status, 400)
      const { message, status_code } = yield* Schema.decodeUnknownEffect(RuntimeApi.ErrorBody)(error)
      assert.strictEqual(status_code, 400)
      assert.match(message, said)
      assert.notInclude(message, "planted")
      assert.lengthOf([...held], 0)
    }).pipe(Effect.provide(layer))
  })

  it.live("has nothing at other paths but its own description", () => {
    const { layer } = serve()
    return Effect.gen(function*() {
      const client = yield* HttpClient.HttpClient
      const nothing = yield* client.get("/projects/proj_X")
      assert.strictEqual(nothing.status, 404)
      assert.deepStrictEqual(yield* nothing.json, { message: "there is nothing at this path", status_code: 404 })
      const document: unknown = yield* Effect.flatMap(client.get("/openapi.json"), ({ json }) => json)
      assert.deepStrictEqual(document, JSON.parse(JSON.stringify(openApi())))
    }).pipe(Effect.provide(layer))
  })

  it.live("reads no endless body", () => {
    const { held, layer } = serve()
    return Effect.gen(function*() {
      const large = JSON.stringify({ type: "t", config: "x".repeat(9 * 1024 * 1024) })
      const status = yield* Effect.match(post("/projects/proj_X/resources", large), {
        onFailure: () => "cut off",
        onSuccess: (response) => response.status
      })
      assert.include(["cut off", 413, 500], status)
      assert.lengthOf([...held], 0)
    }).pipe(Effect.provide(layer))
  })
})
