import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"
import * as TestClock from "effect/testing/TestClock"
import * as NodeFs from "node:fs"
import { createConnection, type Socket as NetSocket } from "node:net"
import { join } from "node:path"
import type { FirecrackerError } from "../../src/firecracker/FirecrackerError.ts"
import * as VsockHandshake from "../../src/firecracker/internal/vsockHandshake.ts"
import * as NodeVsock from "../../src/firecracker/NodeVsock.ts"
import * as Vsock from "../../src/firecracker/Vsock.ts"
import { makeSocketPair } from "../../src/microvm/internal/socketPair.ts"
import { directory, serve, until } from "./rawServer.ts"

const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text)
const reasonOf = <A, R>(result: Effect.Effect<A, FirecrackerError, R>) =>
  Effect.map(Effect.flip(result), ({ reason }) => reason)

/** All that the other end says, up to its end. */
const readAll = (socket: Socket.Socket): Effect.Effect<string> =>
  Effect.gen(function*() {
    const pull = yield* Socket.readerString(socket)
    let text = ""
    yield* Effect.ignore(Effect.forever(Effect.map(pull, (pieces) => {
      text += pieces.join("")
    })))
    return text
  }).pipe(Effect.scoped, Effect.orDie)

describe("the handshake", () => {
  const read = (pieces: Iterable<Uint8Array>) => {
    const reader = VsockHandshake.make()
    const left: Array<Uint8Array> = []
    let verdict: VsockHandshake.Step = { _tag: "More" }
    for (const piece of pieces) {
      if (verdict._tag === "More") verdict = reader.push(piece)
      else left.push(piece)
    }
    return {
      verdict: verdict._tag === "Connected"
        ? `connected ${verdict.hostPort}`
        : verdict._tag === "Refused"
        ? verdict.reply
        : "more",
      payload: Buffer.concat(verdict._tag === "Connected" ? [verdict.rest, ...left] : []).toString("latin1")
    }
  }

  it("asks for the port in one line", () => {
    assert.strictEqual(VsockHandshake.request(5005), "CONNECT 5005\n")
  })

  it.prop(
    "takes its line and not a byte more, however it is cut",
    {
      port: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 0xffffffff })),
      payload: Schema.String,
      size: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 20 }))
    },
    ({ payload, port, size }) => {
      const all = Buffer.from(`OK ${port}\n${payload}`)
      const pieces = Array.from(
        { length: Math.ceil(all.length / size) },
        (_, i) => all.subarray(i * size, (i + 1) * size)
      )
      assert.deepStrictEqual(read(pieces), {
        verdict: `connected ${port}`,
        payload: Buffer.from(payload).toString("latin1")
      })
    }
  )

  it.prop(
    "has a verdict on any bytes, and keeps 64 of them at most",
    { bytes: Schema.Array(Schema.Literals([0x4f, 0x4b, 0x20, 0x31, 0x0a, 0x0d, 0x00, 0xff])) },
    ({ bytes }) => {
      const { verdict } = read([new Uint8Array(bytes)])
      const text = Buffer.from(bytes).toString("latin1")
      const line = text.split("\n")[0] ?? ""
      assert.strictEqual(verdict.startsWith("connected"), text.includes("\n") && /^OK \d{1,10}$/.test(line), verdict)
      assert.isAtMost(verdict.length, 64)
    },
    { arbitrary: { runs: 1000 } }
  )

  it.each([
    ["REJECT busy\n", "REJECT busy"],
    ["\n", ""],
    ["OK\n", "OK"],
    ["ok 5\n", "ok 5"],
    ["OK 5\r\n", "OK 5\r"],
    ["OK -5\n", "OK -5"],
    ["OK 12345678901\n", "OK 12345678901"],
    ["x".repeat(64), "x".repeat(64)],
    ["O".repeat(63), "more"]
  ])("does not take %j", (text, verdict) => {
    assert.deepStrictEqual(read([bytesOf(text)]), { verdict, payload: "" })
    assert.deepStrictEqual(read(Array.from(bytesOf(text), (byte) => new Uint8Array([byte]))).verdict, verdict)
  })
})

