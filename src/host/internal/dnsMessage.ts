/**
 * As much of the wire format of DNS (RFC 1035) as a relay of addresses needs. What it does not need it does not read: records
 * of other types are stepped over by their length, so that nothing a stranger has put into them is ever decoded.
 */
import type { Address } from "../Cidr.ts"

export const type = { a: 1, cname: 5, ptr: 12, aaaa: 28, opt: 41 } as const

/** Questions about whole zones, or about all there is (RFC 6895, 3.1). */
export const isMeta = (of: number): boolean => of >= 128 && of <= 255

export const rcode = {
  noError: 0,
  formatError: 1,
  serverFailure: 2,
  nameError: 3,
  notImplemented: 4,
  refused: 5
} as const

const internet = 1
const headerSize = 12
/** What every client takes over UDP (RFC 1035, 4.2.1). */
const plainSize = 512
/** What goes through unfragmented everywhere; nobody is told that we take more, and nobody is given more. */
const largestDatagram = 1232
const longestName = 255
/** A name has 127 labels at most, so a reader that follows more pointers than these is being led in circles. */
const mostPointers = 32

export interface Question {
  /** In lower case, without the last dot. Whatever is no letter, digit, `-` or `_` is `\ddd`, a dot within a label too. */
  readonly name: string
  readonly type: number
  readonly isInternet: boolean
  /** As it came: case included, for clients that look whether it comes back so. */
  readonly wire: Uint8Array
}

export interface Query {
  readonly _tag: "Query"
  readonly id: number
  readonly isRecursionDesired: boolean
  readonly question: Question
  /** How long an answer by UDP may be. */
  readonly size: number
  readonly hasEdns: boolean
}

export type Received =
  | Query
  /** To be told so: it is a query, but none that is answered. */
  | { readonly _tag: "Unanswered"; readonly id: number; readonly opcode: number; readonly rcode: number }
  /** Not to be answered at all. */
  | { readonly _tag: "Malformed" }

const malformed: Received = { _tag: "Malformed" }

const view = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)

const plain = /^[a-z0-9_-]$/

const textOf = (byte: number): string => {
  const char = String.fromCharCode(byte).toLowerCase()
  return plain.test(char) ? char : `\\${String(byte).padStart(3, "0")}`
}

const texts = Array.from({ length: 256 }, (_, byte) => textOf(byte))

/** Reads a name. `next` is the offset behind it, or behind the first pointer in it. */
const readName = (
  bytes: Uint8Array,
  start: number
): { readonly name: string; readonly next: number } | undefined => {
  const labels: Array<string> = []
  let offset = start
  let next: number | undefined
  let length = 1
  for (let jumps = 0; jumps <= mostPointers;) {
    const size = bytes[offset]
    if (size === undefined) return undefined
    if (size === 0) return { name: labels.join("."), next: next ?? offset + 1 }
    if (size < 64) {
      length += size + 1
      if (length > longestName || offset + 1 + size > bytes.length) return undefined
      let label = ""
      for (const byte of bytes.subarray(offset + 1, offset + 1 + size)) label += texts[byte] ?? ""
      labels.push(label)
      offset += size + 1
      continue
    }
    const low = bytes[offset + 1]
    if (size < 192 || low === undefined) return undefined
    const to = ((size & 63) << 8) | low
    // Only ever back (RFC 1035, 4.1.4), and not into the header.
    if (to >= offset || to < headerSize) return undefined
    next ??= offset + 2
    offset = to
    jumps++
  }
  return undefined
}

const readQuestion = (bytes: Uint8Array): { readonly question: Question; readonly next: number } | undefined => {
  const found = readName(bytes, headerSize)
  if (found === undefined || found.next + 4 > bytes.length) return undefined
  const next = found.next + 4
  const data = view(bytes)
  return {
    question: {
      name: found.name,
      type: data.getUint16(found.next),
      isInternet: data.getUint16(found.next + 2) === internet,
      wire: bytes.slice(headerSize, next)
    },
    next
  }
}

interface Resource {
  readonly name: string
  readonly type: number
  /** Of an OPT record: the size of a datagram that its sender takes. */
  readonly class: number
  readonly ttl: number
  readonly start: number
  readonly next: number
}

