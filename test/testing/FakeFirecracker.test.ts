import { assert, describe, it } from "@effect/vitest"
import { FakeFirecracker } from "effect-microvm-runtime/testing"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Fs from "node:fs"
import { createServer, type Socket } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { formatOf } from "../../src/testing/internal/fakeFirecrackerSnapshot.ts"
import * as Client from "./firecrackerClient.ts"

const directory: Effect.Effect<string, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(() => {
    const made = Fs.mkdtempSync(join(tmpdir(), "fake-"))
    Fs.writeFileSync(join(made, "vmlinux"), "kernel")
    return made
  }),
  (made) => Effect.sync(() => Fs.rmSync(made, { recursive: true }))
)

/** A fake in a directory of its own, or in that of another. */
const serve = Effect.fnUntraced(function*(
  options: Omit<FakeFirecracker.ServeOptions, "socketPath">,
  socket?: string
) {
  const cwd = options.cwd ?? (yield* directory)
  const fake = yield* FakeFirecracker.serve({
    bootMillis: 0,
    ...options,
    cwd,
    socketPath: join(cwd, socket ?? "api.sock")
  })
  const ask = (method: string, path: string, body?: string) => Client.ask(fake.socketPath, method, path, body)
  const boot = Effect.fnUntraced(
    function*(bootArgs: string, ...steps: ReadonlyArray<readonly [string, string, string]>) {
      yield* ask("PUT", "/boot-source", JSON.stringify({ kernel_image_path: "vmlinux", boot_args: bootArgs }))
      for (const [method, path, body] of steps) assert.strictEqual(yield* ask(method, path, body), "204")
      assert.strictEqual(yield* ask("PUT", "/actions", `{"action_type":"InstanceStart"}`), "204")
    }
  )
  const at = (name: string) => join(cwd, name)
  return { ...fake, ask, at, boot, connect: Client.connect(fake.socketPath) }
})

const vsock = ["PUT", "/vsock", `{"guest_cid":3,"uds_path":"v.sock"}`] as const
const get = Client.request("GET", "/version")
const until = <A, E>(found: Effect.Effect<A, E>, good: (value: A) => boolean) =>
  found.pipe(Effect.repeat({ schedule: Schedule.spaced("5 millis"), until: good }), Effect.timeout("2 seconds"))

describe("its server", () => {
  it.live("has ten connections, and turns the next away", () =>
    Effect.gen(function*() {
      const { connect, connections } = yield* serve({})
      const ten = yield* Effect.replicateEffect(connect, 10)
      for (const connection of ten) {
        yield* connection.send(get)
        assert.match(yield* connection.answer, /^HTTP\/1.1 200 \r\n/)
      }
      const more = yield* connect
      assert.strictEqual(
        yield* more.rest,
        "HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n" +
          `{ "error": "Too many open connections" }`
      )
      yield* ten[0]?.halfClose ?? Effect.void
      yield* ten[0]?.rest ?? Effect.void
      const late = yield* connect
      yield* late.send(get)
      assert.match(yield* late.answer, /^HTTP\/1.1 200 /)
      assert.deepStrictEqual(yield* connections, { most: 10, refused: 1 })
    }).pipe(Effect.scoped))

  it.live("drops what it owes to one that half closes", () =>
    Effect.gen(function*() {
      const { ask, connect } = yield* serve({})
      const connection = yield* connect
      yield* Effect.all([connection.send(get), connection.halfClose], { concurrency: 2 })
      assert.strictEqual(yield* connection.rest, "")
      assert.match(yield* ask("GET", "/"), /^200 /)
    }).pipe(Effect.scoped))

  it.live("serves one request at a time, of whichever connection", () =>
    Effect.gen(function*() {
      const { ask, connect } = yield* serve({ faults: [{ _tag: "Slow", path: "/vm/config", millis: 60 }] })
      const slow = yield* connect
      yield* slow.send(Client.request("GET", "/vm/config"))
      const started = performance.now()
      assert.strictEqual(yield* ask("GET", "/version"), `200 {"firecracker_version":"1.16.1"}`)
      assert.isAtLeast(performance.now() - started, 50)
    }).pipe(Effect.scoped))

  it.live("closes what waits behind a request that is never answered", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { connect, requests } = yield* Scope.provide(serve({ faults: [{ _tag: "Hang" }] }), scope)
      const a = yield* connect
      yield* a.send(get)
      yield* until(requests, (all) => all.length === 1)
      const b = yield* connect
      yield* b.send(get)
      yield* Scope.close(scope, Exit.void)
      for (const { rest } of [a, b]) assert.strictEqual(yield* Effect.timeout(rest, "2 seconds"), "")
    }).pipe(Effect.scoped))

  it.live("keeps to the limits that it is given", () =>
    Effect.gen(function*() {
      const { ask } = yield* serve({ payloadLimit: 100, mmdsLimit: 10 })
      assert.strictEqual(yield* ask("PUT", "/mmds", `{"a":1}`), "204")
      assert.match(yield* ask("PUT", "/mmds", `{"a":"123456789"}`), /^413 MMDS limit exceeded/)
      assert.match(
        yield* ask("PUT", "/mmds", JSON.stringify("x".repeat(99))),
        /^400 .*Request payload with size 101 is larger than the limit of 100/
      )
    }).pipe(Effect.scoped))

  it.live("writes down what it was asked", () =>
    Effect.gen(function*() {
      const { connect, requests } = yield* serve({})
      const [one, two] = [yield* connect, yield* connect]
      yield* one.send(Client.request("PUT", "/logger", "{}") + get)
      yield* one.answer
      yield* one.answer
      yield* two.send(Client.request("DELETE", "/drives/a"))
      yield* two.answer
      assert.deepStrictEqual(yield* requests, [
        { connection: 1, method: "PUT", path: "/logger", body: "{}" },
        { connection: 1, method: "GET", path: "/version", body: undefined },
        { connection: 2, method: "DELETE", path: "/drives/a", body: undefined }
      ])
    }).pipe(Effect.scoped))
})

