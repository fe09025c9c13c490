/**
 * A program that waits in a machine which others are restored from, for what is first done in each of them.
 *
 * In a guest without acceleration that was just restored, all code runs for the first time, and the dearest of it is that
 * which starts a program. `/sbin/microvm-resident` runs already: it makes the system calls of a renewal itself, starts the
 * first command without the agent, and powers the guest off itself. All else is asked of the agent, and so is the power-off
 * when the program is gone.
 *
 * Nobody has asked it anything before the machine was saved, and each answer begins with a random number that came with the
 * question, so none is of another life. A program of root's may end it, or put itself in its place, as it may do with the agent:
 * but none runs before the machine has been renewed.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Socket from "effect/socket/Socket"
import type { GuestAgent, Program, ProgramEnd } from "./GuestAgent.ts"
import * as GuestError from "./GuestError.ts"
import * as GuestStdio from "./GuestStdio.ts"
import * as Programs from "./internal/programs.ts"
import * as RenewalCalls from "./internal/renewalCalls.ts"
import * as SystemCalls from "./internal/systemCalls.ts"

/**
 * The name of its channel.
 *
 * @category constants
 * @since 0.1.0
 */
export const channelName = "microvm.resident"

/**
 * The word on the kernel's command line that has it started.
 *
 * @category constants
 * @since 0.1.0
 */
export const kernelArg = "microvm.resident"

/**
 * What it writes when it waits.
 *
 * @category constants
 * @since 0.1.0
 */
export const greeting = "waits\n"

/**
 * Where a program that it was to start tells why it could not.
 *
 * @category constants
 * @since 0.1.0
 */
export const wordsFile = "/run/microvm-resident"

/**
 * The numbers of calls that are none of the kernel's: to start a program, and to power the guest off.
 *
 * @category constants
 * @since 0.1.0
 */
export const calls = { spawn: 0xfffe, powerOff: 0xffff } as const

/**
 * One that waits.
 *
 * @category models
 * @since 0.1.0
 */
export interface GuestResident {
  /** Has these system calls made, and gives what `read` makes of what they told, also when whoever asked has gone by then. */
  readonly ask: <A>(
    calls: ReadonlyArray<SystemCalls.Call>,
    read: (told: SystemCalls.Told) => A,
    last?: SystemCalls.Call
  ) => Effect.Effect<A, GuestError.GuestError>
}

const answersWithin = Duration.seconds(10)
const powersOffWithin = Duration.seconds(1)
/** Whether a command has ended: more often than that the agent need not be woken to see which of them is late. */
const endsWithin = Duration.seconds(3)
/** For an answer that may come with that of the agent. */
const settling = Duration.seconds(2)
/** How often the agent answers and the resident does not, before the resident is taken to be gone. */
const maxMisses = 3
const markBytes = 16
/** Of what comes before an answer: what is left of others that a question took too long for. */
const maxPassed = 64 * 1024
const WNOHANG = 1
/** The kernel gives these pids once: when it begins anew it begins after them. */
const lastingPids = 300

const encoder = new TextEncoder()

const fail = (reason: GuestError.Reason) => Effect.fail(GuestError.make(reason))

const closed = (cause: unknown): GuestError.GuestError =>
  GuestError.make(new GuestError.Closed({ channel: channelName, cause }))

const within = <A>(operation: string, duration: Duration.Duration, effect: Effect.Effect<A, GuestError.GuestError>) =>
  Effect.timeoutOrElse(effect, {
    duration,
    orElse: () => fail(new GuestError.Timeout({ operation, within: duration }))
  })

const joined = (left: Uint8Array, right: Uint8Array): Uint8Array => {
  const all = new Uint8Array(left.length + right.length)
  all.set(left)
  all.set(right, left.length)
  return all
}

const indexOf = (all: Uint8Array, mark: Uint8Array): number => {
  const [first = 0] = mark
  let at = all.indexOf(first)
  while (at !== -1 && !mark.every((byte, nth) => all[at + nth] === byte)) at = all.indexOf(first, at + 1)
  return at
}

