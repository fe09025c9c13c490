/**
 * What a service will do, as data: in which order it starts and stops, how long that may take, and what its exit codes
 * mean. Pure; nothing runs. This is what `--plan` prints, and what systemd units and Kubernetes manifests are written from,
 * so that the platform waits as long as the service may take.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import * as ExitCode from "../lifecycle/ExitCode.ts"
import * as StopBudget from "../lifecycle/StopBudget.ts"
import { overlap } from "./internal/configValues.ts"
import * as Kubernetes from "./internal/planKubernetes.ts"
import type { Finding, PartOutline, PlannedService, ServiceOutline, StopStep } from "./internal/planModel.ts"
import { levels } from "./internal/planOrder.ts"
import * as Systemd from "./internal/planSystemd.ts"
import * as Text from "./internal/planText.ts"
import * as Names from "./internal/serviceNames.ts"
import * as StopShares from "./internal/stopShares.ts"
import { flushWithin, type PlanFormat, type ServiceConfig } from "./ServiceConfig.ts"

export type {
  Address,
  Finding,
  PartOutline,
  PlannedPart,
  PlannedService,
  ResourceOutline,
  ServiceOutline,
  StopStep
} from "./internal/planModel.ts"

/** Configuration, secrets from an API that answers late, and the main program's own start. */
const beforeParts = Duration.seconds(90)

const stepsOf = (
  service: PlannedService,
  config: ServiceConfig,
  parts: ReadonlyArray<PartOutline>,
  stopOrder: ReadonlyArray<ReadonlyArray<string>>
): ReadonlyArray<StopStep> => {
  const flush = flushWithin(config)
  const hasMain = Option.isSome(service.main ?? Option.none())
  const made = service.resources.filter(({ kind }) => kind === "provisioned").map(({ name }) => name)
  let left = Duration.subtract(Duration.subtract(config.stopBudget, flush), config.drainDelay)
  const steps: Array<StopStep> = []
  const add = (kind: StopStep["kind"], names: ReadonlyArray<string>, within: Duration.Duration): void => {
    if (names.length > 0) steps.push({ kind, of: names.map((name) => ({ name, within })) })
  }
  if (hasMain) {
    const within = StopShares.forMain(left)
    add("main", ["main"], within)
    left = Duration.subtract(left, within)
  }
  const forParts = StopShares.forParts(left, made.length > 0)
  const times = StopShares.ofParts(parts, forParts)
  for (const names of stopOrder) {
    steps.push({ kind: "parts", of: names.map((name) => ({ name, within: times.get(name) ?? Duration.zero })) })
  }
  if (parts.length > 0) left = Duration.subtract(left, forParts)
  const { held, resource, rest } = StopShares.weights
  const last: ReadonlyArray<readonly [StopStep["kind"], ReadonlyArray<string>, weight: number]> = [
    ["main", hasMain ? ["finalizers of main"] : [], held],
    ["resources", made, made.length > 0 ? resource : 0],
    ["rest", [...Option.isSome(config.healthPort) ? ["health listener"] : [], "provisioner"], rest]
  ]
  for (const [index, [kind, names, weight]] of last.entries()) {
    const within = StopBudget.share(left, [weight, ...last.slice(index + 1).map(([, , later]) => later)])
    add(kind, names, within)
    left = Duration.subtract(left, within)
  }
  if (Duration.isPositive(flush)) add("telemetry", ["telemetry"], flush)
  return steps
}

