/** The smallest kernel that Firecracker loads: an ELF header, one segment, and code that starts at 1 MiB in 64-bit mode. */
const kernelOf = (code: Buffer): Uint8Array => {
  const [header, segment, at] = [Buffer.alloc(64), Buffer.alloc(56), 0x10_0000n]
  header.write("\x7fELF\x02\x01\x01", "latin1")
  header.writeUInt16LE(2, 16)
  header.writeUInt16LE(62, 18)
  header.writeUInt32LE(1, 20)
  header.writeBigUInt64LE(at, 24)
  header.writeBigUInt64LE(64n, 32)
  header.writeUInt16LE(64, 52)
  header.writeUInt16LE(56, 54)
  header.writeUInt16LE(1, 56)
  segment.writeUInt32LE(1, 0)
  segment.writeUInt32LE(5, 4)
  segment.writeBigUInt64LE(120n, 8)
  segment.writeBigUInt64LE(at, 16)
  segment.writeBigUInt64LE(at, 24)
  segment.writeBigUInt64LE(BigInt(code.length), 32)
  segment.writeBigUInt64LE(BigInt(code.length), 40)
  return Buffer.concat([header, segment, code])
}

/** `hlt; jmp` back to it: it halts for ever. */
export const haltingKernel = (): Uint8Array => kernelOf(Buffer.from([0xf4, 0xeb, 0xfd]))

/** `ud2`, for which there is no handler: the processor gives up (a triple fault). */
export const crashingKernel = (): Uint8Array => kernelOf(Buffer.from([0x0f, 0x0b]))

/**
 * Writes to every fifth page from 4 to 32 MiB, again and again: a number from 0 to 7 that is another each time.
 *
 * ```
 * start: mov ebx, 0x400000
 * loop:  inc eax; and eax, 7; mov [rbx], rax; add rbx, 0x5000; cmp rbx, 0x2000000; jb loop; inc eax; jmp start
 * ```
 */
export const writingKernel = (): Uint8Array =>
  kernelOf(Buffer.from("bb00004000ffc083e0074889034881c3005000004881fb0000000272e8ffc0ebdf", "hex"))
