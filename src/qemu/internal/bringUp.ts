import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as ChildProcess from "effect/process/ChildProcess"
import * as PubSub from "effect/PubSub"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type * as Take from "effect/Take"
import type { ExitStatus } from "../../lifecycle/ExitStatus.ts"
import * as ShutdownPolicy from "../../lifecycle/ShutdownPolicy.ts"
import type { MachineEnd } from "../../microvm/MachineEnd.ts"
import type { MachineSpec } from "../../microvm/MachineSpec.ts"
import * as MicroVmError from "../../microvm/MicroVmError.ts"
import type { Attached, LaunchOptions, MachineRequest, Vmm } from "../../microvm/MicroVmProvider.ts"
import type { Saved } from "../../microvm/Snapshot.ts"
import * as OutputTail from "../../process/OutputTail.ts"
import type { Process } from "../../process/Process.ts"
import type { ProcessError } from "../../process/ProcessError.ts"
import type { ProcessHolder } from "../../process/ProcessHolder.ts"
import type { ProcessSpawner } from "../../process/ProcessSpawner.ts"
import { type Form, type LaunchPlan, opensMemoryReadOnly, platform, snapshotFiles } from "../LaunchPlan.ts"
import { formatVersion, type QemuHost, type Ram, type Setup } from "../QemuHost.ts"
import * as Qmp from "../Qmp.ts"
import { Disconnected, QmpError } from "../QmpError.ts"
import * as QmpSchema from "../QmpSchema.ts"
import { toEnd } from "./ending.ts"
import * as Kept from "./kept.ts"
import type { Lasting } from "./kept.ts"
import * as Migration from "./migration.ts"

/** QEMU ends within milliseconds of SIGTERM unless it hangs. */
const policy = ShutdownPolicy.signals({ grace: "1 second" })

/** How far apart may come what belongs together: the end of a process, of its sockets and of its pipes. */
const settling = "1 second"

/** How many pieces of console output a watcher may be behind; a piece has 64 KiB at most, as a pipe has. */
const consoleWindow = 64

interface Common {
  readonly spec: MachineSpec
  readonly setup: Setup
  readonly host: QemuHost["Service"]
  readonly holder: ProcessHolder["Service"]
  readonly within: Duration.Input
}

interface Bringing extends Common {
  readonly plan: LaunchPlan
  readonly how: Pick<LaunchOptions, "cgroup" | "keep">
  /** The memory of a template. */
  readonly ram: Ram | undefined
  readonly spawner: ProcessSpawner["Service"]
}

/** QEMU's process, whoever owns it. */
type Child = Omit<Process, "stdin">

/** Starts QEMU and gets through to it. What is acquired is the scope's, also after a failure. */
export const bringUp = Effect.fnUntraced(function*(bringing: Bringing) {
  const { how: { keep }, plan, setup, spec: { id }, within } = bringing
  const scope = yield* Effect.scope
  // Closed after the process is gone: what it says on its way out is still heard.
  const ears = yield* Scope.fork(scope)
  const stage = plan.load === undefined ? "bringing QEMU up" : "restoring"
  const connect = Effect.fnUntraced(function*(child: Child) {
    const socket = yield* Effect.orDie(child.channel(plan.fds.qmp))
    const qmp = yield* Scope.provide(Qmp.make(socket, { within }), ears)
    const { version } = qmp
    // A fix of the same version was installed meanwhile: what is planned for the one is right for the other.
    if (version.major !== setup.version.major || version.minor !== setup.version.minor) {
      const cause = `QEMU says it is ${formatVersion(version)}, but \`--version\` said ${formatVersion(setup.version)}`
      const remedy = "start this program again if QEMU was upgraded, else let MICROVM_QEMU_BIN name QEMU itself"
      return yield* launchFailed({ id, stage, cause: `${cause}: ${remedy}` })
    }
    if (plan.load !== undefined) yield* Migration.load(qmp, { ...plan.load, within })
    return qmp
  })
  return yield* Effect.uninterruptibleMask((unmask) =>
    Effect.gen(function*() {
      const child = yield* unmask(start(bringing)).pipe(
        Effect.mapError((cause) => launchFailed({ id, stage: "starting QEMU", cause }))
      )
      const through = connect(child).pipe(Effect.catchTag("QmpError", (error) => explain(id, child, stage, error)))
      const qmp = yield* unmask(
        Effect.raceFirst(through, Effect.andThen(child.exit, explain(id, child, stage)))
      ).pipe(
        // The scope lets go of one that is kept, and does not end it.
        Effect.onError(() => keep === undefined ? Effect.void : bringing.holder.destroy(keep))
      )
      return yield* handle({ ...bringing, child, qmp, ears })
    })
  )
})

