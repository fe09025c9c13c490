import { describe, expect, it } from "@effect/vitest"
import { Capabilities, FirecrackerSchema, type FirecrackerVersion } from "effect-microvm-runtime/firecracker"
import * as Result from "effect/Result"
import { bodies, hostileIds, target } from "./bodies.ts"

const minors = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]
const endpoints = Object.entries<Capabilities.Endpoint>(Capabilities.endpoints)

const pathOf = ({ id, path }: Capabilities.Endpoint, body: unknown): string =>
  path.replace(
    "{id}",
    id !== undefined && typeof body === "object" && body !== null ? String(Reflect.get(body, id)) : "x"
  )

/** What `check` says: the body, or the features that lack. */
const checkOf = (to: Capabilities.Target, call: Capabilities.Call, optional?: ReadonlyArray<string>) =>
  Result.match(Capabilities.check(to, call, { optional }), {
    onFailure: (reason) =>
      reason.features.map(({ feature, since }) => since === undefined ? feature : `${feature} ${since}`),
    onSuccess: (body) => body
  })

const load = (body: object): Capabilities.Call => ({ method: "PUT", path: "/snapshot/load", body })

describe("Capabilities.endpoints", () => {
  it("each method and path is there once, and finds itself", () => {
    const keys = endpoints.map(([, { method, path }]) => `${method} ${path}`)
    expect(new Set(keys).size).toBe(keys.length)
    for (const [, endpoint] of endpoints) {
      expect(Capabilities.find(endpoint.method, endpoint.path.replace("{id}", "a_1"))).toEqual(endpoint)
    }
  })

  it("every body has a schema, and every schema an endpoint", () => {
    const used = endpoints.flatMap(([, { body }]) => body === undefined ? [] : [body])
    expect([...new Set<string>(used)].toSorted()).toEqual(Object.keys(FirecrackerSchema.requests).toSorted())
  })

  it("an id in a path has no other characters than an id", () => {
    for (const id of hostileIds) expect(Capabilities.find("DELETE", `/drives/${id}`)).toBeUndefined()
    expect(Capabilities.find("DELETE", "/drives/{id}/")).toBeUndefined()
  })

  const late: Readonly<Record<string, number>> = {
    putSerial: 14,
    putPmem: 14,
    startBalloonHinting: 14,
    getBalloonHinting: 14,
    stopBalloonHinting: 14,
    putMemoryHotplug: 14,
    patchMemoryHotplug: 14,
    getMemoryHotplug: 14,
    patchPmem: 16,
    deleteDrive: 16,
    deletePmem: 16,
    deleteNetworkInterface: 16
  }

  it.each(minors)(
    "1.%i is not offered what came later",
    (minor) => {
      for (const [name, endpoint] of endpoints) {
        const body = endpoint.body === undefined ? undefined : bodies[endpoint.body].least
        const call = { method: endpoint.method, path: pathOf(endpoint, body), body }
        const since = late[name] ?? 7
        expect([name, Result.isSuccess(Capabilities.check(target(minor), call))]).toEqual([name, since <= minor])
      }
    }
  )

  it("what lacks is told with its release", () => {
    expect(checkOf(target(13), { method: "PUT", path: "/serial", body: {} })).toEqual(["PUT /serial 1.14.0"])
    expect(checkOf(target(15), { method: "DELETE", path: "/drives/d" })).toEqual(["DELETE /drives/{id} 1.16.0"])
    expect(checkOf(target(17), { method: "PUT", path: "/drives/a b", body: {} })).toEqual(["PUT /drives/a b"])
  })
})

