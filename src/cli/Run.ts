/**
 * The main path: an image, a machine, its agent, a command, and the way back.
 *
 * ```
 *   image ▸ launch ▸ boot ┐
 *                 restore ┴▸ command ▸ first of {command ends, machine ends, signal, deadline, broken pipe} ▸ stop ▸ report
 * ```
 *
 * It never fails: whatever happens is a `RunReport`, and the exit code follows from it.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import type * as SecureRandom from "effect/crypto/SecureRandom"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as PlatformError from "effect/PlatformError"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as GuestCommand from "../guest/GuestCommand.ts"
import { GuestError } from "../guest/GuestError.ts"
import { ImageError } from "../image/ImageError.ts"
import type { ImageStore } from "../image/ImageStore.ts"
import type { Entry } from "../journal/Journal.ts"
import * as ExitCode from "../lifecycle/ExitCode.ts"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import * as Printable from "../lifecycle/Printable.ts"
import type { MachineStart, Phase, RunEnd, RunReport } from "../lifecycle/RunReport.ts"
import type { ShutdownOutcome } from "../lifecycle/ShutdownOutcome.ts"
import type * as ShutdownPolicy from "../lifecycle/ShutdownPolicy.ts"
import * as Machine from "../microvm/Machine.ts"
import * as MachineEnd from "../microvm/MachineEnd.ts"
import type * as MachineSpec from "../microvm/MachineSpec.ts"
import { MicroVmError } from "../microvm/MicroVmError.ts"
import { type MachineRequest, MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import type { SnapshotStore } from "../microvm/SnapshotStore.ts"
import type * as Supervisor from "../supervisor/Supervisor.ts"
import type { GoldenMachines } from "../warm/GoldenMachines.ts"
import * as WarmMachine from "../warm/WarmMachine.ts"
import * as Backend from "./Backend.ts"
import { Control } from "./Control.ts"
import { HostSignals } from "./HostSignals.ts"
import { launch, remember, rememberVisitor, resume, type Up } from "./internal/comeUp.ts"
import { refused } from "./internal/refused.ts"
import { saveMachine } from "./internal/saveMachine.ts"
import { serveMachine } from "./internal/serveMachine.ts"
import { watchMachine } from "./internal/watchMachine.ts"
import { formatTook, Reporter } from "./Reporter.ts"
import { type Place, RunHost, type RunHostError } from "./RunHost.ts"
import type { RunOptions } from "./RunOptions.ts"

/** How long a reader of ours may take for what came from the guest before its end. */
const lastWordsWithin = Duration.seconds(1)
/** How long saving the machine may take to leave off. */
const leaveOffWithin = Duration.seconds(1)
/** How long a machine may take to say that it has ended, once its channels have. */
const machineEndWithin = Duration.seconds(2)

/**
 * The machine that a run needs. Pure: the same options and image give the same specification.
 *
 * @category conversions
 * @since 0.1.0
 */
export const toSpec = (
  id: string,
  options: RunOptions,
  image: { readonly kernel: string; readonly initramfs: string }
): MachineSpec.MachineSpecOptions => ({
  id,
  vcpus: options.vcpus,
  memoryMib: options.memoryMib,
  kernel: image.kernel,
  initramfs: image.initramfs,
  hostname: id,
  channels: WarmMachine.channels()
})

const letters = "abcdefghijklmnopqrstuvwxyz0123456789"

/**
 * An id for a machine that was given none.
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeId: Effect.Effect<string> = Effect.map(
  Effect.replicateEffect(Random.nextIntBetween(0, letters.length - 1), 12),
  (indices) => `run-${indices.map((index) => letters.charAt(index)).join("")}`
)

/**
 * The end of a run that an error was the end of.
 *
 * @category conversions
 * @since 0.1.0
 */
export const toEnd = (error: unknown): RunEnd => {
  const message = Backend.explain(error)
  if (error instanceof MicroVmError && error.reason._tag === "BackendUnavailable") return { _tag: "NoBackend", message }
  const isUsage = error instanceof MicroVmError && ["InvalidSpec", "SnapshotNotFound"].includes(error.reason._tag) ||
    error instanceof ImageError && error.reason._tag === "UnknownImage" ||
    error instanceof Config.ConfigError
  if (isUsage) return { _tag: "Usage", message }
  return error instanceof PlatformError.PlatformError ? ofStream(error) : { _tag: "Failed", message }
}

const shownLines = 50
const shownWidth = 500

