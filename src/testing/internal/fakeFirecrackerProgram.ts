/**
 * The program behind the command `firecracker` of a fake: `node fakeFirecrackerProgram.ts OPTIONS [ARGUMENT…]`, where OPTIONS is a
 * file. It is plain Node so that it is there quickly; what needs more is loaded where it is needed.
 */
import * as Fs from "node:fs"
import { flushCompileCache } from "node:module"
import { type Argument, type Arguments, BadArguments, badId, parse } from "./fakeFirecrackerArguments.ts"
import { levelOf } from "./fakeFirecrackerBodies.ts"
import * as Guest from "./fakeFirecrackerGuest.ts"
import * as Instance from "./fakeFirecrackerInstance.ts"
import * as Resources from "./fakeFirecrackerResources.ts"
import * as Settings from "./fakeFirecrackerSettings.ts"
import * as Snapshot from "./fakeFirecrackerSnapshot.ts"
import { ioError, make as makeWorld, openStdout, writeSome } from "./fakeFirecrackerWorld.ts"
import { json, parse as parseJson } from "./fakeSerde.ts"

/** What the process ends with, as Rust's `main` tells it. */
class Ending extends Error {
  readonly debug: string
  readonly code: number

  constructor(text: string, debug: string, code = 1) {
    super(text)
    this.debug = debug
    this.code = code
  }
}

/** What Firecracker has not thought of: it aborts. */
class Panic extends Error {}

const known = (minor: number): ReadonlyArray<Argument> => [
  ...[
    "api-sock",
    "id",
    "start-time-us",
    "start-time-cpu-us",
    "parent-cpu-time-us",
    "config-file",
    "metadata",
    "log-path",
    "level",
    "module",
    "metrics-path",
    "describe-snapshot",
    "http-api-max-payload-size",
    "mmds-size-limit"
  ].map((name): Argument => ({ name, kind: "value" })),
  { name: "seccomp-filter", kind: "value", forbids: ["no-seccomp"] },
  { name: "no-seccomp", kind: "flag", forbids: ["seccomp-filter"] },
  { name: "no-api", kind: "flag", requires: "config-file" },
  ...[
    "show-level",
    "show-log-origin",
    "boot-timer",
    "version",
    "snapshot-version",
    ...minor >= 13 ? ["enable-pci"] : []
  ]
    .map((name): Argument => ({ name, kind: "flag" }))
]

const number = (text: string | undefined, name: string, type: "usize" | "u64"): number | undefined => {
  if (text === undefined) return undefined
  if (/^\+?\d+$/.test(text)) return Number(text)
  throw new Panic(
    `'${name}' parameter expected to be of '${type}' type.: ParseIntError { kind: ${
      text === "" ? "Empty" : "InvalidDigit"
    } }`
  )
}

const readFile = (path: string, what: string): Buffer => {
  try {
    return Fs.readFileSync(path)
  } catch (error) {
    throw new Panic(`Unable to open or read from the ${what} file: ${ioError(error).debug}`)
  }
}

const guestOf = async (name: Settings.Settings["guest"]): Promise<Guest.MakeGuest> => {
  switch (name) {
    case "none":
      return Guest.none
    case "echo":
      return Guest.echo
    case "agent":
      return (await import("./fakeFirecrackerAgent.ts")).agent()
  }
}

