import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import type { Socket } from "node:net"
import { join } from "node:path"
import { setImmediate as turn } from "node:timers/promises"
import type { ApiRequest, ApiTransport } from "../../src/firecracker/ApiTransport.ts"
import type { FirecrackerError } from "../../src/firecracker/FirecrackerError.ts"
import * as NodeApiTransport from "../../src/firecracker/NodeApiTransport.ts"
import { directory, type RawServer, serve, until } from "./rawServer.ts"
import { watchedClock } from "./watchedClock.ts"

const within = Duration.seconds(5)
const get = (path: string): ApiRequest => ({ method: "GET", path, within })
const put = (path: string, body = "{}"): ApiRequest => ({ method: "PUT", path, body, within })

const ok = (body = "{}") =>
  `HTTP/1.1 200 \r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`
const noContent = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"

/** Answers each request, as soon as its last byte is there. */
const answering =
  (answer: (request: string, connection: number, socket: Socket) => string | undefined) =>
  (socket: Socket, connection: number): void => {
    let text = ""
    socket.on("data", (chunk) => {
      text += chunk.toString("latin1")
      for (;;) {
        const head = /^[^]*?\r\n\r\n/.exec(text)?.[0] ?? ""
        const length = Number(/Content-Length: (\d+)/.exec(text)?.[1] ?? 0)
        if (head === "" || text.length < head.length + length) return
        const request = text.slice(0, head.length + length)
        text = text.slice(request.length)
        const answered = answer(request, connection, socket)
        if (answered !== undefined) socket.write(answered)
      }
    })
  }

const setUp = (
  onConnection: (socket: Socket, index: number) => void
): Effect.Effect<{ readonly server: RawServer; readonly transport: ApiTransport }, FirecrackerError, Scope.Scope> =>
  Effect.gen(function*() {
    const server = yield* serve(join(yield* directory(), "api.sock"), onConnection)
    return { server, transport: yield* NodeApiTransport.make({ socketPath: server.path }) }
  })

const reasonOf = (result: Effect.Effect<unknown, FirecrackerError>) =>
  Effect.map(Effect.flip(result), ({ reason }) => reason)

describe("a request", () => {
  it.effect("is one piece with an explicit length, counted in bytes", () =>
    Effect.gen(function*() {
      const { server, transport } = yield* setUp(answering(() => noContent))
      yield* transport.request(put("/drives/root_1", `{"name":"é"}`))
      yield* transport.request(get("/"))
      yield* transport.request({ method: "DELETE", path: "/drives/root_1", within })
      assert.deepStrictEqual(server.received, [
        [
          "PUT /drives/root_1 HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n" +
          `Content-Type: application/json\r\nContent-Length: 13\r\n\r\n{"name":"${
            Buffer.from("é").toString("latin1")
          }"}`,
          "DELETE /drives/root_1 HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n"
        ],
        ["GET / HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n"]
      ])
    }))

  it.effect("that would be another one on the wire is not sent", () =>
    Effect.gen(function*() {
      const { server, transport } = yield* setUp(answering(() => noContent))
      const paths = [
        "",
        "drives",
        "/a b",
        "/a\r\nX: y",
        "/a\n",
        "/é",
        "/a?b",
        "/a%20",
        "/a#",
        "/a\0",
        `/${"a".repeat(1000)}`
      ]
      for (const path of paths) {
        const reason = yield* reasonOf(transport.request(put(path)))
        assert.isTrue(
          reason._tag === "InvalidRequest" && reason.faults.length === 1 && reason.faults[0]?.value === path,
          path
        )
      }
      const both = yield* reasonOf(transport.request({ ...get("/a b"), body: "{}" }))
      assert.deepStrictEqual(both._tag === "InvalidRequest" ? both.faults.map(({ field }) => field) : both, [
        "path",
        "body"
      ])
      assert.deepStrictEqual(server.received, [])
    }))
})

