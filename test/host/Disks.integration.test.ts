import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { assert, describe, it } from "@effect/vitest"
import {
  DiskClones,
  DiskCollection,
  DiskFiles,
  type HostError,
  NodeDiskFiles,
  NodeHostCommands,
  Templates
} from "effect-microvm-runtime/host"
import { NodeProcessSpawner } from "effect-microvm-runtime/process"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { execFileSync, spawnSync } from "node:child_process"
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { inDirectory, owner } from "./diskSupport.ts"

const MIB = 1024 * 1024

const env = { ...process.env, LC_ALL: "C", PATH: `${process.env["PATH"] ?? ""}:/usr/sbin:/sbin` }
const run = (program: string, ...args: ReadonlyArray<string>) =>
  execFileSync(program, args, { env, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] })

const has = (program: string) => {
  try {
    run("sh", "-c", `command -v ${program}`)
    return true
  } catch {
    return false
  }
}

const missing = (...programs: ReadonlyArray<string>): string | undefined => {
  const lacking = programs.filter((program) => !has(program))
  return lacking.length === 0 ? undefined : `${lacking.join(", ")} cannot be found`
}

/** Skips, and says why. */
const unless = (why: string | undefined, what: string) => {
  if (why !== undefined) console.warn(`skipped: ${what}: ${why}`)
  return it.live.skipIf(why !== undefined)
}

const layer = (clones: string, templates: string) =>
  DiskClones.layerAt(clones).pipe(
    Layer.provideMerge(Templates.layerAt(templates)),
    Layer.provideMerge(NodeHostCommands.layer),
    Layer.provideMerge(
      Layer.mergeAll(NodeDiskFiles.layer, NodeFileSystem.layer, NodePath.layer, NodeProcessSpawner.layer)
    )
  )

/** A file system of 64 MiB with a file in it, most of it holes. */
const makeImage = (directory: string): string => {
  const path = join(directory, "rootfs.img")
  const content = join(directory, "content")
  writeFileSync(content, "hello from the image\n")
  run("truncate", "-s", "64M", path)
  run("mkfs.ext4", "-q", "-F", path)
  run("debugfs", "-w", "-R", `write ${content} greeting`, path)
  return path
}

const greeting = (path: string) => run("debugfs", "-R", "cat greeting", path)
const blocks = (path: string) => {
  const found = /^Block count:\s+(\d+)[^]*^Block size:\s+(\d+)/m.exec(run("dumpe2fs", "-h", path))
  return Number(found?.[1]) * Number(found?.[2])
}
const allocated = (path: string) => statSync(path).blocks * 512

const setUp = (directory: string, templates = join(directory, "templates"), clones = join(directory, "clones")) => {
  const provided = layer(clones, templates)
  return {
    add: (file: string) => Templates.Templates.use((all) => all.add("base", file)).pipe(Effect.provide(provided)),
    clone: (id: string, size?: number): Effect.Effect<DiskClones.Clone, HostError.HostError> =>
      DiskClones.DiskClones.use((all) => all.clone({ owner: { ...owner, id }, stack: "base", size })).pipe(
        Effect.provide(provided)
      ),
    reclaim: (...ids: ReadonlyArray<string>) =>
      DiskClones.kind.reclaim(
        ids.map((id) => ({ owner: { ...owner, id, bootId: "" }, data: { directory: join(clones, id) } })),
        { dryRun: false }
      ).pipe(Effect.provide(provided)),
    collect: DiskCollection.collect({ machines: [] }).pipe(Effect.provide(provided))
  }
}

const tools = missing("mkfs.ext4", "debugfs", "dumpe2fs", "resize2fs", "e2fsck")

