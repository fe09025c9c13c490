import * as Cause from "effect/Cause"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { GuestAgent } from "../../guest/GuestAgent.ts"
import * as GuestCommand from "../../guest/GuestCommand.ts"
import type { GuestError } from "../../guest/GuestError.ts"
import type { GuestSlots } from "../../guest/GuestSlots.ts"
import type { ShutdownOutcome } from "../../lifecycle/ShutdownOutcome.ts"
import type { Answer, Exec, Request, Visitor } from "../ControlRequest.ts"
import { refused } from "./refused.ts"

const ofGuest = ({ message, reason }: GuestError): Answer => {
  switch (reason._tag) {
    case "NoFreeSlot":
      return refused("Busy", message)
    case "InvalidArgument":
      return refused("Invalid", message)
    default:
      return refused("Failed", message)
  }
}

/** What a run lets others do. */
export interface Served<R> {
  /** Its guest, while that answers and does not go down. */
  readonly look: () => { readonly agent: GuestAgent; readonly slots: GuestSlots } | undefined
  readonly phase: () => Extract<Answer, { readonly _tag: "Up" }>["phase"]
  readonly save: (request: Extract<Request, { readonly _tag: "Save" }>) => Effect.Effect<Answer, never, R>
  /** Ends the run, and waits for the end of its machine. Refused while that is not ours to end. */
  readonly stop: (
    how: { readonly grace: Duration.Duration | undefined; readonly force: boolean }
  ) => Effect.Effect<ShutdownOutcome | undefined, Answer>
  /** Told of each command that a visitor has started; its scope closes with the command. */
  readonly onCommand?: ((description: GuestCommand.Description) => Effect.Effect<void, never, Scope.Scope>) | undefined
}

const notReady = refused("NotReady", "the guest has not answered yet, or goes down: try again when the command runs")

const exec = <R>({ look, onCommand }: Served<R>, request: Exec, visitor: Visitor): Effect.Effect<Answer> =>
  Effect.scoped(Effect.gen(function*() {
    const ready = look()
    if (ready === undefined) return notReady
    const command = yield* GuestCommand.run(ready.agent, ready.slots, request)
    if (onCommand !== undefined) yield* onCommand(command.description)
    yield* visitor.signals.pipe(
      Stream.runForEach((signal) => Effect.ignore(command.kill(signal))),
      Effect.forkScoped({ startImmediately: true })
    )
    const status = yield* GuestCommand.connect(command, visitor)
    return { _tag: "Ended", status } satisfies Answer
  })).pipe(Effect.catch((error) => Effect.succeed(ofGuest(error))))

/** Does for visitors what they ask a run for. Whatever goes wrong with that, the run goes on. */
export const serveMachine =
  <R>(served: Served<R>) => (request: Request, visitor: Visitor): Effect.Effect<Answer, never, R> => {
    const answer = (): Effect.Effect<Answer, never, R> => {
      switch (request._tag) {
        case "Save":
          return served.save(request)
        case "Exec":
          return exec(served, request, visitor)
        case "Stop":
          return Effect.match(served.stop({ grace: request.grace, force: request.force }), {
            onFailure: (refusal) => refusal,
            onSuccess: (outcome): Answer => ({ _tag: "Stopped", ...(outcome === undefined ? {} : { outcome }) })
          })
        case "Status": {
          const ready = served.look()
          const phase = served.phase()
          return ready === undefined
            ? Effect.succeed({ _tag: "Up", phase })
            : Effect.map(ready.slots.usage, (slots): Answer => ({ _tag: "Up", phase, slots }))
        }
      }
    }
    return Effect.suspend(answer).pipe(
      Effect.catchDefect((defect) => Effect.succeed(refused("Failed", Cause.pretty(Cause.die(defect)))))
    )
  }
