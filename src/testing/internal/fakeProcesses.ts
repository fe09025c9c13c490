/** The programs that run in a fake guest, as its agent starts and waits for them. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Base64 from "effect/encoding/Base64"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as GuestAgentSchema from "../../guest/GuestAgentSchema.ts"
import * as GuestStdio from "../../guest/GuestStdio.ts"
import * as Signal from "../../lifecycle/Signal.ts"
import type { Invocation, Program } from "../FakeGuestProgram.ts"
import { type Answer, bytesOf, concat, refuse } from "./fakeFiles.ts"
import { type Port, readInput } from "./fakePort.ts"
import type * as FakeResident from "./fakeResident.ts"

type End = { readonly exitcode: number } | { readonly signal: number }
interface Process {
  readonly command: string
  readonly kill: Deferred.Deferred<Signal.Signal>
  readonly captured: Record<"stdout" | "stderr", { bytes: Uint8Array; truncated: boolean }> | undefined
  end: End | undefined
  /** What happens once it has ended, as the last holder of its output. */
  release: Effect.Effect<void>
}

const noProcess = refuse("Invalid parameter 'pid'")
export interface Options {
  readonly programs: Readonly<Record<string, Program | "not executable">>
  readonly directories: ReadonlyArray<string>
  /** The guest's end of a virtio port. */
  readonly port: (name: string) => Effect.Effect<Port, unknown>
}

