/**
 * What sysctl(8) reads and writes: the files below `/proc/sys`, in the network namespace that the host's commands work in.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Option from "effect/Option"
import { fromUndefinedOr } from "effect/Option"
import type { HostError } from "./HostError.ts"

/**
 * A setting is named by its path: `net/ipv4/ip_forward`. Slashes and not dots, since an interface may have dots in its name.
 *
 * @category services
 * @since 0.1.0
 */
export class KernelSettings extends Context.Service<KernelSettings, {
  /** Without white space around it; none where this kernel has no such setting. Fails with `IoFailed`. */
  readonly read: (setting: string) => Effect.Effect<Option.Option<string>, HostError>
  /**
   * The same value for all. Those that this kernel does not have are passed over. Fails with `IoFailed`, and with `Unavailable`
   * where nobody may write to `/proc/sys`.
   */
  readonly write: (settings: ReadonlyArray<string>, value: string) => Effect.Effect<void, HostError>
}>()("effect-microvm-runtime/host/KernelSettings") {}

/**
 * Settings that are kept in a map, for tests. What is not in it, the kernel does not have.
 *
 * ```ts import.meta.vitest
 * import { KernelSettings } from "effect-microvm-runtime/host"
 * import * as Effect from "effect/Effect"
 * const values = new Map([["net/ipv4/ip_forward", "0"]])
 * const program = KernelSettings.KernelSettings.use((settings) => settings.write(["net/ipv4/ip_forward"], "1"))
 * await Effect.runPromise(program.pipe(Effect.provide(KernelSettings.layerMemory(values))))
 * values.get("net/ipv4/ip_forward") // => "1"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMemory = (values: Map<string, string>): Layer.Layer<KernelSettings> =>
  Layer.succeed(KernelSettings, {
    read: (setting) => Effect.sync(() => fromUndefinedOr(values.get(setting))),
    write: (settings, value) =>
      Effect.sync(() => {
        for (const setting of settings) if (values.has(setting)) values.set(setting, value)
      })
  })
