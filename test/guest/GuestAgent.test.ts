import { describe, expect, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import * as GuestAgentSchema from "../../src/guest/GuestAgentSchema.ts"
import type * as GuestError from "../../src/guest/GuestError.ts"
import * as FakeGuestAgent from "../../src/testing/FakeGuestAgent.ts"

const setUp = Effect.fnUntraced(function*(options: FakeGuestAgent.Options & GuestAgent.Options = {}) {
  const guest = yield* FakeGuestAgent.make(options)
  return { guest, agent: yield* GuestAgent.make(guest.socket, options) }
})

/** Starts an effect and lets it go as far as it gets without time. */
const background = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.tap(Effect.forkChild(effect, { startImmediately: true }), Effect.repeat(Effect.yieldNow, { times: 50 }))

/** The reason of the failure, and the virtual milliseconds that it took. */
const failure = <A, R>(effect: Effect.Effect<A, GuestError.GuestError, R>) =>
  Effect.gen(function*() {
    const start = yield* Clock.currentTimeMillis
    const fiber = yield* background(
      Effect.map(
        Effect.flip(effect),
        ({ reason }) => Effect.map(Clock.currentTimeMillis, (end) => ({ reason, after: end - start }))
      ).pipe(Effect.flatten)
    )
    yield* TestClock.adjust("2 minutes")
    return yield* Fiber.join(fiber)
  })

const reasonOf = <A, R>(effect: Effect.Effect<A, GuestError.GuestError, R>) =>
  Effect.map(failure(effect), ({ reason }) => reason)
const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes)
const commands = (guest: FakeGuestAgent.FakeGuest) =>
  Effect.map(guest.requests, (all) => all.map(({ execute }) => execute))

