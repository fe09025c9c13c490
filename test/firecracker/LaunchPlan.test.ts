import { assert, describe, it } from "@effect/vitest"
import * as Equal from "effect/Equal"
import * as Result from "effect/Result"
import type { Setup } from "../../src/firecracker/FirecrackerHost.ts"
import * as LaunchPlan from "../../src/firecracker/LaunchPlan.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import type * as Snapshot from "../../src/microvm/Snapshot.ts"

const setup: Setup = {
  binary: "/bin/firecracker",
  version: { major: 1, minor: 16, patch: 1 },
  snapshotFormat: "10.0.0",
  architecture: "x86_64",
  cpu: "Model 1",
  kernel: "6.1.0-9",
  uid: 1000,
  because: "KVM is usable"
}

const at = (minor: number): Setup => ({ ...setup, version: { major: 1, minor, patch: 0 } })

const spec = (options: Partial<MachineSpec.MachineSpecOptions> = {}): MachineSpec.MachineSpec =>
  Result.getOrThrow(
    MachineSpec.make({ id: "a", kernel: "/k", initramfs: "/i", channels: ["agent", "io-1"], ...options })
  )

interface Given {
  readonly setup?: Setup
  readonly spec?: Partial<MachineSpec.MachineSpecOptions>
  readonly options?: LaunchPlan.Options
  readonly origin?: LaunchPlan.Origin
}

const plan = (given: Given = {}): LaunchPlan.LaunchPlan =>
  Result.getOrThrow(LaunchPlan.make(given.setup ?? setup, spec(given.spec), given.origin, given.options))

/** Every field that is at fault, or the message. */
const refusal = (given: Given): ReadonlyArray<string> =>
  Result.match(LaunchPlan.make(given.setup ?? setup, spec(given.spec), given.origin, given.options), {
    onSuccess: () => [],
    onFailure: ({ message, reason }) =>
      reason._tag === "InvalidSpec" ? reason.faults.map(({ field }) => field) : [message]
  })

const from = (form: string): LaunchPlan.Origin => {
  const { id: _, ...rest } = spec()
  const snapshot: Snapshot.Snapshot = {
    id: "f".repeat(64),
    directory: "/s",
    manifest: {
      format: 1,
      kind: "saved",
      form,
      platform: {},
      madeBy: "Firecracker 1.16.1",
      spec: rest,
      labels: {},
      createdAt: "2026-01-01T00:00:00Z",
      files: []
    }
  }
  return { _tag: "Restore", snapshot }
}

const devices: LaunchPlan.Devices = {
  drives: [
    { drive_id: "data", path_on_host: "/d/data.img", is_root_device: false },
    { drive_id: "rootfs", path_on_host: "/d/root.ext4", is_root_device: true, is_read_only: true }
  ],
  networkInterfaces: [{ iface_id: "eth0", host_dev_name: "tap0" }],
  entropy: {}
}

