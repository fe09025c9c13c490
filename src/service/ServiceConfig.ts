/**
 * The configuration of a service: what its arguments and environment variables say, checked as a whole before anything is
 * done. With nothing set, a service runs locally, on embedded defaults.
 *
 * All names below begin with the prefix of the service, `SERVICE` by default; `SHUTTLE` gives the names of Shuttle.
 *
 * | variable | default | |
 * | --- | --- | --- |
 * | `…_ENV` | `local` | `local` or `production` |
 * | `…_PROJECT_ID` | `proj_LOCAL` | needed as soon as there is an API |
 * | `…_PROJECT_NAME` | the name of the service | |
 * | `…_RUNTIME_IP` | 127.0.0.1; 0.0.0.0 in production | where the service listens |
 * | `…_RUNTIME_PORT`, then `PORT` | 8000 | 0 takes any free one |
 * | `…_HEALTHZ_IP` | 0.0.0.0 | where probes are answered |
 * | `…_HEALTHZ_PORT` | no probes | |
 * | `…_API` | resources come from this machine | who provisions resources |
 * | `…_API_KEY` | none | sent to it as a bearer token; never shown |
 * | `…_SIDECAR` | none | address of the sidecar that is told to stop when provisioning is over |
 * | `…_STATE_DIR`, then `STATE_DIRECTORY` | `.service/<name>` | what outlives the service |
 * | `…_STOP_BUDGET` | what the service says | from the signal to the exit: `500ms`, `25s`, `2m` |
 * | `…_DRAIN_DELAY` | what the service says | of the budget: requests are served, readiness is denied |
 * | `…_LOG_FORMAT` | `pretty` on a terminal, else `json` | |
 * | `…_LOG_LEVEL` | `Info` | |
 *
 * Of others it reads `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_EXPORTER_OTLP_PROTOCOL`,
 * `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SDK_DISABLED` (OpenTelemetry), `NOTIFY_SOCKET`, `WATCHDOG_USEC`,
 * `WATCHDOG_PID`, `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES` (systemd), and `NO_COLOR`. These are as good as unset when
 * they are empty; an empty variable of the service itself is a fault.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import type * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import type * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import { describe, nearMisses, variables } from "./internal/configNames.ts"
import * as Reader from "./internal/configReader.ts"
import * as Values from "./internal/configValues.ts"
import { fromReason, type ServiceError, ServiceErrorReason } from "./ServiceError.ts"

/**
 * How `--plan` prints: for people, as JSON, as a systemd unit, as a Kubernetes manifest.
 *
 * @category constants
 * @since 0.1.0
 */
export const planFormats = ["text", "json", "systemd", "kubernetes"] as const

/**
 * @category models
 * @since 0.1.0
 */
export type PlanFormat = typeof planFormats[number]

/**
 * What is asked of the program. All but `Run` print something and end with 0.
 *
 * @category models
 * @since 0.1.0
 */
export type Command = Data.TaggedEnum<{
  Run: {}
  Version: {}
  Help: {}
  Plan: { readonly format: PlanFormat }
}>

/**
 * @category constructors
 * @since 0.1.0
 */
export const Command = Data.taggedEnum<Command>()

/**
 * Where telemetry goes.
 *
 * @category models
 * @since 0.1.0
 */
export interface Otlp {
  /** `/v1/traces`, `/v1/metrics` and `/v1/logs` are added to it. */
  readonly endpoint: string
  /** Often hold a key, so they are never shown. */
  readonly headers: Redacted.Redacted<Readonly<Record<string, string>>>
  readonly protocol: "http/protobuf" | "http/json"
  /** Default: the name of the project. */
  readonly serviceName: string
  readonly resourceAttributes: Readonly<Record<string, string>>
}

/**
 * @category models
 * @since 0.1.0
 */
export interface Telemetry {
  /** Absent: `pretty` on a terminal, else `json`. */
  readonly logFormat: Option.Option<"pretty" | "json">
  readonly logLevel: LogLevel.LogLevel
  /** False where `NO_COLOR` forbids colours. */
  readonly colors: boolean
  readonly otlp: Option.Option<Otlp>
}

/**
 * Sockets passed by the service manager, from descriptor 3 on (sd_listen_fds(3)), if `pid` is this process.
 *
 * @category models
 * @since 0.1.0
 */
export interface PassedSockets {
  readonly count: number
  readonly pid: number
  /** One for each, where the manager names them. */
  readonly names: ReadonlyArray<string>
}

/**
 * @category models
 * @since 0.1.0
 */
