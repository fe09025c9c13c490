import { describe, expect, it } from "@effect/vitest"
import { FirecrackerSchema } from "effect-microvm-runtime/firecracker"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { checked } from "../../src/firecracker/internal/checked.ts"
import { bodies } from "./bodies.ts"

const faultsOf = (name: FirecrackerSchema.RequestName, body: unknown) =>
  Result.match(checked<unknown>(FirecrackerSchema.requests[name], "body")(body), {
    onFailure: (faults) => faults,
    onSuccess: () => []
  })

const fieldsOf = (name: FirecrackerSchema.RequestName, body: unknown) => faultsOf(name, body).map(({ field }) => field)

const without = (body: object, key: string) => Object.fromEntries(Object.entries(body).filter(([name]) => name !== key))

const names = Object.keys(FirecrackerSchema.requests).filter((name): name is FirecrackerSchema.RequestName =>
  Object.hasOwn(bodies, name)
)

describe("FirecrackerSchema: what is sent", () => {
  it("the table of this test has every body", () => {
    expect(names.toSorted()).toEqual(Object.keys(FirecrackerSchema.requests).toSorted())
  })

  it.each(names)("%s: the least and the full body are taken as they are", (name) => {
    const { full, least } = bodies[name]
    for (const body of [least, full]) {
      expect(Result.getOrThrow(checked<unknown>(FirecrackerSchema.requests[name], "body")(body))).toEqual(body)
    }
  })

  it.each(names)("%s: nothing that is needed can be left out", (name) => {
    const { least } = bodies[name]
    for (const key of Object.keys(least)) {
      // The one field of a change could as well be another one.
      expect(fieldsOf(name, without(least, key))).toEqual([name === "MachineConfigurationUpdate" ? "body" : key])
    }
  })

  it.each(names.filter((name) => name !== "MmdsData"))(
    "%s: each field out of range or of another type is told",
    (name) => {
      const { full, least, wrong } = bodies[name]
      expect(Object.keys(wrong)).toEqual(expect.arrayContaining(Object.keys(full)))
      for (const [key, values] of Object.entries(wrong)) {
        for (const value of [...values, null, { nested: {} }, Symbol("x")]) {
          const fields = fieldsOf(name, { ...least, [key]: value })
          expect([key, value, fields.some((field) => field.startsWith(key))]).toEqual([key, value, true])
        }
      }
    }
  )

  it.each(names.filter((name) => name !== "MmdsData"))(
    "%s: a key that does not exist is told with those that do",
    (name) => {
      const [fault, ...others] = faultsOf(name, { ...bodies[name].least, colour: "red" })
      expect([fault?.field, fault?.value, others]).toEqual(["colour", "red", []])
      expect(fault?.remedy).toContain("leave it out; there are ")
      expect(fieldsOf(name, JSON.parse(`{"__proto__": 1}`))).toContain("__proto__")
    }
  )

  it.each(names.filter((name) => name !== "MmdsData"))("%s: what is no object at all is told", (name) => {
    for (const body of [undefined, null, 1, "text", [], () => 1]) expect(fieldsOf(name, body).length).toBeGreaterThan(0)
  })

  it("an undefined field is one that is left out", () => {
    expect(fieldsOf("Logger", { log_path: undefined, level: undefined })).toEqual([])
  })

  it("with SMT there are 1 or an even number of CPUs", () => {
    const machine = { vcpu_count: 3, mem_size_mib: 128 }
    expect(fieldsOf("MachineConfiguration", machine)).toEqual([])
    expect(fieldsOf("MachineConfiguration", { ...machine, smt: true })).toEqual(["vcpu_count"])
    expect(fieldsOf("MachineConfigurationUpdate", { vcpu_count: 3, smt: true })).toEqual(["vcpu_count"])
    expect(fieldsOf("MachineConfigurationUpdate", { smt: true })).toEqual([])
    for (const vcpu_count of [1, 2, 32]) {
      expect(fieldsOf("MachineConfiguration", { ...machine, vcpu_count, smt: true })).toEqual([])
    }
  })

  it.each(["2M", "Transparent"])("with huge pages %s the memory is even", (huge_pages) => {
    expect(fieldsOf("MachineConfiguration", { vcpu_count: 1, mem_size_mib: 129, huge_pages })).toEqual(["mem_size_mib"])
    expect(fieldsOf("MachineConfiguration", { vcpu_count: 1, mem_size_mib: 130, huge_pages })).toEqual([])
  })

  it("a change of the machine changes something", () => {
    expect(fieldsOf("MachineConfigurationUpdate", {})).toEqual(["body"])
    expect(fieldsOf("MachineConfigurationUpdate", { smt: undefined })).toEqual(["body"])
  })

  it("a drive is a file or a socket, and never both", () => {
    const drive = { drive_id: "d", is_root_device: false }
    expect(fieldsOf("Drive", drive)).toEqual(["path_on_host"])
    expect(fieldsOf("Drive", { ...drive, socket: "s" })).toEqual([])
    expect(fieldsOf("Drive", { ...drive, socket: "s", path_on_host: "f", is_read_only: true, io_engine: "Sync" }))
      .toEqual(["path_on_host", "is_read_only", "io_engine"])
  })

  it("a snapshot has one source of memory, a socket for Uffd, and 2M pages only from it", () => {
    const at = (backend_type: string, backend_path = "m") => ({ backend_type, backend_path })
    const load = (more: object) => fieldsOf("SnapshotLoadParams", { snapshot_path: "s", ...more })
    expect(load({})).toEqual(["mem_backend"])
    expect(load({ mem_file_path: "m" })).toEqual([])
    expect(load({ mem_file_path: "m", mem_backend: at("File") })).toEqual(["mem_backend"])
    expect(load({ mem_backend: at("File"), huge_pages: "2M" })).toEqual(["huge_pages"])
    expect(load({ mem_backend: at("File", "x".repeat(200)) })).toEqual([])
    expect(load({ mem_backend: at("Uffd", "x".repeat(200)) })).toEqual(["mem_backend.backend_path"])
  })

  it("sizes of memory hotplug are multiples of each other", () => {
    const sizes = (total_size_mib: number, slot_size_mib?: number, block_size_mib?: number) =>
      fieldsOf("MemoryHotplugConfig", { total_size_mib, slot_size_mib, block_size_mib })
    expect(sizes(256)).toEqual([])
    expect(sizes(200)).toEqual(["total_size_mib"])
    expect(sizes(128, 256)).toEqual(["total_size_mib"])
    expect(sizes(600, 200, 16)).toEqual(["slot_size_mib"])
    expect(sizes(512, 256, 512)).toEqual(["slot_size_mib"])
    expect(sizes(300, 300, 12)).toEqual(["block_size_mib"])
  })

  it("metadata is any JSON, also behind a veil, which no fault lifts", () => {
    for (const data of [null, 1, "a", [], { a: { b: [1] } }]) {
      expect(fieldsOf("MmdsData", data)).toEqual([])
      expect(fieldsOf("MmdsData", Redacted.make(data))).toEqual([])
    }
    for (const data of [undefined, Number.NaN, 1n, () => 1, { a: new Map() }]) {
      expect(fieldsOf("MmdsData", data)).toEqual(["body"])
    }
    const [fault] = faultsOf("MmdsData", Redacted.make({ token: "hunter2", broken: () => 1 }))
    expect(String(fault?.value)).toBe("<redacted>")
    expect(JSON.stringify(fault)).not.toContain("hunter2")
  })

  it.prop("whatever comes is a body or a list of faults with fields and remedies", [Schema.Json], ([input]) => {
    for (const name of names) {
      for (const { field, remedy } of faultsOf(name, input)) {
        expect(field.length).toBeGreaterThan(0)
        expect(remedy).toMatch(/^(give|leave) /)
      }
    }
  })

  it.prop(
    "an id is a body's id exactly when it is letters, digits and underscores",
    [Schema.String],
    ([id]) => {
      const good = /^[A-Za-z0-9_]+$/.test(id) && !id.includes("\n")
      expect(fieldsOf("PartialDrive", { drive_id: id })).toEqual(good ? [] : ["drive_id"])
    }
  )
})

