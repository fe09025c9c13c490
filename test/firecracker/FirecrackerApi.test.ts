import { describe, expect, it } from "@effect/vitest"
import {
  type ApiTransport,
  Capabilities,
  FirecrackerApi,
  FirecrackerError,
  type FirecrackerSchema
} from "effect-microvm-runtime/firecracker"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import * as Tracer from "effect/Tracer"
import { bodies, hostileIds, scripted, target } from "./bodies.ts"

type Api = FirecrackerApi.FirecrackerApi
type Answer = Parameters<typeof scripted>[0]

const reasonOf = <A>(effect: Effect.Effect<A, FirecrackerError.FirecrackerError>) =>
  Effect.map(Effect.flip(effect), ({ reason }) => reason)

const client = (answer?: Answer, options: Partial<FirecrackerApi.Options> = {}) => {
  const { sent, transport } = scripted(answer)
  return { sent, api: FirecrackerApi.make(transport, { ...target(17), ...options }) }
}

const text = (request: ApiTransport.ApiRequest | undefined) =>
  request === undefined
    ? ""
    : `${request.method} ${request.path}${request.body === undefined ? "" : ` ${request.body}`}`

const isCall = (value: unknown): value is Effect.Effect<unknown, FirecrackerError.FirecrackerError> =>
  Effect.isEffect(value)

/** Calls a method by its name, with whatever a caller of JavaScript could give. */
const invoke = (api: Api, name: string, ...args: ReadonlyArray<unknown>) => {
  const method: unknown = Reflect.get(api, name)
  const effect: unknown = typeof method === "function" ? Reflect.apply(method, api, args) : undefined
  return isCall(effect) ? effect : Effect.die(new Error(`${name} gives no effect`))
}

const senders = Object.entries<Capabilities.Endpoint>(Capabilities.endpoints).flatMap(([name, endpoint]) =>
  endpoint.body === undefined ? [] : [{ name, endpoint, table: bodies[endpoint.body], body: endpoint.body }]
)

const answers: Readonly<Record<string, unknown>> = {
  getInstance: { app_name: "Firecracker", id: "i", state: "Not started", vmm_version: "1.17.0" },
  getVersion: { firecracker_version: "1.17.0" },
  getVmConfig: { drives: [] },
  getMachineConfig: { vcpu_count: 1, mem_size_mib: 128, smt: false, track_dirty_pages: false },
  getMmds: { a: { b: 1 } },
  getBalloon: { amount_mib: 1, deflate_on_oom: true, stats_polling_interval_s: 0 },
  getBalloonStatistics: { target_pages: 1, actual_pages: 1, target_mib: 1, actual_mib: 1, swap_in: 5 },
  getBalloonHinting: { host_cmd: 1, guest_cmd: null },
  getMemoryHotplug: {
    total_size_mib: 128,
    slot_size_mib: 128,
    block_size_mib: 2,
    plugged_size_mib: 0,
    requested_size_mib: 0
  }
}

