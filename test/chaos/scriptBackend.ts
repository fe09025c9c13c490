/** A backend whose monitor is a few lines of sh, held or guarded by the real thing, so that hundreds of machines take a minute. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import * as ShutdownPolicy from "../../src/lifecycle/ShutdownPolicy.ts"
import { MachineEnd } from "../../src/microvm/MachineEnd.ts"
import type { MachineSpec } from "../../src/microvm/MachineSpec.ts"
import * as MicroVmError from "../../src/microvm/MicroVmError.ts"
import { type LaunchOptions, MicroVmProvider, type Vmm } from "../../src/microvm/MicroVmProvider.ts"
import type { Process } from "../../src/process/Process.ts"
import type { ProcessError } from "../../src/process/ProcessError.ts"
import { ProcessHolder } from "../../src/process/ProcessHolder.ts"
import { ProcessSpawner } from "../../src/process/ProcessSpawner.ts"

/** The channel on which a machine answers. */
export const channel = "agent"

/** Whoever lost its host lives on, as a monitor does, and so does what it has started. */
const script = `echo "hello from $1"
sleep 1000 3<&- >/dev/null 2>&1 &
while read -r word argument <&3; do
  case $word in
    ask) echo "answer $argument" >&3 ;;
    exit) exit "$argument" ;;
  esac
done
sleep 1000`

/** What it says to the first of these lines. */
export const converse = (socket: Socket.Socket, [first = "", ...more]: ReadonlyArray<string>) =>
  Effect.scoped(Effect.gen(function*() {
    const pull = yield* Socket.readerBytes(socket)
    const { write } = yield* socket.writer
    yield* write(`${first}\n`)
    const [piece] = yield* pull
    for (const line of more) yield* write(`${line}\n`)
    return Buffer.from(piece ?? []).toString().trim()
  }))

const policy = ShutdownPolicy.signals({ grace: "1 second" })

/** Where its network is, and as whom it is to run, as a monitor is started. */
const commandOf = ({ id }: MachineSpec, { netns, user }: LaunchOptions) => {
  const words: ReadonlyArray<string> = [
    ...(netns === undefined ? [] : ["nsenter", `--net=${netns}`, "--"]),
    // A change of user clears the signal that comes with a parent's death (prctl(2)).
    ...(user === undefined
      ? []
      : ["setpriv", "--pdeathsig=KILL", `--reuid=${user}`, `--regid=${user}`, "--clear-groups", "--"]),
    "/bin/sh",
    "-c",
    script,
    "sh",
    id
  ]
  const [program = "", ...args] = words
  return ChildProcess.make(program, args, {
    stdin: "ignore",
    extendEnv: true,
    additionalFds: { fd3: { type: "duplex" } }
  })
}

const handle = Effect.fnUntraced(function*({ id }: MachineSpec, child: Omit<Process, "stdin">) {
  const over = yield* Deferred.make<MachineEnd>()
  yield* Effect.gen(function*() {
    const status = yield* child.exit
    const { stderr, stdout } = yield* child.tail
    const common = { status, consoleTail: stdout.text, stderrTail: stderr.text }
    yield* Deferred.succeed(
      over,
      status._tag === "Signaled"
        ? MachineEnd.cases.Killed.make(common)
        : MachineEnd.cases.Failed.make({ ...common, why: "its script is over" })
    )
  }).pipe(Effect.forkDetach({ startImmediately: true }))
  const failed = (operation: string) => (cause: unknown) =>
    MicroVmError.make(new MicroVmError.OperationFailed({ id, operation, cause }))
  const vmm: Vmm = {
    start: Effect.void,
    pause: Effect.void,
    resume: Effect.void,
    ping: Effect.void,
    save: () => Effect.die("it has no snapshots"),
    ended: Deferred.await(over),
    poll: Effect.flatMap(Deferred.poll(over), Effect.transposeOption),
    request: (request) =>
      request === "Terminate"
        ? Effect.mapError(child.signal("SIGTERM"), failed(request))
        : Effect.asVoid(Effect.orDie(child.shutdown({ atLeast: "SIGKILL" }))),
    remains: Effect.gen(function*() {
      const outcome = yield* Effect.orDie(child.shutdown())
      return { status: yield* child.poll, survivors: outcome._tag === "Survivors" ? outcome.survivors : [] }
    }),
    channel: () => Effect.mapError(child.channel(3), failed("channel")),
    console: Stream.empty,
    consoleTail: Effect.map(child.tail, ({ stdout }) => stdout.text),
    pid: Option.some(child.pid)
  }
  return vmm
})

export const layer: Layer.Layer<MicroVmProvider, never, ProcessHolder | ProcessSpawner> = Layer.effect(
  MicroVmProvider,
  Effect.gen(function*() {
    const holder = yield* ProcessHolder
    const spawner = yield* ProcessSpawner
    const start = (
      command: ChildProcess.StandardCommand,
      { cgroup, keep }: LaunchOptions
    ): Effect.Effect<Omit<Process, "stdin">, ProcessError, Scope.Scope> =>
      keep === undefined
        ? spawner.spawn(command, { cgroup, policy })
        : holder.spawn(command, { directory: keep.directory, cgroup, policy })
    return MicroVmProvider.of({
      backend: "script",
      capabilities: {
        pause: false,
        snapshot: false,
        diff: false,
        rename: true,
        powerButton: false,
        panicDetection: false,
        saveKeepsChannels: false,
        keep: true,
        user: true
      },
      plan: () => Result.succeed({ backend: "script", description: [], argv: [] }),
      platform: () => Result.succeed({ backend: "script" }),
      launch: (spec, options = {}) =>
        start(commandOf(spec, options), options).pipe(
          Effect.mapError((cause) =>
            MicroVmError.make(
              new MicroVmError.LaunchFailed({ id: spec.id, stage: "sh", stderrTail: "", consoleTail: "", cause })
            )
          ),
          Effect.flatMap((child) => handle(spec, child))
        ),
      attach: (spec, { directory }) =>
        holder.attach({ directory, policy }).pipe(
          Effect.mapError((cause) =>
            MicroVmError.make(
              new MicroVmError.AttachFailed({
                id: spec.id,
                isHeld: cause.reason._tag === "HandTaken",
                why: cause.message,
                cause
              })
            )
          ),
          Effect.flatMap((child) => handle(spec, child)),
          // One that does not answer has ended, or is about to.
          Effect.tap((vmm) =>
            Effect.flatMap(vmm.channel(channel), (socket) => converse(socket, ["ask 0"])).pipe(
              Effect.timeout("5 seconds"),
              Effect.catch(() => Effect.timeoutOption(vmm.ended, "5 seconds"))
            )
          ),
          Effect.map((vmm) => ({ vmm, state: "running" }) as const)
        )
    })
  })
)
