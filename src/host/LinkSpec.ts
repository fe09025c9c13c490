/**
 * What is wanted of a network interface for a machine.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import type * as Cidr from "./Cidr.ts"

/**
 * How a machine is connected:
 *
 * - `Routed`: a TAP of its own, which the host routes to. No machine is at the same wire as another one.
 * - `Port`: a TAP that is a port of a bridge of the caller's. The port is isolated: it reaches the bridge itself and ports that
 *   are not isolated, not other machines. The bridge has the addresses, and what passes comes from the bridge to the host's
 *   firewall, not from the TAP.
 * - `Namespace`: a TAP in a network namespace that has nothing else, and a veth pair that leads out. The host's side of that has
 *   the link's name and addresses, so routes and firewall are as for `Routed`; the monitor, which is started inside, has no
 *   other network.
 *
 * @category models
 * @since 0.1.0
 */
export type Topology = Data.TaggedEnum<{
  Routed: {}
  Port: { readonly bridge: string }
  Namespace: {}
}>

/**
 * @category constructors
 * @since 0.1.0
 */
export const Topology = Data.taggedEnum<Topology>()

/**
 * A link to be made.
 *
 * - `name`: of the host's interface, 15 bytes at most.
 * - `owner`: the machine's id and token.
 * - `user`, `group`: numbers of those who may open the TAP (`ip tuntap add … user … group …`). With none, whoever may open
 *   `/dev/net/tun` may open it.
 * - `mtu`: in bytes. Default 1500.
 * - `addresses`: the host's own. Default none.
 * - `topology`: default `Routed`.
 *
 * @category models
 * @since 0.1.0
 */
export interface LinkSpec {
  readonly name: string
  readonly owner: { readonly id: string; readonly token: string }
  readonly user?: number | undefined
  readonly group?: number | undefined
  readonly mtu?: number | undefined
  readonly addresses?: ReadonlyArray<{ readonly address: Cidr.Address; readonly prefix: number }> | undefined
  readonly topology?: Topology | undefined
}
