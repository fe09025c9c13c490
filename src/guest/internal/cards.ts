import * as Netlink from "./netlink.ts"
import * as RenewalCalls from "./renewalCalls.ts"
import type { Room, Told } from "./systemCalls.ts"

/**
 * A network card as it is to be, and the interface that it is.
 *
 * @internal
 */
export interface Card {
  readonly name: string
  readonly index: number
  readonly mac: string
  readonly addresses: ReadonlyArray<string>
  readonly gateways: ReadonlyArray<string>
  readonly nameserver: string | undefined
  readonly mtu: string | undefined
}

/** Steps, and what is not as it is to be once they were made. */
interface Part {
  readonly steps: ReadonlyArray<RenewalCalls.Step>
  readonly unproven: (told: Told) => ReadonlyArray<string>
}

const given = (fields: ReadonlyArray<string | undefined>): ReadonlyArray<string> =>
  fields.filter((field) => field !== undefined && field !== "").map(String)

/** @internal */
export const isCard = (word: string): boolean => /^[0-9a-f]{2}(:[0-9a-f]{2}){5}(,[0-9a-f.:/]*){0,6}$/.test(word)

/** @internal */
export const cardOf = (word: string, name: string, index: number): Card => {
  const [mac = "", address, gateway, address6, gateway6, nameserver, mtu] = word.split(",")
  return {
    name,
    index,
    mac,
    addresses: given([address, address6]),
    gateways: given([gateway, gateway6]),
    nameserver: given([nameserver])[0],
    mtu: given([mtu])[0]
  }
}

const differs = (what: string, is: string, wanted: string): ReadonlyArray<string> =>
  is === wanted ? [] : [`${what}: ${JSON.stringify(is)} instead of ${JSON.stringify(wanted)}`]

const together = (addresses: ReadonlyArray<string>): string => addresses.map(Netlink.spelled).toSorted().join(" ")

const serversOf = (cards: ReadonlyArray<Card>): ReadonlyArray<string> =>
  Array.from(new Set(given(cards.map(({ nameserver }) => nameserver))))

/** Room for an answer that is no error, and for the error of one that is. */
const answer = (): Room => ({ room: 40 })

/**
 * Gives a card what is its own, and takes away what it had. `nth` is its place: the gateways of the first are used.
 *
 * @internal
 */
export const change = ({ addresses, gateways, index, mac, mtu, name }: Card, nth: number): Part => {
  const parts = [
    ["down", Netlink.down(index), answer()],
    ["up", Netlink.up(index, mac, mtu), answer()],
    ...addresses.map((address) => [address, Netlink.withAddress(index, address), answer()] as const),
    ...gateways.map((gateway) =>
      [`via ${gateway}`, Netlink.withGateway(index, gateway, 10 * (nth + 1)), answer()] as const
    )
  ] as const
  const [down, ...others] = parts.map(([, bytes, room]) => [bytes, room] as const)
  // There may be none, and what is left is found.
  const old = [answer(), answer()].map((room) => [Netlink.withoutAddress(index), room] as const)
  return {
    steps: [{
      name: `interface "${name}"`,
      calls: Netlink.exchange(name, [...(down === undefined ? [] : [down]), ...old, ...others])
    }],
    unproven: (told) =>
      parts.flatMap(([what, , room]) => {
        const errno = Netlink.errnoOf(told, room)
        return errno === 0 ? [] : [`interface "${name}": ${what} failed with errno ${errno}`]
      })
  }
}

/** From no network that there is (RFC 5737, RFC 3849). */
const elsewhere = ["192.0.2.1", "2001:db8::1"]

/**
 * Proves the MAC, the MTU and the gateways of a card.
 *
 * @internal
 */
export const prove = ({ gateways, index, mac, mtu, name }: Card): Part => {
  const seen = RenewalCalls.readCard(name)
  const ways = elsewhere.map((address) => [Netlink.wayTo(index, address), { room: 256 }] as const)
  return {
    steps: [...seen.steps, { name: `gateways of ${name}`, calls: Netlink.exchange(`gateways of ${name}`, ways) }],
    unproven: (told) => {
      const is = seen.read(told)
      return [
        ...differs(`mac of ${name}`, is.mac, mac),
        ...differs(`mtu of ${name}`, is.mtu, mtu ?? is.mtu),
        ...differs(
          `gateways of ${name}`,
          together(given(ways.map(([, room]) => Netlink.gatewayOf(told, room)))),
          together(gateways)
        )
      ]
    }
  }
}

/** @internal */
export const changeNameservers = (cards: ReadonlyArray<Card>): RenewalCalls.Step =>
  RenewalCalls.nameservers(serversOf(cards))

/**
 * Proves that the cards have their addresses, and nobody else has any.
 *
 * @internal
 */
export const proveAddresses = (cards: ReadonlyArray<Card>): Part => {
  const servers = RenewalCalls.readNameservers()
  const rooms = [[4, { room: 1024 }], [6, { room: 1536 }]] as const
  const loopback = 1
  return {
    steps: [
      servers.step,
      ...rooms.map(([family, room]) => ({
        name: "addresses",
        calls: Netlink.exchange(`addresses (IPv${family})`, [[Netlink.addresses(family), room]])
      }))
    ],
    unproven: (told) => {
      const all = rooms.flatMap(([, room]) => Netlink.addressesOf(told, room))
        // The kernel makes that one up of the MAC.
        .filter(({ address, index }) => index !== loopback && !address.startsWith("fe80:"))
      const strange = all.filter((one) => !cards.some(({ index }) => index === one.index))
      return [
        ...cards.flatMap(({ addresses, index, name }) =>
          differs(
            `addresses of ${name}`,
            together(all.filter((one) => one.index === index).map(({ address }) => address)),
            together(addresses)
          )
        ),
        ...strange.map(({ address, index }) => `address ${address}: of interface ${index}, which is no card`),
        ...differs("nameservers", together(servers.read(told)), together(serversOf(cards)))
      ]
    }
  }
}
