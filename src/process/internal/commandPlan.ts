import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import * as ShutdownPolicy from "../../lifecycle/ShutdownPolicy.ts"
import * as Signal from "../../lifecycle/Signal.ts"
import { fromReason, ProcessError, ProcessErrorReason } from "../ProcessError.ts"
import type { LaunchPlan, ProcessHost } from "../ProcessHost.ts"

type Input = Stream.Stream<Uint8Array, unknown>
type Output = Extract<ChildProcess.CommandOutput, Sink.Sink<Uint8Array, Uint8Array, never, unknown>>

/** A command, checked: what the host needs, and what is to be connected to its pipes. */
export interface CommandPlan {
  readonly launch: Omit<LaunchPlan, "cgroup" | "dieWithParent">
  readonly policy: ShutdownPolicy.ShutdownPolicy<Signal.Signal> | undefined
  readonly inputs: ReadonlyMap<number, Input>
  readonly outputs: ReadonlyMap<number, Output>
  readonly endStdin: boolean
}

const nul = "holds a NUL character, which ends a C string: remove it"

const reveal = (word: string | Redacted.Redacted): string => Redacted.isRedacted(word) ? Redacted.value(word) : word

/** Linux names for what POSIX or other systems call otherwise; the rest has no Linux number. */
const aliases: Readonly<Record<string, Signal.Signal>> = { SIGIOT: "SIGABRT", SIGPOLL: "SIGIO" }

const policyOf = (
  killSignal: string | undefined,
  forceKillAfter: Duration.Input | undefined,
  fault: (field: string, why: string) => void
): ShutdownPolicy.ShutdownPolicy<Signal.Signal> | undefined => {
  if (killSignal === undefined && forceKillAfter === undefined) return undefined
  const signal = killSignal === undefined ? "SIGTERM" : aliases[killSignal] ?? Signal.fromString(killSignal)
  if (signal === undefined) {
    fault("killSignal", `${killSignal} is no Linux signal: use one of ${Signal.names.join(", ")}`)
    return undefined
  }
  const kill = { name: "SIGKILL", request: "SIGKILL", grace: "2 seconds", force: true } as const
  const made = ShutdownPolicy.make<Signal.Signal>(
    signal === "SIGKILL" ? [kill] : [{ name: signal, request: signal, grace: forceKillAfter ?? "2 seconds" }, kill]
  )
  if (Result.isSuccess(made)) return made.success
  fault("forceKillAfter", made.failure.faults.join("; "))
  return undefined
}

const stdinOf = (stdin: ChildProcess.CommandOptions["stdin"]): ChildProcess.StdinConfig => {
  if (stdin === undefined) return { stream: "pipe" }
  return typeof stdin === "string" || Stream.isStream(stdin) ? { stream: stdin } : stdin
}

const outputOf = (output: ChildProcess.CommandOptions["stdout"]): ChildProcess.CommandOutput => {
  if (output === undefined) return "pipe"
  return typeof output === "string" || Sink.isSink(output) ? output : output.stream ?? "pipe"
}

const disposition = (stream: ChildProcess.CommandInput | ChildProcess.CommandOutput): LaunchPlan["stdio"][number] =>
  stream === "inherit" || stream === "ignore" ? stream : "pipe"

const highestDescriptor = 255

