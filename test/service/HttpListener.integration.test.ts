import * as NodeHttpServerRequest from "@effect/platform-node/NodeHttpServerRequest"
import { afterEach, describe, expect, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import type { HttpServerError } from "effect/http/HttpServerError"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import type { SocketError } from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import * as NodeChild from "node:child_process"
import * as NodeHttp from "node:http"
import * as NodeNet from "node:net"
import * as NodePath from "node:path"
import { Fatal } from "../../src/service/Fatal.ts"
import * as Health from "../../src/service/Health.ts"
import { ListenAddress } from "../../src/service/ListenAddress.ts"
import * as NodeHttpListener from "../../src/service/NodeHttpListener.ts"
import * as NodeHttpPart from "../../src/service/NodeHttpPart.ts"
import * as Part from "../../src/service/Part.ts"
import * as Parts from "../../src/service/Parts.ts"
import type { ServiceEvent } from "../../src/service/Phase.ts"
import type { ServiceError } from "../../src/service/ServiceError.ts"

/** Nothing takes as long; what would otherwise hang is cut much later than a test looks. */
const never = "60 seconds"
/** A stop that does not wait for anything is over by then, however busy the machine is. */
const soon = 10_000

const sockets = new Set<NodeNet.Socket>()
afterEach(() => {
  for (const socket of sockets) socket.destroy()
  sockets.clear()
})

/** A client that sends what it is told and keeps what it gets. */
class Client {
  text = ""
  error: string | undefined
  readonly socket: NodeNet.Socket
  readonly closed: Promise<void>
  #changed = () => {}
  constructor(port: number, options?: NodeNet.SocketConstructorOpts) {
    this.socket = new NodeNet.Socket(options).connect(port, "127.0.0.1")
    sockets.add(this.socket)
    this.socket.setEncoding("latin1")
    this.socket.on("data", (chunk) => {
      this.text += String(chunk)
      this.#changed()
    })
    this.socket.on("error", (error) => {
      this.error = "code" in error ? String(error.code) : error.message
    })
    this.closed = new Promise((resolve) => {
      this.socket.once("close", () => {
        this.#changed()
        resolve()
      })
    })
  }
  get isOpen(): boolean {
    return !this.socket.destroyed
  }
  send(text: string): void {
    this.socket.write(text, "latin1")
  }
  get(path: string, headers = ""): void {
    this.send(`GET ${path} HTTP/1.1\r\nHost: x\r\n${headers}\r\n`)
  }
  /** Until the text is there; fails when the connection closes before. */
  async until(wanted: string): Promise<void> {
    while (!this.text.includes(wanted)) {
      if (!this.isOpen) throw new Error(`closed (${this.error ?? "in order"}) before ${wanted}: ${this.text}`)
      await new Promise<void>((resolve) => {
        this.#changed = resolve
      })
    }
  }
}

const connected = (client: Client) =>
  Effect.promise(() => new Promise<Client>((resolve) => client.socket.once("connect", () => resolve(client))))

interface Served {
  readonly port: number
  readonly stop: Effect.Effect<number>
  readonly scope: Scope.Closeable
  readonly health: Health.Health["Service"]
  readonly fatal: Array<ServiceError>
  readonly warnings: Array<string>
}

/** Milliseconds that it takes. */
const timed = (effect: Effect.Effect<unknown>): Effect.Effect<number> =>
  Effect.suspend(() => {
    const began = performance.now()
    return Effect.map(effect, () => performance.now() - began)
  })

const base = (served: { readonly fatal: Array<ServiceError>; readonly warnings: Array<string> }, port = 0) =>
  Layer.mergeAll(
    Layer.succeed(ListenAddress, { host: "127.0.0.1", port }),
    Layer.succeed(Fatal, { report: (error) => Effect.sync(() => void served.fatal.push(error)) }),
    Health.layer,
    Logger.layer([Logger.make(({ message }) => void served.warnings.push(String(message)))])
  )

const portOf = (context: Context.Context<HttpServer.HttpServer>): number => {
  const { address } = Context.get(context, HttpServer.HttpServer)
  return "port" in address ? address.port : 0
}

const started = Effect.fnUntraced(function*<E>(
  server: Layer.Layer<never, E, HttpServer.HttpServer | NodeHttpListener.HttpListener>,
  options: NodeHttpListener.Options = {}
) {
  const told = { fatal: [], warnings: [] }
  const scope = yield* Scope.make()
  yield* Effect.addFinalizer(() => Effect.timeoutOption(Scope.close(scope, Exit.void), "1 second"))
  const context = yield* server.pipe(
    Layer.provideMerge(NodeHttpListener.layer({ inFlightWithin: never, upgradedWithin: never, ...options })),
    Layer.provideMerge(base(told)),
    Layer.buildWithScope(scope)
  )
  return {
    ...told,
    port: portOf(context),
    scope,
    health: Context.get(context, Health.Health),
    stop: timed(Scope.close(scope, Exit.void))
  } satisfies Served
})

/** Routes whose handlers the test holds in its hand. */
const gated = Effect.gen(function*() {
  const entered = yield* Deferred.make<void>()
  const open = yield* Deferred.make<void>()
  const interrupted = yield* Deferred.make<void>()
  const held = Deferred.succeed(entered, undefined).pipe(
    Effect.andThen(Deferred.await(open)),
    Effect.onInterrupt(() => Deferred.succeed(interrupted, undefined)),
    Effect.as(HttpServerResponse.text("done"))
  )
  const encoder = new TextEncoder()
  const streamed = HttpServerResponse.stream(
    Stream.concat(
      Stream.make(encoder.encode("first,")),
      Stream.unwrap(Effect.as(Deferred.await(open), Stream.make(encoder.encode("second,"), encoder.encode("last"))))
    )
  )
  const socket = Effect.gen(function*() {
    const request = yield* HttpServerRequest.HttpServerRequest
    const upgraded = yield* request.upgrade
    const reader = yield* upgraded.reader
    const writer = yield* upgraded.writer
    return yield* Effect.forever(Effect.flatMap(reader.pull, writer.writeAll))
  })
  const routes = Layer.mergeAll(
    HttpRouter.add("GET", "/hello", HttpServerResponse.text("hello")),
    HttpRouter.add("GET", "/held", held),
    HttpRouter.add("GET", "/streamed", streamed),
    HttpRouter.add("GET", "/stuck", Effect.uninterruptible(held)),
    HttpRouter.add("GET", "/socket", Effect.scoped(socket)),
    HttpRouter.add(
      "POST",
      "/upload",
      Effect.gen(function*() {
        const request = yield* HttpServerRequest.HttpServerRequest
        yield* Deferred.succeed(entered, undefined)
        return HttpServerResponse.text(`${(yield* request.text).length} bytes`)
      })
    )
  )
  return {
    entered: Deferred.await(entered),
    interrupted: Deferred.await(interrupted),
    open: Deferred.succeed(open, undefined),
    server: HttpRouter.serve(routes, { disableLogger: true, disableListenLog: true }),
    routes
  }
})

describe("a stop", () => {
  it.live("closes what is idle at once: connections that were used, and those that never were", () =>
    Effect.gen(function*() {
      const { server } = yield* gated
      const { port, stop } = yield* started(server)
      const used = new Client(port)
      used.get("/hello")
      yield* Effect.promise(() => used.until("hello"))
      expect(used.text).not.toMatch(/connection: close/i)
      const unused = yield* connected(new Client(port))
      expect(yield* stop).toBeLessThan(soon)
      yield* Effect.promise(() => Promise.all([used.closed, unused.closed]))
      expect([used.error, unused.error]).toEqual([undefined, undefined])
      const late = new Client(port)
      yield* Effect.promise(() => late.closed)
      expect(late.error).toBe("ECONNREFUSED")
    }))

  it.live("who was answered a moment ago may ask once more, who was silent for a while is not waited for", () =>
    Effect.gen(function*() {
      const attempt = Effect.gen(function*() {
        const { server } = yield* gated
        const { port, stop } = yield* started(server)
        const silent = new Client(port)
        silent.get("/hello")
        yield* Effect.promise(() => silent.until("hello"))
        yield* Effect.sleep("150 millis")
        const busy = new Client(port)
        busy.get("/hello")
        yield* Effect.promise(() => busy.until("hello"))
        const order: Array<string> = []
        const closed = Promise.all([
          busy.closed.then(() => order.push("busy")),
          silent.closed.then(() => order.push("silent"))
        ])
        const stopping = yield* Effect.forkChild(stop, { startImmediately: true })
        // After the silent one was closed.
        yield* Effect.repeat(Effect.callback<void>((resume) => void setImmediate(() => resume(Effect.void))), {
          times: 3
        })
        busy.get("/hello")
        yield* Fiber.join(stopping)
        yield* Effect.promise(() => closed)
        return { order, error: busy.error, answers: busy.text.match(/hello/g)?.length, text: busy.text }
      })
      // On a busy machine the 20 ms may be over before the request is seen.
      const seen = yield* Effect.repeat(attempt, { times: 4, until: ({ answers }) => answers === 2 })
      expect(seen).toMatchObject({ order: ["silent", "busy"], error: undefined, answers: 2 })
      expect(seen.text).toMatch(/connection: close/i)
    }))

  it.live("waits for requests in flight, tells their clients to close, and ends with the last answer", () =>
    Effect.gen(function*() {
      const { entered, open, server } = yield* gated
      const { port, stop } = yield* started(server)
      const client = new Client(port)
      client.get("/held")
      yield* entered
      const stopping = yield* Effect.forkChild(stop, { startImmediately: true })
      yield* Effect.sleep("150 millis")
      expect(stopping.pollUnsafe()).toBeUndefined()
      yield* open
      yield* Fiber.join(stopping)
      yield* Effect.promise(() => client.closed)
      expect(client.text).toMatch(/^HTTP\/1.1 200[^]*connection: close[^]*done$/i)
    }))

  it.live("waits for a response that streams, although its head had promised to keep the connection", () =>
    Effect.gen(function*() {
      const { open, server } = yield* gated
      const { port, stop } = yield* started(server)
      const client = new Client(port)
      client.get("/streamed")
      yield* Effect.promise(() => client.until("first,"))
      const stopping = yield* Effect.forkChild(stop, { startImmediately: true })
      yield* Effect.sleep("50 millis")
      yield* open
      expect(yield* Fiber.join(stopping)).toBeLessThan(soon)
      yield* Effect.promise(() => client.closed)
      expect(client.text).toContain("second,")
      expect(client.text).toMatch(/last\r\n0\r\n\r\n$/)
    }))

  it.live("one client that keeps its connection busy does not hold it, and no request of it fails", () =>
    Effect.gen(function*() {
      const { server } = yield* gated
      const { port, stop } = yield* started(server)
      const agent = new NodeHttp.Agent({ keepAlive: true, maxSockets: 1 })
      yield* Effect.addFinalizer(() => Effect.sync(() => agent.destroy()))
      const get = () =>
        new Promise<string>((resolve) => {
          const request = NodeHttp.get({ agent, host: "127.0.0.1", port, path: "/hello" }, (response) => {
            response.resume().once("end", () => resolve(String(response.statusCode)))
          })
          request.on("error", () => resolve(request.reusedSocket ? "lost" : "not connected"))
        })
      const answers: Array<string> = []
      const busy = Effect.promise(async () => {
        while (answers.at(-1) === undefined || answers.at(-1) === "200") answers.push(await get())
      })
      const client = yield* Effect.forkChild(busy)
      while (answers.length < 20) yield* Effect.sleep("1 millis")
      expect(yield* stop).toBeLessThan(soon)
      yield* Fiber.join(client)
      expect(answers.at(-1)).toBe("not connected")
    }))

  it.live("requests that were sent without waiting for answers are all answered", () =>
    Effect.gen(function*() {
      const { entered, open, server } = yield* gated
      const { port, stop } = yield* started(server)
      const client = new Client(port)
      client.get("/held")
      client.get("/hello")
      yield* entered
      const stopping = yield* Effect.forkChild(stop, { startImmediately: true })
      yield* Effect.sleep("50 millis")
      yield* open
      yield* Fiber.join(stopping)
      yield* Effect.promise(() => client.closed)
      expect(client.text.match(/HTTP\/1.1 200/g)).toHaveLength(2)
      expect(client.text.match(/connection: close/gi)).toHaveLength(1)
      expect(client.text).toMatch(/hello$/)
    }))

  it.live("a request that has half arrived may arrive", () =>
    Effect.gen(function*() {
      const { server } = yield* gated
      const { port, stop } = yield* started(server)
      const client = yield* connected(new Client(port))
      client.send("GET /hello HTTP/1.1\r\nHost: ")
      yield* Effect.sleep("50 millis")
      const stopping = yield* Effect.forkChild(stop, { startImmediately: true })
      yield* Effect.sleep("50 millis")
      client.send("x\r\n\r\n")
      expect(yield* Fiber.join(stopping)).toBeLessThan(soon)
      yield* Effect.promise(() => client.closed)
      expect(client.text).toMatch(/^HTTP\/1.1 200[^]*connection: close[^]*hello$/i)
    }))

  it.live("a request that never arrives whole is waited for no longer than upgraded connections", () =>
    Effect.gen(function*() {
      const { server } = yield* gated
      const { port, stop } = yield* started(server, { upgradedWithin: "100 millis" })
      const client = yield* connected(new Client(port))
      client.send("GET /hello HTTP/1.1\r\nHost: ")
      yield* Effect.sleep("50 millis")
      expect(yield* stop).toBeLessThan(soon)
      yield* Effect.promise(() => client.closed)
    }))

  it.live("an upload that is in flight is taken whole", () =>
    Effect.gen(function*() {
      const { entered, server } = yield* gated
      const { port, stop } = yield* started(server)
      const client = new Client(port)
      client.send("POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234")
      yield* entered
      const stopping = yield* Effect.forkChild(stop, { startImmediately: true })
      yield* Effect.sleep("50 millis")
      client.send("56789")
      yield* Fiber.join(stopping)
      yield* Effect.promise(() => client.closed)
      expect(client.text).toMatch(/10 bytes$/)
    }))

  it.live("is the same when what it belongs to was interrupted, as a signal does", () =>
    Effect.gen(function*() {
      const { entered, open, server } = yield* gated
      const address = yield* Deferred.make<number>()
      const told = { fatal: [], warnings: [] }
      const launched = yield* Effect.forkChild(Layer.launch(
        Layer.effectDiscard(
          Effect.flatMap(
            Effect.context<HttpServer.HttpServer>(),
            (context) => Deferred.succeed(address, portOf(context))
          )
        ).pipe(
          Layer.merge(server),
          Layer.provide(NodeHttpListener.layer({ inFlightWithin: never })),
          Layer.provide(base(told))
        )
      ))
      const client = new Client(yield* Deferred.await(address))
      client.get("/held")
      yield* entered
      const stopping = yield* Effect.forkChild(Fiber.interrupt(launched), { startImmediately: true })
      yield* Effect.sleep("150 millis")
      expect(stopping.pollUnsafe()).toBeUndefined()
      yield* open
      yield* Fiber.join(stopping)
      yield* Effect.promise(() => client.closed)
      expect(client.text).toMatch(/done$/)
    }))
})

describe("what hangs", () => {
  it.live("is cut when the time for requests in flight is over: the client gets 503, the handler is interrupted", () =>
    Effect.gen(function*() {
      const { entered, interrupted, server } = yield* gated
      const { port, stop, warnings } = yield* started(server, { inFlightWithin: "100 millis" })
      const client = new Client(port)
      client.get("/held?token=hush")
      yield* entered
      expect(yield* stop).toBeLessThan(soon)
      yield* interrupted
      yield* Effect.promise(() => client.closed)
      expect(client.text).toMatch(/^HTTP\/1.1 503/)
      expect(warnings).toContain("http: requests cut while stopping: GET /held")
    }))

  it.live("is cut although its handler cannot be interrupted", () =>
    Effect.gen(function*() {
      const { entered, server } = yield* gated
      const { port, stop } = yield* started(server, { inFlightWithin: "100 millis" })
      const client = new Client(port)
      client.get("/stuck")
      yield* entered
      expect(yield* stop).toBeLessThan(soon)
      yield* Effect.promise(() => client.closed)
      expect(client.text).toBe("")
    }))

  it.live("is cut under a server without a router, whose handlers can never be interrupted", () =>
    Effect.gen(function*() {
      const entered = yield* Deferred.make<void>()
      const server = HttpServer.serve(
        Effect.andThen(Deferred.succeed(entered, undefined), Effect.never)
      )
      const { port, stop } = yield* started(server, { inFlightWithin: "100 millis" })
      const client = new Client(port)
      client.get("/")
      yield* Deferred.await(entered)
      expect(yield* stop).toBeLessThan(soon)
      yield* Effect.promise(() => client.closed)
    }))

  it.live("a client that does not read its answer", () =>
    Effect.gen(function*() {
      const endless = HttpRouter.add(
        "GET",
        "/endless",
        HttpServerResponse.stream(Stream.forever(Stream.make(new Uint8Array(65_536))))
      )
      const { port, stop } = yield* started(
        HttpRouter.serve(endless, { disableLogger: true, disableListenLog: true }),
        { inFlightWithin: "200 millis" }
      )
      const client = yield* connected(new Client(port))
      client.socket.pause()
      client.get("/endless")
      yield* Effect.sleep("100 millis")
      expect(yield* stop).toBeLessThan(soon)
      client.socket.resume()
      yield* Effect.promise(() => client.closed)
    }))
})

describe("streams that go on for ever", () => {
  const encoder = new TextEncoder()
  /** An event at once, and then none until the stream is ended. */
  const feed = (type: string) =>
    Effect.gen(function*() {
      const released = yield* Deferred.make<void>()
      const events = Stream.make(encoder.encode("data: first\n\n")).pipe(
        Stream.concat(Stream.never),
        Stream.ensuring(Deferred.succeed(released, undefined))
      )
      const answer = HttpServerResponse.stream(events, { contentType: type })
      const routes = Layer.mergeAll(HttpRouter.add("GET", "/feed", answer), HttpRouter.add("POST", "/feed", answer))
      return {
        released: Deferred.await(released),
        server: HttpRouter.serve(routes, { disableLogger: true, disableListenLog: true })
      }
    })
  /** A whole answer, chunk after chunk, with nothing missing at its end. */
  const whole = /data: first\n\n\r\n0\r\n\r\n$/

  it.live("server-sent events are ended in order, and do not hold the stop", () =>
    Effect.gen(function*() {
      const { released, server } = yield* feed("text/event-stream; charset=utf-8")
      const { health, port, stop } = yield* started(server)
      const client = new Client(port)
      client.get("/feed")
      yield* Effect.promise(() => client.until("first"))
      // Who asked again would be answered by the same instance.
      yield* health.advance("draining")
      yield* Effect.sleep("50 millis")
      expect(client.isOpen).toBe(true)
      expect(yield* stop).toBeLessThan(soon)
      yield* released
      yield* Effect.promise(() => client.closed)
      expect(client.text).toMatch(/^HTTP\/1.1 200[^]*content-type: text\/event-stream; charset=utf-8\r\n/i)
      expect(client.text).toMatch(whole)
    }))

  it.live("one by POST is an answer like others, unless said otherwise; so is another type", () =>
    Effect.gen(function*() {
      const { server } = yield* feed("text/event-stream")
      const { port, stop, warnings } = yield* started(server, { inFlightWithin: "200 millis" })
      const posted = new Client(port)
      posted.send("POST /feed HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
      yield* Effect.promise(() => posted.until("first"))
      yield* stop
      yield* Effect.promise(() => posted.closed)
      expect(posted.text).not.toMatch(whole)
      expect(warnings).toContain("http: requests cut while stopping: POST /feed")

      const lines = yield* feed("application/x-ndjson")
      const other = yield* started(lines.server, { isEndless: (request) => request.url.startsWith("/feed") })
      const client = new Client(other.port)
      client.get("/feed")
      yield* Effect.promise(() => client.until("first"))
      expect(yield* other.stop).toBeLessThan(soon)
      yield* Effect.promise(() => client.closed)
      expect(client.text).toMatch(whole)
    }))

  it.live("a client that does not read its events gets a short grace", () =>
    Effect.gen(function*() {
      const flood = HttpRouter.add(
        "GET",
        "/flood",
        HttpServerResponse.stream(Stream.forever(Stream.make(new Uint8Array(65_536))), {
          contentType: "text/event-stream"
        })
      )
      const server = HttpRouter.serve(flood, { disableLogger: true, disableListenLog: true })
      const { port, stop } = yield* started(server, { upgradedWithin: "100 millis" })
      const client = yield* connected(new Client(port))
      client.socket.pause()
      client.get("/flood")
      yield* Effect.sleep("100 millis")
      expect(yield* stop).toBeLessThan(soon)
      client.socket.resume()
      yield* Effect.promise(() => client.closed)
    }))

  it.live("a connection whose events have ended is one like others", () =>
    Effect.gen(function*() {
      const { entered, open, routes } = yield* gated
      const short = HttpRouter.add(
        "GET",
        "/short",
        HttpServerResponse.stream(Stream.make(encoder.encode("data: all\n\n")), { contentType: "text/event-stream" })
      )
      const server = HttpRouter.serve(Layer.merge(routes, short), { disableLogger: true, disableListenLog: true })
      const { port, stop } = yield* started(server, { upgradedWithin: "50 millis" })
      const client = new Client(port)
      client.get("/short")
      yield* Effect.promise(() => client.until("all\n\n\r\n0\r\n\r\n"))
      client.get("/held")
      yield* entered
      const stopping = yield* Effect.forkChild(stop, { startImmediately: true })
      yield* Effect.sleep("200 millis")
      expect(stopping.pollUnsafe()).toBeUndefined()
      yield* open
      yield* Fiber.join(stopping)
      yield* Effect.promise(() => client.closed)
      expect(client.text).toMatch(/done$/)
    }))

  it.live("a client that has gone before its events begin is not kept in mind", () =>
    Effect.gen(function*() {
      const asked = yield* Deferred.make<NodeNet.Socket>()
      const gone = yield* Deferred.make<void>()
      const held = yield* Deferred.make<void>()
      const open = yield* Deferred.make<void>()
      const events = HttpServerResponse.stream(Stream.never, { contentType: "text/event-stream" })
      // Without a router, handlers are not interrupted when their clients go.
      const server = HttpServer.serve(Effect.gen(function*() {
        const request = yield* HttpServerRequest.HttpServerRequest
        if (request.url === "/held") {
          yield* Deferred.succeed(held, undefined)
          yield* Deferred.await(open)
          return HttpServerResponse.empty()
        }
        const { socket } = NodeHttpServerRequest.toIncomingMessage(request)
        const closed = Effect.callback<void>((resume) => void socket.once("close", () => resume(Effect.void)))
        yield* Deferred.succeed(asked, socket)
        yield* closed
        yield* Effect.sleep(1)
        yield* Effect.forkDetach(Effect.delay(Deferred.succeed(gone, undefined), 1))
        return events
      }))
      const { port, stop } = yield* started(server, { upgradedWithin: "20 millis" })
      const impatient = new Client(port)
      impatient.get("/late")
      const socket = yield* Deferred.await(asked)
      impatient.socket.destroy()
      yield* Deferred.await(gone)
      let told = 0
      socket.destroy = () => {
        told++
        return socket
      }
      new Client(port).get("/held")
      yield* Deferred.await(held)
      const stopping = yield* Effect.forkChild(stop, { startImmediately: true })
      yield* Effect.sleep("200 millis")
      yield* Deferred.succeed(open, undefined)
      yield* Fiber.join(stopping)
      expect(told).toBe(0)
    }))

  it.live("a request that waits for news is told of the stop, when nobody is accepted any more", () =>
    Effect.gen(function*() {
      const entered = yield* Deferred.make<void>()
      const poll = Effect.gen(function*() {
        const { awaitStopping } = yield* NodeHttpListener.HttpListener
        yield* Deferred.succeed(entered, undefined)
        return yield* Effect.raceFirst(Effect.never, Effect.as(awaitStopping, HttpServerResponse.empty()))
      })
      const server = HttpRouter.serve(HttpRouter.add("GET", "/news", poll), {
        disableLogger: true,
        disableListenLog: true
      })
      const { health, port, stop } = yield* started(server)
      const client = new Client(port)
      client.get("/news")
      yield* Deferred.await(entered)
      yield* health.advance("draining")
      yield* Effect.sleep("50 millis")
      expect(client.text).toBe("")
      expect(yield* stop).toBeLessThan(soon)
      yield* Effect.promise(() => client.closed)
      expect(client.text).toMatch(/^HTTP\/1.1 204[^]*connection: close/i)
      const late = new Client(port)
      yield* Effect.promise(() => late.closed)
      expect(late.error).toBe("ECONNREFUSED")
    }))
})

describe("upgraded connections", () => {
  const webSocket = (port: number) =>
    Effect.promise(() =>
      new Promise<WebSocket>((resolve, reject) => {
        const socket = new WebSocket(`ws://127.0.0.1:${port}/socket`)
        socket.addEventListener("open", () => resolve(socket))
        socket.addEventListener("error", () => reject(new Error("no WebSocket")))
      })
    )

  it.live("are told that the server goes away, and do not hold it", () =>
    Effect.gen(function*() {
      const { server } = yield* gated
      const { port, stop } = yield* started(server)
      const socket = yield* webSocket(port)
      const echo = new Promise((resolve) => socket.addEventListener("message", (event) => resolve(event.data)))
      socket.send("hi")
      expect(yield* Effect.promise(() => echo)).toBe("hi")
      const closed = new Promise<number>((resolve) => socket.addEventListener("close", (event) => resolve(event.code)))
      expect(yield* stop).toBeLessThan(soon)
      expect(yield* Effect.promise(() => closed)).toBe(1001)
    }))

  it.live("are told at once, while a request is still in flight", () =>
    Effect.gen(function*() {
      const { entered, open, server } = yield* gated
      const { port, stop } = yield* started(server)
      const socket = yield* webSocket(port)
      const client = new Client(port)
      client.get("/held")
      yield* entered
      const closed = new Promise<number>((resolve) => socket.addEventListener("close", (event) => resolve(event.code)))
      const stopping = yield* Effect.forkChild(stop, { startImmediately: true })
      expect(yield* Effect.promise(() => closed)).toBe(1001)
      expect(stopping.pollUnsafe()).toBeUndefined()
      yield* open
      yield* Fiber.join(stopping)
      yield* Effect.promise(() => client.closed)
      expect(client.text).toMatch(/done$/)
    }))

  const upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n" +
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

  it.live("one that does not answer gets a short grace", () =>
    Effect.gen(function*() {
      const { server } = yield* gated
      const { port, stop } = yield* started(server, { upgradedWithin: "100 millis" })
      const client = new Client(port)
      client.get("/socket", upgrade)
      yield* Effect.promise(() => client.until("101 Switching"))
      expect(yield* stop).toBeLessThan(soon)
      yield* Effect.promise(() => client.closed)
      // A close frame: 1001.
      expect(client.text).toContain("\x88\x02\x03\xe9")
    }))

  it.live("a request that offers to upgrade, but is answered, is a request like others", () =>
    Effect.gen(function*() {
      const { entered, open, server } = yield* gated
      const { port, stop } = yield* started(server, { upgradedWithin: "50 millis" })
      const client = new Client(port)
      client.get("/held", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n")
      yield* entered
      const stopping = yield* Effect.forkChild(stop, { startImmediately: true })
      yield* Effect.sleep("200 millis")
      expect(stopping.pollUnsafe()).toBeUndefined()
      yield* open
      yield* Fiber.join(stopping)
      yield* Effect.promise(() => client.closed)
      expect(client.text).toMatch(/^HTTP\/1.1 200[^]*done$/)
    }))
})

describe("before and after", () => {
  it.live("while the service drains it still serves, but each answer is the last of its connection", () =>
    Effect.gen(function*() {
      const { server } = yield* gated
      const { health, port } = yield* started(server)
      const early = new Client(port)
      early.get("/hello")
      yield* Effect.promise(() => early.until("hello"))
      yield* health.advance("draining")
      yield* Effect.yieldNow
      const late = new Client(port)
      early.get("/hello")
      late.get("/hello")
      yield* Effect.promise(() => Promise.all([early.closed, late.closed]))
      expect(early.text.match(/connection: close/gi)).toHaveLength(1)
      expect(early.text.match(/HTTP\/1.1 200/g)).toHaveLength(2)
      expect(late.text).toMatch(/^HTTP\/1.1 200[^]*connection: close[^]*hello$/i)
    }))

  it.live("until the routes are built, requests are answered with 503", () =>
    Effect.gen(function*() {
      const told = { fatal: [], warnings: [] }
      const context = yield* Layer.build(Layer.provideMerge(NodeHttpListener.layer(), base(told)))
      const client = new Client(portOf(context))
      client.get("/hello")
      yield* Effect.promise(() => client.closed)
      expect(client.text).toMatch(/^HTTP\/1.1 503[^]*connection: close/i)
    }).pipe(Effect.scoped))

  it.live("a port that is taken is told with what to do about it", () =>
    Effect.gen(function*() {
      const { server } = yield* gated
      const { port } = yield* started(server)
      const told = { fatal: [], warnings: [] }
      const error = yield* Effect.flip(
        Layer.build(Layer.provide(NodeHttpListener.layer({ name: "api" }), base(told, port)))
      )
      expect(error.exitReason).toBe("failed")
      expect(error.message).toBe(
        "Service failed while running: api: the port is taken: end who has it, or choose another one (EADDRINUSE)"
      )
    }).pipe(Effect.scoped))

  const impossible: ReadonlyArray<readonly [ListenAddress["Service"], string]> = [
    [{ host: "127.0.0.1", port: 65_536 }, "ERR_SOCKET_BAD_PORT"],
    [{ host: "192.0.2.1", port: 0 }, "EADDRNOTAVAIL"],
    [{ fd: 9999 }, "EINVAL"],
    [{ fd: 0 }, "(E"]
  ]
  it.live.each(impossible)("%j is a typed error", ([where, code]) =>
    Effect.gen(function*() {
      const told = { fatal: [], warnings: [] }
      const error = yield* Effect.flip(Layer.build(
        NodeHttpListener.layer().pipe(
          Layer.provide(Layer.succeed(ListenAddress, where)),
          Layer.provide(base(told))
        )
      ))
      expect(error.reason._tag).toBe("RunFailed")
      expect(error.message).toContain(code)
    }).pipe(Effect.scoped))
})

describe("the part of a service", () => {
  type Failure = Schema.SchemaError | HttpServerError | SocketError
  type Requests<E = Failure> = E extends Failure ? HttpRouter.Request<"Error", E> : never
  const run = Effect.fnUntraced(function*(routes: Layer.Layer<never, never, HttpRouter.HttpRouter | Requests>) {
    const told: Pick<Served, "fatal" | "warnings"> = { fatal: [], warnings: [] }
    const events: Array<ServiceEvent> = []
    const address = yield* Deferred.make<number>()
    const announce = Layer.effectDiscard(
      Effect.flatMap(Effect.context<HttpServer.HttpServer>(), (context) => Deferred.succeed(address, portOf(context)))
    )
    const api = NodeHttpPart.make("api", Layer.merge(routes, announce))
    const parts = yield* Parts.make([api])
    const onEvent = (event: ServiceEvent) => Effect.sync(() => void events.push(event))
    yield* Effect.provide(parts.start({ onEvent }), base(told))
    return {
      ...told,
      events,
      port: yield* Deferred.await(address),
      stop: (budget: Duration.Input) => parts.stop({ budget, onEvent })
    }
  })

  it.live("stops with its last answer", () =>
    Effect.gen(function*() {
      const { entered, open, routes } = yield* gated
      const { port, stop } = yield* run(routes)
      const client = new Client(port)
      client.get("/held")
      yield* entered
      const stopping = yield* Effect.forkChild(stop(never), { startImmediately: true })
      yield* Effect.sleep("50 millis")
      yield* open
      expect(yield* Fiber.join(stopping)).toMatchObject([{ _tag: "Stopped", name: "api" }])
      yield* Effect.promise(() => client.closed)
      expect(client.text).toMatch(/done$/)
    }))

  it.live("is abandoned when its share of the stop is over: the request is named, and everything is cut", () =>
    Effect.gen(function*() {
      const { entered, interrupted, routes } = yield* gated
      const { port, stop } = yield* run(routes)
      const client = new Client(port)
      client.get("/held")
      yield* entered
      const [outcome] = yield* stop("300 millis")
      expect(outcome?._tag === "Abandoned" && outcome.doing).toContain("GET /held, for ")
      yield* interrupted
      yield* Effect.promise(() => client.closed)
      expect(client.text).toMatch(/^HTTP\/1.1 503/)
    }))

  it.live("tells of routes that fail, and not of clients who ask for what there is not", () =>
    Effect.gen(function*() {
      const Body = Schema.Struct({ text: Schema.String })
      const { port, stop, warnings } = yield* run(Layer.mergeAll(
        HttpRouter.add("GET", "/bug", Effect.die(new Error("a bug"))),
        HttpRouter.add("GET", "/busy", HttpServerResponse.empty({ status: 503 })),
        HttpRouter.add("GET", "/row", Effect.as(Schema.decodeUnknownEffect(Body)({}), HttpServerResponse.empty())),
        HttpRouter.add("POST", "/", Effect.as(HttpServerRequest.schemaBodyJson(Body), HttpServerResponse.text("taken")))
      ))
      const client = new Client(port)
      client.get("/nowhere")
      client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{")
      // As it may be the route's own fault, it is told, but not each time.
      client.get("/row")
      for (let i = 0; i < 3; i++) client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
      client.get("/busy")
      client.get("/bug", "Connection: close\r\n")
      yield* Effect.promise(() => client.closed)
      expect(client.text.match(/^HTTP.1.1 \d+/gm)?.map((line) => line.slice(9))).toEqual(
        ["404", "400", "400", "400", "400", "400", "503", "500"]
      )
      expect(warnings.filter((line) => line.includes("failed"))).toEqual([
        expect.stringContaining("GET /row failed (400)"),
        expect.stringContaining("GET /bug failed (500)")
      ])
      yield* stop(never)
    }))

  it.live("what requests take is most of a stop, however many parts stop after it", () =>
    Effect.gen(function*() {
      const sql = Part.make("sql", Layer.empty)
      const tables = Part.make("tables", Layer.empty, { dependsOn: [sql] })
      const worker = Part.make("worker", Layer.empty, { dependsOn: [tables] })
      const { routes } = yield* gated
      const { stopWeight } = NodeHttpPart.make("api", routes, { dependsOn: [worker] })
      expect(stopWeight).toBeGreaterThan(sql.stopWeight + tables.stopWeight + worker.stopWeight)
      expect(NodeHttpPart.make("api", routes, { stopWeight: 1 }).stopWeight).toBe(1)
    }))

  it.live("what it depends on is there for its routes, and nobody else has to provide it", () =>
    Effect.gen(function*() {
      class Greeting extends Context.Service<Greeting, string>()("test/Greeting") {}
      const greeting = Part.make("greeting", Layer.succeed(Greeting, "good day"))
      const address = yield* Deferred.make<number>()
      const routes = HttpRouter.use(Effect.fnUntraced(function*(router) {
        const text = yield* Greeting
        yield* Deferred.succeed(address, portOf(yield* Effect.context<HttpServer.HttpServer>()))
        yield* router.add("GET", "/", HttpServerResponse.text(text))
      }))
      const parts = yield* Parts.make([NodeHttpPart.make("api", routes, { dependsOn: [greeting] })])
      yield* Effect.provide(parts.start(), base({ fatal: [], warnings: [] }))
      const client = new Client(yield* Deferred.await(address))
      client.get("/", "Connection: close\r\n")
      yield* Effect.promise(() => client.closed)
      expect(client.text).toMatch(/good day$/)
      const outcomes = yield* parts.stop({ budget: never })
      expect(outcomes.map(({ _tag, name }) => [name, _tag])).toEqual([["api", "Stopped"], ["greeting", "Stopped"]])
    }))

  it.live("a port that is taken is RunFailed, not a failed initialisation", () =>
    Effect.gen(function*() {
      const { routes, server } = yield* gated
      const { port } = yield* started(server)
      const parts = yield* Parts.make([NodeHttpPart.make("api", routes, { listen: { host: "127.0.0.1", port } })])
      const error = yield* Effect.flip(Effect.provide(parts.start(), base({ fatal: [], warnings: [] })))
      expect(error.exitReason).toBe("failed")
      expect(error.message).toContain("api: the port is taken")
    }))
})

describe("a socket that somebody else has opened", () => {
  // In Python, because Node does not hand a listening socket on by its number.
  const opener = `
import socket, subprocess, sys
s = socket.socket()
s.bind(("127.0.0.1", 0))
s.listen(16)
child = subprocess.Popen(sys.argv[1:] + [str(s.fileno())], pass_fds=(s.fileno(),), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
try:
    print(child.stdout.readline().strip())
    c = socket.create_connection(s.getsockname())
    c.sendall(b"GET /hello HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    answer = b""
    while chunk := c.recv(4096): answer += chunk
    print(answer.decode().splitlines()[-1])
    child.stdin.close()
    print(child.wait(30))
    waits = socket.create_connection(s.getsockname(), 10)
    s.accept()
    print("still open")
finally:
    child.kill()
`
  const program = `
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as NodeFs from "node:fs"
const { Fatal } = await import(process.argv[1] + "/Fatal.ts")
const { ListenAddress } = await import(process.argv[1] + "/ListenAddress.ts")
const Listener = await import(process.argv[1] + "/NodeHttpListener.ts")
await Effect.runPromise(Effect.scoped(Effect.gen(function*() {
  const routes = HttpRouter.add("GET", "/hello", HttpServerResponse.text("hello"))
  yield* Layer.build(HttpRouter.serve(routes, { disableLogger: true, disableListenLog: true }).pipe(
    Layer.provide(Listener.layer({ name: "api" })),
    Layer.provide(Layer.succeed(ListenAddress, { fd: Number(process.argv[2]) })),
    Layer.provide(Layer.succeed(Fatal, { report: Effect.die }))
  ))
  NodeFs.writeSync(1, "listening\\n")
  yield* Effect.callback((resume) => process.stdin.resume().once("end", () => resume(Effect.void)))
})))
`
  const python = NodeChild.spawnSync("python3", ["-c", "import sys; assert sys.version_info >= (3, 8)"]).status === 0
  if (!python) {
    console.warn("Skipped: a socket that somebody else has opened, because that needs python3 (3.8 or later)")
  }

  it.live.skipIf(!python)(
    python
      ? "is listened on, and stays open for its owner after the stop"
      : "is listened on (skipped: there is no python3 from 3.8 on)",
    () =>
      Effect.gen(function*() {
        const child = yield* Effect.promise(() =>
          new Promise<string>((resolve) => {
            NodeChild.execFile(
              "python3",
              [
                "-c",
                opener,
                process.execPath,
                "--input-type=module",
                "-e",
                program,
                NodePath.resolve(import.meta.dirname, "../../src/service")
              ],
              { cwd: NodePath.resolve(import.meta.dirname, "../.."), timeout: 60_000 },
              (error, stdout, stderr) => resolve(error === null ? stdout : `${stdout}${stderr}`)
            )
          })
        )
        const lines = child.trim().split("\n")
        expect(lines.filter((line) => !line.includes("INFO"))).toEqual(["hello", "0", "still open"])
      })
  )
})
