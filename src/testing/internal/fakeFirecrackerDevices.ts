/** The devices of a machine that runs: what can be asked of them, changed in them, and which can be taken away. */
import type { Bodies, Body } from "./fakeFirecrackerBodies.ts"
import type { Method } from "./fakeFirecrackerHttp.ts"
import type { Machine, Options } from "./fakeFirecrackerMachine.ts"
import * as Resources from "./fakeFirecrackerResources.ts"
import { Fault } from "./fakeFirecrackerResources.ts"
import { parse, Refused, type Shape } from "./fakeSerde.ts"

/** What a request leads to. */
export interface Action {
  /** Before the machine runs, after, or both. */
  readonly when: "pre" | "post" | "both"
  /** It belongs to a machine that is booted, so none can be loaded any more. */
  readonly boot?: boolean
  readonly deprecated?: boolean
  /** The name of the metric, and in the log, that says how long it took. */
  readonly timed?: readonly [metric: string, action: string]
  readonly run: () => Promise<string | void> | string | void
}

export const checkedId = (id: string | undefined): string => {
  if (id === undefined || id === "") throw new Fault("The ID cannot be empty.", 400, "EmptyID")
  if (!/^[\p{Alphabetic}\p{N}_]+$/u.test(id)) {
    throw new Fault("API Resource IDs can only contain alphanumeric characters and underscores.", 400, "InvalidID")
  }
  return id
}

/** A body that is not understood. */
export const badBody = (why: string): Fault => {
  const [, text, line, column] = /^(.*) at line (\d+) column (\d+)$/s.exec(why) ?? [undefined, why, 0, 0]
  return new Fault(
    `An error occurred when deserializing the json body of a request: ${why}.`,
    400,
    `SerdeJson(Error(${JSON.stringify(text)}, line: ${line}, column: ${column}))`
  )
}

export const emptyRequest: Readonly<Record<Method, string>> = {
  GET: "GET request cannot have a body.",
  PUT: "Empty PUT request.",
  PATCH: "Empty PATCH request.",
  DELETE: "Empty Delete request."
}

export const reading = (minor: number) => <A>(shape: Shape<A>, body: Buffer): A => {
  try {
    return parse(shape, body, minor >= 15 ? "e+" : "e")
  } catch (error) {
    throw error instanceof Refused
      ? badBody(error.message)
      : error
  }
}
export const sameId = (fromPath: string, fromBody: string): void => {
  if (fromPath !== fromBody) throw new Fault("The id from the path does not match the id from the body!")
}

