/** One fake Firecracker: its machine behind its API, on a socket, with the faults that it was asked for. */
import * as Api from "./fakeFirecrackerApi.ts"
import { type MakeGuest } from "./fakeFirecrackerGuest.ts"
import * as Http from "./fakeFirecrackerHttp.ts"
import * as Log from "./fakeFirecrackerLog.ts"
import * as Machine from "./fakeFirecrackerMachine.ts"
import { makeMetrics } from "./fakeFirecrackerMetrics.ts"
import { type Fault, numbers, type Settings } from "./fakeFirecrackerSettings.ts"
import { formatOf } from "./fakeFirecrackerSnapshot.ts"
import type { World } from "./fakeFirecrackerWorld.ts"

/** What happened at the socket. */
export type Event =
  | {
    readonly _tag: "Request"
    readonly connection: number
    readonly method: string
    readonly path: string
    readonly body: string | undefined
  }
  | { readonly _tag: "Connection"; readonly open: number; readonly accepted: boolean }

/** How an instance ends: by itself with a code, or by a signal. */
export type Exit = { readonly code: number } | { readonly signal: string }

export interface Options {
  readonly settings: Settings
  readonly world: World
  readonly guest: () => Promise<MakeGuest>
  readonly pci: boolean
  /** With an API, or (`--no-api`) without. */
  readonly api: boolean
  readonly payloadLimit: number
  readonly mmdsLimit: number
  readonly stdout: (text: string) => void
  readonly stderr: (text: string) => void
  readonly onEvent: (event: Event) => void
  readonly onExit: (exit: Exit) => void
  readonly onPageServer?: Machine.Options["onPageServer"] | undefined
}

export type Instance = ReturnType<typeof make>

