/**
 * A backend without machines: everything happens in memory, on `Clock`, as a script says. For tests and examples; it
 * is never chosen by itself.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { makeMemoryHost } from "./internal/memoryHost.ts"
import { makeMemoryStore } from "./internal/memoryStore.ts"
import { MemoryDriver } from "./MemoryDriver.ts"
import { type Capabilities, MicroVmProvider } from "./MicroVmProvider.ts"
import { SnapshotStore } from "./SnapshotStore.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Default: all. Without `pause` there is no `snapshot` either, and without that no `diff`. */
  readonly capabilities?: Partial<Capabilities> | undefined
}

/**
 * The in-memory backend, a store for its snapshots and the driver of both, with some capabilities turned off.
 *
 * ```ts import.meta.vitest
 * import { Machine, MachineSpec, MemoryProvider } from "effect-microvm-runtime/microvm"
 * import * as Effect from "effect/Effect"
 * const program = Effect.scoped(Effect.gen(function*() {
 *   const machine = yield* Machine.launch(yield* MachineSpec.decode({ id: "web-1", kernel: "/boot/vmlinux" }))
 *   yield* machine.start
 *   return yield* Effect.flip(machine.pause)
 * })).pipe(Effect.map((error) => error.reason._tag))
 * const layer = MemoryProvider.layerWith({ capabilities: { pause: false } })
 * await Effect.runPromise(program.pipe(Effect.provide(layer))) // => "Unsupported"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (options: Options): Layer.Layer<MicroVmProvider | SnapshotStore | MemoryDriver> =>
  Layer.effectContext(Effect.sync(() => {
    const { diff = true, pause = true, snapshot = true, ...others } = options.capabilities ?? {}
    const host = makeMemoryHost({
      pause,
      snapshot: pause && snapshot,
      diff: pause && snapshot && diff,
      rename: true,
      powerButton: true,
      panicDetection: true,
      saveKeepsChannels: true,
      keep: true,
      user: true,
      ...others
    })
    const { corrupt, store } = makeMemoryStore()
    return Context.make(MicroVmProvider, host.provider).pipe(
      Context.add(SnapshotStore, store),
      Context.add(MemoryDriver, { ...host.driver, corrupt })
    )
  }))

/**
 * The in-memory backend, a store for its snapshots and the driver of both.
 *
 * ```ts import.meta.vitest
 * import { Machine, MachineSpec, MemoryDriver, MemoryProvider } from "effect-microvm-runtime/microvm"
 * import * as Effect from "effect/Effect"
 * const program = Effect.scoped(Effect.gen(function*() {
 *   const driver = yield* MemoryDriver.MemoryDriver
 *   const machine = yield* Machine.launch(yield* MachineSpec.decode({ id: "web-1", kernel: "/boot/vmlinux" }))
 *   yield* machine.start
 *   yield* Effect.flatMap(driver.guest("web-1"), (guest) => guest.panic)
 *   return (yield* machine.ended)._tag
 * }))
 * await Effect.runPromise(program.pipe(Effect.provide(MemoryProvider.layer))) // => "Panicked"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<MicroVmProvider | SnapshotStore | MemoryDriver> = layerWith({})
