/**
 * What travels once a visitor and a run know each other: frames of a kind (1 byte), a length (4 bytes, the highest first) and
 * that many bytes.
 */
import * as Signal from "../../lifecycle/Signal.ts"

/** By descriptor: 0 goes to the run, 1 and 2 come from it. */
export type StreamNumber = 0 | 1 | 2

export type Frame =
  | { readonly _tag: "Bytes"; readonly stream: StreamNumber; readonly bytes: Uint8Array }
  /** So many more bytes of the stream may be sent. */
  | { readonly _tag: "Credit"; readonly stream: StreamNumber; readonly bytes: number }
  | { readonly _tag: "EndOfInput" }
  | { readonly _tag: "Signal"; readonly signal: Signal.Signal }
  /** A text of the run. */
  | { readonly _tag: "Message"; readonly text: string }

export const maxPayload = 64 * 1024
export const headerBytes = 5

const kinds = { credit: 3, endOfInput: 4, signal: 5, message: 6 } as const
const encoder = new TextEncoder()
const decoder = new TextDecoder()

const whole = (kind: number, payload: Uint8Array): ReadonlyArray<Uint8Array> => {
  const header = new Uint8Array(headerBytes)
  header[0] = kind
  new DataView(header.buffer).setUint32(1, payload.length)
  return payload.length === 0 ? [header] : [header, payload]
}

/** The bytes of a frame. A payload is not copied. */
export const encode = (one: Frame): ReadonlyArray<Uint8Array> => {
  switch (one._tag) {
    case "Bytes":
      return whole(one.stream, one.bytes)
    case "Credit": {
      const payload = new Uint8Array(5)
      payload[0] = one.stream
      new DataView(payload.buffer).setUint32(1, one.bytes)
      return whole(kinds.credit, payload)
    }
    case "EndOfInput":
      return whole(kinds.endOfInput, new Uint8Array(0))
    case "Signal":
      return whole(kinds.signal, encoder.encode(one.signal))
    case "Message":
      return whole(kinds.message, encoder.encode(one.text))
  }
}

const isStream = (number: number | undefined): number is StreamNumber => number === 0 || number === 1 || number === 2

const parse = (kind: number, payload: Uint8Array): Frame | "broken" => {
  if (isStream(kind)) return { _tag: "Bytes", stream: kind, bytes: payload }
  switch (kind) {
    case kinds.credit: {
      const stream = payload[0]
      if (payload.length !== 5 || !isStream(stream)) return "broken"
      const bytes = new DataView(payload.buffer, payload.byteOffset).getUint32(1)
      return { _tag: "Credit", stream, bytes }
    }
    case kinds.endOfInput:
      return payload.length === 0 ? { _tag: "EndOfInput" } : "broken"
    case kinds.signal: {
      const signal = Signal.fromString(decoder.decode(payload))
      return signal === undefined ? "broken" : { _tag: "Signal", signal }
    }
    case kinds.message:
      return { _tag: "Message", text: decoder.decode(payload) }
    default:
      return "broken"
  }
}

/** The first frame of these bytes, and where it ends; nothing while it is not whole; `broken` for what is none. */
export const decode = (bytes: Uint8Array): { readonly frame: Frame; readonly end: number } | "broken" | undefined => {
  if (bytes.length < headerBytes) return undefined
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(1)
  if (length > maxPayload) return "broken"
  const end = headerBytes + length
  if (bytes.length < end) return undefined
  const frame = parse(bytes[0] ?? 255, bytes.subarray(headerBytes, end))
  return frame === "broken" ? frame : { frame, end }
}
