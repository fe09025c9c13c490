/** Requests to runs, over real sockets. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import * as NodeCrypto from "node:crypto"
import * as NodeFs from "node:fs"
import * as NodeNet from "node:net"
import * as NodeOs from "node:os"
import * as NodePath from "node:path"
import * as Control from "../../src/cli/Control.ts"
import type * as ControlRequest from "../../src/cli/ControlRequest.ts"
import * as NodeControl from "../../src/cli/NodeControl.ts"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import * as NodeProcessHost from "../../src/process/NodeProcessHost.ts"

const save: Extract<ControlRequest.Request, { _tag: "Save" }> = { _tag: "Save", name: "ready" }
const saved: Extract<ControlRequest.Answer, { _tag: "Saved" }> = {
  _tag: "Saved",
  snapshot: "a".repeat(64),
  took: 600,
  stoodStill: 500
}

/** A cache directory of our own, and `microvm` with it. */
const makeCache = Effect.acquireRelease(
  Effect.sync(() => NodeFs.mkdtempSync(NodePath.join(NodeOs.tmpdir(), "microvm-control-test-"))),
  (directory) => Effect.sync(() => NodeFs.rmSync(directory, { recursive: true, force: true }))
)

const controlAt = (directory: string) =>
  Effect.map(
    Layer.build(
      NodeControl.layerAt(directory).pipe(
        Layer.provide(NodeProcessHost.layer),
        Layer.provide(NodeServices.layer)
      )
    ),
    (context) => Context.get(context, Control.Control)
  )

const makeControl = Effect.flatMap(makeCache, controlAt)

const reasonOf = <A>(effect: Effect.Effect<A, Control.ControlError>) =>
  Effect.map(Effect.exit(effect), (exit) => {
    if (Exit.isSuccess(exit)) return "none"
    const reason = exit.cause.reasons[0]
    return reason?._tag === "Fail" ? reason.error.reason._tag : String(reason?._tag)
  })

const table = () => NodeFs.readFileSync("/proc/net/unix", "utf8").split("\n")

/** The abstract name at which a machine of this cache is found, by asking the kernel. */
const addressOf = (id: string): string => {
  const [, name = ""] = table().flatMap((line) => / @(effect-microvm\/.*)$/.exec(line) ?? []).filter((one) =>
    one.endsWith(`/${id}`)
  )
  return name
}

let count = 0
const makeId = () => `control-test-${process.pid}-${++count}`

/** Says this to a run, and gives what it says until it hangs up. */
const say = (address: string, text: string, end = false) =>
  Effect.callback<string>((resume) => {
    const socket = NodeNet.connect(`\0${address}`)
    let heard = ""
    socket.on("data", (chunk) => void (heard += String(chunk)))
    socket.on("error", () => {})
    socket.on("close", () => resume(Effect.succeed(heard)))
    if (end) socket.end(text)
    else socket.write(text)
    return Effect.sync(() => socket.destroy())
  })

