/**
 * What a service takes from the process and the machine that it runs on, so that the same service runs in a test.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { Fatal } from "./Fatal.ts"
import type { Health } from "./Health.ts"
import type { ListenAddress } from "./ListenAddress.ts"
import type { Provisioner } from "./Provisioner.ts"
import type { ServiceConfig } from "./ServiceConfig.ts"
import type { ServiceError } from "./ServiceError.ts"

/**
 * Everything that differs between a real process and a test.
 *
 * @category services
 * @since 0.1.0
 */
export class ServicePlatform extends Context.Service<ServicePlatform, {
  /** The environment variables, as they were when the process started. */
  readonly env: Readonly<Record<string, string | undefined>>
  /** What comes after the name of the program. */
  readonly argv: ReadonlyArray<string>
  /** A line on stdout. Never fails, whoever has closed it. */
  readonly print: (line: string) => Effect.Effect<void>
  /** A line on stderr. */
  readonly complain: (line: string) => Effect.Effect<void>
  /** Who makes the resources of a service with this configuration. */
  readonly provisioner: (
    config: ServiceConfig,
    service: { readonly name: string }
  ) => Effect.Effect<Provisioner["Service"], ServiceError, Scope.Scope | Fatal>
  /** Answers probes, if the configuration says where, until the scope closes. */
  readonly health: (config: ServiceConfig) => Effect.Effect<void, ServiceError, Scope.Scope | Health | Fatal>
  /** Where parts that serve HTTP listen. */
  readonly listen: (config: ServiceConfig) => Effect.Effect<ListenAddress["Service"], ServiceError, Scope.Scope>
  /** Loggers, and exporters of traces, metrics and logs. */
  readonly telemetry: (
    config: ServiceConfig,
    service: { readonly name: string; readonly version: string }
  ) => Layer.Layer<never>
  /** Tells the sidecar, if there is one, that provisioning is over. Best effort, and bounded. */
  readonly dismissSidecar: (config: ServiceConfig) => Effect.Effect<void>
}>()("effect-microvm-runtime/service/ServicePlatform") {}