describe("a fault", () => {
  const faulty = (fault: FakeFirecracker.Fault) => serve({ faults: [fault] })

  it.live("answers in pieces", () =>
    Effect.gen(function*() {
      const { ask } = yield* faulty({ _tag: "Split" })
      assert.match(yield* ask("GET", "/"), /^200 .*"Not started"/)
    }).pipe(Effect.scoped))

  it.live("answers with less than all, or with something else", () =>
    Effect.gen(function*() {
      const { ask } = yield* serve({
        faults: [
          { _tag: "Truncate", call: 1, bytes: 12 },
          { _tag: "Raw", call: 2, answer: "HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\nabc" }
        ]
      })
      assert.strictEqual(yield* ask("GET", "/"), "HTTP/1.1 200")
      assert.strictEqual(yield* ask("GET", "/"), "HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\nabc")
      assert.match(yield* ask("GET", "/"), /^200 /)
    }).pipe(Effect.scoped))

  it.live("hangs, and with it all that comes after", () =>
    Effect.gen(function*() {
      const { ask, requests } = yield* faulty({ _tag: "Hang", method: "PUT", path: "/actions" })
      assert.match(yield* ask("GET", "/"), /^200 /)
      const hung = yield* Effect.forkChild(ask("PUT", "/actions", `{"action_type":"InstanceStart"}`))
      yield* until(requests, (all) => all.length === 2)
      assert.isTrue(yield* Effect.isFailure(Effect.timeout(ask("GET", "/"), "50 millis")))
      assert.isUndefined(hung.pollUnsafe())
      yield* Fiber.interrupt(hung)
    }).pipe(Effect.scoped))

  it.live("ends it before, in or after an answer", () =>
    Effect.gen(function*() {
      const before = yield* faulty({ _tag: "Die", moment: "Before", call: 2, code: 148 })
      assert.match(yield* before.ask("GET", "/"), /^200 /)
      assert.strictEqual(yield* before.ask("GET", "/"), "")
      assert.deepStrictEqual(yield* before.ended, { code: 148 })
      const half = yield* faulty({ _tag: "Die", moment: "Half", signal: "SIGSEGV" })
      assert.match(yield* half.ask("GET", "/"), /^HTTP\/1.1 200 (?!.*\}$)/s)
      assert.deepStrictEqual(yield* half.ended, { signal: "SIGSEGV" })
      const after = yield* faulty({ _tag: "Die", path: "/" })
      assert.match(yield* after.ask("GET", "/"), /^200 .*\}$/)
      assert.deepStrictEqual(yield* after.ended, { code: 1 })
      assert.isTrue(Fs.existsSync(after.socketPath))
    }).pipe(Effect.scoped))

  it.live("binds its socket late, or never", () =>
    Effect.gen(function*() {
      const started = performance.now()
      yield* faulty({ _tag: "BindLate", millis: 40 })
      assert.isAtLeast(performance.now() - started, 35)
      const { socketPath } = yield* faulty({ _tag: "NeverBind" })
      assert.isFalse(Fs.existsSync(socketPath))
    }).pipe(Effect.scoped))
})

