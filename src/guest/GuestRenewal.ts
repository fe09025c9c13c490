/**
 * The clone contract: what a machine that was restored from a snapshot does before anybody gets it.
 *
 * Machines restored from one snapshot are the same to the last byte: the clock of each is late by the snapshot's age, the
 * next random numbers of all their kernels are equal, and so are their host names, machine ids, boot ids, MACs and addresses.
 * {@link renew} gives a machine its own, and reads each back: what could not be proven is a failure, and the machine is
 * to be destroyed.
 *
 * ```
 *   how late is it? ▸ kernel's generator, clock, names, read back ▸ network cards, read back ▸ hooks, read back
 *   ▸ how late is it now?
 * ```
 *
 * All of it but the hooks is one run of one tiny program, as programs are slow to start in a guest that was just restored
 * and has no acceleration: `/sbin/microvm-syscalls` makes the system calls that it is told, and tells their results. What
 * they are is decided here. A guest without hooks starts nothing else, and one with a resident (`GuestResident`), which
 * makes the calls itself, not even that. Each network card takes a run more, and all of them another one. Until it is
 * renewed, a card is what it was when the machine was saved: so save machines whose cards are down, or have nothing at
 * their far ends.
 *
 * - Programs that were running when the snapshot was taken live on in every clone, with what they have in memory. The
 *   machine that clones are made of runs none but init, the power button's reader, the agent and the resident. None of them keeps a
 *   generator that matters: busybox has none there, and `qemu-ga` draws from GLib's only for names of objects that it does
 *   not make. An image whose programs do (TLS servers, most language runtimes), or that hold connections open, has
 *   executables in `/etc/microvm/renew.d` which restart them. They are run once the guest has all else of its own, in order
 *   of name, and each has to exit with 0.
 * - The layout of memory and the stack guards of such programs, and of the kernel, stay those of the snapshot.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import { SecureRandom } from "effect/crypto/SecureRandom"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import type { GuestAgent, ProgramEnd } from "./GuestAgent.ts"
import * as GuestAgentSchema from "./GuestAgentSchema.ts"
import * as GuestError from "./GuestError.ts"
import type { GuestResident } from "./GuestResident.ts"
import * as Cards from "./internal/cards.ts"
import * as RenewalCalls from "./internal/renewalCalls.ts"
import * as SystemCalls from "./internal/systemCalls.ts"

/**
 * The program in the guest that makes system calls and tells their results.
 *
 * @category constants
 * @since 0.1.0
 */
export const program = "/sbin/microvm-syscalls"

/**
 * The program in the guest that runs the hooks, when there are any.
 *
 * @category constants
 * @since 0.1.0
 */
export const hooksProgram = "/sbin/microvm-renew-hooks"

/**
 * What one machine has and no other.
 *
 * @category models
 * @since 0.1.0
 */
export interface Identity {
  readonly hostname: string
  /** For machine-id(5): 32 lower-case hexadecimal digits. */
  readonly machineId: string
  /** A UUID in lower case. */
  readonly bootId: string
  /** 64 bytes that nobody else knows, for the kernel's random number generator. */
  readonly seed: Redacted.Redacted<Uint8Array>
  /**
   * All network cards that the guest has, in their order, each as `GuestNetwork.card` has it:
   * `MAC,ADDRESS/LENGTH,GATEWAY,ADDRESS6/LENGTH,GATEWAY6,NAMESERVER,MTU`. Default none.
   */
  readonly cards?: ReadonlyArray<string> | undefined
}

/**
 * What was read back from a guest that is its own.
 *
 * @category models
 * @since 0.1.0
 */
export interface Proof {
  /** Milliseconds by which the guest's clock is ahead of ours; behind when negative. */
  readonly clockOff: number
  /** Milliseconds by which `clockOff` may be wrong: half the time that it took to ask. */
  readonly uncertainty: number
  readonly hostname: string
  readonly machineId: string
  readonly bootId: string
  /** Network interfaces besides the loopback. Each has the MAC, the addresses and the routes of its card, and no others. */
  readonly interfaces: ReadonlyArray<string>
  /** The hooks of the image that were run. */
  readonly restarted: ReadonlyArray<string>
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** The longest that it may take in all, with hooks. Default 30 seconds. */
  readonly within?: Duration.Input | undefined
  /** Makes the system calls, where there is one that nobody has asked anything before. By default the agent has them made. */
  readonly resident?: GuestResident | undefined
}

