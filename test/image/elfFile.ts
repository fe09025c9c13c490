/** Makes ELF files that are just large enough to be asked what they are linked against. */

const align = (size: number, to: number): number => Math.ceil(size / to) * to

export interface Parts {
  readonly interpreter?: string
  readonly needed?: ReadonlyArray<string>
  /** Adds the note that makes a kernel start without being unpacked first. */
  readonly pvh?: boolean
  /** Pads the file, so that it can be compressed. */
  readonly size?: number
}

const LOAD_ADDRESS = 0x400000

export const elfFile = ({ interpreter, needed = [], pvh = false, size = 0 }: Parts): Uint8Array => {
  const text = new TextEncoder()
  const strings = text.encode(`\0${needed.map((name) => `${name}\0`).join("")}`)
  const loader = text.encode(interpreter === undefined ? "" : `${interpreter}\0`)
  const headers = 64 + 4 * 56
  const stringsAt = align(headers, 16)
  const loaderAt = align(stringsAt + strings.length, 16)
  const dynamicAt = align(loaderAt + loader.length, 16)
  const dynamicSize = (needed.length + 2) * 16
  const noteAt = dynamicAt + dynamicSize
  const noteSize = 12 + 4 + 8
  const bytes = new Uint8Array(Math.max(noteAt + noteSize, size))
  const view = new DataView(bytes.buffer)
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1])
  view.setBigUint64(0x20, 64n, true)
  view.setUint16(0x36, 56, true)
  view.setUint16(0x38, 4, true)
  const segments = [
    [1, 0, LOAD_ADDRESS, bytes.length],
    [interpreter === undefined ? 0 : 3, loaderAt, 0, loader.length],
    [needed.length === 0 ? 0 : 2, dynamicAt, 0, dynamicSize],
    [pvh ? 4 : 0, noteAt, 0, noteSize]
  ] as const
  segments.forEach(([type, offset, address, length], index) => {
    const at = 64 + index * 56
    view.setUint32(at, type, true)
    view.setBigUint64(at + 8, BigInt(offset), true)
    view.setBigUint64(at + 16, BigInt(address), true)
    view.setBigUint64(at + 32, BigInt(length), true)
  })
  bytes.set(strings, stringsAt)
  bytes.set(loader, loaderAt)
  let name = 1
  const entries = [
    [5, LOAD_ADDRESS + stringsAt],
    ...needed.map((library) => {
      const entry = [1, name] as const
      name += library.length + 1
      return entry
    }),
    [0, 0]
  ] as const
  entries.forEach(([tag, value], index) => {
    view.setBigUint64(dynamicAt + index * 16, BigInt(tag), true)
    view.setBigUint64(dynamicAt + index * 16 + 8, BigInt(value), true)
  })
  view.setUint32(noteAt, 4, true)
  view.setUint32(noteAt + 4, 8, true)
  view.setUint32(noteAt + 8, 18, true)
  bytes.set(text.encode("Xen\0"), noteAt + 12)
  return bytes
}