const readResource = (bytes: Uint8Array, start: number): Resource | undefined => {
  const found = readName(bytes, start)
  if (found === undefined || found.next + 10 > bytes.length) return undefined
  const data = view(bytes)
  const at = found.next
  const next = at + 10 + data.getUint16(at + 8)
  if (next > bytes.length) return undefined
  return {
    name: found.name,
    type: data.getUint16(at),
    class: data.getUint16(at + 2),
    ttl: data.getUint32(at + 4),
    start: at + 10,
    next
  }
}

/** Reads what a client sent. */
export const readQuery = (bytes: Uint8Array): Received => {
  if (bytes.length < headerSize) return malformed
  const data = view(bytes)
  const id = data.getUint16(0)
  const flags = data.getUint16(2)
  // A response. Whoever answers those answers an answer.
  if ((flags & 0x8000) !== 0) return malformed
  const opcode = (flags >> 11) & 15
  if (opcode !== 0) return { _tag: "Unanswered", id, opcode, rcode: rcode.notImplemented }
  const [questions, answers, authorities, additionals] = [4, 6, 8, 10].map((offset) => data.getUint16(offset))
  if (questions !== 1 || answers !== 0 || authorities !== 0 || additionals === undefined || additionals > 2) {
    return { _tag: "Unanswered", id, opcode, rcode: rcode.formatError }
  }
  const asked = readQuestion(bytes)
  if (asked === undefined) return malformed
  let size: number | undefined
  let offset = asked.next
  for (let left = additionals; left > 0; left--) {
    const resource = readResource(bytes, offset)
    if (resource === undefined) return malformed
    if (resource.type === type.opt) size = resource.class
    offset = resource.next
  }
  return {
    _tag: "Query",
    id,
    isRecursionDesired: (flags & 0x0100) !== 0,
    question: asked.question,
    size: Math.min(Math.max(size ?? plainSize, plainSize), largestDatagram),
    hasEdns: size !== undefined
  }
}

const write16 = (bytes: Uint8Array, offset: number, ...values: ReadonlyArray<number>): void => {
  const data = view(bytes)
  values.forEach((value, index) => data.setUint16(offset + 2 * index, value))
}

/** A question of our own, for a name without anything odd in it. */
export const question = (name: string, of: number): Question => {
  const wire = new Uint8Array(name.length + 6)
  let offset = 0
  for (const label of name.split(".")) {
    wire[offset] = label.length
    for (let index = 0; index < label.length; index++) wire[offset + 1 + index] = label.charCodeAt(index)
    offset += label.length + 1
  }
  write16(wire, offset + 1, of, internet)
  return { name, type: of, isInternet: true, wire }
}

/** A query of our own. */
export const query = (id: number, asked: Question): Uint8Array => {
  const bytes = new Uint8Array(headerSize + asked.wire.length)
  write16(bytes, 0, id, 0x0100, 1)
  bytes.set(asked.wire, headerSize)
  return bytes
}

export interface Answer {
  readonly isTruncated: boolean
  readonly rcode: number
  /** Of the end of the chain of aliases. */
  readonly addresses: ReadonlyArray<Address>
  /** The least on the way, in seconds; none when there was no record on it. */
  readonly ttl: number | undefined
}

const sameQuestion = (one: Question, other: Question): boolean =>
  one.name === other.name && one.type === other.type && one.isInternet === other.isInternet

/** Is there anything in a name that no name of a host has? */
export const isOdd = (name: string): boolean => name === "" || name.includes("\\")

/** Is this the answer to that question, asked under that id? Whatever else it is. */
export const isAnswerTo = (bytes: Uint8Array, id: number, to: Question): boolean => {
  if (bytes.length < headerSize) return false
  const data = view(bytes)
  if (data.getUint16(0) !== id || (data.getUint16(2) & 0xf800) !== 0x8000 || data.getUint16(4) !== 1) return false
  const found = readQuestion(bytes)
  return found !== undefined && sameQuestion(found.question, to)
}

const readAddress = (bytes: Uint8Array, { next, start, type: of }: Resource): Address | undefined => {
  const family = of === type.a ? 4 : 6
  if (next - start !== (family === 4 ? 4 : 16)) return undefined
  let value = 0n
  for (const byte of bytes.subarray(start, next)) value = (value << 8n) | BigInt(byte)
  return { family, value }
}

/** More aliases than these, one after the other, are taken for a circle. */
const mostAliases = 16

/**
 * Reads an answer to a question: the addresses at the end of the chain of aliases that begins at its name. `undefined` when it
 * cannot be made sense of; records that are not on the chain were not asked for, and are not looked at.
 */
