/**
 * A command in the guest whose stdin, stdout and stderr are streams, with flow control from end to end.
 *
 * The agent starts the command and tells how it ended; its streams travel over the ports of a slot (`GuestStdio` has the
 * picture). Not more than a few chunks of each stream are in memory, however much the command writes: when nobody reads, it
 * waits. So read both streams, or let one go with `Stream.runDrain`.
 *
 * @since 0.1.0
 */
import type * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Pull from "effect/Pull"
import * as Random from "effect/Random"
import type * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import type * as Signal from "../lifecycle/Signal.ts"
import type { GuestAgent, ProgramEnd } from "./GuestAgent.ts"
import * as GuestError from "./GuestError.ts"
import type { GuestSlots, Slot } from "./GuestSlots.ts"
import * as GuestStdio from "./GuestStdio.ts"
import * as Programs from "./internal/programs.ts"
import { pump } from "./internal/pump.ts"

/**
 * What to run.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options extends EndOptions {
  /** Looked up in the PATH of `env`. */
  readonly command: string
  readonly args?: ReadonlyArray<string> | undefined
  /** Added to `PATH` and `HOME=/root`. */
  readonly env?: Readonly<Record<string, string | Redacted.Redacted>> | undefined
  /** The working directory. Default `/`. */
  readonly cwd?: string | undefined
}

/**
 * How to leave off.
 *
 * @category options
 * @since 0.1.0
 */
export interface EndOptions {
  /**
   * How long the streams may still wait for the guest once the command has ended, in all. They come to their end by
   * themselves as long as no process that the command left behind holds them open. Default 1 second.
   */
  readonly drain?: Duration.Input | undefined
  /**
   * The longest that closing the scope may take; an interruption while it starts may take it twice. Default 2 seconds. A guest that has
   * not answered by then, as one that is paused, is asked to kill the command when it answers again.
   */
  readonly closeWithin?: Duration.Input | undefined
}

/**
 * Which command it is: its pid in the guest, its slot, and the number that marks its streams. All that another process needs to
 * go on with it, see `attach`.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Description = Schema.Struct({
  pid: Schema.Int.check(Schema.isGreaterThan(0)),
  slot: Schema.Int.check(Schema.isGreaterThanOrEqualTo(0)),
  nonce: Schema.String.check(Schema.isPattern(/^[0-9a-f]{32}$/))
})

/**
 * @category models
 * @since 0.1.0
 */
export type Description = typeof Description.Type

/**
 * A command that was started.
 *
 * @category models
 * @since 0.1.0
 */
export interface GuestCommand {
  /** Its pid in the guest. */
  readonly pid: number
  readonly description: Description
  /** Waits until its streams are open, or it has come to nothing: from then on, all that is awaited of the guest is the command's own. */
  readonly begun: Effect.Effect<void>
  /**
   * Waits for its end. As in a shell, 127 says that the command was not found and 126 that it is not executable. Fails with
   * `NotStarted` when its streams could not be set up, and with `Closed` when the machine ends first.
   */
  readonly exit: Effect.Effect<ExitStatus.ExitStatus, GuestError.GuestError>
  /**
   * Its stdin, for one run. The end of the run is the end of its input; it also ends when the command does. A command that
   * reads waits for it: run `Stream.empty` for no input.
   */
  readonly stdin: Sink.Sink<void, Uint8Array, never, GuestError.GuestError>
  /** For one run. Ends, at the latest, soon after the command has. */
  readonly stdout: Stream.Stream<Uint8Array, GuestError.GuestError>
  /** For one run. Ends, at the latest, soon after the command has. */
  readonly stderr: Stream.Stream<Uint8Array, GuestError.GuestError>
  /** Sends it a signal, with the processes of its group when it leads one. One that has ended is not an error. */
  readonly kill: (signal: Signal.Signal) => Effect.Effect<void, GuestError.GuestError>
}