describe("a request", () => {
  it.live("gets to the run that has the machine, and its answer back", () =>
    Effect.gen(function*() {
      const control = yield* makeControl
      const [one, two] = [makeId(), makeId()]
      const asked: Array<string> = []
      for (const id of [one, two]) {
        yield* control.listen(id, (request) =>
          Effect.sync(() => {
            asked.push(`${id} ${request._tag === "Save" ? request.name : ""}`)
            return saved
          }))
      }
      assert.deepStrictEqual(yield* control.ask(two, save), saved)
      assert.deepStrictEqual(yield* control.ask(two, { ...save, name: "again" }), saved)
      assert.deepStrictEqual(asked, [`${two} ready`, `${two} again`])
    }))

  it.live("that is refused says why", () =>
    Effect.gen(function*() {
      const control = yield* makeControl
      const id = makeId()
      yield* control.listen(id, () => Effect.succeed({ _tag: "Refused", reason: "NameTaken", message: "it is taken" }))
      const error = yield* Effect.flip(control.ask(id, save))
      assert.strictEqual(error.message, "it is taken")
      assert.strictEqual(error.reason._tag, "Refused")
    }))

  it.live("for a machine that is not there names those that are", () =>
    Effect.gen(function*() {
      const control = yield* makeControl
      const none = yield* Effect.flip(control.ask("nonesuch", save))
      assert.match(none.message, /no machine nonesuch runs here: there is none/)
      const id = makeId()
      yield* control.listen(id, () => Effect.succeed(saved))
      const one = yield* Effect.flip(control.ask("nonesuch", save))
      assert.strictEqual(one.message, `no machine nonesuch runs here: there is ${id}`)
      // Those of another cache are other machines.
      const elsewhere = yield* makeControl
      assert.match((yield* Effect.flip(elsewhere.ask(id, save))).message, /there is none/)
    }))

  it.live("takes the longest id there is", () =>
    Effect.gen(function*() {
      const control = yield* makeControl
      const id = `${"a".repeat(40)}-${process.pid}`.padEnd(64, "z")
      yield* control.listen(id, () => Effect.succeed(saved))
      assert.deepStrictEqual(yield* control.ask(id, save), saved)
      assert.include(yield* Effect.map(Effect.flip(control.ask("x", save)), String), id)
    }))

  it.live("that takes its time is waited for, and a run that ends meanwhile is told", () =>
    Effect.gen(function*() {
      const control = yield* makeControl
      const id = makeId()
      const scope = yield* Scope.make()
      const begun = yield* Deferred.make<void>()
      let interrupted = false
      yield* control.listen(id, () =>
        Effect.andThen(Deferred.succeed(begun, undefined), Effect.never).pipe(
          Effect.onInterrupt(() =>
            Effect.sync(() => {
              interrupted = true
            })
          )
        )).pipe(Scope.provide(scope))
      const asking = yield* Effect.forkChild(reasonOf(control.ask(id, save)), { startImmediately: true })
      yield* Deferred.await(begun)
      // Longer than a beat.
      yield* Effect.sleep("1500 millis")
      assert.isUndefined(asking.pollUnsafe())
      yield* Scope.close(scope, Exit.void)
      assert.isTrue(interrupted)
      assert.strictEqual(yield* Fiber.join(asking), "Gone")
      // The run's end of what was asked goes with ours.
      while (addressOf(id) !== "") yield* Effect.sleep("10 millis")
    }))

  it.live("goes on when whoever made it is interrupted", () =>
    Effect.gen(function*() {
      const control = yield* makeControl
      const id = makeId()
      const [begun, go, done] = [
        yield* Deferred.make<void>(),
        yield* Deferred.make<void>(),
        yield* Deferred.make<void>()
      ]
      yield* control.listen(id, () =>
        Deferred.succeed(begun, undefined).pipe(
          Effect.andThen(Deferred.await(go)),
          Effect.andThen(Deferred.succeed(done, undefined)),
          Effect.as(saved)
        ))
      const asking = yield* Effect.forkChild(control.ask(id, save), { startImmediately: true })
      yield* Deferred.await(begun)
      yield* Fiber.interrupt(asking)
      yield* Deferred.succeed(go, undefined)
      yield* Effect.timeout(Deferred.await(done), "10 seconds")
    }))

  it.live("of a defect in the run does not end the run", () =>
    Effect.gen(function*() {
      const control = yield* makeControl
      const id = makeId()
      let calls = 0
      yield* control.listen(id, () => ++calls === 1 ? Effect.die(new Error("a bug")) : Effect.succeed(saved))
      assert.strictEqual(yield* reasonOf(control.ask(id, save)), "Gone")
      assert.deepStrictEqual(yield* control.ask(id, save), saved)
    }))
})