describe("what is known to go wrong", () => {
  const warnings = (given: Given) => plan(given).warnings.join("\n")
  const release = (minor: number, patch = 0): Setup => ({ ...setup, version: { major: 1, minor, patch } })

  it("is told where it concerns the machine", () => {
    assert.strictEqual(warnings({ setup: release(16), spec: { channels: [] } }), "")
    assert.match(warnings({ setup: release(16), spec: { channels: ["one"] } }), /^in 1\.16 .*\(6100\)$/)
    assert.notInclude(warnings({ setup: release(16), spec: { channels: [] }, origin: from("full") }), "5958")
    assert.include(warnings({ setup: release(16), spec: { channels: ["one"] }, origin: from("full") }), "5958")
    assert.strictEqual(warnings({ setup: release(17), spec: { channels: ["one"] } }), "")
    const made = plan({ setup: release(16) })
    assert.includeMembers([...made.description], [...made.warnings])
  })

  it("is told of the devices that it concerns", () => {
    const on1140 = (options: LaunchPlan.Options) => warnings({ setup: release(14), spec: { channels: [] }, options })
    const balloon = { amount_mib: 0, deflate_on_oom: false }
    const eth0 = { iface_id: "eth0", host_dev_name: "tap0" }
    for (
      const [fault, options] of [
        ["5747", { pci: true }],
        ["5762", { devices: { entropy: {} } }],
        ["5793", { devices: { memoryHotplug: { total_size_mib: 128 } } }],
        ["5794", { devices: { balloon: { ...balloon, stats_polling_interval_s: 1 } } }],
        ["5739", { devices: { networkInterfaces: [eth0], mmds: { config: { network_interfaces: ["eth0"] } } } }],
        ["6120", { devices: { machine: { cpu_template: "T2" } } }],
        ["6120", { devices: { cpuConfig: { msr_modifiers: [] } } }]
      ] as const
    ) {
      assert.include(on1140(options), fault)
      assert.notInclude(on1140({}), fault)
    }
    assert.notInclude(on1140({ devices: { balloon, machine: { cpu_template: "None" } } }), "5794")
    assert.notInclude(on1140({ devices: { balloon, machine: { cpu_template: "None" } } }), "6120")
  })

  it("is told of free page hinting where that is asked for", () => {
    const balloon = { amount_mib: 0, deflate_on_oom: false, free_page_hinting: true }
    assert.match(warnings({ setup: release(17), options: { devices: { balloon } } }), /^free page hinting is a preview/)
  })
})

describe("a machine that boots", () => {
  it("is told names in its directory, and nothing else", () => {
    const made = plan({ options: { devices, metrics: true } })
    assert.deepStrictEqual(made.argv, [
      "/bin/firecracker",
      "--api-sock",
      "api.sock",
      "--log-path",
      "firecracker.log",
      "--level",
      "Info"
    ])
    assert.deepStrictEqual(made.config, {
      machine: { vcpu_count: 1, mem_size_mib: 256 },
      bootSource: {
        kernel_image_path: "kernel",
        initrd_path: "initramfs",
        boot_args: "console=ttyS0 reboot=k i8042.noaux i8042.nomux i8042.dumbkbd panic=1 quiet swiotlb=noforce"
          + " microvm.off=reboot microvm.vsock=1024,agent,io-1"
      },
      drives: [
        { drive_id: "data", path_on_host: "drive-data", is_root_device: false },
        { drive_id: "rootfs", path_on_host: "drive-rootfs", is_root_device: true, is_read_only: true }
      ],
      networkInterfaces: [{ iface_id: "eth0", host_dev_name: "tap0" }],
      entropy: {},
      vsock: { guest_cid: 3, uds_path: "vsock.sock" },
      metrics: { metrics_path: "firecracker.metrics" }
    })
    assert.deepStrictEqual(made.entries, [
      { field: "kernel", name: "kernel", path: "/k", writable: false },
      { field: "initramfs", name: "initramfs", path: "/i", writable: false },
      { field: "devices.drives[0].path_on_host", name: "drive-data", path: "/d/data.img", writable: true },
      { field: "devices.drives[1].path_on_host", name: "drive-rootfs", path: "/d/root.ext4", writable: false }
    ])
    assert.deepStrictEqual([...made.channels], [["agent", 1024], ["io-1", 1025]])
    assert.isUndefined(made.load)
  })

  it("has none of the capabilities that we pass on", () => {
    const { argv } = plan({ setup: { ...setup, passesCapabilities: true }, options: { netns: "/run/netns/a" } })
    assert.deepStrictEqual(argv.slice(0, 8), [
      "nsenter",
      "--net=/run/netns/a",
      "--",
      "setpriv",
      "--inh-caps=-all",
      "--ambient-caps=-all",
      "--no-new-privs",
      "/bin/firecracker"
    ])
  })

  it("has no vsock without channels, and only what it is given", () => {
    const { config, entries } = plan({ spec: { channels: [] }, options: { pci: false } })
    assert.deepStrictEqual(Object.keys(config), ["machine", "bootSource"])
    assert.lengthOf(entries, 2)
    assert.notInclude(config.bootSource.boot_args ?? "", "microvm.vsock")
  })

  it("is the same each time, and is told to people", () => {
    const given = { options: { devices } }
    assert.isTrue(Equal.equals(plan(given), plan(given)))
    assert.includeMembers([...plan(given).description], [
      "Firecracker 1.16.1: KVM is usable",
      "runs as uid 1000, in a directory of its own",
      "1 vCPU, 256 MiB",
      "kernel /k, initramfs /i",
      "drive rootfs, the root device, read-only: /d/root.ext4",
      "network interface eth0 on tap0",
      "channel agent is port 1024 of vsock"
    ])
  })

  it("has the devices that its spec asks for", () => {
    const options: LaunchPlan.Options = {
      devices: ({ id }) => ({ drives: [{ drive_id: "own", path_on_host: `/d/${id}.img`, is_root_device: false }] }),
      kernelArgs: ["nomodule"],
      pci: true,
      logLevel: "Warning"
    }
    const { argv, config, entries } = plan({ spec: { id: "web-7", hostname: "web", kernelArgs: ["x=1"] }, options })
    assert.strictEqual(entries.at(-1)?.path, "/d/web-7.img")
    assert.deepStrictEqual(argv.slice(-3), ["--level", "Warning", "--enable-pci"])
    assert.isTrue(config.bootSource.boot_args?.endsWith("microvm.vsock=1024,agent,io-1 nomodule x=1"))
    assert.include(config.bootSource.boot_args ?? "", "hostname=web microvm.hostname=web")
  })

  it("says why its power button does not work", () => {
    assert.deepStrictEqual(plan().facts.noCtrlAltDel, [])
    assert.match(plan({ spec: { kernelArgs: ["i8042.nokbd"] } }).facts.noCtrlAltDel.join(), /i8042\.nokbd/)
    const arm = plan({ setup: { ...setup, architecture: "aarch64" } })
    assert.deepStrictEqual(arm.facts.noCtrlAltDel, ["aarch64 has no keyboard"])
    assert.notInclude(arm.config.bootSource.boot_args ?? "", "microvm.off")
  })
})