const defaultEnv = { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", HOME: "/root" }

/** Milliseconds between two questions for the end, doubled each time, while the streams are open. */
const slowPoll = { first: 100, longest: 2000 }
/** The same once the streams have ended: the end is there, or about to be. */
const quickPoll = { first: 1, longest: 500 }
/** For output that has come and is still to be passed on, once the channels are closed. */
const lastReading = "1 second"
/** How many odd answers in a row are taken for a bad moment. */
const maxFaults = 8

const makeNonce = Effect.map(
  Effect.replicateEffect(Random.nextIntBetween(0, 0xffffffff), 4),
  (words) => words.map((word) => word.toString(16).padStart(8, "0")).join("")
)

/**
 * Runs a command. Closing the scope kills it if it still runs (SIGKILL), drops what was not read, and gives its slot back. So does an
 * interruption.
 *
 * ```ts import.meta.vitest
 * import { GuestAgent, GuestCommand, GuestSlots } from "effect-microvm-runtime/guest"
 * import { FakeGuestAgent } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 * import * as Stream from "effect/Stream"
 *
 * const program = Effect.gen(function*() {
 *   const guest = yield* FakeGuestAgent.make()
 *   const agent = yield* GuestAgent.make(guest.socket)
 *   const slots = yield* GuestSlots.make([yield* guest.ports(0)])
 *   const cat = yield* GuestCommand.run(agent, slots, { command: "cat" })
 *   yield* Stream.make("hello").pipe(Stream.encodeText, Stream.run(cat.stdin))
 *   return yield* Stream.mkString(Stream.decodeText(cat.stdout))
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => "hello"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const run = Effect.fn("GuestCommand.run")(function*(
  agent: GuestAgent,
  slots: GuestSlots,
  options: Options
): Effect.fn.Return<GuestCommand, GuestError.GuestError, Scope.Scope> {
  const { args = [], command, cwd, env } = options
  yield* Programs.check({ names: { command, ...(cwd === undefined ? {} : { cwd }) }, args, env })
  return yield* Effect.uninterruptibleMask((restore) => start(agent, slots, options, restore))
})

const errorOf = <A>(exit: Exit.Exit<A, GuestError.GuestError>): GuestError.GuestError | undefined =>
  Exit.isFailure(exit) ? Option.getOrUndefined(Cause.findErrorOption(exit.cause)) : undefined

/**
 * Goes on with a command that another process has started and left: `description` is what it said there. Its output comes from
 * where the last reader stopped; what he had read and not passed on is lost. Its input is ended. Closing the scope kills the
 * command, and gives the slot back when all of its streams have come: so it also serves to be rid of one.
 *
 * When its end was told to whoever is gone, its status is `Lost`. Fails with `InvalidArgument` when the description is
 * none, or its slot is not free.
 *
 * **Gotchas**
 *
 * - One who was killed while he passed a piece of input on has left it unfinished: then the command waits for the rest of it.
 *
 * ```ts import.meta.vitest
 * import { GuestAgent, GuestCommand, GuestSlots, GuestStdio } from "effect-microvm-runtime/guest"
 * import { FakeGuestAgent } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 * import * as Stream from "effect/Stream"
 *
 * const program = Effect.gen(function*() {
 *   const guest = yield* FakeGuestAgent.make()
 *   const agent = yield* GuestAgent.make(guest.socket)
 *   const nonce = "0123456789abcdef0123456789abcdef"
 *   // Started by a process that is no more.
 *   const pid = yield* agent.spawn({ path: GuestStdio.program, args: ["0", nonce, "--", "echo", "hello"] })
 *   const slots = yield* GuestSlots.make([yield* guest.ports(0)])
 *   const command = yield* GuestCommand.attach(agent, slots, { pid, slot: 0, nonce })
 *   return yield* Stream.mkString(Stream.decodeText(command.stdout))
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => "hello\n"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const attach = Effect.fn("GuestCommand.attach")(function*(
  agent: GuestAgent,
  slots: GuestSlots,
  description: Description,
  options: EndOptions = {}
): Effect.fn.Return<GuestCommand, GuestError.GuestError, Scope.Scope> {
  if (!Schema.is(Description)(description)) {
    const faults = ["description: it is none: give the description of a command that was started"]
    return yield* Effect.fail(GuestError.make(new GuestError.InvalidArgument({ faults })))
  }
  return yield* Effect.uninterruptible(Effect.gen(function*() {
    const slot = yield* slots.takeSlot(description.slot)
    return yield* connectTo(agent, slot, description, { ...ending(options), left: true })
  }))
})

const ending = (options: EndOptions) => ({
  drain: Duration.toMillis(Duration.fromInputUnsafe(options.drain ?? "1 second")),
  closeWithin: Duration.fromInputUnsafe(options.closeWithin ?? "2 seconds")
})

const start = Effect.fnUntraced(function*(
  agent: GuestAgent,
  slots: GuestSlots,
  options: Options,
  restore: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
): Effect.fn.Return<GuestCommand, GuestError.GuestError, Scope.Scope> {
  const times = ending(options)
  const nonce = yield* makeNonce
  const slot = yield* slots.take

  const own = (pid: number) => connectTo(agent, slot, { pid, slot: slot.slot, nonce }, { ...times, left: false })

  const asking = yield* agent.spawn({
    path: GuestStdio.program,
    args: [
      ...(options.cwd === undefined ? [] : ["-C", options.cwd]),
      String(slot.slot),
      nonce,
      "--",
      options.command,
      ...(options.args ?? [])
    ],
    env: { ...defaultEnv, ...options.env }
  }, { capture: true }).pipe(
    // Nobody has touched the ports when the agent says no. When it says nothing, the command may yet start.
    Effect.onExit((exit) => {
      if (Exit.isSuccess(exit)) return Effect.void
      const reason = errorOf(exit)?.reason._tag
      const refused = reason === "AgentError" || reason === "CommandNotFound" || reason === "Busy"
      return slot.release(refused ? "clean" : "retire")
    }),
    Effect.forkDetach({ startImmediately: true })
  )
  const pid = yield* Effect.onInterrupt(restore(Fiber.join(asking)), () =>
    // The answer mostly is about to come, and one that was waited for leaves a slot that can be used again.
    Effect.timeoutOption(Effect.exit(Fiber.join(asking)), times.closeWithin).pipe(
      Effect.flatMap(Option.match({
        onNone: () => Fiber.interrupt(asking),
        onSome: (answer) => Exit.isSuccess(answer) ? Effect.scoped(own(answer.value)) : Effect.void
      }))
    ))
  return yield* own(pid)
})

const connectTo = Effect.fnUntraced(function*(
  agent: GuestAgent,
  slot: Slot,
  description: Description,
  options: {
    readonly drain: number
    readonly closeWithin: Duration.Duration
    /** Did another process start it? */
    readonly left: boolean
  }
): Effect.fn.Return<GuestCommand, never, Scope.Scope> {
  const { nonce, pid } = description
  const { closeWithin, drain, left } = options
  const exit = yield* Deferred.make<ExitStatus.ExitStatus, GuestError.GuestError>()
  const over = Effect.exit(Deferred.await(exit))
  // What never started writes nothing.
  const patience = Effect.map(over, (end) => Exit.isSuccess(end) ? drain : 0)
  const opened = yield* Deferred.make<void>()
  let inputEnded = false
  const openInput = Effect.gen(function*() {
    yield* slot.post(GuestStdio.begin(nonce))
    // Whoever waits goes on at once, and may come to the end of the input: that end is told there.
    const endedBefore = inputEnded
    Deferred.doneUnsafe(opened, Exit.void)
    if (endedBefore) yield* slot.post(GuestStdio.endOfInput)
  })
  const endInput = Effect.suspend(() => {
    if (inputEnded) return Effect.void
    inputEnded = true
    return Deferred.isDoneUnsafe(opened) ? slot.post(GuestStdio.endOfInput) : Effect.void
  })
  if (left) {
    // Where the input has begun, a second beginning is no length, and ends it; where it has not, the end follows.
    yield* openInput
    yield* endInput
  }
  // Comes last, when nobody else reads any more.
  yield* Effect.addFinalizer(() => slot.release("retire", Effect.suspend(() => rest)))
  const stdout = yield* pump(slot.pullStdout, nonce, patience, {
    mark: left ? "perhaps" : "expected",
    onMark: openInput
  })
  const stderr = yield* pump(slot.pullStderr, nonce, patience, { mark: "none", onMark: Effect.void })
  const isClean = () => stdout.clean() && stderr.clean()
  // What it has left behind may hold its streams open for long. Its input ends only where it has begun.
  const rest = Effect.suspend(() =>
    Deferred.isDoneUnsafe(opened)
      ? endInput.pipe(
        Effect.andThen(Effect.all([stdout.rest, stderr.rest], { concurrency: 2 })),
        Effect.map(isClean)
      )
      : Effect.succeed(false)
  )
  const streamsEnded = Effect.andThen(stdout.ended, stderr.ended)

  // The ends of the streams may have come to whoever is gone, so they are not waited for without end.
  const forgotten = left ? Effect.timeoutOption(streamsEnded, drain) : streamsEnded
  yield* watch(agent, pid, streamsEnded, forgotten).pipe(
    Effect.exit,
    Effect.flatMap((end) => Deferred.done(exit, end)),
    Effect.forkScoped({ startImmediately: true })
  )

  const write = Effect.fnUntraced(function*(chunks: Arr.NonEmptyReadonlyArray<Uint8Array>) {
    yield* Deferred.await(opened)
    for (const chunk of chunks) {
      for (const frame of GuestStdio.frames(chunk)) yield* slot.write(frame)
    }
  })

  yield* Effect.addFinalizer(Effect.fnUntraced(function*() {
    let isAsked = false
    yield* Effect.gen(function*() {
      yield* Effect.andThen(stdout.discard, stderr.discard)
      if (!Deferred.isDoneUnsafe(exit)) yield* agent.kill(pid, "SIGKILL")
      isAsked = true
      yield* endInput
      yield* Effect.andThen(over, streamsEnded)
    }).pipe(Effect.timeoutOption(closeWithin), Effect.ignore)
    // It ends with the agent's channel, if not before.
    if (!isAsked) yield* Effect.forkDetach(insist(agent, pid))
    yield* Deferred.succeed(exit, ExitStatus.lost("its scope was closed before its end was known", "agent"))
    if (isClean() || (yield* isUntouched(over))) yield* slot.release("clean")
  }))

  return {
    pid,
    description,
    begun: Effect.raceFirst(Deferred.await(opened), Effect.asVoid(over)),
    exit: Deferred.await(exit),
    stdin: Sink.fromTransform<Uint8Array, void, GuestError.GuestError, never>((upstream) =>
      upstream.pipe(
        Effect.flatMap(write),
        Effect.forever({ disableYield: true }),
        Pull.catchDone(() => endInput),
        Effect.raceFirst(over),
        Effect.as([undefined] as const)
      )
    ),
    stdout: stdout.stream,
    stderr: stderr.stream,
    kill: Effect.fn("GuestCommand.kill")(function*(signal) {
      if (!Deferred.isDoneUnsafe(exit)) yield* agent.kill(pid, signal)
    })
  }
})