/**
 * The plan of a service in its configuration.
 *
 * ```ts import.meta.vitest
 * import { Part, Service, ServiceConfig, ServicePlan } from "effect-microvm-runtime/service"
 * import * as Layer from "effect/Layer"
 * import * as Result from "effect/Result"
 *
 * const pool = Part.make("pool", Layer.empty)
 * const api = Part.make("api", Layer.empty, { dependsOn: [pool] })
 * const service = Service.make({ name: "notes", version: "1.0.0", parts: [api] })
 * const config = Result.getOrThrow(ServiceConfig.parse({ env: {}, argv: [], defaults: service }))
 *
 * const plan = ServicePlan.make(service, config)
 * plan.startOrder // => [["pool"], ["api"]]
 * plan.stopOrder // => [["api"], ["pool"]]
 * ServicePlan.check(plan) // => []
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (service: PlannedService, config: ServiceConfig): ServiceOutline => {
  const { parts: planned, startOrder, stopOrder } = levels(service.parts)
  const parts = planned.map(({ dependsOn, name, stopWeight, stopWithin }) => ({
    name,
    dependsOn: dependsOn.map((part) => part.name),
    stopWithin: Option.map(Option.fromUndefinedOr(stopWithin), Duration.fromInputUnsafe),
    stopWeight
  }))
  return {
    name: service.name,
    version: service.version,
    prefix: service.prefix,
    environment: config.environment,
    resources: service.resources.map(({ kind, name, type }) => ({ name, type, kind })),
    parts,
    startOrder,
    stopOrder,
    stopSteps: stepsOf(service, config, parts, stopOrder),
    startWithin: service.startWithin,
    startLimit: startOrder.reduce(
      (sum, names) => {
        const group = planned.filter(({ name }) => names.includes(name))
        const longest = group.map(({ startWithin = service.startWithin }) => Duration.fromInputUnsafe(startWithin))
        return Duration.sum(sum, longest.reduce(Duration.max, Duration.zero))
      },
      Duration.sum(beforeParts, service.startWithin)
    ),
    stopBudget: config.stopBudget,
    drainDelay: config.drainDelay,
    maxExtension: service.maxExtension,
    exitCodes: service.exitCodes,
    listen: { ip: config.ip, port: config.port },
    health: Option.map(config.healthPort, (port) => ({ ip: config.healthIp, port }))
  }
}

/**
 * Whoever ends the service from outside, and how long it waits before it kills. `follows`: it waits longer when the service
 * asks for more time.
 *
 * @category models
 * @since 0.1.0
 */
export interface Platform {
  readonly name: string
  readonly setting: string
  readonly grace: Duration.Duration
  readonly follows: boolean
}

/**
 * systemd with its default of 90 seconds (`DefaultTimeoutStopSec`, systemd-system.conf(5)); it follows `EXTEND_TIMEOUT_USEC`.
 *
 * @category constants
 * @since 0.1.0
 */
export const systemd: Platform = {
  name: "systemd",
  setting: "TimeoutStopSec",
  grace: Duration.seconds(90),
  follows: true
}

/**
 * Kubernetes with its default of 30 seconds (Pod v1, `terminationGracePeriodSeconds`).
 *
 * @category constants
 * @since 0.1.0
 */
export const kubernetes: Platform = {
  name: "Kubernetes",
  setting: "terminationGracePeriodSeconds",
  grace: Duration.seconds(30),
  follows: false
}

/**
 * Between the end of the stop budget and the kill from outside: time for the watchdog to say what hangs.
 *
 * @category constants
 * @since 0.1.0
 */
export const reserve = Duration.seconds(2)

/**
 * The grace that a platform must give, in whole seconds.
 *
 * @category conversions
 * @since 0.1.0
 */
export const neededGrace = (plan: ServiceOutline, platform: Platform): Duration.Duration => {
  const own = Duration.sum(plan.stopBudget, reserve)
  const all = platform.follows ? own : Duration.sum(own, plan.maxExtension)
  return Duration.seconds(Math.ceil(Duration.toSeconds(all)))
}

/**
 * What a plan is held against.
 *
 * @category options
 * @since 0.1.0
 */
export interface CheckOptions {
  /** Default: systemd and Kubernetes with their own defaults. */
  readonly platforms?: ReadonlyArray<Platform> | undefined
  /** How often readiness is asked. Default 2 seconds, as in the manifest of `toKubernetes`. */
  readonly probePeriod?: Duration.Input | undefined
}

const faultsOf = (plan: ServiceOutline): ReadonlyArray<string> => {
  const { exitCodes, name, parts, prefix, resources, stopBudget } = plan
  const faults: Array<string> = [...Names.faults(name, prefix)]
  faults.push(
    ...Names.repeated("resources", resources),
    ...Names.repeated("parts", parts),
    ...ExitCode.faults(exitCodes).map((fault) => `exit codes: ${fault}`)
  )
  if (!Duration.isPositive(stopBudget)) faults.push("the stop budget is zero: give it some seconds")
  return faults
}

/**
 * What is wrong with a plan, faults first.
 *
 * @category guards
 * @since 0.1.0
 */
