/**
 * How `microvm` speaks to another `microvm run` of the same user: what is said, and what can go wrong.
 *
 * ```
 *   microvm snapshot save ID NAME ──request──▸ microvm run --name ID
 *                                 ◂──events──
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
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Snapshot from "../microvm/Snapshot.ts"

/**
 * What can be asked of a run: to save its machine under a name.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Request = Schema.TaggedUnion({ Save: { name: Snapshot.SnapshotName } })

/**
 * @category models
 * @since 0.1.0
 */
export type Request = typeof Request.Type

/**
 * How a request ended.
 *
 * - `Saved`: all of the snapshot is on the disk. `took` and `stoodStill` are in milliseconds: from the request to the end, and
 *   the part of it in which the guest's processors were stopped.
 * - `Refused`: nothing was done, or nothing of it is left. `NotReady`: the guest has not answered yet, or goes down.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Answer = Schema.TaggedUnion({
  Saved: { snapshot: Snapshot.Sha256, took: Schema.Finite, stoodStill: Schema.Finite },
  Refused: { reason: Schema.Literals(["NotReady", "NameTaken", "Failed"]), message: Schema.String }
})

/**
 * @category models
 * @since 0.1.0
 */
export type Answer = typeof Answer.Type

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
  readonly reason: Extract<Answer, { _tag: "Refused" }>["reason"]
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
 * Whoever answers there is not a run of this user with this cache.
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
 *
 * @category services
 * @since 0.1.0
 */
export class Control extends Context.Service<Control, {
  readonly listen: (
    id: string,
    handle: (request: Request) => Effect.Effect<Answer>
  ) => Effect.Effect<void, ControlError, Scope.Scope>
  readonly ask: (
    id: string,
    request: Request
  ) => Effect.Effect<Extract<Answer, { _tag: "Saved" }>, ControlError>
}>()("effect-microvm-runtime/cli/Control") {
  /** Runs in memory, for tests. */
  static readonly layerMemory: Layer.Layer<Control> = Layer.sync(Control, () => {
    const runs = new Map<string, (request: Request) => Effect.Effect<Answer, ControlError>>()
    return Control.of({
      listen: Effect.fnUntraced(function*(id, handle) {
        if (runs.has(id)) return yield* fail(new Unavailable({ why: `another run has a machine ${id}` }))
        const scope = yield* Effect.scope
        const receive = (request: Request) =>
          handle(request).pipe(
            Effect.forkIn(scope, { startImmediately: true }),
            Effect.flatMap(Fiber.await),
            Effect.flatMap((exit) => Exit.isSuccess(exit) ? Effect.succeed(exit.value) : fail(new Gone({ id })))
          )
        yield* Effect.acquireRelease(
          Effect.sync(() => runs.set(id, receive)),
          () => Effect.sync(() => runs.delete(id))
        )
      }),
      ask: (id, request) =>
        Effect.suspend(() => {
          const receive = runs.get(id)
          return receive === undefined
            ? fail(new NoSuchMachine({ id, there: [...runs.keys()] }))
            : Effect.flatMap(receive(request), (answer) => toSaved(id, answer))
        })
    })
  })
}

/**
 * An answer that is no refusal.
 *
 * @category combinators
 * @since 0.1.0
 */
export const toSaved = (
  id: string,
  answer: Answer
): Effect.Effect<Extract<Answer, { _tag: "Saved" }>, ControlError> =>
  answer._tag === "Saved"
    ? Effect.succeed(answer)
    : fail(new Refused({ id, reason: answer.reason, why: answer.message }))
