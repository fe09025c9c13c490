import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import type { Socket } from "node:net"
import { join } from "node:path"
import type { FirecrackerError } from "../../src/firecracker/FirecrackerError.ts"
import * as GuestMetadata from "../../src/firecracker/GuestMetadata.ts"
import * as NodeVsock from "../../src/firecracker/NodeVsock.ts"
import type { Vsock } from "../../src/firecracker/Vsock.ts"
import { directory, type RawServer, serve, until } from "./rawServer.ts"

const reasonOf = (result: Effect.Effect<unknown, FirecrackerError>) =>
  Effect.map(Effect.flip(result), ({ reason }) => reason)

const Request = Schema.fromJsonString(Schema.Struct({ op: Schema.String, id: Schema.String }))
const idOf = (line: string): string => Schema.decodeSync(Request)(line).id

/** Firecracker, and behind it a daemon that answers each line with what the test says. */
const daemon =
  (answer: (line: string, connection: number) => string | undefined) => (socket: Socket, connection: number): void => {
    let isConnected = false
    socket.on("data", (chunk) => {
      if (isConnected) {
        const answered = answer(chunk.toString(), connection)
        if (answered === undefined) return
        socket.write(answered)
      } else {
        isConnected = true
        socket.write("OK 1073741824\n")
      }
    })
  }

const ok = (line: string) => `{"id":"${idOf(line)}","ok":true}\n`

const setUp = (
  onConnection: (socket: Socket, connection: number) => void,
  options?: GuestMetadata.Options
): Effect.Effect<
  { readonly server: RawServer; readonly guest: GuestMetadata.GuestMetadata },
  FirecrackerError,
  Scope.Scope | Vsock
> =>
  Effect.gen(function*() {
    const server = yield* serve(join(yield* directory(), "v"), onConnection)
    return { server, guest: yield* GuestMetadata.make(server.path, options) }
  })

const run = <A, E>(test: Effect.Effect<A, E, Scope.Scope | Vsock>) =>
  Effect.scoped(test).pipe(Effect.provide(NodeVsock.layer))

describe("requests", () => {
  it.effect("go in lines on one connection, and each waits for its own answer", () =>
    run(Effect.gen(function*() {
      const { guest, server } = yield* setUp(daemon(ok), { port: 9999 })
      yield* guest.ping
      yield* guest.ping
      yield* guest.setEnv({ FOO: "bar", _P: Redacted.make("a=\"b\"") })
      yield* guest.setSecret("a_B-1", Redacted.make(new Uint8Array([0, 1, 0xff])))
      yield* guest.setSecret("text", Redacted.make("é"))
      assert.deepStrictEqual(server.received, [[
        "CONNECT 9999\n",
        `{"op":"ping","id":"1"}\n`,
        `{"op":"ping","id":"2"}\n`,
        `{"op":"set_env","env":{"FOO":"bar","_P":"a=\\"b\\""},"id":"3"}\n`,
        `{"op":"set_secret","name":"a_B-1","value_b64":"AAH/","id":"4"}\n`,
        `{"op":"set_secret","name":"text","value_b64":"w6k=","id":"5"}\n`
      ]])
    })))

  it.effect("overlap never", () =>
    run(Effect.gen(function*() {
      let open = 0
      const { guest, server } = yield* setUp((socket, connection) =>
        daemon((line) => {
          open++
          assert.strictEqual(open, 1)
          setTimeout(() => {
            open--
            socket.write(ok(line))
          }, 1)
          return undefined
        })(socket, connection)
      )
      yield* Effect.all([guest.ping, guest.ping, guest.ping], { concurrency: 3 })
      assert.strictEqual(server.received[0]?.length, 4)
    })))

  it.effect("with names that the guest would refuse are not made: all are told", () =>
    run(Effect.gen(function*() {
      const { guest, server } = yield* setUp(daemon(ok))
      const env = Object.fromEntries(
        ["FOO", "_P", "X1", "", "1FOO", "A-B", "A B", "A.B", "A=", "../X", "é", "A\n"].map((name) => [name, "v"])
      )
      const reason = yield* reasonOf(guest.setEnv({ ...env, OK: "two\nlines", ZERO: Redacted.make("hunter2\0") }))
      assert.deepStrictEqual(
        reason._tag === "InvalidRequest"
          ? reason.faults.map(({ field, value }) => field === "env" ? value : field)
          : reason,
        ["", "1FOO", "A-B", "A B", "A.B", "A=", "../X", "é", "A\n", "env.OK", "env.ZERO"]
      )
      assert.notInclude(reason.message, "hunter2")
      for (const name of ["..", "a/b", "a\\b", ".h", "w s", "w;c", "d.n", "", "a\n"]) {
        assert.strictEqual((yield* reasonOf(guest.setSecret(name, Redacted.make("x"))))._tag, "InvalidRequest", name)
      }
      assert.deepStrictEqual(server.received, [])
      const nowhere = yield* reasonOf(Effect.asVoid(GuestMetadata.make("", { port: -1 })).pipe(run))
      assert.deepStrictEqual(nowhere._tag === "InvalidRequest" ? nowhere.faults.map(({ field }) => field) : nowhere, [
        "path",
        "port"
      ])
    })))
})