/** Whom to ask. */
interface Guest {
  readonly agent: GuestAgent
  readonly resident: GuestResident | undefined
}

/** What a clock may be off, the error of the measurement included. */
const tolerance = 50
/** A measurement that took less is good enough. */
const quickTrip = 20
const maxSamples = 5
const maxCorrections = 3
const pause = Duration.millis(20)
const maxReportBytes = 16 * 1024
const maxUnproven = 16

/**
 * Makes up an identity, with these network cards.
 *
 * ```ts import.meta.vitest
 * import { GuestRenewal } from "effect-microvm-runtime/guest"
 * import * as SecureRandom from "effect/crypto/SecureRandom"
 * import * as Effect from "effect/Effect"
 * const program = Effect.provide(GuestRenewal.makeIdentity("web-1"), SecureRandom.layerWebCrypto)
 * const { hostname, machineId } = await Effect.runPromise(program)
 * hostname // => "web-1"
 * machineId.length // => 32
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeIdentity = Effect.fnUntraced(function*(
  hostname: string,
  cards: ReadonlyArray<string> = []
): Effect.fn.Return<Identity, never, SecureRandom> {
  const random = yield* SecureRandom
  return {
    hostname,
    machineId: (yield* random.uuidV4()).replaceAll("-", ""),
    bootId: yield* random.uuidV4(),
    seed: Redacted.make(yield* random.randomBytes(RenewalCalls.seedBytes), { label: "seed" }),
    cards
  }
})

/**
 * Makes a machine its own, and proves it. Nothing else should go on in the guest meanwhile.
 *
 * Fails with `NotRenewed` when something could not be proven, with `InvalidArgument` before anything was done, and like any
 * request when the agent fails. After any failure the machine is in between, so destroy it. It may be done again with
 * another identity, and that is a renewal like the first.
 *
 * ```ts import.meta.vitest
 * import { GuestAgent, GuestRenewal } from "effect-microvm-runtime/guest"
 * import { FakeGuestAgent } from "effect-microvm-runtime/testing"
 * import * as SecureRandom from "effect/crypto/SecureRandom"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const guest = yield* FakeGuestAgent.make()
 *   const agent = yield* GuestAgent.make(guest.socket)
 *   const identity = yield* GuestRenewal.makeIdentity("web-1")
 *   const { bootId, hostname } = yield* GuestRenewal.renew(agent, identity)
 *   return [hostname, bootId === identity.bootId]
 * })
 * await Effect.runPromise(Effect.scoped(Effect.provide(program, SecureRandom.layerWebCrypto))) // => ["web-1", true]
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const renew = Effect.fn("GuestRenewal.renew")(function*(
  agent: GuestAgent,
  identity: Identity,
  options: Options = {}
): Effect.fn.Return<Proof, GuestError.GuestError> {
  const within = Duration.fromInputUnsafe(options.within ?? "30 seconds")
  const faults = faultsOf(identity)
  if (faults.length > 0) return yield* GuestError.make(new GuestError.InvalidArgument({ faults }))
  return yield* Effect.timeoutOrElse(attempt({ agent, resident: options.resident }, identity), {
    duration: within,
    orElse: () => notRenewed([`not done within ${Duration.format(within)}`], true)
  })
})

const attempt = Effect.fnUntraced(function*(guest: Guest, identity: Identity) {
  const { bootId, hostname, machineId, seed } = identity
  const before = yield* measure(guest)
  const { cards: named, hooks } = yield* prove(guest, identity, [
    // First of all, as whoever needs a random number from here on gets one of this machine's own.
    RenewalCalls.seed(Redacted.value(seed)),
    correction(before),
    RenewalCalls.hostname(hostname),
    RenewalCalls.machineId(machineId),
    RenewalCalls.bootId(bootId)
  ])
  const cards = named.map(({ index, name, word }) => Cards.cardOf(word, name, index))
  for (const [nth, card] of cards.entries()) yield* proveParts(guest, [Cards.change(card, nth), Cards.prove(card)])
  yield* proveAddresses(guest, cards, [Cards.changeNameservers(cards)])
  const restarted = hooks.length === 0 ? [] : yield* runHooks(guest)
  // They may do anything.
  if (hooks.length > 0) {
    yield* prove(guest, identity, [])
    for (const card of cards) yield* proveParts(guest, [Cards.prove(card)])
    yield* proveAddresses(guest, cards, [])
  }
  const { off, uncertainty } = yield* proveClock(guest)
  return {
    clockOff: off,
    uncertainty,
    hostname,
    machineId,
    bootId,
    interfaces: cards.map(({ name }) => name),
    restarted
  }
})

/** Does the steps, and fails unless all is read back as it should be. */
const prove = Effect.fnUntraced(function*(
  guest: Guest,
  identity: Identity,
  changes: ReadonlyArray<RenewalCalls.Step>
) {
  const words = identity.cards ?? []
  // The kernel's names, in the order in which it finds them.
  const known = words.map((_, index) => `eth${index}`)
  const numbers = RenewalCalls.cardNumbers(known)
  const { faults, told } = yield* perform(guest, [...changes, ...RenewalCalls.readBack, ...numbers.steps])
  const { bootId, hooks, hostname, interfaces, machineId } = RenewalCalls.read(told)
  const names = [
    ["hostname", hostname, identity.hostname],
    ["machine-id", machineId, identity.machineId],
    ["boot-id", bootId, identity.bootId]
  ] as const
  const unproven = [
    ...faults,
    ...names.flatMap(([name, is, wanted]) =>
      is === wanted ? [] : [`${name}: ${JSON.stringify(is)} instead of ${JSON.stringify(wanted)}`]
    ),
    ...interfaces.filter((name) => !known.includes(name)).map((name) =>
      `interface ${JSON.stringify(name)}: its addresses are those of the snapshot`
    ),
    ...known.filter((name) => !interfaces.includes(name)).map((name) =>
      `interface ${JSON.stringify(name)}: there is none`
    )
  ]
  if (unproven.length > 0) return yield* notRenewed(unproven)
  const indices = numbers.read(told)
  return { hooks, cards: words.map((word, nth) => ({ word, name: known[nth] ?? "", index: indices[nth] ?? NaN })) }
})

