/** The endpoints of Firecracker's API, by release: which there are, when they may be used, and what they do. */
import { readFileSync } from "node:fs"
import { type Bodies, type Body, make as makeBodies } from "./fakeFirecrackerBodies.ts"
import * as Devices from "./fakeFirecrackerDevices.ts"
import { type Action, badBody, checkedId, emptyRequest, reading, sameId } from "./fakeFirecrackerDevices.ts"
import type { Answer, Method } from "./fakeFirecrackerHttp.ts"
import { FatalFault, type Machine, type Options, type Restored } from "./fakeFirecrackerMachine.ts"
import * as Resources from "./fakeFirecrackerResources.ts"
import { Fault } from "./fakeFirecrackerResources.ts"
import { type Json, parse, Refused } from "./fakeSerde.ts"

interface ApiOptions extends Options {
  readonly mmdsLimit: number
}

/** By which name requests on a path are counted. */
const counted: Readonly<Record<string, string>> = {
  "": "instance_info",
  version: "vmm_version",
  actions: "actions",
  "boot-source": "boot_source",
  drives: "drive",
  logger: "logger",
  "machine-config": "machine_cfg",
  "cpu-config": "cpu_cfg",
  metrics: "metrics",
  "network-interfaces": "network",
  mmds: "mmds",
  vsock: "vsock",
  pmem: "pmem",
  serial: "serial",
  hotplug: "hotplug_memory"
}

const notBefore = "The requested operation is not supported before starting the microVM."
const notAfter = "The requested operation is not supported after starting the microVM."

const titled = (method: Method): string => `${method[0]}${method.slice(1).toLowerCase()}`

const unknownRequest = (method: Method, path: string): Fault =>
  new Fault(
    `Invalid request method and/or path: ${method} ${path}.`,
    400,
    `InvalidPathMethod(${JSON.stringify(path)}, ${titled(method)})`
  )