describe("what cannot be", () => {
  it("is told at once, by the names that the caller has for it", () => {
    const fields = refusal({
      spec: { kernelArgs: ["reboot=t"], memoryMib: 97 },
      options: {
        devices: {
          machine: { huge_pages: "2M" },
          drives: [
            { drive_id: "rootfs", path_on_host: "relative", is_root_device: true },
            { drive_id: "rootfs", path_on_host: "/x", is_root_device: false },
            { drive_id: "a/b", path_on_host: "/x", is_root_device: false }
          ],
          serial: { serial_out_path: "/tmp/console" }
        }
      }
    })
    assert.sameMembers([...fields], [
      "kernelArgs",
      "memoryMib",
      "devices.drives[0].path_on_host",
      "devices.drives[2].drive_id",
      "devices.serial.serial_out_path"
    ])
  })

  it("may be two with one name, or more devices than there are lines", () => {
    const drive = (id: string) => ({ drive_id: id, path_on_host: "/x", is_root_device: false })
    assert.deepStrictEqual(
      refusal({ options: { devices: { drives: [drive("rootfs"), drive("rootfs")] } } }),
      ["devices.drives[1].drive_id"]
    )
    const many = Array.from({ length: 17 }, (_, index) => drive(`d${index}`))
    assert.deepStrictEqual(refusal({ options: { devices: { drives: many } } }), ["devices.devices"])
  })

  it("may be more kernel arguments than there is room for, all that is added counted", () => {
    const kernelArgs = ["x".repeat(1_820)]
    assert.deepStrictEqual(refusal({ spec: { kernelArgs } }), [])
    assert.deepStrictEqual(refusal({ spec: { kernelArgs }, options: { devices } }), ["kernelArgs"])
  })

  it("may be what this version does not know", () => {
    const options: LaunchPlan.Options = { devices: { serial: { rate_limiter: { size: 1, refill_time: 1 } } } }
    assert.deepStrictEqual(refusal({ options }), [])
    assert.match(refusal({ setup: at(13), options }).join(), /firecracker 1\.13\.0 .*PUT \/serial \(since 1\.14\.0\)/)
    assert.match(refusal({ setup: at(15), options }).join(), /SerialDevice\.rate_limiter \(since 1\.16\.0\)/)
  })
})

