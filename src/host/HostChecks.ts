/**
 * What a host has for machines, and what it lacks: each check with why it matters, and a command to type that helps. All of it is
 * said of `HostFacts.Facts`; nothing is looked at here.
 *
 * @since 0.1.0
 */
import { type Facts, Fix } from "./HostFacts.ts"
import { LINKS } from "./internal/forwardRules.ts"
import { destination, isReachable } from "./internal/reach.ts"
import { acceptRa, variable, writableSettings } from "./internal/settingNames.ts"

/**
 * One check.
 *
 * @category models
 * @since 0.1.0
 */
export interface Check {
  readonly name: string
  /** `required`: without it, what is wanted cannot be had. */
  readonly level: "required" | "advisory"
  readonly ok: boolean
  readonly found: string
  /** Why it matters. */
  readonly why: string
  /** Where it is not as it should be: what to type, or that there is `nothing to type`, and what else helps. */
  readonly remedy?: string
  /** What can be done about it without harm. */
  readonly fix?: Fix
}

/**
 * What the host is to be good for.
 *
 * @category options
 * @since 0.1.0
 */
export interface Wanted {
  /** Are machines to have a network? Default `false`. */
  readonly network?: boolean | undefined
  /** How many machines at a time. Default 50. */
  readonly machines?: number | undefined
  readonly stateDirectory: string
  /** As in `MachineNetworks.Settings`. Default `check`. */
  readonly forwarding?: "check" | "enable" | undefined
}

type Judgement = Omit<Check, "name" | "level" | "why"> & Partial<Pick<Check, "level">>

const good = (found: string): Judgement => ({ ok: true, found })
const bad = (found: string, remedy: string, fix?: Fix): Judgement => ({
  ok: false,
  found,
  remedy,
  ...(fix === undefined ? {} : { fix })
})

const nothing = (what: string): string => `nothing to type: ${what}`

/** On another file system there may be more room, and what this one lacks. */
const elsewhere = "export MICROVM_STATE_DIR=DIRECTORY"

const MIB = 1024 * 1024
const ROOM = { needed: 64 * MIB, wanted: 1024 * MIB }

const CAP_NET_ADMIN = 12n
const CAP_SYS_ADMIN = 21n

const may = ({ capabilities }: Facts, capability: bigint): boolean => (capabilities >> capability & 1n) === 1n

/** What each machine takes, generously: its monitor, holder and relays. */
const perMachine = { files: 32, processes: 32 }
const ofOurs = { files: 256, processes: 1000, inotify: 16 }

