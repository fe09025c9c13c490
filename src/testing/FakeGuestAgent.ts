/**
 * A guest without a machine: the agent's end of QEMU's guest agent protocol, word for word, and the guest's end of a
 * command's ports (`GuestStdio`). It runs scripted programs and can be made to misbehave.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberHandle from "effect/FiberHandle"
import * as Latch from "effect/Latch"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Socket from "effect/socket/Socket"
import * as GuestAgent from "../guest/GuestAgent.ts"
import * as GuestAgentSchema from "../guest/GuestAgentSchema.ts"
import * as GuestResident from "../guest/GuestResident.ts"
import type { Ports } from "../guest/GuestSlots.ts"
import * as GuestStdio from "../guest/GuestStdio.ts"
import { builtins, type Program } from "./FakeGuestProgram.ts"
import * as FakeGuestRenewal from "./FakeGuestRenewal.ts"
import { makeChannel } from "./internal/bytePipe.ts"
import { type Answer, bytesOf, concat, makeFiles, refuse } from "./internal/fakeFiles.ts"
import type { Port } from "./internal/fakePort.ts"
import * as FakeProcesses from "./internal/fakeProcesses.ts"
import * as FakeResident from "./internal/fakeResident.ts"

/**
 * What the agent does with the next request but a sync, and only with that one:
 *
 * - `Ignore`: nothing.
 * - `Late`: does it, and answers after a while; meanwhile it reads nothing.
 * - `Lose`: does it, without an answer.
 * - `Before`: sends other bytes before the answer.
 * - `Instead`: does it, and sends other bytes in place of the answer.
 * - `Half`: sends half of the answer.
 * - `HangUp`: sends half of the answer and ends the stream.
 *
 * @category models
 * @since 0.1.0
 */
export type Fault =
  | { readonly _tag: "Ignore" | "Lose" | "Half" | "HangUp" }
  | { readonly _tag: "Late"; readonly by: Duration.Input }
  | { readonly _tag: "Before" | "Instead"; readonly bytes: string | Uint8Array }

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /**
   * Programs by name, besides `true`, `false`, `exit CODE`, `echo WORD…`, `env`, `pwd`, `cat` and `sleep SECONDS`. Whoever runs
   * scripts gives an `sh`; what the agent itself needs of one is there. `"not executable"` is a file without the permission.
   */
  readonly programs?: Readonly<Record<string, Program | "not executable">> | undefined
  /** Directories besides `/`, `/root` and `/tmp`. */
  readonly directories?: ReadonlyArray<string> | undefined
  /** Reads nothing before `resume`, like a guest that boots. Default `false`. */
  readonly paused?: boolean | undefined
  /** Bytes that a channel of `make` holds before a writer waits. Default 64 KiB. */
  readonly capacity?: number | undefined
  /** How it is made its own after a restore, and what its clock is off. By default that works, and its clock is right. */
  readonly renewal?: FakeGuestRenewal.Options | undefined
  /** What a shutdown does. Default: nothing for a halt, else all channels of `make` end. */
  readonly onShutdown?: ((mode: "powerdown" | "halt" | "reboot") => Effect.Effect<void>) | undefined
}

/**
 * A guest that serves.
 *
 * @category models
 * @since 0.1.0
 */
export interface FakeGuest {
  /** The requests that came, in order, without syncs. */
  readonly requests: Effect.Effect<ReadonlyArray<GuestAgentSchema.Request>>
  /** How many syncs came. */
  readonly syncs: Effect.Effect<number>
  /** Files by path. */
  readonly files: Map<string, Uint8Array>
  /** Handles that are open, by number. */
  readonly handles: ReadonlyMap<number, { readonly path: string; readonly mode: string }>
  /** The time in nanoseconds to which the guest's clock was set, once it was. */
  readonly time: Effect.Effect<number | undefined>
  /** What is its own, and what it was last told to be. */
  readonly own: FakeGuestRenewal.Own
  /** Processes that run. */
  readonly running: Effect.Effect<ReadonlyArray<{ readonly pid: number; readonly command: string }>>
  readonly inject: (fault: Fault) => Effect.Effect<void>
  /** Sends these very bytes, at once. */
  readonly send: (bytes: string | Uint8Array) => Effect.Effect<void>
  /** The agent ends and is started again: it forgets what it had read, its processes and its files' handles. */
  readonly restart: Effect.Effect<void>
  /** The guest stands still: nothing more is read. */
  readonly pause: Effect.Effect<void>
  readonly resume: Effect.Effect<void>
}