/** Gets hold of a QEMU that is kept. */
export const attach = Effect.fnUntraced(function*(
  { directory, ...common }: Omit<Common, "setup"> & { readonly directory: string }
): Effect.fn.Return<Attached, MicroVmError.MicroVmError, Scope.Scope> {
  const { holder, spec: { id }, within } = common
  const scope = yield* Effect.scope
  const ears = yield* Scope.fork(scope)
  const refuse = (why: string, cause?: unknown) =>
    MicroVmError.make(
      new MicroVmError.AttachFailed({ id, isHeld: false, why, ...(cause === undefined ? {} : { cause }) })
    )
  const child = yield* Effect.mapError(holder.attach({ directory, policy }), (error) =>
    MicroVmError.make(
      new MicroVmError.AttachFailed({
        id,
        isHeld: error.reason._tag === "HandTaken",
        why: error.message,
        cause: error
      })
    ))
  const kept = Kept.read(child.note)
  if (kept === undefined) return yield* refuse(`what is kept in ${directory} is no machine of this version`)
  if (kept.id !== id) return yield* refuse(`the one in ${directory} is "${kept.id}"`)

  const socket = yield* Effect.orDie(child.channel(kept.plan.fds.qmp))
  const isOver = Effect.map(child.poll, Option.isSome)
  const machine = { ...common, setup: kept.setup, plan: kept.plan, ram: undefined, child, ears }
  /** Of one that has ended, what it has said is all that there is. */
  const ended = Effect.gen(function*() {
    const { version } = kept.setup
    const said = yield* Scope.provide(Qmp.overhear(socket, { within }), ears).pipe(Effect.option)
    const vmm = yield* handle({ ...machine, qmp: { ...Option.getOrElse(said, () => mute), version } })
    // Whoever polls it first is to hear of the end.
    yield* vmm.ended
    return { vmm, state: "running" } as const
  })
  if (yield* isOver) return yield* ended
  const listening = yield* Scope.fork(ears)
  const resume = Effect.gen(function*() {
    const qmp = yield* Scope.provide(Qmp.resume(socket, { within }), listening)
    return { qmp, status: (yield* qmp.execute(QmpSchema.queryStatus)).status }
  })
  const resumed = yield* Effect.result(resume)
  if (resumed._tag === "Failure") {
    yield* Scope.close(listening, Exit.void)
    // It may be about to end.
    if (Option.isSome(yield* Effect.timeoutOption(child.exit, settling))) return yield* ended
    return yield* refuse(`its QEMU does not answer: ${resumed.failure.message}`, resumed.failure)
  }
  const { qmp, status } = resumed.success
  if (status === "inmigrate") return yield* refuse("its restore was broken off: end it")
  const state = status === "prelaunch" ? "created" : status === "running" ? "running" : "paused"
  // What another was saving when it died is nobody's, and the guest could not go on before that has ended.
  if (state === "paused") yield* Migration.cancel(qmp)
  return { vmm: yield* handle({ ...machine, qmp }), state }
})

/** Nothing was left of what it has said. */
const mute: Omit<Qmp.Qmp, "version"> = {
  execute: ({ execute }) =>
    Effect.fail(new QmpError({ reason: new Disconnected({ why: `${execute} comes too late` }) })),
  events: Stream.empty,
  last: () => Effect.succeedNone,
  disconnected: Effect.succeed(new QmpError({ reason: new Disconnected({ why: "it is gone" }) }))
}