describe("its vsock", () => {
  const dial = Effect.fnUntraced(function*(path: string, said: string) {
    const connection = yield* Client.connect(path)
    yield* connection.send(said)
    return connection
  })

  it.live("leads to the ports of its guest", () =>
    Effect.gen(function*() {
      const { at, boot } = yield* serve({ guest: "echo" })
      yield* boot("", vsock)
      const first = yield* dial(at("v.sock"), "CONNECT 52\nhello\n")
      assert.strictEqual(yield* first.line, "OK 1073741824\n")
      assert.strictEqual(yield* first.line, "hello\n")
      const second = yield* dial(at("v.sock"), "connect  53 rest\n")
      assert.strictEqual(yield* second.line, "OK 1073741825\n")
      yield* second.halfClose
      assert.strictEqual(yield* second.rest, "")
    }).pipe(Effect.scoped))

  it.live.each(["CONNECT", "CONNECT 5", "HELLO 52\n", "CONNECT x12\n", "CONNECT 4294967296\n"])(
    "drops %j",
    (said) =>
      Effect.gen(function*() {
        const { at, boot } = yield* serve({ guest: "echo" })
        yield* boot("", vsock)
        assert.strictEqual(yield* (yield* dial(at("v.sock"), said)).rest, "")
      }).pipe(Effect.scoped)
  )

  it.live("closes without a word where nobody listens", () =>
    Effect.gen(function*() {
      const { at, boot } = yield* serve({ guest: "none" })
      yield* boot("", vsock)
      assert.strictEqual(yield* (yield* dial(at("v.sock"), "CONNECT 52\n")).rest, "")
    }).pipe(Effect.scoped))

  it.live("keeps waiting until there is a driver, and while it is paused", () =>
    Effect.gen(function*() {
      const { ask, at, boot } = yield* serve({ guest: "echo" })
      yield* ask(...vsock)
      const early = yield* dial(at("v.sock"), "CONNECT 52\n")
      assert.strictEqual(yield* early.until(30), "")
      yield* boot("")
      assert.strictEqual(yield* early.line, "OK 1073741824\n")
      yield* ask("PATCH", "/vm", `{"state":"Paused"}`)
      yield* early.send("again\n")
      assert.strictEqual(yield* early.until(30), "")
      yield* ask("PATCH", "/vm", `{"state":"Resumed"}`)
      assert.strictEqual(yield* early.line, "again\n")
    }).pipe(Effect.scoped))

  it.live("forgets its connections in a snapshot, and tells nobody", () =>
    Effect.gen(function*() {
      const { ask, at, boot } = yield* serve({ guest: "echo" })
      yield* boot("", vsock)
      const connection = yield* dial(at("v.sock"), "CONNECT 52\n")
      yield* connection.line
      yield* ask("PATCH", "/vm", `{"state":"Paused"}`)
      yield* ask("PUT", "/snapshot/create", `{"snapshot_path":"s","mem_file_path":"m"}`)
      yield* ask("PATCH", "/vm", `{"state":"Resumed"}`)
      assert.strictEqual(yield* connection.until(30), "")
      yield* connection.send("hello\n")
      assert.strictEqual(yield* connection.rest, "")
    }).pipe(Effect.scoped))

  it.live("leaves its socket behind, which another cannot bind", () =>
    Effect.gen(function*() {
      const cwd = yield* directory
      yield* Effect.scoped(Effect.flatMap(serve({ cwd }, "one.sock"), ({ ask }) => ask(...vsock)))
      const { ask } = yield* serve({ cwd }, "two.sock")
      assert.match(yield* ask(...vsock), /^400 .*Address already in use \(os error 98\)/)
    }).pipe(Effect.scoped))
})

const readLine = Schema.decodeUnknownSync(Schema.fromJsonString(Schema.Struct({
  put_api_requests: Schema.Struct({ drive_count: Schema.Finite, drive_fails: Schema.Finite }),
  block_d1: Schema.Record(Schema.String, Schema.Unknown)
})))