export const make = (options: Options, machine: Machine, bodies: Bodies) => {
  const { minor, world } = options
  const { of } = machine
  const read = reading(minor)
  /** In what words a device of a machine that runs is missing. */
  const deviceMissing = minor >= 13
    ? "Failed perform action on device: Device not found"
    : "Device manager error: Failed to find the device on the bus."

  /** How what a device itself says is told. */
  const deviceSays = (device: string, what: string): string =>
    minor >= 14
      ? `${device}: ${what}`
      : minor === 13
      ? `Failed perform action on device: Internal Device error: ${what}`
      : `Device manager error: ${what}`

  /** What 1.7 calls it. */
  const nameOf: Readonly<Record<string, string>> = {
    "Device not activated yet.": "DeviceNotActive",
    "Amount of pages requested cannot fit in `u32`.": "TooManyPagesRequested"
  }
  const oldBalloon = "Balloon config error: Error creating the balloon device"
  const balloon = (prefix: string): Body<"balloon"> => {
    if (of.balloon !== undefined) return of.balloon
    throw new Fault(minor >= 13 ? `${prefix}: ${deviceMissing}` : `${oldBalloon}: No balloon device found.`)
  }
  const balloonFault = (prefix: string, what: string) =>
    new Fault(
      minor >= 13
        ? `${prefix}: ${deviceSays("Balloon", what)}`
        : `${oldBalloon}: ${minor < 8 ? nameOf[what] ?? what : what}`
    )
  const active = (prefix: string): void => {
    if (!options.drivers) throw balloonFault(prefix, "Device not activated yet.")
  }
  const hinting = (run: (mine: Body<"balloon">) => string | void): Action => ({
    when: "post",
    run: () => {
      const mine = balloon("Balloon update error")
      if (!mine.free_page_hinting) {
        throw new Fault("Balloon update error: Balloon: Attempting to use hinting when not enabled")
      }
      return run(mine)
    }
  })
  let hintingCommand = 0

  const getBalloon = (tokens: ReadonlyArray<string>): Action => {
    const [, first, second] = tokens
    switch (first) {
      case undefined:
        return {
          when: "both",
          run: () => {
            if (of.balloon === undefined && machine.state() === "Not started") {
              throw new Fault("Balloon config error: No balloon device found.")
            }
            return JSON.stringify(Resources.balloonJson(balloon("Internal VMM error"), minor))
          }
        }
      case "statistics":
        return {
          when: "post",
          run: () => {
            const mine = balloon("Internal VMM error")
            if (mine.stats_polling_interval_s === 0) {
              throw balloonFault("Internal VMM error", "Received stats query when stats are disabled.")
            }
            const actual = options.drivers ? mine.amount_mib : 0
            return JSON.stringify({
              target_pages: mine.amount_mib * 256,
              actual_pages: actual * 256,
              target_mib: mine.amount_mib,
              actual_mib: actual,
              ...(options.drivers
                ? { free_memory: of.machine.mem_size_mib * 2 ** 19, total_memory: of.machine.mem_size_mib * 2 ** 20 }
                : {})
            })
          }
        }
      case "hinting":
        if (minor < 14) break
        if (second === "status") {
          return hinting(() =>
            JSON.stringify({ host_cmd: hintingCommand, guest_cmd: options.drivers ? hintingCommand : null })
          )
        }
        throw new Fault(`Unrecognized GET request path \`/hinting/${second ?? ""}\`.`)
    }
    throw new Fault(`Unrecognized GET request path \`${first}\`.`)
  }

  const patchBalloon = (tokens: ReadonlyArray<string>, body: Buffer | undefined): Action => {
    const [, first, second] = tokens
    const prefix = "Balloon update error"
    if (first === "hinting" && minor >= 14) {
      if (second === "start") {
        if (body !== undefined) read(bodies.hintingStart, body)
        return hinting(() => {
          active(prefix)
          hintingCommand = 2
        })
      }
      if (second === "stop") {
        return hinting(() => {
          active(prefix)
          hintingCommand = 1
        })
      }
      throw new Fault(`Unrecognized PATCH request path \`/hinting/${second ?? ""}\`.`)
    }
    if (body === undefined) throw new Fault(emptyRequest.PATCH)
    if (first === "statistics") {
      const update = read(bodies.balloonStatsUpdate, body)
      return {
        when: "post",
        run: () => {
          const mine = balloon(prefix)
          const { stats_polling_interval_s } = update
          if ((mine.stats_polling_interval_s === 0) !== (stats_polling_interval_s === 0)) {
            throw balloonFault(prefix, "Statistics cannot be enabled/disabled after activation.")
          }
          of.balloon = { ...mine, stats_polling_interval_s }
        }
      }
    }
    if (first !== undefined && minor < 14) throw new Fault(`Unrecognized PATCH request path \`${first}\`.`)
    const update = read(bodies.balloonUpdate, body)
    return {
      when: "post",
      run: () => {
        const mine = balloon(prefix)
        const tooMuch = update.amount_mib > of.machine.mem_size_mib
        if (tooMuch && minor < 13) throw balloonFault(prefix, "Amount of pages requested cannot fit in `u32`.")
        active(prefix)
        if (tooMuch) throw balloonFault(prefix, `Requested memory should be less than ${update.amount_mib}MiB`)
        of.balloon = { ...mine, amount_mib: update.amount_mib }
      }
    }
  }

  const hotplug = {
    status: (): Action => ({
      when: "post",
      run: () => {
        if (of.hotplug === undefined) throw new Fault(`Internal VMM error: ${deviceMissing}`)
        const { block_size_mib, slot_size_mib, total_size_mib } = of.hotplug
        const size = machine.hotplugged()
        return JSON.stringify({
          block_size_mib,
          total_size_mib,
          slot_size_mib,
          plugged_size_mib: size,
          requested_size_mib: size
        })
      }
    }),
    update: (body: Buffer): Action => {
      const { requested_size_mib: size } = read(bodies.memoryHotplugUpdate, body)
      return {
        when: "post",
        run: () => {
          const bad = (why: string) => new Fault(`Memory hotplug update error: ${why}`)
          if (of.hotplug === undefined) throw bad(deviceMissing)
          const create = "Failed to create memory hotplug device: "
          if (!options.drivers) throw bad(`${create}Device is not active`)
          if (size % of.hotplug.block_size_mib !== 0 || size > of.hotplug.total_size_mib) {
            throw bad(
              `${create}Size ${
                size * 2 ** 20
              } is invalid: it must be a multiple of block size and less than the total size`
            )
          }
          machine.plug(size)
        }
      }
    }
  }

  const unplug = (kind: "drives" | "pmem" | "network-interfaces", fromPath: string | undefined): Action => {
    const wanted = checkedId(fromPath)
    return {
      when: "post",
      run: () => {
        if (!options.pci) throw new Fault("PCI is not enabled")
        const drive = of.drives.find((one) => kind === "drives" && one.drive_id === wanted)
        const pmem = of.pmem.find((one) => kind === "pmem" && one.id === wanted)
        const network = of.networks.find((one) => kind === "network-interfaces" && one.iface_id === wanted)
        if (drive === undefined && pmem === undefined && network === undefined) throw new Fault("Device not found")
        if (drive?.is_root_device === true || pmem?.root_device === true) throw new Fault("Cannot unplug root device")
        of.drives = of.drives.filter((one) => one !== drive)
        of.pmem = of.pmem.filter((one) => one !== pmem)
        of.networks = of.networks.filter((one) => one !== network)
        if (network !== undefined && of.mmds.config !== undefined) {
          const rest = of.mmds.config.network_interfaces.filter((one) => one !== wanted)
          of.mmds.config = rest.length === 0 ? undefined : { ...of.mmds.config, network_interfaces: rest }
        }
      }
    }
  }

  const patchDrive = (fromPath: string | undefined, body: Buffer): Action => {
    const wanted = checkedId(fromPath)
    const update = read(bodies.driveUpdate, body)
    sameId(wanted, update.drive_id)
    return {
      when: "post",
      run: () => {
        const bad = (why: string) =>
          new Fault(`Drive config error: Unable to patch the block device: ${why} Please verify the request arguments.`)
        const drive = of.drives.find((one) => one.drive_id === wanted)
        if (drive === undefined) throw bad(deviceMissing)
        if (update.path_on_host === undefined && update.rate_limiter === undefined) {
          throw bad(deviceSays("Block", "Running method expected different backend."))
        }
        try {
          if (update.path_on_host !== undefined) {
            Resources.openDrive(world, update.path_on_host, drive.is_read_only ?? false)
          }
        } catch (error) {
          throw error instanceof Fault ? bad(deviceSays("Block", error.message)) : error
        }
        of.drives = of.drives.map((one) =>
          one === drive
            ? {
              ...one,
              path_on_host: update.path_on_host ?? one.path_on_host,
              rate_limiter: Resources.updated(one.rate_limiter, update.rate_limiter)
            }
            : one
        )
      }
    }
  }

  const patchNetwork = (fromPath: string | undefined, body: Buffer): Action => {
    const wanted = checkedId(fromPath)
    const update = read(bodies.networkUpdate, body)
    if (wanted !== update.iface_id) {
      throw new Fault(`The id from the path [${wanted}] does not match the id from the body [${update.iface_id}]!`)
    }
    return {
      when: "post",
      run: () => {
        if (!of.networks.some((one) => one.iface_id === wanted)) {
          throw new Fault(`Network config error: Unable to update the net device: ${deviceMissing}`)
        }
        of.networks = of.networks.map((one) =>
          one.iface_id === wanted
            ? {
              ...one,
              rx_rate_limiter: Resources.updated(one.rx_rate_limiter, update.rx_rate_limiter),
              tx_rate_limiter: Resources.updated(one.tx_rate_limiter, update.tx_rate_limiter)
            }
            : one
        )
      }
    }
  }

  const patchPmem = (fromPath: string | undefined, body: Buffer): Action => {
    const wanted = checkedId(fromPath)
    const update = read(bodies.pmemUpdate, body)
    sameId(wanted, update.id)
    return {
      when: "post",
      run: () => {
        if (update.rate_limiter === undefined) return
        if (!of.pmem.some((one) => one.id === wanted)) {
          throw new Fault(
            `Pmem config error: Unable to patch the pmem device: ${deviceMissing} Please verify the request arguments.`
          )
        }
        of.pmem = of.pmem.map((one) =>
          one.id === wanted
            ? Object.assign({}, one, { rate_limiter: Resources.updated(one.rate_limiter, update.rate_limiter) })
            : one
        )
      }
    }
  }

  return { getBalloon, patchBalloon, hotplug, unplug, patchDrive, patchNetwork, patchPmem }
}
