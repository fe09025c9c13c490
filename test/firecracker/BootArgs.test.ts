import { assert, describe, it } from "@effect/vitest"
import { BootArgs } from "effect-microvm-runtime/firecracker"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"

const make = (options: Partial<BootArgs.Options> = {}) =>
  Result.getOrThrow(BootArgs.make({ architecture: "x86_64", ...options }))

const faults = (options: Partial<BootArgs.Options>) =>
  Result.match(BootArgs.make({ architecture: "x86_64", ...options }), {
    onFailure: ({ reason }) => reason._tag === "InvalidRequest" ? reason.faults : [],
    onSuccess: () => []
  })

const fields = (options: Partial<BootArgs.Options>) =>
  faults(options).map(({ field, value }) => `${field} ${String(value)}`)

describe("the defaults", () => {
  it("give a console, and a machine that ends when its guest restarts, panics, or hears Ctrl-Alt-Del", () => {
    const args = make()
    assert.strictEqual(
      args.text,
      "console=ttyS0 reboot=k i8042.noaux i8042.nomux i8042.dumbkbd panic=1 quiet swiotlb=noforce"
    )
    assert.deepInclude(args, { console: true, noCtrlAltDel: [], warnings: [], restartIsOff: false })
  })

  it("have nothing of a keyboard on aarch64", () => {
    const args = make({ architecture: "aarch64" })
    assert.notMatch(args.text, /i8042|reboot/)
    assert.deepInclude(args, { console: true, noCtrlAltDel: ["aarch64 has no keyboard"], warnings: [] })
  })

  it("give way to what is given", () => {
    assert.match(make({ args: ["panic=-1", "debug"] }).text, /^(?!.*panic=1).* panic=-1 debug$/)
    assert.match(make({ hostname: "web-1" }).text, / hostname=web-1 microvm\.hostname=web-1$/)
    assert.match(make({ root: "/dev/vdb1", panic: -1 }).text, / panic=-1 .* root=\/dev\/vdb1$/)
    assert.notMatch(make({ verbose: true }).text, /quiet/)
  })

  it("are without a console where none is wanted, with a warning", () => {
    const args = make({ console: false })
    assert.match(args.text, /^8250\.nr_uarts=0 /)
    assert.deepInclude(args, {
      console: false,
      warnings: ["without console=ttyS0, why a kernel gives up is not seen"]
    })
  })
})

describe("facts", () => {
  const x86 = (text: string) => BootArgs.facts(text, "x86_64")

  it("tell what keeps Ctrl-Alt-Del from working", () => {
    assert.lengthOf(x86("reboot=k").noCtrlAltDel, 0)
    assert.lengthOf(x86("reboot=k i8042.nokbd").noCtrlAltDel, 1)
    assert.lengthOf(x86("reboot=k i8042.nopnp=1").noCtrlAltDel, 1)
    assert.lengthOf(x86("reboot=t i8042.nokbd i8042.nopnp").noCtrlAltDel, 3)
    // What Firecracker uses when nothing is given, 1.12 and later: it boots in silence.
    const ours = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce"
    assert.deepInclude(x86(ours), { noCtrlAltDel: [], console: false })
  })

  it("read reboot= as the kernel does: the last type counts, modes do not", () => {
    assert.lengthOf(x86("reboot=t reboot=k").noCtrlAltDel, 0)
    assert.lengthOf(x86("reboot=warm,kbd").noCtrlAltDel, 0)
    assert.lengthOf(x86("reboot=panic_warm reboot=k,panic_cold").noCtrlAltDel, 0)
    assert.lengthOf(x86("reboot=k,t").noCtrlAltDel, 1)
    assert.lengthOf(x86("reboot=warm").noCtrlAltDel, 1)
  })

  it("look only at what is for the kernel", () => {
    assert.lengthOf(x86("reboot=k -- i8042.nokbd reboot=t").noCtrlAltDel, 0)
    assert.lengthOf(x86("reboot=k note=\"a i8042.nokbd b\"").noCtrlAltDel, 0)
    assert.isTrue(x86("console=ttyS0,115200n8").console)
    assert.isFalse(x86("console=ttyS0 8250.nr_uarts=0").console)
    assert.isFalse(x86("console=hvc0").console)
    assert.isTrue(x86("microvm.off=reboot").restartIsOff)
  })

  it("warn of a machine that would not end", () => {
    assert.lengthOf(x86("console=ttyS0 panic=1").warnings, 1)
    assert.lengthOf(x86("console=ttyS0 reboot=k").warnings, 1)
    assert.lengthOf(x86("console=ttyS0 reboot=k panic=0").warnings, 1)
  })
})

