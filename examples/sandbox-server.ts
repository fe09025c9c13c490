/**
 * Code of anybody's, run in a machine of its own, with what it writes as it comes:
 *
 *     node_modules/.bin/node examples/sandbox-server.ts &
 *     curl -N localhost:8000/run --data 'uname -a; sleep 1; exit 7'
 *
 * Who hangs up ends his machine. A signal lets what runs come to its end, and leaves nothing.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { NodeProcessSpawner } from "effect-microvm-runtime/process"
import { NodeQemuHost, QemuProvider } from "effect-microvm-runtime/qemu"
import { NodeHttpPart, Part, Service } from "effect-microvm-runtime/service"
import { NodeSupervisor } from "effect-microvm-runtime/supervisor"
import { NodeWarmMachine } from "effect-microvm-runtime/warm"
import * as ByteSize from "effect/ByteSize"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as HttpIncomingMessage from "effect/http/HttpIncomingMessage"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
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

const Routes = HttpRouter.add(
  "POST",
  "/run",
  Effect.gen(function*() {
    const script = yield* (yield* HttpServerRequest.HttpServerRequest).text
    const events = (yield* Sandboxes).run(script).pipe(
      Stream.catch(({ message }) => Stream.succeed({ event: "error", data: message })),
      Stream.map(({ data, event }) => `event: ${event}\ndata: ${JSON.stringify(data)}\n\n`)
    )
    return HttpServerResponse.stream(Stream.encodeText(events), { contentType: "text/event-stream" })
  }).pipe(
    Effect.provideService(HttpIncomingMessage.MaxBodySize, ByteSize.mebibytes(1))
  )
)

Service.main(Service.make({
  name: "sandboxes",
  version: "1.0.0",
  parts: [NodeHttpPart.make("api", Routes, { dependsOn: [sandboxes] })]
}))
