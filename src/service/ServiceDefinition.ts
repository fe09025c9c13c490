/**
 * A service as one value: what it is called, what it needs, what it is made of, and how long it may take to stop.
 *
 * Nothing happens before `Service.run`, or `Service.main` at the edge.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as ExitCode from "../lifecycle/ExitCode.ts"
import type { Fatal } from "./Fatal.ts"
import * as Health from "./Health.ts"
import * as Names from "./internal/serviceNames.ts"
import type { ListenAddress } from "./ListenAddress.ts"
import type * as Part from "./Part.ts"
import * as Parts from "./Parts.ts"
import type { ServiceEvents } from "./Phase.ts"
import type * as Resource from "./Resource.ts"
import type { ServiceConfig } from "./ServiceConfig.ts"
import type { ServiceError } from "./ServiceError.ts"

/**
 * What the parts and the main program of every service may use, beside the outputs of its resources.
 *
 * @category models
 * @since 0.1.0
 */
export type Given = CurrentService | Fatal | Health.Health | ListenAddress | ServiceEvents | Scope.Scope

/**
 * The running service.
 *
 * @category services
 * @since 0.1.0
 */
export class CurrentService extends Context.Service<CurrentService, {
  readonly name: string
  readonly version: string
  readonly config: ServiceConfig
}>()("effect-microvm-runtime/service/CurrentService") {}

/**
 * `R` is what its parts and its main program need; what its resources (`Res`) give is among that.
 *
 * @category models
 * @since 0.1.0
 */
export interface Service<out R, out Res extends Resource.Any> {
  readonly name: string
  readonly version: string
  readonly resources: ReadonlyArray<Res>
  readonly parts: ReadonlyArray<Part.Any>
  /** The parts as something that starts and stops. Fails for parts that do not fit together. */
  readonly assemble: Effect.Effect<Parts.Parts<never, R>, ServiceError>
  readonly main: Option.Option<Effect.Effect<unknown, unknown, R>>
  readonly addChecks: Effect.Effect<void, never, R | Scope.Scope | Health.Health>
  readonly stopBudget: Duration.Duration
  readonly drainDelay: Duration.Duration
  readonly maxExtension: Duration.Duration
  readonly startWithin: Duration.Duration
  readonly exitCodes: ExitCode.ServiceTable
  readonly prefix: string
}

/**
 * How a service is written down.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options<
  Resources extends ReadonlyArray<Resource.Any>,
  Parts extends ReadonlyArray<Part.Any>,
  R
> {
  /** 1 to 63 letters, digits and `-`, no `-` at the ends. */
  readonly name: string
  readonly version: string
  /** Default none. */
  readonly resources?: Resources | undefined
  /** What runs as long as the service does. Parts that others depend on need not be listed. */
  readonly parts?: Parts | undefined
  /**
   * The main program, beside the parts; what parts provide is for those that depend on them, so work that needs it is a
   * `Task`. When it ends, the service ends by itself (0), when it fails, the service has failed (1). Default:
   * the service runs until somebody ends it.
   */
  readonly main?: Effect.Effect<unknown, unknown, R> | undefined
  /**
   * Further conditions of being ready or alive. A check that needs what a part provides is a part itself:
   * `Part.make("orders", Health.layerCheck(…), { dependsOn: [sql] })`.
   */
  readonly checks?: ReadonlyArray<Health.Check<R>> | undefined
  /**
   * From the signal to the exit, all included. Default 25 seconds, which fits into the 30 of Kubernetes; the environment
   * variable `…_STOP_BUDGET` overrides it.
   */
  readonly stopBudget?: Duration.Input | undefined
  /**
   * How long requests are still served after the service has said that it is not ready any more: at least twice the period
   * of who asks. Part of the budget. Default zero; `…_DRAIN_DELAY` overrides it.
   */
  readonly drainDelay?: Duration.Input | undefined
  /** How much more than the budget the parts may ask for, in all. Default zero. */
  readonly maxExtension?: Duration.Input | undefined
  /** The longest that provisioning may take, and each part to start that says nothing itself. Default 10 minutes. */
  readonly startWithin?: Duration.Input | undefined
  /** Default `ExitCode.service`. */
  readonly exitCodes?: ExitCode.ServiceTable | undefined
  /** First part of the names of the environment variables. Default `SERVICE`; `SHUTTLE` gives Shuttle's names. */
  readonly prefix?: string | undefined
}

/**
 * Describes a service. What is wrong with it is told when it starts, with all that is wrong with its configuration.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <
  const Resources extends ReadonlyArray<Resource.Any> = [],
  const Parts extends ReadonlyArray<Part.Any> = [],
  R = never
>(
  options: Options<Resources, Parts, R>
): Service<R | Part.Services<Parts[number]>, Resources[number]> => ({
  name: options.name,
  version: options.version,
  resources: options.resources ?? [],
  parts: options.parts ?? [],
  assemble: Parts.make(options.parts ?? []),
  main: Option.fromUndefinedOr(options.main),
  addChecks: Effect.forEach(options.checks ?? [], (check) => Health.add(check), { discard: true }),
  stopBudget: Duration.fromInputUnsafe(options.stopBudget ?? "25 seconds"),
  drainDelay: Duration.fromInputUnsafe(options.drainDelay ?? 0),
  maxExtension: Duration.fromInputUnsafe(options.maxExtension ?? 0),
  startWithin: Duration.fromInputUnsafe(options.startWithin ?? "10 minutes"),
  exitCodes: options.exitCodes ?? ExitCode.service,
  prefix: options.prefix ?? "SERVICE"
})

const durationFaults = (field: string, duration: Duration.Duration): ReadonlyArray<string> =>
  Duration.isFinite(duration) && !Duration.isNegative(duration)
    ? []
    : [`${field} is ${Duration.format(duration)}: give a time of zero or more that has an end`]

/**
 * What is wrong with a service as it is written down: one sentence for each fault. What is wrong with its parts is told by
 * `Parts.faults`.
 *
 * ```ts import.meta.vitest
 * import { Service } from "effect-microvm-runtime/service"
 * const faults = Service.faults(Service.make({ name: "notes", version: "" }))
 * faults // => ["version is empty: give one, like 1.0.0"]
 * ```
 *
 * @category guards
 * @since 0.1.0
 */
export const faults = <R, Res extends Resource.Any>(service: Service<R, Res>): ReadonlyArray<string> => [
  ...Names.faults(service.name, service.prefix),
  ...Names.repeated("resources", service.resources),
  ...(service.version === "" ? ["version is empty: give one, like 1.0.0"] : []),
  ...durationFaults("stopBudget", service.stopBudget),
  ...durationFaults("drainDelay", service.drainDelay),
  ...durationFaults("maxExtension", service.maxExtension),
  ...durationFaults("startWithin", service.startWithin),
  ...ExitCode.faults(service.exitCodes).map((fault) => `exitCodes: ${fault}`)
]
