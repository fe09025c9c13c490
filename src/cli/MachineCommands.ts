/**
 * `microvm ps`, `logs`, `wait`, `stop`, `exec` and `rm`: machines of other runs of this user, in the background or not.
 *
 * What a run is and was is read from its directory; what goes on in its machine is asked of its supervisor.
 *
 * @since 0.1.0
 */
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Clock from "effect/Clock"
import type * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as PlatformError from "effect/PlatformError"
import * as Record from "effect/Record"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as DurationText from "../lifecycle/DurationText.ts"
import * as ExitCode from "../lifecycle/ExitCode.ts"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import { RunReport } from "../lifecycle/RunReport.ts"
import * as ShutdownOutcome from "../lifecycle/ShutdownOutcome.ts"
import * as Backend from "./Backend.ts"
import { Control, type ControlError } from "./Control.ts"
import { HostSignals } from "./HostSignals.ts"
import {
  commandArgument,
  commandFaults,
  envFlag,
  fillEnv,
  readEnv,
  workdirFaults,
  workdirFlag
} from "./internal/commandFlags.ts"
import { exitWith, jsonFlag, print, printJson, untilSignal } from "./internal/handlers.ts"
import { ago, table } from "./internal/tables.ts"
import { tell as tellReport } from "./internal/tellReport.ts"
import { reset, toTerminal } from "./internal/terminalText.ts"
import { Reporter, say } from "./Reporter.ts"
import * as Run from "./Run.ts"
import * as RunDirectory from "./RunDirectory.ts"
import * as RunLog from "./RunLog.ts"

/** How often is it looked whether a run is over. */
const pollEvery = Duration.millis(200)
/** How long a run may take from the end of its machine to its own. */
const concludeWithin = Duration.seconds(10)

const describe = (exitCodes: ReadonlyArray<string>, ...lines: ReadonlyArray<string>) =>
  Command.withDescription([...lines, "", "Exits with", "", ...exitCodes].join("\n  "))

const exitCodes = [
  "    0  it is done",
  "    1  there is no such machine, or it is not in a state for that",
  "   64  bad command line",
  "  125  the runtime failed"
]

type Fault = RunDirectory.RunDirectoryError | ControlError | Config.ConfigError | PlatformError.PlatformError

/** A fault of what was named is no fault of ours. */
const codeOf = (error: Fault): number => {
  if (error instanceof PlatformError.PlatformError) return ExitCode.fromRun(Run.toEnd(error))
  if (error._tag === "ConfigError") return ExitCode.run.usage
  switch (error.reason._tag) {
    case "NoSuchRun":
    case "NoSuchMachine":
    case "AmbiguousId":
    case "StillUp":
    case "LeftBehind":
    case "IsOver":
      return 1
    case "Refused":
      return error.reason.reason === "Failed" ? ExitCode.run.runtimeFailed : 1
    default:
      return ExitCode.run.runtimeFailed
  }
}

const tell = (error: Fault) => {
  if (!(error instanceof PlatformError.PlatformError)) return Reporter.use(({ line }) => line(Backend.explain(error)))
  const end = Run.toEnd(error)
  // Whoever has closed the pipe wants no more.
  return "message" in end ? Reporter.use(({ line }) => line(end.message)) : Effect.void
}

const fail = (error: Fault) => Effect.andThen(tell(error), exitWith(codeOf(error)))

const usage = (faults: ReadonlyArray<string>) =>
  Effect.andThen(
    Reporter.use(({ line }) => Effect.forEach(faults, line, { discard: true })),
    exitWith(ExitCode.run.usage)
  )

const find = (given: string) => Effect.flatMap(RunDirectory.stateDirectory, (state) => RunDirectory.find(state, given))

/** A run whose machine can be asked for something. */
const findUp = Effect.fnUntraced(function*(given: string) {
  const run = yield* find(given)
  if (run.state === "left behind") return yield* RunDirectory.fail(new RunDirectory.LeftBehind({ id: run.id }))
  const exitCode = RunDirectory.exitCodeOf(run)
  if (exitCode !== undefined) return yield* RunDirectory.fail(new RunDirectory.IsOver({ id: run.id, exitCode }))
  return run
})

/** Waits until the run of this whole id is over. Fails with `LeftBehind` when nobody is there to bring it to its end. */
const untilOver = Effect.fnUntraced(function*(id: string) {
  const state = yield* RunDirectory.stateDirectory
  while (true) {
    const run = yield* RunDirectory.find(state, id, { whole: true })
    if (run.state === "over" || run.report !== undefined) return run
    if (run.state === "left behind") return yield* RunDirectory.fail(new RunDirectory.LeftBehind({ id }))
    yield* Effect.sleep(pollEvery)
  }
})