describe("FirecrackerApi: each endpoint", () => {
  it.effect.each(senders)("$name sends its body", ({ body: kind, endpoint, name, table }) =>
    Effect.gen(function*() {
      const { api, sent } = client()
      for (
        const body of kind === "CpuConfig" || kind === "MachineConfiguration"
          ? [table.least]
          : [table.least, table.full]
      ) {
        yield* invoke(api, name, body)
        const request = sent.pop()
        expect(request?.method).toBe(endpoint.method)
        const id = endpoint.id === undefined ? "" : String(body[endpoint.id])
        expect(request?.path).toBe(endpoint.path.replace("{id}", id))
        expect(JSON.parse(request?.body ?? "")).toEqual(body)
      }
      expect(sent).toEqual([])
    }))

  it.effect.each(Object.keys(answers))("%s reads its answer", (name) =>
    Effect.gen(function*() {
      const { api, sent } = client(() => ({ status: 200, body: JSON.stringify(answers[name]) }))
      expect(yield* invoke(api, name)).toEqual(answers[name])
      expect(sent.map(({ body, method }) => [method, body])).toEqual([["GET", undefined]])
    }))

  it.effect("the others", () =>
    Effect.gen(function*() {
      const { api, sent } = client()
      yield* api.deleteDrive("d")
      yield* api.deletePmem("p")
      yield* api.deleteNetworkInterface("n")
      yield* api.stopBalloonHinting()
      yield* Effect.ignore(api.getMmds())
      expect(sent.map(text)).toEqual([
        "DELETE /drives/d",
        "DELETE /pmem/p",
        "DELETE /network-interfaces/n",
        "PATCH /balloon/hinting/stop",
        "GET /mmds"
      ])
    }))

  it("every endpoint has a method", () => {
    const { api } = client()
    expect(Object.keys(api).toSorted()).toEqual(
      ["request", "target", ...Object.keys(Capabilities.endpoints)].toSorted()
    )
  })

  it.effect.each(["putDrive", "getInstance", "deletePmem", "stopBalloonHinting", "request"])(
    "%s has a span",
    (name) =>
      Effect.gen(function*() {
        const spans: Array<string> = []
        const tracer = Tracer.make({
          span: (options) => {
            spans.push(options.name)
            return new Tracer.NativeSpan(options)
          }
        })
        yield* Effect.ignore(invoke(client().api, name, "x", "/")).pipe(Effect.withTracer(tracer))
        expect(spans).toEqual([`FirecrackerApi.${name}`])
      })
  )
})

describe("FirecrackerApi: what is never sent", () => {
  it.effect.each(senders.filter(({ body }) => body !== "MmdsData"))(
    "$name: a wrong body",
    ({ name, table }) =>
      Effect.gen(function*() {
        const { api, sent } = client()
        const wrong: Array<unknown> = [{ ...table.least, colour: 1 }, null, [], "text"]
        for (const [key, values] of Object.entries(table.wrong)) {
          for (const value of values) wrong.push({ ...table.least, [key]: value })
        }
        for (const one of wrong) {
          const reason = yield* reasonOf(invoke(api, name, one))
          expect([name, one, reason._tag]).toEqual([name, one, "InvalidRequest"])
        }
        expect((yield* reasonOf(invoke(api, name)))._tag).toBe("InvalidRequest")
        expect(sent).toEqual([])
      })
  )

  it.effect("all faults are told at once", () =>
    Effect.gen(function*() {
      const reason = yield* reasonOf(
        invoke(client().api, "putDrive", { drive_id: "a/b", is_root_device: 1, path_on_host: "", colour: 1 })
      )
      expect(reason._tag === "InvalidRequest" && reason.faults.map(({ field }) => field).toSorted())
        .toEqual(["colour", "drive_id", "is_root_device", "path_on_host"])
    }))

  it.effect("an id that could be another request, in a path alone", () =>
    Effect.gen(function*() {
      const { api, sent } = client()
      for (const id of [...hostileIds, 7, null, undefined, {}]) {
        for (const name of ["deleteDrive", "deletePmem", "deleteNetworkInterface"]) {
          expect((yield* reasonOf(invoke(api, name, id)))._tag).toBe("InvalidRequest")
        }
      }
      expect(sent).toEqual([])
    }))

  it.effect.prop(
    "no text makes a path of request into another line",
    [Schema.String],
    ([path]) =>
      Effect.gen(function*() {
        const { api, sent } = client()
        yield* Effect.ignore(api.request("PUT", path, {}))
        yield* Effect.ignore(api.request("PUT", `/drives/${path}`, {}))
        yield* Effect.ignore(api.putDrive({ drive_id: path, is_root_device: false, path_on_host: "f" }))
        for (const request of sent) expect(request.path).toMatch(/^\/[A-Za-z0-9_/-]*(?![^])/)
      })
  )

  it.effect("a hostile path of request", () =>
    Effect.gen(function*() {
      const { api, sent } = client()
      for (
        const path of ["", "x", "/a b", "/a\r\nX: y", "/a\n", "/a?b", "/a#b", "/a%0d", "//é", `/${"x".repeat(900)}`]
      ) {
        expect((yield* reasonOf(api.request("GET", path)))._tag).toBe("InvalidRequest")
      }
      expect(sent).toEqual([])
    }))

  it.effect("a body over the payload limit, by its bytes", () =>
    Effect.gen(function*() {
      const { api, sent } = client()
      // {"a":"…"} is 8 bytes and the text.
      yield* api.putMmds({ a: "x".repeat(51_192) })
      const reason = yield* reasonOf(api.putMmds({ a: "é".repeat(25_597) }))
      expect(reason.message).toBe(
        "Not possible: body is \"51202 bytes\": give at most 51200, or start Firecracker with a larger --http-api-max-payload-size"
      )
      expect(sent).toHaveLength(1)
      yield* client(undefined, { payloadLimit: 51_202 }).api.putMmds({ a: "é".repeat(25_597) })
    }))

  it.effect("what JSON cannot say", () =>
    Effect.gen(function*() {
      const { api, sent } = client()
      const loop: Record<string, unknown> = {}
      loop["self"] = loop
      for (const body of [loop, 1n, () => 1, Symbol("x")]) {
        expect((yield* reasonOf(api.request("PUT", "/mmds", body)))._tag).toBe("InvalidRequest")
        expect((yield* reasonOf(invoke(api, "putMmds", body)))._tag).toBe("InvalidRequest")
      }
      expect(sent).toEqual([])
    }))

  it.effect("what the version does not know, unless it may be left out", () =>
    Effect.gen(function*() {
      const { api, sent } = client(undefined, target(15))
      const nic: FirecrackerSchema.NetworkInterface = { iface_id: "n0", host_dev_name: "tap0", mtu: 9000 }
      const reason = yield* reasonOf(api.putNetworkInterface(nic))
      expect(reason.message).toBe("Firecracker 1.15.0 cannot: NetworkInterface.mtu needs 1.16.0 or later")
      expect((yield* reasonOf(api.deleteDrive("d")))._tag).toBe("UnsupportedByVersion")
      expect(sent).toEqual([])
      yield* api.putNetworkInterface(nic, { optional: ["mtu"] })
      expect(sent.map(text)).toEqual([`PUT /network-interfaces/n0 {"iface_id":"n0","host_dev_name":"tap0"}`])
    }))
})

