/**
 * Which backend runs a machine, and why.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as SchemaIssue from "effect/SchemaIssue"
import * as FirecrackerHost from "../firecracker/FirecrackerHost.ts"
import * as FirecrackerProvider from "../firecracker/FirecrackerProvider.ts"
import * as FirecrackerVersion from "../firecracker/FirecrackerVersion.ts"
import { MicroVmError } from "../microvm/MicroVmError.ts"
import type { MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import type { ProcessHolder } from "../process/ProcessHolder.ts"
import type { ProcessSpawner } from "../process/ProcessSpawner.ts"
import * as QemuHost from "../qemu/QemuHost.ts"
import * as QemuProvider from "../qemu/QemuProvider.ts"

/**
 * @category models
 * @since 0.1.0
 */
export type Choice = typeof choices[number]

/**
 * @category constants
 * @since 0.1.0
 */
export const choices = ["auto", "firecracker", "qemu"] as const

/**
 * What is taken where nothing is asked for: `MICROVM_BACKEND`, by default `auto`.
 *
 * @category configuration
 * @since 0.1.0
 */
export const config: Config.Config<Choice> = Config.Literals(choices, "MICROVM_BACKEND").pipe(
  Config.withDefault("auto" as const)
)

/**
 * What was taken, for people: `"QEMU 7.2.22 with TCG, since the CPU shows neither vmx nor svm"`.
 *
 * @category services
 * @since 0.1.0
 */
export class BackendDetail
  extends Context.Service<BackendDetail, string>()("effect-microvm-runtime/cli/BackendDetail")
{}

/**
 * The phrase for a QEMU.
 *
 * @category conversions
 * @since 0.1.0
 */
export const describe = ({ accelerator, because, version }: QemuHost.Setup): string =>
  `QEMU ${QemuHost.formatVersion(version)} with ${accelerator === "kvm" ? "KVM" : "TCG"}, since ${because}`

const issuesOf = SchemaIssue.makeFormatterStandardSchemaV1()

/**
 * What is wrong with the environment, or with the host, for people.
 *
 * @category conversions
 * @since 0.1.0
 */
export const explain = (error: unknown): string => {
  if (!(error instanceof Config.ConfigError)) return error instanceof Error ? error.message : String(error)
  if (error.cause._tag !== "SchemaError") return error.message
  return issuesOf(error.cause.issue).issues.map(({ message, path = [] }) => {
    const name = path.map((segment) => String(typeof segment === "object" ? segment.key : segment)).join("_")
    return `${name} is not valid: ${message}`
  }).join("\n")
}

type Found<R> = Layer.Layer<BackendDetail | MicroVmProvider, Config.ConfigError | MicroVmError, R>

const qemu: Found<ProcessHolder | ProcessSpawner | QemuHost.QemuHost> = Layer.unwrap(Effect.gen(function*() {
  const options = yield* QemuProvider.config
  const host = yield* QemuHost.QemuHost
  const observed = yield* host.observe(options)
  const setup = yield* Effect.fromResult(QemuHost.choose(observed, options))
  return Layer.merge(
    QemuProvider.layerWith(options).pipe(
      // Looked at once: the plan that is described is the plan that is run.
      Layer.provide(Layer.succeed(QemuHost.QemuHost, { ...host, observe: () => Effect.succeed(observed) }))
    ),
    Layer.succeed(BackendDetail, describe(setup))
  )
}))

const firecracker: Found<FirecrackerProvider.Requirements> = Layer.unwrap(Effect.gen(function*() {
  const options = yield* FirecrackerProvider.config
  const host = yield* FirecrackerHost.FirecrackerHost
  const observed = yield* host.observe(options)
  const { because, version } = yield* Effect.fromResult(FirecrackerHost.choose(observed, options))
  return Layer.merge(
    FirecrackerProvider.layerWith(options).pipe(
      Layer.provide(
        Layer.succeed(FirecrackerHost.FirecrackerHost, { ...host, observe: () => Effect.succeed(observed) })
      )
    ),
    Layer.succeed(BackendDetail, `Firecracker ${FirecrackerVersion.format(version)}, since ${because}`)
  )
}))

const isUnavailable = (error: unknown): error is MicroVmError =>
  error instanceof MicroVmError && error.reason._tag === "BackendUnavailable"

/** Who has named a Firecracker, or a jailer, is to know why it was not taken. */
const qemuSince = (error: MicroVmError) =>
  Layer.unwrap(
    Effect.map(FirecrackerProvider.config, ({ binary, jail }) =>
      binary === undefined && jail === undefined ? qemu : Layer.flatMap(qemu, (context) =>
        Layer.succeedContext(
          Context.add(
            context,
            BackendDetail,
            `${Context.get(context, BackendDetail)}; not Firecracker: ${error.message}`
          )
        )))
  )

/**
 * The backend that was asked for, as `MICROVM_FIRECRACKER_*` and `MICROVM_QEMU_*` say. `auto` takes Firecracker where there is
 * one and KVM is usable, and else QEMU.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (choice: Choice): Found<FirecrackerProvider.Requirements | ProcessHolder | QemuHost.QemuHost> => {
  switch (choice) {
    case "firecracker":
      return firecracker
    case "qemu":
      return qemu
    case "auto":
      return Layer.catch(
        firecracker,
        (error) => isUnavailable(error) ? qemuSince(error) : Layer.effectContext(Effect.fail(error))
      )
  }
}
