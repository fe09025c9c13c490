import { assert, describe, it } from "@effect/vitest"
import * as Result from "effect/Result"
import { spawnSync } from "node:child_process"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import type { Snapshot } from "../../src/microvm/Snapshot.ts"
import * as LaunchPlan from "../../src/qemu/LaunchPlan.ts"
import type { Setup } from "../../src/qemu/QemuHost.ts"

const own: Setup = {
  binary: "qemu-system-x86_64",
  version: { major: 7, minor: 2, micro: 22 },
  architecture: "x86_64",
  accelerator: "tcg",
  because: "the CPU shows neither vmx nor svm",
  cpu: "Model 1",
  user: { _tag: "Own", why: "uid 1000" },
  path: "/usr/bin:/bin"
}

const unprivileged: Setup = { ...own, user: { _tag: "Unprivileged", uid: 65534, gid: 65534, groups: [] } }

const specOf = (options: Partial<MachineSpec.MachineSpecOptions> = {}): MachineSpec.MachineSpec =>
  Result.getOrThrow(MachineSpec.make({ id: "a", kernel: "/k", ...options }))

const plan = (
  setup: Setup,
  options?: Partial<MachineSpec.MachineSpecOptions>,
  origin?: LaunchPlan.Origin
): LaunchPlan.LaunchPlan => Result.getOrThrow(LaunchPlan.make(setup, specOf(options), origin))

const snapshot = (form: string): Snapshot => ({
  id: "f".repeat(64),
  directory: "/s",
  manifest: {
    format: 1,
    kind: "saved",
    form,
    platform: {},
    madeBy: "QEMU 7.2.22",
    spec: specOf(),
    labels: {},
    createdAt: "2026-01-01T00:00:00Z",
    files: []
  }
})

const restored = (setup: Setup, form: LaunchPlan.Form): LaunchPlan.LaunchPlan =>
  plan(setup, { channels: ["agent"] }, { _tag: "Restore", snapshot: snapshot(form) })

/** What stands behind an option. */
const valueOf = ({ argv }: LaunchPlan.LaunchPlan, option: string): string | undefined =>
  argv.includes(option) ? argv[argv.indexOf(option) + 1] : undefined

const faultsOf = (options: Partial<MachineSpec.MachineSpecOptions>): ReadonlyArray<string> => {
  const made = LaunchPlan.make(own, specOf(options))
  if (Result.isSuccess(made) || made.failure.reason._tag !== "InvalidSpec") return []
  return made.failure.reason.faults.map(({ field }) => field)
}