describe("FirecrackerApi: answers", () => {
  it.effect("a refusal has its status, its kind and its text (row 26)", () =>
    Effect.gen(function*() {
      const { api } = client(() => ({
        status: 400,
        body: `{"fault_message":"Start microvm error: Cannot start microvm without kernel configuration."}`
      }))
      expect(yield* reasonOf(api.putAction({ action_type: "InstanceStart" }))).toEqual(
        new FirecrackerError.ApiFault({
          method: "PUT",
          path: "/actions",
          status: 400,
          kind: "NoKernel",
          message: "Start microvm error: Cannot start microvm without kernel configuration."
        })
      )
    }))

  it.effect.each(
    [
      ["no JSON", 200, "<html>"],
      ["half a JSON", 200, `{"state":`],
      ["no body", 200, ""],
      ["no content", 204, ""],
      ["another shape", 200, "[]"],
      ["a field of another type", 200, `{"app_name":"x","id":"i","state":1,"vmm_version":"1"}`]
    ] as const
  )("%s is no answer", ([, status, body]) =>
    Effect.gen(function*() {
      const { api } = client(() => ({ status, body }))
      expect((yield* reasonOf(api.getInstance()))._tag).toBe("ProtocolViolation")
    }))

  it.effect.each([100, 199, 300, 404, 500, 999])("status %i is a refusal", (status) =>
    Effect.gen(function*() {
      const reason = yield* reasonOf(client(() => ({ status, body: "x" })).api.patchVm({ state: "Paused" }))
      expect(reason).toMatchObject({ _tag: "ApiFault", status, kind: "Other", message: "x" })
    }))

  it.effect("request gives the JSON as it is", () =>
    Effect.gen(function*() {
      const { api, sent } = client(({ method }) =>
        method === "GET" ? { status: 200, body: `{"a":[1]}` } : { status: 204 }
      )
      expect(yield* api.request("GET", "/of-tomorrow")).toEqual({ a: [1] })
      expect(yield* api.request("PUT", "/of-tomorrow", { b: 1 })).toBeUndefined()
      expect(sent.map(text)).toEqual(["GET /of-tomorrow", `PUT /of-tomorrow {"b":1}`])
    }))

  it.effect("metadata is unveiled on the wire and nowhere else", () =>
    Effect.gen(function*() {
      const { api, sent } = client()
      const secret = Redacted.make<Schema.Json>({ token: "hunter2" })
      yield* api.putMmds(secret)
      yield* api.patchMmds(secret)
      expect(sent.map(({ body }) => body)).toEqual([`{"token":"hunter2"}`, `{"token":"hunter2"}`])
      const tooLong = yield* reasonOf(api.putMmds(Redacted.make("hunter2".repeat(10_000))))
      expect(tooLong.message).not.toContain("hunter2")
    }))
})

