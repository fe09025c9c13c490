import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as Qmp from "../../src/qemu/Qmp.ts"
import * as QmpSchema from "../../src/qemu/QmpSchema.ts"
import * as FakeQmp from "../../src/testing/FakeQmp.ts"

const connect = (server?: FakeQmp.Options, client?: Qmp.Options) =>
  Effect.gen(function*() {
    const fake = yield* FakeQmp.make(server)
    return { fake, qmp: yield* Qmp.make(fake.socket, client) }
  })

/** Waits in real time, for what crosses a real stream while the test's clock stands still. */
const until = <A>(look: Effect.Effect<A>, holds: (value: A) => boolean): Effect.Effect<A> =>
  Effect.filterOrFail(look, holds).pipe(
    Effect.retry(Schedule.spaced("1 millis")),
    Effect.timeout("5 seconds"),
    Effect.orDie,
    TestClock.withLive
  )

const reasonOf = (error: { readonly reason: { readonly _tag: string } }) => error.reason._tag

describe("connecting", () => {
  it.effect("negotiates, then runs commands", () =>
    Effect.gen(function*() {
      const { fake, qmp } = yield* connect()
      assert.strictEqual(qmp.version.major, 7)
      assert.strictEqual((yield* qmp.execute(QmpSchema.queryStatus)).status, "prelaunch")
      yield* qmp.execute(QmpSchema.cont)
      yield* qmp.execute(QmpSchema.stop)
      assert.strictEqual(yield* fake.status, "paused")
      assert.deepStrictEqual((yield* fake.received).map(({ execute }) => execute), [
        "qmp_capabilities",
        "query-status",
        "cont",
        "stop"
      ])
    }))

  it.effect("reads lines that come byte by byte", () =>
    Effect.gen(function*() {
      const { qmp } = yield* connect({ chunkBytes: 1 })
      assert.deepStrictEqual(yield* qmp.execute(QmpSchema.queryStatus), { status: "prelaunch", running: false })
    }))

  it.effect("gives up on a server that does not greet", () =>
    Effect.gen(function*() {
      const fake = yield* FakeQmp.make({ greeting: "nothing" })
      const waiting = yield* Effect.forkChild(Effect.flip(Qmp.make(fake.socket, { within: "2 seconds" })), {
        startImmediately: true
      })
      yield* TestClock.adjust("2 seconds")
      const error = yield* Fiber.join(waiting)
      assert.strictEqual(error.message, "QEMU did not answer greeting within 2s")
    }))

  it.effect("fails at once when the server ends before it greets", () =>
    Effect.gen(function*() {
      const fake = yield* FakeQmp.make({ greeting: "nothing" })
      yield* fake.send("{\"QMP\": {")
      yield* fake.close
      const error = yield* Effect.flip(Qmp.make(fake.socket))
      assert.strictEqual(error.message, "QMP connection ended: closed by QEMU")
    }))

  for (
    const [what, line] of [
      ["another protocol", "SSH-2.0-OpenSSH_9.2\r\n"],
      ["JSON that is no greeting", "{\"return\": {}}\n"],
      ["bytes that are not UTF-8", new Uint8Array([0x22, 0xff, 0x22, 0x0a])]
    ] as const
  ) {
    it.effect(`refuses ${what}`, () =>
      Effect.gen(function*() {
        const fake = yield* FakeQmp.make({ greeting: "nothing" })
        yield* fake.send(line)
        assert.strictEqual(reasonOf(yield* Effect.flip(Qmp.make(fake.socket))), "ProtocolViolation")
      }))
  }

  it.effect("fails when the negotiation is rejected", () =>
    Effect.gen(function*() {
      const fake = yield* FakeQmp.make({ answer: () => ({ error: { class: "GenericError", desc: "no" } }) })
      const error = yield* Effect.flip(Qmp.make(fake.socket))
      assert.strictEqual(error.message, "QEMU rejected qmp_capabilities: no (GenericError)")
    }))
})