export interface ServiceConfig {
  readonly command: Command
  /** Those that are not the runtime's, and all after `--`. */
  readonly arguments: ReadonlyArray<string>
  readonly environment: "local" | "production"
  readonly projectId: string
  readonly projectName: string
  readonly ip: string
  readonly port: number
  readonly healthIp: string
  /** Absent: probes are not answered. */
  readonly healthPort: Option.Option<number>
  /** Without a slash at its end. Absent: resources come from this machine. */
  readonly api: Option.Option<string>
  readonly apiKey: Option.Option<Redacted.Redacted>
  /** Address of the sidecar that is told to stop when provisioning is over. */
  readonly sidecar: Option.Option<string>
  readonly stateDirectory: string
  readonly stopBudget: Duration.Duration
  readonly drainDelay: Duration.Duration
  readonly telemetry: Telemetry
  readonly sockets: Option.Option<PassedSockets>
  /** Worth saying, but no reason not to start. */
  readonly warnings: ReadonlyArray<string>
}

/**
 * For how long what is still collected is sent on when the scope closes: a tenth of the stop budget, at most one second, and
 * no time at all without a collector.
 *
 * @category conversions
 * @since 0.1.0
 */
export const flushWithin = ({ stopBudget, telemetry }: ServiceConfig): Duration.Duration =>
  Option.isNone(telemetry.otlp) ? Duration.zero : Duration.min(Duration.seconds(1), Duration.times(stopBudget, 0.1))

/**
 * What may listen where the configuration says. A `Part` is one.
 *
 * @category models
 * @since 0.1.0
 */
export interface Listening {
  readonly listens?: boolean | undefined
  readonly dependsOn: ReadonlyArray<Listening>
}

/**
 * What the service itself says. A `Service` is one.
 *
 * @category options
 * @since 0.1.0
 */
export interface Defaults {
  readonly name: string
  /** Default `SERVICE`. */
  readonly prefix?: string | undefined
  /** Default 25 seconds. */
  readonly stopBudget?: Duration.Input | undefined
  /** Default none. */
  readonly drainDelay?: Duration.Input | undefined
  /** Where all of them are custom, production needs no API. Default: it does. */
  readonly resources?: ReadonlyArray<{ readonly kind: string }> | undefined
  /** One that listens cannot have the port of the probes. Default none. */
  readonly parts?: ReadonlyArray<Listening> | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  readonly env: Readonly<Record<string, string | undefined>>
  /** Without the program and its script. */
  readonly argv: ReadonlyArray<string>
  readonly defaults: Defaults
}

interface Arguments {
  readonly command: Command
  readonly rest: ReadonlyArray<string>
  readonly faults: ReadonlyArray<string>
}

const readArguments = (argv: ReadonlyArray<string>, prefix: string): Arguments => {
  const end = argv.indexOf("--")
  const own = end === -1 ? argv : argv.slice(0, end)
  const faults: Array<string> = []
  const rest: Array<string> = []
  const formats: Array<PlanFormat> = []
  for (const argument of own) {
    if (argument === "--plan") formats.push("text")
    else if (argument.startsWith("--plan=")) {
      const text = argument.slice("--plan=".length)
      Result.match(Values.oneOf(...planFormats)(text), {
        onSuccess: (format) => formats.push(format),
        onFailure: (problem) => faults.push(`--plan=${JSON.stringify(text)} ${problem}`)
      })
    } else if (argument === "--port") {
      faults.push(`--port is not an argument of the service: set ${prefix}_RUNTIME_PORT, or write it after --`)
    } else if (argument !== "--version" && argument !== "--help") rest.push(argument)
  }
  const [format] = formats
  return {
    command: own.includes("--version")
      ? Command.Version()
      : own.includes("--help")
      ? Command.Help()
      : format === undefined
      ? Command.Run()
      : Command.Plan({ format }),
    rest: end === -1 ? rest : [...rest, ...argv.slice(end + 1)],
    faults
  }
}