describe("the command line", () => {
  it("opens no more files than any shell can, and says so of one file more", () => {
    const disks = (count: number) =>
      Array.from({ length: count }, (_, index) => ({ name: `d${index}`, path: "/etc/hostname", readOnly: true }))
    for (const [setup, most] of [[own, 7], [unprivileged, 5]] as const) {
      const kernel = { kernel: "/etc/hostname", initramfs: "/etc/hostname" }
      const { argv } = plan(setup, { ...kernel, drives: disks(most) })
      const script = argv[argv.indexOf("-c") + 1] ?? ""
      // Up to what it would run.
      const opens = spawnSync("/bin/sh", ["-c", script, "sh", ...disks(7).map(({ path }) => path), "true"])
      assert.deepStrictEqual([opens.status, String(opens.stderr)], [0, ""])
      const more = LaunchPlan.make(setup, specOf({ ...kernel, drives: disks(most + 1) }))
      assert.match(
        Result.isFailure(more) ? more.failure.message : "",
        new RegExp(`drives is ${most + 1}: give ${most} at most`)
      )
    }
  })

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
pc-q35-7.2,hpet=off,sata=off,smbus=off,usb=off,vmport=off,i8042=off,memory-backend=ram0
-object
memory-backend-ram,id=ram0,size=256M
-accel
tcg
-cpu
max
-chardev
socket,id=qmp,fd=3
-mon
chardev=qmp,mode=control
-smp
1
-m
256
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
pc-q35-7.2,hpet=off,sata=off,smbus=off,usb=off,vmport=off,i8042=off,memory-backend=ram0
-object
memory-backend-ram,id=ram0,size=512M
-accel
kvm
-cpu
host
-chardev
socket,id=qmp,fd=5
-mon
chardev=qmp,mode=control
-chardev
socket,id=channel0,fd=6
-chardev
socket,id=channel1,fd=7
-smp
2
-m
512
-serial
stdio
-device
pvpanic
-device
virtio-serial-pci,id=serial0,max_ports=3
-device
virtserialport,bus=serial0.0,chardev=channel0,id=port0,name=agent
-device
virtserialport,bus=serial0.0,chardev=channel1,id=port1,name=log
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

  it("has none of the capabilities that we pass on, though it is started as ourselves", () => {
    const user = { ...own.user, dropsCapabilities: true }
    const networks = [{ tap: "web-0", mac: "02:00:00:00:00:01", address: "10.0.0.1/31", gateway: "10.0.0.0" }]
    const { argv, description } = plan({ ...own, user }, { networks })
    assert.deepStrictEqual(argv.slice(0, 9).with(2, "…"), [
      "/bin/sh",
      "-c",
      "…",
      "sh",
      "setpriv",
      "--inh-caps=-all",
      "--ambient-caps=-all",
      "--no-new-privs",
      "qemu-system-x86_64"
    ])
    assert.include(description.join("\n"), "without our capabilities")
  })

  it("has no more ports on a device than QEMU can tell a guest of", () => {
    const channels = Array.from({ length: 30 }, (_, index) => `c${index}`)
    const devicesOf = (count: number) =>
      plan(own, { channels: channels.slice(0, count) }).argv.filter((arg) => arg.startsWith("virtio-serial"))
    assert.deepStrictEqual(devicesOf(0), [])
    assert.deepStrictEqual(devicesOf(15), ["virtio-serial-pci,id=serial0,max_ports=16"])
    assert.deepStrictEqual(devicesOf(17), [
      "virtio-serial-pci,id=serial0,max_ports=16",
      "virtio-serial-pci,id=serial1,max_ports=3"
    ])
    const { argv } = plan(own, { channels })
    assert.include(argv, "virtserialport,bus=serial0.0,chardev=channel14,id=port14,name=c14")
    assert.include(argv, "virtserialport,bus=serial1.0,chardev=channel15,id=port15,name=c15")
  })

  it("takes a kernel without an initramfs, as root", () => {
    const { argv, fds } = plan(unprivileged)
    assert.deepStrictEqual(argv.slice(0, 6), [
      "/bin/sh",
      "-c",
      "exec 3<\"$1\" && shift 1 && exec \"$@\"",
      "sh",
      "/k",
      "setpriv"
    ])
    assert.include(argv, "--clear-groups")
    assert.strictEqual(fds.qmp, 4)
  })

  it("leaves out what an older QEMU does not know", () => {
    const { argv } = plan({ ...own, version: { major: 6, minor: 2, micro: 0 } })
    assert.include(argv, "pc-q35-6.2,hpet=off,sata=off,smbus=off,usb=off,vmport=off,memory-backend=ram0")
  })

  it("has another board on ARM", () => {
    const { argv } = plan({ ...own, binary: "qemu-system-aarch64", architecture: "aarch64" })
    assert.include(argv, "virt-7.2,gic-version=max,usb=off,memory-backend=ram0")
    assert.include(argv, "pvpanic-pci")
    assert.include(argv, "console=ttyAMA0 panic=-1 quiet cryptomgr.notests")
  })
})

const card = { tap: "web-0", mac: "02:00:00:00:00:01", address: "10.0.0.1/31", gateway: "10.0.0.0" }