describe("its machine", () => {
  it.live("prints on its console, and reboots on Ctrl-Alt-Del", () =>
    Effect.gen(function*() {
      const { ask, boot, ended, stdout } = yield* serve({ console: ["up and running"] })
      yield* boot("console=ttyS0 reboot=k")
      yield* until(stdout, (text) => text.includes("up and running\r\n"))
      assert.strictEqual(yield* ask("PUT", "/actions", `{"action_type":"SendCtrlAltDel"}`), "204")
      assert.deepStrictEqual(yield* ended, { code: 0 })
      assert.match(yield* stdout, /reboot: Restarting system\r\n.*Vmm is stopping\.\n.*exit_code=0\n$/s)
    }).pipe(Effect.scoped))

  it.live("has a keyboard that is not always there", () =>
    Effect.gen(function*() {
      const press = [`PUT`, "/actions", `{"action_type":"SendCtrlAltDel"}`] as const
      const without = yield* serve({})
      yield* without.boot("i8042.nokbd")
      assert.strictEqual(
        yield* without.ask(...press),
        "400 Internal VMM error: I8042 error: Keyboard interrupt disabled by guest driver."
      )
      const deaf = yield* serve({ ignoreCtrlAltDel: true })
      yield* deaf.boot("")
      for (let times = 0; times < 4; times++) assert.strictEqual(yield* deaf.ask(...press), "204")
      assert.strictEqual(
        yield* deaf.ask(...press),
        "400 Internal VMM error: I8042 error: i8042 internal buffer full."
      )
    }).pipe(Effect.scoped))

  it.live("goes on elsewhere, with the memory that it had", () =>
    Effect.gen(function*() {
      const cwd = yield* directory
      const first = yield* serve({ cwd, guest: "echo" }, "one.sock")
      yield* first.boot("", vsock, ["PUT", "/machine-config", `{"vcpu_count":1,"mem_size_mib":64}`])
      yield* first.ask("PATCH", "/vm", `{"state":"Paused"}`)
      yield* first.ask("PUT", "/snapshot/create", `{"snapshot_path":"s","mem_file_path":"m"}`)
      assert.strictEqual(Fs.statSync(first.at("m")).size, 64 * 2 ** 20)
      assert.isBelow(Fs.statSync(first.at("m")).blocks, 100)
      const second = yield* serve({ cwd, guest: "echo" }, "two.sock")
      const load = {
        snapshot_path: "s",
        mem_backend: { backend_type: "File", backend_path: "m" },
        vsock_override: { uds_path: "other.sock" },
        resume_vm: true
      }
      assert.strictEqual(yield* second.ask("PUT", "/snapshot/load", JSON.stringify(load)), "204")
      const connection = yield* Client.connect(second.at("other.sock"))
      yield* connection.send("CONNECT 52\nhello\n")
      assert.strictEqual(yield* connection.line, "OK 1073741824\n")
      assert.strictEqual(yield* connection.line, "hello\n")
    }).pipe(Effect.scoped))

  it.live("writes of a difference what was written since, where it was told to know that", () =>
    Effect.gen(function*() {
      const cwd = yield* directory
      const agentArgs = "microvm.vsock=1024,org.example.agent"
      const machine = (tracks: boolean) =>
        ["PUT", "/machine-config", `{"vcpu_count":1,"mem_size_mib":8,"track_dirty_pages":${tracks}}`] as const
      const create = (name: string, type: string) =>
        [
          "PUT",
          "/snapshot/create",
          `{"snapshot_path":"s","mem_file_path":"${name}","snapshot_type":"${type}"}`
        ] as const
      const pagesOf = (path: string) => Fs.statSync(path).blocks / 8
      for (
        const [version, tracks, answers] of [
          ["1.12.1", true, ["204", "204", "204"]],
          ["1.12.1", false, ["400", "204", "400"]],
          ["1.16.1", true, ["204", "204", "204"]],
          ["1.16.1", false, ["204", "204", "204"]]
        ] as const
      ) {
        const name = (what: string) => `${what}-${version}-${tracks}`
        const { ask, at, boot } = yield* serve({ cwd, version }, `${name("api")}.sock`)
        yield* boot(agentArgs, machine(tracks))
        yield* ask("PATCH", "/vm", `{"state":"Paused"}`)
        const made: Array<string> = []
        for (const [what, type] of [["booted", "Diff"], ["full", "Full"], ["same", "Diff"]] as const) {
          made.push((yield* ask(...create(name(what), type))).slice(0, 3))
        }
        assert.deepStrictEqual([name(""), made], [name(""), [...answers]])
        if (!tracks && version === "1.12.1") continue
        assert.strictEqual(Fs.statSync(at(name("same"))).size, 8 * 2 ** 20)
        // The first one of a machine that was booted is all that it has written.
        assert.isTrue(Fs.readFileSync(at(name("booted"))).equals(Fs.readFileSync(at(name("full")))))
        if (tracks) assert.strictEqual(pagesOf(at(name("same"))), 0)
        else assert.isAbove(pagesOf(at(name("same"))), 0)
        // Over a file that is there, the rest of it stays.
        yield* ask(...create(name("full"), "Diff"))
        assert.isTrue(Fs.readFileSync(at(name("full"))).equals(Fs.readFileSync(at(name("booted")))))
      }
    }).pipe(Effect.scoped))

  it.live("is loaded with pages from a server, if there is one", () =>
    Effect.gen(function*() {
      const cwd = yield* directory
      const first = yield* serve({ cwd, guest: "none" }, "one.sock")
      yield* first.boot("")
      yield* first.ask("PATCH", "/vm", `{"state":"Paused"}`)
      yield* first.ask("PUT", "/snapshot/create", `{"snapshot_path":"s","mem_file_path":"m"}`)
      const load = `{"snapshot_path":"s","mem_backend":{"backend_type":"Uffd","backend_path":"pages.sock"}}`
      const without = yield* serve({ cwd, guest: "none" }, "two.sock")
      assert.match(yield* without.ask("PUT", "/snapshot/load", load), /Failed to connect to UDS Unix stream: No such/)
      assert.deepStrictEqual(yield* without.ended, { code: 1 })

      const heard: Array<number> = []
      const server = createServer((socket) => socket.once("data", (bytes) => heard.push(Number(bytes.toString()))))
      yield* Effect.acquireRelease(
        Effect.callback<void>((resume) => void server.listen(join(cwd, "pages.sock"), () => resume(Effect.void))),
        () => Effect.sync(() => server.close())
      )
      const onPageServer = (socket: Socket, memoryBytes: number) => void socket.write(String(memoryBytes))
      const third = yield* serve({ cwd, guest: "none", onPageServer }, "three.sock")
      assert.strictEqual(yield* third.ask("PUT", "/snapshot/load", load), "204")
      yield* until(Effect.sync(() => heard[0]), (said) => said === 128 * 2 ** 20)
    }).pipe(Effect.scoped))

  it.live("counts what is done to it", () =>
    Effect.gen(function*() {
      const { ask, at, boot } = yield* serve({ guest: "none" })
      Fs.writeFileSync(at("disk"), "")
      yield* ask("PUT", "/drives/d1", "{")
      yield* boot(
        "",
        ["PUT", "/metrics", `{"metrics_path":"metrics"}`],
        ["PUT", "/drives/d1", `{"drive_id":"d1","is_root_device":true,"path_on_host":"disk"}`]
      )
      yield* ask("PUT", "/actions", `{"action_type":"FlushMetrics"}`)
      const lines = Fs.readFileSync(at("metrics"), "utf8").trimEnd().split("\n").map((line) => readLine(line))
      assert.deepStrictEqual(lines.map((line) => line.put_api_requests), [
        { drive_count: 2, drive_fails: 1 },
        { drive_count: 0, drive_fails: 0 }
      ])
    }).pipe(Effect.scoped))
})

describe("the format of its snapshots", () => {
  it.each([
    ["1.7.0", "1.0.0"],
    ["1.8.0", "2.0.0"],
    ["1.10.0", "3.0.0"],
    ["1.10.1", "4.0.0"],
    ["1.11.0", "5.0.0"],
    ["1.12.1", "6.0.0"],
    ["1.13.0", "8.0.0"],
    ["1.14.4", "8.0.0"],
    ["1.15.1", "9.0.0"],
    ["1.16.0", "10.0.0"],
    ["1.16.1", "10.0.0"],
    ["1.16.2", "11.0.0"],
    ["1.17.0-dev", "11.0.0"],
    ["1.17.0", "12.0.0"]
  ])("of %s is %s", (version, format) => {
    assert.strictEqual(formatOf(version), format)
  })
})
