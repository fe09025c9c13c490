/** The two files of a snapshot: the state with its header, and the guest's memory. */
import { createHash } from "node:crypto"
import * as Fs from "node:fs"
import type { Architecture } from "./fakeFirecrackerBodies.ts"
import { type Pages, pageSize } from "./fakeFirecrackerMemory.ts"
import { ioError } from "./fakeFirecrackerWorld.ts"
import { type Json, json, parse } from "./fakeSerde.ts"

/** Why a file is no snapshot, in the words of the release that reads it. */
export class BadSnapshot extends Error {
  readonly debug: string

  constructor(text: string, debug = text) {
    super(text)
    this.debug = debug
  }
}

/** The first release of each format (its SNAPSHOT_VERSION). It also changes within a minor release, and 7.0.0 was never released. */
const formats: ReadonlyArray<readonly [minor: number, patch: number, format: string]> = [
  [7, 0, "1.0.0"],
  [8, 0, "2.0.0"],
  [9, 0, "3.0.0"],
  [10, 1, "4.0.0"],
  [11, 0, "5.0.0"],
  [12, 0, "6.0.0"],
  [13, 0, "8.0.0"],
  [15, 0, "9.0.0"],
  [16, 0, "10.0.0"],
  [16, 2, "11.0.0"],
  [17, 0, "12.0.0"]
]

/** The format of the snapshots of a release, or of what has led to it: `1.17.0-dev` is before the last change. */
export const formatOf = (version: string): string => {
  const [, minor = 0, patch = 0] = version.split(/[.-]/).map(Number)
  const isBefore = version.endsWith("-dev")
  const known = formats.filter(([inMinor, inPatch]) =>
    inMinor < minor || (inMinor === minor && (isBefore ? inPatch < patch : inPatch <= patch))
  )
  return known.at(-1)?.[2] ?? "1.0.0"
}

const magic = (architecture: Architecture): bigint =>
  architecture === "x86_64" ? 0x0710_1984_8664_0000n : 0x0710_1984_AAAA_0000n

const maxBytes = 10_000_000
const checksum = (bytes: Uint8Array): Buffer => createHash("sha256").update(bytes).digest().subarray(0, 8)

const u64 = (value: bigint): Buffer => {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(value)
  return bytes
}

const fieldOf = (value: Json, name: string): Json | undefined =>
  typeof value === "object" && value !== null && name in value
    ? Object.entries(value).find(([key]) => key === name)?.[1]
    : undefined

/** Up to 1.14 the header lies open; from 1.15 on the whole file is in an encoding that only its own release reads. */
export const encode = (
  options: { readonly minor: number; readonly format: string; readonly architecture: Architecture },
  state: Json
): Buffer => {
  const number = magic(options.architecture)
  const body = options.minor <= 14
    ? Buffer.concat([
      u64(number),
      u64(BigInt(options.format.length)),
      Buffer.from(options.format),
      Buffer.from(JSON.stringify(state))
    ])
    : Buffer.concat([Buffer.alloc(1), u64(number), Buffer.from(JSON.stringify({ version: options.format, state }))])
  return Buffer.concat([body, checksum(body)])
}

interface Header {
  readonly magic: bigint
  readonly format: string
  readonly state: Json
}

const readJson = (bytes: Uint8Array): Json | undefined => {
  try {
    return parse(json, bytes)
  } catch {
    return undefined
  }
}

const undecodable = (minor: number): BadSnapshot =>
  minor >= 15
    ? new BadSnapshot("An error occurred during bitcode serialization: EOF", "Bitcode(Error(\"EOF\"))")
    : minor >= 13
    ? new BadSnapshot(
      "An error occured during bincode decoding: UnexpectedEnd { additional: 8 }",
      "Decode(UnexpectedEnd { additional: 8 })"
    )
    : new BadSnapshot("An error occured with serialization/deserialization: io error: unexpected end of file")

const decode = (minor: number, body: Buffer): Header => {
  if (minor >= 15) {
    const all = readJson(body.subarray(9))
    const format = all === undefined ? undefined : fieldOf(all, "version")
    const state = all === undefined ? undefined : fieldOf(all, "state")
    if (typeof format !== "string" || state === undefined) throw undecodable(minor)
    return { magic: body.readBigUInt64LE(1), format, state }
  }
  if (body.length < 16) throw undecodable(minor)
  const length = Number(body.readBigUInt64LE(8))
  if (length > 32 || body.length < 16 + length) throw undecodable(minor)
  const state = readJson(body.subarray(16 + length))
  if (state === undefined) throw undecodable(minor)
  return { magic: body.readBigUInt64LE(0), format: body.subarray(16, 16 + length).toString("latin1"), state }
}