/** Brings up what the arguments name. */
const start = async (
  instance: Instance.Instance,
  given: Arguments,
  resolve: (path: string) => string
): Promise<void> => {
  const { api, log, machine } = instance
  const text = (name: string) => given.value(name)
  const id = text("id") ?? "anonymous-instance"
  const wrongId = badId(id)
  if (wrongId !== undefined) throw new Panic(`Invalid instance ID: ${wrongId.debug}`)
  instance.setId(id)

  const level = text("level")
  if (level !== undefined && levelOf(level) === undefined) {
    throw new Ending(
      `Invalid value for logger level: Failed to parse string to level filter: ${level}.Possible values: [Error, Warning, Info, Debug]`,
      `InvalidLogLevel(LevelFilterFromStrError(${JSON.stringify(level)}))`,
      152
    )
  }
  try {
    log.update({
      log_path: text("log-path"),
      level: level === undefined ? undefined : levelOf(level),
      show_level: given.flag("show-level") || undefined,
      show_log_origin: given.flag("show-log-origin") || undefined,
      module: text("module")
    })
  } catch (error) {
    const { debug, text: why } = ioError(error)
    throw new Ending(
      `Could not initialize logger: Failed to open target file: ${why}`,
      `LoggerInitialization(LoggerUpdateError(${debug}))`
    )
  }
  log.write("Info", `Running Firecracker v${instance.version}`)
  const metricsPath = text("metrics-path")
  if (metricsPath !== undefined) {
    const fault = Resources.attempt(() => instance.metrics.init(metricsPath))
    if (fault !== undefined) {
      const why = String(fault)
      throw new Ending(
        `Could not initialize metrics: Cannot initialize the metrics system due to bad user input: ${why}`,
        `MetricsInitialization(InitializationFailure(${JSON.stringify(why)}))`
      )
    }
  }
  const filter = text("seccomp-filter")
  if (filter !== undefined) {
    try {
      Fs.accessSync(resolve(filter), Fs.constants.R_OK)
    } catch (error) {
      throw new Ending(
        `Seccomp error: Filter file open error: ${ioError(error).text}`,
        `SeccompFilter(FileOpen(${ioError(error).debug}))`
      )
    }
  }
  const configFile = text("config-file")
  const config = configFile === undefined ? undefined : readFile(resolve(configFile), "configuration")
  const metadataFile = text("metadata")
  const metadata = metadataFile === undefined ? undefined : readFile(resolve(metadataFile), "mmds content")
  for (const name of ["http-api-max-payload-size", "mmds-size-limit"]) number(text(name), name, "usize")
  const [startedAt, cpuAtStart, cpuBefore = 0] = ["start-time-us", "start-time-cpu-us", "parent-cpu-time-us"].map((
    name
  ) => number(text(name), name, "u64"))

  if (!given.flag("no-api")) {
    const socket = text("api-sock") ?? "/run/firecracker.socket"
    try {
      await instance.listen(socket)
    } catch (error) {
      const { debug, text: why } = ioError(error)
      if (why.startsWith("Address already in use")) {
        throw new Ending(
          `RunWithApiError error: Failed to open the API socket at: ${socket}. Check that it is not already used.`,
          `RunWithApi(FailedToBindSocket(${JSON.stringify(socket)}))`
        )
      }
      throw new Ending(
        `RunWithApiError error: Failed to bind and run the HTTP server: IO error: ${why}`,
        `RunWithApi(FailedToBindAndRunHttpServer(IOError(${debug})))`
      )
    }
    const took = (name: string, micros: number) => instance.metrics.set("api_server", name, micros)
    if (startedAt !== undefined) took("process_startup_time_us", Number(process.hrtime.bigint() / 1000n) - startedAt)
    if (cpuAtStart !== undefined) {
      const { system, user } = process.cpuUsage()
      took("process_startup_time_cpu_us", system + user - cpuAtStart + cpuBefore)
    }
  }
  if (metadata !== undefined) {
    try {
      machine.of.mmds.data = parseJson(json, metadata)
    } catch (error) {
      const [, why = error, line, column] = /^(.*) at line (\d+) column (\d+)$/s.exec(String(error)) ?? []
      throw new Panic(
        `MMDS error: metadata provided not valid json: Error(${JSON.stringify(why)}, line: ${line}, column: ${column})`
      )
    }
    log.write("Info", "Successfully added metadata to mmds from file")
  }
  if (config === undefined) return
  const [display, debug] = given.flag("no-api")
    ? ["RunWithoutApiError error: Failed to build MicroVM from Json", "RunWithoutApiError(BuildMicroVMFromJson"]
    : ["RunWithApiError error: Failed to build MicroVM from Json", "RunWithApi(BuildFromJson"]
  try {
    await api.boot(config)
  } catch (error) {
    if (!(error instanceof Resources.Fault)) throw error
    throw new Ending(`${display}: ${error.message}`, `${debug}(${error.debug}))`)
  }
  log.write("Info", "Successfully started microvm that was configured from one single json")
}

/** Lets go of what only the one who started it may do. */
const become = ({ gid, uid }: Settings.Jail): void => {
  if (process.getuid?.() === 0) process.setgroups?.([])
  process.setgid?.(gid)
  process.setuid?.(uid)
}

const signals: ReadonlyArray<readonly [NodeJS.Signals, number, number]> = [
  ["SIGHUP", 1, 156],
  ["SIGILL", 4, 157],
  ["SIGBUS", 7, 149],
  ["SIGSEGV", 11, 150],
  ["SIGXCPU", 24, 154],
  ["SIGXFSZ", 25, 151],
  // Not from a filter of system calls, it is none of its own.
  ["SIGSYS", 31, 2]
]

