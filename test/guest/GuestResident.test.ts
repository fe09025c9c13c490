import { describe, expect, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Redacted from "effect/Redacted"
import * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import * as GuestAgentSchema from "../../src/guest/GuestAgentSchema.ts"
import * as GuestCommand from "../../src/guest/GuestCommand.ts"
import * as GuestRenewal from "../../src/guest/GuestRenewal.ts"
import * as GuestResident from "../../src/guest/GuestResident.ts"
import * as GuestSlots from "../../src/guest/GuestSlots.ts"
import * as GuestStdio from "../../src/guest/GuestStdio.ts"
import * as SystemCalls from "../../src/guest/internal/systemCalls.ts"
import * as FakeGuestAgent from "../../src/testing/FakeGuestAgent.ts"

const setUp = Effect.fnUntraced(function*(options: FakeGuestAgent.Options & { readonly command?: boolean } = {}) {
  const guest = yield* FakeGuestAgent.make(options)
  const port = yield* guest.channel(GuestResident.channelName)
  const resident = yield* GuestResident.make(port)
  const plain = yield* GuestAgent.make(guest.socket)
  const agent = yield* GuestResident.relieve(plain, resident, { command: options.command ?? true })
  const slots = yield* GuestSlots.fromChannels(2, guest.channel)
  return { guest, agent, resident, slots }
})

type World = Effect.Success<ReturnType<typeof setUp>>

/** Lets virtual time go on until the effect is done. */
const inTime = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(effect, { startImmediately: true })
    while (fiber.pollUnsafe() === undefined) {
      yield* Effect.repeat(Effect.yieldNow, { times: 20 })
      yield* TestClock.adjust("10 millis")
    }
    return yield* Fiber.join(fiber)
  })

const run = ({ agent, slots }: World, options: GuestCommand.Options) =>
  inTime(Effect.scoped(Effect.gen(function*() {
    const command = yield* GuestCommand.run(agent, slots, options)
    yield* Stream.run(Stream.empty, command.stdin)
    const [stdout, status] = yield* Effect.all([
      Stream.mkString(Stream.decodeText(command.stdout)),
      command.exit,
      Stream.runDrain(command.stderr)
    ], { concurrency: "unbounded" })
    return { stdout, status }
  })))

const asked = ({ guest }: World) => Effect.map(guest.requests, (all) => all.map(({ execute }) => execute))

const uname: SystemCalls.Call = { what: "uname", number: 63, args: [{ room: 390 }] }