describe("readiness", () => {
  it.effect("a greeting that is sent early waits until the guest is up", () =>
    Effect.gen(function*() {
      const guest = yield* FakeGuestAgent.make({ paused: true })
      const fiber = yield* background(GuestAgent.make(guest.socket, { within: "1 minute" }))
      yield* TestClock.adjust("3 seconds")
      expect(fiber.pollUnsafe()).toBeUndefined()
      yield* guest.resume
      const agent = yield* Fiber.join(fiber)
      yield* agent.ping
      expect(yield* Clock.currentTimeMillis).toBe(3000)
      // At 0, 0.25, 0.75 and 1.75 seconds; none since.
      expect(yield* guest.syncs).toBe(4)
    }))

  it.effect("a guest without an agent is given up at the deadline", () =>
    Effect.gen(function*() {
      const guest = yield* FakeGuestAgent.make({ paused: true })
      const { after, reason } = yield* failure(Effect.scoped(GuestAgent.make(guest.socket, { within: "1 minute" })))
      expect(after).toBe(60_000)
      expect(reason).toMatchObject({ _tag: "NotReady", attempts: 8 })
    }))

  it.effect("another attempt has the channel for itself", () =>
    Effect.gen(function*() {
      const guest = yield* FakeGuestAgent.make({ paused: true })
      expect(yield* reasonOf(GuestAgent.make(guest.socket, { within: "5 seconds" }))).toMatchObject({
        _tag: "NotReady"
      })
      yield* guest.resume
      const agent = yield* GuestAgent.make(guest.socket, { within: "5 seconds" })
      for (let i = 0; i < 10; i++) yield* agent.ping
    }))

  it.effect("a machine that ends is told at once", () =>
    Effect.gen(function*() {
      const guest = yield* FakeGuestAgent.make({ paused: true })
      const fiber = yield* background(Effect.flip(GuestAgent.make(guest.socket)))
      yield* guest.hangUp
      expect((yield* Fiber.join(fiber)).reason).toMatchObject({ _tag: "Closed", channel: "agent" })
    }))

  it.effect("what an earlier client has left in the stream is passed over", () =>
    Effect.gen(function*() {
      const guest = yield* FakeGuestAgent.make()
      yield* guest.send(
        `{"return": {"pid": 1}}\n{"return": 17}\nnot json\n\n{"error": {"class": "X", "desc": ""}}\n{"retu`
      )
      const agent = yield* GuestAgent.make(guest.socket)
      expect((yield* agent.info).version).toBe("7.2.22")
    }))

  it.effect("half a request of an earlier client does not spoil ours", () =>
    Effect.gen(function*() {
      const guest = yield* FakeGuestAgent.make()
      yield* Effect.scoped(Effect.flatMap(guest.socket.writer, (writer) => writer.write(`{"execute": "guest-`)))
      const agent = yield* GuestAgent.make(guest.socket)
      yield* agent.ping
      expect(yield* commands(guest)).toEqual(["guest-ping"])
    }))

  it.effect("a guest that was restored answers us, and not its earlier life", () =>
    Effect.gen(function*() {
      const guest = yield* FakeGuestAgent.make()
      // What was under way when the snapshot was taken: replies that nobody had read, to requests with the numbers of
      // ours, and half a request.
      yield* Effect.scoped(Effect.flatMap(guest.socket.writer, (writer) => writer.write(`{"execute": "guest-shut`)))
      yield* guest.send(
        `rn": {}}\n{"return": {"pid": 7}, "id": 1}\n{"return": {"pid": 8}, "id": 2}\n\xff{"return": 1}\n{"ret`
      )
      const agent = yield* GuestAgent.make(guest.socket)
      expect(yield* agent.spawn({ path: "true" })).toBe(101)
      expect(yield* agent.spawn({ path: "true" })).toBe(102)
      expect(yield* commands(guest)).toEqual(["guest-exec", "guest-exec"])
    }))

  it.effect("one that is needed later is greeted before the first request, and hears nobody's earlier life", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp({ later: true })
      yield* Effect.scoped(Effect.flatMap(guest.socket.writer, (writer) => writer.write(`{"execute": "guest-shut`)))
      yield* guest.send(`{"return": {"pid": 7}, "id": 1}\n{"ret`)
      yield* Effect.repeat(Effect.yieldNow, { times: 50 })
      expect(yield* guest.syncs).toBe(0)
      expect(yield* agent.spawn({ path: "true" })).toBe(101)
      yield* agent.ping
      expect(yield* guest.syncs).toBe(1)
      expect(yield* commands(guest)).toEqual(["guest-exec", "guest-ping"])
    }))

  it.effect("one that is needed later and is not there is missed by the first request, at its deadline", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp({ later: true, paused: true })
      const { after, reason } = yield* failure(agent.ping)
      expect(after).toBe(10_000)
      expect(reason).toMatchObject({ _tag: "Timeout", operation: "guest-ping" })
      yield* guest.resume
      yield* agent.ping
      expect(yield* commands(guest)).toEqual(["guest-ping"])
    }))

  it.effect("the next client on the same channel does not get our late answer", () =>
    Effect.gen(function*() {
      const guest = yield* FakeGuestAgent.make()
      const first = Effect.scoped(
        Effect.flatMap(GuestAgent.make(guest.socket), (agent) => agent.exec({ path: "true" }))
      )
      yield* guest.inject({ _tag: "Late", by: "30 seconds" })
      yield* Effect.flatMap(background(first), Fiber.interrupt)
      const fiber = yield* background(GuestAgent.make(guest.socket, { within: "1 minute" }))
      yield* TestClock.adjust("30 seconds")
      const agent = yield* Fiber.join(fiber)
      expect((yield* agent.info).version).toBe("7.2.22")
    }))
})

