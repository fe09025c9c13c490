/**
 * What a caller wants, checked before anything is done.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaIssue from "effect/SchemaIssue"
import * as MicroVmError from "./MicroVmError.ts"

/**
 * Names a machine: letters, digits and `-`, 64 characters at most, the first no `-`. It is safe in file names, process
 * names and cgroup names as it is.
 *
 * @category models
 * @since 0.1.0
 */
export const MachineId = Schema.String.check(Schema.isPattern(/^[A-Za-z0-9][A-Za-z0-9-]{0,63}$/))

/**
 * @category models
 * @since 0.1.0
 */
export type MachineId = typeof MachineId.Type

/**
 * Names a byte channel to the guest: letters, digits, `.`, `_` and `-`, 64 characters at most.
 *
 * @category models
 * @since 0.1.0
 */
export const ChannelName = Schema.String.check(Schema.isPattern(/^[A-Za-z0-9._-]{1,64}$/))

const AbsolutePath = Schema.String.check(Schema.isPattern(/^\/[^\0]+$/))
const KernelArg = Schema.String.check(Schema.isPattern(/^[^\s\0]+$/))
const Hostname = Schema.String.check(
  Schema.isPattern(/^(?=.{1,64}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$/)
)

/**
 * Names a network interface of the host: 1 to 15 letters, digits, `.`, `_` and `-` (IFNAMSIZ of netdevice(7)), not `.` or `..`.
 *
 * @category models
 * @since 0.1.0
 */
export const InterfaceName = Schema.String.check(Schema.isPattern(/^(?!\.{1,2}$)[A-Za-z0-9._-]{1,15}$/))

const Octet = "(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
const Ipv4 = `${Octet}(\\.${Octet}){3}`
const Ipv4Address = Schema.String.check(Schema.isPattern(new RegExp(`^${Ipv4}$`)))
const Ipv4Interface = Schema.String.check(Schema.isPattern(new RegExp(`^${Ipv4}/(3[0-2]|[12]?\\d)$`)))

const Group = "[0-9a-f]{1,4}"

/** Up to so many groups. */
const groups = (most: number): string => most === 0 ? "" : `(${Group}(:${Group}){0,${most - 1}})?`

/** Eight groups, or fewer on both sides of a `::` that stands for one zero at least (RFC 4291, section 2.2). */
const Ipv6 = `(${
  [
    `${Group}(:${Group}){7}`,
    `::${groups(7)}`,
    ...[1, 2, 3, 4, 5, 6, 7].map((left) => `${Group}(:${Group}){${left - 1}}::${groups(7 - left)}`)
  ].join("|")
})`
const Ipv6Address = Schema.String.check(Schema.isPattern(new RegExp(`^${Ipv6}$`)))
const Ipv6Interface = Schema.String.check(Schema.isPattern(new RegExp(`^${Ipv6}/(12[0-8]|1[01]\\d|[1-9]?\\d)$`)))

/**
 * A network card of the guest. What of `address` to `mtu` is given is told to the guest.
 *
 * - `tap`: the interface of the host, a TAP device that is there already. Without one, the card leads nowhere, as in a machine
 *   that is only saved, for others to be restored from.
 * - `mac`: lower-case, a unicast address.
 * - `address`, `address6`: the guest's own, with the length of the prefix: `"10.0.0.1/31"`.
 * - `gateway`, `gateway6`: where all else is reached.
 * - `nameserver`: an IPv4 or IPv6 address.
 *
 * IPv4 is in the usual four numbers without leading zeros, which some take for octal; IPv6 in lower case, without IPv4 inside.
 *
 * @category models
 * @since 0.1.0
 */
export const Network = Schema.Struct({
  tap: Schema.optionalKey(InterfaceName),
  mac: Schema.String.check(Schema.isPattern(/^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$/)),
  address: Schema.optionalKey(Ipv4Interface),
  gateway: Schema.optionalKey(Ipv4Address),
  address6: Schema.optionalKey(Ipv6Interface),
  gateway6: Schema.optionalKey(Ipv6Address),
  nameserver: Schema.optionalKey(Schema.Union([Ipv4Address, Ipv6Address])),
  mtu: Schema.optionalKey(Schema.Int.check(Schema.isBetween({ minimum: 68, maximum: 65_535 })))
})

/**
 * @category models
 * @since 0.1.0
 */
export type Network = typeof Network.Type

/**
 * A disk of the guest: a raw image. `name` is the disk's serial number in the guest. `readOnly` is false by default.
 *
 * @category models
 * @since 0.1.0
 */
export const Drive = Schema.Struct({
  name: Schema.String.check(Schema.isPattern(/^[A-Za-z0-9_]{1,20}$/)),
  path: AbsolutePath,
  readOnly: Schema.Boolean.pipe(Schema.withDecodingDefaultKey(Effect.succeed(false)))
})

/**
 * @category models
 * @since 0.1.0
 */
export type Drive = typeof Drive.Type

/**
 * @category models
 * @since 0.1.0
 */
export const MachineSpec = Schema.Struct({
  id: MachineId,
  /** 1 to 32. Default 1. */
  vcpus: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 32 })).pipe(
    Schema.withDecodingDefaultKey(Effect.succeed(1))
  ),
  /** MiB of memory, 96 to 1048576. Default 256. */
  memoryMib: Schema.Int.check(Schema.isBetween({ minimum: 96, maximum: 1 << 20 })).pipe(
    Schema.withDecodingDefaultKey(Effect.succeed(256))
  ),
  /** Absolute path of a kernel image. */
  kernel: AbsolutePath,
  /** Absolute path of an initial RAM file system. */
  initramfs: Schema.optionalKey(AbsolutePath),
  /** Arguments for the kernel, beside those that a backend adds (`console=…`). Default none. */
  kernelArgs: Schema.Array(KernelArg).pipe(Schema.withDecodingDefaultKey(Effect.succeed([]))),
  /** Names of byte channels to the guest. Default none. */
  channels: Schema.Array(ChannelName).check(Schema.isUnique()).pipe(
    Schema.withDecodingDefaultKey(Effect.succeed([]))
  ),
  /** Network cards. Default none. */
  networks: Schema.Array(Network).check(Schema.isMaxLength(8)).pipe(
    Schema.withDecodingDefaultKey(Effect.succeed([]))
  ),
  /** Disks, in the order in which the guest finds them. Default none. */
  drives: Schema.Array(Drive).check(Schema.isMaxLength(16)).pipe(
    Schema.withDecodingDefaultKey(Effect.succeed([]))
  ),
  /** The guest's host name (hostname(7)). Default: the guest's own choice. */
  hostname: Schema.optionalKey(Hostname)
})

