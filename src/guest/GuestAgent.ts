/**
 * A client of QEMU's guest agent (QGA) over any byte channel.
 *
 * The protocol has no frames and forgets nothing: what was sent to a guest that did not listen is answered later, and a
 * reply that nobody read goes to whoever connects next. So requests go one at a time, and on every connect, after every
 * timeout and after anything odd both ends first meet at a random number (`guest-sync-delimited`).
 *
 * The agent keeps at most 16 MiB of each output stream of a command and tells it at the end only; a command with streams is
 * the business of `GuestCommand`.
 *
 * Source: "QEMU Guest Agent Protocol Reference".
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Base64 from "effect/encoding/Base64"
import * as Option from "effect/Option"
import type * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import type * as Sink from "effect/Sink"
import type * as Socket from "effect/socket/Socket"
import type * as Stream from "effect/Stream"
import type * as ExitStatus from "../lifecycle/ExitStatus.ts"
import type * as Signal from "../lifecycle/Signal.ts"
import * as GuestAgentSchema from "./GuestAgentSchema.ts"
import * as GuestError from "./GuestError.ts"
import * as Connection from "./internal/connection.ts"
import * as Files from "./internal/files.ts"
import * as Programs from "./internal/programs.ts"

/**
 * The name that the agent looks for among a guest's channels.
 *
 * @category constants
 * @since 0.1.0
 */
export const channelName = "org.qemu.guest_agent.0"

/**
 * What the agent says about itself.
 *
 * @category models
 * @since 0.1.0
 */
export interface AgentInfo {
  readonly version: string
  /** Commands that it has and allows. */
  readonly commands: ReadonlyArray<string>
}

/**
 * A program to run in the guest, without a shell.
 *
 * @category models
 * @since 0.1.0
 */
export interface Program {
  /** An absolute path, or a name that the agent looks up in its own PATH. */
  readonly path: string
  readonly args?: ReadonlyArray<string> | undefined
  /** Replaces the whole environment. By default the program gets that of the agent. */
  readonly env?: Readonly<Record<string, string | Redacted.Redacted>> | undefined
  /** What it reads on its stdin, at most 16 MiB. By default nothing. */
  readonly input?: Uint8Array | undefined
}

/**
 * How a program ended and what it wrote.
 *
 * @category models
 * @since 0.1.0
 */
export interface ProgramEnd {
  readonly status: ExitStatus.ExitStatus
  readonly stdout: Uint8Array
  readonly stderr: Uint8Array
  /** The streams that are not whole, since the agent keeps their first 16 MiB only. */
  readonly truncated: ReadonlyArray<"stdout" | "stderr">
}

/**
 * An agent that has answered at least once, unless it is made to be heard of `later`.
 *
 * Each request fails with `Timeout` after the agent's `requestTimeout`, with `Busy` when too many wait, with `Closed` once
 * the stream has ended or the guest has written far more than anybody asked for, and with `AgentError` or `CommandNotFound`
 * when the agent refuses.
 *
 * @category models
 * @since 0.1.0
 */
