/** What is said between a visitor and a run, and the frames in which it travels. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { Control, ControlError } from "../../src/cli/Control.ts"
import * as ControlRequest from "../../src/cli/ControlRequest.ts"
import * as Frames from "../../src/cli/internal/frames.ts"
import * as Session from "../../src/cli/internal/session.ts"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import * as Signal from "../../src/lifecycle/Signal.ts"

const command: ControlRequest.Exec = { _tag: "Exec", command: "cat", args: [], env: {} }
const ended = (code: number): ControlRequest.Answer => ({ _tag: "Ended", status: ExitStatus.exited(code, "agent") })
const noStreams: ControlRequest.Streams = {
  stdin: Stream.empty,
  stdout: Sink.drain,
  stderr: Sink.drain,
  signals: Stream.empty
}
const settled = Effect.repeat(Effect.yieldNow, { times: 100 })
const background = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.tap(Effect.forkChild(effect, { startImmediately: true }), settled)
const collect = <E, R>(stream: Stream.Stream<Uint8Array, E, R>) => Stream.mkString(Stream.decodeText(stream))
const megabyte = new Uint8Array(1024 * 1024)

const Byte = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 255 }))
const Bytes = Schema.Array(Byte)
const StreamNumber = Schema.Literals([0, 1, 2])
const Described = Schema.TaggedUnion({
  Bytes: { stream: StreamNumber, bytes: Bytes },
  Credit: { stream: StreamNumber, bytes: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 2 ** 32 - 1 })) },
  EndOfInput: {},
  Signal: { signal: Signal.Signal },
  Message: { text: Schema.Array(Schema.Literals(["a", "\n", "ä", "{", "\0"])) }
})
const toFrame = (one: typeof Described.Type): Frames.Frame => {
  switch (one._tag) {
    case "Bytes":
      return { ...one, bytes: Uint8Array.from(one.bytes) }
    case "Message":
      return { ...one, text: one.text.join("") }
    default:
      return one
  }
}

describe("frames", () => {
  it.prop(
    "come as they went, however they are cut",
    [Schema.Array(Described), Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 50 }))],
    ([described, size]) => {
      const frames = described.map(toFrame)
      const all = Buffer.concat(frames.flatMap(Frames.encode))
      const got: Array<Frames.Frame> = []
      let unread = Buffer.alloc(0)
      for (let at = 0; at < all.length; at += size) {
        unread = Buffer.concat([unread, all.subarray(at, at + size)])
        for (let found = Frames.decode(unread); found !== undefined; found = Frames.decode(unread)) {
          assert(found !== "broken")
          got.push(found.frame)
          unread = unread.subarray(found.end)
        }
      }
      assert.strictEqual(unread.length, 0)
      const plain = (one: Frames.Frame) => one._tag === "Bytes" ? { ...one, bytes: [...one.bytes] } : one
      assert.deepStrictEqual(got.map(plain), frames.map(plain))
    }
  )

  it.prop("of any other bytes are told for what they are, and never throw", [Bytes], ([bytes]) => {
    const found = Frames.decode(Uint8Array.from(bytes))
    if (found !== undefined && found !== "broken") assert.isAtMost(found.end, bytes.length)
  })

  it("that are none are told", () => {
    const none = [[0, 1, 0, 0, 0], [9, 0, 0, 0, 0], [5, 0, 0, 0, 1, 65], [4, 0, 0, 0, 1, 65], [
      3,
      0,
      0,
      0,
      5,
      7,
      0,
      0,
      0,
      1
    ]]
    for (const bytes of none) assert.strictEqual(Frames.decode(Uint8Array.from(bytes)), "broken")
  })
})

describe("a request", () => {
  it("hides the values of its environment until it is sent", () => {
    const request: ControlRequest.Request = { ...command, env: { TOKEN: Redacted.make("hush") } }
    assert.notInclude(JSON.stringify(request), "hush")
    const Text = Schema.fromJsonString(ControlRequest.Request)
    const text = Schema.encodeSync(Text)(request)
    const read = Schema.decodeSync(Text)(text)
    assert(read._tag === "Exec")
    assert.strictEqual(Redacted.value(read.env["TOKEN"] ?? Redacted.make("")), "hush")
  })

  it.effect("that is answered with something else has broken off", () =>
    Effect.gen(function*() {
      const control = yield* Control
      yield* control.listen("m", () => Effect.succeed(ended(0)))
      const error = yield* Effect.flip(control.ask("m", { _tag: "Status" }))
      assert.strictEqual(error.reason._tag, "Gone")
    }).pipe(Effect.provide(Control.layerMemory)))
})

describe("a command of a visitor", () => {
  const cat: ControlRequest.Handler = (_, visitor) =>
    Effect.as(Effect.orDie(Stream.run(visitor.stdin, visitor.stdout)), ended(3))

  it.effect("has his streams, and tells him its status", () =>
    Effect.gen(function*() {
      const control = yield* Control
      yield* control.listen("m", (_, visitor) =>
        Effect.gen(function*() {
          const read = yield* collect(visitor.stdin)
          yield* Stream.run(Stream.encodeText(Stream.make(`out ${read}`)), visitor.stdout)
          yield* Stream.run(Stream.encodeText(Stream.make("err")), visitor.stderr)
          return ended(7)
        }))
      const written: Record<string, string> = { out: "", err: "" }
      const into = (name: string) =>
        Sink.forEach((chunk: Uint8Array) =>
          Effect.sync(() => {
            written[name] = `${written[name]}${new TextDecoder().decode(chunk)}`
          })
        )
      const status = yield* control.exec("m", command, {
        ...noStreams,
        stdin: Stream.encodeText(Stream.make("a", "b")),
        stdout: into("out"),
        stderr: into("err")
      })
      assert.deepStrictEqual(status, ExitStatus.exited(7, "agent"))
      assert.deepStrictEqual(written, { out: "out ab", err: "err" })
    }).pipe(Effect.provide(Control.layerMemory)))

  it.effect("gets his signals, also when it does not read its input", () =>
    Effect.gen(function*() {
      const control = yield* Control
      yield* control.listen("m", (_, visitor) =>
        Effect.map(Stream.runCollect(Stream.take(visitor.signals, 2)), (signals): ControlRequest.Answer => ({
          _tag: "Ended",
          status: ExitStatus.signaled(signals[1] ?? "SIGHUP", { observedBy: "agent" })
        })))
      const status = yield* control.exec("m", command, {
        ...noStreams,
        stdin: Stream.forever(Stream.make(megabyte)),
        signals: Stream.make("SIGINT", "SIGTERM")
      })
      assert.strictEqual(ExitStatus.toCode(status), 143)
    }).pipe(Effect.provide(Control.layerMemory)))

  it.effect("waits when he does not read, and its other stream does not", () =>
    Effect.gen(function*() {
      const control = yield* Control
      const go = yield* Deferred.make<void>()
      let sent = 0
      let told = ""
      yield* control.listen("m", (_, visitor) =>
        Effect.gen(function*() {
          const much = Stream.range(1, 2000).pipe(
            Stream.map(() => new Uint8Array(1000)),
            Stream.tap((chunk) => Effect.sync(() => void (sent += chunk.length))),
            Stream.run(visitor.stdout)
          )
          yield* Effect.all([much, Stream.run(Stream.encodeText(Stream.make("still here")), visitor.stderr)], {
            concurrency: "unbounded"
          })
          return ended(0)
        }))
      let read = 0
      const asking = yield* background(control.exec("m", command, {
        ...noStreams,
        stdout: Sink.forEach((chunk: Uint8Array) =>
          Effect.andThen(Deferred.await(go), Effect.sync(() => void (read += chunk.length)))
        ),
        stderr: Sink.forEach((chunk: Uint8Array) => Effect.sync(() => void (told += new TextDecoder().decode(chunk))))
      }))
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(told, "still here")
      assert.isAtMost(sent, Session.window + 100_000)
      assert.isAtLeast(sent, Session.window)
      yield* Deferred.succeed(go, undefined)
      yield* Fiber.join(asking)
      assert.strictEqual(read, 2_000_000)
    }).pipe(Effect.provide(Control.layerMemory)))

  it.effect("that does not read makes him wait", () =>
    Effect.gen(function*() {
      const control = yield* Control
      yield* control.listen("m", () => Effect.never)
      let given = 0
      const asking = yield* background(control.exec("m", command, {
        ...noStreams,
        stdin: Stream.forever(Stream.make(new Uint8Array(1000))).pipe(
          Stream.tap(() => Effect.sync(() => void (given += 1000)))
        )
      }))
      yield* TestClock.adjust("1 minute")
      assert.isAtMost(given, Session.window + 100_000)
      yield* Fiber.interrupt(asking)
    }).pipe(Effect.provide(Control.layerMemory)))

  it.effect("ends when he goes away, or when his stdout breaks; a save goes on", () =>
    Effect.gen(function*() {
      const control = yield* Control
      const interrupted: Array<string> = []
      const begun = yield* Queue.unbounded<string>()
      yield* control.listen("m", (request, visitor) =>
        Effect.andThen(
          Queue.offer(begun, request._tag),
          Stream.run(Stream.encodeText(Stream.make("hello")), visitor.stdout)
        ).pipe(
          Effect.andThen(Effect.never),
          Effect.onInterrupt(() => Effect.sync(() => void interrupted.push(request._tag)))
        ))
      const save: ControlRequest.Request = { _tag: "Save", name: "s" }
      for (const asked of [control.exec("m", command, noStreams), control.ask("m", save)]) {
        const asking = yield* background(Effect.asVoid<unknown, ControlError, never>(asked))
        yield* Queue.take(begun)
        yield* Fiber.interrupt(asking)
        yield* settled
      }
      assert.deepStrictEqual(interrupted, ["Exec"])
      const broken = control.exec("m", command, { ...noStreams, stdout: Sink.fail("a broken pipe") })
      assert.strictEqual(yield* Effect.flip(broken), "a broken pipe")
      yield* settled
      assert.deepStrictEqual(interrupted, ["Exec", "Exec"])
    }).pipe(Effect.provide(Control.layerMemory)))

  it.effect("is told of when its run ends, or is stopped for long", () =>
    Effect.gen(function*() {
      const control = yield* Control
      const scope = yield* Scope.make()
      yield* Scope.provide(control.listen("m", () => Effect.never), scope)
      const asking = yield* background(Effect.flip(control.exec("m", command, noStreams)))
      // It says that it lives.
      yield* TestClock.adjust("1 hour")
      assert.isUndefined(asking.pollUnsafe())
      yield* Scope.close(scope, Exit.void)
      const error = yield* Fiber.join(asking)
      assert(error instanceof ControlError)
      assert.strictEqual(error.reason._tag, "Gone")
    }).pipe(Effect.provide(Control.layerMemory)))

  it.effect("of a run that says nothing is given up after a while", () =>
    Effect.gen(function*() {
      const wires = Session.memoryWires()
      const asking = yield* background(
        Effect.flip(Session.visit(wires.visitor, { broken: "broken", silent: "silent" }, noStreams))
      )
      yield* TestClock.adjust("9 seconds")
      assert.isUndefined(asking.pollUnsafe())
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual(yield* Fiber.join(asking), "silent")
    }))

  const lies: ReadonlyArray<readonly [what: string, frames: ReadonlyArray<Frames.Frame>]> = [
    ["more than there is room for", [{ _tag: "Bytes", stream: 0, bytes: new Uint8Array(Session.window + 1) }]],
    ["what the run says", [{ _tag: "Message", text: "{}" }]],
    ["output", [{ _tag: "Bytes", stream: 1, bytes: new Uint8Array(1) }]],
    ["credit for his own input", [{ _tag: "Credit", stream: 0, bytes: 1 }]]
  ]
  it.effect.each(lies)("ends when he says %s", ([, frames]) =>
    Effect.gen(function*() {
      const wires = Session.memoryWires()
      const serving = yield* background(Effect.exit(Session.serve(wires.run, command, () => Effect.never)))
      for (const one of frames) yield* wires.visitor.send(one)
      yield* settled
      assert.isTrue(Exit.isFailure(yield* Fiber.join(serving)))
    }))

  it.effect("has no more of him than a window, however much credit he gives", () =>
    Effect.gen(function*() {
      const wires = Session.memoryWires()
      let sent = 0
      const serving = yield* background(Session.serve(wires.run, command, (_, { stdout }) =>
        Effect.as(
          Stream.run(
            Stream.forever(Stream.make(new Uint8Array(1024))).pipe(
              Stream.tap(() => Effect.sync(() => void (sent += 1024)))
            ),
            stdout
          ),
          ended(0)
        )))
      const before = sent
      for (let i = 0; i < 3; i++) yield* wires.visitor.send({ _tag: "Credit", stream: 1, bytes: 2 ** 32 - 1 })
      yield* Effect.repeat(settled, { times: 50 })
      assert.isAtMost(sent - before, 2 * Session.window)
      yield* Fiber.interrupt(serving)
    }))

  it.effect.prop(
    "of any streams brings all bytes in order",
    [Schema.Array(Bytes)],
    ([chunks]) =>
      Effect.gen(function*() {
        const control = yield* Control
        yield* control.listen("m", cat)
        const got: Array<Uint8Array> = []
        yield* control.exec("m", command, {
          ...noStreams,
          stdin: Stream.fromIterable(chunks.map((chunk) => Uint8Array.from(chunk))),
          stdout: Sink.forEach((chunk: Uint8Array) => Effect.sync(() => got.push(chunk)))
        })
        assert.deepStrictEqual(Array.from(Buffer.concat(got)), chunks.flat())
      }).pipe(Effect.scoped, Effect.provide(Control.layerMemory))
  )
})
