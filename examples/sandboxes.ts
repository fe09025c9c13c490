/**
 * Machines for code that nobody trusts: they are held ready, each is handed out once, with limits, without a network, and is gone
 * with its job, however that ends.
 */
import { GuestCommand } from "effect-microvm-runtime/guest"
import { Limits } from "effect-microvm-runtime/host"
import { ExitStatus } from "effect-microvm-runtime/lifecycle"
import { Machine, MicroVmPool } from "effect-microvm-runtime/microvm"
import { Resources, Supervisor } from "effect-microvm-runtime/supervisor"
import { WarmMachine } from "effect-microvm-runtime/warm"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"

/** What a script has written, and how it ended. */
export interface Told {
  readonly event: "stdout" | "stderr" | "exit"
  readonly data: string
}

export class TimeOver extends Data.TaggedError("TimeOver")<{ readonly limit: Duration.Duration }> {
  override get message() {
    return `it took longer than ${Duration.format(this.limit)}`
  }
}

const settings = Config.all({
  ready: Config.Int("SANDBOX_READY").pipe(Config.withDefault(2)),
  most: Config.Int("SANDBOX_MOST").pipe(Config.withDefault(8)),
  // The last of them waits for as long as four scripts take.
  waiting: Config.Int("SANDBOX_WAITING").pipe(Config.withDefault(32)),
  limit: Config.Duration("SANDBOX_TIME").pipe(Config.withDefault(Duration.seconds(10)))
})

const make = Effect.gen(function*() {
  const { limit, most, ready, waiting } = yield* settings
  const supervisor = yield* Supervisor.Supervisor
  // To be killed and started again is the normal case.
  for (const { action, id, why } of yield* supervisor.recover()) yield* Effect.log(`${id}: ${action}, ${why}`)

  let made = 0
  const pool = yield* MicroVmPool.make({
    acquire: Effect.suspend(() =>
      supervisor.launch({
        id: `sandbox-${++made}`,
        // What is to reach something gets `Resources.network({ allow })`, too, and the `networks` that it gives.
        resources: [Resources.limits(Limits.forGuest({ memoryMib: 256, vcpus: 1 }))],
        bring: ({ before, id }) => WarmMachine.launch({ id, before, policy: Machine.killPolicy })
      })
    ).pipe(Effect.timeout("2 minutes")),
    ended: ({ machine }) => machine.ended,
    name: "sandboxes",
    min: ready,
    max: most,
    maxWaiting: waiting
  })

  const run = Effect.fn("Sandboxes.run")(function*(script: string) {
    const sandbox = yield* pool.take
    const { agent, machine, slots } = sandbox
    const { exit, stderr, stdin, stdout } = yield* GuestCommand.run(agent, slots, {
      command: "sh",
      args: ["-c", script]
    })
    // Added last, so it comes first: the machine goes with the script in it.
    yield* Effect.addFinalizer(() => Effect.ignore(machine.shutdown({ policy: Machine.killPolicy })))
    yield* Effect.forkScoped(Stream.run(Stream.empty, stdin))
    const told = (event: Told["event"], bytes: GuestCommand.GuestCommand["stdout"]) =>
      Stream.decodeText(bytes).pipe(
        Stream.map((data): Told => ({ event, data })),
        // The machine is gone: `end` says how.
        Stream.catchReason("GuestError", "Closed", () => Stream.empty)
      )
    const end = Effect.map(
      WarmMachine.whileAlive(sandbox, exit),
      (status): Told => ({ event: "exit", data: ExitStatus.format(status) })
    )
    return Stream.merge(told("stdout", stdout), told("stderr", stderr)).pipe(
      Stream.concat(Stream.fromEffect(end)),
      Stream.interruptWhen(Effect.delay(Effect.fail(new TimeOver({ limit })), limit))
    )
  })
  return { run }
})

/** `run` waits for a machine, and gives what the script tells: the machine is there until the scope closes. */
export class Sandboxes extends Context.Service<Sandboxes, Effect.Success<typeof make>>()("example/Sandboxes") {
  static readonly layer = Layer.effect(Sandboxes, make)
}
