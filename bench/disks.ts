/** The disk of a machine: a clone of a sparse image, against the copies that are at hand. */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import { execFile } from "node:child_process"
import { randomFillSync } from "node:crypto"
import { copyFile, mkdtemp, open, rm, stat } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { promisify } from "node:util"
import { DiskClones, NodeDiskFiles, NodeHostCommands, Templates } from "../src/host/index.ts"
import { NodeProcessHost } from "../src/process/index.ts"
import { interleaved, median, ms, now, type Section, table, times, verdict } from "./measure.ts"

const MIB = 1024 * 1024

const run = promisify(execFile)
const env = { ...process.env, PATH: `${process.env["PATH"] ?? ""}:/usr/sbin:/sbin` }

/** 512 MiB, of which 64 are written, in eight places; behind the metadata of the file system, which is empty. */
const makeImage = async (path: string): Promise<void> => {
  await run("truncate", ["-s", "512M", path])
  await run("mkfs.ext4", ["-q", "-F", path], { env })
  const file = await open(path, "r+")
  const piece = randomFillSync(new Uint8Array(8 * MIB))
  for (let place = 0; place < 8; place++) await file.write(piece, 0, piece.length, (40 + place * 56) * MIB)
  await file.sync()
  await file.close()
}

const taken = async (path: string): Promise<number> => (await stat(path)).blocks * 512 / MIB

export const diskClones = async (rounds: number): Promise<Section> => {
  const directory = await mkdtemp(join(tmpdir(), "bench-disks-"))
  const image = join(directory, "rootfs.img")
  const runtime = ManagedRuntime.make(
    DiskClones.layerAt(join(directory, "clones")).pipe(
      Layer.provideMerge(Templates.layerAt(join(directory, "templates"))),
      Layer.provideMerge(NodeHostCommands.layer),
      Layer.provideMerge(
        Layer.mergeAll(NodeDiskFiles.layer, NodeFileSystem.layer, NodePath.layer, NodeProcessHost.layer)
      )
    )
  )
  try {
    await makeImage(image)
    const { path: template } = await runtime.runPromise(
      Templates.Templates.use((templates) => templates.add("bench", image))
    )
    const sizes = new Map<string, number>()
    let how = ""
    let serial = 0
    const ours = (name: string, size?: number) => ({
      name,
      run: async () => {
        const owner = { id: `vm-${++serial}`, token: "0123456789abcdef" }
        const start = now()
        const clone = await runtime.runPromise(
          DiskClones.DiskClones.use((clones) => clones.clone({ owner, stack: "bench", size }))
        )
        const took = now() - start
        how = clone.how
        sizes.set(name, await taken(clone.path))
        const data = { directory: join(directory, "clones", owner.id) }
        await runtime.runPromise(
          DiskClones.kind.reclaim([{ owner: { ...owner, bootId: "" }, data }], { dryRun: false })
        )
        return took
      }
    })
    const other = (name: string, copy: (to: string) => Promise<unknown>) => ({
      name,
      run: async () => {
        const to = join(directory, "copy")
        const start = now()
        await copy(to)
        const took = now() - start
        sizes.set(name, await taken(to))
        await rm(to)
        return took
      }
    })
    const samples = await interleaved(rounds, [
      ours("this library"),
      other("cp", (to) => run("cp", [template, to])),
      other("fs.copyFile", (to) => copyFile(template, to)),
      ours("this library, grown to 1 GiB", 1024 * MIB),
      other("cp, truncate, e2fsck, resize2fs", async (to) => {
        await run("cp", [template, to])
        await run("truncate", ["-s", "1G", to])
        await run("e2fsck", ["-f", "-p", to], { env })
        await run("resize2fs", [to], { env })
      })
    ])
    const library = median(samples, "this library")
    const againstCp = library / median(samples, "cp")
    const againstCopyFile = library / median(samples, "fs.copyFile")
    const grown = median(samples, "this library, grown to 1 GiB") / median(samples, "cp, truncate, e2fsck, resize2fs")
    const size = sizes.get("this library") ?? Number.NaN
    return {
      title: "Disk of a machine",
      text:
        `A copy of a template of 512 MiB, of which 64 are written, stamped and put in place by a rename (here: ${how}), against what copies the bytes alone.`,
      tables: [
        table(samples),
        [
          "| copy | MiB on the disk |",
          "| --- | ---: |",
          ...Array.from(sizes, ([name, mib]) => `| ${name} | ${mib.toFixed(0)} |`)
        ]
          .join("\n")
      ],
      verdicts: [
        verdict("≤ 1.5 × cp", times(againstCp), againstCp <= 1.5),
        verdict("≤ 0.5 × fs.copyFile", times(againstCopyFile), againstCopyFile <= 0.5),
        verdict("its holes stay holes: ≤ 80 MiB", `${size.toFixed(0)} MiB`, size <= 80),
        verdict("grown: ≤ 1.1 × the four programs", times(grown), grown <= 1.1),
        verdict("≤ 100 ms", ms(library), library <= 100)
      ]
    }
  } finally {
    await runtime.dispose()
    await rm(directory, { recursive: true, force: true })
  }
}
