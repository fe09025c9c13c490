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
import * as SystemCalls from "../../src/guest/internal/systemCalls.ts"
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

/** What was run, and with what end; `onStart` is told of each first. */
const spyOn = (agent: GuestAgent.GuestAgent, onStart: (program: GuestAgent.Program) => void = () => {}) => {
  const runs: Array<{ readonly program: GuestAgent.Program; readonly end: GuestAgent.ProgramEnd }> = []
  const exec: GuestAgent.GuestAgent["exec"] = (program) =>
    Effect.suspend(() => {
      onStart(program)
      return Effect.tap(agent.exec(program), (end) => Effect.sync(() => runs.push({ program, end })))
    })
  return { runs, agent: { ...agent, exec } }
}

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

  it.effect("is asked to in one command, which with its answer is no more than the program takes", () =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp({ clockOff: 3_600_000 })
      const seen = spyOn(agent)
      yield* inTime(GuestRenewal.renew(seen.agent, { ...identity, hostname: "h".repeat(64) }))
      expect(yield* execs(guest)).toBe(1)
      const [{ end, program } = { end: undefined, program: undefined }] = seen.runs
      const bytes = (program?.input?.length ?? NaN) + (end?.stdout.length ?? NaN)
      expect(bytes).toBeLessThanOrEqual(SystemCalls.maxBytes)
    }))

  it.effect("is told its seed once, and does not tell it", () =>
    Effect.gen(function*() {
      const { agent, identity } = yield* setUp({ hooks: { web: 0 } })
      const seen = spyOn(agent)
      yield* inTime(GuestRenewal.renew(seen.agent, identity))
      const shows = (bytes: Uint8Array | undefined) =>
        Buffer.from(bytes ?? []).includes(Buffer.from(Redacted.value(identity.seed)).subarray(0, 8))
      expect(seen.runs.map(({ program }) => shows(program.input))).toEqual([true, false, false])
      expect(seen.runs.some(({ end }) => shows(end.stdout) || shows(end.stderr))).toBe(false)
    }))

  it.effect("runs its hooks once, when all else is its own, and is read again", () =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp({ hooks: { web: 0 }, clockOff: 1000 })
      const hostnames: Array<string> = []
      const seen = spyOn(agent, ({ path }) => {
        if (path === GuestRenewal.hooksProgram) hostnames.push(guest.own.hostname)
      })
      // Measured badly, so the clock is corrected again.
      for (let i = 0; i < 5; i++) yield* guest.inject(late(400))
      yield* inTime(GuestRenewal.renew(seen.agent, identity))
      expect(hostnames).toEqual(["web-1"])
      const { hooksProgram, program } = GuestRenewal
      expect(seen.runs.map((one) => one.program.path)).toEqual([program, hooksProgram, program, program])
    }))

  it.effect("has the cards of its own, before its hooks are run and after", () =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp({ interfaces: ["eth0", "eth1"], hooks: { web: 0 } })
      const cards = [
        "02:00:00:00:00:01,10.0.0.1/31,10.0.0.0,FD00:0::1/127,fd00::0,10.0.0.53,1400".toLowerCase(),
        "02:00:00:00:00:02"
      ]
      const seen = spyOn(agent)
      const proof = yield* inTime(GuestRenewal.renew(seen.agent, { ...identity, cards }))
      expect(proof.interfaces).toEqual(["eth0", "eth1"])
      expect(guest.own.cards).toEqual([
        {
          mac: "02:00:00:00:00:01",
          mtu: 1400,
          addresses: ["10.0.0.1/31", "fd00:0:0:0:0:0:0:1/127"],
          gateways: ["10.0.0.0", "fd00:0:0:0:0:0:0:0"]
        },
        { mac: "02:00:00:00:00:02", mtu: 1500, addresses: [], gateways: [] }
      ])
      expect(guest.own.nameservers).toEqual(["10.0.0.53"])
      const { hooksProgram, program } = GuestRenewal
      // All that has no number, each of the cards, what all cards have; and all of it again.
      expect(seen.runs.map((one) => one.program.path)).toEqual([
        ...Array.from({ length: 4 }, () => program),
        hooksProgram,
        ...Array.from({ length: 4 }, () => program)
      ])
      for (const { end, program: { input } } of seen.runs) {
        expect((input?.length ?? 0) + end.stdout.length).toBeLessThanOrEqual(SystemCalls.maxBytes)
      }
    }))

  it.effect("may have eight cards, told of at the greatest length", () =>
    Effect.gen(function*() {
      const interfaces = Array.from({ length: 8 }, (_, nth) => `eth${nth}`)
      const { agent, identity } = yield* setUp({ interfaces })
      const cards = interfaces.map((_, nth) =>
        `02:00:00:00:00:0${nth},203.100.100.10${nth}/31,203.100.100.11${nth},fd00:1111:2222:3333:4444:5555:6666:777${nth}/127,` +
        `fd00:1111:2222:3333:4444:5555:6666:888${nth},fd00:1111:2222:3333:4444:5555:6666:999${nth},65535`
      )
      const seen = spyOn(agent)
      const proof = yield* inTime(GuestRenewal.renew(seen.agent, { ...identity, cards, hostname: "h".repeat(64) }))
      expect(proof.interfaces).toEqual(interfaces)
      for (const { end, program: { input } } of seen.runs) {
        expect((input?.length ?? 0) + end.stdout.length).toBeLessThanOrEqual(SystemCalls.maxBytes)
      }
    }))

  it.effect("loses the addresses that its cards had", () =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp({ interfaces: ["eth0"] })
      const [card] = guest.own.cards
      if (card === undefined) throw new Error("there is no card")
      card.addresses = ["10.0.0.9/31", "fd00:0:0:0:0:0:0:9/127"]
      card.gateways = ["10.0.0.8"]
      yield* inTime(GuestRenewal.renew(agent, { ...identity, cards: ["02:00:00:00:00:01,10.0.0.1/31"] }))
      expect(card).toMatchObject({ addresses: ["10.0.0.1/31"], gateways: [] })
      // Of more than can be taken away, the rest is found.
      card.addresses = ["10.0.0.7/32", "10.0.0.8/32", "10.0.0.9/32"]
      expect(
        yield* unproven(GuestRenewal.renew(agent, { ...identity, cards: ["02:00:00:00:00:01,10.0.0.1/31"] }))
      ).toEqual([`addresses of eth0: "10.0.0.1/31 10.0.0.9/32" instead of "10.0.0.1/31"`])
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
  const steps: ReadonlyArray<readonly [FakeGuestRenewal.Step, string]> = [
    ["seed", "seed: RNDADDENTROPY failed with errno 1"],
    ["clock", "clock: adjtimex failed with errno 1"],
    ["hostname", "hostname: sethostname failed with errno 1"],
    ["machine-id", "machine-id: write /etc/machine-id failed with errno 1"],
    ["boot-id", "boot-id: write /run/boot-id failed with errno 1"]
  ]
  it.effect.each(steps)("refuses: %s", ([step, said]) =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp({ refuses: [step], hooks: { web: 0 } })
      const told = yield* unproven(GuestRenewal.renew(agent, identity))
      if (!Array.isArray(told)) throw new Error("another failure")
      expect(told[0]).toBe(said)
      // No program was started as somebody else.
      expect(yield* execs(guest)).toBe(1)
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

  it.effect("is found out by its cards", () =>
    Effect.gen(function*() {
      const card = "02:00:00:00:00:01,10.0.0.1/31,10.0.0.0,,,10.0.0.53,1400"
      const told = Effect.fnUntraced(function*(renewal: FakeGuestRenewal.Options, cards: ReadonlyArray<string>) {
        const { agent, identity } = yield* setUp(renewal)
        return yield* unproven(GuestRenewal.renew(agent, { ...identity, cards }))
      })
      const eth0 = ["eth0"]
      expect(yield* told({ interfaces: eth0, passesOver: ["network"] }, [card])).toEqual([
        `mac of eth0: "02:00:00:00:00:00" instead of "02:00:00:00:00:01"`,
        `mtu of eth0: "1500" instead of "1400"`,
        `gateways of eth0: "" instead of "10.0.0.0"`
      ])
      expect(yield* told({ interfaces: eth0, passesOver: ["network"] }, ["02:00:00:00:00:00,,,,,10.0.0.53"])).toEqual([
        `nameservers: "" instead of "10.0.0.53"`
      ])
      expect(yield* told({ interfaces: eth0, passesOver: ["network"] }, ["02:00:00:00:00:00,10.0.0.1/31"])).toEqual([
        `addresses of eth0: "" instead of "10.0.0.1/31"`
      ])
      expect(yield* told({ interfaces: eth0, refuses: ["network"] }, ["02:00:00:00:00:00,10.0.0.1/31"])).toEqual([
        `interface "eth0": down failed with errno 1`,
        `interface "eth0": up failed with errno 1`,
        `interface "eth0": 10.0.0.1/31 failed with errno 1`
      ])
      expect(yield* told({}, [card])).toEqual([`interface "eth0": there is none`])
      expect(yield* told({ interfaces: ["eth0", "eth1"] }, [card])).toEqual([
        `interface "eth1": its addresses are those of the snapshot`
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
        expect.stringMatching(/^\/sbin\/microvm-renew-hooks: exited with code 1.*bad ended with 3/)
      ])
    }))

  it.effect("has a hook that takes something away again", () =>
    Effect.gen(function*() {
      const { agent, guest, identity } = yield* setUp({ hooks: { bad: 0 } })
      const seen = spyOn(agent, ({ path }) => {
        if (path === GuestRenewal.hooksProgram) guest.own.hostname = "microvm"
      })
      expect(yield* unproven(GuestRenewal.renew(seen.agent, identity))).toEqual([
        `hostname: "microvm" instead of "web-1"`
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
      for (
        const [name, most] of [["microvm-syscalls", /told 1200000 bytes/], [
          "microvm-renew-hooks",
          /bytes, more/
        ]] as const
      ) {
        const { agent, identity } = yield* setUp({ hooks: { web: 0 } }, {
          programs: { [name]: ({ write }) => Effect.as(write("stdout", "restarted x\n".repeat(100_000)), 0) }
        })
        const told = yield* unproven(GuestRenewal.renew(agent, identity))
        if (!Array.isArray(told)) throw new Error("another failure")
        expect(told.join()).toMatch(most)
        expect(told.join().length).toBeLessThan(200)
      }
    }))

  it.effect.prop(
    "tells as much nonsense as there should be",
    { seed: Schema.Int },
    ({ seed }) =>
      Effect.gen(function*() {
        let bytes: Uint8Array = new Uint8Array(0)
        const { agent, identity } = yield* setUp({}, {
          programs: { "microvm-syscalls": ({ write }) => Effect.as(write("stdout", bytes), 0) }
        })
        const renewed = unproven(GuestRenewal.renew(agent, identity))
        const length = Number(/instead of (\d+)/.exec(String(yield* renewed))?.[1])
        // The same for the same seed, and zeros for 0.
        bytes = Uint8Array.from({ length }, (_, at) => Math.imul(seed, Math.imul(at + 1, 0x9e3779b1) ^ seed) >>> 24)
        const told = yield* renewed
        if (!Array.isArray(told)) throw new Error("another failure")
        expect(told.join("\n")).toContain("instead of")
        expect(told.join().length).toBeLessThan(4096)
      })
  )

  it.effect("has no such program", () =>
    Effect.gen(function*() {
      const { agent, identity } = yield* setUp({}, { programs: { "microvm-syscalls": "not executable" } })
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
        seed: Redacted.make(new Uint8Array(63)),
        cards: ["02:00:00:00:00:01,$(reboot)", ...Array.from({ length: 8 }, () => "02:00:00:00:00:01")]
      }))
      expect(reason).toMatchObject({
        _tag: "InvalidArgument",
        faults: [
          `hostname is "-web\\n": give at most 64 letters, digits, "-" and "."`,
          `machineId is "${"A".repeat(32)}": give 32 lower-case hexadecimal digits`,
          `bootId is "0": give a UUID in lower case`,
          "seed has 63 bytes: give 64",
          `cards[0] is "02:00:00:00:00:01,$(reboot)": give the MAC, and what is told of it`,
          "cards has 9 entries: give 8 at most"
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
