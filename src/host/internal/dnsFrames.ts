/** The messages in a stream of bytes: each has its length before it, in two bytes (RFC 1035, 4.2.2). */

export interface Frames {
  /** The messages that are whole by now, in their order; `undefined` once there is one that is too long. */
  readonly push: (chunk: Uint8Array) => ReadonlyArray<Uint8Array> | undefined
}

export const make = (maxMessage: number): Frames => {
  let length: number | undefined
  let part = new Uint8Array(2)
  let filled = 0
  return {
    push: (chunk) => {
      const messages: Array<Uint8Array> = []
      let offset = 0
      // Once more at the end of the chunk: a message may have no bytes.
      while (offset < chunk.length || (length !== undefined && filled === part.length)) {
        const taken = chunk.subarray(offset, offset + part.length - filled)
        part.set(taken, filled)
        filled += taken.length
        offset += taken.length
        if (filled < part.length) break
        if (length === undefined) {
          length = ((part[0] ?? 0) << 8) | (part[1] ?? 0)
          if (length > maxMessage) return undefined
          part = new Uint8Array(length)
        } else {
          messages.push(part)
          length = undefined
          part = new Uint8Array(2)
        }
        filled = 0
      }
      return messages
    }
  }
}

export const frame = (message: Uint8Array): Uint8Array => {
  const bytes = new Uint8Array(2 + message.length)
  bytes[0] = message.length >> 8
  bytes[1] = message.length & 255
  bytes.set(message, 2)
  return bytes
}
