import { describe, expect, it } from "@effect/vitest"
import {
  Capabilities,
  FirecrackerApi,
  type FirecrackerError,
  FirecrackerSchema,
  MachineConfig
} from "effect-microvm-runtime/firecracker"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import { hostileIds, scripted, target } from "./bodies.ts"

const machine = { vcpu_count: 2, mem_size_mib: 256 }
const least: MachineConfig.MachineConfig = { machine, bootSource: { kernel_image_path: "/x/vmlinux" } }
const nic = (id: string): FirecrackerSchema.NetworkInterface => ({ iface_id: id, host_dev_name: `tap-${id}` })
const drive = (id: string, root = false): FirecrackerSchema.Drive => ({
  drive_id: id,
  path_on_host: `/x/${id}.ext4`,
  is_root_device: root,
  is_read_only: root
})

const full: MachineConfig.MachineConfig = {
  ...least,
  drives: [drive("d0"), drive("rootfs", true), drive("d1")],
  networkInterfaces: [nic("n0"), nic("n1")],
  vsock: { guest_cid: 3, uds_path: "vsock.sock" },
  cpuConfig: { kvm_capabilities: ["121"] },
  pmem: [{ id: "p0", path_on_host: "/x/p0" }],
  entropy: {},
  balloon: { amount_mib: 256, deflate_on_oom: true },
  memoryHotplug: { total_size_mib: 128 },
  mmds: { config: { network_interfaces: ["n1"], version: "V2" }, data: { a: 1 } },
  logger: { log_path: "log" },
  metrics: { metrics_path: "metrics" },
  serial: { serial_out_path: "/x/serial" }
}

const reasonOf = (config: MachineConfig.MachineConfig, to = target(17), options?: MachineConfig.Options) =>
  Result.match(MachineConfig.steps(config, to, options), {
    onFailure: ({ reason }): FirecrackerError.Reason | undefined => reason,
    onSuccess: () => undefined
  })

const fieldsOf = (config: MachineConfig.MachineConfig, to?: Capabilities.Target) => {
  const reason = reasonOf(config, to)
  return reason?._tag === "InvalidRequest" ? reason.faults.map(({ field }) => field) : []
}

const featuresOf = (config: MachineConfig.MachineConfig, to: Capabilities.Target) => {
  const reason = reasonOf(config, to)
  return reason?._tag === "UnsupportedByVersion" ? reason.features.map(({ feature }) => feature) : []
}

const stepsOf = (config: MachineConfig.MachineConfig, to = target(17), options?: MachineConfig.Options) =>
  Result.getOrThrow(MachineConfig.steps(config, to, options))

const bodyOf = (config: MachineConfig.MachineConfig, path: string, to?: Capabilities.Target) =>
  stepsOf(config, to).find((call) => call.path === path)?.body

