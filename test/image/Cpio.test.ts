import { describe, expect, it } from "@effect/vitest"
import { Cpio } from "effect-microvm-runtime/image"
import * as Arbitrary from "effect/Arbitrary"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { spawnSync } from "node:child_process"
import { readCpio } from "./cpioReader.ts"

const Name = Schema.String.check(Schema.isPattern(/^[a-zé]{1,3}$/))
const Path = Schema.Array(Name).check(Schema.isMinLength(1), Schema.isMaxLength(4))
const Content = Schema.Struct({
  path: Path,
  kind: Schema.Literals(["Directory", "File", "Symlink", "CharDevice"]),
  bytes: Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 255 }))),
  permissions: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 0o7777 }))
})

type Content = typeof Content.Type

const toEntry = ({ bytes, kind, path: parts, permissions }: Content): Cpio.Entry => {
  const path = parts.join("/")
  switch (kind) {
    case "Directory":
      return Cpio.directory(path, permissions)
    case "File":
      return Cpio.file(path, Uint8Array.from(bytes), permissions)
    case "Symlink":
      return Cpio.symlink(path, `t${bytes.join("")}`)
    case "CharDevice":
      return Cpio.charDevice(path, bytes.length, bytes[0] ?? 0, permissions)
  }
}

/** Drops what cannot be in one archive: a path that is there already, or that lies under something that is no directory. */
const compatible = (entries: ReadonlyArray<Cpio.Entry>): ReadonlyArray<Cpio.Entry> =>
  entries.filter((entry, index) =>
    !entries.some((other, at) =>
      (other.path === entry.path && at < index) ||
      (entry.path.startsWith(`${other.path}/`) && other._tag !== "Directory")
    )
  )

const faultsOf = (entries: ReadonlyArray<Cpio.Entry>): ReadonlyArray<string> => {
  const result = Cpio.encode(entries)
  return Result.isFailure(result) && result.failure.reason._tag === "InvalidArchive" ? result.failure.reason.faults : []
}

describe("Cpio", () => {
  it.prop(
    "what is written is read back",
    [Arbitrary.schema(Schema.Array(Content))],
    ([contents]) => {
      const entries = compatible(contents.map(toEntry))
      const members = readCpio(Result.getOrThrow(Cpio.encode(entries)))
      for (const entry of entries) {
        const member = members.find(({ path }) => path === entry.path)
        if (member === undefined) throw new Error(`${entry.path} is missing`)
        expect(member.mode & 0o170000).toBe(
          { Directory: 0o040000, File: 0o100000, Symlink: 0o120000, CharDevice: 0o020000 }[entry._tag]
        )
        if (entry._tag !== "Symlink") expect(member.mode & 0o7777).toBe(entry.permissions)
        if (entry._tag === "File") expect(Array.from(member.data)).toEqual(Array.from(entry.content))
        if (entry._tag === "Symlink") expect(new TextDecoder().decode(member.data)).toBe(entry.target)
        if (entry._tag === "CharDevice") expect(member.device).toEqual([entry.major, entry.minor])
        expect([member.uid, member.gid, member.mtime]).toEqual([0, 0, 0])
      }
      const paths = members.map(({ path }) => path)
      expect(paths).toEqual(paths.toSorted())
      expect(new Set(members.map(({ ino }) => ino)).size).toBe(members.length)
      // The kernel makes no parents by itself.
      for (const path of paths.filter((one) => one.includes("/"))) {
        expect(paths.indexOf(path.slice(0, path.lastIndexOf("/")))).toBeGreaterThanOrEqual(0)
      }
    }
  )

  it.prop("the order of the entries changes nothing", [Arbitrary.schema(Schema.Array(Content))], ([contents]) => {
    const entries = compatible(contents.map(toEntry))
    const bytes = Result.getOrThrow(Cpio.encode(entries))
    expect(Buffer.compare(Result.getOrThrow(Cpio.encode(entries.toReversed())), bytes)).toBe(0)
    expect(bytes.length % 512).toBe(0)
  })

  it("names every fault of every entry", () => {
    const faults = faultsOf([
      Cpio.file("", ""),
      Cpio.file("/etc/passwd", ""),
      Cpio.file("a/../b", ""),
      Cpio.file("nul\0", ""),
      Cpio.file("x".repeat(4096), ""),
      Cpio.file("mode", "", 0o10000),
      Cpio.symlink("link", ""),
      Cpio.charDevice("device", 4096, 0),
      Cpio.file("twice", ""),
      Cpio.directory("twice"),
      Cpio.file("TRAILER!!!", ""),
      Cpio.file("twice/below", "")
    ])
    expect(faults).toHaveLength(11)
    expect(faults).toContain("\"/etc/passwd\" is absolute; leave out the leading slash")
    expect(faults).toContain("\"twice\" is listed twice")
    expect(faults).toContain("\"twice/below\" lies under \"twice\", which is no directory")
  })

  const reader = ["cpio", "bsdtar", "busybox"].find((command) => spawnSync(command, ["--help"]).error === undefined)
  if (reader === undefined) console.warn("skipped: there is no cpio, bsdtar or busybox here to read an archive")
  it.skipIf(reader === undefined)(
    `others can read it (${reader ?? "skipped: there is no cpio, bsdtar or busybox here"})`,
    () => {
      const archive = Result.getOrThrow(
        Cpio.encode([Cpio.file("bin/a", "1", 0o755), Cpio.symlink("b", "bin/a"), Cpio.charDevice("dev/console", 5, 1)])
      )
      const args = { cpio: ["-t", "--quiet"], bsdtar: ["-tf", "-"], busybox: ["cpio", "-t"] }
      const { status, stdout } = spawnSync(
        reader ?? "",
        args[reader === "cpio" || reader === "bsdtar" ? reader : "busybox"],
        {
          input: archive,
          encoding: "utf8"
        }
      )
      expect(status).toBe(0)
      expect(stdout.trim().split("\n")).toEqual(["bin", "bin/a", "b", "dev", "dev/console"])
    }
  )
})