/**
 * @category models
 * @since 0.1.0
 */
export type MachineSpec = typeof MachineSpec.Type

/**
 * A spec as it is written down: what has a default may be left out.
 *
 * @category options
 * @since 0.1.0
 */
export type MachineSpecOptions = typeof MachineSpec.Encoded

const remedies: { readonly [K in keyof MachineSpec]-?: string } = {
  id: "1 to 64 letters, digits and \"-\", the first no \"-\"",
  vcpus: "a whole number from 1 to 32",
  memoryMib: `a whole number of MiB from 96 to ${1 << 20}`,
  kernel: "the absolute path of a kernel image",
  initramfs: "the absolute path of an initial RAM file system",
  kernelArgs: "a list of arguments, none of them empty or with white space in it",
  channels: "a list of names, no two alike, each of 1 to 64 letters, digits, \".\", \"_\" and \"-\"",
  networks:
    "8 network cards at most, each with the `tap` (an interface of the host), the `mac` (lower case), and addresses in " +
    "their usual form if the guest is to be told of them",
  drives:
    "16 disks at most, each with a `name` of 1 to 20 letters, digits and \"_\", and the absolute `path` of its image",
  hostname: "a host name of at most 64 letters, digits, \"-\" and \".\""
}

const remedyOf = (field: PropertyKey | undefined): string => {
  const found = Object.entries(remedies).find(([name]) => name === field)
  if (found !== undefined) return `give ${found[1]}`
  return field === undefined
    ? `give an object with ${Object.keys(remedies).join(", ")}`
    : `leave it out; there are ${Object.keys(remedies).join(", ")}`
}

