import { concat } from "./fakeFiles.ts"

/**
 * A network card of a fake guest. Addresses have the lengths of their prefixes; those of IPv6 are written out.
 *
 * @internal
 */
export interface FakeCard {
  mac: string
  mtu: number
  addresses: ReadonlyArray<string>
  gateways: ReadonlyArray<string>
}

const headerBytes = 16
const EADDRNOTAVAIL = 99
const ENETUNREACH = 101

const isV6 = (address: string): boolean => address.includes(":")

const textOf = (bytes: Uint8Array): string =>
  bytes.length === 4
    ? bytes.join(".")
    : Array.from({ length: 8 }, (_, at) => (256 * (bytes[2 * at] ?? 0) + (bytes[2 * at + 1] ?? 0)).toString(16)).join(
      ":"
    )

const bytesOf = (address: string): Uint8Array =>
  isV6(address)
    ? Uint8Array.from(address.split(":").flatMap((group) => [parseInt(group, 16) >> 8, parseInt(group, 16)]))
    : Uint8Array.from(address.split("."), Number)

const u32 = (value: number): Uint8Array => Uint8Array.of(value, value >> 8, value >> 16, value >> 24)

const u32At = (bytes: Uint8Array, at: number): number =>
  new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true)

/** All lengths are multiples of four. */
const message = (type: number, ...parts: ReadonlyArray<Uint8Array>): Uint8Array => {
  const body = parts.reduce(concat, new Uint8Array(0))
  return concat(concat(u32(headerBytes + body.length), concat(u32(type), new Uint8Array(8))), body)
}

const attribute = (type: number, value: Uint8Array): Uint8Array =>
  concat(Uint8Array.of(4 + value.length, 0, type, 0), value)

const attributes = (bytes: Uint8Array): ReadonlyMap<number, Uint8Array> => {
  const found = new Map<number, Uint8Array>()
  for (let at = 0; at + 4 <= bytes.length;) {
    const length = (bytes[at] ?? 0) + 256 * (bytes[at + 1] ?? 0)
    found.set(bytes[at + 2] ?? 0, bytes.subarray(at + 4, at + length))
    at += Math.max(4, 4 * Math.ceil(length / 4))
  }
  return found
}

/** The answer of NLMSG_ERROR; 0 is none. */
const errno = (code: number): Uint8Array => message(2, u32(-code), new Uint8Array(headerBytes))

/**
 * What rtnetlink(7) answers to one message. The cards have the indices from 2 on. `change` makes a change, and gives its error.
 *
 * @internal
 */
export const answer = (
  cards: ReadonlyArray<FakeCard>,
  bytes: Uint8Array,
  change: (make: () => void) => number
): Uint8Array => {
  const type = (bytes[4] ?? 0) + 256 * (bytes[5] ?? 0)
  const body = bytes.subarray(headerBytes)
  const family6 = body[0] === 10
  const ofFamily = (address: string) => isV6(address) === family6
  const cardAt = (index: number): FakeCard | undefined => cards[index - 2]
  const changed = (card: FakeCard | undefined, make: (card: FakeCard) => void): Uint8Array =>
    errno(card === undefined ? 19 : change(() => make(card)))
  switch (type) {
    case 16: { // RTM_NEWLINK
      const given = attributes(body.subarray(16))
      const mtu = given.get(4)
      return changed(cardAt(u32At(body, 4)), (card) => {
        if (u32At(body, 8) === 0) {
          card.addresses = card.addresses.filter((one) => !isV6(one))
          card.gateways = []
          return
        }
        card.mac = Array.from(given.get(1) ?? [], (octet) => octet.toString(16).padStart(2, "0")).join(":")
        if (mtu !== undefined) card.mtu = u32At(mtu, 0)
      })
    }
    case 20: { // RTM_NEWADDR
      const address = `${textOf(attributes(body.subarray(8)).get(2) ?? new Uint8Array(4))}/${body[1]}`
      return changed(cardAt(u32At(body, 4)), (card) => {
        card.addresses = [...card.addresses, address]
      })
    }
    case 21: { // RTM_DELADDR
      const card = cardAt(u32At(body, 4))
      const first = card?.addresses.find(ofFamily)
      return first === undefined ? errno(EADDRNOTAVAIL) : changed(card, (one) => {
        one.addresses = one.addresses.filter((address) => address !== first)
      })
    }
    case 22: // RTM_GETADDR
      return cards.flatMap(({ addresses }, nth) =>
        addresses.filter(ofFamily).map((one) => {
          const [host = "", length] = one.split("/")
          const head = Uint8Array.of(body[0] ?? 0, Number(length), 0, 0)
          return message(20, head, u32(nth + 2), attribute(1, bytesOf(host)))
        })
      ).reduce(concat, new Uint8Array(0))
    case 24: { // RTM_NEWROUTE
      const given = attributes(body.subarray(12))
      const gateway = textOf(given.get(5) ?? new Uint8Array(4))
      return changed(cardAt(u32At(given.get(4) ?? u32(0), 0)), (card) => {
        card.gateways = [...card.gateways, gateway]
      })
    }
    default: { // RTM_GETROUTE
      const card = cardAt(u32At(attributes(body.subarray(12)).get(4) ?? u32(0), 0))
      const gateway = card?.gateways.find(ofFamily)
      return gateway === undefined
        ? errno(ENETUNREACH)
        : message(24, body.subarray(0, 12), attribute(5, bytesOf(gateway)))
    }
  }
}
