/** Builds the default image in the directory named by its argument, and prints each step. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as ImageStore from "../../src/image/ImageStore.ts"
import * as NodeImageStore from "../../src/image/NodeImageStore.ts"

const store = NodeImageStore.layerAt({ directory: process.argv[2] ?? "" }).pipe(Layer.provide(NodeServices.layer))

await Effect.runPromise(
  ImageStore.ImageStore.use((images) =>
    images.ensure("default", {
      onProgress: (step) => Effect.sync(() => void process.stdout.write(`${JSON.stringify(step)}\n`))
    })
  ).pipe(Effect.provide(store))
)