export const make = (options: ApiOptions, machine: Machine, id: () => string) => {
  const { architecture, log, metrics, minor, patch: patchLevel, world } = options
  const { of } = machine
  const bodies: Bodies = makeBodies(minor, patchLevel, architecture)
  const read = reading(minor)
  const devices = Devices.make(options, machine, bodies)
  const running = () => machine.state() !== "Not started"
  const store = () => Resources.mmds(of, running() && minor >= 15, options.mmdsLimit)

  const set = (run: Action["run"], deprecated = false): Action => ({ when: "pre", boot: true, deprecated, run })
  /** A device that can also be plugged in, where there is PCI. */
  const device = (run: (running: boolean) => void): Action => ({
    when: minor >= 16 ? "both" : "pre",
    boot: true,
    run: () => {
      if (running() && !options.pci) throw new Fault("PCI is not enabled")
      run(running())
    }
  })
  const restored: Restored = {
    read: (saved) => {
      const config = parse(bodies.config, Buffer.from(JSON.stringify(saved)))
      const fresh = Resources.empty()
      return {
        machine: config["machine-config"] ?? fresh.machine,
        boot: config["boot-source"],
        drives: config.drives.flatMap((drive) =>
          drive.path_on_host === undefined ? [] : [{ ...drive, path_on_host: drive.path_on_host }]
        ),
        networks: config["network-interfaces"],
        pmem: config.pmem,
        balloon: config.balloon,
        entropy: config.entropy,
        hotplug: config["memory-hotplug"],
        mmds: { config: config["mmds-config"], data: of.mmds.data }
      }
    }
  }

  const putSnapshot = (which: string | undefined, body: Buffer): Action => {
    if (which === undefined) throw new Fault("Missing snapshot operation type.")
    if (which === "create") {
      const create = read(bodies.snapshotCreate, body)
      return {
        when: "post",
        timed: create.snapshot_type === "Full"
          ? ["full_create_snapshot", "create full snapshot"]
          : ["diff_create_snapshot", "create diff snapshot"],
        run: () => machine.create(create)
      }
    }
    if (which !== "load") throw unknownRequest("PUT", `/snapshot/${which}`)
    const load = read(bodies.snapshotLoad, body)
    if (load.mem_backend !== undefined && load.mem_file_path !== undefined) {
      throw badBody("too many fields: either `mem_backend` or `mem_file_path` exclusively is required")
    }
    if (load.mem_backend === undefined && load.mem_file_path === undefined) {
      throw badBody("missing field: either `mem_backend` or `mem_file_path` is required")
    }
    return {
      when: "pre",
      timed: ["load_snapshot", "load snapshot"],
      deprecated: load.mem_file_path !== undefined || (load.enable_diff_snapshots && minor >= 13),
      run: () => machine.load(load, restored)
    }
  }

  const putMmds = (which: string | undefined, body: Buffer): Action => {
    if (which === undefined) {
      const data = read(bodies.json, body)
      return { when: "both", run: () => store().put(data) }
    }
    if (which !== "config") throw new Fault(`Unrecognized PUT request path \`${which}\`.`)
    const config = read(bodies.mmdsConfig, body)
    return set(() => Resources.setMmdsConfig(of, config), config.version === "V1")
  }

  const putActions = (body: Buffer): Action => {
    switch (read(bodies.actions, body).action_type) {
      case "FlushMetrics":
        return { when: "post", run: () => metrics.flush() }
      case "InstanceStart":
        return { when: "pre", run: () => machine.start() }
      case "SendCtrlAltDel":
        if (architecture === "aarch64") throw new Fault("SendCtrlAltDel does not supported on aarch64.")
        return { when: "post", run: () => machine.ctrlAltDel() }
    }
  }

  const setMetrics = (body: Body<"metrics">): void => {
    const bad = (why: string) =>
      new Fault(`Metrics error: Cannot initialize the metrics system due to bad user input: ${why}`)
    const fault = Resources.attempt(() => {
      const first = metrics.init(body.metrics_path, {
        id: body.emit_id ? id() : undefined,
        properties: body.properties
      })
      if (!first) throw bad("Reinitialization of metrics not allowed.")
    })
    if (fault !== undefined) throw fault instanceof Fault ? fault : bad(fault)
  }

  const setLogger = (body: Body<"logger">): void => {
    const fault = Resources.attempt(() => log.update(body))
    if (fault !== undefined) {
      throw fault instanceof Fault ? fault : new Fault(`Logger error: Failed to open target file: ${fault}`)
    }
  }

  const get = (tokens: ReadonlyArray<string>): Action | undefined => {
    const [first = "", second] = tokens
    const info = (run: () => string): Action => ({ when: "both", run })
    switch (first) {
      case "":
        return info(() =>
          JSON.stringify({ id: id(), state: machine.state(), vmm_version: options.version, app_name: "Firecracker" })
        )
      case "balloon":
        return devices.getBalloon(tokens)
      case "version":
        return info(() => JSON.stringify({ firecracker_version: options.version }))
      case "vm":
        return second !== "config" ? undefined : info(() => {
          if (!running()) {
            const empty = "boot-source, machine-config.smt, and machine-config.cpu_template will all be empty."
            log.write("Warn", `If the VM was restored from snapshot, ${empty}`)
          }
          return JSON.stringify(Resources.configJson(of, minor))
        })
      case "machine-config":
        return info(() => JSON.stringify(Resources.machineJson(of.machine)))
      case "mmds":
        return info(() => store().get())
      case "hotplug":
        return second === "memory" && minor >= 14 ? devices.hotplug.status() : undefined
      default:
        return undefined
    }
  }

  const put = (tokens: ReadonlyArray<string>, body: Buffer): Action | undefined => {
    const [first = "", second] = tokens
    switch (first) {
      case "actions":
        return putActions(body)
      case "balloon": {
        const config = read(bodies.balloon, body)
        return set(() => Resources.setBalloon(of, config))
      }
      case "boot-source": {
        const config = read(bodies.bootSource, body)
        return set(() => Resources.setBoot(of, world, config))
      }
      case "cpu-config":
        read(bodies.cpuConfig, body)
        return {
          when: "pre",
          run: () => {
            of.machine = { ...of.machine, cpu_template: minor >= 11 ? undefined : "None" }
          }
        }
      case "drives": {
        const wanted = checkedId(second)
        const config = read(bodies.drive, body)
        sameId(wanted, config.drive_id)
        return device((on) => Resources.addDrive(of, world, config, minor, on))
      }
      case "pmem": {
        if (minor < 14) return undefined
        const wanted = checkedId(second)
        const config = read(bodies.pmem, body)
        sameId(wanted, config.id)
        return device((on) => Resources.addPmem(of, world, config, minor, on))
      }
      case "network-interfaces": {
        const wanted = checkedId(second)
        const config = read(bodies.network, body)
        if (wanted !== config.iface_id) {
          throw new Fault(`The id from the path [${wanted}] does not match the id from the body [${config.iface_id}]!`)
        }
        return device((on) => Resources.addNetwork(of, config, on))
      }
      case "logger": {
        const config = read(bodies.logger, body)
        return { when: "pre", run: () => setLogger(config) }
      }
      case "serial": {
        if (minor < 14) return undefined
        const { serial_out_path } = read(bodies.serial, body)
        return {
          when: "pre",
          run: () => {
            of.serial = serial_out_path
          }
        }
      }
      case "machine-config": {
        const config = read(bodies.machineConfig, body)
        return set(() => Resources.setMachine(of, architecture, config), config.cpu_template !== undefined)
      }
      case "metrics": {
        const config = read(bodies.metrics, body)
        return { when: "pre", run: () => setMetrics(config) }
      }
      case "mmds":
        return putMmds(second, body)
      case "snapshot":
        return putSnapshot(second, body)
      case "vsock": {
        const config = read(bodies.vsock, body)
        return set(() => machine.setVsock(config), config.vsock_id !== undefined)
      }
      case "entropy": {
        const config = read(bodies.entropy, body)
        return set(() => {
          of.entropy = config
        })
      }
      case "hotplug": {
        if (second !== "memory" || minor < 14) return undefined
        const config = read(bodies.memoryHotplug, body)
        return set(() => Resources.setHotplug(of, config))
      }
      default:
        return undefined
    }
  }

  const patch = (tokens: ReadonlyArray<string>, body: Buffer): Action | undefined => {
    const [first = "", second] = tokens
    switch (first) {
      case "drives":
        return devices.patchDrive(second, body)
      case "machine-config": {
        const update = read(bodies.machineConfigUpdate, body)
        if (Object.values(update).every((value) => value === undefined)) throw new Fault(emptyRequest.PATCH)
        return set(() => Resources.setMachine(of, architecture, update), update.cpu_template !== undefined)
      }
      case "mmds": {
        const data = read(bodies.json, body)
        return { when: "both", run: () => store().patch(data) }
      }
      case "network-interfaces":
        return devices.patchNetwork(second, body)
      case "pmem":
        return minor >= 16 ? devices.patchPmem(second, body) : undefined
      case "vm": {
        const { state } = read(bodies.vm, body)
        return state === "Paused"
          ? { when: "post", timed: ["pause_vm", "pause vm"], run: machine.pause }
          : { when: "post", timed: ["resume_vm", "resume vm"], run: machine.resume }
      }
      case "hotplug":
        return second === "memory" && minor >= 14 ? devices.hotplug.update(body) : undefined
      default:
        return undefined
    }
  }

  const route = (method: Method, path: string, body: Buffer | undefined): Action => {
    const tokens = path.replace(/^\/+/, "").split("/")
    if (tokens.at(-1) === "") tokens.pop()
    const [first = "", second] = tokens
    const unknown = () => unknownRequest(method, first)
    const found = (() => {
      switch (method) {
        case "GET":
          if (body !== undefined) throw new Fault(emptyRequest.GET)
          return get(tokens)
        case "PUT":
          if (body === undefined) throw new Fault(emptyRequest.PUT)
          return put(tokens, body)
        case "PATCH":
          if (first === "balloon" && (minor >= 14 || body !== undefined)) return devices.patchBalloon(tokens, body)
          if (body === undefined) throw new Fault(emptyRequest.PATCH)
          return patch(tokens, body)
        case "DELETE":
          if (body !== undefined) throw new Fault(emptyRequest.DELETE)
          return first === "drives" || first === "pmem" || first === "network-interfaces"
            ? devices.unplug(first, second)
            : undefined
      }
    })()
    if (found === undefined) throw unknown()
    return found
  }

  const perform = async (action: Action): Promise<string | undefined> => {
    if (running() && action.when === "pre") throw new Fault(notAfter)
    if (!running() && action.when === "post") throw new Fault(notBefore)
    if (action.boot === true) machine.configure()
    const started = performance.now()
    const data = await action.run()
    if (action.timed !== undefined) {
      const [metric, what] = action.timed
      const micros = Math.ceil((performance.now() - started) * 1000)
      metrics.set("latencies_us", `vmm_${metric}`, micros)
      log.write("Info", `'${what}' VMM action took ${micros} us.`)
      metrics.set("latencies_us", metric, micros)
      log.write("Info", `'${what}' API request took ${micros} us.`, "fc_api")
    }
    return data ?? undefined
  }

  /** `fatal`: the process ends once this is told. */
  const handle = async (
    method: Method,
    path: string,
    body: Buffer | undefined
  ): Promise<Answer & { readonly fatal: boolean }> => {
    let action: Action | undefined
    const told = body === undefined || path === "/mmds" ? "" : ` with body ${JSON.stringify(body.toString("utf8"))}`
    log.write(
      "Info",
      `The API server received a ${titled(method)} request on ${JSON.stringify(path)}${told}.`,
      "fc_api"
    )
    const group = `${method.toLowerCase()}_api_requests`
    const count = (what: "count" | "fails") => {
      const counter = counted[path.split("/")[1] ?? ""]
      if (counter !== undefined) metrics.add(group, `${counter}_${what}`)
    }
    count("count")
    try {
      action = route(method, path, body)
      if (action.deprecated === true) metrics.add("deprecated_api", "deprecated_http_api_calls")
      const data = await perform(action)
      const status = data === undefined ? 204 : 200
      const done = `The request was executed successfully. Status code: ${status} ${
        status === 204 ? "No Content" : "OK"
      }.`
      log.write("Info", done, "fc_api")
      return { status, body: data, deprecated: action.deprecated, fatal: false }
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      const status = error.status === 413 ? "413 Payload too large" : "400 Bad Request"
      if (action === undefined) count("fails")
      const why = action === undefined
        ? error.debug
        : `Received Error. Status code: ${status}. Message: ${error.message}`
      log.write("Error", why, "fc_api")
      return {
        status: error.status,
        body: JSON.stringify({ fault_message: error.message }),
        deprecated: action?.deprecated,
        fatal: error instanceof FatalFault
      }
    }
  }

  /** A template for the processor is in the document itself (from 1.13 on), or in a file that it names. */
  const readTemplate = (template: Json | undefined): void => {
    if (template === undefined || template === null) return
    if (typeof template === "string") {
      const fault = Resources.attempt(() => parse(bodies.cpuConfig, readFileSync(world.resolve(template))))
      if (fault !== undefined) throw fault instanceof Fault ? fault : new Fault(`File operation error: ${fault}`)
    } else if (minor >= 13) parse(bodies.cpuConfig, Buffer.from(JSON.stringify(template)))
  }

  /** Configures a machine from the one document that has it all, and starts it. */
  const boot = async (document: Buffer): Promise<void> => {
    const within = async (prefix: string, run: () => Promise<void> | void): Promise<void> => {
      try {
        await run()
      } catch (error) {
        if (error instanceof Refused) {
          const debug = badBody(error.message).debug.replace("SerdeJson", "InvalidJson")
          throw new Fault(`${prefix}: Invalid JSON: ${error.message}`, 400, `ParseFromJson(${debug})`)
        }
        if (!(error instanceof Fault)) throw error
        throw new Fault(`${prefix}: ${error.message}`, 400, JSON.stringify(error.message))
      }
    }
    await within("Configuration for VMM from one single json failed", async () => {
      const config = parse(bodies.config, document)
      machine.configure()
      if (config.logger !== undefined) setLogger(config.logger)
      if (config.metrics !== undefined) setMetrics(config.metrics)
      if (config["machine-config"] !== undefined) Resources.setMachine(of, architecture, config["machine-config"])
      readTemplate(config["cpu-config"])
      Resources.setBoot(of, world, config["boot-source"])
      for (const drive of config.drives) Resources.addDrive(of, world, drive, minor, false)
      for (const network of config["network-interfaces"]) Resources.addNetwork(of, network, false)
      if (config.vsock !== undefined) await machine.setVsock(config.vsock)
      if (config.balloon !== undefined) Resources.setBalloon(of, config.balloon)
      if (config["mmds-config"] !== undefined) Resources.setMmdsConfig(of, config["mmds-config"])
      of.entropy = config.entropy
      for (const pmem of config.pmem) Resources.addPmem(of, world, pmem, minor, false)
      if (config["memory-hotplug"] !== undefined) Resources.setHotplug(of, config["memory-hotplug"])
    })
    await within("Could not Start MicroVM from one single json", () => machine.start())
  }

  return { handle, boot }
}
