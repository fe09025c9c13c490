import { describe, it } from "@effect/vitest"
import { MemoryDriver, MemoryProvider, type MicroVmProvider } from "effect-microvm-runtime/microvm"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Socket from "effect/socket/Socket"
import * as MicroVmConformance from "../../src/testing/MicroVmConformance.ts"

/** The guest sends back each byte that it gets on its channel `echo`. */
const echo = (guest: MemoryDriver.MemoryGuest) =>
  Effect.scoped(Effect.gen(function*() {
    const socket = yield* guest.channel("echo")
    const pull = yield* Socket.readerBytes(socket)
    const writer = yield* socket.writer
    for (;;) yield* writer.writeAll(yield* pull)
  })).pipe(Effect.ignore)

const fromGuest =
  (act: (guest: MemoryDriver.MemoryGuest) => Effect.Effect<void>) => (machine: { readonly id: string }) =>
    MemoryDriver.MemoryDriver.use((driver) => Effect.flatMap(driver.guest(machine.id), act))

let places = 0

const suite = (name: string, capabilities: MicroVmProvider.Capabilities): void => {
  const scenarios = MicroVmConformance.scenarios({
    capabilities,
    spec: (id) => ({ id, kernel: "/boot/vmlinux", channels: ["echo", "org.example.agent"] }),
    powerOff: fromGuest((guest) => guest.powerOff),
    reboot: fromGuest((guest) => guest.reboot),
    panic: fromGuest((guest) => guest.panic),
    kill: fromGuest((guest) => guest.kill("SIGKILL")),
    echo: "echo",
    directory: Effect.sync(() => `/kept/${++places}`),
    remember: (machine, word) => fromGuest((guest) => Effect.sync(() => void guest.memory.set("word", word)))(machine),
    recall: ({ id }) =>
      MemoryDriver.MemoryDriver.use((driver) =>
        Effect.map(driver.guest(id), ({ memory }) => memory.get("word") ?? "nothing")
      ),
    corrupt: ({ id }) => MemoryDriver.MemoryDriver.use((driver) => driver.corrupt(id, "it was changed")),
    left: MemoryDriver.MemoryDriver.use((driver) =>
      Effect.map(driver.claims, (claims) => claims.map(({ id }) => `machine ${id}`))
    )
  })
  const host = Layer.effectDiscard(MemoryDriver.MemoryDriver.use((driver) => driver.script("*", { program: echo })))
    .pipe(
      Layer.provideMerge(MemoryProvider.layerWith({ capabilities }))
    )

  describe(`the in-memory backend with ${name} conforms`, () => {
    for (const { name: title, run, skip } of scenarios) {
      const skipped = skip !== undefined
      if (skipped) console.warn(`skipped: ${title}: ${skip}`)
      it.effect.skipIf(skipped)(skipped ? `${title} (${skip})` : title, () => Effect.provide(run, host))
    }
  })
}

const all = (has: boolean): MicroVmProvider.Capabilities => ({
  pause: has,
  snapshot: has,
  diff: has,
  rename: has,
  powerButton: has,
  panicDetection: has,
  saveKeepsChannels: has,
  keep: has,
  user: has
})
suite("all capabilities", all(true))
suite("no capability", all(false))
suite("a save that ends channels", { ...all(true), saveKeepsChannels: false })