const one = Argument.String("id").pipe(
  Argument.withDescription("The machine: what microvm run was given by --name, or the first letters of it")
)
const several = one.pipe(Argument.atLeast(1))

/** Does it for each, also after one of them has failed; the highest code counts. */
const forEach = Effect.fnUntraced(function*<E extends Fault, R>(
  all: ReadonlyArray<string>,
  act: (id: string) => Effect.Effect<number, E, R>
) {
  const codes = yield* Effect.forEach(
    Array.from(new Set(all)),
    (id) => Effect.catch(act(id), (error) => Effect.as(tell(error), codeOf(error))),
    { concurrency: 16 }
  )
  yield* exitWith(Math.max(0, ...codes))
})

/**
 * A line of `microvm ps`, as `--json` prints it. `exitCode` is there when it is over, and `address` when it has one. Times are
 * in ISO 8601, UTC.
 *
 * @category models
 * @since 0.1.0
 */
export const Listed = Schema.Struct({
  id: Schema.String,
  state: Schema.Literals(["up", "over", "left behind"]),
  backend: Schema.String,
  image: Schema.String,
  vcpus: Schema.Int,
  memoryMib: Schema.Int,
  address: Schema.optionalKey(Schema.String),
  startedAt: Schema.String,
  endedAt: Schema.optionalKey(Schema.String),
  command: Schema.Array(Schema.String),
  exitCode: Schema.optionalKey(Schema.Int)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Listed = typeof Listed.Type

/**
 * What is listed of a run.
 *
 * @category conversions
 * @since 0.1.0
 */
export const toListed = (run: RunDirectory.Run): Listed => {
  const { endedAt, id, info, record, state } = run
  const exitCode = RunDirectory.exitCodeOf(run)
  const address = record?.labels["address"]
  return {
    id,
    state,
    backend: info.backend,
    image: info.image,
    vcpus: info.vcpus,
    memoryMib: info.memoryMib,
    ...(address === undefined ? {} : { address }),
    startedAt: info.startedAt,
    ...(endedAt === undefined ? {} : { endedAt: new Date(endedAt).toISOString() }),
    command: info.command,
    ...(exitCode === undefined ? {} : { exitCode })
  }
}

const widest = 40

/** A command may be of any length. */
const shown = (command: ReadonlyArray<string>): string => {
  const text = JSON.stringify(command.join(" ")).slice(1, -1)
  return text.length > widest ? `${text.slice(0, widest - 1)}…` : text
}

const stateText = ({ exitCode, state }: Listed): string => {
  switch (state) {
    case "up":
      return "up"
    case "over":
      return `over, exit code ${exitCode ?? ExitCode.run.runtimeFailed}`
    case "left behind":
      return "left behind: microvm recover"
  }
}

/**
 * The table of `microvm ps`.
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = (listed: ReadonlyArray<Listed>, now: number): string =>
  table(
    ["ID", "STATE", "BACKEND", "IMAGE", "CPUS", "MEMORY", "ADDRESS", "STARTED", "COMMAND"],
    listed.map((run) => [
      run.id,
      stateText(run),
      run.backend,
      run.image,
      String(run.vcpus),
      `${run.memoryMib} MiB`,
      run.address ?? "",
      ago(now, Date.parse(run.startedAt)),
      shown(run.command)
    ])
  )

const ps = Command.make(
  "ps",
  {
    all: Flag.Boolean("all").pipe(
      Flag.withAlias("a"),
      Flag.withDefault(false),
      Flag.withDescription("Those that are over, too, as long as they are kept: the newest 64 of the last 24 hours")
    ),
    quiet: Flag.Boolean("quiet").pipe(
      Flag.withAlias("q"),
      Flag.withDefault(false),
      Flag.withDescription("Only their ids, each on a line")
    ),
    json: jsonFlag
  },
  Effect.fnUntraced(function*({ all, json, quiet }) {
    if (json && quiet) return yield* usage(["--json and --quiet exclude each other: leave one of them out"])
    yield* Effect.gen(function*() {
      const runs = yield* RunDirectory.all(yield* RunDirectory.stateDirectory)
      const listed = runs.map(toListed).filter(({ state }) => all || state !== "over")
      if (quiet) return yield* Effect.forEach(listed, ({ id }) => print(id), { discard: true })
      const encode = Schema.encodeEffect(Schema.Array(Listed))
      yield* json
        ? printJson(yield* Effect.orDie(encode(listed)))
        : print(format(listed, yield* Clock.currentTimeMillis))
    }).pipe(Effect.catch(fail), untilSignal)
  })
).pipe(
  describe(
    exitCodes.filter((line) => !/^ +1 /.test(line)),
    "List the machines that are up, the one started first first."
  ),
  Command.withShortDescription("List machines")
)

const logs = Command.make(
  "logs",
  {
    follow: Flag.Boolean("follow").pipe(
      Flag.withAlias("f"),
      Flag.withDefault(false),
      Flag.withDescription("Go on with what comes, until the run is over")
    ),
    console: Flag.Boolean("console").pipe(
      Flag.withDefault(false),
      Flag.withDescription("What the machine's console has said, in place of the command")
    ),
    tail: Flag.Int("tail").pipe(
      Flag.withMetavar("N"),
      Flag.optional,
      Flag.withDescription("Only the last N lines of what is there")
    ),
    id: one
  },
  Effect.fnUntraced(function*({ console, follow, id: given, tail }) {
    const reporter = yield* Reporter
    const lines = Option.getOrUndefined(tail)
    if (lines !== undefined && lines < 0) return yield* usage([`--tail ${lines} is not possible: give 0 or more`])
    yield* Effect.gen(function*() {
      const state = yield* RunDirectory.stateDirectory
      const { id, info, paths } = yield* RunDirectory.find(state, given)
      if (!info.detached) yield* reporter.line(`machine ${id} is not in the background: what it writes is not kept`)
      const stdio = yield* Stdio.Stdio
      const again = RunDirectory.find(state, id, { whole: true })
      const isUp = Effect.map(again, (run) => run.state === "up")
      const services = yield* Effect.context<Effect.Services<typeof isUp>>()
      const isTerminal = yield* stdio.stdoutIsTerminal
      const written = RunLog.read({ directory: paths.directory, name: console ? "console" : "output" }, {
        lines,
        // One that was removed meanwhile is over.
        until: follow
          ? isUp.pipe(
            Effect.orElseSucceed(() => false),
            Effect.map((up) => !up),
            Effect.provideContext(services)
          )
          : undefined,
        onDropped: (bytes) => reporter.line(`${bytes} bytes that came before are not kept any more`)
      })
      yield* isTerminal
        ? Effect.onInterrupt(Stream.run(toTerminal(written), stdio.stdout()), () => say(stdio.stdout(), reset))
        : Stream.run(written, stdio.stdout())
      const run = yield* Effect.option(again)
      if (follow && Option.isSome(run) && run.value.state === "left behind" && run.value.report === undefined) {
        return yield* RunDirectory.fail(new RunDirectory.LeftBehind({ id }))
      }
    }).pipe(Effect.catch(fail), untilSignal)
  })
).pipe(
  describe(
    exitCodes,
    "Print what a machine's command has written to stdout and stderr, as it came. Of each log, the last 8 to 16 MiB are kept,",
    "also for a while after the end. A terminal is shown text and colours, with other control characters as escapes; a file or a pipe",
    "gets every byte."
  ),
  Command.withShortDescription("Print what a command has written")
)

const wait = Command.make(
  "wait",
  { json: jsonFlag, ids: several },
  Effect.fnUntraced(function*({ ids, json }) {
    yield* Effect.gen(function*() {
      const reporter = yield* Reporter
      // All are there, or none is waited for.
      const found = yield* Effect.forEach(ids, find)
      let code = 0
      for (const run of yield* Effect.forEach(found, ({ id }) => untilOver(id), { concurrency: "unbounded" })) {
        code = RunDirectory.exitCodeOf(run) ?? ExitCode.run.runtimeFailed
        const { id, report } = run
        // Nobody has heard it from the run itself.
        for (const text of report === undefined || json ? [] : tellReport(report)) {
          yield* reporter.line(`${id}: ${text}`)
        }
        yield* !json
          ? print(String(code))
          : printJson(
            report === undefined ? { id, exitCode: code } : yield* Effect.orDie(Schema.encodeEffect(RunReport)(report))
          )
      }
      yield* exitWith(code)
    }).pipe(Effect.catch(fail), untilSignal)
  })
).pipe(
  describe(
    [
      "    n  the exit code of the last machine's run, as microvm run has it",
      ...exitCodes.slice(1)
    ],
    "Wait until machines are over, and print the exit code of each, or its report."
  ),
  Command.withShortDescription("Wait for the end of machines")
)

const stop = Command.make(
  "stop",
  {
    grace: Flag.String("grace").pipe(
      Flag.withMetavar("DURATION"),
      Flag.optional,
      Flag.withDescription("How long the guest may take before it is forced; by default what its run was given")
    ),
    force: Flag.Boolean("force").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Do not ask the guest: end its machine at once")
    ),
    ids: several
  },
  Effect.fnUntraced(function*({ force, grace: text, ids }) {
    const grace = Option.flatMap(text, DurationText.parse)
    if (Option.isSome(text) && Option.isNone(grace)) {
      return yield* usage([`--grace ${JSON.stringify(text.value)} is no duration: write 500ms, 30s, 5m or 2h`])
    }
    if (Option.isSome(text) && force) {
      return yield* usage(["--grace and --force exclude each other: leave one of them out"])
    }
    const control = yield* Control
    const reporter = yield* Reporter
    const stopOne = Effect.fnUntraced(function*(given: string) {
      const { id, state } = yield* find(given)
      // To end what has ended is done.
      if (state === "over") return 0
      if (state === "left behind") return yield* RunDirectory.fail(new RunDirectory.LeftBehind({ id }))
      const request = { _tag: "Stop", force, ...(Option.isSome(grace) ? { grace: grace.value } : {}) } as const
      // What it has said is whole then, and it can be removed.
      const over = Effect.timeoutOption(untilOver(id), concludeWithin)
      const outcome = yield* control.ask(id, request).pipe(
        Effect.matchEffect({
          onSuccess: (answer) => Effect.as(over, answer.outcome),
          // One that does not listen any more may be coming to its end by itself.
          onFailure: (error) =>
            error.reason._tag === "Gone" || error.reason._tag === "NoSuchMachine"
              ? Effect.flatMap(over, (run) => Option.isSome(run) ? Effect.undefined : Effect.fail(error))
              : Effect.fail(error)
        })
      )
      if (outcome !== undefined && !ShutdownOutcome.isComplete(outcome)) {
        yield* reporter.line(`machine ${id} could not be ended: ${ShutdownOutcome.format(outcome)}`)
        return ExitCode.run.runtimeFailed
      }
      yield* print(id)
      return 0
    })
    yield* forEach(ids, stopOne).pipe(untilSignal)
  })
).pipe(
  describe(exitCodes, "End machines in order, and wait until they have ended."),
  Command.withShortDescription("End machines")
)

const exec = Command.make(
  "exec",
  {
    env: envFlag,
    workdir: workdirFlag,
    id: one,
    command: commandArgument
  },
  Effect.fnUntraced(function*({ command: words, env: pairs, id: given, workdir }) {
    const { env, faults } = readEnv(yield* fillEnv(pairs))
    const [command = "", ...args] = words
    const more = [...commandFaults(words, "microvm exec ID -- uname -a"), ...workdirFaults(workdir)]
    if (faults.length + more.length > 0) return yield* usage([...faults, ...more])
    const control = yield* Control
    const reporter = yield* Reporter
    const signals = yield* HostSignals
    const stdio = yield* Stdio.Stdio
    yield* Effect.gen(function*() {
      const { id } = yield* findUp(given)
      const status = yield* control.exec(id, {
        _tag: "Exec",
        command,
        args,
        env: Record.map(env, (value) => Redacted.make(value)),
        ...(Option.isNone(workdir) ? {} : { cwd: workdir.value })
      }, {
        stdin: stdio.stdin,
        stdout: reporter.beside("stdout")(stdio.stdout()),
        stderr: reporter.beside("stderr")(stdio.stderr()),
        signals: Stream.fromEffectRepeat(signals.next)
      })
      if (status._tag !== "Exited") yield* reporter.line(`the command was ${ExitStatus.format(status)}`)
      yield* exitWith(ExitStatus.toCode(status))
    }).pipe(Effect.catch(fail))
  })
).pipe(
  describe(
    [
      "    n  the command's exit code",
      "    1  there is no such machine, or it is not up",
      "   64  bad command line",
      "  125  the runtime failed, or the machine ended before the command",
      "  126  the command could not be executed",
      "  127  the command was not found",
      "  128+n  the command was killed by signal n"
    ],
    "Run another command in a machine. Its stdin, stdout and stderr are ours, and so are the signals that end it: they are passed",
    "on to it. When this microvm is killed, so is the command."
  ),
  Command.withShortDescription("Run another command in a machine"),
  Command.withExamples([{ command: "microvm exec dev -- ps", description: "See what runs in machine dev" }])
)

const rm = Command.make(
  "rm",
  { ids: several },
  Effect.fnUntraced(function*({ ids }) {
    const removeOne = Effect.fnUntraced(function*(given: string) {
      const { id } = yield* find(given)
      yield* RunDirectory.remove(yield* RunDirectory.stateDirectory, id)
      return 0
    })
    yield* forEach(ids, removeOne).pipe(untilSignal)
  })
).pipe(
  describe(exitCodes, "Forget machines that are over, with what they have written."),
  Command.withShortDescription("Forget machines that are over")
)

/**
 * All of them.
 *
 * @category commands
 * @since 0.1.0
 */
export const subcommands = [ps, logs, wait, stop, exec, rm] as const