describe("cards and disks", () => {
  const drives = [{ name: "data", path: "/d" }, { name: "tools", path: "/t", readOnly: true }]

  it("come after what every guest has, and are told to it", () => {
    const made = plan(own, { networks: [card, { ...card, tap: "web-1", mac: "02:00:00:00:00:02", mtu: 1400 }], drives })
    assert.strictEqual(
      made.argv.join("\n"),
      `/bin/sh
-c
for tap in web-0 web-1; do [ -d "/proc/sys/net/ipv4/conf/$tap" ] || { echo "microvm: there is no interface $tap" >&2; exit 1; }; done && exec 3<>"$1" 4<"$2" && shift 2 && exec "$@"
sh
/d
/t
${
        plan(own).argv.join("\n").replace("fd=3", "fd=5").replace(
          "-smp",
          `-netdev
tap,id=net0,ifname=web-0,script=no,downscript=no,vhost=off
-netdev
tap,id=net1,ifname=web-1,script=no,downscript=no,vhost=off
-add-fd
fd=3,set=0
-blockdev
driver=raw,node-name=disk0,read-only=off,discard=unmap,file.driver=file,file.filename=/dev/fdset/0,file.discard=unmap,file.locking=on
-add-fd
fd=4,set=1
-blockdev
driver=raw,node-name=disk1,read-only=on,discard=unmap,file.driver=file,file.filename=/dev/fdset/1,file.discard=unmap,file.locking=on
-smp`
        ).replace(
          "-append",
          `-device
virtio-net-pci,netdev=net0,id=card0,mac=02:00:00:00:00:01,romfile=
-device
virtio-net-pci,netdev=net1,id=card1,mac=02:00:00:00:00:02,romfile=,host_mtu=1400
-device
virtio-blk-pci,drive=disk0,serial=data
-device
virtio-blk-pci,drive=disk1,serial=tools
-append`
        ).replace(
          "cryptomgr.notests",
          "cryptomgr.notests ip=10.0.0.1::10.0.0.0:255.255.255.254::eth0:off " +
            "microvm.net=02:00:00:00:00:01,10.0.0.1/31,10.0.0.0 " +
            "microvm.net=02:00:00:00:00:02,10.0.0.1/31,10.0.0.0,,,,1400"
        )
      }`
    )
    assert.deepStrictEqual(made.drives, [
      { field: "drives[0].path", path: "/d", writable: true },
      { field: "drives[1].path", path: "/t", writable: false }
    ])
    assert.deepStrictEqual(made.description.slice(-4), [
      "network card 02:00:00:00:00:01 at web-0",
      "network card 02:00:00:00:00:02 at web-1",
      "disk data: /d",
      "disk tools, read-only: /t"
    ])
  })

  it("are opened in front of the kernel, and then all rights are given up", () => {
    const { argv, fds } = plan(unprivileged, { drives })
    assert.deepStrictEqual(argv.slice(2, 8), [
      "exec 3<>\"$1\" 4<\"$2\" 5<\"$3\" && shift 3 && exec \"$@\"",
      "sh",
      "/d",
      "/t",
      "/k",
      "setpriv"
    ])
    assert.strictEqual(fds.qmp, 6)
  })

  it("have a device for TAPs of their own where only root may open that of the host", () => {
    const closed = { ...unprivileged, tunIsClosed: true }
    const { argv } = plan(closed, { networks: [card] })
    assert.deepStrictEqual(argv.slice(0, 4), ["unshare", "--mount", "--", "/bin/sh"])
    assert.include(argv[5], "mknod -m 666 /dev/net/tun c 10 200 && exec 3<")
    assert.notInclude(plan(closed).argv, "unshare")
    assert.notInclude(plan({ ...own, tunIsClosed: true }, { networks: [card] }).argv, "unshare")
  })

  it("may lead nowhere, and need no device then", () => {
    const { tap: _, ...nowhere } = card
    const made = plan({ ...unprivileged, tunIsClosed: true }, { networks: [nowhere, nowhere] })
    assert.deepStrictEqual(made.argv.filter((arg) => arg.startsWith("hubport")), [
      "hubport,id=net0,hubid=0",
      "hubport,id=net1,hubid=1"
    ])
    assert.strictEqual(made.argv[2], "exec 3<\"$1\" && shift 1 && exec \"$@\"")
    assert.strictEqual(made.description.at(-1), "network card 02:00:00:00:00:01, which leads nowhere")
  })

  it("are found in another network namespace", () => {
    const made = LaunchPlan.make(unprivileged, specOf({ networks: [card] }), undefined, { netns: "/run/netns/a" })
    const { argv, description } = Result.getOrThrow(made)
    assert.deepStrictEqual(argv.slice(0, 4), ["nsenter", "--net=/run/netns/a", "--", "/bin/sh"])
    assert.strictEqual(description.at(-1), "network card 02:00:00:00:00:01 at web-0 of /run/netns/a")
  })
})

