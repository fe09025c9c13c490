/** Packets, byte by byte, as a guest or a stranger would put them on a link. */
import { Cidr } from "effect-microvm-runtime/host"
import * as Result from "effect/Result"

const address = (text: string) => Result.getOrThrow(Cidr.parseAddress(text))

export const toBytes = (text: string): Uint8Array => {
  const { family, value } = address(text)
  return Buffer.from(value.toString(16).padStart(family === 4 ? 8 : 32, "0"), "hex")
}

export const macBytes = (text: string): Uint8Array => Buffer.from(text.replaceAll(":", ""), "hex")

export const sum = (bytes: Uint8Array): number => {
  let total = 0
  for (let at = 0; at < bytes.length; at += 2) total += ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0)
  while (total > 0xffff) total = (total & 0xffff) + (total >>> 16)
  return ~total & 0xffff
}

export const u16 = (value: number): ReadonlyArray<number> => [value >> 8, value & 255]

/** A packet of an IP protocol, as a guest would put it on its link. */
export const packet = (
  { from, mac, protocol, to, toMac, payload, fragment = 0 }: {
    readonly from: string
    readonly to: string
    readonly mac: string
    readonly toMac: string
    readonly protocol: number
    readonly payload: Uint8Array
    readonly fragment?: number
  }
): string => {
  const six = to.includes(":")
  const frame = [...macBytes(toMac), ...macBytes(mac), ...u16(six ? 0x86dd : 0x0800)]
  const header = six
    ? [0x60, 0, 0, 0, ...u16(payload.length), protocol, 64, ...toBytes(from), ...toBytes(to)]
    : [
      0x45,
      0,
      ...u16(20 + payload.length),
      0,
      7,
      ...u16(fragment),
      64,
      protocol,
      0,
      0,
      ...toBytes(from),
      ...toBytes(to)
    ]
  if (!six) header.splice(10, 2, ...u16(sum(Uint8Array.from(header))))
  return Buffer.from([...frame, ...header, ...payload]).toString("hex")
}

export const marker = (): Uint8Array => crypto.getRandomValues(new Uint8Array(16))

export const echoRequest = (six: boolean, from: string, to: string, mark: Uint8Array): Uint8Array => {
  const body = Uint8Array.from([six ? 128 : 8, 0, 0, 0, 0, 7, 0, 1, ...mark])
  const pseudo = six ? [...toBytes(from), ...toBytes(to), 0, 0, 0, body.length, 0, 0, 0, 58] : []
  body.set(u16(sum(Uint8Array.from([...pseudo, ...body]))), 2)
  return body
}

export const datagram = (
  from: Uint8Array,
  to: Uint8Array,
  port: number,
  mark: Uint8Array,
  source = 4000
): Uint8Array => {
  const body = Uint8Array.from([...u16(source), ...u16(port), ...u16(8 + mark.length), 0, 0, ...mark])
  body.set(u16(sum(Uint8Array.from([...from, ...to, 0, 0, 0, body.length, 0, 0, 0, 17, ...body]))), 6)
  return body
}