interface Through extends Omit<Common, "holder"> {
  readonly plan: Lasting
  readonly ram: Ram | undefined
  readonly child: Child
  readonly qmp: Qmp.Qmp
  readonly ears: Scope.Closeable
}

/** What is done with a QEMU that we have got through to. */
const handle = Effect.fnUntraced(function*(
  { child, ears, host, plan, qmp, ram, setup, spec }: Through
): Effect.fn.Return<Vmm, never, Scope.Scope> {
  const { id } = spec
  const { channels } = plan.fds
  let asked = false
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      asked = true
    })
  )

  const console = yield* PubSub.sliding<Take.Take<Uint8Array>>(consoleWindow)
  yield* child.stdout.pipe(
    Stream.runForEach((bytes) => PubSub.publish(console, [bytes])),
    Effect.ignore,
    Effect.ensuring(PubSub.end(console, Exit.void)),
    Effect.forkIn(ears, { startImmediately: true })
  )

  // Detached, so that whoever waits for the end learns of it also when it comes by the scope's close.
  const end = yield* Deferred.make<MachineEnd>()
  yield* Effect.gen(function*() {
    const status = yield* child.exit
    const wasAsked = asked
    yield* Effect.timeoutOption(qmp.disconnected, settling)
    const { stderr, stdout } = yield* child.tail
    const shutdown = Option.filter(yield* qmp.last("SHUTDOWN"), QmpSchema.isShutdown)
    yield* Deferred.succeed(
      end,
      toEnd({
        status,
        reason: Option.getOrUndefined(shutdown)?.data.reason,
        panicked: Option.isSome(yield* qmp.last("GUEST_PANICKED")),
        asked: wasAsked,
        consoleTail: OutputTail.marked(stdout),
        stderrTail: OutputTail.marked(stderr)
      })
    )
  }).pipe(Effect.forkDetach({ startImmediately: true }))

  const failed = (operation: string) => (cause: unknown) =>
    MicroVmError.make(new MicroVmError.OperationFailed({ id, operation, cause }))
  const execute = (operation: string, command: QmpSchema.Command<unknown>) =>
    Effect.asVoid(Effect.mapError(qmp.execute(command), failed(operation)))

  const requests: { readonly [R in MachineRequest]: Effect.Effect<void, MicroVmError.MicroVmError> } = {
    PowerButton: qmp.execute(QmpSchema.systemPowerdown).pipe(
      // A machine that is about to be gone has no power button any more.
      Effect.catchReason("QmpError", "Disconnected", (_, error) =>
        Effect.flatMap(
          Effect.timeoutOption(child.exit, settling),
          Option.match({ onNone: () => Effect.fail(error), onSome: () => Effect.void })
        )),
      Effect.mapError(failed("power button")),
      Effect.asVoid
    ),
    Terminate: Effect.suspend(() => {
      asked = true
      // A monitor that was stopped hears only after SIGCONT.
      return Effect.mapError(Effect.andThen(child.signal("SIGTERM"), child.signal("SIGCONT")), failed("SIGTERM"))
    }),
    Kill: Effect.suspend(() => {
      asked = true
      return Effect.asVoid(Effect.orDie(child.shutdown({ atLeast: "SIGKILL" })))
    })
  }

  const saved = (form: Form): Saved => ({
    form,
    platform: platform(setup, spec),
    madeBy: `QEMU ${formatVersion(qmp.version)}`
  })
  const save: Vmm["save"] = Effect.fnUntraced(
    function*(directory) {
      const { status } = yield* qmp.execute(QmpSchema.queryStatus)
      if (status === "prelaunch") {
        // Those that it would boot, which are a snapshot's when it was restored from one.
        yield* Effect.forEach(
          plan.files,
          ({ field, path }) => host.copy(path, `${directory}/${snapshotFiles[field]}`),
          { discard: true }
        )
        return saved("unstarted")
      }
      const state = `${directory}/${snapshotFiles.state}`
      const file = `${directory}/${snapshotFiles.memory}`
      // The QEMU that opens it may run as another user than this one.
      const mode = opensMemoryReadOnly(setup.version) ? 0o644 : 0o666
      const memory = ram === undefined ? undefined : { ram, file, mode }
      yield* Migration.save({ host, qmp, status, state, memory, user: setup.user })
      return saved(memory === undefined ? "stream" : "shared-memory")
    },
    Effect.mapError(failed("snapshot"))
  )

  return {
    start: execute("start", QmpSchema.cont),
    pause: execute("pause", QmpSchema.stop),
    ping: execute("ping", QmpSchema.queryStatus),
    resume: execute("resume", QmpSchema.cont),
    save,
    ended: Deferred.await(end),
    poll: Effect.flatMap(Deferred.poll(end), Effect.transposeOption),
    request: (request) => requests[request],
    remains: Effect.gen(function*() {
      const status = yield* child.poll
      if (Option.isNone(status)) return { status, survivors: [{ pid: child.pid, command: "QEMU", why: "did not end" }] }
      const outcome = yield* Effect.orDie(child.shutdown())
      return { status, survivors: outcome._tag === "Survivors" ? outcome.survivors : [] }
    }),
    channel: (channel) => {
      const fd = channels.get(channel)
      return fd === undefined
        ? Effect.fail(MicroVmError.make(new MicroVmError.ChannelUnavailable({ id, channel, known: spec.channels })))
        : Effect.mapError(child.channel(fd), failed(`channel ${channel}`))
    },
    console: Stream.fromPubSubTake(console),
    consoleTail: Effect.map(child.tail, ({ stdout }) => OutputTail.marked(stdout)),
    pid: Option.some(child.pid)
  }
})