describe("MachineConfig.steps", () => {
  it("the least machine, told in full (row 33)", () => {
    expect(stepsOf(least)).toEqual([
      { method: "PUT", path: "/machine-config", body: { ...machine, smt: false, track_dirty_pages: false } },
      { method: "PUT", path: "/boot-source", body: least.bootSource }
    ])
  })

  it("what is told of the machine is kept (row 34)", () => {
    const config = { ...least, machine: { ...machine, smt: true, track_dirty_pages: true } }
    expect(bodyOf(config, "/machine-config")).toEqual(config.machine)
  })

  it("limits are sent as they are (rows 35 to 37)", () => {
    const bandwidth = FirecrackerSchema.tokenBucket({ size: 1_048_576, every: "1 second" })
    for (const rate_limiter of [{ bandwidth, ops: { size: 9, refill_time: 1 } }, { bandwidth }, {}]) {
      const config = { ...least, drives: [{ ...drive("d"), rate_limiter }] }
      expect(bodyOf(config, "/drives/d")).toEqual({ ...drive("d"), rate_limiter })
    }
  })

  it("the order of the calls of a cold boot (row 38)", () => {
    const { drives, networkInterfaces, vsock } = full
    expect(stepsOf({ ...least, drives, networkInterfaces, vsock }).map(({ path }) => path)).toEqual([
      "/machine-config",
      "/boot-source",
      "/drives/rootfs",
      "/network-interfaces/n0",
      "/network-interfaces/n1",
      "/drives/d0",
      "/drives/d1",
      "/vsock"
    ])
  })

  it("the order of all there are", () => {
    expect(stepsOf(full).map(({ path }) => path)).toEqual([
      "/logger",
      "/metrics",
      "/serial",
      "/machine-config",
      "/boot-source",
      "/drives/rootfs",
      "/network-interfaces/n0",
      "/network-interfaces/n1",
      "/drives/d0",
      "/drives/d1",
      "/vsock",
      "/cpu-config",
      "/pmem/p0",
      "/entropy",
      "/balloon",
      "/hotplug/memory",
      "/mmds/config",
      "/mmds"
    ])
  })

  it("an id twice, also that of the root device (row 39)", () => {
    expect(reasonOf({ ...least, drives: [drive("rootfs", true), drive("rootfs")] })?.message).toBe(
      "Not possible: drives[1].drive_id is \"rootfs\": give another than drives[0].drive_id"
    )
    expect(fieldsOf({ ...least, networkInterfaces: [nic("n0"), nic("n0")] }))
      .toEqual(["networkInterfaces[1].iface_id", "networkInterfaces[1].host_dev_name"])
    expect(fieldsOf({ ...least, pmem: [{ id: "p", path_on_host: "a" }, { id: "p", path_on_host: "b" }] })).toEqual([
      "pmem[1].id"
    ])
    // A drive and an interface of one name are two devices.
    expect(fieldsOf({ ...least, drives: [drive("a")], networkInterfaces: [nic("a")] })).toEqual([])
  })

  it("a MAC address twice, whatever its case", () => {
    const networkInterfaces = [
      { ...nic("n0"), guest_mac: "02:00:00:00:00:ab" },
      nic("n1"),
      nic("n2"),
      { ...nic("n3"), guest_mac: "02:00:00:00:00:AB" }
    ]
    expect(fieldsOf({ ...least, networkInterfaces })).toEqual(["networkInterfaces[3].guest_mac"])
  })

  it("one root device", () => {
    expect(fieldsOf({ ...least, drives: [drive("a", true), drive("b", true)] })).toEqual(["drives[1].is_root_device"])
    const pmem = [{ id: "p", path_on_host: "f", root_device: true }]
    expect(fieldsOf({ ...least, drives: [drive("a", true)], pmem })).toEqual(["pmem[0].root_device"])
    expect(fieldsOf({ ...least, pmem })).toEqual([])
  })

  it("the metadata service needs its interfaces", () => {
    const mmds = { config: { network_interfaces: ["n0", "n9"] } }
    expect(fieldsOf({ ...least, networkInterfaces: [nic("n0")], mmds })).toEqual(["mmds.config.network_interfaces[1]"])
    expect(stepsOf({ ...full, mmds: { config: { network_interfaces: ["n0"] } } }).at(-1)?.path).toBe("/mmds/config")
  })

  it("the balloon is no larger than the memory, and goes with huge pages from 1.14 on", () => {
    const balloon = { amount_mib: 257, deflate_on_oom: true }
    expect(fieldsOf({ ...least, balloon })).toEqual(["balloon.amount_mib"])
    const huge = {
      ...least,
      machine: { ...machine, huge_pages: "2M" },
      balloon: { ...balloon, amount_mib: 256 }
    } as const
    expect(fieldsOf(huge, target(13))).toEqual(["balloon"])
    expect(fieldsOf(huge, target(14))).toEqual([])
  })

  it("an initrd goes with huge pages from 1.11 on", () => {
    const config = { ...least, bootSource: { kernel_image_path: "k", initrd_path: "i" } }
    const huge = { ...config, machine: { ...machine, huge_pages: "2M" } } as const
    expect(fieldsOf(config, target(10))).toEqual([])
    expect(fieldsOf(huge, target(10))).toEqual(["bootSource.initrd_path"])
    expect(fieldsOf(huge, target(11))).toEqual([])
  })

  it("no more devices than the version has room for", () => {
    const withDrives = (count: number): MachineConfig.MachineConfig => ({
      ...least,
      entropy: {},
      vsock: { guest_cid: 3, uds_path: "v" },
      drives: Array.from({ length: count }, (_, index) => drive(`d${index}`, index === 0))
    })
    for (const to of [target(7), target(14), target(16), target(16, "aarch64"), { ...target(16), pci: true }]) {
      const most = Capabilities.maxDevices(to)
      expect(fieldsOf(withDrives(most - 2), to)).toEqual([])
      expect(fieldsOf(withDrives(most - 1), to)).toEqual(["devices"])
    }
  })

  it("no body over the payload limit of this Firecracker", () => {
    const config = { ...full, mmds: { config: { network_interfaces: ["n0"] }, data: { a: "x".repeat(51_193) } } }
    expect(reasonOf(config)?.message).toContain("mmds.data is \"51201 bytes\": give at most 51200")
    expect(reasonOf(config, { ...target(17), payloadLimit: 51_201 })).toBeUndefined()
  })

  it("faults of form are told by their place, all at once", () => {
    const config: unknown = {
      machine: { vcpu_count: 0, mem_size_mib: 256 },
      bootSource: {},
      drives: [drive("ok"), { ...drive("a/b"), is_root_device: 1 }],
      vsock: { guest_cid: 2, uds_path: "" },
      mmds: { data: { a: 1 } },
      gpu: {}
    }
    const given = (value: unknown): value is MachineConfig.MachineConfig => value !== undefined
    if (!given(config)) throw new Error("no config")
    expect(fieldsOf(config).toSorted()).toEqual([
      "bootSource.kernel_image_path",
      "drives[1].drive_id",
      "drives[1].is_root_device",
      "gpu",
      "machine.vcpu_count",
      "mmds.config",
      "vsock.guest_cid",
      "vsock.uds_path"
    ])
  })

  it.each(hostileIds)("an id %j makes no call", (id) => {
    expect(fieldsOf({ ...least, drives: [{ ...drive("d"), drive_id: id }] })).toEqual(["drives[0].drive_id"])
    expect(fieldsOf({ ...least, networkInterfaces: [{ ...nic("n"), iface_id: id }] })).toEqual([
      "networkInterfaces[0].iface_id"
    ])
    expect(fieldsOf({ ...least, pmem: [{ id, path_on_host: "f" }] })).toEqual(["pmem[0].id"])
  })

  it("all that the version does not know is told at once", () => {
    const config = { ...full, machine: { ...machine, huge_pages: "Transparent" } } as const
    expect(featuresOf(config, target(13))).toEqual([
      "PUT /serial",
      "MachineConfiguration.huge_pages = Transparent",
      "PUT /pmem/{id}",
      "PUT /hotplug/memory"
    ])
    expect(featuresOf(config, target(17))).toEqual([])
  })

  it("what may be left out is: fields and whole calls", () => {
    const config = { ...full, machine: { ...machine, huge_pages: "Transparent" } } as const
    const optional = ["huge_pages", "PUT /serial", "PUT /pmem/{id}", "PUT /hotplug/memory"]
    const calls = stepsOf(config, target(13), { optional })
    expect(calls.find(({ path }) => path === "/machine-config")?.body)
      .toEqual({ ...machine, smt: false, track_dirty_pages: false })
    expect(calls.map(({ path }) => path)).not.toContain("/serial")
    expect(stepsOf(config, target(17), { optional })).toEqual(stepsOf(config))
  })

  it("each version from 1.7 on takes a plain machine", () => {
    const { balloon, drives, entropy, networkInterfaces, vsock } = full
    for (const minor of [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]) {
      expect(stepsOf({ ...least, balloon, drives, entropy, networkInterfaces, vsock }, target(minor))).toHaveLength(10)
    }
  })

  it("a secret stays one", () => {
    const config = { ...full, mmds: { config: { network_interfaces: ["n0"] }, data: Redacted.make("hunter2") } }
    expect(JSON.stringify(stepsOf(config))).not.toContain("hunter2")
  })
})

