/** Firecracker's log: where it goes, and what a line of it looks like. */
import * as Fs from "node:fs"
import type { Level } from "./fakeFirecrackerBodies.ts"
import { type World, writeSome } from "./fakeFirecrackerWorld.ts"

const order: ReadonlyArray<Level> = ["Off", "Error", "Warn", "Info", "Debug", "Trace"]

const two = (value: number): string => String(value).padStart(2, "0")

/** The local time to the nanosecond. */
const localTime = (): string => {
  const now = new Date()
  const nanos = BigInt(now.getMilliseconds()) * 1_000_000n + process.hrtime.bigint() % 1_000_000n
  const date = `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`
  const time = `${two(now.getHours())}:${two(now.getMinutes())}:${two(now.getSeconds())}`
  return `${date}T${time}.${String(nanos).padStart(9, "0")}`
}

/** Opens the sink of a log or of metrics as release 1.`minor` does: made if it is missing, from 1.14 on; never truncated. */
export const openSink = (world: World, path: string, minor: number): number => {
  const { O_CREAT, O_NONBLOCK, O_RDWR } = Fs.constants
  return Fs.openSync(world.resolve(path), O_RDWR | O_NONBLOCK | (minor >= 14 ? O_CREAT : 0), 0o666)
}

export interface LoggerConfig {
  readonly log_path: string | undefined
  readonly level: Level | undefined
  readonly show_level: boolean | undefined
  readonly show_log_origin: boolean | undefined
  readonly module: string | undefined
}

export interface Log {
  id: string
  readonly update: (config: LoggerConfig) => void
  readonly write: (level: Level, message: string, thread?: "main" | "fc_api" | "fc_vcpu 0") => void
}

export const makeLog = (options: {
  readonly world: World
  readonly minor: number
  readonly stdout: (text: string) => void
  readonly missed: () => void
}): Log => {
  let sink: number | undefined
  let level: Level = "Info"
  let showLevel = false
  let showOrigin = false
  let only: string | undefined
  const log: Log = {
    id: "anonymous-instance",
    update: (config) => {
      if (config.log_path !== undefined) sink = openSink(options.world, config.log_path, options.minor)
      level = config.level ?? "Info"
      showLevel = config.show_level ?? showLevel
      showOrigin = config.show_log_origin ?? showOrigin
      only = config.module ?? only
    },
    write: (at, message, thread = "main") => {
      const module = thread === "fc_api" ? "firecracker::api_server" : "vmm"
      if (order.indexOf(at) > order.indexOf(level) || (only !== undefined && !module.startsWith(only))) return
      const shown = showLevel ? `:${at.toUpperCase()}` : ""
      const origin = showOrigin ? `:src/${module.split("::")[0]}/src/lib.rs:1` : ""
      const line = `${localTime()} [${log.id}:${thread}${shown}${origin}] ${message}\n`
      if (sink === undefined) options.stdout(line)
      else if (!writeSome(sink, line)) options.missed()
    }
  }
  return log
}
