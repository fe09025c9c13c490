import type { Call, Room, Told } from "./systemCalls.ts"

/** All in little-endian order, as is all that goes to an x86-64 guest. Source: netlink(7), rtnetlink(7). */
const NLMSG_ERROR = 2
const RTM_NEWLINK = 16
const RTM_NEWADDR = 20
const RTM_DELADDR = 21
const RTM_GETADDR = 22
const RTM_NEWROUTE = 24
const RTM_GETROUTE = 26
const REQUEST = 0x1
const ACK = 0x4
const DUMP = 0x300
const CREATE = 0x400
const REPLACE = 0x100
const IFF_UP = 1
const IFA_F_NODAD = 2
const RTNH_F_ONLINK = 4
const headerBytes = 16

type Attribute = readonly [type: number, value: Uint8Array]

const aligned = (bytes: number): number => 4 * Math.ceil(bytes / 4)

const u32 = (value: number): Uint8Array => Uint8Array.of(value, value >> 8, value >> 16, value >> 24)

const message = (type: number, flags: number, body: ReadonlyArray<number>, attributes: ReadonlyArray<Attribute>) => {
  const size = attributes.reduce((sum, [, { length }]) => sum + aligned(4 + length), headerBytes + body.length)
  const bytes = new Uint8Array(size)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, size, true)
  view.setUint16(4, type, true)
  view.setUint16(6, REQUEST | flags, true)
  bytes.set(body, headerBytes)
  let at = headerBytes + body.length
  for (const [kind, value] of attributes) {
    view.setUint16(at, 4 + value.length, true)
    view.setUint16(at + 2, kind, true)
    bytes.set(value, at + 4)
    at += aligned(4 + value.length)
  }
  return bytes
}

const isV6 = (address: string): boolean => address.includes(":")

/** AF_INET6, AF_INET. */
const familyOf = (address: string): number => isV6(address) ? 10 : 2

/** An IPv6 address has many spellings. What is none stays as it is. */
const canonical = (address: string): string => {
  const url = `http://[${address}]`
  return isV6(address) && URL.canParse(url) ? new URL(url).hostname.slice(1, -1) : address
}

const bytesOf = (address: string): Uint8Array => {
  if (!isV6(address)) return Uint8Array.from(address.split("."), Number)
  const [before = [], after = []] = canonical(address).split("::").map((half) =>
    half.split(":").filter((one) => one !== "")
  )
  const zeros = Array.from({ length: 8 - before.length - after.length }, () => "0")
  return Uint8Array.from(
    [...before, ...zeros, ...after].flatMap((group) => [parseInt(group, 16) >> 8, parseInt(group, 16)])
  )
}

const textOf = (bytes: Uint8Array): string =>
  bytes.length === 4 ? bytes.join(".") : canonical(
    Array.from({ length: 8 }, (_, at) => (((bytes[2 * at] ?? 0) << 8) | (bytes[2 * at + 1] ?? 0)).toString(16)).join(
      ":"
    )
  )

/** An address and the length of its prefix, in the one spelling by which two can be compared. */
export const spelled = (address: string): string => {
  const [host = "", ...length] = address.split("/")
  return [canonical(host), ...length].join("/")
}

const linkBody = (index: number, flags: number) => [0, 0, 0, 0, ...u32(index), ...u32(flags), ...u32(IFF_UP)]

/** @internal */
export const down = (index: number): Uint8Array => message(RTM_NEWLINK, ACK, linkBody(index, 0), [])

/** @internal */
export const up = (index: number, mac: string, mtu: string | undefined): Uint8Array =>
  message(RTM_NEWLINK, ACK, linkBody(index, IFF_UP), [
    [1, Uint8Array.from(mac.split(":"), (octet) => parseInt(octet, 16))],
    ...(mtu === undefined ? [] : [[4, u32(Number(mtu))] as const])
  ])

/** Takes away the first IPv4 address that there is. IPv6 addresses go when the link goes down. */
export const withoutAddress = (index: number): Uint8Array => message(RTM_DELADDR, ACK, [2, 0, 0, 0, ...u32(index)], [])