/** Checks a command and says what it comes to. Every fault is reported, and nothing is made. */
export const make = Effect.fnUntraced(function*(
  host: ProcessHost["Service"],
  command: ChildProcess.StandardCommand
): Effect.fn.Return<CommandPlan, ProcessError> {
  const { options } = command
  const faults: Array<ProcessErrorReason> = []
  const fault = (field: string, why: string): void => {
    faults.push(ProcessErrorReason.InvalidArgument({ field, why }))
  }

  if (command.command === "") fault("command", "is empty: name a program")
  if (command.command.includes("\0")) fault("command", nul)
  const args = command.args.map(reveal)
  args.forEach((arg, index) => {
    if (arg.includes("\0")) fault(`args[${index}]`, nul)
  })
  const shell = options.shell === true ? "/bin/sh" : options.shell === "" ? false : options.shell ?? false
  if (shell !== false && args.length > 0) {
    fault("args", "a shell takes no arguments beside its script: put them into the script, quoted by CommandLine.join")
  }

  const inherited = options.env === undefined || options.extendEnv === true ? yield* host.env : {}
  const env: Record<string, string> = { ...inherited }
  for (const [name, value] of Object.entries(options.env ?? {})) {
    if (name === "" || name.includes("=") || name.includes("\0")) {
      fault(`env[${JSON.stringify(name)}]`, "a name is not empty and has neither = nor NUL: rename it")
    } else if (value === undefined) delete env[name]
    else if (reveal(value).includes("\0")) fault(`env[${JSON.stringify(name)}]`, nul)
    else if (Redacted.isRedacted(value) && !/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) {
      // Such a variable goes by way of a command line, since shells drop it.
      fault(`env[${JSON.stringify(name)}]`, "a secret needs a plain name: use letters, digits and _")
    } else env[name] = reveal(value)
  }
  if (options.cwd?.includes("\0") === true) fault("cwd", nul)
  if (options.cwd === "") fault("cwd", "is empty: leave it out for our own working directory")

  const stdin = stdinOf(options.stdin)
  const stdout = outputOf(options.stdout)
  const stderr = outputOf(options.stderr)
  const stdio = [disposition(stdin.stream), disposition(stdout), disposition(stderr)]
  const inputs = new Map<number, Input>()
  const outputs = new Map<number, Output>()
  if (Stream.isStream(stdin.stream)) inputs.set(0, stdin.stream)
  if (Sink.isSink(stdout)) outputs.set(1, stdout)
  if (Sink.isSink(stderr)) outputs.set(2, stderr)
  for (const [name, config] of Object.entries(options.additionalFds ?? {})) {
    const fd = ChildProcess.parseFdName(name)
    if (fd === undefined || fd > highestDescriptor) {
      fault(`additionalFds.${name}`, `is no name of a descriptor: use fd3 to fd${highestDescriptor}`)
      continue
    }
    while (stdio.length <= fd) stdio.push("ignore")
    stdio[fd] = "pipe"
    if (config.type !== "output" && config.stream !== undefined) inputs.set(fd, config.stream)
    if (config.type !== "input" && config.sink !== undefined) {
      fault(`additionalFds.${name}.sink`, "is not run here: read the descriptor through the handle's channel")
    }
  }
  const policy = policyOf(options.killSignal, options.forceKillAfter, fault)

  // A path that cannot even be named cannot be looked for.
  const isNameable = !faults.some((one) => one._tag === "InvalidArgument" && /^(command|cwd)$/.test(one.field))
  const located = !isNameable ? undefined : yield* host.locate({
    command: shell === false ? command.command : shell,
    path: env["PATH"],
    cwd: options.cwd
  })
  const [reason, ...others] = located === undefined ? faults : [...faults, ...located.faults]
  if (reason !== undefined) return yield* new ProcessError(others.length === 0 ? { reason } : { reason, others })
  return {
    launch: {
      executable: located?.executable ?? command.command,
      args: shell === false ? args : ["-c", command.command],
      env,
      cwd: options.cwd,
      stdio,
      detached: options.detached ?? true
    },
    policy,
    inputs,
    outputs,
    endStdin: stdin.endOnDone ?? true
  }
})

/** How a part of a pipeline is fed by the one before it. */
export const feed = Effect.fnUntraced(function*(
  { from = "stdout", to = "stdin" }: ChildProcess.PipeOptions
): Effect.fn.Return<{ readonly from: "stdout" | "stderr" | "all"; readonly fd: number }, ProcessError> {
  const fd = to === "stdin" ? 0 : ChildProcess.parseFdName(to)
  if (fd === undefined || fd > highestDescriptor) {
    const why = `${to} is no descriptor to write to: use "stdin" or fd3 to fd${highestDescriptor}`
    return yield* fromReason(ProcessErrorReason.InvalidArgument({ field: "pipeTo.to", why }))
  }
  if (from !== "stdout" && from !== "stderr" && from !== "all") {
    const why = `${from} cannot be piped on: use "stdout", "stderr" or "all"`
    return yield* fromReason(ProcessErrorReason.InvalidArgument({ field: "pipeTo.from", why }))
  }
  return { from, fd }
})
