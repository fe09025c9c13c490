/** `NodeRuntime.runMain` with `Layer.launch`, and a router. */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import { createServer } from "node:http"
import { port, stopBudget } from "./app.ts"
import { routes } from "./routes.ts"

const fail = Effect.forkDetach(Effect.delay(Effect.fail("background work failed"), 1))

HttpRouter.serve(routes(fail), { disableLogger: true, disableListenLog: true }).pipe(
  Layer.provide(NodeHttpServer.layer(createServer, { port, gracefulShutdownTimeout: stopBudget })),
  Layer.launch,
  NodeRuntime.runMain
)