/** They end with the scope. */
export const make = Effect.fnUntraced(function*(options: Options) {
  const { port } = options
  const scope: Scope.Scope = yield* Effect.scope
  const programs = new Map(Object.entries(options.programs))
  const directories = new Set(options.directories)
  /** Those that the agent knows. */
  let processes = new Map<number, Process>()
  const alive = new Map<number, string>()
  const busy = new Set<number>()
  let lastPid = 100

  const spawn = (
    command: string,
    captured: Process["captured"],
    body: (process: Process) => Effect.Effect<number>
  ): Effect.Effect<number> =>
    Effect.suspend(() => {
      const pid = ++lastPid
      const process: Process = { command, captured, kill: Deferred.makeUnsafe(), end: undefined, release: Effect.void }
      processes.set(pid, process)
      alive.set(pid, command)
      return Effect.map(body(process), (exitcode): End => ({ exitcode })).pipe(
        Effect.raceFirst(
          Effect.map(Deferred.await(process.kill), (signal): End => ({ signal: Signal.toNumber(signal) }))
        ),
        Effect.flatMap((end) => {
          process.end = end
          alive.delete(pid)
          return process.release
        }),
        Effect.forkIn(scope, { startImmediately: true }),
        Effect.as(pid)
      )
    })

  const capture = (process: Process): Invocation["write"] => (stream, data) =>
    Effect.sync(() => {
      const kept = process.captured?.[stream]
      if (kept === undefined) return
      const room = GuestAgentSchema.maxCapturedBytes - kept.bytes.length
      const bytes = bytesOf(data)
      if (bytes.length > room) kept.truncated = true
      kept.bytes = concat(kept.bytes, bytes.subarray(0, room))
    })

  const signal = (pid: number, name: string): number => {
    const process = processes.get(pid)
    const found = Signal.fromString(name)
    if (process === undefined || process.end !== undefined || found === undefined) return 1
    Deferred.doneUnsafe(process.kill, Effect.succeed(found))
    return 0
  }
  const shell = programs.get("sh") ??
    (({ write }) =>
      Effect.as(write("stderr", "sh: this guest runs no scripts: give FakeGuestAgent a program \"sh\"\n"), 2))

  const lookUp = (command: string, args: ReadonlyArray<string>): Program | "not executable" | undefined => {
    const name = command.slice(command.lastIndexOf("/") + 1)
    if (name !== "sh") return programs.get(name)
    // As the agent is asked to kill: `sh -c 'kill -s "$0" -- "-$1"…' KILL 101`.
    const [, script = "", toSend = "", pid] = args
    return script.startsWith("kill -s \"$0\" ") ? () => Effect.sync(() => signal(Number(pid), toSend)) : shell
  }

  /** `microvm-exec [-C DIR] SLOT NONCE -- COMMAND [ARGUMENT…]` */
  const onPorts = Effect.fnUntraced(function*(process: Process, argv: ReadonlyArray<string>, env: Invocation["env"]) {
    const fail = (code: number, text: string) => Effect.as(capture(process)("stderr", `microvm-exec: ${text}\n`), code)
    const [cwd, rest] = argv[0] === "-C" ? [argv[1] ?? "", argv.slice(2)] : ["/", argv]
    const [slotText, nonce = "", dashes, command, ...args] = rest
    const slot = Number(slotText)
    if (dashes !== "--" || command === undefined || !/^[0-9a-f]{32}$/.test(nonce)) return yield* fail(125, "usage: …")
    if (!directories.has(cwd)) return yield* fail(126, `cannot work in ${cwd}`)
    if (busy.has(slot)) return yield* fail(125, `slot ${slot} is in use`)
    const names = GuestStdio.portNames(slot)
    const opened = yield* Effect.option(Effect.all({
      stdin: port(names.stdin),
      stdout: port(names.stdout),
      stderr: port(names.stderr)
    }))
    if (opened._tag === "None") return yield* fail(125, `there is no virtio port ${names.stdin}`)
    const { stdin, stdout, stderr } = opened.value
    busy.add(slot)
    yield* stdout.write(GuestStdio.ready(nonce))
    const input = readInput(stdin, nonce)
    let holders = 1
    const letGo = Effect.suspend(() => {
      if (--holders > 0) return Effect.void
      const trailer = GuestStdio.trailer(nonce)
      return Effect.andThen(stdout.write(trailer), stderr.write(trailer)).pipe(
        // Who brings the input lives until there is none, or until it finds out that nobody reads.
        Effect.andThen(Effect.ignore(input)),
        Effect.andThen(Effect.sync(() => busy.delete(slot))),
        Effect.forkIn(scope, { startImmediately: true })
      )
    })
    const write: Invocation["write"] = (stream, data) => (stream === "stdout" ? stdout : stderr).write(bytesOf(data))
    const program = lookUp(command, args)
    const running = program === undefined
      ? Effect.as(write("stderr", `${command}: not found\n`), 127)
      : program === "not executable"
      ? Effect.as(write("stderr", `${command}: Permission denied\n`), 126)
      : program({
        command,
        args,
        env,
        cwd,
        stdin: Stream.fromPull(Effect.succeed(input)),
        write,
        leaveBehind: (effect) =>
          Effect.suspend(() => {
            holders++
            return Effect.asVoid(Effect.forkIn(Effect.ensuring(effect, letGo), scope, { startImmediately: true }))
          })
      })
    process.release = letGo
    return yield* running
  })

  const exec = (
    { arg = [], "capture-output": captures, env = [], "input-data": input, path }:
      typeof GuestAgentSchema.guestExec.arguments.Type
  ): Effect.Effect<Answer> => {
    const environment = Object.fromEntries(env.map((entry) => {
      const at = entry.indexOf("=")
      return [entry.slice(0, at), entry.slice(at + 1)]
    }))
    const captured = captures === true
      ? {
        stdout: { bytes: new Uint8Array(0), truncated: false },
        stderr: { bytes: new Uint8Array(0), truncated: false }
      }
      : undefined
    const started = (pid: number): Answer => ({ return: { pid } })
    if (path === GuestStdio.program) {
      const command = arg.slice(arg.indexOf("--") + 1).join(" ")
      return Effect.map(spawn(command, captured, (process) => onPorts(process, arg, environment)), started)
    }
    const program = lookUp(path, arg)
    if (program === undefined || program === "not executable") {
      const why = program === undefined ? "No such file or directory" : "Permission denied"
      return Effect.succeed(
        refuse(`Guest agent command failed, error was 'Failed to execute child process “${path}” (${why})'`)
      )
    }
    const stdin = input === undefined
      ? Stream.empty
      : Stream.fromEffect(Effect.fromResult(Base64.decode(input)).pipe(Effect.orDie))
    return Effect.map(
      spawn([path, ...arg].join(" "), captured, (process) =>
        program({
          command: path,
          args: arg,
          env: environment,
          cwd: "/",
          stdin,
          write: capture(process),
          leaveBehind: (effect) => Effect.asVoid(Effect.forkIn(effect, scope, { startImmediately: true }))
        })),
      started
    )
  }

  /** wait4(2) with WNOHANG: the pid of one that has ended with its status, 0 for one that runs. */
  const waitFor = (pid: number): FakeResident.Waited => {
    const process = processes.get(pid)
    if (process === undefined) return { result: -10 }
    const { captured, end } = process
    if (end === undefined) return { result: 0 }
    processes.delete(pid)
    return {
      result: pid,
      status: "exitcode" in end ? end.exitcode << 8 : end.signal,
      words: captured?.stderr.bytes ?? new Uint8Array(0)
    }
  }

  const execStatus = (pid: number): Answer => {
    const process = processes.get(pid)
    if (process === undefined) return noProcess
    if (process.end === undefined) return { return: { exited: false } }
    processes.delete(pid)
    const { captured } = process
    return {
      return: {
        exited: true,
        ...process.end,
        ...(captured === undefined || captured.stdout.bytes.length === 0 ? {} : {
          "out-data": Base64.encode(captured.stdout.bytes),
          "out-truncated": captured.stdout.truncated
        }),
        ...(captured === undefined || captured.stderr.bytes.length === 0 ? {} : {
          "err-data": Base64.encode(captured.stderr.bytes),
          "err-truncated": captured.stderr.truncated
        })
      }
    }
  }

  return {
    exec,
    execStatus,
    waitFor,
    /** proc_pid_stat(5), as much of it as is needed. */
    procFile: (path: string): Uint8Array | undefined => {
      const pid = Number(/^\/proc\/(\d+)\/stat$/.exec(path)?.[1])
      const command = alive.get(pid)
      return command === undefined ? undefined : bytesOf(`${pid} (${command.slice(0, 15)}) S 1 ${pid} ${pid} 0\n`)
    },
    running: Effect.sync(() =>
      Array.from(processes).flatMap(([pid, { command, end }]) => end === undefined ? [{ pid, command }] : [])
    ),
    /** Whoever waited for them is another one now. */
    forget: () => {
      processes = new Map()
    }
  }
})
