/**
 * A typed client of Firecracker's API: every endpoint of 1.7 to 1.17.
 *
 * ```
 *   body ──▶ its schema ──▶ what this version knows ──▶ ApiTransport ──▶ answer
 *            InvalidRequest  UnsupportedByVersion                          ApiFault, decoded
 * ```
 *
 * Nothing is sent that Firecracker would refuse for its form, and no id or path can become another request.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type { ApiRequest, ApiResponse, ApiTransport } from "./ApiTransport.ts"
import * as Capabilities from "./Capabilities.ts"
import * as FaultMessage from "./FaultMessage.ts"
import { ApiFault, fail, type FirecrackerError, type Method, ProtocolViolation } from "./FirecrackerError.ts"
import * as FirecrackerSchema from "./FirecrackerSchema.ts"
import * as FirecrackerVersion from "./FirecrackerVersion.ts"
import { bodyText, type Given, invalid, prepare } from "./internal/prepare.ts"
import { suspendSpanned } from "./internal/spanned.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface CallOptions extends Capabilities.CheckOptions {
  /** From the call to the last byte of the answer. Default: the client's deadline for calls of this class. */
  readonly within?: Duration.Input | undefined
}

/**
 * How long each class of calls may take.
 *
 * @category options
 * @since 0.1.0
 */