describe("FirecrackerApi: time", () => {
  it.effect("each class of calls has its deadline", () =>
    Effect.gen(function*() {
      const { api, sent } = client(() => ({ status: 200, body: "{}" }))
      const snapshot = { snapshot_path: "s", mem_file_path: "m" }
      const all = (of: Api) =>
        Effect.all([of.getMmds(), of.putEntropy({}), of.createSnapshot(snapshot), of.loadSnapshot(snapshot)], {
          discard: true
        })
      yield* all(api)
      yield* api.putEntropy({}, { within: "1 minute" })
      yield* api.request("GET", "/", undefined, { within: 7 })
      expect(sent.splice(0).map(({ within }) => Duration.toMillis(within))).toEqual([
        5000,
        5000,
        300_000,
        300_000,
        60_000,
        7
      ])
      const others = client(() => ({ status: 200, body: "{}" }), {
        deadlines: { read: 1, change: 2, snapshot: "3 millis" }
      })
      yield* all(others.api)
      expect(others.sent.map(({ within }) => Duration.toMillis(within))).toEqual([1, 2, 3, 3])
    }))

  it.effect("a call that was turned away is made again, a few times", () =>
    Effect.gen(function*() {
      const busy = { status: 503, body: `{ "error": "Too many open connections" }` }
      let free = 3
      const patient = client(() => free-- > 0 ? busy : { status: 204 })
      const fiber = yield* Effect.forkChild(patient.api.patchVm({ state: "Paused" }), { startImmediately: true })
      yield* TestClock.adjust("69 millis")
      expect(patient.sent).toHaveLength(3)
      yield* TestClock.adjust("1 millis")
      yield* Fiber.join(fiber)
      expect(patient.sent).toHaveLength(4)

      const crowded = client(() => busy)
      const failing = yield* Effect.forkChild(reasonOf(crowded.api.getInstance()), { startImmediately: true })
      yield* TestClock.adjust("310 millis")
      expect(yield* Fiber.join(failing)).toMatchObject({
        _tag: "ApiFault",
        status: 503,
        message: "Too many open connections"
      })
      expect(crowded.sent).toHaveLength(6)
    }))

  it.effect("a call of which nobody knows whether it was done is not made again", () =>
    Effect.gen(function*() {
      let calls = 0
      const api = FirecrackerApi.make({
        request: ({ method, path, within }) =>
          Effect.suspend(() => {
            calls += 1
            return FirecrackerError.fail(new FirecrackerError.NoReply({ method, path, within }))
          })
      }, target(17))
      expect((yield* reasonOf(api.getInstance()))._tag).toBe("NoReply")
      expect(calls).toBe(1)
    }))
})

describe("FirecrackerApi.readVersion", () => {
  const read = (body: string) => FirecrackerApi.readVersion(scripted(() => ({ status: 200, body })).transport)

  it.effect("a release, a development build", () =>
    Effect.gen(function*() {
      expect(yield* read(`{"firecracker_version":"1.16.1"}`)).toEqual({ major: 1, minor: 16, patch: 1 })
      expect(yield* read(`{"firecracker_version":"1.17.0-dev"}`)).toEqual({ major: 1, minor: 17, patch: 0 })
    }))

  it.effect.each([`{}`, `{"firecracker_version":"new"}`, `{"firecracker_version":7}`, `1.16.1`, ""])(
    "%s has none",
    (body) =>
      Effect.gen(function*() {
        expect((yield* reasonOf(read(body)))._tag).toBe("ProtocolViolation")
      })
  )
})
