/**
 * How a guest is told of its network cards: by arguments of its kernel when it boots, and by the same words when it was
 * restored.
 *
 * @since 0.1.0
 */
import type { Network } from "./MachineSpec.ts"

/**
 * A card in one word, as our images read it: `MAC,ADDRESS/LENGTH,GATEWAY,ADDRESS6/LENGTH,GATEWAY6,NAMESERVER,MTU`. What is
 * not told is empty, and the empty ones at the end are left out.
 *
 * ```ts import.meta.vitest
 * import { GuestNetwork } from "effect-microvm-runtime/microvm"
 * const network = { tap: "tap0", mac: "02:00:00:00:00:01", address: "10.0.0.1/31", gateway: "10.0.0.0" }
 * GuestNetwork.card(network) // => "02:00:00:00:00:01,10.0.0.1/31,10.0.0.0"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const card = ({ address, address6, gateway, gateway6, mac, mtu, nameserver }: Network): string =>
  [mac, address, gateway, address6, gateway6, nameserver, mtu].map((field) => field ?? "").join(",").replace(/,+$/, "")

const maskOf = (length: number): string =>
  [24, 16, 8, 0].map((shift) => (length === 0 ? 0 : (0xffffffff << (32 - length)) >>> shift) & 0xff).join(".")

const isIpv4 = (address: string): boolean => !address.includes(":")

/** For a kernel that sets up a card by itself: one, with IPv4. */
const standard = ({ address, gateway = "", nameserver }: Network): ReadonlyArray<string> => {
  const [client, length] = address?.split("/") ?? []
  if (client === undefined || length === undefined) return []
  const dns = nameserver !== undefined && isIpv4(nameserver) ? `:${nameserver}` : ""
  return [`ip=${client}::${gateway}:${maskOf(Number(length))}::eth0:off${dns}`]
}

/**
 * The arguments that tell a kernel and its user land of all cards:
 *
 * - `ip=…` for the first card, if it has an IPv4 address: for kernels with `CONFIG_IP_PNP`, which set that card up before
 *   anything else runs (Documentation/admin-guide/nfs/nfsroot.rst). Others pass it over.
 * - `microvm.net=…` for each card that anything is told of: the set-up of our images finds the card by its MAC.
 *
 * ```ts import.meta.vitest
 * import { GuestNetwork } from "effect-microvm-runtime/microvm"
 * const network = { tap: "tap0", mac: "02:00:00:00:00:01", address: "172.30.0.42/24", gateway: "172.30.0.1" }
 * const [ip, own] = GuestNetwork.kernelArgs([network])
 * ip // => "ip=172.30.0.42::172.30.0.1:255.255.255.0::eth0:off"
 * own // => "microvm.net=02:00:00:00:00:01,172.30.0.42/24,172.30.0.1"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const kernelArgs = (networks: ReadonlyArray<Network>): ReadonlyArray<string> => [
  ...networks.slice(0, 1).flatMap(standard),
  ...networks.map(card).filter((word) => word.includes(",")).map((word) => `microvm.net=${word}`)
]
