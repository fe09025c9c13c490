import * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Shutdown from "../../lifecycle/Shutdown.ts"
import type * as ShutdownOutcome from "../../lifecycle/ShutdownOutcome.ts"
import * as ShutdownPolicy from "../../lifecycle/ShutdownPolicy.ts"
import * as MachineEnd from "../MachineEnd.ts"
import type { MachineRequest, Vmm } from "../MicroVmProvider.ts"
import type { Life } from "./life.ts"

/**
 * A stage that the backend knows nothing of, put before the policy's own: the guest's agent is asked to power off. Its
 * request is interrupted when the next stage comes.
 *
 * @category models
 * @since 0.1.0
 */
export type LeadingStage = ShutdownPolicy.StageOptions<Effect.Effect<void, unknown>>

/**
 * How a machine is to be ended. `leading`, `policy` and `onEvent` count when the call is the first: it starts the
 * shutdown. Each later call can only hasten it, by `request`.
 *
 * @category options
 * @since 0.1.0
 */
export interface ShutdownOptions {
  /** Stages before those of the policy. Default none. */
  readonly leading?: ReadonlyArray<LeadingStage> | undefined
  /** Default: the policy of the launch. */
  readonly policy?: ShutdownPolicy.ShutdownPolicy<MachineRequest> | undefined
  readonly request?: Shutdown.ShutdownRequest | undefined
  readonly onEvent?: ((event: Shutdown.ShutdownEvent) => Effect.Effect<void>) | undefined
}

/** The one shutdown of a life, with the names of its stages, and which is the first that leaves the guest out. */
interface Ladder {
  readonly shutdown: Shutdown.Shutdown
  readonly names: ReadonlyArray<string>
  readonly firstWithoutGuest: number
}

const asksGuest = (stage: { readonly request: MachineRequest }) => stage.request === "PowerButton"

/** How a machine is ended: once, by the stages of whoever asks first. */
export const makeEnding = ({ ended, id, isAsleep, life, onBegin, policy: usual, poll, vmm, wake }: {
  readonly id: string
  readonly vmm: Vmm
  readonly life: Life
  readonly ended: Effect.Effect<MachineEnd.MachineEnd>
  readonly poll: Effect.Effect<Option.Option<MachineEnd.MachineEnd>>
  readonly policy: ShutdownPolicy.ShutdownPolicy<MachineRequest>
  /** Has its guest never run? */
  readonly isAsleep: () => boolean
  /** Sets a guest going that stands still, so that it can hear. */
  readonly wake: Effect.Effect<void, unknown>
  /** Run when the first stage begins. */
  readonly onBegin: Effect.Effect<unknown>
}) => {
  const target: Shutdown.ShutdownTarget<Effect.Effect<void, unknown>, unknown> = {
    poll: Effect.map(poll, Option.map((end) => end.status)),
    ended: Effect.map(ended, (end) => end.status),
    request: (ask) => ask,
    remains: vmm.remains
  }
  let ladder: Ladder | undefined
  let told: ShutdownOutcome.ShutdownOutcome | undefined
  const makeLadder = Effect.fnUntraced(function*({ leading = [], onEvent, policy = usual }: ShutdownOptions) {
    const { stages } = yield* Effect.fromResult(ShutdownPolicy.make(Arr.appendAll(
      leading.map((stage) => ({ ...stage, request: Effect.andThen(wake, stage.request) })),
      Arr.map(policy.stages, (stage) => {
        const ask: Effect.Effect<void, unknown> = vmm.request(stage.request)
        return { ...stage, request: asksGuest(stage) ? Effect.andThen(wake, ask) : ask }
      })
    )))
    const shutdown = yield* Shutdown.make(target, { stages }, {
      onEvent: (event) =>
        Effect.andThen(
          event._tag === "StageStarted" && !life.wasAsked() ? Effect.andThen(life.stopping, onBegin) : Effect.void,
          // One that throws is not to keep us from what is ours.
          onEvent === undefined ? Effect.void : Effect.suspend(() => onEvent(event))
        )
    })
    const unasked = policy.stages.findIndex((stage) => !asksGuest(stage))
    return {
      shutdown,
      names: stages.map((stage) => stage.name),
      firstWithoutGuest: unasked === -1 ? stages.length - 1 : leading.length + unasked
    }
  })
  return {
    shutdown: Effect.fn("Machine.shutdown", { attributes: { machine: id } })(function*(options: ShutdownOptions = {}) {
      const made = ladder ?? (yield* makeLadder(options))
      const current = ladder ??= made
      const { atLeast, within } = options.request ?? {}
      const { firstWithoutGuest, names } = current
      // A guest that never ran has nothing to put in order, and cannot hear.
      const skip = isAsleep() && !life.wasAsked() &&
        (atLeast === undefined || atLeast === "next" || names.slice(0, firstWithoutGuest).includes(atLeast))
      const outcome = yield* current.shutdown.run({ within, atLeast: skip ? names[firstWithoutGuest] : atLeast }).pipe(
        // Nothing has begun, so the stages of this call are not to bind the next one.
        Effect.tapErrorTag("NoSuchStage", () =>
          Effect.sync(() => {
            if (!life.wasAsked()) ladder = undefined
          }))
      )
      const end = yield* poll
      // All are told the same.
      told ??= { ...outcome, acknowledged: Option.isNone(end) ? "unknown" : MachineEnd.acknowledged(end.value) }
      return told
    }),
    extend: (by: Duration.Input) => ladder === undefined ? Effect.succeed(Duration.zero) : ladder.shutdown.extend(by)
  }
}