describe("a template", () => {
  const template = { _tag: "Template", ram: "/proc/7/fd/21" } as const

  it("boots with memory in a file that is opened for QEMU, also as an ordinary user", () => {
    const made = plan(own, { initramfs: "/i" }, template)
    assert.deepStrictEqual(made.argv.slice(0, 6), [
      "/bin/sh",
      "-c",
      "exec 3<>\"$1\" && shift 1 && exec \"$@\"",
      "sh",
      template.ram,
      "qemu-system-x86_64"
    ])
    assert.strictEqual(
      valueOf(made, "-object"),
      "memory-backend-file,id=ram0,size=256M,share=on,mem-path=/proc/self/fd/3"
    )
    assert.strictEqual(valueOf(made, "-kernel"), "/k")
    assert.strictEqual(made.fds.qmp, 4)
  })

  it("has its descriptors in order, as root", () => {
    const made = plan(unprivileged, { initramfs: "/i", channels: ["agent"] }, template)
    assert.deepStrictEqual(made.argv.slice(2, 7), [
      "exec 3<\"$1\" 4<\"$2\" 5<>\"$3\" && shift 3 && exec \"$@\"",
      "sh",
      "/k",
      "/i",
      template.ram
    ])
    assert.match(valueOf(made, "-object") ?? "", /mem-path=\/proc\/self\/fd\/5$/)
    assert.deepStrictEqual(made.fds, { qmp: 6, channels: new Map([["agent", 7]]) })
  })
})

describe("a restored machine", () => {
  it("maps the memory of a template, and boots nothing", () => {
    const made = restored(unprivileged, "shared-memory")
    assert.deepStrictEqual(made.argv.slice(2, 6), [
      "exec 3<\"$1\" 4<>\"$2\" && shift 2 && exec \"$@\"",
      "sh",
      "/s/state",
      "/s/memory"
    ])
    assert.strictEqual(
      valueOf(made, "-object"),
      "memory-backend-file,id=ram0,size=256M,share=off,mem-path=/proc/self/fd/4"
    )
    assert.strictEqual(valueOf(made, "-incoming"), "defer")
    for (const option of ["-kernel", "-initrd", "-append"]) assert.notInclude(made.argv, option)
    assert.deepStrictEqual(made.load, { fd: 3, sharedMemory: true })
    assert.deepStrictEqual(made.fds, { qmp: 5, channels: new Map([["agent", 6]]) })
    assert.deepStrictEqual(made.files, [
      { field: "state", path: "/s/state" },
      { field: "memory", path: "/s/memory", writable: true }
    ])
  })

  it("cannot write to that memory where QEMU can do without", () => {
    const made = restored({ ...unprivileged, version: { major: 8, minor: 2, micro: 0 } }, "shared-memory")
    assert.include(made.argv, "exec 3<\"$1\" 4<\"$2\" && shift 2 && exec \"$@\"")
    assert.include(valueOf(made, "-object"), "share=off,readonly=on,rom=off,")
    assert.isFalse(made.files.at(-1)?.writable)
  })

  it("has memory of its own when all came in one stream", () => {
    const made = restored(own, "stream")
    assert.strictEqual(valueOf(made, "-object"), "memory-backend-ram,id=ram0,size=256M")
    assert.deepStrictEqual(made.load, { fd: 3, sharedMemory: false })
    assert.deepStrictEqual(made.files.map(({ path }) => path), ["/s/state"])
  })

  it("that had not run yet boots the files of the snapshot, not those of its spec", () => {
    const origin = { _tag: "Restore", snapshot: snapshot("unstarted") } as const
    const made = plan(own, { initramfs: "/i" }, origin)
    assert.strictEqual(valueOf(made, "-kernel"), "/s/kernel")
    assert.strictEqual(valueOf(made, "-initrd"), "/s/initramfs")
    assert.notInclude(made.argv, "-incoming")
    assert.deepStrictEqual(made.files, [
      { field: "kernel", path: "/s/kernel" },
      { field: "initramfs", path: "/s/initramfs" }
    ])
    assert.notInclude(plan(own, {}, origin).argv, "-initrd")
    assert.deepStrictEqual(plan(unprivileged, { initramfs: "/i" }, origin).argv.slice(2, 6), [
      "exec 3<\"$1\" 4<\"$2\" && shift 2 && exec \"$@\"",
      "sh",
      "/s/kernel",
      "/s/initramfs"
    ])
  })

  it("is not made from what another backend wrote", () => {
    const made = LaunchPlan.make(own, specOf(), { _tag: "Restore", snapshot: snapshot("zip") })
    assert.isTrue(Result.isFailure(made) && made.failure.reason._tag === "SnapshotUnusable")
  })
})