describe("Capabilities.features", () => {
  // [body, field, value, first minor]: what the request types of the tags have.
  const windows: ReadonlyArray<readonly [FirecrackerSchema.RequestName, string, unknown, number]> = [
    ["MachineConfiguration", "huge_pages", "2M", 7],
    ["MachineConfiguration", "huge_pages", "Transparent", 17],
    ["MachineConfigurationUpdate", "huge_pages", "Transparent", 17],
    ["Pmem", "rate_limiter", {}, 16],
    ["NetworkInterface", "mtu", 1500, 16],
    ["SerialDevice", "rate_limiter", { size: 1, refill_time: 1 }, 16],
    ["Balloon", "free_page_hinting", true, 14],
    ["Balloon", "free_page_reporting", true, 14],
    ["MmdsConfig", "imds_compat", true, 13],
    ["Metrics", "emit_id", true, 17],
    ["Metrics", "properties", {}, 17],
    ["SnapshotLoadParams", "network_overrides", [], 12],
    ["SnapshotLoadParams", "vsock_override", { uds_path: "v" }, 16],
    ["SnapshotLoadParams", "clock_realtime", true, 16],
    ["SnapshotLoadParams", "huge_pages", "None", 17]
  ]

  it.each([[14, 3, false], [14, 4, true], [15, 0, false], [15, 1, true], [15, 2, true], [16, 0, true]])(
    "1.%i.%i has what was brought back to it: %s",
    (minor, patch, isThere) => {
      const body = { snapshot_path: "s", mem_file_path: "m", clock_realtime: true }
      const on = { ...target(minor), version: { major: 1, minor, patch } }
      const checked = Capabilities.check(on, { method: "PUT", path: "/snapshot/load", body })
      expect(Result.isSuccess(checked)).toBe(isThere)
    }
  )

  const endpointOf = (name: FirecrackerSchema.RequestName) => {
    const found = endpoints.find(([, { body }]) => body === name)
    if (found === undefined) throw new Error(name)
    return found[1]
  }

  it.each(windows)("%s.%s = %j is sent from 1.%i on", (name, field, value, first) => {
    const endpoint = endpointOf(name)
    const body = { ...bodies[name].least, [field]: value }
    const call = { method: endpoint.method, path: pathOf(endpoint, body), body }
    const served = minors.filter((minor) => minor >= (endpoint.since?.minor ?? 0))
    for (const minor of served.filter((one) => one >= first)) expect(checkOf(target(minor), call)).toEqual(body)
    for (const minor of served.filter((one) => one < first)) {
      const said = checkOf(target(minor), call)
      expect(said).toEqual([expect.stringMatching(new RegExp(`^${name}\\.${field}.* 1\\.${first}\\.0$`))])
      // Marked optional, it is left out, and nothing else is.
      expect(checkOf(target(minor), call, [field])).toEqual(bodies[name].least)
      expect(checkOf(target(minor), call, [`${name}.${field}`])).toEqual(bodies[name].least)
      expect(checkOf(target(minor), call, [`Other.${field}`])).toEqual(said)
    }
  })

  it("the windows of this test are all that the table has", () => {
    const gated = Capabilities.features.filter(({ formerly, since }) => since !== undefined && formerly === undefined)
    const keys = (
      rows: ReadonlyArray<readonly [string, string, FirecrackerVersion.FirecrackerVersion | number | undefined]>
    ) =>
      [...new Set(rows.map(([body, field, at]) => `${body}.${field} ${typeof at === "number" ? at : at?.minor}`))]
        .toSorted()
    expect(
      keys([...windows.map(([body, field, , at]) => [body, field, at] as const), [
        "MachineConfigurationUpdate",
        "huge_pages",
        7
      ]])
    )
      .toEqual(keys(gated.map(({ body, field, since }) => [body, field, since])))
  })

  it("a value that asks for nothing is left out where it is not known", () => {
    const none = { clock_realtime: false, huge_pages: "Snapshot", track_dirty_pages: false }
    expect(checkOf(target(16), load(none))).toEqual({ clock_realtime: false, track_dirty_pages: false })
    expect(checkOf(target(17), load(none))).toEqual(none)
    const balloon = { free_page_hinting: false, free_page_reporting: false }
    expect(checkOf(target(13), { method: "PUT", path: "/balloon", body: balloon })).toEqual({})
  })

  it("a field takes its older name", () => {
    expect(checkOf(target(12), load({ track_dirty_pages: true }))).toEqual({ enable_diff_snapshots: true })
    expect(checkOf(target(13), load({ track_dirty_pages: true }))).toEqual({ track_dirty_pages: true })
    expect(checkOf(target(17), load({ enable_diff_snapshots: true }))).toEqual({ enable_diff_snapshots: true })
  })

  it("everything that lacks is told at once", () => {
    const body = { clock_realtime: true, vsock_override: { uds_path: "v" }, network_overrides: [], huge_pages: "None" }
    expect(checkOf(target(11), load(body))).toEqual([
      "SnapshotLoadParams.network_overrides 1.12.0",
      "SnapshotLoadParams.vsock_override 1.16.0",
      "SnapshotLoadParams.clock_realtime 1.16.0",
      "SnapshotLoadParams.huge_pages 1.17.0"
    ])
  })

  it("what only one architecture has", () => {
    const on = (architecture: Capabilities.Architecture, call: Capabilities.Call) =>
      checkOf(target(17, architecture), call)
    const action = (action_type: string) => ({ method: "PUT", path: "/actions", body: { action_type } } as const)
    const machine = (body: object) => ({ method: "PUT", path: "/machine-config", body } as const)
    const cpu = (body: object) => ({ method: "PUT", path: "/cpu-config", body } as const)
    expect(on("aarch64", action("SendCtrlAltDel"))).toEqual([
      "InstanceActionInfo.action_type = SendCtrlAltDel (x86_64 only)"
    ])
    expect(on("x86_64", action("SendCtrlAltDel"))).toEqual({ action_type: "SendCtrlAltDel" })
    expect(on("aarch64", action("FlushMetrics"))).toEqual({ action_type: "FlushMetrics" })
    expect(on("aarch64", machine({ smt: true }))).toEqual(["MachineConfiguration.smt = true (x86_64 only)"])
    expect(on("aarch64", machine({ smt: false }))).toEqual({ smt: false })
    expect(on("x86_64", machine({ cpu_template: "V1N1" }))).toHaveLength(1)
    expect(on("aarch64", machine({ cpu_template: "T2CL" }))).toHaveLength(1)
    expect(on("aarch64", cpu({ cpuid_modifiers: [], msr_modifiers: [] }))).toHaveLength(2)
    expect(on("x86_64", cpu({ reg_modifiers: [], vcpu_features: [] }))).toHaveLength(2)
    expect(on("aarch64", load({ clock_realtime: true }))).toHaveLength(1)
    expect(on("aarch64", load({ clock_realtime: false }))).toEqual({ clock_realtime: false })
  })

  it("a newer release is taken for the newest", () => {
    const future: Capabilities.Target = { version: { major: 2, minor: 0, patch: 0 }, architecture: "x86_64" }
    const body = { metrics_path: "m", emit_id: true }
    expect(checkOf(future, { method: "PUT", path: "/metrics", body })).toEqual(body)
  })

  it("what is given stays as it was", () => {
    const body = Object.freeze({ track_dirty_pages: true, clock_realtime: false })
    checkOf(target(12), load(body))
    expect(body).toEqual({ track_dirty_pages: true, clock_realtime: false })
  })

  it("is data", () => {
    for (const table of [Capabilities.endpoints, Capabilities.features, Capabilities.knownBad]) {
      expect(JSON.parse(JSON.stringify(table))).toEqual(table)
    }
  })
})