describe("MachineConfig.apply", () => {
  it.effect("makes the calls in their order, secrets unveiled", () =>
    Effect.gen(function*() {
      const { sent, transport } = scripted()
      const config = { ...full, mmds: { config: { network_interfaces: ["n0"] }, data: Redacted.make("hunter2") } }
      yield* MachineConfig.apply(FirecrackerApi.make(transport, target(17)), config)
      expect(sent.map(({ path }) => path)).toEqual(stepsOf(config).map(({ path }) => path))
      expect(sent.at(-1)?.body).toBe(`"hunter2"`)
    }))

  it.effect("makes none when one is not possible", () =>
    Effect.gen(function*() {
      const { sent, transport } = scripted()
      const error = yield* Effect.flip(MachineConfig.apply(FirecrackerApi.make(transport, target(13)), full))
      expect(error.reason._tag).toBe("UnsupportedByVersion")
      expect(sent).toEqual([])
    }))

  it.effect("stops at the first that is refused", () =>
    Effect.gen(function*() {
      const { sent, transport } = scripted(({ path }) =>
        path === "/boot-source" ? { status: 400, body: `{"fault_message":"Boot source error: x"}` } : { status: 204 }
      )
      const error = yield* Effect.flip(MachineConfig.apply(FirecrackerApi.make(transport, target(17)), full))
      expect(error.reason).toMatchObject({ _tag: "ApiFault", path: "/boot-source", message: "Boot source error: x" })
      expect(sent.at(-1)?.path).toBe("/boot-source")
    }))
})