const main = async ([optionsFile = "", ...argv]: ReadonlyArray<string>): Promise<void> => {
  const settings = Settings.read(Fs.readFileSync(optionsFile, "utf8"), process.env["FAKE_FIRECRACKER"])
  const jailed = process.env["FAKE_FIRECRACKER_JAIL"]
  const jail = jailed === undefined ? undefined : Settings.readJail(jailed)
  // In a jail everything has to be read while it can be; else that can wait until there is a socket.
  const loaded = jail === undefined ? undefined : await guestOf(settings.guest)
  const guest = async () => loaded ?? await guestOf(settings.guest)
  const events = settings.events === undefined ? undefined : Fs.openSync(settings.events, "a")
  if (jail !== undefined) {
    process.chdir(jail.root)
    become(jail)
  }
  if (settings.faults.some((fault) => fault._tag === "IgnoreTerm")) process.on("SIGTERM", () => {})
  // The first process of a namespace hears from outside of it only what cannot be refused.
  if (jail?.first === true) { for (const name of ["SIGTERM", "SIGINT", "SIGQUIT"] as const) process.on(name, () => {}) }

  const world = makeWorld({ root: jail?.root })
  const stdout = openStdout()
  const print = (text: string): void => {
    writeSome(stdout, text)
  }
  const given = (() => {
    try {
      return parse(known(Number(settings.version.split(".")[1])), argv)
    } catch (error) {
      return error instanceof BadArguments ? error : new BadArguments(String(error), "")
    }
  })()
  const arguments_ = given instanceof BadArguments ? undefined : given
  const limit = (name: string): number | undefined => {
    const text = arguments_?.value(name)
    return text === undefined || !/^\+?\d+$/.test(text) ? undefined : Number(text)
  }
  const payloadLimit = limit("http-api-max-payload-size") ?? 51_200

  // There may be no socket that keeps it alive.
  const alive = setInterval(() => {}, 2 ** 30)
  const leave = (how: Instance.Exit): void => {
    clearInterval(alive)
    if ("signal" in how) {
      process.removeAllListeners(how.signal)
      process.kill(process.pid, how.signal)
    } else process.exitCode = how.code
  }
  const instance = Instance.make({
    settings,
    world,
    guest,
    pci: arguments_?.flag("enable-pci") ?? false,
    payloadLimit,
    mmdsLimit: limit("mmds-size-limit") ?? payloadLimit,
    api: arguments_?.flag("no-api") !== true,
    stdout: print,
    stderr: (text) => {
      writeSome(2, text)
    },
    onEvent: (event) => {
      if (events !== undefined) Fs.writeSync(events, `${JSON.stringify({ ...event, pid: process.pid })}\n`)
    },
    onExit: leave
  })
  for (const [name, signal, code] of signals) {
    process.on(name, () => {
      instance.log.write("Error", `Shutting down VM after intercepting signal ${signal}, code 0.`)
      instance.metrics.add("signals", name.toLowerCase())
      instance.metrics.flush()
      void instance.exit({ code })
    })
  }

  process.on("SIGPIPE", () => {
    instance.log.write("Error", "Received signal 13, code 0.")
    instance.metrics.add("signals", "sigpipe")
  })

  try {
    if (given instanceof BadArguments) {
      throw new Ending(
        `Arguments parsing error: ${given.message} \\n\\nFor more information try --help.`,
        `ParseArguments(${given.debug})`,
        153
      )
    }
    if (given.help || given.version) {
      print(`Firecracker v${settings.version}\n\n`)
      if (given.help) print("optional arguments:\n")
      return instance.finish(0)
    }
    if (given.flag("snapshot-version")) {
      print(`v${instance.snapshotFormat}\n`)
      return instance.finish(0)
    }
    const described = given.value("describe-snapshot")
    if (described !== undefined) {
      print(`v${describe(world.resolve(described), instance.minor)}\n`)
      return instance.finish(0)
    }
    await start(instance, given, world.resolve)
    await guest()
    // Most end in a way that leaves no time for it.
    flushCompileCache()
  } catch (error) {
    if (error instanceof Panic) {
      instance.log.write("Error", `Firecracker panicked at src/firecracker/src/main.rs:1:1:\n${error.message}`)
      instance.metrics.flush()
      process.kill(process.pid, "SIGABRT")
      return
    }
    if (!(error instanceof Ending)) throw error
    instance.finish(error.code, { text: error.message, debug: error.debug })
  }
}

const describe = (path: string, minor: number): string => {
  try {
    return Snapshot.describe(path, minor)
  } catch (error) {
    const bad = error instanceof Snapshot.BadSnapshot
    const { debug, text } = bad ? { debug: error.debug, text: error.message } : ioError(error)
    const what = bad ? "Invalid data format version of snapshot file" : "Unable to open snapshot state file"
    throw new Ending(
      `When printing Snapshot Data format: ${what}: ${text}`,
      `PrintSnapshotDataFormat(${bad ? "SnapshotVersion" : "OpenSnapshot"}(${debug}))`
    )
  }
}

await main(process.argv.slice(2))
