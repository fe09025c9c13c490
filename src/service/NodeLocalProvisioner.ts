/**
 * Resources of this machine, for a service that runs without a platform around it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as RcMap from "effect/RcMap"
import * as RcRef from "effect/RcRef"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import { ProcessSpawner } from "../process/ProcessSpawner.ts"
import * as Container from "./Container.ts"
import * as NodeLocalPostgres from "./NodeLocalPostgres.ts"
import * as NodeLocalSecrets from "./NodeLocalSecrets.ts"
import * as NodePglite from "./NodePglite.ts"
import * as Postgres from "./Postgres.ts"
import { Provisioner, ProvisionerError, type ResourceAnswer, type ResourceRequest } from "./Provisioner.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface LocalProvisionerOptions {
  /** Where the file of secrets is looked for. */
  readonly cwd: string
  /** Where data are kept between runs; made if it is not there. One service at a time may use it. */
  readonly stateDirectory: string
  /** The database of a resource that names none; also tells others who holds the state directory. */
  readonly projectName: string
  /**
   * `auto` takes what made the data that are there; where there are none, a PostgreSQL server if this machine has one that
   * can be run, else PGlite. It logs which and why. Default `auto`.
   */
  readonly database?: "auto" | "postgres" | "pglite" | undefined
  /** Instead of looking for one of `NodeLocalSecrets.files`. It must be there. */
  readonly secretsFile?: string | undefined
  /**
   * Told when something that was started ended although it was still in use: a database server that somebody killed. It is
   * logged as an error in any case. Nothing is started again: who was connected has lost what he had open.
   */
  readonly onLost?: ((what: { readonly resource: string; readonly why: string }) => Effect.Effect<void>) | undefined
}

const failure = (cause: { readonly message: string }): ProvisionerError =>
  cause instanceof ProvisionerError ? cause : new ProvisionerError({ message: cause.message, cause })

/** Neither a value of a secret nor of another input is in the message. */
const decode = <A, I>(schema: Schema.Codec<A, I>, { config }: ResourceRequest) =>
  Effect.mapError(
    Schema.decodeUnknownEffect(schema)(config, { errors: "all" }),
    (cause) => new ProvisionerError({ message: `the request cannot be read: ${cause.message}` })
  )

/** Has an earlier run left data of PGlite? */
const hasEmbedded = (stateDirectory: string): boolean => {
  const directory = NodePath.join(stateDirectory, "pglite")
  try {
    return NodeFs.readdirSync(directory).some((name) => NodeFs.existsSync(NodePath.join(directory, name, "data")))
  } catch {
    return false
  }
}