describe("an answer", () => {
  it.effect("is there at once, though the connection stays open", () =>
    Effect.gen(function*() {
      const { server, transport } = yield* setUp(
        answering((request) => request.startsWith("GET") ? ok(`{"state":"up"}`) : noContent)
      )
      assert.deepStrictEqual(yield* transport.request(get("/")), {
        status: 200,
        body: `{"state":"up"}`,
        deprecated: false
      })
      assert.deepStrictEqual(yield* transport.request(put("/vsock")), { status: 204, body: "", deprecated: false })
      assert.strictEqual(server.open(), 2)
    }))

  it.effect("may come byte by byte", () =>
    Effect.gen(function*() {
      const { transport } = yield* setUp(answering((_, __, socket) => {
        const bytes = Buffer.from(
          `HTTP/1.1 200 \r\nDeprecation: true\r\nContent-Length: 13\r\n\r\n{"name":"é"}`
        )
        const next = (at: number): void => {
          if (at < bytes.length) socket.write(bytes.subarray(at, at + 1), () => setImmediate(next, at + 1))
        }
        next(0)
        return undefined
      }))
      assert.deepStrictEqual(yield* transport.request(get("/")), {
        status: 200,
        body: `{"name":"é"}`,
        deprecated: true
      })
    }))

  it.effect("with an error is an answer, and the last one of its connection", () =>
    Effect.gen(function*() {
      const fault = `{"fault_message":"no"}`
      const { server, transport } = yield* setUp(
        answering(() => `HTTP/1.1 400 \r\nConnection: keep-alive\r\nContent-Length: ${fault.length}\r\n\r\n${fault}`)
      )
      for (let i = 0; i < 3; i++) {
        assert.deepStrictEqual(yield* transport.request(put("/actions")), {
          status: 400,
          body: fault,
          deprecated: false
        })
      }
      assert.deepStrictEqual(server.received.map(({ length }) => length), [1, 1, 1])
      yield* until(() => server.open() === 0)
    }))

  it.effect("of a server that has too many connections is an answer", () =>
    Effect.gen(function*() {
      const body = `{ "error": "Too many open connections" }`
      const { transport } = yield* setUp(answering((_, __, socket) => {
        socket.end(`HTTP/1.1 503 \r\nConnection: close\r\nContent-Length: ${body.length}\r\n\r\n${body}`)
        return undefined
      }))
      assert.deepStrictEqual(yield* transport.request(get("/")), { status: 503, body, deprecated: false })
    }))

  // The client writes in one of these turns, where what it was told is lost to an error.
  it.effect.each([0, 1, 2, 3])(
    "of a server that hangs up before it is asked is heard, %i turns after it was dialled",
    (turns) =>
      Effect.gen(function*() {
        const refuse = (socket: Socket, left: number): void => {
          if (left > 0) return void setImmediate(refuse, socket, left - 1)
          socket.write("HTTP/1.1 503 \r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
          socket.destroy()
        }
        const { transport } = yield* setUp((socket) => refuse(socket, turns))
        for (let i = 0; i < 5; i++) assert.strictEqual((yield* transport.request(put("/actions"))).status, 503)
      })
  )

  it.effect("of a server that hangs up without a word is none, and it is not dialled for ever", () =>
    Effect.gen(function*() {
      const hangUp = (socket: Socket, left: number): unknown =>
        left > 0 ? setImmediate(hangUp, socket, left - 1) : socket.destroy()
      const { server, transport } = yield* setUp((socket, index) => hangUp(socket, 2 + index))
      const reason = yield* reasonOf(transport.request(put("/actions")))
      assert.deepStrictEqual([reason._tag, "phase" in reason && reason.phase], ["ConnectionFailed", "connect"])
      assert.isAtMost(server.received.length, 3)
      yield* until(() => server.open() === 0)
    }))

  it.effect("to nothing leaves no connection that is one answer ahead", () =>
    Effect.gen(function*() {
      const { server, transport } = yield* setUp((socket, connection) => {
        if (connection === 0) socket.write(ok("1"))
        else answering(() => ok("2"))(socket, connection)
      })
      yield* transport.request(get("/"))
      assert.strictEqual((yield* transport.request(get("/"))).body, "2")
      assert.strictEqual(server.received.length, 2)
    }))

  it.effect("that comes before the whole request is gone is taken", () =>
    Effect.gen(function*() {
      const { transport } = yield* setUp((socket) => {
        socket.once("data", () => {
          socket.pause()
          socket.write("HTTP/1.1 400 \r\nContent-Length: 2\r\n\r\n{}")
        })
      })
      assert.strictEqual((yield* transport.request(put("/mmds", "x".repeat(2_000_000)))).status, 400)
    }))

  it.effect.each<readonly [name: string, text: string, detail: string]>([
    ["chunks", "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding"],
    ["a head without end", "HTTP/1.1 200 \r\nX: ".padEnd(70_000, "x"), "a head over 65536 bytes"],
    ["a huge length", "HTTP/1.1 200 \r\nContent-Length: 5000000\r\n\r\n", "a body of 5000000 bytes"],
    ["a negative length", "HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n", "Content-Length \"-1\""],
    ["no length", "HTTP/1.1 200 \r\n\r\n", "no Content-Length"],
    ["no HTTP", "\u0001\u0002", "it starts with"]
  ])("with %s is refused, and its connection closed", ([, text, detail]) =>
    Effect.gen(function*() {
      const { server, transport } = yield* setUp(answering(() => text))
      const reason = yield* reasonOf(transport.request(get("/")))
      assert.strictEqual(reason._tag, "ProtocolViolation")
      assert.include(reason.message, detail)
      yield* until(() => server.open() === 0)
    }))

  it.effect.each<readonly [when: string, text: string, phase: string]>([
    ["before it", "", "request"],
    ["in its head", "HTTP/1.1 200 \r\nContent-Le", "response"],
    ["in its body", "HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\n{", "response"]
  ])("of a server that ends %s is none", ([, text, phase]) =>
    Effect.gen(function*() {
      const { server, transport } = yield* setUp(answering((_request, _connection, socket) => {
        socket.end(text)
        return undefined
      }))
      const reason = yield* reasonOf(transport.request(get("/")))
      assert.deepStrictEqual([reason._tag, "phase" in reason && reason.phase], ["ConnectionFailed", phase])
      assert.strictEqual(server.received.length, 1)
    }))

  const Pieces = Schema.Array(Schema.Literals([
    "HTTP/1.1 200 ",
    "HTTP/1.1 204 ",
    "\r\n",
    "Content-Length: ",
    "2",
    "-",
    "999999999",
    "{}",
    ":",
    "\0",
    "é"
  ]))

  it.effect.prop(
    "may be anything: there is a verdict, and in the end no connection",
    { pieces: Pieces },
    ({ pieces }) =>
      Effect.gen(function*() {
        const { server, transport } = yield* setUp(answering((_, __, socket) => {
          socket.end(pieces.join(""))
          return undefined
        }))
        const exit = yield* Effect.exit(transport.request(put("/actions")))
        const tag = Exit.isSuccess(exit) ? "Answer" : (yield* Effect.flip(exit)).reason._tag
        assert.include(["Answer", "ConnectionFailed", "ProtocolViolation"], tag)
        yield* until(() => server.open() === 0)
      }).pipe(Effect.scoped),
    { arbitrary: { runs: 60 } }
  )
})

describe("connections", () => {
  it.effect("one for changes, one after the other, in the order of the calls", () =>
    Effect.gen(function*() {
      const waiting: Array<() => void> = []
      const { server, transport } = yield* setUp(answering((_, __, socket) => {
        waiting.push(() => socket.write(noContent))
        return undefined
      }))
      const calls = yield* Effect.forEach([1, 2, 3, 4], (i) =>
        Effect.forkChild(transport.request(put(`/drives/${i}`)), { startImmediately: true }))
      for (let i = 0; i < 4; i++) {
        yield* until(() =>
          waiting.length === i + 1
        )
        waiting[i]?.()
      }
      yield* Fiber.joinAll(calls)
      assert.deepStrictEqual(
        server.received.map((pieces) => pieces.map((piece) => piece.slice(0, 13))),
        [["PUT /drives/1", "PUT /drives/2", "PUT /drives/3", "PUT /drives/4"]]
      )
    }))

  it.effect("three for reads, beside a change that takes long", () =>
    Effect.gen(function*() {
      const waiting: Array<() => void> = []
      const { server, transport } = yield* setUp(answering((request, _, socket) => {
        if (request.startsWith("GET")) waiting.push(() => socket.write(ok()))
        return undefined
      }))
      const change = yield* Effect.forkChild(transport.request(put("/snapshot/create")), { startImmediately: true })
      const calls = yield* Effect.forEach([1, 2, 3, 4, 5], () =>
        Effect.forkChild(transport.request(get("/")), { startImmediately: true }))
      yield* until(() =>
        waiting.length === 3
      )
      assert.strictEqual(server.open(), 4)
      for (let i = 0; i < 5; i++) {
        yield* until(() => waiting.length > i)
        waiting[i]?.()
      }
      yield* Fiber.joinAll(calls)
      assert.strictEqual(server.received.length, 4)
      yield* Fiber.interrupt(change)
      yield* until(() => server.open() === 3)
    }))

  it.effect("a read on a kept connection that is dead is made once more on a new one, a change is not", () =>
    Effect.gen(function*() {
      const { server, transport } = yield* setUp(answering((request, connection, socket) => {
        // The first two answer once.
        if (connection > 1 || server.received[connection]?.length === 1) {
          return request.startsWith("GET")
            ? ok()
            : noContent
        }
        socket.destroy()
        return undefined
      }))
      yield* transport.request(get("/"))
      yield* transport.request(put("/actions"))
      assert.strictEqual((yield* transport.request(get("/"))).status, 200)
      const reason = yield* reasonOf(transport.request(put("/actions")))
      assert.deepStrictEqual([reason._tag, "phase" in reason && reason.phase], ["ConnectionFailed", "request"])
      assert.deepStrictEqual(server.received.map(({ length }) => length), [2, 2, 1])
      assert.strictEqual((yield* transport.request(put("/actions"))).status, 204)
    }))

  it.effect("a read is not made a third time", () =>
    Effect.gen(function*() {
      const { server, transport } = yield* setUp(answering((_, connection, socket) => {
        if (connection === 0 && server.received[0]?.length === 1) return ok()
        socket.destroy()
        return undefined
      }))
      yield* transport.request(get("/"))
      assert.strictEqual((yield* reasonOf(transport.request(get("/"))))._tag, "ConnectionFailed")
      assert.deepStrictEqual(server.received.map(({ length }) => length), [2, 1])
    }))

  it.effect("one on which something comes unasked is not used again", () =>
    Effect.gen(function*() {
      const { server, transport } = yield* setUp(
        answering((_, connection) => connection === 0 ? noContent + ok("1") : noContent)
      )
      yield* transport.request(put("/a"))
      yield* transport.request(put("/b"))
      const late = yield* setUp((socket) => {
        socket.once("data", () => socket.write(noContent, () => setTimeout(() => socket.write(ok("2")), 5)))
      })
      yield* late.transport.request(put("/a"))
      yield* until(() => late.server.open() === 0)
      assert.deepStrictEqual(server.received.map(({ length }) => length), [1, 1])
    }))

  it.effect("end with the scope, and with them what is under way", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { server } = yield* setUp(answering((request) => request.startsWith("GET") ? ok() : undefined))
      const transport = yield* Scope.provide(NodeApiTransport.make({ socketPath: server.path }), scope)
      yield* transport.request(get("/"))
      const call = yield* Effect.forkChild(reasonOf(transport.request(put("/actions"))), { startImmediately: true })
      yield* until(() => server.received.length === 2)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual((yield* Fiber.join(call))._tag, "ConnectionFailed")
      yield* until(() => server.open() === 0)
      assert.include((yield* reasonOf(transport.request(get("/")))).message, "the transport is closed")
    }))
})