describe("FirecrackerSchema: rate limits (rows 35 to 37 of the conformance table)", () => {
  it("a bucket has a burst of its own size, unless it is told", () => {
    const size = 1_048_576
    expect(FirecrackerSchema.tokenBucket({ size, every: "1 second" }))
      .toEqual({ size, refill_time: 1000, one_time_burst: size })
    expect(FirecrackerSchema.tokenBucket({ size, every: 1000, burst: 2_097_152 }).one_time_burst).toBe(2_097_152)
    // Not 0, which would be no limit at all.
    expect(FirecrackerSchema.tokenBucket({ size, every: "400 micros" }).refill_time).toBe(1)
  })

  it("a limiter has the buckets it is given: both, one, none", () => {
    const ops = FirecrackerSchema.tokenBucket({ size: 100, every: "1 second" })
    for (const limiter of [{ bandwidth: ops, ops }, { ops }, {}]) {
      expect(Schema.decodeSync(FirecrackerSchema.RateLimiter)(limiter)).toEqual(limiter)
    }
  })
})

describe("FirecrackerSchema: what is answered", () => {
  it("other keys, missing ones and nulls are no fault", () => {
    const config = Schema.decodeUnknownSync(FirecrackerSchema.FullVmConfiguration)({
      "machine-config": { vcpu_count: 1, mem_size_mib: 128, cpu_template: null, gdb_socket_path: "x" },
      drives: [{ drive_id: "d", is_root_device: true, socket: null, rate_limiter: { ops: null } }],
      balloon: null,
      vsock: { guest_cid: 3, uds_path: "v", vsock_id: null },
      "of-tomorrow": { a: 1 }
    })
    expect(config["machine-config"]?.mem_size_mib).toBe(128)
    expect(config.drives?.[0]?.["rate_limiter"]).toEqual({ ops: null })
    expect(config["of-tomorrow"]).toEqual({ a: 1 })
  })
})