export interface GuestAgent {
  readonly ping: Effect.Effect<void, GuestError.GuestError>
  readonly info: Effect.Effect<AgentInfo, GuestError.GuestError>
  /**
   * Runs a program and waits for its end, for as long as it takes: use `Effect.timeout`. Interruption kills it, in a
   * second at most. A program that is not there is an `AgentError`.
   */
  readonly exec: (program: Program) => Effect.Effect<ProgramEnd, GuestError.GuestError>
  /** Starts a program and gives its pid. Its output is kept for `poll` when `capture` is true. */
  readonly spawn: (
    program: Program,
    options?: { readonly capture?: boolean | undefined }
  ) => Effect.Effect<number, GuestError.GuestError>
  /**
   * How a program of `spawn` is doing; `None` while it runs. The agent tells an end once and forgets the process: the next
   * call fails with `UnknownProcess`.
   */
  readonly poll: (pid: number) => Effect.Effect<Option.Option<ProgramEnd>, GuestError.GuestError>
  /**
   * Sends a signal to the process group of `pid`, or to the process alone when it leads none. One that is gone is not an
   * error.
   */
  readonly kill: (pid: number, signal: Signal.Signal) => Effect.Effect<void, GuestError.GuestError>
  /** The bytes of a file in the guest. */
  readonly readFile: (path: string) => Stream.Stream<Uint8Array, GuestError.GuestError>
  /** Makes a file in the guest, or empties it first; with `append` it goes on at the end. */
  readonly writeFile: (
    path: string,
    options?: { readonly append?: boolean | undefined }
  ) => Sink.Sink<void, Uint8Array, never, GuestError.GuestError>
  /** Sets the guest's clock, by default to ours. */
  readonly setTime: (time?: DateTime.DateTime) => Effect.Effect<void, GuestError.GuestError>
  /**
   * Asks the guest to power off. The agent says nothing when it does, so this is done when the stream ends, or when there
   * was no refusal for two seconds: only the machine's end tells that it worked. An agent that hangs is a `Timeout`.
   */
  readonly powerOff: Effect.Effect<void, GuestError.GuestError>
  /** Like `powerOff`, but the guest only stops: the machine goes on. */
  readonly halt: Effect.Effect<void, GuestError.GuestError>
  /** Like `powerOff`, but the guest starts again, unless the machine ends instead. */
  readonly reboot: Effect.Effect<void, GuestError.GuestError>
  /** Runs any command of the protocol. `within` replaces the agent's deadline. */
  readonly request: <A, R>(
    command: GuestAgentSchema.Command<A, R>,
    args: A,
    options?: { readonly within?: Duration.Input | undefined }
  ) => Effect.Effect<R, GuestError.GuestError>
  /** Waits for the end of the stream, or until the guest has written far more than anybody asked for. */
  readonly closed: Effect.Effect<GuestError.GuestError>
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** The longest wait for the first answer. Default 30 seconds. */
  readonly within?: Duration.Input | undefined
  /**
   * It is left alone until it is first needed: for a guest that answers by other means. Both ends then meet within the first
   * request's time, and before that request is sent. Default `false`.
   */
  readonly later?: boolean | undefined
  /** The longest wait for the answer to any later request, its turn included. Default 10 seconds. */
  readonly requestTimeout?: Duration.Input | undefined
  /** How many requests may wait for their turn. Default 64. */
  readonly maxWaiting?: number | undefined
}

/** An agent that refuses a shutdown does so at once. */
const refusalWithin = Duration.seconds(2)
const killWithin = Duration.seconds(1)
const maxTold = 32

// The shell's own kill, as an image need not have the program. A group first: it takes what the process has started along.
const killScript = "kill -s \"$0\" -- \"-$1\" 2>/dev/null || kill -s \"$0\" \"$1\" 2>/dev/null"

const decoded = (data: string | undefined): Result.Result<Uint8Array, unknown> => Base64.decode(data ?? "")

type Status = typeof GuestAgentSchema.guestExecStatus.returns.Type

const toEnd = (status: Status): Result.Result<ProgramEnd, GuestError.GuestError> => {
  const stdout = decoded(status["out-data"])
  const stderr = decoded(status["err-data"])
  if (Result.isFailure(stdout) || Result.isFailure(stderr)) {
    const operation = GuestAgentSchema.guestExecStatus.execute
    return Result.fail(GuestError.make(new GuestError.Protocol({ operation, problem: "output that is not base64" })))
  }
  return Result.succeed({
    status: Programs.statusOf(status),
    stdout: stdout.success,
    stderr: stderr.success,
    truncated: [
      ...(status["out-truncated"] === true ? ["stdout" as const] : []),
      ...(status["err-truncated"] === true ? ["stderr" as const] : [])
    ]
  })
}

