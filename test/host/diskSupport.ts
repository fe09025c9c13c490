/** Templates and clones in a directory of their own, on a host of which every step can be watched, and can be the last. */
import * as NodePath from "@effect/platform-node/NodePath"
import {
  DiskClones,
  DiskFiles,
  HostCommands,
  type HostError,
  NodeDiskFiles,
  Templates
} from "effect-microvm-runtime/host"
import { NodeProcessHost, ProcessHost } from "effect-microvm-runtime/process"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import { copyFileSync, existsSync, lstatSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { scratch, stepping } from "../files.ts"

export const owner = { id: "vm-1", token: "0123456789abcdef" }

/** Bytes that begin as a file system of that size does. */
export const image = (
  size: number,
  { content = 7, fileSystem = size, recover = false, state = 1 }: {
    readonly content?: number
    readonly fileSystem?: number
    readonly recover?: boolean
    readonly state?: number
  } = {}
): Uint8Array => {
  const bytes = new Uint8Array(size)
  bytes.fill(content, 8192)
  const view = new DataView(bytes.buffer)
  view.setUint32(1024 + 0x4, fileSystem / 1024, true)
  view.setUint16(1024 + 0x38, 0xef53, true)
  view.setUint16(1024 + 0x3a, state, true)
  view.setUint32(1024 + 0x60, recover ? 4 : 0, true)
  return bytes
}

export interface World {
  /** Told of each step before it is made. What dies here is not made. */
  readonly hook?: (step: string) => Effect.Effect<void>
  /** In place of a program. By default cp(1) copies, and the others do nothing. */
  readonly program?:
    | ((command: HostCommands.HostCommand) => Effect.Effect<string, HostError.HostError> | undefined)
    | undefined
  readonly reflink?: DiskFiles.DiskFiles["Service"]["reflink"]
  readonly room?: number
  readonly files?: (fs: FileSystem.FileSystem) => Partial<FileSystem.FileSystem>
  /** Is it a process that is gone later? */
  readonly isDoomed?: boolean
}

/** No process has a pid above 2^22 (proc_sys_kernel(5)). */
const DOOMED = 5_000_000

const doomed = Layer.effect(
  ProcessHost.ProcessHost,
  Effect.map(ProcessHost.ProcessHost, (host) => ({
    ...host,
    self: DOOMED,
    inspect: (pid: number) =>
      pid === DOOMED
        ? Effect.succeedSome({
          pid,
          parent: 1,
          group: pid,
          session: pid,
          startTime: 1,
          state: "R",
          command: "doomed",
          mark: undefined
        })
        : host.inspect(pid)
  }))
).pipe(Layer.provide(NodeProcessHost.layer))

const fileSystem = ({ files, hook = () => Effect.void }: World) =>
  Layer.effect(
    FileSystem.FileSystem,
    Effect.map(FileSystem.FileSystem, (fs): FileSystem.FileSystem => ({ ...fs, ...files?.(fs) }))
  ).pipe(Layer.provide(stepping(hook)))

const diskFiles = ({ hook = () => Effect.void, reflink = () => Effect.succeed(false), room }: World) =>
  Layer.effect(
    DiskFiles.DiskFiles,
    Effect.map(DiskFiles.DiskFiles, (real) => ({
      facts: (path: string) => Effect.andThen(hook(`facts ${path}`), real.facts(path)),
      room: room === undefined ? real.room : () => Effect.succeed(room),
      reflink: (from: string, to: string) => Effect.andThen(hook(`reflink ${to}`), reflink(from, to)),
      sha256: (path: string) => Effect.andThen(hook(`sha256 ${path}`), real.sha256(path))
    }))
  ).pipe(Layer.provide(NodeDiskFiles.layer))

const commands = ({ hook = () => Effect.void, program }: World) =>
  Layer.succeed(HostCommands.HostCommands, {
    run: (command) =>
      Effect.andThen(
        hook(`run ${command.program}`),
        Effect.suspend(() =>
          program?.(command) ?? Effect.sync(() => {
            const [from = "", to = ""] = command.args.slice(-2)
            if (command.program === "cp") copyFileSync(from, to)
            return ""
          })
        )
      )
  })

export const layer = (directory: string, world: World = {}) =>
  DiskClones.layerAt(join(directory, "clones")).pipe(
    Layer.provideMerge(Templates.layerAt(join(directory, "templates"))),
    Layer.provideMerge(Layer.mergeAll(
      fileSystem(world),
      diskFiles(world),
      commands(world),
      NodePath.layer,
      world.isDoomed === true ? doomed : NodeProcessHost.layer
    ))
  )

/** A directory that goes with the test, with `base.img`, which is a template `base` already if that is asked for. */
export const inDirectory = <A, E>(use: (directory: string) => Effect.Effect<A, E>): Effect.Effect<A, E> =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const directory = mkdtempSync(join(scratch, "disks-"))
      writeFileSync(join(directory, "base.img"), image(65_536))
      return directory
    }),
    use,
    (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
  )

export const addBase = (directory: string) =>
  Templates.Templates.use((templates) => templates.add("base", join(directory, "base.img"))).pipe(
    Effect.provide(layer(directory))
  )

/** What is in a directory, and in those below; no links are followed. */
export const tree = (directory: string): ReadonlyArray<string> =>
  !existsSync(directory) ? [] : readdirSync(directory).toSorted().flatMap((name) => {
    const at = join(directory, name)
    return lstatSync(at).isDirectory() ? tree(at).map((below) => `${name}/${below}`) : [name]
  })

export const whole = (id: string): ReadonlyArray<string> =>
  ["", ".owner.json", ".sha256"].map((end) => `${id}/rootfs.ext4${end}`)