describe("connecting, in virtual time", () => {
  const closed = new Socket.SocketError({ reason: new Socket.SocketCloseError({ code: 1000 }) })
  const refusedBy = (code: string) =>
    new Socket.SocketError({
      reason: new Socket.SocketOpenError({ kind: "Unknown", cause: Object.assign(new Error(code), { code }) })
    })

  /** A host whose sockets do, at each attempt, what the test says. */
  const world = (attempt: (n: number) => Effect.Effect<string, Socket.SocketError>) => {
    const times: Array<number> = []
    const layer = Layer.succeed(Vsock.Vsock, {
      socketAt: () =>
        Effect.succeed(Socket.make({
          reader: Effect.gen(function*() {
            times.push(yield* Effect.clockWith((clock) => clock.currentTimeMillis))
            const reply = yield* attempt(times.length)
            let said = false
            return {
              pull: Effect.suspend(() => {
                if (said) return Effect.fail(closed)
                said = true
                return reply === "" ? Effect.fail(closed) : Effect.succeed([reply] as const)
              }),
              upgrade: Socket.SocketUpgradeError.unsupported
            }
          }),
          writer: Effect.succeed({ write: () => Effect.void, writeAll: () => Effect.void })
        })),
      listenAt: () => Effect.never
    })
    return { layer, times }
  }

  it.effect("tries again, soon and then every 50 ms, while the guest comes up", () =>
    Effect.gen(function*() {
      const replies = [refusedBy("ENOENT"), refusedBy("ECONNREFUSED"), refusedBy("EAGAIN"), "", "", "", "", ""]
      const { layer, times } = world((n) => {
        const reply = replies[n - 1] ?? "OK 1073741824\nhello"
        return typeof reply === "string" ? Effect.succeed(reply) : Effect.fail(reply)
      })
      const connecting = yield* Effect.forkChild(
        Effect.flatMap(Vsock.connect("/vsock", 7), readAll).pipe(Effect.scoped, Effect.provide(layer))
      )
      yield* TestClock.adjust("1 second")
      assert.strictEqual(yield* Fiber.join(connecting), "hello")
      assert.deepStrictEqual(times, [0, 2, 6, 14, 30, 62, 112, 162, 212])
    }))

  it.effect("until the time is over, and tells what the last failure was", () =>
    Effect.gen(function*() {
      const { layer } = world(() => Effect.succeed(""))
      const connecting = yield* Effect.forkChild(
        reasonOf(Vsock.connect("/vsock", 7)).pipe(Effect.scoped, Effect.provide(layer))
      )
      yield* TestClock.adjust("9999 millis")
      assert.strictEqual(connecting.pollUnsafe(), undefined)
      yield* TestClock.adjust("1 millis")
      assert.strictEqual(
        (yield* Fiber.join(connecting)).message,
        "vsock port 7 at /vsock: no connection within 10s: nobody listens on it in the guest"
      )
    }))

  it.effect("an attempt without an answer ends with the time, too", () =>
    Effect.gen(function*() {
      const { layer } = world(() => Effect.never)
      const connecting = yield* Effect.forkChild(
        reasonOf(Vsock.connect("/vsock", 7, { within: "2 seconds" })).pipe(Effect.scoped, Effect.provide(layer))
      )
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual((yield* Fiber.join(connecting)).message, "vsock port 7 at /vsock: no connection within 2s")
    }))

  it.effect.each<readonly [text: string, why: string]>([
    ["REJECT busy\n", "Firecracker answered \"REJECT busy\""],
    ["HTTP/1.1 400", "Firecracker answered \"HTTP/1.1 400\""]
  ])("but not after another answer: %j", ([text, why]) =>
    Effect.gen(function*() {
      const { layer, times } = world(() => Effect.succeed(text))
      const reason = yield* reasonOf(Vsock.connect("/vsock", 7)).pipe(Effect.scoped, Effect.provide(layer))
      assert.strictEqual(reason.message, `vsock port 7 at /vsock: ${why}`)
      assert.strictEqual(times.length, 1)
    }))

  it.effect("nor when the socket is not for us", () =>
    Effect.gen(function*() {
      const { layer, times } = world(() => Effect.fail(refusedBy("EACCES")))
      assert.strictEqual(
        (yield* reasonOf(Vsock.connect("/vsock", 7)).pipe(Effect.scoped, Effect.provide(layer))).message,
        "vsock port 7 at /vsock: EACCES"
      )
      assert.strictEqual(times.length, 1)
    }))

  it.effect("what cannot be is refused before, all at once", () =>
    Effect.gen(function*() {
      const { layer, times } = world(() => Effect.succeed("OK 1\n"))
      for (const port of [-1, 1.5, 0xffffffff, Number.NaN]) {
        for (
          const form of [
            Effect.asVoid(Vsock.connect("", port)),
            Effect.asVoid(Vsock.socket("", port)),
            Effect.asVoid(Vsock.listen("", port))
          ]
        ) {
          const reason = yield* reasonOf(Effect.scoped(form)).pipe(Effect.provide(layer))
          assert.deepStrictEqual(reason._tag === "InvalidRequest" ? reason.faults.map(({ field }) => field) : reason, [
            "path",
            "port"
          ])
        }
      }
      assert.strictEqual(times.length, 0)
    }))

  it.effect("nothing is left of it when it is interrupted", () =>
    Effect.gen(function*() {
      const opened = yield* Deferred.make<void>()
      let closedAgain = false
      const { guest, host } = yield* makeSocketPair(4)
      const layer = Layer.succeed(Vsock.Vsock, {
        socketAt: () =>
          Effect.succeed(Socket.make({
            reader: Effect.gen(function*() {
              yield* Effect.addFinalizer(() =>
                Effect.sync(() => {
                  closedAgain = true
                })
              )
              yield* Deferred.succeed(opened, undefined)
              return yield* host.reader
            }),
            writer: host.writer
          })),
        listenAt: () => Effect.never
      })
      const scope = yield* Scope.make()
      const connecting = yield* Effect.forkChild(
        Vsock.connect("/vsock", 7).pipe(Scope.provide(scope), Effect.provide(layer))
      )
      yield* Deferred.await(opened)
      yield* Fiber.interrupt(connecting)
      assert.isTrue(closedAgain)
      assert.strictEqual(yield* readAll(guest), "CONNECT 7\n")
    }))
})