const quoted = (path: string): string => /^[\w./-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`

const sysctl = (setting: string, value: number): string => `sysctl -w ${variable(setting)}=${value}`

const program = ({ programs }: Facts, names: ReadonlyArray<string>, packageName: string): Judgement => {
  const missing = names.filter((name) => !programs.includes(name))
  return missing.length === 0
    ? good(`${names.join(" and ")} ${names.length === 1 ? "is" : "are"} there`)
    : bad(`${missing.join(" and ")} cannot be found`, `apt-get install ${packageName}`)
}

const tun = (facts: Facts): Judgement => {
  if (facts.tun === "Usable") return good("/dev/net/tun can be opened")
  if (facts.tun === "Missing") {
    return bad("there is no /dev/net/tun", "modprobe tun", Fix.LoadModule({ module: "tun" }))
  }
  return bad(`/dev/net/tun cannot be opened: ${facts.tun.denied}`, "chmod 0666 /dev/net/tun")
}

/** Where `/proc/sys` is read-only. */
const unlock = (facts: Facts): string =>
  may(facts, CAP_SYS_ADMIN)
    ? "mount -o remount,bind,rw /proc/sys"
    : nothing(`have it started with one to write to: ${writableSettings}`)

const networkRights = (facts: Facts): Judgement => {
  if (!may(facts, CAP_NET_ADMIN)) {
    return bad("we may not set up networks (CAP_NET_ADMIN)", "sudo microvm doctor --network nat")
  }
  return facts.areSettingsReadOnly
    ? bad("/proc/sys is read-only, and each link has settings there", unlock(facts))
    : good("we may set up networks (CAP_NET_ADMIN)")
}

const forwarding = (facts: Facts, family: "ipv4" | "ipv6", how: Wanted["forwarding"] = "check"): Judgement => {
  const setting = family === "ipv4" ? "net/ipv4/ip_forward" : "net/ipv6/conf/all/forwarding"
  const egress = facts.egress[family]
  if (facts.settings[setting] === "1") return good("on")
  if (facts.settings[setting] === undefined) return bad("this kernel has none", nothing("take a kernel that has it"))
  if (facts.areSettingsReadOnly) return bad("off, and /proc/sys is read-only", unlock(facts))
  // Only root may.
  if (how === "enable" && facts.uid === 0) return good("off, and switched on for the first machine")
  const accepts = egress === undefined ? "" : acceptRa(egress)
  const advice = family === "ipv6" && facts.settings[accepts] === "1" ? `${sysctl(accepts, 2)} && ` : ""
  return bad("off", `${advice}${sysctl(setting, 1)}`, Fix.Forward({ family, egress }))
}

const egress = ({ egress: { ipv4, ipv6 }, networks, programs }: Facts): Judgement => {
  const found = [
    ...(ipv4 === undefined ? [] : [`IPv4 by ${ipv4}`]),
    ...(ipv6 === undefined ? [] : [`IPv6 by ${ipv6}`])
  ]
  if (found.length > 0) return good(found.join(", "))
  if (!programs.includes("ip")) return bad("it could not be looked at: there is no ip", "apt-get install iproute2")
  const lacking = bad("this host has no default route", "ip route add default via ROUTER dev DEVICE")
  const near = networks.filter(({ cidr, device }) => {
    const where = destination(cidr)
    return device !== "lo" && !device.startsWith(LINKS) && where !== undefined && isReachable(where)
  })
  return near.length === 0 ? lacking : {
    ...lacking,
    // It does for machines whose rules name no more than that.
    level: "advisory",
    found: `${lacking.found}, only routes to ${near.map(({ cidr, device }) => `${cidr} by ${device}`).join(", ")}`
  }
}

const forwardDrops = ({ forwardDrops: found }: Facts): Judgement => {
  if (typeof found === "string") return bad(`it could not be looked at: ${found}`, "sudo microvm doctor --network nat")
  const [first] = found
  if (first === undefined) return good("nothing else drops what is forwarded")
  const rules = found.flatMap(({ chain, family, table }) =>
    family.endsWith("tables-legacy")
      ? ["-i", "-o"].map((which) => `${family} -I ${chain} ${which} ${LINKS}+ -j ACCEPT`)
      : ["iifname", "oifname"].map((which) =>
        `nft insert rule ${family} ${table} ${chain} ${which} '"${LINKS}*"' accept`
      )
  )
  const names = found.map(({ chain, family, table }) => `${family} ${table} ${chain}`)
  return bad(`dropped by ${names.join(", ")}, where no rule accepts what is to and from ${LINKS}*`, rules.join(" && "))
}

const bridgeCalls = ({ settings }: Facts): Judgement => {
  const setting = "net/bridge/bridge-nf-call-iptables"
  return settings[setting] === "1"
    ? bad("what passes a bridge goes through the rules for routed packets too", sysctl(setting, 0))
    : good("rules for routed packets leave bridges alone")
}

const pool = ({ addresses }: Facts): Judgement =>
  "why" in addresses
    ? bad(addresses.why, addresses.remedy ?? nothing("see to what went wrong"))
    : good(`${addresses.ipv4} is ${addresses.isKept ? "kept" : "free"} for machines`)

const virtualization = ({ cpu, kvm }: Facts): Judgement => {
  if (cpu.virtualization === undefined) {
    return cpu.isGuest
      ? bad(
        "this host is a virtual machine itself, and its own host keeps virtualisation to itself",
        nothing("ask whoever runs that host for nested virtualisation")
      )
      : bad(
        "the processor shows none: it is turned off in the firmware, or the processor has none",
        nothing("turn it on in the firmware")
      )
  }
  if (kvm === "Usable") return good("/dev/kvm can be opened")
  if (kvm !== "Missing") {
    return bad(`/dev/kvm cannot be opened: ${kvm.denied}`, "sudo usermod -a -G kvm \"$USER\" # and log in again")
  }
  const module = cpu.virtualization === "vmx" ? "kvm_intel" : cpu.virtualization === "svm" ? "kvm_amd" : undefined
  return module === undefined
    ? bad("there is no /dev/kvm", nothing("take a kernel with KVM in it"))
    : bad("there is no /dev/kvm", `modprobe ${module}`, Fix.LoadModule({ module }))
}

const limits = ({ limits: all }: Facts): Judgement => {
  const missing = all.flatMap((one) => "why" in one ? [one] : [])
  const [first] = missing
  if (first === undefined) return good(all.map((one) => one.what).join(", "))
  const remedies = new Set(missing.map(({ remedy }) => remedy))
  return bad(
    `nothing limits ${missing.map(({ what }) => what).join(", ")}: ${
      [...new Set(missing.map(({ why }) => why))].join("; ")
    }`,
    [...remedies].join("; ")
  )
}

/** File systems on which a rename, or a lock, is not what the kernel makes it elsewhere (nfs(5), flock(2)). */
const remote = /^(nfs|cifs|smb|9p|fuse|virtiofs)/

const stateDirectory = ({ state, uid }: Facts, path: string): Judgement => {
  const install = (where: string) => `install -d -m 0700 -o ${uid} ${quoted(where)}`
  if (state._tag === "Absent") {
    return state.isWritable
      ? { ...good(`${path} is made when it is first needed`), fix: Fix.MakeDirectory({ path }) }
      : bad(`${path} is not there, and nothing can be made in ${state.parent}`, `sudo ${install(path)}`)
  }
  if (!state.isDirectory) return bad(`${path} is no directory`, `mv ${quoted(path)} ${quoted(`${path}.old`)}`)
  if (state.owner !== uid) {
    return bad(`${path} belongs to uid ${state.owner}, and we are ${uid}`, `sudo ${install(path)}`)
  }
  if ((state.mode & 0o022) !== 0) {
    return bad(`others may write to ${path} (mode ${state.mode.toString(8)})`, `chmod 0700 ${quoted(path)}`)
  }
  if (state.fault !== undefined) return bad(`${path}: ${state.fault}`, elsewhere)
  return good(`${path}, on ${state.fileSystem}`)
}

const stateFileSystem = ({ state }: Facts): Judgement => {
  if (state._tag === "Absent") return good("none yet")
  const { fileSystem } = state
  if (remote.test(fileSystem)) return bad(`${fileSystem}, where locks are not always kept`, elsewhere)
  return fileSystem === "tmpfs" || fileSystem === "ramfs"
    ? bad(`${fileSystem}, which a reboot empties`, elsewhere)
    : good(fileSystem)
}

const mebibytes = (bytes: number): string => `${Math.floor(bytes / MIB)} MiB`

const room = ({ state: { free } }: Facts, least: number): Judgement =>
  free >= least
    ? good(`${mebibytes(free)} are free`)
    : bad(`${mebibytes(free)} are free, and ${mebibytes(least)} should be`, elsewhere)

const atLeast = ({ settings }: Facts, setting: string, least: number): Judgement => {
  const value = Number(settings[setting] ?? Number.POSITIVE_INFINITY)
  return value >= least
    ? good(String(value))
    : bad(`${value}, and it should be ${least} at least`, sysctl(setting, least))
}

const openFiles = ({ openFiles: limit }: Facts, least: number): Judgement =>
  limit >= least ? good(String(limit)) : bad(`${limit}, and it should be ${least} at least`, `ulimit -Hn ${least}`)

const swap = ({ swap: bytes }: Facts): Judgement => bytes === 0 ? good("none") : bad(mebibytes(bytes), "swapoff -a")

/** Read without a call of the kernel, which is thousands of times as slow on a busy host. */
const fastClocks = new Set(["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"])

const clock = ({ clockSource }: Facts): Judgement =>
  clockSource === undefined || fastClocks.has(clockSource)
    ? good(clockSource ?? "unknown")
    : bad(clockSource, "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource")

const seccomp = ({ settings }: Facts): Judgement =>
  settings["kernel/seccomp/actions_avail"] === undefined ?
    bad("this kernel has none", nothing("take a kernel that has it"))
    : good("this kernel has it")

const userfaultfd = (facts: Facts): Judgement => {
  const setting = "vm/unprivileged_userfaultfd"
  const value = facts.settings[setting]
  if (value === undefined) return bad("this kernel has none", nothing("take a kernel that has it"))
  return value === "1" || facts.uid === 0 ? good("may be used") : bad("only root may use it", sysctl(setting, 1))
}

/**
 * All checks of a host. What is required depends on what is wanted: those of the network are advice when no machine is to have
 * one. A remedy is for root unless it says otherwise; capitals in it are for you to fill in. Each check that fails has one.
 *
 * ```ts import.meta.vitest
 * import { HostChecks, type HostFacts } from "effect-microvm-runtime/host"
 * const facts: HostFacts.Facts = {
 *   uid: 0,
 *   capabilities: 0n,
 *   programs: ["ip", "nft", "cp", "resize2fs", "e2fsck"],
 *   tun: "Missing",
 *   kvm: "Missing",
 *   cpu: { virtualization: undefined, isGuest: false },
 *   settings: {},
 *   areSettingsReadOnly: false,
 *   egress: { ipv4: "eth0", ipv6: undefined },
 *   addresses: { ipv4: "172.30.0.0/16", isKept: false },
 *   networks: [],
 *   forwardDrops: [],
 *   limits: [],
 *   state: { _tag: "Absent", parent: "/", isWritable: true, free: 2 ** 40 },
 *   openFiles: 1_000_000,
 *   swap: 0,
 *   clockSource: "tsc"
 * }
 * const checks = HostChecks.evaluate(facts, { network: true, stateDirectory: "/state" })
 * checks.find(({ name }) => name === "tun")?.remedy // => "modprobe tun"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const evaluate = (
  facts: Facts,
  { forwarding: how, machines = 50, network = false, stateDirectory: path }: Wanted
): ReadonlyArray<Check> => {
  const needed = (isNeeded: boolean) => isNeeded ? "required" as const : "advisory" as const
  const check = (name: string, level: Check["level"], judgement: Judgement, why: string): Check => ({
    name,
    level,
    why,
    ...judgement
  })
  const files = ofOurs.files + perMachine.files * machines
  return [
    check("state directory", "required", stateDirectory(facts, path), "what is known of machines is kept there"),
    check(
      "state file system",
      "advisory",
      stateFileSystem(facts),
      "machines are found again after a crash by what is on it"
    ),
    check(
      "room",
      "required",
      room(facts, ROOM.needed),
      "nothing can be started when nothing can be written down"
    ),
    check(
      "room for disks",
      "advisory",
      room(facts, ROOM.wanted),
      "disks of machines, and what their commands write, take it"
    ),
    check("virtualisation", "advisory", virtualization(facts), "without it, guests run emulated, ten times as slow"),
    check("limits", "advisory", limits(facts), "one machine can take what all others need"),
    check(
      "disk tools",
      "advisory",
      program(facts, ["resize2fs", "e2fsck"], "e2fsprogs"),
      "disks are made larger by them"
    ),
    check("ip", needed(network), program(facts, ["ip"], "iproute2"), "it makes the links of machines"),
    check("nft", needed(network), program(facts, ["nft"], "nftables"), "it makes their firewalls"),
    check(
      "network rights",
      needed(network),
      networkRights(facts),
      "links, addresses and firewalls are the kernel's"
    ),
    check("tun", needed(network), tun(facts), "machines send and receive by it"),
    check(
      "IPv4 forwarding",
      needed(network),
      forwarding(facts, "ipv4", how),
      "machines reach others through this host"
    ),
    check("IPv6 forwarding", "advisory", forwarding(facts, "ipv6", how), "machines reach others through this host"),
    check("egress", needed(network), egress(facts), "what machines send has to leave this host somewhere"),
    check("other firewalls", needed(network), forwardDrops(facts), "what one of them drops, no other can let pass"),
    check(
      "bridges",
      "advisory",
      bridgeCalls(facts),
      "machines on one bridge are judged by rules that are not meant for them"
    ),
    check("addresses", needed(network), pool(facts), "machines have addresses that nobody else here has"),
    check(
      "neighbours",
      "advisory",
      atLeast(facts, "net/ipv4/neigh/default/gc_thresh3", 128 + 4 * machines),
      `${machines} machines are so many neighbours, and those in excess cannot be reached`
    ),
    check("open files", "advisory", openFiles(facts, files), `${machines} machines take so many`),
    check(
      "file watches",
      "advisory",
      atLeast(facts, "fs/inotify/max_user_instances", ofOurs.inotify + 2 * machines),
      `${machines} machines take so many`
    ),
    check(
      "processes",
      "advisory",
      atLeast(facts, "kernel/pid_max", ofOurs.processes + perMachine.processes * machines),
      `${machines} machines take so many`
    ),
    check(
      "network namespaces",
      "advisory",
      atLeast(facts, "user/max_net_namespaces", machines),
      "each machine may have one of its own"
    ),
    check("swap", "advisory", swap(facts), "the memory of guests, secrets in it included, is written to disk"),
    check("clock", "advisory", clock(facts), "guests look at it all the time"),
    check("seccomp", "advisory", seccomp(facts), "monitors lock themselves in with it"),
    check("userfaultfd", "advisory", userfaultfd(facts), "snapshots are restored page by page through it")
  ]
}