const proveParts = Effect.fnUntraced(
  function*(guest: Guest, parts: ReadonlyArray<ReturnType<typeof Cards.prove>>) {
    const { faults, told } = yield* perform(guest, parts.flatMap(({ steps }) => steps))
    const unproven = [...faults, ...parts.flatMap((part) => part.unproven(told))]
    if (unproven.length > 0) return yield* notRenewed(unproven)
  }
)

const proveAddresses = (
  guest: Guest,
  cards: ReadonlyArray<Cards.Card>,
  steps: ReadonlyArray<RenewalCalls.Step>
) =>
  // A guest that has no card is not asked.
  cards.length === 0
    ? Effect.void
    : proveParts(guest, [{ steps, unproven: () => [] }, Cards.proveAddresses(cards)])

const perform = Effect.fnUntraced(function*(guest: Guest, steps: ReadonlyArray<RenewalCalls.Step>) {
  const calls = steps.flatMap((step) => step.calls)
  const told = yield* guest.resident?.ask(calls, (all) => all) ?? execute(guest.agent, calls)
  return { told, faults: RenewalCalls.faultsOf(steps, told) }
})

const execute = Effect.fnUntraced(function*(agent: GuestAgent, calls: ReadonlyArray<SystemCalls.Call>) {
  const batch = SystemCalls.make(calls)
  const end = yield* agent.exec({ path: program, input: batch.input })
  const faults = faultsOfEnd(program, end)
  if (faults.length > 0) return yield* notRenewed(faults)
  const { length } = end.stdout
  if (length !== batch.outputBytes) {
    return yield* notRenewed([`${program}: it told ${length} bytes instead of ${batch.outputBytes}`])
  }
  return batch.read(end.stdout)
})

/** The names of those that were run. */
const runHooks = Effect.fnUntraced(function*({ agent }: Guest) {
  const end = yield* agent.exec({ path: hooksProgram })
  const faults = end.stdout.length > maxReportBytes
    ? [`${hooksProgram}: it told ${end.stdout.length} bytes, more than there can be`]
    : faultsOfEnd(hooksProgram, end)
  if (faults.length > 0) return yield* notRenewed(faults)
  return Array.from(decoder.decode(end.stdout).matchAll(/^restarted (.+)$/gm), ([, name = ""]) => name)
})

interface Measurement {
  readonly off: number
  readonly uncertainty: number
}