/**
 * A text with the last of a machine's console below it, where the guest's kernel says what is wrong. The guest's lines are indented, and
 * do not steer the terminal.
 *
 * @category conversions
 * @since 0.1.0
 */
export const withConsole = (text: string, consoleTail: string): string => {
  const lines = Printable.lines(consoleTail).trimEnd().split("\n").slice(-shownLines)
  if (lines.join("") === "") return text
  // A guest may write `---`, and whatever is to look as if it came from us.
  const told = lines.map((line) => `  ${line.length > shownWidth ? `${line.slice(0, shownWidth - 1)}…` : line}`)
  return [text, "--- the end of its console ---", ...told, "---"].join("\n")
}

/** The shell's words for a command that cannot be executed, or is not there. */
const notExecuted: ReadonlySet<number> = new Set([126, 127])
/** That a command cannot be executed shows at once. */
const executedWithin = Duration.millis(200)

const whenExecuted = ({ exit }: GuestCommand.GuestCommand, then: Effect.Effect<void>): Effect.Effect<void> =>
  Effect.flatMap(
    Effect.timeoutOption(Effect.result(exit), executedWithin),
    (ended) => {
      const status = Option.flatMap(ended, Result.getSuccess)
      const failed = Option.isSome(ended) && (Option.isNone(status) || notExecuted.has(ExitStatus.toCode(status.value)))
      return failed ? Effect.void : then
    }
  )

/** Our own stdin, stdout and stderr are all that is reached through the platform here. */
const ofStream = ({ message, reason }: PlatformError.PlatformError): RunEnd => {
  const { cause, method } = reason
  const code = typeof cause === "object" && cause !== null && "code" in cause ? String(cause.code) : message
  if (code === "EPIPE") return { _tag: "Interrupted", signal: "SIGPIPE" }
  return { _tag: "Failed", message: `${method} could not be ${method === "stdin" ? "read" : "written"}: ${code}` }
}

/** What it takes to bring a machine up. */
type Needs =
  | Control
  | Reporter
  | GoldenMachines
  | ImageStore
  | MicroVmProvider
  | RunHost
  | SecureRandom.SecureRandom
  | SnapshotStore