describe("a machine that goes on from a snapshot", () => {
  it("loads its files, paused, with its clock set", () => {
    const made = plan({ origin: from("full") })
    assert.deepStrictEqual(made.load, {
      snapshot_path: "state",
      mem_backend: { backend_type: "File", backend_path: "memory" },
      resume_vm: false,
      clock_realtime: true
    })
    assert.deepStrictEqual(made.entries.map(({ field, path }) => [field, path]), [
      ["state", "/s/state"],
      ["memory", "/s/memory"]
    ])
  })

  it("sets its clock only where that works", () => {
    const clock = (given: Given) => plan({ origin: from("full"), ...given }).load?.clock_realtime
    assert.isUndefined(clock({ setup: at(15) }))
    assert.isUndefined(clock({ setup: { ...setup, kernel: "5.10.0" } }))
    assert.isUndefined(clock({ setup: { ...setup, architecture: "aarch64" } }))
    assert.isUndefined(clock({ options: { adjustClock: false } }))
    assert.isTrue(clock({ setup: { ...setup, kernel: "5.16" } }))
  })

  it("has its own drives and network interfaces", () => {
    const made = plan({ origin: from("full"), options: { devices } })
    assert.deepStrictEqual(made.entries.map(({ name }) => name), ["state", "memory", "drive-data", "drive-rootfs"])
    assert.deepStrictEqual(made.load?.network_overrides, [{ iface_id: "eth0", host_dev_name: "tap0" }])
    // Those do not know the field, and would refuse all.
    const older = plan({ setup: at(11), origin: from("full"), options: { devices } })
    assert.notProperty(older.load ?? {}, "network_overrides")
  })

  it("may have its memory served", () => {
    const made = plan({ origin: from("full"), options: { memoryBackend: "uffd" } })
    assert.deepStrictEqual(made.load?.mem_backend, { backend_type: "Uffd", backend_path: "pages.sock" })
    assert.deepStrictEqual(made.entries.map(({ field }) => field), ["state"])
  })

  it("has huge pages only when its memory is served", () => {
    const huge: LaunchPlan.Options = { devices: { machine: { huge_pages: "2M" } } }
    assert.deepStrictEqual(refusal({ options: huge }), [])
    assert.deepStrictEqual(refusal({ options: huge, origin: from("full") }), ["devices.machine.huge_pages"])
    assert.deepStrictEqual(refusal({ options: { ...huge, memoryBackend: "uffd" }, origin: from("full") }), [])
  })

  it("boots what the snapshot has, if that was made before it ran", () => {
    const made = plan({ origin: from("unstarted") })
    assert.isUndefined(made.load)
    assert.deepStrictEqual(made.entries.map(({ name, path }) => [name, path]), [
      ["kernel", "/s/kernel"],
      ["initramfs", "/s/initramfs"]
    ])
  })

  it("is refused in a form that is not known", () => {
    assert.match(refusal({ origin: from("stream") }).join(), /its form stream is not known here/)
  })
})