describe("waiting", () => {
  it.effect("ends with the deadline, which also counts while others have the turn; the connection is given up", () =>
    Effect.gen(function*() {
      const { server, transport } = yield* setUp(
        answering((request) => request.includes("/fast") ? noContent : undefined)
      )
      const slow = yield* Effect.forkChild(
        reasonOf(transport.request({ ...put("/slow"), within: Duration.minutes(5) })),
        {
          startImmediately: true
        }
      )
      const queued = yield* Effect.forkChild(reasonOf(transport.request(put("/queued"))), { startImmediately: true })
      yield* until(() => server.received[0]?.length === 1)
      yield* TestClock.adjust("5 seconds")
      const reason = yield* Fiber.join(queued)
      assert.strictEqual(reason.message, "PUT /queued: no answer within 5s")
      assert.strictEqual(slow.pollUnsafe(), undefined)
      yield* TestClock.adjust("5 minutes")
      assert.strictEqual((yield* Fiber.join(slow))._tag, "NoReply")
      yield* until(() => server.open() === 0)
      assert.strictEqual((yield* transport.request(put("/fast"))).status, 204)
      assert.deepStrictEqual(server.received.map(({ length }) => length), [1, 1])
    }))

  it.effect("ends with an interruption, and the turn is the next one's", () =>
    Effect.gen(function*() {
      const { server, transport } = yield* setUp(
        answering((request) => request.includes("/fast") ? noContent : undefined)
      )
      const slow = yield* Effect.forkChild(transport.request(put("/slow")), { startImmediately: true })
      yield* until(() => server.received.length === 1)
      const fast = yield* Effect.forkChild(transport.request(put("/fast")), { startImmediately: true })
      yield* Fiber.interrupt(slow)
      assert.strictEqual((yield* Fiber.join(fast)).status, 204)
      yield* until(() => server.open() === 1)
    }))
})

