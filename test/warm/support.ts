/** Machines in memory that boot for a while and answer at once when they are restored. */
import * as Context from "effect/Context"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as TestClock from "effect/testing/TestClock"
import * as ImageError from "../../src/image/ImageError.ts"
import { type Image, ImageStore } from "../../src/image/ImageStore.ts"
import * as NodeHasher from "../../src/image/NodeHasher.ts"
import * as MemoryDriver from "../../src/microvm/MemoryDriver.ts"
import * as MemoryProvider from "../../src/microvm/MemoryProvider.ts"
import type { Capabilities } from "../../src/microvm/MicroVmProvider.ts"
import * as FakeGuestAgent from "../../src/testing/FakeGuestAgent.ts"
import type * as FakeGuestRenewal from "../../src/testing/FakeGuestRenewal.ts"
import * as GoldenMachines from "../../src/warm/GoldenMachines.ts"
import * as WarmMachine from "../../src/warm/WarmMachine.ts"
import * as WarmProgress from "../../src/warm/WarmProgress.ts"
import { image } from "../cli/world.ts"

export const takes = { image: 4000, boot: 3000, restore: 60 } as const

export interface Setting {
  readonly capabilities?: Partial<Capabilities>
  /** How restored guests take their renewal. */
  readonly renewal?: FakeGuestRenewal.Options
  /** Restored guests never answer. */
  readonly mute?: boolean
  readonly script?: MemoryDriver.Script
  readonly golden?: GoldenMachines.Options
  /** Why no image can be made. */
  readonly noImage?: ImageError.ImageErrorReason
}

export const makeWorld = Effect.fnUntraced(function*(setting: Setting = {}) {
  const guests = new Map<number, FakeGuestAgent.FakeGuest>()
  let current: Image | undefined
  let digest = "a".repeat(64)
  let ensured = 0
  const serve = (renewal: FakeGuestRenewal.Options) => (guest: MemoryDriver.MemoryGuest) =>
    Effect.scoped(Effect.gen(function*() {
      const serving = yield* FakeGuestAgent.serve(guest.channel, { renewal, onShutdown: () => guest.powerOff })
      guests.set(guest.life, serving)
      return yield* Effect.never
    }))
  const unknown = (name: string) =>
    Effect.fail(ImageError.fromReason(ImageError.ImageErrorReason.UnknownImage({ name, known: ["default"] })))
  const images = Layer.succeed(
    ImageStore,
    ImageStore.of({
      ensure: (name = "default") =>
        name === "default"
          ? Effect.suspend(() => {
            ensured++
            if (setting.noImage !== undefined) return Effect.fail(ImageError.fromReason(setting.noImage))
            current = { ...image, digest }
            return Effect.succeed(current)
          }).pipe(Effect.delay(takes.image))
          : unknown(name),
      known: (name = "default") =>
        name === "default"
          ? Effect.sync(() => Option.fromUndefinedOr(current?.digest === digest ? current : undefined))
          : unknown(name),
      update: () => Effect.never,
      list: Effect.succeed([]),
      writable: Effect.void,
      remove: () => Effect.succeed(false)
    })
  )
  const context = yield* Layer.build(
    GoldenMachines.layerWith(setting.golden ?? {}).pipe(
      Layer.provideMerge(MemoryProvider.layerWith({ capabilities: setting.capabilities })),
      Layer.provideMerge(Layer.mergeAll(images, NodeHasher.layer, SecureRandom.layerWebCrypto))
    )
  )
  const driver = Context.get(context, MemoryDriver.MemoryDriver)
  yield* driver.script("*", {
    program: (guest) => Effect.andThen(Effect.sleep(takes.boot), serve({})(guest)),
    restored: (guest) => setting.mute === true ? Effect.never : serve({ clockOff: -90_000, ...setting.renewal })(guest),
    launch: (step) => step === "restore" ? Effect.sleep(takes.restore) : Effect.void,
    ...setting.script
  })
  const told: Array<string> = []
  const phases: Array<string> = []
  const options = (some: Partial<WarmMachine.Options>): WarmMachine.Options => ({
    id: "m",
    onProgress: (progress) => Effect.sync(() => void told.push(WarmProgress.format(progress))),
    phase: (name) => (effect) =>
      Effect.suspend(() => {
        phases.push(name)
        return effect
      }),
    ...some
  })
  return {
    context,
    driver,
    guests,
    told,
    phases,
    ensured: () => ensured,
    /** The image of that name is another one from now on. */
    changeImage: () => void (digest = "b".repeat(64)),
    launch: (some: Partial<WarmMachine.Options> = {}) =>
      Effect.provideContext(WarmMachine.launch(options(some)), context),
    steps: Effect.map(driver.events, (events) => events.map(({ id, what }) => `${id} ${what}`))
  }
})

/** Lets time pass until it is done. */
export const settle = Effect.fnUntraced(function*<A, E, R>(effect: Effect.Effect<A, E, R>) {
  const fiber = yield* Effect.forkChild(effect, { startImmediately: true })
  for (let passed = 0; fiber.pollUnsafe() === undefined; passed++) {
    if (passed === 3000) return yield* Effect.die(new Error("it does not end"))
    yield* TestClock.adjust("100 millis")
  }
  return yield* Fiber.join(fiber)
})