describe("MachineConfig.mapPaths", () => {
  const jailed = (path: string, use: MachineConfig.PathUse) =>
    use === "vsock" ? "/run/vsock.sock" : use === "kernel" ? "/vmlinux" : `/${path.slice(path.lastIndexOf("/") + 1)}`

  it("a jailed machine names its files as the jail does (row 41), and has a vsock (row 40)", () => {
    const config = MachineConfig.mapPaths({ ...full, drives: [drive("rootfs", true), drive("work")] }, jailed)
    const paths = stepsOf(config).flatMap(({ body }) =>
      ["kernel_image_path", "path_on_host", "uds_path", "log_path", "metrics_path", "serial_out_path"].flatMap(
        (key) => {
          const path: unknown = typeof body === "object" && body !== null ? Reflect.get(body, key) : undefined
          return path === undefined ? [] : [path]
        }
      )
    )
    expect(paths).toEqual([
      "/log",
      "/metrics",
      "/serial",
      "/vmlinux",
      "/rootfs.ext4",
      "/work.ext4",
      "/run/vsock.sock",
      "/p0"
    ])
  })

  it("tells what each path is for, and changes nothing else", () => {
    const config: MachineConfig.MachineConfig = {
      ...full,
      bootSource: { kernel_image_path: "k", initrd_path: "i" },
      drives: [drive("a"), drive("b", true), { drive_id: "c", is_root_device: false, socket: "s" }],
      pmem: [{ id: "p", path_on_host: "p" }, { id: "q", path_on_host: "q", read_only: true }]
    }
    const seen: Array<string> = []
    const same = MachineConfig.mapPaths(config, (path, use) => {
      seen.push(`${use} ${path}`)
      return path
    })
    expect(same).toEqual(config)
    expect(seen).toEqual([
      "kernel k",
      "initrd i",
      "drive /x/a.ext4",
      "read-only drive /x/b.ext4",
      "drive socket s",
      "pmem p",
      "read-only pmem q",
      "vsock vsock.sock",
      "log log",
      "metrics metrics",
      "serial /x/serial"
    ])
    expect(MachineConfig.mapPaths({ ...least, logger: {}, serial: {} }, () => "x"))
      .toEqual({ ...least, bootSource: { kernel_image_path: "x" }, logger: {}, serial: {} })
  })
})