/**
 * A guest with its channels.
 *
 * @category models
 * @since 0.1.0
 */
export interface FakeGuestAgent extends FakeGuest {
  /** The agent's channel, for the host. */
  readonly socket: Socket.Socket
  /** Any channel by its name, for the host. Always the same one. */
  readonly channel: (name: string) => Effect.Effect<Socket.Socket>
  /** The ports of a slot, for the host. */
  readonly ports: (slot: number) => Effect.Effect<Ports>
  /** Bytes under way to the host on a channel. */
  readonly held: (channel: string) => number
  /** Ends all channels, as the machine's end does. */
  readonly hangUp: Effect.Effect<void>
}

const decodeRequest = Schema.decodeUnknownResult(Schema.fromJsonString(GuestAgentSchema.Request))

/**
 * Serves a guest over channels that are there already: `channel` gives the guest's end of one by its name, such as
 * `GuestAgent.channelName`. Ends with the scope.
 *
 * @category constructors
 * @since 0.1.0
 */
export const serve = Effect.fn("FakeGuestAgent.serve")(function*<E>(
  channel: (name: string) => Effect.Effect<Socket.Socket, E>,
  options: Omit<Options, "capacity"> = {}
): Effect.fn.Return<FakeGuest, E, Scope.Scope> {
  const scope = yield* Effect.scope
  const { own, programs: renewing, run: makeCalls } = FakeGuestRenewal.make(options.renewal)
  const requests: Array<GuestAgentSchema.Request> = []
  const faults: Array<Fault> = []
  const files = makeFiles((path) => processes.procFile(path))
  let syncs = 0
  let time: number | undefined
  const going = Latch.makeUnsafe(options.paused !== true)

  const agent = yield* channel(GuestAgent.channelName)
  const writer = yield* agent.writer
  const pull = yield* Effect.orDie(Socket.readerBytes(agent))
  // An end of the channel is not the guest's fault.
  const send = (bytes: string | Uint8Array) => Effect.ignore(writer.write(bytes))

  const ports = new Map<string, Port>()
  const opening = yield* Semaphore.make(1)
  const port = (name: string): Effect.Effect<Port, E> =>
    Semaphore.withPermit(
      opening,
      Effect.suspend(() => {
        const known = ports.get(name)
        if (known !== undefined) return Effect.succeed(known)
        return Effect.gen(function*() {
          const socket = yield* channel(name)
          const out = yield* socket.writer
          const pullPort = yield* Effect.orDie(Socket.readerBytes(socket))
          const opened: Port = {
            write: (bytes) => Effect.ignore(out.write(bytes)),
            pull: Effect.catch(Effect.andThen(going.await, pullPort), () => Cause.done()),
            unread: new Uint8Array(0)
          }
          ports.set(name, opened)
          return opened
        }).pipe(Scope.provide(scope))
      })
    )

  const processes = yield* FakeProcesses.make({
    programs: { ...builtins, ...renewing, ...options.programs },
    directories: ["/", "/root", "/tmp", ...options.directories ?? []],
    port
  })

  const using = <A, R>(
    command: GuestAgentSchema.Command<A, R>,
    args: unknown,
    use: (args: A) => Answer | Effect.Effect<Answer>
  ): Effect.Effect<Answer> => {
    const decoded = Schema.decodeUnknownResult(command.arguments)(args ?? {})
    if (Result.isFailure(decoded)) return Effect.succeed(refuse("Parameter is missing"))
    const answer = use(decoded.success)
    return Effect.isEffect(answer) ? answer : Effect.succeed(answer)
  }

  /** The answer; nothing for a shutdown that works. */
  const act = ({ arguments: args, execute }: GuestAgentSchema.Request): Effect.Effect<Answer | undefined> => {
    const ok: Answer = { return: {} }
    switch (execute) {
      case "guest-ping":
        return Effect.succeed(ok)
      case "guest-info":
        return Effect.succeed({
          return: {
            version: "7.2.22",
            supported_commands: ["guest-ping", "guest-exec", "guest-shutdown"].map((name) => ({
              name,
              enabled: true,
              "success-response": name !== "guest-shutdown"
            }))
          }
        })
      case "guest-exec":
        return using(GuestAgentSchema.guestExec, args, processes.exec)
      case "guest-exec-status":
        return using(GuestAgentSchema.guestExecStatus, args, ({ pid }) => processes.execStatus(pid))
      case "guest-file-open":
        return using(GuestAgentSchema.guestFileOpen, args, files.open)
      case "guest-file-close":
        return using(GuestAgentSchema.guestFileClose, args, files.close)
      case "guest-file-read":
        return using(GuestAgentSchema.guestFileRead, args, files.read)
      case "guest-file-write":
        return using(GuestAgentSchema.guestFileWrite, args, files.write)
      case "guest-get-time":
        return Effect.map(Clock.currentTimeMillis, (millis) => ({ return: (millis + own.clockOff) * 1e6 }))
      case "guest-set-time":
        return using(
          GuestAgentSchema.guestSetTime,
          args,
          ({ time: nanos }) =>
            Effect.map(Clock.currentTimeMillis, (millis) => {
              time = nanos
              own.clockOff = nanos / 1e6 - millis
              return ok
            })
        )
      case "guest-shutdown": {
        const decoded = Schema.decodeUnknownResult(GuestAgentSchema.guestShutdown.arguments)(
          args ?? { mode: "powerdown" }
        )
        if (Result.isFailure(decoded)) return Effect.succeed(refuse("Invalid parameter 'mode'"))
        return Effect.as(options.onShutdown?.(decoded.success.mode) ?? Effect.void, undefined)
      }
      default:
        return Effect.succeed({
          error: { class: "CommandNotFound", desc: `The command ${execute} has not been found` }
        })
    }
  }

  const strayByte = `{"error": {"class": "GenericError", "desc": "JSON parse error, stray '\uFFFD'"}}\n`
  const answerLine = Effect.fnUntraced(function*(line: string) {
    const request = decodeRequest(line)
    if (Result.isFailure(request)) {
      return yield* send(`${JSON.stringify(refuse("JSON parse error, expecting value"))}\n`)
    }
    const { arguments: args, execute, id } = request.success
    if (execute === "guest-sync-delimited") {
      syncs++
      const answer = yield* using(GuestAgentSchema.guestSyncDelimited, args, ({ id: number }) => ({ return: number }))
      return yield* send(concat(new Uint8Array([0xff]), bytesOf(`${JSON.stringify(answer)}\n`)))
    }
    requests.push(request.success)
    const fault = faults.shift()
    if (fault?._tag === "Ignore") return
    const answer = yield* act(request.success)
    if (answer === undefined) return
    const text = `${JSON.stringify(id === undefined ? answer : { ...answer, id })}\n`
    switch (fault?._tag) {
      case "Lose":
        return
      case "Late":
        yield* Effect.sleep(fault.by)
        return yield* send(text)
      case "Before":
        yield* send(fault.bytes)
        return yield* send(text)
      case "Instead":
        return yield* send(fault.bytes)
      case "Half":
        return yield* send(text.slice(0, text.length / 2))
      case "HangUp":
        yield* send(text.slice(0, text.length / 2))
        return yield* Effect.ignore(writer.write(new Socket.CloseEvent()))
      case undefined:
        return yield* send(text)
    }
  })

  const serving = Effect.gen(function*() {
    const decoder = new TextDecoder()
    let kept: Uint8Array = new Uint8Array(0)
    while (true) {
      yield* going.await
      for (const chunk of yield* pull) {
        kept = concat(kept, chunk)
        for (let at = 0; at < kept.length;) {
          const byte = kept[at++]
          if (byte !== 0xff && byte !== 0x0a) continue
          const line = kept.subarray(0, at - 1)
          kept = kept.slice(at)
          at = 0
          yield* going.await
          if (byte === 0xff) yield* send(strayByte)
          else if (line.length > 0) yield* answerLine(decoder.decode(line))
        }
      }
    }
  })
  const server = yield* FiberHandle.make()
  const startServing = Effect.asVoid(
    FiberHandle.run(server, Effect.ignore(Effect.tapDefect(serving, Effect.logError)), { startImmediately: true })
  )
  yield* startServing
  yield* FakeResident.serve({
    port: port(GuestResident.channelName),
    takes: options.renewal?.takes ?? 0,
    makeCalls,
    spawn: ({ args: arg, env, path }) => Effect.map(processes.exec({ path, arg, env, "capture-output": true }), pidOf),
    waitFor: processes.waitFor,
    powerOff: options.onShutdown?.("powerdown") ?? Effect.void
  }).pipe(Effect.tapDefect(Effect.logError), Effect.ignore, Effect.forkIn(scope, { startImmediately: true }))

  return {
    requests: Effect.sync(() => [...requests]),
    syncs: Effect.sync(() => syncs),
    files: files.byPath,
    handles: files.handles,
    time: Effect.sync(() => time),
    own,
    running: processes.running,
    inject: (fault) => Effect.sync(() => faults.push(fault)),
    send,
    restart: Effect.suspend(() => {
      processes.forget()
      files.handles.clear()
      return startServing
    }),
    pause: Effect.asVoid(going.close),
    resume: Effect.asVoid(going.open)
  }
})

