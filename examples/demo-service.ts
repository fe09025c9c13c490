/**
 * `npm run demo:service`: starts the service of service.ts, uses it, ends it under load, and shows that no request failed.
 */
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { ExitStatus } from "effect-microvm-runtime/lifecycle"
import { NodeProcessSpawner, ProcessSpawner, Readiness } from "effect-microvm-runtime/process"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as HttpBody from "effect/http/HttpBody"
import * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Stream from "effect/Stream"
import { once } from "node:events"
import * as NodeNet from "node:net"

/** Two that are free now. */
const freePorts = Effect.promise(async () => {
  const servers = await Promise.all(["service", "probes"].map(async () => {
    const server = NodeNet.createServer().listen(0, "127.0.0.1")
    await once(server, "listening")
    return server
  }))
  const ports = servers.map((server) => {
    const address = server.address()
    return address === null || typeof address === "string" ? 0 : address.port
  })
  for (const server of servers) server.close()
  return ports
})

class DemoFailed extends Data.TaggedError("DemoFailed")<{ readonly message: string }> {}

const millis = (duration: Duration.Duration): string => `${Math.round(Duration.toMillis(duration))} ms`

const demo = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const client = yield* HttpClient.HttpClient
  const spawner = yield* ProcessSpawner.ProcessSpawner
  const [port = 0, healthPort = 0] = yield* freePorts
  const api = `http://127.0.0.1:${port}`
  const ready = `http://127.0.0.1:${healthPort}/readyz`
  const state = yield* fs.makeTempDirectoryScoped({ prefix: "demo-service-" })
  // The server of the database runs as a user of its own.
  yield* fs.chmod(state, 0o755)

  yield* Console.log("Starting examples/service.ts …")
  const command = ChildProcess.make(
    process.execPath,
    [...process.execArgv, new URL("service.ts", import.meta.url).pathname],
    {
      extendEnv: true,
      env: {
        SERVICE_STATE_DIR: state,
        SERVICE_RUNTIME_PORT: String(port),
        SERVICE_HEALTHZ_PORT: String(healthPort),
        SERVICE_HEALTHZ_IP: "127.0.0.1",
        SERVICE_DRAIN_DELAY: "1 second",
        SERVICE_LOG_FORMAT: "pretty",
        NO_COLOR: "1"
      },
      stdin: "ignore"
    }
  )
  const service = yield* spawner.spawn(command)
  const log = yield* Stream.merge(service.stdout, service.stderr).pipe(
    Stream.decodeText,
    Stream.splitLines,
    Stream.runForEach((line) => Console.log(`  │ ${line}`)),
    Effect.forkChild
  )
  const status = Effect.map(client.get(ready), (response) => response.status)
  const isReady = Effect.flatMap(status, (code) => code === 200 ? Effect.void : Effect.fail(`${code}`))
  const [startup] = yield* Effect.timed(
    // With its last lines, which say more than where this program waited for it.
    Effect.catch(
      Readiness.awaitReady(service, isReady, { within: "1 minute" }),
      (error) => new DemoFailed({ message: `It did not start: ${error.message}` })
    )
  )
  yield* Console.log(`Ready after ${millis(startup)}.`)

  const text = `written at ${new Date().toISOString()}`
  yield* client.post(`${api}/notes`, { body: HttpBody.jsonUnsafe({ text }) })
  yield* Console.log(`GET /notes: ${yield* Effect.flatMap(client.get(`${api}/notes`), (response) => response.text)}`)

  // A balancer: it asks every 100 ms whether it may send requests, and sends 100 a second, half of them slow.
  yield* Console.log("\n100 requests a second, half of them take 600 ms; after a second, SIGTERM.")
  const drained = yield* Deferred.make<void>()
  const probe = yield* status.pipe(
    Effect.orElseSucceed(() => 503),
    Effect.delay("100 millis"),
    Effect.repeat({ while: (code) => code === 200 }),
    Effect.andThen(Deferred.succeed(drained, undefined)),
    Effect.forkChild
  )
  const results: Array<Fiber.Fiber<number>> = []
  const send = Effect.gen(function*() {
    for (let serial = 0; !(yield* Deferred.isDone(drained)); serial++) {
      const request = Effect.map(
        client.get(`${api}/${serial % 2 === 0 ? "slow" : "notes"}`),
        (response) => response.status
      )
      results.push(yield* Effect.forkDetach(Effect.orElseSucceed(request, () => 0)))
      yield* Effect.sleep("10 millis")
    }
  })
  const load = yield* Effect.forkChild(send)
  yield* Effect.sleep("1 second")
  yield* service.signal("SIGTERM")
  const [stop, exit] = yield* Effect.timed(service.exit)
  yield* Fiber.join(load)
  const codes = yield* Effect.forEach(results, (fiber) => Fiber.join(fiber))
  yield* Fiber.interrupt(probe)
  yield* Fiber.join(log)

  const failed = codes.filter((code) => code !== 200)
  yield* Console.log(`\nSIGTERM → exit: ${millis(stop)}, drain delay of one second included.`)
  yield* Console.log(`Requests: ${codes.length}, failed: ${failed.length}.`)
  yield* Console.log(`The service ${ExitStatus.format(exit)}: ended in order after a signal.`)
  if (failed.length > 0 || exit._tag !== "Exited" || exit.code !== 10) {
    return yield* new DemoFailed({ message: "This is not what the demo is to show" })
  }
})

const layer = Layer.mergeAll(NodeServices.layer, NodeProcessSpawner.layer, NodeHttpClient.layerNodeHttp)

await Effect.runPromise(demo.pipe(
  Effect.scoped,
  Effect.provide(layer),
  Effect.catchTag("DemoFailed", ({ message }) =>
    Effect.sync(() => {
      process.stderr.write(`${message}\n`)
      process.exitCode = 1
    }))
))