describe("a name", () => {
  it.live("that another run has is not taken, and free again after its end", () =>
    Effect.gen(function*() {
      const control = yield* makeControl
      const id = makeId()
      const scope = yield* Scope.make()
      yield* Scope.provide(control.listen(id, () => Effect.succeed(saved)), scope)
      const error = yield* Effect.flip(Effect.scoped(control.listen(id, () => Effect.succeed(saved))))
      assert.match(error.message, /another run has a machine/)
      yield* Scope.close(scope, Exit.void)
      yield* Effect.scoped(control.listen(id, () => Effect.succeed(saved)))
      assert.strictEqual(addressOf(id), "")
    }))

  it.live("that a stranger has taken is found out, whatever he answers", () =>
    Effect.gen(function*() {
      const directory = yield* makeCache
      const control = yield* controlAt(directory)
      const probe = makeId()
      yield* control.listen(probe, () => Effect.succeed(saved))
      const id = makeId()
      const address = addressOf(probe).replace(probe, id)
      const answer = (text: string) =>
        Effect.acquireUseRelease(
          Effect.callback<NodeNet.Server>((resume) => {
            const server = NodeNet.createServer((socket) => {
              socket.on("error", () => {})
              socket.on("data", () => socket.write(text))
            })
            server.listen(`\0${address}`, () => resume(Effect.succeed(server)))
          }),
          () => reasonOf(control.ask(id, save)),
          (server) => Effect.sync(() => server.close())
        )
      const nonce = "b".repeat(64)
      assert.strictEqual(yield* answer(`${JSON.stringify({ nonce, proof: nonce })}\n`), "Stranger")
      assert.strictEqual(yield* answer("garbage\n"), "NoAnswer")
      assert.strictEqual(yield* answer("x".repeat(100_000)), "NoAnswer")
    }), 180_000)
})

describe("a stranger", () => {
  const hello = `${JSON.stringify({ version: 1, nonce: "c".repeat(64) })}\n`
  const listen = Effect.gen(function*() {
    const control = yield* makeControl
    const id = makeId()
    let calls = 0
    yield* control.listen(id, () =>
      Effect.sync(() => {
        calls++
        return saved
      }))
    return { control, id, address: addressOf(id), calls: () => calls }
  })

  const words: ReadonlyArray<readonly [what: string, text: string]> = [
    ["nothing", ""],
    ["garbage", "GET / HTTP/1.1\r\n\r\n"],
    ["a line without an end", "x".repeat(30_000)],
    ["more than is read", "x".repeat(300_000)],
    ["another version", `${JSON.stringify({ version: 2, nonce: "c".repeat(64) })}\n`],
    [
      "a proof that is none",
      `${hello}${JSON.stringify({ request: JSON.stringify(save), proof: "d".repeat(64) })}\n`
    ]
  ]
  it.live.each(words)(
    "who says %s is cut off, and is told nothing but a challenge",
    ([, text]) =>
      Effect.gen(function*() {
        const { address, calls, control, id } = yield* listen
        const heard = yield* Effect.timeout(say(address, text), "5 seconds")
        assert.match(heard, /^(\{"nonce":"[0-9a-f]{64}","proof":"[0-9a-f]{64}"\}\n)?$/)
        assert.strictEqual(calls(), 0)
        assert.deepStrictEqual(yield* control.ask(id, save), saved)
      })
  )

  it.live("cannot use what a visitor has said before", () =>
    Effect.gen(function*() {
      const directory = yield* makeCache
      const control = yield* controlAt(directory)
      const id = makeId()
      let calls = 0
      yield* control.listen(id, () => Effect.sync(() => (calls++, saved)))
      const address = addressOf(id)
      const key = NodeFs.readFileSync(NodePath.join(directory, "control-key"))
      const prove = (...what: ReadonlyArray<string>) =>
        NodeCrypto.createHmac("sha256", key).update(JSON.stringify(what)).digest("hex")
      const request = JSON.stringify(save)
      const stale = prove("visitor", address, "c".repeat(64), "e".repeat(64), request)
      yield* say(address, `${hello}${JSON.stringify({ request, proof: stale })}\n`)
      assert.strictEqual(calls, 0)
    }))

  it.live("who keeps all doors busy does not keep a visitor out for long", () =>
    Effect.gen(function*() {
      const { address, control, id } = yield* listen
      const crowd = yield* Effect.forkChild(
        Effect.forEach(Array.from({ length: 20 }), () => say(address, ""), { concurrency: "unbounded" }),
        { startImmediately: true }
      )
      assert.deepStrictEqual(yield* control.ask(id, save), saved)
      yield* Fiber.interrupt(crowd)
    }), 180_000)
})