describe("the time that a new connection takes", () => {
  it.effect("is part of the deadline", () =>
    Effect.gen(function*() {
      const { transport } = yield* setUp(answering(() => undefined))
      const call = yield* Effect.forkChild(reasonOf(transport.request(put("/slow"))), { startImmediately: true })
      // Nothing has crossed the socket yet.
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual((yield* Fiber.join(call))._tag, "NoReply")
    }))

  it.effect.each([0, 1, 2, 3, 4])(
    "nobody sleeps for, once the transport is closed, %i turns later",
    (turns) =>
      Effect.gen(function*() {
        const { asleep, clock } = yield* watchedClock
        const { server } = yield* setUp(answering(() => undefined))
        const scope = yield* Scope.make()
        const transport = yield* NodeApiTransport.make({ socketPath: server.path }).pipe(
          Scope.provide(scope),
          Effect.provideService(Clock.Clock, clock)
        )
        const call = yield* Effect.forkChild(reasonOf(transport.request(put("/slow"))), { startImmediately: true })
        for (let passed = 0; passed < turns; passed++) yield* Effect.promise(() => turn())
        yield* Scope.close(scope, Exit.void)
        assert.strictEqual((yield* Fiber.join(call))._tag, "ConnectionFailed")
        for (let passed = 0; passed < 5; passed++) yield* Effect.promise(() => turn())
        assert.strictEqual(asleep(), 0)
      })
  )
})

