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
import { MicroVmError } from "../microvm/MicroVmError.ts"
import type { MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import type { ProcessHolder } from "../process/ProcessHolder.ts"
import type { ProcessHost } from "../process/ProcessHost.ts"
import type { ProcessSpawner } from "../process/ProcessSpawner.ts"
import * as QemuHost from "../qemu/QemuHost.ts"
import * as QemuProvider from "../qemu/QemuProvider.ts"
import { FirecrackerHere } from "./FirecrackerHere.ts"

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

/** Loaded where it is asked for. */
const code = Effect.promise(() => import("./internal/firecrackerBackend.ts"))

const firecracker: Found<FirecrackerHere | ProcessHolder | ProcessHost | ProcessSpawner> = Layer.unwrap(
  Effect.gen(function*() {
    const { parts } = yield* FirecrackerHere
    const { find } = yield* code
    const found = Effect.map(
      find,
      ({ detail, provider }) => Layer.merge(provider, Layer.succeed(BackendDetail, detail))
    )
    return Layer.provide(Layer.unwrap(found), parts)
  })
)

const isUnavailable = (error: unknown): error is MicroVmError =>
  error instanceof MicroVmError && error.reason._tag === "BackendUnavailable"

const qemuSince = (error: MicroVmError) =>
  Layer.unwrap(Effect.gen(function*() {
    const { isNamed } = yield* code
    if (!(yield* isNamed)) return qemu
    return Layer.flatMap(qemu, (context) =>
      Layer.succeedContext(
        Context.add(context, BackendDetail, `${Context.get(context, BackendDetail)}; not Firecracker: ${error.message}`)
      ))
  }))

/**
 * The backend that was asked for, as `MICROVM_FIRECRACKER_*` and `MICROVM_QEMU_*` say. `auto` takes Firecracker where there is
 * one and KVM is usable, and else QEMU.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  choice: Choice
): Found<FirecrackerHere | ProcessHolder | ProcessHost | ProcessSpawner | QemuHost.QemuHost> => {
  switch (choice) {
    case "firecracker":
      return firecracker
    case "qemu":
      return qemu
    case "auto":
      return Layer.unwrap(Effect.gen(function*() {
        const { mayBe } = yield* FirecrackerHere
        return (yield* mayBe)
          ? Layer.catch(
            firecracker,
            (error) => isUnavailable(error) ? qemuSince(error) : Layer.effectContext(Effect.fail(error))
          )
          : qemu
      }))
  }
}
