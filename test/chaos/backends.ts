/** Backends by name, each loaded by those who need it, and what a machine of it boots. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { writeFileSync } from "node:fs"
import { join } from "node:path"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import type { MachineSpecOptions } from "../../src/microvm/MachineSpec.ts"
import type { MicroVmProvider } from "../../src/microvm/MicroVmProvider.ts"
import type * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import type { Order } from "./orders.ts"
import * as ScriptBackend from "./scriptBackend.ts"

export interface Backend {
  readonly layer: Layer.Layer<MicroVmProvider, unknown, NodeProcessSpawner.Services>
  readonly base: Omit<MachineSpecOptions, "id">
}

const script = Effect.succeed<Backend>({
  layer: ScriptBackend.layer,
  base: { kernel: "/none", channels: [ScriptBackend.channel] }
})

const memory = Effect.promise(async (): Promise<Backend> => {
  const { layer } = await import("../../src/microvm/MemoryProvider.ts")
  return { layer, base: { kernel: "/none" } }
})

const qemu = Effect.promise(async () => ({
  ...await import("../../src/image/ImageStore.ts"),
  store: (await import("../../src/image/NodeImageStore.ts")).layer,
  host: (await import("../../src/qemu/NodeQemuHost.ts")).layer,
  provider: (await import("../../src/qemu/QemuProvider.ts")).layerConfig
})).pipe(
  Effect.flatMap(({ ImageStore, host, provider, store }) =>
    Effect.map(ImageStore.use((images) => images.ensure()), ({ initramfs, kernel }): Backend => ({
      layer: provider.pipe(Layer.provide(host)),
      base: { kernel, initramfs, channels: [GuestAgent.channelName] }
    })).pipe(Effect.provide(store.pipe(Layer.provide(NodeServices.layer))))
  )
)

/** On the fake Firecracker. */
const firecracker = (directory: string) =>
  Effect.promise(async () => ({
    fake: await import("../../src/testing/FakeFirecracker.ts"),
    host: (await import("../../src/firecracker/NodeFirecracker.ts")).layer,
    provider: (await import("../../src/firecracker/FirecrackerProvider.ts")).layerWith
  })).pipe(Effect.flatMap(({ fake, host, provider }) =>
    Effect.map(fake.install({ bootMillis: 0, guest: "none" }), ({ binary }): Backend => {
      const kernel = join(directory, "vmlinux")
      writeFileSync(kernel, "kernel")
      return {
        layer: provider({ binary, kvm: "assume" }).pipe(
          Layer.provide(host),
          Layer.provide(NodeServices.layer)
        ),
        base: { kernel }
      }
    })
  ))

/** What belongs to it is the scope's. */
export const load = (name: Order["backend"], directory: string) =>
  ({ script, memory, qemu, firecracker: firecracker(directory) })[name]