describe("requests", () => {
  it.effect("ping, info and words of refusal", () =>
    Effect.gen(function*() {
      const { agent } = yield* setUp()
      yield* agent.ping
      expect(yield* agent.info).toEqual({ version: "7.2.22", commands: ["guest-ping", "guest-exec", "guest-shutdown"] })
      const unknown = { ...GuestAgentSchema.guestPing, execute: "guest-nonsense" }
      expect(yield* reasonOf(agent.request(unknown, {}))).toMatchObject({
        _tag: "CommandNotFound",
        command: "guest-nonsense",
        desc: "The command guest-nonsense has not been found"
      })
      const refused = yield* reasonOf(agent.exec({ path: "/nope" }))
      expect(refused).toMatchObject({ _tag: "AgentError", command: "guest-exec", class: "GenericError" })
      expect(refused.message).toContain("No such file or directory")
      yield* agent.ping
    }))

  it.effect("go one at a time, in order", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      yield* guest.inject({ _tag: "Late", by: "1 second" })
      yield* guest.inject({ _tag: "Late", by: "1 second" })
      const fibers = yield* Effect.forEach([agent.ping, agent.info, agent.ping], background)
      expect(yield* commands(guest)).toEqual(["guest-ping"])
      yield* TestClock.adjust("1 second")
      expect(yield* commands(guest)).toEqual(["guest-ping", "guest-info"])
      yield* TestClock.adjust("1 second")
      yield* Effect.forEach(fibers, Fiber.join)
      expect(yield* commands(guest)).toEqual(["guest-ping", "guest-info", "guest-ping"])
      expect(yield* guest.syncs).toBe(1)
    }))

  it.effect("no more than `maxWaiting` wait", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp({ maxWaiting: 2 })
      yield* guest.inject({ _tag: "Late", by: "1 second" })
      const fibers = yield* Effect.forEach([agent.ping, agent.ping], background)
      expect((yield* Effect.flip(agent.ping)).reason).toMatchObject({
        _tag: "Busy",
        waiting: 2,
        operation: "guest-ping"
      })
      yield* TestClock.adjust("1 second")
      yield* Effect.forEach(fibers, Fiber.join)
      yield* agent.ping
    }))

  it.effect("the deadline bounds the wait for a turn too", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp({ requestTimeout: "10 seconds" })
      yield* guest.inject({ _tag: "Ignore" })
      const first = yield* background(Effect.flip(agent.ping))
      yield* TestClock.adjust("6 seconds")
      const second = yield* background(agent.ping)
      yield* TestClock.adjust("4 seconds")
      expect((yield* Fiber.join(first)).reason._tag).toBe("Timeout")
      yield* Fiber.join(second)
      expect(yield* Clock.currentTimeMillis).toBe(10_000)
    }))

  it.effect("an answer of another shape is a protocol error, and no more than that", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      yield* guest.inject({ _tag: "Instead", bytes: `{"return": {"version": 7}}\n` })
      expect(yield* reasonOf(agent.info)).toMatchObject({ _tag: "Protocol", operation: "guest-info" })
      yield* agent.ping
      expect(yield* guest.syncs).toBe(1)
    }))
})

