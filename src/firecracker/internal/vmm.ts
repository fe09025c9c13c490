import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { MachineSpec } from "../../microvm/MachineSpec.ts"
import * as MicroVmError from "../../microvm/MicroVmError.ts"
import type { MachineRequest, Vmm } from "../../microvm/MicroVmProvider.ts"
import * as OutputTail from "../../process/OutputTail.ts"
import type { FirecrackerApi } from "../FirecrackerApi.ts"
import type { FirecrackerError } from "../FirecrackerError.ts"
import type { FirecrackerHost } from "../FirecrackerHost.ts"
import * as FirecrackerVersion from "../FirecrackerVersion.ts"
import { type Form, names } from "../LaunchPlan.ts"
import * as Vsock from "../Vsock.ts"
import { guestChannel } from "./guestChannel.ts"
import type { Lasting } from "./kept.ts"
import type { Tended } from "./tending.ts"
import type { Workplace } from "./workplace.ts"

/** How far apart may come what belongs together: the end of a process, of its connections and of its pipes. */
export const settling = "1 second"

/** How long a save may take beyond its deadline. */
const patience = "5 minutes"

interface Parts {
  readonly spec: MachineSpec
  readonly lasting: Lasting
  /** Was it started once, or does it go on from a snapshot? */
  readonly hasStarted: boolean
  readonly place: Workplace
  readonly api: FirecrackerApi
  readonly host: FirecrackerHost["Service"]
  readonly vsock: Vsock.Vsock["Service"]
  readonly tended: Tended
  /** Why it cannot be saved once it has run, if it cannot. */
  readonly refusesSave?: Effect.Effect<never, MicroVmError.MicroVmError> | undefined
}

