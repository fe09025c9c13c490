/**
 * A part of a program: bytes; a place that has a name; a jump to such a place (the operation code, then one byte for the
 * distance); an instruction that ends with a distance of four bytes to one, such as `lea`, `call` and a long jump.
 *
 * @internal
 */
export type Part =
  | ReadonlyArray<number>
  | { readonly label: string }
  | { readonly jump: number; readonly to: string }
  | { readonly lea: ReadonlyArray<number>; readonly of: string }

const base = 0x400000
const headerBytes = 64 + 56

/**
 * A number in little-endian order.
 *
 * @internal
 */
export const le = (value: number, bytes: number): ReadonlyArray<number> => {
  const digits: Array<number> = []
  for (let left = value; digits.length < bytes; left = Math.floor(left / 256)) digits.push(left % 256)
  return digits
}

/** @internal */
export const ascii = (value: string): ReadonlyArray<number> => Array.from(new TextEncoder().encode(value))

/** @internal */
export const text = (value: string): ReadonlyArray<number> => ascii(`${value}\0`)

/** @internal */
export const label = (name: string): Part => ({ label: name })

const sizeOf = (part: Part): number => {
  if ("label" in part) return 0
  if ("jump" in part) return 2
  return "lea" in part ? part.lea.length + 4 : part.length
}

// Every start of a program that has this module comes through here, so nothing is made that is not kept.
const link = (parts: ReadonlyArray<Part>): Uint8Array => {
  const labels = new Map<string, number>()
  let size = 0
  for (const part of parts) {
    if ("label" in part) labels.set(part.label, size)
    size += sizeOf(part)
  }
  const code = new Uint8Array(size)
  let at = 0
  const put = (bytes: ReadonlyArray<number>): void => {
    code.set(bytes, at)
    at += bytes.length
  }
  for (const part of parts) {
    if ("label" in part) continue
    if ("jump" in part) put([part.jump, ((labels.get(part.to) ?? NaN) - at - 2 + 256) % 256])
    else if ("lea" in part) {
      put(part.lea)
      put(le((labels.get(part.of) ?? NaN) - at - 4 + 2 ** 32, 4))
    } else put(part)
  }
  return code
}

/** @internal */
export const SYSCALL: Part = [0x0f, 0x05]

/**
 * `mov eax, number`, for a system call. Its result is in eax; rcx and r11 are lost.
 *
 * @internal
 */
export const EAX = (number: number): Part => [0xb8, ...le(number, 4)]

/**
 * An ELF file with one segment, which is the whole file and cannot be written to; it starts right after the headers.
 *
 * @internal
 */
export const elf = (parts: ReadonlyArray<Part>): Uint8Array => {
  const code = link(parts)
  const file = new Uint8Array(headerBytes + code.length)
  // The ELF header: 64 bits, little-endian, an executable for x86-64.
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0, ...le(0, 8)])
  file.set([...le(2, 2), ...le(62, 2), ...le(1, 4), ...le(base + headerBytes, 8), ...le(64, 8), ...le(0, 8)], 16)
  file.set([...le(0, 4), ...le(64, 2), ...le(56, 2), ...le(1, 2), ...le(0, 6)], 48)
  // The program header: PT_LOAD, readable and executable, from offset 0.
  file.set([...le(1, 4), ...le(5, 4), ...le(0, 8), ...le(base, 8), ...le(base, 8)], 64)
  file.set([...le(file.length, 8), ...le(file.length, 8), ...le(0x1000, 8)], 96)
  file.set(code, headerBytes)
  return file
}