/** Firecracker's side of the socket: takes the line, then is the guest. */
const guest = (onConnected: (socket: NetSocket) => void) => (socket: NetSocket): void => {
  socket.once("data", (line) => {
    if (line.toString() !== "CONNECT 5000\n") return void socket.destroy()
    socket.write("OK 1073741824\n")
    onConnected(socket)
  })
}

const live = <A, E>(test: Effect.Effect<A, E, Scope.Scope | Vsock.Vsock>) =>
  Effect.scoped(test).pipe(Effect.provide(NodeVsock.layer))

describe("a connection to the guest", () => {
  it.live("is asked for in one write, and what follows the answer is the guest's", () =>
    live(Effect.gen(function*() {
      const path = join(yield* directory(), "v")
      const server = yield* serve(
        path,
        guest((socket) => {
          socket.write("hello")
          socket.on("data", () => socket.end())
        })
      )
      const socket = yield* Vsock.connect(path, 5000)
      const writer = yield* socket.writer
      yield* writer.write("bye")
      assert.strictEqual(yield* readAll(socket), "hello")
      assert.deepStrictEqual(server.received, [["CONNECT 5000\n", "bye"]])
    })))

  it.live("waits for the socket, and for somebody to listen in the guest", () =>
    live(Effect.gen(function*() {
      const path = join(yield* directory("d".repeat(110)), "v")
      const connecting = yield* Effect.forkChild(Effect.flatMap(Vsock.connect(path, 5000), readAll))
      yield* Effect.sleep("20 millis")
      yield* serve(
        path,
        (socket, n) => n < 3 ? void socket.destroy() : guest((connected) => connected.end("up"))(socket)
      )
      assert.strictEqual(yield* Fiber.join(connecting), "up")
    })))

  it.live("ends with its scope, is read once, and takes nothing afterwards", () =>
    live(Effect.gen(function*() {
      const path = join(yield* directory(), "v")
      const server = yield* serve(path, guest(() => {}))
      const scope = yield* Scope.make()
      const socket = yield* Scope.provide(Vsock.connect(path, 5000), scope)
      const reading = yield* Effect.forkChild(readAll(socket))
      yield* Effect.yieldNow
      assert.isTrue(Exit.isFailure(yield* Effect.exit(Effect.scoped(socket.reader))))
      yield* Fiber.interrupt(reading)
      yield* until(() => server.open() === 0)
      const writer = yield* Effect.scoped(socket.writer)
      assert.strictEqual((yield* Effect.flip(writer.write("x"))).reason._tag, "SocketCloseError")

      const other = yield* Scope.provide(Vsock.connect(path, 5000), scope)
      const pull = yield* Effect.scoped(other.reader).pipe(Effect.forkChild)
      yield* Fiber.await(pull)
      const unread = yield* Scope.provide(Vsock.connect(path, 5000), scope)
      assert.strictEqual(server.open(), 1)
      yield* Scope.close(scope, Exit.void)
      const { write } = yield* Effect.scoped(unread.writer)
      assert.strictEqual((yield* Effect.flip(write("x"))).reason._tag, "SocketCloseError")
      yield* until(() => server.open() === 0)
    })))

  it.live("goes on when a writer is released: Firecracker would end both directions", () =>
    live(Effect.gen(function*() {
      const path = join(yield* directory(), "v")
      yield* serve(
        path,
        guest((socket) => {
          socket.on("data", () => setTimeout(() => socket.end("all of it"), 20))
        })
      )
      const socket = yield* Vsock.connect(path, 5000)
      yield* Effect.scoped(Effect.flatMap(socket.writer, ({ write }) => write("what?")))
      assert.strictEqual(yield* readAll(socket), "all of it")
    })))

  it.live("holds the guest up when nobody reads, and a writer when the guest does not", () =>
    live(Effect.gen(function*() {
      const path = join(yield* directory(), "v")
      const megabyte = Buffer.alloc(1 << 20, "x")
      let sent = 0
      const guests: Array<NetSocket> = []
      const server = yield* serve(
        path,
        guest((socket) => {
          guests.push(socket)
          socket.pause()
          while (sent < 64 && socket.write(megabyte)) sent++
          for (; sent < 8; sent++) socket.write(megabyte)
        })
      )
      const scope = yield* Scope.make()
      const socket = yield* Scope.provide(Vsock.connect(path, 5000), scope)
      const writer = yield* socket.writer
      let written = 0
      const writing = yield* Effect.forkChild(
        Effect.forever(Effect.tap(writer.write(megabyte), () => Effect.sync(() => written++)))
      )
      yield* Effect.sleep("50 millis")
      assert.isBelow(written, 4)
      assert.isAbove(guests[0]?.writableLength ?? 0, 7 << 20)
      yield* Fiber.interrupt(writing)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(server.received.length, 1)
    })))

  it.live("is not held open by a guest that sends and does not read", () =>
    live(Effect.gen(function*() {
      const path = join(yield* directory(), "v")
      let isClosed = false
      yield* serve(
        path,
        guest((socket) => {
          socket.pause()
          const sending = setInterval(() => socket.write("x"), 50)
          socket.once("close", () => {
            clearInterval(sending)
            isClosed = true
          })
        })
      )
      yield* Effect.scoped(Effect.gen(function*() {
        const socket = yield* Vsock.connect(path, 5000)
        yield* socket.reader
        const writer = yield* socket.writer
        yield* Effect.timeoutOption(writer.write(new Uint8Array(8 << 20)), "50 millis")
      }))
      yield* until(() => isClosed)
    })), 180_000)

  it.live("is made anew by each reader of a socket", () =>
    live(Effect.gen(function*() {
      const path = join(yield* directory(), "v")
      const server = yield* serve(
        path,
        guest((socket) => {
          socket.on("data", (chunk) => socket.end(`${server.received.length}: ${chunk.toString()}`))
        })
      )
      const socket = yield* Vsock.socket(path, 5000)
      const { write } = yield* socket.writer
      for (const n of [1, 2]) {
        const writing = yield* Effect.forkChild(write("hi"))
        assert.strictEqual(yield* readAll(socket), `${n}: hi`)
        yield* Fiber.join(writing)
        yield* until(() => server.open() === 0)
      }
      yield* Effect.scoped(socket.reader)
      yield* until(() => server.open() === 0)
      const nobody = yield* Vsock.socket(`${path}x`, 5000, { within: "10 millis" })
      const error = yield* Effect.flip(Effect.scoped(nobody.reader))
      assert.isTrue(error.reason._tag === "SocketOpenError" && String(error.reason.cause).includes("ENOENT"))
    })))
})