describe("going on where somebody else has stopped", () => {
  const longAgo = { greeting: "long ago" } as const

  it.effect("takes the events, and none of the answers, that came meanwhile", () =>
    Effect.gen(function*() {
      for (const chunkBytes of [1, 7, undefined]) {
        const fake = yield* FakeQmp.make({ ...longAgo, chunkBytes })
        yield* fake.send(`"running": true}, "id": 1}\r\n`)
        for (let id = 0; id < 5; id++) yield* fake.reply(id, { error: { class: "GenericError", desc: "stale" } })
        yield* fake.emit("SHUTDOWN", { guest: true, reason: "guest-shutdown" })
        const qmp = yield* Qmp.resume(fake.socket)
        assert.strictEqual(qmp.version.micro, 22)
        assert.strictEqual((yield* qmp.execute(QmpSchema.queryStatus)).status, "prelaunch")
        assert.isTrue(Option.isSome(yield* qmp.last("SHUTDOWN")))
      }
    }))

  it.effect("negotiates where the other one has not, and passes over its greeting", () =>
    Effect.gen(function*() {
      const fake = yield* FakeQmp.make()
      const qmp = yield* Qmp.resume(fake.socket)
      yield* qmp.execute(QmpSchema.cont)
      assert.strictEqual(yield* fake.status, "running")
      const ids = (yield* fake.received).map(({ id }) => id)
      assert.strictEqual(new Set(ids).size, ids.length)
      // Those of a client from the start are small.
      assert.isTrue(ids.every((id) => typeof id === "number" && id >= 2 ** 32))
    }))

  it.effect("gives up on a first line without an end, and on no answer", () =>
    Effect.gen(function*() {
      const fake = yield* FakeQmp.make({ ...longAgo, answer: () => "nothing" })
      yield* fake.send("x".repeat(2000))
      const endless = yield* Effect.flip(Qmp.resume(fake.socket, { maxLineBytes: 1000 }))
      assert.strictEqual(reasonOf(endless), "ProtocolViolation")
      const mute = yield* FakeQmp.make({ ...longAgo, answer: () => "nothing" })
      const waiting = yield* Effect.forkChild(Effect.flip(Qmp.resume(mute.socket, { within: "2 seconds" })), {
        startImmediately: true
      })
      yield* until(mute.received, (all) => all.length > 0)
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual(reasonOf(yield* Fiber.join(waiting)), "NoReply")
    }))

  it.effect("knows the last words of one that is gone", () =>
    Effect.gen(function*() {
      const fake = yield* FakeQmp.make(longAgo)
      yield* fake.emit("GUEST_PANICKED")
      yield* fake.close
      const said = yield* Qmp.overhear(fake.socket)
      assert.strictEqual(reasonOf(yield* said.disconnected), "Disconnected")
      assert.isTrue(Option.isSome(yield* said.last("GUEST_PANICKED")))
    }))
})

