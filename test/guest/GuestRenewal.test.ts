import { describe, expect, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import type * as GuestError from "../../src/guest/GuestError.ts"
import * as GuestRenewal from "../../src/guest/GuestRenewal.ts"
import * as FakeGuestAgent from "../../src/testing/FakeGuestAgent.ts"
import type * as FakeGuestRenewal from "../../src/testing/FakeGuestRenewal.ts"

const makeIdentity = (hostname: string) =>
  Effect.provide(GuestRenewal.makeIdentity(hostname), SecureRandom.layerWebCrypto)

const setUp = Effect.fnUntraced(function*(
  renewal: FakeGuestRenewal.Options = {},
  options: FakeGuestAgent.Options = {}
) {
  yield* TestClock.setTime(Date.UTC(2030, 0, 1))
  const guest = yield* FakeGuestAgent.make({ ...options, renewal })
  return { guest, agent: yield* GuestAgent.make(guest.socket), identity: yield* makeIdentity("web-1") }
})

/** Lets virtual time go on until the effect is done. */
const inTime = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(effect, { startImmediately: true })
    while (fiber.pollUnsafe() === undefined) {
      yield* Effect.repeat(Effect.yieldNow, { times: 20 })
      yield* TestClock.adjust("1 millis")
    }
    return yield* Fiber.join(fiber)
  })

const unproven = <R>(effect: Effect.Effect<unknown, GuestError.GuestError, R>) =>
  Effect.map(inTime(Effect.flip(effect)), ({ reason }) => reason._tag === "NotRenewed" ? reason.unproven : reason)

const late = (by: number): FakeGuestAgent.Fault => ({ _tag: "Late", by })

const execs = (guest: FakeGuestAgent.FakeGuest) =>
  Effect.map(guest.requests, (all) => all.filter(({ execute }) => execute === "guest-exec").length)

describe("a guest that can", () => {
  it.effect("has all of its own, and it is proven", () =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp({ clockOff: -14_250, hooks: { "20-web": 0, "10-tls": 0 } })
      const proof = yield* inTime(GuestRenewal.renew(agent, identity))
      const { bootId, hostname, machineId, seed } = identity
      expect(proof).toMatchObject({ hostname, machineId, bootId, interfaces: [], restarted: ["10-tls", "20-web"] })
      expect(Math.abs(proof.clockOff) + proof.uncertainty).toBeLessThan(50)
      expect(guest.own).toMatchObject({ hostname, machineId, bootId, seeds: [Redacted.value(seed)] })
      expect(Math.abs(guest.own.clockOff)).toBeLessThanOrEqual(1)
    }))

  it.effect("is asked to in one command", () =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp({ clockOff: 3_600_000 })
      yield* inTime(GuestRenewal.renew(agent, identity))
      expect(yield* execs(guest)).toBe(1)
    }))

  it.effect("can again", () =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp()
      yield* inTime(GuestRenewal.renew(agent, identity))
      guest.own.clockOff = 5000
      const other = yield* makeIdentity("web-2")
      expect((yield* inTime(GuestRenewal.renew(agent, other))).machineId).toBe(other.machineId)
      expect(guest.own).toMatchObject({ hostname: "web-2", bootId: other.bootId })
      expect(Math.abs(guest.own.clockOff)).toBeLessThanOrEqual(1)
    }))

  it.effect("gets its clock right however slowly it does so", () =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp({ clockOff: -60_000, takes: "7 seconds" })
      yield* inTime(GuestRenewal.renew(agent, identity))
      expect(Math.abs(guest.own.clockOff)).toBeLessThanOrEqual(1)
    }))

  it.effect("is measured by its quickest answer", () =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp({ clockOff: 1000 })
      for (const by of [400, 90, 200, 12]) yield* guest.inject(late(by))
      yield* inTime(GuestRenewal.renew(agent, identity))
      expect(yield* execs(guest)).toBe(1)
      expect(Math.abs(guest.own.clockOff)).toBeLessThanOrEqual(7)
    }))

  it.effect("whose answers are slow is measured until they are not", () =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp({ clockOff: 1000 })
      // Five samples, the program, its end, then a second of bad ones.
      for (let i = 0; i < 7 + 5; i++) yield* guest.inject(late(200))
      const proof = yield* inTime(GuestRenewal.renew(agent, identity))
      expect(Math.abs(proof.clockOff) + proof.uncertainty).toBeLessThan(50)
      expect(Math.abs(guest.own.clockOff)).toBeLessThan(50)
    }))

  it.effect("is corrected again when it was measured badly", () =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp({ clockOff: 1000 })
      // All the delay lies on the way back, so each of the first samples is wrong by half of it.
      for (let i = 0; i < 5; i++) yield* guest.inject(late(400))
      yield* inTime(GuestRenewal.renew(agent, identity))
      expect(yield* execs(guest)).toBe(2)
      expect(Math.abs(guest.own.clockOff)).toBeLessThanOrEqual(1)
    }))
})

