/** A service of this library; with a child process and a task in the background, if it is to have them. */
import { NodeHttpPart, ProcessPart, Service, Task } from "effect-microvm-runtime/service"
import * as Deferred from "effect/Deferred"
import * as ChildProcess from "effect/process/ChildProcess"
import { hasChild } from "./app.ts"
import { routes } from "./routes.ts"

const failure = Deferred.makeUnsafe<never, string>()
const api = NodeHttpPart.make("api", routes(Deferred.fail(failure, "background work failed")))
const more = [
  Task.make("background", Deferred.await(failure)),
  ProcessPart.make("child", ChildProcess.make("sleep", ["1000"]))
]

Service.main(Service.make({
  name: "peer",
  version: "1.0.0",
  parts: hasChild ? [api, ...more] : [api]
}))
