import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as FirecrackerHost from "../../firecracker/FirecrackerHost.ts"
import * as FirecrackerProvider from "../../firecracker/FirecrackerProvider.ts"
import * as FirecrackerVersion from "../../firecracker/FirecrackerVersion.ts"

/** Looks for one that machines can run on: gives the provider, and what it is, for people. */
export const find = Effect.gen(function*() {
  const options = yield* FirecrackerProvider.config
  const host = yield* FirecrackerHost.FirecrackerHost
  const { jail } = options
  const observed = yield* host.observe(jail === undefined ? options : { ...options, jailer: jail.jailer })
  const { because, version } = yield* Effect.fromResult(FirecrackerHost.choose(observed, options))
  return {
    detail: `Firecracker ${FirecrackerVersion.format(version)}, since ${because}`,
    provider: FirecrackerProvider.layerWith(options).pipe(
      // Looked at once: the plan that is described is the plan that is run.
      Layer.provide(
        Layer.succeed(FirecrackerHost.FirecrackerHost, { ...host, observe: () => Effect.succeed(observed) })
      )
    )
  }
})

/** Who has named a Firecracker, or a jailer, is to know why it was not taken. */
export const isNamed = Effect.map(
  FirecrackerProvider.config,
  ({ binary, jail }) => binary !== undefined || jail !== undefined
)