describe("a daemon", () => {
  it.effect("that says no is quoted, without the secret, and the connection stays", () =>
    run(Effect.gen(function*() {
      const secret = "hunter\"2"
      const { guest, server } = yield* setUp(daemon((line) =>
        line.includes("ping")
          ? ok(line)
          : JSON.stringify({
            id: line.includes("BAD") ? "" : idOf(line),
            ok: false,
            error: `cannot write ${line} ${secret}`
          }) + "\n"
      ))
      const refused = yield* reasonOf(guest.setSecret("db", Redacted.make(secret)))
      const env = yield* reasonOf(guest.setEnv({ BAD: Redacted.make(secret) }))
      for (const { message } of [refused, env]) {
        assert.include(message, "cannot write")
        for (const form of ["hunter", Buffer.from(secret).toString("base64")]) assert.notInclude(message, form)
      }
      assert.match(refused.message, /^set_secret: /)
      yield* guest.ping
      assert.strictEqual(server.received.length, 1)
    })))

  it.effect.each<readonly [what: string, answer: string, why: string]>([
    ["no JSON", "yes\n", "ping: an answer that is not JSON"],
    ["another shape", "{\"ok\":\"yes\"}\n", "ping: an answer of another shape"],
    ["another id", "{\"id\":\"7\",\"ok\":true}\n", "ping: the answer to another request"],
    ["no id, though well", "{\"id\":\"\",\"ok\":true}\n", "ping: the answer to another request"],
    ["two answers", "{\"id\":\"1\",\"ok\":true}\n{\"id\":\"1\",\"ok\":true}\n", "ping: more than one answer"],
    ["an endless line", "x".repeat(70_000), "ping: an answer over 65536 bytes"]
  ])("that answers %s is not trusted further", ([, text, why]) =>
    run(Effect.gen(function*() {
      const { guest, server } = yield* setUp(daemon((line, connection) => connection === 0 ? text : ok(line)))
      const reason = yield* reasonOf(guest.ping)
      assert.deepStrictEqual([reason._tag, reason.message], ["GuestMetadataFailed", why])
      yield* until(() => server.open() === 0)
      yield* guest.ping
      assert.strictEqual(server.received.length, 2)
    })))

  it.effect("that has hung up since is called again, once", () =>
    run(Effect.gen(function*() {
      const { guest, server } = yield* setUp((socket, connection) =>
        daemon((line) => {
          if (connection === 0 && idOf(line) === "1" || connection === 1 && idOf(line) < "4") return ok(line)
          socket.destroy()
          return undefined
        })(socket, connection)
      )
      yield* guest.ping
      yield* guest.ping
      assert.deepStrictEqual(server.received.map(({ length }) => length), [3, 2])
      assert.strictEqual((yield* reasonOf(guest.ping)).message, "ping: the connection ended before the answer")
      assert.deepStrictEqual(server.received.map(({ length }) => length), [3, 3, 2])
    })))

  it.effect("that hangs up is called again with the next request", () =>
    run(Effect.gen(function*() {
      const { guest, server } = yield* setUp((socket, connection) =>
        daemon((line) => {
          if (connection > 0) return ok(line)
          socket.destroy()
          return undefined
        })(socket, connection)
      )
      assert.strictEqual((yield* reasonOf(guest.ping)).message, "ping: the connection ended before the answer")
      yield* guest.ping
      assert.strictEqual(server.received.length, 2)
    })))

  it.effect("that does not answer in time is hung up on: a late answer is nobody's", () =>
    run(Effect.gen(function*() {
      const { guest, server } = yield* setUp(daemon((line, connection) => connection === 0 ? undefined : ok(line)))
      const first = yield* Effect.forkChild(reasonOf(guest.ping))
      yield* until(() => server.received[0]?.length === 2)
      const second = yield* Effect.forkChild(guest.ping)
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual((yield* Fiber.join(first)).message, "ping: no answer within 5s")
      yield* Fiber.join(second)
      const third = yield* setUp(daemon(() => undefined))
      const call = yield* Effect.forkChild(third.guest.ping)
      yield* until(() => third.server.received[0]?.length === 2)
      yield* Fiber.interrupt(call)
      yield* until(() => third.server.open() === 0)
    })))

  it.live("that is not there yet is waited for", () =>
    run(Effect.gen(function*() {
      const path = join(yield* directory(), "v")
      const guest = yield* GuestMetadata.make(path)
      const ping = yield* Effect.forkChild(guest.ping)
      yield* Effect.sleep("10 millis")
      const server = yield* serve(path, (socket, n) => n < 2 ? void socket.destroy() : daemon(ok)(socket, n))
      yield* Fiber.join(ping)
      assert.strictEqual(server.received.length, 3)
    })))

  it.effect("that never comes, or has none, is told as such", () =>
    run(Effect.gen(function*() {
      const guest = yield* GuestMetadata.make("/nowhere/v", { connectWithin: "100 millis" })
      const ping = yield* Effect.forkChild(reasonOf(guest.ping))
      yield* TestClock.adjust("100 millis")
      assert.include((yield* Fiber.join(ping)).message, "no connection within 100ms")
      const server = yield* serve(join(yield* directory(), "v"), (socket) => {
        socket.write("REJECT busy\n")
      })
      const busy = yield* GuestMetadata.make(server.path)
      const reason = yield* reasonOf(busy.ping)
      assert.strictEqual(reason._tag, "VsockUnavailable")
      assert.include(reason.message, "\"REJECT busy\"")
    })))

  it.effect("is hung up on when the scope closes", () =>
    run(Effect.gen(function*() {
      const server = yield* serve(join(yield* directory(), "v"), daemon(ok))
      const scope = yield* Scope.make()
      const guest = yield* Scope.provide(GuestMetadata.make(server.path), scope)
      yield* guest.ping
      assert.strictEqual(server.open(), 1)
      yield* Scope.close(scope, Exit.void)
      yield* until(() => server.open() === 0)
    })))
})

describe("the configuration", () => {
  const read = (env: Record<string, string>) => GuestMetadata.config.parse(ConfigProvider.fromUnknown(env))

  it.effect("has the names of the crate", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(
        yield* read({
          MICROVM_GUEST_METADATA_PORT: "7777",
          MICROVM_GUEST_METADATA_CONNECT_TIMEOUT_MS: "1500",
          MICROVM_GUEST_METADATA_REQUEST_TIMEOUT_MS: "250"
        }),
        { port: 7777, connectWithin: Duration.millis(1500), requestWithin: Duration.millis(250) }
      )
      assert.deepStrictEqual(yield* read({}), { port: undefined, connectWithin: undefined, requestWithin: undefined })
    }))

  it.effect.each(["PORT", "CONNECT_TIMEOUT_MS", "REQUEST_TIMEOUT_MS"])(
    "tells which value is wrong: %s",
    (name) =>
      Effect.gen(function*() {
        for (const value of ["0", "-1", "x", "1.5"]) {
          const error = yield* Effect.flip(read({ [`MICROVM_GUEST_METADATA_${name}`]: value }))
          assert.include(error.message, `MICROVM_GUEST_METADATA_${name}`)
        }
      })
  )
})