describe("cards and disks of a spec", () => {
  const card = { tap: "web-0", mac: "02:00:00:00:00:01", address: "10.0.0.1/31", gateway: "10.0.0.0", mtu: 1400 }
  const options = {
    networks: [card],
    drives: [{ name: "data", path: "/d" }, { name: "tools", path: "/t", readOnly: true }]
  }
  const made = (setupOf: Setup, more: LaunchPlan.Options = {}, origin?: LaunchPlan.Origin) =>
    Result.getOrThrow(LaunchPlan.make(setupOf, spec(options), origin, more))

  it("are told to Firecracker and to the guest", () => {
    const { config, entries } = made(setup)
    assert.deepStrictEqual(config.networkInterfaces, [
      { iface_id: "net0", host_dev_name: "web-0", guest_mac: "02:00:00:00:00:01", mtu: 1400 }
    ])
    assert.notProperty(made(at(15)).config.networkInterfaces?.[0] ?? {}, "mtu")
    assert.deepStrictEqual(config.drives, [
      { drive_id: "data", path_on_host: "drive-data", is_root_device: false, is_read_only: false },
      { drive_id: "tools", path_on_host: "drive-tools", is_root_device: false, is_read_only: true }
    ])
    assert.deepStrictEqual(entries.slice(-2), [
      { field: "drives[0].path", name: "drive-data", path: "/d", writable: true },
      { field: "drives[1].path", name: "drive-tools", path: "/t", writable: false }
    ])
    assert.include(
      config.bootSource.boot_args,
      " ip=10.0.0.1::10.0.0.0:255.255.255.254::eth0:off microvm.net=02:00:00:00:00:01,10.0.0.1/31,10.0.0.0,,,,1400"
    )
  })

  it("come after those of the options", () => {
    const { config, entries } = made(setup, {
      devices: { drives: [{ drive_id: "a", path_on_host: "/a", is_root_device: true }] }
    })
    assert.deepStrictEqual(config.drives?.map(({ drive_id: id }) => id), ["a", "data", "tools"])
    assert.deepStrictEqual(entries.slice(-3).map(({ field }) => field), [
      "devices.drives[0].path_on_host",
      "drives[0].path",
      "drives[1].path"
    ])
  })

  it("are this machine's after a restore", () => {
    const { entries, load } = made(setup, {}, from("full"))
    assert.deepStrictEqual(load?.network_overrides, [{ iface_id: "net0", host_dev_name: "web-0" }])
    assert.deepStrictEqual(entries.slice(-2).map(({ path }) => path), ["/d", "/t"])
  })

  it("are what a snapshot counts on, wherever they lead", () => {
    const { id: _, ...inventory } = spec(options)
    const found = LaunchPlan.platform(setup, inventory).devices
    assert.strictEqual(found, "1 vCPU, 256 MiB, vsock, drive data, drive tools:read-only, interface net0")
    const [data, tools] = [{ name: "data", path: "/e" }, { name: "tools", path: "/f", readOnly: true }]
    const elsewhere = spec({ networks: [{ ...card, tap: "b" }], drives: [data, tools] })
    assert.strictEqual(LaunchPlan.platform(setup, elsewhere).devices, found)
  })

  it("cannot lead nowhere", () => {
    const { tap: _, ...nowhere } = card
    const refused = LaunchPlan.make(setup, spec({ networks: [card, nowhere] }))
    if (Result.isSuccess(refused) || refused.failure.reason._tag !== "InvalidSpec") throw new Error("it is planned")
    assert.deepStrictEqual(refused.failure.reason.faults.map(({ field }) => field), ["networks[1].tap"])
  })

  it("are found in another network namespace", () => {
    const { argv } = made(setup, { netns: "/run/netns/a" })
    assert.deepStrictEqual(argv.slice(0, 4), ["nsenter", "--net=/run/netns/a", "--", setup.binary])
  })
})

