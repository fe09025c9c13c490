import type * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as MicroVmError from "../../microvm/MicroVmError.ts"
import { MicroVmProvider } from "../../microvm/MicroVmProvider.ts"

/**
 * Stands for a backend that cannot be used here, where machines of it are only to be removed: to kill their processes and to release
 * what they had takes no backend. It gets hold of none.
 */
export const noBackend = (
  error: Config.ConfigError | MicroVmError.MicroVmError
): Layer.Layer<MicroVmProvider, Config.ConfigError | MicroVmError.MicroVmError> => {
  if (error._tag === "ConfigError" || error.reason._tag !== "BackendUnavailable") {
    return Layer.effectContext(Effect.fail(error))
  }
  const { backend, message: why } = error.reason
  return Layer.succeed(MicroVmProvider, {
    backend,
    capabilities: {
      pause: false,
      snapshot: false,
      rename: false,
      powerButton: false,
      panicDetection: false,
      saveKeepsChannels: false,
      diff: false,
      keep: false,
      user: false
    },
    plan: () => Result.fail(error),
    platform: () => Result.fail(error),
    launch: () => Effect.fail(error),
    attach: ({ id }) => MicroVmError.fail(new MicroVmError.AttachFailed({ id, isHeld: false, why }))
  })
}
