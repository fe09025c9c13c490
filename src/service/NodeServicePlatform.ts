/**
 * The process and the machine that a service runs on, through Node.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { ProcessSpawner } from "../process/ProcessSpawner.ts"
import { Fatal } from "./Fatal.ts"
import * as HttpProvisioner from "./HttpProvisioner.ts"
import * as NodeHealthListener from "./NodeHealthListener.ts"
import * as NodeLocalProvisioner from "./NodeLocalProvisioner.ts"
import * as NodeSocketActivation from "./NodeSocketActivation.ts"
import * as NodeTelemetry from "./NodeTelemetry.ts"
import { Provisioner } from "./Provisioner.ts"
import type { ServiceConfig } from "./ServiceConfig.ts"
import { fromReason, ServiceErrorReason } from "./ServiceError.ts"
import { ServicePlatform } from "./ServicePlatform.ts"
import * as Sidecar from "./Sidecar.ts"

const write = (stream: NodeJS.WriteStream) => (line: string): Effect.Effect<void> =>
  Effect.sync(() => {
    stream.write(`${line}\n`)
  })

/** Loaded by services that have an API or a sidecar. */
const httpClient = Effect.map(
  Effect.promise(() => import("@effect/platform-node/NodeHttpClient")),
  ({ layerNodeHttp }) => layerNodeHttp
)

const remote = Effect.fnUntraced(function*(api: string, config: ServiceConfig) {
  const { apiKey, projectId } = config
  const provisioner = HttpProvisioner.make({ api: new URL(api), apiKey, projectId })
  // The connections live as long as the service.
  const context = yield* Layer.build(yield* httpClient)
  return yield* Effect.provideContext(provisioner, context)
})

const local = Effect.fnUntraced(function*(config: ServiceConfig) {
  const { projectName, stateDirectory } = config
  const fatal = yield* Fatal
  const layer = NodeLocalProvisioner.layer({
    cwd: process.cwd(),
    projectName,
    stateDirectory,
    onLost: ({ resource, why }) => fatal.report(fromReason(ServiceErrorReason.RunFailed({ part: resource, why })))
  })
  return Context.get(yield* Layer.build(layer), Provisioner)
})

const make = Effect.gen(function*() {
  const spawner = yield* ProcessSpawner
  return ServicePlatform.of({
    env: { ...process.env },
    argv: process.argv.slice(2),
    print: write(process.stdout),
    complain: write(process.stderr),
    provisioner: (config) =>
      Option.match(config.api, {
        onNone: () => Effect.provideService(local(config), ProcessSpawner, spawner),
        onSome: (api) => remote(api, config)
      }),
    health: Effect.fnUntraced(function*(config) {
      if (Option.isNone(config.healthPort)) return
      yield* NodeHealthListener.make({ host: config.healthIp, port: config.healthPort.value })
    }),
    listen: Effect.fnUntraced(function*(config) {
      const sockets = Option.isNone(config.sockets) ? [] : yield* NodeSocketActivation.open(config.sockets.value)
      const [passed, more] = sockets
      if (more !== undefined) {
        const why =
          `LISTEN_FDS: ${sockets.length}, but a service serves one socket: pass one, or nobody answers the others`
        return yield* Effect.fail(fromReason(ServiceErrorReason.ConfigInvalid({ faults: [why] })))
      }
      return passed === undefined ? { host: config.ip, port: config.port } : { fd: passed.fd }
    }),
    telemetry: NodeTelemetry.layer,
    dismissSidecar: Effect.fnUntraced(function*(config) {
      if (Option.isNone(config.sidecar)) return
      yield* Effect.provide(Sidecar.stop(new URL(config.sidecar.value)), yield* httpClient)
    })
  })
})

/**
 * The variables, arguments and streams of this process. Resources come from the API of the configuration, otherwise from
 * this machine.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<ServicePlatform, never, ProcessSpawner> = Layer.effect(ServicePlatform, make)