/** Used at once, without a search for others that have it. */
export const withAddress = (index: number, address: string): Uint8Array => {
  const [host = "", length] = address.split("/")
  const bytes = bytesOf(host)
  const flags = isV6(host) ? IFA_F_NODAD : 0
  return message(RTM_NEWADDR, ACK | CREATE | REPLACE, [familyOf(host), Number(length), flags, 0, ...u32(index)], [
    [1, bytes],
    [2, bytes]
  ])
}

/** The default route, by way of a gateway at this link, wherever its address is from. */
export const withGateway = (index: number, gateway: string, metric: number): Uint8Array =>
  message(RTM_NEWROUTE, ACK | CREATE | REPLACE, [familyOf(gateway), 0, 0, 0, 254, 3, 0, 1, ...u32(RTNH_F_ONLINK)], [
    [5, bytesOf(gateway)],
    [4, u32(index)],
    [6, u32(metric)]
  ])

/** Which way leads to an address from this link? */
export const wayTo = (index: number, address: string): Uint8Array => {
  const bytes = bytesOf(address)
  return message(RTM_GETROUTE, 0, [familyOf(address), 8 * bytes.length, 0, 0, 0, 0, 0, 0, ...u32(0)], [
    [1, bytes],
    [4, u32(index)]
  ])
}

/** All addresses of a family. */
export const addresses = (family: 4 | 6): Uint8Array =>
  message(RTM_GETADDR, DUMP, [family === 6 ? 10 : 2, 0, 0, 0, ...u32(0)], [])

/** Each message, and what is answered to it goes into its room. */
export const exchange = (what: string, parts: ReadonlyArray<readonly [Uint8Array, Room]>): ReadonlyArray<Call> => [
  // AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE
  { what: `socket for ${what}`, number: 41, args: [16, 3 | 0x800, 0], expected: 3 },
  ...parts.flatMap(([bytes, room]): ReadonlyArray<Call> => [
    { what: `write of ${what}`, number: 1, args: [3, bytes, bytes.length], expected: bytes.length },
    { what: `read of ${what}`, number: 0, args: [3, room, room.room] }
  ]),
  { what: "close", number: 3, args: [3] }
]

interface Message {
  readonly type: number
  readonly body: Uint8Array
}

const messagesOf = (bytes: Uint8Array): ReadonlyArray<Message> => {
  if (bytes.length < headerBytes) return []
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const size = view.getUint32(0, true)
  if (size < headerBytes || size > bytes.length) return []
  const first = { type: view.getUint16(4, true), body: bytes.subarray(headerBytes, size) }
  return [first, ...messagesOf(bytes.subarray(aligned(size)))]
}

const attributeOf = (bytes: Uint8Array, type: number): Uint8Array | undefined => {
  const length = (bytes[0] ?? 0) + 256 * (bytes[1] ?? 0)
  if (length < 4 || length > bytes.length) return undefined
  return (bytes[2] ?? 0) + 256 * (bytes[3] ?? 0) === type
    ? bytes.subarray(4, length)
    : attributeOf(bytes.subarray(aligned(length)), type)
}

/** The error that was answered; 0 for none. What it was answered to follows, and may not be all there. */
export const errnoOf = ({ bytes }: Told, room: Room): number => {
  const answer = bytes(room)
  const view = new DataView(answer.buffer, answer.byteOffset, answer.length)
  return view.getUint16(4, true) === NLMSG_ERROR ? -view.getInt32(headerBytes, true) : NaN
}

/** The gateway on the way that was asked for. */
export const gatewayOf = ({ bytes }: Told, room: Room): string | undefined => {
  const found = messagesOf(bytes(room)).find(({ type }) => type === RTM_NEWROUTE)
  const gateway = found && attributeOf(found.body.subarray(12), 5)
  return gateway && textOf(gateway)
}

/** The addresses that were asked for, by the index of their interfaces. */
export const addressesOf = (
  { bytes }: Told,
  room: Room
): ReadonlyArray<{ readonly index: number; readonly address: string }> =>
  messagesOf(bytes(room)).flatMap(({ body, type }) => {
    if (type !== RTM_NEWADDR || body.length < 8) return []
    const address = attributeOf(body.subarray(8), 2) ?? attributeOf(body.subarray(8), 1)
    const index = new DataView(body.buffer, body.byteOffset).getUint32(4, true)
    return address === undefined ? [] : [{ index, address: `${textOf(address)}/${body[1]}` }]
  })