describe("a guest that cannot", () => {
  const steps: ReadonlyArray<readonly [FakeGuestRenewal.Step, RegExp]> = [
    ["seed", /microvm-refresh ended with 3/],
    ["clock", /microvm-refresh ended with 5/],
    ["hostname", /the hostname was refused/],
    ["machine-id", /the machine-id was refused/],
    ["boot-id", /the boot-id was refused/]
  ]
  it.effect.each(steps)("says that it refuses: %s", ([step, said]) =>
    Effect.gen(function*() {
      const { agent, identity } = yield* setUp({ refuses: [step] })
      const { reason } = yield* inTime(Effect.flip(GuestRenewal.renew(agent, identity)))
      if (reason._tag !== "NotRenewed") throw reason
      const [first] = reason.unproven
      expect(first).toMatch(/^\/sbin\/microvm-renew: exited with code 1/)
      expect(first).toMatch(said)
    }))

  it.effect("is found out by what is read back, all at once", () =>
    Effect.gen(function*() {
      const { agent, identity } = yield* setUp({
        passesOver: ["hostname", "machine-id", "boot-id"],
        interfaces: ["eth0"]
      })
      expect(yield* unproven(GuestRenewal.renew(agent, identity))).toEqual([
        `hostname: "microvm" instead of "web-1"`,
        `machine-id: "${"0".repeat(32)}" instead of "${identity.machineId}"`,
        `boot-id: "00000000-0000-0000-0000-000000000000" instead of "${identity.bootId}"`,
        `interface "eth0": its addresses are those of the snapshot`
      ])
    }))

  it.effect("is found out by its clock, after some corrections", () =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp({ clockOff: -3_600_000, passesOver: ["clock"] })
      expect(yield* unproven(GuestRenewal.renew(agent, identity))).toEqual([
        expect.stringMatching(/^clock: 360000\d\.\d ± \d\.\d ms behind after 3 corrections$/)
      ])
      expect(yield* execs(guest)).toBe(3)
    }))

  it.effect("has a hook that fails", () =>
    Effect.gen(function*() {
      const { agent, identity } = yield* setUp({ hooks: { good: 0, bad: 3 } })
      expect(yield* unproven(GuestRenewal.renew(agent, identity))).toEqual([
        expect.stringContaining("bad ended with 3")
      ])
    }))

  it.effect("is given up at the deadline, and its program is ended", () =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp({ takes: "1 hour" })
      const start = yield* Clock.currentTimeMillis
      expect(yield* unproven(GuestRenewal.renew(agent, identity, { within: "3 seconds" }))).toEqual([
        "not done within 3s"
      ])
      expect((yield* Clock.currentTimeMillis) - start).toBeLessThan(4100)
      expect(yield* guest.running).toEqual([])
    }))

  it.effect("tells any amount of nonsense, and is still told from one that can", () =>
    Effect.gen(function*() {
      const { agent, identity } = yield* setUp({}, {
        programs: {
          "microvm-renew": ({ write }) =>
            Effect.as(write("stdout", `hostname web-1\nhostname\n interface\n${"interface x\n".repeat(100_000)}`), 0)
        }
      })
      const told = yield* unproven(GuestRenewal.renew(agent, identity))
      if (!Array.isArray(told)) throw new Error("another failure")
      expect(told[0]).toMatch(/it told \d+ bytes/)
      expect(told.join().length).toBeLessThan(1024)
    }))

  it.effect("has no such program", () =>
    Effect.gen(function*() {
      const { agent, identity } = yield* setUp({}, { programs: { "microvm-renew": "not executable" } })
      const reason = yield* unproven(GuestRenewal.renew(agent, identity))
      expect(reason).toMatchObject({ _tag: "AgentError", command: "guest-exec" })
    }))

  it.effect("ends meanwhile", () =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp({ takes: "1 second" })
      const fiber = yield* Effect.forkChild(unproven(GuestRenewal.renew(agent, identity)), { startImmediately: true })
      yield* TestClock.adjust("500 millis")
      yield* guest.hangUp
      expect(yield* Fiber.join(fiber)).toMatchObject({ _tag: "Closed" })
    }))
})

describe("an identity", () => {
  it.effect("that is none is refused, with all that is wrong, before anything is done", () =>
    Effect.gen(function*() {
      const { agent, guest } = yield* setUp()
      const reason = yield* unproven(GuestRenewal.renew(agent, {
        hostname: "-web\n",
        machineId: "A".repeat(32),
        bootId: "0",
        seed: Redacted.make(new Uint8Array(63))
      }))
      expect(reason).toMatchObject({
        _tag: "InvalidArgument",
        faults: [
          `hostname is "-web\\n": give at most 64 letters, digits, "-" and "."`,
          `machineId is "${"A".repeat(32)}": give 32 lower-case hexadecimal digits`,
          `bootId is "0": give a UUID in lower case`,
          "seed has 63 bytes: give 64"
        ]
      })
      expect(yield* guest.requests).toEqual([])
    }))

  it.effect("is no other's, and does not show its seed", () =>
    Effect.gen(function*() {
      const all = yield* Effect.replicateEffect(makeIdentity("web"), 100)
      for (const part of ["machineId", "bootId"] as const) {
        expect(new Set(all.map((one) => one[part])).size).toBe(100)
      }
      expect(new Set(all.map(({ seed }) => Redacted.value(seed).join())).size).toBe(100)
      expect(JSON.stringify(all[0])).toContain("redacted:seed")
    }))
})

const between = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))

it.effect.prop(
  "a clock that is off by anything is right, or that is told",
  {
    // In microseconds: up to more than a century either way.
    micros: between(-4e15, 4e15),
    delays: Schema.Array(between(0, 300)).check(Schema.isMaxLength(12)),
    works: Schema.Boolean
  },
  ({ delays, micros, works }) =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp({ clockOff: micros / 1000, passesOver: works ? [] : ["clock"] })
      for (const by of delays) yield* guest.inject(late(by))
      const renewed = yield* Effect.exit(inTime(GuestRenewal.renew(agent, identity, { within: "1 minute" })))
      if (works) expect(renewed._tag).toBe("Success")
      if (renewed._tag === "Failure") return
      expect(Math.abs(guest.own.clockOff)).toBeLessThan(50)
      // A step of this clock is a millisecond.
      const { clockOff, uncertainty } = renewed.value
      expect(Math.abs(clockOff - guest.own.clockOff)).toBeLessThanOrEqual(uncertainty + 1)
    }),
  { arbitrary: { runs: 100 } }
)