const start = (
  { holder, how: { cgroup, keep }, plan, setup, spawner, spec: { id } }: Bringing
): Effect.Effect<Child, ProcessError, Scope.Scope> => {
  const { argv: [program, ...args], env, fds } = plan
  const sockets = [fds.qmp, ...fds.channels.values()]
  const additionalFds = Object.fromEntries(
    sockets.map((fd) => [ChildProcess.fdName(fd), { type: "duplex" as const }])
  )
  const command = ChildProcess.make(program, args, { env, stdin: "ignore", additionalFds })
  if (keep !== undefined) {
    const note = Kept.write(id, plan, setup)
    return holder.spawn(command, { directory: keep.directory, cgroup, policy, note, replay: [fds.qmp] })
  }
  return spawner.spawn(command, {
    policy,
    cgroup,
    // QEMU's sandbox lets it start nothing, so its group is all there is of it. To enter a cgroup takes a grace period of
    // the kernel's RCU, some 15 ms, which is a fifth of a restore.
    killScope: "group"
  })
}

const launchFailed = (fields: {
  readonly id: string
  readonly stage: string
  readonly status?: ExitStatus
  readonly stderrTail?: string
  readonly consoleTail?: string
  readonly cause?: unknown
}): MicroVmError.MicroVmError =>
  MicroVmError.make(new MicroVmError.LaunchFailed({ stderrTail: "", consoleTail: "", ...fields }))

/** Fails with what QEMU itself has to say, and how it ended, if it has. */
const explain = Effect.fnUntraced(function*(
  id: string,
  child: Child,
  stage: string,
  cause?: QmpError
): Effect.fn.Return<never, MicroVmError.MicroVmError> {
  const status = yield* Effect.timeoutOption(child.exit, settling)
  const { stderr, stdout } = yield* child.tail
  // That the connection ended with the process says nothing more.
  const isNews = cause !== undefined && (Option.isNone(status) || cause.reason._tag !== "Disconnected")
  return yield* launchFailed({
    id,
    stage,
    stderrTail: OutputTail.marked(stderr),
    consoleTail: OutputTail.marked(stdout),
    ...(Option.isSome(status) ? { status: status.value } : {}),
    ...(isNews ? { cause } : {})
  })
})
