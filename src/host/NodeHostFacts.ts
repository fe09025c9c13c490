/**
 * What this host is like, by `/proc`, `/sys`, ip(8) and nft(8).
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
import * as OwnedFiles from "../process/OwnedFiles.ts"
import * as ProcessCapabilities from "../process/ProcessCapabilities.ts"
import { ProcessHost } from "../process/ProcessHost.ts"
import * as Addresses from "./Addresses.ts"
import * as Cidr from "./Cidr.ts"
import { HostCommands } from "./HostCommands.ts"
import type { HostError } from "./HostError.ts"
import {
  type Access,
  type Facts,
  type Fix,
  HostFacts,
  type Limit,
  programs,
  settings,
  type StateDirectory
} from "./HostFacts.ts"
import * as Layout from "./internal/cgroupLayout.ts"
import * as CommandRunner from "./internal/commandRunner.ts"
import { trying } from "./internal/diskFailure.ts"
import * as ForwardRules from "./internal/forwardRules.ts"
import * as IpJson from "./internal/ipJson.ts"
import { unescape } from "./internal/mountInfo.ts"
import { acceptRa } from "./internal/settingNames.ts"
import { KernelSettings } from "./KernelSettings.ts"

const attempt = <A>(f: () => A): A | undefined => {
  try {
    return f()
  } catch {
    return undefined
  }
}

const codeOf = (cause: unknown): string =>
  cause instanceof Error && "code" in cause && typeof cause.code === "string" ? cause.code : String(cause)

const text = (path: string): string => attempt(() => NodeFs.readFileSync(path, "utf8")) ?? ""

const accessOf = (device: string): Access => {
  try {
    NodeFs.closeSync(NodeFs.openSync(device, "r+"))
    return "Usable"
  } catch (cause) {
    const code = codeOf(cause)
    // The node may be there, and the module that is behind it not.
    return code === "ENOENT" || code === "ENODEV" || code === "ENXIO" ? "Missing" : { denied: code }
  }
}

const isReadOnly = (path: string): boolean => {
  try {
    NodeFs.accessSync(path, NodeFs.constants.W_OK)
    return false
  } catch (cause) {
    return codeOf(cause) === "EROFS"
  }
}

const whyNot = ({ message, reason }: HostError): { readonly why: string; readonly remedy?: string } => {
  const { remedy } = reason._tag === "InvalidArgument"
    ? { remedy: reason.faults.map((fault) => fault.remedy).join("; ") }
    : reason._tag === "Conflict" || reason._tag === "Unavailable"
    ? reason
    : { remedy: undefined }
  const [why = message] = remedy === undefined ? [] : message.split(`: ${remedy}`)
  return { why, ...(remedy === undefined ? {} : { remedy }) }
}

const cpu = (): Facts["cpu"] => {
  // The kernel of other architectures does not tell.
  if (process.arch !== "x64") return { virtualization: "unknown", isGuest: false }
  const flags = /^flags\s*:(.*)$/m.exec(text("/proc/cpuinfo"))?.[1]?.split(" ") ?? []
  const virtualization = flags.includes("vmx") ? "vmx" : flags.includes("svm") ? "svm" : undefined
  return { virtualization, isGuest: flags.includes("hypervisor") }
}

/** The file system that a path is on: of the mounts above it the nearest, and of several there the last (proc_pid_mountinfo(5)). */
const fileSystemOf = (path: string): string => {
  const mounts = text("/proc/self/mountinfo").trim().split("\n").map((line) => {
    const [left = "", right = ""] = line.split(" - ")
    return { at: unescape(left.split(" ")[4] ?? ""), type: right.split(" ")[0] ?? "unknown" }
  })
  return mounts.reduce(
    (best, one) =>
      (one.at === "/" || path === one.at || path.startsWith(`${one.at}/`)) && one.at.length >= best.at.length
        ? one
        : best,
    { at: "", type: "unknown" }
  ).type
}

const freeAt = (directory: string): number => {
  const found = attempt(() => NodeFs.statfsSync(directory))
  return found === undefined ? 0 : found.bavail * found.bsize
}

/** Does what a journal does. */
const tryWriting = (directory: string): string | undefined => {
  const file = NodePath.join(directory, `.doctor-${process.pid}`)
  try {
    const fd = NodeFs.openSync(file, "wx", 0o600)
    try {
      NodeFs.writeSync(fd, "doctor")
      NodeFs.fsyncSync(fd)
    } finally {
      NodeFs.closeSync(fd)
    }
    NodeFs.renameSync(file, `${file}-renamed`)
    NodeFs.rmSync(`${file}-renamed`)
    return undefined
  } catch (cause) {
    attempt(() => NodeFs.rmSync(file, { force: true }))
    return `nothing can be written to it (${codeOf(cause)})`
  }
}