const make = Effect.fnUntraced(function*(options: LocalProvisionerOptions) {
  const spawner = yield* ProcessSpawner
  const { cwd, onLost = () => Effect.void, projectName, stateDirectory } = options
  const holder = `${projectName} (pid ${process.pid})`

  /** What was started is watched until the scope closes that it was started for. */
  const watch = (resource: string, ended: Effect.Effect<string>) =>
    ended.pipe(
      Effect.tap((why) => Effect.logError(`${resource} is lost: ${why}`)),
      Effect.flatMap((why) => onLost({ resource, why })),
      Effect.forkScoped
    )

  const startServer = Effect.gen(function*() {
    const started = yield* NodeLocalPostgres.start({ stateDirectory, holder })
    yield* Effect.logInfo(`database: ${started.description}`)
    yield* watch("PostgreSQL", Effect.map(started.exit, ExitStatus.format))
    return started
  })

  const startEmbedded = Effect.fnUntraced(function*(database: string) {
    const started = yield* NodePglite.start({ stateDirectory, database, holder })
    yield* Effect.logInfo(`database: ${started.description}`)
    yield* watch("PGlite", started.lost)
    return started
  })

  // Several resources, and several requests for one, share what they need; it stops with the last of them.
  const server = yield* RcRef.make({ acquire: startServer })
  const embedded = yield* RcMap.make({ lookup: startEmbedded })
  const containers = yield* RcMap.make({
    lookup: (request: string) =>
      Effect.gen(function*() {
        const input = yield* Schema.decodeEffect(Schema.fromJsonString(Container.Input))(request)
        const LocalContainer = yield* Effect.promise(() => import("./internal/NodeLocalContainer.ts"))
        const container = yield* LocalContainer.start({ input, stateDirectory, holder })
        yield* Effect.logInfo(`container: ${container.description}`)
        yield* watch(input.container_name, Effect.map(container.process.exit, ExitStatus.format))
        return { host_port: String(container.hostPort) }
      })
  })

  /** Once for all: two resources of a service do not get databases of two kinds. */
  const engine = yield* Effect.cached(Effect.gen(function*() {
    const { database = "auto" } = options
    if (database !== "auto") return database
    const found = yield* Effect.result(NodeLocalPostgres.available({ stateDirectory }))
    const data = NodePath.join(stateDirectory, "postgres", "data")
    const hasOurs = hasEmbedded(stateDirectory)
    // Another engine would begin with an empty database beside the data that are there.
    if (NodeFs.existsSync(data)) {
      if (found._tag === "Success") return "postgres" as const
      const { message } = found.failure
      if (!hasOurs) {
        return yield* new ProvisionerError({
          message:
            `the data of earlier runs in ${data} cannot be used: ${message}; or move them away to begin with none`
        })
      }
      yield* Effect.logWarning(`database: the data of a PostgreSQL server stay in ${data}, unseen: ${message}`)
    }
    if (hasOurs) {
      yield* Effect.logInfo(`database: the embedded PGlite, as earlier runs have left its data in ${stateDirectory}`)
      return "pglite" as const
    }
    if (found._tag === "Success") return "postgres" as const
    const { message } = found.failure
    yield* Effect.logInfo(`database: the embedded PGlite, for no PostgreSQL server can be used: ${message}`)
    return "pglite" as const
  }))

  const database = Effect.fnUntraced(function*(request: ResourceRequest) {
    const input = yield* decode(Postgres.Input, request)
    if (input.local_uri !== null) return input.local_uri
    const name = input.db_name ?? projectName
    const info = (yield* engine) === "postgres"
      ? yield* (yield* RcRef.get(server)).database(name)
      : (yield* RcMap.get(embedded, name)).info
    return yield* Effect.orDie(Schema.encodeEffect(Postgres.Output)(info))
  })

  const answer = (
    request: ResourceRequest
  ): Effect.Effect<unknown, { readonly message: string }, ProcessSpawner | Scope.Scope> => {
    switch (request.type) {
      case Postgres.types.shared:
      case Postgres.types.dedicated:
        return database(request)
      case Container.type:
        return Effect.flatMap(
          decode(Container.Input, request),
          (input) => RcMap.get(containers, JSON.stringify(input))
        )
      default:
        return Effect.fail(
          new ProvisionerError({
            message: `nothing on this machine makes a resource of type "${request.type}" (there are ${
              [...Object.values(Postgres.types), Container.type].join(", ")
            }): make it a custom resource`
          })
        )
    }
  }

  return Provisioner.of({
    secrets: Effect.gen(function*() {
      const found = yield* NodeLocalSecrets.load({ cwd, file: options.secretsFile })
      yield* Effect.forEach(found.warnings, (warning) => Effect.logWarning(warning), { discard: true })
      if (found.source._tag === "Some") {
        yield* Effect.logInfo(`secrets: ${Array.from(found.secrets.keys()).join(", ")} of ${found.source.value}`)
      }
      return found.secrets
    }).pipe(Effect.mapError(failure)),
    request: Effect.fn("NodeLocalProvisioner.request")((request) =>
      answer(request).pipe(
        Effect.map((output): ResourceAnswer => ({ type: request.type, state: "ready", output })),
        Effect.mapError(failure),
        Effect.provideService(ProcessSpawner, spawner)
      )
    )
  })
})

/**
 * A provisioner that makes databases and containers on this machine and reads secrets from a file. What a request starts
 * lives until the scope of the request closes; its data stay.
 *
 * ```ts import.meta.vitest
 * import { NodeLocalProvisioner, Provisioner } from "effect-microvm-runtime/service"
 * import { NodeProcessSpawner } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const local = NodeLocalProvisioner.layer({ cwd: "/proc/self", stateDirectory: "/proc/self", projectName: "notes" })
 * const program = Provisioner.Provisioner.use((provisioner) => provisioner.secrets)
 * const secrets = await Effect.runPromise(Effect.provide(program, Layer.provide(local, NodeProcessSpawner.layer)))
 * secrets.size // => 0
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: LocalProvisionerOptions): Layer.Layer<Provisioner, never, ProcessSpawner> =>
  Layer.effect(Provisioner, make(options))
