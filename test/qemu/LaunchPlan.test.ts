import { assert, describe, it } from "@effect/vitest"
import * as Result from "effect/Result"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import * as LaunchPlan from "../../src/qemu/LaunchPlan.ts"
import type { Setup } from "../../src/qemu/QemuHost.ts"

const own: Setup = {
  binary: "qemu-system-x86_64",
  version: { major: 7, minor: 2, micro: 22 },
  architecture: "x86_64",
  accelerator: "tcg",
  because: "the CPU shows neither vmx nor svm",
  user: { _tag: "Own", why: "uid 1000" },
  path: "/usr/bin:/bin"
}

const plan = (setup: Setup, options: Partial<MachineSpec.MachineSpecOptions> = {}): LaunchPlan.LaunchPlan =>
  Result.getOrThrow(
    LaunchPlan.make(setup, Result.getOrThrow(MachineSpec.make({ id: "a", kernel: "/k", ...options })))
  )

const faultsOf = (options: Partial<MachineSpec.MachineSpecOptions>): ReadonlyArray<string> => {
  const spec = Result.getOrThrow(MachineSpec.make({ id: "a", kernel: "/k", ...options }))
  const made = LaunchPlan.make(own, spec)
  if (Result.isSuccess(made) || made.failure.reason._tag !== "InvalidSpec") return []
  return made.failure.reason.faults.map(({ field }) => field)
}

describe("the command line", () => {
  it("of the least machine, as an ordinary user", () => {
    const { argv, env, fds, files } = plan(own)
    assert.strictEqual(
      argv.join("\n"),
      `qemu-system-x86_64
-nodefaults
-no-user-config
-display
none
-no-reboot
-S
-sandbox
on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-machine
q35,hpet=off,sata=off,smbus=off,usb=off,vmport=off,i8042=off
-accel
tcg
-cpu
max
-smp
1
-m
256
-chardev
socket,id=qmp,fd=3
-mon
chardev=qmp,mode=control
-serial
stdio
-device
pvpanic
-append
console=ttyS0 reboot=t panic=-1 quiet cryptomgr.notests
-kernel
/k`
    )
    assert.deepStrictEqual(fds, { qmp: 3, channels: new Map() })
    assert.deepStrictEqual(files, [{ field: "kernel", path: "/k" }])
    assert.deepStrictEqual(env, { PATH: "/usr/bin:/bin", LC_ALL: "C" })
  })

  it("of a machine with everything, as root", () => {
    const setup: Setup = {
      ...own,
      accelerator: "kvm",
      user: { _tag: "Unprivileged", uid: 65534, gid: 65534, groups: [104] }
    }
    const { argv, fds, files } = plan(setup, {
      vcpus: 2,
      memoryMib: 512,
      initramfs: "/i",
      kernelArgs: ["rdinit=/sbin/init", "loglevel=7"],
      channels: ["agent", "log"],
      hostname: "web"
    })
    assert.strictEqual(
      argv.join("\n"),
      `/bin/sh
-c
exec 3<"$1" 4<"$2" && shift 2 && exec "$@"
sh
/k
/i
setpriv
--pdeathsig=KILL
--reuid=65534
--regid=65534
--groups=104
--no-new-privs
qemu-system-x86_64
-nodefaults
-no-user-config
-display
none
-no-reboot
-S
-sandbox
on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-machine
q35,hpet=off,sata=off,smbus=off,usb=off,vmport=off,i8042=off
-accel
kvm
-cpu
host
-smp
2
-m
512
-chardev
socket,id=qmp,fd=5
-mon
chardev=qmp,mode=control
-serial
stdio
-device
pvpanic
-device
virtio-serial-pci,max_ports=3
-chardev
socket,id=channel0,fd=6
-device
virtserialport,chardev=channel0,id=port0,name=agent
-chardev
socket,id=channel1,fd=7
-device
virtserialport,chardev=channel1,id=port1,name=log
-append
console=ttyS0 reboot=t panic=-1 quiet cryptomgr.notests hostname=web microvm.hostname=web rdinit=/sbin/init loglevel=7
-initrd
/proc/self/fd/4
-kernel
/proc/self/fd/3`
    )
    assert.deepStrictEqual(fds, { qmp: 5, channels: new Map([["agent", 6], ["log", 7]]) })
    assert.deepStrictEqual(files, [{ field: "kernel", path: "/k" }, { field: "initramfs", path: "/i" }])
  })

  it("takes a kernel without an initramfs, as root", () => {
    const { argv } = plan({ ...own, user: { _tag: "Unprivileged", uid: 65534, gid: 65534, groups: [] } })
    assert.deepStrictEqual(argv.slice(0, 6), [
      "/bin/sh",
      "-c",
      "exec 3<\"$1\" && shift 2 && exec \"$@\"",
      "sh",
      "/k",
      ""
    ])
    assert.include(argv, "--clear-groups")
  })

  it("leaves out what an older QEMU does not know", () => {
    const { argv } = plan({ ...own, version: { major: 6, minor: 2, micro: 0 } })
    assert.include(argv, "q35,hpet=off,sata=off,smbus=off,usb=off,vmport=off")
  })

  it("has another board on ARM", () => {
    const { argv } = plan({ ...own, binary: "qemu-system-aarch64", architecture: "aarch64" })
    assert.include(argv, "virt,gic-version=max,usb=off")
    assert.include(argv, "pvpanic-pci")
    assert.include(argv, "console=ttyAMA0 panic=-1 quiet cryptomgr.notests")
  })
})

it("says what it does and why", () => {
  assert.deepStrictEqual(plan(own, { initramfs: "/i" }).description, [
    "QEMU 7.2.22, TCG: the CPU shows neither vmx nor svm",
    "runs as ourselves (uid 1000)",
    "1 vCPU, 256 MiB, kernel /k, initramfs /i"
  ])
})

it("refuses what the machine cannot carry, all of it at once", () => {
  const channels = Array.from({ length: 31 }, (_, index) => `c${index}`)
  assert.deepStrictEqual(faultsOf({ channels: channels.slice(1) }), [])
  assert.deepStrictEqual(faultsOf({ channels }), ["channels"])
  // 55 bytes are ours, and one is for the space between.
  assert.deepStrictEqual(faultsOf({ kernelArgs: ["x".repeat(2047 - 56)] }), [])
  assert.deepStrictEqual(faultsOf({ kernelArgs: ["x".repeat(2047 - 55)], channels }), ["kernelArgs", "channels"])
})
