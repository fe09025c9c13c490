/**
 * Takes the kernel proper out of a bzImage. A guest that is emulated would need a third of a second to unpack it at each
 * boot; here it is done once.
 */
import * as Effect from "effect/Effect"
import * as Elf from "./elf.ts"

// Kernel documentation, arch/x86/boot.rst: the fields of the setup header.
const SETUP_SECTS = 0x1f1
const HEADER_MAGIC = 0x202
const BOOT_PROTOCOL = 0x206
const PAYLOAD_OFFSET = 0x248
const PAYLOAD_LENGTH = 0x24c

/** lz4_Frame_format.md, "Legacy frame": this magic, then blocks that each unpack to 8 MiB but for the last. */
const LZ4_LEGACY = 0x184c2102
const LZ4_BLOCK = 8 * 1024 * 1024

/** A kernel is a tenth of this; a damaged header must not make us ask for more. */
const MAX_SIZE = 512 * 1024 * 1024

/** Unpacks one LZ4 block (lz4_Block_format.md) and gives the position after its output, or -1 where it is malformed. */
const unpackBlock = (source: Uint8Array, target: Uint8Array, start: number): number => {
  let from = 0
  let to = start
  // A length of 15 goes on in the following bytes, up to one that is not 255.
  const length = (nibble: number): number => {
    let total = nibble
    if (nibble === 15) {
      let byte: number
      do {
        byte = source[from++] ?? 0
        total += byte
      } while (byte === 255)
    }
    return total
  }
  while (from < source.length) {
    const token = source[from++] ?? 0
    const literals = length(token >> 4)
    if (from + literals > source.length || to + literals > target.length) return -1
    target.set(source.subarray(from, from + literals), to)
    from += literals
    to += literals
    // The last sequence of a block has no match.
    if (from >= source.length) return to
    const distance = (source[from] ?? 0) | ((source[from + 1] ?? 0) << 8)
    from += 2
    const match = length(token & 15) + 4
    if (distance === 0 || distance > to - start || to + match > target.length) return -1
    // A match may overlap what it writes, and then repeats it.
    if (distance >= match) target.copyWithin(to, to - distance, to - distance + match)
    else for (let index = 0; index < match; index++) target[to + index] = target[to - distance + index] ?? 0
    to += match
  }
  return -1
}

/**
 * The ELF file inside of a bzImage, or nothing where it is packed in another way or could not be started as it is; then
 * the bzImage itself is the kernel to use.
 */
export const extract: (bzImage: Uint8Array) => Effect.Effect<Uint8Array | undefined> = Effect.fnUntraced(
  function*(bzImage) {
    const view = new DataView(bzImage.buffer, bzImage.byteOffset, bzImage.byteLength)
    // "HdrS"; the payload's place is known since protocol 2.08.
    if (view.byteLength < 1024 || view.getUint32(HEADER_MAGIC, true) !== 0x53726448) return undefined
    if (view.getUint16(BOOT_PROTOCOL, true) < 0x208) return undefined
    const start = ((view.getUint8(SETUP_SECTS) || 4) + 1) * 512 + view.getUint32(PAYLOAD_OFFSET, true)
    // The build appends the unpacked size to the payload.
    const end = start + view.getUint32(PAYLOAD_LENGTH, true) - 4
    if (start + 8 > end || end + 4 > view.byteLength || view.getUint32(start, true) !== LZ4_LEGACY) return undefined
    const size = view.getUint32(end, true)
    if (size > MAX_SIZE) return undefined
    const vmlinux = new Uint8Array(size)
    let to = 0
    for (let at = start + 4; at + 4 <= end;) {
      const block = bzImage.subarray(at + 4, Math.min(at + 4 + view.getUint32(at, true), end))
      to = unpackBlock(block, vmlinux.subarray(0, to + LZ4_BLOCK), to)
      if (to < 0) return undefined
      at += 4 + block.length
      // A block takes about 100 ms: let others have the thread in between.
      yield* Effect.yieldNow
    }
    return to === vmlinux.length && Elf.hasPvhEntry(vmlinux) ? vmlinux : undefined
  }
)