/** In nanoseconds since 1970. No program is started for it: a resident makes the call itself, and the agent knows the time. */
const timeOf = Effect.fnUntraced(function*(guest: Guest) {
  if (guest.resident === undefined) return yield* guest.agent.request(GuestAgentSchema.guestGetTime, {})
  const { read, step } = RenewalCalls.time()
  const { faults, told } = yield* perform(guest, [step])
  return faults.length > 0 ? yield* notRenewed(faults) : read(told)
})

const sample = Effect.fnUntraced(function*(guest: Guest): Effect.fn.Return<Measurement, GuestError.GuestError> {
  const sent = yield* Clock.monotonicTimeNanos
  const nanos = yield* timeOf(guest)
  const trip = Number((yield* Clock.monotonicTimeNanos) - sent) / 1e6
  // Not `currentTimeNanos`, which may be a second away from the host's clock. These are whole milliseconds.
  const host = (yield* Clock.currentTimeMillis) + 0.5
  return { off: nanos / 1e6 - (host - trip / 2), uncertainty: trip / 2 + 0.5 }
})

/** The best of a few samples: one may have waited for a processor. */
const measure = Effect.fnUntraced(function*(guest: Guest) {
  let best = yield* sample(guest)
  for (let more = maxSamples - 1; more > 0 && 2 * best.uncertainty > quickTrip; more--) {
    const next = yield* sample(guest)
    if (next.uncertainty < best.uncertainty) best = next
  }
  return best
})

// While it can only be seen badly, as on a host that is short of processors, it is measured again until the deadline. A
// clock that is certainly off is corrected again, as it may have been measured badly before.
const proveClock = Effect.fnUntraced(function*(guest: Guest) {
  for (let corrections = 1;;) {
    const seen = yield* measure(guest)
    const off = Math.abs(seen.off)
    if (off + seen.uncertainty < tolerance) return seen
    if (off <= seen.uncertainty) {
      yield* Effect.sleep(pause)
      continue
    }
    if (corrections++ >= maxCorrections && off - seen.uncertainty >= tolerance) {
      const by = `${off.toFixed(1)} ± ${seen.uncertainty.toFixed(1)} ms ${seen.off < 0 ? "behind" : "ahead"}`
      return yield* notRenewed([`clock: ${by} after ${maxCorrections} corrections`], true)
    }
    const { faults } = yield* perform(guest, [correction(seen)])
    if (faults.length > 0) return yield* notRenewed(faults)
  }
})

// An offset, and no time: it is right however long the guest takes to apply it.
const correction = ({ off }: Measurement): RenewalCalls.Step => RenewalCalls.clock(BigInt(Math.round(-off * 1e6)))

const notRenewed = (unproven: ReadonlyArray<string>, isTransient = false) =>
  Effect.fail(GuestError.make(new GuestError.NotRenewed({ unproven: unproven.slice(0, maxUnproven), isTransient })))

const maxCards = 8

const faultsOf = (
  { bootId, cards = [], hostname, machineId, seed }: Identity
): ReadonlyArray<string> => {
  const { length } = Redacted.value(seed)
  return [
    .../^(?=.{1,64}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$/.test(hostname)
      ? []
      : [`hostname is ${JSON.stringify(hostname)}: give at most 64 letters, digits, "-" and "."`],
    .../^[0-9a-f]{32}$/.test(machineId)
      ? []
      : [`machineId is ${JSON.stringify(machineId)}: give 32 lower-case hexadecimal digits`],
    .../^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(bootId)
      ? []
      : [`bootId is ${JSON.stringify(bootId)}: give a UUID in lower case`],
    ...length === RenewalCalls.seedBytes ? [] : [`seed has ${length} bytes: give ${RenewalCalls.seedBytes}`],
    ...cards.flatMap((card, index) =>
      Cards.isCard(card) ? [] : [`cards[${index}] is ${JSON.stringify(card)}: give the MAC, and what is told of it`]
    ),
    ...cards.length <= maxCards ? [] : [`cards has ${cards.length} entries: give ${maxCards} at most`]
  ]
}

const decoder = new TextDecoder()

const faultsOfEnd = (path: string, { status, stderr }: ProgramEnd): ReadonlyArray<string> => {
  const said = decoder.decode(stderr.subarray(0, 1024)).trim().slice(0, 200)
  return ExitStatus.isSuccess(status)
    ? []
    : [`${path}: ${ExitStatus.format(status)}${said === "" ? "" : `: ${JSON.stringify(said)}`}`]
}