const stateDirectory = (path: string): StateDirectory => {
  const stats = attempt(() => NodeFs.statSync(path))
  if (stats === undefined) {
    let parent = NodePath.dirname(path)
    while (parent !== NodePath.dirname(parent) && attempt(() => NodeFs.statSync(parent)) === undefined) {
      parent = NodePath.dirname(parent)
    }
    const isWritable = attempt(() => {
      NodeFs.accessSync(parent, NodeFs.constants.W_OK | NodeFs.constants.X_OK)
      return NodeFs.statSync(parent).isDirectory()
    })
    return { _tag: "Absent", parent, isWritable: isWritable === true, free: freeAt(parent) }
  }
  return {
    _tag: "There",
    isDirectory: stats.isDirectory(),
    owner: stats.uid,
    mode: stats.mode & 0o7777,
    fileSystem: fileSystemOf(attempt(() => NodeFs.realpathSync(path)) ?? path),
    fault: stats.isDirectory() ? tryWriting(path) : undefined,
    free: freeAt(path)
  }
}

/** `Max open files            1024                 524288               files` */
const openFiles = (): number => {
  const hard = /^Max open files\s+\S+\s+(\S+)/m.exec(text("/proc/self/limits"))?.[1]
  return hard === undefined || hard === "unlimited" ? Number.MAX_SAFE_INTEGER : Number(hard)
}

const swap = (): number =>
  text("/proc/swaps").trim().split("\n").slice(1)
    .reduce((sum, line) => sum + 1024 * Number(line.split(/\s+/)[2] ?? 0), 0)

const legacy = [
  ["iptables-legacy", "/proc/net/ip_tables_names"],
  ["ip6tables-legacy", "/proc/net/ip6_tables_names"]
] as const

