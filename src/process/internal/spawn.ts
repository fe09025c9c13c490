import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as PlatformError from "effect/PlatformError"
import type * as ChildProcess from "effect/process/ChildProcess"
import * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import * as Shutdown from "../../lifecycle/Shutdown.ts"
import * as ShutdownOutcome from "../../lifecycle/ShutdownOutcome.ts"
import * as ShutdownPolicy from "../../lifecycle/ShutdownPolicy.ts"
import type { KillScope } from "../KillScope.ts"
import * as Mark from "../Mark.ts"
import type { Process } from "../Process.ts"
import { fromReason, type ProcessError, ProcessErrorReason } from "../ProcessError.ts"
import type { ProcessHost } from "../ProcessHost.ts"
import type { SpawnOptions } from "../SpawnOptions.ts"
import { type SupervisorGuard, Watched } from "../SupervisorGuard.ts"
import { cachedSuccess } from "./cachedSuccess.ts"
import { chooseScope } from "./chooseScope.ts"
import { directoriesOf } from "./commandLine.ts"
import * as CommandPlan from "./commandPlan.ts"
import * as OutputPipe from "./outputPipe.ts"
import { pollUntil } from "./reach.ts"
import * as Target from "./target.ts"

const defaultTailBytes = 65_536

/**
 * How long the pipes of a process that has ended are still read, when others hold them open: 100 ms. Not at one go, which may pass
 * while the event loop stands still, on a busy machine, before what has long come is read.
 */
const lastWords = Effect.repeat(Effect.sleep("10 millis"), { times: 9 })

/** How long an emptied cgroup may take to become removable. */
const removalTime = "1 second"

const streamFailed = (stream: string) => (error: { readonly message: string }): ProcessError =>
  fromReason(ProcessErrorReason.StreamFailed({ stream, code: error.message }), error)

const through = (
  name: string,
  stream: Stream.Stream<Uint8Array, ProcessError>,
  sink: Sink.Sink<Uint8Array, Uint8Array, never, PlatformError.PlatformError> | undefined
): Stream.Stream<Uint8Array, ProcessError> =>
  sink === undefined
    ? stream
    : Stream.mapError(
      Stream.transduce(stream, sink),
      (error) => error._tag === "ProcessError" ? error : streamFailed(name)(error)
    )

/** Of all spawners: several may have the same host and the same guard, and a cgroup or a mark is of one child alone. */
let spawned = 0

