import { describe, expect, it } from "@effect/vitest"
import { MachineSpec, MicroVmError } from "effect-microvm-runtime/microvm"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as NodeNet from "node:net"

const least = { id: "web-1", kernel: "/boot/vmlinux" }

const faults = (input: unknown) =>
  MachineSpec.decode(input).pipe(
    Effect.as([]),
    Effect.catchReason("MicroVmError", "InvalidSpec", (reason) => Effect.succeed(reason.faults))
  )

describe("MachineSpec", () => {
  it.effect("fills in what has a default", () =>
    Effect.gen(function*() {
      expect(yield* MachineSpec.decode(least)).toEqual({
        ...least,
        vcpus: 1,
        memoryMib: 256,
        kernelArgs: [],
        networks: [],
        drives: [],
        channels: []
      })
    }))

  it.effect("names each fault with its field, its value and the remedy", () =>
    Effect.gen(function*() {
      const found = yield* faults({
        id: "-",
        vcpus: 0,
        memoryMib: 1.5,
        kernel: "vmlinux",
        initramfs: 7,
        kernelArgs: ["quiet", "a b", ""],
        channels: ["a", "b/c"],
        hostname: "-",
        memory: 1
      })
      expect(found.map(({ field, value }) => [field, value])).toEqual(expect.arrayContaining([
        ["id", "-"],
        ["vcpus", 0],
        ["memoryMib", 1.5],
        ["kernel", "vmlinux"],
        ["initramfs", 7],
        ["kernelArgs[1]", "a b"],
        ["kernelArgs[2]", ""],
        ["channels[1]", "b/c"],
        ["hostname", "-"],
        ["memory", 1]
      ]))
      expect(found.length).toBe(10)
      for (const { remedy } of found) expect(remedy).toMatch(/^(give|leave)/)
    }))

  it.effect("tells of a hundred thousand faults, and of a name without end, in a short message", () =>
    Effect.gen(function*() {
      // To compare each with each other took longer than a test may.
      const channels = Array.from({ length: 100_000 }, () => "")
      const { faults: found, message } = yield* Effect.flip(
        MachineSpec.decode({ ...least, channels, ["x".repeat(1_000_000)]: 1 })
      ).pipe(
        Effect.flatMap(({ reason }) => reason._tag === "InvalidSpec" ? Effect.succeed(reason) : Effect.die(reason))
      )
      expect(found.length).toBe(100_001)
      expect(message).toMatch(/; and 99969 more$/)
      expect(message.length).toBeLessThan(10_000)
    }))

  it.effect.each<[unknown, string]>([
    [undefined, "spec"],
    [null, "spec"],
    ["web-1", "spec"],
    [{ kernel: "/k" }, "id"],
    [{ id: "a" }, "kernel"],
    [{ ...least, vcpus: "2" }, "vcpus"],
    [{ ...least, vcpus: 33 }, "vcpus"],
    [{ ...least, vcpus: Number.NaN }, "vcpus"],
    [{ ...least, memoryMib: 95 }, "memoryMib"],
    [{ ...least, memoryMib: 2 ** 20 + 1 }, "memoryMib"],
    [{ ...least, id: "a_b" }, "id"],
    [{ ...least, id: "a\n" }, "id"],
    [{ ...least, id: "ü" }, "id"],
    [{ ...least, id: "x".repeat(65) }, "id"],
    [{ ...least, kernel: "/a\0b" }, "kernel"],
    [{ ...least, kernelArgs: ["a\u00a0b"] }, "kernelArgs[0]"],
    [{ ...least, kernelArgs: ["a\nb"] }, "kernelArgs[0]"],
    [{ ...least, kernelArgs: "quiet" }, "kernelArgs"],
    [{ ...least, channels: ["a", "b", "a"] }, "channels"],
    [{ ...least, channels: ["x".repeat(65)] }, "channels[0]"],
    [{ ...least, hostname: "x".repeat(65) }, "hostname"],
    [{ ...least, hostname: "a..b" }, "hostname"],
    [{ ...least, initramfs: undefined }, "initramfs"]
  ])("refuses %j", ([input, field]) =>
    Effect.gen(function*() {
      expect((yield* faults(input)).map((fault) => fault.field)).toEqual([field])
    }))

  it.effect.each<unknown>([
    least,
    { ...least, id: "x".repeat(64), vcpus: 32, memoryMib: 2 ** 20 },
    { ...least, id: "0", vcpus: 1, memoryMib: 96 },
    { ...least, kernelArgs: ["console=ttyS0", "root=/dev/vda,rw", "\"quoted\""] },
    { ...least, channels: ["org.qemu.guest_agent.0", "a"], hostname: "web-1.example.org", initramfs: "/boot/ü i" }
  ])("accepts %j", (input) =>
    Effect.gen(function*() {
      expect(yield* MachineSpec.decode(input)).toMatchObject(Object(input))
    }))

  it.effect.prop(
    "an accepted spec is a fixed point",
    { spec: MachineSpec.MachineSpec },
    ({ spec }) =>
      Effect.gen(function*() {
        const encoded = yield* Schema.encodeEffect(MachineSpec.MachineSpec)(spec)
        expect(yield* MachineSpec.decode(encoded)).toEqual(spec)
      })
  )

  it.effect.prop(
    "input of any kind is a spec or a list of faults",
    { input: Schema.Json },
    ({ input }) =>
      Effect.gen(function*() {
        const result = yield* Effect.result(MachineSpec.decode(input))
        if (Result.isSuccess(result)) return
        expect(result.failure).toBeInstanceOf(MicroVmError.MicroVmError)
        expect(result.failure.message.length).toBeGreaterThan(0)
      })
  )

  const card = (addresses: unknown) => ({
    ...least,
    networks: [{ mac: "02:00:00:00:00:01", ...Object(addresses) }]
  })

  it.effect.each<[string, unknown]>([
    ...["1:2", ":", ":::", "1::2::3", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1:2:3:4::5:6:7:8", "12345::", ":1", "1:"]
      .map(
        (gateway6): [string, unknown] => ["gateway6", gateway6]
      ),
    ["gateway6", "FD00::1"],
    ["gateway6", "::ffff:1.2.3.4"],
    ["gateway6", "fe80::1%eth0"],
    ["gateway6", "fd00::1\n"],
    ["address6", "1:2/64"],
    ["address6", "fd00::1"],
    ["address6", "fd00::1/129"],
    ["address6", "fd00::1/064"],
    ["nameserver", "1:2"],
    ["nameserver", "1.2.3"],
    ["gateway", "10.0.0.01"],
    ["gateway", "10.0.0.256"],
    ["address", "10.0.0.1/33"]
  ])("refuses a card whose %s is %j", ([field, value]) =>
    Effect.gen(function*() {
      expect((yield* faults(card({ [field]: value }))).map((fault) => fault.field)).toEqual([`networks[0].${field}`])
    }))

  it.effect.each<Record<string, string>>([
    { address6: "::/0", gateway6: "::", nameserver: "::1" },
    { address6: "fd00::1/128", gateway6: "1:2:3:4:5:6:7:8", nameserver: "1:2:3:4:5:6:7::" },
    { gateway6: "::2:3:4:5:6:7:8", nameserver: "2001:db8:0:0:1::1" },
    { address: "0.0.0.0/0", gateway: "255.255.255.255", nameserver: "10.0.0.199" }
  ])("accepts a card with %j", (addresses) =>
    Effect.gen(function*() {
      expect((yield* MachineSpec.decode(card(addresses))).networks).toMatchObject([addresses])
    }))

  it.effect.prop(
    "what is IPv6 here is IPv6 to others",
    {
      near: Schema.Array(Schema.Literals(["0", "1", "ab", "ffff", "10000", ":", "::", "g"])).check(
        Schema.isMaxLength(17)
      ),
      network: MachineSpec.Network
    },
    ({ near, network: { gateway6 = "::" } }) =>
      Effect.gen(function*() {
        expect(NodeNet.isIPv6(gateway6)).toBe(true)
        const text = near.join("")
        const found = yield* faults(card({ gateway6: text }))
        expect(found.length === 0).toBe(NodeNet.isIPv6(text))
      })
  )

  it.effect("an id alone is checked by the same rule", () =>
    Effect.gen(function*() {
      yield* MachineSpec.checkId("web-1")
      const error = yield* Effect.flip(MachineSpec.checkId("../web"))
      expect(error.message).toBe(
        "Not possible: id is \"../web\": give 1 to 64 letters, digits and \"-\", the first no \"-\""
      )
    }))
})
