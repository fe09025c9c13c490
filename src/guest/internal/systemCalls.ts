/**
 * Bytes that a call fills, which are told. What it does not fill of them is zero.
 *
 * @internal
 */
export interface Room {
  readonly room: number
}

/**
 * An array of addresses of strings, with the null pointer at its end: only for `/sbin/microvm-resident`, whose input lies at a
 * place that is known.
 *
 * @internal
 */
export interface Words {
  readonly words: ReadonlyArray<string>
}

type Place = Uint8Array | Room | Words

/** @internal */
export interface Call {
  /** For messages, such as `open /dev/random`. */
  readonly what: string
  /** That of x86-64. */
  readonly number: number
  /** At most three. A call gets the addresses of bytes and rooms. */
  readonly args: ReadonlyArray<number | Place>
  /** The only result that will do. By default, all but an error. */
  readonly expected?: number
}

/** @internal */
export interface Told {
  /** What the kernel answered; errors are negative, as in errno(3). */
  readonly result: (call: Call) => number
  readonly bytes: (room: Room) => Uint8Array
}

/** @internal */
export interface Batch {
  readonly input: Uint8Array
  /** Bytes of input and output together: `maxBytes` at most. */
  readonly bytes: number
  readonly outputBytes: number
  /** Of an output that has `outputBytes`. */
  readonly read: (output: Uint8Array) => Told
}

/**
 * The most that there is of input and output together.
 *
 * @internal
 */
export const maxBytes = 4096

const headerBytes = 8
const callBytes = 16
const resultBytes = 4

/** Where the input lies. */
const base = 0x10000000

const encoder = new TextEncoder()

const isRoom = (place: Place): place is Room => "room" in place

/** Bytes that lie at an offset. */
const bytesOf = (place: Uint8Array | Words, offset: number): Uint8Array => {
  if (!("words" in place)) return place
  const words = place.words.map((word) => encoder.encode(`${word}\0`))
  const pointers = 8 * (words.length + 1)
  const bytes = new Uint8Array(words.reduce((sum, { length }) => sum + length, pointers))
  let at = pointers
  words.forEach((word, nth) => {
    new DataView(bytes.buffer).setUint32(8 * nth, base + offset + at, true)
    bytes.set(word, at)
    at += word.length
  })
  return bytes
}

const sizeOf = (place: Place): number => 8 * Math.ceil((isRoom(place) ? place.room : bytesOf(place, 0).length) / 8)

// Whatever the program was started with, its first file is descriptor 3.
const closeAll: Call = { what: "close_range", number: 436, args: [3, 0xffffffff, 0] }

/**
 * System calls for `/sbin/microvm-syscalls` and `/sbin/microvm-resident`, which make them one after the other, whatever their
 * results are. Bytes that calls are given are not told. The output begins with the bytes of `mark`, when there are any; the result
 * of `last`, which is made when all is told, is not told.
 *
 * ```
 *   header ▸ calls ▸ bytes that are given ▸ mark ▸ results ▸ rooms
 *                                           └──── the output ────┘
 * ```
 *
 * @internal
 */
export const make = (
  wanted: ReadonlyArray<Call>,
  { last, mark = new Uint8Array(0) }: { readonly mark?: Uint8Array; readonly last?: Call | undefined } = {}
): Batch => {
  const places = wanted.flatMap(({ args }) => args.filter((arg) => typeof arg !== "number"))
  const results: Room = { room: resultBytes * (wanted.length + (last === undefined ? 2 : 3)) }
  const rooms = [results, ...places.filter(isRoom)]
  const outputBytes = rooms.reduce((sum, room) => sum + sizeOf(room), sizeOf(mark))
  const calls = [
    closeAll,
    ...wanted,
    { what: "write", number: 1, args: [1, mark, outputBytes] },
    ...last === undefined ? [] : [last]
  ]

  let at = headerBytes + calls.length * callBytes
  const offsets = new Map<Place, number>()
  for (const place of [...places.filter((one) => !isRoom(one)), mark, ...rooms]) {
    offsets.set(place, at)
    at += sizeOf(place)
  }
  const offsetOf = (place: Place) => offsets.get(place) ?? NaN
  const block = new Uint8Array(at)
  const view = new DataView(block.buffer)
  calls.forEach(({ args, number }, index) => {
    const start = headerBytes + index * callBytes
    view.setUint16(start, number, true)
    args.forEach((arg, nth) => {
      const isPlace = typeof arg !== "number"
      if (isPlace) block[start + 2] = (block[start + 2] ?? 0) | 1 << nth
      view.setUint32(start + 4 + 4 * nth, isPlace ? offsetOf(arg) : arg, true)
    })
  })
  for (const [place, offset] of offsets) if (!isRoom(place)) block.set(bytesOf(place, offset), offset)
  // The program has zeros there anyhow.
  const inputBytes = block.findLastIndex((byte) => byte !== 0) + 1
  view.setUint32(0, inputBytes, true)
  view.setUint16(4, calls.length, true)
  view.setUint16(6, offsetOf(results), true)

  return {
    input: block.subarray(0, inputBytes),
    bytes: at,
    outputBytes,
    read: (output) => ({
      result: (call) =>
        new DataView(output.buffer, output.byteOffset + sizeOf(mark)).getInt32(
          resultBytes * calls.indexOf(call),
          true
        ),
      bytes: (room) => {
        const from = offsetOf(room) - offsetOf(mark)
        return output.subarray(from, from + room.room)
      }
    })
  }
}
