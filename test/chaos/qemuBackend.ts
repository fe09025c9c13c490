/** The real thing. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import { ImageStore } from "../../src/image/ImageStore.ts"
import * as NodeImageStore from "../../src/image/NodeImageStore.ts"
import * as NodeQemuHost from "../../src/qemu/NodeQemuHost.ts"
import * as QemuProvider from "../../src/qemu/QemuProvider.ts"

export const layer = QemuProvider.layerConfig.pipe(Layer.provide(NodeQemuHost.layer))

/** What a machine of it boots. */
export const image = ImageStore.use((images) => images.ensure()).pipe(
  Effect.map(({ initramfs, kernel }) => ({ kernel, initramfs, channels: [GuestAgent.channelName] })),
  Effect.provide(NodeImageStore.layer.pipe(Layer.provide(NodeServices.layer)))
)