/**
 * Waits until it says that it waits, in a machine that is to be saved. It ends when its channel is closed, so the scope has to be
 * open until the machine is saved.
 *
 * ```ts import.meta.vitest
 * import { GuestResident } from "effect-microvm-runtime/guest"
 * import { FakeGuestAgent } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const guest = yield* FakeGuestAgent.make()
 *   return yield* GuestResident.waits(yield* guest.channel(GuestResident.channelName))
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => undefined
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const waits = Effect.fn("GuestResident.waits")(function*(
  socket: Socket.Socket
): Effect.fn.Return<void, GuestError.GuestError, Scope.Scope> {
  const pull = yield* Effect.mapError(Socket.readerBytes(socket), closed)
  for (let said = ""; !said.endsWith(greeting);) {
    const chunks = yield* Effect.mapError(pull, closed)
    for (const chunk of chunks) said = (said + new TextDecoder().decode(chunk)).slice(-greeting.length)
  }
})

/**
 * Speaks to the one in a machine that was restored. The first answer is waited for as long as `within` says, by default 30
 * seconds, and then fails with `NotReady`. Closing the scope closes the channel.
 *
 * ```ts import.meta.vitest
 * import { GuestAgent, GuestRenewal, GuestResident } from "effect-microvm-runtime/guest"
 * import { FakeGuestAgent } from "effect-microvm-runtime/testing"
 * import * as SecureRandom from "effect/crypto/SecureRandom"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const guest = yield* FakeGuestAgent.make()
 *   const agent = yield* GuestAgent.make(guest.socket)
 *   const resident = yield* GuestResident.make(yield* guest.channel(GuestResident.channelName))
 *   const identity = yield* GuestRenewal.makeIdentity("web-1")
 *   yield* GuestRenewal.renew(agent, identity, { resident })
 *   return (yield* guest.requests).length
 * })
 * await Effect.runPromise(Effect.scoped(Effect.provide(program, SecureRandom.layerWebCrypto))) // => 0
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fn("GuestResident.make")(function*(
  socket: Socket.Socket,
  options: { readonly within?: Duration.Input | undefined } = {}
): Effect.fn.Return<GuestResident, GuestError.GuestError, Scope.Scope> {
  const scope = yield* Effect.scope
  const longest = Duration.fromInputUnsafe(options.within ?? "30 seconds")
  let heard = false
  const pull = yield* Effect.mapError(Socket.readerBytes(socket), closed)
  const writer = yield* socket.writer
  const turn = yield* Semaphore.make(1)
  return {
    ask: (wanted, read, last) => {
      const answer = Effect.gen(function*() {
        const mark = new Uint8Array(markBytes)
        for (let at = 0; at < mark.length; at++) mark[at] = yield* Random.nextIntBetween(0, 255)
        const { input, outputBytes, read: told } = SystemCalls.make(wanted, { mark, last })
        yield* Effect.mapError(writer.write(input), closed)
        let output: Uint8Array = new Uint8Array(0)
        let passed = 0
        let isFound = false
        while (!isFound || output.length < outputBytes) {
          for (const chunk of yield* Effect.mapError(pull, closed)) {
            output = joined(output, chunk)
            if (isFound) continue
            const at = indexOf(output, mark)
            isFound = at !== -1
            const over = isFound ? at : Math.max(0, output.length - markBytes + 1)
            output = output.slice(over)
            passed += over
            // Whatever is root in the guest can write without end.
            if (passed > maxPassed) {
              const problem = `more than ${maxPassed} bytes before it`
              return yield* fail(new GuestError.Protocol({ operation: "microvm-resident", problem }))
            }
          }
        }
        heard = true
        return read(told(output.slice(0, outputBytes)))
      })
      // Whoever gives up while others are asked asks nothing; later, that only ends the wait: what was done is told once.
      const inTurn = Effect.uninterruptibleMask((restore) =>
        Effect.gen(function*() {
          yield* restore(turn.take(1))
          if (scope.state._tag === "Closed") {
            yield* turn.release(1)
            return yield* fail(new GuestError.Closed({ channel: channelName, cause: "its scope was closed" }))
          }
          const asked = yield* Effect.forkIn(Effect.ensuring(answer, turn.release(1)), scope, {
            startImmediately: true
          })
          return yield* restore(Fiber.join(asked))
        })
      )
      return Effect.suspend(() =>
        heard ? inTurn : Effect.timeoutOrElse(inTurn, {
          duration: longest,
          orElse: () => fail(new GuestError.NotReady({ within: longest, attempts: 1 }))
        })
      )
    }
  }
})

/** What was there before the first command needs no time to end in order: it is ours. */
const powerOff = (resident: GuestResident, firstPid: number) =>
  within(
    "power-off",
    powersOffWithin,
    resident.ask([], () => undefined, { what: "power off", number: calls.powerOff, args: [firstPid] })
  )

