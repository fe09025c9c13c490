/**
 * `microvm recover`: what becomes of the machines whose supervisor is gone.
 *
 * @since 0.1.0
 */
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Clock from "effect/Clock"
import type * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Semaphore from "effect/Semaphore"
import { JournalError } from "../journal/JournalError.ts"
import * as Reconcile from "../journal/Reconcile.ts"
import * as ExitCode from "../lifecycle/ExitCode.ts"
import * as Supervisor from "../supervisor/Supervisor.ts"
import * as GoldenMachines from "../warm/GoldenMachines.ts"
import * as Backend from "./Backend.ts"
import { exitWith, jsonFlag, print, printJson, untilSignal } from "./internal/handlers.ts"
import { noBackend } from "./internal/noBackend.ts"
import { Detach } from "./NodeDetach.ts"
import { Reporter } from "./Reporter.ts"
import * as Run from "./Run.ts"
import * as RunDirectory from "./RunDirectory.ts"
import { RunHost } from "./RunHost.ts"
import type { RunOptions } from "./RunOptions.ts"

const toChoice = (backend: string): Backend.Choice => Backend.choices.find((choice) => choice === backend) ?? "auto"

const describe = ({ action, end, id, released, why }: Supervisor.Recovered, dryRun: boolean): string => {
  const would = dryRun ? "would be " : ""
  const head = `${id}: ${would}${action.toLowerCase()}, ${why}${end === undefined ? "" : ` (${end})`}`
  if (released === undefined || released.claims.length === 0) return head
  // Its first line says what the head says.
  return [head, ...Reconcile.format([released], { dryRun }).split("\n").slice(1)].join("\n")
}

/** A fault of what was named is no fault of ours. */
const codeOf = (error: Config.ConfigError | RunDirectory.RunDirectoryError): number => {
  if (error._tag === "ConfigError") return ExitCode.run.usage
  const { _tag } = error.reason
  return _tag === "NoSuchRun" || _tag === "AmbiguousId" ? 1 : ExitCode.run.runtimeFailed
}

/** Only who goes on with it asks its guest. */
const unasked = (one: Supervisor.Recovered): Supervisor.Recovered =>
  one.action === "Adopted" ? { ...one, why: `${one.why}, and would be left as it is if its guest did not` } : one

/** We are no supervisor that stays. */
const unwatched = (one: Supervisor.Recovered): Supervisor.Recovered =>
  one.action === "Adopted"
    ? { ...one, action: "Left", why: `${one.why}, but the process that was to go on with it has ended` }
    : one

/** Each is a process, which takes a core to come up. */
const mostResumed = 16

/** Each has its own files and sockets, but what is removed at the same time is removed by few commands. */
const mostRecovered = 64

const given = (run: RunDirectory.Run, error: unknown): ReadonlyArray<Supervisor.Recovered> => [
  error instanceof JournalError && error.reason._tag === "LeaseHeld"
    ? { id: run.id, action: "Kept", why: "another process sees to it" }
    : { id: run.id, action: "Left", why: Backend.explain(error) }
]

/** Sees to one run: a supervisor in the background for a machine that lives, and an end to all else. */
const recoverOne = Effect.fnUntraced(function*(
  run: RunDirectory.Run,
  options: Supervisor.RecoverOptions,
  resuming: Semaphore.Semaphore
) {
  const { recover } = yield* RunHost
  const detach = yield* Detach
  const { dryRun = false } = options
  // One that has its report has ended, whatever is left of it.
  const mode = run.report === undefined ? options.mode ?? "adopt" : "kill"
  const mayGoOn = mode === "adopt" && !dryRun && run.record?.keep === true
  if (mayGoOn) {
    const started = yield* resuming.withPermit(detach.resume(run.id))
    if (started._tag === "Ready") {
      const adopted: Supervisor.Recovered = {
        id: run.id,
        action: "Adopted",
        why: "its machine answers, and has a supervisor again"
      }
      return [adopted]
    }
    if (started.recovered !== undefined) return [started.recovered]
    // It came to nothing, so what is left is seen to here.
  }
  const recovered = yield* recover(run.id, { dryRun, mode })
  if (recovered.length > 0) return mode === "adopt" ? recovered.map(dryRun ? unasked : unwatched) : recovered
  if (!mayGoOn) {
    // Its guard, or another one, may have been quicker.
    const state = yield* RunDirectory.stateDirectory
    const now = yield* Effect.option(RunDirectory.find(state, run.id, { whole: true }))
    if (Option.isNone(now) || now.value.state !== "left behind") {
      const kept: Supervisor.Recovered = { id: run.id, action: "Kept", why: "another process has seen to it" }
      return [kept]
    }
  }
  const found: Supervisor.Recovered = mayGoOn
    ? { id: run.id, action: "Reclaimed", why: "nobody could go on with its machine" }
    : {
      id: run.id,
      action: "Left",
      why: `nothing is written of its machine, but something of it is left: see ${run.paths.journal}`
    }
  return [found]
})

