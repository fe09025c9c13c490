/** The little that is needed of ELF files: what a program is linked against, and whether QEMU can start a kernel. */
import * as Result from "effect/Result"
import * as ImageError from "../ImageError.ts"

// elf(5). 64-bit little endian is the only kind there is for the architectures we have guests for.
const PT_LOAD = 1
const PT_DYNAMIC = 2
const PT_INTERP = 3
const PT_NOTE = 4
const DT_NULL = 0
const DT_NEEDED = 1
const DT_STRTAB = 5
/** xen/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY: the entry point for PVH boot, the way QEMU starts an uncompressed kernel. */
const PVH_NOTE = 18

interface Segment {
  readonly type: number
  readonly offset: number
  readonly address: number
  readonly size: number
}

const isElf = (bytes: Uint8Array): boolean =>
  bytes.length >= 64 && bytes[0] === 0x7f && bytes[1] === 0x45 && bytes[2] === 0x4c && bytes[3] === 0x46 &&
  bytes[4] === 2 && bytes[5] === 1

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)

const u64 = (view: DataView, offset: number): number => Number(view.getBigUint64(offset, true))

const segments = (view: DataView): ReadonlyArray<Segment> => {
  const start = u64(view, 0x20)
  const size = view.getUint16(0x36, true)
  return Array.from({ length: view.getUint16(0x38, true) }, (_, index) => {
    const at = start + index * size
    return {
      type: view.getUint32(at, true),
      offset: u64(view, at + 8),
      address: u64(view, at + 16),
      size: u64(view, at + 32)
    }
  })
}

const stringAt = (bytes: Uint8Array, offset: number): string =>
  new TextDecoder().decode(bytes.subarray(offset, bytes.indexOf(0, offset)))

/** The shared libraries a program or library names, its loader among them. */
export const needed = (file: string, bytes: Uint8Array): Result.Result<ReadonlyArray<string>, ImageError.ImageError> =>
  Result.try({
    try: () => {
      if (!isElf(bytes)) throw new RangeError("no 64-bit ELF file")
      const view = viewOf(bytes)
      const all = segments(view)
      const interpreter = all.filter(({ type }) => type === PT_INTERP).map(({ offset }) => stringAt(bytes, offset))
      const dynamic = all.filter(({ type }) => type === PT_DYNAMIC).flatMap(({ offset, size }) => {
        const entries = Array.from({ length: Math.floor(size / 16) }, (_, index) => ({
          tag: u64(view, offset + index * 16),
          value: u64(view, offset + index * 16 + 8)
        }))
        const end = entries.findIndex(({ tag }) => tag === DT_NULL)
        return end < 0 ? entries : entries.slice(0, end)
      })
      const table = dynamic.find(({ tag }) => tag === DT_STRTAB)?.value ?? 0
      const load = all.find(({ address, size, type }) => type === PT_LOAD && address <= table && table < address + size)
      const strings = table - (load?.address ?? 0) + (load?.offset ?? 0)
      return [
        ...interpreter,
        ...dynamic.filter(({ tag }) => tag === DT_NEEDED).map(({ value }) => stringAt(bytes, strings + value))
      ]
    },
    catch: (cause) =>
      ImageError.fromReason(
        ImageError.ImageErrorReason.UnexpectedContent({ file, why: "is no readable ELF file" }),
        cause
      )
  })

const align4 = (length: number): number => Math.ceil(length / 4) * 4

/** Has this kernel the entry point by which QEMU can start it uncompressed? */
export const hasPvhEntry = (bytes: Uint8Array): boolean =>
  isElf(bytes) && Result.getOrElse(
    Result.try(() => {
      const view = viewOf(bytes)
      return segments(view).filter(({ type }) => type === PT_NOTE).some(({ offset, size }) => {
        for (let at = offset; at + 12 <= offset + size;) {
          if (view.getUint32(at + 8, true) === PVH_NOTE && stringAt(bytes, at + 12) === "Xen") return true
          at += 12 + align4(view.getUint32(at, true)) + align4(view.getUint32(at + 4, true))
        }
        return false
      })
    }),
    // A header that points out of the file.
    () => false
  )