describe("platform", () => {
  const { id: _, ...rest } = spec()
  const platform = (options?: LaunchPlan.Options, on: Setup = setup) => LaunchPlan.platform(on, rest, options)

  it("names the program by its digest, where that is known", () => {
    assert.isUndefined(platform().program)
    assert.strictEqual(platform({}, { ...setup, digest: "0123456789abcdef".repeat(4) }).program, "0123456789abcdef")
  })

  it("is what a guest can see, and not where it leads", () => {
    assert.deepStrictEqual(platform({ devices }), {
      backend: "firecracker",
      version: "1.16",
      snapshotFormat: "10.0.0",
      architecture: "x86_64",
      cpu: "Model 1",
      cpuTemplate: "None",
      kernel: "6.1.0-9",
      devices: "1 vCPU, 256 MiB, vsock, drive data, drive rootfs:root:read-only, interface eth0, entropy"
    })
    const elsewhere = { ...devices, networkInterfaces: [{ iface_id: "eth0", host_dev_name: "tap9" }] }
    assert.deepStrictEqual(platform({ devices: elsewhere }), platform({ devices }))
    const patched = { ...setup, version: { ...setup.version, patch: 0 } }
    assert.deepStrictEqual(platform({}, patched), platform({}))
  })

  it("differs with each device, the CPU template, the bus, and the host", () => {
    const all = [
      platform(),
      platform({ devices: { balloon: { amount_mib: 0, deflate_on_oom: true } } }),
      platform({ devices: { cpuConfig: { kvm_capabilities: ["!56"] } } }),
      platform({ devices: { machine: { cpu_template: "T2" } } }),
      platform({ devices: { machine: { huge_pages: "2M" } } }),
      platform({ devices: { pmem: [{ id: "p", path_on_host: "/p" }] } }),
      platform({ pci: true }),
      platform({}, { ...setup, cpu: "Model 2" }),
      platform({}, { ...setup, kernel: "6.2" }),
      platform({}, { ...setup, snapshotFormat: "9.0.0" })
    ]
    assert.strictEqual(new Set(all.map((one) => JSON.stringify(one))).size, all.length)
  })
})

describe("a jailed machine", () => {
  const jail: LaunchPlan.Jailing = {
    host: {
      executable: "/bin/firecracker",
      base: "/srv/jailer",
      cgroups: { unified: { mount: "/sys/fs/cgroup", controllers: ["memory", "pids"] }, separate: new Map() }
    },
    uid: 123,
    gid: 100
  }
  const jailed: Setup = { ...setup, jailer: "/bin/jailer" }

  it("is told the same, by the jailer, and finds its files in the jail", () => {
    const made = plan({ setup: jailed, options: { jail, devices } })
    assert.deepStrictEqual(made.argv, made.jail?.argv)
    assert.strictEqual(made.argv[0], "/bin/jailer")
    assert.deepStrictEqual(made.argv.slice(made.argv.indexOf("--")), [
      "--",
      "--api-sock",
      "/api.sock",
      "--log-path",
      "firecracker.log",
      "--level",
      "Info"
    ])
    assert.deepStrictEqual(made.config, plan({ options: { devices } }).config)
    assert.deepStrictEqual(made.jail?.files.map(({ file, place }): unknown => [file.how, place.inside]), [
      ["bind", "/kernel"],
      ["bind", "/initramfs"],
      ["copy", "/drive-data"],
      ["bind", "/drive-rootfs"],
      ["empty", "/firecracker.log"]
    ])
    assert.include(made.description.join("\n"), "jailed in /srv/jailer/firecracker/a/root as uid 123, gid 100")
  })

  it("has the memory of its snapshot as it is, and a copy of the state", () => {
    const made = plan({ setup: jailed, options: { jail }, origin: from("full") })
    assert.deepStrictEqual(made.jail?.files.map(({ file }) => [file.how, file.name]), [
      ["copy", "state"],
      ["bind", "memory"],
      ["empty", "firecracker.log"]
    ])
  })

  it("is no daemon, whose console nobody would see", () => {
    assert.deepStrictEqual(refusal({ setup: jailed, options: { jail: { ...jail, daemonize: true } } }), [
      "jail.daemonize"
    ])
    assert.deepStrictEqual(refusal({ setup: jailed, options: { jail: { ...jail, newPidNamespace: true } } }), [])
  })

  it("has its limits from its spec, and what is wrong with the jail is told with the rest", () => {
    const made = plan({
      setup: jailed,
      options: { jail, devices: { memoryHotplug: { total_size_mib: 1024 } } },
      spec: { vcpus: 2 }
    })
    const mib = 256 + 1024
    assert.include(made.argv, `memory.max=${(mib + Math.ceil(mib / 64) + 128) * 2 ** 20}`)
    assert.deepStrictEqual(
      refusal({
        setup: jailed,
        options: { jail: { ...jail, uid: 0, netns: "netns" } },
        spec: { kernelArgs: ["reboot=t"] }
      }),
      ["kernelArgs", "jail.uid", "jail.netns"]
    )
  })
})

