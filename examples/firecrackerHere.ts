/**
 * The Firecracker of the examples: the one that `FIRECRACKER_BIN` names, for which KVM has to be usable, and else the fake of
 * `effect-microvm-runtime/testing`, in whose machines a scripted guest answers.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { FirecrackerProvider, NodeFirecracker } from "effect-microvm-runtime/firecracker"
import { NodeProcessSpawner } from "effect-microvm-runtime/process"
import { FakeFirecracker } from "effect-microvm-runtime/testing"
import { NodeWarmMachine } from "effect-microvm-runtime/warm"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"

const provider = Layer.unwrap(Effect.gen(function*() {
  const binary = process.env["FIRECRACKER_BIN"]
  if (binary !== undefined) {
    yield* Console.log(`on ${binary}`)
    return FirecrackerProvider.layerWith({ binary })
  }
  const fake = yield* FakeFirecracker.install({ guest: "agent" })
  yield* Console.log(`on a fake of Firecracker ${fake.version}, as FIRECRACKER_BIN names no real one`)
  return FirecrackerProvider.layerWith({ binary: fake.binary, kvm: "assume" })
}))

/** Snapshots in a directory of the example's own, so that a golden machine is made each time. */
const machines = Layer.unwrap(
  Effect.map(
    FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped({ prefix: "microvm-example-" })),
    (directory) => NodeWarmMachine.layerAt({ directory })
  )
)

export const layer = machines.pipe(
  Layer.provideMerge(provider),
  Layer.provideMerge(NodeFirecracker.layer),
  Layer.provideMerge(NodeProcessSpawner.layer),
  Layer.provideMerge(NodeServices.layer)
)