describe("the key", () => {
  it.live("is made once, by whoever is first, for this user alone", () =>
    Effect.gen(function*() {
      const directory = yield* makeCache
      const controls = yield* Effect.forEach(Array.from({ length: 8 }), () => controlAt(directory))
      const ids = controls.map(makeId)
      yield* Effect.forEach(
        controls,
        (control, index) => control.listen(ids[index] ?? "", () => Effect.succeed(saved)),
        { concurrency: "unbounded" }
      )
      for (const id of ids) assert.deepStrictEqual(yield* controls[0]?.ask(id, save) ?? Effect.succeed(saved), saved)
      const file = NodePath.join(directory, "control-key")
      assert.strictEqual(NodeFs.statSync(file).mode & 0o777, 0o600)
      assert.strictEqual(NodeFs.statSync(file).size, 32)
      assert.deepStrictEqual(NodeFs.readdirSync(directory).toSorted(), ["control-key", "tmp"])
      assert.deepStrictEqual(NodeFs.readdirSync(NodePath.join(directory, "tmp")), [])
    }))

  const faults: ReadonlyArray<readonly [what: string, spoil: (file: string) => void, told: RegExp]> = [
    ["that others can read", (file) => NodeFs.chmodSync(file, 0o644), /not this user's alone: remove it/],
    ["that is cut short", (file) => NodeFs.truncateSync(file, 31), /is no key: remove it/],
    ["that is too long", (file) => NodeFs.appendFileSync(file, "x"), /is no key: remove it/],
    [
      "that is a directory",
      (file) => (NodeFs.rmSync(file), NodeFs.mkdirSync(file)),
      /there can be no key|not this user's/
    ]
  ]
  it.live.each(faults)("%s is not used", ([, spoil, told]) =>
    Effect.gen(function*() {
      const directory = yield* makeCache
      const control = yield* controlAt(directory)
      yield* Effect.scoped(control.listen(makeId(), () => Effect.succeed(saved)))
      spoil(NodePath.join(directory, "control-key"))
      const error = yield* Effect.flip(Effect.scoped(control.listen(makeId(), () => Effect.succeed(saved))))
      assert.strictEqual(error.reason._tag, "Unavailable")
      assert.match(error.message, told)
    }))

  it.live("cannot be had where the cache cannot be made", () =>
    Effect.gen(function*() {
      const directory = yield* makeCache
      const file = NodePath.join(directory, "file")
      NodeFs.writeFileSync(file, "")
      const control = yield* controlAt(NodePath.join(file, "cache"))
      const error = yield* Effect.flip(Effect.scoped(control.listen(makeId(), () => Effect.succeed(saved))))
      assert.match(error.message, /there can be no key in .*file\/cache/)
    }))
})

describe("a command", () => {
  const command: ControlRequest.Exec = { _tag: "Exec", command: "cat", args: [], env: {} }
  const ended: ControlRequest.Answer = { _tag: "Ended", status: ExitStatus.exited(3, "agent") }
  const none: ControlRequest.Streams = {
    stdin: Stream.empty,
    stdout: Sink.drain,
    stderr: Sink.drain,
    signals: Stream.empty
  }
  const cat: ControlRequest.Handler = (_, { stdin, stdout }) => Effect.as(Stream.run(stdin, stdout), ended)
  const piece = new Uint8Array(50_000).map((_, i) => i * 7)
  const flood = (pieces: number) => Stream.map(Stream.range(1, pieces), () => piece)
  const digest = (hash: NodeCrypto.Hash) => Sink.forEach((chunk: Uint8Array) => Effect.sync(() => hash.update(chunk)))

  it.live("is flooded both ways, and no byte is lost or changed", () =>
    Effect.gen(function*() {
      const control = yield* makeControl
      const id = makeId()
      yield* control.listen(id, cat)
      const [given, got] = [NodeCrypto.createHash("sha256"), NodeCrypto.createHash("sha256")]
      const pieces = 1000
      for (let i = 0; i < pieces; i++) given.update(piece)
      const [took, status] = yield* Effect.timed(control.exec(id, command, {
        ...none,
        stdin: flood(pieces),
        stdout: digest(got)
      }))
      assert.deepStrictEqual(status, ExitStatus.exited(3, "agent"))
      assert.strictEqual(got.digest("hex"), given.digest("hex"))
      const megabytes = pieces * piece.length / 1e6
      console.log(`${megabytes} MB there and back: ${Math.round(megabytes / Duration.toSeconds(took))} MB/s`)
    }), 180_000)

  it.live("waits for a visitor that does not read, whose other requests go on", () =>
    Effect.gen(function*() {
      const control = yield* makeControl
      const id = makeId()
      let sent = 0
      yield* control.listen(id, (request, { stdout }) =>
        request._tag === "Exec"
          ? Effect.as(
            flood(10_000).pipe(
              Stream.tap(() => Effect.sync(() => void (sent += piece.length))),
              Stream.run(stdout)
            ),
            ended
          )
          : Effect.succeed(saved))
      const asking = yield* Effect.forkChild(
        control.exec(id, command, { ...none, stdout: Sink.forEach(() => Effect.never) }),
        { startImmediately: true }
      )
      yield* Effect.sleep("1500 millis")
      assert.isAtLeast(sent, 256 * 1024)
      assert.isAtMost(sent, 512 * 1024)
      assert.deepStrictEqual(yield* control.ask(id, save), saved)
      yield* Fiber.interrupt(asking)
    }), 180_000)

  it.live(
    "ends with a visitor that vanishes, also while it is flooded and reads nothing",
    () =>
      Effect.gen(function*() {
        const control = yield* makeControl
        const id = makeId()
        const gone = yield* Queue.unbounded<void>()
        yield* control.listen(id, () => Effect.onInterrupt(Effect.never, () => Queue.offer(gone, undefined)))
        for (const stdin of [Stream.never, flood(10_000)]) {
          const asking = yield* Effect.forkChild(control.exec(id, command, { ...none, stdin }), {
            startImmediately: true
          })
          yield* Effect.sleep("300 millis")
          assert.strictEqual(yield* Queue.size(gone), 0)
          yield* Fiber.interrupt(asking)
          yield* Effect.timeout(Queue.take(gone), "5 seconds")
        }
      }),
    180_000
  )

  it.live(
    "of 64 visitors at a time is theirs, each with its own streams; one more is told",
    () =>
      Effect.gen(function*() {
        const control = yield* makeControl
        const id = makeId()
        const go = yield* Deferred.make<void>()
        const inside = yield* Queue.unbounded<void>()
        yield* control.listen(id, (request, visitor) =>
          Queue.offer(inside, undefined).pipe(
            Effect.andThen(Deferred.await(go)),
            Effect.andThen(cat(request, visitor))
          ))
        const numbers = Array.from({ length: 64 }, (_, number) => String(number))
        const all = yield* Effect.forkChild(
          Effect.forEach(numbers, (number) => {
            const got: Array<Uint8Array> = []
            return Effect.map(
              control.exec(id, command, {
                ...none,
                stdin: Stream.encodeText(Stream.make(number)),
                stdout: Sink.forEach((chunk: Uint8Array) => Effect.sync(() => got.push(chunk)))
              }),
              () => Buffer.concat(got).toString()
            )
          }, { concurrency: "unbounded" }),
          { startImmediately: true }
        )
        yield* Effect.timeout(Effect.repeat(Queue.take(inside), { times: 63 }), "10 seconds")
        const error = yield* Effect.flip(control.ask(id, save))
        assert.match(error.message, /64 requests are under way .*: try again later/)
        yield* Deferred.succeed(go, undefined)
        assert.deepStrictEqual(yield* Fiber.join(all), numbers)
        assert.strictEqual(yield* Queue.size(inside), 0)
      }),
    180_000
  )

  it.live("that is too long is refused before anybody is asked", () =>
    Effect.gen(function*() {
      const control = yield* makeControl
      const id = makeId()
      yield* control.listen(id, () => Effect.succeed(ended))
      yield* control.exec(id, { ...command, args: ["x".repeat(50_000)] }, none)
      const error = yield* Effect.flip(control.exec(id, { ...command, args: ["x".repeat(70_000)] }, none))
      assert.strictEqual(error.reason._tag, "Refused")
      assert.match(error.message, /take 70\d+ bytes as JSON: make them shorter than 65280, or pass them on stdin/)
    }))

  /** Somebody who knows the key, and then says what he likes. */
  const knowing = Effect.fnUntraced(function*(text: Uint8Array) {
    const directory = yield* makeCache
    const control = yield* controlAt(directory)
    const id = makeId()
    const begun = yield* Deferred.make<void>()
    const gone = yield* Deferred.make<void>()
    yield* control.listen(
      id,
      () =>
        Effect.onInterrupt(
          Effect.andThen(Deferred.succeed(begun, undefined), Effect.never),
          () => Deferred.succeed(gone, undefined)
        )
    )
    const address = addressOf(id)
    const key = NodeFs.readFileSync(NodePath.join(directory, "control-key"))
    const ours = "c".repeat(64)
    const socket = NodeNet.connect(`\0${address}`)
    yield* Effect.addFinalizer(() => Effect.sync(() => socket.destroy()))
    socket.on("error", () => {})
    socket.write(`${JSON.stringify({ version: 1, nonce: ours })}\n`)
    socket.once("data", (chunk) => {
      const [, theirs = ""] = /"nonce":"([0-9a-f]+)"/.exec(String(chunk)) ?? []
      const request = JSON.stringify(command)
      const what = JSON.stringify(["visitor", address, ours, theirs, request])
      const proof = NodeCrypto.createHmac("sha256", key).update(what).digest("hex")
      socket.write(`${JSON.stringify({ request, proof })}\n`)
      socket.write(text)
    })
    return { begun: Deferred.await(begun), gone: Effect.timeout(Deferred.await(gone), "5 seconds"), socket }
  })

  const broken: ReadonlyArray<readonly [what: string, text: Uint8Array]> = [
    ["garbage", Buffer.from("GET / HTTP/1.1\r\n\r\n")],
    ["a frame longer than any", Buffer.from([0, 0xff, 0, 0, 0])],
    [
      "more input than there is room for",
      Buffer.concat(Array.from({ length: 10 }, () => {
        const header = Buffer.from([0, 0, 0, 0, 0])
        header.writeUInt32BE(40_000, 1)
        return Buffer.concat([header, Buffer.alloc(40_000)])
      }))
    ]
  ]
  it.live.each(broken)("ends with a visitor that says %s", ([, text]) =>
    Effect.gen(function*() {
      const { gone } = yield* knowing(text)
      yield* gone
    }))

  it.live("goes on while a frame is not whole, and ends with the half of it", () =>
    Effect.gen(function*() {
      const { begun, gone, socket } = yield* knowing(Buffer.from([0, 0, 0, 1, 0, 65]))
      yield* begun
      yield* Effect.sleep("300 millis")
      socket.destroy()
      yield* gone
    }))
})