describe("disks with real programs", () => {
  unless(tools, "a clone")(
    "a clone has what its template has, holes too, and is one's own",
    () =>
      inDirectory((directory) =>
        Effect.gen(function*() {
          const disks = setUp(directory)
          const template = yield* disks.add(makeImage(directory))
          const clone = yield* disks.clone("vm-1")
          assert.strictEqual(greeting(clone.path), "hello from the image\n")
          run("cmp", template.path, clone.path)
          assert.isBelow(allocated(clone.path), 16 * MIB)
          assert.strictEqual(statSync(clone.path).nlink, 1)
          run("debugfs", "-w", "-R", "rm greeting", clone.path)
          assert.strictEqual(greeting(template.path), "hello from the image\n")
          assert.deepStrictEqual((yield* disks.reclaim("vm-1", "vm-2")).map(({ _tag }) => _tag), ["Released", "Absent"])
          assert.deepStrictEqual(readdirSync(join(directory, "clones")), [".tmp"])
          assert.deepStrictEqual(readdirSync(join(directory, "clones/.tmp")), [])
        })
      )
  )

  unless(tools, "growing")(
    "a larger clone has a larger file system, sound and with its files",
    () =>
      inDirectory((directory) =>
        Effect.gen(function*() {
          const disks = setUp(directory)
          const file = makeImage(directory)
          const template = yield* disks.add(file)
          const clone = yield* disks.clone("vm-1", 512 * MIB)
          assert.strictEqual(statSync(clone.path).size, 512 * MIB)
          assert.strictEqual(blocks(clone.path), 512 * MIB)
          assert.strictEqual(blocks(template.path), 64 * MIB)
          run("e2fsck", "-f", "-n", clone.path)
          assert.strictEqual(greeting(clone.path), "hello from the image\n")
          assert.isBelow(allocated(clone.path), 64 * MIB)
        })
      )
  )

  unless(tools, "growing what needs a check")(
    "a file system that was not unmounted is put in order, and grows",
    () =>
      inDirectory((directory) =>
        Effect.gen(function*() {
          const disks = setUp(directory)
          const file = makeImage(directory)
          // Not valid, and mounted after it was checked.
          run("debugfs", "-w", "-R", "set_super_value state 0", file)
          run("debugfs", "-w", "-R", "set_super_value mtime 20300101000000", file)
          yield* disks.add(file)
          const clone = yield* disks.clone("vm-1", 128 * MIB)
          assert.strictEqual(blocks(clone.path), 128 * MIB)
          run("e2fsck", "-f", "-n", clone.path)
          assert.strictEqual(greeting(clone.path), "hello from the image\n")
        })
      )
  )

  const mounts = process.getuid?.() === 0 ? missing("mount", "umount") : "it takes root to mount"

  /** A file system of another kind, for as long as it is used. */
  const mounted = <A, E>(args: ReadonlyArray<string>, use: (at: string) => Effect.Effect<A, E>) =>
    Effect.acquireUseRelease(
      Effect.sync(() => {
        const at = mkdtempSync(join(tmpdir(), "disks-mount-"))
        try {
          run("mount", ...args, at)
        } catch (error) {
          rmSync(at, { recursive: true })
          throw error
        }
        return at
      }),
      use,
      (at) =>
        Effect.sync(() => {
          run("umount", at)
          rmSync(at, { recursive: true })
        })
    )

  unless(tools ?? mounts, "a full disk")(
    "a disk that is too small is told of, and nothing is left on it",
    () =>
      inDirectory((directory) =>
        mounted(["-t", "tmpfs", "-o", "size=8m", "none"], (small) =>
          Effect.gen(function*() {
            const file = join(directory, "large.img")
            run("truncate", "-s", "64M", file)
            run("mkfs.ext4", "-q", "-F", file)
            writeFileSync(join(directory, "noise"), Buffer.alloc(12 * MIB, 7))
            run("debugfs", "-w", "-R", `write ${join(directory, "noise")} noise`, file)
            const disks = setUp(directory, join(directory, "templates"), join(small, "clones"))
            yield* disks.add(file)
            const { reason } = yield* Effect.flip(disks.clone("vm-1"))
            assert.strictEqual(reason._tag, "NoSpace")
            assert.match(reason.message, /it takes \d+ bytes, and \d+ are free/)
            assert.deepStrictEqual(readdirSync(join(small, "clones")), [".tmp"])
            assert.deepStrictEqual(readdirSync(join(small, "clones/.tmp")), [])

            // What the disk is full of came after the room was looked at.
            const racing = DiskFiles.DiskFiles.use((files) =>
              DiskClones.DiskClones.use((clones) => clones.clone({ owner, stack: "base" })).pipe(
                Effect.provide(
                  DiskClones.layerAt(join(small, "clones")).pipe(
                    Layer.provide(Layer.succeed(DiskFiles.DiskFiles, { ...files, room: () => Effect.succeed(2 ** 40) }))
                  )
                )
              )
            )
            const late = yield* Effect.flip(
              racing.pipe(Effect.provide(layer(join(small, "clones"), join(directory, "templates"))))
            )
            assert.strictEqual(late.reason._tag, "NoSpace")
            assert.deepStrictEqual(readdirSync(join(small, "clones/.tmp")), [])
          }))
      )
  )

  unless(tools ?? mounts, "another file system")(
    "templates and clones may be on different file systems",
    () =>
      inDirectory((directory) =>
        mounted(["-t", "tmpfs", "-o", "size=128m", "none"], (other) =>
          Effect.gen(function*() {
            const disks = setUp(directory, join(directory, "templates"), join(other, "clones"))
            yield* disks.add(makeImage(directory))
            const clone = yield* disks.clone("vm-1")
            assert.strictEqual(clone.how, "sparse-copy")
            assert.strictEqual(greeting(clone.path), "hello from the image\n")
          }))
      )
  )

  const kinds: ReadonlyArray<readonly [kind: string, size: string, options: ReadonlyArray<string>]> = [
    ["btrfs", "256M", []],
    ["xfs", "512M", []]
  ]
  for (const [kind, size, options] of kinds) {
    // As mount(8) does: it may be a module that is not loaded.
    spawnSync("modprobe", ["-q", kind])
    const known = new RegExp(`\\t${kind}$`, "m").test(readFileSync("/proc/filesystems", "utf8"))
    const why = tools ?? mounts ?? missing(`mkfs.${kind}`) ??
      (existsSync("/dev/loop-control") ? known ? undefined : `no ${kind} in this kernel` : "no loop devices")
    unless(why, `reflinks on ${kind}`)(
      `a clone on ${kind} shares the blocks of its template`,
      () =>
        inDirectory((directory) => {
          const disk = join(directory, "disk")
          run("truncate", "-s", size, disk)
          run(`mkfs.${kind}`, "-q", ...options, disk)
          return mounted(["-o", "loop", disk], (at) =>
            Effect.gen(function*() {
              const disks = setUp(directory, join(at, "templates"), join(at, "clones"))
              yield* disks.add(makeImage(directory))
              const clone = yield* disks.clone("vm-1", 128 * MIB)
              assert.strictEqual(clone.how, "reflink")
              assert.strictEqual(greeting(clone.path), "hello from the image\n")
            }))
        })
    )
  }

  unless(tools, "a supervisor that is killed")(
    "what a killed process had begun is removed by the next",
    () =>
      inDirectory((directory) =>
        Effect.gen(function*() {
          const disks = setUp(directory)
          yield* disks.add(makeImage(directory))
          const bootId = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim()
          const left = join(directory, "clones/.tmp", `${bootId}.5000000.1.abcdef`)
          mkdirSync(join(left, "clone"), { recursive: true })
          writeFileSync(join(left, "clone/rootfs.ext4"), "half")
          assert.deepStrictEqual((yield* disks.reclaim("vm-1")).map(({ _tag }) => _tag), ["Absent"])
          assert.isFalse(existsSync(left))
          assert.deepStrictEqual((yield* disks.collect).map(({ name, verdict }) => [name, verdict]), [[
            "base",
            "Recent"
          ]])
        })
      )
  )
})
