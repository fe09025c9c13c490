/**
 * How the stdin, stdout and stderr of a command in the guest travel over three byte channels ("ports") of their own, with
 * flow control from end to end and nothing kept but a few bytes.
 *
 * ```
 *   microvm.N.stdout           guest ▶ host   "READY " NONCE "\n"  bytes … 0x00 NONCE "\n"
 *   microvm.N.stderr           guest ▶ host   bytes … 0x00 NONCE "\n"
 *   microvm.N.stdin            host ▶ guest   "BEGIN " NONCE "\n"  { length "\n" bytes }…  "0\n"
 * ```
 *
 * A port stays open between commands, so its end of file cannot mark the end of a stream. An output port ends with a trailer
 * instead, which holds a number that is new for each command; input comes in frames, whose lengths are decimal. The guest
 * skips what an earlier command has left unread up to the line that begins its own input. That line is sent once the guest
 * is ready: until then the command before may still have the port open, and what is under way when it is closed is lost.
 *
 * `GuestCommand` is the host's end. The guest's end is in the image: `/sbin/microvm-exec SLOT NONCE -- COMMAND [ARGUMENT…]`.
 *
 * @since 0.1.0
 */

/**
 * The program in the guest.
 *
 * @category constants
 * @since 0.1.0
 */
export const program = "/sbin/microvm-exec"

/**
 * Most bytes of one input frame.
 *
 * @category constants
 * @since 0.1.0
 */
export const maxFrameBytes = 256 * 1024

/**
 * The names of a slot's ports.
 *
 * @category models
 * @since 0.1.0
 */
export interface PortNames {
  readonly stdin: string
  readonly stdout: string
  readonly stderr: string
}

/**
 * The names of the ports of a slot, such as a machine's channels must have.
 *
 * ```ts import.meta.vitest
 * import { GuestStdio } from "effect-microvm-runtime/guest"
 * GuestStdio.portNames(0).stdout // => "microvm.0.stdout"
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const portNames = (slot: number): PortNames => ({
  stdin: `microvm.${slot}.stdin`,
  stdout: `microvm.${slot}.stdout`,
  stderr: `microvm.${slot}.stderr`
})

const encoder = new TextEncoder()

/**
 * What comes first on stdout: all ports are open.
 *
 * @category encoding
 * @since 0.1.0
 */
export const ready = (nonce: string): Uint8Array => encoder.encode(`READY ${nonce}\n`)

/**
 * What ends an output stream.
 *
 * @category encoding
 * @since 0.1.0
 */
export const trailer = (nonce: string): Uint8Array => encoder.encode(`\0${nonce}\n`)

/**
 * What begins the input.
 *
 * @category encoding
 * @since 0.1.0
 */
export const begin = (nonce: string): Uint8Array => encoder.encode(`BEGIN ${nonce}\n`)

/**
 * What ends the input.
 *
 * @category encoding
 * @since 0.1.0
 */
export const endOfInput: Uint8Array = encoder.encode("0\n")

/**
 * A piece of input on the wire: its length and its bytes, which are not copied.
 *
 * @category models
 * @since 0.1.0
 */
export type Frame = readonly [length: Uint8Array, bytes: Uint8Array]

/**
 * The frames of some input; none for no bytes.
 *
 * ```ts import.meta.vitest
 * import { GuestStdio } from "effect-microvm-runtime/guest"
 * const frames = GuestStdio.frames(new TextEncoder().encode("hi"))
 * frames.map((frame) => frame.map((part) => new TextDecoder().decode(part))) // => [["2\n", "hi"]]
 * ```
 *
 * @category encoding
 * @since 0.1.0
 */
export const frames = (chunk: Uint8Array): ReadonlyArray<Frame> => {
  const parts: Array<Frame> = []
  for (let start = 0; start < chunk.length; start += maxFrameBytes) {
    const part = chunk.subarray(start, start + maxFrameBytes)
    parts.push([encoder.encode(`${part.length}\n`), part])
  }
  return parts
}

/**
 * Takes the start of stdout in chunks of any size: gives what comes after `ready`, once that has come. What is before it
 * was left by an earlier command.
 *
 * ```ts import.meta.vitest
 * import { GuestStdio } from "effect-microvm-runtime/guest"
 * const nonce = "0123456789abcdef0123456789abcdef"
 * const push = GuestStdio.makeReadyDecoder(nonce)
 * push(new TextEncoder().encode("left overREADY ")) // => undefined
 * new TextDecoder().decode(push(new TextEncoder().encode(`${nonce}\nhi`))) // => "hi"
 * ```
 *
 * @category decoding
 * @since 0.1.0
 */
export const makeReadyDecoder = (nonce: string): (chunk: Uint8Array) => Uint8Array | undefined => {
  const mark = ready(nonce)
  let kept = new Uint8Array(0)
  return (chunk) => {
    const all = new Uint8Array(kept.length + chunk.length)
    all.set(kept)
    all.set(chunk, kept.length)
    for (let at = all.indexOf(0x52); at !== -1; at = all.indexOf(0x52, at + 1)) {
      if (mark.every((byte, i) => all[at + i] === byte)) return all.subarray(at + mark.length)
    }
    kept = all.slice(-(mark.length - 1))
    return undefined
  }
}

/**
 * Takes an output stream in chunks of any size.
 *
 * @category models
 * @since 0.1.0
 */
