import { assert, describe, it } from "@effect/vitest"
import { HostChecks, HostFacts } from "effect-microvm-runtime/host"
import * as Schema from "effect/Schema"
import { goodFacts } from "./hostFacts.ts"

const stateDirectory = "/var/lib/effect-microvm"
const evaluate = (facts: Partial<HostFacts.Facts> = {}, wanted: Partial<HostChecks.Wanted> = {}) =>
  HostChecks.evaluate({ ...goodFacts, ...facts }, { stateDirectory, ...wanted })
const failed = (checks: ReadonlyArray<HostChecks.Check>) => checks.filter(({ ok }) => !ok).map(({ name }) => name)

const { state } = goodFacts
const there = (some: object): HostFacts.StateDirectory =>
  state._tag === "There" ? { ...state, ...some } : assert.fail("it is there")
const setting = (name: string, value: string | undefined): Partial<HostFacts.Facts> => ({
  settings: Object.fromEntries(
    Object.entries({ ...goodFacts.settings, [name]: value }).flatMap(([key, one]) =>
      one === undefined ? [] : [[key, one] as const]
    )
  )
})

const routesByAdvice = (device: string, acceptRa: string): Partial<HostFacts.Facts> => ({
  egress: { ipv4: "eth0", ipv6: device },
  settings: {
    ...goodFacts.settings,
    "net/ipv6/conf/all/forwarding": "0",
    [`net/ipv6/conf/${device}/accept_ra`]: acceptRa
  }
})

