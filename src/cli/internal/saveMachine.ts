import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { MicroVmError } from "../../microvm/MicroVmError.ts"
import type { SnapshotStore } from "../../microvm/SnapshotStore.ts"
import * as WarmMachine from "../../warm/WarmMachine.ts"
import type { Answer, Request } from "../ControlRequest.ts"
import { refused } from "./refused.ts"

const ofError = ({ message, reason }: MicroVmError): Answer =>
  refused(reason._tag === "SnapshotAlreadyExists" ? "NameTaken" : "Failed", message)

/**
 * Saves the machine of a run, once its guest has answered, for whoever asks from outside. Several are saved one after another.
 */
export const saveMachine =
  (look: () => Parameters<typeof WarmMachine.save>[0] | undefined) =>
  (request: Extract<Request, { readonly _tag: "Save" }>): Effect.Effect<Answer, never, SnapshotStore> =>
    Effect.suspend(() => {
      const ready = look()
      if (ready === undefined) {
        return Effect.succeed(refused("NotReady", "the guest has not answered yet: try again when the command runs"))
      }
      let stoodStill = Duration.zero
      const save: WarmMachine.WarmMachine["machine"]["save"] = (directory) =>
        Effect.map(Effect.timed(ready.machine.save(directory)), ([took, saved]) => {
          stoodStill = took
          return saved
        })
      const timed = { ...ready, machine: { ...ready.machine, save } }
      return Effect.timed(WarmMachine.save(timed, request.name)).pipe(
        Effect.map(([took, { id }]): Answer => ({
          _tag: "Saved",
          snapshot: id,
          took: Duration.toMillis(took),
          stoodStill: Duration.toMillis(stoodStill)
        })),
        Effect.catch((error) => Effect.succeed(ofError(error)))
      )
    })