describe("the path of the socket", () => {
  it.effect("may be longer than a socket address", () =>
    Effect.gen(function*() {
      const path = join(yield* directory("d".repeat(120)), "firecracker.socket")
      const server = yield* serve(path, answering(() => ok()))
      const transport = yield* NodeApiTransport.make({ socketPath: path })
      assert.strictEqual((yield* transport.request(get("/"))).status, 200)
      assert.strictEqual(server.received.length, 1)
      const nowhere = yield* NodeApiTransport.make({ socketPath: `/nowhere/${path}` })
      const reason = yield* reasonOf(nowhere.request(get("/")))
      assert.deepStrictEqual([reason._tag, "phase" in reason && reason.phase], ["ConnectionFailed", "connect"])
    }))

  it.effect.each(["", "a\0b", `/tmp/${"d".repeat(30)}/${"n".repeat(81)}`])(
    "is refused at once: %j",
    (socketPath) =>
      Effect.gen(function*() {
        const reason = yield* reasonOf(NodeApiTransport.make({ socketPath }).pipe(Effect.scoped))
        assert.deepStrictEqual(reason._tag === "InvalidRequest" ? reason.faults.map(({ field }) => field) : reason, [
          "socketPath"
        ])
      })
  )

  it.effect("may lead nowhere yet", () =>
    Effect.gen(function*() {
      const path = join(yield* directory(), "api.sock")
      const transport = yield* NodeApiTransport.make({ socketPath: path })
      assert.strictEqual((yield* reasonOf(transport.request(get("/"))))._tag, "ConnectionFailed")
      yield* serve(path, answering(() => ok()))
      assert.strictEqual((yield* transport.request(get("/"))).status, 200)
    }))
})
