/**
 * A service as this process.
 *
 * @since 0.1.0
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { ProcessSpawner } from "../process/ProcessSpawner.ts"
import * as NodeService from "./NodeService.ts"
import * as NodeServicePlatform from "./NodeServicePlatform.ts"
import { ServiceEvents } from "./Phase.ts"
import type * as Resource from "./Resource.ts"
import type { Service } from "./ServiceDefinition.ts"
import * as ServiceRun from "./ServiceRun.ts"

/**
 * What a service may use when `main` runs it: the file system, paths, the terminal, child processes.
 *
 * @category models
 * @since 0.1.0
 */
export type Host = NodeServices.NodeServices | ProcessSpawner

/** Many services start no processes: what it takes is loaded with the first one. */
const processes = Layer.effect(
  ProcessSpawner,
  Effect.gen(function*() {
    const scope = yield* Effect.scope
    const spawner = yield* Effect.promise(() => import("../process/NodeProcessSpawner.ts")).pipe(
      Effect.flatMap(({ layer }) => Layer.buildWithScope(layer, scope)),
      Effect.map(Context.get(ProcessSpawner)),
      Effect.cached
    )
    return ProcessSpawner.of({
      spawn: (command, options) => Effect.flatMap(spawner, ({ spawn }) => spawn(command, options))
    })
  })
)

const host = Layer.mergeAll(
  NodeServicePlatform.layer.pipe(Layer.provideMerge(processes)),
  NodeServices.layer,
  ServiceEvents.layer
)

/**
 * Nothing, or what is missing for a service to run on its own.
 *
 * @category models
 * @since 0.1.0
 */
export type Missing<Needs> = [Needs] extends [never] ? unknown : { readonly "this service still needs": Needs }

const run = (service: Service<unknown, Resource.Any>) =>
  Effect.contextWith((context: Context.Context<NodeService.Edge | Host | ServiceEvents>) =>
    // `Missing` has seen to it that this is all that the service needs.
    Effect.provideContext(ServiceRun.run(service), Context.makeUnsafe<unknown>(context.mapUnsafe))
  )

/**
 * Runs a service as this process and exits with its code: the last thing that the file of a service does. Signals are taken
 * from the moment on at which it is called.
 *
 * The compiler refuses a service that needs more than its resources, `Given` and `Host` provide: give the rest to its
 * parts with `Layer.provide`.
 *
 * @category running
 * @since 0.1.0
 */
export const main: <R, Res extends Resource.Any>(
  service: Service<R, Res> & Missing<Exclude<ServiceRun.Needs<R, Res>, Host>>
) => void = (service: Service<unknown, Resource.Any>) =>
  NodeService.main(Effect.provide(run(service), host), {
    blocked: service.stopBudget,
    code: service.exitCodes.budgetPassed,
    defect: service.exitCodes.defect
  })