/**
 * Kills what could not be killed in time. A guest that stands still, as while it is saved, or starves, goes on some day, and what runs
 * there with it. So it is asked until it answers, or is gone.
 */
const insist = Effect.fnUntraced(function*(agent: GuestAgent, pid: number) {
  for (let faults = 0; faults <= maxFaults;) {
    // One that has ended may have left its number to another.
    const kill = Effect.flatMap(agent.poll(pid), (end) => Option.isSome(end) ? Effect.void : agent.kill(pid, "SIGKILL"))
    const killed = yield* Effect.result(kill)
    if (Result.isSuccess(killed)) return
    const { reason } = killed.failure
    if (reason._tag === "UnknownProcess" || reason._tag === "Closed") return
    if (isFault(reason)) faults++
    yield* Effect.sleep(slowPoll.longest)
  }
})

/** The program in the guest looks at the working directory before it opens a port. */
const isUntouched = (over: Effect.Effect<Exit.Exit<ExitStatus.ExitStatus, GuestError.GuestError>>) =>
  Effect.map(over, (end) => {
    const reason = errorOf(end)?.reason
    return reason?._tag === "NotStarted" && reason.code === 126
  })

/**
 * Learns of the end. The streams come to theirs first, as a rule, so that is when to ask. A process that is left behind may
 * hold them open, so the agent is also asked now and then.
 */
