import { afterEach, describe, expect, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Scope from "effect/Scope"
import * as NodeChild from "node:child_process"
import * as NodeDiagnostics from "node:diagnostics_channel"
import * as NodeFs from "node:fs"
import * as NodeNet from "node:net"
import * as NodePath from "node:path"
import * as NodeReadline from "node:readline"
import { Fatal } from "../../src/service/Fatal.ts"
import * as Health from "../../src/service/Health.ts"
import * as NodeHealthListener from "../../src/service/NodeHealthListener.ts"
import type { ServiceError } from "../../src/service/ServiceError.ts"

/** A stop that does not wait for anything is over by then, however busy the machine is. */
const soon = 10_000

const sockets = new Set<NodeNet.Socket>()
const children = new Set<NodeChild.ChildProcess>()
afterEach(() => {
  for (const socket of sockets) socket.destroy()
  sockets.clear()
  for (const child of children) child.kill("SIGKILL")
  children.clear()
})

const idle = (port: number): Promise<NodeNet.Socket> =>
  new Promise((resolve, reject) => {
    const socket = NodeNet.connect(port, "127.0.0.1", () => resolve(socket))
    sockets.add(socket)
    socket.resume().on("error", reject)
  })

/** All that comes back for these bytes until the server closes, or the client does after `end`. */
const talk = (port: number, bytes: string | Buffer, end = false): Promise<string> =>
  new Promise((resolve) => {
    let text = ""
    const socket = NodeNet.connect(port, "127.0.0.1", () => {
      socket.write(bytes)
      if (end) socket.end()
    })
    sockets.add(socket)
    socket.setEncoding("latin1")
    socket.on("data", (chunk) => {
      text += String(chunk)
    })
    // A reset after the answer is an end as well.
    socket.on("error", () => {})
    socket.once("close", () => resolve(text))
  })

const probe = (port: number, path = "/readyz", init: RequestInit = {}): Effect.Effect<Response> =>
  Effect.promise(() => fetch(`http://127.0.0.1:${port}${path}`, { ...init, headers: { connection: "close" } }))

const status = (port: number, path?: string): Effect.Effect<number> =>
  Effect.flatMap(
    probe(port, path),
    (response) => Effect.as(Effect.promise(() => response.arrayBuffer()), response.status)
  )

const started = Effect.fnUntraced(function*(options: Partial<NodeHealthListener.Options> = {}) {
  const fatal: Array<ServiceError> = []
  const scope = yield* Scope.make()
  yield* Effect.addFinalizer(() => Scope.close(scope, Exit.void))
  const context = yield* NodeHealthListener.layer({ host: "127.0.0.1", port: 0, ...options }).pipe(
    Layer.provideMerge(Health.layer),
    Layer.provide(Layer.succeed(Fatal, { report: (error) => Effect.sync(() => void fatal.push(error)) })),
    Layer.buildWithScope(scope)
  )
  const { port } = Context.get(context, NodeHealthListener.HealthListener)
  return { fatal, port, health: Context.get(context, Health.Health), stop: Scope.close(scope, Exit.void) }
})

describe("answers", () => {
  const paths = ["/startupz", "/readyz", "/livez", "/"]
  const statuses = (port: number) => Effect.forEach(paths, (path) => status(port, path))

  it.live("each path in each state", () =>
    Effect.gen(function*() {
      const { health, port } = yield* started()
      expect(yield* statuses(port)).toEqual([503, 503, 200, 503])
      yield* health.advance("ready")
      expect(yield* statuses(port)).toEqual([200, 200, 200, 200])
      yield* health.advance("draining")
      expect(yield* statuses(port)).toEqual([200, 503, 200, 503])
    }))

  it.live("the report is in the body, and nothing keeps it", () =>
    Effect.gen(function*() {
      const { health, port } = yield* started()
      yield* health.add({ name: "db", check: Effect.fail(new Error("no route to host")) })
      yield* health.advance("ready")
      const response = yield* probe(port)
      expect(response.status).toBe(503)
      expect(response.headers.get("content-type")).toBe("application/json")
      expect(response.headers.get("cache-control")).toBe("no-store")
      expect(yield* Effect.promise(() => response.json())).toMatchObject({
        ok: false,
        probe: "ready",
        state: "ready",
        checks: [{ name: "db", ok: false, why: "no route to host" }]
      })
    }))

  const requests: ReadonlyArray<readonly [string, string, RegExp]> = [
    [
      "a path that nobody knows",
      "POST /any/thing?x=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
      /200[^]*"ready"/
    ],
    ["a query", "GET /livez?verbose HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", /200[^]*"live"/],
    ["a slash at the end", "GET /livez/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", /200[^]*"live"/],
    ["an absolute target", "GET http://x:1/livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", /200[^]*"live"/],
    ["HTTP/1.0", "GET /livez HTTP/1.0\r\n\r\n", /200[^]*"live"/],
    ["no Host", "GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n", /200[^]*"live"/],
    [
      "a body that nobody reads",
      "PUT /livez HTTP/1.1\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
      /200[^]*"live"/
    ],
    ["HEAD", "HEAD /livez HTTP/1.1\r\nConnection: close\r\n\r\n", /200[^]*content-length: [1-9][^]*\r\n\r\n$/i],
    [
      "two at once",
      "GET /livez HTTP/1.1\r\n\r\nGET /readyz HTTP/1.1\r\nConnection: close\r\n\r\n",
      /200[^]*"live"[^]*200[^]*"ready"/
    ]
  ]
  it.live.each(requests)("%s", ([, bytes, answer]) =>
    Effect.gen(function*() {
      const { health, port } = yield* started()
      yield* health.advance("ready")
      expect(yield* Effect.promise(() => talk(port, bytes))).toMatch(answer)
    }))

  it.live("metrics for Prometheus", () =>
    Effect.gen(function*() {
      const { port } = yield* started()
      yield* Metric.update(Metric.counter("health_listener_test_total"), 3)
      const response = yield* probe(port, "/metrics")
      expect(response.headers.get("content-type")).toMatch(/^text\/plain; version=0.0.4/)
      expect(yield* Effect.promise(() => response.text())).toMatch(/^health_listener_test_total 3$/m)
    }))

  it.live("200 probes at once ask a check once", () =>
    Effect.gen(function*() {
      const { health, port } = yield* started()
      let asked = 0
      yield* health.add({
        name: "db",
        check: Effect.andThen(Effect.sync(() => void asked++), Effect.sleep("300 millis"))
      })
      yield* health.advance("ready")
      const all = yield* Effect.forEach(Array.from({ length: 200 }), () => status(port), { concurrency: "unbounded" })
      expect(all.every((one) => one === 200)).toBe(true)
      // More than once only if the machine needs longer than a second for 200 requests.
      expect(asked).toBeLessThan(5)
    }))
})

describe("what comes in does no harm", () => {
  const garbage: ReadonlyArray<readonly [string, string | Buffer, boolean]> = [
    ["bytes", Buffer.from(Array.from({ length: 4096 }, (_, index) => (index * 7919) % 256)), false],
    ["the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false],
    ["TLS", Buffer.from("1603010200010001fc0303", "hex"), false],
    ["half a request", "GET /readyz HTTP/1.1\r\nHo", true],
    ["nothing", "", true],
    ["a head without an end", `GET / HTTP/1.1\r\n${"x: y\r\n".repeat(20_000)}`, false],
    ["a tunnel", "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", false],
    ["an upgrade", "GET / HTTP/1.1\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n", false],
    ["an expectation", "GET / HTTP/1.1\r\nExpect: miracles\r\nConnection: close\r\n\r\n", false]
  ]
  it.live.each(garbage)("%s", ([, bytes, end]) =>
    Effect.gen(function*() {
      const { fatal, health, port } = yield* started()
      yield* health.advance("ready")
      // The answer is a refusal or none at all; what counts is that the connection ends, and that the next one is served.
      yield* Effect.promise(() => talk(port, bytes, end))
      expect(yield* status(port)).toBe(200)
      expect(fatal).toEqual([])
    }))

  it.live("a client that takes too long for the head of its request is cut, also one that sends nothing", () =>
    Effect.gen(function*() {
      const { port } = yield* started({ headersWithin: "200 millis" })
      const [slow, silent] = yield* Effect.promise(() =>
        Promise.all([talk(port, "GET / HTTP/1.1\r\nHo"), talk(port, "")])
      )
      expect(slow).toMatch(/^HTTP\/1.1 408/)
      expect(silent).toMatch(/^(HTTP\/1.1 408|$)/)
    }))

  it.live("a connection that is idle for too long after its request is closed", () =>
    Effect.gen(function*() {
      const { port } = yield* started({ idleWithin: "100 millis" })
      expect(yield* Effect.promise(() => talk(port, "GET /livez HTTP/1.1\r\n\r\n"))).toMatch(/200[^]*"live"/)
    }))

  it.live("at the limit the connection that was idle for the longest time makes room", () =>
    Effect.gen(function*() {
      const { health, port } = yield* started({ maxConnections: 3 })
      yield* health.advance("ready")
      const first = yield* Effect.promise(() => idle(port))
      const kept = yield* Effect.promise(() => Promise.all([idle(port), idle(port)]))
      expect(yield* status(port)).toBe(200)
      yield* Effect.promise(() =>
        new Promise<void>((resolve) => first.destroyed ? resolve() : first.once("close", () => resolve()))
      )
      expect(kept.map((socket) => socket.destroyed)).toEqual([false, false])
    }))

  it.live("a probe that is being answered is not what makes room", () =>
    Effect.gen(function*() {
      const { health, port } = yield* started({ maxConnections: 2 })
      const asked = yield* Deferred.make<void>()
      const open = yield* Deferred.make<void>()
      yield* health.add({
        name: "slow",
        check: Effect.andThen(Deferred.succeed(asked, undefined), Deferred.await(open)),
        within: "60 seconds"
      })
      yield* health.advance("ready")
      const answer = talk(port, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
      yield* Deferred.await(asked)
      for (let count = 0; count < 10; count++) yield* Effect.promise(() => idle(port))
      yield* Deferred.succeed(open, undefined)
      expect(yield* Effect.promise(() => answer)).toMatch(/ 200 /)
    }))
})

describe("a stop", () => {
  it.live("closes what is idle at once and answers what was asked", () =>
    Effect.gen(function*() {
      const { health, port, stop } = yield* started()
      const asked = yield* Deferred.make<void>()
      const open = yield* Deferred.make<void>()
      yield* health.add({
        name: "slow",
        check: Effect.andThen(Deferred.succeed(asked, undefined), Deferred.await(open))
      })
      yield* health.advance("ready")
      yield* Effect.promise(() => idle(port))
      const answer = talk(port, "GET / HTTP/1.1\r\n\r\n")
      yield* Deferred.await(asked)
      yield* Effect.forkChild(Effect.andThen(Effect.sleep("50 millis"), Deferred.succeed(open, undefined)))
      const began = performance.now()
      yield* stop
      expect(performance.now() - began).toBeLessThan(soon)
      expect(yield* Effect.promise(() => answer)).toMatch(/ 200 [^]*connection: close/i)
    }))
})

// By the test's clock, which stands still: what waits for a moment never ends.
it.effect("a stop does not wait for whoever may probe again on the same connection", () =>
  Effect.gen(function*() {
    const { port, stop } = yield* started()
    const socket = yield* Effect.promise(() => idle(port))
    const answered = new Promise((resolve) => socket.once("data", resolve))
    const closed = new Promise((resolve) => socket.once("close", resolve))
    socket.write("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    yield* Effect.promise(() => answered)
    yield* stop
    yield* Effect.promise(() => closed)
  }))

describe("a failure to accept connections", () => {
  // Node's own accept(2) fails in silence on Linux, so this one is made up; the server is the real one.
  const serverOf = (port: number) =>
    Effect.promise(() =>
      new Promise<NodeNet.Server>((resolve) => {
        const found = (message: unknown) => {
          if (typeof message !== "object" || message === null || !("server" in message)) return
          const { server } = message
          if (!(server instanceof NodeNet.Server)) return
          const address = server.address()
          if (address === null || typeof address === "string" || address.port !== port) return
          NodeDiagnostics.unsubscribe("http.server.request.start", found)
          resolve(server)
        }
        NodeDiagnostics.subscribe("http.server.request.start", found)
        void talk(port, "GET / HTTP/1.0\r\n\r\n")
      })
    )
  const accept = (code: string) => Object.assign(new Error(`accept ${code}`), { code, syscall: "accept" })

  it.live.each(["EMFILE", "ENFILE", "ECONNABORTED", "ENOBUFS"])("%s passes", (code) =>
    Effect.gen(function*() {
      const { fatal, port } = yield* started()
      const server = yield* serverOf(port)
      for (let count = 0; count < 1000; count++) server.emit("error", accept(code))
      expect(yield* status(port, "/livez")).toBe(200)
      expect(fatal).toEqual([])
    }))

  it.live("EINVAL does not: the service is told, once", () =>
    Effect.gen(function*() {
      const { fatal, port } = yield* started()
      const server = yield* serverOf(port)
      server.emit("error", accept("EINVAL"))
      server.emit("error", accept("EINVAL"))
      while (fatal.length === 0) yield* Effect.sleep("1 millis")
      expect(fatal.map((error) => [error.exitReason, error.message])).toEqual([
        ["healthFailed", "Health listener failed: accept EINVAL"]
      ])
    }))
})

describe("a port that cannot be had", () => {
  it.live("is a typed error that names it and says what to do", () =>
    Effect.gen(function*() {
      const { port } = yield* started()
      const taken = yield* Effect.flip(started({ port }))
      expect(taken.exitReason).toBe("healthBind")
      expect(taken.message).toBe(
        `Health listener could not bind to 127.0.0.1:${port}: the port is taken: end who has it, or choose another one (EADDRINUSE)`
      )
      const foreign = yield* Effect.flip(started({ host: "192.0.2.1" }))
      expect(foreign.message).toContain("this machine has no such address (EADDRNOTAVAIL)")
      const impossible = yield* Effect.flip(started({ port: 65_536 }))
      expect(impossible.reason).toMatchObject({ _tag: "HealthBindFailed", address: "127.0.0.1:65536" })
    }))
})

/** A process of its own, so that its file descriptors are not ours. It reads commands, and answers with a line each. */
const program = `
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as NodeDiagnostics from "node:diagnostics_channel"
import * as NodeFs from "node:fs"
import * as NodeReadline from "node:readline"
const { Fatal } = await import(process.argv[1] + "/Fatal.ts")
const { Health, layer } = await import(process.argv[1] + "/Health.ts")
const Listener = await import(process.argv[1] + "/NodeHealthListener.ts")
const open = []
const commands = {
  fill: () => { try { for (;;) open.push(NodeFs.openSync("/dev/null")) } catch (error) { return error.code } },
  free: () => { for (const fd of open.splice(0)) NodeFs.closeSync(fd); return "freed" },
  count: () => String(NodeFs.readdirSync("/proc/self/fd").filter((fd) => {
    try { return NodeFs.readlinkSync("/proc/self/fd/" + fd).startsWith("socket:") } catch { return false }
  }).length),
  memory: () => String(process.memoryUsage().rss)
}
const say = (line) => NodeFs.writeSync(1, line + "\\n")
await Effect.runPromise(Effect.scoped(Effect.gen(function*() {
  const { port } = yield* Listener.HealthListener
  yield* (yield* Health).advance("ready")
  say(String(port))
  NodeReadline.createInterface({ input: process.stdin }).on("line", (line) => say(commands[line]()))
  return yield* Effect.never
})).pipe(Effect.provide(Listener.layer({ host: "127.0.0.1", port: 0 }).pipe(
  Layer.provideMerge(layer),
  Layer.provide(Layer.succeed(Fatal, { report: (error) => Effect.sync(() => { say(error.message); process.exit(9) }) }))
))))
`

const inProcess = Effect.fnUntraced(function*(descriptors?: number) {
  const limit = descriptors === undefined ? "" : `ulimit -n ${descriptors}; `
  const child = NodeChild.spawn(
    "sh",
    [
      "-c",
      `${limit}exec "$0" "$@"`,
      process.execPath,
      "--input-type=module",
      "-e",
      program,
      NodePath.resolve(import.meta.dirname, "../../src/service")
    ],
    { cwd: NodePath.resolve(import.meta.dirname, "../.."), stdio: ["pipe", "pipe", "inherit"] }
  )
  children.add(child)
  const lines = NodeReadline.createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const line = Effect.promise(async () => String((await lines.next()).value))
  const port = Number(yield* line)
  const ask = (command: "count" | "fill" | "free" | "memory") =>
    Effect.andThen(Effect.sync(() => child.stdin.write(`${command}\n`)), line)
  return { ask, child, port }
})

describe("file descriptors", () => {
  it.live("40 idle connections to a process that may have 32 descriptors: probes are answered, and it can still open files", () =>
    Effect.gen(function*() {
      const { ask, child, port } = yield* inProcess(32)
      for (let count = 0; count < 40; count++) {
        yield* Effect.promise(() => idle(port))
        if (count % 10 === 0) expect(yield* status(port)).toBe(200)
      }
      expect(yield* ask("fill")).toBe("EMFILE")
      expect(yield* ask("free")).toBe("freed")
      expect(yield* status(port)).toBe(200)
      expect(child.exitCode).toBeNull()
    }))

  it.live("none left at all: probes fail meanwhile, the process lives, and answers as soon as there are some again", () =>
    Effect.gen(function*() {
      const { ask, child, port } = yield* inProcess(64)
      expect(yield* status(port)).toBe(200)
      expect(yield* ask("fill")).toBe("EMFILE")
      expect(yield* Effect.promise(() => talk(port, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n"))).toBe("")
      expect(yield* ask("free")).toBe("freed")
      expect(yield* status(port)).toBe(200)
      expect(child.exitCode).toBeNull()
    }))

  const limit = Number(/^Max open files\s+(\d+)/m.exec(NodeFs.readFileSync("/proc/self/limits", "utf8"))?.[1])
  const enough = limit >= 10_500
  if (!enough) console.warn(`Skipped: 10,000 idle connections, as only ${limit} files may be open`)
  it.live.skipIf(!enough)(
    enough
      ? "10,000 idle connections: no more than 256 are held, and each probe in between is answered"
      : `10,000 idle connections (skipped: this process may open ${limit} files, it takes 10,500)`,
    () =>
      Effect.gen(function*() {
        const { ask, port } = yield* inProcess()
        const before = Number(yield* ask("memory"))
        const slowest = { probe: 0 }
        for (let batch = 0; batch < 100; batch++) {
          yield* Effect.promise(() => Promise.all(Array.from({ length: 100 }, () => idle(port))))
          const began = performance.now()
          expect(yield* status(port)).toBe(200)
          slowest.probe = Math.max(slowest.probe, performance.now() - began)
        }
        // 256, the listening one, stdin and stdout, and what is being closed.
        expect(Number(yield* ask("count"))).toBeLessThan(300)
        const grown = (Number(yield* ask("memory")) - before) / 1_048_576
        yield* Effect.logInfo(`slowest probe ${slowest.probe.toFixed(1)} ms, memory +${grown.toFixed(1)} MiB`)
      })
  )
})