const make = Effect.gen(function*() {
  const host = yield* ProcessHost
  const commands = yield* HostCommands
  const kernel = yield* KernelSettings
  const fs = yield* FileSystem.FileSystem
  const { run } = CommandRunner.make(host, [])

  const has = Effect.fnUntraced(function*(command: string) {
    const { faults } = yield* host.locate({ ...CommandRunner.programOf(yield* host.env, command), cwd: undefined })
    return faults.length === 0
  })

  const routes = (family: "-4" | "-6") =>
    IpJson.list(IpJson.Route, [family, "route", "show"], "looking at routes").pipe(
      Effect.provideService(HostCommands, commands),
      Effect.orElseSucceed((): ReadonlyArray<typeof IpJson.Route.Type> => [])
    )

  // Without the elements of sets, of which there may be very many.
  const nft = (...args: ReadonlyArray<string>) =>
    commands.run({ program: "nft", args: ["-j", "-t", "list", ...args], what: "looking at firewalls" }).pipe(
      Effect.flatMap(ForwardRules.decode)
    )

  const forwardDrops = nft("chains").pipe(
    Effect.flatMap((listing) =>
      Effect.filter(
        ForwardRules.forwarding(listing),
        (chain) =>
          nft("table", chain.family, chain.table).pipe(
            // Without its rules, there is the chain's policy still.
            Effect.orElseSucceed((): ForwardRules.Listing => ({ nftables: [] })),
            Effect.map((rules) => ForwardRules.drops(rules, chain))
          ),
        { concurrency: 4 }
      )
    ),
    Effect.map((chains) => chains.map(({ family, name, table }) => ({ family, table, chain: name }))),
    Effect.catch((error) => Effect.succeed(error.message.split("\n")[0] ?? ""))
  )

  /** The old iptables is not in the lists of nft(8). Its program would make the table by looking at it. */
  const legacyDrops = ([family, tables]: readonly [string, string]) =>
    !text(tables).split("\n").includes("filter") ? Effect.succeed([]) : run({
      program: family,
      args: ["-S", "FORWARD"],
      input: undefined,
      what: "looking at firewalls",
      within: "10 seconds"
    }).pipe(
      Effect.map((rules) => ForwardRules.legacyDrops(rules) ? [{ family, table: "filter", chain: "FORWARD" }] : []),
      Effect.orElseSucceed(() => [])
    )

  const limits = Layout.detect(undefined).pipe(
    Effect.map(({ places }) =>
      Layout.controllers.map((what): Limit => {
        const place = places[what]
        return place.by === "none" ? { what, why: place.why, remedy: place.remedy } : { what, by: place.by }
      })
    ),
    Effect.provideService(FileSystem.FileSystem, fs),
    Effect.provideService(ProcessHost, host)
  )

  const known = (names: ReadonlyArray<string>) =>
    Effect.forEach(names, (setting) =>
      kernel.read(setting).pipe(
        Effect.orElseSucceed(() => Option.none<string>()),
        Effect.map((value) => Option.toArray(value).map((one): readonly [string, string] => [setting, one]))
      ))

  const pool = (options: Addresses.Options) =>
    Effect.match(Addresses.inspect(options), {
      onSuccess: ({ ipv4, isKept }) => ({ ipv4: Cidr.format(ipv4), isKept }),
      onFailure: (error) => whyNot(error)
    }).pipe(Effect.provideService(HostCommands, commands), Effect.provideService(FileSystem.FileSystem, fs))

  const observe = Effect.fn("HostFacts.observe")(
    function*({ addresses, stateDirectory: path }: Parameters<HostFacts["Service"]["observe"]>[0]) {
      const found = yield* Effect.all({
        drops: forwardDrops,
        legacy: Effect.forEach(legacy, legacyDrops),
        routes4: routes("-4"),
        routes6: routes("-6"),
        limits,
        addresses: pool(addresses ?? { directory: `${path}/addresses` }),
        programs: Effect.filter(programs, has),
        settings: known(settings)
      }, { concurrency: "unbounded" })
      const [ipv4, ipv6] = [found.routes4, found.routes6].map((all) =>
        all.find(({ dev, dst }) => dst === "default" && dev !== "lo")?.dev
      )
      const advice = yield* known(ipv6 === undefined ? [] : [acceptRa(ipv6)])
      return {
        uid: process.geteuid?.() ?? 0,
        capabilities: ProcessCapabilities.parse(text("/proc/self/status")).effective,
        programs: found.programs,
        tun: accessOf("/dev/net/tun"),
        kvm: accessOf("/dev/kvm"),
        cpu: cpu(),
        settings: Object.fromEntries([...found.settings, ...advice].flat()),
        areSettingsReadOnly: isReadOnly("/proc/sys/net/ipv4/ip_forward"),
        egress: { ipv4, ipv6 },
        addresses: found.addresses,
        networks: [...found.routes4, ...found.routes6].flatMap(({ dev, dst }) =>
          dst === undefined || dst === "default" || dev === undefined ? [] : [{ device: dev, cidr: dst }]
        ),
        forwardDrops: typeof found.drops === "string" ? found.drops : [...found.drops, ...found.legacy.flat()],
        limits: found.limits,
        state: stateDirectory(path),
        openFiles: openFiles(),
        swap: swap(),
        clockSource: text("/sys/devices/system/clocksource/clocksource0/current_clocksource").trim() || undefined
      } satisfies Facts
    }
  )

  const apply = Effect.fn("HostFacts.apply")(function*(fix: Fix) {
    switch (fix._tag) {
      case "MakeDirectory": {
        const made = Effect.andThen(
          OwnedFiles.ensureDirectory(NodePath.dirname(fix.path)),
          fs.makeDirectory(fix.path, { mode: 0o700 })
        ).pipe(Effect.provideService(FileSystem.FileSystem, fs))
        yield* trying("making it", fix.path)(made)
        return `made ${fix.path}, for this user alone`
      }
      case "LoadModule": {
        const what = `loading the module ${fix.module}`
        yield* run({ program: "modprobe", args: [fix.module], input: undefined, what, within: "10 seconds" })
        return `loaded the module ${fix.module}`
      }
      case "Forward": {
        if (fix.family === "ipv4") {
          yield* kernel.write(["net/ipv4/ip_forward"], "1")
          return "turned IPv4 forwarding on, until the next boot"
        }
        const advice = acceptRa(fix.egress ?? "all")
        const keeps = fix.egress !== undefined && Option.contains("1")(yield* kernel.read(advice))
        if (keeps) yield* kernel.write([advice], "2")
        yield* kernel.write(["net/ipv6/conf/all/forwarding"], "1")
        return `turned IPv6 forwarding on, until the next boot${
          keeps ? `, and had ${fix.egress ?? ""} go on taking advice of routers` : ""
        }`
      }
    }
  })

  return HostFacts.of({ observe, apply })
})

/**
 * The host as this process sees it. Without rights, less is seen: who may not list firewalls does not know what they drop.
 *
 * ```ts import.meta.vitest
 * import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
 * import { HostFacts, NodeHostCommands, NodeHostFacts } from "effect-microvm-runtime/host"
 * import { NodeProcessHost } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * const program = HostFacts.HostFacts.use((host) => host.observe({ stateDirectory: "/nonexistent/state" }))
 * const layer = NodeHostFacts.layer.pipe(
 *   Layer.provide([NodeFileSystem.layer, NodeHostCommands.layer, NodeProcessHost.layer])
 * )
 * const { state } = await Effect.runPromise(program.pipe(Effect.provide(layer)))
 * state._tag // => "Absent"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<
  HostFacts,
  never,
  FileSystem.FileSystem | HostCommands | KernelSettings | ProcessHost
> = Layer.effect(
  HostFacts,
  make
)