describe("a stream out of step", () => {
  const silent: ReadonlyArray<readonly [string, FakeGuestAgent.Fault]> = [
    ["no answer", { _tag: "Ignore" }],
    ["a lost answer", { _tag: "Lose" }],
    ["half an answer, then silence", { _tag: "Half" }],
    ["a late answer", { _tag: "Late", by: "10001 millis" }],
    ["the answer to another request", { _tag: "Instead", bytes: `{"return": {}, "id": 99}\n` }]
  ]
  it.effect.each(silent)("%s: a timeout, then all is well", ([, fault]) =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      yield* guest.inject(fault)
      const { after, reason } = yield* failure(agent.info)
      expect(after).toBe(10_000)
      expect(reason).toMatchObject({ _tag: "Timeout", operation: "guest-info" })
      expect(yield* guest.syncs).toBe(1)
      expect((yield* agent.info).version).toBe("7.2.22")
      expect(yield* guest.syncs).toBe(2)
    }))

  const odd: ReadonlyArray<readonly [string, string, string]> = [
    ["garbage", "garbage\n", "garbage"],
    ["JSON that is no reply", `{"event": "x"}\n`, `{"event": "x"}`],
    ["much garbage", `${"g".repeat(1000)}\n`, `${"g".repeat(120)}…`],
    ["bytes that are no text", "\u0000\u0001\n", "\u0000\u0001"]
  ]
  it.effect.each(odd)("%s: told at once, then all is well", ([, bytes, received]) =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      yield* guest.inject({ _tag: "Before", bytes })
      expect((yield* Effect.flip(agent.info)).reason).toMatchObject({
        _tag: "Protocol",
        operation: "guest-info",
        received
      })
      expect((yield* agent.info).version).toBe("7.2.22")
    }))

  it.effect("a line without end is cut off, whatever its length", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      yield* guest.inject({ _tag: "Instead", bytes: new Uint8Array(8 * 1024 * 1024).fill(0x61) })
      expect((yield* Effect.flip(agent.info)).reason).toMatchObject({
        _tag: "Protocol",
        problem: "a line that is too long"
      })
      expect((yield* agent.info).version).toBe("7.2.22")
    }))

  it.effect("an interrupted request leaves nothing behind", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      yield* guest.inject({ _tag: "Late", by: "1 second" })
      const fiber = yield* background(agent.info)
      yield* Fiber.interrupt(fiber)
      const next = yield* background(agent.ping)
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(next)
      // The first one; then at 0, 0.25 and 0.75 seconds.
      expect(yield* guest.syncs).toBe(4)
    }))

  it.effect("the end of the stream in the middle of an answer", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      yield* guest.inject({ _tag: "HangUp" })
      const waiting = yield* background(Effect.flip(agent.ping))
      const { reason } = yield* Effect.flip(agent.info)
      expect(reason).toMatchObject({ _tag: "Closed", channel: "agent" })
      expect((yield* Fiber.join(waiting)).reason._tag).toBe("Closed")
      expect((yield* Effect.flip(agent.ping)).reason._tag).toBe("Closed")
      expect((yield* agent.closed).reason._tag).toBe("Closed")
    }))

  it.effect("an agent that is started again in the middle of a request", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      yield* guest.inject({ _tag: "Late", by: "1 second" })
      const fiber = yield* background(failure(agent.info))
      yield* guest.restart
      expect((yield* Fiber.join(fiber)).reason._tag).toBe("Timeout")
      expect((yield* agent.info).version).toBe("7.2.22")
    }))

  it.effect("any number of requests to a guest that stands still fill no channel", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      yield* guest.pause
      for (let i = 0; i < 200; i++) {
        const fiber = yield* background(Effect.flip(agent.ping))
        yield* TestClock.adjust("10 seconds")
        expect((yield* Fiber.join(fiber)).reason._tag).toBe("Timeout")
      }
      const next = yield* background(agent.ping)
      yield* guest.resume
      yield* Fiber.join(next)
      // Two thousand seconds, one greeting in thirty.
      expect(yield* guest.syncs).toBeLessThan(80)
      // The one that was sent before the guest stood still, and the last.
      expect(yield* commands(guest)).toEqual(["guest-ping", "guest-ping"])
    }))

  it.effect.each([
    { what: "lines that nobody asked for", piece: "x\n{}\n{\"return\":1}\n".repeat(1024), most: 1024 * 1024 },
    { what: "a line without end", piece: "x".repeat(256 * 1024), most: 65 * 1024 * 1024 }
  ])("a guest that sends $what is read no longer", ({ most, piece }) =>
    Effect.gen(function*() {
      const chunk = new TextEncoder().encode(piece)
      let read = 0
      const pull = Effect.sync((): readonly [Uint8Array] => {
        read += chunk.length
        return [chunk]
      })
      const flood = Socket.make({
        reader: Effect.succeed({ pull, upgrade: () => Effect.die("no TLS here") }),
        writer: Effect.succeed({ write: () => Effect.void, writeAll: () => Effect.void })
      })
      const agent = yield* GuestAgent.make(flood, { later: true })
      const { message, reason } = yield* agent.closed
      expect(reason._tag).toBe("Closed")
      expect(message).toContain("that nobody asked for")
      expect((yield* Effect.flip(agent.ping)).reason._tag).toBe("Closed")
      expect(read).toBeLessThan(most)
    }))

  it.effect("closing the scope fails what still waits", () =>
    Effect.gen(function*() {
      const guest = yield* FakeGuestAgent.make()
      yield* guest.inject({ _tag: "Ignore" })
      const scope = yield* Scope.make()
      const agent = yield* Scope.provide(GuestAgent.make(guest.socket), scope)
      const waiting = yield* background(Effect.flip(agent.ping))
      yield* Scope.close(scope, Exit.void)
      expect((yield* Fiber.join(waiting)).reason._tag).toBe("Closed")
    }))
})