const read = (path: string, minor: number): Buffer => {
  const { size } = Fs.statSync(path)
  if (size > maxBytes) {
    throw minor >= 15
      ? new BadSnapshot(`Snapshot size exceeds limit of ${maxBytes} bytes`, `SizeLimitExceeded(${maxBytes})`)
      : undecodable(minor)
  }
  Fs.accessSync(path, Fs.constants.R_OK)
  try {
    return Fs.readFileSync(path)
  } catch (error) {
    const { debug, text } = ioError(error)
    throw minor >= 13
      ? new BadSnapshot(`IO Error: ${text}`, `Io(${debug})`)
      : new BadSnapshot("An IO error occurred: 21", "Io(21)")
  }
}

const headerOf = (minor: number, bytes: Buffer): Header => {
  if (bytes.length < 8) {
    throw minor >= 15
      ? new BadSnapshot(
        "IO Error: File too short to contain CRC",
        "Io(Custom { kind: UnexpectedEof, error: \"File too short to contain CRC\" })"
      )
      : minor >= 13
      ? undecodable(minor)
      : new BadSnapshot("Snapshot file is smaller than CRC length.", "InvalidSnapshotSize")
  }
  return decode(minor, bytes.subarray(0, -8))
}

/** The format of a state file. */
export const describe = (path: string, minor: number): string => headerOf(minor, read(path, minor)).format

/** The state in a file, if it is whole and of a format that is read here. Throws errors of the system as they are. */
export const load = (
  path: string,
  options: { readonly minor: number; readonly format: string; readonly architecture: Architecture }
): Json => {
  const { architecture, format, minor } = options
  const bytes = read(path, minor)
  const whole = bytes.length >= 8 && checksum(bytes.subarray(0, -8)).equals(bytes.subarray(-8))
  const broken = () =>
    minor >= 13
      ? new BadSnapshot("CRC64 validation failed", "Crc64")
      : new BadSnapshot(`CRC64 validation failed: ${bytes.subarray(-8).readBigUInt64LE()}`)
  // Up to 1.12 the checksum was looked at first, later it is last.
  if (minor < 13 && bytes.length >= 8 && !whole) throw broken()
  const header = headerOf(minor, bytes)
  if (header.magic !== magic(architecture)) throw new BadSnapshot(`Magic value does not match arch: ${header.magic}`)
  const [major, least = 0] = header.format.split(".").map(Number)
  const [ownMajor, own = 0] = format.split(".").map(Number)
  if (major !== ownMajor || least > own) throw new BadSnapshot(`Invalid data version: ${header.format}`)
  if (!whole) throw broken()
  return header.state
}

/** Writes a file and sees it to the disk. What goes wrong is told with the step that has failed. */
const written = (path: string, flags: number, write: (descriptor: number) => void): void => {
  const step = <A>(name: string, run: () => A): A => {
    try {
      return run()
    } catch (error) {
      throw new BadSnapshot(`Cannot perform ${name} on the %s backing file: ${ioError(error).text}`)
    }
  }
  const descriptor = step("open", () => Fs.openSync(path, flags, 0o666))
  try {
    step("write", () => write(descriptor))
    step("sync_all", () => Fs.fsyncSync(descriptor))
  } finally {
    Fs.closeSync(descriptor)
  }
}

const { O_CREAT, O_RDWR, O_TRUNC, O_WRONLY } = Fs.constants

export const saveState = (path: string, bytes: Uint8Array): void =>
  written(path, O_WRONLY | O_CREAT | O_TRUNC, (descriptor) => Fs.writeSync(descriptor, bytes))

/**
 * As long as the guest's memory, and never shortened to be made longer again. Where there are no pages, what was in the file stays; of a
 * `whole` memory it is zero.
 */
export const saveMemory = (path: string, size: number, pages: Pages, whole: boolean): void =>
  written(path, O_RDWR | O_CREAT, (descriptor) => {
    const before = Fs.fstatSync(descriptor).size
    if (before !== size) Fs.ftruncateSync(descriptor, size)
    const zeros = new Uint8Array(2 ** 20)
    for (let at = 0, end = whole ? Math.min(before, size) : 0; at < end; at += zeros.length) {
      Fs.writeSync(descriptor, zeros, 0, Math.min(zeros.length, size - at), at)
    }
    for (const [page, bytes] of pages) {
      const at = page * pageSize
      if (at < size) Fs.writeSync(descriptor, bytes, 0, Math.min(bytes.length, size - at), at)
    }
  })
