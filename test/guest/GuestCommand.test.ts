import { describe, expect, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import * as GuestCommand from "../../src/guest/GuestCommand.ts"
import * as GuestSlots from "../../src/guest/GuestSlots.ts"
import * as GuestStdio from "../../src/guest/GuestStdio.ts"
import * as FakeGuestAgent from "../../src/testing/FakeGuestAgent.ts"

const setUp = Effect.fnUntraced(function*(options: FakeGuestAgent.Options & { readonly slots?: number } = {}) {
  const guest = yield* FakeGuestAgent.make(options)
  const agent = yield* GuestAgent.make(guest.socket)
  const slots = yield* GuestSlots.fromChannels(options.slots ?? 1, guest.channel)
  const start = (command: string, ...args: ReadonlyArray<string>) => GuestCommand.run(agent, slots, { command, args })
  return { guest, agent, slots, start }
})

/** Starts an effect and lets it go as far as it gets without time. */
const background = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.tap(Effect.forkChild(effect, { startImmediately: true }), Effect.repeat(Effect.yieldNow, { times: 50 }))
const settled = Effect.repeat(Effect.yieldNow, { times: 50 })

const text = <E, R>(stream: Stream.Stream<Uint8Array, E, R>) => Stream.mkString(Stream.decodeText(stream))
const count = <E, R>(stream: Stream.Stream<Uint8Array, E, R>) =>
  Stream.runFold(stream, () => 0, (sum, chunk: Uint8Array) => sum + chunk.length)
const noInput = (command: GuestCommand.GuestCommand) => Stream.run(Stream.empty, command.stdin)

/** Runs a command to its end: its status and what it wrote. */
const runAll = (
  started: Effect.Effect<GuestCommand.GuestCommand, GuestError, Scope.Scope>,
  input: ReadonlyArray<string> = []
) =>
  Effect.scoped(Effect.gen(function*() {
    const command = yield* started
    const [, stdout, stderr, status] = yield* Effect.all([
      Stream.fromIterable(input).pipe(Stream.encodeText, Stream.run(command.stdin)),
      text(command.stdout),
      text(command.stderr),
      command.exit
    ], { concurrency: "unbounded" })
    return { stdout, stderr, status }
  }))
type GuestError = Effect.Error<ReturnType<typeof GuestCommand.run>>

describe("the input of a command", () => {
  it.effect("is sent when the guest has opened the command's ports, and not before", () =>
    Effect.gen(function*() {
      const { agent } = yield* setUp()
      let nonce = ""
      const sent: Array<string> = []
      const output = yield* Queue.unbounded<Uint8Array>()
      const post = (bytes: Uint8Array) => Effect.sync(() => void sent.push(new TextDecoder().decode(bytes)))
      const slot: GuestSlots.Slot = {
        slot: 0,
        write: (chunks) => Effect.forEach(chunks, post, { discard: true }),
        post,
        pullStdout: Effect.map(Queue.take(output), (bytes) => [bytes] as const),
        pullStderr: Effect.never,
        release: () => Effect.void
      }
      const slots = {
        take: Effect.succeed(slot),
        takeSlot: () => Effect.succeed(slot),
        free: Effect.succeed([]),
        usage: Effect.never
      }
      const silent: GuestAgent.GuestAgent = {
        ...agent,
        spawn: ({ args = [] }) =>
          Effect.sync(() => {
            nonce = args[1] ?? ""
            return 7
          }),
        poll: () => Effect.succeedNone,
        kill: () => Effect.void
      }
      const scope = yield* Scope.make()
      const command = yield* Scope.provide(GuestCommand.run(silent, slots, { command: "cat" }), scope)
      yield* background(Stream.runDrain(command.stdout))
      yield* background(Stream.run(Stream.encodeText(Stream.make("hello")), command.stdin))
      const begun = yield* background(command.begun)
      yield* settled
      expect(sent).toEqual([])
      expect(begun.pollUnsafe()).toBeUndefined()
      yield* Queue.offer(output, GuestStdio.ready(nonce))
      yield* settled
      expect(sent.join("")).toBe(`BEGIN ${nonce}\n5\nhello0\n`)
      expect(begun.pollUnsafe()).toEqual(Exit.void)
      // A guest that says nothing more is waited for as long as a close may take.
      yield* background(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("3 seconds")
    }))
})

const megabyte = 1024 * 1024
/** Writes chunks of 64 KiB and counts them. */
const writer = (chunks: number, written: { count: number }): FakeGuestAgent.Options["programs"] => ({
  much: ({ write }) =>
    Effect.gen(function*() {
      const chunk = new Uint8Array(65536).fill(0x41)
      for (let i = 0; i < chunks; i++) {
        yield* write("stdout", chunk)
        written.count++
      }
      return 0
    })
})

describe("a command", () => {
  it.effect("reads, writes and ends; no time passes until its end is known", () =>
    Effect.gen(function*() {
      const { guest, slots, start } = yield* setUp({
        programs: { both: ({ write }) => Effect.as(Effect.andThen(write("stdout", "out"), write("stderr", "err")), 3) }
      })
      expect(yield* runAll(start("both"))).toEqual({
        stdout: "out",
        stderr: "err",
        status: { _tag: "Exited", code: 3, observedBy: "agent" }
      })
      expect((yield* runAll(start("cat"), ["one ", "two"])).stdout).toBe("one two")
      expect(yield* slots.usage).toEqual({ free: 1, inUse: 0, retired: 0 })
      expect(yield* Clock.currentTimeMillis).toBe(0)
      // Started once and asked once each.
      expect((yield* guest.requests).map(({ execute }) => execute)).toEqual([
        "guest-exec",
        "guest-exec-status",
        "guest-exec",
        "guest-exec-status"
      ])
    }))

  it.effect("that is not there is 127, one that is no program 126, as the guest says", () =>
    Effect.gen(function*() {
      const { start } = yield* setUp({ programs: { data: "not executable" } })
      expect(yield* runAll(start("nope"))).toMatchObject({ status: { code: 127 }, stderr: "nope: not found\n" })
      expect(yield* runAll(start("/bin/data"))).toMatchObject({ status: { code: 126 } })
    }))

  it.effect("can be signalled", () =>
    Effect.gen(function*() {
      const { start } = yield* setUp()
      yield* Effect.scoped(Effect.gen(function*() {
        const command = yield* start("sleep", "60")
        yield* command.kill("SIGTERM")
        expect(yield* command.exit).toEqual({ _tag: "Signaled", signal: "SIGTERM", observedBy: "agent" })
        yield* command.kill("SIGTERM")
        expect(yield* text(command.stdout)).toBe("")
      }))
    }))

  it.effect("gets its environment and its working directory", () =>
    Effect.gen(function*() {
      const { agent, slots } = yield* setUp()
      const run = (options: GuestCommand.Options) => runAll(GuestCommand.run(agent, slots, options))
      expect((yield* run({ command: "env", env: { HOME: "/home", TOKEN: Redacted.make("secret") } })).stdout).toBe(
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nHOME=/home\nTOKEN=secret\n"
      )
      expect((yield* run({ command: "pwd", cwd: "/tmp" })).stdout).toBe("/tmp\n")
      expect((yield* run({ command: "pwd" })).stdout).toBe("/\n")
    }))

  it.effect("that cannot be is refused before anything is sent", () =>
    Effect.gen(function*() {
      const { agent, guest, slots } = yield* setUp()
      const { reason } = yield* Effect.flip(Effect.scoped(
        GuestCommand.run(agent, slots, { command: "", args: ["\0"], cwd: "", env: { "=": "" } })
      ))
      expect(reason._tag === "InvalidArgument" ? reason.faults.map((fault) => fault.split(" ")[0]) : reason).toEqual([
        "command",
        "cwd",
        "args[0]",
        "env"
      ])
      expect(yield* guest.requests).toEqual([])
      expect(yield* slots.usage).toEqual({ free: 1, inUse: 0, retired: 0 })
    }))

  it.effect("that could not be set up says why, and takes no slot along", () =>
    Effect.gen(function*() {
      const { agent, slots } = yield* setUp()
      const fiber = yield* background(
        Effect.flip(runAll(GuestCommand.run(agent, slots, { command: "pwd", cwd: "/nope" })))
      )
      yield* TestClock.adjust("100 millis")
      expect((yield* Fiber.join(fiber)).reason).toMatchObject({
        _tag: "NotStarted",
        code: 126,
        text: "cannot work in /nope"
      })
      expect(yield* slots.usage).toEqual({ free: 1, inUse: 0, retired: 0 })
      expect((yield* runAll(GuestCommand.run(agent, slots, { command: "pwd" }))).stdout).toBe("/\n")
    }))

  it.effect("that the agent does not start takes no slot along either, unless it may have started", () =>
    Effect.gen(function*() {
      const { guest, slots, start } = yield* setUp({ slots: 2 })
      yield* guest.inject({ _tag: "Instead", bytes: `{"error": {"class": "CommandNotFound", "desc": "disabled"}}\n` })
      expect((yield* Effect.flip(Effect.scoped(start("true")))).reason._tag).toBe("CommandNotFound")
      expect(yield* slots.usage).toEqual({ free: 2, inUse: 0, retired: 0 })
      yield* guest.inject({ _tag: "Lose" })
      const fiber = yield* background(Effect.flip(Effect.scoped(start("true"))))
      yield* TestClock.adjust("10 seconds")
      expect((yield* Fiber.join(fiber)).reason._tag).toBe("Timeout")
      expect(yield* slots.usage).toEqual({ free: 1, inUse: 0, retired: 1 })
    }))
})

describe("flow control", () => {
  it.effect("100 MB go through a command, both ways, unchanged", () =>
    Effect.gen(function*() {
      const { start } = yield* setUp()
      const chunk = new Uint8Array(65536).map((_, i) => (i * 2654435761) >>> 13)
      yield* Effect.scoped(Effect.gen(function*() {
        const command = yield* start("cat")
        let sum = 0
        let same = true
        const started = performance.now()
        const status = yield* GuestCommand.connect(command, {
          stdin: Stream.range(1, 1600).pipe(Stream.map(() => chunk), Stream.rechunk(4)),
          stdout: Sink.forEach((bytes: Uint8Array) =>
            Effect.sync(() => {
              for (let i = 0; i < bytes.length; i += 97) if (bytes[i] !== chunk[(sum + i) % 65536]) same = false
              sum += bytes.length
            })
          ),
          stderr: Sink.drain
        })
        const seconds = (performance.now() - started) / 1000
        process.stdout.write(`100 MB through a fake cat: ${Math.round(100 / seconds)} MB/s\n`)
        expect(status).toMatchObject({ code: 0 })
        expect([sum, same]).toEqual([100 * megabyte, true])
      }))
    }))

  it.effect("a slow reader slows the command; no more than a few chunks are under way", () =>
    Effect.gen(function*() {
      const written = { count: 0 }
      const { guest, start } = yield* setUp({ programs: writer(400, written) })
      yield* Effect.scoped(Effect.gen(function*() {
        const command = yield* start("much")
        let read = 0
        let ahead = 0
        const fiber = yield* background(Stream.runForEach(command.stdout, (bytes) =>
          Effect.gen(function*() {
            read += bytes.length
            ahead = Math.max(ahead, written.count * 65536 - read)
            expect(guest.held(GuestStdio.portNames(0).stdout)).toBeLessThanOrEqual(2 * 65536)
            yield* Effect.sleep("1 second")
          })))
        yield* TestClock.adjust("10 seconds")
        expect(read).toBe(11 * 65536)
        yield* TestClock.adjust("10 minutes")
        yield* Fiber.join(fiber)
        expect(read).toBe(400 * 65536)
        expect(ahead).toBeLessThanOrEqual(10 * 65536)
      }))
    }))

  it.effect("a command that nobody reads waits, and ends when it is read", () =>
    Effect.gen(function*() {
      const written = { count: 0 }
      const { start } = yield* setUp({ programs: writer(400, written) })
      yield* Effect.scoped(Effect.gen(function*() {
        const command = yield* start("much")
        yield* TestClock.adjust("1 hour")
        expect(written.count).toBeLessThan(20)
        expect(yield* count(command.stdout)).toBe(400 * 65536)
        yield* settled
        expect(yield* command.exit).toMatchObject({ code: 0 })
      }))
    }))

  it.effect("input waits for a command that does not read it", () =>
    Effect.gen(function*() {
      const { slots, start } = yield* setUp()
      let taken = 0
      const endless = Stream.forever(Stream.fromEffect(Effect.sync(() => {
        taken++
        return new Uint8Array(65536)
      })))
      yield* Effect.scoped(Effect.gen(function*() {
        const command = yield* start("sleep", "60")
        const input = yield* background(Stream.run(endless, command.stdin))
        yield* TestClock.adjust("59 seconds")
        expect(taken).toBeLessThan(10)
        expect(input.pollUnsafe()).toBeUndefined()
        yield* TestClock.adjust("5 seconds")
        // The input of a command that has ended ends.
        yield* Fiber.join(input)
        expect(yield* command.exit).toMatchObject({ code: 0 })
      }))
      expect(yield* slots.usage).toEqual({ free: 1, inUse: 0, retired: 0 })
      // What the first command left unread is not the second one's.
      expect((yield* runAll(start("cat"), ["fresh"])).stdout).toBe("fresh")
    }))
})

describe("output that does not end with the command", () => {
  /** Ends with 7 at once and leaves a process behind that holds the output open for a minute. */
  const daemon: FakeGuestAgent.Options["programs"] = {
    daemon: ({ leaveBehind, write }) =>
      write("stdout", "started\n").pipe(
        Effect.andThen(leaveBehind(Effect.andThen(Effect.sleep("1 minute"), write("stdout", "late")))),
        Effect.as(7)
      )
  }

  it.effect("the end is known soon; the streams end after a bounded time, and the slot is retired until all has come", () =>
    Effect.gen(function*() {
      const { slots, start } = yield* setUp({ programs: daemon })
      const fiber = yield* background(Effect.zip(runAll(start("daemon")), Clock.currentTimeMillis))
      yield* TestClock.adjust("30 seconds")
      const [result, time] = yield* Fiber.join(fiber)
      expect(result).toMatchObject({ stdout: "started\n", status: { code: 7 } })
      // 100 ms until the agent is asked, 1 s for the streams.
      expect(time).toBe(1100)
      expect(yield* slots.usage).toEqual({ free: 0, inUse: 0, retired: 1 })
      expect((yield* Effect.flip(Effect.scoped(start("true")))).reason).toMatchObject({
        _tag: "NoFreeSlot",
        retired: 1
      })
      yield* TestClock.adjust("31 seconds")
      expect(yield* slots.usage).toEqual({ free: 1, inUse: 0, retired: 0 })
      expect((yield* runAll(start("cat"), ["fresh"])).stdout).toBe("fresh")
    }))

  it.effect("`drain` says how long they may go on", () =>
    Effect.gen(function*() {
      const { agent, slots } = yield* setUp({ programs: daemon })
      const started = GuestCommand.run(agent, slots, { command: "daemon", drain: "5 minutes" })
      const fiber = yield* background(runAll(started))
      yield* TestClock.adjust("2 minutes")
      expect((yield* Fiber.join(fiber)).stdout).toBe("started\nlate")
      expect(yield* slots.usage).toEqual({ free: 1, inUse: 0, retired: 0 })
    }))

  it.effect("a slow reader loses nothing of what was written in time", () =>
    Effect.gen(function*() {
      const { start } = yield* setUp({
        capacity: 16 * megabyte,
        programs: {
          daemon: ({ leaveBehind, write }) =>
            Effect.forEach(Array.from({ length: 50 }), () => write("stdout", new Uint8Array(65536)), { discard: true })
              .pipe(
                Effect.andThen(leaveBehind(Effect.never)),
                Effect.as(0)
              )
        }
      })
      yield* Effect.scoped(Effect.gen(function*() {
        const command = yield* start("daemon")
        const slowly = Stream.tap(command.stdout, () => Effect.sleep("10 seconds"))
        const fiber = yield* background(count(slowly))
        yield* TestClock.adjust("1 hour")
        expect(yield* Fiber.join(fiber)).toBe(50 * 65536)
        expect(yield* command.exit).toMatchObject({ code: 0 })
      }))
    }))

  /** Ends after ten quiet seconds; what it leaves behind writes a byte now and then. */
  const drip = (times: number): FakeGuestAgent.Options["programs"] => ({
    drip: ({ leaveBehind, write }) =>
      Effect.sleep("10 seconds").pipe(
        Effect.andThen(leaveBehind(
          Effect.sleep("3 seconds").pipe(
            Effect.andThen(Effect.repeat(
              Effect.andThen(Effect.sleep("100 millis"), write("stdout", ".")),
              { times: times - 1 }
            ))
          )
        )),
        Effect.as(0)
      )
  })

  it.effect("the wait for it is bounded in all, however it is spread", () =>
    Effect.gen(function*() {
      const { agent, slots } = yield* setUp({ slots: 2, programs: drip(1000) })
      const run = runAll(GuestCommand.run(agent, slots, { command: "drip", drain: "5 seconds" }))
      const fiber = yield* background(Effect.zip(run, Clock.currentTimeMillis))
      yield* TestClock.adjust("1 minute")
      const [{ stdout }, time] = yield* Fiber.join(fiber)
      expect(time).toBeLessThan(17_000)
      expect(stdout.length).toBeGreaterThan(20)
      expect(stdout.length).toBeLessThan(35)
    }))

  it.effect("the wait before the command's end does not count", () =>
    Effect.gen(function*() {
      const { agent, slots } = yield* setUp({ programs: drip(10) })
      const fiber = yield* background(runAll(GuestCommand.run(agent, slots, { command: "drip", drain: "5 seconds" })))
      yield* TestClock.adjust("1 minute")
      expect((yield* Fiber.join(fiber)).stdout).toBe("..........")
      expect(yield* slots.usage).toEqual({ free: 1, inUse: 0, retired: 0 })
    }))

  it.effect("a process that never stops writing does not hold the end up", () =>
    Effect.gen(function*() {
      const { slots, start } = yield* setUp({
        programs: {
          noise: ({ leaveBehind, write }) =>
            Effect.as(leaveBehind(Effect.forever(write("stdout", new Uint8Array(65536)))), 0)
        }
      })
      yield* Effect.scoped(Effect.gen(function*() {
        const command = yield* start("noise")
        const fiber = yield* background(count(Stream.tap(command.stdout, () => Effect.sleep("1 millis"))))
        yield* TestClock.adjust("1 minute")
        expect(yield* Fiber.join(fiber)).toBeLessThan(32 * megabyte)
      }))
      yield* TestClock.adjust("1 minute")
      expect(yield* slots.usage).toEqual({ free: 0, inUse: 0, retired: 1 })
    }))
})

describe("closing the scope", () => {
  it.effect("kills the command and gives the slot back", () =>
    Effect.gen(function*() {
      const { guest, slots, start } = yield* setUp()
      yield* Effect.scoped(start("sleep", "60"))
      expect(yield* guest.running).toEqual([])
      expect(yield* slots.usage).toEqual({ free: 1, inUse: 0, retired: 0 })
      expect(yield* Clock.currentTimeMillis).toBe(0)
    }))

  it.effect("kills one whose output nobody read", () =>
    Effect.gen(function*() {
      const { guest, slots, start } = yield* setUp({ programs: writer(1e9, { count: 0 }) })
      yield* Effect.scoped(Effect.andThen(start("much"), settled))
      expect(yield* guest.running).toEqual([])
      expect(yield* slots.usage).toEqual({ free: 1, inUse: 0, retired: 0 })
      expect((yield* runAll(start("echo", "clean"))).stdout).toBe("clean\n")
    }))

  it.effect("ends the input of one that has ended without it, so that the slot can be used again", () =>
    Effect.gen(function*() {
      const { slots, start } = yield* setUp()
      for (let i = 0; i < 3; i++) {
        yield* Effect.scoped(Effect.gen(function*() {
          expect(yield* (yield* start("exit", "3")).exit).toMatchObject({ code: 3 })
        }))
      }
      expect(yield* slots.usage).toEqual({ free: 1, inUse: 0, retired: 0 })
    }))

  it.effect("or an interruption while it starts gives the slot back, too, unless the agent says nothing", () =>
    Effect.gen(function*() {
      const { guest, slots, start } = yield* setUp()
      const interrupted = (after: Duration.Input) =>
        Effect.gen(function*() {
          const starting = yield* background(Effect.scoped(Effect.andThen(start("sleep", "60"), Effect.never)))
          const ending = yield* background(Fiber.interrupt(starting))
          yield* TestClock.adjust(after)
          yield* Fiber.join(ending)
          expect(yield* guest.running).toEqual([])
        })
      for (let i = 0; i < 5; i++) {
        yield* guest.inject({ _tag: "Late", by: "1 second" })
        yield* interrupted("1100 millis")
        expect(yield* slots.usage).toEqual({ free: 1, inUse: 0, retired: 0 })
      }
      yield* guest.inject({ _tag: "Ignore" })
      yield* interrupted("2 seconds")
      expect(yield* slots.usage).toEqual({ free: 0, inUse: 0, retired: 1 })
    }))

  it.effect("is bounded when the guest stands still", () =>
    Effect.gen(function*() {
      const { guest, slots, start } = yield* setUp()
      const scope = yield* Scope.make()
      const command = yield* Scope.provide(start("sleep", "60"), scope)
      yield* guest.pause
      const fiber = yield* background(Effect.andThen(Scope.close(scope, Exit.void), Clock.currentTimeMillis))
      yield* TestClock.adjust("59 seconds")
      expect(yield* Fiber.join(fiber)).toBe(2000)
      expect(yield* command.exit).toMatchObject({ _tag: "Lost" })
      expect(yield* slots.usage).toEqual({ free: 0, inUse: 0, retired: 1 })
      yield* guest.resume
      yield* TestClock.adjust("1 second")
      expect(yield* slots.usage).toEqual({ free: 1, inUse: 0, retired: 0 })
      expect((yield* runAll(start("cat"), ["fresh"])).stdout).toBe("fresh")
    }))

  it.effect("of one in a guest that stands still kills it when the guest goes on, whenever that is", () =>
    Effect.gen(function*() {
      for (const still of ["3 seconds", "1 hour"] as const) {
        const { guest, start } = yield* setUp()
        const scope = yield* Scope.make()
        yield* Scope.provide(start("sleep", "1000000"), scope)
        yield* guest.pause
        // By now the agent is being asked for its end.
        yield* TestClock.adjust("5 seconds")
        const closing = yield* background(Scope.close(scope, Exit.void))
        yield* TestClock.adjust(still)
        yield* Fiber.join(closing)
        expect(yield* guest.running).toHaveLength(1)
        yield* guest.resume
        // It is greeted every 30 seconds by then.
        for (let second = 0; second < 60; second++) yield* TestClock.adjust("1 second")
        expect(yield* guest.running).toEqual([])
      }
    }))

  it.effect("ends streams that are still read, and the input", () =>
    Effect.gen(function*() {
      const { start } = yield* setUp()
      const scope = yield* Scope.make()
      const command = yield* Scope.provide(start("cat"), scope)
      const out = yield* background(text(command.stdout))
      const input = yield* background(Stream.run(Stream.never, command.stdin))
      yield* Scope.close(scope, Exit.void)
      expect(yield* Fiber.join(out)).toBe("")
      yield* Fiber.join(input)
    }))

  it.effect("takes no time once the machine has ended", () =>
    Effect.gen(function*() {
      const { guest, start } = yield* setUp()
      const scope = yield* Scope.make()
      const command = yield* Scope.provide(start("sleep", "60"), scope)
      const out = yield* background(Effect.flip(text(command.stdout)))
      const input = yield* background(Stream.run(Stream.never, command.stdin))
      const exit = yield* background(Effect.flip(command.exit))
      yield* guest.hangUp
      expect((yield* Fiber.join(out)).reason).toMatchObject({ _tag: "Closed", channel: "microvm.0.stdout" })
      expect((yield* Fiber.join(exit)).reason).toMatchObject({ _tag: "Closed", channel: "agent" })
      yield* Fiber.join(input)
      yield* Scope.close(scope, Exit.void)
      expect(yield* Clock.currentTimeMillis).toBe(0)
    }))
})

describe("the end of a command", () => {
  it.effect("is not lost when the guest stands still while it is asked for", () =>
    Effect.gen(function*() {
      const { guest, start } = yield* setUp()
      const fiber = yield* background(runAll(start("sleep", "5")))
      yield* TestClock.adjust("4 seconds")
      yield* guest.pause
      yield* TestClock.adjust("10 minutes")
      expect(fiber.pollUnsafe()).toBeUndefined()
      yield* guest.resume
      yield* TestClock.adjust("10 seconds")
      expect((yield* Fiber.join(fiber)).status).toMatchObject({ _tag: "Exited", code: 0 })
    }))

  it.effect("is not lost when its one answer comes too late", () =>
    Effect.gen(function*() {
      const { guest, start } = yield* setUp()
      yield* Effect.scoped(Effect.gen(function*() {
        const command = yield* start("cat")
        yield* guest.inject({ _tag: "Late", by: "30 seconds" })
        yield* noInput(command)
        const fiber = yield* background(command.exit)
        yield* TestClock.adjust("40 seconds")
        expect(yield* Fiber.join(fiber)).toMatchObject({ _tag: "Exited", code: 0 })
      }))
    }))

  it.effect("is asked for again soon once the streams have ended", () =>
    Effect.gen(function*() {
      const { guest, start } = yield* setUp()
      yield* Effect.scoped(Effect.gen(function*() {
        const command = yield* start("cat")
        yield* guest.inject({ _tag: "Ignore" })
        yield* noInput(command)
        const fiber = yield* background(Effect.andThen(command.exit, Clock.currentTimeMillis))
        yield* TestClock.adjust("1 minute")
        expect(yield* Fiber.join(fiber)).toBeLessThan(10_010)
      }))
    }))

  it.effect("is told to be lost when the agent has forgotten it, but not before; its streams go on", () =>
    Effect.gen(function*() {
      const { guest, slots, start } = yield* setUp()
      yield* Effect.scoped(Effect.gen(function*() {
        const command = yield* start("cat")
        const exit = yield* background(command.exit)
        yield* guest.restart
        yield* TestClock.adjust("1 minute")
        expect(exit.pollUnsafe()).toBeUndefined()
        yield* Stream.run(Stream.encodeText(Stream.make("still here")), command.stdin)
        expect(yield* text(command.stdout)).toBe("still here")
        expect(yield* Fiber.join(exit)).toMatchObject({ _tag: "Lost", observedBy: "agent" })
      }))
      expect(yield* slots.usage).toEqual({ free: 1, inUse: 0, retired: 0 })
    }))

  it.effect("is known though the agent has forgotten it and its streams stay open", () =>
    Effect.gen(function*() {
      const go = yield* Deferred.make<void>()
      const { guest, slots, start } = yield* setUp({
        programs: {
          leaver: ({ leaveBehind, write }) =>
            Effect.gen(function*() {
              yield* leaveBehind(Effect.never)
              yield* Deferred.await(go)
              yield* write("stdout", "last words")
              return 3
            })
        }
      })
      yield* Effect.scoped(Effect.gen(function*() {
        const command = yield* start("leaver")
        const result = yield* background(Effect.all([command.exit, text(command.stdout)], { concurrency: 2 }))
        yield* guest.restart
        yield* TestClock.adjust("10 minutes")
        expect(result.pollUnsafe()).toBeUndefined()
        yield* Deferred.succeed(go, undefined)
        yield* TestClock.adjust("4 seconds")
        expect(yield* Fiber.join(result)).toMatchObject([{ _tag: "Lost", observedBy: "agent" }, "last words"])
      }))
      expect(yield* slots.usage).toEqual({ free: 0, inUse: 0, retired: 1 })
    }))

  it.effect("is given up after many odd answers, not after one", () =>
    Effect.gen(function*() {
      const { guest, start } = yield* setUp()
      const oddities = (times: number) =>
        Effect.repeat(guest.inject({ _tag: "Instead", bytes: "odd\n" }), { times: times - 1 })
      yield* Effect.scoped(Effect.gen(function*() {
        const command = yield* start("cat")
        yield* oddities(3)
        yield* noInput(command)
        const fiber = yield* background(command.exit)
        yield* TestClock.adjust("1 minute")
        expect(yield* Fiber.join(fiber)).toMatchObject({ _tag: "Lost" })
      }))
      yield* Effect.scoped(Effect.gen(function*() {
        const command = yield* start("sleep", "600")
        yield* oddities(20)
        const fiber = yield* background(Effect.flip(command.exit))
        yield* TestClock.adjust("1 minute")
        expect((yield* Fiber.join(fiber)).reason._tag).toBe("Protocol")
      }))
    }))
})

describe("slots", () => {
  it.effect("run commands side by side, one each", () =>
    Effect.gen(function*() {
      const { slots, start } = yield* setUp({ slots: 2 })
      yield* Effect.scoped(Effect.gen(function*() {
        const one = yield* start("cat")
        const two = yield* start("cat")
        expect((yield* Effect.flip(start("cat"))).reason).toMatchObject({ _tag: "NoFreeSlot", inUse: 2, retired: 0 })
        yield* Stream.run(Stream.encodeText(Stream.make("two")), two.stdin)
        yield* Stream.run(Stream.encodeText(Stream.make("one")), one.stdin)
        expect([yield* text(one.stdout), yield* text(two.stdout)]).toEqual(["one", "two"])
      }))
      expect(yield* slots.usage).toEqual({ free: 2, inUse: 0, retired: 0 })
    }))

  it.effect("carry any number of commands, one after the other", () =>
    Effect.gen(function*() {
      const { start } = yield* setUp()
      for (let i = 0; i < 100; i++) {
        const { status, stdout } = yield* runAll(start(i % 2 === 0 ? "cat" : "true"), [`input ${i}`])
        expect([stdout, status._tag]).toEqual([i % 2 === 0 ? `input ${i}` : "", "Exited"])
      }
    }))
})

describe("connected to streams of ours", () => {
  class BrokenPipe extends Data.TaggedError("BrokenPipe")<{}> {}

  it.effect("a broken pipe ends the connection, and the scope the command", () =>
    Effect.gen(function*() {
      const { guest, start } = yield* setUp({ programs: writer(1e9, { count: 0 }) })
      const error = yield* Effect.flip(Effect.scoped(Effect.flatMap(start("much"), (command) =>
        GuestCommand.connect(command, {
          stdin: Stream.never,
          stdout: Sink.forEach(() => new BrokenPipe()),
          stderr: Sink.drain
        }))))
      expect(error._tag).toBe("BrokenPipe")
      expect(yield* guest.running).toEqual([])
    }))

  it.effect("input that fails is told; input that goes on is given up", () =>
    Effect.gen(function*() {
      const { start } = yield* setUp()
      const connect = (stdin: Stream.Stream<Uint8Array, BrokenPipe>, command: string) =>
        Effect.scoped(Effect.flatMap(start(command), (started) =>
          GuestCommand.connect(started, { stdin, stdout: Sink.drain, stderr: Sink.drain })))
      expect((yield* Effect.flip(connect(Stream.fail(new BrokenPipe()), "cat")))._tag).toBe("BrokenPipe")
      expect(yield* connect(Stream.never, "false")).toMatchObject({ code: 1 })
    }))

  it.effect.each([[200, "1 2 3 down"], [Infinity, ""]] as const)(
    "what was written before the machine ended is passed on first, for a second at most: one piece in %d ms",
    ([pace, expected]) =>
      Effect.gen(function*() {
        const over = yield* Deferred.make<void>()
        const { guest, start } = yield* setUp({
          programs: {
            powerOff: ({ write }) =>
              Effect.gen(function*() {
                for (const nth of ["1", "2", "3"]) yield* Effect.andThen(write("stdout", nth), Effect.sleep(10))
                yield* write("stderr", "down")
                yield* Effect.delay(Deferred.succeed(over, undefined), 10)
                return yield* Effect.never
              })
          }
        })
        yield* background(Effect.andThen(Deferred.await(over), guest.hangUp))
        const passed: Array<string> = []
        const sink = Sink.forEach((bytes: Uint8Array) =>
          Effect.delay(Effect.sync(() => void passed.push(new TextDecoder().decode(bytes))), pace)
        )
        const error = yield* background(Effect.flip(Effect.scoped(Effect.flatMap(start("powerOff"), (command) =>
          GuestCommand.connect(command, { stdin: Stream.never, stdout: sink, stderr: sink })))))
        yield* TestClock.adjust("3 seconds")
        expect(yield* Fiber.join(error)).toMatchObject({ reason: { _tag: "Closed" } })
        expect(passed.toSorted().join(" ")).toBe(expected)
      })
  )
})

/** A channel that is dead to one of its users from some moment on, as all channels are to a process that was killed. */
const mortal = (socket: Socket.Socket, death: Deferred.Deferred<void>): Socket.Socket =>
  Socket.make({
    reader: Effect.map(socket.reader, ({ pull, upgrade }) => ({
      pull: Effect.flatMap(
        Effect.raceFirst(pull, Effect.as(Deferred.await(death), "dead" as const)),
        (got) => got === "dead" ? Effect.never : Effect.succeed(got)
      ),
      upgrade
    })),
    writer: Effect.map(socket.writer, ({ write, writeAll }) => ({
      write: (chunk) => Deferred.isDoneUnsafe(death) ? Effect.void : write(chunk),
      writeAll: (chunks) => Deferred.isDoneUnsafe(death) ? Effect.void : writeAll(chunks)
    }))
  })

/** A guest, and two processes that have to do with it: the first dies when it is told to. */
const twoProcesses = Effect.fnUntraced(function*(options: FakeGuestAgent.Options & { readonly slots?: number } = {}) {
  const guest = yield* FakeGuestAgent.make(options)
  const death = yield* Deferred.make<void>()
  // Nothing of what is killed is closed in order.
  const never = yield* Scope.make()
  const slotCount = options.slots ?? 1
  const first = yield* Effect.gen(function*() {
    const agent = yield* GuestAgent.make(mortal(guest.socket, death))
    const slots = yield* GuestSlots.fromChannels(
      slotCount,
      (name) => Effect.map(guest.channel(name), (socket) => mortal(socket, death))
    )
    return { agent, slots }
  }).pipe(Scope.provide(never))
  return {
    guest,
    first: {
      ...first,
      start: (command: string, ...args: ReadonlyArray<string>) =>
        Scope.provide(GuestCommand.run(first.agent, first.slots, { command, args }), never)
    },
    kill: Effect.andThen(Deferred.succeed(death, undefined), settled),
    second: Effect.gen(function*() {
      return {
        agent: yield* GuestAgent.make(guest.socket),
        slots: yield* GuestSlots.fromChannels(slotCount, guest.channel)
      }
    })
  }
})

/** Lets something that takes time have it. */
const inTime = Effect.fnUntraced(function*<A, E, R>(effect: Effect.Effect<A, E, R>) {
  const fiber = yield* background(effect)
  yield* TestClock.adjust("5 seconds")
  return yield* Fiber.join(fiber)
})

describe("a command of a process that was killed", () => {
  it.effect("goes on with its output and tells its end", () =>
    Effect.gen(function*() {
      const go = yield* Deferred.make<void>()
      const { first, guest, kill, second } = yield* twoProcesses({
        programs: {
          slow: ({ write }) =>
            Effect.gen(function*() {
              yield* write("stdout", "before ")
              yield* Deferred.await(go)
              yield* write("stdout", "after")
              yield* write("stderr", "oh")
              return 7
            })
        },
        slots: 2
      })
      const command = yield* first.start("slow")
      yield* background(Stream.runDrain(command.stdout))
      yield* kill
      const { agent, slots } = yield* second
      const result = yield* background(runAll(GuestCommand.attach(agent, slots, command.description)))
      expect((yield* slots.usage).inUse).toBe(1)
      // The slot where it runs is nobody else's.
      expect(yield* slots.free).toEqual([1])
      yield* Deferred.succeed(go, undefined)
      expect(yield* Fiber.join(result)).toEqual({
        stdout: "after",
        stderr: "oh",
        status: { _tag: "Exited", code: 7, observedBy: "agent" }
      })
      expect(yield* slots.usage).toEqual({ free: 2, inUse: 0, retired: 0 })
      // Its slot serves the next, whose streams hold nothing of it.
      yield* slots.take
      const next = yield* runAll(GuestCommand.run(agent, slots, { command: "cat" }), ["mine"])
      expect(next).toMatchObject({ stdout: "mine", stderr: "" })
      expect(yield* guest.running).toEqual([])
    }))

  it.effect("has the end of its input, wherever the dead one has left it", () =>
    Effect.gen(function*() {
      for (const input of [[], ["some"], ["some", "more"]]) {
        for (const ended of [false, true]) {
          const { first, kill, second } = yield* twoProcesses()
          const command = yield* first.start("cat")
          const stdin = Stream.fromIterable(input).pipe(Stream.encodeText)
          yield* background(Stream.run(ended ? stdin : Stream.concat(stdin, Stream.never), command.stdin))
          yield* background(Stream.runDrain(command.stdout))
          yield* kill
          const { agent, slots } = yield* second
          const { status } = yield* inTime(runAll(GuestCommand.attach(agent, slots, command.description)))
          // One that has come to its end before may have told it to the dead one.
          expect(status).toMatchObject(ended ? {} : { _tag: "Exited", code: 0 })
          // What is left of the input is none of the next command's.
          if ((yield* slots.usage).free === 1) {
            const next = yield* inTime(runAll(GuestCommand.run(agent, slots, { command: "cat" }), ["next"]))
            expect(next.stdout).toBe("next")
          }
        }
      }
    }))

  it.effect("that the dead one has hardly started begins with its first byte", () =>
    Effect.gen(function*() {
      const { guest, kill, second } = yield* twoProcesses({
        programs: {
          both: ({ write }) => Effect.as(Effect.andThen(write("stdout", "READY or not"), write("stderr", "e")), 0)
        }
      })
      yield* kill
      const { agent, slots } = yield* second
      const nonce = "0123456789abcdef".repeat(2)
      const pid = yield* agent.spawn({ path: GuestStdio.program, args: ["0", nonce, "--", "both"] }, { capture: true })
      yield* settled
      expect(yield* inTime(runAll(GuestCommand.attach(agent, slots, { pid, slot: 0, nonce })))).toMatchObject({
        stdout: "READY or not",
        stderr: "e",
        status: { code: 0 }
      })
      expect(yield* slots.usage).toEqual({ free: 1, inUse: 0, retired: 0 })
      expect(yield* guest.running).toEqual([])
    }))

  it.effect("whose end was told to the dead one has lost its status, and its slot is not used again", () =>
    Effect.gen(function*() {
      const { first, kill, second } = yield* twoProcesses({ slots: 2 })
      const command = yield* first.start("true")
      yield* Effect.all([noInput(command), Stream.runDrain(command.stdout), Stream.runDrain(command.stderr)], {
        concurrency: "unbounded"
      })
      yield* command.exit
      yield* kill
      const { agent, slots } = yield* second
      const { status } = yield* inTime(runAll(GuestCommand.attach(agent, slots, command.description)))
      expect(status).toMatchObject({ _tag: "Lost", observedBy: "agent" })
      yield* TestClock.adjust("5 seconds")
      expect(yield* slots.usage).toEqual({ free: 1, inUse: 0, retired: 1 })
    }))

  it.effect("is got rid of by closing its scope at once", () =>
    Effect.gen(function*() {
      const { first, guest, kill, second } = yield* twoProcesses({ slots: 2 })
      const commands = [yield* first.start("sleep", "1000"), yield* first.start("cat")]
      yield* kill
      const { agent, slots } = yield* second
      for (const { description } of commands) {
        yield* inTime(Effect.scoped(GuestCommand.attach(agent, slots, description)))
      }
      expect(yield* guest.running).toEqual([])
      expect(yield* slots.usage).toEqual({ free: 2, inUse: 0, retired: 0 })
    }))

  it.effect("is not to be had twice, nor where there is none, nor by what describes none", () =>
    Effect.gen(function*() {
      const { first, kill, second } = yield* twoProcesses()
      const { description } = yield* first.start("sleep", "1000")
      yield* kill
      const { agent, slots } = yield* second
      const refusal = (one: GuestCommand.Description) =>
        Effect.map(Effect.flip(Effect.scoped(GuestCommand.attach(agent, slots, one))), ({ message }) => message)
      expect(yield* refusal({ ...description, slot: 3 })).toContain("slot: 3 is not free: give one that is, free are 0")
      expect(yield* refusal({ ...description, nonce: "xyz" })).toContain("description")
      expect(yield* refusal({ ...description, pid: 0 })).toContain("description")
      const scope = yield* Scope.make()
      yield* Scope.provide(GuestCommand.attach(agent, slots, description), scope)
      expect(yield* refusal(description)).toContain("slot: 0 is not free: give one that is, free are none")
      yield* inTime(Scope.close(scope, Exit.void))
    }))

  it.effect("is told in labels, as JSON, and is the same when it is read again", () =>
    Effect.gen(function*() {
      const { start } = yield* setUp()
      const { description } = yield* inTime(Effect.scoped(start("true")))
      const Text = Schema.fromJsonString(GuestCommand.Description)
      const label = yield* Schema.encodeEffect(Text)(description)
      expect(yield* Schema.decodeEffect(Text)(label)).toEqual(description)
    }))
})