describe("the platform", () => {
  it("tells which channels are on another device, as QEMU does not load the state of one that has more or fewer", () => {
    const channels = Array.from({ length: 16 }, (_, index) => `c${index}`)
    const devicesOf = (count: number) =>
      LaunchPlan.platform(own, { ...spec, channels: channels.slice(0, count) }).devices
    assert.notInclude(devicesOf(15), "serial device")
    assert.match(devicesOf(16), /channel c14, serial device, channel c15$/)
  })

  const { id: _, ...spec } = specOf({ channels: ["agent"] })

  it("is the same for all machines of a spec, wherever their files and users are", () => {
    assert.deepStrictEqual(LaunchPlan.platform(own, spec), {
      backend: "qemu",
      version: "7.2",
      architecture: "x86_64",
      accelerator: "tcg",
      machine: "pc-q35-7.2,hpet=off,sata=off,smbus=off,usb=off,vmport=off,i8042=off",
      cpu: "max",
      devices: "1 vCPU, 256 MiB, console, pvpanic, channel agent"
    })
    const elsewhere = { ...unprivileged, version: { ...own.version, micro: 9 }, cpu: "Model 2", path: "/opt" }
    const [one, other] = [card, { tap: "b", mac: "02:00:00:00:00:09" }].map((network) =>
      LaunchPlan.platform(own, { ...spec, networks: [network] })
    )
    assert.deepStrictEqual(one, other)
    assert.deepStrictEqual(LaunchPlan.platform(elsewhere, { ...spec, kernel: "/l" }), LaunchPlan.platform(own, spec))
  })

  it("tells apart what a guest would notice", () => {
    const kvm = { ...own, accelerator: "kvm" } as const
    const all = [
      LaunchPlan.platform(own, spec),
      LaunchPlan.platform({ ...own, version: { major: 8, minor: 0, micro: 0 } }, spec),
      LaunchPlan.platform({ ...own, digest: "a".repeat(64) }, spec),
      LaunchPlan.platform({ ...own, digest: "b".repeat(64) }, spec),
      LaunchPlan.platform(own, { ...spec, channels: ["log"] }),
      LaunchPlan.platform(own, { ...spec, vcpus: 2 }),
      LaunchPlan.platform(own, { ...spec, networks: [card] }),
      LaunchPlan.platform(own, { ...spec, networks: [card, card] }),
      LaunchPlan.platform(own, { ...spec, drives: [{ name: "data", path: "/d", readOnly: false }] }),
      LaunchPlan.platform(own, { ...spec, drives: [{ name: "data", path: "/d", readOnly: true }] }),
      LaunchPlan.platform(own, { ...spec, memoryMib: 512 }),
      LaunchPlan.platform(kvm, spec),
      LaunchPlan.platform({ ...kvm, cpu: "Model 2" }, spec)
    ]
    assert.strictEqual(new Set(all.map((one) => JSON.stringify(one))).size, all.length)
  })
})

it("says what it does and why", () => {
  assert.deepStrictEqual(plan(own, { initramfs: "/i" }).description, [
    "QEMU 7.2.22, TCG: the CPU shows neither vmx nor svm",
    "runs as ourselves (uid 1000)",
    "1 vCPU, 256 MiB",
    "kernel /k, initramfs /i"
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
