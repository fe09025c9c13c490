/** `NodeRuntime.runMain` with `Layer.launch`, and a router; with a child process and a task in the background, if it is to have them. */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import * as ChildProcess from "effect/process/ChildProcess"
import { createServer } from "node:http"
import { hasChild, port, stopBudget } from "./app.ts"
import { routes } from "./routes.ts"

const fail = Effect.forkDetach(Effect.delay(Effect.fail("background work failed"), 1))

const beside = Layer.provide(
  Layer.effectDiscard(Effect.gen(function*() {
    yield* Effect.forkScoped(Effect.never)
    yield* ChildProcess.make("sleep", ["1000"])
  })),
  NodeServices.layer
)

const server = HttpRouter.serve(routes(fail), { disableLogger: true, disableListenLog: true }).pipe(
  Layer.provide(NodeHttpServer.layer(createServer, { port, gracefulShutdownTimeout: stopBudget }))
)

Layer.mergeAll(hasChild ? beside : Layer.empty, server).pipe(
  Layer.launch,
  NodeRuntime.runMain
)
