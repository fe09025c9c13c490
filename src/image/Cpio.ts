/**
 * Writes cpio archives in the "newc" (SVR4 without checksum) format, the one the kernel unpacks as its initial root file
 * system. Pure: the same entries in any order give the same bytes, on any machine and for any user.
 *
 * Format: kernel documentation, `driver-api/early-userspace/buffer-format.rst`, and cpio(5).
 *
 * @since 0.1.0
 */
import * as Result from "effect/Result"
import * as ImageError from "./ImageError.ts"

/**
 * One member of an archive. `path` is relative, with `/` between its parts (`bin/sh`).
 *
 * - `Directory`: permissions default to `0o755`.
 * - `File`: permissions default to `0o644`; at most 4 GiB - 1, the format's limit.
 * - `Symlink`: `target` is stored as it is.
 * - `CharDevice`: a device node needs no root here, as it is only made when the kernel unpacks the archive.
 *
 * @category models
 * @since 0.1.0
 */
export type Entry =
  | { readonly _tag: "Directory"; readonly path: string; readonly permissions?: number }
  | { readonly _tag: "File"; readonly path: string; readonly content: Uint8Array; readonly permissions?: number }
  | { readonly _tag: "Symlink"; readonly path: string; readonly target: string }
  | {
    readonly _tag: "CharDevice"
    readonly path: string
    readonly major: number
    readonly minor: number
    readonly permissions?: number
  }

/**
 * A directory. Parents that are not listed are made by {@link encode} itself, so this is for empty ones and for
 * permissions other than `0o755`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const directory = (path: string, permissions = 0o755): Entry => ({ _tag: "Directory", path, permissions })

/**
 * A regular file; a string is stored as UTF-8.
 *
 * @category constructors
 * @since 0.1.0
 */
export const file = (path: string, content: Uint8Array | string, permissions = 0o644): Entry => ({
  _tag: "File",
  path,
  content: typeof content === "string" ? utf8.encode(content) : content,
  permissions
})

/**
 * A symbolic link at `path` that points to `target`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const symlink = (path: string, target: string): Entry => ({ _tag: "Symlink", path, target })

/**
 * A character device node, such as `dev/console` (5, 1), which the kernel opens for its first process.
 *
 * @category constructors
 * @since 0.1.0
 */
export const charDevice = (path: string, major: number, minor: number, permissions = 0o600): Entry => ({
  _tag: "CharDevice",
  path,
  major,
  minor,
  permissions
})

const utf8 = new TextEncoder()

// The kernel gives up on a name that does not fit in PATH_MAX, its NUL included (init/initramfs.c).
const PATH_MAX = 4096

const TYPE_BITS = { Directory: 0o040000, File: 0o100000, Symlink: 0o120000, CharDevice: 0o020000 } as const

const TRAILER = "TRAILER!!!"

// GNU cpio pads the whole archive to its block size; readers accept any, some expect this one.
const BLOCK = 512

const pathFault = (path: string): string | undefined => {
  if (path === "") return "is empty"
  if (path.includes("\0")) return "contains a NUL character"
  if (path.startsWith("/")) return "is absolute; leave out the leading slash"
  if (path.split("/").some((part) => part === "" || part === "." || part === "..")) {
    return "has an empty, \".\" or \"..\" part"
  }
  if (path === TRAILER) return "is the name that ends an archive"
  return utf8.encode(path).length + 1 > PATH_MAX ? `is longer than ${PATH_MAX - 1} bytes` : undefined
}

const isUint = (value: number, max: number): boolean => Number.isInteger(value) && value >= 0 && value <= max

const entryFault = (entry: Entry): string | undefined => {
  if (entry._tag === "Symlink") {
    if (entry.target === "" || entry.target.includes("\0")) {
      return "has a target that is empty or contains a NUL character"
    }
    return utf8.encode(entry.target).length + 1 > PATH_MAX
      ? `has a target longer than ${PATH_MAX - 1} bytes`
      : undefined
  }
  if (entry.permissions !== undefined && !isUint(entry.permissions, 0o7777)) {
    return "has permissions outside 0 to 0o7777"
  }
  if (entry._tag === "File" && entry.content.length > 0xffffffff) return "is larger than 4 GiB - 1"
  return entry._tag === "CharDevice" && !(isUint(entry.major, 0xfff) && isUint(entry.minor, 0xfffff))
    ? "has a device number out of range (major 12 bits, minor 20 bits)"
    : undefined
}

/** The parents of a path, outermost first: `a/b/c` has `a` and `a/b`. */
const parentsOf = (path: string): ReadonlyArray<string> => {
  const parts = path.split("/")
  return parts.slice(1).map((_, index) => parts.slice(0, index + 1).join("/"))
}