describe("execute", () => {
  it.effect("keeps the server's words when a command is rejected", () =>
    Effect.gen(function*() {
      const { qmp } = yield* connect()
      const error = yield* Effect.flip(qmp.execute({ ...QmpSchema.cont, execute: "warp" }))
      assert.deepInclude(error.reason, {
        _tag: "CommandRejected",
        command: "warp",
        class: "CommandNotFound",
        desc: "The command warp has not been found"
      })
    }))

  it.effect("gives each command its own reply, whatever the order and what comes in between", () =>
    Effect.gen(function*() {
      const { fake, qmp } = yield* connect({
        answer: (command) => command === "query-status" ? "nothing" : undefined
      })
      const both = yield* Effect.forkChild(
        Effect.all([qmp.execute(QmpSchema.queryStatus), qmp.execute(QmpSchema.queryStatus)], {
          concurrency: "unbounded"
        })
      )
      const [, first, second] = yield* until(fake.received, (received) => received.length === 3)
      yield* fake.reply(second?.id, { return: { status: "second", running: true } })
      yield* fake.emit("RTC_CHANGE", { offset: 0 })
      yield* fake.reply(null, { error: { class: "GenericError", desc: "whose?" } })
      yield* fake.reply(4711, { return: {} })
      yield* fake.reply(first?.id, { return: { status: "first", running: false } })
      assert.deepStrictEqual((yield* Fiber.join(both)).map(({ status }) => status), ["first", "second"])
    }))

  it.effect("ends at its deadline; a late reply disturbs nobody", () =>
    Effect.gen(function*() {
      let hang = true
      const { fake, qmp } = yield* connect({
        answer: (command) => hang && command === "stop" ? "nothing" : undefined
      })
      const waiting = yield* Effect.forkChild(Effect.flip(qmp.execute(QmpSchema.stop, { within: "1 second" })), {
        startImmediately: true
      })
      const received = yield* until(fake.received, ({ length }) => length === 2)
      yield* TestClock.adjust("999 millis")
      assert.isUndefined(waiting.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      assert.strictEqual((yield* Fiber.join(waiting)).message, "QEMU did not answer stop within 1s")
      hang = false
      yield* fake.reply(received[1]?.id, { error: { class: "GenericError", desc: "late" } })
      yield* qmp.execute(QmpSchema.stop)
    }))

  it.effect("fails on a reply of another shape, and the connection goes on", () =>
    Effect.gen(function*() {
      let replies = 0
      const { qmp } = yield* connect({
        answer: (command) => command === "query-status" && replies++ === 0 ? { return: "fine" } : undefined
      })
      const error = yield* Effect.flip(qmp.execute(QmpSchema.queryStatus))
      assert.strictEqual(error.message, "not QMP: a reply to query-status of another shape")
      yield* qmp.execute(QmpSchema.queryStatus)
    }))

  for (
    const [what, act, reason] of [
      ["the server ends", (fake: FakeQmp.FakeQmp) => fake.close, "Disconnected"],
      [
        "the server ends in the middle of a line",
        (fake: FakeQmp.FakeQmp) => Effect.andThen(fake.send("{\"return\""), fake.close),
        "Disconnected"
      ],
      ["garbage comes", (fake: FakeQmp.FakeQmp) => fake.send("garbage\n"), "ProtocolViolation"],
      ["JSON comes that is no message", (fake: FakeQmp.FakeQmp) => fake.send("{\"hello\":1}\n"), "ProtocolViolation"],
      ["a giant line comes", (fake: FakeQmp.FakeQmp) => fake.send("x".repeat(5_000)), "ProtocolViolation"]
    ] as const
  ) {
    it.effect(`fails all that wait, and all that follow, when ${what}`, () =>
      Effect.gen(function*() {
        const { fake, qmp } = yield* connect(
          { answer: (command) => command === "stop" ? "nothing" : undefined },
          { maxLineBytes: 4_096 }
        )
        const waiting = yield* Effect.forkChild(
          Effect.all([Effect.flip(qmp.execute(QmpSchema.stop)), Effect.flip(qmp.execute(QmpSchema.stop))], {
            concurrency: "unbounded"
          })
        )
        yield* until(fake.received, ({ length }) => length === 3)
        yield* act(fake)
        assert.deepStrictEqual((yield* Fiber.join(waiting)).map(reasonOf), [reason, reason])
        assert.strictEqual(reasonOf(yield* Effect.flip(qmp.execute(QmpSchema.cont))), reason)
        assert.strictEqual(reasonOf(yield* qmp.disconnected), reason)
      }))
  }

  it.effect("fails what waits when the scope closes", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { fake, qmp } = yield* connect({
        answer: (command) => command === "stop" ? "nothing" : undefined
      }).pipe(Scope.provide(scope))
      const waiting = yield* Effect.forkChild(Effect.flip(qmp.execute(QmpSchema.stop)))
      yield* until(fake.received, ({ length }) => length === 2)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual((yield* Fiber.join(waiting)).message, "QMP connection ended: closed by us")
    }))
})

describe("events", () => {
  it.effect("come as a stream that ends with the connection, unknown ones as they are", () =>
    Effect.gen(function*() {
      const { fake, qmp } = yield* connect()
      const seen = yield* Effect.forkChild(Stream.runCollect(qmp.events), { startImmediately: true })
      yield* qmp.execute(QmpSchema.cont)
      yield* fake.emit("NEWS", { from: "the future" })
      yield* fake.close
      assert.deepStrictEqual((yield* Fiber.join(seen)).map(({ event }) => event), ["RESUME", "NEWS"])
      assert.deepStrictEqual(yield* Stream.runCollect(qmp.events), [])
    }))

  it.effect("cost a subscriber that does not keep up the oldest, and never the reason of the end", () =>
    Effect.gen(function*() {
      const { fake, qmp } = yield* connect({}, { window: 4 })
      const gate = Promise.withResolvers<void>()
      const slow = yield* qmp.events.pipe(
        Stream.mapEffect(({ data }) => Effect.as(Effect.promise(() => gate.promise), data?.["n"])),
        Stream.runCollect,
        Effect.forkChild({ startImmediately: true })
      )
      yield* fake.emit("SHUTDOWN", { guest: true, reason: "guest-panic" })
      yield* Effect.forEach(Array.from({ length: 1_000 }, (_, n) => n), (n) => fake.emit("NOISE", { n }), {
        discard: true
      })
      yield* fake.close
      yield* qmp.disconnected
      gate.resolve()
      const seen = yield* Fiber.join(slow)
      assert.deepStrictEqual(seen.slice(-4), [996, 997, 998, 999])
      assert.isBelow(seen.length, 1_000)
      const last = Option.getOrThrow(yield* qmp.last("SHUTDOWN"))
      assert.isTrue(QmpSchema.isShutdown(last) && last.data.reason === "guest-panic")
      assert.isTrue(Option.isNone(yield* qmp.last("NOISE")))
    }))
})