describe("Capabilities.warnings", () => {
  const at = (minor: number, patch = 0, architecture: Capabilities.Architecture = "x86_64") =>
    Capabilities.warnings({ version: { major: 1, minor, patch }, architecture }).join("\n")

  it("knows what each release gets wrong", () => {
    expect(at(16, 0)).toContain("5958")
    expect(at(16, 1)).not.toContain("5958")
    expect(at(16, 1)).toContain("6100")
    expect(at(17)).not.toContain("6100")
    expect(at(14)).toContain("5705")
    expect(at(15)).not.toContain("5705")
    expect(at(9)).toContain("4796")
  })

  it("knows the fixes that were brought back to older releases", () => {
    for (const [minor, patch] of [[14, 4], [15, 1]] as const) {
      for (const fault of ["5793", "5809", "CVE-2026-5747", "5762", "5794"]) {
        expect(at(minor, patch - 1)).toContain(fault)
        expect(at(minor, patch)).not.toContain(fault)
        expect(at(minor, patch + 1)).not.toContain(fault)
      }
      expect(at(minor, patch)).toContain("5764")
    }
    expect(at(13, 9)).toContain("5809")
    expect(at(12)).not.toContain("CVE-2026-5747")
    for (const [minor, patch] of [[13, 2], [14, 1]] as const) {
      expect(at(minor, patch - 1)).toContain("CVE-2026-1386")
      expect(at(minor, patch)).not.toContain("CVE-2026-1386")
    }
    expect(at(14, 2)).toContain("5739")
    expect(at(14, 3)).not.toContain("5739")
    expect(at(16)).not.toContain("5809")
  })

  it("has nothing to say of a release where all is well", () => {
    expect(at(17)).toBe("")
    expect(at(17, 0, "aarch64")).toBe("")
  })

  it("leaves out what concerns nobody who does not use it", () => {
    const of = (minor: number, patch: number, uses: ReadonlyArray<Capabilities.Use>) =>
      Capabilities.warnings({ version: { major: 1, minor, patch }, architecture: "aarch64" }, uses).join("\n")
    expect(of(16, 0, [])).toBe("")
    expect(of(16, 0, ["vsock"])).toMatch(/^in 1\.16 .*\(6100\)$/)
    expect(of(16, 0, ["restore"])).toBe("")
    expect(of(16, 0, ["restore", "vsock"])).toContain("5958")
    expect(of(16, 0, ["jail"])).toMatch(/\(5959\)$/)
    expect(of(14, 0, ["hotplug"])).toContain("5793")
    expect(of(9, 0, ["pages"])).toMatch(/^before 1\.12 .*page server.*\n.*\(5799\)$/)
  })

  it("tells of releases that are not known", () => {
    expect(at(6)).toContain("1.6.0 is older than 1.7.0")
    expect(at(18)).toContain("1.18.0 is newer")
    for (const minor of minors) expect(at(minor)).not.toMatch(/is (older|newer) than/)
  })
})

describe("Capabilities.maxDevices", () => {
  it.each(
    [["x86_64", 7, 19], ["x86_64", 8, 18], ["x86_64", 14, 18], ["x86_64", 15, 17], ["aarch64", 14, 96], [
      "aarch64",
      15,
      92
    ]] as const
  )(
    "%s 1.%i: %i",
    (architecture, minor, most) => {
      expect(Capabilities.maxDevices(target(minor, architecture))).toBe(most)
      expect(Capabilities.maxDevices({ ...target(minor, architecture), pci: true })).toBe(31)
    }
  )
})