const readOtlp = (reader: Reader.Reader, serviceName: string): Option.Option<Otlp> => {
  const endpoint = reader.readForeign(
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    Values.httpUrl("OTEL_EXPORTER_OTLP_HEADERS is the place for them")
  )
  const headers = reader.readForeign("OTEL_EXPORTER_OTLP_HEADERS", Values.headers)
  const protocol = reader.readForeign("OTEL_EXPORTER_OTLP_PROTOCOL", Values.oneOf("http/protobuf", "http/json"))
  const name = reader.readForeign("OTEL_SERVICE_NAME", Values.anyText)
  const attributes = reader.readForeign("OTEL_RESOURCE_ATTRIBUTES", Values.pairs)
  const disabled = reader.raw("OTEL_SDK_DISABLED")?.toLowerCase() === "true"
  return Option.map(disabled ? Option.none() : endpoint, (to) => ({
    endpoint: to,
    headers: Option.getOrElse(headers, () => Values.noHeaders),
    protocol: Option.getOrElse(protocol, () => "http/protobuf" as const),
    serviceName: Option.getOrElse(name, () => serviceName),
    resourceAttributes: Option.getOrElse(attributes, () => ({}))
  }))
}

const someListens = (parts: ReadonlyArray<Listening>, seen = new Set<Listening>()): boolean =>
  parts.some((part) => {
    if (seen.has(part)) return false
    seen.add(part)
    return part.listens === true || someListens(part.dependsOn, seen)
  })

const readManager = (reader: Reader.Reader): Pick<ServiceConfig, "sockets"> => {
  const sockets = reader.readForeign("LISTEN_FDS", Values.count("number of sockets above zero"))
  const socketsPid = reader.readForeign("LISTEN_PID", Values.count("process id"))
  return {
    sockets: Option.zipWith(sockets, socketsPid, (count, pid) => ({
      count,
      pid,
      names: reader.raw("LISTEN_FDNAMES")?.split(":") ?? []
    }))
  }
}