describe("programs", () => {
  it.effect("their output, codes, signals, environment and input", () =>
    Effect.gen(function*() {
      const { agent } = yield* setUp({
        programs: {
          both: ({ write }) => Effect.as(Effect.andThen(write("stdout", "out"), write("stderr", "err")), 3)
        }
      })
      const both = yield* agent.exec({ path: "both" })
      expect([text(both.stdout), text(both.stderr), both.status, both.truncated]).toEqual([
        "out",
        "err",
        { _tag: "Exited", code: 3, observedBy: "agent" },
        []
      ])
      const env = yield* agent.exec({ path: "env", env: { A: "1=2", B: Redacted.make("secret") } })
      expect(text(env.stdout)).toBe("A=1=2\nB=secret\n")
      const input = new Uint8Array(256).map((_, i) => i)
      expect((yield* agent.exec({ path: "cat", input })).stdout).toEqual(input)
    }))

  it.effect("with an exit code that there is not are lost, and no success", () =>
    Effect.gen(function*() {
      const { agent } = yield* setUp()
      for (const code of ["256", "-1"]) {
        expect((yield* agent.exec({ path: "exit", args: [code] })).status._tag).toBe("Lost")
      }
    }))

  it.effect("that start after whoever asked has gone are ended", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      yield* guest.pause
      const fiber = yield* background(agent.exec({ path: "sleep", args: ["1000"] }))
      yield* Fiber.interrupt(fiber)
      yield* guest.resume
      yield* TestClock.adjust("10 seconds")
      expect((yield* guest.requests).some(({ execute }) => execute === "guest-exec")).toBe(true)
      expect(yield* guest.running).toEqual([])
    }))

  it.effect("are asked for less and less often", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      const fiber = yield* background(agent.exec({ path: "sleep", args: ["60"] }))
      yield* TestClock.adjust("61 seconds")
      expect((yield* Fiber.join(fiber)).status).toMatchObject({ _tag: "Exited", code: 0 })
      expect((yield* guest.requests).length).toBeLessThan(150)
    }))

  it.effect("what the agent did not keep is told", () =>
    Effect.gen(function*() {
      const { agent } = yield* setUp({
        programs: {
          much: ({ write }) => Effect.as(write("stdout", new Uint8Array(GuestAgentSchema.maxCapturedBytes + 1)), 0)
        }
      })
      const { stdout, truncated } = yield* agent.exec({ path: "much" })
      expect(stdout.length).toBe(GuestAgentSchema.maxCapturedBytes)
      expect(truncated).toEqual(["stdout"])
    }))

  it.effect("interruption kills them", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      const fiber = yield* background(agent.exec({ path: "sleep", args: ["60"] }))
      yield* TestClock.adjust("1 second")
      expect(yield* guest.running).toHaveLength(1)
      const interrupted = yield* background(Fiber.interrupt(fiber))
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(interrupted)
      expect(yield* guest.running).toEqual([])
    }))

  it.effect("interruption does not wait for an agent that hangs", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      const fiber = yield* background(agent.exec({ path: "sleep", args: ["60"] }))
      yield* guest.pause
      const interrupted = yield* background(Fiber.interrupt(fiber))
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(interrupted)
    }))

  it.effect("a signal reaches them, and one that is gone is no error", () =>
    Effect.gen(function*() {
      const { agent } = yield* setUp()
      const pid = yield* agent.spawn({ path: "sleep", args: ["60"] })
      yield* agent.kill(pid, "SIGUSR1")
      expect(Option.getOrThrow(yield* agent.poll(pid)).status).toEqual({
        _tag: "Signaled",
        signal: "SIGUSR1",
        observedBy: "agent"
      })
      yield* agent.kill(pid, "SIGKILL")
      for (const many of [1, 0, -1, 1.5]) {
        expect((yield* Effect.flip(agent.kill(many, "SIGKILL"))).reason._tag).toBe("InvalidArgument")
      }
    }))

  it.effect("an end is told once", () =>
    Effect.gen(function*() {
      const { agent } = yield* setUp()
      const pid = yield* agent.spawn({ path: "true" })
      expect(Option.getOrThrow(yield* agent.poll(pid)).status).toMatchObject({ code: 0 })
      expect(yield* reasonOf(agent.poll(pid))).toMatchObject({ _tag: "UnknownProcess", pid })
    }))

  it.effect("an end that was told too late is not lost", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      const pid = yield* agent.spawn({ path: "exit", args: ["7"] })
      yield* guest.inject({ _tag: "Late", by: "30 seconds" })
      const fiber = yield* background(Effect.flip(agent.poll(pid)))
      yield* TestClock.adjust("10 seconds")
      expect((yield* Fiber.join(fiber)).reason._tag).toBe("Timeout")
      // It waits until both ends are in step again, and meets the answer on the way.
      const again = yield* background(agent.request(GuestAgentSchema.guestPing, {}, { within: "1 minute" }))
      yield* TestClock.adjust("20 seconds")
      yield* Fiber.join(again)
      expect(Option.getOrThrow(yield* agent.poll(pid)).status).toMatchObject({ code: 7 })
    }))

  it.effect("nor when the very question meets it", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      const pid = yield* agent.spawn({ path: "exit", args: ["7"] })
      yield* guest.inject({ _tag: "Late", by: "15 seconds" })
      const fiber = yield* background(Effect.flip(agent.poll(pid)))
      yield* TestClock.adjust("10 seconds")
      yield* Fiber.join(fiber)
      const again = yield* background(agent.poll(pid))
      yield* TestClock.adjust("5 seconds")
      expect(Option.getOrThrow(yield* Fiber.join(again)).status).toMatchObject({ code: 7 })
    }))

  it.effect("all that is wrong with one is told at once, before anything is sent", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      const { reason } = yield* Effect.flip(agent.exec({
        path: "",
        args: ["fine", "a\0b", "\ud83d"],
        env: { "A=B": "x", "": "y", SECRET: Redacted.make("s3cret\0") },
        input: new Uint8Array(16 * 1024 * 1024 + 1)
      }))
      expect(reason._tag === "InvalidArgument" ? reason.faults : []).toEqual([
        "path is empty: give it a name",
        "args[1] is \"a\\u0000b\": leave out the NUL",
        "args[2] is \"\\ud83d\": leave out the half of a surrogate pair",
        "env has the name \"A=B\": use one without = and NUL",
        "env has the name \"\": use one without = and NUL",
        "env SECRET has a value with a NUL: leave it out",
        "input has 16777217 bytes: give at most 16777216"
      ])
      expect(reason.message).not.toContain("s3cret")
      expect(yield* guest.requests).toEqual([])
    }))
})