describe("listening for the guest", () => {
  const say = (path: string, text: string): Effect.Effect<string> =>
    Effect.callback((resume) => {
      let answer = ""
      const socket = createConnection({ path, allowHalfOpen: true })
      socket.on("data", (chunk) => {
        answer += chunk.toString()
      })
      socket.on("error", () => {})
      socket.on("end", () => socket.destroy())
      socket.on("close", () => resume(Effect.succeed(answer)))
      socket.write(text)
    })
  const echo = (socket: Socket.Socket) =>
    Effect.gen(function*() {
      const { pull } = yield* socket.reader
      const { writeAll } = yield* socket.writer
      yield* writeAll(yield* pull)
    }).pipe(Effect.scoped)

  it.live("each connection has its handler, and ends with it", () =>
    live(Effect.gen(function*() {
      const path = join(yield* directory(), "v")
      const server = yield* Vsock.listen(path, 5000)
      const early = yield* Effect.forkChild(say(`${path}_5000`, "early"))
      yield* Effect.forkChild(server.run(echo))
      assert.deepStrictEqual(
        yield* Effect.all([Fiber.join(early), say(`${path}_5000`, "a"), say(`${path}_5000`, "b")], { concurrency: 3 }),
        ["early", "a", "b"]
      )
      yield* Effect.forkChild(server.run(() => Effect.void))
    })))

  it.live("its file is ours alone, and gone with the scope, as are the connections", () =>
    live(Effect.gen(function*() {
      for (const below of ["short", "d".repeat(120)]) {
        const inside = yield* directory(below)
        const scope = yield* Scope.make()
        const uid = process.getuid?.() ?? 0
        const gid = process.getgid?.() ?? 0
        const server = yield* Scope.provide(Vsock.listen(join(inside, "v"), 5000, { owner: { uid, gid } }), scope)
        assert.deepStrictEqual(NodeFs.readdirSync(inside), ["v_5000"])
        const { gid: ownGid, mode, uid: ownUid } = NodeFs.statSync(join(inside, "v_5000"))
        assert.deepStrictEqual([mode & 0o777, ownUid, ownGid], [0o600, uid, gid])
        const fd = NodeFs.openSync(inside, "r")
        const reached = yield* Deferred.make<void>()
        yield* server.run(() => Effect.andThen(Deferred.succeed(reached, undefined), Effect.never)).pipe(
          Effect.forkIn(scope)
        )
        const hung = yield* Effect.forkChild(say(`/proc/self/fd/${fd}/v_5000`, "x"))
        yield* Deferred.await(reached)
        yield* Scope.close(scope, Exit.void)
        assert.strictEqual(yield* Fiber.join(hung), "")
        assert.deepStrictEqual(NodeFs.readdirSync(inside), [])
        NodeFs.closeSync(fd)
      }
    })))

  it.live("closes without waiting for a guest that does not read", () =>
    live(Effect.gen(function*() {
      const path = join(yield* directory(), "v")
      const scope = yield* Scope.make()
      const server = yield* Scope.provide(Vsock.listen(path, 5000), scope)
      const stuck = yield* Deferred.make<void>()
      yield* server.run((socket) =>
        Effect.gen(function*() {
          yield* socket.reader
          const { write } = yield* socket.writer
          return yield* Effect.forever(Effect.timeout(write(Buffer.alloc(1 << 20)), "20 millis")).pipe(
            Effect.ensuring(Deferred.succeed(stuck, undefined))
          )
        }).pipe(Effect.scoped)
      ).pipe(Effect.forkIn(scope))
      const socket = createConnection(`${path}_5000`).pause()
      yield* Deferred.await(stuck)
      yield* Scope.close(scope, Exit.void).pipe(Effect.timeout("1 second"))
      socket.destroy()
    })))

  it.live("no more at a time than is allowed", () =>
    live(Effect.gen(function*() {
      const path = join(yield* directory(), "v")
      const server = yield* Vsock.listen(path, 5000, { maxConnections: 2 })
      const go = yield* Deferred.make<void>()
      yield* Effect.forkChild(server.run((socket) => Effect.andThen(Deferred.await(go), echo(socket))))
      const first = yield* Effect.forkChild(
        Effect.all([say(`${path}_5000`, "a"), say(`${path}_5000`, "b")], { concurrency: 2 })
      )
      yield* Effect.sleep("20 millis")
      assert.strictEqual(yield* say(`${path}_5000`, "c"), "")
      yield* Deferred.succeed(go, undefined)
      assert.deepStrictEqual(yield* Fiber.join(first), ["a", "b"])
      assert.strictEqual(yield* say(`${path}_5000`, "d"), "d")
    })))

  it.live("in the place of one that is gone, not of one that is there, nor of anything else", () =>
    live(Effect.gen(function*() {
      const inside = yield* directory()
      const path = join(inside, "v")
      const scope = yield* Scope.make()
      yield* Scope.provide(Vsock.listen(path, 5000), scope)
      const taken = yield* reasonOf(Vsock.listen(path, 5000))
      assert.strictEqual(taken._tag, "VsockUnavailable")
      assert.include(taken.message, "EADDRINUSE")
      // As a killed process leaves it: the file is moved out of the way of its own removal.
      NodeFs.renameSync(`${path}_5000`, `${path}_5001`)
      yield* Scope.close(scope, Exit.void)
      yield* Vsock.listen(path, 5001)
      NodeFs.writeFileSync(`${path}_5002`, "precious")
      assert.include((yield* reasonOf(Vsock.listen(path, 5002))).message, "EADDRINUSE")
      assert.strictEqual(NodeFs.readFileSync(`${path}_5002`, "utf8"), "precious")
      assert.include((yield* reasonOf(Vsock.listen(join(inside, "none", "v"), 1))).message, "at")
    })))
})