/**
 * Reads arguments and environment. Pure, and total: it never throws, and a failure has one sentence for each fault, with
 * the variable, its value unless that is or could be a secret, and what to do.
 *
 * **Details**
 *
 * - `--version` anywhere before `--` wins over everything, then `--help`; for both, no variable matters.
 * - `--plan`, `--plan=json|systemd|kubernetes`: print the plan, start nothing.
 * - All other arguments are the service's own, as is everything after `--`.
 * - An API needs a project id, and `production` needs an API unless all resources are custom.
 * - `SHUTTLE` itself is the sidecar variable of that prefix: set to anything, even nothing, it means that the sidecar is at
 *   the address of the API.
 *
 * ```ts import.meta.vitest
 * import { ServiceConfig } from "effect-microvm-runtime/service"
 * import * as Result from "effect/Result"
 *
 * const read = (env: Record<string, string>) => ServiceConfig.parse({ env, argv: [], defaults: { name: "notes" } })
 *
 * const config = Result.getOrThrow(read({ SERVICE_RUNTIME_PORT: "9000" }))
 * config.port // => 9000
 * config.environment // => "local"
 *
 * const failure = Result.getOrThrow(Result.flip(read({ PORT: "web" })))
 * failure.message // => "Configuration invalid:\n  - PORT=\"web\" is no port: write a number from 0 to 65535"
 * failure.exitReason // => "configInvalid"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const parse = ({ argv, defaults, env }: Options): Result.Result<ServiceConfig, ServiceError> => {
  const prefix = defaults.prefix ?? "SERVICE"
  const names = variables(prefix)
  const reader = Reader.make(env, [names.apiKey, "OTEL_EXPORTER_OTLP_HEADERS"])
  const { command, faults, rest } = readArguments(argv, prefix)
  for (const fault of faults) reader.fault(fault)

  const environment = Option.getOrElse(
    reader.read(names.environment, Values.oneOf("local", "production")),
    () => "local" as const
  )
  const api = reader.read(names.api, Values.httpUrl(`${names.apiKey} is the place for a key`))
  const projectId = reader.read(names.projectId, Values.projectId)
  const projectName = Option.getOrElse(reader.read(names.projectName, Values.anyText), () => defaults.name)
  const production = environment === "production"
  const needsApi = defaults.resources?.some(({ kind }) => kind !== "custom") ?? true
  if (production && needsApi && reader.raw(names.api) === undefined) {
    reader.fault(`${names.api} is not set, and ${names.environment}=production needs it: give the URL of the API`)
  }
  // Set to something that is no id: that is told already.
  if (reader.raw(names.projectId) === undefined && (production ? needsApi : reader.raw(names.api) !== undefined)) {
    reader.fault(
      `${names.projectId} is not set, and ${
        production ? `${names.environment}=production` : names.api
      } needs it: give the id of the project`
    )
  }

  const fallbackPort = reader.raw(names.port) === undefined ? reader.read("PORT", Values.port) : Option.none()
  const port = Option.orElse(reader.read(names.port, Values.port), () => fallbackPort)
  const apiKey = reader.read(names.apiKey, Values.apiKey)
  const warnings = nearMisses(Object.keys(env), prefix, Object.values(names))
  if (Option.isSome(apiKey) && reader.raw(names.api) === undefined) {
    warnings.push(`${names.apiKey} is set but ${names.api} is not: the key is not used`)
  }
  if (Option.isSome(api) && Option.isSome(apiKey) && production && Values.isPlainRemote(api.value)) {
    warnings.push(`${names.api} is not encrypted: whoever is on the way can read ${names.apiKey}`)
  }

  const config: ServiceConfig = {
    command,
    arguments: rest,
    environment,
    projectId: Option.getOrElse(projectId, () => "proj_LOCAL"),
    projectName,
    ip: Option.getOrElse(reader.read(names.ip, Values.ip), () => production ? "0.0.0.0" : "127.0.0.1"),
    port: Option.getOrElse(port, () => 8000),
    healthIp: Option.getOrElse(reader.read(names.healthIp, Values.ip), () => "0.0.0.0"),
    healthPort: reader.read(names.healthPort, Values.port),
    api,
    apiKey,
    sidecar: prefix === "SHUTTLE"
      ? (reader.raw(names.sidecar) === undefined ? Option.none() : api)
      : reader.read(names.sidecar, Values.httpUrl("they are not sent")),
    stateDirectory: reader.read(names.stateDirectory, Values.anyText).pipe(
      // systemd separates several with colons.
      Option.orElse(() =>
        Option.fromUndefinedOr(reader.raw("STATE_DIRECTORY")?.split(":").find((path) => path !== ""))
      ),
      Option.getOrElse(() => `.service/${defaults.name}`)
    ),
    stopBudget: Option.getOrElse(
      reader.read(names.stopBudget, Values.duration({ zero: false })),
      () => Duration.fromInputUnsafe(defaults.stopBudget ?? "25 seconds")
    ),
    drainDelay: Option.getOrElse(
      reader.read(names.drainDelay, Values.duration({ zero: true })),
      () => Duration.fromInputUnsafe(defaults.drainDelay ?? 0)
    ),
    telemetry: {
      logFormat: reader.read(names.logFormat, Values.oneOf("pretty", "json")),
      logLevel: Option.getOrElse(reader.read(names.logLevel, Values.logLevel), () => "Info" as const),
      // no-color.org: present and not empty, whatever its value.
      colors: (reader.raw("NO_COLOR") ?? "") === "",
      otlp: readOtlp(reader, projectName)
    },
    ...readManager(reader),
    warnings
  }
  const { drainDelay, stopBudget } = config
  if (Duration.isGreaterThanOrEqualTo(Duration.sum(drainDelay, flushWithin(config)), stopBudget)) {
    reader.fault(
      `the drain delay of ${Duration.format(drainDelay)} leaves nothing of the stop budget of ${
        Duration.format(stopBudget)
      }: shorten ${names.drainDelay}, or raise ${names.stopBudget}`
    )
  }
  // Who sets the port wants the service to listen; a worker may answer its probes where services would listen.
  const listens = reader.raw(names.port) !== undefined || someListens(defaults.parts ?? [])
  const isPortKnown = Option.isSome(port) || (reader.raw(names.port) ?? reader.raw("PORT")) === undefined
  const isTwice = Option.exists(
    config.healthPort,
    (healthPort) => Values.overlap({ ip: config.ip, port: config.port }, { ip: config.healthIp, port: healthPort })
  )
  if (listens && isPortKnown && isTwice && Option.isNone(config.sockets)) {
    reader.fault(`port ${config.port} is to be listened on twice: change ${names.healthPort} or ${names.port}`)
  }
  return reader.faults.length === 0 || command._tag === "Version" || command._tag === "Help"
    ? Result.succeed(config)
    : Result.fail(fromReason(ServiceErrorReason.ConfigInvalid({ faults: reader.faults })))
}

/**
 * What `--help` prints.
 *
 * @category conversions
 * @since 0.1.0
 */
export const help = ({ name, prefix = "SERVICE" }: Defaults): string => {
  const rows = describe(prefix)
  const width = Math.max(...rows.map(([variable]) => variable.length))
  return [
    `${name} [--version | --help | --plan[=${planFormats.join("|")}]] [-- ARGUMENT…]`,
    "",
    "  --version  print the name and the version",
    "  --help     print this",
    "  --plan     print how the service starts and stops; nothing runs",
    "",
    "Environment:",
    ...rows.map(([variable, what]) => `  ${variable.padEnd(width)}  ${what}`)
  ].join("\n")
}