describe("files", () => {
  const data = new Uint8Array(1_000_000).map((_, i) => (i * 2654435761) >>> 13)
  const read = (agent: GuestAgent.GuestAgent, path: string) =>
    Effect.map(Stream.runCollect(agent.readFile(path)), (chunks) => new Uint8Array(Buffer.concat(chunks)))

  it.effect("are written, read and extended in pieces", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      yield* Stream.run(Stream.make(data.subarray(0, 700_000), data.subarray(700_000)), agent.writeFile("/tmp/x"))
      expect(guest.files.get("/tmp/x")).toEqual(data)
      expect(yield* read(agent, "/tmp/x")).toEqual(data)
      expect((yield* commands(guest)).filter((command) => command === "guest-file-write")).toHaveLength(5)
      yield* Stream.run(Stream.make(new Uint8Array([1])), agent.writeFile("/tmp/x", { append: true }))
      expect(guest.files.get("/tmp/x")?.length).toBe(data.length + 1)
      yield* Stream.run(Stream.empty, agent.writeFile("/tmp/x"))
      expect(yield* read(agent, "/tmp/x")).toEqual(new Uint8Array(0))
      expect(guest.handles.size).toBe(0)
    }))

  it.effect("are closed when the reader has enough, the writer fails, or a request does", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      guest.files.set("/tmp/x", data)
      yield* Stream.runDrain(Stream.take(agent.readFile("/tmp/x"), 1))
      expect(guest.handles.size).toBe(0)
      const broken = Stream.concat(Stream.make(data), Stream.fail("broken" as const))
      expect(yield* Effect.flip(Stream.run(broken, agent.writeFile("/tmp/y")))).toBe("broken")
      expect(guest.handles.size).toBe(0)
      const slow = Stream.tap(agent.readFile("/tmp/x"), () => Effect.never)
      const fiber = yield* background(Stream.runDrain(slow))
      expect(guest.handles.size).toBe(1)
      yield* Fiber.interrupt(fiber)
      expect(guest.handles.size).toBe(0)
    }))

  it.effect("are closed even when they were opened for one who had gone", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      guest.files.set("/tmp/x", data)
      yield* guest.inject({ _tag: "Before", bytes: "garbage\n" })
      expect((yield* Effect.flip(Stream.runDrain(agent.readFile("/tmp/x")))).reason._tag).toBe("Protocol")
      expect(guest.handles.size).toBe(1)
      yield* guest.inject({ _tag: "Late", by: "11 seconds" })
      expect(yield* reasonOf(Stream.runDrain(agent.readFile("/tmp/x")))).toMatchObject({ _tag: "Timeout" })
      yield* Stream.runDrain(agent.readFile("/tmp/x"))
      yield* Stream.runDrain(agent.readFile("/tmp/x"))
      expect(guest.handles.size).toBe(0)
    }))

  it.effect("are not written when the guest says so at the end", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      const full: FakeGuestAgent.Fault = {
        _tag: "Instead",
        bytes: `{"error": {"class": "GenericError", "desc": "No space left on device"}}\n`
      }
      const content = Stream.concat(Stream.make(data), Stream.fromEffectDrain(guest.inject(full)))
      expect((yield* Effect.flip(Stream.run(content, agent.writeFile("/tmp/x")))).message).toContain("No space left")
      expect(guest.handles.size).toBe(0)
    }))

  it.effect("that are not there are refused in the agent's words", () =>
    Effect.gen(function*() {
      const { agent } = yield* setUp()
      expect((yield* Effect.flip(read(agent, "/nope"))).message).toContain("No such file or directory")
      expect((yield* Effect.flip(read(agent, "a\0b"))).reason._tag).toBe("InvalidArgument")
    }))
})