/**
 * Connects to the agent and waits until it answers: bytes that are sent early wait until the guest opens its end. Fails
 * with `NotReady` at the deadline, and with `Closed` when the stream ends before; then it can be tried again. Closing the
 * scope closes the connection; what still waits for an answer fails with `Closed`.
 *
 * ```ts import.meta.vitest
 * import { GuestAgent } from "effect-microvm-runtime/guest"
 * import { FakeGuestAgent } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const guest = yield* FakeGuestAgent.make()
 *   const agent = yield* GuestAgent.make(guest.socket, { within: "5 seconds" })
 *   const { stdout } = yield* agent.exec({ path: "echo", args: ["hello"] })
 *   return new TextDecoder().decode(stdout)
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => "hello\n"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fn("GuestAgent.make")(function*(
  socket: Socket.Socket,
  options: Options = {}
): Effect.fn.Return<GuestAgent, GuestError.GuestError, Scope.Scope> {
  const requestTimeout = Duration.fromInputUnsafe(options.requestTimeout ?? "10 seconds")
  const services = yield* Effect.context()
  const connection = yield* Connection.make(socket, {
    within: Duration.fromInputUnsafe(options.within ?? "30 seconds"),
    maxWaiting: options.maxWaiting ?? 64,
    later: options.later ?? false
  })

  const files = Files.make(connection.request, requestTimeout)

  const request: GuestAgent["request"] = (command, args, { within = requestTimeout } = {}) =>
    connection.request(command, args, { within: Duration.fromInputUnsafe(within) })

  // An end is told once. When it is told after its request was given up, it is kept for the next one.
  const told = new Map<number, Status>()
  const keep = (pid: number, status: Status): void => {
    const [oldest] = told.keys()
    if (told.size >= maxTold && oldest !== undefined) told.delete(oldest)
    told.set(pid, status)
  }

  const spawn: GuestAgent["spawn"] = Effect.fn("GuestAgent.spawn")(function*(program, { capture = false } = {}) {
    const { args = [], env, input, path } = program
    yield* Programs.check({ names: { path }, args, env, input })
    const { pid } = yield* connection.request(GuestAgentSchema.guestExec, {
      path,
      arg: args,
      "capture-output": capture,
      ...(env === undefined
        ? {}
        : { env: Object.entries(env).map(([name, value]) => `${name}=${Programs.reveal(value)}`) }),
      ...(input === undefined ? {} : { "input-data": Base64.encode(input) })
    }, {
      within: requestTimeout,
      // Whoever asked has gone, and nobody else knows of it.
      onLate: (late) => void Effect.runForkWith(services)(endUnwanted(late.pid))
    })
    told.delete(pid)
    return pid
  })

  const poll: GuestAgent["poll"] = Effect.fn("GuestAgent.poll")(function*(pid) {
    const status = yield* connection.request(GuestAgentSchema.guestExecStatus, { pid }, {
      within: requestTimeout,
      onLate: (late) => {
        if (late.exited) keep(pid, late)
      }
    }).pipe(
      // The agent refuses for no other reason; its words for it differ from version to version.
      Effect.catchReason("GuestError", "AgentError", () => {
        const late = told.get(pid)
        told.delete(pid)
        return late === undefined
          ? Effect.fail(GuestError.make(new GuestError.UnknownProcess({ pid })))
          : Effect.succeed(late)
      })
    )
    return status.exited ? Option.some(yield* Effect.fromResult(toEnd(status))) : Option.none()
  })

  const awaitEnd = Effect.fnUntraced(function*(pid: number) {
    // In small steps, as most programs end within 20 milliseconds and each question costs the guest only one.
    let pause = 2
    while (true) {
      const end = yield* poll(pid)
      if (Option.isSome(end)) return end.value
      yield* Effect.sleep(pause)
      pause = Math.min(pause * 1.25, 500)
    }
  })

  const run = (program: Program, onInterrupt: (pid: number) => Effect.Effect<void>) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(
        restore(spawn(program, { capture: true })),
        (pid) => Effect.onInterrupt(restore(awaitEnd(pid)), () => onInterrupt(pid))
      )
    )

  const kill: GuestAgent["kill"] = Effect.fn("GuestAgent.kill")(function*(pid, signal) {
    // To kill(2), 0 and -1 mean many processes.
    if (!Number.isInteger(pid) || pid < 2) {
      const faults = [`pid is ${pid}: give that of a process other than the guest's first one`]
      return yield* GuestError.make(new GuestError.InvalidArgument({ faults }))
    }
    const args = ["-c", killScript, signal.slice("SIG".length), String(pid)]
    yield* run({ path: "/bin/sh", args }, () => Effect.void)
  })

  const endUnwanted = (pid: number): Effect.Effect<void> =>
    kill(pid, "SIGKILL").pipe(
      // Reads its end too, or the agent would keep it for ever.
      Effect.andThen(awaitEnd(pid)),
      Effect.timeoutOption(killWithin),
      Effect.ignore
    )

  const exec: GuestAgent["exec"] = Effect.fn("GuestAgent.exec")(function*(program) {
    return yield* run(program, endUnwanted)
  })

  const shutdown = (mode: "powerdown" | "halt" | "reboot"): Effect.Effect<void, GuestError.GuestError> =>
    connection.announce(GuestAgentSchema.guestShutdown, { mode }, { within: requestTimeout, quiet: refusalWithin })

  return {
    ping: Effect.asVoid(request(GuestAgentSchema.guestPing, {})),
    info: Effect.map(request(GuestAgentSchema.guestInfo, {}), ({ supported_commands, version }) => ({
      version,
      commands: supported_commands.flatMap(({ enabled, name }) => enabled ? [name] : [])
    })),
    exec,
    spawn,
    poll,
    kill,
    readFile: files.read,
    writeFile: (path, { append = false } = {}) => files.write(path, append ? "a" : "w"),
    setTime: Effect.fn("GuestAgent.setTime")(function*(time) {
      const millis = time === undefined ? yield* Clock.currentTimeMillis : DateTime.toEpochMillis(time)
      yield* request(GuestAgentSchema.guestSetTime, { time: millis * 1e6 })
    }),
    powerOff: shutdown("powerdown"),
    halt: shutdown("halt"),
    reboot: shutdown("reboot"),
    request,
    closed: connection.closed
  }
})