export const make = (options: Options) => {
  const { settings, world } = options
  const [minor, patch] = numbers(settings.version)
  const metrics = makeMetrics(world, minor)
  const log = Log.makeLog({
    world,
    minor,
    stdout: options.stdout,
    missed: () => metrics.add("logger", "missed_log_count")
  })
  let server: Http.Server | undefined
  let exiting: Promise<void> | undefined
  let calls = 0
  let id = "anonymous-instance"

  /** How it ends is what the first asks for; who asks later waits for the same. */
  const exit = (how: Exit): Promise<void> => {
    exiting ??= (async () => {
      await server?.close()
      await machine.stop()
      options.onExit(how)
    })()
    return exiting
  }
  /** The end of the program, which says why unless all went well. */
  const finish = (code: number, why?: { readonly text: string; readonly debug: string }): void => {
    if (why !== undefined) {
      log.write("Error", why.text)
      options.stderr(`Error: ${why.debug}\n`)
    }
    if (code === 0) log.write("Info", "Firecracker exiting successfully. exit_code=0")
    else log.write("Error", `Firecracker exiting with error. exit_code=${code}`)
    void exit({ code })
  }

  const snapshotFormat = settings.snapshotVersion ?? formatOf(settings.version)
  const machineOptions: Machine.Options = {
    world,
    version: settings.version,
    minor,
    patch,
    snapshotFormat,
    architecture: settings.architecture ?? (process.arch === "arm64" ? "aarch64" : "x86_64"),
    pci: options.pci,
    log,
    metrics,
    stdout: options.stdout,
    guest: options.guest,
    drivers: settings.drivers,
    bootMillis: settings.bootMillis,
    checkKernel: settings.checkKernel,
    ignoresCtrlAltDel: settings.ignoreCtrlAltDel,
    console: settings.console,
    onEnd: (code) =>
      finish(
        code,
        code === 0
          ? undefined
          : options.api
          ? {
            text: "RunWithApiError error: MicroVM stopped with an error: GenericError",
            debug: "RunWithApi(MicroVMStoppedWithError(GenericError))"
          }
          : {
            text: "RunWithoutApiError error: MicroVMStopped without an error: GenericError",
            debug: "RunWithoutApiError(Shutdown(GenericError))"
          }
      ),
    onPageServer: options.onPageServer ?? (() => {})
  }
  const machine = Machine.make(machineOptions)
  const api = Api.make({ ...machineOptions, mmdsLimit: options.mmdsLimit }, machine, () => id)

  const meant = (fault: Fault, request: Http.Request, path: string): boolean =>
    (fault.method ?? request.method) === request.method && (fault.path ?? path) === path &&
    (fault.call ?? calls) === calls
  const wait = (millis: number) => new Promise<void>((resolve) => void setTimeout(resolve, millis).unref())

  const handle = async (request: Http.Request): Promise<Http.Delivery | "nothing"> => {
    calls++
    const path = /^(?:http:\/\/[^/]*)?(\/.*)$/.exec(request.uri)?.[1] ?? ""
    options.onEvent({
      _tag: "Request",
      connection: request.connection,
      method: request.method,
      path,
      body: request.body?.toString("utf8")
    })
    const faults = settings.faults.filter((fault) => meant(fault, request, path))
    const of = (tag: Fault["_tag"]) => faults.find((fault) => fault._tag === tag)
    const die = of("Die")
    const end = (fault: Fault): Exit =>
      fault.signal === undefined ? { code: fault.code ?? 1 } : { signal: fault.signal }
    if (die?.moment === "Before") {
      await exit(end(die))
      return "nothing"
    }
    const hang = of("Hang")
    if (hang !== undefined) return new Promise(() => {})
    const slow = of("Slow")
    if (slow !== undefined) await wait(slow.millis ?? 100)
    const raw = of("Raw")
    if (raw !== undefined) return { bytes: Buffer.from(raw.answer ?? "", "latin1") }
    const started = performance.now()
    const answer = await api.handle(request.method, path, request.body)
    const micros = Math.ceil((performance.now() - started) * 1000)
    log.write("Debug", `Total previous API call duration: ${micros} us.`, "fc_api")
    const bytes = Http.encode(answer)
    if (answer.fatal) {
      const text = "RunWithApiError error: Failed to build MicroVM: Loading snapshot failed.."
      return { bytes, after: () => finish(1, { text, debug: "RunWithApi(BuildMicroVmError(Restore))" }) }
    }
    if (die !== undefined) {
      return {
        bytes: die.moment === "Half" ? bytes.subarray(0, bytes.length / 2) : bytes,
        after: () => void exit(end(die))
      }
    }
    const truncate = of("Truncate")
    if (truncate !== undefined) return { bytes: bytes.subarray(0, truncate.bytes ?? bytes.length / 2), close: true }
    const split = of("Split")
    return { bytes, pieces: split === undefined ? undefined : split.bytes ?? 1 }
  }

  return {
    api,
    log,
    machine,
    metrics,
    minor,
    version: settings.version,
    snapshotFormat,
    finish,
    exit,
    setId: (value: string): void => {
      id = value
      log.id = value
    },
    /** Binds the socket; `false` when a fault forbids it. Fails as the system does. */
    listen: async (path: string): Promise<boolean> => {
      const late = settings.faults.find((fault) => fault._tag === "BindLate")
      if (settings.faults.some((fault) => fault._tag === "NeverBind")) return false
      if (late !== undefined) await wait(late.millis ?? 100)
      server = Http.make({
        payloadLimit: () => options.payloadLimit,
        methods: minor >= 16 ? ["GET", "PUT", "PATCH", "DELETE"] : ["GET", "PUT", "PATCH"],
        handle,
        onConnection: (open, accepted) => options.onEvent({ _tag: "Connection", open, accepted })
      })
      await server.listen(world.socketPath(path))
      log.write("Info", `Listening on API socket (${JSON.stringify(path)}).`)
      log.write("Info", "API server started.", "fc_api")
      return true
    }
  }
}