export const readAnswer = (bytes: Uint8Array, to: Question): Answer | undefined => {
  const asked = readQuestion(bytes)
  if (asked === undefined) return undefined
  const data = view(bytes)
  const flags = data.getUint16(2)
  const isTruncated = (flags & 0x0200) !== 0
  const code = flags & 15
  if (isTruncated) return { isTruncated, rcode: code, addresses: [], ttl: undefined }
  const aliases = new Map<string, { readonly to: string; readonly ttl: number }>()
  const addresses = new Map<string, Array<{ readonly address: Address; readonly ttl: number }>>()
  let offset = asked.next
  for (let left = data.getUint16(6); left > 0; left--) {
    const resource = readResource(bytes, offset)
    if (resource === undefined) return undefined
    offset = resource.next
    // The topmost bit is not to be set (RFC 2181, 8).
    const ttl = resource.ttl > 0x7fffffff ? 0 : resource.ttl
    if (resource.class !== internet) continue
    if (resource.type === type.cname) {
      const target = readName(bytes, resource.start)
      if (target === undefined || target.next > resource.next) return undefined
      aliases.set(resource.name, { to: target.name, ttl })
    } else if (resource.type === to.type) {
      const address = readAddress(bytes, resource)
      if (address === undefined) return undefined
      const known = addresses.get(resource.name)
      if (known === undefined) addresses.set(resource.name, [{ address, ttl }])
      else known.push({ address, ttl })
    }
  }
  let name = to.name
  const ttls: Array<number> = []
  for (let hops = 0; hops <= mostAliases; hops++) {
    const found = addresses.get(name)
    const alias = aliases.get(name)
    if (found !== undefined || alias === undefined) {
      const all = found ?? []
      const times = [...ttls, ...all.map((one) => one.ttl)]
      const ttl = times.length === 0 ? undefined : Math.min(...times)
      return { isTruncated, rcode: code, addresses: all.map(({ address }) => address), ttl }
    }
    ttls.push(alias.ttl)
    name = alias.to
  }
  return undefined
}

/** QR, RA, and what was asked for. */
const responseFlags = (isRecursionDesired: boolean, code: number): number =>
  0x8080 | (isRecursionDesired ? 0x0100 : 0) | code

/** An answer without its question: to what was none. */
export const refuse = (received: Extract<Received, { readonly _tag: "Unanswered" }>): Uint8Array => {
  const bytes = new Uint8Array(headerSize)
  write16(bytes, 0, received.id, responseFlags(false, received.rcode) | (received.opcode << 11))
  return bytes
}

const recordSize = 12

/**
 * The answer to a query. All addresses are those of the very name that was asked for. Those that do not fit into a datagram
 * are left away altogether, with the mark that says to ask by TCP.
 */
export const respond = (
  to: Query,
  reply: { readonly rcode: number; readonly addresses?: ReadonlyArray<Address>; readonly ttl?: number },
  via: "udp" | "tcp"
): Uint8Array => {
  const all = reply.addresses ?? []
  const optSize = to.hasEdns ? 11 : 0
  const fixed = headerSize + to.question.wire.length + optSize
  const dataSize = (address: Address): number => address.family === 4 ? 4 : 16
  const whole = all.reduce((size, address) => size + recordSize + dataSize(address), fixed)
  const isTruncated = via === "udp" && whole > to.size
  const addresses = isTruncated ? [] : all
  const bytes = new Uint8Array(isTruncated ? fixed : whole)
  const flags = responseFlags(to.isRecursionDesired, reply.rcode) | (isTruncated ? 0x0200 : 0)
  write16(bytes, 0, to.id, flags, 1, addresses.length, 0, to.hasEdns ? 1 : 0)
  bytes.set(to.question.wire, headerSize)
  let offset = headerSize + to.question.wire.length
  for (const address of addresses) {
    const size = dataSize(address)
    // The name: a pointer to that of the question.
    write16(bytes, offset, 0xc000 | headerSize, address.family === 4 ? type.a : type.aaaa, internet)
    view(bytes).setUint32(offset + 6, reply.ttl ?? 0)
    write16(bytes, offset + 10, size)
    offset += recordSize
    for (let index = 0; index < size; index++) {
      bytes[offset + index] = Number((address.value >> BigInt(8 * (size - 1 - index))) & 0xffn)
    }
    offset += size
  }
  if (to.hasEdns) write16(bytes, offset + 1, type.opt, largestDatagram)
  return bytes
}
