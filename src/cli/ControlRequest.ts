/**
 * What is said between whoever asks a run for something, and the run.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Sink from "effect/Sink"
import type * as Stream from "effect/Stream"
import { ExitStatus } from "../lifecycle/ExitStatus.ts"
import { Elapsed, ShutdownOutcome } from "../lifecycle/ShutdownOutcome.ts"
import type { Signal } from "../lifecycle/Signal.ts"
import * as Snapshot from "../microvm/Snapshot.ts"

/**
 * What can be asked of a run.
 *
 * - `Save`: to save its machine under a name. It is done also when whoever asked has gone.
 * - `Exec`: to run another command in its machine. `env` is added to what the guest gives every command; `cwd` is `/` by
 *   default. When whoever asked goes away, the command is killed.
 * - `Stop`: to end its machine, in order within `grace`, or at once with `force`. Answered when it is over. It is done also when
 *   whoever asked has gone.
 * - `Status`: how it is doing.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Request = Schema.TaggedUnion({
  Save: { name: Snapshot.SnapshotName },
  Exec: {
    command: Schema.NonEmptyString,
    args: Schema.Array(Schema.String),
    env: Schema.Record(Schema.String, Schema.RedactedFromValue(Schema.String)),
    cwd: Schema.optionalKey(Schema.String)
  },
  Stop: { grace: Schema.optionalKey(Elapsed), force: Schema.Boolean },
  Status: {}
})

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
 * - `Ended`: the command has ended, and all that it wrote has been sent.
 * - `Stopped`: the machine has ended. `outcome` is absent when there was none yet.
 * - `Up`: the run goes on. `slots` is absent until the guest has answered.
 * - `Refused`: nothing was done, or nothing of it is left. `NotReady`: the guest has not answered yet, or goes down. `Busy`: as
 *   many commands run already as can. `Invalid`: what was asked for makes no sense.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Answer = Schema.TaggedUnion({
  Saved: { snapshot: Snapshot.Sha256, took: Schema.Finite, stoodStill: Schema.Finite },
  Ended: { status: ExitStatus },
  Stopped: { outcome: Schema.optionalKey(ShutdownOutcome) },
  Up: {
    phase: Schema.Literals(["starting", "running", "stopping"]),
    slots: Schema.optionalKey(Schema.Struct({ free: Schema.Int, inUse: Schema.Int, retired: Schema.Int }))
  },
  Refused: {
    reason: Schema.Literals(["NotReady", "NameTaken", "Busy", "Invalid", "Failed"]),
    message: Schema.String
  }
})

/**
 * @category models
 * @since 0.1.0
 */
export type Answer = typeof Answer.Type

const answers = { Save: "Saved", Exec: "Ended", Stop: "Stopped", Status: "Up" } as const

/**
 * The answer to a request that is not refused.
 *
 * @category models
 * @since 0.1.0
 */
export type AnswerTo<R extends Request> = Extract<Answer, { readonly _tag: (typeof answers)[R["_tag"]] }>

/**
 * A request for a command.
 *
 * @category models
 * @since 0.1.0
 */
export type Exec = Extract<Request, { readonly _tag: "Exec" }>

/**
 * The streams of whoever has asked for a command, at the run. None of them fails: when he goes away, the handler is
 * interrupted. Not more than 256 KiB of each are under way; then the one who writes waits for the one who reads.
 *
 * @category models
 * @since 0.1.0
 */
export interface Visitor {
  readonly stdin: Stream.Stream<Uint8Array>
  readonly stdout: Sink.Sink<void, Uint8Array>
  readonly stderr: Sink.Sink<void, Uint8Array>
  /** Signals for the command. When too many wait, the oldest are dropped. */
  readonly signals: Stream.Stream<Signal>
}

/**
 * Answers requests. Only an `Exec` has streams; to the others, the visitor has no input and reads nothing.
 *
 * @category models
 * @since 0.1.0
 */
export type Handler = (request: Request, visitor: Visitor) => Effect.Effect<Answer>

/**
 * What a command elsewhere is connected to. `signals` are passed on to it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Streams<E = never, R = never> {
  readonly stdin: Stream.Stream<Uint8Array, E, R>
  readonly stdout: Sink.Sink<unknown, Uint8Array, unknown, E, R>
  readonly stderr: Sink.Sink<unknown, Uint8Array, unknown, E, R>
  readonly signals: Stream.Stream<Signal, E, R>
}

/**
 * Is it the answer to this request, and no refusal?
 *
 * @category guards
 * @since 0.1.0
 */
export const isAnswerTo = <R extends Request>(request: R, answer: Answer): answer is AnswerTo<R> =>
  answer._tag === answers[request._tag]
