/**
 * Networks for machines on this host.
 *
 * @since 0.1.0
 */
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as NodeFs from "node:fs"
import * as ProcessCapabilities from "../process/ProcessCapabilities.ts"
import * as Addresses from "./Addresses.ts"
import * as DnsRelay from "./DnsRelay.ts"
import * as Firewall from "./Firewall.ts"
import type { HostCommands } from "./HostCommands.ts"
import * as HostError from "./HostError.ts"
import type { KernelSettings } from "./KernelSettings.ts"
import * as Links from "./Links.ts"
import * as MachineNetworks from "./MachineNetworks.ts"
import * as NodeDnsTransport from "./NodeDnsTransport.ts"
import * as NodeHostCommands from "./NodeHostCommands.ts"
import * as Routes from "./Routes.ts"

/** CAP_NET_ADMIN is bit 12 of a process' capabilities (capabilities(7), proc_pid_status(5)). */
const mayAdminister: Effect.Effect<void, HostError.HostError> = Effect.suspend(() => {
  const { effective } = ProcessCapabilities.parse(NodeFs.readFileSync("/proc/self/status", "utf8"))
  return (effective >> 12n & 1n) === 1n ? Effect.void : HostError.fail(
    new HostError.Unavailable({
      what: "a network for a machine",
      why: "making links and rules takes CAP_NET_ADMIN",
      remedy: "run this as root, or give the machine a TAP device that root has made"
    })
  )
})

/**
 * A monitor that is started by who is not root is that user, and has no capability by which it could open a TAP that is somebody
 * else's (tun_not_capable() in drivers/net/tun.c).
 */
const ownUser = (): number | undefined => {
  const uid = process.geteuid?.() ?? 0
  return uid === 0 ? undefined : uid
}

/**
 * The network namespace that we are in (namespaces(7)).
 *
 * @category accessors
 * @since 0.1.0
 */
export const currentNamespace = (): string => NodeFs.readlinkSync("/proc/self/ns/net")

/**
 * The pool of addresses, and how the host is to be.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options extends Addresses.Options, MachineNetworks.Settings {}

/**
 * `layer` over other programs and settings of a host, such as scripted ones, or those of another network namespace.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerNoDeps = (
  options: Options
): Layer.Layer<
  MachineNetworks.MachineNetworks,
  HostError.HostError,
  FileSystem.FileSystem | HostCommands | KernelSettings
> => {
  const firewall = Layer.unwrap(
    Effect.map(
      Addresses.Addresses,
      ({ pool }) => Firewall.layer({ prefix: `mv${pool.id}-`, pool: [pool.ipv4, pool.ipv6] })
    )
  )
  const relay = DnsRelay.layer().pipe(Layer.provide([NodeDnsTransport.layer, SecureRandom.layerWebCrypto]))
  return Layer.effect(
    MachineNetworks.MachineNetworks,
    MachineNetworks.MachineNetworks.use(({ attach, ...service }) =>
      Effect.succeed({
        ...service,
        attach: (entry, wanted) =>
          Effect.andThen(mayAdminister, attach(entry, { ...wanted, user: wanted.user ?? ownUser() }))
      })
    )
  ).pipe(
    Layer.provide(MachineNetworks.layer({ namespace: currentNamespace(), ...options })),
    Layer.provide([firewall, Links.layer, Routes.layer, relay]),
    Layer.provide(Addresses.layer(options))
  )
}

/**
 * `MachineNetworks.layer` with all its parts. All supervisors of a host are to have one `directory`, so that no two machines ever
 * have the same address; they share one table of rules too.
 *
 * Nothing is done to the host before a machine has a network. Then it takes CAP_NET_ADMIN, `ip` and `nft`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options
): Layer.Layer<MachineNetworks.MachineNetworks, HostError.HostError, FileSystem.FileSystem> =>
  Layer.provide(layerNoDeps(options), NodeHostCommands.layer)
