/**
 * Networks for machines on this host.
 *
 * @since 0.1.0
 */
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Addresses from "./Addresses.ts"
import * as DnsRelay from "./DnsRelay.ts"
import * as Firewall from "./Firewall.ts"
import type { HostError } from "./HostError.ts"
import * as Links from "./Links.ts"
import * as MachineNetworks from "./MachineNetworks.ts"
import * as NodeDnsTransport from "./NodeDnsTransport.ts"
import * as NodeHostCommands from "./NodeHostCommands.ts"
import * as Routes from "./Routes.ts"

/**
 * The pool of addresses, and how the host is to be.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options extends Addresses.Options, MachineNetworks.Settings {}

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
): Layer.Layer<MachineNetworks.MachineNetworks, HostError, FileSystem.FileSystem> => {
  const firewall = Layer.unwrap(
    Addresses.Addresses.use(({ pool }) =>
      Effect.succeed(Firewall.layer({ prefix: `mv${pool.id}-`, pool: [pool.ipv4, pool.ipv6] }))
    )
  )
  const relay = DnsRelay.layer().pipe(Layer.provide([NodeDnsTransport.layer, SecureRandom.layerWebCrypto]))
  return MachineNetworks.layer(options).pipe(
    Layer.provide([firewall, Links.layer, Routes.layer, relay]),
    Layer.provide(Addresses.layer(options)),
    Layer.provide(NodeHostCommands.layer)
  )
}
