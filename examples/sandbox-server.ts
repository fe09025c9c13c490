/**
 * Code of anybody's, run in a machine of its own, with what it writes as it comes:
 *
 *     node_modules/.bin/node examples/sandbox-server.ts &
 *     curl -N localhost:8000/run --data 'uname -a; sleep 1; exit 7'
 *
 * Who hangs up ends his machine. Of more requests than can wait some are answered with 503 at once. A signal lets what runs come to its end, and leaves nothing.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { NodeProcessSpawner } from "effect-microvm-runtime/process"
import { NodeQemuHost, QemuProvider } from "effect-microvm-runtime/qemu"
import { NodeHttpPart, Part, Service } from "effect-microvm-runtime/service"
import { NodeSupervisor } from "effect-microvm-runtime/supervisor"
import { NodeWarmMachine } from "effect-microvm-runtime/warm"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Routes } from "./sandbox-routes.ts"
import { Sandboxes } from "./sandboxes.ts"

const machines = NodeWarmMachine.layer.pipe(
  Layer.provideMerge(QemuProvider.layer.pipe(Layer.provide(NodeQemuHost.layer)))
)
const supervisor = Layer.unwrap(
  Effect.map(
    Config.String("SANDBOX_STATE").pipe(Config.withDefault("/tmp/sandboxes")),
    (directory) => NodeSupervisor.layer({ directory })
  )
)
const sandboxes = Part.make(
  "sandboxes",
  Sandboxes.layer.pipe(
    Layer.provide(supervisor),
    Layer.provide(machines),
    Layer.provide(NodeProcessSpawner.layer),
    Layer.provide(NodeServices.layer)
  )
)

Service.main(Service.make({
  name: "sandboxes",
  version: "1.0.0",
  parts: [NodeHttpPart.make("api", Routes, { dependsOn: [sandboxes] })]
}))
