/**
 * All that `WarmMachine.launch` needs, in memory: for tests of programs that run commands in machines.
 *
 * @since 0.1.0
 */
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { type Image, ImageStore } from "../image/ImageStore.ts"
import * as NodeHasher from "../image/NodeHasher.ts"
import * as MemoryDriver from "../microvm/MemoryDriver.ts"
import * as MemoryProvider from "../microvm/MemoryProvider.ts"
import type { MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import * as GoldenMachines from "../warm/GoldenMachines.ts"
import type * as NodeWarmMachine from "../warm/NodeWarmMachine.ts"
import * as FakeGuestAgent from "./FakeGuestAgent.ts"

/**
 * What is in the guests.
 *
 * @category options
 * @since 0.1.0
 */
export interface GuestOptions extends Pick<FakeGuestAgent.Options, "programs" | "directories" | "renewal"> {
  /** Is given each guest once it serves, to look into it or to make it misbehave. Default: nobody is. */
  readonly onGuest?:
    | ((guest: FakeGuestAgent.FakeGuest, machine: MemoryDriver.MemoryGuest) => Effect.Effect<void>)
    | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options extends GuestOptions, MemoryProvider.Options {
  /** How machines behave besides: how long a start takes, what fails. Default: all works at once. */
  readonly script?: Omit<MemoryDriver.Script, "program" | "restored"> | undefined
}

const sha256 = "0".repeat(64)
const file = { name: "file", size: 1, sha256 }
const imageOf = (name = "default"): Image => ({
  name,
  digest: sha256,
  kernel: "/kernel",
  initramfs: "/initramfs",
  kernelRelease: "6.1.0",
  manifest: { recipe: sha256, kernelRelease: "6.1.0", packages: [], files: { kernel: file, initramfs: file } }
})

/** Any image is there, and none is on a disk. */
const images = Layer.succeed(ImageStore, {
  ensure: (name) => Effect.succeed(imageOf(name)),
  known: (name) => Effect.succeedSome(imageOf(name)),
  update: (name) => Effect.succeed(imageOf(name)),
  list: Effect.succeed([]),
  writable: Effect.void,
  remove: () => Effect.succeed(false)
})

/**
 * The program of a guest whose agent answers and powers it off, for a script of `MemoryDriver`: where one machine is to behave
 * unlike the others.
 *
 * @category constructors
 * @since 0.1.0
 */
export const guest = ({ onGuest, ...options }: GuestOptions = {}) => (machine: MemoryDriver.MemoryGuest) =>
  Effect.scoped(Effect.gen(function*() {
    const serving = yield* FakeGuestAgent.serve(machine.channel, {
      ...options,
      onShutdown: (mode) => mode === "powerdown" ? machine.powerOff : mode === "reboot" ? machine.reboot : Effect.void
    })
    yield* onGuest?.(serving, machine) ?? Effect.void
    return yield* Effect.never
  }))

/**
 * Machines whose guests have programs of yours, in place of `NodeWarmMachine.layer` and a backend. They are restored from a golden
 * one, and made their own, as real ones are. Move a `TestClock` in steps of a second or less, so that whoever waits can act in between.
 *
 * ```ts import.meta.vitest
 * import { FakeWarmMachine } from "effect-microvm-runtime/testing"
 * import { WarmMachine } from "effect-microvm-runtime/warm"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.scoped(Effect.gen(function*() {
 *   const { agent } = yield* WarmMachine.launch({ id: "web-1" })
 *   const { status, stdout } = yield* agent.exec({ path: "sh", args: ["-c", "exit 7"] })
 *   return [status._tag === "Exited" ? status.code : status._tag, new TextDecoder().decode(stdout)]
 * }))
 * const layer = FakeWarmMachine.layerWith({
 *   programs: { sh: ({ args, write }) => Effect.as(write("stdout", `told ${args[1]}`), 7) }
 * })
 * await Effect.runPromise(Effect.provide(program, layer)) // => [7, "told exit 7"]
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (
  { capabilities, script, ...options }: Options
): Layer.Layer<NodeWarmMachine.Services | MicroVmProvider | MemoryDriver.MemoryDriver> =>
  GoldenMachines.layerWith({}).pipe(
    Layer.provideMerge(Layer.effectDiscard(
      MemoryDriver.MemoryDriver.use((driver) => driver.script("*", { ...script, program: guest(options) }))
    )),
    Layer.provideMerge(
      Layer.mergeAll(
        MemoryProvider.layerWith({ capabilities }),
        images,
        NodeHasher.layer,
        SecureRandom.layerWebCrypto
      )
    )
  )

/**
 * Machines whose guests have the programs of `FakeGuestProgram.builtins`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<NodeWarmMachine.Services | MicroVmProvider | MemoryDriver.MemoryDriver> = layerWith({})