const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0)

/** Checks every entry and adds the parents nobody listed, so that a parent always comes before its children. */
const normalize = (entries: ReadonlyArray<Entry>): Result.Result<ReadonlyArray<Entry>, ImageError.ImageError> => {
  const faults: Array<string> = []
  const byPath = new Map<string, Entry>()
  for (const entry of entries) {
    const fault = pathFault(entry.path) ?? entryFault(entry)
    if (fault !== undefined) faults.push(`${JSON.stringify(entry.path)} ${fault}`)
    else if (byPath.has(entry.path)) faults.push(`${JSON.stringify(entry.path)} is listed twice`)
    else byPath.set(entry.path, entry)
  }
  for (const path of Array.from(byPath.keys())) {
    for (const parent of parentsOf(path)) {
      const found = byPath.get(parent)
      if (found === undefined) byPath.set(parent, directory(parent))
      else if (found._tag !== "Directory") {
        faults.push(`${JSON.stringify(path)} lies under ${JSON.stringify(parent)}, which is no directory`)
      }
    }
  }
  return faults.length === 0
    ? Result.succeed(Array.from(byPath.values()).toSorted((a, b) => compare(a.path, b.path)))
    : Result.fail(ImageError.fromReason(ImageError.ImageErrorReason.InvalidArchive({ faults })))
}

const align = (length: number, to: number): number => Math.ceil(length / to) * to

const hex = (value: number): string => value.toString(16).padStart(8, "0")

const NO_DATA = new Uint8Array(0)

const dataOf = (entry: Entry): Uint8Array =>
  entry._tag === "File" ? entry.content : entry._tag === "Symlink" ? utf8.encode(entry.target) : NO_DATA

const permissionsOf = (entry: Entry): number => {
  switch (entry._tag) {
    case "Directory":
      return entry.permissions ?? 0o755
    case "File":
      return entry.permissions ?? 0o644
    case "CharDevice":
      return entry.permissions ?? 0o600
    case "Symlink":
      return 0o777
  }
}

interface Member {
  readonly header: Uint8Array
  readonly data: Uint8Array
}

const member = (
  path: string,
  data: Uint8Array,
  fields: {
    readonly ino: number
    readonly mode: number
    readonly nlink: number
    readonly rdev: readonly [number, number]
  }
): Member => ({
  // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
  header: utf8.encode(
    `070701${
      [
        fields.ino,
        fields.mode,
        0,
        0,
        fields.nlink,
        0,
        data.length,
        0,
        0,
        fields.rdev[0],
        fields.rdev[1],
        utf8.encode(path).length + 1,
        0
      ].map(hex).join("")
    }${path}\0`
  ),
  data
})

/**
 * The bytes of an archive with these entries: sorted by path, owned by root, modified at the epoch.
 *
 * Fails with `InvalidArchive`, which lists every fault of every entry: a bad or doubled path, a parent that is not a
 * directory, a number out of range.
 *
 * ```ts import.meta.vitest
 * import * as Result from "effect/Result"
 * import { Cpio } from "effect-microvm-runtime/image"
 * const archive = Cpio.encode([Cpio.file("etc/hostname", "guest\n"), Cpio.symlink("init", "sbin/init")])
 * Result.getOrThrow(archive).length % 512 // => 0
 * Result.isFailure(Cpio.encode([Cpio.file("../escape", "")])) // => true
 * ```
 *
 * @category encoding
 * @since 0.1.0
 */
export const encode = (entries: ReadonlyArray<Entry>): Result.Result<Uint8Array, ImageError.ImageError> =>
  Result.map(normalize(entries), (sorted) => {
    const members = sorted.map((entry, index) =>
      member(entry.path, dataOf(entry), {
        ino: index + 1,
        mode: TYPE_BITS[entry._tag] | permissionsOf(entry),
        nlink: entry._tag === "Directory" ? 2 : 1,
        rdev: entry._tag === "CharDevice" ? [entry.major, entry.minor] : [0, 0]
      })
    )
    members.push(member(TRAILER, NO_DATA, { ino: 0, mode: 0, nlink: 1, rdev: [0, 0] }))
    // Header and data each end on a 4-byte boundary; the gaps stay zero.
    const sizes = members.map(({ data, header }) => align(header.length, 4) + align(data.length, 4))
    const archive = new Uint8Array(align(sizes.reduce((sum, size) => sum + size, 0), BLOCK))
    let offset = 0
    for (const [index, { data, header }] of members.entries()) {
      archive.set(header, offset)
      archive.set(data, offset + align(header.length, 4))
      offset += sizes[index] ?? 0
    }
    return archive
  })
