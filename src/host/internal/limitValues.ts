import type { Fault } from "../HostError.ts"
import type { Controller } from "./cgroupLayout.ts"

/** Bytes and operations in a second. */
export interface IoLimit {
  readonly device: string
  readonly readBytes?: number | undefined
  readonly writeBytes?: number | undefined
  readonly readOperations?: number | undefined
  readonly writeOperations?: number | undefined
}

export interface Values {
  readonly memoryMib?: number | undefined
  readonly swapMib?: number | undefined
  readonly cpus?: number | undefined
  readonly pids?: number | undefined
  readonly io?: ReadonlyArray<IoLimit> | undefined
}

export const names = ["memory", "swap", "cpus", "pids", "io"] as const

export type Name = (typeof names)[number]

type Setting = readonly [file: string, text: string]

/** A limit, and what is to be written for it. */
export interface Wanted {
  readonly limit: Name
  readonly value: string
  readonly controller: Controller
  readonly v2: ReadonlyArray<Setting>
  readonly v1: ReadonlyArray<Setting>
}

const mebibyte = 1024 * 1024

/** Of the quota of processor time, in microseconds. */
const period = 100_000

const rates = [
  ["readBytes", "rbps", "read_bps"],
  ["writeBytes", "wbps", "write_bps"],
  ["readOperations", "riops", "read_iops"],
  ["writeOperations", "wiops", "write_iops"]
] as const

export const faultsOf = (values: Values, required: ReadonlyArray<Name>): ReadonlyArray<Fault> => {
  const faults: Array<Fault> = []
  const check = (field: string, value: unknown, isRight: boolean, remedy: string) => {
    if (value !== undefined && !isRight) faults.push({ field, value, remedy })
  }
  const isWhole = (value: number | undefined, least: number, most: number): boolean =>
    value !== undefined && Number.isSafeInteger(value) && value >= least && value <= most
  const { cpus, io = [], memoryMib, pids, swapMib } = values
  check("memoryMib", memoryMib, isWhole(memoryMib, 1, 2 ** 32), "give a whole number from 1 to 4294967296")
  check("swapMib", swapMib, isWhole(swapMib, 0, 2 ** 32), "give a whole number from 0 to 4294967296")
  check("swapMib", swapMib, memoryMib !== undefined, "give memoryMib too")
  check("cpus", cpus, cpus !== undefined && cpus >= 0.01 && cpus <= 10_000, "give a number from 0.01 to 10000")
  check("pids", pids, isWhole(pids, 1, 4_194_304), "give a whole number from 1 to 4194304")
  io.forEach((one, index) => {
    const field = `io[${index}]`
    check(`${field}.device`, one.device, /^\d{1,4}:\d{1,7}$/.test(one.device), "give its numbers, such as \"254:0\"")
    check(field, one, rates.some(([name]) => one[name] !== undefined), "give a rate at least")
    for (const [name] of rates) {
      const remedy = "give a whole number from 1 on, in a second"
      check(`${field}.${name}`, one[name], isWhole(one[name], 1, Number.MAX_SAFE_INTEGER), remedy)
    }
  })
  const given = new Set(wantedOf(values).map(({ limit }) => limit))
  for (const name of required) check("required", name, given.has(name), `give the limit ${name} too`)
  return faults
}

export const wantedOf = ({ cpus, io = [], memoryMib, pids, swapMib = 0 }: Values): ReadonlyArray<Wanted> => {
  const wanted: Array<Wanted> = []
  if (memoryMib !== undefined) {
    const memory = memoryMib * mebibyte
    const swap = swapMib * mebibyte
    wanted.push({
      limit: "memory",
      value: `${memoryMib} MiB`,
      controller: "memory",
      // All of the machine goes, not the one process of it that is the largest.
      v2: [["memory.max", String(memory)], ["memory.oom.group", "1"]],
      v1: [["memory.limit_in_bytes", String(memory)]]
    }, {
      limit: "swap",
      value: `${swapMib} MiB`,
      controller: "memory",
      v2: [["memory.swap.max", String(swap)]],
      v1: [["memory.memsw.limit_in_bytes", String(memory + swap)]]
    })
  }
  if (cpus !== undefined) {
    const quota = String(Math.round(cpus * period))
    wanted.push({
      limit: "cpus",
      value: String(cpus),
      controller: "cpu",
      v2: [["cpu.max", `${quota} ${period}`]],
      v1: [["cpu.cfs_period_us", String(period)], ["cpu.cfs_quota_us", quota]]
    })
  }
  if (pids !== undefined) {
    const settings = [["pids.max", String(pids)]] as const
    wanted.push({ limit: "pids", value: String(pids), controller: "pids", v2: settings, v1: settings })
  }
  if (io.length > 0) {
    const each = io.map((one) => ({
      device: one.device,
      rates: rates.flatMap(([name, v2, v1]) => one[name] === undefined ? [] : [{ v2, v1, rate: String(one[name]) }])
    }))
    wanted.push({
      limit: "io",
      value: each.map((one) => `${one.device} ${one.rates.map(({ rate, v2 }) => `${v2}=${rate}`).join(" ")}`).join(
        ", "
      ),
      controller: "io",
      v2: each.map((one) => ["io.max", `${one.device} ${one.rates.map(({ rate, v2 }) => `${v2}=${rate}`).join(" ")}`]),
      v1: each.flatMap((one) =>
        one.rates.map(({ rate, v1 }) => [`blkio.throttle.${v1}_device`, `${one.device} ${rate}`] as const)
      )
    })
  }
  return wanted
}