describe("checks of a host", () => {
  it("all pass on a good one, each with its reason", () => {
    const checks = evaluate({}, { network: true })
    assert.deepStrictEqual(failed(checks), [])
    assert.isTrue(checks.every(({ fix, found, remedy, why }) => found !== "" && why !== "" && fix === remedy))
    assert.strictEqual(new Set(checks.map(({ name }) => name)).size, checks.length)
  })

  const lacking: ReadonlyArray<
    readonly [name: string, facts: Partial<HostFacts.Facts>, remedy: string | undefined, fix?: HostFacts.Fix]
  > = [
    ["ip", { programs: ["nft", "resize2fs", "e2fsck"] }, "apt-get install iproute2"],
    ["nft", { programs: ["ip", "resize2fs", "e2fsck"] }, "apt-get install nftables"],
    ["disk tools", { programs: ["ip", "nft", "resize2fs"] }, "apt-get install e2fsprogs"],
    ["network rights", { capabilities: 0x1ff_ffff_efffn }, "sudo microvm doctor --network nat"],
    ["network rights", { areSettingsReadOnly: true }, "mount -o remount,bind,rw /proc/sys"],
    [
      "network rights",
      { areSettingsReadOnly: true, capabilities: 0x1000n },
      "nothing to type: have it started with one to write to: " +
      "docker run --security-opt systempaths=unconfined, or a unit without ProtectKernelTunables=yes"
    ],
    ["tun", { tun: "Missing" }, "modprobe tun", HostFacts.Fix.LoadModule({ module: "tun" })],
    ["tun", { tun: { denied: "EACCES" } }, "chmod 0666 /dev/net/tun"],
    [
      "IPv4 forwarding",
      setting("net/ipv4/ip_forward", "0"),
      "sysctl -w net.ipv4.ip_forward=1",
      HostFacts.Fix.Forward({ family: "ipv4", egress: "eth0" })
    ],
    [
      "IPv6 forwarding",
      routesByAdvice("eth0", "1"),
      "sysctl -w net.ipv6.conf.eth0.accept_ra=2 && sysctl -w net.ipv6.conf.all.forwarding=1",
      HostFacts.Fix.Forward({ family: "ipv6", egress: "eth0" })
    ],
    [
      "IPv6 forwarding",
      routesByAdvice("eth0.5", "1"),
      "sysctl -w net.ipv6.conf.eth0/5.accept_ra=2 && sysctl -w net.ipv6.conf.all.forwarding=1",
      HostFacts.Fix.Forward({ family: "ipv6", egress: "eth0.5" })
    ],
    // Who takes no advice is not to be told to begin with it.
    [
      "IPv6 forwarding",
      routesByAdvice("eth0", "0"),
      "sysctl -w net.ipv6.conf.all.forwarding=1",
      HostFacts.Fix.Forward({ family: "ipv6", egress: "eth0" })
    ],
    [
      "IPv6 forwarding",
      setting("net/ipv6/conf/all/forwarding", undefined),
      "nothing to type: take a kernel that has it"
    ],
    ["egress", {
      egress: { ipv4: undefined, ipv6: undefined },
      networks: [{ device: "mv1a2b-1", cidr: "172.30.0.2/31" }]
    }, "ip route add default via ROUTER dev DEVICE"],
    [
      "other firewalls",
      { forwardDrops: [{ family: "ip", table: "filter", chain: "FORWARD" }] },
      "nft insert rule ip filter FORWARD iifname '\"mv*\"' accept && " +
      "nft insert rule ip filter FORWARD oifname '\"mv*\"' accept"
    ],
    [
      "other firewalls",
      { forwardDrops: [{ family: "iptables-legacy", table: "filter", chain: "FORWARD" }] },
      "iptables-legacy -I FORWARD -i mv+ -j ACCEPT && iptables-legacy -I FORWARD -o mv+ -j ACCEPT"
    ],
    ["other firewalls", { forwardDrops: "EPERM" }, "sudo microvm doctor --network nat"],
    [
      "bridges",
      setting("net/bridge/bridge-nf-call-iptables", "1"),
      "sysctl -w net.bridge.bridge-nf-call-iptables=0"
    ],
    ["addresses", { addresses: { why: "they are taken", remedy: "export A=B" } }, "export A=B"],
    ["addresses", { addresses: { why: "nobody can tell" } }, "nothing to type: see to what went wrong"],
    [
      "virtualisation",
      { cpu: { virtualization: undefined, isGuest: true } },
      "nothing to type: ask whoever runs that host for nested virtualisation"
    ],
    [
      "virtualisation",
      { cpu: { virtualization: undefined, isGuest: false } },
      "nothing to type: turn it on in the firmware"
    ],
    ["virtualisation", { kvm: "Missing" }, "modprobe kvm_intel", HostFacts.Fix.LoadModule({ module: "kvm_intel" })],
    [
      "virtualisation",
      { kvm: "Missing", cpu: { virtualization: "svm", isGuest: false } },
      "modprobe kvm_amd",
      HostFacts.Fix.LoadModule({ module: "kvm_amd" })
    ],
    ["virtualisation", { kvm: { denied: "EACCES" } }, "sudo usermod -a -G kvm \"$USER\" # and log in again"],
    [
      "limits",
      {
        limits: [
          { what: "memory", by: "v2" },
          { what: "cpu", why: "it is elsewhere", remedy: "move it" },
          { what: "io", why: "it is elsewhere", remedy: "move it" }
        ]
      },
      "move it"
    ],
    [
      "state directory",
      { state: { _tag: "Absent", parent: "/var/lib", isWritable: false, free: 2 ** 40 } },
      `sudo install -d -m 0700 -o 0 ${stateDirectory}`
    ],
    ["state directory", { state: there({ isDirectory: false }) }, `mv ${stateDirectory} ${stateDirectory}.old`],
    ["state directory", { state: there({ owner: 7 }) }, `sudo install -d -m 0700 -o 0 ${stateDirectory}`],
    ["state directory", { state: there({ mode: 0o777 }) }, `chmod 0700 ${stateDirectory}`],
    ["state directory", { state: there({ fault: "EROFS" }) }, "export MICROVM_STATE_DIR=DIRECTORY"],
    ["state file system", { state: there({ fileSystem: "nfs4" }) }, "export MICROVM_STATE_DIR=DIRECTORY"],
    ["state file system", { state: there({ fileSystem: "tmpfs" }) }, "export MICROVM_STATE_DIR=DIRECTORY"],
    ["room for disks", { state: there({ free: 2 ** 29 }) }, "export MICROVM_STATE_DIR=DIRECTORY"],
    [
      "neighbours",
      setting("net/ipv4/neigh/default/gc_thresh3", "100"),
      "sysctl -w net.ipv4.neigh.default.gc_thresh3=328"
    ],
    ["open files", { openFiles: 1024 }, "ulimit -Hn 1856"],
    ["file watches", setting("fs/inotify/max_user_instances", "64"), "sysctl -w fs.inotify.max_user_instances=116"],
    ["processes", setting("kernel/pid_max", "301"), "sysctl -w kernel.pid_max=2600"],
    ["network namespaces", setting("user/max_net_namespaces", "0"), "sysctl -w user.max_net_namespaces=50"],
    ["seccomp", setting("kernel/seccomp/actions_avail", undefined), "nothing to type: take a kernel that has it"],
    ["swap", { swap: 2 ** 30 }, "swapoff -a"],
    ["clock", { clockSource: "hpet" }, "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource"],
    ["userfaultfd", { uid: 1000, state: there({ owner: 1000 }) }, "sysctl -w vm.unprivileged_userfaultfd=1"]
  ]
  for (const [index, [name, facts, remedy, fix]] of lacking.entries()) {
    it(`tell of ${name}, case ${index + 1}`, () => {
      const checks = evaluate(facts, { network: true })
      assert.deepStrictEqual(failed(checks), [name])
      const check = checks.find((one) => one.name === name)
      assert.strictEqual(check?.remedy, remedy)
      assert.deepStrictEqual(check?.fix, fix)
    })
  }

  it("require of the network only what is wanted", () => {
    const required = (network: boolean) =>
      evaluate({}, { network }).filter(({ level }) => level === "required").map(({ name }) => name)
    assert.deepStrictEqual(required(false), ["state directory", "room"])
    assert.deepStrictEqual(required(true), [
      "state directory",
      "room",
      "ip",
      "nft",
      "network rights",
      "tun",
      "IPv4 forwarding",
      "egress",
      "other firewalls",
      "addresses"
    ])
  })

  it("do with a host that is to be made to forward, by who may", () => {
    const off = { ...setting("net/ipv4/ip_forward", "0") }
    const wanted = { network: true, forwarding: "enable" } as const
    const judged = (facts: Parameters<typeof evaluate>[0]) =>
      evaluate(facts, wanted).find(({ name }) => name === "IPv4 forwarding")
    assert.deepInclude(judged(off), { ok: true, found: "off, and switched on for the first machine" })
    assert.isUndefined(judged(off)?.fix)
    assert.deepInclude(judged({ ...off, areSettingsReadOnly: true }), {
      ok: false,
      remedy: "mount -o remount,bind,rw /proc/sys"
    })
    assert.isUndefined(judged({ ...off, areSettingsReadOnly: true })?.fix)
    assert.deepInclude(judged({ ...off, uid: 1000 }), { ok: false, remedy: "sysctl -w net.ipv4.ip_forward=1" })
  })

  it("do with routes to somewhere, and tell where, for what machines may reach can be there", () => {
    const networks = [{ device: "up0", cidr: "fe80::/64" }, { device: "up0", cidr: "10.0.0.0/8" }]
    const checks = evaluate({ egress: { ipv4: undefined, ipv6: undefined }, networks }, { network: true })
    const egress = checks.find(({ name }) => name === "egress")
    assert.deepInclude(egress, { ok: false, level: "advisory", remedy: "ip route add default via ROUTER dev DEVICE" })
    assert.match(egress?.found ?? "", /only routes to 10\.0\.0\.0\/8 by up0$/)
  })

  it("cannot look for routes without ip", () => {
    const checks = evaluate({ egress: { ipv4: undefined, ipv6: undefined }, programs: [] }, { network: true })
    const egress = checks.find(({ name }) => name === "egress")
    assert.deepInclude(egress, {
      found: "it could not be looked at: there is no ip",
      remedy: "apt-get install iproute2"
    })
  })

  it("do not with routes that each interface has, by which no machine gets anywhere", () => {
    const cidrs = ["fe80::/64", "fe80::1", "ff00::/8", "ff02::1", "224.0.0.0/4"]
    const networks = cidrs.map((cidr) => ({ device: "eth0", cidr }))
    const checks = evaluate({ egress: { ipv4: undefined, ipv6: undefined }, networks }, { network: true })
    const egress = checks.find(({ name }) => name === "egress")
    assert.deepInclude(egress, { ok: false, level: "required", found: "this host has no default route" })
  })

  it("do with a state directory that can be made", () => {
    const checks = evaluate({ state: { _tag: "Absent", parent: "/var/lib", isWritable: true, free: 2 ** 40 } })
    assert.deepStrictEqual(failed(checks), [])
    assert.deepStrictEqual(
      checks.find(({ fix }) => fix !== undefined)?.fix,
      HostFacts.Fix.MakeDirectory({ path: stateDirectory })
    )
  })

  it("take no link of a machine for somebody else's network", () => {
    const networks = ["172.30.0.0/16", "10.172.0.0/16", "198.18.0.0/16"].map((cidr) => ({ device: "mv1a2b-1", cidr }))
    assert.deepStrictEqual(failed(evaluate({ networks })), [])
  })

  it("find no room where there is none, for anything", () => {
    assert.deepStrictEqual(failed(evaluate({ state: there({ free: 0 }) })), ["room", "room for disks"])
  })

  it("quote what a shell would take apart", () => {
    const [check] = evaluate({ state: there({ mode: 0o777 }) }, { stateDirectory: "/a b/it's" })
    assert.strictEqual(check?.remedy, "chmod 0700 '/a b/it'\\''s'")
  })

  it.prop("ask for more the more machines there are to be", [
    Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 10_000 })),
    Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 10_000 }))
  ], ([machines, more]) => {
    const few = new Set(failed(evaluate({}, { machines })))
    const many = new Set(failed(evaluate({}, { machines: machines + more })))
    assert.isTrue([...few].every((name) => many.has(name)))
  })
})