describe("what is refused", () => {
  it.each<readonly [Partial<BootArgs.Options>, ReadonlyArray<string>]>([
    [{ args: ["a b"] }, ["args a b"]],
    [{ args: [""] }, ["args "]],
    [{ args: ["name=ü"] }, ["args name=ü"]],
    [{ args: ["a\nb"] }, ["args a\nb"]],
    [{ args: ["open=\"x"] }, ["args open=\"x"]],
    [{ args: ["note=\"a b\""] }, []],
    [{ panic: 0.5 }, ["panic 0.5"]],
    [{ panic: 1, args: ["panic=0"] }, ["args panic=0"]],
    [{ panic: 1, args: ["panic=1"] }, []],
    [{ hostname: "a b" }, ["hostname a b"]],
    [{ hostname: "a", args: ["hostname=b"] }, ["args hostname=b"]],
    [{ root: "/dev/vda ro" }, ["root /dev/vda ro"]],
    [{ root: "/dev/vdb", devices: { root: { _tag: "Drive", readOnly: true } } }, ["root root=/dev/vdb"]],
    [{ args: ["root=/dev/vdb", "rw"], devices: { root: { _tag: "Drive", readOnly: true } } }, [
      "root root=/dev/vdb",
      "args rw"
    ]],
    [{ args: ["root=/dev/vda", "ro"], devices: { root: { _tag: "Drive", readOnly: true } } }, []],
    [{ args: ["pci=off"], devices: { pci: true } }, ["args pci=off"]],
    [{ args: ["pci=off"] }, []],
    [{ args: ["virtio_mmio.device=4K@0xd0000000:5"] }, ["args virtio_mmio.device=4K@0xd0000000:5"]],
    [{ console: false, args: ["console=ttyS0"] }, ["args console=ttyS0"]],
    [{ args: ["8250.nr_uarts=0"] }, ["args 8250.nr_uarts=0"]],
    [{ args: ["reboot=t"] }, ["args reboot=t"]],
    [{ args: ["reboot=t"], architecture: "aarch64" }, []],
    [{ args: ["reboot=k,warm"] }, []],
    [{ args: ["--", "reboot=t", "console=ttyS0"] }, []],
    [{ devices: { count: -1 } }, ["devices.count -1"]],
    [{ devices: { count: Number.MAX_SAFE_INTEGER } }, ["devices.count 9007199254740991"]]
  ])("%o", (options, expected) => {
    assert.deepStrictEqual(fields(options), expected)
  })

  it("is all told at once", () => {
    assert.lengthOf(faults({ panic: 0.5, hostname: "ü", args: ["a b", "reboot=t", "x".repeat(3000)] }), 5)
  })

  it("is what does not fit with Firecracker's own additions", () => {
    const devices: BootArgs.Devices = { count: 10, root: { _tag: "Drive", readOnly: true } }
    const { reserved, text } = make({ devices })
    // pci=off, root=/dev/vda ro, ten devices of at most 35 bytes, and the blanks before them.
    assert.strictEqual(reserved, 8 + 14 + 3 + 10 * 36)
    const room = BootArgs.capacity - 1 - reserved - text.length - 1
    assert.lengthOf(faults({ devices, args: ["x".repeat(room)] }), 0)
    assert.deepStrictEqual(fields({ devices, args: ["x".repeat(room + 1)] }), [`args ${2047 - reserved + 1} bytes`])
    assert.strictEqual(make({ devices: { ...devices, pci: true } }).reserved, 14 + 3)
    const partuuid = { _tag: "Drive", readOnly: false, partuuid: "0eaa91a0-01" } as const
    assert.strictEqual(
      make({ devices: { pci: true, root: partuuid } }).reserved,
      " root=PARTUUID=0eaa91a0-01 rw".length
    )
    assert.strictEqual(
      make({ architecture: "aarch64", devices: { count: 10 } }).reserved,
      " pci=off earlycon=uart,mmio,0x40002000".length
    )
  })
})

describe("any arguments", () => {
  const Options = Schema.Struct({
    architecture: Schema.Literals(["x86_64", "aarch64"]),
    console: Schema.Boolean,
    args: Schema.Array(Schema.String)
  })
  it.prop("are refused, or fit and hold what is said of them", { options: Options }, ({ options }) => {
    const made = BootArgs.make(options)
    if (Result.isFailure(made)) return
    const { reserved, text, ...facts } = made.success
    assert.isBelow(text.length + reserved, BootArgs.capacity)
    assert.match(text, /^[ -~]*$/)
    assert.deepStrictEqual(facts, BootArgs.facts(text, options.architecture))
  })
})