const pidOf = (answer: Answer): number =>
  "return" in answer && Schema.is(Schema.Struct({ pid: Schema.Int }))(answer.return) ? answer.return.pid : -1

/**
 * Starts a guest with channels of its own, in memory. All of it happens on fibers, so a virtual clock has it in hand. Ends
 * with the scope.
 *
 * ```ts import.meta.vitest
 * import { GuestAgent } from "effect-microvm-runtime/guest"
 * import { FakeGuestAgent } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const guest = yield* FakeGuestAgent.make({ programs: { answer: () => Effect.succeed(42) } })
 *   const agent = yield* GuestAgent.make(guest.socket)
 *   return (yield* agent.exec({ path: "answer" })).status
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => { _tag: "Exited", code: 42, observedBy: "agent" }
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fn("FakeGuestAgent.make")(function*(
  options: Options = {}
): Effect.fn.Return<FakeGuestAgent, never, Scope.Scope> {
  const channels = new Map<string, ReturnType<typeof makeChannel>>()
  const channel = (name: string): ReturnType<typeof makeChannel> => {
    const made = channels.get(name) ?? makeChannel(options.capacity ?? 64 * 1024)
    channels.set(name, made)
    return made
  }
  const hangUp = Effect.sync(() => channels.forEach(({ close }) => close()))
  const guest = yield* serve((name) => Effect.sync(() => channel(name).guest), {
    onShutdown: (mode) => mode === "halt" ? Effect.void : hangUp,
    ...options
  })
  return {
    ...guest,
    socket: channel(GuestAgent.channelName).host,
    channel: (name) => Effect.sync(() => channel(name).host),
    ports: (slot) =>
      Effect.sync(() => {
        const names = GuestStdio.portNames(slot)
        return {
          slot,
          stdin: channel(names.stdin).host,
          stdout: channel(names.stdout).host,
          stderr: channel(names.stderr).host
        }
      }),
    held: (name) => channels.get(name)?.held() ?? 0,
    hangUp
  }
})