export interface Deadlines {
  /** `GET`. Default 5 seconds. */
  readonly read?: Duration.Input | undefined
  /** All other calls but those of snapshots. Default 5 seconds. */
  readonly change?: Duration.Input | undefined
  /** `PUT /snapshot/create` and `PUT /snapshot/load`, which write and read all memory. Default 5 minutes. */
  readonly snapshot?: Duration.Input | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options extends Capabilities.Target {
  readonly deadlines?: Deadlines | undefined
}

/**
 * Sends a body. Fails with `InvalidRequest` and `UnsupportedByVersion` before anything is sent, and with `ApiFault` when
 * Firecracker refuses it; with `ConnectionFailed`, `NoReply` and `ProtocolViolation` as the transport does.
 *
 * @category models
 * @since 0.1.0
 */
export type Send<N extends FirecrackerSchema.RequestName> = (
  body: (typeof FirecrackerSchema.requests)[N]["Type"],
  options?: CallOptions
) => Effect.Effect<void, FirecrackerError>

/**
 * Asks for something. `ProtocolViolation` when the answer is of another shape.
 *
 * @category models
 * @since 0.1.0
 */
export type Read<A> = (options?: CallOptions) => Effect.Effect<A, FirecrackerError>

/**
 * Unplugs a device: from 1.16 on, with `--enable-pci`, after the guest has let go of it.
 *
 * @category models
 * @since 0.1.0
 */
export type Remove = (id: string, options?: CallOptions) => Effect.Effect<void, FirecrackerError>

/**
 * One method for each endpoint; what each takes is told by `FirecrackerSchema`, when it is served by `Capabilities`.
 *
 * @category models
 * @since 0.1.0
 */
export interface FirecrackerApi {
  readonly target: Capabilities.Target
  /**
   * Any call, with the JSON of its answer, `undefined` when there is none. Only its path and the length of its body are
   * looked at: use it for what has no method here.
   */
  readonly request: (
    method: Method,
    path: string,
    body?: unknown,
    options?: { readonly within?: Duration.Input | undefined }
  ) => Effect.Effect<unknown, FirecrackerError>
  /** `GET /`: is it started, running, paused? */
  readonly getInstance: Read<FirecrackerSchema.InstanceInfo>
  readonly getVersion: Read<FirecrackerSchema.VersionInfo>
  readonly getVmConfig: Read<FirecrackerSchema.FullVmConfiguration>
  readonly getMachineConfig: Read<FirecrackerSchema.MachineConfigurationInfo>
  readonly putMachineConfig: Send<"MachineConfiguration">
  readonly patchMachineConfig: Send<"MachineConfigurationUpdate">
  readonly putBootSource: Send<"BootSource">
  readonly putCpuConfig: Send<"CpuConfig">
  readonly putDrive: Send<"Drive">
  readonly patchDrive: Send<"PartialDrive">
  readonly deleteDrive: Remove
  readonly putPmem: Send<"Pmem">
  readonly patchPmem: Send<"PartialPmem">
  readonly deletePmem: Remove
  readonly putNetworkInterface: Send<"NetworkInterface">
  readonly patchNetworkInterface: Send<"PartialNetworkInterface">
  readonly deleteNetworkInterface: Remove
  readonly putVsock: Send<"Vsock">
  readonly putEntropy: Send<"EntropyDevice">
  readonly putSerial: Send<"SerialDevice">
  readonly putLogger: Send<"Logger">
  readonly putMetrics: Send<"Metrics">
  readonly putMmdsConfig: Send<"MmdsConfig">
  /** Replaces what the metadata service holds. */
  readonly putMmds: Send<"MmdsData">
  /** Merges into what the metadata service holds; `null` removes (RFC 7396). */
  readonly patchMmds: Send<"MmdsData">
  readonly getMmds: Read<Schema.Json>
  readonly getBalloon: Read<FirecrackerSchema.BalloonInfo>
  readonly putBalloon: Send<"Balloon">
  readonly patchBalloon: Send<"BalloonUpdate">
  readonly getBalloonStatistics: Read<FirecrackerSchema.BalloonStats>
  readonly patchBalloonStatistics: Send<"BalloonStatsUpdate">
  readonly startBalloonHinting: Send<"BalloonStartCmd">
  readonly getBalloonHinting: Read<FirecrackerSchema.BalloonHintingStatus>
  readonly stopBalloonHinting: (options?: CallOptions) => Effect.Effect<void, FirecrackerError>
  readonly putMemoryHotplug: Send<"MemoryHotplugConfig">
  readonly patchMemoryHotplug: Send<"MemoryHotplugSizeUpdate">
  readonly getMemoryHotplug: Read<FirecrackerSchema.MemoryHotplugStatus>
  /** `InstanceStart` is answered when the CPUs run, long before the guest is up. */
  readonly putAction: Send<"InstanceActionInfo">
  readonly patchVm: Send<"Vm">
  readonly createSnapshot: Send<"SnapshotCreateParams">
  readonly loadSnapshot: Send<"SnapshotLoadParams">
}

type Table = typeof Capabilities.endpoints
type RemoveName = "deleteDrive" | "deletePmem" | "deleteNetworkInterface"
type SendName = { [K in keyof Table]: Table[K] extends { readonly body: string } ? K : never }[keyof Table]

// Firecracker splits a request line at white space, and holds 1024 bytes of it.
const isPath = (path: string): boolean => /^\/[A-Za-z0-9_/-]{0,899}$/.test(path)
const pathRemedy = "give \"/\", then at most 899 letters, digits, \"_\", \"-\" and \"/\""

const fiveSeconds = Duration.seconds(5)
const fiveMinutes = Duration.minutes(5)

const firstPause = Duration.millis(10)
const laterPauses = Schedule.exponential("20 millis")
const attempts = 5

/** What is answered to who opens one connection too many. */
const busy = 503
const isBusy = ({ reason }: FirecrackerError): boolean => reason._tag === "ApiFault" && reason.status === busy

const violation = (method: Method, path: string, detail: string) =>
  fail(new ProtocolViolation({ method, path, detail }))

const parseJson = Schema.decodeUnknownOption(Schema.fromJsonString(Schema.Unknown))

const jsonOf = ({ method, path }: ApiRequest, answer: ApiResponse): Effect.Effect<unknown, FirecrackerError> => {
  const { body, status } = answer
  if (status < 200 || status >= 300) {
    return fail(new ApiFault({ method, path, status, ...FaultMessage.classify(answer) }))
  }
  if (body.trim() === "") return Effect.void
  const json = parseJson(body)
  return Option.isSome(json) ? Effect.succeed(json.value) : violation(method, path, "a body that is not JSON")
}

/** The JSON of the answer. */
const ask = (transport: ApiTransport, request: ApiRequest): Effect.Effect<unknown, FirecrackerError> => {
  const attempt = transport.request(request)
  return Effect.flatMap(attempt, (answer) => {
    if (answer.status !== busy) return jsonOf(request, answer)
    // A retry costs something also where there is none, so it begins with the second attempt.
    const again = Effect.flatMap(attempt, (next) => jsonOf(request, next))
    return Effect.delay(Effect.retry(again, { while: isBusy, schedule: laterPauses, times: attempts - 1 }), firstPause)
  })
}

const decodeAs = <A>(path: string, schema: Schema.Decoder<A>) => {
  const decode = Schema.decodeUnknownResult(schema)
  return (json: unknown): Effect.Effect<A, FirecrackerError> =>
    Effect.catch(
      Effect.fromResult(decode(json)),
      ({ message }) => violation("GET", path, `a body of another shape: ${message}`)
    )
}

const decodeVersion = decodeAs("/version", FirecrackerSchema.VersionInfo)

/**
 * Asks a Firecracker for its version, `GET /version`: what a client needs to be told. Fails with `ProtocolViolation` when
 * the answer has none. The default of `within` is 5 seconds.
 *
 * ```ts import.meta.vitest
 * import { FirecrackerApi } from "effect-microvm-runtime/firecracker"
 * import * as Effect from "effect/Effect"
 * const answer = { status: 200, body: `{"firecracker_version":"1.16.1"}`, deprecated: false }
 * const version = FirecrackerApi.readVersion({ request: () => Effect.succeed(answer) })
 * await Effect.runPromise(version) // => { major: 1, minor: 16, patch: 1 }
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const readVersion = Effect.fn("FirecrackerApi.readVersion")(function*(
  transport: ApiTransport,
  options: { readonly within?: Duration.Input | undefined } = {}
): Effect.fn.Return<FirecrackerVersion.FirecrackerVersion, FirecrackerError> {
  const within = Duration.fromInputUnsafe(options.within ?? fiveSeconds)
  const answer = yield* ask(transport, { method: "GET", path: "/version", within })
  const { firecracker_version: text } = yield* decodeVersion(answer)
  return FirecrackerVersion.parse(text) ?? (yield* violation("GET", "/version", "a version that is none"))
})

/**
 * A client for one Firecracker. A deadline is that of one attempt: a call that was turned away since ten connections were
 * open (503) was not read, and is made five times more within a third of a second.
 *
 * ```ts import.meta.vitest
 * import { FirecrackerApi } from "effect-microvm-runtime/firecracker"
 * import * as Effect from "effect/Effect"
 * const transport = { request: () => Effect.succeed({ status: 204, body: "", deprecated: false }) }
 * const api = FirecrackerApi.make(transport, { version: { major: 1, minor: 16, patch: 1 }, architecture: "x86_64" })
 * const program = api.deleteDrive("a/b").pipe(
 *   Effect.as("sent"),
 *   Effect.catchReason("FirecrackerError", "InvalidRequest", ({ message }) => Effect.succeed(message))
 * )
 * await Effect.runPromise(program) // => `Not possible: id is "a/b": give 1 to 255 letters, digits and "_"`
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (transport: ApiTransport, options: Options): FirecrackerApi => {
  const { deadlines = {}, ...target } = options
  const read = Duration.fromInputUnsafe(deadlines.read ?? fiveSeconds)
  const change = Duration.fromInputUnsafe(deadlines.change ?? fiveSeconds)
  const snapshot = Duration.fromInputUnsafe(deadlines.snapshot ?? fiveMinutes)

  const perform = (
    { body, method, path }: Capabilities.Call,
    given: Duration.Input | undefined
  ): Effect.Effect<unknown, FirecrackerError> => {
    const text = bodyText(target, body)
    if (Result.isFailure(text)) return fail(text.failure)
    const usual = method === "GET" ? read : path.startsWith("/snapshot/") ? snapshot : change
    return ask(transport, { method, path, body: text.success, within: Duration.fromInputUnsafe(given ?? usual) })
  }

  // `Effect.fn` would be made anew for each of forty methods of each client, which costs more than the calls of a start.
  const call = (
    name: keyof Table,
    given: Given,
    callOptions: CallOptions = {}
  ): Effect.Effect<unknown, FirecrackerError> =>
    suspendSpanned(`FirecrackerApi.${name}`, () => {
      const prepared = prepare(target, Capabilities.endpoints[name], given, callOptions)
      return Result.isFailure(prepared) ? fail(prepared.failure) : perform(prepared.success, callOptions.within)
    })

  const get = <A>(name: keyof Table, answer: Schema.Decoder<A>): Read<A> => {
    const { path } = Capabilities.endpoints[name]
    // Made when it is asked for: most clients ask for nothing.
    return (callOptions) => Effect.flatMap(call(name, {}, callOptions), decodeAs(path, answer))
  }

  const send = <K extends SendName>(name: K): Send<Table[K]["body"]> => (body, callOptions) =>
    Effect.asVoid(call(name, { body }, callOptions))

  const remove = (name: RemoveName): Remove => (id, callOptions) => Effect.asVoid(call(name, { id }, callOptions))

  return {
    target,
    request: (method, path, body, given = {}) =>
      suspendSpanned(
        "FirecrackerApi.request",
        () => isPath(path) ? perform({ method, path, body }, given.within) : fail(invalid("path", path, pathRemedy))
      ),
    getInstance: get("getInstance", FirecrackerSchema.InstanceInfo),
    getVersion: get("getVersion", FirecrackerSchema.VersionInfo),
    getVmConfig: get("getVmConfig", FirecrackerSchema.FullVmConfiguration),
    getMachineConfig: get("getMachineConfig", FirecrackerSchema.MachineConfigurationInfo),
    putMachineConfig: send("putMachineConfig"),
    patchMachineConfig: send("patchMachineConfig"),
    putBootSource: send("putBootSource"),
    putCpuConfig: send("putCpuConfig"),
    putDrive: send("putDrive"),
    patchDrive: send("patchDrive"),
    deleteDrive: remove("deleteDrive"),
    putPmem: send("putPmem"),
    patchPmem: send("patchPmem"),
    deletePmem: remove("deletePmem"),
    putNetworkInterface: send("putNetworkInterface"),
    patchNetworkInterface: send("patchNetworkInterface"),
    deleteNetworkInterface: remove("deleteNetworkInterface"),
    putVsock: send("putVsock"),
    putEntropy: send("putEntropy"),
    putSerial: send("putSerial"),
    putLogger: send("putLogger"),
    putMetrics: send("putMetrics"),
    putMmdsConfig: send("putMmdsConfig"),
    putMmds: send("putMmds"),
    patchMmds: send("patchMmds"),
    getMmds: get("getMmds", Schema.Json),
    getBalloon: get("getBalloon", FirecrackerSchema.BalloonInfo),
    putBalloon: send("putBalloon"),
    patchBalloon: send("patchBalloon"),
    getBalloonStatistics: get("getBalloonStatistics", FirecrackerSchema.BalloonStats),
    patchBalloonStatistics: send("patchBalloonStatistics"),
    startBalloonHinting: send("startBalloonHinting"),
    getBalloonHinting: get("getBalloonHinting", FirecrackerSchema.BalloonHintingStatus),
    stopBalloonHinting: (callOptions) => Effect.asVoid(call("stopBalloonHinting", {}, callOptions)),
    putMemoryHotplug: send("putMemoryHotplug"),
    patchMemoryHotplug: send("patchMemoryHotplug"),
    getMemoryHotplug: get("getMemoryHotplug", FirecrackerSchema.MemoryHotplugStatus),
    putAction: send("putAction"),
    patchVm: send("patchVm"),
    createSnapshot: send("createSnapshot"),
    loadSnapshot: send("loadSnapshot")
  }
}