export interface TrailerDecoder {
  /** The bytes that are surely the command's. What may begin the trailer, 33 bytes at most, is held back. */
  readonly push: (chunk: Uint8Array) => ReadonlyArray<Uint8Array>
  /** What is held back. It is the command's when the stream ends without a trailer. */
  readonly held: () => Uint8Array
  /** Has the trailer come? */
  readonly ended: () => boolean
  /** How many bytes came after the trailer: none, when all is well. */
  readonly excess: () => number
}

/**
 * Finds the trailer of a stream.
 *
 * ```ts import.meta.vitest
 * import { GuestStdio } from "effect-microvm-runtime/guest"
 * const nonce = "0123456789abcdef0123456789abcdef"
 * const decoder = GuestStdio.makeTrailerDecoder(nonce)
 * const bytes = [...decoder.push(new Uint8Array([104, 105])), ...decoder.push(GuestStdio.trailer(nonce))]
 * bytes.map((part) => new TextDecoder().decode(part)) // => ["hi"]
 * decoder.ended() // => true
 * ```
 *
 * @category decoding
 * @since 0.1.0
 */
export const makeTrailerDecoder = (nonce: string): TrailerDecoder => {
  const mark = trailer(nonce)
  const last = mark.length - 1
  // Horspool's table: how far the window may move when it ends in this byte.
  const skip = new Uint8Array(256).fill(mark.length)
  for (let i = 0; i < last; i++) skip[mark[i] ?? 0] = last - i

  /** How many bytes of the mark came last. They are not kept: we know them. */
  let matched = 0
  let ended = false
  let excess = 0

  const isMarkAt = (chunk: Uint8Array, start: number, from: number, to: number): boolean => {
    for (let i = from; i < to; i++) if (chunk[start + i - from] !== mark[i]) return false
    return true
  }

  const find = (chunk: Uint8Array): number => {
    let end = last
    while (end < chunk.length) {
      const byte = chunk[end] ?? 0
      if (byte === mark[last] && isMarkAt(chunk, end - last, 0, last)) return end - last
      end += skip[byte] ?? 1
    }
    return -1
  }

  const finish = (rest: number): void => {
    ended = true
    matched = 0
    excess += rest
  }

  return {
    push: (chunk) => {
      if (ended) {
        excess += chunk.length
        return []
      }
      const parts: Array<Uint8Array> = []
      if (matched > 0) {
        const more = Math.min(mark.length - matched, chunk.length)
        if (isMarkAt(chunk, 0, matched, matched + more)) {
          matched += more
          if (matched === mark.length) finish(chunk.length - more)
          return parts
        }
        // A false start. No later one hides in it, as the mark's first byte comes once only.
        parts.push(mark.slice(0, matched))
        matched = 0
      }
      const at = find(chunk)
      if (at === -1) {
        const tail = chunk.subarray(-last)
        const start = tail.lastIndexOf(0)
        if (start !== -1 && isMarkAt(tail, start, 0, tail.length - start)) matched = tail.length - start
      } else finish(chunk.length - at - mark.length)
      const end = at === -1 ? chunk.length - matched : at
      if (end > 0) parts.push(chunk.subarray(0, end))
      return parts
    },
    held: () => mark.slice(0, matched),
    ended: () => ended,
    excess: () => excess
  }
}

/**
 * Takes input in chunks of any size.
 *
 * @category models
 * @since 0.1.0
 */
export interface FrameDecoder {
  readonly push: (chunk: Uint8Array) => ReadonlyArray<Uint8Array>
  /** Has the end of the input come? */
  readonly ended: () => boolean
  /** What came with the end but after it: the next command's. */
  readonly excess: () => Uint8Array
}

/**
 * The guest's end of the input: skips what comes before its `BEGIN`, then takes frames apart. A length that is none ends the
 * input.
 *
 * ```ts import.meta.vitest
 * import { GuestStdio } from "effect-microvm-runtime/guest"
 * const nonce = "0123456789abcdef0123456789abcdef"
 * const decoder = GuestStdio.makeFrameDecoder(nonce)
 * const bytes = new TextEncoder().encode(`left over\nBEGIN ${nonce}\n2\nhi0\n`)
 * decoder.push(bytes).map((part) => new TextDecoder().decode(part)) // => ["hi"]
 * ```
 *
 * @category decoding
 * @since 0.1.0
 */
export const makeFrameDecoder = (nonce: string): FrameDecoder => {
  const opening = `BEGIN ${nonce}`
  const keep = opening.length
  const decoder = new TextDecoder()
  let line: Array<number> = []
  let excess = new Uint8Array(0)
  let state: "begin" | "length" | "bytes" | "end" = "begin"
  let left = 0

  const onLine = (text: string): void => {
    if (state === "begin") {
      if (text.endsWith(opening)) state = "length"
      return
    }
    left = /^[0-9]{1,6}$/.test(text) && Number(text) <= maxFrameBytes ? Number(text) : 0
    state = left === 0 ? "end" : "bytes"
  }

  return {
    push: (chunk) => {
      const parts: Array<Uint8Array> = []
      let at = 0
      while (at < chunk.length && state !== "end") {
        if (state === "bytes") {
          const part = chunk.subarray(at, at + left)
          parts.push(part)
          at += part.length
          left -= part.length
          if (left === 0) state = "length"
          continue
        }
        const byte = chunk[at++] ?? 0
        if (byte !== 0x0a) {
          line.push(byte)
          // Only the end of a line matters, so a long one does not grow.
          if (line.length > 2 * keep) line = line.slice(-keep)
          continue
        }
        const text = decoder.decode(new Uint8Array(line))
        line = []
        onLine(text)
      }
      excess = chunk.slice(at)
      return parts
    },
    ended: () => state === "end",
    excess: () => excess
  }
}