export const make = Effect.fnUntraced(function*(host: ProcessHost["Service"], guard: SupervisorGuard["Service"]) {
  const layerScope = yield* Effect.scope

  // One word to the guard covers every cgroup to come, so it is told before the first is tried.
  const watchRoot = yield* cachedSuccess(
    Option.isNone(host.cgroupRoot)
      ? Effect.void
      : Scope.provide(guard.watch(Watched.CGroup({ path: host.cgroupRoot.value })), layerScope)
  )
  const cgroupSupport = Effect.andThen(watchRoot, host.cgroupSupport)

  const start = Effect.fnUntraced(function*(
    plan: CommandPlan.CommandPlan,
    options: SpawnOptions
  ): Effect.fn.Return<Process, ProcessError, Scope.Scope> {
    const tailBytes = options.tailBytes ?? defaultTailBytes
    if (!Number.isSafeInteger(tailBytes) || tailBytes < 0) {
      const why = `is ${tailBytes}: give a whole number of bytes, 0 for none`
      return yield* fromReason(ProcessErrorReason.InvalidArgument({ field: "tailBytes", why }))
    }
    const given = options.cgroup === undefined ? [] : directoriesOf(options.cgroup)
    const wrong = given.filter((path) => !path.startsWith("/"))
    if (wrong.length > 0) {
      const why = `is ${wrong.map((path) => JSON.stringify(path)).join(", ")}: give its path in the file system`
      return yield* fromReason(ProcessErrorReason.InvalidArgument({ field: "cgroup", why }))
    }
    const chosen = yield* chooseScope(
      given.length === 0 ? options.killScope ?? "auto" : "group",
      cgroupSupport,
      plan.launch.detached || given.length > 0
    )
    const dieWithParent = options.dieWithParent ?? true
    const id = ++spawned
    const mark = `${dieWithParent ? guard.mark : `kept-${guard.mark}`}.${id}`
    const scope = yield* Effect.scope

    // When something could not be ended, the guard must not forget it: it tries again when we are gone.
    const watching = yield* Scope.make()
    let isCleared = true
    yield* Scope.addFinalizer(scope, Effect.suspend(() => isCleared ? Scope.close(watching, Exit.void) : Effect.void))
    const watch = (what: Watched) => dieWithParent ? Scope.provide(guard.watch(what), watching) : Effect.void

    const enter = Effect.fnUntraced(function*(root: string) {
      // A child that is to outlive us stays out of what the guard kills.
      const path = `${dieWithParent ? root : `${root}-kept`}/${id}`
      const cgroup = yield* Effect.acquireRelease(host.makeCGroup(path), ({ remove }) =>
        pollUntil(remove).pipe(
          Effect.timeoutOption(removalTime),
          Effect.flatMap((removed) => Option.isSome(removed) ? Effect.void : Effect.logWarning(`${path} is not empty`))
        ))
      return cgroup.path
    })
    const cgroup = chosen._tag === "CGroup" ? { path: yield* enter(chosen.root) } : options.cgroup

    // Closed after the shutdown, which needs the pipes to be emptied meanwhile.
    const pipes = yield* Scope.fork(scope)
    const acquire = Effect.gen(function*() {
      const child = yield* host.launch({
        ...plan.launch,
        env: { ...plan.launch.env, [Mark.variable]: mark },
        cgroup,
        dieWithParent
      })
      const killScope: KillScope = cgroup?.path !== undefined
        ? { _tag: "CGroup", path: cgroup.path, reason: chosen.reason }
        : chosen._tag === "Group"
        ? { _tag: "Group", pgid: child.pid, reason: chosen.reason }
        : { _tag: "Process", reason: chosen.reason }
      const stdout = OutputPipe.make("stdout", child.output(1), tailBytes)
      const stderr = OutputPipe.make("stderr", child.output(2), tailBytes)
      const drain = Effect.all([stdout.drain, stderr.drain], { concurrency: 2, discard: true })
      const hasOutput = child.output(1) !== undefined || child.output(2) !== undefined
      let isDrained = !hasOutput
      const drainToTheEnd = Effect.suspend(() => {
        if (isDrained) return Effect.void
        isDrained = true
        return Effect.asVoid(Effect.forkIn(drain, pipes))
      })
      const ended = Effect.andThen(stdout.ended, stderr.ended)
      // Not a race: nobody who waits for the end has to wait for the drain to be stopped as well.
      const exit = hasOutput
        ? Effect.acquireUseRelease(
          Effect.forkIn(drain, pipes),
          () => child.exit,
          (draining) => Effect.sync(() => draining.interruptUnsafe())
        )
        : child.exit
      // The engine looks for what is left, so it learns of the end after whoever only waits for that.
      const shutdown = yield* Shutdown.make(
        Target.make(host, { ...child, exit: child.afterExit, pinnedUntil: child.reapedAt }, killScope, mark),
        options.policy ?? plan.policy ?? ShutdownPolicy.defaults,
        { onEvent: options.onShutdown }
      )
      const lastRead = hasOutput
        ? Effect.andThen(drainToTheEnd, Effect.raceFirst(ended, lastWords))
        : Effect.void

      yield* Scope.addFinalizer(
        scope,
        Effect.gen(function*() {
          yield* host.turn
          yield* drainToTheEnd
          const outcome = yield* Effect.orDie(shutdown.run())
          isCleared = outcome._tag !== "Unkillable"
          if (!ShutdownOutcome.isComplete(outcome)) {
            yield* Effect.logWarning(`${plan.launch.executable}[${child.pid}] ${ShutdownOutcome.format(outcome)}`)
          }
          yield* lastRead
          yield* child.release
        })
      )
      // Nobody watches a cgroup that the caller has made.
      if (chosen._tag === "Group") {
        yield* watch(Watched.Group({ pgid: child.pid, startTime: child.startTime }))
      }

      for (const [fd, stream] of plan.inputs) {
        const name = fd === 0 ? "stdin" : `fd${fd}`
        yield* stream.pipe(
          Stream.tapError((error) => Effect.logWarning(`the source of ${name} failed`, error)),
          Stream.run(child.input(fd, fd !== 0 || plan.endStdin) ?? Sink.drain),
          // A child that does not read to the end is no fault of ours.
          Effect.ignore,
          Effect.forkIn(pipes)
        )
      }
      const stdin = plan.inputs.has(0) ? undefined : child.input(0, plan.endStdin)
      const descriptors = plan.launch.stdio.flatMap((kind, fd) => fd >= 3 && kind === "pipe" ? [fd] : [])

      return {
        identity: { bootId: host.bootId, pid: child.pid, startTime: child.startTime },
        pid: child.pid,
        killScope,
        exit,
        poll: child.poll,
        stdin: stdin ??
          Sink.fail(fromReason(ProcessErrorReason.StreamFailed({ stream: "stdin", code: "is not ours to write" }))),
        stdout: through("stdout", stdout.stream, plan.outputs.get(1)),
        stderr: through("stderr", stderr.stream, plan.outputs.get(2)),
        tail: Effect.flatMap(child.poll, (status) => Option.isSome(status) ? lastRead : Effect.void).pipe(
          Effect.andThen(Effect.all({ stdout: stdout.tail, stderr: stderr.tail }))
        ),
        channel: (fd: number) =>
          child.channel(fd) ??
            Effect.fail(fromReason(ProcessErrorReason.NoSuchDescriptor({ fd, available: descriptors }))),
        signal: child.signal,
        shutdown: hasOutput
          ? (request?: Shutdown.ShutdownRequest) => Effect.andThen(drainToTheEnd, shutdown.run(request))
          : shutdown.run,
        extendShutdown: shutdown.extend
      }
    })
    return yield* Effect.uninterruptible(acquire)
  })

  /** Each command with how it is fed by the one before it. */
  const flatten = (
    command: ChildProcess.Command,
    feed: ChildProcess.PipeOptions = {}
  ): ReadonlyArray<{ readonly command: ChildProcess.StandardCommand; readonly feed: ChildProcess.PipeOptions }> =>
    command._tag === "StandardCommand"
      ? [{ command, feed }]
      : [...flatten(command.left, feed), ...flatten(command.right, command.options)]

  /** The same plan, with a stream for one of its descriptors. */
  const fedBy = (
    plan: CommandPlan.CommandPlan,
    fd: number,
    stream: Stream.Stream<Uint8Array, ProcessError>
  ): CommandPlan.CommandPlan => {
    const stdio = Array.from(
      { length: Math.max(plan.launch.stdio.length, fd + 1) },
      (_, index) => index === fd ? "pipe" : plan.launch.stdio[index] ?? "ignore"
    )
    return { ...plan, launch: { ...plan.launch, stdio }, inputs: new Map([...plan.inputs, [fd, stream]]) }
  }

  return (command: ChildProcess.Command, options: SpawnOptions): Effect.Effect<Process, ProcessError, Scope.Scope> =>
    Effect.gen(function*() {
      // All parts are checked before the first is started.
      const [first, ...rest] = yield* Effect.forEach(
        flatten(command),
        (part) => Effect.all({ plan: CommandPlan.make(host, part.command), feed: CommandPlan.feed(part.feed) })
      )
      if (first === undefined) return yield* Effect.die("a command has at least one part")
      const own = yield* Scope.fork(yield* Effect.scope)
      const all = Effect.gen(function*() {
        let last = yield* start(first.plan, options)
        for (const { feed, plan } of rest) {
          const stream = feed.from === "all" ? Stream.merge(last.stdout, last.stderr) : last[feed.from]
          last = yield* start(fedBy(plan, feed.fd, stream), options)
        }
        return last
      })
      return yield* all.pipe(
        Scope.provide(own),
        Effect.onExit((exit) => Exit.isFailure(exit) ? Scope.close(own, exit) : Effect.void)
      )
    })
})
