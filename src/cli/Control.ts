/**
 * How `microvm` speaks to another `microvm run` of the same user.
 *
 * ```
 *   microvm snapshot save ID NAME ──request──▸ microvm run --name ID
 *                                 ◂──answer──
 *   microvm exec ID -- CMD        ◂─streams──▸
 * ```
 *
 * Whatever a peer says or leaves out, the run goes on.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { ExitStatus } from "../lifecycle/ExitStatus.ts"
import * as ControlRequest from "./ControlRequest.ts"
import * as Session from "./internal/session.ts"

/**
 * No run of this user has a machine of this id. `there` are those that have one.
 *
 * @category reasons
 * @since 0.1.0
 */
export class NoSuchMachine extends Data.TaggedError("NoSuchMachine")<{
  readonly id: string
  readonly there: ReadonlyArray<string>
}> {
  override get message(): string {
    return `no machine ${this.id} runs here: ${
      this.there.length === 0 ? "there is none that can be reached" : `there ${list(this.there)}`
    }`
  }
}

const list = (ids: ReadonlyArray<string>): string => `${ids.length === 1 ? "is" : "are"} ${ids.join(", ")}`

/**
 * The run does not do what it was asked for, and says why.
 *
 * @category reasons
 * @since 0.1.0
 */
export class Refused extends Data.TaggedError("Refused")<{
  readonly id: string
  readonly reason: Extract<ControlRequest.Answer, { _tag: "Refused" }>["reason"]
  readonly why: string
}> {
  override get message(): string {
    return this.why
  }
}

/**
 * The run has not said anything for too long.
 *
 * @category reasons
 * @since 0.1.0
 */
export class NoAnswer
  extends Data.TaggedError("NoAnswer")<{ readonly id: string; readonly within: Duration.Duration }>
{
  override get message(): string {
    return `the run of machine ${this.id} did not answer within ${Duration.format(this.within)}: is it stopped?`
  }
}

/**
 * The run has ended before it answered.
 *
 * @category reasons
 * @since 0.1.0
 */
export class Gone extends Data.TaggedError("Gone")<{ readonly id: string }> {
  override get message(): string {
    return `the run of machine ${this.id} ended before it was done`
  }
}

/**
 * Whoever answers there is not a run of this user with this directory.
 *
 * @category reasons
 * @since 0.1.0
 */
export class Stranger extends Data.TaggedError("Stranger")<{ readonly id: string }> {
  override get message(): string {
    return `what answers for machine ${this.id} does not know the key of this user's runs`
  }
}

/**
 * Requests can be neither made nor taken here.
 *
 * @category reasons
 * @since 0.1.0
 */
export class Unavailable extends Data.TaggedError("Unavailable")<{ readonly why: string }> {
  override get message(): string {
    return this.why
  }
}

/**
 * The one error of this module. Its `reason` says what is wrong.
 *
 * @category errors
 * @since 0.1.0
 */
export class ControlError extends Data.TaggedError("ControlError")<{
  readonly reason: NoSuchMachine | Refused | NoAnswer | Gone | Stranger | Unavailable
}> {
  override get message(): string {
    return this.reason.message
  }
}

/**
 * Wraps a reason.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fail = (reason: ControlError["reason"]): Effect.Effect<never, ControlError> =>
  Effect.fail(new ControlError({ reason }))

/**
 * - `listen`: takes requests for the machine of this id until the scope closes, which interrupts those under way. Fails with
 *   `Unavailable` when it cannot, as when another run has a machine of this id.
 * - `ask`: makes a request of the run that has the machine of this id, and waits for its answer. Interrupting it does not
 *   call the request off.
 * - `exec`: runs a command in the machine of this id, connected to streams of ours, and waits for its end. Interrupting it, or
 *   a failure of one of the streams, kills the command.
 *
 * @category services
 * @since 0.1.0
 */
export class Control extends Context.Service<Control, {
  readonly listen: (id: string, handle: ControlRequest.Handler) => Effect.Effect<void, ControlError, Scope.Scope>
  readonly ask: <R extends Exclude<ControlRequest.Request, ControlRequest.Exec>>(
    id: string,
    request: R
  ) => Effect.Effect<ControlRequest.AnswerTo<R>, ControlError>
  readonly exec: <E, R>(
    id: string,
    request: ControlRequest.Exec,
    streams: ControlRequest.Streams<E, R>
  ) => Effect.Effect<ExitStatus, ControlError | E, R>
}>()("effect-microvm-runtime/cli/Control") {
  /** Runs in memory, for tests. */
  static readonly layerMemory: Layer.Layer<Control> = Layer.sync(Control, () => {
    const runs = new Map<string, { readonly handle: ControlRequest.Handler; readonly scope: Scope.Scope }>()
    const meet = Effect.fnUntraced(function*<Q extends ControlRequest.Request, E, R>(
      id: string,
      request: Q,
      streams?: ControlRequest.Streams<E, R>
    ) {
      const run = runs.get(id)
      if (run === undefined) return yield* fail(new NoSuchMachine({ id, there: [...runs.keys()] }))
      const wires = Session.memoryWires()
      yield* Session.serve(wires.run, request, run.handle).pipe(
        Effect.ensuring(wires.hangUp),
        Effect.forkIn(run.scope, { startImmediately: true })
      )
      const answer = yield* Effect.ensuring(Session.visit(wires.visitor, faults(id), streams), wires.hangUp)
      return yield* toAnswer(id, request, answer)
    })
    return Control.of({
      listen: Effect.fnUntraced(function*(id, handle) {
        if (runs.has(id)) return yield* fail(new Unavailable({ why: `another run has a machine ${id}` }))
        const scope = yield* Effect.scope
        yield* Effect.acquireRelease(
          Effect.sync(() => runs.set(id, { handle, scope })),
          () => Effect.sync(() => runs.delete(id))
        )
      }),
      ask: (id, request) => meet(id, request),
      exec: (id, request, streams) => Effect.map(meet(id, request, streams), ({ status }) => status)
    })
  })
}

/**
 * What it means that a run breaks off a conversation, or says nothing more.
 *
 * @category constructors
 * @since 0.1.0
 */
export const faults = (id: string): { readonly broken: ControlError; readonly silent: ControlError } => ({
  broken: new ControlError({ reason: new Gone({ id }) }),
  silent: new ControlError({ reason: new NoAnswer({ id, within: Session.answerWithin }) })
})

/**
 * The answer to a request, unless it is a refusal. A run that answers something else has broken off.
 *
 * @category combinators
 * @since 0.1.0
 */
export const toAnswer = <R extends ControlRequest.Request>(
  id: string,
  request: R,
  answer: ControlRequest.Answer
): Effect.Effect<ControlRequest.AnswerTo<R>, ControlError> => {
  if (ControlRequest.isAnswerTo(request, answer)) return Effect.succeed(answer)
  return answer._tag === "Refused"
    ? fail(new Refused({ id, reason: answer.reason, why: answer.message }))
    : Effect.fail(faults(id).broken)
}