describe("time and the end", () => {
  it.effect("the guest's clock is set to ours, or to what is given", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      yield* TestClock.setTime(Date.UTC(2026, 1, 3))
      yield* agent.setTime()
      expect(yield* guest.time).toBe(Date.UTC(2026, 1, 3) * 1e6)
      yield* agent.setTime(DateTime.makeUnsafe(1500))
      expect(yield* guest.time).toBe(1_500_000_000)
    }))

  it.effect("a power-off is done when the stream ends", () =>
    Effect.gen(function*() {
      const { agent } = yield* setUp()
      yield* agent.powerOff
      expect(yield* Clock.currentTimeMillis).toBe(0)
      expect((yield* agent.closed).reason._tag).toBe("Closed")
    }))

  it.effect("a halt is done when nothing was refused for two seconds; the agent is of use after it", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      const fiber = yield* background(Effect.andThen(agent.halt, Clock.currentTimeMillis))
      yield* TestClock.adjust("5 seconds")
      expect(yield* Fiber.join(fiber)).toBe(2000)
      yield* agent.ping
      expect((yield* guest.requests)[0]).toMatchObject({ execute: "guest-shutdown", arguments: { mode: "halt" } })
    }))

  it.effect("a refusal is told", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp({ onShutdown: () => Effect.void })
      const fiber = yield* background(Effect.flip(agent.reboot))
      yield* guest.send(`{"error": {"class": "GenericError", "desc": "no shutdown here"}}\n`)
      expect((yield* Fiber.join(fiber)).reason).toMatchObject({ _tag: "AgentError", desc: "no shutdown here" })
    }))

  it.effect("an agent that hangs is noticed, and nothing is sent that it would do later", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      yield* guest.pause
      const { after, reason } = yield* failure(agent.powerOff)
      expect(after).toBe(10_000)
      expect(reason).toMatchObject({ _tag: "Timeout", operation: "guest-shutdown" })
      yield* guest.resume
      yield* agent.ping
      expect(yield* commands(guest)).toEqual(["guest-ping"])
    }))

  it.effect("a power-off can be interrupted", () =>
    Effect.gen(function*() {
      const { agent } = yield* setUp({ onShutdown: () => Effect.void })
      const fiber = yield* background(agent.powerOff)
      yield* Fiber.interrupt(fiber)
      const exit = yield* Fiber.await(fiber)
      expect(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)).toBe(true)
      yield* agent.ping
    }))
})