/**
 * An agent that leaves to the resident what it does better: to power the guest off and, with `command`, to start the first
 * command. Whoever goes on with a command that another process has started asks the agent for it, which then knows nothing of it.
 * So is a command before which the agent was asked to run or to end anything, since that may have ended the resident.
 *
 * Where nothing but ours is `alone` in the guest when that command starts (default `false`), the power-off gives time only to what
 * is left of it and of later ones.
 *
 * ```ts import.meta.vitest
 * import { GuestAgent, GuestResident } from "effect-microvm-runtime/guest"
 * import { FakeGuestAgent } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const guest = yield* FakeGuestAgent.make()
 *   const resident = yield* GuestResident.make(yield* guest.channel(GuestResident.channelName))
 *   const agent = yield* GuestResident.relieve(yield* GuestAgent.make(guest.socket), resident, { command: true })
 *   yield* agent.powerOff
 *   return (yield* guest.requests).length
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => 0
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const relieve = Effect.fn("GuestResident.relieve")(function*(
  agent: GuestAgent,
  resident: GuestResident,
  options: { readonly command: boolean; readonly alone?: boolean | undefined }
): Effect.fn.Return<GuestAgent, never, Scope.Scope> {
  const scope = yield* Effect.scope
  let mayStart = options.command
  let started: number | undefined
  /** Of this life: what has a lower pid was there before. 0 where that is not known. */
  let firstPid = 0
  let isAgentAsked = false
  let told: ProgramEnd | undefined
  let asking: Fiber.Fiber<boolean, GuestError.GuestError> | undefined
  let misses = 0

  const spawn = Effect.fnUntraced(function*(program: Program) {
    const { args = [], env = {}, path } = program
    yield* Programs.check({ names: { path }, args, env })
    const made: SystemCalls.Call = {
      what: "spawn",
      number: calls.spawn,
      args: [
        encoder.encode(`${path}\0`),
        { words: [path, ...args] },
        { words: Object.entries(env).map(([name, value]) => `${name}=${Programs.reveal(value)}`) }
      ]
    }
    if (SystemCalls.make([made], { mark: new Uint8Array(markBytes) }).bytes > SystemCalls.maxBytes) return undefined
    mayStart = false
    const pid = yield* Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(
        Effect.forkIn(resident.ask([made], ({ result }) => result(made)), scope),
        (fiber) =>
          Effect.onError(
            restore(within("spawn", answersWithin, Fiber.join(fiber))),
            // Whoever asked has gone, and nobody else knows of it.
            () =>
              Fiber.join(fiber).pipe(
                Effect.flatMap((late) => late > 1 ? agent.kill(late, "SIGKILL") : Effect.void),
                Effect.ignore,
                Effect.forkIn(scope)
              )
          )
      )
    )
    if (pid < 0) return undefined
    started = pid
    if (options.alone === true && pid <= lastingPids) firstPid = pid
    return pid
  })

  /** Is it known? Once it has ended, there is what it told of a start that failed, too. */
  const look = Effect.fnUntraced(function*(pid: number) {
    const [status, words] = [{ room: 8 }, { room: 512 }]
    const wait: SystemCalls.Call = { what: "wait4", number: 61, args: [pid, status, WNOHANG] }
    return yield* resident.ask([wait, ...RenewalCalls.readInto(wordsFile, words)], ({ bytes, result }) => {
      const [low = 0, code = 0] = bytes(status)
      const signal = low & 0x7f
      if (result(wait) !== pid) return result(wait) === 0
      told = {
        status: Programs.statusOf(signal === 0 ? { exitcode: code } : { signal }),
        stdout: new Uint8Array(0),
        stderr: encoder.encode(RenewalCalls.textOf(bytes(words))),
        truncated: []
      }
      return true
    })
  })

  const poll = Effect.fnUntraced(function*(pid: number) {
    const asked = asking ??= yield* Effect.forkIn(look(pid), scope, { startImmediately: true })
    const known = yield* within("wait4", endsWithin, Fiber.join(asked)).pipe(
      // What failed is asked again; what is late may come yet.
      Effect.tapError(({ reason }) => Effect.sync(() => reason._tag === "Timeout" || (asking = undefined))),
      // The guest may stand still, and the agent with it. Where the agent answers, the resident should, too: soon, on a busy host.
      Effect.catchReason("GuestError", "Timeout", (_, timeout) =>
        Effect.andThen(
          agent.ping,
          Effect.timeoutOrElse(Fiber.join(asked), {
            duration: settling,
            orElse: () => ++misses < maxMisses ? Effect.fail(timeout) : Effect.succeed(false)
          })
        ))
    )
    asking = undefined
    misses = 0
    const end = told
    if (!known || end !== undefined) started = undefined
    if (!known) return yield* fail(new GuestError.UnknownProcess({ pid }))
    return Option.fromUndefinedOr(end)
  })

  return {
    ...agent,
    exec: (program) =>
      Effect.suspend(() => {
        isAgentAsked = true
        return agent.exec(program)
      }),
    // Which a program of the guest does.
    kill: (pid, signal) =>
      Effect.suspend(() => {
        isAgentAsked = true
        return agent.kill(pid, signal)
      }),
    request: (command, args, how) =>
      Effect.suspend(() => {
        isAgentAsked = true
        return agent.request(command, args, how)
      }),
    spawn: Effect.fn("GuestResident.spawn")(function*(program, how) {
      const { args = [], input, path } = program
      // A directory that there is not is told by the agent, and so is a port that is in use, as those of later commands may be.
      const may = mayStart && !isAgentAsked && path === GuestStdio.program && args[0] !== "-C" && input === undefined
      const pid = may ? yield* spawn(program) : undefined
      if (pid !== undefined) return pid
      isAgentAsked = true
      return yield* agent.spawn(program, how)
    }),
    poll: Effect.fn("GuestResident.poll")(function*(pid) {
      return yield* pid === started ? poll(pid) : agent.poll(pid)
    }),
    powerOff: Effect.catch(Effect.suspend(() => powerOff(resident, firstPid)), () => agent.powerOff)
  }
})