describe("a resident", () => {
  it.effect("says that it waits", () =>
    Effect.gen(function*() {
      const guest = yield* FakeGuestAgent.make()
      yield* GuestResident.waits(yield* guest.channel(GuestResident.channelName))
    }))

  it.effect("renews the guest, and the agent is asked nothing", () =>
    Effect.gen(function*() {
      yield* TestClock.setTime(Date.UTC(2030, 0, 1))
      const world = yield* setUp({ renewal: { clockOff: -14_250 } })
      const identity = yield* Effect.provide(
        GuestRenewal.makeIdentity("h".repeat(64)),
        SecureRandom.layerWebCrypto
      )
      const proof = yield* inTime(GuestRenewal.renew(world.agent, identity, { resident: world.resident }))
      const { bootId, hostname, machineId, seed } = identity
      expect(proof).toMatchObject({ hostname, machineId, bootId })
      expect(world.guest.own).toMatchObject({ hostname, machineId, bootId, seeds: [Redacted.value(seed)] })
      expect(Math.abs(world.guest.own.clockOff)).toBeLessThanOrEqual(10)
      expect(yield* asked(world)).toEqual([])
    }))

  it.effect("takes what eight cards are told of at the greatest length", () =>
    Effect.gen(function*() {
      yield* TestClock.setTime(Date.UTC(2030, 0, 1))
      const interfaces = Array.from({ length: 8 }, (_, nth) => `eth${nth}`)
      const { agent, resident } = yield* setUp({ renewal: { interfaces } })
      const identity = yield* Effect.provide(GuestRenewal.makeIdentity("h".repeat(64)), SecureRandom.layerWebCrypto)
      const cards = interfaces.map((_, nth) =>
        `02:00:00:00:00:0${nth},203.100.100.10${nth}/31,203.100.100.11${nth},fd00:1111:2222:3333:4444:5555:6666:777${nth}/127,` +
        `fd00:1111:2222:3333:4444:5555:6666:888${nth},fd00:1111:2222:3333:4444:5555:6666:999${nth},65535`
      )
      const most: Array<number> = []
      const seen: GuestResident.GuestResident = {
        ask: (calls, read, last) => {
          most.push(SystemCalls.make(calls, { last, mark: new Uint8Array(16) }).bytes)
          return resident.ask(calls, read, last)
        }
      }
      const proof = yield* inTime(GuestRenewal.renew(agent, { ...identity, cards }, { resident: seen }))
      expect(proof.interfaces).toEqual(interfaces)
      expect(Math.max(...most)).toBeLessThanOrEqual(SystemCalls.maxBytes)
    }))

  it.effect("tells what could not be proven", () =>
    Effect.gen(function*() {
      yield* TestClock.setTime(Date.UTC(2030, 0, 1))
      const { agent, resident } = yield* setUp({ renewal: { refuses: ["seed"], passesOver: ["boot-id"] } })
      const identity = yield* Effect.provide(GuestRenewal.makeIdentity("web-1"), SecureRandom.layerWebCrypto)
      const { reason } = yield* inTime(Effect.flip(GuestRenewal.renew(agent, identity, { resident })))
      expect(reason._tag === "NotRenewed" && reason.unproven.length).toBe(2)
    }))

  it.effect("that was never heard of is given up at the deadline", () =>
    Effect.gen(function*() {
      const guest = yield* FakeGuestAgent.make({ paused: true })
      const resident = yield* GuestResident.make(yield* guest.channel(GuestResident.channelName), {
        within: "15 seconds"
      })
      const ask = resident.ask([uname], ({ result }) => result(uname))
      const errors = yield* inTime(Effect.all([Effect.flip(ask), Effect.flip(ask)], { concurrency: 2 }))
      for (const { reason } of errors) expect(reason).toMatchObject({ _tag: "NotReady", attempts: 1 })
      expect(yield* Clock.currentTimeMillis).toBe(15_000)
      yield* guest.resume
      expect(yield* inTime(ask)).toBe(0)
    }))

  it.effect("answers nobody any more once its scope is closed", () =>
    Effect.gen(function*() {
      const guest = yield* FakeGuestAgent.make()
      const port = yield* guest.channel(GuestResident.channelName)
      const { ask } = yield* Effect.scoped(GuestResident.make(port))
      for (let round = 0; round < 2; round++) {
        expect((yield* Effect.flip(ask([uname], () => undefined))).reason).toMatchObject({ _tag: "Closed" })
      }
    }))

  it.effect("is not taken at its word for what it was not asked", () =>
    Effect.gen(function*() {
      const guest = yield* FakeGuestAgent.make()
      const socket = yield* guest.channel(GuestResident.channelName)
      const resident = yield* GuestResident.make(socket)
      const twice = Effect.all([
        resident.ask([uname], ({ result }) => result(uname)),
        resident.ask([], () => "nothing")
      ], { concurrency: 2 })
      // Its greeting comes first, which nobody has waited for.
      expect(yield* twice).toEqual([0, "nothing"])
    }))

  it.effect("starts the first command, and the agent the second", () =>
    Effect.gen(function*() {
      const world = yield* setUp()
      const first = yield* run(world, { command: "env", env: { A: "1", B: Redacted.make("2") } })
      expect(first.stdout).toContain("A=1\nB=2\n")
      expect(first.status).toMatchObject({ _tag: "Exited", code: 0 })
      expect(yield* asked(world)).toEqual([])
      const second = yield* run(world, { command: "exit", args: ["7"] })
      expect(second.status).toMatchObject({ _tag: "Exited", code: 7 })
      expect((yield* asked(world))[0]).toBe("guest-exec")
    }))

  it.effect.each([["exit", 7], ["no-such-command", 127], ["unfit", 126]] as const)(
    "tells how %s has ended",
    ([command, code]) =>
      Effect.gen(function*() {
        const world = yield* setUp({ programs: { unfit: "not executable" } })
        const { status } = yield* run(world, { command, args: ["7"] })
        expect(status).toMatchObject({ _tag: "Exited", code })
        expect(yield* asked(world)).toEqual([])
      })
  )

  it.effect("tells the signal that has ended a command", () =>
    Effect.gen(function*() {
      const { agent, slots } = yield* setUp()
      const status = yield* inTime(Effect.scoped(Effect.gen(function*() {
        const command = yield* GuestCommand.run(agent, slots, { command: "sleep", args: ["100"] })
        yield* command.kill("SIGTERM")
        yield* Effect.forkChild(Effect.all([Stream.runDrain(command.stdout), Stream.runDrain(command.stderr)]))
        return yield* command.exit
      })))
      expect(status).toMatchObject({ _tag: "Signaled", signal: "SIGTERM" })
    }))

  it.effect("ends a command whose start nobody has waited for", () =>
    Effect.gen(function*() {
      const world = yield* setUp({ renewal: { takes: "2 seconds" } })
      const args = ["0", "0123456789abcdef0123456789abcdef", "--", "sleep", "100"]
      const starting = yield* Effect.forkChild(world.agent.spawn({ path: GuestStdio.program, args }), {
        startImmediately: true
      })
      yield* TestClock.adjust("1 second")
      yield* Fiber.interrupt(starting)
      expect(yield* world.guest.running).toEqual([])
      yield* inTime(Effect.repeat(Effect.sleep("100 millis"), { times: 20 }))
      expect(yield* world.guest.running).toEqual([])
      expect((yield* world.guest.requests).map(({ execute }) => execute)[0]).toBe("guest-exec")
    }))

  it.effect("leaves to the agent what it does not know: a directory, many words, a command that others may go on with", () =>
    Effect.gen(function*() {
      for (
        const [options, how] of [
          [{ command: "pwd", cwd: "/tmp" }, {}],
          [{ command: "echo", args: ["word".repeat(1000)] }, {}],
          [{ command: "true" }, { command: false }]
        ] as const
      ) {
        const world = yield* setUp(how)
        const { status } = yield* run(world, options)
        expect(status).toMatchObject({ code: 0 })
        expect((yield* asked(world))[0]).toBe("guest-exec")
      }
    }))

  it.effect("powers the guest off, and without one the agent does", () =>
    Effect.gen(function*() {
      const modes: Array<string> = []
      const onShutdown = (mode: string) => Effect.sync(() => void modes.push(mode))
      const world = yield* setUp({ onShutdown })
      yield* inTime(world.agent.powerOff)
      expect([modes, yield* asked(world)]).toEqual([["powerdown"], []])
      // It serves no longer.
      yield* inTime(world.agent.powerOff)
      expect(yield* asked(world)).toEqual(["guest-shutdown"])
      expect(modes).toEqual(["powerdown", "powerdown"])
    }))

  const before: ReadonlyArray<
    readonly [
      what: string,
      first: (agent: GuestAgent.GuestAgent) => Effect.Effect<unknown, unknown>,
      alone: boolean,
      told: number
    ]
  > = [
    ["nothing", () => Effect.void, true, 101],
    ["a program of the agent's", (agent) => agent.exec({ path: "true" }), true, 0],
    [
      "one that is asked for word by word",
      (agent) => agent.request(GuestAgentSchema.guestExec, { path: "true" }),
      true,
      0
    ],
    ["a kill", (agent) => Effect.ignore(agent.kill(99, "SIGTERM")), true, 0],
    ["a hook, or a daemon of the image", () => Effect.void, false, 0]
  ]
  it.effect.each(before)(
    "knows what has no last words, where %s started before the first command",
    ([, first, alone, told]) =>
      Effect.gen(function*() {
        const guest = yield* FakeGuestAgent.make({ onShutdown: () => Effect.void })
        const resident = yield* GuestResident.make(yield* guest.channel(GuestResident.channelName))
        const lasts: Array<SystemCalls.Call | undefined> = []
        const seen: GuestResident.GuestResident = {
          ask: (calls, read, last) => {
            lasts.push(last)
            return resident.ask(calls, read, last)
          }
        }
        const plain = yield* GuestAgent.make(guest.socket)
        const agent = yield* GuestResident.relieve(plain, seen, { command: true, alone })
        const slots = yield* GuestSlots.fromChannels(1, guest.channel)
        yield* inTime(first(agent))
        yield* run({ guest, agent, resident, slots }, { command: "true" })
        yield* inTime(agent.powerOff)
        expect(lasts.at(-1)).toMatchObject({ number: GuestResident.calls.powerOff, args: [told] })
      })
  )

  it.effect("that is gone leaves the end of its command unknown, where the agent answers", () =>
    Effect.gen(function*() {
      const world = yield* setUp({ onShutdown: () => Effect.void })
      const { agent, guest, slots } = world
      const command = yield* GuestCommand.run(agent, slots, { command: "sleep", args: ["5"] })
      // As long as the guest stands still, nothing is known.
      yield* guest.pause
      const ended = yield* Effect.forkChild(command.exit)
      yield* Effect.repeat(Effect.andThen(Effect.yieldNow, TestClock.adjust("1 second")), { times: 60 })
      expect(ended.pollUnsafe()).toBeUndefined()
      yield* guest.resume
      yield* Effect.forkChild(Effect.all([Stream.runDrain(command.stdout), Stream.runDrain(command.stderr)]))
      expect(yield* inTime(Fiber.join(ended))).toMatchObject({ _tag: "Exited", code: 0 })

      const other = yield* setUp({ onShutdown: () => Effect.void })
      const lost = yield* GuestCommand.run(other.agent, other.slots, { command: "sleep", args: ["5"] })
      yield* inTime(other.agent.powerOff)
      yield* Effect.forkChild(Effect.all([Stream.runDrain(lost.stdout), Stream.runDrain(lost.stderr)]))
      expect(yield* inTime(lost.exit)).toMatchObject({ _tag: "Lost" })
    }))

  it.effect("is not taken to be gone while the agent answers and it may yet", () =>
    Effect.gen(function*() {
      const guest = yield* FakeGuestAgent.make()
      const going = yield* Latch.make(true)
      const port = yield* guest.channel(GuestResident.channelName)
      const slow = Socket.make({
        reader: Effect.map(port.reader, ({ pull, upgrade }) => ({ pull: Effect.tap(pull, going.await), upgrade })),
        writer: port.writer
      })
      const resident = yield* GuestResident.make(slow)
      const plain = yield* GuestAgent.make(guest.socket)
      const agent = yield* GuestResident.relieve(plain, resident, { command: true })
      const slots = yield* GuestSlots.fromChannels(2, guest.channel)
      const command = yield* GuestCommand.run(agent, slots, { command: "sleep", args: ["5"] })
      yield* Effect.forkChild(Effect.all([Stream.runDrain(command.stdout), Stream.runDrain(command.stderr)]))
      const ended = yield* Effect.forkChild(command.exit)
      // Longer than a question and its repetition may take.
      yield* going.close
      yield* Effect.repeat(Effect.andThen(Effect.yieldNow, TestClock.adjust("1 second")), { times: 11 })
      expect(ended.pollUnsafe()).toBeUndefined()
      yield* going.open
      expect(yield* inTime(Fiber.join(ended))).toMatchObject({ _tag: "Exited", code: 0 })
    }))

  it.effect("whose channel is flooded is heard no longer, and nothing grows", () =>
    Effect.gen(function*() {
      const chunk = new Uint8Array(16 * 1024).fill(7)
      let read = 0
      const pull = Effect.sync((): readonly [Uint8Array] => {
        read += chunk.length
        return [chunk]
      })
      const flood = Socket.make({
        reader: Effect.succeed({ pull, upgrade: () => Effect.die("no TLS here") }),
        writer: Effect.succeed({ write: () => Effect.void, writeAll: () => Effect.void })
      })
      const resident = yield* GuestResident.make(flood)
      const error = yield* Effect.flip(resident.ask([uname], () => undefined))
      expect(error.reason).toMatchObject({ _tag: "Protocol" })
      expect(read).toBeLessThan(256 * 1024)
    }))
})