/** What can be done with a machine that is up. */
export const makeVmm = (
  { api, hasStarted: hadStarted, host, lasting, place, refusesSave, spec, tended, vsock }: Parts
): Vmm => {
  const { id } = spec
  const { directory, ignoresTermination, monitor, write } = place
  const { console, died, ended, onAsk, poll } = tended
  const failed = (operation: string) => (cause: unknown) =>
    MicroVmError.make(new MicroVmError.OperationFailed({ id, operation, cause }))
  /** That the connection ended with the process says less than how that ended. */
  const call = (operation: string, made: Effect.Effect<void, FirecrackerError>) =>
    Effect.catch(made, (error) =>
      Effect.flatMap(
        error.reason._tag === "ConnectionFailed" ? Effect.timeoutOption(died(operation), settling) : Effect.succeedNone,
        (told) => Effect.fail(failed(operation)(Option.getOrElse(told, () => error)))
      ))

  let hasStarted = hadStarted
  const start = Effect.tap(api.putAction({ action_type: "InstanceStart" }), () =>
    Effect.sync(() => {
      hasStarted = true
    }))

  const { noCtrlAltDel } = lasting.facts
  const ctrlAltDel = noCtrlAltDel.length > 0
    ? Effect.fail(`Ctrl-Alt-Del does not reach the guest: ${noCtrlAltDel.join("; ")}`)
    : Effect.catchReason(
      api.putAction({ action_type: "SendCtrlAltDel" }),
      "FirecrackerError",
      "ConnectionFailed",
      // A machine that is about to be gone has no keyboard any more.
      (_, error) =>
        Effect.flatMap(
          Effect.timeoutOption(monitor.exit, settling),
          Option.match({ onNone: () => Effect.fail(error), onSome: () => Effect.void })
        )
    )
  const terminate = ignoresTermination
    ? Effect.fail("Firecracker ignores it, as the first process of its namespace (newPidNamespace)")
    // A process that was stopped hears only after SIGCONT.
    : Effect.andThen(monitor.signal("SIGTERM"), monitor.signal("SIGCONT"))
  const requests: { readonly [R in MachineRequest]: Effect.Effect<void, MicroVmError.MicroVmError> } = {
    PowerButton: Effect.mapError(ctrlAltDel, failed("power button")),
    Terminate: Effect.mapError(terminate, failed("SIGTERM")),
    Kill: Effect.asVoid(Effect.orDie(monitor.shutdown({ atLeast: "SIGKILL" })))
  }

  const isSlow = ({ reason }: FirecrackerError) => reason._tag === "NoReply"
  /** One that has not answered in time may still be writing; it answers nobody else before it is through. */
  const untilIdle = Effect.retry(api.getInstance(), { while: isSlow }).pipe(
    Effect.ignore,
    // What is stuck for good must not hold up whoever waits, nor go on writing one day.
    Effect.timeoutOrElse({
      duration: patience,
      orElse: () => Effect.ignore(monitor.shutdown({ atLeast: "SIGKILL" }))
    })
  )
  let reset = Deferred.makeUnsafe<void>()
  /** The guest hears that its connections are gone. Firecracker holds the host's ends of them, in silence. */
  const hangUp = Effect.suspend(() => {
    const now = reset
    reset = Deferred.makeUnsafe()
    return Deferred.succeed(now, undefined)
  })
  const create = (type: "Full" | "Diff") => (state: string, memory: string) =>
    api.createSnapshot({ snapshot_type: type, snapshot_path: state, mem_file_path: memory }).pipe(
      Effect.tapError((error) => isSlow(error) ? untilIdle : Effect.void),
      Effect.ensuring(hangUp)
    )
  const saveAs = (form: Form, to: string): Effect.Effect<void, FirecrackerError> =>
    form === "unstarted"
      // Those that it would boot, which are a snapshot's when it was restored from one.
      ? Effect.forEach(
        lasting.boots,
        ({ name, path }) => host.copy(path, `${to}/${name}`),
        { discard: true }
      )
      // Firecracker cannot be called off: whoever leaves has to wait until it has written all.
      : Effect.uninterruptible(write(to, form === "diff", create(form === "diff" ? "Diff" : "Full")))

  const { platform, target, tracks } = lasting
  const version = FirecrackerVersion.format(target.version)
  const refusesDiff = tracks ? undefined : Effect.fail(MicroVmError.make(
    new MicroVmError.Unsupported({
      operation: "a difference",
      backend: `firecracker ${version}`,
      remedy: "save it whole, or launch it anew with `diffs`: " +
        "by 1.15 or later, if it has more than 3 GiB of memory or some that is plugged in"
    })
  ))

  return {
    ended,
    poll,
    console,
    refusesDiff,
    start: call("start", start),
    pause: call("pause", api.patchVm({ state: "Paused" })),
    ping: call("ping", api.getInstance()),
    // One that was saved before it ran is handed over paused, too.
    resume: Effect.suspend(() => call("resume", hasStarted ? api.patchVm({ state: "Resumed" }) : start)),
    save: Effect.fnUntraced(function*(to, base) {
      const form: Form = !hasStarted ? "unstarted" : base === undefined ? "full" : "diff"
      if (form !== "unstarted" && refusesSave !== undefined) return yield* refusesSave
      if (form === "diff" && refusesDiff !== undefined) return yield* refusesDiff
      yield* Effect.mapError(saveAs(form, to), failed("snapshot"))
      const saved = { platform, madeBy: `Firecracker ${version}`, form }
      // A machine has no memory to be different before it has run.
      if (!tracks || form === "unstarted") return saved
      return { ...saved, moment: yield* host.moment, ...(base !== undefined && { base: base.id }) }
    }),
    request: (request) =>
      Effect.suspend(() => {
        const takeBack = onAsk(request)
        return Effect.tapError(requests[request], () => Effect.sync(takeBack))
      }),
    remains: Effect.gen(function*() {
      const status = yield* monitor.poll
      if (Option.isNone(status)) {
        return { status, survivors: [{ pid: monitor.pid, command: "firecracker", why: "did not end" }] }
      }
      const outcome = yield* Effect.orDie(monitor.shutdown())
      return { status, survivors: outcome._tag === "Survivors" ? outcome.survivors : [] }
    }),
    channel: (channel) => {
      const port = lasting.channels.get(channel)
      return port === undefined
        ? Effect.fail(MicroVmError.make(new MicroVmError.ChannelUnavailable({ id, channel, known: spec.channels })))
        : Vsock.socket(`${directory}/${names.vsock}`, port, { within: Duration.infinity }).pipe(
          Effect.provideService(Vsock.Vsock, vsock),
          Effect.map((socket) =>
            guestChannel(socket, {
              gone: Effect.asVoid(monitor.exit),
              reset: Effect.suspend(() => Deferred.await(reset))
            })
          ),
          Effect.mapError(failed(`channel ${channel}`))
        )
    },
    consoleTail: Effect.map(monitor.tail, ({ stdout }) => OutputTail.marked(stdout)),
    pid: Option.some(monitor.pid)
  }
}
