import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { ExitStatus } from "../../lifecycle/ExitStatus.ts"
import type { Shortage } from "../MachineEnd.ts"
import * as MicroVmError from "../MicroVmError.ts"

interface Asking {
  readonly shortage?: ((status: ExitStatus) => Effect.Effect<Option.Option<Shortage>>) | undefined
}

/** What its host did not give the machine more of, if anybody is asked. */
export const askFor = ({ shortage }: Asking, status: ExitStatus) =>
  Effect.map(
    shortage === undefined ? Effect.succeedNone : shortage(status),
    (found) => Option.isNone(found) ? {} : { shortage: found.value }
  )

/** The same failure, with what the host did not give. */
export const nameShortage = (options: Asking) =>
  Effect.fnUntraced(function*(error: MicroVmError.MicroVmError): Effect.fn.Return<never, MicroVmError.MicroVmError> {
    const { reason } = error
    if (reason._tag !== "LaunchFailed" || reason.status === undefined) return yield* error
    const { cause, consoleTail, id, stage, status, stderrTail } = reason
    const { shortage } = yield* askFor(options, status)
    return yield* shortage === undefined
      ? error
      : MicroVmError.fail(
        new MicroVmError.LaunchFailed({
          id,
          stage,
          status,
          stderrTail,
          consoleTail,
          shortage,
          ...(cause !== undefined && { cause })
        })
      )
  })