const valueAt = (input: unknown, path: ReadonlyArray<PropertyKey>): unknown =>
  path.reduce<unknown>(
    (value, key) => typeof value === "object" && value !== null ? Reflect.get(value, key) : undefined,
    input
  )

const nameOf = (path: ReadonlyArray<PropertyKey>): string =>
  path.length === 0
    ? "spec"
    : path.map((key, index) => typeof key === "number" ? `[${key}]` : `${index === 0 ? "" : "."}${String(key)}`).join(
      ""
    )

const issuesOf = SchemaIssue.makeFormatterStandardSchemaV1()

const decodeResult = Schema.decodeUnknownResult(MachineSpec, { errors: "all", onExcessProperty: "error" })

const check = (input: unknown): Result.Result<MachineSpec, MicroVmError.MicroVmError> =>
  Result.mapError(decodeResult(input), ({ issue }) => {
    // A value that breaks two rules of its field is one fault: the remedy states all of them.
    const faults = new Map<string, MicroVmError.Fault>()
    for (const { path = [] } of issuesOf(issue).issues) {
      const keys = path.map((segment) => typeof segment === "object" ? segment.key : segment)
      const field = nameOf(keys)
      if (!faults.has(field)) faults.set(field, { field, value: valueAt(input, keys), remedy: remedyOf(keys[0]) })
    }
    return MicroVmError.make(new MicroVmError.InvalidSpec({ faults: [...faults.values()] }))
  })

/**
 * Checks a spec. Fails with `InvalidSpec`, which names each fault with its field, its value and the remedy.
 *
 * ```ts import.meta.vitest
 * import { MachineSpec } from "effect-microvm-runtime/microvm"
 * import * as Result from "effect/Result"
 * const spec = Result.getOrThrow(MachineSpec.make({ id: "web-1", kernel: "/boot/vmlinux" }))
 * spec.memoryMib // => 256
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: MachineSpecOptions): Result.Result<MachineSpec, MicroVmError.MicroVmError> =>
  check(options)

/**
 * Like `make`, for input that nobody has looked at yet.
 *
 * ```ts import.meta.vitest
 * import { MachineSpec } from "effect-microvm-runtime/microvm"
 * import * as Effect from "effect/Effect"
 * const faults = MachineSpec.decode({ id: "-", kernel: "/boot/vmlinux", vcpus: 0 }).pipe(
 *   Effect.as(0),
 *   Effect.catchReason("MicroVmError", "InvalidSpec", (reason) => Effect.succeed(reason.faults.length))
 * )
 * Effect.runSync(faults) // => 2
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const decode = (input: unknown): Effect.Effect<MachineSpec, MicroVmError.MicroVmError> =>
  Effect.suspend(() => Effect.fromResult(check(input)))

/**
 * Checks an id alone.
 *
 * ```ts import.meta.vitest
 * import { MachineSpec } from "effect-microvm-runtime/microvm"
 * import * as Effect from "effect/Effect"
 * const reason = MachineSpec.checkId("../etc").pipe(Effect.flip, Effect.map((error) => error.reason._tag))
 * Effect.runSync(reason) // => "InvalidSpec"
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const checkId = (id: string): Effect.Effect<void, MicroVmError.MicroVmError> =>
  Schema.is(MachineId)(id)
    ? Effect.void
    : MicroVmError.fail(
      new MicroVmError.InvalidSpec({ faults: [{ field: "id", value: id, remedy: `give ${remedies.id}` }] })
    )