export const check = (plan: ServiceOutline, options: CheckOptions = {}): ReadonlyArray<Finding> => {
  const { drainDelay, environment, health, listen, parts, prefix, stopBudget } = plan
  const warnings: Array<string> = []
  for (const platform of options.platforms ?? [systemd, kubernetes]) {
    const needed = neededGrace(plan, platform)
    if (Duration.isGreaterThan(needed, platform.grace)) {
      warnings.push(
        `${platform.name} kills after ${Duration.format(platform.grace)}, the stop may take ${
          Duration.format(needed)
        }: set ${platform.setting} to ${Duration.toSeconds(needed)}, or lower ${prefix}_STOP_BUDGET`
      )
    }
  }
  for (const { name, stopWithin } of parts) {
    if (Option.exists(stopWithin, (limit) => Duration.isGreaterThan(limit, stopBudget))) {
      warnings.push(`part ${name} may stop for longer than the whole service: its limit has no effect`)
    }
  }
  // What is known to listen there has been refused with the configuration.
  if (Option.exists(health, (probes) => overlap(listen, probes))) {
    warnings.push(
      `port ${listen.port} is for the probes, so the service cannot listen on it: change ${prefix}_HEALTHZ_PORT or ` +
        `${prefix}_RUNTIME_PORT if it does`
    )
  }
  const twice = Duration.times(Duration.fromInputUnsafe(options.probePeriod ?? probePeriod), 2)
  if (environment === "production") {
    if (Option.isNone(health)) warnings.push(`probes are not answered: set ${prefix}_HEALTHZ_PORT`)
    if (Duration.isLessThan(drainDelay, twice)) {
      warnings.push(
        `the drain delay of ${
          Duration.format(drainDelay)
        } is less than two probes take, so requests may still come when the ` +
          `service does not listen any more: set ${prefix}_DRAIN_DELAY to ${Duration.toSeconds(twice)}s or more`
      )
    }
  }
  return [
    ...faultsOf(plan).map((what): Finding => ({ severity: "fault", what })),
    ...warnings.map((what): Finding => ({ severity: "warning", what }))
  ]
}

/** A load balancer takes an instance out when it has failed two probes, so this is half the shortest useful drain delay. */
const probePeriod = Duration.seconds(2)

/**
 * For people: start order, stop order, budgets, exit codes, and what `check` finds.
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = (plan: ServiceOutline): string => Text.format(plan, check(plan))

/**
 * The same as JSON, with durations in milliseconds.
 *
 * @category conversions
 * @since 0.1.0
 */
export const toJson = (plan: ServiceOutline): string => Text.toJson(plan, check(plan))

/**
 * What a unit file says besides.
 *
 * @category options
 * @since 0.1.0
 */
export interface SystemdOptions {
  /** The command line. Default `node` on the path, and a script below /opt. */
  readonly command?: ReadonlyArray<string> | undefined
}

/**
 * A systemd unit that knows what the service does: it is told when the service is ready, waits as long as a stop may take,
 * takes an ordered end for a success, and does not restart what cannot succeed (systemd.service(5)).
 *
 * @category conversions
 * @since 0.1.0
 */
export const toSystemdUnit = (plan: ServiceOutline, options: SystemdOptions = {}): string =>
  Systemd.unit(plan, {
    command: options.command ?? ["/usr/bin/env", "node", `/opt/${plan.name}/main.js`],
    stopSeconds: Duration.toSeconds(neededGrace(plan, systemd))
  })

/**
 * What a manifest says besides.
 *
 * @category options
 * @since 0.1.0
 */
export interface KubernetesOptions {
  /** Default `<name>:<version>`. */
  readonly image?: string | undefined
  /** Default 2. */
  readonly replicas?: number | undefined
}

/**
 * A Kubernetes Deployment that knows what the service does: three probes, a grace period as long as a stop may take, and a
 * drain delay that covers the time until no more requests come. Comments say what a Job needs.
 *
 * @category conversions
 * @since 0.1.0
 */
export const toKubernetes = (plan: ServiceOutline, options: KubernetesOptions = {}): string =>
  Kubernetes.deployment(plan, {
    image: options.image ?? `${plan.name.toLowerCase()}:${plan.version}`,
    replicas: options.replicas ?? 2,
    graceSeconds: Duration.toSeconds(neededGrace(plan, kubernetes)),
    probeSeconds: Duration.toSeconds(probePeriod)
  })

/**
 * What `--plan` prints, without the last line break.
 *
 * @category conversions
 * @since 0.1.0
 */
export const render = (plan: ServiceOutline, as: PlanFormat): string => {
  switch (as) {
    case "text":
      return format(plan)
    case "json":
      return toJson(plan)
    case "systemd":
      return toSystemdUnit(plan).trimEnd()
    case "kubernetes":
      return toKubernetes(plan).trimEnd()
  }
}