const watch = Effect.fnUntraced(function*(
  agent: GuestAgent,
  pid: number,
  streamsEnded: Effect.Effect<void>,
  forgotten: Effect.Effect<unknown>
) {
  let pace = slowPoll
  let pause = pace.first
  let faults = 0
  while (true) {
    if (pace === quickPoll) yield* Effect.sleep(pause)
    else if (yield* Effect.raceFirst(Effect.as(streamsEnded, true), Effect.as(Effect.sleep(pause), false))) {
      pace = quickPoll
      pause = pace.first
    }
    const answer = yield* Effect.result(agent.poll(pid))
    if (Result.isSuccess(answer)) {
      faults = 0
      if (Option.isSome(answer.success)) return yield* toExit(answer.success.value)
    } else {
      const { reason } = answer.failure
      if (reason._tag === "UnknownProcess") {
        // An agent that was started again has forgotten it, which does not end it.
        yield* Effect.raceFirst(forgotten, gone(agent, pid))
        return ExitStatus.lost(reason.message, "agent")
      }
      if (isFault(reason)) faults++
      if (reason._tag === "Closed" || faults > maxFaults) return yield* answer.failure
    }
    pause = Math.min(pause * 2, pace.longest)
  }
})

/** A guest that stands still answers when it goes on; how long that may take is the caller's to say. */
const isFault = ({ _tag }: GuestError.Reason): boolean => _tag !== "Timeout" && _tag !== "Busy"

/**
 * Waits until there is no such process. The ends of its streams need not come: what it has left behind may hold them open, and who
 * kills all that he can, kills those along who would have told them.
 */