/** All at once, each by its backend, which is looked for once. The answers are in the order of the runs. */
const recoverAll = Effect.fnUntraced(function*(
  runs: ReadonlyArray<RunDirectory.Run>,
  options: Supervisor.RecoverOptions
) {
  const resuming = Semaphore.makeUnsafe(mostResumed)
  const groups = Map.groupBy(runs, ({ info }) => toChoice(info.backend))
  const answers = yield* Effect.forEach(groups, ([backend, group]) =>
    Effect.forEach(
      group,
      (run) =>
        recoverOne(run, options, resuming).pipe(
          Effect.catch((error) => Effect.succeed(given(run, error))),
          Effect.map((recovered) => [run, recovered] as const)
        ),
      { concurrency: mostRecovered }
    ).pipe(
      Effect.provide(Layer.catch(Backend.layer(backend), noBackend)),
      Effect.catch((error) => Effect.succeed(group.map((run) => [run, given(run, error)] as const)))
    ), { concurrency: "unbounded" })
  const byRun = new Map(answers.flat())
  return runs.flatMap((run) => byRun.get(run) ?? [])
})

const Report = Schema.Array(Supervisor.Recovered)

const recover = Command.make(
  "recover",
  {
    adopt: Flag.Boolean("adopt").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Get hold of the machines that live and are meant to go on; this is the default")
    ),
    kill: Flag.Boolean("kill").pipe(Flag.withDefault(false), Flag.withDescription("End those, too")),
    dryRun: Flag.Boolean("dry-run").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Print what would be done, and do nothing")
    ),
    json: jsonFlag,
    ids: Argument.String("id").pipe(Argument.variadic(), Argument.withDescription("Runs; by default all"))
  },
  Effect.fnUntraced(function*({ adopt, dryRun, ids, json, kill }) {
    const reporter = yield* Reporter
    if (adopt && kill) {
      yield* reporter.line("--adopt and --kill exclude each other: leave one of them out")
      return yield* exitWith(ExitCode.run.usage)
    }
    yield* Effect.gen(function*() {
      const state = yield* RunDirectory.stateDirectory
      const wanted = ids.length === 0
        ? yield* RunDirectory.all(state)
        : yield* Effect.forEach(ids, (id) => RunDirectory.find(state, id))
      const left = wanted.filter((run) => run.state === "left behind")
      const recovered = yield* recoverAll(left, { dryRun, mode: kill ? "kill" : "adopt" })
      if (json) yield* printJson(yield* Effect.orDie(Schema.encodeEffect(Report)(recovered)))
      else if (recovered.length === 0) yield* reporter.line("nothing was left behind")
      else yield* print(recovered.map((one) => describe(one, dryRun)).join("\n"))
      yield* exitWith(recovered.some(({ action }) => action === "Left") ? 1 : 0)
    }).pipe(
      Effect.catch((error) => Effect.andThen(reporter.line(Backend.explain(error)), exitWith(codeOf(error)))),
      untilSignal
    )
  })
).pipe(
  Command.withDescription(
    [
      "See to the machines whose supervisor was killed: those of `run --detach` that live get another one, in the background; of",
      "all others, what they have left on this host is removed. What is not ours is never touched. Exits with",
      "",
      "    0  nothing is left",
      "    1  something could not be removed, and is told",
      "   64  bad command line",
      "  125  the runtime failed, as the state directory cannot be used"
    ].join("\n  ")
  ),
  Command.withShortDescription("See to what killed runs have left")
)

/** What is known of a run that another process has begun; its environment was for the start of its command alone. */
const toOptions = ({ info }: RunDirectory.Run, now: number): RunOptions => {
  const ranFor = Duration.millis(Math.max(0, now - Date.parse(info.startedAt)))
  const [program = "", ...args] = info.command
  return {
    backend: toChoice(info.backend),
    name: Option.some(info.id),
    vcpus: info.vcpus,
    memoryMib: info.memoryMib,
    image: info.image,
    start: "cold",
    env: {},
    workdir: Option.none(),
    network: { _tag: "None" },
    detach: true,
    // What is left of it; nobody knows more exactly when the command had started.
    timeout: info.timeout === undefined
      ? Option.none()
      : Option.some(Duration.max(Duration.subtract(info.timeout, ranFor), Duration.millis(1))),
    grace: info.grace,
    watchdog: Option.fromUndefinedOr(info.watchdog),
    command: [program, ...args]
  }
}

/** Started by `recover`, in the background. */
const resume = Command.make(
  "resume",
  { id: Argument.String("id").pipe(Argument.withDescription("The run")) },
  Effect.fnUntraced(function*({ id }) {
    const detach = yield* Detach
    const reporter = yield* Reporter
    let recovered: Supervisor.Recovered | undefined
    const code = yield* Effect.gen(function*() {
      const run = yield* RunDirectory.find(yield* RunDirectory.stateDirectory, id, { whole: true })
      const options = toOptions(run, yield* Clock.currentTimeMillis)
      const services = yield* Layer.build(Layer.provideMerge(GoldenMachines.layer, Backend.layer(options.backend)))
      const { exitCode } = yield* Run.run(options, {
        backendDetail: Context.get(services, Backend.BackendDetail),
        json: false,
        resume: (one) => Effect.sync(() => void (recovered = one)),
        onStarted: detach.tell({ _tag: "Ready" })
      }).pipe(Effect.provideContext(services))
      return exitCode
    }).pipe(
      Effect.scoped,
      Effect.catch((error) => Effect.as(reporter.line(Backend.explain(error)), ExitCode.run.runtimeFailed))
    )
    yield* detach.tell({ _tag: "Failed", exitCode: code, ...(recovered === undefined ? {} : { recovered }) })
    yield* exitWith(code)
  })
).pipe(Command.withDescription("Go on with a run that was left behind; `recover` starts this in the background"))

/**
 * @category main
 * @since 0.1.0
 */
export const subcommands = [recover, resume] as const
