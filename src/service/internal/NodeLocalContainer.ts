import * as Effect from "effect/Effect"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Redacted from "effect/Redacted"
import * as NodePath from "node:path"
import * as ShutdownPolicy from "../../lifecycle/ShutdownPolicy.ts"
import * as NodeReadiness from "../../process/NodeReadiness.ts"
import { ProcessSpawner } from "../../process/ProcessSpawner.ts"
import * as Readiness from "../../process/Readiness.ts"
import type * as Container from "../Container.ts"
import { ProvisionerError } from "../Provisioner.ts"
import * as LocalState from "./NodeLocalState.ts"
import { run } from "./NodePostgresPrograms.ts"

const policy = ShutdownPolicy.signals({ grace: "10 seconds" })

/** The client finds its daemon and its registry keys by the environment; it gives nothing of it to the container. */
const client = (program: string, args: ReadonlyArray<string>, env: Record<string, Redacted.Redacted> = {}) =>
  ChildProcess.make(program, args, { cwd: "/", stdin: "ignore", env, extendEnv: true })

/** The first that is there and reaches its engine. */
const findEngine = Effect.gen(function*() {
  const faults: Array<string> = []
  for (const program of ["docker", "podman"]) {
    const found = yield* Effect.result(run(program, client(program, ["info"])))
    if (found._tag === "Success") return program
    faults.push(found.failure.message.split("\n").slice(-1).join(""))
  }
  return yield* new ProvisionerError({
    message:
      "a container needs docker or podman on this machine: install and start one of them, or run what it is for by " +
      `yourself and use a custom resource (${faults.join("; ")})`
  })
})

/**
 * Runs a container until the scope closes, as a child process in the foreground: it stops with us. One of the same name that
 * a run before left behind is removed.
 */
export const start = Effect.fnUntraced(
  function*(options: {
    readonly input: typeof Container.Input.Type
    readonly stateDirectory: string
    readonly holder: string
  }) {
    const { container_name: name, env, image, port } = options.input
    const engine = yield* findEngine
    yield* LocalState.claim(NodePath.resolve(options.stateDirectory, "containers", name), options.holder)
    const remove = run(engine, client(engine, ["rm", "--force", name]))
    yield* Effect.acquireRelease(
      Effect.ignore(remove),
      () => remove.pipe(Effect.timeoutOption("10 seconds"), Effect.ignore)
    )
    const variables = env.map((variable) => {
      const at = variable.indexOf("=")
      return [variable.slice(0, at), Redacted.make(variable.slice(at + 1))] as const
    })
    const spawner = yield* ProcessSpawner
    const process = yield* spawner.spawn(
      client(engine, [
        "run",
        "--rm",
        `--name=${name}`,
        `--publish=127.0.0.1::${port}`,
        // By name: the values are in the environment of the client, and on no command line.
        ...variables.map(([key]) => `--env=${key}`),
        "--",
        image
      ], Object.fromEntries(variables)),
      { policy, tailBytes: 4096 }
    )
    const published = run(engine, client(engine, ["port", name, port])).pipe(
      Effect.flatMap((text) => {
        const number = Number(/:(\d+)\s*$/m.exec(text)?.[1])
        const what = `${engine} port ${name}: ${text}`
        return number > 0 ? Effect.succeed(number) : Effect.fail(new ProvisionerError({ message: what }))
      }),
      Effect.tap((number) => port.endsWith("/tcp") ? NodeReadiness.tcpPortAccepts(number) : Effect.void)
    )
    // The image may have to be fetched; the start timeout of the service is the limit.
    const hostPort = yield* Readiness.awaitReady(process, published, { within: "1 hour" })
    return { process, hostPort, description: `${image} in ${engine} container ${name}, port ${hostPort}` }
  },
  Effect.catchTag(
    "ProcessError",
    (cause) => Effect.fail(new ProvisionerError({ message: `container: ${cause.message}`, cause }))
  )
)