const gone = Effect.fnUntraced(function*(agent: GuestAgent, pid: number) {
  for (let faults = 0; faults <= maxFaults;) {
    const answer = yield* Effect.result(Stream.runHead(agent.readFile(`/proc/${pid}/stat`)))
    if (Result.isSuccess(answer)) {
      // proc_pid_stat(5): the state comes after the name, which may have any bytes in it.
      const text = new TextDecoder().decode(Option.getOrElse(answer.success, () => new Uint8Array(0)))
      if (/\) [ZX] [^)]*$/.test(text)) return
    } else {
      const { reason } = answer.failure
      if (reason._tag === "AgentError") return
      if (reason._tag === "Closed") return yield* answer.failure
      if (isFault(reason)) faults++
    }
    yield* Effect.sleep(slowPoll.longest)
  }
})

/** Once the command runs, its output goes to the ports only. What the agent has was said by the program that starts it. */
const toExit = ({ status, stderr }: ProgramEnd): Effect.Effect<ExitStatus.ExitStatus, GuestError.GuestError> => {
  // It begins as what it says to a user does.
  const text = new TextDecoder().decode(stderr).trim().replace(/^microvm(-exec)?: /, "")
  return text !== "" && status._tag === "Exited" && (status.code === 125 || status.code === 126)
    ? Effect.fail(GuestError.make(new GuestError.NotStarted({ code: status.code, text })))
    : Effect.succeed(status)
}

/**
 * Connects a command to streams of ours, waits for its end and gives its status. The command's input ends with `stdin`, which
 * is given up when the command ends first. When one of the streams fails, as at a broken pipe, this fails with its error;
 * then close the command's scope, which kills it. When the machine ends, what has come of the output is passed on before this
 * fails with `Closed`, for a second at most.
 *
 * ```ts import.meta.vitest
 * import { GuestAgent, GuestCommand, GuestSlots } from "effect-microvm-runtime/guest"
 * import { ExitStatus } from "effect-microvm-runtime/lifecycle"
 * import { FakeGuestAgent } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 * import * as Sink from "effect/Sink"
 * import * as Stream from "effect/Stream"
 *
 * const program = Effect.gen(function*() {
 *   const guest = yield* FakeGuestAgent.make()
 *   const agent = yield* GuestAgent.make(guest.socket)
 *   const slots = yield* GuestSlots.make([yield* guest.ports(0)])
 *   const command = yield* GuestCommand.run(agent, slots, { command: "exit", args: ["7"] })
 *   const status = yield* GuestCommand.connect(command, { stdin: Stream.empty, stdout: Sink.drain, stderr: Sink.drain })
 *   return ExitStatus.toCode(status)
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => 7
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const connect = Effect.fn("GuestCommand.connect")(function*<E1, R1, E2, R2, E3, R3>(
  self: GuestCommand,
  streams: {
    readonly stdin: Stream.Stream<Uint8Array, E1, R1>
    readonly stdout: Sink.Sink<unknown, Uint8Array, unknown, E2, R2>
    readonly stderr: Sink.Sink<unknown, Uint8Array, unknown, E3, R3>
  }
): Effect.fn.Return<ExitStatus.ExitStatus, E1 | E2 | E3 | GuestError.GuestError, R1 | R2 | R3> {
  const closed = yield* Deferred.make<never, GuestError.GuestError>()
  const read = <E, R>(output: GuestCommand["stdout"], sink: Sink.Sink<unknown, Uint8Array, unknown, E, R>) =>
    Stream.run(Stream.catch(output, (error) => Stream.fromEffectDrain(Deferred.fail(closed, error))), sink)
  const output = Effect.all([read(self.stdout, streams.stdout), read(self.stderr, streams.stderr)], {
    concurrency: "unbounded"
  }).pipe(
    Effect.andThen(Effect.suspend(() => Deferred.isDoneUnsafe(closed) ? Deferred.await(closed) : self.exit))
  )
  const input = Stream.run(streams.stdin, self.stdin)
  const failures = Effect.all([Deferred.await(closed), self.exit, input], { concurrency: "unbounded" })
  return yield* Effect.raceFirst(
    output,
    Effect.andThen(Effect.catch(failures, lastly), Effect.never)
  )
})

/** A machine that ends takes all channels along. What has come of the output is passed on before that is told. */
const lastly = <E>(error: E): Effect.Effect<never, E> =>
  error instanceof GuestError.GuestError && error.reason._tag === "Closed"
    ? Effect.delay(Effect.fail(error), lastReading)
    : Effect.fail(error)