const toStart = (start: WarmMachine.Start): MachineStart => {
  const took = Duration.millis(Duration.toMillis(start.took))
  return start._tag === "Restored"
    ? { _tag: "Restored", snapshot: start.snapshot, took }
    : { _tag: "Booted", why: start.why, took }
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Context {
  readonly backendDetail: string
  readonly json: boolean
  /**
   * Goes on with the run that another process has left: with its machine, and with the command that runs there. Where that cannot be,
   * or a signal comes first, a machine that lives stays as it is, the run is not over, and this is told. By default, a run is begun.
   */
  readonly resume?: ((recovered: Supervisor.Recovered) => Effect.Effect<void>) | undefined
  /** Told when the command runs, not when it could not be executed. By default, nobody. */
  readonly onStarted?: Effect.Effect<void> | undefined
  /** Done once the run's place is ours, and undone before it is given up. Until then, the id may be that of somebody else's run. */
  readonly onPlace?: ((id: string) => Effect.Effect<void, never, Scope.Scope>) | undefined
}

/**
 * Runs a command in a fresh machine and ends the machine again.
 *
 * The first signal ends the run in order; each further one goes to the next stage of the shutdown at once. A signal
 * that comes after the command's end, while the machine stops, counts as the end too. Output goes to the `Stdio` service
 * as it comes; with `json` the command's stdout goes to stderr, as stdout is the report's.
 *
 * @category main
 * @since 0.1.0
 */
export const run = Effect.fn("Run.run")(function*(
  options: RunOptions,
  context: Context
): Effect.fn.Return<
  RunReport,
  never,
  HostSignals | Reporter | Scope.Scope | Stdio.Stdio | Needs
> {
  const { backend } = yield* MicroVmProvider
  const reporter = yield* Reporter
  const signals = yield* HostSignals
  const stdio = yield* Stdio.Stdio
  const id = Option.isSome(options.name) ? options.name.value : yield* makeId
  const millis = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1e6)
  const phases: Array<Phase> = []
  let cameUp: MachineStart | undefined
  const phase = (name: string, label?: string) => <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.flatMap(millis, (start) =>
      (label === undefined ? effect : reporter.during(label)(effect)).pipe(
        Effect.ensuring(Effect.map(millis, (end) => void phases.push({ name, took: Duration.millis(end - start) }))),
        Effect.withSpan(`Run.${name}`)
      ))

  // Holds the run's place until all is written down.
  const outer = yield* Effect.scope
  let place: Place | undefined
  const gone = yield* Deferred.make<ShutdownOutcome | undefined>()
  const resumes = context.resume !== undefined
  /** Are the machine and the run ours to end? Those of another, not before its command is ours. */
  let isOurs = !resumes
  let recovered: Supervisor.Recovered | undefined
  /** Nobody goes on with it, and nothing has ended it: then it stays as it is, for whoever comes next. */
  const staysAsItIs = ({ _tag }: RunEnd): boolean =>
    !isOurs && recovered?.released === undefined && _tag !== "MachineEnded" && _tag !== "TimedOut"
  let isLeft = false
  const reportOf = (end: RunEnd, outcome?: ShutdownOutcome): RunReport => ({
    id,
    backend,
    backendDetail: context.backendDetail,
    command: options.command,
    end,
    exitCode: ExitCode.fromRun(end, outcome),
    phases: [...phases],
    ...(cameUp === undefined ? {} : { start: cameUp }),
    ...(outcome === undefined ? {} : { shutdown: outcome })
  })
  /** For the case that we are killed before the machine is gone. */
  const foretell = (end: RunEnd) => place?.conclude(reportOf(end), { stops: true }) ?? Effect.void
  const { end, outcome } = yield* Effect.scoped(Effect.gen(function*() {
    const cut = yield* Deferred.make<RunEnd>()
    let machine: Machine.Machine | undefined
    /** The same, while its guest answers and it does not stop. */
    let up: Up["ready"] | undefined
    let streams: Fiber.Fiber<unknown, unknown> | undefined
    let isStopping = false
    /** Then its guest hears nothing. */
    let isHung = false
    let entry: Entry | undefined
    let stopGrace: Duration.Duration | undefined

    yield* Effect.gen(function*() {
      const signal = yield* signals.next
      yield* Deferred.succeed(cut, { _tag: "Interrupted", signal })
      return yield* Effect.forever(Effect.andThen(
        signals.next,
        Effect.suspend(() =>
          machine === undefined || !isOurs
            ? Effect.void
            : Effect.forkDetach(Effect.ignore(machine.shutdown({ request: { atLeast: "next" } })))
        )
      ))
    }).pipe(Effect.forkScoped({ startImmediately: true }))

    const whole = yield* Effect.scope
    const doors = yield* Scope.fork(whole)
    const control = yield* Control
    const services = yield* Effect.context<SnapshotStore>()
    const { watch, whileSaving } = watchMachine()
    const save = saveMachine(() => up)
    const notHeld = refused("NotReady", "recover has no hold of it yet: try again, or end it by microvm recover --kill")
    const handle = serveMachine({
      look: () => up,
      phase: () => isStopping ? "stopping" : up === undefined ? "starting" : "running",
      save: (request) => whileSaving(save(request)),
      onCommand: (description) =>
        options.detach && entry !== undefined ? rememberVisitor(entry, description) : Effect.void,
      stop: ({ force, grace }) =>
        Effect.gen(function*() {
          // Nobody has hold of it yet: to say that it was stopped would be wrong.
          if (isLeft || (resumes && machine === undefined)) return yield* Effect.fail(notHeld)
          isOurs = true
          stopGrace = grace
          yield* Deferred.succeed(cut, { _tag: "Interrupted", signal: "SIGTERM" })
          if (force && machine !== undefined) {
            yield* Effect.forkDetach(Effect.ignore(machine.shutdown({ request: { atLeast: "SIGKILL" } })))
          }
          return yield* Deferred.await(gone)
        })
    })
    const goesDown = refused("NotReady", "the machine goes down")
    // Only for who has the place: one that is about to be refused is not to be found in place of the one that has it.
    const listen = control.listen(id, (request, visitor) => {
      const answer = Effect.provideContext(handle(request, visitor), services)
      // What needs the guest is left off before it is asked to power off; who waits for that is answered after it.
      return request._tag === "Stop" || request._tag === "Status" ? answer : answer.pipe(
        Effect.forkIn(doors, { startImmediately: true }),
        Effect.flatMap((fiber) => Effect.onInterrupt(Fiber.await(fiber), () => Fiber.interrupt(fiber))),
        Effect.map(Exit.match({ onFailure: () => goesDown, onSuccess: (answered) => answered }))
      )
    }).pipe(
      Effect.catch((error) => reporter.line(`the machine cannot be reached from outside: ${error.message}`)),
      Scope.provide(outer),
      Effect.forkIn(whole, { startImmediately: true })
    )

    const onMachine = (one: Machine.Machine | undefined) =>
      Effect.gen(function*() {
        machine = one
        if (one === undefined) return
        if (place?.logs === undefined) return
        const { catchUp, console } = place.logs
        // It is listened to first, so that nothing is missed. What comes meanwhile may be in the tail, too.
        const early: Array<Uint8Array> = []
        let isBehind = resumes
        const live = Stream.filter(one.console, (bytes) => {
          if (isBehind) early.push(bytes)
          return !isBehind
        })
        yield* Stream.run(live, console).pipe(Effect.forkIn(whole, { startImmediately: true }))
        if (!isBehind) return
        const tail = yield* Effect.timeoutOption(one.consoleTail, lastWordsWithin)
        if (Option.isSome(tail)) yield* catchUp(tail.value)
        const decoder = new TextDecoder()
        while (early.length > 0) yield* catchUp(decoder.decode(Buffer.concat(early.splice(0)), { stream: true }))
        isBehind = false
      })
    const body: Effect.Effect<
      RunEnd,
      WarmMachine.WarmError | PlatformError.PlatformError | RunHostError
    > = Effect.gen(function*() {
      const opened = yield* RunHost.use(({ open }) => open(id, { ...options, resume: resumes })).pipe(
        Scope.provide(outer)
      )
      place = opened
      yield* context.onPlace?.(id).pipe(Scope.provide(outer)) ?? Effect.void
      yield* listen
      const coming = { id, options, place: opened, phase, onMachine }
      const found = yield* resumes ? resume(coming, (one) => void (recovered = one)) : launch(coming)
      const { command: left, ready, start } = found
      entry = found.entry
      up = ready
      if (start !== undefined) cameUp = toStart(start)
      if (start?._tag === "Restored") yield* reporter.note(`restored in ${formatTook(start.took)}`)
      if (Option.isSome(options.watchdog)) {
        yield* watch(ready, options.watchdog.value, (why) =>
          Effect.gen(function*() {
            if (isStopping) return
            const tail = yield* Effect.timeoutOption(ready.machine.consoleTail, lastWordsWithin)
            const message = withConsole(`the machine was ended, as it hangs: ${why}`, Option.getOrElse(tail, () => ""))
            isHung = true
            isOurs = true
            yield* Deferred.succeed(cut, { _tag: "Failed", message })
          })).pipe(Effect.forkIn(doors, { startImmediately: true }))
      }
      const command = Effect.gen(function*() {
        const [program, ...args] = options.command
        const started = left === undefined
          ? yield* GuestCommand.run(ready.agent, ready.slots, {
            command: program,
            args,
            env: options.env,
            cwd: Option.getOrUndefined(options.workdir),
            // It ends with the machine, which is not to wait for a guest that does not tell whether it has started.
            closeWithin: Duration.zero
          })
          : yield* GuestCommand.attach(ready.agent, ready.slots, left)
        isOurs = true
        if (left === undefined && options.detach) yield* remember(found.entry, started)
        const stderr = reporter.beside("stderr")(stdio.stderr())
        // In a fiber of its own, which goes on when this is called off: a command that is ended has last words.
        const connected = yield* GuestCommand.connect(
          started,
          opened.logs === undefined
            ? {
              stdin: stdio.stdin,
              stdout: context.json ? stderr : reporter.beside("stdout")(stdio.stdout()),
              stderr
            }
            : { stdin: Stream.empty, stdout: opened.logs.output, stderr: opened.logs.output }
        ).pipe(Effect.forkScoped({ startImmediately: true }))
        streams = connected
        const { onStarted = Effect.void } = context
        // One that was left had been executed.
        yield* left === undefined ? Effect.forkScoped(whenExecuted(started, onStarted)) : onStarted
        // While the command is waited for: until it runs, there is enough to do.
        yield* Effect.forkIn(Effect.andThen(started.begun, opened.tidy), outer)
        // The guest tells it once, and what the command has left behind may hold its output open.
        const told = Effect.flatMap(started.exit, (status) => foretell({ _tag: "Completed", status }))
        const [status] = yield* Effect.all([Fiber.join(connected), Effect.ignore(told)], { concurrency: "unbounded" })
        return { _tag: "Completed", status } satisfies RunEnd
      })
      return yield* phase("command")(
        Option.match(options.timeout, {
          onNone: () => command,
          onSome: (after) =>
            Effect.timeoutOrElse(command, {
              duration: after,
              orElse: () => Effect.succeed({ _tag: "TimedOut", after } satisfies RunEnd)
            })
        })
      )
    }).pipe(Effect.provideContext(yield* Effect.context<Needs>()), Scope.provide(yield* Effect.scope))

    const machineEnded = (one: Machine.Machine) =>
      Effect.map(one.ended, (how): RunEnd => ({
        _tag: "MachineEnded",
        why: MachineEnd.format(how),
        consoleTail: how.consoleTail
      }))
    const ended = yield* body.pipe(
      Effect.catchCause((cause) => {
        const error = Cause.squash(cause)
        const failure = toEnd(error)
        // Our own stdin, stdout and stderr fail for reasons of their own, and a guest that says what it lacks is there.
        const isApart = error instanceof PlatformError.PlatformError ||
          error instanceof GuestError && error.reason._tag === "NotStarted"
        if (failure._tag !== "Failed" || isApart || machine === undefined || recovered !== undefined) {
          return Effect.succeed(failure)
        }
        const one = machine
        // One whose agent was never heard of was ended with the failure, unless it had ended by itself. It has only its
        // console to say why.
        if (up === undefined && isOurs) {
          return Effect.flatMap(Effect.orDie(one.shutdown()), ({ _tag }) =>
            _tag === "AlreadyExited"
              ? machineEnded(one)
              : Effect.map(one.consoleTail, (tail): RunEnd => ({
                ...failure,
                message: withConsole(failure.message, tail)
              })))
        }
        // A machine that ends takes its channels along; what happened to it says more than that they are closed.
        return Effect.timeoutOrElse(machineEnded(one), {
          duration: machineEndWithin,
          orElse: () => Effect.succeed(failure)
        })
      }),
      Effect.raceFirst(Deferred.await(cut))
    )

    const agent = isHung ? undefined : up?.agent
    up = undefined
    isStopping = true
    if (machine !== undefined && ended._tag !== "Completed" && !staysAsItIs(ended)) yield* foretell(ended)
    yield* Scope.close(doors, Exit.void).pipe(
      Effect.forkIn(yield* Effect.scope, { startImmediately: true }),
      Effect.flatMap(Fiber.await),
      Effect.timeoutOption(leaveOffWithin)
    )
    isLeft = staysAsItIs(ended)
    if (machine !== undefined && isLeft) {
      const why = "message" in ended ? ended.message : "it was called off"
      recovered = {
        id,
        action: "Left",
        why: `its process lives, but nobody could go on with it, ${why}; it is ended if that is asked for (kill)`
      }
    }
    if (machine === undefined || isLeft) return { end: ended, outcome: undefined }
    const { capabilities, shutdown } = machine
    const grace = stopGrace ?? options.grace
    const { stages: [first, ...rest] } = Machine.defaultPolicy(capabilities)
    // What the guest may refuse may take `grace` at the most.
    const bounded = (stage: ShutdownPolicy.Stage<MachineRequest>) =>
      stage.force ? stage : { ...stage, grace: Duration.min(stage.grace, grace) }
    const policy = { stages: [bounded(first), ...rest.map(bounded)] } as const
    // A guest that is still booting hears neither its agent nor its power button, and has nothing to lose. One that was left has.
    const stopped = yield* phase("stop", "stopping the machine")(
      Effect.orDie(shutdown(
        agent !== undefined
          ? { leading: [{ name: "guest power-off", request: agent.powerOff, grace }], policy }
          : resumes && !isHung
          ? { policy }
          : { request: { atLeast: "SIGKILL" } }
      ))
    )
    if (streams !== undefined) yield* Effect.timeoutOption(Fiber.await(streams), lastWordsWithin)
    // Whoever calls a run off while its machine stops does not want what was to come after a success either.
    const calledOff = ended._tag === "Completed" && (yield* Deferred.isDone(cut))
    return { end: calledOff ? yield* Deferred.await(cut) : ended, outcome: stopped }
  })).pipe(Effect.catchCause((cause) => Effect.succeed({ end: toEnd(Cause.squash(cause)), outcome: undefined })))

  yield* Deferred.succeed(gone, outcome)
  const report = reportOf(end, outcome)
  if (recovered !== undefined) yield* context.resume?.(recovered) ?? Effect.void
  if (place !== undefined) {
    if (!isLeft && !staysAsItIs(end)) yield* place.conclude(report)
    // Who came to no command, or to a short one, had no other time for it.
    yield* Effect.timeoutOption(place.tidy, leaveOffWithin)
  }
  return report
}, Effect.scoped)