describe("a snapshot that stands on others", () => {
  const whole = (() => {
    const origin = from("full")
    if (origin._tag !== "Restore") throw new Error("it boots")
    return origin.snapshot
  })()
  const diff = (base: Snapshot.Snapshot, name: string): Snapshot.Snapshot => ({
    id: name.repeat(64),
    directory: `/${name}`,
    base,
    manifest: { ...base.manifest, form: "diff", base: base.id }
  })
  const origin = (snapshot: Snapshot.Snapshot, memory?: string): LaunchPlan.Origin => ({
    _tag: "Restore",
    snapshot,
    ...(memory !== undefined && { memory })
  })
  const two = diff(diff(whole, "a"), "b")

  it("has its memory put together, from the first to the last", () => {
    const made = plan({ origin: origin(two, "/own/memory") })
    assert.deepStrictEqual(made.merged, {
      base: "/s/memory",
      layers: [{ memory: "/a/memory", pages: "/a/pages" }, { memory: "/b/memory", pages: "/b/pages" }]
    })
    assert.deepStrictEqual(made.entries.map(({ name, path }) => `${name} ${path}`), [
      "state /b/state",
      "memory /own/memory"
    ])
    assert.include(made.description.join("\n"), "memory put together of 3 snapshots")
    assert.strictEqual(
      plan({ origin: origin(two, "/own/memory"), options: { memoryBackend: "uffd" } }).served?.path,
      "/own/memory"
    )
    assert.isUndefined(plan({ origin: origin(whole) }).merged)
  })

  it("is refused when what it stands on makes no memory", () => {
    const unstarted = { ...whole, manifest: { ...whole.manifest, form: "unstarted" } }
    const strange = { ...whole, manifest: { ...whole.manifest, form: "stream" } }
    const { base: _, ...alone } = two
    for (
      const [snapshot, message] of [
        [diff(unstarted, "a"), /it is made of unstarted, diff, which makes no memory/],
        [diff(strange, "a"), /it is made of stream, diff/],
        [diff(diff(unstarted, "a"), "b"), /it is made of unstarted, diff, diff/],
        [{ ...two, manifest: { ...two.manifest, form: "full" } }, /it is made of full, diff, full/],
        [alone, /it is made of diff, which makes no memory/],
        [{ ...two, manifest: { ...two.manifest, base: "0".repeat(64) } }, /its base 000000000000 is not there/],
        [
          { ...two, manifest: { ...two.manifest, platform: { cpu: "another" } } },
          /its cpu is not told, here it is another/
        ]
      ] as const
    ) assert.match(refusal({ origin: origin(snapshot) })[0] ?? "", message)
  })

  it("has its pages looked after where that is wanted and right", () => {
    const options: LaunchPlan.Options = { diffs: true }
    for (
      const [given, tracks] of [
        [{ options: {} }, false],
        [{ options: { devices: { machine: { track_dirty_pages: true } } } }, true],
        [{ options }, true],
        [{ options, setup: at(7), spec: { memoryMib: 3072 } }, true],
        [{ options, setup: at(14), spec: { memoryMib: 3074 } }, false],
        [{ options, setup: at(15), spec: { memoryMib: 3074 } }, true],
        [{ options, setup: { ...at(14), architecture: "aarch64" }, spec: { memoryMib: 3074 } }, true],
        [{ options: { ...options, devices: { memoryHotplug: { total_size_mib: 1024 } } }, setup: at(14) }, false]
      ] satisfies ReadonlyArray<[Given, boolean]>
    ) {
      assert.strictEqual(plan(given).tracks, tracks)
      assert.strictEqual(plan(given).config.machine?.track_dirty_pages === true, tracks)
      const load = plan({ ...given, origin: origin(whole) }).load
      assert.strictEqual(load?.track_dirty_pages === true, tracks)
    }
  })
})
