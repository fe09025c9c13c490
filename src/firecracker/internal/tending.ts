import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as PubSub from "effect/PubSub"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type * as Take from "effect/Take"
import { MachineEnd } from "../../microvm/MachineEnd.ts"
import type { MachineRequest, Vmm } from "../../microvm/MicroVmProvider.ts"
import * as OutputTail from "../../process/OutputTail.ts"
import * as FirecrackerError from "../FirecrackerError.ts"
import * as FirecrackerExit from "../FirecrackerExit.ts"
import type { FirecrackerHost } from "../FirecrackerHost.ts"
import { names } from "../LaunchPlan.ts"
import * as LogLine from "../LogLine.ts"
import type { Lasting } from "./kept.ts"
import type { Workplace } from "./workplace.ts"

/** How many pieces of console output a watcher may be behind; a piece has 64 KiB at most, as a pipe has. */
const consoleWindow = 64

/**
 * How long its log is left alone, and how long when it had grown. Before 1.16 a guest can have Firecracker log as fast as it can
 * write, tens of MiB a second, and the room for that is what all machines have together.
 */
const [seldom, often] = ["10 seconds", "1 second"] as const

export interface Tended extends Pick<Vmm, "console" | "ended"> {
  readonly poll: Vmm["poll"]
  /** The last of its log. */
  readonly logTail: Effect.Effect<string>
  /** Waits for the end of the process, and says what it was. */
  readonly died: (stage: string) => Effect.Effect<FirecrackerError.FirecrackerError>
  /** Told what is asked of the machine, before it is. Gives what takes that back. */
  readonly onAsk: (request: MachineRequest) => () => void
  /** Kills it, as it cannot go on: that is what its end says then. */
  readonly condemn: (why: FirecrackerError.FirecrackerError) => Effect.Effect<void>
}

/**
 * Listens to a Firecracker until the scope closes, whoever has started it. `ears` are to be closed after the process is gone: what
 * it says on its way out is still heard.
 */
export const tend = Effect.fnUntraced(function*(
  { facts, target }: Lasting,
  { directory, monitor }: Workplace,
  host: FirecrackerHost["Service"],
  ears: Scope.Scope
): Effect.fn.Return<Tended, never, Scope.Scope> {
  const log = `${directory}/${names.log}`
  // Requests are logged with their bodies, and what is told here is shown to others.
  const logTail = Effect.map(host.tail(log), LogLine.withoutBodies)
  const end = yield* Deferred.make<MachineEnd>()
  let asked: MachineRequest | undefined
  let condemned: FirecrackerError.FirecrackerError | undefined
  // Detached, so that whoever waits for the end learns of it also when it comes by the scope's close.
  yield* Effect.gen(function*() {
    const status = yield* monitor.exit
    const wasAsked = asked
    const { stderr, stdout } = yield* monitor.tail
    const seen = FirecrackerExit.toEnd({
      architecture: target.architecture,
      status,
      asked: wasAsked,
      consoleTail: OutputTail.marked(stdout),
      stderrTail: OutputTail.marked(stderr),
      logTail: yield* logTail,
      restartIsOff: facts.restartIsOff
    })
    // We have killed it, but not because anybody asked for that.
    const { consoleTail, stderrTail } = seen
    yield* Deferred.succeed(
      end,
      condemned === undefined
        ? seen
        : MachineEnd.cases.Failed.make({ status, consoleTail, stderrTail, why: condemned.message })
    )
  }).pipe(Effect.forkDetach({ startImmediately: true }))
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      asked ??= "Terminate"
    })
  )
  const trimming = Effect.flatMap(host.trim(log), (hadGrown) => Effect.sleep(hadGrown ? often : seldom))
  yield* Effect.forkIn(Effect.forever(trimming), ears)

  const console = yield* PubSub.sliding<Take.Take<Uint8Array>>(consoleWindow)
  yield* monitor.stdout.pipe(
    Stream.runForEach((bytes) => PubSub.publish(console, [bytes])),
    Effect.ignore,
    Effect.ensuring(PubSub.end(console, Exit.void)),
    Effect.forkIn(ears, { startImmediately: true })
  )
  return {
    logTail,
    console: Stream.fromPubSubTake(console),
    ended: Deferred.await(end),
    poll: Effect.flatMap(Deferred.poll(end), Effect.transposeOption),
    died: Effect.fnUntraced(function*(stage) {
      const status = yield* monitor.exit
      const { stderr } = yield* monitor.tail
      const { meaning } = FirecrackerExit.describe(status, target)
      return FirecrackerError.make(
        new FirecrackerError.ProcessEnded({
          stage,
          status,
          meaning,
          stderrTail: OutputTail.marked(stderr),
          logTail: yield* logTail
        })
      )
    }),
    onAsk: (request) => {
      const before = asked
      asked = request
      return () => {
        asked = before
      }
    },
    condemn: (why) =>
      Effect.suspend(() => {
        condemned = why
        return Effect.ignore(monitor.shutdown({ atLeast: "SIGKILL" }))
      })
  }
})
